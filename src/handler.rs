//! What a user writes: handlers, and what they say of a record.
//!
//! A handler runs on the thread of one worker and is made there by a factory,
//! so it needs neither `Send` nor a lock. It is called with one record
//! ([`Handler`]) or with one batch ([`BatchHandler`]) at a time and answers
//! with an [`Outcome`], or with a `Result` that is mapped onto one. A closure
//! is a handler.

use std::fmt;
use std::time::Duration;

use crate::record::{Batch, Record, TopicPartition};

/// What becomes of a record after the handler returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is completed; its offset may be committed.
    Done,
    /// It is handed over again, after the back-off of the
    /// [`RetryPolicy`](crate::RetryPolicy) or after the time given here. Only
    /// its own partition waits; nothing after it is committed. Each counts as
    /// an attempt.
    Retry {
        /// Waits that long instead of the policy's back-off.
        after: Option<Duration>,
        /// Why; goes into events and logs.
        reason: String,
    },
    /// No retry would help it: it becomes at once what the
    /// [`RetryPolicy`](crate::RetryPolicy) says of a record that failed as often
    /// as allowed ([`OnExhausted`](crate::OnExhausted)).
    Reject {
        /// Why; goes into events, logs, the report and the dead letter's headers.
        reason: String,
    },
    /// It is written to the dead-letter topic
    /// ([`Builder::dead_letter`](crate::Builder::dead_letter)), and completed
    /// once the broker has it. Where there is no such topic, it counts as a
    /// failure that no retry helps, which ends the run.
    DeadLetter {
        /// Why; goes into events, logs and the dead letter's headers.
        reason: String,
    },
    /// It is completed without having been worked on: counted and reported as
    /// skipped, with the reason.
    Skip {
        /// Why; goes into events and logs.
        reason: String,
    },
    /// The run stops: this record stays uncommitted and is delivered again
    /// after the next start. The run ends with
    /// [`StopReason::HandlerStop`](crate::StopReason::HandlerStop).
    Stop {
        /// Why; goes into the report.
        reason: String,
    },
}

impl Outcome {
    /// A retry after the policy's back-off.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry {
            after: None,
            reason: reason.into(),
        }
    }

    /// A retry after the given time.
    pub fn retry_after(after: Duration, reason: impl Into<String>) -> Self {
        Self::Retry {
            after: Some(after),
            reason: reason.into(),
        }
    }

    /// What the policy says of a record that failed as often as allowed, at once.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject {
            reason: reason.into(),
        }
    }

    /// Written to the dead-letter topic.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter {
            reason: reason.into(),
        }
    }

    /// Completed without having been worked on.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self::Skip {
            reason: reason.into(),
        }
    }

    /// The run stops before this record.
    pub fn stop(reason: impl Into<String>) -> Self {
        Self::Stop {
            reason: reason.into(),
        }
    }
}

/// What a closure may return in place of an [`Outcome`].
///
/// | returned | means |
/// |---|---|
/// | `()` | done |
/// | `Outcome` | what it says |
/// | `Result<(), E>` | done, or retry with the error's text as reason |
/// | `Result<Outcome, E>` | what it says, or retry |
/// | `Result<(), Outcome>` | done, or what the `Outcome` says; `?` makes a retry of any error |
pub trait IntoOutcome {
    /// The outcome this value stands for.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    #[inline]
    fn into_outcome(self) -> Outcome {
        Outcome::Done
    }
}

impl IntoOutcome for Outcome {
    #[inline]
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl<T: IntoOutcome, E: fmt::Display> IntoOutcome for Result<T, E> {
    #[inline]
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(error) => Outcome::retry(error.to_string()),
        }
    }
}

impl<T: IntoOutcome> IntoOutcome for Result<T, Outcome> {
    #[inline]
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(outcome) => outcome,
        }
    }
}

/// A retry with the error's text as reason.
impl<E: std::error::Error> From<E> for Outcome {
    fn from(error: E) -> Self {
        Self::retry(error.to_string())
    }
}

