//! `run` against an embedded cluster.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::tick;
use keepup::testing::EmbeddedCluster;
use serde_json::Value;

use crate::{cluster, output};

/// How many records each of the two partitions has.
const RECORDS: u32 = 2_500;

fn lines(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

fn place(value: &Value) -> (String, i64) {
    (
        value["topic"].as_str().unwrap().to_owned(),
        value["partition"].as_i64().unwrap(),
    )
}

#[test]
fn events_tell_the_whole_run_and_records_come_before_their_commit() {
    let cluster = cluster(RECORDS);
    let (stdout, stderr, code) = output(&[
        "run",
        "-b",
        cluster.bootstrap(),
        "-t",
        "orders",
        "-g",
        "billing",
        "--workers",
        "2",
        "--until-end",
        "--events",
        "json",
        "--records",
    ]);
    assert_eq!(code, 0, "{stderr}");
    let events = lines(&stdout);
    let named = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    assert_eq!(events[0]["name"], "startup_complete");
    assert_eq!(named("worker_started"), 2);
    assert_eq!(named("worker_stopped"), 2);

    let last = events.last().unwrap();
    assert_eq!(last["name"], "shutdown_complete");
    assert_eq!(last["reason"], "end-reached");
    assert_eq!(last["left_uncommitted"], 0);

    // What was printed so far, as the next offset, by partition.
    let mut printed: BTreeMap<(String, i64), i64> = BTreeMap::new();
    let mut committed = printed.clone();
    let mut counted = 0;
    for event in &events {
        assert!(event["timestamp"].as_i64().unwrap() > 1_600_000_000_000);
        match event["name"].as_str().unwrap() {
            "record_data" => {
                let next = printed.entry(place(event)).or_default();
                assert_eq!(event["offset"], *next, "{event}");
                assert_eq!(event["value"], format!("record {next}"));
                assert_eq!(event["key"], format!("k{next}"));
                assert!(event["worker"].is_u64(), "{event}");
                *next += 1;
            }
            "records_consumed" => {
                counted += event["count"].as_u64().unwrap();
                for range in event["partitions"].as_array().unwrap() {
                    let (min, max) = (&range["minOffset"], &range["maxOffset"]);
                    let length = max.as_i64().unwrap() - min.as_i64().unwrap() + 1;
                    assert_eq!(range["count"], length, "{range}");
                }
            }
            "offsets_committed" => {
                assert_eq!(event["success"], true, "{event}");
                for offset in event["offsets"].as_array().unwrap() {
                    let (place, next) = (place(offset), offset["offset"].as_i64().unwrap());
                    assert!(printed[&place] >= next, "{event}: {printed:?}");
                    committed.insert(place, next);
                }
            }
            _ => {}
        }
    }
    assert_eq!(counted, u64::from(RECORDS) * 2);
    assert_eq!(printed.len(), 2);
    assert!(printed.values().all(|next| *next == i64::from(RECORDS)));
    assert_eq!(committed, printed);
}

#[test]
fn printing_gives_a_line_per_record_and_the_report_stays_out_of_it() {
    let cluster = cluster(3);
    let run = |group: &str, more: &[&str]| {
        let mut arguments = vec![
            "run",
            "-b",
            cluster.bootstrap(),
            "-t",
            "orders",
            "-g",
            group,
            "--handler",
            "print",
            "--count",
            "6",
        ];
        arguments.extend(more);
        output(&arguments)
    };
    let (stdout, stderr, code) = run("text", &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(
        stderr,
        "6 records handled (count-reached); all of it is committed\n"
    );
    let mut sorted: Vec<&str> = stdout.lines().collect();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            "orders-0@0 k0 record 0",
            "orders-0@1 k1 record 1",
            "orders-0@2 k2 record 2",
            "orders-1@0 k0 record 0",
            "orders-1@1 k1 record 1",
            "orders-1@2 k2 record 2",
        ]
    );

    let (stdout, stderr, code) = run("json", &["--json"]);
    assert_eq!(code, 0, "{stderr}");
    let records = lines(&stdout);
    assert_eq!(records.len(), 6);
    assert!(records.iter().all(|record| record["timestamp"].is_i64()));
    let report: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(report["reason"], "count-reached");
    assert_eq!(report["records"], 6);
}

