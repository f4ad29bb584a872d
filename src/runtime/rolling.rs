//! Replaces every worker, one at a time, each working again before the next.
//!
//! What a worker has of its own (what its factory read from a file, memory that a
//! library leaked, for a process all of it) begins anew. Its partitions wait for
//! the moment that takes, those of the others go on, and there is no rebalance.
//! Where a new worker fails the rest are left as they are: whatever it failed of
//! would end them too.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How a worker does, to whoever replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has made its handler and opened its source.
    Works,
    /// It is being started.
    Starts,
    /// There is none of that number: fewer are wanted, or it failed.
    Gone,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Wait,
    /// Ask that one to end.
    Stop(usize),
    /// That one takes long over the record in hand; the next ones do not wait for
    /// it.
    Slow(usize),
    /// All were replaced.
    Done,
}

/// Who was replaced, and who is next.
#[derive(Debug, Default)]
pub(crate) struct Rolling {
    left: VecDeque<usize>,
    /// The one that the next wait for, and since when it was asked.
    current: Option<(usize, Instant)>,
    /// Those that were asked and have not ended.
    asked: BTreeSet<usize>,
    is_under_way: bool,
}

impl Rolling {
    /// Replaces these. Whoever waits for its turn is not replaced twice.
    pub(crate) fn begin(&mut self, workers: impl IntoIterator<Item = usize>) {
        self.left = workers.into_iter().collect();
        self.left.retain(|worker| !self.asked.contains(worker));
        self.is_under_way = true;
    }

    /// Whether there is anything to do.
    pub(crate) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// The next step, where `patience` is how long one may take over its record.
    pub(crate) fn step(
        &mut self,
        standing: impl Fn(usize) -> Standing,
        patience: Duration,
        now: Instant,
    ) -> Step {
        if let Some((worker, since)) = self.current {
            let has_ended = !self.asked.contains(&worker);
            if !has_ended && now.saturating_duration_since(since) >= patience {
                self.current = None;
                return Step::Slow(worker);
            }
            if !has_ended || standing(worker) == Standing::Starts {
                return Step::Wait;
            }
            self.current = None;
        }
        while let Some(worker) = self.left.pop_front() {
            if standing(worker) != Standing::Gone {
                self.current = Some((worker, now));
                self.asked.insert(worker);
                return Step::Stop(worker);
            }
        }
        if std::mem::take(&mut self.is_under_way) {
            return Step::Done;
        }
        Step::Wait
    }

    /// A worker has ended as it was told to: true where it is to be replaced.
    pub(crate) fn ended(&mut self, worker: usize) -> bool {
        self.asked.remove(&worker)
    }

    /// A worker has failed: true where it was a new one, and no other is replaced.
    pub(crate) fn failed(&mut self, worker: usize) -> bool {
        let was_asked = self.asked.remove(&worker);
        let is_new = !was_asked && self.current.is_some_and(|(current, _)| current == worker);
        if is_new {
            self.left.clear();
            self.current = None;
            self.is_under_way = false;
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const PATIENCE: Duration = Duration::from_secs(25);

    #[test]
    fn the_next_worker_is_stopped_when_the_one_before_works_again() {
        let now = Clock::manual().now();
        let mut rolling = Rolling::default();
        rolling.begin([0, 1]);
        let works = |_| Standing::Works;
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Stop(0));
        assert_eq!(
            rolling.step(works, PATIENCE, now),
            Step::Wait,
            "it has not ended"
        );
        assert!(rolling.ended(0), "it is replaced");
        assert_eq!(
            rolling.step(|_| Standing::Starts, PATIENCE, now),
            Step::Wait
        );
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Stop(1));
        assert!(rolling.ended(1));
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Done);
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Wait);
        assert!(!rolling.ended(1), "that is another matter");
    }

    #[test]
    fn a_worker_that_is_gone_by_its_turn_is_passed_over() {
        let now = Clock::manual().now();
        let mut rolling = Rolling::default();
        rolling.begin([0, 1, 2]);
        let standing = |worker| match worker {
            2 => Standing::Works,
            _ => Standing::Gone,
        };
        assert_eq!(rolling.step(standing, PATIENCE, now), Step::Stop(2));
    }

    #[test]
    fn one_that_takes_long_over_its_record_holds_up_the_others_for_a_while_and_is_replaced_later() {
        let now = Clock::manual().now();
        let mut rolling = Rolling::default();
        rolling.begin([0, 1]);
        let works = |_| Standing::Works;
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Stop(0));
        assert_eq!(rolling.step(works, PATIENCE, now + PATIENCE), Step::Slow(0));
        assert_eq!(rolling.step(works, PATIENCE, now + PATIENCE), Step::Stop(1));
        assert!(rolling.ended(0) && rolling.ended(1));
    }

    #[test]
    fn a_new_worker_that_fails_leaves_the_others_as_they_are() {
        let now = Clock::manual().now();
        let mut rolling = Rolling::default();
        rolling.begin([0, 1]);
        let works = |_| Standing::Works;
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Stop(0));
        assert!(!rolling.failed(1), "that one was not touched yet");
        assert!(rolling.ended(0));
        assert!(rolling.failed(0));
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Wait);
    }

    #[test]
    fn asked_again_meanwhile_it_begins_anew_and_replaces_nobody_twice_at_a_time() {
        let now = Clock::manual().now();
        let mut rolling = Rolling::default();
        let works = |_| Standing::Works;
        rolling.begin([0, 1]);
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Stop(0));
        rolling.begin([0, 1]);
        assert!(rolling.ended(0));
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Stop(1));
        assert!(rolling.ended(1));
        assert_eq!(rolling.step(works, PATIENCE, now), Step::Done);
    }
}
