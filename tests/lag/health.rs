//! Liveness and readiness: what is stuck is told, and what takes its time, waits or has nothing to do is not.

use std::time::{Duration, Instant};

use keepup::{Handle, Health, LagSnapshot, Outcome, Record, RetryPolicy, TopicPartition, Workers};

use super::{TICK, anywhere, lag_of};
use crate::support::kafka::Kafka;
use crate::support::prometheus::get;
use crate::support::run::{Door, Events, Tally, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON, wait_until};

/// Looks at every tick for that long, and gives all that was seen.
fn watch(handle: &Handle, within: Duration) -> Vec<std::sync::Arc<LagSnapshot>> {
    let (mut updates, start) = (handle.lag_updates(), Instant::now());
    let mut seen = Vec::new();
    while start.elapsed() < within {
        seen.extend(updates.next_within(TICK));
    }
    assert!(seen.len() > 1, "ticks go on");
    seen
}

fn assert_live(seen: &[std::sync::Arc<LagSnapshot>], when: &str) {
    for snapshot in seen {
        assert!(snapshot.health.is_live(), "{when}: {:?}", snapshot.health);
        assert!(snapshot.health.is_ready(), "{when}: {:?}", snapshot.health);
    }
}

fn wait_for_health(handle: &Handle, what: &str, wanted: impl Fn(&Health) -> bool) -> Health {
    wait_until(SOON, what, || {
        let health = handle.lag().health.clone();
        if wanted(&health) {
            Ok(health)
        } else {
            Err(health)
        }
    })
}

