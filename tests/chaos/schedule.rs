//! What is done to a group, and when: drawn from a seed before anything starts, so that the seed repeats it.

use std::ops::Range;
use std::time::Duration;

/// How a group is ill-treated.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// How long.
    pub(crate) time: Duration,
    /// Members at most at once.
    pub(crate) members: usize,
    /// Milliseconds from one member that comes or goes to the next.
    pub(crate) toggles: Range<u64>,
    /// Milliseconds from one kill to the next: a group that waits for the session of a member that was killed does
    /// nothing else, so that they cannot come as thick as the rest.
    pub(crate) kills: Range<u64>,
    /// Milliseconds from one stop (SIGSTOP) to the next.
    pub(crate) freezes: Range<u64>,
    /// How long a member stays stopped.
    pub(crate) frozen: Duration,
    /// Milliseconds from one worker process that is killed or stopped to the next, where workers are processes.
    pub(crate) worker_kills: Option<Range<u64>>,
    /// Milliseconds from one seek to the next.
    pub(crate) seeks: Range<u64>,
    /// How long before the end nothing more is done, but that those that are stopped go on: where something stands still
    /// though nothing is wrong, it is seen then.
    pub(crate) calm: Duration,
    /// How often the broker goes and comes back.
    pub(crate) restarts: u32,
    /// How many partitions there are at first, and after each growth, which are spread over the time.
    pub(crate) partitions: Vec<i32>,
}

/// Something that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A member starts in an empty place; the number is for what else is chosen of it.
    Start(usize, u64),
    /// SIGTERM.
    Leave(usize),
    /// SIGKILL.
    Kill(usize),
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// SIGKILL to one of a member's workers, or SIGSTOP for good; the number chooses which.
    KillWorker {
        place: usize,
        choice: u64,
        stopped: bool,
    },
    /// A member that is steered seeks backwards in one of its partitions.
    Seek(usize),
    /// The broker is ended (killed, or asked to) and started again.
    RestartBroker { killed: bool },
    /// The topic has that many partitions from now on.
    Grow(i32),
}

/// An action and its time, from the start on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) action: Action,
}

/// What is in the place of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Empty,
    Running,
    Frozen,
}

/// Whether the member of that choice is one that is steered; every other is.
pub(crate) fn is_steered(choice: u64) -> bool {
    choice.is_multiple_of(2)
}

/// When what comes again and again is due.
struct Due {
    every: Range<u64>,
    at: u64,
}

impl Due {
    fn new(every: &Range<u64>, random: &mut fastrand::Rng) -> Self {
        Self {
            every: every.clone(),
            at: random.u64(every.clone()),
        }
    }

    /// Whether it is; then the next time is drawn.
    fn is_due(&mut self, now: u64, random: &mut fastrand::Rng) -> bool {
        let is_due = now >= self.at;
        if is_due {
            self.at = now + random.u64(self.every.clone());
        }
        is_due
    }
}

/// Draws the whole of it. Half of the places are taken at the start; one member at least is always running.
pub(crate) fn draw(shape: &Shape, seed: u64) -> Vec<Step> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut places = vec![Place::Empty; shape.members];
    let mut are_steered = vec![false; shape.members];
    let mut steps: Vec<Step> = Vec::new();
    for number in 0..shape.members.div_ceil(2) {
        let choice = random.u64(..);
        places[number] = Place::Running;
        are_steered[number] = is_steered(choice);
        push(&mut steps, 0, Action::Start(number, choice));
    }
    let end = millis(shape.time.saturating_sub(shape.calm));
    let mut thaws: Vec<(u64, usize)> = Vec::new();
    let mut kill = Due::new(&shape.kills, random);
    let mut freeze = Due::new(&shape.freezes, random);
    let mut seek_due = Due::new(&shape.seeks, random);
    let worker_kills = shape.worker_kills.as_ref();
    let mut worker_kill = worker_kills.map(|every| Due::new(every, random));
    let mut now = 0;
    loop {
        now += random.u64(shape.toggles.clone());
        if now >= end {
            break;
        }
        for (at, number) in thaws.extract_if(.., |(at, _)| *at <= now) {
            places[number] = Place::Running;
            push(&mut steps, at, Action::Thaw(number));
        }
        if seek_due.is_due(now, random) {
            let may = |number: &usize| places[*number] == Place::Running && are_steered[*number];
            let whom: Vec<usize> = (0..places.len()).filter(may).collect();
            if let Some(number) = random.choice(whom) {
                push(&mut steps, now, Action::Seek(number));
            }
        }
        if let Some(due) = &mut worker_kill
            && due.is_due(now, random)
        {
            let running = (0..places.len()).filter(|&place| places[place] == Place::Running);
            if let Some(place) = random.choice(running.collect::<Vec<_>>()) {
                let kill = Action::KillWorker {
                    place,
                    choice: random.u64(..),
                    stopped: random.u8(..4) == 0,
                };
                push(&mut steps, now, kill);
            }
        }
        let number = random.usize(..places.len());
        let running = places
            .iter()
            .filter(|place| **place == Place::Running)
            .count();
        let action = match places[number] {
            Place::Frozen => continue,
            Place::Empty => {
                let choice = random.u64(..);
                places[number] = Place::Running;
                are_steered[number] = is_steered(choice);
                Action::Start(number, choice)
            }
            Place::Running if running == 1 => continue,
            Place::Running => {
                let thaw = now + millis(shape.frozen);
                if thaw < end && freeze.is_due(now, random) {
                    places[number] = Place::Frozen;
                    thaws.push((thaw, number));
                    Action::Freeze(number)
                } else {
                    places[number] = Place::Empty;
                    if kill.is_due(now, random) {
                        Action::Kill(number)
                    } else {
                        Action::Leave(number)
                    }
                }
            }
        };
        push(&mut steps, now, action);
    }
    for (at, number) in thaws {
        push(&mut steps, at, Action::Thaw(number));
    }
    spread(
        &mut steps,
        end,
        (1..=shape.restarts).map(|_| Action::RestartBroker {
            killed: random.bool(),
        }),
    );
    spread(
        &mut steps,
        end,
        shape
            .partitions
            .iter()
            .skip(1)
            .map(|&total| Action::Grow(total)),
    );
    steps.sort_by_key(|step| step.at);
    steps
}

