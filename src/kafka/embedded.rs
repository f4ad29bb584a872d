//! A Kafka cluster inside the process, over librdkafka's mock cluster, and a
//! producer that fills it.
//!
//! What needs a cluster could not run where there is none: the demo, examples,
//! most tests. The mock cluster speaks enough of the protocol for groups,
//! commits, fetching and producing, on a listener of the loopback interface.
//! Two of its limits matter to whoever uses it: a partition keeps its newest
//! 5 MiB only, whether they were read or not, and a group waits 3 s for further
//! members before its first rebalance.
//!
//! The cluster lives in a client that was configured to host it, so it can be
//! shared between threads, and it ends with that client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext,
    ThreadedProducer,
};

use crate::error::Error;

/// How many records a producer holds before [`ProduceError::QueueFull`].
const QUEUE_RECORDS: u32 = 100_000;

/// librdkafka's number for all brokers of its mock cluster.
const ALL_BROKERS: i32 = -1;

/// How long a producer collects records for one batch.
const LINGER_MS: u32 = 5;

/// A Kafka cluster inside this process, for tests, examples and the demo.
///
/// It ends when this value is dropped. A partition keeps its newest 5 MiB only:
/// whoever produces more than that ahead of the consumers loses records.
///
/// ```
/// use keepup::testing::EmbeddedCluster;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = EmbeddedCluster::start(1)?;
/// cluster.create_topic("orders", 6)?;
/// let producer = cluster.producer()?;
/// producer.try_send("orders", 0, None, Some(b"first"))?;
/// producer.flush(std::time::Duration::from_secs(10))?;
/// assert_eq!(producer.deliveries().acknowledged, 1);
/// # Ok(())
/// # }
/// ```
pub struct EmbeddedCluster {
    host: BaseProducer,
    bootstrap: String,
    brokers: u16,
}

impl EmbeddedCluster {
    /// Starts a cluster of that many brokers, at least one.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where the cluster could not be made.
    pub fn start(brokers: u16) -> Result<Self, Error> {
        let brokers = brokers.max(1);
        let host: BaseProducer = ClientConfig::new()
            .set("client.id", "embedded-cluster")
            .set("test.mock.num.brokers", brokers.to_string())
            .create()
            .map_err(|error| client_error(&error))?;
        let bootstrap = with_cluster(&host, |cluster| Ok(cluster.bootstrap_servers()))?;
        Ok(Self {
            host,
            bootstrap,
            brokers,
        })
    }

    /// Where it listens: what `bootstrap.servers` is set to.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Creates a topic with that many partitions, replicated to every broker.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where the topic exists already or its name or number
    /// of partitions is refused.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), Error> {
        with_cluster(&self.host, |cluster| {
            cluster.create_topic(name, partitions, i32::from(self.brokers))
        })
    }

    /// Breaks every connection and takes no more of them, or takes them again.
    /// What the cluster knows stays as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where the cluster is not to be had.
    pub fn set_reachable(&self, reachable: bool) -> Result<(), Error> {
        with_cluster(&self.host, |cluster| {
            if reachable {
                cluster.broker_up(ALL_BROKERS)
            } else {
                cluster.broker_down(ALL_BROKERS)
            }
        })
    }

    /// A producer for this cluster.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where the client could not be made.
    pub fn producer(&self) -> Result<EmbeddedProducer, Error> {
        EmbeddedProducer::connect(&self.bootstrap)
    }
}

impl std::fmt::Debug for EmbeddedCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedCluster")
            .field("bootstrap", &self.bootstrap)
            .field("brokers", &self.brokers)
            .finish_non_exhaustive()
    }
}

