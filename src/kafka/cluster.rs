//! Who leads which partition, shared by all threads.
//!
//! Every worker has to know the leaders of its partitions, and every one of
//! them finds out when one of them moves. If each asked for itself, a moving
//! leader would cost as many questions as there are workers. So one thread
//! asks ([`super::lookup`]), all share the answer as a snapshot that is never
//! changed, only replaced, and whoever finds it wrong says so: requests to ask
//! again are merged into one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use super::messages::Endpoint;
pub(crate) use super::messages::Leader;
use crate::source::Waker;

/// Where a broker can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BrokerAddress {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What is known of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicState {
    /// Nil where the cluster did not tell.
    pub(crate) id: Uuid,
    /// By partition number. Never shrinks while the topic's id stays.
    pub(crate) partitions: Vec<PartitionState>,
    /// How many partitions the last description of the topic had.
    pub(crate) reported: usize,
    /// Kafka's error code where the last answer did not describe the topic; the
    /// rest is then what was known before. 0 for none.
    pub(crate) error: i16,
}

/// What is known of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionState {
    /// `None` while there is none.
    pub(crate) leader: Option<Leader>,
    /// Kafka's error code, 0 for none. A partition may have a leader and an
    /// error at once (a replica that is not available).
    pub(crate) error: i16,
}

/// The cluster as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterSnapshot {
    /// Raised with every change; 0 until the first answer.
    pub(crate) generation: u64,
    pub(crate) brokers: BTreeMap<i32, BrokerAddress>,
    pub(crate) topics: HashMap<Arc<str>, TopicState>,
}

impl ClusterSnapshot {
    /// The leader of a partition, if it has one that we know.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Option<Leader> {
        let state = self.topics.get(topic)?;
        let partition = usize::try_from(partition).ok()?;
        state.partitions.get(partition)?.leader
    }

    /// The address of a broker.
    pub(crate) fn broker(&self, id: i32) -> Option<&BrokerAddress> {
        self.brokers.get(&id)
    }

    /// The id of a topic; nil where it is not known.
    pub(crate) fn topic_id(&self, topic: &str) -> Uuid {
        self.topics.get(topic).map_or(Uuid::nil(), |state| state.id)
    }

    /// Takes over what a broker said of a partition that it does not lead any
    /// more, unless we know of a later leader, or of another topic of that name.
    fn apply(&mut self, told: &Move) {
        let address = told.endpoint.as_ref().and_then(|endpoint| {
            Some(BrokerAddress {
                host: Arc::clone(&endpoint.host),
                port: u16::try_from(endpoint.port).ok()?,
            })
        });
        let is_reachable = address.is_some() || self.brokers.contains_key(&told.leader.id);
        let Some(topic) = self.topics.get_mut(&told.topic) else {
            return;
        };
        let known = usize::try_from(told.partition)
            .ok()
            .and_then(|partition| topic.partitions.get_mut(partition));
        let Some(known) = known.filter(|_| is_reachable && topic.id == told.topic_id) else {
            return;
        };
        if known
            .leader
            .is_some_and(|leader| leader.epoch >= told.leader.epoch)
        {
            return;
        }
        known.leader = Some(told.leader);
        known.error = 0;
        if let Some(address) = address {
            self.brokers.entry(told.leader.id).or_insert(address);
        }
    }

    fn same_content(&self, other: &Self) -> bool {
        self.brokers == other.brokers && self.topics == other.topics
    }
}

/// A leader that a broker named which was asked in its place (KIP-951).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: Uuid,
    pub(crate) partition: i32,
    pub(crate) leader: Leader,
    /// Where it can be reached, where the broker told.
    pub(crate) endpoint: Option<Endpoint>,
}

/// The shared view of the cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    snapshot: RwLock<Arc<ClusterSnapshot>>,
    refresh: AtomicBool,
    /// Wakes the thread that asks; full where it has been woken already.
    bell: Sender<()>,
    wakers: Mutex<Wakers>,
}

#[derive(Default)]
struct Wakers {
    next: u64,
    by_token: BTreeMap<u64, Waker>,
}

/// Keeps a waker registered; dropping it ends that.
#[must_use = "dropping it ends the registration at once"]
pub(crate) struct Registration {
    shared: Arc<Shared>,
    token: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.wakers.lock().by_token.remove(&self.token);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// A cluster of which nothing is known, and the bell that rings when
    /// somebody asks for a refresh.
    pub(crate) fn new() -> (Self, Receiver<()>) {
        let (bell, rings) = bounded(1);
        let cluster = Self {
            shared: Arc::new(Shared {
                snapshot: RwLock::default(),
                refresh: AtomicBool::new(false),
                bell,
                wakers: Mutex::default(),
            }),
        };
        (cluster, rings)
    }

    /// What is known now.
    pub(crate) fn snapshot(&self) -> Arc<ClusterSnapshot> {
        Arc::clone(&self.shared.snapshot.read())
    }

    /// Says that the snapshot is out of date. Costs nothing when repeated.
    pub(crate) fn request_refresh(&self) {
        if !self.shared.refresh.swap(true, Ordering::AcqRel) {
            self.ring();
        }
    }

    /// Wakes the thread that asks, for whatever reason.
    pub(super) fn ring(&self) {
        // Full means that it has been rung and not been heard yet.
        let _ = self.shared.bell.try_send(());
    }

    /// True where a refresh was asked for since the last call.
    pub(crate) fn take_refresh(&self) -> bool {
        self.shared.refresh.swap(false, Ordering::AcqRel)
    }

