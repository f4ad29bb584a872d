#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keepup_fuzz::bounded(keepup::fuzzing::assignments, data));
