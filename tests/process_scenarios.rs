//! Failures that were seen in the field, with workers that are processes: what is in hand is in another process than
//! what decides about it.

use std::io::Write as _;
use std::net::SocketAddr;

use keepup::{Model, OnExhausted, Order, Record, RetryPolicy, WorkerInfo, Workers};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::processes::{PROCESSES, assert_gives_up, pid, wait_gone, wait_workers, workers};
use crate::support::cluster::free_ports;
use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::members::Protocol;
use crate::support::notes::{HOLD, Notes};
use crate::support::prometheus::get;
use crate::support::{PATIENT, SOON, wait_until};
use crate::takeover::{properties, start, wait_for_partitions};

per_protocol! {
    s04_a_partition_that_comes_back_waits_for_the_process_that_has_a_record_of_its_former_life {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
}

/// The arguments of a member whose workers are processes.
fn arguments(protocol: Protocol, handler: String) -> Vec<String> {
    let mut arguments = properties(protocol);
    arguments.extend(PROCESSES.map(str::to_owned));
    arguments.extend(["--handler".to_owned(), handler]);
    arguments
}

/// A member that has record 5 of each partition in hand.
struct Holder<'a> {
    kafka: &'a Kafka,
    topic: &'a str,
    notes: &'a Notes,
    deliveries: Deliveries,
    address: SocketAddr,
    run: Keepup,
    pids: Vec<i32>,
}

impl<'a> Holder<'a> {
    /// Starts it on a new topic of so many partitions with 20 records each; everything before is committed.
    fn start(
        kafka: &'a Kafka,
        topic: &'a str,
        notes: &'a Notes,
        protocol: Protocol,
        partitions: usize,
    ) -> Self {
        let number = i32::try_from(partitions).expect("a few");
        kafka.filled_topic(topic, number, 0..20);
        let deliveries = Deliveries::new(topic, partitions);
        let address = SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0]));
        let mut arguments = arguments(protocol, notes.handler("a", HOLD));
        let own = [
            "--workers",
            &partitions.to_string(),
            "--listen",
            &address.to_string(),
        ];
        arguments.extend(own.map(str::to_owned));
        let run = start(&deliveries, kafka, topic, &arguments);
        let pids = wait_workers(&run, partitions);
        notes.wait_given("a", 0..number.into(), 5);
        kafka.wait_for_commits(topic, topic, &vec![Some(5); partitions]);
        Self {
            kafka,
            topic,
            notes,
            deliveries,
            address,
            run,
            pids,
        }
    }

    /// The partition is this member's again, from its commit on, while a worker's process still has record 5 of its
    /// former life. That comes again when the process is done with it, and nothing comes of what it did.
    fn wait_back(&self, partition: i64) {
        wait_until(PATIENT, "the partition to be back", || {
            let lag = look(self.address)?;
            let entry = entry(&lag, partition);
            // It has a position again, and nobody works on it.
            if entry["position"] == 5 && entry["worker"].is_null() {
                Ok(())
            } else {
                Err(lag.to_string())
            }
        });
        let given = || self.notes.given("a", partition);
        assert_eq!(given(), [0, 1, 2, 3, 4, 5], "not before it is done with it");
        self.notes.let_one_through(partition);
        wait_until(SOON, "the record to be given again", || match given() {
            given if given.len() > 6 => Ok(()),
            given => Err(given),
        });
        assert_eq!(given(), [0, 1, 2, 3, 4, 5, 5]);
        assert_eq!(self.committed()[index(partition)], Some(5));
    }

    fn committed(&self) -> Vec<Option<i64>> {
        self.kafka.committed(self.topic, self.topic)
    }

    /// Lets everything go on to its end, and ends the run: all is committed, by the same processes as ever, and so
    /// many records were handled twice.
    fn finish(mut self, repeats: u64) {
        self.notes.open_all();
        let ends = vec![20; self.pids.len()];
        let all: Vec<_> = ends.iter().copied().map(Some).collect();
        self.kafka.wait_for_commits(self.topic, self.topic, &all);
        let pids: Vec<i32> = workers(&self.run.events()).into_iter().collect();
        assert!(!pids.is_empty());
        assert!(
            pids.iter().all(|pid| self.pids.contains(pid)),
            "a handler that takes long is no fault: {:?}, then {pids:?}",
            self.pids
        );
        self.run.signal(Signal::TERM);
        assert_eq!(self.run.end(PATIENT), Some(0), "{}", self.run.stderr());
        self.deliveries.assert_complete(&ends);
        assert_eq!(self.deliveries.repeats(), repeats);
        assert_eq!(self.committed(), all);
        wait_gone(&self.pids);
    }
}

