//! The command as its users see it: what it prints, and what it ends with.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

mod check;
mod demo;
mod help;
mod perf;
mod run;
mod usage;

use std::time::Duration;

use assert_cmd::Command;
use keepup::testing::EmbeddedCluster;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// The command with these arguments, and nothing of the environment that could
/// change what it does.
fn keepup(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("keepup"));
    command
        .args(arguments)
        .env_remove("KEEPUP_BOOTSTRAP")
        .env_remove("COLUMNS")
        .env("NO_COLOR", "1")
        .timeout(PATIENCE);
    command
}

/// Its stdout, stderr and exit code.
fn output(arguments: &[&str]) -> (String, String, i32) {
    let output = keepup(arguments).output().unwrap();
    (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
        output.status.code().unwrap(),
    )
}

/// A cluster with topic `orders` of two partitions, that many records each: key
/// `k0`, value `record 0` and so on.
fn cluster(records: u32) -> EmbeddedCluster {
    let cluster = EmbeddedCluster::start(1).unwrap();
    cluster.create_topic("orders", 2).unwrap();
    let producer = cluster.producer().unwrap();
    for number in 0..records {
        for partition in 0..2 {
            let (key, value) = (format!("k{number}"), format!("record {number}"));
            producer
                .try_send(
                    "orders",
                    partition,
                    Some(key.as_bytes()),
                    Some(value.as_bytes()),
                )
                .unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
    assert_eq!(producer.deliveries().acknowledged, u64::from(records) * 2);
    cluster
}
