//! The only place where clocks are read.
//!
//! Deadlines, back-off and windows are functions of a time that is handed to
//! them. In production that time comes from the system; in tests it comes from
//! a [`Clock::manual`] clock that moves only when the test says so. Keeping the
//! reads here is what makes both possible, and it keeps the price visible: two
//! precise reads per record cost more than everything else on the fetch path,
//! so the handler loop reads [`Clock::coarse`], which costs a few nanoseconds.

#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic moment with the resolution of the kernel's tick (1 to 10 ms).
///
/// Comparable only with other coarse moments of the same [`Clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Coarse(u64);

impl Coarse {
    /// The beginning of time: earlier than every moment a clock gives.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const ZERO: Self = Self(0);

    /// Milliseconds since an arbitrary start.
    pub(crate) const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment that many milliseconds after an arbitrary start.
    pub(crate) const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Time since `earlier`; zero where `earlier` is later.
    pub(crate) const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This moment, `later` on.
    pub(crate) fn after(self, later: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// Where a part of the runtime takes its time from.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The system's clocks.
    System,
    /// A clock that stands still until a test moves it.
    #[cfg(test)]
    Manual(Arc<ManualTime>),
}

/// The shared state of a manual clock.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct ManualTime {
    start: Instant,
    wall_start: SystemTime,
    elapsed_ms: AtomicU64,
}

impl Clock {
    /// A clock that stands still until [`Clock::advance`] moves it.
    #[cfg(test)]
    pub(crate) fn manual() -> Self {
        Self::Manual(Arc::new(ManualTime {
            start: Clock::System.now(),
            wall_start: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            // Not zero: a coarse moment of zero means "never".
            elapsed_ms: AtomicU64::new(1),
        }))
    }

    /// Moves a manual clock; a system clock is left alone.
    #[cfg(test)]
    pub(crate) fn advance(&self, by: Duration) {
        if let Self::Manual(time) = self {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            time.elapsed_ms.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// Whether waiting for it is in vain: a clock that is moved by hand.
    pub(crate) fn stands_still(&self) -> bool {
        match self {
            Self::System => false,
            #[cfg(test)]
            Self::Manual(_) => true,
        }
    }

    /// A precise monotonic moment; about 25 ns.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            #[cfg(test)]
            Self::Manual(time) => {
                time.start + Duration::from_millis(time.elapsed_ms.load(Ordering::SeqCst))
            }
        }
    }

    /// A monotonic moment with the resolution of the kernel's tick; about 5 ns.
    ///
    /// It goes on while the process is stopped by a signal, which is what makes
    /// a gap visible to the first record that would be handled after it.
    #[inline]
    pub(crate) fn coarse(&self) -> Coarse {
        match self {
            Self::System => {
                let time = rustix::time::clock_gettime(COARSE_CLOCK);
                let millis = time
                    .tv_sec
                    .wrapping_mul(1_000)
                    .wrapping_add(time.tv_nsec / 1_000_000);
                Coarse(u64::try_from(millis).unwrap_or(0))
            }
            #[cfg(test)]
            Self::Manual(time) => Coarse(time.elapsed_ms.load(Ordering::SeqCst)),
        }
    }

    /// Milliseconds since 1970, as Kafka's timestamps count them.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub(crate) fn unix_millis(&self) -> i64 {
        let now = match self {
            Self::System => SystemTime::now(),
            #[cfg(test)]
            Self::Manual(time) => {
                time.wall_start + Duration::from_millis(time.elapsed_ms.load(Ordering::SeqCst))
            }
        };
        now.duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or(0)
    }
}

#[cfg(target_os = "linux")]
const COARSE_CLOCK: rustix::time::ClockId = rustix::time::ClockId::MonotonicCoarse;
#[cfg(not(target_os = "linux"))]
const COARSE_CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_it_is_moved() {
        let clock = Clock::manual();
        let (start, coarse, wall) = (clock.now(), clock.coarse(), clock.unix_millis());
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.now() - start, Duration::from_millis(250));
        assert_eq!(clock.coarse().since(coarse), Duration::from_millis(250));
        assert_eq!(clock.unix_millis() - wall, 250);
    }

    #[test]
    fn the_coarse_clock_follows_the_precise_one_within_a_tick() {
        let clock = Clock::System;
        let (precise, coarse) = (clock.now(), clock.coarse());
        let deadline = precise + Duration::from_millis(40);
        while clock.now() < deadline {
            std::hint::spin_loop();
        }
        let by_coarse = clock.coarse().since(coarse);
        assert!(
            by_coarse >= Duration::from_millis(29),
            "coarse clock moved by {by_coarse:?} only"
        );
    }
}
