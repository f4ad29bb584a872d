//! Positions that cannot be read any more: retention passed them, the log lost what was there, the topic is another.

use std::time::Duration;

use keepup::{
    Builder, EventKind, Handle, OutOfRange, Outcome, Record, Report, ResetReason, StartFrom,
    StopReason, TopicPartition, Workers,
};
use serde_json::Value;

use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::run::{Door, Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON, wait_for};

/// Records of each topic of this file, all in partition 0.
const RECORDS: i64 = 100;

fn tp(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, 0)
}

impl Kafka {
    /// A topic of one partition with the numbers below [`RECORDS`], of which retention has left `from` and later.
    fn topic_from(&self, topic: &str, from: i64) {
        topic_of_numbers(self, topic, 1, RECORDS.unsigned_abs());
        if from > 0 {
            self.delete_records(topic, 0, from);
        }
    }
}

/// One way to come to a position that is not there, and what has to become of it.
struct Case {
    name: &'static str,
    committed: i64,
    arguments: &'static [&'static str],
    /// Where it goes on, by which policy; nowhere where it stops.
    goes_on: Option<(i64, &'static str)>,
    reason: &'static str,
}

const LOG_START: i64 = 60;
const BELOW: i64 = 10;
const ABOVE: i64 = 500;

const CASES: [Case; 11] = [
    Case {
        name: "below-default",
        committed: BELOW,
        arguments: &[],
        goes_on: Some((LOG_START, "earliest")),
        reason: "below-log-start",
    },
    Case {
        name: "below-earliest",
        committed: BELOW,
        arguments: &["--on-out-of-range", "earliest"],
        goes_on: Some((LOG_START, "earliest")),
        reason: "below-log-start",
    },
    Case {
        name: "below-latest",
        committed: BELOW,
        arguments: &["--on-out-of-range", "latest"],
        goes_on: Some((RECORDS, "latest")),
        reason: "below-log-start",
    },
    Case {
        name: "below-stop",
        committed: BELOW,
        arguments: &["--on-out-of-range", "stop"],
        goes_on: None,
        reason: "retention passed it",
    },
    // Where a group begins that has nothing committed says nothing of one that has.
    Case {
        name: "below-from-latest",
        committed: BELOW,
        arguments: &["--from", "latest"],
        goes_on: Some((LOG_START, "earliest")),
        reason: "below-log-start",
    },
    Case {
        name: "below-from-a-time",
        committed: BELOW,
        arguments: &["--from", "0s"],
        goes_on: Some((LOG_START, "earliest")),
        reason: "below-log-start",
    },
    Case {
        name: "above-earliest",
        committed: ABOVE,
        arguments: &[],
        goes_on: Some((LOG_START, "earliest")),
        reason: "above-end",
    },
    Case {
        name: "above-latest",
        committed: ABOVE,
        arguments: &["--on-out-of-range", "latest"],
        goes_on: Some((RECORDS, "latest")),
        reason: "above-end",
    },
    Case {
        name: "below-client",
        committed: BELOW,
        arguments: &["--source", "client"],
        goes_on: Some((LOG_START, "earliest")),
        reason: "below-log-start",
    },
    Case {
        name: "above-client",
        committed: ABOVE,
        arguments: &["--source", "client"],
        goes_on: Some((LOG_START, "earliest")),
        reason: "above-end",
    },
    Case {
        name: "above-stop",
        committed: ABOVE,
        arguments: &["--on-out-of-range", "stop"],
        goes_on: None,
        reason: "the log has lost",
    },
];

