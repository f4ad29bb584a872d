//! What a parent and its children say to each other.
//!
//! The types here are the line's own: the public types of the crate do not
//! promise a form in bytes, and what a `Failed` or a `LaneStart` holds of a
//! process (moments, waiting letters, counters that others read) does not cross.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::event::{ConsumedRange, EventKind};
use crate::lag::window::Observed;
use crate::record::{AssignmentEpoch, TopicPartition};
use crate::report::{StopReason, WorkerStop};
use crate::source::ReadError;
use crate::worker::completed::Completed;
use crate::worker::dead_letter::Dead;
use crate::worker::lane::{Failed, LaneStart, ReleaseCause};
use crate::worker::run::WorkerExit;
use crate::worker::tracker::Numbers;

/// Raised when a message changes. Parent and child are one executable, so they
/// differ only where it was replaced while the parent ran.
pub(crate) const VERSION: u32 = 2;

/// Lanes that one message tells of at most.
pub(crate) const LANES_AT_A_TIME: usize = 128;

/// What a child hears.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToChild {
    Welcome(Welcome),
    Take {
        lanes: Vec<LaneToChild>,
        local: bool,
    },
    Release {
        epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
    },
    SetPaused {
        epochs: Vec<AssignmentEpoch>,
        paused: bool,
    },
    /// The parent's gate, in the machine's time. Answered by a pulse.
    Beat {
        at_ms: u64,
        is_shut: bool,
    },
    /// So many workers share the budget of memory.
    Sharers(usize),
    /// So many records more may be handled.
    Granted(u64),
    /// Give everything back, for that cause, and end.
    Stop {
        cause: ReleaseCause,
    },
}

/// What a child needs to begin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Where the parent has found the cluster: that may be known to it alone, as
    /// with a cluster that it started.
    pub(crate) bootstrap: String,
    pub(crate) worker: usize,
    pub(crate) restarts: u32,
    /// After that time without a beat no record may be started.
    pub(crate) gate_limit: Duration,
}

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToParent {
    Hello {
        version: u32,
        pid: u32,
        /// Names and values of what both have to agree on.
        terms: Vec<(String, String)>,
    },
    /// The handler is made and the source is open.
    Opened,
    Numbers(Vec<LaneNumbers>),
    Happened(Happened),
    /// As [`FromWorker::Released`](crate::worker::run::FromWorker::Released).
    Released {
        lanes: Vec<(AssignmentEpoch, Option<FailedRecord>)>,
        cause: Option<ReleaseCause>,
    },
    ReadFailed {
        epoch: AssignmentEpoch,
        offset: i64,
        error: ReadError,
    },
    /// So many records more could be handled at once.
    Wants(u64),
    /// So many records that were granted are not needed.
    GivesBack(u64),
    /// It is there, and has nothing to say.
    Pulse,
    /// The worker has ended. The last message.
    Exited {
        exit: Exit,
        lanes: Vec<(AssignmentEpoch, Option<FailedRecord>)>,
    },
}

/// A partition.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    topic: Arc<str>,
    partition: i32,
}

impl From<TopicPartition> for Place {
    fn from(partition: TopicPartition) -> Self {
        Self {
            topic: partition.shared_topic(),
            partition: partition.partition(),
        }
    }
}

impl From<Place> for TopicPartition {
    fn from(place: Place) -> Self {
        Self::new(place.topic, place.partition)
    }
}

fn places(partitions: Vec<TopicPartition>) -> Vec<Place> {
    partitions.into_iter().map(Place::from).collect()
}

fn partitions(places: Vec<Place>) -> Vec<TopicPartition> {
    places.into_iter().map(TopicPartition::from).collect()
}

/// A lane on its way to a child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LaneToChild {
    place: Place,
    pub(crate) epoch: AssignmentEpoch,
    owned_since: AssignmentEpoch,
    pub(crate) offset: i64,
    until: Option<i64>,
    paused: bool,
    failed: Option<FailedRecord>,
    completed: Option<Completed>,
}

impl LaneToChild {
    pub(crate) fn of(start: &LaneStart, now: Instant) -> Self {
        Self {
            place: start.partition.clone().into(),
            epoch: start.epoch,
            owned_since: start.tracker.owned_since(),
            offset: start.offset,
            until: start.until,
            paused: start.paused,
            failed: start
                .failed
                .as_ref()
                .map(|failed| FailedRecord::of(failed, now)),
            completed: start.completed.as_deref().cloned(),
        }
    }

