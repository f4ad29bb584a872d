//! librdkafka's properties: which are reserved, which exclude each other, and
//! what the member's client is made with.
//!
//! Everything else is passed through untouched, so whatever librdkafka
//! documents can be set. Names and values are checked by librdkafka itself,
//! one by one, so that a misspelled property is found before anything starts
//! and together with all other problems.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::config::{Assignment, Isolation, Settings};
use crate::error::Problem;
use crate::kafka::security;

/// The group protocol finds new partitions and topics by its leader's refresh
/// of metadata; librdkafka's default of 5 minutes would leave them unread that
/// long.
const METADATA_REFRESH_MS: &str = "15000";

/// librdkafka's default of `max.poll.interval.ms`.
const DEFAULT_MAX_POLL_INTERVAL: Duration = Duration::from_mins(5);

/// librdkafka's default of `session.timeout.ms`, and the broker's default of
/// `group.consumer.session.timeout.ms` under KIP-848.
const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(45);

/// The shortest session that is reckoned with under KIP-848. The broker decides
/// it, may have been told another one for the group than for the rest, and
/// tells its members neither.
const SHORTEST_UNTOLD_SESSION: Duration = Duration::from_secs(6);

/// [`commit_interval`], where nothing else is asked for.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);

/// The property that chooses between the classic protocol and KIP-848.
pub(super) const GROUP_PROTOCOL: &str = "group.protocol";

/// Properties that the runtime sets itself, with the reason and the way out.
const RESERVED: [(&str, &str, &str); 8] = [
    (
        "bootstrap.servers",
        "the cluster is given apart",
        "use --bootstrap, or builder(bootstrap, …)",
    ),
    (
        "metadata.broker.list",
        "the cluster is given apart",
        "use --bootstrap, or builder(bootstrap, …)",
    ),
    (
        "group.id",
        "the group is given apart",
        "use --group, or builder(…, group)",
    ),
    (
        "enable.auto.commit",
        "only completed records are committed, by librdkafka's committer over stored watermarks",
        "leave it out; auto.commit.interval.ms may be set",
    ),
    (
        "enable.auto.offset.store",
        "storing at delivery would commit records that nobody completed",
        "leave it out",
    ),
    (
        "auto.offset.reset",
        "start positions are decided by keepup, which asks for committed offsets itself",
        "use --from, or start_from()",
    ),
    (
        "enable.partition.eof",
        "the member's client fetches nothing",
        "leave it out",
    ),
    (
        "statistics.interval.ms",
        "statistics of the member's client are not read",
        "leave it out",
    ),
];

/// What KIP-848 moved to the broker.
const NOT_WITH_KIP_848: [&str; 4] = [
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "group.protocol.type",
];

/// What is wrong with the raw properties; empty where nothing is.
pub(crate) fn problems(settings: &Settings) -> Vec<Problem> {
    let properties = &settings.properties;
    let mut problems: Vec<Problem> = properties
        .iter()
        .filter_map(|(name, value)| problem(name, value))
        .collect();
    problems.extend(security::problems(properties));
    if uses_consumer_protocol(properties) {
        for name in NOT_WITH_KIP_848 {
            if let Some(value) = properties.get(name) {
                problems.push(Problem::new(
                    name,
                    value,
                    "with group.protocol=consumer (KIP-848) the broker decides this",
                    "leave it out and set it on the broker, or use group.protocol=classic",
                ));
            }
        }
        if matches!(settings.assignment, Assignment::Static { .. }) {
            problems.push(Problem::new(
                "group.protocol",
                "consumer",
                "a static assignment does not join the group",
                "leave the property out, or let the group assign",
            ));
        }
    } else if session_timeout(settings) > max_poll_interval(settings) {
        problems.push(Problem::new(
            "session.timeout.ms",
            session_timeout(settings).as_millis(),
            format!(
                "it is at most max.poll.interval.ms ({} ms)",
                max_poll_interval(settings).as_millis()
            ),
            "lower the one or raise the other",
        ));
    }
    problems.extend(instance_problem(settings));
    if let Some(level) = properties.get("isolation.level")
        && settings.isolation != Isolation::default()
        && level != settings.isolation.property()
    {
        problems.push(Problem::new(
            "isolation.level",
            level,
            format!("isolation({:?}) was set as well", settings.isolation),
            "set one of the two",
        ));
    }
    problems
}

/// What is wrong with the name of a static member.
fn instance_problem(settings: &Settings) -> Option<Problem> {
    let instance = instance_id(settings)?;
    if instance.is_empty() {
        return Some(Problem::new(
            "group.instance.id",
            "\"\"",
            "the group tells static members apart by their names, so each needs one",
            "give the process a name that no other of the group has, or leave the property out",
        ));
    }
    matches!(settings.assignment, Assignment::Static { .. }).then(|| {
        Problem::new(
            "group.instance.id",
            instance,
            "a static assignment does not join the group, and has no use for it",
            "leave the property out, or let the group assign",
        )
    })
}

