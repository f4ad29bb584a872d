//! When a worker that failed is replaced.
//!
//! A worker whose handler panicked is replaced at once: its other partitions
//! must not wait, and the record that failed waits by the retry policy. A
//! worker that could not even start waits, doubling from 100 ms to 30 s, and so
//! does one whose process died: nobody knows of what, and others have its
//! partitions meanwhile. With each wait that doubles by chance a little more or
//! less, so that many that died together do not come back together. Each
//! replacement counts against a budget per worker and minute; when it is
//! spent, the run ends, since something is wrong that restarting does not mend.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Coarse;
use crate::kafka::backoff::Backoff;
use crate::report::WorkerStop;

/// The time in which the budget counts.
const WINDOW: Duration = Duration::from_mins(1);

/// How long a worker waits that could not start, or whose process died.
const WAIT: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(30),
};

/// Where nothing is left to chance.
const NO_CHANCE: f64 = 0.5;

/// What becomes of a worker that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replacement {
    Now,
    At(Coarse),
    /// The budget is spent.
    Never,
}

/// Counts the replacements of every worker.
#[derive(Debug)]
pub(crate) struct RestartPolicy {
    budget: usize,
    recent: HashMap<usize, VecDeque<Coarse>>,
    total: HashMap<usize, u32>,
    failed_starts: HashMap<usize, u32>,
}

impl RestartPolicy {
    /// Allows `budget` replacements per worker and minute.
    pub(crate) fn new(budget: u32) -> Self {
        Self {
            budget: usize::try_from(budget).unwrap_or(usize::MAX),
            recent: HashMap::new(),
            total: HashMap::new(),
            failed_starts: HashMap::new(),
        }
    }

    /// A worker failed at `now`.
    /// `chance` is between 0 and 1.
    pub(crate) fn failed(
        &mut self,
        worker: usize,
        why: &WorkerStop,
        now: Coarse,
        chance: f64,
    ) -> Replacement {
        let recent = self.recent.entry(worker).or_default();
        while recent
            .front()
            .is_some_and(|earlier| now.since(*earlier) >= WINDOW)
        {
            recent.pop_front();
        }
        if recent.len() >= self.budget {
            return Replacement::Never;
        }
        recent.push_back(now);
        *self.total.entry(worker).or_default() += 1;
        match why {
            WorkerStop::SourceFailed(_) => {
                let failed = self.failed_starts.entry(worker).or_default();
                *failed += 1;
                return Replacement::At(now.after(WAIT.delay(*failed, NO_CHANCE)));
            }
            WorkerStop::ChildExited(_) | WorkerStop::ChildSilent(_) => {
                // Those of the last minute: one that lived longer begins anew.
                let died = u32::try_from(recent.len()).unwrap_or(u32::MAX);
                let chance = if died == 1 { NO_CHANCE } else { chance };
                let wait = WAIT.delay(died, chance).min(WAIT.max);
                return Replacement::At(now.after(wait));
            }
            _ => {}
        }
        self.failed_starts.remove(&worker);
        Replacement::Now
    }

    /// How often a worker of that number was replaced.
    pub(crate) fn restarts(&self, worker: usize) -> u32 {
        self.total.get(&worker).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Coarse {
        Coarse::from_millis(millis)
    }

    #[test]
    fn a_panicking_worker_is_replaced_until_its_budget_of_the_minute_is_spent() {
        let mut policy = RestartPolicy::new(5);
        let why = WorkerStop::HandlerPanicked("no".into());
        for second in 0..5 {
            assert_eq!(
                policy.failed(0, &why, at(second * 1_000), 0.5),
                Replacement::Now
            );
        }
        assert_eq!(policy.failed(0, &why, at(59_000), 0.5), Replacement::Never);
        assert_eq!(
            policy.failed(1, &why, at(59_000), 0.5),
            Replacement::Now,
            "each has its own"
        );
        assert_eq!(
            policy.failed(0, &why, at(60_000), 0.5),
            Replacement::Now,
            "the first is a minute old"
        );
        assert_eq!(policy.restarts(0), 6);
    }

    #[test]
    fn a_worker_that_cannot_start_waits_longer_each_time() {
        let mut policy = RestartPolicy::new(100);
        let why = WorkerStop::SourceFailed("no descriptors".into());
        let waits: Vec<_> = (0..11)
            .map(|_| policy.failed(0, &why, at(0), 0.5))
            .collect();
        assert_eq!(waits[0], Replacement::At(at(100)));
        assert_eq!(waits[1], Replacement::At(at(200)));
        assert_eq!(waits[10], Replacement::At(at(30_000)));
    }

    #[test]
    fn a_worker_whose_process_dies_again_and_again_waits_longer_and_longer() {
        let mut policy = RestartPolicy::new(5);
        let why = WorkerStop::ChildExited("signal 11".into());
        let waits: Vec<_> = (0..6).map(|_| policy.failed(2, &why, at(0), 0.5)).collect();
        assert_eq!(
            waits,
            [
                Replacement::At(at(100)),
                Replacement::At(at(200)),
                Replacement::At(at(400)),
                Replacement::At(at(800)),
                Replacement::At(at(1_600)),
                Replacement::Never,
            ]
        );
        assert_eq!(
            policy.failed(2, &why, at(60_000), 0.0),
            Replacement::At(at(60_100)),
            "the last ones are a minute old"
        );
        assert_eq!(
            policy.failed(2, &why, at(60_000), 0.0),
            Replacement::At(at(60_160))
        );
        assert_eq!(
            policy.failed(2, &why, at(60_000), 1.0),
            Replacement::At(at(60_480))
        );
    }
}
