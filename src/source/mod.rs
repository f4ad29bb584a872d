//! What yields batches: the contract between a worker and where its records
//! come from.
//!
//! A worker owns one source and pulls from it on its own thread. Not pulling is
//! the back-pressure; a source buffers no more than its share of the process's
//! memory budget. A source knows nothing of handlers, outcomes or commits: it
//! is told which partitions to read from which offset, and gives their batches
//! in order.
//!
//! Partitions are told apart by their [`AssignmentEpoch`], which is unique in
//! the process: a batch that arrives for an incarnation of a partition that was
//! removed or rewound meanwhile is dropped by the source, and never seen here.
//!
//! | source | for |
//! |---|---|
//! | [`fetch`] | the default: our own connections to the leaders of the partitions |
//! | [`client`] | what our own connections do not speak: librdkafka reads the partitions |
//! | `memory` | deterministic tests |

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::record::{AssignmentEpoch, Batch, TopicPartition};

pub(crate) mod client;
#[cfg(test)]
mod contract;
pub(crate) mod fetch;
#[cfg(test)]
pub(crate) mod memory;

/// From where, and how far, to read one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadFrom {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: AssignmentEpoch,
    /// Offset of the first record that is wanted; records below it that share
    /// its batch on the wire are stepped over.
    pub(crate) offset: i64,
    /// First offset that is not wanted any more (`--until-end`), if any.
    pub(crate) until: Option<i64>,
    pub(crate) paused: bool,
}

/// What a pull brought.
#[derive(Debug)]
pub(crate) enum Pulled {
    /// The next records of a partition, in order.
    ///
    /// Possibly without records, where only `next_offset` or `end_offset` is
    /// news: transaction markers, aborted records, holes of compaction, and the
    /// first answer that finds a partition at its end. The last batch before
    /// `until` has `next_offset >= until`.
    Batch(Batch),
    /// Nothing came before the deadline, or the waker was used.
    Nothing,
    /// A partition cannot be read on from where it stands. The source has
    /// stopped reading it; it starts again by [`Source::rewind`] or a new
    /// [`Source::start`].
    Failed {
        epoch: AssignmentEpoch,
        offset: i64,
        error: ReadError,
    },
}

/// Why a partition cannot be read on. What passes by itself (a leader that
/// moves, a broker that is down) is not among them: the source follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum ReadError {
    /// The offset is not in the partition (any more): retention passed it, or
    /// the log was truncated below it.
    #[error(
        "offset {offset} is out of the range that the broker has (log start {log_start}, end {end_offset}; -1: not told)"
    )]
    OutOfRange {
        offset: i64,
        log_start: i64,
        end_offset: i64,
    },
    /// The log was cut off below what was read and grew again: a leader was
    /// elected that did not have all of it (an unclean election, KIP-320).
    #[error(
        "the log was truncated: {offset} was read up to, and the new leader has only what lies below {end_offset} of it"
    )]
    Truncated {
        /// The next offset that would have been read.
        offset: i64,
        /// The first offset at which the log differs from what was read.
        end_offset: i64,
    },
    /// The topic was deleted and created again while it was read (KIP-516):
    /// offsets of the old one mean nothing in the new one.
    #[error(
        "topic {topic} was deleted and created again: its offsets mean nothing in the new one; reset the group's offsets for it and start again"
    )]
    TopicRecreated { topic: Arc<str> },
    /// The broker refuses to let us read the topic.
    #[error("not authorized to read topic {topic}: grant READ on it to this principal")]
    NotAuthorized { topic: Arc<str> },
    /// The bytes are not what the protocol says: a CRC that does not match, a
    /// length that leads nowhere, a compression that does not decompress.
    #[error("the records at offset {offset}{} cannot be read: {what}", given_by(*.broker))]
    Corrupt {
        offset: i64,
        /// Who gave them; `None` where there is no broker.
        broker: Option<i32>,
        what: String,
    },
    /// The log still holds messages in the format of before Kafka 0.11, which
    /// brokers hand out as they are.
    #[error(
        "the message at offset {offset} has format {magic}, from before Kafka 0.11; only format 2 is read: \
         copy the topic, or let retention remove what is that old"
    )]
    OldFormat { offset: i64, magic: u8 },
    /// What the broker gives for the offset is longer than what is accepted.
    #[error(
        "the broker's answer for offset {offset} is {bytes} bytes long, and {limit} are accepted: it holds a batch \
         of that size; raise the limit on answers, or skip the batch"
    )]
    TooLong {
        offset: i64,
        bytes: i64,
        limit: usize,
    },
    /// The broker answers an error that does not pass by itself.
    #[error("the broker refuses to read on: {name} (code {code})")]
    Refused { code: i16, name: Cow<'static, str> },
}

