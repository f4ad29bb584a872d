//! What the numbers mean: pure functions of what a broker told and what the
//! workers did.
//!
//! The rules that all of them keep: what cannot be known is `None`, a distance
//! is never negative (a log that was truncated below the position, or a leader
//! that knows less than the one before, gives zero and is counted), and a clock
//! that goes back or a timestamp from the future makes nothing huge.

use std::time::Duration;

/// End offsets older than that are asked for. Less than a tick: one that was
/// told at the last tick is a few milliseconds short of a second old by now,
/// and would be asked for at every other tick only.
pub(crate) const STALE_AFTER: Duration = Duration::from_millis(900);

/// How far it is from one offset to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Distance {
    pub(crate) records: u64,
    /// It would have been negative.
    pub(crate) clamped: bool,
}

/// From `from` up to `to`; `None` where either is unknown.
///
/// Lag is the distance from the position (`records-lag` of the Java client,
/// `FetchMetricsManager`) or from the committed offset (`kafka-consumer-groups`)
/// to the end, lead (KIP-223) that from the log start to the position.
pub(crate) fn distance(from: Option<i64>, to: Option<i64>) -> Option<Distance> {
    let records = to?.saturating_sub(from?);
    Some(Distance {
        records: u64::try_from(records).unwrap_or(0),
        clamped: records < 0,
    })
}

/// True where the end offset should be asked for: it is unknown, or old.
pub(crate) fn is_stale(age: Option<Duration>) -> bool {
    age.is_none_or(|age| age >= STALE_AFTER)
}

/// What is known of the oldest record that is not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oldest {
    /// Records between the watermark and the end.
    pub(crate) open: u64,
    /// The timestamp of the record that is in hand or was completed last, in
    /// milliseconds since 1970.
    pub(crate) timestamp_ms: Option<i64>,
    /// True where that record is in hand.
    pub(crate) in_hand: bool,
    /// How long ago nothing was open for the last time.
    pub(crate) caught_up_ago: Option<Duration>,
}

/// The age of the oldest record that is not completed; zero where none is.
///
/// Exact for a record in hand. Where the next one is not in hand, it is no older
/// than the last completed one, nor than the moment at which nothing was open:
/// the lesser of both is the answer. Without the second an idle topic's first
/// record would look as old as the one before it.
pub(crate) fn time_lag(oldest: Oldest, now_ms: i64) -> Option<Duration> {
    if oldest.open == 0 && !oldest.in_hand {
        return Some(Duration::ZERO);
    }
    let by_record = oldest.timestamp_ms.map(|timestamp| {
        // Zero for a record from the future, or after the clock was set back.
        let age = u64::try_from(now_ms.saturating_sub(timestamp)).unwrap_or(0);
        Duration::from_millis(age)
    });
    if oldest.in_hand {
        return by_record;
    }
    match (by_record, oldest.caught_up_ago) {
        (Some(record), Some(caught_up)) => Some(record.min(caught_up)),
        (record, caught_up) => record.or(caught_up),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn oldest(open: u64, age_ms: Option<i64>, in_hand: bool, caught_up_s: Option<u64>) -> Oldest {
        Oldest {
            open,
            timestamp_ms: age_ms.map(|age| NOW - age),
            in_hand,
            caught_up_ago: caught_up_s.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_distance_is_known_only_where_both_ends_are_and_never_negative() {
        let known = |records, clamped| Some(Distance { records, clamped });
        assert_eq!(distance(Some(3), Some(10)), known(7, false));
        assert_eq!(distance(Some(10), Some(10)), known(0, false));
        assert_eq!(distance(Some(10), Some(4)), known(0, true), "truncated");
        assert_eq!(distance(None, Some(4)), None);
        assert_eq!(distance(Some(4), None), None);
        let most = distance(Some(i64::MIN), Some(i64::MAX));
        assert_eq!(most.map(|d| d.records), u64::try_from(i64::MAX).ok());
    }

    #[test]
    fn an_end_offset_is_asked_for_when_it_is_unknown_or_as_old_as_the_last_tick() {
        assert!(is_stale(None));
        assert!(!is_stale(Some(Duration::from_millis(899))));
        assert!(is_stale(Some(Duration::from_millis(996))));
    }

    #[test]
    fn time_lag_is_zero_exactly_when_nothing_is_open() {
        let caught_up = oldest(0, Some(86_400_000), false, Some(0));
        assert_eq!(time_lag(caught_up, NOW), Some(Duration::ZERO));
        let in_hand = oldest(0, Some(1_500), true, Some(0));
        assert_eq!(time_lag(in_hand, NOW), Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn the_first_record_after_an_idle_day_is_not_a_day_old() {
        let first = oldest(1, Some(86_400_000), false, Some(2));
        assert_eq!(time_lag(first, NOW), Some(Duration::from_secs(2)));
        let behind = oldest(900, Some(7_000), false, Some(3_600));
        assert_eq!(time_lag(behind, NOW), Some(Duration::from_secs(7)));
    }

    #[test]
    fn unknown_stays_unknown_and_the_future_is_not_a_huge_number() {
        assert_eq!(time_lag(oldest(5, None, false, None), NOW), None);
        assert_eq!(time_lag(oldest(5, None, true, Some(9)), NOW), None);
        let future = oldest(5, Some(-60_000), true, None);
        assert_eq!(time_lag(future, NOW), Some(Duration::ZERO));
        let ancient = Oldest {
            timestamp_ms: Some(i64::MIN),
            ..future
        };
        assert!(time_lag(ancient, NOW).is_some());
    }
}
