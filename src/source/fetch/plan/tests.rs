use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::*;
use crate::clock::Clock;
use crate::kafka::cluster::{BrokerAddress, Leader, PartitionState, TopicState};
use crate::kafka::messages::{Diverging, Endpoint, FetchedTopic};
use crate::record::TopicPartition;
use crate::source::Waker;
use crate::source::fetch::encode::TestBatch;

const MIB: usize = 1024 * 1024;
const NOT_LEADER: i16 = 6;
const OUT_OF_RANGE: i16 = 1;
const NOT_AUTHORIZED: i16 = 29;
const INVALID_REQUEST: i16 = 42;

/// A plan with the world that it needs.
struct Stage {
    plan: Plan,
    kit: Kit,
    now: Instant,
    room: Room,
}

impl Stage {
    /// Partitions 0 to n of a topic, each led by the broker given for it.
    fn with(leaders: &[i32]) -> Self {
        Self::reading(Isolation::ReadCommitted, leaders)
    }

    fn reading(isolation: Isolation, leaders: &[i32]) -> Self {
        let mut stage = Self {
            plan: Plan::new(isolation, Arc::from("here"), 7),
            kit: Kit::new(BufferPool::new(64 * MIB, Waker::new(|| {}))),
            now: Clock::manual().now(),
            room: Room {
                share: 24 * MIB,
                held: 0,
                connections: leaders.iter().collect::<BTreeSet<_>>().len(),
            },
        };
        for index in 0..leaders.len() {
            stage.plan.start(read_from(index, 0));
        }
        stage.lead(leaders);
        stage
    }

    fn lead(&mut self, leaders: &[i32]) -> Effects {
        self.plan.follow(&cluster(leaders))
    }

    fn ask(&mut self, broker: i32) -> Option<FetchRequest> {
        self.plan.ask(broker, self.now, self.room)
    }

    fn answer(&mut self, broker: i32, partitions: Vec<FetchedPartition>) -> Effects {
        self.answer_in_session(broker, 0, partitions)
    }

    /// An answer that carries the id of a session.
    fn answer_in_session(
        &mut self,
        broker: i32,
        session_id: i32,
        partitions: Vec<FetchedPartition>,
    ) -> Effects {
        self.take(
            broker,
            FetchAnswer {
                session_id,
                ..answer_of(partitions)
            },
        )
    }

    fn take(&mut self, broker: i32, answer: FetchAnswer) -> Effects {
        self.plan
            .answered(broker, answer, self.now, Coarse::from_millis(5))
    }

    /// An error of the whole answer.
    fn refuse(&mut self, broker: i32, error: i16) -> Effects {
        self.take(
            broker,
            FetchAnswer {
                error,
                ..answer_of(Vec::new())
            },
        )
    }

    fn give(&mut self) -> Option<Pulled> {
        self.plan.give(&mut self.kit, self.now)
    }

    fn batch(&mut self) -> Batch {
        match self.give() {
            Some(Pulled::Batch(batch)) => batch,
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    /// The partition and what its failure says.
    fn failure(&mut self) -> (AssignmentEpoch, i64, ReadError) {
        match self.give() {
            Some(Pulled::Failed {
                epoch,
                offset,
                error,
            }) => (epoch, offset, error),
            other => panic!("expected a failure, got {other:?}"),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn answer_of(partitions: Vec<FetchedPartition>) -> FetchAnswer {
    FetchAnswer {
        throttle: Duration::ZERO,
        error: 0,
        session_id: 0,
        topics: vec![FetchedTopic {
            topic: TopicKey::Name(Arc::from("orders")),
            partitions,
        }],
        endpoints: Vec::new(),
    }
}

/// The epoch of partition `index` in these tests.
fn epoch(index: usize) -> AssignmentEpoch {
    AssignmentEpoch(100 + index as u64)
}

fn read_from(index: usize, offset: i64) -> ReadFrom {
    ReadFrom {
        partition: TopicPartition::new("orders", i32::try_from(index).unwrap()),
        epoch: epoch(index),
        offset,
        until: None,
        paused: false,
    }
}

fn cluster(leaders: &[i32]) -> ClusterSnapshot {
    let partitions: Vec<_> = leaders
        .iter()
        .map(|&id| PartitionState {
            leader: (id > 0).then_some(Leader { id, epoch: 4 }),
            error: 0,
        })
        .collect();
    let topic = TopicState {
        id: Uuid::nil(),
        reported: partitions.len(),
        partitions,
        error: 0,
    };
    ClusterSnapshot {
        generation: 1,
        brokers: (1..4)
            .map(|id| {
                let address = BrokerAddress {
                    host: Arc::from("localhost"),
                    port: 9092,
                };
                (id, address)
            })
            .collect(),
        topics: HashMap::from([(Arc::from("orders"), topic)]),
    }
}

/// An answer for a partition, with records up to its end.
fn fetched(index: i32, batches: &[TestBatch], end: i64) -> FetchedPartition {
    FetchedPartition {
        partition: index,
        error: 0,
        high_watermark: end + 1,
        last_stable_offset: end,
        log_start: 0,
        aborted: Vec::new(),
        records: batches
            .iter()
            .flat_map(TestBatch::encode)
            .collect::<Vec<u8>>()
            .into(),
        diverging: None,
        leader: None,
        preferred: None,
    }
}

fn refused(index: i32, error: i16) -> FetchedPartition {
    FetchedPartition {
        error,
        high_watermark: -1,
        last_stable_offset: -1,
        log_start: -1,
        ..fetched(index, &[], -1)
    }
}

/// Partition and offset of all that a request asks for.
fn asked_for(request: &FetchRequest) -> Vec<(i32, i64)> {
    request
        .topics
        .iter()
        .flat_map(|topic| &topic.partitions)
        .map(|partition| (partition.partition, partition.offset))
        .collect()
}

#[test]
fn each_broker_is_asked_for_what_it_leads_once_at_a_time() {
    let mut stage = Stage::with(&[1, 2, 1]);
    assert_eq!(stage.plan.brokers(stage.now), [1, 2]);
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(0, 0), (2, 0)]);
    assert_eq!(request.max_wait, LONG_POLL);
    assert_eq!(request.topics[0].partitions[0].leader_epoch, 4);
    assert_eq!(request.topics[0].partitions[0].last_fetched_epoch, -1);
    assert!(stage.ask(1).is_none(), "one is under way");
    assert_eq!(asked_for(&stage.ask(2).unwrap()), [(1, 0)]);
}

#[test]
fn the_next_request_goes_out_before_the_answer_in_hand_is_given() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10)], 100)]);
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(0, 10)]);
    assert_eq!(request.topics[0].partitions[0].last_fetched_epoch, 3);
    // The second answer is held, and then no third is asked for.
    stage.answer(1, vec![fetched(0, &[TestBatch::of(10, 10)], 100)]);
    assert!(stage.ask(1).is_none());
    // As soon as the first is given, before it is handled.
    assert_eq!(stage.batch().next_offset, 10);
    assert!(stage.plan.take_has_room());
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 20)]);
    let batch = stage.batch();
    assert_eq!(
        (batch.next_offset, batch.end_offset, batch.log_start),
        (20, 100, 0)
    );
    assert_eq!(batch.fetched_at, Coarse::from_millis(5));
    assert!(stage.give().is_none());
}

