//! Workers that are processes: a handler panics, which is a failed record as it is
//! in a thread; another takes its whole process down, and the others and its
//! successor go on without it.
//!
//! Runs on a cluster inside the process that is started first:
//! `cargo run -p keepup --features testing --example processes`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{EventKind, Model, Record, Workers};

const RECORDS: i32 = 300;

fn main() -> Result<(), Box<dyn Error>> {
    // All of this happens in every process of the run. The cluster is in the first
    // one, which tells the others where it is.
    let cluster = if keepup::is_worker_process() {
        None
    } else {
        Some(cluster_with_records()?)
    };
    let bootstrap = cluster.as_ref().map_or("", EmbeddedCluster::bootstrap);

    let retried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&retried);
    let report = keepup::builder(bootstrap, "billing")
        .topic("orders")
        .model(Model::Processes)
        .workers(Workers::Fixed(2))
        .until_end(true)
        .on_event(move |event| match &event.kind {
            EventKind::WorkerStarted { pid: Some(pid) } => println!("process {pid} works"),
            EventKind::WorkerStopped { .. } | EventKind::WorkerRestarted { .. } => {
                println!("{event}");
            }
            EventKind::RecordRetried { .. } => {
                println!("{event}");
                count.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        })
        .run(|worker| {
            move |record: &Record<'_>| {
                let is = |partition, offset| {
                    (record.partition(), record.offset()) == (partition, offset)
                };
                assert!(!is(0, 10) || record.attempt() > 1, "not at once");
                // What takes down a whole process takes down this worker only.
                if is(1, 42) && worker.restarts <= 1 {
                    std::process::abort();
                }
            }
        })?;

    // Only the first process comes here.
    println!(
        "{} records, ended by {}",
        report.records,
        report.reason.name()
    );
    assert_eq!(retried.load(Ordering::Relaxed), 1);
    assert!(report.records >= u64::try_from(RECORDS)?);
    assert_eq!(report.left_uncommitted, 0);
    assert_eq!(report.exit_code(), 0);
    Ok(())
}

fn cluster_with_records() -> Result<EmbeddedCluster, Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("orders", 3)?;
    let producer = cluster.producer()?;
    for number in 0..RECORDS {
        let value = number.to_string();
        producer.try_send("orders", number % 3, None, Some(value.as_bytes()))?;
    }
    producer.flush(Duration::from_secs(10))?;
    Ok(cluster)
}
