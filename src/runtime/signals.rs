//! SIGINT and SIGTERM: the first drains, the second cuts short, the third ends
//! the process at once. SIGHUP replaces all workers, one at a time, where there is
//! no terminal: the one that a run is started from hangs up with it, which is a
//! stop like another.
//!
//! The third does not ask anybody: whatever made the first two take so long
//! may be why the loop that would be asked does not answer.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle as SignalsHandle, Signals as SignalsIterator};

use crate::clock::Clock;
use crate::kafka::connection::StopFlag;
use crate::report::StopReason;
use crate::runtime::handle::Stopper;

/// Signals that come that close together are one: some senders, GNU `timeout`
/// among them, signal a process and then its group.
const SAME: Duration = Duration::from_millis(10);

/// What a shell adds to a signal's number.
const EXIT_BY_SIGNAL: i32 = 128;

/// Whether somebody may be sitting at this.
fn has_terminal() -> bool {
    use std::io::IsTerminal as _;
    std::io::stdin().is_terminal() || std::io::stderr().is_terminal()
}

/// The signal handlers of a run and the thread that acts on them.
pub(crate) struct Signals {
    handle: SignalsHandle,
    thread: JoinHandle<()>,
    state: Arc<Mutex<State>>,
    stop_asked: StopFlag,
}

#[derive(Default)]
struct State {
    signals: u32,
    /// Who is told; nobody yet while the first contact is sought.
    stopper: Option<Stopper>,
}

impl Signals {
    /// Takes over SIGINT, SIGTERM and SIGHUP.
    pub(crate) fn install() -> io::Result<Self> {
        let mut signals = SignalsIterator::new([SIGINT, SIGTERM, SIGHUP])?;
        let handle = signals.handle();
        let state = Arc::new(Mutex::new(State::default()));
        let stop_asked = StopFlag::default();
        let (shared, stop_contact) = (Arc::clone(&state), stop_asked.clone());
        let thread = std::thread::Builder::new()
            .name("keepup-signals".into())
            .spawn(move || {
                let clock = Clock::System;
                // The last one that counted.
                let mut last: Option<Instant> = None;
                for signal in signals.forever() {
                    if signal == SIGHUP && !has_terminal() {
                        if let Some(stopper) = &shared.lock().stopper {
                            stopper.restart_workers();
                        }
                        continue;
                    }
                    stop_contact.stop();
                    let now = clock.now();
                    if last.is_some_and(|last| now.saturating_duration_since(last) < SAME) {
                        continue;
                    }
                    last = Some(now);
                    let mut state = shared.lock();
                    state.signals += 1;
                    if state.signals > 2 {
                        std::process::exit(EXIT_BY_SIGNAL + signal);
                    }
                    if let Some(stopper) = &state.stopper {
                        stopper.stop(StopReason::Signal);
                    }
                }
            })?;
        Ok(Self {
            handle,
            thread,
            state,
            stop_asked,
        })
    }

    /// Set once a signal came.
    pub(crate) fn stop_asked(&self) -> StopFlag {
        self.stop_asked.clone()
    }

    /// Tells this run from now on. Signals that came before it could be told
    /// are told now: the lock makes sure that none falls in between.
    pub(crate) fn watch(&self, stopper: Stopper) {
        let mut state = self.state.lock();
        for _ in 0..state.signals {
            stopper.stop(StopReason::Signal);
        }
        state.stopper = Some(stopper);
    }

    /// Gives the signals back and joins the thread.
    pub(crate) fn remove(self) {
        self.handle.close();
        if self.thread.join().is_err() {
            tracing::error!("the thread keepup-signals panicked");
        }
    }
}
