//! What a rebalance may and may not do to records in hand: real groups over the shared broker, under every protocol.

use std::time::{Duration, Instant};

use keepup::{EventKind, Outcome, TopicPartition};

use crate::support::kafka::Kafka;
use crate::support::members::{Member, Protocol, Tally};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

const ALL: std::ops::Range<i64> = 0..20;

fn in_order() -> Vec<i64> {
    ALL.collect()
}

fn index(partition: i32) -> usize {
    usize::try_from(partition).expect("it is positive")
}

per_protocol! {
    s01_a_revoke_waits_for_the_record_in_hand_and_nothing_is_delivered_twice {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s01_a_partition_that_let_go_is_not_worked_on_while_others_of_its_revoke_drain {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s02_a_handler_that_overruns_the_deadline_does_not_hold_up_the_revoke_and_its_result_is_not_committed {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s04_a_partition_that_comes_back_waits_for_the_handler_of_its_former_life {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
    s07_after_a_revoke_only_the_new_owner_commits {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
    s11_a_pause_ends_with_the_assignment {
        Cooperative => cooperative,
        Eager => eager,
        Consumer => kip_848,
    }
}

fn s01_a_revoke_waits_for_the_record_in_hand_and_nothing_is_delivered_twice(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let doors = [tally.close("a", 0, 5), tally.close("a", 1, 5)];
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.revoke_deadline(Duration::from_secs(40))
    };
    let a = Member::start("a", run(), &tally);
    tally.wait_for_knocks(&doors);

    let b = Member::start("b", run(), &tally);
    a.wait_for_revoke(topic, &[0, 1]);
    assert!(tally.offsets_by("b", topic, 0).is_empty());
    assert!(tally.offsets_by("b", topic, 1).is_empty());
    tally.open_all();

    tally.wait_for_all(topic, 0..2, ALL);
    let moved = b.wait_for_partitions(1)[0];
    for partition in 0..2 {
        assert_eq!(tally.offsets(topic, partition), in_order(), "{partition}");
    }
    let by_b = tally.offsets_by("b", topic, moved);
    assert!(by_b.is_empty() || by_b[0] > 5, "{by_b:?}");
    for member in [a, b] {
        let report = member.stop();
        assert!(
            report.left_group && report.left_uncommitted == 0,
            "{report:?}"
        );
    }
    assert_eq!(kafka.committed(topic, topic), [Some(20), Some(20)]);
}

fn s01_a_partition_that_let_go_is_not_worked_on_while_others_of_its_revoke_drain(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 4, 0..20);
    let tally = Tally::default();
    let doors: Vec<_> = (0..4)
        .map(|partition| tally.close("a", partition, 5))
        .collect();
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.revoke_deadline(Duration::from_secs(40))
    };
    let a = Member::start("a", run(), &tally);
    tally.wait_for_knocks(&doors);
    let b = Member::start("b", run(), &tally);
    let revoked = a.wait_for_revoke(topic, &[0, 1, 2, 3]);
    // A member may be asked for its partitions one by one under KIP-848.
    let (first, others) = revoked.split_first().expect("at least one");
    tally.open(doors[index(*first)]);

    let released = |partition| {
        let which = TopicPartition::new(topic, partition);
        let released = tally.events("a", |event| match &event.kind {
            EventKind::PartitionsRevoked { partitions, .. } => Some(partitions.contains(&which)),
            _ => None,
        });
        released.contains(&true)
    };
    wait_for(SOON, "the first worker to let go", || released(*first));
    if !others.is_empty() {
        // The others still drain. Should a worker have been given the partition anew, it would handle all of it now,
        // at the speed of a local fetch; a whole rebalance's time is left to it.
        let until = Instant::now() + Duration::from_secs(1);
        wait_for(SOON, "time to pass", || Instant::now() >= until);
        assert_eq!(tally.offsets(topic, *first), (0..6).collect::<Vec<_>>());
    }
    tally.open_all();

    tally.wait_for_all(topic, 0..4, ALL);
    b.wait_for_partitions(2);
    a.wait_for_partitions(2);
    for partition in 0..4 {
        assert_eq!(tally.offsets(topic, partition), in_order(), "{partition}");
    }
    a.stop();
    b.stop();
    assert_eq!(kafka.committed(topic, topic), [Some(20); 4]);
}

fn s02_a_handler_that_overruns_the_deadline_does_not_hold_up_the_revoke_and_its_result_is_not_committed(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let at_a = [tally.close("a", 0, 5), tally.close("a", 1, 5)];
    let at_b = [tally.close("b", 0, 5), tally.close("b", 1, 5)];
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.revoke_deadline(Duration::from_millis(500))
    };
    let a = Member::start("a", run(), &tally);
    tally.wait_for_knocks(&at_a);

    let b = Member::start("b", run(), &tally);
    let moved = wait_until(PATIENT, "the other member to begin", || {
        let begun = |partition: &i32| !tally.offsets_by("b", topic, *partition).is_empty();
        (0..2).find(begun).ok_or(tally.summary())
    });
    let kept = 1 - moved;
    let (moved_at, kept_at) = (index(moved), index(kept));
    tally.wait_for_knock(at_b[moved_at]);
    assert_eq!(
        tally.offsets_by("b", topic, moved),
        [5],
        "exactly the record in hand is delivered again"
    );
    assert_eq!(tally.offsets_by("a", topic, moved), [0, 1, 2, 3, 4, 5]);

    // The late handler returns while the new owner has the record in hand. What is committed of the partition that
    // stayed shows that the late member's committer has run since.
    tally.open(at_a[moved_at]);
    tally.open(at_a[kept_at]);
    let mut expected = [None; 2];
    expected[moved_at] = Some(5);
    expected[kept_at] = Some(20);
    kafka.wait_for_commits(topic, topic, &expected);
    let late = tally.of(topic, moved);
    assert!(
        late.iter()
            .any(|h| h.member == "a" && h.offset == 5 && h.returned),
        "{late:?}"
    );

    tally.open_all();
    tally.wait_for_all(topic, 0..2, ALL);
    let mut twice = in_order();
    twice.insert(5, 5);
    assert_eq!(tally.offsets(topic, moved), twice);
    // Under the eager protocol the partition that A keeps was taken from its late handler too.
    let revoked = protocol == Protocol::Eager;
    let expected = if revoked { twice } else { in_order() };
    assert_eq!(tally.offsets(topic, kept), expected);
    let warned = tally.events("a", |event| match &event.kind {
        EventKind::Warning { message } => Some(message.contains("within the revoke deadline")),
        _ => None,
    });
    assert!(warned.contains(&true), "a person is told");
    a.stop();
    b.stop();
    assert_eq!(kafka.committed(topic, topic), [Some(20), Some(20)]);
}

fn s04_a_partition_that_comes_back_waits_for_the_handler_of_its_former_life(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let doors = [tally.close("a", 0, 5), tally.close("a", 1, 5)];
    let run = || {
        let run = kafka.run_of(topic, topic, protocol);
        run.revoke_deadline(Duration::from_millis(300))
    };
    let a = Member::start("a", run(), &tally);
    tally.wait_for_knocks(&doors);
    // B takes one partition, completes nothing of it, and goes.
    let b = Member::start_with("b", run(), &tally, |_| {
        Outcome::retry_after(Duration::from_mins(1), "not here")
    });
    let moved = wait_until(PATIENT, "the other member to begin", || {
        let begun = |partition: &i32| !tally.offsets_by("b", topic, *partition).is_empty();
        (0..2).find(begun).ok_or(tally.summary())
    });
    let at = index(moved);
    b.stop();

    let which = TopicPartition::new(topic, moved);
    wait_until(PATIENT, "the partition to come back", || {
        let views = a.handle().partitions();
        match views.iter().find(|view| view.partition == which) {
            // It has a position again, and nobody works on it: its old worker is still in the handler.
            Some(view) if view.watermark.is_some() => {
                assert_eq!((view.worker, view.watermark), (None, Some(5)));
                Ok(())
            }
            _ => Err(views),
        }
    });
    // The record comes again, to the new life of the partition, and is held there again.
    let again = tally.offsets_by("a", topic, moved);
    assert_eq!(
        again,
        [0, 1, 2, 3, 4, 5],
        "not before the old handler returned"
    );
    let second = {
        let seen = tally.offsets_by("a", topic, moved).len();
        tally.let_one_through(doors[at]);
        wait_for(SOON, "the record to be handed over again", || {
            tally.offsets_by("a", topic, moved).len() > seen
        });
        tally.of(topic, moved)
    };
    assert!(
        second
            .iter()
            .any(|h| h.member == "a" && h.offset == 5 && h.returned),
        "the old handler returned: {second:?}"
    );
    // The other partition goes on and is committed; this one stands where it was, whatever the old handler said.
    tally.open(doors[1 - at]);
    let mut expected = [None; 2];
    expected[at] = Some(5);
    expected[1 - at] = Some(20);
    kafka.wait_for_commits(topic, topic, &expected);
    assert_eq!(tally.offsets_by("a", topic, moved).len(), 7);

    tally.open_all();
    tally.wait_for_all(topic, 0..2, ALL);
    let mut twice = in_order();
    twice.insert(5, 5);
    assert_eq!(tally.offsets_by("a", topic, moved), twice);
    assert_eq!(tally.offsets(topic, 1 - moved), in_order());
    a.stop();
    assert_eq!(kafka.committed(topic, topic), [Some(20), Some(20)]);
}

fn s07_after_a_revoke_only_the_new_owner_commits(kafka: &Kafka, topic: &str, protocol: Protocol) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let run = || kafka.run_of(topic, topic, protocol);
    let a = Member::start("a", run(), &tally);
    tally.wait_for_all(topic, 0..2, ALL);
    let b = Member::start("b", run(), &tally);
    let moved = b.wait_for_partitions(1)[0];
    let kept = a.wait_for_partitions(1)[0];
    assert_eq!(kept, 1 - moved);
    let told = tally.commits_by("a", topic, moved).len();

    kafka.fill(topic, 2, 20..40);
    tally.wait_for_all(topic, 0..2, 0..40);
    kafka.wait_for_commits(topic, topic, &[Some(40), Some(40)]);
    // The handle of a member refuses what the member does not own any more.
    let which = TopicPartition::new(topic, moved);
    assert!(a.handle().seek(&which, 0).is_err());
    assert!(a.handle().pause(std::slice::from_ref(&which)).is_err());
    let by_a = tally.commits_by("a", topic, moved);
    assert!(by_a[told..].iter().all(|&offset| offset <= 20), "{by_a:?}");
    for (member, partition) in [("a", kept), ("b", moved)] {
        wait_until(SOON, "the owner to be told of its commit", || {
            let commits = tally.commits_by(member, topic, partition);
            if commits.last() == Some(&40) {
                Ok(())
            } else {
                Err(commits)
            }
        });
        let commits = tally.commits_by(member, topic, partition);
        assert!(commits.is_sorted(), "never backwards: {commits:?}");
    }
    a.stop();
    b.stop();
    for partition in 0..2 {
        assert_eq!(tally.offsets(topic, partition), (0..40).collect::<Vec<_>>());
    }
    assert_eq!(kafka.committed(topic, topic), [Some(40), Some(40)]);
}

