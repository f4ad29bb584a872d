//! The parent's side: a thread that stands in for a child.
//!
//! To the member it is a worker: it takes wishes out of a mailbox, answers by
//! [`FromWorker`], and its last word is the exit. What it does with them is to
//! pass them on, and to write into the trackers what the child tells. It never
//! waits for the child but in one poll with a deadline: a wish, a message, output
//! and the end of the process all wake it or are looked for.
//!
//! What the child wrote to its standard output before it told of a record is
//! written to ours before that is told on, so that what a handler prints is out
//! before a commit covers it, as in model A. Where ours takes it no more, what the
//! child told since is not told on: it is killed, and who follows has our standard
//! output as its own, and meets what is wrong with it in its handler.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mio::net::UnixStream;
use mio::unix::pipe;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process_group, test_kill_process_group, waitpgid,
};

use super::child::terms;
use super::launch::Launcher;
use super::line::{self, Incoming, LineError};
use super::message::{
    Happened, LANES_AT_A_TIME, LaneNumbers, LaneToChild, ToChild, ToParent, VERSION, Welcome,
};
use super::watch::{PULSE, Verdict, Watch};
use crate::clock::Coarse;
use crate::config::Settings;
use crate::event::EventKind;
use crate::record::{AssignmentEpoch, TopicPartition};
use crate::report::{StopReason, WorkerStop};
use crate::source::{MemoryBudget, Waker};
use crate::worker::engine::EngineFactory;
use crate::worker::lane::{Failed, LaneStart};
use crate::worker::mailbox::Wish;
use crate::worker::run::{FromWorker, WorkerContext, WorkerExit, panic_message};
use crate::worker::tracker::Numbers;

const WAKE: Token = Token(0);
const LINE: Token = Token(1);
const STDOUT: Token = Token(2);

/// Long enough to migrate a table before `run()`.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// How long a child may take to end once it has said that its worker has.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// How long what a dead child left behind may take to die of being killed.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

/// How often one looks whether the process is there, whose line another process
/// may keep open.
const LOOK: Duration = Duration::from_millis(400);

/// A beat is given at least that often.
const BEAT: Duration = PULSE;

/// Read at a time.
const CHUNK: usize = 64 * 1024;

/// Output without the end of a line is passed on when it is that long.
const LONGEST_LINE: usize = 1024 * 1024;

/// What all children of a run have in common.
#[derive(Debug)]
pub(crate) struct Children {
    pub(crate) launcher: Launcher,
    pub(crate) bootstrap: String,
    /// What a child has to agree with, by name.
    pub(crate) terms: Vec<(String, String)>,
    pub(crate) gate_limit: Duration,
    pub(crate) revoke_deadline: Duration,
    /// How long a child may take from its start until its handler is made and its
    /// source is open: what stands before `run()` included.
    pub(crate) starts_within: Duration,
    /// Each child has its share of it.
    pub(crate) memory: Arc<MemoryBudget>,
    /// What a child printed could not be written to our standard output.
    pub(crate) is_output_refused: AtomicBool,
}

impl Children {
    /// After `gate_limit` without a beat no record may be started.
    pub(crate) fn new(
        launcher: Launcher,
        settings: &Settings,
        engines: &EngineFactory,
        gate_limit: Duration,
        memory: Arc<MemoryBudget>,
    ) -> Self {
        Self {
            launcher,
            bootstrap: settings.bootstrap.clone(),
            terms: terms(settings, engines),
            gate_limit,
            revoke_deadline: settings.revoke_deadline,
            starts_within: STARTS_WITHIN,
            memory,
            is_output_refused: AtomicBool::new(false),
        }
    }
}

/// Stands in for a worker until it is gone. The last thing it does is to report
/// its exit.
pub(crate) fn run(context: WorkerContext, children: &Children, pid: &AtomicU32) {
    let worker = context.info.worker;
    let reports = context.reports.clone();
    let stands_in = AssertUnwindSafe(|| match StandIn::start(context, children) {
        Ok(mut stand_in) => {
            pid.store(stand_in.pid, Ordering::Relaxed);
            stand_in.work()
        }
        Err(error) => {
            let why = format!("the worker's process could not be started: {error}");
            (
                WorkerExit::Failed(WorkerStop::SourceFailed(why)),
                Vec::new(),
            )
        }
    });
    let (exit, lanes) = catch_unwind(stands_in).unwrap_or_else(|panic| {
        let message = format!(
            "the thread keepup-child-{worker} panicked: {}; please report this",
            panic_message(panic.as_ref())
        );
        let stop = WorkerStop::SourceFailed(message.clone());
        (
            WorkerExit::EndsRun(StopReason::FatalClientError { message }, stop),
            Vec::new(),
        )
    });
    // The member is gone only where the whole run is.
    let _ = reports.send(FromWorker::Exited {
        worker,
        exit,
        lanes,
    });
}

