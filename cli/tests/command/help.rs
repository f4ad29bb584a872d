//! The help texts are what most people ever read: a change shows here.

use crate::output;

fn help(command: &[&str]) -> String {
    let mut arguments = command.to_vec();
    arguments.push("--help");
    let (stdout, stderr, code) = output(&arguments);
    assert_eq!((stderr.as_str(), code), ("", 0));
    stdout
}

#[test]
fn help_of_the_command_and_of_each_subcommand_is_frozen() {
    insta::assert_snapshot!("help", help(&[]));
    for command in ["demo", "run", "perf", "check"] {
        insta::assert_snapshot!(format!("help_{command}"), help(&[command]));
    }
}

#[test]
fn the_version_tells_what_was_built_in() {
    let (stdout, _, code) = output(&["--version"]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], format!("keepup {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(lines[1], "features: testing, zstd");
    assert!(lines[2].starts_with("librdkafka 2."), "{stdout}");
    assert!(lines[2].contains("zstd"), "{stdout}");
}
