use super::*;
use crate::faults::Fault;

const PATIENCE: Millis = 8_000;

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
        asked: at,
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
        patience: PATIENCE,
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

    // Unless it fell asleep, or was killed, before the commit of that was answered.
    let mut asleep = log.clone();
    asleep.members[0].stops.push(1_001..8_000);
    assert_eq!(check(&asleep).found(), [""; 0]);
    asleep.members[0].stops[0].start = 3_001;
    assert_eq!(check(&asleep).needless.count, 2);
    // Whatever it commits when it has the partition again.
    let mut again = log.clone();
    again.members[1].tell(8_000, Told::Revoked(vec![0]));
    again.members[0].tell(8_100, Told::Assigned(vec![0]));
    again.members[0].tell(8_500, Told::Committed(vec![(0, 10)]));
    assert_eq!(check(&again).needless.count, 2);
    again.members[0].stops.push(1_001..4_000);
    assert_eq!(check(&again).found(), [""; 0]);
    // Or was refused it.
    let mut refused = log.clone();
    refused.members[0].refused = vec![1_500];
    assert_eq!(check(&refused).found(), [""; 0]);
    refused.members[0].refused = vec![900, 3_001];
    assert_eq!(check(&refused).needless.count, 2);
    let mut killed = log;
    killed.members[0].end = Some((9_000, End::Killed));
    assert_eq!(check(&killed).needless.count, 2);
    killed.members[0].asked = Some(1_001);
    assert_eq!(check(&killed).found(), [""; 0], "its end was noticed late");
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
fn who_wakes_and_is_told_of_what_it_was_given_and_lost_in_its_sleep_has_taken_nothing_over() {
    let mut log = takeover(Some((1_000, End::Killed)));
    let mut woken = Member::default();
    woken.tell(5_065, Told::Assigned(vec![0]));
    woken.tell(5_066, Told::Lost(vec![0]));
    log.members.push(woken);
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    // It is another thing where something came of it, or it had the time for that.
    log.members[2].told[1].0 = 5_065 + ANSWER;
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
    (log.commits[0].asked, log.commits[0].at) = (129, 129);
    assert_eq!(check(&log).found(), ["unsafe", "foreign"]);
    (log.commits[0].asked, log.commits[0].at) = (130, 130);
    assert_eq!(check(&log).found(), [""; 0]);
    log.members[0].told[1].0 = 129;
    assert_eq!(
        check(&log).found(),
        ["unsafe", "foreign"],
        "by the member's own word too"
    );
}

#[test]
fn a_commit_goes_back_only_by_what_was_on_its_way_in_an_outage_and_not_below_what_was_confirmed() {
    let mut log = takeover(Some((1_000, End::Killed)));
    log.members[1].handled.remove(0);
    log.commits.insert(1, commits(160, 6));
    log.commits.insert(2, commits(400, 5));
    assert!(check(&log).found().contains(&"rewound"));
    log.outages.push(155..300);
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!(verdict.undone, 1);

    // Its owner has heard from the group since.
    let mut heard = log.clone();
    heard.members[0].tell(310, Told::Committed(vec![(0, 6)]));
    heard.commits[2] = commits(310 + SENT_AGAIN, 5);
    heard.members[0].end = Some((3_000, End::Killed));
    assert_eq!(check(&heard).found(), [""; 0]);
    heard.commits[2] = commits(310 + SENT_AGAIN + 500, 5);
    heard.commits.insert(2, commits(310 + SENT_AGAIN + 400, 6));
    assert_eq!(check(&heard).found(), ["rewound"], "nothing is on its way");

    // The same offsets are not undone twice.
    let mut twice = log.clone();
    twice.commits[2].offsets = vec![Some(4)];
    twice.commits.insert(3, commits(410, 6));
    twice.commits.insert(4, commits(420, 5));
    assert_eq!(check(&twice).found(), ["rewound"]);

    log.commits[2].offsets = vec![Some(3)];
    let found = check(&log).found();
    assert!(found.contains(&"rewound"), "to before the outage");
}

