//! `demo`: nothing lost, and said so.

use std::net::TcpListener;

use serde_json::Value;

use crate::output;

#[test]
fn the_demo_loses_nothing_and_its_summary_is_one_line_of_json() {
    let (stdout, stderr, code) = output(&[
        "demo",
        "--seconds",
        "3",
        "--rate",
        "3000",
        "--partitions",
        "3",
        "--json",
    ]);
    assert_eq!((stderr.as_str(), code), ("", 0));
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let mut summary: Value = serde_json::from_str(&stdout).unwrap();
    assert!(summary["max_lag"].as_u64().unwrap() > 0, "{summary}");
    summary["max_lag"] = 0.into();
    insta::assert_snapshot!("demo_json", summary.to_string());
}

#[test]
fn a_demo_whose_usual_port_is_taken_takes_another_and_says_so() {
    // Where this fails another program has the port, which is as good.
    let _taken = TcpListener::bind("127.0.0.1:9464");
    let (_, stderr, code) = output(&[
        "demo",
        "--seconds",
        "1",
        "--rate",
        "100",
        "--partitions",
        "1",
    ]);
    assert_eq!(code, 0, "{stderr}");
    let first = stderr.lines().next().unwrap();
    let port = first
        .strip_prefix("Page: http://127.0.0.1:")
        .and_then(|rest| rest.split('/').next())
        .and_then(|port| port.parse::<u16>().ok());
    assert!(port.is_some_and(|port| port != 9464), "{stderr}");
    assert!(first.ends_with("(9464 is taken)"), "{stderr}");
}

#[test]
fn a_port_that_was_asked_for_and_is_taken_refuses_the_demo() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (stdout, stderr, code) = output(&["demo", "--listen", &address]);
    assert_eq!((stdout.as_str(), code), ("", 2), "{stderr}");
    assert!(
        stderr.starts_with(&format!("error: cannot listen at {address}: ")),
        "{stderr}"
    );
    assert!(
        stderr.ends_with("another program uses that port: give another with --listen\n"),
        "{stderr}"
    );
}

#[test]
fn without_a_terminal_the_demo_prints_lines_and_a_verdict() {
    let (stdout, stderr, code) = output(&[
        "demo",
        "--seconds",
        "3",
        "--rate",
        "1000",
        "--partitions",
        "2",
        "--workers",
        "1",
        "--listen",
        "off",
    ]);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stderr.contains("Page"), "{stderr}");
    assert!(!stderr.contains('\x1b'), "{stderr}");
    assert!(stderr.contains("lag"), "{stderr}");
    assert!(
        stdout.starts_with("3.0 s of load on 2 partitions, 1 worker\n"),
        "{stdout}"
    );
    assert!(
        stdout.ends_with(
            "nothing lost: each of the 3,000 records that were produced was handled, and none \
             twice\n"
        ),
        "{stdout}"
    );
}

#[test]
fn a_demo_in_which_things_are_broken_loses_nothing_and_says_what_was_done() {
    let arguments = [
        "demo",
        "--chaos",
        "--seed",
        "5",
        "--seconds",
        "12",
        "--rate",
        "3000",
        "--partitions",
        "3",
        "--listen",
        "off",
        "--json",
    ];
    let (stdout, stderr, code) = output(&arguments);
    assert_eq!((stderr.as_str(), code), ("", 0));
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(summary["lost"], 0, "{summary}");
    assert_eq!(summary["produced"], summary["handled"], "{summary}");
    assert_eq!(summary["lag"], 0, "it fell again: {summary}");
    assert!(
        summary["max_lag"].as_u64().unwrap() > 1_000,
        "it rose: {summary}"
    );
    let chaos = &summary["chaos"];
    assert_eq!(chaos["seed"], 5, "{summary}");
    for what in [
        "panics",
        "failures",
        "hangs",
        "pauses",
        "fewer_workers",
        "broker_away",
    ] {
        assert!(chaos[what].as_u64().unwrap() > 0, "{what}: {summary}");
    }
    // Each panic costs its worker, and nothing else does.
    assert_eq!(summary["restarts"], chaos["panics"], "{summary}");
}

#[test]
fn a_demo_in_which_things_are_broken_tells_each_of_them_and_the_seed() {
    let (stdout, stderr, code) = output(&[
        "demo",
        "--chaos",
        "--seconds",
        "2",
        "--rate",
        "500",
        "--partitions",
        "2",
        "--listen",
        "off",
    ]);
    assert_eq!(code, 0, "{stderr}");
    let seed = stdout
        .split("keepup demo --chaos --seed ")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .unwrap();
    assert!(seed.parse::<u64>().is_ok(), "{stdout}");
    assert!(
        stderr.contains(&format!("(--seed {seed} does it again)")),
        "{stderr}"
    );
    assert!(
        stderr.contains("s  chaos: a handler panics at a record of partition "),
        "{stderr}"
    );
    assert!(
        stderr.contains("reason=handler-panicked (chaos)"),
        "{stderr}"
    );
    assert!(
        !stderr.contains("panicked at"),
        "not as if the demo broke: {stderr}"
    );
    assert!(stdout.contains("\nnothing lost: "), "{stdout}");
}

#[test]
fn a_seed_is_a_number_and_means_nothing_without_chaos() {
    let (_, stderr, code) = output(&["demo", "--chaos", "--seed", "x"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("seed = \"x\""), "{stderr}");
    let (_, stderr, code) = output(&["demo", "--seed", "1"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--chaos"), "{stderr}");
}

#[test]
fn a_demo_whose_worker_processes_are_killed_loses_nothing_and_leaves_none_behind() {
    let (stdout, stderr, code) = output(&[
        "demo",
        "--model",
        "processes",
        "--chaos",
        "--seed",
        "4",
        "--seconds",
        "6",
        "--rate",
        "3000",
        "--partitions",
        "3",
        "--json",
    ]);
    assert_eq!(code, 0, "{stderr}");
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&summary["model"], &summary["lost"], &summary["lag"]),
        (&"processes".into(), &0.into(), &0.into()),
        "{summary}"
    );
    assert!(summary["chaos"]["kills"].as_u64() > Some(0), "{summary}");
    assert!(summary["restarts"].as_u64() > Some(0), "{summary}");
}
