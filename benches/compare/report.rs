//! Tables of what was kept: for the terminal, and as `docs/performance.md`.

use std::fmt::Write as _;
use std::fs;

use crate::results::{Cell, Results};
use crate::rows::{Kind, Peer, ROWS, RowPlan, TARGETS, Verdict};
use crate::{plain, plot};

/// Headed columns of words.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self {
            head: head.iter().map(|word| (*word).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// In columns; all but the first are numbers mostly and stand to the right.
    fn text(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                all()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in all() {
            for (column, (word, &width)) in row.iter().zip(&widths).enumerate() {
                let _ = match column {
                    0 => write!(text, "{word:<width$}"),
                    _ => write!(text, "  {word:>width$}"),
                };
            }
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let rule = "|---".to_owned() + &"|---:".repeat(self.head.len() - 1) + "|\n";
        let rows: String = self.rows.iter().map(line).collect();
        format!("{}{rule}{rows}", line(&self.head))
    }
}

/// What stdout is told.
pub(crate) fn text(results: &Results) -> String {
    let mut text = String::new();
    for (title, table) in tables(results) {
        let _ = write!(text, "\n{title}\n\n{}", table.text());
    }
    let _ = writeln!(text, "\nkept in {}", crate::results::file().display());
    text
}

fn tables(results: &Results) -> Vec<(&'static str, Table)> {
    vec![
        (
            "CPU per record, ns",
            by_client(results, "cpu_ns_per_record", 1.0, 0),
        ),
        (
            "Records per second, millions",
            by_client(results, "records_per_s", 1e6, 2),
        ),
        (
            "Peak memory, MiB",
            by_client(results, "peak_rss_mib", 1.0, 0),
        ),
        (
            "Latency at 1,000 records per second, µs",
            latencies(results),
        ),
        ("To be reached", targets(results)),
    ]
}

/// The rows in which clients take turns.
pub(crate) fn throughput_rows(results: &Results) -> impl Iterator<Item = &'static RowPlan> {
    ROWS.iter().filter(|row| {
        matches!(row.kind, Kind::Throughput(_)) && results.rows.contains_key(row.name)
    })
}

fn by_client(results: &Results, metric: &str, unit: f64, digits: usize) -> Table {
    let mut head = vec!["records"];
    head.extend(Peer::ALL.map(Peer::title));
    let mut table = Table::new(&head);
    for row in throughput_rows(results) {
        let mut line = vec![row.title.to_owned()];
        for peer in Peer::ALL {
            let word = match results.cell(row.name, peer) {
                None => "–".to_owned(),
                Some(cell) => number(cell, metric, unit, digits),
            };
            line.push(word);
        }
        table.rows.push(line);
    }
    table
}

fn number(cell: &Cell, metric: &str, unit: f64, digits: usize) -> String {
    match cell.median(metric) {
        Some(value) => format!("{:.digits$}", value / unit),
        None => "failed".to_owned(),
    }
}

fn latencies(results: &Results) -> Table {
    let mut table = Table::new(&["from … to the handler", "median", "90 %", "99 %", "99.9 %"]);
    for peer in [Peer::Keepup, Peer::Java] {
        let Some(cell) = results.cell("latency", peer) else {
            continue;
        };
        for (from, words) in [("acked", "acknowledged"), ("sent", "sent")] {
            let mut line = vec![format!("{}, {words}", peer.title())];
            for percentile in ["p50", "p90", "p99", "p99.9"] {
                line.push(number(cell, &format!("{from}_us_{percentile}"), 1.0, 0));
            }
            table.rows.push(line);
        }
    }
    table
}

fn targets(results: &Results) -> Table {
    let mut table = Table::new(&["work", "what", "reach", "got", "rounds", "verdict"]);
    for target in &TARGETS {
        let verdict = target.verdict(results);
        let (got, rounds) = match target.got(results) {
            None => (String::new(), String::new()),
            Some((got, least, most)) => (
                format!("{}{}", short(got), target.unit),
                format!("{} – {}", short(least), short(most)),
            ),
        };
        let verdict = match verdict {
            Verdict::Missed => "**missed**".to_owned(),
            _ => verdict.text().to_owned(),
        };
        table.rows.push(vec![
            target.work.to_owned(),
            target.what.to_owned(),
            target.reach(),
            got,
            rounds,
            verdict,
        ]);
    }
    table
}

