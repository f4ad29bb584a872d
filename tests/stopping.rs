//! How a run ends: gracefully, in a hurry, before it began, and while the group is restless.

use std::time::{Duration, Instant};

use keepup::{Record, Records, StopReason, WorkerStop, Workers};

use crate::support::run::{
    Door, Events, SLACK, Tally, builder, end_of, topic_of_numbers, work_for,
};
use crate::support::{SOON, wait_for};

#[test]
fn s24_a_graceful_stop_finishes_what_is_in_flight_and_commits_exactly_that() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "s24-graceful", 2, 10_000);
    let events = Events::default();
    let (started, finished, door) = (Tally::default(), Tally::default(), Door::default());

    let handle = builder(kafka, "s24-graceful", "s24-graceful", &events)
        .workers(Workers::Fixed(2))
        .start_batches(1_000, SOON, {
            let (started, finished, door) = (started.clone(), finished.clone(), door.clone());
            move |_| {
                let (started, finished, door) = (started.clone(), finished.clone(), door.clone());
                move |records: &Records<'_>| {
                    started.note_all(records);
                    door.pass();
                    // Longer than a stop takes to be noticed: the next batch would be one too many.
                    work_for(Duration::from_millis(200));
                    finished.note_all(records);
                }
            }
        })
        .expect("the run starts");
    started.await_len(SOON, 2_000);
    assert_eq!((started.len(), finished.len()), (2_000, 0), "all in flight");

    handle.stop();
    door.open();
    let (report, took) = end_of(handle, SOON);

    assert_eq!(started.len(), 2_000, "no batch was started after the stop");
    assert_eq!(finished.len(), 2_000, "every batch in flight was finished");
    finished.assert_is_what_is_committed(&kafka.committed("s24-graceful", "s24-graceful"));
    assert_eq!(report.reason, StopReason::StopCalled);
    assert_eq!(report.records, 2_000);
    assert_eq!(report.left_uncommitted, 0);
    assert!(report.abandoned.is_empty());
    assert!(report.left_group, "{report:?}");
    assert_eq!(report.exit_code(), 0);
    let reasons: Vec<_> = report.workers.iter().map(|worker| &worker.reason).collect();
    let stopped = WorkerStop::RunStopped(Box::new(StopReason::StopCalled));
    assert_eq!(reasons, [&stopped, &stopped]);
    assert!(took < SLACK, "it took {took:?}");
}

