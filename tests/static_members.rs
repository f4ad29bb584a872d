//! Static members (KIP-345): restarts that nobody else notices, and two processes that have the same name.

use std::time::{Duration, Instant};

use keepup::{Builder, EventKind, Report, StopReason, TopicPartition};
use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::members::{Member, Protocol, Tally};
use crate::support::run::SLACK;
use crate::support::{PATIENT, SOON, wait_until};

/// A run of the static member `instance`.
fn named(
    kafka: &Kafka,
    group: &str,
    topic: &str,
    protocol: Protocol,
    instance: &'static str,
) -> Builder {
    let builder = kafka.run_of(group, topic, protocol);
    let builder = builder.property("group.instance.id", instance);
    if protocol == Protocol::Consumer {
        builder
    } else {
        // Longer than any restart on a busy machine.
        builder.property("session.timeout.ms", "20000")
    }
}

/// What the group gave a member and took from it, in order; moves between its own workers left out.
fn rebalances(tally: &Tally, member: &str) -> Vec<(&'static str, Vec<TopicPartition>)> {
    tally.events(member, |event| match &event.kind {
        EventKind::PartitionsAssigned {
            partitions,
            local: false,
        } => Some(("assigned", partitions.clone())),
        EventKind::PartitionsRevoked {
            partitions,
            local: false,
        } => Some(("revoked", partitions.clone())),
        EventKind::PartitionsLost { partitions } => Some(("lost", partitions.clone())),
        _ => None,
    })
}

/// How many partitions a member was told of under that name.
fn count(tally: &Tally, member: &str, name: &str) -> usize {
    let told = rebalances(tally, member).into_iter();
    told.filter(|(what, _)| *what == name)
        .map(|(_, partitions)| partitions.len())
        .sum()
}

/// Waits until a member was told of as many partitions as it has, and gives all that it was told.
fn wait_for_the_events(
    tally: &Tally,
    member: &str,
    partitions: usize,
) -> Vec<(&'static str, Vec<TopicPartition>)> {
    wait_until(SOON, "its events", || {
        let gone = count(tally, member, "revoked") + count(tally, member, "lost");
        let told = rebalances(tally, member);
        if count(tally, member, "assigned") == partitions + gone {
            Ok(told)
        } else {
            Err(told)
        }
    })
}

/// Asserts that a run ended because another process has its name; gives the words.
fn taken(report: &Report, name: &str) -> String {
    let StopReason::InstanceTaken { instance, message } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(instance, name);
    assert!(message.contains(&format!("{name:?}")), "{message}");
    assert_eq!(report.reason.name(), "fatal-client-error");
    assert_eq!(report.exit_code(), 1);
    message.clone()
}

per_protocol! {
    s40_members_that_restart_one_after_the_other_cost_the_others_nothing {
        Cooperative => under_the_cooperative_protocol,
        Eager => under_the_eager_protocol,
        Consumer => under_kip_848,
    }
    s40_a_static_member_that_stops_commits_its_last_records_and_ends_at_once {
        Cooperative => under_the_cooperative_protocol,
        Consumer => under_kip_848,
    }
}

fn s40_members_that_restart_one_after_the_other_cost_the_others_nothing(
    kafka: &'static Kafka,
    name: &'static str,
    protocol: Protocol,
) {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    const PARTITIONS: i32 = 6;
    let tally = Tally::default();
    kafka.filled_topic(name, PARTITIONS, 0..100);
    let start = |who| Member::start(who, named(kafka, name, name, protocol, who), &tally);
    let mut members = NAMES.map(start).map(Some);
    let shares = wait_until(PATIENT, "two partitions for each", || {
        let shares: Vec<Vec<i32>> = members.iter().flatten().map(Member::partitions).collect();
        if shares.iter().all(|share| share.len() == 2) {
            Ok(shares)
        } else {
            Err(shares)
        }
    });
    tally.wait_for_all(name, 0..PARTITIONS, 0..100);
    let mut told = NAMES.map(|who| wait_for_the_events(&tally, who, 2));
    let mut written = 100;
    for (index, who) in NAMES.into_iter().enumerate() {
        let report = members[index].take().expect("it runs").stop();
        let ended = (report.exit_code(), report.left_uncommitted);
        assert_eq!(ended, (0, 0), "{report:?}");
        // Of its partitions too, which nobody has now.
        kafka.fill(name, PARTITIONS, written..written + 50);
        written += 50;
        let restarted = Instant::now();
        let again = start(who);
        assert_eq!(again.wait_for_partitions(2), shares[index], "what it had");
        assert!(restarted.elapsed() < SOON, "{:?}", restarted.elapsed());
        members[index] = Some(again);
        let end = i64::try_from(written).expect("a few");
        tally.wait_for_all(name, 0..PARTITIONS, 0..end);
        told[index] = wait_for_the_events(&tally, who, 2);
        let now = NAMES.map(|who| rebalances(&tally, who));
        assert_eq!(now, told, "the others noticed that {who} was restarted");
    }
    for who in NAMES {
        let given = count(&tally, who, "assigned");
        assert_eq!(
            given,
            count(&tally, who, "revoked") + 2,
            "it gave back what it had, once"
        );
    }
    for member in members.into_iter().flatten() {
        assert_eq!(member.stop().exit_code(), 0);
    }
    for partition in 0..PARTITIONS {
        let all: Vec<i64> = (0..i64::try_from(written).expect("a few")).collect();
        assert_eq!(tally.offsets(name, partition), all, "each once, in order");
    }
    let end = i64::try_from(written).ok();
    assert_eq!(kafka.committed(name, name), [end; 6]);
}

