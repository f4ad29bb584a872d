//! Kafka without Kafka: what tests, examples and the demo run on.
//!
//! Behind the feature `testing`, and not meant for production:
//! [`EmbeddedCluster`] is a small Kafka cluster inside the process, and
//! [`EmbeddedProducer`] fills it.

pub use crate::kafka::embedded::{Deliveries, EmbeddedCluster, EmbeddedProducer, ProduceError};
