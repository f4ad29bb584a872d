//! The membership on a real cluster: an rdkafka client that joins, answers
//! rebalances, heartbeats and commits, and fetches nothing.
//!
//! Its partitions are paused as soon as they are assigned, so all that this
//! client moves is the group's own traffic. Three of librdkafka's properties
//! shape what is here:
//!
//! - **A rebalance callback must not wait.** It runs inside `poll`; while it
//!   waits nothing is committed, a lost assignment goes unnoticed and a stop
//!   hangs. So it writes down what was said and returns; the member's loop
//!   answers later by `answer_assign` and `answer_revoke`.
//! - **A manual commit has no reliable answer** (an asynchronous one never
//!   reports, a synchronous one may wait without limit). So librdkafka's own
//!   committer commits what was stored, each second and when a revoke is
//!   answered, and reports through the commit callback. It never commits less
//!   than it has committed; where that must be, it is done by hand, and read
//!   back over a connection of our own.
//! - **Dropping a client waits without a deadline.** So the client is closed
//!   through its queue while the loop goes on, and dropped on a thread of its
//!   own; if it does not come to an end it is left behind.
//!
//! After an error that librdkafka calls fatal its client is *spent*: it does not
//! close, and commits nothing. Then there is nothing to leave or to wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList as List};

use crate::config::{Assignment, Settings};
use crate::error::Error;
use crate::kafka::client::{self, list};
use crate::kafka::membership::{self, Log};
use crate::kafka::properties;
use crate::member::group::{CommitRefusal, Group, GroupEvent, Mark, SHARE_WITHIN};
use crate::record::TopicPartition;

/// Writes down what librdkafka says, in order.
#[derive(Debug)]
struct Notes {
    // Filled by one poll and emptied before the next: never more than the few
    // events that one poll serves.
    said: Mutex<VecDeque<GroupEvent>>,
    /// A line of the log came.
    logged: AtomicBool,
    log: Log,
}

impl Notes {
    fn new(log: Log) -> Self {
        Self {
            said: Mutex::default(),
            logged: AtomicBool::new(false),
            log,
        }
    }

    fn say(&self, event: GroupEvent) {
        self.said.lock().push_back(event);
    }
}

impl ClientContext for Notes {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.logged.store(true, Ordering::Relaxed);
        if membership::is_of_a_member(message) {
            self.say(GroupEvent::TakenIn);
        }
        if self.log.passes(level) {
            client::log(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Notes {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = partitions(list);
        self.say(match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                GroupEvent::Assigned(partitions)
            }
            // Anything else takes partitions away, an error included.
            _ => GroupEvent::Revoked {
                partitions,
                lost: consumer.assignment_lost(),
            },
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let mut committed = Vec::new();
        let mut failed = Vec::new();
        let mut first_error = result.as_ref().err().cloned();
        for element in offsets.elements() {
            let Offset::Offset(offset) = element.offset() else {
                continue;
            };
            let entry = (
                TopicPartition::new(element.topic(), element.partition()),
                offset,
            );
            match (&result, element.error()) {
                (Ok(()), Ok(())) => committed.push(entry),
                (_, error) => {
                    if let (None, Err(error)) = (&first_error, error) {
                        first_error = Some(error);
                    }
                    failed.push(entry);
                }
            }
        }
        if !committed.is_empty() {
            self.say(GroupEvent::Committed { offsets: committed });
        }
        // "No offset stored" is librdkafka's way to say that there was nothing
        // to commit.
        let nothing = matches!(
            result,
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset))
        );
        if let (Some(error), false) = (first_error, nothing) {
            self.say(GroupEvent::CommitFailed {
                offsets: failed,
                refusal: error.rdkafka_error_code().and_then(refusal),
                error: error.to_string(),
            });
        }
    }
}

