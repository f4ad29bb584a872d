//! Whole processes on one thread: the member's loop, its workers, the reader and
//! the pool as they are, over a log in memory, on a clock that is moved by hand.
//! Replaced are what lies outside: the group's coordinator, the broker's log,
//! the time, and who runs when.
//!
//! A schedule is drawn from a seed: which member, worker or reader does its next
//! step, what the coordinator does (assign, revoke, lose, crash, stop), what its
//! user asks for (scale, pause, seek backwards), what handlers say, when letters
//! are written. A handler that takes long
//! is one in the middle of whose call others do their steps, so every step of a
//! member or of another worker can come between the begin and the end of a
//! record.
//!
//! After each step the [`Checker`] has seen what was started, finished, and
//! stored, and says what must never be true. It knows nothing of how the
//! product comes to it. That it can see what it is there for is tested by
//! planting faults at the seams.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Command, Found, Member, Parts, Shared, StartFinder, ToMember};
use crate::clock::Clock;
use crate::config::{OnExhausted, Order, RetryPolicy, Settings, Workers};
use crate::handler::{Handler, Outcome};
use crate::member::assignment::{Ask, Resolve};
use crate::member::group::{Group, GroupEvent, Mark};
use crate::record::{AssignmentEpoch, Batch, Record, TopicPartition};
use crate::report::StopReason;
use crate::runtime::events::EventSink;
use crate::runtime::stop::Rung;
use crate::runtime::threads::{Common, Job, Spawn, WorkerThreads};
use crate::source::memory::{MemoryFactory, MemoryLog, MemoryRecord};
use crate::source::{MemoryBudget, Pulled, ReadFrom, Source, SourceFactory, Waker};
use crate::worker::completed::Completed;
use crate::worker::dead_letter::{DeadLetters, Delivery, Letter, Sent};
use crate::worker::engine::EngineFactory;
use crate::worker::gate::Gate;
use crate::worker::pool::Pool;
use crate::worker::pool::backlog::Lanes;
use crate::worker::pool::backlog::slot_of;
use crate::worker::pool::hands::{self, Hands};
use crate::worker::pool::reader::{self, Reader};
use crate::worker::pool::schedule::Rules;
use crate::worker::run::{FromWorker, Worker};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 3;
const KEYS: u64 = 5;
const ATTEMPTS: u32 = 4;
const PROCESSES: usize = 2;

/// Steps in which everything happens, and steps after that in which nothing
/// does but work: by then all of it must be done.
const WILD: usize = 250;
const CALM: usize = 6_000;

/// More than ever wait: whoever sends to a full queue would wait for itself.
const QUEUE: usize = 4_096;

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}

/// A mistake that the checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// What was handed over is committed as if it were done.
    CommitAtDelivery,
    /// What was read for an earlier assignment is taken for the present one.
    EpochIgnored,
    /// A record that is to be retried counts as done.
    RetryLost,
    /// Two records change places on their way.
    OrderSwapped,
    /// A commit says of a record that it is done, and it is not.
    NotedTooEarly,
    /// A seek begins before the group's commit has come down.
    RewindNotAwaited,
}

/// One partition as one process has it, from the group's giving it to its
/// taking it back, or to a seek: what comes after that is another life of it.
#[derive(Debug, Default)]
struct Ownership {
    /// What its source calls it.
    epoch: Option<AssignmentEpoch>,
    start: Option<i64>,
    /// Where seeks that were asked for go to, if they are not refused.
    sought: Vec<i64>,
    done: BTreeSet<i64>,
    failed: BTreeMap<i64, u32>,
    stored: Option<i64>,
}

/// A process, by its number and how often it was started before.
type Process = (usize, u32);

/// What happened, and what of it must not have.
#[derive(Debug, Default)]
struct Checker {
    order: Order,
    /// Ownerships by number; those that have come to an end are kept for
    /// handlers that are still inside.
    ownerships: Vec<Ownership>,
    current: BTreeMap<(Process, i32), usize>,
    /// Lanes that are in a handler.
    inside: BTreeSet<(Process, i32, u64)>,
    /// What was done by anybody.
    done: BTreeMap<i32, BTreeSet<i64>>,
    /// The lanes of all records.
    lanes: BTreeMap<(i32, i64), u64>,
    starts: u64,
    /// Records that were left out, since a commit said that they are done.
    remembered: usize,
    /// Lives that began by a seek.
    seeks: usize,
    /// What was sought and is not done again, which a crash must not skip.
    again: BTreeMap<i32, BTreeSet<i64>>,
    violations: Vec<String>,
}

impl Checker {
    fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    fn lane(&self, record: &Record<'_>) -> u64 {
        match self.order {
            Order::Partition => 0,
            Order::Key => u64::from(slot_of(record)),
            Order::Unordered => record.offset().unsigned_abs(),
        }
    }

    fn given(&mut self, process: Process, partition: i32) {
        self.ownerships.push(Ownership::default());
        let number = self.ownerships.len() - 1;
        self.current.insert((process, partition), number);
    }

    fn taken_back(&mut self, process: Process, partition: i32) {
        self.current.remove(&(process, partition));
    }

