//! Reading the record set of one partition in place.
//!
//! A fetch answer holds, per partition, the bytes of the log as they lie on
//! the broker's disk: wire batches (message format 2), each with a header, a
//! CRC and its records, compressed or not. The first may begin below the
//! offset that was asked for, the last may be cut, some are transaction
//! markers, some were aborted, and compaction leaves holes between and within
//! them. [`RecordSetReader`] turns them into [`Piece`]s: an index of records
//! over bytes that were not copied (or over what was decompressed), and the
//! offset after everything that the piece covers, holes included.
//!
//! The bytes come from the network. Nothing in them is believed before it is
//! checked, nothing is reserved by a length that they state, and whatever is
//! wrong with them ends in a [`ReadError`] that names the offset.

use bytes::Bytes;

use super::buffers::{Buffer, BufferPool};
use super::compression::{Codec, Decompressor};
use crate::kafka::Isolation;
use crate::kafka::messages::Aborted;
use crate::record::{Entry, take_varint};
use crate::source::ReadError;

/// Bytes of a wire batch's header, and of its part that tells how long the
/// batch is and which format it has.
const HEADER: usize = 61;
const LENGTH_AND_MAGIC: usize = 17;
/// What the stated length of a wire batch does not count: offset and length.
const UNCOUNTED: usize = 12;
/// The CRC covers everything from here on.
const CRC_FROM: usize = 21;

/// Records of a piece: their index (48 bytes each) stays within the second
/// level cache, and what is paid per piece is paid seldom.
pub(super) const MOST_RECORDS: usize = 4096;

/// Decompressed bytes after which a piece takes no further wire batch, so that
/// its buffer goes home soon; a single wire batch may be larger.
const ENOUGH_DECOMPRESSED: usize = 1024 * 1024;

/// What is wrong with a wire batch that ends within a record.
const CUT: &str = "its last record is cut";

/// Some records of a record set.
#[derive(Debug)]
pub(super) struct Piece {
    /// What the entries point into.
    pub(super) bytes: Bytes,
    /// The offset after everything that was read so far, holes included.
    pub(super) next_offset: i64,
}

/// What the headers of a record set say, without a look at its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The offset after the last complete wire batch; what was asked for where
    /// there is none.
    pub(super) next_offset: i64,
    /// The whole length of the first wire batch where it is cut. Brokers give
    /// the first one whole (KIP-74), so this takes a broken one.
    pub(super) first_is_cut: Option<usize>,
}

/// Walks the headers of a record set that was fetched from offset `asked`, and
/// tells `batch` of each complete wire batch: leader epoch, first offset, offset
/// after the last.
///
/// This is how the next request can be sent before the answer in hand has been
/// read. CRCs are not checked: where the bytes turn out wrong, the answer to
/// that request is dropped because it no longer is what is wanted.
pub(super) fn extent(set: &[u8], asked: i64, mut batch: impl FnMut(i32, i64, i64)) -> Extent {
    let mut extent = Extent {
        next_offset: asked,
        first_is_cut: None,
    };
    let mut rest = set;
    while let Ok(Some(next)) = WireBatch::peek(rest) {
        extent.next_offset = extent.next_offset.max(next.next_offset());
        batch(next.leader_epoch, next.base_offset, next.next_offset());
        rest = rest.get(next.len..).unwrap_or_default();
    }
    if rest.len() == set.len() && !set.is_empty() && matches!(WireBatch::peek(set), Ok(None)) {
        extent.first_is_cut = Some(stated_length(set).unwrap_or(HEADER));
    }
    extent
}

fn stated_length(bytes: &[u8]) -> Option<usize> {
    usize::try_from(i32_at(bytes, 8)?)
        .ok()
        .map(|len| len + UNCOUNTED)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes
        .get(at..)?
        .first_chunk::<4>()
        .map(|bytes| i32::from_be_bytes(*bytes))
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    bytes
        .get(at..)?
        .first_chunk::<8>()
        .map(|bytes| i64::from_be_bytes(*bytes))
}

/// What is wrong with a wire batch.
#[derive(Debug)]
enum Flaw {
    Corrupt(String),
    OldFormat(u8),
}

impl From<&str> for Flaw {
    fn from(what: &str) -> Self {
        Self::Corrupt(what.to_owned())
    }
}

