//! Buffers that are used again, and the count of what is held in them.
//!
//! An answer of 2 MiB every few hundred microseconds must not be a fresh
//! allocation each time (the kernel zeroes every page of it), yet its bytes are
//! handed out to batches that may outlive the source on other threads. So a
//! [`Buffer`] becomes a [`Bytes`] with an owner that brings the memory home
//! when the last slice of it is dropped, wherever that happens.
//!
//! What is held (in use, not waiting to be used again) is counted as the
//! buffers come and go: this count is what the source's share of the memory
//! budget is compared with. Free buffers count too when it is decided how many
//! of them to keep, so that a source's memory stays within its share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::link::Permit;
use crate::source::Waker;

/// A buffer starts with this much, and grows as bytes really arrive: a length
/// announced by a peer reserves nothing beyond it.
const SMALLEST: usize = 64 * 1024;

/// Free buffers are looked through in order: more than this many would be slow
/// to search and are never in use at once by the two answers of each of a few
/// connections.
const MOST_FREE: usize = 64;

/// Free buffers are kept up to what is in use, and at least this much: the two
/// answers of a connection. A burst's memory goes back to the system after it.
const ALWAYS_KEPT: usize = 4 * 1024 * 1024;

/// The buffers of one source. Cheap to clone; may be used from any thread.
#[derive(Clone, Debug)]
pub(in crate::source) struct BufferPool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Mutex<Free>,
    held: AtomicUsize,
    /// Somebody waits for memory to come home, and is to be told.
    waited_for: AtomicBool,
    waker: Waker,
    /// Bytes, held and free, above which a buffer that comes home is let go.
    keep: AtomicUsize,
}

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    /// A pool that keeps free buffers while everything together, held and free,
    /// is within `keep` bytes.
    ///
    /// `waker` is used when memory comes home that was waited for.
    pub(in crate::source) fn new(keep: usize, waker: Waker) -> Self {
        Self(Arc::new(Shared {
            free: Mutex::new(Free::default()),
            held: AtomicUsize::new(0),
            waited_for: AtomicBool::new(false),
            waker,
            keep: AtomicUsize::new(keep),
        }))
    }

    /// Changes how much is kept, from the next buffer on.
    pub(in crate::source) fn set_keep(&self, keep: usize) {
        self.0.keep.store(keep, Ordering::Relaxed);
    }

    /// Bytes in buffers that are in use, by whomever.
    pub(in crate::source) fn held(&self) -> usize {
        self.0.held.load(Ordering::SeqCst)
    }

    /// Uses the waker once when the next buffer comes home.
    pub(in crate::source) fn wake_on_return(&self) {
        self.0.waited_for.store(true, Ordering::SeqCst);
    }

    /// An empty buffer, if possible one that has room for `expected` bytes
    /// already. Reserves [`SMALLEST`] at most where it has to be a new one.
    pub(in crate::source) fn take(&self, expected: usize) -> Buffer {
        let data = self.0.take_free(expected).unwrap_or_default();
        self.0.held.fetch_add(data.len(), Ordering::Relaxed);
        Buffer {
            data,
            filled: 0,
            expected,
            permit: None,
            pool: Arc::clone(&self.0),
        }
    }
}

impl Shared {
    /// The smallest free buffer that has the room, unless it is wastefully
    /// large (a small answer would pin it); else the largest that is not.
    fn take_free(&self, expected: usize) -> Option<Vec<u8>> {
        let wasteful = expected.saturating_mul(4).max(SMALLEST);
        let mut free = self.free.lock();
        let best = free
            .buffers
            .iter()
            .enumerate()
            .filter(|(_, buffer)| buffer.len() <= wasteful)
            .min_by_key(|(_, buffer)| {
                let short = buffer.len() < expected;
                (
                    short,
                    if short {
                        usize::MAX - buffer.len()
                    } else {
                        buffer.len()
                    },
                )
            })
            .map(|(index, _)| index)?;
        let buffer = free.buffers.swap_remove(best);
        free.bytes -= buffer.len();
        Some(buffer)
    }

