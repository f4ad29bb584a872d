//! Who we say that we are, and the messages that prove it.
//!
//! A mechanism is a conversation: we begin, the broker answers, until both are
//! content. It is kept apart from the requests that carry it
//! ([`super::greeting`]), and knows neither sockets nor versions.

use std::fmt;
use std::sync::Arc;

use super::scram::{Hash, Scram};

/// How a user proves to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// By the password itself.
    Plain,
    /// By a proof of knowing the password, that the broker returns.
    Scram(Hash),
}

impl Mechanism {
    /// The mechanism of that name, if it is one that we speak.
    pub(super) fn of(name: &str) -> Option<Self> {
        [
            Self::Plain,
            Self::Scram(Hash::Sha256),
            Self::Scram(Hash::Sha512),
        ]
        .into_iter()
        .find(|mechanism| mechanism.name() == name)
    }

    /// As Kafka calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram(Hash::Sha256) => "SCRAM-SHA-256",
            Self::Scram(Hash::Sha512) => "SCRAM-SHA-512",
        }
    }
}

/// A user's name and password, and how they are used.
pub(crate) struct Credentials {
    pub(crate) mechanism: Mechanism,
    pub(crate) username: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Why a broker and we do not come to an agreement about who we are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(
    not(feature = "ssl"),
    expect(dead_code, reason = "without SCRAM there is less that can go wrong")
)]
pub(crate) enum SaslFault {
    #[error(
        "the listener does not offer {mechanism} (it offers {}): set sasl.mechanism to one that it \
         offers, or use another listener",
        offers(.offered)
    )]
    Mechanism {
        mechanism: &'static str,
        offered: Vec<String>,
    },
    #[error(
        "the listener does not authenticate by SASL: use another listener, or set \
         security.protocol to plaintext or ssl"
    )]
    NoSasl,
    #[error(
        "user {username:?} is refused ({mechanism}): {message}; check sasl.username and \
         sasl.password"
    )]
    Refused {
        mechanism: &'static str,
        username: String,
        /// The broker's.
        message: String,
    },
    #[error("the broker's {mechanism} message is not understood: {what}")]
    Message {
        mechanism: &'static str,
        what: &'static str,
    },
    #[error(
        "the broker asks for {0} rounds of hashing, where {least} to {most} are accepted: fewer do \
         not protect the password, more are no broker's",
        least = super::scram::ROUNDS.start(),
        most = super::scram::ROUNDS.end()
    )]
    Rounds(u32),
    #[error(
        "the broker accepts the password without a proof of knowing it: it is not the broker that \
         it claims to be"
    )]
    Unproven,
    #[error("the system has no random numbers")]
    NoRandom,
    #[error("the broker does not authenticate anybody now: {0}")]
    Unavailable(super::errors::ErrorCode),
}

impl SaslFault {
    /// False where asking again may help without anybody's doing.
    pub(crate) fn is_refusal(&self) -> bool {
        !matches!(self, Self::NoRandom | Self::Unavailable(_))
    }
}

fn offers(offered: &[String]) -> String {
    if offered.is_empty() {
        "none".to_owned()
    } else {
        offered.join(", ")
    }
}

/// A conversation of a mechanism.
#[derive(Debug)]
pub(super) enum Exchange {
    /// All is said in the first message.
    Plain,
    Scram(Scram),
}

impl Exchange {
    /// Begins, with the first message.
    pub(super) fn begin(with: &Arc<Credentials>) -> Result<(Self, Vec<u8>), SaslFault> {
        match with.mechanism {
            Mechanism::Plain => {
                let message = format!("\0{}\0{}", with.username, with.password);
                Ok((Self::Plain, message.into_bytes()))
            }
            Mechanism::Scram(hash) => {
                let (scram, message) = Scram::begin(hash, with)?;
                Ok((Self::Scram(scram), message))
            }
        }
    }

    /// Takes the broker's message and gives the next one; `None` where nothing
    /// is left to say.
    pub(super) fn answer(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, SaslFault> {
        match self {
            Self::Plain => Ok(None),
            Self::Scram(scram) => scram.answer(message),
        }
    }
}
