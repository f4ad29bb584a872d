//! Where to begin reading a partition: the decisions.
//!
//! A wrong start is silent loss or silent repetition, and the ways to get it
//! wrong are answers that were read too generously: an error taken for "no
//! commit", a partition left out of an answer, an offset that an open
//! transaction is about to replace. Here only a clean "none" means none, and
//! everything that passes by itself is asked again until it has passed.
//!
//! Under [`ResetPolicy::Latest`] one more case counts: a partition that was
//! added to a topic which the group reads. Its records were produced before
//! anybody could know of it, and starting at its end would skip them. A
//! partition without a commit starts at the earliest record where the group has
//! commits for other partitions of the topic.
//!
//! A commit may carry the leader epoch of the record before it (the Java client
//! commits it). Then the leader is asked where that epoch ends in its log: a
//! commit beyond that was made over a log that was cut off since (KIP-320).
//!
//! This file is a function of queries, answers and time; [`super`] carries the
//! questions to the brokers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) use crate::config::ResetPolicy;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::ClusterSnapshot;
use crate::kafka::errors::{Class, ErrorCode};
use crate::kafka::messages::{
    CommittedAnswer, EARLIEST, EpochEnd, EpochEndsAnswer, EpochQuestion, LATEST, OffsetAnswer,
    OffsetQuestion, OffsetsAnswer,
};
use crate::record::{AssignmentEpoch, TopicPartition};

/// What decides where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartRule {
    /// The group's commit, else the policy.
    CommittedElse(ResetPolicy),
    /// The range that the partition has, whatever the group has committed: the
    /// oldest record, and the end as well.
    Range,
}

/// Asks where to begin reading a partition.
#[derive(Clone, Debug)]
pub(crate) struct StartQuery {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) from: StartRule,
    /// Whether the answer is to carry the partition's end.
    pub(crate) want_end: bool,
    /// Set by the asker who does not want to know any more.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Where to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) offset: i64,
    /// The group's commit, where it was asked for and there is one.
    pub(crate) committed: Option<i64>,
    /// What was noted beside that, mostly nothing.
    pub(crate) note: Option<Arc<str>>,
    /// Up to where the log agrees with the one that the commit was made over,
    /// where that is less than what is committed; -1 where the leader does not
    /// know.
    pub(crate) truncated_at: Option<i64>,
    /// Last stable offset under `read_committed`, else the high watermark;
    /// where it was wanted.
    pub(crate) end_offset: Option<i64>,
    /// True where the policy decided.
    pub(crate) is_reset: bool,
}

/// The answer to a [`StartQuery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartAnswer {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: AssignmentEpoch,
    /// By which it was looked for.
    pub(crate) from: StartRule,
    pub(crate) result: Result<Start, LookupError>,
}

/// What a permission is missing on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Resource {
    Topic(Arc<str>),
    Group(Arc<str>),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic {name}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// Why there is no start position, and asking again would not bring one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("not authorized for {resource}: {}", error.remedy)]
    NotAuthorized {
        resource: Resource,
        error: ErrorCode,
    },
    #[error("the cluster refuses to say where to begin: {error}")]
    Refused { error: ErrorCode },
}

/// Why there is no start position yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// The broker to ask could not be asked.
    Unreachable(String),
    /// Kafka says that it cannot tell now.
    Kafka(ErrorCode),
    NoLeader,
    UnknownTopic,
    /// The answer leaves the partition out, or an offset in it is none.
    Unanswered,
}

impl Problem {
    /// The same trouble as before, though perhaps in other words.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unreachable(_), Self::Unreachable(_)) => true,
            _ => self == other,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => f.write_str(error),
            Self::Kafka(error) => error.fmt(f),
            Self::NoLeader => f.write_str("the partition has no leader"),
            Self::UnknownTopic => f.write_str("the cluster does not know the topic"),
            Self::Unanswered => f.write_str("the broker's answer leaves it out"),
        }
    }
}

