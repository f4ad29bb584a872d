//! `keepup demo`: the whole thing with nothing installed.
//!
//! Whether a consumer keeps up, and whether it loses anything, can only be seen
//! with a cluster and a load. Both are made here, inside the process; the group
//! that reads them is the real one. The load comes in waves that are more than
//! the workers manage for a while, so that lag rises and falls; then everything
//! is drained, and what was produced is compared with what was handled.

mod breaker;
mod chaos;
mod handler;
mod ledger;
mod load;
mod screen;
mod summary;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use keepup::testing::{EmbeddedCluster, EmbeddedProducer, ProduceError};
use keepup::{Event, Handle, Model, Report};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::{Ending, Failure};
use crate::output;
use crate::plan::{DemoListen, DemoPlan, OutputPlan};
use crate::report::{self, grouped, plural};
use crate::time;
use breaker::Breaker;
use chaos::{Done, Plan, Traps};
use handler::{Book, SlowHandler};
use ledger::{Ledger, Page};
use load::{Load, LoadReport, Sent};
use screen::Screen;
use summary::Summary;
use tally::Tally;

const TOPIC: &str = "demo";
const GROUP: &str = "demo";

/// What a worker per partition manages, as a part of the mean rate: more than
/// that, and less than the busy half of a wave.
const HEADROOM: f64 = 1.25;

/// The longest that a record keeps its worker busy: with a load of a few
/// records per second the demo still stops at once.
const MOST_COST: Duration = Duration::from_millis(20);

/// How often the partitions are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long the group may take to get its partitions. The embedded cluster
/// waits 3 s for further members.
const JOIN: Duration = Duration::from_secs(30);

/// How long delivering the last records may take.
const FLUSH: Duration = Duration::from_secs(10);

/// Runs the demo.
pub(crate) fn demo(plan: &DemoPlan, how: OutputPlan) -> Result<Ending, Failure> {
    if keepup::is_worker_process() {
        return Err(work(plan));
    }
    let interrupts = Interrupts::watch()?;
    let cluster = EmbeddedCluster::start(1)?;
    let ledger = match plan.model {
        Model::Processes => Some(Ledger::open()?),
        Model::Threads => None,
    };
    cluster.create_topic(TOPIC, plan.partitions.cast_signed())?;
    let tally = Arc::new(Tally::new(plan.partitions));
    let cost = cost(plan.load());
    let traps = plan.chaos.map(|_| Arc::new(Traps::new(plan.partitions)));
    let founder = Founder {
        plan,
        cluster: &cluster,
        tally: Arc::clone(&tally),
        cost,
        traps: traps.clone(),
    };
    let (tells, said) = breaker::lines();
    let handle = founder.group(tells)?;
    let breaker = plan.chaos.zip(traps).map(|(seed, traps)| Breaker {
        seed,
        plan: Plan::draw(seed, plan.length, plan.partitions, plan.model),
        traps,
        said,
        cluster: &cluster,
        workers: plan.workers,
        model: plan.model,
        stopped: Vec::new(),
        invite: Box::new(|| founder.group_at(None, |_| ())),
        done: Done::default(),
        guests: Vec::new(),
        leaving: Vec::new(),
        restarts: 0,
    });
    let mut stage = Stage {
        handle,
        breaker,
        screen: Screen::new(plan.partitions, how.quiet || how.json),
        tally,
        ledger,
        interrupts,
        ticks: crossbeam_channel::tick(LOOK),
        began: time::now(),
        max_lag: 0,
        lag: 0,
        owned: 0,
        workers: 0,
    };
    let page = stage.handle.listens_at();
    stage.screen.say(&introduction(plan, cost, page));
    if !stage.join(plan.partitions as usize) {
        return Err(stage.ended_early());
    }
    stage.began = time::now();
    let load = LoadThread::start(plan.load(), cluster.producer()?, &stage.tally)?;
    let watched = stage.watch_load(&load, plan.length);
    let mended = stage.mend();
    let sent = load.finish()?;
    watched.and(mended)?;
    stage.drain(plan, cost)?;
    stage.conclude(plan, &sent, how)
}

impl DemoPlan {
    fn load(&self) -> Load {
        Load {
            partitions: self.partitions,
            rate: self.rate,
            length: self.length,
        }
    }
}

fn introduction(plan: &DemoPlan, cost: Duration, page: Option<SocketAddr>) -> String {
    let page = page.map_or_else(String::new, |page| page_line(plan.listen, page));
    format!(
        "{page}A cluster in this process, a topic with {} {}, {} {} per second in waves.\n\
         A record keeps its worker busy for {} µs: a worker manages {} of them per second.\n\
         The group joins, which takes about three seconds.\n{}",
        plan.partitions,
        plural(u64::from(plan.partitions), "partition", "partitions"),
        grouped(u64::from(plan.rate)),
        plural(u64::from(plan.rate), "record", "records"),
        grouped(u64::try_from(cost.as_micros()).unwrap_or(u64::MAX)),
        grouped(per_second(cost)),
        plan.chaos.map_or_else(String::new, |seed| format!(
            "Then things are broken on purpose, as seed {seed} says (--seed {seed} does it again).\n"
        )),
    )
}

