//! Every decoder against real answers of every version, and against what
//! becomes of them when bytes are changed, cut or put in between.
//!
//! A decoder that reserves memory by a length on the wire asks for hundreds of
//! gigabytes here and takes the test process down: that is how these tests
//! fail where a shape is missing or wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{self as kafka, BrokerId, GroupId, ProducerId};
use kafka_protocol::protocol::{Decodable, Encodable};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::kafka::Isolation;
use crate::kafka::frame::{self, Negotiated};
use crate::kafka::shape::{self, Answer};

const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

fn shape_of(api: Api) -> &'static Answer {
    match api {
        Api::Fetch => &fetch::SHAPE,
        Api::ListOffsets => &offsets::SHAPE,
        Api::Metadata => &metadata::SHAPE,
        Api::OffsetFetch => &committed::SHAPE,
        Api::FindCoordinator => &coordinator::SHAPE,
        Api::SaslHandshake => &sasl_handshake::SHAPE,
        Api::ApiVersions => &api_versions::SHAPE,
        Api::SaslAuthenticate => &sasl_authenticate::SHAPE,
    }
}

/// Decodes with what production uses; `true` where there is an answer.
fn take(api: Api, body: Bytes, version: i16) -> bool {
    match api {
        Api::Fetch => FetchRequest::take(body, version).is_ok(),
        Api::ListOffsets => OffsetsRequest::take(body, version).is_ok(),
        Api::Metadata => MetadataRequest::take(body, version).is_ok(),
        Api::OffsetFetch => CommittedRequest::take(body, version).is_ok(),
        Api::FindCoordinator => CoordinatorRequest::take(body, version).is_ok(),
        Api::SaslHandshake => SaslHandshakeRequest::take(body, version).is_ok(),
        Api::ApiVersions => ApiVersionsRequest::take(body, version).is_ok(),
        Api::SaslAuthenticate => SaslAuthenticateRequest::take(body, version).is_ok(),
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
        Api::SaslHandshake => run::<kafka::SaslHandshakeResponse>(body, version),
        Api::ApiVersions => run::<kafka::ApiVersionsResponse>(body, version),
        Api::SaslAuthenticate => run::<kafka::SaslAuthenticateResponse>(body, version),
    }
}

/// What a broker would answer, with everything in it that the version has.
fn real_answer(api: Api, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    let result = match api {
        Api::Fetch => fetch_answer(version).encode(&mut out, version),
        Api::ListOffsets => list_offsets_answer(version).encode(&mut out, version),
        Api::Metadata => metadata_answer(version).encode(&mut out, version),
        Api::OffsetFetch => offset_fetch_answer(version).encode(&mut out, version),
        Api::FindCoordinator => coordinator_answer(version).encode(&mut out, version),
        Api::SaslHandshake => sasl_handshake_answer().encode(&mut out, version),
        Api::ApiVersions => api_versions_answer(version).encode(&mut out, version),
        Api::SaslAuthenticate => sasl_authenticate_answer(version).encode(&mut out, version),
    };
    result.unwrap_or_else(|error| panic!("{api} {version}: {error}"));
    out.freeze()
}

fn unknown_tags(api: Api, version: i16) -> BTreeMap<i32, Bytes> {
    if api.is_flexible(version) {
        BTreeMap::from([(77, Bytes::from_static(b"later")), (78, Bytes::new())])
    } else {
        BTreeMap::new()
    }
}

fn sasl_handshake_answer() -> kafka::SaslHandshakeResponse {
    kafka::SaslHandshakeResponse::default()
        .with_error_code(33)
        .with_mechanisms(vec![text("PLAIN"), text("SCRAM-SHA-512")])
}

fn sasl_authenticate_answer(version: i16) -> kafka::SaslAuthenticateResponse {
    let mut answer = kafka::SaslAuthenticateResponse::default()
        .with_error_message(Some(text("no")))
        .with_auth_bytes(Bytes::from_static(b"r=nonce,s=c2FsdA==,i=4096"))
        .with_unknown_tagged_fields(unknown_tags(Api::SaslAuthenticate, version));
    if version >= 1 {
        answer.session_lifetime_ms = 3_600_000;
    }
    answer
}

