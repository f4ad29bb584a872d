//! What is committed: the watermark of a partition, and everything else that
//! others may know of it while its worker is busy.
//!
//! A record counts when its handler returned, never when it was delivered, so
//! two numbers are kept per assignment of a partition: the *position* (highest
//! offset handed over + 1) and the *watermark* (next offset such that every
//! record below it is completed). Only the watermark is ever committed.
//!
//! The worker that has the lane is the only writer; the member, which stores
//! the watermark for the next commit, and whoever shows numbers are readers.
//! No lock is involved. A late result cannot do harm, by this interleaving:
//!
//! 1. the member gives the partition up (revoke deadline passed, or lost): it
//!    drops the lane with its `Tracker`, and reads that tracker never again;
//! 2. the worker's handler returns and moves the watermark of that tracker:
//!    nobody reads it;
//! 3. the partition comes back: it gets a new epoch and a new `Tracker`, which
//!    the old worker does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::Coarse;
use crate::lag::estimate::distance;
use crate::record::{AssignmentEpoch, NO_TIMESTAMP};
use crate::worker::completed::Completed;
use crate::worker::samples::Samples;
use crate::worker::timing::{CallCounts, HandlerTimes};

/// The position, watermark and ends of one assignment of a partition.
///
/// In partition order records complete in the order in which they were handed
/// over, so the watermark follows each completion.
#[derive(Debug)]
pub(crate) struct Tracker {
    hot: Hot,
    /// The epoch in which the partition became ours. A seek or a reset begins a
    /// new tracker of the same ownership.
    owned_since: AssignmentEpoch,
    /// What the group has committed.
    committed: AtomicI64,
    /// The ends as fetch answers tell them.
    fetched: Ends,
    /// The ends as the reporter asked for them.
    asked: Ends,
    /// Records that are in a handler now, when they are handed over in batches.
    in_hand: AtomicU64,
    /// Records that were handed over and not completed, where several workers
    /// share the partition; `BY_PROGRESS` where one has it.
    shared_in_flight: AtomicU64,
    /// Since when the record is in a handler that has been in one for longest;
    /// `BY_PROGRESS` where the watermark and the turns tell.
    in_hand_since: AtomicU64,
    skipped: AtomicU64,
    dead_lettered: AtomicU64,
    retried: AtomicU64,
    /// Bytes of the records that were completed.
    bytes: AtomicU64,
    /// How many records were completed when the partition was given up.
    given_up_at: AtomicU64,
    /// How often a handler was let in and came back.
    turns: AtomicU64,
    /// A record failed and waits to be handed over again.
    waits: AtomicBool,
    /// The worker that has the lane, or `NO_WORKER`.
    worker: AtomicUsize,
    last_worker: AtomicUsize,
    paused: AtomicBool,
    /// What is completed beyond the watermark, where that is to be remembered.
    /// Locked to take or to put the pointer, and for nothing else.
    completed_beyond: Mutex<Option<Arc<Completed>>>,
    /// A batch of it came, be it an empty one.
    was_read: AtomicBool,
    pub(crate) lag_samples: Samples,
    pub(crate) lead_samples: Samples,
    pub(crate) times: HandlerTimes,
}

/// What is written at every record, in a cache line that no other worker
/// writes to.
#[derive(Debug)]
#[repr(align(64))]
struct Hot {
    position: AtomicI64,
    watermark: AtomicI64,
    completed: AtomicU64,
    /// The timestamp of the record that was handed over last.
    timestamp: AtomicI64,
}

/// The ends of a partition as somebody told them.
#[derive(Debug)]
struct Ends {
    end_offset: AtomicI64,
    log_start: AtomicI64,
    /// When they were told, by the coarse clock.
    at: AtomicU64,
}

impl Ends {
    fn new() -> Self {
        Self {
            end_offset: AtomicI64::new(UNKNOWN),
            log_start: AtomicI64::new(UNKNOWN),
            at: AtomicU64::new(0),
        }
    }

    /// The moment last: who reads it first finds ends that are at least as
    /// young as it says.
    fn tell(&self, end_offset: i64, log_start: i64, at: Coarse) {
        if log_start >= 0 {
            self.log_start.store(log_start, Ordering::Relaxed);
        }
        if end_offset >= 0 {
            self.end_offset.store(end_offset, Ordering::Relaxed);
            self.at.store(at.as_millis(), Ordering::Release);
        }
    }
}

