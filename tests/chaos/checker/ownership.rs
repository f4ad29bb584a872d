//! Who had which partition when, and what became of it there.

use std::collections::{BTreeMap, BTreeSet};

use keepup::Order;

use super::broker::Broker;
use super::{ANSWER, End, Handled, Log, Member, Millis, Told};

/// A partition in the hands of one member.
#[derive(Debug, Clone)]
pub(super) struct Ownership {
    pub(super) member: usize,
    pub(super) partition: usize,
    pub(super) from: Millis,
    /// When it ended; later than everything where it did not.
    pub(super) to: Millis,
    ended: Ended,
    /// Whether the owner said that it had it.
    pub(super) told: bool,
    /// When its owner got it: before `from` where another worker had it first, and died.
    pub(super) had_since: Millis,
    pub(super) records: Vec<Handled>,
    /// By time, one more than the highest offset that was completed by then: it is asked for with every look at a commit.
    peaks: Vec<(Millis, i64)>,
    pub(super) seeks: Vec<Seek>,
    /// The places of the records with which lives begin because of a seek, and what was sought.
    pub(super) restarts: Vec<(usize, i64)>,
    /// The seeks by which nothing began here.
    pub(super) unheeded: Vec<Seek>,
}

/// That it was asked for another position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seek {
    pub(super) at: Millis,
    pub(super) offset: i64,
}

