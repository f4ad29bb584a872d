//! What happens when partitions are assigned, revoked, lost, sought or moved.
//!
//! The group decides which partitions this process has; this decides what
//! becomes of them here, as a function of what happened: it has no thread, no
//! clock and no I/O, and answers with [`Action`]s for the member's loop to
//! carry out. The life of a lane (one assignment of one partition):
//!
//! ```text
//!  assigned ──► Resolving ──► Free ◄──────────┐
//!                   │          │ ▲            │ worker gone, or moved
//!                   ▼          ▼ │            │
//!            AwaitingCommit   With worker ──► Leaving ──► Revoked ──► (stored, answered, gone)
//!            or AwaitingRewind
//! ```
//!
//! *Revoked*: its worker finishes the record in hand; then, or when the revoke
//! deadline passes, the watermark is stored and the group is answered. *Lost*:
//! the group has given it away already; nothing is stored. In both cases a
//! worker that is still inside a handler keeps the *lane* until it returns:
//! the partition may come back meanwhile, and waits for it. That is what
//! [`Assignment::overrunning`] is for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::Workers;
use crate::error::CommandError;
use crate::event::EventKind;
use crate::member::group::Mark;
use crate::member::placement::place;
use crate::member::reset::Stranded;
use crate::record::{AssignmentEpoch, TopicPartition};
use crate::worker::completed::Completed;
use crate::worker::lane::{Failed, LaneStart, ReleaseCause};
use crate::worker::pool::reader::READER;
use crate::worker::tracker::Tracker;

/// How soon it is looked again whether a commit has come down.
const REWIND_AGAIN: Duration = Duration::from_millis(250);

/// How soon a note is committed again whose commit may not have arrived.
const NOTE_AGAIN: Duration = Duration::from_secs(10);

/// What the member's loop has to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Find out where these lanes begin.
    Resolve(Vec<Resolve>),
    /// Commit `offset` though more is committed, and ask what the group has
    /// then: the answer comes by [`Assignment::read_back`].
    Rewind { lane: Resolve, offset: i64 },
    /// Start the thread that reads for all workers.
    StartReader,
    /// Start a worker with that number.
    StartWorker(usize),
    /// Tell that worker to end; it has no lanes any more.
    StopWorker(usize),
    /// Give lanes to a worker.
    Hand {
        worker: usize,
        lanes: Vec<LaneStart>,
        local: bool,
    },
    /// Ask a worker for lanes. Those that its mailbox still held are free at
    /// once: the loop reports them by [`Assignment::freed`].
    Release {
        worker: usize,
        epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
    },
    /// Pause or resume lanes.
    SetPaused {
        worker: usize,
        epochs: Vec<AssignmentEpoch>,
        paused: bool,
    },
    /// The pending revoke is done: store these watermarks, unless the
    /// assignment was lost meanwhile, and answer the group.
    AnswerRevoke {
        partitions: Vec<TopicPartition>,
        watermarks: Vec<Mark>,
        /// Stored already, and committed by being told to: something else is to
        /// be noted, or the group has more than it should.
        at_once: Vec<Mark>,
    },
    /// Tell the observer.
    Tell(EventKind),
}

/// What is to be found out about a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What the group has committed, else where the policy begins.
    Start,
    /// Which offsets the partition has, since its position is not among them.
    Range,
}

/// A lane about which something is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Resolve {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) ask: Ask,
    /// Set when nobody wants the answer any more.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Where a lane begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartAt {
    pub(crate) offset: i64,
    /// What the group had committed; `None` where it had nothing.
    pub(crate) committed: Option<i64>,
    /// First offset that is not wanted any more, if any.
    pub(crate) until: Option<i64>,
    /// Hand nothing over before this position is committed.
    pub(crate) commit_first: bool,
    /// What is completed beyond it already, by what the group's commit says.
    pub(crate) completed: Option<Arc<Completed>>,
}

/// What the group has, as it was read after a commit that should bring it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadBack {
    pub(crate) committed: Option<i64>,
    /// And says something of what is done beyond that.
    pub(crate) has_note: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its start position is being asked for.
    Resolving,
    /// Its start position has to be committed first.
    AwaitingCommit { offset: i64 },
    /// It begins below what the group may have committed, and that has to come
    /// down first: whoever starts from the commit would skip what comes between.
    AwaitingRewind { offset: i64, until: Option<i64> },
    /// It has a position and no worker.
    Free,
    /// A worker has it.
    With { worker: usize },
    /// Its worker was asked to give it back.
    Leaving { worker: usize, then: Then },
    /// Revoked, and without a worker: it goes when the group is answered, which
    /// other lanes of the same revoke may hold up. Nobody may begin with it.
    Revoked,
}

/// What a commit that was confirmed is to its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmed {
    Expected,
    /// The lane waited for it.
    Freed,
    /// The group has more than it should, and that has to come down.
    TooMuch,
}

/// A watermark that is stored, and so committed at each interval until that is
/// confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnderWay {
    offset: i64,
    since: Instant,
    /// It was answered, and by then no other commit of it is on its way.
    until: Option<Instant>,
}

/// When a commit that has to come down is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// What came of the last time is not known yet.
    Asked,
    /// It was too early, in vain, or undone since.
    Soon,
    At(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Move,
    Seek { offset: i64 },
    Reset,
    Revoke,
}

#[derive(Debug)]
struct Lane {
    epoch: AssignmentEpoch,
    tracker: Arc<Tracker>,
    state: State,
    paused: bool,
    until: Option<i64>,
    failed: Option<Failed>,
    cancelled: Arc<AtomicBool>,
    /// The watermark that was stored last.
    stored: Option<i64>,
    /// That, as long as commits of it may be under way.
    under_way: Option<UnderWay>,
    /// The group has, or may have, more than it should.
    rewinding: Option<Again>,
    /// What the group confirmed, or where the lane began.
    confirmed: Option<i64>,
    /// The note that was stored or committed last, and since when it may be
    /// committed again.
    noted: Option<Arc<str>>,
    note_again: Option<Instant>,
    /// What an earlier owner had completed beyond the start.
    completed: Option<Arc<Completed>>,
    /// A worker of before has told that this process has it, and none that it has
    /// not: handing it over again is a local move, and where it goes while no
    /// worker has it, that is left to us to tell.
    is_known: bool,
    /// Its position could not be read, and there is no new one yet.
    stranded: Option<Stranded>,
    /// The highest offset that may be committed, where the lane is a new life
    /// of one that had a position.
    ceiling: Option<i64>,
    /// The topic is not the one that was read: no offset of it is stored.
    is_void: bool,
    /// The position that could not be read, where the run ends over it. What
    /// is below is as it was.
    ends_over: Option<Stranded>,
    /// Records that were completed before it was given up.
    counted: u64,
}

