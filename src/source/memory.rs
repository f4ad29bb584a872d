//! A source that reads from a log in memory: for tests that own the time.
//!
//! A [`MemoryLog`] is shared by whoever writes the script (appends records,
//! leaves holes, moves the start of the log, lets a read fail) and by the
//! sources that read it. The source keeps the contract of every other source,
//! and buffers nothing: what is given is what the log has at that moment.
//!
//! On a manual clock [`Source::next`] never waits: time stands still while it
//! would, so it says [`Pulled::Nothing`] at once.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::{MAX_PULL_WAIT, Pulled, ReadError, ReadFrom, Source, SourceFactory, Waker};
use crate::clock::Clock;
use crate::record::{AssignmentEpoch, Batch, Entry, TopicPartition};

/// Records of a batch at most, unless [`MemoryLog::set_batch_len`] says else.
const BATCH_LEN: usize = 100;

/// A record of a memory log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryRecord {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
}

impl MemoryRecord {
    /// A record with a value and nothing else.
    pub(crate) fn of(value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }
}

/// Partitions in memory. Cheap to clone; the clones are the same log.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    partitions: BTreeMap<TopicPartition, Partition>,
    batch_len: Option<usize>,
}

#[derive(Debug, Default)]
struct Partition {
    records: BTreeMap<i64, MemoryRecord>,
    start: i64,
    end: i64,
    /// What the next reads fail with.
    failures: VecDeque<ReadError>,
    is_reachable: Option<bool>,
}

impl MemoryLog {
    /// An empty log.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.state.lock());
        self.0.changed.notify_all();
        result
    }

    fn change_partition<T>(
        &self,
        partition: &TopicPartition,
        change: impl FnOnce(&mut Partition) -> T,
    ) -> T {
        self.change(|state| change(state.partitions.entry(partition.clone()).or_default()))
    }

    /// Appends a record and returns its offset.
    pub(crate) fn append(&self, partition: &TopicPartition, record: MemoryRecord) -> i64 {
        self.change_partition(partition, |partition| {
            let offset = partition.end;
            partition.records.insert(offset, record);
            partition.end += 1;
            offset
        })
    }

    /// Leaves the next `offsets` offsets without records, as compaction and
    /// transaction markers do.
    pub(crate) fn leave_hole(&self, partition: &TopicPartition, offsets: i64) {
        self.change_partition(partition, |partition| partition.end += offsets);
    }

    /// The offset of the first.
    pub(crate) fn start(&self, partition: &TopicPartition) -> i64 {
        self.change_partition(partition, |partition| partition.start)
    }

    /// The offset after the last.
    pub(crate) fn end(&self, partition: &TopicPartition) -> i64 {
        self.change_partition(partition, |partition| partition.end)
    }

    /// Removes what is below `start`, as retention does.
    pub(crate) fn remove_before(&self, partition: &TopicPartition, start: i64) {
        self.move_on(partition, start, start);
    }

    /// Removes what is below `start`, and leaves no records from the end to `end`:
    /// at once, since a reader may be there in between.
    pub(crate) fn move_on(&self, partition: &TopicPartition, start: i64, end: i64) {
        self.change_partition(partition, |partition| {
            partition.start = start;
            partition.end = partition.end.max(end);
            partition.records = partition.records.split_off(&start);
        });
    }

    /// Removes one record, as compaction does.
    pub(crate) fn remove(&self, partition: &TopicPartition, offset: i64) {
        self.change_partition(partition, |partition| partition.records.remove(&offset));
    }

    /// Removes what is at `end` and above, as an unclean election does.
    pub(crate) fn truncate(&self, partition: &TopicPartition, end: i64) {
        self.change_partition(partition, |partition| {
            partition.records.split_off(&end);
            partition.end = end;
            partition.start = partition.start.min(end);
        });
    }

    /// Lets the next read of the partition fail.
    pub(crate) fn fail_next(&self, partition: &TopicPartition, error: ReadError) {
        self.change_partition(partition, |partition| partition.failures.push_back(error));
    }

    /// Takes the partition's leader away, or brings it back: meanwhile nothing
    /// of it comes and nothing fails.
    pub(crate) fn set_reachable(&self, partition: &TopicPartition, reachable: bool) {
        self.change_partition(partition, |partition| {
            partition.is_reachable = Some(reachable);
        });
    }

    /// How many records a batch has at most from now on.
    pub(crate) fn set_batch_len(&self, records: usize) {
        self.change(|state| state.batch_len = Some(records.max(1)));
    }
}

