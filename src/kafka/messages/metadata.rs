//! Brokers, topics, and who leads which partition.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages;
use uuid::Uuid;

use super::fetch::Leader;
use super::{Api, Request, put_body, shared, topic_name};
use crate::kafka::errors::first_unknown;
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, between, since};

static BROKER: Struct = Struct {
    fields: &[
        always("node_id", Shape::Fixed(4)),
        always("host", Shape::String),
        always("port", Shape::Fixed(4)),
        since("rack", 1, Shape::String),
    ],
    tagged: &[],
};

static PARTITION: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        always("partition_index", Shape::Fixed(4)),
        always("leader_id", Shape::Fixed(4)),
        since("leader_epoch", 7, Shape::Fixed(4)),
        always("replica_nodes", Shape::Array(&Shape::Fixed(4))),
        always("isr_nodes", Shape::Array(&Shape::Fixed(4))),
        since("offline_replicas", 5, Shape::Array(&Shape::Fixed(4))),
    ],
    tagged: &[],
};

static TOPIC: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        always("name", Shape::String),
        since("topic_id", 10, Shape::Fixed(16)),
        since("is_internal", 1, Shape::Fixed(1)),
        always("partitions", Shape::Array(&Shape::Struct(&PARTITION))),
        since("topic_authorized_operations", 8, Shape::Fixed(4)),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 9,
    body: Struct {
        fields: &[
            since("throttle_time_ms", 3, Shape::Fixed(4)),
            always("brokers", Shape::Array(&Shape::Struct(&BROKER))),
            since("cluster_id", 2, Shape::String),
            since("controller_id", 1, Shape::Fixed(4)),
            always("topics", Shape::Array(&Shape::Struct(&TOPIC))),
            between("cluster_authorized_operations", 8, 10, Shape::Fixed(4)),
        ],
        tagged: &[],
    },
};

/// Asks for the brokers and the given topics. Never creates a topic.
#[derive(Clone, Debug)]
pub(crate) struct MetadataRequest {
    /// None of them is a question for the brokers alone.
    pub(crate) topics: Vec<Arc<str>>,
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataAnswer {
    pub(crate) brokers: Vec<MetadataBroker>,
    pub(crate) cluster_id: Option<String>,
    pub(crate) topics: Vec<MetadataTopic>,
}

/// A broker's advertised address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataBroker {
    pub(crate) id: i32,
    pub(crate) host: Arc<str>,
    pub(crate) port: i32,
}

/// What a broker knows of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataTopic {
    pub(crate) name: Arc<str>,
    /// Nil where the broker does not tell.
    pub(crate) id: Uuid,
    /// 0 for none.
    pub(crate) error: i16,
    pub(crate) partitions: Vec<MetadataPartition>,
}

/// What a broker knows of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetadataPartition {
    pub(crate) partition: i32,
    /// 0 for none.
    pub(crate) error: i16,
    pub(crate) leader: Option<Leader>,
}

impl Request for MetadataRequest {
    const API: Api = Api::Metadata;
    type Answer = MetadataAnswer;

    fn unknown_code(answer: &MetadataAnswer) -> Option<i16> {
        let topics = answer.topics.iter();
        first_unknown(topics.flat_map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| partition.error);
            partitions.chain([topic.error])
        }))
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let topics = self
            .topics
            .iter()
            .map(|name| {
                messages::metadata_request::MetadataRequestTopic::default()
                    .with_name(Some(topic_name(name)))
            })
            .collect();
        let mut request = messages::MetadataRequest::default().with_topics(Some(topics));
        if version >= 4 {
            request.allow_auto_topic_creation = false;
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<MetadataAnswer, WireError> {
        let answer: messages::MetadataResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(MetadataAnswer {
            brokers: answer
                .brokers
                .into_iter()
                .map(|broker| MetadataBroker {
                    id: broker.node_id.0,
                    host: shared(&broker.host),
                    port: broker.port,
                })
                .collect(),
            cluster_id: answer.cluster_id.map(|id| id.to_string()),
            topics: answer
                .topics
                .into_iter()
                .filter_map(|topic| {
                    Some(MetadataTopic {
                        // Null only where a topic was asked for by its id.
                        name: shared(&topic.name?.0),
                        id: topic.topic_id,
                        error: topic.error_code,
                        partitions: topic.partitions.iter().map(partition).collect(),
                    })
                })
                .collect(),
        })
    }
}

fn partition(
    partition: &messages::metadata_response::MetadataResponsePartition,
) -> MetadataPartition {
    MetadataPartition {
        partition: partition.partition_index,
        error: partition.error_code,
        leader: (partition.leader_id.0 >= 0).then_some(Leader {
            id: partition.leader_id.0,
            epoch: partition.leader_epoch,
        }),
    }
}