#[test]
fn a_full_partition_is_left_out_and_then_the_broker_does_not_wait() {
    let mut stage = Stage::with(&[1, 1]);
    for round in 0..2 {
        assert_eq!(stage.ask(1).unwrap().max_wait, LONG_POLL);
        let records = [TestBatch::of(round * 10, 10)];
        let answers = vec![fetched(0, &records, 100), fetched(1, &[], 0)];
        stage.answer(1, answers);
    }
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(1, 0)]);
    assert_eq!(request.max_wait, SHORT_POLL);
}

#[test]
fn who_got_records_last_is_asked_for_last() {
    let mut stage = Stage::with(&[1, 1, 1]);
    stage.ask(1).unwrap();
    let answers = vec![
        fetched(0, &[TestBatch::of(0, 1)], 9),
        fetched(1, &[], 0),
        fetched(2, &[], 0),
    ];
    stage.answer(1, answers);
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(1, 0), (2, 0), (0, 1)]);
}

#[test]
fn an_answer_is_spread_over_the_partitions_that_have_records() {
    let mut stage = Stage::with(&[1, 1, 1, 1]);
    let request = stage.ask(1).unwrap();
    assert_eq!(usize::try_from(request.max_bytes).unwrap(), FULL_ANSWER);
    let share = |request: &FetchRequest| {
        usize::try_from(request.topics[0].partitions[0].max_bytes).unwrap()
    };
    assert_eq!(share(&request), FULL_ANSWER / 4);
    // Only one of them has records: it gets all of the next answer.
    let answers = (0..4)
        .map(|index| {
            let batches = [TestBatch::of(0, 1)];
            if index == 2 {
                fetched(index, &batches, 9)
            } else {
                fetched(index, &[], 0)
            }
        })
        .collect();
    stage.answer(1, answers);
    assert_eq!(share(&stage.ask(1).unwrap()), FULL_ANSWER);
}

#[test]
fn answers_are_as_long_as_the_share_of_the_memory_allows() {
    for (share, connections, expected) in [
        (24 * MIB, 1, FULL_ANSWER),
        (4 * MIB, 2, MIB),
        (MIB, 4, 128 * 1024),
        (100, 1, LEAST_ANSWER),
    ] {
        let mut stage = Stage::with(&[1]);
        stage.room = Room {
            share,
            held: 0,
            connections,
        };
        let request = stage.ask(1).unwrap();
        assert_eq!(usize::try_from(request.max_bytes).unwrap(), expected);
    }
}

#[test]
fn without_room_nothing_is_asked_for_and_that_is_known() {
    let mut stage = Stage::with(&[1]);
    stage.room.held = stage.room.share;
    assert!(stage.ask(1).is_none());
    assert!(stage.plan.take_no_room());
    assert!(!stage.plan.take_no_room());
    stage.room.held = 0;
    assert!(stage.ask(1).is_some());
}

#[test]
fn the_last_quarter_is_kept_for_partitions_of_which_nothing_is_there() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    stage.answer(
        1,
        vec![fetched(0, &[TestBatch::of(0, 1)], 9), fetched(1, &[], 0)],
    );
    stage.room.held = stage.room.share / 8 * 7;
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(1, 0)]);
    assert_eq!(request.max_wait, SHORT_POLL, "partition 0 was left out");
}

#[test]
fn what_is_under_way_to_other_brokers_takes_room_too() {
    let mut stage = Stage::with(&[1, 2]);
    stage.room.share = 256 * 1024;
    stage.room.held = 64 * 1024;
    assert!(stage.ask(1).is_some());
    let second = stage.ask(2).unwrap();
    assert_eq!(usize::try_from(second.max_bytes).unwrap(), LEAST_ANSWER);
    let mut third = Stage::with(&[1, 2, 3]);
    third.room.share = 128 * 1024;
    third.room.held = 1;
    let sent = [1, 2, 3].map(|broker| third.ask(broker).is_some());
    assert_eq!(sent, [true, false, false]);
    assert!(third.plan.take_no_room());
}

#[test]
fn partitions_are_given_in_turn() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let large = |index| fetched(index, &[TestBatch::of(0, 10_000)], 20_000);
    stage.answer(1, vec![large(0), large(1)]);
    let given: Vec<_> = (0..6)
        .map(|_| stage.batch().partition.partition())
        .collect();
    assert_eq!(given, [0, 1, 0, 1, 0, 1]);
    assert!(stage.give().is_none());
}

