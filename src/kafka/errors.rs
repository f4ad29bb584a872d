//! What Kafka's error codes mean, and what to do about them.
//!
//! An answer carries a number. Whether to wait, to look for a new leader, to
//! give up or to ask the operator for a permission depends on it, and so does
//! the sentence that a person reads. Both are here, once.

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Passes by itself: ask again after a back-off.
    Retriable,
    /// What we know of leaders is out of date: refresh the metadata, ask again.
    RefreshMetadata,
    /// The group's coordinator moved: find it, ask again.
    FindCoordinator,
    /// The asked offset is not in the log.
    OutOfRange,
    /// A permission is missing; stays until somebody grants it.
    Authorization,
    /// Not one of Kafka's, as far as we know: a newer broker's, or no broker's.
    /// Asked again after a back-off, over another connection.
    Unknown,
    /// Does not pass by itself.
    Fatal,
}

impl Class {
    /// True where asking again may succeed without anybody's help.
    pub(crate) fn passes(self) -> bool {
        matches!(
            self,
            Self::Retriable | Self::RefreshMetadata | Self::FindCoordinator | Self::Unknown
        )
    }
}

/// One of Kafka's error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorCode {
    pub(crate) code: i16,
    /// Kafka's own name of it.
    pub(crate) name: &'static str,
    pub(crate) class: Class,
    /// What a person can do, as a sentence without a full stop.
    pub(crate) remedy: &'static str,
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {}): {}", self.name, self.code, self.remedy)
    }
}

impl ErrorCode {
    /// The entry for `code`, or `None` where it means success. A code that the
    /// table does not have says nothing, so nothing is concluded from it.
    pub(crate) fn from_code(code: i16) -> Option<Self> {
        if code == 0 {
            return None;
        }
        Some(
            TABLE
                .iter()
                .copied()
                .find(|entry| entry.code == code)
                .unwrap_or(Self {
                    code,
                    name: "UNKNOWN_ERROR_CODE",
                    class: Class::Unknown,
                    remedy: "keepup asks again; look the code up in Kafka's protocol guide and the broker's log",
                }),
        )
    }
}

/// The first of these codes that says nothing, if any does.
pub(crate) fn first_unknown(codes: impl IntoIterator<Item = i16>) -> Option<i16> {
    codes
        .into_iter()
        .find(|&code| ErrorCode::from_code(code).is_some_and(|error| error.class == Class::Unknown))
}

const fn entry(code: i16, name: &'static str, class: Class, remedy: &'static str) -> ErrorCode {
    ErrorCode {
        code,
        name,
        class,
        remedy,
    }
}

const WAIT: &str = "passes by itself; keepup asks again";
const REFRESH: &str = "the leader moved or is being elected; keepup follows it";
const COORDINATOR: &str = "the group's coordinator moved or is starting; keepup follows it";
const LOG: &str = "look at the broker's log";