fn problem(name: &str, value: &str) -> Option<Problem> {
    if let Some((_, rule, remedy)) = RESERVED.iter().find(|(reserved, ..)| *reserved == name) {
        return Some(Problem::new(name, shown(name, value), *rule, *remedy));
    }
    // What is wrong with these is told by who reads them as a whole.
    if name == "security.protocol" || (name.starts_with("ssl.") && !cfg!(feature = "ssl")) {
        return None;
    }
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => None,
        Err(error) => Some(refused(name, value, error)),
    }
}

/// What librdkafka says against a property, which may quote its value.
pub(super) fn refused(name: &str, value: &str, error: KafkaError) -> Problem {
    let mut reason = match error {
        KafkaError::ClientConfig(_, description, ..) => description,
        other => other.to_string(),
    };
    if is_secret(name) && !value.is_empty() {
        reason = reason.replace(value, "(hidden)");
    }
    Problem::new(
        name,
        shown(name, value),
        format!("librdkafka refuses it: {reason}"),
        "see librdkafka's CONFIGURATION.md for names and values",
    )
}

/// What may be shown of the properties that begin with `ssl.` and `sasl.`: all
/// others may be a secret whose name is misspelled.
const SHOWN: [&str; 17] = [
    "sasl.kerberos.keytab",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "ssl.ca.certificate.stores",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.sigalgs.list",
];

/// True for properties whose value must not be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_about_secrets = name.starts_with("ssl") || name.starts_with("sasl");
    (is_about_secrets && !SHOWN.contains(&name.as_str()))
        || [
            "passw",
            "passphrase",
            "secret",
            ".pem",
            "jaas",
            "token",
            "credential",
        ]
        .iter()
        .any(|part| name.contains(part))
}

/// The value, or what stands for it where it must not be shown.
pub(crate) fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if is_secret(name) { "(hidden)" } else { value }
}

fn millis(properties: &BTreeMap<String, String>, name: &str) -> Option<Duration> {
    properties
        .get(name)?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_millis)
}

/// `max.poll.interval.ms` as it is in force.
pub(crate) fn max_poll_interval(settings: &Settings) -> Duration {
    millis(&settings.properties, "max.poll.interval.ms").unwrap_or(DEFAULT_MAX_POLL_INTERVAL)
}

/// The name that makes this a static member (KIP-345), where it has one.
pub(crate) fn instance_id(settings: &Settings) -> Option<&str> {
    let instance = settings.properties.get("group.instance.id");
    instance.map(String::as_str)
}

/// How long the group waits for a sign of life of the member.
pub(crate) fn session_timeout(settings: &Settings) -> Duration {
    millis(&settings.properties, "session.timeout.ms").unwrap_or(DEFAULT_SESSION_TIMEOUT)
}

/// How often what is stored is committed.
pub(crate) fn commit_interval(settings: &Settings) -> Duration {
    millis(&settings.properties, "auto.commit.interval.ms").unwrap_or(COMMIT_INTERVAL)
}

/// How long the process may be asleep before the group may have given it up:
/// half of the session, since the last sign of life may be old by then.
pub(crate) fn sleep_limit(settings: &Settings) -> Duration {
    let session = session_timeout(settings);
    if uses_consumer_protocol(&settings.properties) {
        session.min(SHORTEST_UNTOLD_SESSION) / 2
    } else {
        session / 2
    }
}

/// True where the group's protocol is that of KIP-848.
pub(super) fn uses_consumer_protocol(properties: &BTreeMap<String, String>) -> bool {
    properties
        .get(GROUP_PROTOCOL)
        .is_some_and(|protocol| is_consumer_protocol(protocol))
}

/// True for the value of [`GROUP_PROTOCOL`] that means KIP-848.
pub(super) fn is_consumer_protocol(protocol: &str) -> bool {
    protocol.eq_ignore_ascii_case("consumer")
}

/// The isolation level in force: the typed setting, or the raw property.
pub(crate) fn isolation(settings: &Settings) -> Isolation {
    match settings
        .properties
        .get("isolation.level")
        .map(String::as_str)
    {
        Some("read_uncommitted") => Isolation::ReadUncommitted,
        Some("read_committed") => Isolation::ReadCommitted,
        _ => settings.isolation,
    }
}

/// The client id in force.
pub(crate) fn client_id(settings: &Settings) -> &str {
    settings
        .properties
        .get("client.id")
        .map_or("keepup", String::as_str)
}

