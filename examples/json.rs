//! Decodes records before they are handled: what is no order goes to the
//! dead-letter topic at once, and what fails on the way is retried.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example json`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{Outcome, Record};
use serde::Deserialize;

#[derive(Deserialize)]
struct Order {
    id: u64,
    cents: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    for topic in ["orders", "orders-dead"] {
        cluster.create_topic(topic, 1)?;
    }
    let producer = cluster.producer()?;
    for id in 0..100_u32 {
        let value = if id % 10 == 3 {
            format!("order {id}, please")
        } else {
            format!(r#"{{"id":{id},"cents":250}}"#)
        };
        producer.try_send("orders", 0, None, Some(value.as_bytes()))?;
    }
    producer.flush(Duration::from_secs(10))?;

    let (sum, retries) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let report = {
        let (sum, retries) = (Arc::clone(&sum), Arc::clone(&retries));
        keepup::builder(cluster.bootstrap(), "billing")
            .topic("orders")
            .dead_letter("orders-dead")
            .until_end(true)
            .run(move |_worker| {
                let (sum, retries) = (Arc::clone(&sum), Arc::clone(&retries));
                keepup::json(move |order: Order, record: &Record<'_>| {
                    if order.id == 50 && record.attempt() == 1 {
                        retries.fetch_add(1, Ordering::Relaxed);
                        return Outcome::retry("the bank does not answer");
                    }
                    sum.fetch_add(order.cents, Ordering::Relaxed);
                    Outcome::Done
                })
            })?
    };

    let (sum, retries) = (sum.load(Ordering::Relaxed), retries.load(Ordering::Relaxed));
    println!("{} records, {sum} cents, {retries} retried", report.records);
    assert_eq!((report.records, sum, retries), (100, 90 * 250, 1));

    let left = Arc::new(AtomicU64::new(0));
    let is_left = Arc::clone(&left);
    keepup::builder(cluster.bootstrap(), "audit")
        .topic("orders-dead")
        .until_end(true)
        .run(move |_worker| {
            let left = Arc::clone(&is_left);
            move |record: &Record<'_>| {
                if left.fetch_add(1, Ordering::Relaxed) == 0 {
                    let why = record.header("kafka_dlt-exception-message");
                    println!("{}", String::from_utf8_lossy(why.unwrap_or_default()));
                }
            }
        })?;
    assert_eq!(left.load(Ordering::Relaxed), 10, "those that are no orders");
    Ok(())
}
