//! Processes that die, and processes that wake up after the group has given them up: what the others take over, and
//! what the late ones may still do.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use keepup::Outcome;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::members::{Member, Protocol, Tally};
use crate::support::notes::{HOLD, Notes};
use crate::support::run::work_for;
use crate::support::{PATIENT, SOON, wait_for, wait_until};

/// How long a member may be silent: by the properties of [`Protocol`], and by the settings of the brokers of the tests.
const SESSION: Duration = Duration::from_secs(6);

/// How far apart heartbeats may be, and a machine that is busy.
const EARLY: Duration = Duration::from_secs(2);

per_protocol! {
    s42_when_a_process_is_killed_the_others_go_on_from_what_it_has_committed {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s43_a_process_that_slept_longer_than_its_session_finishes_what_it_had_in_hand_and_nothing_comes_of_it {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s45_commits_that_meet_another_epoch_of_the_member_are_made_good {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
}

/// The properties of a protocol as the command takes them, with quick commits.
pub(crate) fn properties(protocol: Protocol) -> Vec<String> {
    let properties = protocol.properties().iter();
    let mut arguments: Vec<String> = properties
        .flat_map(|(name, value)| ["-X".to_owned(), format!("{name}={value}")])
        .collect();
    arguments.extend(["-X", "auto.commit.interval.ms=200"].map(str::to_owned));
    arguments
}

pub(crate) fn start(
    deliveries: &Deliveries,
    kafka: &Kafka,
    group: &str,
    arguments: &[String],
) -> Keepup {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    deliveries.start(kafka, group, &arguments)
}

/// The partitions that a process has by its events.
fn partitions(process: &Keepup) -> BTreeSet<i64> {
    let mut has = BTreeSet::new();
    for event in process.events() {
        let places = event["partitions"].as_array().cloned().unwrap_or_default();
        let numbers = places
            .iter()
            .filter_map(|place| place["partition"].as_i64());
        match event["name"].as_str().unwrap_or_default() {
            "partitions_assigned" => has.extend(numbers),
            "partitions_revoked" | "partitions_lost" => numbers.for_each(|number| {
                has.remove(&number);
            }),
            _ => {}
        }
    }
    has
}

pub(crate) fn wait_for_partitions(process: &Keepup, count: usize) -> BTreeSet<i64> {
    wait_until(PATIENT, "a process to have its share", || {
        let has = partitions(process);
        if has.len() == count {
            Ok(has)
        } else {
            Err(has)
        }
    })
}

fn stop(mut process: Keepup) {
    process.signal(Signal::TERM);
    assert_eq!(process.end(PATIENT), Some(0), "{}", process.stderr());
}

fn zeroed(committed: Vec<Option<i64>>) -> Vec<i64> {
    committed
        .into_iter()
        .map(Option::unwrap_or_default)
        .collect()
}

fn s42_when_a_process_is_killed_the_others_go_on_from_what_it_has_committed(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    const PARTITIONS: usize = 6;
    // Three processes have two partitions each, so this is several times the session's worth of work.
    let each = 8_000;
    kafka.filled_topic(topic, 6, 0..each);
    let ends = kafka.end_offsets(topic);
    let deliveries = Deliveries::new(topic, PARTITIONS);
    let mut arguments = properties(protocol);
    arguments.extend(["--handler", "sleep=1ms"].map(str::to_owned));
    let mut processes: Vec<Keepup> = (0..3)
        .map(|_| start(&deliveries, kafka, topic, &arguments))
        .collect();
    let shares: Vec<_> = processes
        .iter()
        .map(|process| wait_for_partitions(process, 2))
        .collect();
    let before = deliveries.distinct();
    assert_eq!(deliveries.repeats(), 0, "nobody was killed yet");
    deliveries.wait_distinct(before + 200, SOON);

    let mut killed = processes.remove(0);
    killed.signal(Signal::KILL);
    let kill = Instant::now();
    assert_eq!(killed.end(SOON), None);
    let signal = killed.ended().and_then(|status| status.signal());
    assert_eq!(signal, Some(Signal::KILL.as_raw()));
    drop(killed);
    let (next, committed) = (deliveries.next(), zeroed(kafka.committed(topic, topic)));
    let of_the_killed = |offsets: &[i64]| -> Vec<i64> {
        let partitions = shares[0].iter();
        let offset = |partition: &i64| offsets[usize::try_from(*partition).expect("a few")];
        partitions.map(offset).collect()
    };
    let (reached, kept) = (of_the_killed(&next), of_the_killed(&committed));
    assert!(
        reached
            .iter()
            .zip(&kept)
            .all(|(reached, kept)| kept <= reached)
    );
    let uncommitted = reached.iter().sum::<i64>() - kept.iter().sum::<i64>();

    let all: BTreeSet<i64> = (0..6).collect();
    wait_until(PATIENT, "the others to have everything", || {
        let shares: Vec<_> = processes.iter().map(partitions).collect();
        let have: BTreeSet<i64> = shares.iter().flatten().copied().collect();
        if have == all { Ok(()) } else { Err(shares) }
    });
    let took = kill.elapsed();
    assert!(took + EARLY > SESSION, "while it might live: {took:?}");
    assert!(took < 3 * SESSION, "{took:?}");
    wait_until(PATIENT, "everything to be committed", || {
        let committed = zeroed(kafka.committed(topic, topic));
        if committed == ends {
            Ok(())
        } else {
            Err(committed)
        }
    });
    processes.into_iter().for_each(stop);
    deliveries.assert_complete(&ends);
    deliveries.assert_in_order();
    let repeats = deliveries.repeats();
    println!("taken over after {took:?}; {repeats} again, {uncommitted} were not committed");
    assert!(
        i64::try_from(repeats).expect("a few") <= uncommitted,
        "{repeats} again, {uncommitted} were not committed"
    );
}

fn s43_a_process_that_slept_longer_than_its_session_finishes_what_it_had_in_hand_and_nothing_comes_of_it(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    let notes = Notes::new();
    kafka.filled_topic(topic, 2, 0..20);
    let deliveries = Deliveries::new(topic, 2);
    let run = |name, at_five| {
        let mut arguments = properties(protocol);
        arguments.extend(["--handler".to_owned(), notes.handler(name, at_five)]);
        start(&deliveries, kafka, topic, &arguments)
    };
    let mut late = run("late", HOLD);
    notes.wait_given("late", 0..2, 5);
    kafka.wait_for_commits(topic, topic, &[Some(5), Some(5)]);

    late.signal(Signal::STOP);
    let asleep = Instant::now();
    let other = run("other", "");
    // Everything is taken over from what was committed, once the session has expired.
    kafka.wait_for_commits(topic, topic, &[Some(20), Some(20)]);
    assert!(asleep.elapsed() + EARLY > SESSION, "{:?}", asleep.elapsed());
    for partition in 0..2 {
        assert_eq!(notes.given("other", partition), (5..20).collect::<Vec<_>>());
    }
    let seen = late.events().len();

    // What was in its handlers is done at once when it wakes, and its workers are free.
    notes.open_all();
    late.signal(Signal::CONT);
    late.wait_stderr(
        "no record is started before the group has answered",
        1,
        SOON,
    );
    wait_until(PATIENT, "it to know that it has lost them", || {
        let events = late.events();
        let lost: BTreeSet<i64> = lost(&events[seen..]).collect();
        if lost == BTreeSet::from([0, 1]) {
            Ok(())
        } else {
            Err(lost)
        }
    });
    // Then it takes part again.
    wait_for_partitions(&late, 1);
    wait_for_partitions(&other, 1);
    kafka.fill(topic, 2, 20..40);
    kafka.wait_for_commits(topic, topic, &[Some(40), Some(40)]);
    let committed = committed(&late.events()[seen..]);
    assert!(
        committed.iter().all(|&offset| offset >= 20),
        "nothing of its former life: {committed:?}"
    );
    stop(late);
    stop(other);
    for partition in 0..2 {
        let [late, other] = ["late", "other"].map(|name| notes.given(name, partition));
        let (before, after) = late.split_at(6);
        assert_eq!(before, [0, 1, 2, 3, 4, 5]);
        let mut then = [&other[..], after].concat();
        then.sort_unstable();
        // But for the record that was in the handler, as if it had never been there.
        assert_eq!(then, (5..40).collect::<Vec<_>>());
        assert!(after.iter().all(|&offset| offset >= 20), "{after:?}");
    }
    assert_eq!(deliveries.repeats(), 2, "what was in the two handlers");
    deliveries.assert_complete(&[40, 40]);
}

/// The partitions that these events tell to be lost. That a rebalance was under way already may hide the loss: what
/// counts is that they are gone.
fn lost(events: &[Value]) -> impl Iterator<Item = i64> + '_ {
    let told = events.iter().filter(|event| {
        event["name"] == "partitions_lost" || event["name"] == "partitions_revoked"
    });
    told.flat_map(|event| event["partitions"].as_array().into_iter().flatten())
        .filter_map(|place| place["partition"].as_i64())
}

/// The offsets that these events tell to be committed.
fn committed(events: &[Value]) -> Vec<i64> {
    let told = events
        .iter()
        .filter(|event| event["name"] == "offsets_committed" && event["success"] == true);
    told.flat_map(|event| event["offsets"].as_array().into_iter().flatten())
        .filter_map(|place| place["offset"].as_i64())
        .collect()
}

/// A member commits every few milliseconds while another comes and goes, which gives it another epoch (generation)
/// each time: what is refused meanwhile is committed afterwards, and nothing is handled twice.
fn s45_commits_that_meet_another_epoch_of_the_member_are_made_good(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 4, 0..50);
    let tally = Tally::default();
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.property("auto.commit.interval.ms", "5")
    };
    let a = Member::start("a", run(), &tally);
    tally.wait_for_all(topic, 0..4, 0..50);
    let mut written = 50;
    for _ in 0..4 {
        let b = Member::start("b", run(), &tally);
        // Something to commit until the epochs have changed.
        let mut share = 0;
        wait_until(PATIENT, "the partitions to be shared", || {
            kafka.fill(topic, 4, written..written + 10);
            written += 10;
            share = b.partitions().len();
            if share == 2 && a.partitions().len() == 2 {
                Ok(())
            } else {
                Err(share)
            }
        });
        let report = b.stop();
        assert_eq!(report.left_uncommitted, 0, "{report:?}");
        a.wait_for_partitions(4);
    }
    let end = i64::try_from(written).expect("a few");
    tally.wait_for_all(topic, 0..4, 0..end);
    kafka.wait_for_commits(topic, topic, &[Some(end); 4]);
    let report = a.stop();
    assert_eq!(report.left_uncommitted, 0, "{report:?}");
    for partition in 0..4 {
        assert_eq!(
            tally.offsets(topic, partition),
            (0..end).collect::<Vec<_>>()
        );
        for member in ["a", "b"] {
            let commits = tally.commits_by(member, topic, partition);
            assert!(commits.is_sorted(), "{member} never goes back: {commits:?}");
        }
    }
    let refused = tally.refused_commits();
    println!("{end} records each; commits that were refused at first: {refused:?}");
}

