//! How many workers the load wants.
//!
//! Lag alone does not tell: a lag of a million may be a minute's work, and none
//! at all may be the last moment before there is one. So demand is measured by
//! what records cost: how many come a second, times how long a handler has one
//! of them, is how many calls have to go on at once. That needs no worker to be
//! saturated, and an idle worker does not look like a slow one.
//!
//! A number that an autoscaler follows must stand still while the load does.
//! Three things see to that: rates are means over a minute, a change has to be
//! wanted by more than a tenth, and it has to be wanted all the time
//! for a while. That is how the autoscaler of Kubernetes does it (tolerance,
//! stabilisation), and like there up is faster than down.
//!
//! The advice is for this process: for the partitions that it owns. What a group
//! wants is the sum over its processes.

use std::collections::VecDeque;
use std::time::Duration;

use super::snapshot::Advice;
use crate::clock::Coarse;
use crate::record::TopicPartition;

/// Rates are means over that time. Long enough that a second of silence or a
/// burst of a few is a small part of it, short enough that a new load is all
/// there is after a minute.
const WINDOW: Duration = Duration::from_mins(1);

/// How many ticks there are in that time, with some to spare: what is kept of them
/// has its place from the start.
const TICKS: usize = 64;

/// Nothing is said of less than that: the first seconds of an assignment are
/// those of connections, caches and a lag that others left.
const HISTORY: Duration = Duration::from_secs(30);

/// Ticks further apart than that are not compared: the process or its machine
/// slept.
const LONGEST_TICK: Duration = Duration::from_secs(5);

/// The share of their time that workers should be in handlers. The rest is for
/// bursts, and for working off a lag.
const BUSY: f64 = 0.8;

/// Within that time the present lag should be gone. Where the reserve that
/// `BUSY` leaves does it, nothing is added for it.
const CATCH_UP: Duration = Duration::from_mins(5);

/// Up to a lag of what comes in that time there is nothing to catch up with.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// A time to catch up that is longer is as good as never.
const LONGEST_CATCH_UP: Duration = Duration::from_hours(7 * 24);

/// More workers are told when they were wanted all that time.
const UP_AFTER: Duration = Duration::from_secs(15);

/// Fewer are told when they were wanted all that time. With the window, a load
/// that fell is followed within two minutes.
const DOWN_AFTER: Duration = Duration::from_secs(45);

/// By so much of the workers the demand may be off before another number is
/// wanted.
const TOLERANCE: f64 = 0.1;

/// What the workers of a run can do at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hands {
    /// How many calls a worker can be in at once: more than one where handlers
    /// are futures.
    pub(crate) each: usize,
    /// True in partition order: no more calls at once than partitions.
    pub(crate) by_partition: bool,
}

/// What a tick saw of a partition. Counters are since the partition came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) partition: TopicPartition,
    pub(crate) paused: bool,
    pub(crate) end_offset: Option<i64>,
    pub(crate) position: Option<i64>,
    /// Records that were handed to handlers.
    pub(crate) handed: u64,
    pub(crate) completed: u64,
    /// Time in handlers, in calls that have ended.
    pub(crate) ended_calls: Duration,
    /// Time in the call that has not.
    pub(crate) in_hand: Duration,
}

impl Seen {
    fn lag(&self) -> Option<i64> {
        let lag = self.end_offset?.saturating_sub(self.position?);
        Some(lag.max(0))
    }

    /// All the time in handlers. A record that has been there for minutes counts
    /// from the first second on, not when it is done.
    fn busy(&self) -> Duration {
        self.ended_calls.saturating_add(self.in_hand)
    }
}

/// What happened from one tick to the next.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    at: Option<Coarse>,
    seconds: f64,
    /// Offsets that came, and those that were passed.
    arrived: f64,
    passed: f64,
    /// Offsets that the lag grew by.
    grown: f64,
    handed: f64,
    completed: f64,
    /// Seconds in handlers, and those that there could have been.
    busy: f64,
    could_be_busy: f64,
}

impl Moved {
    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.arrived += other.arrived;
        self.passed += other.passed;
        self.grown += other.grown;
        self.handed += other.handed;
        self.completed += other.completed;
        self.busy += other.busy;
        self.could_be_busy += other.could_be_busy;
    }

    /// How many records an offset is: less than one where markers, aborted
    /// records and holes lie between them.
    fn density(&self) -> f64 {
        if self.passed > 0.0 {
            (self.handed / self.passed).min(1.0)
        } else {
            1.0
        }
    }
}

