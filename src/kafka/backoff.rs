//! How long to wait before asking again.
//!
//! Waiting doubles with every failure, so that a cluster in trouble is not
//! asked to death, and is spread by a random share, so that all the processes
//! that lost the same broker do not come back in the same millisecond.

use std::time::Duration;

/// A back-off that doubles from `first` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) max: Duration,
}

/// The wait is spread over this share of itself, up and down.
const JITTER: f64 = 0.2;

impl Backoff {
    /// The wait after `failures` failures in a row, with `random` from 0 to 1
    /// deciding where in the spread it lies. No failure, no wait; never more
    /// than `max` and its spread.
    pub(crate) fn delay(self, failures: u32, random: f64) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 2_u32.saturating_pow(doublings.min(31));
        let delay = self.first.saturating_mul(factor).min(self.max);
        delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0))
    }

    /// As [`Backoff::delay`], with a random number of the system's.
    pub(crate) fn random_delay(self, failures: u32) -> Duration {
        self.delay(failures, fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(100),
        max: Duration::from_secs(2),
    };

    #[test]
    fn the_wait_doubles_up_to_its_maximum_and_never_overflows() {
        let middle: Vec<u128> = [0, 1, 2, 3, 5, 6, 40, u32::MAX]
            .into_iter()
            .map(|failures| BACKOFF.delay(failures, 0.5).as_millis())
            .collect();
        assert_eq!(middle, [0, 100, 200, 400, 1600, 2000, 2000, 2000]);
    }

    #[test]
    fn the_wait_is_spread_by_a_fifth_up_and_down() {
        assert_eq!(BACKOFF.delay(1, 0.0), Duration::from_millis(80));
        assert_eq!(BACKOFF.delay(1, 1.0), Duration::from_millis(120));
        assert_eq!(BACKOFF.delay(99, 1.0), Duration::from_millis(2400));
    }
}
