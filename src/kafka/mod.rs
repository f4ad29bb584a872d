//! The only folder that names rdkafka or kafka-protocol.

#[cfg(feature = "testing")]
pub(crate) mod mock;
pub(crate) mod properties;
pub(crate) mod version;
