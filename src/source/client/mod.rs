//! The client source: reads partitions through librdkafka.
//!
//! It is there for what our own connections do not speak (Kerberos, tokens,
//! keys in a keystore), and as a way out. Each worker has a client of its own
//! that belongs to no group; its partitions' records are copied out of
//! librdkafka's queues into a batch's one buffer. Correct, and not fast: that
//! copying, and librdkafka's way to get there, is what the fetch source avoids.
//!
//! | file | what it is for |
//! |---|---|
//! | [`lanes`] | what is read from where, whose turn it is: pure |
//!
//! **Back-pressure.** librdkafka fetches a partition until its queue is full.
//! Half of the worker's share of the memory budget is for those queues, divided
//! by the number of partitions, half for batches that were given out. A client
//! is bound to its queues' size for life, so one that has got far more
//! partitions than it was made for is replaced.
//!
//! **Ends.** librdkafka keeps the ends that came with its answers to itself. A
//! batch tells the end where the partition was at it, and otherwise does not
//! (-1); the reporter asks, as it does for every end that is a second old. The
//! log's start is never told here.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use self::lanes::{Lanes, Turn};
use super::fetch::buffers::{Buffer, BufferPool};
use super::{MemoryBudget, Pulled, ReadFrom, Source, SourceFactory, Waker};
use crate::clock::Clock;
use crate::config::Settings;
use crate::kafka::fetch_client::{ClientTrouble, Delivered, FetchClient, Taken};
use crate::record::{AssignmentEpoch, Batch, Entry, TopicPartition};

mod lanes;

/// A batch is closed at this many records or bytes, or where it takes a part of
/// the share that large. More would delay the other partitions of the worker.
const MOST_RECORDS: usize = 4_096;
const MOST_BYTES: usize = 1024 * 1024;
const MOST_OF_SHARE: usize = 8;

/// Least and most that librdkafka's queue of a partition may hold.
const ROOM: (usize, usize) = (64 * 1024, 16 * 1024 * 1024);

/// How long nothing may be heard before every queue is looked into: a bell that
/// librdkafka did not ring delays records by no more than this.
const LOOK: Duration = Duration::from_millis(500);

/// Before a client that could not be made is tried again.
const REOPEN: Duration = Duration::from_secs(1);

/// Index vectors kept for later batches.
const SPARE: usize = 4;

/// Makes the client sources of a process's workers.
#[derive(Debug)]
pub(crate) struct ClientFactory {
    settings: Arc<Settings>,
    budget: Arc<MemoryBudget>,
    clock: Clock,
}

impl ClientFactory {
    /// Sources that connect as `settings` say and share `budget`.
    pub(crate) fn new(settings: Arc<Settings>, budget: Arc<MemoryBudget>, clock: Clock) -> Self {
        Self {
            settings,
            budget,
            clock,
        }
    }
}

impl SourceFactory for ClientFactory {
    fn open(&self, worker: usize) -> io::Result<Box<dyn Source>> {
        let (ring, bell) = bounded(1);
        let bell = Bell {
            ring,
            is_woken: Arc::new(AtomicBool::new(false)),
            rings: bell,
        };
        Ok(Box::new(ClientSource {
            worker,
            settings: Arc::clone(&self.settings),
            budget: Arc::clone(&self.budget),
            clock: self.clock.clone(),
            pool: BufferPool::new(self.budget.share() / 2, bell.waker()),
            bell,
            client: None,
            room: 0,
            reopen_at: None,
            lanes: Lanes::default(),
            spare: VecDeque::new(),
            is_starved: false,
        }))
    }
}

/// What the source waits for.
#[derive(Debug)]
struct Bell {
    /// Full where it has rung already.
    ring: Sender<()>,
    rings: Receiver<()>,
    /// Somebody wants [`ClientSource::next`] to return.
    is_woken: Arc<AtomicBool>,
}

impl Bell {
    /// Rings: there may be something to take.
    fn waker(&self) -> Waker {
        let ring = self.ring.clone();
        Waker::new(move || {
            let _ = ring.try_send(());
        })
    }

    /// Rings, and has the wait end with nothing.
    fn interrupter(&self) -> Waker {
        let (ring, is_woken) = (self.ring.clone(), Arc::clone(&self.is_woken));
        Waker::new(move || {
            is_woken.store(true, Ordering::Release);
            let _ = ring.try_send(());
        })
    }
}

