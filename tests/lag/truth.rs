//! The numbers against the broker's, while records flow and while something stands in their way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keepup::{Handle, LagSnapshot, Record, RetryPolicy, TopicPartition, Workers};

use serde_json::Value;

use super::{
    Oracle, TICK, anywhere, assert_true_within_an_interval, family, fetched, lag_of, scraped,
    unix_ms,
};
use crate::support::kafka::{Isolation, Kafka};
use crate::support::process::thread;
use crate::support::run::{Door, Events, Tally, builder, end_of, topic_of_numbers, work_for};
use crate::support::tools::GroupRow;
use crate::support::{PATIENT, SOON, seed, wait_for, wait_until};

/// Records per second that the producer writes to each partition.
const RATE: i64 = 300;

/// Records per second that a worker handles at most: 2 ms each.
const FASTEST: i64 = 500;

/// What clocks of 4 ms resolution and rounding to milliseconds may be apart.
const ROUNDING_MS: i64 = 30;

/// How long an answer may be on its way from the broker to whoever takes it, where other tests have the processors and
/// a worker is in a turn of 50 ms. An end offset counts as told when it was taken.
const ON_ITS_WAY_MS: i64 = 400;

/// A thread that does the same again and again until it is dropped.
struct Again {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Again {
    fn start(name: &str, mut step: impl FnMut() + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = thread(name, move || {
            while !seen.load(Ordering::Relaxed) {
                step();
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()),
            "a thread of the test has panicked"
        );
    }
}

/// Writes [`RATE`] numbers per second to each partition until it is dropped.
fn steady_producer(kafka: &Kafka, topic: &str, partitions: i32) -> Again {
    let (producer, topic) = (kafka.producer(&[]), topic.to_owned());
    let (start, mut sent) = (Instant::now(), 0);
    Again::start("producer", move || {
        let due = u64::try_from(start.elapsed().as_millis()).expect("not so long")
            * RATE.unsigned_abs()
            / 1_000;
        producer.send_numbers(&topic, partitions, sent..due);
        sent = due;
        std::thread::park_timeout(Duration::from_millis(10));
    })
}

/// What was true somewhen between two moments (milliseconds since 1970).
#[derive(Debug)]
struct Glance {
    from: i64,
    to: i64,
    ends: Vec<i64>,
    committed: Vec<i64>,
    positions: Vec<i64>,
}

type History = Arc<std::sync::Mutex<Vec<Glance>>>;

/// All of these numbers only rise, so two glances are bounds for what was true between them.
fn bounds(history: &[Glance], from: i64, to: i64, of: impl Fn(&Glance) -> i64) -> (i64, i64) {
    let before = history.iter().rev().find(|glance| glance.to <= from);
    let after = history.iter().find(|glance| glance.from >= to);
    (before.map_or(0, &of), after.map_or(i64::MAX, of))
}

/// How far a value is outside of an interval.
fn outside(value: i64, low: i64, high: i64) -> i64 {
    (low - value).max(value - high).max(0)
}

/// What a look at the run's numbers has to agree with.
struct Moment {
    at: i64,
    snapshot: Arc<LagSnapshot>,
}

#[test]
fn records_lag_and_committed_lag_equal_what_the_broker_says_at_sixty_random_moments() {
    let kafka = kafka!(shared);
    let (name, partitions) = ("lag-truth", 4);
    let mut random = fastrand::Rng::with_seed(seed());
    kafka.create_topic(name, partitions, &[]);
    let _producer = steady_producer(kafka, name, partitions);
    let positions: Arc<Vec<AtomicI64>> = Arc::new((0..4).map(|_| AtomicI64::new(0)).collect());
    let events = Events::default();
    // Two workers of 500 records/s for 4 × 300: the lag grows, so that no number is right by standing still.
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(2))
        .listen(anywhere())
        .property("auto.commit.interval.ms", "100")
        .start({
            let positions = Arc::clone(&positions);
            move |_| {
                let positions = Arc::clone(&positions);
                move |record: &Record<'_>| {
                    let partition = usize::try_from(record.partition()).expect("it is positive");
                    positions[partition].store(record.offset() + 1, Ordering::Relaxed);
                    work_for(Duration::from_millis(2));
                }
            }
        })
        .expect("the run starts");
    let oracle = Oracle::new(kafka, name, name, partitions, Isolation::Committed);
    wait_until(SOON, "every partition's lags to be known", || {
        let snapshot = handle.lag();
        let known = snapshot.partitions.iter().filter(|lag| {
            lag.records_lag.is_some() && lag.committed_lag.is_some_and(|lag| lag > 0)
        });
        if known.count() == 4 {
            Ok(())
        } else {
            Err(snapshot)
        }
    });

