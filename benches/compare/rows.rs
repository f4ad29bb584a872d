//! What is measured, and what is to be reached.

use crate::results::{Cell, Results};
use crate::{orders, processes};

/// Everything that is measured, in the order in which it is shown.
pub(crate) const ROWS: [RowPlan; 20] = [
    RowPlan {
        name: "100-bytes",
        title: "100 bytes",
        kind: Kind::Throughput(Work::of(100, 8_000_000)),
    },
    RowPlan {
        name: "1-kib",
        title: "1 KiB",
        kind: Kind::Throughput(Work::of(1024, 2_000_000)),
    },
    RowPlan {
        name: "lz4",
        title: "100 bytes, lz4",
        kind: Kind::Throughput(Work::compressed("lz4")),
    },
    RowPlan {
        name: "zstd",
        title: "100 bytes, zstd",
        kind: Kind::Throughput(Work::compressed("zstd")),
    },
    RowPlan {
        name: "snappy",
        title: "100 bytes, snappy",
        kind: Kind::Throughput(Work::compressed("snappy")),
    },
    RowPlan {
        name: "gzip",
        title: "100 bytes, gzip",
        kind: Kind::Throughput(Work::compressed("gzip")),
    },
    RowPlan {
        name: "tls",
        title: "100 bytes, TLS",
        kind: Kind::Throughput(Work {
            tls: true,
            ..Work::of(100, 8_000_000)
        }),
    },
    RowPlan {
        name: "idle",
        title: "idle",
        kind: Kind::Idle,
    },
    RowPlan {
        name: "latency",
        title: "latency",
        kind: Kind::Latency,
    },
    RowPlan {
        name: "allocations",
        title: "allocations",
        kind: Kind::Allocations,
    },
    RowPlan {
        name: "memory-2",
        title: "memory, 2 workers",
        kind: Kind::Memory(Work::many(2)),
    },
    RowPlan {
        name: "memory-16",
        title: "memory, 16 workers",
        kind: Kind::Memory(Work::many(16)),
    },
    RowPlan {
        name: "orders",
        title: "orders, 4 workers",
        kind: Kind::Orders(orders::Of::Orders, Work::keyed(4, 4, 4_000_000)),
    },
    RowPlan {
        name: "slow",
        title: "5 ms in the handler, 64 workers",
        kind: Kind::Orders(orders::Of::Slow, Work::keyed(1, 64, 60_000)),
    },
    RowPlan {
        name: "storm",
        title: "every record fails twice, 4 workers",
        kind: Kind::Orders(orders::Of::Storm, Work::keyed(4, 4, 400_000)),
    },
    RowPlan {
        name: "completions",
        title: "completions",
        kind: Kind::Completions,
    },
    RowPlan {
        name: "processes",
        title: "processes beside threads",
        kind: Kind::Processes(processes::Of::Throughput, Work::of(100, 8_000_000)),
    },
    RowPlan {
        name: "processes-64",
        title: "64 processes",
        kind: Kind::Processes(processes::Of::Many, Work::keyed(64, 64, 256_000)),
    },
    RowPlan {
        name: "killed-1",
        title: "kill -9 of the only process",
        kind: Kind::Processes(processes::Of::Killed, Work::keyed(1, 1, 20_000)),
    },
    RowPlan {
        name: "killed-2",
        title: "kill -9 of one of two processes",
        kind: Kind::Processes(processes::Of::Killed, Work::keyed(2, 2, 40_000)),
    },
];

#[derive(Debug)]
pub(crate) struct RowPlan {
    /// As `--only` and the results file call it.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// Clients take turns at reading a topic from its beginning.
    Throughput(Work),
    /// keepup catches up with a topic; what counts is its memory.
    Memory(Work),
    /// keepup and Java's consumer follow a slow producer.
    Latency,
    /// keepup owns many partitions in which nothing happens.
    Idle,
    /// What a test has counted.
    Allocations,
    /// keepup in other orders than the partition's, and where handlers fail.
    Orders(orders::Of, Work),
    /// How many records a second one core can complete in key order, as a test
    /// has measured.
    Completions,
    /// Workers that are processes.
    Processes(processes::Of, Work),
}

