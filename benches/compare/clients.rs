//! Runs a client once: a process of its own, which prints one line of JSON.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::Broker;
use crate::options::Options;
use crate::results::Cell;
use crate::rows::{Peer, Work};
use crate::topics;

/// A client that takes longer is stopped and counts as failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// The numbers of a line that are kept.
const KEPT: [&str; 5] = [
    "records_per_s",
    "cpu_ns_per_record",
    "peak_rss_mib",
    "start_s",
    "seconds",
];

/// What a client process of this program is told.
pub(crate) struct Task {
    pub(crate) bootstrap: String,
    pub(crate) topic: String,
    pub(crate) records: u64,
    pub(crate) threads: usize,
    /// The file with the authority's certificate, where TLS is spoken.
    pub(crate) authority: Option<String>,
    /// Where times are written to.
    pub(crate) file: Option<PathBuf>,
}

impl Task {
    pub(crate) fn read(arguments: &[String]) -> Self {
        let given = |index: usize| arguments.get(index).filter(|text| *text != "-");
        Self {
            bootstrap: arguments[0].clone(),
            topic: arguments[1].clone(),
            records: arguments[2].parse().expect("a number of records"),
            threads: arguments[3].parse().expect("a number of threads"),
            authority: given(4).cloned(),
            file: given(5).map(PathBuf::from),
        }
    }

    fn words(&self) -> Vec<String> {
        vec![
            self.bootstrap.clone(),
            self.topic.clone(),
            self.records.to_string(),
            self.threads.to_string(),
            self.authority.clone().unwrap_or_else(|| "-".to_owned()),
            self.file
                .as_ref()
                .map_or_else(|| "-".to_owned(), |file| file.display().to_string()),
        ]
    }
}

/// Where the clients are.
pub(crate) struct Programs {
    own: PathBuf,
    pub(crate) keepup: PathBuf,
    pub(crate) kafka_home: PathBuf,
    java_classes: PathBuf,
}

impl Programs {
    /// Finds what `scripts/bench` has built, and compiles what is Java.
    pub(crate) fn find() -> Self {
        let own = std::env::current_exe().expect("the path of this program");
        let keepup = own
            .ancestors()
            .map(|folder| folder.join("keepup"))
            .find(|program| program.is_file())
            .expect("the command is built: use scripts/bench");
        let prepared = Command::new(crate::repository().join("tests/kafka/prepare"))
            .output()
            .expect("tests/kafka/prepare runs");
        let kafka_home = PathBuf::from(String::from_utf8_lossy(&prepared.stdout).trim());
        let java_classes = crate::scratch().join("java");
        let compiled = Command::new("javac")
            .arg("-d")
            .arg(&java_classes)
            .arg("-cp")
            .arg(kafka_home.join("jars/*"))
            .arg(crate::repository().join("benches/compare/Consumer.java"))
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            eprintln!("the Java client cannot be compiled: its cells will say so");
        }
        Self {
            own,
            keepup,
            kafka_home,
            java_classes,
        }
    }

    /// A client of this program's own.
    pub(crate) fn client(&self, name: &str, task: &Task) -> Command {
        let mut command = Command::new(&self.own);
        command.args(["client", name]).args(task.words());
        command
    }

    /// The Java client. The heap is what such a process is commonly given; all
    /// else is the virtual machine's default.
    pub(crate) fn java(&self, mode: &str, task: &Task) -> Command {
        let path = format!(
            "{}:{}",
            self.java_classes.display(),
            self.kafka_home.join("jars/*").display()
        );
        let mut command = Command::new("java");
        command
            .args(["-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"])
            .args(["-cp", &path, "Consumer", mode])
            .args(task.words());
        command
    }

    /// `keepup perf` of so many records.
    pub(crate) fn perf(&self, task: &Task, group: &str) -> Command {
        let mut command = self.perf_to_end(task, group);
        command.args(["--count", &task.records.to_string()]);
        command
    }

    /// `keepup perf` until the end of the topic.
    pub(crate) fn perf_to_end(&self, task: &Task, group: &str) -> Command {
        let mut command = Command::new(&self.keepup);
        command
            .args([
                "perf",
                "-b",
                &task.bootstrap,
                "-t",
                &task.topic,
                "-g",
                group,
            ])
            .args(["--workers", &task.threads.to_string()]);
        if let Some(authority) = &task.authority {
            command.args(["-X", "security.protocol=ssl"]);
            command.args(["-X", &format!("ssl.ca.location={authority}")]);
        }
        command
    }

    fn command(&self, peer: Peer, task: &Task, group: &str) -> Command {
        match peer {
            Peer::Bare => self.client("bare", task),
            Peer::Keepup => self.perf(task, group),
            Peer::Plain => self.client("plain", task),
            Peer::Stream => self.client("stream", task),
            Peer::Java => self.java("throughput", task),
        }
    }
}