type Lanes = Vec<(AssignmentEpoch, Option<Failed>)>;

/// A lane that the child has.
struct Held {
    start: LaneStart,
    /// The child has told that it has it.
    is_picked_up: bool,
    told: Numbers,
    /// What failed in it, by what the child said last.
    failed: Option<Failed>,
    /// Since when it is asked for.
    owed: Option<Coarse>,
}

/// What is known of the child's life.
enum Phase {
    /// It was started then, and has not said who it is: it is not in `run()` yet.
    Unknown(Coarse),
    /// It was started then, is in `run()`, and has not said that it is open.
    Starting(Coarse),
    Open,
    /// Its worker has ended.
    Ended(Coarse, WorkerExit, Lanes),
}

/// Why the line is of no use any more.
enum Broken {
    /// The child's end is closed.
    Closed(Result<(), LineError>),
    /// What came is nothing that a child says.
    Rubbish(String),
    /// What it printed cannot be written.
    Output(io::Error),
    /// The child must not go on, and starting another would not help.
    Ends(StopReason),
}

impl From<LineError> for Broken {
    fn from(error: LineError) -> Self {
        Self::Rubbish(error.to_string())
    }
}

struct StandIn<'a> {
    context: WorkerContext,
    children: &'a Children,
    child: Process,
    pid: u32,
    poll: Poll,
    line: UnixStream,
    stdout: Option<pipe::Receiver>,
    output: Vec<u8>,
    incoming: Incoming,
    /// What is read goes through it; kept, since clearing it costs more than the rest.
    chunk: Box<[u8]>,
    outgoing: Vec<u8>,
    sent: usize,
    lanes: BTreeMap<AssignmentEpoch, Held>,
    phase: Phase,
    watch: Watch,
    beaten: Option<Coarse>,
    was_shut: bool,
    sharers: usize,
    looked: Coarse,
    is_told_to_stop: bool,
    /// Records that the child may handle and has not completed, as far as known.
    granted: u64,
    wants: u64,
}

impl<'a> StandIn<'a> {
    fn start(context: WorkerContext, children: &'a Children) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKE)?;
        context.mailbox.set_waker(Waker::new(move || {
            // Where the system refuses, the next look finds the wish.
            let _ = waker.wake();
        }));
        let stdout = if children.is_output_refused.load(Ordering::Relaxed) {
            Stdio::inherit()
        } else {
            Stdio::piped()
        };
        let (child, line) = children.launcher.launch(stdout)?;
        let mut child = Process::of(child);
        let pid = child.child.id();
        line.set_nonblocking(true)?;
        let mut line = UnixStream::from_std(line);
        poll.registry()
            .register(&mut line, LINE, Interest::READABLE | Interest::WRITABLE)?;
        let mut stdout = child.child.stdout.take().map(pipe::Receiver::from);
        if let Some(stdout) = &mut stdout {
            stdout.set_nonblocking(true)?;
            poll.registry()
                .register(stdout, STDOUT, Interest::READABLE)?;
        }
        let now = context.clock.coarse();
        Ok(Self {
            watch: Watch::new(children.revoke_deadline, now),
            context,
            children,
            child,
            pid,
            poll,
            line,
            stdout,
            output: Vec::new(),
            incoming: Incoming::default(),
            chunk: vec![0; CHUNK].into(),
            outgoing: Vec::new(),
            sent: 0,
            lanes: BTreeMap::new(),
            phase: Phase::Unknown(now),
            beaten: None,
            was_shut: false,
            sharers: 0,
            looked: now,
            is_told_to_stop: false,
            granted: 0,
            wants: 0,
        })
    }