/// What is left to find out for one query.
#[derive(Debug)]
struct Pending {
    query: StartQuery,
    commit: Commit,
    /// What the commit has beside its offset.
    note: Option<Arc<str>>,
    /// The epoch of the commit, until the leader has told where that ends.
    unchecked: Option<i32>,
    truncated_at: Option<i64>,
    /// Offsets that are known, by what was asked; -1 where there is none.
    known: Vec<(i64, i64)>,
    failures: u32,
    not_before: Option<Instant>,
    problem: Option<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commit {
    Unknown,
    At(i64),
    /// The group has none; `siblings` where it has for other partitions.
    None {
        siblings: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    AskCommit,
    /// Where this epoch ends.
    AskEpoch(i32),
    AskOffset(i64),
    Done(Start),
}

impl Pending {
    fn new(query: StartQuery) -> Self {
        let commit = match query.from {
            StartRule::CommittedElse(_) => Commit::Unknown,
            StartRule::Range => Commit::None { siblings: false },
        };
        Self {
            query,
            commit,
            note: None,
            unchecked: None,
            truncated_at: None,
            known: Vec::new(),
            failures: 0,
            not_before: None,
            problem: None,
        }
    }

    fn known(&self, asked: i64) -> Option<i64> {
        let found = self.known.iter().find(|(key, _)| *key == asked);
        found.map(|(_, offset)| *offset)
    }

    fn next_step(&self) -> Step {
        let (policy, want_end) = match self.query.from {
            StartRule::CommittedElse(policy) => (policy, self.query.want_end),
            StartRule::Range => (ResetPolicy::Earliest, true),
        };
        if let Some(epoch) = self.unchecked {
            return Step::AskEpoch(epoch);
        }
        let (offset, committed) = match (self.commit, policy) {
            (Commit::Unknown, _) => return Step::AskCommit,
            (Commit::At(offset), _) => (Some(offset), Some(offset)),
            (Commit::None { siblings: true }, ResetPolicy::Latest)
            | (Commit::None { .. }, ResetPolicy::Earliest) => match self.known(EARLIEST) {
                None => return Step::AskOffset(EARLIEST),
                found => (found, None),
            },
            (Commit::None { .. }, ResetPolicy::Latest) => (self.known(LATEST), None),
            (Commit::None { .. }, ResetPolicy::Timestamp(time)) => match self.known(time) {
                None => return Step::AskOffset(time),
                // No record of that time or later: the end.
                Some(-1) => (self.known(LATEST), None),
                found => (found, None),
            },
        };
        let end = self.known(LATEST);
        match offset {
            Some(offset) if end.is_some() || !want_end => Step::Done(Start {
                offset,
                committed,
                note: self.note.clone().filter(|_| committed.is_some()),
                truncated_at: self.truncated_at,
                end_offset: end.filter(|_| want_end),
                is_reset: committed.is_none(),
            }),
            _ => Step::AskOffset(LATEST),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|moment| moment <= now)
    }
}

/// A problem passes, or it is the answer.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    Passing(Problem),
    Final(LookupError),
}

/// What an error code means for a question about `topic` or `group`.
pub(super) fn trouble(error: ErrorCode, topic: Option<&Arc<str>>, group: Option<&str>) -> Trouble {
    const GROUP_AUTHORIZATION_FAILED: i16 = 30;
    if error.class.passes() {
        return Trouble::Passing(Problem::Kafka(error));
    }
    let resource = match (error.class, topic, group) {
        (Class::Authorization, _, Some(group)) if error.code == GROUP_AUTHORIZATION_FAILED => {
            Some(Resource::Group(Arc::from(group)))
        }
        (Class::Authorization, Some(topic), _) => Some(Resource::Topic(Arc::clone(topic))),
        _ => None,
    };
    Trouble::Final(match resource {
        Some(resource) => LookupError::NotAuthorized { resource, error },
        None => LookupError::Refused { error },
    })
}

/// What has to be done about answers, beside waiting.
#[derive(Debug, Default)]
pub(super) struct Aftermath {
    pub(super) answers: Vec<StartAnswer>,
    /// Problems that were not there the last time.
    pub(super) news: Vec<(TopicPartition, Problem)>,
    /// Leaders are not where we thought.
    pub(super) refresh: bool,
    /// The coordinator is not where we thought.
    pub(super) forget_coordinator: bool,
}

/// The queries that have no answer yet. There is one per partition at most: a
/// later assignment of the same partition replaces the earlier one's.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: BTreeMap<TopicPartition, Pending>,
}

const RETRY: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_secs(2),
};

impl Queue {
    pub(super) fn add(&mut self, query: StartQuery) {
        match self.pending.get(&query.partition) {
            Some(known) if known.query.epoch > query.epoch => {}
            _ => {
                self.pending
                    .insert(query.partition.clone(), Pending::new(query));
            }
        }
    }

    pub(super) fn drop_cancelled(&mut self) {
        self.pending
            .retain(|_, pending| !pending.query.cancelled.load(Ordering::Acquire));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn topics(&self) -> impl Iterator<Item = Arc<str>> {
        self.pending.keys().map(TopicPartition::shared_topic)
    }

    /// When the next question is due; `None` where nothing waits.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.pending
            .values()
            .map(|pending| pending.not_before.unwrap_or(now))
            .min()
    }

    /// The cluster looks different: what failed may work now.
    pub(super) fn retry_now(&mut self) {
        for pending in self.pending.values_mut() {
            pending.not_before = None;
        }
    }

    /// Partitions whose commits are to be asked for now.
    pub(super) fn due_commits(&self, now: Instant) -> Vec<TopicPartition> {
        self.pending
            .iter()
            .filter(|(_, pending)| pending.is_due(now) && pending.next_step() == Step::AskCommit)
            .map(|(partition, _)| partition.clone())
            .collect()
    }

