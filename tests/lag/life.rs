//! Partitions that come and go: what is somebody else's is not shown, and what is ours is shown whatever befalls it.

use std::collections::{BTreeMap, BTreeSet};

use std::time::{Duration, Instant};

use keepup::{EventKind, LagSnapshot, Record, RetryPolicy, TopicPartition, Workers};

use super::{
    Oracle, TICK, anywhere, assert_true_within_an_interval, family, fetched, lag_of, scraped,
};
use crate::support::kafka::{Isolation, Kafka};
use crate::support::keepup::Keepup;
use crate::support::members::{Member, Protocol, Tally};
use crate::support::run::{Events, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON, wait_until};

/// The numbers of the partitions that a run shows the lag of.
fn shown(member: &Member) -> Vec<i32> {
    let snapshot = member.handle().lag();
    let partitions = snapshot.partitions.iter();
    partitions.map(|lag| lag.partition.partition()).collect()
}

/// The numbers of the partitions that any series of `/metrics` has.
fn in_series(member: &Member) -> Vec<i32> {
    let series = scraped(member.handle());
    let numbers: BTreeSet<i32> = series.keys().map(|(_, _, partition)| *partition).collect();
    numbers.into_iter().collect()
}

per_protocol! {
    s46_the_lag_of_a_revoked_partition_is_gone_at_the_next_look_and_that_of_the_others_stays {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
}

fn s46_the_lag_of_a_revoked_partition_is_gone_at_the_next_look_and_that_of_the_others_stays(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 4, 0..50);
    let tally = Tally::default();
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.listen(anywhere())
    };
    let a = Member::start("a", run(), &tally);
    tally.wait_for_all(topic, 0..4, 0..50);
    wait_until(SOON, "all lags to be known", || {
        let snapshot = a.handle().lag();
        let known = |lag: &keepup::PartitionLag| lag.committed_lag == Some(0);
        if snapshot.partitions.len() == 4 && snapshot.partitions.iter().all(known) {
            Ok(())
        } else {
            Err(snapshot)
        }
    });

    let b = Member::start("b", run(), &tally);
    let start = Instant::now();
    let (mut looks, mut both) = (0_u64, 0_u64);
    loop {
        // In this order: what the one lets go of, the other has later, and it only lets go here.
        let second = [shown(&b), in_series(&b)].concat();
        let owned = a.partitions();
        let (first, series) = (shown(&a), in_series(&a));
        let still_owned = |partition: &i32| owned.contains(partition);
        assert!(
            first.iter().chain(&series).all(still_owned),
            "{first:?} and {series:?} of {owned:?}"
        );
        looks += 1;
        let by_b = |partition: &i32| second.contains(partition);
        both += u64::from(first.iter().chain(&series).any(by_b));
        let owned = (a.partitions(), b.partitions());
        let settled = owned.0.len() == 2 && owned.1.len() == 2;
        if settled && shown(&b) == owned.1 && in_series(&b) == owned.1 {
            let now = (shown(&a), in_series(&a));
            assert_eq!(now, (owned.0.clone(), owned.0), "at the next look");
            break;
        }
        assert!(start.elapsed() < PATIENT, "{first:?} {second:?} {owned:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    println!("{looks} looks during the rebalance");
    assert_eq!(both, 0, "a partition was shown by both");
    // Those that stayed were shown with their lag all the same; the others are soon.
    assert_eq!(a.handle().lag().total_lag(), Some(0));
    for member in [&a, &b] {
        wait_until(SOON, "the lag of both", || {
            let snapshot = member.handle().lag();
            let known = snapshot.partitions.iter();
            let known = known.filter(|lag| lag.records_lag == Some(0)).count();
            if known == 2 && snapshot.health.is_ready() {
                Ok(())
            } else {
                Err(snapshot)
            }
        });
    }
    // What the handle gives up at once is not hung back by a tick that was under way: for two of them.
    let mut updates = a.handle().lag_updates();
    let mine = a.partitions();
    for _ in 0..2 {
        let snapshot = updates.next_within(SOON).expect("a tick");
        assert_eq!(snapshot.partitions.len(), 2, "{mine:?}: {snapshot:?}");
    }
    b.stop();
    a.wait_for_partitions(4);
    wait_until(SOON, "all four to be shown again", || {
        let shown = shown(&a);
        if shown.len() == 4 { Ok(()) } else { Err(shown) }
    });
    a.stop();
}

#[test]
fn s46_the_lag_of_a_lost_partition_is_gone_at_the_next_look_and_there_again_after_the_rejoin() {
    let kafka = kafka!(patient);
    let topic = "lag-s46-lost";
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let doors = [tally.close("a", 0, 5), tally.close("a", 1, 5)];
    let a = Member::start(
        "a",
        kafka.run_of(topic, topic, Protocol::Cooperative),
        &tally,
    );
    tally.wait_for_knocks(&doors);
    let oracle = Oracle::new(&kafka, topic, topic, 2, Isolation::Committed);
    kafka.wait_for_commits(topic, topic, &[Some(5); 2]);
    assert_true_within_an_interval(a.handle(), &oracle, &[6; 2], "before");

    // Nothing answers. Until the session is over the partitions are ours, with the lag that was known last.
    kafka.stop_broker(1);
    let mut ages = Vec::new();
    let start = Instant::now();
    loop {
        let gone = a.handle().partitions().is_empty();
        let snapshot = a.handle().lag();
        if gone {
            // Looked at later than it was lost.
            assert_eq!(snapshot.partitions, [], "after {:?}", start.elapsed());
            break;
        }
        for lag in &snapshot.partitions {
            assert_eq!(
                (lag.records_lag, lag.committed_lag),
                (Some(14), Some(15)),
                "{lag:?}"
            );
            ages.extend(lag.end_offset_age);
        }
        assert!(start.elapsed() < PATIENT, "{snapshot:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let oldest = ages.iter().max().copied().unwrap_or_default();
    println!(
        "lost after {:?}; the oldest end offset was {oldest:?} old",
        start.elapsed()
    );
    assert!(oldest > 2 * TICK, "nobody told it: {oldest:?}");
    // It stays away: a tick does not bring it back.
    let mut updates = a.handle().lag_updates();
    updates.next_within(SOON);
    let next = updates
        .next_within(SOON)
        .expect("ticks go on without a broker");
    assert_eq!(next.partitions, []);
    assert!(next.end_offset_errors > 0, "{next:?}");
    assert!(next.health.is_live(), "it comes back by itself: {next:?}");
    assert!(!next.health.is_ready(), "it is in no group: {next:?}");

    kafka.cont_broker(1);
    tally.open_all();
    tally.wait_for_all(topic, 0..2, 0..20);
    kafka.wait_for_commits(topic, topic, &[Some(20); 2]);
    assert_true_within_an_interval(a.handle(), &oracle, &[20; 2], "after the rejoin");
    assert!(a.handle().lag().health.is_ready());
    a.stop();
}

#[test]
fn the_lag_of_a_worker_that_dies_again_and_again_never_vanishes_and_never_shows_zero() {
    let kafka = kafka!(shared);
    let name = "lag-dying-worker";
    topic_of_numbers(kafka, name, 3, 20_000);
    let events = Events::default();
    let mut retry = RetryPolicy::default();
    (retry.attempts, retry.backoff) = (1_000, Duration::from_millis(50));
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(1))
        .property("auto.commit.interval.ms", "100")
        .retry(retry)
        .restart_budget(1_000)
        .listen(anywhere())
        .start(|info: keepup::WorkerInfo| {
            if info.restarts > 0 {
                // Long enough for looks at a partition that nobody has.
                work_for(Duration::from_millis(250));
            }
            let mut handled = 0;
            move |_: &Record<'_>| {
                handled += 1;
                assert!(
                    handled <= 80,
                    "worker {} for the {} time",
                    info.worker,
                    info.restarts
                );
                work_for(Duration::from_millis(2));
            }
        })
        .expect("the run starts");
    let known = |snapshot: &LagSnapshot| {
        let of = |partition| lag_of(snapshot, name, partition);
        (0..3)
            .filter_map(|partition| {
                Some((of(partition)?.records_lag?, of(partition)?.committed_lag?))
            })
            .collect::<Vec<_>>()
    };
    wait_until(SOON, "a commit of each", || {
        let known = known(&handle.lag());
        if known.len() == 3 { Ok(()) } else { Err(known) }
    });

    let mut updates = handle.lag_updates();
    let (start, mut looks, mut without_worker) = (Instant::now(), 0, 0);
    while start.elapsed() < 8 * TICK {
        // Looks on each tick, and ten times a second between.
        let _ = updates.next_within(Duration::from_millis(100));
        let snapshot = handle.lag();
        let known = known(&snapshot);
        assert_eq!(known.len(), 3, "one vanished: {snapshot:?}");
        for (records, committed) in known {
            // In 8 s fewer than half of them can be handled.
            assert!(records > 10_000 && committed >= records, "{snapshot:?}");
        }
        for name in [family("records_lag"), "keepup_committed_lag".to_owned()] {
            let series: Vec<f64> = scraped(&handle)
                .into_iter()
                .filter(|((family, ..), _)| *family == name)
                .map(|(_, lag)| lag)
                .collect();
            assert_eq!(series.len(), 3, "{name}: one vanished");
            let held = format!("{name}{{");
            let page = fetched(&handle, "/metrics");
            let mut lines = page.lines().filter(|line| line.starts_with(&held));
            // The label keeps the last worker while there is none.
            assert!(lines.all(|line| line.contains("worker=\"0\"")), "{page}");
            assert!(
                series.iter().all(|lag| *lag > 10_000.0),
                "{name}: {series:?}"
            );
        }
        looks += 1;
        for lag in &snapshot.partitions {
            without_worker += u32::from(lag.worker.is_none());
            assert_eq!(lag.last_worker, Some(0), "{lag:?}");
        }
    }
    let snapshot = handle.lag();
    let restarts = snapshot.workers[0].restarts;
    println!(
        "{looks} looks, {restarts} restarts, {without_worker} times a partition without a worker"
    );
    assert!(restarts >= 3, "{:?}", snapshot.workers);
    assert!(without_worker > 0, "restarts take their time");
    assert!(snapshot.health.is_live(), "{:?}", snapshot.health);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    // The records that a worker died of and that wait for their retry.
    assert!(report.left_uncommitted <= 3, "{report:?}");
}

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
    f64::from(kib.expect("a number")) / 1_024.0
}