    /// As a worker of this process takes it, with a tracker of its own.
    pub(crate) fn start(self, now: Instant) -> LaneStart {
        let tracker = crate::worker::tracker::Tracker::new(self.owned_since);
        tracker.begin(self.offset);
        LaneStart {
            partition: self.place.into(),
            epoch: self.epoch,
            tracker: Arc::new(tracker),
            offset: self.offset,
            until: self.until,
            paused: self.paused,
            failed: self.failed.map(|failed| failed.failed(now)),
            completed: self.completed.map(Arc::new),
        }
    }
}

/// A record that failed. Moments are told by how long they are away; a letter
/// that is under way stays with the process that sent it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FailedRecord {
    offset: i64,
    attempts: u32,
    wait: Option<Duration>,
    dead: Option<DeadRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DeadRecord {
    through: i64,
    error: String,
}

impl FailedRecord {
    pub(crate) fn of(failed: &Failed, now: Instant) -> Self {
        Self {
            offset: failed.offset,
            attempts: failed.attempts,
            wait: failed
                .not_before
                .map(|then| then.saturating_duration_since(now)),
            dead: failed.dead.as_ref().map(|dead| DeadRecord {
                through: dead.through,
                error: dead.error.clone(),
            }),
        }
    }

    pub(crate) fn failed(self, now: Instant) -> Failed {
        Failed {
            offset: self.offset,
            attempts: self.attempts,
            not_before: self.wait.map(|wait| now + wait),
            dead: self.dead.map(|dead| Dead::new(dead.through, dead.error)),
        }
    }
}

/// What is news of a lane: everything is counted since the child has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LaneNumbers {
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) numbers: Numbers,
    /// Since it was told last.
    pub(crate) lag: Observed,
    pub(crate) lead: Observed,
    /// What is completed beyond the watermark, where that is news.
    pub(crate) completed: Option<Completed>,
}

/// An event of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Happened {
    Started,
    Assigned {
        partitions: Vec<Place>,
        local: bool,
    },
    Revoked {
        partitions: Vec<Place>,
        local: bool,
    },
    Lost {
        partitions: Vec<Place>,
    },
    Consumed {
        partitions: Vec<(Place, u64, i64, i64)>,
    },
    Failed {
        what: Failure,
        place: Place,
        offset: i64,
        attempt: u32,
        error: String,
    },
    Warning {
        message: String,
    },
}

/// What became of a record that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Retried,
    DeadLettered,
    Skipped,
}

impl Happened {
    /// `None` for what no worker tells.
    pub(crate) fn of(kind: EventKind) -> Option<Self> {
        Some(match kind {
            EventKind::WorkerStarted { .. } => Self::Started,
            EventKind::PartitionsAssigned { partitions, local } => Self::Assigned {
                partitions: places(partitions),
                local,
            },
            EventKind::PartitionsRevoked { partitions, local } => Self::Revoked {
                partitions: places(partitions),
                local,
            },
            EventKind::PartitionsLost { partitions } => Self::Lost {
                partitions: places(partitions),
            },
            EventKind::RecordsConsumed { partitions } => Self::Consumed {
                partitions: partitions
                    .into_iter()
                    .map(|range| {
                        let place = Place::from(range.partition);
                        (place, range.count, range.min_offset, range.max_offset)
                    })
                    .collect(),
            },
            EventKind::RecordRetried {
                partition,
                offset,
                attempt,
                error,
            } => Self::failed(Failure::Retried, partition, offset, attempt, error),
            EventKind::RecordDeadLettered {
                partition,
                offset,
                attempt,
                error,
            } => Self::failed(Failure::DeadLettered, partition, offset, attempt, error),
            EventKind::RecordSkipped {
                partition,
                offset,
                attempt,
                error,
            } => Self::failed(Failure::Skipped, partition, offset, attempt, error),
            EventKind::Warning { message } => Self::Warning { message },
            EventKind::StartupComplete
            | EventKind::OffsetsCommitted { .. }
            | EventKind::WorkerStopped { .. }
            | EventKind::WorkerRestarted { .. }
            | EventKind::PositionReset { .. }
            | EventKind::ShutdownComplete { .. } => return None,
        })
    }

    fn failed(
        what: Failure,
        partition: TopicPartition,
        offset: i64,
        attempt: u32,
        error: String,
    ) -> Self {
        Self::Failed {
            what,
            place: partition.into(),
            offset,
            attempt,
            error,
        }
    }

