//! The threads that handle: take a few records, call the handler, give account.
//!
//! A worker takes one record at a time where handlers take long, and as many as
//! fit into [`CHUNK`] where they are short. What it takes is its own only as far
//! as it has started it; see [`seat`](super::seat).

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::schedule::{Goodbye, Work};
use super::seat::Place;
use super::{HELD_BACK, Pool, Told, WorkerSeat};
use crate::event::EventKind;
use crate::handler::Outcome;
use crate::record::TopicPartition;
use crate::report::WorkerStop;
use crate::worker::engine::{Engine, HandEnd, HandTurn};
use crate::worker::lane::ReleaseCause;
use crate::worker::run::{FromWorker, WorkerContext, WorkerExit, hook_panicked, panic_message};
use crate::worker::timing::HandlerTimes;

/// What is taken at a time is worked off in about that time.
const CHUNK: Duration = Duration::from_micros(100);

/// Records that are taken at a time at most.
const MOST: usize = 1_024;

/// Runs a worker until it is told to stop or fails. The last thing it does is
/// to report its exit.
pub(crate) fn run(context: WorkerContext, pool: &Arc<Pool>) {
    let worker = context.info.worker;
    let reports = context.reports.clone();
    let work = || match Hands::open(context, Arc::clone(pool)) {
        Err(exit) => exit,
        Ok(mut hands) => loop {
            if let Some(exit) = hands.step() {
                break hands.finish(exit);
            }
        },
    };
    let exit = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = format!("outside of the handler: {}", panic_message(panic.as_ref()));
        WorkerExit::Failed(WorkerStop::HandlerPanicked(message))
    });
    // The member is gone only where the whole run is.
    let _ = reports.send(exited(worker, exit, pool));
}

/// A worker's last report, once it takes part no longer.
pub(crate) fn exited(worker: usize, exit: WorkerExit, pool: &Pool) -> FromWorker {
    let mut schedule = pool.enter();
    schedule.dismiss_worker(worker);
    pool.leave(schedule);
    FromWorker::Exited {
        worker,
        exit,
        lanes: Vec::new(),
    }
}

/// A worker between two steps of its loop.
pub(crate) struct Hands {
    context: WorkerContext,
    pool: Arc<Pool>,
    engine: Engine,
    seat: WorkerSeat,
    /// Of the calls that no account was given of.
    times: HandlerTimes,
    /// Records that are taken at a time.
    most: usize,
}

impl Hands {
    /// Makes the handler and takes a seat.
    pub(crate) fn open(context: WorkerContext, pool: Arc<Pool>) -> Result<Self, WorkerExit> {
        let engines = Arc::clone(&context.engines);
        let info = context.info;
        let engine = catch_unwind(AssertUnwindSafe(move || engines.make(info)))
            .map_err(|panic| hook_panicked("factory", panic.as_ref()))?;
        context.mailbox.set_waker(pool.waker());
        context.mailbox.set_opened();
        context
            .events
            .send(Some(info.worker), EventKind::WorkerStarted { pid: None });
        let seat = WorkerSeat {
            worker: info.worker,
            mailbox: Arc::clone(&context.mailbox),
            seat: pool.enter().enlist_worker(Place::of(info.worker)),
            tracker: None,
            bytes: Cell::new(0),
        };
        Ok(Self {
            context,
            pool,
            engine,
            seat,
            times: HandlerTimes::new(),
            most: 1,
        })
    }

    /// Does one thing: works off a hand, or says goodbye. Waits where there is
    /// nothing, as [`Pool::next`] does.
    pub(crate) fn step(&mut self) -> Option<WorkerExit> {
        match self.pool.next(&self.seat, &self.times, self.most) {
            Told::Work(work) => self.work_on(&work),
            Told::Goodbyes(goodbyes) => self.say_goodbye(&goodbyes),
            Told::Nothing => None,
            Told::Stop => Some(WorkerExit::Asked),
        }
    }

