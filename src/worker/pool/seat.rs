//! What one worker has taken and not yet given account of.
//!
//! A worker takes as many records at a time as it handles in about a tenth of a
//! millisecond, so that the lock that all share costs a record next to nothing.
//! Any of them may turn out to take a minute. So what it has is not its own
//! affair: the hand lies where others can reach it, and whoever finds nothing
//! else to do takes over what the slow one has not started (see
//! [`Schedule::relieve`](super::schedule::Schedule::relieve)).
//!
//! The hand is locked for each record, by its own worker practically always. The
//! interleaving that matters is a worker that starts a task while another takes
//! the rest away: both hold the lock, and what was started is `busy` by then and
//! stays, or was taken away and is not there to be started.

use std::sync::Arc;

use parking_lot::Mutex;

use super::backlog::{Taken, Task};
use crate::clock::Coarse;
use crate::record::{AssignmentEpoch, Batch};

/// Whose hand it is. A thread has one; a worker that handles many records at a
/// time has one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) worker: usize,
    pub(crate) hand: usize,
}

impl Place {
    /// The only one of a thread.
    pub(crate) const fn of(worker: usize) -> Self {
        Self { worker, hand: 0 }
    }
}

/// What is in one hand, of one partition.
#[derive(Debug)]
pub(crate) struct Hand {
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) tasks: Vec<Task>,
    /// Of these the worker has finished so many.
    pub(crate) finished: usize,
    /// The one after those is in the handler now.
    pub(crate) is_busy: bool,
    /// Of the finished ones so many were taken over.
    pub(crate) settled: usize,
    /// When the one in the handler began.
    pub(crate) since: Coarse,
}

impl Hand {
    /// The first task that was not started.
    pub(crate) fn unstarted(&self) -> usize {
        self.finished + usize::from(self.is_busy)
    }
}

/// A worker's place, shared with those who look after it.
#[derive(Debug)]
pub(crate) struct Seat(Mutex<Hand>);

impl Seat {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Hand {
            epoch: AssignmentEpoch(0),
            tasks: Vec::new(),
            finished: 0,
            is_busy: false,
            settled: 0,
            since: Coarse::from_millis(0),
        }))
    }

    /// Puts what was taken into the hand, which is empty: what it held its tasks
    /// in is for the next that are taken.
    pub(crate) fn fill(
        &self,
        epoch: AssignmentEpoch,
        taken: &mut Taken,
        now: Coarse,
    ) -> Vec<Arc<Batch>> {
        let mut hand = self.0.lock();
        hand.epoch = epoch;
        hand.tasks.clear();
        std::mem::swap(&mut hand.tasks, &mut taken.tasks);
        hand.finished = 0;
        hand.settled = 0;
        hand.is_busy = false;
        hand.since = now;
        std::mem::take(&mut taken.batches)
    }

    /// The record in the handler is done.
    #[inline]
    pub(crate) fn finish(&self) {
        let mut hand = self.0.lock();
        hand.finished += usize::from(hand.is_busy);
        hand.is_busy = false;
    }

    /// The record in the handler, if there is one, is done; gives the next,
    /// which is in the handler from now on.
    #[inline]
    pub(crate) fn next(&self, now: Coarse) -> Option<Task> {
        let mut hand = self.0.lock();
        hand.finished += usize::from(hand.is_busy);
        let next = hand.tasks.get(hand.finished).copied();
        hand.is_busy = next.is_some();
        hand.since = now;
        next
    }

    /// Looks into the hand, and changes it.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Hand) -> T) -> T {
        look(&mut self.0.lock())
    }
}
