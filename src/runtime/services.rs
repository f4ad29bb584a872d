//! What goes on beside the run and must not hold it up: the reporter, and what
//! shows its snapshots. They outlive the member's thread, so that a run that
//! ended without a word is still told of, and end with the handle.

use std::io;

use crate::config::Settings;
use crate::kafka::connection::StopFlag;
use crate::lag::reporter::{ReporterParts, ReporterThread};

/// The threads beside the run.
#[derive(Debug)]
pub(crate) struct Services {
    reporter: ReporterThread,
    stop_asking: StopFlag,
}

impl Services {
    /// `stop_asking` interrupts the questions of the reporter.
    pub(crate) fn start(
        _settings: &Settings,
        reporter: ReporterParts,
        stop_asking: StopFlag,
    ) -> io::Result<Self> {
        Ok(Self {
            reporter: ReporterThread::start(reporter)?,
            stop_asking,
        })
    }

    /// Ends and joins them.
    pub(crate) fn stop(&mut self) {
        self.stop_asking.stop();
        self.reporter.stop();
    }
}
