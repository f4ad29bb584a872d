//! Decides whether a group that was ill-treated has kept its promises, from what could be seen of it.
//!
//! Nothing here knows how the product works, or talks to anybody: a [`Log`] is what members printed, what the broker
//! had committed at moments in between, and what was done to whom. All times are milliseconds since 1970 by the clock
//! of one machine, so that what different processes say can be put in order.
//!
//! A member *owns* a partition from the moment it was told so until it let go, lost it, or ended. Whatever is promised
//! is a statement about such ownerships:
//!
//! | finding | what was seen |
//! |---|---|
//! | lost | a record that nobody completed |
//! | altered | a record that is not the one that was produced at its offset |
//! | disordered | within one ownership, a record before its predecessor |
//! | unsafe | an offset was committed before every record below it was completed |
//! | rewound | a committed offset that went back; after an outage, to before it |
//! | stale | a record that was completed after another member had taken the partition over |
//! | needless | a record again that was committed, or whose last owner let go of it in an orderly way |
//!
//! Repeats that are none of these are what at least once allows: their last owner was killed, lost them, or had no
//! broker to commit to.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use keepup::Order;

/// Since 1970.
pub(crate) type Millis = i64;

/// How long after a broker came back what it was told may still be lost, and before it went what was told to it may
/// not be committed yet.
const AROUND_OUTAGE: Millis = 5_000;

/// Findings of one kind that are kept in words.
const SHOWN: usize = 5;

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) order: Order,
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
    /// When the answer was there.
    pub(crate) at: Millis,
    /// By partition; those that did not exist then are missing at the end.
    pub(crate) offsets: Vec<Option<i64>>,
}

/// One process, from its start to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    /// Whether it came so far as to say anything.
    pub(crate) has_begun: bool,
    /// Records of one partition that may be in handlers at once.
    pub(crate) in_hand: usize,
    /// What it said of itself, in the order in which it said it.
    pub(crate) told: Vec<(Millis, Told)>,
    /// The records that it completed, in the order of their completion.
    pub(crate) handled: Vec<Handled>,
    /// Why commits of it were refused, and how often; for people.
    pub(crate) refusals: BTreeMap<String, u64>,
    /// When it was stopped (SIGSTOP).
    pub(crate) stops: Vec<Range<Millis>>,
    /// When it was asked to leave.
    pub(crate) asked: Option<Millis>,
    /// When its end was noticed, and what it was.
    pub(crate) end: Option<(Millis, End)>,
}

/// What a member said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Assigned(Vec<usize>),
    Revoked(Vec<usize>),
    Lost(Vec<usize>),
    /// The group's coordinator has confirmed these.
    Committed(Vec<(usize, i64)>),
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
    pub(crate) stale: Findings,
    pub(crate) needless: Findings,
    /// How often a committed offset went back after an outage, to what was handled during it.
    pub(crate) undone: u64,
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
    /// Ownerships in all.
    pub(crate) ownerships: u64,
    /// Records that are not committed in the end.
    pub(crate) lag: i64,
}

