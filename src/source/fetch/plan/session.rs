//! What a broker remembers of the last request (KIP-227).
//!
//! A worker with a thousand idle partitions would name a thousand partitions
//! four times a second, and be told a thousand times that nothing is new. In a
//! session the broker keeps the list: a request names what has changed since
//! the one before, an answer only the partitions that have something to tell.
//!
//! The invariant: what the broker has in its list is exactly what is wanted
//! now. A partition that is full, held back or paused leaves the list, because
//! the broker would serve it unasked; it enters again when its time comes, which
//! costs its name.
//!
//! A session is a claim about what the broker knows, so whatever makes that
//! doubtful (an error, a request whose answer never came) ends it: the next
//! request is whole. A broker that keeps no sessions answers with the id 0, and
//! then every request is whole. A connection that was lost while nothing was
//! under way ends nothing: brokers know sessions by their ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::Ends;
use crate::kafka::messages::{FetchPartition, FetchTopic, ForgottenTopic};

/// A partition as requests name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) topic: Arc<str>,
    /// Nil where it is not known.
    pub(super) id: Uuid,
    pub(super) partition: i32,
}

/// What the broker knows of a partition.
#[derive(Clone, Copy, Debug)]
struct Known {
    sent: FetchPartition,
    /// What it told last; none before it did.
    told: Option<Ends>,
}

/// The session with one broker, or the want of one.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// 0 for none.
    id: i32,
    /// Of the next request; 0 where that is whole.
    epoch: i32,
    by_id: bool,
    /// The ids of the topics in it.
    ids: BTreeMap<Arc<str>, Uuid>,
    known: BTreeMap<Key, Known>,
}

/// The part of a request that a session decides.
#[derive(Debug, Default)]
pub(super) struct Portion {
    pub(super) session_id: i32,
    pub(super) session_epoch: i32,
    pub(super) by_id: bool,
    pub(super) topics: Vec<FetchTopic>,
    pub(super) forgotten: Vec<ForgottenTopic>,
}

impl Portion {
    /// Whether it names all that is wanted.
    pub(super) fn is_whole(&self) -> bool {
        self.session_epoch <= 0
    }
}

impl Session {
    /// What the next request says so that the broker has exactly `wanted` in
    /// its list, in this order where the request is whole.
    pub(super) fn portion(&mut self, wanted: Vec<(Key, FetchPartition)>) -> Portion {
        let by_id = wanted.iter().all(|(key, _)| !key.id.is_nil());
        // A topic of another id is another one. Where both have to be named by
        // the name, to forget the one would be to forget the other.
        let is_another = |(key, _): &(Key, FetchPartition)| {
            let known = self.ids.get(&key.topic);
            known.is_some_and(|&id| id != key.id)
        };
        if by_id != self.by_id || wanted.iter().any(is_another) {
            self.restart();
        }
        self.by_id = by_id;
        for (key, _) in &wanted {
            if !self.ids.contains_key(&key.topic) {
                self.ids.insert(Arc::clone(&key.topic), key.id);
            }
        }
        let mut portion = Portion {
            session_id: self.id,
            session_epoch: self.epoch,
            by_id,
            ..Portion::default()
        };
        if portion.is_whole() {
            self.known = wanted
                .iter()
                .map(|(key, sent)| {
                    let known = Known {
                        sent: *sent,
                        told: None,
                    };
                    (key.clone(), known)
                })
                .collect();
            for (key, partition) in &wanted {
                name(&mut portion.topics, key, *partition);
            }
            return portion;
        }
        let mut before = std::mem::take(&mut self.known);
        for (key, wants) in wanted {
            let known = before.remove(&key);
            let is_sent = known.is_some_and(|known| is_same(&known.sent, &wants));
            let known = match known {
                Some(known) if is_sent => known,
                Some(Known { told, .. }) => Known { sent: wants, told },
                None => Known {
                    sent: wants,
                    told: None,
                },
            };
            if !is_sent {
                name(&mut portion.topics, &key, wants);
            }
            self.known.insert(key, known);
        }
        for key in before.into_keys() {
            forget(&mut portion.forgotten, &key);
        }
        portion
    }

    /// What the broker told of a partition the last time: still true where an
    /// answer of the session leaves the partition out.
    pub(super) fn told(&self, key: &Key) -> Option<Ends> {
        self.known.get(key)?.told
    }

