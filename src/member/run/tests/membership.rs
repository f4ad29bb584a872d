//! What ends a membership, or keeps it waiting.

use super::*;
use crate::lag::snapshot::MemberState;
use crate::report::WorkerStop;

fn held() -> GroupEvent {
    GroupEvent::InstanceHeld {
        instance: "me".into(),
    }
}

impl Scene {
    /// Waits for the end of a run whose group is not to be had.
    fn ended_without_the_group(self) -> Report {
        self.wait_while_time_passes("the end", Duration::from_millis(100), || {
            self.member.is_finished()
        });
        self.member.join().unwrap()
    }

    fn joins(&self) -> usize {
        self.group.0.lock().joins
    }

    fn told(&self, words: &str) -> usize {
        let is_it = |kind: &&EventKind| match kind {
            EventKind::Warning { message } => message.contains(words),
            _ => false,
        };
        self.told.lock().iter().filter(is_it).count()
    }
}

#[test]
fn s40_a_member_that_was_fenced_stores_nothing_any_more_and_waits_for_nobody() {
    let tally = Tally::default();
    tally.holds.lock().insert((0, 4));
    let scene = Scene::begin_with(2, tally);
    scene.wait_for("the record in hand", || scene.handled(0).last() == Some(&4));
    scene.wait_for_store(0, 4);
    // The group of a client that is spent says that all is lost, and nothing else.
    scene.group.0.lock().is_lost = true;
    scene.says(GroupEvent::Fenced {
        instance: "me".into(),
    });
    let answered = || scene.revokes_answered() == 1;
    scene.wait_for("what is lost to be let go", answered);
    let (group, began) = (scene.group.clone(), scene.clock.now());
    let clock = scene.clock.clone();
    scene.permits.send(()).unwrap();
    let report = scene.ended();
    let StopReason::InstanceTaken { instance, message } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(instance, "me");
    assert!(message.contains("give each process its own"), "{message}");
    assert_eq!(report.exit_code(), 1);
    assert!(clock.now() - began < STOP_DEADLINE, "{report:?}");
    let stored =
        |did: &&Did| matches!(did, Did::Stored(which, offset) if *which == tp(0) && *offset > 4);
    let did = group.0.lock().did.clone();
    assert_eq!(did.iter().filter(stored).count(), 0, "{did:?}");
}

#[test]
fn s40_an_instance_id_that_another_has_is_waited_for_in_sight_and_costs_no_restart() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().is_lost = true;
    scene.says(held());
    let (mut reporter, _) = scene.reporter(Duration::from_mins(5));
    scene.wait_for("the refusal to be told", || {
        scene.told("group.instance.id") == 1
    });
    reporter.tick();
    let seen = scene.shared.board.latest();
    assert_eq!(seen.member, MemberState::HeldUp);
    assert!(seen.health.is_live(), "{:?}", seen.health);
    let why = seen.health.not_ready.clone().unwrap();
    assert!(why.contains("group.instance.id \"me\""), "{why}");
    assert!(seen.partitions.is_empty(), "what it had is lost");
    // Each refusal is followed by another attempt, later and later.
    for joins in 2..6 {
        let step = Duration::from_millis(50);
        scene.wait_while_time_passes("another attempt", step, || scene.joins() == joins);
        scene.says(held());
    }
    assert_eq!(scene.told("group.instance.id"), 1, "said once");
    scene.group.0.lock().is_lost = false;
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    let is_over = || scene.told("gave this member its group.instance.id") == 1;
    scene.wait_for("the end of the wait to be told", is_over);
    reporter.tick();
    let seen = scene.shared.board.latest();
    assert_eq!(seen.member, MemberState::Joined);
    let (joins, clock) = (scene.joins(), scene.clock.clone());
    clock.advance(Duration::from_mins(5));
    let group = scene.group.clone();
    let report = scene.end();
    assert_eq!(report.exit_code(), 0, "{report:?}");
    assert!(report.workers.iter().all(|worker| worker.restarts == 0));
    assert_eq!(group.0.lock().joins, joins, "it is in, and asks no more");
}

#[test]
fn s40_a_stop_ends_the_wait_for_an_instance_id() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().is_lost = true;
    scene.says(held());
    scene.wait_for("the refusal to be told", || {
        scene.told("group.instance.id") == 1
    });
    let group = scene.group.clone();
    // A client that is spent has closed.
    group.0.lock().is_closed = true;
    let stop = ToMember::Stop(StopReason::StopCalled);
    scene.to_member.send(stop).unwrap();
    // Without time there is no other attempt, and the stop needs none.
    scene.wait_for("the end", || scene.member.is_finished());
    let joins = scene.joins();
    assert_eq!(joins, 1, "nothing is tried any more");
    let report = scene.member.join().unwrap();
    assert_eq!(report.reason, StopReason::StopCalled);
    assert_eq!(report.stop_took, Duration::ZERO, "{report:?}");
}

