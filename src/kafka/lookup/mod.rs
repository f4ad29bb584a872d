//! The thread that asks the cluster questions, so that no other has to wait.
//!
//! The member must answer rebalances and the workers must handle records;
//! neither may block on a broker. What they want to know of the cluster, they
//! leave here: fresh metadata (through [`Cluster::request_refresh`]) and where
//! to begin reading partitions ([`Lookup::resolve`]). One thread collects the
//! questions, asks them in batches, follows leaders and coordinators that move,
//! repeats what fails for a passing reason, and hands the answers to closures.
//!
//! What to ask and what an answer means is decided in [`start`] and [`topics`],
//! without threads or sockets. This file carries it out.
//!
//! Nothing queues without a bound: there is one query per partition and one
//! entry per topic, newer ones replacing older ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::ConnectionSettings;
use super::cluster::Cluster;
use super::connection::{ConnectionError, StopFlag};
use super::frame::WireError;
use super::messages::{
    CommittedRequest, EpochEndsRequest, EpochQuestion, GroupTopic, OffsetQuestion, OffsetsRequest,
};
use crate::clock::Clock;
use crate::record::TopicPartition;

#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "asked by the commands about groups and by the monitor, which come next"
    )
)]
pub(crate) mod admin;
mod contact;
mod ends;
mod session;
mod start;
mod topics;

pub(crate) use contact::{ContactError, first_contact};
pub(crate) use ends::KafkaEnds;
#[cfg(test)]
use start::{LookupError, ResetPolicy, Resource, Start};
pub(crate) use start::{StartAnswer, StartQuery, StartRule};
pub(crate) use topics::TopicEvent;

use session::{AskError, Session};
use start::{Aftermath, Problem, Queue, Trouble};
use topics::Pacer;

/// Where answers go. Called on the lookup's thread, so they only pass on.
pub(crate) struct Sinks {
    /// Takes every answer to a query.
    pub(crate) starts: Box<dyn FnMut(StartAnswer) + Send>,
    /// Takes what changes about the wanted topics.
    pub(crate) topics: Box<dyn FnMut(TopicEvent) + Send>,
}

/// What others have left for the thread.
#[derive(Default)]
struct Inbox {
    queries: BTreeMap<TopicPartition, StartQuery>,
    wanted: BTreeSet<Arc<str>>,
    unwanted: BTreeSet<Arc<str>>,
}

