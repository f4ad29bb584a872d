//! The loop of a worker: take what the member wishes, pull, give a turn,
//! report.
//!
//! A worker never talks to Kafka's group and never decides who owns what. It
//! is told by its [`Mailbox`], looks there after every record, and answers by
//! [`FromWorker`]. It handles what it pulled in place, on its own thread; a
//! lane that has to wait for a retry, or for a dead letter to be written, is
//! given back to the source, which keeps it as long as nobody else needs the
//! memory, and the other lanes go on.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::clock::{Clock, Coarse};
use crate::config::{OnExhausted, RetryPolicy};
use crate::event::{ConsumedRange, EventKind};
use crate::handler::{Outcome, WorkerInfo};
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::report::{StopReason, WorkerStop};
use crate::runtime::events::EventSink;
use crate::source::{MAX_PULL_WAIT, Pulled, ReadError, ReadFrom, Source, SourceFactory};
use crate::worker::dead_letter::{Dead, DeadLetters, Delivery};
use crate::worker::engine::{Engine, EngineFactory, Turn, TurnEnd, Window};
use crate::worker::gate::Gate;
use crate::worker::lane::{Failed, LaneStart, ReleaseCause};
use crate::worker::mailbox::{Mailbox, Wish};
use crate::worker::retry::{self, Hope, Verdict};
use crate::worker::tracker::CountBudget;

/// A worker takes turns between its lanes at least that often.
const TURN: Duration = Duration::from_millis(50);

/// How often a worker that must not start a record looks again.
const HELD_BACK: Duration = Duration::from_millis(20);

/// A lane whose dead letter is under way is read on only when that is known;
/// this is for the source, which wants a moment.
const UNTIL_TOLD: Duration = Duration::from_hours(24);

/// At most that much time lies between two `records_consumed` of a worker.
pub(crate) const CONSUMED_EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// What a worker tells the member.
#[derive(Debug)]
pub(crate) enum FromWorker {
    /// These lanes are free: the record in hand is finished, the hook has run,
    /// and why they were given back was told to the observer. Without a cause
    /// where the worker had not picked them up, and has told nothing of them.
    Released {
        lanes: Vec<(AssignmentEpoch, Option<Failed>)>,
        cause: Option<ReleaseCause>,
    },
    /// A lane cannot be read on from there. The worker keeps it, idle.
    ReadFailed {
        epoch: AssignmentEpoch,
        offset: i64,
        error: ReadError,
    },
    /// The worker has ended; all of its lanes are free. The last report.
    Exited {
        worker: usize,
        exit: WorkerExit,
        lanes: Vec<(AssignmentEpoch, Option<Failed>)>,
    },
}

/// Why a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WorkerExit {
    /// It was told to.
    Asked,
    /// The whole run has to end with it.
    EndsRun(StopReason, WorkerStop),
    /// It failed and can be replaced.
    Failed(WorkerStop),
}

/// Everything a worker is made from.
pub(crate) struct WorkerContext {
    pub(crate) info: WorkerInfo,
    pub(crate) clock: Clock,
    pub(crate) gate: Arc<Gate>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) reports: Sender<FromWorker>,
    pub(crate) events: EventSink,
    pub(crate) sources: Arc<dyn SourceFactory>,
    pub(crate) engines: Arc<EngineFactory>,
    pub(crate) retry: RetryPolicy,
    /// Where dead letters go, if anywhere.
    pub(crate) dead_letters: Option<Arc<dyn DeadLetters>>,
    pub(crate) count: Option<Arc<CountBudget>>,
    /// Lanes that leave go to another process, be it of the same run.
    pub(crate) is_child: bool,
}

