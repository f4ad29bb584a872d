//! What can go wrong before a run begins, and in asking a running one.
//!
//! What happens while a run goes on is not here: that is an
//! [`Event`](crate::Event), or ends the run with a
//! [`StopReason`](crate::StopReason).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings are wrong; nothing was started. All problems at once.
    #[error("{}", list(.0))]
    InvalidSettings(Vec<Problem>),
    /// No broker answered in time.
    #[error(
        "no contact with the cluster at {bootstrap} within {timeout:?}: {last_error}; check the \
         address and that a broker listens there, or allow more time"
    )]
    NoContact {
        /// The addresses that were tried.
        bootstrap: String,
        /// How long.
        timeout: Duration,
        /// What the last attempt said.
        last_error: String,
    },
    /// The cluster does not have these topics.
    #[error(
        "unknown topic {}: the cluster does not have it, and keepup creates none; check the name \
         or create it first",
        .topics.join(", ")
    )]
    UnknownTopic {
        /// Their names.
        topics: Vec<String>,
    },
    /// The cluster does not let us use what we need.
    #[error("not authorized for {what}: {remedy}")]
    NotAuthorized {
        /// Which topic or group.
        what: String,
        /// What to grant.
        remedy: String,
    },
    /// The brokers and this program do not trust each other: a certificate, a
    /// user name or a password is wrong, or one side speaks TLS or SASL and the
    /// other does not.
    #[error("no secure connection to the cluster at {bootstrap}: {reason}")]
    Insecure {
        /// The addresses that were tried.
        bootstrap: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The broker refuses for another reason.
    #[error("the broker refuses: {message}")]
    Refused {
        /// What it said, and what to do.
        message: String,
    },
    /// The Kafka client could not be made.
    #[error("the Kafka client could not be made: {message}")]
    Client {
        /// What it said.
        message: String,
    },
    /// The endpoints cannot be served at the address that was given; nothing was
    /// started.
    #[error("cannot listen at {address}: {source}; {}", listen_remedy(.source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's answer.
        source: io::Error,
    },
    /// This program cannot be started again as its own worker
    /// ([`Model::Processes`](crate::Model::Processes)).
    #[error("no worker processes: {why}; {remedy}")]
    NoWorkerProcesses {
        /// Why not.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The operating system refused a thread, a socket or a signal handler.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Error {
    /// The exit code that the command ends with: 2 for wrong settings and an
    /// address that cannot be listened at, 4 for no contact, else 1.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::InvalidSettings(_) | Self::Listen { .. } | Self::NoWorkerProcesses { .. } => 2,
            Self::NoContact { .. } => 4,
            _ => 1,
        }
    }
}

/// What helps against an address that cannot be listened at.
fn listen_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "another program uses that port: give another",
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address: give one that it has"
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not listen at ports that low: give one from 1024 up"
        }
        io::ErrorKind::Unsupported => "build it with that feature, or listen nowhere",
        _ => "give another address",
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [only] => only.to_string(),
        many => {
            let mut text = format!("{} settings are wrong:", many.len());
            for problem in many {
                text.push_str("\n  ");
                text.push_str(&problem.to_string());
            }
            text
        }
    }
}

/// One thing that is wrong with the settings: what was given, the rule that it
/// breaks, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The setting's name.
    pub setting: String,
    /// What was given.
    pub value: String,
    /// The rule that it breaks.
    pub rule: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    pub(crate) fn new(
        setting: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            setting: setting.into(),
            value: value.to_string(),
            rule: rule.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} = {}: {}; {}",
            self.setting, self.value, self.rule, self.remedy
        )
    }
}

/// Why a command on a handle was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The run has ended.
    #[error("the run has ended; wait() tells how")]
    RunEnded,
    /// The runtime did not take the command in time; it may still be carried
    /// out.
    #[error("the runtime did not answer within {0:?}; the command may still be carried out")]
    TimedOut(Duration),
    /// The partition is not assigned to this process.
    #[error("{0} is not assigned to this process; only its owner can do that")]
    NotAssigned(crate::TopicPartition),
    /// What was asked for breaks a rule.
    #[error("{0}")]
    Invalid(Problem),
}
