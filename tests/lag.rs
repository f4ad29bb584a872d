//! Lag as a run tells it, against what brokers and Apache Kafka's own client and tools say.
//!
//! The numbers are those of `Handle::lag`, and what the endpoints show of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keepup::{Handle, LagSnapshot, PartitionLag};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::support::kafka::{Isolation, Kafka};
use crate::support::prometheus::get;
use crate::support::{PATIENT, SOON, wait_until};

mod calm;
mod health;
mod hostile;
mod java;
mod life;
mod truth;

/// From one look of the reporter to the next.
const TICK: Duration = Duration::from_secs(1);

/// How long a question to a broker may take.
const REQUEST: Duration = Duration::from_secs(5);

/// A client that asks the broker what the reporter's numbers are made of; in no group, though it asks about one.
struct Oracle {
    client: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Oracle {
    fn new(kafka: &Kafka, group: &str, topic: &str, partitions: i32, isolation: Isolation) -> Self {
        let client = kafka
            .client()
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation.level())
            .create()
            .expect("a client");
        Self {
            client,
            topic: topic.to_owned(),
            partitions,
        }
    }

    /// The end of every partition: under `read_committed` the last stable offset.
    fn ends(&self) -> Vec<i64> {
        // Leaders change where a test breaks brokers.
        wait_until(PATIENT, "the ends", || {
            let end = |partition| {
                let ends = self
                    .client
                    .fetch_watermarks(&self.topic, partition, REQUEST)?;
                Ok::<_, KafkaError>(ends.1)
            };
            (0..self.partitions).map(end).collect()
        })
    }

    /// What the group has committed of every partition.
    fn committed(&self) -> Vec<Option<i64>> {
        wait_until(PATIENT, "the committed offsets", || {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(&self.topic, 0, self.partitions - 1);
            let answer = self.client.committed_offsets(asked, REQUEST)?;
            let committed = |partition| {
                let element = answer.find_partition(&self.topic, partition);
                let element = element.expect("it was asked for");
                element.error()?;
                Ok::<_, KafkaError>(match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                })
            };
            (0..self.partitions).map(committed).collect()
        })
    }
}

/// Any port of this machine: for `listen`.
fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// What an endpoint of a run answers.
fn fetched(handle: &Handle, path: &str) -> String {
    let address = handle.listens_at().expect("it listens");
    match get(address, path) {
        Ok((200, body)) => body,
        other => panic!("{path}: {other:?}"),
    }
}

/// The series of `/metrics` that belong to a partition, by family, topic and partition. For topics without escapes.
fn scraped(handle: &Handle) -> BTreeMap<(String, String, i32), f64> {
    let page = fetched(handle, "/metrics");
    let mut series = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        let Some((family, labels)) = name.split_once('{') else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let (Some(topic), Some(partition)) = (label("topic"), label("partition")) else {
            continue;
        };
        let key = (
            family.to_owned(),
            topic,
            partition.parse().expect("a number"),
        );
        let value = value.parse().expect("a number");
        assert_eq!(series.insert(key, value), None, "twice: {line}");
    }
    series
}

/// A family of Kafka's names in [`scraped`].
fn family(name: &str) -> String {
    format!("kafka_consumer_fetch_manager_{name}")
}

/// What a snapshot says of one partition.
fn lag_of<'a>(snapshot: &'a LagSnapshot, topic: &str, partition: i32) -> Option<&'a PartitionLag> {
    snapshot
        .partitions
        .iter()
        .find(|lag| (lag.partition.topic(), lag.partition.partition()) == (topic, partition))
}

/// Records-lag and committed lag of every partition of the topic.
type Lags = Vec<Option<(Option<u64>, Option<u64>)>>;

fn told(snapshot: &LagSnapshot, oracle: &Oracle) -> Lags {
    (0..oracle.partitions)
        .map(|partition| {
            lag_of(snapshot, &oracle.topic, partition)
                .map(|lag| (lag.records_lag, lag.committed_lag))
        })
        .collect()
}

/// The same by the broker's numbers, for a reader that stands at `positions`.
fn truth(oracle: &Oracle, positions: &[i64]) -> Lags {
    // Before the end is where it will be soon, nothing is equal.
    let between = |from: i64, to: i64| u64::try_from(to - from).unwrap_or(u64::MAX);
    let (ends, committed) = (oracle.ends(), oracle.committed());
    ends.iter()
        .zip(&committed)
        .zip(positions)
        .map(|((&end, &committed), &position)| {
            let committed = committed.map(|committed| between(committed, end));
            Some((Some(between(position, end)), committed))
        })
        .collect()
}

/// While nothing moves: waits until the run tells what the broker says, and checks that this takes an interval.
///
/// An end offset that a fetch told just after one look is not old at the next one, and asked for at the second: two
/// ticks, and what a busy machine takes.
fn assert_true_within_an_interval(handle: &Handle, oracle: &Oracle, positions: &[i64], when: &str) {
    let start = Instant::now();
    let lags = wait_until(SOON, &format!("the true lag {when}"), || {
        let (told, truth) = (told(&handle.lag(), oracle), truth(oracle, positions));
        if told == truth {
            Ok(told)
        } else {
            Err((told, truth))
        }
    });
    let took = start.elapsed();
    println!("{when}: equal after {took:?}: {lags:?}");
    assert!(
        took < 2 * TICK + crate::support::run::SLACK,
        "{when}: only after {took:?}"
    );
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.expect("it is after 1970").as_millis();
    i64::try_from(millis).expect("it fits")
}
