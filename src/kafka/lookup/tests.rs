//! The thread against librdkafka's mock cluster: leaders and coordinators that
//! move, brokers that go and come back, errors that are put into answers.

use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use super::*;
use crate::config::Settings;
use crate::kafka::Isolation;
use crate::kafka::ask_client::AskClient;
use crate::lag::reporter::{EndFinder as _, ToldEnds};
use crate::record::AssignmentEpoch;
use crate::source::Waker;

const TOPIC: &str = "orders";
const GROUP: &str = "readers";
/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

fn settings(mock: &MockCluster<'_, DefaultProducerContext>) -> ConnectionSettings {
    ConnectionSettings {
        request_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(2),
        group: Some(GROUP.to_owned()),
        isolation: Isolation::ReadCommitted,
        ..ConnectionSettings::new(
            mock.bootstrap_servers()
                .split(',')
                .map(str::to_owned)
                .collect(),
        )
    }
}

/// The same, asked through librdkafka's client.
fn client_settings(mock: &MockCluster<'_, DefaultProducerContext>) -> ConnectionSettings {
    let of_client = Settings::new(mock.bootstrap_servers(), GROUP);
    ConnectionSettings {
        client: Some(AskClient::open(&of_client).unwrap()),
        ..settings(mock)
    }
}

type MakeSettings = fn(&MockCluster<'_, DefaultProducerContext>) -> ConnectionSettings;

/// Both ways to ask.
const WAYS: [MakeSettings; 2] = [settings, client_settings];

fn error(code: i32) -> RDKafkaRespErr {
    use RDKafkaRespErr as E;
    match code {
        0 => E::RD_KAFKA_RESP_ERR_NO_ERROR,
        3 => E::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        6 => E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        14 => E::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        16 => E::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        29 => E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        30 => E::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        78 => E::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
        88 => E::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
        -195 => E::RD_KAFKA_RESP_ERR__TRANSPORT,
        other => panic!("{other} is not in the list"),
    }
}

struct Rig {
    // Stopped before the mock cluster goes.
    lookup: Option<Lookup>,
    cluster: Cluster,
    answers: Receiver<StartAnswer>,
    events: Receiver<TopicEvent>,
    mock: MockCluster<'static, DefaultProducerContext>,
}

impl Rig {
    /// Three brokers and a topic of four partitions.
    fn new() -> Self {
        Self::asking(settings)
    }

    fn asking(settings: MakeSettings) -> Self {
        let mock = MockCluster::new(3).unwrap();
        mock.create_topic(TOPIC, 4, 3).unwrap();
        let (cluster, rings) = Cluster::new();
        let (starts, answers) = bounded(100);
        let (topics, events) = bounded(100);
        let sinks = Sinks {
            starts: Box::new(move |answer| starts.send(answer).unwrap()),
            topics: Box::new(move |event| topics.send(event).unwrap()),
        };
        let lookup = Lookup::start(
            settings(&mock),
            Clock::System,
            cluster.clone(),
            rings,
            sinks,
        )
        .unwrap();
        Self {
            lookup: Some(lookup),
            cluster,
            answers,
            events,
            mock,
        }
    }

    fn lookup(&self) -> &Lookup {
        self.lookup.as_ref().unwrap()
    }

    fn produce(&self, partition: i32, count: i32) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.mock.bootstrap_servers())
            .create()
            .unwrap();
        for _ in 0..count {
            producer
                .send(
                    BaseRecord::<(), str>::to(TOPIC)
                        .partition(partition)
                        .payload("x"),
                )
                .unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }

    fn commit(&self, partition: i32, offset: i64) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.mock.bootstrap_servers())
            .set("group.id", GROUP)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(TOPIC, partition, Offset::Offset(offset))
            .unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }

    /// Asks, and returns what cancels the question.
    fn ask(&self, partition: i32, from: StartRule) -> Arc<AtomicBool> {
        let cancelled = Arc::default();
        self.lookup().resolve(vec![StartQuery {
            partition: TopicPartition::new(TOPIC, partition),
            epoch: AssignmentEpoch(1),
            from,
            want_end: true,
            cancelled: Arc::clone(&cancelled),
        }]);
        cancelled
    }

    fn answer(&self) -> (i32, Result<Start, LookupError>) {
        let answer = self.answers.recv_timeout(PATIENCE).unwrap();
        (answer.partition.partition(), answer.result)
    }

    fn start_of(&self, partition: i32, from: StartRule) -> Start {
        self.ask(partition, from);
        let (number, result) = self.answer();
        assert_eq!(number, partition);
        result.unwrap()
    }

    /// Waits until the snapshot is as `test` wants it.
    fn snapshot_where(
        &self,
        test: impl Fn(&super::super::cluster::ClusterSnapshot) -> bool,
    ) -> Arc<super::super::cluster::ClusterSnapshot> {
        let (tell, told) = bounded(1);
        let _registration = self.cluster.on_change(Waker::new(move || {
            let _ = tell.try_send(());
        }));
        let deadline = Clock::System.now() + PATIENCE;
        loop {
            let snapshot = self.cluster.snapshot();
            if test(&snapshot) {
                return snapshot;
            }
            told.recv_deadline(deadline)
                .expect("the snapshot stays as it is");
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(lookup) = self.lookup.take() {
            lookup.stop(PATIENCE).unwrap();
        }
    }
}

