//! How long a record takes from the moment that its producer knows it safe to
//! the handler: keepup and Java's consumer, at a thousand records per second.
//!
//! Both follow the same topic at the same time, in groups of their own, so that
//! whatever disturbs the machine or the broker disturbs both. All moments are
//! those of one clock (`CLOCK_MONOTONIC`, which Java's `nanoTime` reads too).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keepup::{Handler, Outcome, Record, TopicPartition, Workers};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::clients::{Task, With, wait};
use crate::results::Cell;
use crate::rows::Peer;
use crate::{PARTITIONS, THREADS, topics};

const BETWEEN: Duration = Duration::from_millis(1);
/// So long Java's compiler has time to find out what is hot; not counted.
const WARM_S: usize = 5;
const MEASURED_S: usize = 15;
const PER_S: usize = 1_000;
const VALUE: usize = 100;
/// After the last record was sent.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is kept of the distribution.
pub(crate) const PERCENTILES: [(&str, f64); 10] = [
    ("p0", 0.0),
    ("p10", 0.1),
    ("p25", 0.25),
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.5", 0.995),
    ("p99.9", 0.999),
];

pub(crate) fn measure(with: &With<'_>) -> Vec<Cell> {
    let mut cells = [Cell::new(Peer::Keepup.name()), Cell::new(Peer::Java.name())];
    for round in 0..with.options.rounds {
        match one_round(round, with) {
            Ok(all) => {
                for (cell, latencies) in cells.iter_mut().zip(all) {
                    match latencies {
                        Ok(latencies) => cell.add(&latencies.numbers()),
                        Err(why) => cell.fail(why),
                    }
                }
            }
            Err(why) => cells.iter_mut().for_each(|cell| cell.fail(why.clone())),
        }
        eprint!(".");
    }
    cells.into()
}

fn one_round(round: usize, with: &With<'_>) -> Result<[Result<Latencies, String>; 2], String> {
    let topic = format!("bench-latency-{}-{round}", std::process::id());
    topics::create(&with.broker.bootstrap, &topic, PARTITIONS);
    let warm = WARM_S * PER_S;
    let count = warm + if with.options.quick { 2 } else { MEASURED_S } * PER_S;
    let task = |name: &str| Task {
        bootstrap: with.broker.bootstrap.clone(),
        topic: topic.clone(),
        records: count as u64,
        threads: THREADS,
        authority: None,
        file: Some(crate::scratch().join(format!("latency-{name}"))),
    };
    let tasks = [task("keepup"), task("java")];
    let commands = [
        with.programs.client("latency", &tasks[0]),
        with.programs.java("latency", &tasks[1]),
    ];
    let mut followers = commands.map(Follower::start);
    let produced = followers
        .iter_mut()
        .try_for_each(Follower::is_ready)
        .and_then(|()| produce(&with.broker.bootstrap, &topic, count));
    let ended = followers.map(|mut follower| match &produced {
        Ok(_) => follower.ends(PATIENCE),
        Err(_) => follower.ends(Duration::ZERO),
    });
    let produced = produced?;
    let mut files = tasks.into_iter().filter_map(|task| task.file);
    Ok(ended.map(|ended| {
        ended?;
        let file = files.next().ok_or("no file")?;
        Latencies::join(&produced, &file, warm)
    }))
}

/// A consumer's process.
struct Follower {
    child: Result<Child, String>,
}

impl Follower {
    fn start(mut command: Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("it does not start: {error}"));
        Self { child }
    }

    /// Waits for its word that it has its partitions. It says so or ends.
    fn is_ready(&mut self) -> Result<(), String> {
        let child = self.child.as_mut().map_err(|error| error.clone())?;
        let stdout = child.stdout.as_mut().ok_or("its output is not piped")?;
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        (line.trim() == "ready")
            .then_some(())
            .ok_or_else(|| "it did not get ready".to_owned())
    }

    fn ends(&mut self, patience: Duration) -> Result<(), String> {
        let child = self.child.as_mut().map_err(|error| error.clone())?;
        match wait(child, patience) {
            Some(true) => Ok(()),
            Some(false) => Err("it failed".to_owned()),
            None => Err(format!("it has not had every record after {patience:?}")),
        }
    }
}

/// When each record was sent and acknowledged, by its number.
struct Produced {
    sent: Vec<u64>,
    acked: Arc<Acks>,
}

struct Acks(Vec<AtomicU64>);

struct Notes(Arc<Acks>);

impl ClientContext for Notes {}

impl ProducerContext for Notes {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if result.is_ok() {
            self.0.0[number].store(nanos(), Ordering::Relaxed);
        }
    }
}