fn fetch_answer(version: i16) -> kafka::FetchResponse {
    use kafka::fetch_response as parts;

    let mut partition = parts::PartitionData::default()
        .with_partition_index(3)
        .with_high_watermark(120)
        .with_last_stable_offset(110)
        .with_aborted_transactions(Some(vec![
            parts::AbortedTransaction::default()
                .with_producer_id(ProducerId(7))
                .with_first_offset(101),
        ]))
        .with_records(Some(Bytes::from_static(b"some records")));
    if version >= 5 {
        partition.log_start_offset = 40;
    }
    if version >= 11 {
        partition.preferred_read_replica = BrokerId(6);
    }
    let mut without_records = partition.clone().with_partition_index(4);
    without_records.records = Some(Bytes::new());
    without_records.aborted_transactions = None;
    if version >= 12 {
        without_records.error_code = 6;
        without_records.diverging_epoch = parts::EpochEndOffset::default()
            .with_epoch(2)
            .with_end_offset(99);
        without_records.current_leader = parts::LeaderIdAndEpoch::default()
            .with_leader_id(BrokerId(2))
            .with_leader_epoch(9);
        without_records.snapshot_id = parts::SnapshotId::default()
            .with_end_offset(5)
            .with_epoch(1);
    }
    let mut topic =
        parts::FetchableTopicResponse::default().with_partitions(vec![partition, without_records]);
    if version >= 13 {
        topic.topic_id = ID;
    } else {
        topic.topic = topic_name("orders");
    }
    let mut answer = kafka::FetchResponse::default()
        .with_throttle_time_ms(5)
        .with_responses(vec![topic])
        .with_unknown_tagged_fields(unknown_tags(Api::Fetch, version));
    if version >= 7 {
        answer.session_id = 31;
    }
    if version >= 16 {
        answer.node_endpoints = vec![
            parts::NodeEndpoint::default()
                .with_node_id(BrokerId(2))
                .with_host(text("two"))
                .with_port(9092),
        ];
    }
    answer
}

fn list_offsets_answer(version: i16) -> kafka::ListOffsetsResponse {
    use kafka::list_offsets_response as parts;

    let mut partition = parts::ListOffsetsPartitionResponse::default()
        .with_partition_index(1)
        .with_timestamp(1_700_000_000_000)
        .with_offset(42);
    if version >= 4 {
        partition.leader_epoch = 3;
    }
    kafka::ListOffsetsResponse::default()
        .with_topics(vec![
            parts::ListOffsetsTopicResponse::default()
                .with_name(topic_name("orders"))
                .with_partitions(vec![partition.clone(), partition.with_error_code(6)]),
        ])
        .with_unknown_tagged_fields(unknown_tags(Api::ListOffsets, version))
}

fn metadata_answer(version: i16) -> kafka::MetadataResponse {
    use kafka::metadata_response as parts;

    let broker = |id: i32| {
        parts::MetadataResponseBroker::default()
            .with_node_id(BrokerId(id))
            .with_host(text("broker"))
            .with_port(9092)
            .with_rack(Some(text("rack")))
    };
    let partition = |index: i32, leader: i32| {
        let mut partition = parts::MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(leader))
            .with_replica_nodes(vec![BrokerId(1), BrokerId(2)])
            .with_isr_nodes(vec![BrokerId(1)]);
        if version >= 5 {
            partition.offline_replicas = vec![BrokerId(2)];
        }
        if version >= 7 {
            partition.leader_epoch = 8;
        }
        partition
    };
    let mut topic = parts::MetadataResponseTopic::default()
        .with_name(Some(topic_name("orders")))
        .with_partitions(vec![partition(0, 1), partition(1, -1).with_error_code(5)]);
    if version >= 10 {
        topic.topic_id = ID;
    }
    let mut answer = kafka::MetadataResponse::default()
        .with_brokers(vec![broker(1), broker(2)])
        .with_controller_id(BrokerId(1))
        .with_topics(vec![topic])
        .with_unknown_tagged_fields(unknown_tags(Api::Metadata, version));
    if version >= 2 {
        answer.cluster_id = Some(text("cluster"));
    }
    answer
}

