//! What is promised of commits: none too early, none back, none left out, and none of what is not one's own.

use std::collections::BTreeMap;
use std::ops::Range;

use super::broker::Broker;
use super::ownership::{Ownership, Seek};
use super::{ANSWER, Commits, Done, End, Log, Millis, RECOVERED, SILENCE, Told, Verdict};

pub(super) fn check(
    log: &Log,
    by_partition: &[Vec<Ownership>],
    done: &Done,
    broker: &Broker<'_>,
    verdict: &mut Verdict,
) {
    check_safety(log, done, broker, verdict);
    for (partition, all) in by_partition.iter().enumerate() {
        let looks: Vec<Look> = log
            .commits
            .iter()
            .filter_map(|commits| Look::new(commits, partition))
            .collect();
        check_direction(partition, &looks, all, broker, verdict);
        check_owners(partition, &looks, all, broker, verdict);
        check_words(log, partition, &looks, all, verdict);
        for ownership in all {
            check_progress(log, &looks, broker.rebalances(), ownership, verdict);
        }
    }
}

/// What was committed of one partition at some time between two moments.
#[derive(Debug, Clone, Copy)]
struct Look {
    asked: Millis,
    at: Millis,
    offset: i64,
}

impl Look {
    fn new(commits: &Commits, partition: usize) -> Option<Self> {
        Some(Self {
            asked: commits.asked,
            at: commits.at,
            offset: commits.offsets.get(partition).copied().flatten()?,
        })
    }
}

/// Nothing is committed before all that lies below it was completed.
fn check_safety(log: &Log, done: &Done, broker: &Broker<'_>, verdict: &mut Verdict) {
    let mut check = |by: &dyn std::fmt::Display, at: Millis, since: Millis, place: (usize, i64)| {
        if since > at {
            verdict.unsafe_commits.add(|| {
                let when = if since == Millis::MAX {
                    "never".to_owned()
                } else {
                    format!("{} ms later", since - at)
                };
                let (partition, offset) = place;
                format!("{partition}@{offset} committed at {at} by {by}, what is below it completed {when}")
            });
        }
    };
    for commits in &log.commits {
        for (partition, offset) in commits.offsets.iter().enumerate() {
            let Some(offset) = *offset else { continue };
            let (asked, at) = (commits.asked, commits.at);
            // What was on its way may undo a seek as it may undo a commit.
            let since = if broker.excuse(partition, asked, at).is_some() {
                done.since(partition, offset)
            } else {
                done.since_seeks(partition, offset, asked)
            };
            check(&"the broker's word", at, since, (partition, offset));
        }
    }
    for (number, member) in log.members.iter().enumerate() {
        for (at, told) in &member.told {
            let Told::Committed(offsets) = told else {
                continue;
            };
            for &(partition, offset) in offsets {
                let since = done.since(partition, offset);
                check(
                    &format_args!("member {number}"),
                    *at,
                    since,
                    (partition, offset),
                );
            }
        }
    }
}

/// A commit goes back to what was sought, and else only by what was on its way when the broker went.
fn check_direction(
    partition: usize,
    looks: &[Look],
    all: &[Ownership],
    broker: &Broker<'_>,
    verdict: &mut Verdict,
) {
    // Those that had the commit come down are taken out.
    let mut seeks: Vec<(Seek, Millis)> = all
        .iter()
        .flat_map(|ownership| {
            // Sent before it let go; in an outage it comes when the broker does.
            let excuse = broker.excuse(partition, ownership.to, ownership.to);
            let until = excuse.map_or(ownership.to, |excuse| excuse.until.max(ownership.to));
            let until = broker.answered_by(until);
            ownership.seeks.iter().map(move |&seek| (seek, until))
        })
        .collect();
    seeks.sort_by_key(|(seek, _)| seek.at);
    // By the beginning of an outage, the highest commit since and what was undone of it.
    let mut undone: BTreeMap<Millis, (i64, i64)> = BTreeMap::new();
    for pair in looks.windows(2) {
        let [before, after] = pair else { continue };
        let excuse = broker.excuse(partition, before.asked, after.at);
        if let Some(excuse) = excuse {
            let (highest, _) = undone.entry(excuse.from).or_default();
            *highest = before.offset.max(*highest);
        }
        if after.offset >= before.offset {
            continue;
        }
        let may = |(seek, until): &(Seek, Millis)| {
            seek.offset <= after.offset && seek.at <= after.at && before.asked <= *until
        };
        let sought = seeks.iter().filter(|seek| may(seek));
        if let Some((seek, _)) = sought.max_by_key(|(seek, _)| seek.offset).copied() {
            verdict.come_down += 1;
            // Once: whatever was asked for before is overtaken. In an outage it is asked for until it is there, and what
            // was on its way may take it up again in between.
            if excuse.is_none() {
                seeks.retain(|(other, _)| other.at > seek.at);
            }
            continue;
        }
        let is_excused = excuse.is_some_and(|excuse| {
            let (highest, sum) = undone.entry(excuse.from).or_default();
            *sum += before.offset - after.offset;
            after.offset >= excuse.confirmed && *sum <= *highest - excuse.confirmed
        });
        if is_excused {
            verdict.undone += 1;
        } else {
            verdict.rewound.add(|| {
                format!(
                    "{partition}: from {} to {}, seen at {}",
                    before.offset, after.offset, after.at
                )
            });
        }
    }
}

