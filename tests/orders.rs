//! Orders smaller than a partition: any worker takes any record whose lane nobody has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keepup::{
    EventKind, Handler, OnExhausted, Order, Outcome, Record, RetryPolicy, WorkerInfo, Workers,
};
use rdkafka::producer::BaseRecord;

use crate::support::kafka::{Isolation, Kafka};
use crate::support::run::{Door, Events, Tally, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON, wait_until};

/// A call of a handler: what it had, and how many others were in a handler then.
#[derive(Debug, Clone)]
struct Call {
    partition: i32,
    offset: i64,
    key: Vec<u8>,
    worker: usize,
    others: usize,
}

/// The calls that began and ended, in the order in which they did.
#[derive(Debug, Default)]
struct Calls {
    began: Vec<Call>,
    ended: Vec<Call>,
    /// What is in a handler now.
    inside: Vec<(i32, Vec<u8>)>,
    /// Keys that two had at once.
    shared: Vec<Vec<u8>>,
}

/// Notes calls, and works for a while in each.
#[derive(Clone)]
struct Watched {
    calls: Arc<Mutex<Calls>>,
    worker: usize,
    works_for: Duration,
}

impl Watched {
    fn handlers(
        calls: &Arc<Mutex<Calls>>,
        works_for: Duration,
    ) -> impl Fn(WorkerInfo) -> Self + Send + Sync + 'static {
        let calls = Arc::clone(calls);
        move |info| Self {
            calls: Arc::clone(&calls),
            worker: info.worker,
            works_for,
        }
    }
}

impl Handler for Watched {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let key = record.key().unwrap_or_default().to_vec();
        let lane = (record.partition(), key.clone());
        let call = {
            let mut calls = self.calls.lock().expect("nobody panics with it");
            if calls.inside.contains(&lane) {
                calls.shared.push(key.clone());
            }
            let others = calls.inside.len();
            calls.inside.push(lane.clone());
            let call = Call {
                partition: record.partition(),
                offset: record.offset(),
                key,
                worker: self.worker,
                others,
            };
            calls.began.push(call.clone());
            call
        };
        work_for(self.works_for);
        let mut calls = self.calls.lock().expect("nobody panics with it");
        let place = calls.inside.iter().position(|inside| *inside == lane);
        calls.inside.remove(place.expect("it is inside"));
        calls.ended.push(call);
        Outcome::Done
    }
}

/// The offsets of each key of each partition, in the order in which handlers began with them.
fn by_key(calls: &Calls) -> BTreeMap<(i32, Vec<u8>), Vec<i64>> {
    let mut by_key: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for call in &calls.began {
        let lane = (call.partition, call.key.clone());
        by_key.entry(lane).or_default().push(call.offset);
    }
    by_key
}

/// A topic whose records have one of so many keys each, in turn.
fn topic_of_keys(kafka: &Kafka, topic: &str, partitions: i32, records: usize, keys: usize) {
    kafka.create_topic(topic, partitions, &[]);
    let producer = kafka.producer(&[]);
    for partition in 0..partitions {
        for number in 0..records {
            // Not in turn: neighbours share a key now and then.
            let key = (number * number / 3) % keys;
            producer.send_keyed(topic, partition, &format!("key-{key}"), Some("x"));
        }
    }
    producer.flush();
}

