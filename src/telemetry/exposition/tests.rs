use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::lag::{PartitionLag, WorkerState};
use crate::record::TopicPartition;
use crate::telemetry::fixture;

fn rendered(snapshot: &LagSnapshot, labels: &[(&str, &str)]) -> String {
    let labels: Vec<_> = labels
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut out = String::new();
    render(snapshot, &labels, &mut out);
    out
}

/// Fails unless every series stands once, under the head of its family, and has
/// a number.
fn assert_is_sound(page: &str) {
    let mut families = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut family = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap_or_default();
            assert!(families.insert(family), "{family} begins twice");
        } else if !line.starts_with("# HELP ") {
            let (labelled, value) = line.rsplit_once(' ').expect("a value");
            assert!(series.insert(labelled), "{labelled} stands twice");
            assert!(labelled.starts_with(family), "{line} under {family}");
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
        }
    }
}

/// What `promtool check metrics` says of it; `None` without a promtool.
fn promtool(page: &str) -> Option<(bool, String)> {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        let is_required = std::env::var_os("KEEPUP_REQUIRE_KAFKA").is_some_and(|set| set == "1");
        assert!(!is_required, "promtool is needed");
        println!("skipped: there is no promtool");
        return None;
    };
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(page.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn a_partition_is_shown_with_all_that_is_known() {
    let page = rendered(&fixture::snapshot("orders", 2), &[("env", "prod")]);
    assert_is_sound(&page);
    let of = r#"group_id="billing",client_id="billing-1",env="prod",worker="0",topic="orders",partition="1""#;
    for (metric, value) in [
        (&names::RECORDS_LAG, "101"),
        (&names::RECORDS_LAG_MAX, "400"),
        (&names::RECORDS_LAG_AVG, "130.5"),
        (&names::RECORDS_LEAD, "4990"),
        (&names::RECORDS_LEAD_MIN, "4000"),
        (&names::RECORDS_LEAD_AVG, "4500.25"),
        (&names::COMMITTED_LAG, "111"),
        (&names::TIME_LAG, "1.5"),
        (&names::IN_FLIGHT, "10"),
        (&names::END_OFFSET_AGE, "0.04"),
    ] {
        let line = format!("\n{}{{{of}}} {value}\n", metric.name);
        assert!(page.contains(&line), "no {line} in\n{page}");
    }
}

#[test]
fn the_process_is_shown_with_its_workers_topics_and_commits() {
    let page = rendered(&fixture::snapshot("orders", 2), &[]);
    let client = r#"group_id="billing",client_id="billing-1""#;
    for (metric, labels, value) in [
        (&names::RECORDS_CONSUMED, r#",topic="orders""#, "13"),
        (&names::BYTES_CONSUMED, r#",topic="orders""#, "1300"),
        (&names::ASSIGNED_PARTITIONS, "", "2"),
        (&names::REBALANCES, "", "3"),
        (&names::RECORDS, r#",topic="orders",outcome="done""#, "12"),
        (
            &names::RECORDS,
            r#",topic="orders",outcome="discarded""#,
            "1",
        ),
        (&names::COMMITS, r#",result="ok""#, "40"),
        (&names::COMMITS, r#",result="retried""#, "2"),
        (&names::COMMITS, r#",result="refused""#, "1"),
        (&names::COMMITS, r#",result="failed""#, "0"),
        (&names::WORKERS, "", "2"),
        (&names::WORKER_UP, r#",worker="1""#, "1"),
        (&names::WORKER_RESTARTS, r#",worker="1""#, "1"),
        (&names::REPORTER_SUCCESS, "", "1700000000.25"),
        (&names::MEMBER_STATE, r#",state="stopping""#, "1"),
        (&names::MEMBER_STATE, r#",state="held-up""#, "0"),
        (&names::STOP_INFO, r#",reason="signal""#, "1"),
        (&names::REPORTER_ERRORS, r#",reason="member-stalled""#, "0"),
        (&names::CONNECTION_ERRORS, r#",reason="wire""#, "4"),
        (&names::CONNECTION_ERRORS, r#",reason="closed""#, "0"),
    ] {
        let line = format!("\n{}{{{client}{labels}}} {value}\n", metric.name);
        assert!(page.contains(&line), "no {line} in\n{page}");
    }
    assert!(page.contains(&format!("{}{{{client},version=\"", names::BUILD_INFO.name)));
    for metric in names::ALL {
        let head = format!("# TYPE {} {}\n", metric.name, metric.kind.name());
        assert!(page.contains(&head), "no {head}");
    }
}

#[test]
fn a_histogram_is_cumulative() {
    let page = rendered(&fixture::snapshot("orders", 0), &[]);
    let name = names::HANDLER_SECONDS.name;
    let of = r#"group_id="billing",client_id="billing-1",topic="orders",outcome="done""#;
    let buckets: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{name}_bucket{{{of},le=\"")))
        .collect();
    assert_eq!(buckets.len(), 17);
    assert_eq!(buckets[0], "0.000001\"} 0");
    assert_eq!(buckets[4], "0.001\"} 10");
    assert_eq!(buckets[15], "300\"} 10");
    assert_eq!(buckets[16], "+Inf\"} 12");
    assert!(page.contains(&format!("{name}_sum{{{of}}} 800.008\n")));
    assert!(page.contains(&format!("{name}_count{{{of}}} 12\n")));
    assert!(!page.contains(&format!(
        "{name}_count{{{}",
        of.replace("done", "discarded")
    )));
}

#[test]
fn what_is_unknown_has_no_series() {
    let mut snapshot = fixture::snapshot("orders", 1);
    snapshot.partitions = vec![PartitionLag::unknown(TopicPartition::new("orders", 0))];
    snapshot.partitions[0].records_lag_avg = Some(f64::NAN);
    snapshot.topics.clear();
    snapshot.workers.clear();
    snapshot.taken_at_ms = 0;
    let page = rendered(&snapshot, &[]);
    assert_is_sound(&page);
    let in_flight = names::IN_FLIGHT.name;
    let of_partition: Vec<_> = page
        .lines()
        .filter(|line| line.contains("partition=\""))
        .collect();
    assert_eq!(
        of_partition,
        [format!(
            r#"{in_flight}{{group_id="billing",client_id="billing-1",topic="orders",partition="0"}} 0"#
        )],
        "the only number that is known, without a worker"
    );
    for metric in [
        &names::RECORDS_LAG,
        &names::RECORDS_CONSUMED,
        &names::HANDLER_SECONDS,
        &names::WORKER_UP,
        &names::REPORTER_SUCCESS,
    ] {
        assert!(!page.contains(metric.name), "{}", metric.name);
    }
}

#[test]
fn a_partition_keeps_its_last_workers_label_and_a_revoked_one_has_no_series() {
    let mut snapshot = fixture::snapshot("orders", 2);
    snapshot.partitions[1].worker = None;
    snapshot.partitions[1].last_worker = Some(7);
    let page = rendered(&snapshot, &[]);
    assert_eq!(
        page.matches(r#",worker="7",topic="orders",partition="1"}"#)
            .count(),
        10
    );
    snapshot.partitions.pop();
    let page = rendered(&snapshot, &[]);
    assert!(!page.contains("partition=\"1\""));
}

#[test]
fn a_worker_that_waits_or_has_ended_is_down() {
    let mut snapshot = fixture::snapshot("orders", 0);
    snapshot.workers = [
        WorkerState::Starting,
        WorkerState::Running,
        WorkerState::Draining,
        WorkerState::Restarting,
        WorkerState::Stopped,
    ]
    .into_iter()
    .zip(0..)
    .map(|(state, number)| fixture::worker(number, state))
    .collect();
    let page = rendered(&snapshot, &[]);
    let name = names::WORKER_UP.name;
    let up: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    assert_eq!(up, ["0", "1", "1", "0", "0"]);
    assert!(page.contains(&format!(
        "{}{{group_id=\"billing\",client_id=\"billing-1\"}} 2\n",
        names::WORKERS.name
    )));
}

/// Names as nasty as Kafka and people make them, and their label values.
const NASTY: [(&str, &str); 6] = [
    (r#"a "quoted" group"#, r#"a \"quoted\" group"#),
    (r"back\slash", r"back\\slash"),
    (r"two\\slashes\", r"two\\\\slashes\\"),
    ("two\nlines", r"two\nlines"),
    ("Größe-日本-🦀", "Größe-日本-🦀"),
    ("{a=\"b\"} 1 # x\r", "{a=\\\"b\\\"} 1 # x\r"),
];

#[test]
fn names_are_escaped_and_stay_apart() {
    let mut seen = BTreeSet::new();
    for (name, escaped) in NASTY {
        let mut snapshot = fixture::snapshot("topic.with-All_9", 1);
        snapshot.group = Arc::from(name);
        let page = rendered(&snapshot, &[("own", name)]);
        let own = format!("own=\"{escaped}\"");
        let lines = page
            .split('\n')
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            assert!(line.contains(&own), "{line}");
            assert!(
                line.contains(&format!("{{group_id=\"{escaped}\",")),
                "{line}"
            );
        }
        assert!(page.contains("topic=\"topic.with-All_9\""));
        assert!(seen.insert(page));
    }
}

#[test]
fn promtool_has_nothing_to_say() {
    let mut pages = vec![
        rendered(&fixture::snapshot("orders.v1", 3), &[("env", "prod")]),
        rendered(&LagSnapshot::default(), &[]),
    ];
    for (name, _) in NASTY {
        let mut snapshot = fixture::snapshot("orders", 2);
        snapshot.group = Arc::from(name);
        snapshot.client_id = Arc::from(name);
        pages.push(rendered(&snapshot, &[("own", name)]));
    }
    for page in pages {
        let Some((is_sound, said)) = promtool(&page) else {
            return;
        };
        assert!(is_sound && said.is_empty(), "{said}\n{page}");
    }
    let (is_sound, said) = promtool("# TYPE x_total gauge\nx_total 1\n").expect("it was there");
    assert!(!is_sound && !said.is_empty(), "it would say something");
}

/// Not a test: what a scrape costs. Under 20 ms and 150 ms in a release build.
///
/// ```text
/// cargo test --release -p keepup --lib -- --ignored --nocapture cost_of_a_scrape
/// ```
#[test]
#[ignore = "measures"]
fn cost_of_a_scrape() {
    let clock = Clock::System;
    let mut out = String::new();
    for (partitions, allowed) in [(1_000, 20), (10_000, 150)] {
        let snapshot = fixture::snapshot("a-topic-with-a-usual-name", partitions);
        // The machine may be shared: the fastest of some rounds is what it costs.
        let fastest = (0..20)
            .map(|_| {
                out.clear();
                let start = clock.now();
                render(&snapshot, &[], &mut out);
                clock.now() - start
            })
            .min()
            .unwrap_or(Duration::MAX);
        println!(
            "{partitions} partitions: {} KiB in {:.2} ms",
            out.len() / 1024,
            fastest.as_secs_f64() * 1_000.0
        );
        assert!(cfg!(debug_assertions) || fastest < Duration::from_millis(allowed));
    }
}
