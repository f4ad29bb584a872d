//! Groups of the new protocol (KIP-848), with their members.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, GroupId};

use super::{Api, AssignedTopics, Request, put_body, shared, text};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, since};

static TOPIC: Struct = Struct {
    fields: &[
        always("topic_id", Shape::Fixed(16)),
        always("topic_name", Shape::String),
        always("partitions", Shape::Array(&Shape::Fixed(4))),
    ],
    tagged: &[],
};

static ASSIGNMENT: Struct = Struct {
    fields: &[always(
        "topic_partitions",
        Shape::Array(&Shape::Struct(&TOPIC)),
    )],
    tagged: &[],
};

static MEMBER: Struct = Struct {
    fields: &[
        always("member_id", Shape::String),
        always("instance_id", Shape::String),
        always("rack_id", Shape::String),
        always("member_epoch", Shape::Fixed(4)),
        always("client_id", Shape::String),
        always("client_host", Shape::String),
        always("subscribed_topic_names", Shape::Array(&Shape::String)),
        always("subscribed_topic_regex", Shape::String),
        always("assignment", Shape::Struct(&ASSIGNMENT)),
        always("target_assignment", Shape::Struct(&ASSIGNMENT)),
        since("member_type", 1, Shape::Fixed(1)),
    ],
    tagged: &[],
};

static GROUP: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        always("error_message", Shape::String),
        always("group_id", Shape::String),
        always("group_state", Shape::String),
        always("group_epoch", Shape::Fixed(4)),
        always("assignment_epoch", Shape::Fixed(4)),
        always("assignor_name", Shape::String),
        always("members", Shape::Array(&Shape::Struct(&MEMBER))),
        always("authorized_operations", Shape::Fixed(4)),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 0,
    body: Struct {
        fields: &[
            always("throttle_time_ms", Shape::Fixed(4)),
            always("groups", Shape::Array(&Shape::Struct(&GROUP))),
        ],
        tagged: &[],
    },
};

/// Asks a coordinator for groups of the new protocol. A group that does not
/// exist, or is of the classic one, is answered with error 69.
#[derive(Clone, Debug)]
pub(crate) struct DescribeConsumerGroupsRequest {
    pub(crate) groups: Vec<Arc<str>>,
}

/// What a coordinator answers: one entry per group that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DescribeConsumerGroupsAnswer {
    pub(crate) groups: Vec<ConsumerGroup>,
}

/// A group of the new protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerGroup {
    pub(crate) group: Arc<str>,
    /// 0 for none.
    pub(crate) error: i16,
    /// Kafka's name of the state, as `Reconciling`.
    pub(crate) state: Arc<str>,
    /// Raised whenever the members or their subscriptions change.
    pub(crate) epoch: i32,
    /// The epoch that the assignment was made for.
    pub(crate) assignment_epoch: i32,
    pub(crate) assignor: Arc<str>,
    pub(crate) members: Vec<ConsumerMember>,
}

/// A member of a group of the new protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerMember {
    pub(crate) id: Arc<str>,
    /// Of a static member.
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) rack: Option<Arc<str>>,
    pub(crate) epoch: i32,
    pub(crate) client_id: Arc<str>,
    pub(crate) host: Arc<str>,
    /// What it has.
    pub(crate) assignment: AssignedTopics,
    /// What it is to have once the group has come to rest.
    pub(crate) target: AssignedTopics,
    /// Whether it speaks the classic protocol, in a group under migration;
    /// none where the broker does not tell.
    pub(crate) is_classic: Option<bool>,
}

impl Request for DescribeConsumerGroupsRequest {
    const API: Api = Api::ConsumerGroupDescribe;
    type Answer = DescribeConsumerGroupsAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let request = messages::ConsumerGroupDescribeRequest::default()
            .with_group_ids(self.groups.iter().map(|name| GroupId(text(name))).collect());
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<DescribeConsumerGroupsAnswer, WireError> {
        let answer: messages::ConsumerGroupDescribeResponse =
            checked(body, &SHAPE, Self::API, version)?;
        Ok(DescribeConsumerGroupsAnswer {
            groups: answer
                .groups
                .into_iter()
                .map(|group| ConsumerGroup {
                    group: shared(&group.group_id),
                    error: group.error_code,
                    state: shared(&group.group_state),
                    epoch: group.group_epoch,
                    assignment_epoch: group.assignment_epoch,
                    assignor: shared(&group.assignor_name),
                    members: group.members.into_iter().map(member).collect(),
                })
                .collect(),
        })
    }
}

fn member(member: messages::consumer_group_describe_response::Member) -> ConsumerMember {
    ConsumerMember {
        id: shared(&member.member_id),
        instance: member.instance_id.as_ref().map(shared),
        rack: member.rack_id.as_ref().map(shared),
        epoch: member.member_epoch,
        client_id: shared(&member.client_id),
        host: shared(&member.client_host),
        assignment: topics(member.assignment),
        target: topics(member.target_assignment),
        is_classic: match member.member_type {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        },
    }
}

fn topics(assignment: messages::consumer_group_describe_response::Assignment) -> AssignedTopics {
    assignment
        .topic_partitions
        .into_iter()
        .map(|topic| (shared(&topic.topic_name), topic.partitions))
        .collect()
}
