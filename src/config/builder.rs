//! The builder: the settings by method, then `run` or `start`.

use std::time::Duration;

#[cfg(feature = "tokio")]
use crate::async_handler::AsyncHandler;
use crate::config::{
    Assignment, Isolation, Model, OnExhausted, Order, OutOfRange, RetryPolicy, Settings, Source,
    StartFrom, Workers,
};
use crate::error::Error;
use crate::event::Event;
use crate::handler::{BatchHandler, Handler, WorkerInfo};
use crate::report::Report;
use crate::runtime::{self, Handle};
use crate::worker::engine::{BatchLimits, EngineFactory};

/// Called with every event, in order, on a thread of its own.
pub(crate) type Observer = Box<dyn FnMut(&Event) + Send>;

/// A consumer of that group, on the cluster at `bootstrap` (`host:port`,
/// several separated by commas).
///
/// ```no_run
/// use keepup::Record;
///
/// fn main() -> Result<(), keepup::Error> {
///     let report = keepup::builder("localhost:9092", "billing")
///         .topic("orders")
///         .run(|_worker| |record: &Record<'_>| println!("{record:?}"))?;
///     std::process::exit(report.exit_code());
/// }
/// ```
pub fn builder(bootstrap: impl Into<String>, group: impl Into<String>) -> Builder {
    Builder {
        settings: Settings::new(bootstrap, group),
        observer: None,
    }
}

/// What a run is made from; see [`Settings`] for what each value means and its
/// default.
#[must_use = "a builder does nothing until run() or start()"]
pub struct Builder {
    pub(crate) settings: Settings,
    pub(crate) observer: Option<Observer>,
}

