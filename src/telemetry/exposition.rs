//! A snapshot as Prometheus text, version 0.0.4.
//!
//! It is written straight from the snapshot. A registry in between would keep
//! the series of a partition that somebody else has by now; like this a series
//! cannot outlive what it describes, and stands once.
//!
//! Lines and label values are written here rather than by the exporter's line
//! writer: that one allocates for each label of each line, and takes two
//! backslashes in a value for one, so that two groups could share a series.

use std::fmt::{Display, Write as _};

use metrics_exporter_prometheus::formatting;

use super::names::{self, Metric};
use super::values;
use crate::lag::{LagSnapshot, MemberState, OutcomeTotals};

/// Appends `snapshot` to `out`, with a run's own `labels` on every series.
///
/// What is unknown has no series. The names of `labels` are taken as checked.
pub(crate) fn render(snapshot: &LagSnapshot, labels: &[(String, String)], out: &mut String) {
    let mut common = String::new();
    label(&mut common, names::GROUP_ID, &snapshot.group);
    label(&mut common, names::CLIENT_ID, &snapshot.client_id);
    for (name, value) in labels {
        label(&mut common, name, value);
    }
    partitions(snapshot, &common, out);
    topics(snapshot, &common, out);
    client(snapshot, &common, out);
    workers(snapshot, &common, out);
    build(snapshot, &common, out);
}

fn partitions(snapshot: &LagSnapshot, common: &str, out: &mut String) {
    // Every partition has ten series with the same labels: written once.
    let mut labels = Vec::with_capacity(snapshot.partitions.len());
    let mut written = String::new();
    let mut worker = String::new();
    for partition in &snapshot.partitions {
        let from = written.len();
        written.push_str(common);
        // Without a worker there is no label: to Prometheus that is the same as
        // an empty one.
        if let Some(number) = values::worker_of(partition) {
            worker.clear();
            let _ = write!(worker, "{number}");
            label(&mut written, names::WORKER, &worker);
        }
        label(&mut written, names::TOPIC, partition.partition.topic());
        let _ = write!(
            written,
            ",{}=\"{}\"",
            names::PARTITION,
            partition.partition.partition()
        );
        labels.push(from..written.len());
    }
    for (metric, value) in &values::OF_PARTITION {
        let mut family = Family::new(metric, out);
        for (partition, labels) in snapshot.partitions.iter().zip(&labels) {
            if let Some(value) = value(partition).filter(|value| value.is_finite()) {
                family.sample("", &written[labels.clone()], value);
            }
        }
    }
}

fn topics(snapshot: &LagSnapshot, common: &str, out: &mut String) {
    let mut labels = String::new();
    for (metric, value) in &values::OF_TOPIC {
        let mut family = Family::new(metric, out);
        for topic in &snapshot.topics {
            with(&mut labels, common, &[(names::TOPIC, &topic.topic)]);
            family.sample("", &labels, value(topic));
        }
    }
    let mut family = Family::new(&names::RECORDS, out);
    for_each_outcome(snapshot, common, |labels, outcome| {
        family.sample("", labels, outcome.records);
    });
    let mut family = Family::new(&names::HANDLER_SECONDS, out);
    for_each_outcome(snapshot, common, |labels, outcome| {
        histogram(&mut family, labels, outcome);
    });
}

/// Gives every outcome of every topic, with the labels that tell it.
fn for_each_outcome(
    snapshot: &LagSnapshot,
    common: &str,
    mut give: impl FnMut(&mut String, &OutcomeTotals),
) {
    let mut labels = String::new();
    for topic in &snapshot.topics {
        for outcome in &topic.outcomes {
            let own = [
                (names::TOPIC, &*topic.topic),
                (names::OUTCOME, outcome.outcome),
            ];
            with(&mut labels, common, &own);
            give(&mut labels, outcome);
        }
    }
}

