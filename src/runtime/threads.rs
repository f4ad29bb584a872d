//! The worker threads: started, told, joined. In model A each is a worker; in
//! model B each stands in for one, which is a process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::clock::Clock;
use crate::config::RetryPolicy;
use crate::handler::WorkerInfo;
use crate::process::parent::{self, Children};
use crate::record::AssignmentEpoch;
use crate::runtime::events::EventSink;
use crate::source::{MemoryBudget, SourceFactory};
use crate::worker::dead_letter::DeadLetters;
use crate::worker::engine::EngineFactory;
use crate::worker::gate::Gate;
use crate::worker::lane::{Failed, LaneStart, ReleaseCause};
use crate::worker::mailbox::Mailbox;
#[cfg(feature = "tokio")]
use crate::worker::pool::async_hands;
use crate::worker::pool::reader::{self, READER};
use crate::worker::pool::{Pool, hands};
use crate::worker::run::{FromWorker, WorkerContext, run};
use crate::worker::tracker::CountBudget;

/// A future that was cancelled is dropped at once, unless it blocks its thread.
const CANCELLED_WITHIN: Duration = Duration::from_millis(500);

/// What every worker of a run has in common.
pub(crate) struct Common {
    pub(crate) clock: Clock,
    pub(crate) gate: Arc<Gate>,
    pub(crate) reports: Sender<FromWorker>,
    pub(crate) events: EventSink,
    pub(crate) sources: Arc<dyn SourceFactory>,
    pub(crate) engines: Arc<EngineFactory>,
    pub(crate) retry: RetryPolicy,
    pub(crate) dead_letters: Option<Arc<dyn DeadLetters>>,
    pub(crate) count: Option<Arc<CountBudget>>,
    pub(crate) memory: Arc<MemoryBudget>,
    /// Where the workers share all partitions.
    pub(crate) pool: Option<Arc<Pool>>,
    /// Where workers are processes.
    pub(crate) children: Option<Arc<Children>>,
    /// This process is such a worker: lanes that leave it go to another process.
    pub(crate) is_child: bool,
    pub(crate) spawn: Box<dyn Spawn>,
}

/// What runs on a thread of its own until it is told to end.
pub(crate) enum Job {
    /// A worker that reads and handles its own partitions.
    Worker(WorkerContext),
    /// A worker that takes what a pool has.
    Hands(WorkerContext, Arc<Pool>),
    /// A worker that has many records of a pool in its handler at a time.
    #[cfg(feature = "tokio")]
    AsyncHands(WorkerContext, Arc<Pool>),
    /// The one that reads for the pool.
    Reader(WorkerContext, Arc<Pool>, Arc<MemoryBudget>),
    /// Who stands in for a worker that is a process, and tells its number there.
    StandIn(WorkerContext, Arc<Children>, Arc<AtomicU32>),
}

impl Job {
    fn run(self) {
        match self {
            Self::Worker(context) => run(context),
            Self::Hands(context, pool) => hands::run(context, &pool),
            #[cfg(feature = "tokio")]
            Self::AsyncHands(context, pool) => async_hands::run(context, &pool),
            Self::Reader(context, pool, memory) => reader::run(context, pool, memory),
            Self::StandIn(context, children, pid) => parent::run(context, &children, &pid),
        }
    }
}

/// Who runs jobs.
pub(crate) trait Spawn: Send {
    /// Begins a job. Without a thread nobody can be waited for: whoever runs it
    /// does so by itself.
    fn spawn(&self, name: String, job: Job) -> std::io::Result<Option<JoinHandle<()>>>;
}

/// Runs each job on a thread of the operating system.
pub(crate) struct OnThreads;

impl Spawn for OnThreads {
    fn spawn(&self, name: String, job: Job) -> std::io::Result<Option<JoinHandle<()>>> {
        let builder = std::thread::Builder::new().name(name);
        builder.spawn(move || job.run()).map(Some)
    }
}

struct WorkerThread {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
    /// Of the process that it stands in for; 0 where there is none.
    pid: Arc<AtomicU32>,
}

/// The worker threads that run, by number. Dropped while some run, it tells them
/// to end: nobody would commit what they do.
pub(crate) struct WorkerThreads {
    common: Common,
    running: BTreeMap<usize, WorkerThread>,
    /// The processes of workers that are gone.
    gone: BTreeMap<usize, u32>,
    /// Until when those whose handlers can be cancelled are waited for.
    cancelled_by: Option<Instant>,
}

impl WorkerThreads {
    pub(crate) fn new(common: Common) -> Self {
        Self {
            common,
            running: BTreeMap::new(),
            gone: BTreeMap::new(),
            cancelled_by: None,
        }
    }

    /// Starts a worker; it takes lanes from then on.
    pub(crate) fn start(&mut self, worker: usize, restarts: u32) -> std::io::Result<()> {
        let context = self.context(worker, restarts);
        let mailbox = Arc::clone(&context.mailbox);
        let pid = Arc::new(AtomicU32::new(0));
        if let Some(children) = self.common.children.clone() {
            let job = Job::StandIn(context, children, Arc::clone(&pid));
            return self.spawn(worker, mailbox, pid, format!("keepup-child-{worker}"), job);
        }
        let job = match &self.common.pool {
            #[cfg(feature = "tokio")]
            Some(pool) if self.common.engines.is_async() => {
                Job::AsyncHands(context, Arc::clone(pool))
            }
            Some(pool) => Job::Hands(context, Arc::clone(pool)),
            None => Job::Worker(context),
        };
        self.spawn(worker, mailbox, pid, format!("keepup-worker-{worker}"), job)
    }

