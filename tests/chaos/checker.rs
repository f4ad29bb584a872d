//! Decides whether a group that was ill-treated has kept its promises, from what could be seen of it.
//!
//! Nothing here knows how the product works, or talks to anybody: a [`Log`] is what members printed, what the broker
//! had committed at moments in between, and what was done to whom. All times are milliseconds since 1970 by the clock
//! of one machine, so that what different processes say can be put in order.
//!
//! A member *owns* a partition from the moment it was told so until it let go, lost it, or ended. A seek begins a new
//! *life* of an ownership, at the first record that comes by it. Whatever is promised is a statement about those:
//!
//! | finding | what was seen |
//! |---|---|
//! | lost | a record that nobody completed |
//! | altered | a record that is not the one that was produced at its offset |
//! | disordered | within one life, a record before its predecessor; or one that goes on long after a seek as if there were none |
//! | unsafe | an offset was committed before every record below it was completed, since the last seek to below it |
//! | rewound | a committed offset that went back: to below what was sought; without a seek, and not by what was on its way when the broker went; or by that, to below what was confirmed by then |
//! | stalled | a record that was completed, and not committed for [`Log::patience`] though nothing was done to its owner or the broker |
//! | foreign | a commit of more than its member, or than the owner at the time, has completed while it owned the partition; or one of a partition that was lost and has no owner |
//! | stale | a record that was completed after another member had taken the partition over |
//! | needless | a record again that was committed, or whose last owner let go of it in an orderly way |
//!
//! Repeats that are none of these are what at least once allows: their last owner was killed, lost them, or had no
//! broker to commit to; or they were sought.
//!
//! # What is excused, and why
//!
//! - **A sleep** excuses the ownerships in whose sleep another member began, and those that ended in it or until the
//!   member can have heard ([`ANSWER`]): the group had given them away; and what it let go of in the [`ANSWER`] before,
//!   where that was not confirmed. What was in its handlers when it fell asleep may be completed that long after it woke,
//!   and nothing else.
//! - **An outage** excuses, of a partition, what its owners did from the moment that an answer may not have come any more
//!   ([`ANSWER`] before) until each of them has heard from the group again, or has ended; and as long after as librdkafka
//!   takes to send a commit again that was on its way ([`SENT_AGAIN`]), or that was refused since. Such a commit may arrive after a later one and
//!   take it back, down to what was confirmed when the broker went, and each offset once: so what is undone is at most
//!   what was confirmed within that time. An ownership that ended before the broker went, with all that it had completed
//!   confirmed to its owner, is not excused.
//! - **A rebalance** of a classic group excuses that nothing is committed meanwhile, and has whatever is said here of
//!   [`ANSWER`] to a commit begin at its end: a broker answers
//!   what comes over a connection in its order, so that the commits of a member wait behind its join, and that waits for
//!   all the others. Signs of one are a member that comes, ends, falls asleep or wakes, or is told of partitions; each
//!   counts for [`Log::settles`]. Storms end with a calm, for what is to be seen without it.
//! - **A kill** excuses what its owner had, and what it let go of in the [`ANSWER`] before, where that was not confirmed.
//! - **A commit that is refused** within the [`ANSWER`] after its member let go, and told to be, excuses that: the group had
//!   gone on without it, as in the rebalance in which it leaves.
//! - **A worker that died**, where workers are processes, ends the ownerships that it worked on, and its member begins new
//!   ones: what it had not told its parent comes again, from what was committed on. What was sought is owed by the next.
//!   One that is stopped tells nothing either, for as long as that goes unnoticed ([`SILENCE`]).
//! - **A seek** has the commit come down once, to its offset; what a later look sees is that and what was handled since.
//!   In an outage it does so each time that a commit that was on its way has taken it up again. While a seek is not
//!   followed, what was completed before it need not be committed. A partition that goes before its seek was followed
//!   begins anew where the commit was, or has come down to: what lies between was asked for. In key order and without
//!   order the records of the two lives cannot always be told apart at the border: there a seek has its life begin at the
//!   first record that is out of turn.
//! - **The answer to a commit** may be told after its member has let go: the last commit of a partition is sent as that is
//!   let go of, and what was lost may have been committed just before. So a member's word of a commit is held against
//!   what it had completed when it let go, not against the time. What the broker has of a lost partition does not rise
//!   any more once what was sent before has arrived ([`ANSWER`]), until somebody has it again.