/// A worker's reader of its partitions. See the module's documentation.
struct ClientSource {
    worker: usize,
    settings: Arc<Settings>,
    budget: Arc<MemoryBudget>,
    clock: Clock,
    bell: Bell,
    /// Made when there is something to read.
    client: Option<FetchClient>,
    /// What the client's queues hold of a partition.
    room: usize,
    reopen_at: Option<Instant>,
    lanes: Lanes,
    pool: BufferPool,
    spare: VecDeque<Vec<Entry>>,
    /// Something is there to be taken, and no memory for it.
    is_starved: bool,
}

/// What librdkafka's queue of each of so many partitions may hold.
fn room(share: usize, partitions: usize) -> usize {
    let room = share / 2 / partitions.max(1);
    // In powers of two, so that one partition more does not count as a change.
    let room = room.checked_ilog2().map_or(0, |log| 1 << log);
    room.clamp(ROOM.0, ROOM.1)
}

impl ClientSource {
    /// Has the client do what is wanted now.
    fn apply(&mut self, now: Instant) {
        if self.reopen_at.is_some_and(|moment| moment > now) {
            return;
        }
        self.reopen_at = None;
        let fitting = room(self.budget.share(), self.lanes.len());
        if self.client.is_some() && fitting < self.room {
            tracing::debug!(
                worker = self.worker,
                room = fitting,
                "a client with smaller queues"
            );
            self.client = None;
            self.lanes.forget_client();
        }
        if self.client.is_none() {
            if self.lanes.len() == 0 {
                return;
            }
            match FetchClient::open(&self.settings, fitting, self.bell.waker()) {
                Ok(client) => {
                    self.client = Some(client);
                    self.room = fitting;
                }
                Err(error) => {
                    tracing::warn!(worker = self.worker, %error, "no client to read with; trying again");
                    self.reopen_at = Some(now + REOPEN);
                    return;
                }
            }
        }
        let Some(client) = &mut self.client else {
            return;
        };
        let mut astray = Vec::new();
        client.serve(&mut astray);
        for partition in &astray {
            tracing::info!(worker = self.worker, %partition, "librdkafka lost its queue; reading it anew");
        }
        self.lanes.went_astray(&astray);
        let changes = self.lanes.changes(now);
        if !changes.leave.is_empty()
            && let Err(error) = client.leave(&changes.leave)
        {
            tracing::warn!(worker = self.worker, error, "partitions are not left");
        }
        for partition in changes.forget.iter().chain(&astray) {
            client.forget(partition);
        }
        if !changes.read.is_empty()
            && let Err(error) = client.read(&changes.read)
        {
            tracing::warn!(
                worker = self.worker,
                error,
                "partitions are not read; trying again"
            );
            self.lanes.refused(&changes, now);
        }
    }

    /// What the lane has whose turn is next, and so on until one has something.
    fn give(&mut self, now: Instant) -> Option<Pulled> {
        self.is_starved = false;
        for _ in 0..self.lanes.len() {
            let epoch = self.lanes.next_turn()?;
            let pulled = match self.lanes.turn(epoch) {
                Turn::Nothing => None,
                Turn::Batch(batch) => Some(Pulled::Batch(batch)),
                Turn::Failed(offset, error) => Some(Pulled::Failed {
                    epoch,
                    offset,
                    error,
                }),
                Turn::Empty(partition, position) => Some(Pulled::Batch(Batch {
                    partition,
                    epoch,
                    bytes: Bytes::new(),
                    entries: Vec::new(),
                    cursor: 0,
                    next_offset: position,
                    end_offset: -1,
                    log_start: -1,
                    fetched_at: self.clock.coarse(),
                })),
                Turn::Take {
                    partition,
                    position,
                    until,
                } => self.take(epoch, partition, position, until, now),
            };
            if pulled.is_some() {
                return pulled;
            }
        }
        None
    }

