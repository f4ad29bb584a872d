//! The member's own thread panics: the one failure of which no other part can tell.
//!
//! The panic is planted where the program can reach that thread, in a subscriber of the log that does not like a line.
//! A subscriber counts for the whole process, so that this test has one of its own.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]
#![expect(
    clippy::disallowed_methods,
    reason = "it reads the clock to know when to give up"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keepup::testing::EmbeddedCluster;
use keepup::{Event, EventKind, MemberState, Record, StopReason, WorkerStop, Workers};
use tracing::span::{Attributes, Id, Record as Values};
use tracing::{Metadata, Subscriber};

const PATIENCE: Duration = Duration::from_mins(1);

/// Panics at the next line that the member's thread logs, once it is armed.
struct Touchy(Arc<AtomicBool>);

impl Subscriber for Touchy {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Values<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, _event: &tracing::Event<'_>) {
        let is_member = std::thread::current().name() == Some("keepup-member");
        assert!(
            !(is_member && self.0.swap(false, Ordering::SeqCst)),
            "planted"
        );
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_member_whose_thread_panics_ends_with_its_workers_and_everything_says_why() {
    let armed = Arc::new(AtomicBool::new(false));
    tracing::subscriber::set_global_default(Touchy(Arc::clone(&armed))).unwrap();
    let cluster = EmbeddedCluster::start(1).unwrap();
    cluster.create_topic("panics", 2).unwrap();
    let producer = cluster.producer().unwrap();
    for number in 0..20 {
        let value = format!("{number}");
        producer
            .try_send("panics", number % 2, None, Some(value.as_bytes()))
            .unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let handled = Arc::new(AtomicUsize::new(0));
    let handle = keepup::builder(cluster.bootstrap(), "panics")
        .topic("panics")
        .workers(Workers::Fixed(2))
        .listen("127.0.0.1:0".parse::<SocketAddr>().unwrap())
        .on_event({
            let events = Arc::clone(&events);
            move |event| events.lock().unwrap().push(event.clone())
        })
        .start({
            let handled = Arc::clone(&handled);
            move |_| {
                let handled = Arc::clone(&handled);
                move |_: &Record<'_>| {
                    handled.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .unwrap();
    wait_for("the records", || handled.load(Ordering::SeqCst) == 20);
    let address = handle.listens_at().unwrap();
    wait_for("it to be ready", || handle.lag().health.is_ready());
    assert!(get(address, "/health/live").starts_with("HTTP/1.1 200"));

    armed.store(true, Ordering::SeqCst);
    wait_for("the run to end by itself", || handle.has_ended());
    wait_for("that to be shown", || {
        handle.lag().member == MemberState::Stopped
    });
    for path in ["/health/live", "/health/ready"] {
        let answer = get(address, path);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("thread panicked: planted"), "{answer}");
    }
    let metrics = get(address, "/metrics");
    let line = "keepup_stop_info{group_id=\"panics\",client_id=\"keepup\",reason=\"fatal-client-error\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
    let report = handle.wait();
    let StopReason::FatalClientError { message } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert!(message.contains("the member's thread panicked: planted"));
    assert_eq!((report.exit_code(), report.records), (1, 20));
    assert!(
        report.abandoned.is_empty() && report.left_group,
        "{report:?}"
    );
    let told = WorkerStop::RunStopped(Box::new(report.reason.clone()));
    assert_eq!(report.workers.len(), 2, "{report:?}");
    assert!(report.workers.iter().all(|worker| worker.reason == told));
    let events = events.lock().unwrap();
    let last = &events.last().unwrap().kind;
    assert!(
        matches!(last, EventKind::ShutdownComplete { reason, .. } if *reason == report.reason),
        "{last:?}"
    );
}
