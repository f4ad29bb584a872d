//! Who works on what, where any worker may work on any partition: in key order,
//! in none, and by asynchronous handlers.
//!
//! All decisions of the pool are here, as functions of state, event and time;
//! [`Pool`](super::Pool) puts a lock around them and waits. What must hold:
//!
//! - No two workers have records of one lane at a time, and those of a lane are
//!   handled in their order.
//! - The watermark of a partition passes a record only once it is done.
//! - A record that waits for a retry, or for its dead letter, holds up its lane
//!   and nothing else.
//! - A partition is given back only once nobody has a record of it and every
//!   worker that knew of it has said goodbye. Once that was asked for, only what
//!   lies before the last record that somebody had is started, for a while, and
//!   nothing once the member has given it up.
//! - What is read ahead of a partition has a bound in records, in bytes and in
//!   distance from the watermark.
//! - Partitions take turns.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backlog::{Backlog, Failure, Lanes, Taken, Task};
use super::seat::{Hand, Place, Seat};
use crate::clock::Coarse;
use crate::config::{OnExhausted, RetryPolicy};
use crate::event::{ConsumedRange, EventKind};
use crate::handler::Outcome;
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::report::{StopReason, WorkerStop};
use crate::runtime::events::EventSink;
use crate::source::Waker;
use crate::worker::completed::{Completed, MOST_RUNS};
use crate::worker::dead_letter::{Dead, DeadLetters, Next, Sent, refused, unwritten};
use crate::worker::lane::{LaneStart, ReleaseCause};
use crate::worker::retry::{self, Hope, Verdict};
use crate::worker::run::WorkerExit;
use crate::worker::tracker::{CountBudget, Standing, Tracker};

/// Records of a partition that were read and that nobody has had yet: with more
/// of them it is not read on, with half of them it is.
pub(crate) const MOST_UNTAKEN: usize = 16_384;

/// How far a partition is read beyond its watermark: so many records may be
/// delivered again after a crash, and that far a lane that waits lets the others
/// get ahead of it.
const MOST_AHEAD: u64 = 1_048_576;

/// A worker that has been at one record for that long is relieved of the others
/// that it took with it.
pub(crate) const SLOW: Duration = Duration::from_millis(2);

/// Empty batches that wait to be used again.
const MOST_SPARE: usize = 8;

/// What the schedule needs to know of the run.
pub(crate) struct Rules {
    /// How long a partition that is given back in order is worked on up to the
    /// last record that somebody had: what lies before that and is not done
    /// would be done by the next owner, and all that follows done again.
    pub(crate) drain: Duration,
    /// What keeps its order.
    pub(crate) lanes: Lanes,
    /// What is completed beyond the watermarks is told to the trackers.
    pub(crate) remember_completed: bool,
    /// Records that an asynchronous worker has in its handler at a time.
    #[cfg(feature = "tokio")]
    pub(crate) hands: usize,
    pub(crate) retry: RetryPolicy,
    pub(crate) dead_letters: Option<Arc<dyn DeadLetters>>,
    pub(crate) count: Option<Arc<CountBudget>>,
    pub(crate) events: EventSink,
}

/// What a worker is to do next.
pub(crate) struct Work {
    pub(crate) partition: TopicPartition,
    pub(crate) tracker: Arc<Tracker>,
    /// The batches that the tasks in its hand name.
    pub(crate) batches: Vec<Arc<Batch>>,
    /// It has not had anything of that partition before.
    pub(crate) is_new: bool,
}

/// A partition that a worker knows of and that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Goodbye {
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) partition: TopicPartition,
    pub(crate) cause: ReleaseCause,
}

/// A partition that is being given back.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    cause: ReleaseCause,
    since: Instant,
    /// Nothing at or after that number is started any more.
    below: u64,
    /// Those who know of it were called to say goodbye.
    is_called: bool,
}

struct Part {
    partition: TopicPartition,
    tracker: Arc<Tracker>,
    backlog: Backlog,
    paused: bool,
    leaving: Option<Leaving>,
    is_in_turn: bool,
    /// It has as much as it may have, and is not read on.
    is_full: bool,
    /// The workers that have had something of it.
    known_by: BTreeSet<usize>,
    /// Letters that are under way.
    writing: usize,
    /// What was in a handler that did not come to its end, until somebody has it
    /// again: it was handed over, and is not completed.
    let_go: BTreeSet<u64>,
    consumed: Option<ConsumedRange>,
    position: i64,
}

impl Part {
    fn is_eligible(&self) -> bool {
        match self.leaving {
            _ if self.tracker.is_given_up() => false,
            None => self.backlog.ready() > 0 && !self.paused,
            Some(leaving) => self.backlog.has_ready(leaving.below) && !self.paused,
        }
    }

    /// It is to be given back, or the member has given it up already, which the
    /// reader will hear of.
    fn is_leaving(&self) -> bool {
        self.leaving.is_some() || self.tracker.is_given_up()
    }

    /// Numbers at or after that are not taken.
    fn below(&self) -> u64 {
        self.leaving.map_or(u64::MAX, |leaving| leaving.below)
    }

