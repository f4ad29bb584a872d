//! What the member's loop asks of a group, whoever plays it: librdkafka's
//! client on a real cluster, or a script in a test.

use std::sync::Arc;
use std::time::Duration;

use crate::record::TopicPartition;

/// Others hear of a newcomer with their next heartbeat, 3 s later by default.
pub(crate) const SHARE_WITHIN: Duration = Duration::from_secs(5);

/// Something that the group says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GroupEvent {
    /// These partitions are ours. Waits for [`Group::answer_assign`].
    Assigned(Vec<TopicPartition>),
    /// These partitions are taken away; where `lost`, they are gone already.
    /// Waits for [`Group::answer_revoke`].
    Revoked {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    /// The group counts us as a member, whatever it gives. Said again and again,
    /// and only where an assignment of nothing is not said (KIP-848).
    TakenIn,
    /// A commit was answered: these offsets hold from now on.
    Committed { offsets: Vec<(TopicPartition, i64)> },
    /// A commit failed. What was stored stays stored and is tried again.
    CommitFailed {
        offsets: Vec<(TopicPartition, i64)>,
        error: String,
        /// Where the coordinator answered, and did not take the offset of at
        /// least one of these partitions. `None` where it gave no answer, or
        /// another broker did: then the same is sent again, and may arrive late.
        refusal: Option<CommitRefusal>,
    },
    /// Contact was lost or something else went wrong that may pass.
    Trouble { message: String },
    /// The membership is over for good.
    Fatal { message: String },
    /// Another member of the group has our instance id, and the group does not
    /// take us before its session is over (KIP-848). Waits for
    /// [`Group::join_again`].
    InstanceHeld { instance: String },
    /// Another member took our instance id over (classic): the membership is
    /// over for good.
    Fenced { instance: String },
}

/// Why a coordinator does not take a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitRefusal {
    /// Its metadata is longer than the broker's `offset.metadata.max.bytes`.
    NoteTooLarge,
    /// Anything else: permissions, a topic that is gone, a rebalance.
    Other,
}

/// What is to be committed of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) partition: TopicPartition,
    /// Next offset such that every record below it is completed.
    pub(crate) watermark: i64,
    /// The commit's metadata: what is completed beyond that.
    pub(crate) note: Option<Arc<str>>,
    /// There is more than fits into it.
    pub(crate) is_cut: bool,
}

impl Mark {
    /// Of an offset, and nothing else.
    pub(crate) fn at(partition: TopicPartition, watermark: i64) -> Self {
        Self {
            partition,
            watermark,
            note: None,
            is_cut: false,
        }
    }
}

/// The membership of this process in its group. Owned and called by the
/// member's thread only; no method waits longer than it is told to.
pub(crate) trait Group: Send {
    /// Begins to join.
    fn join(&mut self) -> Result<(), String>;

    /// Begins to join once more, after [`GroupEvent::InstanceHeld`].
    fn join_again(&mut self) -> Result<(), String> {
        self.join()
    }

    /// What the group says next; `None` where there is nothing.
    fn poll(&mut self) -> Option<GroupEvent>;

    /// Calls `wake`, from any thread, when there may be something to poll. What
    /// cannot do so is polled at every tick all the same.
    fn on_ready(&mut self, wake: Arc<dyn Fn() + Send + Sync>);

    /// Takes what was assigned: it is ours from now on, and not fetched by the
    /// group's own client.
    fn answer_assign(&mut self, partitions: &[TopicPartition]) -> Result<(), String>;

    /// True where a revoke is always followed by an assignment: as long as that
    /// has not come the rebalance goes on.
    fn gives_everything_anew(&self) -> bool {
        false
    }

    /// How often what is stored is committed, as long as that is not confirmed.
    fn commit_interval(&self) -> Duration {
        Duration::from_millis(500)
    }

    /// How long after a member was taken in its share may still be on the way to
    /// it: others let go first.
    fn share_within(&self) -> Duration {
        SHARE_WITHIN
    }

    /// Lets go of what was revoked. What was stored for it is committed first.
    fn answer_revoke(&mut self, partitions: &[TopicPartition]) -> Result<(), String>;

    /// True where the group has given away what it is about to take: asked
    /// again right before a watermark is stored for a revoke, since the session
    /// may have expired while workers drained.
    fn is_lost(&self) -> bool;

    /// Stores watermarks for the next commit. Gives back those that were
    /// refused (not ours any more), with the reason.
    fn store(&mut self, marks: &[Mark]) -> Vec<(TopicPartition, String)>;

    /// Stores and commits at once what is not committed by being stored: an
    /// offset below the one that is committed, or the same with another note.
    /// What comes of it is not told: where that matters it has to be read back.
    fn commit_now(&mut self, marks: &[Mark]) -> Result<(), String>;

    /// Begins to leave: what is stored is committed, what is assigned is
    /// revoked through [`Group::poll`].
    fn begin_close(&mut self);

    /// True once the group was left, and nothing is pending.
    fn is_closed(&self) -> bool;

    /// How long the group waits for a sign of life. `None` where there is no
    /// session.
    fn session_timeout(&self) -> Option<Duration>;

    /// How long the process may be asleep before it may have been replaced.
    /// `None` where there is no session.
    fn sleep_limit(&self) -> Option<Duration> {
        self.session_timeout().map(|timeout| timeout / 2)
    }

    /// Ends the client within about `patience`; false where it did not come to
    /// an end and was left behind.
    fn finish(self: Box<Self>, patience: Duration) -> bool;
}