/// Where to look, and why it is not where it usually is.
fn page_line(wanted: DemoListen, page: SocketAddr) -> String {
    let elsewhere = match wanted {
        DemoListen::Preferably(address) if address != page => {
            format!("   ({} is taken)", address.port())
        }
        _ => String::new(),
    };
    format!("Page: http://{page}/   metrics: /metrics   lag: /lag{elsewhere}\n\n")
}

/// How long a record keeps its worker busy.
fn cost(load: Load) -> Duration {
    let cost = f64::from(load.partitions) / (HEADROOM * f64::from(load.rate));
    Duration::from_secs_f64(cost).min(MOST_COST)
}

/// How many records of that cost one worker manages in a second.
fn per_second(cost: Duration) -> u64 {
    u64::try_from(Duration::from_secs(1).as_nanos() / cost.as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// What SIGINT and SIGTERM do: the first ends the load, one that comes after
/// the first was seen ends the process.
///
/// "After it was seen" rather than "the second", because some senders send a
/// signal twice at once, to the process and to its group.
struct Interrupts {
    came: Arc<AtomicBool>,
    /// Set when the next one ends the process.
    last: Arc<AtomicBool>,
}

impl Interrupts {
    fn watch() -> Result<Self, Failure> {
        let watched = Self {
            came: Arc::default(),
            last: Arc::default(),
        };
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
            flag::register_conditional_shutdown(signal, code, Arc::clone(&watched.last))
                .and_then(|_| flag::register(signal, Arc::clone(&watched.came)))
                .map_err(|source| Failure::System {
                    what: "handle signals",
                    source,
                })?;
        }
        Ok(watched)
    }

    fn came(&self) -> bool {
        let came = self.came.load(Ordering::Relaxed);
        if came {
            self.last.store(true, Ordering::Relaxed);
        }
        came
    }
}

/// Starts the members of the group.
struct Founder<'a> {
    plan: &'a DemoPlan,
    cluster: &'a EmbeddedCluster,
    tally: Arc<Tally>,
    cost: Duration,
    traps: Option<Arc<Traps>>,
}

/// With things that are broken on purpose, workers are replaced more often than
/// anybody should let pass elsewhere.
const CHAOS_BUDGET: u32 = 10_000;

impl Founder<'_> {
    /// Starts the group with its page: at a free port where nobody asked for one
    /// and the usual one is taken, so that a second demo works like the first.
    fn group(
        &self,
        tells: impl FnMut(&Event) + Clone + Send + 'static,
    ) -> Result<Handle, keepup::Error> {
        let at = |listen| self.group_at(listen, tells.clone());
        match self.plan.listen {
            DemoListen::Off => at(None),
            DemoListen::At(address) => at(Some(address)),
            DemoListen::Preferably(address) => match at(Some(address)) {
                Err(keepup::Error::Listen { .. }) => at(Some(SocketAddr::new(address.ip(), 0))),
                started => started,
            },
        }
    }

    /// Starts a member: what a user of the library would write.
    fn group_at(
        &self,
        listen: Option<SocketAddr>,
        tells: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Handle, keepup::Error> {
        let mut builder = builder(self.plan, self.cluster.bootstrap());
        if let Some(address) = listen {
            builder = builder.listen(address);
        }
        if self.traps.is_some() {
            builder = builder.on_event(tells);
        }
        let (tally, traps, cost) = (Arc::clone(&self.tally), self.traps.clone(), self.cost);
        builder.start(move |_worker| {
            SlowHandler::new(Book::Tally(Arc::clone(&tally)), cost, traps.clone())
        })
    }
}

/// What every process of the demo runs.
fn builder(plan: &DemoPlan, bootstrap: &str) -> keepup::Builder {
    let mut builder = keepup::builder(bootstrap, GROUP)
        .topic(TOPIC)
        .model(plan.model)
        .workers(plan.workers)
        .contact_timeout(plan.timeout);
    if plan.chaos.is_some() {
        builder = builder.restart_budget(CHAOS_BUDGET);
        if !plan.properties.contains_key("group.protocol") {
            // The embedded cluster waits for members that rejoin until a second
            // before their sessions end, whether they have come or not.
            builder = builder
                .property("session.timeout.ms", "3000")
                .property("heartbeat.interval.ms", "300");
        }
    }
    for (name, value) in &plan.properties {
        builder = builder.property(name, value);
    }
    builder
}

