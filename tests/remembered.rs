//! What is done beyond the commit, and outlives a crash in the commit's metadata.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use keepup::{EventKind, Order, Outcome, Record, RetryPolicy, Workers};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseRecord;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;

use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::members::Protocol;
use crate::support::run::{Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON, wait_until};

const NEVER: Duration = Duration::from_hours(1);
const BRIEF: Duration = Duration::from_millis(50);
/// Longer texts are refused by brokers.
const MOST_BYTES: usize = 4_096;

/// The commit of partition 0: offset and metadata.
fn commit_of(kafka: &Kafka, name: &str) -> (Offset, String) {
    let client: BaseConsumer = kafka
        .client()
        .set("group.id", name)
        .create()
        .expect("a client");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(name, 0);
    // A group's coordinator may not know yet that it is that.
    wait_until(PATIENT, "the commit", || {
        let answer = client.committed_offsets(asked.clone(), SOON)?;
        let elements = answer.elements();
        elements[0].error()?;
        let commit = (elements[0].offset(), elements[0].metadata().to_owned());
        Ok::<_, KafkaError>(commit)
    })
}

/// What the documented text says: base, and the completed offsets.
fn noted(metadata: &str) -> BTreeSet<i64> {
    let Some(body) = metadata.strip_prefix("keepup/1:") else {
        assert!(metadata.is_empty(), "{metadata}");
        return BTreeSet::new();
    };
    let bytes = STANDARD_NO_PAD.decode(body).expect("base64");
    let (numbers, _crc) = bytes.split_at(bytes.len() - 4);
    let mut decoded = Vec::new();
    let (mut number, mut shift) = (0_i64, 0);
    for byte in numbers {
        number |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            decoded.push(number);
            (number, shift) = (0, 0);
        }
    }
    let mut next = decoded[0];
    let mut offsets = BTreeSet::new();
    for run in decoded[1..].chunks(2) {
        offsets.extend(next + run[0]..next + run[0] + run[1]);
        next += run[0] + run[1];
    }
    offsets
}

/// Waits until the commit of partition 0 stands at `offset` and says that all of `done` is done.
fn await_noted(kafka: &Kafka, name: &str, offset: i64, done: &BTreeSet<i64>) {
    wait_until(PATIENT, "what is done to be noted", || {
        let (at, metadata) = commit_of(kafka, name);
        let noted = noted(&metadata);
        if at == Offset::Offset(offset) && noted == *done {
            return Ok(());
        }
        let missing: Vec<_> = done.difference(&noted).take(10).collect();
        Err(format!(
            "{at:?}; of {} noted, missing {missing:?}",
            noted.len()
        ))
    });
}

/// A topic of one partition: record n has key n mod 50.
fn keyed_topic(kafka: &Kafka, name: &str, records: u64) {
    kafka.create_topic(name, 1, &[]);
    let producer = kafka.producer(&[]);
    for number in 0..records {
        let (key, value) = (format!("k{}", number % 50), number.to_string());
        producer.send(
            BaseRecord::to(name)
                .partition(0)
                .key(key.as_bytes())
                .payload(value.as_bytes()),
        );
    }
    producer.flush();
}

/// Does all but records 10 and 500, which it never gets done.
const HANDLER: &str = r#"exec=while read -r line; do case "$line" in
    *'"value":"10"'*|*'"value":"500"'*) echo "retry not today" ;;
    *) echo done ;;
    esac; done"#;