impl Lane {
    fn new(epoch: AssignmentEpoch, owned_since: AssignmentEpoch) -> Self {
        Self {
            epoch,
            tracker: Arc::new(Tracker::new(owned_since)),
            state: State::Resolving,
            paused: false,
            until: None,
            failed: None,
            cancelled: Arc::default(),
            stored: None,
            under_way: None,
            rewinding: None,
            confirmed: None,
            noted: None,
            note_again: None,
            completed: None,
            is_known: false,
            stranded: None,
            ceiling: None,
            is_void: false,
            ends_over: None,
            counted: 0,
        }
    }

    /// Whether its watermark is worth anything to whoever comes next. Not where
    /// the log has lost what was read: it may be above what is left.
    fn counts(&self) -> bool {
        !self.is_void && self.stranded.is_none()
    }

    /// Whether the group may have a note of what is done beyond its commit.
    fn has_notes(&self) -> bool {
        self.noted.is_some() || self.completed.is_some()
    }

    /// The offset that the group may not have more than, where that is known: a
    /// crash would skip what comes between.
    fn most(&self) -> Option<i64> {
        match self.state {
            State::AwaitingRewind { offset, .. } => Some(offset),
            _ => self.tracker.watermark(),
        }
    }

    /// What is to be stored, where it is not yet.
    fn unstored(&self, partition: &TopicPartition, notes: Notes) -> Option<Mark> {
        let watermark = self
            .tracker
            .watermark()
            .filter(|&watermark| self.counts() && self.stored != Some(watermark))?;
        Some(self.mark(partition, watermark, notes))
    }

    fn mark(&self, partition: &TopicPartition, watermark: i64, notes: Notes) -> Mark {
        let completed = self.tracker.completed_beyond();
        let completed = completed.filter(|_| notes == Notes::Taken);
        let written = completed.and_then(|completed| completed.write(watermark));
        let mark = Mark::at(partition.clone(), watermark);
        match written {
            Some(written) => Mark {
                note: Some(written.text.into()),
                is_cut: written.is_cut,
                ..mark
            },
            None => mark,
        }
    }

    /// What is stored already, and that the group does not have so: its note is
    /// another, or it may have more.
    fn last_word(&self, partition: &TopicPartition, notes: Notes) -> Option<Mark> {
        let watermark = self.stored.filter(|_| self.counts())?;
        let mark = self.mark(partition, watermark, notes);
        (mark.note != self.noted || self.rewinding.is_some()).then_some(mark)
    }

    /// What is committed already, and says something else or has to be said
    /// again. Whether such a commit arrives is not told, so it is repeated.
    fn unnoted(&mut self, partition: &TopicPartition, now: Instant, notes: Notes) -> Option<Mark> {
        let watermark = self
            .tracker
            .watermark()
            .filter(|_| self.counts() && self.tracker.completed_beyond().is_some())
            .filter(|&watermark| {
                (self.stored, self.confirmed) == (Some(watermark), Some(watermark))
            })?;
        let mark = self.mark(partition, watermark, notes);
        let is_news = mark.note != self.noted;
        if mark.note.is_none() || !(is_news || self.note_again.is_none_or(|again| now >= again)) {
            return None;
        }
        self.noted.clone_from(&mark.note);
        self.note_again = Some(now + NOTE_AGAIN);
        Some(mark)
    }

    /// Its start is known.
    fn begin(&mut self, start: StartAt) {
        self.ceiling = None;
        self.stranded = None;
        self.tracker.begin(start.offset);
        if start.committed.is_some() {
            // After a reset the group has a commit that nobody asked for again.
            self.tracker.set_committed(start.committed);
        }
        self.until = start.until;
        if let Some(completed) = &start.completed {
            // The next commit says so too, before any of it is read again.
            self.tracker.set_completed_beyond(Arc::clone(completed));
        }
        self.completed = start.completed;
        self.confirmed = Some(start.committed.unwrap_or(start.offset));
        // A position that came from the policy is stored like any other, so
        // that the group's first commit does not wait for the first record.
        self.stored = start
            .committed
            .filter(|committed| *committed == start.offset);
        self.state = if start.commit_first {
            State::AwaitingCommit {
                offset: start.offset,
            }
        } else {
            State::Free
        };
    }

    /// A commit that brings down what the group has, and the question whether it
    /// has.
    fn rewind(&mut self, partition: &TopicPartition) -> Option<Action> {
        let offset = self.most()?;
        self.rewinding = Some(Again::Asked);
        if self.tracker.watermark().is_some() {
            self.stored = Some(offset);
            self.noted = None;
            self.under_way = None;
        }
        Some(Action::Rewind {
            lane: Resolve {
                partition: partition.clone(),
                epoch: self.epoch,
                ask: Ask::Start,
                cancelled: Arc::clone(&self.cancelled),
            },
            offset,
        })
    }

    /// What the group has, after a commit that should bring that down.
    fn read_back(&mut self, found: ReadBack) {
        let committed = found.committed;
        let again = self.rewinding;
        if let State::AwaitingRewind { offset, until } = self.state {
            // Less is too early as well: a commit of before may still be on its
            // way, and it is not known what comes of ours.
            if committed != Some(offset) || found.has_note {
                self.rewinding = Some(Again::Soon);
                return;
            }
            self.begin(StartAt {
                offset,
                committed,
                until,
                commit_first: false,
                // What a commit says that has come down, or has not yet, is of
                // the life before.
                completed: None,
            });
        } else if committed > self.tracker.watermark() {
            self.rewinding = Some(Again::Soon);
            return;
        } else {
            self.confirmed = self.confirmed.max(committed);
            self.tracker.set_committed(self.confirmed);
        }
        // Where more was confirmed meanwhile, that may have come after ours.
        self.rewinding = again.filter(|again| *again != Again::Asked);
    }

    /// An earlier commit's answer says nothing of the one that is under way. Where
    /// the answer took longer than an interval, the same was sent once more, and
    /// that may be held up (a coordinator that moves, a member's epoch that is not
    /// the group's any more) and arrive late:
    ///
    /// ```text
    /// commits 286 ─► STALE_MEMBER_EPOCH ─ ─ ─ ─ ─ ─ ─ ─► sent again ─► 286 holds
    /// commits 286 ─► confirmed; commits 290 ─► 290 holds
    /// ```
    fn was_answered(&mut self, offset: i64, now: Instant, interval: Duration) {
        let Some(under_way) = &mut self.under_way else {
            return;
        };
        if under_way.offset != offset || under_way.until.is_some() {
            return;
        }
        if now.saturating_duration_since(under_way.since) < interval {
            self.under_way = None;
        } else {
            under_way.until = Some(now + 2 * interval);
        }
    }

