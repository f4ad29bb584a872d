//! A snapshot to the recorder that the program installed for the `metrics`
//! crate.
//!
//! A program with a recorder of its own (`StatsD`, OTLP, its own Prometheus
//! endpoint) finds our metrics there without doing anything. Three things
//! differ from our own page, since such a recorder cannot forget a series:
//!
//! - What is unknown, and what is not ours any more, is NaN.
//! - Counters are told by how much they grew, so that a topic that was
//!   forgotten and came back, or a second run, counts on where it was.
//! - Of a histogram only the buckets are known: each record counts with its
//!   bucket's middle, or the mean of all where that lies in the bucket.
//!
//! Handles are kept, so that a tick in which nothing changed hands allocates
//! nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};

use super::names::{self, Kind, Metric};
use super::values;
use crate::lag::{
    LagSnapshot, MemberState, OutcomeTotals, PartitionLag, TopicTotals, WorkerStatus,
};
use crate::record::TopicPartition;

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// What a run tells the program's recorder. Dropped with the run: then all of
/// its gauges become NaN.
#[derive(Debug)]
pub(crate) struct Facade {
    /// The run's own labels.
    labels: Vec<Label>,
    /// Everything that was told so far; `None` until there is a recorder.
    told: Option<Told>,
}

impl Facade {
    /// Nothing was told yet; every series gets these labels.
    pub(crate) fn new(labels: &[(String, String)]) -> Self {
        let labels = labels
            .iter()
            .map(|(name, value)| Label::new(name.clone(), value.clone()))
            .collect();
        Self { labels, told: None }
    }

    /// Tells the program's recorder, where it installed one.
    pub(crate) fn publish(&mut self, snapshot: &LagSnapshot) {
        metrics::with_recorder(|recorder| {
            if !is_ours(recorder) {
                self.publish_to(recorder, snapshot);
            }
        });
    }

    fn publish_to(&mut self, recorder: &dyn Recorder, snapshot: &LagSnapshot) {
        if self.told.is_none() && keeps(recorder) {
            let mut labels = vec![
                Label::new(names::GROUP_ID, Arc::clone(&snapshot.group)),
                Label::new(names::CLIENT_ID, Arc::clone(&snapshot.client_id)),
            ];
            labels.extend_from_slice(&self.labels);
            let registrar = Registrar {
                recorder,
                labels: &labels,
            };
            self.told = Some(Told::new(registrar, snapshot));
        }
        if let Some(told) = &mut self.told {
            told.tell(recorder, snapshot);
        }
    }
}

/// True for the recorder that we installed for the endpoints: they show our
/// metrics themselves.
#[cfg(feature = "http")]
fn is_ours(recorder: &dyn Recorder) -> bool {
    super::recorder::is_ours(recorder)
}

/// Without endpoints none is installed.
#[cfg(not(feature = "http"))]
fn is_ours(_: &dyn Recorder) -> bool {
    false
}

/// False for the recorder that stands for none.
fn keeps(recorder: &dyn Recorder) -> bool {
    /// A value that notices being asked for.
    struct Noticing<'a>(&'a Cell<bool>);
    impl metrics::IntoF64 for Noticing<'_> {
        fn into_f64(self) -> f64 {
            self.0.set(true);
            1.0
        }
    }
    // It has no state. Another one without state may write to a static.
    if size_of_val(recorder) > 0 {
        return true;
    }
    let is_asked = Cell::new(false);
    let key = Key::from_static_name(names::WORKERS.name);
    recorder
        .register_gauge(&key, &METADATA)
        .set(Noticing(&is_asked));
    is_asked.get()
}

/// Where handles come from.
#[derive(Clone, Copy)]
struct Registrar<'a> {
    recorder: &'a dyn Recorder,
    labels: &'a [Label],
}

