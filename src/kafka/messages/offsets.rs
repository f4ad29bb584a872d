//! First, last and timed offsets of partitions.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, BrokerId};

use super::{Api, Request, put_body, shared, topic_name};
use crate::kafka::Isolation;
use crate::kafka::errors::first_unknown;
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, since};

static PARTITION: Struct = Struct {
    fields: &[
        always("partition_index", Shape::Fixed(4)),
        always("error_code", Shape::Fixed(2)),
        always("timestamp", Shape::Fixed(8)),
        always("offset", Shape::Fixed(8)),
        since("leader_epoch", 4, Shape::Fixed(4)),
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

pub(super) static SHAPE: Answer = Answer {
    flexible: 6,
    body: Struct {
        fields: &[
            since("throttle_time_ms", 2, Shape::Fixed(4)),
            always("topics", Shape::Array(&Shape::Struct(&TOPIC))),
        ],
        tagged: &[],
    },
};

/// Stands for the end: the last stable offset under `read_committed`, else the
/// high watermark.
pub(crate) const LATEST: i64 = -1;
/// Stands for the first offset that the log still has.
pub(crate) const EARLIEST: i64 = -2;

/// Asks the leader of partitions for offsets.
#[derive(Clone, Debug)]
pub(crate) struct OffsetsRequest {
    pub(crate) isolation: Isolation,
    /// A partition may stand here once only: brokers refuse a second question.
    pub(crate) topics: Vec<(Arc<str>, Vec<OffsetQuestion>)>,
}

/// Which offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetQuestion {
    pub(crate) partition: i32,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    /// Milliseconds since 1970, [`EARLIEST`] or [`LATEST`].
    pub(crate) timestamp: i64,
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetsAnswer {
    pub(crate) topics: Vec<OffsetsTopic>,
}

/// Offsets of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetsTopic {
    pub(crate) name: Arc<str>,
    pub(crate) partitions: Vec<OffsetAnswer>,
}

/// An offset of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetAnswer {
    pub(crate) partition: i32,
    /// 0 for none.
    pub(crate) error: i16,
    /// -1 where no record is as young as the timestamp asked for.
    pub(crate) offset: i64,
}

impl Request for OffsetsRequest {
    const API: Api = Api::ListOffsets;
    type Answer = OffsetsAnswer;

    fn unknown_code(answer: &OffsetsAnswer) -> Option<i16> {
        let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        first_unknown(partitions.map(|partition| partition.error))
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let mut request = messages::ListOffsetsRequest::default().with_replica_id(BrokerId(-1));
        if version >= 2 {
            request.isolation_level = self.isolation.code();
        }
        request.topics = self
            .topics
            .iter()
            .map(|(name, questions)| {
                messages::list_offsets_request::ListOffsetsTopic::default()
                    .with_name(topic_name(name))
                    .with_partitions(
                        questions
                            .iter()
                            .map(|question| {
                                let mut asked =
                                    messages::list_offsets_request::ListOffsetsPartition::default()
                                        .with_partition_index(question.partition)
                                        .with_timestamp(question.timestamp);
                                if version >= 4 {
                                    asked.current_leader_epoch = question.leader_epoch;
                                }
                                asked
                            })
                            .collect(),
                    )
            })
            .collect();
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<OffsetsAnswer, WireError> {
        let answer: messages::ListOffsetsResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(OffsetsAnswer {
            topics: answer
                .topics
                .into_iter()
                .map(|topic| OffsetsTopic {
                    name: shared(&topic.name),
                    partitions: topic
                        .partitions
                        .iter()
                        .map(|partition| OffsetAnswer {
                            partition: partition.partition_index,
                            error: partition.error_code,
                            offset: partition.offset,
                        })
                        .collect(),
                })
                .collect(),
        })
    }
}
