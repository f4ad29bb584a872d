//! Snapshots as JSON: the document of `/lag`, which scripts read, and that of
//! `/history`, which the page reads.
//!
//! Names and order of the fields of `/lag` are frozen by the test below. An
//! unknown number is `null`.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::lag::history::Since;
use crate::lag::{LagSnapshot, PartitionLag};
use crate::record::TopicPartition;

/// The document of `/lag`.
pub(crate) fn lag(snapshot: &LagSnapshot, pid: u32) -> serde_json::Result<Vec<u8>> {
    let workers = snapshot.workers.iter().map(|worker| WorkerEntry {
        worker: worker.worker,
        // Threads are in this process, and so is what starts a process.
        pid: worker.pid.unwrap_or(pid),
        state: worker.state.name(),
        partitions: worker.partitions,
        restarts: worker.restarts,
    });
    serde_json::to_vec(&LagDocument {
        group: &snapshot.group,
        model: snapshot.model.name(),
        total_lag: snapshot.total_lag(),
        recommended_workers: snapshot.advice.workers,
        partitions_needed: snapshot.advice.partitions_needed,
        catch_up_s: snapshot.advice.catch_up.map(|time| time.as_secs()),
        busy: snapshot.advice.busy,
        workers: workers.collect(),
        partitions: snapshot.partitions.iter().map(partition).collect(),
    })
}

#[derive(Serialize)]
struct LagDocument<'a> {
    group: &'a str,
    model: &'static str,
    total_lag: Option<u64>,
    recommended_workers: Option<usize>,
    partitions_needed: Option<usize>,
    catch_up_s: Option<u64>,
    busy: Option<f64>,
    workers: Vec<WorkerEntry>,
    partitions: Vec<PartitionEntry<'a>>,
}

#[derive(Serialize)]
struct WorkerEntry {
    worker: usize,
    pid: u32,
    state: &'static str,
    partitions: usize,
    restarts: u32,
}

#[derive(Serialize)]
struct PartitionEntry<'a> {
    topic: &'a str,
    partition: i32,
    worker: Option<usize>,
    position: Option<i64>,
    committed: Option<i64>,
    end_offset: Option<i64>,
    #[serde(serialize_with = "millis")]
    end_offset_age_ms: Option<Duration>,
    records_lag: Option<u64>,
    records_lag_max: Option<u64>,
    records_lag_avg: Option<f64>,
    committed_lag: Option<u64>,
    in_flight: u64,
    #[serde(serialize_with = "millis")]
    time_lag_ms: Option<Duration>,
}

fn partition(lag: &PartitionLag) -> PartitionEntry<'_> {
    PartitionEntry {
        topic: lag.partition.topic(),
        partition: lag.partition.partition(),
        worker: lag.worker,
        position: lag.position,
        committed: lag.committed,
        end_offset: lag.end_offset,
        end_offset_age_ms: lag.end_offset_age,
        records_lag: lag.records_lag,
        records_lag_max: lag.records_lag_max,
        records_lag_avg: lag.records_lag_avg,
        committed_lag: lag.committed_lag,
        in_flight: lag.in_flight,
        time_lag_ms: lag.time_lag,
    }
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference")]
fn millis<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration
        .map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
        .serialize(serializer)
}

/// The document of `/history`.
pub(crate) fn history(since: &Since, snapshot: &LagSnapshot) -> serde_json::Result<Vec<u8>> {
    let curves = since.curves.iter().map(|(partition, records_lag)| Curve {
        topic: partition.topic(),
        partition: TopicPartition::partition(partition),
        records_lag,
    });
    serde_json::to_vec(&HistoryDocument {
        first: since.first,
        began_at_ms: since.began_at_ms,
        taken_at_ms: &since.taken_at_ms,
        total_lag: &since.total,
        rebalanced: &since.rebalanced,
        partitions: curves.collect(),
        not_live: &snapshot.health.not_live,
        not_ready: snapshot.health.not_ready.as_deref(),
    })
}

#[derive(Serialize)]
struct HistoryDocument<'a> {
    first: u64,
    began_at_ms: i64,
    taken_at_ms: &'a [i64],
    total_lag: &'a [Option<u64>],
    rebalanced: &'a [u64],
    partitions: Vec<Curve<'a>>,
    /// Here too, because a browser reports every 503 of `/health/ready` as an
    /// error of the page.
    not_live: &'a [String],
    not_ready: Option<&'a str>,
}

