//! The plan against brokers that keep the protocol's rules and little else:
//! leaders move, logs are cut off, sessions and connections are lost, answers
//! are errors, and the worker pauses, rewinds, gives back and goes elsewhere.
//! Whatever happens, every record of a partition is given once, in order, and
//! nothing stands still.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::*;
use crate::clock::Clock;
use crate::kafka::cluster::{BrokerAddress, Leader, PartitionState, TopicState};
use crate::kafka::messages::{Diverging, FetchPartition, FetchedTopic};
use crate::record::TopicPartition;
use crate::source::Waker;
use crate::source::fetch::encode::{TestBatch, TestRecord};

const BROKERS: i32 = 3;
const PARTITIONS: i32 = 4;
const TOPIC_ID: Uuid = Uuid::from_u128(5);

/// The log of a partition, as all brokers have it.
#[derive(Debug, Default)]
struct Log {
    leader: i32,
    leader_epoch: i32,
    batches: Vec<TestBatch>,
}

impl Log {
    fn end(&self) -> i64 {
        self.batches.last().map_or(0, next_of)
    }

    fn append(&mut self, count: usize, mark: u32) {
        let records = (0..count)
            .map(|index| TestRecord {
                value: Some(format!("{mark} {index}").into_bytes()),
                ..TestRecord::default()
            })
            .collect();
        let mut batch = TestBatch::new(self.end(), records);
        batch.leader_epoch = self.leader_epoch;
        self.batches.push(batch);
    }

    fn values(&self) -> Vec<Vec<u8>> {
        let records = self.batches.iter().flat_map(|batch| &batch.records);
        records
            .map(|record| record.value.clone().unwrap_or_default())
            .collect()
    }

    /// Where the largest epoch that is not larger than `epoch` ends (KIP-279).
    fn end_of_epoch(&self, epoch: i32) -> Diverging {
        let below = |batch: &&TestBatch| batch.leader_epoch <= epoch;
        let found = self.batches.iter().rev().find(below);
        Diverging {
            epoch: found.map_or(epoch, |batch| batch.leader_epoch),
            end_offset: found.map_or(0, next_of),
        }
    }
}

fn next_of(batch: &TestBatch) -> i64 {
    batch.base_offset + i64::from(batch.last_offset_delta) + 1
}

/// A broker's memory of what it is asked for (KIP-227).
#[derive(Debug, Default)]
struct BrokerSession {
    id: i32,
    epoch: i32,
    /// What is wanted and the end that was told, in the order of serving.
    list: Vec<(FetchPartition, i64)>,
}

#[derive(Debug)]
struct World {
    logs: Vec<Log>,
    sessions: BTreeMap<i32, BrokerSession>,
    next_session: i32,
    keeps_sessions: bool,
    pending: BTreeMap<i32, FetchRequest>,
    random: fastrand::Rng,
}

impl World {
    /// Brings the session up to date; the error of the whole answer.
    fn enter(&mut self, broker: i32, request: &FetchRequest) -> Result<bool, i16> {
        let named = request.topics.iter().flat_map(|topic| &topic.partitions);
        if request.session_epoch <= 0 {
            self.sessions.remove(&broker);
            self.next_session += 1;
            let session = BrokerSession {
                id: if self.keeps_sessions {
                    self.next_session
                } else {
                    0
                },
                epoch: 1,
                list: named.map(|partition| (*partition, -1)).collect(),
            };
            self.sessions.insert(broker, session);
            return Ok(true);
        }
        let session = self.sessions.get_mut(&broker);
        let Some(session) = session.filter(|session| session.id == request.session_id) else {
            return Err(SESSION_UNKNOWN);
        };
        if session.epoch != request.session_epoch {
            return Err(SESSION_OUT_OF_STEP);
        }
        session.epoch += 1;
        for partition in named {
            let number = partition.partition;
            match session
                .list
                .iter_mut()
                .find(|(known, _)| known.partition == number)
            {
                Some((known, _)) => *known = *partition,
                None => session.list.push((*partition, -1)),
            }
        }
        let forgotten = request.forgotten.iter().flat_map(|topic| &topic.partitions);
        for number in forgotten {
            session.list.retain(|(known, _)| known.partition != *number);
        }
        Ok(false)
    }

