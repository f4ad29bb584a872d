//! A membership that gives nothing, which librdkafka says in its log alone.
//!
//! Under KIP-848 a member learns by the answers to its heartbeats what it has.
//! librdkafka compares that with what it had, and calls for a change: a spare,
//! that had nothing and was given nothing, is never called for. Nor does anything
//! else that Rust can ask without unsafe code tell it from one whom the group has
//! not heard of: the member's epoch, which the answer brings, is in metadata that
//! rust-rdkafka keeps closed; the states in the statistics stay as they were; and
//! the group's description names its members by ids that they made up themselves.
//!
//! What tells is a line that librdkafka logs of each answer, under `debug=cgrp`.
//! Lines come through the queue that rebalances come through, so in order with
//! them: one from before a loss is read before the loss. A user who asked for none
//! of them sees none. They cost what writing them costs: a few with each heartbeat,
//! two per partition with each commit. 200 partitions that are committed twice a
//! second make 800 a second, next to which nothing was to be measured.
//!
//! Where a librdkafka worded it otherwise, a spare would look as if it were still
//! joining, and nothing else would differ. `tests/spares.rs` would tell.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::kafka::properties;

/// The part of librdkafka whose lines are read.
const CONTEXT: &str = "cgrp";

/// Which lines of the log the user asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Log {
    /// What librdkafka writes without us.
    AsItIs,
    /// Lines up to this level.
    UpTo(i32),
}

impl Log {
    /// True where the line is for the user.
    pub(super) fn passes(self, level: RDKafkaLogLevel) -> bool {
        match self {
            Self::AsItIs => true,
            Self::UpTo(most) => level as i32 <= most,
        }
    }
}

/// Has a member's client log what [`is_of_a_member`] reads, where its protocol
/// has such a thing.
pub(super) fn listen(config: &mut ClientConfig) -> Log {
    let protocol = config.get(properties::GROUP_PROTOCOL);
    if !protocol.is_some_and(properties::is_consumer_protocol) {
        return Log::AsItIs;
    }
    let users = config.get("debug").map(str::to_owned);
    let most = config.log_level as i32;
    let contexts = match &users {
        Some(users) => format!("{users},{CONTEXT}"),
        None => CONTEXT.to_owned(),
    };
    config.set("debug", contexts);
    config.set_log_level(RDKafkaLogLevel::Debug);
    Log::UpTo(match users {
        // As far as they were to be seen.
        Some(_) => most,
        None => most.min(RDKafkaLogLevel::Info as i32),
    })
}

/// True where a line of the log says that the group answered a heartbeat as that
/// of a member: with an epoch above 0.
pub(super) fn is_of_a_member(line: &str) -> bool {
    let answer = "ConsumerGroupHeartbeat response received for member id ";
    line.split_once(answer)
        .and_then(|(_, rest)| rest.rsplit_once(" with epoch "))
        .and_then(|(_, epoch)| epoch.trim().parse::<i32>().ok())
        .is_some_and(|epoch| epoch > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(properties: &[(&str, &str)]) -> (ClientConfig, Log) {
        let mut config = ClientConfig::new();
        config.log_level = RDKafkaLogLevel::Warning;
        for (name, value) in properties {
            config.set(*name, *value);
        }
        let log = listen(&mut config);
        (config, log)
    }

    #[test]
    fn an_answer_with_an_epoch_is_of_a_member_and_nothing_else_is() {
        let answer = |epoch: &str| {
            format!(
                "[thrd:main]: ConsumerGroupHeartbeat response received for member id \
                 \"Zk2_with epoch 7-Q\" with epoch {epoch}"
            )
        };
        assert!(is_of_a_member(&answer("1")));
        assert!(is_of_a_member(&answer("2147483647")));
        for none in ["0", "-1", "-2", "", "x", "99999999999"] {
            assert!(!is_of_a_member(&answer(none)), "{none:?}");
        }
        for other in [
            "",
            "[thrd:main]: ConsumerGroupHeartbeat received target assignment \"\"",
            "[thrd:main]: ConsumerGroupHeartbeat failed due to coordinator (none) with epoch 3",
            "ConsumerGroupHeartbeat response received for member id ",
        ] {
            assert!(!is_of_a_member(other), "{other:?}");
        }
    }

    #[test]
    fn the_classic_protocol_is_not_listened_to() {
        for properties in [&[][..], &[("group.protocol", "classic"), ("debug", "all")]] {
            let (config, log) = listening(properties);
            assert_ne!(config.get("debug"), Some(CONTEXT));
            assert!(matches!(log, Log::AsItIs));
            assert!(matches!(config.log_level, RDKafkaLogLevel::Warning));
            assert!(log.passes(RDKafkaLogLevel::Debug));
        }
    }

    #[test]
    fn a_user_sees_as_much_of_the_log_as_before() {
        let (config, log) = listening(&[("group.protocol", "Consumer")]);
        assert_eq!(config.get("debug"), Some("cgrp"));
        assert!(matches!(config.log_level, RDKafkaLogLevel::Debug));
        assert!(log.passes(RDKafkaLogLevel::Warning));
        assert!(!log.passes(RDKafkaLogLevel::Info));
        let (config, log) = listening(&[("group.protocol", "consumer"), ("debug", "broker")]);
        assert_eq!(config.get("debug"), Some("broker,cgrp"));
        assert!(!log.passes(RDKafkaLogLevel::Debug), "not at that level");
    }
}