    /// It leaves, and nobody has or takes anything of it any more.
    fn is_drained(&self) -> bool {
        self.leaving.is_some_and(|leaving| {
            let is_over = self.tracker.is_given_up() || self.paused;
            self.backlog.in_hand() == 0 && (is_over || !self.backlog.has_ready(leaving.below))
        })
    }

    /// Notes that records are done, `bytes` long altogether.
    fn completed(&mut self, records: u64, first: i64, last: i64, bytes: u64) {
        ConsumedRange::note(&mut self.consumed, &self.partition, records, first, last);
        self.stands(records, bytes);
    }

    /// Tells the tracker what is completed beyond the watermark.
    fn note_completed(&self, left_out: Option<&Arc<Completed>>) {
        let mut completed = self.backlog.completed(MOST_RUNS);
        if let Some(left_out) = left_out {
            completed.extend(left_out, self.backlog.next_offset());
        }
        self.tracker.set_completed_beyond(Arc::new(completed));
    }

    /// Tells the tracker where the partition stands.
    fn stands(&mut self, completed: u64, bytes: u64) {
        let (watermark, timestamp) = self.backlog.front();
        // What nobody has to work on is as good as handed over.
        self.position = self.position.max(watermark);
        self.tracker.stands(&Standing {
            position: self.position,
            watermark,
            timestamp,
            in_flight: (self.backlog.in_hand() + self.backlog.waiting() + self.let_go.len()) as u64,
            completed,
            bytes,
        });
    }
}

/// A record whose handler did not say done.
#[derive(Clone, Copy, Debug)]
struct Failed {
    worker: usize,
    epoch: AssignmentEpoch,
    task: Task,
    offset: i64,
    bytes: u64,
}

/// All partitions, and the workers' hands.
pub(crate) struct Schedule {
    rules: Rules,
    parts: HashMap<AssignmentEpoch, Part>,
    /// Partitions with something to take, in turn.
    turn: VecDeque<AssignmentEpoch>,
    /// Records that wait, and until when.
    due: BinaryHeap<Reverse<(Instant, AssignmentEpoch, u64)>>,
    /// Records whose letters are under way.
    writing: Vec<(AssignmentEpoch, u64)>,
    seats: BTreeMap<Place, Arc<Seat>>,
    /// What wakes the workers that do not wait on the pool's condition.
    bells: BTreeMap<usize, Waker>,
    /// Those of them that have found nothing and wait for something.
    idle: VecDeque<usize>,
    /// Partitions that may be read on.
    thirsty: Vec<AssignmentEpoch>,
    /// Something happened that the reader waits for.
    is_news: bool,
    /// Workers have to say goodbye.
    is_parting: bool,
    /// Somebody had no leave to take what there was.
    is_counted_out: bool,
    spare: Vec<Batch>,
    /// Batches that are done with, for a moment.
    batches: Vec<Arc<Batch>>,
    taken: Taken,
    most_bytes: usize,
    /// Wakes the reader, to whom letters tell what became of them too.
    waker: Waker,
    random: fastrand::Rng,
}

impl Schedule {
    pub(crate) fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            parts: HashMap::new(),
            turn: VecDeque::new(),
            due: BinaryHeap::new(),
            writing: Vec::new(),
            seats: BTreeMap::new(),
            bells: BTreeMap::new(),
            idle: VecDeque::new(),
            thirsty: Vec::new(),
            is_news: false,
            is_parting: false,
            is_counted_out: false,
            spare: Vec::new(),
            batches: Vec::new(),
            taken: Taken::default(),
            most_bytes: usize::MAX,
            waker: Waker::new(|| {}),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    // The reader's part.

    /// Who is to be woken when there is news, or a letter was written.
    pub(crate) fn set_waker(&mut self, waker: Waker) {
        self.waker = waker;
    }

    /// A partition begins.
    pub(crate) fn start(&mut self, start: &LaneStart) {
        let mut backlog = Backlog::new(start.offset, self.rules.lanes);
        if let Some(failed) = &start.failed {
            backlog.failed_before(failed.offset, failed.attempts);
        }
        let part = Part {
            partition: start.partition.clone(),
            tracker: Arc::clone(&start.tracker),
            backlog,
            paused: start.paused,
            leaving: None,
            is_in_turn: false,
            is_full: false,
            known_by: BTreeSet::new(),
            writing: 0,
            let_go: BTreeSet::new(),
            consumed: None,
            position: start.offset,
        };
        self.parts.insert(start.epoch, part);
    }

    /// Bytes that the partitions may hold together. Each may hold its part of
    /// half of that; the rest is for what is being fetched.
    pub(crate) fn share(&mut self, bytes: usize) {
        self.most_bytes = bytes / (2 * self.parts.len().max(1));
    }

    /// Tells the trackers what is completed beyond the watermarks, where that is
    /// to be remembered. Of what was not read yet, `left_out` knows it: an
    /// earlier owner had completed that, and it will not be handed over.
    pub(crate) fn note_completed(&self, left_out: &HashMap<AssignmentEpoch, Arc<Completed>>) {
        if self.rules.remember_completed {
            for (epoch, part) in &self.parts {
                part.note_completed(left_out.get(epoch));
            }
        }
    }