impl Registrar<'_> {
    fn key(&self, metric: &Metric, more: &[Label]) -> Key {
        Key::from_parts(metric.name, [self.labels, more].concat())
    }

    fn gauge(&self, metric: &Metric, more: &[Label]) -> Gauge {
        self.recorder
            .register_gauge(&self.key(metric, more), &METADATA)
    }

    fn counter(&self, metric: &Metric, more: &[Label]) -> Count {
        Count {
            counter: self
                .recorder
                .register_counter(&self.key(metric, more), &METADATA),
            told: 0,
        }
    }

    fn histogram(&self, metric: &Metric, more: &[Label]) -> Histogram {
        self.recorder
            .register_histogram(&self.key(metric, more), &METADATA)
    }

    fn describe(&self, metric: &Metric) {
        let name = KeyName::from_const_str(metric.name);
        let unit = Some(metric.unit.of_the_facade());
        let help = metric.help.into();
        match metric.kind {
            Kind::Gauge => self.recorder.describe_gauge(name, unit, help),
            Kind::Counter => self.recorder.describe_counter(name, unit, help),
            Kind::Histogram => self.recorder.describe_histogram(name, unit, help),
        }
    }
}

/// Gauges of one thing: NaN from when it is gone.
#[derive(Debug)]
struct Gauges<const N: usize>([Gauge; N]);

impl<const N: usize> Gauges<N> {
    fn set(&self, index: usize, value: Option<f64>) {
        if let Some(gauge) = self.0.get(index) {
            gauge.set(value.unwrap_or(f64::NAN));
        }
    }
}

impl<const N: usize> Drop for Gauges<N> {
    fn drop(&mut self) {
        for gauge in &self.0 {
            gauge.set(f64::NAN);
        }
    }
}

/// A counter, and how far it was told.
#[derive(Debug)]
struct Count {
    counter: Counter,
    told: u64,
}

impl Count {
    fn tell(&mut self, total: u64) {
        let more = grown(total, self.told);
        if more > 0 {
            self.counter.increment(more);
        }
        self.told = total;
    }
}

/// How much a count grew; one that is smaller began again.
fn grown(total: u64, told: u64) -> u64 {
    total.checked_sub(told).unwrap_or(total)
}

#[derive(Debug)]
struct Told {
    /// Those of every series.
    labels: Vec<Label>,
    /// Counts what was told: what was not told lately is gone.
    round: u64,
    partitions: HashMap<TopicPartition, OfPartition>,
    topics: HashMap<Arc<str>, OfTopic>,
    workers: HashMap<usize, OfWorker>,
    client: Gauges<{ values::OF_CLIENT.len() }>,
    states: Gauges<{ MemberState::ALL.len() }>,
    /// From the cause of a stop on.
    stop: Option<(&'static str, Gauges<1>)>,
    counters: [Count; values::COUNTERS_OF_CLIENT.len()],
    _build: Gauges<1>,
}

impl Told {
    fn new(registrar: Registrar<'_>, snapshot: &LagSnapshot) -> Self {
        for metric in names::ALL {
            registrar.describe(metric);
        }
        let labels = values::build(snapshot).map(|(name, value)| Label::new(name, value));
        let build = registrar.gauge(&names::BUILD_INFO, &labels);
        build.set(1.0);
        Self {
            labels: registrar.labels.to_vec(),
            round: 0,
            partitions: HashMap::new(),
            topics: HashMap::new(),
            workers: HashMap::new(),
            client: Gauges(values::OF_CLIENT.map(|(metric, _)| registrar.gauge(&metric, &[]))),
            states: Gauges(MemberState::ALL.map(|state| {
                registrar.gauge(
                    &names::MEMBER_STATE,
                    &[Label::new(names::STATE, state.name())],
                )
            })),
            stop: None,
            counters: values::COUNTERS_OF_CLIENT.map(|(metric, own, _)| {
                let own = own.map(|(name, value)| Label::new(name, value));
                registrar.counter(&metric, own.as_slice())
            }),
            _build: Gauges([build]),
        }
    }

