//! `keepup perf`: one measured run, one line of numbers.
//!
//! A benchmark that locks or counts atomically for every record measures
//! itself. Each worker's handler adds up in fields of its own and puts the sums
//! together once, when it is dropped at the end of the run. The first record's
//! moment is taken behind a branch on a local flag, the last one's when the
//! worker ends, which it does as soon as the count is reached.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keepup::{Handler, Outcome, Record, Report, Settings, WorkerInfo};
use parking_lot::Mutex;
use serde::Serialize;

use crate::exit::{Ending, Failure};
use crate::plan::{OutputPlan, PerfPlan};
use crate::{output, report, time};

/// The line. Its fields are the same for every client that is compared.
#[derive(Debug, Serialize)]
struct Line {
    peer: &'static str,
    records: u64,
    seconds: f64,
    start_s: f64,
    records_per_s: u64,
    cpu_run_s: f64,
    cpu_ns_per_record: f64,
    peak_rss_mib: Option<f64>,
    workers: usize,
    order: &'static str,
    model: &'static str,
    source: &'static str,
}

/// A moment, and the processor time that was used by then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    cpu: Duration,
}

impl Mark {
    fn now() -> Self {
        Self {
            at: time::now(),
            cpu: time::cpu(),
        }
    }
}

/// What all workers together have measured.
#[derive(Debug, Default)]
struct Measured {
    records: u64,
    bytes: u64,
    xor: u64,
    workers: usize,
    first: Option<Mark>,
    last: Option<Mark>,
}

/// Runs, and prints the line. `started` is when the process began.
pub(crate) fn perf(plan: &PerfPlan, how: OutputPlan, started: Instant) -> Result<Ending, Failure> {
    let measured = Arc::new(Mutex::new(Measured::default()));
    let report = {
        let measured = Arc::clone(&measured);
        let sleep = plan.sleep;
        keepup::builder("", "")
            .with_settings(plan.settings.clone())
            .run(move |worker| Tally::new(worker, sleep, Arc::clone(&measured)))?
    };
    tell(&report, how);
    if let Some(line) = line(&measured.lock(), &plan.settings, started) {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        output::print(&text)?;
    }
    Ok(Ending::Ran {
        report,
        stdout: None,
    })
}

fn tell(report: &Report, how: OutputPlan) {
    if report.exit_code() != 0 || (how.verbose > 0 && !how.quiet) {
        output::say(&report::text(report));
    }
}

/// The numbers, where at least one record was handled.
fn line(measured: &Measured, settings: &Settings, started: Instant) -> Option<Line> {
    let (first, last) = (measured.first?, measured.last?);
    let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
    let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64();
    let records = count(measured.records);
    tracing::debug!(bytes = measured.bytes, xor = measured.xor, "payloads");
    Some(Line {
        peer: "keepup",
        records: measured.records,
        seconds: rounded(seconds, 4),
        start_s: rounded(first.at.saturating_duration_since(started).as_secs_f64(), 4),
        records_per_s: whole(records / seconds.max(1e-9)),
        cpu_run_s: rounded(cpu, 4),
        cpu_ns_per_record: rounded(cpu * 1e9 / records, 1),
        peak_rss_mib: peak_rss_mib().map(|mib| rounded(mib, 1)),
        workers: measured.workers,
        order: settings.order.name(),
        model: "threads",
        source: settings.source_in_force().name()?,
    })
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 9e15 records")]
fn count(records: u64) -> f64 {
    records as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float that is too large or negative saturates"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

fn rounded(number: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (number * scale).round() / scale
}

/// The most memory that this process had resident, as the kernel counts it.
fn peak_rss_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// One worker's handler.
struct Tally {
    records: u64,
    bytes: u64,
    xor: u64,
    begun: bool,
    sleep: Option<Duration>,
    measured: Arc<Mutex<Measured>>,
}

impl Tally {
    fn new(worker: WorkerInfo, sleep: Option<Duration>, measured: Arc<Mutex<Measured>>) -> Self {
        {
            let mut all = measured.lock();
            all.workers = all.workers.max(worker.worker + 1);
        }
        Self {
            records: 0,
            bytes: 0,
            xor: 0,
            begun: false,
            sleep,
            measured,
        }
    }

    #[cold]
    fn begin(&mut self) {
        self.begun = true;
        let mark = Mark::now();
        let mut all = self.measured.lock();
        if all.first.is_none_or(|first| mark.at < first.at) {
            all.first = Some(mark);
        }
    }
}

impl Handler for Tally {
    #[inline]
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        if !self.begun {
            self.begin();
        }
        let value = record.value().unwrap_or_default();
        self.records += 1;
        self.bytes += value.len() as u64;
        self.xor ^= first_eight(value);
        if let Some(sleep) = self.sleep {
            time::sleep_in_handler(sleep);
        }
        Outcome::Done
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if !self.begun {
            return;
        }
        let mark = Mark::now();
        let mut all = self.measured.lock();
        all.records += self.records;
        all.bytes += self.bytes;
        all.xor ^= black_box(self.xor);
        if all.last.is_none_or(|last| mark.at > last.at) {
            all.last = Some(mark);
        }
    }
}

/// The first eight bytes as a number; what is missing counts as zero.
#[inline]
fn first_eight(value: &[u8]) -> u64 {
    match value.first_chunk::<8>() {
        Some(eight) => u64::from_le_bytes(*eight),
        None => value
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("nowhere:9092", "g")
    }

    #[test]
    fn the_line_has_the_fields_that_every_peer_prints() {
        let began = time::now();
        let at = |millis: u64| Mark {
            at: began + Duration::from_millis(millis),
            cpu: Duration::from_millis(millis),
        };
        let measured = Measured {
            records: 8_000_000,
            bytes: 800_000_000,
            xor: 0,
            workers: 2,
            first: Some(at(400)),
            last: Some(at(800)),
        };
        let line = line(&measured, &settings(), began).unwrap();
        let mut text = serde_json::to_value(&line).unwrap();
        assert!(text["peak_rss_mib"].as_f64().unwrap() > 1.0);
        text["peak_rss_mib"] = 40.into();
        let expected: serde_json::Value = serde_json::from_str(
            r#"{"peer":"keepup","records":8000000,"seconds":0.4,"start_s":0.4,
                "records_per_s":20000000,"cpu_run_s":0.4,"cpu_ns_per_record":50.0,
                "peak_rss_mib":40,"workers":2,"order":"partition","model":"threads",
                "source":"fetch"}"#,
        )
        .unwrap();
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_handled_gives_no_line() {
        assert!(line(&Measured::default(), &settings(), time::now()).is_none());
    }

    #[test]
    fn the_first_eight_bytes_count_and_short_values_too() {
        assert_eq!(first_eight(b""), 0);
        assert_eq!(first_eight(&[1, 2]), 0x0201);
        assert_eq!(first_eight(&[1, 0, 0, 0, 0, 0, 0, 0, 9]), 1);
    }
}