#[test]
fn s24_a_handler_that_overruns_the_stop_deadline_is_left_behind_and_named() {
    let kafka = kafka!(shared);
    let deadline = Duration::from_secs(1);
    topic_of_numbers(kafka, "s24-overrun", 2, 100);
    let events = Events::default();
    let (finished, door) = (Tally::default(), Door::default());
    let stuck = Tally::default();

    let handle = builder(kafka, "s24-overrun", "s24-overrun", &events)
        .workers(Workers::Fixed(2))
        .stop_deadline(deadline)
        .start({
            let (finished, stuck, door) = (finished.clone(), stuck.clone(), door.clone());
            move |_| {
                let (finished, stuck, door) = (finished.clone(), stuck.clone(), door.clone());
                move |record: &Record<'_>| {
                    if (record.partition(), record.offset()) == (1, 50) {
                        stuck.note(record);
                        door.pass();
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    stuck.await_len(SOON, 1);
    finished.await_len(SOON, 150);
    let stuck_worker = handle.partitions()[1].worker.expect("a worker has it");

    let stop = Instant::now();
    handle.stop();
    let (report, _) = end_of(handle, deadline + SOON);
    let took = stop.elapsed();
    assert!(
        (deadline..deadline + SLACK).contains(&took),
        "it took {took:?}"
    );
    assert_eq!(report.exit_code(), 3);
    assert_eq!(report.abandoned, [stuck_worker]);
    let abandoned = report
        .workers
        .iter()
        .find(|worker| worker.worker == stuck_worker);
    assert_eq!(
        abandoned.map(|worker| &worker.reason),
        Some(&WorkerStop::Abandoned)
    );
    assert_eq!(report.left_uncommitted, 1, "the record in its handler");
    assert_eq!(report.records, 150);
    assert!(report.left_group, "{report:?}");
    let committed = [Some(100), Some(50)];
    assert_eq!(kafka.committed("s24-overrun", "s24-overrun"), committed);

    door.open();
    finished.await_len(SOON, 151);
    assert_eq!(
        kafka.committed("s24-overrun", "s24-overrun"),
        committed,
        "what a handler that was left behind completes is not committed"
    );
}

#[test]
fn s25_a_second_stop_ends_the_drain_within_2_s_and_commits_what_is_complete() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "s25-second", 2, 100);
    let events = Events::default();
    let (finished, stuck, door) = (Tally::default(), Tally::default(), Door::default());

    let handle = builder(kafka, "s25-second", "s25-second", &events)
        .workers(Workers::Fixed(2))
        .start({
            let (finished, stuck, door) = (finished.clone(), stuck.clone(), door.clone());
            move |_| {
                let (finished, stuck, door) = (finished.clone(), stuck.clone(), door.clone());
                move |record: &Record<'_>| {
                    if record.offset() == 30 + i64::from(record.partition()) {
                        stuck.note(record);
                        door.pass();
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    stuck.await_len(SOON, 2);

    handle.stop();
    let second = Instant::now();
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    let took = second.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert_eq!(report.reason, StopReason::SecondSignal);
    assert_eq!(report.exit_code(), 3);
    assert_eq!((report.records, report.left_uncommitted), (61, 2));
    assert_eq!(report.abandoned, [0, 1]);
    let committed = kafka.committed("s25-second", "s25-second");
    assert_eq!(committed, [Some(30), Some(31)]);
    finished.assert_is_what_is_committed(&committed);

    door.open();
    finished.await_len(SOON, 63);
    assert_eq!(kafka.committed("s25-second", "s25-second"), committed);
}

#[test]
fn s26_a_stop_before_the_first_assignment_returns_in_time() {
    let kafka = kafka!(shared);
    let deadline = Duration::from_secs(8);
    topic_of_numbers(kafka, "s26-early", 2, 10);
    for round in 0..10 {
        let events = Events::default();
        let handle = builder(kafka, "s26-early", "s26-early", &events)
            .stop_deadline(deadline)
            .start(|_| |_: &Record<'_>| ())
            .expect("the run starts");
        // Each round a little later: before it joins, while it joins, while it is being assigned.
        work_for(Duration::from_millis(3 * round));
        let stop = Instant::now();
        handle.stop();
        let (report, _) = end_of(handle, SOON);
        let took = stop.elapsed();
        assert!(took < deadline + SLACK, "round {round}: it took {took:?}");
        assert_eq!(report.exit_code(), 0, "round {round}: {report:?}");
        assert!(report.left_group, "round {round}: {report:?}");
    }
}

#[test]
fn s26_a_stop_in_a_rebalance_storm_returns_in_time_and_loses_nothing() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "s26-storm", 8, 2_000);
    // Longer than a session: a client that is closed in the middle of its first join may leave behind half a member,
    // which the coordinator waits for that long, and so does whoever leaves meanwhile.
    let deadline = Duration::from_secs(8);
    let finished = Tally::default();
    let start = || {
        let (finished, events) = (finished.clone(), Events::default());
        let handle = builder(kafka, "s26-storm", "s26-storm", &events)
            .workers(Workers::Fixed(2))
            .stop_deadline(deadline)
            .start(move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| {
                    work_for(Duration::from_micros(100));
                    finished.note(record);
                }
            })
            .expect("the run starts");
        (handle, events)
    };
    let mut told = Vec::new();
    let mut members = vec![start()];
    for round in 0..12 {
        members.push(start());
        // What the storm is made of: nobody waits for the last rebalance to end.
        work_for(Duration::from_millis(150));
        if members.len() > 2 {
            let stop = Instant::now();
            let (member, events) = members.remove(round % 2);
            told.push(events.clone());
            member.stop();
            let (report, _) = end_of(member, SOON);
            let took = stop.elapsed();
            assert!(took < deadline + SLACK, "round {round}: {took:?}");
            assert_eq!(
                report.exit_code(),
                0,
                "round {round}: {report:?}, {}",
                events.timeline()
            );
            assert!(report.left_group, "round {round}: {report:?}");
        }
    }
    finished.await_each(3 * SOON, 8, 2_000);
    for (member, events) in members {
        told.push(events.clone());
        member.stop();
        let (report, _) = end_of(member, SOON);
        assert_eq!(report.left_uncommitted, 0, "{report:?}");
        assert_eq!(events.count("partitions_lost"), 0, "{:?}", events.names());
    }
    assert_eq!(kafka.committed("s26-storm", "s26-storm"), [Some(2_000); 8]);
    let again = finished.len() - finished.times().len();
    let told: Vec<String> = told.iter().map(Events::timeline).collect();
    assert_eq!(
        again,
        0,
        "nobody was lost, so nothing is handled twice: {}",
        told.join("\n")
    );
}

#[test]
fn s26_a_coordinator_that_does_not_answer_does_not_hold_up_the_end() {
    let kafka = kafka!(one);
    let deadline = Duration::from_secs(3);
    topic_of_numbers(&kafka, "s26-frozen", 2, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let start = || {
        let finished = finished.clone();
        builder(&kafka, "s26-frozen", "s26-frozen", &events)
            .stop_deadline(deadline)
            .start(move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| finished.note(record)
            })
            .expect("the run starts")
    };
    let handle = start();
    finished.await_len(SOON, 200);
    wait_for(SOON, "the commit", || {
        kafka.committed("s26-frozen", "s26-frozen") == [Some(100); 2]
    });

    kafka.stop_broker(1);
    let stop = Instant::now();
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    let took = stop.elapsed();
    assert!(took < deadline + SLACK, "it took {took:?}");
    assert!(!report.left_group, "nobody could answer: {report:?}");
    assert_eq!((report.records, report.left_uncommitted), (200, 0));
    assert_eq!(report.exit_code(), 0);
    kafka.cont_broker(1);

    // The next one gets everything when the session of the first has expired, if not before.
    let handle = start();
    wait_for(2 * SOON, "the partitions", || events.assigned().len() == 4);
    kafka.kill_broker(1);
    let stop = Instant::now();
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    let took = stop.elapsed();
    assert!(took < deadline + SLACK, "it took {took:?}");
    assert_eq!(
        (report.records, report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    assert_eq!(finished.len(), 200);
}

/// librdkafka up to 2.14.1 can crash when it leaves a group whose coordinator is gone: here it would take the tests
/// with it.
#[test]
fn s26_members_that_leave_while_the_coordinator_dies_do_not_crash() {
    let kafka = kafka!(one);
    let deadline = Duration::from_secs(2);
    topic_of_numbers(&kafka, "s26-dies", 4, 100);
    for round in 0..3 {
        let members: Vec<_> = (0..6)
            .map(|_| {
                builder(&kafka, "s26-dies", "s26-dies", &Events::default())
                    .stop_deadline(deadline)
                    .workers(Workers::Fixed(1))
                    .start(|_| |_: &Record<'_>| ())
                    .expect("the run starts")
            })
            .collect();
        wait_for(3 * SOON, "the partitions to be spread", || {
            let has = |member: &keepup::Handle| member.partitions().len();
            members.iter().map(has).sum::<usize>() == 4
        });
        let mut stopped = Vec::new();
        for (number, member) in members.into_iter().enumerate() {
            // One before, one after, the others while it dies and later.
            if number == round + 1 {
                kafka.kill_broker(1);
            }
            member.stop();
            stopped.push((Instant::now(), member));
        }
        for (stop, member) in stopped {
            let (report, _) = end_of(member, SOON);
            let took = stop.elapsed();
            assert!(
                took < deadline + 2 * SLACK,
                "round {round}: it took {took:?}"
            );
            assert_eq!(
                report.reason,
                StopReason::StopCalled,
                "round {round}: {report:?}"
            );
        }
        kafka.restart_broker(1);
    }
}
