//! A real Prometheus scrapes a run, and everything in `deploy/` finds what it asks for.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use keepup::{Record, Workers};
use serde_json::Value;

use crate::support::process::repository;
use crate::support::prometheus::{Prometheus, Sample, get, promtool_check};
use crate::support::run::{Events, builder, end_of, topic_of_numbers, work_for};
use crate::support::{PATIENT, SOON, wait_until};

/// A group and a topic whose names mean themselves in regular expressions, dots included.
const GROUP: &str = "prometheus-reads";
const TOPIC: &str = "prometheus.reads";

/// A run that works off a lag for minutes, so that every number moves.
fn slow_run(kafka: &crate::support::kafka::Kafka) -> (keepup::Handle, SocketAddr) {
    topic_of_numbers(kafka, TOPIC, 3, 20_000);
    let handle = builder(kafka, GROUP, TOPIC, &Events::default())
        .workers(Workers::Fixed(2))
        .label("env", "a \"test\"\\\n")
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .start(|_| {
            // There is a recorder since the run listens.
            metrics::describe_counter!("prometheus_reads_handled_total", "Handled records.");
            |_: &Record<'_>| {
                metrics::counter!("prometheus_reads_handled_total").increment(1);
                work_for(Duration::from_millis(2));
            }
        })
        .expect("the run starts");
    let address = handle.listens_at().expect("it listens");
    (handle, address)
}

#[test]
fn prometheus_reads_a_run_and_everything_in_deploy_finds_what_it_asks_for() {
    let kafka = kafka!(shared);
    if !Prometheus::is_here(test_name!()) {
        return;
    }
    let (handle, address) = slow_run(kafka);
    let [jmx, otel] = relabellings();
    let jobs = [
        ("keepup", address, ""),
        ("jmx", address, &*jmx),
        ("otel", address, &*otel),
    ];
    let rules = repository().join("deploy/prometheus/keepup.rules.yml");
    let prometheus = Prometheus::start(&jobs, &rules.display().to_string());

    check_lag(&prometheus, &handle);
    check_stems(&prometheus);
    // What the program counts of its own stands on the same page.
    wait_until(PATIENT, "the program's own counter", || {
        let own = prometheus.query("prometheus_reads_handled_total{job=\"keepup\"} > 0")?;
        if own.len() == 1 {
            Ok(())
        } else {
            Err(format!("{own:?}"))
        }
    });
    let (status, page) = get(address, "/metrics").expect("an answer");
    assert_eq!(status, 200);
    let said = promtool_check(&page);
    assert_eq!(
        (said.code, &*said.stdout, &*said.stderr),
        (Some(0), "", ""),
        "{page}"
    );
    check_dashboard(&prometheus);
    check_rules(&prometheus);

    handle.stop();
    let (report, _) = end_of(handle, SOON);
    assert_eq!(report.exit_code(), 0);
    // The report of a lag goes with its reporter: what the alerts have their pairs for.
    let lag = "kafka_consumer_fetch_manager_records_lag{job=\"keepup\"}";
    wait_until(PATIENT, "the series to end with the run", || {
        let absent = prometheus.query(&format!("absent({lag})"))?;
        if absent.len() == 1 {
            Ok(())
        } else {
            Err(format!("{:?}", prometheus.query(lag)))
        }
    });
}

/// The lag, its maximum and its average stand for each partition, and are what the run itself says.
fn check_lag(prometheus: &Prometheus, handle: &keepup::Handle) {
    let of = |name: &str| {
        let name = format!("kafka_consumer_fetch_manager_{name}{{job=\"keepup\"}}");
        wait_until(PATIENT, &name, || {
            let samples = prometheus.query(&name)?;
            if samples.len() == 3 {
                Ok(by_partition(samples))
            } else {
                Err(format!("{samples:?}"))
            }
        })
    };
    let (lag, max, avg) = (
        of("records_lag"),
        of("records_lag_max"),
        of("records_lag_avg"),
    );
    let snapshot = handle.lag();
    assert_eq!(snapshot.partitions.len(), 3);
    for partition in &snapshot.partitions {
        let number = partition.partition.partition().to_string();
        let sample = &lag[&number];
        for (label, value) in [
            ("group_id", GROUP),
            ("client_id", &*snapshot.client_id),
            ("topic", TOPIC),
            ("env", "a \"test\"\\\n"),
        ] {
            assert_eq!(sample.labels[label], value);
        }
        assert!(
            ["0", "1"].contains(&&*sample.labels["worker"]),
            "{sample:?}"
        );
        assert!((1.0..=20_000.0).contains(&sample.value), "{sample:?}");
        assert!(max[&number].value >= sample.value, "{sample:?}");
        // The lag shrinks all the time, so its mean is above.
        assert!(avg[&number].value >= sample.value * 0.9, "{sample:?}");
        let now = partition.records_lag.expect("it is known");
        let then = sample.value;
        #[expect(clippy::cast_precision_loss, reason = "it is below 20 000")]
        let now = now as f64;
        assert!(now <= then && then - now < 15_000.0, "{then}, now {now}");
    }
}

