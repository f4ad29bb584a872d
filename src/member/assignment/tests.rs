//! The assignment against a bench that plays the group, the workers and the
//! lookup, and refuses every action that would break a promise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Action, Ask, Assignment, LaneStart, REWIND_AGAIN, ReadBack, Resolve, StartAt, State};
use crate::clock::Clock;
use crate::config::Workers;
use crate::error::CommandError;
use crate::event::EventKind;
use crate::member::group::Mark;
use crate::member::reset::Stranded;
use crate::record::{AssignmentEpoch, TopicPartition};
use crate::worker::completed::Completed;
use crate::worker::lane::{Failed, ReleaseCause};
use crate::worker::tracker::Tracker;

const DEADLINE: Duration = Duration::from_secs(5);

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn tps(partitions: &[i32]) -> Vec<TopicPartition> {
    partitions.iter().copied().map(tp).collect()
}

const INTERVAL: Duration = Duration::from_millis(500);

const STRANDED: Stranded = Stranded {
    offset: 12,
    truncated_at: None,
};

fn offsets(marks: Vec<Mark>) -> Vec<(TopicPartition, i64)> {
    let marks = marks.into_iter();
    marks.map(|mark| (mark.partition, mark.watermark)).collect()
}

fn at(offset: i64) -> StartAt {
    StartAt {
        offset,
        committed: Some(offset),
        until: None,
        commit_first: false,
        completed: None,
    }
}

/// A worker as the member's loop knows it: what it has and what was asked of it.
#[derive(Debug, Default)]
struct Worker {
    lanes: BTreeMap<AssignmentEpoch, LaneStart>,
    asked: BTreeMap<AssignmentEpoch, ReleaseCause>,
    paused: BTreeSet<AssignmentEpoch>,
    told_to_stop: bool,
}

/// What a revoke was answered with.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    partitions: Vec<TopicPartition>,
    watermarks: Vec<(TopicPartition, i64)>,
    at_once: Vec<(TopicPartition, i64)>,
}

struct Bench {
    assignment: Assignment,
    clock: Clock,
    workers: BTreeMap<usize, Worker>,
    resolving: Vec<Resolve>,
    /// Commits that are to come down, and whether the group has done so is asked.
    rewinding: Vec<(Resolve, i64)>,
    /// What the group has given us and not been given back.
    owned: BTreeSet<TopicPartition>,
    /// What the group wants back.
    revoking: BTreeSet<TopicPartition>,
    questions: usize,
    answers: Vec<Answer>,
    warnings: usize,
    /// Whether what was handed over last is told as a move within the process.
    last_was_local: Option<bool>,
    /// The partitions that the observer believes this process has, by what it was told.
    believed: BTreeSet<TopicPartition>,
}

impl Bench {
    fn new(wanted: Workers) -> Self {
        let mut bench = Self {
            assignment: Assignment::new(wanted, false, DEADLINE, INTERVAL),
            clock: Clock::manual(),
            workers: BTreeMap::new(),
            resolving: Vec::new(),
            rewinding: Vec::new(),
            owned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            questions: 0,
            answers: Vec::new(),
            warnings: 0,
            last_was_local: None,
            believed: BTreeSet::new(),
        };
        bench.act(|assignment, _, actions| assignment.begin(actions));
        bench
    }

    /// Partitions 0 to `partitions` with a worker each, from offset 10.
    fn running(partitions: i32) -> Self {
        let mut bench = Self::new(Workers::AUTO);
        bench.assign(&(0..partitions).collect::<Vec<_>>());
        bench.resolve_all(10);
        bench
    }

    fn act<R>(
        &mut self,
        change: impl FnOnce(&mut Assignment, Instant, &mut Vec<Action>) -> R,
    ) -> R {
        let mut actions = Vec::new();
        let now = self.clock.now();
        let result = change(&mut self.assignment, now, &mut actions);
        for action in actions {
            self.carry_out(action);
        }
        result
    }

