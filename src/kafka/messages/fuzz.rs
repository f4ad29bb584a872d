//! What must hold of every decoder, whatever the bytes are.
//!
//! Unit tests feed this with real answers and with what becomes of them when
//! they are changed, fuzzers with what they come up with. A new kind of request
//! is added to the three functions below, and is then tried by both.

use bytes::Bytes;
use kafka_protocol::messages as kafka;
use kafka_protocol::protocol::Decodable;

use super::{
    Api, ApiVersionsRequest, CommittedRequest, CoordinatorRequest, CoordinatorsRequest,
    DescribeConsumerGroupsRequest, DescribeGroupsRequest, DescribeTopicsRequest, EpochEndsRequest,
    FetchRequest, GroupOffsetsRequest, ListGroupsRequest, MetadataRequest, OffsetsRequest, Request,
    SaslAuthenticateRequest, SaslHandshakeRequest, TopicsByMetadataRequest, api_versions,
    committed, consumer_assignment, coordinator, describe_consumer_groups, describe_groups,
    describe_topics, fetch, leader_epoch, list_groups, metadata, offsets, sasl_authenticate,
    sasl_handshake,
};
use crate::kafka::shape::{self, Answer};

pub(in crate::kafka) fn shape_of(api: Api) -> &'static Answer {
    match api {
        Api::Fetch => &fetch::SHAPE,
        Api::ListOffsets => &offsets::SHAPE,
        Api::Metadata => &metadata::SHAPE,
        Api::OffsetFetch => &committed::SHAPE,
        Api::FindCoordinator => &coordinator::SHAPE,
        Api::DescribeGroups => &describe_groups::SHAPE,
        Api::ListGroups => &list_groups::SHAPE,
        Api::SaslHandshake => &sasl_handshake::SHAPE,
        Api::ApiVersions => &api_versions::SHAPE,
        Api::OffsetForLeaderEpoch => &leader_epoch::SHAPE,
        Api::SaslAuthenticate => &sasl_authenticate::SHAPE,
        Api::ConsumerGroupDescribe => &describe_consumer_groups::SHAPE,
        Api::DescribeTopicPartitions => &describe_topics::SHAPE,
    }
}

/// Decodes with whatever production uses; `true` where there is an answer.
pub(crate) fn take(api: Api, body: &Bytes, version: i16) -> bool {
    fn run<R: Request>(body: &Bytes, version: i16) -> bool {
        R::take(body.clone(), version).is_ok()
    }
    match api {
        Api::Fetch => run::<FetchRequest>(body, version),
        Api::ListOffsets => run::<OffsetsRequest>(body, version),
        Api::Metadata => {
            run::<MetadataRequest>(body, version) | run::<TopicsByMetadataRequest>(body, version)
        }
        Api::OffsetFetch => {
            run::<CommittedRequest>(body, version) | run::<GroupOffsetsRequest>(body, version)
        }
        Api::FindCoordinator => {
            run::<CoordinatorRequest>(body, version) | run::<CoordinatorsRequest>(body, version)
        }
        Api::DescribeGroups => run::<DescribeGroupsRequest>(body, version),
        Api::ListGroups => run::<ListGroupsRequest>(body, version),
        Api::SaslHandshake => run::<SaslHandshakeRequest>(body, version),
        Api::ApiVersions => run::<ApiVersionsRequest>(body, version),
        Api::OffsetForLeaderEpoch => run::<EpochEndsRequest>(body, version),
        Api::SaslAuthenticate => run::<SaslAuthenticateRequest<'_>>(body, version),
        Api::ConsumerGroupDescribe => run::<DescribeConsumerGroupsRequest>(body, version),
        Api::DescribeTopicPartitions => run::<DescribeTopicsRequest>(body, version),
    }
}

/// Bytes that `kafka-protocol` itself takes for a body; `None` where it fails.
fn taken_by_the_decoder(api: Api, body: &Bytes, version: i16) -> Option<usize> {
    fn run<T: Decodable>(body: &Bytes, version: i16) -> Option<usize> {
        let mut rest = body.clone();
        T::decode(&mut rest, version).ok()?;
        Some(body.len() - rest.len())
    }
    match api {
        Api::Fetch => run::<kafka::FetchResponse>(body, version),
        Api::ListOffsets => run::<kafka::ListOffsetsResponse>(body, version),
        Api::Metadata => run::<kafka::MetadataResponse>(body, version),
        Api::OffsetFetch => run::<kafka::OffsetFetchResponse>(body, version),
        Api::FindCoordinator => run::<kafka::FindCoordinatorResponse>(body, version),
        Api::DescribeGroups => run::<kafka::DescribeGroupsResponse>(body, version),
        Api::ListGroups => run::<kafka::ListGroupsResponse>(body, version),
        Api::SaslHandshake => run::<kafka::SaslHandshakeResponse>(body, version),
        Api::ApiVersions => run::<kafka::ApiVersionsResponse>(body, version),
        Api::OffsetForLeaderEpoch => run::<kafka::OffsetForLeaderEpochResponse>(body, version),
        Api::SaslAuthenticate => run::<kafka::SaslAuthenticateResponse>(body, version),
        Api::ConsumerGroupDescribe => run::<kafka::ConsumerGroupDescribeResponse>(body, version),
        Api::DescribeTopicPartitions => {
            run::<kafka::DescribeTopicPartitionsResponse>(body, version)
        }
    }
}

/// Every version of every request that we speak.
#[cfg(test)]
pub(crate) fn every_version() -> impl Iterator<Item = (Api, i16)> {
    Api::ALL.into_iter().flat_map(|api| {
        let (min, max) = api.ours();
        (min..=max).map(move |version| (api, version))
    })
}

/// The claim: whatever the bytes are, the walk refuses them or the decoder takes
/// no more of them than the walk did.
pub(crate) fn survives(api: Api, body: &Bytes, version: i16) {
    let walked = shape::check(body, shape_of(api), version);
    let answered = take(api, body, version);
    match walked {
        Err(_) => assert!(!answered, "{api} {version}: answered what the walk refuses"),
        Ok(walked) => {
            if let Some(taken) = taken_by_the_decoder(api, body, version) {
                assert_eq!(taken, walked, "{api} {version}: the shape is out of step");
            }
        }
    }
}

/// The request that two bytes stand for: Kafka's number of it and the version,
/// and where there is none like that, any other.
pub(crate) fn chosen(key: u8, version: u8) -> (Api, i16) {
    let of_key = |api: &Api| api.key() == i16::from(key);
    let other = usize::from(key) % Api::ALL.len();
    let api = Api::ALL
        .into_iter()
        .find(of_key)
        .or(Api::ALL.get(other).copied())
        .unwrap_or(Api::ApiVersions);
    let (min, max) = api.ours();
    let version = i16::from(version);
    if (min..=max).contains(&version) {
        return (api, version);
    }
    (api, min + version % (max - min + 1))
}

/// An answer's body; the first two bytes choose what it answers.
pub(crate) fn answer(data: &[u8]) {
    if let Some(([key, version], body)) = data.split_first_chunk() {
        let (api, version) = chosen(*key, *version);
        survives(api, &Bytes::copy_from_slice(body), version);
    }
}

/// What a member of a group may have put into its assignment.
pub(crate) fn assignment(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(topics) = consumer_assignment(bytes) {
        let partitions: usize = topics.iter().map(|(_, partitions)| partitions.len()).sum();
        assert!(
            topics.len() + partitions <= data.len(),
            "more is read than is there"
        );
    }
}
