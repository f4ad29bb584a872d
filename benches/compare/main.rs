//! What a record costs: keepup beside a plain rdkafka loop and a bare reader
//! of the protocol, on the same broker, in the same run.
//!
//! Machines differ and are shared, so single figures mean little: the clients
//! take turns, round after round, and the table gives medians and ratios. CPU
//! is the client process's user and system time between its first and last
//! record.
//!
//! `scripts/bench` builds everything and runs this. Its arguments:
//! `--records N` (default 8,000,000), `--rounds N` (5), `--threads N` (2),
//! `--bootstrap HOST:PORT` (default: a broker of its own).
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a benchmark reads clocks, prints, and ends where it cannot go on"
)]

mod bare;
mod measure;
mod plain;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

/// Partitions of the topic, as in every figure that is quoted.
const PARTITIONS: i32 = 8;
const TOPIC: &str = "bench-100-bytes";
const VALUE: usize = 100;

struct Plan {
    records: u64,
    rounds: usize,
    threads: usize,
    bootstrap: Option<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match arguments.first().map(String::as_str) {
        Some("bare") => bare::run(&client_arguments(&arguments)),
        Some("plain") => plain::run(&client_arguments(&arguments)),
        _ => compare(&plan(&arguments)),
    }
}

/// What a client process is told: `NAME BOOTSTRAP TOPIC RECORDS THREADS`.
pub(crate) struct ClientArguments {
    pub(crate) bootstrap: String,
    pub(crate) topic: String,
    pub(crate) records: u64,
    pub(crate) threads: usize,
}

fn client_arguments(arguments: &[String]) -> ClientArguments {
    ClientArguments {
        bootstrap: arguments[1].clone(),
        topic: arguments[2].clone(),
        records: arguments[3].parse().expect("a number of records"),
        threads: arguments[4].parse().expect("a number of threads"),
    }
}

fn plan(arguments: &[String]) -> Plan {
    let mut plan = Plan {
        records: 8_000_000,
        rounds: 5,
        threads: 2,
        bootstrap: None,
    };
    for pair in arguments.chunks(2) {
        let value = pair.get(1).cloned().unwrap_or_default();
        match pair[0].as_str() {
            "--records" => plan.records = value.parse().expect("--records N"),
            "--rounds" => plan.rounds = value.parse().expect("--rounds N"),
            "--threads" => plan.threads = value.parse().expect("--threads N"),
            "--bootstrap" => plan.bootstrap = Some(value),
            other => {
                eprintln!("unknown option {other}: --records, --rounds, --threads, --bootstrap");
                std::process::exit(2);
            }
        }
    }
    plan
}

/// A broker of our own, ended with this process.
struct Broker {
    script: Child,
    bootstrap: String,
}