    /// Does what the member's loop does, and checks that it may be done.
    fn carry_out(&mut self, action: Action) {
        match action {
            Action::StartReader => unreachable!("each worker reads its own partitions"),
            Action::Resolve(lanes) => self.resolving.extend(lanes),
            Action::Rewind { lane, offset } => self.rewinding.push((lane, offset)),
            Action::StartWorker(worker) => {
                let before = self.workers.insert(worker, Worker::default());
                assert!(before.is_none(), "worker {worker} runs already");
            }
            Action::StopWorker(worker) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.told_to_stop = true;
                }
            }
            Action::Hand {
                worker,
                lanes,
                local,
            } => {
                self.last_was_local = Some(local);
                for lane in &lanes {
                    let is_news = self.believed.insert(lane.partition.clone());
                    assert_eq!(is_news, !local, "{}: told twice, or never", lane.partition);
                }
                self.hand(worker, lanes);
            }
            Action::Release {
                worker,
                epochs,
                cause,
            } => {
                let worker = self.workers.get_mut(&worker).expect("it runs");
                for epoch in epochs {
                    if worker.lanes.contains_key(&epoch) {
                        worker.asked.insert(epoch, cause);
                    }
                }
            }
            Action::SetPaused {
                worker,
                epochs,
                paused,
            } => {
                let worker = self.workers.get_mut(&worker).expect("it runs");
                for epoch in epochs {
                    if paused {
                        worker.paused.insert(epoch);
                    } else {
                        worker.paused.remove(&epoch);
                    }
                }
            }
            Action::AnswerRevoke {
                partitions,
                watermarks,
                at_once,
            } => {
                let watermarks = offsets(watermarks);
                for (partition, _) in &watermarks {
                    assert!(
                        self.owned.contains(partition) && self.revoking.contains(partition),
                        "a watermark of {partition} is stored, which is not ours to commit"
                    );
                }
                for partition in &partitions {
                    self.owned.remove(partition);
                    self.revoking.remove(partition);
                    assert!(!self.assignment.lanes.contains_key(partition));
                }
                self.answers.push(Answer {
                    partitions,
                    watermarks,
                    at_once: offsets(at_once),
                });
            }
            Action::Tell(EventKind::Warning { .. }) => self.warnings += 1,
            Action::Tell(
                EventKind::PartitionsRevoked {
                    partitions,
                    local: false,
                }
                | EventKind::PartitionsLost { partitions },
            ) => self.is_told_gone(&partitions),
            Action::Tell(other) => panic!("{other:?}"),
        }
    }

    fn is_told_gone(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            assert!(
                self.believed.remove(partition),
                "{partition} is told to be gone, and was not there"
            );
        }
    }

    fn hand(&mut self, worker: usize, lanes: Vec<LaneStart>) {
        for lane in lanes {
            let partition = &lane.partition;
            assert!(
                self.owned.contains(partition) && !self.revoking.contains(partition),
                "{partition} is handed out and is not ours"
            );
            for (other, has) in &self.workers {
                assert!(
                    has.lanes.values().all(|has| has.partition != *partition),
                    "{partition} is handed to worker {worker} while worker {other} has it"
                );
            }
            let known = self.assignment.lanes.get(partition).expect("a lane");
            assert_eq!(known.epoch, lane.epoch, "the handed lane is the living one");
            assert_eq!(lane.tracker.watermark(), Some(lane.offset));
            let to = self.workers.get_mut(&worker).expect("it runs");
            assert!(!to.told_to_stop, "worker {worker} was told to stop");
            if lane.paused {
                to.paused.insert(lane.epoch);
            }
            to.lanes.insert(lane.epoch, lane);
        }
    }

    // The group.

    fn assign(&mut self, partitions: &[i32]) {
        self.owned.extend(tps(partitions));
        self.act(|assignment, _, actions| assignment.assigned(tps(partitions), actions));
    }

    fn revoke(&mut self, partitions: &[i32]) {
        self.questions += 1;
        self.revoking.extend(tps(partitions));
        self.act(|assignment, now, actions| assignment.revoked(tps(partitions), now, actions));
    }

    fn lose(&mut self, partitions: &[i32]) {
        self.questions += 1;
        // Gone already: no watermark of them may be stored from here on.
        for partition in tps(partitions) {
            self.owned.remove(&partition);
            self.revoking.remove(&partition);
        }
        self.act(|assignment, _, actions| assignment.lost(&tps(partitions), actions));
    }

    fn tick(&mut self, by: Duration) {
        self.clock.advance(by);
        self.act(Assignment::tick);
    }

    // The lookup.

    fn resolve_all(&mut self, offset: i64) {
        for resolve in std::mem::take(&mut self.resolving) {
            if !resolve.cancelled.load(Ordering::Relaxed) {
                self.resolved(resolve.epoch, at(offset));
            }
        }
        self.read_back(0);
    }

    /// The group has committed what was asked for, and `more`.
    fn read_back(&mut self, more: i64) {
        for (lane, offset) in std::mem::take(&mut self.rewinding) {
            self.read_back_as(lane.epoch, offset + more, false);
        }
    }

    fn read_back_as(&mut self, epoch: AssignmentEpoch, committed: i64, has_note: bool) {
        let found = ReadBack {
            committed: Some(committed),
            has_note,
        };
        self.act(|assignment, _, actions| assignment.read_back(vec![(epoch, found)], actions));
    }

    fn confirm(&mut self, partition: i32, offset: i64) {
        let offsets = [(tp(partition), offset)];
        self.act(|assignment, now, actions| assignment.committed(&offsets, now, actions));
    }

    fn reset(&mut self, epoch: AssignmentEpoch) {
        self.act(|assignment, _, actions| assignment.reset(epoch, STRANDED, actions));
    }

    fn resolved(&mut self, epoch: AssignmentEpoch, start: StartAt) {
        self.act(|assignment, _, actions| assignment.resolved(vec![(epoch, start)], actions));
    }

    // The workers.

    fn worker_of(&self, partition: i32) -> Option<usize> {
        let has = |worker: &Worker| {
            worker
                .lanes
                .values()
                .any(|lane| lane.partition == tp(partition))
        };
        self.workers
            .iter()
            .find(|(_, worker)| has(worker))
            .map(|(number, _)| *number)
    }

    fn epoch_of(&self, partition: i32) -> AssignmentEpoch {
        self.assignment.lanes[&tp(partition)].epoch
    }

    fn tracker_of(&self, partition: i32) -> Arc<Tracker> {
        Arc::clone(&self.assignment.lanes[&tp(partition)].tracker)
    }

    /// Whoever has that partition completes a record of it.
    fn complete(&self, partition: i32) {
        let lanes = self
            .workers
            .values()
            .flat_map(|worker| worker.lanes.values());
        for lane in lanes.filter(|lane| lane.partition == tp(partition)) {
            let offset = lane.tracker.watermark().expect("it has begun");
            lane.tracker.handed_over(offset, 0);
            lane.tracker.completed(offset);
        }
    }

    /// Gives back what was asked for, or all and ends where it was told to.
    fn obey(&mut self, worker: usize) {
        let Some(has) = self.workers.get_mut(&worker) else {
            return;
        };
        let mut asked = std::mem::take(&mut has.asked);
        let ends = has.told_to_stop;
        if ends {
            let all = has.lanes.keys();
            asked.extend(all.map(|epoch| (*epoch, ReleaseCause::Revoked)));
        }
        let mut by_cause: BTreeMap<ReleaseCause, Vec<_>> = BTreeMap::new();
        for (epoch, cause) in asked {
            by_cause.entry(cause).or_default().push(epoch);
        }
        for (cause, epochs) in by_cause {
            self.give_back(worker, epochs, cause);
        }
        if ends {
            self.exit(worker, false);
        }
    }

    fn give_back(&mut self, worker: usize, epochs: Vec<AssignmentEpoch>, cause: ReleaseCause) {
        let Some(has) = self.workers.get_mut(&worker) else {
            return;
        };
        let starts = epochs.iter().filter_map(|epoch| has.lanes.remove(epoch));
        let partitions: Vec<_> = starts.map(|start| start.partition).collect();
        if matches!(cause, ReleaseCause::Revoked | ReleaseCause::Lost) {
            self.is_told_gone(&partitions);
        }
        let lanes: Vec<(AssignmentEpoch, Option<Failed>)> =
            epochs.into_iter().map(|epoch| (epoch, None)).collect();
        if !partitions.is_empty() {
            self.act(|assignment, now, actions| assignment.released(lanes, cause, now, actions));
        }
    }

    fn obey_all(&mut self) {
        // What they give back may be handed on, and asked of others again.
        for _ in 0..8 {
            for worker in self.workers.keys().copied().collect::<Vec<_>>() {
                self.obey(worker);
            }
        }
    }

    fn exit(&mut self, worker: usize, replace: bool) {
        let Some(has) = self.workers.remove(&worker) else {
            return;
        };
        let lanes = has.lanes.into_keys().map(|epoch| (epoch, None)).collect();
        self.act(|assignment, now, actions| {
            assignment.worker_exited(worker, lanes, replace, now, actions);
        });
    }

    // The commits.

    /// What is not stored yet.
    fn unstored(&self) -> Vec<(TopicPartition, i64)> {
        offsets(self.assignment.unstored())
    }

    /// What may be stored now.
    fn storable(&self) -> Vec<(TopicPartition, i64)> {
        offsets(self.assignment.storable(self.clock.now()))
    }

    /// The coordinator refused these.
    fn refuse(&mut self, offsets: &[(TopicPartition, i64)]) {
        self.assignment.refused(offsets, self.clock.now());
    }

    fn store(&mut self) {
        for mark in self.assignment.unstored() {
            let (partition, watermark) = (&mark.partition, mark.watermark);
            assert!(
                self.owned.contains(partition),
                "{partition} is stored and not ours"
            );
            let lane = &self.assignment.lanes[partition];
            assert_eq!(lane.tracker.watermark(), Some(watermark));
            self.assignment.mark_stored(&mark, self.clock.now());
        }
    }

    fn stored(&self) -> Vec<(TopicPartition, i64)> {
        let lanes = self.assignment.lanes.iter();
        lanes
            .filter_map(|(partition, lane)| Some((partition.clone(), lane.stored?)))
            .collect()
    }

    fn commit(&mut self) {
        let stored = self.stored();
        self.act(|assignment, now, actions| assignment.committed(&stored, now, actions));
    }

    /// What holds after whatever happened.
    fn check(&self) {
        let assignment = &self.assignment;
        assert_eq!(assignment.by_epoch.len(), assignment.lanes.len());
        let pending = usize::from(assignment.pending.is_some());
        assert_eq!(
            self.answers.len() + pending,
            self.questions,
            "each revoke is answered once"
        );
        assert_eq!(
            assignment.lanes.keys().cloned().collect::<BTreeSet<_>>(),
            self.owned,
            "there is a lane for what is ours and for nothing else"
        );
        let running: BTreeSet<usize> = self.workers.keys().copied().collect();
        assert_eq!(assignment.workers, running);
        for (partition, lane) in &assignment.lanes {
            let holder = self
                .workers
                .iter()
                .find(|(_, w)| w.lanes.contains_key(&lane.epoch));
            assert_eq!(
                lane.worker(),
                holder.map(|(number, _)| *number),
                "{partition}: {lane:?}"
            );
            if let Some((_, worker)) = holder {
                assert_eq!(
                    worker.paused.contains(&lane.epoch),
                    lane.paused,
                    "{partition}"
                );
            }
        }
        let late = assignment.overrunning.values().map(|lane| &lane.partition);
        let here: BTreeSet<_> = self.owned.iter().chain(late).collect();
        for partition in &self.believed {
            assert!(
                here.contains(partition),
                "nobody told that {partition} is gone"
            );
        }
        for (epoch, lane) in &assignment.overrunning {
            assert!(
                self.workers[&lane.worker].lanes.contains_key(epoch),
                "nothing overruns for ever"
            );
        }
        self.check_balance();
    }

    /// Where nothing is on its way every lane that can be worked on is, and no worker has two more than another.
    fn check_balance(&self) {
        let moving = self.assignment.stopping
            || self
                .workers
                .values()
                .any(|worker| !worker.asked.is_empty() || worker.told_to_stop)
            || !self.assignment.overrunning.is_empty();
        if moving || self.workers.is_empty() {
            return;
        }
        let counts: Vec<usize> = self
            .workers
            .values()
            .map(|worker| worker.lanes.len())
            .collect();
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
        let idle = self
            .assignment
            .lanes
            .values()
            .filter(|lane| lane.state == State::Free);
        assert_eq!(idle.count(), 0, "a lane waits for nothing");
    }
}