    let history = History::default();
    let _recorder = recorder(oracle, positions, Arc::clone(&history));
    let snapshots = Arc::new(std::sync::Mutex::new(Vec::new()));
    let _subscriber = Again::start("subscriber", {
        let (mut updates, snapshots) = (handle.lag_updates(), Arc::clone(&snapshots));
        move || {
            let update = updates.next_within(Duration::from_millis(100));
            snapshots.lock().expect("no panic here").extend(update);
        }
    });
    // The first glances lie before the first moment's oldest number.
    work_for(TICK + TICK / 2);

    let mut moments = Vec::new();
    let mut described = Vec::new();
    for number in 0..60 {
        work_for(Duration::from_millis(random.u64(0..250)));
        let snapshot = look_everywhere(&handle, name);
        moments.push(Moment {
            at: unix_ms(),
            snapshot,
        });
        if number % 20 == 10 {
            let from = unix_ms();
            let rows = kafka.describe_group(name);
            described.push((from, unix_ms(), rows));
        }
    }
    // The last ones after the last moment.
    work_for(TICK);
    let history = history.lock().expect("no panic here");
    let widest = history.iter().map(|glance| glance.to - glance.from).max();
    println!("{} glances, the longest {widest:?} ms", history.len());
    let worst = moments
        .iter()
        .map(|moment| assert_moment(&history, moment, name))
        .fold((0, 0, 0, 0), |worst, of| {
            (
                worst.0.max(of.0),
                worst.1.max(of.1),
                worst.2.max(of.2),
                worst.3.max(of.3),
            )
        });
    println!(
        "of 60 moments the worst: records-lag {} off, committed lag {} off, {} ms after the look, end offset {} ms \
         old by then",
        worst.0, worst.1, worst.2, worst.3
    );
    for (from, to, rows) in described {
        let snapshots = snapshots.lock().expect("no panic here");
        assert_described(&history, &snapshots, (from, to), &rows, name);
    }
    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
}

/// Writes the history down until it is dropped.
fn recorder(oracle: Oracle, positions: Arc<Vec<AtomicI64>>, history: History) -> Again {
    Again::start("recorder", move || {
        let from = unix_ms();
        let ends = oracle.ends();
        let committed = oracle.committed();
        let positions = positions.iter().map(|p| p.load(Ordering::Relaxed));
        let glance = Glance {
            from,
            ends,
            committed: committed.iter().map(|c| c.unwrap_or(0)).collect(),
            positions: positions.collect(),
            to: unix_ms(),
        };
        history.lock().expect("no panic here").push(glance);
        std::thread::park_timeout(Duration::from_millis(15));
    })
}

/// Looks at the run's numbers by all ways there are, which say the same.
fn look_everywhere(handle: &Handle, topic: &str) -> Arc<LagSnapshot> {
    let (snapshot, document, series) = wait_until(SOON, "looks at one snapshot", || {
        let before = handle.lag();
        let document: Value = serde_json::from_str(&fetched(handle, "/lag")).expect("JSON");
        let series = scraped(handle);
        // A tick between the looks is a reason to look again.
        if Arc::ptr_eq(&before, &handle.lag()) {
            Ok((before, document, series))
        } else {
            Err(())
        }
    });
    assert_eq!(document["total_lag"].as_u64(), snapshot.total_lag());
    assert_eq!(document["partitions"].as_array().map(Vec::len), Some(4));
    for (partition, lag) in (0..).zip(&snapshot.partitions) {
        let shown = &document["partitions"][usize::try_from(partition).expect("a few")];
        assert_eq!(shown["partition"], partition);
        for (name, value) in [
            ("records_lag", lag.records_lag),
            ("records_lag_max", lag.records_lag_max),
            ("committed_lag", lag.committed_lag),
        ] {
            assert_eq!(shown[name].as_u64(), value, "{shown}");
        }
        let of = |family: String| series.get(&(family, topic.to_owned(), partition)).copied();
        let float = |records: Option<u64>| {
            records.map(|records| f64::from(u32::try_from(records).expect("a few")))
        };
        assert_eq!(of(family("records_lag")), float(lag.records_lag));
        assert_eq!(of(family("records_lag_max")), float(lag.records_lag_max));
        assert_eq!(of(family("records_lag_avg")), lag.records_lag_avg);
        assert_eq!(
            of("keepup_committed_lag".to_owned()),
            float(lag.committed_lag)
        );
    }
    snapshot
}