fn offset_fetch_answer(version: i16) -> kafka::OffsetFetchResponse {
    use kafka::offset_fetch_response as parts;

    let answer = kafka::OffsetFetchResponse::default()
        .with_unknown_tagged_fields(unknown_tags(Api::OffsetFetch, version));
    if version >= 8 {
        let partition = parts::OffsetFetchResponsePartitions::default()
            .with_partition_index(2)
            .with_committed_offset(17)
            .with_committed_leader_epoch(1)
            .with_metadata(Some(text("note")));
        return answer.with_groups(vec![
            parts::OffsetFetchResponseGroup::default()
                .with_group_id(GroupId(text("group")))
                .with_topics(vec![
                    parts::OffsetFetchResponseTopics::default()
                        .with_name(topic_name("orders"))
                        .with_partitions(vec![partition]),
                ]),
        ]);
    }
    let mut partition = parts::OffsetFetchResponsePartition::default()
        .with_partition_index(2)
        .with_committed_offset(17)
        .with_metadata(Some(text("note")));
    if version >= 5 {
        partition.committed_leader_epoch = 1;
    }
    answer.with_topics(vec![
        parts::OffsetFetchResponseTopic::default()
            .with_name(topic_name("orders"))
            .with_partitions(vec![partition]),
    ])
}

fn coordinator_answer(version: i16) -> kafka::FindCoordinatorResponse {
    let answer = kafka::FindCoordinatorResponse::default()
        .with_unknown_tagged_fields(unknown_tags(Api::FindCoordinator, version));
    if version >= 4 {
        return answer.with_coordinators(vec![
            kafka::find_coordinator_response::Coordinator::default()
                .with_key(text("group"))
                .with_node_id(BrokerId(3))
                .with_host(text("three"))
                .with_port(9094),
        ]);
    }
    answer
        .with_node_id(BrokerId(3))
        .with_host(text("three"))
        .with_port(9094)
}

fn api_versions_answer(version: i16) -> kafka::ApiVersionsResponse {
    use kafka::api_versions_response as parts;

    let range = |key: i16, min: i16, max: i16| {
        parts::ApiVersion::default()
            .with_api_key(key)
            .with_min_version(min)
            .with_max_version(max)
    };
    let mut answer = kafka::ApiVersionsResponse::default()
        .with_api_keys(vec![range(1, 4, 18), range(3, 0, 5), range(999, 0, 1)])
        .with_unknown_tagged_fields(unknown_tags(Api::ApiVersions, version));
    if version >= 3 {
        answer.supported_features = vec![
            parts::SupportedFeatureKey::default()
                .with_name(text("metadata.version"))
                .with_min_version(1)
                .with_max_version(25),
        ];
        answer.finalized_features_epoch = 4;
        answer.finalized_features = vec![
            parts::FinalizedFeatureKey::default()
                .with_name(text("metadata.version"))
                .with_max_version_level(25)
                .with_min_version_level(25),
        ];
        answer.zk_migration_ready = true;
    }
    answer
}

fn every_version() -> impl Iterator<Item = (Api, i16)> {
    Api::ALL.into_iter().flat_map(|api| {
        let (min, max) = api.ours();
        (min..=max).map(move |version| (api, version))
    })
}

/// The claim of the whole file: whatever the bytes are, the walk refuses them
/// or the decoder takes no more of them than the walk did.
fn survives(api: Api, body: &Bytes, version: i16) {
    let walked = shape::check(body, shape_of(api), version);
    let answered = take(api, body.clone(), version);
    match walked {
        Err(_) => assert!(!answered, "{api} {version}: answered what the walk refuses"),
        Ok(walked) => {
            if let Some(taken) = taken_by_the_decoder(api, body, version) {
                assert_eq!(taken, walked, "{api} {version}: the shape is out of step");
            }
        }
    }
}

#[test]
fn real_answers_of_every_version_are_walked_and_decoded_to_their_last_byte() {
    for (api, version) in every_version() {
        let body = real_answer(api, version);
        assert_eq!(
            shape::check(&body, shape_of(api), version),
            Ok(body.len()),
            "{api} {version}"
        );
        assert!(take(api, body.clone(), version), "{api} {version}");
        survives(api, &body, version);
    }
}

