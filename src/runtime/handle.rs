//! The handle of a run: everything that can be asked of it from outside.

use std::time::Duration;

use crate::config::Workers;
use crate::error::CommandError;
use crate::record::TopicPartition;
use crate::report::Report;

/// A run that was started. Dropping it stops the run (as [`Handle::stop`]
/// does) and waits for its end.
#[must_use = "dropping the handle stops the run"]
#[derive(Debug)]
pub struct Handle {}

/// What is known of an assigned partition at a moment. Unknown numbers are
/// `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionView {
    /// Which.
    pub partition: TopicPartition,
    /// The worker that has it; `None` while it is between two.
    pub worker: Option<usize>,
    /// Highest offset handed to a handler + 1; the start position before the
    /// first.
    pub position: Option<i64>,
    /// Next offset such that every record below it is completed: what is
    /// committed next.
    pub watermark: Option<i64>,
    /// Last stable offset under `read_committed`, else the high watermark, as
    /// of the last fetch.
    pub end_offset: Option<i64>,
    /// True after [`Handle::pause`].
    pub paused: bool,
}

impl PartitionView {
    /// End offset − position, as the Java client's `records-lag`; `None` while
    /// either is unknown.
    pub fn records_lag(&self) -> Option<u64> {
        let (end, position) = (self.end_offset?, self.position?);
        Some(u64::try_from(end.saturating_sub(position)).unwrap_or(0))
    }
}

impl Handle {
    /// Asks the run to stop: no worker starts another record, those in hand are
    /// finished within the stop deadline, offsets are committed, the group is
    /// left. A second call ends the drain: what is complete is committed within
    /// 2 s. Returns at once; [`Handle::wait`] gives the report.
    pub fn stop(&self) {}

    /// Waits for the end of the run. Does not stop it.
    pub fn wait(self) -> Report {
        unreachable!()
    }

    /// Waits at most that long for the end of the run; gives the handle back
    /// where it goes on.
    ///
    /// # Errors
    ///
    /// The handle, where the run has not ended in time.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Report, Self> {
        let _ = timeout;
        Err(self)
    }

    /// True once the run has ended.
    pub fn has_ended(&self) -> bool {
        true
    }

    /// Stops handing over records of these partitions until
    /// [`Handle::resume`]. The record in hand is finished. Ends with the
    /// assignment: a partition that comes back is not paused.
    ///
    /// # Errors
    ///
    /// [`CommandError::NotAssigned`] for the first partition that is not
    /// assigned to this process; then nothing was paused.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), CommandError> {
        let _ = partitions;
        Ok(())
    }

    /// Hands over records of these partitions again. Resuming one that is not
    /// paused changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Handle::pause`].
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), CommandError> {
        let _ = partitions;
        Ok(())
    }

    /// Goes on reading a partition from `offset`, after the record in hand.
    ///
    /// What was read and not handed over is dropped. A seek forwards is
    /// committed as usual. After a seek backwards the committed offset stays
    /// where it is until the records up to it were handled again: a crash
    /// before that does not go back to `offset`.
    ///
    /// # Errors
    ///
    /// [`CommandError::NotAssigned`], or [`CommandError::Invalid`] for a
    /// negative offset.
    pub fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), CommandError> {
        let _ = (partition, offset);
        Ok(())
    }

    /// Changes the number of workers. Partitions move between workers of this
    /// process after their record in hand, without a rebalance.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for zero workers.
    pub fn scale(&self, workers: Workers) -> Result<(), CommandError> {
        let _ = workers;
        Ok(())
    }

    /// The partitions that are assigned to this process, in order, with what
    /// is known of them now. Reads counters only: never waits for Kafka or for
    /// a handler.
    pub fn partitions(&self) -> Vec<PartitionView> {
        Vec::new()
    }

    /// How many workers run now.
    pub fn workers(&self) -> usize {
        0
    }
}
