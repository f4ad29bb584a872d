//! What one tick of the reporter found: plain values, for whoever asks.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Isolation, Model};
use crate::record::TopicPartition;

/// The state of a run as of one tick (one per second), or of a change of the
/// assignment since.
///
/// Given by [`Handle::lag`](crate::Handle::lag) and to subscribers; the HTTP
/// endpoints and the metrics show the same values. Counters count from the
/// start of the run.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LagSnapshot {
    /// Kafka's group id.
    pub group: Arc<str>,
    /// Kafka's client id.
    pub client_id: Arc<str>,
    /// Whose end offsets are meant: the last stable ones under `read_committed`,
    /// else the high watermarks.
    pub isolation: Isolation,
    /// When it was taken, in milliseconds since 1970.
    pub taken_at_ms: i64,
    /// The partitions that this process owns, in order.
    pub partitions: Vec<PartitionLag>,
    /// What a worker is.
    pub model: Model,
    /// The workers, by number.
    pub workers: Vec<WorkerStatus>,
    /// How many workers the load wants.
    pub advice: Advice,
    /// Where the process stands in its group.
    pub member: MemberState,
    /// Why the run stops or has ended; `None` while it goes on. One of the names
    /// of [`StopReason::name`](crate::StopReason::name); [`LagSnapshot::health`]
    /// has the words.
    pub stop_reason: Option<&'static str>,
    /// The topics of which something was owned lately, in order.
    pub topics: Vec<TopicTotals>,
    /// How often the group gave this process an assignment.
    pub rebalances: u64,
    /// Commits that the group confirmed.
    pub commits_ok: u64,
    /// Commits that failed and are tried again.
    pub commits_retried: u64,
    /// Watermarks that were not committed because their partition is not ours
    /// any more.
    pub commits_refused: u64,
    /// Commits that failed for good.
    pub commits_failed: u64,
    /// What became of metadata of commits
    /// ([`remember_completed`](crate::Builder::remember_completed)).
    pub commit_notes: CommitNotes,
    /// Questions for end offsets that were not answered.
    pub end_offset_errors: u64,
    /// Observed lags below zero, shown as zero: the log was truncated, or the
    /// position is ahead of what the leader knows.
    pub clamped: u64,
    /// Ticks in which the member's loop had not turned for half a session.
    pub member_stalls: u64,
    /// How often the reporter panicked, or did not look for long: the numbers of
    /// partitions are left out then, since nobody knows them.
    pub reporter_failures: u64,
    /// Connections that failed, all but the member's own, which librdkafka makes.
    pub connection_errors: ConnectionErrors,
    /// Whether the process works, and why not.
    pub health: Health,
}

/// What became of what is noted in the metadata of commits: records that are
/// completed beyond the offset, by
/// [`remember_completed`](crate::Builder::remember_completed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommitNotes {
    /// Read at the start of a partition, and what they name is left out.
    pub restored: u64,
    /// Somebody else's, or of an unknown version: not understood, and
    /// overwritten.
    pub foreign: u64,
    /// Ours, and damaged: ignored.
    pub broken: u64,
    /// Written without all there is, since that is longer than 4 KiB.
    pub cut: u64,
    /// Commits that the coordinator did not take because of it: it is longer than
    /// the broker's `offset.metadata.max.bytes`. Nothing is written after that.
    pub refused: u64,
}

/// Connections to brokers that failed, by how. Each was given up and made anew
/// after a back-off; what had been asked was asked again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionErrors {
    /// The name of a broker did not lead to an address.
    pub resolve: u64,
    /// The broker did not take the connection.
    pub connect: u64,
    /// The broker did not answer in time.
    pub timed_out: u64,
    /// The broker closed the connection, or it broke, while an answer was
    /// awaited.
    pub closed: u64,
    /// What came was no answer: not what the protocol says, longer than what is
    /// accepted, another question's.
    pub wire: u64,
    /// The two ends did not agree on TLS, or one does not trust the other's
    /// certificate.
    pub tls: u64,
    /// The broker does not believe who we are.
    pub authentication: u64,
}

