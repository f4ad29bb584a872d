//! How connections are secured, as librdkafka's properties say.
//!
//! The member's client and our own connections are configured once, by the
//! names that librdkafka has for it (`security.protocol`, `ssl.*`, `sasl.*`).
//! What librdkafka can do and our connections cannot (Kerberos, OAUTHBEARER,
//! keys in a keystore) is no mistake of the user: it is told apart here, so
//! that records are then read through librdkafka. What is a mistake for both is
//! found here too, all of it at once and before anything starts.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sasl::{Credentials, Mechanism};
use super::tls::Tls;
use crate::error::Problem;

/// How a connection is secured: not at all, by TLS, by SASL or by both.
///
/// Its parts do not show their secrets, and neither does it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    pub(super) tls: Option<Tls>,
    pub(super) sasl: Option<Arc<Credentials>>,
}

/// Why our own connections cannot do what properties ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// librdkafka can.
    NotSpoken(NotSpoken),
    /// Nobody can.
    Wrong(Vec<Problem>),
}

/// A setting that librdkafka takes and our own connections do not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{property}={value} is spoken by librdkafka only")]
pub(crate) struct NotSpoken {
    pub(crate) property: String,
    /// Never a secret.
    pub(crate) value: String,
}

/// Why there is no TLS with a broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(
    not(feature = "ssl"),
    expect(dead_code, reason = "without TLS there is less that can go wrong")
)]
pub(crate) enum TlsFault {
    #[error(
        "its certificate is signed by none of the trusted authorities: give the authority that \
         signed it with ssl.ca.location"
    )]
    UnknownAuthority,
    #[error("its certificate has expired: renew it on the broker ({0})")]
    Expired(String),
    #[error("its certificate is not valid yet: check the clocks ({0})")]
    NotYetValid(String),
    #[error(
        "its certificate is for {presented} and not for {expected}: connect by a name that it is \
         for, or issue one with this name among its subject alternative names"
    )]
    WrongName { expected: String, presented: String },
    #[error("its certificate is not accepted: {0}")]
    Certificate(String),
    #[error("it refuses our side of the handshake with the alert {alert}: {remedy}")]
    Alert { alert: String, remedy: &'static str },
    #[error(
        "what it says is not TLS: use its TLS port, or set security.protocol to plaintext or \
         sasl_plaintext"
    )]
    NotTls,
    #[error(
        "it closed the connection during the handshake; if it always does, its listener may not \
         speak TLS"
    )]
    Closed,
    #[error("{0:?} is no name that a certificate can be for")]
    Name(String),
    #[error("{0}")]
    Other(String),
}

impl TlsFault {
    /// False where asking again may help without anybody's doing.
    pub(crate) fn is_refusal(&self) -> bool {
        !matches!(self, Self::Closed | Self::Other(_))
    }
}

impl Security {
    /// What the properties ask for.
    ///
    /// # Errors
    ///
    /// [`Unusable`], with every problem at once.
    pub(crate) fn of(properties: &BTreeMap<String, String>) -> Result<Self, Unusable> {
        let protocol = properties
            .get("security.protocol")
            .map_or("plaintext", |protocol| protocol.trim());
        let (tls, sasl) = match protocol.to_ascii_lowercase().as_str() {
            "plaintext" => (false, false),
            "ssl" => (true, false),
            "sasl_plaintext" => (false, true),
            "sasl_ssl" => (true, true),
            _ => {
                return Err(Unusable::Wrong(vec![Problem::new(
                    "security.protocol",
                    protocol,
                    "it is plaintext, ssl, sasl_plaintext or sasl_ssl",
                    "give one of these, as the broker's listener has it",
                )]));
            }
        };
        let tls = tls.then(|| Tls::of(properties)).transpose();
        let sasl = sasl.then(|| credentials(properties)).transpose();
        match (tls, sasl) {
            (Ok(tls), Ok(sasl)) => Ok(Self {
                tls,
                sasl: sasl.map(Arc::new),
            }),
            (Err(Unusable::Wrong(mut problems)), Err(Unusable::Wrong(more))) => {
                problems.extend(more);
                Err(Unusable::Wrong(problems))
            }
            // A mistake is told even where another part is librdkafka's alone.
            (Err(wrong @ Unusable::Wrong(_)), _) | (_, Err(wrong @ Unusable::Wrong(_))) => {
                Err(wrong)
            }
            (Err(not_spoken), _) | (_, Err(not_spoken)) => Err(not_spoken),
        }
    }

    /// True where anybody may say to be the broker.
    pub(crate) fn is_unverified(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_unverified)
    }
}

/// What is wrong with the properties; empty where nothing is, or where it is
/// librdkafka's business alone.
pub(super) fn problems(properties: &BTreeMap<String, String>) -> Vec<Problem> {
    match Security::of(properties) {
        Err(Unusable::Wrong(problems)) => problems,
        Ok(_) | Err(Unusable::NotSpoken(_)) => Vec::new(),
    }
}

pub(super) fn not_spoken(property: &str, value: &str) -> Unusable {
    Unusable::NotSpoken(NotSpoken {
        property: property.to_owned(),
        value: value.to_owned(),
    })
}

