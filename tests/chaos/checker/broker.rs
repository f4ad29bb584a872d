//! What was committed when, and what of it could not be relied on.

use std::ops::Range;

use super::ownership::Ownership;
use super::{ANSWER, End, Log, Millis, SENT_AGAIN, Told};

/// What the broker had.
pub(super) struct Broker<'a> {
    log: &'a Log,
    /// By partition, when commits of it could be lost or late.
    excuses: Vec<Vec<Excuse>>,
    /// By partition, when something lower was sought.
    seeks: Vec<Vec<(Millis, i64)>>,
    rebalances: Vec<Range<Millis>>,
}

/// A time in which a commit that was on its way may come again and take a later one back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Excuse {
    pub(super) from: Millis,
    pub(super) until: Millis,
    /// What was confirmed when the broker went: what comes again is not below it.
    pub(super) confirmed: i64,
}

impl<'a> Broker<'a> {
    pub(super) fn new(log: &'a Log, by_partition: &[Vec<Ownership>]) -> Self {
        let mut broker = Self {
            log,
            excuses: Vec::new(),
            seeks: Vec::new(),
            rebalances: rebalances(log),
        };
        for (partition, all) in by_partition.iter().enumerate() {
            let seeks = all.iter().flat_map(|ownership| &ownership.seeks);
            broker
                .seeks
                .push(seeks.map(|seek| (seek.at, seek.offset)).collect());
            let excuses = log.outages.iter().filter_map(|outage| {
                let sent = all.iter().filter(|ownership| {
                    outage.start <= broker.answered_by(ownership.to) && ownership.from <= outage.end
                });
                let until = sent
                    .map(|ownership| broker.back(ownership.member, outage))
                    .max()?;
                Some(Excuse {
                    from: outage.start,
                    until,
                    confirmed: broker.seen_at(partition, outage.start),
                })
            });
            broker.excuses.push(excuses.collect());
        }
        broker
    }

    /// Until when commits that a member sent before or in an outage may arrive: it has heard from the group again, or is
    /// gone and with it what it would have sent.
    fn back(&self, member: usize, outage: &Range<Millis>) -> Millis {
        let member = &self.log.members[member];
        let heard = member.told.iter().find(|(at, told)| {
            *at > outage.end && matches!(told, Told::Committed(_) | Told::Assigned(_))
        });
        let mut heard = heard.map_or(Millis::MAX, |(at, _)| at + SENT_AGAIN);
        // While there was no coordinator commits have piled up, and each that fails is sent again by itself.
        for refused in member.refused.iter().filter(|at| **at > outage.start) {
            if *refused <= heard {
                heard = heard.max(refused + SENT_AGAIN);
            }
        }
        let gone = match member.end {
            // What a client has sent is carried out though its process is gone.
            Some((at, End::Left | End::LeftWork | End::Killed)) => at.max(outage.end) + SENT_AGAIN,
            None => Millis::MAX,
        };
        heard.min(gone)
    }

    /// When a commit that was sent at that moment has its answer, if it gets one: in a rebalance of a classic group after
    /// that.
    pub(super) fn answered_by(&self, at: Millis) -> Millis {
        let mut rebalances = self.rebalances.iter();
        let meanwhile = rebalances.find(|rebalance| rebalance.contains(&at));
        meanwhile
            .map_or(at, |rebalance| rebalance.end)
            .saturating_add(ANSWER)
    }

    pub(super) fn rebalances(&self) -> &[Range<Millis>] {
        &self.rebalances
    }

    /// Whether an ownership ended when its owner could not commit, or could not know whether it had.
    pub(super) fn was_away_from(&self, ownership: &Ownership) -> bool {
        self.log.outages.iter().any(|outage| {
            let to = ownership.to;
            let may =
                outage.start <= self.answered_by(to) && to <= self.back(ownership.member, outage);
            may && !(to < outage.start && self.was_confirmed(ownership))
        })
    }

