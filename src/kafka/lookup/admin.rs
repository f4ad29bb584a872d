//! What somebody who looks at a cluster asks: which groups are there, who is in
//! them, what have they committed, how are topics spread.
//!
//! No broker knows all of it. Each lists the groups that it coordinates, and
//! only a group's coordinator describes it, so a question is many questions:
//! some brokers are down, some have just been given groups and are still
//! reading them, and groups move meanwhile. What passes by itself is asked
//! again until the deadline, and what stays unknown is told of the broker or
//! group that it concerns, beside the answers that are there: one dead broker
//! does not make a cluster invisible.
//!
//! A group of the new protocol (KIP-848), asked for as a classic one, is said
//! to be dead, and the other way round it is not found. Both are asked for
//! before a group counts as missing.
//!
//! Only connections of our own can ask all this. Where the security is one that
//! they do not speak (Kerberos), librdkafka's client has no way to ask it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::contact::pause;
use super::session::{AskError, Session};
use crate::clock::Clock;
use crate::kafka::ConnectionSettings;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{BrokerAddress, Cluster};
use crate::kafka::connection::{ConnectionError, StopFlag};
use crate::kafka::errors::{Class, ErrorCode};
use crate::kafka::messages::{
    AssignedTopics, ClassicGroup, ClassicMember, ConsumerGroup, ConsumerMember,
    CoordinatorsRequest, Cursor, DescribeConsumerGroupsRequest, DescribeGroupsRequest,
    DescribeTopicsAnswer, DescribeTopicsRequest, DescribedTopic, GroupOffset, GroupOffsets,
    GroupOffsetsRequest, ListGroupsAnswer, ListGroupsRequest, ListedGroup, TopicsByMetadataRequest,
    consumer_assignment,
};

/// Groups in one question: what is answered of them has to fit in a frame.
const GROUPS_AT_ONCE: usize = 50;
/// Partitions in one page of topics; brokers' own limit is 2,000 by default.
const PARTITIONS_AT_ONCE: i32 = 2000;
/// How often a broker is tried that does not answer. It may have died just now:
/// then the next metadata leaves it out.
const TRIES: u32 = 2;
/// What a broker gets at least, however many are to be asked.
const SHORTEST: Duration = Duration::from_millis(100);

const RETRY: Backoff = Backoff {
    // Longer than a session lets a broker rest after its first failure.
    first: Duration::from_millis(100),
    max: Duration::from_secs(1),
};

const UNSUPPORTED_VERSION: i16 = 35;
const GROUP_ID_NOT_FOUND: i16 = 69;

/// Why something is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdminError {
    /// Neither of the two protocols has a group of that name.
    #[error("there is no such group: look for its name in the list of groups")]
    NoSuchGroup,
    #[error("{0}")]
    Kafka(ErrorCode),
    /// The broker to ask could not be asked.
    #[error("{0}")]
    Unreachable(String),
    /// The two ends do not trust each other: somebody has to change a setting.
    #[error("{0}")]
    Refused(String),
    /// The broker is too old for the question.
    #[error("{0}")]
    Unspoken(String),
    #[error("the broker's answer leaves it out")]
    Unanswered,
    /// An answer that leads nowhere.
    #[error("the broker gives the same page of topics again and again")]
    NoProgress,
    #[error("there was no time left to ask")]
    NoTime,
    #[error("stopped before it was asked")]
    Stopped,
}

impl AdminError {
    /// What to do about it, beside giving up.
    fn class(&self) -> Class {
        match self {
            Self::Kafka(error) => error.class,
            // Whoever does not answer may not be the one to ask any more.
            Self::Unreachable(_) | Self::Unanswered => Class::FindCoordinator,
            Self::NoSuchGroup
            | Self::Refused(_)
            | Self::Unspoken(_)
            | Self::NoProgress
            | Self::NoTime
            | Self::Stopped => Class::Fatal,
        }
    }
}

