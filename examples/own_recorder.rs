//! Puts keepup's metrics where a program's own metrics already are: a service
//! that has a recorder for the `metrics` crate, whatever it exports to, finds the
//! lag of its partitions there without a second endpoint and without code.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example own_recorder`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::time::Duration;

use keepup::testing::EmbeddedCluster;
use keepup::{Record, Workers};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

const RECORDS: i32 = 300;

/// How many snapshots (one per second) may pass before the numbers are there.
const PATIENCE: usize = 30;

fn main() -> Result<(), Box<dyn Error>> {
    // Any recorder does; this one can be printed.
    let recorder = PrometheusBuilder::new().install_recorder()?;

    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("orders", 3)?;
    let producer = cluster.producer()?;
    for number in 0..RECORDS {
        producer.try_send("orders", number % 3, None, Some(b"an order"))?;
    }
    producer.flush(Duration::from_secs(10))?;

    let handle = keepup::builder(cluster.bootstrap(), "billing")
        .topic("orders")
        .workers(Workers::Fixed(2))
        .label("env", "example")
        .start(|_worker| {
            |_record: &Record<'_>| metrics::counter!("orders_stored_total").increment(1)
        })?;

    let mut updates = handle.lag_updates();
    let mut told = None;
    for _ in 0..PATIENCE {
        if let Some(page) = complete(&recorder) {
            told = Some(page);
            break;
        }
        updates.next_within(Duration::from_secs(1));
    }
    let told = told.ok_or_else(|| format!("not all is there:\n{}", recorder.render()))?;
    for line in told.lines().filter(|line| is_shown(line)) {
        println!("{line}");
    }

    handle.stop();
    let report = handle.wait();
    assert_eq!(report.exit_code(), 0);
    // What has ended has no lag, and such a recorder cannot forget a series.
    assert_eq!(lags(&recorder.render(), "NaN"), 3);
    Ok(())
}

/// What the recorder has, once all of it is there: the lag of each partition,
/// what became of the records, and what the program counted itself.
fn complete(recorder: &PrometheusHandle) -> Option<String> {
    let page = recorder.render();
    let counted = format!(" {RECORDS}");
    let of_keepup = page.lines().any(|line| {
        line.starts_with("keepup_records_total{")
            && line.contains("outcome=\"done\"")
            && line.contains("env=\"example\"")
            && line.ends_with(&counted)
    });
    let own = page
        .lines()
        .any(|line| line.starts_with("orders_stored_total") && line.ends_with(&counted));
    (lags(&page, "0") == 3 && of_keepup && own).then_some(page)
}

/// How many partitions have that lag.
fn lags(page: &str, lag: &str) -> usize {
    page.lines()
        .filter(|line| line.starts_with("kafka_consumer_fetch_manager_records_lag{"))
        .filter(|line| line.split(' ').next_back() == Some(lag))
        .count()
}

fn is_shown(line: &str) -> bool {
    [
        "kafka_consumer_fetch_manager_records_lag{",
        "keepup_records_total{",
        "orders_stored_total",
    ]
    .iter()
    .any(|name| line.starts_with(name))
}
