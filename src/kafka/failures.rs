//! How often connections failed, and how.
//!
//! A broker that answers garbage once an hour is weathered without a word that
//! anybody would notice: the connection is closed, another one is made, and
//! nothing is lost. So what goes wrong is counted by kind, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::connection::ConnectionError;
use crate::lag::ConnectionErrors;

/// Counts failed connections; shared by all who make them.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    resolve: AtomicU64,
    connect: AtomicU64,
    timed_out: AtomicU64,
    closed: AtomicU64,
    wire: AtomicU64,
    tls: AtomicU64,
    authentication: AtomicU64,
}

impl Failures {
    /// One more. A connection that a stop has ended has not failed.
    pub(crate) fn count(&self, error: &ConnectionError) {
        let counter = match error {
            ConnectionError::Address { .. } | ConnectionError::Resolve { .. } => &self.resolve,
            ConnectionError::Connect { .. } => &self.connect,
            ConnectionError::TimedOut { .. } => &self.timed_out,
            ConnectionError::Closed { .. } | ConnectionError::Io { .. } => &self.closed,
            ConnectionError::Wire { .. } => &self.wire,
            ConnectionError::Tls { .. } => &self.tls,
            ConnectionError::Sasl { .. } => &self.authentication,
            ConnectionError::Stopped { .. } => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn totals(&self) -> ConnectionErrors {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ConnectionErrors {
            resolve: read(&self.resolve),
            connect: read(&self.connect),
            timed_out: read(&self.timed_out),
            closed: read(&self.closed),
            wire: read(&self.wire),
            tls: read(&self.tls),
            authentication: read(&self.authentication),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;
    use crate::kafka::frame::WireError;

    #[test]
    fn every_way_to_fail_is_counted_and_a_stop_is_none() {
        let address = || "broker:9092".to_owned();
        let failures = Failures::default();
        for error in [
            ConnectionError::Resolve {
                address: address(),
                error: io::ErrorKind::NotFound.into(),
            },
            ConnectionError::Connect {
                address: address(),
                error: io::ErrorKind::ConnectionRefused.into(),
            },
            ConnectionError::TimedOut {
                address: address(),
                what: "answer",
                waited: Duration::from_secs(10),
            },
            ConnectionError::Closed { address: address() },
            ConnectionError::Io {
                address: address(),
                error: io::ErrorKind::ConnectionReset.into(),
            },
            ConnectionError::Wire {
                address: address(),
                error: WireError::OutOfStep {
                    expected: 1,
                    got: 2,
                },
            },
            ConnectionError::Stopped { address: address() },
        ] {
            failures.count(&error);
        }
        let expected = ConnectionErrors {
            resolve: 1,
            connect: 1,
            timed_out: 1,
            closed: 2,
            wire: 1,
            tls: 0,
            authentication: 0,
        };
        assert_eq!(failures.totals(), expected);
    }
}
