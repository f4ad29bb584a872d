//! Runs in this process: what their handlers saw, what they told, and doors at which their handlers wait.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keepup::{
    Builder, Event, EventKind, Handler, Outcome, Record, Records, Report, TopicPartition,
    WorkerInfo,
};

use super::kafka::Kafka;
use super::{PATIENT, wait_until};

/// A clean run waits this long at most for what it has no deadline for: scheduling, on a machine that is busy, and stands
/// still for seconds at times where it is shared. What would be wrong takes as long as deadlines of 8 s and more, or
/// for ever.
pub(crate) const SLACK: Duration = Duration::from_secs(5);

/// A run with a short session, on one topic.
pub(crate) fn builder(kafka: &Kafka, group: &str, topic: &str, events: &Events) -> Builder {
    keepup::builder(kafka.bootstrap(), group)
        .topic(topic)
        .contact_timeout(PATIENT)
        .property("session.timeout.ms", "6000")
        .property("heartbeat.interval.ms", "500")
        .on_event(events.observer())
}

/// Creates a topic with the numbers below `records` in each of its partitions: each number is its offset.
pub(crate) fn topic_of_numbers(kafka: &Kafka, topic: &str, partitions: i32, records: u64) {
    kafka.create_topic(topic, partitions, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers(topic, partitions, 0..records);
    producer.flush();
}

/// Works for that long, as a slow handler does.
pub(crate) fn work_for(duration: Duration) {
    let start = Instant::now();
    while let Some(left) = duration.checked_sub(start.elapsed()) {
        std::thread::park_timeout(left);
        if left.is_zero() {
            return;
        }
    }
}

/// Waits for the end of a run, which must come within `within`; the time that it took.
pub(crate) fn end_of(handle: keepup::Handle, within: Duration) -> (Report, Duration) {
    let start = Instant::now();
    match handle.wait_timeout(within) {
        Ok(report) => (report, start.elapsed()),
        Err(handle) => {
            let shown = format!("{handle:?}, {:?}", handle.partitions());
            // Dropping it would wait for it.
            std::mem::forget(handle);
            panic!("the run did not end within {within:?}: {shown}");
        }
    }
}

/// One record, one time that a handler had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) attempt: u32,
}

/// Records in the order in which handlers saw them; shared by all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Vec<Seen>>>);

/// A handler that does nothing else.
impl Handler for Tally {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        self.note(record);
        Outcome::Done
    }
}

impl Tally {
    /// Makes the handlers of a run that notes every record.
    pub(crate) fn handlers(&self) -> impl Fn(WorkerInfo) -> Self + Send + Sync + use<> {
        let tally = self.clone();
        move |_| tally.clone()
    }

    pub(crate) fn note(&self, record: &Record<'_>) {
        locked(&self.0).push(seen(record));
    }

    pub(crate) fn note_all(&self, records: &Records<'_>) {
        locked(&self.0).extend(records.iter().map(|record| seen(&record)));
    }

    /// How many, repetitions included.
    pub(crate) fn len(&self) -> usize {
        locked(&self.0).len()
    }

    pub(crate) fn all(&self) -> Vec<Seen> {
        locked(&self.0).clone()
    }

    /// The offsets of one partition, in the order in which they were seen.
    pub(crate) fn of(&self, partition: i32) -> Vec<i64> {
        let seen = locked(&self.0);
        seen.iter()
            .filter(|seen| seen.partition == partition)
            .map(|seen| seen.offset)
            .collect()
    }

    /// How often each record was seen.
    pub(crate) fn times(&self) -> BTreeMap<(i32, i64), usize> {
        let mut times = BTreeMap::new();
        for seen in locked(&self.0).iter() {
            *times.entry((seen.partition, seen.offset)).or_default() += 1;
        }
        times
    }

    /// Waits until that many were seen.
    pub(crate) fn await_len(&self, within: Duration, len: usize) {
        wait_until(within, &format!("{len} records"), || {
            let seen = self.len();
            if seen >= len { Ok(()) } else { Err(seen) }
        });
    }

    /// Waits until every record of a topic of numbers was seen at least once.
    pub(crate) fn await_each(&self, within: Duration, partitions: i32, records: i64) {
        self.await_each_but(within, partitions, records, -1);
    }

