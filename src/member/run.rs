//! The member's loop: the one thread that talks to the group.
//!
//! It never runs user code and never waits for a worker, a broker or a lock
//! that they hold: whatever takes time comes back to it as a message. One turn
//! takes what has come (reports of workers, start positions, commands, the
//! group's events), lets the pure parts decide ([`Assignment`], [`Ladder`],
//! [`Watch`], [`RestartPolicy`]), and carries out what they said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::clock::{Clock, Coarse};
use crate::config::{Assignment as AssignBy, OutOfRange, Settings, StartFrom, Workers};
use crate::error::{CommandError, Problem};
use crate::event::EventKind;
use crate::lag::health::Phase;
use crate::lag::snapshot::Advice;
use crate::lag::snapshot::WorkerState;
use crate::member::assignment::{Action, Ask, Assignment, ReadBack, Resolve, StartAt};
use crate::member::claim::{Claim, Refusal};
use crate::member::group::{CommitRefusal, Group, GroupEvent, Mark};
use crate::member::patience::Patience;
use crate::member::reset::{self, LogRange, Stranded, Verdict, decide};
use crate::member::zombie::{Change, Watch};
use crate::record::{AssignmentEpoch, TopicPartition};
use crate::report::{Report, StopReason, WorkerReport, WorkerStop};
use crate::runtime::events::EventSink;
use crate::runtime::restart::{Replacement, RestartPolicy};
use crate::runtime::rolling::{self, Rolling, Standing};
use crate::runtime::shared::{EndsRun, MemberCounters, Shared, WorkerSlot};
use crate::runtime::stop::{Ladder, Rung, Step};
use crate::runtime::threads::WorkerThreads;
use crate::source::ReadError;
use crate::worker::completed::{Completed, Ignored};
use crate::worker::gate::Gate;
use crate::worker::lane::ReleaseCause;
use crate::worker::pool::reader::READER;
use crate::worker::run::{FromWorker, WorkerExit, panic_message};

/// The loop turns at least that often: deadlines are that precise.
const TICK: Duration = Duration::from_millis(50);

/// Watermarks are stored for librdkafka's committer that often. It commits
/// each second; storing more often costs little and makes what it commits
/// fresh.
const STORE_INTERVAL: Duration = Duration::from_millis(200);

/// How long the group has to answer without trouble before it is said to.
const SETTLED: Duration = Duration::from_secs(1);

/// The reporter looks once a second, and asks no broker for longer. Whoever holds
/// it up for that long (a recorder of metrics that the program brought) has it say
/// old numbers for new ones.
const REPORTER_PATIENCE: Duration = Duration::from_secs(15);

/// So many looks of ours in a row find that. After a sleep of the whole process
/// everybody is late, and one of us is first.
const OVERDUE: u32 = 5;

/// How long the client's threads may take to end once the group was left.
const CLIENT_END: Duration = Duration::from_millis(250);

/// Something for the member's loop.
#[derive(Debug)]
pub(crate) enum ToMember {
    /// Where a lane begins; an error ends the run.
    Start {
        epoch: AssignmentEpoch,
        start: Result<Found, String>,
    },
    /// A topic has that many partitions.
    TopicSize { topic: Arc<str>, partitions: usize },
    /// A topic was deleted and created again.
    TopicRecreated(Arc<str>),
    /// Something that passes by itself, but that a person should know.
    Warning(String),
    /// The run should stop.
    Stop(StopReason),
    /// A command of the handle, answered through its channel.
    Command(Command, Sender<Result<(), CommandError>>),
}

/// A start position as it was found; where the range of a partition was asked
/// for, that: its oldest record and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What was asked for.
    pub(crate) ask: Ask,
    pub(crate) offset: i64,
    pub(crate) committed: Option<i64>,
    /// The commit's metadata, if it has any.
    pub(crate) note: Option<Arc<str>>,
    /// Up to where the log agrees with the one that the commit was made over,
    /// where that is less; -1 where the leader does not know.
    pub(crate) truncated_at: Option<i64>,
    pub(crate) end_offset: Option<i64>,
}

/// What a handle can ask for.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    SetPaused {
        partitions: Vec<TopicPartition>,
        paused: bool,
    },
    Seek {
        partition: TopicPartition,
        offset: i64,
    },
    Scale(Workers),
    RestartWorkers,
}

/// Who finds out where lanes begin. Answers come as [`ToMember::Start`].
pub(crate) trait StartFinder: Send {
    /// Asks for start positions. Never waits.
    fn resolve(&self, lanes: Vec<Resolve>);

    /// Is told that nothing of these topics is assigned any more.
    fn forget(&self, topics: Vec<Arc<str>>);

    /// False where it cannot answer any more, and the run has to end.
    fn is_alive(&self) -> bool;

    /// Ends its thread, if it has one, within about `patience`.
    fn stop(self: Box<Self>, patience: Duration);
}

/// Everything that the loop is made from.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) group: Box<dyn Group>,
    pub(crate) starts: Box<dyn StartFinder>,
    pub(crate) threads: WorkerThreads,
    pub(crate) reports: Receiver<FromWorker>,
    pub(crate) inbox: Receiver<ToMember>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) events: EventSink,
    pub(crate) shared: Arc<Shared>,
    /// The topics and their sizes as the first contact found them; from then on
    /// [`ToMember::TopicSize`] tells what changes.
    pub(crate) topics: Vec<(Arc<str>, usize)>,
}

