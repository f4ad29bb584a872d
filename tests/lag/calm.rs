//! A partition where nothing happens any more. (The longest of these tests: its name has it started first.)

use std::time::{Duration, Instant};

use keepup::Record;

use super::{Oracle, TICK, assert_true_within_an_interval};
use crate::support::kafka::Isolation;
use crate::support::run::{Events, Tally, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON};

#[test]
fn s46_after_an_idle_minute_lag_its_maximum_and_its_average_are_zero_and_still_there() {
    let kafka = kafka!(shared);
    let name = "lag-s46-idle";
    topic_of_numbers(kafka, name, 2, 2_000);
    let (events, finished) = (Events::default(), Tally::default());
    let handle = builder(kafka, name, name, &events)
        .property("auto.commit.interval.ms", "100")
        .start({
            let finished = finished.clone();
            move |_| {
                let finished = finished.clone();
                move |record: &Record<'_>| {
                    work_for(Duration::from_micros(500));
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    finished.await_len(SOON, 4_000);
    let oracle = Oracle::new(kafka, name, name, 2, Isolation::Committed);
    assert_true_within_an_interval(&handle, &oracle, &[2_000; 2], "at the end");
    let snapshot = handle.lag();
    assert!(
        snapshot.partitions.iter().all(|lag| {
            lag.records_lag_max.is_some_and(|most| most > 1_000)
                && lag.records_lag_avg.is_some_and(|mean| mean > 100.0)
        }),
        "{:?}",
        snapshot.partitions
    );

    // An extreme is seen for 60 to 90 s after it was observed; nothing is produced all the while.
    let mut updates = handle.lag_updates();
    let (start, mut old, mut looks) = (Instant::now(), 0, 0);
    let gone = loop {
        let snapshot = updates.next_within(SOON).expect("a tick");
        assert_eq!(
            snapshot.partitions.len(),
            2,
            "an idle partition is not absent"
        );
        looks += 1;
        for lag in &snapshot.partitions {
            assert_eq!(lag.records_lag, Some(0), "{lag:?}");
            assert_eq!(lag.committed_lag, Some(0), "{lag:?}");
            assert_eq!(lag.time_lag, Some(Duration::ZERO), "{lag:?}");
            assert!(
                lag.records_lag_max.is_some() && lag.records_lag_avg.is_some(),
                "{lag:?}"
            );
            old += u32::from(lag.end_offset_age.expect("an age") > TICK / 2);
        }
        let zero = snapshot.partitions.iter().all(|lag| {
            lag.records_lag_max == Some(0)
                && lag
                    .records_lag_avg
                    .is_some_and(|mean| mean.abs() < f64::EPSILON)
        });
        if zero {
            break start.elapsed();
        }
        assert!(start.elapsed() < 2 * PATIENT, "{:?}", snapshot.partitions);
    };
    println!("{looks} looks; the maximum was gone after {gone:?}; {old} times an end was old");
    assert!(
        (Duration::from_secs(50)..Duration::from_secs(95)).contains(&gone),
        "{gone:?}"
    );
    // At every tick an idle partition's end is asked for; an answer may be late once on a busy machine.
    assert!(old <= looks / 10, "{old} of {looks}");
    assert_true_within_an_interval(&handle, &oracle, &[2_000; 2], "after an idle minute");
    handle.stop();
    assert_eq!(end_of(handle, SOON).0.exit_code(), 0);
}
