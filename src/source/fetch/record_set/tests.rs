use proptest::prelude::*;

use super::*;
use crate::clock::Coarse;
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::source::fetch::compression::MOST_DECOMPRESSED;
use crate::source::fetch::encode::{TestBatch, TestRecord, compress, fix_crc};

const CODECS: [Option<Codec>; 5] = [
    None,
    Some(Codec::Gzip),
    Some(Codec::Snappy),
    Some(Codec::Lz4),
    Some(Codec::Zstd),
];

fn pool_of(keep: usize) -> BufferPool {
    BufferPool::new(keep, crate::source::Waker::new(|| {}))
}

fn set_of(batches: &[TestBatch]) -> Bytes {
    batches
        .iter()
        .flat_map(TestBatch::encode)
        .collect::<Vec<u8>>()
        .into()
}

fn as_batch(piece: Piece, entries: Vec<Entry>) -> Batch {
    Batch {
        partition: TopicPartition::new("orders", 0),
        epoch: AssignmentEpoch(1),
        bytes: piece.bytes,
        entries,
        cursor: 0,
        next_offset: piece.next_offset,
        end_offset: -1,
        log_start: -1,
        fetched_at: Coarse::ZERO,
    }
}

/// All pieces, and how the reading ended.
fn read_all(mut reader: RecordSetReader) -> (Vec<Batch>, Result<(), ReadError>) {
    let pool = pool_of(1 << 24);
    let mut decompressor = Decompressor::default();
    let mut batches = Vec::new();
    loop {
        let was_at_end = reader.is_at_end();
        let mut entries = Vec::new();
        match reader.next(&mut decompressor, &pool, &mut entries) {
            Ok(Some(piece)) => {
                assert!(!was_at_end);
                batches.push(as_batch(piece, entries));
            }
            Ok(None) => {
                assert!(reader.is_at_end());
                return (batches, Ok(()));
            }
            Err(error) => {
                assert!(
                    reader
                        .next(&mut decompressor, &pool, &mut entries)
                        .is_ok_and(|piece| piece.is_none()),
                    "an error is the end"
                );
                return (batches, Err(error));
            }
        }
    }
}

fn uncommitted(set: Bytes, asked: i64, until: Option<i64>) -> RecordSetReader {
    RecordSetReader::new(set, asked, until, Isolation::ReadUncommitted, Vec::new())
}

fn read(set: Bytes, asked: i64) -> (Vec<Batch>, Result<(), ReadError>) {
    read_all(uncommitted(set, asked, None))
}

fn offsets(batches: &[Batch]) -> Vec<i64> {
    batches
        .iter()
        .flat_map(|batch| &batch.entries)
        .map(|entry| entry.offset)
        .collect()
}

fn committed(set: Bytes, asked: i64, aborted: &[(i64, i64)]) -> (Vec<i64>, i64) {
    let aborted = aborted
        .iter()
        .map(|&(producer_id, first_offset)| Aborted {
            producer_id,
            first_offset,
        })
        .collect();
    let reader = RecordSetReader::new(set, asked, None, Isolation::ReadCommitted, aborted);
    let (batches, result) = read_all(reader);
    result.unwrap();
    (
        offsets(&batches),
        batches.last().map_or(asked, |batch| batch.next_offset),
    )
}

