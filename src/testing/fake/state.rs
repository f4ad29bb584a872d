//! What a fake cluster has: topics, leaders, logs, commits, and what it was
//! asked. All its brokers have the same, as if replication took no time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::release::{Release, Request};
use super::script::Script;

/// A batch of a log, as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct LogBatch {
    pub(crate) base: i64,
    /// The offset after its last record.
    pub(crate) next: i64,
    pub(crate) epoch: i32,
    pub(crate) bytes: Bytes,
}

/// A partition's log and who leads it.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// -1 for none.
    pub(crate) leader: i32,
    pub(crate) epoch: i32,
    pub(crate) start: i64,
    pub(crate) end: i64,
    batches: Vec<LogBatch>,
}

impl Log {
    fn new(leader: i32) -> Self {
        Self {
            leader,
            epoch: 0,
            start: 0,
            end: 0,
            batches: Vec::new(),
        }
    }

    pub(crate) fn append(&mut self, batch: LogBatch) {
        self.end = batch.next;
        self.batches.push(batch);
    }

    /// Drops what lies at `end` and behind it, whole batches at a time.
    pub(crate) fn truncate(&mut self, end: i64) {
        self.batches.retain(|batch| batch.base < end);
        self.end = self.batches.last().map_or(self.start, |batch| batch.next);
    }

    /// The batches from the one that holds `offset`, `max_bytes` at most, but
    /// the first of them where `is_first` (KIP-74).
    pub(crate) fn read(&self, offset: i64, max_bytes: usize, is_first: bool) -> Bytes {
        let from = self.batches.partition_point(|batch| batch.next <= offset);
        let mut out = BytesMut::new();
        for batch in self.batches.get(from..).unwrap_or_default() {
            let is_whole = is_first && out.is_empty();
            if !is_whole && out.len() + batch.bytes.len() > max_bytes {
                break;
            }
            out.extend_from_slice(&batch.bytes);
        }
        out.freeze()
    }

    /// The batch before the one that holds `offset`.
    pub(crate) fn before(&self, offset: i64) -> Option<&LogBatch> {
        let from = self.batches.partition_point(|batch| batch.next <= offset);
        self.batches.get(from.checked_sub(1)?)
    }

    /// The largest epoch up to `epoch` that the log has records of, and where it
    /// ends.
    pub(crate) fn end_of_epoch(&self, epoch: i32) -> (i32, i64) {
        let until = self.batches.partition_point(|batch| batch.epoch <= epoch);
        let last = until.checked_sub(1).and_then(|last| self.batches.get(last));
        last.map_or((-1, self.start), |last| (last.epoch, last.next))
    }
}

/// A topic.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) id: Uuid,
    pub(crate) logs: Vec<Log>,
}

/// How often what was asked, by broker, request and version.
pub(crate) type Counts = BTreeMap<(i32, Request, i16), u64>;

/// Offsets of one partition that are remembered as asked for.
const MOST_OFFSETS: usize = 10_000;

/// Complaints that are remembered.
const MOST_COMPLAINTS: usize = 100;

/// Everything.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) release: Release,
    /// Ports by id.
    pub(crate) brokers: BTreeMap<i32, u16>,
    pub(crate) topics: BTreeMap<String, Topic>,
    /// By group, topic and partition.
    pub(crate) commits: BTreeMap<(String, String, i32), i64>,
    pub(crate) script: Script,
    /// What garbage is made of: the same in every run.
    pub(crate) random: fastrand::Rng,
    counts: Counts,
    connections: BTreeMap<(i32, String), u64>,
    fetched: BTreeMap<(String, i32), Vec<i64>>,
    complaints: Vec<String>,
}

impl State {
    pub(crate) fn new(release: Release) -> Self {
        Self {
            release,
            brokers: BTreeMap::new(),
            topics: BTreeMap::new(),
            commits: BTreeMap::new(),
            script: Script::default(),
            random: fastrand::Rng::with_seed(0x6b65_6570),
            counts: Counts::new(),
            connections: BTreeMap::new(),
            fetched: BTreeMap::new(),
            complaints: Vec::new(),
        }
    }

    /// A topic whose partitions are led by the brokers in turn; false where it
    /// is there already.
    pub(crate) fn create_topic(&mut self, name: &str, partitions: usize) -> bool {
        if self.topics.contains_key(name) {
            return false;
        }
        let leaders: Vec<i32> = self.brokers.keys().copied().collect();
        let logs = leaders.iter().cycle().take(partitions);
        let logs = logs.map(|&leader| Log::new(leader)).collect();
        let number = self.topics.len() as u128 + 1;
        let topic = Topic {
            id: Uuid::from_u128((0xfa_u128 << 64) | number),
            logs,
        };
        self.topics.insert(name.to_owned(), topic);
        true
    }

