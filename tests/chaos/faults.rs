//! Faults that are planted into a log: what it would look like had the product done that. Whoever trusts the checker
//! has it find them first.

use std::collections::BTreeMap;

use keepup::Order;

use crate::checker::{Commits, Handled, Log, Member, Told, excused, quiet};

/// What a product could do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An offset is committed when its record is handed over, not when it was completed.
    CommitAtDelivery,
    /// A member works on under an assignment that has ended.
    EpochIgnored,
    /// A record that waited for a retry is forgotten, and what comes after it is committed.
    RetryLost,
    /// Two records change places.
    OrderSwapped,
    /// What was committed is handled once more.
    CommitIgnored,
    /// A commit of an earlier time comes through.
    CommitFromThePast,
    /// A record comes with the content of another.
    ContentMixedUp,
    /// From some moment on nothing of a partition is committed any more.
    CommitStandsStill,
    /// A member commits on after its partition has gone to another.
    CommitByFormerOwner,
    /// After a seek the commit is where it was before.
    SeekUndone,
    /// At a seek the commit comes down further than that.
    SeekTooFar,
    /// What follows a seek is not what was sought.
    SeekMissed,
    /// Records come again though the worker on them did not die.
    RepeatedWithoutDeath,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::CommitAtDelivery,
        Self::EpochIgnored,
        Self::RetryLost,
        Self::OrderSwapped,
        Self::CommitIgnored,
        Self::CommitFromThePast,
        Self::ContentMixedUp,
        Self::CommitStandsStill,
        Self::CommitByFormerOwner,
        Self::SeekUndone,
        Self::SeekTooFar,
        Self::SeekMissed,
        Self::RepeatedWithoutDeath,
    ];

    /// As what the checker has to find it.
    pub(crate) fn finding(self) -> &'static str {
        match self {
            Self::CommitAtDelivery | Self::SeekUndone => "unsafe",
            Self::EpochIgnored => "stale",
            Self::RetryLost => "lost",
            Self::OrderSwapped | Self::SeekMissed | Self::RepeatedWithoutDeath => "disordered",
            Self::CommitIgnored => "needless",
            Self::CommitFromThePast | Self::SeekTooFar => "rewound",
            Self::CommitStandsStill => "stalled",
            Self::CommitByFormerOwner => "foreign",
            Self::ContentMixedUp => "altered",
        }
    }

    /// Whether any run has a place for it; the others need a takeover or a seek far from any outage, a commit that rises
    /// between two looks, or somebody who works for long and is left alone.
    pub(crate) fn has_place_in(self, log: &Log) -> bool {
        match self {
            Self::CommitAtDelivery
            | Self::EpochIgnored
            | Self::RetryLost
            | Self::ContentMixedUp => true,
            Self::OrderSwapped => log.order != Order::Unordered,
            Self::CommitIgnored
            | Self::CommitFromThePast
            | Self::CommitStandsStill
            | Self::CommitByFormerOwner
            | Self::SeekUndone
            | Self::SeekTooFar
            | Self::SeekMissed
            | Self::RepeatedWithoutDeath => false,
        }
    }

    /// Plants it somewhere; false where the log has no place for it.
    pub(crate) fn plant(self, log: &mut Log, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::CommitAtDelivery => commit_at_delivery(log, random),
            Self::EpochIgnored => ignore_an_epoch(log, random),
            Self::RetryLost => lose_a_retry(log, random),
            Self::OrderSwapped => swap(log, random),
            Self::CommitIgnored => ignore_a_commit(log, random),
            Self::CommitFromThePast => commit_the_past(log, random),
            Self::ContentMixedUp => change_any(log, random, |record| record.number += 1),
            Self::CommitStandsStill => stand_still(log, random),
            Self::CommitByFormerOwner => commit_anothers(log, random),
            Self::SeekUndone => plant_at_seek(log, random, undo_seek),
            Self::SeekTooFar => plant_at_seek(log, random, seek_too_far),
            Self::SeekMissed => plant_at_seek(log, random, miss_seek),
            Self::RepeatedWithoutDeath => deny_a_death(log, random),
        }
    }
}

