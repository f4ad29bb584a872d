//! The loop against a group that follows a script, on a clock that stands
//! still: workers are real threads, records come from memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::{Found, Parts, Shared, StartFinder, ToMember, run};
use crate::clock::Clock;
use crate::config::{Isolation, Model, OutOfRange, Settings};
use crate::event::{Event, EventKind, ResetReason};
use crate::handler::{Handler, Outcome};
use crate::lag::advice::Hands;
use crate::lag::health::Phase;
use crate::lag::reporter::{EndFinder, Reporter, ReporterParts, ToldEnds};
use crate::member::assignment::{Ask, Resolve};
use crate::member::group::{CommitRefusal, Group, GroupEvent, Mark, SHARE_WITHIN};
use crate::record::{Record, TopicPartition};
use crate::report::{Report, StopReason};
use crate::runtime::events::EventThread;
use crate::runtime::threads::{Common, OnThreads, WorkerThreads};
use crate::source::memory::{MemoryFactory, MemoryLog, MemoryRecord};
use crate::source::{MemoryBudget, ReadError};
use crate::worker::engine::EngineFactory;
use crate::worker::gate::Gate;

const REVOKE_DEADLINE: Duration = Duration::from_secs(5);
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const SESSION: Duration = Duration::from_mins(10);

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

/// What the member did to the group.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    TookAssignment(Vec<TopicPartition>),
    Stored(TopicPartition, i64),
    CommittedBack(TopicPartition, i64),
    AnsweredRevoke(Vec<TopicPartition>),
}

/// What the group says next, and what it heard.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a script is read more easily as flags than as states"
)]
#[derive(Default)]
struct Script {
    says: VecDeque<GroupEvent>,
    did: Vec<Did>,
    owned: BTreeSet<TopicPartition>,
    /// Stored and not committed yet.
    stored: BTreeMap<TopicPartition, i64>,
    committed: BTreeMap<TopicPartition, i64>,
    /// Where logs were cut off since that was committed.
    cut_off: BTreeMap<TopicPartition, i64>,
    /// Commits are answered by themselves.
    commits: bool,
    is_lost: bool,
    /// How often it was joined.
    joins: usize,
    /// How often it had nothing more to say.
    silences: usize,
    is_closing: bool,
    is_closed: bool,
    /// So many commits of less are not heard.
    ignores_back: usize,
    /// The commit that comes with the close fails.
    close_fails: bool,
    /// A poll does not return before the other end of this is gone.
    holds_poll: Option<Receiver<()>>,
    in_held_poll: bool,
    /// A poll panics: as a mistake of ours would.
    poll_panics: bool,
}

impl Script {
    /// Commits what is stored, and from now on at once whatever is.
    fn commit(&mut self) {
        self.commits = true;
        let offsets: Vec<_> = std::mem::take(&mut self.stored).into_iter().collect();
        self.committed.extend(offsets.iter().cloned());
        self.says.push_back(GroupEvent::Committed { offsets });
    }

    fn commit_of(&mut self, partition: &TopicPartition) {
        if let Some(offset) = self.stored.remove(partition) {
            self.committed.insert(partition.clone(), offset);
            let offsets = vec![(partition.clone(), offset)];
            self.says.push_back(GroupEvent::Committed { offsets });
        }
    }
}

#[derive(Clone, Default)]
struct ScriptedGroup(Arc<Mutex<Script>>);

impl Group for ScriptedGroup {
    fn join(&mut self) -> Result<(), String> {
        self.0.lock().joins += 1;
        Ok(())
    }

    fn poll(&mut self) -> Option<GroupEvent> {
        let held = self.0.lock().holds_poll.clone();
        if let Some(held) = held {
            self.0.lock().in_held_poll = true;
            let _ = held.recv_timeout(Duration::from_mins(1));
            let mut script = self.0.lock();
            (script.holds_poll, script.in_held_poll) = (None, false);
        }
        let mut script = self.0.lock();
        assert!(!script.poll_panics, "a mistake of ours");
        let says = script.says.pop_front();
        script.silences += usize::from(says.is_none());
        says
    }

    // It is polled at every tick.
    fn on_ready(&mut self, _wake: Arc<dyn Fn() + Send + Sync>) {}

    fn answer_assign(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        let mut script = self.0.lock();
        script.owned.extend(partitions.iter().cloned());
        script.did.push(Did::TookAssignment(partitions.to_vec()));
        Ok(())
    }

    fn answer_revoke(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        let mut script = self.0.lock();
        for partition in partitions {
            script.owned.remove(partition);
            // What was stored is committed when a revoke is answered, unless all is lost.
            if let Some(offset) = script.stored.remove(partition)
                && !script.is_lost
            {
                script.committed.insert(partition.clone(), offset);
            }
        }
        script.did.push(Did::AnsweredRevoke(partitions.to_vec()));
        script.is_lost = false;
        script.is_closed = script.is_closing;
        Ok(())
    }

    fn is_lost(&self) -> bool {
        self.0.lock().is_lost
    }