    /// Offsets that are to be asked for now, by the leader to ask. Queries that
    /// cannot be asked fail here.
    pub(super) fn due_offsets(
        &mut self,
        now: Instant,
        snapshot: &ClusterSnapshot,
        after: &mut Aftermath,
    ) -> BTreeMap<i32, Vec<(TopicPartition, OffsetQuestion)>> {
        self.due_at_leaders(now, snapshot, after, |step, partition, leader_epoch| {
            let Step::AskOffset(timestamp) = step else {
                return None;
            };
            Some(OffsetQuestion {
                partition,
                leader_epoch,
                timestamp,
            })
        })
    }

    /// Epochs whose ends are to be asked for now, by the leader to ask. Queries
    /// that cannot be asked fail here.
    pub(super) fn due_epochs(
        &mut self,
        now: Instant,
        snapshot: &ClusterSnapshot,
        after: &mut Aftermath,
    ) -> BTreeMap<i32, Vec<(TopicPartition, EpochQuestion)>> {
        self.due_at_leaders(now, snapshot, after, |step, partition, current_epoch| {
            let Step::AskEpoch(epoch) = step else {
                return None;
            };
            Some(EpochQuestion {
                partition,
                current_epoch,
                epoch,
            })
        })
    }

    /// What is to be asked of leaders now; `question` makes it of the step, the
    /// partition's number and the leader's epoch.
    fn due_at_leaders<Q>(
        &mut self,
        now: Instant,
        snapshot: &ClusterSnapshot,
        after: &mut Aftermath,
        question: impl Fn(Step, i32, i32) -> Option<Q>,
    ) -> BTreeMap<i32, Vec<(TopicPartition, Q)>> {
        let mut by_leader: BTreeMap<i32, Vec<(TopicPartition, Q)>> = BTreeMap::new();
        let mut unasked = Vec::new();
        for (partition, pending) in &self.pending {
            if !pending.is_due(now) {
                continue;
            }
            let leader = snapshot.leader(partition.topic(), partition.partition());
            let epoch = leader.map_or(-1, |leader| leader.epoch);
            let asked = question(pending.next_step(), partition.partition(), epoch);
            match (asked, leader) {
                (Some(asked), Some(leader)) => by_leader
                    .entry(leader.id)
                    .or_default()
                    .push((partition.clone(), asked)),
                (Some(_), None) => unasked.push(partition.clone()),
                (None, _) => {}
            }
        }
        for partition in unasked {
            let trouble = without_leader(&partition, snapshot);
            after.refresh = true;
            self.fail(&partition, trouble, now, after);
        }
        by_leader
    }

    /// Takes in what the coordinator answered about `asked`.
    pub(super) fn committed(
        &mut self,
        asked: &[TopicPartition],
        answer: &CommittedAnswer,
        group: &str,
        now: Instant,
        after: &mut Aftermath,
    ) {
        if let Some(error) = ErrorCode::from_code(answer.error) {
            let found = trouble(error, None, Some(group));
            after.forget_coordinator |= error.class == Class::FindCoordinator;
            for partition in asked {
                self.fail(partition, found.clone(), now, after);
            }
            return;
        }
        for partition in asked {
            let Some(pending) = self.pending.get_mut(partition) else {
                continue;
            };
            match commit_of(partition, pending.query.from, answer) {
                Ok(told) => {
                    pending.commit = told.commit;
                    pending.note = told.note;
                    pending.unchecked = told.epoch;
                    pending.failures = 0;
                }
                Err(found) => {
                    let found = match found {
                        Ok(error) => {
                            after.forget_coordinator |= error.class == Class::FindCoordinator;
                            after.refresh |= error.class == Class::RefreshMetadata;
                            trouble(error, Some(&partition.shared_topic()), Some(group))
                        }
                        Err(problem) => Trouble::Passing(problem),
                    };
                    self.fail(partition, found, now, after);
                }
            }
        }
    }

    /// Without a group there are no commits.
    pub(super) fn without_group(&mut self, asked: &[TopicPartition]) {
        for partition in asked {
            if let Some(pending) = self.pending.get_mut(partition) {
                pending.commit = Commit::None { siblings: false };
            }
        }
    }

    /// The leader cannot say where epochs end: commits are taken as they are.
    pub(super) fn without_epochs(&mut self, asked: &[(TopicPartition, EpochQuestion)]) {
        for (partition, _) in asked {
            if let Some(pending) = self.pending.get_mut(partition) {
                pending.unchecked = None;
            }
        }
    }