impl From<AskError> for AdminError {
    fn from(error: AskError) -> Self {
        match error {
            error if error.is_stop() => Self::Stopped,
            AskError::Failed(error) if error.is_refusal() => Self::Refused(error.to_string()),
            error if error.is_unspoken() => Self::Unspoken(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

/// The groups of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupList {
    /// By name, with the broker that coordinates it.
    pub(crate) groups: BTreeMap<Arc<str>, (i32, ListedGroup)>,
    /// Brokers whose groups are not in the list.
    pub(crate) missing: BTreeMap<i32, AdminError>,
}

/// A group with its members, whichever protocol it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupDescription {
    pub(crate) coordinator: BrokerAddress,
    /// Kafka's name of the state, as `Stable`.
    pub(crate) state: Arc<str>,
    /// `consumer` for consumers of both protocols; empty where the group only
    /// commits.
    pub(crate) protocol_type: Arc<str>,
    /// Who spreads the partitions, as `range`; empty without members.
    pub(crate) assignor: Arc<str>,
    /// The group's epoch and that of its assignment; none for the classic
    /// protocol.
    pub(crate) epochs: Option<(i32, i32)>,
    pub(crate) members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupMember {
    pub(crate) id: Arc<str>,
    /// Of a static member.
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) client_id: Arc<str>,
    pub(crate) host: Arc<str>,
    pub(crate) assigned: Assigned,
    /// What only the new protocol tells.
    pub(crate) details: Option<MemberDetails>,
}

/// What the new protocol tells of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberDetails {
    pub(crate) epoch: i32,
    pub(crate) rack: Option<Arc<str>>,
    /// What it is to have once the group has come to rest.
    pub(crate) target: AssignedTopics,
    /// Whether it speaks the classic protocol, in a group under migration; none
    /// where the broker does not tell.
    pub(crate) is_classic: Option<bool>,
}

/// What a member has been given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Assigned {
    Partitions(AssignedTopics),
    /// The group is not one of consumers: its assignments are its own affair.
    Foreign,
    /// The member's leader wrote something that is no assignment.
    Unreadable(String),
}

/// Answers by group.
pub(crate) type ByGroup<A> = BTreeMap<Arc<str>, Result<A, AdminError>>;

/// What a broker says of a group.
type Saying<A> = (Arc<str>, Result<A, AdminError>);

/// What a broker says of groups.
type Told<A> = Vec<Saying<A>>;

/// Asks on behalf of somebody who looks at a cluster.
pub(crate) struct Admin {
    session: Session,
    /// What a single wait is allowed by the settings.
    longest: Duration,
}

impl Admin {
    /// Connects with the first question. `stop` interrupts every wait.
    ///
    /// # Errors
    ///
    /// Where a bootstrap address is not of the form `host:port`.
    pub(crate) fn new(
        settings: ConnectionSettings,
        clock: Clock,
        stop: StopFlag,
    ) -> Result<Self, ConnectionError> {
        let longest = settings.request_timeout;
        // A cluster of its own: who looks from outside has no member beside it
        // whose topics the snapshot would have to keep.
        let (cluster, _) = Cluster::new();
        Ok(Self {
            session: Session::new(settings, clock, cluster, stop)?,
            longest,
        })
    }

    /// The groups of all brokers, those of `filter`.
    ///
    /// A broker that is older than the choice of protocols has classic groups
    /// only.
    ///
    /// # Errors
    ///
    /// Where no broker says in time which brokers there are. What single
    /// brokers do not tell is in the list.
    pub(crate) fn list_groups(
        &mut self,
        filter: &ListGroupsRequest,
        deadline: Instant,
    ) -> Result<GroupList, AdminError> {
        let mut listing = Listing::new(self.brokers(deadline)?);
        while listing.is_open() {
            let open = listing.open();
            for (index, (id, address)) in open.iter().enumerate() {
                self.share_time(deadline, open.len() - index)?;
                let told = self.list_of(address, filter);
                if told == Err(AdminError::Stopped) {
                    return Err(AdminError::Stopped);
                }
                listing.told(*id, told);
            }
            if !listing.is_open() || !self.wait(listing.round(), deadline)? {
                break;
            }
            if let Ok(brokers) = self.brokers(deadline) {
                listing.keep(&brokers);
            }
        }
        Ok(listing.close())
    }

