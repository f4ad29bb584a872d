//! The demo's handler: ticks records off and takes its time.
//!
//! Each record keeps its worker busy for a while, so that a wave of records is
//! more than the workers manage and lag builds up. Sleeping a quarter of a
//! millisecond takes longer than asked and a different time on every machine;
//! so the handler keeps account of how long it should have been busy and sleeps
//! when it is a few milliseconds behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keepup::{Handler, Outcome, Record};

use super::tally::{Payload, Tally};
use crate::time;

/// How much work is put off until it is worth a sleep.
const PUT_OFF: Duration = Duration::from_millis(4);

/// Handles the records of one worker.
pub(super) struct SlowHandler {
    tally: Arc<Tally>,
    /// How long a record keeps a worker busy.
    cost: Duration,
    busy_until: Instant,
}

impl SlowHandler {
    pub(super) fn new(tally: Arc<Tally>, cost: Duration) -> Self {
        Self {
            tally,
            cost,
            busy_until: time::now(),
        }
    }
}

impl Handler for SlowHandler {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        let payload = record.value().and_then(Payload::from_bytes);
        let ticked = payload.is_some_and(|payload| {
            payload.partition.cast_signed() == record.partition() && self.tally.tick(payload)
        });
        if !ticked {
            return Outcome::stop("a record that the demo did not produce");
        }
        let now = time::now();
        self.busy_until = self.busy_until.max(now) + self.cost;
        let behind = self.busy_until.saturating_duration_since(now);
        if behind >= PUT_OFF {
            time::sleep_in_handler(behind);
        }
        Outcome::Done
    }
}