    /// Passes on until the child is gone; says why, and gives what it had.
    fn work(&mut self) -> (WorkerExit, Lanes) {
        let mut events = Events::with_capacity(8);
        loop {
            if let Err(error) = self.poll.poll(&mut events, Some(LOOK))
                && error.kind() != io::ErrorKind::Interrupted
            {
                let why = format!("the line to it cannot be watched: {error}");
                return self.end(WorkerExit::Failed(WorkerStop::ChildExited(why)));
            }
            let turned = self.turn();
            if let Some(exit) = turned {
                return self.end(exit);
            }
        }
    }

    fn turn(&mut self) -> Option<WorkerExit> {
        let now = self.context.clock.coarse();
        if let Err(broken) = self.listen(now) {
            return Some(self.why_broken(broken, now));
        }
        if let Some(exit) = self.look(now) {
            return Some(exit);
        }
        if let Err(broken) = self.speak(now) {
            return Some(self.why_broken(broken, now));
        }
        None
    }

    /// Takes in what the child has said.
    fn listen(&mut self, now: Coarse) -> Result<(), Broken> {
        loop {
            match self.line.read(&mut self.chunk) {
                Ok(0) => {
                    self.drain_output()?;
                    return Err(Broken::Closed(self.incoming.end()));
                }
                Ok(read) => {
                    self.watch.heard(now);
                    let came = self.chunk.get(..read).unwrap_or_default();
                    self.incoming.push(came);
                    self.take_messages(now)?;
                    if read < CHUNK {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Written to when it was gone: what it said before was read.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Broken::Closed(Ok(())));
                }
                Err(error) => return Err(LineError::from(error).into()),
            }
        }
        self.drain_output()
    }

    fn take_messages(&mut self, now: Coarse) -> Result<(), Broken> {
        while let Some(message) = self.incoming.next::<ToParent>()? {
            // What it printed before it told what may be committed. An event waits
            // for nothing: that a partition came is told before its records.
            if !matches!(message, ToParent::Happened(_)) {
                self.drain_output()?;
            }
            self.heard(message, now)?;
        }
        Ok(())
    }

    fn heard(&mut self, message: ToParent, now: Coarse) -> Result<(), Broken> {
        if let Phase::Unknown(since) = self.phase {
            let ToParent::Hello {
                version,
                pid,
                terms,
            } = message
            else {
                let why = "it did not begin by saying who it is";
                return Err(Broken::Rubbish(why.into()));
            };
            self.phase = Phase::Starting(since);
            return self.welcome(version, pid, &terms);
        }
        match message {
            ToParent::Hello { .. } => Err(Broken::Rubbish("it said twice who it is".into())),
            ToParent::Opened => {
                self.phase = Phase::Open;
                self.context.mailbox.set_opened();
                Ok(())
            }
            ToParent::Numbers(lanes) => lanes.into_iter().try_for_each(|lane| self.numbers(lane)),
            ToParent::Happened(happened) => {
                self.happened(happened);
                Ok(())
            }
            ToParent::Released { lanes, cause } => {
                let instant = self.context.clock.now();
                let lanes: Lanes = lanes
                    .into_iter()
                    .filter_map(|(epoch, failed)| {
                        let held = self.lanes.remove(&epoch)?;
                        held.start.tracker.worker_is_gone();
                        let failed = failed.map(|failed| failed.failed(instant));
                        Some((epoch, failed))
                    })
                    .collect();
                self.report(FromWorker::Released { lanes, cause });
                Ok(())
            }
            ToParent::ReadFailed {
                epoch,
                offset,
                error,
            } => {
                if self.lanes.contains_key(&epoch) {
                    self.report(FromWorker::ReadFailed {
                        epoch,
                        offset,
                        error,
                    });
                }
                Ok(())
            }
            ToParent::Wants(records) => {
                self.wants = records;
                Ok(())
            }
            ToParent::GivesBack(records) => {
                self.take_back(records);
                Ok(())
            }
            ToParent::Pulse => Ok(()),
            ToParent::Exited { exit, lanes } => {
                let instant = self.context.clock.now();
                let lanes = lanes
                    .into_iter()
                    .map(|(epoch, failed)| (epoch, failed.map(|failed| failed.failed(instant))))
                    .collect();
                self.phase = Phase::Ended(now, exit.exit(), lanes);
                Ok(())
            }
        }
    }