/// Two or three digits that say something.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.01 => format!("{value:.4}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Writes `docs/performance.md` and its pictures.
pub(crate) fn write_docs(results: &Results) {
    let docs = crate::repository().join("docs");
    let folder = docs.join("performance");
    fs::create_dir_all(&folder).expect("a folder in docs");
    let pictures = [
        ("cpu.svg", plot::cpu(results)),
        ("records.svg", plot::records(results)),
        ("latency.svg", plot::latency(results)),
    ];
    for (name, picture) in pictures {
        fs::write(folder.join(name), picture).expect("a picture can be written");
    }
    fs::write(docs.join("performance.md"), page(results)).expect("the page can be written");
    println!("written: {}", docs.join("performance.md").display());
}

fn page(results: &Results) -> String {
    let mut tables = tables(results)
        .into_iter()
        .map(|(_, table)| table.markdown());
    let mut next = || tables.next().unwrap_or_default();
    let (cpu, records, memory, latency, targets) = (next(), next(), next(), next(), next());
    format!(
        "\
# Performance

What a record costs with keepup, beside the clients that one would use otherwise, on one real broker. This page and its
pictures are written by `scripts/bench --write-docs`; nothing in it is typed by hand.

## To be reached, and reached

{targets}
A ratio is that of the two medians; *rounds* are the smallest and the largest ratio of a single round, or kill, which tell how
much the machine wavered. keepup runs with everything on: group membership, commits, lag, metrics, handlers called one by one.

## Clients side by side

![CPU per record by client](performance/cpu.svg)

CPU per record in nanoseconds, user and system time of the whole client process between its first and its last record:

{cpu}
![Records per second by client](performance/records.svg)

Millions of records per second, on a machine that client and broker share:

{records}
Peak memory of the process in MiB:

{memory}
`–`: the bare reader knows neither compression nor TLS.

## Latency

![Latency by percentile](performance/latency.svg)

One record per millisecond, each sent on its own with `acks=all`; keepup and Java's consumer follow the topic at the same
time. Microseconds, from the moment that the producer had its acknowledgement and from the moment that it sent the record,
to the moment that the handler is called:

{latency}
Below zero: the consumer had the record before the producer's own thread was told that it is safe.

## Memory, idle, allocations, worker processes

{others}
## Machine

{machine}
## How to repeat

```sh
scripts/bench                        # everything, about half an hour; close what else uses the machine
scripts/bench --only 100-bytes,lz4   # some rows
scripts/bench --quick                # one round with a tenth of the records: does it run at all?
scripts/bench --report --write-docs  # this page again, from target/bench/results.json
```

## What is compared

{compared}
## How far to trust it

- Client and broker share the cores. Records per second are those of both together; CPU per record is the client's alone
  and the better figure to compare.
- The clients take turns within a round and the rounds follow each other, so that what disturbs the machine for longer
  disturbs all. Medians over {rounds} rounds.
- The kernel's part (copying from the socket) is in every client's figure and is the larger part of the bare reader's: the
  more bytes a record has, the closer all come to each other.
- Everything comes from the broker's page cache. Records lie in batches of up to 10,000, as producers under load make
  them; with small batches all clients cost more.
- The values are pieces of JSON whose fields differ from record to record, not one repeated byte: decompressing them is
  work, as it is in production.
- A virtual machine's clock and its neighbours are not ours. Compare ratios, and measure on your own machine before you
  rely on a figure.
",
        others = others(results),
        machine = machine(results),
        compared = compared(),
        rounds = results
            .cell("100-bytes", Peer::Keepup)
            .map_or(0, |cell| cell.rounds.len()),
    )
}

