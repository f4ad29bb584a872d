//! The groups that a broker coordinates.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages;

use super::{Api, Request, put_body, shared, text};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, since};

static GROUP: Struct = Struct {
    fields: &[
        always("group_id", Shape::String),
        always("protocol_type", Shape::String),
        since("group_state", 4, Shape::String),
        since("group_type", 5, Shape::String),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 3,
    body: Struct {
        fields: &[
            since("throttle_time_ms", 1, Shape::Fixed(4)),
            always("error_code", Shape::Fixed(2)),
            always("groups", Shape::Array(&Shape::Struct(&GROUP))),
        ],
        tagged: &[],
    },
};

/// Asks a broker for the groups that it coordinates; no other broker's are in
/// the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListGroupsRequest {
    /// Kafka's names of states, as `Stable`; none of them asks for every state.
    pub(crate) states: Vec<String>,
    /// Kafka's names of protocols, as `classic` or `consumer`; none of them
    /// asks for every one. Brokers before 3.8 know classic groups only.
    pub(crate) types: Vec<String>,
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListGroupsAnswer {
    /// 0 for none. While there is one, the list may be incomplete.
    pub(crate) error: i16,
    pub(crate) groups: Vec<ListedGroup>,
}

/// A group in a broker's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedGroup {
    pub(crate) group: Arc<str>,
    /// `consumer` for consumers, `connect` for Kafka Connect; empty where the
    /// group only commits offsets and was never joined.
    pub(crate) protocol_type: Arc<str>,
    /// Kafka's name of the state, as `Stable`.
    pub(crate) state: Arc<str>,
    /// Kafka's name of the protocol, as `Classic` or `Consumer`; none where
    /// the broker is older than the choice.
    pub(crate) group_type: Option<Arc<str>>,
}

impl ListGroupsRequest {
    /// The first version that can be asked for a type.
    const TYPES_FROM: i16 = 5;
}

impl Request for ListGroupsRequest {
    const API: Api = Api::ListGroups;
    type Answer = ListGroupsAnswer;

    fn lowest_version(&self) -> i16 {
        if self.types.is_empty() {
            Self::API.ours().0
        } else {
            Self::TYPES_FROM
        }
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let texts = |names: &[String]| names.iter().map(|name| text(name)).collect();
        let mut request =
            messages::ListGroupsRequest::default().with_states_filter(texts(&self.states));
        if version >= Self::TYPES_FROM {
            request.types_filter = texts(&self.types);
        } else if !self.types.is_empty() {
            return Err("groups cannot be asked for by type below version 5".to_owned());
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<ListGroupsAnswer, WireError> {
        let answer: messages::ListGroupsResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(ListGroupsAnswer {
            error: answer.error_code,
            groups: answer
                .groups
                .into_iter()
                .map(|group| ListedGroup {
                    group: shared(&group.group_id),
                    protocol_type: shared(&group.protocol_type),
                    state: shared(&group.group_state),
                    group_type: (version >= Self::TYPES_FROM).then(|| shared(&group.group_type)),
                })
                .collect(),
        })
    }
}
