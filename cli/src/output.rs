//! Standard output, shared by handlers and the observer of events, and
//! standard error for everything that is no result.
//!
//! Whoever reads it may go away (`keepup … | head`). That is how a pipe says
//! "enough", not a failure: the first write that finds it closed is remembered,
//! nothing is written from then on, and the run ends as if it had been asked
//! to.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Standard output, or what stands for it in a test.
pub(crate) struct Output {
    target: Mutex<Box<dyn Write + Send>>,
    /// Set once, when a write has failed; read on the hot path.
    unusable: AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

/// Nothing can be written any more; [`Output::failure`] tells why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unusable;

impl Output {
    pub(crate) fn stdout() -> Self {
        Self::new(Box::new(io::stdout()))
    }

    fn new(target: Box<dyn Write + Send>) -> Self {
        Self {
            target: Mutex::new(target),
            unusable: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Writes whole lines, together and to the end: when this returns, the
    /// operating system has them.
    pub(crate) fn write(&self, lines: &[u8]) -> Result<(), Unusable> {
        if self.is_unusable() {
            return Err(Unusable);
        }
        let mut target = self.target.lock();
        target
            .write_all(lines)
            .and_then(|()| target.flush())
            .map_err(|error| {
                self.failure.lock().get_or_insert(error);
                self.unusable.store(true, Ordering::Release);
                Unusable
            })
    }

    /// True once a write has failed.
    #[inline]
    pub(crate) fn is_unusable(&self) -> bool {
        self.unusable.load(Ordering::Relaxed)
    }

    /// Why nothing can be written any more: `None` where everything was
    /// written.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.failure
            .lock()
            .as_ref()
            .map(|error| io::Error::new(error.kind(), error.to_string()))
    }
}

/// True where nobody reads standard output any more. Where workers are processes
/// it is they who print, and no write of this process may have met that.
pub(crate) fn has_no_reader() -> bool {
    let stdout = io::stdout();
    // An error is told whether it is asked for or not.
    let mut looked = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut looked, Some(&Timespec::default())).is_ok()
        && looked[0].revents().contains(PollFlags::ERR)
}

/// Standard error that swallows its failures: where nobody listens nothing can
/// be said, and a log line must not end the thread that writes it.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says something to whoever started the command, on stderr.
pub(crate) fn say(text: &str) {
    let _ = Stderr.write_all(text.as_bytes());
}

/// Prints one result.
pub(crate) fn print(result: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(result.as_bytes())?;
    stdout.flush()
}

/// True for what a reader that has gone away causes.
pub(crate) fn is_closed_pipe(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ClosedPipe;

    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_closed_pipe_nothing_is_written_and_the_reason_is_kept() {
        let output = Output::new(Box::new(ClosedPipe));
        assert!(output.failure().is_none());
        assert_eq!(output.write(b"line\n"), Err(Unusable));
        assert!(output.is_unusable());
        assert_eq!(output.write(b"line\n"), Err(Unusable));
        assert!(is_closed_pipe(&output.failure().unwrap()));
    }
}
