//! The fetch source: reads partitions over connections of its own.
//!
//! rdkafka's consumer costs seven times what reading the protocol costs, most
//! of it spent on handing single messages from its threads to ours. So the
//! group's member only joins and commits, and each worker fetches what it owns
//! itself: one connection per leader of its partitions, whole answers, record
//! sets read in place, on the worker's own thread.
//!
//! | file | what it is for |
//! |---|---|
//! | [`plan`] | what to ask of whom, what an answer means: pure |
//! | [`record_set`] | records out of the bytes of a log |
//! | [`compression`] | bounded decompression |
//! | [`link`] | one connection, driven without waiting |
//! | [`buffers`] | memory that is used again, and counted |
//!
//! The loop is [`FetchSource::next`]: look at the sockets, take in answers,
//! give out a batch, send what is due, and only wait where there is nothing to
//! give. A worker that does not pull makes it stand still: what brokers send
//! meanwhile stays in the sockets, and connections that they close over it are
//! opened again quietly.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use self::buffers::BufferPool;
use self::link::{Driven, Gate, Link, Surroundings};
use self::plan::{Kit, Plan, Room};
use super::{MemoryBudget, Pulled, ReadFrom, Source, SourceFactory, Waker};
use crate::clock::Clock;
use crate::kafka::ConnectionSettings;
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{Cluster, ClusterSnapshot, Registration};
use crate::kafka::connection::ConnectionError;
use crate::kafka::frame::WireError;
use crate::record::{AssignmentEpoch, Batch};

pub(super) mod buffers;
mod compression;
#[cfg(test)]
pub(crate) mod encode;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod link;
#[cfg(test)]
mod measure;
mod plan;
mod record_set;

const WAKE: Token = Token(0);

/// Events taken at a time; more wait for the next look.
const EVENTS: usize = 64;

/// Between requests for a leader that is not known.
const REFRESH: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};

/// How often an answer that waits for others to leave the memory is looked at:
/// the others may be another worker's, which does not know of this one.
const BLOCKED_LOOK: Duration = Duration::from_millis(10);

/// Makes the fetch sources of a process's workers.
#[derive(Debug)]
pub(crate) struct FetchFactory {
    cluster: Cluster,
    settings: Arc<ConnectionSettings>,
    budget: Arc<MemoryBudget>,
    clock: Clock,
    gate: Gate,
}

impl FetchFactory {
    /// Sources that find the leaders in `cluster` and share `budget`.
    pub(crate) fn new(
        cluster: Cluster,
        settings: Arc<ConnectionSettings>,
        budget: Arc<MemoryBudget>,
        clock: Clock,
    ) -> Self {
        Self {
            cluster,
            settings,
            budget,
            clock,
            gate: Gate::default(),
        }
    }
}

impl SourceFactory for FetchFactory {
    fn open(&self, worker: usize) -> io::Result<Box<dyn Source>> {
        let sockets = Poll::new()?;
        let signals = Arc::new(Signals {
            waker: mio::Waker::new(sockets.registry(), WAKE)?,
            woken: AtomicBool::new(false),
            cluster: AtomicBool::new(true),
            memory: AtomicBool::new(false),
        });
        let pool = BufferPool::new(
            self.budget.share(),
            signals.ringing(|signals| &signals.memory),
        );
        let registration = self
            .cluster
            .on_change(signals.ringing(|signals| &signals.cluster));
        Ok(Box::new(FetchSource {
            worker,
            cluster: self.cluster.clone(),
            settings: Arc::clone(&self.settings),
            budget: Arc::clone(&self.budget),
            clock: self.clock.clone(),
            gate: self.gate.clone(),
            poll: sockets,
            events: Events::with_capacity(EVENTS),
            signals,
            snapshot: Arc::default(),
            plan: Plan::new(
                self.settings.isolation,
                Arc::clone(&self.settings.rack),
                fastrand::u64(..),
            ),
            kit: Kit::new(pool),
            links: BTreeMap::new(),
            next_token: WAKE.0 + 1,
            is_due: true,
            next_moment: None,
            starved_at: None,
            refresh_failures: 0,
            refresh_at: None,
            _registration: registration,
        }))
    }
}

/// What wakes the loop, and why.
#[derive(Debug)]
struct Signals {
    waker: mio::Waker,
    /// Somebody wants [`FetchSource::next`] to return.
    woken: AtomicBool,
    cluster: AtomicBool,
    memory: AtomicBool,
}

impl Signals {
    /// A waker that raises one of the flags.
    fn ringing(self: &Arc<Self>, flag: fn(&Self) -> &AtomicBool) -> Waker {
        let signals = Arc::clone(self);
        Waker::new(move || {
            flag(&signals).store(true, Ordering::Release);
            // Fails only where the system has no memory for an event; the
            // longest wait of the loop then is what bounds the delay.
            if let Err(error) = signals.waker.wake() {
                tracing::debug!(%error, "a wake-up was lost");
            }
        })
    }
}