impl Verdict {
    /// Every kind of finding, with its name.
    fn kinds(&self) -> [(&'static str, &Findings); 7] {
        [
            ("lost", &self.lost),
            ("altered", &self.altered),
            ("disordered", &self.disordered),
            ("unsafe", &self.unsafe_commits),
            ("rewound", &self.rewound),
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
             ended abruptly {:?}; {} commits undone after outages; lag {}",
            self.handled,
            self.repeats,
            self.uncommitted,
            self.abrupt_ends,
            self.ownerships,
            self.causes,
            self.undone,
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
    let broker = Broker::new(log);
    let done = Done::new(log, &mut verdict);
    check_commits(log, &done, &broker, &mut verdict);
    let mut by_partition: Vec<Vec<Ownership>> = log.ends.iter().map(|_| Vec::new()).collect();
    for (number, member) in log.members.iter().enumerate() {
        for ownership in ownerships(number, member) {
            verdict.ownerships += 1;
            check_order(log.order, &ownership, &mut verdict);
            if let Some(all) = by_partition.get_mut(ownership.partition) {
                all.push(ownership);
            }
        }
    }
    for mut all in by_partition {
        all.sort_by_key(|ownership| ownership.from);
        check_takeovers(log, &all, &mut verdict);
        check_repeats(log, &broker, &all, &mut verdict);
    }
    verdict.lag = broker.lag(&log.ends);
    verdict
}

/// A partition in the hands of one member.
#[derive(Debug, Clone)]
struct Ownership {
    member: usize,
    partition: usize,
    from: Millis,
    /// When it ended; later than everything where it did not.
    to: Millis,
    ended: Ended,
    /// Whether the owner said that it had it.
    told: bool,
    records: Vec<Handled>,
}

/// How an ownership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    /// By the owner, in its own time.
    Orderly,
    Killed,
    LeftWork,
    Lost,
    /// The owner was stopped meanwhile, whatever it said afterwards.
    Slept,
    /// There was nobody to commit to.
    WithoutBroker,
}

impl Ownership {
    fn new(member: usize, partition: usize, from: Millis) -> Self {
        Self {
            member,
            partition,
            from,
            to: Millis::MAX,
            ended: Ended::Orderly,
            told: true,
            records: Vec::new(),
        }
    }

    /// How it ended, all things considered.
    fn ended(&self, log: &Log) -> Ended {
        let stops = &log.members[self.member].stops;
        let asleep = |stop: &Range<Millis>| stop.start <= self.to && self.from <= stop.end;
        let no_broker = |outage: &Range<Millis>| {
            outage.start - AROUND_OUTAGE <= self.to && self.to <= outage.end + AROUND_OUTAGE
        };
        if self.ended != Ended::Orderly {
            self.ended
        } else if stops.iter().any(asleep) {
            Ended::Slept
        } else if log.outages.iter().any(no_broker) {
            Ended::WithoutBroker
        } else {
            Ended::Orderly
        }
    }
}

/// The ownerships of a member, with their records.
fn ownerships(number: usize, member: &Member) -> Vec<Ownership> {
    let mut open: BTreeMap<usize, Ownership> = BTreeMap::new();
    let mut all = Vec::new();
    let mut told = member.told.iter().peekable();
    let mut handled = member.handled.iter().peekable();
    loop {
        // Of what has the same time, being told to begin comes first, and letting go last.
        let tell = match (told.peek(), handled.peek()) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((at, Told::Assigned(_))), Some(record)) => *at <= record.at,
            (Some((at, _)), Some(record)) => *at < record.at,
        };
        if !tell {
            if let Some(&record) = handled.next() {
                let new = || Ownership {
                    told: false,
                    ..Ownership::new(number, record.partition, record.at)
                };
                let ownership = open.entry(record.partition).or_insert_with(new);
                ownership.records.push(record);
            }
            continue;
        }
        let Some((at, told)) = told.next() else { break };
        let (concerned, ended, taking) = match told {
            // Where it was let go of before, that went with the member's end, or never came.
            Told::Assigned(partitions) => (partitions, Ended::Lost, true),
            Told::Revoked(partitions) => (partitions, Ended::Orderly, false),
            Told::Lost(partitions) => (partitions, Ended::Lost, false),
            Told::Committed(_) => continue,
        };
        for &partition in concerned {
            let closed = open.remove(&partition);
            all.extend(closed.map(|ownership| Ownership {
                to: *at,
                ended,
                ..ownership
            }));
            if taking {
                open.insert(partition, Ownership::new(number, partition, *at));
            }
        }
    }
    let (to, ended) = match member.end {
        Some((at, End::Left)) => (at, Ended::Orderly),
        Some((at, End::LeftWork)) => (at, Ended::LeftWork),
        Some((at, End::Killed)) => (at, Ended::Killed),
        None => (Millis::MAX, Ended::Orderly),
    };
    all.extend(open.into_values().map(|ownership| Ownership {
        to,
        ended,
        ..ownership
    }));
    if matches!(member.end, Some((_, End::LeftWork))) {
        // Which of those that it let go of while it stopped is uncommitted it does not say.
        let asked = member.asked.unwrap_or(to);
        for ownership in all.iter_mut().filter(|ownership| ownership.to >= asked) {
            ownership.ended = Ended::LeftWork;
        }
    }
    all
}

