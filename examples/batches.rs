//! Handles records in batches, as one does where each call has a price of its
//! own (a database, an HTTP request), and keeps a connection per worker.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example batches`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{BatchHandler, BatchOutcome, Outcome, Records, TopicPartition, Workers};

/// Stands for a connection to a store that takes many rows at once.
struct Store {
    calls: Arc<AtomicU64>,
    rows: Arc<AtomicU64>,
}

impl BatchHandler for Store {
    fn handle(&mut self, records: &Records<'_>) -> BatchOutcome {
        let bytes: usize = records
            .iter()
            .filter_map(|record| record.value())
            .map(<[u8]>::len)
            .sum();
        if bytes == 0 {
            return Outcome::skip("nothing to store").into();
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(records.len() as u64, Ordering::Relaxed);
        BatchOutcome::done()
    }

    fn on_revoked(&mut self, partitions: &[TopicPartition]) {
        println!("{partitions:?} leave this worker; everything handed over is stored");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("clicks", 4)?;
    let producer = cluster.producer()?;
    for number in 0..10_000 {
        producer.try_send("clicks", number % 4, None, Some(b"a click"))?;
    }
    producer.flush(Duration::from_secs(10))?;

    let (calls, rows) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let report = {
        let (calls, rows) = (Arc::clone(&calls), Arc::clone(&rows));
        keepup::builder(cluster.bootstrap(), "warehouse")
            .topic("clicks")
            .workers(Workers::Fixed(2))
            .until_end(true)
            .run_batches(500, Duration::from_millis(50), move |_worker| Store {
                calls: Arc::clone(&calls),
                rows: Arc::clone(&rows),
            })?
    };

    let (calls, rows) = (calls.load(Ordering::Relaxed), rows.load(Ordering::Relaxed));
    println!("{rows} records in {calls} calls");
    assert_eq!((rows, report.records), (10_000, 10_000));
    assert!(
        (20..200).contains(&calls),
        "up to 500 records a call: {calls}"
    );
    Ok(())
}
