//! `perf`: the line that every client prints which is compared.

use serde_json::Value;

use crate::{cluster, output};

#[test]
fn the_line_has_its_fields_and_its_numbers_fit_together() {
    let cluster = cluster(1_000);
    let (stdout, stderr, code) = output(&[
        "perf",
        "-b",
        cluster.bootstrap(),
        "-t",
        "orders",
        "-g",
        "perf",
        "--workers",
        "2",
        "--count",
        "2000",
        "--sleep",
        "100us",
    ]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let line: Value = serde_json::from_str(&stdout).unwrap();
    let mut fields: Vec<&str> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "cpu_ns_per_record",
            "cpu_run_s",
            "model",
            "order",
            "peak_rss_mib",
            "peer",
            "records",
            "records_per_s",
            "seconds",
            "source",
            "start_s",
            "workers",
        ]
    );
    assert_eq!(line["peer"], "keepup");
    assert_eq!(line["records"], 2_000);
    assert_eq!(line["workers"], 2);
    assert_eq!(
        (&line["order"], &line["model"], &line["source"]),
        (&"partition".into(), &"threads".into(), &"fetch".into())
    );
    let number = |name: &str| line[name].as_f64().unwrap();
    // A thousand sleeps of 100 µs one after the other, on two threads.
    assert!(number("seconds") >= 0.1, "{line}");
    assert!(number("start_s") > 0.0, "{line}");
    assert!(number("peak_rss_mib") > 1.0, "{line}");
    let rate = number("records") / number("seconds");
    assert!(
        (number("records_per_s") - rate).abs() <= rate * 0.01,
        "{line}"
    );
}
