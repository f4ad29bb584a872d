//! Our questions, put through librdkafka's client.
//!
//! Where only librdkafka can speak to the cluster, the questions of the lookup
//! and of the reporter (who leads what, what is committed, which offsets are
//! there) go through a client of it, and the answers have the same plain form
//! as those that come over connections of our own. What decides over them does
//! not know the difference.
//!
//! A few things are different all the same:
//!
//! - It knows neither topic ids nor leader epochs, and finds leaders and the
//!   coordinator by itself.
//! - An open transaction makes a commit wait under `read_committed` only, as in
//!   the Java client.
//! - A coordinator that left a partition out of its answer would look like one
//!   that has no commit for it. Kafka's do not.
//! - Its calls cannot be interrupted. So they are cut into slices, each longer
//!   than the one before, with a look at the stop flag and at what the client
//!   has said in between: a password that is refused is told there, not by the
//!   call.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::Consumer;
use rdkafka::error::{IsError, KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::client::{self, Ears, Outsider};
use super::messages::{
    CommittedAnswer, CommittedPartition, CommittedRequest, CommittedTopic, EARLIEST,
    EpochEndsAnswer, EpochEndsRequest, LATEST, Leader, MetadataAnswer, MetadataBroker,
    MetadataPartition, MetadataRequest, MetadataTopic, OffsetAnswer, OffsetsAnswer, OffsetsRequest,
    OffsetsTopic, Request,
};
use crate::clock::Clock;
use crate::config::Settings;
use crate::error::Error;
use crate::kafka::connection::StopFlag;
use crate::record::TopicPartition;

/// Kafka's code for a group that the principal may not read.
const GROUP_AUTHORIZATION_FAILED: i16 = 30;

/// Kafka's code for an error that the broker does not explain; it passes.
const UNKNOWN_SERVER_ERROR: i16 = -1;

/// The first slice of a wait; each is twice as long as the one before.
const FIRST_SLICE: Duration = Duration::from_millis(250);

/// Events that are looked at before and after each call. There are few, and
/// the rest keeps until the next.
const EVENTS: usize = 32;

/// What a client that is dropped gets to come to its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why the client did not bring an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    /// The cluster does not take the credentials, or the client does not take
    /// the cluster's certificate.
    #[error("{0}")]
    Refused(String),
    /// Anything else; asking again may bring one.
    #[error("{0}")]
    Failed(String),
    #[error("stopped while waiting for librdkafka's client")]
    Stopped,
}

/// How long to wait, and what ends the wait.
pub(crate) struct Patience<'a> {
    pub(crate) clock: &'a Clock,
    pub(crate) deadline: Instant,
    pub(crate) stop: &'a StopFlag,
}

/// A request that the client can put, too.
pub(crate) trait Askable: Request {
    /// Puts it through `client`.
    ///
    /// # Errors
    ///
    /// Where there is no answer; errors that are one are part of it.
    fn put_to(
        &self,
        client: &AskClient,
        patience: &Patience<'_>,
    ) -> Result<Self::Answer, ClientError>;
}

/// librdkafka's client, asked by whoever wants to know something. Cheap to
/// clone; the last one to go closes it.
#[derive(Clone)]
pub(crate) struct AskClient(Arc<Shared>);

struct Shared {
    /// `None` when it is being dropped.
    client: Option<Outsider>,
    heard: Mutex<Heard>,
}

/// What the client has said beside its answers.
#[derive(Default)]
struct Heard {
    refused: Option<String>,
    /// The coordinator cannot even be found without the permission.
    group_refused: bool,
    last: Option<String>,
}

impl fmt::Debug for AskClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskClient")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(client) = self.client.take()
            && !client::drop_within(client, LAST_WORDS)
        {
            tracing::warn!("librdkafka's client for questions does not close and is left behind");
        }
    }
}

impl AskClient {
    /// Makes the client; contacts nobody yet.
    ///
    /// # Errors
    ///
    /// Where librdkafka refuses the settings.
    pub(crate) fn open(settings: &Settings) -> Result<Self, Error> {
        let config = client::config(settings, &[], &[("allow.auto.create.topics", "false")]);
        let client = client::open(settings, &config, Ears::default())?;
        Ok(Self(Arc::new(Shared {
            client: Some(client),
            heard: Mutex::default(),
        })))
    }

    fn client(&self) -> Result<&Outsider, ClientError> {
        // It is there until the last owner drops it.
        self.0.client.as_ref().ok_or(ClientError::Stopped)
    }

    /// Takes in what the client said.
    fn listen(&self) -> Result<(), ClientError> {
        let client = self.client()?;
        let mut heard = self.0.heard.lock();
        for _ in 0..EVENTS {
            let Some(Err(_)) = client.poll(Duration::ZERO) else {
                continue;
            };
            let Some(said) = client.context().take() else {
                continue;
            };
            match said.code {
                RDKafkaErrorCode::Authentication => heard.refused = Some(said.reason),
                // A connection that breaks during the handshake has the same
                // code; that passes.
                RDKafkaErrorCode::SSL if said.reason.contains("certificate verify failed") => {
                    heard.refused = Some(said.reason);
                }
                RDKafkaErrorCode::GroupAuthorizationFailed => heard.group_refused = true,
                // Follows what was said of each broker, and says less.
                RDKafkaErrorCode::AllBrokersDown => {}
                _ => heard.last = Some(said.reason),
            }
        }
        match heard.refused.take() {
            Some(reason) => Err(ClientError::Refused(reason)),
            None => Ok(()),
        }
    }

