//! The threads of a process, from start to report.

pub(crate) mod events;
mod handle;
pub(crate) mod restart;
pub(crate) mod stop;
pub(crate) mod threads;

pub use handle::{Handle, PartitionView};

use crate::config::Builder;
use crate::error::Error;
use crate::report::Report;
use crate::worker::engine::EngineFactory;

/// Runs until something stops it; signals included.
pub(crate) fn run(builder: Builder, engines: EngineFactory) -> Result<Report, Error> {
    let handle = start(builder, engines)?;
    Ok(handle.wait())
}

/// Starts a run and gives its handle.
pub(crate) fn start(builder: Builder, engines: EngineFactory) -> Result<Handle, Error> {
    let problems = builder.settings.problems();
    if !problems.is_empty() {
        return Err(Error::InvalidSettings(problems));
    }
    drop(engines);
    Err(Error::Client {
        message: "not wired yet".into(),
    })
}