#[test]
fn in_key_order_any_worker_takes_any_key_and_none_is_shared_or_out_of_order() {
    let kafka = kafka!(shared);
    let name = "order-key";
    topic_of_keys(kafka, name, 2, 2_000, 40);
    let (events, calls) = (Events::default(), Arc::default());
    let handle = builder(kafka, name, name, &events)
        .order(Order::Key)
        .workers(Workers::Fixed(8))
        .until_end(true)
        .start(Watched::handlers(&calls, Duration::from_millis(1)))
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 4_000, 0)
    );
    assert_eq!(
        report.workers.len(),
        8,
        "and no word of the thread that reads"
    );
    assert_eq!(kafka.committed(name, name), [Some(2_000), Some(2_000)]);
    let calls = calls.lock().expect("nobody panics with it");
    assert_eq!(calls.began.len(), 4_000, "each once");
    assert!(
        calls.shared.is_empty(),
        "two had {:?} at once",
        calls.shared
    );
    for (lane, offsets) in by_key(&calls) {
        assert!(offsets.is_sorted(), "{lane:?}: {offsets:?}");
    }
    let busiest = calls.began.iter().map(|call| call.others + 1).max();
    assert!(
        busiest > Some(4),
        "two partitions kept {busiest:?} workers busy"
    );
    let mut workers: Vec<_> = calls.began.iter().map(|call| call.worker).collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!(workers, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn without_order_one_record_that_takes_long_holds_up_nothing() {
    let kafka = kafka!(shared);
    let name = "order-none";
    topic_of_numbers(kafka, name, 1, 50_000);
    let (events, tally, door) = (Events::default(), Tally::default(), Door::default());
    let handle = {
        let (tally, door) = (tally.clone(), door.clone());
        builder(kafka, name, name, &events)
            .order(Order::Unordered)
            .workers(Workers::Fixed(4))
            // In the middle of those that are taken together, short as they are.
            .start(move |_| {
                let (tally, door) = (tally.clone(), door.clone());
                move |record: &Record<'_>| {
                    if [20_000, 30_000].contains(&record.offset()) {
                        door.pass();
                    }
                    tally.note(record);
                }
            })
            .expect("the run starts")
    };
    tally.await_len(PATIENT, 49_998);
    kafka.await_committed(name, name, &[Some(20_000)]);
    let view = handle.partitions();
    assert_eq!(
        (view[0].watermark, view[0].position),
        (Some(20_000), Some(50_000))
    );
    door.open();
    tally.await_len(SOON, 50_000);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(kafka.committed(name, name), [Some(50_000)]);
    assert_eq!(tally.times().len(), 50_000, "each once");
}

/// Fails what has the key "bad" until the door is open, and notes what is done.
#[derive(Clone)]
struct Picky {
    done: Tally,
    is_mended: Arc<Mutex<bool>>,
}

impl Handler for Picky {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let is_mended = *self.is_mended.lock().expect("nobody panics with it");
        if record.key() == Some(b"bad") && !is_mended {
            return Outcome::retry("not yet");
        }
        self.done.note(record);
        Outcome::Done
    }
}

#[test]
fn a_record_that_is_retried_holds_up_its_key_and_nothing_else() {
    let kafka = kafka!(shared);
    let name = "order-retry";
    kafka.create_topic(name, 1, &[]);
    let producer = kafka.producer(&[]);
    for number in 0..3_000 {
        let key = if number % 1_000 == 500 {
            "bad".into()
        } else {
            format!("key-{}", number % 97)
        };
        producer.send_keyed(name, 0, &key, Some("x"));
    }
    producer.flush();
    let (events, picky) = (
        Events::default(),
        Picky {
            done: Tally::default(),
            is_mended: Arc::default(),
        },
    );
    let mut patient = RetryPolicy::default();
    patient.attempts = u32::MAX;
    patient.backoff = Duration::from_millis(5);
    patient.max_backoff = Duration::from_millis(20);
    let made = picky.clone();
    let handle = builder(kafka, name, name, &events)
        .order(Order::Key)
        .workers(Workers::Fixed(3))
        .retry(patient)
        .start(move |_| made.clone())
        .expect("the run starts");
    picky.done.await_len(PATIENT, 2_997);
    let retried = |events: &Events| {
        events.pick(|event| match event.kind {
            EventKind::RecordRetried {
                offset, attempt, ..
            } => Some((offset, attempt)),
            _ => None,
        })
    };
    wait_until(SOON, "ten attempts", || match retried(&events).len() {
        10.. => Ok(()),
        few => Err(few),
    });
    // The second of that key is not tried before the first is done; attempts count on.
    let attempts: Vec<_> = retried(&events);
    assert!(
        (1..)
            .zip(&attempts)
            .all(|(number, at)| *at == (500, number)),
        "{attempts:?}"
    );
    kafka.await_committed(name, name, &[Some(500)]);
    *picky.is_mended.lock().expect("nobody panics with it") = true;
    picky.done.await_len(SOON, 3_000);
    let bad: Vec<_> = picky
        .done
        .all()
        .split_off(2_997)
        .iter()
        .map(|seen| seen.offset)
        .collect();
    assert_eq!(bad, [500, 1_500, 2_500]);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(kafka.committed(name, name), [Some(3_000)]);
}

