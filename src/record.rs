//! What a handler sees: records that borrow from the batch they arrived in.
//!
//! At millions of records per second a copy or an allocation per record is
//! most of the cost, so there is none: a [`Batch`] owns one buffer with the
//! bytes as they came from the broker (or as they were decompressed) and an
//! index into it, and a [`Record`] is a view of one entry. A batch belongs to
//! one partition and to one assignment of it, whose [`AssignmentEpoch`] it
//! carries so that whatever comes too late can be told.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Coarse;

/// A partition of a topic. Cheap to clone: the topic's name is shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    topic: Arc<str>,
    partition: i32,
}

impl TopicPartition {
    /// Partition number `partition` of `topic`.
    ///
    /// ```
    /// let partition = keepup::TopicPartition::new("orders", 3);
    /// assert_eq!(partition.to_string(), "orders-3");
    /// ```
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The topic's name, shared.
    pub(crate) fn shared_topic(&self) -> Arc<str> {
        Arc::clone(&self.topic)
    }

    /// The partition's number within its topic, from 0.
    pub fn partition(&self) -> i32 {
        self.partition
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Our counter of assignments: raised whenever a partition is assigned, sought
/// or reset, and unique within the process, so that it alone tells which
/// partition and which incarnation of it something belongs to.
///
/// It is not Kafka's group generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct AssignmentEpoch(pub(crate) u64);

/// What Kafka writes for the time of a record that has none.
pub(crate) const NO_TIMESTAMP: i64 = -1;

/// Where a record's parts lie in its batch's buffer.
///
/// A length of -1 stands for an absent key or value, as on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) offset: i64,
    /// Milliseconds since 1970, negative before, or [`NO_TIMESTAMP`].
    pub(crate) timestamp: i64,
    pub(crate) key_start: u32,
    pub(crate) key_len: i32,
    pub(crate) value_start: u32,
    pub(crate) value_len: i32,
    pub(crate) headers_start: u32,
    pub(crate) headers_end: u32,
    pub(crate) header_count: u32,
}

/// Records of one partition, in order, with the buffer that holds them.
///
/// A batch may hold no record at all: transaction markers, aborted records and
/// the holes of compaction still move `next_offset`.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) partition: TopicPartition,
    pub(crate) epoch: AssignmentEpoch,
    pub(crate) bytes: Bytes,
    pub(crate) entries: Vec<Entry>,
    /// Index of the first entry that has not been handed to a handler.
    pub(crate) cursor: usize,
    /// The offset after everything that this batch covers, gaps included.
    pub(crate) next_offset: i64,
    /// Last stable offset under `read_committed`, else the high watermark, as
    /// of the fetch; -1 where the answer did not tell.
    pub(crate) end_offset: i64,
    /// First offset that the broker still has, as of the fetch; -1 where the
    /// answer did not tell.
    pub(crate) log_start: i64,
    /// When the answer arrived.
    pub(crate) fetched_at: Coarse,
}

impl Batch {
    /// The record at `index`, for its `attempt`-th delivery in this run.
    #[inline]
    pub(crate) fn record(&self, index: usize, attempt: u32) -> Option<Record<'_>> {
        self.entries.get(index).map(|entry| Record {
            batch: self,
            entry,
            attempt,
        })
    }

    /// How many bytes the records from `first` up to and without `end` take in
    /// the buffer.
    pub(crate) fn bytes_of(&self, first: usize, end: usize) -> u64 {
        let last = end.checked_sub(1).and_then(|last| self.entries.get(last));
        let (Some(first), Some(last)) = (self.entries.get(first), last) else {
            return 0;
        };
        let value_end = u64::from(last.value_start) + u64::try_from(last.value_len).unwrap_or(0);
        u64::from(last.headers_end)
            .max(value_end)
            .saturating_sub(u64::from(first.key_start))
    }

    /// How many records have not been handed to a handler.
    pub(crate) fn remaining(&self) -> usize {
        self.entries.len().saturating_sub(self.cursor)
    }

    fn slice(&self, start: u32, len: i32) -> Option<&[u8]> {
        let len = usize::try_from(len).ok()?;
        let start = start as usize;
        self.bytes.get(start..start.checked_add(len)?)
    }
}