/// A topic, and who reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) value: usize,
    pub(crate) records: u64,
    pub(crate) compression: &'static str,
    pub(crate) partitions: i32,
    pub(crate) workers: usize,
    pub(crate) tls: bool,
    /// How many keys the records have; 0: they have none.
    pub(crate) keys: u64,
}

impl Work {
    const fn of(value: usize, records: u64) -> Self {
        Self {
            value,
            records,
            compression: "none",
            partitions: crate::PARTITIONS,
            workers: crate::THREADS,
            tls: false,
            keys: 0,
        }
    }

    const fn keyed(partitions: i32, workers: usize, records: u64) -> Self {
        Self {
            partitions,
            workers,
            keys: 1_000,
            ..Self::of(100, records)
        }
    }

    const fn compressed(compression: &'static str) -> Self {
        Self {
            compression,
            ..Self::of(100, 8_000_000)
        }
    }

    /// 16 partitions of 1 KiB records: with fewer most of 16 workers would have
    /// nothing to hold, and smaller records fill no answer.
    const fn many(workers: usize) -> Self {
        Self {
            partitions: 16,
            workers,
            ..Self::of(1024, 1_000_000)
        }
    }

    /// The clients that can read it, keepup among them.
    pub(crate) fn peers(&self) -> &'static [Peer] {
        // The bare reader knows neither compression nor TLS.
        if self.tls || self.compression != "none" {
            &Peer::ALL[1..]
        } else {
            &Peer::ALL
        }
    }
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Bare,
    Keepup,
    Plain,
    Stream,
    Java,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] = [
        Self::Bare,
        Self::Keepup,
        Self::Plain,
        Self::Stream,
        Self::Java,
    ];

    /// As the lines and the results file call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare-reader",
            Self::Keepup => "keepup",
            Self::Plain => "plain-loop",
            Self::Stream => "stream",
            Self::Java => "java",
        }
    }

    /// As people call it.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Bare => "bare reader",
            Self::Keepup => "keepup",
            Self::Plain => "rdkafka BaseConsumer loop",
            Self::Stream => "rdkafka StreamConsumer",
            Self::Java => "Java KafkaConsumer",
        }
    }
}

/// A figure that is to be reached.
pub(crate) struct Target {
    pub(crate) work: &'static str,
    /// What is compared, in words.
    pub(crate) what: &'static str,
    got: Got,
    limit: Limit,
    pub(crate) unit: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
}

/// Where the figure comes from.
enum Got {
    /// keepup's median.
    Value(&'static str, &'static str),
    /// keepup's largest; none where a round failed, which might have been that.
    Most(&'static str, &'static str),
    /// keepup's median by another's.
    Ratio(&'static str, &'static str, Peer),
    /// One cell's median.
    Of(&'static str, &'static str, &'static str),
    /// One cell's median by another's.
    By(&'static str, &'static str, &'static str, &'static str),
    /// One cell's median less another's.
    Less(&'static str, &'static str, &'static str, &'static str),
}

/// Whether a figure was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Target {
    /// The figure that was measured, and the smallest and largest of its rounds.
    pub(crate) fn got(&self, results: &Results) -> Option<(f64, f64, f64)> {
        match self.got {
            Got::Value(row, metric) => of_one(results.cell(row, Peer::Keepup)?, metric),
            Got::Most(row, metric) => {
                let cell = results.cell(row, Peer::Keepup)?;
                let (_, least, most) = of_one(cell, metric)?;
                let has_all = cell.rounds.iter().all(|round| round.contains_key(metric));
                has_all.then_some((most, least, most))
            }
            Got::Ratio(row, metric, peer) => {
                let (ours, theirs) = (results.cell(row, Peer::Keepup)?, results.cell(row, peer)?);
                let ratios: Vec<f64> = (ours.rounds.iter())
                    .zip(&theirs.rounds)
                    .filter_map(|(ours, theirs)| Some(ours.get(metric)? / theirs.get(metric)?))
                    .collect();
                spread(ours.median(metric)? / theirs.median(metric)?, &ratios)
            }
            Got::Of(row, metric, cell) => of_one(results.cell_called(row, cell)?, metric),
            Got::By(row, metric, ours, theirs) => {
                of_two(results, row, metric, ours, theirs, |ours, theirs| {
                    ours / theirs
                })
            }
            Got::Less(row, metric, ours, theirs) => {
                of_two(results, row, metric, ours, theirs, |ours, theirs| {
                    ours - theirs
                })
            }
        }
    }

