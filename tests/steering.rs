//! What a handle can ask of a run, and runs that end by themselves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keepup::{
    Assignment, CommandError, EventKind, Record, Records, StopReason, TopicPartition, Workers,
};

use crate::support::kafka::Kafka;
use crate::support::run::{
    Door, Events, SLACK, Tally, builder, end_of, topic_of_numbers, work_for,
};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

/// A run that notes every record, and takes `each` over it.
fn noting(
    kafka: &Kafka,
    name: &str,
    workers: Workers,
    each: Duration,
) -> (keepup::Handle, Events, Tally) {
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .workers(workers)
        .start({
            let finished = finished.clone();
            move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| {
                    work_for(each);
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    (handle, events, finished)
}

fn send_numbers(kafka: &Kafka, topic: &str, partitions: i32, numbers: std::ops::Range<u64>) {
    let producer = kafka.producer(&[]);
    producer.send_numbers(topic, partitions, numbers);
    producer.flush();
}

#[test]
fn s29_pause_stops_a_partition_alone_and_resume_goes_on_without_a_rewind() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "s29", 3, 100);
    let (handle, _, finished) = noting(kafka, "s29", Workers::Fixed(1), Duration::ZERO);
    finished.await_len(SOON, 300);

    // Not paused: nothing happens.
    let partition = |number| TopicPartition::new("s29", number);
    handle
        .resume(&[partition(0), partition(2)])
        .expect("they are ours");
    handle.pause(&[partition(1)]).expect("it is ours");
    wait_for(SOON, "the pause to be shown", || {
        handle.partitions()[1].paused
    });
    send_numbers(kafka, "s29", 3, 100..200);
    wait_for(SOON, "the others to go on", || {
        finished.of(0).len() == 200 && finished.of(2).len() == 200
    });
    // Twice as long as a fetch waits.
    work_for(Duration::from_secs(1));
    assert_eq!(finished.of(1).len(), 100, "it is paused");

    handle.resume(&[partition(1)]).expect("it is ours");
    handle.resume(&[partition(1)]).expect("it is ours");
    finished.await_len(SOON, 600);
    let strange = partition(3);
    assert_eq!(
        handle.pause(&[partition(0), strange.clone()]),
        Err(CommandError::NotAssigned(strange))
    );
    assert!(!handle.partitions()[0].paused, "all or none");
    send_numbers(kafka, "s29", 3, 200..300);
    finished.await_len(SOON, 900);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    finished.assert_each_once(3, 300);
    assert_eq!(kafka.committed("s29", "s29"), [Some(300); 3]);
}

#[test]
fn a_pause_in_the_middle_of_a_batch_takes_effect_after_the_record_in_hand() {
    let kafka = kafka!(shared);
    let name = "pause-in-hand";
    topic_of_numbers(kafka, name, 1, 100);
    let (events, started, door) = (Events::default(), Tally::default(), Door::default());
    let handle = builder(kafka, name, name, &events)
        .start({
            let (started, door) = (started.clone(), door.clone());
            move |_| {
                let (started, door) = (started.clone(), door.clone());
                move |record: &Record<'_>| {
                    started.note(record);
                    if record.offset() == 10 {
                        door.pass();
                    }
                }
            }
        })
        .expect("the run starts");
    started.await_len(SOON, 11);
    let partitions = [TopicPartition::new(name, 0)];
    handle.pause(&partitions).expect("it is ours");
    door.open();
    wait_until(SOON, "the record in hand to be finished", || {
        let watermark = handle.partitions()[0].watermark;
        if watermark == Some(11) {
            Ok(())
        } else {
            Err(watermark)
        }
    });
    work_for(Duration::from_millis(500));
    assert_eq!(started.len(), 11, "no record was started after it");
    handle.resume(&partitions).expect("it is ours");
    started.await_len(SOON, 100);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(report.left_uncommitted, 0);
    started.assert_each_once(1, 100);
}