/// What a run says of its lag.
fn look(address: SocketAddr) -> Result<Value, String> {
    let (_, body) = get(address, "/lag")?;
    serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
}

/// What it says of one partition; nothing where that is not its own.
fn entry(lag: &Value, partition: i64) -> Value {
    let entries = lag["partitions"].as_array().into_iter().flatten();
    let mut of_it = entries.filter(|entry| entry["partition"] == partition);
    of_it.next().cloned().unwrap_or_default()
}

fn index(partition: i64) -> usize {
    usize::try_from(partition).expect("it is positive")
}

/// The partition that a member of one has.
fn only_partition(run: &Keepup) -> i64 {
    let partitions = wait_for_partitions(run, 1);
    partitions.into_iter().next().expect("one")
}

fn s04_a_partition_that_comes_back_waits_for_the_process_that_has_a_record_of_its_former_life(
    kafka: &Kafka,
    topic: &str,
    protocol: Protocol,
) {
    let notes = Notes::new();
    let a = Holder::start(kafka, topic, &notes, protocol, 2);
    // B takes one partition, completes nothing of it, and goes.
    let gives_up = notes.handler("b", "echo 'retry not here'; continue");
    let mut gives_up = arguments(protocol, gives_up);
    gives_up.extend(["--retry-backoff", "30s"].map(str::to_owned));
    let mut b = start(&a.deliveries, kafka, topic, &gives_up);
    let moved = only_partition(&b);
    notes.wait_given("b", moved..moved + 1, 5);
    b.signal(Signal::TERM);
    assert_eq!(b.end(PATIENT), Some(3), "one is left: {}", b.stderr());

    a.wait_back(moved);
    // The other partition goes on and is committed; this one stands where it was, whatever the old handler said.
    notes.let_one_through(1 - moved);
    let mut expected = [Some(20); 2];
    expected[index(moved)] = Some(5);
    kafka.wait_for_commits(topic, topic, &expected);
    assert_eq!(notes.given("a", moved).len(), 7);
    a.finish(1);
}

#[test]
fn s05_an_eager_rebalance_gives_a_worker_process_its_partition_back_and_it_goes_on_from_the_commit()
{
    let kafka = kafka!(shared);
    let (topic, notes) = ("s05-eager-processes", Notes::new());
    let a = Holder::start(kafka, topic, &notes, Protocol::Eager, 2);
    let fast = arguments(Protocol::Eager, notes.handler("b", ""));
    let mut b = start(&a.deliveries, kafka, topic, &fast);
    let moved = only_partition(&b);
    // Everything was taken from A, whose processes did not let go in time; it has one again, which the other process
    // could begin with at once.
    notes.let_one_through(moved);
    a.wait_back(1 - moved);
    let mut expected = [Some(5); 2];
    expected[index(moved)] = Some(20);
    kafka.wait_for_commits(topic, topic, &expected);
    notes.open_all();
    kafka.wait_for_commits(topic, topic, &[Some(20); 2]);
    b.signal(Signal::TERM);
    assert_eq!(b.end(PATIENT), Some(0), "{}", b.stderr());
    assert_eq!(notes.given("b", moved), (5..20).collect::<Vec<_>>());
    // The records that A had in hand when everything was taken.
    a.finish(2);
}

#[test]
fn s09_when_the_session_of_a_member_with_processes_expires_nothing_is_committed_and_it_goes_on() {
    let kafka = kafka!(patient);
    let (topic, notes) = ("s09-lost-processes", Notes::new());
    let a = Holder::start(&kafka, topic, &notes, Protocol::Cooperative, 1);
    // Nothing answers any more; the client gives its session up by itself.
    kafka.stop_broker(1);
    wait_until(PATIENT, "the partition to be gone", || {
        let lag = look(a.address)?;
        if entry(&lag, 0).is_null() {
            Ok(())
        } else {
            Err(lag.to_string())
        }
    });
    kafka.cont_broker(1);
    a.wait_back(0);
    let told = a
        .run
        .events()
        .into_iter()
        .filter(|event| event["name"] == "partitions_lost");
    let lost: Vec<Value> = told
        .map(|event| event["partitions"][0]["partition"].clone())
        .collect();
    assert_eq!(lost, [0], "told when its handler has returned");
    a.finish(1);
}