const UNKNOWN: i64 = -1;
const NO_WORKER: usize = usize::MAX;
const NOT_GIVEN_UP: u64 = u64::MAX;
const BY_PROGRESS: u64 = u64::MAX;
const NOBODY: u64 = u64::MAX - 1;

/// What is known of the records of a partition that are in handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hands {
    /// One worker has it: what stands still is in its handler.
    ByProgress,
    /// Several share it, and none has anything of it.
    Empty,
    /// Several share it, and one has been at one record since then.
    Since(Coarse),
}

/// Where a partition stands whose records are shared by several workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) position: i64,
    pub(crate) watermark: i64,
    /// Of the first record that is not completed, if one was read.
    pub(crate) timestamp: Option<i64>,
    /// Records that were handed over and not completed.
    pub(crate) in_flight: u64,
    /// Records that were completed since this was told last, and their bytes.
    pub(crate) completed: u64,
    pub(crate) bytes: u64,
}

/// Everything that a worker writes into a [`Tracker`], for a worker in another
/// process: the one there is read, the one here is told. Counted since the lane
/// came to that worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) position: i64,
    pub(crate) watermark: i64,
    timestamp: i64,
    completed: u64,
    bytes: u64,
    in_hand: u64,
    shared_in_flight: u64,
    in_hand_since: u64,
    skipped: u64,
    dead_lettered: u64,
    retried: u64,
    turns: u64,
    waits: bool,
    was_read: bool,
    end_offset: i64,
    log_start: i64,
    ends_at: u64,
    times: [CallCounts; 4],
}

impl Numbers {
    pub(crate) fn completed(&self) -> u64 {
        self.completed
    }

    /// What is told of a lane that begins at `offset`, before anything is.
    pub(crate) fn at_start(offset: i64) -> Self {
        let tracker = Tracker::new(AssignmentEpoch(0));
        tracker.begin(offset);
        tracker.numbers()
    }
}

impl Tracker {
    /// What a worker of this process has written, to be told to another one.
    pub(crate) fn numbers(&self) -> Numbers {
        // The watermark first: the position is never behind it then.
        let watermark = self.hot.watermark.load(Ordering::Acquire);
        let ends_at = self.fetched.at.load(Ordering::Acquire);
        Numbers {
            watermark,
            position: self.hot.position.load(Ordering::Acquire),
            timestamp: self.hot.timestamp.load(Ordering::Relaxed),
            completed: self.hot.completed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            in_hand: self.in_hand.load(Ordering::Relaxed),
            shared_in_flight: self.shared_in_flight.load(Ordering::Relaxed),
            in_hand_since: self.in_hand_since.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
            retried: self.retried.load(Ordering::Relaxed),
            turns: self.turns.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            was_read: self.was_read.load(Ordering::Relaxed),
            end_offset: self.fetched.end_offset.load(Ordering::Relaxed),
            log_start: self.fetched.log_start.load(Ordering::Relaxed),
            ends_at,
            times: self.times.read(),
        }
    }

    /// Takes over what a worker of another process has written since `earlier`,
    /// which was taken over before. Moments are the machine's.
    pub(crate) fn take_over(&self, now: &Numbers, earlier: &Numbers) {
        let more = |counter: &AtomicU64, now: u64, earlier: u64| {
            add(counter, now.saturating_sub(earlier));
        };
        self.hot.timestamp.store(now.timestamp, Ordering::Relaxed);
        self.in_hand.store(now.in_hand, Ordering::Relaxed);
        self.shared_in_flight
            .store(now.shared_in_flight, Ordering::Relaxed);
        self.in_hand_since
            .store(now.in_hand_since, Ordering::Relaxed);
        self.hot.position.store(now.position, Ordering::Release);
        self.hot.watermark.store(now.watermark, Ordering::Release);
        more(&self.hot.completed, now.completed, earlier.completed);
        more(&self.bytes, now.bytes, earlier.bytes);
        more(&self.skipped, now.skipped, earlier.skipped);
        more(
            &self.dead_lettered,
            now.dead_lettered,
            earlier.dead_lettered,
        );
        more(&self.retried, now.retried, earlier.retried);
        more(&self.turns, now.turns, earlier.turns);
        self.waits.store(now.waits, Ordering::Relaxed);
        if now.was_read {
            self.was_read.store(true, Ordering::Relaxed);
        }
        if now.ends_at > earlier.ends_at {
            let at = Coarse::from_millis(now.ends_at);
            self.fetched.tell(now.end_offset, now.log_start, at);
        }
        self.times.add_since(&now.times, &earlier.times);
    }

