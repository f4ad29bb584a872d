//! The innermost loop: one turn of a lane, record by record or in batches.
//!
//! A turn ends when the batch is done, a handler says something else than
//! done, the member wants something, the gate is shut, or the lane had its
//! 50 ms and others wait. What costs something is done per turn; per record
//! there are two loads, one coarse clock read and two stores beside the
//! handler.

use std::cell::Cell;
#[cfg(feature = "tokio")]
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "tokio")]
use crate::async_handler::{AsyncEngine, AsyncHandler, Shared};
use crate::clock::{Clock, Coarse};
use crate::config::Order;
use crate::error::Problem;
use crate::handler::{BatchHandler, Handler, Outcome, Records, WorkerInfo};
use crate::record::{Batch, Record, TopicPartition};
use crate::trace;
use crate::worker::gate::Gate;
use crate::worker::mailbox::Mailbox;
use crate::worker::pool::seat::Seat;
use crate::worker::timing::{HandlerTimes, Stopwatch};
use crate::worker::tracker::Tracker;

/// How many records a batch handler takes, and how long the first waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchLimits {
    pub(crate) max_records: usize,
    pub(crate) max_wait: Duration,
}

impl BatchLimits {
    /// What is wrong with it, if anything.
    fn problem(self) -> Option<Problem> {
        (self.max_records == 0).then(|| {
            Problem::new(
                "max_records",
                0,
                "a batch has at least one record",
                "give 1 or more",
            )
        })
    }
}

/// Makes the handler of a worker, on its thread.
pub(crate) struct EngineFactory {
    make: Box<dyn Fn(WorkerInfo) -> Engine + Send + Sync>,
    batch_limits: Option<BatchLimits>,
    is_async: bool,
}

impl EngineFactory {
    pub(crate) fn per_record<H: Handler + 'static>(
        factory: impl Fn(WorkerInfo) -> H + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Box::new(move |info| Engine::PerRecord(Box::new(RecordLoop(factory(info))))),
            batch_limits: None,
            is_async: false,
        }
    }

    pub(crate) fn per_batch<H: BatchHandler + 'static>(
        limits: BatchLimits,
        factory: impl Fn(WorkerInfo) -> H + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Box::new(move |info| Engine::PerBatch(Box::new(factory(info)))),
            batch_limits: Some(limits),
            is_async: false,
        }
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn per_future<H: AsyncHandler + 'static>(
        factory: impl Fn(WorkerInfo) -> H + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Box::new(move |info| Engine::Async(Box::new(Shared(Rc::new(factory(info)))))),
            batch_limits: None,
            is_async: true,
        }
    }

    pub(crate) fn make(&self, info: WorkerInfo) -> Engine {
        (self.make)(info)
    }

    /// What is wrong with it in that order, if anything.
    pub(crate) fn problems(&self, order: Order) -> Vec<Problem> {
        let Some(limits) = self.batch_limits else {
            return Vec::new();
        };
        let of_order = (order != Order::Partition).then(|| {
            Problem::new(
                "order",
                order,
                "a batch is handed over in the order of its partition",
                "choose partition order, or a handler of single records",
            )
        });
        limits.problem().into_iter().chain(of_order).collect()
    }

    /// Whether it makes handlers that are futures.
    pub(crate) fn is_async(&self) -> bool {
        self.is_async
    }

    pub(crate) fn batch_limits(&self) -> Option<BatchLimits> {
        self.batch_limits
    }
}

/// A worker's handler.
pub(crate) enum Engine {
    PerRecord(Box<dyn RecordEngine>),
    PerBatch(Box<dyn BatchHandler>),
    #[cfg(feature = "tokio")]
    Async(Box<dyn AsyncEngine>),
}

impl Engine {
    /// See [`RecordEngine::work`].
    pub(crate) fn work(&mut self, turn: &HandTurn<'_>, handled: &mut usize) -> HandEnd {
        match self {
            Self::PerRecord(engine) => engine.work(turn, handled),
            // Refused at the start.
            Self::PerBatch(_) => HandEnd::Outcome(Outcome::stop("batches keep partition order")),
            // Its threads are others.
            #[cfg(feature = "tokio")]
            Self::Async(_) => HandEnd::Outcome(Outcome::stop("a future is polled")),
        }
    }

