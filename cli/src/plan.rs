//! From what was typed to what will be done.
//!
//! The command line and the configuration file are put together, every value is
//! read, the rules between them are checked, and the library checks what it is
//! given. All problems are collected; a plan exists only where there is none.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use keepup::{
    Assignment, Model, OnExhausted, Order, OutOfRange, Settings, Source, StartFrom, Workers,
};

use crate::args::{ClusterArgs, DemoArgs, OutputArgs, PerfArgs, RunArgs};
use crate::file::{self, FileArgs};
use crate::problem::Problem;
use crate::time;
use crate::values::{self, HandlerKind, Wrong};

/// What `run` does, and what `check` shows.
#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    pub(crate) settings: Settings,
    pub(crate) handler: HandlerKind,
    /// As it was written; `settings.start_from` is what it means.
    pub(crate) from: String,
    pub(crate) events: bool,
    pub(crate) records: bool,
}

/// What `perf` does.
#[derive(Clone, Debug)]
pub(crate) struct PerfPlan {
    pub(crate) settings: Settings,
    pub(crate) sleep: Option<Duration>,
}

/// What `demo` does.
#[derive(Clone, Debug)]
pub(crate) struct DemoPlan {
    pub(crate) model: Model,
    pub(crate) workers: Workers,
    pub(crate) partitions: u32,
    /// Records per second, on average.
    pub(crate) rate: u32,
    /// How long the load lasts.
    pub(crate) length: Duration,
    pub(crate) listen: DemoListen,
    pub(crate) timeout: Duration,
    pub(crate) properties: BTreeMap<String, String>,
    /// The seed of what is broken, where things are.
    pub(crate) chaos: Option<u64>,
}

/// Where the demo's page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DemoListen {
    Off,
    /// There, or the demo is refused.
    At(SocketAddr),
    /// Nobody asked for an address: there, or anywhere.
    Preferably(SocketAddr),
}

impl DemoListen {
    /// The port of OpenTelemetry's Prometheus exporter, on loopback: nobody who
    /// just tries something wants to be seen by the network.
    const DEFAULT: Self = Self::Preferably(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464));
}

/// How the log and the results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutputPlan {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: u8,
    pub(crate) log_json: bool,
}

/// Reads the configuration file, if one was given.
pub(crate) fn read_file(cluster: &ClusterArgs) -> Result<FileArgs, Vec<Problem>> {
    match &cluster.config {
        Some(path) => file::read(path),
        None => Ok(FileArgs::default()),
    }
}

/// How to write, from the command line and the file.
pub(crate) fn output(args: &OutputArgs) -> Result<OutputPlan, Vec<Problem>> {
    let mut reader = Reader::default();
    let log_json = match args.log.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            reader.wrong(
                "log",
                other,
                "the log is written as text or json",
                "give one of them",
            );
            false
        }
    };
    reader.finish(OutputPlan {
        json: args.json,
        quiet: args.quiet,
        verbose: args.verbose,
        log_json,
    })
}

/// The plan of `run` and `check`.
pub(crate) fn run(cluster: &ClusterArgs, args: &RunArgs) -> Result<RunPlan, Vec<Problem>> {
    let mut reader = Reader::default();
    let mut settings = reader.cluster(cluster, args.group.as_deref());
    settings.topics.clone_from(&args.topic);
    settings.workers = reader.workers(args.workers.as_deref(), Workers::AUTO);
    settings.model = reader.model(args.model.as_deref());
    settings.source = reader.source(args.source.as_deref());
    settings.order = reader.order(args.order.as_deref());
    settings.retry.attempts = reader.number(
        "retry-attempts",
        args.retry_attempts.as_deref(),
        settings.retry.attempts,
    );
    settings.retry.backoff = reader.duration(
        "retry-backoff",
        args.retry_backoff.as_deref(),
        settings.retry.backoff,
    );
    settings.dead_letter.clone_from(&args.dead_letter);
    settings.remember_completed = args.remember_completed;
    settings.retry.on_exhausted = reader.on_exhausted(args);
    settings.stop_deadline =
        reader.duration("drain", args.drain.as_deref(), settings.stop_deadline);
    settings.listen = reader.listen(args.listen.as_deref());
    settings.stuck_after = reader.duration(
        "stuck-after",
        args.stuck_after.as_deref(),
        settings.stuck_after,
    );
    settings.labels = reader.pairs(
        "label",
        &args.label,
        "a label is NAME=VALUE",
        "write it as env=prod",
    );
    settings.assignment = reader.assignment(args);
    settings.until_end = args.until_end;
    settings.count = reader.count(args.count.as_deref());
    let from = args.from.as_deref().unwrap_or("earliest");
    settings.start_from = values::start_from(from, time::unix_millis()).unwrap_or_else(|wrong| {
        reader.wrong("from", from, wrong.rule, wrong.remedy);
        StartFrom::Earliest
    });
    settings.on_out_of_range = reader.out_of_range(args.on_out_of_range.as_deref());
    let handler = reader.handler(args.handler.as_deref());
    let events = reader.events(args, &handler);
    reader.library(&settings);
    reader.finish(RunPlan {
        settings,
        handler,
        from: from.to_owned(),
        events,
        records: args.records,
    })
}