    /// Groups with their members, whichever protocol each has.
    pub(crate) fn describe_groups(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> ByGroup<GroupDescription> {
        self.each_group(groups, deadline, describe_at)
    }

    /// Everything that groups have committed; nothing where a group has not, or
    /// where there is no such group.
    pub(crate) fn group_offsets(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
    ) -> ByGroup<Vec<GroupOffset>> {
        self.each_group(groups, deadline, offsets_at)
    }

    /// Topics with their partitions; all topics where none are named. A topic
    /// that cannot be described carries its error.
    ///
    /// # Errors
    ///
    /// Where no broker answers in time.
    pub(crate) fn describe_topics(
        &mut self,
        names: &[Arc<str>],
        deadline: Instant,
    ) -> Result<Vec<DescribedTopic>, AdminError> {
        let mut pages = Pages::default();
        loop {
            let request = DescribeTopicsRequest {
                topics: names.to_vec(),
                limit: PARTITIONS_AT_ONCE,
                from: pages.from.clone(),
            };
            let Some(page) = self.persist(deadline, |session| session.ask_any_broker(&request))?
            else {
                return self.topics_by_metadata(names, deadline);
            };
            if !pages.add(page)? {
                return Ok(pages.topics);
            }
        }
    }

    /// As brokers before 3.8 tell it.
    fn topics_by_metadata(
        &mut self,
        names: &[Arc<str>],
        deadline: Instant,
    ) -> Result<Vec<DescribedTopic>, AdminError> {
        let request = TopicsByMetadataRequest {
            topics: names.to_vec(),
        };
        self.persist(deadline, |session| session.ask_any_broker(&request))?
            .ok_or(AdminError::Unanswered)
    }

    /// The brokers that the cluster has now.
    fn brokers(&mut self, deadline: Instant) -> Result<BTreeMap<i32, BrokerAddress>, AdminError> {
        self.persist(deadline, |session| session.refresh(&BTreeSet::new()))?;
        Ok(self.session.cluster.snapshot().brokers.clone())
    }

    /// Asks until there is an answer; none where it is not spoken.
    fn persist<A>(
        &mut self,
        deadline: Instant,
        mut ask: impl FnMut(&mut Session) -> Result<A, AskError>,
    ) -> Result<Option<A>, AdminError> {
        let mut failures = 0;
        loop {
            self.share_time(deadline, 1)?;
            let error = match ask(&mut self.session) {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) if error.is_unspoken() => return Ok(None),
                Err(error) => AdminError::from(error),
            };
            failures += 1;
            if !error.class().passes() || !self.wait(failures, deadline)? {
                return Err(error);
            }
        }
    }

    /// Asks each group's coordinator, with `ask` for the groups of one, until
    /// every group has an answer or the time is up.
    fn each_group<A>(
        &mut self,
        groups: &[Arc<str>],
        deadline: Instant,
        ask: impl Fn(&mut Session, &BrokerAddress, &[Arc<str>]) -> Told<A>,
    ) -> ByGroup<A> {
        let mut round = Round::new(groups);
        let mut failures = 0;
        let stopped_by = loop {
            if let Err(error) = self.ask_round(&mut round, deadline, &ask) {
                break error;
            }
            failures += 1;
            if !round.is_open() {
                break AdminError::NoTime;
            }
            match self.wait(failures, deadline) {
                Ok(true) => {}
                Ok(false) => break AdminError::NoTime,
                Err(error) => break error,
            }
        };
        round.close(&stopped_by)
    }

