//! Logs that shrink, brokers that say nothing, clocks and names that nobody expects: no number is wrong, and none
//! that was there is missing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keepup::{Assignment, Record, TopicPartition, Workers};
use rdkafka::producer::BaseRecord;
use serde_json::Value;

use super::{Oracle, TICK, anywhere, assert_true_within_an_interval, fetched, lag_of, unix_ms};
use crate::support::kafka::Isolation;
use crate::support::prometheus::{Prometheus, promtool_check};
use crate::support::run::{Door, Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON, wait_until};

#[test]
fn a_log_that_ends_before_the_position_or_begins_after_it_is_zero_and_counted_and_never_a_huge_number()
 {
    let kafka = kafka!(shared);
    let name = "lag-truncated";
    topic_of_numbers(kafka, name, 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        // No group protocol, which would take the partitions away while the topic is not there.
        .assignment(Assignment::Static { index: 0, of: 1 })
        .property("auto.commit.interval.ms", "100")
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_len(SOON, 200);
    let oracle = Oracle::new(kafka, name, name, 2, Isolation::Committed);
    kafka.wait_for_commits(name, name, &[Some(100); 2]);
    assert_true_within_an_interval(&handle, &oracle, &[100; 2], "before");
    let both = [0, 1].map(|partition| TopicPartition::new(name, partition));
    handle.pause(&both).expect("they are ours");
    assert_eq!(handle.lag().clamped, 0);

    // Retention passes the position of the one: its lead is gone, its lag is the end minus the position.
    let producer = kafka.producer(&[]);
    producer.send_numbers(name, 2, 100..200);
    producer.flush();
    kafka.delete_records(name, 0, 150);
    let snapshot = wait_until(SOON, "the log start to be known", || {
        let snapshot = handle.lag();
        let lag = lag_of(&snapshot, name, 0).expect("it is ours");
        if lag.log_start == Some(150) {
            Ok(snapshot)
        } else {
            Err(snapshot)
        }
    });
    let lag = lag_of(&snapshot, name, 0).expect("it is ours");
    assert_eq!(
        (lag.records_lag, lag.committed_lag),
        (Some(100), Some(100)),
        "{lag:?}"
    );
    assert_eq!(lag.records_lead, Some(0), "{lag:?}");
    assert!(snapshot.clamped > 0, "{snapshot:?}");
    let other = lag_of(&snapshot, name, 1).expect("it is ours");
    assert_eq!(other.records_lead, Some(100), "{other:?}");

    // Deleted and made again with fewer records than the position.
    let before = snapshot.clamped;
    kafka.delete_topic(name);
    kafka.create_topic(name, 2, &[]);
    producer.send_numbers(name, 2, 0..10);
    producer.flush();
    let start = Instant::now();
    let mut updates = handle.lag_updates();
    let snapshot = loop {
        let snapshot = updates.next_within(SOON).expect("a tick");
        assert_eq!(snapshot.partitions.len(), 2, "none vanishes: {snapshot:?}");
        for lag in &snapshot.partitions {
            assert!(lag.records_lag.is_some_and(|lag| lag <= 100), "{lag:?}");
            assert!(lag.records_lag_max.is_some_and(|lag| lag <= 100), "{lag:?}");
            assert!(lag.committed_lag.is_some_and(|lag| lag <= 100), "{lag:?}");
        }
        if snapshot
            .partitions
            .iter()
            .all(|lag| lag.end_offset == Some(10))
        {
            break snapshot;
        }
        assert!(start.elapsed() < PATIENT, "{snapshot:?}");
    };
    println!("the new log was seen after {:?}", start.elapsed());
    for lag in &snapshot.partitions {
        assert_eq!(
            (lag.position, lag.records_lag),
            (Some(100), Some(0)),
            "{lag:?}"
        );
        assert_eq!(lag.committed_lag, Some(0), "{lag:?}");
    }
    assert!(snapshot.clamped > before, "{before} and then {snapshot:?}");
    handle.stop();
    end_of(handle, SOON);
}

#[test]
fn a_broker_that_says_nothing_makes_ends_old_and_nothing_else() {
    let kafka = kafka!(three);
    let name = "lag-silent-broker";
    topic_of_numbers(&kafka, name, 6, 50);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(&kafka, name, name, &events)
        .assignment(Assignment::Static { index: 0, of: 1 })
        .property("auto.commit.interval.ms", "100")
        .workers(Workers::Fixed(2))
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_len(SOON, 300);
    kafka.wait_for_commits(name, name, &[Some(50); 6]);
    let all: Vec<_> = (0..6)
        .map(|partition| TopicPartition::new(name, partition))
        .collect();
    handle.pause(&all).expect("they are ours");
    let producer = kafka.producer(&[]);
    producer.send_numbers(name, 6, 50..70);
    producer.flush();
    let oracle = Oracle::new(&kafka, name, name, 6, Isolation::Committed);
    assert_true_within_an_interval(&handle, &oracle, &[50; 6], "before");

    // One that leads something, and is not the group's coordinator.
    let led_by = |id| -> BTreeSet<i32> {
        let partitions = (0..6).filter(|&partition| kafka.leader(name, partition) == Some(id));
        partitions.collect()
    };
    let coordinator = kafka.coordinator(name);
    let silent = (1..=3)
        .find(|&id| Some(id) != coordinator && !led_by(id).is_empty())
        .expect("leaders are spread");
    let held = led_by(silent);
    let (mut updates, errors) = (handle.lag_updates(), handle.lag().end_offset_errors);
    updates.next_within(SOON);
    kafka.stop_broker(silent);
    // The others elect new leaders after 3 s and more, by which the ends are young again.
    let start = Instant::now();
    let (mut ticks, mut widest, mut oldest_of_others) = (0, 0, Duration::ZERO);
    let (mut oldest, mut before) = (Duration::ZERO, None);
    let recovered = loop {
        let snapshot = updates.next_within(SOON).expect("ticks go on");
        ticks += 1;
        let taken = snapshot.taken_at_ms;
        widest = widest.max(before.map_or(0, |before| taken - before));
        before = Some(taken);
        assert_eq!(snapshot.partitions.len(), 6, "none vanishes");
        let mut young = true;
        for lag in &snapshot.partitions {
            assert_eq!(
                (lag.records_lag, lag.committed_lag),
                (Some(20), Some(20)),
                "{lag:?}"
            );
            assert!(
                lag.records_lag_max.is_some() && lag.time_lag.is_some(),
                "{lag:?}"
            );
            let age = lag.end_offset_age.expect("an age");
            if held.contains(&lag.partition.partition()) {
                oldest = oldest.max(age);
                young &= age < 2 * TICK;
            } else {
                oldest_of_others = oldest_of_others.max(age);
            }
        }
        if young && oldest > 2 * TICK {
            break start.elapsed();
        }
        assert!(start.elapsed() < PATIENT, "{snapshot:?}");
    };
    let failed = handle.lag().end_offset_errors - errors;
    println!(
        "{held:?} of broker {silent} were {oldest:?} old, the others {oldest_of_others:?}; {ticks} ticks, at most \
         {widest} ms apart; {failed} questions failed; young again after {recovered:?}"
    );
    assert!(failed > 0, "what was not answered is counted");
    // Half a second is waited for a broker; and what a busy machine takes.
    assert!(widest < 3_000, "{widest}");
    assert!(oldest_of_others < 4 * TICK, "{oldest_of_others:?}");
    kafka.cont_broker(silent);
    handle.resume(&all).expect("they are ours");
    finished.await_len(PATIENT, 420);
    assert_true_within_an_interval(&handle, &oracle, &[70; 6], "after");
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
}

#[test]
fn a_record_from_the_future_is_not_old_and_one_from_1970_is() {
    let kafka = kafka!(shared);
    let name = "lag-timestamps";
    let any = "9223372036854775807";
    let configs = [
        ("message.timestamp.before.max.ms", any),
        ("message.timestamp.after.max.ms", any),
        ("retention.ms", "-1"),
    ];
    kafka.create_topic(name, 4, &configs);
    let producer = kafka.producer(&[]);
    let day = 86_400_000;
    let times = [unix_ms() + day, i64::MAX / 2, 1, unix_ms() - day];
    for (partition, timestamp) in (0..).zip(times) {
        for _ in 0..3 {
            let record = BaseRecord::to(name)
                .partition(partition)
                .timestamp(timestamp);
            producer.send(record.payload(b"x".as_slice()));
        }
    }
    producer.flush();
    let (events, started, door) = (Events::default(), Tally::default(), Door::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(4))
        .start({
            let (started, door) = (started.clone(), door.clone());
            move |_| {
                let (started, door) = (started.clone(), door.clone());
                move |record: &Record<'_>| {
                    started.note(record);
                    door.pass();
                }
            }
        })
        .expect("the run starts");
    started.await_len(SOON, 4);
    let snapshot = wait_until(SOON, "all in hand to be seen", || {
        let snapshot = handle.lag();
        let seen = snapshot.partitions.iter().filter(|lag| lag.in_flight == 1);
        if seen.count() == 4 {
            Ok(snapshot)
        } else {
            Err(snapshot)
        }
    });
    let age = |partition| {
        let lag = lag_of(&snapshot, name, partition).expect("it is ours");
        lag.time_lag.expect("it is known")
    };
    assert_eq!(
        (age(0), age(1)),
        (Duration::ZERO, Duration::ZERO),
        "from the future"
    );
    let since_1970 =
        Duration::from_millis(u64::try_from(snapshot.taken_at_ms).expect("it is later"));
    assert_eq!(age(2), since_1970.saturating_sub(Duration::from_millis(1)));
    let a_day = Duration::from_hours(24);
    assert!((a_day..a_day + PATIENT).contains(&age(3)), "{:?}", age(3));
    door.open();
    wait_until(SOON, "all to be done", || {
        let snapshot = handle.lag();
        let caught_up = |lag: &keepup::PartitionLag| lag.time_lag == Some(Duration::ZERO);
        let all = snapshot.partitions.iter().all(caught_up);
        if all && snapshot.total_lag() == Some(0) {
            Ok(())
        } else {
            Err(snapshot)
        }
    });
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
}

