//! Ticks on a manual clock, without a thread.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::lag::Advice;
use crate::record::AssignmentEpoch;
use crate::runtime::shared::Partitions;
use crate::worker::tracker::Tracker;

/// Brokers that answer what they are told to, and remember what they were
/// asked.
#[derive(Clone, Default)]
struct Brokers(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    ends: BTreeMap<TopicPartition, ToldEnds>,
    asked: Vec<Vec<TopicPartition>>,
    /// Done while the question is under way.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

impl EndFinder for Brokers {
    fn ask(
        &mut self,
        partitions: &[TopicPartition],
        _with_log_start: bool,
        _deadline: Instant,
        tell: &mut dyn FnMut(usize, ToldEnds),
    ) -> u64 {
        let mut script = self.0.lock();
        script.asked.push(partitions.to_vec());
        if let Some(meanwhile) = script.meanwhile.take() {
            meanwhile();
        }
        let mut failed = 0;
        for (index, partition) in partitions.iter().enumerate() {
            match script.ends.get(partition) {
                Some(told) => tell(index, *told),
                None => failed += 1,
            }
        }
        failed
    }
}

fn tp(number: i32) -> TopicPartition {
    TopicPartition::new("t", number)
}

struct Scene {
    clock: Clock,
    shared: Arc<Shared>,
    brokers: Brokers,
    reporter: Reporter,
    owned: Partitions,
    seen: Arc<Mutex<Vec<Vec<i32>>>>,
}

impl Scene {
    fn new() -> Self {
        let clock = Clock::manual();
        let (shared, rings) = Shared::new(clock.coarse());
        let shared = Arc::new(shared);
        let brokers = Brokers::default();
        let seen: Arc<Mutex<Vec<Vec<i32>>>> = Arc::default();
        let noted = Arc::clone(&seen);
        let reporter = Reporter::new(ReporterParts {
            group: Arc::from("g"),
            client_id: Arc::from("c"),
            isolation: Isolation::ReadCommitted,
            model: Model::Threads,
            hands: Hands {
                each: 1,
                by_partition: true,
            },
            clock: clock.clone(),
            shared: Arc::clone(&shared),
            rings,
            ends: Box::new(brokers.clone()),
            failures: Arc::default(),
            events: EventSink::unobserved(clock.clone()),
            stuck_after: Duration::from_mins(5),
            stall_after: Duration::from_secs(20),
            viewers: vec![Box::new(move |snapshot| {
                noted.lock().push(numbers(snapshot));
            })],
        });
        Self {
            clock,
            shared,
            brokers,
            reporter,
            owned: Vec::new(),
            seen,
        }
    }

    /// Owns these partitions, those that are new from position 0 on.
    fn own(&mut self, partitions: &[i32]) {
        self.owned
            .retain(|(partition, _)| partitions.contains(&partition.partition()));
        for &number in partitions {
            if !self.owned.iter().any(|(owned, _)| *owned == tp(number)) {
                self.owned.push((tp(number), begun(1, 0)));
            }
        }
        self.owned.sort_by(|a, b| a.0.cmp(&b.0));
        self.shared.set_owned(self.owned.clone());
    }

    fn replace(&mut self, number: i32, tracker: &Arc<Tracker>) {
        for (partition, owned) in &mut self.owned {
            if *partition == tp(number) {
                *owned = Arc::clone(tracker);
            }
        }
        self.shared.set_owned(self.owned.clone());
    }

    fn tracker(&self, number: i32) -> Arc<Tracker> {
        let found = self.owned.iter().find(|(owned, _)| *owned == tp(number));
        Arc::clone(&found.unwrap().1)
    }

    fn fetched(&self, number: i32, end_offset: i64) {
        self.tracker(number)
            .saw_ends(end_offset, 0, self.clock.coarse());
    }

    fn tick(&mut self) -> Arc<LagSnapshot> {
        self.clock.advance(TICK);
        self.shared.turned(self.clock.coarse());
        self.reporter.tick();
        self.shared.board.latest()
    }

    fn asked(&self) -> Vec<Vec<TopicPartition>> {
        std::mem::take(&mut self.brokers.0.lock().asked)
    }
}

fn begun(owned_since: u64, position: i64) -> Arc<Tracker> {
    let tracker = Tracker::new(AssignmentEpoch(owned_since));
    tracker.begin(position);
    Arc::new(tracker)
}

fn numbers(snapshot: &LagSnapshot) -> Vec<i32> {
    snapshot
        .partitions
        .iter()
        .map(|partition| partition.partition.partition())
        .collect()
}

#[test]
fn only_end_offsets_that_are_a_second_old_are_asked_for() {
    let mut scene = Scene::new();
    scene.own(&[0, 1]);
    scene.clock.advance(Duration::from_millis(500));
    scene.fetched(1, 30);
    scene.brokers.0.lock().ends.insert(
        tp(0),
        ToldEnds {
            end_offset: 40,
            log_start: 3,
        },
    );
    scene.clock.advance(Duration::from_millis(400));
    scene.reporter.tick();
    assert_eq!(scene.asked(), [vec![tp(0)]]);
    let snapshot = scene.shared.board.latest();
    let (first, second) = (&snapshot.partitions[0], &snapshot.partitions[1]);
    assert_eq!((first.records_lag, first.log_start), (Some(40), Some(3)));
    assert_eq!(first.end_offset_age, Some(Duration::ZERO));
    assert_eq!(second.records_lag, Some(30));
    assert_eq!(second.end_offset_age, Some(Duration::from_millis(400)));
}

#[test]
fn a_broker_that_does_not_answer_makes_end_offsets_old_and_nothing_else() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    scene.fetched(0, 25);
    for _ in 0..5 {
        scene.tick();
    }
    let snapshot = scene.shared.board.latest();
    let partition = &snapshot.partitions[0];
    assert_eq!(partition.records_lag, Some(25));
    assert_eq!(partition.end_offset_age, Some(Duration::from_secs(5)));
    assert_eq!(snapshot.end_offset_errors, 5);
    assert!(snapshot.health.is_live());
}

