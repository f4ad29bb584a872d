//! What is committed and when: asked from the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keepup::{Isolation, Outcome, StartFrom, StopReason};
use rdkafka::Message;

use crate::support::kafka::{self, Kafka};
use crate::support::members::{Member, Protocol, Tally};
use crate::support::{PATIENT, wait_for, wait_until};

per_protocol! {
    s03_the_offset_moves_at_completion_and_never_at_delivery {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s33_latest_leaves_no_gap_when_nothing_was_handled_before_a_restart {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
    s33_latest_leaves_no_gap_when_nothing_was_handled_before_a_rebalance {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
}

fn s03_the_offset_moves_at_completion_and_never_at_delivery(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let door = tally.close("a", 0, 7);
    let a = Member::start("a", kafka.run_of(topic, topic, protocol), &tally);
    tally.wait_for_knock(door);
    // All of the other partition is committed, so the committer has had its turns since this record was delivered.
    kafka.wait_for_commits(topic, topic, &[Some(7), Some(20)]);
    kafka.fill(topic, 2, 20..30);
    kafka.wait_for_commits(topic, topic, &[Some(7), Some(30)]);
    let views = a.handle().partitions();
    assert_eq!((views[0].position, views[0].watermark), (Some(8), Some(7)));

    // A stop that gives the handler up commits nothing of it either.
    a.handle().stop();
    a.handle().stop();
    wait_for(PATIENT, "the end", || a.handle().has_ended());
    assert_eq!(kafka.committed(topic, topic), [Some(7), Some(30)]);
    tally.open_all();
    let report = a.stop();
    assert_eq!(report.reason, StopReason::SecondSignal);
    assert_eq!((report.left_uncommitted, report.abandoned.len()), (1, 1));

    let b = Member::start("b", kafka.run_of(topic, topic, protocol), &tally);
    tally.wait_for_all(topic, 0..2, 0..30);
    assert_eq!(tally.offsets_by("b", topic, 0), (7..30).collect::<Vec<_>>());
    assert!(tally.offsets_by("b", topic, 1).is_empty());
    b.stop();
    assert_eq!(kafka.committed(topic, topic), [Some(30), Some(30)]);
}

fn s33_latest_leaves_no_gap_when_nothing_was_handled_before_a_restart(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..50);
    let tally = Tally::default();
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.start_from(StartFrom::Latest)
    };
    let a = Member::start("a", run(), &tally);
    kafka.wait_for_commits(topic, topic, &[Some(50), Some(50)]);
    assert!(tally.handled().is_empty());
    a.stop();
    // Nobody is there when these come.
    kafka.fill(topic, 2, 50..80);
    let b = Member::start("b", run(), &tally);
    tally.wait_for_all(topic, 0..2, 50..80);
    b.stop();
    for partition in 0..2 {
        assert_eq!(
            tally.offsets(topic, partition),
            (50..80).collect::<Vec<_>>()
        );
    }
    assert_eq!(kafka.committed(topic, topic), [Some(80), Some(80)]);
}

fn s33_latest_leaves_no_gap_when_nothing_was_handled_before_a_rebalance(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 4, 0..50);
    let tally = Tally::default();
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.start_from(StartFrom::Latest)
    };
    let a = Member::start("a", run(), &tally);
    a.wait_for_partitions(4);
    // It has begun; what comes now, while partitions change hands, is wanted.
    let b = Member::start("b", run(), &tally);
    let producing = Arc::new(AtomicBool::new(true));
    std::thread::scope(|scope| {
        let (going, tally) = (Arc::clone(&producing), &tally);
        let producer = std::thread::Builder::new().spawn_scoped(scope, move || {
            let producer = kafka.producer(&[]);
            let mut number = 50;
            while going.load(Ordering::Relaxed) {
                producer.send_numbers(topic, 4, number..number + 1);
                producer.flush();
                number += 1;
            }
            number
        });
        b.wait_for_partitions(2);
        a.wait_for_partitions(2);
        wait_for(PATIENT, "records while both are members", || {
            !tally.offsets_by("b", topic, b.partitions()[0]).is_empty()
        });
        producing.store(false, Ordering::Relaxed);
        let end = producer
            .expect("a thread")
            .join()
            .expect("the producer ends");
        let end = i64::try_from(end).expect("an offset");
        tally.wait_for_all(topic, 0..4, 50..end);
        for partition in 0..4 {
            assert_eq!(
                tally.offsets(topic, partition),
                (50..end).collect::<Vec<_>>()
            );
        }
    });
    a.stop();
    b.stop();
    let ends: Vec<_> = kafka.end_offsets(topic).into_iter().map(Some).collect();
    assert_eq!(kafka.committed(topic, topic), ends);
}

#[test]
fn s33_under_latest_nothing_is_handed_over_before_its_start_is_committed() {
    let kafka = kafka!(shared);
    let topic = "s33-commit-first";
    kafka.filled_topic(topic, 1, 0..50);
    let tally = Tally::default();
    let producing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let producer = std::thread::Builder::new().spawn_scoped(scope, || {
            let producer = kafka.producer(&[]);
            let mut number = 50;
            while producing.load(Ordering::Relaxed) {
                producer.send_numbers(topic, 1, number..number + 1);
                producer.flush();
                number += 1;
            }
        });
        // What the broker had committed when the first record came.
        let at_first = Arc::new(std::sync::Mutex::new(None));
        let noted = Arc::clone(&at_first);
        let run = kafka.run_of(topic, topic, Protocol::Cooperative);
        let bootstrap = kafka.client();
        let a = Member::start_with(
            "a",
            run.start_from(StartFrom::Latest),
            &tally,
            move |record| {
                let mut noted = noted.lock().expect("nobody panics with it");
                noted.get_or_insert_with(|| {
                    (
                        record.offset(),
                        kafka::committed_by(&bootstrap, topic, topic, 1),
                    )
                });
                Outcome::Done
            },
        );
        wait_for(PATIENT, "some records", || {
            tally.offsets(topic, 0).len() > 20
        });
        producing.store(false, Ordering::Relaxed);
        producer
            .expect("a thread")
            .join()
            .expect("the producer ends");
        a.stop();
        let at_first = at_first.lock().expect("nobody panics with it").take();
        let (first, committed) = at_first.expect("a record came");
        assert_eq!(
            committed,
            [Some(first)],
            "committed before, and where it began"
        );
    });
    let offsets = tally.offsets(topic, 0);
    let end = kafka.end_offsets(topic)[0];
    assert_eq!(offsets, (offsets[0]..end).collect::<Vec<_>>(), "no gap");
    let commit = tally.commits_by("a", topic, 0)[0];
    assert_eq!(commit, offsets[0]);
}

