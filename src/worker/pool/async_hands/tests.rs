//! Workers with many records in hand, over a log in memory: the test is the
//! member, a reader and the workers run on threads of their own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use super::*;
use crate::async_handler::AsyncHandler;
use crate::clock::Clock;
use crate::config::{OnExhausted, RetryPolicy};
use crate::handler::WorkerInfo;
use crate::record::TopicPartition;
use crate::report::StopReason;
use crate::runtime::events::EventSink;
use crate::source::MemoryBudget;
use crate::source::memory::{MemoryFactory, MemoryLog, MemoryRecord};
use crate::trace::tests::Spans;
use crate::worker::dead_letter::{DeadLetters, Delivery, Letter, Sent};
use crate::worker::engine::EngineFactory;
use crate::worker::gate::Gate;
use crate::worker::lane::{LaneStart, ReleaseCause};
use crate::worker::mailbox::Mailbox;
use crate::worker::pool::backlog::Lanes;
use crate::worker::pool::reader::{self, READER};
use crate::worker::pool::schedule::Rules;
use crate::worker::run::FromWorker;

/// Nothing here takes longer, on a machine that does other things as well.
const PATIENT: Duration = Duration::from_secs(20);

/// What the handlers saw, which the test waits for.
#[derive(Default)]
struct Noted {
    state: Mutex<Notes>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Notes {
    /// What happened, in order: where, and whether it began there.
    story: Vec<((i32, i64), bool)>,
    began: Vec<(i32, i64)>,
    done: Vec<(i32, i64)>,
    cancelled: Vec<(i32, i64)>,
    hooks: Vec<String>,
    inside: usize,
    most_inside: usize,
}

impl Noted {
    fn note(&self, change: impl FnOnce(&mut Notes)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&Notes) -> bool) {
        let mut state = self.state.lock();
        let deadline = Clock::System.now() + PATIENT;
        while !condition(&state) {
            let late = self.changed.wait_until(&mut state, deadline).timed_out();
            assert!(!late, "{what}: {:?}", *state);
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Notes) -> T) -> T {
        look(&self.state.lock())
    }
}

/// A record inside of a handler: notes when it leaves, one way or the other.
struct Inside {
    noted: Arc<Noted>,
    place: (i32, i64),
    is_done: Cell<bool>,
}

impl Inside {
    fn new(noted: &Arc<Noted>, record: &OwnedRecord) -> Self {
        let place = (record.partition(), record.offset());
        noted.note(|notes| {
            notes.story.push((place, true));
            notes.began.push(place);
            notes.inside += 1;
            notes.most_inside = notes.most_inside.max(notes.inside);
        });
        Self {
            noted: Arc::clone(noted),
            place,
            is_done: Cell::new(false),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.noted.note(|notes| {
            notes.story.push((self.place, false));
            notes.inside -= 1;
            if self.is_done.get() {
                notes.done.push(self.place);
            } else {
                notes.cancelled.push(self.place);
            }
        });
    }
}

/// Waits at a door with each record (with one of them at a door of its own),
/// then says what the test has it say.
#[derive(Clone)]
struct Waits {
    noted: Arc<Noted>,
    door: Arc<Semaphore>,
    held: Arc<Semaphore>,
    holds: Option<(i32, i64)>,
    says: Arc<dyn Fn(&OwnedRecord) -> Outcome + Send + Sync>,
}

impl AsyncHandler for Waits {
    async fn handle(&self, record: OwnedRecord) -> Outcome {
        let inside = Inside::new(&self.noted, &record);
        let is_held = self.holds == Some((record.partition(), record.offset()));
        let door = if is_held { &self.held } else { &self.door };
        if let Ok(permit) = door.acquire().await {
            permit.forget();
        }
        let outcome = (self.says)(&record);
        inside.is_done.set(true);
        outcome
    }

    fn on_assigned(&self, partitions: &[TopicPartition]) {
        let hook = format!("assigned {partitions:?}");
        self.noted.note(|notes| notes.hooks.push(hook));
    }

    fn on_revoked(&self, partitions: &[TopicPartition]) {
        let hook = format!("revoked {partitions:?}");
        self.noted.note(|notes| notes.hooks.push(hook));
    }

