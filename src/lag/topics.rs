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
const OUTCOMES: [&str; 5] = ["done", "retried", "dead_lettered", "skipped", "discarded"];

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
    /// Records that were handed to handlers.
    pub(crate) fn handed(&self) -> u64 {
        self.records
    }

    /// Records that are completed, whatever became of them.
    pub(crate) fn completed(&self) -> u64 {
        let [done, _, dead_lettered, skipped, discarded] = self.outcomes;
        done + dead_lettered + skipped + discarded
    }

    /// Time in handlers, repeated calls included.
    pub(crate) fn in_handlers(&self) -> Duration {
        let nanos = self.times.iter().map(|times| times.sum_ns);
        Duration::from_nanos(nanos.fold(0, u64::saturating_add))
    }

    fn of(tracker: &Tracker) -> Self {
        let completed = tracker.completed_records();
        let skipped = tracker.skipped_records();
        let dead_lettered = tracker.dead_lettered_records();
        let discarded = tracker.discarded_records();
        Self {
            records: completed + tracker.in_flight(),
            bytes: tracker.completed_bytes(),
            outcomes: [
                completed.saturating_sub(skipped + dead_lettered + discarded),
                tracker.retried_records(),
                dead_lettered,
                skipped,
                discarded,
            ],
            times: [
                tracker.times.done.read(),
                tracker.times.retried.read(),
                tracker.times.dead_lettered.read(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::record::AssignmentEpoch;

    fn watched(topic: &str, number: i32, clock: &Clock) -> Watched {
        let tracker = Arc::new(Tracker::new(AssignmentEpoch(1)));
        tracker.begin(0);
        Watched::new(TopicPartition::new(topic, number), tracker, clock.coarse())
    }

    fn completes(watched: &Watched, offsets: std::ops::Range<i64>, bytes: u64) {
        for offset in offsets {
            watched.tracker.handed_over(offset, 1);
            watched.tracker.completed(offset);
        }
        watched.tracker.turn_ends(bytes);
    }

    fn shown(book: &TopicBook) -> Vec<TopicTotals> {
        let mut totals = Vec::new();
        book.show(&mut totals);
        totals
    }

    fn outcomes(totals: &TopicTotals) -> Vec<(&'static str, u64)> {
        totals
            .outcomes
            .iter()
            .map(|of| (of.outcome, of.records))
            .collect()
    }

    #[test]
    fn what_each_partition_counted_is_added_up_once_however_often_it_is_looked_at() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        let (mut first, mut second) = (watched("a", 0, &clock), watched("a", 1, &clock));
        completes(&first, 0..5, 50);
        completes(&second, 0..2, 20);
        for _ in 0..3 {
            book.count(&mut first, clock.coarse());
            book.count(&mut second, clock.coarse());
        }
        completes(&first, 5..6, 10);
        first.tracker.retries();
        completes(&second, 2..3, 10);
        second.tracker.skipped(1);
        book.count(&mut first, clock.coarse());
        book.count(&mut second, clock.coarse());
        let totals = shown(&book);
        assert_eq!(totals.len(), 1);
        assert_eq!(
            (&*totals[0].topic, totals[0].records, totals[0].bytes),
            ("a", 9, 90)
        );
        assert_eq!(outcomes(&totals[0]).first(), Some(&("done", 8)));
        assert!(outcomes(&totals[0]).contains(&("retried", 1)));
        assert!(outcomes(&totals[0]).contains(&("skipped", 1)));
    }

    #[test]
    fn a_record_in_hand_counts_once_though_it_is_tried_often() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        let mut watched = watched("a", 0, &clock);
        for _ in 0..4 {
            watched.tracker.handed_over(0, 1);
            watched.tracker.retries();
            book.count(&mut watched, clock.coarse());
        }
        let totals = shown(&book);
        assert_eq!(totals[0].records, 1);
        assert_eq!(outcomes(&totals[0]), [("retried", 4)]);
        completes(&watched, 0..1, 10);
        book.count(&mut watched, clock.coarse());
        assert_eq!(shown(&book)[0].records, 1);
    }

    #[test]
    fn what_is_completed_after_the_partition_was_given_up_is_discarded() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        let mut watched = watched("a", 0, &clock);
        completes(&watched, 0..3, 30);
        watched.tracker.handed_over(3, 1);
        watched.tracker.give_up();
        watched.tracker.completed(3);
        watched.tracker.turn_ends(10);
        book.count(&mut watched, clock.coarse());
        let totals = shown(&book);
        assert_eq!(outcomes(&totals[0]), [("done", 3), ("discarded", 1)]);
    }

    #[test]
    fn counts_go_on_when_a_partition_goes_and_comes_back() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        for _ in 0..3 {
            let mut life = watched("a", 0, &clock);
            completes(&life, 0..10, 100);
            book.count(&mut life, clock.coarse());
            book.retire([&life.partition].into_iter(), clock.coarse());
        }
        assert_eq!(shown(&book)[0].records, 30);
    }

    #[test]
    fn a_topic_is_forgotten_five_minutes_after_its_last_partition_was_owned_and_not_before() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        let (mut kept, mut gone) = (watched("kept", 0, &clock), watched("gone", 0, &clock));
        completes(&kept, 0..1, 1);
        completes(&gone, 0..2, 2);
        book.count(&mut kept, clock.coarse());
        book.count(&mut gone, clock.coarse());
        let (kept, gone) = (kept.partition, gone.partition);
        let mut after = |more: Duration, owned: &[&TopicPartition]| {
            clock.advance(more);
            book.retire(owned.iter().copied(), clock.coarse());
            let totals = shown(&book);
            totals
                .iter()
                .map(|of| of.topic.to_string())
                .collect::<Vec<_>>()
        };
        // An hour of being owned, with nothing to count.
        assert_eq!(
            after(Duration::from_hours(1), &[&gone, &kept]),
            ["gone", "kept"]
        );
        assert_eq!(after(Duration::from_secs(299), &[&kept]), ["gone", "kept"]);
        assert_eq!(after(Duration::from_secs(1), &[&kept]), ["kept"]);
        // Owned again in time, it is remembered for five minutes more.
        assert_eq!(after(Duration::from_secs(299), &[]), ["kept"]);
        assert_eq!(after(Duration::ZERO, &[&kept]), ["kept"]);
        assert_eq!(after(Duration::from_secs(299), &[]), ["kept"]);
        assert_eq!(after(Duration::from_secs(1), &[]), [""; 0]);
    }

    #[test]
    fn topics_that_come_and_go_for_ever_do_not_pile_up() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        let mut most = 0;
        for number in 0..10_000 {
            let mut watched = watched(&format!("topic-{number}"), 0, &clock);
            completes(&watched, 0..1, 1);
            book.count(&mut watched, clock.coarse());
            book.retire([&watched.partition].into_iter(), clock.coarse());
            most = most.max(book.topics.len());
            clock.advance(Duration::from_secs(10));
        }
        assert_eq!(most, 30, "five minutes of them");
    }

    #[test]
    fn a_list_that_is_used_again_shows_what_there_is_now() {
        let (clock, mut book) = (Clock::manual(), TopicBook::default());
        let mut totals = Vec::new();
        let (mut b, mut c) = (watched("b", 0, &clock), watched("c", 0, &clock));
        completes(&b, 0..2, 2);
        b.tracker.skipped(1);
        completes(&c, 0..3, 3);
        book.count(&mut b, clock.coarse());
        book.count(&mut c, clock.coarse());
        book.show(&mut totals);
        clock.advance(REMEMBER);
        let mut a = watched("a", 0, &clock);
        completes(&a, 0..1, 1);
        book.count(&mut a, clock.coarse());
        book.retire([&a.partition, &c.partition].into_iter(), clock.coarse());
        book.show(&mut totals);
        let all: Vec<_> = totals
            .iter()
            .map(|of| (&*of.topic, of.records, outcomes(of)))
            .collect();
        assert_eq!(
            all,
            [("a", 1, vec![("done", 1)]), ("c", 3, vec![("done", 3)])]
        );
    }
}