#[test]
fn every_partition_gets_a_worker_once_its_start_is_known() {
    let mut bench = Bench::new(Workers::AUTO);
    bench.assign(&[0, 1, 2]);
    assert_eq!(bench.workers.len(), 3);
    assert_eq!(bench.worker_of(0), None);
    bench.resolve_all(7);
    bench.check();
    let workers: BTreeSet<_> = (0..3)
        .filter_map(|partition| bench.worker_of(partition))
        .collect();
    assert_eq!(workers.len(), 3);
    assert!(
        bench.unstored().is_empty(),
        "what is committed is not stored again"
    );
}

#[test]
fn a_fixed_number_of_workers_runs_before_the_first_assignment() {
    let mut bench = Bench::new(Workers::Fixed(2));
    assert_eq!(bench.workers.len(), 2);
    bench.assign(&[0, 1, 2, 3, 4]);
    bench.resolve_all(0);
    bench.check();
}

#[test]
fn a_start_by_the_policy_is_stored_and_under_latest_waits_for_its_commit() {
    let mut bench = Bench::new(Workers::AUTO);
    bench.assign(&[0]);
    let start = StartAt {
        offset: 50,
        committed: None,
        until: None,
        commit_first: true,
        completed: None,
    };
    bench.resolved(bench.epoch_of(0), start);
    assert_eq!(bench.worker_of(0), None);
    assert_eq!(bench.unstored(), [(tp(0), 50)]);
    bench.store();
    bench.act(|assignment, now, actions| assignment.committed(&[(tp(0), 49)], now, actions));
    assert_eq!(bench.worker_of(0), None, "that was not it");
    bench.commit();
    assert_eq!(bench.worker_of(0), Some(0));
    bench.check();
}

#[test]
fn s33_a_start_that_awaits_its_commit_is_committed_by_a_revoke() {
    let mut bench = Bench::new(Workers::AUTO);
    bench.assign(&[0]);
    let start = StartAt {
        offset: 50,
        committed: None,
        until: None,
        commit_first: true,
        completed: None,
    };
    bench.resolved(bench.epoch_of(0), start);
    bench.revoke(&[0]);
    assert_eq!(bench.answers[0].watermarks, [(tp(0), 50)]);
    bench.check();
}

#[test]
fn s01_a_revoke_is_answered_with_the_watermark_after_the_record_in_hand() {
    let mut bench = Bench::running(2);
    bench.revoke(&[0]);
    assert!(bench.answers.is_empty());
    bench.complete(0);
    bench.obey_all();
    assert_eq!(
        bench.answers,
        [Answer {
            partitions: tps(&[0]),
            watermarks: vec![(tp(0), 11)],
            at_once: vec![],
        }]
    );
    bench.check();
    assert!(bench.worker_of(1).is_some(), "the other was not touched");
}

#[test]
fn a_revoke_of_what_no_worker_has_is_answered_at_once() {
    let mut bench = Bench::new(Workers::AUTO);
    bench.assign(&[0, 1]);
    bench.revoke(&[0, 1, 7]);
    assert_eq!(bench.answers.len(), 1);
    assert!(
        bench.answers[0].watermarks.is_empty(),
        "nothing is known of them"
    );
    assert!(
        bench
            .resolving
            .iter()
            .all(|lane| lane.cancelled.load(Ordering::Relaxed))
    );
    let late = bench.resolving[0].epoch;
    bench.resolved(late, at(3));
    bench.check();
    bench.revoke(&[]);
    assert_eq!(bench.answers.len(), 2);
}

#[test]
fn a_partition_that_let_go_is_not_handed_out_while_others_of_its_revoke_drain() {
    let mut bench = Bench::running(3);
    bench.revoke(&[0, 1]);
    let first = bench.worker_of(0).expect("a worker");
    bench.complete(0);
    bench.obey(first);
    assert_eq!(bench.worker_of(0), None);
    // Whatever makes lanes be placed meanwhile.
    bench.assign(&[3]);
    bench.resolve_all(0);
    bench.act(|assignment, _, actions| assignment.scale(Workers::Fixed(5), actions));
    assert_eq!(bench.worker_of(0), None);
    for command in [
        bench.act(|assignment, _, actions| assignment.seek(&tp(0), 3, actions)),
        bench.act(|assignment, _, actions| assignment.set_paused(&tps(&[0]), true, actions)),
    ] {
        assert_eq!(command, Err(CommandError::NotAssigned(tp(0))));
    }
    bench.obey_all();
    assert_eq!(bench.answers[0].watermarks, [(tp(0), 11)]);
    bench.check();
}

#[test]
fn s02_an_overrunning_handler_does_not_hold_up_the_answer_and_its_result_is_not_stored() {
    let mut bench = Bench::running(2);
    let late = bench.tracker_of(0);
    bench.revoke(&[0, 1]);
    bench.complete(1);
    bench.obey(bench.worker_of(1).expect("a worker"));
    bench.tick(Duration::from_millis(4_999));
    assert!(bench.answers.is_empty());
    bench.tick(Duration::from_millis(1));
    assert_eq!(bench.answers[0].watermarks, [(tp(1), 11)]);
    assert_eq!(bench.warnings, 1);
    bench.complete(0);
    assert_eq!(late.watermark(), Some(11), "the late result");
    assert!(bench.unstored().is_empty());
    bench.check();
    bench.obey_all();
    assert_eq!(bench.answers.len(), 1);
    bench.check();
}

