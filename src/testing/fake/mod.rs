//! A cluster of brokers that break as they are told to.
//!
//! A real broker answers properly, nearly always; what a client makes of the
//! other times can only be tested with one that does not. These brokers speak
//! the protocol over real sockets, keep their records in memory, and follow a
//! script: which request gets which fault, and how often. They count what they
//! were asked, so that a test can tell patience from a storm.
//!
//! What they serve is what reading needs: versions, metadata, coordinator,
//! commits, offsets, epochs, records. They have no group protocol and take no
//! produce requests: a run on them has a static assignment, and records come by
//! [`FakeCluster::append`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use self::release::{Release, Request};
use self::script::{Asked, Fault, Rule};
use self::server::{Broker, Shared};
use self::state::{Log, State};
use crate::error::Error;
use crate::kafka::fake::batch;

pub(crate) mod release;
pub(crate) mod script;
mod server;
pub(crate) mod state;

/// Brokers on the loopback interface that answer as a script says.
///
/// All of them have the same records, as if replication took no time; each
/// serves the partitions that it leads. Their ids count from 1, and number 1
/// keeps the commits of every group. They end when this value is dropped.
///
/// ```
/// use keepup::testing::{FakeCluster, Fault, Request, Rule};
/// use keepup::{Assignment, Record};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = FakeCluster::start(2)?;
/// cluster.create_topic("orders", 4)?;
/// cluster.append("orders", 0, ["first", "second"])?;
/// // The first answer with records breaks off half-way.
/// cluster.script(Rule::new(Request::Fetch, Fault::HalfAnswer).times(1));
///
/// let report = keepup::builder(cluster.bootstrap(), "billing")
///     .topic("orders")
///     .assignment(Assignment::Static { index: 0, of: 1 })
///     .until_end(true)
///     .run(|_| |_: &Record<'_>| ())?;
/// assert_eq!(report.records, 2);
/// assert_eq!(cluster.committed("billing", "orders")[0], Some(2));
/// # Ok(())
/// # }
/// ```
pub struct FakeCluster {
    shared: Arc<Shared>,
    brokers: Vec<Broker>,
}

impl FakeCluster {
    /// Starts that many brokers, at least one, of the latest release.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where there is no port or no thread for them.
    pub fn start(brokers: u16) -> Result<Self, Error> {
        Self::start_as(Release::default(), brokers)
    }

    /// As [`FakeCluster::start`], with brokers that announce what those of
    /// `release` do.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where there is no port or no thread for them.
    pub fn start_as(release: Release, brokers: u16) -> Result<Self, Error> {
        let mut cluster = Self {
            shared: Arc::new(Shared::new(State::new(release))),
            brokers: Vec::new(),
        };
        for id in 1..=i32::from(brokers.max(1)) {
            let started = Broker::start(id, &cluster.shared).map_err(|source| Error::System {
                what: "start a fake broker",
                source,
            })?;
            let port = started.port;
            cluster
                .shared
                .change(|state| state.brokers.insert(id, port));
            cluster.brokers.push(started);
        }
        Ok(cluster)
    }