impl Flaw {
    fn at(self, offset: i64) -> ReadError {
        match self {
            // Whose they are is known to whoever has asked for them.
            Self::Corrupt(what) => ReadError::Corrupt {
                offset,
                broker: None,
                what,
            },
            Self::OldFormat(magic) => ReadError::OldFormat { offset, magic },
        }
    }
}

/// The header of a wire batch that is there as a whole.
#[derive(Clone, Copy, Debug)]
struct WireBatch {
    /// Header included.
    len: usize,
    base_offset: i64,
    leader_epoch: i32,
    crc: u32,
    attributes: u16,
    last_offset: i64,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    count: u32,
}

impl WireBatch {
    /// The wire batch at the front of `bytes`; none where it is cut.
    fn peek(bytes: &[u8]) -> Result<Option<Self>, Flaw> {
        let Some(&magic) = bytes.get(LENGTH_AND_MAGIC - 1) else {
            return Ok(None);
        };
        if magic < 2 {
            return Err(Flaw::OldFormat(magic));
        }
        if magic > 2 {
            return Err(Flaw::Corrupt(format!("message format {magic} is unknown")));
        }
        let len = stated_length(bytes).ok_or("its length is negative")?;
        if len < HEADER {
            return Err(Flaw::Corrupt(format!(
                "its length of {len} bytes is below that of a header"
            )));
        }
        if bytes.len() < len {
            return Ok(None);
        }
        Self::parse(bytes, len)
            .ok_or_else(|| "its header is cut".into())
            .and_then(Self::checked)
            .map(Some)
    }

    fn parse(bytes: &[u8], len: usize) -> Option<Self> {
        let base_offset = i64_at(bytes, 0)?;
        let last_delta = i32_at(bytes, 23)?;
        Some(Self {
            len,
            base_offset,
            leader_epoch: i32_at(bytes, 12)?,
            crc: i32_at(bytes, 17)?.cast_unsigned(),
            attributes: u16::from_be_bytes(*bytes.get(21..)?.first_chunk()?),
            // Checked right after.
            last_offset: base_offset.wrapping_add(i64::from(last_delta)),
            base_timestamp: i64_at(bytes, 27)?,
            max_timestamp: i64_at(bytes, 35)?,
            producer_id: i64_at(bytes, 43)?,
            count: i32_at(bytes, 57)?.cast_unsigned(),
        })
    }

    fn checked(self) -> Result<Self, Flaw> {
        // The largest offset has no next one.
        let in_order = self.base_offset >= 0
            && self.last_offset >= self.base_offset
            && self.last_offset < i64::MAX;
        if !in_order {
            return Err(Flaw::Corrupt(format!(
                "its offsets run from {} to {}",
                self.base_offset, self.last_offset
            )));
        }
        if i32::try_from(self.count).is_err() {
            return Err("its count of records is negative".into());
        }
        Ok(self)
    }

    fn check_crc(&self, bytes: &[u8]) -> Result<(), Flaw> {
        let covered = bytes.get(CRC_FROM..self.len).unwrap_or_default();
        let found = crc32c::crc32c(covered);
        if found == self.crc {
            Ok(())
        } else {
            Err(Flaw::Corrupt(format!(
                "its CRC is {found:#010x}, its header says {:#010x}",
                self.crc
            )))
        }
    }

    fn next_offset(&self) -> i64 {
        self.last_offset + 1
    }

    fn codec(&self) -> Result<Option<Codec>, Flaw> {
        match self.attributes & 7 {
            0 => Ok(None),
            1 => Ok(Some(Codec::Gzip)),
            2 => Ok(Some(Codec::Snappy)),
            3 => Ok(Some(Codec::Lz4)),
            4 => Ok(Some(Codec::Zstd)),
            unknown => Err(Flaw::Corrupt(format!("compression {unknown} is unknown"))),
        }
    }

    /// Where the broker stamped the batch, that is the time of all its records.
    fn append_time(&self) -> Option<i64> {
        (self.attributes & 0x08 != 0).then_some(self.max_timestamp)
    }

    fn is_transactional(&self) -> bool {
        self.attributes & 0x10 != 0
    }

    fn is_control(&self) -> bool {
        self.attributes & 0x20 != 0
    }
}

/// Which producers' records are to be left out at this point of the log.
#[derive(Debug)]
struct Transactions {
    /// Sorted by offset, the next one last.
    to_come: Vec<Aborted>,
    /// Few at a time: one per transactional producer that writes to the
    /// partition concurrently.
    aborted: Vec<i64>,
}

