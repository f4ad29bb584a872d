//! The manifests in `deploy/kubernetes` ask for what there is, and agree with one another.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::Value;

use crate::support::SOON;
use crate::support::keepup::keepup;
use crate::support::process::repository;

/// The documents of every file, and its text.
fn manifests() -> BTreeMap<String, (Vec<Value>, String)> {
    let files = fs::read_dir(repository().join("deploy/kubernetes")).expect("it is there");
    files
        .map(|file| file.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|is| is == "yaml"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let documents = serde_norway::Deserializer::from_str(&text)
                .map(|document| Value::deserialize(document).expect("it is YAML"))
                .collect();
            let name = path.file_name().expect("a name").to_string_lossy();
            (name.into_owned(), (documents, text))
        })
        .collect()
}

fn container(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]["containers"][0]
}

fn arguments(workload: &Value) -> Vec<&str> {
    let arguments = container(workload)["args"].as_array().expect("arguments");
    arguments.iter().filter_map(Value::as_str).collect()
}

fn option<'a>(workload: &'a Value, name: &str) -> &'a str {
    let prefix = format!("{name}=");
    arguments(workload)
        .into_iter()
        .find_map(|argument| argument.strip_prefix(&prefix))
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_manifests_name_options_and_metrics_that_there_are() {
    let help = keepup(&["run", "--help"], "", SOON).stdout;
    let metrics = fs::read_to_string(repository().join("docs/metrics.md")).expect("UTF-8");
    let manifests = manifests();
    assert_eq!(manifests.len(), 5, "{:?}", manifests.keys());
    let (mut options, mut series) = (0, 0);
    for (file, (documents, text)) in &manifests {
        for document in documents {
            let kind = &document["kind"];
            if kind == "Deployment" || kind == "StatefulSet" {
                for argument in arguments(document) {
                    let option = argument.split('=').next().unwrap_or_default();
                    let is_there = option == "run" || help.contains(&format!("{option} "));
                    assert!(is_there, "{file}: {option}");
                    options += 1;
                }
            }
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c| !is_word(c));
        for word in words.filter(|word| word.starts_with("keepup_")) {
            assert!(metrics.contains(&format!("| `{word}` |")), "{file}: {word}");
            series += 1;
        }
    }
    assert!(options > 15 && series >= 4, "{options}, {series}");
}

#[test]
fn the_manifests_agree_with_one_another() {
    let manifests = manifests();
    let first = |file: &str| &manifests[file].0[0];
    for file in ["deployment.yaml", "statefulset.yaml"] {
        let workload = first(file);
        let drain = option(workload, "--drain").trim_end_matches('s').parse();
        let drain: u64 = drain.expect("seconds");
        let pod = &workload["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].as_u64();
        assert!(grace > Some(drain + 5), "{file}: {grace:?}");
        let container = container(workload);
        let port = container["ports"][0]["containerPort"].as_u64();
        let listen = format!("0.0.0.0:{}", port.expect("a port"));
        assert_eq!(option(workload, "--listen"), listen, "{file}");
        for (probe, path) in [
            ("startupProbe", "/health/live"),
            ("livenessProbe", "/health/live"),
            ("readinessProbe", "/health/ready"),
        ] {
            let asked = &container[probe]["httpGet"];
            assert_eq!(asked["path"], path, "{file}");
            assert_eq!(asked["port"], container["ports"][0]["name"], "{file}");
        }
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    }
    let ledger = first("statefulset.yaml");
    let pods = ledger["spec"]["replicas"].to_string();
    assert_eq!(option(ledger, "--of"), pods);

    let billing = first("deployment.yaml");
    let workers = option(billing, "--workers");
    assert_eq!(billing["spec"]["replicas"], Value::Null);
    let (hpa, keda) = (first("hpa.yaml"), first("keda.yaml"));
    for scaler in [hpa, keda] {
        let target = &scaler["spec"]["scaleTargetRef"]["name"];
        assert_eq!(*target, billing["metadata"]["name"]);
    }
    let by_pod = &hpa["spec"]["metrics"][0]["pods"];
    assert_eq!(by_pod["target"]["averageValue"], workers);
    let rule = &first("prometheus-adapter.yaml")["rules"]["custom"][0];
    assert_eq!(by_pod["metric"]["name"], rule["name"]["as"]);
    let trigger = &keda["spec"]["triggers"][0]["metadata"];
    assert_eq!(trigger["threshold"], workers);
    let group = format!("group_id=\"{}\"", option(billing, "--group"));
    let query = trigger["query"].as_str().expect("a query");
    assert!(query.contains(&group), "{query}");
}