#[test]
fn s44_topics_that_come_and_go_leave_nothing_behind() {
    let kafka = kafka!(shared);
    let name = "lag-s44-soak";
    let pattern = format!("^{name}-.*");
    let keep = format!("{name}-keep");
    kafka.filled_topic(&keep, 2, 0..50);
    let tally = Tally::default();
    let a = Member::start(
        "a",
        kafka.run_of(name, &pattern, Protocol::Cooperative),
        &tally,
    );
    // The same as a process of its own, whose memory is nobody else's.
    let group = format!("{name}-process");
    let quick = [
        "-X",
        "topic.metadata.refresh.interval.ms=500",
        "-X",
        "heartbeat.interval.ms=200",
        "-X",
        "session.timeout.ms=6000",
    ];
    let mut process = Keepup::run(kafka, &pattern, &group, &quick);
    let shown = |expected: &BTreeMap<String, i32>| {
        let expected: Vec<_> = expected
            .iter()
            .flat_map(|(topic, &partitions)| {
                (0..partitions).map(move |number| TopicPartition::new(topic.as_str(), number))
            })
            .collect();
        wait_until(PATIENT, "the partitions that there are to be shown", || {
            let snapshot = a.handle().lag();
            let known: Vec<_> = snapshot
                .partitions
                .iter()
                .filter(|lag| lag.records_lag == Some(0))
                .map(|lag| lag.partition.clone())
                .collect();
            if known == expected {
                Ok(())
            } else {
                Err(snapshot)
            }
        });
    };
    let assigned = |process: &mut Keepup, topic: &str| {
        let wanted = format!("partitions of {topic}");
        process.next_where(&wanted, PATIENT, |event| {
            event["name"] == "records_consumed"
                && event["partitions"]
                    .as_array()
                    .is_some_and(|list| list.iter().any(|element| element["topic"] == topic))
        });
    };
    let mut memory = Vec::new();
    for round in 0..10 {
        let topic = format!("{name}-{round}");
        kafka.filled_topic(&topic, 3, 0..50);
        shown(&BTreeMap::from([(keep.clone(), 2), (topic.clone(), 3)]));
        tally.wait_for_all(&topic, 0..3, 0..50);
        assigned(&mut process, &topic);
        kafka.delete_topic(&topic);
        shown(&BTreeMap::from([(keep.clone(), 2)]));
        memory.push(resident(process.pid()));
        let snapshot = a.handle().lag();
        // Topics are remembered for five minutes, so that a scrape sees their last counts.
        assert!(snapshot.topics.len() <= round + 2, "{:?}", snapshot.topics);
        assert_eq!(a.handle().partitions().len(), 2);
    }
    println!("resident MiB after each round: {memory:.1?}");
    // The first rounds fill caches, pools and tables.
    let (before, after) = (memory[3], memory[9]);
    assert!(after < before + 8.0, "{memory:.1?}");
    a.stop();
}