fn s11_a_pause_ends_with_the_assignment(kafka: &Kafka, topic: &str, protocol: Protocol) {
    kafka.filled_topic(topic, 2, 0..20);
    let tally = Tally::default();
    let run = || kafka.run_of(topic, topic, protocol);
    let a = Member::start("a", run(), &tally);
    tally.wait_for_all(topic, 0..2, ALL);
    a.wait_for_partitions(2);
    let both = [0, 1].map(|partition| TopicPartition::new(topic, partition));
    a.handle().pause(&both).expect("both are ours");
    assert!(a.handle().partitions().iter().all(|view| view.paused));
    kafka.fill(topic, 2, 20..40);

    let b = Member::start("b", run(), &tally);
    let moved = b.wait_for_partitions(1)[0];
    let kept = 1 - moved;
    // The pause was A's: the new owner goes on.
    tally.wait_for_all(topic, moved..moved + 1, 0..40);
    let still_paused = protocol != Protocol::Eager;
    if still_paused {
        assert_eq!(
            tally.offsets(topic, kept),
            in_order(),
            "what stayed stays paused"
        );
    } else {
        tally.wait_for_all(topic, kept..kept + 1, 0..40);
    }

    b.stop();
    a.wait_for_partitions(2);
    let views = a.handle().partitions();
    let back = views
        .iter()
        .find(|view| view.partition == both[index(moved)]);
    assert!(back.is_some_and(|view| !view.paused), "{views:?}");
    kafka.fill(topic, 2, 40..60);
    tally.wait_for_all(topic, moved..moved + 1, 0..60);
    if still_paused {
        assert_eq!(tally.offsets(topic, kept), in_order());
        a.handle().resume(&both).expect("both are ours");
    }
    tally.wait_for_all(topic, 0..2, 0..60);
    for partition in 0..2 {
        let offsets = tally.offsets(topic, partition);
        assert_eq!(offsets, (0..60).collect::<Vec<_>>(), "once, in order");
    }
    a.stop();
    assert_eq!(kafka.committed(topic, topic), [Some(60), Some(60)]);
}

