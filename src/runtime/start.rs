//! How a run begins: everything is checked and made before anything runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::clock::Clock;
use crate::config::{Builder, Model, Order, Settings, Source as Through, StartFrom};
use crate::error::Error;
use crate::kafka::ask_client::AskClient;
use crate::kafka::cluster::Cluster;
use crate::kafka::connection::StopFlag;
use crate::kafka::dead_letters::KafkaDeadLetters;
use crate::kafka::group::KafkaGroup;
use crate::kafka::lookup::{
    ContactError, KafkaEnds, Lookup, LookupStartError, Sinks, StartAnswer, StartQuery, StartRule,
    TopicEvent, first_contact,
};
use crate::kafka::security::{Security, Unusable};
use crate::kafka::{ConnectionSettings, properties};
use crate::lag::advice::Hands;
use crate::lag::reporter::ReporterParts;
use crate::member::assignment::{Ask, Resolve};
use crate::member::group::Group as _;
use crate::member::run::{Found, Parts, StartFinder, ToMember};
use crate::process::launch::Launcher;
use crate::process::parent::Children;
use crate::runtime::events::{EventSink, EventThread};
use crate::runtime::handle::Handle;
use crate::runtime::services::{Listener, Services};
use crate::runtime::shared::Shared;
use crate::runtime::threads::{Common, OnThreads, WorkerThreads};
use crate::source::client::ClientFactory;
use crate::source::fetch::FetchFactory;
use crate::source::{MemoryBudget, SourceFactory};
use crate::worker::dead_letter::DeadLetters;
use crate::worker::engine::EngineFactory;
use crate::worker::gate::Gate;
use crate::worker::pool::Pool;
use crate::worker::pool::backlog::Lanes;
use crate::worker::pool::schedule::Rules;
use crate::worker::tracker::CountBudget;

/// Messages that may wait for the member. Its loop turns many times a second
/// and never waits for those who send.
const INBOX: usize = 4_096;

/// How long workers that share partitions may work off what the next owner would
/// otherwise do again.
const LONGEST_DRAIN: Duration = Duration::from_secs(1);

/// How long the observer may take over its last events.
const LAST_EVENTS: Duration = Duration::from_millis(250);

/// Without a session nothing says how long a member's loop may be held up.
const STATIC_STALL: Duration = Duration::from_secs(20);

/// Starts a run; `None` where `stop` was set before the first contact.
pub(crate) fn start(
    builder: Builder,
    engines: EngineFactory,
    stop: &StopFlag,
) -> Result<Option<Handle>, Error> {
    let Builder { settings, observer } = builder;
    check(&settings, &engines)?;
    let processes = settings.model == Model::Processes;
    let launcher = processes.then(Launcher::new).transpose()?;
    let listener = Listener::bind(&settings)?;
    let clock = Clock::System;
    // Made before the first contact: what librdkafka refuses is a mistake in
    // the settings, whether or not a broker is there.
    let group = KafkaGroup::new(&settings)?;
    // Each worker that is a process has its own.
    let dead_letters = if processes {
        None
    } else {
        dead_letters(&settings)?
    };
    let connections = connection_settings(&settings)?;
    let (cluster, bell) = Cluster::new();
    let Some(topics) = contact(&settings, &connections, &clock, &cluster, stop)? else {
        return Ok(None);
    };
    let (events_thread, events) = EventThread::start(observer, &clock).map_err(no_thread)?;
    let (to_member, inbox) = bounded(INBOX);
    let lookup = start_lookup(&connections, &clock, &cluster, bell, sinks(&to_member))?;
    lookup.want_topics(topics.iter().map(|(topic, _)| Arc::clone(topic)));
    let (shared, rings) = Shared::new(clock.coarse());
    let shared = Arc::new(shared);
    let beside = Beside {
        settings: &settings,
        connections: &connections,
        clock: &clock,
        cluster: &cluster,
        events: &events,
        shared: &shared,
        stall_after: group
            .session_timeout()
            .map_or(STATIC_STALL, |timeout| timeout / 2),
        hands: hands(&settings, engines.is_async()),
    };
    let services = beside.start(listener, rings)?;
    let (reports, from_workers) = bounded(INBOX);
    let limit = group.sleep_limit().unwrap_or(Duration::MAX);
    let gate = Arc::new(Gate::new(limit, clock.coarse()));
    let memory = Arc::new(MemoryBudget::new(settings.memory_budget));
    let count = settings
        .count
        .map(|count| Arc::new(CountBudget::new(count)));
    let children = launcher.map(|launcher| {
        let memory = Arc::clone(&memory);
        Arc::new(Children::new(launcher, &settings, &engines, limit, memory))
    });
    let pool = if processes {
        None
    } else {
        let (letters, count) = (dead_letters.clone(), count.clone());
        pool(
            &settings,
            engines.is_async(),
            &clock,
            &events,
            letters,
            count,
        )
    };
    let threads = WorkerThreads::new(Common {
        clock: clock.clone(),
        gate: Arc::clone(&gate),
        reports,
        events: events.clone(),
        sources: sources(&settings, connections, cluster, &memory, &clock),
        engines: Arc::new(engines),
        retry: settings.retry,
        dead_letters,
        count,
        memory,
        pool,
        children,
        is_child: false,
        spawn: Box::new(OnThreads),
    });
    let starts = KafkaStarts::new(lookup, &settings, &topics);
    let parts = Parts {
        settings,
        clock: clock.clone(),
        group: Box::new(group),
        starts: Box::new(starts),
        threads,
        reports: from_workers,
        inbox,
        gate,
        events,
        shared: Arc::clone(&shared),
        topics,
    };
    let member = std::thread::Builder::new()
        .name("keepup-member".into())
        .spawn(move || {
            let report = crate::member::run::run(parts);
            events_thread.join(LAST_EVENTS, &clock);
            report
        })
        .map_err(no_thread)?;
    Ok(Some(Handle::new(member, to_member, shared, services)))
}

