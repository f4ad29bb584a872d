//! The thread that ticks: looks at every partition once a second and hangs up
//! what it found.
//!
//! One tick asks for the end offsets that are old, looks at the trackers, judges
//! the health and publishes. Only the first of these waits for anybody, half a
//! second at most for each broker that does not answer, and such a broker is
//! given a rest; so a cluster that hangs makes end offsets old, and never the
//! rest of the snapshot. When the assignment changes the reporter is woken and
//! looks again at once, without asking and without observing, so that windows
//! weigh every second the same.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::advice::{Adviser, Hands, Seen};
use super::board::Outdated;
use super::estimate::is_stale;
use super::health::{Phase, judge};
use super::partition::{Moment, Watched};
use super::snapshot::{CommitNotes, LagSnapshot, MemberState, WorkerState, WorkerStatus};
use super::topics::TopicBook;
use crate::clock::{Clock, Coarse};
use crate::config::{Isolation, Model};
use crate::kafka::failures::Failures;
use crate::record::TopicPartition;
use crate::report::StopReason;
use crate::runtime::events::EventSink;
use crate::runtime::shared::{Shared, WorkerSlot};
use crate::worker::run::panic_message;

/// From one tick to the next.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Changes of the assignment within that time are looked at together.
const GATHER: Duration = Duration::from_millis(20);

/// In every so many ticks the log start is asked for as well where end offsets
/// are.
const LOG_START_EVERY: u64 = 10;

/// What a broker answered for one partition; -1 for what it was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToldEnds {
    pub(crate) end_offset: i64,
    pub(crate) log_start: i64,
}

/// Who asks brokers for the ends of partitions.
pub(crate) trait EndFinder: Send {
    /// Asks for the ends of these partitions, with the consumer's isolation
    /// level, and tells those that were answered by their index. Gives the
    /// number of questions that failed. Waits until about `deadline` at most.
    fn ask(
        &mut self,
        partitions: &[TopicPartition],
        with_log_start: bool,
        deadline: Instant,
        tell: &mut dyn FnMut(usize, ToldEnds),
    ) -> u64;
}

/// Whoever is shown every snapshot, on the reporter's thread.
pub(crate) type Viewer = Box<dyn FnMut(&LagSnapshot) + Send>;

/// Everything that the reporter is made from.
pub(crate) struct ReporterParts {
    pub(crate) group: Arc<str>,
    pub(crate) client_id: Arc<str>,
    pub(crate) isolation: Isolation,
    pub(crate) model: Model,
    pub(crate) hands: Hands,
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) rings: Receiver<()>,
    pub(crate) ends: Box<dyn EndFinder>,
    pub(crate) failures: Arc<Failures>,
    pub(crate) events: EventSink,
    pub(crate) stuck_after: Duration,
    /// The member's loop is said to be held up after that time.
    pub(crate) stall_after: Duration,
    pub(crate) viewers: Vec<Viewer>,
}

/// What the reporter knows between two ticks.
pub(crate) struct Reporter {
    parts: ReporterParts,
    watched: Vec<Watched>,
    /// Partitions that are not ours any more, while a worker is still in a
    /// handler with one of their records.
    departed: Vec<Watched>,
    generation: u64,
    topics: TopicBook,
    adviser: Adviser,
    ticks: u64,
    end_offset_errors: u64,
    clamped: u64,
    member_stalls: u64,
    /// Carried on where the board was told of them.
    failures: u64,
    stalled: bool,
    /// Reused from tick to tick, like those below.
    spare: Option<Arc<LagSnapshot>>,
    stale: Vec<TopicPartition>,
    stale_index: Vec<usize>,
    slots: Vec<WorkerSlot>,
}

