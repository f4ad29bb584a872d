//! What `docs/guarantees.md` promises names the tests that hold it; this looks that they are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::process::repository;

/// Where the tables begin.
const HEADING: &str = "\n## What holds each promise\n";

/// How many failures are numbered.
const SCENARIOS: u32 = 48;

/// The names of all functions in the Rust files below `directory`, with those of the tests that `per_model!` makes.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let is_none = |character: char| !character.is_ascii_alphanumeric() && character != '_';
            let after = text.split("fn ").skip(1);
            names.extend(after.filter_map(|after| after.split(is_none).next().map(str::to_owned)));
            let made = text.split("\nper_model! {").skip(1);
            let made = made.filter_map(|after| after.split("\n}").next());
            names.extend(made.flat_map(|made| made.split(is_none).map(str::to_owned)));
        }
    }
}

fn all_functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for directory in ["src", "tests", "cli/src", "cli/tests"] {
        functions(&repository().join(directory), &mut names);
    }
    names
}

/// The scenarios that a name begins with: `s14_s15_…` is of both.
fn scenarios_of(name: &str) -> Vec<u32> {
    name.split('_')
        .map_while(|word| {
            word.strip_prefix('s')
                .filter(|digits| digits.len() == 2)?
                .parse()
                .ok()
        })
        .collect()
}

/// What stands between back-quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_promise_names_tests_that_exist_and_every_scenario_has_one() {
    let page = fs::read_to_string(repository().join("docs/guarantees.md")).expect("UTF-8");
    let (_, tables) = page.split_once(HEADING).expect("the page has its tables");
    let tables = tables.split("\n## ").next().unwrap_or_default();
    let names = all_functions();
    assert!(names.contains("every_promise_names_tests_that_exist_and_every_scenario_has_one"));

    let mut wrong = Vec::new();
    let rows = tables.lines().filter(|line| line.starts_with("| "));
    for row in rows.filter(|row| !row.starts_with("| promise") && !row.starts_with("| #")) {
        let tests = row.trim_end_matches([' ', '|']).rsplit('|').next();
        let mut count = 0;
        for name in quoted(tests.unwrap_or_default()) {
            count += 1;
            let scenarios = scenarios_of(name);
            let is_there = if name.ends_with('_') && scenarios.len() == 1 {
                names
                    .iter()
                    .any(|other| scenarios_of(other).contains(&scenarios[0]))
            } else {
                names.contains(name)
            };
            if !is_there {
                wrong.push(format!("no test is called {name}"));
            }
        }
        if count == 0 {
            wrong.push(format!("no test is named: {row}"));
        }
    }
    for number in 1..=SCENARIOS {
        let row = tables
            .lines()
            .find(|line| line.starts_with(&format!("| {number} |")));
        let prefix = format!("`s{number:02}_`");
        if !row.is_some_and(|row| row.contains(&prefix)) {
            wrong.push(format!("scenario {number} has no row with {prefix}"));
        }
    }
    let numbered: BTreeSet<u32> = names.iter().flat_map(|name| scenarios_of(name)).collect();
    for number in numbered.difference(&(1..=SCENARIOS).collect()) {
        wrong.push(format!("there is no scenario {number}"));
    }
    assert!(wrong.is_empty(), "docs/guarantees.md: {wrong:#?}");
}
