//! Workers that are processes: what a person or the system does to them, and what is left of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::signals::wait_sleeping;
use crate::support::cluster::free_ports;
use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::{Keepup, keepup, program};
use crate::support::prometheus::get;
use crate::support::{PATIENT, SOON, wait_for, wait_until};

pub(crate) const PROCESSES: [&str; 2] = ["--model", "processes"];

/// The processes of a run's workers that run now, by its events.
pub(crate) fn workers(events: &[Value]) -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    for event in events {
        let Some(pid) = event["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
        else {
            continue;
        };
        match event["name"].as_str() {
            Some("worker_started") => pids.insert(pid),
            Some("worker_stopped" | "worker_restarted") => pids.remove(&pid),
            _ => continue,
        };
    }
    pids
}

/// Waits until so many workers run and have partitions.
pub(crate) fn wait_workers(run: &Keepup, count: usize) -> Vec<i32> {
    run.wait("the workers", PATIENT, |events| {
        let pids = workers(events);
        let assigned: BTreeSet<i64> = events
            .iter()
            .filter(|event| event["name"] == "partitions_assigned")
            .filter_map(|event| event["worker"].as_i64())
            .collect();
        (pids.len() == count && assigned.len() >= count).then(|| pids.into_iter().collect())
    })
}

pub(crate) fn pid(number: i32) -> Pid {
    Pid::from_raw(number).expect("a process has a number")
}

