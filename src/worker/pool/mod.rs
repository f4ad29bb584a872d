//! Workers that share all partitions: key order, no order, and asynchronous
//! handlers in any order.
//!
//! In partition order a worker reads what it handles, on one thread. Where the
//! unit of order is smaller than a partition, more workers than partitions have
//! something to do, and none of them must hold up another; so reading and
//! handling part ways:
//!
//! ```text
//!             ┌────────┐ batches ┌──────────┐ a few records ┌──────────┐
//!  brokers ──►│ reader ├────────►│ schedule │◄─────────────►│ worker 0 │
//!             └────────┘         │  (pool)  │◄─────────────►│ worker n │
//!                                └──────────┘  how they went└──────────┘
//! ```
//!
//! The reader is what the member knows: it takes partitions and gives them
//! back, as a worker in partition order does. It never runs a handler, so a
//! revoke is heard at once, whatever the handlers do. The workers know nothing
//! of the group.
//!
//! | file | question |
//! |---|---|
//! | [`backlog`] | which records of a partition may be taken, and what is done: pure |
//! | [`schedule`] | who works on what, and what becomes of what failed: pure |
//! | [`seat`] | what one worker has in hand |
//! | [`reader`] | the thread that fetches |
//! | [`hands`] | the threads that handle |
//! | [`async_hands`] | the threads that handle many records at a time each |

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use self::backlog::Lanes;
use self::schedule::{Goodbye, Rules, SLOW, Schedule, Work};
use self::seat::{Place, Seat};
use crate::clock::Clock;
use crate::handler::Outcome;
use crate::source::{MAX_PULL_WAIT, Waker};
use crate::worker::mailbox::Mailbox;
use crate::worker::run::WorkerExit;
use crate::worker::timing::HandlerTimes;
use crate::worker::tracker::Tracker;

#[cfg(feature = "tokio")]
pub(crate) mod async_hands;
pub(crate) mod backlog;
pub(crate) mod hands;
pub(crate) mod reader;
pub(crate) mod schedule;
pub(crate) mod seat;

/// What a worker is told when it asks.
pub(crate) enum Told {
    /// Its hand is full.
    Work(Work),
    /// Partitions leave that it knows of: their hooks first.
    Goodbyes(Vec<Goodbye>),
    /// The member wishes that it ends.
    Stop,
    /// There was nothing for a while.
    Nothing,
}

/// The schedule, shared by the reader and the workers.
pub(crate) struct Pool {
    schedule: Mutex<Schedule>,
    /// There is something for workers.
    something: Condvar,
    clock: Clock,
    lanes: Lanes,
    /// Records that an asynchronous worker has in its handler at a time.
    #[cfg(feature = "tokio")]
    hands: usize,
    /// As [`Rules::drain`].
    #[cfg(feature = "tokio")]
    drain: Duration,
}

impl Pool {
    pub(crate) fn new(rules: Rules, clock: Clock, seed: u64) -> Self {
        Self {
            lanes: rules.lanes,
            #[cfg(feature = "tokio")]
            hands: rules.hands,
            #[cfg(feature = "tokio")]
            drain: rules.drain,
            schedule: Mutex::new(Schedule::new(rules, seed)),
            something: Condvar::new(),
            clock,
        }
    }

    /// The schedule itself; whoever has it keeps everybody else waiting. What
    /// it changes is told to others by [`Pool::leave`].
    fn enter(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock()
    }