#[derive(Serialize)]
struct Curve<'a> {
    topic: &'a str,
    partition: i32,
    records_lag: &'a [Option<u64>],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::{Advice, WorkerState, WorkerStatus, history};

    fn snapshot() -> LagSnapshot {
        LagSnapshot {
            group: "billing".into(),
            taken_at_ms: 1_700_000_000_000,
            ..LagSnapshot::default()
        }
    }

    fn unknown(topic: &str, number: i32) -> PartitionLag {
        PartitionLag::unknown(TopicPartition::new(topic, number))
    }

    fn worker(worker: usize, state: WorkerState, partitions: usize, restarts: u32) -> WorkerStatus {
        WorkerStatus {
            worker,
            pid: None,
            state,
            partitions,
            restarts,
        }
    }

    #[test]
    fn the_document_of_lag_is_as_scripts_know_it() {
        let mut known = unknown("orders", 3);
        known.records_lag = Some(100);
        known.worker = Some(0);
        known.last_worker = Some(0);
        known.position = Some(5_000);
        known.watermark = Some(4_995);
        known.committed = Some(4_990);
        known.end_offset = Some(5_100);
        known.end_offset_age = Some(Duration::from_micros(40_900));
        known.records_lag_max = Some(400);
        known.records_lag_avg = Some(130.5);
        known.committed_lag = Some(110);
        known.in_flight = 10;
        known.time_lag = Some(Duration::from_millis(1_500));
        let snapshot = LagSnapshot {
            workers: vec![
                worker(0, WorkerState::Running, 1, 2),
                worker(1, WorkerState::Restarting, 0, 0),
            ],
            advice: Advice {
                workers: Some(4),
                partitions_needed: Some(6),
                catch_up: Some(Duration::from_millis(61_900)),
                busy: Some(0.75),
            },
            partitions: vec![known, unknown("quote\"<b>", 0)],
            ..self::snapshot()
        };
        let text = String::from_utf8(lag(&snapshot, 4_711).expect("it is written")).expect("UTF-8");
        assert_eq!(
            text,
            concat!(
                r#"{"group":"billing","model":"threads","total_lag":null,"#,
                r#""recommended_workers":4,"partitions_needed":6,"catch_up_s":61,"busy":0.75,"#,
                r#""workers":[{"worker":0,"pid":4711,"state":"running","partitions":1,"restarts":2},"#,
                r#"{"worker":1,"pid":4711,"state":"restarting","partitions":0,"restarts":0}],"#,
                r#""partitions":[{"topic":"orders","partition":3,"worker":0,"position":5000,"#,
                r#""committed":4990,"end_offset":5100,"end_offset_age_ms":40,"records_lag":100,"#,
                r#""records_lag_max":400,"records_lag_avg":130.5,"committed_lag":110,"#,
                r#""in_flight":10,"time_lag_ms":1500},"#,
                r#"{"topic":"quote\"<b>","partition":0,"worker":null,"position":null,"#,
                r#""committed":null,"end_offset":null,"end_offset_age_ms":null,"#,
                r#""records_lag":null,"records_lag_max":null,"records_lag_avg":null,"#,
                r#""committed_lag":null,"in_flight":0,"time_lag_ms":null}]}"#,
            )
        );
    }

    #[test]
    fn before_anything_is_known_there_is_no_total() {
        let text = lag(&snapshot(), 1).expect("it is written");
        assert_eq!(
            String::from_utf8(text).expect("UTF-8"),
            concat!(
                r#"{"group":"billing","model":"threads","total_lag":null,"#,
                r#""recommended_workers":null,"partitions_needed":null,"catch_up_s":null,"#,
                r#""busy":null,"workers":[],"partitions":[]}"#,
            )
        );
    }

    #[test]
    fn the_document_of_the_history_has_the_curves_and_the_health() {
        let mut past = history::History::default();
        let mut snapshot = LagSnapshot {
            rebalances: 1,
            partitions: vec![
                PartitionLag {
                    records_lag: Some(7),
                    ..unknown("orders", 3)
                },
                unknown("orders", 4),
            ],
            ..self::snapshot()
        };
        snapshot.health.not_live = vec!["stuck".to_owned()];
        past.push(&snapshot);
        let text = super::history(&past.since(None), &snapshot).expect("it is written");
        assert_eq!(
            String::from_utf8(text).expect("UTF-8"),
            concat!(
                r#"{"first":0,"began_at_ms":1700000000000,"taken_at_ms":[1700000000000],"#,
                r#""total_lag":[null],"rebalanced":[0],"#,
                r#""partitions":[{"topic":"orders","partition":3,"records_lag":[7]}],"#,
                r#""not_live":["stuck"],"not_ready":null}"#,
            )
        );
    }
}
