//! Children that are none: shells that say nothing, rubbish, or the wrong thing.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;
use rustix::process::test_kill_process;

use super::*;
use crate::clock::Clock;
use crate::config::RetryPolicy;
use crate::event::Event;
use crate::handler::WorkerInfo;
use crate::record::Record;
use crate::runtime::events::{EventSink, EventThread};
use crate::source::memory::{MemoryFactory, MemoryLog};
use crate::worker::gate::Gate;
use crate::worker::lane::ReleaseCause;
use crate::worker::mailbox::Mailbox;

/// Nothing here takes longer.
const PATIENT: Duration = Duration::from_secs(20);

struct Stage {
    mailbox: Arc<Mailbox>,
    reports: Receiver<FromWorker>,
    pid: Arc<AtomicU32>,
    told: Arc<Mutex<Vec<String>>>,
    events: Option<EventThread>,
    thread: JoinHandle<()>,
}

impl Stage {
    /// Stands in for a child that is a shell with that script.
    fn begin(script: &str, starts_within: Duration) -> Self {
        Self::launch(Launcher::of_shell(script), starts_within)
    }

    fn launch(launcher: Launcher, starts_within: Duration) -> Self {
        let clock = Clock::System;
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let observer = {
            let told = Arc::clone(&told);
            Box::new(move |event: &Event| told.lock().push(event.to_string()))
        };
        let (events, sink): (_, EventSink) =
            EventThread::start(Some(observer), &clock).expect("a thread");
        let children = Children {
            launcher,
            bootstrap: "127.0.0.1:9".into(),
            terms: vec![("order".into(), "Partition".into())],
            gate_limit: Duration::from_secs(5),
            revoke_deadline: Duration::from_secs(5),
            starts_within,
            memory: Arc::new(MemoryBudget::new(MemoryBudget::DEFAULT)),
            is_output_refused: AtomicBool::new(false),
        };
        let (reports, from_child) = bounded(64);
        let mailbox = Arc::new(Mailbox::new());
        let context = WorkerContext {
            info: WorkerInfo {
                worker: 0,
                restarts: 0,
            },
            clock: clock.clone(),
            gate: Arc::new(Gate::new(Duration::from_secs(5), clock.coarse())),
            mailbox: Arc::clone(&mailbox),
            reports,
            events: sink,
            sources: Arc::new(MemoryFactory::new(MemoryLog::new(), clock)),
            engines: Arc::new(EngineFactory::per_record(|_| |_: &Record<'_>| ())),
            retry: RetryPolicy::default(),
            dead_letters: None,
            count: None,
            is_child: false,
        };
        let pid = Arc::new(AtomicU32::new(0));
        let thread = {
            let pid = Arc::clone(&pid);
            let builder = std::thread::Builder::new().name("stands-in".into());
            builder
                .spawn(move || run(context, &children, &pid))
                .expect("a thread")
        };
        Self {
            mailbox,
            reports: from_child,
            pid,
            told,
            events: Some(events),
            thread,
        }
    }

    /// Waits for the end: why, and what was told. Nothing of the child is left.
    fn end(mut self) -> (WorkerExit, Vec<String>) {
        let report = self.reports.recv_timeout(PATIENT).expect("an exit in time");
        let FromWorker::Exited { exit, lanes, .. } = report else {
            panic!("something before the exit: {report:?}");
        };
        assert_eq!(lanes, []);
        self.thread.join().expect("it does not panic");
        let pid = i32::try_from(self.pid.load(Ordering::Relaxed)).expect("a number");
        if let Some(group) = Pid::from_raw(pid) {
            assert!(test_kill_process(group).is_err(), "it was waited for");
        }
        if let Some(events) = self.events.take() {
            events.join(PATIENT, &Clock::System);
        }
        (exit, std::mem::take(&mut self.told.lock()))
    }
}

/// Why a child failed, in words.
fn failed(exit: &WorkerExit) -> (&'static str, &str) {
    match exit {
        WorkerExit::Failed(why) => (why.name(), why.detail().unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

/// As a shell's `printf` takes them.
fn octal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "\\{byte:03o}");
        text
    })
}

/// A shell that says that, and then waits.
fn says(message: &ToParent) -> String {
    let mut bytes = Vec::new();
    line::write(&mut bytes, message).expect("it is short");
    format!("printf '{}' >&0; sleep 60", octal(&bytes))
}

fn hello(version: u32, pid: u32, order: &str) -> ToParent {
    ToParent::Hello {
        version,
        pid,
        terms: vec![("order".into(), order.into())],
    }
}

#[test]
fn a_child_that_says_nothing_before_run_is_given_time_and_then_killed() {
    let (exit, _) = Stage::begin("sleep 60", Duration::from_millis(400)).end();
    let (name, why) = failed(&exit);
    assert_eq!(name, "child-silent");
    assert!(why.contains("was not ready within 400ms"), "{why}");
    assert!(why.contains("standard input"), "{why}");
}

#[test]
fn a_child_that_ends_before_run_is_named_with_its_code_or_signal() {
    for (script, how) in [
        ("exit 3", "ended with code 3 before it came to run()"),
        (
            "kill -11 $$",
            "was ended by signal 11 before it came to run()",
        ),
    ] {
        let (exit, _) = Stage::begin(script, PATIENT).end();
        let (name, why) = failed(&exit);
        assert_eq!(name, "child-exited");
        assert!(why.contains(how), "{script}: {why}");
    }
}

#[test]
fn a_child_that_cannot_be_started_fails_as_a_worker_that_cannot() {
    let mut launcher = Launcher::of_shell("");
    launcher.replace_program("/nowhere/at/all");
    let (exit, _) = Stage::launch(launcher, PATIENT).end();
    let (name, why) = failed(&exit);
    assert_eq!(name, "fatal-client-error");
    assert!(why.contains("could not be started"), "{why}");
}

#[test]
fn a_child_that_writes_rubbish_or_half_a_message_is_killed() {
    let half = "printf '\\000\\000\\001\\000abc' >&0; exec 0<&-; exec 1>&-; exit 0";
    for (script, what) in [
        (
            "printf 'GET / HTTP/1.1' >&0; sleep 60",
            "bytes was announced",
        ),
        (
            "printf '\\000\\000\\000\\002\\377\\377' >&0; sleep 60",
            "2 bytes is none",
        ),
        (half, "ended with code 0"),
    ] {
        let (exit, _) = Stage::begin(script, PATIENT).end();
        let (name, why) = failed(&exit);
        assert_eq!(name, "child-exited", "{script}");
        assert!(why.contains(what), "{script}: {why}");
    }
}

#[test]
fn a_child_that_begins_with_something_else_than_its_name_is_killed() {
    let (exit, _) = Stage::begin(&says(&ToParent::Pulse), PATIENT).end();
    assert!(
        failed(&exit)
            .1
            .contains("did not begin by saying who it is")
    );
    let (exit, _) = Stage::begin(&says(&hello(VERSION, 1, "Partition")), PATIENT).end();
    assert!(failed(&exit).1.contains("process 1 answered"));
}

#[test]
fn a_child_of_another_version_ends_the_run_and_says_what_to_do() {
    let (exit, _) = Stage::begin(&says(&hello(VERSION + 1, 1, "Partition")), PATIENT).end();
    let WorkerExit::EndsRun(StopReason::FatalClientError { message }, _) = exit else {
        panic!("{exit:?}");
    };
    assert!(message.contains("the executable was replaced"), "{message}");
}

#[test]
fn a_stop_before_a_child_came_to_run_ends_it_at_once() {
    let stage = Stage::begin("trap '' TERM; sleep 60", PATIENT);
    stage.mailbox.stop(ReleaseCause::Revoked);
    assert_eq!(stage.end().0, WorkerExit::Asked);
}

#[test]
fn what_a_child_left_in_its_group_is_killed_and_said() {
    let (exit, told) = Stage::begin("sleep 61 & exit 7", PATIENT).end();
    assert!(failed(&exit).1.contains("code 7"));
    assert!(
        told.iter()
            .any(|line| line.contains("left processes of its group behind")),
        "{told:?}"
    );
}

#[test]
fn a_child_whose_line_somebody_else_keeps_open_is_noticed_all_the_same() {
    // Out of its group as well: nobody can say whose process that is.
    let (exit, told) = Stage::begin(
        "exec 3<&0; setsid sleep 3 <&3 >/dev/null 2>&1 & sleep 0.3; exit 7",
        PATIENT,
    )
    .end();
    assert!(failed(&exit).1.contains("code 7"));
    assert!(
        told.iter().any(|line| line.contains("keeps its line open")),
        "{told:?}"
    );
}

#[test]
fn what_a_child_prints_is_passed_on_in_whole_lines() {
    let mut output = b"one\ntwo".to_vec();
    pass_on_lines(&mut output).expect("standard output takes it");
    assert_eq!(output, b"two");
    pass_on_lines(&mut output).expect("standard output takes it");
    assert_eq!(output, b"two", "it has no end yet");
}
