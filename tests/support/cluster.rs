//! The brokers' processes: where they live, how they start, die and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::Duration;

use rustix::process::Signal;

use super::process::{Guarded, run, script};
use super::{PATIENT, wait_until};

/// What `tests/kafka/prepare` made, or `None` where this machine has no Kafka: then `test` is skipped by name.
pub(crate) fn home(test: &str) -> Option<&'static Path> {
    home_of(test, "")
}

/// As [`home`], of another release than the one that `tests/kafka/pom.xml` names.
pub(crate) fn home_of(test: &str, release: &'static str) -> Option<&'static Path> {
    type Home = OnceLock<Result<PathBuf, String>>;
    static HOMES: Mutex<BTreeMap<&str, &'static Home>> = Mutex::new(BTreeMap::new());
    let home = {
        let mut homes = HOMES.lock().expect("nobody panics with the homes");
        *homes
            .entry(release)
            .or_insert_with(|| Box::leak(Box::default()))
    };
    let home = home.get_or_init(|| {
        let mut prepare = Command::new(script("prepare"));
        prepare.env("KEEPUP_KAFKA_VERSION", release);
        // Maven's own limit is in the script; this one is for a script that hangs.
        let prepared = run(prepare, "", Duration::from_mins(20));
        match prepared.code {
            Some(0) => Ok(PathBuf::from(prepared.stdout.trim())),
            _ => Err(prepared.stderr.trim().to_owned()),
        }
    });
    match home {
        Ok(home) => Some(home),
        Err(reason) => {
            let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
            assert!(
                !set("CI", "true") && !set("KEEPUP_REQUIRE_KAFKA", "1"),
                "{test} needs a real Kafka ({reason}); scripts/test installs what is missing, \
                 and without CI=true and KEEPUP_REQUIRE_KAFKA=1 the test is skipped"
            );
            // Past the harness, which keeps what a passing test prints.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
            None
        }
    }
}

/// Brokers that tests of this process have of their own: three at once, on a machine of two cores.
#[derive(Debug)]
struct Slots(usize);

static FREE: (Mutex<usize>, Condvar) = (Mutex::new(3), Condvar::new());

impl Slots {
    fn take(count: usize) -> Self {
        let count = count.min(3);
        let free = FREE.0.lock().expect("nobody panics with the slots");
        let (mut free, timeout) = FREE
            .1
            .wait_timeout_while(free, Duration::from_mins(15), |free| *free < count)
            .expect("nobody panics with the slots");
        assert!(
            !timeout.timed_out(),
            "other tests hold their brokers for 15 minutes"
        );
        *free -= count;
        Self(count)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if let Ok(mut free) = FREE.0.lock() {
            *free += self.0;
            FREE.1.notify_all();
        }
    }
}

/// A directory under `target/kafka/run`, removed on drop, or by a later run where this one was killed.
#[derive(Debug)]
struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    fn create(home: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let base = home.parent().expect("it is in target/kafka").join("run");
        fs::create_dir_all(&base).expect("target can be written");
        Self::sweep(&base);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{}-{number}", std::process::id()));
        let lock = File::create(path.with_extension("lock")).expect("target can be written");
        lock.lock().expect("the file system has locks");
        fs::create_dir_all(&path).expect("target can be written");
        Self { path, _lock: lock }
    }

    /// Removes what killed runs have left: their locks are free.
    fn sweep(base: &Path) {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let lock = entry.path();
            if lock.extension().is_some_and(|is| is == "lock")
                && File::open(&lock).is_ok_and(|file| file.try_lock().is_ok())
            {
                let _ = fs::remove_dir_all(lock.with_extension(""));
                let _ = fs::remove_file(lock);
            }
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // The logs of a failed test are wanted; the next run removes them.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.path);
            let _ = fs::remove_file(self.path.with_extension("lock"));
        }
    }
}

/// A further listener for clients.
#[derive(Debug)]
struct Listener {
    name: String,
    protocol: String,
    port: u16,
}

/// A cluster of one broker or more; every one is broker and controller, with the ids 1, 2, ….
#[derive(Debug)]
pub(crate) struct Cluster {
    // In this order: the processes end before their files go.
    brokers: Vec<Option<Guarded>>,
    nodes: Vec<(u16, u16)>,
    /// Beside the plain one of every broker; of the first broker only.
    listeners: Vec<Listener>,
    settings: Vec<String>,
    home: PathBuf,
    directory: RunDirectory,
    _slots: Option<Slots>,
}

impl Cluster {
    /// Starts the processes; the brokers are not ready yet. One that is shared waits for nobody: it never goes.
    /// `listeners` are names and protocols of what the first broker has beside its plain one.
    pub(crate) fn start(
        home: &Path,
        count: usize,
        listeners: &[(&str, &str)],
        settings: &[&str],
        shared: bool,
    ) -> Self {
        let slots = (!shared).then(|| Slots::take(count));
        let ports = free_ports(2 * count + listeners.len());
        let (nodes, further) = ports.split_at(2 * count);
        let mut cluster = Self {
            brokers: (0..count).map(|_| None).collect(),
            nodes: nodes.chunks(2).map(|pair| (pair[0], pair[1])).collect(),
            listeners: listeners
                .iter()
                .zip(further)
                .map(|(&(name, protocol), &port)| Listener {
                    name: name.to_owned(),
                    protocol: protocol.to_owned(),
                    port,
                })
                .collect(),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            home: home.to_owned(),
            directory: RunDirectory::create(home),
            _slots: slots,
        };
        for id in cluster.ids() {
            cluster.launch(id);
        }
        cluster
    }

