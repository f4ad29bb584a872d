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
//!   exactly that: same assignment epoch, same offset, same broker. Whatever was
//!   stopped, paused, rewound or led elsewhere since is dropped.
//! - Per partition at most two answers are held: one that is being given out,
//!   and the next. The next request is sent before the answer in hand is given
//!   out, so that the broker works while the handler does.
//! - A partition that is full is left out of a request, and then the broker
//!   must not wait for records: its long poll would stall the full one, whose
//!   turn to be asked for comes much sooner (measured: half the throughput).
//! - A partition that is held back (its record waits for a retry) keeps what is
//!   held of it, and is not asked for; where memory is short, what is held back
//!   goes first and is read again.
//! - No request goes out while its answer might not fit into the share of the
//!   memory, unless nothing at all is held. A quarter of the share is kept for
//!   partitions of which nothing is there, so that one with a slow handler does
//!   not starve its neighbours.
//! - A broker is never asked in a busy loop, whatever it answers: what it cannot
//!   serve waits, and one that answers nothing before its time is asked again
//!   when that has come.
//!
//! | file | what it is for |
//! |---|---|
//! | [`slot`] | one partition: whom to ask, where it stands, what is held of it |
//! | [`session`] | what a broker remembers of the last request |
//! | [`epochs`] | how a log that was cut off is noticed |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::session::{Key, Session};
use self::slot::{Answer, Slot, Trouble, Waiting, first_left};
use super::buffers::BufferPool;
use super::compression::Decompressor;
use super::record_set::{RecordSetReader, extent};
use crate::clock::Coarse;
use crate::kafka::Isolation;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{ClusterSnapshot, Move};
use crate::kafka::errors::{Class, ErrorCode};
use crate::kafka::messages::{FetchAnswer, FetchRequest, FetchedPartition, TopicKey};
use crate::record::{AssignmentEpoch, Batch, Entry};
use crate::source::{Pulled, ReadError, ReadFrom};

mod epochs;
mod session;
mod slot;

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

/// `CORRUPT_MESSAGE`: the broker itself found the damage.
const CORRUPT_MESSAGE: i16 = 2;

/// `FETCH_SESSION_ID_NOT_FOUND`, `INVALID_FETCH_SESSION_EPOCH`,
/// `FETCH_SESSION_TOPIC_ID_ERROR`: the broker's session is not what we think.
const SESSION_UNKNOWN: i16 = 70;
const SESSION_OUT_OF_STEP: i16 = 71;
const SESSION_NAMES_OTHERWISE: i16 = 106;

/// How long a replica that the leader named is read from before the leader is
/// asked again, as Java's `metadata.max.age.ms`.
const PREFERRED_FOR: Duration = Duration::from_mins(5);

/// How long leaders are not told where we are after a replica that one of them
/// named could not serve us: the leader would name it again, until it has
/// noticed too (`broker.session.timeout.ms` is 9 s).
const LEADERS_ONLY: Duration = Duration::from_secs(10);

/// Between requests to a broker that answers at once and tells nothing.
const HOLLOW: Backoff = Backoff {
    first: Duration::from_millis(5),
    max: Duration::from_millis(500),
};

/// Answers of that kind, in a row, that cost nothing.
const HOLLOW_FREE: u32 = 2;

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
    /// Where we are; empty for nowhere.
    rack: Arc<str>,
    slots: BTreeMap<AssignmentEpoch, Slot>,
    /// Partitions that have something to give, in turn.
    turn: VecDeque<AssignmentEpoch>,
    /// Partitions that are held back, by the moment at which that ends.
    held_back: BTreeSet<(Instant, AssignmentEpoch)>,
    brokers: BTreeMap<i32, Broker>,
    /// Brokers that have an address.
    reachable: BTreeSet<i32>,
    /// Until when no leader is told where we are.
    leaders_only: Option<Instant>,
    /// Counts answers, to serve first who has waited longest.
    served: u64,
    /// An answer was given out to its end: its partition may be asked for again.
    has_room: bool,
    /// Something was wanted that the memory had no room for.
    no_room: bool,
    random: fastrand::Rng,
}