    /// What `broker` answers now.
    fn answer(&mut self, broker: i32, request: &FetchRequest) -> FetchAnswer {
        let mut answer = FetchAnswer {
            throttle: Duration::ZERO,
            error: 0,
            session_id: 0,
            topics: Vec::new(),
            endpoints: Vec::new(),
        };
        let is_whole = match self.enter(broker, request) {
            Ok(is_whole) => is_whole,
            Err(error) => {
                answer.error = error;
                return answer;
            }
        };
        let Some(session) = self.sessions.get_mut(&broker) else {
            return answer;
        };
        answer.session_id = session.id;
        let mut left = usize::try_from(request.max_bytes).unwrap();
        let mut partitions = Vec::new();
        let mut served = Vec::new();
        let mut idle = Vec::new();
        for (wanted, told) in session.list.drain(..) {
            let log = &self.logs[usize::try_from(wanted.partition).unwrap()];
            let fetched = serve(log, broker, &wanted, left);
            left = left.saturating_sub(fetched.records.len());
            let is_news = fetched.error != 0
                || !fetched.records.is_empty()
                || fetched.diverging.is_some()
                || fetched.high_watermark != told;
            let told = if fetched.error == 0 {
                fetched.high_watermark
            } else {
                -1
            };
            if fetched.records.is_empty() {
                idle.push((wanted, told));
            } else {
                served.push((wanted, told));
            }
            if is_news || is_whole {
                partitions.push(fetched);
            }
        }
        idle.append(&mut served);
        session.list = idle;
        answer.topics = vec![FetchedTopic {
            topic: TopicKey::Id(TOPIC_ID),
            partitions,
        }];
        answer
    }
}

fn serve(log: &Log, broker: i32, wanted: &FetchPartition, left: usize) -> FetchedPartition {
    let mut fetched = FetchedPartition::without_news(wanted.partition, log.end(), 0);
    let refused = |error| FetchedPartition {
        error,
        ..FetchedPartition::without_news(wanted.partition, -1, -1)
    };
    if log.leader != broker {
        return refused(6);
    }
    if wanted.leader_epoch != log.leader_epoch {
        return refused(if wanted.leader_epoch < log.leader_epoch {
            74
        } else {
            75
        });
    }
    if wanted.last_fetched_epoch >= 0 {
        let end = log.end_of_epoch(wanted.last_fetched_epoch);
        if end.epoch < wanted.last_fetched_epoch || end.end_offset < wanted.offset {
            fetched.diverging = Some(end);
            return fetched;
        }
    }
    if wanted.offset > log.end() {
        return refused(1);
    }
    let limit = left.min(usize::try_from(wanted.max_bytes).unwrap());
    let mut records = Vec::new();
    for batch in log.batches.iter().filter(|it| next_of(it) > wanted.offset) {
        let bytes = batch.encode();
        if records.len() + bytes.len() > limit && !(records.is_empty() && left > 0) {
            break;
        }
        records.extend(bytes);
    }
    fetched.records = records.into();
    fetched
}

