//! What others may see of a run without asking its member.
//!
//! The member writes here when something changes; the reporter and the handle
//! read. No worker ever takes a lock of these.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::RwLock;

use crate::clock::Coarse;
use crate::lag::board::Board;
use crate::lag::health::{MemberStatus, Phase};
use crate::lag::snapshot::WorkerState;
use crate::record::TopicPartition;
use crate::report::StopReason;
use crate::worker::tracker::Tracker;

/// The partitions of this process with their numbers, in order.
pub(crate) type Partitions = Vec<(TopicPartition, Arc<Tracker>)>;

/// What is owned, in one generation of the ownership.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owned {
    /// Raised with every change.
    pub(crate) generation: u64,
    pub(crate) partitions: Arc<Partitions>,
}

/// A worker as the member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerSlot {
    pub(crate) worker: usize,
    pub(crate) pid: Option<u32>,
    /// `Running` also where it has no partitions.
    pub(crate) state: WorkerState,
    pub(crate) restarts: u32,
}

/// Counters of the member, since the start of the run.
#[derive(Debug, Default)]
pub(crate) struct MemberCounters {
    pub(crate) rebalances: AtomicU64,
    pub(crate) commits_ok: AtomicU64,
    pub(crate) commits_retried: AtomicU64,
    pub(crate) commits_refused: AtomicU64,
    pub(crate) commits_failed: AtomicU64,
    /// Of the metadata of commits.
    pub(crate) notes_restored: AtomicU64,
    pub(crate) notes_foreign: AtomicU64,
    pub(crate) notes_broken: AtomicU64,
    pub(crate) notes_cut: AtomicU64,
    pub(crate) notes_refused: AtomicU64,
}

impl MemberCounters {
    /// One more. The member is the only one who counts.
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// For what has not happened yet.
const NEVER: u64 = u64::MAX;

/// What others may see of a run.
#[derive(Debug)]
pub(crate) struct Shared {
    owned: RwLock<Owned>,
    slots: RwLock<Vec<WorkerSlot>>,
    workers: AtomicUsize,
    phase: AtomicU8,
    budget_spent: AtomicBool,
    /// Why it does not take part in the group now, where that is known.
    held_up: RwLock<Option<Arc<str>>>,
    stopped_by: RwLock<Option<Arc<StopReason>>>,
    /// What broke beside the run, and does not come back.
    broken: RwLock<Vec<Arc<str>>>,
    turned_at: AtomicU64,
    /// When the reporter looked for the last time.
    reported_at: AtomicU64,
    pub(crate) counters: MemberCounters,
    pub(crate) board: Arc<Board>,
    bell: Sender<()>,
}

impl Shared {
    /// What is seen before anything happened, and the bell that rings when the
    /// ownership changed.
    pub(crate) fn new(now: Coarse) -> (Self, Receiver<()>) {
        let (bell, rings) = bounded(1);
        let shared = Self {
            owned: RwLock::default(),
            slots: RwLock::default(),
            workers: AtomicUsize::new(0),
            phase: AtomicU8::new(Phase::Joining as u8),
            budget_spent: AtomicBool::new(false),
            held_up: RwLock::default(),
            stopped_by: RwLock::default(),
            broken: RwLock::default(),
            reported_at: AtomicU64::new(NEVER),
            turned_at: AtomicU64::new(now.as_millis()),
            counters: MemberCounters::default(),
            board: Arc::default(),
            bell,
        };
        (shared, rings)
    }

    pub(crate) fn owned(&self) -> Owned {
        self.owned.read().clone()
    }

    /// The member's partitions changed, or their trackers. Those that are gone
    /// are shown nowhere from now on.
    pub(crate) fn set_owned(&self, partitions: Partitions) {
        let mut owned = self.owned.write();
        let unchanged = owned.partitions.len() == partitions.len()
            && owned
                .partitions
                .iter()
                .zip(&partitions)
                .all(|(old, new)| Arc::ptr_eq(&old.1, &new.1));
        if unchanged {
            return;
        }
        *owned = Owned {
            generation: owned.generation + 1,
            partitions: Arc::new(partitions),
        };
        let Owned {
            generation,
            partitions,
        } = owned.clone();
        // Still under the lock, so that the board learns of generations in
        // their order.
        self.board.retain(generation, |partition| {
            partitions
                .binary_search_by(|(owned, _)| owned.cmp(partition))
                .is_ok()
        });
        drop(owned);
        self.ring();
    }

