//! The requests that we send and what we keep of their answers.
//!
//! One file per request: its plain form, how it is written, the shape of its
//! answer and the answer's plain form. Errors stay numbers here; what they mean
//! is in [`super::errors`].

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::{Encodable, StrBytes};

use super::frame::WireError;

mod api_versions;
mod committed;
mod consumer_assignment;
mod coordinator;
mod describe_consumer_groups;
mod describe_groups;
mod describe_topics;
mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod group_offsets;
mod leader_epoch;
mod list_groups;
mod metadata;
mod offsets;
mod sasl_authenticate;
mod sasl_handshake;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use api_versions::{ApiVersions, ApiVersionsRequest};
pub(crate) use committed::{
    CommittedAnswer, CommittedPartition, CommittedRequest, CommittedTopic, GroupTopic,
};
pub(crate) use consumer_assignment::{AssignedTopics, consumer_assignment};
pub(crate) use coordinator::{CoordinatorRequest, CoordinatorsRequest};
pub(crate) use describe_consumer_groups::{
    ConsumerGroup, ConsumerMember, DescribeConsumerGroupsRequest,
};
pub(crate) use describe_groups::{ClassicGroup, ClassicMember, DescribeGroupsRequest};
#[cfg(test)]
pub(crate) use describe_topics::DescribedPartition;
pub(crate) use describe_topics::{
    Cursor, DescribeTopicsAnswer, DescribeTopicsRequest, DescribedTopic, TopicsByMetadataRequest,
};
#[cfg(test)]
pub(crate) use fetch::FetchedTopic;
pub(crate) use fetch::{
    Aborted, Diverging, Endpoint, FetchAnswer, FetchPartition, FetchRequest, FetchTopic,
    FetchedPartition, ForgottenTopic, Leader, TopicKey,
};
pub(crate) use group_offsets::{GroupOffset, GroupOffsets, GroupOffsetsRequest};
#[cfg(test)]
pub(crate) use leader_epoch::EpochEndsTopic;
pub(crate) use leader_epoch::{EpochEnd, EpochEndsAnswer, EpochEndsRequest, EpochQuestion};
pub(crate) use list_groups::{ListGroupsAnswer, ListGroupsRequest, ListedGroup};
pub(crate) use metadata::{
    MetadataAnswer, MetadataBroker, MetadataPartition, MetadataRequest, MetadataTopic,
};
pub(crate) use offsets::{
    EARLIEST, LATEST, OffsetAnswer, OffsetQuestion, OffsetsAnswer, OffsetsRequest, OffsetsTopic,
};
pub(crate) use sasl_authenticate::SaslAuthenticateRequest;
pub(crate) use sasl_handshake::SaslHandshakeRequest;

/// A request that we send, and how its answer is read.
pub(crate) trait Request {
    const API: Api;
    /// What we keep of the answer.
    type Answer;

    /// The first version that can express this very request.
    fn lowest_version(&self) -> i16 {
        Self::API.ours().0
    }

    /// Appends the body in the form of `version`.
    ///
    /// # Errors
    ///
    /// Says which field cannot be expressed.
    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String>;

    /// Reads an answer's body, checked before it is decoded.
    ///
    /// # Errors
    ///
    /// Where the body is not what that version's answer looks like.
    fn take(body: Bytes, version: i16) -> Result<Self::Answer, WireError>;

    /// An error code in the answer that says nothing, if there is one: whoever
    /// answers it is not to be trusted any further on that connection.
    fn unknown_code(_answer: &Self::Answer) -> Option<i16> {
        None
    }
}

/// The kinds of requests that we send.
#[expect(
    clippy::enum_variant_names,
    reason = "the names are Kafka's, and one of them begins like this enum's"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Api {
    Fetch,
    ListOffsets,
    Metadata,
    OffsetFetch,
    FindCoordinator,
    DescribeGroups,
    ListGroups,
    SaslHandshake,
    ApiVersions,
    OffsetForLeaderEpoch,
    SaslAuthenticate,
    ConsumerGroupDescribe,
    DescribeTopicPartitions,
}

impl Api {
    pub(crate) const ALL: [Self; 13] = [
        Self::Fetch,
        Self::ListOffsets,
        Self::Metadata,
        Self::OffsetFetch,
        Self::FindCoordinator,
        Self::DescribeGroups,
        Self::ListGroups,
        Self::SaslHandshake,
        Self::ApiVersions,
        Self::OffsetForLeaderEpoch,
        Self::SaslAuthenticate,
        Self::ConsumerGroupDescribe,
        Self::DescribeTopicPartitions,
    ];

    /// What a run cannot do without.
    pub(crate) const NEEDED: [Self; 5] = [
        Self::Metadata,
        Self::FindCoordinator,
        Self::OffsetFetch,
        Self::ListOffsets,
        Self::Fetch,
    ];

    /// Kafka's number of it.
    pub(crate) const fn key(self) -> i16 {
        match self {
            Self::Fetch => 1,
            Self::ListOffsets => 2,
            Self::Metadata => 3,
            Self::OffsetFetch => 9,
            Self::FindCoordinator => 10,
            Self::DescribeGroups => 15,
            Self::ListGroups => 16,
            Self::SaslHandshake => 17,
            Self::ApiVersions => 18,
            Self::OffsetForLeaderEpoch => 23,
            Self::SaslAuthenticate => 36,
            Self::ConsumerGroupDescribe => 69,
            Self::DescribeTopicPartitions => 75,
        }
    }

    /// The versions that we write and read, first and last.
    ///
    /// Fetch 17 and 18 serve followers only; OffsetFetch 10 names topics by id;
    /// ListOffsets 8 and later serve tiered storage. What only operators ask
    /// for begins where brokers of 2.8 end; the rest begins lower, for the mock
    /// cluster.
    pub(crate) const fn ours(self) -> (i16, i16) {
        match self {
            Self::Fetch => (4, 16),
            Self::ListOffsets => (1, 7),
            Self::Metadata => (1, 12),
            Self::OffsetFetch => (1, 9),
            Self::FindCoordinator => (0, 4),
            Self::DescribeGroups => (5, 6),
            Self::ListGroups => (4, 5),
            // After version 0 the mechanism's messages come without frames.
            Self::SaslHandshake => (1, 1),
            Self::ApiVersions => (0, 3),
            // Before version 3 only followers may ask.
            Self::OffsetForLeaderEpoch => (3, 4),
            Self::SaslAuthenticate => (0, 2),
            Self::ConsumerGroupDescribe => (0, 1),
            Self::DescribeTopicPartitions => (0, 0),
        }
    }

    /// True where that version has compact lengths and tagged fields.
    pub(crate) const fn is_flexible(self, version: i16) -> bool {
        version
            >= match self {
                Self::Fetch => 12,
                Self::ListOffsets | Self::OffsetFetch => 6,
                Self::Metadata => 9,
                Self::FindCoordinator | Self::ListGroups | Self::ApiVersions => 3,
                Self::DescribeGroups => 5,
                Self::SaslHandshake => i16::MAX,
                Self::OffsetForLeaderEpoch => 4,
                Self::SaslAuthenticate => 2,
                Self::ConsumerGroupDescribe | Self::DescribeTopicPartitions => 0,
            }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

fn shared(text: &StrBytes) -> Arc<str> {
    Arc::from(text.as_str())
}

fn put_body<M: Encodable>(message: &M, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
    message
        .encode(out, version)
        .map_err(|error| error.to_string())
}