    pub(crate) fn ids(&self) -> std::ops::RangeInclusive<i32> {
        1..=i32::try_from(self.nodes.len()).expect("a handful")
    }

    pub(crate) fn bootstrap(&self) -> String {
        let addresses: Vec<_> = self
            .nodes
            .iter()
            .map(|(port, _)| format!("127.0.0.1:{port}"))
            .collect();
        addresses.join(",")
    }

    /// The address of a further listener.
    pub(crate) fn listener(&self, name: &str) -> String {
        let listener = self.listeners.iter().find(|listener| listener.name == name);
        format!(
            "127.0.0.1:{}",
            listener.expect("the broker has that listener").port
        )
    }

    /// Starts the process of broker `id`, on the data that it has.
    pub(crate) fn launch(&mut self, id: i32) {
        let index = self.index(id);
        let directory = self.directory.path.join(format!("broker-{id}"));
        fs::create_dir_all(&directory).expect("target can be written");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(id))
            .expect("target can be written");
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(port, controller)| format!("{port}:{controller}"))
            .collect();
        let mut command = Command::new(script("broker"));
        command
            .env("KEEPUP_KAFKA_HOME", &self.home)
            .arg("--dir")
            .arg(&directory)
            .args(["--id", &id.to_string(), "--nodes", &nodes.join(",")])
            .stderr(log.try_clone().expect("a file can be shared"))
            .stdout(log);
        for listener in self.listeners.iter().filter(|_| id == 1) {
            let Listener {
                name,
                protocol,
                port,
            } = listener;
            command.args(["--listener", &format!("{name}={protocol}:{port}")]);
        }
        for setting in &self.settings {
            command.args(["--set", &setting.replace("{id}", &id.to_string())]);
        }
        self.brokers[index] = Some(Guarded::spawn(command));
    }

    /// Where broker `id` logs.
    pub(crate) fn log(&self, id: i32) -> PathBuf {
        self.directory.path.join(format!("broker-{id}/log"))
    }

    /// Where broker `id` has the files of a partition.
    pub(crate) fn partition(&self, id: i32, topic: &str, partition: i32) -> PathBuf {
        let data = self.directory.path.join(format!("broker-{id}/data"));
        data.join(format!("{topic}-{partition}"))
    }

    /// Sends a signal to the process of broker `id`.
    pub(crate) fn signal(&mut self, id: i32, signal: Signal) {
        let index = self.index(id);
        let broker = self.brokers[index].as_mut();
        assert!(
            broker.is_some_and(|broker| broker.signal(signal)),
            "broker {id} is not running"
        );
    }

    /// Kills broker `id` at once and waits for its end.
    pub(crate) fn kill(&mut self, id: i32) {
        self.signal(id, Signal::KILL);
        let index = self.index(id);
        if let Some(mut broker) = self.brokers[index].take() {
            broker.wait(PATIENT, "the end of a killed broker");
        }
    }

    /// Ends broker `id` as an operator would, with its partitions handed over first.
    pub(crate) fn shut_down(&mut self, id: i32) {
        self.signal(id, Signal::TERM);
        let index = self.index(id);
        if let Some(mut broker) = self.brokers[index].take() {
            broker.wait(PATIENT, "the end of a broker that was asked to stop");
        }
    }

    /// The first broker that has ended by itself, and whether another try with other ports may help.
    pub(crate) fn casualty(&mut self) -> Option<(i32, bool)> {
        let ended = |broker: &mut Option<Guarded>| {
            broker
                .as_mut()
                .is_some_and(|broker| broker.ended().is_some())
        };
        let index = self.brokers.iter_mut().position(ended)?;
        let id = i32::try_from(index).expect("a handful") + 1;
        let log = fs::read_to_string(self.log(id)).unwrap_or_default();
        Some((id, log.contains("BindException")))
    }

    /// The end of the log of broker `id`, for a failure's message.
    pub(crate) fn last_words(&self, id: i32) -> String {
        let path = self.log(id);
        let log = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("{} ends with:\n{tail}", path.display())
    }

    fn index(&self, id: i32) -> usize {
        assert!(self.ids().contains(&id), "there is no broker {id}");
        usize::try_from(id - 1).expect("it is positive")
    }
}

/// Ports that nobody listens on, below the range that outgoing connections take theirs from: so a broker that was
/// killed finds its ports free when it comes back.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let mut ports = BTreeSet::new();
    wait_until(PATIENT, "free ports", || {
        let port = fastrand::u16(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.insert(port);
        }
        if ports.len() == count {
            Ok(())
        } else {
            Err(ports.clone())
        }
    });
    ports.into_iter().collect()
}
