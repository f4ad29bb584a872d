//! The thread that fetches for all workers.
//!
//! To the member it is a worker: it is told by a [`Mailbox`](crate::worker::mailbox::Mailbox),
//! has lanes, and answers by [`FromWorker`]. It handles nothing; what it fetches
//! goes into the pool, and a partition of which the pool has enough is not read
//! on until it has not any more.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::schedule::Goodbye;
use crate::clock::Coarse;
use crate::event::EventKind;
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::report::StopReason;
use crate::report::WorkerStop;
use crate::source::{MAX_PULL_WAIT, MemoryBudget, Pulled, ReadFrom, Source};
use crate::worker::completed::Completed;
use crate::worker::lane::{LaneStart, ReleaseCause};
use crate::worker::mailbox::Wish;
use crate::worker::run::{
    CONSUMED_EVENT_INTERVAL, FromWorker, WorkerContext, WorkerExit, panic_message,
};

/// The number that the member knows the reader by. No worker has it.
pub(crate) const READER: usize = usize::MAX - 1;

/// A partition of which there is enough is not read before it is asked for
/// again; this is for the source, which wants a moment.
const UNTIL_THIRSTY: Duration = Duration::from_hours(24);

/// How often it is shown which record has been in a handler for longest.
const SHOW_INTERVAL: Duration = Duration::from_millis(200);

/// How often it is looked whether partitions that leave have had their time.
const LEAVING_LOOK: Duration = Duration::from_millis(20);

/// A source that cannot be opened is tried again, doubling from the one to the
/// other.
const OPEN_AGAIN: Duration = Duration::from_millis(100);
const OPEN_AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// Runs the reader until it is told to stop. The last thing it does is to
/// report its exit.
pub(crate) fn run(context: WorkerContext, pool: Arc<Pool>, memory: Arc<MemoryBudget>) {
    let reports = context.reports.clone();
    let read = move || {
        let Some(mut reader) = Reader::open(context, pool, memory) else {
            return (WorkerExit::Asked, Vec::new());
        };
        loop {
            if let Some(exit) = reader.step() {
                return (exit, reader.lanes());
            }
        }
    };
    let (exit, lanes) = catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| (broke(panic.as_ref()), Vec::new()));
    // The member is gone only where the whole run is.
    let _ = reports.send(exited(exit, lanes));
}

/// The reader's last report.
pub(crate) fn exited(exit: WorkerExit, lanes: Vec<AssignmentEpoch>) -> FromWorker {
    FromWorker::Exited {
        worker: READER,
        exit,
        lanes: lanes.into_iter().map(|epoch| (epoch, None)).collect(),
    }
}

/// It runs no code of the user's, so this is a mistake of ours, and nothing that
/// is read again would mend it.
fn broke(panic: &(dyn Any + Send)) -> WorkerExit {
    let message = format!(
        "the thread keepup-reader panicked: {}; please report this",
        panic_message(panic)
    );
    let stop = WorkerStop::HandlerPanicked(message.clone());
    WorkerExit::EndsRun(StopReason::FatalClientError { message }, stop)
}

/// Opens the source, again and again where the system refuses; `None` where it
/// was told to stop meanwhile.
fn open(context: &WorkerContext) -> Option<Box<dyn Source>> {
    let mut wait = OPEN_AGAIN;
    loop {
        match context.sources.open(READER) {
            Ok(source) => return Some(source),
            Err(error) => {
                context.events.warn(format!(
                    "the reader's source could not be opened: {error}; tries again in {wait:?}"
                ));
                let until = context.clock.now() + wait;
                while context.clock.now() < until {
                    if context.mailbox.is_stopped() {
                        return None;
                    }
                    std::thread::park_timeout(OPEN_AGAIN / 2);
                }
                wait = (wait * 2).min(OPEN_AGAIN_AT_MOST);
            }
        }
    }
}

