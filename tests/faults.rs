//! Brokers that are not there, go away and come back.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use keepup::{Error, EventKind, Record, StopReason, Workers};

use crate::support::kafka::Kafka;
use crate::support::run::{Events, SLACK, Tally, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

#[test]
fn s27_no_broker_at_the_start_is_no_contact_after_the_timeout() {
    let timeout = Duration::from_secs(1);
    // Somebody who accepts and says nothing, and nobody at all.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let refused = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    let (silent_address, refused_address) = (address(&silent), address(&refused));
    drop(refused);

    for bootstrap in [&silent_address, &refused_address] {
        let start = Instant::now();
        let error = keepup::builder(bootstrap, "s27-start")
            .topic("s27-start")
            .contact_timeout(timeout)
            .start(|_| |_: &Record<'_>| ())
            .expect_err("nobody is there");
        let took = start.elapsed();
        // Earlier by at most the pause before a try that would come too late.
        assert!(
            (timeout / 2..timeout + SLACK).contains(&took),
            "it took {took:?}"
        );
        assert_eq!(error.exit_code(), 4);
        let Error::NoContact {
            bootstrap: tried, ..
        } = &error
        else {
            panic!("another error: {error}");
        };
        assert_eq!(tried, bootstrap);
        assert!(error.to_string().contains(bootstrap), "{error}");
    }
}

/// A run on a topic of two partitions with 100 records each, which it has handled and committed.
fn settled(kafka: &Kafka, topic: &str, deadline: Duration) -> (keepup::Handle, Events, Tally) {
    topic_of_numbers(kafka, topic, 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, topic, topic, &events)
        .workers(Workers::Fixed(2))
        .stop_deadline(deadline)
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_len(SOON, 200);
    wait_for(SOON, "the commit", || {
        kafka.committed(topic, topic) == [Some(100); 2]
    });
    (handle, events, finished)
}

fn send_numbers(kafka: &Kafka, topic: &str, numbers: std::ops::Range<u64>) {
    let producer = kafka.producer(&[]);
    producer.send_numbers(topic, 2, numbers);
    producer.flush();
}

#[test]
fn s27_a_broker_that_dies_and_comes_back_is_told_once_and_read_on() {
    let kafka = kafka!(one);
    let (handle, events, finished) = settled(&kafka, "s27-killed", SOON);
    assert_eq!(events.warnings(), [""; 0]);

    kafka.kill_broker(1);
    let lost = events.find(SOON, "a warning", |event| match &event.kind {
        EventKind::Warning { message } => Some(message.clone()),
        _ => None,
    });
    assert!(!handle.has_ended(), "it keeps trying: {lost}");
    // Long enough for what is repeated to be repeated, shorter than the session.
    work_for(Duration::from_secs(3));
    let warnings = events.warnings();
    let distinct: std::collections::BTreeSet<_> = warnings.iter().collect();
    assert_eq!(
        warnings.len(),
        distinct.len(),
        "each is told once: {warnings:#?}"
    );

    kafka.restart_broker(1);
    send_numbers(&kafka, "s27-killed", 100..200);
    finished.await_each(PATIENT, 2, 200);
    events.find(SOON, "that it is over", |event| match &event.kind {
        EventKind::Warning { message } => message.contains("answers again").then_some(()),
        _ => None,
    });
    handle.stop();
    let (report, _) = end_of(handle, SOON + SLACK);
    assert_eq!(
        (report.exit_code(), report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    assert_eq!(kafka.committed("s27-killed", "s27-killed"), [Some(200); 2]);
    finished.assert_each_once(2, 200);
}

#[test]
fn s27_a_broker_that_freezes_and_thaws_loses_nothing() {
    let kafka = kafka!(patient);
    let (handle, events, finished) = settled(&kafka, "s27-frozen", SOON);
    kafka.stop_broker(1);
    // Longer than the session of 6 s.
    wait_until(PATIENT, "that something is said", || {
        let warned = !events.warnings().is_empty() || events.count("partitions_lost") > 0;
        if warned { Ok(()) } else { Err(events.names()) }
    });
    assert!(!handle.has_ended(), "it keeps trying");
    kafka.cont_broker(1);
    send_numbers(&kafka, "s27-frozen", 100..200);
    finished.await_each(PATIENT, 2, 200);
    handle.stop();
    let (report, _) = end_of(handle, SOON + SLACK);
    assert_eq!(
        (report.exit_code(), report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    assert_eq!(kafka.committed("s27-frozen", "s27-frozen"), [Some(200); 2]);
    // All was committed before, so being lost costs nothing.
    finished.assert_each_once(2, 200);
}

#[test]
fn s27_a_stop_without_a_broker_is_bounded_and_says_what_is_uncommitted() {
    for kill in [false, true] {
        let kafka = kafka!(one);
        let deadline = Duration::from_secs(3);
        let (topic, finished) = ("s27-stop", Tally::default());
        topic_of_numbers(&kafka, topic, 2, 100);
        let events = Events::default();
        let handle = builder(&kafka, topic, topic, &events)
            .stop_deadline(deadline)
            // Nothing is committed before the stop.
            .property("auto.commit.interval.ms", "600000")
            .start(finished.handlers())
            .expect("the run starts");
        finished.await_len(SOON, 200);
        if kill {
            kafka.kill_broker(1);
        } else {
            kafka.stop_broker(1);
        }
        let stop = Instant::now();
        handle.stop();
        let (report, _) = end_of(handle, deadline + SOON);
        let took = stop.elapsed();
        assert!(took < deadline + SLACK, "killed: {kill}, it took {took:?}");
        assert_eq!(report.reason, StopReason::StopCalled);
        assert_eq!(
            (report.records, report.left_uncommitted),
            (200, 200),
            "{report:?}"
        );
        assert_eq!(report.exit_code(), 3);
        if kill {
            kafka.restart_broker(1);
        } else {
            kafka.cont_broker(1);
        }
        // A broker that was frozen takes what was sent to it meanwhile; one that was killed never got it.
        let committed = kafka.committed(topic, topic);
        let taken = !kill && committed == [Some(100); 2];
        println!("killed: {kill}, it took {took:?}, then {committed:?} was committed");
        assert!(
            taken || committed == [None, None],
            "killed: {kill}, {committed:?}"
        );
    }
}

#[test]
fn s28_a_coordinator_that_moves_costs_nothing() {
    let kafka = kafka!(three);
    topic_of_numbers(&kafka, "s28", 6, 200);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(&kafka, "s28", "s28", &events)
        .workers(Workers::Fixed(2))
        // Longer than an election, on a busy machine.
        .property("session.timeout.ms", "45000")
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(SOON, 6, 200);
    let committed = |records| {
        wait_until(PATIENT, "the commits", || {
            let committed = kafka.committed("s28", "s28");
            if committed == [Some(records); 6] {
                Ok(())
            } else {
                Err(committed)
            }
        });
    };
    committed(200);

    let producer = kafka.producer(&[("enable.idempotence", "true")]);
    let mut records = 200;
    for round in 0..2 {
        let coordinator = kafka.coordinator("s28").expect("the group has one");
        // With it go the leaders of a third of the partitions.
        kafka.kill_broker(coordinator);
        producer.send_numbers("s28", 6, records..records + 200);
        producer.flush();
        records += 200;
        let total = i64::try_from(records).expect("a few");
        finished.await_each(PATIENT, 6, total);
        committed(total);
        assert_ne!(kafka.coordinator("s28"), Some(coordinator), "round {round}");
        kafka.restart_broker(coordinator);
    }
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(
        (report.exit_code(), report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    assert!(report.left_group);
    finished.assert_each_once(6, 600);
}