/// Gives the advice from tick to tick.
#[derive(Debug)]
pub(crate) struct Adviser {
    hands: Hands,
    generation: u64,
    before: Vec<Seen>,
    /// Used again from tick to tick.
    spare: Vec<Seen>,
    before_at: Option<Coarse>,
    moved: VecDeque<Moved>,
    /// Seconds of a handler per record, as of the last window with a record.
    cost: Option<f64>,
    told: Option<usize>,
    /// What was wanted at which tick.
    wanted: VecDeque<(Coarse, usize)>,
    advice: Advice,
}

impl Adviser {
    pub(crate) fn new(hands: Hands) -> Self {
        Self {
            hands,
            generation: 0,
            before: Vec::new(),
            spare: Vec::new(),
            before_at: None,
            moved: VecDeque::with_capacity(TICKS),
            cost: None,
            told: None,
            wanted: VecDeque::with_capacity(TICKS),
            advice: Advice::default(),
        }
    }

    /// The advice of the last tick.
    pub(crate) fn advice(&self) -> Advice {
        self.advice
    }

    /// Forgets everything: what is owned is not what it was, or the run stops.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.hands);
    }

    /// True where these are not the partitions of the last tick.
    pub(crate) fn owns_others<'a>(
        &self,
        partitions: impl ExactSizeIterator<Item = &'a TopicPartition>,
    ) -> bool {
        self.before.len() != partitions.len()
            || self
                .before
                .iter()
                .zip(partitions)
                .any(|(before, now)| before.partition != *now)
    }

    /// One tick: with the generation of the ownership, and how many workers are
    /// up.
    pub(crate) fn tick(
        &mut self,
        now: Coarse,
        generation: u64,
        workers: usize,
        seen: impl ExactSizeIterator<Item = Seen>,
    ) {
        let mut now_seen = std::mem::take(&mut self.spare);
        now_seen.clear();
        now_seen.extend(seen);
        if self.owns_others(now_seen.iter().map(|seen| &seen.partition)) {
            self.forget();
        }
        // After a seek counters begin anew: that tick is not compared.
        if self.generation == generation
            && let Some(before_at) = self.before_at
        {
            let elapsed = now.since(before_at);
            if !elapsed.is_zero() && elapsed <= LONGEST_TICK {
                let each = self.hands.each;
                self.moved.extend(compare(
                    &self.before,
                    &now_seen,
                    now,
                    elapsed,
                    workers,
                    each,
                ));
            }
        }
        self.generation = generation;
        self.before_at = Some(now);
        self.spare = std::mem::replace(&mut self.before, now_seen);
        let is_old = |moved: &Moved| moved.at.is_none_or(|at| now.since(at) >= WINDOW);
        while self.moved.front().is_some_and(is_old) {
            self.moved.pop_front();
        }
        self.advise(now);
    }

    fn advise(&mut self, now: Coarse) {
        let mut all = Moved::default();
        for moved in &self.moved {
            all.add(moved);
        }
        let mut at_work = self.before.iter().filter(|seen| !seen.paused);
        let partitions = at_work.clone().count();
        let lag = at_work.try_fold(0_i64, |sum, seen| Some(sum.saturating_add(seen.lag()?)));
        self.advice = Advice::default();
        let Some(lag) = lag.filter(|_| partitions > 0 && all.seconds >= HISTORY.as_secs_f64())
        else {
            self.told = None;
            self.wanted.clear();
            return;
        };
        let lag = float(lag.unsigned_abs()) * all.density();
        let load = Load {
            arrivals: all.arrived * all.density() / all.seconds,
            lag,
            growth: all.grown * all.density() / all.seconds,
        };
        if all.could_be_busy > 0.0 {
            self.advice.busy = Some((all.busy / all.could_be_busy).min(1.0));
        }
        self.advice.catch_up = load.catch_up();
        if all.completed > 0.0 {
            self.cost = Some(all.busy / all.completed);
        } else if all.busy > 0.0 {
            // All of a minute in records that nobody has come to the end of.
            self.cost = None;
        }
        let Some(calls) = load.calls(self.cost) else {
            self.told = None;
            self.wanted.clear();
            return;
        };
        let at_most = if self.hands.by_partition {
            partitions
        } else {
            usize::MAX
        };
        if calls > float(at_most as u64) {
            self.advice.partitions_needed = Some(whole(calls));
        }
        let demand = calls.min(float(at_most as u64)) / float(self.hands.each as u64);
        let told = self.tell(now, demand);
        self.advice.workers = Some(told);
    }

    /// The number that is told where `demand` workers would do: another one than
    /// before only where that was wanted for long enough.
    fn tell(&mut self, now: Coarse, demand: f64) -> usize {
        let told = *self.told.get_or_insert_with(|| whole(demand));
        self.wanted.push_back((now, want(demand, told)));
        while self
            .wanted
            .front()
            .is_some_and(|(at, _)| now.since(*at) >= UP_AFTER.max(DOWN_AFTER))
        {
            self.wanted.pop_front();
        }
        let lately = |time: Duration| {
            let wanted = self.wanted.iter();
            wanted
                .filter(move |(at, _)| now.since(*at) < time)
                .map(|(_, wanted)| *wanted)
        };
        let least = lately(UP_AFTER).min().unwrap_or(told);
        let most = lately(DOWN_AFTER).max().unwrap_or(told);
        let told = if least > told { least } else { told.min(most) };
        self.told = Some(told);
        told
    }
}

