//! Which records beyond the watermark are completed, so that a crash repeats
//! only what was not done.
//!
//! Where records of a partition overtake one another, one that takes long keeps
//! the watermark, and with it the commit, below everything that was done since.
//! Kafka lets a commit carry a text. What is completed beyond the offset is
//! written into it, and whoever has the partition next leaves that out. The idea
//! is Confluent's Parallel Consumer's; the text is our own:
//!
//! ```text
//! keepup/1:<base64 of the numbers and of their CRC-32C>
//!
//! numbers: base offset, then for each run of completed offsets
//!          how far it is from the end of the one before (at first: from the base), how long it is
//! ```
//!
//! Numbers are LEB128, so a run mostly takes two bytes. Offsets that nobody has
//! (compaction, markers) count as completed, which keeps runs long.
//!
//! The text is a help and never a condition: what is too long is cut off at its
//! far end, what is foreign or broken is left aside, and both mean that more is
//! handled again than need be.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::record::Batch;

/// Brokers take no longer text by default (`offset.metadata.max.bytes`).
pub(crate) const MOST_BYTES: usize = 4_096;

/// What each text of ours begins with, whatever its version.
const OURS: &str = "keepup/";

/// The version that is written, and the only one that is read.
const VERSION: &str = "1:";

/// Of the checksum behind the numbers.
const CHECK_BYTES: usize = 4;

/// No text that a broker takes has more runs than that.
pub(crate) const MOST_RUNS: usize = MOST_BYTES / 2;

/// Completed offsets, as runs in ascending order that neither meet nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Completed {
    runs: Vec<Range<i64>>,
}

/// Why a commit's text says nothing to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// Somebody else's, or of a version that is not known here.
    Foreign,
    /// It begins as ours do, and does not go on so.
    Broken,
}

/// A text, and whether all of it is in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) text: String,
    pub(crate) is_cut: bool,
}

impl Completed {
    /// What lies between `open` offsets that are not completed, in ascending
    /// order, up to `end`; from the first of them on.
    pub(crate) fn between(open: impl IntoIterator<Item = i64>, end: i64) -> Self {
        let mut runs = Vec::new();
        let mut next = None;
        for offset in open {
            if let Some(from) = next.filter(|&from| from < offset) {
                runs.push(from..offset);
            }
            next = Some(offset + 1);
        }
        if let Some(from) = next.filter(|&from| from < end) {
            runs.push(from..end);
        }
        Self { runs }
    }

