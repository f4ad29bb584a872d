//! Workers that are processes, where the system, the program or whoever calls it does not play along.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use keepup::{Model, Order, Record, WorkerInfo, Workers};
use rustix::process::{Signal, getuid, kill_process};

use crate::processes::{PROCESSES, assert_gives_up, pid, wait_gone, wait_workers};
use crate::signals::wait_sleeping;
use crate::support::kafka::Kafka;
use crate::support::keepup::{Keepup, keepup, program};
use crate::support::process::wait_none_has;
use crate::support::{PATIENT, SOON, wait_until};

/// What the program of [`a_program_that_differs_from_process_to_process`] does in a worker; the brokers and its name
/// follow. Whoever runs that test without it has no program.
const DIFFERS: &str = "KEEPUP_DIFFERS";

/// The arguments of `keepup run` with worker processes, of a group that is named as its topic.
fn arguments<'a>(kafka: &'a Kafka, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let given = ["run", "-b", kafka.bootstrap(), "-t", name, "-g", name];
    [&given[..], &["--events", "json"], &PROCESSES[..], more].concat()
}

/// Starts the command by another program, which becomes it.
fn run_by(by: &[&str], command: &Path, arguments: &[&str]) -> Keepup {
    let command = command.display().to_string();
    let arguments = [&by[1..], &[&command], arguments].concat();
    Keepup::start_program(PathBuf::from(by[0]), &arguments)
}

#[test]
fn no_worker_processes_at_all_are_refused_with_2_and_the_rule() {
    for workers in ["0", "auto:0"] {
        let own = ["run", "-b", "127.0.0.1:1", "-t", "t", "-g", "g"];
        let own = [&own[..], &PROCESSES[..], &["--workers", workers]].concat();
        let refused = keepup(&own, "", SOON);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert_eq!(refused.stdout, "", "nothing was started");
        for words in ["workers = 0", "at least one worker", "give"] {
            assert!(refused.stderr.contains(words), "{words}: {refused:?}");
        }
    }
}

/// Waits for the end of a run that gets too little of the system: it is not tried for ever, the last cause is named,
/// and nothing is left.
fn assert_gets_too_little(mut run: Keepup, group: &str, cause: &str) {
    assert_gives_up(&mut run, cause);
    let events = run.events();
    // At most the budget of each, and its first time.
    let stopped = events
        .iter()
        .filter(|event| event["name"] == "worker_stopped");
    assert!(stopped.count() <= 16 * 7);
    // With it goes the watch on it, which has its arguments too; workers are in groups of their own.
    drop(run);
    wait_none_has(group);
}

#[test]
fn more_processes_than_files_may_be_open_end_the_run_with_the_cause() {
    let kafka = kafka!(shared);
    let name = "bad-few-files";
    kafka.filled_topic(name, 16, 0..5);
    // Enough to reach the cluster, and not for all of the workers.
    let few = ["/usr/bin/prlimit", "--nofile=48:48"];
    let many = arguments(kafka, name, &["--workers", "16"]);
    let run = run_by(&few, &program(), &many);
    assert_gets_too_little(run, name, "could not be started: Too many open files");
}

#[test]
fn more_processes_than_the_user_may_have_end_the_run_with_the_cause() {
    let kafka = kafka!(shared);
    let name = "bad-few-processes";
    kafka.filled_topic(name, 16, 0..5);
    if !getuid().is_root() {
        println!("skipped: only root can become a user that has no processes yet");
        return;
    }
    // Where that user can read it.
    let directory = tempfile::tempdir().expect("a directory");
    let anybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), anybody).expect("it is ours");
    let copy = directory.path().join("keepup");
    fs::copy(program(), &copy).expect("it can be copied");
    let user = ["/usr/bin/setpriv", "--reuid=64123", "--clear-groups"];
    let by = [&user[..], &["/usr/bin/prlimit", "--nproc=30:30"]].concat();
    let many = arguments(kafka, name, &["--workers", "16"]);
    let run = run_by(&by, &copy, &many);
    assert_gets_too_little(run, name, "Resource temporarily unavailable");
}