    fn work_on(&mut self, work: &Work) -> Option<WorkerExit> {
        if work.is_new {
            let partitions = [work.partition.clone()];
            let engine = &mut self.engine;
            let hook = catch_unwind(AssertUnwindSafe(|| engine.on_assigned(&partitions)));
            if let Err(panic) = hook {
                return Some(hook_panicked("on_assigned", panic.as_ref()));
            }
        }
        self.seat.tracker = Some(Arc::clone(&work.tracker));
        let began = self.context.clock.now();
        let mut handled = 0;
        loop {
            let turn = HandTurn {
                clock: &self.context.clock,
                gate: &self.context.gate,
                mailbox: &self.context.mailbox,
                seat: &self.seat.seat,
                tracker: &work.tracker,
                batches: &work.batches,
                times: &self.times,
                bytes: &self.seat.bytes,
            };
            let engine = &mut self.engine;
            // What unwinds is the handler: the hand tells which record that was.
            let ended = catch_unwind(AssertUnwindSafe(|| engine.work(&turn, &mut handled)));
            match ended {
                Ok(HandEnd::Empty) => break,
                Ok(HandEnd::Interrupted) => return None,
                Ok(HandEnd::GateShut) => {
                    self.hold_back();
                    return None;
                }
                Ok(HandEnd::Outcome(outcome)) => {
                    let exit = self.pool.outcome(&self.seat, &self.times, outcome);
                    if exit.is_some() {
                        return exit;
                    }
                }
                Err(panic) => {
                    let message = panic_message(panic.as_ref());
                    let outcome = Outcome::retry(format!("the handler panicked: {message}"));
                    let exit = self.pool.outcome(&self.seat, &self.times, outcome);
                    let failed = WorkerExit::Failed(WorkerStop::HandlerPanicked(message));
                    return Some(exit.unwrap_or(failed));
                }
            }
        }
        let took = self.context.clock.now() - began;
        let each = took / u32::try_from(handled.max(1)).unwrap_or(u32::MAX);
        let fit = CHUNK.as_nanos() / each.as_nanos().max(1);
        let fit = usize::try_from(fit).unwrap_or(usize::MAX);
        self.most = fit.clamp(1, MOST).min(self.most * 2);
        None
    }

    /// No record may be started: what was taken goes back, and waits.
    fn hold_back(&self) {
        let mut schedule = self.pool.enter();
        schedule.relieve(Place::of(self.seat.worker));
        self.pool.leave(schedule);
        std::thread::park_timeout(HELD_BACK);
    }

    fn say_goodbye(&mut self, goodbyes: &[Goodbye]) -> Option<WorkerExit> {
        say_goodbye(&mut self.engine, &self.pool, self.seat.worker, goodbyes)
    }

    /// Ends: a handler that did not panic is told goodbye by its hook.
    pub(crate) fn finish(mut self, exit: WorkerExit) -> WorkerExit {
        let is_orderly = matches!(
            exit,
            WorkerExit::Asked
                | WorkerExit::EndsRun(_, WorkerStop::HandlerStop | WorkerStop::RetriesExhausted)
        );
        if !is_orderly {
            return exit;
        }
        let mut schedule = self.pool.enter();
        // First, so that nothing is in its hand when the hook says goodbye.
        self.seat.settle(&mut schedule, &self.times);
        schedule.relieve(Place::of(self.seat.worker));
        let known = schedule.known_to(self.seat.worker);
        self.pool.leave(schedule);
        if known.is_empty() {
            return exit;
        }
        let engine = &mut self.engine;
        match catch_unwind(AssertUnwindSafe(|| engine.on_revoked(&known))) {
            Ok(()) => exit,
            Err(panic) => hook_panicked("on_revoked", panic.as_ref()),
        }
    }
}

/// Runs the hooks of a worker for partitions that leave.
pub(super) fn say_goodbye(
    engine: &mut Engine,
    pool: &Pool,
    worker: usize,
    goodbyes: &[Goodbye],
) -> Option<WorkerExit> {
    let with = |cause: ReleaseCause| -> Vec<TopicPartition> {
        let these = goodbyes.iter().filter(|goodbye| goodbye.cause == cause);
        these.map(|goodbye| goodbye.partition.clone()).collect()
    };
    let revoked = [with(ReleaseCause::Revoked), with(ReleaseCause::Moved)].concat();
    let lost = with(ReleaseCause::Lost);
    let mut hook = "on_revoked";
    let ran = catch_unwind(AssertUnwindSafe(|| {
        if !revoked.is_empty() {
            engine.on_revoked(&revoked);
        }
        if !lost.is_empty() {
            hook = "on_lost";
            engine.on_lost(&lost);
        }
    }));
    let mut schedule = pool.enter();
    schedule.said_goodbye(worker, goodbyes);
    pool.leave(schedule);
    ran.err().map(|panic| hook_panicked(hook, panic.as_ref()))
}
