//! `keepup run` and `keepup perf` on real topics: what is delivered, what is committed, what it takes.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Instant;

use rdkafka::Message;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::BaseRecord;
use serde_json::Value;

use crate::support::deliveries::Deliveries;
use crate::support::kafka::{Isolation, Kafka};
use crate::support::keepup::{Keepup, keepup};
use crate::support::records::{COMPRESSIONS, Producer};
use crate::support::{PATIENT, SOON, wait_until};

/// Partitions of the large topic, and records in each of them: 2 million in all.
pub(crate) const LARGE: (i32, u64) = (8, 250_000);

/// A topic of [`LARGE`], written once for all tests that only read it.
pub(crate) fn large(kafka: &'static Kafka) -> &'static str {
    static WRITTEN: OnceLock<()> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let (partitions, records) = LARGE;
        kafka.create_topic("large", partitions, &[]);
        let producer = kafka.producer(&[("linger.ms", "50"), ("batch.size", "200000")]);
        producer.send_numbers("large", partitions, 0..records);
        producer.flush();
    });
    "large"
}

/// Runs over the large topic to its end, with the group protocol that `properties` choose.
fn every_offset_is_delivered_once(kafka: &'static Kafka, group: &str, properties: &[&str]) {
    let topic = large(kafka);
    let ends = kafka.end_offsets(topic);
    let deliveries = Deliveries::new(topic, ends.len());
    let mut arguments = vec!["--workers", "4", "--until-end"];
    for property in properties {
        arguments.extend(["-X", property]);
    }
    let start = Instant::now();
    let mut run = deliveries.start(kafka, group, &arguments);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    println!("{:?} from start to end", start.elapsed());

    deliveries.assert_exactly_once(&ends);
    let committed: Vec<i64> = kafka
        .committed(group, topic)
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(committed, ends);
    assert_eq!(deliveries.committed(), ends, "by the events");
    let events = run.events();
    assert_eq!(events[0]["name"], "startup_complete");
    let last = events.last().expect("events");
    assert_eq!(last["name"], "shutdown_complete");
    assert_eq!(last["reason"], "end-reached");
    assert_eq!(last["left_uncommitted"], 0);
    assert_eq!(consumed(&events), ends.iter().sum::<i64>());
    let workers: BTreeSet<_> = events
        .iter()
        .filter(|event| event["name"] == "records_consumed")
        .map(|event| event["worker"].as_i64().expect("a worker"))
        .collect();
    assert_eq!(workers, (0..4).collect());
}

/// What all the events `records_consumed` count together.
fn consumed(events: &[Value]) -> i64 {
    let counts = events
        .iter()
        .filter(|event| event["name"] == "records_consumed");
    counts
        .map(|event| event["count"].as_i64().expect("a count"))
        .sum()
}

#[test]
fn a_run_until_the_end_delivers_every_offset_once_and_commits_the_end() {
    let kafka = kafka!(shared);
    every_offset_is_delivered_once(kafka, "once-cooperative", &[]);
}

#[test]
fn an_eager_group_delivers_every_offset_once_and_commits_the_end() {
    let kafka = kafka!(shared);
    let eager = ["partition.assignment.strategy=range"];
    every_offset_is_delivered_once(kafka, "once-eager", &eager);
}

#[test]
fn a_group_of_the_consumer_protocol_delivers_every_offset_once_and_commits_the_end() {
    let kafka = kafka!(shared);
    let consumer = ["group.protocol=consumer"];
    every_offset_is_delivered_once(kafka, "once-consumer", &consumer);
}

/// A record as a reader sees it: partition, offset, key and value.
type Seen = (i32, i64, Option<String>, Option<String>);

