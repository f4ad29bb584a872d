//! Exit codes and last words of the command.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::keepup::{Keepup, keepup, program};
use crate::support::process::{Finished, run, wait_none_has};
use crate::support::run::SLACK;
use crate::support::{PATIENT, SOON};

/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:1";

/// Runs `keepup run` with these arguments; a topic and a group are given already.
fn keepup_run(bootstrap: &str, more: &[&str]) -> Finished {
    let given = ["run", "-b", bootstrap, "-t", "codes", "-g", "codes"];
    keepup(&[&given[..], more].concat(), "", SOON)
}

/// Wrong usage: nothing was started, and standard error names all of it.
fn assert_refused(more: &[&str], words: &[&str]) {
    let output = keepup_run(NOBODY, more);
    assert_eq!(output.code, Some(2), "{more:?}: {output:?}");
    assert_eq!(output.stdout, "", "{more:?}");
    for word in words {
        assert!(
            output.stderr.contains(word),
            "{more:?}: {word} is missing in {output:?}"
        );
    }
}

#[test]
fn wrong_usage_ends_with_2_and_every_problem_in_the_message() {
    assert_refused(&["--workers", "0"], &["workers = 0", "at least one worker"]);
    let index = ["--assign", "static", "--index", "3", "--of", "3"];
    assert_refused(&index, &["index = 3", "below the number of processes, 3"]);
    let reserved = ["-X", "enable.auto.commit=false"];
    assert_refused(&reserved, &["enable.auto.commit = false", "leave it out"]);
    let everywhere = ["--listen", ":9464"];
    assert_refused(&everywhere, &["listen = \":9464\"", "0.0.0.0:9464"]);
    let unfit = ["--label", "le=1"];
    assert_refused(&unfit, &["label = \"le\""]);
    let misspelled = ["-X", "sesion.timeout.ms=6000"];
    assert_refused(
        &misspelled,
        &["sesion.timeout.ms = 6000", "CONFIGURATION.md"],
    );
    let mixed = ["--handler", "print", "--events", "json"];
    assert_refused(&mixed, &["handler", "mixed on stdout", "--records"]);
    assert_refused(&["--no-such-option"], &["--no-such-option"]);

    let everything = [
        &["--workers", "0"],
        &reserved[..],
        &misspelled,
        &mixed,
        &index,
    ]
    .concat();
    let words = [
        "workers",
        "index",
        "enable.auto.commit",
        "sesion.timeout.ms",
        "handler",
    ];
    assert_refused(&everything, &words);
    let output = keepup(&["run"], "", SOON);
    assert_eq!(output.code, Some(2), "{output:?}");
    for word in ["bootstrap", "topic", "group"] {
        assert!(
            output.stderr.contains(word),
            "{word} is missing in {output:?}"
        );
    }
}

#[test]
fn an_address_in_use_ends_with_2_before_anything_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    // With a broker that nobody is, a run that had begun would end with 4.
    let output = keepup_run(NOBODY, &["--listen", &address, "--timeout", "5s"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert_eq!(output.stdout, "");
    for word in [
        "cannot listen at",
        &address,
        "another program",
        "with --listen",
    ] {
        assert!(output.stderr.contains(word), "{word}: {output:?}");
    }
    let nowhere = ["--listen", "192.0.2.1:9464", "--timeout", "5s"];
    let output = keepup_run(NOBODY, &nowhere);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("no interface"), "{output:?}");
}

#[test]
fn without_a_broker_the_command_ends_with_4_after_the_timeout() {
    let start = Instant::now();
    let output = keepup_run(NOBODY, &["--timeout", "1s"]);
    let took = start.elapsed();
    assert_eq!(output.code, Some(4), "{output:?}");
    assert!(output.stderr.contains(NOBODY), "{output:?}");
    assert!(output.stderr.contains("within 1s"), "{output:?}");
    let timeout = Duration::from_secs(1);
    assert!(took >= timeout && took < timeout + SLACK, "{took:?}");
}

#[test]
fn an_unknown_topic_ends_with_1_and_says_what_to_do() {
    let kafka = kafka!(shared);
    let output = keepup_run(
        kafka.bootstrap(),
        &["-t", "no-such-topic", "--timeout", "8s"],
    );
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("no-such-topic"), "{output:?}");
    assert!(output.stderr.contains("create it first"), "{output:?}");
    assert_eq!(output.stdout, "");
}

/// Runs a line of a shell to its end.
fn by_shell(line: &str) -> Finished {
    let mut command = Command::new("bash");
    command.args(["-c", line]);
    run(command, "", PATIENT)
}

#[test]
fn a_closed_pipe_ends_the_run_with_0_whatever_the_workers_are_and_leaves_nothing() {
    let kafka = kafka!(shared);
    kafka.create_topic("piped", 2, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("piped", 2, 0..20_000);
    producer.flush();
    for (number, how) in [
        "--handler print",
        "--events json --records",
        "--events json --records --handler exec='while read -r line; do echo done; done'",
        "--handler print --json",
    ]
    .iter()
    .enumerate()
    {
        for model in ["threads", "processes"] {
            let group = format!("piped-{number}-{model}");
            let script = format!(
                "{} run -b {} -t piped -g {group} --model {model} {how} | head -n 1; echo ${{PIPESTATUS[0]}}",
                program().display(),
                kafka.bootstrap(),
            );
            let output = by_shell(&script);
            let lines: Vec<&str> = output.stdout.lines().collect();
            assert_eq!(lines.len(), 2, "{model}, {how}: {output:?}");
            assert_eq!(lines[1], "0", "{model}, {how}: {output:?}");
            assert!(
                !output.stderr.contains("error"),
                "{model}, {how}: {output:?}"
            );
            wait_none_has(&group);
        }
    }
}

per_model! {
    commits_nothing_that_it_cannot_print {
        a_full_disk_ends_the_run_with_1_and_what_is_not_printed_is_not_committed,
        a_full_disk_ends_a_run_of_processes_with_1_and_what_is_not_printed_is_not_committed
    }
}

fn commits_nothing_that_it_cannot_print(kafka: &Kafka, name: &str, model: &str) {
    kafka.filled_topic(name, 2, 0..10);
    for (number, how) in ["--handler print", "--events json --records"]
        .iter()
        .enumerate()
    {
        let group = format!("{name}-{number}");
        let script = format!(
            "exec {} run -b {} -t {name} -g {group} --model {model} {how} >/dev/full",
            program().display(),
            kafka.bootstrap(),
        );
        let output = by_shell(&script);
        assert_eq!(output.code, Some(1), "{how}: {output:?}");
        let cause = "cannot be written: No space left on device";
        assert!(output.stderr.contains(cause), "{how}: {output:?}");
        let committed = kafka.committed(&group, name);
        assert!(
            committed.iter().all(|offset| offset.unwrap_or(0) == 0),
            "{how}: {committed:?}"
        );
        wait_none_has(&group);
    }
}

#[test]
fn a_signal_during_the_first_contact_ends_the_command_at_once() {
    // Connections are taken and never answered.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let arguments = [
        "run",
        "-b",
        &address,
        "-t",
        "t",
        "-g",
        "g",
        "--timeout",
        "60s",
    ];
    let mut run = Keepup::start(&arguments);
    let connection = listener.accept().expect("the command connects");
    let start = Instant::now();
    run.signal(Signal::TERM);
    assert_eq!(run.end(SOON), Some(0), "{}", run.stderr());
    let took = start.elapsed();
    assert!(took < SLACK, "{took:?}");
    drop(connection);
}