#[test]
fn an_answer_counts_only_where_it_is_still_waited_for() {
    type Change = fn(&mut Stage);
    let changes: [(&str, Change); 5] = [
        ("stopped", |stage| stage.plan.stop(epoch(0))),
        ("paused", |stage| stage.plan.set_paused(epoch(0), true)),
        ("rewound", |stage| stage.plan.rewind(epoch(0), 3, None)),
        ("held back", |stage| {
            let later = stage.now + Duration::from_secs(1);
            stage.plan.rewind(epoch(0), 0, Some(later));
        }),
        ("assigned anew", |stage| {
            stage.plan.stop(epoch(0));
            stage.plan.start(ReadFrom {
                epoch: epoch(9),
                ..read_from(0, 0)
            });
        }),
    ];
    for (name, change) in changes {
        let mut stage = Stage::with(&[1]);
        stage.ask(1).unwrap();
        change(&mut stage);
        stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10)], 10)]);
        assert!(stage.give().is_none(), "{name}");
    }
    // Rewound to where it was: that answer is as good as the next.
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.plan.rewind(epoch(0), 0, None);
    stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10)], 10)]);
    assert_eq!(stage.batch().next_offset, 10);
}

#[test]
fn what_nobody_asked_for_is_ignored() {
    let mut stage = Stage::with(&[1]);
    assert_eq!(
        stage.answer(1, vec![fetched(0, &[], 0)]),
        Effects::default()
    );
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(8, &[TestBatch::of(0, 10)], 10)]);
    assert!(stage.give().is_none());
    // What was left out is asked for again, though not in a busy loop.
    assert!(stage.ask(1).is_none());
    stage.pass(Duration::from_secs(1));
    stage.ask(1).unwrap();
    let twice = fetched(0, &[TestBatch::of(0, 10)], 20);
    let more = fetched(0, &[TestBatch::of(10, 10)], 20);
    stage.answer(1, vec![twice.clone(), twice, more]);
    assert_eq!(stage.batch().next_offset, 10);
    assert!(stage.give().is_none(), "one answer per question");
}

#[test]
fn a_partition_held_back_is_asked_for_when_its_time_comes() {
    let mut stage = Stage::with(&[1, 1]);
    let later = stage.now + Duration::from_millis(40);
    stage.plan.rewind(epoch(0), 7, Some(later));
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(1, 0)]);
    assert_eq!(request.max_wait, Duration::from_millis(40));
    assert_eq!(stage.plan.next_moment(stage.now), Some(later));
    stage.answer(1, vec![fetched(1, &[], 0)]);
    stage.pass(Duration::from_millis(40));
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 7), (1, 0)]);
}

#[test]
fn an_error_that_passes_is_waited_for_and_its_leader_looked_for() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let effects = stage.answer(1, vec![refused(0, NOT_LEADER), fetched(1, &[], 0)]);
    assert!(effects.refresh);
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 0)]);
    stage.answer(1, vec![fetched(1, &[], 0)]);
    // After a while the same broker is asked again, more and more seldom.
    stage.pass(Duration::from_millis(80));
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 0), (1, 0)]);
    stage.answer(1, vec![refused(0, NOT_LEADER), fetched(1, &[], 0)]);
    stage.pass(Duration::from_millis(70));
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 0)]);
    // A new leader is asked at once.
    assert_eq!(stage.lead(&[2, 1]), Effects::default());
    assert_eq!(asked_for(&stage.ask(2).unwrap()), [(0, 0)]);
}

#[test]
fn a_partition_without_a_leader_waits_for_one() {
    let mut stage = Stage::with(&[0, 1]);
    assert!(stage.plan.misses_leader());
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 0)]);
    stage.answer(1, vec![fetched(1, &[], 0)]);
    assert!(stage.lead(&[0, 1]).refresh);
    stage.lead(&[1, 1]);
    assert!(!stage.plan.misses_leader());
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 0), (1, 0)]);
}

#[test]
fn errors_that_do_not_pass_fail_the_partition_until_it_is_rewound() {
    for (code, expected) in [
        (
            OUT_OF_RANGE,
            ReadError::OutOfRange {
                offset: 0,
                log_start: -1,
                end_offset: -1,
            },
        ),
        (
            NOT_AUTHORIZED,
            ReadError::NotAuthorized {
                topic: Arc::from("orders"),
            },
        ),
        (
            INVALID_REQUEST,
            ReadError::Refused {
                code: INVALID_REQUEST,
                name: "INVALID_REQUEST".into(),
            },
        ),
    ] {
        let mut stage = Stage::with(&[1, 1]);
        stage.ask(1).unwrap();
        stage.answer(1, vec![refused(0, code), fetched(1, &[], 0)]);
        assert_eq!(stage.failure(), (epoch(0), 0, expected));
        stage.batch();
        assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 0)]);
        stage.answer(1, vec![fetched(1, &[], 0)]);
        stage.plan.rewind(epoch(0), 5, None);
        assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 5), (1, 0)]);
    }
}

#[test]
fn an_error_of_the_whole_answer_is_one_of_each_partition() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let effects = stage.refuse(1, NOT_LEADER);
    assert!(effects.refresh);
    assert!(stage.ask(1).is_none());
    stage.pass(Duration::from_secs(2));
    assert_eq!(asked_for(&stage.ask(1).unwrap()).len(), 2);
}

#[test]
fn records_that_are_held_come_before_the_failure_behind_them() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10)], 100)]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![refused(0, OUT_OF_RANGE)]);
    assert_eq!(stage.batch().next_offset, 10);
    let (_, offset, error) = stage.failure();
    assert_eq!(offset, 10);
    assert!(matches!(error, ReadError::OutOfRange { offset: 10, .. }));
}