/// Sends a record per millisecond, each at once and on its own, `acks=all`.
fn produce(bootstrap: &str, topic: &str, count: usize) -> Result<Produced, String> {
    let acked = Arc::new(Acks((0..count).map(|_| AtomicU64::new(0)).collect()));
    let producer: ThreadedProducer<Notes> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Notes(Arc::clone(&acked)))
        .map_err(|error| error.to_string())?;
    let mut sent = Vec::with_capacity(count);
    let mut value = vec![b'x'; VALUE];
    let begin = nanos();
    for number in 0..count {
        let due = begin + number as u64 * u64::try_from(BETWEEN.as_nanos()).unwrap_or(0);
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(nanos())));
        value[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let partition = i32::try_from(number).unwrap_or(0) % PARTITIONS;
        sent.push(nanos());
        producer
            .send(
                BaseRecord::<(), [u8], usize>::with_opaque_to(topic, number)
                    .partition(partition)
                    .payload(&value),
            )
            .map_err(|(error, _)| error.to_string())?;
    }
    producer
        .flush(Duration::from_secs(10))
        .map_err(|error| error.to_string())?;
    Ok(Produced { sent, acked })
}

/// What one consumer took in one round, sorted, in nanoseconds.
struct Latencies {
    /// From the moment that the producer had its acknowledgement. Below zero
    /// where the consumer was faster than the way back to the producer.
    acked: Vec<i64>,
    /// From the moment that the producer sent it.
    sent: Vec<i64>,
}

impl Latencies {
    fn join(produced: &Produced, file: &Path, warm: usize) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        let seen: HashMap<usize, u64> = text
            .lines()
            .filter_map(|line| {
                let (number, moment) = line.split_once(' ')?;
                Some((number.parse().ok()?, moment.parse().ok()?))
            })
            .collect();
        let mut latencies = Self {
            acked: Vec::new(),
            sent: Vec::new(),
        };
        for number in warm..produced.sent.len() {
            let handled = seen
                .get(&number)
                .ok_or_else(|| format!("it has never had record {number}"))?;
            let acked = produced.acked.0[number].load(Ordering::Relaxed);
            if acked == 0 {
                return Err(format!("record {number} was never acknowledged"));
            }
            let since = |earlier: u64| handled.cast_signed() - earlier.cast_signed();
            latencies.acked.push(since(acked));
            latencies.sent.push(since(produced.sent[number]));
        }
        latencies.acked.sort_unstable();
        latencies.sent.sort_unstable();
        Ok(latencies)
    }

    fn numbers(&self) -> Vec<(&'static str, f64)> {
        let mut numbers = Vec::new();
        for (from, sorted) in [("acked", &self.acked), ("sent", &self.sent)] {
            for (name, share) in PERCENTILES {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "an index below the length"
                )]
                let index = ((sorted.len() - 1) as f64 * share).round() as usize;
                // A handful of names per run.
                let name: &'static str = format!("{from}_us_{name}").leak();
                numbers.push((name, sorted[index] as f64 / 1e3));
            }
        }
        numbers
    }
}

/// The client of the latency row that is keepup: notes when its handler is
/// called, as `Consumer.java` does.
pub(crate) fn consume(task: &Task) {
    let all: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let assigned = Arc::new(AtomicUsize::new(0));
    let group = format!("bench-latency-{}", std::process::id());
    let report = {
        let all = Arc::clone(&all);
        keepup::builder(&task.bootstrap, group)
            .topic(&task.topic)
            .workers(Workers::Fixed(task.threads))
            .count(task.records)
            .run(move |_worker| Follow {
                seen: Vec::new(),
                all: Arc::clone(&all),
                assigned: Arc::clone(&assigned),
            })
            .expect("a run")
    };
    assert_eq!(report.exit_code(), 0, "{report:?}");
    let path = task.file.as_ref().expect("a file to write to");
    let mut text = String::new();
    for (number, moment) in &*all.lock().expect("no thread panics with it") {
        writeln!(text, "{number} {moment}").expect("text grows");
    }
    std::fs::write(path, text).expect("a file below target");
}

struct Follow {
    seen: Vec<(u64, u64)>,
    all: Arc<Mutex<Vec<(u64, u64)>>>,
    assigned: Arc<AtomicUsize>,
}

impl Handler for Follow {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let moment = nanos();
        let number = record.value().and_then(|value| value.first_chunk::<8>());
        self.seen
            .push((number.map_or(0, |eight| u64::from_le_bytes(*eight)), moment));
        Outcome::Done
    }

    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        let before = self.assigned.fetch_add(partitions.len(), Ordering::SeqCst);
        if before + partitions.len() == usize::try_from(PARTITIONS).unwrap_or(0) {
            println!("ready");
            let _ = std::io::stdout().flush();
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.all
            .lock()
            .expect("no thread panics with it")
            .append(&mut self.seen);
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
