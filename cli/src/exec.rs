//! `--handler exec=COMMAND`: records are handled by another program.
//!
//! Each worker has a child of its own. A record is one line of JSON on its
//! stdin, and the answer is one line on its stdout: `done`, `retry`,
//! `dead-letter`, `skip` or `stop`, and a reason behind a space. The worker
//! waits for it, as it waits for any handler.
//!
//! A child may end, answer nonsense or close a pipe. That is a failed record,
//! not a broken worker: it is retried, with the back-off of the policy, in a new
//! child. The child is in a process group of its own, so that a Ctrl-C in the
//! terminal reaches the command, which drains, and not the child that it drains
//! through. None is left behind: its stdin is closed, then its group is killed
//! ([`Children`]), also where its worker was abandoned. Where the worker is a
//! process, the child stays in that one's group, which ends with the worker, be it
//! by a signal.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keepup::{Handler, Outcome, Record};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::lines;
use crate::output::{Output, Unusable};
use crate::run::closed;
use crate::time;

/// The longest answer, reason included.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// How long a child may take to end by itself once its stdin is closed.
const GOODBYE: Duration = Duration::from_secs(2);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// The children that run, by number, which is that of their group.
#[derive(Debug, Default)]
pub(crate) struct Children(Mutex<BTreeSet<i32>>);

impl Children {
    /// Kills those whose workers did not see to their end.
    pub(crate) fn kill_all(&self) {
        for child in std::mem::take(&mut *self.0.lock()) {
            kill(child);
        }
    }
}

/// Whether a child is in a process group of its own.
fn has_own_group() -> bool {
    !keepup::is_worker_process()
}

fn kill(child: i32) {
    if let Some(child) = Pid::from_raw(child) {
        // Whoever is gone already needs no killing.
        let _ = if has_own_group() {
            kill_process_group(child, Signal::KILL)
        } else {
            kill_process(child, Signal::KILL)
        };
    }
}

/// One child.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    children: Arc<Children>,
    group: i32,
}

impl Running {
    fn start(command: &str, children: &Arc<Children>) -> std::io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        if has_own_group() {
            shell.process_group(0);
        }
        let mut child = shell
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let group = i32::try_from(child.id()).unwrap_or_default();
        children.0.lock().insert(group);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = stdout.ok_or_else(|| std::io::Error::other("it has no stdout"))?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            children: Arc::clone(children),
            group,
        })
    }

    /// Gives it a line, and takes its answer.
    fn ask(&mut self, line: &[u8]) -> Result<Outcome, String> {
        let stdin = self.stdin.as_mut().ok_or("its stdin is closed")?;
        let given = stdin.write_all(line).and_then(|()| stdin.flush());
        // What it said before it closed its stdin counts more than that it did.
        let mut answer = Vec::new();
        let mut limited = (&mut self.stdout).take(LONGEST_ANSWER);
        let read = limited.read_until(b'\n', &mut answer);
        match (read, given) {
            (Err(error), _) => Err(format!("its answer cannot be read: {error}")),
            (Ok(0), given) => Err(match (self.has_ended(), given) {
                (Some(how), _) => format!("it ended with {how}"),
                (None, Err(error)) => format!("it takes no records: {error}"),
                (None, Ok(())) => "it closed its stdout".to_owned(),
            }),
            (Ok(_), _) if answer.last() != Some(&b'\n') => Err(format!(
                "it answered without the end of a line: {}",
                shown(&answer)
            )),
            (Ok(_), _) => parse(&answer).ok_or_else(|| {
                format!(
                    "it answered {}, which is none of done, retry, dead-letter, skip and stop",
                    shown(&answer)
                )
            }),
        }
    }

    /// How it ended, given a moment: its stdout closes a little before.
    fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        for _ in 0..10 {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => std::thread::park_timeout(LOOK),
                Err(_) => return None,
            }
        }
        None
    }
}

impl Drop for Running {
    /// A closed stdin asks it to end; who does not is killed.
    fn drop(&mut self) {
        self.stdin = None;
        let looks = GOODBYE.as_millis() / LOOK.as_millis();
        for _ in 0..looks {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::park_timeout(LOOK);
        }
        // The whole group: it may have children of its own.
        kill(self.group);
        self.children.0.lock().remove(&self.group);
        let _ = self.child.wait();
    }
}

fn shown(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let short: String = text.trim_end().chars().take(80).collect();
    format!("{short:?}")
}