    /// The worker that had the lane is gone with its process: nothing of it is in
    /// a handler any more.
    pub(crate) fn worker_is_gone(&self) {
        self.in_hand.store(0, Ordering::Relaxed);
        self.shared_in_flight.store(BY_PROGRESS, Ordering::Relaxed);
        self.in_hand_since.store(BY_PROGRESS, Ordering::Relaxed);
        self.set_worker(None);
    }

    /// A tracker of a partition whose start position is not known yet.
    pub(crate) fn new(owned_since: AssignmentEpoch) -> Self {
        Self {
            hot: Hot {
                position: AtomicI64::new(UNKNOWN),
                watermark: AtomicI64::new(UNKNOWN),
                completed: AtomicU64::new(0),
                timestamp: AtomicI64::new(NO_TIMESTAMP),
            },
            owned_since,
            committed: AtomicI64::new(UNKNOWN),
            fetched: Ends::new(),
            asked: Ends::new(),
            in_hand: AtomicU64::new(0),
            shared_in_flight: AtomicU64::new(BY_PROGRESS),
            in_hand_since: AtomicU64::new(BY_PROGRESS),
            skipped: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            given_up_at: AtomicU64::new(NOT_GIVEN_UP),
            turns: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            worker: AtomicUsize::new(NO_WORKER),
            last_worker: AtomicUsize::new(NO_WORKER),
            paused: AtomicBool::new(false),
            completed_beyond: Mutex::new(None),
            was_read: AtomicBool::new(false),
            lag_samples: Samples::new(),
            lead_samples: Samples::new(),
            times: HandlerTimes::new(),
        }
    }

    /// The epoch in which the partition became ours.
    pub(crate) fn owned_since(&self) -> AssignmentEpoch {
        self.owned_since
    }

    /// The start position is known: nothing is handed over, everything below
    /// it counts as completed.
    pub(crate) fn begin(&self, offset: i64) {
        self.hot.position.store(offset, Ordering::Release);
        self.hot.watermark.store(offset, Ordering::Release);
    }

    /// The record at `offset` goes to a handler now.
    #[inline]
    pub(crate) fn handed_over(&self, offset: i64, timestamp: i64) {
        self.hot.timestamp.store(timestamp, Ordering::Relaxed);
        self.hot.position.store(offset + 1, Ordering::Release);
    }

    /// The record at `offset`, and so all before it, is completed.
    ///
    /// Counted here and not at the end of a turn: a handler that never returns
    /// ends no turn, and what it completed before is counted all the same.
    #[inline]
    pub(crate) fn completed(&self, offset: i64) {
        self.batch_completed(1, offset);
    }

    /// `records` were completed together, the last of them at `last_offset`.
    #[inline]
    pub(crate) fn batch_completed(&self, records: u64, last_offset: i64) {
        self.hot.watermark.store(last_offset + 1, Ordering::Release);
        add(&self.hot.completed, records);
    }

    /// Everything below `next_offset` that is not completed does not exist:
    /// transaction markers, aborted records, holes of compaction.
    pub(crate) fn crossed(&self, next_offset: i64) {
        if next_offset > self.hot.watermark.load(Ordering::Relaxed) {
            self.hot.position.store(next_offset, Ordering::Release);
            self.hot.watermark.store(next_offset, Ordering::Release);
        }
    }

    /// `records` go to a handler together, the first with that timestamp, the
    /// last at `last_offset`.
    pub(crate) fn batch_handed_over(&self, records: usize, timestamp: i64, last_offset: i64) {
        self.in_hand.store(records as u64, Ordering::Relaxed);
        self.hot.timestamp.store(timestamp, Ordering::Relaxed);
        self.hot.position.store(last_offset + 1, Ordering::Release);
    }

    /// The handler returned; what that means is told apart.
    pub(crate) fn batch_returned(&self) {
        self.in_hand.store(0, Ordering::Relaxed);
    }