#[test]
fn who_let_go_before_an_outage_with_all_confirmed_is_not_excused_by_it() {
    let mut log = takeover(Some((9_000, End::Left)));
    log.members[0].tell(1_000, Told::Revoked(vec![0]));
    log.outages.push(1_100..2_000);
    let verdict = check(&log);
    assert_eq!(
        verdict.found(),
        [""; 0],
        "the answer may be missing: {verdict}"
    );
    // All of it was confirmed; that it is lost all the same is for nobody to excuse.
    log.members[0].tell(900, Told::Committed(vec![(0, 6)]));
    assert!(check(&log).found().contains(&"needless"));
    log.members[0]
        .told
        .retain(|told| *told != (900, Told::Committed(vec![(0, 6)])));
    log.outages.clear();
    log.outages.push(1_001 + ANSWER..9_000);
    let found = check(&log).found();
    assert!(found.contains(&"needless"), "it would have been answered");
}

#[test]
fn a_kill_excuses_what_was_let_go_of_just_before_unless_that_was_confirmed() {
    let mut log = takeover(Some((1_000 + ANSWER, End::Killed)));
    log.members[0].tell(1_000, Told::Revoked(vec![0]));
    assert_eq!(check(&log).found(), [""; 0]);
    let mut confirmed = log.clone();
    confirmed.members[0].tell(1_500, Told::Committed(vec![(0, 6)]));
    assert!(check(&confirmed).found().contains(&"needless"));
    log.members[0].end = Some((1_001 + ANSWER, End::Killed));
    assert!(check(&log).found().contains(&"needless"), "long before");
    // Its commit waits for the join of a classic group, of which its letting go is a sign.
    log.settles = Some(1);
    assert_eq!(check(&log).found(), [""; 0]);
}

#[test]
fn a_sleep_excuses_what_the_group_gave_away_in_it_and_no_end_long_after() {
    let mut log = takeover(None);
    log.members[0].stops.push(200..7_000);
    // It thinks that it let go in its own time; the other one has it since 5,000.
    log.members[0].tell(7_100, Told::Revoked(vec![0]));
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    // It slept at some time while it had the partition, and let go of it later.
    log.members[0].stops.clear();
    log.members[0].stops.push(200..600);
    log.members[0].told.pop();
    log.members[0].tell(600 + ANSWER, Told::Revoked(vec![0]));
    assert_eq!(check(&log).found(), [""; 0], "it may not have heard");
    log.members[0].told.pop();
    log.members[0].tell(601 + ANSWER, Told::Revoked(vec![0]));
    assert!(check(&log).found().contains(&"needless"));
}

#[test]
fn a_sleep_before_a_takeover_excuses_no_record_after_it() {
    let mut log = takeover(None);
    log.members[0].tell(7_100, Told::Lost(vec![0]));
    log.members[0].handled.push(handled(7_001, 6));
    log.members[0].stops.clear();
    log.members[0].stops.push(200..5_001 - ANSWER);
    assert!(check(&log).found().contains(&"stale"), "it ran again");
    log.members[0].stops.clear();
    log.members[0].stops.push(200..5_001);
    assert_eq!(check(&log).found(), [""; 0], "it had just woken");
    log.members[0].handled[6].at = 7_002;
    assert!(check(&log).found().contains(&"stale"), "long after it woke");
}

/// A member that handles these, in this order, one each 100 ms, and commits what it has each 500 ms.
fn alone(offsets: impl IntoIterator<Item = i64>) -> Log {
    let mut only = member(1);
    only.handled = (1..)
        .zip(offsets)
        .map(|(turn, offset)| handled(turn * 100, offset))
        .collect();
    let mut looks: Vec<Commits> = Vec::new();
    for record in only.handled.iter().skip(4).step_by(5) {
        looks.push(commits(record.at + 50, record.offset + 1));
    }
    let last = only.handled.last().copied().expect("a record");
    let end = only.handled.iter().map(|record| record.offset + 1).max();
    looks.push(commits(last.at + 90, last.offset + 1));
    only.end = Some((last.at + 100, End::Left));
    Log {
        members: vec![only],
        commits: looks,
        ends: vec![end.unwrap_or(0)],
        patience: PATIENCE,
        ..Log::default()
    }
}

