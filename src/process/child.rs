//! The child's side: what a process does that was started as a worker.
//!
//! Its main thread stands between the line and the worker: to the worker it is
//! the member, to the parent it is the worker. It runs the same
//! [`WorkerThreads`] as a member does, with one worker in it (and, where records
//! of a partition may overtake one another, the reader that feeds it).
//!
//! What it tells goes out in an order that nothing depends on by chance: first
//! it takes the worker's reports, then it reads the trackers, then it takes the
//! events; it sends the events, then the numbers, then the reports. Whatever the
//! worker did before it reported is in what is sent before the report, and what
//! happened before a watermark moved is told before the watermark. Events do not
//! wait for the rest: that a partition came is known before a record of it can
//! have been fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Signal, getpgrp, getpid, kill_current_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::launch;
use super::line::{self, Incoming, LineError};
use super::message::{
    Exit, FailedRecord, Happened, LANES_AT_A_TIME, LaneNumbers, ToChild, ToParent, VERSION, Welcome,
};
use super::watch::PULSE;
use crate::clock::{Clock, Coarse};
use crate::config::{Builder, Settings};
use crate::error::Error;
use crate::event::EventKind;
use crate::kafka::lookup::Lookup;
use crate::record::AssignmentEpoch;
use crate::report::WorkerStop;
use crate::runtime::events::{EventQueue, EventSink};
use crate::runtime::start::{Kit, check, pool};
use crate::runtime::threads::{Common, OnThreads, WorkerThreads};
use crate::source::MemoryBudget;
use crate::worker::completed::Completed;
use crate::worker::engine::EngineFactory;
use crate::worker::gate::Gate;
use crate::worker::lane::{Failed, LaneStart, ReleaseCause};
use crate::worker::pool::reader::READER;
use crate::worker::run::{FromWorker, WorkerExit};
use crate::worker::samples::Collected;
use crate::worker::tracker::{CountBudget, Numbers, Tracker};

/// Messages of the parent that wait to be taken. It sends no more than it has
/// wishes, and waits where they are not read.
const INBOX: usize = 64;

/// How often numbers are told while they change. Where they have not changed they
/// are looked at less often: 64 processes that idle should cost nothing.
const TELL: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(250);

/// How long the parent may take to answer at first.
const WELCOME_WITHIN: Duration = Duration::from_secs(30);

/// How long a message may take to be taken by the parent, which may be stopped.
const SENT_WITHIN: Duration = Duration::from_mins(1);

/// How long one write waits.
const WRITE: Duration = Duration::from_secs(1);

/// Read at a time.
const CHUNK: usize = 64 * 1024;

/// How many records are asked for at a time, where they are counted: doubling from
/// the one to the other as long as they are used up.
const FIRST_WANTED: u64 = 10_000;
const MOST_WANTED: u64 = 4_000_000;

/// The parent was told how the worker ended.
const TOLD: i32 = 0;
/// There is no parent any more, or none that listens.
const ORPHANED: i32 = 1;

/// The parent is gone, or does not listen: nobody would commit what is done.
#[derive(Debug)]
struct Orphaned;

/// Becomes the worker that this process was started as. Never returns.
pub(crate) fn run(builder: Builder, engines: EngineFactory) -> ! {
    let code = match begin(builder, engines) {
        Ok(()) => TOLD,
        Err(Orphaned) => ORPHANED,
    };
    std::process::exit(code)
}

/// What both have to agree on, by name: the parent decides by its own settings
/// what the child will do by its own.
pub(crate) fn terms(settings: &Settings, engines: &EngineFactory) -> Vec<(String, String)> {
    let batches = engines
        .batch_limits()
        .map(|limits| (limits.max_records, limits.max_wait));
    let terms: [(&str, &dyn std::fmt::Debug); 10] = [
        ("group", &settings.group),
        ("order", &settings.order),
        ("isolation", &settings.isolation),
        ("source", &settings.source_in_force()),
        ("retry", &settings.retry),
        ("dead_letter", &settings.dead_letter),
        ("remember_completed", &settings.remember_completed),
        ("count", &settings.count.is_some()),
        ("batches", &batches),
        ("futures", &engines.is_async()),
    ];
    let told = terms.map(|(name, value)| (name.to_owned(), format!("{value:?}")));
    Vec::from(told)
}

