//! The records of one partition between their fetch and their completion.
//!
//! A record is in one of five states, and in which one is all that decides
//! whether somebody may take it:
//!
//! ```text
//!            the one before it in its lane is done
//!  blocked ────────────────────────────────────────► ready ◄───────────┐
//!                                                      │ taken         │ its time
//!                                                      ▼               │ has come
//!                                         done ◄──── in hand ────► waiting
//! ```
//!
//! A *lane* is what keeps its order: all records whose keys fall into the same
//! of [`SLOTS`] slots (records without a key are spread over the slots by their
//! offsets); in no order each record by itself; in partition order, which the
//! pool keeps for asynchronous handlers, all records of the partition. Only the first record of a
//! lane that is not done is ever ready, so no two workers have the same lane,
//! and a record that waits for a retry blocks its own lane and nothing else.
//!
//! States are bits beside the fetched batch, and a lane is a chain of links
//! from record to record, so that nothing is allocated per record. Ready
//! records are taken in the order of the log: lanes with many records do not
//! fall behind, and the watermark stays close to what is in hand.
//!
//! Records are told apart by a running number (`seq`), since offsets have holes.
//! A batch goes back to the source once all of its records are done; the few
//! that wait for a retry while all others are done are copied out of it, so
//! that one record does not hold a megabyte for as long as it waits.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::quality::FixedState;

use crate::record::{Batch, Entry, Record};
use crate::worker::completed::Completed;
use crate::worker::dead_letter::Dead;

/// Lanes of a partition in key order.
pub(crate) const SLOTS: u16 = 4_096;

/// What keeps its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// All records of a partition.
    Partition,
    /// Those of a key.
    Keys,
    /// Each record by itself.
    Records,
}

impl Lanes {
    /// How many lanes a partition has that records share.
    fn shared(self) -> u16 {
        match self {
            Self::Partition => 1,
            Self::Keys => SLOTS,
            Self::Records => 0,
        }
    }

    /// Writes down the lane of each record that is left in a batch.
    pub(crate) fn slots(self, batch: &Batch, into: &mut Vec<u16>) {
        into.clear();
        match self {
            Self::Partition => into.resize(batch.remaining(), 0),
            Self::Keys => {
                let left = batch.cursor..batch.entries.len();
                into.extend(left.filter_map(|index| Some(slot_of(&batch.record(index, 1)?))));
            }
            Self::Records => {}
        }
    }
}

/// Nothing yet: no sequence number gets there.
const NONE: u64 = u64::MAX;

/// Spreads keys over the slots. It is quick and its low bits are good, and it is
/// no secret: whoever chooses keys can have many of them fall into one slot.
/// That is no worse than to send all of them with one key, which nobody can be
/// kept from: these records wait for each other, and no others do. A slot means
/// something within one process only, so that another hash may take its place.
const SLOT_OF_KEY: FixedState = FixedState::with_seed(0);

/// The slot of a record in key order.
pub(crate) fn slot_of(record: &Record<'_>) -> u16 {
    let slots = u64::from(SLOTS);
    let slot = match record.key() {
        Some(key) => {
            let mut hasher = SLOT_OF_KEY.build_hasher();
            hasher.write(key);
            hasher.finish() % slots
        }
        None => record.offset().unsigned_abs() % slots,
    };
    u16::try_from(slot).unwrap_or(0)
}

/// A record in a worker's hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) seq: u64,
    /// Which of the hand's batches it is in, and where there.
    batch: u32,
    index: u32,
    /// Which delivery of it this is, from 1.
    pub(crate) attempt: u32,
    /// It is of the same lane as the task before it.
    follows: bool,
}

/// What is taken of one backlog at a time.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) batches: Vec<Arc<Batch>>,
    pub(crate) tasks: Vec<Task>,
}

