//! The threads that handle many records at a time each: they take a record for
//! every hand that is free, poll the futures, and give account of those that are
//! done.
//!
//! Each record in a handler is in a hand of its own ([`Place`]), as if it were a
//! thread's. So all that the pool promises of threads holds here without a word
//! more: order by lanes, retries and dead letters, what leaves and when, what is
//! committed. In partition order all records of a partition are one lane.
//!
//! A worker waits in its runtime, never on the pool's condition, for the first
//! of: a future that is done, the bell (the pool has something, somebody leaves,
//! the mailbox has something), the next retry. It takes the pool's lock once for
//! all futures that are done by then.
//!
//! What is in a handler when its partition is taken back, or the run stops, goes
//! on until the member waits no more. That shows in two ways, and either cancels
//! it: the partition's tracker is given up (revoke deadline, or lost), or the
//! mailbox says that the stop is cut short (stop deadline, second signal).
//! Cancelled is a future only once it was dropped, and only then the partition is
//! let go of: a hook that says goodbye runs after all that it says goodbye to.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet, LocalSet};
use tracing::Instrument as _;

use super::hands::{exited, say_goodbye};
use super::schedule::{Goodbye, Schedule, Work};
use super::seat::{Place, Seat};
use super::{HELD_BACK, Pool};
use crate::event::EventKind;
use crate::handler::Outcome;
use crate::record::{AssignmentEpoch, OwnedRecord};
use crate::report::WorkerStop;
use crate::source::{MAX_PULL_WAIT, Waker};
use crate::trace;
use crate::worker::engine::Engine;
use crate::worker::run::{WorkerContext, WorkerExit, hook_panicked, panic_message};
use crate::worker::tracker::Tracker;

/// How often it is looked whether somebody still waits for what is in hand of
/// partitions that leave.
const LEAVING_LOOK: Duration = Duration::from_millis(20);

/// The futures are polled while the worker waits, so it waits always.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Runs a worker until it is told to stop or fails. The last thing it does is
/// to report its exit.
pub(crate) fn run(context: WorkerContext, pool: &Arc<Pool>) {
    let worker = context.info.worker;
    let reports = context.reports.clone();
    let exit = work(context, Arc::clone(pool));
    // The member is gone only where the whole run is.
    let _ = reports.send(exited(worker, exit, pool));
}

fn work(context: WorkerContext, pool: Arc<Pool>) -> WorkerExit {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let worker = context.info.worker;
            let what = format!("worker {worker} could not make its runtime: {error}");
            return WorkerExit::Failed(WorkerStop::SourceFailed(what));
        }
    };
    // What the handler has spawned beside its futures ends with it.
    let serve = || {
        LocalSet::new().block_on(&runtime, async {
            match AsyncHands::open(context, pool) {
                Ok(hands) => hands.run().await,
                Err(exit) => exit,
            }
        })
    };
    let exit = catch_unwind(AssertUnwindSafe(serve));
    // What it has on threads that block is not waited for, which dropping the
    // runtime would do: a panic as well must get here.
    runtime.shutdown_background();
    exit.unwrap_or_else(|panic| {
        let message = format!("outside of the handler: {}", panic_message(panic.as_ref()));
        WorkerExit::Failed(WorkerStop::HandlerPanicked(message))
    })
}

/// A record that is in the handler.
struct InFlight {
    hand: usize,
    epoch: AssignmentEpoch,
    tracker: Arc<Tracker>,
    began: Instant,
    bytes: u64,
    task: AbortHandle,
}

/// How a future came to its end.
enum End {
    Said(Outcome),
    Panicked(String),
    Cancelled,
}

/// A worker's hands, and its futures.
struct AsyncHands {
    context: WorkerContext,
    pool: Arc<Pool>,
    engine: Engine,
    seats: Vec<Arc<Seat>>,
    /// The hands that have nothing.
    free: Vec<usize>,
    in_flight: HashMap<Id, InFlight>,
    /// They say nothing where they were not begun.
    futures: JoinSet<Option<Outcome>>,
    /// Futures that are done and of which no account was given.
    ended: Vec<(InFlight, End)>,
    bell: Arc<Notify>,
    /// It takes nothing any more, and ends so when nothing is in hand.
    exit: Option<WorkerExit>,
    /// When what is in hand then is cancelled.
    ends_by: Option<Instant>,
}

/// What there is to do after a look.
struct Found {
    work: Vec<(usize, Work)>,
    goodbyes: Vec<Goodbye>,
    /// Partitions leave of which something may be in hand.
    has_leaving: bool,
    /// When to look again at the latest.
    wait: Duration,
}

