//! Brokers that answer garbage, half, wrongly, slowly or not at all; and brokers of old releases.
//!
//! No Kafka is needed: the brokers are `keepup::testing::FakeCluster`. Every run here is a whole one, over sockets, with
//! a static assignment, and is held to the same: each record once and in order, committed to the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keepup::testing::{FakeCluster, Fault, Release, Request, Rule};
use keepup::{
    Assignment, Builder, ConnectionErrors, Error, EventKind, Handle, Report, StartFrom, StopReason,
    Workers,
};

use crate::support::run::{Events, SLACK, Tally, end_of, work_for};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

const TOPIC: &str = "orders";
const GROUP: &str = "billing";

/// An error code that Kafka does not have.
const UNHEARD_OF: i16 = 4242;

/// `STALE_MEMBER_EPOCH`: what a broker of KIP-848 answers who has not heard yet that the group went on.
const STALE_EPOCH: i16 = 113;

/// Records per batch of a log.
const BATCH: i64 = 20;

fn count(number: i64) -> usize {
    usize::try_from(number).expect("it is positive")
}

/// A cluster with `records` in each of the partitions: the number of each is its offset.
fn cluster(brokers: u16, partitions: i32, records: i64) -> FakeCluster {
    cluster_of(Release::default(), brokers, partitions, records)
}

fn cluster_of(release: Release, brokers: u16, partitions: i32, records: i64) -> FakeCluster {
    let cluster = FakeCluster::start_as(release, brokers).expect("there are ports");
    cluster
        .create_topic(TOPIC, count(partitions.into()))
        .expect("it is new");
    append(&cluster, partitions, 0..records);
    cluster
}

fn append(cluster: &FakeCluster, partitions: i32, records: std::ops::Range<i64>) {
    for partition in 0..partitions {
        for from in records.clone().step_by(count(BATCH)) {
            let batch = from..(from + BATCH).min(records.end);
            cluster
                .append(TOPIC, partition, batch.map(|number| number.to_string()))
                .expect("there is that partition");
        }
    }
}

fn builder(cluster: &FakeCluster) -> Builder {
    keepup::builder(cluster.bootstrap(), GROUP)
        .topic(TOPIC)
        .contact_timeout(PATIENT)
        .workers(Workers::Fixed(2))
        .assignment(Assignment::Static { index: 0, of: 1 })
}

fn all_committed(cluster: &FakeCluster, records: i64) {
    wait_until(SOON, "the commits", || {
        let committed = cluster.committed(GROUP, TOPIC);
        let is_done = committed.iter().all(|offset| *offset == Some(records));
        if is_done { Ok(()) } else { Err(committed) }
    });
}

/// Waits until a run has shown that many failed connections of a kind.
fn await_counted(handle: &Handle, at_least: u64, of: impl Fn(&ConnectionErrors) -> u64) {
    wait_until(SOON, "the failures to be counted", || {
        let errors = handle.lag().connection_errors;
        if of(&errors) >= at_least {
            Ok(())
        } else {
            Err(errors)
        }
    });
}