/// Runs the loop until the run has ended.
pub(crate) fn run(mut parts: Parts) -> Report {
    let topics = std::mem::take(&mut parts.topics);
    let _ends = EndsRun(Arc::clone(&parts.shared));
    let (wake, ready) = bounded(1);
    let mut member = Member::new(parts);
    member.group.on_ready(Arc::new(move || {
        // Full means that a turn is due already.
        let _ = wake.try_send(());
    }));
    let ran = catch_unwind(AssertUnwindSafe(|| {
        member.begin(&topics);
        while member.ladder.rung() != Rung::Closed {
            member.wait(&ready);
            member.turn();
        }
    }));
    match ran {
        Ok(()) => member.end(),
        Err(panic) => member.broken(&panic_message(panic.as_ref())),
    }
}

struct Member {
    settings: Settings,
    clock: Clock,
    group: Box<dyn Group>,
    starts: Box<dyn StartFinder>,
    threads: WorkerThreads,
    reports: Receiver<FromWorker>,
    inbox: Receiver<ToMember>,
    gate: Arc<Gate>,
    events: EventSink,
    shared: Arc<Shared>,
    assignment: Assignment,
    ladder: Ladder,
    watch: Watch,
    restarts: RestartPolicy,
    rolling: Rolling,
    claim: Claim,
    /// How often in a row the reporter was found not to look any more.
    unreported: u32,
    patience: Patience,
    /// Workers that are started again later, and when.
    waiting_restarts: BTreeMap<usize, Coarse>,
    /// Start positions that came and were not placed yet.
    found: Vec<(AssignmentEpoch, Result<Found, String>)>,
    store_at: Instant,
    /// When the group first took us in, be it with nothing.
    first_taken_in: Option<Instant>,
    /// What is wrong now, each said once until the group works again.
    troubles: BTreeSet<String>,
    /// When the group first answered after the last trouble.
    answered: Option<Instant>,
    /// The partitions that a static assignment has taken.
    taken: BTreeSet<TopicPartition>,
    ended_workers: BTreeMap<usize, WorkerReport>,
    /// What the load wanted when the stop began.
    advice: Option<Advice>,
    /// Those whose processes were killed with something in hand.
    killed: Vec<usize>,
    early: VecDeque<FromWorker>,
}

impl Member {
    fn new(parts: Parts) -> Self {
        let now = parts.clock.now();
        let sleep_limit = parts.group.sleep_limit();
        Self {
            assignment: Assignment::new(
                parts.settings.workers,
                parts.threads.are_sharing(),
                parts.settings.revoke_deadline,
                parts.group.commit_interval(),
            ),
            ladder: Ladder::new(parts.settings.stop_deadline),
            watch: Watch::new(sleep_limit, parts.clock.coarse()),
            restarts: RestartPolicy::new(parts.settings.restart_budget),
            rolling: Rolling::default(),
            claim: Claim::new(parts.settings.instance_wait),
            patience: Patience::default(),
            unreported: 0,
            waiting_restarts: BTreeMap::new(),
            found: Vec::new(),
            store_at: now,
            first_taken_in: None,
            troubles: BTreeSet::new(),
            answered: None,
            taken: BTreeSet::new(),
            ended_workers: BTreeMap::new(),
            advice: None,
            killed: Vec::new(),
            early: VecDeque::new(),
            settings: parts.settings,
            clock: parts.clock,
            group: parts.group,
            starts: parts.starts,
            threads: parts.threads,
            reports: parts.reports,
            inbox: parts.inbox,
            gate: parts.gate,
            events: parts.events,
            shared: parts.shared,
        }
    }

    fn begin(&mut self, topics: &[(Arc<str>, usize)]) {
        self.events.send(None, EventKind::StartupComplete);
        self.patience.begin(self.clock.now());
        if let Err(message) = self.group.join() {
            self.ask(StopReason::FatalClientError { message });
        }
        let mut actions = Vec::new();
        self.assignment.begin(&mut actions);
        self.carry_out(actions);
        for (topic, partitions) in topics {
            self.topic_has(topic, *partitions);
        }
    }

    /// Waits for something to do, a tick at most. What is received here is kept
    /// for the turn.
    fn wait(&mut self, ready: &Receiver<()>) {
        let patience = if self.assignment.is_moving() {
            TICK / 5
        } else {
            TICK
        };
        select! {
            recv(self.reports) -> report => self.early.extend(report),
            recv(self.inbox) -> message => if let Ok(message) = message { self.take(message) },
            recv(ready) -> _ => {}
            default(patience) => {}
        }
    }

