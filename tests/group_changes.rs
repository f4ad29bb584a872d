//! What others do to the group while it runs: it is deleted, and its offsets are reset.

use keepup::{Assignment, Workers};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::run::{Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON, wait_until};

/// A run of one process with a short session, that prints its records.
fn start(kafka: &Kafka, topic: &str, group: &str, from: &str) -> Keepup {
    let mut arguments = vec!["--from", from, "--records"];
    arguments.extend(["-X", "session.timeout.ms=6000"]);
    arguments.extend(["-X", "heartbeat.interval.ms=500"]);
    Keepup::run(kafka, topic, group, &arguments)
}

/// The offsets of the first partition, in the order in which they were handled.
fn handled(run: &Keepup) -> Vec<i64> {
    let events = run.events();
    let records = events
        .iter()
        .filter(|event| event["name"] == "record_data" && event["partition"] == 0);
    records
        .map(|record| record["offset"].as_i64().expect("an offset"))
        .collect()
}

fn write(kafka: &Kafka, topic: &str, numbers: std::ops::Range<u64>) {
    let producer = kafka.producer(&[]);
    producer.send_numbers(topic, 2, numbers);
    producer.flush();
}

#[test]
fn s48_a_group_that_is_deleted_while_its_process_sleeps_ends_the_run_instead_of_beginning_anew() {
    let kafka = kafka!(shared);
    let topic = "s48-deleted";
    topic_of_numbers(kafka, topic, 2, 100);
    let groups = ["s48-earliest", "s48-latest"];
    let mut runs = [
        start(kafka, topic, groups[0], "earliest"),
        start(kafka, topic, groups[1], "latest"),
    ];
    for group in groups {
        kafka.await_committed(group, topic, &[Some(100); 2]);
    }

    // As long as somebody is a member Kafka refuses both.
    let delete = ["--delete", "--group", groups[0]];
    let refused = kafka.consumer_groups(&delete);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("not empty"), "{said}");
    let reset = ["--reset-offsets", "--to-earliest", "--execute"];
    let which = ["--group", groups[0], "--topic", topic];
    let refused = kafka.consumer_groups(&[&reset[..], &which].concat());
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("inactive"), "{said}");
    assert_eq!(kafka.committed(groups[0], topic), [Some(100); 2]);

    for run in &mut runs {
        run.signal(Signal::STOP);
    }
    for group in groups {
        kafka.delete_group_when_empty(group);
    }
    write(kafka, topic, 100..120);
    for run in &mut runs {
        run.signal(Signal::CONT);
    }
    for (run, group) in runs.iter_mut().zip(groups) {
        assert_eq!(run.end(PATIENT), Some(1), "{}", run.stderr());
        let stderr = run.stderr();
        for part in ["offset 100, is gone", topic, "reset the group's offsets"] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        let last: Value = run.events().pop().expect("events");
        assert_eq!(last["reason"], "fatal-client-error");
        let begins_at = if group == groups[0] { 0 } else { 100 };
        assert_eq!(
            handled(run),
            (begins_at..100).collect::<Vec<_>>(),
            "nothing comes again, and nothing is handled that may have been skipped to"
        );
        assert_eq!(kafka.committed(group, topic), [None, None]);
    }
}

#[test]
fn s48_offsets_that_are_reset_while_the_process_sleeps_are_where_it_goes_on() {
    let kafka = kafka!(shared);
    let topic = "s48-reset";
    topic_of_numbers(kafka, topic, 2, 100);
    let mut run = start(kafka, topic, topic, "earliest");
    kafka.await_committed(topic, topic, &[Some(100); 2]);
    run.signal(Signal::STOP);
    // Refused until the session has expired.
    kafka.commit_for(topic, topic, 40);
    write(kafka, topic, 100..120);
    run.signal(Signal::CONT);
    wait_until(PATIENT, "the records from there on", || {
        let handled = handled(&run);
        if handled.len() < 180 {
            return Err(handled.len());
        }
        let expected: Vec<i64> = (0..100).chain(40..120).collect();
        assert_eq!(handled, expected);
        Ok(())
    });
    kafka.await_committed(topic, topic, &[Some(120); 2]);
    run.signal(Signal::TERM);
    assert_eq!(run.end(SOON), Some(0), "{}", run.stderr());
}

#[test]
fn s48_without_the_group_protocol_a_deleted_group_is_committed_anew_and_nothing_comes_again() {
    let kafka = kafka!(shared);
    let topic = "s48-static";
    topic_of_numbers(kafka, topic, 2, 100);
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(kafka, topic, topic, &events)
        .assignment(Assignment::Static { index: 0, of: 1 })
        .workers(Workers::Fixed(1))
        .start(tally.handlers())
        .expect("the run starts");
    kafka.await_committed(topic, topic, &[Some(100); 2]);
    // Nobody is a member of it.
    kafka.delete_group_when_empty(topic);
    write(kafka, topic, 100..120);
    kafka.await_committed(topic, topic, &[Some(120); 2]);
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
    for partition in 0..2 {
        assert_eq!(tally.of(partition), (0..120).collect::<Vec<_>>());
    }
}