    /// Wakes who may have something to do now.
    fn leave(&self, mut schedule: MutexGuard<'_, Schedule>) {
        let reader = self.call_others(&mut schedule);
        let mut idle = None;
        if schedule.has_more() {
            // It wakes the next in turn, should there be more than it can take.
            self.something.notify_one();
            idle = schedule.next_idle();
        }
        drop(schedule);
        for waker in [reader, idle].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Calls workers that have to say goodbye; gives whom else to wake.
    fn call_others(&self, schedule: &mut Schedule) -> Option<Waker> {
        if schedule.take_parting() {
            self.something.notify_all();
            schedule.ring_all();
        }
        schedule.take_news()
    }

    /// Whom to wake when partitions may be read on or are free.
    fn set_reader(&self, waker: Waker) {
        self.enter().set_waker(waker);
    }

    /// Something that wakes all workers.
    fn waker(self: &Arc<Self>) -> Waker {
        let pool = Arc::clone(self);
        Waker::new(move || {
            // Under the lock: a worker that has looked for wishes in vain and
            // does not wait yet would miss it.
            let schedule = pool.enter();
            pool.something.notify_all();
            drop(schedule);
        })
    }

    /// Gives account of a worker's hand and fills it again with up to `most`
    /// records. Waits where there are none, for [`MAX_PULL_WAIT`] at most.
    fn next(&self, seat: &WorkerSeat, times: &HandlerTimes, most: usize) -> Told {
        let mut schedule = self.enter();
        seat.settle(&mut schedule, times);
        // What was interrupted is not its own any more.
        schedule.relieve(Place::of(seat.worker));
        let deadline = self.clock.now() + MAX_PULL_WAIT;
        loop {
            if seat.mailbox.has_wishes() && seat.mailbox.take().1.is_some() {
                self.leave(schedule);
                return Told::Stop;
            }
            let goodbyes = schedule.goodbyes(seat.worker);
            if !goodbyes.is_empty() {
                self.leave(schedule);
                return Told::Goodbyes(goodbyes);
            }
            let now = self.clock.now();
            schedule.wake_due(now);
            if let Some(work) = schedule.take(Place::of(seat.worker), most, self.clock.coarse()) {
                self.leave(schedule);
                return Told::Work(work);
            }
            let is_counted_out = schedule.take_counted_out();
            let (did, has_some) = schedule.relieve_the_slow(self.clock.coarse());
            if did && !is_counted_out {
                continue;
            }
            if now >= deadline || self.clock.stands_still() {
                self.leave(schedule);
                return Told::Nothing;
            }
            let until = schedule
                .next_due()
                .map_or(deadline, |due| due.min(deadline));
            // Who has no leave gets it when something is given back, which is
            // told to nobody.
            let until = match (is_counted_out, has_some) {
                (true, _) => until.min(now + HELD_BACK),
                (false, true) => until.min(now + SLOW),
                (false, false) => until,
            };
            // The reader must not wait for a worker that waits itself.
            if let Some(reader) = self.call_others(&mut schedule) {
                reader.wake();
            }
            self.something.wait_until(&mut schedule, until);
        }
    }

    /// A handler said something else than done.
    fn outcome(
        &self,
        seat: &WorkerSeat,
        times: &HandlerTimes,
        outcome: Outcome,
    ) -> Option<WorkerExit> {
        let mut schedule = self.enter();
        seat.settle(&mut schedule, times);
        let exit = schedule.outcome(Place::of(seat.worker), outcome, self.clock.now());
        self.leave(schedule);
        exit
    }
}

/// A worker's place in the pool while it runs.
struct WorkerSeat {
    worker: usize,
    mailbox: Arc<Mailbox>,
    seat: Arc<Seat>,
    /// Of whose records it has something in hand.
    tracker: Option<Arc<Tracker>>,
    /// Bytes of the records of which no account was given.
    bytes: Cell<u64>,
}

impl WorkerSeat {
    fn settle(&self, schedule: &mut Schedule, times: &HandlerTimes) {
        if let Some(tracker) = &self.tracker {
            // Under the lock of the schedule: it is the only one who writes.
            tracker.times.absorb(times);
            tracker.took_bytes(self.bytes.take());
        }
        schedule.settle(Place::of(self.worker));
    }
}

/// How long a worker that must not start a record waits before it looks again.
const HELD_BACK: Duration = Duration::from_millis(20);
