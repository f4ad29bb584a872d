//! The log: on stderr, so that stdout carries results only.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::output::Stderr;
use crate::plan::OutputPlan;

/// Begins to write the log of this process.
pub(crate) fn start(plan: OutputPlan) {
    let level = match (plan.quiet, plan.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = fmt()
        .with_max_level(level)
        .with_ansi(colour)
        .with_writer(|| Stderr);
    // A second subscriber cannot exist: this is called once, by main.
    let _ = if plan.log_json {
        log.json().try_init()
    } else {
        log.try_init()
    };
}