    fn is_group_refused(&self) -> bool {
        self.0.heard.lock().group_refused
    }

    /// Puts a question again and again, for longer each time, until it is
    /// answered or `is_vain`.
    fn patiently<T>(
        &self,
        patience: &Patience<'_>,
        is_vain: fn(&Self) -> bool,
        mut put: impl FnMut(&Outsider, Duration) -> KafkaResult<T>,
    ) -> Result<Result<T, KafkaError>, ClientError> {
        let client = self.client()?;
        let mut slice = FIRST_SLICE;
        loop {
            if patience.stop.is_stopped() {
                return Err(ClientError::Stopped);
            }
            let left = patience
                .deadline
                .saturating_duration_since(patience.clock.now());
            let error = match put(client, slice.min(left)) {
                Ok(answer) => return Ok(Ok(answer)),
                Err(error) => error,
            };
            self.listen()?;
            let is_over = patience.clock.now() >= patience.deadline;
            if !passes(&error) {
                return Ok(Err(error));
            }
            if is_over || is_vain(self) {
                let last = self.0.heard.lock().last.take();
                return Err(ClientError::Failed(match last {
                    Some(reason) => format!("{reason} ({error})"),
                    None => error.to_string(),
                }));
            }
            slice = slice.saturating_mul(2);
        }
    }

    fn metadata(
        &self,
        topic: Option<&str>,
        patience: &Patience<'_>,
    ) -> Result<Metadata, ClientError> {
        self.patiently(patience, never, |client, wait| {
            client.fetch_metadata(topic, wait)
        })?
        .map_err(|error| ClientError::Failed(error.to_string()))
    }
}

/// Asking on is never in vain.
fn never(_: &AskClient) -> bool {
    false
}

/// Whether the client just did not get there in its time.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::WaitingForCoordinator
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

/// The error code that a broker would have answered.
fn code_of(error: &KafkaError) -> i16 {
    error
        .rdkafka_error_code()
        .and_then(client::broker_code)
        .unwrap_or(UNKNOWN_SERVER_ERROR)
}

fn code_of_response(error: RDKafkaRespErr) -> i16 {
    if error.is_error() {
        client::broker_code(error.into()).unwrap_or(UNKNOWN_SERVER_ERROR)
    } else {
        0
    }
}

impl Askable for MetadataRequest {
    /// One question per topic: the client asks for one topic, or for all that
    /// there are.
    fn put_to(
        &self,
        client: &AskClient,
        patience: &Patience<'_>,
    ) -> Result<MetadataAnswer, ClientError> {
        let mut answer = MetadataAnswer {
            brokers: Vec::new(),
            cluster_id: None,
            topics: Vec::new(),
        };
        if self.topics.is_empty() {
            answer.brokers = brokers(&client.metadata(None, patience)?);
        }
        for name in &self.topics {
            let metadata = client.metadata(Some(name), patience)?;
            answer.brokers = brokers(&metadata);
            let described = metadata
                .topics()
                .iter()
                .find(|topic| topic.name() == &**name);
            answer.topics.extend(described.map(|topic| {
                MetadataTopic {
                    name: Arc::clone(name),
                    id: Uuid::nil(),
                    error: topic.error().map_or(0, code_of_response),
                    partitions: topic
                        .partitions()
                        .iter()
                        .map(|partition| MetadataPartition {
                            partition: partition.id(),
                            error: partition.error().map_or(0, code_of_response),
                            leader: (partition.leader() >= 0).then_some(Leader {
                                id: partition.leader(),
                                epoch: -1,
                            }),
                        })
                        .collect(),
                }
            }));
        }
        Ok(answer)
    }
}

fn brokers(metadata: &Metadata) -> Vec<MetadataBroker> {
    metadata
        .brokers()
        .iter()
        .map(|broker| MetadataBroker {
            id: broker.id(),
            host: Arc::from(broker.host()),
            port: broker.port(),
        })
        .collect()
}

