//! Snapshots for tests.

use std::sync::Arc;
use std::time::Duration;

use crate::lag::{
    Advice, CommitNotes, ConnectionErrors, LagSnapshot, MemberState, OutcomeTotals, PartitionLag,
    TopicTotals, WorkerState, WorkerStatus,
};
use crate::record::TopicPartition;

/// Topic `topic` with so many partitions, all of them known, by two workers.
pub(crate) fn snapshot(topic: &str, partitions: i32) -> LagSnapshot {
    LagSnapshot {
        group: "billing".into(),
        client_id: "billing-1".into(),
        taken_at_ms: 1_700_000_000_250,
        partitions: (0..partitions).map(|of| partition(topic, of)).collect(),
        workers: vec![
            worker(0, WorkerState::Running),
            worker(1, WorkerState::Idle),
        ],
        topics: vec![totals(topic)],
        advice: Advice {
            workers: Some(3),
            partitions_needed: Some(5),
            catch_up: Some(Duration::from_secs(90)),
            busy: Some(0.75),
        },
        member: MemberState::Stopping,
        stop_reason: Some("signal"),
        rebalances: 3,
        commits_ok: 40,
        commits_retried: 2,
        commits_refused: 1,
        commit_notes: CommitNotes {
            restored: 2,
            ..CommitNotes::default()
        },
        connection_errors: ConnectionErrors {
            wire: 4,
            ..ConnectionErrors::default()
        },
        ..LagSnapshot::default()
    }
}

/// A partition with a lag of 100 + its number.
pub(crate) fn partition(topic: &str, number: i32) -> PartitionLag {
    let lag = 100 + u64::from(number.unsigned_abs());
    PartitionLag {
        partition: TopicPartition::new(topic, number),
        worker: Some(0),
        last_worker: Some(0),
        paused: false,
        position: Some(5_000),
        watermark: Some(4_990),
        committed: Some(4_990),
        end_offset: Some(5_100),
        end_offset_age: Some(Duration::from_millis(40)),
        log_start: Some(10),
        records_lag: Some(lag),
        records_lag_max: Some(400),
        records_lag_avg: Some(130.5),
        records_lead: Some(4_990),
        records_lead_min: Some(4_000),
        records_lead_avg: Some(4_500.25),
        committed_lag: Some(lag + 10),
        in_flight: 10,
        time_lag: Some(Duration::from_millis(1_500)),
        in_hand_for: Duration::ZERO,
    }
}

/// A worker that was replaced as often as its number says.
pub(crate) fn worker(number: u32, state: WorkerState) -> WorkerStatus {
    WorkerStatus {
        worker: number as usize,
        pid: None,
        state,
        partitions: 1,
        restarts: number,
    }
}

/// A topic with 12 records done, two of them slower than every bound, and one
/// discarded.
fn totals(topic: &str) -> TopicTotals {
    let mut seconds_counts = [0; OutcomeTotals::HANDLER_SECONDS.len() + 1];
    seconds_counts[4] = 10;
    seconds_counts[16] = 2;
    TopicTotals {
        topic: Arc::from(topic),
        records: 13,
        bytes: 1_300,
        outcomes: vec![
            OutcomeTotals {
                outcome: "done",
                records: 12,
                seconds_counts,
                seconds_sum: 800.008,
            },
            OutcomeTotals {
                outcome: "discarded",
                records: 1,
                seconds_counts: [0; OutcomeTotals::HANDLER_SECONDS.len() + 1],
                seconds_sum: 0.0,
            },
        ],
    }
}
