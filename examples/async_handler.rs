//! Handles records as futures: one worker has many calls to a slow service under
//! way at a time, and the records of each customer keep their order.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing,tokio --example async_handler`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{AsyncHandler, Order, Outcome, OwnedRecord, Workers};

const CUSTOMERS: u32 = 100;
const RECORDS: u32 = 2_000;

/// Stands for a service that takes 10 ms to answer, however many ask.
async fn charge(_customer: &[u8]) -> Result<(), std::io::Error> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(())
}

/// What was charged, by customer, and how many calls were under way at most.
#[derive(Default)]
struct Ledger {
    numbers: BTreeMap<Vec<u8>, Vec<u64>>,
    most_at_once: usize,
}

/// A worker's handler, shared by its futures: they run on one thread.
struct Charge {
    under_way: Cell<usize>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Charge {
    async fn charge(&self, record: &OwnedRecord) -> Result<(), Outcome> {
        // What cannot be decoded is rejected, and a service that fails is asked
        // again later.
        let number: u64 = record.json()?;
        let customer = record.key().unwrap_or_default();
        charge(customer).await?;
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.most_at_once = ledger.most_at_once.max(self.under_way.get());
        let numbers = ledger.numbers.entry(customer.to_vec()).or_default();
        numbers.push(number);
        Ok(())
    }
}

impl AsyncHandler for Charge {
    async fn handle(&self, record: OwnedRecord) -> Outcome {
        self.under_way.set(self.under_way.get() + 1);
        let charged = self.charge(&record).await;
        self.under_way.set(self.under_way.get() - 1);
        charged.err().unwrap_or(Outcome::Done)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("orders", 1)?;
    let producer = cluster.producer()?;
    for number in 0..RECORDS {
        let (customer, value) = (number % CUSTOMERS, number.to_string());
        let key = format!("customer {customer}");
        producer.try_send("orders", 0, Some(key.as_bytes()), Some(value.as_bytes()))?;
    }
    producer.flush(Duration::from_secs(10))?;

    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let report = {
        let ledger = Arc::clone(&ledger);
        keepup::builder(cluster.bootstrap(), "billing")
            .topic("orders")
            .order(Order::Key)
            .workers(Workers::Fixed(1))
            .in_flight(64)
            .until_end(true)
            .run_async(move |_worker| Charge {
                under_way: Cell::new(0),
                ledger: Arc::clone(&ledger),
            })?
    };

    let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} records by one worker, up to {} at a time",
        report.records, ledger.most_at_once
    );
    assert_eq!(report.records, u64::from(RECORDS));
    assert!((32..=64).contains(&ledger.most_at_once));
    assert_eq!(ledger.numbers.len(), CUSTOMERS as usize);
    let in_order = |numbers: &Vec<u64>| numbers.is_sorted() && numbers.len() == 20;
    assert!(ledger.numbers.values().all(in_order));
    Ok(())
}