/// When a record was completed for the first time.
fn completed(log: &Log, partition: usize, offset: i64) -> Option<i64> {
    let handled = log.members.iter().flat_map(|member| &member.handled);
    handled
        .filter(|record| record.partition == partition && record.offset == offset)
        .map(|record| record.at)
        .min()
}

/// What is committed covers the next record as well, which was not completed when the broker was asked.
fn commit_at_delivery(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    let mut places: Vec<(usize, usize)> = (0..log.commits.len())
        .flat_map(|asked| {
            (0..log.commits[asked].offsets.len()).map(move |partition| (asked, partition))
        })
        .collect();
    random.shuffle(&mut places);
    for (asked, partition) in places {
        let at = log.commits[asked].at;
        let committed = log.commits[asked].offsets[partition].unwrap_or(0);
        if completed(log, partition, committed).is_some_and(|completed| completed > at) {
            log.commits[asked].offsets[partition] = Some(committed + 1);
            return true;
        }
    }
    false
}

/// A member completes a record of a partition that another one has at the time.
fn ignore_an_epoch(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    let mut records: Vec<Handled> = all(log).collect();
    random.shuffle(&mut records);
    for record in records {
        let mut members: Vec<usize> = (0..log.members.len()).collect();
        random.shuffle(&mut members);
        let may = |number: &usize| {
            let member = &log.members[*number];
            let first = member.told.first().is_some_and(|(at, _)| *at < record.at);
            // Far from its end: what a member that is killed says last may be lost. And what it lets go of in the same
            // moment it had.
            first
                && member.end.is_none_or(|(end, _)| end > record.at + 2_000)
                && !had(member, record.partition, record.at)
                && !had(member, record.partition, record.at - 1)
        };
        if let Some(number) = members.into_iter().find(may) {
            let handled = &mut log.members[number].handled;
            let place = handled.partition_point(|before| before.at <= record.at);
            handled.insert(place, record);
            return true;
        }
    }
    false
}

/// Whether a member had a partition at a moment, by its own word.
fn had(member: &Member, partition: usize, at: i64) -> bool {
    let mut had = false;
    for (_, told) in member.told.iter().take_while(|(told, _)| *told <= at) {
        match told {
            Told::Assigned(partitions) if partitions.contains(&partition) => had = true,
            Told::Revoked(partitions) | Told::Lost(partitions)
                if partitions.contains(&partition) =>
            {
                had = false;
            }
            _ => {}
        }
    }
    had
}

/// A record that is committed was never completed.
fn lose_a_retry(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    let handled: Vec<Handled> = all(log).collect();
    let Some(lost) = random.choice(handled) else {
        return false;
    };
    for member in &mut log.members {
        member
            .handled
            .retain(|record| (record.partition, record.offset) != (lost.partition, lost.offset));
    }
    true
}

/// Two neighbours of one lane change places.
fn swap(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    let mut places = Vec::new();
    for (number, member) in log.members.iter().enumerate() {
        // Without an order nothing is out of it.
        for (place, record) in member
            .handled
            .iter()
            .enumerate()
            .filter(|_| log.order != Order::Unordered)
        {
            // Close to each other: within one ownership.
            let later = &member.handled[place + 1..];
            let near = later.iter().take_while(|next| next.at < record.at + 1_000);
            let next = near
                .enumerate()
                .find(|(_, next)| next.partition == record.partition && next.key == record.key);
            if let Some((further, next)) = next
                && next.offset > record.offset
                && !told_between(log, number, record.at, next.at)
            {
                places.push((number, place, place + 1 + further));
            }
        }
    }
    let Some((number, one, other)) = random.choice(places) else {
        return false;
    };
    let handled = &mut log.members[number].handled;
    let (first, second) = (handled[one], handled[other]);
    handled[one] = Handled {
        at: first.at,
        ..second
    };
    handled[other] = Handled {
        at: second.at,
        ..first
    };
    true
}

