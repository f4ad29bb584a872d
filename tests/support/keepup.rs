//! The command `keepup` as a process: its events, its signals, its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::kafka::Kafka;
use super::process::{Finished, Guarded, again, run, script, thread};
use super::wait_until;

/// Where the command is: cargo puts it beside the directory of this test.
pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let program = profile.join("keepup");
    assert!(
        program.exists(),
        "{} is missing: run `cargo build --workspace` first (scripts/test does)",
        program.display()
    );
    program
}

fn command(program: PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_remove("KEEPUP_BOOTSTRAP").args(arguments);
    command
}

/// Runs the command to its end.
pub(crate) fn keepup(arguments: &[&str], input: &str, within: Duration) -> Finished {
    run(command(program(), arguments), input, within)
}

/// What the process has written so far; the lines that are not JSON are strings.
#[derive(Debug, Default)]
struct Output {
    events: Mutex<Vec<Value>>,
    more: Condvar,
    stderr: Mutex<String>,
}

/// A running command, killed on drop with all its children, and when this process dies.
#[derive(Debug)]
pub(crate) struct Keepup {
    process: Option<Guarded>,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    /// How many events `next` has passed.
    seen: usize,
}

impl Keepup {
    /// Starts the command.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_program(program(), arguments)
    }

    /// Starts `keepup run` of that group on a topic, with its events.
    pub(crate) fn run(kafka: &Kafka, topic: &str, group: &str, more: &[&str]) -> Self {
        let mut arguments = vec!["run", "-b", kafka.bootstrap(), "-t", topic, "-g", group];
        arguments.extend(["--events", "json"]);
        arguments.extend(more);
        Self::start(&arguments)
    }

    /// Starts the command and shows `sieve` every line of its standard output as it comes; the lines that it takes
    /// (`true`) are not kept as events. For runs that print millions of them.
    pub(crate) fn start_sifted(
        arguments: &[&str],
        sieve: impl FnMut(&str) -> bool + Send + 'static,
    ) -> Self {
        Self::launch(program(), arguments, sieve)
    }

    /// Starts another program that speaks the same events.
    pub(crate) fn start_program(program: PathBuf, arguments: &[&str]) -> Self {
        Self::launch(program, arguments, |_| false)
    }

    /// Starts this program again, for that test alone, with a variable (`NAME=VALUE`) in its environment.
    pub(crate) fn start_again(variable: &str, test: &str) -> Self {
        let (program, arguments) = again(variable, test);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Self::start_program(program, &arguments)
    }

    /// Starts another program that speaks the same events, with a sieve as that of [`Keepup::start_sifted`].
    pub(crate) fn launch(
        program: PathBuf,
        arguments: &[&str],
        sieve: impl FnMut(&str) -> bool + Send + 'static,
    ) -> Self {
        let mut watched = command(script("watched"), &[]);
        watched
            .arg(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Guarded::spawn(watched);
        let stdout = process.child().stdout.take().expect("it is piped");
        let stderr = process.child().stderr.take().expect("it is piped");
        let output = Arc::new(Output::default());
        let readers = vec![
            thread("stdout", {
                let output = Arc::clone(&output);
                move || read_events(stdout, &output, sieve)
            }),
            thread("stderr", {
                let output = Arc::clone(&output);
                move || read_log(stderr, &output)
            }),
        ];
        Self {
            process: Some(process),
            output,
            readers,
            seen: 0,
        }
    }

    fn process(&mut self) -> &mut Guarded {
        self.process.as_mut().expect("it is there until the drop")
    }

    pub(crate) fn pid(&mut self) -> u32 {
        self.process().child().id()
    }

    /// Every event so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        let events = self.output.events.lock();
        events.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        let stderr = self.output.stderr.lock();
        stderr.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next event of this name after the one that was given last.
    pub(crate) fn next(&mut self, name: &str, within: Duration) -> Value {
        self.next_where(name, within, |event| event["name"] == name)
    }

    /// The next event that `wanted` accepts, after the one that was given last.
    pub(crate) fn next_where(
        &mut self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let start = self.seen;
        let (position, event) = self.wait(what, within, |events| {
            let position = start + events.get(start..)?.iter().position(&wanted)?;
            Some((position, events[position].clone()))
        });
        self.seen = position + 1;
        event
    }

    /// Waits until `find` gives something for all the events so far.
    pub(crate) fn wait<R>(
        &self,
        what: &str,
        within: Duration,
        mut find: impl FnMut(&[Value]) -> Option<R>,
    ) -> R {
        let start = Instant::now();
        let mut events = self
            .output
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&events) {
                return found;
            }
            let left = within.saturating_sub(start.elapsed());
            if left.is_zero() {
                let last = events.last().cloned();
                let count = events.len();
                drop(events);
                panic!(
                    "waited {within:?} for: {what}; {count} events, the last one {last:?}; stderr:\n{}",
                    self.stderr()
                );
            }
            let waited = self.output.more.wait_timeout(events, left);
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until standard error has `words` for the `count`-th time.
    pub(crate) fn wait_stderr(&self, words: &str, count: usize, within: Duration) {
        wait_until(within, words, || {
            let stderr = self.stderr();
            if stderr.matches(words).count() >= count {
                Ok(())
            } else {
                Err(stderr)
            }
        });
    }

    /// Sends a signal; the process must be running.
    pub(crate) fn signal(&mut self, signal: Signal) {
        let sent = self.process().signal(signal);
        assert!(sent, "it has ended; stderr:\n{}", self.stderr());
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process().ended()
    }

    /// Waits for its end: the exit code, `None` where a signal ended it. All its output is there then, unless a child
    /// of its own still holds the pipes.
    pub(crate) fn end(&mut self, within: Duration) -> Option<i32> {
        let start = Instant::now();
        let status = self.process().wait(within, "the end of the command");
        let left = within
            .saturating_sub(start.elapsed())
            .min(Duration::from_secs(2));
        let readers = &self.readers;
        let deadline = Instant::now() + left;
        while Instant::now() < deadline && !readers.iter().all(JoinHandle::is_finished) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        status.code()
    }
}

impl Drop for Keepup {
    fn drop(&mut self) {
        // First the processes: then the pipes are at their end, and the readers too.
        drop(self.process.take());
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            let _ = writeln!(
                std::io::stderr(),
                "stderr of the command:\n{}",
                self.stderr()
            );
        }
    }
}

fn read_events(stdout: impl Read, output: &Output, mut sieve: impl FnMut(&str) -> bool) {
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    loop {
        line.clear();
        // A line without its end was cut off by a kill: it was never printed.
        if !matches!(stdout.read_line(&mut line), Ok(1..)) || line.pop() != Some('\n') {
            return;
        }
        if sieve(&line) {
            continue;
        }
        let event = serde_json::from_str(&line).unwrap_or_else(|_| Value::String(line.clone()));
        let events = output.events.lock();
        events.unwrap_or_else(PoisonError::into_inner).push(event);
        output.more.notify_all();
    }
}

fn read_log(stderr: impl Read, output: &Output) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut log = output.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&line);
        log.push('\n');
    }
}