impl Transactions {
    fn new(mut aborted: Vec<Aborted>) -> Self {
        aborted.sort_unstable_by_key(|transaction| std::cmp::Reverse(transaction.first_offset));
        Self {
            to_come: aborted,
            aborted: Vec::new(),
        }
    }

    /// Whether the records of `batch` belong to an aborted transaction. Kept as
    /// Java's client keeps it: a producer joins the set when its transaction's
    /// first offset is reached, and leaves it at the abort marker.
    fn excludes(&mut self, batch: &WireBatch, body: &[u8]) -> bool {
        if batch.producer_id < 0 {
            return false;
        }
        while let Some(next) = self.to_come.last().copied() {
            if next.first_offset > batch.last_offset {
                break;
            }
            self.to_come.pop();
            if !self.aborted.contains(&next.producer_id) {
                self.aborted.push(next.producer_id);
            }
        }
        if batch.is_control() {
            if is_abort_marker(body) {
                self.aborted.retain(|&id| id != batch.producer_id);
            }
            return true;
        }
        batch.is_transactional() && self.aborted.contains(&batch.producer_id)
    }
}

/// Whether the first record of a control batch says "abort": its key is a
/// version and a type, and 0 is the type of an abort.
fn is_abort_marker(mut body: &[u8]) -> bool {
    let marker = |body: &mut &[u8]| {
        take_varint(body)?; // length
        *body = body.get(1..)?; // attributes
        take_varint(body)?; // timestamp
        take_varint(body)?; // offset
        let key_len = take_varint(body)?;
        (key_len >= 4).then_some(())?;
        body.get(2..4)?.first_chunk::<2>().copied()
    };
    marker(&mut body) == Some([0, 0])
}

/// Reads a record set piece by piece.
#[derive(Debug)]
pub(super) struct RecordSetReader {
    set: Bytes,
    /// Where the next wire batch begins.
    at: usize,
    next_offset: i64,
    /// First offset that is not wanted; `i64::MAX` where all are.
    until: i64,
    transactions: Option<Transactions>,
    /// A wire batch whose records did not all fit into the piece before, and
    /// what they lie in where that is not the set.
    open: Option<Open>,
    decompressed: Option<Bytes>,
    /// Found behind records that are fine, and told after those were given.
    flaw: Option<ReadError>,
}

/// What the entries of a piece point into: one thing throughout a piece.
enum Place {
    Undecided,
    Set,
    Buffer(Buffer),
    /// What an earlier piece was decompressed into.
    Frozen(Bytes),
}

impl RecordSetReader {
    /// Reads `set`, which was fetched from offset `asked`, up to `until`.
    ///
    /// `aborted` are the transactions that the answer lists as aborted. The
    /// broker gives nothing above the last stable offset, so that knowing them
    /// suffices to give committed records only.
    pub(super) fn new(
        set: Bytes,
        asked: i64,
        until: Option<i64>,
        isolation: Isolation,
        aborted: Vec<Aborted>,
    ) -> Self {
        Self {
            set,
            at: 0,
            next_offset: asked,
            until: until.unwrap_or(i64::MAX),
            transactions: match isolation {
                Isolation::ReadUncommitted => None,
                Isolation::ReadCommitted => Some(Transactions::new(aborted)),
            },
            open: None,
            decompressed: None,
            flaw: None,
        }
    }

    /// Whether nothing is left to read, complete or wanted.
    pub(super) fn is_at_end(&self) -> bool {
        let rest = self.set.get(self.at..).unwrap_or_default();
        self.open.is_none() && self.flaw.is_none() && matches!(WireBatch::peek(rest), Ok(None))
    }

    /// The next piece, its index written into `entries` (which are emptied
    /// first); none at the end of what is complete or wanted.
    ///
    /// A piece without records only moves the next offset. The last one before
    /// `until` has a next offset of `until` or more.
    ///
    /// # Errors
    ///
    /// Where the next wire batch cannot be read. The reader is at its end then.
    pub(super) fn next(
        &mut self,
        decompressor: &mut Decompressor,
        pool: &BufferPool,
        entries: &mut Vec<Entry>,
    ) -> Result<Option<Piece>, ReadError> {
        entries.clear();
        if let Some(error) = self.flaw.take() {
            return Err(error);
        }
        let before = self.next_offset;
        let mut place = match (&self.open, self.decompressed.take()) {
            (None, _) => Place::Undecided,
            (Some(_), None) => Place::Set,
            (Some(_), Some(bytes)) => Place::Frozen(bytes),
        };
        let filled = self.fill(&mut place, decompressor, pool, entries);
        if let Some(last) = entries.last() {
            // A flaw within a batch leaves the records before it.
            self.next_offset = self.next_offset.max(last.offset + 1);
        }
        let is_news = self.next_offset != before;
        let bytes = match place {
            Place::Undecided => Bytes::new(),
            Place::Set => self.set.clone(),
            Place::Buffer(buffer) => {
                decompressor.remember_output(buffer.len());
                self.keep_for_open(buffer.freeze())
            }
            Place::Frozen(bytes) => self.keep_for_open(bytes),
        };
        if let Err(flaw) = filled {
            let error = flaw.at(self.next_offset);
            self.finish();
            if !is_news {
                return Err(error);
            }
            self.flaw = Some(error);
        }
        if !is_news {
            return Ok(None);
        }
        Ok(Some(Piece {
            bytes,
            next_offset: self.next_offset,
        }))
    }

