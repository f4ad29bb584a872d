//! The wire half of the fake brokers of [`crate::testing`]: what a request
//! says, and the bytes of its answer.
//!
//! The brokers themselves, their sockets and their scripts are in `testing/`;
//! here is only what has to name the protocol's messages.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{
    self, ApiKey, BrokerId, RequestHeader, ResponseHeader, TopicName, api_versions_response,
    fetch_request, fetch_response, find_coordinator_response, list_offsets_response,
    metadata_response, offset_commit_response, offset_fetch_response,
    offset_for_leader_epoch_response,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use kafka_protocol::records::{
    Compression, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, Record, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};

use crate::testing::fake::release::Request;
use crate::testing::fake::state::{Log, LogBatch, State};

mod spoil;

const OFFSET_OUT_OF_RANGE: i16 = 1;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const NOT_LEADER_OR_FOLLOWER: i16 = 6;
const NOT_COORDINATOR: i16 = 16;
const UNSUPPORTED_VERSION: i16 = 35;
const FETCH_SESSION_ID_NOT_FOUND: i16 = 70;
const FENCED_LEADER_EPOCH: i16 = 74;
const UNKNOWN_LEADER_EPOCH: i16 = 75;
const UNKNOWN_TOPIC_ID: i16 = 100;

/// Record number 0 was written at this moment, in milliseconds since 1970, and
/// each further one a millisecond later.
const FIRST_TIMESTAMP: i64 = 1_700_000_000_000;

/// What stands before a request's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) request: Request,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
}

/// A proper answer, before anything is done to it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    /// How the program that asks names itself, where it does.
    pub(crate) software: Option<String>,
    /// For this long the broker may wait for more, as it has nothing.
    pub(crate) may_wait: Option<Duration>,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Fetch(messages::FetchResponse),
    ListOffsets(messages::ListOffsetsResponse),
    Metadata(messages::MetadataResponse),
    OffsetCommit(messages::OffsetCommitResponse),
    OffsetFetch(messages::OffsetFetchResponse),
    FindCoordinator(messages::FindCoordinatorResponse),
    ApiVersions(messages::ApiVersionsResponse),
    LeaderEpoch(messages::OffsetForLeaderEpochResponse),
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it takes what map_err hands over"
)]
fn shown(error: impl ToString) -> String {
    error.to_string()
}

/// Takes the header off a request.
pub(crate) fn head(frame: &mut Bytes) -> Result<Head, String> {
    let mut peek = frame.clone();
    let key = peek.try_get_i16().map_err(shown)?;
    let version = peek.try_get_i16().map_err(shown)?;
    let api = ApiKey::try_from(key).map_err(|()| format!("there is no request {key}"))?;
    let header =
        RequestHeader::decode(frame, api.request_header_version(version)).map_err(shown)?;
    let served = Request::ALL.into_iter().find(|served| served.key() == key);
    Ok(Head {
        request: served.ok_or_else(|| format!("{api:?} is not served"))?,
        version,
        correlation: header.correlation_id,
    })
}

/// What broker number `broker` answers.
pub(crate) fn answer(
    head: Head,
    body: &Bytes,
    broker: i32,
    state: &mut State,
) -> Result<Answer, String> {
    let mut answer = Answer {
        head,
        software: None,
        may_wait: None,
        body: Body::ApiVersions(messages::ApiVersionsResponse::default()),
    };
    let spoken = state.release.versions(head.request);
    if !spoken.is_some_and(|(first, last)| (first..=last).contains(&head.version)) {
        if head.request != Request::ApiVersions {
            return Err(format!(
                "{:?} is asked in version {}, and {spoken:?} are spoken",
                head.request, head.version
            ));
        }
        // In the form of version 0, whatever was asked.
        answer.head.version = 0;
        answer.body = Body::ApiVersions(api_versions(state, 0, UNSUPPORTED_VERSION));
        return Ok(answer);
    }
    let version = head.version;
    answer.body = match head.request {
        Request::ApiVersions => {
            let asked: messages::ApiVersionsRequest = read(body, version)?;
            let software = asked.client_software_name.to_string();
            answer.software = (!software.is_empty()).then_some(software);
            Body::ApiVersions(api_versions(state, version, 0))
        }
        Request::Metadata => Body::Metadata(metadata(state, &read(body, version)?, version)),
        Request::FindCoordinator => {
            Body::FindCoordinator(coordinator(state, &read(body, version)?, version))
        }
        Request::OffsetCommit => {
            Body::OffsetCommit(commit(state, broker, read(body, version)?, version))
        }
        Request::OffsetFetch => {
            Body::OffsetFetch(committed(state, broker, &read(body, version)?, version))
        }
        Request::ListOffsets => {
            Body::ListOffsets(offsets(state, broker, &read(body, version)?, version))
        }
        Request::OffsetForLeaderEpoch => {
            Body::LeaderEpoch(epochs(state, broker, read(body, version)?))
        }
        Request::Fetch => {
            let asked: messages::FetchRequest = read(body, version)?;
            let wait = Duration::from_millis(u64::try_from(asked.max_wait_ms).unwrap_or(0));
            let fetched = fetch(state, broker, &asked, version);
            let is_empty = fetched.error_code == 0
                && partitions(&fetched).all(|partition| {
                    partition.error_code == 0
                        && partition.diverging_epoch.end_offset < 0
                        && partition.records.as_ref().is_none_or(Bytes::is_empty)
                });
            answer.may_wait = (is_empty && asked.min_bytes > 0).then_some(wait);
            Body::Fetch(fetched)
        }
    };
    Ok(answer)
}