/// What is known of a record that failed.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// How often it was handed over.
    pub(crate) attempts: u32,
    /// Where it is not handed over any more.
    pub(crate) dead: Option<Dead>,
    /// A batch of its own, where that of the fetch was given back.
    copy: Option<Arc<Batch>>,
}

impl Failure {
    /// Of a record that was handed over that often.
    pub(crate) fn new(attempts: u32) -> Self {
        Self {
            attempts,
            ..Self::default()
        }
    }
}

impl Task {
    /// Which of the hand's batches it is in.
    #[inline]
    pub(crate) fn batch(&self) -> usize {
        self.batch as usize
    }

    /// Where it is in that batch.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    /// Whether it is of the same lane as the task before it.
    pub(crate) fn follows(&self) -> bool {
        self.follows
    }
}

/// Bits by index.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn all(len: usize) -> Self {
        let mut bits = Self(vec![u64::MAX; len.div_ceil(64)]);
        if let (Some(last), rest @ 1..) = (bits.0.last_mut(), len % 64) {
            *last = (1 << rest) - 1;
        }
        bits
    }

    #[inline]
    fn get(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Returns whether that changed it.
    #[inline]
    fn set(&mut self, index: usize, to: bool) -> bool {
        let Some(word) = self.0.get_mut(index / 64) else {
            return false;
        };
        let before = *word;
        let bit = 1 << (index % 64);
        *word = if to { before | bit } else { before & !bit };
        *word != before
    }

    /// The first index from `from` on that is set.
    fn first_set(&self, from: usize) -> Option<usize> {
        self.first(from, |word| word)
    }

    /// The first index from `from` on that is not.
    fn first_clear(&self, from: usize) -> Option<usize> {
        self.first(from, |word| !word)
    }

    #[inline]
    fn first(&self, from: usize, look: impl Fn(u64) -> u64) -> Option<usize> {
        let mut mask = u64::MAX << (from % 64);
        for (number, &word) in self.0.iter().enumerate().skip(from / 64) {
            let found = look(word) & mask;
            mask = u64::MAX;
            if found != 0 {
                return Some(number * 64 + found.trailing_zeros() as usize);
            }
        }
        None
    }
}

/// One fetched batch and the states of its records.
#[derive(Debug)]
struct Piece {
    first_seq: u64,
    /// None once it was given back.
    batch: Option<Arc<Batch>>,
    /// The batch's index of the first record here.
    first_index: usize,
    len: usize,
    /// Every record before it is done.
    head: usize,
    /// Records that are not done, and those of them that wait.
    left: usize,
    waiting: usize,
    ready_count: usize,
    ready: Bits,
    done: Bits,
    /// Taken together with the one before them in their lane.
    follows: Bits,
    /// How many records further the next one of the same lane is; 0: none yet.
    next_in_lane: Vec<u32>,
    next_offset: i64,
}

impl Piece {
    #[inline]
    fn has(&self, seq: u64) -> bool {
        seq >= self.first_seq && seq - self.first_seq < self.len as u64
    }

    #[inline]
    fn at(&self, seq: u64) -> usize {
        usize::try_from(seq - self.first_seq).unwrap_or(usize::MAX)
    }

    /// The first from the number `from` on that is ready.
    #[inline]
    fn first_ready(&self, from: u64) -> Option<usize> {
        if self.ready_count == 0 {
            return None;
        }
        self.ready.first_set(self.at(from.max(self.first_seq)))
    }

    /// The number of the next of the same lane, if one was read already.
    #[inline]
    fn next_of(&self, index: usize) -> Option<u64> {
        match self.next_in_lane.get(index) {
            None | Some(0) => None,
            Some(&further) => Some(self.first_seq + index as u64 + u64::from(further)),
        }
    }

    #[inline]
    fn make_ready(&mut self, index: usize) -> bool {
        let changed = self.ready.set(index, true);
        self.ready_count += usize::from(changed);
        changed
    }

    fn bytes(&self) -> usize {
        self.batch.as_ref().map_or(0, |batch| size_of_batch(batch))
    }
}

