//! Which brokers coordinate groups.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages;

use super::{Api, Request, put_body, shared, text};
use crate::kafka::errors::first_unknown;
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, between, since};

static COORDINATOR: Struct = Struct {
    fields: &[
        always("key", Shape::String),
        always("node_id", Shape::Fixed(4)),
        always("host", Shape::String),
        always("port", Shape::Fixed(4)),
        always("error_code", Shape::Fixed(2)),
        always("error_message", Shape::String),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 3,
    body: Struct {
        fields: &[
            since("throttle_time_ms", 1, Shape::Fixed(4)),
            between("error_code", 0, 3, Shape::Fixed(2)),
            between("error_message", 1, 3, Shape::String),
            between("node_id", 0, 3, Shape::Fixed(4)),
            between("host", 0, 3, Shape::String),
            between("port", 0, 3, Shape::Fixed(4)),
            since(
                "coordinators",
                4,
                Shape::Array(&Shape::Struct(&COORDINATOR)),
            ),
        ],
        tagged: &[],
    },
};

/// Asks who coordinates a group.
#[derive(Clone, Debug)]
pub(crate) struct CoordinatorRequest {
    pub(crate) group: String,
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoordinatorAnswer {
    /// 0 for none.
    pub(crate) error: i16,
    pub(crate) id: i32,
    pub(crate) host: Arc<str>,
    pub(crate) port: i32,
}

impl Request for CoordinatorRequest {
    const API: Api = Api::FindCoordinator;
    type Answer = CoordinatorAnswer;

    fn unknown_code(answer: &CoordinatorAnswer) -> Option<i16> {
        first_unknown([answer.error])
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let mut request = messages::FindCoordinatorRequest::default();
        if version >= 4 {
            request.coordinator_keys = vec![text(&self.group)];
        } else {
            request.key = text(&self.group);
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<CoordinatorAnswer, WireError> {
        let answer: messages::FindCoordinatorResponse =
            match checked(body.clone(), &SHAPE, Self::API, version) {
                Ok(answer) => answer,
                // With an error there is no host, and some brokers write null
                // for it, which the decoder refuses: what counts is the error.
                Err(damaged @ WireError::Malformed { .. }) => {
                    let error = leading_error(&body, version).ok_or(damaged)?;
                    return Ok(CoordinatorAnswer {
                        error,
                        id: -1,
                        host: Arc::from(""),
                        port: -1,
                    });
                }
                Err(damaged) => return Err(damaged),
            };
        if version < 4 {
            return Ok(CoordinatorAnswer {
                error: answer.error_code,
                id: answer.node_id.0,
                host: shared(&answer.host),
                port: answer.port,
            });
        }
        // One group was asked for, so there is one answer.
        let found = answer
            .coordinators
            .first()
            .ok_or_else(|| WireError::Malformed {
                api: Self::API,
                version,
                what: "it names no coordinator".to_owned(),
            })?;
        Ok(CoordinatorAnswer {
            error: found.error_code,
            id: found.node_id.0,
            host: shared(&found.host),
            port: found.port,
        })
    }
}

/// Asks who coordinates each of some groups.
#[derive(Clone, Debug)]
pub(crate) struct CoordinatorsRequest {
    /// One at a time for brokers before 3.0.
    pub(crate) groups: Vec<Arc<str>>,
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoordinatorsAnswer {
    pub(crate) coordinators: Vec<CoordinatorOf>,
}

/// Who coordinates a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoordinatorOf {
    /// None where the version does not repeat it: then one group was asked for.
    pub(crate) group: Option<Arc<str>>,
    pub(crate) coordinator: CoordinatorAnswer,
}

impl CoordinatorsRequest {
    /// The first version that can be asked for several groups.
    const SEVERAL_FROM: i16 = 4;
}

impl Request for CoordinatorsRequest {
    const API: Api = Api::FindCoordinator;
    type Answer = CoordinatorsAnswer;

    fn lowest_version(&self) -> i16 {
        if self.groups.len() == 1 {
            Self::API.ours().0
        } else {
            Self::SEVERAL_FROM
        }
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let mut request = messages::FindCoordinatorRequest::default();
        if version >= Self::SEVERAL_FROM {
            request.coordinator_keys = self.groups.iter().map(|name| text(name)).collect();
        } else {
            let [group] = &self.groups[..] else {
                return Err("below version 4 it is for one group".to_owned());
            };
            request.key = text(group);
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<CoordinatorsAnswer, WireError> {
        if version < Self::SEVERAL_FROM {
            return Ok(CoordinatorsAnswer {
                coordinators: vec![CoordinatorOf {
                    group: None,
                    coordinator: CoordinatorRequest::take(body, version)?,
                }],
            });
        }
        let answer: messages::FindCoordinatorResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(CoordinatorsAnswer {
            coordinators: answer
                .coordinators
                .into_iter()
                .map(|found| CoordinatorOf {
                    group: Some(shared(&found.key)),
                    coordinator: CoordinatorAnswer {
                        error: found.error_code,
                        id: found.node_id.0,
                        host: shared(&found.host),
                        port: found.port,
                    },
                })
                .collect(),
        })
    }
}

/// The error, if any, of an answer about a single group: it stands in front.
fn leading_error(body: &[u8], version: i16) -> Option<i16> {
    let at = match version {
        0 => 0,
        1..=3 => 4,
        _ => return None,
    };
    let code = body.get(at..at + 2)?;
    let code = i16::from_be_bytes([code[0], code[1]]);
    (code != 0).then_some(code)
}