/// A worker's own reader of its partitions. See the module's documentation.
#[derive(Debug)]
pub(crate) struct FetchSource {
    worker: usize,
    cluster: Cluster,
    settings: Arc<ConnectionSettings>,
    budget: Arc<MemoryBudget>,
    clock: Clock,
    gate: Gate,
    poll: Poll,
    events: Events,
    signals: Arc<Signals>,
    snapshot: Arc<ClusterSnapshot>,
    plan: Plan,
    kit: Kit,
    /// By broker.
    links: BTreeMap<i32, Link>,
    next_token: usize,
    /// Something happened since it was last thought about what to ask.
    is_due: bool,
    /// When it is to be thought about even where nothing happens.
    next_moment: Option<Instant>,
    /// Bytes held when there was no room for a request that was wanted.
    starved_at: Option<usize>,
    refresh_failures: u32,
    refresh_at: Option<Instant>,
    _registration: Registration,
}

impl FetchSource {
    /// Looks at the sockets, for `timeout` at most.
    fn look(&mut self, timeout: Duration) {
        if let Err(error) = self.poll.poll(&mut self.events, Some(timeout)) {
            if error.kind() != io::ErrorKind::Interrupted {
                tracing::error!(worker = self.worker, %error, "the sockets cannot be polled");
            }
            return;
        }
        for event in &self.events {
            if event.token() == WAKE {
                continue;
            }
            let token = event.token();
            if let Some(link) = self.links.values_mut().find(|link| link.token() == token) {
                let is_over = event.is_read_closed() || event.is_error();
                link.notice(event.is_readable() || is_over, event.is_writable());
            }
        }
    }

    /// Takes over what is new about the cluster and the memory.
    fn take_news(&mut self, now: Instant) {
        if self.signals.memory.swap(false, Ordering::AcqRel) {
            self.is_due = true;
        }
        if !self.signals.cluster.swap(false, Ordering::AcqRel) {
            return;
        }
        self.snapshot = self.cluster.snapshot();
        self.plan.follow(&self.snapshot);
        self.refresh_failures = 0;
        self.is_due = true;
        // A broker that moved is another one.
        let Self {
            links,
            plan,
            snapshot,
            ..
        } = self;
        links.retain(|&broker, link| {
            let stays = snapshot
                .broker(broker)
                .is_none_or(|address| address == link.address());
            if !stays {
                plan.lost(broker, now);
            }
            stays
        });
    }

    /// Lets every link make progress and takes in what it brings. Returns
    /// whether an answer waits for memory.
    fn drive_links(&mut self, now: Instant) -> bool {
        let mut is_blocked = false;
        let Self {
            links,
            plan,
            kit,
            settings,
            poll,
            gate,
            budget,
            clock,
            cluster,
            is_due,
            worker,
            ..
        } = self;
        let around = Surroundings {
            now,
            settings,
            registry: poll.registry(),
            pool: &kit.pool,
            gate,
            share: budget.share(),
        };
        for (&broker, link) in links.iter_mut() {
            match link.drive(&around) {
                Ok(Driven::Nothing) => {}
                Ok(Driven::Ready) => *is_due = true,
                Ok(Driven::Blocked) => is_blocked = true,
                Ok(Driven::Answer(answer)) => {
                    let effects = plan.answered(broker, answer, now, clock.coarse());
                    if !effects.moves.is_empty() {
                        cluster.learn(&effects.moves);
                    }
                    if effects.refresh {
                        cluster.request_refresh();
                    }
                    if let Some(code) = effects.unknown_code {
                        let error = link.distrust(code, now);
                        settings.failures.count(&error);
                        tracing::warn!(worker, broker, %error, "connecting anew");
                    }
                    *is_due = true;
                }
                Err(error) => {
                    settings.failures.count(&error);
                    if link.failures() == 0 && !error.is_stale() {
                        tracing::warn!(worker, broker, %error, "a broker is not reached; trying on");
                    } else {
                        tracing::debug!(worker, broker, %error, "a connection is gone");
                    }
                    if let ConnectionError::Wire {
                        error: WireError::FrameTooLong { length, limit },
                        ..
                    } = error
                        && length > 0
                    {
                        plan.too_long(broker, length, limit, now);
                    }
                    link.fail(now);
                    plan.lost(broker, now);
                    cluster.request_refresh();
                    *is_due = true;
                }
            }
        }
        is_blocked
    }

