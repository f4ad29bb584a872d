//! The configuration file: the long options of `run`, written as TOML.
//!
//! A file that is read by rules of its own soon differs from the command line.
//! So a file is turned into the command line that says the same, and clap reads
//! that: what an option takes, whether it repeats and how it is called is
//! defined once, in `args.rs`. A key that no option has is refused.

use std::fs;
use std::path::Path;

use clap::{Arg, ArgAction, CommandFactory, Parser};
use toml::{Table, Value};

use crate::args::{ClusterArgs, OutputArgs, RunArgs};
use crate::problem::Problem;

/// What a file may say.
#[derive(Debug, Default, Parser)]
#[command(
    name = "file",
    no_binary_name = true,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub(crate) struct FileArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Reads a configuration file; all of its problems where it has any.
pub(crate) fn read(path: &Path) -> Result<FileArgs, Vec<Problem>> {
    let text = fs::read_to_string(path).map_err(|error| {
        vec![Problem::new(
            "config",
            path.display(),
            format!("the file cannot be read: {error}"),
            "give the path of a TOML file that exists and is readable",
        )]
    })?;
    parse(&text).map_err(|mut problems| {
        for problem in &mut problems {
            problem.remedy = format!("{} ({})", problem.remedy, path.display());
        }
        problems
    })
}

fn parse(text: &str) -> Result<FileArgs, Vec<Problem>> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(0, |before| before.matches('\n').count()) + 1;
        vec![Problem::new(
            "config",
            format!("line {line}"),
            format!("not TOML: {}", error.message()),
            "correct that line",
        )]
    })?;
    let command = FileArgs::command();
    let mut line = Vec::new();
    let mut problems = Vec::new();
    for (key, value) in &table {
        match option(&command, key) {
            Some(argument) => match words(argument, key, value) {
                Ok(words) => line.extend(words),
                Err(problem) => problems.push(problem),
            },
            None => problems.push(unknown(&command, key, value)),
        }
    }
    if problems.is_empty() {
        FileArgs::try_parse_from(line).map_err(|error| {
            vec![Problem::new(
                "config",
                "its options",
                error.to_string().trim_end().to_owned(),
                "correct the file",
            )]
        })
    } else {
        Err(problems)
    }
}

/// The option of that long name; a file does not name another file.
fn option<'c>(command: &'c clap::Command, key: &str) -> Option<&'c Arg> {
    command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(key) && key != "config")
}

fn unknown(command: &clap::Command, key: &str, value: &Value) -> Problem {
    let mut known: Vec<&str> = command
        .get_arguments()
        .filter_map(Arg::get_long)
        .filter(|name| *name != "config")
        .collect();
    known.sort_unstable();
    let guess = known
        .iter()
        .find(|name| name.replace('-', "") == key.replace(['-', '_'], "").to_lowercase());
    let remedy = match guess {
        Some(guess) => format!("did you mean {guess}?"),
        None => format!("use one of {}", known.join(", ")),
    };
    Problem::new(key, value, "no option has that name", remedy)
}

/// The words of the command line that say the same as a key and its value.
fn words(argument: &Arg, key: &str, value: &Value) -> Result<Vec<String>, Problem> {
    let wrong = |rule: &str, remedy: &str| Problem::new(key, value, rule, remedy);
    let flag = format!("--{key}");
    match (argument.get_action(), value) {
        (ArgAction::SetTrue | ArgAction::Count, Value::Boolean(set)) => {
            Ok(if *set { vec![flag] } else { Vec::new() })
        }
        (ArgAction::Count, Value::Integer(times)) => {
            let times = usize::try_from(*times).unwrap_or(0).min(2);
            Ok(vec![flag; times])
        }
        (ArgAction::SetTrue | ArgAction::Count, _) => {
            Err(wrong("this is on or off", "write true or false"))
        }
        (ArgAction::Append, Value::Table(pairs)) if is_table(key) => {
            let mut words = Vec::new();
            flatten(pairs, "", &mut |name, value| {
                words.push(format!("{flag}={name}={value}"));
            });
            Ok(words)
        }
        (ArgAction::Append, Value::Array(values)) if !is_table(key) => values
            .iter()
            .map(|value| match scalar(value) {
                Some(text) => Ok(format!("{flag}={text}")),
                None => Err(wrong("a list holds strings", "write [\"one\", \"two\"]")),
            })
            .collect(),
        (_, value) if !is_table(key) => match scalar(value) {
            Some(text) => Ok(vec![format!("{flag}={text}")]),
            None => Err(wrong("this takes one value", "write a string or a number")),
        },
        _ if key == "label" => Err(wrong(
            "labels are a table",
            "write [label] and below it lines such as env = \"prod\"",
        )),
        _ => Err(wrong(
            "properties are a table",
            "write [property] and below it lines such as client.rack = \"a\"",
        )),
    }
}

/// True for options that are NAME=VALUE on the command line.
fn is_table(key: &str) -> bool {
    matches!(key, "property" | "label")
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            Some(value.to_string())
        }
        Value::Array(_) | Value::Table(_) => None,
    }
}

/// Properties have dots in their names, which TOML reads as tables in tables.
fn flatten(table: &Table, prefix: &str, found: &mut impl FnMut(&str, &str)) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => flatten(inner, &format!("{name}."), found),
            other => found(&name, &scalar(other).unwrap_or_else(|| other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_the_command_line_says() {
        let file = parse(
            r#"
            bootstrap = "a:9092,b:9092"
            topic = ["orders", "^logs-.*"]
            group = "billing"
            workers = 4
            source = "client"
            count = 1000
            until-end = true
            records = false
            from = 2026-01-31T12:00:00Z
            verbose = 2

            [property]
            client.rack = "a"
            "fetch.min.bytes" = 5

            [label]
            env = "prod"
            shard = 3
            "#,
        )
        .unwrap();
        assert_eq!(file.cluster.bootstrap.as_deref(), Some("a:9092,b:9092"));
        assert_eq!(file.run.topic, ["orders", "^logs-.*"]);
        assert_eq!(file.run.workers.as_deref(), Some("4"));
        assert_eq!(file.run.source.as_deref(), Some("client"));
        assert_eq!(file.run.count.as_deref(), Some("1000"));
        assert_eq!(file.run.from.as_deref(), Some("2026-01-31T12:00:00Z"));
        assert!(file.run.until_end && !file.run.records);
        assert_eq!(file.output.verbose, 2);
        assert_eq!(file.run.label, ["env=prod", "shard=3"]);
        assert_eq!(
            file.cluster.property,
            ["client.rack=a", "fetch.min.bytes=5"]
        );
    }

    #[test]
    fn every_wrong_key_is_told_at_once() {
        let problems = parse(
            r#"
            retry_attempts = 3
            sauce = "client"
            until-end = "yes"
            group = ["a", "b"]
            property = "a=b"
            label = ["env=prod"]
            config = "other.toml"
            "#,
        )
        .unwrap_err();
        let mut named: Vec<&str> = problems.iter().map(|p| p.setting.as_str()).collect();
        named.sort_unstable();
        assert_eq!(
            named,
            [
                "config",
                "group",
                "label",
                "property",
                "retry_attempts",
                "sauce",
                "until-end"
            ]
        );
        let text = problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        assert!(text.contains("did you mean retry-attempts?"), "{text}");
    }

    #[test]
    fn a_line_that_is_not_toml_is_named() {
        let problems = parse("group = \"a\"\ntopic = \n").unwrap_err();
        assert_eq!(problems[0].value, "line 2");
    }
}