#[test]
fn every_part_of_a_record_is_found_in_every_compression() {
    let records = vec![
        TestRecord {
            timestamp_delta: 300,
            key: Some(b"k".to_vec()),
            value: Some(vec![7; 70_000]),
            headers: vec![
                ("trace".into(), Some(b"1".to_vec())),
                ("trace".into(), Some(b"2".to_vec())),
                ("empty".into(), None),
            ],
            ..TestRecord::default()
        },
        TestRecord {
            timestamp_delta: -5,
            key: None,
            value: None,
            ..TestRecord::default()
        },
        TestRecord {
            key: Some(Vec::new()),
            value: Some(Vec::new()),
            ..TestRecord::default()
        },
    ];
    let bare = [(Some(Codec::Snappy), true)];
    for (codec, bare_snappy) in CODECS.map(|codec| (codec, false)).into_iter().chain(bare) {
        let mut batch = TestBatch::new(40, records.clone()).compressed(codec);
        batch.bare_snappy = bare_snappy;
        let (batches, result) = read(set_of(&[batch]), 40);
        assert_eq!(result, Ok(()), "{codec:?}");
        let [batch] = &batches[..] else {
            panic!("{codec:?}: {} batches", batches.len());
        };
        assert_eq!(batch.next_offset, 43);
        let first = batch.record(0, 1).unwrap();
        assert_eq!((first.offset(), first.key()), (40, Some(&b"k"[..])));
        assert_eq!(first.value(), Some(&*vec![7; 70_000]));
        assert_eq!(first.timestamp_ms(), Some(1_700_000_000_300));
        assert_eq!(first.headers().count(), 3);
        assert_eq!(first.header("trace"), Some(&b"2"[..]));
        assert_eq!(first.header("empty"), None);
        let second = batch.record(1, 1).unwrap();
        assert_eq!(
            (second.offset(), second.key(), second.value()),
            (41, None, None)
        );
        assert_eq!(second.timestamp_ms(), Some(1_699_999_999_995));
        let third = batch.record(2, 1).unwrap();
        assert_eq!((third.key(), third.value()), (Some(&[][..]), Some(&[][..])));
        assert_eq!(third.headers().count(), 0);
    }
}

#[test]
fn records_below_the_asked_offset_are_stepped_over() {
    for codec in CODECS {
        let set = set_of(&[
            TestBatch::of(0, 10).compressed(codec),
            TestBatch::of(10, 10).compressed(codec),
        ]);
        let (batches, result) = read(set.clone(), 7);
        assert_eq!(result, Ok(()));
        assert_eq!(offsets(&batches), (7..20).collect::<Vec<_>>());
        let (batches, _) = read(set, 12);
        assert_eq!(offsets(&batches), (12..20).collect::<Vec<_>>());
    }
}

#[test]
fn uncompressed_wire_batches_share_one_piece_and_are_not_copied() {
    let set = set_of(&[TestBatch::of(0, 10), TestBatch::of(10, 10)]);
    let (batches, _) = read(set.clone(), 0);
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].bytes.as_ptr(), set.as_ptr());
}

#[test]
fn small_compressed_wire_batches_share_one_buffer_which_comes_home() {
    let set = set_of(&[
        TestBatch::of(0, 10).compressed(Some(Codec::Lz4)),
        TestBatch::of(10, 10).compressed(Some(Codec::Zstd)),
    ]);
    let pool = pool_of(1 << 24);
    let mut reader = uncommitted(set, 0, None);
    let mut decompressor = Decompressor::default();
    let mut entries = Vec::new();
    let piece = reader
        .next(&mut decompressor, &pool, &mut entries)
        .unwrap()
        .unwrap();
    assert_eq!(entries.len(), 20);
    assert_eq!(piece.next_offset, 20);
    assert!(pool.held() > 0);
    drop(piece);
    assert_eq!(pool.held(), 0);
}

#[test]
fn compressed_and_uncompressed_wire_batches_come_in_pieces_of_their_own() {
    let set = set_of(&[
        TestBatch::of(0, 2),
        TestBatch::of(2, 2).compressed(Some(Codec::Lz4)),
        TestBatch::of(4, 2).compressed(Some(Codec::Gzip)),
        TestBatch::of(6, 2),
    ]);
    let (batches, result) = read(set, 0);
    assert_eq!(result, Ok(()));
    let lengths: Vec<_> = batches.iter().map(|batch| batch.entries.len()).collect();
    assert_eq!(lengths, [2, 4, 2]);
    for batch in &batches {
        for index in 0..batch.entries.len() {
            let record = batch.record(index, 1).unwrap();
            assert_eq!(
                record.value().unwrap(),
                format!("value {}", record.offset()).as_bytes()
            );
        }
    }
}

