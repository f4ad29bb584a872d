//! Partitions read through librdkafka's client, for the client source.
//!
//! Each partition has a queue of its own, split off before the partition is
//! assigned and kept for as long as the client lasts: what is not taken from it
//! makes librdkafka stop fetching that partition, and no other. An assignment
//! made after the split leaves the queue alone.
//!
//! librdkafka counts the incarnations of a partition by itself: when it has been
//! given up and taken on at another offset, what was fetched for the old offset
//! does not come out of the queue any more. One thing is not counted, the error
//! that says that an offset is not there; so the source believes it only when it
//! comes twice.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};

use super::client::{self, Ears, Outsider};
use crate::config::Settings;
use crate::error::Error;
use crate::kafka::errors::ErrorCode;
use crate::record::TopicPartition;
use crate::source::Waker;

/// Between looks at a partition whose queue was full. librdkafka's default of a
/// second makes a fast reader four times slower.
const QUEUE_BACKOFF_MS: &str = "5";

/// The most that is asked for of one partition at a time.
const LARGEST_FETCH: usize = 1024 * 1024;

/// What a record takes in librdkafka's queue beside its bytes, about: small
/// records would take many times the room that they are meant to have.
const RECORD_OVERHEAD: usize = 512;

/// Events of the client that are looked at in one go.
const EVENTS: usize = 8;

/// Why a record cannot be told, and what reads it all the same.
const NOT_UTF8: &str = "the name of one of its headers is not UTF-8, which librdkafka's interface \
                        for Rust does not tell; --source fetch reads it";

/// What a client that is dropped gets to come to its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// librdkafka's client, reading partitions. Used by one thread.
pub(crate) struct FetchClient {
    /// Before the client: they keep it.
    queues: HashMap<TopicPartition, Queue>,
    /// `None` when it is being dropped.
    client: Option<Arc<Outsider>>,
    ring: Waker,
}

struct Queue {
    queue: PartitionQueue<Ears>,
    /// Set where something was put into the empty queue.
    has_news: Arc<AtomicBool>,
}

/// What was taken out of a partition's queue.
pub(crate) enum Taken<'c> {
    Record(Delivered<'c>),
    /// Everything below this offset was taken; it was the partition's end when
    /// it was fetched. `None` where librdkafka did not tell the offset.
    End(Option<i64>),
    Trouble(ClientTrouble),
}

/// Why a partition is not read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientTrouble {
    /// The offset is not in the partition.
    OutOfRange,
    /// The log was cut off at `end_offset`, where that was told.
    Truncated {
        end_offset: Option<i64>,
    },
    NotAuthorized,
    /// What came is no record set.
    Corrupt(String),
    /// The broker's answer for good.
    Refused {
        code: i16,
        name: &'static str,
    },
}

/// A record as librdkafka holds it.
pub(crate) struct Delivered<'c>(BorrowedMessage<'c>);

impl Delivered<'_> {
    pub(crate) fn offset(&self) -> i64 {
        self.0.offset()
    }

    /// Milliseconds since 1970, or -1.
    pub(crate) fn timestamp(&self) -> i64 {
        self.0.timestamp().to_millis().unwrap_or(-1)
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.0.key()
    }

    pub(crate) fn value(&self) -> Option<&[u8]> {
        self.0.payload()
    }

    /// Calls `take` with the name and value of each header.
    ///
    /// # Errors
    ///
    /// Where a name is not UTF-8: rdkafka's way to read it panics.
    pub(crate) fn headers(&self, mut take: impl FnMut(&str, Option<&[u8]>)) -> Result<(), String> {
        let Some(headers) = self.0.headers() else {
            return Ok(());
        };
        for index in 0..headers.count() {
            // Nothing is half done when it panics: it has only been read.
            let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)))
                .map_err(|_| NOT_UTF8.to_owned())?;
            if let Some(header) = header {
                take(header.key, header.value);
            }
        }
        Ok(())
    }
}