impl Reporter {
    pub(crate) fn new(parts: ReporterParts) -> Self {
        Self {
            adviser: Adviser::new(parts.hands),
            parts,
            watched: Vec::new(),
            departed: Vec::new(),
            generation: 0,
            topics: TopicBook::default(),
            ticks: 0,
            end_offset_errors: 0,
            clamped: 0,
            member_stalls: 0,
            failures: 0,
            stalled: false,
            spare: None,
            stale: Vec::new(),
            stale_index: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// One tick.
    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
        self.parts.shared.reported(self.parts.clock.coarse());
        self.failures = self.parts.shared.board.latest().reporter_failures;
        self.follow();
        self.ask();
        self.watch_member();
        self.publish(true);
    }

    /// The assignment changed: shows what is owned now.
    pub(crate) fn look_again(&mut self) {
        self.publish(false);
    }

    /// Takes over what is owned now.
    fn follow(&mut self) {
        let owned = self.parts.shared.owned();
        if owned.generation == self.generation {
            return;
        }
        self.generation = owned.generation;
        let now = self.parts.clock.coarse();
        let mut before: BTreeMap<TopicPartition, Watched> = std::mem::take(&mut self.watched)
            .into_iter()
            .map(|watched| (watched.partition.clone(), watched))
            .collect();
        for (partition, tracker) in owned.partitions.iter() {
            let watched = match before.remove(partition) {
                Some(watched) if Arc::ptr_eq(&watched.tracker, tracker) => watched,
                Some(mut watched) if watched.tracker.owned_since() == tracker.owned_since() => {
                    // What was completed before the seek counts.
                    self.topics.count(&mut watched, now);
                    watched.follow(Arc::clone(tracker));
                    watched
                }
                old => {
                    self.departed.extend(old);
                    Watched::new(partition.clone(), Arc::clone(tracker), now)
                }
            };
            self.watched.push(watched);
        }
        self.departed.extend(before.into_values());
    }

    /// Asks for the end offsets that are old.
    fn ask(&mut self) {
        let now = self.parts.clock.coarse();
        self.stale.clear();
        self.stale_index.clear();
        for (index, watched) in self.watched.iter().enumerate() {
            if is_stale(watched.tracker.end_offset_age(now)) {
                self.stale.push(watched.partition.clone());
                self.stale_index.push(index);
            }
        }
        if self.stale.is_empty() {
            return;
        }
        let with_log_start = self.ticks % LOG_START_EVERY == 1;
        let deadline = self.parts.clock.now() + TICK;
        let (watched, index) = (&self.watched, &self.stale_index);
        self.end_offset_errors +=
            self.parts
                .ends
                .ask(&self.stale, with_log_start, deadline, &mut |asked, told| {
                    // As of the question: the answer cannot be older.
                    if let Some(watched) = index.get(asked).and_then(|&i| watched.get(i)) {
                        watched
                            .tracker
                            .was_told_ends(told.end_offset, told.log_start, now);
                    }
                });
    }

    /// Says once that the member's loop is held up, and that it is over.
    fn watch_member(&mut self) {
        let member = self.parts.shared.member(self.parts.clock.coarse());
        let stalled = member.phase != Phase::Ended && member.turned_ago >= self.parts.stall_after;
        if stalled {
            self.member_stalls += 1;
        }
        if stalled && !self.stalled {
            self.parts.events.warn(format!(
                "the member's loop has not turned for {:?}, and the group takes it for dead soon: \
                 no worker starts a record before it turns again",
                member.turned_ago
            ));
        } else if self.stalled && !stalled && member.phase != Phase::Ended {
            self.parts.events.warn("the member's loop turns again");
        }
        self.stalled = stalled;
    }

    /// Looks at everything and hangs it up; again where the ownership changed
    /// meanwhile.
    fn publish(&mut self, is_tick: bool) {
        let mut observes = is_tick;
        loop {
            self.follow();
            let snapshot = self.snapshot(observes);
            observes = false;
            match self.parts.shared.board.hang(self.generation, snapshot) {
                Ok(before) => {
                    self.spare = Some(before);
                    break;
                }
                Err(Outdated(snapshot)) => self.spare = Some(snapshot),
            }
        }
        let latest = self.parts.shared.board.latest();
        #[cfg(feature = "http")]
        if is_tick {
            self.parts.shared.board.remember(&latest);
        }
        // A program's own recorder is its code: where that panics, it is not
        // shown anything any more, and the reporter goes on.
        self.parts.viewers.retain_mut(|viewer| {
            let shown = catch_unwind(AssertUnwindSafe(|| viewer(&latest)));
            if let Err(panic) = &shown {
                tracing::error!(
                    "a recorder of metrics panicked, and is told nothing from now on: {}",
                    panic_message(panic.as_ref())
                );
            }
            shown.is_ok()
        });
    }

    fn snapshot(&mut self, observes: bool) -> Arc<LagSnapshot> {
        let now = Moment {
            coarse: self.parts.clock.coarse(),
            unix_ms: self.parts.clock.unix_millis(),
        };
        // A new one only where a reader still has the old one.
        let mut snapshot = self
            .spare
            .take()
            .filter(|spare| Arc::strong_count(spare) == 1)
            .unwrap_or_default();
        if let Some(into) = Arc::get_mut(&mut snapshot) {
            self.fill(into, now, observes);
        }
        snapshot
    }

    fn fill(&mut self, into: &mut LagSnapshot, now: Moment, observes: bool) {
        into.partitions.clear();
        for watched in &mut self.watched {
            let looked = watched.look(now, observes);
            if observes && looked.clamped {
                self.clamped += 1;
            }
            into.partitions.push(looked.lag);
            self.topics.count(watched, now.coarse);
        }
        let topics = &mut self.topics;
        self.departed.retain_mut(|watched| {
            let worker = watched.tracker.worker();
            topics.count(watched, now.coarse);
            worker.is_some()
        });
        self.topics.retire(
            self.watched.iter().map(|watched| &watched.partition),
            now.coarse,
        );
        self.topics.show(&mut into.topics);
        self.show_workers(into);
        into.group.clone_from(&self.parts.group);
        into.client_id.clone_from(&self.parts.client_id);
        into.isolation = self.parts.isolation;
        into.model = self.parts.model;
        into.taken_at_ms = now.unix_ms;
        let counters = &self.parts.shared.counters;
        let read = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        into.rebalances = read(&counters.rebalances);
        into.commits_ok = read(&counters.commits_ok);
        into.commits_retried = read(&counters.commits_retried);
        into.commits_refused = read(&counters.commits_refused);
        into.commits_failed = read(&counters.commits_failed);
        into.commit_notes = CommitNotes {
            restored: read(&counters.notes_restored),
            foreign: read(&counters.notes_foreign),
            broken: read(&counters.notes_broken),
            cut: read(&counters.notes_cut),
            refused: read(&counters.notes_refused),
        };
        into.end_offset_errors = self.end_offset_errors;
        into.clamped = self.clamped;
        into.member_stalls = self.member_stalls;
        into.reporter_failures = self.failures;
        into.connection_errors = self.parts.failures.totals();
        let member = self.parts.shared.member(now.coarse);
        into.member = member.state();
        into.stop_reason = member.stopped_by.as_deref().map(StopReason::name);
        into.health = judge(&member, &into.partitions, self.parts.stuck_after);
        self.advise(into, now.coarse, observes);
    }

    /// The advice is that of the last tick, while what is owned is the same.
    fn advise(&mut self, into: &mut LagSnapshot, now: Coarse, is_tick: bool) {
        let stops = matches!(into.member, MemberState::Stopping | MemberState::Stopped);
        let owned = self.watched.iter().map(|watched| &watched.partition);
        if stops || self.adviser.owns_others(owned) {
            self.adviser.forget();
        }
        if is_tick && !stops {
            let up = into.workers.iter().filter(|status| status.state.is_up());
            let seen = self
                .watched
                .iter()
                .zip(&into.partitions)
                .map(|(watched, lag)| Seen {
                    partition: lag.partition.clone(),
                    paused: lag.paused,
                    end_offset: lag.end_offset,
                    position: lag.position,
                    handed: watched.counted.handed(),
                    completed: watched.counted.completed(),
                    ended_calls: watched.counted.in_handlers(),
                    // Below a tick it is the noise of when one looks.
                    in_hand: Some(lag.in_hand_for)
                        .filter(|time| *time >= TICK)
                        .unwrap_or_default(),
                });
            self.adviser.tick(now, self.generation, up.count(), seen);
        }
        into.advice = self.adviser.advice();
    }

    fn show_workers(&mut self, into: &mut LagSnapshot) {
        self.parts.shared.slots_into(&mut self.slots);
        into.workers.clear();
        for slot in &self.slots {
            into.workers.push(WorkerStatus {
                worker: slot.worker,
                pid: slot.pid,
                state: slot.state,
                partitions: 0,
                restarts: slot.restarts,
            });
        }
        for partition in &into.partitions {
            let Some(worker) = partition.worker else {
                continue;
            };
            if let Ok(index) = into
                .workers
                .binary_search_by_key(&worker, |status| status.worker)
            {
                into.workers[index].partitions += 1;
            }
        }
        for status in &mut into.workers {
            if status.state == WorkerState::Running && status.partitions == 0 {
                status.state = WorkerState::Idle;
            }
        }
    }
}

/// The thread `keepup-reporter`.
#[derive(Debug)]
pub(crate) struct ReporterThread {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl ReporterThread {
    pub(crate) fn start(parts: ReporterParts) -> std::io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let shared = Arc::clone(&parts.shared);
        let mut reporter = Reporter::new(parts);
        // Before this returns, so that nobody is shown what there is before the
        // first look: a group without a name, and ready.
        reporter.look_again();
        let thread = std::thread::Builder::new()
            .name("keepup-reporter".into())
            .spawn(move || report_or_say_so(reporter, &stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            shared,
        })
    }

