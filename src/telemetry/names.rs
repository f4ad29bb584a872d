//! Every metric that a run has: the only place where their names stand.
//!
//! Dashboards and alerts are written against these names, so they change only
//! with an entry in the changelog. `docs/metrics.md` is made from this list,
//! and a test finds a name that stands anywhere else.
//!
//! The first family carries the names that Micrometer gives to the Java
//! client's metrics, since most dashboards for lag as a consumer sees it are
//! written for those. The unit is part of a name only where Prometheus's rules
//! ask for it and Java's name does not stand against it.

use std::collections::BTreeMap;

use crate::error::Problem;

/// How a metric's values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Up and down.
    Gauge,
    /// Up only, from the start of the run.
    Counter,
    /// Counts by size, up only.
    Histogram,
}

impl Kind {
    /// Its name in Prometheus's text.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Records,
    Bytes,
    Seconds,
    /// Seconds since 1970.
    Timestamp,
    Partitions,
    Workers,
    Events,
    /// From 0 to 1.
    Share,
    /// Always 0 or 1.
    Flag,
}

impl Unit {
    /// The unit as the `metrics` crate knows it.
    pub(crate) fn of_the_facade(self) -> metrics::Unit {
        match self {
            Self::Bytes => metrics::Unit::Bytes,
            Self::Seconds | Self::Timestamp => metrics::Unit::Seconds,
            Self::Records
            | Self::Partitions
            | Self::Workers
            | Self::Events
            | Self::Share
            | Self::Flag => metrics::Unit::Count,
        }
    }
}

/// What is known of a metric beside its values.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) unit: Unit,
    /// Its own labels, a run's own not included.
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
    /// The Java client's metric that it stands for, or what it is by.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/metrics.md only"))]
    pub(crate) source: &'static str,
}

pub(crate) const GROUP_ID: &str = "group_id";
pub(crate) const CLIENT_ID: &str = "client_id";
pub(crate) const WORKER: &str = "worker";
pub(crate) const TOPIC: &str = "topic";
pub(crate) const PARTITION: &str = "partition";
pub(crate) const OUTCOME: &str = "outcome";
pub(crate) const RESULT: &str = "result";
pub(crate) const REASON: &str = "reason";
pub(crate) const STATE: &str = "state";
pub(crate) const VERSION: &str = "version";
pub(crate) const LIBRDKAFKA: &str = "librdkafka";
pub(crate) const ISOLATION: &str = "isolation";
/// The bound of a histogram's bucket.
pub(crate) const LE: &str = "le";