    /// Takes in what was fetched. Says whether the partition has enough for now;
    /// it is named by [`Schedule::take_thirsty`] when it has not any more.
    pub(crate) fn push(&mut self, batch: Batch, slots: &[u16]) -> bool {
        let epoch = batch.epoch;
        let most_bytes = self.most_bytes;
        let Some(part) = self
            .parts
            .get_mut(&epoch)
            .filter(|part| part.leaving.is_none())
        else {
            self.keep(batch);
            return false;
        };
        part.tracker
            .saw_ends(batch.end_offset, batch.log_start, batch.fetched_at);
        let empty = part.backlog.push(batch, slots);
        part.stands(0, 0);
        let backlog = &part.backlog;
        part.is_full = backlog.untaken() >= MOST_UNTAKEN
            || backlog.bytes() >= most_bytes
            || backlog.span() >= MOST_AHEAD;
        let is_full = part.is_full;
        if let Some(empty) = empty {
            self.keep(empty);
        }
        self.enlist(epoch);
        is_full
    }

    /// Partitions that may be read on, and from where.
    pub(crate) fn take_thirsty(&mut self) -> Vec<(AssignmentEpoch, i64)> {
        let thirsty = std::mem::take(&mut self.thirsty);
        thirsty
            .into_iter()
            .filter_map(|epoch| {
                let part = self.parts.get(&epoch)?;
                part.leaving
                    .is_none()
                    .then(|| (epoch, part.backlog.next_offset()))
            })
            .collect()
    }