    fn tell(&mut self, recorder: &dyn Recorder, snapshot: &LagSnapshot) {
        self.round = self.round.wrapping_add(1);
        let round = self.round;
        let registrar = Registrar {
            recorder,
            labels: &self.labels,
        };
        for (index, (_, value)) in values::OF_CLIENT.iter().enumerate() {
            self.client.set(index, value(snapshot));
        }
        for (index, state) in MemberState::ALL.into_iter().enumerate() {
            let is_in = values::is_in(snapshot, state);
            self.states.set(index, Some(is_in));
        }
        if self.stop.as_ref().map(|(reason, _)| *reason) != snapshot.stop_reason {
            // One cause may be overtaken by a graver one.
            self.stop = snapshot.stop_reason.map(|reason| {
                let label = [Label::new(names::REASON, reason)];
                let gauge = registrar.gauge(&names::STOP_INFO, &label);
                gauge.set(1.0);
                (reason, Gauges([gauge]))
            });
        }
        for ((_, _, value), count) in values::COUNTERS_OF_CLIENT.iter().zip(&mut self.counters) {
            count.tell(value(snapshot));
        }

        for partition in &snapshot.partitions {
            let is_told = self
                .partitions
                .get_mut(&partition.partition)
                .is_some_and(|told| told.tell(round, partition));
            if !is_told {
                let mut told = OfPartition::new(registrar, partition);
                told.tell(round, partition);
                // The one that it replaces has another worker's label.
                self.partitions.insert(partition.partition.clone(), told);
            }
        }
        self.partitions.retain(|_, told| told.round == round);

        for topic in &snapshot.topics {
            if !self.topics.contains_key(&topic.topic) {
                let told = OfTopic::new(registrar, &topic.topic);
                self.topics.insert(Arc::clone(&topic.topic), told);
            }
            if let Some(told) = self.topics.get_mut(&topic.topic) {
                told.tell(round, registrar, topic);
            }
        }
        self.topics.retain(|_, told| told.round == round);

        for worker in &snapshot.workers {
            self.workers
                .entry(worker.worker)
                .or_insert_with(|| OfWorker::new(registrar, worker.worker))
                .tell(round, worker);
        }
        self.workers.retain(|_, told| told.round == round);
    }
}

#[derive(Debug)]
struct OfPartition {
    round: u64,
    worker: Option<usize>,
    gauges: Gauges<{ values::OF_PARTITION.len() }>,
}

impl OfPartition {
    fn new(registrar: Registrar<'_>, of: &PartitionLag) -> Self {
        let worker = values::worker_of(of);
        let mut labels = vec![
            Label::new(names::TOPIC, of.partition.shared_topic()),
            Label::new(names::PARTITION, of.partition.partition().to_string()),
        ];
        labels.extend(worker.map(|worker| Label::new(names::WORKER, worker.to_string())));
        Self {
            round: 0,
            worker,
            gauges: Gauges(
                values::OF_PARTITION.map(|(metric, _)| registrar.gauge(&metric, &labels)),
            ),
        }
    }

    /// False where its series are another worker's.
    fn tell(&mut self, round: u64, partition: &PartitionLag) -> bool {
        if values::worker_of(partition) != self.worker {
            return false;
        }
        self.round = round;
        for (index, (_, value)) in values::OF_PARTITION.iter().enumerate() {
            self.gauges.set(index, value(partition));
        }
        true
    }
}

#[derive(Debug)]
struct OfWorker {
    round: u64,
    is_up: Gauges<1>,
    restarts: Count,
}

impl OfWorker {
    fn new(registrar: Registrar<'_>, worker: usize) -> Self {
        let labels = [Label::new(names::WORKER, worker.to_string())];
        Self {
            round: 0,
            is_up: Gauges([registrar.gauge(&values::WORKER_UP.0, &labels)]),
            restarts: registrar.counter(&values::WORKER_RESTARTS.0, &labels),
        }
    }

