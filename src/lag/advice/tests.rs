//! Loads that are simulated: records come, workers take them, the clock is a
//! number.

use super::*;

/// What the right number is by the load's own figures, without what is measured.
fn right(rate: f64, cost: f64, lag: f64) -> usize {
    let with_reserve = rate * cost / 0.8;
    let with_the_lag = (rate + lag / 300.0) * cost;
    whole(with_reserve.max(with_the_lag))
}

struct Scene {
    seed: u64,
    random: fastrand::Rng,
    adviser: Adviser,
    second: u64,
    generation: u64,
    /// Records per second, seconds per record, and by how much both waver.
    rate: f64,
    cost: f64,
    noise: f64,
    workers: usize,
    /// Whether the workers are made as many as is advised, after so many seconds.
    follows: bool,
    partitions: Vec<Seen>,
    /// Parts of records that have come and that were worked on.
    came: f64,
    worked: f64,
    told: Vec<Option<usize>>,
}

impl Scene {
    fn new(workers: usize, rate: f64, cost: f64) -> Self {
        Self::with(
            Hands {
                each: 1,
                by_partition: false,
            },
            workers,
            rate,
            cost,
        )
    }

    fn with(hands: Hands, workers: usize, rate: f64, cost: f64) -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            adviser: Adviser::new(hands),
            second: 1_000,
            generation: 1,
            rate,
            cost,
            noise: 0.0,
            workers,
            follows: false,
            partitions: (0..4).map(fresh).collect(),
            came: 0.0,
            worked: 0.0,
            told: Vec::new(),
        }
    }

    fn wavering(&mut self, value: f64) -> f64 {
        value * (1.0 + self.noise * (2.0 * self.random.f64() - 1.0))
    }

    /// One second of it.
    fn second(&mut self) -> Advice {
        self.second += 1;
        self.came += self.wavering(self.rate);
        let cost = self.wavering(self.cost);
        let hands = self.workers * self.adviser.hands.each;
        let could = float(hands as u64) / cost;
        let count = self.partitions.len();
        while self.came >= 1.0 {
            self.came -= 1.0;
            let index = self.random.usize(..count);
            let end = self.partitions[index].end_offset.as_mut();
            *end.unwrap() += 1;
        }
        self.worked += could;
        let (mut index, mut idle) = (0, 0);
        while self.worked >= 1.0 && idle < count {
            let partition = &mut self.partitions[index];
            index = (index + 1) % count;
            if partition.paused || partition.lag() == Some(0) {
                idle += 1;
                continue;
            }
            idle = 0;
            self.worked -= 1.0;
            *partition.position.as_mut().unwrap() += 1;
            partition.handed += 1;
            partition.completed += 1;
            partition.ended_calls += Duration::from_secs_f64(cost);
        }
        // What nobody needed is not saved up.
        self.worked = self.worked.min(1.0);
        let now = Coarse::from_millis(self.second * 1_000);
        let seen = self.partitions.clone().into_iter();
        self.adviser.tick(now, self.generation, self.workers, seen);
        let advice = self.adviser.advice();
        self.told.push(advice.workers);
        if let (true, Some(workers)) = (
            self.follows && self.second.is_multiple_of(20),
            advice.workers,
        ) {
            self.workers = workers;
        }
        advice
    }

    fn seconds(&mut self, seconds: usize) -> Advice {
        for _ in 1..seconds {
            self.second();
        }
        self.second()
    }

    fn lag(&self) -> f64 {
        let lags = self.partitions.iter().filter_map(Seen::lag);
        float(lags.sum::<i64>().unsigned_abs())
    }

    /// Two minutes after the load changed the advice is right within a worker, or
    /// within the tolerance where that is more, and changes once more at most in
    /// the five after.
    fn settles(&mut self) -> usize {
        self.seconds(120);
        let from = self.told.len();
        let right = right(self.rate, self.cost, self.lag());
        let told = self.told[from - 1].unwrap();
        assert!(
            told.abs_diff(right) <= right.div_ceil(10),
            "told {told}, right {right}; seed {}: {:?}",
            self.seed,
            self.told
        );
        self.seconds(300);
        let changes = self.told[from..].windows(2).filter(|of| of[0] != of[1]);
        let changes = changes.count();
        assert!(
            changes <= 1,
            "{changes} changes; seed {}: {:?}",
            self.seed,
            self.told
        );
        told
    }
}

