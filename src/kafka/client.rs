//! librdkafka's client beside the group: it reads or asks, and never joins.
//!
//! What our own connections cannot do (Kerberos, tokens, keys in a keystore)
//! this client can, with the same properties as the member's. It is given the
//! group's name, without which librdkafka neither assigns partitions nor finds
//! a coordinator, but it subscribes to nothing and commits nothing.
//!
//! Two things about it are not as they look:
//!
//! - **What is wrong is said beside the answer.** A question to a cluster that
//!   refuses the password just takes its whole time; the reason comes as an
//!   event. [`Ears`] keeps the last one that was said.
//! - **Dropping a client waits without a deadline.** So that happens on a
//!   thread of its own ([`drop_within`]), which is left behind if it has to be.

use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::config::Settings;
use crate::error::{Error, Problem};
use crate::kafka::properties;
use crate::record::TopicPartition;

/// A client that is not a member.
pub(super) type Outsider = BaseConsumer<Ears>;

/// What belongs to the membership: without it these mean nothing, and some of
/// them librdkafka refuses in a client that has not all of them.
const OF_THE_MEMBER: [&str; 7] = [
    "group.protocol",
    "group.instance.id",
    "group.remote.assignor",
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
];

/// Something that a client said beside its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) code: RDKafkaErrorCode,
    pub(super) reason: String,
}

/// Keeps the last error that a client told.
#[derive(Debug, Default)]
pub(super) struct Ears {
    last: Mutex<Option<Said>>,
}

impl Ears {
    /// What was said since the last time.
    pub(super) fn take(&self) -> Option<Said> {
        self.last.lock().take()
    }
}

impl ClientContext for Ears {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            *self.last.lock() = Some(Said {
                code,
                reason: reason.to_owned(),
            });
        }
    }
}

impl ConsumerContext for Ears {}

/// Passes a line of librdkafka's log on. It warns of what it will try again, so
/// none of it is more than information.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => {
            tracing::info!(target: "librdkafka", facility, "{message}");
        }
        _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// The cluster, and the user's properties except those of the membership.
fn set_users(config: &mut ClientConfig, settings: &Settings) {
    for (name, value) in &settings.properties {
        if !OF_THE_MEMBER.contains(&name.as_str()) {
            config.set(name, value);
        }
    }
    config.set("bootstrap.servers", &settings.bootstrap);
}

/// What such a client is made with: the user's properties, except those of the
/// membership. `defaults` give way to the user's, `fixed` do not.
pub(super) fn config(
    settings: &Settings,
    defaults: &[(&str, String)],
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", properties::client_id(settings));
    for (name, value) in defaults {
        config.set(*name, value);
    }
    set_users(&mut config, settings);
    config.set("group.id", &settings.group);
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set(
        "isolation.level",
        properties::isolation(settings).property(),
    );
    for (name, value) in fixed {
        config.set(*name, *value);
    }
    config
}

/// What the producer of dead letters is made with: the user's properties, except
/// those of the membership. A letter is written or has failed within `patience`.
pub(super) fn producer_config(settings: &Settings, patience: Duration) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", properties::client_id(settings));
    // What the broker accepts is the broker's to say.
    config.set("message.max.bytes", "1000000000");
    set_users(&mut config, settings);
    let millis = |time: Duration| time.as_millis().max(1).to_string();
    for (name, value) in [
        ("enable.idempotence", "true".to_owned()),
        ("linger.ms", "0".to_owned()),
        ("message.timeout.ms", millis(patience)),
        // A topic that is not there is told as that, not as a timeout.
        ("topic.metadata.propagation.max.ms", millis(patience / 2)),
    ] {
        config.set(name, value);
    }
    config
}

/// Makes a client; contacts nobody yet.
pub(super) fn open<C: ConsumerContext>(
    settings: &Settings,
    config: &ClientConfig,
    context: C,
) -> Result<BaseConsumer<C>, Error> {
    BaseConsumer::from_config_and_context(config, context).map_err(|error| match error {
        KafkaError::ClientConfig(_, _, ref name, ref value) => {
            let (name, value) = (name.clone(), value.clone());
            Error::InvalidSettings(vec![properties::refused(&name, &value, error)])
        }
        KafkaError::ClientCreation(description) => Error::InvalidSettings(vec![Problem::new(
            "properties",
            format!("{:?}", settings.properties.keys()),
            format!("librdkafka refuses them together: {description}"),
            "change one of those that it names",
        )]),
        other => Error::Client {
            message: other.to_string(),
        },
    })
}

/// Drops `client` on a thread of its own and waits `patience` for it. False
/// where it did not come to an end and was left behind.
pub(super) fn drop_within<T: Send + 'static>(client: T, patience: Duration) -> bool {
    let (done, is_done) = bounded(1);
    let dropper = std::thread::Builder::new()
        .name("keepup-close".into())
        .spawn(move || {
            drop(client);
            let _ = done.send(());
        });
    let Ok(dropper) = dropper else { return false };
    let ended = is_done.recv_timeout(patience).is_ok();
    if ended {
        let _ = dropper.join();
    }
    ended
}

/// Partitions as librdkafka takes them.
pub(super) fn list<'p>(
    partitions: impl IntoIterator<Item = &'p TopicPartition>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(partition.topic(), partition.partition());
    }
    list
}

/// Partitions with an offset each.
pub(super) fn list_at<'p>(
    partitions: impl IntoIterator<Item = (&'p TopicPartition, Offset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(partition.topic(), partition.partition(), offset)?;
    }
    Ok(list)
}

/// The broker's error code; `None` for what librdkafka found by itself.
pub(super) fn broker_code(code: RDKafkaErrorCode) -> Option<i16> {
    i16::try_from(code as i32).ok().filter(|code| *code > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_members_alone_is_left_out_and_the_users_word_counts_for_the_rest() {
        let mut settings = Settings::new("localhost:9092", "readers");
        for (name, value) in [
            ("group.protocol", "consumer"),
            ("max.poll.interval.ms", "20000"),
            ("queued.min.messages", "7"),
            ("auto.offset.reset", "latest"),
        ] {
            settings.properties.insert(name.into(), value.into());
        }
        let defaults = [
            ("queued.min.messages", "100".to_owned()),
            ("fetch.message.max.bytes", "4096".to_owned()),
        ];
        let config = config(&settings, &defaults, &[("auto.offset.reset", "error")]);
        assert_eq!(config.get("group.protocol"), None);
        assert_eq!(config.get("max.poll.interval.ms"), None);
        assert_eq!(config.get("queued.min.messages"), Some("7"));
        assert_eq!(config.get("fetch.message.max.bytes"), Some("4096"));
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        // A session as long as by default would be refused with such an interval.
        assert!(open(&settings, &config, Ears::default()).is_ok());
    }
}