/// Handles one record at a time, in the order of its partition.
///
/// Every method runs on the worker's own thread,
/// [`handle`](Handler::handle) in a `tracing` span of the record where a
/// subscriber wants it (see [`TraceContext`](crate::TraceContext)); a panic in
/// [`handle`](Handler::handle) counts as a failed record (it is retried, in a
/// new worker), a panic in a hook ends the run with
/// [`StopReason::HookPanicked`](crate::StopReason::HookPanicked).
///
/// ```
/// use keepup::{Handler, Outcome, Record, TopicPartition};
///
/// struct Count { records: u64 }
///
/// impl Handler for Count {
///     fn handle(&mut self, _record: &Record<'_>) -> Outcome {
///         self.records += 1;
///         Outcome::Done
///     }
///
///     fn on_revoked(&mut self, partitions: &[TopicPartition]) {
///         println!("{} records; {} partitions leave", self.records, partitions.len());
///     }
/// }
/// ```
pub trait Handler {
    /// Works on one record.
    fn handle(&mut self, record: &Record<'_>) -> Outcome;

    /// These partitions are this worker's from now on: assigned by the group,
    /// or moved here from another worker of this process.
    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// These partitions leave this worker, after their last record was handled
    /// and before their last commit. Bounded by the revoke deadline.
    fn on_revoked(&mut self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// These partitions were taken away without notice (the session expired):
    /// somebody else may be working on them already, and nothing of them is
    /// committed any more.
    fn on_lost(&mut self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }
}

impl<F, R> Handler for F
where
    F: FnMut(&Record<'_>) -> R,
    R: IntoOutcome,
{
    #[inline]
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        self(record).into_outcome()
    }
}

/// What becomes of the records of a batch after the handler returned: one
/// [`Outcome`] of all of them, or of one that is named by its index.
///
/// With an index, the records before it are completed, the outcome is that of
/// the one record, by the same policy as a single record's, and those behind it
/// come again, in order. This is what Spring Kafka does after a
/// `BatchListenerFailedException`.
///
/// ```
/// use keepup::{BatchOutcome, Outcome, Records};
///
/// fn store(row: &[u8]) -> Result<(), String> {
///     # let _ = row;
///     Ok(())
/// }
///
/// fn handle(records: &Records<'_>) -> BatchOutcome {
///     for (index, record) in records.iter().enumerate() {
///         let Some(row) = record.value() else { continue };
///         if let Err(error) = store(row) {
///             return BatchOutcome::at(index, Outcome::retry(error));
///         }
///     }
///     BatchOutcome::done()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOutcome {
    /// The record that the outcome is of; all of them where there is none.
    index: Option<usize>,
    outcome: Outcome,
}

impl BatchOutcome {
    /// All records are completed.
    pub fn done() -> Self {
        Self::all(Outcome::Done)
    }

    /// All records have this outcome.
    pub fn all(outcome: Outcome) -> Self {
        Self {
            index: None,
            outcome,
        }
    }

    /// The record at `index`, from 0, has this outcome, and those before it are
    /// completed. After [`Outcome::Done`], it is completed as well, and those
    /// behind it come again without having failed.
    ///
    /// An index that the batch does not have counts as a failure of the whole
    /// batch, with a reason that says so.
    pub fn at(index: usize, outcome: Outcome) -> Self {
        Self {
            index: Some(index),
            outcome,
        }
    }

    /// What that means for a batch of `len` records.
    pub(crate) fn parts(self, len: usize) -> BatchParts {
        match (self.index, self.outcome) {
            (None, Outcome::Done) => BatchParts {
                done: len,
                concerned: 0,
                outcome: Outcome::Done,
            },
            (None, outcome) => BatchParts {
                done: 0,
                concerned: len,
                outcome,
            },
            (Some(index), _) if index >= len => BatchParts {
                done: 0,
                concerned: len,
                outcome: Outcome::retry(format!(
                    "the handler names record {index} of a batch of {len}; indices count from 0"
                )),
            },
            (Some(index), Outcome::Done) => BatchParts {
                done: index + 1,
                concerned: 0,
                outcome: Outcome::Done,
            },
            (Some(index), outcome) => BatchParts {
                done: index,
                concerned: 1,
                outcome,
            },
        }
    }
}

impl From<Outcome> for BatchOutcome {
    #[inline]
    fn from(outcome: Outcome) -> Self {
        Self::all(outcome)
    }
}

/// A batch, cut by what its handler said of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BatchParts {
    /// So many of the first records are completed.
    pub(crate) done: usize,
    /// So many of those behind them have the outcome; none after
    /// [`Outcome::Done`].
    pub(crate) concerned: usize,
    pub(crate) outcome: Outcome,
}