fn partitions(
    fetched: &messages::FetchResponse,
) -> impl Iterator<Item = &fetch_response::PartitionData> {
    fetched.responses.iter().flat_map(|topic| &topic.partitions)
}

impl Answer {
    /// Whether it brings records.
    pub(crate) fn has_records(&self) -> bool {
        matches!(&self.body, Body::Fetch(fetched) if partitions(fetched)
            .any(|partition| partition.records.as_ref().is_some_and(|records| !records.is_empty())))
    }

    /// As it is sent, without the frame's length.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        match &self.body {
            Body::Fetch(body) => put(self.head, body),
            Body::ListOffsets(body) => put(self.head, body),
            Body::Metadata(body) => put(self.head, body),
            Body::OffsetCommit(body) => put(self.head, body),
            Body::OffsetFetch(body) => put(self.head, body),
            Body::FindCoordinator(body) => put(self.head, body),
            Body::ApiVersions(body) => put(self.head, body),
            Body::LeaderEpoch(body) => put(self.head, body),
        }
    }

    /// Bytes of the header of the answer, when it is encoded.
    fn header_len(&self) -> usize {
        let has_tags = self.is_flexible() && self.head.request != Request::ApiVersions;
        4 + usize::from(has_tags)
    }

    fn is_flexible(&self) -> bool {
        let version = self.head.version;
        match self.head.request {
            Request::Fetch => version >= 12,
            Request::ListOffsets | Request::OffsetFetch => version >= 6,
            Request::Metadata => version >= 9,
            Request::OffsetCommit => version >= 8,
            Request::FindCoordinator | Request::ApiVersions => version >= 3,
            Request::OffsetForLeaderEpoch => version >= 4,
        }
    }
}

fn read<M: Decodable>(body: &Bytes, version: i16) -> Result<M, String> {
    M::decode(&mut body.clone(), version).map_err(shown)
}

fn put<M: Encodable + HeaderVersion>(head: Head, body: &M) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    ResponseHeader::default()
        .with_correlation_id(head.correlation)
        .encode(&mut out, M::header_version(head.version))
        .map_err(shown)?;
    body.encode(&mut out, head.version).map_err(shown)?;
    Ok(out)
}

fn host() -> StrBytes {
    StrBytes::from_static_str("127.0.0.1")
}

fn api_versions(state: &State, version: i16, error: i16) -> messages::ApiVersionsResponse {
    let spoken = Request::ALL.into_iter().filter_map(|request| {
        let (first, last) = state.release.versions(request)?;
        Some(
            api_versions_response::ApiVersion::default()
                .with_api_key(request.key())
                .with_min_version(first)
                .with_max_version(last),
        )
    });
    let mut answer = messages::ApiVersionsResponse::default()
        .with_error_code(error)
        .with_api_keys(spoken.collect());
    if version < 3 {
        answer.finalized_features_epoch = -1;
    }
    answer
}