#[test]
fn compressions_transactions_tombstones_and_holes_are_read_as_kafkas_own_consumer_reads_them() {
    let kafka = kafka!(shared);
    let topic = "all-kinds";
    write_all_kinds(kafka, topic);
    let offsets = kafka.offsets(topic);
    assert!(
        offsets.iter().all(|offsets| {
            let end = offsets.last().expect("records") + 1;
            i64::try_from(offsets.len()).expect("a count") < end
        }),
        "compaction left no holes"
    );

    for isolation in [Isolation::Committed, Isolation::Uncommitted] {
        let group = format!("all-kinds-{}", isolation.level());
        let level = format!("isolation.level={}", isolation.level());
        let mut arguments = vec!["run", "-b", kafka.bootstrap(), "-t", topic, "-g", &group];
        arguments.extend(["--events", "json", "--records", "--until-end", "-X", &level]);
        let mut run = Keepup::start(&arguments);
        assert_eq!(run.end(SOON), Some(0), "{}", run.stderr());
        let events = run.events();
        let ended = events.last().expect("events");
        assert_eq!(ended["reason"], "end-reached");

        let delivered = delivered(&events);
        let read = kafka.read(topic, isolation);
        assert_eq!(
            delivered,
            read.concat().iter().map(seen).collect::<Vec<_>>()
        );
        assert_eq!(delivered, printed(kafka, topic, isolation, &read));
        // The markers at the tail are covered too.
        let committed: Vec<i64> = kafka
            .committed(&group, topic)
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(committed, kafka.end_offsets(topic));
    }
}

/// Two partitions with everything that a batch can be; the first ends with the marker of a commit, the second with
/// that of an abort.
fn write_all_kinds(kafka: &Kafka, topic: &str) {
    kafka.create_compacted_topic(topic, 2);
    let plain = kafka.producer(&[]);
    for round in 0..20 {
        for partition in 0..2 {
            plain.send_keyed(topic, partition, "replaced", Some(&round.to_string()));
            plain.send_keyed(topic, partition, &format!("kept-{round}"), Some("größer"));
        }
    }
    plain.flush();
    kafka.punch_holes(topic, 19);
    // A compacted topic takes no record without a key.
    kafka.configure_topic(topic, &[("cleanup.policy", "delete")]);
    // The broker lives by that a moment later.
    for partition in 0..2 {
        wait_until(SOON, "the topic takes records without keys", || {
            let is_taken = kafka.producer(&[]).is_taken(topic, partition, "a first");
            is_taken.then_some(()).ok_or(partition)
        });
    }

    for compression in COMPRESSIONS {
        let compressed = [("compression.type", compression)];
        for partition in 0..2 {
            let producer = kafka.producer(&compressed);
            send_kinds(&producer, topic, partition, compression);
            producer.flush();
            let id = format!("{compression}-{partition}");
            let transactions = kafka.transactional_with(&id, &compressed);
            for end in ["committed", "aborted"] {
                transactions.begin();
                send_kinds(&transactions, topic, partition, &format!("{id}-{end}"));
                if end == "committed" {
                    transactions.commit();
                } else {
                    transactions.abort();
                }
            }
        }
    }
    let tail = kafka.transactional("tail");
    tail.begin();
    send_kinds(&tail, topic, 0, "tail");
    tail.commit();
    tail.begin();
    send_kinds(&tail, topic, 1, "tail");
    tail.abort();
}

/// 300 records with keys, headers and values, a tombstone, one without a key and one with an empty value.
fn send_kinds(producer: &Producer, topic: &str, partition: i32, name: &str) {
    for number in 0..300 {
        let (key, value) = (format!("{name}-{number}"), format!("{name} {number}"));
        let header = Header {
            key: "number",
            value: Some(&value),
        };
        producer.send(
            BaseRecord::to(topic)
                .partition(partition)
                .key(key.as_bytes())
                .payload(value.as_bytes())
                .headers(OwnedHeaders::new().insert(header)),
        );
    }
    producer.send_keyed(topic, partition, &format!("{name}-gone"), None);
    producer.send_keyed(topic, partition, "empty", Some(""));
    producer.send(
        BaseRecord::to(topic)
            .partition(partition)
            .payload(b"no key"),
    );
}