    fn keep_for_open(&mut self, bytes: Bytes) -> Bytes {
        if self.open.is_some() {
            self.decompressed = Some(bytes.clone());
        }
        bytes
    }

    /// Nothing is read from here on. Pieces that were given keep the set alive
    /// as long as they need it.
    fn finish(&mut self) {
        self.open = None;
        self.decompressed = None;
        self.set = Bytes::new();
        self.at = 0;
    }

    fn fill(
        &mut self,
        place: &mut Place,
        decompressor: &mut Decompressor,
        pool: &BufferPool,
        entries: &mut Vec<Entry>,
    ) -> Result<(), Flaw> {
        loop {
            if let Some(open) = &mut self.open {
                let bytes = match place {
                    Place::Undecided | Place::Set => &self.set,
                    Place::Buffer(buffer) => buffer.filled(),
                    Place::Frozen(bytes) => bytes,
                };
                let end = open.index(bytes, self.next_offset, self.until, entries)?;
                match end {
                    IndexEnd::Full { next_offset } => {
                        self.next_offset = next_offset;
                        return Ok(());
                    }
                    IndexEnd::Until => self.next_offset = self.until,
                    IndexEnd::Done => {
                        self.next_offset = self.next_offset.max(open.last_offset + 1);
                    }
                }
                self.open = None;
            }
            if self.next_offset >= self.until {
                // Not `finish`: the piece may point into the set.
                self.at = self.set.len();
                return Ok(());
            }
            if !self.open_next(place, decompressor, pool, entries.len())? {
                return Ok(());
            }
        }
    }

    /// Opens the next wire batch that has records to give; false where there is
    /// none, or where it belongs into the next piece.
    fn open_next(
        &mut self,
        place: &mut Place,
        decompressor: &mut Decompressor,
        pool: &BufferPool,
        indexed: usize,
    ) -> Result<bool, Flaw> {
        while self.next_offset < self.until {
            let rest = self.set.get(self.at..).unwrap_or_default();
            let Some(batch) = WireBatch::peek(rest)? else {
                return Ok(false);
            };
            if batch.last_offset < self.next_offset {
                self.at += batch.len;
                continue;
            }
            let codec = batch.codec()?;
            let body = rest.get(HEADER..batch.len).unwrap_or_default();
            if !batch.is_control() {
                let full = indexed > 0 && indexed + batch.count as usize > MOST_RECORDS;
                let elsewhere = match place {
                    Place::Undecided => false,
                    Place::Set => codec.is_some(),
                    Place::Buffer(buffer) => codec.is_none() || buffer.len() >= ENOUGH_DECOMPRESSED,
                    Place::Frozen(_) => true,
                };
                if full || elsewhere {
                    return Ok(false);
                }
            }
            batch.check_crc(rest)?;
            let excluded = self
                .transactions
                .as_mut()
                .is_some_and(|transactions| transactions.excludes(&batch, body));
            if excluded || batch.is_control() {
                self.at += batch.len;
                self.next_offset = batch.next_offset();
                continue;
            }
            let (at, end) = match codec {
                None => {
                    *place = Place::Set;
                    (self.at + HEADER, self.at + batch.len)
                }
                Some(codec) => {
                    if matches!(place, Place::Undecided) {
                        let likely = decompressor.likely_output(rest.len());
                        *place = Place::Buffer(pool.take(likely));
                    }
                    let Place::Buffer(buffer) = place else {
                        return Ok(false);
                    };
                    let at = buffer.len();
                    let limit = decompressor.limit;
                    decompressor
                        .decompress(codec, body, buffer, limit)
                        .map_err(|error| Flaw::Corrupt(error.to_string()))?;
                    (at, buffer.len())
                }
            };
            self.at += batch.len;
            self.open = Some(Open {
                at,
                end,
                records_left: batch.count,
                base_offset: batch.base_offset,
                base_timestamp: batch.base_timestamp,
                append_time: batch.append_time(),
                last_offset: batch.last_offset,
                previous: batch.base_offset - 1,
            });
            return Ok(true);
        }
        Ok(false)
    }
}