    /// Takes records of a partition out of its queue.
    fn take(
        &mut self,
        epoch: AssignmentEpoch,
        partition: TopicPartition,
        position: i64,
        until: Option<i64>,
        now: Instant,
    ) -> Option<Pulled> {
        let client = self.client.as_ref()?;
        if !client.has_news(&partition) {
            return None;
        }
        let share = self.budget.share();
        self.pool.set_keep(share / 2);
        if self.pool.held() >= share / 2 {
            self.pool.wake_on_return();
            // What came home between the two lines rang no bell.
            if self.pool.held() >= share / 2 {
                self.is_starved = true;
                return None;
            }
        }
        let mut filling = Filling {
            entries: self.spare.pop_front().unwrap_or_default(),
            buffer: self.pool.take(0),
            next_offset: position,
            end_offset: -1,
            most_bytes: MOST_BYTES.min(share / MOST_OF_SHARE),
            trouble: None,
        };
        let is_news = filling.fill(client, &partition, until);
        let Filling {
            entries,
            buffer,
            next_offset,
            end_offset,
            trouble,
            ..
        } = filling;
        let is_worth_it = is_news && self.lanes.took(epoch, next_offset, end_offset);
        if let Some(trouble) = trouble {
            self.lanes.has_trouble(epoch, trouble, now);
            self.bell.waker().wake();
        }
        if entries.is_empty() && !is_worth_it {
            self.keep(entries);
            return None;
        }
        Some(Pulled::Batch(Batch {
            partition,
            epoch,
            bytes: if buffer.len() == 0 {
                Bytes::new()
            } else {
                buffer.freeze()
            },
            entries,
            cursor: 0,
            next_offset,
            end_offset,
            log_start: -1,
            fetched_at: self.clock.coarse(),
        }))
    }

    fn keep(&mut self, mut entries: Vec<Entry>) {
        if self.spare.len() < SPARE {
            entries.clear();
            self.spare.push_back(entries);
        }
    }
}

/// A batch on its way.
struct Filling {
    entries: Vec<Entry>,
    buffer: Buffer,
    next_offset: i64,
    /// -1 unless the partition was at its end when the queue was empty.
    end_offset: i64,
    most_bytes: usize,
    trouble: Option<ClientTrouble>,
}

impl Filling {
    /// Takes what the queue has, up to a batch's size. Returns whether it had
    /// anything that counts.
    fn fill(
        &mut self,
        client: &FetchClient,
        partition: &TopicPartition,
        until: Option<i64>,
    ) -> bool {
        let mut is_news = false;
        while self.entries.len() < MOST_RECORDS && self.buffer.len() < self.most_bytes {
            match client.take(partition) {
                None => break,
                // Fetched for an earlier position: not ours any more.
                Some(Taken::Record(record)) if record.offset() < self.next_offset => {}
                Some(Taken::Record(record)) => {
                    if let Some(until) = until.filter(|until| record.offset() >= *until) {
                        self.next_offset = until;
                        return true;
                    }
                    // Whatever was the end is not any more.
                    self.end_offset = -1;
                    if let Err(trouble) = self.copy(&record) {
                        self.trouble = Some(trouble);
                        return is_news;
                    }
                    is_news = true;
                    self.next_offset = record.offset() + 1;
                    if until.is_some_and(|until| self.next_offset >= until) {
                        return true;
                    }
                }
                Some(Taken::End(end)) => {
                    let end = end.unwrap_or(self.next_offset);
                    if end >= self.next_offset {
                        is_news = true;
                        self.next_offset = end;
                        self.end_offset = end;
                    }
                    if until.is_some_and(|until| self.next_offset >= until) {
                        return true;
                    }
                }
                Some(Taken::Trouble(trouble)) => {
                    self.trouble = Some(trouble);
                    return is_news;
                }
            }
        }
        is_news
    }

    /// Copies a record into the buffer, laid out as on the wire: key, value,
    /// headers.
    fn copy(&mut self, record: &Delivered<'_>) -> Result<(), ClientTrouble> {
        let begin = self.buffer.len();
        let mut entry = Entry {
            offset: record.offset(),
            timestamp: record.timestamp(),
            ..Entry::default()
        };
        (entry.key_start, entry.key_len) = self.put(record.key())?;
        (entry.value_start, entry.value_len) = self.put(record.value())?;
        entry.headers_start = self.place()?;
        let mut headers = 0;
        let buffer = &mut self.buffer;
        let read = record.headers(|name, value| {
            headers += 1;
            put_varint(buffer, length(Some(name.as_bytes())));
            append(buffer, name.as_bytes());
            put_varint(buffer, length(value));
            append(buffer, value.unwrap_or_default());
        });
        if let Err(what) = read {
            self.buffer.truncate(begin);
            return Err(ClientTrouble::Corrupt(what));
        }
        entry.headers_end = self.place()?;
        entry.header_count = headers;
        self.entries.push(entry);
        Ok(())
    }