    fn on_lost(&self, partitions: &[TopicPartition]) {
        let hook = format!("lost {partitions:?}");
        self.noted.note(|notes| notes.hooks.push(hook));
    }
}

/// Letters arrive at once.
#[derive(Default)]
struct Office(Mutex<Vec<(i32, i64)>>);

impl DeadLetters for Office {
    fn topic(&self) -> &'static str {
        "dead"
    }

    fn send(&self, letter: &Letter<'_>, delivery: &Arc<Delivery>) {
        let place = (letter.record.partition(), letter.record.offset());
        self.0.lock().push(place);
        delivery.tell(Sent::Written);
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn recall(&self) {}
}

/// The threads of a process, and the test in the place of its member.
struct Scene {
    log: MemoryLog,
    noted: Arc<Noted>,
    door: Arc<Semaphore>,
    held: Arc<Semaphore>,
    office: Arc<Office>,
    reader: Arc<Mailbox>,
    workers: Vec<Arc<Mailbox>>,
    reports: Receiver<FromWorker>,
    threads: Vec<JoinHandle<()>>,
    trackers: BTreeMap<i32, Arc<Tracker>>,
    epochs: u64,
}

struct Script {
    lanes: Lanes,
    hands: usize,
    workers: usize,
    partitions: i32,
    records: usize,
    keys: usize,
    retry: RetryPolicy,
    holds: Option<(i32, i64)>,
    says: Arc<dyn Fn(&OwnedRecord) -> Outcome + Send + Sync>,
    spans: Option<Spans>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            lanes: Lanes::Records,
            hands: 256,
            workers: 1,
            partitions: 1,
            records: 100,
            keys: 10,
            retry: RetryPolicy {
                backoff: Duration::from_millis(5),
                ..RetryPolicy::default()
            },
            holds: None,
            says: Arc::new(|_| Outcome::Done),
            spans: None,
        }
    }
}

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("orders", partition)
}

impl Script {
    fn start(self) -> Scene {
        let log = MemoryLog::new();
        for partition in 0..self.partitions {
            for number in 0..self.records {
                log.append(
                    &tp(partition),
                    MemoryRecord {
                        key: Some(format!("key {}", number % self.keys).into_bytes()),
                        ..MemoryRecord::of(number.to_string())
                    },
                );
            }
        }
        let clock = Clock::System;
        let office = Arc::new(Office::default());
        let events = EventSink::unobserved(clock.clone());
        let rules = Rules {
            remember_completed: false,
            drain: Duration::from_millis(300),
            lanes: self.lanes,
            hands: self.hands,
            retry: self.retry,
            dead_letters: Some(Arc::clone(&office) as Arc<dyn DeadLetters>),
            count: None,
            events: events.clone(),
        };
        let pool = Arc::new(Pool::new(rules, clock.clone(), 1));
        let noted = Arc::new(Noted::default());
        let [door, held] = [(); 2].map(|()| Arc::new(Semaphore::new(0)));
        let handler = Waits {
            noted: Arc::clone(&noted),
            door: Arc::clone(&door),
            held: Arc::clone(&held),
            holds: self.holds,
            says: self.says,
        };
        let engines = Arc::new(EngineFactory::per_future(move |_| handler.clone()));
        let gate = Arc::new(Gate::new(Duration::MAX, clock.coarse()));
        let (told, reports) = bounded(4_096);
        let context = |worker| WorkerContext {
            info: WorkerInfo {
                worker,
                restarts: 0,
            },
            clock: clock.clone(),
            gate: Arc::clone(&gate),
            mailbox: Arc::new(Mailbox::new()),
            reports: told.clone(),
            events: events.clone(),
            sources: Arc::new(MemoryFactory::new(log.clone(), clock.clone())),
            engines: Arc::clone(&engines),
            retry: self.retry,
            dead_letters: None,
            count: None,
            is_child: false,
        };
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new();
            builder.spawn(work).expect("a thread")
        };
        let read = context(READER);
        let reader = Arc::clone(&read.mailbox);
        let mut threads = Vec::new();
        {
            let pool = Arc::clone(&pool);
            let memory = Arc::new(MemoryBudget::new(1 << 24));
            threads.push(spawn(Box::new(move || reader::run(read, pool, memory))));
        }
        let mut workers = Vec::new();
        for worker in 0..self.workers {
            let (work, pool) = (context(worker), Arc::clone(&pool));
            workers.push(Arc::clone(&work.mailbox));
            let spans = self.spans.clone();
            threads.push(spawn(Box::new(move || match spans {
                Some(spans) => spans.note(|| run(work, &pool)),
                None => run(work, &pool),
            })));
        }
        let mut scene = Scene {
            log,
            noted,
            door,
            held,
            office,
            reader,
            workers,
            reports,
            threads,
            trackers: BTreeMap::new(),
            epochs: 0,
        };
        for partition in 0..self.partitions {
            scene.assign(partition);
        }
        scene
    }
}