mod broker;
mod commits;
mod ownership;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use keepup::Order;

use broker::Broker;
use ownership::{Ended, Ownership};

/// Since 1970.
pub(crate) type Millis = i64;

/// How long a request and its answer take at most, on a machine that is busy with all of this.
const ANSWER: Millis = 2_000;

/// How long after it has found the broker again a client may send a commit again that was on its way when that went:
/// `retry.backoff.max.ms` is a second, a fifth more by chance, and the way there.
const SENT_AGAIN: Millis = 1_500;

/// How long after the broker came back everybody has found it: `reconnect.backoff.max.ms` is a second in a storm, the
/// coordinator is asked for once a second, and then it is asked to commit.
const RECOVERED: Millis = 5_000;

/// How long a worker that is stopped goes unnoticed at most: a member gives it ten seconds from when it was heard last, and
/// looks again every now and then.
const SILENCE: Millis = 12_000;

/// Findings of one kind that are kept in words.
const SHOWN: usize = 5;

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) order: Order,
    /// How long what was completed may stay uncommitted, or a seek may not be followed, where nothing is wrong.
    pub(crate) patience: Millis,
    /// For how long after a sign of a rebalance a classic group may still be at it; in one of KIP-848 nobody waits.
    pub(crate) settles: Option<Millis>,
    pub(crate) members: Vec<Member>,
    /// What the broker had committed, in the order in which it was asked.
    pub(crate) commits: Vec<Commits>,
    /// When there was no broker.
    pub(crate) outages: Vec<Range<Millis>>,
    /// How many records each partition has; every one is in the log from offset 0, its number is its offset.
    pub(crate) ends: Vec<i64>,
}

/// An answer of the broker.
#[derive(Debug, Clone)]
pub(crate) struct Commits {
    /// When it was asked.
    pub(crate) asked: Millis,
    /// When the answer was there.
    pub(crate) at: Millis,
    /// By partition; those that did not exist then are missing at the end.
    pub(crate) offsets: Vec<Option<i64>>,
}

/// One process, from its start to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    /// When it was about to join, if it came so far.
    pub(crate) began: Option<Millis>,
    /// Records of one partition that may be in handlers at once.
    pub(crate) in_hand: usize,
    /// What it said of itself, in the order in which it said it.
    pub(crate) told: Vec<(Millis, Told)>,
    /// The records that it completed, in the order of their completion.
    pub(crate) handled: Vec<Handled>,
    /// Why commits of it were refused, and how often; for people.
    pub(crate) refusals: BTreeMap<String, u64>,
    /// When it was told so, in order.
    pub(crate) refused: Vec<Millis>,
    /// When it was stopped (SIGSTOP).
    pub(crate) stops: Vec<Range<Millis>>,
    /// When a worker of these was stopped, until its member had ended it.
    pub(crate) silences: Vec<(Range<Millis>, Vec<usize>)>,
    /// When it was asked to leave, or killed.
    pub(crate) asked: Option<Millis>,
    /// When its end was noticed, and what it was.
    pub(crate) end: Option<(Millis, End)>,
}

impl Member {
    /// Takes down what it said, by its time.
    pub(crate) fn tell(&mut self, at: Millis, told: Told) {
        let place = self.told.partition_point(|(before, _)| *before <= at);
        self.told.insert(place, (at, told));
    }
}