/// Runs a worker until it is told to stop or fails. The last thing it does is
/// to report its exit.
///
/// A panic outside of the handler (in a subscriber of the log, in keepup itself)
/// is reported like one inside: a worker that ended without a word would leave
/// its partitions with nobody.
pub(crate) fn run(context: WorkerContext) {
    let index = context.info.worker;
    let reports = context.reports.clone();
    let (exit, lanes) = catch_unwind(AssertUnwindSafe(|| work(context))).unwrap_or_else(|panic| {
        let message = format!("outside of the handler: {}", panic_message(panic.as_ref()));
        // The member knows which lanes it had.
        let exit = WorkerExit::Failed(WorkerStop::HandlerPanicked(message));
        (exit, Vec::new())
    });
    // The member is gone only where the whole run is.
    let _ = reports.send(FromWorker::Exited {
        worker: index,
        exit,
        lanes,
    });
}

fn work(context: WorkerContext) -> (WorkerExit, Vec<(AssignmentEpoch, Option<Failed>)>) {
    match Worker::open(context) {
        Ok(mut worker) => {
            let exit = loop {
                if let Some(exit) = worker.step() {
                    break exit;
                }
            };
            worker.finish(exit)
        }
        Err(exit) => (exit, Vec::new()),
    }
}

/// A lane as its worker sees it.
struct Lane {
    start: LaneStart,
    failed: Option<Failed>,
    window: Window,
    consumed: Option<ConsumedRange>,
}

impl Lane {
    /// What is under way of it to the dead-letter topic.
    fn delivery(&self) -> Option<&Arc<Delivery>> {
        self.dead()?.delivery.as_ref()
    }

    /// What of it goes to the dead-letter topic.
    fn dead(&self) -> Option<&Dead> {
        self.failed.as_ref()?.dead.as_ref()
    }

    /// The record that failed is done with.
    fn recovers(&mut self) {
        self.failed = None;
        self.start.tracker.waits_no_more();
    }
}

/// Records of a lane that have one outcome: one, or a batch.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: i64,
    last: i64,
    records: u64,
}

impl Span {
    fn one(offset: i64) -> Self {
        Self {
            first: offset,
            last: offset,
            records: 1,
        }
    }
}

/// One worker between two steps of its loop.
pub(crate) struct Worker {
    context: WorkerContext,
    engine: Engine,
    source: Box<dyn Source>,
    lanes: HashMap<AssignmentEpoch, Lane>,
    /// The lanes whose dead letters are under way.
    writing: Vec<AssignmentEpoch>,
    consumed_reported: Coarse,
    random: fastrand::Rng,
}

impl Worker {
    /// Makes the handler and opens the source.
    pub(crate) fn open(context: WorkerContext) -> Result<Self, WorkerExit> {
        let engines = Arc::clone(&context.engines);
        let info = context.info;
        let engine = catch_unwind(AssertUnwindSafe(move || engines.make(info)))
            .map_err(|panic| hook_panicked("factory", panic.as_ref()))?;
        let source = context.sources.open(context.info.worker).map_err(|error| {
            WorkerExit::Failed(WorkerStop::SourceFailed(format!(
                "the source of worker {} could not be opened: {error}",
                context.info.worker
            )))
        })?;
        context.mailbox.set_waker(source.waker());
        context.mailbox.set_opened();
        context.events.send(
            Some(context.info.worker),
            EventKind::WorkerStarted { pid: None },
        );
        let consumed_reported = context.clock.coarse();
        Ok(Self {
            context,
            engine,
            source,
            lanes: HashMap::new(),
            writing: Vec::new(),
            consumed_reported,
            random: fastrand::Rng::new(),
        })
    }

