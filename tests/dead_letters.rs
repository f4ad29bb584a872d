//! Records that nobody can work on, and the topic that they are written to.

use std::collections::BTreeMap;
use std::time::Duration;

use keepup::{
    EventKind, Handler, OnExhausted, Outcome, Record, RetryPolicy, StopReason, WorkerInfo, Workers,
};
use rdkafka::Message;
use rdkafka::message::{Header, Headers as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::BaseRecord;

use crate::support::kafka::{Isolation, Kafka};
use crate::support::keepup::Keepup;
use crate::support::run::{Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON};

fn retries(attempts: u32) -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.attempts = attempts;
    policy.backoff = Duration::from_millis(20);
    policy.on_exhausted = OnExhausted::DeadLetter;
    policy
}

/// Handlers that say `outcome` of what is at an offset of a partition, and note what is done.
fn handlers(
    finished: &Tally,
    outcome: fn(i32, i64) -> Outcome,
) -> impl Fn(WorkerInfo) -> Noting + Send + Sync + 'static {
    let finished = finished.clone();
    move |_| Noting {
        finished: finished.clone(),
        outcome,
    }
}

struct Noting {
    finished: Tally,
    outcome: fn(i32, i64) -> Outcome,
}

impl Handler for Noting {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let outcome = (self.outcome)(record.partition(), record.offset());
        if outcome == Outcome::Done {
            self.finished.note(record);
        }
        outcome
    }
}

fn headers(message: &OwnedMessage) -> Vec<(String, Option<Vec<u8>>)> {
    let headers = message.headers().expect("it has headers");
    headers
        .iter()
        .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
        .collect()
}

/// Dead letters by the partition and the offset that they say they are of.
fn by_origin(written: &[Vec<OwnedMessage>]) -> BTreeMap<(i32, i64), &OwnedMessage> {
    let all = written.iter().flatten();
    all.map(|message| {
        let headers: BTreeMap<_, _> = headers(message).into_iter().collect();
        let number = |name: &str| headers[name].clone().expect("it has a value");
        let partition = number("kafka_dlt-original-partition");
        let offset = number("kafka_dlt-original-offset");
        let origin = (
            i32::from_be_bytes(partition.try_into().expect("four bytes")),
            i64::from_be_bytes(offset.try_into().expect("eight bytes")),
        );
        (origin, message)
    })
    .collect()
}

/// What events told of dead letters: partition, offset, attempts, error.
fn dead_lettered(events: &Events) -> Vec<(i32, i64, u32, String)> {
    let mut told = events.pick(|event| match &event.kind {
        EventKind::RecordDeadLettered {
            partition,
            offset,
            attempt,
            error,
        } => Some((partition.partition(), *offset, *attempt, error.clone())),
        _ => None,
    });
    told.sort();
    told
}

