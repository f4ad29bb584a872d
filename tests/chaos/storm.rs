//! Does to a real group what the schedule says, and writes down what can be seen.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::keepup::{Model, Order};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::BaseRecord;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::checker::{Commits, End, Handled, Log, Member, Millis, Told};
use crate::member::Plan;
use crate::schedule::{Action, Shape, Step, draw, is_steered};
use crate::support::kafka::Kafka;
use crate::support::keepup::{self, Keepup};
use crate::support::{wait_for, wait_until};

/// How long a member may take to leave: its drain, a rebalance that is under way, and a busy machine.
const LEAVING: Duration = Duration::from_mins(2);

/// How long those that are left may take for what is left.
const CATCHING_UP: Duration = Duration::from_mins(4);

/// How long what was completed may stay uncommitted where nothing is wrong: watermarks are stored every 200 ms and
/// committed every 500 ms, but a broker of a machine that is busy may take seconds for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// Workers of a member whose order lets them share partitions.
const WORKERS: u64 = 4;

/// Before a new partition is written to, the producer has looked twice: where an answer of before comes after one that
/// has the partition, librdkafka takes it away once more, with what was written to it.
const SETTLED: Duration = Duration::from_secs(1);

/// Members that are leaving, at most: their work goes on until they have left.
const MOST_LEAVING: usize = 12;

/// Keys per partition.
const KEYS: u64 = 50;

/// What every member has: commits come often, new partitions are found soon, and who lost the broker finds it again
/// within about a second, not ten. The less time has to be excused, the more is seen.
const PROPERTIES: [(&str, &str); 3] = [
    ("auto.commit.interval.ms", "500"),
    ("topic.metadata.refresh.interval.ms", "1000"),
    ("reconnect.backoff.max.ms", "1000"),
];

/// What is done to a group, and what the group is.
#[derive(Debug, Clone)]
pub(crate) struct Storm {
    pub(crate) shape: Shape,
    pub(crate) order: Order,
    /// For how long after a sign of a rebalance its members may still wait for each other, where they do.
    pub(crate) settles: Option<Duration>,
    /// Written while it lasts, evenly.
    pub(crate) records: u64,
    /// What the workers of its members are.
    pub(crate) model: Model,
    /// Properties of every member, beside [`PROPERTIES`].
    pub(crate) properties: Vec<(&'static str, &'static str)>,
}

/// Deaths of one worker, at most: a member whose worker dies more often within a minute gives up.
const MOST_DEATHS: u32 = 4;

/// A member that runs, stopped or not.
struct Running {
    keepup: Keepup,
    heard: Arc<Mutex<Heard>>,
    frozen: Option<Millis>,
    is_steered: bool,
    /// How often each of its workers was killed.
    killed: BTreeMap<u64, u32>,
}

/// What a member has said.
#[derive(Default)]
struct Heard {
    member: Member,
    /// The processes of its workers.
    pids: BTreeMap<u64, i32>,
    /// The worker that had a partition last.
    workers: BTreeMap<usize, u64>,
    /// The places among the member's silences of those of its workers that are stopped.
    silent: BTreeMap<u64, usize>,
    /// Lines that a worker could not finish.
    cut_off: u32,
}

/// Raises a storm on a topic and a group of this name, and gives what was seen once everything is committed or nothing
/// moves any more.
pub(crate) fn raise(kafka: &Kafka, name: &str, storm: &Storm, seed: u64) -> Log {
    let partitions = AtomicI32::new(storm.shape.partitions[0]);
    kafka.create_topic(name, partitions.load(Ordering::Relaxed), &[]);
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        // Also where something panics: the scope waits for its threads.
        let ends = Ends(&over);
        let watch = threads.spawn(|| watch_commits(kafka, name, &partitions, &over));
        let producer = threads.spawn(|| produce(kafka, name, storm, &partitions, &over));
        let mut group = Group::new(kafka, name, storm);
        for step in draw(&storm.shape, seed) {
            group.take(&step, &partitions);
        }
        producer.join().expect("the producer ends");
        group.fill_up(seed);
        let ends_at = kafka.end_offsets(name);
        let caught_up = group.catches_up(&ends_at);
        let (members, outages) = group.end();
        drop(ends);
        let mut commits = watch.join().expect("the watch ends");
        commits.push(Commits {
            asked: now(),
            offsets: kafka.committed(name, name),
            at: now(),
        });
        tell(&members, &outages);
        println!("caught up: {caught_up}; {} looks at commits", commits.len());
        Log {
            order: storm.order,
            patience: millis(PATIENCE),
            settles: storm.settles.map(millis),
            members,
            commits,
            outages,
            ends: ends_at,
        }
    })
}

