//! `keepup perf`: one measured run, one line of numbers.
//!
//! A benchmark that locks or counts atomically for every record measures
//! itself. Each worker's handler adds up in fields of its own and puts the sums
//! together once, when it is dropped at the end of the run. The first record's
//! moment is taken behind a branch on a local flag, the last one's when the
//! worker ends, which it does as soon as the count is reached.
//!
//! A worker that is a process leaves its sums on a page, with the processor time
//! that it used from its first record on. What the parent used counts from the
//! moment that the first of them had partitions.

use std::fs;
use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keepup::{Event, EventKind, Handler, Model, Outcome, Record, Report, Settings, WorkerInfo};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::exit::{Ending, Failure};
use crate::pages::{self, Pages};
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
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Mark {
    /// By the machine's monotonic clock: processes agree on it.
    at: Duration,
    cpu: Duration,
}

impl Mark {
    fn now() -> Self {
        Self {
            at: time::monotonic(),
            cpu: time::cpu(),
        }
    }
}

/// What the workers of a process have measured together.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Measured {
    records: u64,
    bytes: u64,
    xor: u64,
    workers: usize,
    first: Option<Mark>,
    last: Option<Mark>,
    /// Of this process.
    peak_rss_mib: Option<f64>,
}

impl Measured {
    /// Adds what another process has measured.
    fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.xor ^= other.xor;
        self.workers = self.workers.max(other.workers);
        let cpu = |measured: &Self| {
            let marks = measured.first.zip(measured.last);
            marks.map_or(Duration::ZERO, |(first, last)| {
                last.cpu.saturating_sub(first.cpu)
            })
        };
        let cpu = cpu(self) + cpu(other);
        let first = [self.first, other.first].into_iter().flatten();
        let last = [self.last, other.last].into_iter().flatten();
        let zero = Duration::ZERO;
        self.first = first
            .map(|mark| mark.at)
            .min()
            .map(|at| Mark { at, cpu: zero });
        self.last = last.map(|mark| mark.at).max().map(|at| Mark { at, cpu });
        self.peak_rss_mib = self
            .peak_rss_mib
            .zip(other.peak_rss_mib)
            .map(|(one, other)| one + other)
            .or(self.peak_rss_mib)
            .or(other.peak_rss_mib);
    }
}

/// What processes have left on their pages, and this one has used meanwhile.
fn collect(pages: &Pages, since: Option<Mark>) -> Measured {
    let mut all = Measured::default();
    for page in pages.all() {
        let text = fs::read_to_string(page).unwrap_or_default();
        for measured in text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
        {
            all.add(&measured);
        }
    }
    if let (Some(since), Some(last)) = (since, &mut all.last) {
        last.cpu += time::cpu().saturating_sub(since.cpu);
    }
    all.peak_rss_mib = all
        .peak_rss_mib
        .zip(peak_rss_mib())
        .map(|(workers, own)| workers + own);
    all
}

/// Runs, and prints the line. `started` is when the process began.
pub(crate) fn perf(plan: &PerfPlan, how: OutputPlan, started: Instant) -> Result<Ending, Failure> {
    let measured = Arc::new(Mutex::new(Measured::default()));
    let is_parent = plan.settings.model == Model::Processes && !keepup::is_worker_process();
    let pages = is_parent.then(Pages::open).transpose()?;
    let begun: Arc<Mutex<Option<Mark>>> = Arc::default();
    let report = {
        let (measured, begun) = (Arc::clone(&measured), Arc::clone(&begun));
        let sleep = plan.sleep;
        let mut builder = keepup::builder("", "").with_settings(plan.settings.clone());
        if is_parent {
            builder = builder.on_event(move |event: &Event| {
                if matches!(event.kind, EventKind::PartitionsAssigned { .. }) {
                    begun.lock().get_or_insert_with(Mark::now);
                }
            });
        }
        builder.run(move |worker| Tally::new(worker, sleep, Arc::clone(&measured)))?
    };
    tell(&report, how);
    let measured = match &pages {
        Some(pages) => collect(pages, *begun.lock()),
        None => Measured {
            peak_rss_mib: peak_rss_mib(),
            ..std::mem::take(&mut *measured.lock())
        },
    };
    let started = time::monotonic().saturating_sub(started.elapsed());
    if let Some(line) = line(&measured, &plan.settings, started) {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        output::print(&text)?;
    }
    Ok(Ending::Ran {
        report: Box::new(report),
        stdout: None,
    })
}

fn tell(report: &Report, how: OutputPlan) {
    if report.exit_code() != 0 || (how.verbose > 0 && !how.quiet) {
        output::say(&report::text(report));
    }
}