#[test]
fn s15_a_record_at_which_worker_processes_die_each_time_ends_the_run_and_holds_up_no_other() {
    let kafka = kafka!(shared);
    let (topic, notes) = ("s15-deadly", Notes::new());
    kafka.filled_topic(topic, 2, 0..20);
    let deliveries = Deliveries::new(topic, 2);
    // The worker is the parent of its handler.
    let deadly = r#"case "$line" in *'"partition":1,'*) kill -9 $PPID; exec sleep 60;; esac"#;
    let mut arguments = arguments(Protocol::Cooperative, notes.handler("a", deadly));
    arguments.extend(["--workers", "2"].map(str::to_owned));
    let mut run = start(&deliveries, kafka, topic, &arguments);
    assert_gives_up(&mut run, "was ended by signal 9");
    let committed = kafka.committed(topic, topic);
    // Who dies at once has not told of what it did before.
    assert!(
        matches!(committed[..], [Some(20), Some(0..=5)]),
        "{committed:?}"
    );
    deliveries.assert_printed_before_committed();
    assert_eq!(deliveries.next(), [20, 5]);
    let tried = notes
        .given("a", 1)
        .iter()
        .filter(|&&offset| offset == 5)
        .count();
    assert!(
        (6..=12).contains(&tried),
        "five restarts of one worker, and no more of the other: {tried}"
    );
}

#[test]
fn s18_attempts_are_counted_on_when_a_worker_process_dies_and_anew_by_the_next_member() {
    let kafka = kafka!(shared);
    let (topic, notes) = ("s18-processes", Notes::new());
    kafka.filled_topic(topic, 1, 0..10);
    let deliveries = Deliveries::new(topic, 1);
    let run = |name| {
        let fails = notes.handler(name, "echo 'retry not yet'; continue");
        let mut arguments = arguments(Protocol::Cooperative, fails);
        let often = ["--retry-attempts", "1000", "--retry-backoff", "20ms"];
        arguments.extend(often.map(str::to_owned));
        start(&deliveries, kafka, topic, &arguments)
    };
    let attempts = |name| {
        let all = notes
            .given(name, 0)
            .into_iter()
            .zip(notes.numbers(name, 0, "attempt"));
        let of_it = all.filter(|&(offset, _)| offset == 5);
        of_it.map(|(_, attempt)| attempt).collect::<Vec<i64>>()
    };
    let wait_attempts = |name, count| {
        wait_until(SOON, "the record to be tried again", || {
            let attempts = attempts(name);
            if attempts.len() >= count {
                Ok(attempts.len())
            } else {
                Err(attempts)
            }
        })
    };

    let mut first = run("first");
    let pids = wait_workers(&first, 1);
    // What is before the record is told by then.
    kafka.wait_for_commits(topic, topic, &[Some(5)]);
    let tried = wait_attempts("first", 3);
    kill_process(pid(pids[0]), Signal::KILL).expect("it runs");
    first.next("worker_stopped", SOON);
    wait_attempts("first", tried + 3);
    first.signal(Signal::TERM);
    assert_eq!(
        first.end(PATIENT),
        Some(3),
        "one is left: {}",
        first.stderr()
    );
    let counted = attempts("first");
    assert_eq!(counted[0], 1);
    // The attempt in which the process died may not count.
    let steps: Vec<i64> = counted.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let slips = steps.iter().filter(|&&step| step != 1).count();
    assert!(
        slips <= 1 && steps.iter().all(|step| (0..=1).contains(step)),
        "{counted:?}"
    );

    let mut second = run("second");
    wait_attempts("second", 3);
    second.signal(Signal::TERM);
    assert_eq!(second.end(PATIENT), Some(3), "{}", second.stderr());
    let counted = attempts("second");
    let anew: Vec<i64> = (1..).take(counted.len()).collect();
    assert_eq!(counted, anew, "from 1, one by one");
    assert_eq!(kafka.committed(topic, topic), [Some(5)]);
}

