//! The scenarios, all in one binary so that they share a broker.
//!
//! The tests that need a real Apache Kafka begin with `let kafka = kafka!(shared);` (or `one`, `three` where they
//! break brokers). Without Java or Maven they are skipped by name; under `CI=true` or `KEEPUP_REQUIRE_KAFKA=1` that
//! is a failure. `scripts/test` runs them all.
#![expect(
    clippy::disallowed_methods,
    reason = "the tests drive real processes and brokers: they read the clock to know when to give up"
)]
#![expect(
    clippy::expect_used,
    reason = "a failed expectation is how a test fails"
)]
#![expect(
    clippy::print_stdout,
    reason = "seeds and figures: the harness shows them where a test fails, or with --nocapture"
)]

#[macro_use]
mod support;

mod advice;
#[cfg(feature = "tokio")]
mod async_handlers;
mod bad_input;
mod batches;
mod client_source;
mod command_codes;
mod command_run;
mod commit_errors;
mod commits;
mod contact;
mod crashes;
mod dead_letters;
mod faults;
mod flow;
mod group_changes;
mod growth;
mod held_up;
mod hostile_broker;
mod kafka_smoke;
mod kubernetes;
mod lag;
mod load;
mod old_brokers;
mod orders;
mod out_of_range;
mod page;
mod process_scenarios;
mod processes;
mod processes_bad_input;
mod prometheus;
mod promises;
mod rebalance;
mod remembered;
mod security;
mod signals;
mod spares;
mod static_members;
mod steering;
mod stopping;
mod supervision;
mod systemd;
mod takeover;
mod two_processes;
mod wire;