    /// Takes in what a leader answered about the epochs in `asked`.
    pub(super) fn epoch_ends(
        &mut self,
        asked: &[(TopicPartition, EpochQuestion)],
        answer: &EpochEndsAnswer,
        now: Instant,
        after: &mut Aftermath,
    ) {
        let answered: BTreeMap<(&str, i32), EpochEnd> = answer
            .topics
            .iter()
            .flat_map(|topic| {
                let name = &*topic.name;
                let partitions = topic.partitions.iter();
                partitions.map(move |partition| ((name, partition.partition), *partition))
            })
            .collect();
        for (partition, _) in asked {
            let found = answered.get(&(partition.topic(), partition.partition()));
            let trouble = match found.map(|found| (found, ErrorCode::from_code(found.error))) {
                Some((_, Some(error))) => {
                    after.refresh |= error.class == Class::RefreshMetadata;
                    trouble(error, Some(&partition.shared_topic()), None)
                }
                Some((found, None)) => {
                    if let Some(pending) = self.pending.get_mut(partition) {
                        pending.unchecked = None;
                        pending.failures = 0;
                        if let Commit::At(offset) = pending.commit
                            && found.end_offset < offset
                        {
                            pending.truncated_at = Some(found.end_offset.max(-1));
                        }
                    }
                    continue;
                }
                None => Trouble::Passing(Problem::Unanswered),
            };
            self.fail(partition, trouble, now, after);
        }
    }

    /// Takes in what a leader answered about `asked`.
    pub(super) fn offsets(
        &mut self,
        asked: &[(TopicPartition, OffsetQuestion)],
        answer: &OffsetsAnswer,
        now: Instant,
        after: &mut Aftermath,
    ) {
        let answered: BTreeMap<(&str, i32), OffsetAnswer> = answer
            .topics
            .iter()
            .flat_map(|topic| {
                let name = &*topic.name;
                let partitions = topic.partitions.iter();
                partitions.map(move |partition| ((name, partition.partition), *partition))
            })
            .collect();
        for (partition, question) in asked {
            let found = answered.get(&(partition.topic(), partition.partition()));
            let error = found.and_then(|found| ErrorCode::from_code(found.error));
            let special = question.timestamp < 0;
            let trouble = match (found, error) {
                (_, Some(error)) => {
                    after.refresh |= error.class == Class::RefreshMetadata;
                    trouble(error, Some(&partition.shared_topic()), None)
                }
                (Some(found), None) if found.offset >= 0 || (!special && found.offset == -1) => {
                    if let Some(pending) = self.pending.get_mut(partition) {
                        pending.known.push((question.timestamp, found.offset));
                        pending.failures = 0;
                    }
                    continue;
                }
                _ => Trouble::Passing(Problem::Unanswered),
            };
            self.fail(partition, trouble, now, after);
        }
    }

    /// A question about a partition failed.
    pub(super) fn fail(
        &mut self,
        partition: &TopicPartition,
        trouble: Trouble,
        now: Instant,
        after: &mut Aftermath,
    ) {
        let Some(pending) = self.pending.get_mut(partition) else {
            return;
        };
        match trouble {
            Trouble::Passing(problem) => {
                pending.failures = pending.failures.saturating_add(1);
                pending.not_before = Some(now + RETRY.random_delay(pending.failures));
                let before = pending.problem.replace(problem.clone());
                if !before.is_some_and(|before| before.is_like(&problem)) {
                    after.news.push((partition.clone(), problem));
                }
            }
            Trouble::Final(error) => {
                after.answers.push(StartAnswer {
                    partition: partition.clone(),
                    epoch: pending.query.epoch,
                    from: pending.query.from,
                    result: Err(error),
                });
                self.pending.remove(partition);
            }
        }
    }

    /// Takes out the queries that are answered.
    pub(super) fn take_answers(&mut self) -> Vec<StartAnswer> {
        let mut answers = Vec::new();
        self.pending.retain(|partition, pending| {
            let Step::Done(start) = pending.next_step() else {
                return true;
            };
            answers.push(StartAnswer {
                partition: partition.clone(),
                epoch: pending.query.epoch,
                from: pending.query.from,
                result: Ok(start),
            });
            false
        });
        answers
    }
}

/// Why there is nobody to ask about a partition.
pub(super) fn without_leader(partition: &TopicPartition, snapshot: &ClusterSnapshot) -> Trouble {
    let Some(topic) = snapshot.topics.get(partition.topic()) else {
        return Trouble::Passing(Problem::UnknownTopic);
    };
    if let Some(error) = ErrorCode::from_code(topic.error) {
        return trouble(error, Some(&partition.shared_topic()), None);
    }
    let number = usize::try_from(partition.partition()).unwrap_or(usize::MAX);
    if number < topic.partitions.len() {
        Trouble::Passing(Problem::NoLeader)
    } else {
        Trouble::Passing(Problem::UnknownTopic)
    }
}

/// A commit, with the leader epoch and the note that it carries.
struct Told {
    commit: Commit,
    epoch: Option<i32>,
    note: Option<Arc<str>>,
}

impl Told {
    fn none(siblings: bool) -> Self {
        Self {
            commit: Commit::None { siblings },
            epoch: None,
            note: None,
        }
    }
}

