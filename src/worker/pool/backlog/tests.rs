//! What is completed beyond the watermark, and what a completion costs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::clock::{Clock, Coarse};
use crate::record::{AssignmentEpoch, TopicPartition};

/// Records with a key of eight bytes each, drawn from so many.
fn batch(first: i64, len: usize, keys: u64, random: &mut fastrand::Rng) -> Batch {
    let mut bytes = Vec::with_capacity(len * 8);
    let mut entries = Vec::with_capacity(len);
    for offset in (first..).take(len) {
        entries.push(Entry {
            offset,
            key_start: u32::try_from(bytes.len()).expect("small"),
            key_len: 8,
            value_len: -1,
            ..Entry::default()
        });
        bytes.extend_from_slice(&random.u64(..keys).to_le_bytes());
    }
    let next_offset = first + i64::try_from(len).expect("small");
    Batch {
        partition: TopicPartition::new("t", 0),
        epoch: AssignmentEpoch(1),
        bytes: bytes.into(),
        entries,
        cursor: 0,
        next_offset,
        end_offset: next_offset,
        log_start: 0,
        fetched_at: Coarse::ZERO,
    }
}

#[test]
fn what_is_completed_is_what_was_done_beyond_the_first_that_is_not() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for lanes in [Lanes::Keys, Lanes::Records] {
        let mut backlog = Backlog::new(0, lanes);
        let (mut read, mut slots) = (0, Vec::new());
        let (mut done, mut hand) = (BTreeSet::new(), Vec::new());
        for _ in 0..500 {
            if backlog.untaken() < 50 {
                let next = batch(read, random.usize(1..40), 30, &mut random);
                read = next.next_offset;
                lanes.slots(&next, &mut slots);
                let _ = backlog.push(next, &slots);
            }
            let mut taken = Taken::default();
            backlog.take(random.usize(1..6), u64::MAX, &mut taken);
            // Offsets have no holes here, so the number is the offset.
            hand.extend(taken.tasks.iter().map(|task| task.seq));
            let mut stay = Vec::new();
            for seq in std::mem::take(&mut hand) {
                match random.u8(..10) {
                    0..5 => {
                        backlog.done(seq);
                        done.insert(i64::try_from(seq).expect("small"));
                    }
                    5 => drop(backlog.wait(seq, Failure::new(1))),
                    _ => stay.push(seq),
                }
            }
            hand = stay;
            let (watermark, _) = backlog.front();
            let completed = backlog.completed(usize::MAX);
            for offset in watermark..read {
                assert_eq!(completed.has(offset), done.contains(&offset), "{offset}");
            }
            assert!(!completed.has(read));
        }
    }
}

#[test]
fn the_attempts_of_a_record_that_failed_in_another_process_are_counted_on() {
    let mut random = fastrand::Rng::with_seed(1);
    for lanes in [Lanes::Keys, Lanes::Records] {
        let mut backlog = Backlog::new(20, lanes);
        backlog.failed_before(33, 2);
        let (mut slots, mut attempts) = (Vec::new(), BTreeMap::new());
        for first in [20, 30, 40] {
            let next = batch(first, 10, 1_000, &mut random);
            lanes.slots(&next, &mut slots);
            let _ = backlog.push(next, &slots);
        }
        loop {
            let mut taken = Taken::default();
            backlog.take(8, u64::MAX, &mut taken);
            if taken.tasks.is_empty() {
                break;
            }
            for task in taken.tasks {
                let entry = taken.batches[task.batch()].entries[task.index()];
                attempts.insert(entry.offset, task.attempt);
                backlog.done(task.seq);
            }
        }
        let expected = (20..50).map(|offset| (offset, if offset == 33 { 3 } else { 1 }));
        assert_eq!(attempts, expected.collect(), "{lanes:?}");
        assert!(backlog.failures.is_empty());
    }
}

/// How many records there are in the fullest slot.
fn in_the_fullest_slot(keys: impl Iterator<Item = Vec<u8>>) -> usize {
    let mut bytes = Vec::new();
    let entries = keys.map(|key| {
        let entry = Entry {
            key_start: u32::try_from(bytes.len()).expect("small"),
            key_len: i32::try_from(key.len()).expect("small"),
            value_len: -1,
            ..Entry::default()
        };
        bytes.extend_from_slice(&key);
        entry
    });
    let entries = entries.collect();
    let all = Batch {
        entries,
        bytes: bytes.into(),
        ..batch(0, 1, 1, &mut fastrand::Rng::new())
    };
    let mut slots = Vec::new();
    Lanes::Keys.slots(&all, &mut slots);
    let mut counts = vec![0; usize::from(SLOTS)];
    for slot in slots {
        counts[usize::from(slot)] += 1;
    }
    counts.into_iter().max().unwrap_or(0)
}

#[test]
fn keys_that_look_alike_are_spread_over_all_slots() {
    // Eight for each slot; of keys that are thrown at random the fullest slot
    // gets some 22.
    let numbers = || 0..8 * u64::from(SLOTS);
    let most = [
        in_the_fullest_slot(numbers().map(|n| n.to_be_bytes().to_vec())),
        in_the_fullest_slot(numbers().map(|n| n.to_le_bytes().to_vec())),
        in_the_fullest_slot(numbers().map(|n| (n << 12).to_be_bytes().to_vec())),
        in_the_fullest_slot(numbers().map(|n| n.to_string().into_bytes())),
        in_the_fullest_slot(numbers().map(|n| format!("customer-{n:08}").into_bytes())),
        in_the_fullest_slot(numbers().map(|n| format!("{n:036}/orders").into_bytes())),
    ];
    assert!(most.iter().all(|&most| most <= 30), "{most:?}");
}

/// Not a test: how many records a second one core can complete in key order.
///
/// ```text
/// cargo test --release -p keepup --lib -- --ignored --nocapture cost_of_completions
/// ```
#[test]
#[ignore = "measures"]
#[expect(clippy::cast_precision_loss, reason = "figures to look at")]
fn cost_of_completions() {
    const RECORDS: u64 = 20_000_000;
    /// What lies between reading and handling, at most.
    const AHEAD: usize = 16_384;
    let clock = Clock::System;
    let mut random = fastrand::Rng::with_seed(7);
    let mut backlog = Backlog::new(0, Lanes::Keys);
    let (mut read, mut slots, mut taken) = (0, Vec::new(), Taken::default());
    let (mut completing, mut most_bytes) = (Duration::ZERO, 0);
    let began = clock.now();
    let mut completed = 0;
    while completed < RECORDS {
        while backlog.untaken() < AHEAD {
            let next = batch(read, 4_096, 1_000, &mut random);
            read = next.next_offset;
            Lanes::Keys.slots(&next, &mut slots);
            let _ = backlog.push(next, &slots);
        }
        most_bytes = most_bytes.max(backlog.bytes());
        backlog.take(256, u64::MAX, &mut taken);
        let start = clock.now();
        for task in &taken.tasks {
            let _ = backlog.done(task.seq);
        }
        let _ = backlog.front();
        completing += clock.now() - start;
        completed += taken.tasks.len() as u64;
        taken.tasks.clear();
        taken.batches.clear();
    }
    let all = clock.now() - began;
    println!(
        "{completed} completions: {:.0} a second, {:.0} with reading and taking, {} KiB at most",
        completed as f64 / completing.as_secs_f64(),
        completed as f64 / all.as_secs_f64(),
        most_bytes / 1024
    );
}