    fn welcome(
        &mut self,
        version: u32,
        pid: u32,
        terms: &[(String, String)],
    ) -> Result<(), Broken> {
        if version != VERSION {
            return Err(Broken::Ends(StopReason::FatalClientError {
                message: format!(
                    "the process of worker {} speaks version {version} of the line and this one \
                     {VERSION}: the executable was replaced; start the program again",
                    self.context.info.worker
                ),
            }));
        }
        if pid != self.pid {
            return Err(Broken::Rubbish(format!(
                "process {pid} answered, and {} was started",
                self.pid
            )));
        }
        let ours = &self.children.terms;
        let differs = ours.iter().find(|term| !terms.contains(term));
        if let Some((name, value)) = differs {
            let theirs = terms
                .iter()
                .find(|(other, _)| other == name)
                .map_or("nothing", |(_, value)| value.as_str());
            return Err(Broken::Ends(StopReason::FatalClientError {
                message: format!(
                    "{name} is {value} here and {theirs} in the process of worker {}: what stands \
                     before run() has to come to the same settings in every process",
                    self.context.info.worker
                ),
            }));
        }
        self.say(&ToChild::Welcome(Welcome {
            bootstrap: self.children.bootstrap.clone(),
            worker: self.context.info.worker,
            restarts: self.context.info.restarts,
            gate_limit: self.children.gate_limit,
        }))?;
        self.tell_sharers()
    }

    /// Tells how many share the memory, where it does not know.
    fn tell_sharers(&mut self) -> Result<(), Broken> {
        let sharers = self.children.memory.workers();
        if sharers == self.sharers {
            return Ok(());
        }
        self.sharers = sharers;
        self.say(&ToChild::Sharers(sharers))
    }

    fn numbers(&mut self, lane: LaneNumbers) -> Result<(), Broken> {
        // Told before it heard that the lane is not its own any more.
        let Some(held) = self.lanes.get_mut(&lane.epoch) else {
            return Ok(());
        };
        let (now, before) = (&lane.numbers, &held.told);
        if now.watermark < before.watermark || now.position < now.watermark {
            return Err(Broken::Rubbish(format!(
                "it told of a watermark {} and a position {} of {} after a watermark {}",
                now.watermark, now.position, held.start.partition, before.watermark
            )));
        }
        let completed = now.completed().saturating_sub(before.completed());
        held.start.tracker.take_over(now, before);
        held.start.tracker.lag_samples.observe_all(lane.lag);
        held.start.tracker.lead_samples.observe_all(lane.lead);
        if let Some(completed) = lane.completed {
            held.start.tracker.set_completed_beyond(Arc::new(completed));
        }
        if held
            .failed
            .as_ref()
            .is_some_and(|failed| failed.offset < now.watermark)
        {
            held.failed = None;
        }
        held.told = lane.numbers;
        self.granted = self.granted.saturating_sub(completed);
        Ok(())
    }

    fn happened(&mut self, happened: Happened) {
        let kind = happened.kind(self.pid);
        match &kind {
            EventKind::RecordRetried {
                partition,
                offset,
                attempt,
                ..
            } => self.note_failed(partition, *offset, *attempt),
            EventKind::PartitionsAssigned { partitions, .. } => {
                let lanes = self.lanes.values_mut();
                for held in lanes.filter(|held| partitions.contains(&held.start.partition)) {
                    held.is_picked_up = true;
                }
            }
            _ => {}
        }
        self.context
            .events
            .send(Some(self.context.info.worker), kind);
    }

    /// So that the attempts of a record are counted on where the child dies at
    /// the next one.
    fn note_failed(&mut self, partition: &TopicPartition, offset: i64, attempts: u32) {
        let held = self
            .lanes
            .values_mut()
            .find(|held| held.start.partition == *partition);
        if let Some(held) = held {
            held.failed = Some(Failed {
                offset,
                attempts,
                not_before: None,
                dead: None,
            });
        }
    }

    fn take_back(&mut self, records: u64) {
        let records = records.min(self.granted);
        self.granted -= records;
        if let Some(count) = &self.context.count {
            count.give_back(usize::try_from(records).unwrap_or(usize::MAX));
        }
    }