/// Reads a topic to its end under both isolation levels; gives the offsets that each saw.
fn read_to_the_end(kafka: &Kafka, topic: &str, isolation: Isolation) -> Vec<i64> {
    let group = format!("{topic}-{isolation:?}");
    let tally = Tally::default();
    let run = kafka.run_of(&group, topic, Protocol::Cooperative);
    let run = run.isolation(isolation).until_end(true);
    let a = Member::start("a", run, &tally);
    wait_until(PATIENT, "the run to end by itself", || {
        if a.handle().has_ended() {
            Ok(())
        } else {
            Err(a.handle().partitions())
        }
    });
    let report = a.stop();
    assert_eq!(report.reason, StopReason::EndReached);
    assert_eq!(report.left_uncommitted, 0);
    let ends = match isolation {
        Isolation::ReadCommitted => kafka.stable_offsets(topic),
        Isolation::ReadUncommitted => kafka.end_offsets(topic),
    };
    let committed = kafka.committed(&group, topic);
    assert_eq!(
        committed,
        ends.into_iter().map(Some).collect::<Vec<_>>(),
        "no lag is left"
    );
    tally.offsets(topic, 0)
}

#[test]
fn s35_markers_and_aborted_records_at_the_tail_leave_no_lag() {
    let kafka = kafka!(shared);
    let topic = "s35-transactions";
    kafka.create_topic(topic, 1, &[]);
    let producer = kafka.transactional(topic);
    producer.begin();
    producer.send_numbers(topic, 1, 0..3);
    producer.commit();
    // 0-2 and a marker.
    assert_eq!(
        read_to_the_end(kafka, topic, Isolation::ReadCommitted),
        [0, 1, 2]
    );
    producer.begin();
    producer.send_numbers(topic, 1, 3..5);
    producer.abort();
    // 4-5 were aborted, and a marker: the group goes on from 4 and has nothing to handle.
    assert!(read_to_the_end(kafka, topic, Isolation::ReadCommitted).is_empty());
    assert_eq!(
        read_to_the_end(kafka, topic, Isolation::ReadUncommitted),
        [0, 1, 2, 4, 5]
    );
    assert_eq!(kafka.end_offsets(topic), [7]);
    // An open transaction holds back those who read what is committed, and nobody else.
    producer.begin();
    producer.send_numbers(topic, 1, 5..7);
    producer.flush();
    assert!(read_to_the_end(kafka, topic, Isolation::ReadCommitted).is_empty());
    assert_eq!(
        read_to_the_end(kafka, topic, Isolation::ReadUncommitted),
        [7, 8]
    );
    producer.abort();
    assert!(read_to_the_end(kafka, topic, Isolation::ReadCommitted).is_empty());
    assert_eq!(
        kafka.committed("s35-transactions-ReadCommitted", topic),
        [Some(10)]
    );
}

#[test]
fn s35_holes_of_compaction_leave_no_lag() {
    let kafka = kafka!(shared);
    let topic = "s35-compacted";
    kafka.create_compacted_topic(topic, 1);
    let producer = kafka.producer(&[]);
    for round in 0..20 {
        producer.send_keyed(topic, 0, "same", Some(&round.to_string()));
        producer.send_keyed(topic, 0, &format!("kept-{round}"), Some("kept"));
    }
    producer.flush();
    let left = kafka.punch_holes(topic, 19);
    for isolation in [Isolation::ReadCommitted, Isolation::ReadUncommitted] {
        assert_eq!(read_to_the_end(kafka, topic, isolation), left[0]);
    }
}

#[test]
fn s35_a_tail_that_was_compacted_away_leaves_no_lag() {
    let kafka = kafka!(shared);
    let topic = "s35-compacted-transactions";
    kafka.create_compacted_topic(topic, 1);
    let producer = kafka.transactional(topic);
    for round in 0..10 {
        producer.begin();
        producer.send_keyed(topic, 0, "same", Some(&round.to_string()));
        producer.send_keyed(topic, 0, &format!("kept-{round}"), Some("kept"));
        if round % 3 == 2 {
            producer.abort();
        } else {
            producer.commit();
        }
    }
    let left = kafka.punch_holes(topic, 5);
    let committed: Vec<i64> = kafka.read(topic, kafka::Isolation::Committed)[0]
        .iter()
        .map(Message::offset)
        .collect();
    // The tail: a transaction with nothing but a marker to see of it.
    producer.begin();
    producer.send_keyed(topic, 0, "aborted", Some("at the tail"));
    producer.abort();
    let read = read_to_the_end(kafka, topic, Isolation::ReadCommitted);
    assert_eq!(read, committed);
    let read = read_to_the_end(kafka, topic, Isolation::ReadUncommitted);
    assert_eq!(read[..left[0].len()], left[0]);
    assert_eq!(read.len(), left[0].len() + 1);
}
