//! What ends a membership, or keeps it waiting.

use super::*;
use crate::lag::snapshot::MemberState;

fn held() -> GroupEvent {
    GroupEvent::InstanceHeld {
        instance: "me".into(),
    }
}

impl Scene {
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
    let (joins, group) = (scene.joins(), scene.group.clone());
    // A client that is spent has closed.
    group.0.lock().is_closed = true;
    let (began, clock) = (scene.clock.now(), scene.clock.clone());
    let report = scene.end();
    assert_eq!(report.reason, StopReason::StopCalled);
    assert!(clock.now() - began < STOP_DEADLINE, "{report:?}");
    assert_eq!(group.0.lock().joins, joins, "nothing is tried any more");
}