#[test]
fn a_commit_that_stands_still_while_its_owner_works_is_found() {
    let mut log = alone(0..150);
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    // What is completed just after a commit waits for the next one.
    assert_eq!(verdict.slowest, 0, "{verdict}");
    for look in log.commits.iter_mut().filter(|look| look.at > 3_100) {
        if look.at < 14_000 {
            look.offsets = vec![Some(30)];
        }
    }
    let verdict = check(&log);
    assert_eq!(verdict.found(), ["stalled"], "{verdict}");
    assert_eq!(verdict.stalled.count, 1, "it is one");

    // Nobody is to blame while its owner sleeps, while there is no broker, or while it waits for a seek.
    let mut asleep = log.clone();
    asleep.members[0].stops.push(5_000..5_500);
    assert_eq!(check(&asleep).found(), [""; 0]);
    let mut without_broker = log.clone();
    without_broker.outages.push(6_000..6_500);
    assert_eq!(check(&without_broker).found(), [""; 0]);
    // But long enough after any of it.
    without_broker.outages.clear();
    without_broker.outages.push(1_000..1_100);
    assert_eq!(check(&without_broker).found(), [""; 0]);
    without_broker.outages.clear();
    without_broker.outages.push(100..200);
    assert_eq!(check(&without_broker).found(), ["stalled"]);

    // A worker that is stopped tells its owner nothing until that takes note of it; one that is killed is gone at once.
    let mut silent = log.clone();
    silent.members[0].tell(13_500, Told::WorkerDied(vec![0]));
    assert_eq!(check(&silent).found(), ["stalled"]);
    let silence = |range, partition| vec![(range, vec![partition])];
    silent.members[0].silences = silence(3_000..13_500, 0);
    assert_eq!(check(&silent).found(), [""; 0]);
    silent.members[0].silences = silence(3_000..13_500, 1);
    assert_eq!(check(&silent).found(), ["stalled"], "another worker's");
    // Its owner has to take note of it in time.
    let mut unnoticed = alone(0..300);
    unnoticed.members[0].silences = silence(3_000..29_000, 0);
    assert_eq!(check(&unnoticed).found(), [""; 0]);
    for look in &mut unnoticed.commits {
        if (3_100..29_000).contains(&look.at) {
            look.offsets = vec![Some(30)];
        }
    }
    assert_eq!(check(&unnoticed).found(), ["stalled"]);

    // Whoever is killed commits nothing more.
    let mut killed = alone(0..40);
    killed.commits.retain(|look| look.at < 3_100);
    killed.commits.push(commits(15_000, 30));
    killed.members[0].handled.truncate(31);
    killed.ends = vec![31];
    killed.members[0].end = Some((16_000, End::Killed));
    assert_eq!(check(&killed).found(), ["stalled", "lag"]);
    killed.members[0].asked = Some(4_000);
    assert_eq!(check(&killed).found(), ["lag"]);
}

#[test]
fn without_an_order_a_commit_that_stands_still_after_a_seek_is_found() {
    // The first two of what is sought are completed in the same moment, in the wrong order.
    let mut log = alone((0..50).chain([21, 20]).chain(22..300));
    log.order = Order::Unordered;
    log.members[0].handled[51].at = log.members[0].handled[50].at;
    let seek = Told::Seek {
        partition: 0,
        offset: 20,
    };
    log.members[0].tell(5_010, seek);
    assert_eq!(check(&log).found(), [""; 0]);
    for look in &mut log.commits {
        if (8_000..25_000).contains(&look.at) {
            look.offsets = vec![Some(45)];
        }
    }
    assert_eq!(check(&log).found(), ["stalled"]);
}

#[test]
fn while_a_classic_group_rebalances_no_commit_is_missed() {
    let mut log = alone(0..150);
    for look in log.commits.iter_mut().filter(|look| look.at > 3_100) {
        look.offsets = vec![Some(30)];
    }
    log.commits.push(commits(15_100, 150));
    log.settles = Some(2_000);
    assert_eq!(check(&log).found(), ["stalled"]);
    // Another one comes when it is high time, and is told of its partitions.
    let mut other = Member {
        began: Some(7_000),
        ..Member::default()
    };
    other.tell(8_900, Told::Assigned(vec![]));
    log.members.push(other);
    assert_eq!(check(&log).found(), [""; 0]);
    log.settles = None;
    assert_eq!(
        check(&log).found(),
        ["stalled"],
        "nobody waits for that one"
    );
}

