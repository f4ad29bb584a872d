//! From an answer about topics to the next snapshot of the cluster.
//!
//! Metadata answers are not all alike: a broker that has just started may not
//! know a topic, one that lags behind names yesterday's leader, a missing
//! permission looks like a missing topic. Taking each answer at its word would
//! make a topic of 60 partitions one of none for a moment, and whatever follows
//! the number of partitions would follow that. So what was known stays until an
//! answer describes the topic again, and the difference is told once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{BrokerAddress, ClusterSnapshot, PartitionState, TopicState};
use crate::kafka::errors::ErrorCode;
use crate::kafka::messages::{MetadataAnswer, MetadataTopic};

/// Kafka's code for a topic that a broker does not know.
pub(super) const UNKNOWN_TOPIC: i16 = 3;

/// What changed about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopicEvent {
    /// The topic has another number of partitions; `from` is 0 the first time.
    PartitionsChanged {
        topic: Arc<str>,
        from: usize,
        to: usize,
    },
    /// The topic was deleted and created again: nothing of the old one, its
    /// offsets included, means anything for the new one.
    Recreated { topic: Arc<str>, to: usize },
    /// The topic is not described any more (or not yet). What was known of it
    /// is kept. Told once per change of the error.
    Trouble { topic: Arc<str>, error: ErrorCode },
    /// The topic is described again.
    Recovered { topic: Arc<str> },
    /// The cluster says that the topic has fewer partitions than it had, which
    /// Kafka does not do. The larger number is kept. Told once per number.
    Shrunk {
        topic: Arc<str>,
        from: usize,
        to: usize,
    },
}

/// The snapshot after `answer`, which was asked for `wanted`, and what is new.
pub(super) fn merge(
    previous: &ClusterSnapshot,
    answer: &MetadataAnswer,
    wanted: &BTreeSet<Arc<str>>,
) -> (ClusterSnapshot, Vec<TopicEvent>) {
    let mut next = ClusterSnapshot {
        generation: previous.generation,
        brokers: brokers(previous, answer),
        topics: std::collections::HashMap::with_capacity(wanted.len()),
    };
    let mut events = Vec::new();
    let answered: BTreeMap<&str, &MetadataTopic> = answer
        .topics
        .iter()
        .map(|topic| (&*topic.name, topic))
        .collect();
    for name in wanted {
        let before = previous.topics.get(name);
        let described = answered.get(&**name).copied();
        let after = match described {
            Some(topic) if topic.error == 0 && !topic.partitions.is_empty() => {
                described_topic(name, before, topic, &mut events)
            }
            _ => {
                // A topic that is left out, or has no partition, is unknown too.
                let error = described
                    .map(|topic| topic.error)
                    .filter(|&error| error != 0)
                    .unwrap_or(UNKNOWN_TOPIC);
                undescribed_topic(name, before, error, &mut events)
            }
        };
        next.topics.insert(Arc::clone(name), after);
    }
    (next, events)
}

fn brokers(previous: &ClusterSnapshot, answer: &MetadataAnswer) -> BTreeMap<i32, BrokerAddress> {
    let brokers: BTreeMap<i32, BrokerAddress> = answer
        .brokers
        .iter()
        .filter_map(|broker| {
            let port = u16::try_from(broker.port).ok()?;
            let host = Arc::clone(&broker.host);
            Some((broker.id, BrokerAddress { host, port }))
        })
        .collect();
    // A broker that knows of no broker, itself included, is starting up.
    if brokers.is_empty() {
        previous.brokers.clone()
    } else {
        brokers
    }
}

fn undescribed_topic(
    name: &Arc<str>,
    before: Option<&TopicState>,
    error: i16,
    events: &mut Vec<TopicEvent>,
) -> TopicState {
    if before.is_none_or(|before| before.error != error)
        && let Some(error) = ErrorCode::from_code(error)
    {
        events.push(TopicEvent::Trouble {
            topic: Arc::clone(name),
            error,
        });
    }
    TopicState {
        error,
        ..before.cloned().unwrap_or_default()
    }
}

