use std::collections::BTreeMap;
use std::sync::Mutex;

use metrics::{CounterFn, GaugeFn, HistogramFn, NoopRecorder, SharedString, Unit};

use super::*;
use crate::lag::WorkerState;
use crate::telemetry::fixture;

/// A recorder that keeps everything, and counts registrations.
#[derive(Default)]
struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    series: BTreeMap<String, Vec<f64>>,
    registrations: usize,
    descriptions: usize,
}

/// One series: gauges keep their last value, counters their sum, histograms all
/// values.
struct Series {
    state: Arc<Mutex<State>>,
    name: String,
}

impl Series {
    fn with(&self, change: impl FnOnce(&mut Vec<f64>)) {
        let mut state = self.state.lock().expect("nobody panicked");
        change(state.series.entry(self.name.clone()).or_default());
    }
}

impl GaugeFn for Series {
    fn increment(&self, _: f64) {
        panic!("gauges are set");
    }

    fn decrement(&self, _: f64) {
        panic!("gauges are set");
    }

    fn set(&self, value: f64) {
        self.with(|values| *values = vec![value]);
    }
}

impl CounterFn for Series {
    fn increment(&self, value: u64) {
        let value = values::as_float(value);
        self.with(|values| *values = vec![values.iter().sum::<f64>() + value]);
    }

    fn absolute(&self, _: u64) {
        panic!("counters are told by how much they grew");
    }
}

impl HistogramFn for Series {
    fn record(&self, value: f64) {
        self.with(|values| values.push(value));
    }
}

impl Kept {
    fn series(&self, key: &Key) -> Arc<Series> {
        let mut labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        self.0.lock().expect("nobody panicked").registrations += 1;
        Arc::new(Series {
            state: Arc::clone(&self.0),
            name: format!("{}{{{}}}", key.name(), labels.join(",")),
        })
    }

    fn value(&self, metric: &Metric, labels: &str) -> Vec<f64> {
        let name = format!("{}{{{labels}}}", metric.name);
        let state = self.0.lock().expect("nobody panicked");
        state.series.get(&name).cloned().unwrap_or_default()
    }

    fn registrations(&self) -> usize {
        self.0.lock().expect("nobody panicked").registrations
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        self.0.lock().expect("nobody panicked").descriptions += 1;
    }

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        self.0.lock().expect("nobody panicked").descriptions += 1;
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
        self.0.lock().expect("nobody panicked").descriptions += 1;
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.series(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.series(key))
    }
}

/// A recorder without state, which keeps nothing of its own but is there.
struct Stateless;

impl Recorder for Stateless {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Kept::default().series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Kept::default().series(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Kept::default().series(key))
    }
}

const CLIENT: &str = "client_id=billing-1,env=prod,group_id=billing";

fn facade() -> Facade {
    Facade::new(&[("env".to_owned(), "prod".to_owned())])
}

fn publish(facade: &mut Facade, kept: &Kept, snapshot: &LagSnapshot) {
    metrics::with_local_recorder(kept, || facade.publish(snapshot));
}

#[test]
fn a_recorder_of_the_program_gets_every_metric() {
    let (kept, mut facade) = (Kept::default(), facade());
    publish(&mut facade, &kept, &fixture::snapshot("orders", 2));

    let of = format!("{CLIENT},partition=1,topic=orders,worker=0");
    assert_eq!(kept.value(&names::RECORDS_LAG, &of), [101.0]);
    assert_eq!(kept.value(&names::RECORDS_LAG_AVG, &of), [130.5]);
    assert_eq!(kept.value(&names::TIME_LAG, &of), [1.5]);
    let of = format!("{CLIENT},topic=orders");
    assert_eq!(kept.value(&names::BYTES_CONSUMED, &of), [1_300.0]);
    assert_eq!(kept.value(&names::ASSIGNED_PARTITIONS, CLIENT), [2.0]);
    let of = format!("{CLIENT},result=retried");
    assert_eq!(kept.value(&names::COMMITS, &of), [2.0]);
    let of = format!("{CLIENT},worker=1");
    assert_eq!(kept.value(&names::WORKER_UP, &of), [1.0]);
    assert_eq!(kept.value(&names::WORKER_RESTARTS, &of), [1.0]);
    let of = |state| format!("{CLIENT},state={state}");
    assert_eq!(kept.value(&names::MEMBER_STATE, &of("stopping")), [1.0]);
    assert_eq!(kept.value(&names::MEMBER_STATE, &of("joined")), [0.0]);
    let of = format!("{CLIENT},reason=signal");
    assert_eq!(kept.value(&names::STOP_INFO, &of), [1.0]);

    let state = kept.0.lock().expect("nobody panicked");
    assert_eq!(state.descriptions, names::ALL.len());
    for metric in names::ALL {
        let stem = format!("{}{{", metric.name);
        // Counters that are at zero are registered, and not in this list.
        let is_told = state.series.keys().any(|name| name.starts_with(&stem));
        assert!(
            is_told || metric.name == names::REPORTER_ERRORS.name,
            "{stem}"
        );
    }
}

