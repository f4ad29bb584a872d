//! Brokers of old releases, real ones: the oldest that keepup supports, and the last before 4.0.
//!
//! What the releases in between announce is played by fake brokers in `hostile_broker.rs`.

use keepup::Workers;

use crate::support::kafka::Kafka;
use crate::support::run::{Events, Tally, builder, end_of};
use crate::support::{PATIENT, SOON, wait_until};

/// Reads a topic, in every compression that does not need a later broker, while it grows; commits, and goes on where
/// it stopped.
fn is_read(release: &'static str, test: &str) {
    let Some(kafka) = Kafka::of_release(test, release) else {
        return;
    };
    let topic = "old";
    let partitions = 4;
    kafka.create_topic(topic, partitions, &[]);
    let mut records = 0;
    let mut send = |compression: &str| {
        let producer = kafka.producer(&[("compression.type", compression)]);
        producer.send_numbers(topic, partitions, records..records + 100);
        producer.flush();
        records += 100;
        i64::try_from(records).expect("a few")
    };
    let committed = |until: i64| {
        wait_until(SOON, "the commits", || {
            let committed = kafka.committed(topic, topic);
            if committed == [Some(until); 4] {
                Ok(())
            } else {
                Err(committed)
            }
        });
    };
    let finished = Tally::default();
    let mut until = send("none");
    for compressions in [["gzip", "snappy"], ["lz4", "zstd"]] {
        let events = Events::default();
        let handle = builder(&kafka, topic, topic, &events)
            .workers(Workers::Fixed(2))
            .start(finished.handlers())
            .expect("the run starts");
        finished.await_each(PATIENT, partitions, until);
        for compression in compressions {
            until = send(compression);
            finished.await_each(PATIENT, partitions, until);
        }
        committed(until);
        let errors = handle.lag().connection_errors;
        assert_eq!(errors.total(), 0, "{errors:?}");
        handle.stop();
        let (report, _) = end_of(handle, SOON);
        assert_eq!(
            (report.exit_code(), report.left_uncommitted),
            (0, 0),
            "{report:?}"
        );
    }
    finished.assert_each_once(partitions, until);
}

#[test]
fn a_broker_of_2_8_is_read_and_committed_to() {
    is_read("2.8.2", test_name!());
}

#[test]
fn a_broker_of_3_9_is_read_and_committed_to() {
    is_read("3.9.1", test_name!());
}
