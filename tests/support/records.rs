//! Records: written fast, read back plainly, compacted until there are holes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::kafka::{Isolation, Kafka};
use super::{PATIENT, wait_until};

/// Every compression that Kafka knows.
pub(crate) const COMPRESSIONS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Counts what was not delivered.
#[derive(Debug, Default)]
struct Deliveries {
    failed: AtomicU64,
}

impl ClientContext for Deliveries {
    // The tests break brokers on purpose: what counts is what arrives.
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes records. What was sent is there after `flush` or `commit`; what was not flushed goes with the producer.
pub(crate) struct Producer {
    inner: BaseProducer<Deliveries>,
}

impl Kafka {
    /// A producer with further settings, such as `("compression.type", "lz4")`.
    pub(crate) fn producer(&self, settings: &[(&str, &str)]) -> Producer {
        let mut config = self.client();
        config.set("linger.ms", "5").set("acks", "all");
        for &(key, value) in settings {
            config.set(key, value);
        }
        let inner = config.create_with_context(Deliveries::default());
        Producer {
            inner: inner.expect("valid settings"),
        }
    }

    /// A producer of transactions: `begin`, send, `commit` or `abort`.
    pub(crate) fn transactional(&self, id: &str) -> Producer {
        self.transactional_with(id, &[])
    }

    /// As [`Kafka::transactional`], with further settings.
    pub(crate) fn transactional_with(&self, id: &str, settings: &[(&str, &str)]) -> Producer {
        let producer = self.producer(&[settings, &[("transactional.id", id)]].concat());
        let ready = producer.inner.init_transactions(PATIENT);
        ready.expect("the coordinator answers");
        producer
    }

    /// Everything in a topic, by partition, as a plain consumer reads it from the beginning to the end.
    pub(crate) fn read(&self, topic: &str, isolation: Isolation) -> Vec<Vec<OwnedMessage>> {
        let partitions = self.end_offsets(topic).len();
        let reader: BaseConsumer = self
            .client()
            .set("group.id", "reads-without-a-group")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.error.backoff.ms", "10")
            .set("fetch.queue.backoff.ms", "10")
            .set("isolation.level", isolation.level())
            .create()
            .expect("a client");
        let mut from = TopicPartitionList::new();
        for partition in 0..i32::try_from(partitions).expect("not so many") {
            from.add_partition_offset(topic, partition, Offset::Beginning)
                .expect("a valid offset");
        }
        reader.assign(&from).expect("an assignment");
        let mut read = vec![Vec::new(); partitions];
        let mut ended = 0;
        wait_until(PATIENT, "the end of every partition", || {
            while ended < partitions {
                match reader.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => {
                        read[index(&message)].push(message.detach());
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                    Some(Err(error)) => return Err(error.to_string()),
                    None => return Err(format!("{ended} of {partitions} partitions at the end")),
                }
            }
            Ok(())
        });
        read
    }

    /// Creates a topic that is compacted as soon as it can be; see [`Kafka::punch_holes`].
    pub(crate) fn create_compacted_topic(&self, name: &str, partitions: i32) {
        self.create_topic(name, partitions, &COMPACTED);
    }

    /// Has a topic of [`Kafka::create_compacted_topic`] compacted until every partition has lost at least `holes` of
    /// its records, then ends compaction, and gives the offsets that are left, by partition. What is to be compacted
    /// away has been produced before: keys that come again, tombstones.
    pub(crate) fn punch_holes(&self, topic: &str, holes: usize) -> Vec<Vec<i64>> {
        let producer = self.producer(&[]);
        let partitions = i32::try_from(self.end_offsets(topic).len()).expect("not so many");
        let mut rolls: usize = 0;
        wait_until(PATIENT, "compaction to leave holes", || {
            // The segment that is written to is never compacted: one more record begins the next.
            for partition in 0..partitions {
                let key = format!("roll-{rolls}");
                producer.send(
                    BaseRecord::to(topic)
                        .partition(partition)
                        .key(key.as_bytes()),
                );
            }
            producer.flush();
            rolls += 1;
            let offsets = self.offsets(topic);
            let punched = |offsets: &Vec<i64>| {
                let span = offsets.last().map_or(0, |&last| last + 1);
                usize::try_from(span).expect("an offset") - offsets.len() >= holes
            };
            if offsets.iter().all(punched) {
                Ok(())
            } else {
                Err(offsets.iter().map(Vec::len).collect::<Vec<_>>())
            }
        });
        self.configure_topic(
            topic,
            &[
                ("cleanup.policy", "compact"),
                ("min.compaction.lag.ms", "3600000"),
            ],
        );
        // A pass that was under way may still end: one begins every 100 ms, and a read takes longer.
        let mut before = Vec::new();
        let mut same = 0;
        wait_until(PATIENT, "compaction to end", || {
            let now = self.offsets(topic);
            same = if now == before { same + 1 } else { 0 };
            before = now;
            if same == 2 { Ok(()) } else { Err(same) }
        });
        before
    }

