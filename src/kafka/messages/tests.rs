//! Every decoder against real answers of every version, cut anywhere and with
//! hostile lengths everywhere. What else can become of real answers is tried in
//! `fuzzing`.
//!
//! A decoder that reserves memory by a length on the wire asks for hundreds of
//! gigabytes here and takes the test process down: that is how these tests
//! fail where a shape is missing or wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{self as kafka, BrokerId, GroupId, ProducerId};
use kafka_protocol::protocol::{Decodable, Encodable};
use uuid::Uuid;

use super::fuzz::{every_version, shape_of, survives, take};
use super::*;
use crate::kafka::Isolation;
use crate::kafka::frame::{self, Negotiated};
use crate::kafka::shape;

const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// What a broker would answer, with everything in it that the version has.
pub(crate) fn real_answer(api: Api, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    let result = match api {
        Api::Fetch => fetch_answer(version).encode(&mut out, version),
        Api::ListOffsets => list_offsets_answer(version).encode(&mut out, version),
        Api::Metadata => metadata_answer(version).encode(&mut out, version),
        Api::OffsetFetch => offset_fetch_answer(version).encode(&mut out, version),
        Api::FindCoordinator => coordinator_answer(version).encode(&mut out, version),
        Api::DescribeGroups => describe_groups_answer(version).encode(&mut out, version),
        Api::ListGroups => list_groups_answer(version).encode(&mut out, version),
        Api::ConsumerGroupDescribe => {
            describe_consumer_groups_answer(version).encode(&mut out, version)
        }
        Api::DescribeTopicPartitions => describe_topics_answer(version).encode(&mut out, version),
        Api::SaslHandshake => sasl_handshake_answer().encode(&mut out, version),
        Api::ApiVersions => api_versions_answer(version).encode(&mut out, version),
        Api::OffsetForLeaderEpoch => epoch_ends_answer(version).encode(&mut out, version),
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

fn epoch_ends_answer(version: i16) -> kafka::OffsetForLeaderEpochResponse {
    use kafka::offset_for_leader_epoch_response as parts;

    let partition = parts::EpochEndOffset::default()
        .with_partition(2)
        .with_leader_epoch(4)
        .with_end_offset(90);
    kafka::OffsetForLeaderEpochResponse::default()
        .with_topics(vec![
            parts::OffsetForLeaderTopicResult::default()
                .with_topic(topic_name("orders"))
                .with_partitions(vec![partition.clone(), partition.with_error_code(74)]),
        ])
        .with_unknown_tagged_fields(unknown_tags(Api::OffsetForLeaderEpoch, version))
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

fn list_groups_answer(version: i16) -> kafka::ListGroupsResponse {
    use kafka::list_groups_response as parts;

    let group = |name: &str, protocol_type: &str, state: &str, group_type: &str| {
        let mut group = parts::ListedGroup::default()
            .with_group_id(GroupId(text(name)))
            .with_protocol_type(text(protocol_type))
            .with_group_state(text(state));
        if version >= 5 {
            group.group_type = text(group_type);
        }
        group
    };
    kafka::ListGroupsResponse::default()
        .with_throttle_time_ms(3)
        .with_groups(vec![
            group("billing", "consumer", "Stable", "Classic"),
            group("audit", "consumer", "Reconciling", "Consumer"),
            group("only-commits", "", "Empty", "Classic"),
        ])
        .with_unknown_tagged_fields(unknown_tags(Api::ListGroups, version))
}

/// As a consumer writes it; later versions only append.
pub(crate) fn assignment_bytes(version: i16) -> Bytes {
    use kafka::consumer_protocol_assignment as parts;

    let mut out = BytesMut::new();
    out.extend_from_slice(&version.to_be_bytes());
    kafka::ConsumerProtocolAssignment::default()
        .with_assigned_partitions(vec![
            parts::TopicPartition::default()
                .with_topic(topic_name("orders"))
                .with_partitions(vec![0, 3]),
            parts::TopicPartition::default()
                .with_topic(topic_name("returns"))
                .with_partitions(vec![1]),
        ])
        .with_user_data(Some(Bytes::from_static(b"note")))
        .encode(&mut out, version.min(3))
        .unwrap();
    if version > 3 {
        out.extend_from_slice(b"what a later version appends");
    }
    out.freeze()
}

fn describe_groups_answer(version: i16) -> kafka::DescribeGroupsResponse {
    use kafka::describe_groups_response as parts;

    let member = parts::DescribedGroupMember::default()
        .with_member_id(text("member-1"))
        .with_group_instance_id(Some(text("static-1")))
        .with_client_id(text("client"))
        .with_client_host(text("/10.0.0.1"))
        .with_member_metadata(Bytes::from_static(b"subscription"))
        .with_member_assignment(assignment_bytes(3));
    let mut not_static = member.clone().with_member_id(text("member-2"));
    not_static.group_instance_id = None;
    not_static.member_assignment = Bytes::new();
    let mut missing = parts::DescribedGroup::default()
        .with_group_id(GroupId(text("nobody")))
        .with_group_state(text("Dead"));
    if version >= 6 {
        missing.error_code = 69;
        missing.error_message = Some(text("Group nobody not found."));
    }
    kafka::DescribeGroupsResponse::default()
        .with_groups(vec![
            parts::DescribedGroup::default()
                .with_group_id(GroupId(text("billing")))
                .with_group_state(text("Stable"))
                .with_protocol_type(text("consumer"))
                .with_protocol_data(text("range"))
                .with_members(vec![member, not_static]),
            missing,
        ])
        .with_unknown_tagged_fields(unknown_tags(Api::DescribeGroups, version))
}

fn describe_consumer_groups_answer(version: i16) -> kafka::ConsumerGroupDescribeResponse {
    use kafka::consumer_group_describe_response as parts;

    let assignment = |partitions: Vec<i32>| {
        parts::Assignment::default().with_topic_partitions(vec![
            parts::TopicPartitions::default()
                .with_topic_id(ID)
                .with_topic_name(topic_name("orders"))
                .with_partitions(partitions),
        ])
    };
    let mut member = parts::Member::default()
        .with_member_id(text("member-1"))
        .with_instance_id(Some(text("static-1")))
        .with_rack_id(Some(text("rack")))
        .with_member_epoch(7)
        .with_client_id(text("client"))
        .with_client_host(text("/10.0.0.1"))
        .with_subscribed_topic_names(vec![topic_name("orders"), topic_name("returns")])
        .with_subscribed_topic_regex(Some(text("o.*")))
        .with_assignment(assignment(vec![0, 1]))
        .with_target_assignment(assignment(vec![0]));
    if version >= 1 {
        member.member_type = 1;
    }
    kafka::ConsumerGroupDescribeResponse::default()
        .with_groups(vec![
            parts::DescribedGroup::default()
                .with_group_id(GroupId(text("audit")))
                .with_group_state(text("Reconciling"))
                .with_group_epoch(8)
                .with_assignment_epoch(7)
                .with_assignor_name(text("uniform"))
                .with_members(vec![member]),
            parts::DescribedGroup::default()
                .with_group_id(GroupId(text("billing")))
                .with_error_code(69)
                .with_error_message(Some(text("Group billing is not a consumer group."))),
        ])
        .with_unknown_tagged_fields(unknown_tags(Api::ConsumerGroupDescribe, version))
}

fn describe_topics_answer(version: i16) -> kafka::DescribeTopicPartitionsResponse {
    use kafka::describe_topic_partitions_response as parts;

    let partition = |index: i32, leader: i32| {
        parts::DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(leader))
            .with_leader_epoch(8)
            .with_replica_nodes(vec![BrokerId(1), BrokerId(2)])
            .with_isr_nodes(vec![BrokerId(1)])
            .with_eligible_leader_replicas(Some(vec![BrokerId(2)]))
            .with_last_known_elr(None)
            .with_offline_replicas(vec![BrokerId(2)])
    };
    kafka::DescribeTopicPartitionsResponse::default()
        .with_topics(vec![
            parts::DescribeTopicPartitionsResponseTopic::default()
                .with_name(Some(topic_name("orders")))
                .with_topic_id(ID)
                .with_partitions(vec![partition(0, 1), partition(1, -1).with_error_code(5)]),
        ])
        .with_next_cursor(Some(
            parts::Cursor::default()
                .with_topic_name(topic_name("orders"))
                .with_partition_index(2),
        ))
        .with_unknown_tagged_fields(unknown_tags(Api::DescribeTopicPartitions, version))
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

#[test]
fn real_answers_of_every_version_are_walked_and_decoded_to_their_last_byte() {
    for (api, version) in every_version() {
        let body = real_answer(api, version);
        assert_eq!(
            shape::check(&body, shape_of(api), version),
            Ok(body.len()),
            "{api} {version}"
        );
        assert!(take(api, &body, version), "{api} {version}");
        survives(api, &body, version);
    }
}

#[test]
fn answers_cut_anywhere_are_refused() {
    for (api, version) in every_version() {
        let body = real_answer(api, version);
        for length in 0..body.len() {
            let cut = body.slice(..length);
            assert!(!take(api, &cut, version), "{api} {version} cut at {length}");
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
                    offset: 17,
                    leader_epoch: if version >= 5 { 1 } else { -1 },
                    metadata: Some(Arc::from("note")),
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
fn the_end_of_a_leader_epoch_is_asked_of_a_leader_and_read() {
    for version in 3..=4 {
        let body = real_answer(Api::OffsetForLeaderEpoch, version);
        let answer = EpochEndsRequest::take(body, version).unwrap();
        let [topic] = &answer.topics[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(&*topic.name, "orders");
        let end = EpochEnd {
            partition: 2,
            error: 0,
            epoch: 4,
            end_offset: 90,
        };
        assert_eq!(topic.partitions, [end, EpochEnd { error: 74, ..end }]);

        let request = EpochEndsRequest {
            topics: vec![(
                Arc::from("orders"),
                vec![EpochQuestion {
                    partition: 2,
                    current_epoch: 7,
                    epoch: 4,
                }],
            )],
        };
        let mut body = Vec::new();
        request.put(version, &mut body).unwrap();
        let mut body = Bytes::from(body);
        let read = kafka::OffsetForLeaderEpochRequest::decode(&mut body, version).unwrap();
        assert!(body.is_empty());
        assert_eq!(read.replica_id, BrokerId(-1));
        let asked = &read.topics[0].partitions[0];
        assert_eq!(
            (
                asked.partition,
                asked.current_leader_epoch,
                asked.leader_epoch
            ),
            (2, 7, 4)
        );
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
fn groups_are_listed_with_what_the_version_tells_of_them() {
    for version in 4..=5 {
        let answer =
            ListGroupsRequest::take(real_answer(Api::ListGroups, version), version).unwrap();
        let group_type = |name: &str| (version >= 5).then(|| Arc::from(name));
        assert_eq!(answer.error, 0);
        assert_eq!(
            answer.groups[1],
            ListedGroup {
                group: Arc::from("audit"),
                protocol_type: Arc::from("consumer"),
                state: Arc::from("Reconciling"),
                group_type: group_type("Consumer"),
            }
        );
        assert_eq!(&*answer.groups[2].protocol_type, "");
    }
}

#[test]
fn a_classic_group_says_what_its_leader_assigned_to_each_member() {
    for version in 5..=6 {
        let body = real_answer(Api::DescribeGroups, version);
        let answer = DescribeGroupsRequest::take(body, version).unwrap();
        let [billing, nobody] = &answer.groups[..] else {
            panic!("{answer:?}")
        };
        assert_eq!((&*billing.group, billing.error), ("billing", 0));
        assert_eq!((&*billing.state, &*billing.protocol), ("Stable", "range"));
        let [member, other] = &billing.members[..] else {
            panic!("{billing:?}")
        };
        assert_eq!((&*member.id, &*member.client_id), ("member-1", "client"));
        assert_eq!(
            (&*member.host, member.instance.as_deref()),
            ("/10.0.0.1", Some("static-1"))
        );
        assert_eq!(
            consumer_assignment(member.assignment.clone()),
            Ok(vec![
                (Arc::from("orders"), vec![0, 3]),
                (Arc::from("returns"), vec![1])
            ])
        );
        assert_eq!(other.instance, None);
        assert_eq!(consumer_assignment(other.assignment.clone()), Ok(vec![]));
        assert_eq!(&*nobody.state, "Dead");
        assert_eq!(nobody.error, if version >= 6 { 69 } else { 0 });
    }
}

#[test]
fn an_assignment_of_any_version_is_read_and_anything_else_is_refused_with_a_reason() {
    let expected = consumer_assignment(assignment_bytes(0)).unwrap();
    assert_eq!(expected.len(), 2);
    for version in 1..=7 {
        assert_eq!(
            consumer_assignment(assignment_bytes(version)).as_ref(),
            Ok(&expected)
        );
    }
    let whole = assignment_bytes(3);
    for length in 1..whole.len() {
        let cut = consumer_assignment(whole.slice(..length));
        assert!(cut.is_err(), "cut at {length}: {cut:?}");
    }
    for (bytes, reason) in [
        (&[0][..], "shorter than its version"),
        (&[0xff, 0xff, 0, 0, 0, 0], "version is -1"),
        (&[0, 1, 0x7f, 0xff, 0xff, 0xff], "0 bytes are left"),
        (b"connect keeps json here", "claimed"),
    ] {
        let problem = consumer_assignment(Bytes::from_static(bytes)).unwrap_err();
        assert!(problem.contains(reason), "{problem}");
    }
}

#[test]
fn a_group_of_the_new_protocol_says_what_its_members_have_and_are_to_have() {
    for version in 0..=1 {
        let body = real_answer(Api::ConsumerGroupDescribe, version);
        let answer = DescribeConsumerGroupsRequest::take(body, version).unwrap();
        let [audit, billing] = &answer.groups[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(
            (&*audit.group, audit.error, &*audit.state),
            ("audit", 0, "Reconciling")
        );
        assert_eq!((audit.epoch, audit.assignment_epoch), (8, 7));
        assert_eq!(
            audit.members,
            [ConsumerMember {
                id: Arc::from("member-1"),
                instance: Some(Arc::from("static-1")),
                rack: Some(Arc::from("rack")),
                epoch: 7,
                client_id: Arc::from("client"),
                host: Arc::from("/10.0.0.1"),
                assignment: vec![(Arc::from("orders"), vec![0, 1])],
                target: vec![(Arc::from("orders"), vec![0])],
                is_classic: (version >= 1).then_some(false),
            }]
        );
        assert_eq!((&*billing.group, billing.error), ("billing", 69));
    }
}

#[test]
fn commits_of_a_group_come_with_their_epochs_and_notes() {
    for version in 2..=9 {
        let body = real_answer(Api::OffsetFetch, version);
        let answer = GroupOffsetsRequest::take(body, version).unwrap();
        let [group] = &answer.groups[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(group.group.as_deref(), (version >= 8).then_some("group"));
        assert_eq!(group.error, 0);
        assert_eq!(
            group.offsets,
            [GroupOffset {
                topic: Arc::from("orders"),
                partition: 2,
                error: 0,
                offset: 17,
                leader_epoch: if version >= 5 { 1 } else { -1 },
                metadata: Some(Arc::from("note")),
            }]
        );
    }
}

#[test]
fn topics_are_described_alike_by_old_brokers_and_new_ones() {
    let page =
        DescribeTopicsRequest::take(real_answer(Api::DescribeTopicPartitions, 0), 0).unwrap();
    assert_eq!(
        page.next,
        Some(Cursor {
            topic: Arc::from("orders"),
            partition: 2
        })
    );
    let partition = |partition: i32, error: i16, leader: Option<Leader>| DescribedPartition {
        partition,
        error,
        leader,
        replicas: vec![1, 2],
        in_sync: vec![1],
        offline: vec![2],
        eligible: Some(vec![2]),
    };
    let mut expected = DescribedTopic {
        name: Arc::from("orders"),
        id: ID,
        error: 0,
        is_internal: false,
        partitions: vec![
            partition(0, 0, Some(Leader { id: 1, epoch: 8 })),
            partition(1, 5, None),
        ],
    };
    assert_eq!(page.topics, std::slice::from_ref(&expected));

    for partition in &mut expected.partitions {
        partition.eligible = None;
    }
    for version in 10..=12 {
        let body = real_answer(Api::Metadata, version);
        let topics = TopicsByMetadataRequest::take(body, version).unwrap();
        assert_eq!(topics, std::slice::from_ref(&expected), "{version}");
    }
}

/// What an element takes in memory is what the walk counts for it, give or take
/// padding: the bound on memory is only as good as that.
#[test]
fn the_walk_knows_how_much_memory_an_element_takes() {
    use kafka::{
        consumer_group_describe_response as consumers, describe_groups_response as groups,
        describe_topic_partitions_response as topics, fetch_response as fetched,
        list_groups_response as listed, metadata_response as metadata,
        offset_fetch_response as offsets,
    };
    for (name, field, size) in [
        ("Fetch", "partitions", size_of::<fetched::PartitionData>()),
        (
            "Fetch",
            "responses",
            size_of::<fetched::FetchableTopicResponse>(),
        ),
        (
            "Metadata",
            "brokers",
            size_of::<metadata::MetadataResponseBroker>(),
        ),
        (
            "Metadata",
            "partitions",
            size_of::<metadata::MetadataResponsePartition>(),
        ),
        (
            "OffsetFetch",
            "groups",
            size_of::<offsets::OffsetFetchResponseGroup>(),
        ),
        ("ListGroups", "groups", size_of::<listed::ListedGroup>()),
        (
            "DescribeGroups",
            "groups",
            size_of::<groups::DescribedGroup>(),
        ),
        (
            "DescribeGroups",
            "members",
            size_of::<groups::DescribedGroupMember>(),
        ),
        (
            "ConsumerGroupDescribe",
            "groups",
            size_of::<consumers::DescribedGroup>(),
        ),
        (
            "ConsumerGroupDescribe",
            "members",
            size_of::<consumers::Member>(),
        ),
        (
            "DescribeTopicPartitions",
            "partitions",
            size_of::<topics::DescribeTopicPartitionsResponsePartition>(),
        ),
    ] {
        let api = Api::ALL.into_iter().find(|api| api.to_string() == name);
        let element = element_of(&shape_of(api.unwrap()).body, field)
            .unwrap_or_else(|| panic!("{name} has no {field}"));
        let counted = element.size_in_memory();
        assert!(
            counted.abs_diff(size) <= 24,
            "{name}, {field}: {counted} counted, {size} taken"
        );
    }
}

/// The bound on memory is for hostile answers: real ones of a large cluster,
/// whose elements are as small as they come, stay below it.
#[test]
fn answers_of_large_clusters_are_not_taken_for_hostile_ones() {
    let count = 50_000;
    let groups = (0..count).map(|number| {
        kafka::list_groups_response::ListedGroup::default()
            .with_group_id(GroupId(text(&number.to_string())))
            .with_group_state(text("Empty"))
            .with_group_type(text("Classic"))
    });
    let list = kafka::ListGroupsResponse::default().with_groups(groups.collect());
    let partitions = (0..count).map(|number| {
        kafka::describe_topic_partitions_response::DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(number)
            .with_replica_nodes(vec![BrokerId(1)])
            .with_isr_nodes(vec![BrokerId(1)])
    });
    let topics = kafka::DescribeTopicPartitionsResponse::default().with_topics(vec![
        kafka::describe_topic_partitions_response::DescribeTopicPartitionsResponseTopic::default()
            .with_name(Some(topic_name("t")))
            .with_partitions(partitions.collect()),
    ]);
    let partitions = (0..count).map(|number| {
        kafka::fetch_response::PartitionData::default()
            .with_partition_index(number)
            .with_records(Some(Bytes::new()))
    });
    let fetch = kafka::FetchResponse::default().with_responses(vec![
        kafka::fetch_response::FetchableTopicResponse::default()
            .with_topic_id(ID)
            .with_partitions(partitions.collect()),
    ]);
    let mut out = BytesMut::new();
    list.encode(&mut out, 5).unwrap();
    assert!(take(Api::ListGroups, &out.split().freeze(), 5));
    topics.encode(&mut out, 0).unwrap();
    assert!(take(Api::DescribeTopicPartitions, &out.split().freeze(), 0));
    fetch.encode(&mut out, 16).unwrap();
    assert!(take(Api::Fetch, &out.split().freeze(), 16));
}

/// The elements of the array called `field`, wherever in the message.
fn element_of(of: &'static shape::Struct, field: &str) -> Option<&'static shape::Shape> {
    of.fields
        .iter()
        .find_map(|candidate| match &candidate.shape {
            shape::Shape::Array(element) if candidate.name == field => Some(*element),
            shape::Shape::Array(shape::Shape::Struct(of)) | shape::Shape::Struct(of) => {
                element_of(of, field)
            }
            _ => None,
        })
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

/// The body of a request as a broker finds it behind the header.
fn sent<R: Request>(request: &R, version: i16) -> Bytes {
    let mut out = vec![0xee];
    frame::encode(request, version, 9, "client", &mut out).unwrap();
    let length = i32::from_be_bytes([out[1], out[2], out[3], out[4]]);
    assert_eq!(usize::try_from(length).unwrap(), out.len() - 5);
    let mut rest = Bytes::from(out).slice(5..);
    let header = kafka_protocol::protocol::decode_request_header_from_buffer(&mut rest).unwrap();
    assert_eq!(header.request_api_key, R::API.key());
    assert_eq!(
        (header.request_api_version, header.correlation_id),
        (version, 9)
    );
    assert_eq!(header.client_id.as_deref(), Some("client"));
    rest
}

/// A body that is read to its last byte.
fn read<T: Decodable>(mut body: Bytes, version: i16) -> T {
    let message = T::decode(&mut body, version).unwrap();
    assert!(body.is_empty(), "{} bytes too many", body.len());
    message
}

#[test]
fn fetch_requests_are_understood_by_a_broker_in_every_version() {
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
}

#[test]
fn requests_are_understood_by_a_broker_in_every_version() {
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
    for version in 0..=3 {
        let _: kafka::ApiVersionsRequest = read(sent(&ApiVersionsRequest, version), version);
    }
}

#[test]
fn questions_about_groups_and_topics_are_understood_in_every_version() {
    let names = || vec![Arc::from("billing"), Arc::from("audit")];
    for version in 4..=5 {
        let request = ListGroupsRequest {
            states: vec!["Stable".to_owned()],
            types: if version >= 5 {
                vec!["consumer".to_owned()]
            } else {
                Vec::new()
            },
        };
        assert!(request.lowest_version() <= version);
        let read: kafka::ListGroupsRequest = read(sent(&request, version), version);
        assert_eq!(read.states_filter, [text("Stable")]);
        assert_eq!(read.types_filter.len(), request.types.len());
    }
    for version in 5..=6 {
        let request = DescribeGroupsRequest { groups: names() };
        let read: kafka::DescribeGroupsRequest = read(sent(&request, version), version);
        assert_eq!(read.groups[1].as_str(), "audit");
    }
    for version in 0..=1 {
        let request = DescribeConsumerGroupsRequest { groups: names() };
        let read: kafka::ConsumerGroupDescribeRequest = read(sent(&request, version), version);
        assert_eq!(read.group_ids[1].as_str(), "audit");
    }
    for version in 2..=9 {
        let groups = if version >= 8 {
            names()
        } else {
            vec![Arc::from("billing")]
        };
        let request = GroupOffsetsRequest { groups };
        assert!(request.lowest_version() <= version);
        let read: kafka::OffsetFetchRequest = read(sent(&request, version), version);
        assert!(!read.require_stable);
        if version >= 8 {
            assert_eq!(read.groups.len(), 2);
            assert!(read.groups.iter().all(|group| group.topics.is_none()));
        } else {
            assert_eq!((read.group_id.as_str(), read.topics), ("billing", None));
        }
    }
    for version in 0..=4 {
        let groups = if version >= 4 {
            names()
        } else {
            vec![Arc::from("billing")]
        };
        let request = CoordinatorsRequest { groups };
        assert!(request.lowest_version() <= version);
        let read: kafka::FindCoordinatorRequest = read(sent(&request, version), version);
        assert_eq!(read.key_type, 0);
        if version >= 4 {
            assert_eq!(read.coordinator_keys, [text("billing"), text("audit")]);
        } else {
            assert_eq!(read.key.as_str(), "billing");
        }
    }
    let request = DescribeTopicsRequest {
        topics: names(),
        limit: 2000,
        from: Some(Cursor {
            topic: Arc::from("audit"),
            partition: 7,
        }),
    };
    let read_topics: kafka::DescribeTopicPartitionsRequest = read(sent(&request, 0), 0);
    assert_eq!(read_topics.topics.len(), 2);
    let cursor = read_topics.cursor.unwrap();
    assert_eq!(
        (cursor.topic_name.as_str(), cursor.partition_index),
        ("audit", 7)
    );
    for version in 1..=12 {
        for topics in [names(), Vec::new()] {
            let all = topics.is_empty();
            let request = TopicsByMetadataRequest { topics };
            let read: kafka::MetadataRequest = read(sent(&request, version), version);
            assert_eq!(read.topics.is_none(), all, "no list stands for all topics");
        }
    }
}

#[test]
fn what_a_version_cannot_express_is_not_sent_in_it() {
    let two = || vec![Arc::from("billing"), Arc::from("audit")];
    let mut out = Vec::new();
    let types = ListGroupsRequest {
        states: Vec::new(),
        types: vec!["consumer".to_owned()],
    };
    assert_eq!(types.lowest_version(), 5);
    assert!(types.put(4, &mut out).is_err());
    let offsets = GroupOffsetsRequest { groups: two() };
    assert_eq!(offsets.lowest_version(), 8);
    assert!(offsets.put(7, &mut out).is_err());
    let coordinators = CoordinatorsRequest { groups: two() };
    assert_eq!(coordinators.lowest_version(), 4);
    assert!(coordinators.put(3, &mut out).is_err());
    assert!(out.is_empty());
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
