//! `run --events json`: what happens, one JSON object per line.
//!
//! The vocabulary is that of Apache Kafka's `VerifiableConsumer`, so that its
//! checkers can read it: names of events in snake case, most fields in snake
//! case, the offsets of a range in camel case.

use std::sync::Arc;

use keepup::{Event, EventKind, TopicPartition};
use serde::Serialize;

use crate::output::Output;

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    timestamp: i64,
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    #[serde(flatten)]
    fields: Fields<'a>,
}

/// What a line says beside its name.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Fields<'a> {
    Nothing {},
    Partitions {
        partitions: Vec<Place<'a>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        local: bool,
    },
    Consumed {
        count: u64,
        partitions: Vec<Range<'a>>,
    },
    Committed {
        success: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
        offsets: Vec<Offset<'a>>,
    },
    Started {
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    Stopped {
        reason: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    Restarted {
        reason: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        restarts: u32,
    },
    Record {
        #[serde(flatten)]
        place: Place<'a>,
        offset: i64,
        attempt: u32,
        error: &'a str,
    },
    Reset {
        #[serde(flatten)]
        place: Place<'a>,
        from: i64,
        to: i64,
        policy: &'static str,
        reason: &'static str,
    },
    Shutdown {
        reason: &'static str,
        left_uncommitted: u64,
    },
}

#[derive(Debug, Serialize)]
struct Place<'a> {
    topic: &'a str,
    partition: i32,
}

#[derive(Debug, Serialize)]
struct Range<'a> {
    #[serde(flatten)]
    place: Place<'a>,
    count: u64,
    #[serde(rename = "minOffset")]
    min_offset: i64,
    #[serde(rename = "maxOffset")]
    max_offset: i64,
}

#[derive(Debug, Serialize)]
struct Offset<'a> {
    #[serde(flatten)]
    place: Place<'a>,
    offset: i64,
}

impl<'a> From<&'a TopicPartition> for Place<'a> {
    fn from(partition: &'a TopicPartition) -> Self {
        Self {
            topic: partition.topic(),
            partition: partition.partition(),
        }
    }
}

fn places(partitions: &[TopicPartition]) -> Vec<Place<'_>> {
    partitions.iter().map(Place::from).collect()
}

/// What an event says beside its name; `None` for one that is not part of the
/// vocabulary.
fn fields(kind: &EventKind) -> Option<Fields<'_>> {
    Some(match kind {
        EventKind::StartupComplete => Fields::Nothing {},
        EventKind::WorkerStarted { pid } => Fields::Started { pid: *pid },
        EventKind::PartitionsAssigned { partitions, local }
        | EventKind::PartitionsRevoked { partitions, local } => Fields::Partitions {
            partitions: places(partitions),
            local: *local,
        },
        EventKind::PartitionsLost { partitions } => Fields::Partitions {
            partitions: places(partitions),
            local: false,
        },
        EventKind::RecordsConsumed { partitions } => Fields::Consumed {
            count: partitions.iter().map(|range| range.count).sum(),
            partitions: partitions
                .iter()
                .map(|range| Range {
                    place: Place::from(&range.partition),
                    count: range.count,
                    min_offset: range.min_offset,
                    max_offset: range.max_offset,
                })
                .collect(),
        },
        EventKind::OffsetsCommitted { offsets, error } => Fields::Committed {
            success: error.is_none(),
            error: error.as_deref(),
            offsets: offsets
                .iter()
                .map(|(partition, offset)| Offset {
                    place: Place::from(partition),
                    offset: *offset,
                })
                .collect(),
        },
        EventKind::WorkerStopped { reason, pid } => Fields::Stopped {
            reason: reason.name(),
            pid: *pid,
        },
        EventKind::WorkerRestarted {
            reason,
            restarts,
            pid,
        } => Fields::Restarted {
            reason: reason.name(),
            pid: *pid,
            restarts: *restarts,
        },
        EventKind::RecordRetried {
            partition,
            offset,
            attempt,
            error,
        }
        | EventKind::RecordDeadLettered {
            partition,
            offset,
            attempt,
            error,
        }
        | EventKind::RecordSkipped {
            partition,
            offset,
            attempt,
            error,
        } => Fields::Record {
            place: Place::from(partition),
            offset: *offset,
            attempt: *attempt,
            error,
        },
        EventKind::PositionReset {
            partition,
            from,
            to,
            policy,
            reason,
        } => Fields::Reset {
            place: Place::from(partition),
            from: *from,
            to: *to,
            policy,
            reason: reason.name(),
        },
        EventKind::ShutdownComplete {
            reason,
            left_uncommitted,
        } => Fields::Shutdown {
            reason: reason.name(),
            left_uncommitted: *left_uncommitted,
        },
        // Warnings are for people: they go to the log. What a later version of
        // the library adds is not in the vocabulary either.
        _ => return None,
    })
}