    pub(crate) fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        match self {
            Self::PerRecord(engine) => engine.handler().on_assigned(partitions),
            Self::PerBatch(handler) => handler.on_assigned(partitions),
            #[cfg(feature = "tokio")]
            Self::Async(engine) => engine.on_assigned(partitions),
        }
    }

    pub(crate) fn on_revoked(&mut self, partitions: &[TopicPartition]) {
        match self {
            Self::PerRecord(engine) => engine.handler().on_revoked(partitions),
            Self::PerBatch(handler) => handler.on_revoked(partitions),
            #[cfg(feature = "tokio")]
            Self::Async(engine) => engine.on_revoked(partitions),
        }
    }

    pub(crate) fn on_lost(&mut self, partitions: &[TopicPartition]) {
        match self {
            Self::PerRecord(engine) => engine.handler().on_lost(partitions),
            Self::PerBatch(handler) => handler.on_lost(partitions),
            #[cfg(feature = "tokio")]
            Self::Async(engine) => engine.on_lost(partitions),
        }
    }
}

/// As [`Turn`], for a worker that takes records from a pool.
pub(crate) struct HandTurn<'a> {
    pub(crate) clock: &'a Clock,
    pub(crate) gate: &'a Gate,
    pub(crate) mailbox: &'a Mailbox,
    pub(crate) seat: &'a Seat,
    /// Of the partition that the records in the hand are of.
    pub(crate) tracker: &'a Tracker,
    pub(crate) batches: &'a [Arc<Batch>],
    pub(crate) times: &'a HandlerTimes,
    /// Bytes of what was done.
    pub(crate) bytes: &'a Cell<u64>,
}

/// How a [`HandTurn`] ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HandEnd {
    /// Nothing is left in the hand.
    Empty,
    /// The member wants something, or the partition is not ours any more.
    Interrupted,
    /// No record may be started before the group has answered again.
    GateShut,
    /// The handler said something else than done of the record in it.
    Outcome(Outcome),
}

/// What a turn may use and must respect.
pub(crate) struct Turn<'a> {
    pub(crate) clock: &'a Clock,
    pub(crate) gate: &'a Gate,
    pub(crate) mailbox: &'a Mailbox,
    pub(crate) tracker: &'a Tracker,
    /// The record that failed before, by offset, and how often.
    pub(crate) failed: Option<(i64, u32)>,
    /// Records that may be handed over in this turn.
    pub(crate) allowed: usize,
    /// The turn is over then, if others wait.
    pub(crate) ends_at: Coarse,
}

impl Turn<'_> {
    /// Which delivery of the record at `offset` this is.
    fn attempt(&self, offset: i64) -> u32 {
        match self.failed {
            Some((failed, attempts)) if failed == offset => attempts.saturating_add(1),
            _ => 1,
        }
    }

    /// Why no further record may be started at that time, if so.
    #[inline]
    fn over(&self, handled: usize, now: Coarse) -> Option<TurnEnd> {
        if !self.gate.allows(now) {
            return Some(TurnEnd::GateShut);
        }
        if handled >= self.allowed {
            return Some(TurnEnd::Allowance);
        }
        (handled > 0 && now >= self.ends_at).then_some(TurnEnd::TimeIsUp)
    }
}

/// How a turn ended. The batch's cursor tells where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TurnEnd {
    /// Every record of the batch was handled.
    Exhausted,
    /// The lane had its time.
    TimeIsUp,
    /// The member wants something.
    Interrupted,
    /// No record may be started before the group has answered again.
    GateShut,
    /// As many records as allowed were handed over.
    Allowance,
    /// The handler said something else than done of the record at the cursor.
    Outcome { outcome: Outcome, attempt: u32 },
}

