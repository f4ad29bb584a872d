//! A member of a storm that is steered: it is this test's own program, started once more, with the library in it.
//!
//! The command has no seek, so every other member is a program that embeds the library, as its users' are. It works and
//! speaks as `keepup run --events json --records` does. At SIGUSR1 it seeks backwards in one of its partitions; it says
//! so before it asks, since a kill may come in between.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use keepup::{
    CommandError, Event, EventKind, Handle, Model, Order, Record, TopicPartition, WorkerInfo,
    Workers,
};
use serde_json::{Value, json};
use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::storm::now;
use crate::support::process::again;
use crate::support::run::work_for;

/// What the member is told: a [`Plan`] as JSON. Whoever runs the test without it has no member.
const PLAN: &str = "KEEPUP_CHAOS_MEMBER";

/// Records that a seek goes back over, at most: some seconds of commits.
const FARTHEST: i64 = 200;

/// How a steered member works.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) bootstrap: &'a str,
    /// Of the topic and of the group.
    pub(crate) name: &'a str,
    pub(crate) order: Order,
    pub(crate) workers: u64,
    pub(crate) model: Model,
    /// How long a record takes.
    pub(crate) sleep: Duration,
    /// Chooses what is sought.
    pub(crate) seed: u64,
    pub(crate) properties: &'a [(&'a str, &'a str)],
}

impl Plan<'_> {
    /// The program, and its arguments, that become such a member.
    pub(crate) fn command(&self) -> (PathBuf, Vec<String>) {
        let plan = json!({
            "bootstrap": self.bootstrap,
            "name": self.name,
            "order": match self.order {
                Order::Partition => "partition",
                Order::Key => "key",
                Order::Unordered => "unordered",
            },
            "workers": self.workers,
            "model": self.model.to_string(),
            "sleep_us": u64::try_from(self.sleep.as_micros()).expect("it is short"),
            "seed": self.seed,
            "properties": self.properties,
        });
        again(
            &format!("{PLAN}={plan}"),
            "member::a_member_that_is_steered",
        )
    }
}

#[test]
#[ignore = "a member of a storm: it is started by one"]
fn a_member_that_is_steered() {
    let Ok(plan) = std::env::var(PLAN) else {
        return;
    };
    let plan: Value = serde_json::from_str(&plan).expect("a plan is JSON");
    let code = work(&plan);
    // The harness would end with a code, and with words, of its own.
    std::process::exit(code);
}

/// Works until it is told to leave: its exit code.
fn work(plan: &Value) -> i32 {
    let text = |field: &str| plan[field].as_str().expect("a text");
    let number = |field: &str| plan[field].as_u64().expect("a number");
    // Before anybody can know of this member and send one.
    let mut signals = Signals::new([SIGTERM, SIGUSR1]).expect("signals can be taken");
    let mut random = fastrand::Rng::with_seed(number("seed"));
    let sleep = Duration::from_micros(number("sleep_us"));
    let mut builder = keepup::builder(text("bootstrap"), text("name"))
        .topic(text("name"))
        .order(match text("order") {
            "key" => Order::Key,
            "unordered" => Order::Unordered,
            _ => Order::Partition,
        })
        .workers(match number("workers") {
            0 => Workers::AUTO,
            fixed => Workers::Fixed(usize::try_from(fixed).expect("a few")),
        })
        .model(text("model").parse().expect("a model"))
        .contact_timeout(Duration::from_mins(1))
        .on_event(tell);
    for property in plan["properties"].as_array().expect("properties") {
        let part = |index: usize| property[index].as_str().expect("a text");
        builder = builder.property(part(0), part(1));
    }
    let handle = builder
        .start(move |_worker: WorkerInfo| {
            move |record: &Record<'_>| {
                work_for(sleep);
                show(record);
            }
        })
        .expect("the broker is away for less than a minute");
    for signal in signals.forever() {
        if signal == SIGTERM {
            handle.stop();
            break;
        }
        seek(&handle, text("name"), &mut random);
    }
    handle.wait().exit_code()
}

/// Seeks backwards in a partition that has got somewhere, if there is one.
fn seek(handle: &Handle, topic: &str, random: &mut fastrand::Rng) {
    let owned = handle.partitions().into_iter();
    let begun = owned.filter_map(|view| {
        let watermark = view.watermark.filter(|&watermark| watermark > 0)?;
        Some((view.partition.partition(), watermark))
    });
    let Some((partition, watermark)) = random.choice(begun.collect::<Vec<_>>()) else {
        return;
    };
    let offset = (watermark - random.i64(1..=FARTHEST)).max(0);
    let say = |name: &str| {
        let partitions = [json!({ "topic": topic, "partition": partition })];
        line(
            &json!({ "timestamp": now(), "name": name, "partitions": partitions, "offset": offset }),
        );
    };
    say("seek");
    match handle.seek(&TopicPartition::new(topic, partition), offset) {
        // Whoever was asleep over the answer may be obeyed all the same.
        Ok(()) | Err(CommandError::TimedOut(_)) => {}
        Err(_) => say("seek_refused"),
    }
}

/// Prints an event as the command does, where the storm wants to know of it.
fn tell(event: &Event) {
    let (partitions, local, error, offsets) = match &event.kind {
        EventKind::StartupComplete
        | EventKind::WorkerStarted { .. }
        | EventKind::WorkerStopped { .. } => (&[][..], false, None, &[][..]),
        EventKind::PartitionsAssigned { partitions, local }
        | EventKind::PartitionsRevoked { partitions, local } => {
            (&partitions[..], *local, None, &[][..])
        }
        EventKind::PartitionsLost { partitions } => (&partitions[..], false, None, &[][..]),
        EventKind::OffsetsCommitted { offsets, error } => {
            (&[][..], false, error.as_ref(), &offsets[..])
        }
        _ => return,
    };
    let (pid, reason) = match &event.kind {
        EventKind::WorkerStarted { pid } => (*pid, None),
        EventKind::WorkerStopped { pid, reason } => (*pid, Some(reason.name())),
        _ => (None, None),
    };
    let place = |partition: &TopicPartition| json!({ "topic": partition.topic(), "partition": partition.partition() });
    let offsets = offsets.iter().map(|(partition, offset)| {
        let mut at = place(partition);
        at["offset"] = json!(offset);
        at
    });
    line(&json!({
        "timestamp": event.timestamp_ms,
        "name": event.kind.name(),
        "worker": event.worker,
        "pid": pid,
        "reason": reason,
        "partitions": partitions.iter().map(place).collect::<Vec<_>>(),
        "local": local,
        "success": error.is_none(),
        "error": error,
        "offsets": offsets.collect::<Vec<_>>(),
    }));
}

/// Prints a record that was handled: before it is completed, so that no commit is ahead of what was seen.
fn show(record: &Record<'_>) {
    let text =
        |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    line(&json!({
        "timestamp": now(),
        "name": "record_data",
        "topic": record.topic(),
        "partition": record.partition(),
        "offset": record.offset(),
        "key": text(record.key()),
        "value": text(record.value()),
    }));
}

/// In one write, past the harness: lines of several workers do not mix, and none waits in a buffer.
fn line(value: &Value) {
    let _ = std::io::stdout()
        .lock()
        .write_all(format!("{value}\n").as_bytes());
}
