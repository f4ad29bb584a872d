//! What systemd hears of a run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::keepup::{Keepup, program};
use crate::support::process::repository;
use crate::support::{PATIENT, SOON};

/// Everything that comes until `wanted` is among it.
fn until(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    let start = Instant::now();
    let mut lines: Vec<String> = Vec::new();
    while !lines.iter().any(|line| line == wanted) {
        assert!(start.elapsed() < PATIENT, "no {wanted} among {lines:?}");
        let mut message = [0; 4_096];
        if let Ok(length) = socket.recv(&mut message) {
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            lines.extend(text.lines().map(str::to_owned));
        }
    }
    lines
}

#[test]
fn systemd_is_told_when_a_run_is_ready_that_it_is_alive_and_that_it_stops() {
    let kafka = kafka!(shared);
    kafka.create_topic("for-systemd", 2, &[]);
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a time");
    let environment = format!("NOTIFY_SOCKET={}", path.display());
    let program = program().display().to_string();
    // Workers inherit the variable, and have nothing to say there.
    let arguments = [
        &environment,
        &program,
        "run",
        "-b",
        kafka.bootstrap(),
        "-t",
        "for-systemd",
        "-g",
        "for-systemd",
        "--model",
        "processes",
        "--workers",
        "2",
    ];
    let mut run = Keepup::launch(PathBuf::from("/usr/bin/env"), &arguments, |_| false);
    let before = until(&socket, "READY=1");
    assert!(
        !before.iter().any(|line| line == "STOPPING=1"),
        "{before:?}"
    );
    let alive = until(&socket, "WATCHDOG=1");
    assert!(!alive.iter().any(|line| line == "READY=1"), "{alive:?}");
    run.signal(Signal::TERM);
    let rest = until(&socket, "STOPPING=1");
    assert!(!rest.iter().any(|line| line == "READY=1"), "{rest:?}");
    assert_eq!(run.end(SOON), Some(0), "{}", run.stderr());
}

#[test]
fn the_unit_in_deploy_names_options_that_there_are() {
    let unit = fs::read_to_string(repository().join("deploy/systemd/keepup-billing.service"));
    let unit = unit.expect("it is there");
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/keepup "))
        .expect("it starts the command");
    let help = crate::support::keepup::keepup(&["run", "--help"], "", SOON).stdout;
    let options: BTreeSet<&str> = start
        .split(' ')
        .filter(|word| word.starts_with("--"))
        .collect();
    assert!(options.len() >= 3, "{options:?}");
    for option in options {
        assert!(help.contains(option), "{option}");
    }
}
