//! The demo's load: records in waves, at a pace, never more than the embedded
//! cluster can keep.
//!
//! A steady load shows a flat lag, which shows nothing. So every wave is half
//! quiet, at half of the mean rate, and half busy, at three times that: lag
//! rises while the load is above what the workers manage and falls afterwards.
//! The embedded cluster keeps the newest 5 MiB of a partition and drops the
//! rest, read or not; a partition with too much that was not handled is
//! therefore left out until its worker has caught up.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::tally::{Payload, Tally};
use crate::time;

/// About how long a wave takes.
const WAVE_SECONDS: f64 = 6.0;

/// How often records are sent.
const TICK: Duration = Duration::from_millis(5);

/// How much of a partition may be in the cluster without having been handled.
const UNHANDLED_BYTES: u64 = 3 * 1024 * 1024;

/// What a record takes in the cluster at most, its share of a batch's header
/// included.
const RECORD_BYTES: u64 = Payload::LEN as u64 + 76;

/// How many records of a partition may wait to be handled.
const UNHANDLED_RECORDS: u64 = UNHANDLED_BYTES / RECORD_BYTES;

/// How much, how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    pub(super) partitions: u32,
    /// Records per second, on average.
    pub(super) rate: u32,
    pub(super) length: Duration,
}

impl Load {
    /// How many records should have been sent so far.
    fn due(&self, elapsed: Duration) -> u64 {
        let length = self.length.as_secs_f64();
        let waves = (length / WAVE_SECONDS).round().max(1.0);
        let wave = length / waves;
        let elapsed = elapsed.as_secs_f64().min(length);
        let whole = (elapsed / wave).floor();
        let within = elapsed - whole * wave;
        let half = wave / 2.0;
        let quiet = within.min(half) * 0.5;
        let busy = (within - half).max(0.0) * 1.5;
        round((whole * wave + quiet + busy) * f64::from(self.rate))
    }

    /// A partition's share of so many records.
    fn share(&self, records: u64, partition: u32) -> u64 {
        let partitions = u64::from(self.partitions);
        (records + partitions - 1 - u64::from(partition)) / partitions
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of records: positive and far below 2^53"
)]
fn round(records: f64) -> u64 {
    records.round() as u64
}

/// Whether a record was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// Not now.
    Full,
    /// Never.
    Refused(String),
}

/// How the load ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LoadReport {
    /// Records sent, by partition.
    pub(super) sent: Vec<u64>,
    /// How long it lasted.
    pub(super) took: Duration,
    /// True where a partition was left out because too much of it was not
    /// handled.
    pub(super) held_back: bool,
    /// Why it ended early, where it was not told to.
    pub(super) refused: Option<String>,
}

/// Sends the load through `send` until it is over, or until `stop` says
/// something or is dropped.
pub(super) fn run(
    load: Load,
    tally: &Tally,
    stop: &Receiver<()>,
    mut send: impl FnMut(i32, &[u8]) -> Sent,
) -> LoadReport {
    let start = time::now();
    let mut report = LoadReport {
        sent: vec![0; load.partitions as usize],
        ..LoadReport::default()
    };
    loop {
        let stopped = !matches!(stop.recv_timeout(TICK), Err(RecvTimeoutError::Timeout));
        report.took = time::now()
            .saturating_duration_since(start)
            .min(load.length);
        if stopped {
            return report;
        }
        let due = load.due(report.took);
        for (partition, sent) in (0..).zip(&mut report.sent) {
            let most = tally.handled(partition) + UNHANDLED_RECORDS;
            let due = load.share(due, partition);
            let wanted = due.min(most);
            report.held_back |= wanted < due;
            while *sent < wanted {
                let payload = Payload {
                    partition,
                    sequence: *sent,
                };
                match send(partition.cast_signed(), &payload.to_bytes()) {
                    Sent::Yes => *sent += 1,
                    Sent::Full => break,
                    Sent::Refused(why) => {
                        report.refused = Some(why);
                        return report;
                    }
                }
            }
            tally.sent(partition, *sent);
        }
        if report.took >= load.length {
            return report;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: u32, seconds: u64) -> Load {
        Load {
            partitions: 6,
            rate,
            length: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn a_load_of_any_length_sends_its_mean_rate_and_never_goes_back() {
        for (rate, seconds) in [(20_000, 20), (1, 1), (100, 5), (50_000, 61)] {
            let load = load(rate, seconds);
            let mut last = 0;
            for millis in (0..=seconds * 1_000).step_by(7) {
                let due = load.due(Duration::from_millis(millis));
                assert!(due >= last, "{due} after {last} at {millis} ms");
                last = due;
            }
            let all = u64::from(rate) * seconds;
            assert_eq!(load.due(load.length), all);
            assert_eq!(load.due(Duration::from_secs(1_000)), all);
            let shares: u64 = (0..6).map(|partition| load.share(all, partition)).sum();
            assert_eq!(shares, all);
        }
    }

    #[test]
    fn a_wave_is_quiet_first_and_three_times_as_busy_then() {
        let load = load(1_000, 6);
        let at = |seconds| load.due(Duration::from_secs(seconds));
        assert_eq!(at(3), 1_500);
        assert_eq!(at(6) - at(3), 4_500);
    }

    #[test]
    fn a_partition_that_is_not_handled_is_left_out_before_the_cluster_is_full() {
        let tally = Tally::new(6);
        let (_stop, stopped) = crossbeam_channel::bounded(0);
        let load = Load {
            partitions: 6,
            rate: 10_000_000,
            length: Duration::from_millis(50),
        };
        let report = run(load, &tally, &stopped, |_, _| Sent::Yes);
        assert_eq!(report.sent, vec![UNHANDLED_RECORDS; 6]);
        assert!(report.held_back);
    }

    #[test]
    fn a_refused_record_ends_the_load_with_its_reason() {
        let tally = Tally::new(6);
        let (_stop, stopped) = crossbeam_channel::bounded(0);
        let report = run(load(20_000, 20), &tally, &stopped, |_, _| {
            Sent::Refused("too large".into())
        });
        assert_eq!(report.refused.as_deref(), Some("too large"));
        assert_eq!(report.sent, vec![0; 6]);
    }
}