#[test]
fn a_reader_that_goes_away_ends_the_run_with_0_and_without_a_word() {
    let cluster = cluster(RECORDS);
    for options in [
        &["--handler", "print"][..],
        &["--events", "json", "--records"],
    ] {
        let group = options[1];
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("keepup"))
            .args([
                "run",
                "-b",
                cluster.bootstrap(),
                "-t",
                "orders",
                "-g",
                group,
            ])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut first).unwrap();
        assert!(!first.is_empty());
        drop(stdout);
        let mut stderr = String::new();
        let mut said = child.stderr.take().unwrap();
        said.read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{stderr}");
        assert_eq!(stderr, "", "{options:?}");
    }
}

/// What is answered at that address and path.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A run that listens at a port of its own, until it is dropped.
struct Listening {
    child: Child,
    address: String,
}

impl Listening {
    fn start(cluster: &EmbeddedCluster, more: &[&str]) -> Self {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("keepup"))
            .args(["run", "-b", cluster.bootstrap(), "-t", "orders"])
            .args(["-g", "billing", "--listen", "0"])
            .args(more)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        let address = line
            .trim_end()
            .rsplit_once("listening at http://")
            .and_then(|(_, rest)| rest.strip_suffix('/'))
            .map(str::to_owned);
        Self {
            child,
            address: address.unwrap_or_else(|| panic!("no address in {line:?}")),
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_run_tells_where_it_listens_and_labels_its_metrics() {
    let cluster = cluster(1);
    let run = Listening::start(&cluster, &["--label", "env=prod"]);
    // At once: what is shown before the group is joined has its labels too.
    let metrics = get(&run.address, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    let workers = "keepup_workers{group_id=\"billing\",client_id=\"keepup\",env=\"prod\"}";
    assert!(metrics.contains(workers), "{metrics}");
    let lag = get(&run.address, "/lag");
    assert!(lag.contains("\"group\":\"billing\""), "{lag}");
    let ready = get(&run.address, "/health/ready");
    assert!(ready.contains("has not joined the group yet"), "{ready}");
}

#[test]
fn a_handler_that_is_stuck_ends_the_liveness_after_the_time_that_was_given() {
    let cluster = cluster(1);
    let stuck = ["--handler", "sleep=10m", "--stuck-after", "2s"];
    let run = Listening::start(&cluster, &stuck);
    let healthy = get(&run.address, "/health/live");
    assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
    let looks = tick(Duration::from_millis(100)).into_iter().take(900);
    let live = looks
        .map(|_| get(&run.address, "/health/live"))
        .find(|live| live.starts_with("HTTP/1.1 503 "));
    let live = live.unwrap_or_default();
    assert!(live.contains("has been at offset 0 of orders-"), "{live}");
    assert!(live.contains("longer than stuck_after (2 s)"), "{live}");
}

#[test]
fn a_quiet_run_listens_without_a_word() {
    let cluster = cluster(1);
    let (_, stderr, code) = output(&[
        "run",
        "-b",
        cluster.bootstrap(),
        "-t",
        "orders",
        "-g",
        "billing",
        "--listen",
        "0",
        "--until-end",
        "-q",
    ]);
    assert_eq!((stderr.as_str(), code), ("", 0));
}

#[test]
fn a_report_as_json_is_the_result_where_nothing_else_is_printed() {
    let cluster = cluster(10);
    let (stdout, stderr, code) = output(&[
        "run",
        "-b",
        cluster.bootstrap(),
        "-t",
        "orders",
        "-g",
        "billing",
        "--workers",
        "1",
        "--handler",
        "sleep=1ms",
        "--until-end",
        "--json",
    ]);
    assert_eq!((stderr.as_str(), code), ("", 0));
    let mut report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["stop_ms"].is_u64());
    report["stop_ms"] = 0.into();
    insta::assert_snapshot!("report_json", report.to_string());
}

#[test]
fn without_a_broker_a_run_ends_with_4_within_its_timeout() {
    let (stdout, stderr, code) = output(&[
        "run",
        "-b",
        "127.0.0.1:1",
        "-t",
        "orders",
        "-g",
        "billing",
        "--timeout",
        "300ms",
    ]);
    assert_eq!((stdout.as_str(), code), ("", 4), "{stderr}");
    assert!(
        stderr.starts_with("error: no contact with the cluster at 127.0.0.1:1 within 300ms"),
        "{stderr}"
    );
}