    /// As [`Tally::await_each`], without those at the offset `except`.
    pub(crate) fn await_each_but(
        &self,
        within: Duration,
        partitions: i32,
        records: i64,
        except: i64,
    ) {
        wait_until(within, "every record", || {
            let times = self.times();
            let missing: Vec<_> = (0..partitions)
                .flat_map(|partition| (0..records).map(move |offset| (partition, offset)))
                .filter(|&(_, offset)| offset != except)
                .filter(|record| !times.contains_key(record))
                .collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!(
                    "{} missing, the first {:?}",
                    missing.len(),
                    missing[0]
                ))
            }
        });
    }

    /// Asserts that each partition was seen from 0 up to what is committed of it, in order, once, and no further.
    pub(crate) fn assert_is_what_is_committed(&self, committed: &[Option<i64>]) {
        for (partition, committed) in (0..).zip(committed) {
            let expected: Vec<i64> = (0..committed.unwrap_or(0)).collect();
            assert_runs(&self.of(partition), &expected, partition);
        }
    }

    /// Asserts that each of the partitions was seen from 0 up to `records`, in order, once, and no further.
    pub(crate) fn assert_each_once(&self, partitions: i32, records: i64) {
        let expected: Vec<i64> = (0..records).collect();
        for partition in 0..partitions {
            assert_runs(&self.of(partition), &expected, partition);
        }
        assert_eq!(self.len(), self.times().len(), "a partition too many");
    }
}

/// As `assert_eq`, with a message that can be read where there are thousands.
fn assert_runs(seen: &[i64], expected: &[i64], partition: i32) {
    let differs = seen.iter().zip(expected).position(|(a, b)| a != b);
    let at = differs.unwrap_or(seen.len().min(expected.len()));
    assert!(
        seen == expected,
        "partition {partition}: {} offsets instead of {}; they differ at index {at}: {:?} instead of {:?}",
        seen.len(),
        expected.len(),
        &seen[at..seen.len().min(at + 5)],
        &expected[at..expected.len().min(at + 5)],
    );
}

fn seen(record: &Record<'_>) -> Seen {
    Seen {
        partition: record.partition(),
        offset: record.offset(),
        attempt: record.attempt(),
    }
}

/// The events of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    pub(crate) fn observer(&self) -> impl FnMut(&Event) + Send + 'static {
        let events = self.clone();
        move |event| locked(&events.0).push(event.clone())
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        locked(&self.0).clone()
    }

    /// What `pick` takes of them, in order.
    pub(crate) fn pick<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        locked(&self.0).iter().filter_map(pick).collect()
    }

    /// Waits for an event that `pick` takes.
    pub(crate) fn find<T>(
        &self,
        within: Duration,
        what: &str,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> T {
        wait_until(within, what, || {
            let found = locked(&self.0).iter().find_map(&pick);
            found.ok_or_else(|| self.names())
        })
    }

    /// Their names, for a failure's message.
    pub(crate) fn names(&self) -> Vec<String> {
        self.pick(|event| {
            Some(match &event.kind {
                EventKind::Warning { message } => format!("warning: {message}"),
                kind => kind.name().to_owned(),
            })
        })
    }

    /// All of them with their times, one a line, for a failure's message.
    pub(crate) fn timeline(&self) -> String {
        let mut lines = String::new();
        for event in self.all() {
            let millis = event.timestamp_ms % 1_000_000;
            let _ = write!(lines, "\n{millis:>6} {:?} {:?}", event.worker, event.kind);
        }
        lines
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.pick(|event| match &event.kind {
            EventKind::Warning { message } => Some(message.clone()),
            _ => None,
        })
    }

    /// Partitions that were assigned by the group (not moved), in order.
    pub(crate) fn assigned(&self) -> Vec<TopicPartition> {
        self.pick(|event| match &event.kind {
            EventKind::PartitionsAssigned {
                partitions,
                local: false,
            } => Some(partitions.clone()),
            _ => None,
        })
        .concat()
    }

    /// How many times something was told.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.pick(|event| (event.kind.name() == name).then_some(()))
            .len()
    }
}

/// Where handlers wait until the test lets them through.
#[derive(Debug, Clone, Default)]
pub(crate) struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    /// Waits until the door is open; a handler that nobody wants any more goes through after a while, so that it does
    /// not outlive the tests.
    pub(crate) fn pass(&self) {
        let (open, opened) = &*self.0;
        let _ = opened.wait_timeout_while(locked(open), 2 * PATIENT, |open| !*open);
    }

    pub(crate) fn open(&self) {
        *locked(&self.0.0) = true;
        self.0.1.notify_all();
    }
}

/// A handler that panics while it holds a lock must not hide why the test failed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