fn others(results: &Results) -> String {
    let mut text = String::new();
    let median = |row: &str, metric: &str| results.cell(row, Peer::Keepup)?.median(metric);
    if let (Some(cpu), Some(rss), Some(peak)) = (
        median("idle", "cpu_percent"),
        median("idle", "rss_mib"),
        median("idle", "peak_rss_mib"),
    ) {
        let _ = writeln!(
            text,
            "- **Idle.** 1,000 partitions without traffic, 16 workers, metrics scraped every ten seconds: {} % of one core, \
             {rss:.0} MiB resident ({peak:.0} at most).",
            short(cpu)
        );
    }
    for (row, workers) in [("memory-2", 2), ("memory-16", 16)] {
        if let (Some(peak), Some(rate)) =
            (median(row, "peak_rss_mib"), median(row, "records_per_s"))
        {
            let _ = writeln!(
                text,
                "- **Catching up, {workers} workers.** A million records of 1 KiB in 16 partitions: {peak:.0} MiB at most, \
                 {:.2} million records per second.",
                rate / 1e6
            );
        }
    }
    text.push_str(&orders(results));
    text.push_str(&processes(results));
    if let (Some(allocations), Some(records)) = (
        median("allocations", "allocations"),
        median("allocations", "records"),
    ) {
        let _ = writeln!(
            text,
            "- **Allocations.** {allocations:.0} in {records:.0} records of the steady state: none for a record; what there \
             is belongs to answers of thousands of records and to the member's ticks (`tests/allocations.rs`).",
        );
    }
    text
}

/// What lies behind the targets about orders.
fn orders(results: &Results) -> String {
    let mut text = String::new();
    let median =
        |row: &str, cell: &str, metric: &str| results.cell_called(row, cell)?.median(metric);
    let cpu = |order| median("orders", order, "cpu_ns_per_record");
    if let (Some(partition), Some(key), Some(unordered)) = (
        cpu("keepup-partition"),
        cpu("keepup-key"),
        cpu("keepup-unordered"),
    ) {
        let _ = writeln!(
            text,
            "- **Orders.** Four million records of 100 bytes with 1,000 keys in 4 partitions, 4 workers whose handler does \
             nothing: {partition:.0} ns of CPU per record in partition order, {key:.0} by key, {unordered:.0} without order.",
        );
    }
    let rate = |cell| median("slow", cell, "records_per_s");
    if let (Some(sleepers), Some(unordered), Some(key)) = (
        rate("sleepers"),
        rate("keepup-unordered"),
        rate("keepup-key"),
    ) {
        let _ = writeln!(
            text,
            "- **Slow handlers.** 5 ms each, 64 workers, one partition: {unordered:.0} records per second without order, {key:.0} \
             by key; 64 threads that only sleep come to {sleepers:.0}.",
        );
    }
    let attempt = |cell| median("storm", cell, "cpu_ns_per_record");
    if let (Some(calm), Some(storm)) = (attempt("keepup-calm"), attempt("keepup-storm")) {
        let _ = writeln!(
            text,
            "- **A storm of retries.** Every record fails twice, without order: {storm:.0} ns of CPU per attempt, beside {calm:.0} \
             where none fails.",
        );
    }
    text
}