    pub(crate) fn log(&self, topic: &str, partition: i32) -> Option<&Log> {
        let index = usize::try_from(partition).ok()?;
        self.topics.get(topic)?.logs.get(index)
    }

    pub(crate) fn log_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Log> {
        let index = usize::try_from(partition).ok()?;
        self.topics.get_mut(topic)?.logs.get_mut(index)
    }

    /// The topic of that id.
    pub(crate) fn name_of(&self, id: Uuid) -> Option<&str> {
        let mut topics = self.topics.iter();
        topics
            .find(|(_, topic)| topic.id == id)
            .map(|(name, _)| name.as_str())
    }

    /// The broker that keeps all commits: the one with the lowest id.
    pub(crate) fn coordinator(&self) -> i32 {
        self.brokers.keys().next().copied().unwrap_or(-1)
    }

    // What is remembered of the questions.

    pub(crate) fn count(&mut self, broker: i32, request: Request, version: i16) {
        *self.counts.entry((broker, request, version)).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A client that named itself has connected.
    pub(crate) fn connected(&mut self, broker: i32, software: &str) {
        let key = (broker, software.to_owned());
        *self.connections.entry(key).or_default() += 1;
    }

    pub(crate) fn connections(&self, software: &str) -> u64 {
        let mut sum = 0;
        for ((_, by), count) in &self.connections {
            if by == software {
                sum += count;
            }
        }
        sum
    }

    /// Records of a partition were asked for from this offset on; what is asked
    /// again and again is remembered once.
    pub(crate) fn fetched(&mut self, topic: &str, partition: i32, offset: i64) {
        let offsets = self
            .fetched
            .entry((topic.to_owned(), partition))
            .or_default();
        if offsets.last() != Some(&offset) && offsets.len() < MOST_OFFSETS {
            offsets.push(offset);
        }
    }

    pub(crate) fn fetch_offsets(&self, topic: &str, partition: i32) -> Vec<i64> {
        let key = (topic.to_owned(), partition);
        self.fetched.get(&key).cloned().unwrap_or_default()
    }

    /// Something came that no client should send.
    pub(crate) fn complain(&mut self, what: String) {
        if self.complaints.len() < MOST_COMPLAINTS {
            self.complaints.push(what);
        }
    }

    pub(crate) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// The versions in which something was asked.
    pub(crate) fn versions(&self, request: Request) -> BTreeSet<i16> {
        let asked = self.counts.keys().filter(|(_, kind, _)| *kind == request);
        asked.map(|&(_, _, version)| version).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base: i64, next: i64, epoch: i32) -> LogBatch {
        LogBatch {
            base,
            next,
            epoch,
            bytes: Bytes::from(vec![0; 10]),
        }
    }

    #[test]
    fn a_log_is_read_from_the_batch_that_holds_the_offset_and_the_first_is_whole() {
        let mut log = Log::new(1);
        for base in [0, 5, 10] {
            log.append(batch(base, base + 5, 0));
        }
        assert_eq!(log.read(0, 100, true).len(), 30);
        assert_eq!(log.read(7, 100, true).len(), 20);
        assert_eq!(log.read(7, 15, true).len(), 10);
        assert_eq!(log.read(7, 1, true).len(), 10);
        assert_eq!(log.read(7, 1, false).len(), 0);
        assert_eq!(log.read(15, 100, true).len(), 0);
        assert_eq!(log.before(7).map(|batch| batch.base), Some(0));
        assert!(log.before(4).is_none());
    }

    #[test]
    fn an_epoch_ends_where_the_next_begins_and_a_log_can_lose_its_end() {
        let mut log = Log::new(1);
        log.append(batch(0, 5, 0));
        log.append(batch(5, 9, 2));
        assert_eq!(log.end_of_epoch(0), (0, 5));
        assert_eq!(log.end_of_epoch(1), (0, 5));
        assert_eq!(log.end_of_epoch(7), (2, 9));
        log.truncate(5);
        assert_eq!((log.end, log.end_of_epoch(7)), (5, (0, 5)));
    }

    #[test]
    fn partitions_are_led_by_the_brokers_in_turn() {
        let mut state = State::new(Release::default());
        state.brokers = BTreeMap::from([(1, 1001), (2, 1002)]);
        assert!(state.create_topic("orders", 3));
        assert!(!state.create_topic("orders", 3));
        let leaders: Vec<i32> = state.topics["orders"]
            .logs
            .iter()
            .map(|log| log.leader)
            .collect();
        assert_eq!(leaders, [1, 2, 1]);
        assert_eq!(state.coordinator(), 1);
        let id = state.topics["orders"].id;
        assert_eq!(state.name_of(id), Some("orders"));
    }
}