    fn turn(&mut self) {
        self.watch_for_gaps();
        while let Some(report) = self
            .early
            .pop_front()
            .or_else(|| self.reports.try_recv().ok())
        {
            self.worker_reports(report);
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
        self.starts_found();
        while let Some(event) = self.group.poll() {
            self.group_says(event);
        }
        let now = self.clock.now();
        let mut actions = Vec::new();
        self.assignment.tick(now, &mut actions);
        self.carry_out(actions);
        self.start_waiting_workers();
        self.roll(now);
        self.claim_again(now);
        self.look_for_a_stuck_rebalance(now);
        self.look_for_recovery(now);
        if !self.starts.is_alive() {
            let message = "the thread keepup-lookup has ended; please report this".to_owned();
            self.ask(StopReason::FatalClientError { message });
        }
        if now >= self.store_at {
            self.store_at = now + STORE_INTERVAL;
            // What is lost is still here until the group says so, or until the
            // revoke that it waits for is answered.
            if !self.group.is_lost() {
                let storable = self.assignment.storable(now);
                self.store(&storable);
                let unnoted = self.assignment.take_unnoted(now);
                self.commit_at_once(&unnoted);
            }
            self.show_workers();
            self.watch_reporter();
        }
        self.look_for_the_end(now);
        let drained = self.threads.running() == 0
            && !(self.ladder.waits_for_commit() && self.assignment.has_unconfirmed());
        let closed = self.ladder.rung() >= Rung::Closing
            && self.group.is_closed()
            && !self.threads.are_cancelling(now);
        let step = self.ladder.turn(drained, closed, self.clock.now());
        self.climb(step);
    }

    /// Shuts the gate after a gap, *before* the beat that would open it: a
    /// worker that sees the new beat sees the shut gate too.
    fn watch_for_gaps(&mut self) {
        let now = self.clock.coarse();
        let change = self.watch.turn(now);
        self.apply(change);
        self.gate.beat(now);
        self.shared.turned(now);
    }

    /// Says where the reporter hangs: nobody else would, since it is the one who
    /// tells what hangs.
    fn watch_reporter(&mut self) {
        let ago = self.shared.reported_ago(self.clock.coarse());
        let was_told = self.unreported >= OVERDUE;
        if ago.is_none_or(|ago| ago < REPORTER_PATIENCE) {
            self.unreported = 0;
            if was_told {
                self.events.warn("the thread keepup-reporter looks again");
            }
            return;
        }
        self.unreported = self.unreported.saturating_add(1);
        if self.unreported == OVERDUE {
            let why = format!(
                "the thread keepup-reporter has not looked for {REPORTER_PATIENCE:?}: lag is not \
                 known, and stuck handlers are not found; a recorder of metrics may hold it up"
            );
            self.shared.board.distrust(&why);
            self.events.warn(why);
        }
    }

    fn apply(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Shut { slept }) => {
                self.gate.shut();
                self.events.warn(format!(
                    "this process did not run for {slept:?}, and the group may have given it up: \
                     no record is started before the group has answered"
                ));
            }
            Some(Change::Open) => self.gate.open(),
            None => {}
        }
    }

    fn take(&mut self, message: ToMember) {
        match message {
            ToMember::Start { epoch, start } => self.found.push((epoch, start)),
            ToMember::TopicSize { topic, partitions } => self.topic_has(&topic, partitions),
            ToMember::TopicRecreated(topic) => self.topic_recreated(topic),
            ToMember::Warning(message) => self.events.warn(message),
            ToMember::Stop(reason) => self.ask(reason),
            ToMember::Command(command, reply) => {
                let answer = self.command(command);
                // Whoever asked may have given up waiting.
                let _ = reply.try_send(answer);
            }
        }
    }

    fn command(&mut self, command: Command) -> Result<(), CommandError> {
        let mut actions = Vec::new();
        let answer = match command {
            Command::SetPaused { partitions, paused } => {
                self.assignment
                    .set_paused(&partitions, paused, &mut actions)
            }
            Command::Seek { partition, offset } if offset >= 0 => {
                self.assignment.seek(&partition, offset, &mut actions)
            }
            Command::Seek { offset, .. } => Err(CommandError::Invalid(Problem::new(
                "seek",
                offset,
                "offsets count from 0",
                "give the offset of the next record that is wanted",
            ))),
            Command::RestartWorkers => {
                let workers = self.assignment.workers();
                let stay = workers.filter(|(_, leaving)| !leaving);
                self.rolling.begin(stay.map(|(worker, _)| worker));
                Ok(())
            }
            Command::Scale(workers) => {
                let refused = workers.problem().map(CommandError::Invalid);
                if refused.is_none() {
                    self.assignment.scale(workers, &mut actions);
                }
                refused.map_or(Ok(()), Err)
            }
        };
        self.carry_out(actions);
        answer
    }

    /// Start positions that came together are placed together, so that a worker
    /// gets its partitions at once.
    fn starts_found(&mut self) {
        let found = std::mem::take(&mut self.found);
        let mut starts = Vec::with_capacity(found.len());
        let mut read_back = Vec::new();
        let mut actions = Vec::new();
        for (epoch, start) in found {
            match start {
                Ok(found) if found.ask == Ask::Start && self.assignment.is_read_back(epoch) => {
                    let found = ReadBack {
                        committed: found.committed,
                        has_note: found.note.is_some(),
                    };
                    read_back.push((epoch, found));
                }
                Ok(Found {
                    offset,
                    truncated_at: truncated_at @ Some(_),
                    ..
                }) if self.assignment.cannot_begin(
                    epoch,
                    Stranded {
                        offset,
                        truncated_at,
                    },
                    &mut actions,
                ) => {}
                Ok(found) => starts.extend(self.start_at(epoch, &found).map(|at| (epoch, at))),
                Err(message) => self.ask(StopReason::FatalClientError { message }),
            }
        }
        let are_there = !starts.is_empty() || !read_back.is_empty();
        if are_there {
            self.assignment.read_back(read_back, &mut actions);
            self.assignment.resolved(starts, &mut actions);
        }
        self.carry_out(actions);
        if are_there {
            // It may be ready by now.
            self.shared.ring();
        }
    }

    fn start_at(&mut self, epoch: AssignmentEpoch, found: &Found) -> Option<StartAt> {
        let until = found.end_offset.filter(|_| self.settings.until_end);
        let Some(stranded) = self.assignment.take_stranded(epoch) else {
            let is_first = found.committed.is_none();
            if let Some(had) = self.assignment.take_lost_commit(epoch)
                && is_first
                && let Some(partition) = self.assignment.partition_of(epoch)
            {
                let message = reset::commit_is_gone(partition, had);
                self.ask(StopReason::FatalClientError { message });
                return None;
            }
            let completed = self.remembered(epoch, found);
            return Some(StartAt {
                completed,
                offset: found.offset,
                committed: found.committed,
                until,
                commit_first: is_first && self.settings.start_from == StartFrom::Latest,
            });
        };
        // The group has a commit already, and what it has is not awaited.
        let offset = self.reset_to(epoch, stranded, found)?;
        Some(StartAt {
            completed: None,
            offset,
            committed: None,
            until,
            commit_first: false,
        })
    }

    /// What the commit that a lane begins at says of the records beyond it.
    fn remembered(&self, epoch: AssignmentEpoch, found: &Found) -> Option<Arc<Completed>> {
        if !self.settings.remember_completed || found.committed != Some(found.offset) {
            return None;
        }
        let counters = &self.shared.counters;
        let why = match Completed::read(found.note.as_ref()?) {
            Ok(completed) => {
                MemberCounters::count(&counters.notes_restored);
                return Some(Arc::new(completed));
            }
            Err(Ignored::Foreign) => {
                MemberCounters::count(&counters.notes_foreign);
                "is not ours, and is overwritten"
            }
            Err(Ignored::Broken) => {
                MemberCounters::count(&counters.notes_broken);
                "is damaged"
            }
        };
        if let Some(partition) = self.assignment.partition_of(epoch) {
            self.events.warn(format!(
                "the metadata of the commit of {partition} at {} {why}: what was completed beyond \
                 it, if anything, is handled again",
                found.offset
            ));
        }
        None
    }

    /// Where a lane goes on whose position could not be read; nowhere where the
    /// run ends over it.
    fn reset_to(
        &mut self,
        epoch: AssignmentEpoch,
        stranded: Stranded,
        found: &Found,
    ) -> Option<i64> {
        let partition = self.assignment.partition_of(epoch)?.clone();
        let range = LogRange {
            log_start: found.offset,
            end_offset: found.end_offset.unwrap_or(found.offset),
        };
        match decide(&partition, stranded, range, self.settings.on_out_of_range) {
            Verdict::Stop(message) => {
                self.ask(StopReason::FatalClientError { message });
                None
            }
            Verdict::GoOn {
                to,
                policy,
                reason,
                warning,
            } => {
                self.events.warn(warning);
                let from = stranded.offset;
                self.events.send(
                    None,
                    EventKind::PositionReset {
                        partition,
                        from,
                        to,
                        policy,
                        reason,
                    },
                );
                Some(to)
            }
        }
    }

    /// Offsets of the old topic mean nothing in the new one, so none of them is
    /// committed for it: not those that were completed, and not those that were
    /// stored and wait for the committer.
    fn topic_recreated(&mut self, topic: Arc<str>) {
        let partitions = self.assignment.void(&topic);
        if !self.group.is_lost() {
            let nothing: Vec<_> = partitions
                .into_iter()
                .map(|partition| Mark::at(partition, 0))
                .collect();
            for (partition, why) in self.group.store(&nothing) {
                tracing::debug!(%partition, why, "what was stored could not be taken back");
            }
        }
        let message = ReadError::TopicRecreated { topic }.to_string();
        self.ask(StopReason::FatalClientError { message });
    }

    /// A static assignment takes its share of every partition that appears.
    fn topic_has(&mut self, topic: &Arc<str>, partitions: usize) {
        let AssignBy::Static { index, of } = self.settings.assignment else {
            return;
        };
        let mine: Vec<TopicPartition> = (0..partitions)
            .filter(|number| number % of == index)
            .filter_map(|number| i32::try_from(number).ok())
            .map(|number| TopicPartition::new(Arc::clone(topic), number))
            .filter(|partition| self.taken.insert(partition.clone()))
            .collect();
        self.assigned(mine);
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.answer_assign(&partitions);
        if self.ladder.rung() > Rung::Draining {
            // Not worked on any more; the revoke of the close takes them back.
            return;
        }
        self.is_taken_in();
        let mut actions = Vec::new();
        self.assignment.assigned(partitions, &mut actions);
        self.carry_out(actions);
    }

    fn answer_assign(&mut self, partitions: &[TopicPartition]) {
        if let Err(error) = self.group.answer_assign(partitions) {
            self.trouble(&format!("the assignment could not be taken: {error}"));
        }
    }

    fn group_says(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Assigned(partitions) => {
                MemberCounters::count(&self.shared.counters.rebalances);
                self.group_answered();
                self.assigned(partitions);
            }
            GroupEvent::Revoked { partitions, lost } => {
                self.group_answered();
                let mut actions = Vec::new();
                if lost {
                    if self.ladder.rung() == Rung::Running {
                        // Out of the group, until that says otherwise.
                        self.shared.set_phase(Phase::Joining);
                    }
                    self.assignment.lost(&partitions, &mut actions);
                } else {
                    self.assignment
                        .revoked(partitions, self.clock.now(), &mut actions);
                }
                self.carry_out(actions);
                if lost || self.group.gives_everything_anew() {
                    self.patience.begin(self.clock.now());
                }
            }
            // No answer that the gate could open for: it may be from before a gap.
            GroupEvent::TakenIn => self.is_taken_in(),
            GroupEvent::Committed { offsets } => {
                self.group_answered();
                MemberCounters::count(&self.shared.counters.commits_ok);
                let mut actions = Vec::new();
                let now = self.clock.now();
                self.assignment.committed(&offsets, now, &mut actions);
                self.carry_out(actions);
                self.events.send(
                    None,
                    EventKind::OffsetsCommitted {
                        offsets,
                        error: None,
                    },
                );
            }
            GroupEvent::CommitFailed {
                offsets,
                error,
                refusal,
            } => {
                self.commit_refused(&offsets, refusal);
                let counters = &self.shared.counters;
                MemberCounters::count(if self.ladder.rung() >= Rung::Closing {
                    &counters.commits_failed
                } else {
                    // What was stored stays stored: librdkafka tries again.
                    &counters.commits_retried
                });
                self.events.send(
                    None,
                    EventKind::OffsetsCommitted {
                        offsets,
                        error: Some(error),
                    },
                );
            }
            GroupEvent::Trouble { message } => {
                self.watch.contact_lost(self.clock.coarse());
                self.trouble(&message);
            }
            GroupEvent::Fatal { message } => {
                self.lose_what_is_lost();
                self.ask(StopReason::FatalClientError { message });
            }
            GroupEvent::InstanceHeld { instance } => self.instance_held(instance),
            GroupEvent::Fenced { instance } => {
                self.lose_what_is_lost();
                let message = format!(
                    "another process joined the group with group.instance.id {instance:?} and \
                     took this one's place; give each process its own"
                );
                self.ask(StopReason::InstanceTaken { instance, message });
            }
        }
    }

    /// What the coordinator does not take is not under way any more. Where it gave
    /// no answer, the same is sent again.
    fn commit_refused(
        &mut self,
        offsets: &[(TopicPartition, i64)],
        refusal: Option<CommitRefusal>,
    ) {
        let Some(refusal) = refusal else {
            return;
        };
        self.assignment.refused(offsets, self.clock.now());
        if refusal == CommitRefusal::NoteTooLarge && self.settings.remember_completed {
            MemberCounters::count(&self.shared.counters.notes_refused);
            if self.assignment.notes_refused(offsets) {
                self.events.warn(
                    "the group's coordinator takes less metadata with a commit than what is \
                     completed beyond commits needs: it is not remembered from now on, and a crash \
                     repeats it; raise the broker's offset.metadata.max.bytes (4096 by default)",
                );
            }
        }
    }

    /// A membership that is over does not say what it takes along.
    fn lose_what_is_lost(&mut self) {
        if !self.group.is_lost() {
            return;
        }
        let owned = self.assignment.trackers().into_iter();
        let owned: Vec<_> = owned.map(|(partition, _)| partition).collect();
        if !owned.is_empty() {
            let mut actions = Vec::new();
            self.assignment.lost(&owned, &mut actions);
            self.carry_out(actions);
        }
    }

    /// Another member has our instance id: waits for it, in sight of everybody.
    fn instance_held(&mut self, instance: String) {
        self.lose_what_is_lost();
        if self.ladder.rung() != Rung::Running {
            return;
        }
        self.shared.set_phase(Phase::Joining);
        self.patience.begin(self.clock.now());
        let patience = self.settings.instance_wait;
        match self.claim.refused(self.clock.now()) {
            Refusal::First => {
                let waits = format!(
                    "another member of the group has group.instance.id {instance:?}: waits up to \
                     {patience:?} for its session to end"
                );
                self.shared.set_held_up(Some(&waits));
                self.events.warn(waits);
            }
            Refusal::Again => {}
            Refusal::Taken { waited } => {
                let message = format!(
                    "another process of the group has group.instance.id {instance:?}, and its \
                     session did not end within {waited:?}; give each process its own, or raise \
                     instance_wait where the session of one that crashed lasts longer"
                );
                self.ask(StopReason::InstanceTaken { instance, message });
            }
        }
    }

    /// Joins once more where the group refused our instance id a while ago.
    fn claim_again(&mut self, now: Instant) {
        if self.ladder.rung() != Rung::Running {
            self.claim.give_up();
        } else if self.claim.is_due(now)
            && let Err(message) = self.group.join_again()
        {
            self.ask(StopReason::FatalClientError { message });
        }
    }

    /// Says where the group owes an assignment for longer than a rebalance takes.
    /// A name that another has was told already.
    fn look_for_a_stuck_rebalance(&mut self, now: Instant) {
        if self.ladder.rung() != Rung::Running || self.claim.is_made() {
            return;
        }
        let Some(waited) = self.patience.is_over(now) else {
            return;
        };
        let trouble = self.troubles.last().map(|trouble| format!(" ({trouble})"));
        let why = format!(
            "the group has given no assignment for {} s: it waits for another member that does \
             not answer, for as long as that one's max.poll.interval.ms, or its coordinator \
             cannot be reached{}; this member waits on",
            waited.as_secs(),
            trouble.unwrap_or_default()
        );
        self.shared.set_held_up(Some(&why));
        self.events.warn(why);
    }

    /// The group has us as a member, whatever it gives.
    fn is_taken_in(&mut self) {
        let now = self.clock.now();
        self.first_taken_in.get_or_insert(now);
        if self.ladder.rung() == Rung::Running {
            self.shared.set_phase(Phase::Joined);
        }
        let claimed = self.claim.granted(now);
        let waited = self.patience.end(now);
        if claimed.or(waited).is_some() {
            // Before it is told: whoever hears of it may look.
            self.shared.set_held_up(None);
        }
        if let Some(waited) = claimed {
            let told = "the group gave this member its group.instance.id after";
            self.events.warn(format!("{told} {waited:?}"));
        } else if let Some(waited) = waited {
            let told = "the group gives assignments again, after";
            self.events.warn(format!("{told} {} s", waited.as_secs()));
        }
    }

    /// The group works, so the gate may open.
    fn group_answered(&mut self) {
        if !self.troubles.is_empty() {
            self.answered.get_or_insert(self.clock.now());
        }
        let change = self.watch.group_answered();
        self.apply(change);
    }

    /// What was wrong is over, and is said again if it comes back. Not before
    /// [`SETTLED`]: when a broker comes back, the client's connections to it
    /// come and go one after the other.
    fn look_for_recovery(&mut self, now: Instant) {
        if self.answered.is_some_and(|since| now >= since + SETTLED) {
            self.answered = None;
            self.troubles.clear();
            self.events.warn("the cluster answers again");
        }
    }

    fn trouble(&mut self, message: &str) {
        // A cluster has few ways to be wrong at a time; more than that is noise.
        const MOST: usize = 16;
        self.answered = None;
        if self.troubles.len() < MOST && self.troubles.insert(message.to_owned()) {
            self.events.warn(format!("{message}; keeps trying"));
        }
    }

    fn worker_reports(&mut self, report: FromWorker) {
        let now = self.clock.now();
        let mut actions = Vec::new();
        match report {
            FromWorker::Released {
                lanes,
                cause: Some(cause),
            } => {
                self.assignment.released(lanes, cause, now, &mut actions);
            }
            FromWorker::Released { lanes, cause: None } => {
                self.assignment.freed(lanes, now, &mut actions);
            }
            FromWorker::ReadFailed {
                epoch,
                offset,
                error,
            } => {
                self.read_failed(epoch, offset, &error, &mut actions);
            }
            FromWorker::Exited {
                worker,
                exit,
                lanes,
            } => {
                self.threads.join(worker);
                let replace = self.worker_ended(worker, exit);
                self.assignment
                    .worker_exited(worker, lanes, replace, now, &mut actions);
            }
        }
        self.carry_out(actions);
    }

    fn read_failed(
        &mut self,
        epoch: AssignmentEpoch,
        offset: i64,
        error: &ReadError,
        actions: &mut Vec<Action>,
    ) {
        let Some(partition) = self.assignment.partition_of(epoch).cloned() else {
            return;
        };
        let truncated_at = match error {
            ReadError::OutOfRange { .. } => None,
            ReadError::Truncated { end_offset, .. } => Some(*end_offset),
            ReadError::TopicRecreated { topic } => return self.topic_recreated(Arc::clone(topic)),
            other => {
                // A partition that cannot be read must not look like one that is
                // idle.
                let message = format!("{partition} cannot be read: {other}");
                return self.ask(StopReason::FatalClientError { message });
            }
        };
        let stranded = Stranded {
            offset,
            truncated_at,
        };
        if self.settings.on_out_of_range == OutOfRange::Stop {
            self.assignment.ends_over(epoch, stranded, actions);
        } else {
            self.assignment.reset(epoch, stranded, actions);
        }
    }

    /// Says what becomes of a worker that ended: true where it is replaced now.
    fn worker_ended(&mut self, worker: usize, exit: WorkerExit) -> bool {
        if worker == READER {
            // Not a worker to anybody else: it ends with the run, or ends it.
            if let WorkerExit::EndsRun(stop, _) = exit {
                self.ask(stop);
            }
            return false;
        }
        let stopping = self.ladder.rung() != Rung::Running;
        let (reason, replace) = match exit {
            WorkerExit::Asked if stopping => {
                let (run, _) = self.ladder.outcome(self.clock.now());
                (WorkerStop::RunStopped(Box::new(run)), false)
            }
            WorkerExit::Asked if self.rolling.ended(worker) => (WorkerStop::Renewed, true),
            WorkerExit::Asked => (WorkerStop::ScaledDown, false),
            WorkerExit::EndsRun(stop, reason) => {
                self.ask(stop);
                (reason, false)
            }
            // A process that was killed because nobody waits for it any more.
            WorkerExit::Failed(WorkerStop::Abandoned) => {
                self.was_abandoned(worker);
                self.killed.push(worker);
                return false;
            }
            WorkerExit::Failed(reason) if stopping => (reason, false),
            WorkerExit::Failed(reason) => {
                if self.rolling.failed(worker) {
                    self.events.warn(format!(
                        "worker {worker} failed as soon as it was replaced: the others are left as \
                         they are"
                    ));
                }
                let last = reason.detail().unwrap_or(reason.name()).to_owned();
                let chance = fastrand::f64();
                match self
                    .restarts
                    .failed(worker, &reason, self.clock.coarse(), chance)
                {
                    Replacement::Now => (reason, true),
                    Replacement::At(at) => {
                        self.waiting_restarts.insert(worker, at);
                        self.assignment.worker_rests(worker);
                        (reason, false)
                    }
                    Replacement::Never => {
                        self.shared.set_budget_spent();
                        self.ask(StopReason::RestartBudgetSpent { worker, last });
                        (reason, false)
                    }
                }
            }
        };
        let restarts = self.restarts.restarts(worker);
        self.ended_with(worker, reason.clone());
        let pid = self.threads.last_pid(worker);
        let kind = if replace {
            EventKind::WorkerRestarted {
                reason,
                restarts,
                pid,
            }
        } else {
            EventKind::WorkerStopped { reason, pid }
        };
        self.events.send(Some(worker), kind);
        replace
    }

    /// Replaces the next worker, where all are to be.
    fn roll(&mut self, now: Instant) {
        if !self.rolling.is_under_way() || self.ladder.rung() != Rung::Running {
            return;
        }
        let there: BTreeSet<usize> = self
            .assignment
            .workers()
            .map(|(worker, _)| worker)
            .collect();
        let threads = &self.threads;
        let standing = |worker| match () {
            () if !there.contains(&worker) => Standing::Gone,
            () if threads.has_opened(worker) => Standing::Works,
            () => Standing::Starts,
        };
        let patience = self.settings.stop_deadline;
        match self.rolling.step(standing, patience, now) {
            rolling::Step::Wait => {}
            rolling::Step::Stop(worker) => self.threads.stop(worker, ReleaseCause::Moved),
            rolling::Step::Slow(worker) => self.events.warn(format!(
                "worker {worker} has been at its record for {patience:?}: it is replaced when that is \
                 done, and the others do not wait for it"
            )),
            rolling::Step::Done => tracing::info!("all workers were replaced"),
        }
    }

    /// The run does not wait for a worker any more. It is told that the run stopped.
    fn was_abandoned(&mut self, worker: usize) {
        let (run, _) = self.ladder.outcome(self.clock.now());
        let reason = WorkerStop::RunStopped(Box::new(run));
        let pid = self.threads.last_pid(worker);
        self.events
            .send(Some(worker), EventKind::WorkerStopped { reason, pid });
        self.ended_with(worker, WorkerStop::Abandoned);
    }

    fn ended_with(&mut self, worker: usize, reason: WorkerStop) {
        let restarts = self.restarts.restarts(worker);
        let report = WorkerReport {
            worker,
            reason,
            restarts,
        };
        self.ended_workers.insert(worker, report);
    }

    fn start_waiting_workers(&mut self) {
        let now = self.clock.coarse();
        let due: Vec<usize> = self
            .waiting_restarts
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(worker, _)| *worker)
            .collect();
        for worker in due {
            self.waiting_restarts.remove(&worker);
            let mut actions = Vec::new();
            self.assignment.worker_may_start(worker, &mut actions);
            self.carry_out(actions);
        }
    }

    /// Does what was decided, and what follows from doing it.
    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        let mut changed = !queue.is_empty();
        while let Some(action) = queue.pop_front() {
            let mut follows = Vec::new();
            self.carry_out_one(action, &mut follows);
            queue.extend(follows);
        }
        changed |= self.shared.workers() != self.assignment.worker_count();
        if changed {
            self.shared.set_owned(self.assignment.trackers());
            let workers = self.assignment.worker_count();
            self.shared.set_workers(workers);
            self.threads.share_memory_between(workers);
            self.show_workers();
        }
    }

    /// Puts up what each worker does, for others to see.
    fn show_workers(&self) {
        let stopping = self.ladder.rung() != Rung::Running;
        let slot = |worker, state| WorkerSlot {
            worker,
            pid: self.threads.pid(worker),
            state,
            restarts: self.restarts.restarts(worker),
        };
        let mut slots: BTreeMap<usize, WorkerSlot> = self
            .ended_workers
            .values()
            // Fewer workers than before are not workers that are missing.
            .filter(|ended| ended.reason != WorkerStop::ScaledDown)
            .map(|ended| (ended.worker, slot(ended.worker, WorkerState::Stopped)))
            .collect();
        for (worker, leaving) in self.assignment.workers() {
            let state = if leaving || stopping {
                WorkerState::Draining
            } else if self.threads.has_opened(worker) {
                WorkerState::Running
            } else {
                WorkerState::Starting
            };
            slots.insert(worker, slot(worker, state));
        }
        for &worker in self.waiting_restarts.keys() {
            slots.insert(worker, slot(worker, WorkerState::Restarting));
        }
        self.shared.set_slots(slots.into_values().collect());
    }

    fn carry_out_one(&mut self, action: Action, follows: &mut Vec<Action>) {
        match action {
            Action::Resolve(lanes) => self.starts.resolve(lanes),
            Action::Rewind { lane, offset } => self.rewind(lane, offset),
            Action::StartReader => self.start_reader(),
            Action::StartWorker(worker) => self.start_worker(worker, follows),
            Action::StopWorker(worker) => self.threads.stop(worker, ReleaseCause::Revoked),
            Action::Hand {
                worker,
                lanes,
                local,
            } => self.threads.hand(worker, lanes, local),
            Action::Release {
                worker,
                epochs,
                cause,
            } => {
                let free = self.threads.release(worker, epochs, cause);
                if !free.is_empty() {
                    let now = self.clock.now();
                    self.assignment.freed(free, now, follows);
                }
            }
            Action::SetPaused {
                worker,
                epochs,
                paused,
            } => {
                self.threads.set_paused(worker, epochs, paused);
            }
            Action::AnswerRevoke {
                partitions,
                watermarks,
                at_once,
            } => {
                self.answer_revoke(&partitions, &watermarks, &at_once);
            }
            Action::Tell(kind) => self.events.send(None, kind),
        }
    }

    fn start_reader(&mut self) {
        if let Err(error) = self.threads.start_reader() {
            let message = format!(
                "the thread keepup-reader could not be started: {error}; allow the process more \
                 threads"
            );
            self.ask(StopReason::FatalClientError { message });
        }
    }

    fn start_worker(&mut self, worker: usize, follows: &mut Vec<Action>) {
        let restarts = self.restarts.restarts(worker);
        if let Err(error) = self.threads.start(worker, restarts) {
            let why = WorkerStop::SourceFailed(format!("the thread could not be started: {error}"));
            let replace = self.worker_ended(worker, WorkerExit::Failed(why));
            let now = self.clock.now();
            self.assignment
                .worker_exited(worker, Vec::new(), replace, now, follows);
        }
    }

    /// Stores the last watermarks of what is revoked and lets go of it.
    fn answer_revoke(
        &mut self,
        partitions: &[TopicPartition],
        watermarks: &[Mark],
        at_once: &[Mark],
    ) {
        // While workers drained the session may have expired: then somebody
        // else may have committed further already.
        let has_any = !watermarks.is_empty() || !at_once.is_empty();
        if has_any && !self.group.is_lost() {
            self.store(watermarks);
            // Sent before the group hears of the answer.
            self.commit_at_once(at_once);
        }
        if let Err(error) = self.group.answer_revoke(partitions) {
            self.trouble(&format!("the revoke could not be answered: {error}"));
        }
        let gone: BTreeSet<Arc<str>> = partitions
            .iter()
            .filter(|partition| !self.assignment.has_topic(partition.topic()))
            .map(TopicPartition::shared_topic)
            .collect();
        self.starts.forget(gone.into_iter().collect());
    }

    fn store(&mut self, marks: &[Mark]) {
        if marks.is_empty() {
            return;
        }
        let now = self.clock.now();
        let refused = self.group.store(marks);
        for mark in marks {
            let partition = &mark.partition;
            if let Some((_, why)) = refused.iter().find(|(refused, _)| refused == partition) {
                MemberCounters::count(&self.shared.counters.commits_refused);
                let watermark = mark.watermark;
                tracing::debug!(%partition, watermark, why, "a watermark was refused");
            } else {
                self.assignment.mark_stored(mark, now);
                self.count_cut(mark);
            }
        }
    }

    /// Has what is completed beyond watermarks that stand still committed, or a
    /// watermark below what the group has: librdkafka's committer commits an offset
    /// that is higher, and nothing else.
    fn commit_at_once(&mut self, marks: &[Mark]) {
        if marks.is_empty() {
            return;
        }
        if let Err(error) = self.group.commit_now(marks) {
            tracing::debug!(error, "what stands still was not committed again");
        }
        for mark in marks {
            self.count_cut(mark);
        }
    }

    fn count_cut(&self, mark: &Mark) {
        if mark.is_cut {
            MemberCounters::count(&self.shared.counters.notes_cut);
        }
    }

    /// Has the group's commit come down to `offset`, and asks whether it has.
    fn rewind(&mut self, lane: Resolve, offset: i64) {
        // What is lost is somebody else's to commit; the group says so soon.
        if !self.group.is_lost()
            && let Err(error) = self
                .group
                .commit_now(&[Mark::at(lane.partition.clone(), offset)])
        {
            tracing::debug!(partition = %lane.partition, offset, error, "a commit did not come down");
        }
        self.starts.resolve(vec![lane]);
    }

    fn look_for_the_end(&mut self, now: Instant) {
        if self.ladder.rung() != Rung::Running {
            return;
        }
        if let Some(count) = self.settings.count
            && self.assignment.completed_records() >= count
        {
            return self.ask(StopReason::CountReached);
        }
        // A member that joins an existing group gets nothing at first, and its
        // share only after the others let go. That is not the end.
        let joined = self.first_taken_in.is_some_and(|at| {
            let since = now.saturating_duration_since(at);
            self.assignment.has_lanes() || since >= self.group.share_within()
        });
        if self.settings.until_end && joined && self.assignment.reached_end() {
            self.ask(StopReason::EndReached);
        }
    }

    fn ask(&mut self, reason: StopReason) {
        tracing::info!(reason = reason.name(), "asked to stop");
        // While there are partitions, and workers that work.
        let board = &self.shared.board;
        self.advice.get_or_insert_with(|| board.latest().advice);
        let now = self.clock.now();
        let step = self.ladder.ask(reason, now);
        self.shared.set_stopped_by(self.ladder.outcome(now).0);
        self.shared.set_phase(Phase::Stopping);
        self.climb(step);
    }

    fn climb(&mut self, step: Step) {
        match step {
            Step::Stay | Step::End => {}
            Step::Drain => {
                self.waiting_restarts.clear();
                let mut actions = Vec::new();
                self.assignment.stop(&mut actions);
                self.carry_out(actions);
            }
            Step::Close => {
                let mut actions = Vec::new();
                if self.assignment.worker_count() > 0 {
                    // A second signal without a first: they were never told.
                    self.assignment.stop(&mut actions);
                }
                self.assignment
                    .abandon_workers(self.clock.now(), &mut actions);
                self.carry_out(actions);
                let unstored = self.assignment.unstored();
                if !self.group.is_lost() {
                    self.store(&unstored);
                }
                self.threads.cut_short(self.clock.now());
                self.group.begin_close();
            }
        }
    }

    /// Leaves nothing running that can be ended, and makes the report.
    fn end(mut self) -> Report {
        let left_group = self.group.is_closed();
        let records = self.assignment.completed_records();
        self.assignment.close();
        let mut abandoned = self.threads.abandon();
        for &worker in &abandoned {
            self.was_abandoned(worker);
        }
        self.show_workers();
        self.shared.set_owned(Vec::new());
        self.shared.set_workers(0);
        abandoned.append(&mut self.killed);
        abandoned.sort_unstable();
        self.group.finish(CLIENT_END);
        self.starts.stop(CLIENT_END);
        let (reason, stop_took) = self.ladder.outcome(self.clock.now());
        told(
            &self.events,
            Report {
                reason,
                workers: self.ended_workers.into_values().collect(),
                records,
                left_uncommitted: self.assignment.left_uncommitted(),
                abandoned,
                left_group,
                stop_took,
                advice: self.advice.unwrap_or_default(),
            },
        )
    }
}

/// Tells of the end of the run, which is the last that is told.
fn told(events: &EventSink, report: Report) -> Report {
    events.send(
        None,
        EventKind::ShutdownComplete {
            reason: report.reason.clone(),
            left_uncommitted: report.left_uncommitted,
        },
    );
    report
}

mod broken;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