#[test]
fn s15_what_fails_for_good_is_in_the_dead_letter_topic_as_it_was_with_springs_headers() {
    let kafka = kafka!(shared);
    let (name, dead) = ("s15-dead", "s15-dead-letters");
    topic_of_numbers(kafka, name, 3, 100);
    // Two partitions only: of the third, letters go elsewhere.
    kafka.create_topic(dead, 2, &[]);
    let producer = kafka.producer(&[]);
    let header = |key, value: Option<&'static str>| Header { key, value };
    let own = OwnedHeaders::new()
        .insert(header("trace", Some("a")))
        .insert(header("trace", Some("")))
        .insert(header("nothing", None));
    let poison = BaseRecord::to(name).partition(1).headers(own);
    producer.send(
        poison
            .key(b"\xff\x00key".as_slice())
            .payload(b"\x00\xfe".as_slice()),
    );
    producer.send_keyed(name, 2, "gone", None);
    producer.flush();

    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .dead_letter(dead)
        .retry(retries(3))
        .start(handlers(&finished, |partition, offset| {
            match (partition, offset) {
                (0, 50) => Outcome::dead_letter("not an order"),
                (0, 51) => panic!("cannot be"),
                (_, 100) => Outcome::retry("no such customer"),
                _ => Outcome::Done,
            }
        }))
        .expect("the run starts");
    kafka.await_committed(name, name, &[Some(100), Some(101), Some(101)]);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 302, 0)
    );
    assert_eq!(finished.len(), 298, "all others, once");

    let written = kafka.read(dead, Isolation::Committed);
    let by_origin = by_origin(&written);
    let origins: Vec<_> = by_origin.keys().copied().collect();
    assert_eq!(origins, [(0, 50), (0, 51), (1, 100), (2, 100)]);
    assert_eq!(written.iter().flatten().count(), 4, "each once");
    for (&(partition, _), message) in &by_origin {
        assert!(partition == 2 || message.partition() == partition);
    }

    let poison = by_origin[&(1, 100)];
    assert_eq!(poison.key(), Some(b"\xff\x00key".as_slice()));
    assert_eq!(poison.payload(), Some(b"\x00\xfe".as_slice()));
    let sent = kafka.read(name, Isolation::Committed);
    let timestamp = sent[1][100].timestamp().to_millis().expect("it has one");
    let some = |bytes: &[u8]| Some(bytes.to_vec());
    let expected = [
        ("trace", some(b"a")),
        ("trace", some(b"")),
        ("nothing", None),
        ("kafka_dlt-original-topic", some(name.as_bytes())),
        ("kafka_dlt-original-partition", some(&1_i32.to_be_bytes())),
        ("kafka_dlt-original-offset", some(&100_i64.to_be_bytes())),
        (
            "kafka_dlt-original-timestamp",
            some(&timestamp.to_be_bytes()),
        ),
        ("kafka_dlt-original-consumer-group", some(name.as_bytes())),
        ("kafka_dlt-exception-fqcn", some(b"keepup.HandlerFailed")),
        ("kafka_dlt-exception-message", some(b"no such customer")),
        ("kafka_deliveryAttempt", some(&3_u32.to_be_bytes())),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    assert_eq!(headers(poison), expected);
    let tombstone = by_origin[&(2, 100)];
    assert_eq!(
        (tombstone.key(), tombstone.payload()),
        (Some(b"gone".as_slice()), None)
    );

    assert_eq!(
        dead_lettered(&events),
        [
            (0, 50, 1, "not an order".into()),
            (0, 51, 3, "the handler panicked: cannot be".into()),
            (1, 100, 3, "no such customer".into()),
            (2, 100, 3, "no such customer".into()),
        ]
    );
}

#[test]
fn s16_without_its_topic_a_dead_letter_ends_the_run_and_nothing_of_it_is_committed() {
    let kafka = kafka!(shared);
    let name = "s16-missing";
    topic_of_numbers(kafka, name, 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(1))
        // Letters fail within three quarters of it.
        .revoke_deadline(Duration::from_secs(2))
        .dead_letter("s16-nowhere")
        .retry(retries(2))
        .start(handlers(&finished, |partition, offset| {
            if (partition, offset) == (1, 40) {
                Outcome::retry("poison")
            } else {
                Outcome::Done
            }
        }))
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    let StopReason::RetriesExhausted { offset, error, .. } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert_eq!((*offset, report.exit_code()), (40, 1));
    for part in ["poison", "s16-nowhere"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(kafka.committed(name, name), [Some(100), Some(40)]);
    assert_eq!(finished.of(0).len(), 100, "the other partition went on");
    assert_eq!(finished.of(1).len(), 40, "nothing past it");
    let warned = events.warnings();
    assert!(
        warned.iter().any(|warning| warning.contains("s16-nowhere")),
        "never silent: {warned:#?}"
    );
}

#[test]
fn s15_by_policy_what_fails_for_good_is_skipped_and_told() {
    let kafka = kafka!(shared);
    let name = "s15-skipped";
    topic_of_numbers(kafka, name, 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let mut policy = retries(2);
    policy.on_exhausted = OnExhausted::Skip;
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(1))
        .retry(policy)
        .start(handlers(&finished, |_, offset| {
            if offset == 40 {
                Outcome::retry("poison")
            } else {
                Outcome::Done
            }
        }))
        .expect("the run starts");
    kafka.await_committed(name, name, &[Some(100); 2]);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.records), (0, 200));
    let mut told = events.pick(|event| match &event.kind {
        EventKind::RecordSkipped {
            partition,
            offset,
            attempt,
            ..
        } => Some((partition.partition(), *offset, *attempt)),
        _ => None,
    });
    told.sort_unstable();
    assert_eq!(told, [(0, 40, 2), (1, 40, 2)]);
    assert_eq!(finished.len(), 198);
}

