//! The settings of a run, their defaults, and the rules between them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Problem;
use crate::kafka::security::{NotSpoken, Security, Unusable};
use crate::source::MemoryBudget;
use crate::worker::pool::schedule::MOST_UNTAKEN;

/// Gives the values of a setting their names in options: `name()`, which
/// `Display` and `FromStr` follow.
macro_rules! choice {
    ($setting:ident: $($value:ident = $name:literal),+) => {
        impl $setting {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            /// Its name in options.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $name),+
                }
            }
        }

        impl fmt::Display for $setting {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $setting {
            type Err = String;

            /// One of the names that [`name`](Self::name) gives.
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|value| value.name() == text)
                    .ok_or_else(|| {
                        let names: Vec<_> = Self::ALL.iter().map(|value| value.name()).collect();
                        format!("{text:?}: give one of {}", names.join(", "))
                    })
            }
        }
    };
}

/// How many workers run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// Always that many; those without a partition idle.
    Fixed(usize),
    /// As many as this process has partitions, up and down with every
    /// assignment, but not more than `max`.
    MatchPartitions {
        /// The most that may run.
        max: usize,
    },
}

impl Workers {
    /// The default: `MatchPartitions { max: 64 }`.
    pub const AUTO: Self = Self::MatchPartitions { max: 64 };

    /// The most threads that an operator can have meant.
    pub const MOST: usize = 4_096;

    /// How many workers should run for that many partitions.
    pub(crate) fn wanted(self, partitions: usize) -> usize {
        match self {
            Self::Fixed(workers) => workers,
            Self::MatchPartitions { max } => partitions.min(max),
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn problem(self) -> Option<Problem> {
        let (count, setting) = match self {
            Self::Fixed(count) => (count, "workers"),
            Self::MatchPartitions { max } => (max, "workers (auto)"),
        };
        match count {
            0 => Some(Problem::new(
                setting,
                count,
                "at least one worker is needed to handle anything",
                "give 1 or more, or auto for as many as there are partitions",
            )),
            1..=Self::MOST => None,
            _ => Some(Problem::new(
                setting,
                count,
                format!("one process runs at most {} workers", Self::MOST),
                "give less, and more processes",
            )),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(workers) => write!(f, "{workers}"),
            Self::MatchPartitions { max } => write!(f, "auto:{max}"),
        }
    }
}

impl FromStr for Workers {
    type Err = String;

    /// A number, `auto` (= `auto:64`) or `auto:MAX`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            digits.parse::<usize>().map_err(|_| {
                format!("{text:?} is not a number of workers: give a number, auto or auto:MAX")
            })
        };
        match text.strip_prefix("auto") {
            Some("") => Ok(Self::AUTO),
            Some(rest) => match rest.strip_prefix(':') {
                Some(max) => Ok(Self::MatchPartitions { max: number(max)? }),
                None => Err(format!("{text:?}: give a number, auto or auto:MAX")),
            },
            None => Ok(Self::Fixed(number(text)?)),
        }
    }
}

/// What a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Model {
    /// A thread of this process.
    #[default]
    Threads,
    /// A process of its own: this executable, started again with the same
    /// arguments. This process is the member of the group, has the metrics, and
    /// starts a worker again that dies; a worker's `run()` becomes that worker
    /// and does not return.
    ///
    /// What stands before `run()` in `main` happens in every process, and has to
    /// come to the same settings there; [`is_worker_process`] tells them apart.
    /// Only `bootstrap` is the parent's in all of them.
    /// It must not read standard input, which is the line to the parent. What a
    /// worker prints is passed on by the parent in whole lines. Refused in test
    /// and benchmark programs of cargo, which would run their tests again.
    ///
    /// [`is_worker_process`]: crate::is_worker_process
    Processes,
}

choice!(Model: Threads = "threads", Processes = "processes");

/// How partitions come to this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assignment {
    /// Kafka's group protocol gives them, and takes them away.
    #[default]
    Group,
    /// No group protocol: process `index` of `of` takes the partitions p with
    /// p mod `of` = `index`, of every topic. Offsets are still committed under
    /// the group's name.
    Static {
        /// This process's number, from 0.
        index: usize,
        /// How many processes there are.
        of: usize,
    },
}

/// Where a partition begins that has no committed offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// At the oldest record.
    #[default]
    Earliest,
    /// At the end: only what is produced from now on. A partition that is new
    /// in a topic of which the group has commits starts at its oldest record,
    /// since all of it was produced from then on; and nothing is handed over
    /// before the first position is committed, so that a crash cannot skip
    /// what was produced meanwhile.
    Latest,
    /// At the first record with that timestamp or a later one, in milliseconds
    /// since 1970.
    Timestamp(i64),
}