/// The plan of `perf`.
pub(crate) fn perf(cluster: &ClusterArgs, args: &PerfArgs) -> Result<PerfPlan, Vec<Problem>> {
    let mut reader = Reader::default();
    let mut settings = reader.cluster(cluster, args.group.as_deref());
    settings.topics.clone_from(&args.topic);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    settings.workers = reader.workers(args.workers.as_deref(), Workers::Fixed(cores));
    settings.model = reader.model(args.model.as_deref());
    settings.source = reader.source(args.source.as_deref());
    settings.order = reader.order(args.order.as_deref());
    settings.count = reader.count(args.count.as_deref());
    settings.until_end = settings.count.is_none();
    let sleep = args
        .sleep
        .as_deref()
        .map(|text| reader.duration("sleep", Some(text), Duration::ZERO));
    reader.library(&settings);
    reader.finish(PerfPlan { settings, sleep })
}

/// The plan of `demo`. What it lacks for a run, a cluster and a topic, is its
/// own.
pub(crate) fn demo(cluster: &ClusterArgs, args: &DemoArgs) -> Result<DemoPlan, Vec<Problem>> {
    let mut reader = Reader::default();
    let own = ClusterArgs {
        bootstrap: Some("localhost:9092".into()),
        ..cluster.clone()
    };
    let mut settings = reader.cluster(&own, Some("demo"));
    settings.topics.push("demo".into());
    settings.workers = reader.workers(Some(&args.workers), Workers::AUTO);
    settings.model = reader.model(args.model.as_deref());
    let partitions = reader.within("partitions", &args.partitions, 1..=1_000);
    let rate = reader.within("rate", &args.rate, 1..=1_000_000);
    let seconds = reader.within("seconds", &args.seconds, 1..=86_400);
    let listen = match args.listen.as_deref() {
        None => DemoListen::DEFAULT,
        given => reader.listen(given).map_or(DemoListen::Off, DemoListen::At),
    };
    let seed = args.seed.as_deref().map(|seed| reader.seed(seed));
    // Short enough to be typed again.
    let seed = seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    reader.library(&settings);
    reader.finish(DemoPlan {
        model: settings.model,
        workers: settings.workers,
        partitions,
        rate,
        length: Duration::from_secs(u64::from(seconds)),
        listen,
        timeout: settings.contact_timeout,
        properties: settings.properties,
        chaos: args.chaos.then_some(seed),
    })
}

