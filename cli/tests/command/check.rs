//! `check`: the effective settings, or everything that is wrong.

use std::fs;

use crate::output;

const FILE: &str = r#"
bootstrap = "kafka-1:9092,kafka-2:9092"
topic = ["orders", "refunds"]
group = "billing"
workers = "auto:8"
drain = "1m 30s"
retry-attempts = 3
listen = "localhost:9464"
stuck-after = "90s"

[label]
env = "prod"

[property]
client.rack = "a"
sasl.username = "billing"
sasl.password = "hunter2"
"#;

#[test]
fn effective_settings_are_shown_without_secrets_and_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("billing.toml");
    fs::write(&file, FILE).unwrap();
    let path = file.to_str().unwrap();
    let (stdout, stderr, code) = output(&[
        "check",
        "--config",
        path,
        "--until-end",
        "--label",
        "shard=3",
    ]);
    assert_eq!((stderr.as_str(), code), ("", 0));
    assert!(!stdout.contains("hunter2"), "{stdout}");
    insta::assert_snapshot!("check", stdout);

    fs::write(&file, &stdout).unwrap();
    let (again, stderr, code) = output(&["check", "--config", path]);
    assert_eq!((stderr.as_str(), code), ("", 0));
    assert_eq!(again, stdout);
}

#[test]
fn settings_and_problems_come_as_json_too() {
    let (stdout, _, code) = output(&[
        "check",
        "-b",
        "a:9092",
        "-t",
        "orders",
        "-g",
        "billing",
        "--assign",
        "static",
        "--index",
        "1",
        "--of",
        "3",
        "--handler",
        "sleep=5ms",
        "--from",
        "2h",
        "--json",
    ]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("check_json", stdout);

    let (stdout, stderr, code) = output(&["check", "-b", "a", "-t", "orders", "--json"]);
    assert_eq!((stderr.as_str(), code), ("", 2));
    insta::assert_snapshot!("check_problems_json", stdout);
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("billing.toml");
    fs::write(&file, FILE).unwrap();
    let arguments = ["check", "--json", "--config", file.to_str().unwrap()];
    let bootstrap = |more: &[&str], environment: Option<&str>| {
        let mut command = crate::keepup(&arguments);
        command.args(more);
        if let Some(value) = environment {
            command.env("KEEPUP_BOOTSTRAP", value);
        }
        let settings: serde_json::Value =
            serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        settings["bootstrap"].as_str().unwrap().to_owned()
    };
    assert_eq!(bootstrap(&[], None), "kafka-1:9092,kafka-2:9092");
    assert_eq!(bootstrap(&[], Some("env:9092")), "env:9092");
    assert_eq!(
        bootstrap(&["-b", "line:9092"], Some("env:9092")),
        "line:9092"
    );
}

#[test]
fn what_a_file_switches_on_the_command_line_switches_off() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("billing.toml");
    fs::write(&file, FILE).unwrap();
    let path = file.to_str().unwrap();
    for (listen, expected) in [("off", "off"), ("0", "127.0.0.1:0")] {
        let (stdout, stderr, code) =
            output(&["check", "--json", "--config", path, "--listen", listen]);
        assert_eq!((stderr.as_str(), code), ("", 0));
        let settings: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(settings["listen"], expected);
    }
}