/// Everything that is wrong with what a run would be made from.
pub(crate) fn check(settings: &Settings, engines: &EngineFactory) -> Result<(), Error> {
    let mut problems = settings.problems();
    problems.extend(engines.problems(settings.order));
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::InvalidSettings(problems))
    }
}

fn start_lookup(
    connections: &ConnectionSettings,
    clock: &Clock,
    cluster: &Cluster,
    bell: Receiver<()>,
    sinks: Sinks,
) -> Result<Lookup, Error> {
    let (connections, clock) = (connections.clone(), clock.clone());
    Lookup::start(connections, clock, cluster.clone(), bell, sinks).map_err(no_lookup)
}

/// What a worker needs that is a process of its own: what the parent has made for
/// all, where workers are threads.
pub(crate) struct Kit {
    pub(crate) sources: Arc<dyn SourceFactory>,
    pub(crate) dead_letters: Option<Arc<dyn DeadLetters>>,
    pub(crate) memory: Arc<MemoryBudget>,
    /// Follows the leaders of what the worker reads.
    pub(crate) lookup: Lookup,
}

impl Kit {
    /// Asks no broker yet: whether there is one the parent knows.
    pub(crate) fn of_worker(settings: &Settings, clock: &Clock) -> Result<Self, Error> {
        let dead_letters = dead_letters(settings)?;
        let connections = connection_settings(settings)?;
        let (cluster, bell) = Cluster::new();
        // Start positions, and what becomes of topics, are the member's.
        let ignored = Sinks {
            starts: Box::new(|_| {}),
            topics: Box::new(|_| {}),
        };
        let lookup = start_lookup(&connections, clock, &cluster, bell, ignored)?;
        let memory = Arc::new(MemoryBudget::new(settings.memory_budget));
        Ok(Self {
            sources: sources(settings, connections, cluster, &memory, clock),
            dead_letters,
            memory,
            lookup,
        })
    }
}

fn dead_letters(settings: &Settings) -> Result<Option<Arc<dyn DeadLetters>>, Error> {
    let letters = KafkaDeadLetters::new(settings)?;
    Ok(letters.map(|letters| Arc::new(letters) as Arc<dyn DeadLetters>))
}

/// What workers can do at once.
fn hands(settings: &Settings, is_async: bool) -> Hands {
    Hands {
        each: if is_async { settings.in_flight } else { 1 },
        by_partition: settings.order == Order::Partition,
    }
}

/// What the workers share where none of them has partitions of its own: in orders
/// smaller than a partition, and where a worker has many records in hand.
pub(crate) fn pool(
    settings: &Settings,
    is_async: bool,
    clock: &Clock,
    events: &EventSink,
    dead_letters: Option<Arc<dyn DeadLetters>>,
    count: Option<Arc<CountBudget>>,
) -> Option<Arc<Pool>> {
    let lanes = match settings.order {
        Order::Partition if is_async => Lanes::Partition,
        Order::Partition => return None,
        Order::Key => Lanes::Keys,
        Order::Unordered => Lanes::Records,
    };
    let rules = Rules {
        drain: LONGEST_DRAIN.min(settings.revoke_deadline / 2),
        lanes,
        remember_completed: settings.remember_completed,
        #[cfg(feature = "tokio")]
        hands: settings.in_flight,
        retry: settings.retry,
        dead_letters,
        count,
        events: events.clone(),
    };
    Some(Arc::new(Pool::new(rules, clock.clone(), fastrand::u64(..))))
}