    /// Copies the workers into a buffer that is used again.
    pub(crate) fn slots_into(&self, into: &mut Vec<WorkerSlot>) {
        into.clear();
        into.extend_from_slice(&self.slots.read());
    }

    pub(crate) fn set_slots(&self, slots: Vec<WorkerSlot>) {
        if *self.slots.read() != slots {
            *self.slots.write() = slots;
        }
    }

    /// How many workers run or are being started.
    pub(crate) fn workers(&self) -> usize {
        self.workers.load(Ordering::Relaxed)
    }

    pub(crate) fn set_workers(&self, workers: usize) {
        self.workers.store(workers, Ordering::Relaxed);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        let before = self.phase.swap(phase as u8, Ordering::Relaxed);
        if before != phase as u8 {
            self.ring();
        }
    }

    pub(crate) fn set_budget_spent(&self) {
        self.budget_spent.store(true, Ordering::Relaxed);
    }

    /// Why the group has not taken this process in yet; `None` once it has.
    pub(crate) fn set_held_up(&self, why: Option<&str>) {
        *self.held_up.write() = why.map(Arc::from);
        self.ring();
    }

    /// Why the run stops or has ended.
    pub(crate) fn set_stopped_by(&self, reason: StopReason) {
        *self.stopped_by.write() = Some(Arc::new(reason));
        self.ring();
    }

    /// A thread beside the run is gone, though the run goes on: said to whoever
    /// asks whether the process is live.
    pub(crate) fn set_broken(&self, what: &str) {
        self.broken.write().push(Arc::from(what));
        self.ring();
    }

    /// The reporter has looked at everything.
    pub(crate) fn reported(&self, now: Coarse) {
        self.reported_at.store(now.as_millis(), Ordering::Relaxed);
    }

    /// The reporter will not look any more, and that was told.
    pub(crate) fn reports_no_more(&self) {
        self.reported_at.store(NEVER, Ordering::Relaxed);
    }

    /// How long ago the reporter looked; `None` before the first time, and where
    /// it has ended.
    pub(crate) fn reported_ago(&self, now: Coarse) -> Option<Duration> {
        let at = self.reported_at.load(Ordering::Relaxed);
        (at != NEVER).then(|| now.since(Coarse::from_millis(at)))
    }

    /// The member's loop has turned.
    pub(crate) fn turned(&self, now: Coarse) {
        self.turned_at.store(now.as_millis(), Ordering::Relaxed);
    }

    pub(crate) fn member(&self, now: Coarse) -> MemberStatus {
        let phase = match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Joined as u8 => Phase::Joined,
            phase if phase == Phase::Stopping as u8 => Phase::Stopping,
            phase if phase == Phase::Ended as u8 => Phase::Ended,
            _ => Phase::Joining,
        };
        let turned_at = Coarse::from_millis(self.turned_at.load(Ordering::Relaxed));
        MemberStatus {
            phase,
            turned_ago: now.since(turned_at),
            budget_spent: self.budget_spent.load(Ordering::Relaxed),
            held_up: self.held_up.read().clone(),
            stopped_by: self.stopped_by.read().clone(),
            broken: self.broken.read().clone(),
        }
    }

    /// Wakes the reporter, which looks again at once. Full means that it has been
    /// woken and has not looked yet.
    pub(crate) fn ring(&self) {
        let _ = self.bell.try_send(());
    }
}

/// Says that the run has ended when it is dropped, be it by a panic.
pub(crate) struct EndsRun(pub(crate) Arc<Shared>);

impl Drop for EndsRun {
    fn drop(&mut self) {
        self.0.set_owned(Vec::new());
        self.0.set_workers(0);
        self.0.set_phase(Phase::Ended);
    }
}