fn s40_a_static_member_that_stops_commits_its_last_records_and_ends_at_once(
    kafka: &'static Kafka,
    name: &'static str,
    protocol: Protocol,
) {
    let tally = Tally::default();
    kafka.filled_topic(name, 2, 0..100);
    // What is not committed by the stop is not committed in time.
    let builder = named(kafka, name, name, protocol, "only");
    let builder = builder.property("auto.commit.interval.ms", "1000");
    let member = Member::start("only", builder, &tally);
    tally.wait_for_all(name, 0..2, 0..100);
    let report = member.stop();
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 200, 0)
    );
    assert!(report.left_group, "as far as it could: {report:?}");
    let longest = Duration::from_secs(1) + 2 * SLACK;
    assert!(report.stop_took < longest, "{report:?}");
    assert_eq!(kafka.committed(name, name), [Some(100); 2]);
}

/// A second process with the same name, under the classic protocol: the older one is fenced.
fn the_older_is_fenced(kafka: &Kafka, name: &'static str, protocol: Protocol) {
    let tally = Tally::default();
    kafka.filled_topic(name, 4, 0..20);
    let start = |who, instance| {
        let builder = named(kafka, name, name, protocol, instance);
        Member::start(who, builder.stuck_after(PATIENT), &tally)
    };
    let other = start("other", "other");
    let old = start("old", "same");
    let mine = old.wait_for_partitions(2);
    other.wait_for_partitions(2);
    tally.wait_for_all(name, 0..4, 0..20);
    kafka.wait_for_commits(name, name, &[Some(20); 4]);
    // The old one has a record in hand when it is fenced, and completes it afterwards.
    let door = tally.close("old", mine[0], 20);
    kafka.fill(name, 4, 20..30);
    tally.wait_for_knock(door);
    kafka.wait_for_commits(
        name,
        name,
        &[0, 1, 2, 3].map(|partition| Some(if partition == mine[0] { 20 } else { 30 })),
    );
    let before = wait_for_the_events(&tally, "other", 2);

    let new = start("new", "same");
    let health = wait_until(SOON, "the old one to be fenced", || {
        let health = old.handle().lag().health.clone();
        let told = health.not_ready.clone().unwrap_or_default();
        if told.contains("group.instance.id") {
            Ok(health)
        } else {
            Err(health)
        }
    });
    assert!(!health.is_ready(), "{health:?}");
    assert_eq!(new.wait_for_partitions(2), mine, "it takes the place over");
    tally.wait_for_all(name, mine[0]..mine[0] + 1, 20..30);
    kafka.wait_for_commits(name, name, &[Some(30); 4]);
    tally.open(door);
    let report = old.ended();
    let message = taken(&report, "same");
    assert!(message.contains("took this one's place"), "{message}");
    assert!(report.abandoned.is_empty(), "{report:?}");
    assert!(
        report.stop_took < PATIENT / 2,
        "it waits for nobody: {report:?}"
    );
    let commits = tally.commits_by("old", name, mine[0]);
    assert!(
        commits.iter().all(|&offset| offset <= 20),
        "nothing after it was fenced: {commits:?}"
    );
    let lost: Vec<_> = rebalances(&tally, "old");
    assert!(
        lost.iter().any(|(what, _)| *what == "lost"),
        "its handlers were told: {lost:?}"
    );
    assert_eq!(rebalances(&tally, "other"), before, "nobody else noticed");
    assert_eq!(
        tally.offsets_by("new", name, mine[0]),
        (20..30).collect::<Vec<_>>(),
        "exactly the record in hand and the later ones"
    );
    assert_eq!(new.stop().exit_code(), 0);
    assert_eq!(other.stop().exit_code(), 0);
    assert_eq!(kafka.committed(name, name), [Some(30); 4]);
}

