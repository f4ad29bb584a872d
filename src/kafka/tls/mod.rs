//! TLS by rustls: what is trusted, who we are, and an encrypted connection.
//!
//! librdkafka has OpenSSL for the same; the two agree on what the properties
//! mean, except where rustls is stricter: a certificate must name the host among
//! its subject alternative names, and one that signs others cannot be a
//! broker's own.
//!
//! | file | what it is for |
//! |---|---|
//! | `mod` | the properties, read once |
//! | [`files`] | certificates and keys out of files, directories and text |
//! | [`stream`] | one encrypted connection that never waits |
//! | [`verify`] | brokers' certificates, where less than everything is checked |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};

use self::verify::Lenient;
use super::security::{TlsFault, Unusable, given, not_spoken};
use crate::error::Problem;

mod files;
mod stream;
mod verify;

pub(crate) use stream::TlsStream;

/// What OpenSSL does for librdkafka and nobody does for us.
const LIBRDKAFKAS: [&str; 9] = [
    "ssl.ca.certificate.stores",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.engine.id",
    "ssl.engine.location",
    "ssl.keystore.location",
    "ssl.providers",
    "ssl.sigalgs.list",
];

/// What TLS connections begin with.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    is_unverified: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("is_unverified", &self.is_unverified)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the properties, and the files that they name.
    pub(crate) fn of(properties: &BTreeMap<String, String>) -> Result<Self, Unusable> {
        for name in LIBRDKAFKAS {
            if let Some(value) = given(properties, name) {
                return Err(not_spoken(name, value));
            }
        }
        let mut problems = Vec::new();
        let is_verified =
            given(properties, "enable.ssl.certificate.verification").is_none_or(|value| {
                !["false", "f", "0"].contains(&value.to_ascii_lowercase().as_str())
            });
        let is_named = given(properties, "ssl.endpoint.identification.algorithm")
            .is_none_or(|value| !value.eq_ignore_ascii_case("none"));
        let roots = is_verified.then(|| files::authorities(properties, &mut problems));
        let identity = match files::identity(properties) {
            Ok(identity) => identity,
            Err(Unusable::Wrong(more)) => {
                problems.extend(more);
                None
            }
            Err(not_spoken) if problems.is_empty() => return Err(not_spoken),
            Err(_) => None,
        };
        if !problems.is_empty() {
            return Err(Unusable::Wrong(problems));
        }

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let odd = |error: &Error| {
            Unusable::Wrong(vec![Problem::new(
                "security.protocol",
                "ssl",
                format!("there can be no TLS: {error}"),
                "change the ssl properties",
            )])
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| odd(&error))?;
        let builder = match roots {
            Some(roots) if is_named => builder.with_root_certificates(roots),
            roots => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Lenient::new(roots, algorithms))),
        };
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(identity.chain, identity.key)
                .map_err(|error| {
                    Unusable::Wrong(vec![Problem::new(
                        "ssl.key.location",
                        identity.from,
                        format!("it does not go with the certificate: {error}"),
                        "give the key that the certificate was made for",
                    )])
                })?,
        };
        Ok(Self {
            config: Arc::new(config),
            is_unverified: !is_verified,
        })
    }

    /// True where anybody may say to be the broker.
    pub(crate) fn is_unverified(&self) -> bool {
        self.is_unverified
    }

    /// A connection to `host` that has yet to shake hands.
    pub(crate) fn open(&self, host: &str) -> Result<TlsStream, TlsFault> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| TlsFault::Name(host.to_owned()))?;
        UnbufferedClientConnection::new(Arc::clone(&self.config), name)
            .map(TlsStream::new)
            .map_err(|error| fault(&error))
    }
}

/// What rustls says, in words that say what to do.
fn fault(error: &Error) -> TlsFault {
    match error {
        Error::InvalidCertificate(certificate) => certificate_fault(certificate),
        Error::InvalidMessage(_) => TlsFault::NotTls,
        Error::AlertReceived(alert) => TlsFault::Alert {
            alert: format!("{alert:?}"),
            remedy: alert_remedy(*alert),
        },
        other => TlsFault::Other(other.to_string()),
    }
}

fn certificate_fault(error: &CertificateError) -> TlsFault {
    match error {
        // By one of the same name with another key: an authority that was made
        // anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            TlsFault::UnknownAuthority
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            TlsFault::Expired(error.to_string())
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsFault::NotYetValid(error.to_string())
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => TlsFault::WrongName {
            expected: expected.to_str().into_owned(),
            presented: if presented.is_empty() {
                "no name".to_owned()
            } else {
                presented.join(", ")
            },
        },
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            TlsFault::Certificate(
                "it is an authority's own, which signs others; issue one for the broker, or read \
                 through librdkafka (source client)"
                    .to_owned(),
            )
        }
        other => TlsFault::Certificate(other.to_string()),
    }
}

fn alert_remedy(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRequired
        | AlertDescription::BadCertificate
        | AlertDescription::NoCertificate => {
            "it wants to see a certificate that it trusts: set ssl.certificate.location and \
             ssl.key.location"
        }
        AlertDescription::UnknownCA | AlertDescription::CertificateUnknown => {
            "it does not trust our certificate: have it signed by an authority that the broker \
             trusts"
        }
        AlertDescription::CertificateExpired => "our certificate has expired: renew it",
        AlertDescription::CertificateRevoked => "our certificate was revoked: get another",
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.2 nor TLS 1.3",
        AlertDescription::HandshakeFailure => {
            "the two have no cipher in common, or it wants to see a certificate"
        }
        _ => "look at the broker's log",
    }
}

/// Where certificates are to be trusted.
type Roots = RootCertStore;

#[cfg(test)]
mod tests;