/// Kills a process that cannot do two of 1,000 records; gives what the next one has to do.
fn left_by_a_crash(kafka: &Kafka, name: &str, order: &str, model: &str) -> BTreeSet<i64> {
    keyed_topic(kafka, name, 1_000);
    let deliveries = Deliveries::new(name, 1);
    let arguments = [
        "--model",
        model,
        "--order",
        order,
        "--remember-completed",
        "--workers",
        "2",
    ];
    let stuck = ["--handler", HANDLER, "--retry-backoff", "30s"];
    let mut run = deliveries.start(kafka, name, &[&arguments[..], &stuck].concat());
    let blocked = |offset: i64| match order {
        "key" => (offset >= 10 && offset % 50 == 10) || (offset >= 500 && offset % 50 == 0),
        _ => offset == 10 || offset == 500,
    };
    let (left, done): (BTreeSet<i64>, BTreeSet<i64>) = (0..1_000).partition(|&n| blocked(n));
    let beyond: BTreeSet<i64> = done.range(10..).copied().collect();
    await_noted(kafka, name, 10, &beyond);
    run.signal(Signal::KILL);
    assert_eq!(run.end(SOON), None);
    assert_eq!(deliveries.distinct(), 1_000 - left.len() as u64);

    let arguments = [&arguments[..], &["--until-end"]].concat();
    let mut run = deliveries.start(kafka, name, &arguments);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    deliveries.assert_exactly_once(&[1_000]);
    let (at, metadata) = commit_of(kafka, name);
    assert_eq!((at, &*metadata), (Offset::Offset(1_000), ""));
    left
}

#[test]
fn s36_a_crash_repeats_only_what_was_not_done_without_order() {
    let kafka = kafka!(shared);
    let left = left_by_a_crash(kafka, "s36-unordered", "unordered", "threads");
    assert_eq!(left, BTreeSet::from([10, 500]));
}

#[test]
fn s36_a_crash_repeats_only_what_was_not_done_and_in_the_order_of_its_keys() {
    let kafka = kafka!(shared);
    let left = left_by_a_crash(kafka, "s36-key", "key", "threads");
    assert_eq!(left.len(), 20 + 10);
}

#[test]
fn s36_a_crash_of_a_member_and_its_worker_processes_repeats_only_what_was_not_done() {
    let kafka = kafka!(shared);
    let left = left_by_a_crash(kafka, "s36-unordered-processes", "unordered", "processes");
    assert_eq!(left, BTreeSet::from([10, 500]));
    let left = left_by_a_crash(kafka, "s36-key-processes", "key", "processes");
    assert_eq!(left.len(), 20 + 10);
}