pub(crate) use StartFrom as ResetPolicy;

/// What becomes of a partition whose offset is out of the range that the broker
/// has: retention passed it, or the log lost what was read. Each time it is told
/// by [`EventKind::PositionReset`](crate::EventKind::PositionReset) and in the
/// log.
///
/// Not the same as [`StartFrom`], which is for groups that begin: a group that
/// began at the end, and stood still for longer than the retention, wants what
/// is left of what it has not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// It goes on at the oldest record: nothing that the log has is skipped,
    /// and where the log lost records at its end, what it kept comes again.
    #[default]
    Earliest,
    /// It goes on at the end: what the log has and was not read is skipped.
    Latest,
    /// The run ends, with what was completed committed and nothing beyond.
    Stop,
}

choice!(OutOfRange: Earliest = "earliest", Latest = "latest", Stop = "stop");

/// Which records of transactions are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Only those of committed transactions, up to the last stable offset.
    #[default]
    ReadCommitted,
    /// All, aborted ones included.
    ReadUncommitted,
}

impl Isolation {
    /// Its name in Kafka's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// What records are read through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// [`Fetch`](Source::Fetch) where our own connections speak the security
    /// that the properties ask for, else [`Client`](Source::Client), with one
    /// line in the log.
    #[default]
    Auto,
    /// Connections of our own, one per worker and leader: the fast way.
    Fetch,
    /// librdkafka, one client per worker: slower, and speaks everything that
    /// librdkafka speaks (Kerberos, OAUTHBEARER, keystores).
    Client,
}

impl Source {
    /// Its name on the command line and in output; `None` for [`Auto`](Source::Auto).
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Fetch => Some("fetch"),
            Self::Client => Some("client"),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    /// `fetch` or `client`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fetch" => Ok(Self::Fetch),
            "client" => Ok(Self::Client),
            _ => Err(format!("{text:?}: give fetch or client")),
        }
    }
}

/// What becomes of a record that failed as often as the [`RetryPolicy`] allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExhausted {
    /// The run ends; the record stays uncommitted and comes again at the next
    /// start. Nothing is lost and nothing overtaken, until somebody looks.
    #[default]
    Stop,
    /// It is written to the dead-letter topic ([`Settings::dead_letter`]), and
    /// completed once the broker has it.
    DeadLetter,
    /// It is completed all the same, counted and reported as skipped.
    Skip,
}

choice!(OnExhausted: Stop = "stop", DeadLetter = "dead-letter", Skip = "skip");

/// Which records wait for one another.
///
/// Whatever the order, a record counts as completed only after its handler
/// returned, and only what lies below the first that is not completed is
/// committed. The smaller the unit of order, the more records are in flight
/// beyond that, and come again after a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Those of a partition: each worker reads and handles its own partitions,
    /// on one thread. A record that is retried holds up its partition.
    #[default]
    Partition,
    /// Those with the same key: any worker takes any record whose key nobody
    /// has at the time, so there may be more workers than partitions. Keys are
    /// spread over 4,096 slots of each partition, and those that share a slot
    /// wait for one another as well; records without a key are spread by their
    /// offsets. A record that is retried holds up its slot.
    Key,
    /// None: any worker takes any record. A record that is retried holds up
    /// nothing.
    Unordered,
}

choice!(Order: Partition = "partition", Key = "key", Unordered = "unordered");

/// How often a failed record is handed over, how long it waits between, and
/// what becomes of it in the end. A panic counts like a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How often a record is handed over in all, the first time included.
    /// Default 10.
    pub attempts: u32,
    /// Wait before the second time; doubles each time. Each wait is made up to
    /// a fifth longer or shorter by chance, so that what failed together is not
    /// tried together (as Kafka's own `ExponentialBackoff`, KIP-580). Default
    /// 100 ms.
    pub backoff: Duration,
    /// The longest wait. Default 30 s.
    pub max_backoff: Duration,
    /// What becomes of a record that failed that often. Default: the run stops.
    pub on_exhausted: OnExhausted,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 10,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            on_exhausted: OnExhausted::default(),
        }
    }
}

