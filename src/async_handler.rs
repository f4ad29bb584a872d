//! What a user writes whose handlers wait for something else than the
//! processor: handlers that are futures.
//!
//! A worker runs many of them at a time on its one thread, so that waiting for
//! a database costs a future and not a thread. What holds of handlers holds of
//! these: the orders, what an [`Outcome`] means, when an offset counts. A future
//! runs on the worker's thread only, and so need not be `Send`.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::handler::{IntoOutcome, Outcome};
use crate::record::{OwnedRecord, TopicPartition};

/// Handles records as futures, many at a time on each worker's thread
/// ([`Builder::in_flight`](crate::Builder::in_flight) of them), in a tokio
/// runtime of that thread. A closure that gives a future is such a handler.
///
/// - Which records are in the handler at once is a matter of
///   [`Order`](crate::Order): those of different partitions, of different keys,
///   or any.
/// - The handler is shared by all of a worker's futures, hence `&self`; it needs
///   neither `Send` nor a lock, a `Cell` or `RefCell` will do.
/// - A panic counts as a failed record. The other futures go on, in the same
///   worker.
/// - A future is **cancelled**, that is dropped where it waits, when nobody waits
///   for it any more: its partition was lost, or it was not done at the revoke
///   deadline or at the stop deadline. Its record is not completed, and comes
///   again, here or elsewhere. What must not be left half done has to be safe to
///   be done again, or belongs on a task of its own.
/// - A future that does not wait but works, or that blocks, holds up all of its
///   worker, and cannot be cancelled. Work goes to `spawn_blocking`.
///
/// ```
/// use keepup::{AsyncHandler, Outcome, OwnedRecord};
///
/// struct Forward { to: String }
///
/// impl AsyncHandler for Forward {
///     async fn handle(&self, record: OwnedRecord) -> Outcome {
///         match send(&self.to, record.value().unwrap_or_default()).await {
///             Ok(()) => Outcome::Done,
///             Err(error) => Outcome::retry(error.to_string()),
///         }
///     }
/// }
/// # async fn send(_: &str, _: &[u8]) -> std::io::Result<()> { Ok(()) }
/// ```
pub trait AsyncHandler {
    /// Works on one record.
    fn handle(&self, record: OwnedRecord) -> impl Future<Output = Outcome>;

    /// As [`Handler::on_assigned`](crate::Handler::on_assigned): before the
    /// worker's first record of a partition. Not a future, since nothing of the
    /// partition begins before it returns.
    fn on_assigned(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// As [`Handler::on_revoked`](crate::Handler::on_revoked): when nothing of
    /// these partitions is in this worker's hands any more.
    fn on_revoked(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// As [`Handler::on_lost`](crate::Handler::on_lost): after what was in this
    /// worker's hands of these partitions was cancelled.
    fn on_lost(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }
}

impl<F, R> AsyncHandler for F
where
    F: Fn(OwnedRecord) -> R,
    R: Future<Output: IntoOutcome>,
{
    async fn handle(&self, record: OwnedRecord) -> Outcome {
        self(record).await.into_outcome()
    }
}

/// What handles one record.
pub(crate) type Call = Pin<Box<dyn Future<Output = Outcome>>>;

/// A worker's asynchronous handler, whatever its type.
pub(crate) trait AsyncEngine {
    /// Begins with a record once it is polled.
    fn call(&self, record: OwnedRecord) -> Call;
    fn on_assigned(&self, partitions: &[TopicPartition]);
    fn on_revoked(&self, partitions: &[TopicPartition]);
    fn on_lost(&self, partitions: &[TopicPartition]);
}

/// Shared by the futures that it made.
pub(crate) struct Shared<H>(pub(crate) Rc<H>);

impl<H: AsyncHandler + 'static> AsyncEngine for Shared<H> {
    fn call(&self, record: OwnedRecord) -> Call {
        let handler = Rc::clone(&self.0);
        Box::pin(async move { handler.handle(record).await })
    }

    fn on_assigned(&self, partitions: &[TopicPartition]) {
        self.0.on_assigned(partitions);
    }

    fn on_revoked(&self, partitions: &[TopicPartition]) {
        self.0.on_revoked(partitions);
    }

    fn on_lost(&self, partitions: &[TopicPartition]) {
        self.0.on_lost(partitions);
    }
}
