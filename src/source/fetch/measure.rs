//! Not tests: what the parts cost, for whoever changes them.
//!
//! ```text
//! cargo test --release -p keepup --lib -- --ignored --nocapture cost_of_a_record
//! KEEPUP_TEST_BOOTSTRAP=… KEEPUP_TEST_TOPIC=… [KEEPUP_TEST_FILL=8000000 KEEPUP_TEST_CODEC=lz4 KEEPUP_TEST_SIZE=1000] \
//!     cargo test --release -p keepup --lib -- --ignored --nocapture cost_of_fetching
//! ```
//!
//! The second reads a topic to its ends with two sources on two threads, and
//! prints what `keepup perf` prints. Compare it with `benches/bare_reader.rs`
//! in the same minute only.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::buffers::BufferPool;
use super::compression::{Codec, Decompressor};
use super::encode::{TestBatch, TestRecord};
use super::record_set::RecordSetReader;
use crate::clock::{Clock, Coarse};
use crate::kafka::cluster::Cluster;
use crate::kafka::lookup::{Lookup, Sinks};
use crate::kafka::mock::{Outgoing, Sender};
use crate::kafka::{ConnectionSettings, Isolation};
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::source::fetch::FetchFactory;
use crate::source::{MemoryBudget, Pulled, ReadFrom, SourceFactory, Waker};

/// Touches every payload, as `keepup perf` does.
fn handle(batch: &Batch, sum: &mut u64) {
    for index in 0..batch.entries.len() {
        let value = batch.record(index, 1).and_then(|record| record.value());
        let value = value.unwrap_or_default();
        *sum = sum.wrapping_add(value.len() as u64);
        if let Some(first) = value.first_chunk() {
            *sum ^= u64::from_le_bytes(*first);
        }
    }
}

fn payload(len: usize, seed: u64) -> Vec<u8> {
    // Half of it compresses.
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len)
        .map(|at| if at % 2 == 0 { b'x' } else { random.u8(..) })
        .collect()
}

#[test]
#[ignore = "measures"]
fn cost_of_a_record() {
    let clock = Clock::System;
    for codec in [
        None,
        Some(Codec::Gzip),
        Some(Codec::Snappy),
        Some(Codec::Lz4),
        Some(Codec::Zstd),
    ] {
        let mut set = Vec::new();
        let mut total = 0;
        while total < 14_000 {
            let records = (0..150)
                .map(|index| TestRecord {
                    timestamp_delta: index / 10,
                    value: Some(payload(100, index.unsigned_abs())),
                    ..TestRecord::default()
                })
                .collect();
            set.extend(TestBatch::new(total, records).compressed(codec).encode());
            total += 150;
        }
        let set = Bytes::from(set);
        let pool = BufferPool::new(1 << 26, Waker::new(|| {}));
        let mut decompressor = Decompressor::default();
        let mut entries = Vec::new();
        let mut sum = 0;
        // The machine may be shared: the fastest of many rounds is what it costs.
        let mut best = [Duration::MAX; 3];
        for _ in 0..500 {
            let start = clock.now();
            sum ^= u64::from(crc32c::crc32c(&set));
            best[0] = best[0].min(clock.now() - start);
            for (round, is_read) in [(1, false), (2, true)] {
                let mut records = 0;
                let start = clock.now();
                let mut reader =
                    RecordSetReader::new(set.clone(), 0, None, Isolation::default(), Vec::new());
                while let Some(piece) = reader.next(&mut decompressor, &pool, &mut entries).unwrap()
                {
                    let batch = Batch {
                        partition: TopicPartition::new("orders", 0),
                        epoch: AssignmentEpoch(1),
                        bytes: piece.bytes,
                        entries,
                        cursor: 0,
                        next_offset: piece.next_offset,
                        end_offset: -1,
                        log_start: -1,
                        fetched_at: Coarse::ZERO,
                    };
                    records += batch.entries.len();
                    if is_read {
                        handle(&batch, &mut sum);
                    }
                    entries = batch.entries;
                }
                assert_eq!(i64::try_from(records).unwrap(), total);
                best[round] = best[round].min(clock.now() - start);
            }
        }
        let [crc, index, all] = best.map(|best| best / u32::try_from(total).unwrap());
        println!("{codec:?}: CRC {crc:?}, CRC and index {index:?}, and iterate {all:?} ({sum})");
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("KEEPUP_TEST_{name}")).ok()
}