impl RetryPolicy {
    /// The wait after the `attempt`-th failure (from 1). `chance` is from 0 to
    /// 1, and 0.5 leaves the wait as it is.
    pub(crate) fn delay(&self, attempt: u32, chance: f64) -> Duration {
        const JITTER: f64 = 0.2;
        let doublings = attempt.saturating_sub(1).min(31);
        self.backoff
            .saturating_mul(1 << doublings)
            .min(self.max_backoff)
            .mul_f64(1.0 + JITTER * (2.0 * chance - 1.0))
            .min(self.max_backoff)
    }
}

/// Everything that can be set. Filled in by a [`Builder`](crate::Builder);
/// public for reading, so that a program can show what is in force.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// `host:port`, several separated by commas.
    pub bootstrap: String,
    /// Kafka's group id.
    pub group: String,
    /// Names of topics, or patterns: regular expressions that begin with `^`.
    pub topics: Vec<String>,
    /// How partitions come to this process. Default: by the group.
    pub assignment: Assignment,
    /// How many workers. Default [`Workers::AUTO`].
    pub workers: Workers,
    /// What a worker is. Default: a thread.
    pub model: Model,
    /// Which records wait for one another. Default: those of a partition.
    pub order: Order,
    /// How many records each worker has in its handler at a time, where handlers
    /// are futures (feature `tokio`). Default 256; other handlers have one.
    pub in_flight: usize,
    /// Where a partition without a commit begins. Default: earliest.
    pub start_from: StartFrom,
    /// Where a partition goes on whose offset is out of range. Default: at the
    /// oldest record.
    pub on_out_of_range: OutOfRange,
    /// Which records of transactions are read. Default: committed ones. The
    /// property `isolation.level` sets it too.
    pub isolation: Isolation,
    /// What records are read through. Default: connections of our own, or
    /// librdkafka where those do not speak the security that is asked for.
    pub source: Source,
    /// What happens with a record whose handler fails.
    pub retry: RetryPolicy,
    /// The topic that records are written to which nobody could work on: by
    /// [`OnExhausted::DeadLetter`], or because the handler said so. Default:
    /// none.
    pub dead_letter: Option<String>,
    /// In key order and without order: what is completed beyond the committed
    /// offset is noted in the commit's metadata, so that a crash repeats only
    /// what was not done. At most 4 KiB per partition; what does not fit is
    /// repeated. Whoever reads the group's commits sees the text, and text of
    /// somebody else's there is overwritten. Default false.
    pub remember_completed: bool,
    /// How often a worker may be replaced in a minute. Default 5.
    pub restart_budget: u32,
    /// How long a revoke waits for the record in hand. Default 5 s.
    pub revoke_deadline: Duration,
    /// How long a stop waits for the records in hand, for their commit and for
    /// leaving the group. Default 25 s.
    pub stop_deadline: Duration,
    /// How long the first contact with the cluster may take. Default 10 s.
    pub contact_timeout: Duration,
    /// How long a static member (`group.instance.id`) under KIP-848 waits for
    /// the session of another one with its name to end, before the run does.
    /// Default 90 s, which is longer than any session that brokers allow by
    /// default.
    pub instance_wait: Duration,
    /// How much memory records may take in this process, in bytes; with
    /// [`Model::Processes`] in all workers' together. Default 48 MiB; one record set larger than a worker's share may exceed it.
    pub memory_budget: usize,
    /// Stop when every assigned partition reached the end offset that it had
    /// when it was assigned. Default false.
    pub until_end: bool,
    /// Stop after that many completed records. Default: none.
    pub count: Option<u64>,
    /// Where `/metrics`, `/lag`, `/health/live`, `/health/ready` and the page
    /// are served (feature `http`). Default: nowhere. Anyone who reaches the
    /// address can read them: there is no password.
    pub listen: Option<SocketAddr>,
    /// How long a handler may be at one record before `/health/live` says that
    /// the process is stuck. Default 5 min.
    pub stuck_after: Duration,
    /// Labels of its own on every metric, by name. Default: none.
    pub labels: BTreeMap<String, String>,
    /// Raw librdkafka properties.
    pub properties: BTreeMap<String, String>,
}

