//! What happens in a run, as values that a program can log or count.

use std::fmt;

use crate::record::TopicPartition;
use crate::report::WorkerStop;

/// Something that happened, with the moment in milliseconds since 1970.
///
/// Names and fields follow the events of Apache Kafka's `VerifiableConsumer`
/// where it has them. Events are given to the observer of
/// [`Builder::on_event`](crate::Builder::on_event) in order, on a thread of
/// their own.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The worker it happened on, where one is concerned.
    pub worker: Option<usize>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// The cluster answered and the member is about to join.
    StartupComplete,
    /// A worker got partitions.
    PartitionsAssigned {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// Moved between workers of this process, without a rebalance.
        local: bool,
    },
    /// Partitions left a worker after their last record was handled.
    PartitionsRevoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// Moved between workers of this process, without a rebalance.
        local: bool,
    },
    /// Partitions were taken away without notice; nothing of them is committed.
    PartitionsLost {
        /// Which.
        partitions: Vec<TopicPartition>,
    },
    /// Records were completed since the last such event of this worker.
    RecordsConsumed {
        /// By partition.
        partitions: Vec<ConsumedRange>,
    },
    /// A commit was answered.
    OffsetsCommitted {
        /// The committed offsets (next offset to read), by partition.
        offsets: Vec<(TopicPartition, i64)>,
        /// Kafka's words where it failed; librdkafka tries again by itself.
        error: Option<String>,
    },
    /// A worker began to run.
    WorkerStarted {
        /// Its process, where it has one of its own.
        pid: Option<u32>,
    },
    /// A worker ended. Also where it had not begun to run yet: a process that is
    /// not needed any more, or dies, before it is ready.
    WorkerStopped {
        /// Why.
        reason: WorkerStop,
        /// Its process, where it had one of its own.
        pid: Option<u32>,
    },
    /// A worker was replaced after it failed.
    WorkerRestarted {
        /// Why.
        reason: WorkerStop,
        /// How often a worker of this number was replaced in this run.
        restarts: u32,
        /// The process of the one that failed, where it had one of its own.
        pid: Option<u32>,
    },
    /// A record failed and will be handed over again.
    RecordRetried {
        /// Its partition.
        partition: TopicPartition,
        /// Its offset.
        offset: i64,
        /// How often it has been handed over.
        attempt: u32,
        /// What the handler said.
        error: String,
    },
    /// A record is in the dead-letter topic, and completed.
    RecordDeadLettered {
        /// Its partition.
        partition: TopicPartition,
        /// Its offset.
        offset: i64,
        /// How often it had been handed over.
        attempt: u32,
        /// What the handler said.
        error: String,
    },
    /// A record was skipped: its handler said so, or the policy for records that
    /// failed too often.
    RecordSkipped {
        /// Its partition.
        partition: TopicPartition,
        /// Its offset.
        offset: i64,
        /// How often it has been handed over.
        attempt: u32,
        /// What the handler said.
        error: String,
    },
    /// The position of a partition could not be read any more, and was reset.
    PositionReset {
        /// Its partition.
        partition: TopicPartition,
        /// The offset that could not be read.
        from: i64,
        /// The offset that is read instead.
        to: i64,
        /// What decided that: `earliest` or `latest`, the policy for offsets out
        /// of range; `truncation`, the place where the log differs from what was
        /// read.
        policy: &'static str,
        /// Why it could not be read.
        reason: ResetReason,
    },
    /// Something the runtime goes on after, but a person should know: contact
    /// lost or found again, a topic that disappeared, an overrun deadline.
    Warning {
        /// One sentence: value, rule and remedy.
        message: String,
    },
    /// The run ended; the last event.
    ShutdownComplete {
        /// Why.
        reason: crate::report::StopReason,
        /// Records that were handed to a handler and whose completion was not
        /// committed: they will be delivered again.
        left_uncommitted: u64,
    },
}

/// Records of one partition that were completed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumedRange {
    /// Their partition.
    pub partition: TopicPartition,
    /// How many.
    pub count: u64,
    /// The lowest offset among them.
    pub min_offset: i64,
    /// The highest offset among them.
    pub max_offset: i64,
}

impl ConsumedRange {
    /// Adds records to what was noted of a partition.
    pub(crate) fn note(
        noted: &mut Option<Self>,
        partition: &TopicPartition,
        count: u64,
        min_offset: i64,
        max_offset: i64,
    ) {
        let range = noted.get_or_insert_with(|| Self {
            partition: partition.clone(),
            count: 0,
            min_offset,
            max_offset,
        });
        range.count += count;
        range.min_offset = range.min_offset.min(min_offset);
        range.max_offset = range.max_offset.max(max_offset);
    }
}