/// Makes memory sources that read one log.
#[derive(Debug)]
pub(crate) struct MemoryFactory {
    log: MemoryLog,
    clock: Clock,
}

impl MemoryFactory {
    pub(crate) fn new(log: MemoryLog, clock: Clock) -> Self {
        Self { log, clock }
    }
}

impl SourceFactory for MemoryFactory {
    fn open(&self, _worker: usize) -> io::Result<Box<dyn Source>> {
        Ok(Box::new(MemorySource {
            log: self.log.clone(),
            clock: self.clock.clone(),
            slots: BTreeMap::new(),
            turn: VecDeque::new(),
            woken: Arc::default(),
        }))
    }
}

/// A source over a [`MemoryLog`].
#[derive(Debug)]
pub(crate) struct MemorySource {
    log: MemoryLog,
    clock: Clock,
    slots: BTreeMap<AssignmentEpoch, Slot>,
    /// All partitions; who gave goes to the end.
    turn: VecDeque<AssignmentEpoch>,
    woken: Arc<std::sync::atomic::AtomicBool>,
}

#[derive(Debug)]
struct Slot {
    from: ReadFrom,
    position: i64,
    returned: VecDeque<Batch>,
    not_before: Option<Instant>,
    told: Option<i64>,
    has_failed: bool,
}

impl Slot {
    fn rewind(&mut self, offset: i64) {
        self.position = offset;
        self.returned.clear();
    }

    fn give(&mut self, state: &mut State, clock: &Clock) -> Option<Pulled> {
        if self.from.paused {
            return None;
        }
        if let Some(batch) = self.returned.pop_front() {
            return Some(Pulled::Batch(batch));
        }
        let is_held_back = self.not_before.is_some_and(|moment| moment > clock.now());
        let is_at_until =
            self.told.is_some() && self.from.until.is_some_and(|until| self.position >= until);
        if self.has_failed || is_held_back || is_at_until {
            return None;
        }
        let batch_len = state.batch_len.unwrap_or(BATCH_LEN);
        let partition = state
            .partitions
            .entry(self.from.partition.clone())
            .or_default();
        if partition.is_reachable == Some(false) {
            return None;
        }
        let is_out_of_range = self.position < partition.start || self.position > partition.end;
        let failure = partition.failures.pop_front().or_else(|| {
            is_out_of_range.then_some(ReadError::OutOfRange {
                offset: self.position,
                log_start: partition.start,
                end_offset: partition.end,
            })
        });
        if let Some(error) = failure {
            self.has_failed = true;
            return Some(Pulled::Failed {
                epoch: self.from.epoch,
                offset: self.position,
                error,
            });
        }
        if self.position == partition.end && self.told == Some(partition.end) {
            return None;
        }
        Some(Pulled::Batch(self.read(partition, batch_len, clock)))
    }

    fn read(&mut self, partition: &Partition, batch_len: usize, clock: &Clock) -> Batch {
        let until = self.from.until.unwrap_or(i64::MAX);
        let mut bytes = Vec::new();
        let mut entries = Vec::new();
        let mut next_offset = partition.end;
        for (&offset, record) in partition.records.range(self.position..) {
            if offset >= until || entries.len() == batch_len {
                next_offset = offset.min(until.max(self.position));
                break;
            }
            entries.push(put(record, offset, &mut bytes));
        }
        self.position = next_offset;
        self.told = Some(partition.end);
        Batch {
            partition: self.from.partition.clone(),
            epoch: self.from.epoch,
            bytes: Bytes::from(bytes),
            entries,
            cursor: 0,
            next_offset,
            end_offset: partition.end,
            log_start: partition.start,
            fetched_at: clock.coarse(),
        }
    }
}