impl Broker {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let mut script = Command::new(repository().join("scripts/kafka"))
            .args(["--port", &port.to_string(), "--heap", "1g"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("scripts/kafka starts");
        let mut bootstrap = String::new();
        let stdout = script.stdout.take().expect("its output is piped");
        BufReader::new(stdout)
            .read_line(&mut bootstrap)
            .expect("scripts/kafka prints the address");
        assert!(
            !bootstrap.trim().is_empty(),
            "scripts/kafka did not start a broker"
        );
        Self {
            script,
            bootstrap: bootstrap.trim().to_owned(),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.script);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.script.wait();
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compare(plan: &Plan) {
    let broker = plan.bootstrap.is_none().then(Broker::start);
    let bootstrap = plan
        .bootstrap
        .clone()
        .or_else(|| broker.as_ref().map(|broker| broker.bootstrap.clone()))
        .expect("an address");
    fill(&bootstrap, plan.records);
    let own = std::env::current_exe().expect("the path of this program");
    let keepup = own
        .ancestors()
        .map(|folder| folder.join("keepup"))
        .find(|program| program.is_file())
        .expect("the command is built: cargo build --release");
    let (records, threads) = (plan.records.to_string(), plan.threads.to_string());
    println!("plain loop: {}", plain::settings_text());
    let mut lines: Vec<(&str, Vec<serde_json::Value>)> = vec![
        ("bare-reader", Vec::new()),
        ("keepup", Vec::new()),
        ("plain-loop", Vec::new()),
    ];
    for round in 0..plan.rounds {
        for (peer, results) in &mut lines {
            let group = format!("bench-{}-{round}-{peer}", std::process::id());
            let mut command = match *peer {
                "keepup" => {
                    let mut command = Command::new(&keepup);
                    command.args(["perf", "-b", &bootstrap, "-t", TOPIC, "-g", &group]);
                    command.args(["--workers", &threads, "--count", &records]);
                    command
                }
                other => {
                    let mut command = Command::new(&own);
                    let name = if other == "plain-loop" {
                        "plain"
                    } else {
                        "bare"
                    };
                    command.args([name, &bootstrap, TOPIC, &records, &threads]);
                    command
                }
            };
            let output = command
                .stderr(Stdio::inherit())
                .output()
                .expect("a client runs");
            let text = String::from_utf8_lossy(&output.stdout);
            let line = text.lines().last().unwrap_or_default();
            let value =
                serde_json::from_str(line).unwrap_or_else(|_| panic!("{peer} printed {text}"));
            eprint!(".");
            results.push(value);
        }
    }
    eprintln!();
    table(&lines);
    drop(broker);
}

/// Medians, and what they are beside the bare reader and the plain loop.
fn table(lines: &[(&str, Vec<serde_json::Value>)]) {
    let median = |results: &[serde_json::Value], field: &str| -> f64 {
        let mut values: Vec<f64> = results
            .iter()
            .filter_map(|line| line[field].as_f64())
            .collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let rows: Vec<(&str, f64, f64, f64)> = lines
        .iter()
        .map(|(peer, results)| {
            let per_s = median(results, "records_per_s") / 1e6;
            let cpu = median(results, "cpu_ns_per_record");
            (*peer, per_s, cpu, median(results, "peak_rss_mib"))
        })
        .collect();
    println!(
        "{:<12} {:>12} {:>14} {:>9} {:>12} {:>12} {:>14}",
        "client",
        "M records/s",
        "CPU ns/record",
        "peak MiB",
        "CPU / bare",
        "CPU / plain",
        "records/s / bare"
    );
    let of = |peer: &str| rows.iter().find(|row| row.0 == peer).copied();
    for (peer, per_s, cpu, rss) in &rows {
        let (bare, plain) = (of("bare-reader"), of("plain-loop"));
        println!(
            "{peer:<12} {per_s:>12.2} {cpu:>14.1} {rss:>9.1} {:>12.2} {:>12.2} {:>14.2}",
            cpu / bare.map_or(f64::NAN, |row| row.2),
            cpu / plain.map_or(f64::NAN, |row| row.2),
            per_s / bare.map_or(f64::NAN, |row| row.1),
        );
    }
}

/// Creates the topic and fills it, where it is not there yet.
fn fill(bootstrap: &str, records: u64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    let admin: AdminClient<DefaultClientContext> = config.create().expect("an admin client");
    let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let created = futures_executor::block_on(admin.create_topics([&topic], &options))
        .expect("the broker answers");
    if matches!(
        created.first(),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))
    ) {
        return;
    }
    config
        .set("linger.ms", "20")
        .set("batch.num.messages", "10000")
        .set("acks", "1");
    config.set("queue.buffering.max.messages", "500000");
    let producer: BaseProducer = config.create().expect("a producer");
    let value = [b'x'; VALUE];
    eprint!("filling {TOPIC} with {records} records of {VALUE} bytes ");
    for number in 0..records {
        let partition = i32::try_from(number % u64::from(PARTITIONS.unsigned_abs())).unwrap_or(0);
        let mut record = BaseRecord::<(), [u8]>::to(TOPIC)
            .partition(partition)
            .payload(&value);
        while let Err((error, back)) = producer.send(record) {
            assert!(
                matches!(
                    error,
                    KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)
                ),
                "{error}"
            );
            producer.poll(Duration::from_millis(10));
            record = back;
        }
        if number % 1_000_000 == 0 {
            eprint!(".");
            let _ = std::io::stderr().flush();
        }
    }
    producer
        .flush(Duration::from_mins(1))
        .expect("everything is delivered");
    eprintln!();
}
