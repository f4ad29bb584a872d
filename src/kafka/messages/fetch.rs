//! Records of partitions.
//!
//! A request is whole, or it carries what has changed since the last one of a
//! fetch session (KIP-227); which of the two is decided where requests are made.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{self, BrokerId};
use uuid::Uuid;

use super::{Api, Request, put_body, shared, text, topic_name};
use crate::kafka::Isolation;
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, Tagged, always, between, since};

static ABORTED: Struct = Struct {
    fields: &[
        always("producer_id", Shape::Fixed(8)),
        always("first_offset", Shape::Fixed(8)),
    ],
    tagged: &[],
};

/// Diverging epoch: epoch and end offset. Current leader: id and epoch.
/// Snapshot: end offset and epoch.
static EPOCH_AND_OFFSET: Struct = Struct {
    fields: &[always("epoch and offset", Shape::Fixed(12))],
    tagged: &[],
};
static ID_AND_EPOCH: Struct = Struct {
    fields: &[always("leader id and epoch", Shape::Fixed(8))],
    tagged: &[],
};

static PARTITION: Struct = Struct {
    fields: &[
        always("partition_index", Shape::Fixed(4)),
        always("error_code", Shape::Fixed(2)),
        always("high_watermark", Shape::Fixed(8)),
        always("last_stable_offset", Shape::Fixed(8)),
        since("log_start_offset", 5, Shape::Fixed(8)),
        always(
            "aborted_transactions",
            Shape::Array(&Shape::Struct(&ABORTED)),
        ),
        since("preferred_read_replica", 11, Shape::Fixed(4)),
        always("records", Shape::Bytes),
    ],
    tagged: &[
        Tagged {
            name: "diverging_epoch",
            tag: 0,
            from: 12,
            shape: Shape::Struct(&EPOCH_AND_OFFSET),
        },
        Tagged {
            name: "current_leader",
            tag: 1,
            from: 12,
            shape: Shape::Struct(&ID_AND_EPOCH),
        },
        Tagged {
            name: "snapshot_id",
            tag: 2,
            from: 12,
            shape: Shape::Struct(&EPOCH_AND_OFFSET),
        },
    ],
};

static TOPIC: Struct = Struct {
    fields: &[
        between("topic", 0, 12, Shape::String),
        since("topic_id", 13, Shape::Fixed(16)),
        always("partitions", Shape::Array(&Shape::Struct(&PARTITION))),
    ],
    tagged: &[],
};

static ENDPOINT: Struct = Struct {
    fields: &[
        always("node_id", Shape::Fixed(4)),
        always("host", Shape::String),
        always("port", Shape::Fixed(4)),
        always("rack", Shape::String),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 12,
    body: Struct {
        fields: &[
            always("throttle_time_ms", Shape::Fixed(4)),
            since("error_code", 7, Shape::Fixed(2)),
            since("session_id", 7, Shape::Fixed(4)),
            always("responses", Shape::Array(&Shape::Struct(&TOPIC))),
        ],
        tagged: &[Tagged {
            name: "node_endpoints",
            tag: 0,
            from: 16,
            shape: Shape::Array(&Shape::Struct(&ENDPOINT)),
        }],
    },
};

/// Asks for records.
#[derive(Clone, Debug, Default)]
pub(crate) struct FetchRequest {
    /// How long the broker may wait for `min_bytes`.
    pub(crate) max_wait: Duration,
    pub(crate) min_bytes: i32,
    /// Bytes of the whole answer; the first batch is given even beyond it.
    pub(crate) max_bytes: i32,
    pub(crate) isolation: Isolation,
    /// The session that it continues; 0 for none.
    pub(crate) session_id: i32,
    /// 0 asks for a new session and names all partitions; 1 and up name what
    /// has changed in the one of `session_id`.
    pub(crate) session_epoch: i32,
    /// Whether topics may be named by their ids. A session names all of them
    /// in one way, also where a request of it names none.
    pub(crate) by_id: bool,
    /// Where a request is whole, served in this order until `max_bytes` are
    /// reached: rotate it. A session is rotated by the broker.
    pub(crate) topics: Vec<FetchTopic>,
    /// Partitions that leave the session.
    pub(crate) forgotten: Vec<ForgottenTopic>,
    /// Where we are, so that a replica nearby can be named; empty for nowhere.
    pub(crate) rack: Arc<str>,
}

/// Partitions of one topic to read.
#[derive(Clone, Debug)]
pub(crate) struct FetchTopic {
    pub(crate) name: Arc<str>,
    /// Nil where unknown; then no version above [`FetchRequest::NAMES_UP_TO`]
    /// can be used.
    pub(crate) id: Uuid,
    pub(crate) partitions: Vec<FetchPartition>,
}

/// Partitions of one topic that are no longer to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForgottenTopic {
    pub(crate) name: Arc<str>,
    pub(crate) id: Uuid,
    pub(crate) partitions: Vec<i32>,
}