fn by_partition(samples: Vec<Sample>) -> BTreeMap<String, Sample> {
    samples
        .into_iter()
        .map(|sample| (sample.labels["partition"].clone(), sample))
        .collect()
}

/// The recipes of the documentation: for the JMX exporter's stem, and for OpenTelemetry's.
fn relabellings() -> [String; 2] {
    let document = fs::read_to_string(repository().join("docs/metrics.md")).expect("it is there");
    let recipes: Vec<_> = document
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter_map(|block| Some(&block[block.find("    metric_relabel_configs:")?..]))
        .map(str::to_owned)
        .collect();
    recipes.try_into().expect("two recipes")
}

fn check_stems(prometheus: &Prometheus) {
    for (job, fetch, coordinator) in [
        (
            "jmx",
            "kafka_consumer_consumer_fetch_manager_metrics_",
            "kafka_consumer_consumer_coordinator_metrics_",
        ),
        ("otel", "kafka_consumer_", "kafka_consumer_"),
    ] {
        let expressions = [
            (format!("{fetch}records_lag_max{{job=\"{job}\"}}"), 3),
            (format!("{fetch}records_consumed_total{{job=\"{job}\"}}"), 1),
            (
                format!("{coordinator}assigned_partitions{{job=\"{job}\"}}"),
                1,
            ),
        ];
        for (expression, series) in expressions {
            wait_until(PATIENT, &expression, || {
                let samples = prometheus.query(&expression)?;
                if samples.len() == series {
                    Ok(())
                } else {
                    Err(format!("{samples:?}"))
                }
            });
        }
    }
}

/// Every panel has something to show, and every variable something to choose from.
fn check_dashboard(prometheus: &Prometheus) {
    let text = fs::read_to_string(repository().join("deploy/grafana/keepup-runtime.json"));
    let text = text.expect("it is there");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut expressions = Vec::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            let expression = target["expr"].as_str().expect("an expression");
            expressions.push(expression.to_owned());
        }
    }
    for variable in list(&dashboard["templating"]["list"]) {
        let values = variable["query"]["query"].as_str().unwrap_or_default();
        let selector = values.strip_prefix("label_values(");
        if let Some((selector, label)) = selector.and_then(|values| values.rsplit_once(", ")) {
            let label = label.trim_end_matches(')');
            expressions.push(format!("group by ({label}) ({selector})"));
        }
    }
    assert!(expressions.len() > 30, "{}", expressions.len());
    for expression in expressions {
        let expression = expression
            .replace("$job", "keepup")
            .replace("$group_id", GROUP)
            .replace("$topic", TOPIC)
            .replace("$__rate_interval", "10s");
        assert!(!expression.contains('$'), "{expression}");
        wait_until(PATIENT, &expression, || {
            let samples = prometheus.query(&expression)?;
            if samples.is_empty() {
                Err("nothing".to_owned())
            } else {
                Ok(())
            }
        });
    }
}

/// Every rule is evaluated, what is recorded has values, and no alert fires at a run that works.
fn check_rules(prometheus: &Prometheus) {
    let rules = wait_until(PATIENT, "every rule to be evaluated", || {
        let data = prometheus.api("rules")?;
        let rules: Vec<Value> = data["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|group| group["rules"].as_array())
            .flatten()
            .cloned()
            .collect();
        let waits = rules.iter().find(|rule| rule["health"] != "ok");
        match waits {
            Some(rule) => Err(rule.to_string()),
            None if rules.is_empty() => Err("no rules".to_owned()),
            None => Ok(rules),
        }
    });
    for rule in rules {
        let name = rule["name"].as_str().expect("a name");
        if rule["type"] == "alerting" {
            assert_ne!(rule["state"], "firing", "{rule}");
        } else {
            wait_until(PATIENT, name, || {
                match prometheus.query(&format!("{name}{{job=\"keepup\"}}"))? {
                    samples if samples.is_empty() => Err("nothing".to_owned()),
                    _ => Ok(()),
                }
            });
        }
    }
}