/// What lies behind the targets about workers that are processes.
fn processes(results: &Results) -> String {
    let mut text = String::new();
    let median =
        |row: &str, cell: &str, metric: &str| results.cell_called(row, cell)?.median(metric);
    let of_models = |metric| {
        let threads = median("processes", "threads", metric)?;
        Some((threads, median("processes", "processes", metric)?))
    };
    if let (Some(rate), Some(cpu), Some(peak)) = (
        of_models("records_per_s"),
        of_models("cpu_ns_per_record"),
        of_models("peak_rss_mib"),
    ) {
        let _ = writeln!(
            text,
            "- **Worker processes.** The records of 100 bytes with two processes, beside two threads: {:.2} million per second, \
             beside {:.2}; {:.0} ns of CPU per record, beside {:.0}; {:.0} MiB at most in all, beside {:.0}.",
            rate.1 / 1e6,
            rate.0 / 1e6,
            cpu.1,
            cpu.0,
            peak.1,
            peak.0
        );
    }
    let many = |cell, metric| median("processes-64", cell, metric);
    if let (Some(start), Some(child), Some(parent), Some(quiet), Some(events)) = (
        many("with-events", "start_s"),
        many("without-events", "child_rss_mib"),
        many("without-events", "parent_rss_mib"),
        many("without-events", "busy_cpu_percent"),
        many("with-events", "busy_cpu_percent"),
    ) {
        let _ = writeln!(
            text,
            "- **64 worker processes.** Each has handled a record {start:.1} s after the start. Idle, the largest has {child:.1} MiB \
             resident, what it shares with the others included, and the parent {parent:.1}. With 5 ms in the handler and enough \
             to do, the parent uses {} % of one core; {} % with `--events json`.",
            short(quiet),
            short(events)
        );
    }
    let again = |row| results.cell(row, Peer::Keepup)?.median("again_ms");
    if let (Some(alone), Some(of_two)) = (again("killed-1"), again("killed-2")) {
        let _ = writeln!(
            text,
            "- **kill -9 of a worker process.** The next record of its partition is handled after {alone:.0} ms where it was the only \
             worker and has to be started again, after {of_two:.0} ms where there is another.",
        );
    }
    text
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let mut table = Table::new(&["", ""]);
    let mut line = |name: &str, value: String| table.rows.push(vec![name.to_owned(), value]);
    line(
        "processor",
        format!("{}, {} cores", machine.cpu, machine.cores),
    );
    line("memory", format!("{} GiB", machine.memory_gib));
    line("kernel", format!("Linux {}", machine.kernel));
    line(
        "broker",
        format!(
            "Apache Kafka {}, one KRaft broker on the same machine, 1 GiB of heap, loopback",
            machine.kafka
        ),
    );
    line("Java", machine.java.clone());
    line(
        "rdkafka",
        format!("{} with librdkafka {}", machine.rdkafka, machine.librdkafka),
    );
    line("compiler", format!("{}, release profile", machine.rustc));
    for (name, row) in &results.rows {
        line(
            &format!("row {name}"),
            format!(
                "{}{}, {} UTC, load before {}",
                row.commit,
                if row.is_quick { ", quick" } else { "" },
                row.at,
                row.load
            ),
        );
    }
    // Nothing in it is a number.
    table.markdown().replacen("|---:|", "|---|", 1)
}

fn compared() -> String {
    let mut text = String::new();
    for row in &ROWS {
        let Kind::Throughput(work) = &row.kind else {
            continue;
        };
        let _ = writeln!(
            text,
            "- **{}**: {} million records in {} partitions, {} threads, workers or clients, batches {}{}.",
            row.title,
            work.records / 1_000_000,
            work.partitions,
            work.workers,
            match work.compression {
                "none" => "not compressed".to_owned(),
                codec => format!("compressed with {codec}"),
            },
            if work.tls { ", over TLS 1.3" } else { "" },
        );
    }
    let _ = write!(
        text,
        "
Every handler adds up the lengths of the values and combines their first eight bytes, so that each value is touched.

| client | how it is used |
|---|---|
| bare reader | `benches/compare/bare.rs`: one connection per thread, answers of 2 MiB, the next request sent before the answer is read, CRC checked, every record walked; no group, no commit, no error handled. The least that reading the protocol costs |
| keepup | `keepup perf --workers 2`, a member of a group like any other |
| rdkafka `BaseConsumer` loop | `benches/compare/plain.rs`: two clients in two threads, {settings}, else librdkafka's defaults |
| rdkafka `StreamConsumer` | `benches/compare/stream.rs`: the same two clients, each with a Tokio runtime on its own thread |
| Java `KafkaConsumer` | `benches/compare/Consumer.java`: two consumers in two threads of one virtual machine (`-Xmx512m`, else its defaults), `max.poll.records=5000`, else Kafka's defaults, whose fetch sizes are librdkafka's; in the latency row Kafka's defaults throughout |

The clients beside keepup are assigned their partitions rather than join a group, which costs them nothing between the
first and the last record.
",
        settings = plain::settings_text()
    );
    text
}
