//! What to ask of which broker next, and what an answer means.
//!
//! All decisions of the fetch source are here, as functions of state and time:
//! no socket, no thread and no clock. The event loop beside it feeds this with
//! answers and lost connections, sends what it is told to send, and gives out
//! what [`Plan::give`] hands it.
//!
//! The invariants:
//!
//! - An answer counts for a partition only where the partition still waits for
//!   exactly that: same assignment epoch, same offset. Whatever was stopped,
//!   paused or rewound since is dropped.
//! - Per partition at most two answers are held: one that is being given out,
//!   and the next. The next request is sent before the answer in hand is given
//!   out, so that the broker works while the handler does.
//! - A partition that is full is left out of a request, and then the broker
//!   must not wait for records: its long poll would stall the full one, whose
//!   turn to be asked for comes much sooner (measured: half the throughput).
//! - No request goes out while its answer might not fit into the share of the
//!   memory, unless nothing at all is held. A quarter of the share is kept for
//!   partitions of which nothing is there, so that one with a slow handler does
//!   not starve its neighbours.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::buffers::BufferPool;
use super::compression::Decompressor;
use super::record_set::{RecordSetReader, extent};
use crate::clock::Coarse;
use crate::kafka::Isolation;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{ClusterSnapshot, Leader};
use crate::kafka::errors::{Class, ErrorCode};
use crate::kafka::messages::{
    FetchAnswer, FetchPartition, FetchRequest, FetchTopic, FetchedPartition, TopicKey,
};
use crate::record::{AssignmentEpoch, Batch, Entry};
use crate::source::{Pulled, ReadError, ReadFrom};

/// Bytes of an answer where memory allows. Measured with 100-byte records: a
/// quarter of a megabyte halves the throughput, four megabytes are slower again
/// because they leave the cache.
const FULL_ANSWER: usize = 2 * 1024 * 1024;

/// Bytes of an answer below which asking costs more than it brings.
const LEAST_ANSWER: usize = 64 * 1024;

/// How long a broker may wait for records where there are none. A partition
/// that is added meanwhile waits as long for its first answer; asking four
/// times a second costs nothing.
const LONG_POLL: Duration = Duration::from_millis(250);

/// The shortest wait that the protocol can express, other than none: a broker
/// that is asked again at once must not be asked in a busy loop.
const SHORT_POLL: Duration = Duration::from_millis(1);

/// Answers held per partition: the one that is given out, and the next.
const MOST_ANSWERS: usize = 2;

/// After an error that passes by itself: soon, because an election takes tens
/// of milliseconds, and then ever more seldom.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_secs(1),
};

/// Reads of damaged records that are tried before the partition fails: damage
/// done on the way is gone with the next answer, damage on the disk is not.
const MOST_CORRUPT: u32 = 4;

/// Between requests to a broker that answers at once and tells nothing.
const HOLLOW: Backoff = Backoff {
    first: Duration::from_millis(5),
    max: Duration::from_millis(500),
};

/// Answers of that kind, in a row, that cost nothing.
const HOLLOW_FREE: u32 = 2;

/// `CORRUPT_MESSAGE`: the broker itself found the damage.
const CORRUPT_MESSAGE: i16 = 2;

/// What may be held, and what is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// This source's share of the memory budget.
    pub(super) share: usize,
    /// Bytes in buffers, given out or not.
    pub(super) held: usize,
    /// Connections among which the share is spread.
    pub(super) connections: usize,
}

/// The first batch of a partition is given whole however long it is: up to this
/// much it is asked for again where a broker cut it.
const MOST_FOR_ONE_BATCH: usize = 100 * 1024 * 1024;

/// What batches are made with.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) decompressor: Decompressor,
    pub(super) pool: BufferPool,
    /// Indexes of batches that came back, to be filled again.
    spare: Vec<Vec<Entry>>,
}

/// Indexes kept to be filled again: some batches are out at a time.
const MOST_SPARE: usize = 8;

impl Kit {
    pub(super) fn new(pool: BufferPool) -> Self {
        Self {
            decompressor: Decompressor::default(),
            pool,
            spare: Vec::new(),
        }
    }

