//! The rows about workers that are processes.
//!
//! - *processes*: throughput of two of them, beside two threads.
//! - *processes-64*: sixty-four of them, as people run them and with events:
//!   how long until each has handled a record, which events tell; how large one
//!   is that has nothing to do; what the parent uses while all are busy.
//! - *killed-1*, *killed-2*: how soon the partition of a process that is killed
//!   is consumed again, where it was the only one, and where there is another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::clients::{self, Task, With, status_mib};
use crate::results::Cell;
use crate::rows::{Peer, Work};
use crate::runs::{Event, Run};
use crate::topics::{self, Source};

/// Until a run is where it should be, on a machine that is busy.
const PATIENCE: Duration = Duration::from_mins(1);
const SETTLE: Duration = Duration::from_secs(5);
/// After which the first fetches are over.
const WARM: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_secs(10);

/// How often in a round.
const KILLS: usize = 10;
/// So many records of each worker are in order before one is killed.
const BEFORE_KILL: usize = 50;

/// Which of the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of {
    Throughput,
    Many,
    Killed,
}

pub(crate) fn measure(of: Of, row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    match of {
        Of::Throughput => throughput(row, work, with),
        Of::Many => many(row, work, with),
        Of::Killed => killed(row, work, with),
    }
}

/// Both models in turns, round after round.
fn throughput(row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    const MODELS: [&str; 2] = ["threads", "processes"];
    let command = |turn: usize, task: &Task, group: &str| {
        // A count has to be dealt out to processes, which is not what a service does.
        let mut command = with.programs.perf_to_end(task, group);
        command.args(["--model", MODELS[turn]]);
        command
    };
    clients::in_turns(row, work, &MODELS, command, with)
}

/// Without and with events in turns, round after round.
fn many(row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    let mut cells = ["without-events", "with-events"].map(Cell::new);
    for round in 0..with.options.rounds {
        for (cell, with_events) in cells.iter_mut().zip([false, true]) {
            // Empty, so that nothing is to be done until all are there.
            let topic = format!("bench-{}-{row}-{}-{round}", std::process::id(), cell.peer);
            match cost_of_many(&topic, with_events, work, with) {
                Ok(numbers) => cell.add(&numbers),
                Err(why) => cell.fail(why),
            }
            eprint!(".");
        }
    }
    cells.into()
}

fn cost_of_many(
    topic: &str,
    with_events: bool,
    work: &Work,
    with: &With<'_>,
) -> Result<Vec<(&'static str, f64)>, String> {
    topics::create(&with.broker.bootstrap, topic, work.partitions);
    let mut source = Source::new(&with.broker.bootstrap, topic, work);
    let mut more = vec!["--handler", "sleep=5ms"];
    if with_events {
        more.extend(["--events", "json"]);
    }
    let mut numbers = Vec::new();
    let began = Instant::now();
    let mut run = start(work, topic, topic, &more, with)?;
    let each = |run: &Run, name| when_each_told(&run.events(), name, work.workers);
    if with_events {
        run.wait("a partition for each worker", PATIENCE, |run| {
            each(run, "partitions_assigned")
        })?;
        source.send(u64::from(work.partitions.unsigned_abs()));
        let handled = run.wait("a record of each worker", PATIENCE, |run| {
            each(run, "records_consumed")
        })?;
        numbers.push(("start_s", (handled - began).as_secs_f64()));
    }
    let children = run.wait("all worker processes", PATIENCE, |run| {
        children(run, work.workers)
    })?;
    std::thread::sleep(SETTLE);
    let resident = |pid: u64| status_mib(&pid.to_string(), "VmRSS").ok_or("a process is gone");
    let idle: Vec<f64> = children
        .into_iter()
        .map(resident)
        .collect::<Result<_, _>>()?;
    numbers.push(("child_rss_mib", idle.into_iter().fold(0.0, f64::max)));
    numbers.push(("parent_rss_mib", resident(run.pid().into())?));
    source.send(work.records);
    std::thread::sleep(WARM);
    let busy = run.cpu_percent(|| std::thread::sleep(BUSY))?;
    let left = run.lag().and_then(|lag| lag["total_lag"].as_u64());
    if left.unwrap_or(0) == 0 {
        return Err("nothing was left to do before the measurement was over".to_owned());
    }
    numbers.push(("busy_cpu_percent", busy));
    run.end()?;
    Ok(numbers)
}

