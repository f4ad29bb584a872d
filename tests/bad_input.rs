//! Records as nobody wishes them to be: without keys and values, with thousands of headers, from before 1970 and from
//! the end of time, compacted away, aborted. They are delivered or skipped exactly as a Java consumer of the same
//! isolation level does it, through either source and in every order; the command prints them, and the dead-letter
//! topic gets them as they were.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keepup::{OnExhausted, Order, Outcome, Record, RetryPolicy, Source, StopReason, Workers};
use rdkafka::producer::BaseRecord;
use serde_json::Value;

use crate::support::kafka::{Isolation, Kafka};
use crate::support::keepup::{Keepup, keepup};
use crate::support::raw::{RawRecord, empty_batches};
use crate::support::run::{Door, Events, Tally, builder, end_of};
use crate::support::tools::Whole;
use crate::support::{PATIENT, SOON};

/// Header names that are not UTF-8: what only some programs can write, and only some can read.
const NAMES: &str = "bad-names";

/// Everything else that can be wrong with records.
const KINDS: [&str; 5] = [
    "bad-kinds",
    // The same, taken apart and put together anew by the broker.
    "bad-recompressed",
    // The same, with the broker's times.
    "bad-append-time",
    "bad-transactions",
    "bad-compacted",
];

const ORDERS: [Order; 3] = [Order::Partition, Order::Key, Order::Unordered];

const MIB: usize = 1024 * 1024;

/// Nothing of a topic's records is refused, and nothing deleted because of the time that it claims.
const ANYTHING_GOES: [(&str, &str); 4] = [
    ("message.timestamp.before.max.ms", "9223372036854775807"),
    ("message.timestamp.after.max.ms", "9223372036854775807"),
    ("retention.ms", "-1"),
    ("max.message.bytes", "8388608"),
];

/// What Java's consumer makes of [`KINDS`] and [`NAMES`], by isolation level.
struct Expected {
    committed: Vec<Whole>,
    uncommitted: Vec<Whole>,
}

impl Expected {
    fn of(&self, isolation: keepup::Isolation, topics: &[&str]) -> Vec<Whole> {
        let all = match isolation {
            keepup::Isolation::ReadCommitted => &self.committed,
            keepup::Isolation::ReadUncommitted => &self.uncommitted,
        };
        let wanted = |record: &&Whole| topics.contains(&record.topic.as_str());
        all.iter().filter(wanted).cloned().collect()
    }
}

/// Writes the topics, once for all tests that read them, and has Java read them.
fn expected(kafka: &'static Kafka) -> &'static Expected {
    static EXPECTED: OnceLock<Expected> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        write_kinds(kafka, "bad-kinds", &TIMES, &[]);
        // Where brokers write records anew they refuse times before 1970.
        let since_1970: Vec<i64> = TIMES.into_iter().filter(|&time| time >= -1).collect();
        let recompressed = [("compression.type", "zstd")];
        write_kinds(kafka, "bad-recompressed", &since_1970, &recompressed);
        let stamped = [("message.timestamp.type", "LogAppendTime")];
        write_kinds(kafka, "bad-append-time", &TIMES, &stamped);
        write_transactions(kafka);
        write_compacted(kafka);
        kafka.create_topic(NAMES, 1, &ANYTHING_GOES);
        kafka.write_raw(NAMES, 0, 1_000, &bad_names());
        let topics = [&KINDS[..], &[NAMES]].concat();
        Expected {
            committed: kafka.java_reader(Isolation::Committed, &topics),
            uncommitted: kafka.java_reader(Isolation::Uncommitted, &topics),
        }
    })
}

fn record(key: Option<&[u8]>, value: Option<&[u8]>) -> RawRecord {
    RawRecord {
        timestamp: 1_700_000_000_000,
        key: key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: Vec::new(),
    }
}

