//! What a record costs the allocator: nothing.
//!
//! Timings flicker on shared machines; allocations do not. A counting allocator
//! counts what the whole process (but librdkafka, which is C) allocates between
//! two records of a run in its steady state. The ceilings only go down.

use std::alloc::System;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{Outcome, Record, Workers};
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Two partitions below the embedded cluster's 5 MiB each.
const RECORDS: u64 = 60_000;
/// The first answers fill pools and tables.
const WARM: u64 = 20_000;
/// Allocations per record. What there is belongs to answers of the broker and
/// batches (thousands of records each), to the member's ticks and to the count
/// itself.
const CEILING: f64 = 0.004;

#[test]
fn a_record_in_the_steady_state_costs_no_allocation() {
    let cluster = EmbeddedCluster::start(1).unwrap();
    cluster.create_topic("steady", 2).unwrap();
    let producer = cluster.producer().unwrap();
    let value = [b'x'; 100];
    for number in 0..RECORDS {
        producer
            .try_send("steady", i32::from(number % 2 == 0), None, Some(&value))
            .unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let marks: Arc<Mutex<Vec<(u64, Stats)>>> = Arc::default();
    let report = {
        let marks = Arc::clone(&marks);
        keepup::builder(cluster.bootstrap(), "allocations")
            .topic("steady")
            .workers(Workers::Fixed(1))
            .count(RECORDS)
            .run(move |_worker| {
                let marks = Arc::clone(&marks);
                let mut seen = 0;
                move |record: &Record<'_>| {
                    seen += 1;
                    if seen == WARM || seen == RECORDS {
                        marks.lock().unwrap().push((seen, ALLOCATOR.stats()));
                    }
                    if record.value().is_some() {
                        Outcome::Done
                    } else {
                        Outcome::stop("no value")
                    }
                }
            })
            .unwrap()
    };
    assert_eq!((report.exit_code(), report.records), (0, RECORDS));
    let marks = marks.lock().unwrap();
    let (first, last) = (&marks[0], &marks[1]);
    let allocations =
        last.1.allocations - first.1.allocations + last.1.reallocations - first.1.reallocations;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let per_record = allocations as f64 / (last.0 - first.0) as f64;
    println!(
        "{allocations} allocations for {} records: {per_record:.4} each",
        last.0 - first.0
    );
    assert!(
        per_record <= CEILING,
        "{per_record} allocations per record, at most {CEILING}"
    );
}
