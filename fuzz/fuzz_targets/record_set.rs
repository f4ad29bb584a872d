#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keepup::fuzzing::record_set(data));