    /// Where the next byte goes.
    fn place(&self) -> Result<u32, ClientTrouble> {
        u32::try_from(self.buffer.len())
            .map_err(|_| ClientTrouble::Corrupt("a record is longer than 4 GiB".to_owned()))
    }

    fn put(&mut self, bytes: Option<&[u8]>) -> Result<(u32, i32), ClientTrouble> {
        let start = self.place()?;
        append(&mut self.buffer, bytes.unwrap_or_default());
        // Lengths have 32 bits on the wire, so this one fits.
        Ok((start, i32::try_from(length(bytes)).unwrap_or(i32::MAX)))
    }
}

/// As on the wire: -1 for nothing at all.
fn length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX))
}

fn append(buffer: &mut Buffer, bytes: &[u8]) {
    if let Some(room) = buffer.spare(bytes.len()).get_mut(..bytes.len()) {
        room.copy_from_slice(bytes);
    }
    buffer.advance(bytes.len());
}

/// A zigzag varint, which [`crate::record::take_varint`] reads.
fn put_varint(buffer: &mut Buffer, value: i64) {
    let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            append(buffer, &[low & 0x7f]);
            return;
        }
        append(buffer, &[low | 0x80]);
    }
}

impl Source for ClientSource {
    fn start(&mut self, from: ReadFrom) {
        self.lanes.start(from);
    }

    fn stop(&mut self, epoch: AssignmentEpoch) {
        self.lanes.stop(epoch);
    }

    fn rewind(&mut self, epoch: AssignmentEpoch, offset: i64, not_before: Option<Instant>) {
        self.lanes.rewind(epoch, offset, not_before);
    }

    fn set_paused(&mut self, epoch: AssignmentEpoch, paused: bool) {
        self.lanes.set_paused(epoch, paused);
    }

    fn next(&mut self, deadline: Instant) -> Pulled {
        loop {
            let now = self.clock.now();
            self.apply(now);
            if let Some(pulled) = self.give(now) {
                return pulled;
            }
            if self.bell.is_woken.swap(false, Ordering::AcqRel) || now >= deadline {
                return Pulled::Nothing;
            }
            let moments = self.lanes.next_moment().into_iter().chain(self.reopen_at);
            let until = moments.chain([deadline]).min().unwrap_or(deadline);
            let wait = until.saturating_duration_since(now).min(LOOK);
            let is_silent = self.bell.rings.recv_timeout(wait).is_err();
            if let (true, Some(client)) = (is_silent, &self.client) {
                client.expect_news();
            }
        }
    }

    fn put_back(&mut self, batch: Batch) {
        if let Some(batch) = self.lanes.put_back(batch) {
            self.recycle(batch);
        }
    }

    fn recycle(&mut self, batch: Batch) {
        // Its bytes go home when they are dropped.
        self.keep(batch.entries);
    }

    fn is_starved(&self) -> bool {
        self.is_starved
    }

    fn waker(&self) -> Waker {
        self.bell.interrupter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::take_varint;

    #[test]
    fn varints_are_written_as_they_are_read() {
        let (ring, _bell) = bounded(1);
        let pool = BufferPool::new(
            1024,
            Waker::new(move || {
                let _ = ring.try_send(());
            }),
        );
        for value in [
            0,
            -1,
            1,
            63,
            64,
            -64,
            -65,
            300,
            i64::from(i32::MAX),
            i64::MIN,
            i64::MAX,
        ] {
            let mut buffer = pool.take(0);
            put_varint(&mut buffer, value);
            let mut written = buffer.filled();
            assert_eq!(take_varint(&mut written), Some(value));
            assert!(written.is_empty());
        }
    }

    #[test]
    fn the_queues_of_all_partitions_together_stay_within_half_the_share() {
        const MIB: usize = 1024 * 1024;
        assert_eq!(room(24 * MIB, 1), 8 * MIB);
        assert_eq!(room(24 * MIB, 2), 4 * MIB);
        assert_eq!(room(24 * MIB, 0), 8 * MIB);
        for partitions in 1..=192 {
            assert!(room(24 * MIB, partitions) * partitions <= 12 * MIB);
        }
        // Below that nothing would move.
        assert_eq!(room(24 * MIB, 10_000), ROOM.0);
    }
}
