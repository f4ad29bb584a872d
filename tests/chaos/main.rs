//! Chaos: real groups of real processes that are started, stopped, killed and put to sleep at random, over a broker
//! that goes and comes back while its topic grows; and a checker that says what became of every record.
//!
//! `cargo test --test chaos` runs it for a minute and a half, classic and KIP-848 side by side. `KEEPUP_TEST_SEED=N`
//! repeats a schedule, `KEEPUP_CHAOS_SECONDS=N` has it last longer, and `KEEPUP_CHAOS_LINES=DIRECTORY` keeps what every
//! member said, for whoever wants to know how a finding came about. The long runs are
//! `cargo test --test chaos -- --ignored --nocapture the_long_run`.
#![expect(
    clippy::disallowed_methods,
    reason = "the tests drive real processes and brokers: they read the clock to know when to give up"
)]
#![expect(
    clippy::expect_used,
    reason = "a failed expectation is how a test fails"
)]
#![expect(
    clippy::print_stdout,
    reason = "seeds and figures: the harness shows them where a test fails, or with --nocapture"
)]

#[expect(dead_code, unused_macros, reason = "the scenarios use more of it")]
#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod checker;
mod faults;
mod member;
mod schedule;
mod storm;

use std::time::Duration;

use keepup::{Model, Order};

use checker::{Log, Verdict, check};
use faults::Fault;
use schedule::Shape;
use storm::Storm;
use support::kafka::Kafka;
use support::seed;

/// Heartbeats that tell of a rebalance soon; and a session for which all that happens is that a group waits for a
/// member that was killed.
const CLASSIC: [(&str, &str); 2] = [
    ("session.timeout.ms", "3000"),
    ("heartbeat.interval.ms", "300"),
];

/// How long members of such a group may wait for each other after the last sign of it: a session, and the rest of the
/// rebalance.
const CLASSIC_SETTLES: Duration = Duration::from_secs(4);

/// A coordinator cannot read what it wrote of a group of KIP-848 after that was compacted, and is gone for good when its
/// broker restarts then (KAFKA-19862; in 4.3.1 still: "Cannot set the epoch of … because the partition is still owned at
/// epoch …"). That is not what these storms are about.
const UNCOMPACTED: &str = "log.cleaner.min.compaction.lag.ms=86400000";

/// How long a storm lasts, where that is not given.
fn time(usual: u64) -> Duration {
    let given = std::env::var("KEEPUP_CHAOS_SECONDS").ok();
    let seconds = given.map_or(usual, |seconds| {
        seconds.parse().expect("KEEPUP_CHAOS_SECONDS is a number")
    });
    Duration::from_secs(seconds)
}

/// What a storm left behind keeps every promise; and the checker, which says so, finds what is planted there.
fn holds(kafka: &Kafka, name: &str, storm: &Storm, seed: u64) -> Verdict {
    let log = storm::raise(kafka, name, storm, seed);
    let verdict = check(&log);
    println!("{name}, {:?}: {verdict}", storm.order);
    assert_eq!(
        verdict.found(),
        [""; 0],
        "KEEPUP_TEST_SEED={seed}: {verdict}"
    );
    assert!(verdict.handled >= storm.records, "{verdict}");
    assert!(verdict.abrupt_ends > 0, "nobody was killed: {verdict}");
    finds_what_is_planted(&log, &verdict, seed);
    verdict
}

fn finds_what_is_planted(log: &Log, clean: &Verdict, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found = Vec::new();
    for fault in Fault::ALL {
        let mut doctored = log.clone();
        let planted = fault.plant(&mut doctored, &mut random);
        assert!(
            planted || !fault.has_place_in(log),
            "{fault:?} could not be planted: {clean}"
        );
        let verdict = check(&doctored);
        let is_found = verdict.found().contains(&fault.finding());
        assert!(is_found || !planted, "{fault:?} was not found: {verdict}");
        found.extend(planted.then_some(fault));
    }
    println!("found of what was planted: {found:?}");
}

