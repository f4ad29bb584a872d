//! The rows about orders smaller than a partition, and about handlers that fail.
//!
//! - *orders*: what a record costs where any worker takes it, beside what it
//!   costs in partition order, with a handler that does nothing.
//! - *slow*: 64 workers whose handler sleeps, over one partition, beside 64
//!   threads that do nothing but sleep. What is missing of them is the time in
//!   which a worker had no record.
//! - *storm*: every record fails twice, beside the same without failures. What
//!   counts is what an attempt costs, and the memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keepup::{Handler, Order, Outcome, Record, RetryPolicy, Workers};

use crate::clients::{self, Task, With};
use crate::measure::{Measured, Sum};
use crate::results::Cell;
use crate::rows::Work;

/// How long a slow handler takes.
const SLEEP: Duration = Duration::from_millis(5);

/// How often a record fails in a storm.
const FAILURES: u32 = 2;

/// Who takes turns in a row, and what is told to `keepup perf` where it is that.
type Turns = [(&'static str, Client)];

enum Client {
    Perf(&'static [&'static str]),
    /// One of this program's own.
    Own(&'static str),
}

const ORDERS: &Turns = &[
    ("keepup-partition", Client::Perf(&["--order", "partition"])),
    ("keepup-key", Client::Perf(&["--order", "key"])),
    ("keepup-unordered", Client::Perf(&["--order", "unordered"])),
];

const SLOW: &Turns = &[
    ("sleepers", Client::Own("sleepers")),
    (
        "keepup-unordered",
        Client::Perf(&["--order", "unordered", "--sleep", "5ms"]),
    ),
    (
        "keepup-key",
        Client::Perf(&["--order", "key", "--sleep", "5ms"]),
    ),
];

const STORM: &Turns = &[
    ("keepup-calm", Client::Own("calm")),
    ("keepup-storm", Client::Own("storm")),
];

/// Which of the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of {
    Orders,
    Slow,
    Storm,
}

/// Clients in turns, round after round.
pub(crate) fn measure(of: Of, row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    let turns = match of {
        Of::Orders => ORDERS,
        Of::Slow => SLOW,
        Of::Storm => STORM,
    };
    let names: Vec<&str> = turns.iter().map(|(name, _)| *name).collect();
    let command = |turn: usize, task: &Task, group: &str| match &turns[turn].1 {
        Client::Perf(more) => {
            let mut command = with.programs.perf(task, group);
            command.args(*more);
            command
        }
        Client::Own(name) => with.programs.client(name, task),
    };
    clients::in_turns(row, work, &names, command, with)
}

/// Threads that only sleep, as often as there are records.
pub(crate) fn sleepers(task: &Task) {
    let measured = Arc::new(Measured::new());
    let left = Arc::new(AtomicU64::new(task.records));
    let threads: Vec<_> = (0..task.threads)
        .map(|_| {
            let (measured, left) = (Arc::clone(&measured), Arc::clone(&left));
            let body = move || {
                let mut sum = Sum::default();
                measured.begin();
                let take = |left: u64| left.checked_sub(1);
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
                {
                    std::thread::sleep(SLEEP);
                    sum.add(&[]);
                }
                sum
            };
            std::thread::Builder::new().spawn(body).expect("a thread")
        })
        .collect();
    let sums: Vec<Sum> = threads
        .into_iter()
        .map(|thread| thread.join().expect("it only sleeps"))
        .collect();
    measured.print("sleepers", task.threads, &sums);
}

/// Counts attempts; the first ones fail.
struct Failing {
    failures: u32,
    sum: Sum,
    measured: Arc<Measured>,
    sums: Arc<Mutex<Vec<Sum>>>,
}

impl Handler for Failing {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        if self.sum.records == 0 {
            self.measured.begin();
        }
        self.sum.add(record.value().unwrap_or_default());
        if record.attempt() <= self.failures {
            return Outcome::retry_after(Duration::from_millis(1), "a storm");
        }
        Outcome::Done
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.sums
            .lock()
            .expect("no handler panics with it")
            .push(self.sum);
    }
}

/// keepup inside this process, over records of which each fails so often
/// before it is done. A record of what is printed is an attempt.
fn fails(task: &Task, name: &str, failures: u32) {
    let (measured, sums) = (Arc::new(Measured::new()), Arc::default());
    let mut retry = RetryPolicy::default();
    retry.attempts = failures + 1;
    let report = keepup::builder(
        &task.bootstrap,
        format!("bench-{name}-{}", std::process::id()),
    )
    .topic(&task.topic)
    .workers(Workers::Fixed(task.threads))
    .order(Order::Unordered)
    .count(task.records)
    .retry(retry)
    .run({
        let (measured, sums) = (Arc::clone(&measured), Arc::clone(&sums));
        move |_| Failing {
            failures,
            sum: Sum::default(),
            measured: Arc::clone(&measured),
            sums: Arc::clone(&sums),
        }
    })
    .expect("it starts");
    assert_eq!(report.records, task.records, "{report:?}");
    let sums = sums.lock().expect("no handler panics with it");
    measured.print(name, task.threads, &sums);
}

pub(crate) fn calm(task: &Task) {
    fails(task, "calm", 0);
}

pub(crate) fn storm(task: &Task) {
    fails(task, "storm", FAILURES);
}