    fn ask_round<A>(
        &mut self,
        round: &mut Round<A>,
        deadline: Instant,
        ask: &impl Fn(&mut Session, &BrokerAddress, &[Arc<str>]) -> Told<A>,
    ) -> Result<(), AdminError> {
        for groups in round.without_coordinator().chunks(GROUPS_AT_ONCE) {
            self.share_time(deadline, 2)?;
            for (group, found) in coordinators(&mut self.session, groups) {
                round.found(&group, found);
            }
        }
        let by_coordinator = round.by_coordinator();
        let mut left = by_coordinator.len();
        for (coordinator, groups) in by_coordinator {
            for groups in groups.chunks(GROUPS_AT_ONCE) {
                self.share_time(deadline, left)?;
                let told = ask(&mut self.session, &coordinator, groups);
                round.told(groups, told);
            }
            left -= 1;
        }
        Ok(())
    }

    fn list_of(
        &mut self,
        broker: &BrokerAddress,
        filter: &ListGroupsRequest,
    ) -> Result<ListGroupsAnswer, AdminError> {
        let answer = match self.session.ask_broker(broker, filter) {
            Err(error) if error.is_unspoken() && !filter.types.is_empty() => {
                let mut answer = self.session.ask_broker(
                    broker,
                    &ListGroupsRequest {
                        types: Vec::new(),
                        ..filter.clone()
                    },
                )?;
                let is_classic = |name: &String| name.eq_ignore_ascii_case("classic");
                if !filter.types.iter().any(is_classic) {
                    answer.groups.clear();
                }
                answer
            }
            other => other?,
        };
        match ErrorCode::from_code(answer.error) {
            None => Ok(answer),
            Some(error) => Err(AdminError::Kafka(error)),
        }
    }

    /// Gives the next question its share of the time that is left, so that one
    /// broker that hangs does not take the others' answers with it.
    fn share_time(&mut self, deadline: Instant, askers: usize) -> Result<(), AdminError> {
        let left = deadline.saturating_duration_since(self.session.clock.now());
        if left.is_zero() {
            return Err(AdminError::NoTime);
        }
        let askers = u32::try_from(askers.max(1)).unwrap_or(u32::MAX);
        let share = (left / askers).max(SHORTEST).min(self.longest).min(left);
        self.session.settings.request_timeout = share;
        self.session.settings.connect_timeout = share;
        Ok(())
    }

    /// Waits before the next try; false where there is no time for one.
    fn wait(&mut self, failures: u32, deadline: Instant) -> Result<bool, AdminError> {
        let left = deadline.saturating_duration_since(self.session.clock.now());
        let delay = RETRY.random_delay(failures);
        if delay >= left {
            return Ok(false);
        }
        pause(delay, &self.session.clock, &self.session.stop)
            .map_err(|_| AdminError::Stopped)
            .map(|()| true)
    }
}

/// Who coordinates each of `groups`, as far as anybody tells.
fn coordinators(session: &mut Session, groups: &[Arc<str>]) -> Told<BrokerAddress> {
    let ask = |session: &mut Session, groups: &[Arc<str>]| {
        session.ask_any_broker(&CoordinatorsRequest {
            groups: groups.to_vec(),
        })
    };
    let answer = match ask(session, groups) {
        Err(error) if error.is_unspoken() && groups.len() > 1 => {
            return groups
                .chunks(1)
                .flat_map(|group| coordinators(session, group))
                .collect();
        }
        Err(error) => return all(groups, &AdminError::from(error)),
        Ok(answer) => answer,
    };
    answer
        .coordinators
        .into_iter()
        .filter_map(|found| {
            let group = found.group.or_else(|| groups.first().cloned())?;
            let coordinator = found.coordinator;
            let result = match ErrorCode::from_code(coordinator.error) {
                Some(error) => Err(AdminError::Kafka(error)),
                None => u16::try_from(coordinator.port)
                    .ok()
                    .filter(|_| !coordinator.host.is_empty())
                    .map(|port| BrokerAddress {
                        host: coordinator.host,
                        port,
                    })
                    .ok_or(AdminError::Unanswered),
            };
            Some((group, result))
        })
        .collect()
}

