//! The threads of a process, from start to report.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | `keepup-member` | the group: joins, answers, commits, decides | last; the report is its result |
//! | `keepup-child-N` | stands in for a worker that is a process (model B) | as a worker |
//! | `keepup-worker-N` | pulls and handles records | joined when it reported its exit; abandoned at the stop deadline |
//! | `keepup-reporter` | looks at every partition once a second | joined with the handle, after the member |
//! | `keepup-http` | answers `/metrics` and its like, with `listen` | as the reporter |
//! | `keepup-lookup` | asks the cluster where to begin and who leads | stopped and joined by the member's thread |
//! | `keepup-events` | runs the observer, if there is one | stopped and joined after the member |
//! | `keepup-signals` | counts signals, in `run()` only | joined by `run()` |

mod handle;
mod services;
mod signals;

pub(crate) mod events;
pub(crate) mod restart;
pub(crate) mod rolling;
pub(crate) mod shared;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod threads;

pub use handle::{Handle, LagUpdates, PartitionView};

use std::time::Duration;

use crate::config::Builder;
use crate::error::Error;
use crate::lag::snapshot::Advice;
use crate::process::{child, is_worker_process};
use crate::report::{Report, StopReason};
use crate::worker::engine::EngineFactory;

/// Runs until something stops it; signals included.
pub(crate) fn run(builder: Builder, engines: EngineFactory) -> Result<Report, Error> {
    if is_worker_process() {
        child::run(builder, engines);
    }
    let signals = signals::Signals::install().map_err(|source| Error::System {
        what: "install signal handlers",
        source,
    })?;
    match start::start(builder, engines, &signals.stop_asked()) {
        Ok(Some(handle)) => {
            signals.watch(handle.stopper());
            let report = handle.wait();
            signals.remove();
            Ok(report)
        }
        Ok(None) => {
            signals.remove();
            Ok(stopped_before_contact())
        }
        Err(error) => {
            signals.remove();
            Err(error)
        }
    }
}

/// Starts a run and gives its handle.
pub(crate) fn start(builder: Builder, engines: EngineFactory) -> Result<Handle, Error> {
    if is_worker_process() {
        child::run(builder, engines);
    }
    let never = crate::kafka::connection::StopFlag::default();
    start::start(builder, engines, &never)?.ok_or_else(|| Error::Client {
        message: "the start was stopped, though nobody could stop it".into(),
    })
}

/// A signal came while the first contact was sought: nothing was begun, so
/// everything asked for was done.
fn stopped_before_contact() -> Report {
    Report {
        reason: StopReason::Signal,
        workers: Vec::new(),
        records: 0,
        left_uncommitted: 0,
        abandoned: Vec::new(),
        left_group: true,
        stop_took: Duration::ZERO,
        advice: Advice::default(),
    }
}