fn with_cluster<T>(
    host: &BaseProducer,
    ask: impl FnOnce(&MockCluster<'_, DefaultProducerContext>) -> Result<T, KafkaError>,
) -> Result<T, Error> {
    let cluster = host.client().mock_cluster().ok_or_else(|| Error::Client {
        message: "the client hosts no embedded cluster".into(),
    })?;
    ask(&cluster).map_err(|error| client_error(&error))
}

fn client_error(error: &KafkaError) -> Error {
    Error::Client {
        message: error.to_string(),
    }
}

/// Produces records, most of all into an [`EmbeddedCluster`].
///
/// Records of one partition arrive in the order in which they were sent and
/// none twice: the producer is idempotent. Sending never waits; what the
/// cluster acknowledged or refused is told by
/// [`deliveries`](EmbeddedProducer::deliveries). Dropping it drops what was not
/// sent yet: [`flush`](EmbeddedProducer::flush) first.
pub struct EmbeddedProducer {
    client: ThreadedProducer<Tally>,
    tally: Arc<Counts>,
}

/// What became of the records that were sent so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deliveries {
    /// Records that the cluster has.
    pub acknowledged: u64,
    /// Records that the cluster refused, or that could not be sent in time.
    pub failed: u64,
    /// Why the first of them failed.
    pub first_failure: Option<String>,
}

/// Why records were not taken, or not delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    /// The producer holds as many records as it may; try again when some of
    /// them were delivered.
    #[error("the producer's queue is full; send again when records of it were delivered")]
    QueueFull,
    /// The record cannot be sent: an unknown partition, or larger than
    /// allowed.
    #[error("the record cannot be sent: {0}")]
    Refused(String),
    /// Records were still on their way when the time was over.
    #[error("{0} records were not delivered in time")]
    NotDelivered(u64),
}

impl EmbeddedProducer {
    /// A producer for the cluster at that address.
    ///
    /// # Errors
    ///
    /// [`Error::Client`] where the client could not be made.
    pub fn connect(bootstrap: &str) -> Result<Self, Error> {
        let tally = Arc::new(Counts::default());
        let client = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("client.id", "embedded-producer")
            .set("enable.idempotence", "true")
            .set("linger.ms", LINGER_MS.to_string())
            .set("queue.buffering.max.messages", QUEUE_RECORDS.to_string())
            .create_with_context(Tally(Arc::clone(&tally)))
            .map_err(|error| client_error(&error))?;
        Ok(Self { client, tally })
    }

    /// Sends a record to a partition, without waiting.
    ///
    /// # Errors
    ///
    /// [`ProduceError::QueueFull`] where it would have to wait,
    /// [`ProduceError::Refused`] where it cannot be sent at all.
    pub fn try_send(
        &self,
        topic: &str,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), ProduceError> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition);
        if let Some(key) = key {
            record = record.key(key);
        }
        if let Some(value) = value {
            record = record.payload(value);
        }
        self.client.send(record).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => ProduceError::QueueFull,
            other => ProduceError::Refused(other.to_string()),
        })
    }

    /// Waits until everything that was sent is acknowledged or has failed.
    ///
    /// # Errors
    ///
    /// [`ProduceError::NotDelivered`] where that takes longer than `timeout`.
    pub fn flush(&self, timeout: Duration) -> Result<(), ProduceError> {
        self.client.flush(timeout).map_err(|_| {
            let left = self.client.in_flight_count();
            ProduceError::NotDelivered(u64::try_from(left).unwrap_or(0))
        })
    }

    /// What became of the records so far.
    pub fn deliveries(&self) -> Deliveries {
        Deliveries {
            acknowledged: self.tally.acknowledged.load(Ordering::Acquire),
            failed: self.tally.failed.load(Ordering::Acquire),
            first_failure: self.tally.first_failure.lock().clone(),
        }
    }
}

impl std::fmt::Debug for EmbeddedProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedProducer")
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}

/// Counts on librdkafka's delivery thread, read by everybody.
#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    first_failure: Mutex<Option<String>>,
}

/// What librdkafka reports deliveries to.
struct Tally(Arc<Counts>);

impl ClientContext for Tally {}

impl ProducerContext for Tally {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.0.acknowledged.fetch_add(1, Ordering::Release);
            }
            Err((error, _)) => {
                self.0.failed.fetch_add(1, Ordering::Release);
                self.0
                    .first_failure
                    .lock()
                    .get_or_insert_with(|| error.to_string());
            }
        }
    }
}
