//! The first contact: what is wrong is told before anything is started.
//!
//! A wrong address, a topic that does not exist and a missing permission are
//! mistakes of whoever starts the program, and that is when they want to hear
//! of them. Later the same conditions are weathered: then the cluster has
//! changed, not the configuration.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::never;

use super::session::{AskError, Session};
use super::start::{LookupError, Resource, Trouble};
use super::topics::UNKNOWN_TOPIC;
use crate::clock::Clock;
use crate::kafka::ConnectionSettings;
use crate::kafka::ask_client::ClientError;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{Cluster, ClusterSnapshot};
use crate::kafka::connection::{ConnectionError, StopFlag};
use crate::kafka::errors::{Class, ErrorCode};
use crate::kafka::frame::WireError;

/// Why the program cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContactError {
    /// None of the brokers answered in time.
    #[error("no contact with Kafka at {bootstrap} within {waited:?}: {last}")]
    NoContact {
        bootstrap: String,
        waited: Duration,
        last: String,
    },
    /// The cluster does not know these topics.
    #[error(
        "the cluster at {bootstrap} does not know {}: create them, correct the name, or grant DESCRIBE on them",
        list(topics)
    )]
    UnknownTopics {
        bootstrap: String,
        topics: Vec<Arc<str>>,
    },
    /// A permission is missing.
    #[error("not authorized for {resource}: {}", error.remedy)]
    NotAuthorized {
        resource: Resource,
        error: ErrorCode,
    },
    /// The cluster refuses for a reason that does not pass.
    #[error("the cluster at {bootstrap} refuses: {error}")]
    Refused { bootstrap: String, error: ErrorCode },
    /// The brokers are of a version that keepup does not speak with.
    #[error("the cluster at {bootstrap} cannot be used: {error}")]
    WrongVersion { bootstrap: String, error: WireError },
    /// The two ends do not trust each other.
    #[error("no secure connection to the cluster at {bootstrap}: {reason}")]
    Insecure { bootstrap: String, reason: String },
    /// It was stopped meanwhile.
    #[error("stopped before the first contact with Kafka")]
    Stopped,
}

fn list(topics: &[Arc<str>]) -> String {
    let word = if topics.len() == 1 { "topic" } else { "topics" };
    format!("{word} {}", topics.join(", "))
}

/// A topic that was created a moment ago is not known to every broker yet.
const UNKNOWN_GRACE: Duration = Duration::from_secs(2);

/// What the last try gets, which begins when the time is up.
const LAST_TRY: Duration = Duration::from_millis(100);

const RETRY: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_millis(500),
};

/// Makes contact, publishes what is found to `cluster` and checks that `topics`
/// exist and that they and the group may be asked for. Waits `timeout` at most;
/// without topics (a pattern) only contact is checked.
///
/// # Errors
///
/// [`ContactError`], each with what to do about it. A group coordinator that is
/// not ready is no error: that passes.
pub(crate) fn first_contact(
    settings: &ConnectionSettings,
    clock: &Clock,
    cluster: &Cluster,
    topics: &[Arc<str>],
    timeout: Duration,
    stop: &StopFlag,
) -> Result<(), ContactError> {
    let begin = clock.now();
    let deadline = begin + timeout;
    let bootstrap = settings.bootstrap.join(",");
    let no_contact = |last: String| ContactError::NoContact {
        bootstrap: bootstrap.clone(),
        waited: timeout,
        last,
    };
    let group = settings.group.clone();
    let mut session = Session::new(
        settings.clone(),
        clock.clone(),
        cluster.clone(),
        stop.clone(),
    )
    .map_err(|error| no_contact(error.to_string()))?;
    let wanted: BTreeSet<Arc<str>> = topics.iter().cloned().collect();

    let mut failures = 0;
    loop {
        // A single wait must not outlast the whole.
        let left = deadline
            .saturating_duration_since(clock.now())
            .max(LAST_TRY);
        session.settings.request_timeout = settings.request_timeout.min(left);
        session.settings.connect_timeout = settings.connect_timeout.min(left);
        let verdict = match session.refresh(&wanted) {
            Ok(_) => judge(&cluster.snapshot(), &wanted, &bootstrap),
            Err(error) if error.is_stop() => return Err(ContactError::Stopped),
            Err(AskError::Client(ClientError::Refused(reason))) => {
                Verdict::Never(ContactError::Insecure {
                    bootstrap: bootstrap.clone(),
                    reason,
                })
            }
            Err(AskError::Failed(ConnectionError::Wire {
                error: error @ WireError::NoCommonVersion { .. },
                ..
            })) => Verdict::Never(ContactError::WrongVersion {
                bootstrap: bootstrap.clone(),
                error,
            }),
            Err(AskError::Failed(error)) if error.is_refusal() => {
                Verdict::Never(ContactError::Insecure {
                    bootstrap: bootstrap.clone(),
                    reason: error.to_string(),
                })
            }
            Err(error) => Verdict::Perhaps(no_contact(error.to_string())),
        };
        let now = clock.now();
        match verdict {
            Verdict::Fine => break,
            Verdict::Never(error) => return Err(error),
            Verdict::Perhaps(error) => {
                let grace = match error {
                    ContactError::UnknownTopics { .. } => deadline.min(begin + UNKNOWN_GRACE),
                    _ => deadline,
                };
                failures += 1;
                let left = grace.saturating_duration_since(now);
                if left.is_zero() {
                    return Err(error);
                }
                pause(RETRY.random_delay(failures).min(left), clock, stop)?;
            }
        }
    }
    if let Some(group) = group {
        check_group(&mut session, &group, deadline, &bootstrap)?;
    }
    Ok(())
}