/// What a member said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Assigned(Vec<usize>),
    Revoked(Vec<usize>),
    Lost(Vec<usize>),
    /// The process that was its worker on these is gone, without a word.
    WorkerDied(Vec<usize>),
    /// The group's coordinator has confirmed these.
    Committed(Vec<(usize, i64)>),
    /// It is about to seek.
    Seek {
        partition: usize,
        offset: i64,
    },
}

/// How a member ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With everything committed that it completed.
    Left,
    /// It said itself that what it completed is not all committed.
    LeftWork,
    Killed,
}

/// A record that a member completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handled {
    pub(crate) at: Millis,
    pub(crate) partition: usize,
    pub(crate) offset: i64,
    pub(crate) key: i64,
    /// The number that the producer gave it: in each partition they count from 0 without a gap.
    pub(crate) number: i64,
}

/// What is wrong of one kind: how often, and the first few in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) count: u64,
    pub(crate) first: Vec<String>,
}

impl Findings {
    fn add(&mut self, words: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(words());
        }
    }
}

/// What is to be said of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) lost: Findings,
    pub(crate) altered: Findings,
    pub(crate) disordered: Findings,
    pub(crate) unsafe_commits: Findings,
    pub(crate) rewound: Findings,
    pub(crate) stalled: Findings,
    pub(crate) foreign: Findings,
    pub(crate) stale: Findings,
    pub(crate) needless: Findings,
    /// How often a committed offset went back after an outage, by what was on its way in it.
    pub(crate) undone: u64,
    /// How often a commit came down because of a seek.
    pub(crate) come_down: u64,
    /// Lives that began with a seek.
    pub(crate) restarts: u64,
    /// Records that were completed again because they were sought.
    pub(crate) sought: u64,
    /// The longest that something completed was uncommitted though nothing was wrong.
    pub(crate) slowest: Millis,
    /// Different records that were completed.
    pub(crate) handled: u64,
    /// Records that were completed again.
    pub(crate) repeats: u64,
    /// How the ownerships ended whose records were completed again, and how many those are.
    causes: BTreeMap<Ended, u64>,
    /// What may be repeated: completed and not committed where an ownership ended without its owner's doing, and what
    /// was in its handlers then.
    pub(crate) uncommitted: u64,
    /// How often an ownership ended that way.
    pub(crate) abrupt_ends: u64,
    /// How often it was its owner's worker that died.
    pub(crate) worker_deaths: u64,
    /// Ownerships in all.
    pub(crate) ownerships: u64,
    /// Records that are not committed in the end.
    pub(crate) lag: i64,
}

impl Verdict {
    /// Every kind of finding, with its name.
    fn kinds(&self) -> [(&'static str, &Findings); 9] {
        [
            ("lost", &self.lost),
            ("altered", &self.altered),
            ("disordered", &self.disordered),
            ("unsafe", &self.unsafe_commits),
            ("rewound", &self.rewound),
            ("stalled", &self.stalled),
            ("foreign", &self.foreign),
            ("stale", &self.stale),
            ("needless", &self.needless),
        ]
    }

    /// The names of what was found; empty where every promise was kept.
    pub(crate) fn found(&self) -> Vec<&'static str> {
        let mut found: Vec<_> = self
            .kinds()
            .into_iter()
            .filter(|(_, findings)| findings.count > 0)
            .map(|(name, _)| name)
            .collect();
        if self.repeats > self.uncommitted {
            found.push("too many repeats");
        }
        if self.lag != 0 {
            found.push("lag");
        }
        found
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records handled; {} again, of at most {} that were in flight or not committed when {} of {} ownerships \
             ended abruptly ({} by a worker's death) {:?}; {} more by {} seeks, for which {} commits came down; {} commits undone after outages; \
             committed within {} ms; lag {}",
            self.handled,
            self.repeats,
            self.uncommitted,
            self.abrupt_ends,
            self.ownerships,
            self.worker_deaths,
            self.causes,
            self.sought,
            self.restarts,
            self.come_down,
            self.undone,
            self.slowest,
            self.lag
        )?;
        for (name, findings) in self.kinds() {
            write!(f, "; {name} {}", findings.count)?;
        }
        for (name, findings) in self.kinds() {
            for words in &findings.first {
                write!(f, "\n  {name}: {words}")?;
            }
        }
        Ok(())
    }
}

