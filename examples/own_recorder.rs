//! Lag and all other metrics in the recorder that a program has already.
//!
//! A program that installs a recorder for the `metrics` crate (here
//! Prometheus's, without an endpoint) finds keepup's metrics in it beside its
//! own, without doing anything.
//!
//! Runs on a cluster inside the process:
//! `cargo run -p keepup --features testing --example own_recorder`

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::time::Duration;

use keepup::Record;
use keepup::testing::EmbeddedCluster;
use metrics_exporter_prometheus::PrometheusBuilder;

const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn Error>> {
    // Before the first run: a recorder can be installed only once.
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    metrics::set_global_recorder(recorder)?;

    let cluster = EmbeddedCluster::start(1)?;
    cluster.create_topic("orders", 1)?;
    let producer = cluster.producer()?;
    for _ in 0..100 {
        producer.try_send("orders", 0, None, Some(b"an order"))?;
    }
    producer.flush(PATIENCE)?;

    // The handler waits at the 41st record until it may go on.
    let (go, may_go) = crossbeam_channel::bounded::<()>(0);
    let handle = keepup::builder(cluster.bootstrap(), "billing")
        .topic("orders")
        .label("env", "example")
        .start(move |_worker| {
            let may_go = may_go.clone();
            move |record: &Record<'_>| {
                if record.offset() == 40 {
                    let _ = may_go.recv_timeout(PATIENCE);
                }
                metrics::counter!("orders_billed_total").increment(1);
            }
        })?;

    // Told once a second.
    let lag = "kafka_consumer_fetch_manager_records_lag{";
    let mut updates = handle.lag_updates();
    let line = (0..60).find_map(|_| {
        updates.next_within(PATIENCE)?;
        let page = page.render();
        let line = page.lines().find(|line| line.starts_with(lag))?;
        line.ends_with(" 59").then(|| line.to_owned())
    });
    let line = line.ok_or("the lag was not told")?;
    println!("{line}");
    for label in [
        "group_id=\"billing\"",
        "topic=\"orders\"",
        "env=\"example\"",
    ] {
        assert!(line.contains(label), "{line}");
    }

    drop(go);
    handle.stop();
    let report = handle.wait();
    assert_eq!(report.exit_code(), 0);
    // What is not known any more is NaN: such a recorder cannot forget a series.
    let page = page.render();
    let line = page.lines().find(|line| line.starts_with(lag));
    assert!(line.is_some_and(|line| line.ends_with(" NaN")), "{line:?}");
    assert!(page.contains("orders_billed_total "), "{page}");
    Ok(())
}