/// Values of properties that are secrets are not shown.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties: BTreeMap<&str, &str> = self
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), crate::kafka::properties::shown(name, value)))
            .collect();
        f.debug_struct("Settings")
            .field("bootstrap", &self.bootstrap)
            .field("group", &self.group)
            .field("topics", &self.topics)
            .field("assignment", &self.assignment)
            .field("workers", &self.workers)
            .field("model", &self.model)
            .field("order", &self.order)
            .field("in_flight", &self.in_flight)
            .field("start_from", &self.start_from)
            .field("on_out_of_range", &self.on_out_of_range)
            .field("isolation", &self.isolation)
            .field("source", &self.source)
            .field("retry", &self.retry)
            .field("dead_letter", &self.dead_letter)
            .field("remember_completed", &self.remember_completed)
            .field("restart_budget", &self.restart_budget)
            .field("revoke_deadline", &self.revoke_deadline)
            .field("stop_deadline", &self.stop_deadline)
            .field("contact_timeout", &self.contact_timeout)
            .field("instance_wait", &self.instance_wait)
            .field("memory_budget", &self.memory_budget)
            .field("until_end", &self.until_end)
            .field("count", &self.count)
            .field("listen", &self.listen)
            .field("stuck_after", &self.stuck_after)
            .field("labels", &self.labels)
            .field("properties", &properties)
            .finish()
    }
}