/// Becomes a worker of the demo that started this process: comes back only where
/// it cannot.
fn work(plan: &DemoPlan) -> Failure {
    let cost = cost(plan.load());
    // The cluster is the parent's, and the parent says where it is.
    let began = builder(plan, "")
        .run(move |_worker| SlowHandler::new(Book::Page(Page::open()), cost, None));
    match began {
        Ok(report) => Failure::Demo(format!("the worker ended: {}", report.reason)),
        Err(error) => error.into(),
    }
}

/// What the main thread looks after while the group and the load run.
struct Stage<'a> {
    handle: Handle,
    /// Where things are broken on purpose.
    breaker: Option<Breaker<'a>>,
    screen: Screen,
    tally: Arc<Tally>,
    /// What workers tick off that are processes.
    ledger: Option<Ledger>,
    interrupts: Interrupts,
    ticks: Receiver<Instant>,
    /// When the load began.
    began: Instant,
    max_lag: u64,
    /// As of the last look.
    lag: u64,
    /// How many partitions some member had then.
    owned: usize,
    /// The most that ran at a time.
    workers: usize,
}

impl Stage<'_> {
    fn elapsed(&self) -> Duration {
        time::now().saturating_duration_since(self.began)
    }

    /// Waits until it is time for the next look.
    fn wait(&self) {
        let _ = self.ticks.recv();
    }

    fn is_over(&self) -> bool {
        self.interrupts.came() || self.handle.has_ended()
    }

    /// Waits until every partition has a worker; `false` where that did not
    /// happen.
    fn join(&mut self, partitions: usize) -> bool {
        loop {
            let owned = self.handle.partitions();
            let ready = owned
                .iter()
                .filter(|view| view.worker.is_some() && view.position.is_some())
                .count();
            if ready == partitions {
                return true;
            }
            if self.is_over() || self.elapsed() > JOIN {
                return false;
            }
            self.wait();
        }
    }

    fn ended_early(self) -> Failure {
        if self.interrupts.came() {
            return Failure::Demo("interrupted before the load began".into());
        }
        if !self.handle.has_ended() {
            return Failure::Demo(format!(
                "the group did not get its partitions within {} s; -v tells more",
                JOIN.as_secs()
            ));
        }
        let report = self.handle.wait();
        Failure::Demo(format!("the group ended: {}", report.reason))
    }

    /// One look at the partitions.
    fn look(&mut self, status: &str) {
        // During the drain the first interrupt changes nothing, but it counts.
        self.interrupts.came();
        collect(self.ledger.as_mut(), &self.tally);
        let mut views = self.handle.partitions();
        views.extend(self.breaker.iter().flat_map(Breaker::views));
        self.owned = views.len();
        let lag = views
            .iter()
            .filter_map(keepup::PartitionView::records_lag)
            .sum();
        self.lag = lag;
        self.max_lag = self.max_lag.max(lag);
        self.workers = self.workers.max(self.handle.workers());
        let elapsed = self.elapsed();
        self.screen.see(&views, &self.handle.lag(), elapsed, status);
    }

    fn watch_load(&mut self, load: &LoadThread, length: Duration) -> Result<(), Failure> {
        while !self.is_over() {
            self.break_things()?;
            let status = format!(
                "load: {:.1} of {:.1} s",
                self.elapsed().min(length).as_secs_f64(),
                length.as_secs_f64()
            );
            self.look(&status);
            select! {
                recv(load.done) -> _ => return Ok(()),
                recv(self.ticks) -> _ => {}
            }
        }
        Ok(())
    }

    /// Does what the plan of the chaos says now, if there is one.
    fn break_things(&mut self) -> Result<(), Failure> {
        let elapsed = self.elapsed();
        if let Some(breaker) = &mut self.breaker {
            let lines = breaker.turn(elapsed, &self.handle)?;
            self.note(&lines);
        }
        Ok(())
    }

    /// The load is over: so is the chaos.
    fn mend(&mut self) -> Result<(), Failure> {
        if let Some(breaker) = &mut self.breaker {
            let lines = breaker.mend(&self.handle)?;
            self.note(&lines);
        }
        Ok(())
    }

    fn note(&mut self, lines: &[String]) {
        let elapsed = self.elapsed();
        for line in lines {
            self.screen.note(elapsed, line);
        }
    }

    /// Waits until every record that was sent was handled, or until that takes
    /// more than twice as long as the workers need.
    fn drain(&mut self, plan: &DemoPlan, cost: Duration) -> Result<(), Failure> {
        let readers = self.workers.clamp(1, plan.partitions as usize) as u64;
        let left = self.tally.sums().outstanding();
        let needed = cost.mul_f64(rounded_up(left, readers));
        let rebalance = self.breaker.as_ref().map_or(Duration::ZERO, |_| JOIN);
        let deadline = time::now() + Duration::from_secs(10) + needed * 2 + rebalance;
        while !self.handle.has_ended() && time::now() < deadline {
            self.break_things()?;
            let left = self.tally.sums().outstanding();
            self.look(&format!("drain: {} records to go", grouped(left)));
            // What a second member had may be on its way back.
            if left == 0 && self.owned == plan.partitions as usize {
                break;
            }
            self.wait();
        }
        let elapsed = self.elapsed();
        self.look("");
        let status = match self.tally.sums().outstanding() {
            0 => "the load is over, everything was handled".to_owned(),
            left => format!(
                "given up with {} records to go: the group does not get on",
                grouped(left)
            ),
        };
        self.screen.finish(elapsed, &status);
        Ok(())
    }

    /// Stops the group and compares.
    fn conclude(
        mut self,
        plan: &DemoPlan,
        load: &LoadReport,
        how: OutputPlan,
    ) -> Result<Ending, Failure> {
        self.handle.stop();
        let chaos = self.breaker.map(Breaker::conclude).transpose()?;
        let report = self.handle.wait();
        collect(self.ledger.as_mut(), &self.tally);
        let sums = self.tally.sums();
        let summary = Summary {
            model: plan.model.name(),
            partitions: plan.partitions,
            workers: self.workers,
            seconds: (load.took.as_secs_f64() * 10.0).round() / 10.0,
            produced: sums.sent,
            handled: sums.handled,
            lost: sums.outstanding(),
            duplicates: sums.duplicates,
            restarts: restarts(&report) + chaos.map_or(0, |(_, restarts)| restarts),
            max_lag: self.max_lag,
            lag: self.lag,
            chaos: chaos.map(|(chaos, _)| chaos),
        };
        output::print(&if how.json {
            summary.json()
        } else {
            summary.text()
        })?;
        if report.reason.is_failure() {
            return Err(Failure::Demo(format!("the group ended: {}", report.reason)));
        }
        if load.held_back && !how.quiet && !how.json {
            output::say(
                "The load waited for the workers: the embedded cluster keeps no more than 5 MiB of \
                 a partition.\n",
            );
        }
        if report.left_uncommitted > 0 {
            output::say(&report::text(&report));
        }
        Ok(Ending::DemoRan { lost: summary.lost })
    }
}

