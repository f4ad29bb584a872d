//! Where and with what it was measured.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::clients::Programs;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) kafka: String,
    pub(crate) java: String,
    pub(crate) rdkafka: String,
    pub(crate) librdkafka: String,
    pub(crate) rustc: String,
}

pub(crate) fn look(programs: &Programs) -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = field(&meminfo, "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    Machine {
        cpu: field(&cpuinfo, "model name")
            .unwrap_or("unknown")
            .to_owned(),
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        memory_gib: (kib + 512 * 1024) / (1024 * 1024),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        kafka: kafka(&programs.kafka_home),
        java: said(Command::new("java").arg("-version")),
        rdkafka: locked("rdkafka"),
        librdkafka: rdkafka::util::get_rdkafka_version().1,
        rustc: said(Command::new("rustc").arg("--version")),
    }
}

/// The commit, with a `+` where the files are not those of it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        said(
            Command::new("git")
                .arg("-C")
                .arg(crate::repository())
                .args(arguments),
        )
    };
    let hash = git(&["rev-parse", "--short=10", "HEAD"]);
    let changes = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "src",
        "cli",
        "benches",
        "Cargo.lock",
    ]);
    format!("{hash}{}", if changes.is_empty() { "" } else { "+" })
}

/// The time, UTC.
pub(crate) fn now() -> String {
    said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"]))
}

/// How busy the machine was in the last minute.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

/// The first line that a program prints.
fn said(command: &mut Command) -> String {
    let Ok(output) = command.output() else {
        return "unknown".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn kafka(home: &Path) -> String {
    let mut names = fs::read_dir(home.join("jars"))
        .into_iter()
        .flatten()
        .flatten();
    names
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("kafka-clients-")?.strip_suffix(".jar")?;
            Some(version.to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

/// The version of a package in `Cargo.lock`.
fn locked(package: &str) -> String {
    let lock = fs::read_to_string(crate::repository().join("Cargo.lock")).unwrap_or_default();
    lock.split_once(&format!("name = \"{package}\"\nversion = \""))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or_else(|| "unknown".to_owned(), |(version, _)| version.to_owned())
}