    /// What the commit says is done beyond `offset` must be so, and is not to be
    /// handled again.
    fn begins_at(&mut self, process: Process, lane: &Resolve, offset: i64, noted: &Completed) {
        let partition = number_of(&lane.partition);
        let beyond = self.lanes.range((partition, offset)..(partition, i64::MAX));
        let beyond: Vec<i64> = beyond.map(|(&(_, offset), _)| offset).collect();
        let noted = beyond.into_iter().filter(|&offset| noted.has(offset));
        let noted: BTreeSet<i64> = noted.collect();
        let done = self.done.entry(partition).or_default();
        let untrue: Vec<i64> = noted.difference(done).copied().collect();
        if !untrue.is_empty() {
            self.violated(format!("{partition}: {untrue:?} noted, and not done"));
        }
        let again = self.again.entry(partition).or_default();
        let skipped = again.iter().copied();
        let skipped: Vec<i64> = skipped
            .filter(|sought| *sought < offset || noted.contains(sought))
            .collect();
        if !skipped.is_empty() {
            self.violated(format!(
                "{partition} begins at {offset}, and {skipped:?} were sought"
            ));
        }
        if let Some(&number) = self.current.get(&(process, partition)) {
            let ownership = &mut self.ownerships[number];
            // Where it was sought, the question is whether the commit came down.
            if ownership.start.is_some() || !ownership.sought.is_empty() {
                return;
            }
            self.remembered += noted.len();
            ownership.epoch = Some(lane.epoch);
            ownership.start = Some(offset);
            ownership.done.extend(noted);
        }
    }

    /// Somebody may ask for that, if the process has the partition.
    fn sought(&mut self, process: Process, partition: i32, offset: i64) {
        if let Some(&number) = self.current.get(&(process, partition)) {
            self.ownerships[number].sought.push(offset);
        }
    }

    /// A source begins to read a partition, for the first time or again.
    fn read_from(&mut self, process: Process, partition: i32, epoch: AssignmentEpoch, from: i64) {
        let Some(&number) = self.current.get(&(process, partition)) else {
            return;
        };
        let ownership = &mut self.ownerships[number];
        if ownership.epoch == Some(epoch) {
            return;
        }
        let sought = ownership.sought.iter().position(|&sought| sought == from);
        let Some(which) = sought else {
            return self.violated(format!("{partition} begins anew at {from}, unasked"));
        };
        let later = ownership.sought.split_off(which + 1);
        self.seeks += 1;
        let beyond = self.lanes.range((partition, from)..(partition, i64::MAX));
        let again = beyond.map(|(&(_, offset), _)| offset).collect();
        self.again.insert(partition, again);
        self.ownerships.push(Ownership {
            epoch: Some(epoch),
            start: Some(from),
            sought: later,
            stored: Some(from),
            ..Ownership::default()
        });
        let number = self.ownerships.len() - 1;
        self.current.insert((process, partition), number);
    }

    /// Gives the ownership that the record belongs to.
    fn started(&mut self, process: Process, record: &Record<'_>) -> Option<usize> {
        self.starts += 1;
        let (partition, offset) = (record.partition(), record.offset());
        let place = format!("{partition}@{offset} by {process:?}");
        let lane = self.lane(record);
        if !self.inside.insert((process, partition, lane)) {
            self.violated(format!("two have lane {lane} of {place}"));
        }
        let Some(&number) = self.current.get(&(process, partition)) else {
            self.violated(format!(
                "{place} started after the partition was given back"
            ));
            return None;
        };
        let ownership = &self.ownerships[number];
        let start = ownership.start.unwrap_or(i64::MAX);
        let expected = ownership.failed.get(&offset).copied().unwrap_or(0) + 1;
        let before: Vec<i64> = self
            .lanes
            .range((partition, start)..(partition, offset.max(start)))
            .filter(|&(_, &other)| other == lane)
            .map(|(&(_, before), _)| before)
            .filter(|before| !ownership.done.contains(before))
            .collect();
        let mut wrong = Vec::new();
        if offset < start {
            wrong.push(format!("{place} lies before the start at {start}"));
        }
        if ownership.done.contains(&offset) {
            wrong.push(format!("{place} was done before"));
        }
        if record.attempt() != expected {
            wrong.push(format!(
                "{place} should be attempt {expected}, and is {}",
                record.attempt()
            ));
        }
        if !before.is_empty() {
            wrong.push(format!("{place} started before {before:?} of its lane"));
        }
        self.violations.extend(wrong);
        Some(number)
    }

    fn ended(&mut self, process: Process, record: &Record<'_>) {
        let lane = self.lane(record);
        self.inside.remove(&(process, record.partition(), lane));
    }

    fn failed(&mut self, ownership: Option<usize>, offset: i64, attempt: u32) {
        if let Some(number) = ownership {
            self.ownerships[number].failed.insert(offset, attempt);
        }
    }

    fn done(&mut self, ownership: Option<usize>, partition: i32, offset: i64) {
        self.done.entry(partition).or_default().insert(offset);
        self.again.entry(partition).or_default().remove(&offset);
        if let Some(number) = ownership {
            self.ownerships[number].done.insert(offset);
        }
    }

    fn stored(&mut self, process: Process, partition: i32, watermark: i64) {
        let Some(&number) = self.current.get(&(process, partition)) else {
            return self.violated(format!(
                "{partition} of {process:?} stored without having it"
            ));
        };
        let ownership = &mut self.ownerships[number];
        let before = ownership.stored.replace(watermark);
        if ownership.sought.contains(&watermark) {
            // Below what was committed, so that all before it is done.
            return;
        }
        let start = ownership.start.unwrap_or(0);
        let open: Vec<i64> = self
            .lanes
            .range((partition, start)..(partition, watermark.max(start)))
            .map(|(&(_, offset), _)| offset)
            .filter(|offset| !ownership.done.contains(offset))
            .collect();
        if !open.is_empty() {
            self.violated(format!(
                "{partition}@{watermark} of {process:?} stored, and {open:?} are not done"
            ));
        }
        if before.is_some_and(|before| before > watermark) {
            self.violated(format!(
                "{partition} went back from {before:?} to {watermark}"
            ));
        }
    }
}

/// The group's coordinator.
#[derive(Debug, Default)]
struct Coordinator {
    says: BTreeMap<Process, VecDeque<GroupEvent>>,
    owners: BTreeMap<i32, Process>,
    /// Partitions that are on their way, and to which process number.
    moving: BTreeMap<i32, usize>,
    stored: BTreeMap<(Process, i32), Mark>,
    committed: BTreeMap<i32, Mark>,
    lost: BTreeSet<Process>,
    closing: BTreeSet<Process>,
    closed: BTreeSet<Process>,
}