#[test]
fn s04_a_partition_that_comes_back_waits_for_its_old_worker_and_begins_anew() {
    let mut bench = Bench::running(1);
    let old = bench.tracker_of(0);
    bench.revoke(&[0]);
    bench.tick(DEADLINE);
    for life in 0..3 {
        bench.assign(&[0]);
        bench.resolve_all(10);
        assert_eq!(
            bench.assignment.lanes[&tp(0)].state,
            State::Free,
            "life {life}"
        );
        if life < 2 {
            bench.revoke(&[0]);
        }
    }
    old.handed_over(10, 0);
    old.completed(10);
    assert!(bench.unstored().is_empty(), "the old life stores nothing");
    bench.obey_all();
    assert_eq!(bench.worker_of(0), Some(0));
    assert!(!Arc::ptr_eq(&old, &bench.tracker_of(0)));
    assert_eq!(bench.tracker_of(0).watermark(), Some(10));
    bench.check();
}

#[test]
fn s05_a_partition_that_an_eager_rebalance_gives_back_starts_at_its_commit_even_further_back() {
    let mut bench = Bench::running(1);
    for _ in 0..5 {
        bench.complete(0);
    }
    bench.store();
    bench.revoke(&[0]);
    bench.obey_all();
    // Somebody reset the group's offsets meanwhile.
    bench.assign(&[0]);
    bench.resolve_all(3);
    assert_eq!(bench.tracker_of(0).watermark(), Some(3));
    bench.complete(0);
    assert_eq!(
        bench.unstored(),
        [(tp(0), 4)],
        "the old watermark does not stick"
    );
    bench.check();
}

#[test]
fn s09_what_is_lost_is_given_up_at_once_and_nothing_of_it_is_stored() {
    let mut bench = Bench::running(2);
    bench.complete(0);
    bench.lose(&[0, 1]);
    assert_eq!(
        bench.answers,
        [Answer {
            partitions: tps(&[0, 1]),
            watermarks: vec![],
            at_once: vec![],
        }]
    );
    assert!(bench.unstored().is_empty());
    bench.assign(&[0, 1]);
    bench.resolve_all(10);
    bench.complete(0);
    assert!(bench.unstored().is_empty(), "the old handler's result");
    bench.obey_all();
    assert_eq!(bench.workers.len(), 2);
    bench.check();
    bench.complete(0);
    assert_eq!(bench.unstored(), [(tp(0), 11)]);
}

#[test]
fn s10_what_is_lost_while_a_revoke_drains_is_not_stored_and_both_are_answered() {
    let mut bench = Bench::running(2);
    bench.revoke(&[0, 1]);
    bench.complete(0);
    bench.lose(&[0, 1]);
    assert_eq!(bench.answers.len(), 2);
    assert!(
        bench
            .answers
            .iter()
            .all(|answer| answer.watermarks.is_empty())
    );
    bench.check();
    bench.obey_all();
    bench.tick(DEADLINE);
    assert_eq!(bench.answers.len(), 2);
    bench.check();
}

#[test]
fn a_revoke_before_the_last_one_was_answered_answers_it() {
    let mut bench = Bench::running(2);
    bench.revoke(&[0]);
    bench.revoke(&[1]);
    assert_eq!(bench.answers.len(), 1);
    bench.check();
    bench.obey_all();
    assert_eq!(bench.answers.len(), 2);
    bench.check();
}

#[test]
fn assigned_again_without_a_revoke_is_a_new_life_all_the_same() {
    let mut bench = Bench::running(1);
    let old = bench.epoch_of(0);
    bench.assign(&[0]);
    bench.resolve_all(20);
    assert_eq!(
        bench.assignment.lanes[&tp(0)].state,
        State::Free,
        "its old worker has it"
    );
    bench.obey_all();
    assert_ne!(bench.epoch_of(0), old);
    assert_eq!(bench.tracker_of(0).watermark(), Some(20));
    bench.check();
}

#[test]
fn a_new_worker_takes_its_share_after_the_records_in_hand() {
    let mut bench = Bench::new(Workers::Fixed(1));
    bench.assign(&[0, 1, 2, 3]);
    bench.resolve_all(0);
    bench.act(|assignment, _, actions| assignment.scale(Workers::Fixed(2), actions));
    assert_eq!(bench.workers[&0].asked.len(), 2);
    assert!(bench.workers[&1].lanes.is_empty());
    bench.complete(3);
    bench.obey_all();
    bench.check();
    let moved = bench.workers[&1]
        .lanes
        .values()
        .find(|lane| lane.partition == tp(3));
    assert!(
        moved.is_none_or(|lane| lane.offset == 1),
        "it goes on where it was"
    );
}

#[test]
fn workers_that_are_too_many_give_their_lanes_away_and_then_stop() {
    let mut bench = Bench::running(4);
    bench.act(|assignment, _, actions| assignment.scale(Workers::Fixed(2), actions));
    assert!(
        !bench.workers[&3].told_to_stop,
        "not before its lanes are away"
    );
    bench.obey_all();
    assert_eq!(bench.workers.keys().collect::<Vec<_>>(), [&0, &1]);
    bench.check();
}

#[test]
fn a_worker_that_must_go_stays_until_its_overrunning_handler_returns() {
    let mut bench = Bench::running(2);
    bench.revoke(&[1]);
    bench.tick(DEADLINE);
    bench.assign(&[]);
    let busy = bench
        .workers
        .iter()
        .find(|(_, worker)| !worker.asked.is_empty());
    let busy = *busy.expect("one overruns").0;
    assert!(!bench.workers[&busy].told_to_stop);
    bench.obey_all();
    assert_eq!(bench.workers.len(), 1);
    bench.check();
}

#[test]
fn a_partition_that_was_sought_before_a_worker_had_it_is_new_to_the_process() {
    for had_a_worker in [false, true] {
        let mut bench = Bench::new(Workers::AUTO);
        bench.assign(&[0]);
        if had_a_worker {
            bench.resolve_all(10);
            assert_eq!(bench.last_was_local, Some(false));
        }
        bench
            .act(|assignment, _, actions| assignment.seek(&tp(0), 4, actions))
            .expect("ours");
        bench.obey_all();
        bench.resolve_all(10);
        assert_eq!(bench.tracker_of(0).watermark(), Some(4));
        assert_eq!(bench.last_was_local, Some(had_a_worker));
    }
}

#[test]
fn a_seek_drops_what_the_old_position_did_and_starts_a_new_life() {
    let mut bench = Bench::running(1);
    let old = bench.tracker_of(0);
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 40, actions))
        .expect("ours");
    bench.complete(0);
    bench.obey_all();
    assert_eq!(old.watermark(), Some(11));
    assert_eq!(bench.tracker_of(0).watermark(), Some(40));
    assert_eq!(bench.unstored(), [(tp(0), 40)]);
    bench.check();
}