fn check(kafka: &Kafka, case: &Case) {
    let topic = &format!("s34-{}", case.name);
    kafka.topic_from(topic, LOG_START);
    kafka.commit_for(topic, topic, case.committed);
    let mut arguments = vec!["run", "-b", kafka.bootstrap(), "-t", topic, "-g", topic];
    arguments.extend(["--events", "json", "--records", "--until-end"]);
    arguments.extend(case.arguments);
    let mut run = Keepup::start(&arguments);
    let code = run.end(PATIENT);
    let events = run.events();
    let named = |name: &str| -> Vec<Value> {
        let named = events.iter().filter(|event| event["name"] == name);
        named.cloned().collect()
    };
    let shown = format!("{}: {events:?}\n{}", case.name, run.stderr());
    let offsets: Vec<i64> = named("record_data")
        .iter()
        .filter_map(|event| event["offset"].as_i64())
        .collect();
    if let Some((to, policy)) = case.goes_on {
        assert_eq!(code, Some(0), "{shown}");
        let resets = named("position_reset");
        assert_eq!(resets.len(), 1, "{shown}");
        let reset = &resets[0];
        assert_eq!(reset["topic"], **topic, "{shown}");
        assert_eq!(reset["partition"], 0, "{shown}");
        assert_eq!(reset["from"], case.committed, "{shown}");
        assert_eq!(reset["to"], to, "{shown}");
        assert_eq!(reset["policy"], policy, "{shown}");
        assert_eq!(reset["reason"], case.reason, "{shown}");
        assert_eq!(offsets, (to..RECORDS).collect::<Vec<_>>(), "{shown}");
        // Also where the commit was above the end: it has come down.
        assert_eq!(kafka.committed(topic, topic), [Some(RECORDS)], "{shown}");
    } else {
        assert_eq!(code, Some(1), "{shown}");
        assert!(named("position_reset").is_empty(), "{shown}");
        assert!(offsets.is_empty(), "{shown}");
        let last = events.last().expect("events");
        assert_eq!(last["reason"], "fatal-client-error", "{shown}");
        for part in [
            format!("{topic}-0"),
            format!("offset {}", case.committed),
            format!("{LOG_START} to {RECORDS}"),
            case.reason.to_owned(),
            "--on-out-of-range".to_owned(),
        ] {
            assert!(run.stderr().contains(&part), "{part} is missing: {shown}");
        }
        assert_eq!(
            kafka.committed(topic, topic),
            [Some(case.committed)],
            "{shown}"
        );
    }
}

#[test]
fn s34_a_committed_offset_that_is_out_of_range_is_handled_by_policy_and_told() {
    let kafka = kafka!(three);
    for case in &CASES {
        check(&kafka, case);
    }
    s34_while_it_runs(&kafka, OutOfRange::Earliest);
    s34_while_it_runs(&kafka, OutOfRange::Stop);
    s34_the_commit_comes_down(&kafka);
}

/// Retention passes a partition that is paused.
fn s34_while_it_runs(kafka: &Kafka, policy: OutOfRange) {
    let topic = &format!("s34-running-{policy}");
    kafka.topic_from(topic, 0);
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(kafka, topic, topic, &events)
        .start_from(StartFrom::Latest)
        .on_out_of_range(policy)
        .workers(Workers::Fixed(1))
        .start(tally.handlers())
        .expect("the run starts");
    wait_for(PATIENT, "the first commit", || {
        kafka.committed(topic, topic) == [Some(RECORDS)]
    });
    handle.pause(&[tp(topic)]).expect("it is ours");
    let producer = kafka.producer(&[]);
    producer.send_numbers(topic, 1, 100..200);
    producer.flush();
    kafka.delete_records(topic, 0, 150);
    handle.resume(&[tp(topic)]).expect("it is ours");
    if policy == OutOfRange::Stop {
        let (report, _) = end_of(handle, PATIENT);
        assert_eq!(report.exit_code(), 1);
        let message = message_of(&report);
        assert!(
            message.contains("offset 100") && message.contains("150 to 200"),
            "{message}"
        );
        assert_eq!(tally.len(), 0);
        assert_eq!(kafka.committed(topic, topic), [Some(RECORDS)]);
        return;
    }
    tally.await_len(SOON, 50);
    assert_eq!(tally.of(0), (150..200).collect::<Vec<_>>());
    assert_eq!(
        resets(&events),
        [(RECORDS, 150, "earliest", ResetReason::BelowLogStart)]
    );
    stopped(handle);
    assert_eq!(kafka.committed(topic, topic), [Some(200)]);
}

