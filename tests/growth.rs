//! Partitions and topics that appear while members run: nothing is missed and nobody is disturbed.

use keepup::{EventKind, StartFrom, TopicPartition, Workers};

use crate::support::kafka::Kafka;
use crate::support::members::{Member, Protocol, Tally};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

per_protocol! {
    s29_a_pattern_that_gains_a_topic_rewinds_nothing {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s30_records_of_a_new_partition_are_not_missed_from_before_it_was_found {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s31_workers_follow_the_partitions_and_the_old_ones_are_not_disturbed {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
    s31_workers_follow_the_partitions_down_when_a_member_joins {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
}

fn s29_a_pattern_that_gains_a_topic_rewinds_nothing(kafka: &Kafka, name: &str, protocol: Protocol) {
    let (old, new) = (format!("{name}-old"), format!("{name}-new"));
    kafka.filled_topic(&old, 2, 0..50);
    let tally = Tally::default();
    let a = Member::start(
        "a",
        kafka.run_of(name, &format!("^{name}-.*"), protocol),
        &tally,
    );
    tally.wait_for_all(&old, 0..2, 0..50);
    // One partition is paused by the handle when the topic appears.
    let paused = TopicPartition::new(old.as_str(), 1);
    a.handle()
        .pause(std::slice::from_ref(&paused))
        .expect("it is ours");
    kafka.fill(&old, 2, 50..60);

    kafka.filled_topic(&new, 1, 0..30);
    wait_until(PATIENT, "the new topic to be found", || {
        let views = a.handle().partitions();
        if views.len() == 3 { Ok(()) } else { Err(views) }
    });
    tally.wait_for_all(&new, 0..1, 0..30);
    if protocol != Protocol::Eager {
        let before: Vec<i64> = (0..50).collect();
        assert_eq!(tally.offsets(&old, 1), before, "it is still paused");
        a.handle()
            .resume(std::slice::from_ref(&paused))
            .expect("it is ours");
    }
    kafka.fill(&old, 2, 60..70);
    tally.wait_for_all(&old, 0..2, 0..70);
    for partition in 0..2 {
        let offsets = tally.offsets(&old, partition);
        assert_eq!(offsets, (0..70).collect::<Vec<_>>(), "no rewind, no skip");
    }
    assert_eq!(tally.offsets(&new, 0), (0..30).collect::<Vec<_>>());
    a.stop();
    assert_eq!(kafka.committed(name, &old), [Some(70), Some(70)]);
    assert_eq!(kafka.committed(name, &new), [Some(30)]);
}

fn s30_records_of_a_new_partition_are_not_missed_from_before_it_was_found(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..50);
    let tally = Tally::default();
    let run = kafka.run_of(topic, topic, protocol);
    let a = Member::start("a", run.start_from(StartFrom::Latest), &tally);
    kafka.wait_for_commits(topic, topic, &[Some(50), Some(50)]);
    assert!(
        tally.handled().is_empty(),
        "what was there before is not wanted"
    );

    // Producers use the partitions at once; the member finds them later.
    kafka.add_partitions(topic, 6);
    let producer = kafka.producer(&[]);
    for number in 0..100_u64 {
        for partition in 2..6 {
            producer.send_numbers_to(topic, partition, number..number + 1);
        }
    }
    producer.flush();
    assert!(a.handle().partitions().len() <= 6);
    tally.wait_for_all(topic, 2..6, 0..100);
    for partition in 2..6 {
        assert_eq!(
            tally.offsets(topic, partition),
            (0..100).collect::<Vec<_>>()
        );
    }
    assert!(tally.offsets(topic, 0).is_empty() && tally.offsets(topic, 1).is_empty());
    let report = a.stop();
    assert_eq!((report.records, report.left_uncommitted), (400, 0));
    let mut expected = [Some(100); 6];
    expected[..2].fill(Some(50));
    assert_eq!(kafka.committed(topic, topic), expected);
}

fn s31_workers_follow_the_partitions_and_the_old_ones_are_not_disturbed(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    // The old workers are in a handler all the while: whoever waited for them would wait until the test fails.
    let doors = [tally.close("a", 0, 5), tally.close("a", 1, 5)];
    let run = kafka.run_of(topic, topic, protocol);
    let a = Member::start(
        "a",
        run.workers(Workers::MatchPartitions { max: 5 }),
        &tally,
    );
    tally.wait_for_knocks(&doors);
    assert_eq!(a.handle().workers(), 2);

    kafka.add_partitions(topic, 4);
    let producer = kafka.producer(&[]);
    producer.send_numbers_to(topic, 2, 0..20);
    producer.send_numbers_to(topic, 3, 0..20);
    producer.flush();
    drop(producer);
    tally.wait_for_all(topic, 2..4, 0..20);
    assert_eq!(a.handle().workers(), 4, "one worker per partition");
    for partition in 0..2 {
        assert_eq!(tally.offsets(topic, partition), (0..6).collect::<Vec<_>>());
    }
    kafka.add_partitions(topic, 7);
    kafka.fill(topic, 7, 20..30);
    // Two of the three new ones wait behind the busy workers; the fifth worker takes the other.
    wait_for(PATIENT, "the fifth worker to take a new partition", || {
        (4..7).any(|partition| tally.offsets(topic, partition).len() == 10)
    });
    assert_eq!(a.handle().workers(), 5, "and not more than may be");

    tally.open_all();
    tally.wait_for_all(topic, 0..4, 0..30);
    tally.wait_for_all(topic, 4..7, 0..10);
    for partition in 0..7 {
        let of = tally.of(topic, partition);
        let offsets: Vec<i64> = of.iter().map(|handled| handled.offset).collect();
        let end = if partition < 4 { 30 } else { 10 };
        assert_eq!(offsets, (0..end).collect::<Vec<_>>());
        if partition < 2 {
            let workers: Vec<usize> = of.iter().map(|handled| handled.worker).collect();
            assert!(
                workers.iter().all(|worker| *worker == workers[0]),
                "{workers:?}"
            );
        }
    }
    let revoked = tally.events("a", |event| match &event.kind {
        EventKind::PartitionsRevoked { partitions, .. }
        | EventKind::PartitionsLost { partitions } => Some(partitions.clone()),
        _ => None,
    });
    let old = [0, 1].map(|partition| TopicPartition::new(topic, partition));
    assert!(
        !revoked
            .concat()
            .iter()
            .any(|partition| old.contains(partition)),
        "{revoked:?}"
    );
    a.stop();
    let expected = [30, 30, 30, 30, 10, 10, 10].map(Some);
    assert_eq!(kafka.committed(topic, topic), expected);
}

fn s31_workers_follow_the_partitions_down_when_a_member_joins(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 4, 0..20);
    let tally = Tally::default();
    let run = || kafka.run_of(topic, topic, protocol);
    let a = Member::start("a", run(), &tally);
    a.wait_for_partitions(4);
    assert_eq!(a.handle().workers(), 4);
    let b = Member::start("b", run(), &tally);
    for member in [&a, &b] {
        member.wait_for_partitions(2);
        wait_for(SOON, "two workers for two partitions", || {
            member.handle().workers() == 2
        });
    }
    b.stop();
    a.wait_for_partitions(4);
    wait_for(SOON, "four workers for four partitions", || {
        a.handle().workers() == 4
    });
    tally.wait_for_all(topic, 0..4, 0..20);
    for partition in 0..4 {
        assert_eq!(tally.offsets(topic, partition), (0..20).collect::<Vec<_>>());
    }
    a.stop();
}
