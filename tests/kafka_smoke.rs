//! The test bed itself: brokers, records, tools and processes do what the scenarios take for granted.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;

use crate::support::kafka::{Isolation, Kafka};
use crate::support::keepup::{Keepup, keepup};
use crate::support::records::{COMPRESSIONS, numbers};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

#[test]
fn a_broker_starts_in_less_than_10_seconds() {
    let (start, kafka) = {
        // The jars are not part of the start.
        kafka!(shared);
        (Instant::now(), kafka!(one))
    };
    let took = start.elapsed();
    assert_eq!(kafka.alive(), [1].into());
    assert!(took < Duration::from_secs(10), "it took {took:?}");
}

#[test]
fn every_compression_is_read_back() {
    let kafka = kafka!(shared);
    for compression in COMPRESSIONS {
        let topic = format!("smoke-{compression}");
        kafka.create_topic(&topic, 2, &[]);
        let producer = kafka.producer(&[("compression.type", compression)]);
        producer.send_numbers(&topic, 2, 0..1_000);
        producer.flush();

        assert_eq!(kafka.end_offsets(&topic), [1_000, 1_000]);
        let read = kafka.read(&topic, Isolation::Committed);
        for partition in &read {
            assert_eq!(numbers(partition), (0..1_000).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_leader_moves_when_its_broker_is_killed_and_the_broker_comes_back() {
    let kafka = kafka!(three);
    kafka.create_topic("moves", 3, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("moves", 3, 0..10);
    producer.flush();
    let killed = kafka.leader("moves", 0).expect("a leader");

    kafka.kill_broker(killed);
    let leader = wait_until(PATIENT, "another leader", || {
        let leader = kafka.leader("moves", 0);
        leader.filter(|&leader| leader != killed).ok_or(leader)
    });
    assert_ne!(leader, killed);
    producer.send_numbers("moves", 3, 10..20);
    producer.flush();

    kafka.restart_broker(killed);
    let read = kafka.read("moves", Isolation::Committed);
    assert!(
        read.iter()
            .all(|read| numbers(read) == (0..20).collect::<Vec<_>>())
    );
}

#[test]
fn a_broker_can_be_frozen_and_stopped() {
    let kafka = kafka!(one);
    kafka.create_topic("frozen", 1, &[]);
    kafka.stop_broker(1);
    assert!(kafka.alive().is_empty(), "nothing answers");
    kafka.cont_broker(1);
    wait_for(PATIENT, "the broker to answer again", || {
        kafka.alive() == [1].into()
    });

    kafka.shut_down_broker(1);
    assert!(kafka.alive().is_empty(), "nothing answers");
    kafka.restart_broker(1);
    assert_eq!(kafka.end_offsets("frozen"), [0]);
}

#[test]
fn topics_grow_lose_records_and_go() {
    let kafka = kafka!(shared);
    kafka.create_topic("grows", 1, &[]);
    kafka.add_partitions("grows", 3);
    let producer = kafka.producer(&[]);
    producer.send_numbers("grows", 3, 0..5);
    producer.flush();
    assert_eq!(kafka.end_offsets("grows"), [5, 5, 5]);
    kafka.delete_records("grows", 1, 4);
    assert_eq!(kafka.start_offsets("grows"), [0, 4, 0]);
    kafka.delete_topic("grows");
    kafka.create_topic("grows", 2, &[]);
    assert_eq!(kafka.end_offsets("grows"), [0, 0]);
}

#[test]
fn transactions_are_committed_aborted_and_left_open() {
    let kafka = kafka!(shared);
    kafka.create_topic("transactions", 1, &[]);
    let producer = kafka.transactional("smoke");
    producer.begin();
    producer.send_numbers("transactions", 1, 0..3);
    producer.commit();
    producer.begin();
    producer.send_numbers("transactions", 1, 3..5);
    producer.abort();
    producer.begin();
    producer.send_numbers("transactions", 1, 5..6);
    producer.flush();

    // Each marker takes an offset: 0-2, commit, 4-5, abort, 7.
    assert_eq!(kafka.end_offsets("transactions"), [8]);
    assert_eq!(kafka.stable_offsets("transactions"), [7]);
    let committed = kafka.read("transactions", Isolation::Committed);
    assert_eq!(numbers(&committed[0]), [0, 1, 2]);
    assert_eq!(kafka.offsets("transactions")[0], [0, 1, 2, 4, 5, 7]);
    producer.abort();

    let printed = kafka.console_consumer("transactions", 0, Isolation::Uncommitted, 6);
    let printed: Vec<_> = printed.iter().map(|record| record.offset).collect();
    assert_eq!(printed, [0, 1, 2, 4, 5, 7]);
    let printed = kafka.console_consumer("transactions", 0, Isolation::Committed, 3);
    let printed: Vec<_> = printed.iter().map(|record| record.value.as_str()).collect();
    assert_eq!(printed, ["0", "1", "2"]);
}

#[test]
fn headers_keys_and_tombstones_are_what_the_console_consumer_prints() {
    let kafka = kafka!(shared);
    kafka.create_topic("headers", 1, &[]);
    let producer = kafka.producer(&[]);
    let header = Header {
        key: "trace",
        value: Some("1234"),
    };
    let record = BaseRecord::to("headers")
        .partition(0)
        .key(&b"k"[..])
        .payload(&b"v"[..]);
    producer.send(record.headers(OwnedHeaders::new().insert(header)));
    producer.send_keyed("headers", 0, "k", None);
    producer.flush();

    let read = kafka.read("headers", Isolation::Committed);
    assert_eq!(read[0][0].headers().expect("headers").count(), 1);
    assert!(read[0][1].payload().is_none());
    let printed = kafka.console_consumer("headers", 0, Isolation::Committed, 2);
    assert_eq!(printed[0].headers, "trace:1234");
    assert_eq!(
        (printed[0].key.as_str(), printed[0].value.as_str()),
        ("k", "v")
    );
    assert_eq!((printed[1].partition, printed[1].offset), (0, 1));
    assert_eq!(
        (printed[1].headers.as_str(), printed[1].value.as_str()),
        ("NO_HEADERS", "null")
    );
}

#[test]
fn compaction_leaves_holes() {
    let kafka = kafka!(shared);
    kafka.create_compacted_topic("holes", 2);
    let producer = kafka.producer(&[]);
    for round in 0..20 {
        for partition in 0..2 {
            producer.send_keyed("holes", partition, "same", Some(&round.to_string()));
            producer.send_keyed("holes", partition, &format!("kept-{round}"), Some("kept"));
        }
    }
    producer.flush();

    let left = kafka.punch_holes("holes", 19);
    for offsets in &left {
        // 0 to 39, where every even offset but the last was replaced.
        let expected: Vec<i64> = (0..40)
            .filter(|offset| offset % 2 == 1 || *offset == 38)
            .collect();
        assert_eq!(offsets[..21], expected);
    }
    assert_eq!(kafka.offsets("holes"), left);
}

#[test]
fn groups_are_described_as_kafka_does_and_deleted() {
    let kafka = kafka!(shared);
    kafka.create_topic("described", 2, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("described", 2, 0..10);
    producer.flush();
    let member: BaseConsumer = kafka
        .client()
        .set("group.id", "describers")
        .create()
        .unwrap();
    let mut position = TopicPartitionList::new();
    position
        .add_partition_offset("described", 1, Offset::Offset(7))
        .unwrap();
    member.commit(&position, CommitMode::Sync).unwrap();
    drop(member);

    assert_eq!(kafka.committed("describers", "described"), [None, Some(7)]);
    assert_eq!(kafka.coordinator("describers"), Some(1));
    let rows = kafka.describe_group("describers");
    let row = rows.iter().find(|row| row.partition == 1).expect("a row");
    assert_eq!(row.topic, "described");
    assert_eq!(
        (row.committed, row.end, row.lag),
        (Some(7), Some(10), Some(3))
    );
    assert_eq!(
        (&row.consumer, &row.host, &row.client),
        (&None, &None, &None)
    );
    kafka.delete_group("describers");
    assert_eq!(kafka.committed("describers", "described"), [None, None]);
}

#[test]
fn broker_settings_can_be_given() {
    let Some(kafka) = Kafka::start(test_name!(), 1, &["auto.create.topics.enable=true"]) else {
        return;
    };
    let producer = kafka.producer(&[]);
    producer.send(BaseRecord::to("made-by-use").payload(&b"0"[..]));
    producer.flush();
    assert_eq!(kafka.end_offsets("made-by-use"), [1]);
}

#[test]
fn a_process_is_followed_by_its_events_and_ended_by_signals() {
    let script = r#"
        trap 'echo "{\"name\":\"shutdown_complete\",\"reason\":\"signal\"}"; exit 3' TERM
        echo problem >&2; echo '{"name":"startup_complete"}'; echo plain
        sleep 60 & wait"#;
    let mut process = Keepup::start_program(Path::new("/bin/bash").into(), &["-c", script]);
    process.next("startup_complete", SOON);
    process.next_where("a plain line", SOON, |event| event == "plain");
    process.signal(Signal::STOP);
    process.signal(Signal::CONT);
    process.signal(Signal::TERM);
    assert_eq!(process.next("shutdown_complete", SOON)["reason"], "signal");
    assert_eq!(process.end(SOON), Some(3));
    assert_eq!(process.events().len(), 3);
    assert_eq!(process.stderr(), "problem\n");
    // Its child sleeps on: the guard ends it, else the drop would wait for its pipes.
    drop(process);

    let mut killed = Keepup::start_program(Path::new("/bin/sleep").into(), &["60"]);
    assert!(killed.pid() > 0);
    killed.signal(Signal::KILL);
    assert_eq!(killed.end(SOON), None);
}

#[test]
fn the_command_is_found() {
    let version = keepup(&["--version"], "", SOON);
    assert_eq!(version.code, Some(0), "{version:?}");
    assert_eq!(Keepup::start(&["--version"]).end(SOON), Some(0));
}
