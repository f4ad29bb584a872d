//! What every source must do, told once and run over all of them.
//!
//! Each function below is one promise of [`Source`]. It sees its source through
//! a [`World`], which makes topics, fills them and lets time pass; the macro at
//! the end runs all promises in each world. What only a cluster can do (leaders
//! that move, brokers that go away) is tried in the worlds that are one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::{MemoryFactory, MemoryLog, MemoryRecord};
use super::{Pulled, ReadError, ReadFrom, Source, SourceFactory};
use crate::clock::Clock;
use crate::config::Settings;
use crate::kafka::ConnectionSettings;
use crate::kafka::cluster::Cluster;
use crate::kafka::lookup::{Lookup, Sinks};
use crate::kafka::mock::{MockKafka, Outgoing, Sender};
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::source::MemoryBudget;
use crate::source::client::ClientFactory;
use crate::source::fetch::FetchFactory;

/// Where a source lives.
trait World {
    /// A new topic without records.
    fn topic(&mut self, partitions: i32) -> Arc<str>;
    /// Appends records; those of one call share a wire batch where there is
    /// such a thing.
    fn append(&mut self, partition: &TopicPartition, records: Vec<MemoryRecord>);
    fn factory(&self) -> &dyn SourceFactory;
    fn clock(&self) -> &Clock;

    /// Whether each batch tells where the partition ends and begins.
    ///
    /// librdkafka does not hand out what came with its answers: through it, a
    /// batch that reaches the end tells the end, and nothing else is told.
    fn tells_every_end(&self) -> bool {
        true
    }

    /// A source that finds those topics.
    fn source(&mut self, _topics: &[&Arc<str>]) -> Box<dyn Source> {
        self.factory().open(0).unwrap()
    }

    /// Appends records `from` up to `to`, each with its number as value.
    fn append_numbers(&mut self, partition: &TopicPartition, from: i64, to: i64) {
        let records = (from..to)
            .map(|number| MemoryRecord::of(number.to_string()))
            .collect();
        self.append(partition, records);
    }
}

/// The longest that a source may take for anything here.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);

/// A source and what a test knows of it.
struct Reader<'w> {
    source: Box<dyn Source>,
    clock: &'w Clock,
    tells_every_end: bool,
    /// Ends that were told.
    ends: BTreeSet<(AssignmentEpoch, i64)>,
}

impl<'w> Reader<'w> {
    fn new(source: Box<dyn Source>, world: &'w impl World) -> Self {
        Self {
            source,
            clock: world.clock(),
            tells_every_end: world.tells_every_end(),
            ends: BTreeSet::new(),
        }
    }

    /// Pulls until something comes. Time passes on a manual clock, too.
    fn pull(&mut self) -> Pulled {
        let begin = self.clock.now();
        loop {
            let pulled = self.source.next(self.clock.now() + STEP);
            if !matches!(pulled, Pulled::Nothing) {
                return pulled;
            }
            self.clock.advance(STEP);
            assert!(
                self.clock.now() < begin + PATIENCE,
                "nothing came within {PATIENCE:?}"
            );
        }
    }