impl ConnectionErrors {
    /// All of them.
    pub fn total(&self) -> u64 {
        let answered = self.timed_out + self.closed + self.wire;
        self.resolve + self.connect + answered + self.tls + self.authentication
    }
}

impl LagSnapshot {
    /// The sum of the lags; `None` where one of them is not known, which would
    /// make it too small, and without partitions.
    pub fn total_lag(&self) -> Option<u64> {
        if self.partitions.is_empty() {
            return None;
        }
        self.partitions.iter().try_fold(0_u64, |sum, partition| {
            Some(sum.saturating_add(partition.records_lag?))
        })
    }
}

/// One partition at one tick. Unknown numbers are `None`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PartitionLag {
    /// Which.
    pub partition: TopicPartition,
    /// The worker that has it; `None` while that is being replaced.
    pub worker: Option<usize>,
    /// The worker that has it or had it last; `None` before the first.
    pub last_worker: Option<usize>,
    /// True after [`Handle::pause`](crate::Handle::pause).
    pub paused: bool,
    /// Highest offset handed to a handler + 1; the start position before the
    /// first.
    pub position: Option<i64>,
    /// Next offset such that every record below it is completed.
    pub watermark: Option<i64>,
    /// What the group has committed; `None` where that is nothing.
    pub committed: Option<i64>,
    /// Last stable offset under `read_committed` (the default), else the high
    /// watermark.
    pub end_offset: Option<i64>,
    /// How long ago a broker told the end offset.
    pub end_offset_age: Option<Duration>,
    /// First offset that the broker still has.
    pub log_start: Option<i64>,
    /// End offset − position, as the Java client's `records-lag`.
    pub records_lag: Option<u64>,
    /// The largest lag observed within the window (60 s), as the Java client's
    /// `records-lag-max`.
    pub records_lag_max: Option<u64>,
    /// The mean of the lags observed within the window, as the Java client's
    /// `records-lag-avg`.
    pub records_lag_avg: Option<f64>,
    /// Position − log start: how far it is from what retention removes.
    pub records_lead: Option<u64>,
    /// The smallest lead observed within the window.
    pub records_lead_min: Option<u64>,
    /// The mean of the leads observed within the window.
    pub records_lead_avg: Option<f64>,
    /// End offset − committed offset, as `kafka-consumer-groups` shows it.
    pub committed_lag: Option<u64>,
    /// Records that were handed over and not completed, one that waits for a
    /// retry included.
    pub in_flight: u64,
    /// Age of the oldest record that is not completed; zero when caught up.
    pub time_lag: Option<Duration>,
    /// How long the handler has been at the record in hand, seen from tick to
    /// tick; zero where none is in hand.
    pub in_hand_for: Duration,
}

impl PartitionLag {
    /// A partition of which nothing is known.
    #[cfg(test)]
    pub(crate) fn unknown(partition: TopicPartition) -> Self {
        Self {
            partition,
            worker: None,
            last_worker: None,
            paused: false,
            position: None,
            watermark: None,
            committed: None,
            end_offset: None,
            end_offset_age: None,
            log_start: None,
            records_lag: None,
            records_lag_max: None,
            records_lag_avg: None,
            records_lead: None,
            records_lead_min: None,
            records_lead_avg: None,
            committed_lag: None,
            in_flight: 0,
            time_lag: None,
            in_hand_for: Duration::ZERO,
        }
    }
}

/// What the load of this process wants: of the partitions that it owns and that
/// are not paused. What a group wants is the sum over its processes.
///
/// Everything is `None` until the same partitions have been looked at for 30 s,
/// while all of them are paused, while the process stops, and without a
/// partition. `docs/lag.md` has the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Advice {
    /// How many workers should run, at least 1; in partition order no more than
    /// partitions. It changes only where another number was wanted for a while.
    /// `None` also where no record has been completed yet, or for a minute though
    /// workers are at it: nobody knows what one costs.
    pub workers: Option<usize>,
    /// How many partitions this process would have to own for what comes, where
    /// that is more than it owns; `None` where they suffice. In partition order
    /// only.
    pub partitions_needed: Option<usize>,
    /// How long until the lag is gone where all goes on as in the last minute;
    /// zero where it is not more than what comes in a second. `None` also where it
    /// does not shrink, or not within a week.
    pub catch_up: Option<Duration>,
    /// The share of their time that workers spent in handlers in the last
    /// minute: 0 to 1.
    pub busy: Option<f64>,
}