#[test]
fn s40_a_newer_process_with_the_same_name_fences_the_older_under_the_cooperative_protocol() {
    let kafka = kafka!(shared);
    the_older_is_fenced(kafka, "s40-fenced", Protocol::Cooperative);
}

#[test]
fn s40_a_newer_process_with_the_same_name_fences_the_older_under_the_eager_protocol() {
    let kafka = kafka!(shared);
    the_older_is_fenced(kafka, "s40-fenced-eager", Protocol::Eager);
}

#[test]
fn s40_under_kip_848_a_newer_process_with_the_same_name_waits_until_the_older_has_stopped() {
    let kafka = kafka!(shared);
    let name = "s40-waits";
    let tally = Tally::default();
    kafka.filled_topic(name, 2, 0..10);
    let start = |who| {
        let builder = named(kafka, name, name, Protocol::Consumer, "same");
        Member::start(who, builder.instance_wait(PATIENT), &tally)
    };
    let old = start("old");
    old.wait_for_partitions(2);
    let new = start("new");
    tally.wait_for_warning("new", "group.instance.id \"same\"");
    wait_until(SOON, "the new one to say why it is not ready", || {
        let health = new.handle().lag().health.clone();
        let why = health.not_ready.clone().unwrap_or_default();
        if why.contains("group.instance.id \"same\"") && health.is_live() {
            Ok(())
        } else {
            Err(health)
        }
    });
    // The one that it waits for goes on as if nothing were.
    kafka.fill(name, 2, 10..20);
    tally.wait_for_all(name, 0..2, 0..20);
    let report = old.stop();
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    new.wait_for_partitions(2);
    tally.wait_for_warning("new", "gave this member its group.instance.id");
    kafka.fill(name, 2, 20..30);
    tally.wait_for_all(name, 0..2, 0..30);
    assert!(new.handle().lag().health.is_ready());
    let report = new.stop();
    assert_eq!((report.exit_code(), report.records), (0, 20), "{report:?}");
    assert_eq!(
        report
            .workers
            .iter()
            .map(|worker| worker.restarts)
            .sum::<u32>(),
        0
    );
    for partition in 0..2 {
        assert_eq!(tally.offsets(name, partition), (0..30).collect::<Vec<_>>());
        assert_eq!(
            tally.offsets_by("old", name, partition),
            (0..20).collect::<Vec<_>>()
        );
    }
    let told = tally.warnings("new");
    assert_eq!(told.len(), 2, "said once, and that it is over: {told:?}");
    assert_eq!(kafka.committed(name, name), [Some(30); 2]);
}

#[test]
fn s40_under_kip_848_a_process_whose_name_stays_taken_ends_typed_and_the_other_goes_on() {
    let kafka = kafka!(shared);
    let name = "s40-taken";
    let tally = Tally::default();
    kafka.filled_topic(name, 2, 0..10);
    let start = |who, wait| {
        let builder = named(kafka, name, name, Protocol::Consumer, "same");
        Member::start(who, builder.instance_wait(wait), &tally)
    };
    let old = start("old", PATIENT);
    old.wait_for_partitions(2);
    let new = start("new", Duration::from_secs(2));
    let report = new.ended();
    let message = taken(&report, "same");
    assert!(message.contains("instance_wait"), "{message}");
    assert!(
        report.stop_took < 2 * SLACK,
        "there is nothing to leave: {report:?}"
    );
    kafka.fill(name, 2, 10..20);
    tally.wait_for_all(name, 0..2, 0..20);
    assert_eq!(old.stop().exit_code(), 0);
    assert_eq!(tally.offsets_by("new", name, 0), [0_i64; 0]);
    assert_eq!(kafka.committed(name, name), [Some(20); 2]);
}

#[test]
fn s40_under_kip_848_a_stop_ends_the_wait_for_a_name_at_once() {
    let kafka = kafka!(shared);
    let name = "s40-stop";
    let tally = Tally::default();
    kafka.filled_topic(name, 1, 0..10);
    let start = |who| {
        let builder = named(kafka, name, name, Protocol::Consumer, "same");
        Member::start(who, builder, &tally)
    };
    let old = start("old");
    old.wait_for_partitions(1);
    let new = start("new");
    tally.wait_for_warning("new", "group.instance.id \"same\"");
    let report = new.stop();
    assert_eq!(report.reason, StopReason::StopCalled);
    assert_eq!((report.exit_code(), report.records), (0, 0));
    assert!(report.stop_took < SLACK, "{report:?}");
    assert_eq!(old.stop().exit_code(), 0);
}

/// The arguments of a process that is the static member `instance`.
fn arguments<'a>(
    kafka: &'a Kafka,
    name: &'a str,
    properties: &[&'a str],
    instance: &'a str,
) -> Vec<&'a str> {
    let mut arguments = vec!["run", "-b", kafka.bootstrap(), "-t", name, "-g", name];
    arguments.extend(["--events", "json", "--records", "-X", instance]);
    for property in properties {
        arguments.extend(["-X", property]);
    }
    arguments
}

