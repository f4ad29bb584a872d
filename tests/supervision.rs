//! Handlers that panic, fail, hang and take their time: what becomes of their records and of everybody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keepup::{
    EventKind, Handler, Outcome, Record, Report, RetryPolicy, StopReason, TopicPartition,
    WorkerInfo, WorkerStop, Workers,
};

use crate::support::kafka::Kafka;
use crate::support::run::{
    Door, Events, SLACK, Seen, Tally, builder, end_of, topic_of_numbers, work_for,
};
use crate::support::{PATIENT, SOON, wait_for};

fn retries(attempts: u32, backoff: Duration) -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    (policy.attempts, policy.backoff) = (attempts, backoff);
    policy
}

#[test]
fn s14_a_handler_that_panics_once_is_replaced_and_its_record_retried() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "s14", 4, 500);
    let (events, seen) = (Events::default(), Tally::default());
    let made = Arc::new(std::sync::Mutex::new(Vec::new()));
    let handle = builder(kafka, "s14", "s14", &events)
        .workers(Workers::Fixed(2))
        .start({
            let (seen, made) = (seen.clone(), Arc::clone(&made));
            move |info: WorkerInfo| {
                made.lock().expect("no panic here").push(info);
                let seen = seen.clone();
                move |record: &Record<'_>| {
                    seen.note(record);
                    let is_it = (record.partition(), record.offset()) == (2, 250);
                    assert!(!is_it || record.attempt() > 1, "the first time");
                }
            }
        })
        .expect("the run starts");
    seen.await_each(SOON, 4, 500);
    let (worker, reason, restarts) =
        events.find(SOON, "worker_restarted", |event| match &event.kind {
            EventKind::WorkerRestarted {
                reason, restarts, ..
            } => Some((event.worker?, reason.clone(), *restarts)),
            _ => None,
        });
    handle.stop();
    let (report, _) = end_of(handle, SOON);

    assert_eq!(reason, WorkerStop::HandlerPanicked("the first time".into()));
    assert_eq!(restarts, 1);
    let retried = events.pick(|event| match &event.kind {
        EventKind::RecordRetried {
            partition,
            offset,
            attempt,
            error,
        } => Some((partition.partition(), *offset, *attempt, error.clone())),
        _ => None,
    });
    assert_eq!(
        retried,
        [(2, 250, 1, "the handler panicked: the first time".into())]
    );
    let times = seen.times();
    assert!(
        times
            .iter()
            .all(|(record, &times)| times == 1 + usize::from(*record == (2, 250)))
    );
    let attempts: Vec<u32> = seen
        .all()
        .iter()
        .filter(|seen| (seen.partition, seen.offset) == (2, 250))
        .map(|seen| seen.attempt)
        .collect();
    assert_eq!(attempts, [1, 2]);
    for partition in 0..4 {
        let mut offsets = seen.of(partition);
        assert!(offsets.is_sorted(), "in order");
        offsets.dedup();
        assert_eq!(offsets.len(), 500);
    }
    let made = made.lock().expect("no panic here");
    let mut made: Vec<_> = made
        .iter()
        .map(|info| (info.worker, info.restarts))
        .collect();
    made.sort_unstable();
    let mut expected = [(0, 0), (1, 0), (worker, 1)];
    expected.sort_unstable();
    assert_eq!(made, expected, "nobody else was replaced");
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 2_000, 0)
    );
    let restarts: u32 = report.workers.iter().map(|worker| worker.restarts).sum();
    assert_eq!(restarts, 1);
    assert_eq!(kafka.committed("s14", "s14"), [Some(500); 4]);
}