#[test]
fn s09_when_the_session_expires_nothing_is_committed_and_the_member_goes_on_after_its_rejoin() {
    let kafka = kafka!(patient);
    let topic = "s09-lost";
    kafka.filled_topic(topic, 1, 0..20);
    let tally = Tally::default();
    let door = tally.close("a", 0, 5);
    let a = Member::start(
        "a",
        kafka.run_of(topic, topic, Protocol::Cooperative),
        &tally,
    );
    tally.wait_for_knock(door);
    kafka.wait_for_commits(topic, topic, &[Some(5)]);

    // Nothing answers any more; the client gives its session up by itself.
    kafka.stop_broker(1);
    a.wait_for_revoke(topic, &[0]);
    kafka.cont_broker(1);
    // It has the partition again, and its old handler is still at work.
    wait_until(PATIENT, "the partition to come back", || {
        let views = a.handle().partitions();
        match &views[..] {
            [view] if view.watermark.is_some() => {
                assert_eq!((view.worker, view.watermark), (None, Some(5)));
                Ok(())
            }
            _ => Err(views),
        }
    });
    tally.let_one_through(door);
    wait_for(SOON, "the record to be handed over again", || {
        tally.offsets(topic, 0).len() == 7
    });
    let lost = tally.events("a", |event| match &event.kind {
        EventKind::PartitionsLost { partitions } => Some(partitions.clone()),
        _ => None,
    });
    assert_eq!(lost, [[TopicPartition::new(topic, 0)]]);
    // The old handler has returned, the new one has not: nothing was completed.
    assert_eq!(kafka.committed(topic, topic), [Some(5)]);

    tally.open_all();
    tally.wait_for_all(topic, 0..1, ALL);
    let mut twice = in_order();
    twice.insert(5, 5);
    assert_eq!(tally.offsets(topic, 0), twice);
    let report = a.stop();
    assert_eq!(report.left_uncommitted, 0);
    assert_eq!(kafka.committed(topic, topic), [Some(20)]);
}