/// What the member's client is made with.
pub(super) fn member(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", client_id(settings));
    config.set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS);
    // A watermark is stored once the one before is answered, and then waits for
    // that long.
    let interval = COMMIT_INTERVAL.as_millis().to_string();
    config.set("auto.commit.interval.ms", interval);
    if !uses_consumer_protocol(&settings.properties) {
        config.set("partition.assignment.strategy", "cooperative-sticky");
    }
    for (name, value) in &settings.properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &settings.bootstrap);
    config.set("group.id", &settings.group);
    config.set("enable.auto.commit", "true");
    config.set("enable.auto.offset.store", "false");
    config.set("isolation.level", isolation(settings).property());
    config
}

impl Isolation {
    /// The property's value.
    pub(crate) fn property(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(properties: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::new("localhost:9092", "g");
        settings.topics.push("t".into());
        for (name, value) in properties {
            settings.properties.insert((*name).into(), (*value).into());
        }
        settings
    }

    fn named(settings: &Settings) -> Vec<String> {
        problems(settings)
            .into_iter()
            .map(|problem| problem.setting)
            .collect()
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let settings = with(&[
            ("enable.auto.commit", "false"),
            ("sesion.timeout.ms", "6000"),
            ("max.poll.interval.ms", "soon"),
            ("client.id", "fine"),
        ]);
        let found = named(&settings);
        assert_eq!(
            found,
            [
                "enable.auto.commit",
                "max.poll.interval.ms",
                "sesion.timeout.ms"
            ]
        );
    }

    #[test]
    fn a_sleep_is_held_against_half_the_session_and_under_kip_848_against_the_shortest() {
        let limit = |properties: &[_]| sleep_limit(&with(properties)).as_millis();
        assert_eq!(limit(&[]), 22_500);
        assert_eq!(limit(&[("session.timeout.ms", "10000")]), 5_000);
        assert_eq!(limit(&[("group.protocol", "consumer")]), 3_000);
    }

    #[test]
    fn what_the_broker_decides_under_kip_848_is_refused_with_the_way_out() {
        let settings = with(&[
            ("group.protocol", "consumer"),
            ("session.timeout.ms", "6000"),
        ]);
        assert_eq!(named(&settings), ["session.timeout.ms"]);
        assert!(
            problems(&settings)[0]
                .remedy
                .contains("group.protocol=classic")
        );
        assert!(named(&with(&[("group.protocol", "consumer")])).is_empty());
    }

    #[test]
    fn a_static_member_has_a_name_and_is_in_the_group() {
        let named_so = |instance| with(&[("group.instance.id", instance)]);
        assert_eq!(named(&named_so("billing-1")), [""; 0]);
        assert_eq!(named(&named_so("")), ["group.instance.id"]);
        let mut apart = named_so("billing-1");
        apart.assignment = Assignment::Static { index: 0, of: 2 };
        let problems = problems(&apart);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].rule.contains("does not join"), "{problems:?}");
    }

    #[test]
    fn a_session_longer_than_the_poll_interval_is_refused() {
        let settings = with(&[
            ("session.timeout.ms", "10000"),
            ("max.poll.interval.ms", "9000"),
        ]);
        assert_eq!(named(&settings), ["session.timeout.ms"]);
    }

    #[test]
    fn the_revoke_deadline_stays_below_the_poll_interval() {
        let mut settings = with(&[
            ("max.poll.interval.ms", "6000"),
            ("session.timeout.ms", "6000"),
        ]);
        assert!(settings.problems().is_empty());
        settings.revoke_deadline = Duration::from_secs(6);
        assert_eq!(settings.problems()[0].setting, "revoke deadline");
    }

    #[test]
    fn the_settings_can_be_printed_without_their_secrets() {
        let text = format!(
            "{:?}",
            with(&[("sasl.password", "hunter2"), ("client.id", "me")])
        );
        assert!(
            !text.contains("hunter2") && text.contains("\"me\""),
            "{text}"
        );
    }

    #[test]
    fn secrets_are_not_shown_however_their_names_are_misspelled() {
        let settings = with(&[
            ("ssl.key.passwort", "hunter2"),
            ("sasl.password", "hunter2"),
            ("sasl.pasword", "hunter2"),
            ("SASL.Password", "hunter2"),
            ("sasl.secret", "hunter2"),
            ("ssl.key.pem", "hunter2"),
            ("oauth.token", "hunter2"),
        ]);
        let text: String = problems(&settings)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            text.contains("sasl.pasword") && text.contains("oauth.token"),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_is_needed_to_see_a_mistake_is_shown() {
        for name in ["security.protocol", "sasl.username", "ssl.ca.location"] {
            assert!(!is_secret(name), "{name}");
        }
        for name in SHOWN {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_with_security_is_told_with_everything_else() {
        let found = named(&with(&[
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "me"),
            ("client.idd", "me"),
        ]));
        assert_eq!(found, ["client.idd", "sasl.password"]);
        assert_eq!(
            named(&with(&[("security.protocol", "tls")])),
            ["security.protocol"]
        );
    }
}