    fn store(&mut self, marks: &[Mark]) -> Vec<(TopicPartition, String)> {
        let mut script = self.0.lock();
        let mut refused = Vec::new();
        for Mark {
            partition,
            watermark,
            ..
        } in marks
        {
            if !script.owned.contains(partition) {
                refused.push((partition.clone(), "not assigned".to_owned()));
                continue;
            }
            script.did.push(Did::Stored(partition.clone(), *watermark));
            script.stored.insert(partition.clone(), *watermark);
        }
        if script.commits {
            script.commit();
        }
        refused
    }

    fn commit_now(&mut self, marks: &[Mark]) -> Result<(), String> {
        let mut script = self.0.lock();
        let [mark] = marks else {
            panic!("{marks:?}");
        };
        let (partition, offset) = (&mark.partition, mark.watermark);
        script.stored.remove(partition);
        script
            .did
            .push(Did::CommittedBack(partition.clone(), offset));
        if script.ignores_back > 0 {
            script.ignores_back -= 1;
        } else {
            script.committed.insert(partition.clone(), offset);
        }
        Ok(())
    }

    fn begin_close(&mut self) {
        let mut script = self.0.lock();
        script.is_closing = true;
        if script.close_fails {
            script.says.push_back(GroupEvent::CommitFailed {
                offsets: Vec::new(),
                error: "Broker: Not coordinator".to_owned(),
                refusal: None,
            });
        }
        let partitions: Vec<_> = script.owned.iter().cloned().collect();
        script.says.push_back(GroupEvent::Revoked {
            partitions,
            lost: false,
        });
    }

    fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }

    fn session_timeout(&self) -> Option<Duration> {
        Some(SESSION)
    }

    fn finish(self: Box<Self>, _patience: Duration) -> bool {
        true
    }
}

/// Everything begins at what is committed, else at the beginning.
struct ScriptedStarts {
    group: ScriptedGroup,
    log: MemoryLog,
    to_member: Sender<ToMember>,
}

impl StartFinder for ScriptedStarts {
    fn resolve(&self, lanes: Vec<Resolve>) {
        for lane in lanes {
            let start = Ok(match lane.ask {
                Ask::Start => {
                    let script = self.group.0.lock();
                    let committed = script.committed.get(&lane.partition).copied();
                    let cut_off = script.cut_off.get(&lane.partition).copied();
                    Found {
                        ask: lane.ask,
                        note: None,
                        offset: committed.unwrap_or(0),
                        committed,
                        truncated_at: cut_off.filter(|&at| Some(at) < committed),
                        end_offset: None,
                    }
                }
                Ask::Range => Found {
                    ask: lane.ask,
                    note: None,
                    offset: self.log.start(&lane.partition),
                    committed: None,
                    truncated_at: None,
                    end_offset: Some(self.log.end(&lane.partition)),
                },
            });
            let epoch = lane.epoch;
            self.to_member
                .try_send(ToMember::Start { epoch, start })
                .unwrap();
        }
    }

    fn forget(&self, _topics: Vec<Arc<str>>) {}

    fn is_alive(&self) -> bool {
        true
    }

    fn stop(self: Box<Self>, _patience: Duration) {}
}

/// What the handlers saw, and where they wait.
#[derive(Clone, Default)]
struct Tally {
    handled: Arc<Mutex<Vec<(i32, i64)>>>,
    /// The hooks that ran, by name.
    hooks: Arc<Mutex<Vec<&'static str>>>,
    /// Where a handler waits for a permission: a record, or a hook.
    holds: Arc<Mutex<BTreeSet<(i32, i64)>>>,
    hold_hook: Arc<Mutex<Option<&'static str>>>,
}

struct Noting {
    tally: Tally,
    permits: Receiver<()>,
}

impl Noting {
    fn hook(&mut self, name: &'static str) {
        self.tally.hooks.lock().push(name);
        if *self.tally.hold_hook.lock() == Some(name) {
            let _ = self.permits.recv_timeout(Duration::from_mins(1));
        }
    }
}

impl Handler for Noting {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let at = (record.partition(), record.offset());
        self.tally.handled.lock().push(at);
        if self.tally.holds.lock().contains(&at) {
            let _ = self.permits.recv_timeout(Duration::from_mins(1));
        }
        Outcome::Done
    }

    fn on_assigned(&mut self, _partitions: &[TopicPartition]) {
        self.hook("on_assigned");
    }

    fn on_revoked(&mut self, _partitions: &[TopicPartition]) {
        self.hook("on_revoked");
    }

    fn on_lost(&mut self, _partitions: &[TopicPartition]) {
        self.hook("on_lost");
    }
}

struct Scene {
    group: ScriptedGroup,
    log: MemoryLog,
    clock: Clock,
    tally: Tally,
    permits: Sender<()>,
    to_member: Sender<ToMember>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    rings: Receiver<()>,
    told: Arc<Mutex<Vec<EventKind>>>,
    member: JoinHandle<Report>,
}

impl Scene {
    /// A member that was assigned partitions 0 to `partitions`, of ten records each.
    fn begin(partitions: i32) -> Self {
        Self::begin_with(partitions, Tally::default())
    }

