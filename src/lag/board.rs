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

#[cfg(feature = "http")]
use parking_lot::Mutex;
use parking_lot::RwLock;

#[cfg(feature = "http")]
use super::history::{History, Since};
use super::snapshot::LagSnapshot;
use crate::record::TopicPartition;

/// The latest snapshot, and the generation of what it covers.
#[derive(Debug, Default)]
pub(crate) struct Board {
    hung: RwLock<Hung>,
    /// What hung there lately, for the page.
    #[cfg(feature = "http")]
    past: Mutex<History>,
}

#[derive(Debug, Default)]
struct Hung {
    generation: u64,
    snapshot: Arc<LagSnapshot>,
}

impl Board {
    /// The latest snapshot.
    pub(crate) fn latest(&self) -> Arc<LagSnapshot> {
        Arc::clone(&self.hung.read().snapshot)
    }

    /// Hangs up a snapshot of what was owned in that generation; gives back
    /// the one that hung there. Refused, and given back itself, where the
    /// ownership has changed since.
    pub(crate) fn hang(
        &self,
        generation: u64,
        snapshot: Arc<LagSnapshot>,
    ) -> Result<Arc<LagSnapshot>, Arc<LagSnapshot>> {
        let mut hung = self.hung.write();
        if generation < hung.generation {
            return Err(snapshot);
        }
        hung.generation = generation;
        Ok(std::mem::replace(&mut hung.snapshot, snapshot))
    }

    /// The ownership changed: takes off what is not owned any more.
    pub(crate) fn retain(&self, generation: u64, is_owned: impl Fn(&TopicPartition) -> bool) {
        let mut hung = self.hung.write();
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
}