impl AsyncHands {
    /// Makes the handler and takes seats.
    fn open(context: WorkerContext, pool: Arc<Pool>) -> Result<Self, WorkerExit> {
        let engines = Arc::clone(&context.engines);
        let info = context.info;
        let engine = catch_unwind(AssertUnwindSafe(move || engines.make(info)))
            .map_err(|panic| hook_panicked("factory", panic.as_ref()))?;
        let bell = Arc::new(Notify::new());
        let waker = {
            let bell = Arc::clone(&bell);
            Waker::new(move || bell.notify_one())
        };
        let (worker, hands) = (info.worker, pool.hands);
        let mut schedule = pool.enter();
        schedule.set_bell(worker, waker.clone());
        let seats = (0..hands)
            .map(|hand| schedule.enlist_worker(Place { worker, hand }))
            .collect();
        drop(schedule);
        context.mailbox.set_waker(waker);
        context.mailbox.set_opened();
        context
            .events
            .send(Some(worker), EventKind::WorkerStarted { pid: None });
        Ok(Self {
            context,
            pool,
            engine,
            seats,
            free: (0..hands).rev().collect(),
            in_flight: HashMap::with_capacity(hands),
            futures: JoinSet::new(),
            ended: Vec::new(),
            bell,
            exit: None,
            ends_by: None,
        })
    }

    fn worker(&self) -> usize {
        self.context.info.worker
    }

    async fn run(mut self) -> WorkerExit {
        loop {
            if self.context.mailbox.has_wishes() && self.context.mailbox.take().1.is_some() {
                self.ends_with(WorkerExit::Asked);
            }
            let found = self.look();
            self.cancel_what_nobody_waits_for(found.has_leaving);
            for (hand, work) in found.work {
                self.begin(hand, &work);
            }
            if !found.goodbyes.is_empty() {
                let worker = self.worker();
                let exit = say_goodbye(&mut self.engine, &self.pool, worker, &found.goodbyes);
                if let Some(exit) = exit {
                    self.ends_with(exit);
                }
                continue;
            }
            if self.in_flight.is_empty()
                && let Some(exit) = self.exit.take()
            {
                return self.finish(exit);
            }
            self.wait(found.wait).await;
        }
    }

    /// Waits for a future, for the bell, or that long.
    async fn wait(&mut self, at_most: Duration) {
        let bell = Arc::clone(&self.bell);
        tokio::select! {
            biased;
            Some(joined) = self.futures.join_next_with_id() => self.note(joined),
            () = bell.notified() => {}
            () = tokio::time::sleep(at_most.max(SHORTEST_WAIT)) => {}
        }
        while let Some(joined) = self.futures.try_join_next_with_id() {
            self.note(joined);
        }
    }

    fn note(&mut self, joined: Result<(Id, Option<Outcome>), JoinError>) {
        let (id, end) = match joined {
            Ok((id, outcome)) => (id, outcome.map_or(End::Cancelled, End::Said)),
            Err(error) => {
                let id = error.id();
                let end = match error.try_into_panic() {
                    Ok(panic) => End::Panicked(panic_message(panic.as_ref())),
                    Err(_) => End::Cancelled,
                };
                (id, end)
            }
        };
        if let Some(in_flight) = self.in_flight.remove(&id) {
            self.ended.push((in_flight, end));
        }
    }

    /// Takes no more from now on. The gravest reason stays: what ends the run
    /// gives the others a moment, what was asked for gives them their time.
    fn ends_with(&mut self, exit: WorkerExit) {
        if exit == WorkerExit::Asked {
            self.exit.get_or_insert(exit);
            return;
        }
        if !matches!(self.exit, Some(WorkerExit::EndsRun(..))) {
            self.ends_by = Some(self.context.clock.now() + self.pool.drain);
            self.exit = Some(exit);
        }
    }

    fn cancel_what_nobody_waits_for(&self, has_leaving: bool) {
        let is_over = self.context.mailbox.is_cut_short()
            || self
                .ends_by
                .is_some_and(|ends_by| self.context.clock.now() >= ends_by);
        if !has_leaving && !is_over {
            return;
        }
        for in_flight in self.in_flight.values() {
            if is_over || in_flight.tracker.is_given_up() {
                in_flight.task.abort();
            }
        }
    }