fn metadata(
    state: &State,
    asked: &messages::MetadataRequest,
    version: i16,
) -> messages::MetadataResponse {
    let brokers = state.brokers.iter().map(|(&id, &port)| {
        metadata_response::MetadataResponseBroker::default()
            .with_node_id(BrokerId(id))
            .with_host(host())
            .with_port(port.into())
    });
    let names: Vec<String> = match &asked.topics {
        None => state.topics.keys().cloned().collect(),
        Some(topics) if topics.is_empty() && version == 0 => state.topics.keys().cloned().collect(),
        Some(topics) => topics
            .iter()
            .map(|topic| match &topic.name {
                Some(name) => name.to_string(),
                None => state.name_of(topic.topic_id).unwrap_or_default().to_owned(),
            })
            .collect(),
    };
    let mut answer = messages::MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_controller_id(BrokerId(state.coordinator()));
    if version >= 2 {
        answer.cluster_id = Some(StrBytes::from_static_str("fake"));
    }
    answer.topics = names
        .iter()
        .map(|name| described(state, name, version))
        .collect();
    answer
}

fn described(state: &State, name: &str, version: i16) -> metadata_response::MetadataResponseTopic {
    let mut topic =
        metadata_response::MetadataResponseTopic::default().with_name(Some(TopicName(text(name))));
    let Some(known) = state.topics.get(name) else {
        topic.error_code = UNKNOWN_TOPIC_OR_PARTITION;
        return topic;
    };
    if version >= 10 {
        topic.topic_id = known.id;
    }
    topic.partitions = (0..)
        .zip(&known.logs)
        .map(|(index, log)| {
            let replicas: Vec<BrokerId> = state.brokers.keys().copied().map(BrokerId).collect();
            let mut partition = metadata_response::MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_leader_id(BrokerId(log.leader))
                .with_replica_nodes(replicas.clone())
                .with_isr_nodes(replicas);
            if version >= 7 {
                partition.leader_epoch = log.epoch;
            }
            partition
        })
        .collect();
    topic
}

fn coordinator(
    state: &State,
    asked: &messages::FindCoordinatorRequest,
    version: i16,
) -> messages::FindCoordinatorResponse {
    let id = state.coordinator();
    let port = i32::from(state.brokers.get(&id).copied().unwrap_or(0));
    let mut answer = messages::FindCoordinatorResponse::default();
    if version < 4 {
        answer.node_id = BrokerId(id);
        answer.host = host();
        answer.port = port;
        return answer;
    }
    answer.coordinators = asked
        .coordinator_keys
        .iter()
        .map(|key| {
            find_coordinator_response::Coordinator::default()
                .with_key(key.clone())
                .with_node_id(BrokerId(id))
                .with_host(host())
                .with_port(port)
        })
        .collect();
    answer
}

fn commit(
    state: &mut State,
    broker: i32,
    asked: messages::OffsetCommitRequest,
    version: i16,
) -> messages::OffsetCommitResponse {
    let is_ours = broker == state.coordinator();
    let group = asked.group_id.to_string();
    let topics = asked.topics.into_iter().map(|topic| {
        let name = if version >= 10 {
            state.name_of(topic.topic_id).map(str::to_owned)
        } else {
            Some(topic.name.to_string())
        };
        let partitions = topic.partitions.iter().map(|partition| {
            let index = partition.partition_index;
            let known = name
                .as_deref()
                .filter(|name| state.log(name, index).is_some());
            let error = match known {
                _ if !is_ours => NOT_COORDINATOR,
                None => UNKNOWN_TOPIC_OR_PARTITION,
                Some(name) => {
                    let key = (group.clone(), name.to_owned(), index);
                    state.commits.insert(key, partition.committed_offset);
                    0
                }
            };
            offset_commit_response::OffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(error)
        });
        let mut answered = offset_commit_response::OffsetCommitResponseTopic::default()
            .with_partitions(partitions.collect());
        if version >= 10 {
            answered.topic_id = topic.topic_id;
        } else {
            answered.name = topic.name;
        }
        answered
    });
    let topics = topics.collect();
    messages::OffsetCommitResponse::default().with_topics(topics)
}

