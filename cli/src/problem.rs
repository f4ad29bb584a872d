//! Something wrong with what was asked for: what was given, the rule that it
//! breaks, and what to do.
//!
//! The library has such a type and can make values of it only itself; this one
//! also takes what the command finds, and names settings as the options are
//! named.

use std::fmt;

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) setting: String,
    pub(crate) value: String,
    pub(crate) rule: String,
    pub(crate) remedy: String,
}

impl Problem {
    pub(crate) fn new(
        setting: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            setting: setting.into(),
            value: value.to_string(),
            rule: rule.into(),
            remedy: remedy.into(),
        }
    }
}

impl From<&keepup::Problem> for Problem {
    fn from(problem: &keepup::Problem) -> Self {
        Self::new(
            option_name(&problem.setting),
            &problem.value,
            &problem.rule,
            &problem.remedy,
        )
    }
}

/// How the command calls a setting of the library.
fn option_name(setting: &str) -> &str {
    match setting {
        "topics" => "topic",
        "workers (auto)" => "workers",
        "assign static index" => "index",
        "retry attempts" => "retry-attempts",
        "retry backoff" => "retry-backoff",
        "dead letter" => "dead-letter",
        "on exhausted" => "on-exhausted",
        "stop deadline" => "drain",
        "contact timeout" => "timeout",
        "stuck after" => "stuck-after",
        same => same,
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} = {}: {}; {}",
            self.setting, self.value, self.rule, self.remedy
        )
    }
}
