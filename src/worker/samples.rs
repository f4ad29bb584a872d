//! What a worker observes at each batch, for the reporter to collect.
//!
//! The Java client observes a partition's lag at every drained batch, which is
//! more often than a reporter ticks, and the maximum of a second is what a tick
//! alone would miss. A worker must not wait for a reporter, so there is no lock
//! and no queue: a running sum and count, and the extremes since they were
//! collected.
//!
//! Sum and count belong together, or the mean would be wrong. Only the worker
//! that has the lane writes them, so a version on either side is enough, and
//! the count itself serves as the version:
//!
//! 1. the worker says which observation it begins, adds it, and says which it
//!    ended;
//! 2. the reporter reads the last that ended, the sum, and the last that began:
//!    where both are the same, no observation was half done in between.
//!
//! The extremes are exchanged as they are collected, and put before the count:
//! one of an observation that is not counted yet may come a tick early, none is
//! lost.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::lag::window::Observed;

/// Observations of one number of one lane.
#[derive(Debug)]
pub(crate) struct Samples {
    begun: AtomicU64,
    ended: AtomicU64,
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

/// Up to where observations have been collected.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Collected {
    count: u64,
    sum: u64,
}

/// A worker is done with an observation within nanoseconds, unless it loses its
/// core right there: then its observations are collected at the next tick.
const TRIES: usize = 64;

impl Samples {
    pub(crate) fn new() -> Self {
        Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }

    /// Adds an observation. Called by the worker that has the lane only.
    pub(crate) fn observe(&self, value: u64) {
        let number = self.ended.load(Ordering::Relaxed) + 1;
        self.begun.store(number, Ordering::Relaxed);
        // What follows is not seen by anyone who does not see this beginning.
        fence(Ordering::Release);
        self.min.fetch_min(value, Ordering::Relaxed);
        self.max.fetch_max(value, Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed);
        self.sum.store(sum.wrapping_add(value), Ordering::Relaxed);
        self.ended.store(number, Ordering::Release);
    }

    /// Adds what another process has observed. Called by whoever stands in for
    /// the worker that has the lane.
    pub(crate) fn observe_all(&self, observed: Observed) {
        if observed.count == 0 {
            return;
        }
        let number = self
            .ended
            .load(Ordering::Relaxed)
            .wrapping_add(observed.count);
        self.begun.store(number, Ordering::Relaxed);
        fence(Ordering::Release);
        self.min.fetch_min(observed.min, Ordering::Relaxed);
        self.max.fetch_max(observed.max, Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed);
        self.sum
            .store(sum.wrapping_add(observed.sum), Ordering::Relaxed);
        self.ended.store(number, Ordering::Release);
    }

    /// Takes what was observed since `collected`, and moves that on. Called by
    /// the reporter only.
    pub(crate) fn collect(&self, collected: &mut Collected) -> Observed {
        let Some((count, sum)) = self.consistent() else {
            return Observed::NOTHING;
        };
        let news = Observed {
            count: count.wrapping_sub(collected.count),
            sum: sum.wrapping_sub(collected.sum),
            ..Observed::NOTHING
        };
        if news.count == 0 {
            return Observed::NOTHING;
        }
        *collected = Collected { count, sum };
        let (min, max) = (
            self.min.swap(u64::MAX, Ordering::Relaxed),
            self.max.swap(0, Ordering::Relaxed),
        );
        if min > max {
            // The extremes of this one observation were collected early.
            let mean = news.sum / news.count;
            return Observed {
                min: mean,
                max: mean,
                ..news
            };
        }
        Observed { min, max, ..news }
    }

    fn consistent(&self) -> Option<(u64, u64)> {
        for _ in 0..TRIES {
            let ended = self.ended.load(Ordering::Acquire);
            let sum = self.sum.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) == ended {
                return Some((ended, sum));
            }
            std::hint::spin_loop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn each_observation_is_collected_once() {
        let samples = Samples::new();
        let mut collected = Collected::default();
        assert_eq!(samples.collect(&mut collected), Observed::NOTHING);
        samples.observe(5);
        samples.observe(11);
        let expected = Observed {
            count: 2,
            sum: 16,
            min: 5,
            max: 11,
        };
        assert_eq!(samples.collect(&mut collected), expected);
        assert_eq!(samples.collect(&mut collected), Observed::NOTHING);
        samples.observe(0);
        assert_eq!(samples.collect(&mut collected), Observed::one(0));
    }

    #[test]
    fn nothing_is_lost_or_mixed_while_a_worker_observes() {
        let samples = Arc::new(Samples::new());
        let done = Arc::new(AtomicBool::new(false));
        let worker = {
            let (samples, done) = (Arc::clone(&samples), Arc::clone(&done));
            thread::Builder::new()
                .spawn(move || {
                    for value in 1..=2_000_000_u64 {
                        samples.observe(value);
                    }
                    done.store(true, Ordering::Release);
                })
                .unwrap()
        };
        let mut collected = Collected::default();
        let (mut count, mut sum, mut max) = (0, 0, 0);
        loop {
            let last = done.load(Ordering::Acquire);
            let news = samples.collect(&mut collected);
            if let Some(mean) = news.sum.checked_div(news.count) {
                assert!(news.max + 1 >= mean, "{news:?}");
                // The values rise by one: count and sum must be of the same.
                let first = count + 1;
                let expected = (first + first + news.count - 1) * news.count / 2;
                assert_eq!(news.sum, expected, "{news:?}");
            }
            count += news.count;
            sum += news.sum;
            max = max.max(news.max);
            if last {
                break;
            }
        }
        worker.join().unwrap();
        assert_eq!((count, max), (2_000_000, 2_000_000));
        assert_eq!(sum, 2_000_000 * 2_000_001 / 2);
    }
}
