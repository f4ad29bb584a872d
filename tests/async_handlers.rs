//! Handlers that are futures, against a real broker: many in flight per worker, the orders, and the end of a run.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keepup::{Order, OwnedRecord, Record, RetryPolicy, StopReason, Workers};

use crate::support::kafka::Kafka;
use crate::support::members::Protocol;
use crate::support::run::{Events, Tally, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON, wait_until};

/// How many are inside now, how many were at most, and what each key saw.
#[derive(Default)]
struct Watched {
    inside: usize,
    most: usize,
    of_key: BTreeMap<(i32, Vec<u8>), Vec<i64>>,
    /// Keys that two had at once.
    shared: usize,
    now: Vec<(i32, Vec<u8>)>,
}

/// Waits for that long with each record, and watches.
fn watching(
    watched: &Arc<Mutex<Watched>>,
    waits: Duration,
) -> impl Fn(OwnedRecord) -> std::pin::Pin<Box<dyn Future<Output = ()>>> + use<> {
    let watched = Arc::clone(watched);
    move |record| {
        let watched = Arc::clone(&watched);
        Box::pin(async move {
            let lane = (
                record.partition(),
                record.key().unwrap_or_default().to_vec(),
            );
            {
                let mut watched = watched.lock().expect("nobody panics with it");
                watched.inside += 1;
                watched.most = watched.most.max(watched.inside);
                watched.shared += usize::from(watched.now.contains(&lane));
                watched.now.push(lane.clone());
                watched
                    .of_key
                    .entry(lane.clone())
                    .or_default()
                    .push(record.offset());
            }
            tokio::time::sleep(waits).await;
            let mut watched = watched.lock().expect("nobody panics with it");
            watched.inside -= 1;
            watched.now.retain(|other| *other != lane);
        })
    }
}

/// Does that, and notes the record when it is done.
fn noting(
    watched: &Arc<Mutex<Watched>>,
    finished: &Tally,
    waits: Duration,
) -> impl Fn(OwnedRecord) -> std::pin::Pin<Box<dyn Future<Output = ()>>> + use<> {
    let (wait, finished) = (watching(watched, waits), finished.clone());
    move |record| {
        let (waiting, finished) = (wait(record.clone()), finished.clone());
        Box::pin(async move {
            waiting.await;
            finished.note(&record.as_record());
        })
    }
}

/// Waits until so many are inside.
fn await_inside(watched: &Mutex<Watched>, expected: usize) {
    wait_until(PATIENT, "that many are inside", || {
        let inside = watched.lock().expect("nobody panics with it").inside;
        if inside == expected {
            Ok(())
        } else {
            Err(inside)
        }
    });
}

/// When the first of some calls began, and the last of them ended.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Option<(Instant, Instant)>>>);

impl Calls {
    fn note(&self) {
        let now = Instant::now();
        let mut calls = self.0.lock().expect("nobody panics with it");
        *calls = Some((calls.map_or(now, |(first, _)| first), now));
    }

    fn took(&self) -> Duration {
        let calls = *self.0.lock().expect("nobody panics with it");
        calls
            .map(|(first, last)| last - first)
            .expect("some were made")
    }
}

#[test]
fn one_worker_with_64_futures_in_flight_does_as_much_as_64_threads() {
    const WAIT: Duration = Duration::from_millis(20);
    let kafka = kafka!(shared);
    let name = "async-unordered";
    topic_of_numbers(kafka, name, 1, 6_400);
    let events = Events::default();
    let of_threads = Calls::default();
    let calls = of_threads.clone();
    let handle = builder(kafka, name, name, &events)
        .order(Order::Unordered)
        .workers(Workers::Fixed(64))
        .until_end(true)
        .start(move |_| {
            let calls = calls.clone();
            move |_: &Record<'_>| {
                calls.note();
                work_for(WAIT);
                calls.note();
            }
        })
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!((report.exit_code(), report.records), (0, 6_400));

    let group = format!("{name}-futures");
    let of_futures = Calls::default();
    let calls = of_futures.clone();
    let handle = builder(kafka, &group, name, &events)
        .order(Order::Unordered)
        .workers(Workers::Fixed(1))
        .in_flight(64)
        .until_end(true)
        .start_async(move |_| {
            let calls = calls.clone();
            move |_: OwnedRecord| {
                let calls = calls.clone();
                async move {
                    calls.note();
                    tokio::time::sleep(WAIT).await;
                    calls.note();
                }
            }
        })
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 6_400, 0)
    );
    assert_eq!(kafka.committed(&group, name), [Some(6_400)]);
    let (of_threads, of_futures) = (of_threads.took(), of_futures.took());
    println!("64 threads: {of_threads:?}, 64 futures of one worker: {of_futures:?}");
    // The ideal is 2 s, and one thread alone would be at it for 128 s.
    assert!(of_futures >= WAIT * 100, "more than 64 at a time");
    assert!(
        of_futures < of_threads * 3 / 2 + Duration::from_secs(2),
        "{of_futures:?} and {of_threads:?}"
    );
}