fn given_by(broker: Option<i32>) -> String {
    broker.map_or_else(String::new, |broker| {
        format!(", as broker {broker} has them,")
    })
}

/// Interrupts a [`Source::next`] that waits. Cheap to clone; usable from any
/// thread; a wake-up before the wait makes the next wait return at once.
#[derive(Clone)]
pub(crate) struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    pub(crate) fn wake(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

/// What a worker pulls its records from. One contract suite
/// (`source/contract.rs`) runs over every implementation.
pub(crate) trait Source {
    /// Begins to read a partition.
    fn start(&mut self, from: ReadFrom);

    /// Stops reading a partition and drops what is buffered of it. Nothing of
    /// that epoch is given afterwards. An unknown epoch is ignored.
    fn stop(&mut self, epoch: AssignmentEpoch);

    /// Goes on with a partition from `offset`, not before the moment
    /// `not_before`. What is buffered of it from there on may be kept for then,
    /// as long as no other partition needs the memory; the rest is dropped.
    /// Holding a partition back this way delays no other.
    fn rewind(&mut self, epoch: AssignmentEpoch, offset: i64, not_before: Option<Instant>);

    /// Stops (or resumes) giving batches of a partition. What is buffered of a
    /// paused partition may be dropped and read again.
    fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool);

    /// The next batch of any partition, in turn between those that have one.
    /// Waits until `deadline` at most; a deadline that has passed means: only
    /// what is there already.
    fn next(&mut self, deadline: Instant) -> Pulled;

    /// Gives back a batch whose records from `cursor` on were not handed over:
    /// it comes again, before anything later of its partition and after the
    /// other partitions had their turn.
    fn put_back(&mut self, batch: Batch);

    /// Gives back a batch that is done with, so that its memory is used again.
    fn recycle(&mut self, batch: Batch);

    /// True where the source wants to read on but its share of the memory
    /// budget is taken by batches that were given out and not yet recycled.
    fn is_starved(&self) -> bool;

    /// Something that interrupts [`Source::next`] from another thread.
    fn waker(&self) -> Waker;
}

/// Makes a source on the thread of the worker that will own it.
pub(crate) trait SourceFactory: Send + Sync {
    /// A new source without partitions for worker number `worker`.
    ///
    /// # Errors
    ///
    /// Where the operating system refuses what a source needs (file
    /// descriptors).
    fn open(&self, worker: usize) -> std::io::Result<Box<dyn Source>>;
}

/// The budget of memory for records, shared evenly by the workers of a process.
///
/// The share is asked for anew with every request, so that it follows the
/// number of workers while it changes.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    total: usize,
    workers: std::sync::atomic::AtomicUsize,
}

impl MemoryBudget {
    /// The default: 48 MiB per process.
    pub(crate) const DEFAULT: usize = 48 * 1024 * 1024;

    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            workers: std::sync::atomic::AtomicUsize::new(1),
        }
    }

    /// Tells how many workers share the budget from now on.
    pub(crate) fn set_workers(&self, workers: usize) {
        self.workers
            .store(workers.max(1), std::sync::atomic::Ordering::Relaxed);
    }

    /// How many share it; at least one.
    pub(crate) fn workers(&self) -> usize {
        self.workers
            .load(std::sync::atomic::Ordering::Relaxed)
            .max(1)
    }

    /// Bytes that one worker may hold.
    pub(crate) fn share(&self) -> usize {
        self.total / self.workers()
    }
}

/// How long a worker waits for records at most before it looks around.
pub(crate) const MAX_PULL_WAIT: Duration = Duration::from_millis(500);