#[test]
fn topics_and_groups_may_have_any_name_that_kafka_allows() {
    let kafka = kafka!(shared);
    let every = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    let longest = "-".repeat(249 - every.len());
    // A topic may have 249 of 65 characters, a group any text.
    let topics = [
        format!("{every}{longest}"),
        "..lag".to_owned(),
        "_lag.-".to_owned(),
    ];
    let group =
        "any \"text\" \\ with\nlines, \ttabs, {braces}, <tags> & 'quotes' = — €, 語 and 🦀 %41";
    for topic in &topics {
        topic_of_numbers(kafka, topic, 1, 5);
    }
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, group, &topics[0], &events)
        .topics(topics[1..].iter().cloned())
        .listen(anywhere())
        .property("auto.commit.interval.ms", "100")
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_len(SOON, 15);
    for topic in &topics {
        let oracle = Oracle::new(kafka, group, topic, 1, Isolation::Committed);
        kafka.wait_for_commits(group, topic, &[Some(5)]);
        assert_true_within_an_interval(&handle, &oracle, &[5], "by any name");
    }
    let snapshot = handle.lag();
    assert_eq!(&*snapshot.group, group);
    let shown: BTreeSet<&str> = snapshot
        .partitions
        .iter()
        .map(|lag| lag.partition.topic())
        .collect();
    assert_eq!(shown, topics.iter().map(String::as_str).collect());
    let document: Value = serde_json::from_str(&fetched(&handle, "/lag")).expect("JSON");
    assert_eq!(document["group"], group);
    let page = fetched(&handle, "/metrics");
    for topic in &topics {
        assert!(
            page.contains(&format!("topic=\"{topic}\"")),
            "{topic}:\n{page}"
        );
    }
    if Prometheus::is_here(test_name!()) {
        let said = promtool_check(&page);
        assert_eq!((said.code, &*said.stderr), (Some(0), ""), "{page}");
    }
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
}
