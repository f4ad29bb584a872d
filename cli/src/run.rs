//! `keepup run`: a group with a built-in handler.
//!
//! What is printed of a record must be out before a commit that covers it can
//! be stored, or a crash in between would skip the line. The library commits
//! only what a handler has completed, so lines are written and flushed inside
//! the handler: a batch of lines in one write, which is what makes printing
//! millions of records bearable.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use keepup::{
    BatchHandler, BatchOutcome, Builder, Handler, Order, Outcome, Record, Records, Report,
    WorkerInfo,
};

use crate::exec::{Children, Exec};
use crate::exit::{Ending, Failure, stopped_by_handler};
use crate::lines::Format;
use crate::output::{self, Output};
use crate::plan::{OutputPlan, RunPlan};
use crate::values::HandlerKind;
use crate::{events, report, time};

/// How many records a printing handler takes at a time.
const BATCH: usize = 1_000;

/// Lines of a batch are written when they exceed this, so that large records
/// do not add up in memory.
const WRITE_BYTES: usize = 1024 * 1024;

/// Runs until something stops it, and tells how it ended.
pub(crate) fn run(plan: &RunPlan, how: OutputPlan) -> Result<Ending, Failure> {
    let output = Arc::new(Output::stdout());
    let builder = keepup::builder("", "").with_settings(plan.settings.clone());
    let builder = if plan.events {
        builder.on_event(events::printer(Arc::clone(&output)))
    } else {
        builder
    };
    let report = work(builder, plan, how, &output)?;
    let stdout = output.failure().or_else(|| {
        let is_closed = stopped_by_handler(&report) && output::has_no_reader();
        is_closed.then(|| ErrorKind::BrokenPipe.into())
    });
    match &stdout {
        Some(error) if output::is_closed_pipe(error) => {}
        Some(error) => output::say(&format!("error: stdout cannot be written: {error}\n")),
        None => tell(&report, plan, how)?,
    }
    let report = Box::new(report);
    Ok(Ending::Ran { report, stdout })
}

fn work(
    builder: Builder,
    plan: &RunPlan,
    how: OutputPlan,
    output: &Arc<Output>,
) -> Result<Report, keepup::Error> {
    let format = match (&plan.handler, how.json) {
        (HandlerKind::Print, true) => Some(Format::Json),
        (HandlerKind::Print, false) => Some(Format::Text),
        _ if plan.records => Some(Format::Event),
        _ => None,
    };
    let printer = {
        let output = Arc::clone(output);
        move |worker: WorkerInfo| Printer {
            output: Arc::clone(&output),
            format,
            worker: worker.worker,
            lines: Vec::new(),
        }
    };
    match (&plan.handler, format) {
        (&HandlerKind::Sleep(sleep), _) => builder.run(move |worker| Sleeper {
            sleep,
            printer: printer(worker),
        }),
        (HandlerKind::Exec(command), _) => {
            let children = Arc::new(Children::default());
            let report = builder.run({
                let (command, children) = (command.clone(), Arc::clone(&children));
                let (output, records) = (Arc::clone(output), plan.records);
                move |info: WorkerInfo| {
                    let (command, children) = (command.clone(), Arc::clone(&children));
                    Exec::new(command, children, Arc::clone(&output), info.worker, records)
                }
            });
            children.kill_all();
            report
        }
        // Batches have the order of their partition.
        (HandlerKind::Discard | HandlerKind::Print, Some(_))
            if plan.settings.order != Order::Partition =>
        {
            builder.run(move |worker| Sleeper {
                sleep: Duration::ZERO,
                printer: printer(worker),
            })
        }
        (HandlerKind::Discard | HandlerKind::Print, Some(_)) => {
            builder.run_batches(BATCH, Duration::ZERO, printer)
        }
        (HandlerKind::Discard | HandlerKind::Print, None) => {
            let output = Arc::clone(output);
            builder.run(move |_worker| {
                let output = Arc::clone(&output);
                move |_record: &Record<'_>| stop_if_unusable(&output)
            })
        }
    }
}

/// Prints the report where it does not get into the way of other results.
fn tell(report: &Report, plan: &RunPlan, how: OutputPlan) -> Result<(), Failure> {
    let stdout_is_taken = plan.events || plan.handler == HandlerKind::Print;
    if how.json && !stdout_is_taken {
        output::print(&report::json(report))?;
    } else if how.json {
        output::say(&report::json(report));
    } else if !how.quiet || report.reason.is_failure() {
        output::say(&report::text(report));
    }
    Ok(())
}

/// Nobody reads what this run prints: its work has no use any more.
#[inline]
fn stop_if_unusable(output: &Output) -> Outcome {
    if output.is_unusable() {
        closed()
    } else {
        Outcome::Done
    }
}

pub(crate) fn closed() -> Outcome {
    Outcome::stop("stdout cannot be written any more")
}

/// Writes a line per record, if there is a format to write it in.
struct Printer {
    output: Arc<Output>,
    format: Option<Format>,
    worker: usize,
    /// Kept between batches, so that its memory is used again.
    lines: Vec<u8>,
}

impl Printer {
    fn print<'a>(&mut self, records: impl Iterator<Item = Record<'a>>) -> Outcome {
        let Some(format) = self.format else {
            return stop_if_unusable(&self.output);
        };
        let now = time::unix_millis();
        self.lines.clear();
        for record in records {
            format.append(&mut self.lines, &record, self.worker, now);
            if self.lines.len() >= WRITE_BYTES {
                if self.output.write(&self.lines).is_err() {
                    return closed();
                }
                self.lines.clear();
            }
        }
        match self.output.write(&self.lines) {
            Ok(()) => Outcome::Done,
            Err(output::Unusable) => closed(),
        }
    }
}

impl BatchHandler for Printer {
    fn handle(&mut self, records: &Records<'_>) -> BatchOutcome {
        self.print(records.iter()).into()
    }
}

/// Takes its time with every record, then prints it if that is wanted.
struct Sleeper {
    sleep: Duration,
    printer: Printer,
}

impl Handler for Sleeper {
    fn handle(&mut self, record: &Record<'_>) -> Outcome {
        time::sleep_in_handler(self.sleep);
        self.printer.print(std::iter::once(*record))
    }
}