/// A run of two workers over four partitions, whose handler waits at a record for the door.
fn run_that_hangs(kafka: &Kafka, name: &str) -> (Handle, Tally, Events, Door) {
    let (events, finished, door) = (Events::default(), Tally::default(), Door::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .stuck_after(Duration::from_secs(2))
        .listen(anywhere())
        .property("auto.commit.interval.ms", "100")
        .start({
            let (finished, door) = (finished.clone(), door.clone());
            move |_| {
                let (finished, door) = (finished.clone(), door.clone());
                move |record: &Record<'_>| {
                    if (record.partition(), record.offset()) == (1, 50) {
                        door.pass();
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    (handle, finished, events, door)
}

#[test]
fn s22_a_worker_that_is_stuck_is_reported_with_its_partition_and_the_others_go_on() {
    let kafka = kafka!(shared);
    let name = "lag-s22";
    topic_of_numbers(kafka, name, 4, 100);
    let (handle, finished, events, door) = run_that_hangs(kafka, name);
    let health = wait_for_health(&handle, "the stuck worker to be told", |health| {
        !health.is_live()
    });
    let snapshot = handle.lag();
    let stuck = lag_of(&snapshot, name, 1).expect("it is ours");
    let worker = stuck.worker.expect("it has one");
    assert_eq!(health.not_live.len(), 1, "{health:?}");
    let reason = &health.not_live[0];
    for word in [
        format!("worker {worker}"),
        format!("{name}-1"),
        "offset 50 ".to_owned(),
    ] {
        assert!(reason.contains(&word), "{word:?} in {reason:?}");
    }
    assert!(health.is_ready(), "it is a member all the same: {health:?}");

    let address = handle.listens_at().expect("it listens");
    let (status, body) = get(address, "/health/live").expect("an answer");
    assert_eq!(status, 503);
    assert!(body.contains(&format!("{name}-1")), "{body}");
    assert_eq!(
        get(address, "/health/ready").map(|answer| answer.0),
        Ok(200)
    );

    // The other worker's partitions go on, and are committed.
    let others: Vec<i32> = snapshot
        .partitions
        .iter()
        .filter(|lag| lag.worker != Some(worker))
        .map(|lag| lag.partition.partition())
        .collect();
    assert_eq!(others.len(), 2, "{snapshot:?}");
    let mut in_hand_for = stuck.in_hand_for;
    for round in 1..=3_u64 {
        let producer = kafka.producer(&[]);
        producer.send_numbers(name, 4, 100 * round..100 * (round + 1));
        producer.flush();
        let end = i64::try_from(100 * (round + 1)).expect("a few");
        let snapshot = wait_until(SOON, "the others to be committed", || {
            let snapshot = handle.lag();
            let at_end = others.iter().all(|&partition| {
                lag_of(&snapshot, name, partition).is_some_and(|lag| lag.committed == Some(end))
            });
            let grown = lag_of(&snapshot, name, 1).is_some_and(|lag| lag.in_hand_for > in_hand_for);
            if at_end && grown {
                Ok(snapshot)
            } else {
                Err(snapshot)
            }
        });
        assert!(!snapshot.health.is_live());
        let stuck = lag_of(&snapshot, name, 1).expect("it is ours");
        in_hand_for = stuck.in_hand_for;
        assert_eq!(
            (stuck.watermark, stuck.position),
            (Some(50), Some(51)),
            "{stuck:?}"
        );
        println!(
            "round {round}: in hand for {in_hand_for:?}, lag {:?}",
            stuck.records_lag
        );
    }
    let lags = wait_until(SOON, "the lag of what the stuck worker has", || {
        let snapshot = handle.lag();
        let of = |partition| lag_of(&snapshot, name, partition).and_then(|lag| lag.records_lag);
        let held = (0..4).filter(|partition| !others.contains(partition));
        let lags: Vec<_> = held.map(|partition| (partition, of(partition))).collect();
        // The stuck one's neighbour was handled up to 100 at most.
        let true_ones = lags.iter().all(|&(partition, lag)| match partition {
            1 => lag == Some(349),
            _ => lag.is_some_and(|lag| (300..=400).contains(&lag)),
        });
        if true_ones { Ok(lags) } else { Err(lags) }
    });
    println!("held: {lags:?}");
    assert_eq!(
        events.count("partitions_revoked") + events.count("partitions_lost"),
        0
    );

    door.open();
    wait_for_health(&handle, "it to be live again", Health::is_live);
    assert_eq!(get(address, "/health/live").map(|answer| answer.0), Ok(200));
    finished.await_each(SOON, 4, 400);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    finished.assert_each_once(4, 400);
}

/// A run whose handler works for `works` at the first record of partition 0, and fails once at that of partition 1.
fn run_of(
    kafka: &Kafka,
    name: &str,
    stuck_after: Duration,
    works: Duration,
    backoff: Duration,
) -> (Handle, Tally, Events) {
    let (events, finished) = (Events::default(), Tally::default());
    let mut retry = RetryPolicy::default();
    (retry.backoff, retry.max_backoff) = (backoff, backoff);
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .stuck_after(stuck_after)
        .retry(retry)
        .start({
            let finished = finished.clone();
            move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| {
                    if record.offset() == 0 && record.partition() == 0 {
                        work_for(works);
                    }
                    if record.offset() == 0 && record.partition() == 1 && record.attempt() == 1 {
                        return Outcome::retry("not yet");
                    }
                    finished.note(record);
                    Outcome::Done
                }
            }
        })
        .expect("the run starts");
    (handle, finished, events)
}

#[test]
fn s47_a_long_handler_and_a_retry_that_waits_longer_than_stuck_after_are_healthy() {
    let kafka = kafka!(shared);
    let name = "lag-s47-long";
    topic_of_numbers(kafka, name, 2, 10);
    let stuck_after = Duration::from_secs(4);
    let works = Duration::from_millis(2_500);
    // A fifth less by chance, and still longer than the watch.
    let waits = Duration::from_secs(12);
    let (handle, finished, _) = run_of(kafka, name, stuck_after, works, waits);
    let health = handle.lag().health.clone();
    assert!(health.is_live(), "{health:?}");
    // Unless the machine was so busy that the group was faster than the look.
    if handle.partitions().is_empty() {
        let reason = health.not_ready.as_deref();
        assert_eq!(reason, Some("has not joined the group yet"));
    }
    wait_for_health(&handle, "the first assignment", Health::is_ready);

    let seen = watch(&handle, Duration::from_secs(8));
    assert_live(&seen, "long and retried");
    let longest = |partition| {
        let of = |snapshot: &std::sync::Arc<LagSnapshot>| {
            lag_of(snapshot, name, partition).map(|lag| lag.in_hand_for)
        };
        seen.iter().filter_map(of).max().unwrap_or_default()
    };
    println!("longest in hand: {:?} and {:?}", longest(0), longest(1));
    assert!(longest(0) >= TICK, "it was at work for long");
    assert!(longest(1) < TICK, "one that waits is in nobody's hand");
    let last = seen.last().expect("a tick");
    let waiting = lag_of(last, name, 1).expect("it is ours");
    let of = (waiting.records_lag, waiting.in_flight, waiting.watermark);
    assert_eq!(of, (Some(9), 1, Some(0)), "{waiting:?}");
    finished.await_each(PATIENT, 2, 10);
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
}

#[test]
fn s47_an_idle_topic_a_pause_and_a_member_without_partitions_are_healthy() {
    let kafka = kafka!(shared);
    let name = "lag-s47-idle";
    topic_of_numbers(kafka, name, 2, 10);
    let stuck_after = Duration::from_secs(1);
    let (handle, finished, _) = run_of(kafka, name, stuck_after, Duration::ZERO, stuck_after);
    finished.await_len(SOON, 20);
    handle
        .pause(&[TopicPartition::new(name, 0)])
        .expect("it is ours");
    let producer = kafka.producer(&[]);
    producer.send_numbers_to(name, 0, 10..30);
    producer.flush();
    // A third member for two partitions is a spare.
    let (second, ..) = run_of(kafka, name, stuck_after, Duration::ZERO, stuck_after);
    let (third, ..) = run_of(kafka, name, stuck_after, Duration::ZERO, stuck_after);
    let runs = [&handle, &second, &third];
    wait_until(PATIENT, "a spare", || {
        let mut owned = runs.map(|run| run.partitions().len());
        owned.sort_unstable();
        let ready = runs.map(|run| run.lag().health.is_ready());
        if (owned, ready) == ([0, 1, 1], [true; 3]) {
            Ok(())
        } else {
            Err((owned, ready))
        }
    });
    for run in runs {
        let seen = watch(run, Duration::from_secs(2));
        assert_live(&seen, "idle");
        let last = seen.last().expect("a tick");
        let spare = run.partitions().is_empty();
        assert_eq!(last.partitions.is_empty(), spare);
        if spare {
            assert_eq!(last.total_lag(), None, "nothing is not zero: {last:?}");
        }
        println!(
            "{} partitions, workers {:?}",
            last.partitions.len(),
            last.workers
        );
    }
    for run in [third, second, handle] {
        run.stop();
        assert_eq!(end_of(run, SOON).0.exit_code(), 0);
    }
}

#[test]
fn s47_a_run_that_stops_is_not_ready_and_live_until_its_end() {
    let kafka = kafka!(shared);
    let name = "lag-s47-stop";
    topic_of_numbers(kafka, name, 1, 10);
    let (events, door) = (Events::default(), Door::default());
    let handle = builder(kafka, name, name, &events)
        .stuck_after(Duration::from_secs(1))
        .listen(anywhere())
        .start({
            let door = door.clone();
            move |_| {
                let door = door.clone();
                move |record: &Record<'_>| {
                    if record.offset() == 5 {
                        door.pass();
                    }
                }
            }
        })
        .expect("the run starts");
    wait_until(SOON, "the record in hand", || {
        let view = handle.partitions();
        let watermark = view.first().and_then(|view| view.watermark);
        if watermark == Some(5) {
            Ok(())
        } else {
            Err(view)
        }
    });
    handle.stop();
    wait_for_health(&handle, "that it stops", |health| {
        health.not_ready.as_deref() == Some("is stopping")
    });
    let address = handle.listens_at().expect("it listens");
    let (status, body) = get(address, "/health/ready").expect("an answer");
    assert_eq!(status, 503);
    assert!(body.contains("is stopping"), "{body}");
    // The stop has a deadline of its own: whoever is in a handler now is not stuck.
    for snapshot in watch(&handle, Duration::from_secs(3)) {
        let health = &snapshot.health;
        assert!(health.is_live() && !health.is_ready(), "{health:?}");
        assert_eq!(get(address, "/health/live").map(|answer| answer.0), Ok(200));
    }
    let mut updates = handle.lag_updates();
    door.open();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
    let mut last = None;
    while let Some(snapshot) = updates.next_within(SOON) {
        last = Some(snapshot);
    }
    assert!(updates.has_ended());
    let last = last.expect("a last word");
    assert_eq!(last.health.not_ready.as_deref(), Some("the run has ended"));
    assert_eq!(last.partitions, [], "nothing is ours any more");
}
