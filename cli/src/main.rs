//! The keepup command: try, operate and measure parallel Kafka consumers.
//!
//! A command line goes through two stages: what was typed (`args.rs`, with
//! `file.rs` for what was written down) and what will be done (`plan.rs`, which
//! tells every problem at once). Each command carries its plan out in a file of
//! its own; how it ends becomes an exit code in `exit.rs`.

mod args;
mod check;
mod demo;
mod events;
mod exec;
mod exit;
mod file;
mod lines;
mod log;
mod output;
mod pages;
mod perf;
mod plan;
mod problem;
mod report;
mod run;
mod time;
mod values;

use std::process::ExitCode;
use std::time::Instant;

use args::{Cli, Command};
use exit::{Ending, Failure};

fn main() -> ExitCode {
    let started = time::now();
    let result = args::parse(std::env::args_os())
        .map_err(Failure::Usage)
        .and_then(|cli| carry_out(cli, started));
    exit::conclude(&result)
}

fn carry_out(cli: Cli, started: Instant) -> Result<Ending, Failure> {
    let file = match plan::read_file(&cli.cluster) {
        Ok(file) => file,
        Err(problems) if matches!(cli.command, Command::Check(_)) => {
            return check::check(Err(problems), plan::output(&cli.output)?);
        }
        Err(problems) => return Err(problems.into()),
    };
    let how = plan::output(&cli.output.or(file.output))?;
    log::start(how, &cli.command);
    let cluster = cli.cluster.or(file.cluster);
    match cli.command {
        Command::Run(args) => run::run(&plan::run(&cluster, &args.or(file.run))?, how),
        Command::Check(args) => check::check(plan::run(&cluster, &args.or(file.run)), how),
        Command::Perf(args) => perf::perf(&plan::perf(&cluster, &args.or(file.run))?, how, started),
        Command::Demo(args) => demo::demo(&plan::demo(&cluster, &args)?, how),
    }
}