/// Handlers that never get offset 10 done.
fn all_but_10(
    finished: &Tally,
) -> impl Fn(keepup::WorkerInfo) -> Box<dyn FnMut(&Record<'_>) -> Outcome> + Send + Sync + 'static {
    let finished = finished.clone();
    move |_| {
        let finished = finished.clone();
        Box::new(move |record| {
            if record.offset() == 10 {
                return Outcome::retry_after(NEVER, "not today");
            }
            finished.note(record);
            Outcome::Done
        })
    }
}

#[test]
fn s36_by_default_what_is_beyond_the_commit_is_repeated_and_nothing_below_it() {
    let kafka = kafka!(shared);
    let name = "s36-watermark";
    topic_of_numbers(kafka, name, 1, 100);
    let finished = Tally::default();
    let start = |events: &Events, until_end| {
        builder(kafka, name, name, events)
            .order(Order::Unordered)
            .workers(Workers::Fixed(2))
            .until_end(until_end)
    };
    let events = Events::default();
    let handle = start(&events, false)
        .start(all_but_10(&finished))
        .expect("the run starts");
    finished.await_len(SOON, 99);
    handle.stop();
    end_of(handle, SOON);
    assert_eq!(commit_of(kafka, name), (Offset::Offset(10), String::new()));
    let again = Tally::default();
    let handle = start(&events, true)
        .start(again.handlers())
        .expect("the run starts");
    end_of(handle, SOON);
    let mut offsets = again.of(0);
    offsets.sort_unstable();
    assert_eq!(offsets, (10..100).collect::<Vec<_>>());
}

#[test]
fn s36_who_gets_a_partition_in_order_or_reads_it_in_order_leaves_out_what_was_done() {
    let kafka = kafka!(shared);
    let name = "s36-handed-on";
    topic_of_numbers(kafka, name, 1, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .order(Order::Unordered)
        .remember_completed(true)
        .start(all_but_10(&finished))
        .expect("the run starts");
    finished.await_len(SOON, 99);
    // In order, and at once: the last commit says it.
    handle.stop();
    end_of(handle, SOON);
    let (at, metadata) = commit_of(kafka, name);
    assert_eq!(at, Offset::Offset(10));
    assert_eq!(noted(&metadata), (11..100).collect());

    let again = Tally::default();
    let handle = builder(kafka, name, name, &events)
        .remember_completed(true)
        .until_end(true)
        .start(again.handlers())
        .expect("the run starts");
    let (report, _) = end_of(handle, SOON);
    assert_eq!((again.of(0), report.records), (vec![10], 1));
    assert_eq!(commit_of(kafka, name), (Offset::Offset(100), String::new()));
}

#[test]
fn s37_metadata_that_is_foreign_or_broken_is_told_counted_and_overwritten() {
    let kafka = kafka!(shared);
    for (name, metadata) in [
        ("s37-foreign", "checkpoint 7"),
        ("s37-newer", "keepup/2:CgIBB9QHmNyX0BIBxXxpTQ"),
        ("s37-broken", "keepup/1:CgIBB9QHmNyX0BIBxXxpTA"),
    ] {
        topic_of_numbers(kafka, name, 1, 100);
        kafka.commit_noting(name, name, 10, metadata);
        let (events, finished) = (Events::default(), Tally::default());
        let handle = builder(kafka, name, name, &events)
            .order(Order::Unordered)
            .remember_completed(true)
            .start(finished.handlers())
            .expect("the run starts");
        finished.await_len(SOON, 90);
        kafka.await_committed(name, name, &[Some(100)]);
        assert_eq!(commit_of(kafka, name).1, "");
        let notes = wait_until(SOON, "the count", || {
            let notes = handle.lag().commit_notes;
            let counted = notes.foreign + notes.broken;
            if counted > 0 { Ok(notes) } else { Err(notes) }
        });
        let expected = if name == "s37-broken" { (0, 1) } else { (1, 0) };
        assert_eq!((notes.foreign, notes.broken), expected, "{name}");
        let result = if expected.0 > 0 { "foreign" } else { "broken" };
        let series = format!("result=\"{result}\"}} 1");
        let text = handle.metrics_text();
        assert!(
            text.lines()
                .any(|line| line.starts_with("keepup_commit_metadata_total")
                    && line.ends_with(&series)),
            "{text}"
        );
        let warnings = events.warnings();
        let told = format!("the metadata of the commit of {name}-0 at 10 ");
        assert!(
            warnings.iter().any(|warning| warning.starts_with(&told)),
            "{warnings:?}"
        );
        handle.stop();
        let (report, _) = end_of(handle, SOON);
        assert_eq!((report.exit_code(), report.records), (0, 90));
        let mut offsets = finished.of(0);
        offsets.sort_unstable();
        assert_eq!(offsets, (10..100).collect::<Vec<_>>());
    }
}

#[test]
fn s37_what_does_not_fit_is_handled_again_and_the_commit_succeeds() {
    let kafka = kafka!(shared);
    let name = "s37-too-large";
    topic_of_numbers(kafka, name, 1, 4_000);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .order(Order::Unordered)
        .remember_completed(true)
        .start({
            let finished = finished.clone();
            move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| {
                    if record.offset() % 2 == 1 {
                        return Outcome::retry_after(NEVER, "an odd one");
                    }
                    finished.note(record);
                    Outcome::Done
                }
            }
        })
        .expect("the run starts");
    finished.await_len(SOON, 2_000);
    handle.stop();
    end_of(handle, SOON);
    let (at, metadata) = commit_of(kafka, name);
    assert_eq!(at, Offset::Offset(1));
    assert!((MOST_BYTES - 8..=MOST_BYTES).contains(&metadata.len()));
    let noted = noted(&metadata);
    assert!(noted.len() > 1_000 && noted.iter().all(|offset| offset % 2 == 0));

    let again = Tally::default();
    let handle = builder(kafka, name, name, &events)
        .order(Order::Unordered)
        .remember_completed(true)
        .until_end(true)
        .start(again.handlers())
        .expect("the run starts");
    let (report, _) = end_of(handle, SOON);
    assert_eq!(report.exit_code(), 0);
    let offsets: BTreeSet<i64> = again.of(0).into_iter().collect();
    let expected: BTreeSet<i64> = (1..4_000).filter(|n| !noted.contains(n)).collect();
    assert_eq!(offsets, expected);
    assert_eq!(again.len(), expected.len());
    assert_eq!(
        commit_of(kafka, name),
        (Offset::Offset(4_000), String::new())
    );
}

#[test]
fn s37_a_broker_that_takes_no_notes_is_told_once_and_gets_every_commit_without_them() {
    let Some(kafka) = Kafka::start(test_name!(), 1, &["offset.metadata.max.bytes=12"]) else {
        return;
    };
    let name = "s37-no-notes";
    topic_of_numbers(&kafka, name, 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let passed = Arc::new(AtomicI64::new(10));
    let mut patient = RetryPolicy::default();
    patient.attempts = u32::MAX;
    let handle = builder(&kafka, name, name, &events)
        .retry(patient)
        .order(Order::Unordered)
        .remember_completed(true)
        .start({
            let (finished, passed) = (finished.clone(), Arc::clone(&passed));
            move |_| {
                let (finished, passed) = (finished.clone(), Arc::clone(&passed));
                move |record: &Record<'_>| {
                    let waits = record.partition() == 0 && record.offset() % 10 == 0;
                    if waits && record.offset() >= passed.load(Ordering::Relaxed) {
                        return Outcome::retry_after(BRIEF, "not yet");
                    }
                    finished.note(record);
                    Outcome::Done
                }
            }
        })
        .expect("the run starts");
    kafka.await_committed(name, name, &[Some(10), Some(100)]);
    // What is done beyond it is noted with each commit of the first, and must not hold up the second.
    for round in 1..=3 {
        passed.store(10 * round + 10, Ordering::Relaxed);
        let producer = kafka.producer(&[]);
        let more = u64::try_from(100 * round).expect("few");
        producer.send_numbers(name, 2, more..more + 100);
        producer.flush();
        let expected = [Some(10 * round + 10), Some(100 * round + 100)];
        kafka.await_committed(name, name, &expected);
    }
    assert_eq!(commit_of(&kafka, name), (Offset::Offset(40), String::new()));
    let notes = handle.lag().commit_notes;
    assert!(notes.refused > 0, "{notes:?}");
    let warnings = events.warnings();
    let told = |warning: &&String| warning.contains("offset.metadata.max.bytes");
    assert_eq!(warnings.iter().filter(told).count(), 1, "{warnings:?}");
    passed.store(i64::MAX, Ordering::Relaxed);
    kafka.await_committed(name, name, &[Some(400), Some(400)]);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.records), (0, 800));
}