/// A storm for every day. The seed chooses the order, partitions' mostly.
fn short(
    seed: u64,
    properties: Vec<(&'static str, &'static str)>,
    settles: Option<Duration>,
    frozen: Duration,
) -> Storm {
    let time = time(52);
    Storm {
        shape: Shape {
            time,
            members: 5,
            toggles: 400..900,
            kills: 5_000..9_000,
            freezes: 6_000..12_000,
            frozen,
            worker_kills: None,
            seeks: 700..1_400,
            calm: Duration::from_secs(16),
            restarts: 1,
            partitions: vec![12, 16, 20],
        },
        order: match seed % 4 {
            0 => Order::Key,
            1 => Order::Unordered,
            _ => Order::Partition,
        },
        settles,
        model: Model::Threads,
        records: 250 * time.as_secs(),
        properties,
    }
}

fn classic(seed: u64) -> Storm {
    let frozen = Duration::from_millis(4_500);
    short(seed, CLASSIC.to_vec(), Some(CLASSIC_SETTLES), frozen)
}

/// Its brokers give up a member that is silent for 6 s.
fn consumer(seed: u64) -> Storm {
    let protocol = vec![("group.protocol", "consumer")];
    short(seed, protocol, None, Duration::from_secs(9))
}

#[test]
fn s41_a_storm_over_a_classic_group_loses_reorders_and_commits_nothing_wrongly() {
    let kafka = kafka!(one);
    let seed = seed();
    let storm = classic(seed);
    holds(&kafka, "storm-classic", &storm, seed);
}

#[test]
fn s45_s41_a_storm_over_a_consumer_group_loses_reorders_and_commits_nothing_wrongly() {
    let Some(kafka) = Kafka::start(test_name!(), 1, &[UNCOMPACTED]) else {
        return;
    };
    let seed = seed();
    let storm = consumer(seed);
    holds(&kafka, "storm-consumer", &storm, seed);
}

/// Three supervisors: they are killed and put to sleep as other members are, and their workers as well. The seed chooses
/// the protocol.
#[test]
fn s41_s42_a_storm_over_three_supervisors_and_their_worker_processes_does_no_more_harm() {
    let Some(kafka) = Kafka::start(test_name!(), 1, &[UNCOMPACTED]) else {
        return;
    };
    let seed = seed();
    let threads = if seed.is_multiple_of(2) {
        classic(seed)
    } else {
        consumer(seed)
    };
    let storm = Storm {
        shape: Shape {
            members: 3,
            worker_kills: Some(700..1_500),
            ..threads.shape
        },
        model: Model::Processes,
        order: Order::Partition,
        ..threads
    };
    let verdict = holds(&kafka, "storm-processes", &storm, seed);
    assert!(verdict.worker_deaths > 0, "no worker was killed: {verdict}");
}

/// 10 minutes, 12 members of which one comes or goes every 200 to 500 ms, 80 partitions, 500,000 records.
fn long(
    properties: Vec<(&'static str, &'static str)>,
    settles: Option<Duration>,
    frozen: Duration,
) -> Storm {
    let time = time(600);
    Storm {
        shape: Shape {
            time,
            members: 12,
            toggles: 200..500,
            kills: 15_000..30_000,
            freezes: 20_000..40_000,
            frozen,
            worker_kills: None,
            seeks: 1_000..3_000,
            calm: Duration::from_secs(30),
            restarts: 3,
            partitions: vec![60, 70, 80],
        },
        order: Order::Partition,
        settles,
        model: Model::Threads,
        records: 500_000 * time.as_secs() / 600,
        properties,
    }
}

#[test]
#[ignore = "takes 12 minutes"]
fn the_long_run_of_a_classic_group() {
    let kafka = kafka!(one);
    let seed = seed();
    let classic = vec![
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "300"),
    ];
    let storm = long(
        classic,
        Some(Duration::from_secs(12)),
        Duration::from_secs(15),
    );
    holds(&kafka, "long-classic", &storm, seed);
}

#[test]
#[ignore = "takes 12 minutes"]
fn the_long_run_of_a_consumer_group() {
    let settings = ["group.consumer.session.timeout.ms=45000", UNCOMPACTED];
    let Some(kafka) = Kafka::start(test_name!(), 1, &settings) else {
        return;
    };
    let seed = seed();
    let storm = long(
        vec![("group.protocol", "consumer")],
        None,
        Duration::from_mins(1),
    );
    holds(&kafka, "long-consumer", &storm, seed);
}
