//! What `run --events json --records` prints of one topic, counted as it comes.
//!
//! One [`Deliveries`] may watch several processes, at once or one after the other: it knows for every offset how
//! often it was printed, and complains about a commit that covers an offset which nobody has printed yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::kafka::Kafka;
use super::keepup::Keepup;
use super::wait_until;

/// For topics without holes, written from offset 0.
#[derive(Debug, Clone)]
pub(crate) struct Deliveries {
    topic: String,
    state: Arc<Mutex<Vec<Partition>>>,
}

#[derive(Debug, Clone, Default)]
struct Partition {
    /// By offset.
    records: Vec<Delivery>,
    /// Every offset below it was printed.
    next: usize,
    /// Commits that covered records which were not printed: the committed offset, and `next` at that moment.
    early: Vec<(usize, usize)>,
    /// What the last commit said.
    committed: usize,
    /// Within one ownership: an offset, and one printed after it that is not the next.
    leaps: Vec<(usize, usize)>,
}

/// One offset.
#[derive(Debug, Clone, Copy, Default)]
struct Delivery {
    times: u32,
    /// When it was printed the last time, in milliseconds since 1970.
    at: i64,
}

impl Deliveries {
    pub(crate) fn new(topic: &str, partitions: usize) -> Self {
        Self {
            topic: topic.to_owned(),
            state: Arc::new(Mutex::new(vec![Partition::default(); partitions])),
        }
    }

    /// Starts `keepup run` on the topic, with its records counted here; its other events are kept.
    pub(crate) fn start(&self, kafka: &Kafka, group: &str, more: &[&str]) -> Keepup {
        self.start_at(kafka.bootstrap(), group, more)
    }

    /// As [`Deliveries::start`], through a listener of one's choice.
    pub(crate) fn start_at(&self, bootstrap: &str, group: &str, more: &[&str]) -> Keepup {
        let mut arguments = vec!["run", "-b", bootstrap, "-t", &self.topic];
        arguments.extend(["-g", group, "--events", "json", "--records"]);
        arguments.extend(more);
        let state = Arc::clone(&self.state);
        // What this process printed last since a partition is its own.
        let mut last: Vec<Option<usize>> = vec![None; self.state().len()];
        Keepup::start_sifted(&arguments, move |line| {
            let mut partitions = state.lock().unwrap_or_else(PoisonError::into_inner);
            if line.contains("\"name\":\"record_data\"") {
                let (partition, offset) = count(&mut partitions, line);
                let before = last[partition].replace(offset);
                if let Some(before) = before.filter(|before| offset != before + 1) {
                    partitions[partition].leaps.push((before, offset));
                }
                return true;
            }
            if line.contains("\"name\":\"partitions_") {
                for partition in concerned(line) {
                    last[partition] = None;
                }
            }
            if line.contains("\"name\":\"offsets_committed\"") {
                check(&mut partitions, line);
            }
            false
        })
    }