/// One record, borrowed from the batch it arrived in.
///
/// ```
/// # use keepup::Record;
/// fn handle(record: &Record<'_>) {
///     let value = record.value().unwrap_or_default(); // None is a tombstone
///     println!("{}-{}@{}: {} bytes", record.topic(), record.partition(), record.offset(), value.len());
/// }
/// ```
#[derive(Clone, Copy)]
pub struct Record<'a> {
    batch: &'a Batch,
    entry: &'a Entry,
    attempt: u32,
}

impl<'a> Record<'a> {
    /// The topic it was read from.
    pub fn topic(&self) -> &'a str {
        self.batch.partition.topic()
    }

    /// The partition's number within its topic.
    pub fn partition(&self) -> i32 {
        self.batch.partition.partition
    }

    /// Topic and partition together.
    pub fn topic_partition(&self) -> &'a TopicPartition {
        &self.batch.partition
    }

    /// The record's offset in its partition.
    pub fn offset(&self) -> i64 {
        self.entry.offset
    }

    /// Milliseconds since 1970, set by the producer or, where the topic says
    /// so, by the broker. `None` where the record has no timestamp, which Kafka
    /// writes as -1; other negative ones are times before 1970. A producer may
    /// claim any time, also one that is still to come.
    pub fn timestamp_ms(&self) -> Option<i64> {
        (self.entry.timestamp != NO_TIMESTAMP).then_some(self.entry.timestamp)
    }

    /// The key, or `None` where the record has none.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.batch.slice(self.entry.key_start, self.entry.key_len)
    }

    /// The value, or `None` for a tombstone.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.batch
            .slice(self.entry.value_start, self.entry.value_len)
    }

    /// The headers in the order in which the producer set them. Names may
    /// repeat.
    pub fn headers(&self) -> Headers<'a> {
        let range = self.entry.headers_start as usize..self.entry.headers_end as usize;
        Headers {
            bytes: self.batch.bytes.get(range).unwrap_or_default(),
            left: self.entry.header_count,
        }
    }

    /// The value of the last header with that name, as in Kafka's
    /// `Headers.lastHeader`. `None` where there is no such header or where its
    /// value is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .filter(|header| header.name == name.as_bytes())
            .last()?
            .value
    }

    /// How often this record has been handed over in this run, this time
    /// included: 1 unless it is retried.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("partition", &self.batch.partition)
            .field("offset", &self.entry.offset)
            .field("timestamp_ms", &self.timestamp_ms())
            .field("key_len", &self.entry.key_len)
            .field("value_len", &self.entry.value_len)
            .finish_non_exhaustive()
    }
}

/// A record that is kept beyond a call, for handlers that are futures: it shares
/// the batch that it arrived in, and copies nothing. Cheap to clone, and may be
/// sent to other threads.
///
/// The batch's memory counts towards the budget as long as one of its records is
/// kept: who needs something for long after the handler is done copies it.
#[cfg(feature = "tokio")]
#[derive(Clone)]
pub struct OwnedRecord {
    batch: Arc<Batch>,
    /// There is an entry at that index.
    index: usize,
    attempt: u32,
}

#[cfg(feature = "tokio")]
impl OwnedRecord {
    /// The record at `index`, if there is one, for its `attempt`-th delivery.
    pub(crate) fn new(batch: Arc<Batch>, index: usize, attempt: u32) -> Option<Self> {
        (index < batch.entries.len()).then_some(Self {
            batch,
            index,
            attempt,
        })
    }

