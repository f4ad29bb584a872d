//! Load that is counted: what is queued, in flight and in memory comes down to nothing again, whatever was revoked or
//! retried meanwhile, and reading goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keepup::{Builder, Handle, Handler, Order, Outcome, Record, RetryPolicy, Workers};
use rdkafka::producer::BaseRecord;

use crate::support::kafka::Kafka;
use crate::support::run::{Door, Events, Tally, builder, end_of};
use crate::support::{PATIENT, SOON, wait_for, wait_until};

const ORDERS: [Order; 3] = [Order::Partition, Order::Key, Order::Unordered];

/// The least that may be given: everything waits for it.
const SMALL_BUDGET: usize = 1024 * 1024;

/// A topic of which each partition has several times the budget, with a key for each record.
fn large_topic(kafka: &Kafka, topic: &str, partitions: i32, records: usize, bytes: usize) {
    kafka.create_topic(topic, partitions, &[]);
    // A batch larger than a worker's share of the budget would be read by one worker at a time only.
    let producer = kafka.producer(&[("batch.size", "65536")]);
    let value = vec![b'x'; bytes];
    for number in 0..records {
        let key = format!("key-{number}");
        for partition in 0..partitions {
            producer.send(
                BaseRecord::to(topic)
                    .partition(partition)
                    .key(key.as_bytes())
                    .payload(&value),
            );
        }
    }
    producer.flush();
}

/// A member of a group in which every rebalance takes everything from everybody.
fn eager(kafka: &Kafka, topic: &str, order: Order, events: &Events) -> Builder {
    builder(kafka, topic, topic, events)
        .order(order)
        .workers(Workers::Fixed(2))
        .memory_budget(SMALL_BUDGET)
        .revoke_deadline(Duration::from_millis(500))
        .property("partition.assignment.strategy", "range")
        .property("auto.commit.interval.ms", "200")
}

fn await_partitions(handle: &Handle, count: usize) {
    wait_until(PATIENT, &format!("{count} partitions"), || {
        let has = handle.partitions().len();
        if has == count { Ok(()) } else { Err(has) }
    });
}

/// Waits until nothing is in flight and nothing lags.
fn await_calm(handle: &Handle) {
    wait_until(SOON, "all counters at zero", || {
        let snapshot = handle.lag();
        let calm = snapshot.partitions.iter().all(|partition| {
            (partition.in_flight, partition.records_lag) == (0, Some(0))
                && partition.committed_lag == Some(0)
        });
        if calm { Ok(()) } else { Err(snapshot) }
    });
}

fn what_was_queued_of_a_revoked_partition_is_counted_no_more(order: Order) {
    let kafka = kafka!(shared);
    let topic = &format!("s12-{order}");
    large_topic(kafka, topic, 4, 400, 10_000);
    let (events, entered, done) = (Events::default(), Tally::default(), Tally::default());
    let door = Door::default();
    let first = eager(kafka, topic, order, &events)
        .start({
            let (entered, done, door) = (entered.clone(), done.clone(), door.clone());
            move |_| {
                let (entered, done, door) = (entered.clone(), done.clone(), door.clone());
                move |record: &Record<'_>| {
                    entered.note(record);
                    door.pass();
                    done.note(record);
                }
            }
        })
        .expect("the run starts");
    // Both workers are held, and what they have read waits behind them.
    entered.await_len(PATIENT, 2);

    // The second takes half of it away, does all of that, and goes: everything comes back, and those that were held
    // are still in the records of the lives before.
    let other = Tally::default();
    let other_events = Events::default();
    let second = eager(kafka, topic, order, &other_events)
        .start(other.handlers())
        .expect("the run starts");
    await_partitions(&first, 2);
    await_partitions(&second, 2);
    other.await_len(PATIENT, 800);
    second.stop();
    assert_eq!(end_of(second, PATIENT).0.exit_code(), 0);
    await_partitions(&first, 4);
    let in_flight: u64 = first.lag().partitions.iter().map(|p| p.in_flight).sum();
    assert!(in_flight <= 4, "{in_flight} records are in two handlers");

    door.open();
    kafka.await_committed(topic, topic, &[Some(400); 4]);
    await_calm(&first);
    first.stop();
    let (report, _) = end_of(first, PATIENT);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    let mut handled = done.times();
    for (record, times) in other.times() {
        *handled.entry(record).or_default() += times;
    }
    assert_eq!(handled.len(), 1_600, "each at least once");
    let again: usize = handled.values().map(|times| times - 1).sum();
    assert!(again <= 2, "{again} again; in hand were two");
}

