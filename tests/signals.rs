//! Signals: the first drains, the second cuts short, the third ends; with and without a broker.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::run::SLACK;
use crate::support::{PATIENT, SOON};
use crate::support::{wait_for, wait_until};

/// How long a stop may take beyond its drain.
const CLOSE: Duration = SLACK;

/// How long it may take after a second signal, as is promised, and no longer after a third.
const CUT_SHORT: Duration = Duration::from_secs(2);

/// What the log says, with `-v`, when a signal was taken.
const TAKEN: &str = "asked to stop";

/// Signals that come closer together than 10 ms are taken for one; this is well apart.
const ANOTHER: Duration = Duration::from_millis(50);

/// Waits until the process has taken `count` signals, and until a further one is another.
fn wait_taken(run: &Keepup, count: usize) {
    run.wait_stderr(TAKEN, count, SOON);
    let taken = Instant::now();
    wait_for(SOON, "a further signal to be another", || {
        taken.elapsed() >= ANOTHER
    });
}

/// A topic of two partitions with 1,000 records in each.
fn topic(kafka: &Kafka, name: &str) {
    kafka.create_topic(name, 2, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers(name, 2, 0..1_000);
    producer.flush();
}

/// Waits until the handler of every worker sleeps.
fn wait_in_handlers(run: &mut Keepup, workers: usize) {
    let own = i32::try_from(run.pid()).expect("a process has a number");
    let run = &*run;
    run.wait("the workers to be there", PATIENT, |events| {
        let started = events
            .iter()
            .filter(|event| event["name"] == "worker_started");
        (started.count() >= workers).then_some(())
    });
    // Where workers are processes, theirs.
    let others = run.events().into_iter().filter_map(|event| {
        let pid = event["pid"].as_i64()?;
        i32::try_from(pid).ok()
    });
    let all: Vec<i32> = others.chain([own]).collect();
    wait_sleeping(&all, workers);
}

/// Waits until so many handlers in these processes sleep.
pub(crate) fn wait_sleeping(pids: &[i32], workers: usize) {
    wait_until(SOON, "the handlers to sleep", || {
        let mut sleeping = 0;
        let tasks = pids.iter().flat_map(|pid| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"));
            tasks.expect("it runs").flatten()
        });
        for task in tasks {
            let said = |what: &str| fs::read_to_string(task.path().join(what)).unwrap_or_default();
            // Nothing else in a worker sleeps: it waits on sockets and conditions.
            if said("comm").starts_with("keepup-worker") && said("wchan").contains("nanosleep") {
                sleeping += 1;
            }
        }
        if sleeping == workers {
            Ok(())
        } else {
            Err(sleeping)
        }
    });
}

/// Starts a run whose handlers take a minute, and waits until they are at it.
fn stuck(kafka: &Kafka, topic: &str, group: &str, more: &[&str]) -> Keepup {
    let own = ["-v", "--handler", "sleep=60s"];
    let mut run = Keepup::run(kafka, topic, group, &[&own[..], more].concat());
    wait_in_handlers(&mut run, 2);
    run
}

/// Waits for the end: the exit code, and how long it took.
fn timed_end(run: &mut Keepup) -> (Option<i32>, Duration) {
    let start = Instant::now();
    (run.end(PATIENT), start.elapsed())
}

fn shutdown(run: &Keepup) -> Value {
    let events = run.events();
    let last = events.last().expect("events").clone();
    assert_eq!(last["name"], "shutdown_complete");
    last
}

per_model! {
    finishes_what_is_in_hand {
        sigterm_finishes_the_records_in_hand_and_commits_exactly_what_was_handled,
        s24_sigterm_finishes_what_worker_processes_have_in_hand_and_commits_exactly_that
    }
    leaves_a_stuck_handler_behind {
        a_second_sigterm_leaves_a_stuck_handler_behind,
        s25_a_second_sigterm_kills_worker_processes_whose_handlers_are_stuck
    }
    ends_at_its_deadline {
        a_drain_ends_at_its_deadline_when_a_handler_is_stuck,
        s24_a_drain_ends_at_its_deadline_when_the_handler_of_a_worker_process_is_stuck
    }
}

