//! All that touches Kafka: the only folder that names `rdkafka` or
//! `kafka-protocol`.
//!
//! Both crates change their interfaces with their versions, one of them brings
//! a C library and the other trusts what it reads. What leaves this folder is
//! keepup's own plain types, so neither shows in the public API and either can
//! be replaced here.
//!
//! | file | what it is for |
//! |---|---|
//! | [`shape`] | refuses frames whose lengths do not add up, before they are decoded |
//! | [`frame`] | requests to bytes, bytes to frames, frames to answers |
//! | [`messages`] | the requests and answers that we use |
//! | [`lookup`] | the thread that asks for metadata, commits and offsets; questions about groups and topics |
//! | [`connection`] | one connection, asked one thing at a time, with deadlines |
//! | [`transport`] | TCP or TLS under a connection, never waiting |
//! | [`greeting`] | what is said before requests: versions, and who we are |
//! | [`sasl`], `scram` | the mechanisms that prove who we are |
//! | `tls` | what is trusted, our certificate, encrypted connections (feature `ssl`) |
//! | [`backoff`] | how long to wait before asking again |
//! | [`failures`] | how often connections failed, by kind |
//! | [`errors`] | what Kafka's error codes mean and what to do about them |
//! | `mock` | a cluster for our own tests, with everything they ask of it |
//! | [`cluster`] | who leads which partition, shared by all threads |
//! | [`client`] | librdkafka's client beside the group, which never joins |
//! | [`ask_client`] | our questions, put through such a client |
//! | [`fetch_client`] | partitions, read through such a client |
//! | [`dead_letters`] | the producer of dead letters |
//! | [`group`] | the membership: librdkafka's client, which fetches nothing |
//! | [`membership`] | what that client says of the membership in its log alone |
//! | [`properties`] | which raw properties are allowed, and what the client is made with |
//! | `embedded` | the cluster of the demo and of users' tests (feature `testing`) |
//! | `fake` | what fake brokers understand and answer (feature `testing`) |
//! | [`security`] | how connections are secured, and what only librdkafka can do |
//! | [`version`] | which librdkafka this was built with |

use std::sync::Arc;
use std::time::Duration;

use self::ask_client::AskClient;
use self::failures::Failures;
use self::security::Security;
pub(crate) use crate::config::Isolation;

pub(crate) mod ask_client;
pub(crate) mod backoff;
mod client;
pub(crate) mod cluster;
pub(crate) mod connection;
pub(crate) mod dead_letters;
#[cfg(feature = "testing")]
pub(crate) mod embedded;
pub(crate) mod errors;
pub(crate) mod failures;
#[cfg(feature = "testing")]
pub(crate) mod fake;
pub(crate) mod fetch_client;
pub(crate) mod frame;
pub(crate) mod greeting;
pub(crate) mod group;
pub(crate) mod lookup;
mod membership;
pub(crate) mod messages;
#[cfg(test)]
pub(crate) mod mock;
pub(crate) mod properties;
pub(crate) mod sasl;
#[cfg(feature = "ssl")]
pub(crate) mod scram;
pub(crate) mod security;
pub(crate) mod shape;
#[cfg(feature = "ssl")]
mod tls;
pub(crate) mod transport;
pub(crate) mod version;
#[cfg(not(feature = "ssl"))]
mod without_ssl;
#[cfg(not(feature = "ssl"))]
use without_ssl::{scram, tls};

impl Isolation {
    /// As requests carry it.
    fn code(self) -> i8 {
        match self {
            Self::ReadUncommitted => 0,
            Self::ReadCommitted => 1,
        }
    }
}

/// What a connection to the cluster needs to know.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSettings {
    /// `host:port` of some brokers, for the first contact.
    pub(crate) bootstrap: Vec<String>,
    /// How we appear in the broker's logs and quotas.
    pub(crate) client_id: String,
    /// Where we are, to be named replicas nearby (`client.rack`); empty for
    /// nowhere.
    pub(crate) rack: std::sync::Arc<str>,
    /// Longest wait for the answer to a request.
    pub(crate) request_timeout: Duration,
    /// Longest wait for a connection, per address that a name resolves to.
    pub(crate) connect_timeout: Duration,
    /// Longest answer that is accepted, in bytes.
    pub(crate) max_frame: usize,
    pub(crate) isolation: Isolation,
    pub(crate) security: Security,
    /// Where questions go through librdkafka's client instead of through
    /// connections of our own.
    pub(crate) client: Option<AskClient>,
    /// The group whose commits say where to start; `None` without a group.
    pub(crate) group: Option<String>,
    /// How often metadata is asked for without a reason.
    pub(crate) metadata_interval: Duration,
    /// Counts what goes wrong, for all connections that are made with these
    /// settings or a copy of them.
    pub(crate) failures: Arc<Failures>,
}

impl ConnectionSettings {
    /// The defaults, for a cluster reached through `bootstrap`.
    pub(crate) fn new(bootstrap: Vec<String>) -> Self {
        Self {
            bootstrap,
            client_id: "keepup".to_owned(),
            rack: std::sync::Arc::default(),
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_frame: 100 * 1024 * 1024,
            isolation: Isolation::default(),
            security: Security::default(),
            client: None,
            group: None,
            metadata_interval: Duration::from_secs(15),
            failures: Arc::default(),
        }
    }
}