impl Builder {
    /// Reads that topic, or the topics of that pattern: a regular expression
    /// that begins with `^`. Repeatable.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.settings.topics.push(topic.into());
        self
    }

    /// Reads these topics.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.settings
            .topics
            .extend(topics.into_iter().map(Into::into));
        self
    }

    /// How many workers run. Default [`Workers::AUTO`].
    pub fn workers(mut self, workers: Workers) -> Self {
        self.settings.workers = workers;
        self
    }

    /// What a worker is: a thread of this process, or a process of its own.
    /// Default: a thread.
    ///
    /// ```no_run
    /// use keepup::{Model, Record, Workers};
    ///
    /// fn main() -> Result<(), keepup::Error> {
    ///     let report = keepup::builder("localhost:9092", "billing")
    ///         .topic("orders")
    ///         .model(Model::Processes)
    ///         .workers(Workers::Fixed(4))
    ///         // Returns in the parent; in each of the four it becomes the worker.
    ///         .run(|_worker| |record: &Record<'_>| println!("{record:?}"))?;
    ///     std::process::exit(report.exit_code());
    /// }
    /// ```
    pub fn model(mut self, model: Model) -> Self {
        self.settings.model = model;
        self
    }

    /// Which records wait for one another; see [`Settings::order`]. With
    /// [`Order::Key`] and [`Order::Unordered`] any worker takes any partition's
    /// records, and there may be more workers than partitions; for batch
    /// handlers there is [`Order::Partition`] only.
    pub fn order(mut self, order: Order) -> Self {
        self.settings.order = order;
        self
    }

    /// How many records each worker has in its handler at a time, where handlers
    /// are futures ([`run_async`](Self::run_async)): 1 to 16,384. Default 256.
    #[cfg(feature = "tokio")]
    pub fn in_flight(mut self, records: usize) -> Self {
        self.settings.in_flight = records;
        self
    }

    /// How partitions come to this process. Default: by the group.
    pub fn assignment(mut self, assignment: Assignment) -> Self {
        self.settings.assignment = assignment;
        self
    }

    /// Where a partition without a commit begins. Default: earliest.
    pub fn start_from(mut self, start: StartFrom) -> Self {
        self.settings.start_from = start;
        self
    }

    /// Where a partition goes on whose offset is out of the range that the
    /// broker has. Default: at the oldest record.
    pub fn on_out_of_range(mut self, policy: OutOfRange) -> Self {
        self.settings.on_out_of_range = policy;
        self
    }

    /// Which records of transactions are read. Default: committed ones.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.settings.isolation = isolation;
        self
    }

    /// What records are read through. Default: connections of our own, or
    /// librdkafka where those do not speak the security that is asked for.
    pub fn source(mut self, source: Source) -> Self {
        self.settings.source = source;
        self
    }

    /// What happens with a record whose handler fails.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.settings.retry = retry;
        self
    }

    /// The topic for records that nobody could work on: those that failed as
    /// often as [`RetryPolicy::attempts`] allows, and those of which the handler
    /// said [`Outcome::dead_letter`](crate::Outcome::dead_letter). Sets
    /// [`RetryPolicy::on_exhausted`] to [`OnExhausted::DeadLetter`], unless the
    /// policy is set afterwards. Default: none.
    ///
    /// A record is written to the partition with its own number where the topic
    /// has one, else by its key; its key, value and headers as they are, and
    /// behind them the headers that Spring Kafka's
    /// `DeadLetterPublishingRecoverer` gives it. Its offset counts as completed
    /// when all in-sync replicas have it.
    pub fn dead_letter(mut self, topic: impl Into<String>) -> Self {
        self.settings.dead_letter = Some(topic.into());
        self.settings.retry.on_exhausted = OnExhausted::DeadLetter;
        self
    }

    /// Notes what is completed beyond the committed offset in the commit's
    /// metadata, so that a crash repeats only what was not done; see
    /// [`Settings::remember_completed`]. Without effect in partition order, in
    /// which nothing is. Default false.
    pub fn remember_completed(mut self, remember: bool) -> Self {
        self.settings.remember_completed = remember;
        self
    }

    /// How often a worker may be replaced in a minute. Default 5.
    pub fn restart_budget(mut self, restarts: u32) -> Self {
        self.settings.restart_budget = restarts;
        self
    }

    /// How long a static member (the property `group.instance.id`) waits for the
    /// session of another one with its name to end. Default 90 s.
    ///
    /// Under KIP-848 (`group.protocol=consumer`) a process that crashed holds its
    /// name until its session is over (the broker's
    /// `group.consumer.session.timeout.ms`, 45 s by default, 60 s at most by
    /// default). Its successor is not ready meanwhile, and ends with
    /// [`StopReason::InstanceTaken`](crate::StopReason::InstanceTaken) when that
    /// takes longer than this. A process that was stopped holds nothing up, and
    /// neither does a classic group, where the newer one takes the name over at
    /// once.
    pub fn instance_wait(mut self, wait: Duration) -> Self {
        self.settings.instance_wait = wait;
        self
    }

    /// How long a revoke waits for the record in hand. Default 5 s.
    pub fn revoke_deadline(mut self, deadline: Duration) -> Self {
        self.settings.revoke_deadline = deadline;
        self
    }

    /// How long a stop waits for the records in hand, for their commit and for
    /// leaving the group. Default 25 s.
    pub fn stop_deadline(mut self, deadline: Duration) -> Self {
        self.settings.stop_deadline = deadline;
        self
    }

    /// How long the first contact with the cluster may take. Default 10 s.
    pub fn contact_timeout(mut self, timeout: Duration) -> Self {
        self.settings.contact_timeout = timeout;
        self
    }

    /// How much memory records may take in this process, in bytes. Default
    /// 48 MiB.
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.settings.memory_budget = bytes;
        self
    }

    /// Stops when every assigned partition reached the end offset that it had
    /// when it was assigned.
    pub fn until_end(mut self, until_end: bool) -> Self {
        self.settings.until_end = until_end;
        self
    }

    /// Stops after that many completed records.
    pub fn count(mut self, records: u64) -> Self {
        self.settings.count = Some(records);
        self
    }

    /// Serves `/metrics`, `/lag`, `/health/live`, `/health/ready` and a page at
    /// that address while the run lasts (feature `http`). Port 0 takes any free
    /// one: [`Handle::listens_at`](crate::Handle::listens_at) tells which. Give
    /// a loopback address unless others should read them: there is no password.
    pub fn listen(mut self, address: std::net::SocketAddr) -> Self {
        self.settings.listen = Some(address);
        self
    }

    /// How long a handler may be at one record before `/health/live` says that
    /// the process is stuck. Default 5 min.
    pub fn stuck_after(mut self, stuck_after: Duration) -> Self {
        self.settings.stuck_after = stuck_after;
        self
    }

    /// Puts a label of its own on every metric, for example `env="prod"`.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(name.into(), value.into());
        self
    }

    /// Sets a raw librdkafka property. Those that would break a guarantee are
    /// refused when the run starts.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.properties.insert(name.into(), value.into());
        self
    }

    /// Is told everything that happens, in order, on a thread of its own. An
    /// observer that falls more than 4,096 events behind misses some; it is
    /// told how many by a warning.
    pub fn on_event(mut self, observer: impl FnMut(&Event) + Send + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// The settings as they stand.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Replaces all settings.
    pub fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Runs until something stops it: SIGINT or SIGTERM (a second one ends the
    /// drain, a third one the process), `until_end`, `count`, a handler's
    /// [`Outcome::Stop`](crate::Outcome::Stop), or a failure. Blocks; signal
    /// handlers are removed again before it returns.
    ///
    /// `factory` is called on the thread of each worker to make its handler.
    ///
    /// # Errors
    ///
    /// Where nothing was started: wrong settings, no contact, an unknown topic,
    /// no permission.
    pub fn run<H, F>(self, factory: F) -> Result<Report, Error>
    where
        H: Handler + 'static,
        F: Fn(WorkerInfo) -> H + Send + Sync + 'static,
    {
        runtime::run(self, EngineFactory::per_record(factory))
    }

    /// As [`run`](Builder::run), with handlers that take up to `max_records`
    /// records of one partition at a time. A batch that is not full is handed
    /// over `max_wait` after its first record arrived.
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    pub fn run_batches<H, F>(
        self,
        max_records: usize,
        max_wait: Duration,
        factory: F,
    ) -> Result<Report, Error>
    where
        H: BatchHandler + 'static,
        F: Fn(WorkerInfo) -> H + Send + Sync + 'static,
    {
        runtime::run(
            self,
            EngineFactory::per_batch(
                BatchLimits {
                    max_records,
                    max_wait,
                },
                factory,
            ),
        )
    }

    /// As [`run`](Builder::run), with handlers that are futures: each worker has
    /// up to [`in_flight`](Builder::in_flight) of them at a time, in a tokio
    /// runtime of its own thread. In [`Order::Partition`] there is one per
    /// partition, so the process has as many in flight as it has partitions; in
    /// the other orders a few workers are enough for many thousand.
    ///
    /// ```no_run
    /// use keepup::{Order, OwnedRecord, Workers};
    ///
    /// # async fn store(_: &[u8]) -> std::io::Result<()> { Ok(()) }
    /// # fn main() -> Result<(), keepup::Error> {
    /// keepup::builder("localhost:9092", "billing")
    ///     .topic("orders")
    ///     .order(Order::Key)
    ///     .workers(Workers::Fixed(1))
    ///     .run_async(|_worker| {
    ///         |record: OwnedRecord| async move { store(record.value().unwrap_or_default()).await }
    ///     })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    #[cfg(feature = "tokio")]
    pub fn run_async<H, F>(self, factory: F) -> Result<Report, Error>
    where
        H: AsyncHandler + 'static,
        F: Fn(WorkerInfo) -> H + Send + Sync + 'static,
    {
        runtime::run(self, EngineFactory::per_future(factory))
    }

    /// Starts the run and returns at once with a handle. Installs no signal
    /// handlers.
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    pub fn start<H, F>(self, factory: F) -> Result<Handle, Error>
    where
        H: Handler + 'static,
        F: Fn(WorkerInfo) -> H + Send + Sync + 'static,
    {
        runtime::start(self, EngineFactory::per_record(factory))
    }

    /// As [`start`](Builder::start), with handlers that are futures, as
    /// [`run_async`](Builder::run_async).
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    #[cfg(feature = "tokio")]
    pub fn start_async<H, F>(self, factory: F) -> Result<Handle, Error>
    where
        H: AsyncHandler + 'static,
        F: Fn(WorkerInfo) -> H + Send + Sync + 'static,
    {
        runtime::start(self, EngineFactory::per_future(factory))
    }

    /// As [`start`](Builder::start), with batch handlers.
    ///
    /// # Errors
    ///
    /// As [`run`](Builder::run).
    pub fn start_batches<H, F>(
        self,
        max_records: usize,
        max_wait: Duration,
        factory: F,
    ) -> Result<Handle, Error>
    where
        H: BatchHandler + 'static,
        F: Fn(WorkerInfo) -> H + Send + Sync + 'static,
    {
        runtime::start(
            self,
            EngineFactory::per_batch(
                BatchLimits {
                    max_records,
                    max_wait,
                },
                factory,
            ),
        )
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