#[test]
fn a_commit_of_another_life_is_foreign_by_its_members_word() {
    // Member 0 let go at 1,000 with 6 completed; member 1 has all ten.
    let mut log = takeover(Some((9_000, End::Killed)));
    log.members[0].tell(1_000, Told::Lost(vec![0]));
    // The answer to what it sent before it lost the partition.
    log.members[0].tell(1_500, Told::Committed(vec![(0, 6)]));
    assert_eq!(check(&log).found(), [""; 0]);
    log.members[0].tell(7_000, Told::Committed(vec![(0, 10)]));
    assert_eq!(check(&log).found(), ["foreign"]);
    // Nor of what it never had.
    log.members[0].told.pop();
    log.ends.push(1);
    log.members[1].tell(5_001, Told::Assigned(vec![1]));
    let other = Handled {
        partition: 1,
        ..handled(5_500, 0)
    };
    log.members[1].handled.push(other);
    log.commits.push(Commits {
        offsets: vec![Some(10), Some(1)],
        ..commits(7_000, 10)
    });
    assert_eq!(check(&log).found(), [""; 0]);
    log.members[0].tell(7_000, Told::Committed(vec![(1, 1)]));
    assert_eq!(check(&log).found(), ["foreign"]);
}

#[test]
fn a_commit_ahead_of_the_owner_is_foreign_though_somebody_has_completed_all_of_it() {
    let mut log = takeover(Some((1_000, End::Killed)));
    log.commits.insert(1, commits(5_045, 5));
    assert_eq!(check(&log).found(), [""; 0]);
    // 5 is completed since 150, by the one before; by this one it is at 5,050.
    log.commits[1].offsets = vec![Some(6)];
    assert_eq!(check(&log).found(), ["foreign"]);
}

#[test]
fn what_was_lost_is_not_committed_any_more_before_somebody_has_it() {
    let mut log = takeover(Some((9_000, End::Killed)));
    log.members[0].tell(1_000, Told::Lost(vec![0]));
    log.members[1].handled.remove(0);
    // It was sent before that was known.
    log.commits.insert(1, commits(1_000 + ANSWER, 5));
    assert_eq!(check(&log).found(), [""; 0]);
    log.commits[1] = commits(1_001 + ANSWER, 5);
    assert_eq!(check(&log).found(), ["foreign"]);
}

/// A member that seeks back to 20 when it has handled what lies below 50.
fn sought() -> Log {
    let mut log = alone((0..50).chain(20..120));
    log.members[0].tell(
        5_010,
        Told::Seek {
            partition: 0,
            offset: 20,
        },
    );
    log
}

#[test]
fn what_is_sought_in_the_moment_of_its_completion_comes_again() {
    for order in [Order::Partition, Order::Key, Order::Unordered] {
        let mut log = alone((0..3).chain(0..120));
        log.order = order;
        let seek = Told::Seek {
            partition: 0,
            offset: 0,
        };
        let at = log.members[0].handled[0].at;
        log.members[0].tell(at, seek);
        let verdict = check(&log);
        assert_eq!(verdict.found(), [""; 0], "{order:?}: {verdict}");
    }
}

#[test]
fn a_seek_begins_again_at_its_offset_and_the_commit_comes_down_with_it() {
    let verdict = check(&sought());
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!((verdict.handled, verdict.repeats), (120, 0));
    assert_eq!(
        (verdict.restarts, verdict.sought, verdict.come_down),
        (1, 30, 1)
    );
    // Nobody has asked for it.
    let log = alone((0..50).chain(20..120));
    let found = check(&log).found();
    assert!(
        found.contains(&"disordered") && found.contains(&"rewound"),
        "{found:?}"
    );
}

#[test]
fn after_a_seek_records_and_commits_go_on_from_its_offset_and_no_other() {
    for wrong in [19, 21] {
        let mut log = sought();
        log.members[0]
            .told
            .retain(|(_, told)| !matches!(told, Told::Seek { .. }));
        log.members[0].tell(
            5_010,
            Told::Seek {
                partition: 0,
                offset: wrong,
            },
        );
        assert!(check(&log).found().contains(&"disordered"), "{wrong}");
    }
    let mut log = sought();
    log.commits.insert(10, commits(5_060, 19));
    assert_eq!(check(&log).found(), ["rewound"]);
    log.commits[10] = commits(5_060, 20);
    assert_eq!(check(&log).found(), [""; 0]);
    // It has come down, and it does so once.
    log.commits.insert(12, commits(5_560, 22));
    assert_eq!(check(&log).found(), ["rewound"]);
}

#[test]
fn what_was_sought_is_completed_again_before_it_is_committed_again() {
    let mut log = sought();
    log.commits.insert(10, commits(5_060, 50));
    assert_eq!(check(&log).found(), [""; 0], "it has not come down yet");
    log.commits[10] = commits(5_160, 50);
    assert_eq!(check(&log).found(), ["unsafe"], "a record was handed over");
}