/// How long what a member says of itself takes until it is out.
const LAST_WORDS: Millis = 1_000;

/// When every record below an offset was completed.
struct Done {
    /// By partition and offset.
    since: Vec<Vec<Millis>>,
}

impl Done {
    fn new(log: &Log, verdict: &mut Verdict) -> Self {
        let mut first: Vec<Vec<Option<Millis>>> =
            log.ends.iter().map(|&end| vec![None; index(end)]).collect();
        for handled in log.members.iter().flat_map(|member| &member.handled) {
            let at = first
                .get_mut(handled.partition)
                .and_then(|records| records.get_mut(index(handled.offset)));
            match at {
                Some(at) if handled.number == handled.offset => {
                    if at.is_some() {
                        verdict.repeats += 1;
                    } else {
                        verdict.handled += 1;
                    }
                    *at = Some(at.map_or(handled.at, |at| at.min(handled.at)));
                }
                _ => verdict.altered.add(|| format!("{handled:?}")),
            }
        }
        let mut since = Vec::with_capacity(first.len());
        for (partition, records) in first.iter().enumerate() {
            let mut done = vec![Millis::MIN];
            let mut last = Millis::MIN;
            for (offset, at) in records.iter().enumerate() {
                if at.is_none() {
                    verdict.lost.add(|| format!("{partition}@{offset}"));
                }
                last = last.max(at.unwrap_or(Millis::MAX));
                done.push(last);
            }
            since.push(done);
        }
        Self { since }
    }

    /// When a commit of this offset became safe; never, where it has records that nobody completed.
    fn since(&self, partition: usize, committed: i64) -> Millis {
        let done = self.since.get(partition);
        let since = done.and_then(|done| done.get(index(committed)));
        since.copied().unwrap_or(Millis::MAX)
    }
}

fn check_commits(log: &Log, done: &Done, broker: &Broker<'_>, verdict: &mut Verdict) {
    let mut check = |by: &dyn fmt::Display, at, partition, offset| {
        let since = done.since(partition, offset);
        if since > at {
            verdict.unsafe_commits.add(|| {
                let when = if since == Millis::MAX {
                    "never".to_owned()
                } else {
                    format!("{} ms later", since - at)
                };
                format!("{partition}@{offset} committed at {at} by {by}, what is below it completed {when}")
            });
        }
    };
    let mut last: Vec<i64> = vec![0; log.ends.len()];
    for commits in &log.commits {
        for (partition, offset) in commits.offsets.iter().enumerate() {
            let Some(offset) = *offset else { continue };
            check(&"the broker's word", commits.at, partition, offset);
            let Some(last) = last.get_mut(partition) else {
                continue;
            };
            let before = std::mem::replace(last, offset);
            if offset >= before {
                continue;
            }
            if offset < broker.safe(partition, commits.at, before) {
                verdict.rewound.add(|| {
                    format!(
                        "{partition}: from {before} to {offset}, seen at {}",
                        commits.at
                    )
                });
            } else {
                verdict.undone += 1;
            }
        }
    }
    for (number, member) in log.members.iter().enumerate() {
        for (at, told) in &member.told {
            let Told::Committed(offsets) = told else {
                continue;
            };
            for &(partition, offset) in offsets {
                check(&format_args!("member {number}"), *at, partition, offset);
            }
        }
    }
}

