//! What the leader of a classic consumer group assigned to a member.
//!
//! Brokers keep these bytes without looking into them: a consumer wrote them,
//! with whatever it is made of, and any principal that may join the group can
//! put anything there. They are walked and decoded like an answer of a broker.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::ConsumerProtocolAssignment;
use kafka_protocol::protocol::Decodable;

use super::shared;
use crate::kafka::shape::{self, Answer, Shape, Struct, always};

static TOPIC: Struct = Struct {
    fields: &[
        always("topic", Shape::String),
        always("partitions", Shape::Array(&Shape::Fixed(4))),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: i16::MAX,
    body: Struct {
        fields: &[
            always("assigned_partitions", Shape::Array(&Shape::Struct(&TOPIC))),
            always("user_data", Shape::Bytes),
        ],
        tagged: &[],
    },
};

/// The highest version that we know. Later ones only append, as all before did,
/// and are read as this one.
pub(super) const NEWEST: i16 = 3;

/// Partitions of topics, by name.
pub(crate) type AssignedTopics = Vec<(Arc<str>, Vec<i32>)>;

/// Reads a member's assignment. No bytes at all are an empty one: the member
/// has not been given anything yet.
///
/// # Errors
///
/// Says what is wrong, where the bytes are not an assignment.
pub(crate) fn consumer_assignment(mut bytes: Bytes) -> Result<AssignedTopics, String> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let version = bytes
        .try_get_i16()
        .map_err(|_| "it is shorter than its version".to_owned())?;
    if version < 0 {
        return Err(format!("its version is {version}"));
    }
    let version = version.min(NEWEST);
    shape::check(&bytes, &SHAPE, version).map_err(|misfit| misfit.to_string())?;
    let assignment = ConsumerProtocolAssignment::decode(&mut bytes, version)
        .map_err(|error| error.to_string())?;
    Ok(assignment
        .assigned_partitions
        .into_iter()
        .map(|topic| (shared(&topic.topic), topic.partitions))
        .collect())
}