    /// Whether commits of it may still be on their way.
    fn is_under_way(&self, now: Instant) -> bool {
        self.under_way
            .is_some_and(|under_way| under_way.until.is_none_or(|until| now < until))
    }

    /// The group confirmed a commit. Where it is one of the life before, which an
    /// outage held up, it may have arrived after the one that brought the commit
    /// down:
    ///
    /// ```text
    /// commits 100 ─► no coordinator ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─► sent again, 100 holds
    /// seek to 50, commits 50 ─► the new coordinator has 50 ─► read back, begins at 50
    /// ```
    ///
    /// Whoever begins at 100 after a crash skips what comes between, and librdkafka
    /// commits nothing below it by itself.
    fn confirm(&mut self, offset: i64) -> Confirmed {
        if self.most().is_some_and(|most| offset > most) {
            if self.rewinding.is_some() {
                self.rewinding = Some(Again::Soon);
                return Confirmed::Expected;
            }
            return Confirmed::TooMuch;
        }
        self.confirmed = Some(offset);
        self.tracker.set_committed(self.confirmed);
        if matches!(self.state, State::AwaitingCommit { offset: awaited } if offset >= awaited) {
            self.state = State::Free;
            return Confirmed::Freed;
        }
        Confirmed::Expected
    }

    fn worker(&self) -> Option<usize> {
        match self.state {
            State::With { worker } | State::Leaving { worker, .. } => Some(worker),
            _ => None,
        }
    }

    fn is_revoking(&self) -> bool {
        matches!(
            self.state,
            State::Revoked
                | State::Leaving {
                    then: Then::Revoke,
                    ..
                }
        )
    }
}

/// Whether the group takes what is completed beyond commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notes {
    Taken,
    /// Its broker allows less metadata than ours has.
    Refused,
}

/// A lane that was given up while its worker was inside a handler.
#[derive(Debug)]
struct Overrunning {
    partition: TopicPartition,
    worker: usize,
    tracker: Arc<Tracker>,
    /// Records of it that were completed before.
    counted: u64,
    cause: ReleaseCause,
    /// As in a lane.
    is_known: bool,
}

impl Overrunning {
    fn new(partition: &TopicPartition, worker: usize, lane: &Lane, cause: ReleaseCause) -> Self {
        Self {
            partition: partition.clone(),
            worker,
            tracker: Arc::clone(&lane.tracker),
            counted: lane.counted,
            cause,
            is_known: lane.is_known,
        }
    }

    /// Records that were completed since it was given up.
    fn completed(&self) -> u64 {
        self.tracker.completed_records() - self.counted
    }
}

/// Partitions that are the group's again, and whose workers have not told: they
/// died, or had not come to them yet.
#[derive(Debug, Default)]
struct Gone {
    by_cause: BTreeMap<ReleaseCause, Vec<TopicPartition>>,
}

impl Gone {
    fn note(&mut self, partition: &TopicPartition, is_known: bool, cause: ReleaseCause) {
        if is_known {
            self.by_cause
                .entry(cause)
                .or_default()
                .push(partition.clone());
        }
    }

    fn note_overrun(&mut self, overrun: &Overrunning) {
        self.note(&overrun.partition, overrun.is_known, overrun.cause);
    }

    fn tell(self, actions: &mut Vec<Action>) {
        let by_cause = self.by_cause.into_iter();
        let kinds = by_cause.filter_map(|(cause, partitions)| cause.event(partitions));
        actions.extend(kinds.map(Action::Tell));
    }
}

/// A revoke that the group waits for.
#[derive(Debug)]
struct PendingRevoke {
    partitions: Vec<TopicPartition>,
    waiting: BTreeSet<AssignmentEpoch>,
    deadline: Instant,
}

/// What a lane left behind when the run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LastWord {
    partition: TopicPartition,
    watermark: i64,
    confirmed: i64,
    in_flight: u64,
}

/// The partitions of this process, the workers, and who has what.
#[derive(Debug)]
pub(crate) struct Assignment {
    lanes: BTreeMap<TopicPartition, Lane>,
    by_epoch: HashMap<AssignmentEpoch, TopicPartition>,
    /// Lanes that were given up while their worker was inside a handler.
    overrunning: HashMap<AssignmentEpoch, Overrunning>,
    next_epoch: u64,
    workers: BTreeSet<usize>,
    leaving_workers: BTreeSet<usize>,
    /// Workers that failed and are started again later.
    resting: BTreeSet<usize>,
    wanted: Workers,
    /// The workers share all partitions, which a reader has.
    is_shared: bool,
    revoke_deadline: Duration,
    commit_interval: Duration,
    pending: Option<PendingRevoke>,
    /// The number of workers has to be looked at again.
    rescale: bool,
    stopping: bool,
    last_words: Vec<LastWord>,
    notes: Notes,
    /// What the group had committed of the partitions that were lost and are not
    /// back.
    lost_commits: BTreeMap<TopicPartition, i64>,
    completed_by_gone: u64,
}

impl Assignment {
    pub(crate) fn new(
        wanted: Workers,
        is_shared: bool,
        revoke_deadline: Duration,
        commit_interval: Duration,
    ) -> Self {
        Self {
            commit_interval,
            is_shared,
            lanes: BTreeMap::new(),
            by_epoch: HashMap::new(),
            overrunning: HashMap::new(),
            next_epoch: 1,
            workers: BTreeSet::new(),
            leaving_workers: BTreeSet::new(),
            resting: BTreeSet::new(),
            wanted,
            revoke_deadline,
            pending: None,
            // Fixed workers start before the first assignment.
            rescale: matches!(wanted, Workers::Fixed(_)),
            stopping: false,
            last_words: Vec::new(),
            notes: Notes::Taken,
            lost_commits: BTreeMap::new(),
            completed_by_gone: 0,
        }
    }

    fn new_epoch(&mut self) -> AssignmentEpoch {
        let epoch = AssignmentEpoch(self.next_epoch);
        self.next_epoch += 1;
        epoch
    }

    /// The group gave us these partitions; it was answered already.
    pub(crate) fn assigned(&mut self, partitions: Vec<TopicPartition>, actions: &mut Vec<Action>) {
        let (mut resolve, mut gone) = (Vec::new(), Gone::default());
        for partition in partitions {
            if self.lanes.contains_key(&partition) {
                // Assigned again without a revoke in between: a new incarnation
                // all the same, since it may have been elsewhere meanwhile.
                self.lose(&partition, &mut gone, actions);
            }
            let epoch = self.new_epoch();
            let lane = Lane::new(epoch, epoch);
            resolve.push(Resolve {
                partition: partition.clone(),
                epoch,
                ask: Ask::Start,
                cancelled: Arc::clone(&lane.cancelled),
            });
            self.by_epoch.insert(epoch, partition.clone());
            self.lanes.insert(partition, lane);
        }
        gone.tell(actions);
        if !resolve.is_empty() {
            actions.push(Action::Resolve(resolve));
        }
        self.rescale = true;
        self.place(actions);
    }

