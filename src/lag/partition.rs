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
use crate::worker::tracker::Tracker;

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
