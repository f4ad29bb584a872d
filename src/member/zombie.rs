//! Whether this process may still be a member after it was asleep.
//!
//! The member's loop turns many times a second. A gap of more than half the
//! session timeout ([`Group::sleep_limit`]) means that the process did not run
//! (SIGSTOP, a suspended machine), and that the group may have given its
//! partitions away. Until the group has answered again no record may be started
//! ([`Gate`]).
//!
//! librdkafka does not tell when a heartbeat was answered (under KIP-848 its log
//! does, in a line that may be from before the gap), so the answer is taken from
//! what it does tell, whichever comes first:
//!
//! - a rebalance event: the group told us what is ours now (or that all is
//!   lost);
//! - a commit that succeeded after the gap: the coordinator checked member and
//!   generation;
//! - nothing for [`QUIET`]: the client sends its overdue heartbeat at once when
//!   it wakes, and an expired member learns of it by the answer to that. An
//!   unreachable coordinator starts the wait anew.
//!
//! [`Gate`]: crate::worker::gate::Gate
//! [`Group::sleep_limit`]: crate::member::group::Group::sleep_limit

use std::time::Duration;

use crate::clock::Coarse;

/// Two of Kafka's default heartbeat intervals (3 s).
pub(crate) const QUIET: Duration = Duration::from_secs(6);

/// What the loop has to do with the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// No record may be started from now on; the process slept that long.
    Shut { slept: Duration },
    /// Records may be started again.
    Open,
}

/// Watches the gaps between turns of the member's loop.
#[derive(Debug)]
pub(crate) struct Watch {
    limit: Option<Duration>,
    last_turn: Coarse,
    /// Since when the gate is shut and the coordinator was not unreachable.
    shut_since: Option<Coarse>,
}

impl Watch {
    /// Watches for gaps of more than `limit`; without one there is nothing to
    /// watch.
    pub(crate) fn new(limit: Option<Duration>, now: Coarse) -> Self {
        Self {
            limit,
            last_turn: now,
            shut_since: None,
        }
    }

    /// The loop turns.
    pub(crate) fn turn(&mut self, now: Coarse) -> Option<Change> {
        let slept = now.since(self.last_turn);
        self.last_turn = now;
        if self.limit.is_some_and(|limit| slept > limit) {
            self.shut_since = Some(now);
            return Some(Change::Shut { slept });
        }
        self.shut_since
            .filter(|since| now.since(*since) >= QUIET)
            .map(|_| self.open())
    }

    /// The group answered: a rebalance, or a commit that succeeded.
    pub(crate) fn group_answered(&mut self) -> Option<Change> {
        self.shut_since.is_some().then(|| self.open())
    }

    /// The coordinator cannot be reached: its silence proves nothing.
    pub(crate) fn contact_lost(&mut self, now: Coarse) {
        if self.shut_since.is_some() {
            self.shut_since = Some(now);
        }
    }

    fn open(&mut self) -> Change {
        self.shut_since = None;
        Change::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Coarse {
        Coarse::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_gap_of_more_than_the_limit_shuts_the_gate_until_the_group_answered() {
        let mut watch = Watch::new(Some(Duration::from_secs(5)), at(0));
        assert_eq!(watch.turn(at(5)), None);
        let slept = Duration::from_secs(6);
        assert_eq!(watch.turn(at(11)), Some(Change::Shut { slept }));
        assert_eq!(watch.turn(at(12)), None);
        assert_eq!(watch.group_answered(), Some(Change::Open));
        assert_eq!(watch.group_answered(), None);
    }

    #[test]
    fn silence_opens_the_gate_only_while_the_coordinator_can_be_reached() {
        let mut watch = Watch::new(Some(Duration::from_secs(5)), at(0));
        watch.turn(at(100));
        for second in 101..105 {
            assert_eq!(watch.turn(at(second)), None);
        }
        watch.contact_lost(at(105));
        assert_eq!(watch.turn(at(107)), None);
        assert_eq!(watch.turn(at(110)), None);
        assert_eq!(watch.turn(at(111)), Some(Change::Open));
    }

    #[test]
    fn without_a_session_no_gap_means_anything() {
        let mut watch = Watch::new(None, at(0));
        assert_eq!(watch.turn(at(100_000)), None);
    }
}