fn described_topic(
    name: &Arc<str>,
    before: Option<&TopicState>,
    topic: &MetadataTopic,
    events: &mut Vec<TopicEvent>,
) -> TopicState {
    let mut partitions = partitions(topic);
    let count = partitions.len();
    let known = before.map_or(0, |before| before.partitions.len());
    // A topic that is another now has not recovered.
    if before.is_some_and(|before| before.error != 0 && !is_another(before, topic)) && known > 0 {
        events.push(TopicEvent::Recovered {
            topic: Arc::clone(name),
        });
    }
    let mut reported = count;
    match before {
        Some(before) if is_another(before, topic) => events.push(TopicEvent::Recreated {
            topic: Arc::clone(name),
            to: count,
        }),
        Some(before) => {
            keep_newer_leaders(before, topic, &mut partitions);
            if count < known {
                if before.reported != count {
                    events.push(TopicEvent::Shrunk {
                        topic: Arc::clone(name),
                        from: known,
                        to: count,
                    });
                }
                partitions.extend(&before.partitions[count..]);
                reported = count;
            } else if count > known {
                events.push(TopicEvent::PartitionsChanged {
                    topic: Arc::clone(name),
                    from: known,
                    to: count,
                });
            }
        }
        None => events.push(TopicEvent::PartitionsChanged {
            topic: Arc::clone(name),
            from: 0,
            to: count,
        }),
    }
    TopicState {
        id: topic.id,
        partitions,
        reported,
        error: 0,
    }
}

/// True where the topic of the answer has only the name in common with the one
/// known before.
fn is_another(before: &TopicState, topic: &MetadataTopic) -> bool {
    !before.id.is_nil() && !topic.id.is_nil() && before.id != topic.id
}

/// The partitions by number; numbers that the answer leaves out have no leader.
fn partitions(topic: &MetadataTopic) -> Vec<PartitionState> {
    let by_number: BTreeMap<usize, PartitionState> = topic
        .partitions
        .iter()
        .filter_map(|partition| {
            let number = usize::try_from(partition.partition).ok()?;
            let state = PartitionState {
                leader: partition.leader,
                error: partition.error,
            };
            // A number far beyond the count would reserve memory for nothing.
            (number < topic.partitions.len() * 2).then_some((number, state))
        })
        .collect();
    let count = by_number.last_key_value().map_or(0, |(last, _)| last + 1);
    (0..count)
        .map(|number| {
            by_number.get(&number).copied().unwrap_or(PartitionState {
                leader: None,
                error: UNKNOWN_TOPIC,
            })
        })
        .collect()
}

/// A broker that lags behind names a leader of an earlier epoch: the later one
/// stays. Only for the same incarnation of a topic, since the epochs of a new
/// one begin at 0.
fn keep_newer_leaders(
    before: &TopicState,
    topic: &MetadataTopic,
    partitions: &mut [PartitionState],
) {
    if topic.id.is_nil() || before.id != topic.id {
        return;
    }
    for (now, known) in partitions.iter_mut().zip(&before.partitions) {
        if let (Some(new), Some(old)) = (now.leader, known.leader)
            && new.epoch >= 0
            && new.epoch < old.epoch
        {
            *now = *known;
        }
    }
}

/// When metadata is to be asked for: at an interval, and sooner where somebody
/// asks, but ever more slowly while that brings nothing new.
#[derive(Debug)]
pub(super) struct Pacer {
    interval: Duration,
    last: Option<Instant>,
    /// Refreshes that were asked for and brought nothing new, in a row.
    fruitless: u32,
    failures: u32,
    wait: Duration,
}

const PACE: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};