#[test]
fn damaged_records_are_asked_for_again_before_the_partition_fails() {
    let mut stage = Stage::with(&[1]);
    let mut broken = TestBatch::of(0, 3).encode();
    *broken.last_mut().unwrap() ^= 1;
    for attempt in 1..=MOST_CORRUPT {
        assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 0)]);
        let mut answer = fetched(0, &[], 3);
        answer.records = broken.clone().into();
        stage.answer(1, vec![answer]);
        if attempt < MOST_CORRUPT {
            assert!(stage.give().is_none());
            assert!(stage.ask(1).is_none(), "not at once");
            stage.pass(Duration::from_secs(2));
        }
    }
    let (_, offset, error) = stage.failure();
    assert_eq!(offset, 0);
    let words = error.to_string();
    assert!(words.contains("CRC"), "{words}");
    assert!(
        words.contains("at offset 0, as broker 1 has them"),
        "{words}"
    );
}

#[test]
fn a_broker_that_tells_nothing_and_does_not_wait_is_not_asked_in_a_busy_loop() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[], 0)]);
    stage.batch();
    let begin = stage.now;
    let mut asked = 0;
    while stage.now < begin + Duration::from_secs(10) {
        if stage.ask(1).is_some() {
            asked += 1;
            stage.answer(1, Vec::new());
        }
        stage.pass(Duration::from_millis(1));
    }
    assert!((10..60).contains(&asked), "{asked}");
    // Once it tells something, or waits as it is asked to, it is asked at once.
    stage.pass(Duration::from_secs(1));
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10)], 10)]);
    stage.batch();
    for _ in 0..10 {
        stage.ask(1).unwrap();
        stage.pass(LONG_POLL);
        stage.answer(1, vec![fetched(0, &[], 10)]);
    }
}

#[test]
fn a_broker_whose_session_has_nothing_and_that_does_not_wait_is_not_either() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer_in_session(1, SESSION, vec![fetched(0, &[], 0)]);
    stage.batch();
    let begin = stage.now;
    let mut asked = 0;
    while stage.now < begin + Duration::from_secs(10) {
        if stage.ask(1).is_some() {
            asked += 1;
            stage.answer_in_session(1, SESSION, Vec::new());
        }
        stage.pass(Duration::from_millis(1));
    }
    assert!((10..60).contains(&asked), "{asked}");
}

#[test]
fn an_error_code_that_nobody_knows_is_asked_again_and_told() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let healthy = fetched(1, &[TestBatch::of(0, 10)], 10);
    let effects = stage.answer(1, vec![refused(0, 4242), healthy]);
    assert_eq!(effects.unknown_code, Some(4242));
    assert_eq!(stage.batch().partition.partition(), 1, "the other goes on");
    assert!(stage.give().is_none());
    stage.pass(Duration::from_secs(2));
    let request = stage.ask(1).unwrap();
    assert!(asked_for(&request).contains(&(0, 0)));
}

#[test]
fn a_batch_that_was_cut_is_asked_for_with_room_for_it() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let whole = fetched(0, &[TestBatch::of(0, 300)], 300);
    let mut cut = whole.clone();
    cut.records.truncate(100);
    stage.answer(1, vec![cut.clone(), fetched(1, &[], 0)]);
    assert_eq!(stage.batch().partition.partition(), 1);
    // A large one, as its header says.
    let mut large = vec![0; 100];
    large[8..12].copy_from_slice(&(10_i32 << 20).to_be_bytes());
    large[16] = 2;
    stage.ask(1).unwrap();
    cut.records = large.into();
    stage.answer(1, vec![cut.clone(), fetched(1, &[], 0)]);
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(0, 0), (1, 0)]);
    assert_eq!(request.max_bytes, (10 << 20) + 12);
    assert_eq!(request.topics[0].partitions[0].max_bytes, (10 << 20) + 12);
    stage.answer(1, vec![whole, fetched(1, &[], 0)]);
    assert_eq!(stage.batch().next_offset, 300);
    // A broker that never gives more is not asked for ever.
    let mut stage = Stage::with(&[1]);
    for _ in 0..MOST_CORRUPT {
        stage.ask(1).unwrap();
        stage.answer(1, vec![cut.clone()]);
    }
    assert!(
        stage
            .failure()
            .2
            .to_string()
            .contains("the broker gives 100 bytes")
    );
}

#[test]
fn an_empty_answer_is_told_when_the_end_is_news() {
    let mut stage = Stage::reading(Isolation::ReadUncommitted, &[1]);
    let empty = |end: i64| fetched(0, &[], end - 1);
    stage.ask(1).unwrap();
    stage.answer(1, vec![empty(5)]);
    let batch = stage.batch();
    assert_eq!(
        (batch.entries.len(), batch.next_offset, batch.end_offset),
        (0, 0, 5)
    );
    for (end, is_told) in [(5, false), (6, true), (6, false)] {
        stage.ask(1).unwrap();
        stage.answer(1, vec![empty(end)]);
        assert_eq!(stage.give().is_some(), is_told, "{end}");
    }
}

#[test]
fn the_end_is_the_last_stable_offset_where_only_committed_records_are_read() {
    for (isolation, end) in [
        (Isolation::ReadCommitted, 7),
        (Isolation::ReadUncommitted, 8),
    ] {
        let mut stage = Stage::reading(isolation, &[1]);
        assert_eq!(stage.ask(1).unwrap().isolation, isolation);
        stage.answer(1, vec![fetched(0, &[], 7)]);
        assert_eq!(stage.batch().end_offset, end);
    }
}

#[test]
fn a_marker_moves_the_next_offset_without_a_record() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[TestBatch::marker(0, 5, true)], 1)]);
    let batch = stage.batch();
    assert_eq!((batch.entries.len(), batch.next_offset), (0, 1));
}