/// The loop over single records, with its handler's type inside, so that the
/// handler is called without indirection.
pub(crate) trait RecordEngine {
    /// Handles records from the batch's cursor on, and moves the cursor past
    /// each that is done.
    ///
    /// # Panics
    ///
    /// Where the handler does; the cursor then stands at its record.
    fn turn(&mut self, batch: &mut Batch, turn: &Turn<'_>) -> TurnEnd;

    /// Handles the records in a worker's hand, and counts them.
    ///
    /// # Panics
    ///
    /// Where the handler does; the hand then says which record is in it.
    fn work(&mut self, turn: &HandTurn<'_>, handled: &mut usize) -> HandEnd;

    /// For its hooks.
    fn handler(&mut self) -> &mut dyn Handler;
}

struct RecordLoop<H>(H);

impl<H: Handler> RecordLoop<H> {
    /// Handles a record inside of a span: apart from the loop, which stays as
    /// short as it is where nobody wants one.
    #[cold]
    #[inline(never)]
    fn handle_in_span(&mut self, record: &Record<'_>) -> Outcome {
        let _entered = trace::span_of(record).entered();
        self.0.handle(record)
    }

    #[inline]
    fn handle(&mut self, record: &Record<'_>, is_traced: bool) -> Outcome {
        if is_traced {
            self.handle_in_span(record)
        } else {
            self.0.handle(record)
        }
    }
}

impl<H: Handler> RecordEngine for RecordLoop<H> {
    fn turn(&mut self, batch: &mut Batch, turn: &Turn<'_>) -> TurnEnd {
        let first = batch.cursor;
        let is_traced = trace::is_wanted();
        let mut watch = Stopwatch::start(turn.clock, &turn.tracker.times, first);
        let allowed = first.saturating_add(turn.allowed);
        let mut look_at = first;
        while batch.cursor < batch.entries.len() {
            if turn.mailbox.has_wishes() {
                watch.stop(batch.cursor);
                return TurnEnd::Interrupted;
            }
            if batch.cursor >= look_at {
                let now = turn.clock.coarse();
                watch.look(now, batch.cursor);
                if let Some(end) = turn.over(batch.cursor - first, now) {
                    watch.stop(batch.cursor);
                    return end;
                }
                look_at = allowed.min(batch.cursor + watch.unwatched());
            }
            let entry = &batch.entries[batch.cursor];
            let (offset, timestamp) = (entry.offset, entry.timestamp);
            let attempt = if batch.cursor == first {
                turn.attempt(offset)
            } else {
                1
            };
            let Some(record) = batch.record(batch.cursor, attempt) else {
                break;
            };
            turn.tracker.handed_over(offset, timestamp);
            match self.handle(&record, is_traced) {
                Outcome::Done => turn.tracker.completed(offset),
                outcome => {
                    watch.stop_at(batch.cursor, &outcome);
                    return TurnEnd::Outcome { outcome, attempt };
                }
            }
            batch.cursor += 1;
        }
        watch.stop(batch.cursor);
        TurnEnd::Exhausted
    }

    fn work(&mut self, turn: &HandTurn<'_>, handled: &mut usize) -> HandEnd {
        let is_traced = trace::is_wanted();
        let mut watch = Stopwatch::start(turn.clock, turn.times, *handled);
        let mut now = turn.clock.coarse();
        let mut look_at = *handled;
        loop {
            let is_wished = turn.mailbox.has_wishes() || turn.tracker.is_given_up();
            let mut is_shut = false;
            if *handled >= look_at {
                now = turn.clock.coarse();
                watch.look(now, *handled);
                is_shut = !turn.gate.allows(now);
                look_at = *handled + watch.unwatched();
            }
            if is_wished || is_shut {
                watch.stop(*handled);
                turn.seat.finish();
                return if is_wished {
                    HandEnd::Interrupted
                } else {
                    HandEnd::GateShut
                };
            }
            let task = turn.seat.next(now);
            let record = task.and_then(|task| {
                let batch = turn.batches.get(task.batch())?;
                Some((
                    batch.record(task.index(), task.attempt)?,
                    batch,
                    task.index(),
                ))
            });
            let Some((record, batch, index)) = record else {
                watch.stop(*handled);
                return HandEnd::Empty;
            };
            match self.handle(&record, is_traced) {
                Outcome::Done => {
                    *handled += 1;
                    let bytes = batch.bytes_of(index, index + 1);
                    turn.bytes.set(turn.bytes.get() + bytes);
                }
                outcome => {
                    watch.stop_at(*handled, &outcome);
                    *handled += 1;
                    return HandEnd::Outcome(outcome);
                }
            }
        }
    }

    fn handler(&mut self) -> &mut dyn Handler {
        &mut self.0
    }
}

/// Records of a lane that were pulled and wait to fill a batch.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pieces: Vec<Batch>,
    records: usize,
    /// When its first record arrived.
    opened_at: Option<Coarse>,
}

impl Window {
    /// Adds what was pulled. Pieces without records are kept in order: their
    /// gaps are crossed when everything before them is done.
    pub(crate) fn push(&mut self, batch: Batch, now: Coarse) {
        self.records += batch.remaining();
        if self.records > 0 && self.opened_at.is_none() {
            self.opened_at = Some(now);
        }
        self.pieces.push(batch);
    }

