//! What must hold of a record set, whatever its bytes are.

use super::buffers::BufferPool;
use super::compression::Decompressor;
use super::record_set::{RecordSetReader, extent};
use crate::clock::Coarse;
use crate::kafka::Isolation;
use crate::kafka::messages::Aborted;
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::source::Waker;

/// Decompressed bytes of a wire batch above which it is refused here. The real
/// limit is what a test of its own reaches; here it would only take time.
const MOST_DECOMPRESSED: usize = 4 * 1024 * 1024;

/// A piece is full after a mebibyte and takes no further batch then; its buffer
/// doubles as it grows.
const MOST_HELD: usize = 2 * (MOST_DECOMPRESSED + 1024 * 1024);

/// Where the bytes of a wire batch's length, of its CRC and of what that covers
/// begin.
const LENGTH: usize = 8;
const CRC: usize = 17;
const COVERED: usize = 21;

/// A record set and how it is asked for: a byte of switches, one of the asked
/// offset, one of where to stop, and then the set.
///
/// The claims: reading ends; positions only go up, and no record lies before
/// the position, behind the end that was asked for, or outside its batch; what
/// the index says of a record's parts is there; memory is bounded; and where
/// nothing is wrong, the headers alone led to the same end.
pub(crate) fn record_set(data: &[u8]) {
    let Some(([switches, asked, until], set)) = data.split_first_chunk() else {
        return;
    };
    let mut set = set.to_vec();
    if switches & 1 != 0 {
        fix_crcs(&mut set);
    }
    let isolation = if switches & 2 != 0 {
        Isolation::ReadCommitted
    } else {
        Isolation::ReadUncommitted
    };
    let until = (switches & 4 != 0).then_some(i64::from(*until));
    let asked = i64::from(*asked);
    let aborted = (0..i64::from(switches >> 5))
        .map(|producer_id| Aborted {
            producer_id,
            first_offset: 3 * producer_id,
        })
        .collect();

    let mut batches = 0;
    let expected = extent(&set, asked, |_, first, next| {
        assert!(first >= 0 && first < next, "a batch ends before it begins");
        batches += 1;
    });
    assert!(batches <= set.len() / 61, "more batches than fit");
    assert!(expected.next_offset >= asked);
    let pieces = set.len() + 1;
    let mut reader = RecordSetReader::new(set.into(), asked, until, isolation, aborted);
    let pool = BufferPool::new(MOST_DECOMPRESSED, Waker::new(|| {}));
    let mut decompressor = Decompressor::default();
    decompressor.limit = MOST_DECOMPRESSED;
    let mut position = asked;
    let mut entries = Vec::new();
    // A piece takes a byte of the set at least, or a record of what it became.
    for _ in 0..pieces + MOST_DECOMPRESSED / 7 {
        match reader.next(&mut decompressor, &pool, &mut entries) {
            Ok(Some(piece)) => {
                let batch = Batch {
                    partition: TopicPartition::new("fuzzed", 0),
                    epoch: AssignmentEpoch(1),
                    bytes: piece.bytes,
                    entries: std::mem::take(&mut entries),
                    cursor: 0,
                    next_offset: piece.next_offset,
                    end_offset: -1,
                    log_start: -1,
                    fetched_at: Coarse::ZERO,
                };
                check(&batch, position, until);
                assert!(pool.held() <= MOST_HELD, "{} bytes are held", pool.held());
                position = batch.next_offset;
                entries = batch.entries;
            }
            Ok(None) => {
                assert!(reader.is_at_end(), "there is more after the last piece");
                if until.is_none() {
                    assert_eq!(position, expected.next_offset, "read to another end");
                }
                return;
            }
            Err(_) => {
                assert!(pool.held() <= MOST_HELD, "{} bytes are held", pool.held());
                let again = reader.next(&mut decompressor, &pool, &mut entries);
                assert!(matches!(again, Ok(None)), "an error is the end");
                return;
            }
        }
    }
    panic!("reading does not end");
}

fn check(batch: &Batch, from: i64, until: Option<i64>) {
    assert!(batch.next_offset > from, "the position stands still");
    let mut position = from;
    for (index, entry) in batch.entries.iter().enumerate() {
        let Some(record) = batch.record(index, 1) else {
            panic!("a record is not there");
        };
        assert!(record.offset() >= position && record.offset() < batch.next_offset);
        assert!(until.is_none_or(|until| record.offset() < until));
        position = record.offset() + 1;
        assert_eq!(record.key().is_some(), entry.key_len >= 0);
        assert_eq!(record.value().is_some(), entry.value_len >= 0);
        assert_eq!(record.headers().count(), entry.header_count as usize);
    }
}

/// Makes the CRC of each wire batch fit, so that what was changed gets past it.
pub(super) fn fix_crcs(set: &mut [u8]) {
    let mut rest = set;
    while let Some(length) = rest
        .get(LENGTH..)
        .and_then(|bytes| bytes.first_chunk::<4>())
    {
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            return;
        };
        let Some((batch, tail)) = rest.split_at_mut_checked(length.saturating_add(LENGTH + 4))
        else {
            return;
        };
        let crc = batch.get(COVERED..).map(crc32c::crc32c);
        if let Some(crc) = crc
            && let Some(place) = batch.get_mut(CRC..COVERED)
        {
            place.copy_from_slice(&crc.to_be_bytes());
        }
        rest = tail;
    }
}