/// An observer that prints every event of the vocabulary.
pub(crate) fn printer(output: Arc<Output>) -> impl FnMut(&Event) + Send + 'static {
    let mut line = Vec::new();
    move |event| {
        let Some(fields) = fields(&event.kind) else {
            return;
        };
        append(
            &mut line,
            &Line {
                timestamp: event.timestamp_ms,
                name: event.kind.name(),
                worker: event.worker,
                fields,
            },
        );
        // Handlers see that stdout is closed and stop the run.
        let _ = output.write(&line);
        line.clear();
    }
}

fn append(buffer: &mut Vec<u8>, line: &Line<'_>) {
    // Writing these types to memory cannot fail: no map has a key that is not
    // a string.
    if serde_json::to_writer(&mut *buffer, line).is_ok() {
        buffer.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keepup::{ResetReason, StopReason, WorkerStop};

    fn printed(worker: Option<usize>, kind: &EventKind) -> String {
        let mut buffer = Vec::new();
        append(
            &mut buffer,
            &Line {
                timestamp: 1_700_000_000_000,
                name: kind.name(),
                worker,
                fields: fields(kind).unwrap(),
            },
        );
        String::from_utf8(buffer).unwrap()
    }

    /// Something of each kind.
    fn all() -> Vec<(Option<usize>, EventKind)> {
        let orders = |partition| TopicPartition::new("orders", partition);
        vec![
            (None, EventKind::StartupComplete),
            (Some(0), EventKind::WorkerStarted { pid: None }),
            (Some(1), EventKind::WorkerStarted { pid: Some(4711) }),
            (
                Some(0),
                EventKind::PartitionsAssigned {
                    partitions: vec![orders(0), orders(1)],
                    local: false,
                },
            ),
            (
                Some(1),
                EventKind::PartitionsRevoked {
                    partitions: vec![orders(1)],
                    local: true,
                },
            ),
            (
                Some(1),
                EventKind::PartitionsLost {
                    partitions: vec![orders(2)],
                },
            ),
            (
                None,
                EventKind::OffsetsCommitted {
                    offsets: vec![(orders(0), 42)],
                    error: None,
                },
            ),
            (
                None,
                EventKind::OffsetsCommitted {
                    offsets: vec![(orders(0), 43)],
                    error: Some("Broker: Unknown member".into()),
                },
            ),
            (
                Some(0),
                EventKind::RecordRetried {
                    partition: orders(0),
                    offset: 7,
                    attempt: 1,
                    error: "no \"space\" left".into(),
                },
            ),
            (
                Some(0),
                EventKind::RecordDeadLettered {
                    partition: orders(0),
                    offset: 7,
                    attempt: 10,
                    error: "no such customer".into(),
                },
            ),
            (
                Some(0),
                EventKind::RecordSkipped {
                    partition: orders(0),
                    offset: 8,
                    attempt: 2,
                    error: "not ours".into(),
                },
            ),
            (
                None,
                EventKind::PositionReset {
                    partition: orders(0),
                    from: 5,
                    to: 100,
                    policy: "earliest",
                    reason: ResetReason::BelowLogStart,
                },
            ),
            (
                Some(1),
                EventKind::WorkerRestarted {
                    reason: WorkerStop::HandlerPanicked("index out of bounds".into()),
                    restarts: 1,
                    pid: None,
                },
            ),
            (
                Some(1),
                EventKind::WorkerStopped {
                    reason: WorkerStop::ScaledDown,
                    pid: Some(4711),
                },
            ),
            (
                None,
                EventKind::ShutdownComplete {
                    reason: StopReason::Signal,
                    left_uncommitted: 0,
                },
            ),
        ]
    }

    #[test]
    fn the_vocabulary_is_frozen() {
        let lines: String = all()
            .iter()
            .map(|(worker, kind)| printed(*worker, kind))
            .collect();
        insta::assert_snapshot!("events", lines);
    }

    #[test]
    fn a_range_of_records_has_its_offsets_in_camel_case() {
        let line = Line {
            timestamp: 1,
            name: "records_consumed",
            worker: Some(0),
            fields: Fields::Consumed {
                count: 3,
                partitions: vec![Range {
                    place: Place {
                        topic: "orders",
                        partition: 4,
                    },
                    count: 3,
                    min_offset: 10,
                    max_offset: 12,
                }],
            },
        };
        let mut buffer = Vec::new();
        append(&mut buffer, &line);
        assert_eq!(
            String::from_utf8(buffer).unwrap(),
            "{\"timestamp\":1,\"name\":\"records_consumed\",\"worker\":0,\"count\":3,\
             \"partitions\":[{\"topic\":\"orders\",\"partition\":4,\"count\":3,\
             \"minOffset\":10,\"maxOffset\":12}]}\n"
        );
    }

    #[test]
    fn warnings_are_not_events_of_the_vocabulary() {
        let warning = EventKind::Warning {
            message: "contact lost".into(),
        };
        assert!(fields(&warning).is_none());
    }
}