#[test]
fn a_seek_works_in_every_state_of_a_partition() {
    // Resolving: the answer that comes later is of a life that is over.
    let mut bench = Bench::new(Workers::AUTO);
    bench.assign(&[0]);
    let asked = bench.resolving[0].clone();
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 40, actions))
        .expect("ours");
    assert!(asked.cancelled.load(Ordering::Relaxed));
    bench.resolved(asked.epoch, at(3));
    assert_eq!(bench.tracker_of(0).watermark(), None);
    // What the group has is not known yet, so it may be more.
    bench.read_back(0);
    assert_eq!(bench.tracker_of(0).watermark(), Some(40));
    bench.check();
    // Leaving for another worker, or for another position: the last word counts.
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 50, actions))
        .expect("ours");
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 60, actions))
        .expect("ours");
    bench.obey_all();
    assert_eq!(bench.tracker_of(0).watermark(), Some(60));
    bench.check();
    // Awaiting the commit of its start.
    let mut bench = Bench::new(Workers::AUTO);
    bench.assign(&[0]);
    let start = StartAt {
        commit_first: true,
        committed: None,
        ..at(5)
    };
    bench.resolved(bench.epoch_of(0), start);
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 2, actions))
        .expect("ours");
    bench.check();
    bench.read_back(0);
    assert_eq!(bench.worker_of(0), Some(0));
    // Not ours.
    let refused = bench.act(|assignment, _, actions| assignment.seek(&tp(9), 2, actions));
    assert_eq!(refused, Err(CommandError::NotAssigned(tp(9))));
}

#[test]
fn a_reset_asks_anew_and_does_not_undo_a_seek() {
    let mut bench = Bench::running(1);
    let epoch = bench.epoch_of(0);
    bench.reset(epoch);
    bench.obey_all();
    let asked = bench.resolving.pop().expect("a question");
    assert_eq!(asked.ask, Ask::Range);
    assert_eq!(bench.assignment.take_stranded(asked.epoch), Some(STRANDED));
    bench.resolved(asked.epoch, at(90));
    assert_eq!(bench.tracker_of(0).watermark(), Some(90));
    bench.check();
    // A reset of a life that is over changes nothing.
    bench.reset(epoch);
    assert!(bench.workers[&0].asked.is_empty());

    // The worker reports that the old position is out of range when the seek away from it is under way.
    let epoch = bench.epoch_of(0);
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 140, actions))
        .expect("ours");
    bench.reset(epoch);
    bench.obey_all();
    assert_eq!(bench.tracker_of(0).watermark(), Some(140));
    assert!(bench.resolving.is_empty());
    bench.check();
}

#[test]
fn after_a_seek_backwards_nothing_is_handed_over_before_the_commit_has_come_down() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.store();
    bench.commit();
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 4, actions))
        .expect("ours");
    bench.obey_all();
    assert_eq!(bench.worker_of(0), None);
    assert!(bench.unstored().is_empty());
    let (_, offset) = bench.rewinding.last().expect("a commit");
    assert_eq!(*offset, 4);
    // A word on the commit of before, which was on its way.
    bench.commit();
    assert_eq!(bench.worker_of(0), None);
    for more in [1, -1] {
        bench.read_back(more);
        assert_eq!(bench.worker_of(0), None, "the group has something else");
        bench.tick(Duration::ZERO);
        bench.tick(REWIND_AGAIN);
    }
    bench.read_back(0);
    assert_eq!(bench.worker_of(0), Some(0));
    assert_eq!(bench.tracker_of(0).watermark(), Some(4));
    assert_eq!(bench.tracker_of(0).committed(), Some(4));
    bench.check();
}

#[test]
fn a_seek_waits_until_the_group_has_no_note_of_what_was_done_wherever_it_goes() {
    for offset in [10, 13, 40] {
        let mut bench = Bench::new(Workers::AUTO);
        bench.assign(&[0]);
        let asked = bench.resolving.pop().expect("a question");
        let completed = Some(Arc::new(Completed::between([12], 20)));
        let start = StartAt {
            completed,
            ..at(10)
        };
        bench.resolved(asked.epoch, start);
        bench
            .act(|assignment, _, actions| assignment.seek(&tp(0), offset, actions))
            .expect("ours");
        bench.obey_all();
        assert_eq!(bench.worker_of(0), None, "{offset}");
        let (lane, _) = bench.rewinding.last().expect("a commit").clone();
        bench.read_back_as(lane.epoch, offset, true);
        assert_eq!(
            bench.worker_of(0),
            None,
            "{offset}: the note is still there"
        );
        bench.read_back_as(lane.epoch, offset, false);
        assert_eq!(bench.worker_of(0), Some(0), "{offset}");
        bench.check();
    }
}

#[test]
fn a_commit_of_before_that_arrives_after_a_rewind_is_brought_down_again() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.store();
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 4, actions))
        .expect("ours");
    bench.obey_all();
    bench.read_back(0);
    assert_eq!(bench.worker_of(0), Some(0));
    bench.complete(0);
    // The old coordinator was asked to commit it, and the new one was asked again.
    bench.confirm(0, 11);
    let committed = bench.tracker_of(0).committed();
    assert_eq!(committed, Some(4), "not for long");
    let (_, offset) = bench.rewinding.last().expect("a commit");
    assert_eq!(*offset, 5, "all that is completed");
    bench.complete(0);
    assert_eq!(bench.storable(), [], "librdkafka commits nothing below 11");
    assert!(bench.assignment.has_unconfirmed());
    // Once more, and it is not known which was first.
    bench.confirm(0, 11);
    bench.read_back(0);
    bench.tick(Duration::ZERO);
    bench.tick(REWIND_AGAIN);
    assert_eq!(bench.rewinding.last().map(|(_, offset)| *offset), Some(6));
    bench.read_back(0);
    assert_eq!(bench.tracker_of(0).committed(), Some(6));
    assert!(!bench.assignment.has_unconfirmed());
    bench.complete(0);
    assert_eq!(bench.storable(), [(tp(0), 7)]);
    bench.check();
}

#[test]
fn a_revoke_brings_down_what_the_group_should_not_have() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.confirm(0, 20);
    bench.complete(0);
    bench.revoke(&[0]);
    bench.obey_all();
    let answer = &bench.answers[0];
    assert_eq!(answer.watermarks, []);
    assert_eq!(answer.at_once, [(tp(0), 12)]);
    bench.check();
}

#[test]
fn after_a_commit_that_is_too_high_a_seek_waits_wherever_it_goes() {
    for offset in [4, 15, 40] {
        let mut bench = Bench::running(1);
        bench.confirm(0, 20);
        bench
            .act(|assignment, _, actions| assignment.seek(&tp(0), offset, actions))
            .expect("ours");
        bench.obey_all();
        assert_eq!(bench.worker_of(0), None, "{offset}");
        assert_eq!(
            bench.rewinding.last().map(|(_, offset)| *offset),
            Some(offset)
        );
        bench.read_back(0);
        assert_eq!(bench.worker_of(0), Some(0), "{offset}");
        bench.check();
    }
}

