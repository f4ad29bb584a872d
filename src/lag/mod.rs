//! Lag by itself: how far behind every partition is, exact and always there.
//!
//! A consumer that does not know its lag does not know whether it works. So the
//! runtime measures it, without being asked, and three things keep the number
//! worth trusting:
//!
//! - It is known by the *member*, not by the worker: a partition whose worker
//!   died or is stuck keeps its true, growing lag, and one that was revoked has
//!   none from that moment on.
//! - End offsets come with every answer that brings records. Those older than a
//!   second (paused, stuck, idle) are asked for, over a connection of the
//!   reporter's own and with the consumer's isolation level.
//! - What is unknown stays unknown: no series, `null`, `None`. Never zero, -1
//!   or NaN.
//!
//! | file | what it is for |
//! |---|---|
//! | [`window`] | average and extremes over 2 × 30 s, with the Java client's rules |
//! | [`estimate`] | lag, lead, time lag, staleness, being stuck: pure functions |
//! | [`partition`] | one partition from tick to tick |
//! | [`health`] | what liveness and readiness say, and why |
//! | `history` | the last minutes, for the page (feature `http`) |
//! | [`advice`] | how many workers the load wants: pure |
//! | [`topics`] | what happened to the records of a topic |
//! | [`snapshot`] | what one tick found: the public types |
//! | [`board`] | where the latest snapshot hangs, for all who want to see it |
//! | [`reporter`] | the thread that ticks |

pub(crate) mod advice;
pub(crate) mod board;
pub(crate) mod estimate;
pub(crate) mod health;
#[cfg(feature = "http")]
pub(crate) mod history;
pub(crate) mod partition;
pub(crate) mod reporter;
pub(crate) mod snapshot;
pub(crate) mod topics;
pub(crate) mod window;

pub use snapshot::{
    Advice, CommitNotes, ConnectionErrors, Health, LagSnapshot, MemberState, OutcomeTotals,
    PartitionLag, TopicTotals, WorkerState, WorkerStatus,
};
