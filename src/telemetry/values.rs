//! Which value of a snapshot each metric shows.
//!
//! The text of `/metrics` and a program's own recorder are filled from the same
//! tables, so that they cannot disagree.

use std::sync::OnceLock;

use super::names::{self, Metric};
use crate::kafka::version::librdkafka;
use crate::lag::{LagSnapshot, MemberState, PartitionLag, TopicTotals, WorkerStatus};

/// A gauge or counter, and where its value is in what it describes.
type Value<T> = (Metric, fn(&T) -> Option<f64>);

/// A counter, and where its count is in what it describes.
type Total<T> = (Metric, fn(&T) -> u64);

/// Of every partition.
pub(crate) const OF_PARTITION: [Value<PartitionLag>; 10] = [
    (names::RECORDS_LAG, |partition| count(partition.records_lag)),
    (names::RECORDS_LAG_MAX, |partition| {
        count(partition.records_lag_max)
    }),
    (names::RECORDS_LAG_AVG, |partition| {
        partition.records_lag_avg
    }),
    (names::RECORDS_LEAD, |partition| {
        count(partition.records_lead)
    }),
    (names::RECORDS_LEAD_MIN, |partition| {
        count(partition.records_lead_min)
    }),
    (names::RECORDS_LEAD_AVG, |partition| {
        partition.records_lead_avg
    }),
    (names::COMMITTED_LAG, |partition| {
        count(partition.committed_lag)
    }),
    (names::TIME_LAG, |partition| {
        partition.time_lag.map(|lag| lag.as_secs_f64())
    }),
    (names::IN_FLIGHT, |partition| {
        Some(as_float(partition.in_flight))
    }),
    (names::END_OFFSET_AGE, |partition| {
        partition.end_offset_age.map(|age| age.as_secs_f64())
    }),
];

/// Of every topic: counters.
pub(crate) const OF_TOPIC: [Total<TopicTotals>; 2] = [
    (names::RECORDS_CONSUMED, |topic| topic.records),
    (names::BYTES_CONSUMED, |topic| topic.bytes),
];

/// Of the process: gauges.
pub(crate) const OF_CLIENT: [Value<LagSnapshot>; 7] = [
    (names::ASSIGNED_PARTITIONS, |snapshot| {
        Some(as_float(snapshot.partitions.len() as u64))
    }),
    (names::WORKERS, |snapshot| {
        let up = snapshot
            .workers
            .iter()
            .filter(|worker| worker.state.is_up());
        Some(as_float(up.count() as u64))
    }),
    (names::RECOMMENDED_WORKERS, |snapshot| {
        count(snapshot.advice.workers.map(|workers| workers as u64))
    }),
    (names::PARTITIONS_NEEDED, |snapshot| {
        let needed = snapshot.advice.partitions_needed;
        count(needed.map(|partitions| partitions as u64))
    }),
    (names::CATCH_UP, |snapshot| {
        snapshot.advice.catch_up.map(|time| time.as_secs_f64())
    }),
    (names::WORKERS_BUSY, |snapshot| snapshot.advice.busy),
    (names::REPORTER_SUCCESS, |snapshot| {
        let taken_at = u64::try_from(snapshot.taken_at_ms).unwrap_or(0);
        // Before the first tick there was no success.
        (taken_at > 0).then(|| as_float(taken_at) / 1_000.0)
    }),
];

/// Of every worker: whether it runs.
pub(crate) const WORKER_UP: Value<WorkerStatus> = (names::WORKER_UP, |worker| {
    Some(f64::from(u8::from(worker.state.is_up())))
});

/// Of every worker: a counter.
pub(crate) const WORKER_RESTARTS: Total<WorkerStatus> =
    (names::WORKER_RESTARTS, |worker| u64::from(worker.restarts));

/// Of the process: 1 for the state that it is in.
pub(crate) fn is_in(snapshot: &LagSnapshot, state: MemberState) -> f64 {
    f64::from(u8::from(snapshot.member == state))
}