/// A letter that is under way.
struct UnderWay {
    ownership: Option<usize>,
    partition: i32,
    offset: i64,
    delivery: Arc<Delivery>,
}

/// What does steps.
enum Actor {
    Worker(Box<Worker>),
    Hands(Box<Hands>),
    Reader(Box<Reader>),
}

/// A process that runs.
struct Running {
    process: Process,
    member: Option<Member>,
    to_member: Sender<ToMember>,
    reports: Sender<FromWorker>,
    jobs: Receiver<Job>,
    pool: Option<Arc<Pool>>,
}

/// Everything of one schedule.
struct World {
    random: RefCell<fastrand::Rng>,
    order: Order,
    /// What is completed beyond the commits is in their metadata.
    remember_completed: bool,
    fault: Option<Fault>,
    clock: Clock,
    log: MemoryLog,
    checker: RefCell<Checker>,
    coordinator: RefCell<Coordinator>,
    processes: RefCell<BTreeMap<usize, Running>>,
    actors: RefCell<BTreeMap<(Process, usize), Actor>>,
    /// Letters that are under way, and whose they are.
    letters: RefCell<Vec<UnderWay>>,
    /// Who is in a handler, the innermost last: whose record becomes a letter.
    in_handlers: RefCell<BTreeMap<(Process, i32, i64), Option<usize>>>,
    restarts: Cell<u32>,
    depth: Cell<usize>,
    is_calm: Cell<bool>,
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

fn world() -> Rc<World> {
    WORLD.with_borrow(|world| Rc::clone(world.as_ref().expect("a schedule runs")))
}

impl World {
    fn below(&self, limit: usize) -> usize {
        self.random.borrow_mut().usize(..limit.max(1))
    }

    fn is_chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn append(&self) {
        let partition = i32::try_from(self.below(3)).expect("small");
        let key = self.random.borrow_mut().u64(..=KEYS);
        let record = MemoryRecord {
            // One in a few has none.
            key: (key < KEYS).then(|| key.to_string().into_bytes()),
            ..MemoryRecord::of("x")
        };
        if self.is_chance(10) {
            self.log.leave_hole(&tp(partition), 2);
        }
        let offset = self.log.append(&tp(partition), record);
        let lane = match self.order {
            Order::Partition => 0,
            Order::Unordered => offset.unsigned_abs(),
            Order::Key => key_lane(key, offset),
        };
        let mut checker = self.checker.borrow_mut();
        checker.lanes.insert((partition, offset), lane);
    }

    // Processes.

    fn start_process(&self, number: usize) {
        let process = (number, self.restarts.get());
        self.restarts.set(process.1 + 1);
        let (to_member, inbox) = bounded(QUEUE);
        let (reports, from_workers) = bounded(QUEUE);
        let (job_made, jobs) = bounded(QUEUE);
        let clock = self.clock.clone();
        let mut settings = Settings::new("nowhere:9092", "g");
        settings.topics.push(TOPIC.into());
        settings.order = self.order;
        settings.workers = Workers::Fixed(1 + self.below(3));
        settings.revoke_deadline = Duration::from_millis(500);
        settings.stop_deadline = Duration::from_secs(2);
        settings.restart_budget = u32::MAX;
        settings.remember_completed = self.remember_completed;
        let retry = RetryPolicy {
            attempts: ATTEMPTS,
            backoff: Duration::from_millis(50),
            on_exhausted: OnExhausted::Skip,
            ..RetryPolicy::default()
        };
        let events = EventSink::unobserved(clock.clone());
        let gate = Arc::new(Gate::new(Duration::MAX, clock.coarse()));
        let dead_letters: Option<Arc<dyn DeadLetters>> = Some(Arc::new(Office { process }));
        let pool = (self.order != Order::Partition).then(|| {
            let rules = Rules {
                drain: Duration::from_millis(200),
                lanes: match self.order {
                    Order::Key => Lanes::Keys,
                    _ => Lanes::Records,
                },
                remember_completed: self.remember_completed,
                #[cfg(feature = "tokio")]
                hands: 1,
                retry,
                dead_letters: dead_letters.clone(),
                count: None,
                events: events.clone(),
            };
            Arc::new(Pool::new(rules, clock.clone(), self.below(1 << 30) as u64))
        });
        let sources = SimSources {
            process,
            memory: MemoryFactory::new(self.log.clone(), clock.clone()),
        };
        let threads = WorkerThreads::new(Common {
            clock: clock.clone(),
            gate: Arc::clone(&gate),
            reports: reports.clone(),
            events: events.clone(),
            sources: Arc::new(sources),
            engines: Arc::new(EngineFactory::per_record(move |_| Acting { process })),
            retry,
            dead_letters,
            count: None,
            memory: Arc::new(MemoryBudget::new(1 << 20)),
            pool: pool.clone(),
            children: None,
            is_child: false,
            spawn: Box::new(Jobs(job_made)),
        });
        let (shared, _) = Shared::new(clock.coarse());
        let mut member = Member::new(Parts {
            settings,
            clock,
            group: Box::new(SimGroup { process }),
            starts: Box::new(SimStarts {
                process,
                to_member: to_member.clone(),
            }),
            threads,
            reports: from_workers,
            inbox,
            gate,
            events,
            shared: Arc::new(shared),
            topics: Vec::new(),
        });
        member.begin(&[]);
        self.processes.borrow_mut().insert(
            number,
            Running {
                process,
                member: Some(member),
                to_member,
                reports,
                jobs,
                pool,
            },
        );
        self.take_jobs(number);
        self.spread();
    }