    fn begin_with(partitions: i32, tally: Tally) -> Self {
        Self::begin_under(OutOfRange::default(), partitions, tally)
    }

    fn begin_under(policy: OutOfRange, partitions: i32, tally: Tally) -> Self {
        let set = |settings: &mut Settings| settings.on_out_of_range = policy;
        let scene = Self::begin_unheard(set, partitions, tally);
        scene.says(GroupEvent::Assigned((0..partitions).map(tp).collect()));
        scene
    }

    /// A member of which the group has said nothing yet.
    fn begin_unheard(set: impl FnOnce(&mut Settings), partitions: i32, tally: Tally) -> Self {
        let clock = Clock::manual();
        let group = ScriptedGroup::default();
        let log = MemoryLog::new();
        for partition in 0..partitions {
            for number in 0..10 {
                log.append(&tp(partition), MemoryRecord::of(number.to_string()));
            }
        }
        let (to_member, inbox) = bounded(64);
        let (reports, from_workers) = bounded(64);
        let (permits, permitted) = bounded(64);
        let told: Arc<Mutex<Vec<EventKind>>> = Arc::default();
        let tells = Arc::clone(&told);
        let observer = Box::new(move |event: &Event| tells.lock().push(event.kind.clone()));
        let (_, events) = EventThread::start(Some(observer), &clock).unwrap();
        let gate = Arc::new(Gate::new(SESSION / 2, clock.coarse()));
        let mut settings = Settings::new("nowhere:9092", "g");
        settings.topics.push("t".into());
        settings.revoke_deadline = REVOKE_DEADLINE;
        settings.stop_deadline = STOP_DEADLINE;
        set(&mut settings);
        let noted = tally.clone();
        let threads = WorkerThreads::new(Common {
            clock: clock.clone(),
            gate: Arc::clone(&gate),
            reports,
            events: events.clone(),
            sources: Arc::new(MemoryFactory::new(log.clone(), clock.clone())),
            engines: Arc::new(EngineFactory::per_record(move |_| Noting {
                tally: noted.clone(),
                permits: permitted.clone(),
            })),
            retry: settings.retry,
            dead_letters: None,
            count: None,
            memory: Arc::new(MemoryBudget::new(1 << 20)),
            pool: None,
            children: None,
            is_child: false,
            spawn: Box::new(OnThreads),
        });
        let starts = ScriptedStarts {
            group: group.clone(),
            log: log.clone(),
            to_member: to_member.clone(),
        };
        let (shared, rings) = Shared::new(clock.coarse());
        let shared = Arc::new(shared);
        let parts = Parts {
            settings,
            clock: clock.clone(),
            group: Box::new(group.clone()),
            starts: Box::new(starts),
            threads,
            reports: from_workers,
            inbox,
            gate: Arc::clone(&gate),
            events,
            shared: Arc::clone(&shared),
            topics: Vec::new(),
        };
        let member = std::thread::Builder::new()
            .name("member".into())
            .spawn(move || run(parts))
            .unwrap();
        Self {
            group,
            log,
            clock,
            tally,
            permits,
            to_member,
            gate,
            shared,
            rings,
            told,
            member,
        }
    }

    fn phase(&self) -> Phase {
        self.shared.member(self.clock.coarse()).phase
    }

    fn held_up(&self) -> Option<Arc<str>> {
        self.shared.member(self.clock.coarse()).held_up
    }

    /// Waits until the loop has heard all that the group says, and decided what follows at this time.
    fn settle(&self) {
        let silences = || self.group.0.lock().silences;
        let before = silences();
        self.wait_for("two turns", || silences() >= before + 2);
    }

    /// Lets longer pass than the group may owe anything without a word.
    fn lose_patience(&self) {
        self.clock.advance(Duration::from_secs(31));
    }

    fn says(&self, event: GroupEvent) {
        self.group.0.lock().says.push_back(event);
    }

    fn revokes(&self, partitions: &[i32], lost: bool) {
        let partitions = partitions.iter().copied().map(tp).collect();
        self.says(GroupEvent::Revoked { partitions, lost });
    }

    fn did(&self) -> Vec<Did> {
        self.group.0.lock().did.clone()
    }

    fn stored(&self, partition: i32) -> Vec<i64> {
        let of = |did| match did {
            Did::Stored(which, offset) if which == tp(partition) => Some(offset),
            _ => None,
        };
        self.did().into_iter().filter_map(of).collect()
    }

    fn revokes_answered(&self) -> usize {
        let is_answer = |did: &&Did| matches!(did, Did::AnsweredRevoke(_));
        self.did().iter().filter(is_answer).count()
    }

    fn handled(&self, partition: i32) -> Vec<i64> {
        let handled = self.tally.handled.lock();
        let of = handled.iter().filter(|(which, _)| *which == partition);
        of.map(|(_, offset)| *offset).collect()
    }