    /// As an event of the run, of a worker in that process.
    pub(crate) fn kind(self, pid: u32) -> EventKind {
        match self {
            Self::Started => EventKind::WorkerStarted { pid: Some(pid) },
            Self::Assigned {
                partitions: of,
                local,
            } => EventKind::PartitionsAssigned {
                partitions: partitions(of),
                local,
            },
            Self::Revoked {
                partitions: of,
                local,
            } => EventKind::PartitionsRevoked {
                partitions: partitions(of),
                local,
            },
            Self::Lost { partitions: of } => EventKind::PartitionsLost {
                partitions: partitions(of),
            },
            Self::Consumed { partitions } => EventKind::RecordsConsumed {
                partitions: partitions
                    .into_iter()
                    .map(|(place, count, min_offset, max_offset)| ConsumedRange {
                        partition: place.into(),
                        count,
                        min_offset,
                        max_offset,
                    })
                    .collect(),
            },
            Self::Failed {
                what,
                place,
                offset,
                attempt,
                error,
            } => {
                let partition = TopicPartition::from(place);
                match what {
                    Failure::Retried => EventKind::RecordRetried {
                        partition,
                        offset,
                        attempt,
                        error,
                    },
                    Failure::DeadLettered => EventKind::RecordDeadLettered {
                        partition,
                        offset,
                        attempt,
                        error,
                    },
                    Failure::Skipped => EventKind::RecordSkipped {
                        partition,
                        offset,
                        attempt,
                        error,
                    },
                }
            }
            Self::Warning { message } => EventKind::Warning { message },
        }
    }
}

/// Why a worker ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Exit {
    Asked,
    HandlerPanicked(String),
    SourceFailed(String),
    HookPanicked {
        hook: String,
        message: String,
    },
    HandlerStop {
        place: Place,
        offset: i64,
        reason: String,
    },
    RetriesExhausted {
        place: Place,
        offset: i64,
        attempts: u32,
        error: String,
    },
    /// The whole run has to end, for something else.
    Fatal(String),
}

/// The hooks there are: their names are words of the program and not of a line.
const HOOKS: [&str; 4] = ["factory", "on_assigned", "on_revoked", "on_lost"];

impl Exit {
    pub(crate) fn of(exit: WorkerExit) -> Self {
        match exit {
            WorkerExit::Asked => Self::Asked,
            WorkerExit::Failed(WorkerStop::HandlerPanicked(message)) => {
                Self::HandlerPanicked(message)
            }
            WorkerExit::Failed(other) => {
                Self::SourceFailed(other.detail().unwrap_or(other.name()).to_owned())
            }
            WorkerExit::EndsRun(StopReason::HookPanicked { hook, message }, _) => {
                Self::HookPanicked {
                    hook: hook.to_owned(),
                    message,
                }
            }
            WorkerExit::EndsRun(
                StopReason::HandlerStop {
                    partition,
                    offset,
                    reason,
                },
                _,
            ) => Self::HandlerStop {
                place: partition.into(),
                offset,
                reason,
            },
            WorkerExit::EndsRun(
                StopReason::RetriesExhausted {
                    partition,
                    offset,
                    attempts,
                    error,
                },
                _,
            ) => Self::RetriesExhausted {
                place: partition.into(),
                offset,
                attempts,
                error,
            },
            WorkerExit::EndsRun(other, _) => Self::Fatal(other.to_string()),
        }
    }