/// Tells what was done to whom.
fn tell(members: &[Member], outages: &[std::ops::Range<Millis>]) {
    let ended = |how| {
        let ends = members.iter().filter_map(|member| member.end);
        ends.filter(|(_, end)| *end == how).count()
    };
    let sleeps: usize = members.iter().map(|member| member.stops.len()).sum();
    let mut refusals: BTreeMap<&str, u64> = BTreeMap::new();
    for (why, count) in members.iter().flat_map(|member| &member.refusals) {
        *refusals.entry(why).or_default() += count;
    }
    let told = members.iter().flat_map(|member| &member.told);
    let seeks = told.filter(|(_, told)| matches!(told, Told::Seek { .. }));
    println!(
        "{} members, {} of which ended before they had begun: {} left, {} left work, {} were killed; {sleeps} sleeps; \
         {} seeks; no broker in {outages:?}; refused commits: {refusals:?}",
        members.len(),
        members
            .iter()
            .filter(|member| member.began.is_none())
            .count(),
        ended(End::Left),
        ended(End::LeftWork),
        ended(End::Killed),
        seeks.count()
    );
}

/// Ends what runs beside a storm.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Group<'a> {
    kafka: &'a Kafka,
    name: &'a str,
    storm: &'a Storm,
    start: Instant,
    /// How many members there were whose lines are kept.
    started: AtomicUsize,
    places: Vec<Option<Running>>,
    leaving: Vec<Running>,
    ended: Vec<Member>,
    outages: Vec<std::ops::Range<Millis>>,
}

impl<'a> Group<'a> {
    fn new(kafka: &'a Kafka, name: &'a str, storm: &'a Storm) -> Self {
        Self {
            kafka,
            name,
            storm,
            start: Instant::now(),
            started: AtomicUsize::new(0),
            places: (0..storm.shape.members).map(|_| None).collect(),
            leaving: Vec::new(),
            ended: Vec::new(),
            outages: Vec::new(),
        }
    }

    /// Waits for the time of a step, and does it.
    fn take(&mut self, step: &Step, partitions: &AtomicI32) {
        let start = self.start;
        wait_for(self.storm.shape.time, "the time of a step", || {
            start.elapsed() >= step.at
        });
        self.reap(MOST_LEAVING);
        match step.action {
            Action::Start(place, choice) => self.places[place] = Some(self.member(choice)),
            Action::Leave(place) => {
                let running = self.running(place);
                self.leaving.push(running.leave());
            }
            Action::Kill(place) => {
                let mut running = self.running(place);
                lock(&running.heard).member.asked = Some(now());
                running.signal(Signal::KILL);
                self.ended.push(running.ended(Some(End::Killed)));
            }
            Action::Freeze(place) => {
                let running = self.places[place].as_mut().expect("the schedule knows");
                running.frozen = Some(now());
                running.signal(Signal::STOP);
            }
            Action::Thaw(place) => {
                let running = self.places[place].as_mut().expect("the schedule knows");
                running.thaw();
            }
            Action::KillWorker {
                place,
                choice,
                stopped,
            } => {
                let running = self.places[place].as_mut().expect("the schedule knows");
                running.kill_worker(choice, stopped);
            }
            Action::Seek(place) => {
                let running = self.places[place].as_mut().expect("the schedule knows");
                running.seek();
            }
            Action::RestartBroker { killed } => {
                let from = now();
                if killed {
                    self.kafka.kill_broker(1);
                } else {
                    self.kafka.shut_down_broker(1);
                }
                self.kafka.restart_broker(1);
                self.outages.push(from..now());
            }
            Action::Grow(total) => {
                self.kafka.add_partitions(self.name, total);
                partitions.store(total, Ordering::Relaxed);
            }
        }
    }