/// Decides over a log.
pub(crate) fn check(log: &Log) -> Verdict {
    let mut verdict = Verdict::default();
    let (by_partition, broker) = read(log);
    let done = Done::new(log, &by_partition, &mut verdict);
    check_contents(log, &mut verdict);
    commits::check(log, &by_partition, &done, &broker, &mut verdict);
    for all in &by_partition {
        for ownership in all {
            verdict.ownerships += 1;
            verdict.restarts += u64::try_from(ownership.restarts.len()).unwrap_or(0);
            check_order(log.order, ownership, &mut verdict);
            check_seeks(log, ownership, &mut verdict);
        }
        check_takeovers(log, all, &mut verdict);
        check_repeats(log, &broker, all, &mut verdict);
    }
    verdict.lag = broker.lag(&log.ends);
    verdict
}

/// Who had what, by partition, and what the broker had.
fn read(log: &Log) -> (Vec<Vec<Ownership>>, Broker<'_>) {
    let by_partition = ownership::by_partition(log);
    let broker = Broker::new(log, &by_partition);
    (by_partition, broker)
}

/// By partition, when commits of before an outage may come again.
pub(crate) fn excused(log: &Log) -> Vec<Vec<Range<Millis>>> {
    let (by_partition, broker) = read(log);
    let partitions = 0..by_partition.len();
    partitions
        .map(|partition| broker.excused(partition))
        .collect()
}

/// When which member was left alone with which partition, so that what it completes has to be committed soon.
pub(crate) fn quiet(log: &Log) -> Vec<(usize, usize, Range<Millis>)> {
    let (by_partition, broker) = read(log);
    let mut all = Vec::new();
    for ownership in by_partition.iter().flatten() {
        let quiet = commits::quiet(log, broker.rebalances(), ownership);
        all.extend(
            quiet
                .into_iter()
                .map(|range| (ownership.member, ownership.partition, range)),
        );
    }
    all
}

/// How long what a member says of itself takes until it is out.
const LAST_WORDS: Millis = 1_000;

fn check_contents(log: &Log, verdict: &mut Verdict) {
    for handled in log.members.iter().flat_map(|member| &member.handled) {
        if !is_intact(log, handled) {
            verdict.altered.add(|| format!("{handled:?}"));
        }
    }
}

/// Whether a record is the one that was produced there.
fn is_intact(log: &Log, record: &Handled) -> bool {
    let end = log.ends.get(record.partition);
    record.number == record.offset && end.is_some_and(|end| (0..*end).contains(&record.offset))
}

/// When every record below an offset was completed.
struct Done {
    /// By partition: from the start on, and then since each seek.
    since: Vec<Vec<Since>>,
}

/// What was completed from a moment on.
struct Since {
    from: Millis,
    first: i64,
    /// When all that lies below `first`, `first + 1` and so on, from `first` on, was completed.
    done: Vec<Millis>,
}

impl Done {
    fn new(log: &Log, by_partition: &[Vec<Ownership>], verdict: &mut Verdict) -> Self {
        let mut times: Vec<Vec<Vec<Millis>>> = log
            .ends
            .iter()
            .map(|&end| vec![Vec::new(); index(end)])
            .collect();
        let handled = log.members.iter().flat_map(|member| &member.handled);
        for record in handled.filter(|record| is_intact(log, record)) {
            times[record.partition][index(record.offset)].push(record.at);
        }
        let mut since = Vec::with_capacity(times.len());
        for (partition, times) in times.iter_mut().enumerate() {
            for (offset, times) in times.iter_mut().enumerate() {
                times.sort_unstable();
                if times.is_empty() {
                    verdict.lost.add(|| format!("{partition}@{offset}"));
                } else {
                    verdict.handled += 1;
                }
            }
            let mut all = vec![Since::new(Millis::MIN, 0, times)];
            // Who completed what of which life is not always plain without the order of the partition.
            if log.order == Order::Partition {
                let restarts = by_partition[partition]
                    .iter()
                    .flat_map(Ownership::restarted);
                let mut restarts: Vec<(Millis, i64)> = restarts.collect();
                restarts.sort_unstable();
                all.extend(
                    restarts
                        .into_iter()
                        .map(|(at, offset)| Since::new(at, offset, times)),
                );
            }
            since.push(all);
        }
        Self { since }
    }