    /// Makes actors of what a member wants to run.
    fn take_jobs(&self, number: usize) {
        let (process, jobs, reports) = {
            let processes = self.processes.borrow();
            let Some(running) = processes.get(&number) else {
                return;
            };
            let jobs: Vec<Job> = running.jobs.try_iter().collect();
            (running.process, jobs, running.reports.clone())
        };
        for job in jobs {
            let (worker, made) = match job {
                Job::Worker(context) => {
                    let worker = context.info.worker;
                    let made = Worker::open(context).map(|w| Actor::Worker(Box::new(w)));
                    (worker, made)
                }
                Job::Hands(context, pool) => {
                    let worker = context.info.worker;
                    let made = Hands::open(context, pool).map(|h| Actor::Hands(Box::new(h)));
                    (worker, made)
                }
                #[cfg(feature = "tokio")]
                Job::AsyncHands(..) => unreachable!("no such handler is simulated"),
                Job::StandIn(..) => unreachable!("no process is simulated"),
                Job::Reader(context, pool, memory) => {
                    let made = Reader::open(context, pool, memory).expect("memory can be read");
                    (reader::READER, Ok(Actor::Reader(Box::new(made))))
                }
            };
            match made {
                Ok(actor) => {
                    self.actors.borrow_mut().insert((process, worker), actor);
                }
                Err(exit) => {
                    let lanes = Vec::new();
                    let _ = reports.send(FromWorker::Exited {
                        worker,
                        exit,
                        lanes,
                    });
                }
            }
        }
    }

    /// A step of a member; its end where its run has ended.
    fn turn(&self, number: usize) {
        let member = self
            .processes
            .borrow_mut()
            .get_mut(&number)
            .and_then(|running| running.member.take());
        let Some(mut member) = member else {
            return;
        };
        member.turn();
        if member.ladder.rung() == Rung::Closed {
            drop(member.end());
            self.forget(number);
            return;
        }
        if let Some(running) = self.processes.borrow_mut().get_mut(&number) {
            running.member = Some(member);
        }
        self.take_jobs(number);
    }

    /// A process is gone, with everything that it had.
    fn forget(&self, number: usize) {
        let Some(running) = self.processes.borrow_mut().remove(&number) else {
            return;
        };
        let process = running.process;
        let actors: Vec<Actor> = {
            let mut all = self.actors.borrow_mut();
            let theirs: Vec<_> = all.keys().filter(|key| key.0 == process).copied().collect();
            theirs.iter().filter_map(|key| all.remove(key)).collect()
        };
        drop(actors);
        drop(running);
        let mut coordinator = self.coordinator.borrow_mut();
        coordinator.says.remove(&process);
        coordinator.owners.retain(|_, owner| *owner != process);
        coordinator.stored.retain(|(owner, _), _| *owner != process);
        let mut checker = self.checker.borrow_mut();
        checker.current.retain(|(owner, _), _| *owner != process);
        drop(checker);
        drop(coordinator);
        self.spread();
    }

    /// A step of a worker or a reader, unless it is in the middle of one.
    fn step(&self, key: (Process, usize)) {
        let Some(mut actor) = self.actors.borrow_mut().remove(&key) else {
            return;
        };
        self.depth.set(self.depth.get() + 1);
        let exit = match &mut actor {
            Actor::Worker(worker) => worker.step(),
            Actor::Hands(hands) => hands.step(),
            Actor::Reader(reader) => reader.step(),
        };
        self.depth.set(self.depth.get() - 1);
        let (process, worker) = key;
        let alive = {
            let processes = self.processes.borrow();
            let running = processes.get(&process.0).filter(|r| r.process == process);
            running.map(|running| (running.reports.clone(), running.pool.clone()))
        };
        let Some((reports, pool)) = alive else {
            // Killed in the middle of it.
            return;
        };
        let Some(exit) = exit else {
            self.actors.borrow_mut().insert(key, actor);
            return;
        };
        let report = match actor {
            Actor::Worker(actor) => {
                let (exit, lanes) = actor.finish(exit);
                FromWorker::Exited {
                    worker,
                    exit,
                    lanes,
                }
            }
            Actor::Hands(actor) => {
                let exit = actor.finish(exit);
                hands::exited(worker, exit, &pool.expect("it has one"))
            }
            Actor::Reader(actor) => reader::exited(exit, actor.lanes()),
        };
        let _ = reports.send(report);
    }

    // The coordinator.

    /// Gives what nobody has to somebody.
    fn spread(&self) {
        let alive = self.alive();
        if alive.is_empty() {
            return;
        }
        for partition in 0..PARTITIONS {
            let mut coordinator = self.coordinator.borrow_mut();
            let is_owned = coordinator.owners.contains_key(&partition);
            if is_owned {
                continue;
            }
            let wanted = coordinator.moving.remove(&partition);
            let chosen = wanted
                .and_then(|number| alive.iter().find(|process| process.0 == number))
                .copied()
                .unwrap_or(alive[self.below(alive.len())]);
            coordinator.owners.insert(partition, chosen);
            let says = coordinator.says.entry(chosen).or_default();
            says.push_back(GroupEvent::Assigned(vec![tp(partition)]));
        }
    }

    fn alive(&self) -> Vec<Process> {
        let processes = self.processes.borrow();
        let coordinator = self.coordinator.borrow();
        let all = processes.values().map(|running| running.process);
        all.filter(|process| !coordinator.closing.contains(process))
            .collect()
    }

    /// Takes a partition from whoever has it and has nothing else to hear.
    fn move_one(&self) {
        let partition = i32::try_from(self.below(3)).expect("small");
        let to = self.below(PROCESSES);
        let mut coordinator = self.coordinator.borrow_mut();
        let Some(&owner) = coordinator.owners.get(&partition) else {
            return;
        };
        let is_quiet = coordinator.says.get(&owner).is_none_or(VecDeque::is_empty);
        if is_quiet && !coordinator.moving.contains_key(&partition) {
            // To itself as well: it comes back at once.
            coordinator.moving.insert(partition, to);
            let says = coordinator.says.entry(owner).or_default();
            says.push_back(GroupEvent::Revoked {
                partitions: vec![tp(partition)],
                lost: false,
            });
        }
    }