    /// Sends what is to be sent now, where anything changed.
    fn ask(&mut self, now: Instant) {
        let is_time = self.next_moment.is_some_and(|moment| moment <= now);
        if !self.is_due && !is_time {
            return;
        }
        self.is_due = false;
        let brokers = self.plan.brokers(now);
        let share = self.budget.share();
        self.kit.pool.set_keep(share);
        let plan = &mut self.plan;
        self.links.retain(|&broker, _| {
            let stays = brokers.contains(&broker) || plan.reads_from(broker);
            if !stays {
                plan.lost(broker, now);
            }
            stays
        });
        for &broker in &brokers {
            let Some(address) = self.snapshot.broker(broker) else {
                continue;
            };
            let link = self.links.entry(broker).or_insert_with(|| {
                let token = Token(self.next_token);
                self.next_token += 1;
                Link::new(address.clone(), token)
            });
            let around = Surroundings {
                now,
                settings: &self.settings,
                registry: self.poll.registry(),
                pool: &self.kit.pool,
                gate: &self.gate,
                share,
            };
            let mut sent = link.connect(&around);
            if link.is_ready() {
                let room = Room {
                    share,
                    held: self.kit.pool.held(),
                    connections: brokers.len(),
                };
                if let Some(request) = self.plan.ask(broker, now, room) {
                    sent = link.send(&request, &around);
                    if sent.is_err() {
                        link.fail(now);
                    }
                }
            }
            if let Err(error) = sent {
                self.plan.lost(broker, now);
                self.settings.failures.count(&error);
                if link.failures() <= 1 {
                    tracing::warn!(worker = self.worker, broker, %error, "a broker is not reached; trying on");
                }
                self.cluster.request_refresh();
                self.is_due = true;
            }
        }
        self.starved_at = self.plan.take_no_room().then(|| self.kit.pool.held());
        if let Some(held) = self.starved_at {
            self.kit.pool.wake_on_return();
            // What came home between the decision and the line above rang no bell.
            self.is_due |= self.kit.pool.held() < held;
        }
        self.refresh_if_needed(now);
        self.next_moment = self
            .links
            .values()
            .filter_map(|link| link.next_moment(&self.settings))
            .chain(self.plan.next_moment(now))
            .chain(self.refresh_at)
            // What was due has been done, or is nobody's business now (a broker
            // that is down and leads paused partitions only).
            .filter(|&moment| moment > now)
            .min();
    }

    /// Asks for leaders that are missing, ever more seldom.
    fn refresh_if_needed(&mut self, now: Instant) {
        if !self.plan.misses_leader() {
            self.refresh_at = None;
            self.refresh_failures = 0;
        } else if self.refresh_at.is_none_or(|moment| moment <= now) {
            self.cluster.request_refresh();
            self.refresh_failures = self.refresh_failures.saturating_add(1);
            self.refresh_at = Some(now + REFRESH.random_delay(self.refresh_failures));
        }
    }
}

impl Source for FetchSource {
    fn start(&mut self, from: ReadFrom) {
        let epoch = from.epoch;
        self.plan.start(from);
        self.plan.follow_one(epoch, &self.snapshot);
        self.is_due = true;
    }

    fn stop(&mut self, epoch: AssignmentEpoch) {
        self.plan.stop(epoch);
        self.is_due = true;
    }

    fn rewind(&mut self, epoch: AssignmentEpoch, offset: i64, not_before: Option<Instant>) {
        self.plan.rewind(epoch, offset, not_before);
        self.plan.follow_one(epoch, &self.snapshot);
        self.is_due = true;
    }

    fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        self.plan.set_paused(epoch, paused);
        self.is_due = true;
    }

    fn next(&mut self, deadline: Instant) -> Pulled {
        let mut timeout = Duration::ZERO;
        loop {
            self.look(timeout);
            let now = self.clock.now();
            self.take_news(now);
            let is_blocked = self.drive_links(now);
            // Before anything is given out: the broker is to work meanwhile.
            self.ask(now);
            let pulled = self.plan.give(&mut self.kit, now);
            if self.plan.take_has_room() {
                self.is_due = true;
                self.ask(now);
            }
            if let Some(pulled) = pulled {
                return pulled;
            }
            if self.signals.woken.swap(false, Ordering::AcqRel) || now >= deadline {
                return Pulled::Nothing;
            }
            let until = self
                .next_moment
                .map_or(deadline, |moment| moment.min(deadline));
            timeout = if self.is_due {
                Duration::ZERO
            } else {
                until.saturating_duration_since(now)
            };
            if is_blocked {
                timeout = timeout.min(BLOCKED_LOOK);
            }
        }
    }

    fn put_back(&mut self, batch: Batch) {
        self.plan.put_back(batch);
        self.is_due = true;
    }

    fn recycle(&mut self, batch: Batch) {
        self.kit.keep(batch.entries);
    }

    fn is_starved(&self) -> bool {
        self.starved_at
            .is_some_and(|held| self.kit.pool.held() >= held)
            && !self.plan.has_something()
    }

    fn waker(&self) -> Waker {
        self.signals.ringing(|signals| &signals.woken)
    }
}