/// What comes, and what is left: in records, and records per second.
#[derive(Clone, Copy, Debug)]
struct Load {
    arrivals: f64,
    lag: f64,
    growth: f64,
}

impl Load {
    /// How many calls have to go on at once, where a record costs that many
    /// seconds of a handler. `None` where that is not known and something is to
    /// be done.
    fn calls(&self, cost: Option<f64>) -> Option<f64> {
        if self.arrivals <= 0.0 && self.lag <= 0.0 {
            return Some(0.0);
        }
        let cost = cost?;
        let with_reserve = self.arrivals * cost / BUSY;
        let with_the_lag = (self.arrivals + self.lag / CATCH_UP.as_secs_f64()) * cost;
        Some(with_reserve.max(with_the_lag))
    }

    /// How long until the lag is gone, where all goes on like this.
    fn catch_up(&self) -> Option<Duration> {
        if self.lag <= self.arrivals * CAUGHT_UP.as_secs_f64() {
            return Some(Duration::ZERO);
        }
        if self.growth >= 0.0 {
            return None;
        }
        let seconds = self.lag / -self.growth;
        (seconds <= LONGEST_CATCH_UP.as_secs_f64())
            .then(|| Duration::try_from_secs_f64(seconds).ok())?
    }
}

/// What moved between two ticks, of the partitions that were worked on at both.
/// `None` where an end or a position is not known yet: the rates would be too
/// small.
fn compare(
    before: &[Seen],
    now: &[Seen],
    at: Coarse,
    elapsed: Duration,
    workers: usize,
    hands: usize,
) -> Option<Moved> {
    let seconds = elapsed.as_secs_f64();
    let mut moved = Moved {
        at: Some(at),
        seconds,
        could_be_busy: seconds * float((workers * hands) as u64),
        ..Moved::default()
    };
    let mut any = false;
    for (before, now) in before.iter().zip(now) {
        if before.paused || now.paused {
            continue;
        }
        any = true;
        let forward = |from: i64, to: i64| float(to.saturating_sub(from).max(0).unsigned_abs());
        moved.arrived += forward(before.end_offset?, now.end_offset?);
        moved.passed += forward(before.position?, now.position?);
        let (lag_before, lag) = (before.lag()?.unsigned_abs(), now.lag()?.unsigned_abs());
        moved.grown += float(lag) - float(lag_before);
        moved.handed += float(now.handed.saturating_sub(before.handed));
        moved.completed += float(now.completed.saturating_sub(before.completed));
        moved.busy += now.busy().saturating_sub(before.busy()).as_secs_f64();
    }
    any.then_some(moved)
}

/// The number that is wanted where `demand` workers would do and `told` were told
/// last: the same, unless it is off by more than the tolerance. A number that is
/// lower has the tolerance above it, so that it is not raised again at once.
fn want(demand: f64, told: usize) -> usize {
    if demand > float(told as u64) * (1.0 + TOLERANCE) {
        whole(demand)
    } else {
        whole(demand * (1.0 + TOLERANCE)).min(told)
    }
}

/// As many as it takes, and one where nothing is to be done: somebody has to be
/// there for the first record.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is not below one, and beyond all numbers it is the greatest"
)]
fn whole(demand: f64) -> usize {
    demand.ceil().max(1.0) as usize
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate need not be exact beyond 2^53"
)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