#[test]
fn s18_who_gets_a_partition_counts_the_attempts_of_its_failing_record_anew() {
    let kafka = kafka!(shared);
    let name = "s18-attempts";
    topic_of_numbers(kafka, name, 1, 10);
    let (tried, events) = (Tally::default(), Events::default());
    let failing = |tried: &Tally| {
        let tried = tried.clone();
        move |_| {
            let tried = tried.clone();
            move |record: &Record<'_>| {
                if record.offset() == 5 {
                    tried.note(record);
                    return Outcome::retry("not yet");
                }
                Outcome::Done
            }
        }
    };
    let mut policy = retries(1_000);
    policy.on_exhausted = OnExhausted::Stop;
    let start = |tried: &Tally, events: &Events| {
        builder(kafka, name, name, events)
            .retry(policy)
            .start(failing(tried))
            .expect("the run starts")
    };
    let first = start(&tried, &events);
    tried.await_len(SOON, 3);
    first.stop();
    let (report, _) = end_of(first, SOON);
    assert_eq!(report.left_uncommitted, 1, "{report:?}");
    let (tried_next, events_next) = (Tally::default(), Events::default());
    let second = start(&tried_next, &events_next);
    tried_next.await_len(SOON, 3);
    second.stop();
    end_of(second, SOON);
    for tally in [&tried, &tried_next] {
        let attempts: Vec<u32> = tally.all().iter().map(|seen| seen.attempt).collect();
        let expected: Vec<u32> = (1..).take(attempts.len()).collect();
        assert_eq!(attempts, expected, "from 1, one by one");
    }
}

/// A handler in the shell: it gives up record 40, skips 50, falls over the first attempt of 30, and does the rest.
const HANDLER: &str = r#"exec=while read -r line; do case "$line" in
    *'"value":"40"'*) echo "retry no such order" ;;
    *'"value":"50"'*) echo "skip not ours" ;;
    *'"value":"30"'*'"attempt":1}') exit 7 ;;
    *) echo done ;;
    esac; done"#;

per_model! {
    says_what_becomes_of_each_record {
        a_handler_that_is_another_program_says_what_becomes_of_each_record,
        s15_what_fails_for_good_in_a_worker_process_is_written_to_the_dead_letter_topic_or_skipped
    }
}

fn says_what_becomes_of_each_record(kafka: &Kafka, name: &str, model: &str) {
    let dead = &format!("{name}-letters");
    topic_of_numbers(kafka, name, 2, 100);
    kafka.create_topic(dead, 2, &[]);
    let arguments = [
        "run",
        "-b",
        kafka.bootstrap(),
        "-t",
        name,
        "-g",
        name,
        "--model",
        model,
        "--workers",
        "2",
        "--until-end",
        "--handler",
        HANDLER,
        "--retry-attempts",
        "2",
        "--retry-backoff",
        "10ms",
        "--dead-letter",
        dead,
        "--events",
        "json",
    ];
    let mut run = Keepup::start(&arguments);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    assert_eq!(kafka.committed(name, name), [Some(100); 2]);
    let written = kafka.read(dead, Isolation::Committed);
    let payloads: Vec<Vec<_>> = written
        .iter()
        .map(|messages| messages.iter().map(|message| message.payload()).collect())
        .collect();
    assert_eq!(
        payloads,
        [[Some(b"40".as_slice())], [Some(b"40".as_slice())]]
    );
    let told = |name: &str| {
        let mut offsets: Vec<(i64, i64, String)> = run
            .events()
            .iter()
            .filter(|event| event["name"] == name)
            .map(|event| {
                let number = |field: &str| event[field].as_i64().expect("a number");
                let error = event["error"].as_str().expect("a text").to_owned();
                (number("offset"), number("attempt"), error)
            })
            .collect();
        offsets.sort();
        offsets
    };
    let both = |offset, attempt, error: &str| {
        vec![
            (offset, attempt, error.to_owned()),
            (offset, attempt, error.to_owned()),
        ]
    };
    assert_eq!(told("record_dead_lettered"), both(40, 2, "no such order"));
    assert_eq!(told("record_skipped"), both(50, 1, "not ours"));
    let retried = told("record_retried");
    assert_eq!(retried.len(), 4, "{retried:?}");
    assert!(retried[0].2.contains("exit status: 7"), "{retried:?}");
}

/// A handler in another language: it says `retry` to the first two attempts of each record, whose outcome is its value.
const STUBBORN: &str = r#"exec=while read -r line; do
    case "$line" in
    *'"attempt":1}' | *'"attempt":2}') echo "retry not yet" ;;
    *'"value":"dead-letter'*) echo "dead-letter as it says" ;;
    *'"value":"skip'*) echo "skip as it says" ;;
    *) echo done ;;
    esac; done"#;

