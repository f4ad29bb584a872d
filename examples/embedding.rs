//! Makes a consumer part of a service that decides by its lag: it takes more
//! workers when a backlog grows, gives them back when that is worked off, and
//! stops when its work is done. No metrics system stands in between: the numbers
//! come to the program, once a second.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example embedding`

#![expect(clippy::print_stdout, reason = "an example shows its result")]
#![expect(clippy::disallowed_methods, reason = "a sleep stands for the work")]

use std::error::Error;
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{Handle, LagSnapshot, Record, Workers};

const PARTITIONS: i32 = 4;

/// What one worker alone would need four seconds for.
const BACKLOG: i32 = 2_000;
const TIME_PER_RECORD: Duration = Duration::from_millis(2);

/// From that lag on one worker is not enough.
const TOO_MUCH: u64 = 500;

/// How many snapshots the whole thing may take.
const PATIENCE: usize = 60;

/// How many workers a lag calls for. Between the two bounds nothing changes, or
/// each snapshot would undo what the last one did.
fn wanted(total_lag: u64, now: usize) -> usize {
    match total_lag {
        0 => 1,
        TOO_MUCH.. => 4,
        _ => now,
    }
}

/// What the service decided so far.
struct Pacing {
    workers: usize,
    highest: usize,
}

impl Pacing {
    fn decide(&mut self, handle: &Handle, lag: &LagSnapshot) -> Result<(), keepup::CommandError> {
        // Unknown is not zero: without a number nothing is decided.
        let Some(total) = lag.total_lag() else {
            return Ok(());
        };
        let wanted = wanted(total, self.workers);
        if wanted != self.workers {
            println!(
                "{total} records behind: workers {} -> {wanted}",
                self.workers
            );
            handle.scale(Workers::Fixed(wanted))?;
            self.workers = wanted;
            self.highest = self.highest.max(wanted);
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("jobs", PARTITIONS)?;
    let producer = cluster.producer()?;
    for number in 0..BACKLOG {
        producer.try_send("jobs", number % PARTITIONS, None, Some(b"a job"))?;
    }
    producer.flush(Duration::from_secs(10))?;

    let handle = keepup::builder(cluster.bootstrap(), "runners")
        .topic("jobs")
        .workers(Workers::Fixed(1))
        .label("service", "runners")
        .stuck_after(Duration::from_secs(30))
        .start(|_worker| |_record: &Record<'_>| std::thread::sleep(TIME_PER_RECORD))?;

    let mut pacing = Pacing {
        workers: 1,
        highest: 1,
    };
    let mut updates = handle.lag_updates();
    let mut last = None;
    for _ in 0..PATIENCE {
        let Some(lag) = updates.next_within(Duration::from_secs(5)) else {
            break;
        };
        if !lag.health.is_live() {
            return Err(format!("cannot go on: {:?}", lag.health.not_live).into());
        }
        if let Some(why) = &lag.health.not_ready {
            println!("not ready: {why}");
            continue;
        }
        for partition in &lag.partitions {
            println!(
                "{}: {:?} behind, {:?} at most, oldest {:?}",
                partition.partition,
                partition.records_lag,
                partition.records_lag_max,
                partition.time_lag,
            );
        }
        pacing.decide(&handle, &lag)?;
        let done: u64 = lag.topics.iter().map(|topic| topic.records).sum();
        let is_over = done == u64::from(BACKLOG.unsigned_abs()) && lag.total_lag() == Some(0);
        last = Some(lag);
        if is_over {
            break;
        }
    }

    handle.stop();
    let report = handle.wait();
    let last = last.ok_or("there was no snapshot")?;
    println!(
        "{} records, up to {} workers, ended by {}",
        report.records,
        pacing.highest,
        report.reason.name()
    );
    assert_eq!(report.exit_code(), 0);
    assert_eq!(last.total_lag(), Some(0));
    assert_eq!(last.partitions.len(), usize::try_from(PARTITIONS)?);
    assert_eq!((pacing.highest, pacing.workers), (4, 1));
    assert!(updates.has_ended());
    Ok(())
}
