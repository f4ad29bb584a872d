//! The reporter's questions: where do partitions end?
//!
//! Asked over connections of the reporter's own, because a question behind a
//! fetch that waits for records would wait as long, and with short deadlines,
//! because a second later it is asked again anyway.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::Session;
use crate::clock::Clock;
use crate::kafka::ConnectionSettings;
use crate::kafka::cluster::Cluster;
use crate::kafka::connection::{ConnectionError, StopFlag};
use crate::kafka::errors::ErrorCode;
use crate::kafka::messages::{EARLIEST, LATEST, OffsetQuestion, OffsetsAnswer, OffsetsRequest};
use crate::lag::reporter::{EndFinder, ToldEnds};
use crate::record::TopicPartition;

/// Longest wait for a connection, and then for an answer, of one broker.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks the leaders of partitions.
pub(crate) struct KafkaEnds {
    session: Session,
    /// Of the snapshot that the connections belong to.
    generation: u64,
}

/// The partitions of one leader, by their place in the question.
type Asked = Vec<usize>;

impl KafkaEnds {
    /// `stop` interrupts every wait.
    ///
    /// # Errors
    ///
    /// Where a bootstrap address is not of the form `host:port`.
    pub(crate) fn new(
        settings: ConnectionSettings,
        clock: Clock,
        cluster: Cluster,
        stop: StopFlag,
    ) -> Result<Self, ConnectionError> {
        let settings = ConnectionSettings {
            request_timeout: PATIENCE,
            connect_timeout: PATIENCE,
            ..settings
        };
        Ok(Self {
            session: Session::new(settings, clock, cluster, stop)?,
            generation: 0,
        })
    }

    fn request(
        &self,
        partitions: &[TopicPartition],
        asked: &Asked,
        timestamp: i64,
    ) -> OffsetsRequest {
        let snapshot = self.session.cluster.snapshot();
        let mut topics: BTreeMap<Arc<str>, Vec<OffsetQuestion>> = BTreeMap::new();
        for partition in asked.iter().filter_map(|&index| partitions.get(index)) {
            let leader = snapshot.leader(partition.topic(), partition.partition());
            topics
                .entry(partition.shared_topic())
                .or_default()
                .push(OffsetQuestion {
                    partition: partition.partition(),
                    leader_epoch: leader.map_or(-1, |leader| leader.epoch),
                    timestamp,
                });
        }
        OffsetsRequest {
            isolation: self.session.settings.isolation,
            topics: topics.into_iter().collect(),
        }
    }
}

impl EndFinder for KafkaEnds {
    fn ask(
        &mut self,
        partitions: &[TopicPartition],
        with_log_start: bool,
        deadline: Instant,
        tell: &mut dyn FnMut(usize, ToldEnds),
    ) -> u64 {
        let snapshot = self.session.cluster.snapshot();
        if self.generation != snapshot.generation {
            self.generation = snapshot.generation;
            self.session.drop_connections_outside(&snapshot);
        }
        let mut failed = 0;
        let mut refresh = false;
        let mut by_leader: BTreeMap<i32, Asked> = BTreeMap::new();
        for (index, partition) in partitions.iter().enumerate() {
            match snapshot.leader(partition.topic(), partition.partition()) {
                Some(leader) => by_leader.entry(leader.id).or_default().push(index),
                // The lookup's thread asks for leaders by itself.
                None => failed += 1,
            }
        }
        for (leader, asked) in by_leader {
            let Some(address) = snapshot.broker(leader).cloned() else {
                failed += asked.len() as u64;
                continue;
            };
            // The log start first: with the end the answer counts as told.
            let starts = with_log_start
                .then(|| self.request(partitions, &asked, EARLIEST))
                .and_then(|request| self.session.ask(&address, &request).ok())
                .map(offsets)
                .unwrap_or_default();
            if self.session.stop.is_stopped() || self.session.clock.now() >= deadline {
                return failed;
            }
            let request = self.request(partitions, &asked, LATEST);
            let ends = match self.session.ask(&address, &request) {
                Ok(answer) => offsets(answer),
                Err(error) => {
                    tracing::debug!(%error, partitions = asked.len(), "no end offsets");
                    failed += asked.len() as u64;
                    refresh = true;
                    continue;
                }
            };
            for index in asked {
                let Some(partition) = partitions.get(index) else {
                    continue;
                };
                let key = (partition.shared_topic(), partition.partition());
                match ends.get(&key) {
                    Some(Ok(end_offset)) => tell(
                        index,
                        ToldEnds {
                            end_offset: *end_offset,
                            log_start: match starts.get(&key) {
                                Some(Ok(log_start)) => *log_start,
                                _ => -1,
                            },
                        },
                    ),
                    other => {
                        failed += 1;
                        refresh |= matches!(other, Some(Err(_)));
                    }
                }
            }
        }
        if refresh {
            self.session.cluster.request_refresh();
        }
        failed
    }
}

/// By topic and partition number: the offset, or why there is none.
fn offsets(answer: OffsetsAnswer) -> HashMap<(Arc<str>, i32), Result<i64, i16>> {
    let mut offsets = HashMap::new();
    for topic in answer.topics {
        for partition in topic.partitions {
            let offset = match ErrorCode::from_code(partition.error) {
                None if partition.offset >= 0 => Ok(partition.offset),
                _ => Err(partition.error),
            };
            offsets.insert((Arc::clone(&topic.name), partition.partition), offset);
        }
    }
    offsets
}
