use std::collections::{BTreeSet, HashMap};

use super::*;
use crate::clock::Clock;
use crate::kafka::cluster::{BrokerAddress, PartitionState, TopicState};
use crate::kafka::messages::{Diverging, FetchedTopic};
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
            plan: Plan::new(isolation, 7),
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
        let answer = FetchAnswer {
            throttle: Duration::ZERO,
            error: 0,
            topics: vec![FetchedTopic {
                topic: TopicKey::Name(Arc::from("orders")),
                partitions,
            }],
        };
        self.plan
            .answered(broker, answer, self.now, Coarse::from_millis(5))
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
    assert_eq!(stage.plan.brokers(), [1, 2]);
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
    let answers = vec![fetched(0, &[TestBatch::of(0, 1)], 9), fetched(2, &[], 0)];
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
            fetched(index, if index == 2 { &batches } else { &[] }, 9)
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
    assert!(
        stage.ask(1).is_some(),
        "and what was left out is asked again"
    );
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
                name: "INVALID_REQUEST",
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
    let answer = FetchAnswer {
        throttle: Duration::ZERO,
        error: NOT_LEADER,
        topics: Vec::new(),
    };
    let effects = stage.plan.answered(1, answer, stage.now, Coarse::ZERO);
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
fn a_log_that_diverges_from_what_was_read_is_out_of_range() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    let mut diverging = fetched(0, &[], 50);
    diverging.diverging = Some(Diverging {
        epoch: 2,
        end_offset: 40,
    });
    stage.answer(1, vec![diverging]);
    assert_eq!(
        stage.failure().2,
        ReadError::Truncated {
            offset: 0,
            end_offset: 40
        }
    );
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
    assert!((20..60).contains(&asked), "{asked}");
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
    assert!(stage.plan.brokers().is_empty());
}

#[test]
fn what_was_asked_over_a_lost_connection_is_asked_again() {
    let mut stage = Stage::with(&[1]);
    stage.ask(1).unwrap();
    stage.plan.lost(1);
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

#[test]
fn a_broker_that_holds_us_back_is_left_alone_as_long_as_it_says() {
    let mut stage = Stage::with(&[1, 2]);
    stage.ask(1).unwrap();
    let answer = FetchAnswer {
        throttle: Duration::from_millis(300),
        error: 0,
        topics: Vec::new(),
    };
    stage.plan.answered(1, answer, stage.now, Coarse::ZERO);
    let until = stage.now + Duration::from_millis(300);
    assert!(stage.ask(1).is_none());
    assert!(stage.ask(2).is_some(), "the other does not");
    assert_eq!(stage.plan.next_moment(stage.now), Some(until));
    stage.pass(Duration::from_millis(300));
    assert!(stage.ask(1).is_some());
}

#[test]
fn an_answer_that_is_too_long_fails_the_partition_that_was_asked_for_first() {
    let mut stage = Stage::with(&[1, 1]);
    stage.ask(1).unwrap();
    // Once may be an accident of the connection.
    for _ in 1..MOST_CORRUPT {
        stage.plan.too_long(1, 300 << 20, 100 << 20, stage.now);
        stage.plan.lost(1);
        assert!(stage.give().is_none());
        assert_eq!(asked_for(&stage.ask(1).unwrap()), [(0, 0), (1, 0)]);
    }
    stage.plan.too_long(1, 300 << 20, 100 << 20, stage.now);
    stage.plan.lost(1);
    let (failed, offset, error) = stage.failure();
    assert_eq!((failed, offset), (epoch(0), 0));
    assert!(error.to_string().contains("raise the limit"), "{error}");
    assert_eq!(asked_for(&stage.ask(1).unwrap()), [(1, 0)]);
}