    /// True where a refresh was asked for; leaves it asked for.
    pub(crate) fn wants_refresh(&self) -> bool {
        self.shared.refresh.load(Ordering::Acquire)
    }

    /// Wakes `waker` whenever a new snapshot is there, until the registration
    /// is dropped.
    pub(crate) fn on_change(&self, waker: Waker) -> Registration {
        let mut wakers = self.shared.wakers.lock();
        let token = wakers.next;
        wakers.next += 1;
        wakers.by_token.insert(token, waker);
        Registration {
            shared: Arc::clone(&self.shared),
            token,
        }
    }

    /// Takes over leaders that brokers named. Returns whether that was news.
    pub(crate) fn learn(&self, moves: &[Move]) -> bool {
        self.update(|current| {
            let mut next = current.clone();
            for told in moves {
                next.apply(told);
            }
            next
        })
    }

    /// Replaces the snapshot; see [`Cluster::update`].
    #[cfg(test)]
    pub(crate) fn publish(&self, next: ClusterSnapshot) -> bool {
        self.update(|_| next)
    }

    /// Replaces the snapshot by what `next` makes of it, gives it the next
    /// generation and wakes everybody, unless it says what the last one said.
    /// Returns whether it was news.
    pub(crate) fn update(&self, next: impl FnOnce(&ClusterSnapshot) -> ClusterSnapshot) -> bool {
        {
            let mut current = self.shared.snapshot.write();
            let mut next = next(&current);
            if current.generation > 0 && current.same_content(&next) {
                return false;
            }
            next.generation = current.generation + 1;
            *current = Arc::new(next);
        }
        // Woken outside the lock: a waker may drop its own registration.
        let wakers: Vec<Waker> = self
            .shared
            .wakers
            .lock()
            .by_token
            .values()
            .cloned()
            .collect();
        for waker in wakers {
            waker.wake();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn with_broker(id: i32) -> ClusterSnapshot {
        ClusterSnapshot {
            brokers: BTreeMap::from([(
                id,
                BrokerAddress {
                    host: Arc::from("localhost"),
                    port: 9092,
                },
            )]),
            ..ClusterSnapshot::default()
        }
    }

    #[test]
    fn a_change_is_published_with_the_next_generation_and_wakes_those_registered() {
        let (cluster, _rings) = Cluster::new();
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let registration = cluster.on_change(Waker::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(cluster.publish(with_broker(1)));
        assert!(!cluster.publish(with_broker(1)), "nothing is new");
        assert!(cluster.publish(with_broker(2)));
        assert_eq!(cluster.snapshot().generation, 2);
        assert_eq!(woken.load(Ordering::Relaxed), 2);

        drop(registration);
        assert!(cluster.publish(with_broker(3)));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert!(cluster.shared.wakers.lock().by_token.is_empty());
        assert_eq!(Arc::strong_count(&woken), 1, "the waker is dropped too");
    }

    #[test]
    fn a_leader_that_a_broker_names_counts_where_it_is_later_and_can_be_reached() {
        let id = Uuid::from_u128(1);
        let led_by = |leader| {
            let partition = PartitionState { leader, error: 0 };
            let topic = TopicState {
                id,
                partitions: vec![partition],
                reported: 1,
                error: 0,
            };
            ClusterSnapshot {
                topics: HashMap::from([(Arc::from("orders"), topic)]),
                ..with_broker(1)
            }
        };
        let leader = |id, epoch| Leader { id, epoch };
        let told = |broker, epoch| Move {
            topic: Arc::from("orders"),
            topic_id: id,
            partition: 0,
            leader: leader(broker, epoch),
            endpoint: Some(Endpoint {
                id: broker,
                host: Arc::from("two"),
                port: 9093,
            }),
        };
        let (cluster, _rings) = Cluster::new();
        cluster.publish(led_by(Some(leader(1, 5))));
        assert!(cluster.learn(&[told(2, 6)]));
        let snapshot = cluster.snapshot();
        assert_eq!(snapshot.leader("orders", 0), Some(leader(2, 6)));
        assert_eq!(snapshot.broker(2).unwrap().to_string(), "two:9093");

        let unreachable = Move {
            endpoint: None,
            ..told(3, 9)
        };
        let of_another_topic = Move {
            topic_id: Uuid::from_u128(2),
            ..told(1, 9)
        };
        let of_no_partition = Move {
            partition: 7,
            ..told(1, 9)
        };
        for ignored in [
            told(1, 6),
            told(1, 5),
            unreachable,
            of_another_topic,
            of_no_partition,
        ] {
            assert!(
                !cluster.learn(std::slice::from_ref(&ignored)),
                "{ignored:?}"
            );
        }
        cluster.publish(led_by(None));
        assert!(cluster.learn(&[told(2, 6)]), "there was none");
    }

    #[test]
    fn the_first_answer_is_news_even_where_it_is_empty() {
        let (cluster, _rings) = Cluster::new();
        assert!(cluster.publish(ClusterSnapshot::default()));
        assert_eq!(cluster.snapshot().generation, 1);
    }

    #[test]
    fn requests_to_refresh_are_merged_into_one_ring() {
        let (cluster, rings) = Cluster::new();
        cluster.request_refresh();
        cluster.request_refresh();
        assert_eq!(rings.try_iter().count(), 1);
        assert!(cluster.take_refresh());
        assert!(!cluster.take_refresh());
        cluster.request_refresh();
        assert_eq!(rings.try_iter().count(), 1);
    }
}