const EARLIEST_ELSE: StartRule = StartRule::CommittedElse(ResetPolicy::Earliest);
const LATEST_ELSE: StartRule = StartRule::CommittedElse(ResetPolicy::Latest);

#[test]
fn every_rule_finds_its_offset_and_the_end() {
    for way in WAYS {
        finds_offsets_by_every_rule(&Rig::asking(way));
    }
}

fn finds_offsets_by_every_rule(rig: &Rig) {
    for partition in 0..3 {
        rig.produce(partition, 10);
    }
    // Nobody has committed anything: latest is the end.
    let start = |offset, committed: Option<i64>| Start {
        note: None,
        offset,
        committed,
        truncated_at: None,
        end_offset: Some(10),
        is_reset: committed.is_none(),
    };
    assert_eq!(rig.start_of(0, LATEST_ELSE), start(10, None));
    assert_eq!(rig.start_of(0, EARLIEST_ELSE), start(0, None));
    rig.commit(1, 4);
    assert_eq!(rig.start_of(1, LATEST_ELSE), start(4, Some(4)));
    // Now the group reads the topic: what has no commit is new to it.
    assert_eq!(rig.start_of(2, LATEST_ELSE), start(0, None));
    // The mock cluster finds no record for any time.
    let timed = StartRule::CommittedElse(ResetPolicy::Timestamp(1_700_000_000_000));
    assert_eq!(rig.start_of(2, timed), start(10, None));
    assert_eq!(rig.start_of(1, StartRule::Range), start(0, None));
}

#[test]
fn questions_about_many_partitions_are_answered_once_each() {
    let rig = Rig::new();
    rig.commit(3, 0);
    let queries = (0..4)
        .map(|partition| StartQuery {
            partition: TopicPartition::new(TOPIC, partition),
            epoch: AssignmentEpoch(7),
            from: EARLIEST_ELSE,
            want_end: partition % 2 == 0,
            cancelled: Arc::default(),
        })
        .collect();
    rig.lookup().resolve(queries);
    let mut answered: Vec<i32> = (0..4).map(|_| rig.answer().0).collect();
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2, 3]);
    // A further answer shows that nothing else was on its way.
    assert_eq!(rig.start_of(3, EARLIEST_ELSE).committed, Some(0));
}

#[test]
fn errors_that_pass_are_waited_out_and_never_taken_for_no_commit() {
    for way in WAYS {
        waits_out_what_passes(&Rig::asking(way));
    }
}

fn waits_out_what_passes(rig: &Rig) {
    rig.produce(0, 10);
    rig.commit(0, 6);
    rig.mock.request_errors(
        RDKafkaApiKey::OffsetFetch,
        &[error(88), error(14), error(-195), error(16), error(3)],
    );
    rig.mock.request_errors(
        RDKafkaApiKey::ListOffsets,
        &[error(78), error(-195), error(6)],
    );
    let start = rig.start_of(0, LATEST_ELSE);
    assert_eq!((start.offset, start.end_offset), (6, Some(10)));
}