/// Describes groups of one coordinator: those of the new protocol, then the
/// rest as classic ones.
fn describe_at(
    session: &mut Session,
    coordinator: &BrokerAddress,
    groups: &[Arc<str>],
) -> Told<GroupDescription> {
    let mut told = Vec::new();
    let mut rest = groups.to_vec();
    match session.ask_broker(
        coordinator,
        &DescribeConsumerGroupsRequest {
            groups: groups.to_vec(),
        },
    ) {
        Ok(answer) => {
            for group in answer.groups {
                // Some versions know the request while the protocol is off.
                if matches!(group.error, GROUP_ID_NOT_FOUND | UNSUPPORTED_VERSION) {
                    continue;
                }
                rest.retain(|name| *name != group.group);
                told.push(consumer_group(group, coordinator));
            }
        }
        Err(error) if error.is_unspoken() => {}
        Err(error) => return all(groups, &AdminError::from(error)),
    }
    if rest.is_empty() {
        return told;
    }
    let request = DescribeGroupsRequest {
        groups: rest.clone(),
    };
    match session.ask_broker(coordinator, &request) {
        Ok(answer) => told.extend(
            answer
                .groups
                .into_iter()
                .map(|group| classic_group(group, coordinator)),
        ),
        Err(error) => told.extend(all(&rest, &AdminError::from(error))),
    }
    told
}

/// The commits of groups of one coordinator.
fn offsets_at(
    session: &mut Session,
    coordinator: &BrokerAddress,
    groups: &[Arc<str>],
) -> Told<Vec<GroupOffset>> {
    let request = GroupOffsetsRequest {
        groups: groups.to_vec(),
    };
    let answer = match session.ask_broker(coordinator, &request) {
        // A broker from before 3.0: one by one.
        Err(error) if error.is_unspoken() && groups.len() > 1 => {
            return groups
                .chunks(1)
                .flat_map(|group| offsets_at(session, coordinator, group))
                .collect();
        }
        Err(error) => return all(groups, &AdminError::from(error)),
        Ok(answer) => answer,
    };
    answer
        .groups
        .into_iter()
        .filter_map(|group| committed(group, groups.first()))
        .collect()
}

/// What an answer says of a group; `only` is the one that was asked for, where
/// the answer does not name it.
fn committed(group: GroupOffsets, only: Option<&Arc<str>>) -> Option<Saying<Vec<GroupOffset>>> {
    let name = group.group.or_else(|| only.cloned())?;
    let result = match ErrorCode::from_code(group.error) {
        Some(error) if error.code == GROUP_ID_NOT_FOUND => Ok(Vec::new()),
        Some(error) => Err(AdminError::Kafka(error)),
        None => Ok(group.offsets),
    };
    Some((name, result))
}

fn all<A>(groups: &[Arc<str>], error: &AdminError) -> Told<A> {
    groups
        .iter()
        .map(|group| (Arc::clone(group), Err(error.clone())))
        .collect()
}

fn consumer_group(group: ConsumerGroup, coordinator: &BrokerAddress) -> Saying<GroupDescription> {
    let result = match ErrorCode::from_code(group.error) {
        Some(error) => Err(AdminError::Kafka(error)),
        None => Ok(GroupDescription {
            coordinator: coordinator.clone(),
            state: group.state,
            protocol_type: Arc::from("consumer"),
            assignor: group.assignor,
            epochs: Some((group.epoch, group.assignment_epoch)),
            members: group.members.into_iter().map(consumer_member).collect(),
        }),
    };
    (group.group, result)
}