#[test]
fn a_partition_whose_commits_are_refused_does_not_hold_up_the_others() {
    let mut bench = Bench::running(2);
    bench.complete(0);
    bench.complete(1);
    bench.store();
    bench.complete(0);
    bench.complete(1);
    // Of an earlier commit, which says nothing of these.
    bench.refuse(&[(tp(0), 10), (tp(1), 10)]);
    assert_eq!(bench.storable(), []);
    // librdkafka says the same of both, though one of them is committed.
    bench.refuse(&[(tp(0), 11), (tp(1), 11)]);
    assert_eq!(bench.storable(), [(tp(0), 12), (tp(1), 12)]);
    bench.check();
}

#[test]
fn s06_a_watermark_waits_until_the_one_before_is_confirmed_but_not_the_last_one() {
    let mut bench = Bench::running(2);
    bench.complete(0);
    assert_eq!(bench.storable(), [(tp(0), 11)]);
    bench.store();
    bench.complete(0);
    bench.complete(1);
    assert_eq!(bench.storable(), [(tp(1), 11)], "each partition by itself");
    bench.commit();
    assert_eq!(bench.storable(), [(tp(0), 12), (tp(1), 11)]);
    bench.store();
    bench.complete(0);
    assert!(bench.storable().is_empty());
    bench.revoke(&[0, 1]);
    bench.obey_all();
    assert_eq!(bench.answers[0].watermarks, [(tp(0), 13)], "the last word");
    bench.check();
}

#[test]
fn what_the_group_had_of_all_that_was_lost_is_remembered_until_it_is_back() {
    let mut bench = Bench::running(2);
    bench.lose(&[0]);
    bench.lose(&[1]);
    bench.assign(&[0, 1]);
    for partition in [0, 1] {
        let epoch = bench.epoch_of(partition);
        assert_eq!(bench.assignment.take_lost_commit(epoch), Some(10));
        assert_eq!(bench.assignment.take_lost_commit(epoch), None, "once");
    }
}

#[test]
fn what_a_handler_completes_of_a_partition_that_is_gone_is_counted() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.revoke(&[0]);
    bench.tick(DEADLINE);
    assert_eq!(bench.answers.len(), 1);
    let count = |bench: &Bench| bench.assignment.completed_records();
    assert_eq!(count(&bench), 1);
    bench.complete(0);
    assert_eq!(count(&bench), 2, "it was handed over, and not given back");
    bench.obey_all();
    assert_eq!(count(&bench), 2);
    bench.check();
}

#[test]
fn a_run_that_ends_over_a_position_commits_what_was_completed_unless_the_log_has_lost_that() {
    for truncated_at in [None, Some(5)] {
        let mut bench = Bench::running(1);
        bench.complete(0);
        let stranded = Stranded {
            truncated_at,
            ..STRANDED
        };
        let epoch = bench.epoch_of(0);
        bench.act(|assignment, _, actions| assignment.ends_over(epoch, stranded, actions));
        let is_stored = !bench.unstored().is_empty();
        assert_eq!(is_stored, truncated_at.is_none(), "{truncated_at:?}");
    }
}

#[test]
fn s06_after_a_late_answer_a_watermark_waits_for_what_was_sent_twice() {
    for refused in [false, true] {
        let mut bench = Bench::running(1);
        bench.complete(0);
        bench.store();
        bench.complete(0);
        // Sent at two intervals, and one of the two is answered.
        bench.tick(INTERVAL);
        let answer = |bench: &mut Bench| {
            if refused {
                bench.refuse(&[(tp(0), 11)]);
            } else {
                bench.confirm(0, 11);
            }
        };
        answer(&mut bench);
        assert_eq!(bench.storable(), [], "the other may be under way");
        bench.tick(INTERVAL);
        answer(&mut bench);
        assert_eq!(bench.storable(), []);
        bench.tick(INTERVAL);
        assert_eq!(bench.storable(), [(tp(0), 12)]);
        bench.check();
    }
}

#[test]
fn a_seek_to_what_is_committed_does_not_wait() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.store();
    bench.commit();
    for offset in [11, 40] {
        bench
            .act(|assignment, _, actions| assignment.seek(&tp(0), offset, actions))
            .expect("ours");
        bench.obey_all();
        assert_eq!(bench.worker_of(0), Some(0));
        assert!(bench.rewinding.is_empty());
    }
    bench.check();
}

#[test]
fn a_lane_that_begins_below_its_commit_waits_until_that_has_come_down() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.store();
    bench.commit();
    // Stored, and perhaps on its way to the group.
    bench.complete(0);
    bench.store();
    bench.reset(bench.epoch_of(0));
    bench.obey_all();
    let asked = bench.resolving.pop().expect("a question");
    bench.resolved(
        asked.epoch,
        StartAt {
            committed: None,
            ..at(12)
        },
    );
    assert_eq!(
        bench.worker_of(0),
        Some(0),
        "at what is stored nothing is skipped"
    );

    bench.reset(bench.epoch_of(0));
    bench.obey_all();
    let asked = bench.resolving.pop().expect("a question");
    bench.resolved(
        asked.epoch,
        StartAt {
            committed: None,
            ..at(11)
        },
    );
    assert_eq!(bench.worker_of(0), None);
    assert_eq!(bench.rewinding.len(), 1);
    assert!(bench.unstored().is_empty());
    // The group still has more.
    bench.read_back(1);
    assert_eq!(bench.worker_of(0), None);
    bench.tick(Duration::ZERO);
    assert!(bench.rewinding.is_empty(), "not at once");
    bench.tick(REWIND_AGAIN);
    assert_eq!(bench.rewinding.len(), 1);
    bench.tick(REWIND_AGAIN);
    assert_eq!(bench.rewinding.len(), 1, "one question at a time");
    bench.read_back(0);
    assert_eq!(bench.worker_of(0), Some(0));
    assert_eq!(bench.tracker_of(0).watermark(), Some(11));
    assert_eq!(bench.tracker_of(0).committed(), Some(11));
    assert!(!bench.assignment.has_unconfirmed());
    bench.check();
}

#[test]
fn a_revoke_of_a_lane_whose_commit_has_to_come_down_stores_nothing() {
    let mut bench = Bench::running(1);
    bench.reset(bench.epoch_of(0));
    bench.obey_all();
    let asked = bench.resolving.pop().expect("a question");
    bench.resolved(
        asked.epoch,
        StartAt {
            committed: None,
            ..at(3)
        },
    );
    bench.revoke(&[0]);
    assert_eq!(bench.answers[0].watermarks, []);
    bench.read_back(0);
    bench.tick(DEADLINE);
    assert!(bench.rewinding.is_empty());
    bench.check();
}

#[test]
fn a_revoke_that_meets_a_reset_does_not_store_what_the_log_may_have_lost() {
    let mut bench = Bench::running(1);
    bench.complete(0);
    bench.complete(0);
    let epoch = bench.epoch_of(0);
    bench.reset(epoch);
    assert_eq!(bench.unstored(), []);
    bench.revoke(&[0]);
    bench.obey_all();
    assert_eq!(bench.answers[0].watermarks, []);
    bench.check();
}

#[test]
fn of_a_topic_that_is_another_nothing_is_stored_and_nothing_awaited() {
    let mut bench = Bench::running(2);
    bench.complete(0);
    bench.complete(1);
    assert_eq!(bench.assignment.void("t"), tps(&[0, 1]));
    assert_eq!(bench.unstored(), []);
    assert!(!bench.assignment.has_unconfirmed());
    bench.revoke(&[0]);
    bench.obey_all();
    assert_eq!(bench.answers[0].watermarks, []);
    bench.check();
}

