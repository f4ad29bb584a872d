//! The fetch source (under construction).

mod buffers;
mod compression;
#[cfg(test)]
mod encode;
mod record_set;
