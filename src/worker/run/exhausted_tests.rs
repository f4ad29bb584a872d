//! A worker over a log in memory whose handler fails for good: what becomes of
//! the record, by policy.

use std::collections::BTreeMap;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;

use super::*;
use crate::record::Record;
use crate::source::memory::{MemoryFactory, MemoryLog, MemoryRecord};
use crate::worker::dead_letter::{Letter, Sent};
use crate::worker::tracker::Tracker;

const TOPIC: &str = "orders";
const DEAD: &str = "orders-dead";
const PATIENCE: Duration = Duration::from_millis(200);

/// A letter as it was sent.
#[derive(Clone, Debug)]
pub(super) struct Posted {
    place: (i32, i64),
    attempts: u32,
    error: String,
    any_partition: bool,
    pub(super) delivery: Arc<Delivery>,
}

/// Keeps letters until the test says what becomes of them.
#[derive(Default)]
pub(super) struct PostOffice {
    posted: Mutex<Vec<Posted>>,
    recalls: Mutex<u32>,
}

impl PostOffice {
    pub(super) fn all(&self) -> Vec<Posted> {
        self.posted.lock().clone()
    }

    pub(super) fn places(&self) -> Vec<(i32, i64)> {
        self.all().iter().map(|posted| posted.place).collect()
    }

    pub(super) fn tell_last(&self, sent: Sent) {
        let all = self.all();
        all.last().expect("a letter").delivery.tell(sent);
    }
}

impl DeadLetters for PostOffice {
    fn topic(&self) -> &str {
        DEAD
    }

    fn send(&self, letter: &Letter<'_>, delivery: &Arc<Delivery>) {
        self.posted.lock().push(Posted {
            place: (letter.record.partition(), letter.record.offset()),
            attempts: letter.record.attempt(),
            error: letter.error.to_owned(),
            any_partition: letter.any_partition,
            delivery: Arc::clone(delivery),
        });
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn recall(&self) {
        *self.recalls.lock() += 1;
    }
}

/// Two partitions of five records, and how often each was handed over.
pub(super) struct Bench {
    pub(super) clock: Clock,
    log: MemoryLog,
    pub(super) office: Arc<PostOffice>,
    handed: Arc<Mutex<BTreeMap<(i32, i64), u32>>>,
    pub(super) trackers: [Arc<Tracker>; 2],
}

pub(super) struct Running {
    pub(super) worker: Worker,
    mailbox: Arc<Mailbox>,
    reports: Receiver<FromWorker>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let log = MemoryLog::new();
        let trackers = [1, 2].map(|epoch| Arc::new(Tracker::new(AssignmentEpoch(epoch))));
        for number in 0..2 {
            for record in 0..5 {
                let partition = TopicPartition::new(TOPIC, number);
                log.append(&partition, MemoryRecord::of(format!("{record}")));
            }
            trackers[usize::try_from(number).expect("small")].begin(0);
        }
        Self {
            clock: Clock::manual(),
            log,
            office: Arc::default(),
            handed: Arc::default(),
            trackers,
        }
    }

    pub(super) fn context(
        &self,
        retry: RetryPolicy,
        engines: EngineFactory,
    ) -> (WorkerContext, Receiver<FromWorker>) {
        let (reports, received) = bounded(64);
        let context = WorkerContext {
            info: WorkerInfo {
                worker: 0,
                restarts: 0,
            },
            clock: self.clock.clone(),
            gate: Arc::new(Gate::new(Duration::MAX, self.clock.coarse())),
            mailbox: Arc::new(Mailbox::new()),
            reports,
            events: EventSink::unobserved(self.clock.clone()),
            sources: Arc::new(MemoryFactory::new(self.log.clone(), self.clock.clone())),
            engines: Arc::new(engines),
            retry,
            dead_letters: Some(Arc::clone(&self.office) as Arc<dyn DeadLetters>),
            count: None,
            is_child: false,
        };
        (context, received)
    }

    /// A worker whose handler says `outcome` of record 2 of partition 0, and
    /// done of everything else. It has the lanes.
    fn start(
        &self,
        policy: RetryPolicy,
        outcome: impl Fn() -> Outcome + Clone + Send + Sync + 'static,
        change: impl FnOnce(&mut WorkerContext),
    ) -> Running {
        let handed = Arc::clone(&self.handed);
        let engines = EngineFactory::per_record(move |_| {
            let (handed, outcome) = (Arc::clone(&handed), outcome.clone());
            move |record: &Record<'_>| {
                let place = (record.partition(), record.offset());
                *handed.lock().entry(place).or_default() += 1;
                if place == (0, 2) {
                    outcome()
                } else {
                    Outcome::Done
                }
            }
        });
        let (mut context, reports) = self.context(policy, engines);
        change(&mut context);
        self.open(context, reports)
    }

    /// A worker that has both lanes.
    pub(super) fn open(&self, context: WorkerContext, reports: Receiver<FromWorker>) -> Running {
        let mailbox = Arc::clone(&context.mailbox);
        let mut running = Running {
            worker: Worker::open(context).expect("it opens"),
            mailbox,
            reports,
        };
        running.hand(self, 0, None);
        running.hand(self, 1, None);
        running
    }

    pub(super) fn watermarks(&self) -> [Option<i64>; 2] {
        [self.trackers[0].watermark(), self.trackers[1].watermark()]
    }
}

