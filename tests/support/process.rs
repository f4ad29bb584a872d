//! Child processes that do not outlive the test, and short commands with a deadline.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::{SOON, wait_until};

/// Where this repository is.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A script of `tests/kafka`.
pub(crate) fn script(name: &str) -> PathBuf {
    repository().join("tests/kafka").join(name)
}

/// The program, and its arguments, that become this one again for that test alone, with a variable (`NAME=VALUE`) in its
/// environment.
pub(crate) fn again(variable: &str, test: &str) -> (PathBuf, Vec<String>) {
    let program = by_another_name().display().to_string();
    let test = ["--exact", "--ignored", "--nocapture", "--quiet", test];
    let mut arguments = vec![variable.to_owned(), program];
    arguments.extend(test.map(str::to_owned));
    (PathBuf::from("/usr/bin/env"), arguments)
}

/// This program by another name: under that of a test of cargo's it would not be started again for worker processes.
/// They come to the same test by the same arguments.
fn by_another_name() -> PathBuf {
    static LINKED: OnceLock<PathBuf> = OnceLock::new();
    let link = || {
        let this = std::env::current_exe().expect("a test has a path");
        let name = this.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let name = name.split('-').next().unwrap_or_default();
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let linked = directory.join(format!("{name}-again"));
        // Another run may use the name now: it changes from the one file to the other.
        let own = directory.join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_file(&own);
        fs::hard_link(this, &own).expect("the target directory takes links");
        fs::rename(&own, &linked).expect("it can be renamed");
        // Left where both were the same file already.
        let _ = fs::remove_file(&own);
        linked
    };
    LINKED.get_or_init(link).clone()
}

/// A process of its own group, killed on drop, and also when this process dies in whatever way.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
}

impl Guarded {
    /// Starts `command`, which has to become its program through `tests/kafka/watched`.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let child = command.stdin(Stdio::piped()).process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal to this process alone; false where it has ended already. A SIGSTOP has stopped it on return.
    pub(crate) fn signal(&mut self, signal: Signal) -> bool {
        // The pid is ours until it was waited for, and `ended` is the only one who waits.
        let sent =
            self.ended().is_none() && rustix::process::kill_process(self.pid(), signal).is_ok();
        if sent && signal == Signal::STOP {
            // On a busy machine its threads run on until each of them has seen the signal.
            let look = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            wait_until(SOON, "a process to be stopped", || {
                match waitid(WaitId::Pid(self.pid()), look) {
                    Ok(Some(_)) => Ok(()),
                    other => Err(other.map(|_| "running")),
                }
            });
        }
        sent
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self, within: Duration, what: &str) -> ExitStatus {
        wait_until(within, what, || self.ended().ok_or("still running"))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Its children are in its group, the watch on it too: while that runs nobody else gets the group's number.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(b".");
        }
    }
}

/// A command that ran to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    /// `None` where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command with `input` on its standard input; one that takes longer than `within` is killed, and a failure.
pub(crate) fn run(mut command: Command, input: &str, within: Duration) -> Finished {
    let what = format!("the end of {command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn();
    let child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut guard = Guarded { child };
    let stdin = guard.child().stdin.take();
    let input = input.to_owned();
    let writer = thread("stdin", move || {
        // A command that does not read all of it says so by its exit code.
        stdin.map(|mut stdin| stdin.write_all(input.as_bytes()))
    });
    let stdout = drain("stdout", guard.child().stdout.take());
    let stderr = drain("stderr", guard.child().stderr.take());
    let status = guard.wait(within, &what);
    // Whatever it left behind would keep the pipes open.
    drop(guard);
    let _ = writer.join().expect("the writer ends");
    Finished {
        code: status.code(),
        stdout: stdout.join().expect("the reader ends"),
        stderr: stderr.join().expect("the reader ends"),
    }
}

/// Waits until no process is there that has `argument` among those that it was started with. For what is not in the
/// group of what a test has started.
pub(crate) fn wait_none_has(argument: &str) {
    wait_until(SOON, "no process to be left", || {
        let processes = fs::read_dir("/proc").expect("it is there").flatten();
        let left: Vec<_> = processes
            .map(|process| process.path())
            // Who is gone meanwhile, or dead and not waited for, has none.
            .filter(|path| {
                let line = fs::read(path.join("cmdline")).unwrap_or_default();
                line.split(|&byte| byte == 0)
                    .any(|other| other == argument.as_bytes())
            })
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn drain(name: &str, pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    let mut pipe = pipe.expect("it is piped");
    thread(name, move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A named thread.
pub(crate) fn thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .expect("a thread can be started")
}