#[test]
fn workers_are_the_program_that_runs_when_its_file_is_deleted_or_another() {
    let kafka = kafka!(shared);
    let name = "bad-executable";
    kafka.filled_topic(name, 2, 0..20);
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("keepup");
    fs::copy(program(), &copy).expect("it can be copied");
    let mut run = Keepup::start_program(copy.clone(), &arguments(kafka, name, &["--workers", "2"]));
    let mut pids = wait_workers(&run, 2);
    fs::remove_file(&copy).expect("it is there");
    for another in [false, true] {
        if another {
            fs::copy("/bin/false", &copy).expect("it can be copied");
        }
        kill_process(pid(pids[0]), Signal::KILL).expect("it runs");
        let restarted = run.next("worker_stopped", SOON);
        assert_eq!(restarted["pid"], pids[0]);
        pids = wait_workers(&run, 2);
    }
    kafka.fill(name, 2, 20..40);
    kafka.wait_for_commits(name, name, &[Some(40); 2]);
    run.signal(Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    wait_gone(&pids);
}

#[test]
fn workers_that_inherit_an_ignored_sigterm_are_killed_at_the_end_all_the_same() {
    let kafka = kafka!(shared);
    let name = "bad-ignored";
    kafka.filled_topic(name, 2, 0..20);
    let directory = tempfile::tempdir().expect("a directory");
    let noted = directory.path().join("pids");
    let handler = format!("exec=echo $$ >>'{}'; exec sleep 45", noted.display());
    let own = ["--workers", "2", "--drain", "500ms", "--handler", &handler];
    let ignores = ["/bin/sh", "-c", "trap '' TERM HUP INT; exec \"$@\"", "sh"];
    let mut run = run_by(&ignores, &program(), &arguments(kafka, name, &own));
    let mut pids = wait_workers(&run, 2);
    pids.extend(wait_until(SOON, "the handlers", || {
        let noted = fs::read_to_string(&noted).unwrap_or_default();
        let pids: Vec<i32> = noted.lines().filter_map(|pid| pid.parse().ok()).collect();
        if pids.len() == 2 {
            Ok(pids)
        } else {
            Err(noted)
        }
    }));
    for &all in &pids {
        kill_process(pid(all), Signal::TERM).expect("it runs");
    }
    run.signal(Signal::TERM);
    assert_eq!(run.end(SOON), Some(3), "{}", run.stderr());
    wait_gone(&pids);
}

#[test]
fn a_stopped_worker_that_ignores_sigterm_is_killed_and_followed() {
    let kafka = kafka!(shared);
    let name = "bad-stopped-ignored";
    kafka.filled_topic(name, 1, 0..20);
    let own = ["--workers", "1", "--handler", "sleep=60s"];
    let ignores = ["/bin/sh", "-c", "trap '' TERM; exec \"$@\"", "sh"];
    let mut run = run_by(&ignores, &program(), &arguments(kafka, name, &own));
    let pids = wait_workers(&run, 1);
    wait_sleeping(&pids, 1);
    kill_process(pid(pids[0]), Signal::STOP).expect("it runs");
    let stopped = run.next("worker_stopped", PATIENT);
    assert_eq!(stopped["reason"], "child-silent");
    run.wait_stderr("told to end (SIGTERM)", 1, SOON);
    wait_gone(&pids);
    let next = wait_workers(&run, 1);
    for _ in 0..2 {
        run.signal(Signal::TERM);
    }
    assert!(run.end(PATIENT).is_some());
    wait_gone(&next);
}

#[test]
#[ignore = "a program for other tests: they start it"]
fn a_program_that_differs_from_process_to_process() {
    let Ok(how) = std::env::var(DIFFERS) else {
        return;
    };
    let [how, bootstrap, name] = how.split(',').collect::<Vec<_>>()[..] else {
        panic!("how, brokers, name: {how}");
    };
    let is_worker = keepup::is_worker_process();
    let (group, order) = match how {
        "group" if is_worker => (format!("{name}-of-workers"), Order::Partition),
        "order" if is_worker => (name.to_owned(), Order::Key),
        "exit" if is_worker => std::process::exit(7),
        _ => (name.to_owned(), Order::Partition),
    };
    let ended = keepup::builder(bootstrap, group)
        .topic(name)
        .order(order)
        .model(Model::Processes)
        .workers(Workers::Fixed(2))
        .run(|_: WorkerInfo| |_: &Record<'_>| ());
    let report = ended.expect("it starts");
    let _ = writeln!(std::io::stderr(), "{}", report.reason);
    // The harness would end with a code of its own.
    std::process::exit(report.exit_code());
}

#[test]
fn a_program_whose_workers_come_to_other_settings_ends_and_says_which() {
    let kafka = kafka!(shared);
    for (how, words) in [
        (
            "group",
            &[
                "group is",
                "bad-differs-group-of-workers",
                "here and",
                "before run()",
            ][..],
        ),
        (
            "order",
            &[
                "order is Partition here and Key",
                "the same settings in every process",
            ],
        ),
        ("exit", &["ended with code 7 before it came to run()"]),
    ] {
        let name = format!("bad-differs-{how}");
        kafka.filled_topic(&name, 2, 0..5);
        let told = format!("{DIFFERS}={how},{},{name}", kafka.bootstrap());
        let test = "processes_bad_input::a_program_that_differs_from_process_to_process";
        let mut run = Keepup::start_again(&told, test);
        assert_eq!(run.end(PATIENT), Some(1), "{how}: {}", run.stderr());
        for word in words {
            assert!(
                run.stderr().contains(word),
                "{how}, {word}: {}",
                run.stderr()
            );
        }
        let committed = kafka.committed(&name, &name);
        assert!(
            committed.iter().all(|offset| offset.unwrap_or(0) == 0),
            "{committed:?}"
        );
        drop(run);
        wait_none_has(test);
    }
}