fn size_of_batch(batch: &Batch) -> usize {
    batch.bytes.len() + batch.entries.len() * size_of::<Entry>()
}

/// The records of one partition that are not done, and some that are.
#[derive(Debug)]
pub(crate) struct Backlog {
    pieces: VecDeque<Piece>,
    next_seq: u64,
    /// The last record of each lane, where lanes have more than one.
    tails: Option<Box<[u64]>>,
    failures: BTreeMap<u64, Failure>,
    /// The offset of a record that failed in another process, and its attempts
    /// there; until it is read.
    failed_before: Option<(i64, u32)>,
    /// The piece that was looked for last: the next is nearly always the same.
    last_piece: Cell<usize>,
    /// No record before it is ready.
    look_from: u64,
    /// None at or after it was ever taken.
    taken_below: u64,
    ready: usize,
    in_hand: usize,
    waiting: usize,
    not_done: usize,
    bytes: usize,
    watermark: i64,
    /// What was read up to.
    next_offset: i64,
}

impl Backlog {
    /// An empty one that begins at `offset`.
    pub(crate) fn new(offset: i64, lanes: Lanes) -> Self {
        let shared = usize::from(lanes.shared());
        Self {
            pieces: VecDeque::new(),
            next_seq: 0,
            tails: (shared > 0).then(|| vec![NONE; shared].into_boxed_slice()),
            failures: BTreeMap::new(),
            failed_before: None,
            last_piece: Cell::new(0),
            look_from: 0,
            taken_below: 0,
            ready: 0,
            in_hand: 0,
            waiting: 0,
            not_done: 0,
            bytes: 0,
            watermark: offset,
            next_offset: offset,
        }
    }

    /// Counts the attempts of that record on, which has failed in another process.
    pub(crate) fn failed_before(&mut self, offset: i64, attempts: u32) {
        self.failed_before = Some((offset, attempts));
    }

    /// Adds what was fetched. `slots` has the slot of every record that is left
    /// in the batch; it is not looked at where there is no order. Gives back a
    /// batch without records, of which nothing is kept but how far it goes.
    pub(crate) fn push(&mut self, batch: Batch, slots: &[u16]) -> Option<Batch> {
        let len = batch.remaining();
        if len == 0 {
            self.next_offset = batch.next_offset;
            match self.pieces.back_mut() {
                Some(last) => last.next_offset = batch.next_offset,
                None => self.watermark = batch.next_offset,
            }
            return Some(batch);
        }
        let first_seq = self.next_seq;
        if let Some((offset, attempts)) = self
            .failed_before
            .take_if(|(offset, _)| *offset < batch.next_offset)
        {
            let unread = batch.entries.get(batch.cursor..).unwrap_or_default();
            // Where compaction was faster it is not there.
            if let Ok(index) = unread.binary_search_by_key(&offset, |entry| entry.offset) {
                let failure = Failure::new(attempts);
                self.failures.insert(first_seq + index as u64, failure);
            }
        }
        let has_order = self.tails.is_some();
        let mut piece = Piece {
            first_seq,
            first_index: batch.cursor,
            len,
            head: 0,
            left: len,
            waiting: 0,
            ready_count: if has_order { 0 } else { len },
            ready: if has_order {
                Bits::new(len)
            } else {
                Bits::all(len)
            },
            done: Bits::new(len),
            follows: Bits::new(if has_order { len } else { 0 }),
            next_in_lane: vec![0; if has_order { len } else { 0 }],
            next_offset: batch.next_offset,
            batch: Some(Arc::new(batch)),
        };
        if let Some(tails) = &mut self.tails {
            for (index, &slot) in slots.iter().enumerate().take(len) {
                let seq = first_seq + index as u64;
                let Some(tail) = tails.get_mut(usize::from(slot)) else {
                    continue;
                };
                let before = std::mem::replace(tail, seq);
                let link = u32::try_from(seq.saturating_sub(before)).unwrap_or(u32::MAX);
                if before >= first_seq && before != NONE {
                    let before = piece.at(before);
                    piece.next_in_lane[before] = link;
                } else if !link_to(&mut self.pieces, before, link) {
                    piece.make_ready(index);
                }
            }
        }
        self.next_seq += len as u64;
        self.next_offset = piece.next_offset;
        self.ready += piece.ready_count;
        self.not_done += len;
        self.bytes += piece.bytes();
        self.pieces.push_back(piece);
        None
    }