/// Commits that are on their way when the broker goes are sent again when it is back, each after a time of its own: so
/// they may come in any order, but none of them is older than the outage.
#[test]
fn s06_commits_that_an_outage_held_up_undo_nothing_and_end_where_the_handlers_are() {
    let kafka = kafka!(one);
    let topic = "s06-held-up";
    // More than are handled.
    kafka.filled_topic(topic, 1, 0..100_000);
    let tally = Tally::default();
    let run = kafka.run_of(topic, topic, Protocol::Cooperative);
    // A session that outlives the outage.
    let run = run
        .property("session.timeout.ms", "60000")
        .property("auto.commit.interval.ms", "20");
    let a = Member::start_with("a", run, &tally, |_| {
        work_for(Duration::from_micros(500));
        Outcome::Done
    });
    let wait_committed = |offset: usize| {
        let offset = i64::try_from(offset).expect("a few");
        wait_until(PATIENT, "a commit", || {
            let last = tally.commits_by("a", topic, 0).last().copied();
            if last >= Some(offset) {
                Ok(())
            } else {
                Err(last)
            }
        });
    };
    wait_committed(tally.len() + 200);
    kafka.stop_broker(1);
    let before = tally.commits_by("a", topic, 0).len();
    // What it has fetched it goes on with, and commits.
    tally.wait_for_len(tally.len() + 700);
    kafka.kill_broker(1);
    kafka.restart_broker(1);
    // By then everything that was held up has come: it is tried again after a second at most.
    let back = Instant::now();
    wait_for(SOON, "the last that was held up", || {
        back.elapsed() > 2 * EARLY
    });
    wait_committed(tally.len());
    let report = a.stop();
    assert_eq!(report.left_uncommitted, 0, "{report:?}");
    let commits = tally.commits_by("a", topic, 0);
    let undone = commits.windows(2).filter(|pair| pair[1] < pair[0]).count();
    println!("{} commits, {undone} of them back", commits.len());
    assert!(commits.len() > before, "none since the outage");
    assert_eq!(undone, 0, "{:?}", &commits[before..]);
    let handled = i64::try_from(tally.len()).expect("a few");
    assert_eq!(kafka.committed(topic, topic), [Some(handled)]);
    assert_eq!(tally.offsets(topic, 0), (0..handled).collect::<Vec<_>>());
}
