//! keepup
mod clock;
mod kafka;
mod record;
mod source;
pub use record::{Header, Headers, Record, TopicPartition};