fn fill(bootstrap: &str, topic: &str, partitions: i32, count: usize) {
    let codec = setting("CODEC").unwrap_or_else(|| "none".to_owned());
    let size = setting("SIZE").map_or(100, |size| size.parse().unwrap());
    let sender = Sender::new(
        bootstrap,
        &[
            ("compression.type", &codec),
            // As Java's producer: 16 KiB.
            ("batch.size", "16384"),
            ("queue.buffering.max.messages", "500000"),
        ],
    )
    .unwrap();
    let payloads: Vec<_> = (0..997).map(|seed| payload(size, seed)).collect();
    let each = count / usize::try_from(partitions).unwrap();
    for partition in 0..partitions {
        let records = payloads.iter().cycle().take(each).map(|value| Outgoing {
            value: Some(value.clone()),
            ..Outgoing::default()
        });
        sender.send(topic, partition, records).unwrap();
    }
}

#[test]
#[ignore = "measures"]
fn cost_of_fetching() {
    const WORKERS: usize = 2;
    let bootstrap = setting("BOOTSTRAP").expect("KEEPUP_TEST_BOOTSTRAP=host:port");
    let topic: Arc<str> = setting("TOPIC").expect("KEEPUP_TEST_TOPIC=name").into();
    let clock = Clock::System;
    let settings = ConnectionSettings::new(vec![bootstrap.clone()]);
    let (cluster, rings) = Cluster::new();
    let sinks = Sinks {
        starts: Box::new(|_| {}),
        topics: Box::new(|_| {}),
    };
    let lookup = Lookup::start(
        settings.clone(),
        clock.clone(),
        cluster.clone(),
        rings,
        sinks,
    )
    .unwrap();
    if setting("FILL").is_some() {
        Sender::new(&bootstrap, &[])
            .unwrap()
            .create_by_asking(&topic)
            .unwrap();
    }
    lookup.want_topics([Arc::clone(&topic)]);
    let partitions = loop {
        let snapshot = cluster.snapshot();
        let known = snapshot.topics.get(&topic).map_or(0, |topic| {
            let led = topic.partitions.iter().all(|it| it.leader.is_some());
            if led { topic.partitions.len() } else { 0 }
        });
        if known > 0 {
            break i32::try_from(known).unwrap();
        }
        std::thread::yield_now();
    };
    if let Some(count) = setting("FILL") {
        fill(&bootstrap, &topic, partitions, count.parse().unwrap());
    }

    let budget = Arc::new(MemoryBudget::new(MemoryBudget::DEFAULT));
    budget.set_workers(WORKERS);
    let factory = FetchFactory::new(cluster, Arc::new(settings), budget, clock.clone());
    let begin = clock.now();
    let cpu_before = cpu();
    let read: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (factory, topic, clock) = (&factory, &topic, &clock);
                scope.spawn(move || {
                    let mut source = factory.open(worker).unwrap();
                    let mut open = 0;
                    for index in (0..partitions).skip(worker).step_by(WORKERS) {
                        source.start(ReadFrom {
                            partition: TopicPartition::new(Arc::clone(topic), index),
                            epoch: AssignmentEpoch(u64::from(index.unsigned_abs()) + 1),
                            offset: 0,
                            until: None,
                            paused: false,
                        });
                        open += 1;
                    }
                    let (mut sum, mut count) = (0, 0);
                    while open > 0 {
                        match source.next(clock.now() + Duration::from_secs(1)) {
                            Pulled::Batch(batch) => {
                                handle(&batch, &mut sum);
                                count += batch.entries.len() as u64;
                                if batch.next_offset == batch.end_offset {
                                    open -= 1;
                                    source.stop(batch.epoch);
                                }
                                source.recycle(batch);
                            }
                            Pulled::Nothing => {}
                            failed @ Pulled::Failed { .. } => panic!("{failed:?}"),
                        }
                    }
                    std::hint::black_box(sum);
                    count
                })
            })
            .collect();
        workers.into_iter().map(|it| it.join().unwrap()).sum()
    });
    let seconds = (clock.now() - begin).as_secs_f64();
    let cpu = cpu().saturating_sub(cpu_before).as_secs_f64();
    let records = f64::from(u32::try_from(read).unwrap());
    println!(
        "fetch source: {read} records, {:.1} M/s, {:.0} ns of CPU each, peak {} KiB",
        records / seconds / 1e6,
        cpu / records * 1e9,
        peak_kib(),
    );
}

/// CPU time of the process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

fn peak_kib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or("?")
        .to_owned()
}
