//! Values as people write them: durations, places to start from, handlers,
//! addresses.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use keepup::StartFrom;

/// Why a text is not a value: the rule that it breaks, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) rule: &'static str,
    pub(crate) remedy: &'static str,
}

/// What is done with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandlerKind {
    Discard,
    Print,
    Sleep(Duration),
    /// A command for the shell.
    Exec(String),
}

impl FromStr for HandlerKind {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        match text {
            "discard" => Ok(Self::Discard),
            "print" => Ok(Self::Print),
            other => match other.split_once('=') {
                Some(("sleep", time)) => duration(time).map(Self::Sleep),
                Some(("exec", command)) if !command.trim().is_empty() => {
                    Ok(Self::Exec(command.to_owned()))
                }
                _ => Err(Wrong {
                    rule: "a handler is discard, print, sleep=DUR or exec=COMMAND",
                    remedy: "give one of them, or leave it out for discard",
                }),
            },
        }
    }
}

impl fmt::Display for HandlerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discard => f.write_str("discard"),
            Self::Print => f.write_str("print"),
            Self::Sleep(time) => write!(f, "sleep={}", show_duration(*time)),
            Self::Exec(command) => write!(f, "exec={command}"),
        }
    }
}

/// A duration such as `250ms`, `5s`, `2m`, `36h` or `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, Wrong> {
    let wrong = Wrong {
        rule: "a duration is a number with a unit, and not negative",
        remedy: "write it as 250ms, 5s, 2m or 7d",
    };
    let span: Span = text.parse().map_err(|_| wrong)?;
    let length = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| wrong)?;
    Duration::try_from(length).map_err(|_| wrong)
}

/// A duration as [`duration`] reads it.
pub(crate) fn show_duration(time: Duration) -> String {
    SignedDuration::try_from(time).map_or_else(
        |_| format!("{}s", time.as_secs()),
        |time| format!("{time:#}"),
    )
}

/// Where to start: `earliest`, `latest`, a moment (RFC 3339, or milliseconds
/// since 1970) or a duration before `now_ms`.
pub(crate) fn start_from(text: &str, now_ms: i64) -> Result<StartFrom, Wrong> {
    match text {
        "earliest" => return Ok(StartFrom::Earliest),
        "latest" => return Ok(StartFrom::Latest),
        _ => {}
    }
    if let Ok(millis) = text.parse::<i64>() {
        return if millis >= 0 {
            Ok(StartFrom::Timestamp(millis))
        } else {
            Err(Wrong {
                rule: "milliseconds count from 1970 on",
                remedy: "give a number from 0 up, or earliest for the oldest record",
            })
        };
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(StartFrom::Timestamp(moment.as_millisecond().max(0)));
    }
    let ago = duration(text).map_err(|_| Wrong {
        rule: "a start is earliest, latest, a time, or a duration for so long ago",
        remedy: "write a time as 2026-01-31T12:00:00Z or in ms since 1970, a duration as 2h or 7d",
    })?;
    let ago_ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
    Ok(StartFrom::Timestamp(now_ms.saturating_sub(ago_ms).max(0)))
}

/// Where to listen: an address with a port, a port of the loopback interface,
/// or `off`.
///
/// `:PORT` is refused: elsewhere it means every interface, and numbers that
/// anyone on the network can read should be asked for in so many words. Names
/// but `localhost` are refused too, since what they stand for is known only to
/// the resolver of the day.
pub(crate) fn listen(text: &str) -> Result<Option<SocketAddr>, Wrong> {
    if text == "off" {
        return Ok(None);
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(Some((Ipv4Addr::LOCALHOST, port).into()));
    }
    let number = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    number.parse().map(Some).map_err(|_| Wrong {
        rule: "an address to listen at is IP:PORT, localhost:PORT or PORT alone (on 127.0.0.1)",
        remedy: "write it as 127.0.0.1:9464, or as 0.0.0.0:9464 for every interface; off for none",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("2m", 120_000),
            ("36h", 129_600_000),
            ("7d", 604_800_000),
            ("1m 30s", 90_000),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
        for text in ["", "5", "fast", "-5s", "5s ago", "1mo", "5 apples"] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_shown_duration_can_be_read_again() {
        for millis in [0, 1, 250, 5_000, 90_000, 86_400_000] {
            let time = Duration::from_millis(millis);
            let shown = show_duration(time);
            assert_eq!(duration(&shown).unwrap(), time, "{shown}");
        }
    }

    #[test]
    fn a_start_is_a_word_a_moment_or_a_distance() {
        let now = 1_700_000_000_000;
        for (text, start) in [
            ("earliest", StartFrom::Earliest),
            ("latest", StartFrom::Latest),
            ("1700000000000", StartFrom::Timestamp(1_700_000_000_000)),
            (
                "2023-11-14T22:13:20Z",
                StartFrom::Timestamp(1_700_000_000_000),
            ),
            (
                "2023-11-14T23:13:20+01:00",
                StartFrom::Timestamp(1_700_000_000_000),
            ),
            ("2h", StartFrom::Timestamp(1_699_992_800_000)),
        ] {
            assert_eq!(start_from(text, now), Ok(start), "{text}");
        }
        for text in ["", "yesterday", "-1", "2023-11-14", "-2h"] {
            assert!(start_from(text, now).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn an_address_is_taken_as_it_is_meant_and_never_wider() {
        for (text, address) in [
            ("9464", Some("127.0.0.1:9464")),
            ("0", Some("127.0.0.1:0")),
            ("localhost:9464", Some("127.0.0.1:9464")),
            ("0.0.0.0:9464", Some("0.0.0.0:9464")),
            ("[::1]:9464", Some("[::1]:9464")),
            ("off", None),
        ] {
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(listen(text), Ok(address), "{text}");
        }
        for text in [
            "",
            ":9464",
            "127.0.0.1",
            "localhost",
            "localhost:",
            "host:9464",
            "127.0.0.1:65536",
            "99999",
            "::1:9464x",
            "http://127.0.0.1:9464",
            "none",
        ] {
            assert!(listen(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn handlers_are_read_and_shown_alike() {
        for text in ["discard", "print", "sleep=5ms", "exec=./work --in a=b"] {
            assert_eq!(text.parse::<HandlerKind>().unwrap().to_string(), text);
        }
        for text in [
            "", "sleep", "sleep=", "sleep=5", "exec", "exec= ", "run=cat",
        ] {
            assert!(text.parse::<HandlerKind>().is_err(), "{text:?} was taken");
        }
    }
}