#[test]
fn what_is_not_known_is_not_zero() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    scene.replace(0, &Arc::new(Tracker::new(AssignmentEpoch(1))));
    let snapshot = scene.tick();
    let partition = &snapshot.partitions[0];
    let known = [
        partition.records_lag,
        partition.records_lag_max,
        partition.records_lead,
        partition.committed_lag,
    ];
    assert_eq!(known, [None; 4]);
    assert_eq!(partition.records_lag_avg, None);
    assert_eq!(partition.time_lag, None);
    assert_eq!(snapshot.total_lag(), None);
}

#[test]
fn an_assignment_that_changes_while_brokers_are_asked_is_shown_as_it_is_then() {
    let mut scene = Scene::new();
    scene.own(&[0, 1, 2]);
    scene.tick();
    let left: Partitions = scene.owned.iter().skip(1).cloned().collect();
    let shared = Arc::clone(&scene.shared);
    scene.brokers.0.lock().meanwhile = Some(Box::new(move || shared.set_owned(left)));
    assert_eq!(numbers(&scene.tick()), [1, 2]);
    assert_eq!(scene.seen.lock().last(), Some(&vec![1, 2]));
}

#[test]
fn a_partition_that_comes_back_between_two_ticks_begins_its_windows_anew() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    scene.fetched(0, 1_000);
    assert_eq!(scene.tick().partitions[0].records_lag_max, Some(1_000));
    scene.replace(0, &begun(2, 990));
    scene.fetched(0, 1_000);
    assert_eq!(scene.tick().partitions[0].records_lag_max, Some(10));
}

#[test]
fn a_seek_keeps_the_windows() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    scene.fetched(0, 1_000);
    scene.tick();
    scene.replace(0, &begun(1, 990));
    scene.fetched(0, 1_000);
    let snapshot = scene.tick();
    assert_eq!(snapshot.partitions[0].records_lag, Some(10));
    assert_eq!(snapshot.partitions[0].records_lag_max, Some(1_000));
}

#[test]
fn the_maximum_of_what_a_worker_saw_between_two_ticks_is_not_lost() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    let tracker = scene.tracker(0);
    scene.fetched(0, 500);
    tracker.turn_ends(0);
    tracker.crossed(500);
    tracker.turn_ends(0);
    let snapshot = scene.tick();
    let partition = &snapshot.partitions[0];
    assert_eq!(partition.records_lag, Some(0));
    assert_eq!(partition.records_lag_max, Some(500));
    // Twice by the worker, once by the tick.
    let mean = partition.records_lag_avg.unwrap();
    assert!((mean - 500.0 / 3.0).abs() < 1e-9, "{mean}");
}