    /// Takes up to `most` records that are ready and whose numbers are below
    /// `below`, in the order of the log; where there are fewer lanes than that,
    /// several records of each.
    pub(crate) fn take(&mut self, most: usize, below: u64, into: &mut Taken) {
        let heads = self.ready.min(most);
        if heads == 0 {
            return;
        }
        let of_each = most / heads;
        let mut left = heads;
        let mut number = self.piece_of(self.look_from);
        while left > 0
            && let Some(piece) = self.pieces.get(number)
        {
            let Some(index) = piece.first_ready(self.look_from) else {
                number += 1;
                continue;
            };
            if piece.first_seq + index as u64 >= below {
                return;
            }
            left -= 1;
            self.take_lane(number, index, of_each, below, into);
        }
    }

    /// Whether a record may be taken whose number is below `below`.
    pub(crate) fn has_ready(&self, below: u64) -> bool {
        if self.ready == 0 {
            return false;
        }
        let mut pieces = self.pieces.iter().skip(self.piece_of(self.look_from));
        let first = pieces.find_map(|piece| {
            let index = piece.first_ready(self.look_from)?;
            Some(piece.first_seq + index as u64)
        });
        first.is_some_and(|seq| seq < below)
    }

    /// No record at or after that number was ever taken.
    pub(crate) fn taken_below(&self) -> u64 {
        self.taken_below
    }

    /// Takes a ready record, and up to `most` of its lane with those behind it.
    fn take_lane(
        &mut self,
        number: usize,
        index: usize,
        most: usize,
        below: u64,
        into: &mut Taken,
    ) {
        let Some(piece) = self.pieces.get_mut(number) else {
            return;
        };
        let seq = piece.first_seq + index as u64;
        piece.ready.set(index, false);
        piece.ready_count -= 1;
        self.ready -= 1;
        self.look_from = seq + 1;
        let mut next = self.put_in_hand(seq, false, into);
        for _ in 1..most {
            let Some(seq) = next.filter(|&next| next < below) else {
                break;
            };
            next = self.put_in_hand(seq, true, into);
        }
    }

    /// Gives the next of the same lane, if one was read already.
    #[inline]
    fn put_in_hand(&mut self, seq: u64, follows: bool, into: &mut Taken) -> Option<u64> {
        let number = self.piece_of(seq);
        let piece = self.pieces.get_mut(number)?;
        let index = piece.at(seq);
        if follows {
            piece.follows.set(index, true);
        }
        let failure = if self.failures.is_empty() {
            None
        } else {
            self.failures.get(&seq)
        };
        let (batch, place) = match (
            failure.and_then(|failure| failure.copy.as_ref()),
            &piece.batch,
        ) {
            (Some(copy), _) => (copy, 0),
            (None, Some(batch)) => (batch, piece.first_index + index),
            (None, None) => return None,
        };
        let known = into
            .batches
            .iter()
            .rposition(|other| Arc::ptr_eq(other, batch));
        let number = known.unwrap_or_else(|| {
            into.batches.push(Arc::clone(batch));
            into.batches.len() - 1
        });
        into.tasks.push(Task {
            seq,
            batch: u32::try_from(number).unwrap_or(u32::MAX),
            index: u32::try_from(place).unwrap_or(u32::MAX),
            attempt: failure
                .map_or(0, |failure| failure.attempts)
                .saturating_add(1),
            follows,
        });
        self.in_hand += 1;
        self.taken_below = self.taken_below.max(seq + 1);
        piece.next_of(index)
    }