    pub(crate) fn verdict(&self, results: &Results) -> Verdict {
        let is_met = self.got(results).map(|(got, ..)| match self.limit {
            Limit::AtMost(limit) => got <= limit,
            Limit::AtLeast(limit) => got >= limit,
            Limit::Below(limit) => got < limit,
        });
        match is_met {
            None => Verdict::NotMeasured,
            Some(true) => Verdict::Met,
            Some(false) => Verdict::Missed,
        }
    }

    pub(crate) fn reach(&self) -> String {
        let unit = self.unit;
        match self.limit {
            Limit::AtMost(limit) => format!("at most {limit}{unit}"),
            Limit::AtLeast(limit) => format!("at least {limit}{unit}"),
            Limit::Below(limit) => format!("under {limit}{unit}"),
        }
    }
}

/// The median of a cell, and its rounds.
fn of_one(cell: &Cell, metric: &str) -> Option<(f64, f64, f64)> {
    let rounds: Vec<f64> = (cell.rounds.iter())
        .filter_map(|round| round.get(metric).copied())
        .collect();
    spread(cell.median(metric)?, &rounds)
}

/// What two cells of a row make, by their medians and round by round.
fn of_two(
    results: &Results,
    row: &str,
    metric: &str,
    ours: &str,
    theirs: &str,
    make: impl Fn(f64, f64) -> f64,
) -> Option<(f64, f64, f64)> {
    let ours = results.cell_called(row, ours)?;
    let theirs = results.cell_called(row, theirs)?;
    let rounds: Vec<f64> = (ours.rounds.iter())
        .zip(&theirs.rounds)
        .filter_map(|(ours, theirs)| Some(make(*ours.get(metric)?, *theirs.get(metric)?)))
        .collect();
    spread(make(ours.median(metric)?, theirs.median(metric)?), &rounds)
}

fn spread(median: f64, rounds: &[f64]) -> Option<(f64, f64, f64)> {
    let least = rounds.iter().copied().min_by(f64::total_cmp)?;
    let most = rounds.iter().copied().max_by(f64::total_cmp)?;
    Some((median, least, most))
}

const CPU: &str = "cpu_ns_per_record";
const RATE: &str = "records_per_s";

macro_rules! target {
    ($work:expr, $what:expr, $got:expr, $limit:expr, $unit:expr) => {
        Target {
            work: $work,
            what: $what,
            got: $got,
            limit: $limit,
            unit: $unit,
        }
    };
}

