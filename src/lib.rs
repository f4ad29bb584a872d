//! Parallel Kafka consumers that know whether they keep up.
mod build_info;
mod clock;
mod config;
mod error;
mod event;
mod handler;
mod kafka;
mod member;
mod record;
mod report;
mod runtime;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod worker;

pub use build_info::{BuildInfo, build_info};
pub use config::{
    Assignment, Builder, Isolation, RetryPolicy, Settings, StartFrom, Workers, builder,
};
pub use error::{CommandError, Error, Problem};
pub use event::{ConsumedRange, Event, EventKind};
pub use handler::{BatchHandler, Handler, IntoOutcome, Outcome, Records, WorkerInfo};
pub use record::{Header, Headers, Record, TopicPartition};
pub use report::{Report, StopReason, WorkerReport, WorkerStop};
pub use runtime::{Handle, PartitionView};

/// The program in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmePrograms;
