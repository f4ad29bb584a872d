//! Writing dead letters: a producer of its own, which does nothing else.
//!
//! A dead letter is the last that is seen of a record before its offset is
//! committed, so it is written as safely as Kafka can: idempotently, to all
//! in-sync replicas. It has to be known soon whether it was, because a revoke
//! waits for it: a letter fails well before the revoke deadline, and is then
//! tried again by whoever has the partition.
//!
//! The headers behind the record's own are those of Spring Kafka's
//! `DeadLetterPublishingRecoverer` (`KafkaHeaders.DLT_*`), numbers big-endian as
//! there, so that tools that read its dead letters read these.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};

use crate::config::Settings;
use crate::error::{Error, Problem};
use crate::kafka::client;
use crate::worker::dead_letter::{DeadLetters, Delivery, Letter, Sent};

/// A letter fails at the latest after that part of the revoke deadline, which
/// waits for it.
const OF_THE_REVOKE_DEADLINE: f64 = 0.75;

/// And never later than that.
const LONGEST: Duration = Duration::from_secs(10);

/// How long the producer's threads may take to end.
const END: Duration = Duration::from_millis(500);

/// More of an error is not told in a header.
const LONGEST_ERROR: usize = 4096;

struct Postman;

impl ClientContext for Postman {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext for Postman {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        delivery.tell(match result {
            Ok(_) => Sent::Written,
            Err((error, _)) => failed(error),
        });
    }
}

fn failed(error: &KafkaError) -> Sent {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownPartition) => Sent::NoSuchPartition,
        Some(RDKafkaErrorCode::PurgeQueue) => Sent::Recalled,
        Some(code) => Sent::Failed(code.to_string()),
        None => Sent::Failed(error.to_string()),
    }
}

/// The dead letters of a run.
pub(crate) struct KafkaDeadLetters {
    /// There until it is dropped.
    producer: Option<ThreadedProducer<Postman>>,
    topic: String,
    group: String,
    patience: Duration,
}

impl KafkaDeadLetters {
    /// Makes the producer, where there is a topic for it; contacts nobody yet.
    ///
    /// # Errors
    ///
    /// Where librdkafka refuses the properties together.
    pub(crate) fn new(settings: &Settings) -> Result<Option<Self>, Error> {
        let Some(topic) = settings.dead_letter.clone() else {
            return Ok(None);
        };
        let patience = settings
            .revoke_deadline
            .mul_f64(OF_THE_REVOKE_DEADLINE)
            .min(LONGEST);
        let config = client::producer_config(settings, patience);
        let producer =
            ThreadedProducer::from_config_and_context(&config, Postman).map_err(|error| {
                Error::InvalidSettings(vec![Problem::new(
                    "dead letter",
                    format!("{topic:?}"),
                    format!("librdkafka refuses the properties for a producer: {error}"),
                    "change the property that it names",
                )])
            })?;
        Ok(Some(Self {
            producer: Some(producer),
            topic,
            group: settings.group.clone(),
            patience,
        }))
    }
}

impl DeadLetters for KafkaDeadLetters {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn send(&self, letter: &Letter<'_>, delivery: &Arc<Delivery>) {
        let Some(producer) = &self.producer else {
            return;
        };
        let record = &letter.record;
        let mut outgoing: BaseRecord<'_, [u8], [u8], Arc<Delivery>> =
            BaseRecord::with_opaque_to(&self.topic, Arc::clone(delivery))
                .headers(headers(letter, &self.group));
        if !letter.any_partition {
            outgoing = outgoing.partition(record.partition());
        }
        if let Some(key) = record.key() {
            outgoing = outgoing.key(key);
        }
        if let Some(value) = record.value() {
            outgoing = outgoing.payload(value);
        }
        if let Err((error, _)) = producer.send(outgoing) {
            delivery.tell(failed(&error));
        }
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn recall(&self) {
        if let Some(producer) = &self.producer {
            producer.purge(PurgeConfig::default().queue());
        }
    }
}

impl Drop for KafkaDeadLetters {
    /// Without a deadline it would wait for a broker that is gone.
    fn drop(&mut self) {
        if let Some(producer) = self.producer.take()
            && !client::drop_within(producer, END)
        {
            tracing::debug!("the producer of dead letters was left behind");
        }
    }
}

/// The record's own headers, and behind them where it comes from and why it is
/// here. librdkafka takes names that are UTF-8 only: of others, what is not
/// becomes U+FFFD.
fn headers(letter: &Letter<'_>, group: &str) -> OwnedHeaders {
    let record = &letter.record;
    let (own, _) = record.headers().size_hint();
    let mut headers = OwnedHeaders::new_with_capacity(own + 8);
    for header in record.headers() {
        let name: Cow<'_, str> = String::from_utf8_lossy(header.name);
        headers = headers.insert(Header {
            key: &name,
            value: header.value,
        });
    }
    let partition = record.partition().to_be_bytes();
    let offset = record.offset().to_be_bytes();
    let timestamp = record.timestamp_ms().unwrap_or(-1).to_be_bytes();
    let attempts = record.attempt().to_be_bytes();
    let told: [(&str, &[u8]); 8] = [
        ("kafka_dlt-original-topic", record.topic().as_bytes()),
        ("kafka_dlt-original-partition", &partition),
        ("kafka_dlt-original-offset", &offset),
        ("kafka_dlt-original-timestamp", &timestamp),
        ("kafka_dlt-original-consumer-group", group.as_bytes()),
        ("kafka_dlt-exception-fqcn", b"keepup.HandlerFailed"),
        (
            "kafka_dlt-exception-message",
            shortened(letter.error).as_bytes(),
        ),
        ("kafka_deliveryAttempt", &attempts),
    ];
    for (key, value) in told {
        headers = headers.insert(Header {
            key,
            value: Some(value),
        });
    }
    headers
}

fn shortened(error: &str) -> &str {
    &error[..error.floor_char_boundary(LONGEST_ERROR)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_between_two_characters() {
        assert_eq!(shortened("no"), "no");
        let long = "ü".repeat(LONGEST_ERROR);
        let cut = shortened(&format!("x{long}")).len();
        assert!((LONGEST_ERROR - 1..=LONGEST_ERROR).contains(&cut), "{cut}");
    }

    #[test]
    fn a_letter_fails_before_a_revoke_gives_up_on_it() {
        let mut settings = Settings::new("localhost:9092", "g");
        assert!(KafkaDeadLetters::new(&settings).is_ok_and(|letters| letters.is_none()));
        settings.dead_letter = Some("orders-dead".into());
        // What is the consumer's alone does not keep the producer from starting.
        for (name, value) in [("max.poll.interval.ms", "60000"), ("fetch.min.bytes", "1")] {
            settings.properties.insert(name.into(), value.into());
        }
        for (deadline, patience) in [(4_000, 3_000), (60_000, 10_000)] {
            settings.revoke_deadline = Duration::from_millis(deadline);
            let letters = KafkaDeadLetters::new(&settings);
            let letters = letters.ok().flatten().expect("a producer");
            assert_eq!(letters.patience(), Duration::from_millis(patience));
        }
    }
}