/// What an answer says of one partition's commit, else an error of Kafka's or a
/// problem.
fn commit_of(
    partition: &TopicPartition,
    from: StartRule,
    answer: &CommittedAnswer,
) -> Result<Told, Result<ErrorCode, Problem>> {
    let topic = answer
        .topics
        .iter()
        .find(|topic| &*topic.name == partition.topic())
        .ok_or(Err(Problem::Unanswered))?;
    let (own, others): (Vec<_>, Vec<_>) = topic
        .partitions
        .iter()
        .partition(|found| found.partition == partition.partition());
    let own = own.first().ok_or(Err(Problem::Unanswered))?;
    if let Some(error) = ErrorCode::from_code(own.error) {
        return Err(Ok(error));
    }
    match own.offset {
        offset if offset >= 0 => {
            let epoch = Some(own.leader_epoch).filter(|&epoch| epoch >= 0);
            return Ok(Told {
                commit: Commit::At(offset),
                epoch,
                note: own.metadata.clone(),
            });
        }
        -1 => {}
        _ => return Err(Err(Problem::Unanswered)),
    }
    if from != StartRule::CommittedElse(ResetPolicy::Latest) {
        return Ok(Told::none(false));
    }
    if others
        .iter()
        .any(|other| other.error == 0 && other.offset >= 0)
    {
        return Ok(Told::none(true));
    }
    // Whether the group has another commit decides here, so an error in its
    // place is not a "no" either.
    match others
        .iter()
        .find_map(|other| ErrorCode::from_code(other.error))
    {
        Some(error) => Err(Ok(error)),
        None => Ok(Told::none(false)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::clock::Clock;
    use crate::kafka::cluster::{Leader, PartitionState, TopicState};
    use crate::kafka::messages::{
        CommittedPartition, CommittedTopic, EpochEndsTopic, OffsetsTopic,
    };

    const GROUP: &str = "readers";

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("orders", number)
    }

    fn query(number: i32, epoch: u64, from: StartRule) -> StartQuery {
        StartQuery {
            partition: partition(number),
            epoch: AssignmentEpoch(epoch),
            from,
            want_end: false,
            cancelled: Arc::default(),
        }
    }

    /// Topic `orders` with partitions of the given leaders; -1 for none.
    fn snapshot(leaders: &[i32]) -> ClusterSnapshot {
        let state = TopicState {
            partitions: leaders
                .iter()
                .map(|&id| PartitionState {
                    leader: (id >= 0).then_some(Leader { id, epoch: 5 }),
                    error: 0,
                })
                .collect(),
            ..TopicState::default()
        };
        ClusterSnapshot {
            generation: 1,
            topics: HashMap::from([(Arc::from("orders"), state)]),
            ..ClusterSnapshot::default()
        }
    }

    /// The coordinator's answer: number, error and offset of each partition.
    fn commits(error: i16, partitions: &[(i32, i16, i64)]) -> CommittedAnswer {
        CommittedAnswer {
            error,
            topics: vec![CommittedTopic {
                name: Arc::from("orders"),
                partitions: partitions
                    .iter()
                    .map(|&(partition, error, offset)| CommittedPartition {
                        metadata: None,
                        partition,
                        error,
                        offset,
                        leader_epoch: -1,
                    })
                    .collect(),
            }],
        }
    }

    fn offsets(partitions: &[(i32, i16, i64)]) -> OffsetsAnswer {
        OffsetsAnswer {
            topics: vec![OffsetsTopic {
                name: Arc::from("orders"),
                partitions: partitions
                    .iter()
                    .map(|&(partition, error, offset)| OffsetAnswer {
                        partition,
                        error,
                        offset,
                    })
                    .collect(),
            }],
        }
    }

    /// A queue on a clock that stands still; back-offs are stepped over.
    struct Rig {
        queue: Queue,
        now: Instant,
        after: Aftermath,
    }

    impl Rig {
        fn new(queries: impl IntoIterator<Item = StartQuery>) -> Self {
            let mut queue = Queue::default();
            for query in queries {
                queue.add(query);
            }
            Self {
                queue,
                now: Clock::manual().now(),
                after: Aftermath::default(),
            }
        }

        /// Later than every back-off.
        fn later(&mut self) {
            self.now += Duration::from_mins(1);
        }

        fn commits(&mut self, answer: &CommittedAnswer) {
            let due = self.queue.due_commits(self.now);
            assert!(!due.is_empty(), "no commit is asked for");
            self.queue
                .committed(&due, answer, GROUP, self.now, &mut self.after);
        }

        /// What is asked of the leaders: number and timestamp.
        fn asked(&mut self) -> Vec<(i32, i64)> {
            self.queue
                .due_offsets(self.now, &snapshot(&[1, 1, 1]), &mut self.after)
                .into_values()
                .flatten()
                .map(|(_, question)| (question.partition, question.timestamp))
                .collect()
        }

        fn offsets(&mut self, answer: &OffsetsAnswer) {
            let due = self
                .queue
                .due_offsets(self.now, &snapshot(&[1, 1, 1]), &mut self.after);
            for asked in due.values() {
                self.queue.offsets(asked, answer, self.now, &mut self.after);
            }
        }

        fn answers(&mut self) -> Vec<StartAnswer> {
            let mut answers = std::mem::take(&mut self.after.answers);
            answers.extend(self.queue.take_answers());
            answers
        }

        fn start(&mut self) -> Start {
            match &self.answers()[..] {
                [
                    StartAnswer {
                        result: Ok(start), ..
                    },
                ] => start.clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn policy(policy: ResetPolicy) -> StartRule {
        StartRule::CommittedElse(policy)
    }

    #[test]
    fn a_commit_is_the_start_whatever_the_policy_and_offset_zero_is_a_commit() {
        for reset in [
            ResetPolicy::Earliest,
            ResetPolicy::Latest,
            ResetPolicy::Timestamp(7),
        ] {
            for offset in [0, 42] {
                let mut rig = Rig::new([query(0, 1, policy(reset))]);
                rig.commits(&commits(0, &[(0, 0, offset)]));
                assert_eq!(
                    rig.start(),
                    Start {
                        note: None,
                        offset,
                        committed: Some(offset),
                        truncated_at: None,
                        end_offset: None,
                        is_reset: false
                    }
                );
            }
        }
    }

    #[test]
    fn no_error_and_no_gap_in_an_answer_is_taken_for_no_commit() {
        let mut doubtful = vec![
            commits(0, &[]),
            commits(0, &[(1, 0, 5)]),
            commits(0, &[(0, 0, -2)]),
            CommittedAnswer {
                error: 0,
                topics: Vec::new(),
            },
        ];
        for code in [-1, 3, 7, 14, 15, 16, 88] {
            doubtful.push(commits(code, &[(0, code, -1)]));
            doubtful.push(commits(code, &[]));
            doubtful.push(commits(0, &[(0, code, -1)]));
        }
        for answer in doubtful {
            let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Earliest))]);
            rig.commits(&answer);
            assert!(rig.answers().is_empty(), "{answer:?}");
            assert!(rig.queue.due_commits(rig.now).is_empty(), "no back-off");
            rig.later();
            assert!(rig.asked().is_empty(), "{answer:?} counts as no commit");
            rig.commits(&commits(0, &[(0, 0, 9)]));
            assert_eq!(rig.start().offset, 9);
        }
    }

    #[test]
    fn a_clean_none_leads_to_the_policy() {
        for (reset, asks) in [
            (ResetPolicy::Earliest, EARLIEST),
            (ResetPolicy::Latest, LATEST),
            (ResetPolicy::Timestamp(1234), 1234),
        ] {
            let mut rig = Rig::new([query(0, 1, policy(reset))]);
            rig.commits(&commits(0, &[(0, 0, -1), (1, 0, -1)]));
            assert_eq!(rig.asked(), [(0, asks)]);
            rig.offsets(&offsets(&[(0, 0, 30)]));
            let start = rig.start();
            assert_eq!((start.offset, start.committed), (30, None));
            assert!(start.is_reset);
        }
    }

    #[test]
    fn under_latest_a_partition_that_was_added_to_a_topic_in_use_starts_at_its_beginning() {
        let mut rig = Rig::new([query(2, 1, policy(ResetPolicy::Latest))]);
        rig.commits(&commits(0, &[(0, 0, 100), (1, 0, -1), (2, 0, -1)]));
        assert_eq!(rig.asked(), [(2, EARLIEST)]);
        rig.offsets(&offsets(&[(2, 0, 0)]));
        assert_eq!(rig.start().offset, 0);
    }

    #[test]
    fn under_latest_an_error_in_place_of_a_siblings_commit_is_waited_out() {
        let mut rig = Rig::new([query(1, 1, policy(ResetPolicy::Latest))]);
        rig.commits(&commits(0, &[(0, 88, -1), (1, 0, -1)]));
        assert!(rig.asked().is_empty());
        rig.later();
        rig.commits(&commits(0, &[(0, 0, -1), (1, 0, -1)]));
        assert_eq!(rig.asked(), [(1, LATEST)]);
        // Another policy does not depend on the siblings.
        let mut rig = Rig::new([query(1, 1, policy(ResetPolicy::Earliest))]);
        rig.commits(&commits(0, &[(0, 88, -1), (1, 0, -1)]));
        assert_eq!(rig.asked(), [(1, EARLIEST)]);
    }

    #[test]
    fn a_time_after_the_last_record_means_the_end() {
        let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Timestamp(99)))]);
        rig.commits(&commits(0, &[(0, 0, -1)]));
        assert_eq!(rig.asked(), [(0, 99)]);
        rig.offsets(&offsets(&[(0, 0, -1)]));
        assert_eq!(rig.asked(), [(0, LATEST)]);
        rig.offsets(&offsets(&[(0, 0, 70)]));
        assert_eq!(rig.start().offset, 70);
    }

    #[test]
    fn the_end_comes_along_where_it_is_wanted_and_is_asked_for_once() {
        let wanting = |from| StartQuery {
            want_end: true,
            ..query(0, 1, from)
        };
        let mut rig = Rig::new([wanting(policy(ResetPolicy::Earliest))]);
        rig.commits(&commits(0, &[(0, 0, 12)]));
        rig.offsets(&offsets(&[(0, 0, 80)]));
        assert_eq!(
            rig.start(),
            Start {
                note: None,
                offset: 12,
                committed: Some(12),
                truncated_at: None,
                end_offset: Some(80),
                is_reset: false
            }
        );
        let mut rig = Rig::new([wanting(policy(ResetPolicy::Latest))]);
        rig.commits(&commits(0, &[(0, 0, -1)]));
        rig.offsets(&offsets(&[(0, 0, 80)]));
        let start = rig.start();
        assert_eq!((start.offset, start.end_offset), (80, Some(80)));
    }

    /// A commit of 42 in epoch 3 for partition 0, and what its leader is asked.
    fn committed_with_an_epoch() -> (Rig, Vec<(TopicPartition, EpochQuestion)>) {
        let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Latest))]);
        let mut answer = commits(0, &[(0, 0, 42)]);
        answer.topics[0].partitions[0].leader_epoch = 3;
        rig.commits(&answer);
        assert!(rig.answers().is_empty());
        let due = rig
            .queue
            .due_epochs(rig.now, &snapshot(&[1, 1, 1]), &mut rig.after);
        let asked = due.into_values().flatten().collect();
        (rig, asked)
    }

    fn epoch_ends(error: i16, epoch: i32, end_offset: i64) -> EpochEndsAnswer {
        EpochEndsAnswer {
            topics: vec![EpochEndsTopic {
                name: Arc::from("orders"),
                partitions: vec![EpochEnd {
                    partition: 0,
                    error,
                    epoch,
                    end_offset,
                }],
            }],
        }
    }

    #[test]
    fn a_commit_with_an_epoch_counts_up_to_where_that_ends_in_the_leaders_log() {
        for (answer, truncated_at) in [
            (epoch_ends(0, 3, 42), None),
            (epoch_ends(0, 3, 50), None),
            (epoch_ends(0, 3, 30), Some(30)),
            (epoch_ends(0, 2, 30), Some(30)),
            (epoch_ends(0, -1, -1), Some(-1)),
        ] {
            let (mut rig, asked) = committed_with_an_epoch();
            assert_eq!(asked[0].1.epoch, 3);
            rig.queue
                .epoch_ends(&asked, &answer, rig.now, &mut rig.after);
            let start = rig.start();
            assert_eq!((start.offset, start.committed), (42, Some(42)));
            assert_eq!(start.truncated_at, truncated_at, "{answer:?}");
        }
    }

    #[test]
    fn a_leader_that_does_not_say_where_an_epoch_ends_is_asked_again_or_cannot() {
        let nothing = EpochEndsAnswer { topics: Vec::new() };
        for (answer, refreshes) in [
            (epoch_ends(6, -1, -1), true),
            (epoch_ends(74, -1, -1), true),
            (nothing, false),
        ] {
            let (mut rig, asked) = committed_with_an_epoch();
            rig.queue
                .epoch_ends(&asked, &answer, rig.now, &mut rig.after);
            assert!(rig.answers().is_empty(), "{answer:?}");
            assert_eq!(rig.after.refresh, refreshes, "{answer:?}");
        }
        let (mut rig, asked) = committed_with_an_epoch();
        rig.queue.without_epochs(&asked);
        let start = rig.start();
        assert_eq!((start.offset, start.truncated_at), (42, None));
    }

    #[test]
    fn the_range_of_a_partition_is_asked_for_whatever_is_committed() {
        let mut rig = Rig::new([query(0, 1, StartRule::Range)]);
        assert!(rig.queue.due_commits(rig.now).is_empty());
        assert_eq!(rig.asked(), [(0, EARLIEST)]);
        rig.offsets(&offsets(&[(0, 0, 30)]));
        assert_eq!(rig.asked(), [(0, LATEST)]);
        rig.offsets(&offsets(&[(0, 0, 80)]));
        let start = rig.start();
        assert_eq!((start.offset, start.end_offset), (30, Some(80)));
        assert_eq!(start.committed, None);
    }

    #[test]
    fn an_offset_that_is_none_or_an_error_is_asked_for_again() {
        for (answer, refreshes) in [
            (offsets(&[(0, 0, -1)]), false),
            (offsets(&[(1, 0, 5)]), false),
            (offsets(&[(0, 6, -1)]), true),
            (offsets(&[(0, 74, -1)]), true),
            (offsets(&[(0, 78, -1)]), false),
        ] {
            let mut rig = Rig::new([query(0, 1, StartRule::Range)]);
            rig.offsets(&answer);
            assert!(rig.answers().is_empty(), "{answer:?}");
            assert_eq!(rig.after.refresh, refreshes, "{answer:?}");
            assert!(rig.asked().is_empty(), "no back-off");
            rig.later();
            assert_eq!(rig.asked(), [(0, EARLIEST)]);
        }
    }

    #[test]
    fn a_missing_permission_is_the_answer_and_names_what_it_is_missing_on() {
        let mut rig = Rig::new([
            query(0, 1, policy(ResetPolicy::Earliest)),
            query(1, 2, policy(ResetPolicy::Earliest)),
        ]);
        rig.commits(&commits(0, &[(0, 29, -1), (1, 0, 3)]));
        let answers = rig.answers();
        assert_eq!(answers.len(), 2);
        assert!(
            matches!(
                &answers[0].result,
                Err(LookupError::NotAuthorized { resource: Resource::Topic(topic), .. })
                    if &**topic == "orders"
            ),
            "{answers:?}"
        );
        assert!(answers[1].result.is_ok());

        let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Earliest))]);
        rig.commits(&commits(30, &[(0, 30, -1)]));
        let answers = rig.answers();
        let Err(error) = &answers[0].result else {
            panic!("{answers:?}")
        };
        assert!(error.to_string().contains("group readers"), "{error}");

        let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Timestamp(5)))]);
        rig.commits(&commits(0, &[(0, 0, -1)]));
        rig.offsets(&offsets(&[(0, 43, -1)]));
        assert!(matches!(
            rig.answers()[0].result,
            Err(LookupError::Refused { .. })
        ));
        assert!(rig.queue.is_empty());
    }

    #[test]
    fn a_later_assignment_replaces_the_question_of_an_earlier_one() {
        let mut rig = Rig::new([
            query(0, 5, policy(ResetPolicy::Earliest)),
            query(0, 4, policy(ResetPolicy::Earliest)),
        ]);
        rig.commits(&commits(0, &[(0, 0, 1)]));
        assert_eq!(rig.answers()[0].epoch, AssignmentEpoch(5));

        let mut rig = Rig::new([query(0, 5, policy(ResetPolicy::Earliest))]);
        let due = rig.queue.due_commits(rig.now);
        rig.queue.add(query(0, 6, StartRule::Range));
        assert!(rig.queue.due_commits(rig.now).is_empty());
        drop(due);
        rig.offsets(&offsets(&[(0, 0, 2)]));
        rig.offsets(&offsets(&[(0, 0, 9)]));
        assert_eq!(rig.answers()[0].epoch, AssignmentEpoch(6));
    }

    #[test]
    fn a_cancelled_question_is_dropped() {
        let asked = query(0, 1, policy(ResetPolicy::Earliest));
        let cancelled = Arc::clone(&asked.cancelled);
        let mut rig = Rig::new([asked]);
        cancelled.store(true, Ordering::Release);
        rig.queue.drop_cancelled();
        assert!(rig.queue.is_empty());
    }

    #[test]
    fn partitions_are_asked_for_of_their_leaders_and_wait_where_there_is_none() {
        let mut rig = Rig::new((0..4).map(|number| query(number, 1, StartRule::Range)));
        let asked = rig
            .queue
            .due_offsets(rig.now, &snapshot(&[1, 2, -1]), &mut rig.after);
        assert_eq!(asked.keys().collect::<Vec<_>>(), [&1, &2]);
        assert_eq!(asked[&2][0].1.leader_epoch, 5);
        assert!(rig.after.refresh);
        let problems: Vec<&Problem> = rig.after.news.iter().map(|(_, problem)| problem).collect();
        assert_eq!(problems, [&Problem::NoLeader, &Problem::UnknownTopic]);
    }

    #[test]
    fn a_problem_is_told_when_it_begins_and_when_it_changes() {
        let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Earliest))]);
        let mut told = Vec::new();
        for code in [14, 14, 16, 16, 14] {
            rig.commits(&commits(code, &[]));
            rig.later();
            told.push(std::mem::take(&mut rig.after.news).len());
        }
        assert_eq!(told, [1, 0, 1, 0, 1]);
        assert!(rig.after.forget_coordinator);
    }

    #[test]
    fn what_failed_is_tried_at_once_when_the_cluster_has_changed() {
        let mut rig = Rig::new([query(0, 1, policy(ResetPolicy::Earliest))]);
        rig.commits(&commits(3, &[]));
        assert!(rig.queue.due_commits(rig.now).is_empty());
        assert!(rig.queue.next_due(rig.now) > Some(rig.now));
        rig.queue.retry_now();
        assert_eq!(rig.queue.due_commits(rig.now).len(), 1);
    }
}
