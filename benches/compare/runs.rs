//! A `keepup run` that a row looks at while it works: through its endpoints,
//! its events and what the kernel says of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clients::{With, wait};

/// Events have their own time, so that this is not how exact a figure is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A drain, and the farewell to the group.
const ENDS_WITHIN: Duration = Duration::from_mins(1);
/// What the kernel counts processor time in: 100 per second on every Linux.
const TICKS_PER_S: f64 = 100.0;

/// A line of its standard output.
pub(crate) struct Event {
    /// When it was read.
    pub(crate) at: Instant,
    pub(crate) said: Value,
}

impl Event {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.said["name"] == name
    }

    pub(crate) fn worker(&self) -> Option<u64> {
        self.said["worker"].as_u64()
    }
}

/// Asked to end when it is dropped, and killed where it does not.
pub(crate) struct Run {
    child: Child,
    address: SocketAddr,
    events: Arc<Mutex<Vec<Event>>>,
    reader: Option<JoinHandle<()>>,
}

impl Run {
    /// Starts it in a group of its own, with endpoints.
    pub(crate) fn start(
        with: &With<'_>,
        topic: &str,
        group: &str,
        more: &[&str],
    ) -> Result<Self, String> {
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        let mut child = Command::new(&with.programs.keepup)
            .args(["run", "-q", "-b", &with.broker.bootstrap, "-t", topic])
            .args(["-g", group, "--listen", &address.to_string()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("it does not start: {error}"))?;
        let events = Arc::default();
        let stdout = child.stdout.take().expect("it is piped");
        let reader = std::thread::Builder::new()
            .spawn({
                let events = Arc::clone(&events);
                move || read_events(stdout, &events)
            })
            .expect("a thread");
        Ok(Self {
            child,
            address,
            events,
            reader: Some(reader),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every event so far.
    pub(crate) fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().expect("no thread panics with it")
    }

    /// The document of `/lag`.
    pub(crate) fn lag(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/lag")?).ok()
    }

    /// The body of an answer.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let address = self.address;
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    /// Waits until `find` finds something.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        find: impl Fn(&Self) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = find(self) {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended with {status}, waited for: {what}"));
            }
            if Instant::now() >= deadline {
                return Err(format!("waited {patience:?} for: {what}"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// How much of a core its first process uses during `window`.
    pub(crate) fn cpu_percent(&self, window: impl FnOnce()) -> Result<f64, String> {
        let (began, before) = (Instant::now(), cpu_ticks(self.pid())?);
        window();
        let ticks = cpu_ticks(self.pid())? - before;
        Ok(ticks / TICKS_PER_S / began.elapsed().as_secs_f64() * 100.0)
    }

    /// Asks it to end; an error where it does not end well.
    pub(crate) fn end(mut self) -> Result<(), String> {
        match self.stop() {
            Some(true) => Ok(()),
            Some(false) => Err("it did not end well".to_owned()),
            None => Err(format!("it did not end within {ENDS_WITHIN:?}")),
        }
    }

    fn stop(&mut self) -> Option<bool> {
        // Its number may be somebody else's once it was waited for.
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let ended = wait(&mut self.child, ENDS_WITHIN);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        ended
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_events(stdout: ChildStdout, events: &Mutex<Vec<Event>>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let at = Instant::now();
        let said = serde_json::from_str(&line).unwrap_or(Value::Null);
        let mut events = events.lock().expect("no thread panics with it");
        events.push(Event { at, said });
    }
}

/// User and system time of a process.
fn cpu_ticks(pid: u32) -> Result<f64, String> {
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