/// What is to be reached.
#[rustfmt::skip]
pub(crate) const TARGETS: [Target; 31] = {
    use Got::{By, Less, Most, Of, Ratio, Value};
    use Limit::{AtLeast, AtMost, Below};
    use Peer::{Bare, Java, Plain};
    [
        target!("100 bytes", "CPU per record / bare reader's", Ratio("100-bytes", CPU, Bare), AtMost(1.5), " ×"),
        target!("100 bytes", "records/s / bare reader's", Ratio("100-bytes", RATE, Bare), AtLeast(0.75), " ×"),
        target!("100 bytes", "records/s / BaseConsumer loop's", Ratio("100-bytes", RATE, Plain), AtLeast(4.0), " ×"),
        target!("1 KiB", "CPU per record / bare reader's", Ratio("1-kib", CPU, Bare), AtMost(1.2), " ×"),
        target!("1 KiB", "records/s / bare reader's", Ratio("1-kib", RATE, Bare), AtLeast(0.9), " ×"),
        target!("100 bytes, lz4", "CPU per record", Value("lz4", CPU), AtMost(80.0), " ns"),
        target!("100 bytes, zstd", "CPU per record / BaseConsumer loop's", Ratio("zstd", CPU, Plain), AtMost(0.5), " ×"),
        target!("100 bytes, snappy", "CPU per record / BaseConsumer loop's", Ratio("snappy", CPU, Plain), AtMost(0.5), " ×"),
        target!("100 bytes, gzip", "CPU per record / BaseConsumer loop's", Ratio("gzip", CPU, Plain), AtMost(0.5), " ×"),
        target!("100 bytes, TLS", "CPU per record / BaseConsumer loop's over TLS", Ratio("tls", CPU, Plain), AtMost(0.5), " ×"),
        target!("idle, 1,000 partitions, 16 workers", "CPU", Value("idle", "cpu_percent"), Below(3.0), " % of a core"),
        target!("idle, 1,000 partitions, 16 workers", "peak memory", Value("idle", "peak_rss_mib"), Below(64.0), " MiB"),
        target!("1,000 records/s", "median from acknowledged to handler / Java's", Ratio("latency", "acked_us_p50", Java), AtMost(1.0), " ×"),
        target!("1,000 records/s", "99th percentile from acknowledged to handler / Java's", Ratio("latency", "acked_us_p99", Java), AtMost(1.0), " ×"),
        target!("steady state", "allocations per record", Value("allocations", "per_record"), AtMost(0.0), ""),
        target!("catching up, 2 workers", "peak memory", Value("memory-2", "peak_rss_mib"), AtMost(64.0), " MiB"),
        target!("catching up, 16 workers", "peak memory", Value("memory-16", "peak_rss_mib"), AtMost(128.0), " MiB"),
        target!("no-op, 4 workers, by key", "CPU per record more than by partition", Less("orders", CPU, "keepup-key", "keepup-partition"), AtMost(150.0), " ns"),
        target!("no-op, 4 workers, unordered", "CPU per record more than by partition", Less("orders", CPU, "keepup-unordered", "keepup-partition"), AtMost(150.0), " ns"),
        target!("5 ms, 64 workers, 1 partition, unordered", "records/s / 64 sleeping threads'", By("slow", RATE, "keepup-unordered", "sleepers"), AtLeast(0.98), " ×"),
        target!("5 ms, 64 workers, 1 partition, by 1,000 keys", "records/s / 64 sleeping threads'", By("slow", RATE, "keepup-key", "sleepers"), AtLeast(0.95), " ×"),
        target!("every record fails twice", "CPU per attempt / where none fails", By("storm", CPU, "keepup-storm", "keepup-calm"), AtMost(1.2), " ×"),
        target!("every record fails twice", "peak memory", Of("storm", "peak_rss_mib", "keepup-storm"), AtMost(64.0), " MiB"),
        target!("one core, by key", "completions", Value("completions", "millions_per_s"), AtLeast(20.0), " million/s"),
        target!("2 processes, 100 bytes", "records/s / 2 threads'", By("processes", RATE, "processes", "threads"), AtLeast(0.95), " ×"),
        target!("64 processes, idle", "memory of the largest", Of("processes-64", "child_rss_mib", "without-events"), Below(20.0), " MiB"),
        target!("64 processes", "from the start until each has handled a record", Of("processes-64", "start_s", "with-events"), AtMost(15.0), " s"),
        target!("64 processes, busy", "CPU of the parent", Of("processes-64", "busy_cpu_percent", "without-events"), AtMost(5.0), " % of a core"),
        target!("kill -9 of the only process", "median until its partition is consumed again", Value("killed-1", "again_ms"), AtMost(500.0), " ms"),
        target!("kill -9 of the only process", "longest until its partition is consumed again", Most("killed-1", "again_ms"), AtMost(500.0), " ms"),
        target!("kill -9 of one of two processes", "longest until its partition is consumed again", Most("killed-2", "again_ms"), AtMost(500.0), " ms"),
    ]
};