#[test]
fn a_revoke_ends_a_move_and_a_seek_that_are_under_way() {
    let mut bench = Bench::new(Workers::Fixed(1));
    bench.assign(&[0, 1]);
    bench.resolve_all(10);
    bench.act(|assignment, _, actions| assignment.scale(Workers::Fixed(2), actions));
    bench
        .act(|assignment, _, actions| assignment.seek(&tp(0), 40, actions))
        .expect("ours");
    bench.revoke(&[0, 1]);
    bench.obey_all();
    assert!(
        bench.answers[0].watermarks.is_empty(),
        "nothing was completed since the commit"
    );
    bench.check();
}

#[test]
fn s14_a_worker_that_is_replaced_gets_its_lanes_back_and_the_failed_record_with_them() {
    let mut bench = Bench::running(2);
    let worker = bench.worker_of(0).expect("a worker");
    let failed = Failed {
        offset: 10,
        attempts: 3,
        not_before: None,
        dead: None,
    };
    let epoch = bench.epoch_of(0);
    bench.workers.remove(&worker);
    let lanes = vec![(epoch, Some(failed.clone()))];
    bench.act(|assignment, now, actions| {
        assignment.worker_exited(worker, lanes, true, now, actions);
    });
    assert_eq!(bench.worker_of(0), Some(worker));
    assert_eq!(bench.workers[&worker].lanes[&epoch].failed, Some(failed));
    bench.check();
}

#[test]
fn lanes_of_a_worker_that_is_not_replaced_go_to_the_others_until_it_may_start() {
    let mut bench = Bench::running(3);
    bench.exit(1, false);
    bench.act(|assignment, _, _| assignment.worker_rests(1));
    assert!((0..3).all(|partition| bench.worker_of(partition).is_some()));
    bench.assign(&[3]);
    bench.resolve_all(0);
    assert_eq!(
        bench.workers.len(),
        3,
        "the fourth partition has its worker"
    );
    assert!(
        !bench.workers.contains_key(&1),
        "an assignment does not wake it early"
    );
    bench.act(|assignment, _, actions| assignment.worker_may_start(1, actions));
    bench.obey_all();
    assert_eq!(bench.workers.len(), 4);
    bench.check();
}

#[test]
fn a_worker_that_ends_during_a_revoke_answers_it() {
    let mut bench = Bench::running(1);
    bench.revoke(&[0]);
    bench.complete(0);
    bench.exit(0, true);
    assert_eq!(bench.answers[0].watermarks, [(tp(0), 11)]);
    assert!(bench.believed.is_empty(), "it could not say so itself");
    bench.check();
}

#[test]
fn what_goes_while_no_worker_has_it_is_told_to_be_gone() {
    let mut bench = Bench::new(Workers::Fixed(1));
    bench.assign(&[0, 1, 2]);
    bench.resolve_all(10);
    bench.exit(0, false);
    bench.act(|assignment, _, _| assignment.worker_rests(0));
    // New to this process, and with no worker yet: of that nothing was told.
    bench.assign(&[3]);
    bench.resolve_all(0);
    bench.revoke(&[0, 3]);
    assert_eq!(bench.believed, BTreeSet::from([tp(1), tp(2)]));
    bench.lose(&[1]);
    assert_eq!(bench.believed, BTreeSet::from([tp(2)]));
    bench.act(|assignment, _, actions| assignment.worker_may_start(0, actions));
    assert_eq!(bench.last_was_local, Some(true), "2 was here all the time");
    bench.check();
}

#[test]
fn what_was_lost_while_its_worker_was_at_a_record_is_told_where_that_worker_dies() {
    let mut bench = Bench::running(1);
    bench.lose(&[0]);
    assert!(bench.believed.contains(&tp(0)), "its worker tells it");
    bench.exit(0, true);
    assert!(bench.believed.is_empty());
    bench.check();
}

#[test]
fn s11_a_pause_follows_a_lane_to_another_worker_and_ends_with_the_assignment() {
    let mut bench = Bench::new(Workers::Fixed(1));
    bench.assign(&[0, 1]);
    let both = tps(&[0, 1]);
    bench
        .act(|assignment, _, actions| assignment.set_paused(&both, true, actions))
        .expect("ours");
    bench.resolve_all(0);
    assert_eq!(bench.workers[&0].paused.len(), 2, "handed over paused");
    bench.act(|assignment, _, actions| assignment.scale(Workers::Fixed(2), actions));
    bench.obey_all();
    assert_eq!(bench.workers[&1].paused.len(), 1);
    bench.check();
    let refused = tps(&[0, 5]);
    let answer =
        bench.act(|assignment, _, actions| assignment.set_paused(&refused, false, actions));
    assert_eq!(answer, Err(CommandError::NotAssigned(tp(5))));
    assert!(bench.tracker_of(0).is_paused(), "all or none");

    bench.revoke(&[0, 1]);
    bench.obey_all();
    bench.assign(&[0, 1]);
    bench.resolve_all(0);
    assert!(!bench.tracker_of(0).is_paused());
    bench.check();
}

#[test]
fn the_end_is_reached_when_every_watermark_is_there() {
    let mut bench = Bench::new(Workers::AUTO);
    assert!(bench.assignment.reached_end(), "nothing to do is done");
    bench.assign(&[0]);
    assert!(!bench.assignment.reached_end(), "its end is not known yet");
    let start = StartAt {
        until: Some(11),
        ..at(10)
    };
    bench.resolved(bench.epoch_of(0), start);
    assert!(!bench.assignment.reached_end());
    bench.complete(0);
    assert!(
        !bench.assignment.reached_end(),
        "what nobody has read may not be there: the log may have lost it"
    );
    let now = bench.clock.coarse();
    bench.tracker_of(0).saw_ends(11, 0, now);
    assert!(bench.assignment.reached_end());
    bench.revoke(&[0]);
    assert!(
        !bench.assignment.reached_end(),
        "a revoke is to be answered first"
    );
}

#[test]
fn a_stop_tells_every_worker_and_counts_what_nobody_confirmed() {
    let mut bench = Bench::running(2);
    bench.complete(0);
    bench.complete(0);
    bench.store();
    bench.act(|assignment, _, actions| assignment.stop(actions));
    assert!(bench.workers.values().all(|worker| worker.told_to_stop));
    let stuck = bench.worker_of(1).expect("a worker");
    bench.tracker_of(1).handed_over(10, 0);
    let done = bench.worker_of(0).expect("a worker");
    bench.exit(done, false);
    bench.act(Assignment::abandon_workers);
    bench.act(|assignment, now, actions| assignment.committed(&[(tp(0), 11)], now, actions));
    bench.revoke(&[0, 1]);
    assert_eq!(bench.answers.len(), 1);
    // One completed and not confirmed, one still in the handler.
    assert_eq!(bench.assignment.left_uncommitted(), 2);
    bench.act(|assignment, now, actions| assignment.committed(&[(tp(0), 12)], now, actions));
    assert_eq!(bench.assignment.left_uncommitted(), 1);
    assert_eq!(bench.assignment.completed_records(), 2);
    assert!(bench.workers.contains_key(&stuck));
}