#[test]
fn reading_ends_at_until_even_where_only_a_marker_crosses_it() {
    let mut stage = Stage::with(&[]);
    stage.plan.start(ReadFrom {
        until: Some(3),
        ..read_from(0, 0)
    });
    stage.lead(&[1]);
    stage.ask(1).unwrap();
    let batches = [TestBatch::of(0, 2), TestBatch::marker(2, 5, true)];
    stage.answer(1, vec![fetched(0, &batches, 3)]);
    assert!(stage.ask(1).is_none(), "all that is wanted is there");
    let batch = stage.batch();
    assert_eq!((batch.entries.len(), batch.next_offset), (2, 3));
    assert!(stage.give().is_none());
    assert!(stage.ask(1).is_none());
    assert!(stage.plan.brokers(stage.now).is_empty());
}

#[test]
fn what_was_asked_over_a_lost_connection_is_asked_again() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.plan.lost(1, stage.now);
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 0)]);
}

#[test]
fn a_paused_partition_holds_nothing_and_goes_on_where_it_stood() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10_000)], 20_000)]);
    let mut batch = stage.batch();
    batch.cursor = 7;
    stage.plan.put_back(batch);
    stage.plan.set_paused(epoch(0), true);
    assert!(stage.give().is_none());
    assert!(stage.ask(1).is_none());
    stage.plan.set_paused(epoch(0), false);
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 7)]);
}

#[test]
fn a_batch_put_back_while_paused_is_read_again_after_it() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer(1, vec![fetched(0, &[TestBatch::of(0, 10)], 10)]);
    let mut batch = stage.batch();
    stage.plan.set_paused(epoch(0), true);
    batch.cursor = 4;
    stage.plan.put_back(batch);
    stage.plan.set_paused(epoch(0), false);
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 4)]);
}

/// A partition of which record 4 of 10 waits for a second, and another.
fn one_waits() -> Stage {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let records = |index| fetched(index, &[TestBatch::of(0, 10)], 20);
    stage.answer(1, vec![records(0), records(1)]);
    let mut batch = stage.batch();
    batch.cursor = 4;
    stage.plan.put_back(batch);
    let later = stage.now + Duration::from_secs(1);
    stage.plan.rewind(epoch(0), 4, Some(later));
    assert_eq!(stage.batch().epoch, epoch(1), "the other goes on");
    assert!(stage.give().is_none());
    stage
}

#[test]
fn what_waits_is_kept_and_given_when_its_time_comes_without_being_asked_for_again() {
    let mut stage = one_waits();
    let request = stage.ask(1).unwrap();
    assert_eq!(
        asked_for(&request),
        [(1, 10)],
        "only the other is asked for"
    );
    let at = stage.plan.next_moment(stage.now).unwrap();
    stage.now = at;
    let batch = stage.batch();
    assert_eq!((batch.epoch, batch.cursor), (epoch(0), 4));
    assert!(stage.give().is_none());
    // It fails again, and is skipped then.
    stage.plan.put_back(batch);
    stage
        .plan
        .rewind(epoch(0), 4, Some(at + Duration::from_secs(9)));
    assert!(stage.give().is_none());
    stage.plan.rewind(epoch(0), 5, None);
    let batch = stage.batch();
    assert_eq!((batch.cursor, batch.entries[batch.cursor].offset), (5, 5));
    // To before what is held is another matter.
    stage.plan.put_back(batch);
    stage.plan.rewind(epoch(0), 3, None);
    assert!(stage.give().is_none());
    stage.answer(1, vec![fetched(1, &[], 20)]);
    assert!(asked_for(&stage.ask(1).unwrap()).contains(&(0, 3)));
}

#[test]
fn what_waits_makes_room_for_others_and_is_read_again_when_its_time_comes() {
    let mut stage = one_waits();
    stage.room.held = stage.room.share;
    assert!(stage.ask(1).is_none());
    assert!(stage.plan.take_has_room(), "it is not held any more");
    stage.room.held = 0;
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 10)]);
    stage.answer(1, vec![fetched(1, &[], 20)]);
    stage.pass(Duration::from_secs(1));
    assert!(stage.give().is_none());
    let asked = asked_for(&stage.ask(1).unwrap());
    assert!(asked.contains(&(0, 4)), "{asked:?}");
}

#[test]
fn a_broker_that_holds_us_back_is_left_alone_as_long_as_it_says() {
    let mut stage = Stage::with(&[1, 2]);
    stage.ask(1).unwrap();
    let answer = FetchAnswer {
        throttle: Duration::from_millis(300),
        ..answer_of(Vec::new())
    };
    stage.take(1, answer);
    let until = stage.now + Duration::from_millis(300);
    assert!(stage.ask(1).is_none());
    assert!(stage.ask(2).is_some(), "the other does not");
    assert_eq!(stage.plan.next_moment(stage.now), Some(until));
    stage.pass(Duration::from_millis(300));
    assert!(stage.ask(1).is_some());
}

#[test]
fn an_answer_that_is_too_long_fails_the_partition_that_it_is_of() {
    let mut stage = Stage::with(&[1, 1, 1]);
    stage.ask(1).unwrap();
    let too_long = |stage: &mut Stage| {
        stage.plan.too_long(1, 300 << 20, 100 << 20, stage.now);
        stage.plan.lost(1, stage.now);
    };
    // Which one it is shows when each is asked for alone.
    too_long(&mut stage);
    assert!(stage.give().is_none());
    let request = stage.ask(1).unwrap();
    assert_eq!(asked_for(&request), [(0, 0)]);
    assert_eq!(request.max_wait, SHORT_POLL);
    stage.answer(1, vec![fetched(0, &[], 0)]);
    stage.batch();
    // Once may be an accident of the connection.
    for _ in 0..MOST_CORRUPT {
        assert!(stage.give().is_none());
        assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 0)]);
        too_long(&mut stage);
    }
    let (failed, offset, error) = stage.failure();
    assert_eq!((failed, offset), (epoch(1), 0));
    assert!(error.to_string().contains("raise the limit"), "{error}");
    // The others go on, and then together.
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(2, 0)]);
    stage.answer(1, vec![fetched(2, &[], 0)]);
    assert_eq!(asked_for(&stage.ask(1).unwrap()).len(), 2);
}

