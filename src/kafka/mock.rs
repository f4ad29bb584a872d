//! A Kafka within the process, and a producer to fill it, or any other.
//!
//! librdkafka brings a mock cluster that speaks the protocol over real sockets:
//! enough for tests and the demo to run the real consumer with nothing
//! installed. It knows Fetch up to version 16, transactions by name only, no
//! epochs and no sessions, and keeps 5 MiB per partition.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DefaultProducerContext, Producer, ProducerContext,
};

/// What a producer is told to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970; the time of sending where there is none.
    pub(crate) timestamp: Option<i64>,
}

/// The mock cluster or the producer refused something.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {error}")]
pub(crate) struct MockError {
    doing: &'static str,
    error: KafkaError,
}

fn while_doing(doing: &'static str) -> impl Fn(KafkaError) -> MockError {
    move |error| MockError { doing, error }
}

/// A cluster of brokers 1 to n, listening on localhost. Gone when dropped.
pub(crate) struct MockKafka {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl std::fmt::Debug for MockKafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockKafka")
            .field("bootstrap", &self.bootstrap())
            .finish_non_exhaustive()
    }
}

impl MockKafka {
    /// Starts `brokers` brokers.
    ///
    /// # Errors
    ///
    /// Where librdkafka cannot open the sockets.
    pub(crate) fn start(brokers: i32) -> Result<Self, MockError> {
        let cluster = MockCluster::new(brokers).map_err(while_doing("start the mock cluster"))?;
        Ok(Self { cluster })
    }

    /// `host:port` of each broker, with commas.
    pub(crate) fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Creates a topic; its partitions are led by the brokers in turn.
    ///
    /// # Errors
    ///
    /// Where the topic exists.
    pub(crate) fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), MockError> {
        self.cluster
            .create_topic(topic, partitions, 1)
            .map_err(while_doing("create a topic"))
    }

    /// Makes `broker` the leader of a partition. Not nobody: librdkafka 2.12's
    /// mock crashes when a partition without a leader is fetched in version 12
    /// or later.
    ///
    /// # Errors
    ///
    /// Where there is no such broker or partition.
    pub(crate) fn set_leader(
        &self,
        topic: &str,
        partition: i32,
        broker: i32,
    ) -> Result<(), MockError> {
        self.cluster
            .partition_leader(topic, partition, Some(broker))
            .map_err(while_doing("move a leader"))
    }

    /// Closes a broker's connections and accepts no more, or accepts them
    /// again; -1 stands for all brokers.
    ///
    /// # Errors
    ///
    /// Where there is no such broker.
    pub(crate) fn set_up(&self, broker: i32, up: bool) -> Result<(), MockError> {
        let result = if up {
            self.cluster.broker_up(broker)
        } else {
            self.cluster.broker_down(broker)
        };
        result.map_err(while_doing("take a broker up or down"))
    }
}

/// Longest wait for brokers to take what was sent.
const DELIVERY: Duration = Duration::from_secs(20);

/// Sends records and waits for them to be there.
pub(crate) struct Sender {
    producer: BaseProducer<Deliveries>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

/// Remembers the first delivery that failed.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Option<KafkaError>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().get_or_insert_with(|| error.clone());
        }
    }
}

impl Sender {
    /// A producer for the cluster at `bootstrap`, with further settings of
    /// librdkafka's.
    ///
    /// # Errors
    ///
    /// Where librdkafka does not know a setting.
    pub(crate) fn new(bootstrap: &str, settings: &[(&str, &str)]) -> Result<Self, MockError> {
        let mut config = ClientConfig::new();
        // Long enough for records sent together to share a batch.
        config
            .set("bootstrap.servers", bootstrap)
            .set("linger.ms", "20")
            // A broker may refuse the first batch for a topic that it has just
            // made: tried again, it must not come after the second.
            .set("max.in.flight.requests.per.connection", "1");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let producer = config
            .create_with_context(Deliveries::default())
            .map_err(while_doing("create a producer"))?;
        Ok(Self { producer })
    }

    /// Has the broker create a topic with its default settings, where it
    /// creates topics that are asked for.
    ///
    /// # Errors
    ///
    /// Where it does not.
    pub(crate) fn create_by_asking(&self, topic: &str) -> Result<(), MockError> {
        self.producer
            .client()
            .fetch_metadata(Some(topic), DELIVERY)
            .map(drop)
            .map_err(while_doing("create a topic by asking for it"))
    }

    /// Sends records to one partition in a transaction of their own, which is
    /// committed or aborted. Needs the setting `transactional.id`, and
    /// [`Sender::prepare_transactions`] before the first.
    ///
    /// # Errors
    ///
    /// Where the broker refuses any of it.
    pub(crate) fn transact(
        &self,
        topic: &str,
        partition: i32,
        records: impl IntoIterator<Item = Outgoing>,
        commit: bool,
    ) -> Result<(), MockError> {
        self.producer
            .begin_transaction()
            .map_err(while_doing("begin a transaction"))?;
        self.send(topic, partition, records)?;
        if commit {
            self.producer.commit_transaction(DELIVERY)
        } else {
            self.producer.abort_transaction(DELIVERY)
        }
        .map_err(while_doing("end a transaction"))
    }

    /// Fences older senders with the same transactional id.
    ///
    /// # Errors
    ///
    /// Where the sender has none, or the broker does not answer.
    pub(crate) fn prepare_transactions(&self) -> Result<(), MockError> {
        self.producer
            .init_transactions(DELIVERY)
            .map_err(while_doing("prepare transactions"))
    }

    /// Sends records to one partition, in order, and waits until the broker has
    /// them. Records sent together share a wire batch while it has room.
    ///
    /// # Errors
    ///
    /// Where not all of them were taken within 20 seconds.
    pub(crate) fn send(
        &self,
        topic: &str,
        partition: i32,
        records: impl IntoIterator<Item = Outgoing>,
    ) -> Result<(), MockError> {
        for outgoing in records {
            let mut headers = OwnedHeaders::new();
            for (name, value) in &outgoing.headers {
                headers = headers.insert(Header {
                    key: name,
                    value: value.as_ref(),
                });
            }
            let mut record = BaseRecord::<[u8], [u8]>::to(topic)
                .partition(partition)
                .headers(headers);
            record.key = outgoing.key.as_deref();
            record.payload = outgoing.value.as_deref();
            record.timestamp = outgoing.timestamp;
            while let Err((error, refused)) = self.producer.send(record) {
                if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                    return Err(while_doing("send a record")(error));
                }
                self.producer.poll(Duration::from_millis(100));
                record = refused;
            }
        }
        self.producer
            .flush(DELIVERY)
            .map_err(while_doing("deliver what was sent"))?;
        let failed = self.producer.context().0.lock().take();
        failed.map_or(Ok(()), |error| {
            Err(while_doing("deliver what was sent")(error))
        })
    }
}