    /// Starts the thread that fetches, where the workers share all partitions.
    pub(crate) fn start_reader(&mut self) -> std::io::Result<()> {
        let Some(pool) = self.common.pool.clone() else {
            return Ok(());
        };
        let context = self.context(READER, 0);
        let mailbox = Arc::clone(&context.mailbox);
        let memory = Arc::clone(&self.common.memory);
        let job = Job::Reader(context, pool, memory);
        let pid = Arc::new(AtomicU32::new(0));
        self.spawn(READER, mailbox, pid, "keepup-reader".into(), job)
    }

    fn spawn(
        &mut self,
        worker: usize,
        mailbox: Arc<Mailbox>,
        pid: Arc<AtomicU32>,
        name: String,
        job: Job,
    ) -> std::io::Result<()> {
        let thread = self.common.spawn.spawn(name, job)?;
        let worker_thread = WorkerThread {
            mailbox,
            thread,
            pid,
        };
        self.running.insert(worker, worker_thread);
        Ok(())
    }

    fn context(&self, worker: usize, restarts: u32) -> WorkerContext {
        WorkerContext {
            info: WorkerInfo { worker, restarts },
            clock: self.common.clock.clone(),
            gate: Arc::clone(&self.common.gate),
            mailbox: Arc::new(Mailbox::new()),
            reports: self.common.reports.clone(),
            events: self.common.events.clone(),
            sources: Arc::clone(&self.common.sources),
            engines: Arc::clone(&self.common.engines),
            retry: self.common.retry,
            dead_letters: self.common.dead_letters.clone(),
            count: self.common.count.clone(),
            is_child: self.common.is_child,
        }
    }

    /// The process of a worker that runs, where it has one of its own.
    pub(crate) fn pid(&self, worker: usize) -> Option<u32> {
        let thread = self.running.get(&worker)?;
        Some(thread.pid.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// The process of a worker, or of the one of that number that is gone.
    pub(crate) fn last_pid(&self, worker: usize) -> Option<u32> {
        self.pid(worker).or_else(|| self.gone.get(&worker).copied())
    }

    /// A worker has reported its exit: its thread has nothing left to do.
    pub(crate) fn join(&mut self, worker: usize) {
        let Some(ended) = self.running.remove(&worker) else {
            return;
        };
        match ended.pid.load(Ordering::Relaxed) {
            0 => self.gone.remove(&worker),
            pid => self.gone.insert(worker, pid),
        };
        if ended.thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(worker, "a worker's thread panicked after its last report");
        }
    }

    /// How many have not reported their exit.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// True once a worker has made its handler and opened its source.
    pub(crate) fn has_opened(&self, worker: usize) -> bool {
        self.running
            .get(&worker)
            .is_some_and(|thread| thread.mailbox.is_opened())
    }

    /// Tells a worker to give back what it has, for that cause, and to end.
    pub(crate) fn stop(&self, worker: usize, cause: ReleaseCause) {
        if let Some(thread) = self.running.get(&worker) {
            thread.mailbox.stop(cause);
        }
    }

    /// Tells all of them to end, the reader included.
    pub(crate) fn stop_all(&self) {
        for thread in self.running.values() {
            thread.mailbox.stop(ReleaseCause::Revoked);
        }
    }

    pub(crate) fn hand(&self, worker: usize, lanes: Vec<LaneStart>, local: bool) {
        if let Some(thread) = self.running.get(&worker) {
            thread.mailbox.take_lanes(lanes, local);
        }
    }

    /// Asks for lanes; gives those that are free already. A worker that is
    /// gone has none: it reported them when it ended.
    pub(crate) fn release(
        &self,
        worker: usize,
        epochs: Vec<AssignmentEpoch>,
        cause: ReleaseCause,
    ) -> Vec<(AssignmentEpoch, Option<Failed>)> {
        self.running
            .get(&worker)
            .map(|thread| thread.mailbox.release(epochs, cause))
            .unwrap_or_default()
    }

    pub(crate) fn set_paused(&self, worker: usize, epochs: Vec<AssignmentEpoch>, paused: bool) {
        if let Some(thread) = self.running.get(&worker) {
            thread.mailbox.set_paused(epochs, paused);
        }
    }

    pub(crate) fn share_memory_between(&self, workers: usize) {
        // One reader has all of it.
        let readers = if self.common.pool.is_some() {
            1
        } else {
            workers
        };
        self.common.memory.set_workers(readers);
    }

    /// Whether the workers share all partitions, which a reader has.
    pub(crate) fn are_sharing(&self) -> bool {
        self.common.pool.is_some()
    }

    /// Nobody waits for handlers any more: those that can be cancelled are.
    pub(crate) fn cut_short(&mut self, now: Instant) {
        for thread in self.running.values() {
            thread.mailbox.cut_short();
        }
        if self.common.engines.is_async() || self.common.children.is_some() {
            self.cancelled_by.get_or_insert(now + CANCELLED_WITHIN);
        }
    }

    /// Whether workers run that are about to end because their handlers were
    /// cancelled.
    pub(crate) fn are_cancelling(&self, now: Instant) -> bool {
        !self.running.is_empty() && self.cancelled_by.is_some_and(|by| now < by)
    }

    /// Leaves behind the threads that have not ended: their handlers did not
    /// return. Gives their numbers.
    pub(crate) fn abandon(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.running)
            .into_iter()
            .filter_map(|(worker, ended)| {
                ended.mailbox.stop(ReleaseCause::Revoked);
                if ended.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                    let _ = ended.thread.map(JoinHandle::join);
                    return None;
                }
                // It waits for one of the others, which are named.
                (worker != READER).then_some(worker)
            })
            .collect()
    }
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        self.stop_all();
    }
}