    /// The group takes these partitions away and waits for an answer.
    pub(crate) fn revoked(
        &mut self,
        partitions: Vec<TopicPartition>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        // librdkafka says nothing more before a revoke is answered. Should
        // another group do so, it does not wait for the earlier any longer.
        self.give_up_waiting(actions);
        let mut waiting = BTreeSet::new();
        let mut release: BTreeMap<usize, Vec<AssignmentEpoch>> = BTreeMap::new();
        let mut gone = Gone::default();
        for partition in &partitions {
            let Some(lane) = self.lanes.get_mut(partition) else {
                continue;
            };
            lane.cancelled.store(true, Ordering::Relaxed);
            let Some(worker) = lane.worker() else {
                lane.state = State::Revoked;
                let is_known = std::mem::take(&mut lane.is_known);
                gone.note(partition, is_known, ReleaseCause::Revoked);
                continue;
            };
            lane.state = State::Leaving {
                worker,
                then: Then::Revoke,
            };
            waiting.insert(lane.epoch);
            release.entry(worker).or_default().push(lane.epoch);
        }
        self.pending = Some(PendingRevoke {
            partitions,
            waiting,
            deadline: now + self.revoke_deadline,
        });
        for (worker, epochs) in release {
            actions.push(Action::Release {
                worker,
                epochs,
                cause: ReleaseCause::Revoked,
            });
        }
        gone.tell(actions);
        self.finish_revoke(now, actions);
    }

    /// The group has given these partitions to somebody else already.
    pub(crate) fn lost(&mut self, partitions: &[TopicPartition], actions: &mut Vec<Action>) {
        let commits: BTreeMap<_, _> = partitions
            .iter()
            .filter_map(|partition| {
                let lane = self.lanes.get(partition)?;
                Some((partition.clone(), lane.tracker.committed()?))
            })
            .collect();
        // With those that were lost before and are not back: there are no more
        // than partitions.
        self.lost_commits.extend(commits);
        let mut gone = Gone::default();
        for partition in partitions {
            self.lose(partition, &mut gone, actions);
        }
        gone.tell(actions);
        // Nothing of them is stored by a revoke that was under way.
        self.give_up_waiting(actions);
        actions.push(Action::AnswerRevoke {
            partitions: partitions.to_vec(),
            watermarks: Vec::new(),
            at_once: Vec::new(),
        });
        self.place(actions);
    }

    /// Removes a lane at once, whatever its worker does.
    fn lose(&mut self, partition: &TopicPartition, gone: &mut Gone, actions: &mut Vec<Action>) {
        const CAUSE: ReleaseCause = ReleaseCause::Lost;
        let Some(lane) = self.remove(partition) else {
            return;
        };
        if let Some(worker) = lane.worker() {
            let overrun = Overrunning::new(partition, worker, &lane, CAUSE);
            self.overrunning.insert(lane.epoch, overrun);
            actions.push(Action::Release {
                worker,
                epochs: vec![lane.epoch],
                cause: CAUSE,
            });
        } else {
            gone.note(partition, lane.is_known, CAUSE);
        }
    }

    fn remove(&mut self, partition: &TopicPartition) -> Option<Lane> {
        let mut lane = self.lanes.remove(partition)?;
        lane.cancelled.store(true, Ordering::Relaxed);
        lane.tracker.give_up();
        self.by_epoch.remove(&lane.epoch);
        lane.counted = lane.tracker.completed_records();
        self.completed_by_gone += lane.counted;
        if self.stopping
            && let Some(watermark) = lane.tracker.watermark()
        {
            self.last_words.push(LastWord {
                partition: partition.clone(),
                watermark,
                confirmed: lane.confirmed.unwrap_or(watermark),
                in_flight: lane.tracker.in_flight(),
            });
        }
        Some(lane)
    }

    /// The start positions of lanes are known.
    pub(crate) fn resolved(
        &mut self,
        starts: Vec<(AssignmentEpoch, StartAt)>,
        actions: &mut Vec<Action>,
    ) {
        for (epoch, start) in starts {
            self.begin_lane(epoch, start, actions);
        }
        self.place(actions);
    }

    fn begin_lane(&mut self, epoch: AssignmentEpoch, start: StartAt, actions: &mut Vec<Action>) {
        let Some(partition) = self.by_epoch.get(&epoch) else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(partition) else {
            return;
        };
        if lane.state != State::Resolving {
            return;
        }
        if lane.ceiling.is_some_and(|ceiling| ceiling > start.offset) {
            lane.state = State::AwaitingRewind {
                offset: start.offset,
                until: start.until,
            };
            actions.extend(lane.rewind(partition));
            return;
        }
        lane.begin(start);
    }

    /// What the group has of lanes of which it had more than it should.
    pub(crate) fn read_back(
        &mut self,
        answers: Vec<(AssignmentEpoch, ReadBack)>,
        actions: &mut Vec<Action>,
    ) {
        for (epoch, found) in answers {
            if let Some(lane) = self.lane_mut(epoch) {
                lane.read_back(found);
            }
        }
        self.place(actions);
    }

    /// The group confirmed a commit.
    pub(crate) fn committed(
        &mut self,
        offsets: &[(TopicPartition, i64)],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let mut freed = false;
        for (partition, offset) in offsets {
            if let Some(lane) = self.lanes.get_mut(partition) {
                lane.was_answered(*offset, now, self.commit_interval);
                match lane.confirm(*offset) {
                    Confirmed::Expected => {}
                    Confirmed::Freed => freed = true,
                    Confirmed::TooMuch => actions.extend(lane.rewind(partition)),
                }
            }
            for word in self
                .last_words
                .iter_mut()
                .filter(|word| word.partition == *partition)
            {
                word.confirmed = *offset;
            }
        }
        if freed {
            self.place(actions);
        }
    }

    /// A worker gave lanes back, and told why.
    pub(crate) fn released(
        &mut self,
        lanes: Vec<(AssignmentEpoch, Option<Failed>)>,
        cause: ReleaseCause,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_known = matches!(cause, ReleaseCause::Moved | ReleaseCause::Repositioned);
        self.were_with_a_worker(&lanes, is_known);
        self.freed(lanes, now, actions);
    }

    /// A worker has told of them, and whether the observer believes now that they
    /// are with this process.
    fn were_with_a_worker(&mut self, lanes: &[(AssignmentEpoch, Option<Failed>)], is_known: bool) {
        for (epoch, _) in lanes {
            if let Some(overrun) = self.overrunning.get_mut(epoch) {
                overrun.is_known = is_known;
            }
            if let Some(lane) = self.lane_mut(*epoch) {
                lane.is_known = is_known;
            }
        }
    }