/// The plan, the brokers, and what the worker has been given.
struct Sim {
    plan: Plan,
    kit: Kit,
    now: Instant,
    world: World,
    /// By partition: the assignment, and the values given so far, by offset.
    epochs: Vec<AssignmentEpoch>,
    next_epoch: u64,
    given: Vec<Vec<Vec<u8>>>,
    paused: Vec<bool>,
    truncations: u32,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut sim = Self {
            plan: Plan::new(Isolation::ReadUncommitted, Arc::default(), seed),
            kit: Kit::new(BufferPool::new(64 << 20, Waker::new(|| {}))),
            now: Clock::manual().now(),
            world: World {
                logs: (0..PARTITIONS)
                    .map(|partition| Log {
                        leader: partition % BROKERS + 1,
                        ..Log::default()
                    })
                    .collect(),
                sessions: BTreeMap::new(),
                next_session: 0,
                keeps_sessions: random.u8(..8) > 0,
                pending: BTreeMap::new(),
                random,
            },
            epochs: Vec::new(),
            next_epoch: 0,
            given: vec![Vec::new(); PARTITIONS as usize],
            paused: vec![false; PARTITIONS as usize],
            truncations: 0,
        };
        for partition in 0..PARTITIONS {
            sim.epochs.push(AssignmentEpoch(0));
            sim.assign(partition);
        }
        sim.follow();
        sim
    }

    fn assign(&mut self, partition: i32) {
        let index = usize::try_from(partition).unwrap();
        self.next_epoch += 1;
        self.epochs[index] = AssignmentEpoch(self.next_epoch);
        self.plan.start(ReadFrom {
            partition: TopicPartition::new("orders", partition),
            epoch: self.epochs[index],
            offset: i64::try_from(self.given[index].len()).unwrap(),
            until: None,
            paused: self.paused[index],
        });
        self.follow();
    }

    fn follow(&mut self) {
        let partitions: Vec<_> = self
            .world
            .logs
            .iter()
            .map(|log| PartitionState {
                leader: Some(Leader {
                    id: log.leader,
                    epoch: log.leader_epoch,
                }),
                error: 0,
            })
            .collect();
        let topic = TopicState {
            id: TOPIC_ID,
            reported: partitions.len(),
            partitions,
            error: 0,
        };
        let address = BrokerAddress {
            host: Arc::from("localhost"),
            port: 9092,
        };
        self.plan.follow(&ClusterSnapshot {
            generation: 1,
            brokers: (1..=BROKERS).map(|id| (id, address.clone())).collect(),
            topics: HashMap::from([(Arc::from("orders"), topic)]),
        });
    }

    fn ask(&mut self, broker: i32) {
        let room = Room {
            share: 8 << 20,
            held: 0,
            connections: 3,
        };
        if let Some(request) = self.plan.ask(broker, self.now, room) {
            assert!(!self.world.pending.contains_key(&broker), "one at a time");
            self.world.pending.insert(broker, request);
        }
    }

    fn take_answer(&mut self, broker: i32, spoil: impl FnOnce(&mut FetchAnswer)) {
        let Some(request) = self.world.pending.remove(&broker) else {
            return;
        };
        let mut answer = self.world.answer(broker, &request);
        spoil(&mut answer);
        self.plan.answered(broker, answer, self.now, Coarse::ZERO);
        for slot in self.plan.slots.values() {
            assert!(slot.held() <= MOST_ANSWERS + 1, "too much is held");
        }
    }

    /// Takes what the plan gives next; some of it is given back.
    fn give(&mut self) -> bool {
        let Some(pulled) = self.plan.give(&mut self.kit, self.now) else {
            return false;
        };
        match pulled {
            Pulled::Batch(mut batch) => {
                let index = usize::try_from(batch.partition.partition()).unwrap();
                assert_eq!(batch.epoch, self.epochs[index], "it was stopped");
                assert!(!self.paused[index], "it is paused");
                let len = batch.entries.len();
                let keep = if self.world.random.u8(..4) == 0 {
                    self.world.random.usize(..=len)
                } else {
                    len
                };
                for entry in batch.cursor..keep {
                    let record = batch.record(entry, 1).unwrap();
                    let given = &mut self.given[index];
                    assert_eq!(record.offset(), i64::try_from(given.len()).unwrap());
                    given.push(record.value().unwrap_or_default().to_vec());
                }
                if keep > batch.cursor {
                    batch.cursor = keep;
                }
                if batch.cursor < len {
                    self.plan.put_back(batch);
                }
            }
            Pulled::Failed {
                epoch,
                offset,
                error: ReadError::Truncated { end_offset, .. },
            } => {
                self.truncations += 1;
                let index = self.epochs.iter().position(|it| *it == epoch).unwrap();
                let given = &mut self.given[index];
                assert_eq!(offset, i64::try_from(given.len()).unwrap());
                assert!(end_offset < offset);
                // Whether that is low enough shows at the end: the log may have
                // been cut off once more since.
                given.truncate(usize::try_from(end_offset).unwrap());
                self.plan.rewind(epoch, end_offset, None);
            }
            other => panic!("{other:?}"),
        }
        true
    }

    /// Something happens.
    fn step(&mut self, truncates: bool) {
        let random = &mut self.world.random;
        let broker = random.i32(1..=BROKERS);
        let index = random.usize(..PARTITIONS as usize);
        let partition = i32::try_from(index).unwrap();
        let mark = random.u32(..);
        match random.u8(..32) {
            0..=7 => self.ask(broker),
            8..=13 => self.take_answer(broker, |_| ()),
            14..=18 => {
                self.give();
            }
            19..=21 => {
                let count = random.usize(1..200);
                self.world.logs[index].append(count, mark);
            }
            22 => self.now += Duration::from_millis(random.u64(..100)),
            23 => {
                let log = &mut self.world.logs[index];
                log.leader = broker;
                log.leader_epoch += 1;
                if truncates && mark % 2 == 0 && !log.batches.is_empty() {
                    let len = usize::try_from(mark).unwrap() % log.batches.len();
                    log.batches.truncate(len);
                    log.append(1 + len % 7, mark);
                }
                if mark % 3 > 0 {
                    self.follow();
                }
            }
            24 => self.follow(),
            25 => {
                self.world.pending.remove(&broker);
                self.plan.lost(broker, self.now);
            }
            26 => {
                self.world.sessions.remove(&broker);
            }
            27 => {
                let paused = !self.paused[index];
                self.paused[index] = paused;
                self.plan.set_paused(self.epochs[index], paused);
            }
            28 if !self.given[index].is_empty() => {
                let to = random.usize(..self.given[index].len());
                let not_before = (mark % 2 == 0).then(|| self.now + Duration::from_millis(30));
                self.given[index].truncate(to);
                let to = i64::try_from(to).unwrap();
                self.plan.rewind(self.epochs[index], to, not_before);
            }
            29 if !truncates => {
                self.plan.stop(self.epochs[index]);
                self.assign(partition);
            }
            30 => self.take_answer(broker, |answer| {
                // The whole of it is an error, or held back, or a part of it is.
                match mark % 4 {
                    0 => {
                        answer.error = [-1, SESSION_UNKNOWN, SESSION_OUT_OF_STEP, 7]
                            [usize::try_from(mark / 4 % 4).unwrap()];
                        answer.topics.clear();
                    }
                    1 => answer.throttle = Duration::from_millis(20),
                    _ => {
                        for fetched in answer.topics.iter_mut().flat_map(|it| &mut it.partitions) {
                            fetched.error = [3, 6, 78, 100][usize::try_from(mark % 4).unwrap()];
                            fetched.records = bytes::Bytes::new();
                            fetched.diverging = None;
                        }
                    }
                }
            }),
            _ => self.take_answer(broker, |answer| {
                // Parts are repeated, belong to nobody, or are missing.
                for topic in &mut answer.topics {
                    let mut foreign = topic.partitions.clone();
                    for partition in &mut foreign {
                        partition.partition += 100;
                    }
                    topic.partitions.extend(topic.partitions.clone());
                    topic.partitions.extend(foreign);
                    if mark % 2 == 0 {
                        topic.partitions.reverse();
                    }
                    if answer.session_id == 0 && mark % 3 == 0 {
                        topic.partitions.clear();
                    }
                }
            }),
        }
    }

    /// Nothing bad happens any more: all there is must come.
    fn settle(&mut self) {
        for index in 0..PARTITIONS as usize {
            if std::mem::take(&mut self.paused[index]) {
                self.plan.set_paused(self.epochs[index], false);
            }
        }
        for _ in 0..3_000 {
            self.follow();
            for broker in 1..=BROKERS {
                self.ask(broker);
                self.take_answer(broker, |_| ());
            }
            while self.give() {}
            self.now += Duration::from_millis(50);
            if self.is_complete() {
                return;
            }
        }
        let missing: Vec<_> = self.given.iter().zip(&self.world.logs).collect();
        let figures: Vec<_> = missing
            .iter()
            .map(|(given, log)| (given.len(), log.end()))
            .collect();
        panic!(
            "something stands still (given, end): {figures:?}\n{:#?}",
            self.plan.slots
        );
    }

    fn is_complete(&self) -> bool {
        let mut both = self.given.iter().zip(&self.world.logs);
        both.all(|(given, log)| {
            given.len() == usize::try_from(log.end()).unwrap() && *given == log.values()
        })
    }
}

#[test]
fn every_record_is_given_once_and_in_order_whatever_happens() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut seeds = fastrand::Rng::with_seed(seed);
    let mut truncations = 0;
    for round in 0..150 {
        let seed = seeds.u64(..);
        println!("round {round}: {seed}");
        let mut sim = Sim::new(seed);
        for _ in 0..600 {
            sim.step(round % 2 == 0);
        }
        sim.settle();
        truncations += sim.truncations;
    }
    assert!(truncations > 10, "logs were cut off {truncations} times");
}