    /// A record that was in hand, or waited, is done. Gives its batch back
    /// where that was the last of it.
    #[inline]
    pub(crate) fn done(&mut self, seq: u64) -> Option<Arc<Batch>> {
        let number = self.piece_of(seq);
        let piece = self.pieces.get_mut(number)?;
        let index = piece.at(seq);
        if !piece.done.set(index, true) {
            return None;
        }
        piece.left -= 1;
        self.not_done -= 1;
        self.in_hand -= 1;
        let is_needed = piece.left > piece.waiting;
        if let Some(next) = piece.next_of(index) {
            // Mostly it is in the same piece.
            if piece.has(next) {
                let next_index = piece.at(next);
                // Where it was taken together with this one, it is in hand.
                if !piece.follows.get(next_index) && piece.make_ready(next_index) {
                    self.ready += 1;
                    self.look_from = self.look_from.min(next);
                }
            } else {
                self.make_next_ready(next);
            }
        }
        if !self.failures.is_empty() {
            self.forget_failure(seq);
        }
        if is_needed {
            return None;
        }
        let given_back = self.give_back(number);
        if number == 0 {
            self.settle_front();
        }
        given_back
    }

    /// A record that was in hand failed, and waits from now on.
    pub(crate) fn wait(&mut self, seq: u64, failure: Failure) -> Option<Arc<Batch>> {
        let number = self.piece_of(seq);
        let copy = self.failures.remove(&seq).and_then(|failure| failure.copy);
        self.failures.insert(seq, Failure { copy, ..failure });
        let piece = self.pieces.get_mut(number)?;
        piece.waiting += 1;
        self.in_hand -= 1;
        self.waiting += 1;
        self.give_back(number)
    }

    /// A record that waited is as one in hand: it is about to be written to the
    /// dead-letter topic, or has been.
    pub(crate) fn waits_no_more(&mut self, seq: u64) {
        let number = self.piece_of(seq);
        if let Some(piece) = self.pieces.get_mut(number) {
            piece.waiting -= 1;
            self.waiting -= 1;
            self.in_hand += 1;
        }
    }

    /// A record that waited may be taken again.
    pub(crate) fn ready_again(&mut self, seq: u64) {
        self.waits_no_more(seq);
        self.in_hand -= 1;
        self.make_ready(seq);
    }

    /// These were in hand and were not started. `after_done`: the task before
    /// the first of them is done.
    pub(crate) fn untake(&mut self, tasks: &[Task], after_done: bool) {
        let mut is_before_done = after_done;
        for task in tasks {
            let number = self.piece_of(task.seq);
            let Some(piece) = self.pieces.get_mut(number) else {
                continue;
            };
            self.in_hand -= 1;
            let index = piece.at(task.seq);
            if task.follows {
                piece.follows.set(index, false);
            }
            if !task.follows || is_before_done {
                self.make_ready(task.seq);
            }
            is_before_done = false;
        }
    }

    /// What is known of a record that failed.
    pub(crate) fn failure_mut(&mut self, seq: u64) -> Option<&mut Failure> {
        self.failures.get_mut(&seq)
    }

    /// The batch of a record that waits, and where it is in there.
    pub(crate) fn find(&self, seq: u64) -> Option<(Arc<Batch>, usize)> {
        if let Some(copy) = self.failures.get(&seq).and_then(|f| f.copy.as_ref()) {
            return Some((Arc::clone(copy), 0));
        }
        let piece = self.pieces.get(self.piece_of(seq))?;
        let batch = Arc::clone(piece.batch.as_ref()?);
        Some((batch, piece.first_index + piece.at(seq)))
    }

