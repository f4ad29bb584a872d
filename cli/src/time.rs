//! The only place of the command where clocks are read and handlers sleep.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

/// A monotonic moment.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The machine's monotonic clock, which processes have in common.
pub(crate) fn monotonic() -> Duration {
    duration(clock_gettime(ClockId::Monotonic))
}

#[cfg(target_os = "linux")]
const COARSE: ClockId = ClockId::MonotonicCoarse;
#[cfg(not(target_os = "linux"))]
const COARSE: ClockId = ClockId::Monotonic;

/// As [`monotonic`], but up to [`coarse_step`] behind, for the price of a few
/// nanoseconds; more than that where the machine's ticks are late.
pub(crate) fn coarse() -> Duration {
    duration(clock_gettime(COARSE))
}

/// From one moment of the coarse clock to the next.
pub(crate) fn coarse_step() -> Duration {
    duration(clock_getres(COARSE))
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub(crate) fn unix_millis() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// User and system time that this process has used so far, all threads.
pub(crate) fn cpu() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

fn duration(time: Timespec) -> Duration {
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// What a handler that pretends to work does.
#[expect(
    clippy::disallowed_methods,
    reason = "sleeping is what such a handler is for; it is short and nothing waits for it"
)]
pub(crate) fn sleep_in_handler(time: Duration) {
    thread::sleep(time);
}