    fn tell(&mut self, round: u64, worker: &WorkerStatus) {
        self.round = round;
        self.is_up.set(0, values::WORKER_UP.1(worker));
        self.restarts.tell(values::WORKER_RESTARTS.1(worker));
    }
}

#[derive(Debug)]
struct OfTopic {
    round: u64,
    topic: Arc<str>,
    counters: [Count; values::OF_TOPIC.len()],
    outcomes: Vec<OfOutcome>,
}

impl OfTopic {
    fn new(registrar: Registrar<'_>, topic: &Arc<str>) -> Self {
        let labels = [Label::new(names::TOPIC, Arc::clone(topic))];
        Self {
            round: 0,
            topic: Arc::clone(topic),
            counters: values::OF_TOPIC.map(|(metric, _)| registrar.counter(&metric, &labels)),
            outcomes: Vec::new(),
        }
    }

    fn tell(&mut self, round: u64, registrar: Registrar<'_>, topic: &TopicTotals) {
        self.round = round;
        for ((_, value), count) in values::OF_TOPIC.iter().zip(&mut self.counters) {
            count.tell(value(topic));
        }
        for totals in &topic.outcomes {
            let known = self
                .outcomes
                .iter_mut()
                .find(|told| told.outcome == totals.outcome);
            if let Some(told) = known {
                told.tell(totals);
            } else {
                let mut told = OfOutcome::new(registrar, &self.topic, totals);
                told.tell(totals);
                self.outcomes.push(told);
            }
        }
    }
}

#[derive(Debug)]
struct OfOutcome {
    outcome: &'static str,
    records: Count,
    /// `None` where nobody takes the time.
    seconds: Option<Histogram>,
    /// What the histogram was told, by bucket.
    counts: [u64; BUCKETS],
    sum: f64,
}

/// One for each bound, and one for what is longer than all.
const BUCKETS: usize = OutcomeTotals::HANDLER_SECONDS.len() + 1;

impl OfOutcome {
    fn new(registrar: Registrar<'_>, topic: &Arc<str>, totals: &OutcomeTotals) -> Self {
        let labels = [
            Label::new(names::TOPIC, Arc::clone(topic)),
            Label::new(names::OUTCOME, totals.outcome),
        ];
        // An outcome appears with its first record.
        let is_timed = totals.seconds_counts.iter().any(|&count| count > 0);
        Self {
            outcome: totals.outcome,
            records: registrar.counter(&names::RECORDS, &labels),
            seconds: is_timed.then(|| registrar.histogram(&names::HANDLER_SECONDS, &labels)),
            counts: [0; BUCKETS],
            sum: 0.0,
        }
    }

    fn tell(&mut self, totals: &OutcomeTotals) {
        self.records.tell(totals.records);
        let Some(seconds) = &self.seconds else {
            return;
        };
        let mut more = [0; BUCKETS];
        for ((more, &total), told) in more
            .iter_mut()
            .zip(&totals.seconds_counts)
            .zip(&mut self.counts)
        {
            *more = grown(total, *told);
            *told = total;
        }
        let taken = totals.seconds_sum - self.sum;
        self.sum = totals.seconds_sum;
        let mean = taken / values::as_float(more.iter().sum());
        for (bucket, &more) in more.iter().enumerate() {
            if more > 0 {
                let records = usize::try_from(more).unwrap_or(usize::MAX);
                seconds.record_many(representative(bucket, mean), records);
            }
        }
    }
}

/// The time that stands for all within a bucket, where `mean` is the mean over
/// all buckets.
fn representative(bucket: usize, mean: f64) -> f64 {
    let bounds = OutcomeTotals::HANDLER_SECONDS;
    let bound = |index: usize| bounds.get(index).copied();
    let lower = bucket.checked_sub(1).and_then(bound).unwrap_or(0.0);
    let upper = bound(bucket).unwrap_or(2.0 * lower);
    if lower < mean && mean <= upper {
        mean
    } else {
        f64::midpoint(lower, upper)
    }
}

#[cfg(test)]
mod tests;