impl Askable for CommittedRequest {
    fn put_to(
        &self,
        client: &AskClient,
        patience: &Patience<'_>,
    ) -> Result<CommittedAnswer, ClientError> {
        let asked: Vec<TopicPartition> = self
            .topics
            .iter()
            .flat_map(|topic| {
                let name = &topic.name;
                let partitions = topic.partitions.iter();
                partitions.map(move |&partition| TopicPartition::new(Arc::clone(name), partition))
            })
            .collect();
        let refused = |error| CommittedAnswer {
            error,
            topics: Vec::new(),
        };
        // What was said of the group before is no answer to this.
        client.0.heard.lock().group_refused = false;
        let put = client.patiently(patience, AskClient::is_group_refused, |client, wait| {
            client.committed_offsets(client::list(&asked), wait)
        });
        let committed = match put {
            Ok(Ok(committed)) => committed,
            Ok(Err(error)) => return Ok(refused(code_of(&error))),
            Err(ClientError::Failed(_)) if client.is_group_refused() => {
                return Ok(refused(GROUP_AUTHORIZATION_FAILED));
            }
            Err(error) => return Err(error),
        };
        let topics = by_topic(&committed, |partition, error, offset| CommittedPartition {
            partition,
            error,
            // Not told.
            leader_epoch: -1,
            // Not asked for: the client's interface panics where it is not UTF-8.
            metadata: None,
            offset: match offset {
                Offset::Offset(offset) => offset,
                // How librdkafka says that there is none.
                Offset::Invalid => -1,
                // Anything else is no offset and no "none": not understood.
                _ => i64::MIN,
            },
        });
        Ok(CommittedAnswer {
            error: 0,
            topics: topics
                .into_iter()
                .map(|(name, partitions)| CommittedTopic { name, partitions })
                .collect(),
        })
    }
}

impl Askable for EpochEndsRequest {
    /// The client has no such question. It is put about commits that carry a
    /// leader epoch only, and those that come through the client do not.
    fn put_to(
        &self,
        _client: &AskClient,
        _patience: &Patience<'_>,
    ) -> Result<EpochEndsAnswer, ClientError> {
        Err(ClientError::Failed(
            "librdkafka's client cannot be asked for the ends of leader epochs".to_owned(),
        ))
    }
}

impl Askable for OffsetsRequest {
    fn put_to(
        &self,
        client: &AskClient,
        patience: &Patience<'_>,
    ) -> Result<OffsetsAnswer, ClientError> {
        let asked: Vec<(TopicPartition, Offset)> = self
            .topics
            .iter()
            .flat_map(|(name, questions)| {
                questions.iter().map(move |question| {
                    let partition = TopicPartition::new(Arc::clone(name), question.partition);
                    (partition, timestamp(question.timestamp))
                })
            })
            .collect();
        let mut topics: BTreeMap<Arc<str>, Vec<OffsetAnswer>> = BTreeMap::new();
        // One that the client cannot ask for spoils the answer for all: then
        // each is asked for by itself.
        match ask_offsets(client, &asked, patience)? {
            Ok(found) => topics = found,
            Err(error) if asked.len() == 1 => refuse(&asked, &error, &mut topics),
            Err(_) => {
                for one in asked.chunks(1) {
                    match ask_offsets(client, one, patience)? {
                        Ok(found) => {
                            for (name, partitions) in found {
                                topics.entry(name).or_default().extend(partitions);
                            }
                        }
                        Err(error) => refuse(one, &error, &mut topics),
                    }
                }
            }
        }
        Ok(OffsetsAnswer {
            topics: topics
                .into_iter()
                .map(|(name, partitions)| OffsetsTopic { name, partitions })
                .collect(),
        })
    }
}

/// The client takes a time where others take an offset, and hands the protocol's
/// special ones on as they are.
fn timestamp(timestamp: i64) -> Offset {
    match timestamp {
        LATEST => Offset::End,
        EARLIEST => Offset::Beginning,
        time => Offset::Offset(time),
    }
}

type Offsets = BTreeMap<Arc<str>, Vec<OffsetAnswer>>;

fn ask_offsets(
    client: &AskClient,
    asked: &[(TopicPartition, Offset)],
    patience: &Patience<'_>,
) -> Result<Result<Offsets, KafkaError>, ClientError> {
    let put = client.patiently(patience, never, |client, wait| {
        let asked = asked.iter().map(|(partition, offset)| (partition, *offset));
        client.offsets_for_times(client::list_at(asked)?, wait)
    })?;
    Ok(put.map(|found| {
        by_topic(&found, |partition, error, offset| OffsetAnswer {
            partition,
            error,
            offset: match offset {
                Offset::Offset(offset) => offset,
                // The end, in answer to a time, stands for "no record is as
                // young".
                _ => -1,
            },
        })
    }))
}

fn refuse(asked: &[(TopicPartition, Offset)], error: &KafkaError, into: &mut Offsets) {
    for (partition, _) in asked {
        into.entry(partition.shared_topic())
            .or_default()
            .push(OffsetAnswer {
                partition: partition.partition(),
                error: code_of(error),
                offset: -1,
            });
    }
}

/// The elements of a list by topic, each with the error that it carries.
fn by_topic<T>(
    list: &TopicPartitionList,
    mut answer: impl FnMut(i32, i16, Offset) -> T,
) -> BTreeMap<Arc<str>, Vec<T>> {
    let mut topics: BTreeMap<Arc<str>, Vec<T>> = BTreeMap::new();
    for element in list.elements() {
        let error = element.error().err().map_or(0, |error| code_of(&error));
        topics
            .entry(Arc::from(element.topic()))
            .or_default()
            .push(answer(element.partition(), error, element.offset()));
    }
    topics
}