/// A run whose handler panics each time at offset 50 of partition 1; the others have 200 records each.
fn poisoned(kafka: &Kafka, name: &str, retry: RetryPolicy, budget: u32) -> (Report, Tally, Tally) {
    topic_of_numbers(kafka, name, 4, 200);
    let (events, finished, tried) = (Events::default(), Tally::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .retry(retry)
        .restart_budget(budget)
        .start({
            let (finished, tried) = (finished.clone(), tried.clone());
            move |_| {
                let (finished, tried) = (finished.clone(), tried.clone());
                move |record: &Record<'_>| {
                    if (record.partition(), record.offset()) == (1, 50) {
                        tried.note(record);
                        panic!("poison");
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(kafka.committed(name, name)[1], Some(50), "nothing past it");
    finished.assert_is_what_is_committed(&kafka.committed(name, name));
    assert_eq!(report.exit_code(), 1);
    for partition in [0, 2, 3] {
        assert_eq!(
            finished.of(partition).len(),
            200,
            "partition {partition} went on"
        );
    }
    (report, finished, tried)
}

#[test]
fn s15_a_record_that_always_panics_ends_the_run_after_its_attempts() {
    let kafka = kafka!(shared);
    let policy = retries(4, Duration::from_millis(200));
    let (report, _, tried) = poisoned(kafka, "s15-attempts", policy, 100);
    let StopReason::RetriesExhausted {
        partition,
        offset,
        attempts,
        error,
    } = &report.reason
    else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(partition, &TopicPartition::new("s15-attempts", 1));
    assert_eq!((*offset, *attempts), (50, 4));
    assert_eq!(error, "the handler panicked: poison");
    let attempts: Vec<u32> = tried.all().iter().map(|seen| seen.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    assert_eq!(report.left_uncommitted, 1);
}

#[test]
fn s15_a_record_that_always_panics_ends_the_run_when_the_restart_budget_is_spent() {
    let kafka = kafka!(shared);
    let policy = retries(100, Duration::from_millis(200));
    let (report, _, tried) = poisoned(kafka, "s15-budget", policy, 3);
    let StopReason::RestartBudgetSpent { last, .. } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(last, "poison");
    assert_eq!(
        tried.len(),
        4,
        "the first time, and after each of three restarts"
    );
}

#[test]
fn a_retry_with_back_off_does_not_hold_up_the_other_partitions_of_its_worker() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "retry-others", 3, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let backoff = Duration::from_secs(3);
    let failing = Arc::new(AtomicBool::new(true));
    let handle = builder(kafka, "retry-others", "retry-others", &events)
        .workers(Workers::Fixed(1))
        .retry(retries(5, backoff))
        .start({
            let (finished, failing) = (finished.clone(), Arc::clone(&failing));
            move |_| {
                let (finished, failing) = (finished.clone(), Arc::clone(&failing));
                move |record: &Record<'_>| {
                    let is_it = (record.partition(), record.offset()) == (0, 10);
                    if is_it && failing.swap(false, Ordering::Relaxed) {
                        return Err("not now");
                    }
                    finished.note(record);
                    Ok(())
                }
            }
        })
        .expect("the run starts");
    wait_for(SOON, "the failure", || !failing.load(Ordering::Relaxed));
    let failed = Instant::now();
    // By chance the wait is up to a fifth shorter or longer.
    let shortest = backoff.mul_f32(0.8);
    finished.await_len(shortest, 210);
    assert_eq!(finished.of(0).len(), 10, "partition 0 waits");
    assert!(failed.elapsed() < shortest, "the others did not");
    finished.await_each(SOON, 3, 100);
    let waited = failed.elapsed();
    assert!(
        (backoff.mul_f32(0.75)..backoff.mul_f32(1.2) + SLACK).contains(&waited),
        "{waited:?}"
    );
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    finished.assert_each_once(3, 100);
    assert_eq!(report.exit_code(), 0);
    assert_eq!(
        kafka.committed("retry-others", "retry-others"),
        [Some(100); 3]
    );
}

/// Panics in one of its hooks.
struct Touchy {
    hook: &'static str,
    finished: Tally,
}

impl Touchy {
    fn called(&self, hook: &'static str) {
        assert!(self.hook != hook, "no {hook} for me");
    }
}

impl Handler for Touchy {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        self.finished.note(record);
        Outcome::Done
    }

    fn on_assigned(&mut self, _partitions: &[TopicPartition]) {
        self.called("on_assigned");
    }

    fn on_revoked(&mut self, _partitions: &[TopicPartition]) {
        self.called("on_revoked");
    }

    fn on_lost(&mut self, _partitions: &[TopicPartition]) {
        self.called("on_lost");
    }
}

/// Starts a run that panics in `hook`.
fn touchy(kafka: &Kafka, name: &str, hook: &'static str) -> (keepup::Handle, Events, Tally) {
    topic_of_numbers(kafka, name, 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .start({
            let finished = finished.clone();
            move |_| {
                let finished = finished.clone();
                let touchy = Touchy { hook, finished };
                touchy.called("factory");
                touchy
            }
        })
        .expect("the run starts");
    (handle, events, finished)
}

fn assert_hook_panicked(report: &Report, hook: &str) {
    let StopReason::HookPanicked {
        hook: which,
        message,
    } = &report.reason
    else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(
        (*which, message.as_str()),
        (hook, format!("no {hook} for me").as_str())
    );
    assert_eq!(report.reason.name(), "hook-panicked");
    assert_eq!(report.exit_code(), 1);
    assert!(report.abandoned.is_empty());
    let panicked = |reason: &WorkerStop| matches!(reason, WorkerStop::HookPanicked(_));
    assert!(
        report.workers.iter().any(|worker| panicked(&worker.reason)),
        "{report:?}"
    );
}

#[test]
fn s19_a_panic_in_a_factory_ends_the_run() {
    let kafka = kafka!(shared);
    let (handle, _, finished) = touchy(kafka, "s19-factory", "factory");
    assert_hook_panicked(&end_of(handle, SOON).0, "factory");
    assert_eq!(finished.len(), 0);
    assert_eq!(kafka.committed("s19-factory", "s19-factory"), [None, None]);
}

#[test]
fn s19_a_panic_in_on_assigned_ends_the_run() {
    let kafka = kafka!(shared);
    let (handle, _, finished) = touchy(kafka, "s19-assigned", "on_assigned");
    assert_hook_panicked(&end_of(handle, SOON).0, "on_assigned");
    assert_eq!(finished.len(), 0);
}

#[test]
fn s19_a_panic_in_on_revoked_ends_the_run_with_everything_committed() {
    let kafka = kafka!(shared);
    let (handle, _, finished) = touchy(kafka, "s19-revoked", "on_revoked");
    finished.await_len(SOON, 200);
    // Another member takes half.
    let other_events = Events::default();
    let other = builder(kafka, "s19-revoked", "s19-revoked", &other_events)
        .start(|_| |_: &Record<'_>| ())
        .expect("the run starts");
    let (report, _) = end_of(handle, SOON);
    assert_hook_panicked(&report, "on_revoked");
    assert_eq!(
        (report.records, report.left_uncommitted),
        (200, 0),
        "{report:?}"
    );
    assert!(report.left_group);
    wait_for(SOON, "the other to have both", || {
        other.partitions().len() == 2
    });
    other.stop();
    assert_eq!(end_of(other, SOON).0.records, 0, "all was committed");
    assert_eq!(
        kafka.committed("s19-revoked", "s19-revoked"),
        [Some(100); 2]
    );
}

#[test]
fn s19_a_panic_in_on_lost_ends_the_run() {
    let kafka = kafka!(one);
    let (handle, events, finished) = touchy(&kafka, "s19-lost", "on_lost");
    finished.await_len(SOON, 200);
    kafka.stop_broker(1);
    let lost = |events: &Events| events.count("partitions_lost") > 0;
    wait_for(PATIENT, "the session to be over", || {
        lost(&events) || handle.has_ended()
    });
    kafka.cont_broker(1);
    assert_hook_panicked(&end_of(handle, PATIENT).0, "on_lost");
}

#[test]
fn s20_a_handler_that_hangs_in_a_revoke_holds_the_partition_up_for_the_revoke_deadline() {
    let kafka = kafka!(shared);
    let name = "s20";
    topic_of_numbers(kafka, name, 2, 100);
    let revoke_deadline = Duration::from_secs(2);
    let stop_deadline = Duration::from_secs(1);
    let (events, finished, stuck, door) = (
        Events::default(),
        Tally::default(),
        Tally::default(),
        Door::default(),
    );
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .revoke_deadline(revoke_deadline)
        .stop_deadline(stop_deadline)
        .start({
            let (finished, stuck, door) = (finished.clone(), stuck.clone(), door.clone());
            move |_| {
                let (finished, stuck, door) = (finished.clone(), stuck.clone(), door.clone());
                move |record: &Record<'_>| {
                    if record.offset() == 40 {
                        stuck.note(record);
                        door.pass();
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    stuck.await_len(SOON, 2);

    let (other_events, other_finished) = (Events::default(), Tally::default());
    let joined = Instant::now();
    let other = builder(kafka, name, name, &other_events)
        .start({
            let finished = other_finished.clone();
            move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| finished.note(record)
            }
        })
        .expect("the run starts");
    other_finished.await_len(SOON, 60);
    let took = joined.elapsed();
    assert!(
        took >= revoke_deadline,
        "it waited for the record: {took:?}"
    );
    assert!(
        took < revoke_deadline + 2 * SLACK,
        "and no longer: {took:?}"
    );
    let moved = other_finished.all()[0].partition;
    assert_eq!(
        other_finished.of(moved),
        (40..100).collect::<Vec<_>>(),
        "exactly the record that overran and the later ones"
    );
    let overran = |message: &String| message.contains("revoke deadline");
    assert_eq!(events.warnings().iter().filter(|m| overran(m)).count(), 1);

    // What the late handler says of it is not committed: the other has it, at 100.
    let stop = Instant::now();
    drop(handle);
    let took = stop.elapsed();
    assert!(took < stop_deadline + SLACK, "the drop took {took:?}");
    other_finished.await_len(SOON, 120);
    other.stop();
    let (report, _) = end_of(other, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(kafka.committed(name, name), [Some(100); 2]);
    door.open();
    finished.await_len(SOON, 82);
    assert_eq!(kafka.committed(name, name), [Some(100); 2]);
}

#[test]
fn s23_a_handler_longer_than_max_poll_interval_is_not_evicted() {
    let kafka = kafka!(shared);
    let name = "s23";
    topic_of_numbers(kafka, name, 2, 3);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .property("max.poll.interval.ms", "6000")
        .start({
            let finished = finished.clone();
            move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| {
                    if record.offset() == 1 {
                        work_for(Duration::from_secs(9));
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    finished.await_len(PATIENT, 6);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    finished.assert_each_once(2, 3);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(kafka.committed(name, name), [Some(3); 2]);
    assert_eq!(events.count("partitions_lost"), 0);
    assert_eq!(
        events.assigned().len(),
        2,
        "assigned once: {:?}",
        events.names()
    );
    let first = Seen {
        partition: 0,
        offset: 0,
        attempt: 1,
    };
    assert!(finished.all().contains(&first));
}
