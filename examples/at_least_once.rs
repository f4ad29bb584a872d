//! The smallest useful consumer, whole: it stops when everything was handled,
//! and a record that fails is handed over again.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example at_least_once`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{EventKind, Record};

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("orders", 3)?;
    let producer = cluster.producer()?;
    for number in 0..300 {
        producer.try_send(
            "orders",
            number % 3,
            None,
            Some(number.to_string().as_bytes()),
        )?;
    }
    producer.flush(Duration::from_secs(10))?;

    let report = keepup::builder(cluster.bootstrap(), "billing")
        .topic("orders")
        .until_end(true)
        .on_event(|event| {
            if let EventKind::RecordRetried {
                partition,
                offset,
                error,
                ..
            } = &event.kind
            {
                println!("{partition}@{offset} is handed over again: {error}");
            }
        })
        .run(|_worker| {
            |record: &Record<'_>| {
                // The first attempt at one of the records fails.
                if record.offset() == 42 && record.partition() == 1 && record.attempt() == 1 {
                    return Err("the database did not answer");
                }
                Ok(())
            }
        })?;

    println!(
        "{} records, ended by {}",
        report.records,
        report.reason.name()
    );
    assert_eq!(report.records, 300);
    assert_eq!(report.left_uncommitted, 0);
    assert_eq!(report.exit_code(), 0);
    Ok(())
}
