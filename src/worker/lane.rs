//! The unit of order: what a worker needs to know of a partition that it has.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::event::EventKind;
use crate::record::{AssignmentEpoch, TopicPartition};
use crate::worker::completed::Completed;
use crate::worker::dead_letter::Dead;
use crate::worker::tracker::Tracker;

/// A lane on its way to a worker.
#[derive(Clone, Debug)]
pub(crate) struct LaneStart {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) tracker: Arc<Tracker>,
    /// First offset to hand over.
    pub(crate) offset: i64,
    /// First offset that is not wanted any more, if any.
    pub(crate) until: Option<i64>,
    pub(crate) paused: bool,
    /// The record that failed last, so that its attempts are counted on in
    /// another worker.
    pub(crate) failed: Option<Failed>,
    /// What is completed of it at or after `offset`, and is left out.
    pub(crate) completed: Option<Arc<Completed>>,
}

/// A record that failed, and is handed over again or goes to the dead-letter
/// topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) offset: i64,
    /// How often it was handed over.
    pub(crate) attempts: u32,
    pub(crate) not_before: Option<Instant>,
    /// Where it is not handed over any more.
    pub(crate) dead: Option<Dead>,
}

/// Why a worker gives a lane back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum ReleaseCause {
    /// The group gives it to somebody else, or the run ends.
    Revoked,
    /// The group has given it to somebody else already.
    Lost,
    /// Another worker of this process takes it.
    Moved,
    /// It goes on elsewhere in the partition (seek, reset); same worker or not.
    Repositioned,
}

impl ReleaseCause {
    /// What the observer is told of it.
    pub(crate) fn event(self, partitions: Vec<TopicPartition>) -> Option<EventKind> {
        match self {
            Self::Revoked => Some(EventKind::PartitionsRevoked {
                partitions,
                local: false,
            }),
            Self::Moved => Some(EventKind::PartitionsRevoked {
                partitions,
                local: true,
            }),
            Self::Lost => Some(EventKind::PartitionsLost { partitions }),
            Self::Repositioned => None,
        }
    }
}
