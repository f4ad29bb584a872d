//! Members of a group in this process: what they handled, and doors that hold their handlers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keepup::{Builder, Event, EventKind, Handle, Outcome, Record, Report, TopicPartition};

use super::kafka::Kafka;
use super::{PATIENT, SOON, wait_until};

/// How members of one group agree about partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Only what moves is revoked.
    Cooperative,
    /// Everything is revoked and given out anew.
    Eager,
    /// KIP-848: the broker decides.
    Consumer,
}

impl Protocol {
    /// The properties, with a session and heartbeats that make rebalances quick where the client may choose them.
    pub(crate) fn properties(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Cooperative => &[
                ("session.timeout.ms", "6000"),
                ("heartbeat.interval.ms", "200"),
            ],
            Self::Eager => &[
                ("session.timeout.ms", "6000"),
                ("heartbeat.interval.ms", "200"),
                ("partition.assignment.strategy", "range"),
            ],
            Self::Consumer => &[("group.protocol", "consumer")],
        }
    }
}

/// One test per protocol over a function of a protocol.
macro_rules! per_protocol {
    ($($name:ident { $($protocol:ident => $test:ident),+ $(,)? })+) => {$(
        mod $name {
            $(
                #[test]
                fn $test() {
                    let kafka = kafka!(shared);
                    let name = concat!(stringify!($name), "_", stringify!($test));
                    super::$name(kafka, name, $crate::support::members::Protocol::$protocol);
                }
            )+
        }
    )+};
}

/// A record that was handed to a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handled {
    pub(crate) member: &'static str,
    pub(crate) worker: usize,
    pub(crate) partition: TopicPartition,
    pub(crate) offset: i64,
    /// The handler has returned.
    pub(crate) returned: bool,
}

/// A record at which handlers of a member are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Door {
    pub(crate) member: &'static str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

#[derive(Debug, Default)]
struct Seen {
    handled: Vec<Handled>,
    events: Vec<(&'static str, Event)>,
    /// Closed doors; a handler that comes to one stays until it is opened.
    doors: BTreeSet<Door>,
    /// How often a handler came to a door, closed or opened since.
    knocks: BTreeMap<Door, usize>,
    /// Handlers that may pass a closed door.
    passes: BTreeMap<Door, usize>,
}

impl Seen {
    /// Whether a handler may pass; takes its pass where it needs one.
    fn passes(&mut self, door: Door) -> bool {
        if !self.doors.contains(&door) {
            return true;
        }
        let pass = self.passes.get_mut(&door).filter(|passes| **passes > 0);
        pass.map(|passes| *passes -= 1).is_some()
    }
}

/// What all members of a test did and were told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<(Mutex<Seen>, Condvar)>);

impl Tally {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a member warned of.
    pub(crate) fn warnings(&self, member: &str) -> Vec<String> {
        self.events(member, |event| match &event.kind {
            EventKind::Warning { message } => Some(message.clone()),
            _ => None,
        })
    }

    pub(crate) fn wait_for_warning(&self, member: &str, words: &str) {
        wait_until(SOON, &format!("{member} to warn of {words:?}"), || {
            let warnings = self.warnings(member);
            let is_there = warnings.iter().any(|warning| warning.contains(words));
            if is_there { Ok(()) } else { Err(warnings) }
        });
    }

    /// From now on the member's handler stays in the record at `offset` of `partition`.
    pub(crate) fn close(&self, member: &'static str, partition: i32, offset: i64) -> Door {
        let door = Door {
            member,
            partition,
            offset,
        };
        self.seen().doors.insert(door);
        door
    }

    /// Lets the handler that stays there go on, and those that come.
    pub(crate) fn open(&self, door: Door) {
        self.seen().doors.remove(&door);
        self.0.1.notify_all();
    }

    /// Lets the handler that stays there now go on; the next that comes stays.
    pub(crate) fn let_one_through(&self, door: Door) {
        *self.seen().passes.entry(door).or_default() += 1;
        self.0.1.notify_all();
    }

    /// Lets every handler go on.
    pub(crate) fn open_all(&self) {
        self.seen().doors.clear();
        self.0.1.notify_all();
    }

    /// Waits until a handler stands at that door.
    pub(crate) fn wait_for_knock(&self, door: Door) {
        wait_until(PATIENT, &format!("a handler at {door:?}"), || {
            let knocked = self.seen().knocks.contains_key(&door);
            if knocked { Ok(()) } else { Err(self.summary()) }
        });
    }

    /// Waits until a handler stands at each of these doors.
    pub(crate) fn wait_for_knocks(&self, doors: &[Door]) {
        for &door in doors {
            self.wait_for_knock(door);
        }
    }