    /// A session expires: its partitions are somebody else's before it knows.
    fn lose(&self) {
        let alive = self.alive();
        let Some(&process) = alive.get(self.below(alive.len())) else {
            return;
        };
        let mut coordinator = self.coordinator.borrow_mut();
        let is_quiet = coordinator
            .says
            .get(&process)
            .is_none_or(VecDeque::is_empty);
        let owned: Vec<i32> = coordinator
            .owners
            .iter()
            .filter(|(_, owner)| **owner == process)
            .map(|(partition, _)| *partition)
            .collect();
        if !is_quiet || owned.iter().any(|p| coordinator.moving.contains_key(p)) {
            return;
        }
        let others: Vec<_> = alive.iter().filter(|p| **p != process).copied().collect();
        coordinator.lost.insert(process);
        coordinator.stored.retain(|(owner, _), _| *owner != process);
        for partition in &owned {
            coordinator.owners.remove(partition);
            if let Some(&other) = others.first() {
                coordinator.owners.insert(*partition, other);
                let says = coordinator.says.entry(other).or_default();
                says.push_back(GroupEvent::Assigned(vec![tp(*partition)]));
            }
        }
        let partitions = owned.into_iter().map(tp).collect();
        let says = coordinator.says.entry(process).or_default();
        says.push_back(GroupEvent::Revoked {
            partitions,
            lost: true,
        });
    }

    fn commit(&self) {
        let mut coordinator = self.coordinator.borrow_mut();
        let stored = std::mem::take(&mut coordinator.stored);
        for ((process, partition), mark) in stored {
            let offset = mark.watermark;
            coordinator.committed.insert(partition, mark);
            let says = coordinator.says.entry(process).or_default();
            says.push_back(GroupEvent::Committed {
                offsets: vec![(tp(partition), offset)],
            });
        }
    }

    fn command(&self, make: impl FnOnce(&Self) -> Command) {
        let processes = self.processes.borrow();
        let all: Vec<_> = processes.values().collect();
        if let Some(running) = all.get(self.below(all.len())) {
            let (reply, _) = bounded(1);
            let command = make(self);
            let _ = running.to_member.send(ToMember::Command(command, reply));
        }
    }

    /// Somebody wants to have records again that were committed.
    fn seek(&self) {
        let partition = i32::try_from(self.below(3)).expect("small");
        let (process, offset) = {
            let coordinator = self.coordinator.borrow();
            let owner = coordinator.owners.get(&partition);
            let committed = coordinator.committed.get(&partition);
            let (Some(&process), Some(mark)) = (owner, committed) else {
                return;
            };
            let back = self.below(10) as u64;
            (process, mark.watermark.saturating_sub_unsigned(back).max(0))
        };
        let processes = self.processes.borrow();
        let Some(running) = processes.get(&process.0).filter(|r| r.process == process) else {
            return;
        };
        self.checker.borrow_mut().sought(process, partition, offset);
        let (reply, _) = bounded(1);
        let partition = tp(partition);
        let command = Command::Seek { partition, offset };
        let _ = running.to_member.send(ToMember::Command(command, reply));
    }

    fn stop_one(&self) {
        let processes = self.processes.borrow();
        let all: Vec<_> = processes.values().collect();
        if let Some(running) = all.get(self.below(all.len())) {
            let _ = running
                .to_member
                .send(ToMember::Stop(StopReason::StopCalled));
        }
    }

    fn tell_letter(&self) {
        let mut letters = self.letters.borrow_mut();
        if letters.is_empty() {
            return;
        }
        let place = self.below(letters.len());
        let UnderWay {
            ownership,
            partition,
            offset,
            delivery,
        } = letters.swap_remove(place);
        drop(letters);
        if self.is_calm.get() || self.is_chance(70) {
            let mut checker = self.checker.borrow_mut();
            checker.done(ownership, partition, offset);
            drop(checker);
            delivery.tell(Sent::Written);
        } else {
            delivery.tell(Sent::Failed("no broker".into()));
        }
    }

    /// One thing happens.
    fn act(&self) {
        let is_nested = self.depth.get() > 0;
        match self.below(100) {
            0..45 => {
                let keys: Vec<_> = self.actors.borrow().keys().copied().collect();
                if let Some(&key) = keys.get(self.below(keys.len())) {
                    self.step(key);
                }
            }
            45..75 => self.turn(self.below(PROCESSES)),
            75..80 => self.commit(),
            80..86 => self.tell_letter(),
            86..91 => {
                let millis = 1 + self.below(150) as u64;
                self.clock.advance(Duration::from_millis(millis));
            }
            _ if self.is_calm.get() => {}
            91..94 => self.append(),
            94..96 => self.move_one(),
            96 => self.lose(),
            97 if !is_nested => match self.below(4) {
                0 => self.forget(self.below(PROCESSES)),
                1 => self.stop_one(),
                _ => {
                    let missing = (0..PROCESSES).find(|n| !self.processes.borrow().contains_key(n));
                    if let Some(number) = missing {
                        self.start_process(number);
                    }
                }
            },
            98 if self.is_chance(50) => self.seek(),
            98 => self.command(|world| Command::Scale(Workers::Fixed(1 + world.below(4)))),
            99 => self.command(|world| Command::SetPaused {
                partitions: vec![tp(i32::try_from(world.below(3)).expect("small"))],
                paused: world.is_chance(50),
            }),
            _ => {}
        }
    }

    /// Nothing is taken away any more, and everything can be done.
    fn calm_down(&self) {
        self.is_calm.set(true);
        self.start_missing();
        let partitions: Vec<_> = (0..PARTITIONS).map(tp).collect();
        for running in self.processes.borrow().values() {
            for partition in &partitions {
                let (reply, _) = bounded(1);
                let resume = Command::SetPaused {
                    partitions: vec![partition.clone()],
                    paused: false,
                };
                let _ = running.to_member.send(ToMember::Command(resume, reply));
            }
        }
    }