/// How an ownership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    /// By the owner, in its own time.
    Orderly,
    Killed,
    /// The process died that was the owner's worker on it; the owner goes on with another.
    WorkerDied,
    LeftWork,
    Lost,
    /// The group gave it away while the owner was stopped, whatever that said afterwards.
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
            had_since: from,
            records: Vec::new(),
            peaks: Vec::new(),
            seeks: Vec::new(),
            restarts: Vec::new(),
            unheeded: Vec::new(),
        }
    }

    /// How it ended, all things considered. `all` are those of its partition.
    pub(super) fn ended(&self, log: &Log, broker: &Broker<'_>, all: &[Self]) -> Ended {
        if self.ended != Ended::Orderly {
            return self.ended;
        }
        let member = &log.members[self.member];
        let begins = |new: &Self| new.member != self.member && new.had_since <= self.to;
        let was_asleep = member.stops.iter().any(|stop| {
            let given_away = |new: &Self| begins(new) && stop.contains(&new.had_since);
            self.had_since <= stop.end
                && stop.start <= self.to
                && (self.to <= stop.end + ANSWER || all.iter().any(given_away))
        });
        // What is let go of is committed then, unless before that is answered its process is killed (which is noticed
        // long after that on a busy machine), falls asleep, or the group has gone on without it, and it says so.
        let unanswered = self.to..=broker.answered_by(self.to);
        let is_uncommitted = || !broker.was_confirmed(self);
        let was_cut_short = matches!(
            member.end,
            Some((at, End::Killed))
                if self.to <= at && member.asked.unwrap_or(at) <= *unanswered.end()
        );
        let mut stops = member.stops.iter();
        let dozed_off = stops.any(|stop| unanswered.contains(&stop.start));
        let was_refused = member.refused.iter().any(|at| unanswered.contains(at));
        if was_cut_short && is_uncommitted() {
            Ended::Killed
        } else if was_asleep || (dozed_off && is_uncommitted()) {
            Ended::Slept
        } else if was_refused && is_uncommitted() {
            Ended::LeftWork
        } else if broker.was_away_from(self) {
            Ended::WithoutBroker
        } else {
            Ended::Orderly
        }
    }

    /// What its owner has from now on, with another worker.
    fn succeeded(&self, at: Millis) -> Self {
        Self {
            told: self.told,
            had_since: self.had_since,
            ..Self::new(self.member, self.partition, at)
        }
    }

    /// Whether its owner had it before, with a worker that died.
    pub(super) fn goes_on(&self) -> bool {
        self.had_since < self.from
    }

    /// Whether its owner was told that the group had given it away.
    pub(super) fn was_lost(&self) -> bool {
        self.ended == Ended::Lost
    }

    /// Whether anything was done in it, or asked for.
    fn has_begun(&self) -> bool {
        !self.records.is_empty() || !self.seeks.is_empty()
    }

    /// A member that was away is told of an assignment that the group has taken back since, and then of that. It took
    /// nothing over.
    fn was_old_news(&self) -> bool {
        self.was_lost() && !self.has_begun() && self.to - self.from < ANSWER
    }

    /// What was sought, where a life begins with the record of that place.
    pub(super) fn restart_at(&self, place: usize) -> Option<i64> {
        let mut restarts = self.restarts.iter();
        restarts
            .find(|(at, _)| *at == place)
            .map(|(_, offset)| *offset)
    }

    /// When lives began by a seek, and what was sought.
    pub(super) fn restarted(&self) -> impl Iterator<Item = (Millis, i64)> + '_ {
        let restarts = self.restarts.iter();
        restarts.map(|&(place, offset)| (self.records[place].at, offset))
    }

    /// One more than the highest offset that was completed by then.
    pub(super) fn reached(&self, at: Millis) -> Option<i64> {
        let by_then = self.peaks.partition_point(|(since, _)| *since <= at);
        self.peaks[..by_then].last().map(|(_, peak)| *peak)
    }

    /// `before` is what the owner had completed with a worker that died.
    fn find_peaks(&mut self, before: Option<i64>) {
        let records = self.records.iter();
        let before = before.map(|reached| (self.from, reached));
        self.peaks = records
            .map(|record| (record.at, record.offset + 1))
            .chain(before)
            .collect();
        self.peaks.sort_unstable();
        let mut highest = i64::MIN;
        for (_, peak) in &mut self.peaks {
            highest = highest.max(*peak);
            *peak = highest;
        }
    }

    /// Finds the records with which lives begin. Of what lies below `reached` some has been completed before, and `left`
    /// are seeks that the owner before did not live to see followed.
    fn find_restarts(&mut self, order: Order, left: &[Seek], reached: i64) {
        // Where their order is not kept, its first record need not be the first that is done; what it sought itself is
        // another life.
        let own = self.seeks.first().map_or(Millis::MAX, |seek| seek.at);
        let first_life = self.records.iter().take_while(|record| record.at < own);
        if let Some(first) = first_life.map(|record| record.offset).min() {
            // What it began with is the commit: as it was before the seek, or come down by it, with nothing handed over.
            let was_sought = left.iter().any(|seek| seek.offset <= first);
            if was_sought && first < reached {
                self.restarts.push((0, first));
            }
        }
        let mut open = self.seeks.clone();
        let mut life: BTreeSet<i64> = BTreeSet::new();
        for (place, record) in self.records.iter().enumerate() {
            let out_of_turn = life.contains(&record.offset)
                || life.first().is_none_or(|first| record.offset < *first);
            let follows = |seek: &Seek| {
                seek.at <= record.at
                    && match order {
                        Order::Partition => seek.offset == record.offset,
                        _ => seek.offset <= record.offset && out_of_turn,
                    }
            };
            if let Some(which) = open.iter().rposition(follows) {
                let offset = open[which].offset;
                self.restarts.push((place, offset));
                life.clear();
                // Without the order of the partition what comes out of turn may still be of the life before.
                open.drain(..which);
            }
            life.insert(record.offset);
            // What has the same time may have been completed before it was sought, and comes again.
            open.retain(|seek| seek.at >= record.at || seek.offset != record.offset);
        }
        let heeded = |seek: &Seek| {
            self.restarts
                .iter()
                .any(|&(place, offset)| offset == seek.offset && seek.at <= self.records[place].at)
        };
        self.unheeded = open.into_iter().filter(|seek| !heeded(seek)).collect();
    }
}