#[test]
fn futures_keep_the_order_of_keys_and_of_partitions() {
    let kafka = kafka!(shared);
    for order in [Order::Key, Order::Partition] {
        let name = format!("async-order-{order}");
        kafka.create_topic(&name, 4, &[]);
        let producer = kafka.producer(&[]);
        for partition in 0..4 {
            for number in 0..300 {
                let key = format!("key-{}", number * number % 17);
                producer.send_keyed(&name, partition, &key, Some("x"));
            }
        }
        producer.flush();
        let (events, watched) = (Events::default(), Arc::default());
        let watch = Arc::clone(&watched);
        let handle = builder(kafka, &name, &name, &events)
            .order(order)
            .workers(Workers::Fixed(2))
            .until_end(true)
            .start_async(move |_| watching(&watch, Duration::from_millis(2)))
            .expect("the run starts");
        let (report, _) = end_of(handle, PATIENT);
        assert_eq!(
            (report.exit_code(), report.records, report.left_uncommitted),
            (0, 1_200, 0)
        );
        assert_eq!(kafka.committed(&name, &name), [Some(300); 4]);
        let watched = watched.lock().expect("nobody panics with it");
        assert_eq!(watched.shared, 0, "{order}: two had a key at once");
        let seen = watched.of_key.values();
        assert!(seen.clone().all(|offsets| offsets.is_sorted()), "{order}");
        assert_eq!(seen.map(Vec::len).sum::<usize>(), 1_200, "each once");
        match order {
            Order::Partition => assert!(watched.most <= 4, "{}", watched.most),
            _ => assert!(watched.most > 8, "{}", watched.most),
        }
    }
}

#[test]
fn a_stop_drains_what_is_in_flight_and_commits_it() {
    let kafka = kafka!(shared);
    let name = "async-stop";
    topic_of_numbers(kafka, name, 2, 500);
    let (events, tally) = (Events::default(), Tally::default());
    let watched = Arc::default();
    let (watch, done) = (Arc::clone(&watched), tally.clone());
    let handle = builder(kafka, name, name, &events)
        .order(Order::Unordered)
        .workers(Workers::Fixed(1))
        .in_flight(50)
        .start_async(move |_| noting(&watch, &done, Duration::from_millis(700)))
        .expect("the run starts");
    await_inside(&watched, 50);
    handle.stop();
    let (report, took) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert!(report.abandoned.is_empty() && report.left_group);
    assert_eq!(tally.len() as u64, report.records);
    assert!(tally.len() >= 50, "{} were done in {took:?}", tally.len());
    let committed: i64 = kafka.committed(name, name).into_iter().flatten().sum();
    assert_eq!(committed, i64::try_from(report.records).expect("few"));
}

per_protocol! {
    what_is_in_flight_when_partitions_move_to_another_member_is_done_and_committed_first {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
}

fn what_is_in_flight_when_partitions_move_to_another_member_is_done_and_committed_first(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    topic_of_numbers(kafka, topic, 4, 1_000);
    let (events, finished) = (Events::default(), Tally::default());
    let start = |watched: &Arc<Mutex<Watched>>, events: &Events| {
        let (watch, done) = (Arc::clone(watched), finished.clone());
        kafka
            .run_of(topic, topic, protocol)
            .order(Order::Unordered)
            .workers(Workers::Fixed(1))
            .in_flight(40)
            .on_event(events.observer())
            .start_async(move |_| noting(&watch, &done, Duration::from_millis(150)))
            .expect("the run starts")
    };
    let (mine, others) = (Arc::default(), Arc::default());
    let first = start(&mine, &events);
    await_inside(&mine, 40);
    let second = start(&others, &Events::default());
    // Its share came to it, in the middle of the work.
    await_inside(&others, 40);
    assert!(finished.len() < 4_000, "there is still work for both");
    finished.await_len(PATIENT, 4_000);
    kafka.await_committed(topic, topic, &[Some(1_000); 4]);
    second.stop();
    first.stop();
    for handle in [second, first] {
        let (report, _) = end_of(handle, PATIENT);
        assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    }
    let repeated: Vec<_> = finished
        .times()
        .into_iter()
        .filter(|(_, n)| *n > 1)
        .collect();
    assert!(repeated.is_empty(), "{repeated:?}{}", events.timeline());
}

#[test]
fn futures_that_do_not_end_are_cancelled_at_the_stop_deadline_and_their_worker_is_not_left_behind()
{
    let kafka = kafka!(shared);
    let name = "async-cancel";
    topic_of_numbers(kafka, name, 1, 100);
    let (events, watched) = (Events::default(), Arc::default());
    let watch = Arc::clone(&watched);
    let start = |waits| {
        builder(kafka, name, name, &events)
            .order(Order::Unordered)
            .workers(Workers::Fixed(1))
            .stop_deadline(Duration::from_secs(2))
            .until_end(true)
            .retry(RetryPolicy::default())
            .start_async({
                let watch = Arc::clone(&watch);
                move |_| watching(&watch, waits)
            })
            .expect("the run starts")
    };
    let handle = start(Duration::from_hours(1));
    await_inside(&watched, 100);
    handle.stop();
    let (report, took) = end_of(handle, SOON);
    assert_eq!(report.reason, StopReason::StopCalled);
    assert!(report.abandoned.is_empty(), "{report:?}");
    assert_eq!(report.workers.len(), 1, "{report:?}");
    assert_eq!((report.records, report.left_uncommitted), (0, 100));
    assert!(took >= Duration::from_secs(2), "not before: {took:?}");
    *watched.lock().expect("nobody panics with it") = Watched::default();

    // They come again.
    let (report, _) = end_of(start(Duration::from_millis(5)), PATIENT);
    assert_eq!((report.exit_code(), report.records), (0, 100));
    assert_eq!(kafka.committed(name, name), [Some(100)]);
}