    /// Ends the thread: at once, or when the brokers that are being asked have
    /// answered, a second at most.
    pub(crate) fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread keepup-reporter has panicked; please report this");
        }
        self.shared.board.close();
    }
}

impl Drop for ReporterThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reports until it is time to end. A panic, which is a mistake of ours, must not
/// leave behind numbers that stand still and a health that is good for ever.
fn report_or_say_so(reporter: Reporter, stopped: &Receiver<()>) {
    let shared = Arc::clone(&reporter.parts.shared);
    let events = reporter.parts.events.clone();
    let reporting = AssertUnwindSafe(|| report(reporter, stopped));
    let Err(panic) = catch_unwind(reporting) else {
        return;
    };
    let why = format!(
        "the thread keepup-reporter panicked: {}; lag is not known any more and stuck handlers are \
         not found, while records are consumed on; start the process again, and please report this",
        panic_message(panic.as_ref())
    );
    shared.reports_no_more();
    shared.board.distrust(&why);
    events.warn(why);
}

fn report(mut reporter: Reporter, stopped: &Receiver<()>) {
    let clock = reporter.parts.clock.clone();
    let rings = reporter.parts.rings.clone();
    let mut next = clock.now();
    loop {
        let now = clock.now();
        if now >= next {
            reporter.tick();
            // After a gap the ticks that were missed are not made up for.
            next = (next + TICK).max(clock.now());
        } else {
            reporter.look_again();
        }
        if !wait(&clock, next, &rings, stopped) {
            break;
        }
    }
    // The last word: what the run ended with.
    reporter.parts.shared.reports_no_more();
    reporter.look_again();
}

/// Waits for the next tick or for a ring; false where it is time to end.
fn wait(clock: &Clock, until: Instant, rings: &Receiver<()>, stopped: &Receiver<()>) -> bool {
    let left = until.saturating_duration_since(clock.now());
    crossbeam_channel::select! {
        recv(stopped) -> _ => return false,
        recv(rings) -> ring => {
            if ring.is_err() {
                // Nobody rings any more: ticks are all there is.
                return stopped.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
            }
        }
        default(left) => return true,
    }
    // A rebalance comes in several changes.
    let gather = GATHER.min(until.saturating_duration_since(clock.now()));
    stopped.recv_timeout(gather) == Err(RecvTimeoutError::Timeout)
}

#[cfg(test)]
mod tests;