impl Scene {
    /// The reader has the partition from now on, from where it is committed.
    fn assign(&mut self, partition: i32) {
        self.epochs += 1;
        let epoch = AssignmentEpoch(self.epochs);
        let tracker = Arc::new(Tracker::new(epoch));
        let offset = self.watermark(partition).unwrap_or(0);
        tracker.begin(offset);
        self.trackers.insert(partition, Arc::clone(&tracker));
        let lane = LaneStart {
            completed: None,
            partition: tp(partition),
            epoch,
            offset,
            tracker,
            until: None,
            paused: false,
            failed: None,
        };
        self.reader.take_lanes(vec![lane], false);
    }

    /// The last that was assigned is to be given back.
    fn release(&self, cause: ReleaseCause) {
        let epoch = AssignmentEpoch(self.epochs);
        drop(self.reader.release(vec![epoch], cause));
    }

    fn watermark(&self, partition: i32) -> Option<i64> {
        self.trackers.get(&partition)?.watermark()
    }

    /// Waits for the end of a worker.
    fn exit_of(&self, worker: usize) -> WorkerExit {
        loop {
            match self.reports.recv_timeout(PATIENT) {
                Ok(FromWorker::Exited {
                    worker: told, exit, ..
                }) if told == worker => return exit,
                Ok(_) => {}
                Err(error) => panic!("worker {worker} does not end: {error}"),
            }
        }
    }

    /// Waits until the last that was assigned is free.
    fn wait_for_release(&self) {
        loop {
            match self.reports.recv_timeout(PATIENT) {
                Ok(FromWorker::Released { lanes, .. })
                    if lanes.contains(&(AssignmentEpoch(self.epochs), None)) =>
                {
                    return;
                }
                Ok(_) => {}
                Err(error) => panic!("{} is not given back: {error}", self.epochs),
            }
        }
    }