    /// Waits for something that needs no time to pass on the scene's clock.
    fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        self.wait_while_time_passes(what, Duration::ZERO, condition);
    }

    fn wait_while_time_passes(&self, what: &str, step: Duration, condition: impl Fn() -> bool) {
        let deadline = Clock::System.now() + Duration::from_mins(1);
        while !condition() {
            assert!(
                Clock::System.now() < deadline,
                "waited for: {what}; {:?}",
                self.did()
            );
            self.clock.advance(step);
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Watermarks are stored when a little time has passed, and the one before is
    /// committed.
    fn wait_for_store(&self, partition: i32, offset: i64) {
        let step = Duration::from_millis(10);
        self.wait_while_time_passes("a watermark to be stored", step, || {
            let stored = self.stored(partition).last() == Some(&offset);
            if !stored {
                self.group.0.lock().commit_of(&tp(partition));
            }
            stored
        });
    }

    /// Holds the loop up inside the group's client until what this gives is dropped.
    fn hold_up(&self) -> Sender<()> {
        let (release, held) = bounded(0);
        self.group.0.lock().holds_poll = Some(held);
        self.wait_for("the loop to be held up", || {
            self.group.0.lock().in_held_poll
        });
        release
    }

    /// A reporter that nobody tells where partitions end, and what it warns of.
    fn reporter(&self, stuck_after: Duration) -> (Reporter, Arc<Mutex<Vec<String>>>) {
        struct Nobody;
        impl EndFinder for Nobody {
            fn ask(
                &mut self,
                partitions: &[TopicPartition],
                _with_log_start: bool,
                _deadline: Instant,
                _tell: &mut dyn FnMut(usize, ToldEnds),
            ) -> u64 {
                partitions.len() as u64
            }
        }
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&warnings);
        let observer = Box::new(move |event: &Event| {
            if let EventKind::Warning { message } = &event.kind {
                heard.lock().push(message.clone());
            }
        });
        let (_, events) = EventThread::start(Some(observer), &self.clock).unwrap();
        let reporter = Reporter::new(ReporterParts {
            group: "g".into(),
            client_id: "c".into(),
            isolation: Isolation::ReadCommitted,
            model: Model::Threads,
            hands: Hands {
                each: 1,
                by_partition: true,
            },
            clock: self.clock.clone(),
            shared: Arc::clone(&self.shared),
            rings: self.rings.clone(),
            ends: Box::new(Nobody),
            failures: Arc::default(),
            events,
            stuck_after,
            stall_after: SESSION / 2,
            viewers: Vec::new(),
        });
        (reporter, warnings)
    }

    /// Waits until these resets, and no others, were told.
    fn wait_for_resets(&self, expected: &[(i64, i64, &'static str, ResetReason)]) {
        self.wait_for("the resets to be told", || self.resets() == expected);
    }

    fn resets(&self) -> Vec<(i64, i64, &'static str, ResetReason)> {
        let reset = |kind: &EventKind| match *kind {
            EventKind::PositionReset {
                from,
                to,
                policy,
                reason,
                ..
            } => Some((from, to, policy, reason)),
            _ => None,
        };
        self.told.lock().iter().filter_map(reset).collect()
    }

    /// Waits for the end of a run that ends by itself.
    fn ended(self) -> Report {
        self.group.0.lock().commit();
        self.wait_while_time_passes("the end", Duration::from_millis(100), || {
            self.member.is_finished()
        });
        self.member.join().unwrap()
    }

    fn end(self) -> Report {
        self.group.0.lock().commit();
        self.to_member
            .send(ToMember::Stop(StopReason::StopCalled))
            .unwrap();
        self.wait_while_time_passes("the end", Duration::from_millis(100), || {
            self.member.is_finished()
        });
        self.member.join().unwrap()
    }
}

#[test]
fn s03_nothing_is_stored_of_a_record_that_is_in_a_handler() {
    let tally = Tally::default();
    tally.holds.lock().insert((0, 4));
    let scene = Scene::begin_with(2, tally);
    scene.wait_for("the record in hand", || scene.handled(0).last() == Some(&4));
    scene.wait_for_store(1, 10);
    scene.wait_for_store(0, 4);
    scene.says(GroupEvent::Committed {
        offsets: vec![(tp(0), 4)],
    });
    scene.permits.send(()).unwrap();
    scene.wait_for_store(0, 10);
    let report = scene.end();
    assert_eq!((report.records, report.left_uncommitted), (20, 0));
}

#[test]
fn s06_a_commit_that_failed_and_was_overtaken_is_never_made_again_by_a_revoke() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.says(GroupEvent::CommitFailed {
        offsets: vec![(tp(0), 10)],
        error: "rebalance in progress".into(),
        refusal: Some(CommitRefusal::Other),
    });
    for number in 10..20 {
        scene
            .log
            .append(&tp(0), MemoryRecord::of(number.to_string()));
    }
    // librdkafka makes it again, and only then the next one is its to make.
    scene.wait_for("the records", || scene.handled(0).len() == 20);
    assert_eq!(scene.stored(0), [10]);
    scene.says(GroupEvent::Committed {
        offsets: vec![(tp(0), 10)],
    });
    scene.wait_for_store(0, 20);
    scene.says(GroupEvent::Committed {
        offsets: vec![(tp(0), 20)],
    });
    scene.revokes(&[0], false);
    scene.wait_for("the answer", || scene.revokes_answered() == 1);
    let stored = scene.stored(0);
    assert!(stored.is_sorted(), "a watermark went back: {stored:?}");
    assert_eq!(stored.last(), Some(&20));
    assert_eq!(scene.group.0.lock().committed[&tp(0)], 20);
    scene.end();
}

#[test]
fn s09_of_what_is_lost_nothing_is_stored_and_the_run_goes_on_after_the_rejoin() {
    let tally = Tally::default();
    tally.holds.lock().insert((0, 4));
    let scene = Scene::begin_with(1, tally);
    scene.wait_for("the record in hand", || scene.handled(0).last() == Some(&4));
    scene.wait_for_store(0, 4);
    // Committed by whoever had it meanwhile.
    scene.group.0.lock().stored.clear();
    assert_eq!(scene.phase(), Phase::Joined);
    scene.revokes(&[0], true);
    scene.wait_for("the answer", || scene.revokes_answered() == 1);
    assert_eq!(scene.phase(), Phase::Joining, "it is in no group");
    scene.group.0.lock().committed.insert(tp(0), 2);
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    scene.wait_for("the assignment", || {
        scene.did().last() == Some(&Did::TookAssignment(vec![tp(0)]))
    });
    scene.wait_for("readiness", || scene.phase() == Phase::Joined);
    // The handler of the lost life returns; its record and what it read are worth nothing.
    scene.tally.holds.lock().clear();
    let before = scene.did().len();
    scene.permits.send(()).unwrap();
    scene.wait_for("the records from the commit on", || {
        scene.handled(0).len() == 5 + 8
    });
    scene.wait_for_store(0, 10);
    let after = &scene.did()[before..];
    assert!(
        !after.contains(&Did::Stored(tp(0), 5)),
        "the late result is not stored: {after:?}"
    );
    assert_eq!(scene.handled(0)[5..], [2, 3, 4, 5, 6, 7, 8, 9]);
    let hooks = scene.tally.hooks.lock().clone();
    assert_eq!(hooks, ["on_assigned", "on_lost", "on_assigned"]);
    let report = scene.end();
    assert_eq!(report.left_uncommitted, 0);
}

#[test]
fn s47_a_member_that_is_taken_in_and_given_nothing_has_joined_and_waits_for_nobody() {
    let scene = Scene::begin_unheard(|_| {}, 1, Tally::default());
    scene.wait_for("the join", || scene.group.0.lock().joins == 1);
    assert_eq!(scene.phase(), Phase::Joining);
    scene.says(GroupEvent::TakenIn);
    scene.wait_for("readiness", || scene.phase() == Phase::Joined);
    scene.lose_patience();
    scene.says(GroupEvent::TakenIn);
    scene.settle();
    assert_eq!(scene.held_up(), None);
    // It takes over like any other.
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    scene.wait_for("its records", || scene.handled(0).len() == 10);
    scene.wait_for_store(0, 10);
    assert_eq!(scene.phase(), Phase::Joined);
    // And is a spare again when another one has it.
    scene.revokes(&[0], false);
    scene.wait_for("the answer", || scene.revokes_answered() == 1);
    scene.lose_patience();
    scene.settle();
    assert_eq!((scene.phase(), scene.held_up()), (Phase::Joined, None));
    scene.end();
}

#[test]
fn a_member_that_nobody_takes_in_is_held_up_until_the_group_has_it() {
    let scene = Scene::begin_unheard(|_| {}, 1, Tally::default());
    scene.wait_for("the join", || scene.group.0.lock().joins == 1);
    scene.lose_patience();
    scene.wait_for("the word", || scene.held_up().is_some());
    scene.says(GroupEvent::TakenIn);
    scene.wait_for("its end", || scene.held_up().is_none());
    assert_eq!(scene.phase(), Phase::Joined);
    // The same where it was a member and fell out.
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    scene.wait_for_store(0, 10);
    scene.revokes(&[0], true);
    scene.wait_for("the answer", || scene.revokes_answered() == 1);
    assert_eq!(scene.phase(), Phase::Joining);
    scene.lose_patience();
    scene.wait_for("the word", || scene.held_up().is_some());
    scene.says(GroupEvent::TakenIn);
    scene.wait_for("its end", || scene.held_up().is_none());
    assert_eq!(scene.phase(), Phase::Joined, "with nothing");
    scene.end();
}

#[test]
fn a_name_that_the_group_gives_is_granted_without_a_partition() {
    let scene = Scene::begin_unheard(|_| {}, 1, Tally::default());
    let instance = "n".to_owned();
    scene.says(GroupEvent::InstanceHeld { instance });
    scene.wait_for("the word", || scene.held_up().is_some());
    let step = Duration::from_millis(50);
    scene.wait_while_time_passes("the next claim", step, || scene.group.0.lock().joins == 2);
    scene.says(GroupEvent::TakenIn);
    scene.wait_for("its end", || scene.held_up().is_none());
    assert_eq!(scene.phase(), Phase::Joined);
    let granted = |kind: &EventKind| {
        let told = "the group gave this member its group.instance.id after";
        matches!(kind, EventKind::Warning { message } if message.starts_with(told))
    };
    scene.wait_for("that to be told", || scene.told.lock().iter().any(granted));
    scene.end();
}

#[test]
fn a_spare_ends_with_the_records_once_no_share_can_be_on_its_way_any_more() {
    let until_end = |settings: &mut Settings| settings.until_end = true;
    let scene = Scene::begin_unheard(until_end, 1, Tally::default());
    scene.clock.advance(2 * SHARE_WITHIN);
    scene.settle();
    assert_eq!(scene.phase(), Phase::Joining, "it was never taken in");
    scene.says(GroupEvent::TakenIn);
    scene.wait_for("readiness", || scene.phase() == Phase::Joined);
    scene.clock.advance(SHARE_WITHIN / 2);
    // Told again, which does not begin the wait anew.
    scene.says(GroupEvent::TakenIn);
    scene.settle();
    assert_eq!(scene.phase(), Phase::Joined);
    scene.clock.advance(SHARE_WITHIN / 2);
    scene.wait_for("the end", || scene.member.is_finished());
    assert_eq!(scene.ended().reason, StopReason::EndReached);
}

#[test]
fn s48_a_commit_that_is_gone_after_a_loss_ends_the_run_and_nothing_begins_anew() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().commit();
    scene.wait_for("the commit to be known", || {
        let owned = scene.shared.owned().partitions;
        owned
            .iter()
            .any(|(_, tracker)| tracker.committed() == Some(10))
    });
    scene.revokes(&[0], true);
    scene.wait_for("the answer", || scene.revokes_answered() == 1);
    // Nobody is a member for a moment, and somebody deletes the group.
    scene.group.0.lock().committed.clear();
    append_ten(&scene);
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    let (tally, group) = (scene.tally.clone(), scene.group.clone());
    let report = scene.ended();
    assert_eq!(report.exit_code(), 1);
    let message = message_of(&report);
    for part in [
        "t-0",
        "offset 10",
        "deleted",
        "reset the group's offsets to 10",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(tally.handled.lock().len(), 10, "none again, none beyond");
    assert_eq!(group.0.lock().committed.get(&tp(0)), None);
}

#[test]
fn s10_a_revoke_whose_partitions_turn_out_to_be_lost_while_workers_drain_stores_nothing() {
    let tally = Tally::default();
    tally.holds.lock().extend([(0, 4), (1, 6)]);
    let scene = Scene::begin_with(2, tally);
    scene.wait_for("the records in hand", || {
        scene.handled(0).last() == Some(&4) && scene.handled(1).last() == Some(&6)
    });
    scene.wait_for_store(0, 4);
    scene.wait_for_store(1, 6);
    scene.revokes(&[0, 1], false);
    scene.wait_for("the revoke to be heard", || {
        scene.group.0.lock().says.is_empty()
    });
    scene.group.0.lock().is_lost = true;
    let before = scene.did().len();
    // One worker lets go in time, and a tick at which watermarks are stored passes; the other overruns.
    scene.permits.send(()).unwrap();
    scene.wait_for("a worker to let go", || {
        scene.tally.hooks.lock().contains(&"on_revoked")
    });
    assert_eq!(scene.revokes_answered(), 0);
    let step = Duration::from_millis(100);
    scene.wait_while_time_passes("the answer", step, || scene.revokes_answered() == 1);
    let after = scene.did()[before..].to_vec();
    assert_eq!(after, [Did::AnsweredRevoke(vec![tp(0), tp(1)])]);
    scene.permits.send(()).unwrap();
    let report = scene.end();
    assert!(report.abandoned.is_empty(), "{report:?}");
}

#[test]
fn s20_a_hook_that_never_returns_holds_a_revoke_and_a_stop_up_to_their_deadlines_and_not_longer() {
    let tally = Tally::default();
    *tally.hold_hook.lock() = Some("on_revoked");
    let scene = Scene::begin_with(1, tally);
    scene.wait_for_store(0, 10);
    scene.revokes(&[0], false);
    scene.wait_for("the hook", || {
        scene.tally.hooks.lock().contains(&"on_revoked")
    });
    let began = scene.clock.now();
    assert_eq!(scene.revokes_answered(), 0);
    let step = Duration::from_millis(100);
    scene.wait_while_time_passes("the answer", step, || scene.revokes_answered() == 1);
    let waited = scene.clock.now() - began;
    assert!(
        waited + step >= REVOKE_DEADLINE && waited < REVOKE_DEADLINE * 2,
        "{waited:?}"
    );
    // It comes back while the hook still hangs: nobody works on it.
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    let began = scene.clock.now();
    let permits = scene.permits.clone();
    let report = scene.end();
    let _ = permits.send(());
    assert_eq!(report.abandoned, [0], "{report:?}");
    assert!(
        report.stop_took >= STOP_DEADLINE,
        "since {began:?}: {report:?}"
    );
    assert!(report.stop_took < STOP_DEADLINE * 2, "{report:?}");
}

#[test]
fn a_failed_commit_is_counted_as_retried_until_the_group_is_left_and_then_as_failed() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    let shared = Arc::clone(&scene.shared);
    let counts = || {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        (
            read(&counters.commits_retried),
            read(&counters.commits_failed),
        )
    };
    scene.says(GroupEvent::CommitFailed {
        offsets: vec![(tp(0), 10)],
        error: "Broker: Not coordinator".to_owned(),
        refusal: None,
    });
    scene.wait_for("the failure to be heard", || counts() == (1, 0));
    scene.group.0.lock().close_fails = true;
    scene.end();
    assert_eq!(counts(), (1, 1));
}

