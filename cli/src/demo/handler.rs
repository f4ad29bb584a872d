//! The demo's handler: ticks records off and takes its time.
//!
//! Each record keeps its worker busy for a while, so that a wave of records is
//! more than the workers manage and lag builds up. Sleeping a quarter of a
//! millisecond takes longer than asked and a different time on every machine;
//! so the handler keeps account of how long it should have been busy and sleeps
//! when it is a few milliseconds behind.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keepup::{Handler, Outcome, Record};

use super::chaos::{Trap, Traps};
use super::ledger::Page;
use super::tally::{Payload, Tally};
use crate::time;

/// How much work is put off until it is worth a sleep.
const PUT_OFF: Duration = Duration::from_millis(4);

/// Where records are ticked off.
pub(super) enum Book {
    /// In this process.
    Tally(Arc<Tally>),
    /// In a file, for the process that started this one.
    Page(Page),
}

impl Book {
    fn tick(&mut self, payload: Payload) -> bool {
        match self {
            Self::Tally(tally) => tally.tick(payload),
            Self::Page(page) => page.tick(payload),
        }
    }
}

/// Handles the records of one worker.
pub(super) struct SlowHandler {
    book: Book,
    /// How long a record keeps a worker busy.
    cost: Duration,
    busy_until: Instant,
    /// What breaks it, where things are broken on purpose.
    traps: Option<Arc<Traps>>,
}

impl SlowHandler {
    pub(super) fn new(book: Book, cost: Duration, traps: Option<Arc<Traps>>) -> Self {
        Self {
            book,
            cost,
            busy_until: time::now(),
            traps,
        }
    }
}

impl Handler for SlowHandler {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        // Before the record is ticked off: what fails here was not handled.
        let traps = self.traps.as_deref();
        match traps.and_then(|traps| traps.spring(record.partition())) {
            None => {}
            // Nothing of it goes to the screen, as it would by the macro.
            Some(Trap::Panic) => resume_unwind(Box::new("chaos".to_owned())),
            Some(Trap::Fail) => return Outcome::retry("chaos"),
            Some(Trap::Hang(time)) => time::sleep_in_handler(time),
        }
        let payload = record.value().and_then(Payload::from_bytes);
        let ticked = payload.is_some_and(|payload| {
            payload.partition.cast_signed() == record.partition() && self.book.tick(payload)
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