fn with_headers(headers: &[(&[u8], Option<&[u8]>)]) -> RawRecord {
    let header =
        |&(name, value): &(&[u8], Option<&[u8]>)| (name.to_vec(), value.map(<[u8]>::to_vec));
    RawRecord {
        headers: headers.iter().map(header).collect(),
        ..record(Some(b"headers"), Some(b"value"))
    }
}

/// What is strange about a record itself.
fn strange() -> Vec<RawRecord> {
    let large: Vec<u8> = (0..MIB).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let many = (0..5_000_u32).map(|number| {
        let name = format!("header-{}", number % 4_000).into_bytes();
        (
            name,
            (number % 3 > 0).then(|| number.to_be_bytes().to_vec()),
        )
    });
    vec![
        record(None, None),
        record(Some(b""), Some(b"")),
        record(None, Some(b"value")),
        record(Some(b"gone"), None),
        record(Some(b"\xff\x00key\x80"), Some(b"\x00\xfe\n\"\xed\xa0\x80")),
        record(Some(b"large"), Some(&large)),
        record(None, Some(&large)),
        record(Some(&large), None),
        with_headers(&[
            (b"trace", Some(b"a")),
            (b"trace", Some(b"")),
            (b"trace", None),
            (b"other", Some(b"\xff\x00")),
            (b"trace", Some(b"a")),
            (b"", Some(b"without a name")),
            ("größe".as_bytes(), Some(b"utf-8")),
        ]),
        RawRecord {
            headers: many.collect(),
            ..record(Some(b"many"), None)
        },
    ]
}

/// Names that are no text: not UTF-8, cut in the middle of a character, with a zero in it.
fn bad_names() -> Vec<RawRecord> {
    vec![
        record(Some(b"before"), None),
        with_headers(&[
            (b"\xff\xfename", Some(b"not a text")),
            (b"\xff\xfename", None),
            (b"gr\xc3", Some(b"cut")),
            (b"zero\0inside", Some(b"")),
            (b"plain", Some(b"last")),
        ]),
        record(Some(b"behind"), None),
    ]
}

/// Times that records claim; -1 stands for none.
const TIMES: [i64; 9] = [
    -1,
    0,
    1,
    -2,
    -1_000_000_000_000,
    i64::MIN,
    i64::MIN + 1,
    4_102_444_800_000,
    i64::MAX,
];

/// A topic of two partitions with all that is strange, and records of these times, in a batch each and together in one.
fn write_kinds(kafka: &Kafka, topic: &str, times: &[i64], settings: &[(&str, &str)]) {
    kafka.create_topic(topic, 2, &[&ANYTHING_GOES[..], settings].concat());
    for partition in 0..2 {
        for records in strange().chunks(3) {
            kafka.write_raw(topic, partition, 1_700_000_000_000, records);
        }
        let claiming: Vec<RawRecord> = times
            .iter()
            .map(|&timestamp| RawRecord {
                timestamp,
                ..record(None, Some(timestamp.to_string().as_bytes()))
            })
            .collect();
        for one in &claiming {
            kafka.write_raw(topic, partition, one.timestamp, std::slice::from_ref(one));
        }
        // Deltas that go beyond what 64 bits hold, and come out right all the same.
        kafka.write_raw(topic, partition, 5, &claiming);
    }
}

/// Two transactions at a time, one of them aborted, records of nobody's transaction between them, and aborts at the
/// tail of each partition.
fn write_transactions(kafka: &Kafka) {
    let topic = "bad-transactions";
    kafka.create_topic(topic, 2, &ANYTHING_GOES);
    let plain = kafka.producer(&[]);
    let first = kafka.transactional("bad-first");
    let second = kafka.transactional_with("bad-second", &[("compression.type", "lz4")]);
    let send = |producer: &crate::support::records::Producer, partition, value: &str| {
        let record = BaseRecord::to(topic).partition(partition);
        producer.send(record.payload(value.as_bytes()));
        producer.send_keyed(topic, partition, value, None);
        producer.flush();
    };
    for round in 0..6 {
        first.begin();
        second.begin();
        for partition in 0..2 {
            send(&first, partition, &format!("first-{round}"));
            send(&plain, partition, &format!("plain-{round}"));
            send(&second, partition, &format!("second-{round}"));
            send(&first, partition, &format!("first-again-{round}"));
        }
        if round % 2 == 0 {
            first.abort();
            second.commit();
        } else {
            second.abort();
            first.commit();
        }
    }
    first.begin();
    send(&first, 0, "tail");
    send(&first, 1, "tail");
    first.abort();
}