fn fresh(number: i32) -> Seen {
    Seen {
        partition: TopicPartition::new("t", number),
        paused: false,
        end_offset: Some(0),
        position: Some(0),
        handed: 0,
        completed: 0,
        ended_calls: Duration::ZERO,
        in_hand: Duration::ZERO,
    }
}

#[test]
fn nothing_is_said_of_less_than_thirty_seconds() {
    let mut scene = Scene::new(2, 100.0, 0.01);
    assert_eq!(scene.seconds(30), Advice::default());
    let advice = scene.second();
    assert_eq!(advice.workers, Some(2));
    assert_eq!(advice.catch_up, Some(Duration::ZERO));
    let busy = advice.busy.unwrap();
    assert!((0.45..0.55).contains(&busy), "{busy}");
}

#[test]
fn a_steady_load_that_wavers_by_a_third_is_told_one_number() {
    for rate in [40.0, 150.0, 161.0, 320.0, 2_000.0] {
        let mut scene = Scene::new(30, rate, 0.01);
        scene.noise = 0.3;
        scene.settles();
    }
}

#[test]
fn twice_what_the_workers_can_do_and_then_half_of_it() {
    let mut scene = Scene::new(2, 800.0, 0.005);
    scene.noise = 0.3;
    scene.seconds(120);
    let told = scene.told.last().unwrap().unwrap();
    assert!((4..=6).contains(&told), "{told}; seed {}", scene.seed);
    // The lag is worked off by as many as are advised, and there it stays.
    scene.follows = true;
    scene.seconds(600);
    assert!(
        scene.lag() < 1_600.0,
        "{}; seed {}",
        scene.lag(),
        scene.seed
    );
    scene.settles();
    scene.rate = 200.0;
    assert!(scene.settles() <= 2, "seed {}", scene.seed);
}

#[test]
fn a_ramp_is_followed_up_without_a_step_back() {
    let mut scene = Scene::new(20, 50.0, 0.01);
    scene.noise = 0.1;
    for _ in 0..300 {
        scene.rate += 3.0;
        scene.second();
    }
    let known: Vec<_> = scene.told.iter().flatten().copied().collect();
    assert!(known.is_sorted(), "{known:?}; seed {}", scene.seed);
    scene.settles();
}

#[test]
fn a_burst_of_a_few_seconds_changes_nothing() {
    let mut scene = Scene::new(4, 200.0, 0.01);
    let told = scene.settles();
    scene.rate = 600.0;
    scene.seconds(5);
    scene.rate = 200.0;
    scene.settles();
    let after = &scene.told[420..];
    assert!(after.iter().all(|now| *now == Some(told)), "{after:?}");
}

#[test]
fn without_a_record_one_worker_is_enough_and_a_load_after_that_is_seen() {
    let mut scene = Scene::new(4, 0.0, 0.01);
    let advice = scene.seconds(60);
    assert_eq!((advice.workers, advice.busy), (Some(1), Some(0.0)));
    scene.rate = 330.0;
    scene.settles();
}

#[test]
fn a_lag_that_stands_still_wants_more_than_the_workers_there_are() {
    let mut scene = Scene::new(2, 200.0, 0.01);
    scene.partitions[0].end_offset = Some(30_000);
    let advice = scene.seconds(150);
    let busy = advice.busy.unwrap();
    assert!(busy > 0.95, "{busy}");
    // What comes takes two workers, and the lag one within five minutes.
    assert_eq!(advice.workers, Some(3));
    scene.workers = 3;
    let advice = scene.seconds(60);
    let left = advice.catch_up.unwrap().as_secs_f64();
    let right = scene.lag() / 100.0;
    assert!((left - right).abs() < right * 0.2, "{left}, right {right}");
}

