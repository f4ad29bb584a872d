//! Where the latest snapshot hangs.
//!
//! A scrape must not ask Kafka, wait for a worker, or see a partition that is
//! somebody else's. So there is one snapshot, replaced as a whole by the
//! reporter; readers take it and go. What leaves the assignment is taken off
//! by the member itself, at once, since the next tick may be a second away.
//! A tick that was under way then cannot hang it back, by this interleaving:
//!
//! 1. the reporter reads what is owned (generation 7) and looks at each;
//! 2. the member revokes a partition: what is owned has generation 8, and
//!    [`Board::retain`] takes the partition off and remembers 8;
//! 3. the reporter comes with a snapshot of generation 7: it is refused, and
//!    the reporter looks again at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::health::{MemberStatus, judge};
#[cfg(feature = "http")]
use super::history::{History, Since};
use super::snapshot::{Advice, LagSnapshot};
use crate::record::TopicPartition;

/// The latest snapshot, and the generation of what it covers.
#[derive(Debug, Default)]
pub(crate) struct Board {
    hung: Mutex<Hung>,
    changed: Condvar,
    /// What hung there lately, for the page.
    #[cfg(feature = "http")]
    past: Mutex<History>,
}

#[derive(Debug)]
struct Hung {
    generation: u64,
    snapshot: Arc<LagSnapshot>,
    /// How many ticks hung something here.
    ticks: u64,
    closed: bool,
}

impl Default for Hung {
    /// Before the first tick nothing is known, and nobody is ready.
    fn default() -> Self {
        let snapshot = LagSnapshot {
            health: judge(&MemberStatus::default(), &[], Duration::MAX),
            ..LagSnapshot::default()
        };
        Self {
            generation: 0,
            snapshot: Arc::new(snapshot),
            ticks: 0,
            closed: false,
        }
    }
}

/// A snapshot was refused: what it covers is out of date.
#[derive(Debug)]
pub(crate) struct Outdated(pub(crate) Arc<LagSnapshot>);

impl Board {
    /// The latest snapshot.
    pub(crate) fn latest(&self) -> Arc<LagSnapshot> {
        Arc::clone(&self.hung.lock().snapshot)
    }

    /// Hangs up a snapshot of what was owned in that generation; gives back
    /// the one that hung there.
    ///
    /// # Errors
    ///
    /// [`Outdated`], with the snapshot itself, where the ownership has changed
    /// since.
    pub(crate) fn hang(
        &self,
        generation: u64,
        snapshot: Arc<LagSnapshot>,
    ) -> Result<Arc<LagSnapshot>, Outdated> {
        let mut hung = self.hung.lock();
        if generation < hung.generation {
            return Err(Outdated(snapshot));
        }
        hung.generation = generation;
        hung.ticks += 1;
        let before = std::mem::replace(&mut hung.snapshot, snapshot);
        drop(hung);
        self.changed.notify_all();
        Ok(before)
    }

    /// Nobody looks any more, or nobody has for long: what hangs here would be
    /// taken for the truth. The numbers of partitions are taken off, and `why` is
    /// hung up in their place, until a younger snapshot comes.
    pub(crate) fn distrust(&self, why: &str) {
        let mut hung = self.hung.lock();
        let snapshot = Arc::make_mut(&mut hung.snapshot);
        snapshot.partitions.clear();
        snapshot.advice = Advice::default();
        snapshot.health.not_live.push(why.to_owned());
        snapshot.reporter_failures += 1;
        hung.ticks += 1;
        drop(hung);
        self.changed.notify_all();
    }

    /// The ownership changed: takes off what is not owned any more.
    pub(crate) fn retain(&self, generation: u64, is_owned: impl Fn(&TopicPartition) -> bool) {
        let mut hung = self.hung.lock();
        hung.generation = generation;
        let all_owned = hung
            .snapshot
            .partitions
            .iter()
            .all(|partition| is_owned(&partition.partition));
        if !all_owned {
            Arc::make_mut(&mut hung.snapshot)
                .partitions
                .retain(|partition| is_owned(&partition.partition));
        }
    }

    /// Waits for a snapshot younger than the tick `seen`, and moves that on.
    /// `None` at the deadline, and where there will be none any more.
    pub(crate) fn wait(&self, seen: &mut u64, deadline: Instant) -> Option<Arc<LagSnapshot>> {
        let mut hung = self.hung.lock();
        while hung.ticks == *seen && !hung.closed {
            if self.changed.wait_until(&mut hung, deadline).timed_out() {
                break;
            }
        }
        if hung.ticks == *seen {
            return None;
        }
        *seen = hung.ticks;
        Some(Arc::clone(&hung.snapshot))
    }

    /// True where there will be no younger snapshot.
    pub(crate) fn is_closed(&self) -> bool {
        self.hung.lock().closed
    }

    /// Adds a tick to what the page shows of the last minutes.
    #[cfg(feature = "http")]
    pub(crate) fn remember(&self, snapshot: &LagSnapshot) {
        self.past.lock().push(snapshot);
    }

    /// The ticks after number `after`, or all that are remembered.
    #[cfg(feature = "http")]
    pub(crate) fn since(&self, after: Option<u64>) -> Since {
        self.past.lock().since(after)
    }

    /// The reporter has ended.
    pub(crate) fn close(&self) {
        self.hung.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::lag::snapshot::PartitionLag;

    fn snapshot(partitions: &[i32]) -> Arc<LagSnapshot> {
        Arc::new(LagSnapshot {
            partitions: partitions
                .iter()
                .map(|&number| PartitionLag::unknown(TopicPartition::new("t", number)))
                .collect(),
            ..LagSnapshot::default()
        })
    }

    fn shown(board: &Board) -> Vec<i32> {
        board
            .latest()
            .partitions
            .iter()
            .map(|partition| partition.partition.partition())
            .collect()
    }

    #[test]
    fn what_is_revoked_is_gone_at_once_and_a_tick_that_was_under_way_does_not_bring_it_back() {
        let board = Board::default();
        board.hang(7, snapshot(&[0, 1])).unwrap();
        let late = snapshot(&[0, 1]);
        board.retain(8, |partition| partition.partition() == 1);
        assert_eq!(shown(&board), [1]);
        assert!(board.hang(7, late).is_err());
        assert_eq!(shown(&board), [1]);
        board.hang(8, snapshot(&[1])).unwrap();
        assert_eq!(shown(&board), [1]);
    }

    #[test]
    fn before_the_first_tick_it_is_live_and_not_ready() {
        let health = Board::default().latest().health.clone();
        assert!(health.is_live());
        assert_eq!(health.not_ready.unwrap(), "has not joined the group yet");
    }

    #[test]
    fn a_reader_keeps_what_it_took() {
        let board = Board::default();
        board.hang(1, snapshot(&[0, 1])).unwrap();
        let taken = board.latest();
        board.retain(2, |_| false);
        assert_eq!(taken.partitions.len(), 2);
        assert_eq!(shown(&board), [0; 0]);
    }

    #[test]
    fn a_subscriber_sees_each_tick_once_and_the_end() {
        let board = Board::default();
        let mut seen = 0;
        let now = Clock::System.now();
        assert!(board.wait(&mut seen, now).is_none());
        board.hang(1, snapshot(&[0])).unwrap();
        assert!(board.wait(&mut seen, now).is_some());
        assert!(board.wait(&mut seen, now).is_none());
        board.hang(1, snapshot(&[0])).unwrap();
        board.close();
        assert!(board.wait(&mut seen, now).is_some(), "the last one");
        assert!(board.wait(&mut seen, now).is_none());
        assert!(board.is_closed());
    }
}
