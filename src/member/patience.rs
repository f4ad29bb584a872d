//! How long the group may owe this member an assignment before that is said.
//!
//! A rebalance waits for every member of the group. One that hangs, or a
//! coordinator that does, keeps all of them waiting, and whoever waits looks
//! like one that joins: idle, alive, and about to be given something. Nothing
//! that this process can do ends it. The group itself does: the coordinator gives
//! a member up that has not answered for that member's `max.poll.interval.ms`. To
//! start anew would only make the rebalance longer. So the wait goes on, in sight
//! of everybody.

use std::time::{Duration, Instant};

/// Longer than a rebalance takes whose members all answer: heartbeats (3 s), the
/// revoke deadline (5 s) and the joins of one after the other.
const USUAL: Duration = Duration::from_secs(30);

/// Since when the group owes an assignment.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since: Option<Instant>,
    is_told: bool,
}

impl Patience {
    /// The group owes an assignment from now on, if it did not already.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The group gave one; how long it took, where that was said.
    pub(crate) fn end(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        std::mem::take(&mut self.is_told).then(|| now.saturating_duration_since(since))
    }

    /// How long it has taken, once, when that is longer than usual.
    pub(crate) fn is_over(&mut self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.since?);
        if self.is_told || waited < USUAL {
            return None;
        }
        self.is_told = true;
        Some(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_wait_that_is_longer_than_usual_is_told_once_and_so_is_its_end() {
        let (mut patience, now) = (Patience::default(), Clock::manual().now());
        assert_eq!(patience.is_over(now + USUAL), None, "nothing is owed");
        patience.begin(now);
        patience.begin(now + USUAL / 2);
        assert_eq!(patience.is_over(now + USUAL / 2), None);
        assert_eq!(patience.is_over(now + USUAL), Some(USUAL), "from the first");
        assert_eq!(patience.is_over(now + 2 * USUAL), None, "once");
        assert_eq!(patience.end(now + 3 * USUAL), Some(3 * USUAL));
        assert_eq!(patience.is_over(now + 9 * USUAL), None, "it is over");
    }

    #[test]
    fn a_wait_of_the_usual_length_is_not_worth_a_word() {
        let (mut patience, now) = (Patience::default(), Clock::manual().now());
        patience.begin(now);
        assert_eq!(patience.is_over(now + USUAL / 2), None);
        assert_eq!(patience.end(now + USUAL / 2), None);
        patience.begin(now + USUAL);
        assert_eq!(patience.is_over(now + USUAL + USUAL / 2), None, "a new one");
    }
}