#[test]
fn in_partition_order_there_are_no_more_workers_than_partitions() {
    let hands = Hands {
        each: 1,
        by_partition: true,
    };
    let mut scene = Scene::with(hands, 4, 560.0, 0.01);
    let advice = scene.seconds(40);
    assert_eq!(advice.workers, Some(4));
    let needed = advice.partitions_needed.unwrap();
    assert!((6..=8).contains(&needed), "{needed}");
    scene.rate = 100.0;
    for partition in &mut scene.partitions {
        partition.position = partition.end_offset;
    }
    scene.generation += 1;
    let advice = scene.seconds(130);
    assert_eq!((advice.workers, advice.partitions_needed), (Some(2), None));
}

#[test]
fn a_worker_with_many_futures_counts_as_many() {
    let hands = Hands {
        each: 100,
        by_partition: false,
    };
    let mut scene = Scene::with(hands, 1, 2_000.0, 0.1);
    let advice = scene.seconds(120);
    assert!(matches!(advice.workers, Some(3..=4)), "{advice:?}");
}

#[test]
fn other_partitions_make_the_past_worthless_and_a_seek_does_not() {
    let mut scene = Scene::new(8, 400.0, 0.01);
    scene.seconds(60);
    // A seek: the counters begin anew.
    scene.generation += 1;
    for partition in &mut scene.partitions {
        partition.handed = 0;
        partition.completed = 0;
        partition.ended_calls = Duration::ZERO;
    }
    assert_eq!(scene.second().workers, Some(5));
    scene.partitions.truncate(2);
    scene.generation += 1;
    scene.rate = 200.0;
    assert_eq!(scene.second(), Advice::default());
    scene.settles();
}

#[test]
fn what_is_paused_does_not_count_and_where_all_is_nothing_is_said() {
    let mut scene = Scene::new(8, 400.0, 0.01);
    scene.partitions[0].paused = true;
    scene.partitions[0].end_offset = Some(1_000_000);
    let advice = scene.seconds(60);
    assert_eq!(advice.workers, Some(4), "three quarters of it");
    for partition in &mut scene.partitions {
        partition.paused = true;
    }
    assert_eq!(scene.second(), Advice::default());
}

#[test]
fn a_record_that_is_not_finished_counts_as_busy_and_leaves_the_number_unknown() {
    let mut scene = Scene::new(1, 0.0, 0.01);
    scene.partitions[0].end_offset = Some(10);
    scene.workers = 0;
    scene.seconds(10);
    scene.workers = 1;
    // Nobody takes more: the simulation's own worker has too little time.
    scene.cost = 1e9;
    for second in 0..60 {
        scene.partitions[0].in_hand = Duration::from_secs(second);
        scene.second();
    }
    let advice = scene.adviser.advice();
    assert_eq!((advice.workers, advice.catch_up), (None, None));
    assert!(advice.busy.unwrap() > 0.9, "{advice:?}");
}

#[test]
fn offsets_without_a_record_are_no_load() {
    let mut scene = Scene::new(8, 0.0, 0.01);
    for _ in 0..60 {
        for partition in &mut scene.partitions {
            // Half of it markers.
            *partition.end_offset.as_mut().unwrap() += 200;
            *partition.position.as_mut().unwrap() += 200;
            partition.handed += 100;
            partition.completed += 100;
            partition.ended_calls += Duration::from_secs(1);
        }
        scene.second();
    }
    // Four hundred records a second of 10 ms.
    assert_eq!(scene.adviser.advice().workers, Some(5));
}

#[test]
fn a_gap_between_two_ticks_is_not_compared() {
    let mut scene = Scene::new(8, 400.0, 0.01);
    scene.seconds(60);
    scene.second += 20;
    for partition in &mut scene.partitions {
        *partition.end_offset.as_mut().unwrap() += 100_000;
        *partition.position.as_mut().unwrap() += 100_000;
    }
    assert_eq!(scene.second().workers, Some(5));
}