/// What is under way with a broker, and what it is like.
#[derive(Debug, Default)]
struct Broker {
    session: Session,
    asked: Option<Asked>,
    /// It holds us back (quota), until then.
    throttled: Option<Instant>,
    /// Answers that came at once and told nothing, in a row, and until when it
    /// is left alone for them.
    hollow: u32,
    rests: Option<Instant>,
    /// Partitions of which one may be why an answer was longer than what is
    /// accepted: asked for one at a time.
    suspects: BTreeSet<AssignmentEpoch>,
}

impl Broker {
    /// When it may be asked again.
    fn free_at(&self) -> Option<Instant> {
        self.throttled.max(self.rests)
    }
}

/// A request that is under way.
#[derive(Debug)]
struct Asked {
    max_bytes: usize,
    /// Before this moment a broker that has nothing to tell does not answer.
    not_empty_before: Instant,
    /// It named everything that was wanted.
    is_whole: bool,
    /// In the order of their keys.
    partitions: Vec<AskedPartition>,
}

#[derive(Clone, Debug)]
struct AskedPartition {
    epoch: AssignmentEpoch,
    key: Key,
    offset: i64,
    is_answered: bool,
}

/// What the shell is to do after an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// What is known of the leaders is out of date.
    pub(super) refresh: bool,
    /// Leaders that the broker named.
    pub(super) moves: Vec<Move>,
    /// An error code that Kafka does not have: whoever answers it is not to be
    /// trusted any further on this connection.
    pub(super) unknown_code: Option<i16>,
}

/// The ends of a partition, as a broker tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    end_offset: i64,
    log_start: i64,
}