    /// Keeps an index to be filled again.
    pub(super) fn keep(&mut self, entries: Vec<Entry>) {
        if self.spare.len() < MOST_SPARE && entries.capacity() > 0 {
            self.spare.push(entries);
        }
    }
}

/// All partitions of a source and what is under way for them.
#[derive(Debug)]
pub(super) struct Plan {
    isolation: Isolation,
    slots: BTreeMap<AssignmentEpoch, Slot>,
    /// Partitions that have something to give, in turn.
    turn: VecDeque<AssignmentEpoch>,
    /// What was asked and not yet answered, one request per broker.
    asked: BTreeMap<i32, Asked>,
    /// Brokers that hold us back (quota), until when.
    throttled: BTreeMap<i32, Instant>,
    /// Brokers that answer at once and tell nothing, and how often in a row.
    hollow: BTreeMap<i32, u32>,
    /// Counts answers, to serve first who has waited longest.
    served: u64,
    /// An answer was given out to its end: its partition may be asked for again.
    has_room: bool,
    /// Something was wanted that the memory had no room for.
    no_room: bool,
    random: fastrand::Rng,
}

/// A request that is under way.
#[derive(Debug)]
struct Asked {
    max_bytes: usize,
    /// Before this moment a broker that has nothing to tell does not answer.
    not_empty_before: Instant,
    partitions: Vec<AskedPartition>,
}

#[derive(Clone, Debug)]
struct AskedPartition {
    epoch: AssignmentEpoch,
    broker: i32,
    topic: Arc<str>,
    topic_id: Uuid,
    partition: i32,
    offset: i64,
}

/// One partition.
#[derive(Debug)]
struct Slot {
    from: ReadFrom,
    topic_id: Uuid,
    leader: Option<Leader>,
    /// The offset after what was given out.
    position: i64,
    /// The offset after what is held: what to ask for.
    fetch_offset: i64,
    /// Leader epoch of the last record held or given, -1 where unknown.
    fetch_epoch: i32,
    answers: VecDeque<Answer>,
    /// What was given back, in order.
    returned: VecDeque<Batch>,
    trouble: Trouble,
    is_in_turn: bool,
    is_asked: bool,
    not_before: Option<Instant>,
    retry_at: Option<Instant>,
    failures: u32,
    corrupt: u32,
    /// When it last brought records, in answers.
    served: u64,
    /// The last answer brought records, or there was none yet.
    is_active: bool,
    /// The end that was told last; none until the first time.
    told: Option<i64>,
    /// A wire batch that a broker cut is this long.
    needs: usize,
}

/// Why a partition is not read on, if it is not.
#[derive(Debug)]
enum Trouble {
    None,
    /// To be told after everything that is held.
    Untold(ReadError),
    /// Until it is rewound.
    Told,
}

