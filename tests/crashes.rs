//! kill −9 at random instants: everything is delivered, in order within each life, and no more than what was not
//! committed is delivered again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::command_run::{LARGE, large};
use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::{PATIENT, SOON, seed, wait_until};

/// How long what was handled may stay uncommitted: `auto.commit.interval.ms` here and the 200 ms in which watermarks
/// are collected are 400 ms; the rest is for machines that are busy.
const UNCOMMITTED: Duration = Duration::from_secs(2);

/// How often a run is killed: 20 times, or as `KEEPUP_TEST_KILLS` says.
fn kills() -> u64 {
    let given = std::env::var("KEEPUP_TEST_KILLS").ok();
    given.map_or(20, |kills| {
        kills.parse().expect("KEEPUP_TEST_KILLS is a number")
    })
}

/// Waits for the instant of a kill: some time after the start or some new records later, but at most `most` of them.
fn wait_instant(random: &mut fastrand::Rng, deliveries: &Deliveries, most: u64) {
    let start = Instant::now();
    let (time, records) = if random.bool() {
        (Duration::from_millis(random.u64(..1_200)), most)
    } else {
        (PATIENT, random.u64(..most))
    };
    let until = deliveries.distinct() + records;
    wait_until(PATIENT + SOON, "the instant of a kill", || {
        let now = deliveries.distinct();
        if start.elapsed() >= time || now >= until {
            Ok(())
        } else {
            Err(now)
        }
    });
}

/// Kills `run`, which was started at `since`, and gives how many records are delivered and not committed.
fn kill(
    kafka: &Kafka,
    topic: &str,
    group: &str,
    deliveries: &Deliveries,
    (mut run, since): (Keepup, i64),
) -> u64 {
    run.signal(Signal::KILL);
    assert_eq!(run.end(SOON), None);
    drop(run);
    let committed: Vec<i64> = kafka
        .committed(group, topic)
        .into_iter()
        .map(Option::unwrap_or_default)
        .collect();
    let next = deliveries.next();
    assert!(
        committed
            .iter()
            .zip(&next)
            .all(|(committed, next)| committed <= next),
        "committed {committed:?}, printed only until {next:?}"
    );
    let span = deliveries.uncommitted_span(&committed, since);
    assert!(span < UNCOMMITTED, "{span:?} of progress not committed");
    let uncommitted = next.iter().sum::<i64>() - committed.iter().sum::<i64>();
    println!("{next:?} delivered, {uncommitted} not committed, of the last {span:?}");
    u64::try_from(uncommitted).expect("a count")
}

/// Kills runs one after the other, then lets the last one reach the end.
fn survives_kills(kafka: &Kafka, topic: &str, group: &str, kills: u64, arguments: &[&str]) {
    let mut random = fastrand::Rng::with_seed(seed());
    let ends = kafka.end_offsets(topic);
    let total = u64::try_from(ends.iter().sum::<i64>()).expect("a count");
    let deliveries = Deliveries::new(topic, ends.len());
    let often = ["--until-end", "-X", "auto.commit.interval.ms=200"];
    let arguments = [&often, arguments].concat();
    // What the next run may repeat, and what all the earlier ones repeated.
    let (mut uncommitted, mut repeats) = (0, 0);
    let mut check_repeats = |uncommitted| {
        let now = deliveries.repeats();
        let again = now - std::mem::replace(&mut repeats, now);
        assert!(
            again <= uncommitted,
            "{again} delivered again, {uncommitted} not committed"
        );
    };
    for left in (1..=kills).rev() {
        let since = unix_millis();
        let run = deliveries.start(kafka, group, &arguments);
        // So that records are left for the last kill, and for the end.
        let most = (total - deliveries.distinct()) / (left + 1) / 2;
        wait_instant(&mut random, &deliveries, most.max(1));
        let before = uncommitted;
        uncommitted = kill(kafka, topic, group, &deliveries, (run, since));
        check_repeats(before);
    }
    let mut last = deliveries.start(kafka, group, &arguments);
    assert_eq!(last.end(PATIENT), Some(0), "{}", last.stderr());
    check_repeats(uncommitted);
    deliveries.assert_complete(&ends);
    deliveries.assert_in_order();
    let committed = kafka.committed(group, topic);
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
    println!("{repeats} of {total} delivered again after {kills} kills");
}

fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.expect("it is after 1970").as_millis();
    i64::try_from(millis).expect("it fits")
}

#[test]
fn a_run_that_is_killed_at_random_instants_loses_and_reorders_nothing_and_repeats_only_what_was_not_committed()
 {
    let kafka = kafka!(shared);
    let topic = large(kafka);
    assert_eq!(
        kafka.end_offsets(topic).len(),
        usize::try_from(LARGE.0).expect("a few")
    );
    let own = [
        "--workers",
        "4",
        "--assign",
        "static",
        "--index",
        "0",
        "--of",
        "1",
    ];
    survives_kills(kafka, topic, "killed", kills(), &own);
}

/// Kills members of a group with short sessions that are given `own` arguments.
fn members_survive_kills(kafka: &Kafka, name: &str, own: &[&str]) {
    kafka.create_topic(name, 4, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers(name, 4, 0..2_500);
    producer.flush();
    let member = [
        "--handler",
        "sleep=1ms",
        "-X",
        "session.timeout.ms=1500",
        "-X",
        "heartbeat.interval.ms=300",
    ];
    survives_kills(kafka, name, name, 5, &[own, &member].concat());
}

#[test]
fn a_member_of_a_group_that_is_killed_loses_nothing_and_repeats_only_what_was_not_committed() {
    members_survive_kills(kafka!(shared), "killed-member", &[]);
}

#[test]
fn s03_a_member_whose_workers_are_processes_loses_nothing_when_it_is_killed_with_them() {
    let processes = ["--model", "processes", "--workers", "2"];
    members_survive_kills(kafka!(shared), "killed-parent", &processes);
}