    pub(crate) fn records(&self) -> usize {
        self.records
    }

    /// True where a batch should be handed over now.
    pub(crate) fn is_due(&self, limits: BatchLimits, now: Coarse) -> bool {
        self.records >= limits.max_records.max(1)
            || self
                .opened_at
                .is_some_and(|opened| now >= opened.after(limits.max_wait))
    }

    /// When it is due at the latest.
    pub(crate) fn due_at(&self, limits: BatchLimits) -> Option<Coarse> {
        self.opened_at.map(|opened| opened.after(limits.max_wait))
    }

    /// The first `max_records` records.
    pub(crate) fn front(&self, max_records: usize, attempt: u32) -> Records<'_> {
        Records {
            pieces: &self.pieces,
            len: self.records.min(max_records.max(1)),
            attempt,
        }
    }

    /// Offset and timestamp of the first record.
    pub(crate) fn first(&self) -> Option<(i64, i64)> {
        self.pieces
            .iter()
            .find_map(|piece| piece.entries.get(piece.cursor))
            .map(|entry| (entry.offset, entry.timestamp))
    }

    /// Offset of the last of the first `len` records.
    pub(crate) fn last_offset(&self, len: usize) -> Option<i64> {
        let mut left = len;
        for piece in &self.pieces {
            if piece.remaining() >= left {
                return piece
                    .entries
                    .get(piece.cursor + left.checked_sub(1)?)
                    .map(|e| e.offset);
            }
            left -= piece.remaining();
        }
        None
    }

    /// How many bytes the first `len` records take.
    pub(crate) fn bytes(&self, len: usize) -> u64 {
        let mut left = len;
        let mut bytes = 0;
        for piece in &self.pieces {
            let taken = piece.remaining().min(left);
            bytes += piece.bytes_of(piece.cursor, piece.cursor + taken);
            left -= taken;
        }
        bytes
    }

    /// Takes the first `len` records off; gives the offset up to which all is
    /// done, and the pieces that are used up.
    pub(crate) fn complete(&mut self, len: usize, now: Coarse) -> (Option<i64>, Vec<Batch>) {
        let mut left = len;
        let mut done_up_to = None;
        let mut used = 0;
        for piece in &mut self.pieces {
            let taken = piece.remaining().min(left);
            piece.cursor += taken;
            left -= taken;
            if piece.remaining() > 0 {
                if taken > 0 {
                    done_up_to = piece.entries.get(piece.cursor - 1).map(|e| e.offset + 1);
                }
                break;
            }
            done_up_to = Some(piece.next_offset);
            used += 1;
        }
        self.records -= len - left;
        self.opened_at = (self.records > 0).then_some(now);
        (done_up_to, self.pieces.drain(..used).collect())
    }