per_protocol! {
    s36_commits_of_what_is_done_do_not_cost_the_membership_while_others_come_and_go {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
}

/// A commit that is made by hand while the group rebalances must not have librdkafka declare everything lost.
fn s36_commits_of_what_is_done_do_not_cost_the_membership_while_others_come_and_go(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    topic_of_numbers(kafka, topic, 4, 20);
    let (events, finished) = (Events::default(), Tally::default());
    let start = |events: &Events| {
        kafka
            .run_of(topic, topic, protocol)
            .order(Order::Unordered)
            .remember_completed(true)
            .on_event(events.observer())
            .start(all_but_10(&finished))
            .expect("the run starts")
    };
    let steady = start(&events);
    // Something more is done all the time, beyond the record that is not.
    let producer = kafka.producer(&[]);
    let mut sent = 20;
    for round in 0..4 {
        let other = start(&Events::default());
        for _ in 0..10 {
            producer.send_numbers(topic, 4, sent..sent + 1);
            producer.flush();
            sent += 1;
            let all = 4 * (usize::try_from(sent).expect("few") - 1);
            finished.await_each_but(SOON, 4, i64::try_from(sent).expect("few"), 10);
            assert!(finished.len() >= all, "round {round}");
        }
        other.stop();
        let (report, _) = end_of(other, PATIENT);
        assert!(report.left_group, "{report:?}");
    }
    let lost = events.pick(|event| match &event.kind {
        EventKind::PartitionsLost { partitions } => Some(partitions.clone()),
        _ => None,
    });
    assert!(lost.is_empty(), "{}", events.timeline());
    assert_eq!(finished.len(), finished.times().len(), "nothing twice");
    steady.stop();
    end_of(steady, SOON);
}