/// Whether the coordinator has answered with that, and does not take an offset.
fn refusal(code: RDKafkaErrorCode) -> Option<CommitRefusal> {
    match code {
        RDKafkaErrorCode::OffsetMetadataTooLarge => Some(CommitRefusal::NoteTooLarge),
        // Not the coordinator any more, or not yet; or one that does not know
        // whether the commit arrived, or that librdkafka asks again.
        RDKafkaErrorCode::NotCoordinator
        | RDKafkaErrorCode::CoordinatorNotAvailable
        | RDKafkaErrorCode::CoordinatorLoadInProgress
        | RDKafkaErrorCode::RequestTimedOut
        | RDKafkaErrorCode::StaleMemberEpoch => None,
        // librdkafka's own, of connections that broke among others.
        code if (code as i32) < 0 && code != RDKafkaErrorCode::Unknown => None,
        _ => Some(CommitRefusal::Other),
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements()
        .iter()
        .map(|element| TopicPartition::new(element.topic(), element.partition()))
        .collect()
}

/// What is to be committed, and what cannot be said so.
fn offsets(marks: &[Mark]) -> (List, Vec<(TopicPartition, String)>) {
    let mut list = List::with_capacity(marks.len());
    let mut refused = Vec::new();
    for Mark {
        partition,
        watermark,
        note,
        ..
    } in marks
    {
        let mut element = list.add_partition(partition.topic(), partition.partition());
        if let Some(note) = note {
            element.set_metadata(&**note);
        }
        if let Err(error) = element.set_offset(Offset::Offset(*watermark)) {
            refused.push((partition.clone(), error.to_string()));
        }
    }
    (list, refused)
}

/// [`Group::share_within`] under KIP-848: others hear of a newcomer with their next
/// heartbeat, 5 s later by the broker's default, and the newcomer of what they let
/// go with its own.
const SHARE_WITHIN_KIP_848: Duration = Duration::from_secs(12);

/// How many lines of librdkafka's log one poll takes at most.
const LINES_AT_ONCE: usize = 10_000;

/// How long a spent client may take to end where another one follows it.
const SPENT_END: Duration = Duration::from_millis(250);

/// The membership over librdkafka.
pub(crate) struct KafkaGroup {
    /// What the client is made with, again where it is spent.
    settings: Settings,
    /// Shared with nobody but, where it has to be left behind, with itself.
    consumer: Arc<BaseConsumer<Notes>>,
    notes: Arc<Notes>,
    /// `group.instance.id`, where this is a static member.
    instance: Option<String>,
    /// Whom the client wakes; kept for the next one.
    wake: Option<Arc<dyn Fn() + Send + Sync>>,
    /// The client has had a fatal error.
    is_spent: bool,
    /// What a static assignment has; unused where the group assigns.
    assigned: Vec<TopicPartition>,
    is_static: bool,
    /// Whether partitions come and go by parts, as it was with the last assignment.
    by_parts: Option<bool>,
    has_joined: bool,
    session_timeout: Duration,
    sleep_limit: Duration,
}

impl KafkaGroup {
    /// Makes the client; contacts nobody yet.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let consumer = open(settings)?;
        let notes = Arc::clone(consumer.context());
        Ok(Self {
            settings: settings.clone(),
            consumer: Arc::new(consumer),
            notes,
            instance: properties::instance_id(settings).map(str::to_owned),
            wake: None,
            is_spent: false,
            assigned: Vec::new(),
            is_static: matches!(settings.assignment, Assignment::Static { .. }),
            by_parts: None,
            has_joined: false,
            session_timeout: properties::session_timeout(settings),
            sleep_limit: properties::sleep_limit(settings),
        })
    }

    /// What an error that was polled means.
    fn failed(&mut self, error: &KafkaError) -> GroupEvent {
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            self.is_spent = true;
            return match (code, self.instance.clone()) {
                (RDKafkaErrorCode::UnreleasedInstanceId, Some(instance)) => {
                    GroupEvent::InstanceHeld { instance }
                }
                (RDKafkaErrorCode::FencedInstanceId, Some(instance)) => {
                    GroupEvent::Fenced { instance }
                }
                _ => GroupEvent::Fatal {
                    message: format!("{code}: {reason}; {}", remedy(code)),
                },
            };
        }
        match (error.rdkafka_error_code(), self.instance.clone()) {
            (Some(RDKafkaErrorCode::FencedInstanceId), Some(instance)) => {
                GroupEvent::Fenced { instance }
            }
            (Some(code), _) if ends_membership(code) => GroupEvent::Fatal {
                message: format!("{code}: {}", remedy(code)),
            },
            _ => GroupEvent::Trouble {
                message: error.to_string(),
            },
        }
    }

    fn listen(&mut self) {
        // Nobody else has it yet.
        if let (Some(wake), Some(consumer)) = (self.wake.clone(), Arc::get_mut(&mut self.consumer))
        {
            consumer.set_nonempty_callback(move || wake());
        }
    }

    /// Stores a list, and adds to what was refused of it before.
    fn store_list(
        &self,
        list: &List,
        mut refused: Vec<(TopicPartition, String)>,
    ) -> Vec<(TopicPartition, String)> {
        // Success means that at least one was stored: the truth is in the
        // elements.
        let stored = self.consumer.store_offsets(list);
        for element in list.elements() {
            let error = match (element.error(), &stored) {
                (Err(error), _) => error.to_string(),
                (Ok(()), Err(error)) if list.count() == 1 => error.to_string(),
                _ => continue,
            };
            refused.push((
                TopicPartition::new(element.topic(), element.partition()),
                error,
            ));
        }
        refused
    }

    /// Whether partitions come and go by parts. To be called only while a rebalance
    /// waits for our answer.
    ///
    /// librdkafka puts this question to the thread that has the membership, and
    /// waits for it without a limit. Once the last revoke of a close is answered
    /// that membership ends:
    ///
    /// 1. we answer the revoke, and ask;
    /// 2. its thread lets go, and the membership is over;
    /// 3. it comes to the question, which is thrown away without an answer.
    ///
    /// While a rebalance waits for us it cannot end.
    fn asks_for_parts(&self) -> bool {
        matches!(
            self.consumer.rebalance_protocol(),
            RebalanceProtocol::Cooperative
        )
    }

    fn pause(&self, partitions: &[TopicPartition]) -> Result<(), String> {
        if partitions.is_empty() {
            return Ok(());
        }
        self.consumer
            .pause(&list(partitions))
            .map_err(|error| error.to_string())
    }
}