/// The numbers, where at least one record was handled.
fn line(measured: &Measured, settings: &Settings, started: Duration) -> Option<Line> {
    let (first, last) = (measured.first?, measured.last?);
    let seconds = last.at.saturating_sub(first.at).as_secs_f64();
    let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64();
    let records = count(measured.records);
    tracing::debug!(bytes = measured.bytes, xor = measured.xor, "payloads");
    Some(Line {
        peer: "keepup",
        records: measured.records,
        seconds: rounded(seconds, 4),
        start_s: rounded(first.at.saturating_sub(started).as_secs_f64(), 4),
        records_per_s: whole(records / seconds.max(1e-9)),
        cpu_run_s: rounded(cpu, 4),
        cpu_ns_per_record: rounded(cpu * 1e9 / records, 1),
        peak_rss_mib: measured.peak_rss_mib.map(|mib| rounded(mib, 1)),
        workers: measured.workers,
        order: settings.order.name(),
        model: settings.model.name(),
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

/// From when to when there were records. Reading the precise clock for each of
/// them would be most of what is measured, so only the first one has it.
#[derive(Debug, Default)]
struct Span {
    first: Duration,
    first_coarse: Duration,
    last_coarse: Duration,
}

impl Span {
    /// When the last one came, at the latest. By the distance of two looks at the
    /// coarse clock: where the machine's ticks are late it stands still for longer
    /// than a step, and is behind the precise one by more than the run takes.
    fn end(&self, step: Duration) -> Duration {
        self.first + self.last_coarse.saturating_sub(self.first_coarse) + step
    }
}

/// One worker's handler.
struct Tally {
    records: u64,
    bytes: u64,
    xor: u64,
    begun: bool,
    /// When records came, in a worker that is a process: it ends a while after
    /// the last one, since another one has to tell it.
    span: Option<Span>,
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
            span: keepup::is_worker_process().then(Span::default),
            sleep,
            measured,
        }
    }

    #[cold]
    fn begin(&mut self) {
        self.begun = true;
        let mark = Mark::now();
        if let Some(span) = &mut self.span {
            span.first = mark.at;
            span.first_coarse = time::coarse();
        }
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
        if let Some(span) = &mut self.span {
            span.last_coarse = time::coarse();
        }
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
        let mut mark = Mark::now();
        if let Some(span) = &self.span {
            mark.at = mark.at.min(span.end(time::coarse_step()));
        }
        let mut all = self.measured.lock();
        all.records += self.records;
        all.bytes += self.bytes;
        all.xor ^= black_box(self.xor);
        if all.last.is_none_or(|last| mark.at > last.at) {
            all.last = Some(mark);
        }
        if keepup::is_worker_process() {
            all.peak_rss_mib = peak_rss_mib();
            // One line, in one write; where that fails the count is short, which shows.
            let line = serde_json::to_string(&*all).unwrap_or_default() + "\n";
            let _ = pages::of_this_worker().and_then(|mut page| page.write_all(line.as_bytes()));
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
    fn what_processes_measured_is_added_up_from_the_first_record_to_the_last() {
        let mark = |at: u64, cpu: u64| {
            Some(Mark {
                at: Duration::from_millis(at),
                cpu: Duration::from_millis(cpu),
            })
        };
        let mut all = Measured::default();
        for (records, first, last) in [
            (10, mark(100, 3), mark(500, 203)),
            (20, mark(90, 5), mark(400, 105)),
        ] {
            all.add(&Measured {
                records,
                bytes: records,
                first,
                last,
                peak_rss_mib: Some(11.5),
                ..Measured::default()
            });
        }
        let (first, last) = (all.first.unwrap(), all.last.unwrap());
        assert_eq!(last.at.saturating_sub(first.at), Duration::from_millis(410));
        assert_eq!(
            last.cpu.saturating_sub(first.cpu),
            Duration::from_millis(300)
        );
        assert_eq!((all.records, all.peak_rss_mib), (30, Some(23.0)));
    }

    #[test]
    fn the_line_has_the_fields_that_every_peer_prints() {
        let began = Duration::from_secs(7);
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
            peak_rss_mib: Some(40.0),
        };
        let line = line(&measured, &settings(), began).unwrap();
        let text = serde_json::to_value(&line).unwrap();
        let expected: serde_json::Value = serde_json::from_str(
            r#"{"peer":"keepup","records":8000000,"seconds":0.4,"start_s":0.4,
                "records_per_s":20000000,"cpu_run_s":0.4,"cpu_ns_per_record":50.0,
                "peak_rss_mib":40.0,"workers":2,"order":"partition","model":"threads",
                "source":"fetch"}"#,
        )
        .unwrap();
        assert_eq!(text, expected);
    }

    #[test]
    fn a_coarse_clock_that_stands_still_ends_no_run_before_it_began() {
        let millis = Duration::from_millis;
        let mut span = Span {
            first: millis(1_050),
            first_coarse: millis(1_000),
            last_coarse: millis(1_000),
        };
        assert_eq!(span.end(millis(4)), millis(1_054));
        span.last_coarse = millis(1_300);
        assert_eq!(span.end(millis(4)), millis(1_354));
    }

    #[test]
    fn nothing_handled_gives_no_line() {
        assert!(line(&Measured::default(), &settings(), Duration::ZERO).is_none());
    }

    #[test]
    fn the_first_eight_bytes_count_and_short_values_too() {
        assert_eq!(first_eight(b""), 0);
        assert_eq!(first_eight(&[1, 2]), 0x0201);
        assert_eq!(first_eight(&[1, 0, 0, 0, 0, 0, 0, 0, 9]), 1);
    }
}