#[test]
fn a_coordinator_that_is_not_found_at_first_is_looked_for_again() {
    let rig = Rig::new();
    rig.commit(0, 6);
    rig.mock.request_errors(
        RDKafkaApiKey::FindCoordinator,
        &[error(14), error(-195), error(16)],
    );
    assert_eq!(rig.start_of(0, EARLIEST_ELSE).committed, Some(6));
}

#[test]
fn a_leader_that_moves_is_followed_and_everybody_is_woken() {
    let rig = Rig::new();
    rig.produce(0, 3);
    rig.mock.partition_leader(TOPIC, 0, Some(1)).unwrap();
    rig.lookup().want_topics([Arc::from(TOPIC)]);
    let before = rig.snapshot_where(|snapshot| {
        snapshot
            .leader(TOPIC, 0)
            .is_some_and(|leader| leader.id == 1)
    });
    rig.mock.partition_leader(TOPIC, 0, Some(2)).unwrap();
    // Asked of the old leader, who says that it is not the leader any more.
    let start = rig.start_of(0, StartRule::Range);
    assert_eq!((start.offset, start.end_offset), (0, Some(3)));
    let after = rig.snapshot_where(|snapshot| snapshot.leader(TOPIC, 0).unwrap().id == 2);
    assert!(after.generation > before.generation);
}

#[test]
fn a_partition_without_a_leader_waits_for_one() {
    let rig = Rig::new();
    rig.mock.partition_leader(TOPIC, 0, None).unwrap();
    rig.ask(0, EARLIEST_ELSE);
    rig.snapshot_where(|snapshot| snapshot.topics.contains_key(TOPIC));
    assert_eq!(rig.cluster.snapshot().leader(TOPIC, 0), None);
    rig.mock.partition_leader(TOPIC, 0, Some(3)).unwrap();
    assert_eq!(rig.answer().1.unwrap().offset, 0);
}

#[test]
fn a_coordinator_that_moves_is_followed() {
    let rig = Rig::new();
    for partition in 0..4 {
        rig.mock
            .partition_leader(TOPIC, partition, Some(3))
            .unwrap();
    }
    let coordinator = |id| {
        let group = MockCoordinator::Group(GROUP.to_owned());
        rig.mock.coordinator(group, id).unwrap();
    };
    coordinator(1);
    rig.commit(0, 5);
    assert_eq!(rig.start_of(0, EARLIEST_ELSE).offset, 5);
    coordinator(2);
    rig.mock.broker_down(1).unwrap();
    assert_eq!(rig.start_of(0, EARLIEST_ELSE).offset, 5);
}

#[test]
fn brokers_that_are_down_are_waited_for() {
    let rig = Rig::new();
    rig.produce(0, 3);
    rig.mock.broker_down(-1).unwrap();
    rig.ask(0, EARLIEST_ELSE);
    // The first failure is over when a refresh has been asked for again.
    rig.cluster.request_refresh();
    assert!(
        rig.answers
            .recv_timeout(Duration::from_millis(300))
            .is_err()
    );
    rig.mock.broker_up(-1).unwrap();
    assert_eq!(rig.answer().1.unwrap().end_offset, Some(3));

    // And again with everything known and connected.
    rig.mock.broker_down(-1).unwrap();
    rig.ask(0, EARLIEST_ELSE);
    assert!(
        rig.answers
            .recv_timeout(Duration::from_millis(300))
            .is_err()
    );
    rig.mock.broker_up(-1).unwrap();
    assert_eq!(rig.answer().1.unwrap().offset, 0);
}

#[test]
fn a_missing_permission_is_answered_and_does_not_hold_up_others() {
    let rig = Rig::new();
    rig.commit(0, 1);
    rig.mock
        .request_errors(RDKafkaApiKey::OffsetFetch, &[error(30)]);
    rig.ask(0, EARLIEST_ELSE);
    let (_, result) = rig.answer();
    assert!(
        matches!(
            result,
            Err(LookupError::NotAuthorized {
                resource: Resource::Group(_),
                ..
            })
        ),
        "{result:?}"
    );
    assert_eq!(rig.start_of(0, EARLIEST_ELSE).offset, 1);
}