impl Running {
    pub(super) fn hand(&mut self, bench: &Bench, number: usize, failed: Option<Failed>) {
        let tracker = Arc::clone(&bench.trackers[number]);
        let lane = LaneStart {
            partition: TopicPartition::new(TOPIC, i32::try_from(number).expect("small")),
            epoch: AssignmentEpoch(number as u64 + 1),
            offset: tracker.watermark().expect("it has begun"),
            tracker,
            until: None,
            paused: false,
            failed,
            completed: None,
        };
        self.mailbox.take_lanes(vec![lane], false);
    }

    /// Asks for lanes back, by the numbers of their partitions.
    pub(super) fn ask_back(&self, numbers: &[u64], cause: ReleaseCause) {
        let epochs = numbers.iter().map(|number| AssignmentEpoch(number + 1));
        drop(self.mailbox.release(epochs.collect(), cause));
    }

    /// As many steps as everything takes that can be done now.
    pub(super) fn work(&mut self) -> Option<WorkerExit> {
        (0..100).find_map(|_| self.worker.step())
    }

    /// As many retries as there are.
    pub(super) fn work_through_waits(&mut self, bench: &Bench) -> Option<WorkerExit> {
        (0..20).find_map(|_| {
            bench.clock.advance(Duration::from_mins(1));
            self.work()
        })
    }