#[test]
fn a_large_wire_batch_is_cut_into_pieces_that_lose_nothing() {
    for codec in CODECS {
        let set = set_of(&[
            TestBatch::of(0, 10_000).compressed(codec),
            TestBatch::of(10_000, 5).compressed(codec),
        ]);
        let (batches, result) = read(set, 3);
        assert_eq!(result, Ok(()));
        assert_eq!(offsets(&batches), (3..10_005).collect::<Vec<_>>());
        for batch in &batches {
            assert!(batch.entries.len() <= MOST_RECORDS);
            let last = batch.record(batch.entries.len() - 1, 1).unwrap();
            assert_eq!(batch.next_offset, last.offset() + 1);
            assert_eq!(
                last.value().unwrap(),
                format!("value {}", last.offset()).as_bytes()
            );
        }
    }
}

#[test]
fn holes_of_compaction_are_crossed() {
    let mut first = TestBatch::of(0, 4);
    first.records.remove(1);
    first.records.remove(2);
    first.last_offset_delta = 9;
    let mut emptied = TestBatch::of(20, 1);
    emptied.records.clear();
    let (batches, result) = read(set_of(&[first, emptied.clone()]), 0);
    assert_eq!(result, Ok(()));
    assert_eq!(offsets(&batches), [0, 2]);
    assert_eq!(batches.last().unwrap().next_offset, 21);

    let (batches, _) = read(set_of(&[emptied]), 20);
    assert_eq!(batches.len(), 1, "a move without records is told");
    assert_eq!((batches[0].entries.len(), batches[0].next_offset), (0, 21));
}

#[test]
fn a_cut_last_wire_batch_is_left_for_the_next_fetch() {
    let whole = set_of(&[TestBatch::of(0, 3), TestBatch::of(3, 3)]);
    let first = TestBatch::of(0, 3).encode().len();
    for cut in first..whole.len() {
        let set = whole.slice(..cut);
        assert_eq!(
            extent_of(&set, 0),
            Extent {
                next_offset: 3,
                first_is_cut: None
            }
        );
        let (batches, result) = read(set, 0);
        assert_eq!(result, Ok(()));
        assert_eq!(offsets(&batches), [0, 1, 2]);
        assert_eq!(batches.last().unwrap().next_offset, 3);
    }
}

fn extent_of(set: &[u8], asked: i64) -> Extent {
    extent(set, asked, |_, _, _| ())
}

#[test]
fn the_extent_tells_the_leader_epoch_of_each_whole_wire_batch() {
    let mut later = TestBatch::of(3, 2);
    later.leader_epoch = 8;
    let set = set_of(&[TestBatch::of(0, 3), later, TestBatch::of(5, 1)]);
    let mut epochs = Vec::new();
    extent(&set.slice(..set.len() - 1), 1, |epoch, first, next| {
        epochs.push((epoch, first, next));
    });
    assert_eq!(epochs, [(3, 0, 3), (8, 3, 5)]);
}

#[test]
fn a_first_wire_batch_that_is_cut_says_how_long_it_is() {
    let whole = set_of(&[TestBatch::of(0, 300)]);
    let cut = extent_of(&whole.slice(..200), 0);
    assert_eq!(cut.first_is_cut, Some(whole.len()));
    assert_eq!(cut.next_offset, 0);
    assert_eq!(
        extent_of(&whole.slice(..10), 0).first_is_cut,
        Some(HEADER),
        "at least"
    );
    assert_eq!(extent_of(&[], 5).next_offset, 5);
}

#[test]
fn reading_ends_at_the_first_offset_that_is_not_wanted() {
    for codec in CODECS {
        let set = set_of(&[
            TestBatch::of(0, 10).compressed(codec),
            TestBatch::of(10, 10).compressed(codec),
        ]);
        for until in [4, 10, 12, 20, 25] {
            let reader = uncommitted(set.clone(), 2, Some(until));
            let (batches, result) = read_all(reader);
            assert_eq!(result, Ok(()));
            assert_eq!(offsets(&batches), (2..until.min(20)).collect::<Vec<_>>());
            assert_eq!(batches.last().unwrap().next_offset, until.min(20));
        }
    }
}

