//! The ladder of a stop: drain, then cut short, then end, each with a
//! deadline.
//!
//! | rung | entered by | what happens | ends |
//! |---|---|---|---|
//! | running | | | |
//! | draining | a signal, `stop()`, the end of the work, a failure | no record is started, those in hand are finished, what is complete is committed | when all workers have ended and the group has confirmed the commit, or at the stop deadline |
//! | closing | the end of the drain, or a second signal | what is complete is committed, the group is left | when the group answered, or [`CLOSE_WITHIN`] after the stop deadline or the second signal |
//! | closed | | the report is made | |
//!
//! Committed *before* the group is left: in the middle of a rebalance a client
//! that leaves commits under a generation that has passed, and the commit is
//! refused, while one that stays commits as soon as the rebalance is over. And
//! leaving waits for the rebalance too, up to a heartbeat of the other members,
//! so that it has the rest of the stop deadline: a member that does not leave
//! holds its partitions until its session expires.
//!
//! A third signal ends the process at once and never gets here.

use std::time::{Duration, Instant};

use crate::report::StopReason;

/// How long leaving the group may take after the stop deadline, or after a
/// second signal. A stop is never longer than its deadline and this.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_millis(1_500);

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rung {
    Running,
    Draining,
    Closing,
    Closed,
}

/// What the loop has to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing new.
    Stay,
    /// Tell every worker to end.
    Drain,
    /// Give up the handlers that still run, store what is complete, and leave
    /// the group.
    Close,
    /// Make the report.
    End,
}

/// The ladder of one run.
#[derive(Debug)]
pub(crate) struct Ladder {
    rung: Rung,
    reason: Option<StopReason>,
    began: Option<Instant>,
    deadline: Option<Instant>,
    drain_within: Duration,
}

impl Ladder {
    /// A run that goes on; a stop of it may drain that long.
    pub(crate) fn new(drain_within: Duration) -> Self {
        Self {
            rung: Rung::Running,
            reason: None,
            began: None,
            deadline: None,
            drain_within,
        }
    }

    pub(crate) fn rung(&self) -> Rung {
        self.rung
    }

    /// Something asks the run to stop. The gravest reason is kept; being asked
    /// by a person while draining cuts the drain short.
    pub(crate) fn ask(&mut self, reason: StopReason, now: Instant) -> Step {
        let asked = matches!(reason, StopReason::Signal | StopReason::StopCalled);
        match self.rung {
            Rung::Running => {
                self.rung = Rung::Draining;
                self.reason = Some(reason);
                self.began = Some(now);
                self.deadline = Some(now + self.drain_within);
                Step::Drain
            }
            Rung::Draining if asked && self.was_asked() => {
                self.worsen(StopReason::SecondSignal);
                self.deadline = Some(now);
                self.close()
            }
            Rung::Closing if asked && self.was_asked() => {
                self.worsen(StopReason::SecondSignal);
                let soon = now + CLOSE_WITHIN;
                self.deadline = self.deadline.map(|deadline| deadline.min(soon));
                Step::Stay
            }
            _ => {
                self.worsen(reason);
                Step::Stay
            }
        }
    }

    /// Time passed; `drained` where no worker runs any more and nothing waits
    /// for its commit, `left` where the group was left.
    pub(crate) fn turn(&mut self, drained: bool, left: bool, now: Instant) -> Step {
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        match self.rung {
            Rung::Draining if drained || late => self.close(),
            Rung::Closing if left || late => {
                self.rung = Rung::Closed;
                Step::End
            }
            _ => Step::Stay,
        }
    }

    fn close(&mut self) -> Step {
        self.rung = Rung::Closing;
        self.deadline = self.deadline.map(|deadline| deadline + CLOSE_WITHIN);
        Step::Close
    }

    /// True where the group should confirm the last commit before it is left:
    /// always, unless there is no membership left that could.
    pub(crate) fn waits_for_commit(&self) -> bool {
        !matches!(
            self.reason,
            Some(StopReason::FatalClientError { .. } | StopReason::InstanceTaken { .. })
        )
    }

    /// True where a person asked, as opposed to the end of the work or a
    /// failure: only then a further ask is a second one.
    fn was_asked(&self) -> bool {
        matches!(
            self.reason,
            Some(StopReason::Signal | StopReason::StopCalled)
        )
    }

    fn worsen(&mut self, reason: StopReason) {
        if self
            .reason
            .as_ref()
            .is_none_or(|known| known.severity() < reason.severity())
        {
            self.reason = Some(reason);
        }
    }