#[test]
fn a_panic_of_the_loop_ends_the_run_typed_with_its_workers_after_the_record_in_hand() {
    let tally = Tally::default();
    tally.holds.lock().insert((0, 4));
    let scene = Scene::begin_with(2, tally);
    scene.wait_for("the record in hand", || scene.handled(0).last() == Some(&4));
    scene.wait_for_store(1, 10);
    let (mut reporter, _) = scene.reporter(Duration::from_mins(5));
    scene.group.0.lock().poll_panics = true;
    scene.wait_for("the end to be seen", || {
        let now = scene.clock.coarse();
        scene.shared.member(now).phase == Phase::Stopping
    });
    reporter.look_again();
    let seen = scene.shared.board.latest();
    assert_eq!(seen.member, MemberState::Stopping);
    assert_eq!(seen.stop_reason, Some("fatal-client-error"));
    let why = seen.health.not_ready.clone().unwrap();
    assert!(why.contains("a mistake of ours"), "{why}");
    let stored = scene.did().len();
    scene.permits.send(()).unwrap();
    let (told, shared, group) = (
        Arc::clone(&scene.told),
        Arc::clone(&scene.shared),
        scene.group.clone(),
    );
    let tally = scene.tally.clone();
    let report = scene.ended_without_the_group();
    let message = message_of(&report);
    assert!(message.contains("the member's thread panicked: a mistake of ours"));
    assert_eq!(report.exit_code(), 1);
    assert!(!report.left_group, "the client is not touched any more");
    assert_eq!(report.abandoned, [0; 0]);
    assert_eq!(
        (report.records, report.workers.len()),
        (15, 2),
        "{report:?}"
    );
    let why = WorkerStop::RunStopped(Box::new(report.reason.clone()));
    assert!(report.workers.iter().all(|worker| worker.reason == why));
    assert_eq!(tally.handled.lock().len(), 15, "none was begun any more");
    assert_eq!(
        group.0.lock().did.len(),
        stored,
        "nothing was stored any more"
    );
    let is_last = |kind: &EventKind| matches!(kind, EventKind::ShutdownComplete { .. });
    // The observer has a thread of its own.
    let deadline = Clock::System.now() + Duration::from_mins(1);
    while !told.lock().last().is_some_and(is_last) {
        assert!(Clock::System.now() < deadline, "{:?}", told.lock());
        std::thread::park_timeout(Duration::from_millis(2));
    }
    reporter.look_again();
    let seen = shared.board.latest();
    assert_eq!(seen.member, MemberState::Stopped);
    let why = &seen.health.not_live;
    assert!(why[0].contains("a mistake of ours"), "{why:?}");
}

#[test]
fn a_panic_of_the_loop_waits_for_no_handler_beyond_the_stop_deadline() {
    let tally = Tally::default();
    tally.holds.lock().insert((0, 4));
    let scene = Scene::begin_with(1, tally);
    scene.wait_for("the record in hand", || scene.handled(0).last() == Some(&4));
    scene.group.0.lock().poll_panics = true;
    let permits = scene.permits.clone();
    let report = scene.ended_without_the_group();
    assert_eq!(report.abandoned, [0], "{report:?}");
    assert!(report.stop_took >= STOP_DEADLINE, "{report:?}");
    assert_eq!(
        report.left_uncommitted, 5,
        "four that were not committed, one in hand"
    );
    permits.send(()).unwrap();
}

#[test]
fn a_group_that_gives_nothing_for_long_is_told_with_what_is_known_and_the_run_waits_on() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    scene.group.0.lock().is_lost = true;
    scene.revokes(&[0], true);
    scene.wait_for("the loss", || scene.revokes_answered() == 1);
    scene.says(GroupEvent::Trouble {
        message: "no coordinator".into(),
    });
    let (mut reporter, _) = scene.reporter(Duration::from_mins(5));
    let step = Duration::from_secs(1);
    scene.wait_while_time_passes("the wait to be told", step, || {
        scene.told("has given no assignment for") == 1
    });
    reporter.tick();
    let seen = scene.shared.board.latest();
    assert_eq!(seen.member, MemberState::HeldUp);
    assert!(
        seen.health.is_live(),
        "a restart mends nothing: {:?}",
        seen.health
    );
    let why = seen.health.not_ready.clone().unwrap();
    assert!(why.contains("(no coordinator)"), "{why}");
    scene.clock.advance(Duration::from_mins(4));
    assert!(!scene.member.is_finished(), "it waits on");
    scene.says(GroupEvent::Assigned(vec![tp(0)]));
    scene.wait_for("the end of the wait to be told", || {
        scene.told("gives assignments again") == 1
    });
    reporter.tick();
    assert_eq!(scene.shared.board.latest().member, MemberState::Joined);
    assert_eq!(scene.told("has given no assignment for"), 1, "once");
    assert_eq!(scene.end().exit_code(), 0);
}

#[test]
fn a_reporter_that_hangs_is_told_by_the_member_and_comes_back() {
    let scene = Scene::begin(1);
    scene.wait_for_store(0, 10);
    let (mut reporter, _) = scene.reporter(Duration::from_mins(5));
    reporter.tick();
    let before = scene.shared.board.latest();
    assert!(before.health.is_live() && before.partitions.len() == 1);
    let step = Duration::from_secs(1);
    scene.wait_while_time_passes("the member to tell", step, || {
        scene.told("keepup-reporter has not looked") == 1
    });
    let seen = scene.shared.board.latest();
    assert!(
        seen.health.not_live[0].contains("has not looked"),
        "{seen:?}"
    );
    assert_eq!(seen.partitions, [], "nothing that stands still is shown");
    reporter.tick();
    scene.wait_while_time_passes("the member to see", Duration::from_millis(50), || {
        scene.told("keepup-reporter looks again") == 1
    });
    let seen = scene.shared.board.latest();
    assert!(seen.health.is_live() && seen.partitions.len() == 1);
    assert_eq!(seen.reporter_failures, 1, "counted");
    assert_eq!(scene.end().exit_code(), 0);
}
