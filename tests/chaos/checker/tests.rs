use super::*;
use crate::faults::Fault;

/// A member that owns partition 0 from the start.
fn member(in_hand: usize) -> Member {
    Member {
        in_hand,
        told: vec![(0, Told::Assigned(vec![0]))],
        ..Member::default()
    }
}

fn handled(at: Millis, offset: i64) -> Handled {
    Handled {
        at,
        partition: 0,
        offset,
        key: offset % 2,
        number: offset,
    }
}

fn commits(at: Millis, offset: i64) -> Commits {
    Commits {
        at,
        offsets: vec![Some(offset)],
    }
}

/// Member 0 has completed what lies below 6, with 4 committed, when it ends as `end` says at 1,000; member 1 has the
/// partition from 5,000 on and begins at 4.
fn takeover(end: Option<(Millis, End)>) -> Log {
    let mut old = member(1);
    old.handled = (0..6)
        .map(|offset| handled(100 + offset * 10, offset))
        .collect();
    old.told.push((135, Told::Committed(vec![(0, 4)])));
    old.end = end;
    let mut new = member(1);
    new.told = vec![(5_000, Told::Assigned(vec![0]))];
    new.handled = (4..10)
        .map(|offset| handled(5_000 + offset * 10, offset))
        .collect();
    new.told.push((6_000, Told::Committed(vec![(0, 10)])));
    Log {
        members: vec![old, new],
        commits: vec![commits(135, 4), commits(6_001, 10)],
        ends: vec![10],
        ..Log::default()
    }
}

#[test]
fn a_takeover_after_a_kill_repeats_what_was_not_committed_and_nothing_is_wrong_with_that() {
    let verdict = check(&takeover(Some((1_000, End::Killed))));
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    // 4 and 5, and one that may have been in the handler.
    assert_eq!(
        (verdict.handled, verdict.repeats, verdict.uncommitted),
        (10, 2, 3)
    );
    assert_eq!((verdict.abrupt_ends, verdict.ownerships), (1, 2));
}

#[test]
fn after_an_orderly_end_the_same_repeats_are_needless() {
    let mut log = takeover(Some((1_000, End::Left)));
    let verdict = check(&log);
    assert_eq!(
        verdict.found(),
        ["needless", "too many repeats"],
        "{verdict}"
    );
    assert_eq!(verdict.needless.count, 2);

    log.members[0].end = Some((9_000, End::Left));
    log.members[0].told.push((1_000, Told::Revoked(vec![0])));
    assert_eq!(check(&log).needless.count, 2, "let go of, and not left");
}

#[test]
fn what_is_let_go_of_while_there_is_no_broker_may_come_again() {
    let mut log = takeover(Some((1_000, End::Left)));
    log.outages.push(500..2_000);
    assert_eq!(check(&log).found(), [""; 0]);
    log.outages.clear();
    log.members[0].end = Some((9_000, End::LeftWork));
    log.members[0].told.push((600, Told::Revoked(vec![0])));
    log.members[0].asked = Some(600);
    assert_eq!(check(&log).found(), [""; 0], "it said so itself");
    log.members[0].asked = Some(601);
    let found = check(&log).found();
    assert!(
        found.contains(&"needless"),
        "not of what it let go of before"
    );
}

#[test]
fn a_member_that_was_stopped_may_complete_what_it_had_in_hand_and_nothing_else() {
    let mut log = takeover(None);
    log.members[0].stops.push(160..7_000);
    log.members[0].told.push((7_100, Told::Lost(vec![0])));
    log.members[0].handled.push(handled(7_001, 6));
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");

    log.members[0].handled.push(handled(7_002, 7));
    assert!(check(&log).found().contains(&"stale"));
    // Nor may it once it knows that the partition is not its own.
    log.members[0].handled[7].at = 7_101;
    log.members[0].end = Some((9_000, End::Left));
    assert!(check(&log).found().contains(&"stale"));
}

#[test]
fn a_repeat_goes_back_to_what_was_committed_and_no_further() {
    let mut log = takeover(Some((1_000, End::Killed)));
    log.members[1].handled.insert(0, handled(5_010, 3));
    assert_eq!(check(&log).found(), ["needless"]);
}

#[test]
fn a_record_before_its_predecessor_is_disorder_by_the_order_that_was_asked_for() {
    for (order, swapped, found) in [
        (Order::Partition, [0, 1], true),
        // Their keys are not the same.
        (Order::Key, [0, 1], false),
        (Order::Key, [0, 2], true),
        (Order::Unordered, [0, 1], false),
    ] {
        let mut log = takeover(Some((1_000, End::Killed)));
        log.order = order;
        let [one, other] = swapped;
        let records = &mut log.members[0].handled;
        let times = (records[one].at, records[other].at);
        records.swap(one, other);
        (records[one].at, records[other].at) = times;
        let has = check(&log).found().contains(&"disordered");
        assert_eq!(has, found, "{order:?} {swapped:?}");
    }
}

#[test]
fn a_record_twice_within_one_ownership_is_disorder_in_every_order() {
    for order in [Order::Partition, Order::Key, Order::Unordered] {
        let mut log = takeover(Some((1_000, End::Killed)));
        log.order = order;
        log.members[0].handled.push(handled(160, 5));
        assert!(check(&log).found().contains(&"disordered"), "{order:?}");
    }
}

#[test]
fn a_commit_is_held_against_what_was_completed_when_it_was_seen() {
    let mut log = takeover(Some((1_000, End::Killed)));
    // Offset 3 is completed at 130.
    log.commits[0].at = 129;
    assert_eq!(check(&log).found(), ["unsafe"]);
    log.commits[0].at = 130;
    assert_eq!(check(&log).found(), [""; 0]);
    log.members[0].told[1].0 = 129;
    assert_eq!(
        check(&log).found(),
        ["unsafe"],
        "by the member's own word too"
    );
}

#[test]
fn a_commit_goes_back_only_after_an_outage_and_only_to_what_was_handled_during_it() {
    let mut log = takeover(Some((1_000, End::Killed)));
    log.commits.insert(1, commits(160, 6));
    log.commits.insert(2, commits(400, 5));
    assert!(check(&log).found().contains(&"rewound"));
    log.outages.push(155..300);
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!(verdict.undone, 1);
    log.commits[2].offsets = vec![Some(3)];
    let found = check(&log).found();
    assert!(found.contains(&"rewound"), "to before the outage");
}

#[test]
fn what_is_missing_in_the_end_is_lost_or_lag() {
    let mut log = takeover(Some((1_000, End::Killed)));
    log.ends[0] = 11;
    let verdict = check(&log);
    assert_eq!(verdict.found(), ["lost", "lag"]);
    assert_eq!((verdict.lost.count, verdict.lag), (1, 1));
}

#[test]
fn every_planted_fault_is_found() {
    let mut log = takeover(Some((9_000, End::Left)));
    log.members[0].told.push((200, Told::Lost(vec![0])));
    assert_eq!(check(&log).found(), [""; 0]);
    for fault in Fault::ALL {
        for seed in 0..20 {
            let mut doctored = log.clone();
            let mut random = fastrand::Rng::with_seed(seed);
            assert!(fault.plant(&mut doctored, &mut random), "{fault:?}");
            let found = check(&doctored).found();
            assert!(
                found.contains(&fault.finding()),
                "{fault:?}, {seed}: {found:?}"
            );
        }
    }
}
