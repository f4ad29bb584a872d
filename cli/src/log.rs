//! The log: on stderr, so that stdout carries results only.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::args::Command;
use crate::output::Stderr;
use crate::plan::OutputPlan;

/// Where the library says at which address a run listens. Shown without -v:
/// with port 0 there is no other way to learn the port.
const ADDRESS: &str = "keepup::listen";

/// Begins to write the log of this process. The demo tells the address itself.
pub(crate) fn start(plan: OutputPlan, command: &Command) {
    let level = match (plan.quiet, plan.verbose) {
        (true, _) => LevelFilter::ERROR,
        // It tells by itself what it broke, and what was said of it.
        (false, 0) if matches!(command, Command::Demo(demo) if demo.chaos) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let address = match command {
        Command::Run(_) if !plan.quiet => level.max(LevelFilter::INFO),
        _ => level,
    };
    let shown = Targets::new()
        .with_default(level)
        .with_target(ADDRESS, address);
    let log = fmt::layer().with_ansi(colour).with_writer(|| Stderr);
    let log = if plan.log_json {
        log.json().with_filter(shown).boxed()
    } else {
        log.with_filter(shown).boxed()
    };
    // A second subscriber cannot exist: this is called once, by main.
    let _ = tracing_subscriber::registry().with(log).try_init();
}