/// Makes the member's client.
fn open(settings: &Settings) -> Result<BaseConsumer<Notes>, Error> {
    let mut config = properties::member(settings);
    let log = membership::listen(&mut config);
    client::open(settings, &config, Notes::new(log))
}

impl Group for KafkaGroup {
    fn join(&mut self) -> Result<(), String> {
        self.has_joined = true;
        if self.is_static {
            return Ok(());
        }
        let topics: Vec<&str> = self.settings.topics.iter().map(String::as_str).collect();
        self.consumer
            .subscribe(&topics)
            .map_err(|error| error.to_string())
    }

    fn join_again(&mut self) -> Result<(), String> {
        let next = open(&self.settings).map_err(|error| error.to_string())?;
        self.notes = Arc::clone(next.context());
        let spent = std::mem::replace(&mut self.consumer, Arc::new(next));
        self.is_spent = false;
        self.by_parts = None;
        self.listen();
        if !client::drop_within(spent, SPENT_END) {
            tracing::warn!("a client that the group had refused did not end in time");
        }
        self.join()
    }

    fn poll(&mut self) -> Option<GroupEvent> {
        if let Some(said) = self.notes.said.lock().pop_front() {
            return Some(said);
        }
        for _ in 0..LINES_AT_ONCE {
            if self.is_spent {
                // What it still has to say is of a membership that is over.
                return None;
            }
            self.notes.logged.store(false, Ordering::Relaxed);
            // Paused partitions give nothing; what was on its way when they were
            // paused is not ours to handle.
            let error = match self.consumer.poll(Duration::ZERO) {
                None | Some(Ok(_)) => None,
                Some(Err(error)) => Some(error),
            };
            let trouble = error.map(|error| self.failed(&error));
            let said = trouble.or_else(|| self.notes.said.lock().pop_front());
            // A line of the log ends a poll, and is not the last that there is.
            if said.is_some() || !self.notes.logged.load(Ordering::Relaxed) {
                return said;
            }
        }
        None
    }

    fn on_ready(&mut self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.wake = Some(wake);
        self.listen();
    }

    fn answer_assign(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        if self.is_spent {
            return Ok(());
        }
        let answered = if self.is_static {
            self.assigned.extend(partitions.iter().cloned());
            self.consumer.assign(&list(&self.assigned))
        } else if *self.by_parts.insert(self.asks_for_parts()) {
            self.consumer.incremental_assign(&list(partitions))
        } else {
            self.consumer.assign(&list(partitions))
        };
        answered.map_err(|error| error.to_string())?;
        self.pause(if self.is_static {
            &self.assigned
        } else {
            partitions
        })
    }

    fn gives_everything_anew(&self) -> bool {
        !self.is_static && self.by_parts != Some(true)
    }

