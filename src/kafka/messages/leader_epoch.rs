//! Where leader epochs end in the logs of their leaders.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, BrokerId};

use super::{Api, Request, put_body, shared, topic_name};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always};

static PARTITION: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        always("partition", Shape::Fixed(4)),
        always("leader_epoch", Shape::Fixed(4)),
        always("end_offset", Shape::Fixed(8)),
    ],
    tagged: &[],
};

static TOPIC: Struct = Struct {
    fields: &[
        always("topic", Shape::String),
        always("partitions", Shape::Array(&Shape::Struct(&PARTITION))),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 4,
    body: Struct {
        fields: &[
            always("throttle_time_ms", Shape::Fixed(4)),
            always("topics", Shape::Array(&Shape::Struct(&TOPIC))),
        ],
        tagged: &[],
    },
};

/// Asks the leader of partitions where an epoch ends in its log: a position
/// beyond that was read from a log that this one does not agree with (KIP-320).
#[derive(Clone, Debug)]
pub(crate) struct EpochEndsRequest {
    pub(crate) topics: Vec<(Arc<str>, Vec<EpochQuestion>)>,
}

/// Which epoch of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochQuestion {
    pub(crate) partition: i32,
    /// Of the leader that is asked; -1 where unknown.
    pub(crate) current_epoch: i32,
    /// The one whose end is asked for.
    pub(crate) epoch: i32,
}

/// What a leader answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EpochEndsAnswer {
    pub(crate) topics: Vec<EpochEndsTopic>,
}

/// The ends in one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EpochEndsTopic {
    pub(crate) name: Arc<str>,
    pub(crate) partitions: Vec<EpochEnd>,
}

/// Where an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochEnd {
    pub(crate) partition: i32,
    /// 0 for none.
    pub(crate) error: i16,
    /// The largest epoch that the log has and that is not larger than the one
    /// asked for; -1 where it has none.
    pub(crate) epoch: i32,
    /// The offset after the last record of it; -1 where there is none.
    pub(crate) end_offset: i64,
}

impl Request for EpochEndsRequest {
    const API: Api = Api::OffsetForLeaderEpoch;
    type Answer = EpochEndsAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        use messages::offset_for_leader_epoch_request as parts;

        let topics = self
            .topics
            .iter()
            .map(|(name, questions)| {
                let partitions = questions
                    .iter()
                    .map(|question| {
                        parts::OffsetForLeaderPartition::default()
                            .with_partition(question.partition)
                            .with_current_leader_epoch(question.current_epoch)
                            .with_leader_epoch(question.epoch)
                    })
                    .collect();
                parts::OffsetForLeaderTopic::default()
                    .with_topic(topic_name(name))
                    .with_partitions(partitions)
            })
            .collect();
        let request = messages::OffsetForLeaderEpochRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(topics);
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<EpochEndsAnswer, WireError> {
        let answer: messages::OffsetForLeaderEpochResponse =
            checked(body, &SHAPE, Self::API, version)?;
        Ok(EpochEndsAnswer {
            topics: answer
                .topics
                .into_iter()
                .map(|topic| EpochEndsTopic {
                    name: shared(&topic.topic),
                    partitions: topic
                        .partitions
                        .iter()
                        .map(|partition| EpochEnd {
                            partition: partition.partition,
                            error: partition.error_code,
                            epoch: partition.leader_epoch,
                            end_offset: partition.end_offset,
                        })
                        .collect(),
                })
                .collect(),
        })
    }
}
