//! One partition from tick to tick.
//!
//! What a tick shows follows from what the tracker says now and from what
//! earlier ticks saw: the windows, the moment at which nothing was open for the
//! last time, and since when the same record has been in hand. All of it
//! belongs to one ownership of the partition: one that was revoked and came
//! back begins anew, even where both happened between two ticks. A seek changes
//! the tracker and not the ownership.

use std::sync::Arc;
use std::time::Duration;

use super::estimate::{self, Oldest, distance};
use super::snapshot::PartitionLag;
use super::topics::Counts;
use super::window::{Observed, Window};
use crate::clock::Coarse;
use crate::record::TopicPartition;
use crate::worker::samples::Collected;
use crate::worker::tracker::{Hands, Tracker};

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) coarse: Coarse,
    /// Milliseconds since 1970.
    pub(crate) unix_ms: i64,
}

/// A handler that is at a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hand {
    watermark: Option<i64>,
    turns: u64,
    since: Coarse,
}

/// What the reporter remembers of a partition.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) partition: TopicPartition,
    pub(crate) tracker: Arc<Tracker>,
    lag: Window,
    lead: Window,
    lag_collected: Collected,
    lead_collected: Collected,
    caught_up_at: Option<Coarse>,
    hand: Option<Hand>,
    /// What was added to the topic's totals of this tracker.
    pub(crate) counted: Counts,
}

/// What a look found beside the numbers of the partition.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) lag: PartitionLag,
    /// A distance was negative and is shown as zero.
    pub(crate) clamped: bool,
}

impl Watched {
    pub(crate) fn new(partition: TopicPartition, tracker: Arc<Tracker>, now: Coarse) -> Self {
        Self {
            partition,
            tracker,
            lag: Window::new(now),
            lead: Window::new(now),
            lag_collected: Collected::default(),
            lead_collected: Collected::default(),
            caught_up_at: None,
            hand: None,
            counted: Counts::default(),
        }
    }

    /// Goes on with a new tracker of the same ownership: after a seek.
    pub(crate) fn follow(&mut self, tracker: Arc<Tracker>) {
        self.tracker = tracker;
        self.lag_collected = Collected::default();
        self.lead_collected = Collected::default();
        // What lies between the two positions is older than that moment.
        self.caught_up_at = None;
        self.hand = None;
        self.counted = Counts::default();
    }

    /// Looks at the tracker; `observes` adds the moment to the windows.
    pub(crate) fn look(&mut self, now: Moment, observes: bool) -> Looked {
        let tracker = &*self.tracker;
        // The end first: records that are handed over between the two reads then
        // make the lag smaller than it was, and never greater than it is.
        let end = tracker.end();
        let end_offset = end.map(|(end, _)| end);
        let log_start = tracker.log_start();
        let position = tracker.position();
        let watermark = tracker.watermark();
        let committed = tracker.committed();
        let in_flight = tracker.in_flight();
        let lag = distance(position, end_offset);
        let lead = distance(log_start, position);
        let committed_lag = distance(committed, end_offset);
        self.lag.observe(
            tracker.lag_samples.collect(&mut self.lag_collected),
            now.coarse,
        );
        self.lead.observe(
            tracker.lead_samples.collect(&mut self.lead_collected),
            now.coarse,
        );
        if observes {
            if let Some(lag) = lag {
                self.lag.observe(Observed::one(lag.records), now.coarse);
            }
            if let Some(lead) = lead {
                self.lead.observe(Observed::one(lead.records), now.coarse);
            }
        }
        let open = distance(watermark, end_offset);
        if let (Some(open), Some((_, at))) = (open, end)
            && open.records == 0
            && in_flight == 0
        {
            self.caught_up_at = self.caught_up_at.max(Some(at));
        }
        let time_lag = open.and_then(|open| {
            let oldest = Oldest {
                open: open.records,
                timestamp_ms: tracker.timestamp(),
                in_hand: in_flight > 0,
                caught_up_ago: self.caught_up_at.map(|at| now.coarse.since(at)),
            };
            estimate::time_lag(oldest, now.unix_ms)
        });
        let (lags, leads) = (self.lag.summary(now.coarse), self.lead.summary(now.coarse));
        let tracker = Arc::clone(&self.tracker);
        let in_hand_for = self.in_hand_for(&tracker, in_flight, now.coarse);
        let clamped = [lag, lead, committed_lag]
            .iter()
            .any(|distance| distance.is_some_and(|distance| distance.clamped));
        Looked {
            clamped,
            lag: PartitionLag {
                partition: self.partition.clone(),
                worker: tracker.worker(),
                last_worker: tracker.last_worker(),
                paused: tracker.is_paused(),
                position,
                watermark,
                committed,
                end_offset,
                end_offset_age: end.map(|(_, at)| now.coarse.since(at)),
                log_start,
                records_lag: lag.map(|lag| lag.records),
                records_lag_max: lags.map(|lags| lags.max),
                records_lag_avg: lags.map(|lags| lags.mean),
                records_lead: lead.map(|lead| lead.records),
                records_lead_min: leads.map(|leads| leads.min),
                records_lead_avg: leads.map(|leads| leads.mean),
                committed_lag: committed_lag.map(|lag| lag.records),
                in_flight,
                time_lag,
                in_hand_for,
            },
        }
    }