    /// Drops everything; gives the pieces back.
    pub(crate) fn clear(&mut self) -> Vec<Batch> {
        self.records = 0;
        self.opened_at = None;
        std::mem::take(&mut self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{AssignmentEpoch, Entry};
    use crate::source::memory::{MemoryFactory, MemoryLog, MemoryRecord};
    use crate::source::{Pulled, ReadFrom, SourceFactory as _};
    use crate::trace::tests::Spans;
    use crate::worker::timing::SHORT_CALLS;

    fn batch(offsets: &[i64], next_offset: i64) -> Batch {
        Batch {
            partition: TopicPartition::new("t", 0),
            epoch: AssignmentEpoch(1),
            bytes: Bytes::new(),
            entries: offsets
                .iter()
                .map(|&offset| Entry {
                    offset,
                    key_len: -1,
                    value_len: -1,
                    ..Entry::default()
                })
                .collect(),
            cursor: 0,
            next_offset,
            end_offset: 100,
            log_start: 0,
            fetched_at: Coarse::ZERO,
        }
    }

    struct Bench {
        clock: Clock,
        gate: Gate,
        mailbox: Mailbox,
        tracker: Tracker,
    }

    impl Bench {
        fn new() -> Self {
            let clock = Clock::manual();
            let gate = Gate::new(Duration::from_secs(10), clock.coarse());
            let tracker = Tracker::new(AssignmentEpoch(1));
            tracker.begin(0);
            Self {
                clock,
                gate,
                mailbox: Mailbox::new(),
                tracker,
            }
        }

        fn turn(&self) -> Turn<'_> {
            Turn {
                clock: &self.clock,
                gate: &self.gate,
                mailbox: &self.mailbox,
                tracker: &self.tracker,
                failed: None,
                allowed: usize::MAX,
                ends_at: self.clock.coarse().after(Duration::from_millis(50)),
            }
        }
    }

    #[test]
    fn a_turn_stops_at_the_record_whose_handler_does_not_say_done() {
        let bench = Bench::new();
        let mut batch = batch(&[0, 1, 5], 6);
        let mut engine = RecordLoop(|record: &Record<'_>| {
            if record.offset() == 5 {
                Outcome::retry("no")
            } else {
                Outcome::Done
            }
        });
        let end = engine.turn(
            &mut batch,
            &Turn {
                failed: Some((5, 3)),
                ..bench.turn()
            },
        );
        assert_eq!(
            end,
            TurnEnd::Outcome {
                outcome: Outcome::retry("no"),
                attempt: 1
            }
        );
        assert_eq!(
            (bench.tracker.watermark(), bench.tracker.position()),
            (Some(2), Some(6))
        );
        let end = engine.turn(
            &mut batch,
            &Turn {
                failed: Some((5, 3)),
                ..bench.turn()
            },
        );
        assert_eq!(
            end,
            TurnEnd::Outcome {
                outcome: Outcome::retry("no"),
                attempt: 4
            }
        );
    }