    pub(crate) fn exit(self) -> WorkerExit {
        match self {
            Self::Asked => WorkerExit::Asked,
            Self::HandlerPanicked(message) => {
                WorkerExit::Failed(WorkerStop::HandlerPanicked(message))
            }
            Self::SourceFailed(message) => WorkerExit::Failed(WorkerStop::SourceFailed(message)),
            Self::HookPanicked { hook, message } => WorkerExit::EndsRun(
                StopReason::HookPanicked {
                    hook: HOOKS
                        .into_iter()
                        .find(|known| *known == hook)
                        .unwrap_or("a hook"),
                    message: message.clone(),
                },
                WorkerStop::HookPanicked(message),
            ),
            Self::HandlerStop {
                place,
                offset,
                reason,
            } => WorkerExit::EndsRun(
                StopReason::HandlerStop {
                    partition: place.into(),
                    offset,
                    reason,
                },
                WorkerStop::HandlerStop,
            ),
            Self::RetriesExhausted {
                place,
                offset,
                attempts,
                error,
            } => WorkerExit::EndsRun(
                StopReason::RetriesExhausted {
                    partition: place.into(),
                    offset,
                    attempts,
                    error,
                },
                WorkerStop::RetriesExhausted,
            ),
            Self::Fatal(message) => WorkerExit::EndsRun(
                StopReason::FatalClientError {
                    message: message.clone(),
                },
                WorkerStop::SourceFailed(message),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::line;

    /// What comes out at the other end.
    fn through_the_line(message: &ToParent) -> ToParent {
        let mut bytes = Vec::new();
        line::write(&mut bytes, message).expect("it is short");
        let mut incoming = line::Incoming::default();
        incoming.push(&bytes);
        incoming
            .next()
            .expect("it is a message")
            .expect("it is whole")
    }

    #[test]
    fn what_a_worker_tells_is_the_same_at_the_other_end() {
        let partition = TopicPartition::new("orders", 3);
        let partitions = vec![partition.clone()];
        let kinds = [
            EventKind::WorkerStarted { pid: Some(9) },
            EventKind::PartitionsAssigned {
                partitions: partitions.clone(),
                local: true,
            },
            EventKind::PartitionsRevoked {
                partitions: partitions.clone(),
                local: false,
            },
            EventKind::PartitionsLost { partitions },
            EventKind::RecordsConsumed {
                partitions: vec![ConsumedRange {
                    partition: partition.clone(),
                    count: 7,
                    min_offset: 1,
                    max_offset: 9,
                }],
            },
            EventKind::RecordRetried {
                partition: partition.clone(),
                offset: 4,
                attempt: 2,
                error: "no".into(),
            },
            EventKind::RecordDeadLettered {
                partition: partition.clone(),
                offset: 4,
                attempt: 3,
                error: "no".into(),
            },
            EventKind::RecordSkipped {
                partition,
                offset: 5,
                attempt: 1,
                error: String::new(),
            },
            EventKind::Warning {
                message: "slow".into(),
            },
        ];
        for kind in kinds {
            let told = Happened::of(kind.clone()).expect("a worker tells it");
            let ToParent::Happened(heard) = through_the_line(&ToParent::Happened(told)) else {
                panic!("an event became something else");
            };
            assert_eq!(heard.kind(9), kind);
        }
        assert!(Happened::of(EventKind::StartupComplete).is_none());
    }

    #[test]
    fn a_worker_ends_for_the_same_reason_at_the_other_end() {
        let partition = TopicPartition::new("orders", 3);
        let exits = [
            WorkerExit::Asked,
            WorkerExit::Failed(WorkerStop::HandlerPanicked("boom".into())),
            WorkerExit::Failed(WorkerStop::SourceFailed("no descriptors".into())),
            WorkerExit::EndsRun(
                StopReason::HookPanicked {
                    hook: "on_revoked",
                    message: "boom".into(),
                },
                WorkerStop::HookPanicked("boom".into()),
            ),
            WorkerExit::EndsRun(
                StopReason::HandlerStop {
                    partition: partition.clone(),
                    offset: 8,
                    reason: "enough".into(),
                },
                WorkerStop::HandlerStop,
            ),
            WorkerExit::EndsRun(
                StopReason::RetriesExhausted {
                    partition,
                    offset: 8,
                    attempts: 10,
                    error: "no".into(),
                },
                WorkerStop::RetriesExhausted,
            ),
        ];
        for exit in exits {
            let told = ToParent::Exited {
                exit: Exit::of(exit.clone()),
                lanes: Vec::new(),
            };
            let ToParent::Exited { exit: heard, .. } = through_the_line(&told) else {
                panic!("an exit became something else");
            };
            assert_eq!(heard.exit(), exit);
        }
    }

    #[test]
    fn a_failed_record_keeps_its_attempts_and_what_is_left_of_its_wait() {
        let clock = crate::clock::Clock::manual();
        let now = clock.now();
        let failed = Failed {
            offset: 7,
            attempts: 3,
            not_before: Some(now + Duration::from_millis(400)),
            dead: Some(Dead::new(9, "no".into())),
        };
        let told = ToParent::Released {
            lanes: vec![(AssignmentEpoch(1), Some(FailedRecord::of(&failed, now)))],
            cause: None,
        };
        let ToParent::Released { mut lanes, .. } = through_the_line(&told) else {
            panic!("a release became something else");
        };
        let (epoch, heard) = lanes.remove(0);
        assert_eq!(epoch, AssignmentEpoch(1));
        assert_eq!(heard.map(|heard| heard.failed(now)), Some(failed));
    }
}
