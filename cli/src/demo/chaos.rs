//! `demo --chaos`: what goes wrong, when, and how often it did.
//!
//! A demo in which nothing happens shows little. So things are broken on purpose,
//! one after the other, by a plan that is drawn from a seed: the same seed, length
//! and number of partitions break the same things at the same time. What the plan
//! arms here goes off in the handlers, at the next record of the partition; what
//! concerns the group or the cluster is done by the main thread.

use std::fmt;
use std::time::Duration;

use keepup::Model;
use parking_lot::Mutex;
use serde::Serialize;

use crate::report::plural;

/// From one deed to the next.
const EVERY: Duration = Duration::from_millis(1_700);

/// How long a handler hangs, a worker is stopped, a partition is paused, and
/// workers are fewer.
pub(super) const FOR: Duration = Duration::from_millis(1_200);

/// How long the broker is away. Less than a session: nobody is taken for dead.
const AWAY: Duration = Duration::from_millis(700);

/// How long a second member stays, its joining included.
const VISIT: Duration = Duration::from_secs(7);

/// How often a record fails in a row. Fewer times than the policy allows.
const FAILURES: u32 = 3;

/// A load shorter than that has no time for a second member, which takes a
/// heartbeat or two to join, and as long to leave.
const LONG_ENOUGH: Duration = Duration::from_secs(18);

/// The broker is away at one of the first deeds, and a second member joins after
/// those: the embedded cluster forgets a rebalance whose connections break.
const BEFORE_THE_VISIT: u32 = 4;

/// Something that is done to the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A handler panics, and its worker with it.
    Panic(u32),
    /// A record fails several times.
    Fail(u32),
    /// A handler does not return for a while.
    Hang(u32),
    /// A partition is paused.
    Pause(u32),
    /// It goes on.
    Resume(u32),
    /// Only one worker is left.
    FewerWorkers,
    /// All of them are back.
    AllWorkers,
    /// A second member joins the group.
    Join,
    /// It leaves.
    Leave,
    /// The broker's connections break, and it takes no more.
    BrokerAway,
    /// It is back.
    BrokerBack,
}

impl Act {
    /// What this is the end of.
    fn begun_by(self) -> Option<Self> {
        match self {
            Self::Resume(partition) => Some(Self::Pause(partition)),
            Self::AllWorkers => Some(Self::FewerWorkers),
            Self::Leave => Some(Self::Join),
            Self::BrokerBack => Some(Self::BrokerAway),
            _ => None,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(of) => write!(f, "a handler panics at a record of partition {of}"),
            Self::Fail(of) => write!(f, "a record of partition {of} fails {FAILURES} times"),
            Self::Hang(of) => {
                let seconds = FOR.as_secs_f64();
                write!(f, "a handler hangs for {seconds:.1} s in partition {of}")
            }
            Self::Pause(of) => write!(f, "partition {of} is paused"),
            Self::Resume(of) => write!(f, "partition {of} goes on"),
            Self::FewerWorkers => f.write_str("all workers but one are taken away"),
            Self::AllWorkers => f.write_str("the workers are back"),
            Self::Join => f.write_str("a second member joins the group"),
            Self::Leave => f.write_str("the second member leaves"),
            Self::BrokerAway => f.write_str("the broker is away, its connections break"),
            Self::BrokerBack => f.write_str("the broker is back"),
        }
    }
}

/// How often each was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Done {
    pub(super) panics: u32,
    pub(super) failures: u32,
    pub(super) hangs: u32,
    pub(super) pauses: u32,
    pub(super) fewer_workers: u32,
    pub(super) joins: u32,
    pub(super) broker_away: u32,
    /// Worker processes that were killed.
    #[serde(skip_serializing_if = "is_none")]
    pub(super) kills: u32,
    /// Worker processes that were stopped for a while.
    #[serde(skip_serializing_if = "is_none")]
    pub(super) stops: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(times: &u32) -> bool {
    *times == 0
}

impl Done {
    /// Counts what the main thread did; the rest is counted where it goes off.
    pub(super) fn count(&mut self, act: Act) {
        match act {
            Act::Pause(_) => self.pauses += 1,
            Act::FewerWorkers => self.fewer_workers += 1,
            Act::Join => self.joins += 1,
            Act::BrokerAway => self.broker_away += 1,
            Act::Panic(_)
            | Act::Fail(_)
            | Act::Hang(_)
            | Act::Resume(_)
            | Act::AllWorkers
            | Act::Leave
            | Act::BrokerBack => {}
        }
    }

    /// In words, without what was not done.
    pub(super) fn text(&self) -> String {
        let parts = [
            (self.panics, "handler panicked", "handlers panicked"),
            (self.failures, "record failed", "records failed"),
            (self.hangs, "handler hung", "handlers hung"),
            (
                self.pauses,
                "partition was paused",
                "partitions were paused",
            ),
            (
                self.fewer_workers,
                "time all workers but one were taken away",
                "times all workers but one were taken away",
            ),
            (
                self.joins,
                "second member came and went",
                "second members came and went",
            ),
            (
                self.broker_away,
                "time the broker was away",
                "times the broker was away",
            ),
            (self.kills, "worker was killed", "workers were killed"),
            (self.stops, "worker was stopped", "workers were stopped"),
        ];
        let done: Vec<String> = parts
            .into_iter()
            .filter(|(times, ..)| *times > 0)
            .map(|(times, one, many)| format!("{times} {}", plural(u64::from(times), one, many)))
            .collect();
        if done.is_empty() {
            "nothing".to_owned()
        } else {
            done.join(", ")
        }
    }
}