    /// Next offset such that every record below it is done, and the timestamp
    /// of the first that is not, if one was read.
    pub(crate) fn front(&mut self) -> (i64, Option<i64>) {
        let Some(piece) = self.pieces.front_mut() else {
            return (self.watermark, None);
        };
        piece.head = piece.done.first_clear(piece.head).unwrap_or(piece.head);
        let seq = piece.first_seq + piece.head as u64;
        let open = self.find(seq);
        let entry = open.as_ref().and_then(|(batch, i)| batch.entries.get(*i));
        match entry {
            // What lies between is not there: compaction, markers.
            Some(entry) => (entry.offset, Some(entry.timestamp)),
            None => (self.watermark, None),
        }
    }

    /// What is completed of what was read, beyond the first record that is not.
    /// At most `most` runs of it.
    pub(crate) fn completed(&self, most: usize) -> Completed {
        let mut open = Vec::new();
        let mut runs = 0;
        let mut end = self.next_offset;
        'pieces: for piece in &self.pieces {
            let waiting = || {
                let last = piece.first_seq + piece.len as u64;
                let failures = self.failures.range(piece.first_seq..last);
                failures.filter_map(|(_, failure)| failure.copy.as_ref()?.entries.first())
            };
            let in_batch = |batch: &'_ Arc<Batch>| {
                let mut from = piece.head;
                let batch = Arc::clone(batch);
                std::iter::from_fn(move || {
                    let index = piece.done.first_clear(from).filter(|&i| i < piece.len)?;
                    from = index + 1;
                    batch
                        .entries
                        .get(piece.first_index + index)
                        .map(|entry| entry.offset)
                })
            };
            let offsets: &mut dyn Iterator<Item = i64> = match &piece.batch {
                Some(batch) => &mut in_batch(batch),
                // What is left of it was copied when it was given back.
                None => &mut waiting().map(|entry| entry.offset),
            };
            for offset in offsets {
                runs += usize::from(open.last().is_some_and(|&last| last + 1 < offset));
                if runs > most {
                    end = offset;
                    break 'pieces;
                }
                open.push(offset);
            }
        }
        Completed::between(open, end)
    }

    /// The offset after everything that was read.
    pub(crate) fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// The offset of a record that is not done, and how many bytes it has.
    pub(crate) fn measure(&self, seq: u64) -> Option<(i64, u64)> {
        let (batch, index) = self.find(seq)?;
        let offset = batch.entries.get(index)?.offset;
        Some((offset, batch.bytes_of(index, index + 1)))
    }

    /// Records that may be taken now.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// Records that are in somebody's hand.
    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// Records that wait for a retry or for their dead letter.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Records that nobody has had yet: ready or blocked.
    pub(crate) fn untaken(&self) -> usize {
        self.not_done - self.in_hand - self.waiting
    }

    /// From the first record that is not done to the last that was read.
    pub(crate) fn span(&self) -> u64 {
        let first = self.pieces.front().map(|piece| piece.first_seq);
        self.next_seq - first.unwrap_or(self.next_seq)
    }

    /// Bytes that are held for records here.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn piece_of(&self, seq: u64) -> usize {
        let last = self.last_piece.get();
        if self.pieces.get(last).is_some_and(|piece| piece.has(seq)) {
            return last;
        }
        self.search_piece_of(seq)
    }

    #[cold]
    #[inline(never)]
    fn search_piece_of(&self, seq: u64) -> usize {
        let found = self
            .pieces
            .partition_point(|piece| piece.first_seq <= seq)
            .saturating_sub(1);
        self.last_piece.set(found);
        found
    }

    fn make_next_ready(&mut self, next: u64) {
        // Where it was taken together with the one that is done, it is in hand.
        let piece = self.pieces.get(self.piece_of(next));
        if piece.is_some_and(|piece| !piece.follows.get(piece.at(next))) {
            self.make_ready(next);
        }
    }

    fn make_ready(&mut self, seq: u64) {
        let number = self.piece_of(seq);
        if let Some(piece) = self.pieces.get_mut(number) {
            let index = piece.at(seq);
            self.ready += usize::from(piece.make_ready(index));
            self.look_from = self.look_from.min(seq);
        }
    }

    fn forget_failure(&mut self, seq: u64) {
        if let Some(Failure {
            copy: Some(copy), ..
        }) = self.failures.remove(&seq)
        {
            self.bytes -= size_of_batch(&copy);
        }
    }

    /// Lets go of a batch whose records are all done or, but for a few that
    /// wait, nearly all.
    fn give_back(&mut self, number: usize) -> Option<Arc<Batch>> {
        let piece = self.pieces.get_mut(number)?;
        if piece.left > piece.waiting {
            return None;
        }
        if piece.waiting > 0 {
            // With more of them, copies would be no smaller than the batch.
            let is_little = piece.waiting <= piece.len / 8;
            let batch = piece.batch.as_ref().filter(|_| is_little)?;
            let last = piece.first_seq + piece.len as u64;
            for (&seq, failure) in self.failures.range_mut(piece.first_seq..last) {
                let index = piece.first_index + piece.at(seq);
                if let (None, Some(copy)) = (&failure.copy, copy_of(batch, index)) {
                    self.bytes += size_of_batch(&copy);
                    failure.copy = Some(Arc::new(copy));
                }
            }
        } else {
            piece.done = Bits::default();
            piece.ready = Bits::default();
            piece.follows = Bits::default();
            piece.next_in_lane = Vec::new();
        }
        self.bytes -= piece.bytes();
        piece.batch.take()
    }

    /// Steps over what is done at the front.
    fn settle_front(&mut self) {
        while let Some(piece) = self.pieces.front().filter(|piece| piece.left == 0) {
            self.watermark = piece.next_offset;
            self.bytes -= piece.bytes();
            self.pieces.pop_front();
            self.last_piece.set(0);
        }
    }
}