/// Says dead-letter, skip, or panics, by the record's value.
fn by_value(record: &Record<'_>) -> Outcome {
    match record.value() {
        Some(b"dead") => Outcome::dead_letter("as it says"),
        Some(b"skip") => Outcome::skip("as it says"),
        Some(b"fail") => Outcome::retry("as it says"),
        Some(b"panic") => panic!("as it says"),
        _ => Outcome::Done,
    }
}

fn ends_of_records_that_fail(order: Order) {
    let kafka = kafka!(shared);
    let name = &format!("order-dead-{order}");
    let dead = &format!("{name}-letters");
    kafka.create_topic(name, 2, &[]);
    kafka.create_topic(dead, 2, &[]);
    let producer = kafka.producer(&[]);
    for number in 0..200 {
        let value = match number {
            50 => "dead",
            51 => "skip",
            52 => "fail",
            53 => "panic",
            _ => "x",
        };
        let key = format!("key-{}", number % 7);
        producer.send(
            BaseRecord::to(name)
                .partition(1)
                .key(key.as_bytes())
                .payload(value.as_bytes()),
        );
    }
    producer.flush();
    let events = Events::default();
    let mut policy = RetryPolicy::default();
    policy.attempts = 3;
    policy.backoff = Duration::from_millis(10);
    policy.on_exhausted = OnExhausted::DeadLetter;
    let handle = builder(kafka, name, name, &events)
        .order(order)
        .workers(Workers::Fixed(3))
        .dead_letter(dead)
        .retry(policy)
        .start(|_| by_value)
        .expect("the run starts");
    kafka.await_committed(name, name, &[Some(0), Some(200)]);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 200, 0)
    );
    let letters = kafka.read(dead, Isolation::Committed);
    let mut written: Vec<_> = letters[1]
        .iter()
        .map(|letter| {
            String::from_utf8_lossy(rdkafka::Message::payload(letter).unwrap_or_default())
                .into_owned()
        })
        .collect();
    written.sort();
    assert_eq!(
        written,
        ["dead", "fail", "panic"],
        "in the partition of that number, each once"
    );
    assert!(letters[0].is_empty());
    let count = |name| events.count(name);
    assert_eq!(
        (
            count("record_dead_lettered"),
            count("record_skipped"),
            count("record_retried")
        ),
        (3, 1, 4),
        "{}",
        events.timeline()
    );
    assert_eq!(count("worker_restarted"), 3, "one for each panic");
}

#[test]
fn s14_s15_in_key_order_records_that_fail_end_by_policy_and_panics_replace_their_worker() {
    ends_of_records_that_fail(Order::Key);
}

#[test]
fn s14_s15_without_order_records_that_fail_end_by_policy_and_panics_replace_their_worker() {
    ends_of_records_that_fail(Order::Unordered);
}

