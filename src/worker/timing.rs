//! How long handlers take, at a price that a record does not feel.
//!
//! Two precise clock reads per record cost more than everything else on the
//! fetch path together. So a call is timed alone where it is long, and calls
//! that are short are timed together, each with the mean. What is short shows by
//! itself: the loop reads the coarse clock before every few records anyway, and
//! as long as that stands still (1 to 10 ms) nothing can have been long. A long
//! call among short ones is told apart, since it is among the few in which the
//! coarse clock moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Coarse};
use crate::handler::Outcome;
use crate::lag::snapshot::OutcomeTotals;

/// Calls of that length or longer are timed one by one: two clock reads are
/// half a percent of it.
const LONG: Duration = Duration::from_micros(10);

/// Before every so many records the clock is read where handlers are short: a
/// read costs as much as indexing half a record. What the member wishes is
/// looked at before every record all the same, so this is only how many more
/// records a process may start that was stopped as a whole and wakes.
pub(crate) const SHORT_CALLS: usize = 8;

/// No kernel's coarse clock stands still for longer.
const COARSE_TICK: Duration = Duration::from_millis(10);

/// The upper bounds in nanoseconds.
const BOUNDS_NS: [u64; OutcomeTotals::HANDLER_SECONDS.len()] = bounds();

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from a microsecond to minutes: the nanoseconds are whole and few"
)]
const fn bounds() -> [u64; OutcomeTotals::HANDLER_SECONDS.len()] {
    let mut nanos = [0; OutcomeTotals::HANDLER_SECONDS.len()];
    let mut i = 0;
    while i < nanos.len() {
        // Rounded: 1e-6 is a little less than a millionth.
        nanos[i] = (OutcomeTotals::HANDLER_SECONDS[i] * 1e9 + 0.5) as u64;
        i += 1;
    }
    nanos
}