/// Within an ownership records come one after the other.
fn check_order(order: Order, ownership: &Ownership, verdict: &mut Verdict) {
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    for record in &ownership.records {
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

/// Who lost a partition to another member works on it no more: but for what it had in its handlers when it was stopped.
fn check_takeovers(log: &Log, all: &[Ownership], verdict: &mut Verdict) {
    for (place, old) in all.iter().enumerate() {
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
        let next = all[place + 1..]
            .iter()
            .find(|new| new.member != old.member && new.from > old.from);
        let Some(new) = next else { continue };
        let mut stops = member.stops.iter();
        let was_stopped = stops.any(|stop| stop.start <= new.from && old.from <= stop.end);
        let may_follow = if was_stopped { member.in_hand } else { 0 };
        let late = old.records.iter().filter(|record| record.at > new.from);
        for record in late.skip(may_follow) {
            verdict.stale.add(|| {
                format!(
                    "member {} completed {}@{} at {}, member {} had it since {}",
                    old.member, record.partition, record.offset, record.at, new.member, new.from
                )
            });
        }
    }
}

/// A record comes again only where its last owner could not commit it, and only while it is not committed.
fn check_repeats(log: &Log, broker: &Broker<'_>, all: &[Ownership], verdict: &mut Verdict) {
    // By offset, whose it was last.
    let mut last: BTreeMap<i64, usize> = BTreeMap::new();
    let mut reached = 0;
    for (place, ownership) in all.iter().enumerate() {
        let committed = broker.committed(ownership.partition, ownership.from);
        for record in &ownership.records {
            reached = reached.max(record.offset + 1);
            let Some(before) = last.insert(record.offset, place) else {
                continue;
            };
            let owner = &all[before];
            // A second time within one ownership is a matter of order.
            let ended = owner.ended(log);
            *verdict.causes.entry(ended).or_default() += 1;
            let is_needless = before != place && ended == Ended::Orderly;
            if is_needless || record.offset < committed {
                verdict.needless.add(|| {
                    format!(
                        "{}@{} by member {} at {}, which has it since {} (committed then: {committed}); before by \
                         member {}, which let go at {}",
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
        if ownership.ended(log) != Ended::Orderly {
            verdict.abrupt_ends += 1;
            // One that was stopped finds out late: what counts is where the next one begins.
            let next = all.get(place + 1).map_or(Millis::MAX, |next| next.from);
            let committed = broker.committed(ownership.partition, ownership.to.min(next));
            let in_hand = log.members[ownership.member].in_hand;
            verdict.uncommitted += u64::try_from(reached - committed).unwrap_or(0);
            verdict.uncommitted += u64::try_from(in_hand).unwrap_or(0);
        }
    }
}

/// What was committed when.
struct Broker<'a> {
    /// By partition, what was seen to be committed from when on.
    seen: Vec<Vec<(Millis, i64)>>,
    last: Vec<Option<i64>>,
    outages: &'a [Range<Millis>],
}

impl<'a> Broker<'a> {
    fn new(log: &'a Log) -> Self {
        let mut seen: Vec<Vec<(Millis, i64)>> = log.ends.iter().map(|_| Vec::new()).collect();
        for commits in &log.commits {
            for (seen, offset) in seen.iter_mut().zip(&commits.offsets) {
                let Some(offset) = *offset else { continue };
                if seen.last().is_none_or(|&(_, before)| offset != before) {
                    seen.push((commits.at, offset));
                }
            }
        }
        let last = log.commits.last();
        Self {
            seen,
            last: last.map(|last| last.offsets.clone()).unwrap_or_default(),
            outages: &log.outages,
        }
    }

    /// What was known to be committed at that moment, and to stay so.
    fn committed(&self, partition: usize, at: Millis) -> i64 {
        self.safe(partition, at, self.seen_at(partition, at))
    }

    fn seen_at(&self, partition: usize, at: Millis) -> i64 {
        let seen = self.seen.get(partition).map_or(&[][..], Vec::as_slice);
        let known = seen.partition_point(|&(since, _)| since <= at);
        known.checked_sub(1).map_or(0, |last| seen[last].1)
    }

    /// What stays committed of `offset`. When a broker comes back, commits that it never got come again, in any order:
    /// then nothing but what it had before is safe.
    fn safe(&self, partition: usize, at: Millis, offset: i64) -> i64 {
        let outage = self
            .outages
            .iter()
            .find(|outage| outage.start <= at && at <= outage.end + AROUND_OUTAGE);
        outage.map_or(offset, |outage| {
            offset.min(self.seen_at(partition, outage.start))
        })
    }

    /// By its last answer.
    fn lag(&self, ends: &[i64]) -> i64 {
        let committed = |partition| self.last.get(partition).copied().flatten().unwrap_or(0);
        ends.iter()
            .enumerate()
            .map(|(partition, end)| end - committed(partition))
            .sum()
    }
}

/// Offsets are not negative; one that is, is nowhere.
fn index(offset: i64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