    /// Whether all that was completed in an ownership was confirmed to its owner.
    pub(super) fn was_confirmed(&self, ownership: &Ownership) -> bool {
        let told = self.log.members[ownership.member].told.iter();
        // What is told later is of the next time that it has the partition.
        let has_it_again = |at: Millis, told: &Told| {
            at > ownership.to
                && matches!(told, Told::Assigned(partitions) if partitions.contains(&ownership.partition))
        };
        let last = told
            .take_while(|(at, told)| !has_it_again(*at, told))
            .filter(|(at, _)| *at >= ownership.from)
            .filter_map(|(_, told)| match told {
                Told::Committed(offsets) => Some(offsets),
                _ => None,
            })
            .flatten()
            .filter(|(partition, _)| *partition == ownership.partition)
            .last();
        last.map(|(_, offset)| *offset) >= ownership.reached(ownership.to)
    }

    /// When a commit that was seen between these moments may have been one that came again.
    pub(super) fn excuse(&self, partition: usize, from: Millis, to: Millis) -> Option<Excuse> {
        let mut excuses = self.excuses.get(partition)?.iter();
        let found = excuses.find(|excuse| excuse.from <= to && from <= excuse.until);
        found.copied()
    }

    /// All the times for which that is so.
    pub(super) fn excused(&self, partition: usize) -> Vec<Range<Millis>> {
        let excuses = self.excuses.get(partition).into_iter().flatten();
        excuses.map(|excuse| excuse.from..excuse.until).collect()
    }

    /// What was known to be committed at that moment, and to stay so.
    pub(super) fn committed(&self, partition: usize, at: Millis) -> i64 {
        let seen = self.seen_at(partition, at);
        let confirmed = self
            .excuse(partition, at, at)
            .map(|excuse| excuse.confirmed);
        let looked = self
            .looks_until(at)
            .last()
            .map_or(Millis::MIN, |look| look.asked);
        let seeks = self.seeks.get(partition).map_or(&[][..], Vec::as_slice);
        // A seek after the last look may have had the commit come down since.
        let sought = seeks
            .iter()
            .filter(|(since, _)| looked.saturating_sub(ANSWER) <= *since && *since <= at);
        let lowest = sought.map(|(_, offset)| *offset).chain(confirmed).min();
        lowest.map_or(seen, |lowest| seen.min(lowest))
    }

    pub(super) fn seen_at(&self, partition: usize, at: Millis) -> i64 {
        let looks = self.looks_until(at).iter().rev();
        let offsets = looks.filter_map(|look| look.offsets.get(partition).copied());
        offsets.flatten().next().unwrap_or(0)
    }

    fn looks_until(&self, at: Millis) -> &'a [super::Commits] {
        let commits = &self.log.commits;
        &commits[..commits.partition_point(|look| look.at <= at)]
    }

    /// By its last answer.
    pub(super) fn lag(&self, ends: &[i64]) -> i64 {
        let last = self.log.commits.last();
        let committed = |partition| {
            let offset = last.and_then(|last| last.offsets.get(partition).copied());
            offset.flatten().unwrap_or(0)
        };
        ends.iter()
            .enumerate()
            .map(|(partition, end)| end - committed(partition))
            .sum()
    }
}

/// When the group may be at a rebalance in which members wait for each other, as far as there are signs of it.
fn rebalances(log: &Log) -> Vec<Range<Millis>> {
    let Some(settles) = log.settles else {
        return Vec::new();
    };
    let mut signs: Vec<Millis> = Vec::new();
    for member in &log.members {
        let told = member.told.iter().filter(|(_, told)| {
            matches!(told, Told::Assigned(_) | Told::Revoked(_) | Told::Lost(_))
        });
        signs.extend(told.map(|(at, _)| *at));
        signs.extend(member.began);
        signs.extend(member.end.map(|(at, _)| at));
        signs.extend(member.stops.iter().flat_map(|stop| [stop.start, stop.end]));
    }
    signs.sort_unstable();
    let mut rebalances: Vec<Range<Millis>> = Vec::new();
    for at in signs {
        let until = at.saturating_add(settles);
        match rebalances.last_mut() {
            Some(last) if at <= last.end => last.end = until,
            _ => rebalances.push(at..until),
        }
    }
    rebalances
}