/// Counts by length, of the calls with one outcome. Written by the worker that
/// has the lane only.
#[derive(Debug)]
pub(crate) struct CallTimes {
    counts: [AtomicU64; BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

/// What a [`CallTimes`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallCounts {
    pub(crate) counts: [u64; BOUNDS_NS.len() + 1],
    pub(crate) sum_ns: u64,
}

impl CallTimes {
    pub(crate) fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BOUNDS_NS.len() + 1],
            sum_ns: AtomicU64::new(0),
        }
    }

    /// So many calls took that long together.
    pub(crate) fn add(&self, calls: u64, together: Duration) {
        if calls == 0 {
            return;
        }
        let nanos = u64::try_from(together.as_nanos()).unwrap_or(u64::MAX);
        let each = nanos / calls;
        let slot = BOUNDS_NS.partition_point(|bound| *bound < each);
        let counter = &self.counts[slot];
        counter.store(counter.load(Ordering::Relaxed) + calls, Ordering::Relaxed);
        let sum = self.sum_ns.load(Ordering::Relaxed);
        self.sum_ns
            .store(sum.saturating_add(nanos), Ordering::Relaxed);
    }

    /// Adds what another has counted, which begins anew.
    fn absorb(&self, other: &Self) {
        for (counter, other) in self.counts.iter().zip(&other.counts) {
            let more = other.load(Ordering::Relaxed);
            if more > 0 {
                other.store(0, Ordering::Relaxed);
                counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
            }
        }
        let more = other.sum_ns.load(Ordering::Relaxed);
        other.sum_ns.store(0, Ordering::Relaxed);
        let sum = self.sum_ns.load(Ordering::Relaxed);
        self.sum_ns
            .store(sum.saturating_add(more), Ordering::Relaxed);
    }

    /// Adds what another process has counted since `earlier`.
    fn add_since(&self, now: &CallCounts, earlier: &CallCounts) {
        for ((counter, now), earlier) in self.counts.iter().zip(now.counts).zip(earlier.counts) {
            let more = now.saturating_sub(earlier);
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        }
        let more = now.sum_ns.saturating_sub(earlier.sum_ns);
        let sum = self.sum_ns.load(Ordering::Relaxed);
        self.sum_ns
            .store(sum.saturating_add(more), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> CallCounts {
        let mut read = CallCounts {
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            ..CallCounts::default()
        };
        for (into, counter) in read.counts.iter_mut().zip(&self.counts) {
            *into = counter.load(Ordering::Relaxed);
        }
        read
    }
}

/// The calls of one lane, by what the handler said.
#[derive(Debug)]
pub(crate) struct HandlerTimes {
    pub(crate) done: CallTimes,
    pub(crate) retried: CallTimes,
    pub(crate) dead_lettered: CallTimes,
    pub(crate) skipped: CallTimes,
}

impl HandlerTimes {
    pub(crate) fn new() -> Self {
        Self {
            done: CallTimes::new(),
            retried: CallTimes::new(),
            dead_lettered: CallTimes::new(),
            skipped: CallTimes::new(),
        }
    }

    /// One call took that long, and the handler said that.
    #[cfg(feature = "tokio")]
    pub(crate) fn add(&self, said: &Outcome, took: Duration) {
        match said {
            Outcome::Done => self.done.add(1, took),
            Outcome::Skip { .. } => self.skipped.add(1, took),
            Outcome::Retry { .. } | Outcome::Reject { .. } => self.retried.add(1, took),
            Outcome::DeadLetter { .. } => self.dead_lettered.add(1, took),
            Outcome::Stop { .. } => {}
        }
    }

    /// Everything that is counted: done, retried, dead-lettered, skipped.
    pub(crate) fn read(&self) -> [CallCounts; 4] {
        self.all().map(CallTimes::read)
    }

    /// Adds what another process has counted since `earlier`.
    pub(crate) fn add_since(&self, now: &[CallCounts; 4], earlier: &[CallCounts; 4]) {
        for ((times, now), earlier) in self.all().into_iter().zip(now).zip(earlier) {
            times.add_since(now, earlier);
        }
    }

    fn all(&self) -> [&CallTimes; 4] {
        [
            &self.done,
            &self.retried,
            &self.dead_lettered,
            &self.skipped,
        ]
    }

    /// Adds what one worker has counted of calls for this lane, which begins
    /// anew. Nobody else may write meanwhile.
    pub(crate) fn absorb(&self, of_worker: &Self) {
        for (all, one) in self.all().into_iter().zip(of_worker.all()) {
            all.absorb(one);
        }
    }
}

/// Times the calls of one turn, which are told apart by a number that counts
/// them. The loop counts its records anyway: beside the call there is one
/// comparison.
pub(crate) struct Stopwatch<'a> {
    clock: &'a Clock,
    times: &'a HandlerTimes,
    since: Instant,
    /// The coarse clock when the calls that are timed together began; `NEVER`
    /// where the next call is timed alone.
    coarse: Coarse,
    /// The number of the first call since.
    first: usize,
    /// The mean of the calls that were timed last.
    mean: Duration,
}

/// A moment that no clock shows.
const NEVER: Coarse = Coarse::from_millis(u64::MAX);

impl<'a> Stopwatch<'a> {
    /// Starts right before the call number `first`.
    pub(crate) fn start(clock: &'a Clock, times: &'a HandlerTimes, first: usize) -> Self {
        Self {
            clock,
            times,
            since: clock.now(),
            coarse: NEVER,
            first,
            mean: Duration::ZERO,
        }
    }

    /// The coarse clock as it stands before the call number `next`; those
    /// before it are done.
    #[inline]
    pub(crate) fn look(&mut self, coarse: Coarse, next: usize) {
        if coarse != self.coarse {
            self.lap(coarse, next);
        }
    }

    /// So many calls may pass before the clock is worth another look: a few
    /// where those that were timed last took less than [`LONG`] each.
    #[inline]
    pub(crate) fn unwatched(&self) -> usize {
        if self.coarse == NEVER { 1 } else { SHORT_CALLS }
    }

