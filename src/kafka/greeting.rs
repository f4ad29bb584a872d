//! What is said on a connection before it takes requests, and who we are said
//! again before a broker forgets it.
//!
//! A function of answers: it writes a request and is told the answer, until the
//! connection is open. So the blocking [`Connection`] and the event loop of the
//! fetch source greet alike, and the greeting is tested without either.
//!
//! ```text
//! ApiVersions 3 (0 where that is not known)
//!   → SaslHandshake → SaslAuthenticate, as often as the mechanism wants   (with SASL)
//!   → open
//! ```
//!
//! Where the broker limits an authentication (KIP-368), the two last steps are
//! repeated on the open connection, between two requests, when 85 to 95 percent
//! of the time have passed; a broker closes what asks for anything else after
//! the time.
//!
//! [`Connection`]: super::connection::Connection

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::errors::ErrorCode;
use super::frame::{self, FIRST_API_VERSIONS, Negotiated, WireError};
use super::messages::{
    Api, ApiVersions, ApiVersionsRequest, Request, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use super::sasl::{Credentials, Exchange, SaslFault};
use super::security::Security;

const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;

/// The share of an authentication's lifetime after which it is renewed begins
/// here, and is as wide as [`SPREAD`]: as in Kafka's own client, so that not
/// all connections do it at once.
const RENEW_FROM: f64 = 0.85;
const SPREAD: f64 = 0.10;

/// How far the greeting of a connection is.
#[derive(Debug)]
pub(crate) struct Greeting {
    credentials: Option<Arc<Credentials>>,
    step: Step,
    versions: ApiVersions,
    renew_at: Option<Instant>,
    was_open: bool,
}

#[derive(Debug)]
enum Step {
    /// In this version.
    Versions(i16),
    Handshake,
    Authenticate {
        exchange: Exchange,
        message: Message,
    },
    Open,
}

/// A mechanism's message, which may be a password.
struct Message(Vec<u8>);

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Why a greeting came to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GreetingFault {
    Wire(WireError),
    Sasl(SaslFault),
}

impl From<WireError> for GreetingFault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<SaslFault> for GreetingFault {
    fn from(fault: SaslFault) -> Self {
        Self::Sasl(fault)
    }
}

/// What an answer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeted {
    /// The next request is to be written.
    GoOn,
    /// The connection takes requests, for the first time.
    Open,
    /// The broker was told again who we are, and the connection takes requests
    /// as before.
    OpenAgain,
}

impl Greeting {
    pub(crate) fn new(security: &Security) -> Self {
        Self {
            credentials: security.sasl.clone(),
            step: Step::Versions(FIRST_API_VERSIONS),
            versions: ApiVersions::default(),
            renew_at: None,
            was_open: false,
        }
    }

