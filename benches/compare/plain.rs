//! The loop that people write by hand: a `BaseConsumer` per thread, polled.
//!
//! Each client is given its half of the partitions, so that no time is spent on
//! joining, and commits as rdkafka does by default.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::PARTITIONS;
use crate::clients::Task;
use crate::measure::{Measured, Sum};

const SETTINGS: [(&str, &str); 4] = [
    // librdkafka's default of one second is what most loops run into first.
    ("fetch.queue.backoff.ms", "5"),
    ("check.crcs", "true"),
    ("enable.auto.commit", "true"),
    ("auto.offset.reset", "earliest"),
];

/// What rdkafka's clients are given beside librdkafka's defaults.
pub(crate) fn settings_text() -> String {
    SETTINGS
        .map(|(name, value)| format!("`{name}={value}`"))
        .join(", ")
}

/// The settings, partitions and number of records of one of rdkafka's clients.
pub(crate) fn part(task: &Task, number: usize) -> (ClientConfig, TopicPartitionList, u64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &task.bootstrap);
    config.set("group.id", format!("bench-plain-{}", std::process::id()));
    for (name, value) in SETTINGS {
        config.set(name, value);
    }
    if let Some(authority) = &task.authority {
        config.set("security.protocol", "ssl");
        config.set("ssl.ca.location", authority);
    }
    let mut mine = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        if usize::try_from(partition).unwrap_or(0) % task.threads == number {
            mine.add_partition_offset(&task.topic, partition, Offset::Beginning)
                .expect("a valid offset");
        }
    }
    // The records are spread evenly over the partitions.
    let share = u64::try_from(mine.count()).unwrap_or(0) * task.records
        / u64::from(PARTITIONS.unsigned_abs());
    (config, mine, share)
}

pub(crate) fn run(task: &Task) {
    let measured = Arc::new(Measured::new());
    let threads: Vec<_> = (0..task.threads)
        .map(|number| {
            let (config, mine, share) = part(task, number);
            let measured = Arc::clone(&measured);
            let body = move || {
                let consumer: BaseConsumer = config.create().expect("a consumer");
                consumer.assign(&mine).expect("an assignment");
                let mut sum = Sum::default();
                while sum.records < share {
                    match consumer.poll(Duration::from_secs(10)) {
                        Some(Ok(message)) => {
                            if sum.records == 0 {
                                measured.begin();
                            }
                            sum.add(message.payload().unwrap_or_default());
                        }
                        Some(Err(error)) => panic!("{error}"),
                        // Also after an event that was served, such as a commit.
                        None => {}
                    }
                }
                (sum, consumer)
            };
            std::thread::Builder::new().spawn(body).expect("a thread")
        })
        .collect();
    // The clients are closed after the last record was measured.
    let (sums, consumers): (Vec<Sum>, Vec<BaseConsumer>) = threads
        .into_iter()
        .map(|thread| thread.join().expect("a client ends"))
        .unzip();
    measured.print("plain-loop", task.threads, &sums);
    drop(consumers);
}