    fn batch(&mut self) -> Batch {
        match self.pull() {
            Pulled::Batch(batch) => {
                check(&batch, self.tells_every_end);
                if batch.end_offset == batch.next_offset {
                    self.ends.insert((batch.epoch, batch.end_offset));
                }
                batch
            }
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    /// The next batch that has records.
    fn records(&mut self) -> Batch {
        loop {
            let batch = self.batch();
            if batch.remaining() > 0 {
                return batch;
            }
        }
    }

    /// What a batch's records say, from batches of one partition, until `count`
    /// of them were read.
    fn values(&mut self, count: usize) -> Vec<String> {
        let mut values = Vec::new();
        while values.len() < count {
            let batch = self.batch();
            values.extend(values_of(&batch));
            self.source.recycle(batch);
        }
        assert_eq!(values.len(), count);
        values
    }

    /// The same, all of one epoch.
    fn values_of(&mut self, epoch: AssignmentEpoch, count: usize) -> Vec<String> {
        let mut values = Vec::new();
        while values.len() < count {
            let batch = self.batch();
            assert_eq!(batch.epoch, epoch);
            values.extend(values_of(&batch));
            self.source.recycle(batch);
        }
        assert_eq!(values.len(), count);
        values
    }

    /// Nothing comes for a while; except, where ends are not told with the
    /// records, an end that was not told before.
    fn expect_nothing(&mut self, during: Duration) {
        let end = self.clock.now() + during;
        while self.clock.now() < end {
            let pulled = self.source.next((self.clock.now() + STEP).min(end));
            let is_nothing = match &pulled {
                Pulled::Nothing => true,
                Pulled::Batch(batch) => {
                    !self.tells_every_end
                        && batch.entries.is_empty()
                        && batch.end_offset == batch.next_offset
                        && self.ends.insert((batch.epoch, batch.end_offset))
                }
                Pulled::Failed { .. } => false,
            };
            assert!(is_nothing, "unexpected {pulled:?}");
            self.clock.advance(STEP);
        }
    }
}

fn values_of(batch: &Batch) -> Vec<String> {
    (batch.cursor..batch.entries.len())
        .map(|index| {
            let record = batch.record(index, 1).unwrap();
            String::from_utf8(record.value().unwrap().to_vec()).unwrap()
        })
        .collect()
}

fn numbers(from: i64, to: i64) -> Vec<String> {
    (from..to).map(|number| number.to_string()).collect()
}

/// What holds for every batch.
fn check(batch: &Batch, tells_every_end: bool) {
    let mut previous = -1;
    for entry in &batch.entries {
        assert!(entry.offset > previous, "offsets go up");
        assert!(entry.offset < batch.next_offset);
        previous = entry.offset;
    }
    assert!(
        batch.end_offset >= 0 || (!tells_every_end && batch.end_offset == -1),
        "the end is known"
    );
}

fn from(topic: &Arc<str>, partition: i32, epoch: u64, offset: i64) -> ReadFrom {
    ReadFrom {
        partition: TopicPartition::new(Arc::clone(topic), partition),
        epoch: AssignmentEpoch(epoch),
        offset,
        until: None,
        paused: false,
    }
}

fn reader<'w>(world: &'w mut impl World, topics: &[&Arc<str>]) -> Reader<'w> {
    let source = world.source(topics);
    Reader::new(source, world)
}

// The promises.

fn records_come_in_order_with_all_their_parts(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append(
        &partition,
        vec![
            MemoryRecord {
                key: Some(b"key".to_vec()),
                value: Some(b"value".to_vec()),
                headers: vec![
                    ("one".into(), Some(b"1".to_vec())),
                    ("none".into(), None),
                    ("one".into(), Some(b"2".to_vec())),
                ],
                timestamp: Some(1_700_000_000_123),
            },
            MemoryRecord::default(),
        ],
    );
    for first in (2..500).step_by(50) {
        world.append_numbers(&partition, first, (first + 50).min(500));
    }
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 7, 0));
    let mut expected = 0;
    while expected < 500 {
        let batch = reader.batch();
        assert_eq!(batch.epoch, AssignmentEpoch(7));
        assert_eq!(batch.partition, partition);
        for index in 0..batch.entries.len() {
            let record = batch.record(index, 1).unwrap();
            assert_eq!(record.offset(), expected);
            match expected {
                0 => {
                    assert_eq!(record.key(), Some(&b"key"[..]));
                    assert_eq!(record.value(), Some(&b"value"[..]));
                    assert_eq!(record.timestamp_ms(), Some(1_700_000_000_123));
                    assert_eq!(record.headers().count(), 3);
                    assert_eq!(record.header("one"), Some(&b"2"[..]));
                    assert_eq!(record.header("none"), None);
                }
                1 => assert_eq!((record.key(), record.value()), (None, None)),
                number => assert_eq!(record.value(), Some(number.to_string().as_bytes())),
            }
            expected += 1;
        }
        reader.source.recycle(batch);
    }
}

fn reading_starts_within_a_wire_batch(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 50);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 33));
    assert_eq!(reader.values(17), numbers(33, 50));
}