    /// Lanes are with no worker any more: taken back before theirs picked them up,
    /// or given back.
    pub(crate) fn freed(
        &mut self,
        lanes: Vec<(AssignmentEpoch, Option<Failed>)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let mut gone = Gone::default();
        for (epoch, failed) in lanes {
            if let Some(overrun) = self.overrunning.remove(&epoch) {
                self.completed_by_gone += overrun.completed();
                gone.note_overrun(&overrun);
            }
            if let Some(pending) = &mut self.pending {
                pending.waiting.remove(&epoch);
            }
            let Some(partition) = self.by_epoch.get(&epoch).cloned() else {
                continue;
            };
            let Some(lane) = self.lanes.get_mut(&partition) else {
                continue;
            };
            let then = match lane.state {
                State::Leaving { then, .. } => then,
                // Its worker ends: it goes on in another.
                State::With { .. } => Then::Move,
                // Nobody waited for it any more.
                _ => continue,
            };
            match then {
                Then::Move => {
                    lane.failed = failed;
                    lane.state = State::Free;
                }
                Then::Revoke => {
                    lane.state = State::Revoked;
                    let is_known = std::mem::take(&mut lane.is_known);
                    gone.note(&partition, is_known, ReleaseCause::Revoked);
                }
                Then::Seek { offset } => self.reposition(&partition, Some(offset), actions),
                Then::Reset => self.reposition(&partition, None, actions),
            }
        }
        gone.tell(actions);
        self.stop_idle_workers(actions);
        self.finish_revoke(now, actions);
        self.place(actions);
    }

    /// Begins a new incarnation of a lane at `offset`, or where it will be
    /// decided.
    fn reposition(
        &mut self,
        partition: &TopicPartition,
        offset: Option<i64>,
        actions: &mut Vec<Action>,
    ) {
        let epoch = self.new_epoch();
        let Some(lane) = self.lanes.get_mut(partition) else {
            return;
        };
        self.by_epoch.remove(&lane.epoch);
        self.by_epoch.insert(epoch, partition.clone());
        lane.cancelled.store(true, Ordering::Relaxed);
        self.completed_by_gone += lane.tracker.completed_records();
        lane.tracker.give_up();
        let mut fresh = Lane::new(epoch, lane.tracker.owned_since());
        fresh.tracker.set_committed(lane.tracker.committed());
        fresh.tracker.set_paused(lane.paused);
        fresh.paused = lane.paused;
        fresh.until = lane.until;
        fresh.confirmed = lane.confirmed;
        // Not where no worker has had it yet: then it is new to this process.
        fresh.is_known = lane.is_known;
        fresh.is_void = lane.is_void;
        // What the group has, or is about to have; of which nothing is known while
        // it has too much. Where it also has what is done beyond that, it has too
        // much wherever the lane goes on.
        let ceiling = if lane.rewinding.is_some() || lane.has_notes() {
            Some(i64::MAX)
        } else {
            lane.ceiling.max(lane.stored).max(lane.confirmed)
        };
        if let Some(offset) = offset {
            // A crash before that is passed again must not go on from there; nor
            // from what the group has where that is not known yet.
            if ceiling.is_none_or(|ceiling| ceiling > offset) {
                fresh.ceiling = ceiling;
                fresh.state = State::AwaitingRewind {
                    offset,
                    until: fresh.until,
                };
                actions.extend(fresh.rewind(partition));
            } else {
                fresh.tracker.begin(offset);
                fresh.state = State::Free;
            }
        } else {
            fresh.stranded = lane.stranded;
            fresh.ceiling = ceiling;
            actions.push(Action::Resolve(vec![Resolve {
                partition: partition.clone(),
                epoch,
                ask: Ask::Range,
                cancelled: Arc::clone(&fresh.cancelled),
            }]));
        }
        *lane = fresh;
    }

    /// A worker has ended, and all of its lanes are free. Where it is replaced
    /// at once, its successor gets them back; otherwise the others take them.
    pub(crate) fn worker_exited(
        &mut self,
        worker: usize,
        lanes: Vec<(AssignmentEpoch, Option<Failed>)>,
        replace: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if worker == READER && self.stopping {
            self.stop_workers(actions);
        }
        let is_leaving = self.leaving_workers.remove(&worker);
        if replace && !is_leaving && !self.stopping {
            actions.push(Action::StartWorker(worker));
        } else {
            self.workers.remove(&worker);
        }
        // It reports what it had, of which it told nothing more; what it never picked
        // up is free as well.
        self.were_with_a_worker(&lanes, true);
        let mut gone = Gone::default();
        for (_, overrun) in self.overrunning.extract_if(|_, lane| lane.worker == worker) {
            self.completed_by_gone += overrun.completed();
            gone.note_overrun(&overrun);
        }
        gone.tell(actions);
        let mut freed: HashMap<AssignmentEpoch, Option<Failed>> = lanes.into_iter().collect();
        for lane in self.lanes.values() {
            if lane.worker() == Some(worker) {
                freed
                    .entry(lane.epoch)
                    .or_insert_with(|| lane.failed.clone());
            }
        }
        self.freed(freed.into_iter().collect(), now, actions);
    }

    /// A worker that failed is not started again before it may be.
    pub(crate) fn worker_rests(&mut self, worker: usize) {
        self.resting.insert(worker);
    }

    /// That worker may run again.
    pub(crate) fn worker_may_start(&mut self, worker: usize, actions: &mut Vec<Action>) {
        self.resting.remove(&worker);
        self.rescale = true;
        self.place(actions);
    }

    /// The run begins: workers that do not depend on partitions start.
    pub(crate) fn begin(&mut self, actions: &mut Vec<Action>) {
        if self.is_shared {
            actions.push(Action::StartReader);
        }
        self.place(actions);
    }