    /// Writes down the calls since the last lap.
    #[cold]
    #[inline(never)]
    fn lap(&mut self, coarse: Coarse, next: usize) {
        let calls = next - self.first;
        if calls == 0 {
            return;
        }
        let took = self.take_time(next);
        let others = u32::try_from(calls - 1).unwrap_or(u32::MAX);
        if calls > 1 && took > 2 * COARSE_TICK {
            // Those that were short began and ended within one tick of the
            // coarse clock, and one was not: the rest is that call's.
            let before = (self.mean * others).min(COARSE_TICK);
            self.times.done.add(calls as u64 - 1, before);
            self.times.done.add(1, took.saturating_sub(before));
            self.mean = before / others;
        } else {
            self.times.done.add(calls as u64, took);
            self.mean = took / others.saturating_add(1);
        }
        self.coarse = if self.mean >= LONG { NEVER } else { coarse };
    }

    fn take_time(&mut self, next: usize) -> Duration {
        let now = self.clock.now();
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        self.first = next;
        took
    }

    /// The turn ends before the call number `next`, all before it done.
    pub(crate) fn stop(mut self, next: usize) {
        self.lap(NEVER, next);
    }

    /// The turn ends with the call number `last`, of which the handler said
    /// that.
    pub(crate) fn stop_at(self, last: usize, said: &Outcome) {
        let times = self.times;
        match said {
            Outcome::Skip { .. } => self.stop_with(last, &times.skipped),
            Outcome::Retry { .. } | Outcome::Reject { .. } => self.stop_with(last, &times.retried),
            Outcome::DeadLetter { .. } => self.stop_with(last, &times.dead_lettered),
            Outcome::Done | Outcome::Stop { .. } => self.stop(last),
        }
    }

    fn stop_with(mut self, last: usize, times: &CallTimes) {
        let done = last - self.first;
        let took = self.take_time(last);
        let before = (self.mean * u32::try_from(done).unwrap_or(u32::MAX)).min(took);
        self.times.done.add(done as u64, before);
        times.add(1, took.saturating_sub(before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(times: &CallTimes) -> Vec<(usize, u64)> {
        let read = times.read();
        read.counts
            .into_iter()
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    #[test]
    fn a_call_is_counted_at_the_first_bound_that_it_does_not_exceed() {
        assert_eq!(BOUNDS_NS[0], 1_000);
        assert_eq!(BOUNDS_NS[4], 1_000_000);
        let times = CallTimes::new();
        times.add(1, Duration::from_micros(1));
        times.add(2, Duration::from_micros(4));
        times.add(1, Duration::from_secs(301));
        assert_eq!(seconds(&times), [(0, 1), (1, 2), (16, 1)]);
        assert_eq!(times.read().sum_ns, 301_000_005_000);
    }

    #[test]
    fn long_calls_are_timed_one_by_one() {
        let clock = Clock::manual();
        let times = HandlerTimes::new();
        let mut watch = Stopwatch::start(&clock, &times, 5);
        for (call, millis) in [(5, 3), (6, 40), (7, 3)] {
            watch.look(clock.coarse(), call);
            clock.advance(Duration::from_millis(millis));
        }
        watch.stop(8);
        // Up to 5 ms twice, up to 50 ms once.
        assert_eq!(seconds(&times.done), [(5, 2), (7, 1)]);
        assert_eq!(times.done.read().sum_ns, 46_000_000);
    }

    #[test]
    fn short_calls_are_timed_together_and_a_long_one_among_them_is_told_apart() {
        let clock = Clock::manual();
        let times = HandlerTimes::new();
        let mut watch = Stopwatch::start(&clock, &times, 0);
        for call in 0..1_000 {
            watch.look(clock.coarse(), call);
            if call == 700 {
                clock.advance(Duration::from_millis(250));
            }
        }
        watch.stop(1_000);
        assert_eq!(seconds(&times.done), [(0, 999), (9, 1)]);
    }

    #[test]
    fn a_call_that_is_not_done_is_counted_by_its_outcome() {
        let clock = Clock::manual();
        let times = HandlerTimes::new();
        let mut watch = Stopwatch::start(&clock, &times, 0);
        watch.look(clock.coarse(), 0);
        clock.advance(Duration::from_millis(2));
        watch.look(clock.coarse(), 1);
        clock.advance(Duration::from_millis(30));
        watch.stop_with(1, &times.retried);
        assert_eq!(seconds(&times.done), [(5, 1)]);
        assert_eq!(seconds(&times.retried), [(7, 1)]);
    }
}