#[test]
fn a_seek_backwards_outlives_the_process() {
    let kafka = kafka!(shared);
    let name = "seeks-for-good";
    topic_of_numbers(kafka, name, 1, 100);
    let partition = TopicPartition::new(name, 0);
    let (handle, _, finished) = noting(kafka, name, Workers::Fixed(1), Duration::ZERO);
    finished.await_len(SOON, 100);
    kafka.await_committed(name, name, &[Some(100)]);
    handle
        .pause(std::slice::from_ref(&partition))
        .expect("it is ours");
    handle.seek(&partition, 30).expect("it is ours");
    kafka.await_committed(name, name, &[Some(30)]);
    // As good as killed: nothing was handled since.
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(kafka.committed(name, name), [Some(30)]);

    let (handle, _, again) = noting(kafka, name, Workers::Fixed(1), Duration::ZERO);
    again.await_len(SOON, 70);
    handle.stop();
    end_of(handle, SOON);
    assert_eq!(again.of(0), (30..100).collect::<Vec<_>>());
}

#[test]
fn a_seek_goes_forward_and_back() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "seeks", 2, 100);
    let (handle, _, finished) = noting(kafka, "seeks", Workers::Fixed(2), Duration::ZERO);
    finished.await_len(SOON, 200);
    let partition = TopicPartition::new("seeks", 0);

    handle.seek(&partition, 70).expect("it is ours");
    finished.await_len(SOON, 230);
    assert_eq!(
        finished.of(0)[100..],
        (70..100).collect::<Vec<_>>(),
        "backwards"
    );

    handle
        .pause(std::slice::from_ref(&partition))
        .expect("it is ours");
    send_numbers(kafka, "seeks", 1, 100..200);
    handle.seek(&partition, 150).expect("it is ours");
    assert!(handle.partitions()[0].paused, "a seek does not resume");
    handle
        .resume(std::slice::from_ref(&partition))
        .expect("it is ours");
    finished.await_len(SOON, 280);
    assert_eq!(
        finished.of(0)[130..],
        (150..200).collect::<Vec<_>>(),
        "forwards"
    );

    let negative = handle
        .seek(&partition, -1)
        .expect_err("offsets count from 0");
    assert!(matches!(negative, CommandError::Invalid(_)), "{negative}");
    let strange = TopicPartition::new("seeks", 9);
    assert_eq!(
        handle.seek(&strange, 0),
        Err(CommandError::NotAssigned(strange.clone()))
    );
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(report.records, 280);
    assert_eq!(kafka.committed("seeks", "seeks"), [Some(200), Some(100)]);
    assert_eq!(finished.of(1), (0..100).collect::<Vec<_>>());
}

#[test]
fn scale_moves_partitions_between_workers_without_a_rebalance() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "scales", 12, 2_000);
    let each = Duration::from_micros(50);
    let (handle, events, finished) = noting(kafka, "scales", Workers::Fixed(2), each);
    let holders = |handle: &keepup::Handle| -> BTreeSet<Option<usize>> {
        let partitions = handle.partitions();
        partitions
            .iter()
            .map(|partition| partition.worker)
            .collect()
    };
    let spread_over = |workers: usize| {
        handle
            .scale(Workers::Fixed(workers))
            .expect("a number of workers");
        wait_until(SOON, "the partitions to be spread", || {
            let expected: BTreeSet<_> = (0..workers).map(Some).collect();
            let seen = (holders(&handle), handle.workers());
            if seen == (expected, workers) {
                Ok(())
            } else {
                Err(seen)
            }
        });
    };
    finished.await_len(SOON, 500);
    let mut seen = 0;
    for workers in [6, 1, 4] {
        spread_over(workers);
        // It goes on under each number.
        seen = (seen + 500).max(finished.len() + 500);
        finished.await_len(SOON, seen.min(24_000));
    }
    assert!(handle.scale(Workers::Fixed(0)).is_err());
    finished.await_each(PATIENT, 12, 2_000);
    handle.stop();
    let (report, _) = end_of(handle, SOON);

    finished.assert_each_once(12, 2_000);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 24_000, 0)
    );
    assert_eq!(kafka.committed("scales", "scales"), [Some(2_000); 12]);
    assert_eq!(events.assigned().len(), 12, "the group assigned them once");
    let (mut moved_out, mut moved_in, mut revoked) = (0, 0, 0);
    for event in events.all() {
        match event.kind {
            EventKind::PartitionsRevoked { partitions, local } if local => {
                moved_out += partitions.len();
            }
            EventKind::PartitionsRevoked { partitions, .. } => revoked += partitions.len(),
            EventKind::PartitionsAssigned { partitions, local } if local => {
                moved_in += partitions.len();
            }
            _ => {}
        }
    }
    assert_eq!(moved_in, moved_out, "{}", events.timeline());
    assert!(moved_in >= 8 + 10 + 9, "{moved_in} moves");
    assert_eq!(revoked, 12, "when the run stopped");
    assert_eq!(events.count("partitions_lost"), 0);
}