enum Verdict {
    Fine,
    Perhaps(ContactError),
    Never(ContactError),
}

/// What a first look at the topics says.
fn judge(snapshot: &ClusterSnapshot, wanted: &BTreeSet<Arc<str>>, bootstrap: &str) -> Verdict {
    let mut unknown = Vec::new();
    for topic in wanted {
        let code = snapshot
            .topics
            .get(topic)
            .map_or(UNKNOWN_TOPIC, |state| state.error);
        let Some(error) = ErrorCode::from_code(code) else {
            continue;
        };
        match error.class {
            Class::Authorization => {
                return Verdict::Never(ContactError::NotAuthorized {
                    resource: Resource::Topic(Arc::clone(topic)),
                    error,
                });
            }
            _ if code == UNKNOWN_TOPIC => unknown.push(Arc::clone(topic)),
            Class::Unknown => {
                return Verdict::Perhaps(ContactError::Refused {
                    bootstrap: bootstrap.to_owned(),
                    error,
                });
            }
            // It exists, and its leaders are being elected.
            class if class.passes() => {}
            _ => {
                return Verdict::Never(ContactError::Refused {
                    bootstrap: bootstrap.to_owned(),
                    error,
                });
            }
        }
    }
    if unknown.is_empty() {
        Verdict::Fine
    } else {
        Verdict::Perhaps(ContactError::UnknownTopics {
            bootstrap: bootstrap.to_owned(),
            topics: unknown,
        })
    }
}

/// Finds the group's coordinator, for the sake of the permission: a coordinator
/// that is not ready by the deadline will be.
fn check_group(
    session: &mut Session,
    group: &str,
    deadline: Instant,
    bootstrap: &str,
) -> Result<(), ContactError> {
    let mut failures = 0;
    loop {
        match session.check_group(group) {
            Ok(()) => return Ok(()),
            Err(Trouble::Final(LookupError::NotAuthorized { resource, error })) => {
                return Err(ContactError::NotAuthorized { resource, error });
            }
            Err(Trouble::Final(LookupError::Refused { error })) => {
                return Err(ContactError::Refused {
                    bootstrap: bootstrap.to_owned(),
                    error,
                });
            }
            Err(Trouble::Passing(problem)) => {
                failures += 1;
                let wait = RETRY.random_delay(failures);
                if session.clock.now() + wait >= deadline {
                    tracing::warn!(group, %problem, "the group has no coordinator yet");
                    return Ok(());
                }
                pause(wait, &session.clock.clone(), &session.stop.clone())?;
            }
        }
    }
}

/// Waits, unless it is stopped.
pub(super) fn pause(wait: Duration, clock: &Clock, stop: &StopFlag) -> Result<(), ContactError> {
    const SLICE: Duration = Duration::from_millis(50);
    let until = clock.now() + wait;
    loop {
        if stop.is_stopped() {
            return Err(ContactError::Stopped);
        }
        let left = until.saturating_duration_since(clock.now());
        if left.is_zero() {
            return Ok(());
        }
        // Nobody sends: this waits for time alone.
        let _ = never::<()>().recv_timeout(left.min(SLICE));
    }
}