/// Checks one look at the run's numbers; gives the largest differences and ages.
fn assert_moment(history: &[Glance], moment: &Moment, topic: &str) -> (i64, i64, i64, i64) {
    let (at, taken) = (moment.at, moment.snapshot.taken_at_ms);
    let mut worst = (0, 0, at - taken, 0);
    assert_eq!(moment.snapshot.partitions.len(), 4, "none is missing");
    for partition in 0..4 {
        let lag = lag_of(&moment.snapshot, topic, partition).expect("it is ours");
        let index = usize::try_from(partition).expect("it is positive");
        let (end, position, committed) = (
            lag.end_offset.expect("an end"),
            lag.position.expect("a position"),
            lag.committed.expect("a commit"),
        );
        let age = i64::try_from(lag.end_offset_age.expect("an age").as_millis()).expect("it fits");
        let records_lag = i64::try_from(lag.records_lag.expect("a lag")).expect("it fits");
        let committed_lag = i64::try_from(lag.committed_lag.expect("a lag")).expect("it fits");
        // The lags are of the numbers beside them.
        assert_eq!(records_lag, (end - position).max(0), "{lag:?}");
        assert_eq!(committed_lag, (end - committed).max(0), "{lag:?}");

        // Each of these is what was true when it says so. It was read before `at`, and an answer takes a while to
        // come: that of a commit to the member a turn of its loop, up to a second on a busy machine.
        let bound = |of: fn(&Glance) -> &Vec<i64>, from: i64, to: i64| {
            bounds(history, from, to, |glance| of(glance)[index])
        };
        let (low, high) = bound(|g| &g.ends, taken - age - ON_ITS_WAY_MS, at);
        assert_eq!(
            outside(end, low, high),
            0,
            "{end} in {low}..={high}: {lag:?}"
        );
        let (low, high) = bound(|g| &g.positions, taken - ROUNDING_MS, at);
        assert_eq!(
            outside(position, low, high),
            0,
            "{position} in {low}..={high}: {lag:?}"
        );
        let (low, high) = bound(|g| &g.committed, taken - 1_000 - ROUNDING_MS, at);
        assert_eq!(
            outside(committed, low, high),
            0,
            "{committed} in {low}..={high}: {lag:?}"
        );

        // And what is true now is away from it by what was produced or handled since: at most the greater rate × the
        // age of the older of the two numbers, with 0.1 s for a burst, 0.5 s for what a commit holds together.
        let now = |of: fn(&Glance) -> &Vec<i64>| bound(of, at, at);
        let (ends, positions, commits) = (
            now(|g| &g.ends),
            now(|g| &g.positions),
            now(|g| &g.committed),
        );
        let off = outside(records_lag, ends.0 - positions.1, ends.1 - positions.0);
        let most = FASTEST * (at - taken + age + 100) / 1_000;
        assert!(off <= most, "{off} of {most} away from the truth: {lag:?}");
        let committed_off = outside(committed_lag, ends.0 - commits.1, ends.1 - commits.0);
        let most = FASTEST * (at - taken + age + 500) / 1_000;
        assert!(
            committed_off <= most,
            "{committed_off} of {most} away from the truth: {lag:?}"
        );
        worst = (
            worst.0.max(off),
            worst.1.max(committed_off),
            worst.2,
            worst.3.max(at - taken + age),
        );
    }
    worst
}

/// Checks what Kafka's tool said, which it found out some time between two moments.
fn assert_described(
    history: &[Glance],
    snapshots: &[Arc<LagSnapshot>],
    (from, to): (i64, i64),
    rows: &[GroupRow],
    topic: &str,
) {
    assert_eq!(rows.len(), 4, "{rows:?}");
    for row in rows {
        let index = usize::try_from(row.partition).expect("it is positive");
        let (end, committed) = (row.end.expect("an end"), row.committed.expect("a commit"));
        let (low, high) = bounds(history, from, to, |glance| glance.ends[index]);
        assert_eq!(outside(end, low, high), 0, "{low}..={high}: {row:?}");
        let (low, high) = bounds(history, from, to, |glance| glance.committed[index]);
        assert_eq!(outside(committed, low, high), 0, "{low}..={high}: {row:?}");
        let mut least = i64::MAX;
        let mut most = 0;
        for snapshot in snapshots {
            if !(from - 1_000..=to + 1_000).contains(&snapshot.taken_at_ms) {
                continue;
            }
            let ours = lag_of(snapshot, topic, row.partition).expect("it is ours");
            let lag = i64::try_from(ours.committed_lag.expect("a lag")).expect("it fits");
            let age = ours.end_offset_age.expect("an age").as_millis();
            least = least.min(lag);
            // What was written since the end was told is behind as well.
            most = most.max(lag + RATE * i64::try_from(age).expect("it fits") / 1_000);
        }
        let lag = row.lag.expect("a lag");
        println!(
            "kafka-consumer-groups: {} lags {lag}, keepup {least} to {most} meanwhile",
            row.partition
        );
        // The tool looked somewhen between two of these ticks: a tick's production.
        assert!(outside(lag, least, most) <= RATE, "{row:?}");
    }
}