impl EventKind {
    /// The event's name as the command prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StartupComplete => "startup_complete",
            Self::PartitionsAssigned { .. } => "partitions_assigned",
            Self::PartitionsRevoked { .. } => "partitions_revoked",
            Self::PartitionsLost { .. } => "partitions_lost",
            Self::RecordsConsumed { .. } => "records_consumed",
            Self::OffsetsCommitted { .. } => "offsets_committed",
            Self::WorkerStarted { .. } => "worker_started",
            Self::WorkerStopped { .. } => "worker_stopped",
            Self::WorkerRestarted { .. } => "worker_restarted",
            Self::RecordRetried { .. } => "record_retried",
            Self::RecordDeadLettered { .. } => "record_dead_lettered",
            Self::RecordSkipped { .. } => "record_skipped",
            Self::PositionReset { .. } => "position_reset",
            Self::Warning { .. } => "warning",
            Self::ShutdownComplete { .. } => "shutdown_complete",
        }
    }
}

impl fmt::Display for Event {
    /// One line for a log: the name, the worker, and what it is about.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if let Some(worker) = self.worker {
            write!(f, " worker={worker}")?;
        }
        self.kind.write_details(f)
    }
}

impl EventKind {
    fn write_details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartupComplete => Ok(()),
            Self::WorkerStarted { pid } => write_pid(f, *pid),
            Self::PartitionsAssigned { partitions, local }
            | Self::PartitionsRevoked { partitions, local } => {
                write!(f, " partitions={partitions:?}")?;
                f.write_str(if *local { " local" } else { "" })
            }
            Self::PartitionsLost { partitions } => write!(f, " partitions={partitions:?}"),
            Self::RecordsConsumed { partitions } => {
                let count: u64 = partitions.iter().map(|range| range.count).sum();
                write!(f, " count={count}")
            }
            Self::OffsetsCommitted { offsets, error } => {
                write!(f, " offsets={offsets:?}")?;
                error
                    .as_ref()
                    .map_or(Ok(()), |error| write!(f, " error={error}"))
            }
            Self::WorkerStopped { reason, pid } => {
                write_pid(f, *pid)?;
                write_reason(f, reason)
            }
            Self::WorkerRestarted {
                reason,
                restarts,
                pid,
            } => {
                write_pid(f, *pid)?;
                write_reason(f, reason)?;
                write!(f, " restarts={restarts}")
            }
            Self::RecordRetried {
                partition,
                offset,
                attempt,
                error,
            }
            | Self::RecordDeadLettered {
                partition,
                offset,
                attempt,
                error,
            }
            | Self::RecordSkipped {
                partition,
                offset,
                attempt,
                error,
            } => {
                write!(
                    f,
                    " record={partition}@{offset} attempt={attempt} error={error}"
                )
            }
            Self::PositionReset {
                partition,
                from,
                to,
                policy,
                reason,
            } => {
                write!(
                    f,
                    " partition={partition} from={from} to={to} policy={policy} reason={}",
                    reason.name()
                )
            }
            Self::Warning { message } => write!(f, " {message}"),
            Self::ShutdownComplete {
                reason,
                left_uncommitted,
            } => {
                write!(
                    f,
                    " reason={} left_uncommitted={left_uncommitted}",
                    reason.name()
                )
            }
        }
    }

    /// True for what comes many times a second and says little by itself.
    pub(crate) fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::RecordsConsumed { .. } | Self::OffsetsCommitted { error: None, .. }
        )
    }
}

/// Why a position could not be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetReason {
    /// Retention passed it: it is below the oldest record.
    BelowLogStart,
    /// It is above the end: the log lost what was there.
    AboveEnd,
    /// The log was cut off below it by an election, and grew again.
    Truncated,
}

impl ResetReason {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::BelowLogStart => "below-log-start",
            Self::AboveEnd => "above-end",
            Self::Truncated => "truncated",
        }
    }
}

fn write_pid(f: &mut fmt::Formatter<'_>, pid: Option<u32>) -> fmt::Result {
    pid.map_or(Ok(()), |pid| write!(f, " pid={pid}"))
}

fn write_reason(f: &mut fmt::Formatter<'_>, reason: &WorkerStop) -> fmt::Result {
    write!(f, " reason={}", reason.name())?;
    reason
        .detail()
        .map_or(Ok(()), |detail| write!(f, " ({detail})"))
}