    /// Time passed: a revoke may be over.
    pub(crate) fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.finish_revoke(now, actions);
        for (partition, lane) in &mut self.lanes {
            match lane.rewinding {
                Some(Again::Soon) => lane.rewinding = Some(Again::At(now + REWIND_AGAIN)),
                Some(Again::At(moment)) if moment <= now => actions.extend(lane.rewind(partition)),
                Some(Again::At(_) | Again::Asked) | None => {}
            }
        }
    }

    fn finish_revoke(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self
            .pending
            .as_ref()
            .is_some_and(|p| p.waiting.is_empty() || now >= p.deadline)
        {
            return;
        }
        self.give_up_waiting(actions);
    }

    /// Answers the pending revoke, whoever is not ready.
    fn give_up_waiting(&mut self, actions: &mut Vec<Action>) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        let (mut watermarks, mut at_once) = (Vec::new(), Vec::new());
        for partition in &pending.partitions {
            let Some(lane) = self.remove(partition) else {
                continue;
            };
            match lane.unstored(partition, self.notes) {
                Some(mark) if lane.rewinding.is_some() => at_once.push(mark),
                Some(mark) => watermarks.push(mark),
                None => at_once.extend(lane.last_word(partition, self.notes)),
            }
            if let (true, Some(worker)) = (pending.waiting.contains(&lane.epoch), lane.worker()) {
                // Its handler overran the deadline: it keeps the lane until it
                // returns, and what it returns is not committed.
                let cause = ReleaseCause::Revoked;
                let overrun = Overrunning::new(partition, worker, &lane, cause);
                self.overrunning.insert(lane.epoch, overrun);
                actions.push(Action::Tell(EventKind::Warning {
                    message: format!(
                        "{} did not finish its record of {partition} within the revoke deadline \
                         of {:?}: the record is delivered again elsewhere; raise the deadline or \
                         make the handler faster",
                        named(worker),
                        self.revoke_deadline
                    ),
                }));
            }
        }
        actions.push(Action::AnswerRevoke {
            partitions: pending.partitions,
            watermarks,
            at_once,
        });
    }

    /// Gives every lane that has no worker to one, and moves lanes where that
    /// makes the workers even.
    fn place(&mut self, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        self.scale_workers(actions);
        let workers: Vec<usize> = if self.is_shared {
            vec![READER]
        } else {
            self.workers
                .difference(&self.leaving_workers)
                .copied()
                .collect()
        };
        let busy: BTreeSet<TopicPartition> = self
            .overrunning
            .values()
            .map(|lane| lane.partition.clone())
            .collect();
        let candidates: Vec<(TopicPartition, Option<usize>)> = self
            .lanes
            .iter()
            .filter_map(|(partition, lane)| match lane.state {
                State::Free if !busy.contains(partition) => Some((partition.clone(), None)),
                State::With { worker } => Some((partition.clone(), Some(worker))),
                // Counts for the balance; it is placed when it is free.
                State::Leaving {
                    then: Then::Move, ..
                } => Some((partition.clone(), None)),
                _ => None,
            })
            .collect();
        let now: Vec<Option<usize>> = candidates.iter().map(|(_, worker)| *worker).collect();
        let mut hand: BTreeMap<(usize, bool), Vec<LaneStart>> = BTreeMap::new();
        let mut release: BTreeMap<usize, Vec<AssignmentEpoch>> = BTreeMap::new();
        for ((partition, _), target) in candidates.into_iter().zip(place(&now, &workers)) {
            let (Some(target), Some(lane)) = (target, self.lanes.get_mut(&partition)) else {
                continue;
            };
            match lane.state {
                State::Free => {
                    lane.state = State::With { worker: target };
                    let start = LaneStart {
                        partition,
                        epoch: lane.epoch,
                        tracker: Arc::clone(&lane.tracker),
                        offset: lane.tracker.watermark().unwrap_or(0),
                        until: lane.until,
                        paused: lane.paused,
                        // Kept: a worker that ends before it picks the lane up
                        // gives back nothing.
                        failed: lane.failed.clone(),
                        completed: lane.completed.clone(),
                    };
                    hand.entry((target, lane.is_known)).or_default().push(start);
                }
                State::With { worker } if worker != target => {
                    lane.state = State::Leaving {
                        worker,
                        then: Then::Move,
                    };
                    release.entry(worker).or_default().push(lane.epoch);
                }
                _ => {}
            }
        }
        for (worker, epochs) in release {
            actions.push(Action::Release {
                worker,
                epochs,
                cause: ReleaseCause::Moved,
            });
        }
        for ((worker, local), lanes) in hand {
            actions.push(Action::Hand {
                worker,
                lanes,
                local,
            });
        }
    }

    /// Starts workers that are missing and sends away those that are too many.
    ///
    /// Looked at when something was assigned or asked for, and not at a revoke:
    /// an eager rebalance takes everything away and gives most of it back, and
    /// must not end every worker in between.
    fn scale_workers(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::take(&mut self.rescale) {
            return;
        }
        let partitions = self
            .lanes
            .values()
            .filter(|lane| !lane.is_revoking())
            .count();
        let target = self.wanted.wanted(partitions);
        let mut staying: Vec<usize> = self
            .workers
            .difference(&self.leaving_workers)
            .copied()
            .collect();
        while staying.len() > target {
            // The highest numbers go.
            if let Some(worker) = staying.pop() {
                self.leaving_workers.insert(worker);
            }
        }
        let mut number = 0;
        while staying.len() + self.resting.len() < target {
            if !self.workers.contains(&number) && !self.resting.contains(&number) {
                self.workers.insert(number);
                staying.push(number);
                actions.push(Action::StartWorker(number));
            }
            number += 1;
        }
        self.move_off_leaving_workers(actions);
        self.stop_idle_workers(actions);
    }

    fn move_off_leaving_workers(&mut self, actions: &mut Vec<Action>) {
        for &worker in &self.leaving_workers {
            let mut epochs = Vec::new();
            for lane in self.lanes.values_mut() {
                if lane.state == (State::With { worker }) {
                    lane.state = State::Leaving {
                        worker,
                        then: Then::Move,
                    };
                    epochs.push(lane.epoch);
                }
            }
            if !epochs.is_empty() {
                actions.push(Action::Release {
                    worker,
                    epochs,
                    cause: ReleaseCause::Moved,
                });
            }
        }
    }

    fn stop_idle_workers(&mut self, actions: &mut Vec<Action>) {
        for &worker in &self.leaving_workers {
            let has_lanes = self
                .lanes
                .values()
                .any(|lane| lane.worker() == Some(worker))
                || self.overrunning.values().any(|lane| lane.worker == worker);
            if !has_lanes {
                actions.push(Action::StopWorker(worker));
            }
        }
    }

    /// Changes how many workers there should be.
    pub(crate) fn scale(&mut self, wanted: Workers, actions: &mut Vec<Action>) {
        self.wanted = wanted;
        self.rescale = true;
        self.place(actions);
    }

    /// Pauses or resumes lanes; all of them or, where one is not ours, none.
    pub(crate) fn set_paused(
        &mut self,
        partitions: &[TopicPartition],
        paused: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), CommandError> {
        if let Some(other) = partitions.iter().find(|partition| !self.owns(partition)) {
            return Err(CommandError::NotAssigned(other.clone()));
        }
        let mut by_worker: BTreeMap<usize, Vec<AssignmentEpoch>> = BTreeMap::new();
        for partition in partitions {
            let Some(lane) = self.lanes.get_mut(partition) else {
                continue;
            };
            lane.paused = paused;
            lane.tracker.set_paused(paused);
            if let Some(worker) = lane.worker() {
                by_worker.entry(worker).or_default().push(lane.epoch);
            }
        }
        for (worker, epochs) in by_worker {
            actions.push(Action::SetPaused {
                worker,
                epochs,
                paused,
            });
        }
        Ok(())
    }

    /// Goes on reading a partition elsewhere.
    pub(crate) fn seek(
        &mut self,
        partition: &TopicPartition,
        offset: i64,
        actions: &mut Vec<Action>,
    ) -> Result<(), CommandError> {
        if !self.owns(partition) {
            return Err(CommandError::NotAssigned(partition.clone()));
        }
        self.leave_for(partition, Then::Seek { offset }, actions);
        Ok(())
    }

    /// The position of a lane cannot be read: it goes on elsewhere, once it is
    /// known what the partition has.
    pub(crate) fn reset(
        &mut self,
        epoch: AssignmentEpoch,
        stranded: Stranded,
        actions: &mut Vec<Action>,
    ) {
        if let Some(partition) = self.by_epoch.get(&epoch).cloned() {
            if let Some(lane) = self.lanes.get_mut(&partition) {
                lane.stranded = Some(stranded);
            }
            self.leave_for(&partition, Then::Reset, actions);
        }
    }

    /// The position of a lane cannot be read, and the run ends over it once it
    /// is known what the partition has. The lane stays as it is, so that what
    /// was completed of it is committed.
    pub(crate) fn ends_over(
        &mut self,
        epoch: AssignmentEpoch,
        stranded: Stranded,
        actions: &mut Vec<Action>,
    ) {
        let Some(partition) = self.by_epoch.get(&epoch) else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(partition) else {
            return;
        };
        if stranded.truncated_at.is_none() {
            lane.ends_over = Some(stranded);
        } else {
            lane.stranded = Some(stranded);
        }
        actions.push(Action::Resolve(vec![Resolve {
            partition: partition.clone(),
            epoch,
            ask: Ask::Range,
            cancelled: Arc::clone(&lane.cancelled),
        }]));
    }

    /// What the group has committed of a lane that waits to begin was read from
    /// a log that was cut off since: it begins elsewhere, once it is known what
    /// the partition has, and the commit comes down first. Returns false where
    /// that is known already, or the lane does not wait to begin.
    pub(crate) fn cannot_begin(
        &mut self,
        epoch: AssignmentEpoch,
        stranded: Stranded,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(partition) = self.by_epoch.get(&epoch) else {
            return false;
        };
        let Some(lane) = self.lanes.get_mut(partition) else {
            return false;
        };
        if lane.state != State::Resolving || lane.stranded.is_some() {
            return false;
        }
        lane.stranded = Some(stranded);
        lane.ceiling = Some(stranded.offset);
        actions.push(Action::Resolve(vec![Resolve {
            partition: partition.clone(),
            epoch,
            ask: Ask::Range,
            cancelled: Arc::clone(&lane.cancelled),
        }]));
        true
    }

    /// What the group had committed of a partition that was lost and is back.
    /// As long as this process was a member nobody could take that away. Gives
    /// it once.
    pub(crate) fn take_lost_commit(&mut self, epoch: AssignmentEpoch) -> Option<i64> {
        let partition = self.by_epoch.get(&epoch)?;
        self.lost_commits.remove(partition)
    }

    /// The position that could not be read, where what the partition has was
    /// asked for because of it. Gives it once.
    pub(crate) fn take_stranded(&mut self, epoch: AssignmentEpoch) -> Option<Stranded> {
        let lane = self.lane_mut(epoch)?;
        lane.stranded.take().or_else(|| lane.ends_over.take())
    }

    /// The topic was deleted and created again: from now on nothing of it is
    /// stored. Gives its partitions.
    pub(crate) fn void(&mut self, topic: &str) -> Vec<TopicPartition> {
        self.lanes
            .iter_mut()
            .filter(|(partition, _)| partition.topic() == topic)
            .map(|(partition, lane)| {
                lane.is_void = true;
                partition.clone()
            })
            .collect()
    }

    fn leave_for(&mut self, partition: &TopicPartition, then: Then, actions: &mut Vec<Action>) {
        let Some(lane) = self.lanes.get_mut(partition) else {
            return;
        };
        match lane.state {
            State::With { worker } => {
                lane.state = State::Leaving { worker, then };
                let epochs = vec![lane.epoch];
                actions.push(Action::Release {
                    worker,
                    epochs,
                    cause: ReleaseCause::Repositioned,
                });
            }
            State::Revoked
            | State::Leaving {
                then: Then::Revoke, ..
            } => {}
            // What somebody asked for is not undone by what became of the old
            // position.
            State::Leaving {
                then: Then::Seek { .. },
                ..
            } if then == Then::Reset => {}
            State::Leaving { worker, .. } => lane.state = State::Leaving { worker, then },
            State::Resolving
            | State::AwaitingCommit { .. }
            | State::AwaitingRewind { .. }
            | State::Free => {
                let offset = match then {
                    Then::Seek { offset } => Some(offset),
                    _ => None,
                };
                self.reposition(partition, offset, actions);
                self.place(actions);
            }
        }
    }

    fn owns(&self, partition: &TopicPartition) -> bool {
        self.lanes
            .get(partition)
            .is_some_and(|lane| !lane.is_revoking())
    }

    fn lane_mut(&mut self, epoch: AssignmentEpoch) -> Option<&mut Lane> {
        self.lanes.get_mut(self.by_epoch.get(&epoch)?)
    }

    /// The partition that an epoch belongs to, if it is still ours.
    pub(crate) fn partition_of(&self, epoch: AssignmentEpoch) -> Option<&TopicPartition> {
        self.by_epoch.get(&epoch)
    }

    /// Watermarks that have not been stored yet.
    pub(crate) fn unstored(&self) -> Vec<Mark> {
        self.lanes
            .iter()
            .filter_map(|(partition, lane)| lane.unstored(partition, self.notes))
            .collect()
    }

    /// Those of them that may be stored while the run goes on: not while a commit
    /// of an earlier one of the same partition is under way.
    ///
    /// librdkafka sends what is stored at each interval, though the commit before
    /// is not answered. When a coordinator dies with several of them, each is sent
    /// again after a wait of its own, by chance, so that an older one may arrive
    /// after a newer one, and what is committed goes back. With one watermark at a
    /// time they all say the same. A commit that was refused is not under way any
    /// more: to wait until it succeeds would stop all partitions of the process
    /// where one is refused for good, since librdkafka reports a request as failed
    /// in which one partition is, though the others are committed.
    pub(crate) fn storable(&self, now: Instant) -> Vec<Mark> {
        self.lanes
            .iter()
            .filter(|(_, lane)| !lane.is_under_way(now) && lane.rewinding.is_none())
            .filter_map(|(partition, lane)| lane.unstored(partition, self.notes))
            .collect()
    }

    /// That mark is stored now.
    pub(crate) fn mark_stored(&mut self, mark: &Mark, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(&mark.partition) {
            lane.stored = Some(mark.watermark);
            lane.under_way = Some(UnderWay {
                offset: mark.watermark,
                since: now,
                until: None,
            });
            lane.noted.clone_from(&mark.note);
            lane.note_again = None;
        }
    }

    /// The coordinator answered commits of these offsets, and took at least one of
    /// them not.
    pub(crate) fn refused(&mut self, offsets: &[(TopicPartition, i64)], now: Instant) {
        for (partition, offset) in offsets {
            if let Some(lane) = self.lanes.get_mut(partition) {
                lane.was_answered(*offset, now, self.commit_interval);
            }
        }
    }

    /// The reason was what is completed beyond them: it is more than the broker
    /// takes. From now on nothing of that is said, and what was refused is stored
    /// again without it. True where that is news.
    pub(crate) fn notes_refused(&mut self, offsets: &[(TopicPartition, i64)]) -> bool {
        for (partition, offset) in offsets {
            if let Some(lane) = self.lanes.get_mut(partition)
                && lane.stored == Some(*offset)
                && lane.noted.take().is_some()
            {
                lane.stored = None;
            }
        }
        std::mem::replace(&mut self.notes, Notes::Refused) == Notes::Taken
    }

    /// Marks that are to be committed for their notes alone: the watermark is
    /// committed and stands still, and what is completed beyond it has changed.
    /// None while a revoke is under way, whose answer commits them anyhow.
    pub(crate) fn take_unnoted(&mut self, now: Instant) -> Vec<Mark> {
        if self.pending.is_some() {
            return Vec::new();
        }
        let notes = self.notes;
        self.lanes
            .iter_mut()
            .filter_map(|(partition, lane)| lane.unnoted(partition, now, notes))
            .collect()
    }

    /// The run ends: nothing is placed any more, every worker is told to end.
    pub(crate) fn stop(&mut self, actions: &mut Vec<Action>) {
        let is_first = !std::mem::replace(&mut self.stopping, true);
        for lane in self.lanes.values() {
            // Nothing begins any more. What has begun is committed as it should be.
            if lane.tracker.watermark().is_none() {
                lane.cancelled.store(true, Ordering::Relaxed);
            }
        }
        if self.is_shared {
            actions.push(Action::StopWorker(READER));
            if is_first {
                // The workers follow when it has ended: they have to finish what
                // it gives back.
                return;
            }
        }
        self.stop_workers(actions);
    }

    fn stop_workers(&self, actions: &mut Vec<Action>) {
        actions.extend(
            self.workers
                .iter()
                .map(|&worker| Action::StopWorker(worker)),
        );
    }

    /// Nobody waits for handlers any more: what they have is given up.
    pub(crate) fn abandon_workers(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for lane in self.lanes.values_mut() {
            if lane.worker().is_some() {
                lane.state = State::Free;
            }
        }
        if let Some(pending) = &mut self.pending {
            pending.waiting.clear();
        }
        self.finish_revoke(now, actions);
    }

    /// The group is not there any more to take the lanes away: whatever is
    /// still here is counted as it stands.
    pub(crate) fn close(&mut self) {
        for partition in self.lanes.keys().cloned().collect::<Vec<_>>() {
            self.remove(&partition);
        }
    }

    /// Records that were handed over and whose completion nobody confirmed.
    pub(crate) fn left_uncommitted(&self) -> u64 {
        self.last_words
            .iter()
            .map(|word| {
                let unconfirmed = word.watermark.saturating_sub(word.confirmed);
                word.in_flight + u64::try_from(unconfirmed).unwrap_or(0)
            })
            .sum()
    }

    /// True while something that is complete, of a partition that is ours, waits
    /// for its commit to be confirmed.
    pub(crate) fn has_unconfirmed(&self) -> bool {
        self.lanes.values().any(|lane| {
            let watermark = lane.tracker.watermark();
            let is_awaited = watermark > lane.confirmed || lane.rewinding.is_some();
            lane.counts() && watermark.is_some() && is_awaited
        })
    }

    /// Records that were completed since the start of the run.
    pub(crate) fn completed_records(&self) -> u64 {
        let here: u64 = self
            .lanes
            .values()
            .map(|lane| lane.tracker.completed_records())
            .sum();
        // A handler that overran its partition has completed its record all the
        // same, of which the workers that count records know.
        let late: u64 = self.overrunning.values().map(Overrunning::completed).sum();
        self.completed_by_gone + here + late
    }

    /// True where every partition that we have reached the end it had when it
    /// was assigned. Also true without any partition. A commit above the end is
    /// not taken for that: what cannot be read was not reached.
    pub(crate) fn reached_end(&self) -> bool {
        self.pending.is_none()
            && self.lanes.values().all(|lane| {
                let watermark = lane.tracker.watermark();
                lane.until
                    .is_some_and(|until| watermark.is_some_and(|offset| offset >= until))
                    && lane.tracker.was_read()
            })
    }

    /// True where the group's commit of that lane had to come down, and was asked
    /// for because of that.
    pub(crate) fn is_read_back(&self, epoch: AssignmentEpoch) -> bool {
        self.by_epoch
            .get(&epoch)
            .and_then(|partition| self.lanes.get(partition))
            .is_some_and(|lane| lane.state != State::Resolving)
    }

    /// True where a partition of that topic is ours.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.lanes
            .keys()
            .any(|partition| partition.topic() == topic)
    }

    pub(crate) fn has_lanes(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// True while something is under way that should not wait for a tick.
    pub(crate) fn is_moving(&self) -> bool {
        self.pending.is_some()
            || self
                .lanes
                .values()
                .any(|lane| matches!(lane.state, State::Leaving { .. }))
    }

    /// How many workers run or are being started.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// The workers that run or are being started, and whether each was told to
    /// end.
    pub(crate) fn workers(&self) -> impl Iterator<Item = (usize, bool)> {
        self.workers
            .iter()
            .map(|worker| (*worker, self.leaving_workers.contains(worker)))
    }

    /// Every partition that we have, with its numbers, in order.
    pub(crate) fn trackers(&self) -> Vec<(TopicPartition, Arc<Tracker>)> {
        self.lanes
            .iter()
            .map(|(partition, lane)| (partition.clone(), Arc::clone(&lane.tracker)))
            .collect()
    }
}

fn named(worker: usize) -> String {
    if worker == READER {
        "a worker".to_owned()
    } else {
        format!("worker {worker}")
    }
}

#[cfg(test)]
mod tests;
