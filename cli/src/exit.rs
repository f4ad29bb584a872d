//! How the command ends: the one place where results and errors become exit
//! codes and last words.
//!
//! | code | when |
//! |---|---|
//! | 0 | did what was asked; a stop by signal that drained; a closed pipe |
//! | 1 | failed while running, or refused by the broker at the start |
//! | 2 | usage or configuration, an address in use included: nothing was started |
//! | 3 | stopped with work left uncommitted: it is delivered again |
//! | 4 | no contact with the cluster at the start |
//!
//! A third signal ends the process with 130 or 143 before it gets here.

use std::io;
use std::process::ExitCode;

use keepup::{Report, StopReason};

use crate::output::{is_closed_pipe, say};
use crate::problem::Problem;

/// How a command ended that did not fail to start.
#[derive(Debug)]
pub(crate) enum Ending {
    /// What was asked for was printed.
    Printed,
    /// A run ended; `stdout` is what ended its output early, if anything.
    Ran {
        report: Box<Report>,
        stdout: Option<io::Error>,
    },
    /// The demo ended, with that many records lost.
    DemoRan { lost: u64 },
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// clap's answer: wrong usage, or help or version.
    Usage(clap::Error),
    /// The configuration is wrong. Already told where `told` is true.
    Problems { problems: Vec<Problem>, told: bool },
    /// The library did not start.
    Start(keepup::Error),
    /// A result could not be written.
    Output(io::Error),
    /// The operating system refused something.
    System {
        what: &'static str,
        source: io::Error,
    },
    /// The demo could not be carried out.
    Demo(String),
}

impl From<Vec<Problem>> for Failure {
    fn from(problems: Vec<Problem>) -> Self {
        Self::Problems {
            problems,
            told: false,
        }
    }
}

impl From<keepup::Error> for Failure {
    fn from(error: keepup::Error) -> Self {
        match error {
            keepup::Error::InvalidSettings(problems) => {
                Self::from(problems.iter().map(Problem::from).collect::<Vec<_>>())
            }
            other => Self::Start(other),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The exit code.
pub(crate) fn code(result: &Result<Ending, Failure>) -> u8 {
    match result {
        Ok(Ending::Printed) => 0,
        Ok(Ending::Ran { report, stdout }) => ran(report, stdout.as_ref()),
        Ok(Ending::DemoRan { lost }) => u8::from(*lost > 0),
        // Help and version are asked for by an "error" that ends with 0.
        Err(Failure::Usage(error)) => small(error.exit_code()),
        Err(Failure::Problems { .. }) => 2,
        Err(Failure::Start(error)) => small(error.exit_code()),
        Err(Failure::Output(error)) => u8::from(!is_closed_pipe(error)),
        Err(Failure::System { .. } | Failure::Demo(_)) => 1,
    }
}

fn ran(report: &Report, stdout: Option<&io::Error>) -> u8 {
    match stdout {
        Some(error) if !is_closed_pipe(error) => 1,
        Some(_) if stopped_by_handler(report) => 0,
        _ => small(report.exit_code()),
    }
}

/// True where a built-in handler stopped the run, which they do only when
/// stdout cannot be written any more.
pub(crate) fn stopped_by_handler(report: &Report) -> bool {
    matches!(report.reason, StopReason::HandlerStop { .. })
}

/// Exit codes are bytes; one that is none is a failure.
fn small(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

/// The last words, on stderr: what went wrong.
pub(crate) fn tell(failure: &Failure) {
    match failure {
        Failure::Usage(error) => {
            // To stdout or stderr, as it befits; a closed pipe has no reader.
            let _ = error.print();
        }
        Failure::Problems { told: true, .. } => {}
        Failure::Problems { problems, .. } => {
            for problem in problems {
                say(&format!("error: {problem}\n"));
            }
        }
        // The library says what to give, and does not know the option.
        Failure::Start(error @ keepup::Error::Listen { .. }) => {
            say(&format!("error: {error} with --listen\n"));
        }
        Failure::Start(error) => say(&format!("error: {error}\n")),
        Failure::Output(error) if is_closed_pipe(error) => {}
        Failure::Output(error) => say(&format!("error: stdout cannot be written: {error}\n")),
        Failure::System { what, source } => say(&format!("error: cannot {what}: {source}\n")),
        Failure::Demo(message) => say(&format!("error: {message}\n")),
    }
}

/// Ends the process's main function.
pub(crate) fn conclude(result: &Result<Ending, Failure>) -> ExitCode {
    if let Err(failure) = result {
        tell(failure);
    }
    ExitCode::from(code(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::time::Duration;

    #[test]
    fn every_failure_has_its_code() {
        let no_contact = keepup::Error::NoContact {
            bootstrap: "localhost:1".into(),
            timeout: Duration::from_secs(10),
            last_error: "connection refused".into(),
        };
        let unknown = keepup::Error::UnknownTopic {
            topics: vec!["orders".into()],
        };
        let invalid = keepup::Error::InvalidSettings(Vec::new());
        let in_use = keepup::Error::Listen {
            address: ([127, 0, 0, 1], 9464).into(),
            source: io::Error::from(ErrorKind::AddrInUse),
        };
        for (failure, expected) in [
            (Failure::from(Vec::new()), 2),
            (Failure::from(invalid), 2),
            (Failure::from(in_use), 2),
            (Failure::from(no_contact), 4),
            (Failure::from(unknown), 1),
            (Failure::from(io::Error::from(ErrorKind::BrokenPipe)), 0),
            (Failure::from(io::Error::from(ErrorKind::StorageFull)), 1),
            (Failure::Demo("no cluster".into()), 1),
        ] {
            let text = format!("{failure:?}");
            assert_eq!(code(&Err(failure)), expected, "{text}");
        }
    }

    #[test]
    fn a_demo_that_lost_something_fails() {
        assert_eq!(code(&Ok(Ending::DemoRan { lost: 0 })), 0);
        assert_eq!(code(&Ok(Ending::DemoRan { lost: 3 })), 1);
    }
}