    #[test]
    fn a_turn_looks_up_after_every_record() {
        let bench = Bench::new();
        let mut engine = RecordLoop(|record: &Record<'_>| match record.offset() {
            0 => bench.clock.advance(Duration::from_millis(51)),
            1 => drop(bench.mailbox.release(
                vec![AssignmentEpoch(9)],
                crate::worker::lane::ReleaseCause::Revoked,
            )),
            2 => bench.clock.advance(Duration::from_secs(11)),
            _ => {}
        });
        let mut batch = batch(&[0, 1, 2, 3], 4);
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::TimeIsUp);
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::Interrupted);
        bench.mailbox.take();
        assert_eq!(
            engine.turn(
                &mut batch,
                &Turn {
                    allowed: 0,
                    ..bench.turn()
                }
            ),
            TurnEnd::Allowance
        );
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::GateShut);
        assert_eq!(batch.cursor, 3, "the record after the gap was not started");
        bench.gate.beat(bench.clock.coarse());
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::Exhausted);
    }

    #[test]
    fn among_short_records_wishes_are_seen_after_each_and_the_clock_after_a_few() {
        let many: Vec<i64> = (0..100).collect();
        let bench = Bench::new();
        let mut engine = RecordLoop(|record: &Record<'_>| match record.offset() {
            12 => drop(bench.mailbox.release(
                vec![AssignmentEpoch(9)],
                crate::worker::lane::ReleaseCause::Revoked,
            )),
            37 => bench.clock.advance(Duration::from_secs(11)),
            _ => {}
        });
        let mut batch = batch(&many, 100);
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::Interrupted);
        assert_eq!(batch.cursor, 13, "not one after the wish");
        bench.mailbox.take();
        let allowed = Turn {
            allowed: 11,
            ..bench.turn()
        };
        assert_eq!(engine.turn(&mut batch, &allowed), TurnEnd::Allowance);
        assert_eq!(batch.cursor, 24, "as many as allowed, wherever that is");
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::GateShut);
        assert!(
            (38..38 + SHORT_CALLS).contains(&batch.cursor),
            "{} started after the gap",
            batch.cursor - 38
        );
    }

    #[test]
    fn records_that_take_long_are_looked_up_after_each() {
        let bench = Bench::new();
        let mut engine = RecordLoop(|record: &Record<'_>| {
            bench.clock.advance(match record.offset() {
                9 => Duration::from_secs(11),
                _ => Duration::from_millis(1),
            });
        });
        let mut batch = batch(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 11);
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::GateShut);
        assert_eq!(batch.cursor, 10, "the record after the gap was not started");
    }

    #[test]
    fn a_handler_runs_in_the_span_of_its_record_where_somebody_wants_spans() {
        let log = MemoryLog::new();
        let partition = TopicPartition::new("orders", 3);
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let headers = [("traceparent", traceparent), ("tracestate", "shop=42")];
        log.append(
            &partition,
            MemoryRecord {
                headers: headers.map(|(n, v)| (n.into(), Some(v.into()))).into(),
                ..MemoryRecord::of("traced")
            },
        );
        log.append(&partition, MemoryRecord::of("untraced"));
        let bench = Bench::new();
        let mut source = MemoryFactory::new(log, bench.clock.clone())
            .open(0)
            .expect("it is in memory");
        source.start(ReadFrom {
            partition,
            epoch: AssignmentEpoch(1),
            offset: 0,
            until: None,
            paused: false,
        });
        let Pulled::Batch(mut batch) = source.next(bench.clock.now()) else {
            panic!("there are two records");
        };
        let spans = Spans::default();
        let mut inside = Vec::new();
        let mut engine = RecordLoop(|_: &Record<'_>| inside.push(spans.entered()));
        assert_eq!(engine.turn(&mut batch, &bench.turn()), TurnEnd::Exhausted);
        batch.cursor = 0;
        let end = spans.note(|| engine.turn(&mut batch, &bench.turn()));
        assert_eq!(end, TurnEnd::Exhausted);
        assert_eq!(inside, [0, 0, 1, 1], "none before anybody wanted one");
        assert_eq!(spans.entered(), 0);
        let begins = "handle otel.kind=\"consumer\" otel.name=process orders topic=\"orders\" \
                      partition=3";
        assert_eq!(
            spans.made(),
            [
                format!(
                    "{begins} offset=0 attempt=1 trace_id=\"{}\" parent_id=\"{}\" \
                     trace_flags=1 tracestate=\"shop=42\"",
                    &traceparent[3..35],
                    &traceparent[36..52]
                ),
                format!("{begins} offset=1 attempt=1"),
            ]
        );
    }

    #[test]
    fn a_window_is_due_when_it_is_full_or_old_and_never_when_it_is_empty() {
        let limits = BatchLimits {
            max_records: 3,
            max_wait: Duration::from_millis(10),
        };
        let now = Coarse::from_millis(100);
        let mut window = Window::default();
        window.push(batch(&[], 1), now);
        assert!(!window.is_due(limits, now.after(Duration::from_secs(1))));
        window.push(batch(&[1, 2], 3), now);
        assert!(!window.is_due(limits, now));
        assert!(window.is_due(limits, now.after(Duration::from_millis(10))));
        window.push(batch(&[3, 4], 9), now);
        assert!(window.is_due(limits, now));
        let records = window.front(3, 1);
        assert_eq!(
            records.iter().map(|r| r.offset()).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(
            (window.first(), window.last_offset(3)),
            (Some((1, 0)), Some(3))
        );
        assert_eq!(window.complete(3, now).0, Some(4));
        assert_eq!(window.records(), 1);
        assert_eq!(
            window.complete(1, now).0,
            Some(9),
            "the gap after the last record is crossed"
        );
        assert!(!window.is_due(limits, now.after(Duration::from_secs(1))));
    }
}