    /// The offsets that a topic's records have, by partition.
    pub(crate) fn offsets(&self, topic: &str) -> Vec<Vec<i64>> {
        let offsets = |read: &Vec<OwnedMessage>| read.iter().map(Message::offset).collect();
        self.read(topic, Isolation::Uncommitted)
            .iter()
            .map(offsets)
            .collect()
    }
}

/// Rolled and cleaned at once; tombstones go with what they delete.
const COMPACTED: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "50"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("delete.retention.ms", "0"),
    ("max.compaction.lag.ms", "1"),
];

impl Producer {
    /// Sends a record to the partition it names, waiting while the queue is full, or the partition so new that the
    /// producer does not know it yet.
    pub(crate) fn send(&self, record: BaseRecord<'_, [u8], [u8]>) {
        let mut unsent = Some(record);
        wait_until(PATIENT, "room in the producer's queue", || {
            let record = unsent.take().expect("it was given back");
            match self.inner.send(record) {
                Ok(()) => Ok(()),
                Err((KafkaError::MessageProduction(code), record))
                    if matches!(
                        code,
                        RDKafkaErrorCode::QueueFull | RDKafkaErrorCode::UnknownPartition
                    ) =>
                {
                    unsent = Some(record);
                    self.inner.poll(Duration::from_millis(10));
                    Err(code)
                }
                Err((error, _)) => panic!("a record cannot be sent: {error}"),
            }
        });
    }

    /// Sends the same `numbers` to each of the first `partitions` partitions, as decimal payloads without keys: in a
    /// topic that was empty, written from number 0, the number is the offset.
    pub(crate) fn send_numbers(&self, topic: &str, partitions: i32, numbers: Range<u64>) {
        for number in numbers {
            let payload = number.to_string();
            for partition in 0..partitions {
                let record = BaseRecord::to(topic).partition(partition);
                self.send(record.payload(payload.as_bytes()));
            }
            self.inner.poll(Duration::ZERO);
        }
    }

    /// As [`Producer::send_numbers`], to one partition only.
    pub(crate) fn send_numbers_to(&self, topic: &str, partition: i32, numbers: Range<u64>) {
        for number in numbers {
            let payload = number.to_string();
            let record = BaseRecord::to(topic).partition(partition);
            self.send(record.payload(payload.as_bytes()));
        }
        self.inner.poll(Duration::ZERO);
    }

    /// Sends a record with a key; without a payload it is a tombstone.
    pub(crate) fn send_keyed(&self, topic: &str, partition: i32, key: &str, payload: Option<&str>) {
        let record = BaseRecord::to(topic)
            .partition(partition)
            .key(key.as_bytes());
        self.send(match payload {
            Some(payload) => record.payload(payload.as_bytes()),
            None => record,
        });
    }

    /// Sends a record without a key, and says whether the broker took it; of a new producer.
    pub(crate) fn is_taken(&self, topic: &str, partition: i32, payload: &str) -> bool {
        let record = BaseRecord::to(topic).partition(partition);
        self.send(record.payload(payload.as_bytes()));
        self.inner
            .flush(PATIENT)
            .expect("there is an answer to the record");
        self.inner.context().failed.load(Ordering::Relaxed) == 0
    }

    /// Waits until everything is delivered; a record that could not be is a failure.
    pub(crate) fn flush(&self) {
        self.inner
            .flush(PATIENT)
            .expect("the records are delivered");
        let failed = self.inner.context().failed.load(Ordering::Relaxed);
        assert_eq!(failed, 0, "records that were not delivered");
    }

    pub(crate) fn begin(&self) {
        self.inner
            .begin_transaction()
            .expect("a transaction begins");
    }

    pub(crate) fn commit(&self) {
        self.flush();
        self.inner
            .commit_transaction(PATIENT)
            .expect("a transaction is committed");
    }

    pub(crate) fn abort(&self) {
        // Delivered first: an abort otherwise drops what is still queued, and there would be nothing to skip.
        self.flush();
        self.inner
            .abort_transaction(PATIENT)
            .expect("a transaction is aborted");
    }
}

/// The numbers that [`Producer::send_numbers`] wrote.
pub(crate) fn numbers(messages: &[OwnedMessage]) -> Vec<u64> {
    messages.iter().map(number).collect()
}

fn number(message: &OwnedMessage) -> u64 {
    let payload = message.payload().expect("a payload");
    let text = std::str::from_utf8(payload).expect("digits");
    text.parse().expect("a number")
}

fn index(message: &BorrowedMessage<'_>) -> usize {
    usize::try_from(message.partition()).expect("it is positive")
}
