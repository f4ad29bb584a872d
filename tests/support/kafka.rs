//! A real Apache Kafka: started, asked, broken and stopped by tests.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::metadata::MetadataBroker;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;

use super::cluster::{self, Cluster};
use super::{PATIENT, block_on, wait_until};

/// How long one request may take before it is tried again.
const REQUEST: Duration = Duration::from_secs(5);

/// What a reader sees of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Committed,
    Uncommitted,
}

impl Isolation {
    pub(crate) fn level(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// A running cluster; its processes end with it. Brokers have the ids 1, 2 and 3.
pub(crate) struct Kafka {
    cluster: Mutex<Cluster>,
    bootstrap: String,
    admin: AdminClient<DefaultClientContext>,
    /// Asks for metadata and ends; in no group.
    observer: BaseConsumer,
}

impl Kafka {
    /// The broker that the tests of this binary share; for tests that do it no harm. Topics and groups are named
    /// after the test, so that they do not meet. It dies with the process.
    pub(crate) fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        let home = cluster::home(test)?;
        Some(SHARED.get_or_init(|| Self::launch(home, 1, &[], &[], true)))
    }

    /// A broker of the test's own.
    pub(crate) fn one(test: &str) -> Option<Self> {
        Self::start(test, 1, &[])
    }

    /// A broker of the test's own that may be frozen for long. One that was away for longer than its own session gives
    /// its groups up when it wakes, and leaves a member that joins in that moment without an answer: for as long as
    /// `max.poll.interval.ms`.
    pub(crate) fn patient(test: &str) -> Option<Self> {
        Self::start(test, 1, &["broker.session.timeout.ms=60000"])
    }

    /// Three brokers of the test's own. Tests that want them take turns.
    pub(crate) fn three(test: &str) -> Option<Self> {
        Self::start(test, 3, &[])
    }

    /// A cluster of the test's own with further broker settings (`key=value`, in which `{id}` is the broker's).
    pub(crate) fn start(test: &str, brokers: usize, settings: &[&str]) -> Option<Self> {
        let home = cluster::home(test)?;
        Some(Self::launch(home, brokers, &[], settings, false))
    }

    /// A broker of another release, of the test's own.
    pub(crate) fn of_release(test: &str, release: &'static str) -> Option<Self> {
        let home = cluster::home_of(test, release)?;
        Some(Self::launch(home, 1, &[], &[], false))
    }

    /// A broker with further listeners (names and protocols); for [`Secure`](super::secure::Secure).
    pub(crate) fn listening(
        test: &str,
        listeners: &[(&str, &str)],
        settings: &[&str],
        shared: bool,
    ) -> Option<Self> {
        let home = cluster::home(test)?;
        Some(Self::launch(home, 1, listeners, settings, shared))
    }

    fn launch(
        home: &std::path::Path,
        brokers: usize,
        listeners: &[(&str, &str)],
        settings: &[&str],
        shared: bool,
    ) -> Self {
        let mut tries = 3;
        loop {
            let cluster = Cluster::start(home, brokers, listeners, settings, shared);
            let bootstrap = cluster.bootstrap();
            let kafka = Self {
                cluster: Mutex::new(cluster),
                admin: client(&bootstrap).create().expect("an admin client"),
                observer: client(&bootstrap)
                    .set("isolation.level", "read_uncommitted")
                    .create()
                    .expect("a client"),
                bootstrap,
            };
            let ids = kafka.cluster().ids();
            match kafka.await_brokers(&ids.collect()) {
                Ok(()) => return kafka,
                // Somebody else was faster to take a port.
                Err((_, true)) if tries > 1 => tries -= 1,
                Err((words, _)) => panic!("a broker did not start: {words}"),
            }
        }
    }

    /// Waits until the brokers `ids` take part; what a broker said that ended instead, and whether to try again.
    fn await_brokers(&self, ids: &BTreeSet<i32>) -> Result<(), (String, bool)> {
        wait_until(PATIENT, "the brokers to be ready", || {
            let mut cluster = self.cluster();
            if let Some((id, again)) = cluster.casualty() {
                return Ok(Err((cluster.last_words(id), again)));
            }
            drop(cluster);
            let alive = self.alive();
            if alive.is_superset(ids) {
                Ok(Ok(()))
            } else {
                Err(alive)
            }
        })
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        // A test that failed while it held the cluster must not hide why.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `127.0.0.1:PORT`, of every broker.
    pub(crate) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// `127.0.0.1:PORT` of a further listener of the first broker.
    pub(crate) fn listener(&self, name: &str) -> String {
        self.cluster().listener(name)
    }

    /// The settings every client of this cluster begins with.
    pub(crate) fn client(&self) -> ClientConfig {
        client(&self.bootstrap)
    }

    // Brokers.

    /// The ids of the brokers that take part.
    pub(crate) fn alive(&self) -> BTreeSet<i32> {
        let metadata = self
            .observer
            .fetch_metadata(Some("__nothing"), Duration::from_millis(500));
        metadata.map_or_else(
            |_| BTreeSet::new(),
            |metadata| metadata.brokers().iter().map(MetadataBroker::id).collect(),
        )
    }

    /// Kills broker `id` (SIGKILL).
    pub(crate) fn kill_broker(&self, id: i32) {
        self.cluster().kill(id);
    }

    /// Stops broker `id` as an operator would (SIGTERM).
    pub(crate) fn shut_down_broker(&self, id: i32) {
        self.cluster().shut_down(id);
    }

    /// Freezes broker `id` (SIGSTOP): connections stay open and nothing answers.
    pub(crate) fn stop_broker(&self, id: i32) {
        self.cluster().signal(id, Signal::STOP);
    }

    /// Lets broker `id` go on (SIGCONT).
    pub(crate) fn cont_broker(&self, id: i32) {
        self.cluster().signal(id, Signal::CONT);
    }

    /// Starts broker `id` again, on the same port with the data it had, and waits until it takes part.
    pub(crate) fn restart_broker(&self, id: i32) {
        self.cluster().launch(id);
        if let Err((words, _)) = self.await_brokers(&BTreeSet::from([id])) {
            panic!("broker {id} did not come back: {words}");
        }
    }

    /// Where the first broker has the files of a partition.
    pub(crate) fn files_of(&self, topic: &str, partition: i32) -> PathBuf {
        self.cluster().partition(1, topic, partition)
    }

    /// The broker that leads a partition, if one does.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let leaders = self.leaders(topic).ok()?;
        let index = usize::try_from(partition).ok()?;
        leaders.get(index).copied().filter(|&leader| leader >= 0)
    }

    /// The brokers that have a replica of a partition.
    pub(crate) fn replicas(&self, topic: &str, partition: i32) -> Vec<i32> {
        wait_until(PATIENT, "the replicas of a partition", || {
            let metadata = self
                .observer
                .fetch_metadata(Some(topic), REQUEST)
                .map_err(|error| error.to_string())?;
            let partitions = metadata.topics()[0].partitions();
            let found = partitions.iter().find(|found| found.id() == partition);
            found
                .map(|found| found.replicas().to_vec())
                .ok_or_else(|| "it is unknown".to_owned())
        })
    }

    /// The broker that coordinates a group, once the offsets topic exists.
    pub(crate) fn coordinator(&self, group: &str) -> Option<i32> {
        let topic = "__consumer_offsets";
        let partitions = u32::try_from(self.leaders(topic).ok()?.len()).ok()?;
        // Java's String.hashCode, without its sign.
        let hash = group.encode_utf16().fold(0_u32, |hash, unit| {
            hash.wrapping_mul(31).wrapping_add(unit.into())
        });
        let partition = (hash & 0x7fff_ffff).checked_rem(partitions)?;
        self.leader(topic, i32::try_from(partition).ok()?)
    }

    /// The leader of each partition, -1 where there is none.
    fn leaders(&self, topic: &str) -> Result<Vec<i32>, String> {
        let metadata = self
            .observer
            .fetch_metadata(Some(topic), REQUEST)
            .map_err(|error| error.to_string())?;
        let topic = &metadata.topics()[0];
        if let Some(error) = topic.error() {
            return Err(format!("{error:?}"));
        }
        let mut leaders: Vec<_> = topic
            .partitions()
            .iter()
            .map(|partition| (partition.id(), partition.leader()))
            .collect();
        leaders.sort_unstable();
        Ok(leaders.into_iter().map(|(_, leader)| leader).collect())
    }

    // Topics.

    /// Creates a topic, on as many brokers as there are, and waits until every partition has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let brokers = *self.cluster().ids().end();
        self.create_replicated_topic(name, partitions, brokers.min(3), configs);
    }