#[test]
fn s40_a_process_that_crashed_takes_its_place_again_and_nobody_notices_under_the_classic_protocol()
{
    let kafka = kafka!(shared);
    let name = "s40-crash";
    kafka.filled_topic(name, 4, 0..50);
    let tally = Tally::default();
    let other = named(kafka, name, name, Protocol::Cooperative, "other");
    let other = Member::start("other", other, &tally);
    let properties = ["session.timeout.ms=20000", "heartbeat.interval.ms=200"];
    let arguments = arguments(kafka, name, &properties, "group.instance.id=crashing");
    let mut first = Keepup::start(&arguments);
    first.next("partitions_assigned", PATIENT);
    other.wait_for_partitions(2);
    // What was there may be done, and committed, by the other one.
    kafka.fill(name, 4, 50..60);
    first.next("offsets_committed", PATIENT);
    let before = wait_for_the_events(&tally, "other", 2);
    first.signal(Signal::KILL);
    assert_eq!(first.end(SOON), None);
    kafka.fill(name, 4, 60..100);
    let mut second = Keepup::start(&arguments);
    second.next("partitions_assigned", SOON);
    kafka.wait_for_commits(name, name, &[Some(100); 4]);
    assert_eq!(rebalances(&tally, "other"), before, "nobody noticed");
    // And another of that name fences it: the command says why, and ends with 1.
    let mut third = Keepup::start(&arguments);
    let ended = second.next("shutdown_complete", PATIENT);
    assert_eq!(ended["reason"], "fatal-client-error", "{ended}");
    assert_eq!(second.end(SOON), Some(1));
    let stderr = second.stderr();
    assert!(stderr.contains("took this one's place"), "{stderr}");
    third.next("partitions_assigned", SOON);
    third.signal(Signal::TERM);
    assert_eq!(third.end(PATIENT), Some(0));
    assert_eq!(rebalances(&tally, "other"), before, "nobody noticed");
    assert_eq!(other.stop().exit_code(), 0);
}

#[test]
fn s40_under_kip_848_a_process_that_crashed_is_waited_out_by_its_successor() {
    let settings = [
        "group.consumer.min.session.timeout.ms=6000",
        "group.consumer.session.timeout.ms=6000",
        "group.consumer.min.heartbeat.interval.ms=500",
        "group.consumer.heartbeat.interval.ms=500",
    ];
    let Some(kafka) = Kafka::start(test_name!(), 1, &settings) else {
        return;
    };
    let name = "s40-crash-848";
    kafka.filled_topic(name, 2, 0..50);
    let properties = ["group.protocol=consumer"];
    let arguments = arguments(&kafka, name, &properties, "group.instance.id=crashing");
    let mut first = Keepup::start(&arguments);
    kafka.wait_for_commits(name, name, &[Some(50); 2]);
    first.signal(Signal::KILL);
    assert_eq!(first.end(SOON), None);
    kafka.fill(name, 2, 50..100);
    let mut second = Keepup::start(&arguments);
    second.wait_stderr("group.instance.id \"crashing\"", 1, SOON);
    second.next("partitions_assigned", PATIENT);
    kafka.wait_for_commits(name, name, &[Some(100); 2]);
    let restarted = second.events();
    let restarted = restarted
        .iter()
        .find(|event| event["name"] == "worker_restarted");
    assert_eq!(restarted, None, "nothing crashed");
    second.signal(Signal::TERM);
    assert_eq!(second.end(PATIENT), Some(0));
}

#[test]
fn s40_partitions_that_are_added_after_restarts_of_every_member_are_found() {
    let kafka = kafka!(shared);
    let name = "s40-grows";
    let tally = Tally::default();
    kafka.filled_topic(name, 2, 0..10);
    let start = |who| {
        let builder = named(kafka, name, name, Protocol::Cooperative, who);
        Member::start(who, builder, &tally)
    };
    let (a, b) = (start("a"), start("b"));
    a.wait_for_partitions(1);
    b.wait_for_partitions(1);
    // One of them was the group's leader, which is who looks for new partitions.
    a.stop();
    let a = start("a");
    a.wait_for_partitions(1);
    b.stop();
    let b = start("b");
    b.wait_for_partitions(1);
    kafka.add_partitions(name, 4);
    kafka.fill(name, 4, 10..20);
    tally.wait_for_all(name, 0..2, 0..20);
    tally.wait_for_all(name, 2..4, 0..10);
    a.wait_for_partitions(2);
    b.wait_for_partitions(2);
    assert_eq!(a.stop().exit_code(), 0);
    assert_eq!(b.stop().exit_code(), 0);
}