    /// Gives account of what is done, and fills the hands that are free.
    fn look(&mut self) -> Found {
        let pool = Arc::clone(&self.pool);
        let mut schedule = pool.enter();
        for (in_flight, end) in std::mem::take(&mut self.ended) {
            self.account(&mut schedule, &in_flight, end);
        }
        let worker = self.worker();
        let now = self.context.clock.now();
        schedule.wake_due(now);
        let mut goodbyes = schedule.goodbyes(worker);
        // First what is in hand of them.
        goodbyes.retain(|goodbye| {
            let mut in_flight = self.in_flight.values();
            !in_flight.any(|in_flight| in_flight.epoch == goodbye.epoch)
        });
        let mut wait = schedule
            .next_due()
            .map_or(MAX_PULL_WAIT, |due| due.saturating_duration_since(now))
            .min(MAX_PULL_WAIT);
        if let Some(ends_by) = self.ends_by {
            wait = wait.min(ends_by.saturating_duration_since(now));
        }
        // After a seek what is in hand is of a life that nobody knows any more.
        let mut in_flight = self.in_flight.values();
        let has_leaving = schedule.has_leaving(worker)
            || in_flight.any(|in_flight| schedule.is_leaving(in_flight.epoch));
        if has_leaving {
            wait = wait.min(LEAVING_LOOK);
        }
        let mut work = Vec::new();
        if self.exit.is_none() {
            let coarse = self.context.clock.coarse();
            let is_open = self.context.gate.allows(coarse);
            while is_open && let Some(&hand) = self.free.last() {
                let Some(taken) = schedule.take(Place { worker, hand }, 1, coarse) else {
                    break;
                };
                self.free.pop();
                work.push((hand, taken));
            }
            let is_held_back = !is_open || schedule.take_counted_out();
            if is_held_back {
                // Who may take nothing is told by nobody when he may.
                wait = wait.min(HELD_BACK);
            } else if !self.free.is_empty() {
                schedule.waits(worker);
            }
        }
        pool.leave(schedule);
        Found {
            work,
            goodbyes,
            has_leaving,
            wait,
        }
    }

    fn account(&mut self, schedule: &mut Schedule, in_flight: &InFlight, end: End) {
        let InFlight { hand, tracker, .. } = in_flight;
        let place = Place {
            worker: self.worker(),
            hand: *hand,
        };
        self.free.push(*hand);
        let now = self.context.clock.now();
        // Under the lock of the schedule: it is the only one who writes.
        let took = now.saturating_duration_since(in_flight.began);
        let outcome = match end {
            End::Cancelled => return schedule.let_go(place),
            End::Panicked(message) => Outcome::retry(format!("the handler panicked: {message}")),
            End::Said(outcome) => {
                tracker.times.add(&outcome, took);
                outcome
            }
        };
        if outcome == Outcome::Done {
            tracker.took_bytes(in_flight.bytes);
            self.seats[*hand].finish();
            schedule.settle(place);
        } else if let Some(exit) = schedule.outcome(place, outcome, now) {
            self.ends_with(exit);
        }
    }

    /// Begins with the record in a hand.
    fn begin(&mut self, hand: usize, work: &Work) {
        if self.exit.is_some() {
            // What is in the hand is given back when the worker ends.
            return;
        }
        if work.is_new {
            let partitions = [work.partition.clone()];
            let engine = &mut self.engine;
            let hook = catch_unwind(AssertUnwindSafe(|| engine.on_assigned(&partitions)));
            if let Err(panic) = hook {
                return self.ends_with(hook_panicked("on_assigned", panic.as_ref()));
            }
        }
        let record = self.seats[hand]
            .next(self.context.clock.coarse())
            .and_then(|task| {
                let batch = Arc::clone(work.batches.get(task.batch())?);
                let bytes = batch.bytes_of(task.index(), task.index() + 1);
                let record = OwnedRecord::new(batch, task.index(), task.attempt)?;
                Some((record, bytes))
            });
        let (Some((record, bytes)), Engine::Async(engine)) = (record, &self.engine) else {
            self.free.push(hand);
            return;
        };
        let span = trace::is_wanted().then(|| trace::span_of(&record.as_record()));
        let call = {
            let call = engine.call(record);
            let (tracker, gate) = (Arc::clone(&work.tracker), Arc::clone(&self.context.gate));
            let clock = self.context.clock.clone();
            // Asked when its turn comes: others may have computed for long before.
            async move {
                let may_begin = !tracker.is_given_up() && gate.allows(clock.coarse());
                if may_begin { Some(call.await) } else { None }
            }
        };
        let task = match span {
            Some(span) => self.futures.spawn_local(call.instrument(span)),
            None => self.futures.spawn_local(call),
        };
        let in_flight = InFlight {
            hand,
            epoch: work.batches[0].epoch,
            tracker: Arc::clone(&work.tracker),
            began: self.context.clock.now(),
            bytes,
            task: task.clone(),
        };
        self.in_flight.insert(task.id(), in_flight);
    }

    /// Ends: a handler that did not fail is told goodbye by its hook.
    fn finish(mut self, exit: WorkerExit) -> WorkerExit {
        let is_orderly = matches!(
            exit,
            WorkerExit::Asked
                | WorkerExit::EndsRun(_, WorkerStop::HandlerStop | WorkerStop::RetriesExhausted)
        );
        let known = self.pool.enter().known_to(self.worker());
        if !is_orderly || known.is_empty() {
            return exit;
        }
        let engine = &mut self.engine;
        match catch_unwind(AssertUnwindSafe(|| engine.on_revoked(&known))) {
            Ok(()) => exit,
            Err(panic) => hook_panicked("on_revoked", panic.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests;