#[test]
fn a_topic_that_disappears_keeps_its_last_known_state_and_is_told_once() {
    let rig = Rig::new();
    rig.lookup().want_topics([Arc::from(TOPIC)]);
    rig.snapshot_where(|snapshot| snapshot.leader(TOPIC, 3).is_some());
    let first = rig.events.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        first,
        TopicEvent::PartitionsChanged {
            topic: Arc::from(TOPIC),
            from: 0,
            to: 4
        }
    );
    rig.mock.topic_error(TOPIC, error(3)).unwrap();
    rig.cluster.request_refresh();
    let snapshot = rig.snapshot_where(|snapshot| snapshot.topics[TOPIC].error == 3);
    assert_eq!(snapshot.topics[TOPIC].partitions.len(), 4);
    assert!(matches!(
        rig.events.recv_timeout(PATIENCE).unwrap(),
        TopicEvent::Trouble { .. }
    ));
    rig.mock
        .topic_error(TOPIC, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)
        .unwrap();
    rig.cluster.request_refresh();
    assert_eq!(
        rig.events.recv_timeout(PATIENCE).unwrap(),
        TopicEvent::Recovered {
            topic: Arc::from(TOPIC)
        }
    );
    rig.lookup().forget_topics([Arc::from(TOPIC)]);
    rig.snapshot_where(|snapshot| snapshot.topics.is_empty());
}

#[test]
fn a_cancelled_question_is_not_answered() {
    let rig = Rig::new();
    rig.mock.partition_leader(TOPIC, 0, None).unwrap();
    let cancelled = rig.ask(0, EARLIEST_ELSE);
    assert_eq!(rig.start_of(1, EARLIEST_ELSE).offset, 0);
    cancelled.store(true, Ordering::Release);
    rig.mock.partition_leader(TOPIC, 0, Some(1)).unwrap();
    rig.cluster.request_refresh();
    rig.snapshot_where(|snapshot| snapshot.leader(TOPIC, 0).is_some());
    // Twice around, so that the thread has looked at its queue since.
    assert_eq!(rig.start_of(1, EARLIEST_ELSE).offset, 0);
    assert_eq!(rig.start_of(2, EARLIEST_ELSE).offset, 0);
}