    /// Looks at the clock and at the process.
    fn look(&mut self, now: Coarse) -> Option<WorkerExit> {
        if self.context.mailbox.is_cut_short() {
            // Nobody waits for what it has in hand.
            return Some(WorkerExit::Failed(WorkerStop::Abandoned));
        }
        let starts_within = self.children.starts_within;
        match &self.phase {
            Phase::Unknown(_) | Phase::Starting(_) if self.context.mailbox.is_stopped() => {
                return Some(WorkerExit::Asked);
            }
            Phase::Unknown(since) | Phase::Starting(since)
                if now.since(*since) >= starts_within =>
            {
                return Some(WorkerExit::Failed(WorkerStop::ChildSilent(format!(
                    "process {} was not ready within {starts_within:?} and was killed: what stands \
                     before run() in main happens in every process, and must neither wait nor read \
                     standard input",
                    self.pid
                ))));
            }
            Phase::Ended(since, exit, _) if now.since(*since) >= ENDS_WITHIN => {
                return Some(exit.clone());
            }
            _ => {}
        }
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            if let Some(status) = self.child.ended() {
                self.warn("its process is gone, and something that it started keeps its line open");
                return Some(self.why_gone(status));
            }
        }
        if matches!(self.phase, Phase::Ended(..)) {
            return None;
        }
        if matches!(self.phase, Phase::Unknown(_)) {
            // It cannot say anything.
            self.watch.heard(now);
        }
        let owes_since = self.lanes.values().filter_map(|held| held.owed).min();
        match self.watch.look(now, owes_since) {
            Verdict::LetBe => None,
            Verdict::Ask => {
                self.warn("it says nothing; it is asked");
                self.beaten = None;
                None
            }
            Verdict::End => {
                self.warn("it still says nothing; it is told to end (SIGTERM)");
                self.child.signal(Signal::TERM);
                None
            }
            Verdict::Kill => {
                let silent = self.watch.silent_for(now);
                Some(WorkerExit::Failed(WorkerStop::ChildSilent(format!(
                    "process {} said nothing for {silent:?} and was killed",
                    self.pid
                ))))
            }
        }
    }

    /// Passes on what the member wishes, as far as the line takes it: what it
    /// does not take yet stays in the mailbox, where it does not pile up.
    fn speak(&mut self, now: Coarse) -> Result<(), Broken> {
        if !matches!(self.phase, Phase::Unknown(_)) {
            self.beat(now)?;
        }
        if self.flush()? && matches!(self.phase, Phase::Open) {
            self.tell_sharers()?;
            self.grant()?;
            self.pass_on_wishes(now)?;
            self.flush()?;
        }
        Ok(())
    }

    fn pass_on_wishes(&mut self, now: Coarse) -> Result<(), Broken> {
        if !self.context.mailbox.has_wishes() {
            return Ok(());
        }
        let (wishes, stop) = self.context.mailbox.take();
        for wish in wishes {
            self.pass_on(wish, now)?;
        }
        if let Some(cause) = stop.filter(|_| !self.is_told_to_stop) {
            self.is_told_to_stop = true;
            self.say(&ToChild::Stop { cause })?;
        }
        Ok(())
    }

    fn beat(&mut self, now: Coarse) -> Result<(), Broken> {
        let (at_ms, is_shut) = self.context.gate.look();
        let is_due = self.beaten.is_none_or(|last| now.since(last) >= BEAT);
        // Not onto what it has not read yet: that may be a long time.
        if (is_due && self.outgoing.is_empty()) || is_shut != self.was_shut {
            self.beaten = Some(now);
            self.was_shut = is_shut;
            self.say(&ToChild::Beat { at_ms, is_shut })?;
        }
        Ok(())
    }

    fn pass_on(&mut self, wish: Wish, now: Coarse) -> Result<(), Broken> {
        let instant = self.context.clock.now();
        match wish {
            Wish::Take { lanes, local } => {
                let mut lanes = lanes.into_iter().peekable();
                while lanes.peek().is_some() {
                    let mut frames = Vec::new();
                    for start in lanes.by_ref().take(LANES_AT_A_TIME) {
                        frames.push(LaneToChild::of(&start, instant));
                        start.tracker.set_worker(Some(self.context.info.worker));
                        self.lanes.insert(
                            start.epoch,
                            Held {
                                is_picked_up: false,
                                told: Numbers::at_start(start.offset),
                                failed: start.failed.clone(),
                                owed: None,
                                start,
                            },
                        );
                    }
                    self.say(&ToChild::Take {
                        lanes: frames,
                        local,
                    })?;
                }
                Ok(())
            }
            Wish::Release { epochs, cause } => {
                for epoch in &epochs {
                    if let Some(held) = self.lanes.get_mut(epoch) {
                        held.owed.get_or_insert(now);
                    }
                }
                self.say(&ToChild::Release { epochs, cause })
            }
            Wish::SetPaused { epochs, paused } => self.say(&ToChild::SetPaused { epochs, paused }),
        }
    }

    /// Passes on leave to handle records, where a number of them is asked for.
    fn grant(&mut self) -> Result<(), Broken> {
        let Some(count) = &self.context.count else {
            return Ok(());
        };
        if self.wants == 0 {
            return Ok(());
        }
        let wanted = usize::try_from(self.wants).unwrap_or(usize::MAX);
        let granted = count.take(wanted) as u64;
        if granted == 0 {
            return Ok(());
        }
        self.wants = 0;
        self.granted += granted;
        self.say(&ToChild::Granted(granted))
    }

    fn say(&mut self, message: &ToChild) -> Result<(), Broken> {
        Ok(line::write(&mut self.outgoing, message)?)
    }

    /// Sends what is to be sent; true where nothing is left.
    fn flush(&mut self) -> Result<bool, Broken> {
        while let Some(rest) = self
            .outgoing
            .get(self.sent..)
            .filter(|rest| !rest.is_empty())
        {
            match self.line.write(rest) {
                Ok(0) => return Err(Broken::Closed(Ok(()))),
                Ok(written) => self.sent += written,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    // Where it is gone, what it said last is read first.
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset => return Ok(false),
                    _ => return Err(LineError::from(error).into()),
                },
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Passes whole lines of the child's standard output on.
    fn drain_output(&mut self) -> Result<(), Broken> {
        let Some(stdout) = &mut self.stdout else {
            return Ok(());
        };
        loop {
            match stdout.read(&mut self.chunk) {
                Ok(0) => break,
                Ok(read) => {
                    let came = self.chunk.get(..read).unwrap_or_default();
                    self.output.extend_from_slice(came);
                    if let Err(error) = pass_on_lines(&mut self.output) {
                        self.stdout = None;
                        self.children
                            .is_output_refused
                            .store(true, Ordering::Relaxed);
                        // That nobody reads is all that a closed pipe says.
                        if error.kind() != io::ErrorKind::BrokenPipe {
                            self.warn(&format!("what it printed cannot be written: {error}"));
                        }
                        return Err(Broken::Output(error));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => break,
            }
        }
        self.stdout = None;
        Ok(())
    }

    fn report(&self, report: FromWorker) {
        // As a worker's: the member never waits for us.
        let _ = self.context.reports.send(report);
    }

    fn warn(&self, what: &str) {
        let worker = self.context.info.worker;
        self.context
            .events
            .warn(format!("worker {worker} (process {}): {what}", self.pid));
    }

    fn why_broken(&mut self, broken: Broken, now: Coarse) -> WorkerExit {
        match broken {
            Broken::Ends(stop) => {
                let reason = WorkerStop::SourceFailed(stop.to_string());
                WorkerExit::EndsRun(stop, reason)
            }
            Broken::Rubbish(why) => WorkerExit::Failed(WorkerStop::ChildExited(format!(
                "process {} is not to be understood and was killed: {why}",
                self.pid
            ))),
            Broken::Output(error) => WorkerExit::Failed(WorkerStop::ChildExited(format!(
                "process {} was killed: what it printed cannot be written: {error}",
                self.pid
            ))),
            Broken::Closed(cut_off) => {
                if let Phase::Ended(_, exit, _) = &self.phase {
                    return exit.clone();
                }
                let until = now.after(ENDS_WITHIN);
                let status = self
                    .child
                    .wait_until(|| self.context.clock.coarse() >= until);
                match (status, cut_off) {
                    (Some(status), _) => self.why_gone(status),
                    (None, cut_off) => {
                        let how = cut_off
                            .err()
                            .map_or_else(String::new, |error| format!(": {error}"));
                        WorkerExit::Failed(WorkerStop::ChildExited(format!(
                            "process {} closed its line and was killed{how}",
                            self.pid
                        )))
                    }
                }
            }
        }
    }

    fn why_gone(&self, status: ExitStatus) -> WorkerExit {
        if let Phase::Ended(_, exit, _) = &self.phase {
            return exit.clone();
        }
        let how = match (status.signal(), status.code()) {
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, Some(code)) => format!("ended with code {code}"),
            (None, None) => format!("ended: {status}"),
        };
        let before = match self.phase {
            Phase::Unknown(_) => " before it came to run()",
            _ => "",
        };
        WorkerExit::Failed(WorkerStop::ChildExited(format!(
            "process {} {how}{before}",
            self.pid
        )))
    }

    /// Nothing of the child is left afterwards; gives what it had.
    fn end(&mut self, exit: WorkerExit) -> (WorkerExit, Lanes) {
        self.child.kill();
        let left_behind = self.child.reap();
        if left_behind {
            self.warn("it left processes of its group behind, which were killed");
        }
        // What is refused here was told of by nobody.
        let _ = self.drain_output();
        if !self.output.is_empty() {
            self.output.push(b'\n');
            let _ = pass_on_lines(&mut self.output);
        }
        let granted = self.granted;
        self.take_back(granted);
        let mut told: BTreeMap<AssignmentEpoch, Option<Failed>> = match &mut self.phase {
            Phase::Ended(_, _, lanes) => std::mem::take(lanes).into_iter().collect(),
            _ => BTreeMap::new(),
        };
        let lanes = std::mem::take(&mut self.lanes)
            .into_iter()
            .filter_map(|(epoch, held)| {
                held.start.tracker.worker_is_gone();
                // Those who share a partition's records do not say what failed in it,
                // but what is tried again is told at once.
                let failed = told.remove(&epoch).flatten().or(held.failed);
                // Else it is as if it had stayed in the mailbox.
                held.is_picked_up.then_some((epoch, failed))
            })
            .collect();
        (exit, lanes)
    }
}

/// Writes whole lines to our standard output.
fn pass_on_lines(output: &mut Vec<u8>) -> io::Result<()> {
    let whole = match output.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => last + 1,
        None if output.len() > LONGEST_LINE => output.len(),
        None => return Ok(()),
    };
    let mut stdout = io::stdout().lock();
    let written = output.get(..whole).map_or(Ok(()), |lines| {
        stdout.write_all(lines).and_then(|()| stdout.flush())
    });
    output.drain(..whole);
    written
}

/// The child's process. Dropped, it is killed and waited for.
struct Process {
    child: Child,
    group: Option<Pid>,
    is_reaped: bool,
}

impl Process {
    fn of(child: Child) -> Self {
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self {
            child,
            group,
            is_reaped: false,
        }
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        self.is_reaped |= status.is_some();
        status
    }

    /// Waits for its end, until `enough` says so.
    fn wait_until(&mut self, enough: impl Fn() -> bool) -> Option<ExitStatus> {
        loop {
            let status = self.ended();
            if status.is_some() || enough() {
                return status;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Who is gone needs no signal.
            let _ = kill_process_group(group, signal);
        }
    }

    fn kill(&self) {
        if !self.is_reaped {
            self.signal(Signal::KILL);
        }
    }

    /// Waits for its end, which is near. True where others of its group were
    /// left, and killed.
    ///
    /// The group is looked for after its leader is gone: before, the leader
    /// itself is in it. Its number is not given to another process while the
    /// group has a member, and where it has none there is a moment, in which as
    /// many processes would have to be started as there are numbers.
    fn reap(&mut self) -> bool {
        if !self.is_reaped {
            let _ = self.child.wait();
            self.is_reaped = true;
        }
        // Not ours to signal from here on.
        let group = self.group.take();
        let left = group.filter(|&group| test_kill_process_group(group).is_ok());
        left.is_some_and(|group| {
            let _ = kill_process_group(group, Signal::KILL);
            reap_group(group);
            true
        })
    }
}

/// Waits for what was left of a killed group, where that is ours to do.
///
/// Whose parent is gone becomes a child of the first process of the system, which
/// is this one in a container. It dies without anybody waiting for it, and a
/// number of a process is used up each time. One whose parent is of the group, and
/// about to die, is not a child of ours yet: so the end of the whole group is
/// waited for.
fn reap_group(group: Pid) {
    if std::process::id() != 1 {
        return;
    }
    for _ in 0..REAPED_WITHIN.as_millis() {
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
        if test_kill_process_group(group).is_err() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

#[cfg(test)]
mod tests;
