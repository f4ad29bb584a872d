//! What was typed: the command line as clap sees it.
//!
//! Values stay text here. The command line and the configuration file say the
//! same things, and everything that is wrong with either is to be told at once,
//! so both are read into these structs first and checked together afterwards,
//! in `plan.rs`. A field that is `None`, empty or false was not given.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::parser::ValueSource;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "keepup",
    about = "Parallel Kafka consumers that know whether they keep up",
    version = VERSION.as_str(),
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        keepup demo\n  \
        keepup run -b localhost:9092 -t orders -g billing --handler print\n  \
        keepup COMMAND --help\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 stopped with work left uncommitted, 4 no contact"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try it with nothing installed: a cluster, a load and a group in this process
    #[command(after_help = "\
        The records carry sequence numbers; the summary at the end counts what was lost or\n\
        handled twice by them. Ends with 1 if anything was lost.\n\n\
        Examples:\n  \
        keepup demo\n  \
        keepup demo --workers 2 --seconds 40     two workers for six partitions fall behind\n  \
        keepup demo --chaos                      lag rises with every fault, and falls again\n  \
        keepup demo --json")]
    Demo(DemoArgs),
    /// Run a consumer group with a built-in handler
    #[command(after_help = "\
        Examples:\n  \
        keepup run -b localhost:9092 -t orders -g billing --handler print\n  \
        keepup run -t '^logs-.*' -g audit --workers auto:8 --events json\n  \
        keepup run -t orders -g replay --from 2026-01-31T12:00:00Z --until-end\n  \
        keepup run --config billing.toml --drain 10s")]
    Run(RunArgs),
    /// Measure a run and print one line of JSON
    #[command(after_help = "\
        The handler adds up payload lengths and xors the first eight bytes. Of a configuration\n\
        file, perf reads topic, group, workers, source, count and what concerns the cluster.\n\n\
        Example:\n  \
        keepup perf -b localhost:9092 -t load -g perf-1 --workers 2 --count 8000000")]
    Perf(PerfArgs),
    /// Validate a configuration without contacting anything
    #[command(after_help = "\
        Takes the options of run. Prints every problem and ends with 2, or prints the settings\n\
        that would be in force, as a configuration file with secrets hidden.\n\n\
        Examples:\n  \
        keepup check --config billing.toml\n  \
        keepup check --config billing.toml --workers 4 --json")]
    Check(RunArgs),
}

/// The cluster, and how to speak to it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Brokers to ask first
    #[arg(
        short,
        long,
        global = true,
        value_name = "HOST:PORT[,…]",
        env = "KEEPUP_BOOTSTRAP",
        hide_env_values = true
    )]
    pub(crate) bootstrap: Option<String>,

    /// A librdkafka property (repeatable)
    #[arg(short = 'X', long, global = true, value_name = "KEY=VALUE")]
    pub(crate) property: Vec<String>,

    /// TOML file; its keys are the long options of run
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Longest wait for the first contact [default: 10s]
    #[arg(long, global = true, value_name = "DUR")]
    pub(crate) timeout: Option<String>,
}

/// What is shown, and how.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Errors only on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// More log on stderr: -v info, -vv debug
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// How the log is written: text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log: Option<String>,
}