#[test]
fn a_static_assignment_is_disjoint_complete_and_takes_new_partitions() {
    let kafka = kafka!(shared);
    let name = "static-in-process";
    topic_of_numbers(kafka, name, 5, 200);
    let start = |index| {
        let (events, finished) = (Events::default(), Tally::default());
        let handle = builder(kafka, name, name, &events)
            .assignment(Assignment::Static { index, of: 2 })
            .property("topic.metadata.refresh.interval.ms", "1000")
            .start(finished.handlers())
            .expect("the run starts");
        (handle, finished)
    };
    let partitions_of = |tally: &Tally| -> BTreeSet<i32> {
        tally.all().iter().map(|seen| seen.partition).collect()
    };
    let (even, odd) = (start(0), start(1));
    even.1.await_len(SOON, 600);
    odd.1.await_len(SOON, 400);
    assert_eq!(partitions_of(&even.1), [0, 2, 4].into());
    assert_eq!(partitions_of(&odd.1), [1, 3].into());
    wait_until(SOON, "the commits", || {
        let committed = kafka.committed(name, name);
        if committed == [Some(200); 5] {
            Ok(())
        } else {
            Err(committed)
        }
    });

    kafka.add_partitions(name, 6);
    let added = Instant::now();
    let producer = kafka.producer(&[]);
    send_numbers_to(&producer, name, 5, 100);
    odd.1.await_len(PATIENT, 500);
    let took = added.elapsed();
    assert!(
        took < Duration::from_secs(15) + SLACK,
        "taken after {took:?}"
    );
    assert_eq!(odd.1.of(5), (0..100).collect::<Vec<_>>());
    for handle in [even.0, odd.0] {
        handle.stop();
        let (report, _) = end_of(handle, SOON);
        assert_eq!(
            (report.exit_code(), report.left_uncommitted),
            (0, 0),
            "{report:?}"
        );
    }
    let mut committed = [Some(200); 6];
    committed[5] = Some(100);
    assert_eq!(kafka.committed(name, name), committed);
    assert_eq!((even.1.len(), odd.1.len()), (600, 500), "each once");

    // The next run goes on from there.
    let (handle, finished) = start(1);
    send_numbers_to(&producer, name, 1, 1);
    finished.await_len(SOON, 1);
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.records, 1);
}

/// Sends that many records to one partition.
fn send_numbers_to(
    producer: &crate::support::records::Producer,
    topic: &str,
    partition: i32,
    records: u64,
) {
    for number in 0..records {
        let payload = number.to_string();
        let record = rdkafka::producer::BaseRecord::to(topic).partition(partition);
        producer.send(record.payload(payload.as_bytes()));
    }
    producer.flush();
}

#[test]
fn a_count_over_four_workers_is_exact() {
    let kafka = kafka!(shared);
    counts(kafka, "counts", false);
}

#[test]
fn a_count_is_exact_where_records_fail_first() {
    let kafka = kafka!(shared);
    counts(kafka, "counts-fails", true);
}

