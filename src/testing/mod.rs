//! Kafka without Kafka: what tests, examples and the demo run on.
//!
//! Behind the feature `testing`, and not meant for production:
//! [`EmbeddedCluster`] is a small Kafka cluster inside the process, and
//! [`EmbeddedProducer`] fills it. [`FakeCluster`] is one that breaks in every
//! way that it is told to.

pub use self::fake::FakeCluster;
pub use self::fake::release::{Release, Request};
pub use self::fake::script::{Asked, Fault, Rule};
pub use crate::kafka::embedded::{Deliveries, EmbeddedCluster, EmbeddedProducer, ProduceError};

pub(crate) mod fake;
