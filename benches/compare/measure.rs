//! First and last record, processor time between them, one line.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::clients::status_mib;

/// What a handler adds up, so that every payload is touched.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) records: u64,
    bytes: u64,
    xor: u64,
}

impl Sum {
    #[inline]
    pub(crate) fn add(&mut self, value: &[u8]) {
        self.records += 1;
        self.bytes += value.len() as u64;
        if let Some(first) = value.first_chunk::<8>() {
            self.xor ^= u64::from_le_bytes(*first);
        }
    }
}

/// Shared by the threads of a client; locked at its first and last record.
pub(crate) struct Measured {
    started: Instant,
    first: Mutex<Option<(Instant, Duration)>>,
}

impl Measured {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            first: Mutex::new(None),
        }
    }

    /// Called by each thread before its first record.
    pub(crate) fn begin(&self) {
        let now = (Instant::now(), cpu());
        self.first
            .lock()
            .expect("no thread panics with it")
            .get_or_insert(now);
    }

    /// Called once, after the last record.
    pub(crate) fn print(&self, peer: &str, threads: usize, sums: &[Sum]) {
        let (end, end_cpu) = (Instant::now(), cpu());
        let (begin, begin_cpu) = self
            .first
            .lock()
            .expect("no thread panics with it")
            .expect("a record was read");
        let records: u64 = sums.iter().map(|sum| sum.records).sum();
        std::hint::black_box(sums.iter().fold(0, |all, sum| all ^ sum.xor ^ sum.bytes));
        let (seconds, cpu) = (
            (end - begin).as_secs_f64(),
            end_cpu.saturating_sub(begin_cpu).as_secs_f64(),
        );
        let line = serde_json::json!({
            "peer": peer,
            "records": records,
            "seconds": seconds,
            "start_s": (begin - self.started).as_secs_f64(),
            "records_per_s": records as f64 / seconds,
            "cpu_run_s": cpu,
            "cpu_ns_per_record": cpu * 1e9 / records as f64,
            "peak_rss_mib": status_mib("self", "VmHWM"),
            "workers": threads,
        });
        println!("{line}");
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