    /// Where it listens: what `bootstrap.servers` is set to.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .brokers
            .iter()
            .map(|broker| format!("127.0.0.1:{}", broker.port))
            .collect();
        addresses.join(",")
    }

    // What is in it.

    /// Creates a topic whose partitions are led by the brokers in turn.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where it exists already.
    pub fn create_topic(&self, name: &str, partitions: usize) -> Result<(), Error> {
        if self
            .shared
            .change(|state| state.create_topic(name, partitions))
        {
            Ok(())
        } else {
            Err(refused(format!("there is a topic {name} already")))
        }
    }

    /// Appends records without keys to a partition, all in one batch.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where there is no such partition.
    pub fn append<V: AsRef<[u8]>>(
        &self,
        topic: &str,
        partition: i32,
        values: impl IntoIterator<Item = V>,
    ) -> Result<(), Error> {
        let values = values
            .into_iter()
            .map(|value| Bytes::copy_from_slice(value.as_ref()));
        self.change_log(topic, partition, |log| {
            let batch = batch(log.end, log.epoch, values)?;
            // An empty one would be no batch at all.
            if batch.next > batch.base {
                log.append(batch);
            }
            Ok(())
        })
    }

    /// Has another broker lead a partition from now on, in a new leader epoch.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where there is no such partition.
    pub fn move_leader(&self, topic: &str, partition: i32, to: i32) -> Result<(), Error> {
        self.change_log(topic, partition, |log| {
            log.leader = to;
            log.epoch += 1;
            Ok(())
        })
    }

    /// Cuts a log off at `end`, as an unclean election does, in a new leader
    /// epoch. Whole batches go.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where there is no such partition.
    pub fn truncate(&self, topic: &str, partition: i32, end: i64) -> Result<(), Error> {
        self.change_log(topic, partition, |log| {
            log.truncate(end);
            log.epoch += 1;
            Ok(())
        })
    }

    fn change_log(
        &self,
        topic: &str,
        partition: i32,
        change: impl FnOnce(&mut Log) -> Result<(), String>,
    ) -> Result<(), Error> {
        self.shared
            .change(|state| match state.log_mut(topic, partition) {
                Some(log) => change(log),
                None => Err(format!("there is no partition {topic}/{partition}")),
            })
            .map_err(refused)
    }

    /// What a group has committed, by partition; `None` where nothing is.
    pub fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let state = self.shared.state();
        let logs = state.topics.get(topic).map_or(0, |topic| topic.logs.len());
        (0..)
            .take(logs)
            .map(|partition| {
                let key = (group.to_owned(), topic.to_owned(), partition);
                state.commits.get(&key).copied()
            })
            .collect()
    }

    // The script.

    /// Adds a rule. Where several want the same request the first has it.
    pub fn script(&self, rule: Rule) {
        self.shared.change(|state| state.script.add(rule));
    }

    /// Asks `choose` about every request that no rule wants; it replaces the
    /// one before. It must not use the cluster, which waits for it.
    pub fn script_with(&self, choose: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        self.shared
            .change(|state| state.script.choose_by(Box::new(choose)));
    }

    /// Forgets all rules: from now on every answer is a proper one.
    pub fn behave(&self) {
        self.shared.change(|state| state.script.clear());
    }

    // What was asked.

    /// How many faults there were so far.
    pub fn faults(&self) -> u64 {
        self.shared.state().script.played()
    }

    /// How many requests of that kind came to that broker so far.
    pub fn requests(&self, broker: i32, request: Request) -> u64 {
        let state = self.shared.state();
        let counts = state.counts().iter();
        counts
            .filter(|((of, kind, _), _)| (*of, *kind) == (broker, request))
            .map(|(_, count)| count)
            .sum()
    }

    /// The versions in which requests of that kind came.
    pub fn versions(&self, request: Request) -> BTreeSet<i16> {
        self.shared.state().versions(request)
    }

    /// How many connections a program has made so far, to all brokers: `keepup`
    /// for those of keepup's own, `librdkafka` for those of the group's member.
    pub fn connections(&self, software: &str) -> u64 {
        self.shared.state().connections(software)
    }

    /// The offsets from which records of a partition were asked for, in order;
    /// what was asked several times in a row stands once.
    pub fn fetch_offsets(&self, topic: &str, partition: i32) -> Vec<i64> {
        self.shared.state().fetch_offsets(topic, partition)
    }

    /// What came that no client should send: requests that cannot be read, are
    /// not announced, or are not served. Such a connection is closed.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().complaints().to_vec()
    }
}

fn refused(message: String) -> Error {
    Error::Client { message }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        self.shared.stop();
        for broker in &mut self.brokers {
            broker.join();
        }
    }
}

impl fmt::Debug for FakeCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<i32> = self.brokers.iter().map(|broker| broker.id).collect();
        f.debug_struct("FakeCluster")
            .field("bootstrap", &self.bootstrap())
            .field("brokers", &ids)
            .finish_non_exhaustive()
    }
}