/// A counter of the process, its further label with the value, and where its
/// count is.
pub(crate) type ClientCounter = (
    Metric,
    Option<(&'static str, &'static str)>,
    fn(&LagSnapshot) -> u64,
);

/// Of the process: counters, those of one metric together.
pub(crate) const COUNTERS_OF_CLIENT: [ClientCounter; 21] = [
    (names::REBALANCES, None, |snapshot| snapshot.rebalances),
    (names::COMMITS, Some((names::RESULT, "ok")), |snapshot| {
        snapshot.commits_ok
    }),
    (
        names::COMMITS,
        Some((names::RESULT, "retried")),
        |snapshot| snapshot.commits_retried,
    ),
    (
        names::COMMITS,
        Some((names::RESULT, "refused")),
        |snapshot| snapshot.commits_refused,
    ),
    (
        names::COMMITS,
        Some((names::RESULT, "failed")),
        |snapshot| snapshot.commits_failed,
    ),
    (
        names::COMMIT_METADATA,
        Some((names::RESULT, "restored")),
        |snapshot| snapshot.commit_notes.restored,
    ),
    (
        names::COMMIT_METADATA,
        Some((names::RESULT, "foreign")),
        |snapshot| snapshot.commit_notes.foreign,
    ),
    (
        names::COMMIT_METADATA,
        Some((names::RESULT, "broken")),
        |snapshot| snapshot.commit_notes.broken,
    ),
    (
        names::COMMIT_METADATA,
        Some((names::RESULT, "cut")),
        |snapshot| snapshot.commit_notes.cut,
    ),
    (
        names::COMMIT_METADATA,
        Some((names::RESULT, "refused")),
        |snapshot| snapshot.commit_notes.refused,
    ),
    (
        names::REPORTER_ERRORS,
        Some((names::REASON, "end-offsets")),
        |snapshot| snapshot.end_offset_errors,
    ),
    (
        names::REPORTER_ERRORS,
        Some((names::REASON, "clamped")),
        |snapshot| snapshot.clamped,
    ),
    (
        names::REPORTER_ERRORS,
        Some((names::REASON, "member-stalled")),
        |snapshot| snapshot.member_stalls,
    ),
    (
        names::REPORTER_ERRORS,
        Some((names::REASON, "failed")),
        |snapshot| snapshot.reporter_failures,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "resolve")),
        |snapshot| snapshot.connection_errors.resolve,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "connect")),
        |snapshot| snapshot.connection_errors.connect,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "timed-out")),
        |snapshot| snapshot.connection_errors.timed_out,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "closed")),
        |snapshot| snapshot.connection_errors.closed,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "wire")),
        |snapshot| snapshot.connection_errors.wire,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "tls")),
        |snapshot| snapshot.connection_errors.tls,
    ),
    (
        names::CONNECTION_ERRORS,
        Some((names::REASON, "authentication")),
        |snapshot| snapshot.connection_errors.authentication,
    ),
];

/// The worker that a partition's series name: the last one while there is none,
/// so that the series go on.
pub(crate) fn worker_of(partition: &PartitionLag) -> Option<usize> {
    partition.worker.or(partition.last_worker)
}

/// The labels that tell the versions, and what an end offset is here.
pub(crate) fn build(snapshot: &LagSnapshot) -> [(&'static str, &'static str); 3] {
    static LIBRDKAFKA: OnceLock<String> = OnceLock::new();
    [
        (names::VERSION, env!("CARGO_PKG_VERSION")),
        (names::LIBRDKAFKA, LIBRDKAFKA.get_or_init(librdkafka)),
        (names::ISOLATION, snapshot.isolation.name()),
    ]
}

/// A count as metrics have it. Beyond 2^53 it is rounded, as in every
/// Prometheus.
#[expect(
    clippy::cast_precision_loss,
    reason = "metrics are floats wherever they go"
)]
pub(crate) fn as_float(count: u64) -> f64 {
    count as f64
}

fn count(records: Option<u64>) -> Option<f64> {
    records.map(as_float)
}