/// The options of `run` and `check`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RunArgs {
    /// Topic to read, or ^regex (repeatable)
    #[arg(short, long)]
    pub(crate) topic: Vec<String>,

    /// Consumer group
    #[arg(short, long)]
    pub(crate) group: Option<String>,

    /// A number, auto (one per partition, up to 64) or auto:MAX [default: auto]
    #[arg(long)]
    pub(crate) workers: Option<String>,

    /// What workers are: threads of this process, or processes, each this program again
    /// [default: threads]
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// What records are read through: fetch (own connections) or client (librdkafka)
    /// [default: fetch, or client where the security that is asked for needs it]
    #[arg(long, value_name = "SOURCE")]
    pub(crate) source: Option<String>,

    /// Which records wait for one another: those of a partition, those with the same key, or none
    /// (unordered) [default: partition]
    #[arg(long, value_name = "ORDER")]
    pub(crate) order: Option<String>,

    /// discard, print, sleep=DUR, or exec=COMMAND: a child per worker that takes a record as a
    /// line of JSON and answers done, retry, dead-letter, skip or stop [default: discard]
    #[arg(long)]
    pub(crate) handler: Option<String>,

    /// How often a failing record is tried in all [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) retry_attempts: Option<String>,

    /// Wait before the second time; doubles up to 30s [default: 100ms]
    #[arg(long, value_name = "DUR")]
    pub(crate) retry_backoff: Option<String>,

    /// Topic for records that failed that often, or that the handler gives up
    #[arg(long, value_name = "TOPIC")]
    pub(crate) dead_letter: Option<String>,

    /// What becomes of records that failed that often: stop (the run), dead-letter or skip
    /// [default: dead-letter where there is a topic for it, else stop]
    #[arg(long, value_name = "POLICY")]
    pub(crate) on_exhausted: Option<String>,

    /// With --order key or unordered: note what is done beyond the committed offset in the
    /// commit's metadata, so that a crash repeats only what was not done
    #[arg(long)]
    pub(crate) remember_completed: bool,

    /// Without the group protocol: take partitions p where p mod N = I
    #[arg(long, value_name = "static")]
    pub(crate) assign: Option<String>,

    /// With --assign static: the number of this process, from 0
    #[arg(long, value_name = "I")]
    pub(crate) index: Option<String>,

    /// With --assign static: how many processes there are
    #[arg(long, value_name = "N")]
    pub(crate) of: Option<String>,

    /// Start where nothing is committed: earliest, latest, a time (RFC 3339, or ms since
    /// 1970) or so long ago (2h) [default: earliest]
    #[arg(long, value_name = "WHERE")]
    pub(crate) from: Option<String>,

    /// Where to go on where an offset is out of the range that the broker has: earliest, latest,
    /// or stop, which ends the run [default: earliest]
    #[arg(long, value_name = "POLICY")]
    pub(crate) on_out_of_range: Option<String>,

    /// Stop after that many records, over all workers
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<String>,

    /// Stop at the end offsets of the moment of assignment
    #[arg(long)]
    pub(crate) until_end: bool,

    /// How long a stop waits for the records in hand [default: 25s]
    #[arg(long, value_name = "DUR")]
    pub(crate) drain: Option<String>,

    /// Serve /metrics, /lag, /health/live, /health/ready and a page there, to whoever reaches
    /// it; a PORT alone is on 127.0.0.1 [default: off]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,

    /// How long a handler may be at one record before /health/live fails [default: 5m]
    #[arg(long, value_name = "DUR")]
    pub(crate) stuck_after: Option<String>,

    /// A label on every metric (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,

    /// Print what happens on stdout, one JSON object per line
    #[arg(long, value_name = "json")]
    pub(crate) events: Option<String>,

    /// With --events: every record too, after it was handled
    #[arg(long)]
    pub(crate) records: bool,
}

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PerfArgs {
    /// Topic to read (repeatable)
    #[arg(short, long)]
    pub(crate) topic: Vec<String>,

    /// Consumer group
    #[arg(short, long)]
    pub(crate) group: Option<String>,

    /// Number of workers [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<String>,

    /// What workers are: threads or processes [default: threads]
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// What records are read through: fetch or client
    #[arg(long, value_name = "SOURCE")]
    pub(crate) source: Option<String>,

    /// Which records wait for one another: partition, key or unordered [default: partition]
    #[arg(long, value_name = "ORDER")]
    pub(crate) order: Option<String>,

    /// Stop after that many records [default: at the end of the topic]
    #[arg(long, value_name = "C")]
    pub(crate) count: Option<String>,

    /// Sleep that long in the handler, for every record
    #[arg(long, value_name = "DUR")]
    pub(crate) sleep: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// What workers are: threads of this process, or processes, each this program again
    /// [default: threads]
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// A number, auto (one per partition, up to 64) or auto:MAX
    #[arg(long, default_value = "auto")]
    pub(crate) workers: String,

    /// Partitions of the topic
    #[arg(long, value_name = "N", default_value = "6")]
    pub(crate) partitions: String,

    /// Records per second, on average: they come in waves
    #[arg(long, value_name = "N", default_value = "20000")]
    pub(crate) rate: String,

    /// How long the load lasts
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) seconds: String,

    /// Where the page, /metrics and /lag are served, or off; a PORT alone is on 127.0.0.1
    /// [default: 127.0.0.1:9464, or a free port where that is taken]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,

    /// Break things while it runs: handlers panic, fail and hang (with --model processes: workers
    /// are killed and stopped), partitions are paused, workers and a second member come and go,
    /// the broker is away
    #[arg(long)]
    pub(crate) chaos: bool,

    /// What is broken when: the same number breaks the same again [default: by chance]
    #[arg(long, value_name = "N", requires = "chaos")]
    pub(crate) seed: Option<String>,
}

static VERSION: LazyLock<String> = LazyLock::new(|| keepup::build_info().to_string());

/// Reads a command line, the program's name included.
///
/// # Errors
///
/// What clap has to say: wrong usage, or the help or version that was asked
/// for.
pub(crate) fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(line)?;
    if let Some(demo) = matches.subcommand_matches("demo") {
        for (id, option) in NOT_FOR_DEMO {
            if demo.value_source(id) == Some(ValueSource::CommandLine) {
                return Err(command.error(
                    clap::error::ErrorKind::ArgumentConflict,
                    format!(
                        "the demo brings its own cluster and settings: leave out {option}, or use \
                         'keepup run' for a cluster of yours"
                    ),
                ));
            }
        }
    }
    Cli::from_arg_matches(&matches)
}