impl Settings {
    /// The defaults, for a cluster and a group.
    pub fn new(bootstrap: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            group: group.into(),
            topics: Vec::new(),
            assignment: Assignment::default(),
            workers: Workers::AUTO,
            model: Model::default(),
            order: Order::default(),
            in_flight: 256,
            start_from: StartFrom::default(),
            on_out_of_range: OutOfRange::default(),
            isolation: Isolation::default(),
            source: Source::default(),
            retry: RetryPolicy::default(),
            dead_letter: None,
            remember_completed: false,
            restart_budget: 5,
            revoke_deadline: Duration::from_secs(5),
            stop_deadline: Duration::from_secs(25),
            contact_timeout: Duration::from_secs(10),
            instance_wait: Duration::from_secs(90),
            memory_budget: MemoryBudget::DEFAULT,
            until_end: false,
            count: None,
            listen: None,
            stuck_after: Duration::from_mins(5),
            labels: BTreeMap::new(),
            properties: BTreeMap::new(),
        }
    }

    /// Everything that is wrong, at once; empty where a run can begin.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.check_names(&mut problems);
        problems.extend(self.workers.problem());
        self.check_assignment(&mut problems);
        self.check_durations(&mut problems);
        self.check_limits(&mut problems);
        self.check_dead_letter(&mut problems);
        self.check_source(&mut problems);
        problems.extend(crate::telemetry::names::label_problems(&self.labels));
        problems.extend(crate::kafka::properties::problems(self));
        problems
    }

    /// What records are read through with these settings: never
    /// [`Source::Auto`].
    pub fn source_in_force(&self) -> Source {
        match self.source {
            Source::Auto if self.not_spoken().is_some() => Source::Client,
            Source::Auto => Source::Fetch,
            chosen => chosen,
        }
    }

    /// The property that our own connections do not speak, if there is one.
    pub(crate) fn not_spoken(&self) -> Option<NotSpoken> {
        match Security::of(&self.properties) {
            Err(Unusable::NotSpoken(not_spoken)) => Some(not_spoken),
            Ok(_) | Err(Unusable::Wrong(_)) => None,
        }
    }

    /// True where a subscribed topic is a pattern.
    pub(crate) fn has_pattern(&self) -> bool {
        self.topics.iter().any(|topic| topic.starts_with('^'))
    }

    fn check_names(&self, problems: &mut Vec<Problem>) {
        for (index, server) in self.bootstrap.split(',').enumerate() {
            let server = server.trim();
            let port = server.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if server.is_empty() && index == 0 && self.bootstrap.len() <= 1 {
                problems.push(Problem::new(
                    "bootstrap",
                    "\"\"",
                    "the address of at least one broker is needed",
                    "give host:port, for example localhost:9092",
                ));
            } else if !matches!(port, Some(Ok(port)) if port != 0) {
                problems.push(Problem::new(
                    "bootstrap",
                    format!("{server:?}"),
                    "an address is host:port with a port from 1 to 65535",
                    "write it as host:port, several separated by commas",
                ));
            }
        }
        if self.group.is_empty() {
            problems.push(Problem::new(
                "group",
                "\"\"",
                "offsets are committed under the group's name, so it needs one",
                "give the name of the consumer group",
            ));
        }
        if self.topics.is_empty() {
            problems.push(Problem::new(
                "topics",
                "none",
                "at least one topic is needed",
                "name a topic, or a pattern that begins with ^",
            ));
        }
        for topic in &self.topics {
            if !topic.starts_with('^') && !is_legal_topic(topic) {
                problems.push(Problem::new(
                    "topics",
                    format!("{topic:?}"),
                    TOPIC_NAMES,
                    "correct the name; a pattern begins with ^",
                ));
            }
        }
    }

    fn check_assignment(&self, problems: &mut Vec<Problem>) {
        let Assignment::Static { index, of } = self.assignment else {
            return;
        };
        if index >= of {
            problems.push(Problem::new(
                "assign static index",
                index,
                format!("the index counts from 0 and is below the number of processes, {of}"),
                "give an index from 0 to that number - 1",
            ));
        }
        if self.has_pattern() {
            problems.push(Problem::new(
                "topics",
                format!("{:?}", self.topics),
                "a static assignment takes topics by name: patterns are resolved by the group \
                 protocol",
                "name the topics, or let the group assign",
            ));
        }
    }

    fn check_durations(&self, problems: &mut Vec<Problem>) {
        for (setting, value) in [
            ("revoke deadline", self.revoke_deadline),
            ("stop deadline", self.stop_deadline),
            ("contact timeout", self.contact_timeout),
            ("retry backoff", self.retry.backoff),
            ("retry max backoff", self.retry.max_backoff),
            ("stuck after", self.stuck_after),
        ] {
            if value.is_zero() || value > LONGEST {
                problems.push(Problem::new(
                    setting,
                    format!("{value:?}"),
                    "a wait is longer than nothing and at most a day",
                    "give a duration such as 250ms, 5s or 2m",
                ));
            }
        }
        // A first wait that is wrong by itself was told already.
        let longest = self.retry.max_backoff;
        if (longest + Duration::from_nanos(1)..=LONGEST).contains(&self.retry.backoff)
            && !longest.is_zero()
        {
            problems.push(Problem::new(
                "retry backoff",
                format!("{:?}", self.retry.backoff),
                format!("the first wait is not longer than the longest, {longest:?}"),
                "give a shorter one, or raise max_backoff",
            ));
        }
        let max_poll = crate::kafka::properties::max_poll_interval(self);
        if self.revoke_deadline >= max_poll {
            problems.push(Problem::new(
                "revoke deadline",
                format!("{:?}", self.revoke_deadline),
                format!(
                    "it must be below max.poll.interval.ms ({} ms), or the group takes the member \
                     for dead while it drains",
                    max_poll.as_millis()
                ),
                "lower the deadline, or raise max.poll.interval.ms",
            ));
        }
    }

    fn check_source(&self, problems: &mut Vec<Problem>) {
        if self.source == Source::Fetch
            && let Some(not_spoken) = self.not_spoken()
        {
            problems.push(Problem::new(
                "source",
                "fetch",
                not_spoken.to_string(),
                "use --source client, or leave it out: then librdkafka reads the records",
            ));
        }
    }

    fn check_dead_letter(&self, problems: &mut Vec<Problem>) {
        let Some(topic) = &self.dead_letter else {
            if self.retry.on_exhausted == OnExhausted::DeadLetter {
                problems.push(Problem::new(
                    "on exhausted",
                    OnExhausted::DeadLetter,
                    "records that failed too often need a topic that they are written to",
                    "name it (--dead-letter, or dead_letter()), or choose stop or skip",
                ));
            }
            return;
        };
        if !is_legal_topic(topic) {
            problems.push(Problem::new(
                "dead letter",
                format!("{topic:?}"),
                TOPIC_NAMES,
                "correct the name",
            ));
        }
        if self.topics.contains(topic) {
            problems.push(Problem::new(
                "dead letter",
                format!("{topic:?}"),
                "a record that fails would be written to where it was read from, for ever",
                "name another topic, or read this one in a group of its own",
            ));
        }
    }

    fn check_limits(&self, problems: &mut Vec<Problem>) {
        if self.retry.attempts == 0 {
            problems.push(Problem::new(
                "retry attempts",
                0,
                "a record is handed over at least once",
                "give 1 for no retry",
            ));
        }
        if !(1..=MOST_IN_FLIGHT).contains(&self.in_flight) {
            problems.push(Problem::new(
                "in flight",
                self.in_flight,
                format!("a worker has from 1 to {MOST_IN_FLIGHT} records in its handler"),
                "give a number between; more workers have more together",
            ));
        }
        if self.count == Some(0) {
            problems.push(Problem::new(
                "count",
                0,
                "a run that handles nothing would end before it begins",
                "give 1 or more, or leave it out",
            ));
        }
        if self.memory_budget < LEAST_MEMORY {
            problems.push(Problem::new(
                "memory budget",
                self.memory_budget,
                format!("records need at least {LEAST_MEMORY} bytes"),
                "give 1 MiB or more",
            ));
        }
    }
}

