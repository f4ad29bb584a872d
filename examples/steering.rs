//! Steers a run from outside: more workers, a pause, a seek, a stop.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example steering`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{Record, TopicPartition, Workers};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the handlers have seen that offset of partition 0.
fn wait_for(seen: &Receiver<(i32, i64)>, offset: i64) -> Result<(), Box<dyn Error>> {
    while seen.recv_timeout(PATIENCE)? != (0, offset) {}
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("jobs", 4)?;
    let producer = cluster.producer()?;
    let send = |partition: i32| producer.try_send("jobs", partition, None, Some(b"a job"));
    for number in 0..400 {
        send(number % 4)?;
    }
    producer.flush(PATIENCE)?;

    let (tell, seen) = sync_channel(10_000);
    let handle = keepup::builder(cluster.bootstrap(), "runners")
        .topic("jobs")
        .workers(Workers::Fixed(1))
        .start(move |_worker| {
            let tell = tell.clone();
            move |record: &Record<'_>| tell.send((record.partition(), record.offset()))
        })?;
    wait_for(&seen, 99)?;

    // Partitions move to the new workers without a rebalance.
    handle.scale(Workers::Fixed(4))?;

    // A paused partition keeps its place.
    let first = TopicPartition::new("jobs", 0);
    handle.pause(std::slice::from_ref(&first))?;
    send(0)?;
    send(1)?;
    producer.flush(PATIENCE)?;
    while seen.recv_timeout(PATIENCE)? != (1, 100) {}
    handle.resume(std::slice::from_ref(&first))?;
    wait_for(&seen, 100)?;

    // And it can be read again from anywhere.
    handle.seek(&first, 50)?;
    wait_for(&seen, 50)?;
    wait_for(&seen, 100)?;

    handle.stop();
    let report = handle.wait();
    println!(
        "{} records, {} workers, ended by {}",
        report.records,
        report.workers.len(),
        report.reason.name()
    );
    assert_eq!(report.exit_code(), 0);
    assert!(report.records >= 402 + 50, "{report:?}");
    Ok(())
}