    /// Whether the connection takes requests.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.step, Step::Open)
    }

    /// The versions that the broker speaks.
    pub(crate) fn versions(&self) -> &ApiVersions {
        &self.versions
    }

    /// Begins to authenticate again where it is time to; true where requests are
    /// to be written as at the beginning.
    pub(crate) fn renew_if_due(&mut self, now: Instant) -> bool {
        let is_due = self.is_over() && self.renew_at.is_some_and(|moment| moment <= now);
        if is_due {
            self.step = Step::Handshake;
        }
        is_due
    }

    /// Appends the next request to `out`.
    pub(crate) fn write(
        &mut self,
        correlation: i32,
        client_id: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), GreetingFault> {
        match &self.step {
            Step::Versions(version) => {
                frame::encode(&ApiVersionsRequest, *version, correlation, client_id, out)?;
            }
            Step::Handshake => {
                let mechanism = self
                    .credentials
                    .as_ref()
                    .map_or("", |credentials| credentials.mechanism.name());
                self.put(
                    &SaslHandshakeRequest { mechanism },
                    correlation,
                    client_id,
                    out,
                )?;
            }
            Step::Authenticate { message, .. } => {
                let request = SaslAuthenticateRequest {
                    message: &message.0,
                };
                self.put(&request, correlation, client_id, out)?;
            }
            Step::Open => {}
        }
        Ok(())
    }

    fn put<R: Request>(
        &self,
        request: &R,
        correlation: i32,
        client_id: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), WireError> {
        let version = self.versions.pick(R::API)?;
        frame::encode(request, version, correlation, client_id, out)
    }

    /// Takes the answer to what was written last. `random`, from 0 to 1, says
    /// where in its spread the next authentication lies.
    pub(crate) fn answer(
        &mut self,
        frame: Bytes,
        correlation: i32,
        now: Instant,
        random: f64,
    ) -> Result<Greeted, GreetingFault> {
        let next = match (
            std::mem::replace(&mut self.step, Step::Open),
            &self.credentials,
        ) {
            (Step::Versions(version), credentials) => {
                match frame::decode_api_versions(frame, version, correlation)? {
                    Negotiated::AskVersionZero => Step::Versions(0),
                    Negotiated::Versions(versions) => {
                        self.versions = versions;
                        match credentials {
                            Some(_) => Step::Handshake,
                            None => Step::Open,
                        }
                    }
                }
            }
            (Step::Handshake, Some(credentials)) => {
                self.agree(frame, correlation, credentials)?;
                let (exchange, message) = Exchange::begin(credentials)?;
                Step::Authenticate {
                    exchange,
                    message: Message(message),
                }
            }
            (Step::Authenticate { mut exchange, .. }, Some(credentials)) => {
                let (message, lifetime) = self.heard(frame, correlation, credentials)?;
                if let Some(message) = exchange.answer(&message)? {
                    Step::Authenticate {
                        exchange,
                        message: Message(message),
                    }
                } else {
                    self.renew_at = lifetime.map(|lifetime| {
                        let share = RENEW_FROM + SPREAD * random.clamp(0.0, 1.0);
                        now + lifetime.min(LONGEST).mul_f64(share)
                    });
                    Step::Open
                }
            }
            // Nothing was asked, or by nobody.
            (Step::Handshake | Step::Authenticate { .. } | Step::Open, _) => {
                return Err(GreetingFault::Wire(WireError::OutOfStep {
                    expected: correlation,
                    got: correlation,
                }));
            }
        };
        self.step = next;
        if !self.is_over() {
            return Ok(Greeted::GoOn);
        }
        Ok(if std::mem::replace(&mut self.was_open, true) {
            Greeted::OpenAgain
        } else {
            Greeted::Open
        })
    }

    /// Whether the broker takes our mechanism.
    fn agree(
        &self,
        frame: Bytes,
        correlation: i32,
        credentials: &Credentials,
    ) -> Result<(), GreetingFault> {
        let version = self.versions.pick(Api::SaslHandshake)?;
        let answer = frame::decode::<SaslHandshakeRequest>(frame, version, correlation)?;
        match answer.error {
            0 => Ok(()),
            UNSUPPORTED_SASL_MECHANISM => Err(SaslFault::Mechanism {
                mechanism: credentials.mechanism.name(),
                offered: answer.mechanisms,
            }
            .into()),
            ILLEGAL_SASL_STATE => Err(SaslFault::NoSasl.into()),
            code => Err(refused(code, None, credentials)),
        }
    }

    /// The broker's message, and how long an authentication holds.
    fn heard(
        &self,
        frame: Bytes,
        correlation: i32,
        credentials: &Credentials,
    ) -> Result<(Bytes, Option<Duration>), GreetingFault> {
        let version = self.versions.pick(Api::SaslAuthenticate)?;
        let answer = frame::decode::<SaslAuthenticateRequest<'_>>(frame, version, correlation)?;
        if answer.error != 0 {
            return Err(refused(answer.error, answer.error_message, credentials));
        }
        Ok((answer.message, answer.lifetime))
    }
}

/// Longer than any run between two requests; keeps moments from overflowing.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// Of a broker's message, as much as anybody reads.
const MESSAGE_LENGTH: usize = 300;

