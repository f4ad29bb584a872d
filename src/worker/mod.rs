//! Workers: what owns partitions, pulls their records and runs the handler.

pub(crate) mod engine;