#[test]
fn an_end_within_a_hole_is_reached_without_a_record() {
    let mut first = TestBatch::of(0, 2);
    first.last_offset_delta = 9;
    let reader = uncommitted(set_of(&[first]), 2, Some(5));
    let (batches, _) = read_all(reader);
    assert_eq!(offsets(&batches), [0; 0]);
    assert!(batches.last().unwrap().next_offset >= 5);
    let beyond = set_of(&[TestBatch::of(8, 2)]);
    let reader = uncommitted(beyond, 2, Some(5));
    let (batches, _) = read_all(reader);
    assert_eq!(offsets(&batches), [0; 0]);
    assert!(batches.last().unwrap().next_offset >= 5);
}

#[test]
fn aborted_transactions_and_markers_are_stepped_over() {
    let set = set_of(&[
        TestBatch::of(0, 2),
        TestBatch::of(2, 2).transactional(7),
        TestBatch::of(4, 2).transactional(8),
        TestBatch::marker(6, 7, false),
        TestBatch::of(7, 1).transactional(7),
        TestBatch::marker(8, 8, true),
        TestBatch::marker(9, 7, true),
        TestBatch::of(10, 1)
            .transactional(8)
            .compressed(Some(Codec::Zstd)),
        TestBatch::marker(11, 8, false),
    ]);
    let aborted = [(8, 10), (7, 2)];
    assert_eq!(
        committed(set.clone(), 0, &aborted),
        (vec![0, 1, 4, 5, 7], 12)
    );
    // A transaction that began below the asked offset is aborted all the same.
    assert_eq!(committed(set.clone(), 3, &aborted), (vec![4, 5, 7], 12));
    // Who reads uncommitted sees all but the markers.
    let (batches, _) = read(set, 0);
    assert_eq!(offsets(&batches), [0, 1, 2, 3, 4, 5, 7, 10]);
    assert_eq!(batches.last().unwrap().next_offset, 12);
}

#[test]
fn records_outside_a_transaction_of_the_same_producer_are_given() {
    let mut idempotent = TestBatch::of(3, 1);
    idempotent.producer_id = 7;
    let set = set_of(&[TestBatch::of(0, 3).transactional(7), idempotent]);
    assert_eq!(committed(set, 0, &[(7, 0)]), (vec![3], 4));
}

#[test]
fn the_brokers_timestamp_holds_for_all_records_of_its_batch() {
    let mut batch = TestBatch::of(0, 2);
    batch.attributes |= 0x08;
    let (batches, _) = read(set_of(&[batch]), 0);
    assert_eq!(
        batches[0].record(1, 1).unwrap().timestamp_ms(),
        Some(1_700_000_009_999)
    );
}

#[test]
fn times_before_1970_are_times_and_sums_that_overflow_wrap_as_in_java() {
    let header = || vec![("name".to_owned(), None)];
    for (base, delta, expected) in [
        (-1, 0, None),
        (0, -1, None),
        (-1_000, 0, Some(-1_000)),
        (-1, -1, Some(-2)),
        (i64::MIN, 0, Some(i64::MIN)),
        (i64::MAX, 1, Some(i64::MIN)),
        (-1, i64::MIN, Some(i64::MAX)),
    ] {
        // The usual way and the general one.
        for headers in [Vec::new(), header()] {
            let record = TestRecord {
                timestamp_delta: delta,
                value: Some(vec![0; 20]),
                headers,
                ..TestRecord::default()
            };
            let mut batch = TestBatch::new(0, vec![record]);
            batch.base_timestamp = base;
            let (batches, result) = read(set_of(&[batch]), 0);
            assert_eq!(result, Ok(()), "{base} {delta}");
            let record = batches[0].record(0, 1).unwrap();
            assert_eq!(record.timestamp_ms(), expected, "{base} {delta}");
        }
    }
}

#[test]
fn what_is_fine_is_given_before_the_flaw_behind_it_is_told() {
    for codec in CODECS {
        let mut broken = TestBatch::of(3, 3).compressed(codec).encode();
        let last = broken.len() - 1;
        broken[last] ^= 1;
        let mut set = TestBatch::of(0, 3).compressed(codec).encode();
        set.extend(&broken);
        let (batches, result) = read(set.into(), 0);
        assert_eq!(offsets(&batches), [0, 1, 2]);
        assert_eq!(
            batches[0].record(2, 1).unwrap().value(),
            Some(&b"value 2"[..]),
            "{codec:?}"
        );
        let Err(ReadError::Corrupt {
            offset: 3, what, ..
        }) = result
        else {
            panic!("{result:?}");
        };
        assert!(what.contains("CRC"), "{what}");
    }
}

