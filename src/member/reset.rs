//! What becomes of a partition whose position cannot be read.
//!
//! Retention may have passed the position, or the log lost what was read of it:
//! an unclean election, a disk that came back empty. Kafka answers both with
//! one error, and other clients go to one end of the log for both. They are not
//! the same: what retention took is gone for everybody, while a log that ends
//! below the position has records yet to come at offsets that were read
//! already. So the two are told apart here, by the range that the log has now,
//! and what was lost is named.
//!
//! This is a function of the position, the range and the policy. That the
//! group's commit does not stay above the new position is seen to by
//! [`Assignment`](super::assignment::Assignment).

use crate::config::OutOfRange;
use crate::event::ResetReason;
use crate::record::TopicPartition;

/// A position that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stranded {
    /// The next offset that would have been read.
    pub(crate) offset: i64,
    /// Where the log differs from what was read, if a leader told that it was
    /// cut off there; -1 where that leader knows nothing of what was read.
    pub(crate) truncated_at: Option<i64>,
}

/// The offsets that a partition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogRange {
    pub(crate) log_start: i64,
    /// Last stable offset under `read_committed`, else the high watermark.
    pub(crate) end_offset: i64,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The run ends; the sentence says why, and what helps.
    Stop(String),
    /// It goes on there, and a person should know the sentence.
    GoOn {
        to: i64,
        policy: &'static str,
        reason: ResetReason,
        warning: String,
    },
}

/// What is told where the group had committed `had`, and has nothing now. Where
/// a group begins says nothing of one that has begun: by the earliest offset
/// everything would come again, by the latest what nobody has read be skipped.
pub(crate) fn commit_is_gone(partition: &TopicPartition, had: i64) -> String {
    format!(
        "what the group had committed of {partition}, offset {had}, is gone: while this process was \
         no member the group was deleted, or its offsets were. To go on there reset the group's \
         offsets to {had} and start again; started without that, it begins as a new group does"
    )
}

/// Decides what becomes of `partition`.
pub(crate) fn decide(
    partition: &TopicPartition,
    stranded: Stranded,
    range: LogRange,
    policy: OutOfRange,
) -> Verdict {
    let reason = reason(stranded, range);
    let told = sentence(partition, stranded, range, reason);
    let by_policy = match policy {
        OutOfRange::Earliest => range.log_start,
        OutOfRange::Latest => range.end_offset,
        OutOfRange::Stop => {
            return Verdict::Stop(format!(
                "{told}; the policy for offsets out of range is stop: reset the group's offset, or \
                 start again with earliest or latest (--on-out-of-range)"
            ));
        }
    };
    // The place where the logs agree skips nothing and repeats nothing; only
    // where the leader does not know it the policy has to do.
    let (to, policy) = match stranded.truncated_at {
        Some(agreed) if agreed >= 0 => (agreed.max(range.log_start), "truncation"),
        _ => (by_policy, policy.name()),
    };
    Verdict::GoOn {
        to,
        policy,
        reason,
        warning: format!("{told}; goes on at {to} ({policy})"),
    }
}

fn reason(stranded: Stranded, range: LogRange) -> ResetReason {
    if stranded.truncated_at.is_some() {
        ResetReason::Truncated
    } else if stranded.offset < range.log_start {
        ResetReason::BelowLogStart
    } else {
        // Also where the log has grown past it again meanwhile: when it was
        // asked for it was not there, so what is there now was not read.
        ResetReason::AboveEnd
    }
}

fn sentence(
    partition: &TopicPartition,
    stranded: Stranded,
    range: LogRange,
    reason: ResetReason,
) -> String {
    let LogRange {
        log_start,
        end_offset,
    } = range;
    let offset = stranded.offset;
    let has = format!("the broker has {log_start} to {end_offset}");
    match (reason, stranded.truncated_at) {
        (ResetReason::BelowLogStart, _) => format!(
            "{partition} cannot be read at offset {offset}, {has}: retention passed it, and what \
             was below {log_start} is gone unread"
        ),
        (ResetReason::Truncated, Some(agreed)) if (0..offset).contains(&agreed) => format!(
            "{partition} cannot be read at offset {offset}, {has}: the log was cut off at {agreed} \
             by an election, and what was handled of {agreed} to {} is not in it any more",
            offset - 1
        ),
        _ => format!(
            "{partition} cannot be read at offset {offset}, {has}: the log has lost what was \
             there, or the offset was never in it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: LogRange = LogRange {
        log_start: 40,
        end_offset: 90,
    };

    fn decided(offset: i64, truncated_at: Option<i64>, policy: OutOfRange) -> Verdict {
        let stranded = Stranded {
            offset,
            truncated_at,
        };
        decide(&TopicPartition::new("orders", 3), stranded, RANGE, policy)
    }

    fn goes_on(verdict: Verdict) -> (i64, &'static str, ResetReason, String) {
        match verdict {
            Verdict::GoOn {
                to,
                policy,
                reason,
                warning,
            } => (to, policy, reason, warning),
            Verdict::Stop(why) => panic!("stopped: {why}"),
        }
    }

    #[test]
    fn what_retention_passed_is_told_from_what_the_log_lost() {
        for (policy, to) in [(OutOfRange::Earliest, 40), (OutOfRange::Latest, 90)] {
            let below = goes_on(decided(12, None, policy));
            assert_eq!(
                (below.0, below.1, below.2),
                (to, policy.name(), ResetReason::BelowLogStart)
            );
            assert!(below.3.contains("retention passed it"), "{}", below.3);
            let above = goes_on(decided(120, None, policy));
            assert_eq!(
                (above.0, above.1, above.2),
                (to, policy.name(), ResetReason::AboveEnd)
            );
            assert!(above.3.contains("the log has lost"), "{}", above.3);
        }
    }

    #[test]
    fn a_log_that_grew_past_the_offset_again_has_lost_it_all_the_same() {
        let (to, _, reason, _) = goes_on(decided(60, None, OutOfRange::Earliest));
        assert_eq!((to, reason), (40, ResetReason::AboveEnd));
    }

    #[test]
    fn a_truncated_log_is_read_from_where_it_differs_whatever_the_policy() {
        for policy in [OutOfRange::Earliest, OutOfRange::Latest] {
            let (to, policy, reason, warning) = goes_on(decided(85, Some(70), policy));
            assert_eq!(
                (to, policy, reason),
                (70, "truncation", ResetReason::Truncated)
            );
            assert!(warning.contains("of 70 to 84"), "{warning}");
        }
        // Retention is faster than a reader at times.
        assert_eq!(
            goes_on(decided(85, Some(20), OutOfRange::Latest)).0,
            40,
            "not below the log start"
        );
    }

    #[test]
    fn a_leader_that_knows_nothing_of_what_was_read_leaves_it_to_the_policy() {
        let (to, policy, reason, _) = goes_on(decided(85, Some(-1), OutOfRange::Earliest));
        assert_eq!(
            (to, policy, reason),
            (40, "earliest", ResetReason::Truncated)
        );
    }

    #[test]
    fn stop_names_partition_offset_range_and_remedy() {
        for truncated_at in [None, Some(70)] {
            let Verdict::Stop(why) = decided(85, truncated_at, OutOfRange::Stop) else {
                panic!("it goes on");
            };
            for part in ["orders-3", "85", "40 to 90", "--on-out-of-range", "reset"] {
                assert!(why.contains(part), "{part}: {why}");
            }
        }
    }
}