/// A crash right after a reset to a lower offset skips nothing: the commit is down before the first record is handled.
fn s34_the_commit_comes_down(kafka: &Kafka) {
    let topic = "s34-comes-down";
    kafka.topic_from(topic, LOG_START);
    kafka.commit_for(topic, topic, ABOVE);
    let (events, tally, door) = (Events::default(), Tally::default(), Door::default());
    let handle = start_behind(builder(kafka, topic, topic, &events), &tally, &door);
    tally.await_len(PATIENT, 1);
    assert_eq!(kafka.committed(topic, topic), [Some(LOG_START)]);
    door.open();
    tally.await_len(SOON, 40);
    stopped(handle);
    assert_eq!(kafka.committed(topic, topic), [Some(RECORDS)]);
    assert_eq!(
        resets(&events),
        [(ABOVE, LOG_START, "earliest", ResetReason::AboveEnd)]
    );
}

/// Handlers that note a record and then wait at the door.
fn start_behind(run: Builder, tally: &Tally, door: &Door) -> Handle {
    let (tally, door) = (tally.clone(), door.clone());
    run.start(move |_| {
        let (tally, door) = (tally.clone(), door.clone());
        move |record: &Record<'_>| {
            tally.note(record);
            door.pass();
            Outcome::Done
        }
    })
    .expect("the run starts")
}

fn stopped(handle: Handle) {
    handle.stop();
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(report.exit_code(), 0, "{report:?}");
}

fn message_of(report: &Report) -> String {
    match &report.reason {
        StopReason::FatalClientError { message } => message.clone(),
        other => panic!("{other:?}"),
    }
}

fn resets(events: &Events) -> Vec<(i64, i64, &'static str, ResetReason)> {
    events.pick(|event| match event.kind {
        EventKind::PositionReset {
            from,
            to,
            policy,
            reason,
            ..
        } => Some((from, to, policy, reason)),
        _ => None,
    })
}

#[test]
fn s32_a_topic_that_is_deleted_is_told_and_one_that_is_created_again_ends_the_run() {
    let kafka = kafka!(three);
    let topic = "s32-again";
    topic_of_numbers(&kafka, topic, 2, 100);
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(&kafka, topic, topic, &events)
        .workers(Workers::Fixed(1))
        .start(tally.handlers())
        .expect("the run starts");
    tally.await_len(PATIENT, 200);
    kafka.wait_for_commits(topic, topic, &[Some(100), Some(100)]);
    let before = events.count("position_reset");

    kafka.delete_topic(topic);
    events.find(PATIENT, "the deletion to be told", |event| {
        match &event.kind {
            EventKind::Warning { message } if message.contains("is not described any more") => {
                Some(())
            }
            _ => None,
        }
    });
    assert!(!handle.has_ended(), "it may come back");

    // Larger than the old one: its offsets would skip the first records of each partition.
    topic_of_numbers(&kafka, topic, 2, 150);
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(report.exit_code(), 1, "{report:?}");
    let message = message_of(&report);
    for part in [
        topic,
        "deleted and created again",
        "reset the group's offsets",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(events.count("position_reset"), before, "nothing is reset");
    assert_eq!(tally.len(), 200, "nothing of the new one is handled");
    for committed in kafka.committed(topic, topic) {
        assert!(
            committed.is_none_or(|offset| offset == 0),
            "an offset of the old topic is committed for the new one: {committed:?}"
        );
    }

    // Brokers drop what is committed with a topic, so the next run begins as a new one does.
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(&kafka, topic, topic, &events)
        .until_end(true)
        .start(tally.handlers())
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(report.exit_code(), 0, "{report:?}");
    tally.assert_each_once(2, 150);
}

#[test]
fn s32_a_topic_that_is_created_again_between_two_looks_is_noticed_all_the_same() {
    let kafka = kafka!(three);
    let topic = "s32-quick";
    topic_of_numbers(&kafka, topic, 1, 100);
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(&kafka, topic, topic, &events)
        .workers(Workers::Fixed(1))
        .start(tally.handlers())
        .expect("the run starts");
    tally.await_len(PATIENT, 100);
    kafka.delete_topic(topic);
    topic_of_numbers(&kafka, topic, 1, 150);
    let (report, took) = end_of(handle, PATIENT);
    assert_eq!(report.exit_code(), 1, "{report:?}");
    assert!(
        message_of(&report).contains("deleted and created again"),
        "{report:?}"
    );
    assert!(took < Duration::from_mins(1), "{took:?}");
    assert_eq!(tally.len(), 100, "{}", events.timeline());
    assert!(resets(&events).is_empty(), "{}", events.timeline());
}