#[test]
fn what_a_handler_completes_after_its_partition_was_given_up_is_counted_as_discarded() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    let tracker = scene.tracker(0);
    tracker.set_worker(Some(0));
    tracker.handed_over(0, 0);
    tracker.completed(0);
    tracker.handed_over(1, 0);
    scene.tick();
    tracker.give_up();
    scene.own(&[]);
    scene.tick();
    tracker.completed(1);
    tracker.set_worker(None);
    let snapshot = scene.tick();
    let outcomes: Vec<_> = snapshot.topics[0]
        .outcomes
        .iter()
        .map(|totals| (totals.outcome, totals.records))
        .collect();
    assert_eq!(outcomes, [("done", 1), ("discarded", 1)]);
    assert_eq!(snapshot.topics[0].records, 2);
    assert!(scene.reporter.departed.is_empty(), "nobody is in it now");
}

#[test]
fn s21_a_member_whose_loop_is_held_up_is_reported_once_and_counted_at_each_tick() {
    let mut scene = Scene::new();
    scene.shared.set_phase(Phase::Joined);
    scene.tick();
    for _ in 0..25 {
        scene.clock.advance(TICK);
        scene.reporter.tick();
    }
    let snapshot = scene.shared.board.latest();
    assert_eq!(snapshot.member_stalls, 6);
    assert!(snapshot.health.is_live(), "it may come back");
    scene.clock.advance(Duration::from_mins(5));
    scene.reporter.tick();
    let reasons = &scene.shared.board.latest().health.not_live;
    assert!(reasons[0].contains("has not turned"), "{reasons:?}");
    let snapshot = scene.tick();
    assert!(snapshot.health.is_live());
    assert_eq!(snapshot.member_stalls, 7);
}

#[test]
fn a_recorder_that_panics_is_told_nothing_more_and_the_ticks_go_on() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    scene.reporter.parts.viewers.insert(
        0,
        Box::new(move |_| {
            *count.lock() += 1;
            panic!("a bug in a recorder");
        }),
    );
    scene.tick();
    assert_eq!(numbers(&scene.tick()), [0]);
    assert_eq!(*told.lock(), 1);
    assert_eq!(scene.seen.lock().len(), 2, "the others see every tick");
}

#[test]
fn a_run_that_has_ended_is_not_live() {
    let mut scene = Scene::new();
    scene.own(&[0]);
    drop(crate::runtime::shared::EndsRun(Arc::clone(&scene.shared)));
    let snapshot = scene.tick();
    assert_eq!(numbers(&snapshot), [0; 0]);
    assert!(!snapshot.health.is_live() && !snapshot.health.is_ready());
}

/// A reporter of that many partitions, each with records on their way.
fn busy(partitions: i32) -> Scene {
    let mut scene = Scene::new();
    scene.shared.set_phase(Phase::Joined);
    scene.own(&(0..partitions).collect::<Vec<_>>());
    for (number, (_, tracker)) in scene.owned.iter().enumerate() {
        tracker.set_worker(Some(number % 8));
        tracker.set_committed(Some(0));
    }
    scene
}

fn work(scene: &Scene, round: i64) {
    for (_, tracker) in &scene.owned {
        tracker.saw_ends(round * 10 + 20, 0, scene.clock.coarse());
        tracker.turn_begins();
        tracker.handed_over(round * 10, 1_700_000_000_000);
        tracker.completed(round * 10);
        tracker.times.done.add(1, Duration::from_micros(30));
        tracker.turn_ends(100);
    }
}