/// The reader between two steps of its loop.
pub(crate) struct Reader {
    context: WorkerContext,
    pool: Arc<Pool>,
    memory: Arc<MemoryBudget>,
    source: Box<dyn Source>,
    epochs: HashMap<AssignmentEpoch, TopicPartition>,
    /// What is left out of what is read, until that is read past.
    left_out: HashMap<AssignmentEpoch, Arc<Completed>>,
    slots: Vec<u16>,
    stopping: bool,
    /// Partitions that are being given back.
    leaving: BTreeSet<AssignmentEpoch>,
    shown: Coarse,
    consumed_reported: Coarse,
}

impl Reader {
    /// Opens the source; `None` where it was told to stop before that could be
    /// done.
    pub(crate) fn open(
        context: WorkerContext,
        pool: Arc<Pool>,
        memory: Arc<MemoryBudget>,
    ) -> Option<Self> {
        let source = open(&context)?;
        context.mailbox.set_waker(source.waker());
        pool.set_reader(source.waker());
        let shown = context.clock.coarse();
        Some(Self {
            context,
            pool,
            memory,
            source,
            epochs: HashMap::new(),
            left_out: HashMap::new(),
            slots: Vec::new(),
            stopping: false,
            leaving: BTreeSet::new(),
            shown,
            consumed_reported: shown,
        })
    }

    /// The lanes that it has still.
    pub(crate) fn lanes(&self) -> Vec<AssignmentEpoch> {
        self.epochs.keys().copied().collect()
    }

    /// Does one thing: takes wishes, or pulls and passes on. Waits for
    /// [`MAX_PULL_WAIT`] at most.
    pub(crate) fn step(&mut self) -> Option<WorkerExit> {
        if self.context.mailbox.has_wishes() && !self.stopping {
            let (wishes, stop) = self.context.mailbox.take();
            for wish in wishes {
                self.fulfil(wish);
            }
            if let Some(cause) = stop {
                self.stopping = true;
                let all: Vec<_> = self.epochs.keys().copied().collect();
                self.release(&all, cause);
            }
        }
        let now = self.context.clock.now();
        if let Some(exit) = self.look_after_the_pool(now) {
            return Some(exit);
        }
        if self.stopping && self.epochs.is_empty() {
            self.report_consumed(true);
            return Some(WorkerExit::Asked);
        }
        match self.source.next(now + self.patience()) {
            Pulled::Batch(batch) => self.got(batch),
            Pulled::Nothing => {}
            Pulled::Failed {
                epoch,
                offset,
                error,
            } => {
                if self.epochs.contains_key(&epoch) {
                    self.report(FromWorker::ReadFailed {
                        epoch,
                        offset,
                        error,
                    });
                }
            }
        }
        self.report_consumed(false);
        None
    }

    /// How long to wait for records at most.
    fn patience(&self) -> Duration {
        // A drain that comes to its end by time is noticed then.
        if self.leaving.is_empty() {
            SHOW_INTERVAL.min(MAX_PULL_WAIT)
        } else {
            LEAVING_LOOK
        }
    }

    /// Takes over what has come to an end in the pool.
    fn look_after_the_pool(&mut self, now: Instant) -> Option<WorkerExit> {
        let mut schedule = self.pool.enter();
        let exit = schedule.take_deliveries(now);
        schedule.wake_due(now);
        let released = schedule.take_released(now, &self.left_out);
        let thirsty = schedule.take_thirsty();
        let spare = schedule.take_spare();
        let coarse = self.context.clock.coarse();
        if coarse.since(self.shown) >= SHOW_INTERVAL {
            self.shown = coarse;
            schedule.show_hands();
            schedule.note_completed(&self.left_out);
        }
        // What is news for the reader is what it is looking at.
        schedule.take_news();
        self.pool.leave(schedule);
        for batch in spare {
            self.source.recycle(batch);
        }
        for (epoch, offset) in thirsty {
            self.source.rewind(epoch, offset, None);
        }
        self.released(released);
        exit
    }

