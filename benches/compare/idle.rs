//! What it costs to own a thousand partitions in which nothing happens.
//!
//! `keepup run` with everything that a service would have on: sixteen workers,
//! commits, lag, and an endpoint that is scraped every ten seconds.

use std::time::Duration;

use serde_json::Value;

use crate::clients::{With, status_mib};
use crate::options::Options;
use crate::results::Cell;
use crate::rows::Peer;
use crate::runs::Run;
use crate::topics;

const PARTITIONS: i32 = 1_000;
const WORKERS: &str = "16";
/// The group, the leaders and the start positions have to be found.
const PATIENCE: Duration = Duration::from_mins(1);
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: usize = 3;

pub(crate) fn measure(with: &With<'_>) -> Vec<Cell> {
    let mut cell = Cell::new(Peer::Keepup.name());
    topics::create(&with.broker.bootstrap, "bench-idle", PARTITIONS);
    let group = format!("bench-idle-{}", std::process::id());
    let more = ["--workers", WORKERS];
    let watched = Run::start(with, "bench-idle", &group, &more)
        .and_then(|run| watch(run, with.options, &mut cell));
    if let Err(why) = watched {
        cell.fail(why);
    }
    vec![cell]
}

fn watch(mut run: Run, options: &Options, cell: &mut Cell) -> Result<(), String> {
    run.wait("all partitions", PATIENCE, has_everything)?;
    std::thread::sleep(SETTLE);
    for _ in 0..if options.quick { 1 } else { WINDOWS } {
        let mut metrics = String::new();
        let cpu_percent = run.cpu_percent(|| {
            std::thread::sleep(WINDOW / 2);
            metrics = run.get("/metrics").unwrap_or_default();
            std::thread::sleep(WINDOW / 2);
        })?;
        if !metrics.contains("kafka_consumer_fetch_manager_records_lag{") {
            return Err("its metrics have no lag".to_owned());
        }
        let memory = |field| status_mib(&run.pid().to_string(), field).ok_or("it is gone");
        cell.add(&[
            ("cpu_percent", cpu_percent),
            ("rss_mib", memory("VmRSS")?),
            ("peak_rss_mib", memory("VmHWM")?),
        ]);
        eprint!(".");
    }
    Ok(())
}

/// Whether every partition has a worker and a position.
fn has_everything(run: &Run) -> Option<()> {
    let lag = run.lag()?;
    let is_there = |partition: &&Value| {
        !partition["worker"].is_null()
            && !partition["position"].is_null()
            && !partition["end_offset"].is_null()
    };
    let there = lag["partitions"].as_array()?.iter().filter(is_there);
    (there.count() == usize::try_from(PARTITIONS).unwrap_or(0)).then_some(())
}