fn committed(
    state: &State,
    broker: i32,
    asked: &messages::OffsetFetchRequest,
    version: i16,
) -> messages::OffsetFetchResponse {
    let error = if broker == state.coordinator() {
        0
    } else {
        NOT_COORDINATOR
    };
    let of = |group: &str, topic: &str, partition: i32| {
        let key = (group.to_owned(), topic.to_owned(), partition);
        state.commits.get(&key).copied().unwrap_or(-1)
    };
    let mut answer = messages::OffsetFetchResponse::default();
    if version >= 8 {
        answer.groups = asked
            .groups
            .iter()
            .map(|group| {
                let topics = group.topics.iter().flatten().map(|topic| {
                    let name = if version >= 10 {
                        state.name_of(topic.topic_id).unwrap_or_default()
                    } else {
                        topic.name.as_str()
                    };
                    let partitions = topic.partition_indexes.iter().map(|&index| {
                        offset_fetch_response::OffsetFetchResponsePartitions::default()
                            .with_partition_index(index)
                            .with_committed_offset(of(&group.group_id, name, index))
                            .with_metadata(Some(StrBytes::default()))
                    });
                    let mut answered = offset_fetch_response::OffsetFetchResponseTopics::default()
                        .with_partitions(partitions.collect());
                    if version >= 10 {
                        answered.topic_id = topic.topic_id;
                    } else {
                        answered.name = topic.name.clone();
                    }
                    answered
                });
                offset_fetch_response::OffsetFetchResponseGroup::default()
                    .with_group_id(group.group_id.clone())
                    .with_error_code(error)
                    .with_topics(if error == 0 {
                        topics.collect()
                    } else {
                        Vec::new()
                    })
            })
            .collect();
        return answer;
    }
    if version >= 2 {
        answer.error_code = error;
    }
    answer.topics = asked
        .topics
        .iter()
        .flatten()
        .map(|topic| {
            let partitions = topic.partition_indexes.iter().map(|&index| {
                offset_fetch_response::OffsetFetchResponsePartition::default()
                    .with_partition_index(index)
                    .with_committed_offset(of(&asked.group_id, &topic.name, index))
                    .with_metadata(Some(StrBytes::default()))
                    .with_error_code(error)
            });
            offset_fetch_response::OffsetFetchResponseTopic::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        })
        .collect();
    answer
}

/// The log, where `broker` leads it in that epoch; else the error code.
fn led<'a>(
    state: &'a State,
    broker: i32,
    topic: &str,
    partition: i32,
    epoch: i32,
) -> Result<&'a Log, i16> {
    let log = state
        .log(topic, partition)
        .ok_or(UNKNOWN_TOPIC_OR_PARTITION)?;
    if log.leader != broker {
        Err(NOT_LEADER_OR_FOLLOWER)
    } else if epoch >= 0 && epoch < log.epoch {
        Err(FENCED_LEADER_EPOCH)
    } else if epoch > log.epoch {
        Err(UNKNOWN_LEADER_EPOCH)
    } else {
        Ok(log)
    }
}

fn offsets(
    state: &State,
    broker: i32,
    asked: &messages::ListOffsetsRequest,
    version: i16,
) -> messages::ListOffsetsResponse {
    const LATEST: i64 = -1;
    const EARLIEST: i64 = -2;
    let topics = asked.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let index = partition.partition_index;
            let epoch = partition.current_leader_epoch;
            let mut answered = list_offsets_response::ListOffsetsPartitionResponse::default()
                .with_partition_index(index);
            match led(state, broker, &topic.name, index, epoch) {
                Err(error) => answered.error_code = error,
                Ok(log) => {
                    if version >= 4 {
                        answered.leader_epoch = log.epoch;
                    }
                    answered.offset = match partition.timestamp {
                        LATEST => log.end,
                        EARLIEST => log.start,
                        time => {
                            let offset = (time - FIRST_TIMESTAMP).max(log.start);
                            if offset < log.end {
                                answered.timestamp = FIRST_TIMESTAMP + offset;
                                offset
                            } else {
                                -1
                            }
                        }
                    };
                }
            }
            answered
        });
        list_offsets_response::ListOffsetsTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    messages::ListOffsetsResponse::default().with_topics(topics.collect())
}

fn epochs(
    state: &State,
    broker: i32,
    asked: messages::OffsetForLeaderEpochRequest,
) -> messages::OffsetForLeaderEpochResponse {
    let topics = asked.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let index = partition.partition;
            let epoch = partition.current_leader_epoch;
            let mut answered =
                offset_for_leader_epoch_response::EpochEndOffset::default().with_partition(index);
            match led(state, broker, &topic.topic, index, epoch) {
                Err(error) => answered.error_code = error,
                Ok(log) => {
                    let (epoch, end) = log.end_of_epoch(partition.leader_epoch);
                    answered.leader_epoch = epoch;
                    answered.end_offset = end;
                }
            }
            answered
        });
        offset_for_leader_epoch_response::OffsetForLeaderTopicResult::default()
            .with_partitions(partitions.collect())
            .with_topic(topic.topic)
    });
    messages::OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