fn told_between(log: &Log, member: usize, from: i64, to: i64) -> bool {
    let told = log.members[member].told.iter();
    told.filter(|(_, told)| !matches!(told, Told::Committed(_)))
        .any(|(at, _)| (from..=to).contains(at))
}

/// A new owner begins a record before what is committed.
fn ignore_a_commit(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    let mut places = Vec::new();
    for (number, member) in log.members.iter().enumerate() {
        for (at, told) in &member.told {
            let (Told::Assigned(partitions) | Told::WorkerDied(partitions)) = told else {
                continue;
            };
            // What is committed may go back then.
            let mut outages = log.outages.iter();
            if outages.any(|outage| outage.start - 10_000 < *at) {
                continue;
            }
            for &partition in partitions {
                // Or by a seek.
                if is_sought(log, partition) {
                    continue;
                }
                let committed = committed_before(log, partition, *at);
                if committed > 0 {
                    // What has the same time as a death was before it.
                    places.push((number, at + 1, partition, committed - 1));
                }
            }
        }
    }
    let Some((member, at, partition, offset)) = random.choice(places) else {
        return false;
    };
    let again = Handled {
        at,
        partition,
        offset,
        key: 0,
        number: offset,
    };
    let handled = &mut log.members[member].handled;
    let place = handled.partition_point(|before| before.at < at);
    handled.insert(place, again);
    true
}

/// What was known to be committed at a moment.
fn committed_before(log: &Log, partition: usize, at: i64) -> i64 {
    let before = log.commits.iter().filter(|commits| commits.at <= at);
    let offsets = before.filter_map(|commits| commits.offsets.get(partition).copied().flatten());
    offsets.max().unwrap_or(0)
}

/// The broker has, for once, what it had earlier.
fn commit_the_past(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    let mut places: Vec<(usize, usize)> = Vec::new();
    let excused = excused(log);
    for (asked, pair) in log.commits.windows(2).enumerate() {
        for (partition, (before, after)) in pair[0].offsets.iter().zip(&pair[1].offsets).enumerate()
        {
            // Over an outage that may be.
            let mut excused = excused[partition].iter();
            let may_be =
                excused.any(|range| range.start <= pair[1].at && pair[0].asked <= range.end);
            if before.is_some() && after > before && !may_be && !is_sought(log, partition) {
                places.push((asked + 1, partition));
            }
        }
    }
    let Some((asked, partition)) = random.choice(places) else {
        return false;
    };
    let commits = log.commits[asked - 1].offsets[partition];
    log.commits[asked].offsets[partition] = commits.map(|offset| offset - 1);
    true
}

/// A partition whose owner is left alone for long, and works, stays committed where it was.
fn stand_still(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    /// How long a look at the commits takes, with the pause before it, in milliseconds.
    const LOOK: i64 = 1_000;
    let enough = log.patience + 2 * LOOK;
    let mut places = Vec::new();
    for (member, partition, range) in quiet(log) {
        let own = log.members[member].handled.iter();
        let mut own =
            own.filter(|record| record.partition == partition && range.contains(&record.at));
        let Some(first) = own.next() else { continue };
        let late = own.filter(|record| record.at - first.at > enough);
        places.extend(late.map(|record| (*first, record.at)));
    }
    random.shuffle(&mut places);
    // Where the commit had gone on by then: without an order the first one may be of the life before a seek backwards,
    // with all that is committed after that below it. And looks are rare in a log that somebody made up.
    let goes_on = |(first, until): &(Handled, i64)| {
        let mut looks = log.commits.iter();
        looks.any(|look| {
            let offset = look.offsets.get(first.partition).copied().flatten();
            (until - LOOK..=*until).contains(&look.at) && offset > Some(first.offset)
        })
    };
    let Some((first, until)) = places.into_iter().find(goes_on) else {
        return false;
    };
    println!("planted: what is committed stands still from {first:?} until {until}");
    for look in &mut log.commits {
        if let Some(offset) = look.offsets.get_mut(first.partition)
            && (first.at..=until).contains(&look.at)
        {
            *offset = offset.map(|offset| offset.min(first.offset));
        }
    }
    true
}