    fn got(&mut self, mut batch: Batch) {
        let (epoch, next_offset) = (batch.epoch, batch.next_offset);
        if !self.epochs.contains_key(&epoch) {
            return self.source.recycle(batch);
        }
        if let Some(completed) = self.left_out.get(&epoch) {
            completed.leave_out_of(&mut batch);
            if completed.end() <= next_offset {
                self.left_out.remove(&epoch);
            }
        }
        self.pool.lanes.slots(&batch, &mut self.slots);
        let mut schedule = self.pool.enter();
        schedule.share(self.memory.share());
        let is_full = schedule.push(batch, &self.slots);
        self.pool.leave(schedule);
        if is_full {
            let later = self.context.clock.now() + UNTIL_THIRSTY;
            self.source.rewind(epoch, next_offset, Some(later));
        }
    }

    fn fulfil(&mut self, wish: Wish) {
        match wish {
            Wish::Take { lanes, local } => self.take(lanes, local),
            Wish::Release { epochs, cause } => self.release(&epochs, cause),
            Wish::SetPaused { epochs, paused } => {
                let mut schedule = self.pool.enter();
                for &epoch in &epochs {
                    schedule.set_paused(epoch, paused);
                }
                self.pool.leave(schedule);
                for epoch in epochs {
                    if self.epochs.contains_key(&epoch) {
                        self.source.set_paused(epoch, paused);
                    }
                }
            }
        }
    }

    fn take(&mut self, starts: Vec<LaneStart>, local: bool) {
        let partitions = starts.iter().map(|start| start.partition.clone()).collect();
        self.event(EventKind::PartitionsAssigned { partitions, local });
        let mut schedule = self.pool.enter();
        for start in &starts {
            schedule.start(start);
        }
        self.pool.leave(schedule);
        for start in starts {
            // Until somebody takes something of it, it is with nobody in
            // particular, but it is looked after.
            start.tracker.set_worker(Some(0));
            if let Some(completed) = start.completed {
                self.left_out.insert(start.epoch, completed);
            }
            self.epochs.insert(start.epoch, start.partition.clone());
            self.source.start(ReadFrom {
                partition: start.partition,
                epoch: start.epoch,
                offset: start.offset,
                until: start.until,
                paused: start.paused,
            });
        }
    }

    fn release(&mut self, epochs: &[AssignmentEpoch], cause: ReleaseCause) {
        for &epoch in epochs {
            self.source.stop(epoch);
            if self.epochs.contains_key(&epoch) {
                self.leaving.insert(epoch);
            }
        }
        let mut schedule = self.pool.enter();
        schedule.release(epochs, cause, self.context.clock.now());
        self.pool.leave(schedule);
    }

    fn released(&mut self, released: Vec<Goodbye>) {
        if released.is_empty() {
            return;
        }
        self.report_consumed(true);
        let mut by_cause: BTreeMap<ReleaseCause, (Vec<_>, Vec<_>)> = BTreeMap::new();
        for Goodbye {
            epoch,
            partition,
            cause,
        } in released
        {
            self.epochs.remove(&epoch);
            self.leaving.remove(&epoch);
            self.left_out.remove(&epoch);
            let (lanes, partitions) = by_cause.entry(cause).or_default();
            lanes.push((epoch, None));
            partitions.push(partition);
        }
        for (cause, (lanes, partitions)) in by_cause {
            if let Some(kind) = cause.event(partitions) {
                self.event(kind);
            }
            let cause = Some(cause);
            self.report(FromWorker::Released { lanes, cause });
        }
    }

    fn report(&self, report: FromWorker) {
        // As a worker's: the member never waits for us.
        let _ = self.context.reports.send(report);
    }

    fn event(&self, kind: EventKind) {
        self.context.events.send(None, kind);
    }

    fn report_consumed(&mut self, now: bool) {
        if !self.context.events.is_observed() {
            return;
        }
        let at = self.context.clock.coarse();
        if !now && at.since(self.consumed_reported) < CONSUMED_EVENT_INTERVAL {
            return;
        }
        let partitions = self.pool.enter().take_consumed();
        if !partitions.is_empty() {
            self.event(EventKind::RecordsConsumed { partitions });
            self.consumed_reported = at;
        }
    }
}
