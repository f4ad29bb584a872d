//! `keepup check`: what would be in force, or everything that is wrong.
//!
//! Nothing is contacted. What is printed is a configuration file itself: every
//! option with its effective value, and secrets hidden.

use std::collections::BTreeMap;

use keepup::Assignment;
use serde::Serialize;

use crate::exit::{Ending, Failure};
use crate::output;
use crate::plan::{OutputPlan, RunPlan};
use crate::problem::Problem;
use crate::values::show_duration;

/// What stands in place of a secret.
const HIDDEN: &str = "[hidden]";

/// The settings of `run` under the names of its options.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Effective<'a> {
    bootstrap: &'a str,
    topic: &'a [String],
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    assign: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<usize>,
    workers: String,
    model: &'static str,
    source: &'static str,
    order: &'static str,
    handler: String,
    from: &'a str,
    on_out_of_range: &'static str,
    retry_attempts: u32,
    retry_backoff: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<&'a str>,
    on_exhausted: &'static str,
    remember_completed: bool,
    drain: String,
    timeout: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    until_end: bool,
    listen: String,
    stuck_after: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<&'static str>,
    records: bool,
    // Tables come last in TOML.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    label: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    property: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Refused<'a> {
    problems: &'a [Problem],
}

/// Prints the effective settings, or the problems.
pub(crate) fn check(
    plan: Result<RunPlan, Vec<Problem>>,
    how: OutputPlan,
) -> Result<Ending, Failure> {
    match plan {
        Ok(plan) => {
            let text = if how.json {
                json(&Effective::from(&plan))
            } else {
                toml::to_string(&Effective::from(&plan)).unwrap_or_default()
            };
            output::print(&text)?;
            Ok(Ending::Printed)
        }
        Err(problems) => {
            if how.json {
                output::print(&json(&Refused {
                    problems: &problems,
                }))?;
            }
            Err(Failure::Problems {
                problems,
                told: how.json,
            })
        }
    }
}

fn json(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

impl<'a> From<&'a RunPlan> for Effective<'a> {
    fn from(plan: &'a RunPlan) -> Self {
        let settings = &plan.settings;
        let (assign, index, of) = match settings.assignment {
            Assignment::Group => (None, None, None),
            Assignment::Static { index, of } => (Some("static"), Some(index), Some(of)),
        };
        Self {
            bootstrap: &settings.bootstrap,
            topic: &settings.topics,
            group: &settings.group,
            assign,
            index,
            of,
            workers: settings.workers.to_string(),
            model: settings.model.name(),
            source: settings.source_in_force().name().unwrap_or("auto"),
            order: settings.order.name(),
            handler: plan.handler.to_string(),
            from: &plan.from,
            on_out_of_range: settings.on_out_of_range.name(),
            retry_attempts: settings.retry.attempts,
            retry_backoff: show_duration(settings.retry.backoff),
            dead_letter: settings.dead_letter.as_deref(),
            on_exhausted: settings.retry.on_exhausted.name(),
            remember_completed: settings.remember_completed,
            drain: show_duration(settings.stop_deadline),
            timeout: show_duration(settings.contact_timeout),
            count: settings.count,
            until_end: settings.until_end,
            listen: settings
                .listen
                .map_or_else(|| "off".to_owned(), |address| address.to_string()),
            stuck_after: show_duration(settings.stuck_after),
            events: plan.events.then_some("json"),
            records: plan.records,
            label: &settings.labels,
            property: settings
                .properties
                .iter()
                .map(|(name, value)| (name.as_str(), masked(name, value)))
                .collect(),
        }
    }
}

/// The value of a property, unless it is a secret.
fn masked<'a>(name: &str, value: &'a str) -> &'a str {
    let name = name.to_ascii_lowercase();
    let secret = [
        "passw",
        "passphrase",
        "secret",
        "token",
        "jaas",
        "oauthbearer.config",
        "key.pem",
    ]
    .iter()
    .any(|part| name.contains(part));
    // Where a token is fetched from is no secret.
    if secret && !name.contains("endpoint") {
        HIDDEN
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_nothing_else_is() {
        for name in [
            "sasl.password",
            "ssl.key.password",
            "ssl.keystore.password",
            "ssl.key.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "SASL.PASSWORD",
        ] {
            assert_eq!(masked(name, "hunter2"), HIDDEN, "{name}");
        }
        for name in [
            "sasl.username",
            "ssl.ca.pem",
            "ssl.key.location",
            "sasl.oauthbearer.token.endpoint.url",
            "client.rack",
        ] {
            assert_eq!(masked(name, "shown"), "shown", "{name}");
        }
    }
}