/// Reads values and collects what is wrong with them.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn wrong(&mut self, setting: &str, value: &str, rule: &str, remedy: &str) {
        let value = format!("{value:?}");
        self.problems
            .push(Problem::new(setting, value, rule, remedy));
    }

    fn workers(&mut self, text: Option<&str>, default: Workers) -> Workers {
        let Some(text) = text else { return default };
        text.parse().unwrap_or_else(|_| {
            self.wrong(
                "workers",
                text,
                "this is a number, auto or auto:MAX",
                "give a number, or auto for one worker per partition",
            );
            default
        })
    }

    /// One of a few words, or the default where none was given or it is none of
    /// them.
    fn choice<T: FromStr>(
        &mut self,
        setting: &str,
        text: Option<&str>,
        default: T,
        rule: &str,
        remedy: &str,
    ) -> T {
        let Some(text) = text else { return default };
        text.parse().unwrap_or_else(|_| {
            self.wrong(setting, text, rule, remedy);
            default
        })
    }

    fn source(&mut self, text: Option<&str>) -> Source {
        self.choice(
            "source",
            text,
            Source::default(),
            "records are read through connections of our own, or through librdkafka",
            "give fetch or client, or leave it out",
        )
    }

    fn model(&mut self, text: Option<&str>) -> Model {
        self.choice(
            "model",
            text,
            Model::default(),
            "workers are threads or processes",
            "give threads or processes",
        )
    }

    fn order(&mut self, text: Option<&str>) -> Order {
        self.choice(
            "order",
            text,
            Order::default(),
            "this is partition, key or unordered",
            "give one of them; partition keeps the order of the log",
        )
    }

    fn handler(&mut self, text: Option<&str>) -> HandlerKind {
        text.unwrap_or("discard")
            .parse()
            .unwrap_or_else(|wrong: Wrong| {
                self.wrong(
                    "handler",
                    text.unwrap_or_default(),
                    wrong.rule,
                    wrong.remedy,
                );
                HandlerKind::Discard
            })
    }

    /// A whole number, or the default where none was given.
    fn number<T>(&mut self, setting: &str, text: Option<&str>, default: T) -> T
    where
        T: FromStr + Display,
    {
        let Some(text) = text else { return default };
        text.parse().unwrap_or_else(|_| {
            let remedy = format!("write it with digits, or leave it out for {default}");
            self.wrong(setting, text, "this is a whole number from 0 up", &remedy);
            default
        })
    }

    /// A whole number in a range.
    fn within(&mut self, setting: &str, text: &str, range: RangeInclusive<u32>) -> u32 {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.unwrap_or_else(|| {
            let rule = format!(
                "this is a whole number from {} to {}",
                range.start(),
                range.end()
            );
            self.wrong(setting, text, &rule, "give one in that range");
            *range.start()
        })
    }

    fn seed(&mut self, text: &str) -> u64 {
        text.parse().unwrap_or_else(|_| {
            let rule = format!("a seed is a whole number from 0 to {}", u64::MAX);
            self.wrong("seed", text, &rule, "give the one that was printed");
            0
        })
    }

    fn duration(&mut self, setting: &str, text: Option<&str>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        values::duration(text).unwrap_or_else(|wrong| {
            self.wrong(setting, text, wrong.rule, wrong.remedy);
            default
        })
    }

    fn out_of_range(&mut self, text: Option<&str>) -> OutOfRange {
        self.choice(
            "on-out-of-range",
            text,
            OutOfRange::default(),
            "this is earliest, latest or stop",
            "give one of them; earliest skips nothing that is there",
        )
    }

    /// Who names a topic for dead letters wants them written.
    fn on_exhausted(&mut self, args: &RunArgs) -> OnExhausted {
        let default = match args.dead_letter {
            Some(_) => OnExhausted::DeadLetter,
            None => OnExhausted::Stop,
        };
        self.choice(
            "on-exhausted",
            args.on_exhausted.as_deref(),
            default,
            "this is stop, dead-letter or skip",
            "give one of them; stop loses nothing",
        )
    }

    fn listen(&mut self, text: Option<&str>) -> Option<SocketAddr> {
        let text = text?;
        values::listen(text).unwrap_or_else(|wrong| {
            self.wrong("listen", text, wrong.rule, wrong.remedy);
            None
        })
    }

    fn count(&mut self, text: Option<&str>) -> Option<u64> {
        let text = text?;
        // A wrong one must not also be told to be zero.
        Some(self.number("count", Some(text), 1))
    }

    /// Settings with what concerns the cluster filled in.
    fn cluster(&mut self, args: &ClusterArgs, group: Option<&str>) -> Settings {
        let bootstrap = args.bootstrap.as_deref().unwrap_or_default();
        let mut settings = Settings::new(bootstrap, group.unwrap_or_default());
        settings.contact_timeout =
            self.duration("timeout", args.timeout.as_deref(), settings.contact_timeout);
        settings.properties = self.pairs(
            "property",
            &args.property,
            "a property is KEY=VALUE",
            "write it as client.rack=a",
        );
        settings
    }

    /// What was given as name and value.
    fn pairs(
        &mut self,
        setting: &str,
        given: &[String],
        rule: &str,
        remedy: &str,
    ) -> BTreeMap<String, String> {
        let mut pairs = BTreeMap::new();
        for pair in given {
            match pair.split_once('=') {
                Some((name, value)) if !name.trim().is_empty() => {
                    pairs.insert(name.trim().to_owned(), value.to_owned());
                }
                _ => self.wrong(setting, pair, rule, remedy),
            }
        }
        pairs
    }

    fn assignment(&mut self, args: &RunArgs) -> Assignment {
        let whole = "static assignment takes all three: assign, index and of";
        let remedy = "write --assign static --index I --of N";
        match (args.assign.as_deref(), &args.index, &args.of) {
            (None, None, None) => Assignment::Group,
            (Some("static"), Some(index), Some(of)) => Assignment::Static {
                index: self.number("index", Some(index), 0),
                of: self.number("of", Some(of), 1),
            },
            (Some("static"), _, _) => {
                self.wrong("assign", "static", whole, remedy);
                Assignment::Group
            }
            (Some(other), _, _) => {
                self.wrong(
                    "assign",
                    other,
                    "static is the only assignment beside the group's own",
                    "write static, or leave it out to let the group assign",
                );
                Assignment::Group
            }
            (None, Some(index), _) => {
                self.wrong("index", index, whole, remedy);
                Assignment::Group
            }
            (None, None, Some(of)) => {
                self.wrong("of", of, whole, remedy);
                Assignment::Group
            }
        }
    }

    fn events(&mut self, args: &RunArgs, handler: &HandlerKind) -> bool {
        let events = match args.events.as_deref() {
            None => false,
            Some("json") => true,
            Some(other) => {
                self.wrong("events", other, "events are printed as json", "write json");
                true
            }
        };
        if events && *handler == HandlerKind::Print {
            self.wrong(
                "handler",
                "print",
                "records and events would be mixed on stdout",
                "leave out --events, or use --handler discard with --records",
            );
        }
        if args.records && !events {
            self.wrong(
                "records",
                "true",
                "records are printed as events",
                "add --events json",
            );
        }
        events
    }

    /// What the library has to say, except where it would repeat what was
    /// found in the text of the same setting.
    fn library(&mut self, settings: &Settings) {
        let named: Vec<String> = self.problems.iter().map(|p| p.setting.clone()).collect();
        let more = settings.problems();
        self.problems.extend(
            more.iter()
                .map(Problem::from)
                .filter(|problem| !named.contains(&problem.setting)),
        );
    }

    fn finish<T>(self, plan: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            Ok(plan)
        } else {
            Err(self.problems)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterArgs {
        ClusterArgs {
            bootstrap: Some("localhost:9092".into()),
            ..ClusterArgs::default()
        }
    }

    fn orders() -> RunArgs {
        RunArgs {
            topic: vec!["orders".into()],
            group: Some("billing".into()),
            ..RunArgs::default()
        }
    }

    #[test]
    fn nothing_but_a_topic_and_a_group_gives_the_librarys_defaults() {
        let plan = run(&cluster(), &orders()).unwrap();
        let mut expected = Settings::new("localhost:9092", "billing");
        expected.topics = vec!["orders".into()];
        assert_eq!(plan.settings, expected);
        assert_eq!(plan.handler, HandlerKind::Discard);
    }

    #[test]
    fn every_problem_is_told_once_and_at_once() {
        let args = RunArgs {
            topic: vec!["or ders".into()],
            workers: Some("many".into()),
            retry_attempts: Some("0".into()),
            drain: Some("25".into()),
            count: Some("-1".into()),
            index: Some("1".into()),
            from: Some("yesterday".into()),
            on_out_of_range: Some("2h".into()),
            handler: Some("print".into()),
            events: Some("json".into()),
            ..RunArgs::default()
        };
        let cluster = ClusterArgs {
            property: vec!["client.rack".into()],
            ..ClusterArgs::default()
        };
        let mut named: Vec<String> = run(&cluster, &args)
            .unwrap_err()
            .into_iter()
            .map(|problem| problem.setting)
            .collect();
        named.sort();
        assert_eq!(
            named,
            [
                "bootstrap",
                "count",
                "drain",
                "from",
                "group",
                "handler",
                "index",
                "on-out-of-range",
                "property",
                "retry-attempts",
                "topic",
                "workers",
            ]
        );
    }

    #[test]
    fn records_need_events_and_static_assignment_needs_its_numbers() {
        let args = RunArgs {
            records: true,
            assign: Some("static".into()),
            ..orders()
        };
        let problems = run(&cluster(), &args).unwrap_err();
        let named: Vec<&str> = problems.iter().map(|p| p.setting.as_str()).collect();
        assert_eq!(named, ["assign", "records"]);
    }

    #[test]
    fn policies_that_contradict_themselves_are_refused_by_the_names_of_their_options() {
        let refused = |change: fn(&mut RunArgs)| {
            let mut args = orders();
            change(&mut args);
            let problems = run(&cluster(), &args).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            problems[0].setting.clone()
        };
        for (option, setting) in [
            (
                refused(|args| args.on_exhausted = Some("dead-letter".into())),
                "on-exhausted",
            ),
            (
                refused(|args| args.dead_letter = Some("orders".into())),
                "dead-letter",
            ),
            (
                refused(|args| args.retry_attempts = Some("0".into())),
                "retry-attempts",
            ),
            // It doubles up to 30 s.
            (
                refused(|args| args.retry_backoff = Some("31s".into())),
                "retry-backoff",
            ),
        ] {
            assert_eq!(option, setting);
        }
    }

    #[test]
    fn a_measured_run_without_a_count_ends_at_the_end() {
        let args = PerfArgs {
            topic: vec!["load".into()],
            group: Some("perf".into()),
            ..PerfArgs::default()
        };
        let plan = perf(&cluster(), &args).unwrap();
        assert!(plan.settings.until_end);
        assert!(matches!(plan.settings.workers, Workers::Fixed(1..)));
    }
}
