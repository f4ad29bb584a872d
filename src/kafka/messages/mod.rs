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
mod coordinator;
mod fetch;
mod metadata;
mod offsets;
mod sasl_authenticate;
mod sasl_handshake;
#[cfg(test)]
mod tests;

pub(crate) use api_versions::{ApiVersions, ApiVersionsRequest};
pub(crate) use committed::{CommittedAnswer, CommittedRequest, GroupTopic};
#[cfg(test)]
pub(crate) use committed::{CommittedPartition, CommittedTopic};
pub(crate) use coordinator::CoordinatorRequest;
#[cfg(test)]
pub(crate) use fetch::FetchedTopic;
pub(crate) use fetch::{
    Aborted, Diverging, Endpoint, FetchAnswer, FetchPartition, FetchRequest, FetchTopic,
    FetchedPartition, ForgottenTopic, Leader, TopicKey,
};
pub(crate) use metadata::{MetadataAnswer, MetadataRequest, MetadataTopic};
#[cfg(test)]
pub(crate) use metadata::{MetadataBroker, MetadataPartition};
#[cfg(test)]
pub(crate) use offsets::OffsetsTopic;
pub(crate) use offsets::{
    EARLIEST, LATEST, OffsetAnswer, OffsetQuestion, OffsetsAnswer, OffsetsRequest,
};
pub(crate) use sasl_authenticate::SaslAuthenticateRequest;
pub(crate) use sasl_handshake::SaslHandshakeRequest;

/// A request that we send, and how its answer is read.
pub(crate) trait Request {
    const API: Api;
    /// What we keep of the answer.
    type Answer;

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
    SaslHandshake,
    ApiVersions,
    SaslAuthenticate,
}

impl Api {
    pub(crate) const ALL: [Self; 8] = [
        Self::Fetch,
        Self::ListOffsets,
        Self::Metadata,
        Self::OffsetFetch,
        Self::FindCoordinator,
        Self::SaslHandshake,
        Self::ApiVersions,
        Self::SaslAuthenticate,
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
            Self::SaslHandshake => 17,
            Self::ApiVersions => 18,
            Self::SaslAuthenticate => 36,
        }
    }

    /// The versions that we write and read, first and last.
    ///
    /// Fetch 17 and 18 serve followers only; OffsetFetch 10 names topics by id;
    /// ListOffsets 8 and later serve tiered storage.
    pub(crate) const fn ours(self) -> (i16, i16) {
        match self {
            Self::Fetch => (4, 16),
            Self::ListOffsets => (1, 7),
            Self::Metadata => (1, 12),
            Self::OffsetFetch => (1, 9),
            Self::FindCoordinator => (0, 4),
            // After version 0 the mechanism's messages come without frames.
            Self::SaslHandshake => (1, 1),
            Self::ApiVersions => (0, 3),
            Self::SaslAuthenticate => (0, 2),
        }
    }

    /// True where that version has compact lengths and tagged fields.
    pub(crate) const fn is_flexible(self, version: i16) -> bool {
        version
            >= match self {
                Self::Fetch => 12,
                Self::ListOffsets | Self::OffsetFetch => 6,
                Self::Metadata => 9,
                Self::FindCoordinator | Self::ApiVersions => 3,
                Self::SaslHandshake => i16::MAX,
                Self::SaslAuthenticate => 2,
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