    /// Starts what was killed, or has ended.
    fn start_missing(&self) {
        for number in 0..PROCESSES {
            if !self.processes.borrow().contains_key(&number) {
                self.start_process(number);
            }
        }
    }

    fn is_all_committed(&self) -> bool {
        let coordinator = self.coordinator.borrow();
        (0..PARTITIONS).all(|partition| {
            let end = self.log.end(&tp(partition));
            let committed = coordinator.committed.get(&partition);
            end == 0 || committed.is_some_and(|mark| mark.watermark == end)
        })
    }

    fn violations(&self) -> Vec<String> {
        self.checker.borrow().violations.clone()
    }
}

/// The lane of a record with that key: by the product's own function, since keys
/// may share a slot.
fn key_lane(key: u64, offset: i64) -> u64 {
    let log = MemoryLog::new();
    log.leave_hole(&tp(0), offset);
    log.append(
        &tp(0),
        MemoryRecord {
            key: (key < KEYS).then(|| key.to_string().into_bytes()),
            ..MemoryRecord::of("x")
        },
    );
    let clock = Clock::manual();
    let mut source = MemoryFactory::new(log, clock.clone())
        .open(0)
        .expect("it opens");
    source.start(ReadFrom {
        partition: tp(0),
        epoch: AssignmentEpoch(1),
        offset,
        until: None,
        paused: false,
    });
    match source.next(clock.now()) {
        Pulled::Batch(batch) => u64::from(batch.record(0, 1).map_or(0, |record| slot_of(&record))),
        other => panic!("{other:?}"),
    }
}

/// Keeps jobs for the world to take.
struct Jobs(Sender<Job>);

impl Spawn for Jobs {
    fn spawn(&self, _: String, job: Job) -> std::io::Result<Option<JoinHandle<()>>> {
        let _ = self.0.send(job);
        Ok(None)
    }
}

/// A handler in whose calls others act.
struct Acting {
    process: Process,
}

impl Handler for Acting {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let world = world();
        let (partition, offset, attempt) = (record.partition(), record.offset(), record.attempt());
        let ownership = world.checker.borrow_mut().started(self.process, record);
        let place = (self.process, partition, offset);
        world.in_handlers.borrow_mut().insert(place, ownership);
        if world.depth.get() < 4 {
            for _ in 0..world.below(8) {
                world.act();
            }
        }
        let mut checker = world.checker.borrow_mut();
        checker.ended(self.process, record);
        let said = if world.is_calm.get() {
            0
        } else {
            world.below(100)
        };
        let exhausted = attempt >= ATTEMPTS;
        match said {
            0..80 => {
                checker.done(ownership, partition, offset);
                Outcome::Done
            }
            80..84 => {
                checker.done(ownership, partition, offset);
                Outcome::skip("not wanted")
            }
            84..88 => Outcome::dead_letter("poison"),
            _ => {
                if exhausted {
                    // Skipped by policy.
                    checker.done(ownership, partition, offset);
                } else {
                    checker.failed(ownership, offset, attempt);
                }
                if world.fault == Some(Fault::RetryLost) && !exhausted {
                    return Outcome::Done;
                }
                if said >= 97 {
                    drop(checker);
                    // Without the hook that would print it.
                    resume_unwind(Box::new("planned".to_owned()));
                }
                Outcome::retry("not yet")
            }
        }
    }
}

/// Where letters go.
struct Office {
    process: Process,
}

impl DeadLetters for Office {
    fn topic(&self) -> &'static str {
        "dead"
    }

    fn send(&self, letter: &Letter<'_>, delivery: &Arc<Delivery>) {
        let world = world();
        let (partition, offset) = (letter.record.partition(), letter.record.offset());
        let place = (self.process, partition, offset);
        let ownership = world.in_handlers.borrow().get(&place).copied().flatten();
        let mut checker = world.checker.borrow_mut();
        if checker.current.get(&(self.process, partition)) != ownership.as_ref() {
            checker.violated(format!("{place:?} became a letter after it was given back"));
        }
        drop(checker);
        world.letters.borrow_mut().push(UnderWay {
            ownership,
            partition,
            offset,
            delivery: Arc::clone(delivery),
        });
    }

    fn patience(&self) -> Duration {
        // On a clock that stands still nobody can wait for it.
        Duration::ZERO
    }

    fn recall(&self) {}
}

/// The membership of a process.
struct SimGroup {
    process: Process,
}

fn number_of(partition: &TopicPartition) -> i32 {
    partition.partition()
}

