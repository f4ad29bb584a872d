//! What a record costs: keepup beside the clients that one would write by hand
//! and a bare reader of the protocol, on the same broker, in the same run.
//!
//! Machines differ and are shared, so single figures mean little: the clients
//! take turns, round after round, and the tables give medians and ratios. CPU
//! is the client process's user and system time between its first and last
//! record.
//!
//! | file | what it is for |
//! |---|---|
//! | [`options`] | the command line |
//! | [`rows`] | what is measured, and what is to be reached |
//! | [`broker`], [`topics`] | a broker with and without TLS, and what it holds |
//! | [`clients`] | runs a client once, as a process of its own |
//! | [`bare`], [`plain`], [`stream`], `Consumer.java` | the clients beside keepup |
//! | [`runs`] | a run that is looked at while it works |
//! | [`latency`], [`idle`], [`orders`], [`processes`] | the rows that are more than reading a topic |
//! | [`results`], [`machine`] | what is kept of a run, and where it was made |
//! | [`report`], [`plot`] | tables and pictures of it |
//!
//! `scripts/bench` builds everything and runs this.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a benchmark reads clocks, sleeps, prints, and ends where it cannot go on"
)]

mod bare;
mod broker;
mod clients;
mod idle;
mod latency;
mod machine;
mod measure;
mod options;
mod orders;
mod plain;
mod plot;
mod processes;
mod report;
mod results;
mod rows;
mod runs;
mod stream;
mod topics;

use std::path::PathBuf;

use crate::broker::Broker;
use crate::clients::{Programs, Task, With};
use crate::options::Options;
use crate::results::{Cell, Results, Row};
use crate::rows::{Kind, ROWS};

/// Partitions of every topic but those that say otherwise.
pub(crate) const PARTITIONS: i32 = 8;
/// Threads, workers or clients of every client.
pub(crate) const THREADS: usize = 2;

fn main() {
    // Cargo tells that this is a benchmark.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if arguments.first().is_some_and(|first| first == "client") {
        let task = Task::read(&arguments[2..]);
        match arguments[1].as_str() {
            "bare" => bare::run(&task),
            "plain" => plain::run(&task),
            "stream" => stream::run(&task),
            "latency" => latency::consume(&task),
            "sleepers" => orders::sleepers(&task),
            "calm" => orders::calm(&task),
            "storm" => orders::storm(&task),
            other => panic!("no client is called {other}"),
        }
        return;
    }
    let options = options::read(&arguments);
    let mut results = Results::load();
    if !options.report_only {
        measure(&options, &mut results);
    }
    print!("{}", report::text(&results));
    if options.write_docs {
        report::write_docs(&results);
    }
}

/// Measures the rows that are wanted, one after the other. What is there of
/// others stays, and each is kept as soon as it is complete.
fn measure(options: &Options, results: &mut Results) {
    let with = With {
        broker: Broker::start(options.bootstrap.as_deref()),
        programs: Programs::find(),
        options,
    };
    results.machine = machine::look(&with.programs);
    for row in ROWS.iter().filter(|row| options.wants(row.name)) {
        eprint!("{:<12} ", row.name);
        let began = std::time::Instant::now();
        let load = machine::load();
        let cells = match &row.kind {
            Kind::Throughput(work) => clients::throughput(row.name, work, &with),
            Kind::Memory(work) => clients::memory(row.name, work, &with),
            Kind::Latency => latency::measure(&with),
            Kind::Idle => idle::measure(&with),
            Kind::Allocations => vec![allocations()],
            Kind::Orders(of, work) => orders::measure(*of, row.name, work, &with),
            Kind::Completions => vec![completions()],
            Kind::Processes(of, work) => processes::measure(*of, row.name, work, &with),
        };
        for failure in cells.iter().filter_map(Cell::failure) {
            eprint!("\n    {failure}");
        }
        eprintln!(" {:.0} s", began.elapsed().as_secs_f64());
        results.rows.insert(
            row.name.to_owned(),
            Row {
                at: machine::now(),
                commit: machine::commit(),
                load,
                is_quick: options.quick,
                cells,
            },
        );
        results.save();
    }
}

/// What the test of that name has counted; `scripts/bench` runs it.
fn allocations() -> Cell {
    let mut cell = Cell::new("keepup");
    let counted = std::env::var("KEEPUP_BENCH_ALLOCATIONS").unwrap_or_default();
    // "22 allocations for 40000 records: 0.0006 each"
    let number = |word: usize| counted.split_whitespace().nth(word)?.parse::<f64>().ok();
    match (number(0), number(3)) {
        (Some(allocations), Some(records)) => cell.add(&[
            ("allocations", allocations),
            ("records", records),
            ("per_record", allocations / records),
        ]),
        _ => cell.fail(format!("tests/allocations.rs printed {counted:?}")),
    }
    cell
}

/// What the test of that name has measured; `scripts/bench` runs it.
fn completions() -> Cell {
    let mut cell = Cell::new("keepup");
    let measured = std::env::var("KEEPUP_BENCH_COMPLETIONS").unwrap_or_default();
    // "20000000 completions: 31000000 a second, 9000000 with reading and taking, 500 KiB at most"
    let number = |word: usize| measured.split_whitespace().nth(word)?.parse::<f64>().ok();
    match (number(2), number(5), number(10)) {
        (Some(completing), Some(all), Some(kib)) => cell.add(&[
            ("millions_per_s", completing / 1e6),
            ("millions_per_s_with_reading", all / 1e6),
            ("peak_kib", kib),
        ]),
        _ => cell.fail(format!("the test has printed {measured:?}")),
    }
    cell
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where results and certificates are kept.
fn scratch() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), PathBuf::from);
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder).expect("a folder below target");
    folder
}