fn an_empty_partition_tells_its_end_once(world: &mut impl World) {
    let topic = world.topic(1);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    let batch = reader.batch();
    assert_eq!(batch.entries.len(), 0);
    assert_eq!((batch.next_offset, batch.end_offset), (0, 0));
    let log_start = if reader.tells_every_end { 0 } else { -1 };
    assert_eq!(batch.log_start, log_start);
    reader.expect_nothing(Duration::from_millis(700));
}

fn records_that_are_appended_later_come(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    let mut source = world.source(&[&topic]);
    source.start(from(&topic, 0, 1, 0));
    for round in 0..3 {
        world.append_numbers(&partition, round * 10, round * 10 + 10);
        let mut reader = Reader::new(source, world);
        assert_eq!(reader.values(10), numbers(round * 10, round * 10 + 10));
        source = reader.source;
    }
}

fn partitions_take_turns(world: &mut impl World) {
    let topic = world.topic(2);
    for index in 0..2 {
        let partition = TopicPartition::new(Arc::clone(&topic), index);
        world.append_numbers(&partition, 0, 20_000);
    }
    let mut reader = reader(world, &[&topic]);
    for index in 0..2 {
        let epoch = u64::try_from(index).unwrap() + 1;
        reader.source.start(from(&topic, index, epoch, 0));
    }
    let mut read = BTreeMap::from([(0, 0_i64), (1, 0)]);
    let mut since_other = (0, 0);
    while read.values().any(|&count| count < 20_000) {
        let batch = reader.batch();
        let index = batch.partition.partition();
        let count = read.get_mut(&index).unwrap();
        if let Some(entry) = batch.entries.first() {
            assert_eq!(entry.offset, *count);
        }
        *count = batch.next_offset;
        since_other = if since_other.0 == index {
            (index, since_other.1 + 1)
        } else {
            (index, 1)
        };
        reader.source.recycle(batch);
        // Whoever is at its end has no turn; before that nobody waits for long.
        let both_have_more = read.values().all(|&count| count < 15_000);
        assert!(
            !both_have_more || since_other.1 < 60,
            "partition {index} had {} turns in a row",
            since_other.1
        );
    }
}

fn nothing_comes_after_stop(world: &mut impl World) {
    let topic = world.topic(2);
    for index in 0..2 {
        let partition = TopicPartition::new(Arc::clone(&topic), index);
        world.append_numbers(&partition, 0, 10_000);
    }
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    reader.source.start(from(&topic, 1, 2, 0));
    let first = reader.batch();
    let (stopped, other) = if first.epoch == AssignmentEpoch(1) {
        (1, 2)
    } else {
        (2, 1)
    };
    reader.source.stop(AssignmentEpoch(stopped));
    // Not even what is given back.
    reader.source.put_back(first);
    reader.source.stop(AssignmentEpoch(99));
    let mut position = 0;
    while position < 10_000 {
        let batch = reader.batch();
        assert_eq!(batch.epoch, AssignmentEpoch(other));
        position = batch.next_offset;
    }
    reader.expect_nothing(Duration::from_millis(300));
}

fn a_partition_comes_back_under_a_new_epoch(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 300);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    let old = reader.batch();
    reader.source.stop(AssignmentEpoch(1));
    reader.source.start(from(&topic, 0, 2, 290));
    reader.source.put_back(old);
    assert_eq!(reader.values_of(AssignmentEpoch(2), 10), numbers(290, 300));
}

fn rewind_repeats_and_drops_what_was_buffered(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 200);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    let first = reader.batch();
    reader.source.rewind(AssignmentEpoch(1), 5, None);
    // Given before it was rewound: read again anyway.
    reader.source.put_back(first);
    assert_eq!(reader.values(195), numbers(5, 200));
    reader.source.rewind(AssignmentEpoch(1), 190, None);
    assert_eq!(reader.values(10), numbers(190, 200));
}