fn consumer_member(member: ConsumerMember) -> GroupMember {
    GroupMember {
        id: member.id,
        instance: member.instance,
        client_id: member.client_id,
        host: member.host,
        assigned: Assigned::Partitions(member.assignment),
        details: Some(MemberDetails {
            epoch: member.epoch,
            rack: member.rack,
            target: member.target,
            is_classic: member.is_classic,
        }),
    }
}

fn classic_group(group: ClassicGroup, coordinator: &BrokerAddress) -> Saying<GroupDescription> {
    let is_of_consumers = &*group.protocol_type == "consumer";
    let result = match ErrorCode::from_code(group.error) {
        Some(error) if error.code == GROUP_ID_NOT_FOUND => Err(AdminError::NoSuchGroup),
        Some(error) => Err(AdminError::Kafka(error)),
        // What is gone and what never was look the same.
        None if &*group.state == "Dead" => Err(AdminError::NoSuchGroup),
        None => Ok(GroupDescription {
            coordinator: coordinator.clone(),
            state: group.state,
            protocol_type: group.protocol_type,
            assignor: group.protocol,
            epochs: None,
            members: group
                .members
                .into_iter()
                .map(|member| classic_member(member, is_of_consumers))
                .collect(),
        }),
    };
    (group.group, result)
}

fn classic_member(member: ClassicMember, is_of_consumers: bool) -> GroupMember {
    GroupMember {
        id: member.id,
        instance: member.instance,
        client_id: member.client_id,
        host: member.host,
        assigned: if is_of_consumers {
            match consumer_assignment(member.assignment) {
                Ok(topics) => Assigned::Partitions(topics),
                Err(problem) => Assigned::Unreadable(problem),
            }
        } else {
            Assigned::Foreign
        },
        details: None,
    }
}

/// The brokers whose groups are to be listed, until each has told them.
#[derive(Debug)]
struct Listing {
    open: BTreeMap<i32, (BrokerAddress, u32, AdminError)>,
    list: GroupList,
    round: u32,
}

impl Listing {
    fn new(brokers: BTreeMap<i32, BrokerAddress>) -> Self {
        Self {
            open: brokers
                .into_iter()
                .map(|(id, address)| (id, (address, 0, AdminError::NoTime)))
                .collect(),
            list: GroupList::default(),
            round: 0,
        }
    }

    fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    fn open(&mut self) -> Vec<(i32, BrokerAddress)> {
        self.round += 1;
        self.open
            .iter()
            .map(|(id, (address, _, _))| (*id, address.clone()))
            .collect()
    }

    fn round(&self) -> u32 {
        self.round
    }

    fn told(&mut self, broker: i32, told: Result<ListGroupsAnswer, AdminError>) {
        let error = match told {
            Ok(answer) => {
                self.open.remove(&broker);
                for group in answer.groups {
                    // One that moved meanwhile is listed by both: the later
                    // answer has the later coordinator.
                    self.list
                        .groups
                        .insert(Arc::clone(&group.group), (broker, group));
                }
                return;
            }
            Err(error) => error,
        };
        let Some((_, failures, last)) = self.open.get_mut(&broker) else {
            return;
        };
        *failures += 1;
        let gives_up = match error {
            AdminError::Kafka(error) => !error.class.passes(),
            AdminError::Unspoken(_) | AdminError::Refused(_) => true,
            _ => *failures >= TRIES,
        };
        *last = error;
        if gives_up && let Some((_, _, error)) = self.open.remove(&broker) {
            self.list.missing.insert(broker, error);
        }
    }

    /// Those that the cluster does not have any more have no groups either.
    fn keep(&mut self, brokers: &BTreeMap<i32, BrokerAddress>) {
        self.open.retain(|id, _| brokers.contains_key(id));
    }

    fn close(mut self) -> GroupList {
        for (id, (_, _, error)) in self.open {
            self.list.missing.insert(id, error);
        }
        self.list
    }
}