/// No sessions are given, which a broker may do at any time: a session of
/// before is not known.
fn fetch(
    state: &mut State,
    broker: i32,
    asked: &messages::FetchRequest,
    version: i16,
) -> messages::FetchResponse {
    let mut answer = messages::FetchResponse::default();
    if version >= 7 && asked.session_id != 0 {
        answer.error_code = FETCH_SESSION_ID_NOT_FOUND;
        return answer;
    }
    let mut room = usize::try_from(asked.max_bytes).unwrap_or(0);
    let mut is_first = true;
    for topic in &asked.topics {
        let name = if version >= 13 {
            state.name_of(topic.topic_id).map(str::to_owned)
        } else {
            Some(topic.topic.to_string())
        };
        let mut answered = fetch_response::FetchableTopicResponse::default();
        if version >= 13 {
            answered.topic_id = topic.topic_id;
        } else {
            answered.topic = topic.topic.clone();
        }
        for partition in &topic.partitions {
            let fetched = match &name {
                None => refused(partition.partition, UNKNOWN_TOPIC_ID),
                Some(name) => {
                    state.fetched(name, partition.partition, partition.fetch_offset);
                    fetched(state, broker, name, partition, version, room, is_first)
                }
            };
            let bytes = fetched.records.as_ref().map_or(0, Bytes::len);
            is_first &= bytes == 0;
            room = room.saturating_sub(bytes);
            answered.partitions.push(fetched);
        }
        answer.responses.push(answered);
    }
    answer
}

fn refused(partition: i32, error: i16) -> fetch_response::PartitionData {
    fetch_response::PartitionData::default()
        .with_partition_index(partition)
        .with_error_code(error)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_records(Some(Bytes::new()))
}

fn fetched(
    state: &State,
    broker: i32,
    topic: &str,
    asked: &fetch_request::FetchPartition,
    version: i16,
    room: usize,
    is_first: bool,
) -> fetch_response::PartitionData {
    let epoch = asked.current_leader_epoch;
    let log = match led(state, broker, topic, asked.partition, epoch) {
        Ok(log) => log,
        Err(error) => {
            let mut answered = refused(asked.partition, error);
            let leads = state.log(topic, asked.partition);
            if let Some(log) = leads.filter(|_| version >= 12) {
                answered.current_leader = fetch_response::LeaderIdAndEpoch::default()
                    .with_leader_id(BrokerId(log.leader))
                    .with_leader_epoch(log.epoch);
            }
            return answered;
        }
    };
    let mut answered = refused(asked.partition, 0);
    answered.high_watermark = log.end;
    answered.last_stable_offset = log.end;
    if version >= 5 {
        answered.log_start_offset = log.start;
    }
    if version >= 12 && asked.last_fetched_epoch >= 0 {
        let (epoch, end) = log.end_of_epoch(asked.last_fetched_epoch);
        if epoch < asked.last_fetched_epoch || end < asked.fetch_offset {
            answered.diverging_epoch = fetch_response::EpochEndOffset::default()
                .with_epoch(epoch)
                .with_end_offset(end);
            return answered;
        }
    }
    if !(log.start..=log.end).contains(&asked.fetch_offset) {
        answered.error_code = OFFSET_OUT_OF_RANGE;
        return answered;
    }
    let max_bytes = usize::try_from(asked.partition_max_bytes).unwrap_or(0);
    answered.records = Some(log.read(asked.fetch_offset, max_bytes.min(room), is_first));
    answered
}

/// A batch of records without keys, as it lies in a log.
pub(crate) fn batch(
    base: i64,
    epoch: i32,
    values: impl IntoIterator<Item = Bytes>,
) -> Result<LogBatch, String> {
    let records: Vec<Record> = (base..)
        .zip(0..)
        .zip(values)
        .map(|((offset, sequence), value)| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: epoch,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            timestamp_type: TimestampType::Creation,
            offset,
            // The encoder begins another batch where this does not count on.
            sequence,
            timestamp: FIRST_TIMESTAMP + offset,
            key: None,
            value: Some(value),
            headers: std::iter::empty().collect(),
        })
        .collect();
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(
        &mut bytes,
        &records,
        &RecordEncodeOptions {
            version: 2,
            compression: Compression::None,
        },
    )
    .map_err(shown)?;
    Ok(LogBatch {
        base,
        next: records.last().map_or(base, |last| last.offset + 1),
        epoch,
        bytes: bytes.freeze(),
    })
}

/// The name with which an answer goes astray.
fn other_name(name: &str) -> StrBytes {
    text(&format!("{name}-of-another-cluster"))
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