/// The handle of the thread. Dropping it stops the thread.
pub(crate) struct Lookup {
    inbox: Arc<Mutex<Inbox>>,
    cluster: Cluster,
    stop: StopFlag,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

/// The thread did not end in time and was left behind: it waits for the
/// system's name resolution, the one wait that nothing can interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread keepup-lookup did not end within {0:?}: it waits for the resolution of a name")]
pub(crate) struct LeftBehind(pub(crate) Duration);

/// The settings or the system do not let the lookup start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupStartError {
    #[error(transparent)]
    Address(#[from] ConnectionError),
    #[error("the system refuses a thread: {0}")]
    Thread(#[from] io::Error),
}

impl Lookup {
    /// Starts the thread. `rings` is the bell that came with `cluster`.
    ///
    /// # Errors
    ///
    /// Where a bootstrap address is malformed or there can be no thread.
    pub(crate) fn start(
        settings: ConnectionSettings,
        clock: Clock,
        cluster: Cluster,
        rings: Receiver<()>,
        sinks: Sinks,
    ) -> Result<Self, LookupStartError> {
        let stop = StopFlag::default();
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let (alive, ended) = bounded(1);
        let interval = settings.metadata_interval;
        let asker = Asker {
            session: Session::new(settings, clock, cluster.clone(), stop.clone())?,
            inbox: Arc::clone(&inbox),
            rings,
            sinks,
            queue: Queue::default(),
            wanted: BTreeSet::new(),
            pacer: Pacer::new(interval),
            generation: cluster.snapshot().generation,
        };
        let thread = std::thread::Builder::new()
            .name("keepup-lookup".to_owned())
            .spawn(move || asker.run(alive))?;
        Ok(Self {
            inbox,
            cluster,
            stop,
            thread: Some(thread),
            ended,
        })
    }

    /// Keeps the metadata of these topics fresh from now on.
    pub(crate) fn want_topics(&self, topics: impl IntoIterator<Item = Arc<str>>) {
        let mut inbox = self.inbox.lock();
        for topic in topics {
            inbox.unwanted.remove(&topic);
            inbox.wanted.insert(topic);
        }
        drop(inbox);
        self.cluster.ring();
    }

    /// Asks for these topics no more and forgets what is known of them.
    pub(crate) fn forget_topics(&self, topics: impl IntoIterator<Item = Arc<str>>) {
        let mut inbox = self.inbox.lock();
        for topic in topics {
            inbox.wanted.remove(&topic);
            inbox.unwanted.insert(topic);
        }
        drop(inbox);
        self.cluster.ring();
    }

    /// Asks where to begin reading partitions. The answers come to the sink, one
    /// for each query that is neither cancelled nor replaced by one of a later
    /// epoch of the same partition; their topics are wanted from now on. Never
    /// blocks.
    pub(crate) fn resolve(&self, queries: Vec<StartQuery>) {
        let mut inbox = self.inbox.lock();
        for query in queries {
            match inbox.queries.get(&query.partition) {
                Some(known) if known.epoch > query.epoch => {}
                _ => {
                    inbox.queries.insert(query.partition.clone(), query);
                }
            }
        }
        drop(inbox);
        self.cluster.ring();
    }

    /// True where the thread has ended, by a stop or by a panic of a sink.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Interrupts what the thread waits for, and joins it.
    ///
    /// # Errors
    ///
    /// [`LeftBehind`] where it has not ended within `within`.
    pub(crate) fn stop(mut self, within: Duration) -> Result<(), LeftBehind> {
        self.end(within)
    }

    fn end(&mut self, within: Duration) -> Result<(), LeftBehind> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop.stop();
        self.cluster.ring();
        if self.ended.recv_timeout(within) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            return Err(LeftBehind(within));
        }
        if thread.join().is_err() {
            tracing::error!("the thread keepup-lookup has panicked");
        }
        Ok(())
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Err(error) = self.end(Duration::from_secs(1)) {
            tracing::warn!(%error, "left behind");
        }
    }
}

/// What lives on the thread.
struct Asker {
    session: Session,
    inbox: Arc<Mutex<Inbox>>,
    rings: Receiver<()>,
    sinks: Sinks,
    queue: Queue,
    wanted: BTreeSet<Arc<str>>,
    pacer: Pacer,
    /// Of the snapshot that the queries were last tried with.
    generation: u64,
}

impl Asker {
    /// `alive` is dropped at the end, which is how the end is told.
    fn run(mut self, alive: Sender<()>) {
        while !self.session.stop.is_stopped() {
            self.take_inbox();
            self.refresh();
            self.work_on_queries();
            self.wait();
        }
        drop(alive);
    }

    fn take_inbox(&mut self) {
        let Inbox {
            queries,
            wanted,
            unwanted,
        } = std::mem::take(&mut *self.inbox.lock());
        let before = self.wanted.len();
        self.wanted.retain(|topic| !unwanted.contains(topic));
        let forgotten = self.wanted.len() < before;
        let before = self.wanted.len();
        self.wanted.extend(wanted);
        for query in queries.into_values() {
            self.queue.add(query);
        }
        self.wanted.extend(self.queue.topics());
        if self.wanted.len() > before {
            self.pacer.hurry();
            self.session.cluster.request_refresh();
        } else if forgotten {
            self.session.cluster.request_refresh();
        }
    }