/// One histogram, cumulative; `labels` are changed.
fn histogram(family: &mut Family<'_, '_>, labels: &mut String, outcome: &OutcomeTotals) {
    let all = outcome
        .seconds_counts
        .iter()
        .fold(0, |all: u64, &count| all.saturating_add(count));
    // Of what was discarded nobody takes the time.
    if all == 0 {
        return;
    }
    let own = labels.len();
    let mut below = 0_u64;
    let counts = outcome.seconds_counts.iter().copied();
    for (bound, count) in OutcomeTotals::HANDLER_SECONDS.iter().zip(counts) {
        below = below.saturating_add(count);
        labels.truncate(own);
        let _ = write!(labels, ",{}=\"{bound}\"", names::LE);
        family.sample("_bucket", labels, below);
    }
    labels.truncate(own);
    let _ = write!(labels, ",{}=\"+Inf\"", names::LE);
    family.sample("_bucket", labels, all);
    labels.truncate(own);
    family.sample("_sum", labels, outcome.seconds_sum);
    family.sample("_count", labels, all);
}

fn client(snapshot: &LagSnapshot, common: &str, out: &mut String) {
    for (metric, value) in &values::OF_CLIENT {
        let mut family = Family::new(metric, out);
        if let Some(value) = value(snapshot) {
            family.sample("", common, value);
        }
    }
    let mut labels = String::new();
    let mut family = Family::new(&names::MEMBER_STATE, out);
    for state in MemberState::ALL {
        with(&mut labels, common, &[(names::STATE, state.name())]);
        family.sample("", &labels, values::is_in(snapshot, state));
    }
    if let Some(reason) = snapshot.stop_reason {
        with(&mut labels, common, &[(names::REASON, reason)]);
        Family::new(&names::STOP_INFO, out).sample("", &labels, 1);
    }
    for of_one in values::COUNTERS_OF_CLIENT.chunk_by(|a, b| a.0.name == b.0.name) {
        let Some((metric, _, _)) = of_one.first() else {
            continue;
        };
        let mut family = Family::new(metric, out);
        for (_, own, value) in of_one {
            with(&mut labels, common, own.as_slice());
            family.sample("", &labels, value(snapshot));
        }
    }
}

fn workers(snapshot: &LagSnapshot, common: &str, out: &mut String) {
    let mut labels = String::new();
    let mut number = String::new();
    let mut labels_of = |worker: usize, labels: &mut String| {
        number.clear();
        let _ = write!(number, "{worker}");
        with(labels, common, &[(names::WORKER, &number)]);
    };
    let (metric, is_up) = &values::WORKER_UP;
    let mut family = Family::new(metric, out);
    for worker in &snapshot.workers {
        if let Some(value) = is_up(worker) {
            labels_of(worker.worker, &mut labels);
            family.sample("", &labels, value);
        }
    }
    let (metric, restarts) = &values::WORKER_RESTARTS;
    let mut family = Family::new(metric, out);
    for worker in &snapshot.workers {
        labels_of(worker.worker, &mut labels);
        family.sample("", &labels, restarts(worker));
    }
}

fn build(snapshot: &LagSnapshot, common: &str, out: &mut String) {
    let mut labels = String::new();
    with(&mut labels, common, &values::build(snapshot));
    Family::new(&names::BUILD_INFO, out).sample("", &labels, 1);
}

/// The series of one metric, which stand together. Without one there is no
/// head either.
struct Family<'m, 'o> {
    metric: &'m Metric,
    out: &'o mut String,
    is_begun: bool,
}

impl<'m, 'o> Family<'m, 'o> {
    fn new(metric: &'m Metric, out: &'o mut String) -> Self {
        Self {
            metric,
            out,
            is_begun: false,
        }
    }

    fn sample(&mut self, suffix: &str, labels: &str, value: impl Display) {
        let Metric {
            name, kind, help, ..
        } = *self.metric;
        if !self.is_begun {
            self.is_begun = true;
            formatting::write_help_line(self.out, name, None, None, help);
            formatting::write_type_line(self.out, name, None, None, kind.name());
        }
        for part in [name, suffix, "{", labels, "} "] {
            self.out.push_str(part);
        }
        let _ = writeln!(self.out, "{value}");
    }
}

/// `into` becomes `common` and these labels.
fn with(into: &mut String, common: &str, labels: &[(&str, &str)]) {
    into.clear();
    into.push_str(common);
    for (name, value) in labels {
        label(into, name, value);
    }
}

/// Appends `name="value"`, after a comma where it is not the first.
fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        out.push_str(match special.as_bytes().first() {
            Some(b'\n') => "\\n",
            Some(b'"') => "\\\"",
            _ => "\\\\",
        });
        rest = &special[1..];
    }
    out.push_str(rest);
    out.push('"');
}

#[cfg(test)]
mod tests;