fn flaw_of(mut bytes: Vec<u8>) -> ReadError {
    fix_crc(&mut bytes);
    read(bytes.into(), 0).1.unwrap_err()
}

#[test]
fn each_lie_of_a_header_is_named() {
    let good = TestBatch::of(0, 3).encode();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for (changed, expected) in [
        (with(16, &[3]), "message format 3 is unknown"),
        (with(21, &[0, 6]), "compression 6 is unknown"),
        (
            with(23, &(-1_i32).to_be_bytes()),
            "its offsets run from 0 to -1",
        ),
        (
            with(57, &(-1_i32).to_be_bytes()),
            "its count of records is negative",
        ),
        (with(57, &4_i32.to_be_bytes()), "its last record is cut"),
        (with(57, &2_i32.to_be_bytes()), "bytes are left behind"),
        (
            with(23, &1_i32.to_be_bytes()),
            "offset 2 follows 1 in a batch that ends at 1",
        ),
        (with(65, &[1]), "do not add up"),
        (with(61, &[1]), "length is negative"),
    ] {
        let message = flaw_of(changed).to_string();
        assert!(
            message.contains(expected),
            "{message} does not say {expected}"
        );
    }
    let (_, result) = read(with(8, &20_i32.to_be_bytes()).into(), 0);
    assert!(
        result
            .unwrap_err()
            .to_string()
            .contains("below that of a header")
    );
    let (_, result) = read(with(8, &(-20_i32).to_be_bytes()).into(), 0);
    assert!(result.unwrap_err().to_string().contains("negative"));
}

#[test]
fn the_old_message_formats_are_refused_with_a_remedy() {
    for magic in [0, 1] {
        let mut old = vec![0; 40];
        old[11] = 28;
        old[16] = magic;
        let (batches, result) = read(old.into(), 5);
        assert!(batches.is_empty());
        assert_eq!(result, Err(ReadError::OldFormat { offset: 5, magic }));
    }
}

#[test]
fn a_bomb_ends_in_an_error_at_the_limit() {
    let plain = vec![0; 10 << 20];
    for codec in CODECS.into_iter().flatten() {
        let bomb = compress(codec, &plain, false);
        let pool = pool_of(0);
        let mut output = pool.take(0);
        let mut decompressor = Decompressor::default();
        output.spare(3);
        output.advance(3);
        for limit in [0, 1, 70_000, plain.len() - 1] {
            let error = decompressor
                .decompress(codec, &bomb, &mut output, limit)
                .unwrap_err();
            assert!(
                error.to_string().contains("more than"),
                "{codec:?}: {error}"
            );
            assert_eq!(output.len(), 3);
            assert!(
                pool.held() <= 2 * limit + (1 << 18),
                "{codec:?}: {}",
                pool.held()
            );
        }
        decompressor
            .decompress(codec, &bomb, &mut output, plain.len())
            .unwrap();
        assert_eq!(output.len(), 3 + plain.len());
        assert!(output.filled()[3..] == plain);
    }
}

#[test]
fn a_buffer_for_what_decompresses_again_and_again_has_the_size_it_comes_to() {
    let plain = vec![7; 1 << 20];
    for codec in CODECS.into_iter().flatten() {
        let block = compress(codec, &plain, false);
        let pool = pool_of(0);
        let mut decompressor = Decompressor::default();
        let mut held = || {
            let mut output = pool.take(decompressor.likely_output(block.len()));
            decompressor
                .decompress(codec, &block, &mut output, MOST_DECOMPRESSED)
                .unwrap();
            decompressor.remember_output(output.len());
            pool.held()
        };
        held();
        let again = held();
        assert!(again <= plain.len() + (128 << 10), "{codec:?}: {again}");
    }
}