/// When the last of so many workers told an event of that name for the first
/// time.
fn when_each_told(events: &[Event], name: &str, workers: usize) -> Option<Instant> {
    let mut told = BTreeSet::new();
    events
        .iter()
        .filter(|event| event.is(name))
        .find_map(|event| {
            told.insert(event.worker()?);
            (told.len() == workers).then_some(event.at)
        })
}

/// The processes of so many workers, once each has a partition.
fn children(run: &Run, workers: usize) -> Option<Vec<u64>> {
    let lag = run.lag()?;
    let at_work = lag["workers"].as_array()?.iter();
    let pids: Vec<u64> = at_work
        .filter(|worker| worker["state"] == "running")
        .filter_map(|worker| worker["pid"].as_u64())
        .collect();
    (pids.len() == workers).then_some(pids)
}

/// A run for each kill: who dies again within a minute waits longer before it
/// is started again, and is not at all after a few times.
fn killed(row: &str, work: &Work, with: &With<'_>) -> Vec<Cell> {
    let mut cell = Cell::new(Peer::Keepup.name());
    let topic = topics::filled(&with.broker.bootstrap, work, work.records);
    let more = ["--handler", "sleep=1ms", "--events", "json", "--records"];
    for round in 0..with.options.rounds {
        for kill in 0..KILLS {
            let group = format!("bench-{}-{row}-{round}-{kill}", std::process::id());
            let again = start(work, &topic, &group, &more, with)
                .and_then(|run| until_consumed_again(run, work.workers));
            match again {
                Ok(time) => cell.add(&[("again_ms", time.as_secs_f64() * 1e3)]),
                Err(why) => cell.fail(why),
            }
        }
        eprint!(".");
    }
    vec![cell]
}

/// Kills the worker that handled the last record, and waits for the next one of
/// the same partition.
fn until_consumed_again(mut run: Run, workers: usize) -> Result<Duration, String> {
    run.wait("records of each worker", PATIENCE, |run| {
        are_at_it(&run.events(), workers)
    })?;
    let (worker, partition, process) =
        last_handled(&run.events()).ok_or("its events tell no process")?;
    let killed = Instant::now();
    kill_process(process, Signal::KILL).map_err(|error| format!("kill: {error}"))?;
    let again = run.wait("its partition to be consumed", PATIENCE, |run| {
        let events = run.events();
        // What it did before it died is printed before its end is told.
        let stopped = (events.iter())
            .position(|event| event.is("worker_stopped") && event.worker() == Some(worker))?;
        let next = (events[stopped..].iter())
            .find(|event| event.is("record_data") && event.said["partition"] == partition)?;
        Some(next.at)
    })?;
    run.end()?;
    Ok(again - killed)
}

fn are_at_it(events: &[Event], workers: usize) -> Option<()> {
    let mut records: BTreeMap<u64, usize> = BTreeMap::new();
    for event in events.iter().filter(|event| event.is("record_data")) {
        *records.entry(event.worker()?).or_default() += 1;
    }
    let at_it = records.values().filter(|&&records| records >= BEFORE_KILL);
    (at_it.count() == workers).then_some(())
}

/// The worker and the partition of the last record, and the worker's process.
fn last_handled(events: &[Event]) -> Option<(u64, i64, Pid)> {
    let last = events.iter().rfind(|event| event.is("record_data"))?;
    let worker = last.worker()?;
    let started = events
        .iter()
        .rfind(|event| event.is("worker_started") && event.worker() == Some(worker))?;
    let pid = started.said["pid"].as_i64()?;
    let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
    Some((worker, last.said["partition"].as_i64()?, process))
}

/// A run with so many processes as the work has workers.
fn start(
    work: &Work,
    topic: &str,
    group: &str,
    more: &[&str],
    with: &With<'_>,
) -> Result<Run, String> {
    let workers = work.workers.to_string();
    let model = ["--model", "processes", "--workers", &workers];
    Run::start(with, topic, group, &[&model[..], more].concat())
}
