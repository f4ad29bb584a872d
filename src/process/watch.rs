//! What becomes of a child that says nothing.
//!
//! A child says something at least each half second, whatever its handler does:
//! that is another thread. So silence means that the process does not run
//! (stopped, swapped out, starved) or that its line is broken, and nobody can
//! tell whether it will handle records of partitions that are somebody else's
//! by then. It is asked, then told to end by a signal, then killed. Where it owes
//! partitions that the group waits for, there is no time for that.

use std::time::Duration;

use crate::clock::Coarse;

/// A child says something at least that often.
pub(crate) const PULSE: Duration = Duration::from_millis(500);

const ASK_AFTER: Duration = Duration::from_secs(3);
const END_AFTER: Duration = Duration::from_secs(8);
const KILL_AFTER: Duration = Duration::from_secs(10);

/// How long a silent child may owe partitions, where the revoke deadline leaves
/// that.
const OWES_AT_MOST: Duration = Duration::from_secs(2);

/// What is done about a child now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It is well, as far as one knows.
    LetBe,
    /// It is asked whether it is there; said in the log.
    Ask,
    /// SIGTERM.
    End,
    /// SIGKILL.
    Kill,
}

/// When a child spoke, and what it owes.
#[derive(Debug)]
pub(crate) struct Watch {
    heard: Coarse,
    looked: Coarse,
    owes_at_most: Duration,
    done: Verdict,
}

impl Watch {
    pub(crate) fn new(revoke_deadline: Duration, now: Coarse) -> Self {
        Self {
            heard: now,
            looked: now,
            owes_at_most: OWES_AT_MOST.min(revoke_deadline / 2),
            done: Verdict::LetBe,
        }
    }

    /// It said something.
    pub(crate) fn heard(&mut self, now: Coarse) {
        self.heard = now;
        self.done = Verdict::LetBe;
    }

    /// How long it has said nothing.
    pub(crate) fn silent_for(&self, now: Coarse) -> Duration {
        now.since(self.heard)
    }

    /// Looks at the clock; `owes_since` is when the oldest partition was asked
    /// for that it has not given back. Each step but the last is said once.
    pub(crate) fn look(&mut self, now: Coarse, owes_since: Option<Coarse>) -> Verdict {
        // Who has not looked for a while (a process that was stopped as a whole)
        // has not listened either.
        let gap = now.since(self.looked);
        self.looked = now;
        if gap > 2 * PULSE {
            self.heard = self.heard.after(gap);
        }
        let silent = self.silent_for(now);
        let owes = owes_since.map_or(Duration::ZERO, |since| now.since(since));
        let is_in_the_way = silent.min(owes) >= self.owes_at_most && silent > 2 * PULSE;
        let verdict = if silent >= KILL_AFTER || is_in_the_way {
            return Verdict::Kill;
        } else if silent >= END_AFTER {
            Verdict::End
        } else if silent >= ASK_AFTER {
            Verdict::Ask
        } else {
            Verdict::LetBe
        };
        if verdict <= self.done {
            return Verdict::LetBe;
        }
        self.done = verdict;
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Coarse {
        Coarse::from_millis(millis)
    }

    /// Looks each 100 ms, and gives what was decided when.
    fn decisions(
        watch: &mut Watch,
        from: u64,
        to: u64,
        owes_since: Option<u64>,
    ) -> Vec<(u64, Verdict)> {
        (from..=to)
            .step_by(100)
            .map(|now| (now, watch.look(at(now), owes_since.map(at))))
            .filter(|(_, verdict)| *verdict != Verdict::LetBe)
            .take(3)
            .collect()
    }

    #[test]
    fn a_silent_child_is_asked_then_told_to_end_then_killed() {
        let mut watch = Watch::new(Duration::from_secs(5), at(0));
        let steps = [
            (3_000, Verdict::Ask),
            (8_000, Verdict::End),
            (10_000, Verdict::Kill),
        ];
        assert_eq!(decisions(&mut watch, 0, 20_000, None), steps);
        watch.heard(at(20_000));
        assert_eq!(decisions(&mut watch, 20_000, 22_900, None), []);
    }

    #[test]
    fn a_child_that_speaks_may_owe_a_partition_for_as_long_as_its_handler_takes() {
        let mut watch = Watch::new(Duration::from_secs(5), at(0));
        for now in (0..60_000).step_by(500) {
            watch.heard(at(now));
            assert_eq!(watch.look(at(now), Some(at(0))), Verdict::LetBe);
        }
    }

    #[test]
    fn a_silent_child_that_owes_a_partition_is_killed_while_the_group_still_waits() {
        let mut watch = Watch::new(Duration::from_secs(5), at(0));
        assert_eq!(
            decisions(&mut watch, 0, 2_900, Some(500)),
            [
                (2_500, Verdict::Kill),
                (2_600, Verdict::Kill),
                (2_700, Verdict::Kill)
            ]
        );
        let mut hasty = Watch::new(Duration::from_secs(3), at(0));
        assert_eq!(
            decisions(&mut hasty, 0, 2_000, Some(0))[0],
            (1_500, Verdict::Kill)
        );
    }

    #[test]
    fn whoever_slept_itself_does_not_blame_the_child() {
        let mut watch = Watch::new(Duration::from_secs(5), at(0));
        assert_eq!(watch.look(at(100), None), Verdict::LetBe);
        assert_eq!(
            watch.look(at(60_000), None),
            Verdict::LetBe,
            "both were stopped"
        );
        assert_eq!(decisions(&mut watch, 60_100, 62_000, None), []);
        assert_eq!(
            decisions(&mut watch, 62_100, 64_000, None),
            [(62_900, Verdict::Ask)]
        );
    }
}