#[test]
fn what_another_program_says_after_two_retries_agrees_in_events_letters_and_commits() {
    let kafka = kafka!(shared);
    let (name, dead) = ("exec-stubborn", "exec-stubborn-letters");
    for topic in [name, dead] {
        kafka.create_topic(topic, 2, &[]);
    }
    let producer = kafka.producer(&[]);
    for partition in 0..2 {
        for number in 0..12 {
            let value = format!("{} {number}", ["done", "dead-letter", "skip"][number % 3]);
            let header = |key, value| Header { key, value };
            let headers = OwnedHeaders::new()
                .insert(header("number", Some(value.as_str())))
                .insert(header("number", None));
            producer.send(
                BaseRecord::to(name)
                    .partition(partition)
                    .key(b"\xff\x00key".as_slice())
                    .payload(value.as_bytes())
                    .headers(headers),
            );
        }
    }
    producer.flush();
    let mut arguments = vec!["run", "-b", kafka.bootstrap(), "-t", name, "-g", name];
    arguments.extend([
        "--workers",
        "2",
        "--until-end",
        "--events",
        "json",
        "--records",
    ]);
    arguments.extend(["--handler", STUBBORN, "--dead-letter", dead]);
    arguments.extend(["--retry-attempts", "5", "--retry-backoff", "5ms"]);
    let mut run = Keepup::start(&arguments);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());

    // The events: each record twice retried, then once what its value says.
    let events = run.events();
    let told = |name: &str| {
        let mut told: Vec<(i64, i64, i64)> = events
            .iter()
            .filter(|event| event["name"] == name)
            .map(|event| {
                let number = |field: &str| event[field].as_i64().unwrap_or_default();
                (number("partition"), number("offset"), number("attempt"))
            })
            .collect();
        told.sort_unstable();
        told
    };
    let of_each = |kind: i64, attempts: &[i64]| {
        let mut all = Vec::new();
        for partition in 0..2 {
            for offset in (0..12).filter(|offset| kind < 0 || offset % 3 == kind) {
                all.extend(attempts.iter().map(|attempt| (partition, offset, *attempt)));
            }
        }
        all
    };
    assert_eq!(told("record_retried"), of_each(-1, &[1, 2]));
    assert_eq!(told("record_data"), of_each(0, &[0]), "what was done");
    assert_eq!(told("record_dead_lettered"), of_each(1, &[3]));
    assert_eq!(told("record_skipped"), of_each(2, &[3]));
    let consumed = events
        .iter()
        .filter(|event| event["name"] == "records_consumed")
        .map(|event| event["count"].as_i64().expect("a count"));
    assert_eq!(consumed.sum::<i64>(), 24);
    assert_eq!(kafka.committed(name, name), [Some(12); 2]);
    let last = events.last().expect("events");
    assert_eq!(last["left_uncommitted"], 0);

    // The letters: bytes and headers as they were, and behind them where they are from.
    let written = kafka.read(dead, Isolation::Committed);
    let letters = by_origin(&written);
    let origins: Vec<(i32, i64)> = letters.keys().copied().collect();
    let expected: Vec<(i32, i64)> = (0..2)
        .flat_map(|partition| [1, 4, 7, 10].map(|offset| (partition, offset)))
        .collect();
    assert_eq!(origins, expected);
    assert_eq!(written.iter().flatten().count(), 8, "each once");
    for ((partition, offset), letter) in letters {
        let value = format!("dead-letter {offset}").into_bytes();
        assert_eq!(letter.partition(), partition);
        assert_eq!(letter.key(), Some(b"\xff\x00key".as_slice()));
        assert_eq!(letter.payload(), Some(value.as_slice()));
        let headers = headers(letter);
        let number = "number".to_owned();
        assert_eq!(
            headers[..2],
            [(number.clone(), Some(value)), (number, None)]
        );
        let behind: BTreeMap<_, _> = headers[2..].iter().cloned().collect();
        let bytes = |name: &str| behind[name].clone().expect("it has a value");
        assert_eq!(bytes("kafka_dlt-exception-message"), b"as it says");
        assert_eq!(bytes("kafka_deliveryAttempt"), 3_u32.to_be_bytes());
    }
}
