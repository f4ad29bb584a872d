//! What it costs to own a thousand partitions in which nothing happens.
//!
//! `keepup run` with everything that a service would have on: sixteen workers,
//! commits, lag, and an endpoint that is scraped every ten seconds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::Broker;
use crate::clients::{Programs, status_mib, wait};
use crate::options::Options;
use crate::results::Cell;
use crate::rows::Peer;
use crate::topics;

const PARTITIONS: i32 = 1_000;
const WORKERS: &str = "16";
/// The group, the leaders and the start positions have to be found.
const PATIENCE: Duration = Duration::from_mins(1);
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: usize = 3;
/// What the kernel counts processor time in: 100 per second on every Linux.
const TICKS_PER_S: f64 = 100.0;

pub(crate) fn measure(broker: &Broker, programs: &Programs, options: &Options) -> Vec<Cell> {
    let mut cell = Cell::new(Peer::Keepup.name());
    topics::create(&broker.bootstrap, "bench-idle", PARTITIONS);
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    let mut command = Command::new(&programs.keepup);
    command
        .args(["run", "-q", "-b", &broker.bootstrap, "-t", "bench-idle"])
        .args(["-g", &format!("bench-idle-{}", std::process::id())])
        .args(["--workers", WORKERS, "--listen", &address.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match command.spawn() {
        Ok(mut child) => {
            if let Err(why) = watch(&mut child, address, options, &mut cell) {
                cell.fail(why);
            }
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            wait(&mut child, PATIENCE);
        }
        Err(error) => cell.fail(format!("it does not start: {error}")),
    }
    vec![cell]
}

fn watch(
    child: &mut Child,
    address: SocketAddr,
    options: &Options,
    cell: &mut Cell,
) -> Result<(), String> {
    let pid = child.id().to_string();
    let deadline = Instant::now() + PATIENCE;
    while !has_everything(address) {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("it ended with {status}"));
        }
        if Instant::now() >= deadline {
            return Err(format!("it has not all partitions after {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(SETTLE);
    for _ in 0..if options.quick { 1 } else { WINDOWS } {
        let (began, before) = (Instant::now(), cpu_ticks(&pid)?);
        std::thread::sleep(WINDOW / 2);
        let metrics = get(address, "/metrics").unwrap_or_default();
        if !metrics.contains("kafka_consumer_fetch_manager_records_lag{") {
            return Err("its metrics have no lag".to_owned());
        }
        std::thread::sleep(WINDOW / 2);
        let ticks = cpu_ticks(&pid)? - before;
        let seconds = began.elapsed().as_secs_f64();
        let memory = |field| status_mib(&pid, field).ok_or("it is gone");
        cell.add(&[
            ("cpu_percent", ticks / TICKS_PER_S / seconds * 100.0),
            ("rss_mib", memory("VmRSS")?),
            ("peak_rss_mib", memory("VmHWM")?),
        ]);
        eprint!(".");
    }
    Ok(())
}

/// Whether every partition has a worker and a position.
fn has_everything(address: SocketAddr) -> bool {
    let lag = get(address, "/lag").and_then(|body| serde_json::from_str::<Value>(&body).ok());
    let Some(partitions) = lag.as_ref().and_then(|lag| lag["partitions"].as_array()) else {
        return false;
    };
    let is_there = |partition: &&Value| {
        !partition["worker"].is_null()
            && !partition["position"].is_null()
            && !partition["end_offset"].is_null()
    };
    partitions.iter().filter(is_there).count() == usize::try_from(PARTITIONS).unwrap_or(0)
}

/// The body of an answer.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

/// User and system time of a process.
fn cpu_ticks(pid: &str) -> Result<f64, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    // Fields 14 and 15 of the line; the first two are before the bracket.
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok(user + system),
        _ => Err("it is gone".to_owned()),
    }
}