/// Holes within batches and between them, and batches that have no records left.
fn write_compacted(kafka: &Kafka) {
    let topic = "bad-compacted";
    kafka.create_compacted_topic(topic, 1);
    let numbered = kafka.producer(&[("enable.idempotence", "true"), ("linger.ms", "100")]);
    for round in 0..10 {
        numbered.send_keyed(topic, 0, "same", Some(&round.to_string()));
        numbered.send_keyed(topic, 0, &format!("kept-{round}"), Some("kept"));
    }
    numbered.flush();
    // Its last batch, of which nothing is left in the end.
    numbered.send_keyed(topic, 0, "replaced", Some("at first"));
    numbered.send_keyed(topic, 0, "same", Some("almost the last"));
    numbered.flush();
    let plain = kafka.producer(&[]);
    plain.send_keyed(topic, 0, "replaced", None);
    plain.send_keyed(topic, 0, "same", Some("the last"));
    plain.flush();
    kafka.punch_holes(topic, 11);
    let empty = empty_batches(&kafka.files_of(topic, 0));
    assert!(empty > 0, "compaction left no batch without records");
}

fn whole(record: &Record<'_>) -> Whole {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    Whole {
        topic: record.topic().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        timestamp: record.timestamp_ms().unwrap_or(-1),
        key: owned(record.key()),
        value: owned(record.value()),
        headers: record
            .headers()
            .map(|header| {
                let name = String::from_utf8_lossy(header.name).into_owned();
                (name, owned(header.value))
            })
            .collect(),
    }
}

/// Fails with the first record that differs, and not with a megabyte of those that do not.
fn assert_same(what: &str, ours: &[Whole], javas: &[Whole]) {
    for (ours, javas) in ours.iter().zip(javas) {
        assert!(ours == javas, "{what}: {ours:?} instead of {javas:?}");
    }
    assert_eq!(ours.len(), javas.len(), "{what}: that many records");
}

/// What handlers get of these topics, in the order in which they get it, partition by partition.
fn handled(
    kafka: &Kafka,
    topics: &[&str],
    source: Source,
    order: Order,
    isolation: keepup::Isolation,
) -> Vec<Whole> {
    let group = format!(
        "bad-{}-{order}-{}",
        source.name().unwrap_or_default(),
        isolation.name()
    );
    let (events, handled) = (Events::default(), Arc::new(Mutex::new(Vec::new())));
    let handle = builder(kafka, &group, topics[0], &events)
        .topics(topics[1..].iter().copied())
        .source(source)
        .order(order)
        .isolation(isolation)
        .workers(Workers::Fixed(3))
        .until_end(true)
        .start({
            let handled = Arc::clone(&handled);
            move |_| {
                let handled = Arc::clone(&handled);
                move |record: &Record<'_>| {
                    let mut handled = handled.lock().unwrap_or_else(PoisonError::into_inner);
                    handled.push(whole(record));
                }
            }
        })
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(
        (&report.reason, report.left_uncommitted),
        (&StopReason::EndReached, 0),
        "{group}: {report:?}{}",
        events.timeline()
    );
    for topic in topics {
        let ends = match isolation {
            keepup::Isolation::ReadCommitted => kafka.stable_offsets(topic),
            keepup::Isolation::ReadUncommitted => kafka.end_offsets(topic),
        };
        let ends: Vec<_> = ends.into_iter().map(Some).collect();
        assert_eq!(
            kafka.committed(&group, topic),
            ends,
            "{group}: no lag is left"
        );
    }
    let mut handled = std::mem::take(&mut *handled.lock().unwrap_or_else(PoisonError::into_inner));
    // Stable: within a partition they stay as they came.
    handled.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    handled
}