/// What the reporter and the endpoints need of a run.
struct Beside<'a> {
    settings: &'a Settings,
    connections: &'a ConnectionSettings,
    clock: &'a Clock,
    cluster: &'a Cluster,
    events: &'a EventSink,
    shared: &'a Arc<Shared>,
    stall_after: Duration,
    hands: Hands,
}

impl Beside<'_> {
    fn start(&self, listener: Listener, rings: Receiver<()>) -> Result<Services, Error> {
        let stop_asking = StopFlag::default();
        let ends = KafkaEnds::new(
            self.connections.clone(),
            self.clock.clone(),
            self.cluster.clone(),
            stop_asking.clone(),
        )
        .map_err(|error| Error::Client {
            message: error.to_string(),
        })?;
        let reporter = ReporterParts {
            group: Arc::from(self.settings.group.as_str()),
            client_id: Arc::from(properties::client_id(self.settings)),
            isolation: self.connections.isolation,
            model: self.settings.model,
            hands: self.hands,
            clock: self.clock.clone(),
            shared: Arc::clone(self.shared),
            rings,
            ends: Box::new(ends),
            failures: Arc::clone(&self.connections.failures),
            events: self.events.clone(),
            stuck_after: self.settings.stuck_after,
            stall_after: self.stall_after,
            viewers: Vec::new(),
        };
        Services::start(self.settings, listener, reporter, stop_asking).map_err(no_thread)
    }
}

/// Topics and how many partitions they have.
type Sizes = Vec<(Arc<str>, usize)>;

/// Makes contact, and gives the topics that are subscribed by name with their
/// sizes; `None` where `stop` was set first.
fn contact(
    settings: &Settings,
    connections: &ConnectionSettings,
    clock: &Clock,
    cluster: &Cluster,
    stop: &StopFlag,
) -> Result<Option<Sizes>, Error> {
    let topics: Vec<Arc<str>> = settings
        .topics
        .iter()
        .filter(|topic| !topic.starts_with('^'))
        .map(|topic| Arc::from(topic.as_str()))
        .collect();
    let timeout = settings.contact_timeout;
    match first_contact(connections, clock, cluster, &topics, timeout, stop) {
        Ok(()) => {}
        Err(ContactError::Stopped) => return Ok(None),
        Err(error) => return Err(refused(error)),
    }
    let found = cluster.snapshot();
    let size = |topic: &Arc<str>| {
        found
            .topics
            .get(topic)
            .map_or(0, |known| known.partitions.len())
    };
    Ok(Some(
        topics
            .into_iter()
            .map(|topic| (Arc::clone(&topic), size(&topic)))
            .collect(),
    ))
}

/// What our own connections are made with; or, where records are read through
/// librdkafka, the client of it that our questions go through.
fn connection_settings(settings: &Settings) -> Result<ConnectionSettings, Error> {
    let bootstrap = settings
        .bootstrap
        .split(',')
        .map(|server| server.trim().to_owned())
        .collect();
    let mut connections = ConnectionSettings::new(bootstrap);
    properties::client_id(settings).clone_into(&mut connections.client_id);
    connections.isolation = properties::isolation(settings);
    if let Some(rack) = settings.properties.get("client.rack") {
        connections.rack = Arc::from(rack.as_str());
    }
    connections.group = Some(settings.group.clone());
    if settings.source_in_force() == Through::Client {
        if let (Through::Auto, Some(not_spoken)) = (settings.source, settings.not_spoken()) {
            // Whoever has chosen it is not told.
            tracing::warn!(
                "{not_spoken}: records are read through it, more slowly; --source client says so \
                 and silences this"
            );
        }
        connections.client = Some(AskClient::open(settings)?);
        return Ok(connections);
    }
    let security = Security::of(&settings.properties).map_err(|unusable| {
        Error::InvalidSettings(match unusable {
            Unusable::Wrong(problems) => problems,
            // Told before anything is made.
            Unusable::NotSpoken(_) => settings.problems(),
        })
    })?;
    if security.is_unverified() {
        tracing::warn!(
            "enable.ssl.certificate.verification is off: anybody on the way can pretend to be the \
             broker, and read what is sent to it"
        );
    }
    connections.security = security;
    Ok(connections)
}

/// What the workers read through.
fn sources(
    settings: &Settings,
    connections: ConnectionSettings,
    cluster: Cluster,
    memory: &Arc<MemoryBudget>,
    clock: &Clock,
) -> Arc<dyn SourceFactory> {
    if connections.client.is_some() {
        return Arc::new(ClientFactory::new(
            Arc::new(settings.clone()),
            Arc::clone(memory),
            clock.clone(),
        ));
    }
    Arc::new(FetchFactory::new(
        cluster,
        Arc::new(connections),
        Arc::clone(memory),
        clock.clone(),
    ))
}

