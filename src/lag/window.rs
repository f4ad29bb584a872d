//! Average and extremes over the last minute, with the Java client's rules.
//!
//! A mean over all time tells nothing about now, and a mean over exactly the
//! last 60 s needs every observation. Kafka's clients keep two windows of 30 s
//! instead (`metrics.num.samples` × `metrics.sample.window.ms`), and so does
//! this, with the rules of `org.apache.kafka.common.metrics.stats.SampledStat`
//! as of Kafka 3.8 (KAFKA-16305): a window is closed by the first observation
//! that comes at least 30 s after it began; one more window than two is kept;
//! and one is forgotten 60 s after its *last* observation. So an extreme stays
//! visible for 60 to 90 s. Every observation weighs the same.
//!
//! The difference is who observes: the Java client does at each drained batch
//! only, so that an idle partition's average becomes NaN after a minute. Here
//! the reporter observes at each tick as well.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Coarse;

/// Kafka's `metrics.num.samples`.
const WINDOWS: u32 = 2;

/// Kafka's `metrics.sample.window.ms`.
const LENGTH: Duration = Duration::from_secs(30);

/// Windows that are kept: one may straddle the horizon.
const SLOTS: usize = WINDOWS as usize + 1;

/// Several observations at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Observed {
    pub(crate) count: u64,
    pub(crate) sum: u64,
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Observed {
    pub(crate) const NOTHING: Self = Self {
        count: 0,
        sum: 0,
        min: u64::MAX,
        max: 0,
    };

    /// One observation.
    pub(crate) const fn one(value: u64) -> Self {
        Self {
            count: 1,
            sum: value,
            min: value,
            max: value,
        }
    }

    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// What was observed within the horizon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) mean: f64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    began: Coarse,
    last: Coarse,
    observed: Observed,
}

/// The observations of the last minute.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    slots: [Slot; SLOTS],
    current: usize,
}

impl Window {
    /// A window that begins at `now`.
    pub(crate) fn new(now: Coarse) -> Self {
        Self {
            slots: [Slot {
                began: now,
                last: now,
                observed: Observed::NOTHING,
            }; SLOTS],
            current: 0,
        }
    }

    /// Takes observations that were made up to `now`.
    pub(crate) fn observe(&mut self, observed: Observed, now: Coarse) {
        if observed.count == 0 {
            return;
        }
        if now.since(self.slots[self.current].began) >= LENGTH {
            self.current = (self.current + 1) % SLOTS;
            self.slots[self.current] = Slot {
                began: now,
                last: now,
                observed: Observed::NOTHING,
            };
        }
        let slot = &mut self.slots[self.current];
        slot.observed.add(observed);
        slot.last = now;
    }

    /// What is within the horizon; `None` where nothing is.
    pub(crate) fn summary(&self, now: Coarse) -> Option<Summary> {
        let mut all = Observed::NOTHING;
        for slot in &self.slots {
            if now.since(slot.last) < LENGTH * WINDOWS {
                all.add(slot.observed);
            }
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a mean of more than 2^52 records is none the worse for it"
        )]
        let mean = all.sum as f64 / all.count as f64;
        (all.count > 0).then_some(Summary {
            min: all.min,
            max: all.max,
            mean,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Coarse {
        Coarse::from_millis(1_000_000 + seconds * 1_000)
    }

    #[test]
    fn every_observation_weighs_the_same() {
        let mut window = Window::new(at(0));
        window.observe(Observed::one(10), at(0));
        window.observe(Observed::one(10), at(1));
        window.observe(Observed::one(40), at(29));
        let summary = window.summary(at(29)).unwrap();
        assert_eq!((summary.min, summary.max), (10, 40));
        assert!((summary.mean - 20.0).abs() < 1e-9);
    }

    #[test]
    fn an_extreme_is_seen_for_sixty_seconds_after_the_last_observation_of_its_window() {
        let mut window = Window::new(at(0));
        window.observe(Observed::one(1_000), at(0));
        for second in 1..=89 {
            window.observe(Observed::one(1), at(second));
            let max = window.summary(at(second)).unwrap().max;
            // Its window took observations until second 29.
            assert_eq!(max, if second < 89 { 1_000 } else { 1 }, "at {second} s");
        }
    }

    #[test]
    fn without_observations_there_is_no_number_rather_than_an_old_one() {
        let mut window = Window::new(at(0));
        assert_eq!(window.summary(at(0)), None);
        window.observe(Observed::one(7), at(0));
        assert_eq!(window.summary(at(59)).map(|s| s.max), Some(7));
        assert_eq!(window.summary(at(60)), None);
    }

    #[test]
    fn a_tick_each_second_keeps_an_idle_partition_at_zero() {
        let mut window = Window::new(at(0));
        window.observe(Observed::one(500), at(0));
        for second in 1..300 {
            window.observe(Observed::one(0), at(second));
        }
        let summary = window.summary(at(300)).unwrap();
        assert_eq!((summary.min, summary.max), (0, 0));
        assert!(summary.mean.abs() < f64::EPSILON);
    }

    /// `SampledStat` of Kafka 3.8 and later, as its source tells the rules:
    /// written down a second time, over single observations.
    #[derive(Default)]
    struct Reference {
        samples: Vec<Sample>,
        current: usize,
    }

    #[derive(Clone, Default)]
    struct Sample {
        window_start: u64,
        last_event: u64,
        values: Vec<u64>,
    }

    impl Reference {
        fn record(&mut self, value: u64, now: u64) {
            if self.samples.is_empty() {
                self.samples.push(Sample::default());
                self.samples[0].window_start = now;
            }
            if now - self.samples[self.current].window_start >= 30_000 {
                self.current = (self.current + 1) % 3;
                let fresh = Sample {
                    window_start: now,
                    last_event: now,
                    values: Vec::new(),
                };
                if self.current >= self.samples.len() {
                    self.samples.push(fresh);
                } else {
                    self.samples[self.current] = fresh;
                }
            }
            let sample = &mut self.samples[self.current];
            sample.values.push(value);
            sample.last_event = now;
        }

        fn values(&self, now: u64) -> Vec<u64> {
            self.samples
                .iter()
                .filter(|sample| now - sample.last_event < 60_000)
                .flat_map(|sample| sample.values.clone())
                .collect()
        }
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_kafkas_rules(
            observations in proptest::collection::vec((0..50_000_u64, 0..1_000_u64), 1..60),
        ) {
            let mut now = 1_000_000;
            let mut window = Window::new(Coarse::from_millis(now));
            let mut reference = Reference::default();
            for (later, value) in observations {
                now += later;
                if reference.samples.is_empty() {
                    window = Window::new(Coarse::from_millis(now));
                }
                let expected = reference.values(now);
                let found = window.summary(Coarse::from_millis(now));
                prop_assert_eq!(found.map(|s| s.max), expected.iter().max().copied());
                prop_assert_eq!(found.map(|s| s.min), expected.iter().min().copied());
                window.observe(Observed::one(value), Coarse::from_millis(now));
                reference.record(value, now);
                let expected = reference.values(now);
                let summary = window.summary(Coarse::from_millis(now)).unwrap();
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let mean = expected.iter().sum::<u64>() as f64 / expected.len() as f64;
                prop_assert!((summary.mean - mean).abs() < 1e-6);
            }
        }
    }
}