// Sessions.

const SESSION: i32 = 31;

/// What a request says of its session: id, epoch, what it forgets.
fn session_of(request: &FetchRequest) -> (i32, i32, Vec<i32>) {
    let forgotten = request.forgotten.iter().flat_map(|topic| &topic.partitions);
    (
        request.session_id,
        request.session_epoch,
        forgotten.copied().collect(),
    )
}

#[test]
fn in_a_session_a_request_carries_only_what_changed() {
    let mut stage = Stage::with(&[1, 1, 1]);
    let whole = stage.ask(1).unwrap();
    assert_eq!(session_of(&whole), (0, 0, vec![]));
    let first = [TestBatch::of(0, 10)];
    let answers = vec![
        fetched(0, &first, 100),
        fetched(1, &[], 0),
        fetched(2, &[], 0),
    ];
    stage.answer_in_session(1, SESSION, answers);
    let request = stage.ask(1).unwrap();
    assert_eq!(session_of(&request), (SESSION, 1, vec![]));
    assert_eq!(asked_for(&request), [(0, 10)]);
    // Then partition 0 is full: the broker would serve it unasked.
    let second = [TestBatch::of(10, 10)];
    stage.answer_in_session(1, SESSION, vec![fetched(0, &second, 100)]);
    let request = stage.ask(1).unwrap();
    assert_eq!(session_of(&request), (SESSION, 2, vec![0]));
    assert_eq!(asked_for(&request), []);
    assert_eq!(request.max_wait, SHORT_POLL);
    // Given out, it enters again; paused ones leave.
    while stage.plan.has_something() {
        stage.give();
    }
    stage.plan.set_paused(epoch(2), true);
    stage.answer_in_session(1, SESSION, vec![]);
    let request = stage.ask(1).unwrap();
    assert_eq!(session_of(&request), (SESSION, 3, vec![2]));
    assert_eq!(asked_for(&request), [(0, 20)]);
}

#[test]
fn what_an_answer_of_a_session_leaves_out_has_nothing_new() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let answers = vec![fetched(0, &[], 7), fetched(1, &[], 0)];
    stage.answer_in_session(1, SESSION, answers);
    while stage.plan.has_something() {
        stage.give();
    }
    stage.ask(1).unwrap();
    stage.answer_in_session(1, SESSION, vec![]);
    assert!(stage.give().is_none());
    // Who goes to the end is told where that is, though the broker is silent.
    stage.plan.rewind(epoch(0), 7, None);
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 7)]);
    stage.answer_in_session(1, SESSION, vec![]);
    let batch = stage.batch();
    assert_eq!((batch.next_offset, batch.end_offset), (7, 7));
    assert_eq!(batch.entries.len(), 0);
}

#[test]
fn a_session_that_the_broker_lost_begins_anew_at_once() {
    for (error, id) in [
        (SESSION_UNKNOWN, 0),
        (SESSION_OUT_OF_STEP, SESSION),
        (SESSION_NAMES_OTHERWISE, SESSION),
    ] {
        let mut stage = Stage::with(&[1, 1]);
        stage.ask(1).unwrap();
        let answers = vec![fetched(0, &[], 0), fetched(1, &[], 0)];
        stage.answer_in_session(1, SESSION, answers.clone());
        stage.ask(1).unwrap();
        assert_eq!(stage.refuse(1, error), Effects::default());
        let request = stage.ask(1).unwrap();
        assert_eq!(session_of(&request), (id, 0, vec![]));
        assert_eq!(asked_for(&request).len(), 2);
        // A broker that says so of a whole request is not believed for ever.
        stage.refuse(1, error);
        assert!(stage.ask(1).is_none());
        stage.pass(Duration::from_secs(1));
        assert_eq!(asked_for(&stage.ask(1).unwrap()).len(), 2);
        stage.answer_in_session(1, SESSION + 1, answers);
        let request = stage.ask(1).unwrap();
        assert_eq!(session_of(&request), (SESSION + 1, 1, vec![]));
    }
}

#[test]
fn a_request_whose_answer_never_came_ends_the_session_and_an_idle_connection_does_not() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.answer_in_session(1, SESSION, vec![fetched(0, &[], 0)]);
    stage.plan.lost(1, stage.now);
    assert_eq!(session_of(&stage.ask(1).unwrap()), (SESSION, 1, vec![]));
    stage.plan.lost(1, stage.now);
    let request = stage.ask(1).unwrap();
    assert_eq!(session_of(&request), (SESSION, 0, vec![]));
    assert_eq!(asked_for(&request), [(0, 0)]);
}

#[test]
fn a_partition_that_gets_another_leader_moves_between_the_sessions() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let answers = vec![fetched(0, &[], 0), fetched(1, &[], 0)];
    stage.answer_in_session(1, SESSION, answers);
    stage.lead(&[2, 1]);
    let request = stage.ask(1).unwrap();
    assert_eq!(session_of(&request), (SESSION, 1, vec![0]));
    assert_eq!(asked_for(&request), []);
    let request = stage.ask(2).unwrap();
    assert_eq!(session_of(&request), (0, 0, vec![]));
    assert_eq!(asked_for(&request), [(0, 0)]);
}

// Leaders.

#[test]
fn a_leader_that_a_broker_names_is_told_with_where_it_is() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    let leader = Leader { id: 3, epoch: 9 };
    let mut moved = refused(0, NOT_LEADER);
    moved.leader = Some(leader);
    let endpoint = Endpoint {
        id: 3,
        host: Arc::from("three"),
        port: 9092,
    };
    let answer = FetchAnswer {
        endpoints: vec![endpoint.clone()],
        ..answer_of(vec![moved, fetched(1, &[], 0)])
    };
    let effects = stage.take(1, answer);
    assert!(effects.refresh);
    let told = Move {
        topic: Arc::from("orders"),
        topic_id: Uuid::nil(),
        partition: 0,
        leader,
        endpoint: Some(endpoint),
    };
    assert_eq!(effects.moves, [told]);
}