/// What a line says; none where that is nothing that means something.
fn parse(answer: &[u8]) -> Option<Outcome> {
    let text = std::str::from_utf8(answer)
        .ok()?
        .trim_end_matches(['\r', '\n']);
    let (word, reason) = text.split_once(' ').unwrap_or((text, ""));
    let reason = match reason.trim() {
        "" => format!("the command said {word}"),
        reason => reason.to_owned(),
    };
    match word {
        "done" => Some(Outcome::Done),
        "retry" => Some(Outcome::retry(reason)),
        "dead-letter" => Some(Outcome::dead_letter(reason)),
        "skip" => Some(Outcome::skip(reason)),
        "stop" => Some(Outcome::stop(reason)),
        _ => None,
    }
}

/// A worker's handler.
pub(crate) struct Exec {
    command: String,
    children: Arc<Children>,
    running: Option<Running>,
    line: Vec<u8>,
    output: Arc<Output>,
    worker: usize,
    /// Whether each record that is done is printed as an event.
    records: bool,
}

impl Exec {
    pub(crate) fn new(
        command: String,
        children: Arc<Children>,
        output: Arc<Output>,
        worker: usize,
        records: bool,
    ) -> Self {
        Self {
            command,
            children,
            running: None,
            line: Vec::new(),
            output,
            worker,
            records,
        }
    }

    fn ask(&mut self) -> Result<Outcome, String> {
        // Dropped where it fails: the next record has a new one.
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&self.command, &self.children)
                .map_err(|error| format!("/bin/sh cannot be started: {error}"))?,
        };
        let outcome = running.ask(&self.line)?;
        self.running = Some(running);
        Ok(outcome)
    }
}

impl Handler for Exec {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        if self.output.is_unusable() {
            return closed();
        }
        self.line.clear();
        lines::append_for_command(&mut self.line, record);
        let outcome = match self.ask() {
            Ok(outcome) => outcome,
            Err(why) => return Outcome::retry(format!("{:?}: {why}", self.command)),
        };
        if self.records && outcome == Outcome::Done {
            self.line.clear();
            let format = lines::Format::Event;
            format.append(&mut self.line, record, self.worker, time::unix_millis());
            if let Err(Unusable) = self.output.write(&self.line) {
                return closed();
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(command: &str) -> Running {
        Running::start(command, &Arc::default()).unwrap()
    }

    #[test]
    fn an_answer_is_a_word_and_a_reason() {
        for (line, outcome) in [
            ("done\n", Some(Outcome::Done)),
            ("done all of it\n", Some(Outcome::Done)),
            ("retry\r\n", Some(Outcome::retry("the command said retry"))),
            ("retry no space\n", Some(Outcome::retry("no space"))),
            (
                "dead-letter not JSON\n",
                Some(Outcome::dead_letter("not JSON")),
            ),
            ("skip ours\n", Some(Outcome::skip("ours"))),
            ("stop now\n", Some(Outcome::stop("now"))),
            ("\n", None),
            ("DONE\n", None),
            ("done,\n", None),
        ] {
            assert_eq!(parse(line.as_bytes()), outcome, "{line:?}");
        }
        assert_eq!(parse(b"done\xff\n"), None);
    }

    #[test]
    fn a_child_answers_line_by_line_and_ends_when_its_stdin_does() {
        let mut child = running("while read -r line; do echo \"skip $line\"; done");
        for text in ["one", "two"] {
            let asked = child.ask(format!("{text}\n").as_bytes());
            assert_eq!(asked, Ok(Outcome::skip(text)));
        }
        let group = Pid::from_raw(child.group).unwrap();
        drop(child);
        assert!(rustix::process::test_kill_process_group(group).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_child_is_named() {
        for (command, part) in [
            ("exit 3", "exit status: 3"),
            ("read line; kill -9 $$", "signal: 9"),
            ("read line; echo maybe", "\"maybe\""),
            ("read line; printf done", "without the end of a line"),
            ("exec >&-; exec sleep 5", "closed its stdout"),
            ("/nowhere/at/all", "exit status: 127"),
            ("head -c 100000 /dev/zero", "without the end of a line"),
        ] {
            let mut child = running(command);
            let error = child.ask(b"{}\n").unwrap_err();
            assert!(error.contains(part), "{command}: {error}");
        }
    }

    #[test]
    fn children_of_children_are_killed_with_it() {
        let children = Arc::new(Children::default());
        let command = "sleep 100 & sleep 100 & read line; echo done; exec sleep 100";
        let mut child = Running::start(command, &children).unwrap();
        assert_eq!(child.ask(b"{}\n"), Ok(Outcome::Done));
        let group = Pid::from_raw(child.group).unwrap();
        // As where its worker was abandoned.
        children.kill_all();
        let _ = child.child.wait();
        assert!(children.0.lock().is_empty());
        drop(child);
        for _ in 0..500 {
            if rustix::process::test_kill_process_group(group).is_err() {
                return;
            }
            // Whoever inherited them has to bury them first.
            std::thread::park_timeout(LOOK);
        }
        panic!("somebody of the group is left");
    }
}
