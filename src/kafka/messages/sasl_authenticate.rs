//! One message of a SASL mechanism, and the broker's to it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages;

use super::{Api, Request, put_body};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, always, since};

pub(super) static SHAPE: Answer = Answer {
    flexible: 2,
    body: Struct {
        fields: &[
            always("error_code", Shape::Fixed(2)),
            always("error_message", Shape::String),
            always("auth_bytes", Shape::Bytes),
            since("session_lifetime_ms", 1, Shape::Fixed(8)),
        ],
        tagged: &[],
    },
};

/// A message of the mechanism. It may be a password: it is not shown.
pub(crate) struct SaslAuthenticateRequest<'a> {
    pub(crate) message: &'a [u8],
}

impl fmt::Debug for SaslAuthenticateRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaslAuthenticateRequest")
            .finish_non_exhaustive()
    }
}

/// What the broker says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SaslAuthenticateAnswer {
    /// 0 where it goes on, or is done.
    pub(crate) error: i16,
    pub(crate) error_message: Option<String>,
    /// The mechanism's next message.
    pub(crate) message: Bytes,
    /// How long the authentication holds; `None` for as long as the connection
    /// does.
    pub(crate) lifetime: Option<Duration>,
}

impl Request for SaslAuthenticateRequest<'_> {
    const API: Api = Api::SaslAuthenticate;
    type Answer = SaslAuthenticateAnswer;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let request = messages::SaslAuthenticateRequest::default()
            .with_auth_bytes(Bytes::copy_from_slice(self.message));
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<SaslAuthenticateAnswer, WireError> {
        let answer: messages::SaslAuthenticateResponse = checked(body, &SHAPE, Self::API, version)?;
        Ok(SaslAuthenticateAnswer {
            error: answer.error_code,
            error_message: answer.error_message.map(|message| message.to_string()),
            message: answer.auth_bytes,
            lifetime: u64::try_from(answer.session_lifetime_ms)
                .ok()
                .filter(|&millis| millis > 0)
                .map(Duration::from_millis),
        })
    }
}