impl Group for SimGroup {
    fn join(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn poll(&mut self) -> Option<GroupEvent> {
        let world = world();
        let mut coordinator = world.coordinator.borrow_mut();
        coordinator.says.get_mut(&self.process)?.pop_front()
    }

    fn on_ready(&mut self, _: Arc<dyn Fn() + Send + Sync>) {}

    fn answer_assign(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        let world = world();
        let mut checker = world.checker.borrow_mut();
        for partition in partitions {
            checker.given(self.process, number_of(partition));
        }
        Ok(())
    }

    fn answer_revoke(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        let world = world();
        let mut coordinator = world.coordinator.borrow_mut();
        let mut checker = world.checker.borrow_mut();
        let was_lost = coordinator.lost.remove(&self.process);
        for partition in partitions.iter().map(number_of) {
            checker.taken_back(self.process, partition);
            let stored = coordinator.stored.remove(&(self.process, partition));
            if was_lost {
                continue;
            }
            if let Some(offset) = stored {
                coordinator.committed.insert(partition, offset);
            }
            if coordinator.owners.get(&partition) == Some(&self.process) {
                coordinator.owners.remove(&partition);
            }
        }
        if coordinator.closing.contains(&self.process) {
            coordinator.closed.insert(self.process);
        }
        drop(checker);
        drop(coordinator);
        world.spread();
        Ok(())
    }

    fn is_lost(&self) -> bool {
        world().coordinator.borrow().lost.contains(&self.process)
    }

    fn store(&mut self, marks: &[Mark]) -> Vec<(TopicPartition, String)> {
        let world = world();
        let mut coordinator = world.coordinator.borrow_mut();
        let mut checker = world.checker.borrow_mut();
        let mut refused = Vec::new();
        for mark in marks {
            let mut mark = mark.clone();
            let partition = &mark.partition;
            let watermark = &mut mark.watermark;
            let number = number_of(partition);
            if world.fault == Some(Fault::CommitAtDelivery) {
                let handed = world.in_handlers.borrow();
                let of_it = handed
                    .keys()
                    .filter(|at| (at.0, at.1) == (self.process, number));
                *watermark = of_it.map(|at| at.2 + 1).max().unwrap_or(0).max(*watermark);
            }
            if coordinator.owners.get(&number) != Some(&self.process) {
                refused.push((partition.clone(), "not assigned".to_owned()));
                continue;
            }
            if world.fault == Some(Fault::NotedTooEarly) {
                let untrue = Completed::between([*watermark], *watermark + 20);
                mark.note = untrue.write(*watermark).map(|written| written.text.into());
            }
            checker.stored(self.process, number, *watermark);
            coordinator.stored.insert((self.process, number), mark);
        }
        refused
    }

    /// Arrives, or does not: nobody is told.
    fn commit_now(&mut self, marks: &[Mark]) -> Result<(), String> {
        let refused = self.store(marks);
        let world = world();
        let mut coordinator = world.coordinator.borrow_mut();
        for mark in marks {
            let is_refused = refused.iter().any(|(other, _)| *other == mark.partition);
            let is_arriving = world.below(4) > 0 && world.fault != Some(Fault::RewindNotAwaited);
            if is_arriving && !is_refused && !coordinator.lost.contains(&self.process) {
                let number = number_of(&mark.partition);
                coordinator.committed.insert(number, mark.clone());
            }
        }
        Ok(())
    }

    fn begin_close(&mut self) {
        let world = world();
        let mut coordinator = world.coordinator.borrow_mut();
        coordinator.closing.insert(self.process);
        let owned: Vec<_> = coordinator
            .owners
            .iter()
            .filter(|(_, owner)| **owner == self.process)
            .map(|(partition, _)| tp(*partition))
            .collect();
        let lost = coordinator.lost.contains(&self.process);
        let says = coordinator.says.entry(self.process).or_default();
        says.push_back(GroupEvent::Revoked {
            partitions: owned,
            lost,
        });
    }

    fn is_closed(&self) -> bool {
        world().coordinator.borrow().closed.contains(&self.process)
    }

    fn session_timeout(&self) -> Option<Duration> {
        None
    }

    fn finish(self: Box<Self>, _: Duration) -> bool {
        true
    }
}

/// Everything begins at what is committed, else at the beginning.
struct SimStarts {
    process: Process,
    to_member: Sender<ToMember>,
}

impl StartFinder for SimStarts {
    fn resolve(&self, lanes: Vec<Resolve>) {
        let world = world();
        for lane in lanes {
            assert_eq!(lane.ask, Ask::Start);
            let number = number_of(&lane.partition);
            let mark = world.coordinator.borrow().committed.get(&number).cloned();
            let mut committed = mark.as_ref().map(|mark| mark.watermark);
            if world.fault == Some(Fault::RewindNotAwaited) {
                let checker = world.checker.borrow();
                let current = checker.current.get(&(self.process, number));
                let sought = current.and_then(|&n| checker.ownerships[n].sought.last());
                committed = sought.copied().or(committed);
            }
            let note = mark.and_then(|mark| mark.note);
            let offset = committed.unwrap_or(0);
            let noted = note.as_deref().map_or_else(Completed::default, |note| {
                Completed::read(note).expect("ours")
            });
            world
                .checker
                .borrow_mut()
                .begins_at(self.process, &lane, offset, &noted);
            let found = Found {
                ask: lane.ask,
                offset,
                committed,
                note,
                truncated_at: None,
                end_offset: None,
            };
            let _ = self.to_member.send(ToMember::Start {
                epoch: lane.epoch,
                start: Ok(found),
            });
        }
    }

    fn forget(&self, _: Vec<Arc<str>>) {}

    fn is_alive(&self) -> bool {
        true
    }

    fn stop(self: Box<Self>, _: Duration) {}
}

struct SimSources {
    process: Process,
    memory: MemoryFactory,
}

impl SourceFactory for SimSources {
    fn open(&self, worker: usize) -> std::io::Result<Box<dyn Source>> {
        Ok(Box::new(Watched {
            process: self.process,
            inner: self.memory.open(worker)?,
            kept: BTreeMap::new(),
            late: None,
        }))
    }
}

/// A source of which the checker knows what it reads, with a planted mistake
/// where there is one.
struct Watched {
    process: Process,
    inner: Box<dyn Source>,
    /// The last batch of each partition.
    kept: BTreeMap<i32, Batch>,
    late: Option<Batch>,
}

fn another(batch: &Batch) -> Batch {
    Batch {
        partition: batch.partition.clone(),
        bytes: batch.bytes.clone(),
        entries: batch.entries.clone(),
        ..*batch
    }
}

impl Source for Watched {
    fn start(&mut self, from: ReadFrom) {
        let partition = number_of(&from.partition);
        world()
            .checker
            .borrow_mut()
            .read_from(self.process, partition, from.epoch, from.offset);
        if world().fault == Some(Fault::EpochIgnored) {
            self.late = self
                .kept
                .remove(&number_of(&from.partition))
                .map(|batch| Batch {
                    epoch: from.epoch,
                    ..batch
                });
        }
        self.inner.start(from);
    }