fn begin(builder: Builder, engines: EngineFactory) -> Result<(), Orphaned> {
    let line = launch::take_line().map_err(|error| {
        tracing::error!(%error, "this process was started as a worker and has no line to its parent");
        Orphaned
    })?;
    let mut parent = Parent::open(line)?;
    parent.say(&ToParent::Hello {
        version: VERSION,
        pid: std::process::id(),
        terms: terms(&builder.settings, &engines),
    })?;
    let heard = match parent.listen() {
        Ok(heard) => heard,
        Err(error) => return parent.say_not_started(&error),
    };
    let Ok(ToChild::Welcome(welcome)) = heard.recv_timeout(WELCOME_WITHIN) else {
        return Err(Orphaned);
    };
    // A terminal or a container signals every process of the program. The parent
    // decides what that means, and says so.
    let _signals = ignore_signals();
    let mut settings = builder.settings;
    settings.bootstrap.clone_from(&welcome.bootstrap);
    match Child::new(settings, engines, &welcome, parent, heard) {
        Ok(child) => child.work(),
        Err((mut parent, error)) => parent.say_not_started(&error),
    }
}

/// As long as it lives, signals that ask for an end do nothing here.
fn ignore_signals() -> Vec<signal_hook::SigId> {
    let never_read = Arc::new(std::sync::atomic::AtomicBool::new(false));
    [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter_map(|signal| {
            signal_hook::flag::register(signal, Arc::clone(&never_read))
                .inspect_err(
                    |error| tracing::warn!(signal, %error, "a signal would end this worker"),
                )
                .ok()
        })
        .collect()
}

/// The line to the parent, to speak into.
struct Parent {
    line: UnixStream,
    bytes: Vec<u8>,
    clock: Clock,
}

impl Parent {
    fn open(line: UnixStream) -> Result<Self, Orphaned> {
        line.set_write_timeout(Some(WRITE)).map_err(|error| {
            tracing::error!(%error, "the line to the parent cannot be used");
            Orphaned
        })?;
        Ok(Self {
            line,
            bytes: Vec::new(),
            clock: Clock::System,
        })
    }

    /// Gives what is heard from it; disconnected where it is gone.
    fn listen(&self) -> Result<Receiver<ToChild>, Error> {
        let refused = |source| Error::System {
            what: "start a thread that listens to the parent",
            source,
        };
        let ear = self.line.try_clone().map_err(refused)?;
        let (said, heard) = bounded(INBOX);
        std::thread::Builder::new()
            .name("keepup-line".into())
            // Not joined: it waits for the parent, and ends with the process.
            .spawn(move || listen(ear, &said))
            .map_err(refused)?;
        Ok(heard)
    }

    /// Says that the worker could not be started, which is its end.
    fn say_not_started(&mut self, error: &Error) -> Result<(), Orphaned> {
        let why = WorkerStop::SourceFailed(error.to_string());
        self.say(&ToParent::Exited {
            exit: Exit::of(WorkerExit::Failed(why)),
            lanes: Vec::new(),
        })
    }

    /// Says something. Waits where the parent does not listen at the moment.
    fn say(&mut self, message: &ToParent) -> Result<(), Orphaned> {
        self.bytes.clear();
        if let Err(error) = line::write(&mut self.bytes, message) {
            tracing::error!(%error, "the parent cannot be told; please report this");
            return Err(Orphaned);
        }
        let until = self.clock.now() + SENT_WITHIN;
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            match self.line.write(rest) {
                Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::TimedOut
                            | std::io::ErrorKind::Interrupted
                    ) && self.clock.now() < until => {}
                Ok(_) | Err(_) => return Err(Orphaned),
            }
        }
        Ok(())
    }
}