#[test]
fn a_stop_does_not_wait_for_a_broker_that_does_not_answer() {
    let mut rig = Rig::new();
    rig.lookup().want_topics([Arc::from(TOPIC)]);
    rig.snapshot_where(|snapshot| snapshot.leader(TOPIC, 0).is_some());
    rig.mock
        .broker_round_trip_time(-1, Duration::from_secs(30))
        .unwrap();
    rig.ask(0, EARLIEST_ELSE);
    rig.cluster.request_refresh();
    assert!(
        rig.answers
            .recv_timeout(Duration::from_millis(200))
            .is_err()
    );
    let begin = Clock::System.now();
    rig.lookup.take().unwrap().stop(PATIENCE).unwrap();
    let took = Clock::System.now() - begin;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Asks where partitions end, as the reporter does: what was told, and how many
/// questions failed.
fn ends(rig: &Rig, partitions: &[i32], with_log_start: bool) -> (Vec<(i32, ToldEnds)>, u64) {
    let stop = StopFlag::default();
    let cluster = rig.cluster.clone();
    let ends = KafkaEnds::new(settings(&rig.mock), Clock::System, cluster, stop).unwrap();
    ends_by(ends, partitions, with_log_start)
}

fn ends_by(
    mut ends: KafkaEnds,
    partitions: &[i32],
    with_log_start: bool,
) -> (Vec<(i32, ToldEnds)>, u64) {
    let asked: Vec<_> = partitions
        .iter()
        .map(|&partition| TopicPartition::new(TOPIC, partition))
        .collect();
    let mut told = Vec::new();
    let deadline = Clock::System.now() + Duration::from_secs(1);
    let failed = ends.ask(&asked, with_log_start, deadline, &mut |index, ends| {
        told.push((asked[index].partition(), ends));
    });
    told.sort_by_key(|(partition, _)| *partition);
    (told, failed)
}

fn told(end_offset: i64, log_start: i64) -> ToldEnds {
    ToldEnds {
        end_offset,
        log_start,
    }
}

/// Partition 0 is led by broker 1, and so on; the snapshot knows it.
fn each_partition_with_its_leader(rig: &Rig) {
    for (partition, leader) in [(0, 1), (1, 2), (2, 3)] {
        rig.mock
            .partition_leader(TOPIC, partition, Some(leader))
            .unwrap();
    }
    rig.lookup().want_topics([Arc::from(TOPIC)]);
    rig.snapshot_where(|snapshot| {
        [(0, 1), (1, 2), (2, 3)].iter().all(|&(partition, leader)| {
            snapshot
                .leader(TOPIC, partition)
                .is_some_and(|known| known.id == leader)
        })
    });
}

#[test]
fn ends_are_asked_of_every_leader_and_the_log_start_where_it_is_wanted() {
    let rig = Rig::new();
    for partition in 0..3 {
        rig.produce(partition, 5 + partition);
    }
    each_partition_with_its_leader(&rig);
    let (found, failed) = ends(&rig, &[0, 1, 2], false);
    let expected = vec![(0, told(5, -1)), (1, told(6, -1)), (2, told(7, -1))];
    assert_eq!((found, failed), (expected, 0));
    let (found, failed) = ends(&rig, &[2], true);
    assert_eq!((found, failed), (vec![(2, told(7, 0))], 0));
}

#[test]
fn a_leader_that_does_not_answer_costs_its_own_partitions_their_ends_and_half_a_second() {
    let rig = Rig::new();
    each_partition_with_its_leader(&rig);
    rig.mock
        .broker_round_trip_time(2, Duration::from_secs(30))
        .unwrap();
    let begin = Clock::System.now();
    let (found, failed) = ends(&rig, &[0, 1, 2], false);
    let took = Clock::System.now() - begin;
    assert_eq!(found, [(0, told(0, -1)), (2, told(0, -1))]);
    assert_eq!(failed, 1);
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn what_has_no_leader_or_is_refused_has_no_end_and_is_counted() {
    let rig = Rig::new();
    each_partition_with_its_leader(&rig);
    rig.mock.partition_leader(TOPIC, 0, None).unwrap();
    rig.cluster.request_refresh();
    rig.snapshot_where(|snapshot| snapshot.leader(TOPIC, 0).is_none());
    assert_eq!(
        ends(&rig, &[0, 1], false),
        (vec![(1, told(0, -1))], 1),
        "the one without a leader"
    );
    rig.mock
        .request_errors(RDKafkaApiKey::ListOffsets, &[error(6)]);
    assert_eq!(ends(&rig, &[1], false), (Vec::new(), 1), "not the leader");
    assert_eq!(ends(&rig, &[1], false), (vec![(1, told(0, -1))], 0));
}

fn contact(
    mock: &MockCluster<'static, DefaultProducerContext>,
    topics: &[&str],
    timeout: Duration,
) -> (Result<(), ContactError>, Cluster) {
    contact_by(&settings(mock), topics, timeout)
}

fn contact_by(
    settings: &ConnectionSettings,
    topics: &[&str],
    timeout: Duration,
) -> (Result<(), ContactError>, Cluster) {
    let (cluster, _rings) = Cluster::new();
    let topics: Vec<Arc<str>> = topics.iter().copied().map(Arc::from).collect();
    let result = first_contact(
        settings,
        &Clock::System,
        &cluster,
        &topics,
        timeout,
        &StopFlag::default(),
    );
    (result, cluster)
}

#[test]
fn the_first_contact_finds_topics_and_leaves_what_it_knows_in_the_cluster() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(TOPIC, 2, 1).unwrap();
    let (result, cluster) = contact(&mock, &[TOPIC], PATIENCE);
    assert_eq!(result, Ok(()));
    assert_eq!(cluster.snapshot().topics[TOPIC].partitions.len(), 2);
    let (result, cluster) = contact(&mock, &[], PATIENCE);
    assert_eq!(result, Ok(()));
    assert_eq!(cluster.snapshot().brokers.len(), 1);
}

#[test]
fn the_first_contact_names_what_is_wrong() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(TOPIC, 1, 1).unwrap();
    let short = Duration::from_millis(300);

    let (result, _) = contact(&mock, &[TOPIC, "typo"], short);
    let Err(error) = result else {
        panic!("the topic was created by asking for it")
    };
    assert!(
        matches!(&error, ContactError::UnknownTopics { topics, .. } if topics[..] == [Arc::from("typo")])
    );
    assert!(error.to_string().contains("topic typo"), "{error}");

    mock.topic_error(TOPIC, super::tests::error(29)).unwrap();
    let (result, _) = contact(&mock, &[TOPIC], short);
    assert!(
        matches!(
            &result,
            Err(ContactError::NotAuthorized { resource: Resource::Topic(topic), .. })
                if &**topic == TOPIC
        ),
        "{result:?}"
    );

    mock.request_errors(RDKafkaApiKey::FindCoordinator, &[super::tests::error(30)]);
    let (result, _) = contact(&mock, &[], short);
    assert!(
        matches!(
            &result,
            Err(ContactError::NotAuthorized { resource: Resource::Group(group), .. })
                if &**group == GROUP
        ),
        "{result:?}"
    );

    mock.broker_down(-1).unwrap();
    let (result, _) = contact(&mock, &[TOPIC], short);
    let Err(error @ ContactError::NoContact { .. }) = result else {
        panic!("{result:?}")
    };
    assert!(
        error.to_string().contains(&mock.bootstrap_servers()),
        "{error}"
    );
}

