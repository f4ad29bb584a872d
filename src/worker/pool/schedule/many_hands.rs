//! The schedule under workers with many hands, drawn from seeds: hands are
//! filled, records are done, fail, are let go of; partitions leave in order,
//! late, and come back; workers end and begin. A model that knows only the log
//! and what is in hand checks each step.
//!
//! `KEEPUP_TEST_SEED=N` repeats one run.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::*;
use crate::clock::Clock;
use crate::record::Entry;

const RUNS: u64 = 500;
const STEPS: usize = 400;
const PARTITIONS: i32 = 2;
const WORKERS: usize = 2;
const KEYS: u8 = 5;

/// What is in a hand.
#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: AssignmentEpoch,
    partition: i32,
    offset: i64,
}

/// A partition, and the assignment of it that is in force.
struct Owned {
    epoch: AssignmentEpoch,
    tracker: Arc<Tracker>,
    /// What was read up to, and what the log has.
    read: i64,
    is_leaving: bool,
    is_lost: bool,
    /// It has enough, and is not read on before it is thirsty.
    is_full: bool,
}

struct Run {
    random: fastrand::Rng,
    schedule: Schedule,
    lanes: Lanes,
    hands: usize,
    now: Instant,
    millis: u64,
    epochs: u64,
    owned: BTreeMap<i32, Owned>,
    held: BTreeMap<Place, Held>,
    /// Offsets that were completed in the assignment that is in force.
    done: BTreeMap<AssignmentEpoch, BTreeSet<i64>>,
    /// Where each lane of each assignment stands: what was begun last.
    begun: BTreeMap<(AssignmentEpoch, i64), i64>,
    log_end: i64,
    workers: BTreeSet<usize>,
    /// Bytes that all partitions may hold: a few batches, or one that is too
    /// large by itself.
    share: usize,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let lanes = [Lanes::Partition, Lanes::Keys, Lanes::Records][random.usize(..3)];
        let hands = random.usize(1..7);
        let rules = Rules {
            remember_completed: false,
            drain: Duration::from_millis(50),
            lanes,
            #[cfg(feature = "tokio")]
            hands,
            retry: RetryPolicy {
                attempts: 3,
                backoff: Duration::from_millis(20),
                on_exhausted: OnExhausted::Skip,
                ..RetryPolicy::default()
            },
            dead_letters: None,
            count: None,
            events: EventSink::unobserved(Clock::manual()),
        };
        let mut run = Self {
            schedule: Schedule::new(rules, random.u64(..)),
            random,
            lanes,
            hands,
            now: Clock::manual().now(),
            millis: 1,
            epochs: 0,
            owned: BTreeMap::new(),
            held: BTreeMap::new(),
            done: BTreeMap::new(),
            begun: BTreeMap::new(),
            log_end: 30,
            workers: BTreeSet::new(),
            share: 0,
        };
        run.share = run.random.usize(100..10_000);
        for worker in 0..WORKERS {
            run.begin_worker(worker);
        }
        for partition in 0..PARTITIONS {
            run.assign(partition, 0);
        }
        run
    }

    fn key_of(offset: i64) -> u8 {
        u8::try_from(offset * offset % i64::from(KEYS)).unwrap_or(0)
    }

    fn lane_of(&self, offset: i64) -> i64 {
        match self.lanes {
            Lanes::Partition => 0,
            Lanes::Keys => Self::key_of(offset).into(),
            Lanes::Records => offset,
        }
    }

    fn begin_worker(&mut self, worker: usize) {
        self.workers.insert(worker);
        for hand in 0..self.hands {
            self.schedule.enlist_worker(Place { worker, hand });
        }
    }

    fn assign(&mut self, partition: i32, offset: i64) {
        self.epochs += 1;
        let epoch = AssignmentEpoch(self.epochs);
        let tracker = Arc::new(Tracker::new(epoch));
        tracker.begin(offset);
        self.schedule.start(&LaneStart {
            completed: None,
            partition: TopicPartition::new("orders", partition),
            epoch,
            tracker: Arc::clone(&tracker),
            offset,
            until: None,
            paused: false,
            failed: None,
        });
        self.done.insert(epoch, (0..offset).collect());
        let owned = Owned {
            epoch,
            tracker,
            read: offset,
            is_leaving: false,
            is_lost: false,
            is_full: false,
        };
        self.owned.insert(partition, owned);
    }

    /// The reader has a few records more.
    fn push(&mut self, partition: i32) {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return;
        };
        let next = (owned.read + self.random.i64(1..9)).min(self.log_end);
        if owned.is_leaving || owned.is_full || next == owned.read {
            return;
        }
        // What was left out, or was never there, is read past as well.
        let is_empty = self.random.u8(..5) == 0;
        let offsets = if is_empty { 0..0 } else { owned.read..next };
        if is_empty {
            let done = self.done.entry(owned.epoch).or_default();
            done.extend(owned.read..next);
        }
        let keys: Vec<u8> = offsets.clone().map(Self::key_of).collect();
        let batch = Batch {
            partition: TopicPartition::new("orders", partition),
            epoch: owned.epoch,
            entries: offsets
                .zip(0..)
                .map(|(offset, place)| Entry {
                    offset,
                    key_start: place,
                    key_len: 1,
                    value_len: -1,
                    ..Entry::default()
                })
                .collect(),
            bytes: Bytes::from(keys),
            cursor: 0,
            next_offset: next,
            end_offset: self.log_end,
            log_start: 0,
            fetched_at: Coarse::from_millis(self.millis),
        };
        owned.read = next;
        let mut slots = Vec::new();
        self.lanes.slots(&batch, &mut slots);
        self.schedule.share(self.share);
        owned.is_full = self.schedule.push(batch, &slots);
    }

    fn read_on_where_it_is_thirsty(&mut self) {
        for (epoch, offset) in self.schedule.take_thirsty() {
            let owned = self.owned.values_mut().find(|owned| owned.epoch == epoch);
            let owned = owned.expect("what has left is not thirsty");
            assert!(owned.is_full && owned.read == offset, "{epoch:?}@{offset}");
            owned.is_full = false;
        }
    }

    fn take(&mut self) {
        let places = self.workers.iter().flat_map(|&worker| {
            let hands = 0..self.hands;
            hands.map(move |hand| Place { worker, hand })
        });
        let free: Vec<Place> = places.filter(|p| !self.held.contains_key(p)).collect();
        let Some(&place) = self.random.choice(&free) else {
            return;
        };
        let now = Coarse::from_millis(self.millis);
        let Some(work) = self.schedule.take(place, 1, now) else {
            return;
        };
        let task = self.schedule.seats[&place].next(now).expect("it took one");
        let batch = &work.batches[task.batch()];
        let held = Held {
            epoch: batch.epoch,
            partition: work.partition.partition(),
            offset: batch.entries[task.index()].offset,
        };
        self.check_begin(held);
        self.held.insert(place, held);
    }

    fn check_begin(&mut self, held: Held) {
        let lane = self.lane_of(held.offset);
        let others = self.held.values();
        for other in others.filter(|other| other.epoch == held.epoch) {
            assert_ne!(
                self.lane_of(other.offset),
                lane,
                "{held:?} beside {other:?}"
            );
        }
        let done = &self.done[&held.epoch];
        assert!(!done.contains(&held.offset), "{held:?} is done already");
        let before = self.begun.insert((held.epoch, lane), held.offset);
        let is_in_order = before.is_none_or(|before| {
            held.offset == before || (held.offset > before && done.contains(&before))
        });
        assert!(is_in_order, "{held:?} after {before:?}");
        let owned = &self.owned[&held.partition];
        assert_eq!(
            owned.epoch, held.epoch,
            "{held:?} is of an earlier assignment"
        );
        assert!(!owned.tracker.is_given_up(), "{held:?} is not ours");
    }

    /// Something becomes of what is in a hand.
    fn end_one(&mut self) {
        let places: Vec<Place> = self.held.keys().copied().collect();
        let Some(&place) = self.random.choice(&places) else {
            return;
        };
        let held = self.held.remove(&place).expect("it is held");
        let outcome = match self.random.u8(..10) {
            0 => Outcome::retry("not yet"),
            1 => Outcome::reject("no order"),
            2 => return self.schedule.let_go(place),
            _ => Outcome::Done,
        };
        if outcome == Outcome::Done {
            self.schedule.seats[&place].finish();
            self.schedule.settle(place);
            self.completed(held);
            return;
        }
        let skipped = |run: &Self| {
            let owned = run.owned.get(&held.partition);
            owned.map_or(0, |owned| owned.tracker.skipped_records())
        };
        let before = skipped(self);
        assert_eq!(self.schedule.outcome(place, outcome, self.now), None);
        if skipped(self) > before {
            self.completed(held);
        }
    }

    fn completed(&mut self, held: Held) {
        let is_new = self
            .done
            .get_mut(&held.epoch)
            .map(|done| done.insert(held.offset));
        assert_eq!(is_new, Some(true), "{held:?} twice");
    }

    fn release(&mut self) {
        let partition = self.random.i32(0..PARTITIONS);
        let owned = self.owned.get_mut(&partition).expect("always owned");
        // What leaves already may be lost meanwhile; and the run may end, of which
        // all that is left is told.
        owned.is_leaving = true;
        let cause = if self.random.bool() {
            ReleaseCause::Revoked
        } else {
            owned.tracker.give_up();
            owned.is_lost = true;
            ReleaseCause::Lost
        };
        self.schedule.release(&[owned.epoch], cause, self.now);
    }

    /// The member's patience with a partition that leaves is over, and workers do
    /// what follows.
    fn look_after_leaving(&mut self) {
        for owned in self.owned.values() {
            if owned.is_leaving && self.random.u8(..4) == 0 {
                owned.tracker.give_up();
            }
        }
        let given_up = |held: &Held| self.owned[&held.partition].tracker.is_given_up();
        let cancelled: Vec<Place> = self
            .held
            .iter()
            .filter(|(_, held)| given_up(held))
            .map(|(place, _)| *place)
            .collect();
        for place in cancelled {
            self.held.remove(&place);
            self.schedule.let_go(place);
        }
        for worker in self.workers.clone() {
            let mut goodbyes = self.schedule.goodbyes(worker);
            goodbyes.retain(|goodbye| {
                let mut held = self.held.iter();
                !held.any(|(place, held)| place.worker == worker && held.epoch == goodbye.epoch)
            });
            self.schedule.said_goodbye(worker, &goodbyes);
        }
        for goodbye in self.schedule.take_released(self.now, &HashMap::new()) {
            let mut held = self.held.values();
            assert!(held.all(|held| held.epoch != goodbye.epoch), "{goodbye:?}");
            let partition = goodbye.partition.partition();
            let owned = &self.owned[&partition];
            let is_lost = goodbye.cause == ReleaseCause::Lost;
            assert_eq!(is_lost, owned.is_lost, "{goodbye:?}");
            let watermark = owned.tracker.watermark();
            self.assign(partition, watermark.expect("it has begun"));
        }
    }

    fn replace_a_worker(&mut self) {
        let worker = self.random.usize(..WORKERS);
        self.held.retain(|place, _| place.worker != worker);
        self.schedule.dismiss_worker(worker);
        self.begin_worker(worker);
    }

    fn pass_time(&mut self) {
        let millis = self.random.u64(1..60);
        self.now += Duration::from_millis(millis);
        self.millis += millis;
        self.schedule.wake_due(self.now);
    }

    fn check(&mut self) {
        self.read_on_where_it_is_thirsty();
        for (partition, owned) in &self.owned {
            let watermark = owned.tracker.watermark().expect("it has begun");
            let done = &self.done[&owned.epoch];
            let open = (0..=self.log_end).find(|offset| !done.contains(offset));
            let open = open.expect("the end of the log is no record");
            assert!(watermark <= open, "{partition}: {watermark} above {open}");
            if !owned.tracker.is_given_up() {
                let held = self.held.values();
                let held = held.filter(|held| held.epoch == owned.epoch).count();
                assert!(owned.tracker.in_flight() >= held as u64, "{partition}");
            }
        }
    }

    fn step(&mut self) {
        match self.random.u8(..100) {
            0..20 => {
                let partition = self.random.i32(0..PARTITIONS);
                self.push(partition);
            }
            20..55 => self.take(),
            55..85 => self.end_one(),
            85..88 => self.release(),
            88..94 => self.look_after_leaving(),
            94 => self.replace_a_worker(),
            95 => self.log_end += 10,
            _ => self.pass_time(),
        }
        self.check();
    }

    /// Everything comes to its end, once nothing is in the way.
    fn finish(mut self) {
        for _ in 0..20_000 {
            let is_over = self
                .owned
                .values()
                .all(|owned| !owned.is_leaving && owned.tracker.watermark() == Some(self.log_end));
            if is_over {
                return;
            }
            for partition in 0..PARTITIONS {
                self.push(partition);
            }
            self.take();
            self.end_one();
            self.look_after_leaving();
            self.pass_time();
            self.check();
        }
        let stands: Vec<_> = self.owned.values().map(|o| o.tracker.watermark()).collect();
        panic!(
            "{:?} of {} after all: {:?}",
            stands, self.log_end, self.held
        );
    }
}

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("KEEPUP_TEST_SEED={}", self.0);
        }
    }
}

#[test]
fn many_hands_keep_every_lane_in_order_and_complete_each_record_whatever_happens() {
    let asked = std::env::var("KEEPUP_TEST_SEED").ok();
    let asked = asked.map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = asked.map_or(0..RUNS, |seed| seed..seed + 1);
    for seed in seeds {
        let _named = Seed(seed);
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            run.step();
        }
        run.finish();
    }
}