    /// The same record as other handlers see it, for what takes that.
    pub fn as_record(&self) -> Record<'_> {
        Record {
            batch: &self.batch,
            entry: &self.batch.entries[self.index],
            attempt: self.attempt,
        }
    }

    /// The topic it was read from.
    pub fn topic(&self) -> &str {
        self.batch.partition.topic()
    }

    /// The partition's number within its topic.
    pub fn partition(&self) -> i32 {
        self.batch.partition.partition
    }

    /// Topic and partition together.
    pub fn topic_partition(&self) -> &TopicPartition {
        &self.batch.partition
    }

    /// The record's offset in its partition.
    pub fn offset(&self) -> i64 {
        self.as_record().offset()
    }

    /// As [`Record::timestamp_ms`].
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.as_record().timestamp_ms()
    }

    /// The key, or `None` where the record has none.
    pub fn key(&self) -> Option<&[u8]> {
        self.as_record().key()
    }

    /// The value, or `None` for a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.as_record().value()
    }

    /// As [`Record::headers`].
    pub fn headers(&self) -> Headers<'_> {
        self.as_record().headers()
    }

    /// As [`Record::header`].
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.as_record().header(name)
    }

    /// As [`Record::attempt`].
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// As [`Record::trace_context`].
    pub fn trace_context(&self) -> Option<crate::TraceContext<'_>> {
        self.as_record().trace_context()
    }

    /// As [`Record::json`].
    ///
    /// # Errors
    ///
    /// [`Outcome::Reject`](crate::Outcome::Reject) where the value is not JSON, or
    /// not of that type.
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, crate::Outcome> {
        self.as_record().json()
    }
}

#[cfg(feature = "tokio")]
impl fmt::Debug for OwnedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_record(), f)
    }
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name: UTF-8 by Kafka's rules, but a producer may send anything.
    pub name: &'a [u8],
    /// The value, or `None` where it is null.
    pub value: Option<&'a [u8]>,
}

/// Iterator over a record's headers; made by [`Record::headers`].
///
/// Headers are read where they lie. The record set was checked when it was
/// indexed, so the iterator yields as many headers as the record says.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    left: u32,
}

impl<'a> Headers<'a> {
    fn take(&mut self, len: i64) -> Option<&'a [u8]> {
        let len = usize::try_from(len).ok()?;
        let (head, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(head)
    }

    fn parse(&mut self) -> Option<Header<'a>> {
        let name_len = take_varint(&mut self.bytes)?;
        let name = self.take(name_len)?;
        let value_len = take_varint(&mut self.bytes)?;
        let value = if value_len < 0 {
            None
        } else {
            Some(self.take(value_len)?)
        };
        Some(Header { name, value })
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        self.parse()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}

/// Takes a zigzag varint (up to 64 bits) off the front, as Kafka's record
/// format writes lengths and deltas; `None` where it is cut or too long.
#[inline]
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<i64> {
    // Nearly all lengths and deltas are one byte or two; five of them are read
    // per record.
    match **bytes {
        [first, ref rest @ ..] if first < 0x80 => {
            *bytes = rest;
            Some(zigzag(u64::from(first)))
        }
        [first, second, ref rest @ ..] if second < 0x80 => {
            *bytes = rest;
            Some(zigzag(u64::from(first & 0x7f) | u64::from(second) << 7))
        }
        _ => take_long_varint(bytes),
    }
}

#[inline(never)]
fn take_long_varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Some(zigzag(value));
        }
    }
    None
}

#[inline]
fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A batch of one record that has that value and nothing else.
    pub(crate) fn batch_of_value(value: Option<&[u8]>) -> Batch {
        Batch {
            partition: TopicPartition::new("orders", 0),
            epoch: AssignmentEpoch(1),
            entries: vec![Entry {
                key_len: -1,
                value_len: value.map_or(-1, |v| i32::try_from(v.len()).expect("short")),
                ..Entry::default()
            }],
            bytes: Bytes::copy_from_slice(value.unwrap_or_default()),
            cursor: 0,
            next_offset: 1,
            end_offset: 1,
            log_start: 0,
            fetched_at: Coarse::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_of_every_length_are_read_and_cut_ones_are_refused() {
        for (wire, expected) in [
            (&[0x00][..], 0),
            (&[0x01], -1),
            (&[0x7f], -64),
            (&[0x80, 0x01], 64),
            (&[0xff, 0x7f], -8192),
            (&[0x80, 0x80, 0x01], 8192),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f], i64::from(i32::MIN)),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                i64::MIN,
            ),
        ] {
            let mut bytes = wire;
            assert_eq!(take_varint(&mut bytes), Some(expected), "{wire:x?}");
            assert!(bytes.is_empty());
        }
        for cut in [&[][..], &[0x80], &[0xff; 10], &[0xff; 11]] {
            assert_eq!(take_varint(&mut &*cut), None, "{cut:x?}");
        }
    }
}