impl Pacer {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            last: None,
            fruitless: 0,
            failures: 0,
            wait: Duration::ZERO,
        }
    }

    /// The moment of the next refresh; `asked` where somebody waits for it.
    /// `None` means: at once.
    pub(super) fn due(&self, asked: bool) -> Option<Instant> {
        let last = self.last?;
        let wait = if asked || self.failures > 0 {
            self.wait.min(self.interval)
        } else {
            self.interval
        };
        Some(last + wait)
    }

    /// Something is wanted that was not wanted before: waiting starts anew.
    pub(super) fn hurry(&mut self) {
        self.fruitless = 0;
        self.wait = Duration::ZERO;
    }

    /// A refresh succeeded.
    pub(super) fn succeeded(&mut self, now: Instant, asked: bool, changed: bool, random: f64) {
        self.failures = 0;
        self.fruitless = if asked && !changed {
            self.fruitless.saturating_add(1)
        } else {
            0
        };
        self.last = Some(now);
        self.wait = PACE.delay(self.fruitless.max(1), random);
    }

    /// A refresh failed. Returns true for the first failure in a row.
    pub(super) fn failed(&mut self, now: Instant, random: f64) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
        self.wait = PACE.delay(self.failures, random);
        self.failures == 1
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::Clock;
    use crate::kafka::messages::{Leader, MetadataBroker, MetadataPartition};

    const OLD: Uuid = Uuid::from_u128(1);
    const NEW: Uuid = Uuid::from_u128(2);

    fn topic(id: Uuid, error: i16, leaders: &[(i32, i32)]) -> MetadataAnswer {
        MetadataAnswer {
            brokers: vec![MetadataBroker {
                id: 1,
                host: Arc::from("one"),
                port: 9092,
            }],
            cluster_id: None,
            topics: vec![MetadataTopic {
                name: Arc::from("orders"),
                id,
                error,
                partitions: (0..)
                    .zip(leaders)
                    .map(|(partition, &(leader, epoch))| MetadataPartition {
                        partition,
                        error: 0,
                        leader: (leader >= 0).then_some(Leader { id: leader, epoch }),
                    })
                    .collect(),
            }],
        }
    }

    /// The snapshot and the events of each answer in turn.
    fn after(answers: &[MetadataAnswer]) -> (ClusterSnapshot, Vec<Vec<TopicEvent>>) {
        let wanted = BTreeSet::from([Arc::from("orders")]);
        let mut snapshot = ClusterSnapshot::default();
        let mut told = Vec::new();
        for answer in answers {
            let (next, events) = merge(&snapshot, answer, &wanted);
            snapshot = next;
            told.push(events);
        }
        (snapshot, told)
    }

    fn name() -> Arc<str> {
        Arc::from("orders")
    }

    #[test]
    fn partitions_that_are_added_are_told_with_both_numbers() {
        let (snapshot, told) = after(&[
            topic(OLD, 0, &[(1, 0)]),
            topic(OLD, 0, &[(1, 0)]),
            topic(OLD, 0, &[(1, 0), (1, 0), (-1, 0)]),
        ]);
        let changed = |from, to| TopicEvent::PartitionsChanged {
            topic: name(),
            from,
            to,
        };
        assert_eq!(told, [vec![changed(0, 1)], vec![], vec![changed(1, 3)]]);
        assert_eq!(snapshot.leader("orders", 2), None);
        assert_eq!(
            snapshot.leader("orders", 1),
            Some(Leader { id: 1, epoch: 0 })
        );
    }

    #[test]
    fn a_topic_that_is_not_described_keeps_its_last_known_state_and_is_told_once() {
        for silence in [
            topic(Uuid::nil(), 3, &[]),
            topic(OLD, 0, &[]),
            MetadataAnswer {
                topics: Vec::new(),
                ..topic(OLD, 0, &[])
            },
        ] {
            let (snapshot, told) = after(&[
                topic(OLD, 0, &[(1, 0), (1, 0)]),
                silence.clone(),
                silence.clone(),
                topic(OLD, 29, &[]),
                topic(OLD, 0, &[(1, 0), (1, 0)]),
            ]);
            let trouble = |code| TopicEvent::Trouble {
                topic: name(),
                error: ErrorCode::from_code(code).unwrap(),
            };
            assert_eq!(told[1..4], [vec![trouble(3)], vec![], vec![trouble(29)]]);
            assert_eq!(told[4], [TopicEvent::Recovered { topic: name() }]);
            assert_eq!(snapshot.topics["orders"].error, 0);

            let (snapshot, _) = after(&[topic(OLD, 0, &[(1, 0), (1, 0)]), silence]);
            let state = &snapshot.topics["orders"];
            assert_eq!((state.partitions.len(), state.error, state.id), (2, 3, OLD));
        }
    }

    #[test]
    fn a_topic_never_has_fewer_partitions_than_it_had() {
        let (snapshot, told) = after(&[
            topic(OLD, 0, &[(1, 0), (1, 0), (1, 4)]),
            topic(OLD, 0, &[(2, 1)]),
            topic(OLD, 0, &[(2, 1)]),
        ]);
        assert_eq!(
            told[1..],
            [
                vec![TopicEvent::Shrunk {
                    topic: name(),
                    from: 3,
                    to: 1
                }],
                vec![]
            ]
        );
        assert_eq!(
            snapshot.leader("orders", 0),
            Some(Leader { id: 2, epoch: 1 })
        );
        assert_eq!(
            snapshot.leader("orders", 2),
            Some(Leader { id: 1, epoch: 4 })
        );
    }

    #[test]
    fn a_topic_of_another_id_is_another_topic() {
        let (snapshot, told) = after(&[
            topic(OLD, 0, &[(1, 7), (1, 7)]),
            topic(OLD, 3, &[]),
            topic(NEW, 0, &[(2, 0)]),
        ]);
        assert_eq!(
            told[2],
            [TopicEvent::Recreated {
                topic: name(),
                to: 1
            }]
        );
        let state = &snapshot.topics["orders"];
        assert_eq!((state.id, state.partitions.len()), (NEW, 1));
        assert_eq!(
            snapshot.leader("orders", 0),
            Some(Leader { id: 2, epoch: 0 })
        );
    }

    #[test]
    fn a_broker_that_lags_behind_does_not_bring_an_earlier_leader_back() {
        let (snapshot, _) = after(&[topic(OLD, 0, &[(1, 7)]), topic(OLD, 0, &[(2, 6)])]);
        assert_eq!(
            snapshot.leader("orders", 0),
            Some(Leader { id: 1, epoch: 7 })
        );
        // Without ids a recreated topic cannot be told: the answer is believed.
        let (snapshot, _) = after(&[
            topic(Uuid::nil(), 0, &[(1, 7)]),
            topic(Uuid::nil(), 0, &[(2, 0)]),
        ]);
        assert_eq!(
            snapshot.leader("orders", 0),
            Some(Leader { id: 2, epoch: 0 })
        );
    }

    #[test]
    fn an_answer_without_brokers_leaves_those_known() {
        let mut silent = topic(OLD, 0, &[(1, 0)]);
        silent.brokers.clear();
        let (snapshot, _) = after(&[topic(OLD, 0, &[(1, 0)]), silent]);
        assert_eq!(snapshot.brokers.len(), 1);
    }

    #[test]
    fn a_partition_number_out_of_all_proportion_is_left_out() {
        let mut answer = topic(OLD, 0, &[(1, 0), (1, 0)]);
        answer.topics[0].partitions[1].partition = i32::MAX;
        let (snapshot, _) = after(&[answer]);
        assert_eq!(snapshot.topics["orders"].partitions.len(), 1);
    }

    #[test]
    fn asking_again_and_again_is_answered_ever_more_slowly_until_something_changes() {
        let interval = Duration::from_secs(15);
        let start = Clock::System.now();
        let mut pacer = Pacer::new(interval);
        assert_eq!(pacer.due(false), None, "the first time: at once");
        let waits: Vec<u128> = (0..7)
            .map(|_| {
                pacer.succeeded(start, true, false, 0.5);
                (pacer.due(true).unwrap() - start).as_millis()
            })
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(pacer.due(false), Some(start + interval), "nobody asks");
        pacer.succeeded(start, true, true, 0.5);
        assert_eq!(pacer.due(true), Some(start + Duration::from_millis(100)));
        pacer.hurry();
        assert_eq!(pacer.due(true), Some(start));
        assert!(pacer.failed(start, 0.5) && !pacer.failed(start, 0.5));
        assert_eq!(pacer.due(false), Some(start + Duration::from_millis(200)));
    }
}
