//! What happens with a record whose handler failed.

use std::time::{Duration, Instant};

use crate::config::RetryPolicy;

/// What the policy says of a failed record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is handed over again, not before that moment.
    Again { not_before: Instant },
    /// It was handed over as often as the policy allows.
    Exhausted,
}

/// What the handler says of trying a failed record again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hope {
    /// It may help, after that time where one is given.
    Retry { after: Option<Duration> },
    /// It does not help.
    None,
}

/// Nothing that is asked for lasts longer: clocks do not count up to what a
/// [`Duration`] can be.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// Decides after the `attempts`-th failure of a record (from 1). `chance` (0 to
/// 1) makes the policy's own wait a little longer or shorter.
pub(crate) fn decide(
    policy: &RetryPolicy,
    attempts: u32,
    hope: Hope,
    now: Instant,
    chance: f64,
) -> Verdict {
    match hope {
        Hope::Retry { after } if attempts < policy.attempts => Verdict::Again {
            not_before: now
                + after.map_or_else(
                    || policy.delay(attempts, chance),
                    |after| after.min(FOREVER),
                ),
        },
        Hope::Retry { .. } | Hope::None => Verdict::Exhausted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_the_last_attempt_ends_it() {
        let policy = RetryPolicy::default();
        let now = Clock::manual().now();
        let after = |after| Hope::Retry { after };
        let wait = |attempts, hope| match decide(&policy, attempts, hope, now, 0.5) {
            Verdict::Again { not_before } => Some((not_before - now).as_millis()),
            Verdict::Exhausted => None,
        };
        let waits: Vec<_> = (1..=10).map(|nth| wait(nth, after(None))).collect();
        let expected = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600].map(Some);
        assert_eq!(waits[..9], expected);
        assert_eq!(waits[9], None, "the tenth failure is the last");
        let asked = after(Some(Duration::from_secs(7)));
        assert_eq!(wait(1, asked), Some(7_000));
        let for_ever = after(Some(Duration::MAX));
        assert_eq!(wait(1, for_ever), Some(FOREVER.as_millis()));
        assert_eq!(wait(1, Hope::None), None, "the first is the last too");
        let long = RetryPolicy {
            attempts: u32::MAX,
            ..policy
        };
        assert_eq!(long.delay(4_000_000_000, 1.0), Duration::from_secs(30));
        let by_chance = [0.0, 1.0].map(|chance| policy.delay(1, chance).as_millis());
        assert_eq!(by_chance, [80, 120], "a fifth to either side");
    }
}