fn a_partition_held_back_delays_no_other(world: &mut impl World) {
    let topic = world.topic(2);
    for index in 0..2 {
        let partition = TopicPartition::new(Arc::clone(&topic), index);
        world.append_numbers(&partition, 0, 100);
    }
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    reader.source.start(from(&topic, 1, 2, 0));
    let not_before = reader.clock.now() + Duration::from_secs(2);
    reader
        .source
        .rewind(AssignmentEpoch(1), 0, Some(not_before));
    let mut other = Vec::new();
    while other.len() < 100 {
        let batch = reader.batch();
        assert_eq!(batch.epoch, AssignmentEpoch(2));
        other.extend(values_of(&batch));
    }
    assert!(reader.clock.now() < not_before, "the other came meanwhile");
    let batch = reader.records();
    assert_eq!(batch.epoch, AssignmentEpoch(1));
    assert!(reader.clock.now() >= not_before);
    let late = reader.clock.now() - not_before;
    assert!(late < Duration::from_secs(2), "{late:?} late");
}

fn a_paused_partition_gives_nothing_and_goes_on_where_it_was(world: &mut impl World) {
    let topic = world.topic(2);
    for index in 0..2 {
        let partition = TopicPartition::new(Arc::clone(&topic), index);
        world.append_numbers(&partition, 0, 10_000);
    }
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    reader.source.start(ReadFrom {
        paused: true,
        ..from(&topic, 1, 2, 0)
    });
    let mut batch = reader.batch();
    assert_eq!(batch.epoch, AssignmentEpoch(1));
    batch.cursor = batch.entries.len().min(3);
    let resume = i64::try_from(batch.cursor).unwrap();
    reader.source.put_back(batch);
    reader.source.set_paused(AssignmentEpoch(1), true);
    reader.expect_nothing(Duration::from_millis(300));
    reader.source.set_paused(AssignmentEpoch(2), false);
    let mut position = 0;
    while position < 10_000 {
        let batch = reader.batch();
        assert_eq!(batch.epoch, AssignmentEpoch(2));
        position = batch.next_offset;
    }
    reader.source.set_paused(AssignmentEpoch(1), false);
    let count = usize::try_from(10_000 - resume).unwrap();
    assert_eq!(reader.values(count), numbers(resume, 10_000));
}

fn what_is_put_back_comes_first_of_its_partition_and_after_the_others(world: &mut impl World) {
    let topic = world.topic(2);
    for index in 0..2 {
        let partition = TopicPartition::new(Arc::clone(&topic), index);
        world.append_numbers(&partition, 0, 5_000);
    }
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    reader.source.start(from(&topic, 1, 2, 0));
    // Both have something from here on.
    let one = reader.batch();
    let mut other = reader.batch();
    while other.epoch == one.epoch {
        reader.source.put_back(other);
        other = reader.batch();
    }
    let (epoch, next_offset) = (one.epoch, one.next_offset);
    let mut one = one;
    one.cursor = 1;
    reader.source.put_back(one);
    let mut others = 0;
    loop {
        let mut batch = reader.batch();
        if batch.epoch == epoch {
            assert_eq!((batch.cursor, batch.next_offset), (1, next_offset));
            // And again, further on.
            batch.cursor = 2;
            reader.source.put_back(batch);
            if others > 0 {
                break;
            }
            continue;
        }
        others += 1;
        reader.source.put_back(batch);
        assert!(others < 3);
    }
}

fn later_batches_wait_for_the_one_that_was_put_back(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 10_000);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    let mut first = reader.batch();
    while first.entries.is_empty() {
        first = reader.batch();
    }
    let mut second = reader.batch();
    first.cursor = 1;
    second.cursor = 0;
    // In whichever order they come back.
    reader.source.put_back(second);
    reader.source.put_back(first);
    assert_eq!(reader.values(9_999), numbers(1, 10_000));
}

fn nothing_at_or_past_until_is_given(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 50);
    world.append_numbers(&partition, 50, 100);
    let mut reader = reader(world, &[&topic]);
    for (epoch, until) in [(1, 30), (2, 50), (3, 100)] {
        reader.source.start(ReadFrom {
            until: Some(until),
            ..from(&topic, 0, epoch, 10)
        });
        let mut values = Vec::new();
        loop {
            let batch = reader.batch();
            values.extend(values_of(&batch));
            if batch.next_offset >= until {
                break;
            }
        }
        assert_eq!(values, numbers(10, until));
        reader.expect_nothing(Duration::from_millis(300));
        // Rewound, it gives the same again.
        reader
            .source
            .rewind(AssignmentEpoch(epoch), until - 1, None);
        assert_eq!(reader.values(1), numbers(until - 1, until));
        reader.expect_nothing(Duration::from_millis(100));
    }
}