const TOPIC_NAMES: &str = "Kafka's topic names have 1 to 249 letters, digits, dots, underscores \
                           and hyphens, and are not . or ..";

/// More records of a partition are not read ahead of their handlers.
const MOST_IN_FLIGHT: usize = MOST_UNTAKEN;

/// The longest wait that somebody can have meant.
const LONGEST: Duration = Duration::from_hours(24);

/// Less than this cannot hold two answers of the smallest size.
const LEAST_MEMORY: usize = 1024 * 1024;

/// Kafka's rule, `org.apache.kafka.common.internals.Topic.validate`.
fn is_legal_topic(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_reads_where_our_connections_do_not_speak_it_unless_they_are_insisted_on() {
        let mut settings = Settings::new("localhost:9092", "readers");
        settings.topics.push("orders".into());
        assert_eq!(settings.source_in_force(), Source::Fetch);
        settings.source = Source::Client;
        assert_eq!(settings.source_in_force(), Source::Client);

        settings.source = Source::Auto;
        for (name, value) in [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "OAUTHBEARER"),
        ] {
            settings.properties.insert(name.into(), value.into());
        }
        assert_eq!(settings.source_in_force(), Source::Client);
        assert_eq!(settings.problems(), []);
        settings.source = Source::Fetch;
        let problems = settings.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].setting, "source");
        assert!(problems[0].rule.contains("OAUTHBEARER"), "{problems:?}");
        assert!(problems[0].remedy.contains("--source client"));
    }

    #[test]
    fn policies_of_retries_that_contradict_themselves_are_refused_with_value_rule_and_remedy() {
        // Attempts, first and longest wait; what is wrong, with which part of the rule.
        type Case = (
            u32,
            Duration,
            Duration,
            &'static [(&'static str, &'static str)],
        );
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(30));
        let day = Duration::from_hours(24);
        let cases: [Case; 9] = [
            (1, short, long, &[]),
            (u32::MAX, long, long, &[]),
            (0, short, long, &[("retry attempts", "at least once")]),
            (
                3,
                long,
                short,
                &[("retry backoff", "not longer than the longest, 100ms")],
            ),
            (
                3,
                Duration::ZERO,
                long,
                &[("retry backoff", "longer than nothing")],
            ),
            (
                3,
                short,
                Duration::ZERO,
                &[("retry max backoff", "longer than nothing")],
            ),
            (3, short, day * 2, &[("retry max backoff", "at most a day")]),
            (3, day * 2, day, &[("retry backoff", "at most a day")]),
            (
                0,
                day,
                short,
                &[
                    ("retry backoff", "not longer than the longest"),
                    ("retry attempts", "at least once"),
                ],
            ),
        ];
        for (attempts, backoff, max_backoff, expected) in cases {
            let mut settings = Settings::new("localhost:9092", "readers");
            settings.topics.push("orders".into());
            settings.retry.attempts = attempts;
            settings.retry.backoff = backoff;
            settings.retry.max_backoff = max_backoff;
            let problems = settings.problems();
            let told: Vec<&str> = problems.iter().map(|p| p.setting.as_str()).collect();
            let named: Vec<&str> = expected.iter().map(|(setting, _)| *setting).collect();
            assert_eq!(told, named, "{:?}", settings.retry);
            for (problem, (_, rule)) in problems.iter().zip(expected) {
                assert!(problem.rule.contains(rule), "{problem}");
                assert!(
                    !problem.value.is_empty() && !problem.remedy.is_empty(),
                    "{problem}"
                );
            }
        }
    }

    #[test]
    fn dead_letters_need_a_topic_that_is_not_read() {
        let mut settings = Settings::new("localhost:9092", "readers");
        settings.topics.push("orders".into());
        settings.retry.on_exhausted = OnExhausted::DeadLetter;
        let rules = |settings: &Settings| {
            let problems = settings.problems();
            let rules = problems
                .into_iter()
                .map(|problem| (problem.setting, problem.rule));
            rules.collect::<Vec<_>>()
        };
        let missing = rules(&settings);
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(missing[0].1.contains("need a topic"), "{missing:?}");
        for (topic, word) in [("or ders", "letters, digits"), ("orders", "for ever")] {
            settings.dead_letter = Some(topic.into());
            let wrong = rules(&settings);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(wrong[0].1.contains(word), "{wrong:?}");
        }
        settings.dead_letter = Some("orders-dead".into());
        assert_eq!(rules(&settings), []);
    }
}
