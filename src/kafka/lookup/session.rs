//! Questions to whoever can answer them: any broker, the coordinator, a leader.
//!
//! Holds the connections of one thread. A broker that could not be reached is
//! left alone for a while, so that one that hangs does not cost its timeout
//! with every question that another could answer.
//!
//! Where the settings bring librdkafka's client, every question goes through
//! that instead: it has connections of its own and knows whom to ask.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::start::{Problem, Trouble, trouble};
use super::topics::{TopicEvent, merge};
use crate::clock::Clock;
use crate::kafka::ConnectionSettings;
use crate::kafka::ask_client::{AskClient, Askable, ClientError, Patience};
use crate::kafka::backoff::Backoff;
use crate::kafka::cluster::{BrokerAddress, Cluster, ClusterSnapshot};
use crate::kafka::connection::{Connection, ConnectionError, StopFlag, parse_address};
use crate::kafka::errors::ErrorCode;
use crate::kafka::frame::WireError;
use crate::kafka::messages::{
    CommittedRequest, CoordinatorRequest, GroupTopic, MetadataRequest, Request,
};

/// Why a broker was not asked or did not answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// It failed a moment ago, with this.
    Resting {
        address: String,
        because: Arc<str>,
    },
    Failed(ConnectionError),
    /// librdkafka's client was asked, and brought no answer.
    Client(ClientError),
}

impl AskError {
    /// True where whoever asked was stopped.
    pub(super) fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Failed(ConnectionError::Stopped { .. }) | Self::Client(ClientError::Stopped)
        )
    }

    /// True where the broker answers, but does not know the request, or not in
    /// a version that can express it.
    pub(super) fn is_unspoken(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_unspoken())
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resting { address, because } => {
                write!(f, "{address} is given a rest after a failure: {because}")
            }
            Self::Failed(error) => error.fmt(f),
            Self::Client(error) => error.fmt(f),
        }
    }
}

impl From<ConnectionError> for AskError {
    fn from(error: ConnectionError) -> Self {
        Self::Failed(error)
    }
}

/// A broker that failed, and until when it is left alone.
#[derive(Debug)]
struct Rest {
    failures: u32,
    until: Instant,
    because: Arc<str>,
}

const REST: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_secs(1),
};

/// Where the two ends do not trust each other: until somebody changes that,
/// every attempt only fills the broker's log.
const REFUSED: Backoff = Backoff {
    first: Duration::from_secs(1),
    max: Duration::from_secs(15),
};

pub(super) struct Session {
    pub(super) settings: ConnectionSettings,
    pub(super) clock: Clock,
    pub(super) cluster: Cluster,
    pub(super) stop: StopFlag,
    bootstrap: Vec<BrokerAddress>,
    open: HashMap<BrokerAddress, Connection>,
    resting: HashMap<BrokerAddress, Rest>,
    coordinator: Option<BrokerAddress>,
}