    fn wait_for_watermark(&self, partition: i32, offset: i64) {
        let deadline = Clock::System.now() + PATIENT;
        while self.watermark(partition) != Some(offset) {
            let stands = self.watermark(partition);
            assert!(Clock::System.now() < deadline, "{stands:?} of {offset}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Opens the door for good.
    fn open(&self) {
        self.door.add_permits(1 << 20);
    }

    /// Ends everything in order.
    fn stop(self) -> Arc<Noted> {
        self.reader.stop(ReleaseCause::Revoked);
        assert_eq!(self.exit_of(READER), WorkerExit::Asked);
        self.end()
    }

    /// Ends what still runs.
    fn end(self) -> Arc<Noted> {
        self.reader.stop(ReleaseCause::Revoked);
        for worker in &self.workers {
            worker.stop(ReleaseCause::Revoked);
        }
        for thread in self.threads {
            thread.join().expect("no thread panics");
        }
        self.noted
    }
}

#[test]
fn one_worker_has_as_many_records_in_the_handler_as_it_has_hands() {
    for (hands, at_once) in [(256, 100), (7, 7), (1, 1)] {
        let scene = Script {
            hands,
            ..Script::default()
        }
        .start();
        let noted = Arc::clone(&scene.noted);
        noted.wait_for("as many as it may", |notes| notes.inside == at_once);
        scene.open();
        scene.wait_for_watermark(0, 100);
        let noted = scene.stop();
        noted.look(|notes| {
            assert_eq!((notes.done.len(), notes.most_inside), (100, at_once));
            assert_eq!(notes.hooks, ["assigned [orders-0]", "revoked [orders-0]"]);
        });
    }
}

/// The lane's records were in a handler one after the other, in their order.
fn is_in_order(story: &[((i32, i64), bool)], of_lane: impl Fn((i32, i64)) -> bool) -> bool {
    let steps: Vec<_> = story.iter().filter(|(place, _)| of_lane(*place)).collect();
    let pairs = steps.chunks(2).map(|pair| match pair {
        [(began, true), (ended, false)] if began == ended => Some(began.1),
        _ => None,
    });
    let offsets: Option<Vec<i64>> = pairs.collect();
    offsets.is_some_and(|offsets| offsets.is_sorted())
}

#[test]
fn the_records_of_a_key_are_in_the_handler_one_after_the_other_and_other_keys_beside_them() {
    let scene = Script {
        lanes: Lanes::Keys,
        hands: 8,
        workers: 2,
        partitions: 2,
        records: 200,
        ..Script::default()
    }
    .start();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("hands are full", |notes| notes.inside == 16);
    for records in (0..400).step_by(4) {
        scene.door.add_permits(4);
        noted.wait_for("some are done", |notes| notes.done.len() >= records);
    }
    scene.wait_for_watermark(0, 200);
    scene.wait_for_watermark(1, 200);
    scene.stop().look(|notes| {
        for partition in 0..2 {
            for key in 0..10 {
                let of_lane = |(p, offset): (i32, i64)| p == partition && offset % 10 == key;
                assert!(is_in_order(&notes.story, of_lane), "{partition} {key}");
            }
        }
        assert_eq!(notes.done.len(), 400, "each once");
    });
}

#[test]
fn in_partition_order_each_partition_has_one_record_in_the_handler_and_none_holds_up_another() {
    let scene = Script {
        lanes: Lanes::Partition,
        partitions: 4,
        holds: Some((2, 10)),
        ..Script::default()
    }
    .start();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("one of each", |notes| notes.inside == 4);
    scene.open();
    for partition in [0, 1, 3] {
        scene.wait_for_watermark(partition, 100);
    }
    scene.wait_for_watermark(2, 10);
    scene.held.add_permits(1);
    scene.wait_for_watermark(2, 100);
    scene.stop().look(|notes| {
        assert_eq!(notes.most_inside, 4);
        for partition in 0..4 {
            let of_lane = |(p, _): (i32, i64)| p == partition;
            assert!(is_in_order(&notes.story, of_lane), "{partition}");
        }
        assert_eq!(notes.done.len(), 400, "each once");
    });
}

#[test]
fn what_is_committed_lies_below_the_first_record_that_is_still_in_the_handler() {
    let scene = Script {
        holds: Some((0, 10)),
        ..Script::default()
    }
    .start();
    scene.open();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("all others are done", |notes| notes.done.len() == 99);
    scene.wait_for_watermark(0, 10);
    scene.held.add_permits(1);
    scene.wait_for_watermark(0, 100);
    scene.stop();
}

#[test]
fn outcomes_mean_what_they_mean_of_other_handlers_and_a_panic_is_a_failed_record() {
    let scene = Script {
        lanes: Lanes::Keys,
        retry: RetryPolicy {
            attempts: 3,
            backoff: Duration::from_millis(5),
            on_exhausted: OnExhausted::DeadLetter,
            ..RetryPolicy::default()
        },
        says: Arc::new(|record| match (record.offset(), record.attempt()) {
            (3, 1 | 2) => Outcome::retry("not yet"),
            (4, _) => Outcome::retry("never"),
            (5, _) => Outcome::skip("not wanted"),
            (7, _) => Outcome::dead_letter("poison"),
            (9, _) => Outcome::reject("no order"),
            (11, 1) => panic!("a mistake in the handler"),
            _ => Outcome::Done,
        }),
        ..Script::default()
    }
    .start();
    scene.open();
    scene.wait_for_watermark(0, 100);
    let tracker = Arc::clone(&scene.trackers[&0]);
    assert_eq!(tracker.completed_records(), 100);
    assert_eq!(tracker.skipped_records(), 1);
    assert_eq!(tracker.dead_lettered_records(), 3);
    let mut letters = scene.office.0.lock().clone();
    letters.sort_unstable();
    assert_eq!(letters, [(0, 4), (0, 7), (0, 9)]);
    let times = &tracker.times;
    let calls = [
        &times.done,
        &times.retried,
        &times.skipped,
        &times.dead_lettered,
    ];
    let calls = calls.map(|calls| calls.read().counts.iter().sum::<u64>());
    assert_eq!(calls, [96, 6, 1, 1], "as many calls by what they said");
    scene.stop().look(|notes| {
        let times_of = |offset| notes.began.iter().filter(|place| place.1 == offset).count();
        assert_eq!([3, 4, 5, 7, 9, 11, 12].map(times_of), [3, 3, 1, 1, 1, 2, 1]);
        assert_eq!(notes.hooks.len(), 2, "the worker was not replaced");
    });
}

#[test]
fn a_handler_that_says_stop_ends_the_run_and_what_does_not_end_soon_is_cancelled() {
    let scene = Script {
        says: Arc::new(|record| match record.offset() {
            5 => Outcome::stop("enough"),
            _ => Outcome::Done,
        }),
        ..Script::default()
    }
    .start();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("all are in", |notes| notes.inside == 100);
    scene.door.add_permits(6);
    let exit = scene.exit_of(0);
    let WorkerExit::EndsRun(StopReason::HandlerStop { offset, .. }, WorkerStop::HandlerStop) = exit
    else {
        panic!("{exit:?}");
    };
    assert_eq!((offset, scene.watermark(0)), (5, Some(5)));
    scene.end().look(|notes| {
        assert_eq!((notes.cancelled.len(), notes.inside), (94, 0));
        assert_eq!(notes.began.len(), 100, "nothing was begun afterwards");
    });
}

#[test]
fn a_revoke_waits_for_what_is_in_the_handler_and_says_goodbye_after_it() {
    let scene = Script {
        hands: 40,
        ..Script::default()
    }
    .start();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("hands are full", |notes| notes.inside == 40);
    scene.release(ReleaseCause::Revoked);
    scene.door.add_permits(39);
    noted.wait_for("all but one", |notes| notes.done.len() == 39);
    let early = scene.reports.recv_timeout(Duration::from_millis(100));
    assert!(early.is_err(), "it was given back too early: {early:?}");
    assert_eq!(noted.look(|notes| notes.hooks.len()), 1);
    scene.open();
    scene.wait_for_release();
    let watermark = scene.watermark(0);
    scene.stop().look(|notes| {
        // A few more may have been begun before the reader heard of it.
        assert!(notes.began.len() < 100, "it was read to its end");
        let began = i64::try_from(notes.began.len()).expect("few");
        assert_eq!(
            (watermark, notes.done.len()),
            (Some(began), notes.began.len())
        );
        assert_eq!(notes.cancelled, []);
        assert_eq!(notes.hooks[1], "revoked [orders-0]");
    });
}

#[test]
fn what_is_in_the_handler_when_nobody_waits_any_more_is_cancelled_and_comes_again() {
    for cause in [ReleaseCause::Revoked, ReleaseCause::Lost] {
        let mut scene = Script {
            hands: 40,
            ..Script::default()
        }
        .start();
        let noted = Arc::clone(&scene.noted);
        noted.wait_for("hands are full", |notes| notes.inside == 40);
        scene.door.add_permits(3);
        scene.wait_for_watermark(0, 3);
        // As the member does it: with a revoke at its deadline.
        scene.trackers[&0].give_up();
        scene.release(cause);
        scene.wait_for_release();
        noted.look(|notes| {
            assert_eq!((notes.inside, notes.done.len()), (0, 3), "{cause:?}");
            let hook = if cause == ReleaseCause::Lost {
                "lost [orders-0]"
            } else {
                "revoked [orders-0]"
            };
            assert_eq!(notes.hooks[1], hook);
        });
        assert_eq!(scene.watermark(0), Some(3));
        scene.assign(0);
        scene.open();
        scene.wait_for_watermark(0, 100);
        scene.stop();
    }
}

#[test]
fn a_stop_that_is_cut_short_cancels_what_is_in_the_handler_and_the_worker_ends() {
    let scene = Script::default().start();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("all are in", |notes| notes.inside == 100);
    scene.workers[0].stop(ReleaseCause::Revoked);
    let early = scene.reports.recv_timeout(Duration::from_millis(100));
    assert!(early.is_err(), "it did not wait: {early:?}");
    scene.workers[0].cut_short();
    assert_eq!(scene.exit_of(0), WorkerExit::Asked);
    let tracker = &scene.trackers[&0];
    assert_eq!(tracker.watermark(), Some(0));
    assert_eq!(tracker.in_flight(), 100, "handed over and not completed");
    scene
        .end()
        .look(|notes| assert_eq!(notes.cancelled.len(), 100));
}

#[test]
fn a_worker_that_waits_is_woken_at_once_and_uses_no_time_of_the_processor() {
    let used = Arc::new(Mutex::new(Vec::new()));
    let note_used = Arc::clone(&used);
    let scene = Script {
        records: 2,
        says: Arc::new(move |_| {
            let of_thread = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let nanos = u32::try_from(of_thread.tv_nsec).expect("below a second");
            let seconds = u64::try_from(of_thread.tv_sec).expect("since the start");
            note_used.lock().push(Duration::new(seconds, nanos));
            Outcome::Done
        }),
        ..Script::default()
    }
    .start();
    let noted = Arc::clone(&scene.noted);
    scene.door.add_permits(1);
    scene.wait_for_watermark(0, 1);
    // One record is in the handler, and nothing happens for a while.
    let nothing = scene.reports.recv_timeout(Duration::from_millis(700));
    assert!(nothing.is_err(), "{nothing:?}");
    scene.open();
    scene.wait_for_watermark(0, 2);
    {
        let used = used.lock();
        let while_waiting = used[1].saturating_sub(used[0]);
        assert!(
            while_waiting < Duration::from_millis(100),
            "{while_waiting:?}"
        );
    }
    let began = Clock::System.now();
    for offset in 2..42 {
        scene.log.append(&tp(0), MemoryRecord::of("later"));
        noted.wait_for("the next", |notes| notes.done.len() > offset);
    }
    let took = Clock::System.now() - began;
    // Were it not woken, each would take as long as a pull waits.
    assert!(took < MAX_PULL_WAIT * 40 / 4, "{took:?}");
    scene.stop();
}

#[test]
fn what_a_handler_has_spawned_goes_on_while_its_worker_waits() {
    let ticks = Arc::new(Semaphore::new(0));
    let ticking = Arc::clone(&ticks);
    let scene = Script {
        records: 1,
        says: Arc::new(move |_| {
            let ticking = Arc::clone(&ticking);
            tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    ticking.add_permits(1);
                }
            });
            Outcome::Done
        }),
        ..Script::default()
    }
    .start();
    scene.open();
    let deadline = Clock::System.now() + PATIENT;
    while ticks.available_permits() < 20 {
        assert!(Clock::System.now() < deadline, "it stands still");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    // It has no end of its own, and the worker ends all the same.
    scene.stop();
}

#[test]
fn a_future_is_polled_in_the_span_of_its_record() {
    let spans = Spans::default();
    let entered = spans.clone();
    let counts = Arc::new(Mutex::new(Vec::new()));
    let count = Arc::clone(&counts);
    let scene = Script {
        spans: Some(spans.clone()),
        says: Arc::new(move |_| {
            count.lock().push(entered.entered());
            Outcome::Done
        }),
        ..Script::default()
    }
    .start();
    let noted = Arc::clone(&scene.noted);
    noted.wait_for("all are in", |notes| notes.inside == 100);
    scene.open();
    scene.wait_for_watermark(0, 100);
    scene.stop();
    assert_eq!(*counts.lock(), [1; 100], "its own, whenever it goes on");
    let made = spans.made();
    assert_eq!(made.len(), 100);
    assert!(made[7].contains("offset=7 attempt=1"), "{}", made[7]);
}