    /// How long the same record has been in a handler: since the first look
    /// that found it there. A record that waits for its retry is in nobody's
    /// hand, nor is one whose worker is gone.
    fn in_hand_for(&mut self, tracker: &Tracker, in_flight: u64, now: Coarse) -> Duration {
        match tracker.hands() {
            Hands::ByProgress => {}
            Hands::Empty => return Duration::ZERO,
            Hands::Since(since) => return now.since(since),
        }
        if in_flight == 0 || tracker.waits() || tracker.worker().is_none() {
            self.hand = None;
            return Duration::ZERO;
        }
        let (watermark, turns) = (tracker.watermark(), tracker.turns());
        match self.hand {
            Some(hand) if (hand.watermark, hand.turns) == (watermark, turns) => {
                now.since(hand.since)
            }
            _ => {
                self.hand = Some(Hand {
                    watermark,
                    turns,
                    since: now,
                });
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::AssignmentEpoch;

    const START_MS: u64 = 1_000_000;
    const WALL_MS: i64 = 1_700_000_000_000;

    fn at(seconds: u64) -> Moment {
        Moment {
            coarse: Coarse::from_millis(START_MS + seconds * 1_000),
            unix_ms: WALL_MS + i64::try_from(seconds).unwrap() * 1_000,
        }
    }

    fn watched() -> (Watched, Arc<Tracker>) {
        let tracker = Arc::new(Tracker::new(AssignmentEpoch(7)));
        let partition = TopicPartition::new("t", 3);
        let watched = Watched::new(partition, Arc::clone(&tracker), at(0).coarse);
        (watched, tracker)
    }

    /// A partition that worker 2 has at offset 100, of which 70 to 150 are in the log.
    fn placed() -> (Watched, Arc<Tracker>) {
        let (watched, tracker) = watched();
        tracker.begin(100);
        tracker.set_worker(Some(2));
        tracker.set_committed(Some(90));
        tracker.saw_ends(150, 70, at(0).coarse);
        (watched, tracker)
    }

    #[test]
    fn before_its_start_position_nothing_is_known_of_a_partition() {
        let (mut watched, _) = watched();
        let looked = watched.look(at(1), true);
        let unknown = PartitionLag::unknown(TopicPartition::new("t", 3));
        assert_eq!(looked.lag, unknown);
        assert!(!looked.clamped);
    }

    #[test]
    fn the_lags_and_the_lead_are_distances_between_the_numbers_that_are_shown() {
        let (mut watched, tracker) = placed();
        let lag = watched.look(at(2), true).lag;
        assert_eq!((lag.records_lag, lag.committed_lag), (Some(50), Some(60)));
        assert_eq!(lag.records_lead, Some(30));
        assert_eq!(
            (lag.records_lag_max, lag.records_lead_min),
            (Some(50), Some(30))
        );
        assert_eq!(lag.end_offset_age, Some(Duration::from_secs(2)));
        assert_eq!((lag.worker, lag.in_flight), (Some(2), 0));

        // The worker is gone: all of it is still known.
        tracker.set_worker(None);
        tracker.was_told_ends(170, -1, at(3).coarse);
        let lag = watched.look(at(3), true).lag;
        assert_eq!((lag.worker, lag.last_worker), (None, Some(2)));
        assert_eq!((lag.records_lag, lag.committed_lag), (Some(70), Some(80)));
        assert_eq!((lag.log_start, lag.records_lag_max), (Some(70), Some(70)));
    }

    #[test]
    fn nothing_committed_is_no_committed_lag_and_not_one_of_everything() {
        let (mut watched, tracker) = placed();
        tracker.set_committed(None);
        assert_eq!(watched.look(at(1), true).lag.committed_lag, None);
    }

    #[test]
    fn an_end_before_the_position_is_a_lag_of_zero_and_is_said() {
        let (mut watched, tracker) = placed();
        assert!(!watched.look(at(1), true).clamped);
        tracker.was_told_ends(10, 0, at(2).coarse);
        let looked = watched.look(at(2), true);
        assert!(looked.clamped);
        let lags = (looked.lag.records_lag, looked.lag.committed_lag);
        assert_eq!(lags, (Some(0), Some(0)));
        // Retention passed the position: the lead is zero, the lag is what the broker's numbers give.
        tracker.was_told_ends(400, 300, at(3).coarse);
        let looked = watched.look(at(3), true);
        assert!(looked.clamped);
        assert_eq!(
            (looked.lag.records_lag, looked.lag.records_lead),
            (Some(300), Some(0))
        );
    }

    #[test]
    fn a_look_between_two_ticks_shows_and_does_not_weigh() {
        let (mut watched, tracker) = placed();
        assert_eq!(watched.look(at(1), false).lag.records_lag_max, None);
        watched.look(at(1), true);
        tracker.was_told_ends(250, -1, at(1).coarse);
        let between = watched.look(at(1), false).lag;
        assert_eq!(
            (between.records_lag, between.records_lag_max),
            (Some(150), Some(50))
        );
        // What a worker observed counts at any look.
        tracker.turn_ends(0);
        let between = watched.look(at(1), false).lag;
        assert_eq!(
            (between.records_lag_max, between.records_lag_avg),
            (Some(150), Some(100.0))
        );
    }

    #[test]
    fn after_a_seek_backwards_the_age_of_what_comes_again_is_unknown_until_it_is_in_hand() {
        let (mut watched, tracker) = placed();
        tracker.crossed(150);
        assert_eq!(watched.look(at(0), true).lag.time_lag, Some(Duration::ZERO));
        let fresh = Arc::new(Tracker::new(tracker.owned_since()));
        fresh.begin(100);
        fresh.saw_ends(150, 70, at(2).coarse);
        watched.follow(Arc::clone(&fresh));
        assert_eq!(watched.look(at(2), true).lag.time_lag, None);
        fresh.handed_over(100, at(2).unix_ms - 3_600_000);
        let lag = watched.look(at(2), true).lag;
        assert_eq!(lag.time_lag, Some(Duration::from_hours(1)));
    }

    #[test]
    fn a_seek_goes_on_with_the_windows_of_the_ownership() {
        let (mut watched, tracker) = placed();
        tracker.turn_ends(0);
        assert_eq!(watched.look(at(1), true).lag.records_lag_max, Some(50));
        let fresh = Arc::new(Tracker::new(tracker.owned_since()));
        fresh.begin(140);
        fresh.saw_ends(150, 70, at(2).coarse);
        // A worker had observed before the first look at the new tracker.
        fresh.turn_ends(0);
        watched.follow(Arc::clone(&fresh));
        let lag = watched.look(at(2), true).lag;
        assert_eq!((lag.records_lag, lag.records_lag_max), (Some(10), Some(50)));
        assert_eq!(lag.records_lag_avg, Some((50.0 + 50.0 + 10.0 + 10.0) / 4.0));
    }

    #[test]
    fn a_record_is_in_hand_since_the_first_look_that_found_it_there() {
        let (mut watched, tracker) = placed();
        tracker.handed_over(100, WALL_MS);
        let in_hand_for = |watched: &mut Watched, second| {
            let lag = watched.look(at(second), true).lag;
            assert_eq!(lag.in_flight, 1);
            lag.in_hand_for.as_secs()
        };
        assert_eq!(in_hand_for(&mut watched, 1), 0);
        assert_eq!(in_hand_for(&mut watched, 2), 1);
        assert_eq!(in_hand_for(&mut watched, 400), 399);
        // The next record is another one.
        tracker.completed(100);
        tracker.handed_over(101, WALL_MS);
        assert_eq!(in_hand_for(&mut watched, 401), 0);
        assert_eq!(in_hand_for(&mut watched, 402), 1);
        tracker.completed(101);
        assert_eq!(watched.look(at(403), true).lag.in_hand_for, Duration::ZERO);
    }

    #[test]
    fn a_record_that_waits_for_its_retry_or_for_a_worker_is_in_nobodys_hand() {
        let (mut watched, tracker) = placed();
        tracker.handed_over(100, WALL_MS);
        watched.look(at(1), true);
        let in_hand_for = |watched: &mut Watched, second| {
            watched.look(at(second), true).lag.in_hand_for.as_secs()
        };
        assert_eq!(in_hand_for(&mut watched, 5), 4);
        // It failed, and waits.
        tracker.turn_ends(0);
        tracker.retries();
        assert_eq!(in_hand_for(&mut watched, 6), 0);
        assert_eq!(in_hand_for(&mut watched, 999), 0);
        assert_eq!(watched.look(at(999), true).lag.in_flight, 1);
        // It is tried again, and again: each time it is in hand anew.
        tracker.turn_begins();
        assert_eq!(in_hand_for(&mut watched, 1_000), 0);
        assert_eq!(in_hand_for(&mut watched, 1_003), 3);
        tracker.turn_ends(0);
        assert_eq!(in_hand_for(&mut watched, 1_004), 0);
        assert_eq!(in_hand_for(&mut watched, 1_005), 1);
        // Its worker is gone.
        tracker.set_worker(None);
        assert_eq!(in_hand_for(&mut watched, 1_006), 0);
        assert_eq!(in_hand_for(&mut watched, 2_000), 0);
    }

    #[test]
    fn the_first_record_after_an_idle_time_is_as_old_as_the_end_that_was_told_before_it() {
        let (mut watched, tracker) = placed();
        // The last one was written an hour ago, and is done.
        tracker.handed_over(149, WALL_MS - 3_600_000);
        tracker.completed(149);
        tracker.turn_ends(0);
        assert_eq!(watched.look(at(1), true).lag.time_lag, Some(Duration::ZERO));
        tracker.was_told_ends(150, -1, at(600).coarse);
        assert_eq!(
            watched.look(at(600), true).lag.time_lag,
            Some(Duration::ZERO)
        );
        // One more is there, and nobody has it yet.
        tracker.was_told_ends(151, -1, at(601).coarse);
        let lag = watched.look(at(603), true).lag;
        assert_eq!(lag.time_lag, Some(Duration::from_secs(3)));
        // In hand its age is exact, and zero where its producer's clock is ahead.
        tracker.handed_over(150, WALL_MS + 602_500);
        let lag = watched.look(at(603), true).lag;
        assert_eq!(lag.time_lag, Some(Duration::from_millis(500)));
        tracker.handed_over(150, WALL_MS + 9_000_000);
        assert_eq!(
            watched.look(at(603), true).lag.time_lag,
            Some(Duration::ZERO)
        );
    }
}
