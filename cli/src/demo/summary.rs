//! The demo's last word: what was produced, what was handled, what is missing.

use std::fmt::Write;

use serde::Serialize;

use super::chaos::Done;
use crate::report::{grouped, plural};

/// The line that `demo --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) model: &'static str,
    pub(super) partitions: u32,
    pub(super) workers: usize,
    pub(super) seconds: f64,
    pub(super) produced: u64,
    pub(super) handled: u64,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    pub(super) restarts: u32,
    pub(super) max_lag: u64,
    pub(super) lag: u64,
    /// Only with `--chaos`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chaos: Option<Chaos>,
}

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Chaos {
    pub(super) seed: u64,
    #[serde(flatten)]
    pub(super) done: Done,
}

impl Summary {
    /// One line of JSON.
    pub(super) fn json(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// A block for people, which ends with what it means.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{:.1} s of load on {} {}, {} {}\n\n",
            self.seconds,
            self.partitions,
            plural(u64::from(self.partitions), "partition", "partitions"),
            self.workers,
            plural(self.workers as u64, "worker", "workers"),
        );
        for (what, number) in [
            ("produced", self.produced),
            ("handled", self.handled),
            ("lost", self.lost),
            ("duplicates", self.duplicates),
            ("worker restarts", u64::from(self.restarts)),
            ("highest lag", self.max_lag),
            ("lag at the end", self.lag),
        ] {
            let _ = writeln!(text, "  {what:<16}{:>12}", grouped(number));
        }
        if let Some(Chaos { seed, done }) = &self.chaos {
            let _ = writeln!(text, "\nchaos: {}", done.text());
            let model = match self.model {
                "threads" => String::new(),
                model => format!(" --model {model}"),
            };
            let _ = writeln!(
                text,
                "the same again: keepup demo{model} --chaos --seed {seed}"
            );
        }
        text.push('\n');
        text.push_str(&self.verdict());
        text.push('\n');
        text
    }

    fn verdict(&self) -> String {
        let produced = grouped(self.produced);
        match (self.lost, self.duplicates) {
            (0, 0) => format!(
                "nothing lost: each of the {produced} records that were produced was handled, and \
                 none twice"
            ),
            (0, again) => format!(
                "nothing lost: each of the {produced} records that were produced was handled; {} \
                 {} handled again",
                grouped(again),
                plural(again, "was", "were"),
            ),
            (lost, _) => format!(
                "LOST: {} of the {produced} records that were produced {} not handled",
                grouped(lost),
                plural(lost, "was", "were"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            model: "threads",
            partitions: 6,
            workers: 6,
            seconds: 20.0,
            produced: 400_000,
            handled: 400_000,
            lost: 0,
            duplicates: 0,
            restarts: 0,
            max_lag: 5_200,
            lag: 0,
            chaos: None,
        }
    }

    #[test]
    fn the_json_is_frozen() {
        assert_eq!(
            summary().json(),
            "{\"model\":\"threads\",\"partitions\":6,\"workers\":6,\"seconds\":20.0,\
             \"produced\":400000,\"handled\":400000,\"lost\":0,\"duplicates\":0,\"restarts\":0,\
             \"max_lag\":5200,\"lag\":0}\n"
        );
    }

    #[test]
    fn what_was_broken_is_told_with_the_seed_that_does_it_again() {
        let chaos = Summary {
            restarts: 2,
            chaos: Some(Chaos {
                seed: 42,
                done: Done {
                    panics: 2,
                    pauses: 1,
                    ..Done::default()
                },
            }),
            ..summary()
        };
        assert!(
            chaos.json().ends_with(
                ",\"lag\":0,\"chaos\":{\"seed\":42,\"panics\":2,\"failures\":0,\"hangs\":0,\
                 \"pauses\":1,\"fewer_workers\":0,\"joins\":0,\"broker_away\":0}}\n"
            ),
            "{}",
            chaos.json()
        );
        insta::assert_snapshot!("chaos", chaos.text());
    }

    #[test]
    fn the_block_ends_with_what_it_means() {
        insta::assert_snapshot!("summary", summary().text());
        let lossy = Summary {
            handled: 399_999,
            lost: 1,
            duplicates: 2,
            ..summary()
        };
        assert!(
            lossy
                .text()
                .ends_with("LOST: 1 of the 400,000 records that were produced was not handled\n")
        );
        let repeated = Summary {
            duplicates: 2,
            ..summary()
        };
        assert!(
            repeated
                .text()
                .ends_with("was handled; 2 were handled again\n")
        );
    }
}