impl Session {
    /// A session without connections.
    ///
    /// # Errors
    ///
    /// Where a bootstrap address is not of the form `host:port`.
    pub(super) fn new(
        settings: ConnectionSettings,
        clock: Clock,
        cluster: Cluster,
        stop: StopFlag,
    ) -> Result<Self, ConnectionError> {
        let bootstrap = settings
            .bootstrap
            .iter()
            .map(|address| parse_address(address))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            settings,
            clock,
            cluster,
            stop,
            bootstrap,
            open: HashMap::new(),
            resting: HashMap::new(),
            coordinator: None,
        })
    }

    /// Asks librdkafka's client.
    fn ask_client<R: Askable>(
        &self,
        client: &AskClient,
        request: &R,
    ) -> Result<R::Answer, AskError> {
        let patience = Patience {
            clock: &self.clock,
            deadline: self.clock.now() + self.settings.request_timeout,
            stop: &self.stop,
        };
        request.put_to(client, &patience).map_err(AskError::Client)
    }

    /// Asks one broker.
    pub(super) fn ask<R: Askable>(
        &mut self,
        to: &BrokerAddress,
        request: &R,
    ) -> Result<R::Answer, AskError> {
        if let Some(client) = &self.settings.client {
            return self.ask_client(client, request);
        }
        self.ask_broker(to, request)
    }

    /// Asks one broker over a connection of our own, which needs a security that
    /// those speak.
    pub(super) fn ask_broker<R: Request>(
        &mut self,
        to: &BrokerAddress,
        request: &R,
    ) -> Result<R::Answer, AskError> {
        let now = self.clock.now();
        if let Some(rest) = self.resting.get(to)
            && rest.until > now
        {
            return Err(AskError::Resting {
                address: to.to_string(),
                because: Arc::clone(&rest.because),
            });
        }
        let result = self.ask_connected(to, request);
        match &result {
            Ok(_) => {
                self.resting.remove(to);
            }
            Err(error) if error.is_unspoken() => {
                self.resting.remove(to);
            }
            Err(error) => {
                self.settings.failures.count(error);
                let failures = self.resting.get(to).map_or(0, |rest| rest.failures);
                let failures = failures.saturating_add(1);
                let backoff = if error.is_refusal() { REFUSED } else { REST };
                self.resting.insert(
                    to.clone(),
                    Rest {
                        failures,
                        until: self.clock.now() + backoff.random_delay(failures),
                        because: Arc::from(error.to_string()),
                    },
                );
            }
        }
        Ok(result?)
    }

    fn ask_connected<R: Request>(
        &mut self,
        to: &BrokerAddress,
        request: &R,
    ) -> Result<R::Answer, ConnectionError> {
        if let Some(mut connection) = self.open.remove(to) {
            let deadline = self.clock.now() + self.settings.request_timeout;
            match connection.ask(request, deadline) {
                Ok(answer) => {
                    self.keep::<R>(to, connection, &answer);
                    return Ok(answer);
                }
                Err(error) if error.is_unspoken() => {
                    self.open.insert(to.clone(), connection);
                    return Err(error);
                }
                // Brokers close connections that lie idle: once more, anew.
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(error),
            }
        }
        let mut connection = Connection::open(to, &self.settings, &self.clock, &self.stop)?;
        // Told now, and not when the first records are asked for.
        connection.check_versions()?;
        let deadline = self.clock.now() + self.settings.request_timeout;
        match connection.ask(request, deadline) {
            Ok(answer) => {
                self.keep::<R>(to, connection, &answer);
                Ok(answer)
            }
            Err(error) => {
                if error.is_unspoken() {
                    self.open.insert(to.clone(), connection);
                }
                Err(error)
            }
        }
    }

    /// Keeps a connection for the next question, unless what came over it makes
    /// no sense. The answer counts all the same: nothing is concluded from a
    /// code that says nothing.
    fn keep<R: Request>(&mut self, to: &BrokerAddress, connection: Connection, answer: &R::Answer) {
        let Some(code) = R::unknown_code(answer) else {
            self.open.insert(to.clone(), connection);
            return;
        };
        let error = ConnectionError::Wire {
            address: to.to_string(),
            error: WireError::UnknownErrorCode { api: R::API, code },
        };
        self.settings.failures.count(&error);
        tracing::debug!(%error, "connecting anew for the next question");
    }

    /// Asks brokers in turn until one answers: those connected, those known,
    /// those of the bootstrap list. The error is the last that tells something,
    /// one that only a person can help against before all others.
    pub(super) fn ask_any_broker<R: Request>(
        &mut self,
        request: &R,
    ) -> Result<R::Answer, AskError> {
        let mut failed = None;
        let mut unspoken = None;
        for to in self.candidates() {
            match self.ask_broker(&to, request) {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_stop() => return Err(error),
                Err(error) if error.is_unspoken() => unspoken = Some(error),
                Err(AskError::Failed(error)) => {
                    let is_known = matches!(
                        &failed,
                        Some(AskError::Failed(known)) if known.is_refusal()
                    );
                    if !is_known {
                        failed = Some(AskError::Failed(error));
                    }
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        // Who does not know the request is at least there.
        Err(unspoken.or(failed).unwrap_or_else(|| {
            AskError::Failed(ConnectionError::Address {
                address: String::new(),
            })
        }))
    }

    fn candidates(&self) -> Vec<BrokerAddress> {
        let snapshot = self.cluster.snapshot();
        let mut known: Vec<&BrokerAddress> = snapshot.brokers.values().collect();
        // Not every process is to ask the same broker first.
        fastrand::shuffle(&mut known);
        let mut candidates: Vec<BrokerAddress> = Vec::new();
        let connected = self.open.keys();
        for address in connected.chain(known).chain(&self.bootstrap) {
            if !candidates.contains(address) {
                candidates.push(address.clone());
            }
        }
        candidates
    }

    /// Asks for the metadata of `wanted` and publishes what it says. Returns
    /// whether that was news, and what of it concerns topics.
    pub(super) fn refresh(
        &mut self,
        wanted: &BTreeSet<Arc<str>>,
    ) -> Result<(bool, Vec<TopicEvent>), AskError> {
        let request = MetadataRequest {
            topics: wanted.iter().cloned().collect(),
        };
        let answer = match &self.settings.client {
            Some(client) => self.ask_client(client, &request)?,
            None => self.ask_any_broker(&request)?,
        };
        let mut events = Vec::new();
        let is_news = self.cluster.update(|current| {
            let (next, changes) = merge(current, &answer, wanted);
            events = changes;
            next
        });
        self.drop_connections_outside(&self.cluster.snapshot());
        Ok((is_news, events))
    }

    /// Closes what leads to brokers that are gone, so that neither connections
    /// nor memories of failures grow with the brokers that ever were.
    pub(super) fn drop_connections_outside(&mut self, snapshot: &ClusterSnapshot) {
        let bootstrap = &self.bootstrap;
        let coordinator = &self.coordinator;
        let is_known = |address: &BrokerAddress| {
            snapshot.brokers.values().any(|known| known == address)
                || bootstrap.contains(address)
                || coordinator.as_ref() == Some(address)
        };
        self.open.retain(|address, _| is_known(address));
        self.resting.retain(|address, _| is_known(address));
    }

    /// Finds out whether the coordinator of `group` can be asked.
    pub(super) fn check_group(&mut self, group: &str) -> Result<(), Trouble> {
        if self.settings.client.is_none() {
            return self.coordinator(group).map(|_| ());
        }
        // The client finds coordinators for its questions only; without a topic
        // (a pattern) there is none to ask yet.
        let snapshot = self.cluster.snapshot();
        let Some(topic) = snapshot.topics.keys().next() else {
            return Ok(());
        };
        let answer = self.ask_coordinator(
            group,
            &CommittedRequest {
                group: group.to_owned(),
                topics: vec![GroupTopic {
                    name: Arc::clone(topic),
                    partitions: vec![0],
                }],
            },
        )?;
        match ErrorCode::from_code(answer.error) {
            Some(error) => Err(trouble(error, None, Some(group))),
            None => Ok(()),
        }
    }

    /// The coordinator of `group`, asked for where it is not known.
    fn coordinator(&mut self, group: &str) -> Result<BrokerAddress, Trouble> {
        if let Some(known) = &self.coordinator {
            return Ok(known.clone());
        }
        let answer = self
            .ask_any_broker(&CoordinatorRequest {
                group: group.to_owned(),
            })
            .map_err(|error| Trouble::Passing(Problem::Unreachable(error.to_string())))?;
        if let Some(error) = ErrorCode::from_code(answer.error) {
            return Err(trouble(error, None, Some(group)));
        }
        let port = u16::try_from(answer.port)
            .ok()
            .filter(|_| !answer.host.is_empty())
            .ok_or(Trouble::Passing(Problem::Unanswered))?;
        let found = BrokerAddress {
            host: answer.host,
            port,
        };
        self.coordinator = Some(found.clone());
        Ok(found)
    }

    /// The coordinator is asked for anew before the next question to it.
    pub(super) fn forget_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Asks the coordinator of `group`; forgets it where it cannot be reached.
    pub(super) fn ask_coordinator<R: Askable>(
        &mut self,
        group: &str,
        request: &R,
    ) -> Result<R::Answer, Trouble> {
        if let Some(client) = &self.settings.client {
            return self
                .ask_client(client, request)
                .map_err(|error| Trouble::Passing(Problem::Unreachable(error.to_string())));
        }
        let coordinator = self.coordinator(group)?;
        self.ask(&coordinator, request).map_err(|error| {
            self.forget_coordinator();
            Trouble::Passing(Problem::Unreachable(error.to_string()))
        })
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::{FakeCluster, Fault, Request, Rule};

    #[test]
    fn a_connection_over_which_an_unknown_error_code_came_is_counted_and_given_up() {
        let fake = FakeCluster::start(1).unwrap();
        fake.create_topic("orders", 2).unwrap();
        fake.script(Rule::new(Request::Metadata, Fault::PartitionError(4242)).times(1));
        let settings = ConnectionSettings::new(vec![fake.bootstrap()]);
        let failures = Arc::clone(&settings.failures);
        let (cluster, _bell) = Cluster::new();
        let stop = StopFlag::default();
        let mut session = Session::new(settings, Clock::System, cluster, stop).unwrap();
        let wanted = BTreeSet::from([Arc::from("orders")]);
        for (question, connections) in [(1, 1), (2, 2), (3, 2)] {
            session.refresh(&wanted).unwrap();
            assert_eq!(failures.totals().wire, 1, "question {question}");
            assert_eq!(fake.connections("keepup"), connections);
        }
    }
}
