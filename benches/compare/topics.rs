//! Topics, and what is in them.
//!
//! Values are pieces of JSON whose fields differ from record to record, as
//! events of a shop would: one repeated byte compresses to nothing, which makes
//! decompressing it look free. They have no headers, and keys only where
//! a row is about these. Batches are
//! as large as librdkafka makes them under load (1 MB, 10,000 records).

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::rows::Work;

/// Creates a topic; false where it is there already.
pub(crate) fn create(bootstrap: &str, name: &str, partitions: i32) -> bool {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("an admin client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_mins(1)));
    let created = futures_executor::block_on(admin.create_topics([&topic], &options))
        .expect("the broker answers");
    match created.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => false,
        Some(Err((_, error))) => panic!("topic {name} cannot be created: {error}"),
        _ => true,
    }
}

/// The topic of that work, created and filled where it is not there yet.
pub(crate) fn filled(bootstrap: &str, work: &Work, records: u64) -> String {
    let Work {
        value: size,
        compression,
        partitions,
        keys,
        ..
    } = *work;
    let name = format!("bench-{size}-{compression}-{partitions}-{keys}-{records}");
    if !create(bootstrap, &name, partitions) {
        return name;
    }
    let began = Instant::now();
    Source::new(bootstrap, &name, work).send(records);
    eprint!("(filled in {:.0} s) ", began.elapsed().as_secs_f64());
    name
}

/// Sends the records of a work to a topic.
pub(crate) struct Source {
    producer: BaseProducer,
    topic: String,
    work: Work,
    events: Events,
    sent: u64,
}

impl Source {
    pub(crate) fn new(bootstrap: &str, topic: &str, work: &Work) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("compression.type", work.compression)
            .set("linger.ms", "20")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", "262144")
            .set("acks", "1")
            .create()
            .expect("a producer");
        Self {
            producer,
            topic: topic.to_owned(),
            work: *work,
            events: Events::new(work.value),
            sent: 0,
        }
    }

    /// So many more, a partition after the other; they are there when it returns.
    pub(crate) fn send(&mut self, records: u64) {
        let Work {
            partitions, keys, ..
        } = self.work;
        for number in self.sent..self.sent + records {
            let partition =
                i32::try_from(number % u64::from(partitions.unsigned_abs())).unwrap_or(0);
            let key = number.checked_rem(keys).map(u64::to_be_bytes);
            let mut record = BaseRecord::<[u8], [u8]>::to(&self.topic)
                .partition(partition)
                .payload(self.events.next());
            record.key = key.as_ref().map(|key| &key[..]);
            while let Err((error, back)) = self.producer.send(record) {
                assert!(
                    matches!(
                        error,
                        KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)
                    ),
                    "{error}"
                );
                self.producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        self.sent += records;
        self.producer
            .flush(Duration::from_mins(2))
            .expect("everything is delivered");
    }
}

/// Makes values, the same in every run.
struct Events {
    random: fastrand::Rng,
    size: usize,
    text: String,
    at: u64,
}

impl Events {
    fn new(size: usize) -> Self {
        Self {
            random: fastrand::Rng::with_seed(0x6b65_6570_7570),
            size,
            text: String::new(),
            at: 1_700_000_000_000,
        }
    }

    fn next(&mut self) -> &[u8] {
        const KINDS: [&str; 6] = ["placed", "paid", "packed", "sent", "returned", "refunded"];
        self.text.clear();
        while self.text.len() < self.size {
            let random = &mut self.random;
            self.at += random.u64(0..3);
            let _ = write!(
                self.text,
                r#"{{"at":{},"order":"{:010x}","kind":"{}","customer":{},"cents":{},"items":{},"paid":{}}}"#,
                self.at,
                random.u64(..1 << 40),
                random.choice(KINDS).unwrap_or_default(),
                random.u32(10_000..99_999),
                random.u32(100..99_999),
                random.u32(1..9),
                random.bool(),
            );
        }
        &self.text.as_bytes()[..self.size]
    }
}