    /// As [`Kafka::create_topic`], on so many of the brokers.
    pub(crate) fn create_replicated_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: i32,
        configs: &[(&str, &str)],
    ) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for &(key, value) in configs {
            topic = topic.set(key, value);
        }
        let created = self.admin.create_topics([&topic], &options());
        one_result(block_on(PATIENT, "a topic to be created", created));
        self.await_leaders(name, partitions);
    }

    /// Raises the number of partitions to `total`.
    pub(crate) fn add_partitions(&self, topic: &str, total: i32) {
        let count = usize::try_from(total).expect("it is positive");
        let more = NewPartitions::new(topic, count);
        let added = self.admin.create_partitions([&more], &options());
        one_result(block_on(PATIENT, "partitions to be added", added));
        self.await_leaders(topic, total);
    }

    fn await_leaders(&self, topic: &str, partitions: i32) {
        wait_until(PATIENT, "every partition to have a leader", || {
            let leaders = self.leaders(topic)?;
            let all = i32::try_from(leaders.len()).expect("not so many") == partitions
                && leaders.iter().all(|&leader| leader >= 0);
            if all {
                Ok(())
            } else {
                Err(format!("{leaders:?}"))
            }
        });
    }

    /// Deletes a topic and waits until it is gone.
    pub(crate) fn delete_topic(&self, topic: &str) {
        let deleted = self.admin.delete_topics(&[topic], &options());
        one_result(block_on(PATIENT, "a topic to be deleted", deleted));
        wait_until(PATIENT, "a deleted topic to be gone", || {
            self.leaders(topic).map_or(Ok(()), Err)
        });
    }

    /// Replaces a topic's configuration.
    pub(crate) fn configure_topic(&self, topic: &str, configs: &[(&str, &str)]) {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for &(key, value) in configs {
            change = change.set(key, value);
        }
        let altered = self.admin.alter_configs([&change], &options());
        let results = block_on(PATIENT, "a topic to be configured", altered);
        for result in results.expect("the request is answered") {
            result.unwrap_or_else(|(name, code)| panic!("{name:?}: {code}"));
        }
    }

    /// Deletes the records of a partition before `offset`, as retention would.
    pub(crate) fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut before = TopicPartitionList::new();
        before
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("a valid offset");
        let deleted = self.admin.delete_records(&before, &options());
        let result = block_on(PATIENT, "records to be deleted", deleted).expect("an answer");
        for element in result.elements() {
            element.error().expect("the records are deleted");
        }
    }

    /// The log start offset of every partition.
    pub(crate) fn start_offsets(&self, topic: &str) -> Vec<i64> {
        self.watermarks(&self.observer, topic, |(low, _)| low)
    }

    /// The high watermark of every partition.
    pub(crate) fn end_offsets(&self, topic: &str) -> Vec<i64> {
        self.watermarks(&self.observer, topic, |(_, high)| high)
    }

    /// The last stable offset of every partition: the end as a reader of committed records sees it.
    pub(crate) fn stable_offsets(&self, topic: &str) -> Vec<i64> {
        let mut config = self.client();
        config.set("isolation.level", "read_committed");
        let reader: BaseConsumer = config.create().expect("a client");
        self.watermarks(&reader, topic, |(_, stable)| stable)
    }

    fn watermarks(
        &self,
        reader: &BaseConsumer,
        topic: &str,
        which: fn((i64, i64)) -> i64,
    ) -> Vec<i64> {
        wait_until(PATIENT, "the offsets of every partition", || {
            let partitions = i32::try_from(self.leaders(topic)?.len()).expect("not so many");
            (0..partitions)
                .map(|partition| {
                    reader
                        .fetch_watermarks(topic, partition, REQUEST)
                        .map(which)
                })
                .collect::<KafkaResult<Vec<_>>>()
                .map_err(|error| error.to_string())
        })
    }

    // Groups.

    /// What `group` has committed for every partition of `topic`.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let partitions = wait_until(PATIENT, "the number of partitions", || {
            self.leaders(topic).map(|leaders| leaders.len())
        });
        let partitions = i32::try_from(partitions).expect("not so many");
        committed_by(&self.client(), group, topic, partitions)
    }

    /// Waits until `group` has committed these offsets of the partitions of `topic`.
    pub(crate) fn await_committed(&self, group: &str, topic: &str, offsets: &[Option<i64>]) {
        wait_until(PATIENT, "the commits", || {
            let committed = self.committed(group, topic);
            if committed == offsets {
                Ok(())
            } else {
                Err(committed)
            }
        });
    }

    /// Commits an offset for a group without members.
    pub(crate) fn commit_for(&self, group: &str, topic: &str, offset: i64) {
        self.commit_noting(group, topic, offset, "");
    }

    /// As [`Kafka::commit_for`], with metadata.
    pub(crate) fn commit_noting(&self, group: &str, topic: &str, offset: i64, metadata: &str) {
        let mut config = self.client();
        let member: BaseConsumer = config.set("group.id", group).create().expect("a client");
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, 0);
        let offset = Offset::Offset(offset);
        element.set_offset(offset).expect("a valid offset");
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
        wait_until(PATIENT, "a commit", || {
            member.commit(&list, CommitMode::Sync)
        });
    }

    /// Deletes a group as soon as it has no members any more.
    pub(crate) fn delete_group_when_empty(&self, group: &str) {
        wait_until(PATIENT, "a group without members to be deleted", || {
            let deleted = self.admin.delete_groups(&[group], &options());
            let results = block_on(PATIENT, "a group to be deleted", deleted);
            let result = results.expect("the request is answered").remove(0);
            result.map(drop)
        });
    }

    /// Deletes a group that has no members.
    pub(crate) fn delete_group(&self, group: &str) {
        let deleted = self.admin.delete_groups(&[group], &options());
        one_result(block_on(PATIENT, "a group to be deleted", deleted));
    }
}