impl FetchClient {
    /// Makes the client; contacts nobody yet. It holds about `room` bytes of
    /// each partition, and one fetch more. `ring` is used when there is
    /// something to take, on threads of librdkafka.
    ///
    /// # Errors
    ///
    /// Where librdkafka refuses the settings.
    pub(crate) fn open(settings: &Settings, room: usize, ring: Waker) -> Result<Self, Error> {
        let defaults = [
            ("queued.max.messages.kbytes", (room / 1000).max(1)),
            ("queued.min.messages", (room / RECORD_OVERHEAD).max(100)),
            ("fetch.message.max.bytes", room.clamp(1024, LARGEST_FETCH)),
        ]
        .map(|(name, value)| (name, value.to_string()));
        let fixed = [
            ("allow.auto.create.topics", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("check.crcs", "true"),
        ];
        let mut config = client::config(settings, &defaults, &fixed);
        if !settings.properties.contains_key("fetch.queue.backoff.ms") {
            config.set("fetch.queue.backoff.ms", QUEUE_BACKOFF_MS);
        }
        let mut client = client::open(settings, &config, Ears::default())?;
        let bell = ring.clone();
        client.set_nonempty_callback(move || bell.wake());
        Ok(Self {
            queues: HashMap::new(),
            client: Some(Arc::new(client)),
            ring,
        })
    }

    /// Begins to read partitions that are not being read.
    ///
    /// # Errors
    ///
    /// What librdkafka says; then none of them is being read.
    pub(crate) fn read(&mut self, from: &[(TopicPartition, i64)]) -> Result<(), String> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        for (partition, _) in from {
            if self.queues.contains_key(partition) {
                continue;
            }
            let mut queue = client
                .split_partition_queue(partition.topic(), partition.partition())
                .ok_or_else(|| format!("librdkafka has no queue for {partition}"))?;
            let has_news = Arc::new(AtomicBool::new(false));
            let (flag, bell) = (Arc::clone(&has_news), self.ring.clone());
            queue.set_nonempty_callback(move || {
                flag.store(true, Ordering::Release);
                bell.wake();
            });
            self.queues
                .insert(partition.clone(), Queue { queue, has_news });
        }
        let list = from
            .iter()
            .map(|(partition, offset)| (partition, Offset::Offset(*offset)));
        client::list_at(list)
            .and_then(|list| client.incremental_assign(&list))
            .map_err(|error| error.to_string())
    }

    /// Stops reading partitions; nothing of them is taken any more.
    ///
    /// # Errors
    ///
    /// What librdkafka says.
    pub(crate) fn leave(&mut self, partitions: &[TopicPartition]) -> Result<(), String> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        client
            .incremental_unassign(&client::list(partitions))
            .map_err(|error| error.to_string())
    }

    /// Lets go of the queue of a partition that is not being read, so that
    /// partitions that were here once do not add up.
    pub(crate) fn forget(&mut self, partition: &TopicPartition) {
        self.queues.remove(partition);
    }

    /// Lets the client say what it has to say. Partitions whose records came
    /// past their queue are added to `astray`: librdkafka has made another queue
    /// for them, and they have to be read anew.
    pub(crate) fn serve(&mut self, astray: &mut Vec<TopicPartition>) {
        let Some(client) = &self.client else { return };
        for _ in 0..EVENTS {
            match client.poll(Duration::ZERO) {
                None => {}
                Some(Ok(message)) => {
                    astray.push(TopicPartition::new(message.topic(), message.partition()));
                }
                Some(Err(error)) => {
                    let said = client.context().take();
                    let reason = said.map(|said| said.reason).unwrap_or_default();
                    tracing::debug!(target: "librdkafka", %error, "{reason}");
                }
            }
        }
    }

    /// Whether something was put into a partition's queue since it was found
    /// empty.
    pub(crate) fn has_news(&self, partition: &TopicPartition) -> bool {
        self.queues
            .get(partition)
            .is_some_and(|queue| queue.has_news.load(Ordering::Acquire))
    }

    /// Has every queue looked into once more.
    pub(crate) fn expect_news(&self) {
        for queue in self.queues.values() {
            queue.has_news.store(true, Ordering::Release);
        }
    }

    /// Takes the next of a partition, or `None` where its queue is empty.
    pub(crate) fn take(&self, partition: &TopicPartition) -> Option<Taken<'_>> {
        let (queue, client) = (self.queues.get(partition)?, self.client.as_ref()?);
        loop {
            let Some(polled) = queue.queue.poll(Duration::ZERO) else {
                // Lowered first, then looked once more: what is put in after
                // that look raises it again.
                if queue.has_news.swap(false, Ordering::AcqRel) {
                    continue;
                }
                return None;
            };
            return Some(match polled {
                Ok(message) => Taken::Record(Delivered(message)),
                Err(error) => {
                    let said = client.context().take();
                    let reason = said.map(|said| said.reason).unwrap_or_default();
                    let Some(taken) = news_of(&error, &reason) else {
                        tracing::debug!(target: "librdkafka", %partition, %error, "{reason}");
                        continue;
                    };
                    taken
                }
            });
        }
    }
}

