//! A worker's part in handing over batches: when a window is due, and what
//! follows from what its handler said.
//!
//! A handler of batches can say of one record what became of it: what is before
//! it is completed, the policy decides on that record alone, and the rest comes
//! again in order. So one bad record does not have a whole batch done twice.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Lane, Span, TURN, Worker, WorkerExit, note_consumed, panic_message};
use crate::clock::Coarse;
use crate::event::EventKind;
use crate::handler::{BatchParts, Outcome};
use crate::record::{AssignmentEpoch, Batch};
use crate::trace;
use crate::worker::engine::{BatchLimits, Engine};

impl Worker {
    pub(super) fn cross_empty_window(&mut self, epoch: AssignmentEpoch) {
        let Some(lane) = self.lanes.get_mut(&epoch) else {
            return;
        };
        for piece in lane.window.clear() {
            lane.start.tracker.crossed(piece.next_offset);
            self.source.recycle(piece);
        }
    }

    /// Hands over the windows whose time has come, and one more where the
    /// source cannot read on because windows hold its memory.
    pub(super) fn due_windows(&mut self) -> Option<WorkerExit> {
        let limits = self.context.engines.batch_limits()?;
        let now = self.context.clock.coarse();
        let mut due: Vec<AssignmentEpoch> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.window.is_due(limits, now))
            .map(|(epoch, _)| *epoch)
            .collect();
        if due.is_empty() && self.source.is_starved() {
            due.extend(
                self.lanes
                    .iter()
                    .filter(|(_, lane)| lane.window.records() > 0)
                    .max_by_key(|(_, lane)| lane.window.records())
                    .map(|(epoch, _)| *epoch),
            );
            return due
                .first()
                .and_then(|&epoch| self.hand_over_window(epoch, limits).break_value().flatten());
        }
        due.into_iter()
            .find_map(|epoch| self.batch_turn(epoch, limits))
    }

    /// One turn of a lane in batches.
    pub(super) fn batch_turn(
        &mut self,
        epoch: AssignmentEpoch,
        limits: BatchLimits,
    ) -> Option<WorkerExit> {
        let ends_at = self.context.clock.coarse().after(TURN);
        loop {
            let now = self.context.clock.coarse();
            let lane = self.lanes.get(&epoch)?;
            if !lane.window.is_due(limits, now)
                || now > ends_at
                || self.context.mailbox.has_wishes()
            {
                return None;
            }
            if let ControlFlow::Break(exit) = self.hand_over_window(epoch, limits) {
                return exit;
            }
        }
    }

    /// Hands over the first records of a lane's window, if they may be, and does
    /// what follows. Goes on while nothing stands in the way of the next ones.
    fn hand_over_window(
        &mut self,
        epoch: AssignmentEpoch,
        limits: BatchLimits,
    ) -> ControlFlow<Option<WorkerExit>> {
        if !self.context.gate.allows(self.context.clock.coarse()) {
            Self::hold_back();
            return ControlFlow::Break(None);
        }
        let Engine::PerBatch(handler) = &mut self.engine else {
            return ControlFlow::Break(None);
        };
        let Some(lane) = self.lanes.get_mut(&epoch) else {
            return ControlFlow::Break(None);
        };
        let wanted = lane.window.records().min(limits.max_records.max(1));
        let allowed = self
            .context
            .count
            .as_ref()
            .map_or(wanted, |count| count.take(wanted));
        let (Some((first, timestamp)), Some(last)) =
            (lane.window.first(), lane.window.last_offset(allowed))
        else {
            // Nothing is allowed any more: the count is reached.
            Self::hold_back();
            return ControlFlow::Break(None);
        };
        let attempt = match &lane.failed {
            Some(failed) if failed.offset == first => failed.attempts.saturating_add(1),
            _ => 1,
        };
        lane.start.tracker.turn_begins();
        lane.start
            .tracker
            .batch_handed_over(allowed, timestamp, last);
        let records = lane.window.front(allowed, attempt);
        let span = trace::is_wanted().then(|| trace::span_of_batch(&records));
        let entered = span.flatten().map(tracing::Span::entered);
        let began = self.context.clock.now();
        let said = catch_unwind(AssertUnwindSafe(|| handler.handle(&records)))
            .map_err(|panic| panic_message(panic.as_ref()));
        drop(entered);
        lane.start.tracker.batch_returned();
        let took = self.context.clock.now() - began;
        let exit = match said {
            Ok(said) => {
                let parts = said.parts(allowed);
                let times = &lane.start.tracker.times;
                match &parts.outcome {
                    Outcome::Done => times.done.add(1, took),
                    Outcome::Skip { .. } => times.skipped.add(1, took),
                    Outcome::Retry { .. } | Outcome::Reject { .. } => times.retried.add(1, took),
                    Outcome::DeadLetter { .. } => times.dead_lettered.add(1, took),
                    Outcome::Stop { .. } => {}
                }
                self.after_batch(epoch, allowed, attempt, parts)
            }
            Err(message) => {
                let span = self.window_fails(epoch, allowed, allowed);
                span.map(|span| self.panicked(epoch, span, message))
            }
        };
        match exit {
            None => ControlFlow::Continue(()),
            exit => ControlFlow::Break(exit),
        }
    }

    /// Does with the first `allowed` records of a lane's window what their
    /// handler said of them.
    fn after_batch(
        &mut self,
        epoch: AssignmentEpoch,
        allowed: usize,
        attempt: u32,
        parts: BatchParts,
    ) -> Option<WorkerExit> {
        let BatchParts {
            done,
            concerned,
            outcome,
        } = parts;
        // Attempts are those of the record that failed before, which was first.
        let attempt = if done == 0 { attempt } else { 1 };
        let now = self.context.clock.coarse();
        let lane = self.lanes.get_mut(&epoch)?;
        let (mut bytes, mut used) = lane.complete(done, now);
        if !matches!(outcome, Outcome::Done | Outcome::Skip { .. }) {
            lane.start.tracker.turn_ends(bytes);
            self.recycle_all(used);
            let span = self.window_fails(epoch, allowed - done, concerned)?;
            return self.failed(epoch, span, attempt, outcome);
        }
        let first = lane.window.first().map(|(offset, _)| offset);
        if concerned > 0 {
            let (more_bytes, more_used) = lane.complete(concerned, now);
            bytes += more_bytes;
            used.extend(more_used);
            lane.start.tracker.skipped(concerned as u64);
        }
        lane.start.tracker.turn_ends(bytes);
        let partition = lane.start.partition.clone();
        self.recycle_all(used);
        self.give_back_count(allowed - done - concerned);
        if let (Outcome::Skip { reason }, Some(offset)) = (outcome, first) {
            self.event(EventKind::RecordSkipped {
                partition,
                offset,
                attempt,
                error: reason,
            });
        }
        None
    }

    /// Of a lane's window, `open` records were handed over and are not done, and
    /// the first `concerned` of those failed. All of the window comes again.
    fn window_fails(
        &mut self,
        epoch: AssignmentEpoch,
        open: usize,
        concerned: usize,
    ) -> Option<Span> {
        self.give_back_count(open);
        let lane = self.lanes.get_mut(&epoch)?;
        let span = Span {
            first: lane.window.first()?.0,
            last: lane.window.last_offset(concerned)?,
            records: concerned as u64,
        };
        for piece in lane.window.clear() {
            self.source.put_back(piece);
        }
        Some(span)
    }

    fn give_back_count(&self, records: usize) {
        if let Some(count) = &self.context.count {
            count.give_back(records);
        }
    }

    fn recycle_all(&mut self, pieces: Vec<Batch>) {
        for piece in pieces {
            self.source.recycle(piece);
        }
    }
}

impl Lane {
    /// The first `records` of the window are completed: how many bytes these
    /// are, and the pieces that are used up.
    fn complete(&mut self, records: usize, now: Coarse) -> (u64, Vec<Batch>) {
        let (Some((first, _)), Some(last)) =
            (self.window.first(), self.window.last_offset(records))
        else {
            return (0, Vec::new());
        };
        let bytes = self.window.bytes(records);
        let (done_up_to, used) = self.window.complete(records, now);
        self.start.tracker.batch_completed(records as u64, last);
        if let Some(next) = done_up_to {
            self.start.tracker.crossed(next);
        }
        self.failed = None;
        note_consumed(self, records as u64, first, last);
        (bytes, used)
    }
}