    fn give_back(&self, data: Vec<u8>) {
        if data.is_empty() {
            return;
        }
        self.keep_or_free(data);
        // Read first: the swap is a write to a cache line that all share.
        if self.waited_for.load(Ordering::SeqCst) && self.waited_for.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    fn keep_or_free(&self, data: Vec<u8>) {
        let held = self.held.fetch_sub(data.len(), Ordering::SeqCst) - data.len();
        let keep = self.keep.load(Ordering::Relaxed).saturating_sub(held);
        let keep = keep.min(held.max(ALWAYS_KEPT));
        let mut free = self.free.lock();
        // What just came home is warmer than what has lain there: let the
        // others go first.
        while !free.buffers.is_empty()
            && (free.buffers.len() >= MOST_FREE || free.bytes + data.len() > keep)
        {
            let oldest = free.buffers.remove(0);
            free.bytes -= oldest.len();
        }
        if free.bytes + data.len() <= keep {
            free.bytes += data.len();
            free.buffers.push(data);
        }
    }
}

/// Memory that is filled from the front, and goes back to its pool when it, or
/// everything that was made of it, is dropped.
#[derive(Debug)]
pub(in crate::source) struct Buffer {
    /// Initialised throughout; `filled` tells what counts. Never truncated, so
    /// that a buffer in use again is not zeroed again.
    data: Vec<u8>,
    filled: usize,
    /// Where doubling stops, unless more is needed after all.
    expected: usize,
    /// Given back together with the memory.
    permit: Option<Permit>,
    pool: Arc<Shared>,
}

impl Buffer {
    /// Keeps `permit` until the memory goes home.
    pub(super) fn attach(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// What has been filled.
    pub(in crate::source) fn filled(&self) -> &[u8] {
        self.data.get(..self.filled).unwrap_or_default()
    }

    /// How much has been filled.
    pub(in crate::source) fn len(&self) -> usize {
        self.filled
    }

    /// Room for at least `at_least` more bytes; all that is there.
    ///
    /// Asking for little again and again doubles the buffer each time it is
    /// full, so that growth costs what was filled and not more.
    pub(in crate::source) fn spare(&mut self, at_least: usize) -> &mut [u8] {
        let needed = self.filled.saturating_add(at_least);
        if needed > self.data.len() {
            let before = self.data.len();
            let doubled = before.saturating_mul(2);
            let size = if needed <= self.expected {
                needed.max(doubled.min(self.expected))
            } else {
                needed.max(doubled)
            };
            // Answers differ by some bytes: a little more fits the next one too.
            let size = size.next_multiple_of(SMALLEST);
            self.data.reserve_exact(size - before);
            self.data.resize(size, 0);
            self.pool.held.fetch_add(size - before, Ordering::Relaxed);
        }
        self.data.get_mut(self.filled..).unwrap_or_default()
    }

    /// Counts the next `by` bytes of [`Self::spare`] as filled.
    pub(in crate::source) fn advance(&mut self, by: usize) {
        self.filled = self.filled.saturating_add(by).min(self.data.len());
    }

    /// Takes back what was filled beyond `len`.
    pub(in crate::source) fn truncate(&mut self, len: usize) {
        self.filled = self.filled.min(len);
    }

    /// The filled bytes, to be shared. The memory comes home when the last of
    /// them is dropped.
    pub(in crate::source) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.filled()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_of(keep: usize) -> BufferPool {
        BufferPool::new(keep, Waker::new(|| {}))
    }

    fn filled(pool: &BufferPool, len: usize) -> Buffer {
        let mut buffer = pool.take(len);
        buffer.spare(len);
        buffer.advance(len);
        buffer
    }

    #[test]
    fn memory_comes_home_when_the_last_slice_is_dropped() {
        let pool = pool_of(1 << 20);
        let bytes = filled(&pool, 100_000).freeze();
        let address = bytes.as_ptr();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(pool.held(), 2 * SMALLEST);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(slice));
        });
        assert_eq!(pool.held(), 0);
        let again = filled(&pool, 90_000);
        assert_eq!(again.filled().as_ptr(), address, "used again");
        assert_eq!(again.len(), 90_000);
    }

    #[test]
    fn a_buffer_is_not_reserved_by_what_is_expected() {
        let pool = pool_of(1 << 20);
        let mut buffer = pool.take(1 << 40);
        assert_eq!(pool.held(), 0);
        assert_eq!(buffer.spare(1).len(), SMALLEST);
        buffer.advance(SMALLEST);
        assert_eq!(buffer.spare(1).len(), SMALLEST, "doubled");
        assert_eq!(pool.held(), 2 * SMALLEST);
    }

    #[test]
    fn growth_stops_a_little_above_what_is_expected() {
        let pool = pool_of(1 << 20);
        let mut buffer = pool.take(5 * SMALLEST + 1);
        while buffer.len() < 5 * SMALLEST + 1 {
            let room = buffer.spare(1).len();
            buffer.advance(room.min(30_000));
        }
        assert_eq!(pool.held(), 6 * SMALLEST);
    }

    #[test]
    fn who_waits_for_memory_is_woken_once_when_some_comes_home() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let pool = BufferPool::new(
            1 << 20,
            Waker::new(move || {
                counter.fetch_add(1, Ordering::SeqCst);
            }),
        );
        drop(filled(&pool, 10));
        assert_eq!(woken.load(Ordering::SeqCst), 0, "nobody waited");
        let (first, second) = (filled(&pool, 10), filled(&pool, 10));
        pool.wake_on_return();
        drop(first);
        drop(second);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn free_and_held_buffers_together_stay_within_what_is_to_be_kept() {
        let pool = pool_of(16 * SMALLEST);
        let (first, second) = (filled(&pool, 11 * SMALLEST), filled(&pool, 9 * SMALLEST));
        drop(first);
        assert_eq!(pool.0.free.lock().bytes, 0, "the second is still held");
        drop(second);
        assert_eq!(pool.0.free.lock().bytes, 9 * SMALLEST);
        let (first, second) = (filled(&pool, 4 * SMALLEST), filled(&pool, 14 * SMALLEST));
        drop(first);
        drop(second);
        assert_eq!(
            pool.0.free.lock().bytes,
            14 * SMALLEST,
            "the later one pushed the earlier out"
        );
    }

    #[test]
    fn a_small_answer_does_not_pin_a_large_buffer() {
        let pool = pool_of(1 << 30);
        drop(filled(&pool, 3 << 20));
        let small = filled(&pool, 1_000);
        assert_eq!(pool.held(), SMALLEST);
        drop(small);
        let large = pool.take(2 << 20);
        assert_eq!(pool.held(), 3 << 20);
        drop(large);
    }

    #[test]
    fn a_burst_leaves_little_behind() {
        let pool = pool_of(1 << 30);
        let burst: Vec<_> = (0..20).map(|_| filled(&pool, 1 << 20)).collect();
        assert_eq!(pool.held(), 20 << 20);
        drop(burst);
        assert_eq!(pool.0.free.lock().bytes, ALWAYS_KEPT);
    }
}
