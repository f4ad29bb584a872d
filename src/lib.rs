//! Parallel Kafka consumers that know whether they keep up.
//!
//! One process is one member of a consumer group, and runs as many workers as
//! it has partitions, or as many as it is told to. A worker owns its partitions:
//! it fetches them over connections of its own and runs the handler, on one
//! thread. Rebalances, retries, commits and the end of the run are taken care
//! of.
//!
//! ```no_run
//! use keepup::Record;
//!
//! fn main() -> Result<(), keepup::Error> {
//!     let report = keepup::builder("localhost:9092", "billing")
//!         .topic("orders")
//!         .run(|_worker| |record: &Record<'_>| println!("{record:?}"))?;
//!     std::process::exit(report.exit_code());
//! }
//! ```
//!
//! [`Builder`] has everything that can be set, [`Handler`] and [`BatchHandler`]
//! what a record is given to (with the feature `tokio` `AsyncHandler` too, many at
//! a time), [`json()`] what decodes it before, [`Outcome`] what can be said of it, [`Handle`]
//! what can be asked of a run, and [`Report`] how it ended.

#[cfg(feature = "tokio")]
mod async_handler;
mod build_info;
mod clock;
mod config;
mod decode;
mod error;
mod event;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod kafka;
mod lag;
mod member;
mod process;
mod record;
mod report;
mod runtime;
mod source;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod worker;

#[cfg(feature = "tokio")]
pub use async_handler::AsyncHandler;
pub use build_info::{BuildInfo, build_info};
pub use config::{
    Assignment, Builder, Isolation, Model, OnExhausted, Order, OutOfRange, RetryPolicy, Settings,
    Source, StartFrom, Workers, builder,
};
pub use decode::{Decoding, FromJson, decoding, json};
pub use error::{CommandError, Error, Problem};
pub use event::{ConsumedRange, Event, EventKind, ResetReason};
pub use handler::{
    BatchHandler, BatchOutcome, Handler, IntoBatchOutcome, IntoOutcome, Outcome, Records,
    WorkerInfo,
};
pub use lag::{
    Advice, CommitNotes, ConnectionErrors, Health, LagSnapshot, MemberState, OutcomeTotals,
    PartitionLag, TopicTotals, WorkerState, WorkerStatus,
};
pub use process::is_worker_process;
#[cfg(feature = "tokio")]
pub use record::OwnedRecord;
pub use record::{Header, Headers, Record, TopicPartition};
pub use report::{Report, StopReason, WorkerReport, WorkerStop};
pub use runtime::{Handle, LagUpdates, PartitionView};
pub use trace::TraceContext;

/// Counts what the tests allocate, for those that say how much that may be.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

/// The program in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmePrograms;
