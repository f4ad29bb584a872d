//! Many partitions on few workers: memory, fairness, what holds up what, and what it costs to wait.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use keepup::{Outcome, Record, RetryPolicy, TopicPartition, Workers};
use rdkafka::producer::BaseRecord;

use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::run::{Door, Events, Tally, builder, end_of, work_for};
use crate::support::{PATIENT, wait_until};

const MIB: u64 = 1024 * 1024;

/// Partitions of the large topics of this file.
const MANY: i32 = 1_000;

// What a process takes, as the kernel counts it.

fn status(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    number_after(&status, field)
}

fn number_after(status: &str, field: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The most memory that a process had, in bytes.
fn peak(pid: u32) -> u64 {
    status(pid, "VmHWM:") * 1024
}

/// User and system time of a process.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before may contain spaces; after it, times are the 12th and 13th field.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .iter()
        .filter_map(|&index| fields.get(index)?.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// How often the threads of a process went to sleep, by name of thread.
fn sleeps(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut sleeps = Vec::new();
    for task in tasks.into_iter().flatten().flatten() {
        let of = |path: &Path, file: &str| std::fs::read_to_string(path.join(file));
        let path = task.path();
        if let (Ok(name), Ok(status)) = (of(&path, "comm"), of(&path, "status")) {
            let count = number_after(&status, "voluntary_ctxt_switches:");
            sleeps.push((name.trim().to_owned(), count));
        }
    }
    sleeps
}

/// Runs the command over a topic to its end and gives the records that it handled and the most memory that it had.
fn handled_and_peak(kafka: &Kafka, topic: &str, group: &str, workers: &str) -> (u64, u64) {
    let own = [
        "--workers",
        workers,
        "--handler",
        "sleep=20ms",
        "--until-end",
    ];
    let mut run = Keepup::run(kafka, topic, group, &own);
    let pid = run.pid();
    let mut most = 0;
    let start = Instant::now();
    let ended = |run: &Keepup| {
        run.events()
            .iter()
            .any(|event| event["name"] == "shutdown_complete")
    };
    while !ended(&run) {
        most = most.max(peak(pid));
        assert!(start.elapsed() < 3 * PATIENT, "{}", run.stderr());
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    let handled = run
        .events()
        .iter()
        .filter(|event| event["name"] == "records_consumed")
        .filter_map(|event| event["count"].as_u64())
        .sum();
    println!(
        "{topic}, {workers} workers: {handled} records in {:.1} s, peak {:.1} MiB",
        start.elapsed().as_secs_f64(),
        peak_mib(most)
    );
    (handled, most)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a figure for people, far below what a float counts exactly"
)]
fn peak_mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// The budget for records, and what a process with a thousand partitions takes beside it: librdkafka with its
/// metadata, trackers and windows, threads, the buffers in which requests are built (some 25 MiB), and what the
/// allocator does not give back.
const BUDGET: u64 = 48 * MIB;
const BESIDE: u64 = 40 * MIB;

#[test]
fn the_memory_budget_holds_for_a_thousand_partitions_of_one_mebibyte_records() {
    let kafka = kafka!(one);
    let producer = kafka.producer(&[
        ("message.max.bytes", "2000000"),
        ("queue.buffering.max.kbytes", "65536"),
    ]);
    let compressing = kafka.producer(&[
        ("message.max.bytes", "2000000"),
        ("queue.buffering.max.kbytes", "65536"),
        ("compression.type", "lz4"),
    ]);
    // With what a batch adds, just below what a broker takes.
    let payload: Vec<u8> = (0..=250_u8).cycle().take(1_040_000).collect();
    for (topic, producer) in [("large-plain", &producer), ("large-lz4", &compressing)] {
        kafka.create_topic(topic, MANY, &[]);
        for partition in 0..MANY {
            producer.send(
                BaseRecord::to(topic)
                    .partition(partition)
                    .payload(&payload[..]),
            );
        }
        producer.flush();
        for workers in ["4", "16"] {
            let group = format!("{topic}-{workers}");
            let (handled, most) = handled_and_peak(&kafka, topic, &group, workers);
            assert_eq!(handled, u64::from(MANY.unsigned_abs()));
            assert!(
                most < BUDGET + BESIDE,
                "{topic}, {workers} workers: peak {:.1} MiB",
                peak_mib(most)
            );
        }
    }
}

/// The partitions of the topic in which one fails, one is paused and one is slow.
const FAILING: i32 = 0;
const PAUSED: i32 = 1;
const SLOW: i32 = 2;
const PARTITIONS: i32 = 8;

#[test]
fn a_paused_a_slow_and_a_retrying_partition_hold_up_none_of_the_others() {
    let kafka = kafka!(shared);
    let topic = "flow-held-up";
    kafka.create_topic(topic, PARTITIONS, &[]);
    let producer = kafka.producer(&[("linger.ms", "0")]);
    let (events, tally) = (Events::default(), Tally::default());
    let noted = tally.clone();
    let mut retry = RetryPolicy::default();
    retry.attempts = u32::MAX;
    retry.max_backoff = Duration::from_millis(400);
    let handle = builder(kafka, topic, topic, &events)
        .workers(Workers::Fixed(1))
        .retry(retry)
        .start(move |_| {
            let tally = noted.clone();
            move |record: &Record<'_>| {
                tally.note(record);
                match record.partition() {
                    FAILING => return Outcome::retry("always"),
                    SLOW => work_for(Duration::from_millis(10)),
                    _ => {}
                }
                Outcome::Done
            }
        })
        .expect("the run starts");
    wait_until(PATIENT, "the partitions", || {
        let count = handle.partitions().len();
        if count == 8 { Ok(()) } else { Err(count) }
    });

    // A record is produced to one of the others, and handled, and then the next.
    let (mut next, mut handled) = (0, 0);
    let mut ping = |rounds: usize| {
        let mut took: Vec<Duration> = Vec::new();
        for _ in 0..rounds {
            for partition in SLOW + 1..PARTITIONS {
                let start = Instant::now();
                producer.send_numbers_to(topic, partition, next..next + 1);
                producer.flush();
                wait_until(PATIENT, "a record of another partition", || {
                    let seen = tally.of(partition).len();
                    if seen > handled { Ok(()) } else { Err(seen) }
                });
                took.push(start.elapsed());
            }
            next += 1;
            handled += 1;
        }
        took.sort_unstable();
        took[took.len() / 2]
    };
    let alone = ping(4);

    handle
        .pause(&[TopicPartition::new(topic, PAUSED)])
        .expect("it is ours");
    let backlog = kafka.producer(&[]);
    for partition in [FAILING, PAUSED, SLOW] {
        backlog.send_numbers_to(topic, partition, 0..3_000);
    }
    backlog.flush();
    wait_until(PATIENT, "the troubles to begin", || {
        let seen = (tally.of(FAILING).len(), tally.of(SLOW).len());
        if seen.0 >= 2 && seen.1 >= 2 {
            Ok(())
        } else {
            Err(seen)
        }
    });
    let retries = tally.of(FAILING).len();
    let beside = ping(8);
    println!("a record of another partition: {alone:?} alone, {beside:?} beside the troubles");
    assert!(tally.of(PAUSED).is_empty(), "it is paused");
    assert!(
        tally.of(FAILING).len() > retries,
        "it is tried again meanwhile"
    );
    let slow = tally.of(SLOW).len();
    assert!(slow < 3_000, "it is behind all the while: {slow}");
    // A turn of the slow one takes 50 ms. A long poll that held up the others would take up to 250 ms more each time.
    assert!(
        beside < 2 * alone + Duration::from_millis(120),
        "{beside:?} beside, {alone:?} alone"
    );
    handle.stop();
    let (report, _) = end_of(handle, PATIENT);
    // The record that always fails is all that is left.
    assert_eq!(report.left_uncommitted, 1, "{report:?}");
}

#[test]
fn a_worker_with_a_backlog_in_two_hundred_partitions_is_fair_to_each() {
    const FAIR: i32 = 200;
    const BACKLOG: u32 = 256;
    let kafka = kafka!(shared);
    let topic = "flow-fair";
    kafka.create_topic(topic, FAIR, &[]);
    // A batch is given whole or not at all, so small ones: some 31 records each.
    let producer = kafka.producer(&[("batch.size", "32768")]);
    let payload = [7_u8; 1024];
    for partition in 0..FAIR {
        for _ in 0..BACKLOG {
            let record = BaseRecord::to(topic).partition(partition);
            producer.send(record.payload(&payload[..]));
        }
        if partition % 20 == 19 {
            producer.flush();
        }
    }
    let (events, tally, door) = (Events::default(), Tally::default(), Door::default());
    let handle = builder(kafka, topic, topic, &events)
        .workers(Workers::Fixed(1))
        .until_end(true)
        .start({
            let (tally, door) = (tally.clone(), door.clone());
            move |_| {
                let (tally, door) = (tally.clone(), door.clone());
                move |record: &Record<'_>| {
                    door.pass();
                    tally.note(record);
                }
            }
        })
        .expect("the run starts");
    // Those whose start is known first have no head start.
    wait_until(PATIENT, "where each starts", || {
        let views = handle.partitions();
        let known = views.iter().filter(|view| view.position.is_some()).count();
        if known == usize::try_from(FAIR).expect("a count") {
            Ok(())
        } else {
            Err(known)
        }
    });
    door.open();
    let (report, took) = end_of(handle, 3 * PATIENT);
    assert_eq!(report.exit_code(), 0, "{report:?}");
    tally.assert_each_once(FAIR, BACKLOG.into());

    // How far each was whenever one of them had come through a quarter, a half, three quarters.
    let mut counts: BTreeMap<i32, u32> = (0..FAIR).map(|partition| (partition, 0)).collect();
    let mut marks = [BACKLOG / 4, BACKLOG / 2, BACKLOG * 3 / 4].into_iter();
    let mut mark = marks.next();
    let mut shown = String::new();
    for seen in tally.all() {
        let count = counts.entry(seen.partition).or_default();
        *count += 1;
        if Some(*count) == mark {
            let least = counts.values().min().copied().unwrap_or(0);
            let _ = write!(shown, " {least} of {}", mark.unwrap_or(0));
            // An answer holds 64 KiB of each partition, and two are under way.
            assert!(
                least + 2 * 64 >= mark.unwrap_or(0),
                "one is at {mark:?} while another is at {least}"
            );
            mark = marks.next();
        }
    }
    println!("the slowest of {FAIR} partitions:{shown}; {took:?} in all");
}

