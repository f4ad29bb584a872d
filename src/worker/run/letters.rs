//! A worker's part in writing dead letters: what is sent when, and what follows
//! from what became of it.

use super::{Lane, Span, UNTIL_TOLD, Worker, WorkerExit};
use crate::event::EventKind;
use crate::record::{AssignmentEpoch, Batch, TopicPartition};
use crate::worker::dead_letter::{Dead, Next, Sent, refused, unwritten};
use crate::worker::lane::Failed;

impl Worker {
    /// Has records written to the dead-letter topic, one after the other: they
    /// come from the source again, and go there instead of to the handler.
    pub(super) fn dead_letter(
        &mut self,
        epoch: AssignmentEpoch,
        span: Span,
        attempts: u32,
        error: String,
    ) -> Option<WorkerExit> {
        let lane = self.lanes.get_mut(&epoch)?;
        let offset = span.first;
        let letters = self.context.dead_letters.as_deref();
        let no_way = refused(letters, &lane.start.partition);
        if let Some(no_way) = no_way {
            return self.exhausted(epoch, offset, attempts, format!("{error}; {no_way}"));
        }
        lane.start.tracker.begins_to_wait();
        lane.failed = Some(Failed {
            offset,
            attempts,
            not_before: None,
            dead: Some(Dead::new(span.last, error)),
        });
        self.source.rewind(epoch, offset, None);
        None
    }

    /// Sends the record at the batch's cursor, whose lane waits from then on. A
    /// batch without records tells that what failed is not there any more.
    pub(super) fn write_dead_letter(&mut self, batch: Batch) {
        let now = self.context.clock.now();
        let epoch = batch.epoch;
        let (Some(lane), Some(letters)) = (self.lanes.get_mut(&epoch), &self.context.dead_letters)
        else {
            return self.source.recycle(batch);
        };
        // Never of a partition that is somebody else's by now.
        let is_held_back = !self.context.gate.allows(self.context.clock.coarse());
        if is_held_back || self.context.mailbox.has_wishes() {
            self.source.put_back(batch);
            if is_held_back {
                Self::hold_back();
            }
            return;
        }
        let attempts = lane.failed.as_ref().map_or(1, |failed| failed.attempts);
        let Some(record) = batch.record(batch.cursor, attempts) else {
            lane.start.tracker.crossed(batch.next_offset);
            return self.source.recycle(batch);
        };
        let offset = record.offset();
        if let Some(failed) = &mut lane.failed
            && let Some(dead) = &mut failed.dead
        {
            dead.send(record, letters.as_ref(), self.source.waker());
            failed.offset = offset;
            self.writing.push(epoch);
        }
        self.source.put_back(batch);
        self.source.rewind(epoch, offset, Some(now + UNTIL_TOLD));
    }

    /// Takes over what became of dead letters that were under way.
    pub(super) fn take_deliveries(&mut self) -> Option<WorkerExit> {
        let told: Vec<(AssignmentEpoch, Sent)> = self
            .writing
            .iter()
            .filter_map(|&epoch| Some((epoch, self.lanes.get(&epoch)?.delivery()?.look()?)))
            .collect();
        told.into_iter().find_map(|(epoch, sent)| {
            self.writing.retain(|&other| other != epoch);
            self.letter_sent(epoch, &sent)
        })
    }

    fn letter_sent(&mut self, epoch: AssignmentEpoch, sent: &Sent) -> Option<WorkerExit> {
        let now = self.context.clock.now();
        let lane = self.lanes.get_mut(&epoch)?;
        let partition = lane.start.partition.clone();
        let failed = lane.failed.as_mut()?;
        let dead = failed.dead.as_mut()?;
        let (offset, attempts) = (failed.offset, failed.attempts);
        let next = dead.sent(sent, &self.context.retry, now, self.random.f64());
        let error = dead.error.clone();
        match next {
            Next::Completed => {
                if offset >= dead.through {
                    lane.recovers();
                } else {
                    failed.offset = offset + 1;
                    failed.not_before = None;
                }
                lane.start.tracker.dead_lettered();
                self.completed(epoch, Span::one(offset));
                self.source.rewind(epoch, offset + 1, None);
                self.event(EventKind::RecordDeadLettered {
                    partition,
                    offset,
                    attempt: attempts,
                    error,
                });
                None
            }
            Next::Again { not_before } => {
                failed.not_before = not_before;
                self.source.rewind(epoch, offset, not_before);
                if not_before.is_some() {
                    let unwritten = self.unwritten(&partition, offset, sent);
                    self.context.events.warn(format!(
                        "{unwritten}; it is tried again, and its partition waits"
                    ));
                }
                None
            }
            Next::GiveUp => {
                let unwritten = self.unwritten(&partition, offset, sent);
                self.exhausted(epoch, offset, attempts, format!("{error}; {unwritten}"))
            }
        }
    }

    fn unwritten(&self, partition: &TopicPartition, offset: i64, sent: &Sent) -> String {
        let letters = self.context.dead_letters.as_deref();
        unwritten(letters, partition, offset, sent)
    }

    /// Before lanes are given back in order: their letters are on their way, and
    /// whoever has the lane next would write them again.
    pub(super) fn await_deliveries(&mut self, epochs: &[AssignmentEpoch]) {
        let Some(letters) = self.context.dead_letters.clone() else {
            return;
        };
        let deadline = self.context.clock.now() + letters.patience();
        let mut is_one_unknown = false;
        for &epoch in epochs {
            let Some(delivery) = self.lanes.get(&epoch).and_then(Lane::delivery).cloned() else {
                continue;
            };
            delivery.wait(deadline.saturating_duration_since(self.context.clock.now()));
            match delivery.look() {
                Some(Sent::Written) => {
                    // What is to be written after it is the next owner's.
                    let _ = self.letter_sent(epoch, &Sent::Written);
                }
                Some(_) => {}
                None => is_one_unknown = true,
            }
        }
        if is_one_unknown {
            letters.recall();
        }
    }

    /// Lanes are somebody else's already: nothing more of them goes out.
    pub(super) fn recall_deliveries(&self, epochs: &[AssignmentEpoch]) {
        if let Some(letters) = &self.context.dead_letters
            && self.writing.iter().any(|epoch| epochs.contains(epoch))
        {
            letters.recall();
        }
    }
}