#[test]
fn the_first_contact_waits_for_a_broker_that_is_starting() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(TOPIC, 1, 1).unwrap();
    mock.request_errors(
        RDKafkaApiKey::Metadata,
        &[super::tests::error(-195), super::tests::error(-195)],
    );
    let (result, _) = contact(&mock, &[TOPIC], PATIENCE);
    assert_eq!(result, Ok(()));
}

#[test]
fn the_first_contact_through_the_client_names_what_is_wrong_too() {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(TOPIC, 2, 1).unwrap();
    let settings = client_settings(&mock);
    let short = Duration::from_millis(300);

    let (result, cluster) = contact_by(&settings, &[TOPIC], PATIENCE);
    assert_eq!(result, Ok(()));
    assert_eq!(cluster.snapshot().topics[TOPIC].partitions.len(), 2);
    let (result, cluster) = contact_by(&settings, &[], PATIENCE);
    assert_eq!(result, Ok(()));
    assert_eq!(cluster.snapshot().brokers.len(), 1);

    let (result, _) = contact_by(&settings, &[TOPIC, "typo"], PATIENCE);
    assert!(
        matches!(&result, Err(ContactError::UnknownTopics { topics, .. }) if topics[..] == [Arc::from("typo")]),
        "{result:?}"
    );

    mock.topic_error(TOPIC, error(29)).unwrap();
    let (result, _) = contact_by(&settings, &[TOPIC], PATIENCE);
    assert!(
        matches!(
            &result,
            Err(ContactError::NotAuthorized { resource: Resource::Topic(topic), .. })
                if &**topic == TOPIC
        ),
        "{result:?}"
    );
    mock.topic_error(TOPIC, error(0)).unwrap();

    // Another client: this one knows its coordinator.
    let settings = client_settings(&mock);
    mock.request_errors(RDKafkaApiKey::FindCoordinator, &[error(30); 8]);
    let (result, _) = contact_by(&settings, &[TOPIC], PATIENCE);
    assert!(
        matches!(
            &result,
            Err(ContactError::NotAuthorized { resource: Resource::Group(group), .. })
                if &**group == GROUP
        ),
        "{result:?}"
    );

    mock.broker_down(-1).unwrap();
    let (result, _) = contact_by(&settings, &[TOPIC], short);
    assert!(
        matches!(&result, Err(ContactError::NoContact { .. })),
        "{result:?}"
    );
}

#[test]
fn ends_are_asked_through_the_client_too() {
    let rig = Rig::asking(client_settings);
    rig.produce(0, 10);
    rig.produce(2, 3);
    each_partition_with_its_leader(&rig);
    let settings = client_settings(&rig.mock);
    let begin = Clock::System.now();
    loop {
        let stop = StopFlag::default();
        let cluster = rig.cluster.clone();
        let ends = KafkaEnds::new(settings.clone(), Clock::System, cluster, stop).unwrap();
        // Half a second per question may be too short for a client that has
        // just been made; the reporter asks again a second later.
        match ends_by(ends, &[0, 1, 2], true) {
            (found, 0) if found.len() == 3 => {
                assert_eq!(found, [(0, told(10, 0)), (1, told(0, 0)), (2, told(3, 0))]);
                break;
            }
            other => assert!(Clock::System.now() < begin + PATIENCE, "{other:?}"),
        }
    }
}