#[test]
fn a_seek_that_nobody_follows_is_disorder() {
    let mut log = alone(0..150);
    log.members[0].tell(
        5_010,
        Told::Seek {
            partition: 0,
            offset: 20,
        },
    );
    assert_eq!(check(&log).found(), ["disordered"]);
    // It sleeps and does not know of it yet, or there is nobody to ask for the commit.
    log.members[0].stops.push(5_020..6_000);
    assert_eq!(check(&log).found(), [""; 0]);
}

#[test]
fn who_is_killed_between_a_seek_and_its_first_record_leaves_that_to_the_next_owner() {
    let mut log = takeover(Some((1_000, End::Killed)));
    log.members[0].tell(
        900,
        Told::Seek {
            partition: 0,
            offset: 2,
        },
    );
    log.members[1].handled.insert(0, handled(5_010, 3));
    log.members[1].handled.insert(0, handled(5_005, 2));
    log.commits.insert(1, commits(950, 2));
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!((verdict.sought, verdict.repeats), (4, 0));
    log.members[1].handled.insert(0, handled(5_003, 1));
    assert!(
        check(&log).found().contains(&"needless"),
        "not to before it"
    );
}

#[test]
fn a_seek_before_a_worker_has_the_partition_is_one_of_its_owner() {
    let seek = Told::Seek {
        partition: 0,
        offset: 2,
    };
    let mut log = takeover(Some((1_000, End::Left)));
    log.members[0]
        .told
        .push((990, Told::Committed(vec![(0, 6)])));
    log.members[1].handled = (2..10)
        .map(|offset| handled(5_000 + offset * 10, offset))
        .collect();
    log.commits = vec![commits(1_000, 6), commits(4_950, 2), commits(6_001, 10)];
    let found = check(&log).found();
    assert!(
        found.contains(&"rewound") && found.contains(&"needless"),
        "{found:?}"
    );
    let mut same = log.clone();
    same.members[1].tell(4_900, seek.clone());
    let verdict = check(&same);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!((verdict.sought, verdict.come_down), (4, 1));
    // It goes on, and no worker of the one who sought ever had it.
    let mut another = log;
    let mut between = Member {
        end: Some((4_960, End::Left)),
        ..Member::default()
    };
    between.tell(4_900, seek);
    another.members.push(between);
    let verdict = check(&another);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
}

#[test]
fn without_the_order_of_the_partition_a_seek_begins_again_in_any_order() {
    for order in [Order::Key, Order::Unordered] {
        let mut log = alone((0..50).chain([21, 20, 23, 22]).chain(24..120));
        log.order = order;
        log.commits
            .retain(|look| look.at < 5_100 || look.at > 5_700);
        log.members[0].tell(
            5_010,
            Told::Seek {
                partition: 0,
                offset: 20,
            },
        );
        let verdict = check(&log);
        assert_eq!(verdict.found(), [""; 0], "{order:?}: {verdict}");
        log.members[0].handled.push(handled(15_050, 119));
        assert!(check(&log).found().contains(&"disordered"), "{order:?}");
    }
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
    let mut planted = BTreeSet::new();
    let mut lost = takeover(Some((9_000, End::Left)));
    lost.members[0].told.push((200, Told::Lost(vec![0])));
    for log in [lost, alone(0..150), sought(), worker_dies()] {
        assert_eq!(check(&log).found(), [""; 0]);
        for fault in Fault::ALL {
            for seed in 0..20 {
                let mut doctored = log.clone();
                let mut random = fastrand::Rng::with_seed(seed);
                if !fault.plant(&mut doctored, &mut random) {
                    continue;
                }
                let found = check(&doctored).found();
                assert!(
                    found.contains(&fault.finding()),
                    "{fault:?}, {seed}: {found:?}"
                );
                planted.insert(format!("{fault:?}"));
            }
        }
    }
    assert_eq!(planted.len(), Fault::ALL.len(), "{planted:?}");
}

/// Member 0 has completed what lies below 6, with 4 committed, when its worker dies at 1,000; the next one begins at 4.
fn worker_dies() -> Log {
    let mut log = takeover(None);
    let new = log.members.remove(1);
    let old = &mut log.members[0];
    old.handled.extend(new.handled);
    old.told.push((1_000, Told::WorkerDied(vec![0])));
    old.told.push((6_000, Told::Committed(vec![(0, 10)])));
    old.end = Some((9_000, End::Left));
    log
}

