//! The committed offsets of a group.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, GroupId};

use super::{Api, Request, put_body, shared, text, topic_name};
use crate::kafka::errors::first_unknown;
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, between, since};

static PARTITION: Struct = Struct {
    fields: &[
        always("partition_index", Shape::Fixed(4)),
        always("committed_offset", Shape::Fixed(8)),
        since("committed_leader_epoch", 5, Shape::Fixed(4)),
        always("metadata", Shape::String),
        always("error_code", Shape::Fixed(2)),
    ],
    tagged: &[],
};

static TOPIC: Struct = Struct {
    fields: &[
        always("name", Shape::String),
        always("partitions", Shape::Array(&Shape::Struct(&PARTITION))),
    ],
    tagged: &[],
};

static GROUP: Struct = Struct {
    fields: &[
        always("group_id", Shape::String),
        always("topics", Shape::Array(&Shape::Struct(&TOPIC))),
        always("error_code", Shape::Fixed(2)),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 6,
    body: Struct {
        fields: &[
            since("throttle_time_ms", 3, Shape::Fixed(4)),
            between("topics", 0, 7, Shape::Array(&Shape::Struct(&TOPIC))),
            between("error_code", 2, 7, Shape::Fixed(2)),
            since("groups", 8, Shape::Array(&Shape::Struct(&GROUP))),
        ],
        tagged: &[],
    },
};

/// Asks the group's coordinator for committed offsets, and for stable ones: an
/// offset that an open transaction is about to change is answered with an
/// error instead of the older value.
#[derive(Clone, Debug)]
pub(crate) struct CommittedRequest {
    pub(crate) group: String,
    pub(crate) topics: Vec<GroupTopic>,
}

/// Partitions of a topic whose commits are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupTopic {
    pub(crate) name: Arc<str>,
    pub(crate) partitions: Vec<i32>,
}

/// What the coordinator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommittedAnswer {
    /// Error of the whole group; 0 for none. While there is one, nothing is
    /// known of any partition.
    pub(crate) error: i16,
    pub(crate) topics: Vec<CommittedTopic>,
}

/// Commits of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommittedTopic {
    pub(crate) name: Arc<str>,
    pub(crate) partitions: Vec<CommittedPartition>,
}

/// The commit of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommittedPartition {
    pub(crate) partition: i32,
    /// 0 for none. Only without an error does the offset say anything.
    pub(crate) error: i16,
    /// -1 where the group has no commit.
    pub(crate) offset: i64,
    /// Leader epoch of the record before the offset; -1 where it was not
    /// committed.
    pub(crate) leader_epoch: i32,
    /// What the consumer noted, mostly nothing.
    pub(crate) metadata: Option<Arc<str>>,
}

/// Nothing and an empty text are the same.
fn noted(metadata: Option<&str>) -> Option<Arc<str>> {
    metadata.filter(|text| !text.is_empty()).map(Arc::from)
}

impl Request for CommittedRequest {
    const API: Api = Api::OffsetFetch;
    type Answer = CommittedAnswer;

    fn unknown_code(answer: &CommittedAnswer) -> Option<i16> {
        let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let of_partitions = partitions.map(|partition| partition.error);
        first_unknown(of_partitions.chain([answer.error]))
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        use messages::offset_fetch_request as parts;

        let mut request = messages::OffsetFetchRequest::default();
        if version >= 7 {
            request.require_stable = true;
        }
        if version >= 8 {
            let topics = self
                .topics
                .iter()
                .map(|topic| {
                    parts::OffsetFetchRequestTopics::default()
                        .with_name(topic_name(&topic.name))
                        .with_partition_indexes(topic.partitions.clone())
                })
                .collect();
            request.groups = vec![
                parts::OffsetFetchRequestGroup::default()
                    .with_group_id(GroupId(text(&self.group)))
                    .with_topics(Some(topics)),
            ];
        } else {
            request.group_id = GroupId(text(&self.group));
            request.topics = Some(
                self.topics
                    .iter()
                    .map(|topic| {
                        parts::OffsetFetchRequestTopic::default()
                            .with_name(topic_name(&topic.name))
                            .with_partition_indexes(topic.partitions.clone())
                    })
                    .collect(),
            );
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<CommittedAnswer, WireError> {
        let answer: messages::OffsetFetchResponse = checked(body, &SHAPE, Self::API, version)?;
        if version < 8 {
            return Ok(CommittedAnswer {
                error: answer.error_code,
                topics: answer
                    .topics
                    .into_iter()
                    .map(|topic| CommittedTopic {
                        name: shared(&topic.name),
                        partitions: topic
                            .partitions
                            .iter()
                            .map(|partition| CommittedPartition {
                                partition: partition.partition_index,
                                error: partition.error_code,
                                offset: partition.committed_offset,
                                leader_epoch: partition.committed_leader_epoch,
                                metadata: noted(partition.metadata.as_deref()),
                            })
                            .collect(),
                    })
                    .collect(),
            });
        }
        // One group was asked for, so there is one answer.
        let group = answer
            .groups
            .into_iter()
            .next()
            .ok_or_else(|| WireError::Malformed {
                api: Self::API,
                version,
                what: "it names no group".to_owned(),
            })?;
        Ok(CommittedAnswer {
            error: group.error_code,
            topics: group
                .topics
                .into_iter()
                .map(|topic| CommittedTopic {
                    name: shared(&topic.name),
                    partitions: topic
                        .partitions
                        .iter()
                        .map(|partition| CommittedPartition {
                            partition: partition.partition_index,
                            error: partition.error_code,
                            offset: partition.committed_offset,
                            leader_epoch: partition.committed_leader_epoch,
                            metadata: noted(partition.metadata.as_deref()),
                        })
                        .collect(),
                })
                .collect(),
        })
    }
}