/// While somebody has a partition, nothing is committed of it but what that one has completed; and nothing where nobody
/// has it any more.
fn check_owners(
    partition: usize,
    looks: &[Look],
    all: &[Ownership],
    broker: &Broker<'_>,
    verdict: &mut Verdict,
) {
    let mut before = 0;
    for look in looks {
        let rises = look.offset > std::mem::replace(&mut before, look.offset);
        // Whoever began last: one that was there before has no say any more.
        let began = all.partition_point(|ownership| ownership.from <= look.at);
        let owner = all[..began]
            .iter()
            .max_by_key(|ownership| (ownership.had_since, ownership.from));
        let Some(owner) = owner else { continue };
        // Between two owners it is not known whose it was.
        let has_begun = owner.told
            && owner
                .records
                .first()
                .is_some_and(|first| first.at <= look.asked);
        let is_ahead = owner
            .reached(look.at)
            .is_some_and(|reached| look.offset > reached);
        let is_gone = owner.was_lost() && owner.to.saturating_add(ANSWER) < look.asked;
        let is_excused = broker.excuse(partition, look.asked, look.at).is_some();
        if has_begun && owner.to >= look.at && is_ahead {
            verdict.foreign.add(|| {
                format!(
                    "{partition}@{} was committed at {}, which member {}, that has it since {}, has not completed",
                    look.offset, look.at, owner.member, owner.from
                )
            });
        } else if rises && is_gone && !is_excused {
            verdict.foreign.add(|| {
                format!(
                    "{partition}@{} was committed at {}, and member {} had lost it at {}",
                    look.offset, look.at, owner.member, owner.to
                )
            });
        }
    }
}

/// What a member says that it has committed, it completed while it had the partition, or found there.
fn check_words(
    log: &Log,
    partition: usize,
    looks: &[Look],
    all: &[Ownership],
    verdict: &mut Verdict,
) {
    for (number, member) in log.members.iter().enumerate() {
        for (at, told) in &member.told {
            let Told::Committed(offsets) = told else {
                continue;
            };
            for (_, offset) in offsets.iter().filter(|(of, _)| *of == partition) {
                let most = most(looks, all, number, *at);
                if *offset > most {
                    verdict.foreign.add(|| {
                        format!(
                            "member {number} was told at {at} that {partition}@{offset} is committed, and has completed \
                             what is below {most}"
                        )
                    });
                }
            }
        }
    }
}

/// What a member can have committed by then.
fn most(looks: &[Look], all: &[Ownership], member: usize, at: Millis) -> i64 {
    let own = all
        .iter()
        .filter(|ownership| ownership.member == member && ownership.from <= at);
    let most = own.map(|ownership| {
        // What it found there it may say again.
        let before = looks.partition_point(|look| look.asked <= ownership.from);
        let found = looks[..before].last().map_or(0, |look| look.offset);
        let reached = ownership.reached(ownership.to.min(at));
        reached.unwrap_or(0).max(found)
    });
    most.max().unwrap_or(0)
}