#[test]
fn counters_and_histograms_grow_and_handles_are_kept() {
    let (kept, mut facade) = (Kept::default(), facade());
    let mut snapshot = fixture::snapshot("orders", 3);
    publish(&mut facade, &kept, &snapshot);
    let registrations = kept.registrations();
    publish(&mut facade, &kept, &snapshot);
    snapshot.topics[0].records += 5;
    snapshot.topics[0].outcomes[0].records += 5;
    snapshot.topics[0].outcomes[0].seconds_counts[2] += 5;
    snapshot.topics[0].outcomes[0].seconds_sum += 5.0 * 4e-5;
    publish(&mut facade, &kept, &snapshot);
    assert_eq!(kept.registrations(), registrations, "handles are kept");

    let of = format!("{CLIENT},topic=orders");
    assert_eq!(kept.value(&names::RECORDS_CONSUMED, &of), [18.0]);
    let of = format!("{CLIENT},outcome=done,topic=orders");
    assert_eq!(kept.value(&names::RECORDS, &of), [17.0]);
    let seconds = kept.value(&names::HANDLER_SECONDS, &of);
    assert_eq!(seconds.len(), 17);
    assert_eq!(seconds[..10], [7.5e-4; 10], "the middle of their bucket");
    assert_eq!(seconds[10..12], [450.0; 2], "beyond the last bound");
    for second in &seconds[12..] {
        assert!(
            (second - 4e-5).abs() < 1e-9,
            "the mean, within its bucket: {second}"
        );
    }
}

#[test]
fn a_topic_that_was_forgotten_counts_on() {
    let (kept, mut facade) = (Kept::default(), facade());
    let mut snapshot = fixture::snapshot("orders", 0);
    publish(&mut facade, &kept, &snapshot);
    let topics = std::mem::take(&mut snapshot.topics);
    publish(&mut facade, &kept, &snapshot);
    snapshot.topics = topics;
    snapshot.topics[0].records = 2;
    publish(&mut facade, &kept, &snapshot);
    let of = format!("{CLIENT},topic=orders");
    assert_eq!(kept.value(&names::RECORDS_CONSUMED, &of), [15.0]);
}

#[test]
fn what_is_unknown_moved_or_revoked_is_nan() {
    let (kept, mut facade) = (Kept::default(), facade());
    let lag = |partition: i32, worker: &str| {
        let of = format!("{CLIENT},partition={partition},topic=orders{worker}");
        kept.value(&names::RECORDS_LAG, &of)
    };
    let is_nan = |values: Vec<f64>| matches!(values[..], [value] if value.is_nan());
    let mut snapshot = fixture::snapshot("orders", 3);
    snapshot.partitions[2] = PartitionLag::unknown(TopicPartition::new("orders", 2));
    publish(&mut facade, &kept, &snapshot);
    assert_eq!(lag(0, ",worker=0"), [100.0]);
    assert!(is_nan(lag(2, "")), "unknown");

    snapshot.partitions[0].worker = Some(1);
    snapshot.partitions.remove(1);
    snapshot.workers.remove(1);
    publish(&mut facade, &kept, &snapshot);
    assert_eq!(lag(0, ",worker=1"), [100.0]);
    assert!(is_nan(lag(0, ",worker=0")), "it has another worker");
    assert!(is_nan(lag(1, ",worker=0")), "it was revoked");
    let gone = format!("{CLIENT},worker=1");
    assert!(is_nan(kept.value(&names::WORKER_UP, &gone)));

    // Back again: the series go on.
    snapshot.partitions[0].worker = Some(0);
    publish(&mut facade, &kept, &snapshot);
    assert_eq!(lag(0, ",worker=0"), [100.0]);
    drop(facade);
    assert!(is_nan(lag(0, ",worker=0")), "the run is over");
    assert!(is_nan(kept.value(&names::WORKERS, CLIENT)));
}

#[test]
fn a_worker_that_is_replaced_keeps_its_partitions_series() {
    let (kept, mut facade) = (Kept::default(), facade());
    let mut snapshot = fixture::snapshot("orders", 1);
    publish(&mut facade, &kept, &snapshot);
    snapshot.partitions[0].worker = None;
    snapshot.partitions[0].records_lag = Some(250);
    snapshot.workers[0].state = WorkerState::Restarting;
    publish(&mut facade, &kept, &snapshot);
    let of = format!("{CLIENT},partition=0,topic=orders,worker=0");
    assert_eq!(kept.value(&names::RECORDS_LAG, &of), [250.0]);
    let of = format!("{CLIENT},worker=0");
    assert_eq!(kept.value(&names::WORKER_UP, &of), [0.0]);
}

#[test]
fn without_a_recorder_nothing_is_kept() {
    let mut facade = facade();
    let snapshot = fixture::snapshot("orders", 1);
    metrics::with_local_recorder(&NoopRecorder, || facade.publish(&snapshot));
    assert!(facade.told.is_none());
    metrics::with_local_recorder(&Stateless, || facade.publish(&snapshot));
    assert!(facade.told.is_some(), "one without state is one");
}