    fn running(&mut self, place: usize) -> Running {
        self.places[place].take().expect("the schedule knows")
    }

    /// Starts a member that works in one of several ways.
    fn member(&self, choice: u64) -> Running {
        let is_steered = is_steered(choice);
        let choice = choice / 2;
        let in_hand = match self.storm.order {
            Order::Partition => 1,
            Order::Key | Order::Unordered => WORKERS,
        };
        let heard = Arc::new(Mutex::new(Heard {
            member: Member {
                in_hand: usize::try_from(in_hand).expect("a few"),
                ..Member::default()
            },
            ..Heard::default()
        }));
        let (program, arguments) = if is_steered {
            self.steered(choice)
        } else {
            (keepup::program(), self.command(choice))
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut lines = self.lines();
        let sieve = {
            let heard = Arc::clone(&heard);
            move |line: &str| {
                if let Some(lines) = &mut lines {
                    writeln!(lines, "{line}").expect("lines can be kept");
                }
                // The harness that a steered member is started by says something as well.
                if !is_steered || line.starts_with('{') {
                    lock(&heard).note(line);
                }
                true
            }
        };
        Running {
            keepup: Keepup::launch(program, &arguments, sieve),
            heard,
            frozen: None,
            is_steered,
            killed: BTreeMap::new(),
        }
    }

    /// Where the lines of the next member are kept, if they are.
    fn lines(&self) -> Option<BufWriter<File>> {
        let directory = PathBuf::from(std::env::var_os("KEEPUP_CHAOS_LINES")?);
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{}-{number}", self.name));
        let file = File::create(&path);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Some(BufWriter::new(file))
    }

    fn properties(&self) -> Vec<(&'static str, &'static str)> {
        [&PROPERTIES[..], &self.storm.properties].concat()
    }

    /// A program that embeds the library.
    fn steered(&self, choice: u64) -> (PathBuf, Vec<String>) {
        let plan = Plan {
            bootstrap: self.kafka.bootstrap(),
            name: self.name,
            order: self.storm.order,
            workers: match self.storm.order {
                Order::Partition => [0, 2][index(choice, 2)],
                Order::Key | Order::Unordered => WORKERS,
            },
            model: self.storm.model,
            sleep: Duration::from_micros([500, 1_000, 4_000][index(choice / 2, 3)]),
            seed: choice,
            properties: &self.properties(),
        };
        plan.command()
    }

    /// The arguments of the command.
    fn command(&self, choice: u64) -> Vec<String> {
        let (bootstrap, name) = (self.kafka.bootstrap(), self.name);
        let mut arguments = vec!["run", "-b", bootstrap, "-t", name, "-g", name];
        arguments.extend(["--events", "json", "--records", "--timeout", "60s"]);
        let properties = self.properties();
        let properties: Vec<String> = properties
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        for property in &properties {
            arguments.extend(["-X", property]);
        }
        let fixed = WORKERS.to_string();
        let workers = match self.storm.order {
            Order::Partition => ["auto", "2"][index(choice, 2)],
            Order::Key | Order::Unordered => &fixed,
        };
        arguments.extend(["--workers", workers, "--model", self.storm.model.name()]);
        let script = crate::support::process::repository().join("tests/chaos/flaky.sh");
        let flaky = format!("exec=exec {}", quoted(&script));
        arguments.extend(match self.storm.order {
            Order::Partition => ["--order", "partition"],
            Order::Key => ["--order", "key"],
            Order::Unordered => ["--order", "unordered"],
        });
        // What waits for a retry lets others be done before it where the order allows that, and those come again
        // after a move: a matter of its own.
        let may_retry = self.storm.order == Order::Partition;
        arguments.extend(["--retry-backoff", "5ms", "--handler"]);
        arguments.push(match index(choice / 2, 4) {
            0 if may_retry => &flaky,
            1 => "sleep=500us",
            2 => "sleep=4ms",
            _ => "sleep=1ms",
        });
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// Takes note of those that have left, and waits until no more than `most` are leaving.
    fn reap(&mut self, most: usize) {
        wait_until(LEAVING, "members to leave", || {
            let mut still = Vec::new();
            for mut running in self.leaving.drain(..) {
                if running.keepup.ended().is_some() {
                    self.ended.push(running.ended(None));
                } else {
                    still.push(running);
                }
            }
            self.leaving = still;
            if self.leaving.len() <= most {
                Ok(())
            } else {
                Err(self.leaving.len())
            }
        });
    }

    /// Starts a member in every empty place, and has those that are stopped go on.
    fn fill_up(&mut self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        for place in 0..self.places.len() {
            match &mut self.places[place] {
                Some(running) => running.thaw(),
                None => self.places[place] = Some(self.member(random.u64(..))),
            }
        }
    }

    /// Whether everything is committed in time.
    fn catches_up(&self, ends: &[i64]) -> bool {
        let start = Instant::now();
        wait_until(2 * CATCHING_UP, "the commits", || {
            let committed = self.kafka.committed(self.name, self.name);
            let all = committed
                .iter()
                .map(|offset| offset.unwrap_or(0))
                .eq(ends.iter().copied());
            if all || start.elapsed() > CATCHING_UP {
                Ok(all)
            } else {
                Err(committed)
            }
        })
    }

    /// Has everybody leave: what they did, and when there was no broker.
    fn end(mut self) -> (Vec<Member>, Vec<std::ops::Range<Millis>>) {
        for place in 0..self.places.len() {
            if let Some(running) = self.places[place].take() {
                self.leaving.push(running.leave());
            }
        }
        self.reap(0);
        (self.ended, self.outages)
    }
}

impl Running {
    fn signal(&mut self, signal: Signal) {
        self.keepup.signal(signal);
    }

    /// Asks it to leave.
    fn leave(mut self) -> Self {
        lock(&self.heard).member.asked = Some(now());
        self.signal(Signal::TERM);
        self
    }

    /// Ends one of its worker processes, or has it sleep until that is noticed; where it has said of one by now, and that
    /// has not died too often.
    fn kill_worker(&mut self, choice: u64, stopped: bool) {
        let mut heard = lock(&self.heard);
        let may = |worker: &u64| self.killed.get(worker).copied().unwrap_or(0) < MOST_DEATHS;
        let pids: Vec<(u64, i32)> = heard
            .pids
            .iter()
            .filter(|(worker, _)| may(worker))
            .map(|(worker, pid)| (*worker, *pid))
            .collect();
        if pids.is_empty() {
            return;
        }
        let (worker, number) = pids[index(choice, pids.len() as u64)];
        *self.killed.entry(worker).or_default() += 1;
        let signal = if stopped {
            heard.note_silence(worker);
            Signal::STOP
        } else {
            Signal::KILL
        };
        // One that has ended just now is not there; numbers are given in turn, so that nobody else has its own yet.
        let pid = Pid::from_raw(number).expect("a process has a number");
        let _ = kill_process(pid, signal);
    }

    /// Has it seek, where it has come so far as to take signals.
    fn seek(&mut self) {
        let has_begun = lock(&self.heard).member.began.is_some();
        if self.is_steered && has_begun {
            self.signal(Signal::USR1);
        }
    }

    fn thaw(&mut self) {
        if let Some(since) = self.frozen.take() {
            self.signal(Signal::CONT);
            lock(&self.heard).member.stops.push(since..now());
        }
    }

    /// What it did, once it has ended as `end` says, or by itself.
    fn ended(mut self, end: Option<End>) -> Member {
        let code = self.keepup.end(LEAVING);
        let signal = self.keepup.ended().and_then(|status| status.signal());
        let stderr = self.keepup.stderr();
        assert!(!stderr.contains("panicked at"), "{stderr}");
        // With it its readers have ended: the log is whole.
        drop(self.keepup);
        let mut heard = lock(&self.heard);
        let deaths: u32 = self.killed.values().sum();
        assert!(
            heard.cut_off <= deaths,
            "{} lines are cut off",
            heard.cut_off
        );
        let member = &mut heard.member;
        let end = end.unwrap_or_else(|| match (code, signal) {
            (Some(0), _) => End::Left,
            (Some(3), _) => End::LeftWork,
            // It had not come so far as to take signals.
            (_, Some(signal)) if signal == Signal::TERM.as_raw() && member.began.is_none() => {
                End::Killed
            }
            _ => panic!("a member ended with code {code:?}, signal {signal:?}:\n{stderr}"),
        });
        member.end = Some((now(), end));
        std::mem::take(member)
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heard {
    /// That a worker is about to be stopped.
    fn note_silence(&mut self, worker: u64) {
        let with = self.workers.iter().filter(|(_, with)| **with == worker);
        let partitions = with.map(|(partition, _)| *partition).collect();
        self.silent.insert(worker, self.member.silences.len());
        self.member.silences.push((now()..Millis::MAX, partitions));
    }

    /// Takes a line of standard output down.
    fn note(&mut self, line: &str) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            // What a worker was killed over is passed on as far as it came.
            assert!(!self.pids.is_empty(), "not an event: {line}");
            self.cut_off += 1;
            return;
        };
        let at = event["timestamp"].as_i64().expect("an event has a time");
        let partition = |place: &Value| {
            let number = place["partition"].as_u64().expect("a partition");
            usize::try_from(number).expect("not so many")
        };
        let partitions = || {
            let places = event["partitions"].as_array().expect("partitions");
            places.iter().map(partition).collect::<Vec<_>>()
        };
        // A move from one worker of a process to another is no matter of the group's.
        let is_local = event["local"] == true;
        let number = |field: &str| {
            let text = event[field].as_str().expect("a text");
            text.parse().expect("a number")
        };
        // The one that reads for all in key order is none.
        let worker = event["worker"].as_u64();
        let member = &mut self.member;
        match event["name"].as_str().expect("an event has a name") {
            "record_data" => member.handled.push(Handled {
                at,
                partition: partition(&event),
                offset: event["offset"].as_i64().expect("an offset"),
                key: number("key"),
                number: number("value"),
            }),
            "startup_complete" => member.began = Some(at),
            "worker_started" => {
                if let (Some(worker), Some(pid)) = (worker, event["pid"].as_i64()) {
                    let pid = i32::try_from(pid).expect("a number of a process");
                    self.pids.insert(worker, pid);
                }
            }
            "worker_stopped" => {
                self.pids.retain(|other, _| Some(*other) != worker);
                let silent = worker.and_then(|worker| self.silent.remove(&worker));
                if let Some(place) = silent {
                    member.silences[place].0.end = at;
                }
                if event["reason"] == "child-exited" || event["reason"] == "child-silent" {
                    let had = self
                        .workers
                        .iter()
                        .filter(|(_, with)| Some(**with) == worker);
                    let had = had.map(|(partition, _)| *partition).collect();
                    member.tell(at, Told::WorkerDied(had));
                }
            }
            "partitions_assigned" => {
                let partitions = partitions();
                let with = partitions.iter().zip(worker.iter().cycle());
                self.workers
                    .extend(with.map(|(partition, worker)| (*partition, *worker)));
                if !is_local {
                    member.tell(at, Told::Assigned(partitions));
                }
            }
            "partitions_revoked" if !is_local => member.tell(at, Told::Revoked(partitions())),
            "partitions_lost" => member.tell(at, Told::Lost(partitions())),
            name @ ("seek" | "seek_refused") => {
                let seek = Told::Seek {
                    partition: partitions()[0],
                    offset: event["offset"].as_i64().expect("an offset"),
                };
                if name == "seek" {
                    member.tell(at, seek);
                } else if let Some(last) = member.told.iter().rposition(|(_, told)| *told == seek) {
                    member.told.remove(last);
                }
            }
            "offsets_committed" if event["success"] != true => {
                let why = event["error"].as_str().unwrap_or_default();
                *member.refusals.entry(why.to_owned()).or_default() += 1;
                member.refused.push(at);
            }
            "offsets_committed" => {
                let offsets = event["offsets"].as_array().expect("offsets").iter();
                let offsets = offsets.map(|place| {
                    let offset = place["offset"].as_i64().expect("an offset");
                    (partition(place), offset)
                });
                member.tell(at, Told::Committed(offsets.collect()));
            }
            _ => {}
        }
    }
}

/// Writes numbers from 0 on to every partition, each with a key, until all are written, and waits until all are there.
fn produce(kafka: &Kafka, topic: &str, storm: &Storm, partitions: &AtomicI32, over: &AtomicBool) {
    let producer = kafka.producer(&[
        ("enable.idempotence", "true"),
        ("topic.metadata.refresh.interval.ms", "500"),
    ]);
    let start = Instant::now();
    let mut next: Vec<u64> = Vec::new();
    let mut grown: Option<Instant> = None;
    let mut written = 0;
    while written < storm.records && !over.load(Ordering::Relaxed) {
        // A little faster than the time allows, so that it is done when the storm is over.
        let due = storm
            .shape
            .time
            .mul_f64(0.95 * fraction(written, storm.records));
        if start.elapsed() < due {
            std::thread::park_timeout(Duration::from_millis(5));
            continue;
        }
        let count = usize::try_from(partitions.load(Ordering::Relaxed)).expect("it is positive");
        if count > next.len() {
            let since = grown.get_or_insert_with(Instant::now);
            if next.is_empty() || since.elapsed() > SETTLED {
                grown = None;
                next.resize(count, 0);
            }
        }
        for (partition, number) in (0..).zip(&mut next) {
            let key = (*number * *number / 3 % KEYS).to_string();
            let payload = number.to_string();
            let record = BaseRecord::to(topic).partition(partition);
            producer.send(record.key(key.as_bytes()).payload(payload.as_bytes()));
            *number += 1;
            written += 1;
        }
    }
    producer.flush();
}

fn fraction(part: u64, whole: u64) -> f64 {
    let float = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    float(part) / float(whole)
}

/// Asks the broker again and again what the group has committed, until it is over.
fn watch_commits(
    kafka: &Kafka,
    name: &str,
    partitions: &AtomicI32,
    over: &AtomicBool,
) -> Vec<Commits> {
    let mut settings = kafka.client();
    let asks: BaseConsumer = settings.set("group.id", name).create().expect("a client");
    let mut commits = Vec::new();
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(50));
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(name, 0, partitions.load(Ordering::Relaxed) - 1);
        // While the broker is away there is nothing to be seen.
        let before = now();
        let Ok(answer) = asks.committed_offsets(asked, Duration::from_secs(1)) else {
            continue;
        };
        let mut offsets: Vec<(i32, Option<i64>)> = Vec::new();
        for element in answer.elements() {
            let offset = match (element.error(), element.offset()) {
                (Ok(()), Offset::Offset(offset)) => Some(offset),
                _ => None,
            };
            offsets.push((element.partition(), offset));
        }
        offsets.sort_unstable();
        let offsets = offsets.into_iter().map(|(_, offset)| offset).collect();
        commits.push(Commits {
            asked: before,
            at: now(),
            offsets,
        });
    }
    commits
}

/// As one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn index(choice: u64, of: u64) -> usize {
    usize::try_from(choice % of).expect("a few")
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).expect("it fits")
}

pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.expect("it is after 1970").as_millis();
    Millis::try_from(millis).expect("it fits")
}