fn push(steps: &mut Vec<Step>, at: u64, action: Action) {
    let at = Duration::from_millis(at);
    steps.push(Step { at, action });
}

/// At equal distances.
fn spread(steps: &mut Vec<Step>, end: u64, actions: impl Iterator<Item = Action>) {
    let actions: Vec<Action> = actions.collect();
    let parts = u64::try_from(actions.len()).unwrap_or(0) + 1;
    for (part, action) in (1..).zip(actions) {
        push(steps, end * part / parts, action);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            time: Duration::from_mins(1),
            members: 5,
            toggles: 200..500,
            kills: 3_000..6_000,
            freezes: 5_000..10_000,
            frozen: Duration::from_secs(8),
            worker_kills: Some(1_500..3_000),
            seeks: 700..1_400,
            calm: Duration::from_secs(10),
            restarts: 2,
            partitions: vec![8, 10, 12],
        }
    }

    #[test]
    fn a_seed_draws_the_same_again_and_another_seed_something_else() {
        assert_eq!(draw(&shape(), 7), draw(&shape(), 7));
        assert_ne!(draw(&shape(), 7), draw(&shape(), 8));
    }

    #[test]
    fn what_is_done_to_a_member_can_be_done_to_it_and_one_is_always_running() {
        for seed in 0..200 {
            let mut places = vec![Place::Empty; shape().members];
            let mut are_steered = vec![false; shape().members];
            let (mut kills, mut freezes, mut thaws, mut others) = (0, 0, 0, Vec::new());
            let (mut seeks, mut worker_kills) = (0, 0);
            for step in draw(&shape(), seed) {
                assert!(step.at <= shape().time);
                let (number, from, to) = match step.action {
                    Action::Start(number, choice) => {
                        are_steered[number] = is_steered(choice);
                        (number, Place::Empty, Place::Running)
                    }
                    Action::Seek(number) => {
                        seeks += 1;
                        assert!(are_steered[number], "{step:?}, seed {seed}");
                        (number, Place::Running, Place::Running)
                    }
                    Action::KillWorker { place, .. } => {
                        worker_kills += 1;
                        (place, Place::Running, Place::Running)
                    }
                    Action::Leave(number) => (number, Place::Running, Place::Empty),
                    Action::Kill(number) => {
                        kills += 1;
                        (number, Place::Running, Place::Empty)
                    }
                    Action::Freeze(number) => {
                        freezes += 1;
                        (number, Place::Running, Place::Frozen)
                    }
                    Action::Thaw(number) => {
                        thaws += 1;
                        (number, Place::Frozen, Place::Running)
                    }
                    other => {
                        others.push(other);
                        continue;
                    }
                };
                assert_eq!(places[number], from, "{step:?}, seed {seed}");
                places[number] = to;
                assert!(places.contains(&Place::Running), "{step:?}, seed {seed}");
            }
            assert!(kills >= 3, "seed {seed}: {kills}");
            assert!(seeks >= 5, "seed {seed}: {seeks}");
            assert!(worker_kills >= 10, "seed {seed}: {worker_kills}");
            assert!(
                freezes >= 2 && thaws == freezes,
                "seed {seed}: {freezes}, {thaws}"
            );
            assert_eq!(others.len(), 4, "two growths, two restarts");
        }
    }
}