#[test]
fn s21_a_loop_that_is_held_up_is_told_and_no_record_is_started_before_the_group_has_answered() {
    let scene = Scene::begin(2);
    scene.wait_for_store(0, 10);
    scene.wait_for_store(1, 10);
    let stuck_after = 2 * SESSION;
    let (mut reporter, warnings) = scene.reporter(stuck_after);
    let mut tick = || {
        reporter.tick();
        scene.shared.board.latest()
    };
    let snapshot = tick();
    assert!(snapshot.health.is_live() && snapshot.health.is_ready());
    assert_eq!((snapshot.partitions.len(), snapshot.member_stalls), (2, 0));

    // Half a session later the group may give the partitions away soon, and nobody here would hear of it.
    let release = scene.hold_up();
    scene.clock.advance(SESSION / 2 + Duration::from_secs(1));
    for number in 10..20 {
        let record = MemoryRecord::of(number.to_string());
        scene.log.append(&tp(0), record);
    }
    tick();
    let snapshot = tick();
    assert_eq!(snapshot.member_stalls, 2, "each look counts");
    assert!(
        snapshot.health.is_live(),
        "it may go on by itself: {:?}",
        snapshot.health
    );
    assert_eq!(
        snapshot.partitions.len(),
        2,
        "its partitions are shown all the same"
    );
    scene.wait_for("a warning", || !warnings.lock().is_empty());
    assert!(
        !scene.gate.allows(scene.clock.coarse()),
        "no worker starts a record"
    );
    scene.clock.advance(stuck_after);
    let not_live = tick().health.not_live.clone();
    assert_eq!(not_live.len(), 1);
    assert!(not_live[0].contains("has not turned for"), "{not_live:?}");
    assert_eq!(scene.handled(0).len(), 10, "nothing was started");

    // It turns again: healthy at once, and still no record before the group has said something.
    drop(release);
    let now = scene.clock.coarse();
    scene.wait_for("the loop to turn", || {
        scene.shared.member(now).turned_ago.is_zero()
    });
    let snapshot = tick();
    assert!(snapshot.health.is_live(), "{:?}", snapshot.health);
    assert_eq!(snapshot.member_stalls, 3, "and no more");
    scene.wait_for("that it is over to be told", || warnings.lock().len() == 2);
    assert!(
        warnings.lock()[0].contains("has not turned for 301"),
        "{:?}",
        warnings.lock()
    );
    assert_eq!(warnings.lock()[1], "the member's loop turns again");
    assert!(!scene.gate.allows(now));
    assert_eq!(scene.handled(0).len(), 10);
    scene.says(GroupEvent::Committed {
        offsets: Vec::new(),
    });
    scene.wait_for("the records to be handled", || scene.handled(0).len() == 20);
    let report = scene.end();
    assert_eq!((report.records, report.left_uncommitted), (30, 0));
}