    /// Does one thing: takes wishes, or pulls and gives a turn. Waits for
    /// [`MAX_PULL_WAIT`] at most.
    pub(crate) fn step(&mut self) -> Option<WorkerExit> {
        if self.context.mailbox.has_wishes() {
            let (wishes, stop) = self.context.mailbox.take();
            for wish in wishes {
                if let Err(exit) = self.fulfil(wish) {
                    return Some(exit);
                }
            }
            if let Some(cause) = stop {
                let all = self.lanes.keys().copied().collect();
                return Some(self.release(all, cause).err().unwrap_or(WorkerExit::Asked));
            }
        }
        if let Some(exit) = self.take_deliveries() {
            return Some(exit);
        }
        let deadline = self.pull_deadline();
        let end = match self.source.next(deadline) {
            Pulled::Batch(batch) => self.got(batch),
            Pulled::Nothing => None,
            Pulled::Failed {
                epoch,
                offset,
                error,
            } => {
                if self.lanes.contains_key(&epoch) {
                    self.report(FromWorker::ReadFailed {
                        epoch,
                        offset,
                        error,
                    });
                }
                None
            }
        };
        self.report_consumed(false);
        end.or_else(|| self.due_windows())
    }

    /// Ends: gives the lanes that it still has, with what failed in them.
    pub(crate) fn finish(
        mut self,
        exit: WorkerExit,
    ) -> (WorkerExit, Vec<(AssignmentEpoch, Option<Failed>)>) {
        // A handler that ended the run in an orderly way is told goodbye by its
        // hook. One that panicked is not called again.
        if let WorkerExit::EndsRun(_, WorkerStop::HandlerStop | WorkerStop::RetriesExhausted) = exit
        {
            let all = self.lanes.keys().copied().collect();
            if let Err(panicked) = self.release(all, ReleaseCause::Revoked) {
                return (panicked, self.take_lanes());
            }
        }
        self.report_consumed(true);
        (exit, self.take_lanes())
    }

    fn take_lanes(&mut self) -> Vec<(AssignmentEpoch, Option<Failed>)> {
        for lane in self.lanes.values() {
            lane.start.tracker.set_worker(None);
        }
        self.lanes
            .drain()
            .map(|(epoch, lane)| (epoch, lane.failed))
            .collect()
    }

    fn index(&self) -> usize {
        self.context.info.worker
    }

    fn report(&self, report: FromWorker) {
        // Blocks while the member has not read 4,096 reports; it never waits
        // for a worker, so this ends. Without a member there is nobody to tell.
        let _ = self.context.reports.send(report);
    }

    fn event(&self, kind: EventKind) {
        self.context.events.send(Some(self.index()), kind);
    }