    /// When a commit of this offset became safe; never, where it has records that nobody completed.
    fn since(&self, partition: usize, committed: i64) -> Millis {
        let since = self.since.get(partition).and_then(|all| all.first());
        since.map_or(Millis::MAX, |since| since.until(committed))
    }

    /// The same, where what was sought before `asked` has to be completed again.
    fn since_seeks(&self, partition: usize, committed: i64, asked: Millis) -> Millis {
        let all = self.since.get(partition).map_or(&[][..], Vec::as_slice);
        let last = all
            .iter()
            .rfind(|since| since.from <= asked && since.first <= committed);
        last.map_or(Millis::MAX, |since| since.until(committed))
    }
}

impl Since {
    fn new(from: Millis, first: i64, times: &[Vec<Millis>]) -> Self {
        let mut done = vec![Millis::MIN];
        let mut last = Millis::MIN;
        for times in times.iter().skip(index(first)) {
            let at = times.iter().find(|at| **at >= from);
            last = last.max(at.copied().unwrap_or(Millis::MAX));
            done.push(last);
        }
        Self { from, first, done }
    }

    fn until(&self, committed: i64) -> Millis {
        let done = self.done.get(index(committed - self.first));
        done.copied().unwrap_or(Millis::MAX)
    }
}

/// Within a life records come one after the other.
fn check_order(order: Order, ownership: &Ownership, verdict: &mut Verdict) {
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    for (place, record) in ownership.records.iter().enumerate() {
        if ownership.restart_at(place).is_some() {
            last.clear();
        }
        let lane = match order {
            Order::Partition => 0,
            Order::Key => record.key,
            Order::Unordered => record.offset,
        };
        let before = last.insert(lane, record.offset);
        let is_next = before.is_none_or(|before| match order {
            // Nothing is missing in these topics.
            Order::Partition => record.offset == before + 1,
            Order::Key | Order::Unordered => record.offset > before,
        });
        if !is_next {
            verdict.disordered.add(|| {
                format!(
                    "member {} at {}: {}@{} (key {}) after {}",
                    ownership.member,
                    record.at,
                    record.partition,
                    record.offset,
                    record.key,
                    before.unwrap_or_default()
                )
            });
        }
    }
}

/// A seek that was taken is followed.
fn check_seeks(log: &Log, ownership: &Ownership, verdict: &mut Verdict) {
    let member = &log.members[ownership.member];
    for seek in &ownership.unheeded {
        let late = seek.at + log.patience;
        let disturbed =
            |range: &Range<Millis>| range.start <= late && seek.at <= range.end + RECOVERED;
        if member.stops.iter().chain(&log.outages).any(disturbed) {
            continue;
        }
        if let Some(record) = ownership.records.iter().find(|record| record.at > late) {
            verdict.disordered.add(|| {
                format!(
                    "member {} at {}: {}@{}, though it sought {} at {}",
                    ownership.member,
                    record.at,
                    record.partition,
                    record.offset,
                    seek.offset,
                    seek.at
                )
            });
        }
    }
}