/// What a run printed, in the order of partitions and offsets.
fn delivered(events: &[Value]) -> Vec<Seen> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let records = events.iter().filter(|event| event["name"] == "record_data");
    let mut delivered: Vec<Seen> = records
        .map(|record| {
            let partition = record["partition"].as_i64().expect("a partition");
            (
                i32::try_from(partition).expect("a partition"),
                record["offset"].as_i64().expect("an offset"),
                text(&record["key"]),
                text(&record["value"]),
            )
        })
        .collect();
    // Stable: what came twice or in the wrong order does not look right.
    delivered.sort_by_key(|&(partition, ..)| partition);
    delivered
}

fn seen(message: &OwnedMessage) -> Seen {
    let text =
        |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    (
        message.partition(),
        message.offset(),
        text(message.key()),
        text(message.payload()),
    )
}

/// What the console consumer prints of a topic; `read` tells how much there is.
fn printed(
    kafka: &Kafka,
    topic: &str,
    isolation: Isolation,
    read: &[Vec<OwnedMessage>],
) -> Vec<Seen> {
    let text = |field: &str| (field != "null").then(|| field.to_owned());
    let mut printed = Vec::new();
    for (partition, records) in (0..).zip(read) {
        let records = kafka.console_consumer(topic, partition, isolation, records.len());
        printed.extend(records.iter().map(|record| {
            let (key, value) = (text(&record.key), text(&record.value));
            (record.partition, record.offset, key, value)
        }));
    }
    printed
}

#[test]
fn three_processes_with_a_static_assignment_share_all_partitions_and_no_record() {
    let kafka = kafka!(shared);
    kafka.create_topic("static", 7, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("static", 7, 0..5_000);
    producer.flush();
    let ends = kafka.end_offsets("static");

    let mut processes: Vec<(Deliveries, Keepup)> = ["0", "1", "2"]
        .iter()
        .map(|index| {
            let own = Deliveries::new("static", 7);
            let share = ["--assign", "static", "--index", index, "--of", "3"];
            let run = own.start(kafka, "static", &[&share[..], &["--until-end"]].concat());
            (own, run)
        })
        .collect();
    let mut delivered = vec![0; 7];
    for (index, (own, run)) in processes.iter_mut().enumerate() {
        assert_eq!(run.end(SOON), Some(0), "{}", run.stderr());
        let expected: Vec<i64> = (0..7)
            .map(|partition| if partition % 3 == index { 5_000 } else { 0 })
            .collect();
        own.assert_exactly_once(&expected);
        for (sum, own) in delivered.iter_mut().zip(own.ends()) {
            *sum += own;
        }
    }
    assert_eq!(delivered, ends);
    let committed = kafka.committed("static", "static");
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
}

#[test]
fn a_process_that_catches_up_stays_below_96_mib() {
    let kafka = kafka!(shared);
    kafka.create_topic("heavy", 8, &[]);
    for compression in ["none", "lz4"] {
        let producer = kafka.producer(&[("compression.type", compression), ("linger.ms", "50")]);
        let payload = "0123456789abcdef".repeat(64);
        for _ in 0..15_000 {
            for partition in 0..8 {
                let record = BaseRecord::to("heavy").partition(partition);
                producer.send(record.payload(payload.as_bytes()));
            }
        }
        producer.flush();
    }
    let arguments = [
        "perf",
        "-b",
        kafka.bootstrap(),
        "-t",
        "heavy",
        "-g",
        "heavy",
    ];
    let run = keepup(&[&arguments[..], &["--workers", "2"]].concat(), "", PATIENT);
    assert_eq!(run.code, Some(0), "{run:?}");
    let line: Value = serde_json::from_str(&run.stdout).expect("a line of JSON");
    println!("{line}");
    assert_eq!(line["records"], 240_000);
    let peak = line["peak_rss_mib"].as_f64().expect("Linux tells");
    assert!(peak < 96.0, "{line}");
}