/// A wire batch that is being indexed.
#[derive(Debug)]
struct Open {
    /// The next record, and the end of the last, in whatever they lie.
    at: usize,
    end: usize,
    records_left: u32,
    base_offset: i64,
    /// What records' times are counted from. They are whatever the producer
    /// claims, and the sum wraps, as in Java: nobody is kept from reading a
    /// record by its time.
    base_timestamp: i64,
    append_time: Option<i64>,
    last_offset: i64,
    /// Offset of the record before; offsets only go up.
    previous: i64,
}

/// Why the index goes no further.
enum IndexEnd {
    /// The batch is at its end.
    Done,
    /// The piece has as many records as it may.
    Full { next_offset: i64 },
    /// A record that is not wanted any more.
    Until,
}

impl Open {
    /// Indexes records from offset `from` on, as many as still fit.
    fn index(
        &mut self,
        bytes: &[u8],
        from: i64,
        until: i64,
        entries: &mut Vec<Entry>,
    ) -> Result<IndexEnd, Flaw> {
        let end = u32::try_from(self.end).map_err(|_| "it lies beyond 4 GiB")?;
        let mut rest = bytes.get(self.at..self.end).ok_or(CUT)?;
        let mut left = self.records_left as usize;
        let mut previous = self.previous;
        entries.reserve(left.min(MOST_RECORDS - entries.len()));
        while left > 0 {
            if entries.len() >= MOST_RECORDS {
                self.at = self.end - rest.len();
                self.previous = previous;
                self.records_left = u32::try_from(left).unwrap_or(u32::MAX);
                return Ok(IndexEnd::Full {
                    next_offset: from.max(previous + 1),
                });
            }
            let (entry, tail) = match self.usual_entry(rest, end) {
                Some(usual) => usual,
                None => self.any_entry(rest, end)?,
            };
            rest = tail;
            if entry.offset <= previous || entry.offset > self.last_offset {
                return Err(Flaw::Corrupt(format!(
                    "offset {} follows {} in a batch that ends at {}",
                    entry.offset, previous, self.last_offset
                )));
            }
            previous = entry.offset;
            left -= 1;
            if entry.offset >= until {
                return Ok(IndexEnd::Until);
            }
            if entry.offset >= from {
                entries.push(entry);
            }
        }
        if rest.is_empty() {
            Ok(IndexEnd::Done)
        } else {
            Err("bytes are left behind its last record".into())
        }
    }

