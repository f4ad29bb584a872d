//! Workers: what owns partitions, pulls their records and runs the handler.
//!
//! | file | question |
//! |---|---|
//! | [`run`] | what a worker does, in which order |
//! | [`engine`] | what happens per record and per batch |
//! | [`pool`] | who works on what, where workers share all partitions |
//! | [`tracker`] | what is committed |
//! | [`completed`] | what is done beyond what is committed, as a commit's text |
//! | [`retry`] | what happens with a record that failed |
//! | [`dead_letter`] | how a record gets to the dead-letter topic |
//! | [`mailbox`] | how the member tells a worker |
//! | [`gate`] | when no record may be started |

pub(crate) mod completed;
pub(crate) mod dead_letter;
pub(crate) mod engine;
pub(crate) mod gate;
pub(crate) mod lane;
pub(crate) mod mailbox;
pub(crate) mod pool;
pub(crate) mod retry;
pub(crate) mod run;
pub(crate) mod samples;
pub(crate) mod timing;
pub(crate) mod tracker;
