//! Two processes of one group: how they share partitions, and what a move costs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::PATIENT;
use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::process::thread;
use crate::support::wait_until;

const PARTITIONS: i32 = 12;

/// How many partitions and workers a process has, by its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    partitions: usize,
    workers: usize,
}

fn share(process: &Keepup) -> Share {
    let mut partitions: BTreeMap<i64, Value> = BTreeMap::new();
    // Of one that is not needed any more before it was ready the end alone is told.
    let mut workers: BTreeSet<u64> = BTreeSet::new();
    for event in process.events() {
        let numbers = event["partitions"].as_array().cloned().unwrap_or_default();
        let numbers = numbers
            .iter()
            .map(|place| place["partition"].as_i64().expect("a partition"));
        match event["name"].as_str().expect("a name") {
            "partitions_assigned" => {
                partitions.extend(numbers.map(|number| (number, event["worker"].clone())));
            }
            "partitions_revoked" | "partitions_lost" => {
                for number in numbers {
                    partitions.remove(&number);
                }
            }
            "worker_started" => workers.extend(event["worker"].as_u64()),
            "worker_stopped" => workers.retain(|worker| event["worker"] != *worker),
            _ => {}
        }
    }
    Share {
        partitions: partitions.len(),
        workers: workers.len(),
    }
}

/// Waits until the processes have so many partitions each, and as many workers.
fn wait_shares(processes: &[&Keepup], partitions: usize) {
    let wanted = Share {
        partitions,
        workers: partitions,
    };
    wait_until(PATIENT, "the partitions to be shared", || {
        let shares: Vec<Share> = processes.iter().map(|process| share(process)).collect();
        if shares.iter().all(|&share| share == wanted) {
            Ok(())
        } else {
            Err(shares)
        }
    });
}

/// One process, two, one again, two again, with records coming in all the time.
fn partitions_move_and_nothing_is_lost_or_handled_twice(
    kafka: &'static Kafka,
    topic: &'static str,
    properties: &[&str],
) {
    let threads = ["threads", "threads"];
    partitions_move_between(kafka, topic, properties, threads);
}

