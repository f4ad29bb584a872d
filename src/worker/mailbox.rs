//! What the member wants of a worker, until the worker looks.
//!
//! A queue of commands would grow without bound while a handler is stuck and
//! the group rebalances on. So this is not a queue but a state: per lane at
//! most one wish. A release of a lane that the worker never picked up cancels
//! its hand-over, and the member is told at once that it is free.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::record::AssignmentEpoch;
use crate::source::Waker;
use crate::worker::lane::{Failed, LaneStart, ReleaseCause};

/// One wish; the order in which they are taken is the order in which they were
/// made.
#[derive(Debug)]
pub(crate) enum Wish {
    /// Work on these lanes from now on.
    Take { lanes: Vec<LaneStart>, local: bool },
    /// Give these lanes back after the record in hand.
    Release {
        epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
    },
    /// Hand over nothing of these lanes (or again).
    SetPaused {
        epochs: Vec<AssignmentEpoch>,
        paused: bool,
    },
}

#[derive(Debug, Default)]
struct Wishes {
    list: Vec<Wish>,
    /// To give everything back for that cause, and to end.
    stop: Option<ReleaseCause>,
}

/// Shared by the member and one worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    wishes: Mutex<Wishes>,
    /// True while there is something to take: the worker looks at this between
    /// two records, which costs less than a lock.
    attention: AtomicBool,
    /// The stop is cut short: nobody waits for what is in hand.
    is_cut_short: AtomicBool,
    /// The worker has made its handler and opened its source.
    is_opened: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Mailbox {
    pub(crate) fn new() -> Self {
        Self {
            wishes: Mutex::default(),
            attention: AtomicBool::new(false),
            is_cut_short: AtomicBool::new(false),
            is_opened: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    /// The worker has made its handler and opened its source.
    pub(crate) fn set_opened(&self) {
        self.is_opened.store(true, Ordering::Release);
    }

    pub(crate) fn is_opened(&self) -> bool {
        self.is_opened.load(Ordering::Acquire)
    }

    /// From now on a wish interrupts the worker's wait.
    pub(crate) fn set_waker(&self, waker: Waker) {
        *self.waker.lock() = Some(waker);
        // A wish made before must not wait for the end of the first pull.
        if self.has_wishes()
            && let Some(waker) = &*self.waker.lock()
        {
            waker.wake();
        }
    }

    /// True where the worker should stop after the record in hand and look.
    #[inline]
    pub(crate) fn has_wishes(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    pub(crate) fn take_lanes(&self, lanes: Vec<LaneStart>, local: bool) {
        self.put(|wishes| wishes.list.push(Wish::Take { lanes, local }));
    }

    pub(crate) fn set_paused(&self, epochs: Vec<AssignmentEpoch>, paused: bool) {
        self.put(|wishes| {
            // Only the last wish per lane counts.
            for wish in &mut wishes.list {
                if let Wish::SetPaused {
                    epochs: earlier, ..
                } = wish
                {
                    earlier.retain(|epoch| !epochs.contains(epoch));
                }
            }
            wishes.list.retain(
                |wish| !matches!(wish, Wish::SetPaused { epochs, .. } if epochs.is_empty()),
            );
            wishes.list.push(Wish::SetPaused { epochs, paused });
        });
    }

    /// Asks for these lanes; gives back those that the worker never picked up
    /// and that are therefore free already, with what had failed in them.
    pub(crate) fn release(
        &self,
        mut epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
    ) -> Vec<(AssignmentEpoch, Option<Failed>)> {
        let mut free = Vec::new();
        self.put(|wishes| {
            for wish in &mut wishes.list {
                match wish {
                    Wish::Take { lanes, .. } => lanes.retain_mut(|lane| {
                        let taken_back = epochs.contains(&lane.epoch);
                        if taken_back {
                            free.push((lane.epoch, lane.failed.take()));
                        }
                        !taken_back
                    }),
                    Wish::Release {
                        epochs: earlier, ..
                    }
                    | Wish::SetPaused {
                        epochs: earlier, ..
                    } => {
                        // The later cause wins: a move that became a revoke.
                        earlier.retain(|epoch| !epochs.contains(epoch));
                    }
                }
            }
            wishes.list.retain(|wish| match wish {
                Wish::Take { lanes, .. } => !lanes.is_empty(),
                Wish::Release { epochs, .. } | Wish::SetPaused { epochs, .. } => !epochs.is_empty(),
            });
            epochs.retain(|epoch| !free.iter().any(|(freed, _)| freed == epoch));
            if !epochs.is_empty() {
                wishes.list.push(Wish::Release { epochs, cause });
            }
        });
        free
    }

    /// The worker gives everything back, for that cause, and ends.
    pub(crate) fn stop(&self, cause: ReleaseCause) {
        self.put(|wishes| wishes.stop = Some(cause));
    }

    /// Nobody waits any more for what the worker has in hand: what can be
    /// cancelled is.
    pub(crate) fn cut_short(&self) {
        self.put(|wishes| {
            wishes.stop = Some(ReleaseCause::Revoked);
            self.is_cut_short.store(true, Ordering::Release);
        });
    }

    /// True once nobody waits for what the worker has in hand.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.is_cut_short.load(Ordering::Acquire)
    }

    /// True once the worker was told to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.wishes.lock().stop.is_some()
    }

    /// Everything that was wished since the last look, and whether to stop
    /// after it, and why. A stop stays.
    pub(crate) fn take(&self) -> (Vec<Wish>, Option<ReleaseCause>) {
        let mut wishes = self.wishes.lock();
        self.attention
            .store(wishes.stop.is_some(), Ordering::Release);
        (std::mem::take(&mut wishes.list), wishes.stop)
    }

    fn put(&self, change: impl FnOnce(&mut Wishes)) {
        let mut wishes = self.wishes.lock();
        change(&mut wishes);
        // Under the lock: were it outside, the worker could take this wish and
        // clear the flag before we set it, and would look once for nothing.
        self.attention.store(true, Ordering::Release);
        drop(wishes);
        if let Some(waker) = &*self.waker.lock() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::TopicPartition;
    use crate::worker::tracker::Tracker;

    fn lane(epoch: u64) -> LaneStart {
        LaneStart {
            partition: TopicPartition::new("t", 0),
            epoch: AssignmentEpoch(epoch),
            tracker: Arc::new(Tracker::new(AssignmentEpoch(1))),
            offset: 0,
            until: None,
            paused: false,
            failed: None,
            completed: None,
        }
    }

    #[test]
    fn a_lane_that_was_never_picked_up_is_free_at_once() {
        let mailbox = Mailbox::new();
        mailbox.take_lanes(vec![lane(1), lane(2)], false);
        let free = mailbox.release(
            vec![AssignmentEpoch(2), AssignmentEpoch(9)],
            ReleaseCause::Revoked,
        );
        assert_eq!(free, [(AssignmentEpoch(2), None)]);
        let (wishes, stop) = mailbox.take();
        assert_eq!(stop, None);
        assert!(matches!(&wishes[..], [
            Wish::Take { lanes, .. },
            Wish::Release { epochs, .. },
        ] if lanes.len() == 1 && epochs[..] == [AssignmentEpoch(9)]));
        assert!(!mailbox.has_wishes());
    }

    #[test]
    fn wishes_do_not_pile_up_while_a_worker_is_stuck() {
        let mailbox = Mailbox::new();
        for round in 0..1_000 {
            mailbox.take_lanes(vec![lane(round)], false);
            mailbox.set_paused(vec![AssignmentEpoch(round)], true);
            mailbox.set_paused(vec![AssignmentEpoch(round)], false);
            mailbox.release(vec![AssignmentEpoch(round)], ReleaseCause::Revoked);
            mailbox.release(vec![AssignmentEpoch(u64::MAX)], ReleaseCause::Moved);
        }
        assert_eq!(mailbox.take().0.len(), 1);
    }

    #[test]
    fn a_stop_is_not_forgotten_by_looking() {
        let mailbox = Mailbox::new();
        mailbox.stop(ReleaseCause::Moved);
        assert_eq!(mailbox.take().1, Some(ReleaseCause::Moved));
        assert!(mailbox.has_wishes());
        assert_eq!(mailbox.take().1, Some(ReleaseCause::Moved));
    }
}