/// A partition to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FetchPartition {
    pub(crate) partition: i32,
    /// -1 where unknown; else the broker answers an error where it is not the
    /// leader of that epoch.
    pub(crate) leader_epoch: i32,
    pub(crate) offset: i64,
    /// Epoch of the last record read, or -1: with it the broker tells where
    /// its log diverges from what was read.
    pub(crate) last_fetched_epoch: i32,
    pub(crate) max_bytes: i32,
}

/// How an answer names a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TopicKey {
    /// Up to version 12.
    Name(Arc<str>),
    /// From version 13 on.
    Id(Uuid),
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchAnswer {
    /// For how long the broker holds the connection back (quota).
    pub(crate) throttle: Duration,
    /// Error of the whole answer; 0 for none.
    pub(crate) error: i16,
    /// The session that the next request may continue; 0 for none.
    pub(crate) session_id: i32,
    pub(crate) topics: Vec<FetchedTopic>,
    /// Where the leaders can be reached that partitions name.
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Where a broker can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) id: i32,
    pub(crate) host: Arc<str>,
    pub(crate) port: i32,
}

/// What was read of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchedTopic {
    pub(crate) topic: TopicKey,
    pub(crate) partitions: Vec<FetchedPartition>,
}

/// What was read of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchedPartition {
    pub(crate) partition: i32,
    /// 0 for none.
    pub(crate) error: i16,
    pub(crate) high_watermark: i64,
    /// -1 where the broker does not tell.
    pub(crate) last_stable_offset: i64,
    /// First offset of the log; -1 where the broker does not tell.
    pub(crate) log_start: i64,
    /// Transactions whose records in this answer are to be stepped over.
    pub(crate) aborted: Vec<Aborted>,
    /// Record sets, a slice of the frame; the last batch may be cut.
    pub(crate) records: Bytes,
    /// The log diverges from what was read: there are no records then, and no
    /// error either.
    pub(crate) diverging: Option<Diverging>,
    /// The leader, where the broker tells with an error that it is another.
    pub(crate) leader: Option<Leader>,
    /// The replica to read from instead (KIP-392): there are no records then,
    /// and no error either.
    pub(crate) preferred: Option<i32>,
}

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aborted {
    pub(crate) producer_id: i64,
    pub(crate) first_offset: i64,
}

/// Where a log ends for the epoch up to which it agrees with what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Diverging {
    pub(crate) epoch: i32,
    pub(crate) end_offset: i64,
}

/// Who leads a partition, and since which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leader {
    pub(crate) id: i32,
    /// -1 where the broker does not tell.
    pub(crate) epoch: i32,
}

impl FetchedPartition {
    /// What an answer says that has nothing new of a partition.
    pub(crate) fn without_news(partition: i32, end_offset: i64, log_start: i64) -> Self {
        Self {
            partition,
            error: 0,
            high_watermark: end_offset,
            last_stable_offset: end_offset,
            log_start,
            aborted: Vec::new(),
            records: Bytes::new(),
            diverging: None,
            leader: None,
            preferred: None,
        }
    }
}

impl FetchRequest {
    /// The last version that names topics by name.
    pub(crate) const NAMES_UP_TO: i16 = 12;

    /// The highest version that this request may be sent in: topics without an
    /// id can only be asked for by name.
    pub(crate) fn highest_version(&self) -> i16 {
        if self.by_id {
            Api::Fetch.ours().1
        } else {
            Self::NAMES_UP_TO
        }
    }
}