/// Waits until none of them is there. One that is dead and not waited for by whoever has it now (the system's first
/// process) is gone.
pub(crate) fn wait_gone(pids: &[i32]) {
    wait_until(SOON, "the workers to be gone", || {
        let left: Vec<_> = pids
            .iter()
            .filter(|&&number| {
                test_kill_process(pid(number)).is_ok() && !state(number).starts_with(['Z', 'X'])
            })
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}

/// The letter that the system has for what a process does; empty where there is none.
fn state(number: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .map_or_else(String::new, |(_, rest)| rest.chars().take(1).collect())
}

/// Waits for the end of a run whose workers fail too often: it ends with 1, and names the last cause.
pub(crate) fn assert_gives_up(run: &mut Keepup, cause: &str) {
    assert_eq!(run.end(PATIENT), Some(1), "{}", run.stderr());
    let events = run.events();
    let last = events.last().expect("events");
    assert_eq!(
        (&last["name"], &last["reason"]),
        (&"shutdown_complete".into(), &"restart-budget-spent".into())
    );
    assert!(run.stderr().contains(cause), "{}", run.stderr());
}

fn topic(kafka: &Kafka, name: &str, partitions: i32, each: u64) -> Vec<i64> {
    kafka.create_topic(name, partitions, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers(name, partitions, 0..each);
    producer.flush();
    kafka.end_offsets(name)
}

#[test]
fn processes_consume_everything_once_in_order_and_none_is_left() {
    let kafka = kafka!(shared);
    let ends = topic(kafka, "by-processes", 4, 5_000);
    let deliveries = Deliveries::new("by-processes", 4);
    let more = [&PROCESSES[..], &["--workers", "2", "--until-end"]].concat();
    let mut run = deliveries.start(kafka, "by-processes", &more);
    let pids = wait_workers(&run, 2);
    assert!(!pids.contains(&i32::try_from(run.pid()).expect("a number")));
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    deliveries.assert_complete(&ends);
    deliveries.assert_in_order();
    assert_eq!(deliveries.repeats(), 0);
    let committed = kafka.committed("by-processes", "by-processes");
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
    wait_gone(&pids);
}

#[test]
fn as_many_records_are_handled_by_processes_as_were_asked_for() {
    let kafka = kafka!(shared);
    topic(kafka, "counted-processes", 3, 4_000);
    let deliveries = Deliveries::new("counted-processes", 3);
    let more = [&PROCESSES[..], &["--workers", "3", "--count", "5001"]].concat();
    let mut run = deliveries.start(kafka, "counted-processes", &more);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    assert_eq!(deliveries.distinct(), 5_001);
    assert_eq!(deliveries.repeats(), 0);
    let committed = kafka.committed("counted-processes", "counted-processes");
    assert_eq!(committed.into_iter().flatten().sum::<i64>(), 5_001);
}

#[test]
fn a_worker_that_is_killed_is_followed_by_another_and_nothing_is_lost() {
    let kafka = kafka!(shared);
    let ends = topic(kafka, "killed-worker", 4, 3_000);
    let deliveries = Deliveries::new("killed-worker", 4);
    let more = [
        &PROCESSES[..],
        &["--workers", "2", "--until-end", "--handler", "sleep=1ms"],
    ]
    .concat();
    let mut run = deliveries.start(kafka, "killed-worker", &more);
    for killed in 0..3 {
        let pids = wait_workers(&run, 2);
        let handled = deliveries.distinct();
        deliveries.wait_distinct(handled + 50, PATIENT);
        kill_process(pid(pids[killed % 2]), Signal::KILL).expect("it runs");
        let stopped = run.next("worker_stopped", PATIENT);
        assert_eq!(stopped["reason"], "child-exited");
        assert_eq!(stopped["pid"], pids[killed % 2]);
    }
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    deliveries.assert_complete(&ends);
    deliveries.assert_in_order();
    // What a worker did and had not told: a tenth of a second of it, or more where the machine is busy.
    assert!(
        deliveries.repeats() <= 3 * 500,
        "{} again",
        deliveries.repeats()
    );
}

#[test]
fn workers_whose_parent_is_killed_finish_the_record_in_hand_and_are_gone() {
    let kafka = kafka!(shared);
    topic(kafka, "orphans", 2, 1_000);
    let deliveries = Deliveries::new("orphans", 2);
    let more = [
        &PROCESSES[..],
        &["--workers", "2", "--handler", "sleep=100ms"],
    ]
    .concat();
    let mut run = deliveries.start(kafka, "orphans", &more);
    let pids = wait_workers(&run, 2);
    deliveries.wait_distinct(3, SOON);
    run.signal(Signal::KILL);
    assert_eq!(run.end(SOON), None);
    wait_gone(&pids);
}

/// The processes that a process has started and not waited for.
fn children(number: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{number}/task")).expect("it runs");
    let lists = tasks.flatten().filter_map(|task| {
        // A thread may have ended since.
        fs::read_to_string(task.path().join("children")).ok()
    });
    let lists: Vec<String> = lists.collect();
    let numbers = lists.iter().flat_map(|list| list.split_whitespace());
    numbers
        .map(|number| number.parse().expect("a number"))
        .collect()
}

#[test]
fn the_first_process_of_a_container_leaves_no_zombie_of_what_a_dead_worker_had_started() {
    const CONTAINED: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let may = std::process::Command::new("unshare")
        .args(CONTAINED)
        .arg("true")
        .status();
    if !may.is_ok_and(|status| status.success()) {
        println!("left out: this user may not make a namespace of processes");
        return;
    }
    let kafka = kafka!(shared);
    topic(kafka, "contained", 2, 200);
    let command = program().display().to_string();
    let mut arguments = CONTAINED.to_vec();
    arguments.extend([&command, "run", "-b", kafka.bootstrap(), "-t", "contained"]);
    arguments.extend(["-g", "contained", "--events", "json", "--workers", "2"]);
    // What the handler has started outlives it, in the worker's group.
    let handler = "exec=sleep 300 & while read -r _; do sleep 0.02; echo done; done";
    arguments.extend(PROCESSES);
    arguments.extend(["--handler", handler]);
    let mut run = Keepup::start_program("unshare".into(), &arguments);
    wait_workers(&run, 2);
    let first = children(run.pid())[0];
    let number = u32::try_from(first).expect("a number");
    let zombies_and_others = || -> (Vec<i32>, Vec<i32>) {
        let children = children(number).into_iter();
        children.partition(|&child| state(child).starts_with('Z'))
    };
    for _ in 0..3 {
        let (_, workers) = zombies_and_others();
        kill_process(pid(workers[0]), Signal::KILL).expect("it runs");
        run.next("worker_stopped", PATIENT);
        run.next("worker_started", PATIENT);
    }
    wait_until(SOON, "the dead to be waited for", || {
        let (left, _) = zombies_and_others();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    kill_process(pid(first), Signal::TERM).expect("it runs");
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
}

#[test]
fn what_a_worker_started_does_not_outlive_it_when_the_parent_was_killed() {
    let kafka = kafka!(shared);
    topic(kafka, "orphans-of-orphans", 1, 10);
    let directory = tempfile::tempdir().expect("a directory");
    let noted = directory.path().join("pid");
    // It hangs for longer than anybody waits here, and hears nothing of a closed standard input.
    let handler = format!("exec=echo $$ >'{}'; exec sleep 45", noted.display());
    let own = ["--workers", "1", "--drain", "500ms", "--handler", &handler];
    let more = [&PROCESSES[..], &own].concat();
    let mut run = Keepup::run(kafka, "orphans-of-orphans", "orphans-of-orphans", &more);
    let mut pids = wait_workers(&run, 1);
    pids.push(wait_until(SOON, "the handler", || {
        let noted = fs::read_to_string(&noted).unwrap_or_default();
        noted.trim().parse::<i32>().map_err(|_| noted)
    }));
    run.signal(Signal::KILL);
    assert_eq!(run.end(SOON), None);
    wait_gone(&pids);
}

#[test]
fn signals_to_every_process_at_once_drain_as_one_to_the_parent_does() {
    let kafka = kafka!(shared);
    topic(kafka, "signalled-all", 2, 1_000);
    let deliveries = Deliveries::new("signalled-all", 2);
    let more = [
        &PROCESSES[..],
        &["--workers", "2", "--handler", "sleep=100ms"],
    ]
    .concat();
    let mut run = deliveries.start(kafka, "signalled-all", &more);
    let pids = wait_workers(&run, 2);
    deliveries.wait_distinct(3, SOON);
    for &worker in &pids {
        kill_process(pid(worker), Signal::TERM).expect("it runs");
    }
    run.signal(Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    let committed = kafka.committed("signalled-all", "signalled-all");
    let handled: Vec<i64> = deliveries.next();
    assert_eq!(
        committed
            .into_iter()
            .map(Option::unwrap_or_default)
            .collect::<Vec<_>>(),
        handled
    );
    wait_gone(&pids);
}

#[test]
fn a_handler_that_outlasts_the_stop_deadline_is_killed_and_its_record_is_not_committed() {
    let kafka = kafka!(shared);
    topic(kafka, "outlasts", 2, 10);
    let deliveries = Deliveries::new("outlasts", 2);
    let more = [
        &PROCESSES[..],
        &[
            "--workers",
            "2",
            "--handler",
            "sleep=60s",
            "--drain",
            "500ms",
        ],
    ]
    .concat();
    let mut run = deliveries.start(kafka, "outlasts", &more);
    let pids = wait_workers(&run, 2);
    wait_sleeping(&pids, 2);
    run.signal(Signal::TERM);
    let asked = Instant::now();
    assert_eq!(run.end(PATIENT), Some(3), "{}", run.stderr());
    assert!(asked.elapsed() < Duration::from_secs(10));
    let committed = kafka.committed("outlasts", "outlasts");
    assert_eq!(
        committed
            .into_iter()
            .map(Option::unwrap_or_default)
            .sum::<i64>(),
        0
    );
    wait_gone(&pids);
}

#[test]
fn a_worker_that_is_stopped_is_killed_and_what_it_had_goes_on_elsewhere() {
    let kafka = kafka!(shared);
    let ends = topic(kafka, "stopped-worker", 2, 1_500);
    let deliveries = Deliveries::new("stopped-worker", 2);
    let more = [
        &PROCESSES[..],
        &["--workers", "2", "--until-end", "--handler", "sleep=2ms"],
    ]
    .concat();
    let mut run = deliveries.start(kafka, "stopped-worker", &more);
    let pids = wait_workers(&run, 2);
    deliveries.wait_distinct(50, SOON);
    kill_process(pid(pids[0]), Signal::STOP).expect("it runs");
    let stopped = run.next("worker_stopped", PATIENT);
    assert_eq!(
        (&stopped["reason"], stopped["pid"].as_i64()),
        (&Value::from("child-silent"), Some(pids[0].into()))
    );
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    deliveries.assert_complete(&ends);
    deliveries.assert_in_order();
    wait_gone(&pids);
}

#[test]
fn workers_that_die_again_and_again_end_the_run_with_the_last_cause() {
    let kafka = kafka!(shared);
    topic(kafka, "crash-loop", 1, 10);
    // The worker is the parent of what it starts.
    let own = [
        "--workers",
        "1",
        "--handler",
        "exec=kill -9 $PPID; sleep 60",
    ];
    let more = [&PROCESSES[..], &own].concat();
    let mut run = Keepup::run(kafka, "crash-loop", "crash-loop", &more);
    assert_gives_up(&mut run, "was ended by signal 9");
    let died = run
        .events()
        .iter()
        .filter(|event| event["reason"] == "child-exited")
        .count();
    assert_eq!(died, 6, "the first and five more");
}

/// The value of each partition's series of that name on a page of metrics.
fn by_partition(page: &str, name: &str) -> BTreeMap<i32, f64> {
    let lines = page
        .lines()
        .filter(|line| line.starts_with(name) && line.as_bytes().get(name.len()) == Some(&b'{'));
    lines
        .map(|line| {
            let (_, rest) = line.split_once("partition=\"").expect("a partition");
            let (number, _) = rest.split_once('"').expect("its number");
            let (_, value) = line.rsplit_once(' ').expect("a value");
            let number = number.parse().expect("a number");
            (number, value.parse().expect("a value"))
        })
        .collect()
}

#[test]
fn at_no_scrape_the_partitions_of_a_killed_worker_are_missing_or_look_as_if_they_had_no_lag() {
    const LAG: &str = "kafka_consumer_fetch_manager_records_lag";
    let kafka = kafka!(shared);
    topic(kafka, "scraped-processes", 4, 20_000);
    let address = SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0]));
    let listen = address.to_string();
    let deliveries = Deliveries::new("scraped-processes", 4);
    let own = [
        "--workers",
        "2",
        "--handler",
        "sleep=1ms",
        "--listen",
        &listen,
    ];
    let more = [&PROCESSES[..], &own].concat();
    let mut run = deliveries.start(kafka, "scraped-processes", &more);
    let look = || by_partition(&get(address, "/metrics").expect("it answers").1, LAG);
    wait_workers(&run, 2);
    wait_until(SOON, "the lag of all partitions", || {
        let lag = look();
        if lag.len() == 4 { Ok(()) } else { Err(lag) }
    });
    let (mut scrapes, mut kills) = (0, 0);
    let mut last_kill = Instant::now();
    // Some 20,000 records per partition are handled in no less than 20 s: there is lag all the time.
    while kills < 6 {
        let lag = look();
        assert_eq!(
            lag.len(),
            4,
            "{lag:?} after {kills} kills and {scrapes} scrapes"
        );
        assert!(lag.values().all(|&lag| lag >= 1_000.0), "{lag:?}");
        scrapes += 1;
        if last_kill.elapsed() >= Duration::from_millis(1_500) {
            last_kill = Instant::now();
            let pids: Vec<i32> = workers(&run.events()).into_iter().collect();
            if let Some(&worker) = pids.get(kills % pids.len().max(1)) {
                kill_process(pid(worker), Signal::KILL).expect("it runs");
                kills += 1;
            }
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(scrapes > 50, "{scrapes} scrapes");
    // What the last one had in hand is somebody else's by then.
    wait_workers(&run, 2);
    deliveries.wait_distinct(deliveries.distinct() + 1_000, PATIENT);
    run.signal(Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
}

#[test]
fn s02_what_a_worker_process_gives_back_too_late_is_handled_by_its_next_owner_and_not_committed() {
    let kafka = kafka!(shared);
    topic(kafka, "late-process", 2, 5);
    let deliveries = Deliveries::new("late-process", 2);
    let quick = [
        "-X",
        "heartbeat.interval.ms=300",
        "-X",
        "session.timeout.ms=6000",
    ];
    let slow = [
        &PROCESSES[..],
        &quick,
        &["--workers", "2", "--handler", "sleep=9s"],
    ]
    .concat();
    let mut slow = deliveries.start(kafka, "late-process", &slow);
    let pids = wait_workers(&slow, 2);
    wait_sleeping(&pids, 2);
    let fast = [&PROCESSES[..], &quick, &["--workers", "2"]].concat();
    let mut fast = deliveries.start(kafka, "late-process", &fast);
    // Its revoke is answered after five seconds, whatever its handler does.
    let given = fast.next("partitions_assigned", PATIENT);
    let moved = given["partitions"][0]["partition"].as_i64().expect("one");
    let moved = usize::try_from(moved).expect("it has a number");
    wait_until(
        PATIENT,
        "the next owner to have committed all of it",
        || {
            let committed = kafka.committed("late-process", "late-process");
            if committed[moved] == Some(5) {
                Ok(())
            } else {
                Err(committed)
            }
        },
    );
    // The late one comes back meanwhile: what it says of its record changes nothing.
    wait_until(PATIENT, "the handler that was late", || {
        let repeats = deliveries.repeats();
        if repeats == 1 { Ok(()) } else { Err(repeats) }
    });
    assert_eq!(
        kafka.committed("late-process", "late-process")[moved],
        Some(5)
    );
    for run in [&mut slow, &mut fast] {
        run.signal(Signal::TERM);
    }
    assert_eq!(fast.end(PATIENT), Some(0), "{}", fast.stderr());
    assert!(slow.end(PATIENT).is_some());
    assert_eq!(
        kafka.committed("late-process", "late-process")[moved],
        Some(5)
    );
}

#[test]
fn s43_a_member_that_slept_with_its_workers_longer_than_its_session_does_no_more_than_what_it_had_in_hand()
 {
    let kafka = kafka!(shared);
    let ends = topic(kafka, "stopped-tree", 2, 3_000);
    let deliveries = Deliveries::new("stopped-tree", 2);
    let quick = [
        "-X",
        "heartbeat.interval.ms=300",
        "-X",
        "session.timeout.ms=6000",
    ];
    let more = [
        &PROCESSES[..],
        &quick,
        &["--workers", "2", "--handler", "sleep=2ms"],
    ]
    .concat();
    let mut sleeper = deliveries.start(kafka, "stopped-tree", &more);
    let pids = wait_workers(&sleeper, 2);
    deliveries.wait_distinct(200, SOON);
    for &worker in &pids {
        kill_process(pid(worker), Signal::STOP).expect("it runs");
    }
    // What they have printed by now is passed on before the parent is stopped.
    let mut printed = (deliveries.distinct(), Instant::now());
    wait_until(SOON, "the last lines of the workers", || {
        let now = deliveries.distinct();
        if now != printed.0 {
            printed = (now, Instant::now());
        }
        let quiet = printed.1.elapsed();
        if quiet >= Duration::from_millis(300) {
            Ok(())
        } else {
            Err(quiet)
        }
    });
    sleeper.signal(Signal::STOP);
    let mut other = deliveries.start(
        kafka,
        "stopped-tree",
        &[&PROCESSES[..], &quick, &["--workers", "2"]].concat(),
    );
    wait_until(PATIENT, "the other to have handled everything", || {
        let committed: Vec<i64> = kafka
            .committed("stopped-tree", "stopped-tree")
            .into_iter()
            .flatten()
            .collect();
        if committed == ends {
            Ok(())
        } else {
            Err(committed)
        }
    });
    let repeats = deliveries.repeats();
    // The workers first: they go on before their parent knows anything.
    for &worker in &pids {
        kill_process(pid(worker), Signal::CONT).expect("it is stopped");
    }
    wait_for(SOON, "time in which they could do harm", {
        let since = Instant::now();
        move || since.elapsed() >= Duration::from_secs(1)
    });
    sleeper.signal(Signal::CONT);
    sleeper.next("partitions_lost", PATIENT);
    // What they had in hand, one each.
    let more = deliveries.repeats() - repeats;
    assert!(more <= 2, "{more} records were handled by who had slept");
    for run in [&mut sleeper, &mut other] {
        run.signal(Signal::TERM);
        assert!(run.end(PATIENT).is_some());
    }
    let committed = kafka.committed("stopped-tree", "stopped-tree");
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
}

#[test]
fn sighup_replaces_one_worker_after_the_other_and_repeats_nothing() {
    let kafka = kafka!(shared);
    topic(kafka, "hung-up", 6, 3_000);
    let deliveries = Deliveries::new("hung-up", 6);
    let own = ["--workers", "3", "--handler", "sleep=1ms"];
    let mut run = deliveries.start(kafka, "hung-up", &[&PROCESSES[..], &own].concat());
    let old = wait_workers(&run, 3);
    deliveries.wait_distinct(50, SOON);
    run.signal(Signal::HUP);
    let order = run.wait("three new workers", PATIENT, |events| {
        let renewed = events
            .iter()
            .position(|event| event["name"] == "worker_restarted")?;
        let order: Vec<String> = events[renewed..]
            .iter()
            .filter(|event| {
                matches!(
                    event["name"].as_str(),
                    Some("worker_restarted" | "worker_started")
                )
            })
            .map(|event| format!("{} {}", event["name"], event["worker"]))
            .collect();
        (order.len() == 6).then_some(order)
    });
    for pair in order.chunks(2) {
        let worker = pair[0].rsplit_once(' ').expect("a worker").1;
        let started = format!("\"worker_started\" {worker}");
        assert_eq!(pair[1], started, "{order:?}");
    }
    let new = wait_workers(&run, 3);
    assert!(new.iter().all(|pid| !old.contains(pid)), "{old:?}, {new:?}");
    wait_gone(&old);
    deliveries.wait_distinct(deliveries.distinct() + 500, PATIENT);
    let restarts = run
        .events()
        .iter()
        .filter_map(|event| event["restarts"].as_u64())
        .max();
    assert_eq!(restarts, Some(0), "none of them failed");
    let events = run.events();
    let mut revoked = events
        .iter()
        .filter(|event| event["name"] == "partitions_revoked");
    assert!(
        revoked.all(|event| event["local"] == true),
        "the group has taken nothing"
    );
    run.signal(Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    assert_eq!(deliveries.repeats(), 0);
    deliveries.assert_in_order();
}

#[test]
fn a_measured_run_with_processes_has_the_numbers_of_all_of_them() {
    let kafka = kafka!(shared);
    let name = "measured-processes";
    topic(kafka, name, 4, 2_500);
    let mut arguments = vec!["perf", "-b", kafka.bootstrap(), "-t", name, "-g", name];
    arguments.extend(PROCESSES);
    arguments.extend(["--workers", "2"]);
    let finished = keepup(&arguments, "", PATIENT);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let line: Value = serde_json::from_str(&finished.stdout).expect("a line of JSON");
    assert_eq!(line["records"], 10_000);
    assert_eq!(
        (&line["model"], &line["workers"]),
        (&"processes".into(), &2.into())
    );
    // Three processes are larger than one.
    assert!(line["peak_rss_mib"].as_f64() > Some(15.0), "{line}");
    assert!(line["seconds"].as_f64() > Some(0.0), "{line}");
}