const BY_CLIENT: &[&str] = &[GROUP_ID, CLIENT_ID];
const BY_PARTITION: &[&str] = &[GROUP_ID, CLIENT_ID, WORKER, TOPIC, PARTITION];
const BY_TOPIC: &[&str] = &[GROUP_ID, CLIENT_ID, TOPIC];
const BY_OUTCOME: &[&str] = &[GROUP_ID, CLIENT_ID, TOPIC, OUTCOME];
const BY_WORKER: &[&str] = &[GROUP_ID, CLIENT_ID, WORKER];
const BY_RESULT: &[&str] = &[GROUP_ID, CLIENT_ID, RESULT];
const BY_REASON: &[&str] = &[GROUP_ID, CLIENT_ID, REASON];
const BY_STATE: &[&str] = &[GROUP_ID, CLIENT_ID, STATE];
const BY_BUILD: &[&str] = &[GROUP_ID, CLIENT_ID, VERSION, LIBRDKAFKA, ISOLATION];

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal, $unit:ident, $labels:ident, $help:literal, $source:literal;)*) => {
        $(pub(crate) const $constant: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            unit: Unit::$unit,
            labels: $labels,
            help: $help,
            source: $source,
        };)*

        /// All of them, in the order in which they are shown.
        pub(crate) const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    RECORDS_LAG = Gauge "kafka_consumer_fetch_manager_records_lag", Records, BY_PARTITION,
        "Records between the consumer's position and the partition's end offset, at the latest observation.",
        "Java `records-lag`, KIP-92, KIP-225";
    RECORDS_LAG_MAX = Gauge "kafka_consumer_fetch_manager_records_lag_max", Records, BY_PARTITION,
        "Largest lag of the partition that was observed within the window.",
        "Java `records-lag-max`, KIP-92, KIP-225";
    RECORDS_LAG_AVG = Gauge "kafka_consumer_fetch_manager_records_lag_avg", Records, BY_PARTITION,
        "Mean of the lags of the partition that were observed within the window.",
        "Java `records-lag-avg`, KIP-92, KIP-225";
    RECORDS_LEAD = Gauge "kafka_consumer_fetch_manager_records_lead", Records, BY_PARTITION,
        "Records between the first offset that the broker still has and the consumer's position.",
        "Java `records-lead`, KIP-223";
    RECORDS_LEAD_MIN = Gauge "kafka_consumer_fetch_manager_records_lead_min", Records, BY_PARTITION,
        "Smallest lead of the partition that was observed within the window.",
        "Java `records-lead-min`, KIP-223";
    RECORDS_LEAD_AVG = Gauge "kafka_consumer_fetch_manager_records_lead_avg", Records, BY_PARTITION,
        "Mean of the leads of the partition that were observed within the window.",
        "Java `records-lead-avg`, KIP-223";
    RECORDS_CONSUMED = Counter "kafka_consumer_fetch_manager_records_consumed_total", Records, BY_TOPIC,
        "Records that were handed to handlers, a repeated one once.",
        "Java `records-consumed-total`";
    BYTES_CONSUMED = Counter "kafka_consumer_fetch_manager_bytes_consumed_total", Bytes, BY_TOPIC,
        "Bytes of the records that were handed to handlers, as they lie in the uncompressed log.",
        "Java `bytes-consumed-total`";
    ASSIGNED_PARTITIONS = Gauge "kafka_consumer_coordinator_assigned_partitions", Partitions, BY_CLIENT,
        "Partitions that this process owns.",
        "Java `assigned-partitions`";
    REBALANCES = Counter "kafka_consumer_coordinator_rebalance_total", Events, BY_CLIENT,
        "How often the group gave this process an assignment.",
        "Java `rebalance-total`";
    COMMITTED_LAG = Gauge "keepup_committed_lag", Records, BY_PARTITION,
        "Records between the group's committed offset and the partition's end offset.",
        "`LAG` of `kafka-consumer-groups`";
    TIME_LAG = Gauge "keepup_time_lag_seconds", Seconds, BY_PARTITION,
        "Age of the oldest record that is not completed; 0 when caught up.",
        "keepup";
    IN_FLIGHT = Gauge "keepup_in_flight_records", Records, BY_PARTITION,
        "Records that were handed over and are not completed, one that waits for a retry included.",
        "keepup";
    END_OFFSET_AGE = Gauge "keepup_end_offset_age_seconds", Seconds, BY_PARTITION,
        "How long ago a broker told the end offset that the lag is measured against.",
        "keepup";
    HANDLER_SECONDS = Histogram "keepup_handler_seconds", Seconds, BY_OUTCOME,
        "How long handlers took for a record.",
        "keepup";
    RECORDS = Counter "keepup_records_total", Records, BY_OUTCOME,
        "Handler calls by what the handlers said of the record.",
        "keepup";
    COMMITS = Counter "keepup_commits_total", Events, BY_RESULT,
        "Commits by how they ended.",
        "keepup";
    COMMIT_METADATA = Counter "keepup_commit_metadata_total", Events, BY_RESULT,
        "Metadata of commits by what became of it: restored, foreign, broken, cut to what fits, or refused by the broker.",
        "keepup";
    WORKERS = Gauge "keepup_workers", Workers, BY_CLIENT,
        "Workers that run.",
        "keepup";
    RECOMMENDED_WORKERS = Gauge "keepup_recommended_workers", Workers, BY_CLIENT,
        "Workers that the load of this process wants.",
        "keepup";
    PARTITIONS_NEEDED = Gauge "keepup_partitions_needed", Partitions, BY_CLIENT,
        "Partitions that this process would have to own for its load, where it owns too few; in partition order.",
        "keepup";
    CATCH_UP = Gauge "keepup_catch_up_seconds", Seconds, BY_CLIENT,
        "How long until the lag is gone, where all goes on as in the last minute.",
        "keepup";
    WORKERS_BUSY = Gauge "keepup_workers_busy_ratio", Share, BY_CLIENT,
        "Share of their time that workers spent in handlers in the last minute.",
        "keepup";
    WORKER_UP = Gauge "keepup_worker_up", Flag, BY_WORKER,
        "1 while the worker runs, 0 while it starts, waits to be started again, or has ended.",
        "keepup";
    WORKER_RESTARTS = Counter "keepup_worker_restarts_total", Events, BY_WORKER,
        "How often a worker of this number was replaced.",
        "keepup";
    MEMBER_STATE = Gauge "keepup_member_state", Flag, BY_STATE,
        "1 for the state in which the process is in its group, 0 for the others.",
        "keepup";
    STOP_INFO = Gauge "keepup_stop_info", Flag, BY_REASON,
        "1 from the cause of a stop on; the label tells the cause. Without a series the run goes on.",
        "keepup";
    REPORTER_SUCCESS = Gauge "keepup_reporter_last_success_timestamp_seconds", Timestamp, BY_CLIENT,
        "When the values shown here were taken, in seconds since 1970.",
        "keepup";
    REPORTER_ERRORS = Counter "keepup_reporter_errors_total", Events, BY_REASON,
        "What kept the lag reporter from an exact answer, by reason.",
        "keepup";
    CONNECTION_ERRORS = Counter "keepup_connection_errors_total", Events, BY_REASON,
        "Connections to brokers that failed and were made anew, by reason; the member's own not included.",
        "keepup";
    BUILD_INFO = Gauge "keepup_build_info", Flag, BY_BUILD,
        "Always 1; the labels tell the versions and the isolation level, which says what an end offset is.",
        "keepup";
}

