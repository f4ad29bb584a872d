//! What is wrong is told with the value, the rule and the remedy, and ends with
//! 2 before anything is started.

use std::fs;

use crate::output;

/// What goes to stderr where a command line is refused.
fn refused(arguments: &[&str]) -> String {
    let (stdout, stderr, code) = output(arguments);
    assert_eq!((stdout.as_str(), code), ("", 2), "{stderr}");
    stderr
}

#[test]
fn every_wrong_option_of_a_run_is_told_at_once() {
    insta::assert_snapshot!(
        "wrong_options",
        refused(&[
            "run",
            "-b",
            "localhost",
            "-t",
            "or ders",
            "--workers",
            "none",
            "--drain",
            "25",
            "--from",
            "yesterday",
            "--handler",
            "run=cat",
            "--retry-attempts",
            "0",
            "--listen",
            ":9464",
            "--stuck-after",
            "0s",
            "--label",
            "prod",
            "--assign",
            "static",
            "-X",
            "client.rack",
            "--records",
        ])
    );
}

#[test]
fn printing_and_events_exclude_each_other() {
    let stderr = refused(&[
        "run",
        "-b",
        "a:1",
        "-t",
        "orders",
        "-g",
        "billing",
        "--handler",
        "print",
        "--events",
        "json",
    ]);
    assert!(
        stderr.contains("handler = \"print\": records and events would be mixed on stdout"),
        "{stderr}"
    );
}

#[test]
fn wrong_usage_of_any_kind_ends_with_2() {
    for arguments in [
        &[][..],
        &["bogus"],
        &["run", "--bogus"],
        &["run", "-q", "-v"],
        &["demo", "-b", "localhost:9092"],
        &["demo", "--partitions", "0"],
        &["demo", "--workers", "0"],
        &["demo", "--listen", ":9464"],
        &["demo", "--listen", "metrics.example:9464"],
        &["perf", "-b", "a:1"],
        &["check"],
        &["check", "--log", "xml"],
    ] {
        let stderr = refused(arguments);
        assert!(!stderr.is_empty(), "{arguments:?}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn unknown_keys_of_a_file_are_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("billing.toml");
    fs::write(
        &file,
        "group = \"billing\"\nretry_attempts = 3\nmetrics = true\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let stderr = refused(&["run", "--config", path]);
    let stderr = stderr.replace(path, "billing.toml");
    insta::assert_snapshot!("unknown_keys", stderr);
    let missing = refused(&["run", "--config", "/nowhere/billing.toml"]);
    assert!(missing.contains("cannot be read"), "{missing}");
}