/// Takes in what workers ticked off that are processes.
fn collect(ledger: Option<&mut Ledger>, tally: &Tally) {
    if ledger.is_some_and(|ledger| !ledger.collect(tally)) {
        tracing::error!("a worker handled a record that the demo did not produce");
    }
}

fn restarts(report: &Report) -> u32 {
    report.workers.iter().map(|worker| worker.restarts).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a number of records")]
fn rounded_up(records: u64, readers: u64) -> f64 {
    records.div_ceil(readers) as f64
}

/// The thread that sends the load, with a way to stop it.
struct LoadThread {
    thread: JoinHandle<Result<LoadReport, Failure>>,
    stop: Sender<()>,
    /// Closed when the thread has ended.
    done: Receiver<()>,
}

impl LoadThread {
    fn start(load: Load, producer: EmbeddedProducer, tally: &Arc<Tally>) -> Result<Self, Failure> {
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let (ended, done) = crossbeam_channel::bounded(0);
        let tally = Arc::clone(tally);
        let thread = Builder::new()
            .name("demo-load".into())
            .spawn(move || {
                let _ended = ended;
                produce(load, &producer, &tally, &stopped)
            })
            .map_err(|source| Failure::System {
                what: "start the thread that produces the load",
                source,
            })?;
        Ok(Self { thread, stop, done })
    }

    /// Stops the load where it has not ended, and gives its report.
    fn finish(self) -> Result<LoadReport, Failure> {
        drop(self.stop);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(Failure::Demo("the load panicked".into())))
    }
}

/// Sends the load and waits until the cluster has it.
fn produce(
    load: Load,
    producer: &EmbeddedProducer,
    tally: &Tally,
    stopped: &Receiver<()>,
) -> Result<LoadReport, Failure> {
    let report = load::run(load, tally, stopped, |partition, payload| {
        match producer.try_send(TOPIC, partition, None, Some(payload)) {
            Ok(()) => Sent::Yes,
            Err(ProduceError::QueueFull) => Sent::Full,
            Err(error) => Sent::Refused(error.to_string()),
        }
    });
    if let Some(why) = &report.refused {
        return Err(Failure::Demo(format!("the load ended: {why}")));
    }
    producer
        .flush(FLUSH)
        .map_err(|error| Failure::Demo(format!("the load was not delivered: {error}")))?;
    let deliveries = producer.deliveries();
    match deliveries.first_failure {
        Some(why) => Err(Failure::Demo(format!(
            "the embedded cluster refused {} records: {why}",
            deliveries.failed
        ))),
        None => Ok(report),
    }
}
