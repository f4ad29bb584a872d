//! The last word of a run, for people and for programs.

use std::fmt::Write;

use keepup::Report;
use serde::Serialize;

/// A report as JSON.
#[derive(Serialize)]
struct ReportObject<'a> {
    reason: &'static str,
    /// The reason in words, where the run failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    records: u64,
    left_uncommitted: u64,
    left_group: bool,
    stop_ms: u64,
    abandoned: &'a [usize],
    recommended_workers: Option<usize>,
    partitions_needed: Option<usize>,
    catch_up_s: Option<u64>,
    busy: Option<f64>,
    workers: Vec<WorkerObject<'a>>,
}

#[derive(Serialize)]
struct WorkerObject<'a> {
    worker: usize,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    restarts: u32,
}

/// One line of JSON.
pub(crate) fn json(report: &Report) -> String {
    let object = ReportObject {
        reason: report.reason.name(),
        detail: report
            .reason
            .is_failure()
            .then(|| report.reason.to_string()),
        records: report.records,
        left_uncommitted: report.left_uncommitted,
        left_group: report.left_group,
        stop_ms: u64::try_from(report.stop_took.as_millis()).unwrap_or(u64::MAX),
        abandoned: &report.abandoned,
        recommended_workers: report.advice.workers,
        partitions_needed: report.advice.partitions_needed,
        catch_up_s: report.advice.catch_up.map(|time| time.as_secs()),
        busy: report.advice.busy,
        workers: report
            .workers
            .iter()
            .map(|worker| WorkerObject {
                worker: worker.worker,
                reason: worker.reason.name(),
                detail: worker.reason.detail(),
                restarts: worker.restarts,
            })
            .collect(),
    };
    let mut line = serde_json::to_string(&object).unwrap_or_default();
    line.push('\n');
    line
}

/// What a person wants to know: how much, why it ended, what is left.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    if report.reason.is_failure() {
        let _ = writeln!(text, "error: {}", report.reason);
    }
    for worker in &report.abandoned {
        let _ = writeln!(
            text,
            "warning: the handler of worker {worker} did not return before the stop deadline and \
             was left behind, or killed with its process; allow more time with --drain"
        );
    }
    if !report.left_group {
        text.push_str(
            "warning: the group's coordinator did not answer in time; the partitions are given to \
             others when the session ends\n",
        );
    }
    let rest = match report.left_uncommitted {
        0 => "all of it is committed".to_owned(),
        many => format!(
            "{} {} not committed and will be delivered again",
            grouped(many),
            plural(many, "record is", "records are")
        ),
    };
    let _ = writeln!(
        text,
        "{} {} handled ({}); {rest}",
        grouped(report.records),
        plural(report.records, "record", "records"),
        report.reason.name()
    );
    advice(&mut text, report);
    text
}

/// How many workers the load wanted, where that is known, beside those that ran.
fn advice(text: &mut String, report: &Report) {
    let Some(wanted) = report.advice.workers else {
        return;
    };
    let ran = report.workers.len();
    let workers = plural(wanted as u64, "worker", "workers");
    let _ = write!(text, "the load wanted {wanted} {workers}");
    if let Some(partitions) = report.advice.partitions_needed {
        let _ = write!(text, " and {partitions} partitions");
    }
    let _ = write!(text, "; {ran} ran");
    if let Some(busy) = report.advice.busy {
        let percent = (busy * 100.0).round();
        let _ = write!(text, ", busy for {percent} % of the last minute");
    }
    text.push('\n');
}

/// A number in groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The word that befits a number.
pub(crate) fn plural<'a>(number: u64, one: &'a str, many: &'a str) -> &'a str {
    if number == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_come_in_groups_of_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (20_123, "20,123"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