#[test]
fn s12_in_partition_order_what_was_queued_before_a_revoke_is_counted_no_more_and_reading_goes_on() {
    what_was_queued_of_a_revoked_partition_is_counted_no_more(Order::Partition);
}

#[test]
fn s12_in_key_order_what_was_queued_before_a_revoke_is_counted_no_more_and_reading_goes_on() {
    what_was_queued_of_a_revoked_partition_is_counted_no_more(Order::Key);
}

#[test]
fn s12_without_order_what_was_queued_before_a_revoke_is_counted_no_more_and_reading_goes_on() {
    what_was_queued_of_a_revoked_partition_is_counted_no_more(Order::Unordered);
}

/// Fails each record of its choice until it was there three times.
#[derive(Clone)]
struct Storm {
    /// Attempts by offset, of all.
    attempts: Arc<Mutex<BTreeMap<i64, Vec<u32>>>>,
    /// One of so many fails.
    one_of: i64,
}

impl Handler for Storm {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let of = attempts.entry(record.offset()).or_default();
        of.push(record.attempt());
        if record.offset() % self.one_of == 0 && of.len() < 3 {
            Outcome::retry("not yet")
        } else {
            Outcome::Done
        }
    }
}

/// Records that wait for a retry fill what may be held: the budget is used up by them alone.
fn retries_at_the_limit(order: Order) {
    let kafka = kafka!(shared);
    let topic = &format!("s13-{order}");
    let records = 6_000;
    large_topic(kafka, topic, 1, records, 1_000);
    let storm = Storm {
        attempts: Arc::default(),
        // In the order of the partition each failure holds up all that follow.
        one_of: if order == Order::Partition { 100 } else { 1 },
    };
    let mut policy = RetryPolicy::default();
    policy.backoff = Duration::from_millis(30);
    policy.max_backoff = Duration::from_millis(30);
    let events = Events::default();
    let handle = builder(kafka, topic, topic, &events)
        .order(order)
        .workers(Workers::Fixed(2))
        .memory_budget(SMALL_BUDGET)
        .retry(policy)
        .until_end(true)
        .start({
            let storm = storm.clone();
            move |_| storm.clone()
        })
        .expect("the run starts");
    let mut most = 0;
    wait_for(PATIENT, "the end", || {
        let now: u64 = handle.lag().partitions.iter().map(|p| p.in_flight).sum();
        most = most.max(now);
        handle.has_ended()
    });
    let (report, _) = end_of(handle, SOON);
    println!("{order}: at most {most} in flight");
    assert_eq!(
        (report.exit_code(), report.left_uncommitted),
        (0, 0),
        "{report:?}"
    );
    let end = i64::try_from(records).expect("a count");
    assert_eq!(kafka.committed(topic, topic), [Some(end)]);
    let attempts = storm
        .attempts
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    assert_eq!(attempts.len(), records);
    for (offset, attempts) in attempts.iter() {
        let expected: &[u32] = if offset % storm.one_of == 0 {
            &[1, 2, 3]
        } else {
            &[1]
        };
        assert_eq!(attempts, expected, "{offset}");
    }
}

#[test]
fn s13_retries_that_fill_the_buffers_to_their_limit_hold_nothing_up() {
    for order in ORDERS {
        retries_at_the_limit(order);
    }
}