impl Request for FetchRequest {
    const API: Api = Api::Fetch;
    type Answer = FetchAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let is_nameless = |id: &Uuid| id.is_nil();
        let mut ids = self.topics.iter().map(|topic| &topic.id);
        if version > self.highest_version() || (self.by_id && ids.any(is_nameless)) {
            return Err("a topic has no id, which versions above 12 ask for".to_owned());
        }
        let mut request = messages::FetchRequest::default()
            .with_max_wait_ms(i32::try_from(self.max_wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(self.min_bytes)
            .with_max_bytes(self.max_bytes)
            .with_isolation_level(self.isolation.code())
            .with_rack_id(text(&self.rack));
        if version < 15 {
            request.replica_id = BrokerId(-1);
        }
        if version >= 7 {
            request.session_id = self.session_id;
            request.session_epoch = self.session_epoch;
            request.forgotten_topics_data = self
                .forgotten
                .iter()
                .map(|topic| {
                    let mut forgotten = messages::fetch_request::ForgottenTopic::default()
                        .with_partitions(topic.partitions.clone());
                    if version > Self::NAMES_UP_TO {
                        forgotten.topic_id = topic.id;
                    } else {
                        forgotten.topic = topic_name(&topic.name);
                    }
                    forgotten
                })
                .collect();
        }
        request.topics = self
            .topics
            .iter()
            .map(|topic| {
                let mut asked = messages::fetch_request::FetchTopic::default();
                if version > Self::NAMES_UP_TO {
                    asked.topic_id = topic.id;
                } else {
                    asked.topic = topic_name(&topic.name);
                }
                asked.partitions = topic
                    .partitions
                    .iter()
                    .map(|partition| {
                        let mut asked = messages::fetch_request::FetchPartition::default()
                            .with_partition(partition.partition)
                            .with_fetch_offset(partition.offset)
                            .with_partition_max_bytes(partition.max_bytes);
                        if version >= 9 {
                            asked.current_leader_epoch = partition.leader_epoch;
                        }
                        if version >= 12 {
                            asked.last_fetched_epoch = partition.last_fetched_epoch;
                        }
                        asked
                    })
                    .collect();
                asked
            })
            .collect();
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<FetchAnswer, WireError> {
        let answer: messages::FetchResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(FetchAnswer {
            throttle: Duration::from_millis(
                u64::try_from(answer.throttle_time_ms).unwrap_or_default(),
            ),
            error: answer.error_code,
            session_id: answer.session_id,
            endpoints: answer
                .node_endpoints
                .into_iter()
                .map(|endpoint| Endpoint {
                    id: endpoint.node_id.0,
                    host: shared(&endpoint.host),
                    port: endpoint.port,
                })
                .collect(),
            topics: answer
                .responses
                .into_iter()
                .map(|topic| FetchedTopic {
                    topic: if version > Self::NAMES_UP_TO {
                        TopicKey::Id(topic.topic_id)
                    } else {
                        TopicKey::Name(shared(&topic.topic))
                    },
                    partitions: topic.partitions.into_iter().map(fetched).collect(),
                })
                .collect(),
        })
    }
}

fn fetched(partition: messages::fetch_response::PartitionData) -> FetchedPartition {
    let diverging = partition.diverging_epoch;
    let leader = partition.current_leader;
    FetchedPartition {
        partition: partition.partition_index,
        error: partition.error_code,
        high_watermark: partition.high_watermark,
        last_stable_offset: partition.last_stable_offset,
        log_start: partition.log_start_offset,
        aborted: partition
            .aborted_transactions
            .unwrap_or_default()
            .into_iter()
            .map(|aborted| Aborted {
                producer_id: aborted.producer_id.0,
                first_offset: aborted.first_offset,
            })
            .collect(),
        records: partition.records.unwrap_or_default(),
        // A field that was not sent has its default, which is -1 in both parts.
        diverging: (diverging.end_offset >= 0).then_some(Diverging {
            epoch: diverging.epoch,
            end_offset: diverging.end_offset,
        }),
        leader: (leader.leader_id.0 >= 0).then_some(Leader {
            id: leader.leader_id.0,
            epoch: leader.leader_epoch,
        }),
        preferred: (partition.preferred_read_replica.0 >= 0)
            .then_some(partition.preferred_read_replica.0),
    }
}
