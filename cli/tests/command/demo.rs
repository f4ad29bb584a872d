//! `demo`: nothing lost, and said so.

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
    ]);
    assert_eq!(code, 0, "{stderr}");
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
