//! A worker over a log in memory whose handler takes batches: what becomes of
//! the records of one that fails, as a whole or at one record.

use parking_lot::Mutex;

use super::exhausted_tests::{Bench, Running, policy};
use super::*;
use crate::handler::{BatchOutcome, IntoBatchOutcome, Records};
use crate::worker::dead_letter::Sent;
use crate::worker::engine::BatchLimits;

const LIMITS: BatchLimits = BatchLimits {
    max_records: 4,
    max_wait: Duration::from_millis(1),
};

/// What was handed over of partition 0: the offsets, and the attempt.
type Calls = Arc<Mutex<Vec<(Vec<i64>, u32)>>>;

/// A worker whose handler says of each batch of partition 0 what `says` does
/// of its offsets and of how many batches there were before.
fn start<R: IntoBatchOutcome>(
    bench: &Bench,
    policy: RetryPolicy,
    count: Option<u64>,
    says: impl Fn(&[i64], usize) -> R + Clone + Send + Sync + 'static,
) -> (Running, Calls) {
    let calls = Calls::default();
    let engines = EngineFactory::per_batch(LIMITS, {
        let calls = Arc::clone(&calls);
        move |_| {
            let (calls, says) = (Arc::clone(&calls), says.clone());
            move |records: &Records<'_>| {
                if records.iter().any(|record| record.partition() != 0) {
                    return BatchOutcome::done();
                }
                let offsets: Vec<i64> = records.iter().map(|record| record.offset()).collect();
                let before = calls.lock().len();
                calls.lock().push((offsets.clone(), records.attempt()));
                says(&offsets, before).into_batch_outcome()
            }
        }
    });
    let (mut context, reports) = bench.context(policy, engines);
    context.count = count.map(|count| Arc::new(CountBudget::new(count)));
    (bench.open(context, reports), calls)
}

/// The index of offset 2, if the batch has it.
fn index_of_2(offsets: &[i64]) -> Option<usize> {
    offsets.iter().position(|&offset| offset == 2)
}

/// Says `outcome` of offset 2.
fn of_2(
    outcome: fn() -> Outcome,
) -> impl Fn(&[i64], usize) -> BatchOutcome + Clone + Send + Sync + 'static {
    move |offsets, _| match index_of_2(offsets) {
        Some(index) => BatchOutcome::at(index, outcome()),
        None => BatchOutcome::done(),
    }
}

#[test]
fn s38_what_is_before_the_record_that_failed_is_completed_and_the_rest_comes_again_in_order() {
    let bench = Bench::new();
    let (mut running, calls) = start(
        &bench,
        policy(10, OnExhausted::Stop),
        None,
        |offsets: &[i64], before| match index_of_2(offsets) {
            Some(index) if before < 2 => Err(BatchOutcome::at(index, Outcome::retry("busy"))),
            _ => Ok(()),
        },
    );
    assert_eq!(running.work(), None);
    assert_eq!(bench.watermarks(), [Some(2), Some(4)]);
    assert_eq!(bench.trackers[0].completed_records(), 2);
    assert!(bench.trackers[0].waits());
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(
        *calls.lock(),
        [
            (vec![0, 1, 2, 3], 1),
            (vec![2, 3, 4], 2),
            (vec![2, 3, 4], 3)
        ]
    );
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    let tracker = &bench.trackers[0];
    assert_eq!(
        (tracker.completed_records(), tracker.retried_records()),
        (5, 2)
    );
    assert!(!tracker.waits());
}

#[test]
fn s38_a_record_that_failed_as_often_as_allowed_is_what_the_policy_decides_on_alone() {
    let bench = Bench::new();
    let fails = || of_2(|| Outcome::retry("no"));
    let (mut running, calls) = start(&bench, policy(2, OnExhausted::DeadLetter), None, fails());
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.office.places(), [(0, 2)]);
    assert_eq!(bench.office.all().len(), 1);
    assert_eq!(bench.watermarks()[0], Some(2), "not before it is written");
    bench.office.tell_last(Sent::Written);
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    let handed: Vec<_> = calls
        .lock()
        .iter()
        .map(|(batch, _)| batch.clone())
        .collect();
    assert_eq!(handed, [vec![0, 1, 2, 3], vec![2, 3, 4], vec![3, 4]]);
    assert_eq!(bench.trackers[0].dead_lettered_records(), 1);

    let bench = Bench::new();
    let (mut running, calls) = start(&bench, policy(2, OnExhausted::Skip), None, fails());
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    let tracker = &bench.trackers[0];
    assert_eq!(
        (tracker.completed_records(), tracker.skipped_records()),
        (5, 1)
    );
    assert_eq!(calls.lock().last(), Some(&(vec![3, 4], 1)));

    let bench = Bench::new();
    let (mut running, _) = start(&bench, policy(2, OnExhausted::Stop), None, fails());
    let exit = running.work_through_waits(&bench);
    let Some(WorkerExit::EndsRun(
        StopReason::RetriesExhausted {
            offset, attempts, ..
        },
        _,
    )) = exit
    else {
        panic!("{exit:?}");
    };
    assert_eq!((offset, attempts), (2, 2));
    assert_eq!(bench.watermarks()[0], Some(2));
}