    /// Why the run stopped, and how long that took until `now`.
    pub(crate) fn outcome(&self, now: Instant) -> (StopReason, Duration) {
        let reason = self.reason.clone().unwrap_or(StopReason::StopCalled);
        (
            reason,
            self.began
                .map_or(Duration::ZERO, |began| now.saturating_duration_since(began)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const DRAIN: Duration = Duration::from_secs(25);

    fn ladder() -> (Ladder, Instant) {
        (Ladder::new(DRAIN), Clock::manual().now())
    }

    #[test]
    fn a_drain_ends_when_the_workers_have_ended() {
        let (mut ladder, now) = ladder();
        assert_eq!(ladder.turn(true, true, now), Step::Stay, "nobody asked");
        assert_eq!(ladder.ask(StopReason::Signal, now), Step::Drain);
        assert_eq!(ladder.turn(false, false, now), Step::Stay);
        assert_eq!(ladder.turn(true, false, now), Step::Close);
        assert_eq!(ladder.turn(true, true, now), Step::End);
        assert_eq!(ladder.turn(true, true, now), Step::Stay, "it ends once");
        assert_eq!(ladder.outcome(now).0, StopReason::Signal);
    }

    #[test]
    fn a_drain_ends_at_its_deadline_and_closing_at_its_own() {
        let (mut ladder, now) = ladder();
        ladder.ask(StopReason::StopCalled, now);
        assert_eq!(ladder.turn(false, false, now + DRAIN), Step::Close, "late");
        assert_eq!(ladder.turn(false, false, now + DRAIN), Step::Stay);
        assert_eq!(
            ladder.turn(false, false, now + DRAIN + CLOSE_WITHIN),
            Step::End
        );
    }

    #[test]
    fn leaving_has_the_rest_of_the_stop_deadline() {
        let (mut ladder, now) = ladder();
        ladder.ask(StopReason::StopCalled, now);
        assert_eq!(ladder.turn(true, false, now), Step::Close);
        assert_eq!(ladder.turn(true, false, now + DRAIN), Step::Stay);
        let late = now + DRAIN + CLOSE_WITHIN;
        assert_eq!(ladder.turn(true, false, late), Step::End);
    }

    #[test]
    fn a_second_signal_cuts_the_drain_short() {
        let (mut ladder, now) = ladder();
        ladder.ask(StopReason::Signal, now);
        assert_eq!(ladder.ask(StopReason::Signal, now), Step::Close);
        assert_eq!(ladder.ask(StopReason::Signal, now), Step::Stay);
        assert_eq!(ladder.outcome(now).0, StopReason::SecondSignal);
        let late = now + CLOSE_WITHIN;
        assert_eq!(ladder.turn(false, false, late), Step::End);
    }

    #[test]
    fn a_second_signal_cuts_the_leaving_short() {
        let (mut ladder, now) = ladder();
        ladder.ask(StopReason::Signal, now);
        assert_eq!(ladder.turn(true, false, now), Step::Close);
        assert_eq!(ladder.ask(StopReason::Signal, now), Step::Stay);
        assert_eq!(ladder.outcome(now).0, StopReason::SecondSignal);
        let late = now + CLOSE_WITHIN;
        assert_eq!(ladder.turn(true, false, late), Step::End);
    }

    #[test]
    fn a_run_waits_for_its_last_commit_unless_its_membership_is_over() {
        for (reason, waits) in [
            (StopReason::EndReached, true),
            (StopReason::Signal, true),
            (
                StopReason::FatalClientError {
                    message: String::new(),
                },
                false,
            ),
        ] {
            let (mut ladder, now) = ladder();
            ladder.ask(reason, now);
            assert_eq!(ladder.waits_for_commit(), waits);
        }
    }

    #[test]
    fn the_first_signal_after_a_failure_is_not_a_second_one() {
        let (mut ladder, now) = ladder();
        let failure = StopReason::HookPanicked {
            hook: "on_assigned",
            message: "no".into(),
        };
        ladder.ask(failure.clone(), now);
        assert_eq!(ladder.ask(StopReason::Signal, now), Step::Stay);
        assert_eq!(ladder.outcome(now).0, failure);
    }

    #[test]
    fn the_gravest_reason_is_kept() {
        let (mut ladder, now) = ladder();
        ladder.ask(StopReason::EndReached, now);
        let fatal = StopReason::FatalClientError {
            message: "fenced".into(),
        };
        ladder.ask(fatal.clone(), now);
        ladder.ask(StopReason::CountReached, now);
        assert_eq!(ladder.outcome(now).0, fatal);
    }
}