/// Groups that something is asked of, until each has its answer.
#[derive(Debug)]
struct Round<A> {
    open: BTreeMap<Arc<str>, Open>,
    answers: ByGroup<A>,
}

/// A group without an answer.
#[derive(Debug, Default)]
struct Open {
    coordinator: Option<BrokerAddress>,
    problem: Option<AdminError>,
}

impl<A> Round<A> {
    fn new(groups: &[Arc<str>]) -> Self {
        Self {
            open: groups
                .iter()
                .map(|group| (Arc::clone(group), Open::default()))
                .collect(),
            answers: BTreeMap::new(),
        }
    }

    fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    fn without_coordinator(&self) -> Vec<Arc<str>> {
        self.open
            .iter()
            .filter(|(_, open)| open.coordinator.is_none())
            .map(|(group, _)| Arc::clone(group))
            .collect()
    }

    fn by_coordinator(&self) -> HashMap<BrokerAddress, Vec<Arc<str>>> {
        let mut groups: HashMap<BrokerAddress, Vec<Arc<str>>> = HashMap::new();
        for (group, open) in &self.open {
            if let Some(coordinator) = &open.coordinator {
                groups
                    .entry(coordinator.clone())
                    .or_default()
                    .push(Arc::clone(group));
            }
        }
        groups
    }

    fn found(&mut self, group: &Arc<str>, found: Result<BrokerAddress, AdminError>) {
        match found {
            Ok(coordinator) => {
                if let Some(open) = self.open.get_mut(group) {
                    open.coordinator = Some(coordinator);
                }
            }
            Err(error) => self.failed(group, error),
        }
    }

    /// Takes the answers of the coordinator of `asked`. What it leaves out is
    /// asked again, and what was not asked for is not believed.
    fn told(&mut self, asked: &[Arc<str>], told: Told<A>) {
        let mut left_out: BTreeSet<&Arc<str>> = asked.iter().collect();
        for (group, result) in told {
            if !left_out.remove(&group) {
                continue;
            }
            match result {
                Ok(answer) => {
                    self.open.remove(&group);
                    self.answers.insert(group, Ok(answer));
                }
                Err(error) => self.failed(&group, error),
            }
        }
        for group in left_out {
            self.failed(group, AdminError::Unanswered);
        }
    }

    fn failed(&mut self, group: &Arc<str>, error: AdminError) {
        let Some(open) = self.open.get_mut(group) else {
            return;
        };
        let class = error.class();
        if !class.passes() {
            self.open.remove(group);
            self.answers.insert(Arc::clone(group), Err(error));
            return;
        }
        if class != Class::Retriable {
            open.coordinator = None;
        }
        open.problem = Some(error);
    }

    /// The answers; groups without one have the problem that they last had.
    fn close(mut self, otherwise: &AdminError) -> ByGroup<A> {
        for (group, open) in self.open {
            let error = open.problem.unwrap_or_else(|| otherwise.clone());
            self.answers.insert(group, Err(error));
        }
        self.answers
    }
}

/// Topics that come page by page.
#[derive(Debug, Default)]
struct Pages {
    topics: Vec<DescribedTopic>,
    /// Where the next page begins.
    from: Option<Cursor>,
}

impl Pages {
    /// Adds a page; true where there is another.
    fn add(&mut self, page: DescribeTopicsAnswer) -> Result<bool, AdminError> {
        for topic in page.topics {
            match self.topics.last_mut() {
                // The page before ended within this topic.
                Some(last) if last.name == topic.name => last.partitions.extend(topic.partitions),
                _ => self.topics.push(topic),
            }
        }
        let Some(next) = page.next else {
            return Ok(false);
        };
        let key = |cursor: &Cursor| (Arc::clone(&cursor.topic), cursor.partition);
        if self
            .from
            .as_ref()
            .is_some_and(|from| key(&next) <= key(from))
        {
            return Err(AdminError::NoProgress);
        }
        self.from = Some(next);
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
