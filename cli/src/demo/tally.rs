//! What was produced and what was handled, told by sequence numbers.
//!
//! A runtime that loses a record will hardly count it. So the demo trusts no
//! counter, offset or lag of what it demonstrates: every record carries the
//! number of its partition and its own number in it, and handlers tick them
//! off. A number without a tick is lost, a second tick is a duplicate.

use parking_lot::Mutex;

/// What a record of the demo says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) partition: u32,
    /// From 0, without gaps, per partition.
    pub(super) sequence: u64,
}

impl Payload {
    /// Length of a payload; most of it stands for what a record would carry.
    pub(super) const LEN: usize = 64;

    const MARK: [u8; 4] = *b"demo";

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [b'.'; Self::LEN];
        bytes[..4].copy_from_slice(&Self::MARK);
        bytes[4..8].copy_from_slice(&self.partition.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// `None` for bytes that the demo did not make.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let (mark, rest) = bytes.split_first_chunk::<4>()?;
        let (partition, rest) = rest.split_first_chunk::<4>()?;
        let sequence = rest.first_chunk::<8>()?;
        (*mark == Self::MARK).then(|| Self {
            partition: u32::from_le_bytes(*partition),
            sequence: u64::from_le_bytes(*sequence),
        })
    }
}

/// The ticks of all partitions.
#[derive(Debug)]
pub(super) struct Tally {
    partitions: Vec<Mutex<Ticks>>,
}

/// The ticks of one partition. Only its worker and the load take the lock.
#[derive(Debug, Default)]
struct Ticks {
    /// One bit per sequence number.
    seen: Vec<u64>,
    handled: u64,
    duplicates: u64,
    sent: u64,
}

/// Sums over all partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) sent: u64,
    /// Records that were handled at least once.
    pub(super) handled: u64,
    /// How often a record was handled again.
    pub(super) duplicates: u64,
}

impl Sums {
    /// Records that were sent and not handled.
    pub(super) fn outstanding(self) -> u64 {
        self.sent.saturating_sub(self.handled)
    }
}

impl Tally {
    pub(super) fn new(partitions: u32) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
        }
    }

    /// Ticks a record off; `false` for one that the demo cannot have made.
    pub(super) fn tick(&self, payload: Payload) -> bool {
        let Some(ticks) = self.partitions.get(payload.partition as usize) else {
            return false;
        };
        let Ok(word) = usize::try_from(payload.sequence / 64) else {
            return false;
        };
        let bit = 1 << (payload.sequence % 64);
        let mut ticks = ticks.lock();
        if word >= ticks.seen.len() {
            ticks.seen.resize(word + 1, 0);
        }
        if ticks.seen[word] & bit == 0 {
            ticks.seen[word] |= bit;
            ticks.handled += 1;
        } else {
            ticks.duplicates += 1;
        }
        true
    }

    /// So many records were sent to a partition so far.
    pub(super) fn sent(&self, partition: u32, records: u64) {
        if let Some(ticks) = self.partitions.get(partition as usize) {
            ticks.lock().sent = records;
        }
    }

    /// How many records of a partition were handled.
    pub(super) fn handled(&self, partition: u32) -> u64 {
        self.partitions
            .get(partition as usize)
            .map_or(0, |ticks| ticks.lock().handled)
    }

    pub(super) fn sums(&self) -> Sums {
        self.partitions.iter().fold(Sums::default(), |sums, ticks| {
            let ticks = ticks.lock();
            Sums {
                sent: sums.sent + ticks.sent,
                handled: sums.handled + ticks.handled,
                duplicates: sums.duplicates + ticks.duplicates,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_read_back_and_foreign_ones_refused() {
        let payload = Payload {
            partition: 5,
            sequence: 1 << 40,
        };
        let bytes = payload.to_bytes();
        assert_eq!(Payload::from_bytes(&bytes), Some(payload));
        assert_eq!(Payload::from_bytes(&bytes[1..]), None);
        assert_eq!(Payload::from_bytes(&[0; Payload::LEN]), None);
        assert_eq!(Payload::from_bytes(b""), None);
    }

    #[test]
    fn a_missing_number_is_lost_and_a_second_tick_is_a_duplicate() {
        let tally = Tally::new(2);
        for sequence in [0, 1, 3, 200, 1] {
            assert!(tally.tick(Payload {
                partition: 1,
                sequence
            }));
        }
        tally.sent(1, 5);
        let sums = tally.sums();
        assert_eq!((sums.sent, sums.handled, sums.duplicates), (5, 4, 1));
        assert_eq!(sums.outstanding(), 1);
        assert!(!tally.tick(Payload {
            partition: 2,
            sequence: 0
        }));
    }
}