/// What a closure over a batch may return in place of a [`BatchOutcome`].
///
/// | returned | means |
/// |---|---|
/// | `()` | all are done |
/// | `Outcome` | what it says, of all |
/// | `BatchOutcome` | what it says |
/// | `Result<T, E>` | what `T` says, or a retry of all with the error's text as reason |
/// | `Result<T, BatchOutcome>` | what either says |
pub trait IntoBatchOutcome {
    /// The outcome this value stands for.
    fn into_batch_outcome(self) -> BatchOutcome;
}

impl IntoBatchOutcome for () {
    #[inline]
    fn into_batch_outcome(self) -> BatchOutcome {
        BatchOutcome::done()
    }
}

impl IntoBatchOutcome for Outcome {
    #[inline]
    fn into_batch_outcome(self) -> BatchOutcome {
        self.into()
    }
}

impl IntoBatchOutcome for BatchOutcome {
    #[inline]
    fn into_batch_outcome(self) -> BatchOutcome {
        self
    }
}

impl<T: IntoBatchOutcome, E: fmt::Display> IntoBatchOutcome for Result<T, E> {
    #[inline]
    fn into_batch_outcome(self) -> BatchOutcome {
        match self {
            Ok(value) => value.into_batch_outcome(),
            Err(error) => Outcome::retry(error.to_string()).into(),
        }
    }
}

impl<T: IntoBatchOutcome> IntoBatchOutcome for Result<T, BatchOutcome> {
    #[inline]
    fn into_batch_outcome(self) -> BatchOutcome {
        self.map_or_else(|failed| failed, IntoBatchOutcome::into_batch_outcome)
    }
}

/// Handles up to `max_records` records of one partition at a time.
///
/// It says what became of them by one [`BatchOutcome`]: all of them are
/// completed, or all have one [`Outcome`] (after [`Outcome::Retry`] all come
/// again, after [`Outcome::DeadLetter`] each of them is written to the
/// dead-letter topic), or one of them has it, named by its index. A closure
/// `FnMut(&Records<'_>) -> impl IntoBatchOutcome` is a batch handler. Hooks and
/// panics are as for [`Handler`]; after a panic all records come again.
pub trait BatchHandler {
    /// Works on a batch: at least one record, all of one partition, in order.
    fn handle(&mut self, records: &Records<'_>) -> BatchOutcome;

    /// As [`Handler::on_assigned`].
    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// As [`Handler::on_revoked`]. Records that were collected for a batch and
    /// not handed over are dropped, with their offsets uncommitted.
    fn on_revoked(&mut self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// As [`Handler::on_lost`].
    fn on_lost(&mut self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }
}

impl<F, R> BatchHandler for F
where
    F: FnMut(&Records<'_>) -> R,
    R: IntoBatchOutcome,
{
    #[inline]
    fn handle(&mut self, records: &Records<'_>) -> BatchOutcome {
        self(records).into_batch_outcome()
    }
}

/// The records of one call of a [`BatchHandler`]: one partition, in order, at
/// least one record.
pub struct Records<'a> {
    pub(crate) pieces: &'a [Batch],
    pub(crate) len: usize,
    pub(crate) attempt: u32,
}

impl<'a> Records<'a> {
    /// How many records these are; at least 1.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: a batch handler is not called without records.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How often the first of these records has been handed over in this run,
    /// this time included. The others may have been so less often.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The records in the order of their offsets.
    pub fn iter(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let attempt = self.attempt;
        let pieces: &'a [Batch] = self.pieces;
        pieces
            .iter()
            .flat_map(move |piece| {
                (piece.cursor..piece.entries.len()).filter_map(move |i| piece.record(i, attempt))
            })
            .take(self.len)
    }
}

impl fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field(
                "partition",
                &self.pieces.first().map(|batch| &batch.partition),
            )
            .field("len", &self.len)
            .field("attempt", &self.attempt)
            .finish()
    }
}

/// Which worker a factory makes a handler for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its number, from 0; unique among the workers that run at a time.
    pub worker: usize,
    /// How often a worker of this number was replaced in this run.
    pub restarts: u32,
}