#[test]
fn s01_in_key_order_partitions_come_and_go_and_nothing_is_handled_twice() {
    let kafka = kafka!(shared);
    let name = "order-moves";
    topic_of_keys(kafka, name, 6, 4_000, 200);
    let calls: Arc<Mutex<Calls>> = Arc::default();
    let start = |events: &Events| {
        builder(kafka, name, name, events)
            .order(Order::Key)
            .workers(Workers::Fixed(4))
            .property("partition.assignment.strategy", "cooperative-sticky")
            .start(Watched::handlers(&calls, Duration::from_micros(500)))
            .expect("the run starts")
    };
    let len = || calls.lock().expect("nobody panics with it").ended.len();
    let await_len = |least: usize| {
        wait_until(PATIENT, "records", || match len() {
            enough if enough >= least => Ok(()),
            few => Err(few),
        });
    };
    let (first_events, second_events) = (Events::default(), Events::default());
    let first = start(&first_events);
    await_len(2_000);
    let second = start(&second_events);
    wait_until(PATIENT, "the second to have its share", || {
        match second.partitions().len() {
            3 => Ok(()),
            others => Err(others),
        }
    });
    await_len(10_000);
    first.stop();
    let (report, _) = end_of(first, PATIENT);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    await_len(24_000);
    second.stop();
    let (report, _) = end_of(second, PATIENT);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(kafka.committed(name, name), [Some(4_000); 6]);
    let calls = calls.lock().expect("nobody panics with it");
    assert_eq!(calls.began.len(), 24_000, "each once");
    assert!(
        calls.shared.is_empty(),
        "two had {:?} at once",
        calls.shared
    );
    for (lane, offsets) in by_key(&calls) {
        assert!(offsets.is_sorted(), "{lane:?}: {offsets:?}");
    }
}

#[test]
fn s02_without_order_a_handler_that_overruns_a_revoke_keeps_its_record_only() {
    let kafka = kafka!(shared);
    let name = "order-overrun";
    topic_of_numbers(kafka, name, 2, 1_000);
    let (events, done, door) = (Events::default(), Tally::default(), Door::default());
    let first = {
        let (done, door) = (done.clone(), door.clone());
        builder(kafka, name, name, &events)
            .order(Order::Unordered)
            .workers(Workers::Fixed(3))
            .revoke_deadline(Duration::from_secs(1))
            .start(move |_| {
                let (done, door) = (done.clone(), door.clone());
                move |record: &Record<'_>| {
                    if record.offset() == 500 {
                        door.pass();
                    }
                    done.note(record);
                }
            })
            .expect("the run starts")
    };
    done.await_len(PATIENT, 1_998);
    let (second_events, again) = (Events::default(), Tally::default());
    let second = builder(kafka, name, name, &second_events)
        .workers(Workers::Fixed(1))
        .start(again.handlers())
        .expect("the run starts");
    again.await_len(PATIENT, 500);
    let partition = again.all()[0].partition;
    let expected: Vec<i64> = (500..1_000).collect();
    assert_eq!(
        again.of(partition),
        expected,
        "from the one in hand on, in order"
    );
    assert!(
        events
            .warnings()
            .iter()
            .any(|warning| warning.contains("did not finish its record")),
        "{:?}",
        events.warnings()
    );
    door.open();
    second.stop();
    end_of(second, PATIENT);
    first.stop();
    let (report, _) = end_of(first, PATIENT);
    assert_eq!(report.exit_code(), 0);
    assert_eq!(kafka.committed(name, name), [Some(1_000), Some(1_000)]);
}

#[test]
fn batches_with_another_order_than_the_partitions_are_refused_at_the_start() {
    let refused = keepup::builder("127.0.0.1:1", "g")
        .topic("t")
        .order(Order::Key)
        .start_batches(10, Duration::from_millis(1), |_| {
            |_: &keepup::Records<'_>| ()
        })
        .expect_err("it is refused");
    assert!(refused.to_string().contains("order = key"), "{refused}");
}

#[test]
fn a_count_ends_the_run_exactly_and_workers_that_have_no_leave_wait() {
    let kafka = kafka!(shared);
    let name = "order-count";
    topic_of_numbers(kafka, name, 2, 5_000);
    let (events, tally) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .order(Order::Unordered)
        .workers(Workers::Fixed(16))
        .count(1_234)
        .start({
            let tally = tally.clone();
            move |_| {
                let tally = tally.clone();
                move |record: &Record<'_>| {
                    work_for(Duration::from_millis(2));
                    tally.note(record);
                }
            }
        })
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!((report.exit_code(), report.records), (0, 1_234));
    assert_eq!(tally.times().len(), 1_234, "each once, and no more");
}