const NOT_FOR_DEMO: [(&str, &str); 2] = [("bootstrap", "--bootstrap"), ("config", "--config")];

/// The command, with a demo that takes and hides what [`parse`] refuses: its
/// own arguments stand before global ones of the same name.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("demo", |demo| {
        demo.arg(
            Arg::new("bootstrap")
                .short('b')
                .long("bootstrap")
                .hide(true),
        )
        .arg(Arg::new("config").long("config").hide(true))
    })
}

impl ClusterArgs {
    /// These, and the file's where there are none.
    pub(crate) fn or(self, file: Self) -> Self {
        Self {
            bootstrap: self.bootstrap.or(file.bootstrap),
            property: all_given(self.property, file.property),
            config: self.config,
            timeout: self.timeout.or(file.timeout),
        }
    }
}

impl OutputArgs {
    /// These, and the file's where there are none.
    pub(crate) fn or(self, file: Self) -> Self {
        let silent_here = self.quiet || self.verbose > 0;
        Self {
            json: self.json || file.json,
            quiet: if silent_here { self.quiet } else { file.quiet },
            verbose: if silent_here {
                self.verbose
            } else {
                file.verbose
            },
            log: self.log.or(file.log),
        }
    }
}

impl RunArgs {
    /// These, and the file's where there are none.
    pub(crate) fn or(self, file: Self) -> Self {
        Self {
            topic: first_given(self.topic, file.topic),
            group: self.group.or(file.group),
            workers: self.workers.or(file.workers),
            model: self.model.or(file.model),
            source: self.source.or(file.source),
            order: self.order.or(file.order),
            handler: self.handler.or(file.handler),
            retry_attempts: self.retry_attempts.or(file.retry_attempts),
            retry_backoff: self.retry_backoff.or(file.retry_backoff),
            dead_letter: self.dead_letter.or(file.dead_letter),
            on_exhausted: self.on_exhausted.or(file.on_exhausted),
            remember_completed: self.remember_completed || file.remember_completed,
            assign: self.assign.or(file.assign),
            index: self.index.or(file.index),
            of: self.of.or(file.of),
            from: self.from.or(file.from),
            on_out_of_range: self.on_out_of_range.or(file.on_out_of_range),
            count: self.count.or(file.count),
            until_end: self.until_end || file.until_end,
            drain: self.drain.or(file.drain),
            listen: self.listen.or(file.listen),
            stuck_after: self.stuck_after.or(file.stuck_after),
            label: all_given(self.label, file.label),
            events: self.events.or(file.events),
            records: self.records || file.records,
        }
    }
}

impl PerfArgs {
    /// These, and the file's where there are none.
    pub(crate) fn or(self, file: RunArgs) -> Self {
        Self {
            topic: first_given(self.topic, file.topic),
            group: self.group.or(file.group),
            workers: self.workers.or(file.workers),
            model: self.model.or(file.model),
            source: self.source.or(file.source),
            order: self.order.or(file.order),
            count: self.count.or(file.count),
            sleep: self.sleep,
        }
    }
}

/// Both, of things with a name: later ones win, so the file's come first.
fn all_given(here: Vec<String>, mut file: Vec<String>) -> Vec<String> {
    file.extend(here);
    file
}

fn first_given(here: Vec<String>, file: Vec<String>) -> Vec<String> {
    if here.is_empty() { file } else { here }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Cli, clap::Error> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_definition_of_the_command_line_holds() {
        command().debug_assert();
    }

    #[test]
    fn options_of_the_cluster_are_taken_before_and_after_the_command() {
        for text in [
            "keepup -b a:1 -X x=y run -t orders",
            "keepup run -t orders -b a:1 -X x=y",
        ] {
            let cli = line(text).unwrap();
            assert_eq!(cli.cluster.bootstrap.as_deref(), Some("a:1"), "{text}");
            assert_eq!(cli.cluster.property, ["x=y"], "{text}");
        }
    }

    #[test]
    fn the_demo_refuses_a_cluster() {
        let error = line("keepup demo -b a:1").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("leave out --bootstrap"));
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let here = RunArgs {
            group: Some("here".into()),
            label: vec!["env=prod".into()],
            ..RunArgs::default()
        };
        let file = RunArgs {
            group: Some("file".into()),
            topic: vec!["orders".into()],
            label: vec!["env=test".into()],
            ..RunArgs::default()
        };
        let both = here.or(file);
        assert_eq!(both.group.as_deref(), Some("here"));
        assert_eq!(both.topic, ["orders"]);
        assert_eq!(both.label, ["env=test", "env=prod"], "the last one wins");
    }
}