    /// Adds what `earlier` has at or after `from`, where nothing of this is.
    pub(crate) fn extend(&mut self, earlier: &Self, from: i64) {
        for run in &earlier.runs {
            let run = run.start.max(from)..run.end;
            if run.is_empty() {
                continue;
            }
            match self.runs.last_mut() {
                Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
                _ => self.runs.push(run),
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The offset after the last one.
    pub(crate) fn end(&self) -> i64 {
        self.runs.last().map_or(0, |run| run.end)
    }

    pub(crate) fn has(&self, offset: i64) -> bool {
        let after = self.runs.partition_point(|run| run.start <= offset);
        after
            .checked_sub(1)
            .and_then(|last| self.runs.get(last))
            .is_some_and(|run| run.contains(&offset))
    }

    /// Takes completed records out of what was fetched: nobody sees them again,
    /// as if the log did not have them.
    pub(crate) fn leave_out_of(&self, batch: &mut Batch) {
        let cursor = batch.cursor;
        let mut index = 0;
        batch.entries.retain(|entry| {
            let is_left = index < cursor || !self.has(entry.offset);
            index += 1;
            is_left
        });
    }

    /// The text for a commit of `base`: what is completed beyond that, from
    /// there on, and as much of it as fits. `None` where that is nothing.
    pub(crate) fn write(&self, base: i64) -> Option<Written> {
        let mut numbers = Vec::new();
        put(&mut numbers, u64::try_from(base).ok()?);
        let mut before = base;
        let (mut has_any, mut is_cut) = (false, false);
        for run in &self.runs {
            let from = run.start.max(before);
            let (Ok(gap), Ok(len)) = (u64::try_from(from - before), u64::try_from(run.end - from))
            else {
                continue;
            };
            if len == 0 {
                continue;
            }
            let fits = numbers.len();
            put(&mut numbers, gap);
            put(&mut numbers, len);
            if text_len(numbers.len()) > MOST_BYTES {
                numbers.truncate(fits);
                is_cut = true;
                break;
            }
            before = run.end;
            has_any = true;
        }
        if !has_any {
            return None;
        }
        let check = crc32c::crc32c(&numbers);
        numbers.extend_from_slice(&check.to_le_bytes());
        let text = format!("{OURS}{VERSION}{}", STANDARD_NO_PAD.encode(numbers));
        Some(Written { text, is_cut })
    }

    /// Reads a commit's text.
    pub(crate) fn read(text: &str) -> Result<Self, Ignored> {
        let body = text
            .strip_prefix(OURS)
            .and_then(|ours| ours.strip_prefix(VERSION))
            .ok_or(Ignored::Foreign)?;
        read_numbers(body).ok_or(Ignored::Broken)
    }
}

fn read_numbers(body: &str) -> Option<Completed> {
    let bytes = STANDARD_NO_PAD.decode(body).ok()?;
    let (mut numbers, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if crc32c::crc32c(numbers).to_le_bytes() != check {
        return None;
    }
    let mut next = take(&mut numbers)?;
    let mut runs: Vec<Range<i64>> = Vec::new();
    while !numbers.is_empty() {
        let from = next.checked_add(take(&mut numbers)?)?;
        next = from.checked_add(take(&mut numbers)?)?;
        let meets = runs.last().is_some_and(|last| last.end == from);
        if next == from || meets {
            return None;
        }
        runs.push(from..next);
    }
    Some(Completed { runs })
}

/// How long the text of so many bytes of numbers is.
fn text_len(numbers: usize) -> usize {
    OURS.len() + VERSION.len() + ((numbers + CHECK_BYTES) * 4).div_ceil(3)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// A number that an offset can be.
fn take(bytes: &mut &[u8]) -> Option<i64> {
    let mut number: u64 = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return i64::try_from(number).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn completed(runs: &[Range<i64>]) -> Completed {
        Completed {
            runs: runs.to_vec(),
        }
    }

    fn text(completed: &Completed, base: i64) -> String {
        completed.write(base).expect("something").text
    }

    #[test]
    fn what_is_written_is_read() {
        let some = completed(&[12..13, 20..1_000, 5_000_000_000..5_000_000_001]);
        let written = some.write(10).expect("something");
        assert_eq!(Completed::read(&written.text), Ok(some));
        assert!(!written.is_cut);
        assert_eq!(written.text, "keepup/1:CgIBB9QHmNyX0BIBxXxpTQ", "is fixed");
    }

    #[test]
    fn the_open_offsets_say_what_is_completed_from_the_first_of_them_on() {
        assert_eq!(
            Completed::between([10, 11, 15, 20], 30),
            completed(&[12..15, 16..20, 21..30])
        );
        assert!(Completed::between([10], 11).is_empty());
        assert!(
            Completed::between([], 30).is_empty(),
            "the watermark says it"
        );
    }

    #[test]
    fn what_an_earlier_process_did_is_kept_until_it_is_read_again() {
        let mut now = Completed::between([10], 20);
        now.extend(&completed(&[12..14, 18..25, 30..40]), 20);
        assert_eq!(now, completed(&[11..25, 30..40]));
        let mut nothing = Completed::default();
        nothing.extend(&completed(&[12..14, 18..25]), 13);
        assert_eq!(nothing, completed(&[13..14, 18..25]));
    }

    #[test]
    fn only_what_is_beyond_the_commit_is_written() {
        let some = completed(&[12..15, 20..30]);
        let read = Completed::read(&text(&some, 13));
        assert_eq!(read, Ok(completed(&[13..15, 20..30])));
        assert_eq!(some.write(30), None);
        assert_eq!(Completed::default().write(3), None);
    }

    #[test]
    fn s37_what_is_too_large_is_cut_off_at_its_far_end_and_still_read() {
        let runs: Vec<_> = (0..10_000).map(|n| n * 1_000..n * 1_000 + 999).collect();
        let all = completed(&runs);
        let written = all.write(0).expect("something");
        assert!(written.is_cut);
        assert!(
            (MOST_BYTES - 8..=MOST_BYTES).contains(&written.text.len()),
            "{}",
            written.text.len()
        );
        let read = Completed::read(&written.text).expect("ours");
        assert_eq!(read.runs, runs[..read.runs.len()]);
        assert!(read.runs.len() > 900, "{}", read.runs.len());
    }

    #[test]
    fn s37_foreign_texts_are_told_from_broken_ones_and_neither_is_believed() {
        for foreign in [
            "",
            "checkpoint 7",
            "k",
            "keepup",
            "keepup/2:CgIBB9QH",
            "\u{1f980}",
        ] {
            assert_eq!(Completed::read(foreign), Err(Ignored::Foreign), "{foreign}");
        }
        let good = text(&completed(&[12..13, 20..1_000]), 10);
        for end in OURS.len() + VERSION.len()..good.len() {
            assert_eq!(
                Completed::read(&good[..end]),
                Err(Ignored::Broken),
                "the first {end} of {good}"
            );
        }
        for index in OURS.len() + VERSION.len()..good.len() {
            for other in ["A", "/", " ", "\u{e9}"] {
                let mut bad = good.clone();
                bad.replace_range(index..=index, other);
                let read = Completed::read(&bad);
                assert!(
                    bad == good || read == Err(Ignored::Broken),
                    "{bad}: {read:?}"
                );
            }
        }
        // A right checksum does not make wrong numbers right.
        for numbers in [
            &[10, 0, 0][..],
            &[10, 1, 1, 0, 1],
            &[10, 1],
            &[10, 0x80],
            &[0xff; 11],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 1],
            &[],
        ] {
            let mut bytes = numbers.to_vec();
            bytes.extend(crc32c::crc32c(numbers).to_le_bytes());
            let bad = format!("{OURS}{VERSION}{}", STANDARD_NO_PAD.encode(bytes));
            let read = Completed::read(&bad);
            assert_eq!(read, Err(Ignored::Broken), "{numbers:?}");
        }
    }

    proptest! {
        #[test]
        fn any_set_of_offsets_comes_back(
            base in 0_i64..1 << 40,
            steps in prop::collection::vec((1_i64..5_000, 1_i64..5_000), 1..200),
        ) {
            let mut next = base;
            let runs: Vec<_> = steps
                .iter()
                .map(|&(gap, len)| {
                    let from = next + gap;
                    next = from + len;
                    from..next
                })
                .collect();
            let all = Completed { runs };
            let written = all.write(base).expect("something");
            prop_assert!(written.text.len() <= MOST_BYTES);
            let read = Completed::read(&written.text).expect("ours");
            prop_assert!(!written.is_cut);
            prop_assert_eq!(&read, &all);
            for run in &all.runs {
                prop_assert!(!all.has(run.start - 1) && all.has(run.start));
                prop_assert!(all.has(run.end - 1) && !all.has(run.end));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(keepup/1:)?[A-Za-z0-9+/]{0,60}") {
            let _ = Completed::read(&text);
        }
    }
}