#[test]
fn a_run_that_is_abandoned_during_a_revoke_answers_it() {
    let mut bench = Bench::running(1);
    bench.revoke(&[0]);
    bench.act(|assignment, _, actions| assignment.stop(actions));
    assert!(bench.answers.is_empty());
    bench.act(Assignment::abandon_workers);
    assert_eq!(bench.answers.len(), 1);
}

/// Something that happens to a member.
#[derive(Clone, Debug)]
enum Happening {
    Assign(Vec<i32>),
    Revoke(Vec<i32>),
    Lose(Vec<i32>),
    Resolve {
        which: usize,
        offset: i64,
        commit_first: bool,
    },
    Complete(i32),
    Obey(usize),
    Exit {
        worker: usize,
        replace: bool,
    },
    MayStart,
    Tick(u64),
    Seek(i32, i64),
    Reset(i32),
    /// Commits came down, or to so many offsets beside where they should.
    ReadBack(i64),
    /// The coordinator refused what is stored.
    Refuse,
    /// A commit of long ago was confirmed.
    Confirm(i32, i64),
    Pause(Vec<i32>, bool),
    Scale(Workers),
    Store,
    Commit,
}

const PARTITIONS: i32 = 5;

fn some_partitions() -> impl Strategy<Value = Vec<i32>> {
    let set = proptest::collection::btree_set(0..PARTITIONS, 0..=4);
    set.prop_map(|set| set.into_iter().collect())
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => some_partitions().prop_map(Happening::Assign),
        3 => some_partitions().prop_map(Happening::Revoke),
        1 => some_partitions().prop_map(Happening::Lose),
        6 => (0_usize..8, 0_i64..100, any::<bool>())
            .prop_map(|(which, offset, commit_first)| Happening::Resolve { which, offset, commit_first }),
        6 => (0..PARTITIONS).prop_map(Happening::Complete),
        8 => (0_usize..6).prop_map(Happening::Obey),
        1 => (0_usize..6, any::<bool>()).prop_map(|(worker, replace)| Happening::Exit { worker, replace }),
        1 => Just(Happening::MayStart),
        2 => (0_u64..6_000).prop_map(Happening::Tick),
        1 => (0..PARTITIONS, 0_i64..100).prop_map(|(partition, offset)| Happening::Seek(partition, offset)),
        1 => (0..PARTITIONS).prop_map(Happening::Reset),
        1 => (-1_i64..2).prop_map(Happening::ReadBack),
        1 => Just(Happening::Refuse),
        1 => (0..PARTITIONS, 0_i64..100).prop_map(|(partition, offset)| Happening::Confirm(partition, offset)),
        1 => (some_partitions(), any::<bool>()).prop_map(|(partitions, paused)| Happening::Pause(partitions, paused)),
        1 => prop_oneof![
            (1_usize..5).prop_map(Workers::Fixed),
            (1_usize..6).prop_map(|max| Workers::MatchPartitions { max }),
        ].prop_map(Happening::Scale),
        3 => Just(Happening::Store),
        2 => Just(Happening::Commit),
    ]
}

impl Bench {
    fn happens(&mut self, what: Happening) {
        match what {
            // A group gives what we do not have, and takes what we have.
            Happening::Assign(mut partitions) => {
                partitions.retain(|partition| !self.owned.contains(&tp(*partition)));
                self.assign(&partitions);
            }
            Happening::Revoke(mut partitions) => {
                let ours = self
                    .owned
                    .difference(&self.revoking)
                    .cloned()
                    .collect::<BTreeSet<_>>();
                partitions.retain(|partition| ours.contains(&tp(*partition)));
                self.revoke(&partitions);
            }
            Happening::Lose(mut partitions) => {
                partitions.retain(|partition| self.owned.contains(&tp(*partition)));
                self.lose(&partitions);
            }
            Happening::Resolve {
                which,
                offset,
                commit_first,
            } => {
                if self.resolving.is_empty() {
                    return;
                }
                let asked = self.resolving.remove(which % self.resolving.len());
                let committed = (!commit_first).then_some(offset);
                let start = StartAt {
                    committed,
                    commit_first,
                    ..at(offset)
                };
                self.resolved(asked.epoch, start);
            }
            Happening::Complete(partition) => self.complete(partition),
            Happening::Obey(worker) => self.obey(worker),
            Happening::Exit { worker, replace } => self.exit(worker, replace),
            Happening::MayStart => {
                self.act(|assignment, _, actions| assignment.worker_may_start(0, actions));
            }
            Happening::Tick(millis) => self.tick(Duration::from_millis(millis)),
            Happening::Seek(partition, offset) => {
                let seek = |assignment: &mut Assignment, _, actions: &mut Vec<Action>| {
                    assignment.seek(&tp(partition), offset, actions)
                };
                let ours =
                    self.owned.contains(&tp(partition)) && !self.revoking.contains(&tp(partition));
                assert_eq!(self.act(seek).is_ok(), ours);
            }
            Happening::Reset(partition) => {
                let epoch = self
                    .assignment
                    .lanes
                    .get(&tp(partition))
                    .map(|lane| lane.epoch);
                if let Some(epoch) = epoch {
                    self.reset(epoch);
                }
            }
            Happening::ReadBack(more) => self.read_back(more),
            Happening::Refuse => self.refuse(&self.stored()),
            Happening::Confirm(partition, offset) => self.confirm(partition, offset),
            Happening::Pause(partitions, paused) => {
                let pause = |assignment: &mut Assignment, _, actions: &mut Vec<Action>| {
                    assignment.set_paused(&tps(&partitions), paused, actions)
                };
                let _ = self.act(pause);
            }
            Happening::Scale(workers) => {
                self.act(|assignment, _, actions| assignment.scale(workers, actions));
            }
            Happening::Store => self.store(),
            Happening::Commit => self.commit(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_promise_is_broken_and_everything_comes_to_rest(
        happenings in proptest::collection::vec(happening(), 1..60),
    ) {
        let mut bench = Bench::new(Workers::AUTO);
        for what in happenings {
            bench.happens(what);
            bench.check();
        }
        // Left alone, everything is worked on.
        bench.act(|assignment, _, actions| assignment.scale(Workers::AUTO, actions));
        for _ in 0..4 {
            bench.obey_all();
            bench.resolve_all(5);
            // A commit that did not come down is tried again.
            bench.tick(Duration::from_millis(1));
            bench.tick(REWIND_AGAIN);
            bench.read_back(0);
            bench.store();
            bench.commit();
        }
        bench.check();
        for partition in bench.owned.clone() {
            prop_assert!(bench.worker_of(partition.partition()).is_some(), "{partition} is idle");
        }
        prop_assert!(!bench.assignment.has_unconfirmed());
        prop_assert!(bench.assignment.pending.is_none());
        prop_assert!(bench.assignment.overrunning.is_empty());
        prop_assert_eq!(bench.workers.len(), bench.owned.len());
        // And the end leaves nothing.
        bench.act(|assignment, _, actions| assignment.stop(actions));
        bench.obey_all();
        prop_assert!(bench.workers.is_empty());
        let all: Vec<i32> = bench.owned.iter().map(TopicPartition::partition).collect();
        bench.revoke(&all);
        bench.check();
    }
}
