use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The table of `docs/metrics.md`.
fn table() -> String {
    let mut table = String::from(
        "| name | kind | unit | labels | meaning | from |\n|---|---|---|---|---|---|\n",
    );
    for metric in ALL {
        let unit = match metric.unit {
            Unit::Records => "records",
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::Timestamp => "seconds since 1970",
            Unit::Partitions => "partitions",
            Unit::Workers => "workers",
            Unit::Events => "events",
            Unit::Share => "0 to 1",
            Unit::Flag => "0 or 1",
        };
        let labels = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let _ = writeln!(
            table,
            "| `{}` | {} | {unit} | {labels} | {} | {} |",
            metric.name,
            metric.kind.name(),
            metric.help,
            metric.source
        );
    }
    table
}

#[test]
fn the_documentation_lists_every_metric_as_it_is() {
    const BEGIN: &str = "<!-- the table is made by a test: KEEPUP_UPDATE_DOCS=1 cargo test -p keepup --lib --all-features the_documentation -->\n";
    const END: &str = "<!-- end of the table -->\n";
    let path = repository().join("docs/metrics.md");
    let document = fs::read_to_string(&path).expect("there is a documentation of the metrics");
    let (before, rest) = document.split_once(BEGIN).expect("it has a table");
    let (_, after) = rest.split_once(END).expect("the table ends");
    let made = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("KEEPUP_UPDATE_DOCS").is_some() {
        fs::write(&path, made).expect("the documentation can be written");
        return;
    }
    assert!(
        made == document,
        "docs/metrics.md is not what the metrics are: run this test with KEEPUP_UPDATE_DOCS=1"
    );
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_other_file_names_a_metric() {
    let mut files = Vec::new();
    for directory in ["src", "cli/src"] {
        let directory = repository().join(directory);
        if directory.is_dir() {
            sources(&directory, &mut files);
        }
    }
    assert!(files.len() > 20, "the sources were found");
    // In two halves, or this file would be found as well.
    let stems = [["\"kafka", "_consumer_"], ["\"keepup", "_"]].map(|halves| halves.concat());
    let named: Vec<_> = files
        .iter()
        .filter(|file| !file.ends_with("telemetry/names.rs"))
        .filter(|file| {
            let text = fs::read_to_string(file).expect("a source");
            stems.iter().any(|stem| text.contains(stem))
        })
        .collect();
    assert!(named.is_empty(), "names of metrics stand in {named:?}");
}

#[test]
fn names_are_unique_and_end_as_prometheus_wants_them_to() {
    let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), ALL.len());
    for metric in ALL {
        let is_total = metric.name.ends_with("_total");
        assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
        assert!(metric.help.ends_with('.'), "{}", metric.name);
        assert_eq!(metric.labels[..2], [GROUP_ID, CLIENT_ID], "{}", metric.name);
    }
}

#[test]
fn a_label_that_prometheus_or_we_own_is_refused() {
    let problems = |name: &str| {
        let labels = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        label_problems(&labels).len()
    };
    for name in ["env", "_env", "Env2", "job", "instance"] {
        assert_eq!(problems(name), 0, "{name}");
    }
    for name in [
        "",
        "2env",
        "a-b",
        "a.b",
        "ä",
        "a b",
        "__env",
        "le",
        "quantile",
        "topic",
        "partition",
        "group_id",
        "client_id",
        "worker",
        "outcome",
        "result",
        "reason",
        "version",
        "librdkafka",
    ] {
        assert_eq!(problems(name), 1, "{name}");
    }
    let mut settings = crate::Settings::new("localhost:9092", "billing");
    settings.topics.push("orders".to_owned());
    assert_eq!(settings.problems(), []);
    settings
        .labels
        .insert("topic".to_owned(), "orders".to_owned());
    let problems = settings.problems();
    assert!(
        problems.len() == 1 && problems[0].to_string().starts_with("label = \"topic\": "),
        "{problems:?}"
    );
}