/// Ten more records, so that partition 0 is read again.
fn append_ten(scene: &Scene) {
    for number in 0..10 {
        let record = MemoryRecord::of(number.to_string());
        scene.log.append(&tp(0), record);
    }
}

fn message_of(report: &Report) -> String {
    match &report.reason {
        StopReason::FatalClientError { message } => message.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn s34_what_retention_passed_is_told_and_goes_on_at_the_log_start_or_the_end() {
    for (policy, to) in [(OutOfRange::Earliest, 25), (OutOfRange::Latest, 30)] {
        let scene = Scene::begin_under(policy, 1, Tally::default());
        scene.wait_for_store(0, 10);
        scene.group.0.lock().commit();
        scene.log.move_on(&tp(0), 25, 30);
        scene.wait_for_store(0, 30);
        scene.wait_for_resets(&[(10, to, policy.name(), ResetReason::BelowLogStart)]);
        let is_back = |did: &Did| matches!(did, Did::CommittedBack(..));
        assert!(!scene.did().iter().any(is_back), "it goes up");
        scene.end();
    }
}

#[test]
fn s34_stop_ends_the_run_with_what_was_completed_and_names_all_there_is_to_know() {
    let scene = Scene::begin_under(OutOfRange::Stop, 2, Tally::default());
    scene.wait_for_store(0, 10);
    scene.log.remove_before(&tp(0), 25);
    let group = scene.group.clone();
    let report = scene.ended();
    assert_eq!(report.exit_code(), 1);
    assert_eq!(report.left_uncommitted, 0);
    let message = message_of(&report);
    for part in [
        "t-0",
        "offset 10",
        "25 to 25",
        "retention",
        "reset the group",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let script = group.0.lock();
    assert_eq!(script.committed[&tp(0)], 10, "and nothing beyond");
    assert_eq!(script.committed[&tp(1)], 10);
}

#[test]
fn a_truncated_log_goes_on_where_it_differs_once_the_commit_has_come_down() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().commit();
    scene.group.0.lock().ignores_back = 2;
    // Cut off at 6, and grown again to 16 under other records.
    scene.log.fail_next(
        &tp(0),
        ReadError::Truncated {
            offset: 10,
            end_offset: 6,
        },
    );
    scene.log.truncate(&tp(0), 6);
    append_ten(&scene);
    scene.wait_for_store(0, 16);
    scene.wait_for_resets(&[(10, 6, "truncation", ResetReason::Truncated)]);
    assert_eq!(scene.handled(0)[10..], (6..16).collect::<Vec<_>>());
    let back = Did::CommittedBack(tp(0), 6);
    let did = scene.did();
    assert_eq!(
        did.iter().filter(|did| **did == back).count(),
        3,
        "tried until it was there: {did:?}"
    );
    let last = did.iter().rposition(|did| *did == back).unwrap();
    let stored = did
        .iter()
        .rposition(|did| matches!(did, Did::Stored(_, 7..)));
    assert!(
        stored.is_some_and(|stored| stored > last),
        "nothing is stored before: {did:?}"
    );
    scene.wait_for("a warning", || {
        let told = scene.told.lock();
        told.iter().any(
            |kind| matches!(kind, EventKind::Warning { message } if message.contains("6 to 9")),
        )
    });
    scene.end();
}

#[test]
fn a_commit_over_a_log_that_was_cut_off_since_comes_down_and_nothing_above_the_cut_is_skipped() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().commit();
    scene.revokes(&[0], true);
    scene.wait_for("the answer", || scene.revokes_answered() == 1);
    // Cut off at 6, and grown again to 16 under other records.
    scene.log.truncate(&tp(0), 6);
    append_ten(&scene);
    {
        let mut script = scene.group.0.lock();
        script.committed.insert(tp(0), 10);
        script.cut_off.insert(tp(0), 6);
    }
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    scene.wait_for_store(0, 16);
    scene.wait_for_resets(&[(10, 6, "truncation", ResetReason::Truncated)]);
    assert_eq!(scene.handled(0)[10..], (6..16).collect::<Vec<_>>());
    assert!(scene.did().contains(&Did::CommittedBack(tp(0), 6)));
    scene.end();
}

#[test]
fn a_log_that_ends_below_its_commit_is_read_from_its_beginning_and_so_would_be_after_a_crash() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().commit();
    scene.log.truncate(&tp(0), 4);
    scene.wait_for("the records again", || scene.handled(0).len() == 14);
    scene.wait_for_resets(&[(10, 0, "earliest", ResetReason::AboveEnd)]);
    // By being stored, or by being told to: a word on the 10 may have come late.
    scene.wait_while_time_passes("the commit", Duration::from_millis(10), || {
        scene.group.0.lock().committed[&tp(0)] == 4
    });
    scene.end();
}