fn finishes_what_is_in_hand(kafka: &Kafka, name: &str, model: &str) {
    topic(kafka, name);
    let deliveries = Deliveries::new(name, 2);
    let mut run = deliveries.start(kafka, name, &["--handler", "sleep=200ms", "--model", model]);
    deliveries.wait_distinct(5, SOON);
    wait_in_handlers(&mut run, 2);
    run.signal(Signal::TERM);
    let (code, took) = timed_end(&mut run);
    assert_eq!(code, Some(0), "{}", run.stderr());
    assert!(took < CLOSE, "{took:?}");

    let shutdown = shutdown(&run);
    assert_eq!(shutdown["reason"], "signal");
    assert_eq!(shutdown["left_uncommitted"], 0);
    let committed = kafka.committed(name, name);
    let committed: Vec<i64> = committed.into_iter().flatten().collect();
    deliveries.assert_exactly_once(&committed);
}

fn leaves_a_stuck_handler_behind(kafka: &Kafka, name: &str, model: &str) {
    topic(kafka, name);
    let mut run = stuck(kafka, name, name, &["--model", model]);
    run.signal(Signal::TERM);
    wait_taken(&run, 1);
    run.signal(Signal::TERM);
    let (code, took) = timed_end(&mut run);
    assert_eq!(code, Some(3), "{}", run.stderr());
    assert!(took < CUT_SHORT, "{took:?}");

    let shutdown = shutdown(&run);
    assert_eq!(shutdown["reason"], "second-signal");
    assert_eq!(shutdown["left_uncommitted"], 2);
    // The start may be committed; the records are not.
    let committed = kafka.committed(name, name);
    assert!(
        committed
            .iter()
            .all(|committed| committed.unwrap_or(0) == 0),
        "{committed:?}"
    );
}

fn ends_at_its_deadline(kafka: &Kafka, name: &str, model: &str) {
    topic(kafka, name);
    let mut run = stuck(kafka, name, name, &["--drain", "1s", "--model", model]);
    run.signal(Signal::INT);
    let (code, took) = timed_end(&mut run);
    assert_eq!(code, Some(3), "{}", run.stderr());
    let drain = Duration::from_secs(1);
    assert!(took >= drain && took < drain + CLOSE, "{took:?}");
    assert_eq!(shutdown(&run)["reason"], "signal");
}

#[test]
fn a_stop_ends_in_time_when_the_broker_does_not_answer_or_is_gone() {
    let kafka = kafka!(one);
    topic(&kafka, "silent");
    for broker in ["stopped", "killed"] {
        let [slow, late, third] = ["slow", "late", "third"].map(|name| format!("{broker}-{name}"));
        let mut slow = stuck(&kafka, "silent", &slow, &["--drain", "1s"]);
        // Its records are handled and not committed yet.
        let handled = Deliveries::new("silent", 2);
        let rarely = [
            "--drain",
            "1s",
            "-v",
            "-X",
            "auto.commit.interval.ms=3600000",
        ];
        let mut late = handled.start(&kafka, &late, &rarely);
        handled.wait_distinct(2_000, SOON);
        let mut third = stuck(&kafka, "silent", &third, &[]);

        if broker == "stopped" {
            kafka.stop_broker(1);
        } else {
            kafka.kill_broker(1);
        }
        for run in [&mut slow, &mut late] {
            run.signal(Signal::TERM);
            let (code, took) = timed_end(run);
            println!("{broker}: {took:?}");
            assert_eq!(code, Some(3), "{broker}: {}", run.stderr());
            let drain = Duration::from_secs(1);
            assert!(took < drain + CLOSE, "{broker}: {took:?}\n{}", run.stderr());
            assert_eq!(shutdown(run)["reason"], "signal");
        }
        assert_eq!(shutdown(&late)["left_uncommitted"], 2_000);

        // Nobody answers the close that the second asks for, so the third comes before its end.
        for count in 1..=2 {
            third.signal(Signal::TERM);
            wait_taken(&third, count);
        }
        third.signal(Signal::TERM);
        let (code, took) = timed_end(&mut third);
        assert_eq!(code, Some(143), "{broker}: {}", third.stderr());
        assert!(took < CUT_SHORT, "{broker}: {took:?}");
        if broker == "stopped" {
            kafka.cont_broker(1);
        }
    }
}