fn an_end_that_is_reached_already_is_told(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 10);
    let mut reader = reader(world, &[&topic]);
    for (epoch, offset) in [(1, 10), (2, 4)] {
        reader.source.start(ReadFrom {
            until: Some(offset),
            ..from(&topic, 0, epoch, offset)
        });
        let batch = reader.batch();
        assert_eq!(batch.entries.len(), 0);
        assert!(batch.next_offset >= offset);
        let end_offset = if reader.tells_every_end { 10 } else { -1 };
        assert_eq!(batch.end_offset, end_offset);
        reader.expect_nothing(Duration::from_millis(100));
    }
}

fn an_offset_that_is_not_there_fails_until_it_is_rewound(world: &mut impl World) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    world.append_numbers(&partition, 0, 10);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 1_000));
    match reader.pull() {
        Pulled::Failed {
            epoch: AssignmentEpoch(1),
            offset: 1_000,
            error: ReadError::OutOfRange { offset: 1_000, .. },
        } => {}
        other => panic!("{other:?}"),
    }
    reader.expect_nothing(Duration::from_millis(300));
    reader.source.rewind(AssignmentEpoch(1), 8, None);
    assert_eq!(reader.values(2), numbers(8, 10));
}

fn a_waker_ends_the_wait_now_or_the_next(world: &mut impl World) {
    let topic = world.topic(1);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    let batch = reader.batch();
    reader.source.recycle(batch);
    let waker = reader.source.waker();
    waker.wake();
    let begin = Clock::System.now();
    let far = |clock: &Clock| -> Instant { clock.now() + PATIENCE };
    assert!(matches!(
        reader.source.next(far(reader.clock)),
        Pulled::Nothing
    ));
    std::thread::scope(|scope| {
        let (waiting, is_waiting) = crossbeam_channel::bounded(0);
        scope.spawn(move || {
            is_waiting.recv().unwrap();
            waker.wake();
        });
        waiting.send(()).unwrap();
        assert!(matches!(
            reader.source.next(far(reader.clock)),
            Pulled::Nothing
        ));
    });
    assert!(Clock::System.now() - begin < PATIENCE / 2);
}

fn a_deadline_that_has_passed_does_not_wait(world: &mut impl World) {
    let topic = world.topic(1);
    let mut reader = reader(world, &[&topic]);
    reader.source.start(from(&topic, 0, 1, 0));
    let batch = reader.batch();
    reader.source.recycle(batch);
    let now = reader.clock.now();
    let begin = Clock::System.now();
    for _ in 0..20 {
        assert!(matches!(reader.source.next(now), Pulled::Nothing));
    }
    assert!(Clock::System.now() - begin < Duration::from_secs(2));
}