/// Who lost a partition to another member works on it no more: but for what it had in its handlers when it was stopped.
fn check_takeovers(log: &Log, all: &[Ownership], verdict: &mut Verdict) {
    for old in all {
        let member = &log.members[old.member];
        // A member that is killed may take with it that it was told to begin.
        let took_word_along =
            matches!(member.end, Some((at, End::Killed)) if at - old.from < LAST_WORDS);
        if let Some(record) = old
            .records
            .first()
            .filter(|_| !old.told && !took_word_along)
        {
            verdict.stale.add(|| {
                format!(
                    "member {} completed {}@{} at {}, and did not have it",
                    old.member, record.partition, record.offset, record.at
                )
            });
        }
        // Who goes on with another worker has taken over from nobody.
        let next = all
            .iter()
            .find(|new| new.member != old.member && !new.goes_on() && new.from > old.had_since);
        let Some(new) = next else { continue };
        // It was asleep when the other one began, or had just woken and not heard yet.
        let mut stops = member.stops.iter();
        let slept = stops.find(|stop| {
            stop.start <= new.from && new.from <= stop.end + ANSWER && old.had_since <= stop.end
        });
        let woken = slept.map_or(Millis::MIN, |stop| stop.end + ANSWER);
        let late = old.records.iter().filter(|record| record.at > new.from);
        let was_in_hand =
            |place: usize, record: &Handled| place < member.in_hand && record.at <= woken;
        for (_, record) in late
            .enumerate()
            .filter(|(place, record)| !was_in_hand(*place, record))
        {
            verdict.stale.add(|| {
                format!(
                    "member {} completed {}@{} at {}, member {} had it since {}",
                    old.member, record.partition, record.offset, record.at, new.member, new.from
                )
            });
        }
    }
}

/// A record comes again only where it was sought, or where its last owner could not commit it; and then only while it is
/// not committed.
fn check_repeats(log: &Log, broker: &Broker<'_>, all: &[Ownership], verdict: &mut Verdict) {
    // By offset, whose it was last; and what was sought and has not come yet.
    let mut last: BTreeMap<i64, usize> = BTreeMap::new();
    let mut sought: BTreeSet<i64> = BTreeSet::new();
    let mut reached = 0;
    for (place, ownership) in all.iter().enumerate() {
        let mut committed = broker.committed(ownership.partition, ownership.from);
        for (index, record) in ownership.records.iter().enumerate() {
            if let Some(offset) = ownership.restart_at(index) {
                sought.extend(last.split_off(&offset).into_keys());
                reached = offset;
                committed = committed.min(offset);
            }
            reached = reached.max(record.offset + 1);
            verdict.sought += u64::from(sought.remove(&record.offset));
            let Some(before) = last.insert(record.offset, place) else {
                continue;
            };
            verdict.repeats += 1;
            let owner = &all[before];
            // A second time within one ownership is a matter of order.
            let ended = owner.ended(log, broker, all);
            *verdict.causes.entry(ended).or_default() += 1;
            let is_needless = before != place && ended == Ended::Orderly;
            if is_needless || record.offset < committed {
                verdict.needless.add(|| {
                    format!(
                        "{}@{} by member {} at {}, which has it since {} (committed then: {committed}); before by \
                         member {}, which let go at {} ({ended:?})",
                        record.partition,
                        record.offset,
                        ownership.member,
                        record.at,
                        ownership.from,
                        owner.member,
                        owner.to
                    )
                });
            }
        }
        let ended = ownership.ended(log, broker, all);
        if ended != Ended::Orderly {
            verdict.abrupt_ends += 1;
            verdict.worker_deaths += u64::from(ended == Ended::WorkerDied);
            // One that was stopped finds out late: what counts is where the next one begins.
            let next = all.get(place + 1).map_or(Millis::MAX, |next| next.from);
            let committed = broker.committed(ownership.partition, ownership.to.min(next));
            let in_hand = log.members[ownership.member].in_hand;
            verdict.uncommitted += u64::try_from(reached - committed).unwrap_or(0);
            verdict.uncommitted += u64::try_from(in_hand).unwrap_or(0);
        }
    }
}

/// Offsets are not negative; one that is, is nowhere.
fn index(offset: i64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