#[test]
fn who_moved_away_from_a_broker_that_hangs_does_not_wait_for_it() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    stage.lead(&[2, 1]);
    assert_eq!(asked_for(&stage.ask(2).unwrap()), [(0, 0)]);
    let records = [TestBatch::of(0, 10)];
    stage.answer(2, vec![fetched(0, &records, 10)]);
    // What the old leader says when it wakes up counts for nothing.
    stage.answer(1, vec![fetched(0, &records, 10), fetched(1, &[], 0)]);
    assert_eq!(stage.batch().next_offset, 10);
    assert_eq!(stage.batch().partition.partition(), 1);
    assert!(stage.give().is_none());
}

fn with_id(id: u128, leaders: &[i32]) -> ClusterSnapshot {
    let mut cluster = cluster(leaders);
    for topic in cluster.topics.values_mut() {
        topic.id = Uuid::from_u128(id);
    }
    cluster
}

#[test]
fn a_topic_that_was_created_again_is_never_read_at_the_old_offsets() {
    let mut stage = Stage::with(&[1]);
    stage.plan.follow(&with_id(7, &[1]));
    let request = stage.ask(1).unwrap();
    assert!(request.by_id);
    assert_eq!(request.topics[0].id, Uuid::from_u128(7));
    // As long as it is unknown, it is waited for.
    stage.answer(1, vec![]);
    stage.plan.follow(&cluster(&[1]));
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.ask(1).unwrap().topics[0].id, Uuid::from_u128(7));
    stage.plan.follow(&with_id(8, &[2]));
    let recreated = ReadError::TopicRecreated {
        topic: Arc::from("orders"),
    };
    assert_eq!(stage.failure(), (epoch(0), 0, recreated));
    assert!(stage.ask(1).is_none() && stage.ask(2).is_none());
    stage.plan.follow(&with_id(8, &[2]));
    assert!(stage.give().is_none(), "it is told once");
    // Whoever rewinds it after that means the new one.
    stage.plan.rewind(epoch(0), 0, None);
    stage.plan.follow_one(epoch(0), &with_id(8, &[2]));
    assert_eq!(stage.ask(2).unwrap().topics[0].id, Uuid::from_u128(8));
}

#[test]
fn a_request_names_topics_by_id_only_where_all_of_them_have_one() {
    let mut stage = Stage::with(&[1]);
    stage.plan.start(ReadFrom {
        partition: TopicPartition::new("unnamed", 0),
        ..read_from(5, 0)
    });
    let mut cluster = with_id(7, &[1]);
    let mut unnamed = cluster.topics["orders"].clone();
    unnamed.id = Uuid::nil();
    cluster.topics.insert(Arc::from("unnamed"), unnamed);
    stage.plan.follow(&cluster);
    let request = stage.ask(1).unwrap();
    assert!(!request.by_id);
    assert_eq!(request.topics.len(), 2);
}

// Truncation.

fn diverging(epoch: i32, end_offset: i64) -> FetchedPartition {
    let mut partition = fetched(0, &[], 50);
    partition.diverging = Some(Diverging { epoch, end_offset });
    partition
}

/// A partition that has read epoch 3 up to 10, epoch 5 up to 20 and epoch 7 up
/// to 30, of which `given` batches were given out, and now has another leader.
fn read_in_three_epochs(given: usize) -> Stage {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    let batches = [(0, 3), (10, 5), (20, 7)].map(|(first, epoch)| {
        let mut batch = TestBatch::of(first, 10);
        batch.leader_epoch = epoch;
        batch
    });
    // As two answers, so that the first can be given out alone.
    let (first, rest) = batches.split_at(given.min(2));
    stage.answer(1, vec![fetched(0, first, 40)]);
    if given > 0 {
        stage.batch();
    }
    if stage.ask(1).is_some() {
        stage.answer(1, vec![fetched(0, rest, 40)]);
    }
    if given == 3 {
        stage.batch();
    }
    stage.lead(&[2]);
    stage
}

#[test]
fn a_log_that_was_truncated_below_what_was_given_out_is_told() {
    let mut stage = read_in_three_epochs(3);
    let request = stage.ask(2).unwrap();
    let partition = request.topics[0].partitions[0];
    assert_eq!((partition.offset, partition.last_fetched_epoch), (30, 7));
    stage.answer(2, vec![diverging(7, 24)]);
    let truncated = ReadError::Truncated {
        offset: 30,
        end_offset: 24,
    };
    assert_eq!(stage.failure(), (epoch(0), 30, truncated));
    assert!(stage.ask(2).is_none(), "until it is told where to go on");
    stage.plan.rewind(epoch(0), 24, None);
    let partition = stage.ask(2).unwrap().topics[0].partitions[0];
    assert_eq!((partition.offset, partition.last_fetched_epoch), (24, 7));
}

#[test]
fn a_rewind_above_the_cut_does_not_hide_that_the_log_was_truncated() {
    let mut stage = read_in_three_epochs(3);
    stage.ask(2).unwrap();
    stage.answer(2, vec![diverging(7, 24)]);
    stage.plan.rewind(epoch(0), 27, None);
    let truncated = ReadError::Truncated {
        offset: 27,
        end_offset: 24,
    };
    assert_eq!(stage.failure(), (epoch(0), 27, truncated));
    let mut stage = read_in_three_epochs(3);
    stage.ask(2).unwrap();
    stage.answer(2, vec![diverging(7, 24)]);
    stage.plan.rewind(epoch(0), 22, None);
    assert!(stage.give().is_none());
    let partition = stage.ask(2).unwrap().topics[0].partitions[0];
    assert_eq!((partition.offset, partition.last_fetched_epoch), (22, 7));
}

