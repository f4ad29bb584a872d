//! Entrances for fuzzers: bytes in, a panic where something that must hold does
//! not. Not an interface; the feature `fuzzing` is for `fuzz/` alone.
//!
//! What must hold stands beside the code that it holds of. The corpus in
//! `fuzz/seeds/` is made of real bytes, and is run through here by a unit test.

/// Takes bytes from a peer.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its binary in `fuzz/` and of
/// its folder of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("answers", answers),
    ("assignments", assignments),
    #[cfg(feature = "ssl")]
    ("conversations", conversations),
    ("frames", frames),
    ("record_set", record_set),
];

/// The body of an answer; the first two bytes are Kafka's number of the request
/// and the version.
pub fn answers(data: &[u8]) {
    crate::kafka::messages::fuzz::answer(data);
}

/// What a member of a classic group has as its assignment.
pub fn assignments(data: &[u8]) {
    crate::kafka::messages::fuzz::assignment(data);
}

/// What a broker says while a user proves by SCRAM to be one.
#[cfg(feature = "ssl")]
pub fn conversations(data: &[u8]) {
    crate::kafka::scram::fuzz::conversation(data);
}

/// Frames from a socket; the first eight bytes say in which pieces they come.
pub fn frames(data: &[u8]) {
    crate::kafka::frame::fuzz::frames(data);
}

/// The record set of a partition; the first three bytes say how it is read.
pub fn record_set(data: &[u8]) {
    crate::source::fetch::fuzz::record_set(data);
}

/// The most that reading an answer or an assignment of `length` bytes may
/// allocate, all allocations added up: of what is decoded the 16 bytes of memory
/// for one on the wire that the walk lets through, in the decoder's form and in
/// ours, each request twice that shares its answer with another.
pub const fn most_allocated(length: usize) -> usize {
    512 * 1024 + 128 * length
}

#[cfg(test)]
mod tests;