#[test]
fn a_block_that_only_claims_to_be_large_reserves_nothing() {
    // Snappy: a varint of 4 GiB - 1 and nothing behind it.
    let pool = pool_of(0);
    let mut output = pool.take(0);
    let error = Decompressor::default()
        .decompress(
            Codec::Snappy,
            &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0],
            &mut output,
            MOST_DECOMPRESSED,
        )
        .unwrap_err();
    assert!(error.to_string().contains("cannot make"), "{error}");
    assert_eq!(pool.held(), 0);
}

#[test]
fn blocks_of_lz4_that_depend_on_each_other_are_refused_by_name() {
    use std::io::Write;
    let mut encoder = lz4::EncoderBuilder::new()
        .block_mode(lz4::BlockMode::Linked)
        .build(Vec::new())
        .unwrap();
    encoder.write_all(b"some text").unwrap();
    let (frame, _) = encoder.finish();
    let pool = pool_of(0);
    let error = Decompressor::default()
        .decompress(Codec::Lz4, &frame, &mut pool.take(0), 1000)
        .unwrap_err();
    assert!(
        error.to_string().contains("depend on each other"),
        "{error}"
    );
}

/// `bytes` as the records of a wire batch that is being indexed.
fn opened(bytes: &[u8]) -> Open {
    Open {
        at: 0,
        end: bytes.len(),
        records_left: 1,
        base_offset: 7,
        base_timestamp: 1_000,
        append_time: None,
        last_offset: i64::MAX - 1,
        previous: 6,
    }
}

#[test]
fn a_record_without_headers_is_read_the_quick_way_and_one_with_headers_is_not() {
    let record = |headers| TestRecord {
        key: Some(vec![1; 20]),
        value: Some(vec![2; 1_024]),
        headers,
        ..TestRecord::default()
    };
    let quick = TestBatch::new(7, vec![record(Vec::new()); 2]).encode();
    let quick = &quick[HEADER..];
    let end = u32::try_from(quick.len()).unwrap();
    let (entry, rest) = opened(quick).usual_entry(quick, end).unwrap();
    assert_eq!((entry.key_len, entry.value_len), (20, 1_024));
    assert!(
        opened(quick).usual_entry(rest, end).is_some(),
        "the last one"
    );
    let other = TestBatch::new(7, vec![record(vec![("name".to_owned(), None)])]).encode();
    let other = &other[HEADER..];
    let end = u32::try_from(other.len()).unwrap();
    assert!(opened(other).usual_entry(other, end).is_none());
    assert!(opened(other).any_entry(other, end).is_ok());
}

fn any_record() -> impl Strategy<Value = TestRecord> {
    (
        any::<i32>(),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        proptest::collection::vec(
            (
                "[a-z]{0,5}",
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
            ),
            0..3,
        ),
    )
        .prop_map(|(timestamp_delta, key, value, headers)| TestRecord {
            offset_delta: 0,
            timestamp_delta: timestamp_delta.into(),
            key,
            value,
            headers,
        })
}

