//! How connections are secured, as librdkafka's properties say.
//!
//! The member's client and our own connections are configured once, by the
//! names that librdkafka has for it (`security.protocol`, `ssl.*`, `sasl.*`).
//! What librdkafka can do and our connections cannot (Kerberos, OAUTHBEARER,
//! keys in a keystore) is no mistake of the user: it is told apart here, so
//! that records are then read through librdkafka.

use std::collections::BTreeMap;

/// How a connection is secured.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// Not at all.
    Plaintext,
}

/// A setting that librdkafka takes and our own connections do not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{property}={value} is spoken by librdkafka only")]
pub(crate) struct NotSpoken {
    pub(crate) property: String,
    /// Never a secret.
    pub(crate) value: String,
}

impl Security {
    /// What the properties ask for.
    ///
    /// # Errors
    ///
    /// [`NotSpoken`] where only librdkafka can do it.
    pub(crate) fn of(properties: &BTreeMap<String, String>) -> Result<Self, NotSpoken> {
        match properties.get("security.protocol") {
            None => Ok(Self::Plaintext),
            Some(protocol) if protocol.eq_ignore_ascii_case("plaintext") => Ok(Self::Plaintext),
            Some(protocol) => Err(NotSpoken {
                property: "security.protocol".to_owned(),
                value: protocol.clone(),
            }),
        }
    }
}
