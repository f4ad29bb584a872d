//! The group member: what is assigned, what is committed, and the loop that
//! talks to the group.
//!
//! | file | question |
//! |---|---|
//! | [`assignment`] | what happens on assign, revoke, lost, seek, move |
//! | [`placement`] | which worker gets which partition |
//! | [`reset`] | what becomes of a position that cannot be read |
//! | [`patience`] | is a rebalance stuck |
//! | [`claim`] | what becomes of a member whose instance id another one has |

pub(crate) mod assignment;
pub(crate) mod claim;
pub(crate) mod group;
pub(crate) mod patience;
pub(crate) mod placement;
pub(crate) mod reset;
pub(crate) mod run;
pub(crate) mod zombie;
