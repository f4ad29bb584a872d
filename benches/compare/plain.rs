//! The loop that people write by hand: a `BaseConsumer` per thread, polled.
//!
//! Each client is given its half of the partitions, so that no time is spent on
//! joining, and commits as rdkafka does by default.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::measure::{Measured, Sum};
use crate::{ClientArguments, PARTITIONS};

/// A loop that hears nothing for so long does not measure anything.
const PATIENCE: Duration = Duration::from_mins(1);

const SETTINGS: [(&str, &str); 4] = [
    // librdkafka's default of one second is what most loops run into first.
    ("fetch.queue.backoff.ms", "5"),
    ("check.crcs", "true"),
    ("enable.auto.commit", "true"),
    ("auto.offset.reset", "earliest"),
];

pub(crate) fn settings_text() -> String {
    let settings: Vec<String> = SETTINGS
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!(
        "BaseConsumer per thread, {}, else librdkafka's defaults",
        settings.join(" ")
    )
}

pub(crate) fn run(arguments: &ClientArguments) {
    let measured = Arc::new(Measured::new());
    let threads: Vec<_> = (0..arguments.threads)
        .map(|number| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", &arguments.bootstrap);
            config.set("group.id", format!("bench-plain-{}", std::process::id()));
            for (name, value) in SETTINGS {
                config.set(name, value);
            }
            let mut mine = TopicPartitionList::new();
            for partition in 0..PARTITIONS {
                if usize::try_from(partition).unwrap_or(0) % arguments.threads == number {
                    mine.add_partition_offset(&arguments.topic, partition, Offset::Beginning)
                        .expect("a valid offset");
                }
            }
            // The records are spread evenly over the partitions.
            let share = u64::try_from(mine.count()).unwrap_or(0) * arguments.records
                / u64::from(PARTITIONS.unsigned_abs());
            let measured = Arc::clone(&measured);
            let body = move || {
                let consumer: BaseConsumer = config.create().expect("a consumer");
                consumer.assign(&mine).expect("an assignment");
                let mut sum = Sum::default();
                let mut heard = Instant::now();
                while sum.records < share {
                    match consumer.poll(Duration::from_secs(10)) {
                        Some(Ok(message)) => {
                            if sum.records == 0 {
                                measured.begin();
                            }
                            sum.add(message.payload().unwrap_or_default());
                        }
                        // Also after an event that was served, such as a commit.
                        None if heard.elapsed() < PATIENCE => continue,
                        Some(Err(error)) => panic!("{error}"),
                        None => panic!("no record for {PATIENCE:?}"),
                    }
                    if sum.records % 65_536 == 0 {
                        heard = Instant::now();
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
    measured.print("plain-loop", arguments.threads, &sums);
    drop(consumers);
}