#[test]
fn what_was_not_given_out_yet_is_read_again_without_a_word() {
    let mut stage = read_in_three_epochs(1);
    stage.ask(2);
    assert!(stage.plan.has_something(), "10 to 30 are held");
    // No request while two answers are held: one is taken.
    let mut stage = read_in_three_epochs(2);
    let request = stage.ask(2).unwrap();
    assert_eq!(asked_for(&request), [(0, 30)]);
    stage.answer(2, vec![diverging(5, 20)]);
    assert!(stage.give().is_none(), "what is gone is not given");
    let partition = stage.ask(2).unwrap().topics[0].partitions[0];
    assert_eq!((partition.offset, partition.last_fetched_epoch), (20, 5));
    stage.answer(2, vec![fetched(0, &[TestBatch::of(20, 5)], 25)]);
    assert_eq!(stage.batch().next_offset, 25);
}

#[test]
fn an_epoch_that_was_never_read_is_followed_by_a_question_about_the_one_before() {
    let mut stage = read_in_three_epochs(3);
    stage.ask(2).unwrap();
    // The new leader has epoch 6 up to 28, of which we know nothing.
    stage.answer(2, vec![diverging(6, 28)]);
    assert!(stage.give().is_none());
    let partition = stage.ask(2).unwrap().topics[0].partitions[0];
    assert_eq!((partition.offset, partition.last_fetched_epoch), (20, 5));
    stage.answer(2, vec![diverging(4, 13)]);
    let partition = stage.ask(2).unwrap().topics[0].partitions[0];
    assert_eq!((partition.offset, partition.last_fetched_epoch), (10, 3));
    // Records at that place say that the logs agree up to it.
    stage.answer(2, vec![fetched(0, &[TestBatch::of(10, 5)], 40)]);
    let truncated = ReadError::Truncated {
        offset: 30,
        end_offset: 10,
    };
    assert_eq!(stage.failure(), (epoch(0), 30, truncated));
}

#[test]
fn a_broker_that_says_diverging_where_nothing_diverges_is_not_asked_in_a_busy_loop() {
    let mut stage = read_in_three_epochs(3);
    stage.ask(2).unwrap();
    stage.answer(2, vec![diverging(7, 30)]);
    assert!(stage.give().is_none());
    assert!(stage.ask(2).is_none());
    stage.pass(Duration::from_secs(1));
    assert_eq!(asked_for(&stage.ask(2).unwrap()), [(0, 30)]);
}

// A replica nearby.

/// Partition 0 was read from broker 1, which named broker 2.
fn redirected() -> Stage {
    let mut stage = Stage::with(&[1]);
    assert_eq!(&*stage.ask(1).unwrap().rack, "here");
    let mut elsewhere = fetched(0, &[], 100);
    elsewhere.preferred = Some(2);
    stage.answer(1, vec![elsewhere]);
    assert_eq!(stage.batch().end_offset, 100);
    assert!(stage.ask(1).is_none());
    assert_eq!(stage.plan.brokers(stage.now), [2]);
    stage
}

#[test]
fn the_replica_that_the_leader_names_is_read_from_for_a_time() {
    let mut stage = redirected();
    let partition = stage.ask(2).unwrap().topics[0].partitions[0];
    assert_eq!((partition.offset, partition.leader_epoch), (0, 4));
    // It may not know of all records yet; the end does not go back for that.
    stage.answer(2, vec![fetched(0, &[TestBatch::of(0, 10)], 60)]);
    let batch = stage.batch();
    assert_eq!((batch.next_offset, batch.end_offset), (10, 100));
    assert!(stage.plan.reads_from(2) && !stage.plan.reads_from(1));
    stage.pass(PREFERRED_FOR);
    assert_eq!(stage.plan.brokers(stage.now), [1]);
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 10)]);
}

#[test]
fn a_replica_that_cannot_serve_is_left_for_the_leader_which_is_not_asked_for_it_again() {
    const OFFSET_NOT_AVAILABLE: i16 = 78;
    type Change = fn(&mut Stage);
    let refusals: [(&str, Change); 5] = [
        ("not a replica", |stage| {
            stage.answer(2, vec![refused(0, NOT_LEADER)]);
        }),
        ("not there yet", |stage| {
            stage.answer(2, vec![refused(0, OFFSET_NOT_AVAILABLE)]);
        }),
        ("out of its range", |stage| {
            stage.answer(2, vec![refused(0, OUT_OF_RANGE)]);
        }),
        ("gone", |stage| stage.plan.lost(2, stage.now)),
        ("unknown", |stage| {
            let mut cluster = cluster(&[1]);
            cluster.brokers.remove(&2);
            stage.plan.follow(&cluster);
        }),
    ];
    for (name, refuse) in refusals {
        let mut stage = redirected();
        stage.ask(2).unwrap();
        refuse(&mut stage);
        assert!(stage.give().is_none(), "{name}");
        assert_eq!(stage.plan.brokers(stage.now), [1], "{name}");
        stage.pass(Duration::from_millis(100));
        let request = stage.ask(1).unwrap();
        assert_eq!(asked_for(&request), [(0, 0)], "{name}");
        if name != "unknown" {
            assert_eq!(&*request.rack, "", "{name}: it would be named again");
            stage.answer(1, vec![fetched(0, &[], 100)]);
            stage.pass(LEADERS_ONLY);
            assert_eq!(&*stage.ask(1).unwrap().rack, "here", "{name}");
        }
    }
}

#[test]
fn a_replica_that_cannot_be_reached_is_not_gone_to() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    let mut elsewhere = fetched(0, &[], 100);
    elsewhere.preferred = Some(9);
    assert!(stage.answer(1, vec![elsewhere]).refresh);
    assert!(stage.ask(1).is_none(), "not at once");
    stage.pass(Duration::from_secs(1));
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 0)]);
}