fn listen(mut ear: UnixStream, said: &Sender<ToChild>) {
    let mut incoming = Incoming::default();
    let mut chunk = vec![0; CHUNK];
    let heard = loop {
        match ear.read(&mut chunk) {
            Ok(0) => break incoming.end(),
            Ok(read) => incoming.push(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => break Err(LineError::from(error)),
        }
        let passed_on = loop {
            match incoming.next() {
                Ok(None) => break Ok(true),
                // Nobody listens any more where the process ends.
                Ok(Some(message)) => {
                    if said.send(message).is_err() {
                        break Ok(false);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        match passed_on {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = heard {
        tracing::error!(%error, "the parent is not to be understood any more");
    }
}

/// A lane as it was told of last.
struct Held {
    tracker: Arc<Tracker>,
    topic: Arc<str>,
    told: Numbers,
    lag: Collected,
    lead: Collected,
    completed: Option<Arc<Completed>>,
}

struct Child {
    parent: Parent,
    heard: Receiver<ToChild>,
    settings: Settings,
    clock: Clock,
    worker: usize,
    threads: WorkerThreads,
    reports: Receiver<FromWorker>,
    events: EventQueue,
    gate: Arc<Gate>,
    memory: Arc<MemoryBudget>,
    count: Option<Arc<CountBudget>>,
    lookup: Lookup,
    lanes: BTreeMap<AssignmentEpoch, Held>,
    has_said_open: bool,
    /// Numbers had changed when they were looked at last.
    had_news: bool,
    /// When numbers were told. `None` where they are wanted at once: what is in a
    /// handler when the parent asks for an end may be there when it kills this
    /// process.
    told_at: Option<Coarse>,
    said_at: Coarse,
    /// What was asked for and not granted yet.
    has_asked: bool,
    /// How much to ask for the next time.
    wants: u64,
}

impl Child {
    fn new(
        settings: Settings,
        engines: EngineFactory,
        welcome: &Welcome,
        parent: Parent,
        heard: Receiver<ToChild>,
    ) -> Result<Self, (Parent, Error)> {
        let clock = Clock::System;
        let (events, queue) = EventSink::to_another(&clock);
        let kit = check(&settings, &engines).and_then(|()| Kit::of_worker(&settings, &clock));
        let kit = match kit {
            Ok(kit) => kit,
            Err(error) => return Err((parent, error)),
        };
        let (reports, from_workers) = bounded(INBOX);
        let gate = Arc::new(Gate::new(welcome.gate_limit, clock.coarse()));
        // Shut until the parent's gate is known.
        gate.shut();
        let count = settings.count.map(|_| Arc::new(CountBudget::new(0)));
        let pool = pool(
            &settings,
            engines.is_async(),
            &clock,
            &events,
            kit.dead_letters.clone(),
            count.clone(),
        );
        let threads = WorkerThreads::new(Common {
            clock: clock.clone(),
            gate: Arc::clone(&gate),
            reports,
            events,
            sources: kit.sources,
            engines: Arc::new(engines),
            retry: settings.retry,
            dead_letters: kit.dead_letters,
            count: count.clone(),
            memory: Arc::clone(&kit.memory),
            pool,
            spawn: Box::new(OnThreads),
            children: None,
            is_child: true,
        });
        let now = clock.coarse();
        let mut child = Self {
            parent,
            heard,
            settings,
            clock,
            worker: welcome.worker,
            threads,
            reports: from_workers,
            events: queue,
            gate,
            memory: kit.memory,
            count,
            lookup: kit.lookup,
            lanes: BTreeMap::new(),
            has_said_open: false,
            had_news: false,
            told_at: Some(now),
            said_at: now,
            has_asked: false,
            wants: FIRST_WANTED,
        };
        let started = child.threads.start(child.worker, welcome.restarts);
        let started = started.and_then(|()| child.threads.start_reader());
        match started {
            Ok(()) => Ok(child),
            Err(source) => Err((
                child.parent,
                Error::System {
                    what: "start a thread",
                    source,
                },
            )),
        }
    }

    /// Works until the worker has ended and the parent knows; an error where
    /// there is no parent any more.
    fn work(mut self) -> Result<(), Orphaned> {
        let told = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some((exit, lanes))) => {
                    let exit = Exit::of(exit);
                    let told = self.parent.say(&ToParent::Exited { exit, lanes });
                    break told;
                }
                Err(Orphaned) => break Err(Orphaned),
            }
        };
        if told.is_err() {
            self.leave_alone();
        }
        told
    }

    fn turn(&mut self) -> Result<Option<(WorkerExit, Released)>, Orphaned> {
        let mut reports = Vec::new();
        let heard = select! {
            recv(self.heard) -> message => Some(message.map_err(|_| Orphaned)?),
            recv(self.events.arrivals()) -> event => {
                let events = event.ok().map(|event| self.events.with(event));
                self.tell_events(events.unwrap_or_default())?;
                None
            }
            recv(self.reports) -> report => {
                reports.extend(report);
                None
            }
            default(self.patience()) => None,
        };
        if let Some(message) = heard {
            self.take(message, &mut reports);
        }
        while let Ok(message) = self.heard.try_recv() {
            self.take(message, &mut reports);
        }
        reports.extend(self.reports.try_iter());
        self.tell(reports)
    }

    /// How long there may be nothing to do.
    fn patience(&self) -> Duration {
        if self.had_news || !self.has_said_open {
            TELL
        } else {
            LOOK
        }
    }

    /// Whom the lanes go to.
    fn reads(&self) -> usize {
        if self.threads.are_sharing() {
            READER
        } else {
            self.worker
        }
    }

    fn take(&mut self, message: ToChild, reports: &mut Vec<FromWorker>) {
        let now = self.clock.now();
        match message {
            // Once is enough.
            ToChild::Welcome(_) => {}
            ToChild::Take { lanes, local } => {
                let starts: Vec<LaneStart> =
                    lanes.into_iter().map(|lane| lane.start(now)).collect();
                let topics: BTreeSet<Arc<str>> = starts
                    .iter()
                    .map(|start| start.partition.shared_topic())
                    .collect();
                self.lookup.want_topics(topics);
                for start in &starts {
                    self.lanes.insert(
                        start.epoch,
                        Held {
                            tracker: Arc::clone(&start.tracker),
                            topic: start.partition.shared_topic(),
                            told: Numbers::at_start(start.offset),
                            lag: Collected::default(),
                            lead: Collected::default(),
                            completed: None,
                        },
                    );
                }
                self.threads.hand(self.reads(), starts, local);
            }
            ToChild::Release { epochs, cause } => {
                self.release(epochs, cause, reports);
                self.told_at = None;
            }
            ToChild::SetPaused { epochs, paused } => {
                self.threads.set_paused(self.reads(), epochs, paused);
            }
            ToChild::Beat { at_ms, is_shut } => {
                // In the order of the gate: shut before the beat that would open.
                if is_shut {
                    self.gate.shut();
                }
                self.gate.beat(Coarse::from_millis(at_ms));
                if !is_shut {
                    self.gate.open();
                }
            }
            ToChild::Sharers(workers) => self.memory.set_workers(workers),
            ToChild::Granted(records) => {
                self.has_asked = false;
                if let Some(count) = &self.count {
                    count.give_back(usize::try_from(records).unwrap_or(usize::MAX));
                }
            }
            ToChild::Stop { cause } => {
                // The worker follows when the reader has ended: it has to finish
                // what that gives back.
                self.threads.stop(self.reads(), cause);
                self.told_at = None;
            }
        }
    }

    fn release(
        &mut self,
        epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
        reports: &mut Vec<FromWorker>,
    ) {
        if cause == ReleaseCause::Lost {
            // Nothing more of it is started, however late the worker hears of it.
            for held in epochs.iter().filter_map(|epoch| self.lanes.get(epoch)) {
                held.tracker.give_up();
            }
        }
        let lanes = self.threads.release(self.reads(), epochs, cause);
        if !lanes.is_empty() {
            let cause = None;
            reports.push(FromWorker::Released { lanes, cause });
        }
    }

    /// Tells what is news, in the order that the head of this file gives.
    fn tell(
        &mut self,
        reports: Vec<FromWorker>,
    ) -> Result<Option<(WorkerExit, Released)>, Orphaned> {
        let now = self.clock.coarse();
        let is_time = self.told_at.is_none_or(|at| now.since(at) >= TELL);
        let is_due = is_time || !reports.is_empty();
        if is_due {
            self.told_at = Some(now);
            let numbers = self.numbers();
            self.had_news = !numbers.is_empty();
            self.tell_events(self.events.take())?;
            let mut numbers = numbers.into_iter().peekable();
            while numbers.peek().is_some() {
                let some = numbers.by_ref().take(LANES_AT_A_TIME).collect();
                self.say(&ToParent::Numbers(some))?;
            }
            self.tell_needs()?;
        }
        if !self.has_said_open && self.threads.has_opened(self.worker) {
            self.has_said_open = true;
            self.say(&ToParent::Opened)?;
        }
        for report in reports {
            if let Some(end) = self.tell_report(report)? {
                return Ok(Some(end));
            }
        }
        if now.since(self.said_at) >= PULSE {
            self.say(&ToParent::Pulse)?;
        }
        Ok(None)
    }

    fn tell_events(&mut self, events: Vec<EventKind>) -> Result<(), Orphaned> {
        for kind in events {
            if let Some(happened) = Happened::of(kind) {
                self.say(&ToParent::Happened(happened))?;
            }
        }
        Ok(())
    }

    fn tell_report(
        &mut self,
        report: FromWorker,
    ) -> Result<Option<(WorkerExit, Released)>, Orphaned> {
        let now = self.clock.now();
        match report {
            FromWorker::Released { lanes, cause } => {
                self.forget(&lanes);
                self.say(&ToParent::Released {
                    lanes: told(lanes, now),
                    cause,
                })?;
            }
            FromWorker::ReadFailed {
                epoch,
                offset,
                error,
            } => self.say(&ToParent::ReadFailed {
                epoch,
                offset,
                error,
            })?,
            FromWorker::Exited {
                worker,
                exit,
                lanes,
            } => {
                self.threads.join(worker);
                // The reader is gone, and not for a reason of its own: the worker
                // ends in order.
                if worker == READER && exit == WorkerExit::Asked && self.threads.running() > 0 {
                    self.threads.stop(self.worker, ReleaseCause::Revoked);
                    return Ok(None);
                }
                let mut lanes = told(lanes, now);
                for epoch in self.lanes.keys() {
                    if !lanes.iter().any(|(other, _)| other == epoch) {
                        lanes.push((*epoch, None));
                    }
                }
                return Ok(Some((exit, lanes)));
            }
        }
        Ok(None)
    }

    fn forget(&mut self, lanes: &[(AssignmentEpoch, Option<Failed>)]) {
        let mut topics: BTreeSet<Arc<str>> = lanes
            .iter()
            .filter_map(|(epoch, _)| self.lanes.remove(epoch))
            .map(|held| held.topic)
            .collect();
        topics.retain(|topic| !self.lanes.values().any(|held| held.topic == *topic));
        self.lookup.forget_topics(topics);
    }

    /// What is news of the lanes.
    fn numbers(&mut self) -> Vec<LaneNumbers> {
        self.lanes
            .iter_mut()
            .filter_map(|(epoch, held)| held.news(*epoch))
            .collect()
    }

    /// Asks for leave to handle records where they are counted, and gives back
    /// what is not used.
    fn tell_needs(&mut self) -> Result<(), Orphaned> {
        let Some(count) = self.count.clone() else {
            return Ok(());
        };
        if count.take_was_short() {
            if !self.has_asked {
                self.has_asked = true;
                let wants = self.wants;
                self.wants = (wants * 2).min(MOST_WANTED);
                self.say(&ToParent::Wants(wants))?;
            }
        } else if !count.take_used() {
            self.wants = FIRST_WANTED;
            // Another worker may have more use for it.
            let left = count.empty();
            if left > 0 {
                self.say(&ToParent::GivesBack(left as u64))?;
            }
        }
        Ok(())
    }

    fn say(&mut self, message: &ToParent) -> Result<(), Orphaned> {
        self.said_at = self.clock.coarse();
        self.parent.say(message)
    }

    /// The parent is gone: nobody commits what is done. The record in hand is
    /// finished, as far as that does not take longer than a stop would; then this
    /// process is gone too, and what it has started: the parent would have killed
    /// that, and nobody else does.
    fn leave_alone(&mut self) {
        tracing::error!(
            worker = self.worker,
            "the parent process is gone: this worker finishes the record in hand and ends"
        );
        self.gate.shut();
        for held in self.lanes.values() {
            held.tracker.give_up();
        }
        self.threads.stop_all();
        let until: Instant = self.clock.now() + self.settings.stop_deadline;
        while self.threads.running() > 0 {
            let left = until.saturating_duration_since(self.clock.now());
            match self.reports.recv_timeout(left) {
                Ok(FromWorker::Exited { worker, .. }) => self.threads.join(worker),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        if getpgrp() == getpid() {
            // Refused only where there is no such group; then there is nothing to kill.
            let _ = kill_current_process_group(Signal::KILL);
        }
    }
}

type Released = Vec<(AssignmentEpoch, Option<FailedRecord>)>;

fn told(lanes: Vec<(AssignmentEpoch, Option<Failed>)>, now: Instant) -> Released {
    lanes
        .into_iter()
        .map(|(epoch, failed)| (epoch, failed.map(|failed| FailedRecord::of(&failed, now))))
        .collect()
}

impl Held {
    fn news(&mut self, epoch: AssignmentEpoch) -> Option<LaneNumbers> {
        let numbers = self.tracker.numbers();
        let completed = self.tracker.completed_beyond();
        let is_other = match (&completed, &self.completed) {
            (Some(now), Some(before)) => !Arc::ptr_eq(now, before),
            (None, None) => false,
            _ => true,
        };
        if numbers == self.told && !is_other {
            return None;
        }
        self.told = numbers.clone();
        let completed = is_other.then(|| {
            self.completed = completed;
            self.completed.as_deref().cloned().unwrap_or_default()
        });
        Some(LaneNumbers {
            epoch,
            numbers,
            lag: self.tracker.lag_samples.collect(&mut self.lag),
            lead: self.tracker.lead_samples.collect(&mut self.lead),
            completed,
        })
    }
}
