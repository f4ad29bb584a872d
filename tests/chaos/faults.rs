//! Faults that are planted into a log: what it would look like had the product done that. Whoever trusts the checker
//! has it find them first.

use keepup::Order;

use crate::checker::{Handled, Log, Member, Told};

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
}

impl Fault {
    pub(crate) const ALL: [Self; 7] = [
        Self::CommitAtDelivery,
        Self::EpochIgnored,
        Self::RetryLost,
        Self::OrderSwapped,
        Self::CommitIgnored,
        Self::CommitFromThePast,
        Self::ContentMixedUp,
    ];

    /// As what the checker has to find it.
    pub(crate) fn finding(self) -> &'static str {
        match self {
            Self::CommitAtDelivery => "unsafe",
            Self::EpochIgnored => "stale",
            Self::RetryLost => "lost",
            Self::OrderSwapped => "disordered",
            Self::CommitIgnored => "needless",
            Self::CommitFromThePast => "rewound",
            Self::ContentMixedUp => "altered",
        }
    }

    /// Whether any run has a place for it; the others need a takeover far from any outage, or a commit that rises
    /// between two looks.
    pub(crate) fn has_place_in(self, log: &Log) -> bool {
        match self {
            Self::CommitAtDelivery
            | Self::EpochIgnored
            | Self::RetryLost
            | Self::ContentMixedUp => true,
            Self::OrderSwapped => log.order != Order::Unordered,
            Self::CommitIgnored | Self::CommitFromThePast => false,
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
            // Far from its end: what a member that is killed says last may be lost.
            first
                && member.end.is_none_or(|(end, _)| end > record.at + 2_000)
                && !had(member, record.partition, record.at)
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
            let Told::Assigned(partitions) = told else {
                continue;
            };
            // What is committed may go back then.
            let mut outages = log.outages.iter();
            if outages.any(|outage| (outage.start..outage.end + 10_000).contains(at)) {
                continue;
            }
            for &partition in partitions {
                let committed = committed_before(log, partition, *at);
                if committed > 0 {
                    places.push((number, *at, partition, committed - 1));
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
    for (asked, pair) in log.commits.windows(2).enumerate() {
        // After an outage that may be.
        let mut outages = log.outages.iter();
        if outages.any(|outage| (outage.start..outage.end + 10_000).contains(&pair[1].at)) {
            continue;
        }
        for (partition, (before, after)) in pair[0].offsets.iter().zip(&pair[1].offsets).enumerate()
        {
            if before.is_some() && after > before {
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