fn counts(kafka: &Kafka, name: &str, fails: bool) {
    topic_of_numbers(kafka, name, 4, 1_000);
    let (events, finished) = (Events::default(), Tally::default());
    let mut before = 0;
    for count in [1, 777, 2_000] {
        let handle = builder(kafka, name, name, &events)
            .workers(Workers::Fixed(4))
            .count(count)
            .start({
                let finished = finished.clone();
                move |_| {
                    let finished = finished.clone();
                    move |record: &Record<'_>| {
                        // Some fail first: what comes again does not count twice.
                        if fails && record.offset() % 97 == 0 && record.attempt() == 1 {
                            return Err("again");
                        }
                        finished.note(record);
                        Ok(())
                    }
                }
            })
            .expect("the run starts");
        let (report, _) = end_of(handle, SOON);
        assert_eq!(report.reason, StopReason::CountReached);
        assert_eq!(report.records, count);
        // A record that failed and waits for its retry when the count is reached was handed over and is not committed.
        let waiting = if fails { 4 } else { 0 };
        assert!(report.left_uncommitted <= waiting, "{report:?}");
        before += usize::try_from(count).expect("a few");
        assert_eq!(finished.len(), before, "exactly {count}");
        finished.assert_is_what_is_committed(&kafka.committed(name, name));
    }
}

#[test]
fn until_end_stops_at_the_ends_that_were_there_at_the_start() {
    let kafka = kafka!(shared);
    topic_of_numbers(kafka, "ends", 4, 500);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, "ends", "ends", &events)
        .workers(Workers::Fixed(2))
        .until_end(true)
        .start(finished.handlers())
        .expect("the run starts");
    let (report, _) = end_of(handle, SOON);
    assert_eq!(report.reason, StopReason::EndReached);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 2_000, 0)
    );
    finished.assert_each_once(4, 500);
    assert_eq!(kafka.committed("ends", "ends"), [Some(500); 4]);
}

#[test]
fn a_batch_that_is_not_full_is_handed_over_after_max_wait() {
    let kafka = kafka!(shared);
    let name = "batches";
    topic_of_numbers(kafka, name, 2, 250);
    let max_wait = Duration::from_secs(1);
    let (events, finished) = (Events::default(), Tally::default());
    let (sizes, failed) = (
        Arc::new(std::sync::Mutex::new(Vec::new())),
        Arc::new(AtomicUsize::new(0)),
    );
    let begin = Instant::now();
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(1))
        .start_batches(100, max_wait, {
            let (finished, sizes) = (finished.clone(), Arc::clone(&sizes));
            let failed = Arc::clone(&failed);
            move |_| {
                let (finished, sizes) = (finished.clone(), Arc::clone(&sizes));
                let failed = Arc::clone(&failed);
                move |records: &Records<'_>| {
                    let first = records.iter().next().expect("at least one");
                    if first.partition() == 0 && first.offset() == 100 && records.attempt() == 1 {
                        failed.fetch_add(1, Ordering::Relaxed);
                        return Err("again");
                    }
                    sizes
                        .lock()
                        .expect("no panic here")
                        .push((first.partition(), records.len()));
                    finished.note_all(records);
                    Ok(())
                }
            }
        })
        .expect("the run starts");
    finished.await_each(SOON, 2, 250);
    assert!(
        begin.elapsed() >= max_wait,
        "the last one of each waits to be filled"
    );
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 500, 0)
    );
    finished.assert_each_once(2, 250);
    assert_eq!(failed.load(Ordering::Relaxed), 1);
    let sizes = sizes.lock().expect("no panic here");
    for partition in 0..2 {
        let of: Vec<_> = sizes
            .iter()
            .filter(|(of, _)| *of == partition)
            .map(|(_, size)| *size)
            .collect();
        assert_eq!(of, [100, 100, 50], "partition {partition}");
    }
    assert_eq!(kafka.committed(name, name), [Some(250); 2]);
}