/// Links the record `before` to the one of the same lane that is `further`
/// behind it. Says no where it is done, so that the next need not wait.
fn link_to(pieces: &mut VecDeque<Piece>, before: u64, further: u32) -> bool {
    if before == NONE {
        return false;
    }
    let number = pieces.partition_point(|piece| piece.first_seq <= before);
    let Some(piece) = number.checked_sub(1).and_then(|n| pieces.get_mut(n)) else {
        return false;
    };
    let index = piece.at(before);
    if piece.left == 0 || piece.done.get(index) {
        return false;
    }
    let Some(link) = piece.next_in_lane.get_mut(index) else {
        return false;
    };
    *link = further;
    true
}

/// A batch of one record with bytes of its own.
fn copy_of(batch: &Batch, index: usize) -> Option<Batch> {
    let entry = batch.entries.get(index)?;
    let parts = [
        (entry.key_start, entry.key_len),
        (entry.value_start, entry.value_len),
    ];
    let headers = (entry.headers_start as usize, entry.headers_end as usize);
    let mut bytes = Vec::new();
    let mut starts = [0; 2];
    for (start, (from, len)) in starts.iter_mut().zip(parts) {
        *start = u32::try_from(bytes.len()).ok()?;
        let from = from as usize;
        let len = usize::try_from(len).unwrap_or(0);
        bytes.extend_from_slice(batch.bytes.get(from..from.checked_add(len)?)?);
    }
    let headers_start = u32::try_from(bytes.len()).ok()?;
    bytes.extend_from_slice(batch.bytes.get(headers.0..headers.1)?);
    Some(Batch {
        partition: batch.partition.clone(),
        entries: vec![Entry {
            key_start: starts[0],
            value_start: starts[1],
            headers_start,
            headers_end: u32::try_from(bytes.len()).ok()?,
            ..*entry
        }],
        bytes: Bytes::from(bytes),
        cursor: 0,
        ..*batch
    })
}

#[cfg(test)]
mod tests;
