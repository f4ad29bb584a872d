//! The only folder that names rdkafka or kafka-protocol.

pub(crate) mod group;
pub(crate) mod properties;
