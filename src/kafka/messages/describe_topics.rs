//! Topics with all that is known of their partitions.
//!
//! A cluster may have more partitions than fit in one answer, so brokers from
//! 3.8 on give them page by page (KIP-966). Older ones are asked for Metadata,
//! which says the same but for the replicas that may lead without having kept
//! up, and says it of all topics at once.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, BrokerId};
use uuid::Uuid;

use super::fetch::Leader;
use super::metadata::SHAPE as METADATA;
use super::{Api, Request, put_body, shared, topic_name};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always};

const BROKERS: Shape = Shape::Array(&Shape::Fixed(4));

static PARTITION: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        always("partition_index", Shape::Fixed(4)),
        always("leader_id", Shape::Fixed(4)),
        always("leader_epoch", Shape::Fixed(4)),
        always("replica_nodes", BROKERS),
        always("isr_nodes", BROKERS),
        always("eligible_leader_replicas", BROKERS),
        always("last_known_elr", BROKERS),
        always("offline_replicas", BROKERS),
    ],
    tagged: &[],
};

static TOPIC: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        always("name", Shape::String),
        always("topic_id", Shape::Fixed(16)),
        always("is_internal", Shape::Fixed(1)),
        always("partitions", Shape::Array(&Shape::Struct(&PARTITION))),
        always("topic_authorized_operations", Shape::Fixed(4)),
    ],
    tagged: &[],
};

static CURSOR: Struct = Struct {
    fields: &[
        always("topic_name", Shape::String),
        always("partition_index", Shape::Fixed(4)),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 0,
    body: Struct {
        fields: &[
            always("throttle_time_ms", Shape::Fixed(4)),
            always("topics", Shape::Array(&Shape::Struct(&TOPIC))),
            always("next_cursor", Shape::Optional(&CURSOR)),
        ],
        tagged: &[],
    },
};

/// Asks for a page of topics, in the order of their names.
#[derive(Clone, Debug)]
pub(crate) struct DescribeTopicsRequest {
    /// None of them asks for all.
    pub(crate) topics: Vec<Arc<str>>,
    /// How many partitions the page may have; the broker may have a lower limit.
    pub(crate) limit: i32,
    /// Where the page begins; none for the first.
    pub(crate) from: Option<Cursor>,
}

/// Where a page of topics begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
}

/// A page of topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DescribeTopicsAnswer {
    /// The last of them may go on in the next page.
    pub(crate) topics: Vec<DescribedTopic>,
    /// The next page; none where this is the last.
    pub(crate) next: Option<Cursor>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DescribedTopic {
    pub(crate) name: Arc<str>,
    /// Nil where the broker does not tell.
    pub(crate) id: Uuid,
    /// 0 for none.
    pub(crate) error: i16,
    pub(crate) is_internal: bool,
    pub(crate) partitions: Vec<DescribedPartition>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DescribedPartition {
    pub(crate) partition: i32,
    /// 0 for none.
    pub(crate) error: i16,
    pub(crate) leader: Option<Leader>,
    pub(crate) replicas: Vec<i32>,
    pub(crate) in_sync: Vec<i32>,
    pub(crate) offline: Vec<i32>,
    /// Replicas that may lead although they are not in sync; none where the
    /// broker does not tell.
    pub(crate) eligible: Option<Vec<i32>>,
}

impl Request for DescribeTopicsRequest {
    const API: Api = Api::DescribeTopicPartitions;
    type Answer = DescribeTopicsAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        use messages::describe_topic_partitions_request as parts;

        let request = messages::DescribeTopicPartitionsRequest::default()
            .with_topics(
                self.topics
                    .iter()
                    .map(|name| parts::TopicRequest::default().with_name(topic_name(name)))
                    .collect(),
            )
            .with_response_partition_limit(self.limit)
            .with_cursor(self.from.as_ref().map(|from| {
                parts::Cursor::default()
                    .with_topic_name(topic_name(&from.topic))
                    .with_partition_index(from.partition)
            }));
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<DescribeTopicsAnswer, WireError> {
        let answer: messages::DescribeTopicPartitionsResponse =
            checked(body, &SHAPE, Self::API, version)?;
        let topics = answer.topics.into_iter().filter_map(|topic| {
            Some(DescribedTopic {
                name: shared(&topic.name?.0),
                id: topic.topic_id,
                error: topic.error_code,
                is_internal: topic.is_internal,
                partitions: topic
                    .partitions
                    .into_iter()
                    .map(|partition| DescribedPartition {
                        partition: partition.partition_index,
                        error: partition.error_code,
                        leader: leader(partition.leader_id, partition.leader_epoch),
                        replicas: ids(&partition.replica_nodes),
                        in_sync: ids(&partition.isr_nodes),
                        offline: ids(&partition.offline_replicas),
                        eligible: partition.eligible_leader_replicas.as_deref().map(ids),
                    })
                    .collect(),
            })
        });
        Ok(DescribeTopicsAnswer {
            topics: topics.collect(),
            next: answer.next_cursor.map(|cursor| Cursor {
                topic: shared(&cursor.topic_name),
                partition: cursor.partition_index,
            }),
        })
    }
}

/// Asks for topics as [`DescribeTopicsRequest`] does, of a broker that does not
/// know that request. Never creates a topic.
#[derive(Clone, Debug)]
pub(crate) struct TopicsByMetadataRequest {
    /// None of them asks for all.
    pub(crate) topics: Vec<Arc<str>>,
}

impl Request for TopicsByMetadataRequest {
    const API: Api = Api::Metadata;
    type Answer = Vec<DescribedTopic>;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let topics = (!self.topics.is_empty()).then(|| {
            self.topics
                .iter()
                .map(|name| {
                    messages::metadata_request::MetadataRequestTopic::default()
                        .with_name(Some(topic_name(name)))
                })
                .collect()
        });
        let mut request = messages::MetadataRequest::default().with_topics(topics);
        if version >= 4 {
            request.allow_auto_topic_creation = false;
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<Vec<DescribedTopic>, WireError> {
        let answer: messages::MetadataResponse = checked(body, &METADATA, Self::API, version)?;
        let topics = answer.topics.into_iter().filter_map(|topic| {
            Some(DescribedTopic {
                name: shared(&topic.name?.0),
                id: topic.topic_id,
                error: topic.error_code,
                is_internal: topic.is_internal,
                partitions: topic
                    .partitions
                    .into_iter()
                    .map(|partition| DescribedPartition {
                        partition: partition.partition_index,
                        error: partition.error_code,
                        leader: leader(partition.leader_id, partition.leader_epoch),
                        replicas: ids(&partition.replica_nodes),
                        in_sync: ids(&partition.isr_nodes),
                        offline: ids(&partition.offline_replicas),
                        eligible: None,
                    })
                    .collect(),
            })
        });
        Ok(topics.collect())
    }
}

fn leader(id: BrokerId, epoch: i32) -> Option<Leader> {
    (id.0 >= 0).then_some(Leader { id: id.0, epoch })
}

fn ids(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|id| id.0).collect()
}