/// Where a process stands in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberState {
    /// It asked to be taken in.
    #[default]
    Joining,
    /// It has waited for an assignment for longer than a rebalance takes:
    /// [`Health::not_ready`] says what is known of why.
    HeldUp,
    /// It takes part, perhaps without a partition.
    Joined,
    /// It stops taking records, and leaves.
    Stopping,
    /// The run has ended.
    Stopped,
}

impl MemberState {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Joining,
        Self::HeldUp,
        Self::Joined,
        Self::Stopping,
        Self::Stopped,
    ];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::HeldUp => "held-up",
            Self::Joined => "joined",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// A worker at one tick.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number.
    pub worker: usize,
    /// Its process, where it has one of its own
    /// ([`Model::Processes`](crate::Model::Processes)); `None` also while that is
    /// being started.
    pub pid: Option<u32>,
    /// What it does.
    pub state: WorkerState,
    /// How many partitions it has.
    pub partitions: usize,
    /// How often a worker of this number was replaced in this run.
    pub restarts: u32,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// Its thread was started and has not said so yet.
    Starting,
    /// It has partitions.
    Running,
    /// It has none: a spare.
    Idle,
    /// It finishes the record in hand and ends.
    Draining,
    /// It failed, and is started again after a wait.
    Restarting,
    /// It has ended.
    Stopped,
}

impl WorkerState {
    /// Its name in `/lag`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Idle => "idle",
            Self::Draining => "draining",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
        }
    }

    /// True while its thread runs.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Idle | Self::Draining)
    }
}

/// What happened to the records of a topic since this process first owned one
/// of its partitions. Forgotten five minutes after the last of them was
/// revoked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TopicTotals {
    /// Its name.
    pub topic: Arc<str>,
    /// Records that were handed to handlers, a repeated one once.
    pub records: u64,
    /// Their bytes as they lie in the uncompressed log, keys, values and
    /// headers included.
    pub bytes: u64,
    /// By what the handlers said of them; only outcomes that came.
    pub outcomes: Vec<OutcomeTotals>,
}

/// Handler calls of one topic with one outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct OutcomeTotals {
    /// `done`, `retried`, `dead_lettered`, `skipped` or `discarded` (completed,
    /// but the partition was somebody else's by then).
    pub outcome: &'static str,
    /// How many records.
    pub records: u64,
    /// How many handler calls took at most as long as the bound at the same
    /// place in [`HANDLER_SECONDS`](Self::HANDLER_SECONDS) and longer than the
    /// one before; the last takes those that took longer than every bound. A
    /// call is one record, or one batch for a batch handler. Calls of less than
    /// 10 µs are timed together and counted with their mean. Zeros for
    /// `discarded`, whose calls are among `done`.
    pub seconds_counts: [u64; OutcomeTotals::HANDLER_SECONDS.len() + 1],
    /// Seconds in all.
    pub seconds_sum: f64,
}

impl OutcomeTotals {
    /// The bounds of handler times, in seconds: from a microsecond to five
    /// minutes.
    pub const HANDLER_SECONDS: [f64; 16] = [
        1e-6, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0,
    ];
}

/// Whether the process works. Reasons are sentences for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Why the process cannot recover by itself; empty where it can, and where
    /// nothing is wrong.
    pub not_live: Vec<String>,
    /// Why it does not take part in the group now; `None` once it has joined
    /// and has its partitions, or has joined as a spare.
    pub not_ready: Option<String>,
}

impl Health {
    /// False only where a restart of the process is what helps.
    pub fn is_live(&self) -> bool {
        self.not_live.is_empty()
    }

    /// True while this process takes part in the group.
    pub fn is_ready(&self) -> bool {
        self.not_ready.is_none()
    }
}
