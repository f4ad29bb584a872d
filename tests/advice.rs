//! The advice on how many workers, at a real load: what a producer sends is twice what the workers can do, then half.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::cluster::free_ports;
use crate::support::kafka::Kafka;
use crate::support::keepup::Keepup;
use crate::support::process::thread;
use crate::support::prometheus::get;
use crate::support::{PATIENT, SOON, wait_until};

const PARTITIONS: i32 = 4;

/// How often the load is sent, and `/lag` is looked at.
const STEP: Duration = Duration::from_millis(100);

/// A producer that sends so many records per second, and goes on until it is dropped.
struct Load {
    per_second: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(kafka: &Kafka, topic: &'static str, per_second: u64) -> Self {
        let producer = kafka.producer(&[]);
        let per_second = Arc::new(AtomicU64::new(per_second));
        let enough = Arc::new(AtomicBool::new(false));
        let thread = thread("load", {
            let (per_second, enough) = (Arc::clone(&per_second), Arc::clone(&enough));
            move || {
                let mut next = Instant::now();
                while !enough.load(Ordering::Relaxed) {
                    // Each number goes to every partition.
                    let steps = 10 * u64::from(PARTITIONS.unsigned_abs());
                    let numbers = per_second.load(Ordering::Relaxed) / steps;
                    producer.send_numbers(topic, PARTITIONS, 0..numbers);
                    next += STEP;
                    wait_for_time(next);
                }
                producer.flush();
            }
        });
        Self {
            per_second,
            enough,
            thread: Some(thread),
        }
    }

    fn set(&self, per_second: u64) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The load is a matter of time: this is its clock.
fn wait_for_time(until: Instant) {
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
        if left.is_zero() {
            return;
        }
    }
}

/// The advices of the next so many seconds.
fn looked_at(address: SocketAddr, seconds: u64) -> Vec<Value> {
    let start = Instant::now();
    let looks = (1..=seconds).map(|second| {
        wait_for_time(start + Duration::from_secs(second));
        let (status, body) = get(address, "/lag").expect("an answer");
        assert_eq!(status, 200);
        serde_json::from_str(&body).expect("it is JSON")
    });
    looks.collect()
}

fn told(look: &Value) -> Option<u64> {
    look["recommended_workers"].as_u64()
}

/// Two workers that sleep 5 ms for a record, without order: workers are not bound to partitions.
fn start(kafka: &Kafka, topic: &str, model: &str) -> (Keepup, SocketAddr) {
    let port = free_ports(1)[0];
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listen = address.to_string();
    let run = Keepup::start(&[
        "run",
        "--bootstrap",
        kafka.bootstrap(),
        "--group",
        topic,
        "--topic",
        topic,
        "--order",
        "unordered",
        "--workers",
        "2",
        "--model",
        model,
        "--handler",
        "sleep=5ms",
        "--listen",
        &listen,
    ]);
    wait_until(SOON, "the run to own its partitions", || {
        match get(address, "/health/ready") {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        }
    });
    (run, address)
}

#[expect(clippy::cast_precision_loss, reason = "it is small")]
fn off(told: u64, right: f64) -> f64 {
    (told as f64 - right).abs()
}

/// Seconds in handlers, and records, since the start.
fn handled(address: SocketAddr) -> [f64; 2] {
    let (_, page) = get(address, "/metrics").expect("an answer");
    ["sum", "count"].map(|of| {
        let name = format!("keepup_handler_seconds_{of}{{");
        let values = page.lines().filter(|line| line.starts_with(&name));
        let values = values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    })
}

/// What the rule gives for what is sent and for the lag, where records cost what they did between these two looks. A
/// sleep of 5 ms takes longer on a busy machine.
#[expect(clippy::cast_precision_loss, reason = "it is small")]
fn right(per_second: u64, look: &Value, before: [f64; 2], after: [f64; 2]) -> f64 {
    let cost = (after[0] - before[0]) / (after[1] - before[1]);
    let lag = look["total_lag"].as_u64().expect("it is known") as f64;
    let arrivals = per_second as f64;
    let right = (arrivals * cost / 0.8).max((arrivals + lag / 300.0) * cost);
    println!("{per_second} records per second of {cost} s, lag {lag}: {right} workers");
    right
}

#[test]
fn at_a_real_load_the_advice_is_unknown_for_half_a_minute_and_then_asks_for_more() {
    asks_for_more(kafka!(shared), "advice-soon", "threads");
}

#[test]
fn at_a_real_load_the_advice_of_processes_is_what_that_of_threads_would_be() {
    asks_for_more(kafka!(shared), "advice-soon-processes", "processes");
}

fn asks_for_more(kafka: &Kafka, topic: &'static str, model: &str) {
    kafka.create_topic(topic, PARTITIONS, &[]);
    let (mut run, address) = start(kafka, topic, model);
    let load = Load::start(kafka, topic, 800);
    let before = handled(address);
    let looks = looked_at(address, 45);
    assert!(looks[..20].iter().all(|look| told(look).is_none()));
    let last = looks.last().expect("there are some");
    let right = right(800, last, before, handled(address)).ceil();
    let told = told(last).expect("it is known");
    assert!(
        off(told, right) <= 1.0,
        "told {told}, right {right}: {last}"
    );
    assert!(last["busy"].as_f64() > Some(0.5), "{last}");
    let (_, page) = get(address, "/metrics").expect("an answer");
    let series = format!("keepup_recommended_workers{{group_id=\"{topic}\"");
    assert!(page.contains(&series), "{page}");
    drop(load);
    run.signal(Signal::TERM);
    assert!(run.end(PATIENT).is_some());
    let report = format!("the load wanted {told} workers");
    assert!(run.stderr().contains(&report), "{}", run.stderr());
}

#[test]
#[ignore = "five minutes"]
fn two_minutes_after_a_load_changed_the_advice_is_right_within_a_worker_and_stands_still() {
    follows_the_load(kafka!(shared), "advice", "threads");
}

#[test]
#[ignore = "five minutes"]
fn two_minutes_after_a_load_changed_the_advice_of_processes_is_right_within_a_worker_and_stands_still()
 {
    follows_the_load(kafka!(shared), "advice-processes", "processes");
}

fn follows_the_load(kafka: &Kafka, topic: &'static str, model: &str) {
    kafka.create_topic(topic, PARTITIONS, &[]);
    let (_run, address) = start(kafka, topic, model);
    let load = Load::start(kafka, topic, 800);
    for per_second in [800, 200] {
        load.set(per_second);
        let mut looks = looked_at(address, 60);
        let before = handled(address);
        looks.extend(looked_at(address, 60));
        let last = looks.last().expect("there are some");
        let right = right(per_second, last, before, handled(address)).ceil();
        let now = told(last).expect("it is known");
        looks.extend(looked_at(address, 15));
        let numbers: Vec<_> = looks.iter().map(told).collect();
        println!("{numbers:?}");
        assert!(off(now, right) <= 1.0, "told {now}, right {right}");
        // It never goes there and back.
        let known: Vec<_> = numbers[60..].iter().flatten().collect();
        let ups = known.windows(2).any(|of| of[0] < of[1]);
        let downs = known.windows(2).any(|of| of[0] > of[1]);
        assert!(!(ups && downs), "{numbers:?}");
    }
    drop(load);
}