impl Trouble {
    /// What is to be told, once.
    fn tell(&mut self) -> Option<ReadError> {
        match std::mem::replace(self, Self::Told) {
            Self::Untold(error) => Some(error),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// What an answer brought for one partition.
#[derive(Debug)]
struct Answer {
    reader: RecordSetReader,
    broker: i32,
    end_offset: i64,
    log_start: i64,
    fetched_at: Coarse,
}

/// What the shell is to do after an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// What is known of the leaders is out of date.
    pub(super) refresh: bool,
    /// An error code that Kafka does not have: whoever answers it is not to be
    /// trusted any further on this connection.
    pub(super) unknown_code: Option<i16>,
    /// A partition was told something.
    told: bool,
}

impl Plan {
    pub(super) fn new(isolation: Isolation, seed: u64) -> Self {
        Self {
            isolation,
            slots: BTreeMap::new(),
            turn: VecDeque::new(),
            asked: BTreeMap::new(),
            throttled: BTreeMap::new(),
            hollow: BTreeMap::new(),
            served: 0,
            has_room: false,
            no_room: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    // What the worker wants.

    pub(super) fn start(&mut self, from: ReadFrom) {
        let slot = Slot {
            topic_id: Uuid::nil(),
            leader: None,
            position: from.offset,
            fetch_offset: from.offset,
            fetch_epoch: -1,
            answers: VecDeque::new(),
            returned: VecDeque::new(),
            trouble: Trouble::None,
            is_in_turn: false,
            is_asked: false,
            not_before: None,
            retry_at: None,
            failures: 0,
            corrupt: 0,
            served: 0,
            is_active: true,
            told: None,
            needs: 0,
            from,
        };
        self.stop(slot.from.epoch);
        self.slots.insert(slot.from.epoch, slot);
    }

    pub(super) fn stop(&mut self, epoch: AssignmentEpoch) {
        if self.slots.remove(&epoch).is_some() {
            self.turn.retain(|&other| other != epoch);
        }
    }

    pub(super) fn rewind(
        &mut self,
        epoch: AssignmentEpoch,
        offset: i64,
        not_before: Option<Instant>,
    ) {
        let Some(slot) = self.slots.get_mut(&epoch) else {
            return;
        };
        slot.drop_held(offset);
        slot.trouble = Trouble::None;
        slot.corrupt = 0;
        slot.not_before = not_before;
        slot.told = None;
    }

    pub(super) fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        let Some(slot) = self.slots.get_mut(&epoch) else {
            return;
        };
        slot.from.paused = paused;
        if paused {
            let resume_at = slot.resume_offset();
            slot.drop_held(resume_at);
        } else {
            // A failure found while it was paused is told now.
            self.enlist(epoch);
        }
    }

    pub(super) fn put_back(&mut self, batch: Batch) {
        let Some(slot) = self.slots.get_mut(&batch.epoch) else {
            return;
        };
        // Rewound below it since it was given: it will be read again.
        if batch.next_offset > slot.position {
            return;
        }
        if slot.from.paused {
            let offset = first_left(&batch).min(slot.position);
            slot.drop_held(offset);
            return;
        }
        let place = slot
            .returned
            .partition_point(|other| other.next_offset < batch.next_offset);
        let epoch = batch.epoch;
        slot.returned.insert(place, batch);
        // Its turn comes after everybody else's.
        self.turn.retain(|&other| other != epoch);
        self.turn.push_back(epoch);
        slot.is_in_turn = true;
    }

    // What the cluster looks like.

    /// Takes over who leads what; returns whether a leader is missing.
    pub(super) fn follow(&mut self, cluster: &ClusterSnapshot) -> Effects {
        let mut refresh = false;
        for slot in self.slots.values_mut() {
            let partition = &slot.from.partition;
            let leader = cluster
                .leader(partition.topic(), partition.partition())
                .filter(|leader| cluster.broker(leader.id).is_some());
            if leader != slot.leader {
                // Whatever there was to wait for has happened.
                slot.retry_at = None;
            }
            slot.leader = leader;
            slot.topic_id = cluster.topic_id(partition.topic());
            refresh |= leader.is_none();
        }
        Effects {
            refresh,
            ..Effects::default()
        }
    }

    /// The brokers that lead a partition which is to be read.
    pub(super) fn brokers(&self) -> Vec<i32> {
        let mut brokers: Vec<i32> = self
            .slots
            .values()
            .filter(|slot| slot.wants())
            .filter_map(|slot| slot.leader)
            .map(|leader| leader.id)
            .collect();
        brokers.sort_unstable();
        brokers.dedup();
        brokers
    }

    /// Whether `broker` leads a partition, be it paused.
    pub(super) fn leads(&self, broker: i32) -> bool {
        self.slots
            .values()
            .any(|slot| slot.leader.is_some_and(|leader| leader.id == broker))
    }

    /// Whether a partition is to be read and has no known leader.
    pub(super) fn misses_leader(&self) -> bool {
        self.slots
            .values()
            .any(|slot| slot.wants() && slot.leader.is_none())
    }

    // Asking and being answered.

    /// The next request for `broker`, if there is one to send now. From then on
    /// it is under way, until [`Plan::answered`] or [`Plan::lost`].
    pub(super) fn ask(&mut self, broker: i32, now: Instant, room: Room) -> Option<FetchRequest> {
        if self.asked.contains_key(&broker) || self.is_throttled(broker, now) {
            return None;
        }
        let mut wanted = self.wanted(broker, now);
        if wanted.hungry.is_empty() && wanted.fed.is_empty() {
            return None;
        }
        let max_bytes = self.room_for(&mut wanted, room)?;
        let mut slots = wanted.hungry;
        slots.append(&mut wanted.fed);
        slots.sort_unstable();

        let mut active = 0;
        let mut largest = 0;
        for (_, _, epoch) in &slots {
            let slot = self.slots.get(epoch)?;
            active += usize::from(slot.is_active);
            largest = largest.max(slot.needs);
        }
        let max_bytes = max_bytes.max(largest);
        let per_partition = (max_bytes / active.max(1)).max(LEAST_ANSWER).min(max_bytes);
        let mut topics: Vec<FetchTopic> = Vec::new();
        let mut partitions = Vec::with_capacity(slots.len());
        for (_, _, epoch) in slots {
            let slot = self.slots.get_mut(&epoch)?;
            slot.is_asked = true;
            partitions.push(slot.asked(broker));
            let partition = slot.request(per_partition.max(slot.needs));
            match topics.last_mut() {
                Some(topic) if *topic.name == *slot.from.partition.topic() => {
                    topic.partitions.push(partition);
                }
                _ => topics.push(FetchTopic {
                    name: slot.from.partition.shared_topic(),
                    id: slot.topic_id,
                    partitions: vec![partition],
                }),
            }
        }
        let max_wait = if wanted.is_one_left_out {
            SHORT_POLL
        } else {
            wanted.longest_wait
        };
        self.asked.insert(
            broker,
            Asked {
                max_bytes,
                // Clocks do not all go the same.
                not_empty_before: now + max_wait / 2,
                partitions,
            },
        );
        Some(FetchRequest {
            max_wait,
            min_bytes: 1,
            max_bytes: to_i32(max_bytes),
            isolation: self.isolation,
            topics,
        })
    }

    fn is_throttled(&mut self, broker: i32, now: Instant) -> bool {
        let is_over = self
            .throttled
            .get(&broker)
            .is_some_and(|&until| until <= now);
        if is_over {
            self.throttled.remove(&broker);
        }
        self.throttled.contains_key(&broker)
    }

    fn wanted(&self, broker: i32, now: Instant) -> Wanted {
        let mut wanted = Wanted {
            hungry: Vec::new(),
            fed: Vec::new(),
            is_one_left_out: false,
            longest_wait: LONG_POLL,
        };
        for (&epoch, slot) in &self.slots {
            if !slot.wants()
                || slot.is_asked
                || slot.leader.is_none_or(|leader| leader.id != broker)
            {
                continue;
            }
            if let Some(moment) = slot.waits_until().filter(|&moment| moment > now) {
                // Its time comes while the broker would still wait.
                wanted.longest_wait = wanted.longest_wait.min(moment - now).max(SHORT_POLL);
                continue;
            }
            match slot.held() {
                0 => wanted.hungry.push(slot.waiting(epoch)),
                held if held < MOST_ANSWERS => wanted.fed.push(slot.waiting(epoch)),
                _ => wanted.is_one_left_out = true,
            }
        }
        wanted
    }

    /// How long the answer may be; takes from `wanted` what there is no room
    /// for.
    fn room_for(&mut self, wanted: &mut Wanted, room: Room) -> Option<usize> {
        let full = (room.share / (2 * room.connections.max(1))).clamp(LEAST_ANSWER, FULL_ANSWER);
        let under_way: usize = self.asked.values().map(|asked| asked.max_bytes).sum();
        let used = room.held + under_way;
        if used == 0 {
            return Some(full);
        }
        let for_all = (room.share - room.share / 4).saturating_sub(used);
        if for_all >= LEAST_ANSWER {
            return Some(full.min(for_all));
        }
        let for_hungry = room.share.saturating_sub(used);
        if for_hungry >= LEAST_ANSWER && !wanted.hungry.is_empty() {
            wanted.is_one_left_out |= !wanted.fed.is_empty();
            wanted.fed.clear();
            return Some(full.min(for_hungry));
        }
        self.no_room = true;
        None
    }

    /// Whether a request was held back for want of memory since the last call.
    pub(super) fn take_no_room(&mut self) -> bool {
        std::mem::take(&mut self.no_room)
    }

    /// Whether something was given out to its end since the last call, so that
    /// more can be asked for.
    pub(super) fn take_has_room(&mut self) -> bool {
        std::mem::take(&mut self.has_room)
    }

    /// The connection to `broker` is gone, and with it what was asked.
    pub(super) fn lost(&mut self, broker: i32) {
        if let Some(asked) = self.asked.remove(&broker) {
            self.release(&asked);
        }
    }

    /// The answer of `broker` is longer than what is accepted. Where that stays
    /// so its first partition fails: the broker gives the first batch of it
    /// whole, however long it is, and keeps to what was asked with all others.
    pub(super) fn too_long(&mut self, broker: i32, bytes: i64, limit: usize, now: Instant) {
        let Some(first) = self
            .asked
            .get(&broker)
            .and_then(|asked| asked.partitions.first().cloned())
        else {
            return;
        };
        if let Some(slot) = self.waiting(&first, now) {
            slot.corrupt += 1;
            if slot.corrupt < MOST_CORRUPT {
                return;
            }
            slot.trouble = Trouble::Untold(ReadError::TooLong {
                offset: first.offset,
                bytes,
                limit,
            });
            self.enlist(first.epoch);
        }
    }

    fn release(&mut self, asked: &Asked) {
        for partition in &asked.partitions {
            if let Some(slot) = self.slots.get_mut(&partition.epoch) {
                slot.is_asked = false;
            }
        }
    }

    /// Takes in an answer.
    pub(super) fn answered(
        &mut self,
        broker: i32,
        answer: FetchAnswer,
        now: Instant,
        fetched_at: Coarse,
    ) -> Effects {
        let mut effects = Effects::default();
        let Some(asked) = self.asked.remove(&broker) else {
            return effects;
        };
        self.release(&asked);
        self.served += 1;
        if !answer.throttle.is_zero() {
            self.throttled.insert(broker, now + answer.throttle);
        }
        if let Some(error) = ErrorCode::from_code(answer.error) {
            for partition in &asked.partitions {
                self.refused(partition, error, &Told::NOTHING, now, &mut effects);
            }
            return effects;
        }
        let is_early = now < asked.not_empty_before && answer.throttle.is_zero();
        // Brokers answer in the order of the request, so this rarely searches.
        let mut expected = 0;
        for topic in answer.topics {
            for fetched in topic.partitions {
                let Some(index) = asked.find(&topic.topic, fetched.partition, expected) else {
                    continue;
                };
                expected = index + 1;
                if let Some(partition) = asked.partitions.get(index) {
                    self.fetched(partition, fetched, now, fetched_at, &mut effects);
                }
            }
        }
        if effects.told || !is_early {
            self.hollow.remove(&broker);
        } else {
            self.hollow_answer(broker, now);
        }
        effects
    }

    /// A broker told nothing and did not wait for it: asked again at once it
    /// would be asked in a busy loop.
    fn hollow_answer(&mut self, broker: i32, now: Instant) {
        let random = self.random.f64();
        let count = self.hollow.entry(broker).or_default();
        *count = count.saturating_add(1);
        let failures = count.saturating_sub(HOLLOW_FREE);
        if failures > 0 {
            let until = now + HOLLOW.delay(failures, random);
            self.throttled.insert(broker, until);
        }
    }

    fn fetched(
        &mut self,
        asked: &AskedPartition,
        fetched: FetchedPartition,
        now: Instant,
        fetched_at: Coarse,
        effects: &mut Effects,
    ) {
        let isolation = self.isolation;
        let served = self.served;
        let random = self.random.f64();
        let told = Told::by(&fetched, isolation);
        if let Some(error) = ErrorCode::from_code(fetched.error) {
            self.refused(asked, error, &told, now, effects);
            return;
        }
        let Some(slot) = self.waiting(asked, now) else {
            return;
        };
        let extent = extent(&fetched.records, asked.offset);
        let is_stuck = !fetched.records.is_empty()
            && extent.first_is_cut.is_none()
            && extent.next_offset == asked.offset;
        if slot.failures > 0 && !is_stuck {
            tracing::info!(partition = %slot.from.partition, "the partition is served again");
            slot.failures = 0;
        }
        slot.retry_at = None;
        if let Some(diverging) = fetched.diverging {
            // The log was cut off below what was read, and grew again.
            slot.trouble = Trouble::Untold(ReadError::Truncated {
                offset: asked.offset,
                end_offset: diverging.end_offset,
            });
            self.enlist(asked.epoch);
            effects.told = true;
            return;
        }
        if let Some(needs) = extent.first_is_cut {
            effects.told = true;
            slot.corrupt += 1;
            if slot.corrupt < MOST_CORRUPT && needs <= MOST_FOR_ONE_BATCH {
                slot.needs = needs;
            } else {
                slot.trouble = Trouble::Untold(ReadError::Corrupt {
                    offset: asked.offset,
                    broker: Some(asked.broker),
                    what: format!(
                        "the broker gives {} bytes of a batch that says it has {needs}",
                        fetched.records.len()
                    ),
                });
                self.enlist(asked.epoch);
            }
            return;
        }
        slot.needs = 0;
        slot.is_active = !fetched.records.is_empty();
        if slot.is_active {
            slot.served = served;
        }
        if is_stuck {
            // Nothing that leads on, though there are bytes: they are read, which
            // tells what is wrong with them, but not asked for in a busy loop.
            slot.failures += 1;
            slot.retry_at = Some(now + RETRY.delay(slot.failures, random));
        }
        let is_news = slot.is_active || slot.told != Some(told.end_offset);
        if !is_news {
            return;
        }
        effects.told = true;
        if let Some(last) = slot.answers.back_mut().filter(|_| !slot.is_active) {
            // Only the end is news: what is there already tells it.
            last.end_offset = told.end_offset;
            last.log_start = told.log_start;
            last.fetched_at = fetched_at;
            return;
        }
        slot.fetch_offset = extent.next_offset;
        if extent.last_epoch >= 0 {
            slot.fetch_epoch = extent.last_epoch;
        }
        slot.answers.push_back(Answer {
            broker: asked.broker,
            reader: RecordSetReader::new(
                fetched.records,
                asked.offset,
                slot.from.until,
                isolation,
                fetched.aborted,
            ),
            end_offset: told.end_offset,
            log_start: told.log_start,
            fetched_at,
        });
        self.enlist(asked.epoch);
    }

    /// The partition, where it still waits for what was asked.
    fn waiting(&mut self, asked: &AskedPartition, now: Instant) -> Option<&mut Slot> {
        self.slots
            .get_mut(&asked.epoch)
            .filter(|slot| slot.wants() && slot.fetch_offset == asked.offset)
            .filter(|slot| slot.not_before.is_none_or(|moment| moment <= now))
    }

    fn refused(
        &mut self,
        asked: &AskedPartition,
        error: ErrorCode,
        told: &Told,
        now: Instant,
        effects: &mut Effects,
    ) {
        let random = self.random.f64();
        let Some(slot) = self.waiting(asked, now) else {
            return;
        };
        effects.told = true;
        if error.class == Class::Unknown {
            effects.unknown_code = Some(error.code);
        }
        let failure = if error.code == CORRUPT_MESSAGE {
            slot.corrupt += 1;
            (slot.corrupt >= MOST_CORRUPT).then(|| ReadError::Corrupt {
                offset: asked.offset,
                broker: Some(asked.broker),
                what: error.to_string(),
            })
        } else if error.class.passes() {
            effects.refresh |= error.class == Class::RefreshMetadata;
            None
        } else {
            Some(match error.class {
                Class::OutOfRange => ReadError::OutOfRange {
                    offset: asked.offset,
                    log_start: told.log_start,
                    end_offset: told.end_offset,
                },
                Class::Authorization => ReadError::NotAuthorized {
                    topic: Arc::clone(&asked.topic),
                },
                _ => ReadError::Refused {
                    code: error.code,
                    name: error.name,
                },
            })
        };
        if let Some(failure) = failure {
            slot.trouble = Trouble::Untold(failure);
            self.enlist(asked.epoch);
            return;
        }
        slot.failures += 1;
        slot.retry_at = Some(now + RETRY.delay(slot.failures, random));
        if slot.failures == 1 {
            tracing::info!(
                partition = %slot.from.partition,
                offset = asked.offset,
                error = error.name,
                "the broker cannot serve the partition now; asking again"
            );
        }
    }

    // Giving out.

    /// Puts a partition that has something to give into the turn.
    fn enlist(&mut self, epoch: AssignmentEpoch) {
        let Some(slot) = self.slots.get_mut(&epoch) else {
            return;
        };
        if !slot.is_in_turn && slot.has_something() {
            slot.is_in_turn = true;
            self.turn.push_back(epoch);
        }
    }

    /// Whether [`Plan::give`] may have something.
    pub(super) fn has_something(&self) -> bool {
        !self.turn.is_empty()
    }

    /// The next batch or failure of the partition whose turn it is.
    pub(super) fn give(&mut self, kit: &mut Kit, now: Instant) -> Option<Pulled> {
        while let Some(epoch) = self.turn.pop_front() {
            let random = self.random.f64();
            let Some(slot) = self.slots.get_mut(&epoch) else {
                continue;
            };
            slot.is_in_turn = false;
            if slot.from.paused {
                continue;
            }
            let held = slot.answers.len();
            let pulled = slot.give(kit, now, random);
            self.has_room |= slot.answers.len() < held;
            self.enlist(epoch);
            if pulled.is_some() {
                return pulled;
            }
        }
        None
    }

    /// The next moment at which there is something to ask for that is not now.
    pub(super) fn next_moment(&self, now: Instant) -> Option<Instant> {
        self.slots
            .values()
            .filter(|slot| slot.wants())
            .filter_map(Slot::waits_until)
            .chain(self.throttled.values().copied())
            .filter(|&moment| moment > now)
            .min()
    }
}

/// A partition in the order in which a request asks: who waits for more than
/// the answer before had room for, then who has waited longest.
type Waiting = (std::cmp::Reverse<usize>, u64, AssignmentEpoch);

/// The partitions that one request may carry.
struct Wanted {
    /// Nothing of them is there.
    hungry: Vec<Waiting>,
    /// An answer of them is being given out.
    fed: Vec<Waiting>,
    /// A partition that could be asked for soon is not in this request.
    is_one_left_out: bool,
    longest_wait: Duration,
}

/// What an answer tells of a partition beside its records.
struct Told {
    end_offset: i64,
    log_start: i64,
}

impl Told {
    const NOTHING: Self = Self {
        end_offset: -1,
        log_start: -1,
    };

    fn by(fetched: &FetchedPartition, isolation: Isolation) -> Self {
        let end_offset = match isolation {
            Isolation::ReadCommitted if fetched.last_stable_offset >= 0 => {
                fetched.last_stable_offset
            }
            _ => fetched.high_watermark,
        };
        Self {
            end_offset,
            log_start: fetched.log_start,
        }
    }
}

impl Asked {
    fn find(&self, topic: &TopicKey, partition: i32, expected: usize) -> Option<usize> {
        let fits = |asked: &AskedPartition| {
            asked.partition == partition
                && match topic {
                    TopicKey::Name(name) => *name == asked.topic,
                    TopicKey::Id(id) => *id == asked.topic_id,
                }
        };
        if self.partitions.get(expected).is_some_and(fits) {
            return Some(expected);
        }
        self.partitions.iter().position(fits)
    }
}

impl Slot {
    /// Whether it is to be read at all, now or later.
    fn wants(&self) -> bool {
        matches!(self.trouble, Trouble::None) && !self.from.paused && !self.is_at_until()
    }

    /// Whether what is held reaches `until`. The first answer is wanted even
    /// then: it tells where the partition ends.
    fn is_at_until(&self) -> bool {
        let is_first = self.told.is_none() && self.answers.is_empty();
        !is_first
            && self
                .from
                .until
                .is_some_and(|until| self.fetch_offset >= until)
    }

    /// How much is there to give, in answers with records.
    fn held(&self) -> usize {
        let answers = self
            .answers
            .iter()
            .filter(|answer| !answer.reader.is_at_end());
        answers.count() + self.returned.len()
    }

    fn waits_until(&self) -> Option<Instant> {
        self.not_before.max(self.retry_at)
    }

    fn has_something(&self) -> bool {
        !self.answers.is_empty()
            || !self.returned.is_empty()
            || matches!(self.trouble, Trouble::Untold(_))
    }

    /// Drops everything that is held, to read again from `offset`.
    fn drop_held(&mut self, offset: i64) {
        self.answers.clear();
        self.returned.clear();
        self.position = offset;
        self.fetch_offset = offset;
        // The epoch of the record before is not known any more.
        self.fetch_epoch = -1;
    }

    /// Where to go on where what is held is dropped.
    fn resume_offset(&self) -> i64 {
        self.returned.front().map_or(self.position, first_left)
    }

    fn waiting(&self, epoch: AssignmentEpoch) -> Waiting {
        (std::cmp::Reverse(self.needs), self.served, epoch)
    }

    fn asked(&self, broker: i32) -> AskedPartition {
        AskedPartition {
            epoch: self.from.epoch,
            broker,
            topic: self.from.partition.shared_topic(),
            topic_id: self.topic_id,
            partition: self.from.partition.partition(),
            offset: self.fetch_offset,
        }
    }

    fn request(&self, max_bytes: usize) -> FetchPartition {
        FetchPartition {
            partition: self.from.partition.partition(),
            leader_epoch: self.leader.map_or(-1, |leader| leader.epoch),
            offset: self.fetch_offset,
            last_fetched_epoch: self.fetch_epoch,
            max_bytes: to_i32(max_bytes),
        }
    }

    fn give(&mut self, kit: &mut Kit, now: Instant, random: f64) -> Option<Pulled> {
        if let Some(batch) = self.returned.pop_front() {
            return Some(Pulled::Batch(batch));
        }
        while let Some(mut answer) = self.answers.pop_front() {
            let mut entries = kit.spare.pop().unwrap_or_default();
            let read = answer
                .reader
                .next(&mut kit.decompressor, &kit.pool, &mut entries);
            match read {
                Ok(Some(piece)) => {
                    self.corrupt = 0;
                    let batch = self.batch(&answer, piece.bytes, entries, piece.next_offset);
                    let is_at_until = self
                        .from
                        .until
                        .is_some_and(|until| piece.next_offset >= until);
                    if is_at_until {
                        self.answers.clear();
                    } else if !answer.reader.is_at_end() {
                        self.answers.push_front(answer);
                    }
                    return Some(Pulled::Batch(batch));
                }
                Ok(None) => {
                    kit.keep(entries);
                    if self.told != Some(answer.end_offset) {
                        let position = self.position;
                        let batch = self.batch(&answer, Bytes::new(), Vec::new(), position);
                        return Some(Pulled::Batch(batch));
                    }
                }
                Err(mut error) => {
                    kit.keep(entries);
                    let position = self.position;
                    self.drop_held(position);
                    if let ReadError::Corrupt { broker, .. } = &mut error {
                        *broker = Some(answer.broker);
                    }
                    self.damaged(error, now, random);
                }
            }
        }
        let error = self.trouble.tell()?;
        let offset = self.position;
        self.drop_held(offset);
        Some(Pulled::Failed {
            epoch: self.from.epoch,
            offset,
            error,
        })
    }

    fn damaged(&mut self, error: ReadError, now: Instant, random: f64) {
        self.corrupt += 1;
        let passes = matches!(error, ReadError::Corrupt { .. }) && self.corrupt < MOST_CORRUPT;
        if passes {
            tracing::warn!(partition = %self.from.partition, %error, "asking for the records again");
            self.retry_at = Some(now + RETRY.delay(self.corrupt, random));
        } else {
            self.trouble = Trouble::Untold(error);
        }
    }

    fn batch(
        &mut self,
        answer: &Answer,
        bytes: Bytes,
        entries: Vec<Entry>,
        next_offset: i64,
    ) -> Batch {
        self.position = next_offset;
        self.told = Some(answer.end_offset);
        Batch {
            partition: self.from.partition.clone(),
            epoch: self.from.epoch,
            bytes,
            entries,
            cursor: 0,
            next_offset,
            end_offset: answer.end_offset,
            log_start: answer.log_start,
            fetched_at: answer.fetched_at,
        }
    }
}

/// The first offset of a batch that was not handed to a handler.
fn first_left(batch: &Batch) -> i64 {
    batch
        .entries
        .get(batch.cursor)
        .map_or(batch.next_offset, |entry| entry.offset)
}

fn to_i32(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
