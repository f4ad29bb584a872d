//! The handle of a run: everything that can be asked of it from outside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::clock::Clock;
use crate::config::Workers;
use crate::error::CommandError;
use crate::lag::snapshot::LagSnapshot;
use crate::member::run::{Command, ToMember};
use crate::record::TopicPartition;
use crate::report::{Report, StopReason};
use crate::runtime::services::Services;
use crate::runtime::shared::Shared;
use crate::worker::run::panic_message;

/// How long a command waits for the runtime. Its loop turns many times a
/// second.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// A run that was started. Dropping it stops the run (as [`Handle::stop`]
/// does) and waits for its end.
#[must_use = "dropping the handle stops the run"]
pub struct Handle {
    /// Gone once it was joined.
    member: Option<JoinHandle<Report>>,
    to_member: Sender<ToMember>,
    shared: Arc<Shared>,
    /// Boxed: a handle is given back by value where a wait timed out.
    services: Box<Services>,
}

/// Asks a run to stop, from anywhere.
#[derive(Clone)]
pub(crate) struct Stopper(Sender<ToMember>);

impl Stopper {
    /// Asks for new workers in place of all; a run that has ended does not mind.
    pub(crate) fn restart_workers(&self) {
        let (reply, _) = bounded(1);
        let command = ToMember::Command(Command::RestartWorkers, reply);
        let _ = self.0.send_timeout(command, COMMAND_TIMEOUT);
    }

