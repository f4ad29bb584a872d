//! Keeps a process that was asleep from working on what is no longer its own.
//!
//! A process that is stopped (SIGSTOP, a suspended machine, a long swap) for
//! longer than the session timeout loses its partitions without noticing. When
//! it wakes, all its threads go on at once, and a worker could start records
//! that another process handles already before the member's loop learns of it.
//! So every worker asks the gate before every record (before every few where
//! they are short), and the gate is shut from the moment that the member's last
//! beat is too old, which no thread has to notice: the age itself is the
//! signal.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Coarse;

/// Shared by the member, which beats and opens or shuts it, and the workers,
/// which ask it before records.
#[derive(Debug)]
pub(crate) struct Gate {
    beat_ms: AtomicU64,
    limit_ms: u64,
    shut: AtomicBool,
}

impl Gate {
    /// A gate that is open while beats are not older than `limit`.
    pub(crate) fn new(limit: Duration, now: Coarse) -> Self {
        Self {
            beat_ms: AtomicU64::new(now.as_millis()),
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            shut: AtomicBool::new(false),
        }
    }

    /// The member's loop is alive.
    pub(crate) fn beat(&self, now: Coarse) {
        self.beat_ms.store(now.as_millis(), Ordering::Release);
    }

    /// No record may be started until [`Gate::open`].
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
    }

    /// Records may be started again, while beats come.
    pub(crate) fn open(&self) {
        self.shut.store(false, Ordering::Release);
    }

    /// The last beat and whether it is shut, for a gate in another process. In the
    /// order of [`Gate::allows`].
    pub(crate) fn look(&self) -> (u64, bool) {
        let beat = self.beat_ms.load(Ordering::Acquire);
        (beat, self.shut.load(Ordering::Acquire))
    }

    /// True where a worker may start a record.
    ///
    /// The order matters: the member shuts the gate *before* it beats after a
    /// gap. A worker that reads the new beat therefore also reads `shut`.
    #[inline]
    pub(crate) fn allows(&self, now: Coarse) -> bool {
        let beat = self.beat_ms.load(Ordering::Acquire);
        now.as_millis().saturating_sub(beat) <= self.limit_ms && !self.shut.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_beat_shuts_the_gate_without_anybody_noticing() {
        let gate = Gate::new(Duration::from_secs(3), Coarse::from_millis(1_000));
        assert!(gate.allows(Coarse::from_millis(4_000)));
        assert!(!gate.allows(Coarse::from_millis(4_001)));
        gate.shut();
        gate.beat(Coarse::from_millis(60_000));
        assert!(
            !gate.allows(Coarse::from_millis(60_000)),
            "shut until the group answered"
        );
        gate.open();
        assert!(gate.allows(Coarse::from_millis(60_000)));
    }
}