fn any_batches() -> impl Strategy<Value = Vec<TestBatch>> {
    let batch = (
        proptest::collection::vec(any_record(), 0..20),
        0..CODECS.len(),
        0..4_i32,
        any::<bool>(),
    );
    proptest::collection::vec(batch, 0..6).prop_map(|batches| {
        let mut next = 0;
        batches
            .into_iter()
            .map(|(records, codec, hole, bare_snappy)| {
                let mut batch = TestBatch::new(next, records).compressed(CODECS[codec]);
                batch.bare_snappy = bare_snappy;
                batch.last_offset_delta = (batch.last_offset_delta + hole).max(0);
                next += i64::from(batch.last_offset_delta) + 1;
                batch
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(batches in any_batches(), asked in 0..30_i64) {
        let (read, result) = read(set_of(&batches), asked);
        prop_assert_eq!(result, Ok(()));
        let mut found = Vec::new();
        for batch in &read {
            for index in 0..batch.entries.len() {
                let record = batch.record(index, 1).unwrap();
                found.push((
                    record.offset(),
                    record.timestamp_ms().unwrap(),
                    record.key().map(<[u8]>::to_vec),
                    record.value().map(<[u8]>::to_vec),
                    record.headers().map(|header| (
                        String::from_utf8(header.name.to_vec()).unwrap(),
                        header.value.map(<[u8]>::to_vec),
                    )).collect::<Vec<_>>(),
                ));
            }
        }
        let expected = batches
            .iter()
            .flat_map(|batch| batch.records.iter().map(|record| (
                batch.base_offset + i64::from(record.offset_delta),
                batch.base_timestamp + record.timestamp_delta,
                record.key.clone(),
                record.value.clone(),
                record.headers.clone(),
            )))
            .filter(|record| record.0 >= asked)
            .collect::<Vec<_>>();
        prop_assert_eq!(found, expected);
        let end = batches.last().map_or(0, |batch| {
            batch.base_offset + i64::from(batch.last_offset_delta) + 1
        });
        prop_assert_eq!(read.last().map_or(asked, |batch| batch.next_offset), end.max(asked));
        prop_assert_eq!(extent_of(&set_of(&batches), asked).next_offset, end.max(asked));
    }

    #[test]
    fn bytes_that_were_tampered_with_neither_panic_nor_hang_nor_go_back(
        batches in any_batches(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        fix in any::<bool>(),
        asked in 0..30_i64,
        until in proptest::option::of(0..40_i64),
    ) {
        let mut set = Vec::new();
        let mut starts = Vec::new();
        for batch in &batches {
            starts.push(set.len());
            set.extend(batch.encode());
        }
        if !set.is_empty() {
            for (index, value) in changes {
                let at = index.index(set.len());
                set[at] = value;
            }
        }
        if fix {
            // A CRC that fits leads the changes past the first gate.
            for start in starts {
                if i32::from_be_bytes(set[start + 8..start + 12].try_into().unwrap()) >= 49 {
                    fix_crc(&mut set[start..]);
                }
            }
        }
        if !set.is_empty() && cut.index(3) == 0 {
            set.truncate(cut.index(set.len()));
        }
        let _ = extent_of(&set, asked);
        let aborted = vec![Aborted { producer_id: 0, first_offset: 3 }];
        for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
            let set = set.clone().into();
            let reader = RecordSetReader::new(set, asked, until, isolation, aborted.clone());
            let (read, _) = read_all(reader);
            let mut position = asked;
            for batch in &read {
                prop_assert!(batch.next_offset > position);
                for index in 0..batch.entries.len() {
                    let record = batch.record(index, 1).unwrap();
                    prop_assert!(record.offset() >= position);
                    prop_assert!(record.offset() < batch.next_offset);
                    prop_assert!(until.is_none_or(|until| record.offset() < until));
                    position = record.offset() + 1;
                    let entry = batch.entries[index];
                    prop_assert_eq!(record.headers().count(), entry.header_count as usize);
                    prop_assert_eq!(record.key().is_some(), entry.key_len >= 0);
                    prop_assert_eq!(record.value().is_some(), entry.value_len >= 0);
                }
                position = batch.next_offset;
            }
        }
    }

    #[test]
    fn the_quick_way_to_a_record_says_what_the_general_one_says(
        records in proptest::collection::vec(any_record(), 1..8),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = TestBatch::new(7, records).encode().split_off(HEADER);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let open = opened(&bytes);
        let end = u32::try_from(bytes.len()).unwrap();
        let mut rest = &bytes[..];
        while let Ok((entry, tail)) = open.any_entry(rest, end) {
            if let Some((quick, behind)) = open.usual_entry(rest, end) {
                prop_assert_eq!(format!("{quick:?}"), format!("{entry:?}"));
                prop_assert_eq!(behind.len(), tail.len());
            }
            rest = tail;
        }
        prop_assert!(open.usual_entry(rest, end).is_none());
    }

    #[test]
    fn noise_in_place_of_a_compressed_block_is_refused(
        codec in 0..4_usize,
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        keep in 0..32_usize,
    ) {
        let codec = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd][codec];
        let mut block = compress(codec, b"the beginning of a real block", false);
        block.truncate(keep);
        block.extend(noise);
        let pool = pool_of(0);
        let mut output = pool.take(0);
        let _ = Decompressor::default().decompress(codec, &block, &mut output, 1 << 20);
        prop_assert!(pool.held() <= 4 << 20);
    }
}