    /// Batches that are done with.
    pub(crate) fn take_spare(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.spare)
    }

    /// The reader's waker, where it has something to look at since the last
    /// call.
    pub(crate) fn take_news(&mut self) -> Option<Waker> {
        std::mem::take(&mut self.is_news).then(|| self.waker.clone())
    }

    /// Whether workers have to say goodbye since the last call.
    pub(crate) fn take_parting(&mut self) -> bool {
        std::mem::take(&mut self.is_parting)
    }

    pub(crate) fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        if let Some(part) = self.parts.get_mut(&epoch) {
            part.paused = paused;
            self.enlist(epoch);
        }
    }

    /// Partitions are to be given back. Where that is in order, what lies before
    /// the last record that somebody had is worked off first, for a while;
    /// otherwise nothing of them is started any more.
    /// [`Schedule::take_released`] tells when they are free.
    pub(crate) fn release(
        &mut self,
        epochs: &[AssignmentEpoch],
        cause: ReleaseCause,
        now: Instant,
    ) {
        for epoch in epochs {
            if let Some(part) = self.parts.get_mut(epoch) {
                // What is lost stays lost, whatever becomes of the run.
                let was_lost = part
                    .leaving
                    .is_some_and(|leaving| leaving.cause == ReleaseCause::Lost);
                if was_lost {
                    continue;
                }
                let is_orderly = matches!(cause, ReleaseCause::Revoked | ReleaseCause::Moved);
                part.leaving = Some(Leaving {
                    cause,
                    since: now,
                    below: if is_orderly {
                        part.backlog.taken_below()
                    } else {
                        0
                    },
                    is_called: false,
                });
                if cause == ReleaseCause::Repositioned {
                    // It stays, and goes on elsewhere.
                    part.known_by.clear();
                }
            }
        }
        self.cut_off(|epoch, below| epochs.contains(&epoch) && below == 0);
        for &epoch in epochs {
            self.enlist(epoch);
        }
        // Whoever has many records of it in hand has to look after them.
        self.is_parting |= !self.bells.is_empty();
        if cause != ReleaseCause::Revoked {
            self.forget_letters(epochs);
            if cause == ReleaseCause::Lost {
                self.recall();
            }
        }
    }

    /// Takes from the workers what they have not started of partitions that
    /// leave.
    fn cut_off(&mut self, which: impl Fn(AssignmentEpoch, u64) -> bool) {
        let places: Vec<Place> = self.seats.keys().copied().collect();
        for place in places {
            let has = self.seats[&place].with(|hand| hand.epoch);
            let leaving = self.parts.get(&has).and_then(|part| part.leaving);
            if leaving.is_some_and(|leaving| which(has, leaving.below)) {
                self.relieve(place);
            }
        }
    }

    /// Ends the work on partitions that have had the time they may have.
    fn end_drains(&mut self, now: Instant) {
        // Without leave to hand anything over there is nothing to wait for.
        let is_spent = self
            .rules
            .count
            .as_ref()
            .is_some_and(|count| count.is_spent());
        let drain = if is_spent {
            Duration::ZERO
        } else {
            self.rules.drain
        };
        let mut over = Vec::new();
        for (&epoch, part) in &mut self.parts {
            if let Some(leaving) = &mut part.leaving
                && leaving.below > 0
                && now >= leaving.since + drain
            {
                leaving.below = 0;
                over.push(epoch);
            }
        }
        if over.is_empty() {
            return;
        }
        self.cut_off(|epoch, _| over.contains(&epoch));
        for epoch in over {
            self.enlist(epoch);
        }
    }

    fn recall(&self) {
        if let Some(letters) = &self.rules.dead_letters {
            letters.recall();
        }
    }

    fn forget_letters(&mut self, epochs: &[AssignmentEpoch]) {
        let parts = &mut self.parts;
        let before = self.writing.len();
        self.writing.retain(|(epoch, _)| {
            let is_theirs = epochs.contains(epoch);
            if let (true, Some(part)) = (is_theirs, parts.get_mut(epoch)) {
                part.writing -= 1;
            }
            !is_theirs
        });
        // What became of them does not complete their records.
        self.give_back_count(before - self.writing.len());
    }

    /// The partitions that are free now. `left_out` is as for
    /// [`Schedule::note_completed`].
    pub(crate) fn take_released(
        &mut self,
        now: Instant,
        left_out: &HashMap<AssignmentEpoch, Arc<Completed>>,
    ) -> Vec<Goodbye> {
        self.end_drains(now);
        let patience = self.rules.dead_letters.as_ref().map(|l| l.patience());
        let late: Vec<AssignmentEpoch> = self
            .parts
            .iter()
            .filter(|(_, part)| {
                let leaving = part.leaving.zip(patience);
                part.writing > 0
                    && leaving.is_some_and(|(leaving, patience)| now >= leaving.since + patience)
            })
            .map(|(epoch, _)| *epoch)
            .collect();
        if !late.is_empty() {
            self.recall();
            self.forget_letters(&late);
        }
        let mut free: Vec<AssignmentEpoch> = self
            .parts
            .iter()
            .filter(|(_, part)| part.is_drained() && part.writing == 0 && part.known_by.is_empty())
            .map(|(epoch, _)| *epoch)
            .collect();
        free.sort_unstable();
        free.into_iter()
            .filter_map(|epoch| {
                let part = self.parts.remove(&epoch)?;
                part.tracker.set_worker(None);
                if self.rules.remember_completed {
                    // For the last commit of it.
                    part.note_completed(left_out.get(&epoch));
                }
                Some(Goodbye {
                    epoch,
                    partition: part.partition,
                    cause: part.leaving?.cause,
                })
            })
            .collect()
    }

    /// What was completed of each since the last call.
    pub(crate) fn take_consumed(&mut self) -> Vec<ConsumedRange> {
        self.parts
            .values_mut()
            .filter_map(|part| part.consumed.take())
            .collect()
    }

    /// Tells the trackers which record has been in a handler for longest.
    pub(crate) fn show_hands(&self) {
        let mut oldest: HashMap<AssignmentEpoch, (Coarse, usize)> = HashMap::new();
        for (&Place { worker, .. }, seat) in &self.seats {
            let busy = seat.with(|hand| hand.is_busy.then_some((hand.epoch, hand.since)));
            if let Some((epoch, since)) = busy {
                let before = oldest.entry(epoch).or_insert((since, worker));
                *before = (*before).min((since, worker));
            }
        }
        for (epoch, part) in &self.parts {
            part.tracker.has_in_hand(oldest.get(epoch).copied());
        }
    }

    /// Takes over what became of letters that were under way.
    pub(crate) fn take_deliveries(&mut self, now: Instant) -> Option<WorkerExit> {
        let mut told = Vec::new();
        let parts = &mut self.parts;
        self.writing.retain(|&(epoch, seq)| {
            let Some(part) = parts.get_mut(&epoch) else {
                return false;
            };
            let dead = part.backlog.failure_mut(seq).and_then(|f| f.dead.as_ref());
            let sent = dead.and_then(|dead| dead.delivery.as_ref()?.look());
            if let Some(sent) = sent {
                part.writing -= 1;
                told.push((epoch, seq, sent));
                return false;
            }
            true
        });
        told.into_iter()
            .find_map(|(epoch, seq, sent)| self.letter_sent(epoch, seq, &sent, now))
    }

    fn letter_sent(
        &mut self,
        epoch: AssignmentEpoch,
        seq: u64,
        sent: &Sent,
        now: Instant,
    ) -> Option<WorkerExit> {
        let chance = self.random.f64();
        let part = self.parts.get_mut(&epoch)?;
        let (batch, index) = part.backlog.find(seq)?;
        let offset = batch.entries.get(index)?.offset;
        let bytes = batch.bytes_of(index, index + 1);
        drop(batch);
        let failure = part.backlog.failure_mut(seq)?;
        let dead = failure.dead.as_mut()?;
        let next = dead.sent(sent, &self.rules.retry, now, chance);
        let (attempt, error) = (failure.attempts, dead.error.clone());
        let partition = part.partition.clone();
        match next {
            Next::Completed => {
                part.backlog.waits_no_more(seq);
                let done = part.backlog.done(seq);
                part.tracker.dead_lettered();
                part.completed(1, offset, offset, bytes);
                self.keep_shared(done);
                self.enlist(epoch);
                self.look_for_thirst(epoch);
                self.rules.events.send(
                    None,
                    EventKind::RecordDeadLettered {
                        partition,
                        offset,
                        attempt,
                        error,
                    },
                );
                None
            }
            _ if part.is_leaving() => None,
            Next::Again { not_before } => {
                self.due
                    .push(Reverse((not_before.unwrap_or(now), epoch, seq)));
                if not_before.is_some() {
                    let what = self.unwritten(&partition, offset, sent);
                    self.rules
                        .events
                        .warn(format!("{what}; it is tried again, and its lane waits"));
                }
                None
            }
            Next::GiveUp => {
                let what = self.unwritten(&partition, offset, sent);
                Some(exhausted(
                    partition,
                    offset,
                    attempt,
                    format!("{error}; {what}"),
                ))
            }
        }
    }

    fn unwritten(&self, partition: &TopicPartition, offset: i64, sent: &Sent) -> String {
        let letters = self.rules.dead_letters.as_deref();
        unwritten(letters, partition, offset, sent)
    }

    // The workers' part.

    /// A worker begins to take part, with one hand more.
    pub(crate) fn enlist_worker(&mut self, place: Place) -> Arc<Seat> {
        let seat = Arc::new(Seat::new());
        self.seats.insert(place, Arc::clone(&seat));
        seat
    }

    /// A worker takes part no longer. What it had in the handler is left to
    /// whoever asks for it: it has not been completed.
    pub(crate) fn dismiss_worker(&mut self, worker: usize) {
        let of_worker = |place: &&Place| place.worker == worker;
        let places: Vec<Place> = self.seats.keys().filter(of_worker).copied().collect();
        for place in places {
            self.relieve(place);
            self.let_go(place);
            self.seats.remove(&place);
        }
        self.bells.remove(&worker);
        self.idle.retain(|&idle| idle != worker);
        for part in self.parts.values_mut() {
            part.known_by.remove(&worker);
        }
        self.is_news = true;
    }

    /// The record in a worker's handler will not be finished: it is left to
    /// whoever asks for it.
    pub(crate) fn let_go(&mut self, place: Place) {
        let Some(seat) = self.seats.get(&place).cloned() else {
            return;
        };
        let (epoch, busy) = seat.with(|hand| {
            self.settle_hand(hand);
            let busy = hand.is_busy.then(|| hand.tasks.get(hand.finished).copied());
            hand.is_busy = false;
            let busy = busy.flatten();
            if busy.is_some() {
                hand.tasks.truncate(hand.finished);
            }
            (hand.epoch, busy)
        });
        if let (Some(part), Some(task)) = (self.parts.get_mut(&epoch), busy) {
            part.backlog.untake(&[task], true);
            part.let_go.insert(task.seq);
            part.stands(0, 0);
            self.give_back_count(1);
            self.enlist(epoch);
        }
    }

    /// What wakes a worker that does not wait on the pool's condition.
    #[cfg(feature = "tokio")]
    pub(crate) fn set_bell(&mut self, worker: usize, bell: Waker) {
        self.bells.insert(worker, bell);
    }

    /// Such a worker waits for records from now on.
    #[cfg(feature = "tokio")]
    pub(crate) fn waits(&mut self, worker: usize) {
        if !self.idle.contains(&worker) {
            self.idle.push_back(worker);
        }
    }

    /// One that waits for records; it does not any more.
    pub(crate) fn next_idle(&mut self) -> Option<Waker> {
        let worker = self.idle.pop_front()?;
        self.bells.get(&worker).cloned()
    }

    /// Wakes all that do not wait on the pool's condition.
    pub(crate) fn ring_all(&self) {
        self.bells.values().for_each(Waker::wake);
    }

    /// The partitions that a worker knows of.
    pub(crate) fn known_to(&self, worker: usize) -> Vec<TopicPartition> {
        let mut known: Vec<_> = self
            .parts
            .values()
            .filter(|part| part.known_by.contains(&worker))
            .map(|part| part.partition.clone())
            .collect();
        known.sort_unstable();
        known
    }

    /// Partitions that leave, that a worker knows of, and that it will have
    /// nothing of any more.
    pub(crate) fn goodbyes(&self, worker: usize) -> Vec<Goodbye> {
        self.parts
            .iter()
            .filter(|(_, part)| {
                // A handler that takes long holds up the others only as long as
                // they may have something to do after it.
                let is_over = part.leaving.is_some_and(|leaving| leaving.below == 0);
                (is_over || part.is_drained()) && part.known_by.contains(&worker)
            })
            .filter_map(|(&epoch, part)| {
                Some(Goodbye {
                    epoch,
                    partition: part.partition.clone(),
                    cause: part.leaving?.cause,
                })
            })
            .collect()
    }

    /// A worker has said goodbye to these.
    pub(crate) fn said_goodbye(&mut self, worker: usize, goodbyes: &[Goodbye]) {
        for goodbye in goodbyes {
            if let Some(part) = self.parts.get_mut(&goodbye.epoch) {
                part.known_by.remove(&worker);
            }
        }
        self.is_news = true;
    }

    /// Whether a partition leaves that a worker knows of.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_leaving(&self, worker: usize) -> bool {
        self.parts
            .values()
            .any(|part| part.is_leaving() && part.known_by.contains(&worker))
    }

    /// Whether a partition leaves, or has left.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_leaving(&self, epoch: AssignmentEpoch) -> bool {
        self.parts.get(&epoch).is_none_or(Part::is_leaving)
    }

    /// Takes over what a worker has finished since it was last asked.
    pub(crate) fn settle(&mut self, place: Place) {
        let Some(seat) = self.seats.get(&place) else {
            return;
        };
        let seat = Arc::clone(seat);
        seat.with(|hand| self.settle_hand(hand));
    }

    fn settle_hand(&mut self, hand: &mut Hand) {
        let finished = hand.tasks.get(hand.settled..hand.finished);
        let finished = finished.unwrap_or_default();
        let Some(part) = self.parts.get_mut(&hand.epoch) else {
            return;
        };
        if let Some(task) = hand.tasks.get(hand.finished).filter(|_| hand.is_busy)
            && let Some((offset, _)) = part.backlog.measure(task.seq)
        {
            part.position = part.position.max(offset + 1);
        }
        if finished.is_empty() {
            return;
        }
        // Offsets rise with the numbers.
        let numbers = || finished.iter().map(|task| task.seq);
        let offset_of = |seq: Option<u64>| Some(part.backlog.measure(seq?)?.0);
        let first = offset_of(numbers().min()).unwrap_or_default();
        let last = offset_of(numbers().max()).unwrap_or_default();
        for task in finished {
            if let Some(batch) = part.backlog.done(task.seq) {
                self.batches.push(batch);
            }
        }
        let records = finished.len() as u64;
        hand.settled = hand.finished;
        part.position = part.position.max(last + 1);
        part.completed(records, first, last, 0);
        part.tracker.turn_ends(0);
        while let Some(batch) = self.batches.pop() {
            self.keep_shared(Some(batch));
        }
        self.enlist(hand.epoch);
        self.look_for_thirst(hand.epoch);
    }

    /// Takes from a worker what it has not started.
    pub(crate) fn relieve(&mut self, place: Place) {
        let Some(seat) = self.seats.get(&place).cloned() else {
            return;
        };
        let unstarted = seat.with(|hand| {
            self.settle_hand(hand);
            let from = hand.unstarted();
            let is_after_done = !hand.is_busy;
            let unstarted = hand.tasks.split_off(from.min(hand.tasks.len()));
            if let Some(part) = self.parts.get_mut(&hand.epoch) {
                part.backlog.untake(&unstarted, is_after_done);
                part.stands(0, 0);
            }
            self.enlist(hand.epoch);
            unstarted.len()
        });
        self.give_back_count(unstarted);
    }

    /// Takes from workers that are slow what they have not started. Says
    /// whether it did, and whether somebody has something that may have to be
    /// taken later.
    pub(crate) fn relieve_the_slow(&mut self, now: Coarse) -> (bool, bool) {
        let mut has_some = false;
        let mut slow = Vec::new();
        for (&place, seat) in &self.seats {
            let (unstarted, since) = seat.with(|hand| {
                (
                    hand.tasks.len() > hand.unstarted() && hand.is_busy,
                    hand.since,
                )
            });
            if unstarted && now.since(since) >= SLOW {
                slow.push(place);
            }
            has_some |= unstarted;
        }
        let did = !slow.is_empty();
        for place in slow {
            self.relieve(place);
        }
        (did, has_some)
    }

    /// Fills a worker's empty hand with up to `most` records of one partition;
    /// none where there is nothing to do.
    pub(crate) fn take(&mut self, place: Place, most: usize, now: Coarse) -> Option<Work> {
        while let Some(epoch) = self.turn.pop_front() {
            let Some(part) = self.parts.get_mut(&epoch) else {
                continue;
            };
            part.is_in_turn = false;
            if !part.is_eligible() {
                continue;
            }
            let seat = self.seats.get(&place)?;
            let count = self.rules.count.as_ref();
            let allowed = count.map_or(most, |count| count.take(most));
            part.backlog.take(allowed, part.below(), &mut self.taken);
            if !part.let_go.is_empty() {
                let tasks = &self.taken.tasks;
                part.let_go
                    .retain(|seq| !tasks.iter().any(|task| task.seq == *seq));
            }
            let taken = self.taken.tasks.len();
            if let Some(count) = count {
                count.give_back(allowed.saturating_sub(taken));
            }
            let first = self.taken.tasks.first().and_then(|task| {
                let batch = self.taken.batches.get(task.batch())?;
                batch.entries.get(task.index()).map(|entry| entry.offset)
            });
            let work = first.map(|offset| {
                part.position = part.position.max(offset + 1);
                part.stands(0, 0);
                part.tracker.set_worker(Some(place.worker));
                Work {
                    partition: part.partition.clone(),
                    tracker: Arc::clone(&part.tracker),
                    batches: seat.fill(epoch, &mut self.taken, now),
                    is_new: part.known_by.insert(place.worker),
                }
            });
            self.enlist(epoch);
            self.look_for_thirst(epoch);
            if work.is_none() {
                // Without leave to take anything (the count) there is nothing to
                // do, here or elsewhere.
                self.is_counted_out = true;
            }
            return work;
        }
        None
    }

    /// Whether the count of the run was all that kept somebody from taking
    /// something, since the last call.
    pub(crate) fn take_counted_out(&mut self) -> bool {
        std::mem::take(&mut self.is_counted_out)
    }

    /// Whether somebody else could take something now.
    pub(crate) fn has_more(&self) -> bool {
        !self.turn.is_empty()
    }

    /// Lets records be taken whose time has come, and letters be sent.
    pub(crate) fn wake_due(&mut self, now: Instant) {
        while let Some(Reverse((at, epoch, seq))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            let Some(part) = self.parts.get_mut(&epoch) else {
                continue;
            };
            if part.is_leaving() {
                // Whoever has the partition next begins with it anew.
                continue;
            }
            match part.backlog.failure_mut(seq) {
                Some(failure) if failure.dead.is_some() => self.send_letter(epoch, seq),
                Some(_) => {
                    part.backlog.ready_again(seq);
                    part.stands(0, 0);
                    self.enlist(epoch);
                }
                None => {}
            }
        }
    }

    /// When [`Schedule::wake_due`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _, _))| *at)
    }

    /// A handler said something else than done of the record in a worker's
    /// handler. The rest of the worker's hand stays in it, but for those of the
    /// same lane.
    pub(crate) fn outcome(
        &mut self,
        place: Place,
        outcome: Outcome,
        now: Instant,
    ) -> Option<WorkerExit> {
        let seat = self.seats.get(&place).cloned()?;
        let (epoch, task) = seat.with(|hand| {
            self.settle_hand(hand);
            hand.is_busy = false;
            (hand.epoch, hand.tasks.get(hand.finished).copied())
        });
        let task = task?;
        let part = self.parts.get_mut(&epoch)?;
        let (offset, bytes) = part.backlog.measure(task.seq)?;
        part.position = part.position.max(offset + 1);
        let partition = part.partition.clone();
        let is_leaving = part.is_leaving();
        let failed = Failed {
            worker: place.worker,
            epoch,
            task,
            offset,
            bytes,
        };
        if let Outcome::Skip { reason } = outcome {
            seat.with(|hand| {
                hand.finished += 1;
                hand.settled = hand.finished;
            });
            self.skip(&failed, reason);
            return None;
        }
        // Its lane stands still: what was taken of it with this record goes back.
        let followers: Vec<_> = seat.with(|hand| {
            let rest = hand.tasks.get(hand.finished + 1..).unwrap_or_default();
            let followers: Vec<_> = rest
                .iter()
                .take_while(|task| task.follows())
                .copied()
                .collect();
            hand.finished += 1 + followers.len();
            hand.settled = hand.finished;
            followers
        });
        part.backlog.untake(&followers, false);
        self.give_back_count(followers.len());
        let (hope, error, is_dead) = match outcome {
            Outcome::Retry { after, reason } => (Hope::Retry { after }, reason, false),
            Outcome::Reject { reason } => (Hope::None, reason, false),
            Outcome::DeadLetter { reason } => (Hope::None, reason, true),
            Outcome::Stop { reason } => {
                // It waits for the next start: no other worker is to have it
                // while this run comes to its end.
                self.set_aside(epoch, task.seq, Failure::new(task.attempt));
                let stop = StopReason::HandlerStop {
                    partition,
                    offset,
                    reason,
                };
                return Some(WorkerExit::EndsRun(stop, WorkerStop::HandlerStop));
            }
            Outcome::Done | Outcome::Skip { .. } => return None,
        };
        if is_leaving {
            // Whoever has the partition next begins with it anew.
            self.set_aside(epoch, task.seq, Failure::new(task.attempt));
            self.enlist(epoch);
            self.give_back_count(1);
            return None;
        }
        if is_dead {
            return self.dead_letter(&failed, error);
        }
        self.failed(&failed, hope, error, now)
    }

    /// Does with a failed record what the policy says.
    fn failed(
        &mut self,
        failed: &Failed,
        hope: Hope,
        error: String,
        now: Instant,
    ) -> Option<WorkerExit> {
        let &Failed {
            worker,
            epoch,
            task,
            offset,
            ..
        } = failed;
        let part = self.parts.get_mut(&epoch)?;
        let partition = part.partition.clone();
        let policy = &self.rules.retry;
        match retry::decide(policy, task.attempt, hope, now, self.random.f64()) {
            Verdict::Again { not_before } => {
                part.tracker.retried();
                self.set_aside(epoch, task.seq, Failure::new(task.attempt));
                self.due.push(Reverse((not_before, epoch, task.seq)));
                self.give_back_count(1);
                self.rules.events.send(
                    Some(worker),
                    EventKind::RecordRetried {
                        partition,
                        offset,
                        attempt: task.attempt,
                        error,
                    },
                );
                None
            }
            Verdict::Exhausted => match policy.on_exhausted {
                OnExhausted::DeadLetter => self.dead_letter(failed, error),
                OnExhausted::Stop => {
                    self.set_aside(epoch, task.seq, Failure::new(task.attempt));
                    Some(exhausted(partition, offset, task.attempt, error))
                }
                OnExhausted::Skip => {
                    self.skip(failed, error);
                    None
                }
            },
        }
    }

    /// A record is completed without having been worked on.
    fn skip(&mut self, failed: &Failed, error: String) {
        let &Failed {
            worker,
            epoch,
            task,
            offset,
            bytes,
        } = failed;
        let Some(part) = self.parts.get_mut(&epoch) else {
            return;
        };
        let partition = part.partition.clone();
        let done = part.backlog.done(task.seq);
        part.tracker.skipped(1);
        part.completed(1, offset, offset, bytes);
        self.keep_shared(done);
        self.enlist(epoch);
        self.look_for_thirst(epoch);
        self.rules.events.send(
            Some(worker),
            EventKind::RecordSkipped {
                partition,
                offset,
                attempt: task.attempt,
                error,
            },
        );
    }

    /// A record that failed waits from now on, its lane with it.
    fn set_aside(&mut self, epoch: AssignmentEpoch, seq: u64, failure: Failure) {
        if let Some(part) = self.parts.get_mut(&epoch) {
            let done = part.backlog.wait(seq, failure);
            part.stands(0, 0);
            self.keep_shared(done);
            // It may have been the last that kept its batch.
            self.look_for_thirst(epoch);
        }
    }

    fn dead_letter(&mut self, failed: &Failed, error: String) -> Option<WorkerExit> {
        let (epoch, seq, attempts) = (failed.epoch, failed.task.seq, failed.task.attempt);
        let part = self.parts.get_mut(&epoch)?;
        let partition = part.partition.clone();
        let letters = self.rules.dead_letters.as_deref();
        let no_way = refused(letters, &partition);
        let mut failure = Failure::new(attempts);
        let mut exit = None;
        if let Some(why) = no_way {
            let error = format!("{error}; {why}");
            exit = Some(exhausted(partition, failed.offset, attempts, error));
        } else {
            failure.dead = Some(Dead::new(failed.offset, error));
        }
        self.set_aside(epoch, seq, failure);
        if exit.is_none() {
            self.send_letter(epoch, seq);
        }
        exit
    }

    /// Sends the letter of a record that waits. Under the lock of the schedule,
    /// like the release of its partition: it is ours still.
    fn send_letter(&mut self, epoch: AssignmentEpoch, seq: u64) {
        let (Some(part), Some(letters)) = (self.parts.get_mut(&epoch), &self.rules.dead_letters)
        else {
            return;
        };
        let Some((batch, index)) = part.backlog.find(seq) else {
            return;
        };
        let Some(failure) = part.backlog.failure_mut(seq) else {
            return;
        };
        let attempts = failure.attempts;
        if let (Some(dead), Some(record)) = (&mut failure.dead, batch.record(index, attempts)) {
            dead.send(record, letters.as_ref(), self.waker.clone());
            part.writing += 1;
            self.writing.push((epoch, seq));
        }
    }

    fn give_back_count(&self, records: usize) {
        if let Some(count) = &self.rules.count {
            count.give_back(records);
        }
    }

    fn enlist(&mut self, epoch: AssignmentEpoch) {
        let Some(part) = self.parts.get_mut(&epoch) else {
            return;
        };
        if !part.is_in_turn && part.is_eligible() {
            part.is_in_turn = true;
            self.turn.push_back(epoch);
        }
        if let Some(leaving) = part.leaving
            && !leaving.is_called
            && (leaving.below == 0 || part.is_drained())
        {
            part.leaving = Some(Leaving {
                is_called: true,
                ..leaving
            });
            self.is_parting = true;
        }
        if part.is_drained() {
            self.is_news = true;
        }
    }

    fn look_for_thirst(&mut self, epoch: AssignmentEpoch) {
        let Some(part) = self.parts.get_mut(&epoch) else {
            return;
        };
        let backlog = &part.backlog;
        if part.is_full
            && backlog.untaken() <= MOST_UNTAKEN / 2
            && backlog.bytes() <= self.most_bytes / 2
            && backlog.span() <= MOST_AHEAD / 2
        {
            part.is_full = false;
            self.thirsty.push(epoch);
            self.is_news = true;
        }
    }

    fn keep_shared(&mut self, batch: Option<Arc<Batch>>) {
        // Whoever else had it has let go of it, or drops it soon.
        if let Some(batch) = batch.and_then(Arc::into_inner) {
            self.keep(batch);
        }
    }

    fn keep(&mut self, batch: Batch) {
        if self.spare.len() < MOST_SPARE {
            self.spare.push(Batch {
                bytes: bytes::Bytes::new(),
                ..batch
            });
        }
    }
}

fn exhausted(partition: TopicPartition, offset: i64, attempts: u32, error: String) -> WorkerExit {
    let stop = StopReason::RetriesExhausted {
        partition,
        offset,
        attempts,
        error,
    };
    WorkerExit::EndsRun(stop, WorkerStop::RetriesExhausted)
}

#[cfg(test)]
mod many_hands;