fn assert_tool_agrees(kafka: &Kafka, group: &str, topic: &str, handle: &Handle) {
    let rows = kafka.describe_group(group);
    let snapshot = handle.lag();
    let rows: Vec<_> = rows.iter().filter(|row| row.topic == topic).collect();
    assert_eq!(rows.len(), snapshot.partitions.len(), "{rows:?}");
    for row in rows {
        let lag = lag_of(&snapshot, topic, row.partition).expect("it is ours");
        let ours = lag
            .committed_lag
            .map(|lag| i64::try_from(lag).expect("it fits"));
        assert_eq!(
            (row.end, row.committed, row.lag),
            (lag.end_offset, lag.committed, ours),
            "kafka-consumer-groups says {row:?}"
        );
    }
}

#[test]
fn s46_lag_is_the_brokers_where_a_partition_is_paused_its_handler_hangs_or_its_worker_died() {
    let kafka = kafka!(shared);
    let name = "lag-s46-held";
    topic_of_numbers(kafka, name, 4, 100);
    let (events, finished, door) = (Events::default(), Tally::default(), Door::default());
    let mut retry = RetryPolicy::default();
    // What failed waits for longer than this test.
    (retry.backoff, retry.max_backoff) = (2 * PATIENT, 2 * PATIENT);
    let handle = builder(kafka, name, name, &events)
        .workers(Workers::Fixed(4))
        .property("auto.commit.interval.ms", "100")
        .stop_deadline(Duration::from_secs(1))
        .retry(retry)
        .start({
            let (finished, door) = (finished.clone(), door.clone());
            move |_| {
                let (finished, door) = (finished.clone(), door.clone());
                move |record: &Record<'_>| {
                    match (record.partition(), record.offset()) {
                        (1, 150) => door.pass(),
                        (2, 150) => panic!("as it is told to"),
                        _ => {}
                    }
                    finished.note(record);
                }
            }
        })
        .expect("the run starts");
    let oracle = Oracle::new(kafka, name, name, 4, Isolation::Committed);
    finished.await_len(SOON, 400);
    assert_true_within_an_interval(&handle, &oracle, &[100; 4], "at the end of everything");

    // One is paused, one handler hangs, one worker dies, one goes on.
    let paused = [TopicPartition::new(name, 0)];
    handle.pause(&paused).expect("it is ours");
    let producer = kafka.producer(&[]);
    let mut end = 100;
    for round in 1..=3_u64 {
        producer.send_numbers(name, 4, end..end + 100 * round);
        producer.flush();
        end += 100 * round;
        let all = usize::try_from(end).expect("a few");
        wait_for(SOON, "the fourth to be at its end", || {
            finished.of(3).len() == all
        });
        events.find(SOON, "the worker's end", |event| {
            (event.kind.name() == "worker_restarted").then_some(())
        });
        let at_end = i64::try_from(end).expect("a few");
        let positions = [100, 151, 151, at_end];
        let when = format!("with everything held, round {round}");
        assert_true_within_an_interval(&handle, &oracle, &positions, &when);
        let snapshot = handle.lag();
        let of = |partition| lag_of(&snapshot, name, partition).expect("it is ours");
        assert!(of(0).paused && of(0).in_flight == 0, "{:?}", of(0));
        for held in [1, 2] {
            let lag = of(held);
            let known = (lag.watermark, lag.committed, lag.in_flight);
            assert_eq!(known, (Some(150), Some(150), 1), "{lag:?}");
            assert!(
                lag.time_lag.is_some_and(|lag| lag > Duration::ZERO),
                "{lag:?}"
            );
        }
        assert_eq!(of(3).time_lag, Some(Duration::ZERO), "{:?}", of(3));
    }
    assert_tool_agrees(kafka, name, name, &handle);

    handle.resume(&paused).expect("it is ours");
    wait_for(SOON, "the paused one to go on", || {
        finished.of(0).len() == 700
    });
    assert_true_within_an_interval(&handle, &oracle, &[700, 151, 151, 700], "after the pause");
    handle.stop();
    let (report, took) = end_of(handle, SOON);
    println!("stopped after {took:?}: {report:?}");
    door.open();
}