#[test]
fn s22_a_worker_process_that_is_stuck_is_reported_with_its_partition_and_the_others_go_on() {
    let kafka = kafka!(shared);
    let (topic, notes) = ("s22-processes", Notes::new());
    kafka.filled_topic(topic, 4, 0..20);
    for partition in [0, 2, 3] {
        notes.let_one_through(partition);
    }
    let deliveries = Deliveries::new(topic, 4);
    let address = SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0]));
    let mut arguments = arguments(Protocol::Cooperative, notes.handler("a", HOLD));
    let listen = address.to_string();
    let own = ["--workers", "2", "--listen", &listen, "--stuck-after", "2s"];
    arguments.extend(own.map(str::to_owned));
    let mut run = start(&deliveries, kafka, topic, &arguments);
    let pids = wait_workers(&run, 2);
    let reason = wait_until(SOON, "the stuck worker to be told", || {
        match get(address, "/health/live")? {
            (503, body) => Ok(body),
            (_, body) => Err(body),
        }
    });
    let lag = look(address).expect("an answer");
    let worker = entry(&lag, 1)["worker"].clone();
    for words in [
        format!("worker {worker}"),
        format!("{topic}-1"),
        "offset 5 ".to_owned(),
    ] {
        assert!(reason.contains(&words), "{words:?} in {reason:?}");
    }
    let ready = get(address, "/health/ready").map(|answer| answer.0);
    assert_eq!(ready, Ok(200), "it is a member all the same");

    // What the other process has goes on, and is committed.
    let others: Vec<usize> = (0..4)
        .filter(|&partition| entry(&lag, partition)["worker"] != worker)
        .map(index)
        .collect();
    assert_eq!(others.len(), 2, "{lag}");
    for end in [40, 60] {
        kafka.fill(topic, 4, end - 20..end);
        let end = i64::try_from(end).expect("a few");
        wait_until(SOON, "the others to be committed", || {
            let committed = kafka.committed(topic, topic);
            let at_end = others.iter().all(|&other| committed[other] == Some(end));
            if at_end { Ok(()) } else { Err(committed) }
        });
        let stuck = entry(&look(address).expect("an answer"), 1);
        assert_eq!(
            (&stuck["committed"], &stuck["position"]),
            (&5.into(), &6.into())
        );
    }
    assert_eq!(get(address, "/health/live").map(|answer| answer.0), Ok(503));
    assert_eq!(wait_workers(&run, 2), pids, "it is told, and left alone");

    notes.open_all();
    wait_until(SOON, "it to be live again", || {
        match get(address, "/health/live")? {
            (200, _) => Ok(()),
            (_, body) => Err(body),
        }
    });
    kafka.wait_for_commits(topic, topic, &[Some(60); 4]);
    run.signal(Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    deliveries.assert_exactly_once(&[60; 4]);
    wait_gone(&pids);
}

/// The brokers and the topic of [`a_program_that_panics_at_one_record`]. Whoever runs that test without it has no program.
const PANICS: &str = "KEEPUP_PANICS";

#[test]
#[ignore = "a program for another test: it starts it"]
fn a_program_that_panics_at_one_record() {
    let Ok(given) = std::env::var(PANICS) else {
        return;
    };
    let (bootstrap, topic) = given.split_once(' ').expect("brokers and a topic");
    let mut retry = RetryPolicy::default();
    retry.attempts = 3;
    retry.on_exhausted = OnExhausted::Skip;
    let ended = keepup::builder(bootstrap, topic)
        .topic(topic)
        .order(Order::Key)
        .model(Model::Processes)
        .workers(Workers::Fixed(2))
        .retry(retry)
        .until_end(true)
        .on_event(|event| {
            let _ = writeln!(std::io::stderr(), "{event}");
        })
        .run(|_: WorkerInfo| {
            |record: &Record<'_>| assert!((record.partition(), record.offset()) != (1, 5))
        });
    let report = ended.expect("it starts");
    // The harness would end with a code of its own.
    std::process::exit(report.exit_code());
}

#[test]
fn s15_the_attempts_of_a_record_that_takes_down_one_process_after_the_other_are_counted_in_key_order()
 {
    let kafka = kafka!(shared);
    let topic = "s15-by-key";
    kafka.filled_topic(topic, 2, 0..20);
    let test = "process_scenarios::a_program_that_panics_at_one_record";
    let given = format!("{PANICS}={} {topic}", kafka.bootstrap());
    let mut run = Keepup::start_again(&given, test);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    let log = run.stderr();
    let failures: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("record=s15-by-key-1@5 "))
        .filter_map(|line| line.split(" error=").next())
        .collect();
    let attempts = ["record_retried", "record_retried", "record_skipped"];
    assert_eq!(failures.len(), 3, "{log}");
    for ((failure, name), attempt) in failures.iter().zip(attempts).zip(1..) {
        let told = format!("attempt={attempt}");
        assert!(
            failure.contains(name) && failure.ends_with(&told),
            "{failures:?}"
        );
    }
    assert_eq!(kafka.committed(topic, topic), [Some(20); 2]);
}