    pub(super) fn released(&self) -> Vec<(AssignmentEpoch, Option<Failed>)> {
        self.reports
            .try_iter()
            .flat_map(|report| match report {
                FromWorker::Released { lanes, .. } => lanes,
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

pub(super) fn policy(attempts: u32, on_exhausted: OnExhausted) -> RetryPolicy {
    RetryPolicy {
        attempts,
        on_exhausted,
        ..RetryPolicy::default()
    }
}

fn to_dead_letters() -> RetryPolicy {
    policy(3, OnExhausted::DeadLetter)
}

#[test]
fn s15_a_record_that_failed_as_often_as_allowed_is_completed_when_its_letter_is_written() {
    let bench = Bench::new();
    let mut running = bench.start(to_dead_letters(), || Outcome::retry("no"), |_| {});
    assert_eq!(running.work_through_waits(&bench), None);
    let posted = bench.office.all();
    assert_eq!(bench.office.places(), [(0, 2)], "once, and nothing else");
    assert_eq!((posted[0].attempts, posted[0].error.as_str()), (3, "no"));
    assert!(!posted[0].any_partition);
    assert_eq!(
        bench.watermarks(),
        [Some(2), Some(5)],
        "its partition waits, the other does not"
    );
    bench.office.tell_last(Sent::Written);
    assert_eq!(running.work(), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert_eq!(bench.office.places(), [(0, 2)]);
    assert_eq!(bench.handed.lock()[&(0, 2)], 3);
    assert_eq!(bench.handed.lock()[&(0, 3)], 1);
    let tracker = &bench.trackers[0];
    assert_eq!(
        (tracker.completed_records(), tracker.dead_lettered_records()),
        (5, 1)
    );
    assert!(!Tracker::waits(tracker));
}

#[test]
fn a_handler_may_say_dead_letter_at_once() {
    let bench = Bench::new();
    let mut running = bench.start(
        policy(10, OnExhausted::Stop),
        || Outcome::dead_letter("not an order"),
        |_| {},
    );
    assert_eq!(running.work(), None);
    assert_eq!(bench.office.all()[0].attempts, 1);
    assert_eq!(bench.office.all()[0].error, "not an order");
    bench.office.tell_last(Sent::Written);
    running.work();
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
}

#[test]
fn a_rejected_record_becomes_at_once_what_the_policy_says_of_one_that_failed_too_often() {
    for on_exhausted in [
        OnExhausted::DeadLetter,
        OnExhausted::Skip,
        OnExhausted::Stop,
    ] {
        let bench = Bench::new();
        let reject = || Outcome::reject("no order");
        let mut running = bench.start(policy(10, on_exhausted), reject, |_| {});
        let ended = running.work();
        assert_eq!(bench.handed.lock()[&(0, 2)], 1, "{on_exhausted}: once");
        if on_exhausted == OnExhausted::Stop {
            let Some(WorkerExit::EndsRun(reason, WorkerStop::RetriesExhausted)) = ended else {
                panic!("it goes on");
            };
            let told = reason.to_string();
            assert!(told.contains("is not tried again"), "{told}");
            assert!(told.ends_with("no order"), "{told}");
            assert_eq!(bench.watermarks()[0], Some(2));
            continue;
        }
        assert_eq!(ended, None);
        let tracker = &bench.trackers[0];
        if on_exhausted == OnExhausted::DeadLetter {
            let posted = bench.office.all();
            assert_eq!((posted[0].attempts, &*posted[0].error), (1, "no order"));
            bench.office.tell_last(Sent::Written);
            running.work();
            assert_eq!(tracker.dead_lettered_records(), 1);
        } else {
            assert_eq!(tracker.skipped_records(), 1);
        }
        assert_eq!(bench.watermarks(), [Some(5), Some(5)], "{on_exhausted}");
    }
}

#[test]
fn without_a_topic_for_it_dead_letter_ends_the_run_before_the_record() {
    let bench = Bench::new();
    let mut running = bench.start(
        to_dead_letters(),
        || Outcome::dead_letter("no"),
        |context| context.dead_letters = None,
    );
    let Some(WorkerExit::EndsRun(StopReason::RetriesExhausted { offset, error, .. }, _)) =
        running.work()
    else {
        panic!("it goes on");
    };
    assert_eq!(offset, 2);
    assert!(error.contains("dead_letter()"), "{error}");
    assert_eq!(bench.watermarks()[0], Some(2));
}

#[test]
fn s16_a_letter_that_is_not_written_is_tried_again_and_then_ends_the_run_uncommitted() {
    let bench = Bench::new();
    let mut running = bench.start(to_dead_letters(), || Outcome::retry("no"), |_| {});
    assert_eq!(running.work_through_waits(&bench), None);
    // A partition that is not there is no failure, another one is taken.
    bench.office.tell_last(Sent::NoSuchPartition);
    assert_eq!(running.work(), None);
    assert!(bench.office.all()[1].any_partition);
    bench.office.tell_last(Sent::Failed("too old".into()));
    assert_eq!(running.work(), None);
    assert_eq!(bench.office.all().len(), 2, "it waits");
    assert_eq!(running.work_through_waits(&bench), None);
    assert_eq!(bench.office.all().len(), 3);
    bench.office.tell_last(Sent::Failed("too old".into()));
    assert_eq!(running.work_through_waits(&bench), None);
    bench.office.tell_last(Sent::Failed("unknown topic".into()));
    let Some(WorkerExit::EndsRun(reason, WorkerStop::RetriesExhausted)) = running.work() else {
        panic!("it goes on");
    };
    let told = reason.to_string();
    for part in ["orders-0@2", DEAD, "unknown topic", "no"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(bench.watermarks(), [Some(2), Some(5)]);
    assert_eq!(bench.handed.lock()[&(0, 2)], 3, "handled no more often");
}

#[test]
fn s17_nothing_is_sent_of_a_partition_that_is_asked_back() {
    let bench = Bench::new();
    let mailbox = Arc::new(Mailbox::new());
    let mut running = bench.start(
        policy(1, OnExhausted::DeadLetter),
        {
            let mailbox = Arc::clone(&mailbox);
            move || {
                drop(mailbox.release(vec![AssignmentEpoch(1)], ReleaseCause::Revoked));
                Outcome::retry("no")
            }
        },
        |context| context.mailbox = Arc::clone(&mailbox),
    );
    assert_eq!(running.work(), None);
    assert_eq!(bench.office.places(), []);
    let released = running.released();
    assert_eq!(released.len(), 1);
    assert_eq!(bench.watermarks(), [Some(2), Some(5)]);
}

#[test]
fn s17_a_revoke_waits_for_a_letter_that_is_on_its_way_and_a_loss_takes_it_back() {
    for (cause, sent, watermark, recalls) in [
        (ReleaseCause::Revoked, Some(Sent::Written), 3, 0),
        (ReleaseCause::Revoked, Some(Sent::Failed("x".into())), 2, 0),
        (ReleaseCause::Revoked, None, 2, 1),
        (ReleaseCause::Lost, None, 2, 1),
        (ReleaseCause::Lost, Some(Sent::Written), 2, 1),
    ] {
        let bench = Bench::new();
        let mut running = bench.start(
            policy(1, OnExhausted::DeadLetter),
            || Outcome::retry("no"),
            |_| {},
        );
        assert_eq!(running.work(), None);
        let delivery = Arc::clone(&bench.office.all()[0].delivery);
        let told = sent.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || told.map(|sent| delivery.tell(sent)));
            running.ask_back(&[0], cause);
            assert_eq!(running.work(), None);
        });
        assert_eq!(running.released().len(), 1, "{cause:?}");
        // A loss may find it written or not: that is not its lane any more.
        if cause == ReleaseCause::Revoked {
            assert_eq!(bench.watermarks()[0], Some(watermark), "{sent:?}");
            assert_eq!(*bench.office.recalls.lock(), recalls, "{sent:?}");
        } else {
            assert!(*bench.office.recalls.lock() <= recalls);
        }
        assert_eq!(bench.office.places(), [(0, 2)]);
    }
}

#[test]
fn a_letter_that_is_on_its_way_goes_with_its_lane_and_is_not_written_twice() {
    let bench = Bench::new();
    let policy = policy(1, OnExhausted::DeadLetter);
    let mut first = bench.start(policy, || Outcome::retry("no"), |_| {});
    assert_eq!(first.work(), None);
    first.ask_back(&[0], ReleaseCause::Moved);
    assert_eq!(first.work(), None);
    let (_, failed) = first.released().pop().expect("the lane");
    let mut second = bench.start(policy, || Outcome::retry("no"), |_| {});
    // As the member hands it over: that lane alone.
    second.ask_back(&[0, 1], ReleaseCause::Moved);
    second.hand(&bench, 0, failed);
    assert_eq!(second.work(), None);
    assert_eq!(bench.office.places(), [(0, 2)]);
    bench.office.tell_last(Sent::Written);
    assert_eq!(second.work(), None);
    assert_eq!(bench.office.places(), [(0, 2)]);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
}

#[test]
fn a_record_whose_handler_panics_is_written_by_the_successor() {
    let bench = Bench::new();
    let policy = policy(1, OnExhausted::DeadLetter);
    let mut first = bench.start(policy, || panic!("never again"), |_| {});
    let exit = first.work().expect("it ends");
    assert!(matches!(exit, WorkerExit::Failed(_)), "{exit:?}");
    let (_, lanes) = first.worker.finish(exit);
    let failed = lanes
        .into_iter()
        .find_map(|(epoch, failed)| (epoch == AssignmentEpoch(1)).then_some(failed)?);
    let mut second = bench.start(policy, || panic!("again"), |_| {});
    second.ask_back(&[0], ReleaseCause::Moved);
    second.hand(&bench, 0, failed);
    assert_eq!(second.work(), None);
    assert_eq!(bench.office.places(), [(0, 2)]);
    let error = &bench.office.all()[0].error;
    assert_eq!(error, "the handler panicked: never again");
    bench.office.tell_last(Sent::Written);
    assert_eq!(second.work(), None);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
}

#[test]
fn the_rest_of_what_failed_may_be_gone_when_its_turn_comes() {
    let bench = Bench::new();
    let mut running = bench.start(
        policy(1, OnExhausted::DeadLetter),
        || Outcome::retry("no"),
        |_| {},
    );
    assert_eq!(running.work(), None);
    bench.office.tell_last(Sent::Recalled);
    bench.log.remove(&TopicPartition::new(TOPIC, 0), 2);
    assert_eq!(running.work(), None);
    assert_eq!(bench.office.places(), [(0, 2)]);
    assert_eq!(bench.watermarks(), [Some(5), Some(5)]);
    assert!(!Tracker::waits(&bench.trackers[0]));
}

#[test]
fn s15_by_policy_a_record_that_failed_as_often_as_allowed_is_skipped() {
    for handler_panics in [false, true] {
        let bench = Bench::new();
        let policy = policy(2, OnExhausted::Skip);
        let mut running = bench.start(
            policy,
            move || {
                assert!(!handler_panics, "no");
                Outcome::retry("no")
            },
            |_| {},
        );
        let mut exit = running.work_through_waits(&bench);
        while let Some(WorkerExit::Failed(why)) = exit {
            let ended = WorkerExit::Failed(why);
            let (_, lanes) = running.worker.finish(ended);
            running = bench.start(policy, || Outcome::retry("no"), |_| {});
            running.ask_back(&[0, 1], ReleaseCause::Moved);
            for (epoch, failed) in lanes {
                let number = usize::try_from(epoch.0 - 1).expect("small");
                running.hand(&bench, number, failed);
            }
            exit = running.work_through_waits(&bench);
        }
        assert_eq!(exit, None);
        assert_eq!(bench.watermarks(), [Some(5), Some(5)], "{handler_panics}");
        let tracker = &bench.trackers[0];
        assert_eq!(
            (tracker.completed_records(), tracker.skipped_records()),
            (5, 1)
        );
        assert_eq!(bench.handed.lock()[&(0, 2)], 2);
    }
}
