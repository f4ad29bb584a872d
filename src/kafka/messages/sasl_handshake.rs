//! Which SASL mechanism a connection is going to use.

use bytes::Bytes;
use kafka_protocol::messages;

use super::{Api, Request, put_body, text};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always};

pub(super) static SHAPE: Answer = Answer {
    flexible: i16::MAX,
    body: Struct {
        fields: &[
            always("error_code", Shape::Fixed(2)),
            always("mechanisms", Shape::Array(&Shape::String)),
        ],
        tagged: &[],
    },
};

/// Names the mechanism of the messages that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SaslHandshakeRequest {
    pub(crate) mechanism: &'static str,
}

/// Whether the broker agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SaslHandshakeAnswer {
    /// 0 where it does.
    pub(crate) error: i16,
    /// What the listener takes.
    pub(crate) mechanisms: Vec<String>,
}

impl Request for SaslHandshakeRequest {
    const API: Api = Api::SaslHandshake;
    type Answer = SaslHandshakeAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let request =
            messages::SaslHandshakeRequest::default().with_mechanism(text(self.mechanism));
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<SaslHandshakeAnswer, WireError> {
        let answer: messages::SaslHandshakeResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(SaslHandshakeAnswer {
            error: answer.error_code,
            mechanisms: answer.mechanisms.iter().map(ToString::to_string).collect(),
        })
    }
}