    fn stop(&mut self, epoch: AssignmentEpoch) {
        self.inner.stop(epoch);
    }

    fn rewind(&mut self, epoch: AssignmentEpoch, offset: i64, not_before: Option<Instant>) {
        self.inner.rewind(epoch, offset, not_before);
    }

    fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        self.inner.set_paused(epoch, paused);
    }

    fn next(&mut self, deadline: Instant) -> Pulled {
        if let Some(late) = self.late.take() {
            return Pulled::Batch(late);
        }
        let mut pulled = self.inner.next(deadline);
        if let Pulled::Batch(batch) = &mut pulled {
            let fault = world().fault;
            if fault == Some(Fault::EpochIgnored) {
                let partition = number_of(&batch.partition);
                self.kept.insert(partition, another(batch));
            }
            let last = batch.entries.len();
            if fault == Some(Fault::OrderSwapped) && last > batch.cursor + 1 {
                batch.entries.swap(last - 2, last - 1);
            }
        }
        pulled
    }

    fn put_back(&mut self, batch: Batch) {
        self.inner.put_back(batch);
    }

    fn recycle(&mut self, batch: Batch) {
        self.inner.recycle(batch);
    }

    fn is_starved(&self) -> bool {
        self.inner.is_starved()
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

/// What became of a schedule.
struct Outcomes {
    /// What must not have happened.
    violations: Vec<String>,
    /// Records that were started, and that were left out since a commit said
    /// that they are done.
    starts: u64,
    remembered: usize,
    /// Seeks that were followed.
    seeks: usize,
}

/// Runs one schedule.
fn run_schedule(seed: u64, fault: Option<Fault>) -> Outcomes {
    let mut random = fastrand::Rng::with_seed(seed);
    let order = [Order::Partition, Order::Key, Order::Unordered][random.usize(..3)];
    let remember_completed = random.bool();
    let world = Rc::new(World {
        order,
        remember_completed,
        fault,
        random: RefCell::new(random),
        clock: Clock::manual(),
        log: MemoryLog::new(),
        checker: RefCell::new(Checker {
            order,
            ..Checker::default()
        }),
        coordinator: RefCell::default(),
        processes: RefCell::default(),
        actors: RefCell::default(),
        letters: RefCell::default(),
        in_handlers: RefCell::default(),
        restarts: Cell::new(0),
        depth: Cell::new(0),
        is_calm: Cell::new(false),
    });
    WORLD.set(Some(Rc::clone(&world)));
    world.log.set_batch_len(1 + world.below(12));
    for _ in 0..30 {
        world.append();
    }
    world.start_process(0);
    world.start_process(1);
    for _ in 0..WILD {
        world.act();
        if !world.violations().is_empty() {
            break;
        }
    }
    if world.violations().is_empty() {
        world.calm_down();
        let done = (0..CALM).any(|_| {
            world.start_missing();
            world.act();
            !world.violations().is_empty() || world.is_all_committed()
        });
        if !done {
            let committed = world.coordinator.borrow().committed.clone();
            let ends: Vec<_> = (0..PARTITIONS).map(|p| world.log.end(&tp(p))).collect();
            let owners = world.coordinator.borrow().owners.clone();
            let what = format!("not done in peace: {committed:?} of {ends:?}, {owners:?}");
            world.checker.borrow_mut().violated(what);
        }
    }
    let violations = world.violations();
    let (starts, remembered, seeks) = {
        let checker = world.checker.borrow();
        (checker.starts, checker.remembered, checker.seeks)
    };
    // Whoever is dropped may want the world.
    for number in 0..PROCESSES {
        let running = world.processes.borrow_mut().remove(&number);
        drop(running);
    }
    let actors = std::mem::take(&mut *world.actors.borrow_mut());
    drop(actors);
    WORLD.set(None);
    let order = world.order;
    Outcomes {
        violations: violations
            .into_iter()
            .map(|what| format!("seed {seed} ({order}): {what}"))
            .collect(),
        starts,
        remembered,
        seeks,
    }
}

/// Runs the schedule of `KEEPUP_TEST_SEED` alone where that is set.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("KEEPUP_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..count).collect(),
    }
}

#[test]
fn in_no_schedule_is_anything_lost_shared_out_of_order_or_committed_before_it_is_done() {
    let seeds = seeds(20_000);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let some = seeds.len().div_ceil(cores);
    std::thread::scope(|threads| {
        for seeds in seeds.chunks(some) {
            threads.spawn(move || {
                for &seed in seeds {
                    let Outcomes { violations, .. } = run_schedule(seed, None);
                    assert!(violations.is_empty(), "{}", violations.join("\n"));
                }
            });
        }
    });
}

#[test]
fn the_simulation_finds_faults_that_are_planted() {
    for fault in [
        Fault::CommitAtDelivery,
        Fault::EpochIgnored,
        Fault::RetryLost,
        Fault::OrderSwapped,
        Fault::NotedTooEarly,
        Fault::RewindNotAwaited,
    ] {
        let is_found = |seed: &u64| !run_schedule(*seed, Some(fault)).violations.is_empty();
        let found = (0..300).find(is_found);
        assert!(found.is_some(), "{fault:?} was not found");
    }
    // They look at something: a schedule in which nothing happens holds all that is promised.
    let (mut starts, mut remembered, mut seeks) = (0, 0, 0);
    for seed in 0..300 {
        let outcomes = run_schedule(seed, None);
        starts += outcomes.starts;
        remembered += outcomes.remembered;
        seeks += outcomes.seeks;
    }
    assert!(seeks > 100, "{seeks} seeks in 300 schedules");
    assert!(starts > 10_000, "{starts} records in 300 schedules");
    assert!(
        remembered > 100,
        "{remembered} records left out in 300 schedules"
    );
}
