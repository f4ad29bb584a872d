//! Counts what the targets allocate.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Runs a target; panics where it allocates more than its bytes justify.
pub fn bounded(target: keepup::fuzzing::Target, data: &[u8]) {
    let region = Region::new(ALLOCATOR);
    target(data);
    let allocated = region.change().bytes_allocated;
    let limit = keepup::fuzzing::most_allocated(data.len());
    assert!(
        allocated <= limit,
        "{allocated} bytes allocated for {} where {limit} are justified",
        data.len()
    );
}