/// Whether a word is about who has that partition, or where in it.
fn concerns(told: &Told, partition: usize) -> bool {
    match told {
        Told::Assigned(partitions)
        | Told::Revoked(partitions)
        | Told::Lost(partitions)
        | Told::WorkerDied(partitions) => partitions.contains(&partition),
        Told::Seek { partition: of, .. } => *of == partition,
        Told::Committed(_) => false,
    }
}

/// A member is told that what another one has completed since is committed by it.
fn commit_anothers(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    // By partition, the last record.
    let mut last: BTreeMap<usize, Handled> = BTreeMap::new();
    for record in all(log) {
        let known = last.entry(record.partition).or_insert(record);
        if record.offset > known.offset {
            *known = record;
        }
    }
    let mut places = Vec::new();
    for (number, member) in log.members.iter().enumerate() {
        let end = member.end.map_or(i64::MAX, |(end, _)| end);
        for (at, told) in &member.told {
            let (Told::Revoked(partitions) | Told::Lost(partitions)) = told else {
                continue;
            };
            for record in partitions
                .iter()
                .filter_map(|partition| last.get(partition))
            {
                let mut own = member.handled.iter();
                let is_anothers = !own
                    .any(|own| (own.partition, own.offset) == (record.partition, record.offset));
                if is_anothers && (*at..end).contains(&record.at) {
                    places.push((number, *record));
                }
            }
        }
    }
    let Some((number, record)) = random.choice(places) else {
        return false;
    };
    let committed = vec![(record.partition, record.offset + 1)];
    log.members[number].tell(record.at, Told::Committed(committed));
    true
}

/// A seek that was followed.
struct Sought {
    member: usize,
    /// Where the first record after it is among those that the member has handled.
    place: usize,
    /// What its partition had before.
    before: i64,
    record: Handled,
}

/// Plants something at a seek that was followed while the broker was there, where there is such a seek.
fn plant_at_seek(
    log: &mut Log,
    random: &mut fastrand::Rng,
    plant: fn(&mut Log, &Sought) -> bool,
) -> bool {
    if log.order != Order::Partition {
        // Who is who at the border of two lives is not always known.
        return false;
    }
    let mut places = Vec::new();
    for (number, member) in log.members.iter().enumerate() {
        for (at, told) in &member.told {
            let Told::Seek { partition, offset } = told else {
                continue;
            };
            let mut outages = log.outages.iter();
            if outages.any(|outage| (outage.start - 10_000..outage.end + 10_000).contains(at)) {
                continue;
            }
            let first = member.handled.partition_point(|record| record.at <= *at);
            let after = member.handled.iter().enumerate().skip(first);
            let mut after = after.filter(|(_, record)| record.partition == *partition);
            let followed = after.find(|(_, record)| record.offset == *offset);
            let mut before = member.handled[..first].iter();
            let before = before.rfind(|record| record.partition == *partition);
            if let (Some((place, record)), Some(before)) = (followed, before)
                && before.offset > *offset
                && !moved_between(log, number, *partition, before.at, record.at)
            {
                places.push(Sought {
                    member: number,
                    place,
                    before: before.offset,
                    record: *record,
                });
            }
        }
    }
    random.shuffle(&mut places);
    places.iter().any(|sought| plant(log, sought))
}

/// Whether somebody took or lost a partition meanwhile.
fn moved_between(log: &Log, member: usize, partition: usize, from: i64, to: i64) -> bool {
    let told = log.members[member].told.iter();
    told.filter(|(at, _)| (from..=to).contains(at))
        .any(|(_, told)| !matches!(told, Told::Seek { .. }) && concerns(told, partition))
}

