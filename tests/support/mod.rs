//! What the scenarios are written with: brokers, records, processes, and waiting with a deadline.

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

pub(crate) mod chromium;
pub(crate) mod cluster;
pub(crate) mod deliveries;
pub(crate) mod kafka;
pub(crate) mod keepup;
#[macro_use]
pub(crate) mod members;
pub(crate) mod notes;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod raw;
pub(crate) mod records;
pub(crate) mod run;
pub(crate) mod secure;
pub(crate) mod tools;

/// Long enough for anything that should happen soon, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Long enough for what takes sessions, elections or starts of brokers.
pub(crate) const PATIENT: Duration = Duration::from_mins(1);

/// The name of the test that is running: what a skip is reported under.
macro_rules! test_name {
    () => {{
        fn here() {}
        $crate::support::enclosing(std::any::type_name_of_val(&here))
    }};
}

/// A Kafka for this test, or the end of it where there is none: `let kafka = kafka!(shared);`.
///
/// `shared` is one broker for all tests of the binary; `one`, `patient` and `three` start a cluster of the test's own.
macro_rules! kafka {
    ($which:ident) => {
        match $crate::support::kafka::Kafka::$which(test_name!()) {
            Some(kafka) => kafka,
            None => return,
        }
    };
}

/// A test of a shared broker for workers that are threads, and one for processes.
macro_rules! per_model {
    ($($name:ident { $threads:ident, $processes:ident })+) => {$(
        #[test]
        fn $threads() {
            $name(kafka!(shared), stringify!($threads), "threads");
        }

        #[test]
        fn $processes() {
            $name(kafka!(shared), stringify!($processes), "processes");
        }
    )+};
}

/// The function in which `path` (of an item inside of it) stands.
pub(crate) fn enclosing(path: &str) -> &str {
    let function = path.rsplit_once("::").map_or(path, |(outer, _)| outer);
    function
        .rsplit_once("::")
        .map_or(function, |(_, name)| name)
}

/// A seed for this test, or the one of a failed run, on standard output.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("KEEPUP_TEST_SEED").ok();
    let seed = given.map_or_else(
        || fastrand::u64(..),
        |seed| seed.parse().expect("KEEPUP_TEST_SEED is a number"),
    );
    println!("KEEPUP_TEST_SEED={seed}");
    seed
}

/// Asks `probe` again and again until it gives `Ok`.
///
/// `Err` is what was seen instead; the last one is in the panic's message when `within` has passed.
pub(crate) fn wait_until<R, S: Debug>(
    within: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<R, S>,
) -> R {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match probe() {
            Ok(result) => return result,
            Err(seen) => assert!(
                start.elapsed() < within,
                "waited {:.1} s for: {what}; last seen: {seen:?}",
                start.elapsed().as_secs_f64()
            ),
        }
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// As [`wait_until`], for a condition that says only yes or no.
pub(crate) fn wait_for(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_until(within, what, || {
        if condition() { Ok(()) } else { Err("not yet") }
    });
}

/// Drives a future on this thread; the admin client's own thread wakes it.
pub(crate) fn block_on<T>(within: Duration, what: &str, future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let start = Instant::now();
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        let left = within.saturating_sub(start.elapsed());
        assert!(!left.is_zero(), "waited {within:?} for: {what}");
        std::thread::park_timeout(left);
    }
}
