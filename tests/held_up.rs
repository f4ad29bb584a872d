//! A membership that comes to nothing, or to its end: seen from everywhere, with the cause.

use std::time::Duration;

use keepup::{Builder, EventKind, Handle, LagSnapshot, MemberState, Record, StopReason, Workers};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::kafka::Kafka;
use crate::support::prometheus::get;
use crate::support::run::{Events, SLACK, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

fn wait_for_state(handle: &Handle, state: MemberState, within: Duration) -> LagSnapshot {
    wait_until(within, state.name(), || {
        let seen = handle.lag();
        if seen.member == state {
            Ok(LagSnapshot::clone(&seen))
        } else {
            Err((seen.member, seen.health.clone()))
        }
    })
}

/// Asserts that both health checks and the metrics say so.
fn assert_held_up(handle: &Handle, words: &str) {
    let seen = wait_for_state(handle, MemberState::HeldUp, PATIENT);
    assert!(seen.health.is_live(), "a restart mends nothing: {seen:?}");
    let address = handle.listens_at().expect("it listens");
    let (status, body) = get(address, "/health/ready").expect("an answer");
    assert_eq!(status, 503);
    assert!(body.contains(words), "{body}");
    assert_eq!(get(address, "/health/live").map(|answer| answer.0), Ok(200));
    let (_, metrics) = get(address, "/metrics").expect("an answer");
    let is_line = |line: &str| {
        line.starts_with("keepup_member_state{")
            && line.contains("state=\"held-up\"")
            && line.ends_with(" 1")
    };
    assert!(metrics.lines().any(is_line), "{metrics}");
}

fn eager(kafka: &Kafka, name: &str, events: &Events) -> Builder {
    builder(kafka, name, name, events)
        .property("partition.assignment.strategy", "range")
        .workers(Workers::Fixed(1))
        .listen(([127, 0, 0, 1], 0).into())
}

/// A member of the group that heartbeats and answers no rebalance, because nobody polls it.
fn deaf_member(kafka: &Kafka, name: &str) -> BaseConsumer {
    let deaf: BaseConsumer = kafka
        .client()
        .set("group.id", name)
        .set("partition.assignment.strategy", "range")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500")
        .set("max.poll.interval.ms", "240000")
        .create()
        .expect("a client");
    deaf.subscribe(&[name]).expect("a subscription");
    wait_for(PATIENT, "the deaf one to have the partitions", || {
        let _ = deaf.poll(Duration::from_millis(50));
        deaf.assignment()
            .is_ok_and(|assigned| assigned.count() == 2)
    });
    deaf
}

#[test]
fn a_group_that_waits_for_a_member_that_does_not_answer_holds_the_others_up_in_sight() {
    let kafka = kafka!(shared);
    let name = "held-up-rebalance";
    topic_of_numbers(kafka, name, 2, 10);
    let deaf = deaf_member(kafka, name);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = eager(kafka, name, &events)
        .start(finished.handlers())
        .expect("the run starts");
    assert_held_up(&handle, "has given no assignment for");
    let warned = |words: &str| {
        let warnings = events.warnings();
        warnings.iter().filter(|told| told.contains(words)).count()
    };
    assert_eq!(warned("has given no assignment for"), 1);
    // Whoever is tired of waiting can leave.
    let other_events = Events::default();
    let other = eager(kafka, name, &other_events)
        .start(|_| |_: &Record<'_>| ())
        .expect("the run starts");
    other.stop();
    let (report, took) = end_of(other, SOON);
    assert_eq!(report.reason, StopReason::StopCalled);
    assert!(took < 2 * SLACK, "{took:?}: {report:?}");
    // It answers at last, and everything goes on by itself.
    drop(deaf);
    finished.await_each(PATIENT, 2, 10);
    wait_for_state(&handle, MemberState::Joined, SOON);
    wait_for(SOON, "that to be told", || {
        warned("gives assignments again") == 1
    });
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
    finished.assert_each_once(2, 10);
}

#[test]
fn a_coordinator_that_hangs_holds_its_members_up_in_sight_until_it_goes_on() {
    let kafka = kafka!(patient);
    let name = "held-up-coordinator";
    topic_of_numbers(&kafka, name, 2, 10);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = eager(&kafka, name, &events)
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(SOON, 2, 10);
    kafka.await_committed(name, name, &[Some(10); 2]);
    kafka.stop_broker(1);
    assert_held_up(&handle, "coordinator");
    assert!(
        handle.lag().partitions.is_empty(),
        "lost, as far as anybody knows"
    );
    kafka.cont_broker(1);
    wait_for_state(&handle, MemberState::Joined, PATIENT);
    let producer = kafka.producer(&[]);
    producer.send_numbers(name, 2, 10..20);
    producer.flush();
    finished.await_each(PATIENT, 2, 20);
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
    finished.assert_each_once(2, 20);
}

#[test]
fn a_fatal_error_of_the_client_is_named_by_report_event_health_and_metrics() {
    let kafka = kafka!(shared);
    let name = "fatal-client";
    topic_of_numbers(kafka, name, 2, 10);
    let (events, finished) = (Events::default(), Tally::default());
    let start = |events: &Events, finished: &Tally| {
        eager(kafka, name, events)
            .property("group.instance.id", "twice")
            .start(finished.handlers())
            .expect("the run starts")
    };
    let first = start(&events, &finished);
    finished.await_each(SOON, 2, 10);
    let second = start(&Events::default(), &Tally::default());
    wait_for(SOON, "the first to end by itself", || first.has_ended());
    let seen = wait_for_state(&first, MemberState::Stopped, SOON);
    assert_eq!(seen.stop_reason, Some("fatal-client-error"));
    assert_eq!(seen.partitions, [], "nothing is ours any more");
    let address = first
        .listens_at()
        .expect("it listens until it was waited for");
    for path in ["/health/live", "/health/ready"] {
        let (status, body) = get(address, path).expect("an answer");
        assert_eq!(status, 503, "{path}");
        assert!(
            body.contains("group.instance.id \"twice\""),
            "{path}: {body}"
        );
    }
    let (_, metrics) = get(address, "/metrics").expect("an answer");
    let is_line = |line: &str| {
        line.starts_with("keepup_stop_info{")
            && line.contains("reason=\"fatal-client-error\"")
            && line.ends_with(" 1")
    };
    assert!(metrics.lines().any(is_line), "{metrics}");
    let (report, _) = end_of(first, SOON);
    assert!(
        matches!(report.reason, StopReason::InstanceTaken { .. }),
        "{report:?}"
    );
    assert_eq!(report.exit_code(), 1);
    assert!(
        report.stop_took < 2 * SLACK,
        "it waits for nobody: {report:?}"
    );
    let told = events.pick(|event| match &event.kind {
        EventKind::ShutdownComplete { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(told, [report.reason]);
    second.stop();
    assert_eq!(end_of(second, SOON).0.exit_code(), 0);
}
