//! Tells systemd how the run is: ready, alive, stopping.
//!
//! A unit of `Type=notify` counts as started when the group has taken the process
//! in, not when it was forked, and what is ordered after it waits for that. With
//! `WatchdogSec=` systemd restarts a process that does not say that it is alive;
//! what is said here is what `/health/live` says, so that a process is restarted
//! for what a restart mends, and not for an idle topic or a long record.
//!
//! The socket is named by `NOTIFY_SOCKET` (the manual page `sd_notify(3)`). Where there is none,
//! nobody is told.

use sd_notify::NotifyState;

use crate::lag::reporter::Viewer;
use crate::lag::{LagSnapshot, MemberState};

/// In every so many looks, which are a second apart, the status is told again.
const STATUS_EVERY: u32 = 10;

/// What was told.
#[derive(Debug, Default)]
struct Told {
    is_ready: bool,
    is_stopping: bool,
    looks: u32,
}

impl Told {
    /// What is to be told of a look.
    fn news(&mut self, snapshot: &LagSnapshot) -> Vec<String> {
        let mut news = Vec::new();
        let is_ready = snapshot.health.not_ready.is_none();
        if is_ready && !self.is_ready {
            self.is_ready = true;
            self.looks = 0;
            news.push("READY=1".to_owned());
        }
        let is_stopping = matches!(
            snapshot.member,
            MemberState::Stopping | MemberState::Stopped
        );
        if is_stopping && !self.is_stopping {
            self.is_stopping = true;
            news.push("STOPPING=1".to_owned());
        }
        if snapshot.health.not_live.is_empty() {
            news.push("WATCHDOG=1".to_owned());
        }
        if self.looks.is_multiple_of(STATUS_EVERY) || is_stopping {
            news.push(status(snapshot));
        }
        self.looks = self.looks.wrapping_add(1);
        news
    }
}

/// One line for `systemctl status`.
fn status(snapshot: &LagSnapshot) -> String {
    let lag = snapshot
        .total_lag()
        .map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
    format!(
        "STATUS=group {}: {}, {} partitions, {} workers, lag {lag}",
        snapshot.group,
        snapshot.member.name(),
        snapshot.partitions.len(),
        snapshot.workers.len(),
    )
}

/// Tells systemd of every look of the reporter; `None` where nobody listens.
pub(crate) fn viewer() -> Option<Viewer> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let mut told = Told::default();
    Some(Box::new(move |snapshot| {
        let news = told.news(snapshot);
        let states: Vec<_> = news.iter().map(|line| NotifyState::Custom(line)).collect();
        if states.is_empty() {
            return;
        }
        if let Err(error) = sd_notify::notify(&states) {
            tracing::debug!(%error, "systemd cannot be told");
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(member: MemberState, not_ready: Option<&str>, not_live: &[&str]) -> LagSnapshot {
        let mut snapshot = LagSnapshot {
            group: "billing".into(),
            member,
            ..LagSnapshot::default()
        };
        snapshot.health.not_ready = not_ready.map(Into::into);
        snapshot.health.not_live = not_live.iter().map(|&why| why.into()).collect();
        snapshot
    }

    fn without_status(news: Vec<String>) -> Vec<String> {
        let mut news = news;
        news.retain(|line| !line.starts_with("STATUS="));
        news
    }

    #[test]
    fn a_run_is_ready_once_alive_as_long_as_it_is_and_stopping_once() {
        let mut told = Told::default();
        let joining = look(
            MemberState::Joining,
            Some("the group has not answered"),
            &[],
        );
        assert_eq!(without_status(told.news(&joining)), ["WATCHDOG=1"]);
        let joined = look(MemberState::Joined, None, &[]);
        assert_eq!(
            without_status(told.news(&joined)),
            ["READY=1", "WATCHDOG=1"]
        );
        assert_eq!(without_status(told.news(&joined)), ["WATCHDOG=1"]);
        let stuck = look(
            MemberState::Joined,
            None,
            &["a record has been in its handler for 5m"],
        );
        assert_eq!(without_status(told.news(&stuck)), [""; 0]);
        let stopping = look(MemberState::Stopping, Some("it stops"), &[]);
        assert_eq!(
            without_status(told.news(&stopping)),
            ["STOPPING=1", "WATCHDOG=1"]
        );
        assert_eq!(without_status(told.news(&stopping)), ["WATCHDOG=1"]);
    }

    #[test]
    fn the_status_is_a_line_for_people() {
        let mut told = Told::default();
        let joined = look(MemberState::Joined, None, &[]);
        let news = told.news(&joined);
        assert_eq!(
            news.last().map(String::as_str),
            Some("STATUS=group billing: joined, 0 partitions, 0 workers, lag unknown")
        );
        let again = (0..STATUS_EVERY).flat_map(|_| told.news(&joined));
        assert_eq!(again.filter(|line| line.starts_with("STATUS=")).count(), 1);
    }
}
