//! Groups of the classic protocol, with their members.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, GroupId};

use super::{Api, Request, put_body, shared, text};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, since};

static MEMBER: Struct = Struct {
    fields: &[
        always("member_id", Shape::String),
        since("group_instance_id", 4, Shape::String),
        always("client_id", Shape::String),
        always("client_host", Shape::String),
        always("member_metadata", Shape::Bytes),
        always("member_assignment", Shape::Bytes),
    ],
    tagged: &[],
};

static GROUP: Struct = Struct {
    fields: &[
        always("error_code", Shape::Fixed(2)),
        since("error_message", 6, Shape::String),
        always("group_id", Shape::String),
        always("group_state", Shape::String),
        always("protocol_type", Shape::String),
        always("protocol_data", Shape::String),
        always("members", Shape::Array(&Shape::Struct(&MEMBER))),
        since("authorized_operations", 3, Shape::Fixed(4)),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 5,
    body: Struct {
        fields: &[
            since("throttle_time_ms", 1, Shape::Fixed(4)),
            always("groups", Shape::Array(&Shape::Struct(&GROUP))),
        ],
        tagged: &[],
    },
};

/// Asks a coordinator for groups of the classic protocol. A group that does not
/// exist, or is of the other protocol, is `Dead` up to version 5 and error 69
/// from then on.
#[derive(Clone, Debug)]
pub(crate) struct DescribeGroupsRequest {
    pub(crate) groups: Vec<Arc<str>>,
}

/// What a coordinator answers: one entry per group that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DescribeGroupsAnswer {
    pub(crate) groups: Vec<ClassicGroup>,
}

/// A group of the classic protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClassicGroup {
    pub(crate) group: Arc<str>,
    /// 0 for none.
    pub(crate) error: i16,
    /// Kafka's name of the state, as `Stable`.
    pub(crate) state: Arc<str>,
    /// `consumer` for consumers.
    pub(crate) protocol_type: Arc<str>,
    /// What the members agreed on: for consumers the assignor, as `range`.
    pub(crate) protocol: Arc<str>,
    pub(crate) members: Vec<ClassicMember>,
}

/// A member of a group of the classic protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClassicMember {
    pub(crate) id: Arc<str>,
    /// Of a static member.
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) client_id: Arc<str>,
    pub(crate) host: Arc<str>,
    /// What its leader assigned to it, in the words of the protocol type; for
    /// consumers read by [`consumer_assignment`].
    ///
    /// [`consumer_assignment`]: super::consumer_assignment
    pub(crate) assignment: Bytes,
}

impl Request for DescribeGroupsRequest {
    const API: Api = Api::DescribeGroups;
    type Answer = DescribeGroupsAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let request = messages::DescribeGroupsRequest::default()
            .with_groups(self.groups.iter().map(|name| GroupId(text(name))).collect());
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<DescribeGroupsAnswer, WireError> {
        let answer: messages::DescribeGroupsResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(DescribeGroupsAnswer {
            groups: answer.groups.into_iter().map(group).collect(),
        })
    }
}

fn group(group: messages::describe_groups_response::DescribedGroup) -> ClassicGroup {
    ClassicGroup {
        group: shared(&group.group_id),
        error: group.error_code,
        state: shared(&group.group_state),
        protocol_type: shared(&group.protocol_type),
        protocol: shared(&group.protocol_data),
        members: group
            .members
            .into_iter()
            .map(|member| ClassicMember {
                id: shared(&member.member_id),
                instance: member.group_instance_id.as_ref().map(shared),
                client_id: shared(&member.client_id),
                host: shared(&member.client_host),
                assignment: member.member_assignment,
            })
            .collect(),
    }
}