/// What is done when, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    acts: Vec<(Duration, Act)>,
    next: usize,
}

impl Plan {
    /// Draws a plan for a load of that length. A handler panics half-way in any
    /// case; whatever takes a while is over before the load is.
    ///
    /// With worker processes the broker stays: they hold what its side of the
    /// connections has open in this process, so that none of them would break.
    pub(super) fn draw(seed: u64, length: Duration, partitions: u32, model: Model) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let half = length / 2;
        let mut acts = vec![(half, Act::Panic(random.u32(0..partitions)))];
        let last = length.mul_f64(0.85);
        let first = length.mul_f64(0.1).min(EVERY);
        let mut at = first;
        let mut deck: Vec<u8> = (0..5).collect();
        random.shuffle(&mut deck);
        // They are taken from the end.
        let away = deck.len() - random.usize(0..BEFORE_THE_VISIT as usize);
        if model != Model::Processes {
            deck.insert(away, 5);
        }
        while at < last {
            let kind = deck.pop().unwrap_or_else(|| {
                deck.extend(0..5);
                random.shuffle(&mut deck);
                deck.pop().unwrap_or_default()
            });
            let partition = random.u32(0..partitions);
            let (act, end) = match kind {
                0 => (Act::Panic(partition), None),
                1 => (Act::Fail(partition), None),
                2 => (Act::Hang(partition), None),
                3 => (Act::Pause(partition), Some((FOR, Act::Resume(partition)))),
                4 => (Act::FewerWorkers, Some((FOR, Act::AllWorkers))),
                _ => (Act::BrokerAway, Some((AWAY, Act::BrokerBack))),
            };
            acts.push((at, act));
            acts.extend(end.map(|(after, act)| (at + after, act)));
            at += EVERY;
        }
        if length >= LONG_ENOUGH {
            let join = first + EVERY * BEFORE_THE_VISIT;
            acts.extend([(join, Act::Join), (join + VISIT, Act::Leave)]);
        }
        acts.sort_by_key(|(at, _)| *at);
        Self { acts, next: 0 }
    }

    /// The next act whose time has come.
    pub(super) fn due(&mut self, elapsed: Duration) -> Option<Act> {
        let (at, act) = *self.acts.get(self.next)?;
        (at <= elapsed).then(|| {
            self.next += 1;
            act
        })
    }

    /// The load is over: what was begun is ended, and nothing else is begun.
    pub(super) fn ends(&mut self) -> Vec<Act> {
        let left = self.acts.split_off(self.next.min(self.acts.len()));
        let is_begun = |act: &Act| act.begun_by().is_some_and(|begin| self.has_done(begin));
        let acts = left.into_iter().map(|(_, act)| act);
        acts.filter(is_begun).collect()
    }

    fn has_done(&self, act: Act) -> bool {
        self.acts.iter().any(|(_, done)| *done == act)
    }
}

/// What goes off at the next record of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trap {
    Panic,
    Fail,
    Hang(Duration),
}

/// The traps of all partitions, set by the main thread.
#[derive(Debug)]
pub(super) struct Traps {
    partitions: Vec<Mutex<Vec<Trap>>>,
    gone_off: Mutex<Done>,
}