    /// Where the partition stands, told by those who share its records. They do
    /// so one after the other, under the lock of their schedule.
    pub(crate) fn stands(&self, standing: &Standing) {
        self.shared_in_flight
            .store(standing.in_flight, Ordering::Relaxed);
        if let Some(timestamp) = standing.timestamp {
            self.hot.timestamp.store(timestamp, Ordering::Relaxed);
        }
        self.hot
            .position
            .store(standing.position, Ordering::Release);
        self.hot
            .watermark
            .store(standing.watermark, Ordering::Release);
        add(&self.hot.completed, standing.completed);
        add(&self.bytes, standing.bytes);
    }

    /// So many bytes were completed by one of those who share it.
    pub(crate) fn took_bytes(&self, bytes: u64) {
        add(&self.bytes, bytes);
    }

    /// Which of the workers that share it has been at one record for longest,
    /// and since when.
    pub(crate) fn has_in_hand(&self, oldest: Option<(Coarse, usize)>) {
        if let Some((_, worker)) = oldest {
            self.set_worker(Some(worker));
        }
        let since = oldest.map_or(NOBODY, |(since, _)| since.as_millis());
        self.in_hand_since.store(since, Ordering::Relaxed);
    }

    /// Whether a record is in a handler, and since when.
    pub(crate) fn hands(&self) -> Hands {
        match self.in_hand_since.load(Ordering::Relaxed) {
            BY_PROGRESS => Hands::ByProgress,
            NOBODY => Hands::Empty,
            since => Hands::Since(Coarse::from_millis(since)),
        }
    }

    /// What is completed beyond the watermark, as it was a moment ago.
    pub(crate) fn set_completed_beyond(&self, completed: Arc<Completed>) {
        *self.completed_beyond.lock() = Some(completed).filter(|completed| !completed.is_empty());
    }

    /// As it was told last; what is below the watermark by now included.
    pub(crate) fn completed_beyond(&self) -> Option<Arc<Completed>> {
        self.completed_beyond.lock().clone()
    }

    /// What a batch told of the partition's ends; unknown values change
    /// nothing, but that something came. The worker's part.
    pub(crate) fn saw_ends(&self, end_offset: i64, log_start: i64, at: Coarse) {
        self.fetched.tell(end_offset, log_start, at);
        self.was_read.store(true, Ordering::Relaxed);
    }

    /// What a broker answered to the reporter's question. The reporter's part.
    pub(crate) fn was_told_ends(&self, end_offset: i64, log_start: i64, at: Coarse) {
        self.asked.tell(end_offset, log_start, at);
    }

    /// What the group has committed. The member's part.
    pub(crate) fn set_committed(&self, offset: Option<i64>) {
        let offset = offset.unwrap_or(UNKNOWN);
        self.committed.store(offset, Ordering::Relaxed);
    }

    /// Nobody commits what is completed from now on. The member's part.
    pub(crate) fn give_up(&self) {
        let completed = self.hot.completed.load(Ordering::Relaxed);
        self.given_up_at.store(completed, Ordering::Relaxed);
    }