static TABLE: &[ErrorCode] = &[
    entry(-1, "UNKNOWN_SERVER_ERROR", Class::Retriable, LOG),
    entry(
        1,
        "OFFSET_OUT_OF_RANGE",
        Class::OutOfRange,
        "retention passed the offset or the log was truncated; the reset policy decides where to go on",
    ),
    entry(
        2,
        "CORRUPT_MESSAGE",
        Class::Retriable,
        "the broker found records damaged on its disk; look at its log",
    ),
    entry(
        3,
        "UNKNOWN_TOPIC_OR_PARTITION",
        Class::RefreshMetadata,
        "create the topic, or grant DESCRIBE on it: without that Kafka denies that it exists",
    ),
    entry(5, "LEADER_NOT_AVAILABLE", Class::RefreshMetadata, REFRESH),
    entry(6, "NOT_LEADER_OR_FOLLOWER", Class::RefreshMetadata, REFRESH),
    entry(7, "REQUEST_TIMED_OUT", Class::Retriable, WAIT),
    entry(8, "BROKER_NOT_AVAILABLE", Class::RefreshMetadata, REFRESH),
    entry(9, "REPLICA_NOT_AVAILABLE", Class::RefreshMetadata, REFRESH),
    entry(13, "NETWORK_EXCEPTION", Class::RefreshMetadata, REFRESH),
    entry(
        14,
        "COORDINATOR_LOAD_IN_PROGRESS",
        Class::Retriable,
        "the coordinator is reading the group's commits; keepup asks again",
    ),
    entry(
        15,
        "COORDINATOR_NOT_AVAILABLE",
        Class::FindCoordinator,
        COORDINATOR,
    ),
    entry(16, "NOT_COORDINATOR", Class::FindCoordinator, COORDINATOR),
    entry(
        17,
        "INVALID_TOPIC_EXCEPTION",
        Class::Fatal,
        "use a topic name of letters, digits, dots, underscores and hyphens",
    ),
    entry(
        22,
        "ILLEGAL_GENERATION",
        Class::Fatal,
        "the group has gone on without this member; it joins again",
    ),
    entry(
        24,
        "INVALID_GROUP_ID",
        Class::Fatal,
        "use a group name that is not empty",
    ),
    entry(
        25,
        "UNKNOWN_MEMBER_ID",
        Class::Fatal,
        "the group has gone on without this member; it joins again",
    ),
    entry(27, "REBALANCE_IN_PROGRESS", Class::Retriable, WAIT),
    entry(
        29,
        "TOPIC_AUTHORIZATION_FAILED",
        Class::Authorization,
        "grant READ and DESCRIBE on the topic to this principal",
    ),
    entry(
        30,
        "GROUP_AUTHORIZATION_FAILED",
        Class::Authorization,
        "grant READ on the group to this principal",
    ),
    entry(
        31,
        "CLUSTER_AUTHORIZATION_FAILED",
        Class::Authorization,
        "grant the operation on the cluster to this principal",
    ),
    entry(
        33,
        "UNSUPPORTED_SASL_MECHANISM",
        Class::Authorization,
        "use a mechanism that the broker's listener enables",
    ),
    entry(
        34,
        "ILLEGAL_SASL_STATE",
        Class::Authorization,
        "the listener expects another security protocol",
    ),
    entry(
        35,
        "UNSUPPORTED_VERSION",
        Class::Fatal,
        "keepup needs Apache Kafka 2.8 or later",
    ),
    entry(
        42,
        "INVALID_REQUEST",
        Class::Fatal,
        "the broker does not accept the request; look at its log",
    ),
    entry(
        43,
        "UNSUPPORTED_FOR_MESSAGE_FORMAT",
        Class::Fatal,
        "the topic keeps records in a format from before Kafka 0.11; migrate it",
    ),
    entry(
        44,
        "POLICY_VIOLATION",
        Class::Fatal,
        "a policy on the broker forbids it",
    ),
    entry(
        56,
        "KAFKA_STORAGE_ERROR",
        Class::RefreshMetadata,
        "a disk of the leader failed; keepup follows the next leader",
    ),
    entry(
        58,
        "SASL_AUTHENTICATION_FAILED",
        Class::Authorization,
        "check the user name and the password",
    ),
    entry(
        69,
        "GROUP_ID_NOT_FOUND",
        Class::Fatal,
        "look for the group's name in the list of groups; one without members and commits is gone",
    ),
    entry(70, "FETCH_SESSION_ID_NOT_FOUND", Class::Retriable, WAIT),
    entry(71, "INVALID_FETCH_SESSION_EPOCH", Class::Retriable, WAIT),
    entry(72, "LISTENER_NOT_FOUND", Class::RefreshMetadata, REFRESH),
    entry(74, "FENCED_LEADER_EPOCH", Class::RefreshMetadata, REFRESH),
    entry(75, "UNKNOWN_LEADER_EPOCH", Class::RefreshMetadata, REFRESH),
    entry(
        76,
        "UNSUPPORTED_COMPRESSION_TYPE",
        Class::Fatal,
        "the records are compressed in a way that the request's version cannot carry",
    ),
    entry(77, "STALE_BROKER_EPOCH", Class::Retriable, WAIT),
    entry(78, "OFFSET_NOT_AVAILABLE", Class::Retriable, WAIT),
    entry(
        88,
        "UNSTABLE_OFFSET_COMMIT",
        Class::Retriable,
        "a transaction that commits this offset is open; keepup waits for its end",
    ),
    entry(89, "THROTTLING_QUOTA_EXCEEDED", Class::Retriable, WAIT),
    entry(100, "UNKNOWN_TOPIC_ID", Class::RefreshMetadata, REFRESH),
    entry(
        103,
        "INCONSISTENT_TOPIC_ID",
        Class::RefreshMetadata,
        REFRESH,
    ),
    entry(106, "FETCH_SESSION_TOPIC_ID_ERROR", Class::Retriable, WAIT),
    entry(
        109,
        "OFFSET_MOVED_TO_TIERED_STORAGE",
        Class::Retriable,
        WAIT,
    ),
    entry(113, "STALE_MEMBER_EPOCH", Class::Retriable, WAIT),
    entry(129, "REBOOTSTRAP_REQUIRED", Class::RefreshMetadata, REFRESH),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once_in_order_with_kafkas_own_name() {
        for pair in TABLE.windows(2) {
            assert!(
                pair[0].code < pair[1].code,
                "{} is out of order",
                pair[1].code
            );
        }
        for entry in TABLE {
            let Some(known) = kafka_protocol::error::ResponseError::try_from_code(entry.code)
            else {
                panic!("{} is not one of Kafka's codes", entry.code);
            };
            let theirs: String = format!("{known:?}").to_lowercase();
            let theirs = theirs.split('(').next().unwrap();
            let ours = entry.name.replace('_', "").to_lowercase();
            assert_eq!(
                ours.trim_end_matches("exception"),
                theirs.trim_end_matches("exception")
            );
        }
    }

    #[test]
    fn success_is_no_error_and_nothing_is_concluded_from_an_unlisted_code() {
        assert_eq!(ErrorCode::from_code(0), None);
        let unlisted = ErrorCode::from_code(4242).unwrap();
        assert_eq!((unlisted.code, unlisted.class), (4242, Class::Unknown));
        assert!(unlisted.class.passes());
    }
}