#[test]
fn s32_a_topic_that_is_another_ends_the_run_and_what_was_read_of_the_old_one_is_not_committed() {
    let recreated = || ReadError::TopicRecreated { topic: "t".into() };
    // Whoever finds it out, the source or the metadata.
    for by_source in [true, false] {
        let tally = Tally::default();
        tally.holds.lock().insert((1, 4));
        let scene = Scene::begin_with(2, tally);
        scene.wait_for_store(0, 10);
        scene.wait_for_store(1, 4);
        scene.group.0.lock().commit();
        append_ten(&scene);
        scene.wait_for("the records", || scene.handled(0).len() == 20);
        if by_source {
            scene.log.fail_next(&tp(0), recreated());
            append_ten(&scene);
        } else {
            let message = ToMember::TopicRecreated("t".into());
            scene.to_member.send(message).unwrap();
        }
        scene.wait_for("what was stored to be taken back", || {
            scene.stored(0).last() == Some(&0)
        });
        scene.permits.send(()).unwrap();
        let group = scene.group.clone();
        let report = scene.ended();
        assert_eq!(report.exit_code(), 1);
        assert_eq!(message_of(&report), recreated().to_string());
        let stored: Vec<i64> = group
            .0
            .lock()
            .did
            .iter()
            .rev()
            .map_while(|did| match did {
                Did::Stored(_, offset) => Some(*offset),
                Did::AnsweredRevoke(_) => Some(0),
                _ => None,
            })
            .take_while(|offset| *offset == 0)
            .collect();
        assert!(stored.len() >= 3, "nothing but zero is stored afterwards");
    }
}

mod membership;