/// As above; the first and the second have workers of these models.
fn partitions_move_between(
    kafka: &'static Kafka,
    topic: &'static str,
    properties: &[&str],
    models: [&str; 2],
) {
    kafka.create_topic(topic, PARTITIONS, &[]);
    let enough = Arc::new(AtomicBool::new(false));
    let producing = thread("producer", {
        let enough = Arc::clone(&enough);
        move || {
            let producer = kafka.producer(&[]);
            for number in (0..).step_by(5) {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                producer.send_numbers(topic, PARTITIONS, number..number + 5);
                // Some 10,000 records per second.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            producer.flush();
        }
    });
    let deliveries = Deliveries::new(topic, 12);
    let mut arguments = vec!["--workers", "auto"];
    for property in properties {
        arguments.extend(["-X", property]);
    }
    let start = |model| {
        let arguments = [&arguments[..], &["--model", model]].concat();
        deliveries.start(kafka, topic, &arguments)
    };

    let mut first = start(models[0]);
    wait_shares(&[&first], 12);
    let mut second = start(models[1]);
    wait_shares(&[&first, &second], 6);
    second.signal(Signal::TERM);
    assert_eq!(second.end(PATIENT), Some(0), "{}", second.stderr());
    wait_shares(&[&first], 12);
    let mut second = start(models[1]);
    wait_shares(&[&first, &second], 6);

    enough.store(true, Ordering::Relaxed);
    producing.join().expect("the producer ends");
    let ends = kafka.end_offsets(topic);
    wait_until(PATIENT, "everything to be delivered", || {
        let next = deliveries.next();
        if next == ends { Ok(()) } else { Err(next) }
    });
    for process in [&mut first, &mut second] {
        process.signal(Signal::TERM);
        assert_eq!(process.end(PATIENT), Some(0), "{}", process.stderr());
    }
    let committed = kafka.committed(topic, topic);
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
    println!(
        "{} records, {} again",
        deliveries.distinct(),
        deliveries.repeats()
    );
    // A partition is let go of after its last record was handled and committed, so a move repeats nothing.
    deliveries.assert_exactly_once(&ends);
}

#[test]
fn two_processes_share_the_partitions_and_a_move_loses_and_repeats_nothing() {
    let kafka = kafka!(shared);
    let quick = ["heartbeat.interval.ms=300", "session.timeout.ms=6000"];
    partitions_move_and_nothing_is_lost_or_handled_twice(kafka, "two-cooperative", &quick);
}

#[test]
fn two_processes_of_the_consumer_protocol_share_the_partitions_without_a_repeat() {
    let kafka = kafka!(shared);
    let consumer = ["group.protocol=consumer"];
    partitions_move_and_nothing_is_lost_or_handled_twice(kafka, "two-consumer", &consumer);
}

#[test]
fn two_processes_of_an_eager_group_share_the_partitions_without_a_repeat() {
    let kafka = kafka!(shared);
    let eager = [
        "partition.assignment.strategy=range",
        "heartbeat.interval.ms=300",
        "session.timeout.ms=6000",
    ];
    partitions_move_and_nothing_is_lost_or_handled_twice(kafka, "two-eager", &eager);
}

#[test]
fn two_members_whose_workers_are_processes_share_the_partitions_without_a_repeat() {
    let kafka = kafka!(shared);
    let quick = ["heartbeat.interval.ms=300", "session.timeout.ms=6000"];
    let models = ["processes", "processes"];
    partitions_move_between(kafka, "two-of-processes", &quick, models);
}

#[test]
fn a_member_with_threads_and_one_with_processes_share_the_partitions_of_the_consumer_protocol() {
    let kafka = kafka!(shared);
    let models = ["threads", "processes"];
    partitions_move_between(kafka, "two-mixed", &["group.protocol=consumer"], models);
}

/// Three members of 12 partitions have 4 each, and as many workers; of 18 they have 6; two of them have 9.
fn workers_follow_the_partitions(kafka: &Kafka, topic: &str, models: [&str; 3]) {
    kafka.create_topic(topic, 12, &[]);
    let start = |model| {
        let quick = [
            "-X",
            "heartbeat.interval.ms=300",
            "-X",
            "session.timeout.ms=6000",
            "-X",
            "topic.metadata.refresh.interval.ms=1000",
        ];
        Keepup::run(
            kafka,
            topic,
            topic,
            &[&["--model", model], &quick[..]].concat(),
        )
    };
    let [first, second, third] = models.map(start);
    wait_shares(&[&first, &second, &third], 4);
    kafka.add_partitions(topic, 18);
    wait_shares(&[&first, &second, &third], 6);
    let mut leaves = third;
    leaves.signal(Signal::TERM);
    assert_eq!(leaves.end(PATIENT), Some(0), "{}", leaves.stderr());
    wait_shares(&[&first, &second], 9);
    for mut process in [first, second] {
        process.signal(Signal::TERM);
        assert_eq!(process.end(PATIENT), Some(0), "{}", process.stderr());
    }
}

#[test]
fn s31_the_workers_of_three_members_follow_their_partitions_be_they_threads() {
    workers_follow_the_partitions(kafka!(shared), "follow-threads", ["threads"; 3]);
}

#[test]
fn s31_the_workers_of_three_members_follow_their_partitions_be_they_processes() {
    workers_follow_the_partitions(kafka!(shared), "follow-processes", ["processes"; 3]);
}

#[test]
fn s31_the_workers_of_three_members_follow_their_partitions_be_they_both() {
    let models = ["processes", "threads", "processes"];
    workers_follow_the_partitions(kafka!(shared), "follow-mixed", models);
}