/// True where a family of that name would have series with the names of ours.
#[cfg(feature = "http")]
pub(crate) fn is_ours(family: &str) -> bool {
    ALL.iter().any(|metric| {
        family.strip_prefix(metric.name).is_some_and(|rest| {
            let of_a_histogram = ["_bucket", "_sum", "_count"].contains(&rest);
            rest.is_empty() || (metric.kind == Kind::Histogram && of_a_histogram)
        })
    })
}

/// What is wrong with the labels that a program gives to every metric.
pub(crate) fn label_problems(labels: &BTreeMap<String, String>) -> Vec<Problem> {
    labels
        .keys()
        .filter_map(|name| label_rule(name).map(|(rule, remedy)| (name, rule, remedy)))
        .map(|(name, rule, remedy)| Problem::new("label", format!("{name:?}"), rule, remedy))
        .collect()
}

/// The rule that a label's name breaks, and what to do.
fn label_rule(name: &str) -> Option<(&'static str, &'static str)> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts_right = name
        .bytes()
        .next()
        .is_some_and(|first| !first.is_ascii_digit());
    if !starts_right || !name.bytes().all(is_word) {
        return Some((
            "Prometheus's label names have letters, digits and underscores, and do not begin with \
             a digit",
            "correct the name",
        ));
    }
    if name.starts_with("__") {
        return Some((
            "label names that begin with two underscores are Prometheus's own",
            "give another name",
        ));
    }
    let is_taken =
        [LE, "quantile"].contains(&name) || ALL.iter().any(|metric| metric.labels.contains(&name));
    is_taken.then_some((
        "the metrics have a label of that name already, and a series has each label once",
        "give another name",
    ))
}

#[cfg(test)]
mod tests;