impl Plan {
    pub(super) fn new(isolation: Isolation, rack: Arc<str>, seed: u64) -> Self {
        Self {
            isolation,
            rack,
            slots: BTreeMap::new(),
            turn: VecDeque::new(),
            held_back: BTreeSet::new(),
            brokers: BTreeMap::new(),
            reachable: BTreeSet::new(),
            leaders_only: None,
            served: 0,
            has_room: false,
            no_room: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    // What the worker wants.

    pub(super) fn start(&mut self, from: ReadFrom) {
        let epoch = from.epoch;
        self.stop(epoch);
        self.slots.insert(epoch, Slot::new(from));
    }

    pub(super) fn stop(&mut self, epoch: AssignmentEpoch) {
        if let Some(slot) = self.slots.remove(&epoch) {
            self.turn.retain(|&other| other != epoch);
            if let Some(moment) = slot.not_before {
                self.held_back.remove(&(moment, epoch));
            }
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
        if let Some(moment) = slot.not_before {
            self.held_back.remove(&(moment, epoch));
        }
        slot.rewind(offset, not_before);
        if let Some(moment) = not_before {
            self.held_back.insert((moment, epoch));
        }
        self.enlist(epoch);
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
        self.reachable = cluster.brokers.keys().copied().collect();
        // What is known of brokers does not grow with those that ever were.
        let reachable = &self.reachable;
        self.brokers
            .retain(|id, broker| broker.asked.is_some() || reachable.contains(id));
        let mut others = Vec::new();
        for (&epoch, slot) in &mut self.slots {
            if slot.follow(cluster) {
                others.push(epoch);
            }
        }
        for epoch in others {
            self.enlist(epoch);
        }
        Effects {
            refresh: self.slots.values().any(|slot| slot.leader.is_none()),
            ..Effects::default()
        }
    }

    /// As [`Plan::follow`], for one partition.
    pub(super) fn follow_one(&mut self, epoch: AssignmentEpoch, cluster: &ClusterSnapshot) {
        if let Some(slot) = self.slots.get_mut(&epoch)
            && slot.follow(cluster)
        {
            self.enlist(epoch);
        }
    }

    /// The brokers that a partition is to be read from.
    pub(super) fn brokers(&mut self, now: Instant) -> Vec<i32> {
        let mut brokers = BTreeSet::new();
        for slot in self.slots.values_mut() {
            slot.expire(now);
            if slot.wants() {
                brokers.extend(slot.broker());
            }
        }
        brokers.into_iter().collect()
    }

    /// Whether a partition is read from `broker`, be it paused.
    pub(super) fn reads_from(&self, broker: i32) -> bool {
        self.slots
            .values()
            .any(|slot| slot.broker() == Some(broker))
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
        let state = self.brokers.entry(broker).or_default();
        let is_free = state.free_at().is_none_or(|moment| moment <= now);
        if state.asked.is_some() || !is_free {
            return None;
        }
        let mut wanted = self.wanted(broker, now);
        if wanted.hungry.is_empty() && wanted.fed.is_empty() {
            return None;
        }
        let Some(max_bytes) = self.room_for(&mut wanted, room) else {
            self.drop_held_back(now);
            return None;
        };
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
        let mut named = Vec::with_capacity(slots.len());
        let mut partitions = Vec::with_capacity(slots.len());
        for (_, _, epoch) in slots {
            let slot = self.slots.get_mut(&epoch)?;
            slot.asked_of = Some(broker);
            let key = slot.key();
            named.push((key.clone(), slot.request(per_partition.max(slot.needs))));
            partitions.push(AskedPartition {
                epoch,
                key,
                offset: slot.fetch_offset,
                is_answered: false,
            });
        }
        partitions.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let max_wait = if wanted.is_one_left_out {
            SHORT_POLL
        } else {
            wanted.longest_wait
        };
        let state = self.brokers.entry(broker).or_default();
        if largest > 0 || !state.suspects.is_empty() {
            // Only in a whole request does the order count.
            state.session.restart();
        }
        let portion = state.session.portion(named);
        state.asked = Some(Asked {
            max_bytes,
            // Clocks do not all go the same.
            not_empty_before: now + max_wait / 2,
            is_whole: portion.is_whole(),
            partitions,
        });
        let tells_rack = self.leaders_only.is_none_or(|until| until <= now);
        Some(FetchRequest {
            max_wait,
            min_bytes: 1,
            max_bytes: to_i32(max_bytes),
            isolation: self.isolation,
            session_id: portion.session_id,
            session_epoch: portion.session_epoch,
            by_id: portion.by_id,
            topics: portion.topics,
            forgotten: portion.forgotten,
            rack: if tells_rack {
                Arc::clone(&self.rack)
            } else {
                Arc::default()
            },
        })
    }

    /// What is held of partitions that wait is read again when their time comes:
    /// others could use the memory now.
    fn drop_held_back(&mut self, now: Instant) {
        for slot in self.slots.values_mut() {
            if slot.is_held_back(now) && slot.held() > 0 {
                let offset = slot.resume_offset();
                slot.drop_held(offset);
                self.has_room = true;
            }
        }
    }

    fn wanted(&mut self, broker: i32, now: Instant) -> Wanted {
        let mut wanted = Wanted {
            hungry: Vec::new(),
            fed: Vec::new(),
            is_one_left_out: false,
            longest_wait: LONG_POLL,
        };
        for slot in self.slots.values() {
            let is_its = slot.broker() == Some(broker);
            if !is_its || !slot.wants() || slot.asked_of.is_some() {
                continue;
            }
            if let Some(moment) = slot.waits_until().filter(|&moment| moment > now) {
                // Its time comes while the broker would still wait.
                wanted.longest_wait = wanted.longest_wait.min(moment - now).max(SHORT_POLL);
                continue;
            }
            let held = slot.held();
            if held >= MOST_ANSWERS {
                wanted.is_one_left_out = true;
            } else if held == 0 {
                wanted.hungry.push(slot.waiting());
            } else {
                wanted.fed.push(slot.waiting());
            }
        }
        if let Some(state) = self.brokers.get_mut(&broker) {
            wanted.keep_one_of(&mut state.suspects);
        }
        wanted
    }

    /// How long the answer may be; takes from `wanted` what there is no room
    /// for.
    fn room_for(&mut self, wanted: &mut Wanted, room: Room) -> Option<usize> {
        let full = (room.share / (2 * room.connections.max(1))).clamp(LEAST_ANSWER, FULL_ANSWER);
        let under_way: usize = self
            .brokers
            .values()
            .filter_map(|broker| broker.asked.as_ref())
            .map(|asked| asked.max_bytes)
            .sum();
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
    pub(super) fn lost(&mut self, broker: i32, now: Instant) {
        if let Some(state) = self.brokers.get_mut(&broker) {
            state.hollow = 0;
            if state.asked.take().is_some() {
                state.session.restart();
            }
        }
        let mut was_preferred = false;
        for slot in self.slots.values_mut() {
            if slot.asked_of == Some(broker) {
                slot.asked_of = None;
            }
            if slot.broker() == Some(broker) {
                was_preferred |= slot.prefer_leader();
            }
        }
        if was_preferred {
            self.leaders_only = Some(now + LEADERS_ONLY);
        }
    }

    /// The answer of `broker` is longer than what is accepted. The first batch
    /// of the first partition that has records is given whole, however long it
    /// is: which one that is shows when each is asked for alone. Then it fails.
    pub(super) fn too_long(&mut self, broker: i32, bytes: i64, limit: usize, now: Instant) {
        let Some(state) = self.brokers.get_mut(&broker) else {
            return;
        };
        let Some(asked) = &state.asked else {
            return;
        };
        let culprit = match &asked.partitions[..] {
            [alone] if state.suspects.contains(&alone.epoch) => alone.clone(),
            several => {
                state.suspects = several.iter().map(|partition| partition.epoch).collect();
                return;
            }
        };
        if let Some(slot) = self.waiting(broker, &culprit, now) {
            // Once may be an accident of the connection.
            slot.corrupt += 1;
            if slot.corrupt < MOST_CORRUPT {
                return;
            }
            slot.trouble = Trouble::Untold(ReadError::TooLong {
                offset: culprit.offset,
                bytes,
                limit,
            });
            self.enlist(culprit.epoch);
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
        let Some(mut asked) = self
            .brokers
            .get_mut(&broker)
            .and_then(|state| state.asked.take())
        else {
            return effects;
        };
        self.served += 1;
        let random = self.random.f64();
        let is_early = now < asked.not_empty_before && answer.throttle.is_zero();
        let has_news = self.take_in(broker, &mut asked, answer, now, fetched_at, &mut effects);
        for partition in &asked.partitions {
            if let Some(slot) = self.slots.get_mut(&partition.epoch)
                && slot.asked_of == Some(broker)
            {
                slot.asked_of = None;
            }
        }
        if let Some(state) = self.brokers.get_mut(&broker) {
            if let [alone] = &asked.partitions[..] {
                state.suspects.remove(&alone.epoch);
            }
            // Asked again at once, it would be asked in a busy loop.
            state.hollow = if is_early && !has_news {
                state.hollow.saturating_add(1)
            } else {
                0
            };
            let failures = state.hollow.saturating_sub(HOLLOW_FREE);
            state.rests = (failures > 0).then(|| now + HOLLOW.delay(failures, random));
        }
        effects
    }

    /// Returns whether anything of it was new.
    fn take_in(
        &mut self,
        broker: i32,
        asked: &mut Asked,
        answer: FetchAnswer,
        now: Instant,
        fetched_at: Coarse,
        effects: &mut Effects,
    ) -> bool {
        let Some(state) = self.brokers.get_mut(&broker) else {
            return false;
        };
        state.throttled = (!answer.throttle.is_zero()).then(|| now + answer.throttle);
        if let Some(error) = ErrorCode::from_code(answer.error) {
            let is_of_session = match error.code {
                SESSION_UNKNOWN => {
                    state.session.forget();
                    true
                }
                SESSION_OUT_OF_STEP | SESSION_NAMES_OTHERWISE => {
                    state.session.restart();
                    true
                }
                _ => {
                    state.session.restart();
                    false
                }
            };
            if is_of_session && !asked.is_whole {
                tracing::debug!(broker, error = error.name, "the fetch session begins anew");
                return false;
            }
            for partition in &asked.partitions {
                self.refused(broker, partition, error, &Ends::UNKNOWN, now, effects);
            }
            return true;
        }
        state.session.answered(answer.session_id);
        let was_held_back = !answer.throttle.is_zero();
        let mut has_news = false;
        let endpoints = answer.endpoints;
        for topic in answer.topics {
            for fetched in topic.partitions {
                let Some(partition) = asked.take(&topic.topic, fetched.partition) else {
                    // Nobody asked, or it was answered already.
                    continue;
                };
                if let Some(leader) = fetched.leader.filter(|_| fetched.error != 0) {
                    effects.moves.push(Move {
                        topic: Arc::clone(&partition.key.topic),
                        topic_id: partition.key.id,
                        partition: partition.key.partition,
                        leader,
                        endpoint: endpoints
                            .iter()
                            .find(|endpoint| endpoint.id == leader.id)
                            .cloned(),
                    });
                }
                has_news |= self.fetched(broker, &partition, fetched, now, fetched_at, effects);
            }
        }
        for partition in asked.partitions.iter().filter(|it| !it.is_answered) {
            if asked.is_whole && !was_held_back {
                self.left_out(broker, partition, now);
            } else if !asked.is_whole
                && let Some(state) = self.brokers.get(&broker)
                && let Some(ends) = state.session.told(&partition.key)
            {
                // In a session that says: nothing is new.
                let as_before = FetchedPartition::without_news(
                    partition.key.partition,
                    ends.end_offset,
                    ends.log_start,
                );
                has_news |= self.fetched(broker, partition, as_before, now, fetched_at, effects);
            }
        }
        has_news
    }

    /// Takes in what an answer says of a partition; returns whether that is new.
    fn fetched(
        &mut self,
        broker: i32,
        asked: &AskedPartition,
        fetched: FetchedPartition,
        now: Instant,
        fetched_at: Coarse,
        effects: &mut Effects,
    ) -> bool {
        let random = self.random.f64();
        let told = Ends::by(&fetched, self.isolation);
        if let Some(error) = ErrorCode::from_code(fetched.error) {
            self.refused(broker, asked, error, &told, now, effects);
            return true;
        }
        if let Some(state) = self.brokers.get_mut(&broker) {
            state.session.tell(&asked.key, told);
        }
        let is_reachable = |broker: &i32| self.reachable.contains(broker);
        let preferred = fetched.preferred.filter(|&other| other != broker);
        let is_preferred_reachable = preferred.is_none_or(|other| is_reachable(&other));
        let Some(slot) = self.waiting(broker, asked, now) else {
            return true;
        };
        if !is_preferred_reachable {
            // It would be named again and again.
            slot.wait(now, random);
            effects.refresh = true;
            return true;
        }
        slot.retry_at = None;
        if let Some(replica) = preferred {
            tracing::debug!(
                partition = %slot.from.partition,
                replica,
                "the leader names a replica to read from"
            );
            slot.prefer(replica, now);
        }
        if let Some(diverging) = fetched.diverging {
            if diverging.end_offset >= asked.offset
                && diverging.epoch >= slot.epochs.before(asked.offset)
            {
                // It does not diverge at all.
                slot.wait(now, random);
            } else {
                slot.diverged(diverging);
            }
            self.enlist(asked.epoch);
            return true;
        }
        if slot.is_probing {
            slot.truncated(asked.offset);
            self.enlist(asked.epoch);
            return true;
        }
        let has_news = self.records(broker, asked, fetched, now, fetched_at);
        has_news || preferred.is_some()
    }

    /// Takes in the records and the ends that an answer has of a partition;
    /// returns whether anything of that is new.
    fn records(
        &mut self,
        broker: i32,
        asked: &AskedPartition,
        fetched: FetchedPartition,
        now: Instant,
        fetched_at: Coarse,
    ) -> bool {
        let isolation = self.isolation;
        let served = self.served;
        let random = self.random.f64();
        let mut told = Ends::by(&fetched, isolation);
        let Some(slot) = self.slots.get_mut(&asked.epoch) else {
            return false;
        };
        if slot.leader.is_some_and(|leader| leader.id != broker) {
            // It may know of an earlier end than the leader does.
            told.end_offset = told.end_offset.max(slot.end_offset.unwrap_or(-1));
        }
        slot.end_offset = Some(told.end_offset);
        let has_records = !fetched.records.is_empty();
        let epochs = &mut slot.epochs;
        let extent = extent(&fetched.records, asked.offset, |epoch, first, next| {
            epochs.read(epoch, first, next);
        });
        let is_stuck =
            has_records && extent.first_is_cut.is_none() && extent.next_offset == asked.offset;
        if slot.failures > 0 && !is_stuck {
            tracing::info!(partition = %slot.from.partition, "the partition is served again");
            slot.failures = 0;
        }
        if let Some(needs) = extent.first_is_cut {
            slot.corrupt += 1;
            if slot.corrupt < MOST_CORRUPT && needs <= MOST_FOR_ONE_BATCH {
                slot.needs = needs;
            } else {
                slot.trouble = Trouble::Untold(ReadError::Corrupt {
                    offset: asked.offset,
                    broker: Some(broker),
                    what: format!(
                        "the broker gives {} bytes of a batch that says it has {needs}",
                        fetched.records.len()
                    ),
                });
                self.enlist(asked.epoch);
            }
            return true;
        }
        slot.needs = 0;
        slot.is_active = has_records || told.end_offset > extent.next_offset;
        if has_records {
            slot.served = served;
        }
        if is_stuck {
            // Nothing that leads on, though there are bytes: they are read, which
            // tells what is wrong with them, but not asked for in a busy loop.
            slot.wait(now, random);
        }
        let is_news = has_records || slot.told != Some(told.end_offset);
        if !is_news {
            return false;
        }
        if let Some(last) = slot.answers.back_mut().filter(|_| !has_records) {
            // Only the end is news: what is there already tells it.
            let is_news = last.end_offset != told.end_offset;
            last.end_offset = told.end_offset;
            last.log_start = told.log_start;
            last.fetched_at = fetched_at;
            return is_news;
        }
        slot.fetch_offset = extent.next_offset;
        slot.answers.push_back(Answer {
            broker,
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
        true
    }

    /// A whole answer says nothing of a partition that was asked for.
    fn left_out(&mut self, broker: i32, asked: &AskedPartition, now: Instant) {
        let random = self.random.f64();
        if let Some(state) = self.brokers.get_mut(&broker) {
            // Whether it is in the session, nobody knows.
            state.session.restart();
        }
        if let Some(slot) = self.waiting(broker, asked, now)
            && slot.wait(now, random)
        {
            tracing::info!(
                partition = %slot.from.partition,
                broker,
                "the broker's answer leaves the partition out; asking again"
            );
        }
    }

    /// The partition, where it still waits for what was asked.
    fn waiting(&mut self, broker: i32, asked: &AskedPartition, now: Instant) -> Option<&mut Slot> {
        self.slots
            .get_mut(&asked.epoch)
            .filter(|slot| slot.asked_of == Some(broker) && slot.topic_id == asked.key.id)
            .filter(|slot| slot.wants() && slot.fetch_offset == asked.offset)
            .filter(|slot| slot.not_before.is_none_or(|moment| moment <= now))
    }

    fn refused(
        &mut self,
        broker: i32,
        asked: &AskedPartition,
        error: ErrorCode,
        told: &Ends,
        now: Instant,
        effects: &mut Effects,
    ) {
        let random = self.random.f64();
        let Some(slot) = self.waiting(broker, asked, now) else {
            return;
        };
        if error.class == Class::Unknown {
            effects.unknown_code = Some(error.code);
        }
        let is_of_follower = slot.is_with_follower();
        let may_be_better_elsewhere =
            error.class.passes() || matches!(error.class, Class::OutOfRange);
        if is_of_follower && may_be_better_elsewhere {
            // The leader knows whether that is so.
            slot.prefer_leader();
            slot.wait(now, random);
            self.leaders_only = Some(now + LEADERS_ONLY);
            effects.refresh |= error.class == Class::RefreshMetadata;
            tracing::debug!(
                partition = %asked.key.topic,
                broker,
                error = error.name,
                "the replica cannot serve the partition; asking the leader"
            );
            return;
        }
        if slot.is_probing && error.class == Class::OutOfRange {
            // Below the log's start nothing can be compared.
            slot.truncated(asked.offset);
            self.enlist(asked.epoch);
            return;
        }
        let failure = if error.code == CORRUPT_MESSAGE {
            slot.corrupt += 1;
            (slot.corrupt >= MOST_CORRUPT).then(|| ReadError::Corrupt {
                offset: asked.offset,
                broker: Some(broker),
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
                    topic: Arc::clone(&asked.key.topic),
                },
                _ => ReadError::Refused {
                    code: error.code,
                    name: error.name.into(),
                },
            })
        };
        if let Some(failure) = failure {
            slot.trouble = Trouble::Untold(failure);
            self.enlist(asked.epoch);
            return;
        }
        if slot.wait(now, random) {
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
        while let Some(&(moment, epoch)) = self.held_back.first() {
            if moment > now {
                break;
            }
            self.held_back.pop_first();
            self.enlist(epoch);
        }
        while let Some(epoch) = self.turn.pop_front() {
            let random = self.random.f64();
            let Some(slot) = self.slots.get_mut(&epoch) else {
                continue;
            };
            slot.is_in_turn = false;
            if slot.from.paused || slot.is_held_back(now) {
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
            .chain(self.held_back.first().map(|&(moment, _)| moment))
            .chain(self.brokers.values().filter_map(Broker::free_at))
            .filter(|&moment| moment > now)
            .min()
    }
}

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

impl Wanted {
    /// Where one of some partitions may have an answer that is too long, asks
    /// for one of them alone.
    fn keep_one_of(&mut self, suspects: &mut BTreeSet<AssignmentEpoch>) {
        let Self { hungry, fed, .. } = self;
        let is_wanted = |epoch: &AssignmentEpoch| {
            let mut all = hungry.iter().chain(fed.iter());
            all.any(|(_, _, wanted)| wanted == epoch)
        };
        suspects.retain(is_wanted);
        if let Some(&first) = suspects.first() {
            for list in [hungry, fed] {
                list.retain(|&(_, _, epoch)| epoch == first);
            }
            self.is_one_left_out = true;
        }
    }
}

impl Ends {
    const UNKNOWN: Self = Self {
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
    /// The partition that an answer names, once.
    fn take(&mut self, topic: &TopicKey, partition: i32) -> Option<AskedPartition> {
        let is_of = |key: &Key| match topic {
            TopicKey::Name(name) => *name == key.topic,
            TopicKey::Id(id) => *id == key.id,
        };
        // Few topics, each with a stretch of its own.
        let mut from = 0;
        while let Some(first) = self.partitions.get(from) {
            let is_same = |other: &AskedPartition| {
                other.key.id == first.key.id && other.key.topic == first.key.topic
            };
            let stretch = self.partitions.get(from..).unwrap_or_default();
            let len = stretch.partition_point(is_same);
            if is_of(&first.key) {
                let stretch = stretch.get(..len).unwrap_or_default();
                let place = stretch.binary_search_by_key(&partition, |it| it.key.partition);
                let found = self.partitions.get_mut(from + place.ok()?)?;
                if found.is_answered {
                    return None;
                }
                found.is_answered = true;
                return Some(found.clone());
            }
            from += len.max(1);
        }
        None
    }
}

fn to_i32(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
