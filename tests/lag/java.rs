//! The lag of Apache Kafka's own consumer, beside ours.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use keepup::{LagSnapshot, Record, Workers};
use serde_json::Value;

use super::{lag_of, unix_ms};
use crate::support::kafka::Kafka;
use crate::support::process::{repository, thread};
use crate::support::run::{Events, builder, end_of, work_for};
use crate::support::{PATIENT, SOON};

/// Records in each of the two partitions.
const RECORDS: u32 = 2_000;

/// One record in that time, whichever partition it is of.
const PACE: Duration = Duration::from_millis(2);

/// What the Java consumer takes at a time: `max.poll.records`.
const CHUNK: f64 = 50.0;

/// What one client knows of a partition: records-lag, its maximum and its average.
type Known = (f64, f64, f64);

/// A partition's numbers, and when they were (ms since the first record).
#[derive(Debug)]
struct Look {
    at: f64,
    known: [Option<Known>; 2],
}

#[test]
fn a_java_consumer_with_the_same_pattern_shows_the_same_lag_max_and_avg() {
    let kafka = kafka!(shared);
    let name = "lag-java";
    kafka.create_topic(name, 2, &[]);
    // Batches of ten, so that a fetch of 4 kB is about a chunk.
    let producer = kafka.producer(&[("batch.num.messages", "10")]);
    producer.send_numbers(name, 2, 0..u64::from(RECORDS));
    producer.flush();

    let java = thread("java", move || java_looks(kafka, name));
    let ours = our_looks(kafka, name);
    let java = java.join().expect("the Java consumer ends");
    compare(&java, &ours);
}

fn java_looks(kafka: &Kafka, topic: &str) -> Vec<Look> {
    let source = repository().join("tests/kafka/LagWitness.java");
    let source = source.to_str().expect("a path in UTF-8");
    let records = (2 * RECORDS).to_string();
    let pace = PACE.as_micros().to_string();
    let group = format!("{topic}-java");
    let output = kafka.tool(source, &[&group, topic, "2", &records, &pace], PATIENT);
    assert_eq!(
        output.code,
        Some(0),
        "it needs a JDK, not only a runtime: {output:?}"
    );
    let lines = output.stdout.lines();
    lines
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            let known = |partition: usize| {
                let of = &line["partitions"][partition];
                Some((
                    of["lag"].as_f64()?,
                    of["max"].as_f64()?,
                    of["avg"].as_f64()?,
                ))
            };
            Look {
                at: line["elapsed_ms"].as_f64().expect("a time"),
                known: [known(0), known(1)],
            }
        })
        .collect()
}

/// The same with keepup: one look per snapshot, until both lags are 0.
fn our_looks(kafka: &Kafka, name: &str) -> Vec<Look> {
    let first = Arc::new(OnceLock::new());
    let events = Events::default();
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(1))
        .start({
            let first = Arc::clone(&first);
            move |_| {
                let (first, mut handled) = (Arc::clone(&first), 0);
                move |_: &Record<'_>| {
                    let (start, _) = first.get_or_init(|| (Instant::now(), unix_ms()));
                    handled += 1;
                    work_for((PACE * handled).saturating_sub(start.elapsed()));
                }
            }
        })
        .expect("the run starts");
    let mut updates = handle.lag_updates();
    let mut looks = Vec::new();
    let begin = Instant::now();
    loop {
        let snapshot = updates.next_within(SOON).expect("a tick");
        let Some((_, first)) = first.get() else {
            continue;
        };
        let look = look(&snapshot, name, *first);
        let over = look
            .known
            .iter()
            .all(|known| known.is_some_and(|known| known.0 == 0.0));
        looks.push(look);
        if over {
            break;
        }
        assert!(begin.elapsed() < PATIENT, "{looks:?}");
    }
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
    looks
}

fn look(snapshot: &LagSnapshot, topic: &str, first_ms: i64) -> Look {
    let known = |partition| {
        let lag = lag_of(snapshot, topic, partition)?;
        let float = |records: u64| f64::from(u32::try_from(records).expect("a few"));
        Some((
            float(lag.records_lag?),
            float(lag.records_lag_max?),
            lag.records_lag_avg?,
        ))
    };
    let at = i32::try_from(snapshot.taken_at_ms - first_ms).expect("not so long");
    Look {
        at: f64::from(at),
        known: [known(0), known(1)],
    }
}

/// Records-lag at a moment, on the line between the looks around it.
fn lag_at(looks: &[Look], partition: usize, at: f64) -> Option<f64> {
    let (before, after) = looks
        .windows(2)
        .map(|pair| (&pair[0], &pair[1]))
        .find(|(before, after)| before.at <= at && at <= after.at)?;
    let (from, to) = (before.known[partition]?.0, after.known[partition]?.0);
    let share = (at - before.at) / (after.at - before.at).max(1.0);
    Some(from + (to - from) * share)
}

/// How far they may be apart, and why: both lags fall from 2,000 to 0 on a line, 1 record per 4 ms. Java's number is
/// of the last chunk that it drained, so it stands still for up to two chunks of either partition; ours follows each
/// record, but a worker takes one partition for a turn of 50 ms and then the other. A chunk for Java, a chunk for the
/// turns, and 0.4 s (a chunk twice) for the pace of two processes on a busy machine.
fn compare(java: &[Look], ours: &[Look]) {
    let apart = 4.0 * CHUNK;
    let (mut compared, mut worst) = (0, 0.0_f64);
    for look in java {
        for partition in 0..2 {
            let Some((lag, ..)) = look.known[partition] else {
                continue;
            };
            let Some(our_lag) = lag_at(ours, partition, look.at) else {
                continue;
            };
            compared += 1;
            worst = worst.max((lag - our_lag).abs());
            assert!(
                (lag - our_lag).abs() <= apart,
                "{} ms after the first record partition {partition} lags {lag} in Java, {our_lag} here",
                look.at
            );
        }
    }
    println!("{compared} lags, at most {worst} apart (of {apart})");
    assert!(compared >= 10, "{java:?} {ours:?}");

    let (java, ours) = (java.last().expect("a look"), ours.last().expect("a look"));
    for partition in 0..2 {
        let (java, ours) = (
            java.known[partition].expect("Java knows"),
            ours.known[partition].expect("we know"),
        );
        println!("partition {partition}: Java {java:?}, keepup {ours:?}");
        assert_eq!((java.0, ours.0), (0.0, 0.0), "both are at the end");
        let records = f64::from(RECORDS);
        for max in [java.1, ours.1] {
            // Java sees a partition for the first time when it has drained a chunk of it, we after a turn at most.
            assert!((records - 2.0 * CHUNK..=records).contains(&max), "{max}");
        }
        // The mean of a line from 2,000 to 0 is 1,000; both count a whole chunk as drained at its beginning or end.
        for mean in [java.2, ours.2] {
            assert!((mean - records / 2.0).abs() <= 2.0 * CHUNK, "{mean}");
        }
        assert!((java.2 - ours.2).abs() <= 2.0 * CHUNK, "{java:?} {ours:?}");
    }
}