fn stopped(handle: Handle) -> Report {
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(
        (report.exit_code(), report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    report
}

/// Runs over a broker that misbehaves `times` times when it is asked for records, and is proper otherwise: everything
/// is handled once and in order, it is counted where `counted` says, and there are no more connections than needed.
fn weathers(fault: Fault, times: u64, counted: Option<fn(&ConnectionErrors) -> u64>) {
    let (partitions, mut records) = (4, 100);
    let cluster = cluster(1, partitions, records);
    cluster.script(Rule::new(Request::Fetch, fault).after(1).times(times));
    let finished = Tally::default();
    let handle = builder(&cluster)
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(PATIENT, partitions, records);
    // A fault that waits for records gets some, and what comes after the last one is read as ever.
    let mut more = || {
        append(&cluster, partitions, records..records + BATCH);
        records += BATCH;
        finished.await_each(PATIENT, partitions, records);
    };
    wait_until(PATIENT, "every fault", || {
        more();
        match cluster.faults() {
            played if played >= times => Ok(()),
            played => Err(played),
        }
    });
    if let Some(of) = counted {
        await_counted(&handle, times, of);
    }
    more();
    all_committed(&cluster, records);
    let errors = handle.lag().connection_errors;
    if counted.is_none() {
        assert_eq!(errors.total(), 0, "{errors:?}");
    }
    stopped(handle);
    finished.assert_each_once(partitions, records);
    assert_eq!(cluster.complaints(), [""; 0]);
    // Two workers, the lookup, the first contact, the reporter; and one anew for each fault.
    let connections = cluster.connections("keepup");
    assert!(connections <= 8 + times, "{connections} connections");
}

#[test]
fn garbage_in_place_of_records_is_counted_and_asked_again() {
    weathers(Fault::Garbage, 3, Some(|errors| errors.wire));
}

#[test]
fn a_body_that_makes_no_sense_is_counted_and_asked_again() {
    weathers(Fault::ScrambledBody, 3, Some(|errors| errors.wire));
}

#[test]
fn half_an_answer_is_counted_and_asked_again_whole() {
    weathers(Fault::HalfAnswer, 3, Some(|errors| errors.closed));
}

#[test]
fn a_frame_longer_than_allowed_is_counted_and_asked_again() {
    weathers(Fault::FrameOf(i32::MAX), 2, Some(|errors| errors.wire));
}

#[test]
fn a_frame_of_negative_length_is_counted_and_asked_again() {
    weathers(Fault::FrameOf(-7), 3, Some(|errors| errors.wire));
}

#[test]
fn an_answer_to_another_question_is_counted_and_asked_again() {
    weathers(Fault::WrongNumber, 3, Some(|errors| errors.wire));
}

#[test]
fn an_array_that_never_ends_is_counted_and_asks_for_no_memory() {
    weathers(Fault::EndlessArray, 3, Some(|errors| errors.wire));
}

#[test]
fn a_connection_that_is_closed_over_a_question_is_counted_and_made_anew() {
    weathers(Fault::Close, 3, Some(|errors| errors.closed));
}

#[test]
fn silence_is_counted_after_its_timeout_and_the_other_brokers_go_on() {
    weathers(Fault::Stall, 1, Some(|errors| errors.timed_out));
}

#[test]
fn an_answer_that_trickles_in_byte_by_byte_is_given_up_and_asked_again() {
    weathers(
        Fault::Drip(Duration::from_millis(200)),
        1,
        Some(|errors| errors.timed_out),
    );
}

#[test]
fn an_error_code_that_nobody_knows_is_counted_and_asked_again() {
    weathers(Fault::Error(UNHEARD_OF), 3, Some(|errors| errors.wire));
}

#[test]
fn an_error_code_of_a_partition_that_nobody_knows_is_counted_and_asked_again() {
    weathers(
        Fault::PartitionError(UNHEARD_OF),
        3,
        Some(|errors| errors.wire),
    );
}

#[test]
fn damaged_records_are_fetched_again_over_the_same_connection() {
    weathers(Fault::CorruptRecords, 2, None);
}

#[test]
fn records_that_break_off_are_fetched_again() {
    weathers(Fault::CutRecords, 2, None);
}

#[test]
fn records_from_before_what_was_asked_for_are_not_handled_twice() {
    weathers(Fault::EarlierRecords, 3, None);
}

#[test]
fn records_under_another_topics_name_are_nobodys() {
    weathers(Fault::WrongTopic, 3, None);
}

#[test]
fn records_of_partitions_that_were_not_asked_for_are_nobodys() {
    weathers(Fault::WrongPartition, 3, None);
}

#[test]
fn partitions_that_are_in_the_answer_twice_are_handled_once() {
    weathers(Fault::Twice, 5, None);
}

/// How often the brokers of a cluster were asked.
fn asked(cluster: &FakeCluster, request: Request) -> u64 {
    (1..=3).map(|id| cluster.requests(id, request)).sum()
}

#[test]
fn a_broker_that_answers_nothing_at_once_is_not_asked_in_a_busy_loop() {
    for fault in [Fault::Nothing, Fault::WrongTopic, Fault::WrongPartition] {
        let cluster = cluster(1, 4, 100);
        cluster.script(Rule::new(Request::Fetch, fault));
        let finished = Tally::default();
        let handle = builder(&cluster)
            .start(finished.handlers())
            .expect("the run starts");
        wait_for(SOON, "the first question", || {
            asked(&cluster, Request::Fetch) > 0
        });
        work_for(Duration::from_secs(3));
        let questions = asked(&cluster, Request::Fetch);
        // Two workers, in three seconds.
        assert!(questions < 80, "{fault:?}: {questions} questions");
        assert_eq!(finished.len(), 0);
        cluster.behave();
        finished.await_each(SOON, 4, 100);
        all_committed(&cluster, 100);
        stopped(handle);
        finished.assert_each_once(4, 100);
    }
}

#[test]
fn a_broker_that_holds_us_back_is_left_alone_for_as_long() {
    let cluster = cluster(1, 4, 100);
    let hold = Duration::from_secs(1);
    cluster.script(Rule::new(Request::Fetch, Fault::Throttle(hold)));
    let finished = Tally::default();
    let start = Instant::now();
    let handle = builder(&cluster)
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(SOON, 4, 100);
    work_for(Duration::from_secs(3));
    let questions = asked(&cluster, Request::Fetch);
    // Two workers, each once a second and once at the start.
    let most = 2 * (start.elapsed().as_secs() + 2);
    assert!(questions <= most, "{questions} questions");
    all_committed(&cluster, 100);
    stopped(handle);
    finished.assert_each_once(4, 100);
}

/// A run that ends by itself because of what a broker has done for ever.
fn fails(fault: Fault) -> (String, FakeCluster, Tally) {
    let cluster = cluster(2, 2, 100);
    // What the other broker has is read.
    cluster.script(Rule::new(Request::Fetch, fault).of_broker(2));
    let finished = Tally::default();
    let handle = builder(&cluster)
        .start(finished.handlers())
        .expect("the run starts");
    let (report, _) = end_of(handle, PATIENT);
    assert_eq!(report.exit_code(), 1);
    assert_eq!(report.reason.name(), "fatal-client-error");
    let StopReason::FatalClientError { message } = report.reason else {
        panic!("another reason: {:?}", report.reason);
    };
    assert_eq!(
        finished.of(1),
        [] as [i64; 0],
        "nothing of it can be handled"
    );
    (message, cluster, finished)
}

#[test]
fn records_that_stay_damaged_fail_with_broker_and_offset_named() {
    let (message, cluster, finished) = fails(Fault::CorruptRecords);
    for part in ["orders", "1", "offset 0", "broker 2", "CRC"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
    assert!(cluster.faults() >= 4, "it was fetched again");
    // From its beginning, and, before that had been looked at, from the end of what came.
    let offsets = BTreeSet::from_iter(cluster.fetch_offsets(TOPIC, 1));
    assert!(offsets.is_subset(&BTreeSet::from([0, 100])), "{offsets:?}");
    // What was handled of the healthy one is committed, and it was handled in order.
    let handled = finished.of(0);
    assert!(handled.is_sorted());
    let committed = cluster.committed(GROUP, TOPIC);
    assert_eq!(committed[1].unwrap_or(0), 0);
    let expected = i64::try_from(handled.len()).expect("a few");
    assert_eq!(committed[0].unwrap_or(0), expected);
}

#[test]
fn records_that_always_break_off_fail_with_broker_and_offset_named() {
    let (message, ..) = fails(Fault::CutRecords);
    for part in ["offset 0", "broker 2", "of a batch that says it has"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

#[test]
fn records_of_an_old_format_fail_with_what_to_do() {
    let (message, ..) = fails(Fault::OldRecords);
    for part in ["offset 0", "format 1", "copy the topic"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

#[test]
fn an_answer_that_is_always_too_long_fails_with_the_limit_named() {
    let (message, ..) = fails(Fault::FrameOf(i32::MAX));
    for part in ["offset 0", "2147483647 bytes", "raise the limit"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

#[test]
fn a_broker_that_never_makes_sense_again_is_tried_ever_more_seldom_and_the_other_is_read() {
    for fault in [Fault::Garbage, Fault::Close, Fault::Error(UNHEARD_OF)] {
        let cluster = cluster(2, 4, 100);
        cluster.script(Rule::new(Request::Fetch, fault).of_broker(2));
        let finished = Tally::default();
        let handle = builder(&cluster)
            .start(finished.handlers())
            .expect("the run starts");
        wait_for(SOON, "what the other broker has", || {
            finished.of(0).len() + finished.of(2).len() == 200
        });
        work_for(Duration::from_secs(4));
        // Two workers: 50 ms at first, doubling.
        let tries = cluster.requests(2, Request::Fetch);
        assert!((4..40).contains(&tries), "{fault:?}: {tries} tries");
        assert!(!handle.has_ended());
        assert!(finished.of(1).is_empty() && finished.of(3).is_empty());
        cluster.behave();
        finished.await_each(SOON, 4, 100);
        all_committed(&cluster, 100);
        stopped(handle);
        finished.assert_each_once(4, 100);
    }
}

/// What a broker can do wrong with any answer.
const ANY: [Fault; 13] = [
    Fault::Garbage,
    Fault::ScrambledBody,
    Fault::HalfAnswer,
    Fault::FrameOf(i32::MAX),
    Fault::WrongNumber,
    Fault::Close,
    Fault::EndlessArray,
    Fault::Error(UNHEARD_OF),
    Fault::PartitionError(UNHEARD_OF),
    Fault::WrongTopic,
    Fault::WrongPartition,
    Fault::Twice,
    Fault::Nothing,
];

/// Every fault once, one after the other, in the answers to this question of the start.
fn starts_in_spite_of(request: Request) {
    let (partitions, records) = (4, 100);
    let cluster = cluster(2, partitions, records);
    for fault in ANY {
        cluster.script(Rule::new(request, fault).to("keepup").times(1));
    }
    let (finished, events) = (Tally::default(), Events::default());
    let handle = builder(&cluster)
        .on_event(events.observer())
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(PATIENT, partitions, records);
    all_committed(&cluster, records);
    stopped(handle);
    finished.assert_each_once(partitions, records);
    assert_eq!(cluster.complaints(), [""; 0]);
    let (connections, faults) = (cluster.connections("keepup"), cluster.faults());
    assert!(connections <= 12 + 2 * faults, "{connections}, {faults}");
}

#[test]
fn a_run_starts_in_spite_of_hostile_metadata() {
    starts_in_spite_of(Request::Metadata);
}

#[test]
fn a_run_starts_in_spite_of_hostile_answers_about_the_coordinator() {
    starts_in_spite_of(Request::FindCoordinator);
}

#[test]
fn a_run_starts_in_spite_of_hostile_answers_about_commits() {
    starts_in_spite_of(Request::OffsetFetch);
}

#[test]
fn s45_a_stale_epoch_in_place_of_a_commit_is_asked_again_and_never_taken_for_none() {
    for fault in [
        Fault::Error(STALE_EPOCH),
        Fault::PartitionError(STALE_EPOCH),
    ] {
        let (partitions, before, records) = (2, 40, 60);
        let cluster = cluster(1, partitions, before);
        let finished = Tally::default();
        let handle = builder(&cluster).start(finished.handlers());
        let handle = handle.expect("the run starts");
        finished.await_each(PATIENT, partitions, before);
        all_committed(&cluster, before);
        stopped(handle);

        append(&cluster, partitions, before..records);
        cluster.script(Rule::new(Request::OffsetFetch, fault).to("keepup").times(3));
        let latest = builder(&cluster).start_from(StartFrom::Latest);
        let handle = latest.start(finished.handlers()).expect("the run starts");
        finished.await_each(PATIENT, partitions, records);
        all_committed(&cluster, records);
        stopped(handle);
        assert_eq!(cluster.faults(), 3, "{fault:?}");
        finished.assert_each_once(partitions, records);
    }
}

#[test]
fn s45_a_commit_that_is_refused_for_a_stale_epoch_is_made_again() {
    let (partitions, records) = (2, 40);
    let cluster = cluster(1, partitions, records);
    let stale = Fault::PartitionError(STALE_EPOCH);
    cluster.script(Rule::new(Request::OffsetCommit, stale).times(3));
    let (finished, events) = (Tally::default(), Events::default());
    let handle = builder(&cluster)
        .property("auto.commit.interval.ms", "100")
        .on_event(events.observer())
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(PATIENT, partitions, records);
    // The broker keeps what it refuses, so what counts is what the run believes.
    let confirmed = |partition| {
        let confirmed = events.pick(|event| match &event.kind {
            EventKind::OffsetsCommitted {
                offsets,
                error: None,
            } => offsets
                .iter()
                .find(|(of, _)| of.partition() == partition)
                .map(|(_, at)| *at),
            _ => None,
        });
        confirmed.last().copied()
    };
    wait_until(PATIENT, "the commits to be confirmed", || {
        let all: Vec<_> = (0..partitions).map(confirmed).collect();
        if all.iter().all(|offset| *offset == Some(records)) {
            Ok(())
        } else {
            Err(all)
        }
    });
    assert_eq!(cluster.faults(), 3);
    stopped(handle);
    finished.assert_each_once(partitions, records);
}

#[test]
fn a_run_starts_in_spite_of_hostile_answers_about_offsets() {
    starts_in_spite_of(Request::ListOffsets);
}

#[test]
fn a_run_starts_in_spite_of_hostile_answers_about_versions() {
    starts_in_spite_of(Request::ApiVersions);
}

#[test]
fn no_contact_is_made_with_a_broker_that_never_makes_sense() {
    for fault in [
        Fault::Garbage,
        Fault::EndlessArray,
        Fault::Close,
        Fault::Stall,
    ] {
        let timeout = Duration::from_secs(2);
        let cluster = cluster(1, 4, 100);
        cluster.script(Rule::new(Request::Metadata, fault));
        let start = Instant::now();
        let error = builder(&cluster)
            .contact_timeout(timeout)
            .start(Tally::default().handlers())
            .expect_err("no contact");
        let took = start.elapsed();
        assert!(took < timeout + SLACK, "{fault:?}: it took {took:?}");
        assert_eq!(error.exit_code(), 4, "{fault:?}: {error}");
        assert!(matches!(error, Error::NoContact { .. }), "{error}");
        let tries = cluster.connections("keepup");
        assert!(tries < 30, "{fault:?}: {tries} connections");
    }
}

/// Random faults at random moments while leaders move, and what comes of it.
fn chaos(seed: u64) {
    println!("seed {seed}");
    let (partitions, records) = (12, 3_000);
    let cluster = cluster(3, partitions, 0);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut moves = random.fork();
    cluster.script_with(move |asked| {
        const OF_RECORDS: [Fault; 3] = [
            Fault::CorruptRecords,
            Fault::CutRecords,
            Fault::EarlierRecords,
        ];
        // The member's connections are librdkafka's; what it makes of garbage is not ours to test.
        if asked.software != "keepup" || random.u8(..) > 50 {
            return None;
        }
        let any = ANY.iter().chain(&OF_RECORDS).copied();
        random.choose_multiple(any, 1).pop()
    });
    let finished = Tally::default();
    let handle = builder(&cluster)
        .workers(Workers::Fixed(3))
        .start(finished.handlers())
        .expect("the run starts");
    let total = count(i64::from(partitions) * records);
    let mut written = 0;
    wait_until(2 * PATIENT, "every record", || {
        let partition = moves.i32(0..partitions);
        cluster
            .move_leader(TOPIC, partition, moves.i32(1..=3))
            .expect("there is that partition");
        let until = records.min(written + moves.i64(1..=BATCH));
        append(&cluster, partitions, written..until);
        written = until;
        assert!(!handle.has_ended(), "seed {seed}: the run has ended");
        work_for(Duration::from_millis(20));
        let handled = finished.len();
        if handled >= total {
            Ok(())
        } else {
            Err(handled)
        }
    });
    cluster.behave();
    all_committed(&cluster, records);
    let counted = handle.lag().connection_errors.total();
    stopped(handle);
    finished.assert_each_once(partitions, records);
    assert_eq!(cluster.complaints(), [""; 0], "seed {seed}");
    let (connections, faults) = (cluster.connections("keepup"), cluster.faults());
    println!("{faults} faults, {counted} counted, {connections} connections");
    assert!(faults > 20, "seed {seed}: only {faults} faults");
    assert!(counted > 0, "seed {seed}");
    assert!(
        connections < 40 + 3 * faults,
        "seed {seed}: {connections} connections for {faults} faults"
    );
}

#[test]
fn random_faults_while_leaders_move_lose_repeat_and_reorder_nothing() {
    chaos(fastrand::u64(..));
}

#[test]
fn brokers_of_every_release_are_spoken_with_in_their_newest_version() {
    for release in Release::ALL {
        if release == Release::V0_10_2 {
            continue;
        }
        let (partitions, records) = (4, 200);
        let cluster = cluster_of(release, 2, partitions, records);
        let finished = Tally::default();
        let report = builder(&cluster)
            .until_end(true)
            .run(finished.handlers())
            .expect("the run starts");
        assert_eq!(report.reason, StopReason::EndReached, "{release:?}");
        assert_eq!(report.left_uncommitted, 0, "{release:?}: {report:?}");
        finished.assert_each_once(partitions, records);
        assert_eq!(cluster.committed(GROUP, TOPIC), [Some(records); 4]);
        assert_eq!(cluster.complaints(), [""; 0], "{release:?}");
        for request in Request::ALL {
            let used = cluster.versions(request);
            let (first, last) = release.versions(request).expect("it is known");
            let fits = used.iter().all(|version| (first..=last).contains(version));
            assert!(fits, "{release:?}: {request:?} in {used:?}");
        }
        // As new as both sides can, and topic ids from 13 on.
        let (_, last) = release.versions(Request::Fetch).expect("it is known");
        let used = cluster.versions(Request::Fetch);
        assert_eq!(used, BTreeSet::from([last.min(16)]), "{release:?}");
    }
}

#[test]
fn a_cluster_that_is_too_old_is_refused_at_once_with_what_is_needed() {
    let cluster = cluster_of(Release::V0_10_2, 2, 4, 100);
    let start = Instant::now();
    let error = builder(&cluster)
        .start(Tally::default().handlers())
        .expect_err("it is too old");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert_eq!(error.exit_code(), 1);
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let words = error.to_string();
    assert!(words.contains("needs Apache Kafka 2.8 or later"), "{words}");
    assert!(words.contains(&cluster.bootstrap()), "{words}");
}