fn no_lookup(error: LookupStartError) -> Error {
    match error {
        LookupStartError::Thread(source) => no_thread(source),
        LookupStartError::Address(error) => Error::Client {
            message: error.to_string(),
        },
    }
}

fn no_thread(source: std::io::Error) -> Error {
    Error::System {
        what: "start a thread",
        source,
    }
}

fn refused(error: ContactError) -> Error {
    match error {
        ContactError::NoContact {
            bootstrap,
            waited,
            last,
        } => Error::NoContact {
            bootstrap,
            timeout: waited,
            last_error: last,
        },
        ContactError::Insecure { bootstrap, reason } => Error::Insecure { bootstrap, reason },
        ContactError::UnknownTopics { topics, .. } => Error::UnknownTopic {
            topics: topics.iter().map(ToString::to_string).collect(),
        },
        ContactError::NotAuthorized { resource, error } => Error::NotAuthorized {
            what: resource.to_string(),
            remedy: error.remedy.to_string(),
        },
        other => Error::Refused {
            message: other.to_string(),
        },
    }
}

/// What the lookup finds goes to the member, as messages.
fn sinks(to_member: &Sender<ToMember>) -> Sinks {
    let (starts, topics) = (to_member.clone(), to_member.clone());
    Sinks {
        starts: Box::new(move |answer: StartAnswer| {
            let start = answer
                .result
                .map(|start| Found {
                    ask: match answer.from {
                        StartRule::CommittedElse(_) => Ask::Start,
                        StartRule::Range => Ask::Range,
                    },
                    offset: start.offset,
                    committed: start.committed,
                    note: start.note,
                    truncated_at: start.truncated_at,
                    end_offset: start.end_offset,
                })
                .map_err(|error| format!("{} has no start position: {error}", answer.partition));
            // Without a member there is nobody who wants to know.
            let _ = starts.send(ToMember::Start {
                epoch: answer.epoch,
                start,
            });
        }),
        topics: Box::new(move |event| {
            let _ = topics.send(topic_message(event));
        }),
    }
}

fn topic_message(event: TopicEvent) -> ToMember {
    match event {
        TopicEvent::PartitionsChanged { topic, to, .. } => ToMember::TopicSize {
            topic,
            partitions: to,
        },
        TopicEvent::Recreated { topic, .. } => ToMember::TopicRecreated(topic),
        TopicEvent::Trouble { topic, error } => ToMember::Warning(format!(
            "topic {topic} is not described any more: {error}; keeps trying"
        )),
        TopicEvent::Recovered { topic } => {
            ToMember::Warning(format!("topic {topic} is described again"))
        }
        TopicEvent::Shrunk { topic, from, to } => ToMember::Warning(format!(
            "the cluster says that topic {topic} has {to} partitions, and it had {from}: topics \
             do not shrink, so the larger number is kept"
        )),
    }
}

/// Start positions on a real cluster.
struct KafkaStarts {
    lookup: Lookup,
    policy: StartFrom,
    want_end: bool,
    /// Topics that are subscribed by name: wanted whether or not anything of
    /// them is assigned.
    named: BTreeSet<Arc<str>>,
}

impl KafkaStarts {
    fn new(lookup: Lookup, settings: &Settings, topics: &Sizes) -> Self {
        Self {
            lookup,
            policy: settings.start_from,
            want_end: settings.until_end,
            named: topics.iter().map(|(topic, _)| Arc::clone(topic)).collect(),
        }
    }
}

impl StartFinder for KafkaStarts {
    fn resolve(&self, lanes: Vec<Resolve>) {
        let queries = lanes
            .into_iter()
            .map(|lane| StartQuery {
                partition: lane.partition,
                epoch: lane.epoch,
                from: match lane.ask {
                    Ask::Start => StartRule::CommittedElse(self.policy),
                    Ask::Range => StartRule::Range,
                },
                want_end: self.want_end,
                cancelled: lane.cancelled,
            })
            .collect();
        self.lookup.resolve(queries);
    }

    fn forget(&self, mut topics: Vec<Arc<str>>) {
        // Those of a pattern are known by their assignment alone.
        topics.retain(|topic| !self.named.contains(topic));
        if !topics.is_empty() {
            self.lookup.forget_topics(topics);
        }
    }

    fn is_alive(&self) -> bool {
        !self.lookup.has_ended()
    }

    fn stop(self: Box<Self>, patience: Duration) {
        if let Err(left_behind) = self.lookup.stop(patience) {
            tracing::warn!("{left_behind}");
        }
    }
}