#[test]
fn a_thousand_idle_partitions_cost_next_to_nothing() {
    let kafka = kafka!(one);
    let topic = "flow-idle";
    kafka.create_topic(topic, MANY, &[]);
    let own = ["--workers", "16", "--listen", "127.0.0.1:0"];
    let mut run = Keepup::run(&kafka, topic, topic, &own);
    let pid = run.pid();
    run.wait("every partition", PATIENT, |events| {
        let given: usize = events
            .iter()
            .filter(|event| event["name"] == "partitions_assigned")
            .filter_map(|event| event["partitions"].as_array().map(Vec::len))
            .sum();
        (given >= usize::try_from(MANY).unwrap_or(0)).then_some(())
    });
    // Until the first commits and the first answers are through: two looks that cost alike.
    let look = |length: Duration| {
        let (before, slept) = (cpu(pid), sleeps(pid));
        let start = Instant::now();
        work_for(length);
        let took = start.elapsed();
        let share = cpu(pid).saturating_sub(before).as_secs_f64() / took.as_secs_f64();
        let after = sleeps(pid);
        let count = |sleeps: &[(String, u64)]| sleeps.iter().map(|(_, count)| count).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = count(&after).saturating_sub(count(&slept)) as f64 / took.as_secs_f64();
        (share, rate)
    };
    let settled = wait_until(PATIENT, "the start to be over", || {
        let (share, rate) = look(Duration::from_secs(3));
        if share < 0.6 {
            Ok((share, rate))
        } else {
            Err((share, rate))
        }
    });
    let (share, rate) = look(Duration::from_secs(10));
    let resident = status(pid, "VmRSS:") * 1024;
    println!(
        "idle: {:.1} % of a core, {rate:.0} sleeps a second, {:.1} MiB resident (settled at {settled:?})",
        share * 100.0,
        peak_mib(resident)
    );
    assert!(share < 0.5, "{share}");
    assert!(rate < 1_000.0, "{rate} sleeps a second");
    assert!(resident < 96 * MIB, "{resident} bytes are resident");
    run.signal(rustix::process::Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
}