    fn commit_interval(&self) -> Duration {
        properties::commit_interval(&self.settings)
    }

    fn share_within(&self) -> Duration {
        if properties::uses_consumer_protocol(&self.settings.properties) {
            SHARE_WITHIN_KIP_848
        } else {
            SHARE_WITHIN
        }
    }

    fn answer_revoke(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        if self.is_spent {
            return Ok(());
        }
        let by_parts = !self.is_static && self.by_parts.unwrap_or_else(|| self.asks_for_parts());
        if by_parts {
            self.consumer.incremental_unassign(&list(partitions))
        } else {
            self.consumer.unassign()
        }
        .map_err(|error| error.to_string())
    }

    fn is_lost(&self) -> bool {
        self.is_spent || self.consumer.assignment_lost()
    }

    fn store(&mut self, marks: &[Mark]) -> Vec<(TopicPartition, String)> {
        let (list, refused) = offsets(marks);
        self.store_list(&list, refused)
    }

    /// Commits of one client are carried out in the order in which they were
    /// asked for, and nothing higher was stored before: so this one takes nothing
    /// back that is committed later. Unless one of them is sent again after a wait
    /// of its own, because the coordinator died with it on its way.
    fn commit_now(&mut self, marks: &[Mark]) -> Result<(), String> {
        // Stored first: the committer would otherwise find that more is stored
        // than committed, and undo it.
        let (list, refused) = offsets(marks);
        if let Some((partition, why)) = self.store_list(&list, refused).pop() {
            return Err(format!("{partition}: {why}"));
        }
        self.consumer
            .commit(&list, CommitMode::Async)
            .map_err(|error| error.to_string())
    }

    fn begin_close(&mut self) {
        if self.is_spent {
            return;
        }
        if let Err(error) = self.consumer.close_queue() {
            tracing::warn!("the member's client does not close: {error}");
        }
    }

    fn is_closed(&self) -> bool {
        self.is_spent || self.consumer.closed()
    }

    fn session_timeout(&self) -> Option<Duration> {
        (!self.is_static).then_some(self.session_timeout)
    }

    fn sleep_limit(&self) -> Option<Duration> {
        (!self.is_static).then_some(self.sleep_limit)
    }

    fn finish(self: Box<Self>, patience: Duration) -> bool {
        if !self.is_closed() {
            return false;
        }
        client::drop_within(self, patience)
    }
}

impl Drop for KafkaGroup {
    /// Dropping a client that is still a member waits for the coordinator, and
    /// for a rebalance that nobody answers any more, without a deadline; also
    /// where the member's thread panics. So it is left behind instead: the
    /// process ends soon, and the client with it.
    fn drop(&mut self) {
        if self.has_joined && !self.is_closed() {
            std::mem::forget(Arc::clone(&self.consumer));
        }
    }
}

/// Errors after which the membership does not come back by itself.
fn ends_membership(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::InconsistentGroupProtocol
            | RDKafkaErrorCode::InvalidSessionTimeout
            | RDKafkaErrorCode::InvalidGroupId
            | RDKafkaErrorCode::FencedInstanceId
            | RDKafkaErrorCode::UnsupportedAssignor
            | RDKafkaErrorCode::Fatal
    )
}

fn remedy(code: RDKafkaErrorCode) -> &'static str {
    match code {
        RDKafkaErrorCode::GroupAuthorizationFailed => "grant READ on the group to this principal",
        RDKafkaErrorCode::TopicAuthorizationFailed => {
            "grant READ and DESCRIBE on the topic to this principal"
        }
        RDKafkaErrorCode::InconsistentGroupProtocol => {
            "the group's other members use an assignor that this one does not have: members with \
             range or roundrobin and members with cooperative-sticky cannot share a group; stop \
             the others first, or set partition.assignment.strategy to theirs"
        }
        RDKafkaErrorCode::InvalidSessionTimeout => {
            "session.timeout.ms is outside the range that the broker allows \
             (group.min.session.timeout.ms to group.max.session.timeout.ms)"
        }
        RDKafkaErrorCode::FencedInstanceId => {
            "another process runs with the same group.instance.id; give each its own"
        }
        RDKafkaErrorCode::UnsupportedVersion => {
            "the broker does not speak this group.protocol; leave the property out"
        }
        RDKafkaErrorCode::UnsupportedAssignor => "the broker does not have that remote assignor",
        _ => "the client cannot go on; start the process again",
    }
}
