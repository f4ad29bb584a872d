//! A recorder of our own for the `metrics` crate.
//!
//! A program that serves `/metrics` from here and counts things of its own with
//! `metrics::counter!` wants both on one page. So a run that listens installs a
//! recorder for the process, unless the program has one, and appends what is in
//! it. Our own metrics never go through it: its registry cannot remove a
//! series.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::Recorder;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::names;

/// The recorder that we installed; `None` where the program had one.
static INSTALLED: OnceLock<Option<Installed>> = OnceLock::new();

struct Installed {
    handle: PrometheusHandle,
    /// Where the recorder is: what tells it from another.
    address: usize,
}

/// Installs a recorder for the process, once, unless there is one.
pub(crate) fn install() {
    INSTALLED.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).ok()?;
        Some(Installed {
            handle,
            address: metrics::with_recorder(address),
        })
    });
}

/// True where it is the one that we installed.
pub(crate) fn is_ours(recorder: &dyn Recorder) -> bool {
    installed().is_some_and(|ours| ours.address == address(recorder))
}

/// Appends what the program recorded of its own.
pub(crate) fn render_foreign(out: &mut String) {
    if let Some(ours) = installed() {
        append(&ours.handle.render(), out);
    }
}

/// Tidies up: without it, what a histogram was told is kept one by one until
/// somebody asks. To be called every few seconds.
pub(crate) fn upkeep() {
    if let Some(ours) = installed() {
        ours.handle.run_upkeep();
    }
}

fn installed() -> Option<&'static Installed> {
    INSTALLED.get().and_then(Option::as_ref)
}

fn address(recorder: &dyn Recorder) -> usize {
    std::ptr::from_ref(recorder).cast::<()>().addr()
}

/// Appends `text` without the families that are ours: with one series twice,
/// Prometheus refuses the whole page.
fn append(text: &str, out: &mut String) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    let mut is_dropped = false;
    for line in text.split_inclusive('\n') {
        if let Some(family) = family_of(line) {
            is_dropped = names::is_ours(family);
            if is_dropped && !IS_SAID.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    metric = family,
                    "a metric of the program has the name of one of keepup's and is not shown"
                );
            }
        }
        if !is_dropped {
            out.push_str(line);
        }
    }
}

/// The family whose lines begin here. Each has at least a line with its type.
fn family_of(line: &str) -> Option<&str> {
    line.strip_prefix("# HELP ")
        .or_else(|| line.strip_prefix("# TYPE "))
        .and_then(|rest| rest.split(' ').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_counts_is_appended_and_what_has_our_names_is_not() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_counter!("orders_total", "Orders.");
            metrics::counter!("orders_total", "kind" => "new").increment(3);
            metrics::describe_gauge!(names::WORKERS.name, "Workers of another kind.");
            metrics::gauge!(names::WORKERS.name).set(7.0);
            metrics::gauge!("temperature").set(21.5);
            metrics::histogram!(names::HANDLER_SECONDS.name).record(1.0);
            // Its name alone is that of a series of our histogram.
            metrics::gauge!(format!("{}_sum", names::HANDLER_SECONDS.name)).set(1.0);
        });
        let mut out = String::from("before 1\n");
        append(&handle.render(), &mut out);
        let lines: Vec<_> = out.lines().filter(|line| !line.is_empty()).collect();
        assert!(lines.starts_with(&["before 1"]), "{out}");
        assert!(lines.contains(&"# HELP orders_total Orders."), "{out}");
        assert!(lines.contains(&"orders_total{kind=\"new\"} 3"), "{out}");
        assert!(lines.contains(&"temperature 21.5"), "{out}");
        assert_eq!(lines.len(), 6, "{out}");
    }

    /// Changes the whole test process, as it does in a program: the other tests
    /// have local recorders, which go first.
    #[test]
    fn it_is_installed_once_and_told_from_others() {
        install();
        install();
        assert!(metrics::with_recorder(is_ours));
        assert!(!is_ours(&metrics::NoopRecorder));
        let other = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&other, || assert!(!metrics::with_recorder(is_ours)));
        metrics::counter!("counted_by_a_test_total").increment(2);
        upkeep();
        let mut out = String::new();
        render_foreign(&mut out);
        assert!(out.contains("counted_by_a_test_total 2\n"), "{out}");
    }
}