/// The offsets of each key of each partition, in their order.
fn by_key(records: &[Whole]) -> BTreeMap<(&str, i32, &[u8]), Vec<i64>> {
    let mut by_key: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for record in records {
        if let Some(key) = &record.key {
            let lane = (record.topic.as_str(), record.partition, key.as_slice());
            by_key.entry(lane).or_default().push(record.offset);
        }
    }
    by_key
}

fn is_read_as_java_reads_it(kafka: &'static Kafka, source: Source, topics: &[&str]) {
    let expected = expected(kafka);
    for isolation in [
        keepup::Isolation::ReadCommitted,
        keepup::Isolation::ReadUncommitted,
    ] {
        let javas = expected.of(isolation, topics);
        for order in ORDERS {
            let mut ours = handled(kafka, topics, source, order, isolation);
            if order == Order::Key {
                assert_eq!(by_key(&ours), by_key(&javas), "the order of each key");
            }
            if order != Order::Partition {
                ours.sort_by(|a, b| {
                    (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset))
                });
            }
            assert_same(
                &format!("{source:?}, {order}, {}", isolation.name()),
                &ours,
                &javas,
            );
        }
    }
    let (committed, all) = (expected.committed.len(), expected.uncommitted.len());
    assert!(committed < all, "nothing was aborted: {committed} of {all}");
}

#[test]
fn bad_records_are_read_as_a_java_consumer_reads_them_in_every_order() {
    let kafka = kafka!(shared);
    let topics = [&KINDS[..], &[NAMES]].concat();
    is_read_as_java_reads_it(kafka, Source::Fetch, &topics);
}

#[test]
fn bad_records_are_read_through_librdkafka_as_a_java_consumer_reads_them_in_every_order() {
    let kafka = kafka!(shared);
    is_read_as_java_reads_it(kafka, Source::Client, &KINDS);
}

#[test]
fn a_header_name_that_librdkafka_does_not_tell_ends_the_run_and_is_named() {
    let kafka = kafka!(shared);
    expected(kafka);
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(kafka, "bad-names-client", NAMES, &events)
        .source(Source::Client)
        .start(tally.handlers())
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    let StopReason::FatalClientError { message } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(report.exit_code(), 1);
    for part in ["bad-names-0", "offset 1", "not UTF-8", "--source fetch"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(tally.of(0), [0], "what is before it, and nothing past it");
    assert_eq!(kafka.committed("bad-names-client", NAMES), [Some(1)]);
}

#[test]
fn in_key_order_records_without_a_key_do_not_wait_for_one_another() {
    let kafka = kafka!(shared);
    let name = "bad-no-keys";
    kafka.create_topic(name, 1, &[]);
    let records: Vec<RawRecord> = (0..64_u8)
        .map(|number| record(None, Some(&[number])))
        .collect();
    kafka.write_raw(name, 0, 0, &records);
    // An empty key is a key like any other.
    let alike: Vec<RawRecord> = (0..3).map(|_| record(Some(b""), None)).collect();
    kafka.write_raw(name, 0, 0, &alike);
    let (events, tally, door) = (Events::default(), Tally::default(), Door::default());
    let handle = builder(kafka, name, name, &events)
        .order(Order::Key)
        .workers(Workers::Fixed(4))
        .start({
            let (tally, door) = (tally.clone(), door.clone());
            move |_| {
                let (tally, door) = (tally.clone(), door.clone());
                move |record: &Record<'_>| {
                    if [0, 64].contains(&record.offset()) {
                        door.pass();
                    }
                    tally.note(record);
                }
            }
        })
        .expect("the run starts");
    tally.await_len(SOON, 63);
    kafka.await_committed(name, name, &[Some(0)]);
    let mut done = tally.of(0);
    done.sort_unstable();
    assert_eq!(
        done,
        (1..64).collect::<Vec<_>>(),
        "all that have no key, but the first"
    );
    door.open();
    kafka.await_committed(name, name, &[Some(67)]);
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
    let alike: Vec<i64> = tally
        .of(0)
        .into_iter()
        .filter(|&offset| offset >= 64)
        .collect();
    assert_eq!(alike, [64, 65, 66], "one after the other");
}

