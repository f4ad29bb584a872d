//! What liveness and readiness say, and why.
//!
//! A probe that asks "did it poll?" or "did it commit?" kills a consumer that
//! is idle, paused, spare, or rightly busy with a long record. The question that
//! matters is progress: a handler that has been at one record for longer than
//! anyone expects (`stuck_after`), or a member whose loop does not turn. Only
//! what a restart of the process would mend makes it not live; what passes by
//! itself (no contact, a rebalance, a retry that waits) never does.

use std::sync::Arc;
use std::time::Duration;

use super::snapshot::{Health, MemberState, PartitionLag};
use crate::report::StopReason;

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The group has not taken it in yet.
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
#[derive(Clone, Debug, Default)]
pub(crate) struct MemberStatus {
    pub(crate) phase: Phase,
    /// How long ago its loop turned for the last time.
    pub(crate) turned_ago: Duration,
    /// A worker failed more often than its budget allows.
    pub(crate) budget_spent: bool,
    /// Why the group has not taken it in yet, where that is known.
    pub(crate) held_up: Option<Arc<str>>,
    /// Why the run stops or has ended.
    pub(crate) stopped_by: Option<Arc<StopReason>>,
    /// What broke beside the run, and does not come back.
    pub(crate) broken: Vec<Arc<str>>,
}

impl MemberStatus {
    /// The same for everybody to see.
    pub(crate) fn state(&self) -> MemberState {
        match self.phase {
            // Also where a rebalance took everything and gives nothing back.
            Phase::Joining | Phase::Joined if self.held_up.is_some() => MemberState::HeldUp,
            Phase::Joining => MemberState::Joining,
            Phase::Joined => MemberState::Joined,
            Phase::Stopping => MemberState::Stopping,
            Phase::Ended => MemberState::Stopped,
        }
    }

    /// What went wrong, where the run ends or has ended over it.
    fn failure(&self) -> Option<&StopReason> {
        self.stopped_by
            .as_deref()
            .filter(|reason| reason.is_failure())
    }

    /// `what`, with what went wrong.
    fn with_failure(&self, what: &str) -> String {
        self.failure()
            .map_or(what.to_owned(), |failure| format!("{what}: {failure}"))
    }
}

/// Whether the process works.
pub(crate) fn judge(
    member: &MemberStatus,
    partitions: &[PartitionLag],
    stuck_after: Duration,
) -> Health {
    Health {
        not_live: not_live(member, partitions, stuck_after),
        not_ready: not_ready(member, partitions),
    }
}