/// The first look after the first record finds what was committed before.
fn undo_seek(log: &mut Log, sought: &Sought) -> bool {
    let partition = sought.record.partition;
    let mut looks = log.commits.iter();
    let Some(place) = looks.position(|look| look.asked >= sought.record.at) else {
        return false;
    };
    let look = &log.commits[place];
    // Else it may be right by then.
    let is_again = all(log).any(|record| {
        (record.partition, record.offset) == (partition, sought.before - 1)
            && (sought.record.at..=look.at).contains(&record.at)
    });
    let offset = log.commits[place].offsets.get_mut(partition);
    if let Some(offset) = offset.filter(|_| !is_again) {
        *offset = Some(sought.before);
        return true;
    }
    false
}

/// The look at which the commit has come down finds it lower, and nobody has ever asked for that.
fn seek_too_far(log: &mut Log, sought: &Sought) -> bool {
    let Handled {
        partition, offset, ..
    } = sought.record;
    let told = log.members.iter().flat_map(|member| &member.told);
    let mut lower = told.filter(|(_, told)| {
        matches!(told, Told::Seek { partition: of, offset: to } if *of == partition && *to < offset)
    });
    let committed = |look: &Commits| look.offsets.get(partition).copied().flatten();
    let mut looks = log.commits.iter();
    let after = looks.position(|look| look.at >= sought.record.at);
    let Some(place) = after.filter(|_| lower.next().is_none()) else {
        return false;
    };
    let before = log.commits[..place].last().and_then(committed);
    if before.is_none_or(|before| before < offset) || offset == 0 {
        return false;
    }
    if let Some(lowest) = log.commits[place].offsets.get_mut(partition) {
        *lowest = Some(offset - 1);
    }
    true
}

/// The record that was sought is left out.
fn miss_seek(log: &mut Log, sought: &Sought) -> bool {
    log.members[sought.member].handled.remove(sought.place);
    true
}

/// Nobody knows of the death of a worker after which records came again.
fn deny_a_death(log: &mut Log, random: &mut fastrand::Rng) -> bool {
    if log.order != Order::Partition {
        // What comes again may be what was never completed.
        return false;
    }
    let mut places = Vec::new();
    for (number, member) in log.members.iter().enumerate() {
        for (word, (at, told)) in member.told.iter().enumerate() {
            let Told::WorkerDied(partitions) = told else {
                continue;
            };
            for &partition in partitions {
                let border = member.handled.partition_point(|record| record.at < *at);
                let (before, after) = member.handled.split_at(border);
                let is_its = |record: &&Handled| record.partition == partition;
                if let (Some(before), Some(after)) =
                    (before.iter().rfind(is_its), after.iter().find(is_its))
                    && after.offset <= before.offset
                    && !moved_between(log, number, partition, before.at, at - 1)
                    && !moved_between(log, number, partition, at + 1, after.at)
                    && !is_sought(log, partition)
                {
                    places.push((number, word, partition));
                }
            }
        }
    }
    let Some((number, word, partition)) = random.choice(places) else {
        return false;
    };
    if let (_, Told::WorkerDied(partitions)) = &mut log.members[number].told[word] {
        partitions.retain(|other| *other != partition);
    }
    true
}

/// Whether anybody has ever sought in a partition.
fn is_sought(log: &Log, partition: usize) -> bool {
    let mut told = log.members.iter().flat_map(|member| &member.told);
    told.any(|(_, told)| matches!(told, Told::Seek { .. }) && concerns(told, partition))
}

fn change_any(log: &mut Log, random: &mut fastrand::Rng, change: fn(&mut Handled)) -> bool {
    let count = all(log).count();
    if count == 0 {
        return false;
    }
    let which = random.usize(..count);
    let mut handled = log
        .members
        .iter_mut()
        .flat_map(|member| &mut member.handled);
    handled.nth(which).map(change).is_some()
}

fn all(log: &Log) -> impl Iterator<Item = Handled> + '_ {
    log.members
        .iter()
        .flat_map(|member| member.handled.iter().copied())
}
