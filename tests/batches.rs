//! Batches on a real broker: one bad record among many, and batches that a rebalance catches half full.

use std::time::Duration;

use keepup::{
    BatchOutcome, OnExhausted, Outcome, Records, RetryPolicy, StopReason, WorkerInfo, Workers,
};
use rdkafka::Message;

use crate::support::kafka::Isolation;
use crate::support::run::{Events, Tally, builder, end_of, topic_of_numbers};
use crate::support::{SOON, wait_until};

/// Half of the topics of these tests.
const AT_ONCE: usize = 50;
const A_MOMENT: Duration = Duration::from_millis(200);
const NEVER: Duration = Duration::from_hours(1);

/// Works on records one after the other until `outcome` says something else than done of one; notes what is done.
fn one_after_the_other(
    finished: &Tally,
    outcome: fn(i64, u32) -> Outcome,
) -> impl Fn(&Records<'_>) -> BatchOutcome + Clone + Send + Sync + 'static {
    let finished = finished.clone();
    move |records| {
        for (index, record) in records.iter().enumerate() {
            let attempt = if index == 0 { records.attempt() } else { 1 };
            let said = outcome(record.offset(), attempt);
            if said != Outcome::Done {
                return BatchOutcome::at(index, said);
            }
            finished.note(&record);
        }
        BatchOutcome::done()
    }
}

#[test]
fn s38_a_batch_that_fails_at_an_index_is_committed_up_to_it_and_the_rest_comes_again_in_order() {
    let kafka = kafka!(shared);
    let name = "s38-waits";
    topic_of_numbers(kafka, name, 1, 100);
    let (events, finished) = (Events::default(), Tally::default());
    let handler = one_after_the_other(&finished, |offset, attempt| match (offset, attempt) {
        (20, 1 | 2) => Outcome::retry_after(Duration::from_millis(10), "busy"),
        (60, _) => Outcome::retry_after(NEVER, "closed today"),
        _ => Outcome::Done,
    });
    let handle = builder(kafka, name, name, &events)
        .start_batches(AT_ONCE, A_MOMENT, move |_| handler.clone())
        .expect("the run starts");
    kafka.await_committed(name, name, &[Some(60)]);
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    // What waits for a retry is what is left.
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (3, 60, 1)
    );
    finished.assert_each_once(1, 60);
    assert_eq!(events.count("record_retried"), 3);

    // Another process has the rest, and no more.
    let (events, handler) = (
        Events::default(),
        one_after_the_other(&finished, |_, _| Outcome::Done),
    );
    let handle = builder(kafka, name, name, &events)
        .until_end(true)
        .start_batches(AT_ONCE, A_MOMENT, move |_| handler.clone())
        .expect("the run starts");
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.records), (0, 40));
    finished.assert_each_once(1, 100);
    assert_eq!(kafka.committed(name, name), [Some(100)]);
}

#[test]
fn s38_the_record_at_the_index_goes_by_policy_and_the_others_are_handled_once() {
    let kafka = kafka!(shared);
    for policy in [
        OnExhausted::DeadLetter,
        OnExhausted::Skip,
        OnExhausted::Stop,
    ] {
        let name = match policy {
            OnExhausted::DeadLetter => "s38-dead-letter",
            OnExhausted::Skip => "s38-skip",
            OnExhausted::Stop => "s38-stop",
        };
        topic_of_numbers(kafka, name, 1, 100);
        let dead = format!("{name}-dead");
        kafka.create_topic(&dead, 1, &[]);
        let (events, finished) = (Events::default(), Tally::default());
        let handler = one_after_the_other(&finished, |offset, _| match offset {
            70 => Outcome::retry("no such customer"),
            _ => Outcome::Done,
        });
        let mut retry = RetryPolicy::default();
        retry.attempts = 3;
        retry.backoff = Duration::from_millis(10);
        retry.on_exhausted = policy;
        let handle = builder(kafka, name, name, &events)
            .dead_letter(&dead)
            .retry(retry)
            .until_end(true)
            .start_batches(AT_ONCE, A_MOMENT, move |_| handler.clone())
            .expect("the run starts");
        let (report, _) = end_of(handle, SOON);
        let letters = kafka.read(&dead, Isolation::Committed);
        let letters: Vec<_> = letters.iter().flatten().map(Message::payload).collect();
        if policy == OnExhausted::Stop {
            let StopReason::RetriesExhausted {
                offset, attempts, ..
            } = report.reason
            else {
                panic!("{report:?}");
            };
            assert_eq!((offset, attempts, report.records), (70, 3, 70));
            finished.assert_each_once(1, 70);
            assert_eq!(kafka.committed(name, name), [Some(70)]);
            assert_eq!(letters, [None; 0]);
            continue;
        }
        assert_eq!((report.exit_code(), report.records), (0, 100));
        let done: Vec<i64> = (0..100).filter(|&offset| offset != 70).collect();
        assert_eq!(finished.of(0), done, "each once, in order");
        assert_eq!(kafka.committed(name, name), [Some(100)]);
        let is_written = policy == OnExhausted::DeadLetter;
        assert_eq!(letters.len(), usize::from(is_written));
        assert_eq!(events.count("record_dead_lettered"), letters.len());
        assert_eq!(
            events.count("record_skipped"),
            usize::from(!is_written),
            "{}",
            events.timeline()
        );
    }
}

/// Makes batch handlers that note what they have.
fn noting(
    finished: &Tally,
) -> impl Fn(WorkerInfo) -> Box<dyn FnMut(&Records<'_>)> + Send + Sync + 'static {
    let finished = finished.clone();
    move |_| {
        let finished = finished.clone();
        Box::new(move |records| finished.note_all(records))
    }
}

#[test]
fn s39_a_batch_that_is_half_full_at_a_revoke_is_dropped_and_its_records_are_the_next_owners() {
    let kafka = kafka!(shared);
    let name = "s39-half-full";
    topic_of_numbers(kafka, name, 2, 100);
    // The first waits for more than there is.
    let (events, finished) = (Events::default(), Tally::default());
    let waiting = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(1))
        .start_batches(1_000, NEVER, noting(&finished))
        .expect("the run starts");
    // All of it is in its windows: it has asked for what is behind.
    wait_until(SOON, "everything to be read", || {
        let lag = waiting.lag();
        let seen: Vec<_> = lag
            .partitions
            .iter()
            .map(|partition| partition.end_offset)
            .collect();
        if seen == [Some(100), Some(100)] {
            Ok(())
        } else {
            Err(seen)
        }
    });

    let eager = builder(kafka, name, name, &Events::default())
        .start_batches(AT_ONCE, A_MOMENT, noting(&finished))
        .expect("the run starts");
    finished.await_len(SOON, 100);
    assert!(finished.of(0).is_empty() || finished.of(1).is_empty());
    // What it still has is as uncommitted after an orderly stop.
    waiting.stop();
    let (report, _) = end_of(waiting, SOON);
    assert_eq!(
        (report.exit_code(), report.records, report.left_uncommitted),
        (0, 0, 0)
    );
    finished.await_each(SOON, 2, 100);
    eager.stop();
    let (report, _) = end_of(eager, SOON);
    assert_eq!((report.exit_code(), report.records), (0, 200));
    finished.assert_each_once(2, 100);
    assert_eq!(kafka.committed(name, name), [Some(100); 2]);
}
