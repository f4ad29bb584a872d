//! What happened to the records of a topic, over all of its partitions and all
//! of their owners' lives.
//!
//! Workers count on the tracker of the lane, where they are alone. The reporter
//! adds up what came since it looked last, so that a count survives its tracker.
//! A topic of which nothing is owned any more is forgotten after a while: a
//! pattern may bring topics for ever, and memory must not follow them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::partition::Watched;
use super::snapshot::{OutcomeTotals, TopicTotals};
use crate::clock::Coarse;
use crate::record::TopicPartition;
use crate::worker::timing::CallCounts;
use crate::worker::tracker::Tracker;

/// How long a topic is remembered that nothing is owned of: longer than any
/// scrape interval in use, so that its last counts are seen.
const REMEMBER: Duration = Duration::from_mins(5);

/// Outcomes in the order in which they are shown.
const OUTCOMES: [&str; 4] = ["done", "retried", "skipped", "discarded"];

/// What the trackers of a partition have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    records: u64,
    bytes: u64,
    outcomes: [u64; OUTCOMES.len()],
    /// By outcome; `discarded` has none of its own.
    times: [CallCounts; OUTCOMES.len() - 1],
}

impl Counts {
    fn of(tracker: &Tracker) -> Self {
        let completed = tracker.completed_records();
        let skipped = tracker.skipped_records();
        let discarded = tracker.discarded_records();
        Self {
            records: completed + tracker.in_flight(),
            bytes: tracker.completed_bytes(),
            outcomes: [
                completed.saturating_sub(skipped).saturating_sub(discarded),
                tracker.retried_records(),
                skipped,
                discarded,
            ],
            times: [
                tracker.times.done.read(),
                tracker.times.retried.read(),
                tracker.times.skipped.read(),
            ],
        }
    }

    /// What is more in `self` than in `before`. The numbers of a tracker are
    /// read one after the other, so one of them may seem to go back by a
    /// record: then there is nothing more of it yet.
    fn beyond(&self, before: &Self) -> Self {
        let mut more = Self {
            records: self.records.saturating_sub(before.records),
            bytes: self.bytes.saturating_sub(before.bytes),
            outcomes: self.outcomes,
            times: self.times,
        };
        for (more, before) in more.outcomes.iter_mut().zip(before.outcomes) {
            *more = more.saturating_sub(before);
        }
        for (more, before) in more.times.iter_mut().zip(&before.times) {
            more.sum_ns = more.sum_ns.saturating_sub(before.sum_ns);
            for (more, before) in more.counts.iter_mut().zip(before.counts) {
                *more = more.saturating_sub(before);
            }
        }
        more
    }

    fn add(&mut self, more: &Self) {
        self.records += more.records;
        self.bytes += more.bytes;
        for (sum, more) in self.outcomes.iter_mut().zip(more.outcomes) {
            *sum += more;
        }
        for (sum, more) in self.times.iter_mut().zip(&more.times) {
            sum.sum_ns = sum.sum_ns.saturating_add(more.sum_ns);
            for (sum, more) in sum.counts.iter_mut().zip(more.counts) {
                *sum += more;
            }
        }
    }
}

#[derive(Debug)]
struct Topic {
    counts: Counts,
    owned_at: Coarse,
}

/// The topics of which something is or was owned.
#[derive(Debug, Default)]
pub(crate) struct TopicBook {
    topics: BTreeMap<Arc<str>, Topic>,
}

impl TopicBook {
    /// Adds what a partition's tracker counted since it was looked at last.
    pub(crate) fn count(&mut self, watched: &mut Watched, now: Coarse) {
        let counts = Counts::of(&watched.tracker);
        let more = counts.beyond(&watched.counted);
        watched.counted.add(&more);
        if let Some(topic) = self.topics.get_mut(watched.partition.topic()) {
            topic.counts.add(&more);
            return;
        }
        self.topics.insert(
            watched.partition.shared_topic(),
            Topic {
                counts: more,
                owned_at: now,
            },
        );
    }

    /// Forgets topics of which nothing has been owned for five minutes.
    pub(crate) fn retire<'a>(
        &mut self,
        owned: impl Iterator<Item = &'a TopicPartition>,
        now: Coarse,
    ) {
        let mut last: Option<&str> = None;
        for partition in owned {
            // In order, so that each topic is looked up once.
            if last != Some(partition.topic()) {
                last = Some(partition.topic());
                if let Some(topic) = self.topics.get_mut(partition.topic()) {
                    topic.owned_at = now;
                }
            }
        }
        self.topics
            .retain(|_, topic| now.since(topic.owned_at) < REMEMBER);
    }

    /// Writes the totals into a list that is used again.
    pub(crate) fn show(&self, into: &mut Vec<TopicTotals>) {
        into.truncate(self.topics.len());
        for (index, (name, topic)) in self.topics.iter().enumerate() {
            if into.len() <= index {
                into.push(TopicTotals {
                    topic: Arc::clone(name),
                    records: 0,
                    bytes: 0,
                    outcomes: Vec::with_capacity(OUTCOMES.len()),
                });
            }
            let totals = &mut into[index];
            totals.topic.clone_from(name);
            totals.records = topic.counts.records;
            totals.bytes = topic.counts.bytes;
            totals.outcomes.clear();
            for (index, (outcome, records)) in
                OUTCOMES.into_iter().zip(topic.counts.outcomes).enumerate()
            {
                let times = topic.counts.times.get(index).copied().unwrap_or_default();
                if records > 0 {
                    totals.outcomes.push(OutcomeTotals {
                        outcome,
                        records,
                        seconds_counts: times.counts,
                        seconds_sum: Duration::from_nanos(times.sum_ns).as_secs_f64(),
                    });
                }
            }
        }
    }
}
