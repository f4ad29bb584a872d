//! What is read from three real brokers while leaders move, die, come back with less than they had, and send readers
//! to a replica nearby.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use keepup::{EventKind, Outcome, Record, ResetReason, Workers};
use rdkafka::Message;

use crate::support::kafka::{Isolation, Kafka};
use crate::support::records::numbers;
use crate::support::run::{Door, Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

/// Longer than an election, on a busy machine: what is tested here is reading, and not who is in the group.
const SESSION: (&str, &str) = ("session.timeout.ms", "45000");

/// Waits until all that the partitions have is committed.
fn await_commits(kafka: &Kafka, group: &str, topic: &str, ends: &[i64], events: &Events) {
    let ends: Vec<_> = ends.iter().copied().map(Some).collect();
    wait_until(PATIENT, "the commits", || {
        let committed = kafka.committed(group, topic);
        if committed == ends {
            Ok(())
        } else {
            Err(format!("{committed:?}{}", events.timeline()))
        }
    });
}

/// The name of a group whose coordinator is that broker.
fn coordinated_by(kafka: &Kafka, topic: &str, broker: i32) -> String {
    // The first question about a group makes the topic that says so.
    kafka.committed("anybody", topic);
    let names = (0..100).map(|number| format!("group-{number}"));
    let mut found = names.filter(|name| kafka.coordinator(name) == Some(broker));
    found.next().expect("there are many names")
}

/// The name of a group whose coordinator is none of those brokers, which go or freeze: a member that is lost meanwhile
/// starts anew at its commit, which carries no leader epoch.
fn coordinated_by_a_bystander(kafka: &Kafka, topic: &str, busy: &[i32]) -> String {
    let bystander = (1..=3).find(|broker| !busy.contains(broker));
    coordinated_by(kafka, topic, bystander.expect("not all three are busy"))
}

#[test]
fn s28_leaders_that_move_under_load_skip_nothing_and_leave_no_partition_behind() {
    let kafka = kafka!(three);
    let topic = "s28-leaders";
    topic_of_numbers(&kafka, topic, 6, 200);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(&kafka, topic, topic, &events)
        .workers(Workers::Fixed(2))
        .property(SESSION.0, SESSION.1)
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(SOON, 6, 200);

    // Each broker hands over what it leads, or dies with it, while records come; then it is back, and a follower.
    // What it sends again because a leader died is written once all the same.
    let producer = kafka.producer(&[("enable.idempotence", "true")]);
    let mut records = 200;
    for broker in 1..=3 {
        let moving = std::thread::scope(|scope| {
            let moving = scope.spawn(|| {
                if broker == 2 {
                    kafka.kill_broker(broker);
                } else {
                    kafka.shut_down_broker(broker);
                }
                kafka.restart_broker(broker);
            });
            while !moving.is_finished() {
                producer.send_numbers(topic, 6, records..records + 20);
                producer.flush();
                records += 20;
            }
            moving.join()
        });
        moving.expect("the broker goes and comes");
    }
    let total = i64::try_from(records).expect("a few");
    finished.await_each(PATIENT, 6, total);
    await_commits(&kafka, topic, topic, &[total; 6], &events);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(
        (report.exit_code(), report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    finished.assert_each_once(6, total);
}

#[test]
fn s28_a_leader_that_freezes_is_left_for_the_next_one_without_waiting_for_its_answer() {
    let kafka = kafka!(three);
    let topic = "s28-frozen";
    topic_of_numbers(&kafka, topic, 3, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(&kafka, topic, topic, &events)
        .workers(Workers::Fixed(1))
        .property(SESSION.0, SESSION.1)
        .start(finished.handlers())
        .expect("the run starts");
    finished.await_each(SOON, 3, 100);
    let frozen = kafka.leader(topic, 0).expect("it has a leader");
    kafka.stop_broker(frozen);
    let producer = kafka.producer(&[("enable.idempotence", "true")]);
    producer.send_numbers(topic, 3, 100..200);
    producer.flush();
    finished.await_each(PATIENT, 3, 200);
    kafka.cont_broker(frozen);
    await_commits(&kafka, topic, topic, &[200; 3], &events);
    handle.stop();
    end_of(handle, SOON);
    finished.assert_each_once(3, 200);
}

#[test]
fn a_replica_in_the_same_rack_is_read_from_and_left_when_it_goes() {
    let test = test_name!();
    let racks = [
        "broker.rack=rack-{id}",
        "replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector",
        // A leader that is frozen stays the leader.
        "broker.session.timeout.ms=60000",
    ];
    let Some(kafka) = Kafka::start(test, 3, &racks) else {
        return;
    };
    let topic = "replica-nearby";
    kafka.create_topic(topic, 1, &[]);
    // Far more than what a source holds of a partition.
    let producer = kafka.producer(&[]);
    let payload = vec![b'x'; 10_000];
    let send = |count| {
        for _ in 0..count {
            let record = rdkafka::producer::BaseRecord::to(topic).partition(0);
            producer.send(record.payload(&payload));
        }
        producer.flush();
    };
    send(2_000);
    let leader = kafka.leader(topic, 0).expect("it has a leader");
    let nearby = leader % 3 + 1;
    let group = coordinated_by(&kafka, topic, nearby % 3 + 1);
    let (events, finished, door) = (Events::default(), Tally::default(), Door::default());
    let handle = {
        let (finished, door) = (finished.clone(), door.clone());
        builder(&kafka, &group, topic, &events)
            .workers(Workers::Fixed(1))
            .property(SESSION.0, SESSION.1)
            .property("client.rack", format!("rack-{nearby}"))
            .start(move |_| {
                let (finished, door) = (finished.clone(), door.clone());
                move |record: &Record<'_>| {
                    finished.note(record);
                    door.pass();
                    Outcome::Done
                }
            })
            .expect("the run starts")
    };
    finished.await_len(SOON, 1);
    // From here on the leader answers nobody: all that is not here yet comes from the replica.
    kafka.stop_broker(leader);
    let frozen = Instant::now();
    door.open();
    finished.await_each(PATIENT, 1, 2_000);
    let took = frozen.elapsed();
    println!("2000 records of 10 kB from the replica after {took:?}");
    kafka.cont_broker(leader);
    assert_eq!(kafka.leader(topic, 0), Some(leader), "it led all the time");

    // The replica dies: the leader is asked again, though it names the replica for a while.
    kafka.kill_broker(nearby);
    send(100);
    finished.await_each(PATIENT, 1, 2_100);
    kafka.restart_broker(nearby);
    send(100);
    finished.await_each(PATIENT, 1, 2_200);
    await_commits(&kafka, &group, topic, &[2_200], &events);
    handle.stop();
    end_of(handle, SOON);
    finished.assert_each_once(1, 2_200);
}

/// What handlers saw, by value: offsets come again where a log was cut off.
#[derive(Clone, Default)]
struct Values(Arc<Mutex<Vec<(i64, String)>>>);

impl Values {
    fn note(&self, record: &Record<'_>) {
        let value = String::from_utf8_lossy(record.value().unwrap_or_default()).into_owned();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push((record.offset(), value));
    }

    fn all(&self) -> Vec<(i64, String)> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

#[test]
fn an_unclean_election_skips_nothing_of_what_the_new_leader_has() {
    let kafka = kafka!(three);
    let topic = "unclean";
    kafka.create_replicated_topic(topic, 1, 2, &[("unclean.leader.election.enable", "true")]);
    let producer = kafka.producer(&[]);
    let send = |range: std::ops::Range<u64>| {
        producer.send_numbers_to(topic, 0, range);
        producer.flush();
    };
    send(0..100);
    let leader = kafka.leader(topic, 0).expect("it has a leader");
    let replicas = kafka.replicas(topic, 0);
    let group = coordinated_by_a_bystander(&kafka, topic, &replicas);
    let values = Values::default();
    let events = Events::default();
    let handle = {
        let values = values.clone();
        builder(&kafka, &group, topic, &events)
            .workers(Workers::Fixed(1))
            .property(SESSION.0, SESSION.1)
            .start(move |_| {
                let values = values.clone();
                move |record: &Record<'_>| {
                    values.note(record);
                    Outcome::Done
                }
            })
            .expect("the run starts")
    };
    let await_value = |value: &str| {
        wait_until(PATIENT, value, || {
            let seen = values.all();
            if seen.iter().any(|(_, it)| it == value) {
                Ok(())
            } else {
                Err(seen.last().cloned())
            }
        });
    };
    await_value("99");

    // The follower goes, and the leader takes records alone.
    let follower = *replicas
        .iter()
        .find(|&&replica| replica != leader)
        .expect("there are two");
    kafka.shut_down_broker(follower);
    send(100..150);
    await_value("149");
    // The leader answers nobody, and the follower comes back with what it had.
    kafka.stop_broker(leader);
    kafka.restart_broker(follower);
    wait_until(PATIENT, "an unclean election", || {
        let now = kafka.leader(topic, 0);
        if now == Some(follower) {
            Ok(())
        } else {
            Err(now)
        }
    });
    // Past where the run stands: who asks for 150 and no more would skip fifty of these.
    send(1_000..1_080);
    await_value("1079");
    kafka.cont_broker(leader);
    wait_for(PATIENT, "the end of the log to be the new leader's", || {
        kafka.end_offsets(topic) == [180]
    });
    await_commits(&kafka, &group, topic, &[180], &events);
    handle.stop();
    end_of(handle, SOON);

    // Whatever came before the cut may come again; all that came after it comes once, in order.
    let seen = values.all();
    let first: Vec<_> = (0..150)
        .map(|number| (number, number.to_string()))
        .collect();
    assert_eq!(seen[..150], first);
    let after: Vec<_> = seen
        .iter()
        .filter(|(_, value)| value.parse::<i64>().is_ok_and(|value| value >= 1_000))
        .cloned()
        .collect();
    let expected: Vec<_> = (0..80)
        .map(|index| (100 + index, (1_000 + index).to_string()))
        .collect();
    assert_eq!(after, expected, "{}", events.timeline());
    let resets = events.pick(|event| match event.kind {
        EventKind::PositionReset {
            from,
            to,
            policy,
            reason,
            ..
        } => Some((from, to, policy, reason)),
        _ => None,
    });
    let timeline = events.timeline();
    assert_eq!(
        resets,
        [(150, 100, "truncation", ResetReason::Truncated)],
        "{timeline}"
    );
    let warnings = events.warnings();
    assert!(
        warnings.iter().any(|it| it.contains("100 to 149")),
        "what is gone is named: {timeline}"
    );
}

#[test]
fn s35_interleaved_transactions_over_leaders_that_die_give_committed_records_once() {
    let kafka = kafka!(three);
    let topic = "s35-interleaved";
    kafka.create_topic(topic, 3, &[]);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(&kafka, topic, topic, &events)
        .workers(Workers::Fixed(2))
        .property(SESSION.0, SESSION.1)
        .start(finished.handlers())
        .expect("the run starts");
    let ids = ["a", "b", "c", "d"];
    let producers = ids.map(|id| kafka.transactional(&format!("{topic}-{id}")));
    let plain = kafka.producer(&[]);
    for round in 0..12_u64 {
        for (place, producer) in (0..).zip(&producers) {
            producer.begin();
            let number = round * 100 + place * 10;
            for partition in 0..3 {
                producer.send_numbers_to(topic, partition, number..number + 3);
            }
            producer.flush();
        }
        plain.send_numbers(topic, 3, round * 100 + 90..round * 100 + 92);
        plain.flush();
        for (place, producer) in (0..).zip(&producers) {
            for partition in 0..3 {
                let number = round * 100 + place * 10 + 5;
                producer.send_numbers_to(topic, partition, number..number + 2);
            }
            producer.flush();
            // Two of four are aborted, each round others.
            if (round + place) % 4 < 2 {
                producer.abort();
            } else {
                producer.commit();
            }
        }
        if round == 5 {
            let leader = kafka.leader(topic, 0).expect("it has a leader");
            kafka.kill_broker(leader);
            plain.send_numbers(topic, 3, 10_000..10_001);
            plain.flush();
            kafka.restart_broker(leader);
        }
    }
    // At the tail nothing but an aborted transaction and its markers.
    let [a, ..] = &producers;
    a.begin();
    a.send_numbers(topic, 3, 20_000..20_003);
    a.abort();

    let ends = kafka.stable_offsets(topic);
    await_commits(&kafka, topic, topic, &ends, &events);
    wait_until(PATIENT, "a lag of zero", || {
        let lags: BTreeMap<_, _> = handle
            .partitions()
            .iter()
            .map(|view| (view.partition.partition(), view.position))
            .collect();
        let at_end = (0..)
            .zip(&ends)
            .all(|(partition, &end)| lags.get(&partition).copied().flatten() == Some(end));
        if at_end { Ok(()) } else { Err(lags) }
    });
    handle.stop();
    end_of(handle, SOON);
    for (partition, messages) in (0..).zip(kafka.read(topic, Isolation::Committed)) {
        let offsets: Vec<_> = messages.iter().map(Message::offset).collect();
        assert_eq!(finished.of(partition), offsets, "partition {partition}");
        let aborted = |number: &u64| {
            let (round, place) = (number / 100, number / 10 % 10);
            *number >= 20_000 || (*number < 10_000 && place < 4 && (round + place) % 4 < 2)
        };
        assert!(!numbers(&messages).iter().any(aborted));
    }
}