#[test]
fn answers_cut_anywhere_are_refused() {
    for (api, version) in every_version() {
        let body = real_answer(api, version);
        for length in 0..body.len() {
            let cut = body.slice(..length);
            assert!(!take(api, cut, version), "{api} {version} cut at {length}");
        }
    }
}

#[test]
fn a_hostile_length_at_any_place_neither_aborts_nor_panics() {
    let hostile: [&[u8]; 5] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0x80, 0x00, 0x00, 0x00],
        &[0x00, 0x01, 0x00, 0x00],
        &[0xff],
    ];
    for (api, version) in every_version() {
        let body = real_answer(api, version);
        for at in 0..body.len() {
            for pattern in hostile {
                let mut changed = body.to_vec();
                for (place, byte) in changed[at..].iter_mut().zip(pattern) {
                    *place = *byte;
                }
                survives(api, &Bytes::from(changed), version);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => any::<usize>().prop_map(Change::Cut),
        2 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (any::<usize>(), 1..12_usize).prop_map(|(at, count)| Change::Remove(at, count)),
    ]
}

fn changed(mut body: Vec<u8>, changes: Vec<Change>) -> Bytes {
    for change in changes {
        let place = |at: usize, body: &Vec<u8>| at % (body.len() + 1);
        match change {
            Change::Set(at, byte) => {
                let at = place(at, &body);
                if let Some(place) = body.get_mut(at) {
                    *place = byte;
                }
            }
            Change::Cut(at) => body.truncate(place(at, &body)),
            Change::Insert(at, bytes) => {
                let at = place(at, &body);
                body.splice(at..at, bytes);
            }
            Change::Remove(at, count) => {
                let at = place(at, &body);
                let end = (at + count).min(body.len());
                body.drain(at..end);
            }
        }
    }
    Bytes::from(body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn changed_answers_neither_abort_nor_panic(
        case in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let all: Vec<(Api, i16)> = every_version().collect();
        let (api, version) = all[case.index(all.len())];
        survives(api, &changed(real_answer(api, version).to_vec(), changes), version);
    }

    #[test]
    fn arbitrary_bytes_neither_abort_nor_panic(
        case in any::<prop::sample::Index>(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let all: Vec<(Api, i16)> = every_version().collect();
        let (api, version) = all[case.index(all.len())];
        survives(api, &Bytes::from(body), version);
    }
}

#[test]
fn seventy_two_bytes_that_once_asked_for_206_gigabytes_are_refused() {
    let mut body = vec![0, 0, 0, 0]; // throttle time
    body.extend([0x7f, 0xff, 0xff, 0xff]); // so many brokers
    body.resize(68, 0);
    assert!(matches!(
        MetadataRequest::take(Bytes::from(body), 8),
        Err(WireError::Misfit { .. })
    ));
}

#[test]
fn a_fetch_answer_says_what_the_broker_said_and_shares_the_frames_memory() {
    for version in 4..=16 {
        let body = real_answer(Api::Fetch, version);
        let answer = FetchRequest::take(body.clone(), version).unwrap();
        let [topic] = &answer.topics[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(
            topic.topic,
            if version >= 13 {
                TopicKey::Id(ID)
            } else {
                TopicKey::Name(Arc::from("orders"))
            }
        );
        let [first, second] = &topic.partitions[..] else {
            panic!("{topic:?}")
        };
        assert_eq!((first.partition, first.error), (3, 0));
        assert_eq!((first.high_watermark, first.last_stable_offset), (120, 110));
        assert_eq!(first.log_start, if version >= 5 { 40 } else { -1 });
        assert_eq!(
            first.aborted,
            [Aborted {
                producer_id: 7,
                first_offset: 101
            }]
        );
        assert_eq!(&first.records[..], b"some records");
        let frame = body.as_ptr_range();
        assert!(
            frame.contains(&first.records.as_ptr()),
            "records were copied"
        );
        assert_eq!((first.diverging, first.leader), (None, None));
        assert!(second.records.is_empty() && second.aborted.is_empty());
        if version >= 12 {
            assert_eq!(second.error, 6);
            assert_eq!(
                second.diverging,
                Some(Diverging {
                    epoch: 2,
                    end_offset: 99
                })
            );
            assert_eq!(second.leader, Some(Leader { id: 2, epoch: 9 }));
        }
        assert_eq!(first.preferred, (version >= 11).then_some(6));
        assert_eq!(answer.session_id, if version >= 7 { 31 } else { 0 });
        let endpoint = Endpoint {
            id: 2,
            host: Arc::from("two"),
            port: 9092,
        };
        let endpoints = if version >= 16 { &[endpoint][..] } else { &[] };
        assert_eq!(answer.endpoints, endpoints);
    }
}

#[test]
fn metadata_says_which_partitions_have_no_leader() {
    for version in 1..=12 {
        let answer = MetadataRequest::take(real_answer(Api::Metadata, version), version).unwrap();
        assert_eq!(answer.brokers.len(), 2);
        assert_eq!(&*answer.brokers[0].host, "broker");
        let topic = &answer.topics[0];
        assert_eq!(topic.id, if version >= 10 { ID } else { Uuid::nil() });
        let epoch = if version >= 7 { 8 } else { -1 };
        assert_eq!(topic.partitions[0].leader, Some(Leader { id: 1, epoch }));
        assert_eq!(topic.partitions[1].leader, None);
        assert_eq!(topic.partitions[1].error, 5);
    }
}

#[test]
fn offsets_commits_and_coordinators_read_the_same_in_every_version() {
    for version in 1..=7 {
        let answer = OffsetsRequest::take(real_answer(Api::ListOffsets, version), version).unwrap();
        assert_eq!(&*answer.topics[0].name, "orders");
        let partitions = &answer.topics[0].partitions;
        assert_eq!((partitions[0].offset, partitions[0].error), (42, 0));
        assert_eq!(partitions[1].error, 6);
    }
    for version in 1..=9 {
        let answer =
            CommittedRequest::take(real_answer(Api::OffsetFetch, version), version).unwrap();
        assert_eq!(answer.error, 0);
        assert_eq!(
            answer.topics,
            [CommittedTopic {
                name: Arc::from("orders"),
                partitions: vec![CommittedPartition {
                    partition: 2,
                    error: 0,
                    offset: 17
                }],
            }]
        );
    }
    for version in 0..=4 {
        let answer =
            CoordinatorRequest::take(real_answer(Api::FindCoordinator, version), version).unwrap();
        assert_eq!((answer.error, answer.id, answer.port), (0, 3, 9094));
        assert_eq!(&*answer.host, "three");
    }
}

#[test]
fn sasl_answers_say_what_the_broker_said() {
    let body = real_answer(Api::SaslHandshake, 1);
    let answer = SaslHandshakeRequest::take(body, 1).unwrap();
    assert_eq!(answer.error, 33);
    assert_eq!(answer.mechanisms, ["PLAIN", "SCRAM-SHA-512"]);
    for version in 0..=2 {
        let body = real_answer(Api::SaslAuthenticate, version);
        let answer = SaslAuthenticateRequest::take(body, version).unwrap();
        assert_eq!(
            (answer.error, answer.error_message.as_deref()),
            (0, Some("no"))
        );
        assert_eq!(&answer.message[..], b"r=nonce,s=c2FsdA==,i=4096");
        let lifetime = (version >= 1).then_some(Duration::from_hours(1));
        assert_eq!(answer.lifetime, lifetime);
    }
}

#[test]
fn the_highest_common_version_is_picked_and_its_absence_is_an_error() {
    let versions = ApiVersionsRequest::take(real_answer(Api::ApiVersions, 3), 3).unwrap();
    assert_eq!(versions.pick(Api::Fetch), Ok(16));
    assert_eq!(versions.pick_at_most(Api::Fetch, 12), Ok(12));
    assert_eq!(versions.pick(Api::Metadata), Ok(5));
    assert_eq!(
        versions.pick(Api::OffsetFetch),
        Err(WireError::NoCommonVersion {
            api: Api::OffsetFetch,
            ours: (1, 9),
            theirs: None
        })
    );
    let newer = ApiVersions::new(&[(Api::Metadata, 13, 15)]);
    assert!(newer.pick(Api::Metadata).is_err());
}

fn with_header(correlation: i32, tags: &[u8], body: &[u8]) -> Bytes {
    let mut frame = correlation.to_be_bytes().to_vec();
    frame.extend(tags);
    frame.extend(body);
    Bytes::from(frame)
}

#[test]
fn an_answer_must_carry_the_number_of_its_request() {
    let body = real_answer(Api::ListOffsets, 7);
    let frame = with_header(5, &[0], &body);
    assert!(frame::decode::<OffsetsRequest>(frame.clone(), 7, 5).is_ok());
    assert_eq!(
        frame::decode::<OffsetsRequest>(frame, 7, 6),
        Err(WireError::OutOfStep {
            expected: 6,
            got: 5
        })
    );
    let tagged = with_header(5, &[1, 9, 2, 0, 0], &body);
    assert!(frame::decode::<OffsetsRequest>(tagged, 7, 5).is_ok());
    for cut in 0..4 {
        let short = Bytes::from(vec![0; cut]);
        assert!(frame::decode::<OffsetsRequest>(short, 7, 0).is_err());
    }
}

#[test]
fn a_broker_that_does_not_know_the_version_of_the_question_is_asked_in_version_zero() {
    // As librdkafka's mock cluster says it: nothing after the code decodes.
    let refused = with_header(1, &[], &[0, 35, 9]);
    assert_eq!(
        frame::decode_api_versions(refused, 3, 1),
        Ok(Negotiated::AskVersionZero)
    );
    let answered = with_header(2, &[], &real_answer(Api::ApiVersions, 0));
    assert!(matches!(
        frame::decode_api_versions(answered, 0, 2),
        Ok(Negotiated::Versions(_))
    ));
    let again = with_header(2, &[], &[0, 35, 0, 0, 0, 0]);
    assert!(frame::decode_api_versions(again, 0, 2).is_err());
}

#[test]
fn requests_are_understood_by_a_broker_in_every_version() {
    fn sent<R: Request>(request: &R, version: i16) -> Bytes {
        let mut out = vec![0xee];
        frame::encode(request, version, 9, "client", &mut out).unwrap();
        let length = i32::from_be_bytes([out[1], out[2], out[3], out[4]]);
        assert_eq!(usize::try_from(length).unwrap(), out.len() - 5);
        let mut rest = Bytes::from(out).slice(5..);
        let header =
            kafka_protocol::protocol::decode_request_header_from_buffer(&mut rest).unwrap();
        assert_eq!(header.request_api_key, R::API.key());
        assert_eq!(
            (header.request_api_version, header.correlation_id),
            (version, 9)
        );
        assert_eq!(header.client_id.as_deref(), Some("client"));
        rest
    }
    fn read<T: Decodable>(mut body: Bytes, version: i16) -> T {
        let message = T::decode(&mut body, version).unwrap();
        assert!(body.is_empty(), "{} bytes too many", body.len());
        message
    }
    let fetch = fetch_request(ID);
    for version in 7..=16 {
        let read: kafka::FetchRequest = read(sent(&fetch, version), version);
        assert_eq!((read.max_wait_ms, read.max_bytes), (250, 1 << 20));
        assert_eq!((read.session_id, read.session_epoch), (31, 6));
        assert_eq!(read.isolation_level, 1);
        let forgotten = &read.forgotten_topics_data[0];
        assert_eq!(forgotten.partitions, [5, 8]);
        if version >= 13 {
            assert_eq!((forgotten.topic_id, read.topics[0].topic_id), (ID, ID));
        } else {
            assert_eq!(forgotten.topic.as_str(), "orders");
        }
        assert_eq!(
            read.rack_id.as_str(),
            if version >= 11 { "here" } else { "" }
        );
        let partition = &read.topics[0].partitions[0];
        assert_eq!((partition.partition, partition.fetch_offset), (3, 77));
        if version >= 12 {
            assert_eq!(partition.last_fetched_epoch, 5);
        }
    }
    for version in 4..=6 {
        let read: kafka::FetchRequest = read(sent(&fetch, version), version);
        assert_eq!(read.topics[0].partitions.len(), 1, "there were no sessions");
    }
    let offsets = OffsetsRequest {
        isolation: Isolation::ReadCommitted,
        topics: vec![(
            Arc::from("orders"),
            vec![OffsetQuestion {
                partition: 1,
                leader_epoch: 4,
                timestamp: EARLIEST,
            }],
        )],
    };
    for version in 1..=7 {
        let read: kafka::ListOffsetsRequest = read(sent(&offsets, version), version);
        assert_eq!(read.replica_id, BrokerId(-1));
        assert_eq!(read.topics[0].partitions[0].timestamp, -2);
    }
    let metadata = MetadataRequest {
        topics: vec![Arc::from("orders")],
    };
    for version in 1..=12 {
        let read: kafka::MetadataRequest = read(sent(&metadata, version), version);
        assert_eq!(read.topics.unwrap().len(), 1);
        assert_eq!(read.allow_auto_topic_creation, version < 4);
    }
    let committed = CommittedRequest {
        group: "group".to_owned(),
        topics: vec![GroupTopic {
            name: Arc::from("orders"),
            partitions: vec![0, 1],
        }],
    };
    for version in 1..=9 {
        let read: kafka::OffsetFetchRequest = read(sent(&committed, version), version);
        assert_eq!(read.require_stable, version >= 7);
        let partitions = if version >= 8 {
            read.groups[0].topics.as_ref().unwrap()[0]
                .partition_indexes
                .clone()
        } else {
            read.topics.unwrap()[0].partition_indexes.clone()
        };
        assert_eq!(partitions, [0, 1]);
    }
    let coordinator = CoordinatorRequest {
        group: "group".to_owned(),
    };
    for version in 0..=4 {
        let read: kafka::FindCoordinatorRequest = read(sent(&coordinator, version), version);
        let key = if version >= 4 {
            &read.coordinator_keys[0]
        } else {
            &read.key
        };
        assert_eq!(key.as_str(), "group");
    }
    let handshake = SaslHandshakeRequest { mechanism: "PLAIN" };
    let read_handshake: kafka::SaslHandshakeRequest = read(sent(&handshake, 1), 1);
    assert_eq!(read_handshake.mechanism.as_str(), "PLAIN");
    let authenticate = SaslAuthenticateRequest { message: b"proof" };
    assert!(!format!("{authenticate:?}").contains("112"));
    for version in 0..=2 {
        let read: kafka::SaslAuthenticateRequest = read(sent(&authenticate, version), version);
        assert_eq!(&read.auth_bytes[..], b"proof");
    }
    for version in 0..=3 {
        let _: kafka::ApiVersionsRequest = read(sent(&ApiVersionsRequest, version), version);
    }
}

fn fetch_request(id: Uuid) -> FetchRequest {
    FetchRequest {
        max_wait: Duration::from_millis(250),
        min_bytes: 1,
        max_bytes: 1 << 20,
        isolation: Isolation::ReadCommitted,
        topics: vec![FetchTopic {
            name: Arc::from("orders"),
            id,
            partitions: vec![FetchPartition {
                partition: 3,
                leader_epoch: 2,
                offset: 77,
                last_fetched_epoch: 5,
                max_bytes: 1 << 20,
            }],
        }],
        session_id: 31,
        session_epoch: 6,
        by_id: !id.is_nil(),
        forgotten: vec![ForgottenTopic {
            name: Arc::from("orders"),
            id,
            partitions: vec![5, 8],
        }],
        rack: Arc::from("here"),
    }
}

#[test]
fn a_topic_without_an_id_is_asked_for_by_name_only() {
    let request = fetch_request(Uuid::nil());
    assert_eq!(request.highest_version(), 12);
    let mut out = vec![1, 2, 3];
    assert!(matches!(
        frame::encode(&request, 13, 1, "client", &mut out),
        Err(WireError::Unwritable { .. })
    ));
    assert_eq!(out, [1, 2, 3], "half a frame is left behind");
}

#[test]
fn a_coordinator_that_is_null_because_of_an_error_leaves_the_error_readable() {
    // As librdkafka's mock cluster says it, in version 2.
    let mut body = vec![0, 0, 0, 0]; // throttle time
    body.extend([0, 15]);
    body.extend([0xff, 0xff]); // no message
    body.extend([0xff; 4]);
    body.extend([0xff, 0xff]); // no host
    body.extend([0xff; 4]);
    let answer = CoordinatorRequest::take(Bytes::from(body.clone()), 2).unwrap();
    assert_eq!((answer.error, answer.id), (15, -1));
    body[5] = 0;
    assert!(CoordinatorRequest::take(Bytes::from(body), 2).is_err());
}