    /// Asks; a run that has ended does not mind.
    pub(crate) fn stop(&self, reason: StopReason) {
        let _ = self.0.send_timeout(ToMember::Stop(reason), COMMAND_TIMEOUT);
    }
}

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
    /// How long ago the end offset was told.
    pub end_offset_age: Option<Duration>,
    /// First offset that the broker still has, as of the last fetch.
    pub log_start: Option<i64>,
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
    pub(crate) fn new(
        member: JoinHandle<Report>,
        to_member: Sender<ToMember>,
        shared: Arc<Shared>,
        services: Services,
    ) -> Self {
        Self {
            member: Some(member),
            to_member,
            shared,
            services: Box::new(services),
        }
    }

    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.to_member.clone())
    }

    /// Asks the run to stop: no worker starts another record, those in hand are
    /// finished, offsets are committed, the group is left, all within the stop
    /// deadline and 2 s. A second call cuts that short, to 2 s from then: what
    /// is complete is committed if the group answers at once. Returns at once;
    /// [`Handle::wait`] gives the report.
    pub fn stop(&self) {
        self.stopper().stop(StopReason::StopCalled);
    }

    /// Waits for the end of the run. Does not stop it.
    pub fn wait(mut self) -> Report {
        self.join()
    }

    fn join(&mut self) -> Report {
        let report = match self.member.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(panic)) => Report::broken(&panic_message(panic.as_ref())),
            None => Report::broken("the run was waited for twice"),
        };
        self.services.stop();
        report
    }

    /// Waits at most that long for the end of the run; gives the handle back
    /// where it goes on.
    ///
    /// # Errors
    ///
    /// The handle, where the run has not ended in time.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Report, Self> {
        let clock = Clock::System;
        let deadline = clock.now() + timeout;
        while !self.has_ended() {
            let left = deadline.saturating_duration_since(clock.now());
            if left.is_zero() {
                return Err(self);
            }
            std::thread::park_timeout(left.min(Duration::from_millis(5)));
        }
        Ok(self.wait())
    }

    /// True once the run has ended.
    pub fn has_ended(&self) -> bool {
        self.member.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops handing over records of these partitions until
    /// [`Handle::resume`]. The record in hand is finished. This returns before
    /// the worker has heard of it: a record that it is about to start may still
    /// be handed over. Ends with the assignment: a partition that
    /// comes back is not paused.
    ///
    /// # Errors
    ///
    /// [`CommandError::NotAssigned`] for the first partition that is not
    /// assigned to this process; then nothing was paused.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), CommandError> {
        self.command(Command::SetPaused {
            partitions: partitions.to_vec(),
            paused: true,
        })
    }

    /// Hands over records of these partitions again. Resuming one that is not
    /// paused changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Handle::pause`].
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), CommandError> {
        self.command(Command::SetPaused {
            partitions: partitions.to_vec(),
            paused: false,
        })
    }

    /// Goes on reading a partition from `offset`, after the record in hand.
    ///
    /// What was read and not handed over is dropped. A seek forwards is
    /// committed as usual. At a seek backwards the commit comes down to
    /// `offset` first, and is read back: the first record is handed over then,
    /// and whoever has the partition next, after a crash too, goes on from what
    /// was handled since. While the group cannot be asked the partition waits.
    ///
    /// # Errors
    ///
    /// [`CommandError::NotAssigned`], or [`CommandError::Invalid`] for a
    /// negative offset.
    pub fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), CommandError> {
        self.command(Command::Seek {
            partition: partition.clone(),
            offset,
        })
    }

    /// Changes the number of workers. Partitions move between workers of this
    /// process after their record in hand, without a rebalance.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for zero workers.
    pub fn scale(&self, workers: Workers) -> Result<(), CommandError> {
        self.command(Command::Scale(workers))
    }

    /// Replaces all workers, one at a time, each working again before the next:
    /// handlers are made anew, and with [`Model::Processes`](crate::Model::Processes)
    /// everything in their process is. The partitions of the one that is replaced
    /// wait for the moment that takes; there is no rebalance. Returns at once.
    /// Where a new worker fails the others are left as they are, and a warning says
    /// so.
    ///
    /// # Errors
    ///
    /// [`CommandError::RunEnded`], and [`CommandError::TimedOut`] where the run does
    /// not answer.
    pub fn restart_workers(&self) -> Result<(), CommandError> {
        self.command(Command::RestartWorkers)
    }

    fn command(&self, command: Command) -> Result<(), CommandError> {
        if self.has_ended() {
            return Err(CommandError::RunEnded);
        }
        let (reply, answer) = bounded(1);
        let timed_out = CommandError::TimedOut(COMMAND_TIMEOUT);
        self.to_member
            .send_timeout(ToMember::Command(command, reply), COMMAND_TIMEOUT)
            .map_err(|error| {
                if error.is_disconnected() {
                    CommandError::RunEnded
                } else {
                    timed_out.clone()
                }
            })?;
        match answer.recv_timeout(COMMAND_TIMEOUT) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(timed_out),
            Err(RecvTimeoutError::Disconnected) => Err(CommandError::RunEnded),
        }
    }

    /// The partitions that are assigned to this process, in order, with what
    /// is known of them now. Reads counters only: never waits for Kafka or for
    /// a handler.
    pub fn partitions(&self) -> Vec<PartitionView> {
        let now = Clock::System.coarse();
        self.shared
            .owned()
            .partitions
            .iter()
            .map(|(partition, tracker)| PartitionView {
                partition: partition.clone(),
                worker: tracker.worker(),
                position: tracker.position(),
                watermark: tracker.watermark(),
                end_offset: tracker.end_offset(),
                end_offset_age: tracker.end_offset_age(now),
                log_start: tracker.log_start(),
                paused: tracker.is_paused(),
            })
            .collect()
    }

    /// The lag of every partition, the workers, the counters and the health, as
    /// of the last tick (one per second). A partition that was revoked since is
    /// not among them. Takes what hangs there: never waits for Kafka or for a
    /// handler.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), keepup::Error> {
    /// use keepup::Record;
    ///
    /// let handle = keepup::builder("localhost:9092", "billing")
    ///     .topic("orders")
    ///     .start(|_worker| |record: &Record<'_>| println!("{record:?}"))?;
    /// for partition in &handle.lag().partitions {
    ///     println!("{}: {:?} behind", partition.partition, partition.records_lag);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lag(&self) -> Arc<LagSnapshot> {
        self.shared.board.latest()
    }

    /// A subscription to the snapshots of [`Handle::lag`]. Whoever takes them
    /// too slowly misses some; nothing queues.
    pub fn lag_updates(&self) -> LagUpdates {
        LagUpdates {
            shared: Arc::clone(&self.shared),
            seen: 0,
        }
    }

    /// What `/metrics` shows of this run: Prometheus text 0.0.4 of the latest
    /// snapshot. For programs that have an HTTP server of their own; needs
    /// neither [`Builder::listen`](crate::Builder::listen) nor the feature
    /// `http`, and leaves out what the program itself records.
    pub fn metrics_text(&self) -> String {
        self.services.exposition(&self.lag())
    }

    /// Where the endpoints of [`Builder::listen`](crate::Builder::listen) are,
    /// with the port that the system chose for port 0.
    pub fn listens_at(&self) -> Option<SocketAddr> {
        self.services.listens_at()
    }

    /// How many workers run now.
    pub fn workers(&self) -> usize {
        self.shared.workers()
    }
}

/// A subscription to lag snapshots; see [`Handle::lag_updates`]. Outlives the
/// handle, and can be sent to another thread.
pub struct LagUpdates {
    shared: Arc<Shared>,
    seen: u64,
}

impl LagUpdates {
    /// Waits for a snapshot that was not given yet, `timeout` at most; the
    /// latest, where several came. `None` after the timeout, and at once where
    /// there will be none any more ([`LagUpdates::has_ended`]).
    pub fn next_within(&mut self, timeout: Duration) -> Option<Arc<LagSnapshot>> {
        let deadline: Instant = Clock::System.now() + timeout;
        self.shared.board.wait(&mut self.seen, deadline)
    }

    /// True once the run has ended and its last snapshot was published.
    pub fn has_ended(&self) -> bool {
        self.shared.board.is_closed()
    }
}

impl std::fmt::Debug for LagUpdates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LagUpdates")
            .field("has_ended", &self.has_ended())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.member.is_some() {
            self.stop();
            self.join();
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("has_ended", &self.has_ended())
            .field("workers", &self.workers())
            .finish_non_exhaustive()
    }
}