    fn fulfil(&mut self, wish: Wish) -> Result<(), WorkerExit> {
        match wish {
            Wish::Take { lanes, local } => self.take(lanes, local),
            Wish::Release { epochs, cause } => self.release(epochs, cause),
            Wish::SetPaused { epochs, paused } => {
                for epoch in epochs {
                    if self.lanes.contains_key(&epoch) {
                        self.source.set_paused(epoch, paused);
                    }
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, starts: Vec<LaneStart>, local: bool) -> Result<(), WorkerExit> {
        let partitions: Vec<TopicPartition> =
            starts.iter().map(|start| start.partition.clone()).collect();
        let engine = &mut self.engine;
        catch_unwind(AssertUnwindSafe(|| engine.on_assigned(&partitions)))
            .map_err(|panic| hook_panicked("on_assigned", panic.as_ref()))?;
        self.event(EventKind::PartitionsAssigned { partitions, local });
        for start in starts {
            start.tracker.set_worker(Some(self.index()));
            self.source.start(ReadFrom {
                partition: start.partition.clone(),
                epoch: start.epoch,
                offset: start.offset,
                until: start.until,
                paused: start.paused,
            });
            let (epoch, offset, failed) = (start.epoch, start.offset, start.failed.clone());
            let lane = Lane {
                start,
                failed,
                window: Window::default(),
                consumed: None,
            };
            let mut not_before = lane.failed.as_ref().and_then(|failed| failed.not_before);
            if let Some(delivery) = lane.delivery() {
                // Sent by the worker that had the lane before.
                delivery.set_waker(self.source.waker());
                self.writing.push(epoch);
                not_before = Some(self.context.clock.now() + UNTIL_TOLD);
            }
            if not_before.is_some() {
                self.source.rewind(epoch, offset, not_before);
            }
            self.lanes.insert(epoch, lane);
        }
        Ok(())
    }

    fn release(
        &mut self,
        epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
    ) -> Result<(), WorkerExit> {
        match cause {
            ReleaseCause::Revoked => self.await_deliveries(&epochs),
            ReleaseCause::Lost => self.recall_deliveries(&epochs),
            // What is under way does not go to another process with its lane.
            ReleaseCause::Moved if self.context.is_child => self.await_deliveries(&epochs),
            // They go with their lanes, or nobody wants to know.
            ReleaseCause::Moved | ReleaseCause::Repositioned => {}
        }
        self.writing.retain(|epoch| !epochs.contains(epoch));
        self.report_consumed(true);
        let mut partitions = Vec::new();
        let mut freed = Vec::new();
        for epoch in epochs {
            if let Some(lane) = self.lanes.remove(&epoch) {
                self.source.stop(epoch);
                lane.start.tracker.set_worker(None);
                partitions.push(lane.start.partition);
                freed.push((epoch, lane.failed));
            }
        }
        if freed.is_empty() {
            return Ok(());
        }
        let engine = &mut self.engine;
        let hook = match cause {
            ReleaseCause::Revoked | ReleaseCause::Moved => "on_revoked",
            ReleaseCause::Lost => "on_lost",
            ReleaseCause::Repositioned => "",
        };
        let ran = catch_unwind(AssertUnwindSafe(|| match cause {
            ReleaseCause::Revoked | ReleaseCause::Moved => engine.on_revoked(&partitions),
            ReleaseCause::Lost => engine.on_lost(&partitions),
            ReleaseCause::Repositioned => {}
        }));
        if let Some(kind) = cause.event(partitions) {
            self.event(kind);
        }
        self.report(FromWorker::Released {
            lanes: freed,
            cause: Some(cause),
        });
        ran.map_err(|panic| hook_panicked(hook, panic.as_ref()))
    }

    fn pull_deadline(&self) -> Instant {
        let now = self.context.clock.now();
        let Some(limits) = self.context.engines.batch_limits() else {
            return now + MAX_PULL_WAIT;
        };
        // An open window has to be handed over when its first record has
        // waited long enough.
        let coarse = self.context.clock.coarse();
        let wait = self
            .lanes
            .values()
            .filter_map(|lane| lane.window.due_at(limits))
            .map(|due| due.since(coarse))
            .min()
            .unwrap_or(MAX_PULL_WAIT);
        now + wait.min(MAX_PULL_WAIT)
    }

    fn got(&mut self, mut batch: Batch) -> Option<WorkerExit> {
        let Some(lane) = self.lanes.get_mut(&batch.epoch) else {
            self.source.recycle(batch);
            return None;
        };
        lane.start
            .tracker
            .saw_ends(batch.end_offset, batch.log_start, batch.fetched_at);
        if let Some(completed) = &lane.start.completed {
            // An earlier owner, who kept another order, had done it.
            completed.leave_out_of(&mut batch);
            let is_passed = lane.start.tracker.watermark() >= Some(completed.end());
            if is_passed {
                lane.start.completed = None;
            }
        }
        if let Some(through) = lane.dead().map(|dead| dead.through) {
            let begins_at = batch.entries.get(batch.cursor).map(|entry| entry.offset);
            if begins_at.unwrap_or(batch.next_offset) <= through {
                self.write_dead_letter(batch);
                return None;
            }
            // Compaction was faster: the rest of what failed is not there.
            lane.recovers();
        }
        if let Some(limits) = self.context.engines.batch_limits() {
            let epoch = batch.epoch;
            lane.window.push(batch, self.context.clock.coarse());
            if lane.window.records() == 0 {
                self.cross_empty_window(epoch);
            }
            self.batch_turn(epoch, limits)
        } else {
            let ended = self.record_turn(&mut batch);
            self.after_record_turn(batch, ended)
        }
    }

    /// One turn of a lane, record by record; `Err` is a panic's message.
    fn record_turn(&mut self, batch: &mut Batch) -> Result<TurnEnd, String> {
        let Engine::PerRecord(engine) = &mut self.engine else {
            return Ok(TurnEnd::Exhausted);
        };
        let Some(lane) = self.lanes.get_mut(&batch.epoch) else {
            return Ok(TurnEnd::Exhausted);
        };
        let first = batch.cursor;
        let wanted = batch.remaining();
        let allowed = self
            .context
            .count
            .as_ref()
            .map_or(wanted, |count| count.take(wanted));
        let now = self.context.clock.coarse();
        let turn = Turn {
            clock: &self.context.clock,
            gate: &self.context.gate,
            mailbox: &self.context.mailbox,
            tracker: &lane.start.tracker,
            failed: lane
                .failed
                .as_ref()
                .map(|failed| (failed.offset, failed.attempts)),
            allowed,
            ends_at: now.after(TURN),
        };
        lane.start.tracker.turn_begins();
        // What the turn touches stays valid when the handler unwinds: the
        // cursor stands at the record that panicked, the tracker has it handed
        // over and not completed, and the handler itself is thrown away.
        let ended = catch_unwind(AssertUnwindSafe(|| engine.turn(batch, &turn)))
            .map_err(|panic| panic_message(panic.as_ref()));
        let done = batch.cursor - first;
        let bytes = batch.bytes_of(first, batch.cursor);
        lane.start.tracker.turn_ends(bytes);
        if let Some(count) = &self.context.count {
            count.give_back(allowed.saturating_sub(done));
        }
        if done > 0 {
            lane.failed = None;
            if self.context.events.is_observed() {
                let (min, max) = (
                    batch.entries[first].offset,
                    batch.entries[batch.cursor - 1].offset,
                );
                note_consumed(lane, done as u64, min, max);
            }
        }
        ended
    }

    fn after_record_turn(
        &mut self,
        mut batch: Batch,
        ended: Result<TurnEnd, String>,
    ) -> Option<WorkerExit> {
        match ended {
            Ok(TurnEnd::Exhausted) => {
                if let Some(lane) = self.lanes.get(&batch.epoch) {
                    lane.start.tracker.crossed(batch.next_offset);
                }
                self.source.recycle(batch);
                None
            }
            Ok(TurnEnd::TimeIsUp | TurnEnd::Interrupted) => {
                self.source.put_back(batch);
                None
            }
            Ok(TurnEnd::GateShut | TurnEnd::Allowance) => {
                self.source.put_back(batch);
                Self::hold_back();
                None
            }
            Ok(TurnEnd::Outcome { outcome, attempt }) => {
                let offset = batch
                    .entries
                    .get(batch.cursor)
                    .map_or(batch.next_offset, |e| e.offset);
                let epoch = batch.epoch;
                if let Outcome::Skip { reason } = outcome {
                    self.skip(epoch, Span::one(offset), attempt, reason);
                    batch.cursor += 1;
                    self.source.put_back(batch);
                    return None;
                }
                // It goes on there, sooner or later.
                self.source.put_back(batch);
                self.failed(epoch, Span::one(offset), attempt, outcome)
            }
            Err(message) => {
                let offset = batch
                    .entries
                    .get(batch.cursor)
                    .map_or(batch.next_offset, |e| e.offset);
                let epoch = batch.epoch;
                self.source.recycle(batch);
                Some(self.panicked(epoch, Span::one(offset), message))
            }
        }
    }

    fn skip(&mut self, epoch: AssignmentEpoch, span: Span, attempt: u32, reason: String) {
        let Some(lane) = self.lanes.get_mut(&epoch) else {
            return;
        };
        lane.start.tracker.skipped(span.records);
        lane.recovers();
        self.completed(epoch, span);
        let Some(lane) = self.lanes.get(&epoch) else {
            return;
        };
        self.event(EventKind::RecordSkipped {
            partition: lane.start.partition.clone(),
            offset: span.first,
            attempt,
            error: reason,
        });
    }

    /// Records are completed that a turn gave back because they were not done.
    fn completed(&mut self, epoch: AssignmentEpoch, span: Span) {
        let Some(lane) = self.lanes.get_mut(&epoch) else {
            return;
        };
        lane.start.tracker.batch_completed(span.records, span.last);
        // They were handed over and will not be again: they take their part of
        // the count.
        if let Some(count) = &self.context.count {
            count.take(usize::try_from(span.records).unwrap_or(usize::MAX));
        }
        note_consumed(lane, span.records, span.first, span.last);
    }

    /// A handler said retry, reject, dead-letter or stop.
    fn failed(
        &mut self,
        epoch: AssignmentEpoch,
        span: Span,
        attempts: u32,
        outcome: Outcome,
    ) -> Option<WorkerExit> {
        let lane = self.lanes.get_mut(&epoch)?;
        let partition = lane.start.partition.clone();
        let offset = span.first;
        let (hope, error) = match outcome {
            Outcome::Retry { after, reason } => (Hope::Retry { after }, reason),
            Outcome::Reject { reason } => (Hope::None, reason),
            Outcome::DeadLetter { reason } => {
                return self.dead_letter(epoch, span, attempts, reason);
            }
            Outcome::Stop { reason } => {
                let stop = StopReason::HandlerStop {
                    partition,
                    offset,
                    reason,
                };
                return Some(WorkerExit::EndsRun(stop, WorkerStop::HandlerStop));
            }
            Outcome::Done | Outcome::Skip { .. } => return None,
        };
        match retry::decide(
            &self.context.retry,
            attempts,
            hope,
            self.context.clock.now(),
            self.random.f64(),
        ) {
            Verdict::Again { not_before } => {
                lane.start.tracker.retries();
                lane.failed = Some(Failed {
                    offset,
                    attempts,
                    not_before: Some(not_before),
                    dead: None,
                });
                self.source.rewind(epoch, offset, Some(not_before));
                self.event(EventKind::RecordRetried {
                    partition,
                    offset,
                    attempt: attempts,
                    error,
                });
                None
            }
            Verdict::Exhausted => match self.context.retry.on_exhausted {
                OnExhausted::Stop => self.exhausted(epoch, offset, attempts, error),
                OnExhausted::DeadLetter => self.dead_letter(epoch, span, attempts, error),
                OnExhausted::Skip => {
                    self.skip(epoch, span, attempts, error);
                    self.source.rewind(epoch, span.last + 1, None);
                    None
                }
            },
        }
    }

    /// Nothing more can be done about a record: the run ends before it.
    fn exhausted(
        &mut self,
        epoch: AssignmentEpoch,
        offset: i64,
        attempts: u32,
        error: String,
    ) -> Option<WorkerExit> {
        let lane = self.lanes.get_mut(&epoch)?;
        lane.failed = Some(Failed {
            offset,
            attempts,
            not_before: None,
            dead: None,
        });
        let stop = StopReason::RetriesExhausted {
            partition: lane.start.partition.clone(),
            offset,
            attempts,
            error,
        };
        Some(WorkerExit::EndsRun(stop, WorkerStop::RetriesExhausted))
    }

    /// The handler panicked: a failed record, and the end of this worker.
    fn panicked(&mut self, epoch: AssignmentEpoch, span: Span, message: String) -> WorkerExit {
        let attempts = match self.lanes.get(&epoch).and_then(|lane| lane.failed.as_ref()) {
            Some(failed) if failed.offset == span.first => failed.attempts.saturating_add(1),
            _ => 1,
        };
        let error = format!("the handler panicked: {message}");
        match self.failed(epoch, span, attempts, Outcome::retry(error)) {
            Some(exit) => exit,
            None => WorkerExit::Failed(WorkerStop::HandlerPanicked(message)),
        }
    }

    /// Waits a little where no record may be started.
    fn hold_back() {
        std::thread::park_timeout(HELD_BACK);
    }

    fn report_consumed(&mut self, now: bool) {
        if !self.context.events.is_observed() {
            return;
        }
        let at = self.context.clock.coarse();
        if !now && at.since(self.consumed_reported) < CONSUMED_EVENT_INTERVAL {
            return;
        }
        let partitions: Vec<ConsumedRange> = self
            .lanes
            .values_mut()
            .filter_map(|lane| lane.consumed.take())
            .collect();
        if !partitions.is_empty() {
            self.event(EventKind::RecordsConsumed { partitions });
            self.consumed_reported = at;
        }
    }
}

fn note_consumed(lane: &mut Lane, count: u64, min_offset: i64, max_offset: i64) {
    let partition = &lane.start.partition;
    ConsumedRange::note(&mut lane.consumed, partition, count, min_offset, max_offset);
}

pub(crate) fn hook_panicked(hook: &'static str, panic: &(dyn Any + Send)) -> WorkerExit {
    let message = panic_message(panic);
    WorkerExit::EndsRun(
        StopReason::HookPanicked {
            hook,
            message: message.clone(),
        },
        WorkerStop::HookPanicked(message),
    )
}

/// What a panic said, where it said it in words.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

mod letters;
mod windows;

#[cfg(test)]
mod batch_tests;
#[cfg(test)]
mod exhausted_tests;

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::record::Record;
    use crate::source::Waker;

    /// A source with a bug.
    struct Broken;

    impl Source for Broken {
        fn start(&mut self, _: ReadFrom) {}
        fn stop(&mut self, _: AssignmentEpoch) {}
        fn rewind(&mut self, _: AssignmentEpoch, _: i64, _: Option<Instant>) {}
        fn set_paused(&mut self, _: AssignmentEpoch, _: bool) {}
        fn next(&mut self, _: Instant) -> Pulled {
            panic!("a bug");
        }
        fn put_back(&mut self, _: Batch) {}
        fn recycle(&mut self, _: Batch) {}
        fn is_starved(&self) -> bool {
            false
        }
        fn waker(&self) -> Waker {
            Waker::new(|| {})
        }
    }

    struct Breaks;

    impl SourceFactory for Breaks {
        fn open(&self, _worker: usize) -> std::io::Result<Box<dyn Source>> {
            Ok(Box::new(Broken))
        }
    }

    #[test]
    fn a_panic_outside_of_the_handler_is_reported_and_not_a_silent_end() {
        let clock = Clock::manual();
        let (reports, from_worker) = bounded(8);
        run(WorkerContext {
            info: WorkerInfo {
                worker: 3,
                restarts: 0,
            },
            clock: clock.clone(),
            gate: Arc::new(Gate::new(Duration::from_secs(1), clock.coarse())),
            mailbox: Arc::new(Mailbox::new()),
            reports,
            events: EventSink::unobserved(clock),
            sources: Arc::new(Breaks),
            engines: Arc::new(EngineFactory::per_record(|_| |_: &Record<'_>| ())),
            retry: RetryPolicy::default(),
            dead_letters: None,
            count: None,
            is_child: false,
        });
        let Ok(FromWorker::Exited { worker, exit, .. }) = from_worker.try_recv() else {
            panic!("the worker ended without a word");
        };
        assert_eq!(worker, 3);
        let message = "outside of the handler: a bug".to_owned();
        assert_eq!(
            exit,
            WorkerExit::Failed(WorkerStop::HandlerPanicked(message))
        );
    }
}
