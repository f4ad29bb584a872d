//! What is started as a worker, how it knows that it is one, and where that is
//! refused.
//!
//! A worker is this executable again, with the same arguments. It is told by a
//! variable of the environment, and has the socket to its parent as its standard
//! input: that is the one descriptor that a program can be given without either
//! side being unsafe, and the only one that nothing has to be closed for. What
//! the worker starts inherits the variable; it is not a worker, since its
//! standard input is no socket whose other end its parent holds.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::Error;

/// The number of the parent.
const VARIABLE: &str = "KEEPUP_WORKER";

/// What a process of a run is started from.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    program: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
}

impl Launcher {
    /// This executable with its arguments.
    ///
    /// # Errors
    ///
    /// Where nobody knows which executable that is, and where it is one that
    /// does something else than to come here again: cargo's test and benchmark
    /// programs run every test in it.
    pub(crate) fn new() -> Result<Self, Error> {
        let file = std::env::current_exe().map_err(|source| Error::System {
            what: "find the executable that worker processes are started from",
            source,
        })?;
        if is_harness(&file) {
            return Err(Error::NoWorkerProcesses {
                why: format!(
                    "{} is a test or benchmark program of cargo: started again as a worker it would \
                     run its tests",
                    file.display()
                ),
                remedy: "use Model::Threads in tests, or test the program itself",
            });
        }
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| file.clone().into());
        Ok(Self {
            program: program(file),
            name,
            arguments: arguments.collect(),
        })
    }

    /// A shell that does that instead of what a worker does.
    #[cfg(test)]
    pub(crate) fn of_shell(script: &str) -> Self {
        Self {
            program: "/bin/sh".into(),
            name: "sh".into(),
            arguments: ["-c", script].map(OsString::from).into(),
        }
    }

    #[cfg(test)]
    pub(crate) fn replace_program(&mut self, program: &str) {
        self.program = program.into();
    }

    /// Starts a worker, whose standard output is `stdout`; gives it and this end of
    /// the line to it.
    pub(crate) fn launch(&self, stdout: Stdio) -> std::io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&self.program);
        let child = command
            .arg0(&self.name)
            .args(&self.arguments)
            .env(VARIABLE, std::process::id().to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(stdout)
            // So that a Ctrl-C in the terminal reaches the parent alone, and that
            // what a worker leaves behind is found.
            .process_group(0)
            .spawn()?;
        Ok((child, ours))
    }
}

/// What is executed. On Linux not the file's name but the file itself: one that
/// is replaced or deleted meanwhile would be another program, or none.
fn program(file: PathBuf) -> PathBuf {
    let itself = Path::new("/proc/self/exe");
    if cfg!(target_os = "linux") && itself.exists() {
        itself.to_owned()
    } else {
        file
    }
}

/// Whether cargo made it as a test or benchmark: `deps/name-0123456789abcdef`.
fn is_harness(file: &Path) -> bool {
    /// Digits that cargo tells its builds apart by.
    const DIGITS: usize = 16;
    let folder = file.parent().and_then(Path::file_name);
    let digits = file
        .file_stem()
        .and_then(OsStr::to_str)
        .and_then(|stem| stem.rsplit_once('-'))
        .map_or("", |(_, digits)| digits);
    folder == Some(OsStr::new("deps"))
        && digits.len() == DIGITS
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether this process was started as a worker.
pub(crate) fn is_worker() -> bool {
    let parent = std::env::var(VARIABLE).ok();
    parent.is_some_and(|parent| TAKEN.get().is_some() || has_line_to(&parent))
}

/// Whether standard input is the line to the process of that number.
#[cfg(target_os = "linux")]
fn has_line_to(parent: &str) -> bool {
    rustix::net::sockopt::socket_peercred(std::io::stdin().as_fd())
        .is_ok_and(|peer| Ok(peer.pid.as_raw_nonzero().get()) == parent.parse())
}

#[cfg(not(target_os = "linux"))]
fn has_line_to(parent: &str) -> bool {
    Ok(std::os::unix::process::parent_id()) == parent.parse()
}

/// The line to the parent. Standard input is empty from then on.
///
/// # Errors
///
/// Where the system refuses, and where it was taken before: the program calls
/// `run` twice.
pub(crate) fn take_line() -> std::io::Result<UnixStream> {
    if TAKEN.set(()).is_err() {
        return Err(std::io::Error::other(
            "the line to the parent is taken: one run with Model::Processes per program",
        ));
    }
    let line = std::io::stdin().as_fd().try_clone_to_owned()?;
    // What the handler starts must not have the line as its standard input.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(line))
}

/// Set once the line was taken from standard input.
static TAKEN: std::sync::OnceLock<()> = std::sync::OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_of_cargo_is_not_started_again() {
        for (file, refused) in [
            ("/p/target/debug/deps/keepup-0123456789abcdef", true),
            ("/p/target/debug/deps/keepup", false),
            ("/p/target/debug/examples/keepup-0123456789abcdef", false),
            ("/p/target/debug/consumer", false),
            ("/usr/bin/billing-consumer", false),
        ] {
            assert_eq!(is_harness(Path::new(file)), refused, "{file}");
        }
        let error = Launcher::new().expect_err("this is one").to_string();
        assert!(error.contains("would run its tests"), "{error}");
    }

    #[test]
    fn who_has_no_line_to_the_process_that_is_named_is_no_worker() {
        let own = std::process::id().to_string();
        for named in [own.as_str(), "17", "", "17:3", "seventeen"] {
            assert!(
                !has_line_to(named),
                "{named:?}: a shell or cargo started this"
            );
        }
        assert!(!is_worker());
    }
}
