//! What liveness and readiness say, and why.
//!
//! A probe that asks "did it poll?" or "did it commit?" kills a consumer that
//! is idle, paused, spare, or rightly busy with a long record. The question that
//! matters is progress: a handler that has been at one record for longer than
//! anyone expects (`stuck_after`), or a member whose loop does not turn. Only
//! what a restart of the process would mend makes it not live; what passes by
//! itself (no contact, a rebalance, a retry that waits) never does.

use std::time::Duration;

use super::snapshot::{Health, PartitionLag};

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Has not been given an assignment yet, not even an empty one.
    #[default]
    Joining,
    /// Takes part in the group, perhaps as a spare.
    Joined,
    /// Stops taking records and leaves.
    Stopping,
    /// Has ended, for that reason.
    Ended,
}

/// What the member tells of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemberStatus {
    pub(crate) phase: Phase,
    /// How long ago its loop turned for the last time.
    pub(crate) turned_ago: Duration,
    /// A worker failed more often than its budget allows.
    pub(crate) budget_spent: bool,
}

/// Whether the process works.
pub(crate) fn judge(
    member: MemberStatus,
    partitions: &[PartitionLag],
    stuck_after: Duration,
) -> Health {
    Health {
        not_live: not_live(member, partitions, stuck_after),
        not_ready: not_ready(member, partitions),
    }
}

fn not_live(
    member: MemberStatus,
    partitions: &[PartitionLag],
    stuck_after: Duration,
) -> Vec<String> {
    let mut reasons = Vec::new();
    match member.phase {
        Phase::Ended => reasons.push("the run has ended: nothing is consumed any more".to_owned()),
        Phase::Stopping if !member.budget_spent => {
            // A stop has deadlines of its own.
            return reasons;
        }
        _ => {}
    }
    if member.budget_spent {
        reasons.push(
            "the restart budget is spent: a worker failed more often than it may be replaced"
                .to_owned(),
        );
    }
    if member.phase != Phase::Ended && member.turned_ago >= stuck_after {
        reasons.push(format!(
            "the member's loop has not turned for {} s, longer than stuck_after ({} s): it \
             answers no rebalance",
            member.turned_ago.as_secs(),
            stuck_after.as_secs()
        ));
    }
    for partition in partitions {
        if partition.in_hand_for >= stuck_after {
            let worker = partition
                .worker
                .map_or_else(String::new, |worker| format!(" of worker {worker}"));
            reasons.push(format!(
                "the handler{worker} has been at offset {} of {} for {} s, longer than \
                 stuck_after ({} s)",
                partition.watermark.unwrap_or_default(),
                partition.partition,
                partition.in_hand_for.as_secs(),
                stuck_after.as_secs()
            ));
        }
    }
    reasons
}

fn not_ready(member: MemberStatus, partitions: &[PartitionLag]) -> Option<String> {
    match member.phase {
        Phase::Joining => Some("has not joined the group yet".to_owned()),
        Phase::Stopping => Some("is stopping".to_owned()),
        Phase::Ended => Some("the run has ended".to_owned()),
        Phase::Joined => {
            let unplaced = partitions
                .iter()
                .filter(|partition| partition.position.is_none())
                .count();
            (unplaced > 0).then(|| {
                format!(
                    "{unplaced} of {} partitions have no start position yet",
                    partitions.len()
                )
            })
        }
    }
}