/// What was completed is committed soon, where nothing is done to its owner or the broker.
fn check_progress(
    log: &Log,
    looks: &[Look],
    rebalances: &[Range<Millis>],
    ownership: &Ownership,
    verdict: &mut Verdict,
) {
    for quiet in quiet(log, rebalances, ownership) {
        let done = Completed::new(ownership, quiet.start);
        let from = looks.partition_point(|look| look.asked < quiet.start);
        for look in looks[from..].iter().take_while(|look| look.at <= quiet.end) {
            let Some(since) = done.since(look.offset).filter(|since| *since <= look.asked) else {
                continue;
            };
            let waits = look.asked - since.max(quiet.start);
            verdict.slowest = verdict.slowest.max(waits);
            if waits > log.patience {
                verdict.stalled.add(|| {
                    format!(
                        "{}@{} is committed at {}, and member {} completed what comes then {waits} ms before",
                        ownership.partition, look.offset, look.at, ownership.member
                    )
                });
                break;
            }
        }
    }
}

/// What was completed of one life in a row.
struct Completed {
    first: i64,
    /// When `first`, `first + 1` and so on were completed, with all before them.
    since: Vec<Millis>,
}

impl Completed {
    /// Of the life that is on at `at`.
    fn new(ownership: &Ownership, at: Millis) -> Self {
        let by_then = |(place, _): &&(usize, i64)| ownership.records[*place].at <= at;
        let lives: Vec<(usize, i64)> = ownership.restarts.iter().filter(by_then).copied().collect();
        let sought = lives.last().map_or(i64::MIN, |(_, offset)| *offset);
        // Without an order what is out of turn may seem to begin the same life several times, a moment apart.
        let same = lives
            .iter()
            .rev()
            .take_while(|(_, offset)| *offset == sought);
        let place = same.last().map_or(0, |(place, _)| *place);
        let mut records: BTreeMap<i64, Millis> = BTreeMap::new();
        // And some of the life before is completed in it.
        let own = ownership.records[place..]
            .iter()
            .filter(|record| record.offset >= sought);
        for record in own {
            records.entry(record.offset).or_insert(record.at);
        }
        let first = records.first_key_value().map_or(0, |(offset, _)| *offset);
        let mut last = Millis::MIN;
        let mut since = Vec::with_capacity(records.len());
        for (expected, (offset, at)) in (first..).zip(records) {
            if offset != expected {
                break;
            }
            last = last.max(at);
            since.push(last);
        }
        Self { first, since }
    }

    /// When the record of that offset was completed, and all from the first on; what lies before is not its own.
    fn since(&self, offset: i64) -> Option<Millis> {
        let place = usize::try_from((offset - self.first).max(0)).ok()?;
        self.since.get(place).copied()
    }
}

/// The parts of an ownership in which nothing is done to anybody that commits have to do with.
pub(super) fn quiet(
    log: &Log,
    rebalances: &[Range<Millis>],
    ownership: &Ownership,
) -> Vec<Range<Millis>> {
    let member = &log.members[ownership.member];
    // Who is killed commits no more, however late its end is noticed.
    let to = match member.end {
        Some((at, End::Killed)) => ownership.to.min(member.asked.unwrap_or(at)),
        _ => ownership.to,
    };
    let stops = member
        .stops
        .iter()
        .map(|stop| stop.start..stop.end + ANSWER);
    let outages = log.outages.iter();
    let outages = outages.map(|outage| outage.start..outage.end + RECOVERED);
    // From a seek on until it is followed: what was completed before is not to be committed.
    let seeks = ownership.seeks.iter().map(|seek| {
        let follows = ownership.restarted().find(|(at, _)| *at >= seek.at);
        seek.at..follows.map_or(to, |(at, _)| at)
    });
    let rebalances = rebalances.iter().cloned();
    let silences = member
        .silences
        .iter()
        .filter(|(_, partitions)| partitions.contains(&ownership.partition))
        .map(|(silence, _)| silence.start..silence.end.min(silence.start + SILENCE));
    let disturbed = stops
        .chain(outages)
        .chain(seeks)
        .chain(rebalances)
        .chain(silences);
    let mut disturbed: Vec<Range<Millis>> = disturbed.collect();
    disturbed.sort_by_key(|range| range.start);
    let mut quiet = Vec::new();
    let mut from = ownership.from;
    for range in disturbed {
        if range.start > from {
            quiet.push(from..range.start.min(to));
        }
        from = from.max(range.end);
    }
    quiet.push(from..to);
    quiet.retain(|range| range.start < range.end);
    quiet
}