    /// The record at the front of `rest`, and what is behind it.
    #[inline(never)]
    fn any_entry<'a>(&self, mut rest: &'a [u8], end: u32) -> Result<(Entry, &'a [u8]), Flaw> {
        let len = take_varint(&mut rest).ok_or(CUT)?;
        let len = usize::try_from(len).map_err(|_| "a record's length is negative")?;
        let (body, tail) = rest.split_at_checked(len).ok_or(CUT)?;
        let positions = Positions {
            end,
            tail: tail.len(),
        };
        let entry = self
            .entry(body, positions)
            .ok_or("the parts of a record do not add up to its length")?;
        Ok((entry, tail))
    }

    /// As [`Open::any_entry`] for what nearly all records are: without headers,
    /// every length and delta one byte or two. None where it is another, or
    /// anything about it is wrong.
    ///
    /// The parts before the key lie within one window, so that one comparison
    /// of lengths serves for all of them: a third of what the general way
    /// costs. The windows may reach beyond the record, and what is read there
    /// counts for nothing, because in the end its parts must add up to exactly
    /// its length.
    #[inline]
    fn usual_entry<'a>(&self, rest: &'a [u8], end: u32) -> Option<(Entry, &'a [u8])> {
        let window = rest.first_chunk::<16>()?;
        let (len, at) = short_varint(window, 0)?;
        let whole = at + usize::try_from(len).ok()?;
        // Attributes are a byte in which nothing is defined.
        let (timestamp_delta, at) = short_varint(window, at + 1)?;
        let (offset_delta, at) = short_varint(window, at)?;
        let (key_len, key_at) = short_varint(window, at)?;
        let key_end = key_at + usize::try_from(key_len).unwrap_or(0);
        let window = rest.get(key_end..)?.first_chunk::<2>()?;
        let (value_len, taken) = short_varint(window, 0)?;
        let value_at = key_end + taken;
        let value_end = value_at + usize::try_from(value_len).unwrap_or(0);
        // One byte follows: a count of no headers.
        if value_end + 1 != whole || *rest.get(value_end)? != 0 {
            return None;
        }
        let start = end - u32::try_from(rest.len()).ok()?;
        let position = |at: usize| u32::try_from(at).ok().map(|at| start + at);
        let headers = position(whole)?;
        let entry = Entry {
            offset: self.base_offset.checked_add(offset_delta.into())?,
            timestamp: match self.append_time {
                Some(timestamp) => timestamp,
                None => self.base_timestamp.wrapping_add(timestamp_delta.into()),
            },
            key_start: position(key_at)?,
            key_len: key_len.max(-1),
            value_start: position(value_at)?,
            value_len: value_len.max(-1),
            headers_start: headers,
            headers_end: headers,
            header_count: 0,
        };
        Some((entry, rest.get(whole..)?))
    }

    /// The record whose parts, behind its length, are `body`.
    #[inline]
    fn entry(&self, body: &[u8], positions: Positions) -> Option<Entry> {
        let mut rest = body.get(1..)?; // attributes: none are defined
        let timestamp_delta = take_varint(&mut rest)?;
        let offset_delta = take_varint(&mut rest)?;
        let key_len = take_varint(&mut rest)?;
        let key_start = positions.of(rest);
        let key_len = skip(&mut rest, key_len)?;
        let value_len = take_varint(&mut rest)?;
        let value_start = positions.of(rest);
        let value_len = skip(&mut rest, value_len)?;
        let header_count = take_varint(&mut rest)?;
        let headers_start = positions.of(rest);
        let header_count = u32::try_from(header_count).ok()?;
        if header_count > 0 {
            skip_headers(&mut rest, header_count)?;
        }
        if !rest.is_empty() {
            return None;
        }
        Some(Entry {
            offset: self.base_offset.checked_add(offset_delta)?,
            timestamp: match self.append_time {
                Some(timestamp) => timestamp,
                None => self.base_timestamp.wrapping_add(timestamp_delta),
            },
            key_start,
            key_len,
            value_start,
            value_len,
            headers_start,
            headers_end: positions.of(rest),
            header_count,
        })
    }
}

/// A varint of one byte or two at `at` in a window, and where it ends; none
/// where it is longer or reaches beyond the window.
#[inline]
fn short_varint<const N: usize>(window: &[u8; N], at: usize) -> Option<(i32, usize)> {
    let first = i32::from(*window.get(at)?);
    let (value, end) = if first < 0x80 {
        (first, at + 1)
    } else {
        let second = i32::from(*window.get(at + 1)?);
        if second >= 0x80 {
            return None;
        }
        (first & 0x7f | second << 7, at + 2)
    };
    Some(((value >> 1) ^ -(value & 1), end))
}

/// Where in the bytes the rest of a record begins, told by how much is left.
#[derive(Clone, Copy)]
struct Positions {
    /// Where the open batch ends.
    end: u32,
    /// Bytes between the record's end and that.
    tail: usize,
}

impl Positions {
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is left of a batch is no longer than its end, which is 32 bits"
    )]
    fn of(self, rest: &[u8]) -> u32 {
        self.end - (self.tail + rest.len()) as u32
    }
}

/// Steps over a part of `len` bytes; a negative length stands for none.
#[inline]
fn skip(rest: &mut &[u8], len: i64) -> Option<i32> {
    if len < 0 {
        return Some(-1);
    }
    *rest = rest.get(usize::try_from(len).ok()?..)?;
    i32::try_from(len).ok()
}

/// Steps over headers, so that whoever reads them later finds them all.
fn skip_headers(rest: &mut &[u8], count: u32) -> Option<()> {
    for _ in 0..count {
        let name_len = take_varint(rest)?;
        // A name must be there; a value need not.
        (name_len >= 0).then_some(())?;
        skip(rest, name_len)?;
        let value_len = take_varint(rest)?;
        skip(rest, value_len)?;
    }
    Some(())
}

#[cfg(test)]
mod tests;