#[test]
fn s44_partitions_that_are_given_and_taken_again_and_again_are_shown_by_their_owner_alone() {
    let kafka = kafka!(shared);
    let topic = "lag-s44-churn";
    kafka.filled_topic(topic, 6, 0..20);
    let tally = Tally::default();
    let run = || kafka.run_of(topic, topic, Protocol::Cooperative);
    let a = Member::start("a", run(), &tally);
    a.wait_for_partitions(6);
    for round in 0..3_u64 {
        let b = Member::start("b", run(), &tally);
        b.wait_for_partitions(3);
        kafka.fill(topic, 6, 20 + round * 20..40 + round * 20);
        for member in [&a, &b] {
            wait_until(SOON, "its own partitions and no others to be shown", || {
                let shown = (shown(member), member.partitions());
                if shown.0 == shown.1 && shown.0.len() == 3 {
                    Ok(())
                } else {
                    Err(shown)
                }
            });
        }
        b.stop();
        a.wait_for_partitions(6);
    }
    tally.wait_for_all(topic, 0..6, 0..80);
    let snapshot = wait_until(SOON, "all to be at the end", || {
        let snapshot = a.handle().lag();
        if snapshot.partitions.len() == 6 && snapshot.total_lag() == Some(0) {
            Ok(snapshot)
        } else {
            Err(snapshot)
        }
    });
    assert_eq!(snapshot.topics.len(), 1, "{:?}", snapshot.topics);
    // What both handled of it, each record once.
    assert!(snapshot.topics[0].records <= 480, "{:?}", snapshot.topics);
    let revoked = tally.events("a", |event| {
        matches!(
            event.kind,
            EventKind::PartitionsRevoked { local: false, .. }
        )
        .then_some(())
    });
    assert!(revoked.len() >= 3);
    a.stop();
}