    /// What a handler does with a record: notes it, and stays where a door is closed.
    fn handle(&self, member: &'static str, worker: usize, record: &Record<'_>) {
        let door = Door {
            member,
            partition: record.partition(),
            offset: record.offset(),
        };
        let mut seen = self.seen();
        let index = seen.handled.len();
        seen.handled.push(Handled {
            member,
            worker,
            partition: record.topic_partition().clone(),
            offset: record.offset(),
            returned: false,
        });
        if seen.doors.contains(&door) {
            *seen.knocks.entry(door).or_default() += 1;
            let (mut opened, timeout) = self
                .0
                .1
                .wait_timeout_while(seen, Duration::from_mins(2), |seen| !seen.passes(door))
                .unwrap_or_else(PoisonError::into_inner);
            assert!(!timeout.timed_out(), "nobody opened {door:?}");
            opened.handled[index].returned = true;
        } else {
            seen.handled[index].returned = true;
        }
    }

    /// Everything that was handed over, in the order of its being handed over.
    pub(crate) fn handled(&self) -> Vec<Handled> {
        self.seen().handled.clone()
    }

    /// How many were handed over.
    pub(crate) fn len(&self) -> usize {
        self.seen().handled.len()
    }

    /// Waits until so many were handed over.
    pub(crate) fn wait_for_len(&self, len: usize) {
        wait_until(PATIENT, "records to be handed over", || {
            let now = self.len();
            if now >= len { Ok(()) } else { Err(now) }
        });
    }

    /// The offsets of a partition in the order in which they were handed over, by whichever member.
    pub(crate) fn offsets(&self, topic: &str, partition: i32) -> Vec<i64> {
        self.of(topic, partition)
            .iter()
            .map(|handled| handled.offset)
            .collect()
    }

    /// What was handed over of one partition.
    pub(crate) fn of(&self, topic: &str, partition: i32) -> Vec<Handled> {
        let which = TopicPartition::new(topic, partition);
        let mut handled = self.handled();
        handled.retain(|handled| handled.partition == which);
        handled
    }

    /// The records of a partition that one member handled.
    pub(crate) fn offsets_by(&self, member: &str, topic: &str, partition: i32) -> Vec<i64> {
        let of = self.of(topic, partition).into_iter();
        of.filter(|handled| handled.member == member)
            .map(|handled| handled.offset)
            .collect()
    }

    /// How many records of each partition were handed over: for the message of a wait that failed.
    pub(crate) fn summary(&self) -> BTreeMap<(TopicPartition, &'static str), usize> {
        let mut counts = BTreeMap::new();
        for handled in &self.seen().handled {
            *counts
                .entry((handled.partition.clone(), handled.member))
                .or_default() += 1;
        }
        counts
    }

    /// Waits until every offset of `range` was handed over in each of these partitions.
    pub(crate) fn wait_for_all(&self, topic: &str, partitions: Range<i32>, range: Range<i64>) {
        wait_until(PATIENT, "every record to be handled", || {
            let missing: Vec<_> = partitions
                .clone()
                .filter(|&partition| {
                    let offsets: BTreeSet<i64> = self
                        .of(topic, partition)
                        .iter()
                        .filter(|h| h.returned)
                        .map(|h| h.offset)
                        .collect();
                    !range.clone().all(|offset| offsets.contains(&offset))
                })
                .collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err((missing, self.summary()))
            }
        });
    }

    /// The events of a member that `pick` picks, in order.
    pub(crate) fn events<T>(&self, member: &str, pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        let seen = self.seen();
        let of = seen.events.iter().filter(|(who, _)| *who == member);
        of.filter_map(|(_, event)| pick(event)).collect()
    }

    /// Why commits of any member were refused, each reason once.
    pub(crate) fn refused_commits(&self) -> BTreeSet<String> {
        let seen = self.seen();
        let kinds = seen.events.iter().map(|(_, event)| &event.kind);
        kinds
            .filter_map(|kind| match kind {
                EventKind::OffsetsCommitted { error, .. } => error.clone(),
                _ => None,
            })
            .collect()
    }

    /// The offsets that a member was told to be committed of a partition, in order.
    pub(crate) fn commits_by(&self, member: &str, topic: &str, partition: i32) -> Vec<i64> {
        let which = TopicPartition::new(topic, partition);
        let commits = self.events(member, |event| match &event.kind {
            EventKind::OffsetsCommitted {
                offsets,
                error: None,
            } => Some(
                offsets
                    .iter()
                    .filter(|(of, _)| *of == which)
                    .map(|(_, at)| *at)
                    .collect::<Vec<_>>(),
            ),
            _ => None,
        });
        commits.concat()
    }
}

/// A member of a group in this process.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    handle: Option<Handle>,
    tally: Tally,
}