/// The value of a property that says something.
pub(super) fn given<'a>(properties: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    properties
        .get(name)
        .map(|value| value.trim())
        .filter(|value| !value.is_empty())
}

/// Who we are, by SASL.
fn credentials(properties: &BTreeMap<String, String>) -> Result<Credentials, Unusable> {
    // Two names of one property; the default is librdkafka's.
    let (property, name) = ["sasl.mechanism", "sasl.mechanisms"]
        .into_iter()
        .find_map(|property| Some((property, given(properties, property)?)))
        .unwrap_or(("sasl.mechanism", "GSSAPI"));
    let lacks = |feature: &str| {
        Unusable::Wrong(vec![Problem::new(
            property,
            name,
            format!("this program was built without the feature {feature}"),
            format!("build it with --features {feature}, or use another mechanism"),
        )])
    };
    let Some(mechanism) = Mechanism::of(name) else {
        return Err(match name {
            "GSSAPI" if !cfg!(feature = "gssapi") => lacks("gssapi"),
            "OAUTHBEARER" if !cfg!(feature = "ssl") => lacks("ssl"),
            _ => not_spoken(property, name),
        });
    };
    if matches!(mechanism, Mechanism::Scram(_)) && !cfg!(feature = "ssl") {
        return Err(lacks("ssl"));
    }
    // Passwords are used as they are, spaces included.
    let value = |name: &str| properties.get(name).filter(|value| !value.is_empty());
    match (value("sasl.username"), value("sasl.password")) {
        (Some(username), Some(password)) => Ok(Credentials {
            mechanism,
            username: username.clone(),
            password: password.clone(),
        }),
        (username, password) => {
            let missing = [("sasl.username", username), ("sasl.password", password)];
            Err(Unusable::Wrong(
                missing
                    .into_iter()
                    .filter(|(_, value)| value.is_none())
                    .map(|(property, _)| {
                        Problem::new(
                            property,
                            "\"\"",
                            format!("{} needs a user name and a password", mechanism.name()),
                            "set both",
                        )
                    })
                    .collect(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(properties: &[(&str, &str)]) -> Result<Security, Unusable> {
        Security::of(
            &properties
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    fn wrong(properties: &[(&str, &str)]) -> Vec<String> {
        match of(properties) {
            Err(Unusable::Wrong(problems)) => problems
                .into_iter()
                .map(|problem| problem.setting)
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    fn librdkafkas(properties: &[(&str, &str)]) -> String {
        match of(properties) {
            Err(Unusable::NotSpoken(NotSpoken { property, .. })) => property,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn protocols_are_read_as_librdkafka_reads_them() {
        for (protocol, tls, sasl) in [
            (None, false, false),
            (Some("plaintext"), false, false),
            (Some("PLAINTEXT"), false, false),
            (Some("SASL_PLAINTEXT"), false, true),
            #[cfg(feature = "ssl")]
            (Some("Sasl_Ssl"), true, true),
            #[cfg(feature = "ssl")]
            (Some("ssl"), true, false),
        ] {
            let mut properties = vec![
                ("sasl.mechanism", "PLAIN"),
                ("sasl.username", "u"),
                ("sasl.password", "p"),
                ("enable.ssl.certificate.verification", "false"),
            ];
            properties.extend(protocol.map(|protocol| ("security.protocol", protocol)));
            let security = of(&properties).unwrap();
            assert_eq!(security.tls.is_some(), tls, "{protocol:?}");
            assert_eq!(security.sasl.is_some(), sasl, "{protocol:?}");
            assert_eq!(security.is_unverified(), tls, "{protocol:?}");
        }
        assert_eq!(
            wrong(&[("security.protocol", "tls")]),
            ["security.protocol"]
        );
    }

    #[test]
    fn what_only_librdkafka_speaks_is_no_mistake() {
        let oauth = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanisms", "OAUTHBEARER"),
        ];
        let kerberos = [("security.protocol", "sasl_plaintext")];
        if cfg!(feature = "ssl") {
            assert_eq!(librdkafkas(&oauth), "sasl.mechanisms");
        } else {
            assert_eq!(wrong(&oauth), ["sasl.mechanisms"]);
        }
        if cfg!(feature = "gssapi") {
            assert_eq!(librdkafkas(&kerberos), "sasl.mechanism");
        } else {
            assert_eq!(wrong(&kerberos), ["sasl.mechanism"]);
        }
    }

    #[test]
    fn a_mechanism_without_a_user_or_a_password_is_refused_with_both_named() {
        let plain = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
        ];
        assert_eq!(wrong(&plain), ["sasl.username", "sasl.password"]);
        let with_user = [&plain[..], &[("sasl.username", "u")]].concat();
        assert_eq!(wrong(&with_user), ["sasl.password"]);
    }

    #[test]
    fn nothing_about_security_is_asked_where_the_protocol_does_not_use_it() {
        assert!(of(&[("ssl.ca.location", "/nowhere"), ("sasl.mechanism", "X")]).is_ok());
    }

    #[test]
    fn a_password_is_not_shown() {
        let security = of(&[
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "me"),
            ("sasl.password", "hunter2"),
        ])
        .unwrap();
        let shown = format!("{security:?}");
        assert!(
            shown.contains("me") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
