//! Commits that brokers refuse, by every class of error: what passes is tried again with a pause, what says that the
//! membership is over leads to a rejoin, and what is final ends the run. Against librdkafka's mock cluster, since no
//! real broker answers these on request.

use std::time::Duration;

use keepup::{EventKind, Handle, Report, StopReason, Workers};
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::kafka::committed_by;
use crate::support::run::{Events, Tally, end_of};
use crate::support::{PATIENT, wait_until};

/// A run over one partition of a mock cluster.
struct Scene {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
    topic: &'static str,
    tally: Tally,
    events: Events,
    handle: Handle,
    /// How many records there are.
    written: i64,
}

impl Scene {
    fn start(topic: &'static str, properties: &[(&str, &str)]) -> Self {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic(topic, 1, 1).expect("a topic");
        let bootstrap = cluster.bootstrap_servers();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .create()
            .expect("a producer");
        let (tally, events) = (Tally::default(), Events::default());
        let mut builder = keepup::builder(&bootstrap, topic)
            .topic(topic)
            .contact_timeout(PATIENT)
            .workers(Workers::Fixed(1))
            .property("auto.commit.interval.ms", "100")
            // Who rejoins under another name waits for the session of the former.
            .property("session.timeout.ms", "6000")
            .property("heartbeat.interval.ms", "200")
            .on_event(events.observer());
        for &(name, value) in properties {
            builder = builder.property(name, value);
        }
        let handle = builder.start(tally.handlers()).expect("the run starts");
        Self {
            cluster,
            producer,
            topic,
            tally,
            events,
            handle,
            written: 0,
        }
    }

    /// Has the next commits fail with `code`, and gives them something to commit.
    fn fail_commits(&mut self, code: RDKafkaRespErr, times: usize) {
        let codes = vec![code; times];
        self.cluster
            .request_errors(RDKafkaApiKey::OffsetCommit, &codes);
        self.write_ten();
    }

    fn write_ten(&mut self) {
        for _ in 0..10 {
            let payload = self.written.to_string();
            let record = BaseRecord::<(), str>::to(self.topic).partition(0);
            let sent = self.producer.send(record.payload(&payload));
            sent.map_err(|(error, _)| error).expect("a short queue");
            self.written += 1;
        }
        self.producer.flush(PATIENT).expect("they are delivered");
    }

    fn committed(&self) -> Option<i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.cluster.bootstrap_servers());
        committed_by(&config, self.topic, self.topic, 1)[0]
    }

    fn await_commit(&self, what: &str) {
        wait_until(PATIENT, what, || match self.committed() {
            Some(committed) if committed == self.written => Ok(()),
            other => Err(format!("{other:?}{}", self.events.timeline())),
        });
    }

    /// What commits that failed were told to have failed with.
    fn failures(&self) -> Vec<String> {
        self.events.pick(|event| match &event.kind {
            EventKind::OffsetsCommitted {
                error: Some(error), ..
            } => Some(error.clone()),
            _ => None,
        })
    }

    fn stop(self) -> Report {
        self.handle.stop();
        end_of(self.handle, PATIENT).0
    }
}

/// Codes that leave the membership as it is. Those that somebody has to mend (permissions) are among them: the commits
/// are tried again, once per interval, and go through once that is done.
const PASSING: [RDKafkaRespErr; 12] = [
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    // The connection breaks instead of an answer.
    RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
];

#[test]
fn s08_commits_that_fail_for_a_while_are_tried_again_with_a_bound_and_counted() {
    let mut scene = Scene::start("s08-passing", &[]);
    scene.write_ten();
    scene.await_commit("the first commit");
    for code in PASSING {
        let before = scene.failures().len();
        scene.fail_commits(code, 2);
        scene.await_commit(&format!("the commit after {code:?}"));
        let failures = &scene.failures()[before..];
        println!("{code:?}: {failures:?}");
        assert!(
            failures.len() <= 2,
            "{code:?}: tried more often than refused: {failures:?}"
        );
    }
    let failures = scene.failures().len();
    assert!(failures > 0, "no failure was told");
    wait_until(PATIENT, "the failures to be counted", || {
        let counted = scene.handle.lag();
        if counted.commits_retried == u64::try_from(failures).expect("a count") {
            assert_eq!((counted.commits_failed, counted.commits_refused), (0, 0));
            Ok(())
        } else {
            Err(counted.commits_retried)
        }
    });
    let (tally, written) = (scene.tally.clone(), scene.written);
    let report = scene.stop();
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
    assert_eq!(tally.of(0), (0..written).collect::<Vec<_>>(), "each once");
}

#[test]
fn s08_commits_of_a_stale_membership_lead_to_a_rejoin_and_what_was_not_committed_comes_again() {
    let mut scene = Scene::start("s08-stale", &[]);
    scene.write_ten();
    scene.await_commit("the first commit");
    for code in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
    ] {
        let (rejoined, before) = (scene.handle.lag().rebalances, scene.written);
        let handled = scene.tally.len();
        scene.fail_commits(code, 1);
        scene.await_commit(&format!("the commit after {code:?}"));
        println!(
            "{code:?}: {} handled again, {} rebalances",
            scene.tally.len() - handled - 10,
            scene.handle.lag().rebalances - rejoined
        );
        // From the commit on, in order, whether once or twice.
        let mut again = scene.tally.of(0).split_off(handled);
        assert!(again.iter().all(|&offset| offset >= before), "{again:?}");
        assert_eq!(again[0], before);
        again.dedup();
        again.sort_unstable();
        again.dedup();
        assert_eq!(again, (before..scene.written).collect::<Vec<_>>());
    }
    let report = scene.stop();
    assert_eq!((report.exit_code(), report.left_uncommitted), (0, 0));
}

#[test]
fn s08_a_commit_of_a_fenced_member_ends_the_run_and_names_what_to_do() {
    let mut scene = Scene::start("s08-fenced", &[("group.instance.id", "one")]);
    scene.write_ten();
    scene.await_commit("the first commit");
    scene.fail_commits(RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, 1_000);
    let (report, _) = end_of(scene.handle, Duration::from_mins(1));
    let StopReason::InstanceTaken { instance, message } = &report.reason else {
        panic!("another reason: {report:?}");
    };
    assert_eq!(instance, "one");
    assert!(message.contains("group.instance.id"), "{message}");
    // What it had is the other one's, and not counted here.
    assert_eq!((report.exit_code(), report.left_uncommitted), (1, 0));
    assert_eq!(scene.tally.len(), 20, "each once");
}