/// All of them, by partition, in the order of their beginning.
pub(super) fn by_partition(log: &Log) -> Vec<Vec<Ownership>> {
    let mut by_partition: Vec<Vec<Ownership>> = log.ends.iter().map(|_| Vec::new()).collect();
    for (number, member) in log.members.iter().enumerate() {
        for ownership in ownerships(number, member) {
            if let Some(all) = by_partition.get_mut(ownership.partition) {
                all.push(ownership);
            }
        }
    }
    for all in &mut by_partition {
        all.sort_by_key(|ownership| ownership.from);
        let (mut left, mut reached) = (Vec::new(), 0);
        // What each member has left to itself where its worker died: how far that had come, and what it still owes.
        let mut dead: BTreeMap<usize, (Option<i64>, Vec<Seek>)> = BTreeMap::new();
        for ownership in all {
            let before = dead.remove(&ownership.member);
            let (before, owed) = before.filter(|_| ownership.goes_on()).unwrap_or_default();
            ownership.seeks.splice(0..0, owed);
            ownership.find_peaks(before);
            ownership.find_restarts(log.order, &left, reached);
            if !ownership.records.is_empty() {
                left.clear();
            }
            if ownership.ended == Ended::WorkerDied {
                let reached = ownership.reached(Millis::MAX);
                dead.insert(ownership.member, (reached, ownership.unheeded.clone()));
            } else {
                left.extend_from_slice(&ownership.unheeded);
            }
            reached = ownership.reached(Millis::MAX).unwrap_or(0).max(reached);
        }
    }
    by_partition
}

/// The ownerships of a member, with their records.
fn ownerships(number: usize, member: &Member) -> Vec<Ownership> {
    let mut open: BTreeMap<usize, Ownership> = BTreeMap::new();
    // Of what it had, and no worker of it yet.
    let mut early: BTreeMap<usize, Vec<Seek>> = BTreeMap::new();
    let mut all = Vec::new();
    let mut told = member.told.iter().peekable();
    let mut handled = member.handled.iter().peekable();
    loop {
        // Of what has the same time, being told to begin and a seek come first, and letting go last.
        let tell = match (told.peek(), handled.peek()) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((at, Told::Assigned(_) | Told::Seek { .. })), Some(record)) => *at <= record.at,
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
        if let Told::WorkerDied(partitions) = told {
            for partition in partitions {
                // Whose worker had begun nothing goes on as it was.
                let begun = open.get_mut(partition).filter(|open| open.has_begun());
                if let Some(ownership) = begun {
                    let new = ownership.succeeded(*at);
                    let old = std::mem::replace(ownership, new);
                    all.push(Ownership {
                        to: *at,
                        ended: Ended::WorkerDied,
                        ..old
                    });
                }
            }
            continue;
        }
        let (concerned, ended, taking) = match told {
            // Where it was let go of before, that went with the member's end, or never came.
            Told::Assigned(partitions) => (partitions, Ended::Lost, true),
            Told::Revoked(partitions) => (partitions, Ended::Orderly, false),
            Told::Lost(partitions) => (partitions, Ended::Lost, false),
            Told::Seek { partition, offset } => {
                let seeks = match open.get_mut(partition) {
                    Some(ownership) => &mut ownership.seeks,
                    None => early.entry(*partition).or_default(),
                };
                seeks.push(Seek {
                    at: *at,
                    offset: *offset,
                });
                continue;
            }
            Told::Committed(_) | Told::WorkerDied(_) => continue,
        };
        for &partition in concerned {
            let closed = open.remove(&partition).map(|ownership| Ownership {
                to: *at,
                ended,
                ..ownership
            });
            all.extend(closed.filter(|ownership| !ownership.was_old_news()));
            if taking {
                let ownership = Ownership {
                    seeks: early.remove(&partition).unwrap_or_default(),
                    ..Ownership::new(number, partition, *at)
                };
                open.insert(partition, ownership);
            }
        }
    }
    let (to, ended) = match member.end {
        Some((at, End::Left)) => (at, Ended::Orderly),
        Some((at, End::LeftWork)) => (at, Ended::LeftWork),
        Some((at, End::Killed)) => (at, Ended::Killed),
        None => (Millis::MAX, Ended::Orderly),
    };
    // It went before a worker had it, of which nothing is told.
    let unseen = early.into_iter().filter_map(|(partition, seeks)| {
        Some(Ownership {
            from: seeks.first()?.at,
            seeks,
            ..Ownership::new(number, partition, to)
        })
    });
    let left = open.into_values().chain(unseen);
    all.extend(left.map(|ownership| Ownership {
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
