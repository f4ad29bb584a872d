//! Parallel Kafka consumers that know whether they keep up.
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
mod worker;

pub use config::{
    Assignment, Builder, Isolation, RetryPolicy, Settings, StartFrom, Workers, builder,
};
pub use error::{CommandError, Error, Problem};
pub use event::{ConsumedRange, Event, EventKind};
pub use handler::{BatchHandler, Handler, IntoOutcome, Outcome, Records, WorkerInfo};
pub use record::{Header, Headers, Record, TopicPartition};
pub use report::{Report, StopReason, WorkerReport, WorkerStop};
pub use runtime::{Handle, PartitionView};