/// Bytes as the command prints them: text where they are UTF-8, else base64, null where there are none.
fn printed(bytes: Option<&[u8]>) -> Value {
    match bytes.map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(_)) => serde_json::json!({"base64": BASE64.encode(bytes.unwrap_or_default())}),
    }
}

/// What the command printed of records, in the order of [`Expected::of`], next to what it should have printed.
fn assert_printed(mut printed_records: Vec<Value>, expected: &[Whole], fields: &[&str]) {
    let place = |record: &Value| {
        let number = |field: &str| record[field].as_i64().unwrap_or(-1);
        let topic = record["topic"].as_str().unwrap_or_default().to_owned();
        (topic, number("partition"), number("offset"))
    };
    printed_records.sort_by_key(place);
    for (record, whole) in printed_records.iter().zip(expected) {
        for &field in fields {
            let should = match field {
                "topic" => whole.topic.as_str().into(),
                "partition" => whole.partition.into(),
                "offset" => whole.offset.into(),
                "timestamp" if whole.timestamp == -1 => Value::Null,
                "timestamp" => whole.timestamp.into(),
                "key" => printed(whole.key.as_deref()),
                "value" => printed(whole.value.as_deref()),
                other => panic!("no field {other}"),
            };
            assert!(record[field] == should, "{field} of {whole:?}");
        }
    }
    assert_eq!(printed_records.len(), expected.len(), "that many records");
}

/// Topics whose records are printed.
const PRINTED: [&str; 2] = ["bad-kinds", NAMES];

/// The command's arguments over [`PRINTED`], to their ends.
fn run_over<'a>(kafka: &'a Kafka, group: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["run", "-b", kafka.bootstrap(), "-g", group, "--until-end"];
    for topic in PRINTED {
        arguments.extend(["-t", topic]);
    }
    arguments.extend(more);
    arguments
}