/// What every row is measured with.
pub(crate) struct With<'a> {
    pub(crate) broker: Broker,
    pub(crate) programs: Programs,
    pub(crate) options: &'a Options,
}

/// Clients in turns, round after round.
pub(crate) fn throughput(row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    take_turns(row, work, work.peers(), with)
}

/// keepup alone, for its memory.
pub(crate) fn memory(row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    take_turns(row, work, &[Peer::Keepup], with)
}

fn take_turns(row: &str, work: &Work, peers: &[Peer], with: &With<'_>) -> Vec<Cell> {
    let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
    let command =
        |turn: usize, task: &Task, group: &str| with.programs.command(peers[turn], task, group);
    in_turns(row, work, &names, command, with)
}

/// Whoever `names` names takes turns at the topic of that work, round after
/// round: `command` makes the process of a turn, for a group of its own.
pub(crate) fn in_turns(
    row: &str,
    work: &Work,
    names: &[&str],
    command: impl Fn(usize, &Task, &str) -> Command,
    with: &With<'_>,
) -> Vec<Cell> {
    let mut cells: Vec<Cell> = names.iter().map(|name| Cell::new(name)).collect();
    let records = with.options.records(work.records);
    let topic = topics::filled(&with.broker.bootstrap, work, records);
    let (bootstrap, authority) = match (&with.broker.tls, work.tls) {
        (_, false) => (with.broker.bootstrap.clone(), None),
        (Some(tls), true) => (
            tls.bootstrap.clone(),
            Some(tls.authority.display().to_string()),
        ),
        (None, true) => {
            for cell in &mut cells {
                cell.fail("no listener with TLS is known of that cluster".to_owned());
            }
            return cells;
        }
    };
    let task = Task {
        bootstrap,
        topic,
        records,
        threads: work.workers,
        authority,
        file: None,
    };
    for round in 0..with.options.rounds {
        for (turn, cell) in cells.iter_mut().enumerate() {
            let name = names[turn];
            let group = format!("bench-{}-{row}-{name}-{round}", std::process::id());
            run_into(cell, command(turn, &task, &group), records);
            eprint!(".");
        }
    }
    cells
}

/// Runs a client once, and keeps its numbers.
fn run_into(cell: &mut Cell, client: Command, records: u64) {
    match run(client) {
        Ok(line) if line["records"].as_u64().unwrap_or(0) >= records => {
            let numbers: Vec<(&str, f64)> = KEPT
                .iter()
                .filter_map(|name| Some((*name, line[name].as_f64()?)))
                .collect();
            cell.add(&numbers);
        }
        Ok(line) => cell.fail(format!("it has not read {records} records: {line}")),
        Err(why) => cell.fail(why),
    }
}

/// Runs a client to its end and reads the line that it prints last.
fn run(mut command: Command) -> Result<Value, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it does not start: {error}"))?;
    let texts = [
        read_apart(child.stdout.take().expect("it is piped")),
        read_apart(child.stderr.take().expect("it is piped")),
    ];
    let ended = wait(&mut child, PATIENCE);
    let [stdout, stderr] = texts.map(|text| text.join().unwrap_or_default());
    match ended {
        Some(true) => {}
        Some(false) => return Err(format!("it failed: {}", last_words(&stderr))),
        None => {
            return Err(format!(
                "it was stopped after {PATIENCE:?}: {}",
                last_words(&stderr)
            ));
        }
    }
    let line = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|_| format!("it printed {stdout:?}"))
}

/// Waits for the end of a process, and kills it after `patience`: whether it
/// ended well, none where it had to be killed.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Option<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

fn read_apart(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::Builder::new()
        .spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
        .expect("a thread")
}

/// The line of a program's complaints that says most.
fn last_words(text: &str) -> String {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.next_back().unwrap_or("without a word").to_owned()
}

/// A number of `/proc/PID/status` in MiB.
pub(crate) fn status_mib(process: &str, field: &str) -> Option<f64> {
    let path = Path::new("/proc").join(process).join("status");
    let status = std::fs::read_to_string(path).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