macro_rules! promises {
    (@one [$(#[$attribute:meta])*] $make:expr, $promise:ident) => {
        #[test]
        $(#[$attribute])*
        fn $promise() {
            super::$promise(&mut $make);
        }
    };
    (@all $attributes:tt $make:expr => $($promise:ident)*) => {
        $(promises!(@one $attributes $make, $promise);)*
    };
    ($attributes:tt $world:ident: $make:expr) => {
        mod $world {
            use super::*;

            promises!(@all $attributes $make =>
                records_come_in_order_with_all_their_parts
                reading_starts_within_a_wire_batch
                an_empty_partition_tells_its_end_once
                records_that_are_appended_later_come
                partitions_take_turns
                nothing_comes_after_stop
                a_partition_comes_back_under_a_new_epoch
                rewind_repeats_and_drops_what_was_buffered
                a_partition_held_back_delays_no_other
                a_paused_partition_gives_nothing_and_goes_on_where_it_was
                what_is_put_back_comes_first_of_its_partition_and_after_the_others
                later_batches_wait_for_the_one_that_was_put_back
                nothing_at_or_past_until_is_given
                an_end_that_is_reached_already_is_told
                an_offset_that_is_not_there_fails_until_it_is_rewound
                a_waker_ends_the_wait_now_or_the_next
                a_deadline_that_has_passed_does_not_wait
            );
        }
    };
}

promises!([] memory: MemoryWorld::new(Clock::manual()));
promises!([] memory_in_real_time: MemoryWorld::new(Clock::System));
promises!([] fetch_from_the_mock: KafkaWorld::mock(1));
promises!([#[ignore = "needs a broker: KEEPUP_TEST_BOOTSTRAP=host:port"]]
    fetch_from_a_broker: KafkaWorld::broker()
);
promises!([] client_from_the_mock: KafkaWorld::mock(1).through_the_client());
promises!([#[ignore = "needs a broker: KEEPUP_TEST_BOOTSTRAP=host:port"]]
    client_from_a_broker: KafkaWorld::broker().through_the_client()
);

// The worlds.

struct MemoryWorld {
    log: MemoryLog,
    factory: MemoryFactory,
    clock: Clock,
    topics: usize,
}

impl MemoryWorld {
    fn new(clock: Clock) -> Self {
        let log = MemoryLog::new();
        Self {
            factory: MemoryFactory::new(log.clone(), clock.clone()),
            log,
            clock,
            topics: 0,
        }
    }
}

impl World for MemoryWorld {
    fn topic(&mut self, _partitions: i32) -> Arc<str> {
        self.topics += 1;
        format!("topic-{}", self.topics).into()
    }

    fn append(&mut self, partition: &TopicPartition, records: Vec<MemoryRecord>) {
        for record in records {
            self.log.append(partition, record);
        }
    }

    fn factory(&self) -> &dyn SourceFactory {
        &self.factory
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

/// A cluster that speaks Kafka's protocol.
struct KafkaWorld {
    mock: Option<MockKafka>,
    sender: Sender,
    lookup: Lookup,
    cluster: Cluster,
    bootstrap: String,
    factory: Box<dyn SourceFactory>,
    tells_every_end: bool,
    clock: Clock,
    topics: usize,
}

impl KafkaWorld {
    /// The same, read through librdkafka.
    fn through_the_client(self) -> Self {
        let settings = Settings::new(&self.bootstrap, "contract");
        Self {
            factory: Box::new(ClientFactory::new(
                Arc::new(settings),
                Arc::new(MemoryBudget::new(MemoryBudget::DEFAULT)),
                Clock::System,
            )),
            tells_every_end: false,
            ..self
        }
    }

    fn mock(brokers: i32) -> Self {
        let mock = MockKafka::start(brokers).unwrap();
        let bootstrap = mock.bootstrap();
        Self::new(&bootstrap, Some(mock))
    }

    /// Needs `auto.create.topics.enable=true` and `num.partitions=2`.
    fn broker() -> Self {
        let bootstrap = std::env::var("KEEPUP_TEST_BOOTSTRAP")
            .expect("KEEPUP_TEST_BOOTSTRAP=host:port of a broker");
        Self::new(&bootstrap, None)
    }

    fn new(bootstrap: &str, mock: Option<MockKafka>) -> Self {
        let clock = Clock::System;
        let mut settings =
            ConnectionSettings::new(bootstrap.split(',').map(str::to_owned).collect());
        settings.metadata_interval = Duration::from_secs(1);
        let (cluster, rings) = Cluster::new();
        let lookup = Lookup::start(
            settings.clone(),
            clock.clone(),
            cluster.clone(),
            rings,
            Sinks {
                starts: Box::new(|_| {}),
                topics: Box::new(|_| {}),
            },
        )
        .unwrap();
        let factory = FetchFactory::new(
            cluster.clone(),
            Arc::new(settings),
            Arc::new(MemoryBudget::new(MemoryBudget::DEFAULT)),
            clock.clone(),
        );
        Self {
            mock,
            sender: Sender::new(bootstrap, &[]).unwrap(),
            lookup,
            cluster,
            bootstrap: bootstrap.to_owned(),
            factory: Box::new(factory),
            tells_every_end: true,
            clock,
            topics: 0,
        }
    }
}

impl World for KafkaWorld {
    fn topic(&mut self, partitions: i32) -> Arc<str> {
        self.topics += 1;
        let name = if let Some(mock) = &self.mock {
            let name = format!("topic-{}", self.topics);
            mock.create_topic(&name, partitions).unwrap();
            name
        } else {
            let name = format!("contract-{:016x}", fastrand::u64(..));
            self.sender.create_by_asking(&name).unwrap();
            name
        };
        name.into()
    }

    fn append(&mut self, partition: &TopicPartition, records: Vec<MemoryRecord>) {
        let records = records.into_iter().map(|record| Outgoing {
            key: record.key,
            value: record.value,
            headers: record.headers,
            timestamp: record.timestamp,
        });
        self.sender
            .send(partition.topic(), partition.partition(), records)
            .unwrap();
    }

    fn factory(&self) -> &dyn SourceFactory {
        &*self.factory
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn tells_every_end(&self) -> bool {
        self.tells_every_end
    }

    fn source(&mut self, topics: &[&Arc<str>]) -> Box<dyn Source> {
        self.lookup.want_topics(topics.iter().copied().cloned());
        self.factory.open(0).unwrap()
    }
}

// What only a cluster does.

#[test]
fn the_fetch_source_follows_a_leader_that_moves() {
    follows_a_leader_that_moves(&mut KafkaWorld::mock(3));
}

#[test]
fn the_client_source_follows_a_leader_that_moves() {
    follows_a_leader_that_moves(&mut KafkaWorld::mock(3).through_the_client());
}

fn follows_a_leader_that_moves(world: &mut KafkaWorld) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    let mut source = world.source(&[&topic]);
    source.start(from(&topic, 0, 1, 0));
    for (round, leader) in [(0, 1), (1, 2), (2, 3), (3, 1)] {
        let mock = world.mock.as_ref().unwrap();
        mock.set_leader(&topic, 0, leader).unwrap();
        world.append_numbers(&partition, round * 10, round * 10 + 10);
        let mut reader = Reader::new(source, world);
        assert_eq!(reader.values(10), numbers(round * 10, round * 10 + 10));
        source = reader.source;
    }
}

#[test]
fn the_fetch_source_waits_for_a_broker_that_is_down_and_reads_the_others() {
    waits_for_a_broker_that_is_down_and_reads_the_others(&mut KafkaWorld::mock(2));
}

#[test]
fn the_client_source_waits_for_a_broker_that_is_down_and_reads_the_others() {
    waits_for_a_broker_that_is_down_and_reads_the_others(
        &mut KafkaWorld::mock(2).through_the_client(),
    );
}

fn waits_for_a_broker_that_is_down_and_reads_the_others(world: &mut KafkaWorld) {
    let topic = world.topic(2);
    let partitions = [0, 1].map(|index| TopicPartition::new(Arc::clone(&topic), index));
    for (partition, leader) in partitions.iter().zip([1, 2]) {
        let mock = world.mock.as_ref().unwrap();
        mock.set_leader(&topic, partition.partition(), leader)
            .unwrap();
        world.append_numbers(partition, 0, 10);
    }
    let mut source = world.source(&[&topic]);
    source.start(from(&topic, 0, 1, 0));
    source.start(from(&topic, 1, 2, 0));
    let mut reader = Reader::new(source, world);
    reader.values(20);
    let mut source = reader.source;

    // Broker 2 is gone: partition 0 goes on.
    world.mock.as_ref().unwrap().set_up(2, false).unwrap();
    world.append_numbers(&partitions[0], 10, 20);
    let mut reader = Reader::new(source, world);
    assert_eq!(reader.values(10), numbers(10, 20));
    source = reader.source;

    // It is back: so is its partition.
    world.mock.as_ref().unwrap().set_up(2, true).unwrap();
    world.append_numbers(&partitions[1], 10, 20);
    let mut reader = Reader::new(source, world);
    assert_eq!(reader.values(10), numbers(10, 20));
}

#[test]
#[ignore = "needs a broker: KEEPUP_TEST_BOOTSTRAP=host:port"]
fn aborted_transactions_are_not_given_and_their_markers_are_crossed() {
    crosses_aborted_transactions(&mut KafkaWorld::broker());
}

#[test]
#[ignore = "needs a broker: KEEPUP_TEST_BOOTSTRAP=host:port"]
fn the_client_source_crosses_aborted_transactions_too() {
    crosses_aborted_transactions(&mut KafkaWorld::broker().through_the_client());
}

fn crosses_aborted_transactions(world: &mut KafkaWorld) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    let bootstrap = std::env::var("KEEPUP_TEST_BOOTSTRAP").unwrap();
    for codec in ["none", "gzip", "snappy", "lz4"] {
        let sender = Sender::new(
            &bootstrap,
            &[("transactional.id", &topic), ("compression.type", codec)],
        )
        .unwrap();
        sender.prepare_transactions().unwrap();
        for (text, is_committed) in [("no", false), ("yes", true), ("no", false)] {
            let records = (0..20).map(|_| Outgoing {
                value: Some(text.repeat(50).into_bytes()),
                ..Outgoing::default()
            });
            sender.transact(&topic, 0, records, is_committed).unwrap();
        }
    }
    world.append(&partition, vec![MemoryRecord::of("last")]);
    let mut source = world.source(&[&topic]);
    // Four times three transactions of 20 records and a marker, and the last.
    let end = 4 * 3 * 21 + 1;
    for (epoch, offset) in [(1, 0), (2, 25)] {
        source.start(from(&topic, 0, epoch, offset));
        let mut reader = Reader::new(source, world);
        let mut values = Vec::new();
        loop {
            let batch = reader.batch();
            values.extend(values_of(&batch));
            if batch.next_offset == batch.end_offset {
                assert_eq!(batch.end_offset, end);
                break;
            }
        }
        assert_eq!(values.pop().unwrap(), "last");
        assert_eq!(values.len(), if offset == 0 { 80 } else { 76 });
        assert!(values.iter().all(|value| *value == "yes".repeat(50)));
        source = reader.source;
        source.stop(AssignmentEpoch(epoch));
    }
}

#[test]
fn memory_goes_home_while_the_source_reads_on() {
    let mut world = KafkaWorld::mock(1);
    world.factory = Box::new(FetchFactory::new(
        world.cluster.clone(),
        Arc::new(ConnectionSettings::new(vec![world.bootstrap.clone()])),
        Arc::new(MemoryBudget::new(256 * 1024)),
        Clock::System,
    ));
    brings_memory_home(&mut world);
}

#[test]
fn memory_goes_home_while_the_client_source_reads_on() {
    let mut world = KafkaWorld::mock(1).through_the_client();
    world.factory = Box::new(ClientFactory::new(
        Arc::new(Settings::new(&world.bootstrap, "contract")),
        Arc::new(MemoryBudget::new(256 * 1024)),
        Clock::System,
    ));
    brings_memory_home(&mut world);
}

fn brings_memory_home(world: &mut KafkaWorld) {
    let topic = world.topic(1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    for _ in 0..4 {
        let records = (0..500)
            .map(|_| MemoryRecord::of(vec![b'x'; 1000]))
            .collect();
        world.append(&partition, records);
    }
    let mut source = world.source(&[&topic]);
    source.start(from(&topic, 0, 1, 0));
    let mut reader = Reader::new(source, world);
    // Keeping what is given starves the source, and that is told.
    let mut kept = Vec::new();
    let begin = Clock::System.now();
    while !reader.source.is_starved() {
        if let Pulled::Batch(batch) = reader.source.next(Clock::System.now() + STEP) {
            kept.push(batch);
        }
        assert!(Clock::System.now() < begin + PATIENCE);
    }
    let held: i64 = kept.last().unwrap().next_offset;
    assert!(held < 2000, "{held} records of 1 KB are in 256 KB");
    let waker_used = reader.source.next(Clock::System.now() + STEP);
    assert!(matches!(waker_used, Pulled::Nothing));
    for batch in kept {
        reader.source.recycle(batch);
    }
    let mut position = held;
    while position < 2000 {
        let batch = reader.batch();
        position = batch.next_offset;
        reader.source.recycle(batch);
    }
    assert!(!reader.source.is_starved());
}