fn not_live(
    member: &MemberStatus,
    partitions: &[PartitionLag],
    stuck_after: Duration,
) -> Vec<String> {
    let mut reasons: Vec<String> = member.broken.iter().map(ToString::to_string).collect();
    match member.phase {
        Phase::Ended => {
            let ended = "the run has ended, nothing is consumed any more";
            reasons.push(member.with_failure(ended));
        }
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

fn not_ready(member: &MemberStatus, partitions: &[PartitionLag]) -> Option<String> {
    match member.phase {
        Phase::Joining => {
            let yet = "has not joined the group yet";
            let why = member.held_up.as_deref();
            Some(why.map_or(yet.to_owned(), |why| format!("{yet}: {why}")))
        }
        Phase::Stopping => Some(member.with_failure("is stopping")),
        Phase::Ended => Some(member.with_failure("the run has ended")),
        Phase::Joined if member.held_up.is_some() => {
            let why = member.held_up.as_deref().unwrap_or_default();
            Some(format!("takes no part in the group: {why}"))
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicPartition;

    const STUCK_AFTER: Duration = Duration::from_mins(5);

    fn member(phase: Phase) -> MemberStatus {
        MemberStatus {
            phase,
            ..MemberStatus::default()
        }
    }

    /// A partition with a start position, whose handler has been at a record that long.
    fn partition(number: i32, in_hand_for: Duration) -> PartitionLag {
        PartitionLag {
            worker: Some(4),
            position: Some(78),
            watermark: Some(77),
            in_flight: 1,
            in_hand_for,
            ..PartitionLag::unknown(TopicPartition::new("orders", number))
        }
    }

    #[test]
    fn it_is_ready_from_its_first_assignment_to_the_stop_be_it_an_empty_one() {
        let ready = |phase| judge(&member(phase), &[], STUCK_AFTER).not_ready;
        assert_eq!(
            ready(Phase::Joining).unwrap(),
            "has not joined the group yet"
        );
        let mut held_up = member(Phase::Joining);
        held_up.held_up = Some("another has its name".into());
        let health = judge(&held_up, &[], STUCK_AFTER);
        assert!(health.is_live(), "a restart would not be let in either");
        assert_eq!(
            health.not_ready.unwrap(),
            "has not joined the group yet: another has its name"
        );
        assert_eq!(ready(Phase::Joined), None, "a spare");
        assert_eq!(ready(Phase::Stopping).unwrap(), "is stopping");
        assert_eq!(ready(Phase::Ended).unwrap(), "the run has ended");
    }

    #[test]
    fn a_run_that_failed_says_what_went_wrong_and_one_that_was_stopped_has_nothing_to_say() {
        let told = |phase, reason: StopReason| {
            let mut member = member(phase);
            member.stopped_by = Some(Arc::new(reason));
            judge(&member, &[], STUCK_AFTER)
        };
        let fenced = || StopReason::FatalClientError {
            message: "the broker is gone".into(),
        };
        let stopping = told(Phase::Stopping, fenced());
        let why = "is stopping: the broker is gone";
        assert_eq!(stopping.not_ready.as_deref(), Some(why));
        let ended = told(Phase::Ended, fenced());
        assert!(ended.not_live[0].ends_with("any more: the broker is gone"));
        assert!(ended.not_ready.unwrap().ends_with(": the broker is gone"));
        let stopped = told(Phase::Ended, StopReason::Signal);
        assert_eq!(stopped.not_ready.as_deref(), Some("the run has ended"));
    }

    #[test]
    fn it_is_not_ready_while_a_partition_has_no_start_position() {
        let unplaced = PartitionLag::unknown(TopicPartition::new("orders", 2));
        let partitions = [partition(1, Duration::ZERO), unplaced];
        let health = judge(&member(Phase::Joined), &partitions, STUCK_AFTER);
        let reason = health.not_ready.as_deref().unwrap();
        assert_eq!(reason, "1 of 2 partitions have no start position yet");
        assert!(health.is_live());
        assert!(judge(&member(Phase::Joined), &partitions[..1], STUCK_AFTER).is_ready());
    }

    #[test]
    fn a_handler_is_stuck_when_it_took_stuck_after_and_not_before_and_is_named() {
        let almost = STUCK_AFTER.saturating_sub(Duration::from_millis(1));
        let health = judge(&member(Phase::Joined), &[partition(3, almost)], STUCK_AFTER);
        assert!(health.is_live(), "{health:?}");
        let partitions = [partition(2, Duration::ZERO), partition(3, STUCK_AFTER)];
        let health = judge(&member(Phase::Joined), &partitions, STUCK_AFTER);
        let reason = "the handler of worker 4 has been at offset 77 of orders-3 for 300 s, longer \
                      than stuck_after (300 s)";
        assert_eq!(health.not_live, [reason]);
        assert!(health.is_ready(), "it takes part all the same");
    }

    #[test]
    fn a_loop_that_does_not_turn_is_not_live_after_stuck_after() {
        let mut held_up = member(Phase::Joined);
        held_up.turned_ago = Duration::from_secs(299);
        assert!(judge(&held_up, &[], STUCK_AFTER).is_live());
        held_up.turned_ago = Duration::from_secs(301);
        let not_live = judge(&held_up, &[], STUCK_AFTER).not_live;
        assert_eq!(not_live.len(), 1);
        assert!(
            not_live[0].contains("has not turned for 301 s"),
            "{not_live:?}"
        );
    }

    #[test]
    fn what_only_a_restart_of_the_process_mends_is_not_live_and_a_stop_is_not_that() {
        let mut spent = member(Phase::Joined);
        spent.budget_spent = true;
        let stuck = [partition(3, 2 * STUCK_AFTER)];
        let reasons = |member: &MemberStatus| judge(member, &stuck, STUCK_AFTER).not_live;
        assert_eq!(reasons(&spent).len(), 2);
        assert!(reasons(&spent)[0].contains("restart budget"));
        spent.phase = Phase::Stopping;
        assert!(
            reasons(&spent)[0].contains("restart budget"),
            "it stops because of that"
        );
        // A stop has a deadline of its own, after which nothing is stuck any more.
        assert_eq!(reasons(&member(Phase::Stopping)), [""; 0]);
        let ended = judge(&member(Phase::Ended), &[], STUCK_AFTER).not_live;
        assert_eq!(ended, ["the run has ended, nothing is consumed any more"]);
    }
}