#[test]
fn the_command_prints_bad_records_as_valid_lines() {
    let kafka = kafka!(shared);
    let expected = expected(kafka).of(keepup::Isolation::ReadCommitted, &PRINTED);
    let place = ["topic", "partition", "offset", "key", "value"];

    let events = ["--events", "json", "--records"];
    let mut run = Keepup::start(&run_over(kafka, "bad-events", &events));
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    let mut records = run.events();
    assert!(records.iter().all(Value::is_object), "a line is no JSON");
    records.retain(|event| event["name"] == "record_data");
    assert_printed(records, &expected, &place);

    let print = ["--handler", "print", "--json"];
    let run = keepup(&run_over(kafka, "bad-json", &print), "", PATIENT);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let lines = run.stdout.lines();
    let records = lines.map(|line| serde_json::from_str(line).expect("a line of JSON"));
    assert_printed(
        records.collect(),
        &expected,
        &[&place[..], &["timestamp"]].concat(),
    );

    let run = keepup(
        &run_over(kafka, "bad-text", &["--handler", "print"]),
        "",
        PATIENT,
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let mut lines: Vec<&str> = run.stdout.lines().collect();
    assert!(
        lines.iter().all(|line| !line.contains(char::is_control)),
        "a control character for the terminal"
    );
    lines.sort_unstable();
    let mut begins: Vec<String> = expected
        .iter()
        .map(|record| format!("{}-{}@{} ", record.topic, record.partition, record.offset))
        .collect();
    begins.sort_unstable();
    assert_eq!(lines.len(), begins.len());
    for (line, begin) in lines.iter().zip(&begins) {
        assert!(line.starts_with(begin.as_str()), "{begin}");
    }
}

#[test]
fn another_program_gets_bad_records_with_all_their_headers() {
    let kafka = kafka!(shared);
    let expected = expected(kafka).of(keepup::Isolation::ReadCommitted, &PRINTED);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("records");
    let handler = format!("exec=tee -a {} | sed -u 's/.*/done/'", file.display());
    let arguments = ["--workers", "1", "--handler", &handler];
    let run = keepup(&run_over(kafka, "bad-exec", &arguments), "", PATIENT);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let given = std::fs::read_to_string(&file).expect("UTF-8");
    let given: Vec<Value> = given
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let fields = ["topic", "partition", "offset", "timestamp", "key", "value"];
    assert_printed(given.clone(), &expected, &fields);

    // Names that are not UTF-8 as they were written, and not as Java has them.
    let headers = |record: &RawRecord| -> Value {
        let headers = record.headers.iter().map(|(name, value)| {
            serde_json::json!({"key": printed(Some(name)), "value": printed(value.as_deref())})
        });
        headers.collect()
    };
    let written = |topic: &str, partition: i32, records: &[RawRecord]| {
        for (offset, record) in (0..).zip(records) {
            let given = given.iter().find(|given| {
                given["topic"] == topic
                    && given["partition"] == partition
                    && given["offset"] == offset
            });
            let given = given.unwrap_or_else(|| panic!("{topic}-{partition}@{offset} is missing"));
            assert!(
                given["headers"] == headers(record),
                "{topic}-{partition}@{offset}"
            );
        }
    };
    written(NAMES, 0, &bad_names());
    written("bad-kinds", 0, &strange());
    written("bad-kinds", 1, &strange());
}

#[test]
fn bad_records_are_in_the_dead_letter_topic_as_they_were() {
    let kafka = kafka!(shared);
    let letters = "bad-letters";
    kafka.create_topic(letters, 2, &ANYTHING_GOES);
    let sources = expected(kafka).of(keepup::Isolation::ReadCommitted, &PRINTED);
    let events = Events::default();
    let mut policy = RetryPolicy::default();
    policy.attempts = 1;
    policy.on_exhausted = OnExhausted::DeadLetter;
    let handle = builder(kafka, letters, PRINTED[0], &events)
        .topics(PRINTED[1..].iter().copied())
        .dead_letter(letters)
        .retry(policy)
        .until_end(true)
        .start(|_| |_: &Record<'_>| Outcome::retry("poison"))
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(
        (&report.reason, report.left_uncommitted),
        (&StopReason::EndReached, 0),
        "{report:?}{}",
        events.timeline()
    );
    let mut written: Vec<Whole> = kafka.java_reader(Isolation::Committed, &[letters]);
    // Each under the name of the record that it is of, without what it says of it.
    for letter in &mut written {
        let told = letter.headers.split_off(letter.headers.len() - 8);
        let told: BTreeMap<String, Vec<u8>> = told
            .into_iter()
            .map(|(name, value)| (name, value.expect("it has a value")))
            .collect();
        let value = |name: &str| told[&format!("kafka_dlt-original-{name}")].clone();
        letter.topic = String::from_utf8(value("topic")).expect("a topic");
        letter.partition = i32::from_be_bytes(value("partition").try_into().expect("four bytes"));
        letter.offset = i64::from_be_bytes(value("offset").try_into().expect("eight bytes"));
        letter.timestamp = i64::from_be_bytes(value("timestamp").try_into().expect("eight bytes"));
    }
    written
        .sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
    assert_same("letters", &written, &sources);
}