impl Traps {
    pub(super) fn new(partitions: u32) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
            gone_off: Mutex::default(),
        }
    }

    /// Sets what an act asks for; `false` for one that is no trap.
    pub(super) fn set(&self, act: Act) -> bool {
        let (partition, trap, times) = match act {
            Act::Panic(partition) => (partition, Trap::Panic, 1),
            Act::Fail(partition) => (partition, Trap::Fail, FAILURES),
            Act::Hang(partition) => (partition, Trap::Hang(FOR), 1),
            _ => return false,
        };
        if let Some(traps) = self.partitions.get(partition as usize) {
            let mut traps = traps.lock();
            traps.extend((0..times).map(|_| trap));
        }
        true
    }

    /// What goes off now at a record of that partition.
    pub(super) fn spring(&self, partition: i32) -> Option<Trap> {
        let traps = self.partitions.get(usize::try_from(partition).ok()?)?;
        let trap = traps.lock().pop()?;
        let mut gone_off = self.gone_off.lock();
        match trap {
            Trap::Panic => gone_off.panics += 1,
            Trap::Fail => gone_off.failures += 1,
            Trap::Hang(_) => gone_off.hangs += 1,
        }
        Some(trap)
    }

    /// Everything that was done: what went off, and what `others` counted. A
    /// record that failed several times is one.
    pub(super) fn done(&self, others: Done) -> Done {
        let gone_off = *self.gone_off.lock();
        Done {
            panics: gone_off.panics,
            failures: gone_off.failures.div_ceil(FAILURES),
            hangs: gone_off.hangs,
            ..others
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(20);

    fn all(mut plan: Plan) -> Vec<Act> {
        std::iter::from_fn(|| plan.due(Duration::MAX)).collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_plan_and_another_one_another() {
        let plan = |seed| Plan::draw(seed, LENGTH, 6, Model::Threads);
        assert_eq!(plan(7), plan(7));
        assert!((0..20).any(|seed| plan(seed) != plan(7)));
    }

    #[test]
    fn whatever_the_seed_everything_is_done_and_what_is_begun_is_ended_within_the_load() {
        for seed in 0..200 {
            let plan = Plan::draw(seed, LENGTH, 6, Model::Threads);
            assert!(plan.acts.is_sorted_by_key(|(at, _)| *at), "seed {seed}");
            assert!(plan.acts.iter().all(|(at, _)| *at < LENGTH), "seed {seed}");
            let half = (LENGTH / 2, true);
            let is_panic = |(at, act): &(Duration, Act)| (*at, matches!(act, Act::Panic(_)));
            assert!(plan.acts.iter().map(is_panic).any(|it| it == half));
            let at = |wanted: Act| {
                let found = plan.acts.iter().rev().find(|(_, act)| *act == wanted);
                found.map(|(at, _)| *at)
            };
            assert!(at(Act::BrokerBack) < at(Act::Join), "seed {seed}");
            let acts = all(plan);
            let times = |wanted: fn(&Act) -> bool| acts.iter().filter(|act| wanted(act)).count();
            assert!(times(|act| matches!(act, Act::Panic(_))) >= 2);
            assert!(times(|act| matches!(act, Act::Fail(_))) >= 1);
            assert!(times(|act| matches!(act, Act::Hang(_))) >= 1);
            for (begin, end) in [
                (
                    times(|act| matches!(act, Act::Pause(_))),
                    times(|act| matches!(act, Act::Resume(_))),
                ),
                (
                    times(|act| *act == Act::FewerWorkers),
                    times(|act| *act == Act::AllWorkers),
                ),
                (
                    times(|act| *act == Act::Join),
                    times(|act| *act == Act::Leave),
                ),
                (
                    times(|act| *act == Act::BrokerAway),
                    times(|act| *act == Act::BrokerBack),
                ),
            ] {
                assert!(begin >= 1, "seed {seed}: {acts:?}");
                assert_eq!(begin, end, "seed {seed}: {acts:?}");
            }
        }
    }

    #[test]
    fn with_worker_processes_the_broker_stays() {
        for seed in 0..50 {
            let acts = all(Plan::draw(seed, LENGTH, 6, Model::Processes));
            assert!(!acts.contains(&Act::BrokerAway), "{acts:?}");
        }
    }

    #[test]
    fn the_shortest_load_has_its_panic_and_no_visit() {
        for seed in 0..50 {
            let acts = all(Plan::draw(seed, Duration::from_secs(1), 1, Model::Threads));
            assert!(acts.contains(&Act::Panic(0)), "{acts:?}");
            assert!(!acts.contains(&Act::Join), "{acts:?}");
        }
    }

    #[test]
    fn a_load_that_was_interrupted_has_ended_what_it_began_and_begins_nothing() {
        let mut plan = Plan::draw(3, LENGTH, 6, Model::Threads);
        let mut begun: Vec<Act> = Vec::new();
        while let Some(act) = plan.due(LENGTH / 2) {
            begun.push(act);
        }
        let ends = plan.ends();
        assert_eq!(plan.due(Duration::MAX), None);
        let is_end = |act: &Act| act.begun_by().is_some_and(|begin| begun.contains(&begin));
        assert!(ends.iter().all(is_end), "{begun:?}, then {ends:?}");
        for (begin, end) in [
            (Act::Join, Act::Leave),
            (Act::BrokerAway, Act::BrokerBack),
            (Act::FewerWorkers, Act::AllWorkers),
        ] {
            let count = |act: Act| begun.iter().chain(&ends).filter(|it| **it == act).count();
            assert!(count(end) >= count(begin), "{begun:?}, then {ends:?}");
        }
    }

    #[test]
    fn a_trap_goes_off_once_at_its_partition_and_is_counted() {
        let traps = Traps::new(2);
        assert!(traps.set(Act::Panic(1)) && traps.set(Act::Fail(0)));
        assert!(!traps.set(Act::Join), "that is no trap");
        assert_eq!(traps.spring(1), Some(Trap::Panic));
        assert_eq!(traps.spring(1), None);
        for _ in 0..FAILURES {
            assert_eq!(traps.spring(0), Some(Trap::Fail));
        }
        assert_eq!(
            (traps.spring(0), traps.spring(2), traps.spring(-1)),
            (None, None, None)
        );
        let mut others = Done::default();
        others.count(Act::Join);
        let done = traps.done(others);
        assert_eq!((done.panics, done.failures, done.joins), (1, 1, 1));
        assert_eq!(
            done.text(),
            "1 handler panicked, 1 record failed, 1 second member came and went"
        );
        assert_eq!(Done::default().text(), "nothing");
    }
}