fn refused(code: i16, message: Option<String>, credentials: &Credentials) -> GreetingFault {
    let error = ErrorCode::from_code(code);
    if let Some(error) = error.filter(|error| error.class.passes()) {
        return SaslFault::Unavailable(error).into();
    }
    SaslFault::Refused {
        mechanism: credentials.mechanism.name(),
        username: credentials.username.clone(),
        message: message
            .filter(|message| !message.is_empty())
            .map(|message| message.chars().take(MESSAGE_LENGTH).collect())
            .or(error.map(|error| format!("{} (code {})", error.name, error.code)))
            .unwrap_or_default(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages as kafka;
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;
    use crate::clock::Clock;
    use crate::kafka::sasl::Mechanism;

    fn user() -> Security {
        Security {
            tls: None,
            sasl: Some(Arc::new(Credentials {
                mechanism: Mechanism::Plain,
                username: "me".to_owned(),
                password: "hunter2".to_owned(),
            })),
        }
    }

    /// An answer to request number 7 without tags in its header.
    fn framed<M: Encodable>(body: &M, version: i16) -> Bytes {
        let mut frame = 7_i32.to_be_bytes().to_vec();
        body.encode(&mut frame, version).unwrap();
        Bytes::from(frame)
    }

    fn versions(apis: &[(i16, i16, i16)]) -> Bytes {
        use kafka::api_versions_response::ApiVersion;

        let apis = apis.iter().map(|&(key, min, max)| {
            ApiVersion::default()
                .with_api_key(key)
                .with_min_version(min)
                .with_max_version(max)
        });
        framed(
            &kafka::ApiVersionsResponse::default().with_api_keys(apis.collect()),
            3,
        )
    }

    fn all_versions() -> Bytes {
        versions(&[(1, 4, 16), (17, 0, 1), (36, 0, 1)])
    }

    fn handshake(error: i16) -> Bytes {
        let offered = ["PLAIN", "SCRAM-SHA-512"].map(StrBytes::from_static_str);
        framed(
            &kafka::SaslHandshakeResponse::default()
                .with_error_code(error)
                .with_mechanisms(offered.to_vec()),
            1,
        )
    }

    fn authenticated(error: i16, message: Option<&str>, lifetime: i64) -> Bytes {
        framed(
            &kafka::SaslAuthenticateResponse::default()
                .with_error_code(error)
                .with_error_message(message.map(|text| StrBytes::from_string(text.to_owned())))
                .with_session_lifetime_ms(lifetime),
            1,
        )
    }

    /// Which request is written next, and its bytes.
    fn next(greeting: &mut Greeting) -> (i16, Vec<u8>) {
        let mut out = Vec::new();
        greeting.write(7, "client", &mut out).unwrap();
        (i16::from_be_bytes([out[4], out[5]]), out)
    }

    fn answer(greeting: &mut Greeting, frame: Bytes, now: Instant) -> Greeted {
        greeting.answer(frame, 7, now, 0.5).unwrap()
    }

    fn refused(greeting: &mut Greeting, frame: Bytes) -> SaslFault {
        match greeting.answer(frame, 7, Clock::System.now(), 0.5) {
            Err(GreetingFault::Sasl(fault)) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_user_the_versions_are_all_that_is_asked() {
        let now = Clock::System.now();
        let mut greeting = Greeting::new(&Security::default());
        assert_eq!(next(&mut greeting).0, 18);
        assert_eq!(answer(&mut greeting, all_versions(), now), Greeted::Open);
        assert_eq!(greeting.versions().pick(Api::Fetch), Ok(16));
        assert!(!greeting.renew_if_due(now + LONGEST));
        assert!(greeting.answer(all_versions(), 7, now, 0.5).is_err());
    }

    #[test]
    fn a_user_names_the_mechanism_and_then_proves() {
        let now = Clock::System.now();
        let mut greeting = Greeting::new(&user());
        assert_eq!(next(&mut greeting).0, 18);
        // A broker that does not know the first question's version.
        let old = Bytes::from_static(&[0, 0, 0, 7, 0, 35, 9]);
        assert_eq!(answer(&mut greeting, old, now), Greeted::GoOn);
        let (api, bytes) = next(&mut greeting);
        assert_eq!((api, bytes[7]), (18, 0));
        let mut zero = 7_i32.to_be_bytes().to_vec();
        zero.extend([0, 0, 0, 0, 0, 2, 0, 17, 0, 0, 0, 1, 0, 36, 0, 0, 0, 1]);
        assert_eq!(answer(&mut greeting, zero.into(), now), Greeted::GoOn);
        let (api, bytes) = next(&mut greeting);
        assert!(api == 17 && bytes.ends_with(b"PLAIN"));
        assert_eq!(answer(&mut greeting, handshake(0), now), Greeted::GoOn);
        let (api, bytes) = next(&mut greeting);
        assert!(api == 36 && bytes.ends_with(b"\0me\0hunter2"));
        let shown = format!("{greeting:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("104, 117, 110"),
            "{shown}"
        );
        assert!(!greeting.is_over());
        let done = authenticated(0, None, 0);
        assert_eq!(answer(&mut greeting, done, now), Greeted::Open);
        assert!(greeting.is_over() && !greeting.renew_if_due(now + LONGEST));
    }

    #[test]
    fn who_we_are_is_said_again_after_85_to_95_percent_of_the_time() {
        let now = Clock::System.now();
        let percent = |percent: u64| now + Duration::from_secs(36 * percent);
        for (random, early, late) in [(0.0, 84, 86), (0.5, 89, 91), (1.0, 94, 96)] {
            let mut greeting = Greeting::new(&user());
            answer(&mut greeting, all_versions(), now);
            answer(&mut greeting, handshake(0), now);
            let done = authenticated(0, None, 3_600_000);
            let greeted = greeting.answer(done.clone(), 7, now, random);
            assert_eq!(greeted, Ok(Greeted::Open));
            assert!(!greeting.renew_if_due(percent(early)), "{random}");
            assert!(greeting.renew_if_due(percent(late)), "{random}");
            assert!(!greeting.is_over() && !greeting.renew_if_due(percent(late)));
            // The versions are known: they are not asked for again.
            assert_eq!(next(&mut greeting).0, 17);
            answer(&mut greeting, handshake(0), percent(late));
            assert_eq!(next(&mut greeting).0, 36);
            let again = answer(&mut greeting, done, percent(late));
            assert_eq!(again, Greeted::OpenAgain);
            assert!(!greeting.renew_if_due(percent(late)));
            assert!(greeting.renew_if_due(percent(late + 91)));
        }
        // As far away as a broker can say.
        let mut greeting = Greeting::new(&user());
        answer(&mut greeting, all_versions(), now);
        answer(&mut greeting, handshake(0), now);
        let greeted = answer(&mut greeting, authenticated(0, None, i64::MAX), now);
        assert_eq!(greeted, Greeted::Open);
    }

    #[test]
    fn a_broker_that_refuses_is_quoted_and_the_password_is_not() {
        let begun = |answers: &[Bytes]| {
            let mut greeting = Greeting::new(&user());
            for frame in answers {
                answer(&mut greeting, frame.clone(), Clock::System.now());
            }
            greeting
        };
        let fault = refused(&mut begun(&[all_versions()]), handshake(33));
        assert!(
            fault.to_string().contains("PLAIN, SCRAM-SHA-512"),
            "{fault}"
        );
        let fault = refused(&mut begun(&[all_versions()]), handshake(34));
        assert_eq!(fault, SaslFault::NoSasl);
        let agreed = [all_versions(), handshake(0)];
        let long = "no ".repeat(MESSAGE_LENGTH);
        for (message, shown) in [
            (Some("Invalid username"), "Invalid username"),
            (Some(&*long), "no no"),
            (None, "SASL_AUTHENTICATION_FAILED"),
        ] {
            let fault = refused(&mut begun(&agreed), authenticated(58, message, 0));
            let text = fault.to_string();
            assert!(fault.is_refusal() && text.len() < 2 * MESSAGE_LENGTH);
            assert!(text.contains("\"me\"") && text.contains(shown), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        // The broker's own trouble passes.
        let fault = refused(&mut begun(&agreed), authenticated(7, None, 0));
        assert!(!fault.is_refusal(), "{fault}");
    }

    #[test]
    fn a_broker_without_sasl_requests_is_told_by_its_versions() {
        let mut greeting = Greeting::new(&user());
        let now = Clock::System.now();
        answer(&mut greeting, versions(&[(1, 4, 16), (17, 0, 0)]), now);
        let fault = greeting.write(7, "client", &mut Vec::new());
        assert!(
            matches!(
                fault,
                Err(GreetingFault::Wire(WireError::NoCommonVersion {
                    api: Api::SaslHandshake,
                    ..
                }))
            ),
            "{fault:?}"
        );
    }
}