    /// The broker told this of a partition.
    pub(super) fn tell(&mut self, key: &Key, ends: Ends) {
        if let Some(known) = self.known.get_mut(key) {
            known.told = Some(ends);
        }
    }

    /// An answer came, of the session with this id.
    pub(super) fn answered(&mut self, id: i32) {
        if id == 0 {
            // The broker keeps none, or none any more.
            *self = Self {
                by_id: self.by_id,
                ..Self::default()
            };
        } else if self.epoch == 0 || id == self.id {
            self.id = id;
            self.epoch = next_epoch(self.epoch);
        } else {
            self.restart();
        }
    }

    /// Nothing is sure any more: the next request is whole. It carries the id,
    /// so that the broker forgets what it has.
    pub(super) fn restart(&mut self) {
        self.epoch = 0;
        self.ids.clear();
        self.known.clear();
    }

    /// The broker does not know the session.
    pub(super) fn forget(&mut self) {
        self.restart();
        self.id = 0;
    }
}

/// 0 and below have meanings of their own.
fn next_epoch(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

/// Whether the broker need not be told. How long an answer may be changes with
/// every answer; it is told with what is told anyway, since the limit on the
/// whole answer holds in any case.
fn is_same(sent: &FetchPartition, wants: &FetchPartition) -> bool {
    *sent
        == FetchPartition {
            max_bytes: sent.max_bytes,
            ..*wants
        }
}

fn name(topics: &mut Vec<FetchTopic>, key: &Key, partition: FetchPartition) {
    match topics.last_mut() {
        Some(topic) if topic.name == key.topic && topic.id == key.id => {
            topic.partitions.push(partition);
        }
        _ => topics.push(FetchTopic {
            name: Arc::clone(&key.topic),
            id: key.id,
            partitions: vec![partition],
        }),
    }
}

fn forget(topics: &mut Vec<ForgottenTopic>, key: &Key) {
    match topics.last_mut() {
        Some(topic) if topic.name == key.topic && topic.id == key.id => {
            topic.partitions.push(key.partition);
        }
        _ => topics.push(ForgottenTopic {
            name: Arc::clone(&key.topic),
            id: key.id,
            partitions: vec![key.partition],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Uuid = Uuid::from_u128(7);

    fn key(partition: i32) -> Key {
        Key {
            topic: Arc::from("orders"),
            id: IDENTITY,
            partition,
        }
    }

    fn at(partition: i32, offset: i64) -> (Key, FetchPartition) {
        let wanted = FetchPartition {
            partition,
            leader_epoch: 4,
            offset,
            last_fetched_epoch: 3,
            max_bytes: 100,
        };
        (key(partition), wanted)
    }

    /// Session id and epoch, partitions and offsets named, partitions forgotten.
    type Said = (i32, i32, Vec<(i32, i64)>, Vec<i32>);

    fn said(portion: &Portion) -> Said {
        let named = portion.topics.iter().flat_map(|topic| &topic.partitions);
        let forgotten = portion.forgotten.iter().flat_map(|topic| &topic.partitions);
        (
            portion.session_id,
            portion.session_epoch,
            named
                .map(|partition| (partition.partition, partition.offset))
                .collect(),
            forgotten.copied().collect(),
        )
    }

    #[test]
    fn a_session_is_told_what_changed_and_what_is_not_wanted_any_more() {
        let mut session = Session::default();
        let whole = session.portion(vec![at(1, 0), at(0, 0), at(2, 0)]);
        assert_eq!(said(&whole), (0, 0, vec![(1, 0), (0, 0), (2, 0)], vec![]));
        assert!(whole.by_id);
        session.answered(77);
        let changed = session.portion(vec![at(0, 5), at(2, 0), at(3, 9)]);
        assert_eq!(said(&changed), (77, 1, vec![(0, 5), (3, 9)], vec![1]));
        session.answered(77);
        let nothing = session.portion(vec![at(0, 5), at(2, 0), at(3, 9)]);
        assert_eq!(said(&nothing), (77, 2, vec![], vec![]));
        assert!(nothing.by_id, "also where nothing is named");
    }

    #[test]
    fn another_leader_epoch_is_told_and_another_limit_only_with_something_else() {
        let mut session = Session::default();
        session.portion(vec![at(0, 0)]);
        session.answered(1);
        let (key, wanted) = at(0, 0);
        let shorter = FetchPartition {
            max_bytes: 50,
            ..wanted
        };
        let portion = session.portion(vec![(key.clone(), shorter)]);
        assert_eq!(said(&portion).2, []);
        session.answered(1);
        let led_anew = FetchPartition {
            leader_epoch: 5,
            ..shorter
        };
        let portion = session.portion(vec![(key, led_anew)]);
        assert_eq!(portion.topics[0].partitions, [led_anew]);
    }

    #[test]
    fn a_broker_that_keeps_no_session_is_asked_for_everything_each_time() {
        let mut session = Session::default();
        for _ in 0..3 {
            let portion = session.portion(vec![at(0, 0)]);
            assert_eq!(said(&portion), (0, 0, vec![(0, 0)], vec![]));
            session.answered(0);
        }
        // One that gives it up in the middle is, too.
        session.portion(vec![at(0, 0)]);
        session.answered(9);
        session.portion(vec![at(0, 0)]);
        session.answered(0);
        let portion = session.portion(vec![at(0, 0)]);
        assert_eq!(said(&portion), (0, 0, vec![(0, 0)], vec![]));
    }

    #[test]
    fn what_makes_a_session_doubtful_is_followed_by_a_whole_request_that_ends_it() {
        let open = || {
            let mut session = Session::default();
            session.portion(vec![at(0, 0)]);
            session.answered(9);
            session.portion(vec![at(0, 0)]);
            session
        };
        let mut lost = open();
        lost.restart();
        assert_eq!(
            said(&lost.portion(vec![at(0, 0)])),
            (9, 0, vec![(0, 0)], vec![])
        );
        lost.answered(10);
        assert_eq!(said(&lost.portion(vec![at(0, 0)])), (10, 1, vec![], vec![]));
        let mut unknown = open();
        unknown.forget();
        assert_eq!(
            said(&unknown.portion(vec![at(0, 0)])),
            (0, 0, vec![(0, 0)], vec![])
        );
        let mut another = open();
        another.answered(10);
        assert_eq!(said(&another.portion(vec![at(0, 0)])).1, 0);
        let mut named_otherwise = open();
        let (mut key, wanted) = at(0, 0);
        key.id = Uuid::nil();
        let portion = named_otherwise.portion(vec![(key, wanted)]);
        assert_eq!(said(&portion), (9, 0, vec![(0, 0)], vec![]));
        assert!(!portion.by_id);
    }

    #[test]
    fn a_topic_that_is_another_one_now_is_not_forgotten_by_its_name() {
        let mut session = Session::default();
        let unnamed = (
            Key {
                topic: Arc::from("unnamed"),
                id: Uuid::nil(),
                partition: 0,
            },
            at(0, 0).1,
        );
        session.portion(vec![at(0, 0), unnamed.clone()]);
        session.answered(9);
        let (mut key, wanted) = at(0, 0);
        key.id = Uuid::from_u128(8);
        let portion = session.portion(vec![(key, wanted), unnamed]);
        assert!(!portion.by_id);
        assert_eq!(said(&portion), (9, 0, vec![(0, 0), (0, 0)], vec![]));
    }

    #[test]
    fn the_epoch_after_the_largest_is_one() {
        assert_eq!(next_epoch(0), 1);
        assert_eq!(next_epoch(1), 2);
        assert_eq!(next_epoch(i32::MAX), 1);
    }

    #[test]
    fn what_was_told_counts_as_long_as_the_partition_stays() {
        let ends = Ends {
            end_offset: 8,
            log_start: 2,
        };
        let mut session = Session::default();
        session.portion(vec![at(0, 0)]);
        assert_eq!(session.told(&key(0)), None);
        session.tell(&key(0), ends);
        session.answered(1);
        session.portion(vec![at(0, 8)]);
        assert_eq!(session.told(&key(0)), Some(ends));
        session.answered(1);
        session.portion(vec![]);
        session.answered(1);
        session.portion(vec![at(0, 8)]);
        assert_eq!(session.told(&key(0)), None, "it is asked for anew");
    }
}
