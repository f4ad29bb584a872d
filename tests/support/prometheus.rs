//! A real Prometheus, and what it and its tool say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::cluster::free_ports;
use super::process::{Finished, Guarded, run, script};
use super::{PATIENT, SOON, wait_until};

/// A Prometheus that scrapes and evaluates every second; killed on drop.
#[derive(Debug)]
pub(crate) struct Prometheus {
    // In this order: the process ends before its files go.
    process: Guarded,
    address: SocketAddr,
    directory: TempDir,
}

/// One series of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Prometheus {
    /// True where there is one; else `test` is skipped by name, or fails where it must not be.
    pub(crate) fn is_here(test: &str) -> bool {
        let is_here = |program: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("command -v {program}")]);
            run(command, "", SOON).code == Some(0)
        };
        if is_here("prometheus") && is_here("promtool") {
            return true;
        }
        let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
        assert!(
            !set("CI", "true") && !set("KEEPUP_REQUIRE_KAFKA", "1"),
            "{test} needs a Prometheus; scripts/test installs it"
        );
        // Past the harness, which keeps what a passing test prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: there is no Prometheus");
        false
    }

    /// Starts one with these jobs (name, target, `metric_relabel_configs` or nothing) and the rules of the file.
    pub(crate) fn start(jobs: &[(&str, SocketAddr, &str)], rules: &str) -> Self {
        let directory = TempDir::new().expect("there is a place for files");
        let mut config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules:?}]\nscrape_configs:\n"
        );
        for (job, target, relabelling) in jobs {
            let _ = write!(
                config,
                "  - job_name: {job}\n    static_configs:\n      - targets: ['{target}']\n{relabelling}\n"
            );
        }
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, config).expect("the directory can be written");
        let log = File::create(directory.path().join("log")).expect("the directory can be written");
        let address = SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0]));
        let mut command = Command::new(script("watched"));
        command
            .arg("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stderr(log.try_clone().expect("a file can be shared"))
            .stdout(log);
        let mut prometheus = Self {
            process: Guarded::spawn(command),
            address,
            directory,
        };
        prometheus.await_ready();
        prometheus
    }

    fn await_ready(&mut self) {
        wait_until(PATIENT, "Prometheus to be ready", || {
            if let Some(status) = self.process.ended() {
                let log = fs::read_to_string(self.directory.path().join("log"));
                panic!("Prometheus ended with {status}: {log:?}");
            }
            match get(self.address, "/-/ready") {
                Ok((200, _)) => Ok(()),
                other => Err(other),
            }
        });
    }

    /// What an expression is now.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let data = self.api(&format!("query?query={}", percent(expression)))?;
        let result = data["result"].as_array().ok_or("no result")?;
        result
            .iter()
            .map(|series| sample(series).ok_or_else(|| format!("not a sample: {series}")))
            .collect()
    }

    /// The `data` of an answer of `/api/v1/…`.
    pub(crate) fn api(&self, path: &str) -> Result<Value, String> {
        let (_, body) = get(self.address, &format!("/api/v1/{path}"))?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        if answer["status"] == "success" {
            Ok(answer["data"].take())
        } else {
            Err(answer.to_string())
        }
    }
}

fn sample(series: &Value) -> Option<Sample> {
    let labels = series["metric"].as_object()?;
    let labels = labels
        .iter()
        .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Some(Sample {
        labels: labels.collect::<Option<_>>()?,
        value: series["value"][1].as_str()?.parse().ok()?,
    })
}

/// What `promtool check metrics` says of a page; nothing is good.
pub(crate) fn promtool_check(page: &str) -> Finished {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]);
    run(command, page, SOON)
}

/// The status and the body that a server answers.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let answer = ask(address, path).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| format!("no status: {head}"))?;
    Ok((status, body.to_owned()))
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    // To 1.0 nobody answers in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}