#[test]
fn what_a_worker_that_died_had_not_told_comes_again_in_a_life_of_its_own() {
    let verdict = check(&worker_dies());
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!(
        (verdict.handled, verdict.repeats, verdict.uncommitted),
        (10, 2, 3)
    );
    assert_eq!((verdict.worker_deaths, verdict.ownerships), (1, 2));
}

#[test]
fn whose_worker_is_dead_when_it_wakes_has_taken_nothing_back_from_whoever_took_over() {
    let mut log = takeover(Some((9_000, End::Left)));
    let sleeper = &mut log.members[0];
    sleeper.stops.push(1_000..5_020);
    sleeper.tell(5_025, Told::WorkerDied(vec![0]));
    sleeper.tell(8_500, Told::Lost(vec![0]));
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    // But its next worker may not go on for long.
    log.members[0].handled.push(handled(8_000, 4));
    assert_eq!(check(&log).found(), ["stale", "needless"]);
}

#[test]
fn the_same_repeats_without_a_death_or_below_the_commit_are_found() {
    let mut log = worker_dies();
    log.members[0]
        .told
        .retain(|(_, told)| !matches!(told, Told::WorkerDied(_)));
    assert!(check(&log).found().contains(&"disordered"));

    let mut log = worker_dies();
    log.commits[0] = commits(900, 5);
    let verdict = check(&log);
    assert_eq!(verdict.found(), ["needless"], "{verdict}");
}

#[test]
fn within_the_life_after_a_death_the_order_holds_and_what_was_done_before_may_be_committed() {
    let mut log = worker_dies();
    // Told before the death, and confirmed after the next one has begun.
    log.commits.insert(1, commits(5_045, 6));
    log.members[0]
        .told
        .insert(3, (5_046, Told::Committed(vec![(0, 6)])));
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");

    log.members[0].handled.swap(7, 8);
    log.members[0].handled[7].at -= 10;
    log.members[0].handled[8].at += 10;
    assert_eq!(check(&log).found(), ["disordered"]);
}

#[test]
fn what_was_sought_before_a_worker_died_is_owed_by_the_next() {
    let mut log = worker_dies();
    let seek = Told::Seek {
        partition: 0,
        offset: 2,
    };
    log.members[0].tell(990, seek);
    log.members[0].handled.drain(6..);
    let again = (2..10).map(|offset| handled(5_000 + offset * 10, offset));
    log.members[0].handled.extend(again);
    let verdict = check(&log);
    assert_eq!(verdict.found(), [""; 0], "{verdict}");
    assert_eq!(verdict.restarts, 1);

    // The next one goes on as if nothing had been sought, for longer than one waits.
    let mut log = worker_dies();
    let seek = Told::Seek {
        partition: 0,
        offset: 2,
    };
    log.members[0].tell(990, seek);
    for record in &mut log.members[0].handled[6..] {
        record.at += 2 * PATIENCE;
    }
    log.members[0].told.pop();
    log.members[0].end = None;
    log.commits.pop();
    log.commits.push(commits(30_000, 10));
    assert!(check(&log).found().contains(&"disordered"));
}

#[test]
fn a_commit_that_was_refused_after_an_outage_may_come_again_and_no_other() {
    let mut log = alone(0..150);
    let committed = |log: &Log, at| {
        let look = log.commits.iter().rfind(|look| look.at <= at);
        look.and_then(|look| look.offsets[0]).expect("it is known")
    };
    // It has heard 500 ms after the broker came back, and one that is refused 1 s later comes again 1 s after that.
    log.outages.push(3_000..4_000);
    log.members[0]
        .told
        .retain(|(at, told)| !matches!(told, Told::Committed(_)) || *at < 3_000 || *at > 4_500);
    let offset = committed(&log, 4_500);
    log.members[0].tell(4_500, Told::Committed(vec![(0, offset)]));
    let before = committed(&log, 2_900);
    let seen = log.commits.iter_mut().find(|look| look.at >= 6_500);
    seen.expect("a look").offsets[0] = Some(before);
    assert!(check(&log).found().contains(&"rewound"));
    log.members[0].refused = vec![5_500];
    let verdict = check(&log);
    assert!(!verdict.found().contains(&"rewound"), "{verdict}");
}