/// A run with an isolation level, and who asks the broker with the same.
struct Reader {
    group: &'static str,
    handle: Handle,
    oracle: Oracle,
    finished: Tally,
}

impl Reader {
    fn start(kafka: &Kafka, group: &'static str, topic: &str, isolation: Isolation) -> Self {
        let (events, finished) = (Events::default(), Tally::default());
        let level = match isolation {
            Isolation::Committed => keepup::Isolation::ReadCommitted,
            Isolation::Uncommitted => keepup::Isolation::ReadUncommitted,
        };
        let handle = builder(kafka, group, topic, &events)
            .property("auto.commit.interval.ms", "100")
            .isolation(level)
            .start(finished.handlers());
        Self {
            group,
            handle: handle.expect("the run starts"),
            oracle: Oracle::new(kafka, group, topic, 2, isolation),
            finished,
        }
    }

    fn assert_true(&self, positions: [i64; 2], when: &str) {
        let when = format!("{}: {when}", self.group);
        assert_true_within_an_interval(&self.handle, &self.oracle, &positions, &when);
    }

    fn first_lag(&self) -> Option<u64> {
        self.handle.lag().partitions[0].records_lag
    }
}

#[test]
fn s46_at_transaction_markers_lag_is_zero_and_an_open_transaction_counts_for_who_would_read_it() {
    let kafka = kafka!(shared);
    let name = "lag-s46-transactions";
    kafka.create_topic(name, 2, &[]);
    let producer = kafka.transactional(name);
    // 20 records and a marker each: the last thing in the log is a marker.
    for (round, commits) in [(0, true), (1, false), (2, true), (3, false)] {
        producer.begin();
        producer.send_numbers(name, 2, 20 * round..20 * (round + 1));
        if commits {
            producer.commit();
        } else {
            producer.abort();
        }
    }
    let committed = Reader::start(kafka, "lag-s46-committed", name, Isolation::Committed);
    let uncommitted = Reader::start(kafka, "lag-s46-uncommitted", name, Isolation::Uncommitted);
    for (reader, records) in [(&committed, 40), (&uncommitted, 80)] {
        reader.finished.await_len(SOON, 2 * records);
        // 80 records and 4 markers, whoever sees what of them.
        kafka.wait_for_commits(reader.group, name, &[Some(84); 2]);
        reader.assert_true([84; 2], "behind the last marker");
        for lag in &reader.handle.lag().partitions {
            let behind = (lag.records_lag, lag.committed_lag, lag.time_lag);
            assert_eq!(behind, (Some(0), Some(0), Some(Duration::ZERO)), "{lag:?}");
        }
        assert_tool_agrees(kafka, reader.group, name, &reader.handle);
    }

    // An open transaction: the high watermark moves, the last stable offset does not.
    producer.begin();
    producer.send_numbers(name, 2, 80..90);
    producer.flush();
    let ends = (kafka.end_offsets(name), kafka.stable_offsets(name));
    assert_eq!(ends, (vec![94; 2], vec![84; 2]));
    uncommitted.finished.await_len(SOON, 180);
    uncommitted.assert_true([94; 2], "in an open transaction");
    // The end has not moved for this one, so it has nothing to do.
    committed.assert_true([84; 2], "in an open transaction");
    let mut updates = committed.handle.lag_updates();
    for _ in 0..3 {
        let snapshot = updates.next_within(SOON).expect("a tick");
        assert_eq!(snapshot.total_lag(), Some(0), "what is open does not count");
    }

    // The open one is over while they are paused: all of it counts.
    let first = [TopicPartition::new(name, 0)];
    for reader in [&committed, &uncommitted] {
        reader.handle.pause(&first).expect("it is ours");
        // Its worker is told, and what it has asked the broker for may be answered first: with the marker.
        let mut updates = reader.handle.lag_updates();
        for _ in 0..2 {
            updates.next_within(SOON).expect("a tick");
        }
    }
    producer.commit();
    committed.assert_true([84, 95], "paused before a transaction");
    uncommitted.assert_true([94, 95], "paused before a marker");
    assert_eq!(committed.first_lag(), Some(11), "ten records and a marker");
    assert_eq!(uncommitted.first_lag(), Some(1), "the marker");
    for reader in [committed, uncommitted] {
        reader.handle.stop();
        assert_eq!(end_of(reader.handle, SOON).0.exit_code(), 0);
    }
}