/// What `group` has committed for the first partitions of `topic`, asked with these settings: for handlers, which
/// have no [`Kafka`].
pub(crate) fn committed_by(
    settings: &ClientConfig,
    group: &str,
    topic: &str,
    partitions: i32,
) -> Vec<Option<i64>> {
    let mut settings = settings.clone();
    let member: BaseConsumer = settings.set("group.id", group).create().expect("a client");
    wait_until(PATIENT, "the committed offsets", || {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, partitions - 1);
        let answer = member
            .committed_offsets(asked, REQUEST)
            .map_err(|error| error.to_string())?;
        let mut committed = Vec::new();
        for element in answer.elements() {
            element.error().map_err(|error| error.to_string())?;
            committed.push((element.partition(), element.offset()));
        }
        committed.sort_by_key(|&(partition, _)| partition);
        let offset = |(_, offset)| match offset {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        Ok::<_, String>(committed.into_iter().map(offset).collect())
    })
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "500")
        .set("socket.timeout.ms", "10000");
    config
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(Duration::from_secs(30)))
        .operation_timeout(Some(Duration::from_secs(30)))
}

fn one_result(
    results: KafkaResult<Vec<Result<String, (String, rdkafka::types::RDKafkaErrorCode)>>>,
) {
    for result in results.expect("the request is answered") {
        result.unwrap_or_else(|(name, code)| panic!("{name}: {code}"));
    }
}