    fn state(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many different records were printed.
    pub(crate) fn distinct(&self) -> u64 {
        let partitions = self.state();
        let records = partitions.iter().flat_map(|partition| &partition.records);
        number(records.filter(|record| record.times > 0).count())
    }

    /// By partition, what the last event `offsets_committed` said.
    pub(crate) fn committed(&self) -> Vec<i64> {
        let partitions = self.state();
        partitions
            .iter()
            .map(|partition| offset(partition.committed))
            .collect()
    }

    /// How often a record was printed that had been printed before.
    pub(crate) fn repeats(&self) -> u64 {
        let partitions = self.state();
        let records = partitions.iter().flat_map(|partition| &partition.records);
        records
            .map(|record| u64::from(record.times.saturating_sub(1)))
            .sum()
    }

    /// By partition, the offset below which every record was printed.
    pub(crate) fn next(&self) -> Vec<i64> {
        let partitions = self.state();
        partitions
            .iter()
            .map(|partition| offset(partition.next))
            .collect()
    }

    /// By partition, the highest offset that was printed, plus 1.
    pub(crate) fn ends(&self) -> Vec<i64> {
        let partitions = self.state();
        partitions
            .iter()
            .map(|partition| offset(partition.records.len()))
            .collect()
    }

    /// Of what was printed from the moment `since` on (milliseconds since 1970): how long before the last record the
    /// first one was printed that `committed` does not cover.
    pub(crate) fn uncommitted_span(&self, committed: &[i64], since: i64) -> Duration {
        let partitions = self.state();
        let uncommitted = partitions
            .iter()
            .zip(committed)
            .flat_map(|(partition, &committed)| partition.records.iter().skip(index(committed)));
        let recent = uncommitted
            .map(|record| record.at)
            .filter(|&at| at >= since);
        let span = recent
            .clone()
            .max()
            .zip(recent.min())
            .map_or(0, |(last, first)| last - first);
        Duration::from_millis(span.try_into().unwrap_or(0))
    }

    /// Waits until that many different records were printed.
    pub(crate) fn wait_distinct(&self, records: u64, within: Duration) {
        wait_until(within, "records to be delivered", || {
            let distinct = self.distinct();
            if distinct >= records {
                Ok(())
            } else {
                Err(distinct)
            }
        });
    }

    /// Nothing was committed before it was printed.
    pub(crate) fn assert_printed_before_committed(&self) {
        for (number, partition) in self.state().iter().enumerate() {
            assert!(
                partition.early.is_empty(),
                "partition {number}: committed, and printed until then: {:?}",
                partition.early
            );
        }
    }

    /// Who had a partition printed its records one after the other, without a gap. For runs that do not retry.
    pub(crate) fn assert_in_order(&self) {
        for (number, partition) in self.state().iter().enumerate() {
            let leaps = &partition.leaps;
            assert!(leaps.is_empty(), "partition {number}: from, to: {leaps:?}");
        }
    }

    /// Every offset below `ends` was printed, and nothing else.
    pub(crate) fn assert_complete(&self, ends: &[i64]) {
        assert_eq!(self.next(), ends, "without a gap until");
        assert_eq!(self.ends(), ends, "printed until");
        self.assert_printed_before_committed();
    }

    /// Every offset below `ends` was printed once, and nothing else.
    pub(crate) fn assert_exactly_once(&self, ends: &[i64]) {
        self.assert_complete(ends);
        assert_eq!(self.repeats(), 0, "records printed again");
    }
}

/// Counts a record; its partition and offset.
fn count(partitions: &mut [Partition], line: &str) -> (usize, usize) {
    // By hand: millions of these lines come through here, and none of the fields before the offset has quotes in it.
    let number = index(field(line, "\"partition\":"));
    let partition = &mut partitions[number];
    let offset = index(field(line, "\"offset\":"));
    if partition.records.len() <= offset {
        partition.records.resize(offset + 1, Delivery::default());
    }
    partition.records[offset].times += 1;
    partition.records[offset].at = field(line, "\"timestamp\":");
    while partition
        .records
        .get(partition.next)
        .is_some_and(|record| record.times > 0)
    {
        partition.next += 1;
    }
    (number, offset)
}

/// The partitions that an event is about.
fn concerned(line: &str) -> Vec<usize> {
    let event: Value = serde_json::from_str(line).expect("an event is JSON");
    let places = event["partitions"].as_array().cloned().unwrap_or_default();
    let number = |place: &Value| place["partition"].as_i64().map(index);
    places.iter().filter_map(number).collect()
}

fn check(partitions: &mut [Partition], line: &str) {
    let event: Value = serde_json::from_str(line).expect("an event is JSON");
    if event["success"] != true {
        return;
    }
    for element in event["offsets"].as_array().expect("offsets") {
        let number = element["partition"].as_i64().expect("a partition");
        let partition = &mut partitions[index(number)];
        partition.committed = index(element["offset"].as_i64().expect("an offset"));
        if partition.committed > partition.next {
            partition.early.push((partition.committed, partition.next));
        }
    }
}

/// The number after `name`, which is a field's name with quotes and colon.
fn field(line: &str, name: &str) -> i64 {
    let (_, rest) = line.split_once(name).expect("a record has that field");
    let end = rest.find([',', '}']).expect("a field ends");
    rest[..end].parse().expect("a number")
}

fn index(number: i64) -> usize {
    usize::try_from(number).expect("it is positive")
}

fn offset(index: usize) -> i64 {
    i64::try_from(index).expect("an offset")
}

fn number(count: usize) -> u64 {
    u64::try_from(count).expect("it fits")
}