#[test]
fn s38_any_outcome_may_be_that_of_one_record() {
    let once = || policy(10, OnExhausted::Stop);
    let bench = Bench::new();
    let skips = of_2(|| Outcome::skip("of no use"));
    let (mut running, calls) = start(&bench, once(), None, skips);
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert_eq!(bench.trackers[0].skipped_records(), 1);
    assert_eq!(*calls.lock(), [(vec![0, 1, 2, 3], 1), (vec![3, 4], 1)]);

    let bench = Bench::new();
    let (mut running, calls) = start(&bench, once(), None, of_2(|| Outcome::dead_letter("bad")));
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.office.places(), [(0, 2)]);
    bench.office.tell_last(Sent::Written);
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert_eq!(*calls.lock(), [(vec![0, 1, 2, 3], 1), (vec![3, 4], 1)]);

    let bench = Bench::new();
    let (mut running, _) = start(&bench, once(), None, of_2(|| Outcome::stop("enough")));
    let exit = running.work_through_waits(&bench);
    let Some(WorkerExit::EndsRun(StopReason::HandlerStop { offset, .. }, _)) = exit else {
        panic!("{exit:?}");
    };
    assert_eq!((offset, bench.watermarks()[0]), (2, Some(2)));

    // That far, and no word of the rest.
    let bench = Bench::new();
    let (mut running, calls) = start(&bench, once(), None, of_2(|| Outcome::Done));
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert_eq!(*calls.lock(), [(vec![0, 1, 2, 3], 1), (vec![3, 4], 1)]);
}

#[test]
fn s38_an_index_that_the_batch_does_not_have_fails_all_of_it() {
    let parts = BatchOutcome::at(5, Outcome::skip("")).parts(5);
    assert_eq!((parts.done, parts.concerned), (0, 5));
    assert_eq!(
        parts.outcome,
        Outcome::retry("the handler names record 5 of a batch of 5; indices count from 0")
    );
    let bench = Bench::new();
    let (mut running, calls) = start(
        &bench,
        policy(2, OnExhausted::Stop),
        None,
        |offsets: &[i64], before| match before {
            0 => BatchOutcome::at(offsets.len(), Outcome::Done),
            _ => BatchOutcome::done(),
        },
    );
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert_eq!(
        calls.lock()[..2],
        [(vec![0, 1, 2, 3], 1), (vec![0, 1, 2, 3], 2)]
    );
}

#[test]
fn s38_a_count_is_exact_whatever_fails_in_the_batches() {
    for outcome in [
        || Outcome::retry("no"),
        || Outcome::skip("no"),
        || Outcome::dead_letter("no"),
        || Outcome::Done,
    ] {
        let bench = Bench::new();
        let (mut running, _) = start(
            &bench,
            policy(10, OnExhausted::Stop),
            Some(7),
            move |offsets: &[i64], before| match index_of_2(offsets) {
                Some(index) if before < 2 => BatchOutcome::at(index, outcome()),
                _ => BatchOutcome::done(),
            },
        );
        // Few steps: a worker whose count is reached rests at each.
        for _ in 0..8 {
            bench.clock.advance(Duration::from_mins(1));
            assert_eq!((0..6).find_map(|_| running.worker.step()), None);
            for letter in bench.office.all() {
                letter.delivery.tell(Sent::Written);
            }
        }
        let completed: u64 = bench.trackers.iter().map(|t| t.completed_records()).sum();
        assert_eq!(completed, 7, "{:?}", outcome());
    }
}

#[test]
fn s39_an_open_window_that_is_asked_back_is_dropped_uncommitted() {
    let bench = Bench::new();
    let (mut running, calls) = start(
        &bench,
        policy(1, OnExhausted::Stop),
        None,
        |_: &[i64], _| (),
    );
    assert_eq!(running.work(), None);
    // Four of five; the fifth waits for more, or for its time.
    assert_eq!(*calls.lock(), [(vec![0, 1, 2, 3], 1)]);
    running.ask_back(&[0, 1], ReleaseCause::Revoked);
    assert_eq!(running.work(), None);
    assert_eq!(running.released().len(), 2);
    bench.clock.advance(Duration::from_mins(1));
    assert_eq!(running.work(), None);
    assert_eq!(calls.lock().len(), 1, "nothing after it was given back");
    assert_eq!(bench.watermarks(), [Some(4), Some(4)]);
}

#[test]
fn each_record_of_a_batch_that_failed_as_a_whole_is_written_in_order() {
    let bench = Bench::new();
    let (mut running, _) = start(
        &bench,
        policy(2, OnExhausted::DeadLetter),
        None,
        |offsets: &[i64], _| match offsets[0] {
            0 => Outcome::retry("no"),
            _ => Outcome::Done,
        },
    );
    assert_eq!(running.work_through_waits(&bench), None);
    for written in 1..=4 {
        assert_eq!(bench.office.places().len(), written);
        bench.office.tell_last(Sent::Written);
        assert_eq!(running.work_through_waits(&bench), None);
    }
    assert_eq!(bench.office.places(), [(0, 0), (0, 1), (0, 2), (0, 3)]);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert_eq!(bench.trackers[0].dead_lettered_records(), 4);
}