impl Drop for FetchClient {
    fn drop(&mut self) {
        self.queues.clear();
        if let Some(client) = self.client.take()
            && !client::drop_within(client, LAST_WORDS)
        {
            tracing::warn!("librdkafka's client of a worker does not close and is left behind");
        }
    }
}

/// What an error in a partition's queue means; `None` for what passes by itself.
fn news_of(error: &KafkaError, reason: &str) -> Option<Taken<'static>> {
    if matches!(error, KafkaError::PartitionEOF(_)) {
        return Some(Taken::End(number_after(reason, "at offset ")));
    }
    let code = error.rdkafka_error_code()?;
    let trouble = match code {
        RDKafkaErrorCode::AutoOffsetReset if reason.contains("truncation") => {
            ClientTrouble::Truncated {
                end_offset: number_after(reason, "broker end offset is "),
            }
        }
        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
            ClientTrouble::OutOfRange
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => ClientTrouble::NotAuthorized,
        RDKafkaErrorCode::BadMessage
        | RDKafkaErrorCode::BadCompression
        | RDKafkaErrorCode::InvalidMessage
        | RDKafkaErrorCode::NotImplemented => ClientTrouble::Corrupt(if reason.is_empty() {
            error.to_string()
        } else {
            reason.to_owned()
        }),
        other => {
            let error = ErrorCode::from_code(client::broker_code(other)?)?;
            if error.class.passes() {
                return None;
            }
            ClientTrouble::Refused {
                code: error.code,
                name: error.name,
            }
        }
    };
    Some(Taken::Trouble(trouble))
}

/// The number that follows `words`. librdkafka tells some offsets in the text of
/// an error only: its event has them, rdkafka's wrapper of it has not.
fn number_after(text: &str, words: &str) -> Option<i64> {
    let (_, rest) = text.split_once(words)?;
    let digits = rest
        .split_once(|character: char| !character.is_ascii_digit())
        .map_or(rest, |(digits, _)| digits);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_out_of_what_librdkafka_says() {
        let end =
            "Fetch from broker 1 reached end of partition at offset 4711 (HighwaterMark 4712)";
        assert_eq!(number_after(end, "at offset "), Some(4711));
        assert_eq!(
            number_after("broker end offset is 9", "broker end offset is "),
            Some(9)
        );
        for text in [
            "",
            "at offset INVALID (",
            "at offset -1",
            "at offset 99999999999999999999",
        ] {
            assert_eq!(number_after(text, "at offset "), None, "{text}");
        }
    }

    #[test]
    fn what_passes_by_itself_is_no_trouble_of_a_partition() {
        let trouble = |code| match news_of(&KafkaError::MessageConsumption(code), "") {
            Some(Taken::Trouble(trouble)) => Some(trouble),
            Some(_) => panic!("{code:?} is no end and no record"),
            None => None,
        };
        for code in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::NotLeaderForPartition,
            RDKafkaErrorCode::AllBrokersDown,
        ] {
            assert_eq!(trouble(code), None, "{code:?}");
        }
        assert_eq!(
            trouble(RDKafkaErrorCode::AutoOffsetReset),
            Some(ClientTrouble::OutOfRange)
        );
        assert_eq!(
            trouble(RDKafkaErrorCode::TopicAuthorizationFailed),
            Some(ClientTrouble::NotAuthorized)
        );
        assert!(matches!(
            trouble(RDKafkaErrorCode::UnsupportedForMessageFormat),
            Some(ClientTrouble::Refused { code: 43, .. })
        ));
    }
}