    /// Whether nobody commits what is completed: nothing more is to be started.
    #[inline]
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up_at.load(Ordering::Relaxed) != NOT_GIVEN_UP
    }

    pub(crate) fn set_worker(&self, worker: Option<usize>) {
        if let Some(worker) = worker {
            self.last_worker.store(worker, Ordering::Relaxed);
        }
        self.worker
            .store(worker.unwrap_or(NO_WORKER), Ordering::Relaxed);
    }

    /// A handler is let in: whatever waited does so no longer.
    pub(crate) fn turn_begins(&self) {
        self.waits.store(false, Ordering::Relaxed);
    }

    /// The handler came back. `bytes` are those of the records that it
    /// completed. Observes lag and lead, as the Java client does at each
    /// drained batch.
    pub(crate) fn turn_ends(&self, bytes: u64) {
        add(&self.turns, 1);
        add(&self.bytes, bytes);
        if let Some(lag) = distance(self.position(), self.end_offset()) {
            self.lag_samples.observe(lag.records);
        }
        if let Some(lead) = distance(self.log_start(), self.position()) {
            self.lead_samples.observe(lead.records);
        }
    }

    /// The record in hand failed and is handed over again after a wait.
    pub(crate) fn retries(&self) {
        self.retried();
        self.begins_to_wait();
    }

    /// One more record failed and is handed over again.
    pub(crate) fn retried(&self) {
        add(&self.retried, 1);
    }

    /// The record in hand waits for something, and is in no handler meanwhile.
    pub(crate) fn begins_to_wait(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// Of the completed records, so many more were skipped.
    pub(crate) fn skipped(&self, records: u64) {
        add(&self.skipped, records);
    }

    /// Of the completed records, one more is in the dead-letter topic.
    pub(crate) fn dead_lettered(&self) {
        add(&self.dead_lettered, 1);
    }

    /// The record that failed is done with: nothing waits any more.
    pub(crate) fn waits_no_more(&self) {
        self.waits.store(false, Ordering::Relaxed);
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Next offset such that every record below it is completed; `None` before
    /// the start position is known.
    pub(crate) fn watermark(&self) -> Option<i64> {
        known(self.hot.watermark.load(Ordering::Acquire))
    }

    /// Highest offset handed over + 1; `None` before the start position is
    /// known.
    pub(crate) fn position(&self) -> Option<i64> {
        known(self.hot.position.load(Ordering::Acquire))
    }

    /// What the group has committed; `None` where that is nothing.
    pub(crate) fn committed(&self) -> Option<i64> {
        known(self.committed.load(Ordering::Relaxed))
    }

    /// The youngest end offset that is known, and when it was told.
    pub(crate) fn end(&self) -> Option<(i64, Coarse)> {
        let ends = self.youngest_ends();
        let at = Coarse::from_millis(ends.at.load(Ordering::Acquire));
        known(ends.end_offset.load(Ordering::Relaxed)).map(|end| (end, at))
    }

    /// Whether anything of the partition was read, be it only that there is
    /// nothing. Until then it is not certain that it can be read from there.
    pub(crate) fn was_read(&self) -> bool {
        self.was_read.load(Ordering::Relaxed)
    }

    pub(crate) fn end_offset(&self) -> Option<i64> {
        self.end().map(|(end, _)| end)
    }

    /// First offset that the broker still has.
    pub(crate) fn log_start(&self) -> Option<i64> {
        let log_start = |ends: &Ends| known(ends.log_start.load(Ordering::Relaxed));
        log_start(self.youngest_ends())
            .or_else(|| log_start(&self.fetched))
            .or_else(|| log_start(&self.asked))
    }

    fn youngest_ends(&self) -> &Ends {
        let at = |ends: &Ends| ends.at.load(Ordering::Acquire);
        if at(&self.asked) > at(&self.fetched) {
            &self.asked
        } else {
            &self.fetched
        }
    }

    /// How old the end offset is; `None` while it is unknown.
    pub(crate) fn end_offset_age(&self, now: Coarse) -> Option<Duration> {
        self.end().map(|(_, at)| now.since(at))
    }

    /// The timestamp of the record that was handed over last, in milliseconds
    /// since 1970.
    pub(crate) fn timestamp(&self) -> Option<i64> {
        let timestamp = self.hot.timestamp.load(Ordering::Relaxed);
        (timestamp != NO_TIMESTAMP).then_some(timestamp)
    }

    pub(crate) fn completed_records(&self) -> u64 {
        self.hot.completed.load(Ordering::Relaxed)
    }

    pub(crate) fn skipped_records(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    pub(crate) fn dead_lettered_records(&self) -> u64 {
        self.dead_lettered.load(Ordering::Relaxed)
    }

    pub(crate) fn retried_records(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Bytes of the completed records.
    pub(crate) fn completed_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Records that were completed after the partition was given up.
    pub(crate) fn discarded_records(&self) -> u64 {
        match self.given_up_at.load(Ordering::Relaxed) {
            NOT_GIVEN_UP => 0,
            given_up_at => self.completed_records().saturating_sub(given_up_at),
        }
    }

    /// Changes whenever a handler came back.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// True where a failed record waits to be handed over again.
    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// The worker that has the lane or had it last.
    pub(crate) fn last_worker(&self) -> Option<usize> {
        let worker = self.last_worker.load(Ordering::Relaxed);
        (worker != NO_WORKER).then_some(worker)
    }

    /// Records that were handed over and not completed, one that waits for a
    /// retry included.
    pub(crate) fn in_flight(&self) -> u64 {
        match self.shared_in_flight.load(Ordering::Relaxed) {
            BY_PROGRESS => {}
            in_flight => return in_flight,
        }
        // Watermark first: read the other way round, a record completed between
        // the two reads would hide one that is still open.
        let watermark = self.watermark();
        if self.position() > watermark {
            self.in_hand.load(Ordering::Relaxed).max(1)
        } else {
            0
        }
    }

    pub(crate) fn worker(&self) -> Option<usize> {
        let worker = self.worker.load(Ordering::Relaxed);
        (worker != NO_WORKER).then_some(worker)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }
}

/// Only the worker that has the lane writes: no read-modify-write.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before + more, Ordering::Relaxed);
}

fn known(offset: i64) -> Option<i64> {
    (offset >= 0).then_some(offset)
}

/// Records that may still be handed over in this run (`count`), shared by all
/// workers. Taken in pieces, so that it costs nothing per record.
#[derive(Debug)]
pub(crate) struct CountBudget {
    left: AtomicI64,
    /// There was no leave for all that could have been handled, since somebody asked.
    was_short: AtomicBool,
    /// Something was taken since somebody asked.
    used: AtomicBool,
}

impl CountBudget {
    pub(crate) fn new(records: u64) -> Self {
        Self {
            left: AtomicI64::new(i64::try_from(records).unwrap_or(i64::MAX)),
            was_short: AtomicBool::new(false),
            used: AtomicBool::new(false),
        }
    }

    /// Takes permission for up to `wanted` records.
    pub(crate) fn take(&self, wanted: usize) -> usize {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let mut granted = 0;
        // Relaxed: the number alone is shared, nothing is published with it.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                granted = wanted.min(left).max(0);
                (granted > 0).then(|| left - granted)
            });
        if granted > 0 {
            self.used.store(true, Ordering::Relaxed);
        }
        if granted < wanted {
            self.was_short.store(true, Ordering::Relaxed);
        }
        usize::try_from(granted).unwrap_or(0)
    }

    /// Whether more records could have been handled than there was leave for, since
    /// this was asked last.
    pub(crate) fn take_was_short(&self) -> bool {
        self.was_short.swap(false, Ordering::Relaxed)
    }

    /// Whether leave was taken since this was asked last.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// All the leave that is left, which nobody needs here.
    pub(crate) fn empty(&self) -> usize {
        usize::try_from(self.left.swap(0, Ordering::Relaxed)).unwrap_or(0)
    }

    /// Whether nothing may be handed over any more, unless something is given
    /// back.
    pub(crate) fn is_spent(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }

    /// Gives back permission for records that were not completed.
    pub(crate) fn give_back(&self, records: usize) {
        self.left
            .fetch_add(i64::try_from(records).unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_moves_at_completion_and_not_at_delivery() {
        let tracker = Tracker::new(AssignmentEpoch(1));
        assert_eq!(tracker.watermark(), None);
        tracker.begin(40);
        tracker.handed_over(40, 1_700_000_000_000);
        assert_eq!(
            (tracker.position(), tracker.watermark()),
            (Some(41), Some(40))
        );
        assert_eq!(tracker.in_flight(), 1);
        tracker.completed(40);
        assert_eq!(
            (tracker.position(), tracker.watermark()),
            (Some(41), Some(41))
        );
        assert_eq!(tracker.in_flight(), 0);
        assert_eq!(tracker.completed_records(), 1);
        tracker.batch_completed(9, 60);
        assert_eq!(
            (tracker.watermark(), tracker.completed_records()),
            (Some(61), 10)
        );
    }

    #[test]
    fn a_gap_at_the_end_is_crossed_and_never_backwards() {
        let tracker = Tracker::new(AssignmentEpoch(1));
        tracker.begin(0);
        tracker.crossed(7);
        assert_eq!(
            (tracker.position(), tracker.watermark()),
            (Some(7), Some(7))
        );
        tracker.crossed(3);
        assert_eq!(tracker.watermark(), Some(7));
    }

    #[test]
    fn a_count_is_shared_exactly_and_takes_back_what_was_not_completed() {
        let budget = CountBudget::new(10);
        assert_eq!(budget.take(7), 7);
        assert_eq!(budget.take(7), 3);
        assert_eq!(budget.take(1), 0);
        budget.give_back(2);
        assert_eq!(budget.take(usize::MAX), 2);
    }
}