impl Member {
    /// Starts a member that completes what it handles.
    pub(crate) fn start(name: &'static str, builder: Builder, tally: &Tally) -> Self {
        Self::start_with(name, builder, tally, |_| Outcome::Done)
    }

    /// Starts a member whose handler answers with `outcome` after it noted the record.
    pub(crate) fn start_with(
        name: &'static str,
        builder: Builder,
        tally: &Tally,
        outcome: impl Fn(&Record<'_>) -> Outcome + Clone + Send + Sync + 'static,
    ) -> Self {
        let (events, handlers) = (tally.clone(), tally.clone());
        let handle = builder
            .on_event(move |event| events.seen().events.push((name, event.clone())))
            .start(move |info| {
                let (tally, outcome) = (handlers.clone(), outcome.clone());
                move |record: &Record<'_>| {
                    tally.handle(name, info.worker, record);
                    outcome(record)
                }
            });
        Self {
            name,
            handle: Some(handle.expect("the run starts")),
            tally: tally.clone(),
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("it was not stopped")
    }

    /// The numbers of the partitions that it has, in order.
    pub(crate) fn partitions(&self) -> Vec<i32> {
        self.handle()
            .partitions()
            .iter()
            .map(|view| view.partition.partition())
            .collect()
    }

    /// Waits until it has that many partitions, all with a worker; gives their numbers.
    pub(crate) fn wait_for_partitions(&self, count: usize) -> Vec<i32> {
        wait_until(
            PATIENT,
            &format!("{} to have {count} partitions", self.name),
            || {
                let views = self.handle().partitions();
                if views.len() == count && views.iter().all(|view| view.worker.is_some()) {
                    Ok(self.partitions())
                } else {
                    Err(views)
                }
            },
        )
    }

    /// Waits until the group asked for one of these partitions back; gives those that are asked for. A partition
    /// under revoke is not the handle's any more, while its record in hand is finished.
    pub(crate) fn wait_for_revoke(&self, topic: &str, partitions: &[i32]) -> Vec<i32> {
        wait_until(PATIENT, &format!("a revoke at {}", self.name), || {
            let revoked: Vec<i32> = partitions
                .iter()
                .copied()
                .filter(|&partition| {
                    self.handle()
                        .resume(&[TopicPartition::new(topic, partition)])
                        .is_err()
                })
                .collect();
            if revoked.is_empty() {
                Err("none")
            } else {
                Ok(revoked)
            }
        })
    }

    /// Waits for its end, for which nobody asked.
    pub(crate) fn ended(self) -> Report {
        wait_until(PATIENT, &format!("{} to end by itself", self.name), || {
            if self.handle().has_ended() {
                Ok(())
            } else {
                Err(self.handle().lag().health.clone())
            }
        });
        self.stop()
    }

    /// Stops it in an orderly way.
    pub(crate) fn stop(mut self) -> Report {
        let handle = self.handle.take().expect("it was not stopped");
        handle.stop();
        match handle.wait_timeout(PATIENT) {
            Ok(report) => report,
            Err(handle) => {
                self.handle = Some(handle);
                panic!("{} did not stop", self.name);
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.handle.is_some() {
            // A test that failed: the handle's drop must not wait for handlers behind doors.
            self.tally.open_all();
        }
    }
}

impl Kafka {
    /// A run of this group over this topic, with quick rebalances and commits.
    pub(crate) fn run_of(&self, group: &str, topic: &str, protocol: Protocol) -> Builder {
        let mut builder = keepup::builder(self.bootstrap(), group)
            .topic(topic)
            .property("auto.commit.interval.ms", "100")
            .property("topic.metadata.refresh.interval.ms", "500");
        for (name, value) in protocol.properties() {
            builder = builder.property(*name, *value);
        }
        builder
    }

    /// Creates a topic and writes the same numbers, from 0, to each partition: the number is the offset.
    pub(crate) fn filled_topic(&self, topic: &str, partitions: i32, numbers: Range<u64>) {
        self.create_topic(topic, partitions, &[]);
        self.fill(topic, partitions, numbers);
    }

    /// Writes numbers to each of the first `partitions` partitions.
    pub(crate) fn fill(&self, topic: &str, partitions: i32, numbers: Range<u64>) {
        let producer = self.producer(&[]);
        producer.send_numbers(topic, partitions, numbers);
        producer.flush();
    }

    /// Waits until the broker has these offsets committed.
    pub(crate) fn wait_for_commits(&self, group: &str, topic: &str, expected: &[Option<i64>]) {
        wait_until(SOON, "the committed offsets", || {
            let committed = self.committed(group, topic);
            if committed == expected {
                Ok(())
            } else {
                Err(committed)
            }
        });
    }
}
