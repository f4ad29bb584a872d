//! The keepup command.
fn main() {}
