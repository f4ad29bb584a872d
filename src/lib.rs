//! keepup
mod clock;
mod record;
mod source;
pub use record::{Header, Headers, Record, TopicPartition};