/// Appends a record's parts to `bytes` and says where they lie.
fn put(record: &MemoryRecord, offset: i64, bytes: &mut Vec<u8>) -> Entry {
    let (key_start, key_len) = put_part(record.key.as_deref(), bytes);
    let (value_start, value_len) = put_part(record.value.as_deref(), bytes);
    let headers_start = position(bytes);
    for (name, value) in &record.headers {
        put_varint(Some(name.len()), bytes);
        bytes.extend_from_slice(name.as_bytes());
        put_varint(value.as_ref().map(Vec::len), bytes);
        bytes.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    Entry {
        offset,
        timestamp: record.timestamp.unwrap_or(-1),
        key_start,
        key_len,
        value_start,
        value_len,
        headers_start,
        headers_end: position(bytes),
        header_count: u32::try_from(record.headers.len()).unwrap_or(u32::MAX),
    }
}

fn put_part(part: Option<&[u8]>, bytes: &mut Vec<u8>) -> (u32, i32) {
    let start = position(bytes);
    let Some(part) = part else {
        return (start, -1);
    };
    bytes.extend_from_slice(part);
    (start, i32::try_from(part.len()).unwrap_or(i32::MAX))
}

fn position(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// A length as records carry it: zigzag, -1 for none.
fn put_varint(len: Option<usize>, bytes: &mut Vec<u8>) {
    let mut rest = len.map_or(1, |len| (len as u64) << 1);
    while rest >= 0x80 {
        bytes.push(0x80 | u8::try_from(rest & 0x7f).unwrap_or_default());
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).unwrap_or_default());
}

impl Source for MemorySource {
    fn start(&mut self, from: ReadFrom) {
        let epoch = from.epoch;
        self.turn.retain(|&other| other != epoch);
        self.turn.push_back(epoch);
        self.slots.insert(
            epoch,
            Slot {
                position: from.offset,
                from,
                returned: VecDeque::new(),
                not_before: None,
                told: None,
                has_failed: false,
            },
        );
    }

    fn stop(&mut self, epoch: AssignmentEpoch) {
        self.slots.remove(&epoch);
        self.turn.retain(|&other| other != epoch);
    }

    fn rewind(&mut self, epoch: AssignmentEpoch, offset: i64, not_before: Option<Instant>) {
        if let Some(slot) = self.slots.get_mut(&epoch) {
            slot.rewind(offset);
            slot.not_before = not_before;
            slot.told = None;
            slot.has_failed = false;
        }
    }

    fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        if let Some(slot) = self.slots.get_mut(&epoch) {
            slot.from.paused = paused;
        }
    }

    fn next(&mut self, deadline: Instant) -> Pulled {
        let shared = Arc::clone(&self.log.0);
        let mut state = shared.state.lock();
        loop {
            for index in 0..self.turn.len() {
                let Some(&epoch) = self.turn.get(index) else {
                    continue;
                };
                let Some(slot) = self.slots.get_mut(&epoch) else {
                    continue;
                };
                if let Some(pulled) = slot.give(&mut state, &self.clock) {
                    self.turn.remove(index);
                    self.turn.push_back(epoch);
                    return pulled;
                }
            }
            let was_woken = self.woken.swap(false, std::sync::atomic::Ordering::AcqRel);
            let now = self.clock.now();
            if was_woken || now >= deadline || self.clock.stands_still() {
                return Pulled::Nothing;
            }
            // A partition that is held back comes without anybody's notice.
            let moment = self
                .slots
                .values()
                .filter_map(|slot| slot.not_before)
                .filter(|&moment| moment > now)
                .min()
                .map_or(deadline, |moment| moment.min(deadline));
            shared
                .changed
                .wait_until(&mut state, moment.min(now + MAX_PULL_WAIT));
        }
    }

    fn put_back(&mut self, batch: Batch) {
        let epoch = batch.epoch;
        let Some(slot) = self.slots.get_mut(&epoch) else {
            return;
        };
        // Rewound below it since it was given: it will be read again.
        if batch.next_offset > slot.position {
            return;
        }
        let place = slot
            .returned
            .partition_point(|other| other.next_offset < batch.next_offset);
        slot.returned.insert(place, batch);
        self.turn.retain(|&other| other != epoch);
        self.turn.push_back(epoch);
    }

    fn recycle(&mut self, batch: Batch) {
        drop(batch);
    }

    fn is_starved(&self) -> bool {
        false
    }

    fn waker(&self) -> Waker {
        let log = self.log.clone();
        let woken = Arc::clone(&self.woken);
        Waker::new(move || {
            // Under the lock, or a source about to wait would miss it.
            log.change(|_| woken.store(true, std::sync::atomic::Ordering::Release));
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Stage {
        log: MemoryLog,
        source: Box<dyn Source>,
        clock: Clock,
        partition: TopicPartition,
    }

    impl Stage {
        fn new() -> Self {
            let log = MemoryLog::new();
            let clock = Clock::manual();
            Self {
                source: MemoryFactory::new(log.clone(), clock.clone())
                    .open(0)
                    .unwrap(),
                log,
                clock,
                partition: TopicPartition::new("orders", 0),
            }
        }

        fn start(&mut self, offset: i64, until: Option<i64>) {
            self.source.start(ReadFrom {
                partition: self.partition.clone(),
                epoch: AssignmentEpoch(1),
                offset,
                until,
                paused: false,
            });
        }

        fn next(&mut self) -> Pulled {
            self.source.next(self.clock.now() + Duration::from_secs(9))
        }

        /// Offsets of the records of the next batch, and its next offset.
        fn batch(&mut self) -> (Vec<i64>, i64) {
            match self.next() {
                Pulled::Batch(batch) => {
                    let offsets = batch.entries.iter().map(|entry| entry.offset);
                    (offsets.collect(), batch.next_offset)
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn holes_are_crossed_and_the_end_is_reached_over_them() {
        let mut stage = Stage::new();
        stage.log.set_batch_len(2);
        for _ in 0..3 {
            stage.log.append(&stage.partition, MemoryRecord::of("x"));
            stage.log.leave_hole(&stage.partition, 2);
        }
        assert_eq!(stage.log.end(&stage.partition), 9);
        stage.start(0, None);
        assert_eq!(stage.batch(), (vec![0, 3], 6));
        assert_eq!(stage.batch(), (vec![6], 9));
        assert!(matches!(stage.next(), Pulled::Nothing));
        stage.log.leave_hole(&stage.partition, 1);
        assert_eq!(stage.batch(), (vec![], 10));
        stage.source.stop(AssignmentEpoch(1));
        stage.start(0, Some(5));
        assert_eq!(stage.batch(), (vec![0, 3], 5));
        assert!(matches!(stage.next(), Pulled::Nothing));
    }

    #[test]
    fn what_retention_removed_or_an_election_cut_off_is_out_of_range() {
        let mut stage = Stage::new();
        for _ in 0..10 {
            stage.log.append(&stage.partition, MemoryRecord::of("x"));
        }
        stage.log.remove_before(&stage.partition, 4);
        for (offset, log_start, end_offset) in [(3, 4, 10), (8, 4, 6)] {
            stage.log.truncate(&stage.partition, end_offset);
            stage.start(offset, None);
            let Pulled::Failed { error, .. } = stage.next() else {
                panic!("{offset} is there");
            };
            assert_eq!(
                error,
                ReadError::OutOfRange {
                    offset,
                    log_start,
                    end_offset
                }
            );
        }
        stage.source.rewind(AssignmentEpoch(1), 4, None);
        assert_eq!(stage.batch(), (vec![4, 5], 6));
    }

    #[test]
    fn a_scripted_failure_comes_once_and_a_lost_leader_gives_nothing() {
        let mut stage = Stage::new();
        stage.log.append(&stage.partition, MemoryRecord::of("x"));
        stage.log.set_reachable(&stage.partition, false);
        stage.start(0, None);
        assert!(matches!(stage.next(), Pulled::Nothing));
        stage.log.set_reachable(&stage.partition, true);
        let error = ReadError::Corrupt {
            offset: 0,
            broker: None,
            what: "scripted".to_owned(),
        };
        stage.log.fail_next(&stage.partition, error.clone());
        assert!(matches!(stage.next(), Pulled::Failed { error: told, .. } if told == error));
        assert!(matches!(stage.next(), Pulled::Nothing));
        stage.source.rewind(AssignmentEpoch(1), 0, None);
        assert_eq!(stage.batch(), (vec![0], 1));
    }
}