/// Alone in its process, since the allocator is everybody's:
/// `scripts/test` runs it so.
#[test]
#[ignore = "counts the allocations of its whole process"]
fn a_tick_of_a_thousand_partitions_allocates_nothing() {
    let mut scene = busy(1_000);
    scene.seen.lock().reserve(1_000);
    scene.reporter.parts.viewers.clear();
    let mut allocations = 0;
    for round in 0..120 {
        scene.clock.advance(TICK);
        work(&scene, round);
        scene.shared.turned(scene.clock.coarse());
        let region = stats_alloc::Region::new(crate::ALLOCATOR);
        scene.reporter.tick();
        if round >= 5 {
            let change = region.change();
            allocations += change.allocations + change.reallocations;
        }
    }
    assert_eq!(allocations, 0, "in 115 ticks");
}

/// ```text
/// cargo test --release -p keepup --lib -- --ignored --nocapture cost_of_a_tick
/// ```
#[test]
#[ignore = "a measurement"]
fn cost_of_a_tick() {
    for partitions in [1_000, 10_000] {
        let mut scene = busy(partitions);
        let mut took = Vec::new();
        for round in 0..60 {
            scene.clock.advance(TICK);
            work(&scene, round);
            let began = Clock::System.now();
            scene.reporter.tick();
            took.push(began.elapsed());
        }
        took.sort();
        println!(
            "{partitions} partitions: median {:?}, slowest {:?}",
            took[took.len() / 2],
            took[took.len() - 1]
        );
    }
}

#[test]
fn a_reporter_that_panics_leaves_no_number_behind_and_a_process_that_says_so() {
    let mut scene = Scene::new();
    scene.own(&[0, 1]);
    scene.reporter.tick();
    assert_eq!(scene.shared.board.latest().partitions.len(), 2);
    scene.shared.set_phase(Phase::Joined);
    scene.brokers.0.lock().meanwhile = Some(Box::new(|| panic!("planted")));
    let (_stop, stopped) = bounded::<()>(0);
    let shared = Arc::clone(&scene.shared);
    // It ticks at once, and ends by that.
    report_or_say_so(scene.reporter, &stopped);
    let seen = shared.board.latest();
    assert!(!seen.health.is_live());
    let why = &seen.health.not_live[0];
    assert!(why.contains("keepup-reporter panicked: planted"), "{why}");
    assert_eq!(seen.partitions, [], "nothing that stands still is shown");
    assert_eq!(seen.reporter_failures, 1);
    assert_eq!(shared.reported_ago(scene.clock.coarse()), None);
}

#[test]
fn a_thread_that_broke_beside_the_run_is_a_reason_not_to_be_live() {
    let mut scene = Scene::new();
    scene.shared.set_phase(Phase::Joined);
    scene.reporter.tick();
    assert!(scene.shared.board.latest().health.is_live());
    scene.shared.set_broken("nobody answers");
    scene.reporter.look_again();
    let seen = scene.shared.board.latest();
    assert_eq!(seen.health.not_live, ["nobody answers"]);
    assert!(seen.health.is_ready(), "records are consumed all the same");
}

#[test]
fn the_advice_comes_from_what_trackers_say_and_goes_with_what_is_owned() {
    let mut scene = Scene::new();
    let up = |worker| WorkerSlot {
        worker,
        pid: None,
        state: WorkerState::Running,
        restarts: 0,
    };
    scene.shared.set_slots(vec![up(0), up(1)]);
    scene.own(&[0, 1, 2, 3]);
    let mut end = 0;
    let mut second = |scene: &mut Scene| {
        // 30 records a second in each partition, of 20 ms: 2.4 workers are in handlers.
        for number in 0..4 {
            let tracker = scene.tracker(number);
            for offset in end..end + 30 {
                tracker.handed_over(offset, 1);
                tracker.completed(offset);
            }
            tracker.times.done.add(30, Duration::from_millis(600));
            tracker.turn_ends(300);
            scene.fetched(number, end + 30);
        }
        end += 30;
        scene.tick()
    };
    for _ in 0..30 {
        assert_eq!(second(&mut scene).advice, Advice::default());
    }
    let advice = second(&mut scene).advice;
    assert_eq!(
        (advice.workers, advice.partitions_needed, advice.catch_up),
        (Some(3), None, Some(Duration::ZERO))
    );
    // Between two ticks it is what the last one found.
    scene.reporter.look_again();
    assert_eq!(scene.shared.board.latest().advice, advice);
    scene.own(&[0, 1]);
    scene.reporter.look_again();
    assert_eq!(scene.shared.board.latest().advice, Advice::default());
}