    /// Asks for metadata where that is due.
    fn refresh(&mut self) {
        let now = self.session.clock.now();
        let cluster = self.session.cluster.clone();
        let asked = cluster.wants_refresh();
        if self.pacer.due(asked).is_some_and(|due| due > now) {
            return;
        }
        // Taken before asking: who asks meanwhile may know of something later.
        cluster.take_refresh();
        let result = self.session.refresh(&self.wanted);
        let now = self.session.clock.now();
        match result {
            Ok((changed, events)) => {
                self.pacer.succeeded(now, asked, changed, fastrand::f64());
                for event in events {
                    (self.sinks.topics)(event);
                }
            }
            Err(error) if error.is_stop() => {}
            Err(error) => {
                if asked {
                    cluster.request_refresh();
                }
                if self.pacer.failed(now, fastrand::f64()) {
                    tracing::warn!(%error, "no broker answers; asking again");
                }
            }
        }
    }

    fn work_on_queries(&mut self) {
        self.queue.drop_cancelled();
        if self.queue.is_empty() {
            return;
        }
        let generation = self.session.cluster.snapshot().generation;
        if generation == 0 {
            // Nothing is known: nobody could be asked.
            return;
        }
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.queue.retry_now();
        }
        let mut after = Aftermath::default();
        self.ask_commits(&mut after);
        self.ask_epochs(&mut after);
        // The start and the end of one partition are two questions, and some
        // starts (a timestamp after the last record) take two as well.
        for _ in 0..3 {
            if self.session.stop.is_stopped() || !self.ask_offsets(&mut after) {
                break;
            }
        }
        after.answers.extend(self.queue.take_answers());
        self.settle(after);
    }

    /// Asks the coordinator for the commits that are wanted now.
    fn ask_commits(&mut self, after: &mut Aftermath) {
        let now = self.session.clock.now();
        let mut due = self.queue.due_commits(now);
        if due.is_empty() {
            return;
        }
        let Some(group) = self.session.settings.group.clone() else {
            self.queue.without_group(&due);
            return;
        };
        // All partitions of the topics: whether the group has other commits
        // there decides where a partition without one begins.
        let snapshot = self.session.cluster.snapshot();
        let mut topics: BTreeMap<Arc<str>, BTreeSet<i32>> = BTreeMap::new();
        due.retain(|partition| {
            let name = partition.shared_topic();
            let known = snapshot.topics.get(&name);
            let Some(known) = known.filter(|topic| !topic.partitions.is_empty()) else {
                let trouble = start::without_leader(partition, &snapshot);
                after.refresh = true;
                self.queue.fail(partition, trouble, now, after);
                return false;
            };
            let partitions = topics.entry(name).or_insert_with(|| {
                let count = i32::try_from(known.partitions.len()).unwrap_or(i32::MAX);
                (0..count).collect()
            });
            partitions.insert(partition.partition());
            true
        });
        if due.is_empty() {
            return;
        }
        let request = CommittedRequest {
            group: group.clone(),
            topics: topics
                .into_iter()
                .map(|(name, partitions)| GroupTopic {
                    name,
                    partitions: partitions.into_iter().collect(),
                })
                .collect(),
        };
        let result = self.session.ask_coordinator(&group, &request);
        let now = self.session.clock.now();
        match result {
            Ok(answer) => self.queue.committed(&due, &answer, &group, now, after),
            Err(trouble) => {
                for partition in &due {
                    self.queue.fail(partition, trouble.clone(), now, after);
                }
            }
        }
    }

    /// Asks each leader whether its log is the one that commits were made over,
    /// where they tell.
    fn ask_epochs(&mut self, after: &mut Aftermath) {
        let snapshot = self.session.cluster.snapshot();
        let now = self.session.clock.now();
        for (leader, asked) in self.queue.due_epochs(now, &snapshot, after) {
            let mut topics: BTreeMap<Arc<str>, Vec<EpochQuestion>> = BTreeMap::new();
            for (partition, question) in &asked {
                topics
                    .entry(partition.shared_topic())
                    .or_default()
                    .push(*question);
            }
            let request = EpochEndsRequest {
                topics: topics.into_iter().collect(),
            };
            let result = snapshot
                .broker(leader)
                .map(|address| self.session.ask(address, &request));
            let now = self.session.clock.now();
            let problem = match result {
                Some(Ok(answer)) => {
                    self.queue.epoch_ends(&asked, &answer, now, after);
                    continue;
                }
                Some(Err(AskError::Failed(ConnectionError::Wire {
                    error: WireError::NoCommonVersion { .. },
                    ..
                }))) => {
                    self.queue.without_epochs(&asked);
                    continue;
                }
                Some(Err(error)) => Problem::Unreachable(error.to_string()),
                None => Problem::NoLeader,
            };
            after.refresh = true;
            for (partition, _) in &asked {
                let trouble = Trouble::Passing(problem.clone());
                self.queue.fail(partition, trouble, now, after);
            }
        }
    }

    /// Asks each leader for the offsets that are wanted of it now. Returns
    /// whether there was anything to ask.
    fn ask_offsets(&mut self, after: &mut Aftermath) -> bool {
        let snapshot = self.session.cluster.snapshot();
        let due = self
            .queue
            .due_offsets(self.session.clock.now(), &snapshot, after);
        if due.is_empty() {
            return false;
        }
        for (leader, asked) in due {
            let result = match snapshot.broker(leader) {
                Some(address) => self
                    .session
                    .ask(address, &self.offsets_request(&asked))
                    .map_err(|error| Problem::Unreachable(error.to_string())),
                None => Err(Problem::NoLeader),
            };
            let now = self.session.clock.now();
            match result {
                Ok(answer) => self.queue.offsets(&asked, &answer, now, after),
                Err(problem) => {
                    after.refresh = true;
                    for (partition, _) in &asked {
                        let trouble = Trouble::Passing(problem.clone());
                        self.queue.fail(partition, trouble, now, after);
                    }
                }
            }
        }
        true
    }

    fn offsets_request(&self, asked: &[(TopicPartition, OffsetQuestion)]) -> OffsetsRequest {
        let mut topics: BTreeMap<Arc<str>, Vec<OffsetQuestion>> = BTreeMap::new();
        for (partition, question) in asked {
            topics
                .entry(partition.shared_topic())
                .or_default()
                .push(*question);
        }
        OffsetsRequest {
            isolation: self.session.settings.isolation,
            topics: topics.into_iter().collect(),
        }
    }

    /// Hands out answers, tells of new problems, and remembers what is wrong.
    fn settle(&mut self, after: Aftermath) {
        if after.forget_coordinator {
            self.session.forget_coordinator();
        }
        if after.refresh {
            self.session.cluster.request_refresh();
        }
        // A problem of a broker is one of all its partitions: told once.
        let mut told: Vec<(&Problem, &TopicPartition, usize)> = Vec::new();
        for (partition, problem) in &after.news {
            match told.iter_mut().find(|(known, _, _)| *known == problem) {
                Some((_, _, count)) => *count += 1,
                None => told.push((problem, partition, 1)),
            }
        }
        for (problem, partition, partitions) in told {
            tracing::warn!(
                %problem, first = %partition, partitions,
                "no start position yet; asking again"
            );
        }
        for answer in after.answers {
            (self.sinks.starts)(answer);
        }
    }

    /// Waits until something is due or somebody rings.
    fn wait(&self) {
        let now = self.session.clock.now();
        let asked = self.session.cluster.wants_refresh();
        let mut until = self.pacer.due(asked).unwrap_or(now);
        // Without a first snapshot the queries wait for the metadata.
        if self.generation > 0
            && let Some(due) = self.queue.next_due(now)
        {
            until = until.min(due);
        }
        let wait = until.saturating_duration_since(now).min(MAX_WAIT);
        if self.session.stop.is_stopped() {
            return;
        }
        // A ring and the passing of time lead to the same look around.
        let _ = self.rings.recv_timeout(wait);
    }
}

/// Cancelled queries are noticed after this time at the latest.
const MAX_WAIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
