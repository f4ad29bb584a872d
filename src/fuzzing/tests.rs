use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::kafka::messages::Api;
use crate::kafka::messages::fuzz::every_version;
use crate::kafka::messages::tests::{assignment_bytes, real_answer};
use crate::source::fetch::encode::real_sets;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target)
}

/// What each target is fed with that is real, by name.
fn real_bytes(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "answers" => every_version()
            .map(|(api, version)| {
                let mut bytes = number(api, version).to_vec();
                bytes.extend(real_answer(api, version));
                (format!("{api}-{version}"), bytes)
            })
            .collect(),
        "assignments" => (0..=4)
            .map(|version| {
                (
                    format!("version-{version}"),
                    assignment_bytes(version).to_vec(),
                )
            })
            .collect(),
        #[cfg(feature = "ssl")]
        "conversations" => {
            use crate::kafka::scram::tests::{PROVEN, SALTED};

            ["sha-256", "sha-512"]
                .into_iter()
                .zip(0..)
                .map(|(name, choice)| {
                    let said = format!("{SALTED}\n{PROVEN}");
                    (name.to_owned(), [&[choice], said.as_bytes()].concat())
                })
                .collect()
        }
        "frames" => frames_of_every_version(),
        "record_set" => real_sets()
            .into_iter()
            .flat_map(|(name, set)| {
                // As it is, and with CRCs that are made to fit and everything
                // that can be asked for.
                [("plain", [0, 0, 0]), ("asked", [0b0110_0111, 2, 30])].map(|(how, switches)| {
                    let mut bytes = switches.to_vec();
                    bytes.extend(&set);
                    (format!("{name}-{how}"), bytes)
                })
            })
            .collect(),
        other => panic!("nothing real for {other}"),
    }
}

fn number(api: Api, version: i16) -> [u8; 2] {
    [api.key(), version].map(|number| u8::try_from(number).unwrap())
}

/// One stream per kind of request, of a frame per version.
fn frames_of_every_version() -> Vec<(String, Vec<u8>)> {
    let mut streams: Vec<(String, Vec<u8>)> = Vec::new();
    for (api, version) in every_version() {
        let name = api.to_string();
        if streams.last().is_none_or(|(last, _)| *last != name) {
            streams.push((name, vec![1, 3, 200, 7, 255, 2, 64, 90]));
        }
        let mut frame = vec![0, 0];
        frame.extend(number(api, version));
        if api.is_flexible(version) && api != Api::ApiVersions {
            frame.push(0);
        }
        frame.extend(real_answer(api, version));
        let (_, stream) = streams.last_mut().unwrap();
        stream.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
        stream.extend(frame);
    }
    streams
}

/// `KEEPUP_UPDATE_SEEDS=1` writes the seeds anew; what fuzzers found stays.
#[test]
fn every_seed_of_the_fuzzers_keeps_what_must_hold() {
    if std::env::var_os("KEEPUP_UPDATE_SEEDS").is_some() {
        for &(name, _) in TARGETS {
            let folder = folder(name);
            fs::create_dir_all(&folder).unwrap();
            for (seed, bytes) in real_bytes(name) {
                fs::write(folder.join(seed), bytes).unwrap();
            }
        }
    }
    for &(name, target) in TARGETS {
        let mut seeds: Vec<PathBuf> = fs::read_dir(folder(name))
            .unwrap_or_else(|error| panic!("no seeds for {name}: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        seeds.sort();
        for seed in &seeds {
            println!("{}", seed.display());
            target(&fs::read(seed).unwrap());
        }
        for (seed, _) in real_bytes(name) {
            assert!(
                seeds.iter().any(|path| path.ends_with(&seed)),
                "fuzz/seeds/{name}/{seed} is missing: run this test with KEEPUP_UPDATE_SEEDS=1"
            );
        }
    }
}

/// What bytes suffer on the way from real to hostile.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    /// Part of it once more, elsewhere.
    Splice(usize, usize, usize),
    /// A length that claims much, in one of the forms that lengths have.
    Inflate(usize, usize),
}

const LENGTHS: [&[u8]; 6] = [
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x00, 0x0f, 0xff, 0xff],
    &[0x7f, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0x3f],
    &[0xff, 0xff, 0xff, 0xff],
];

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>;
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => at().prop_map(Change::Cut),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), 1..12_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        2 => (at(), at(), 1..64_usize).prop_map(|(from, to, count)| Change::Splice(from, to, count)),
        3 => (at(), 0..LENGTHS.len()).prop_map(|(at, length)| Change::Inflate(at, length)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let place = |at: usize, bytes: &Vec<u8>| at % (bytes.len() + 1);
    match change {
        Change::Set(at, value) => {
            let at = place(*at, bytes);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *value;
            }
        }
        Change::Flip(at, bit) => {
            let at = place(*at, bytes);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        Change::Cut(at) => bytes.truncate(place(*at, bytes)),
        Change::Insert(at, inserted) => {
            let at = place(*at, bytes);
            bytes.splice(at..at, inserted.iter().copied());
        }
        Change::Remove(at, count) => {
            let at = place(*at, bytes);
            let end = (at + count).min(bytes.len());
            bytes.drain(at..end);
        }
        Change::Splice(from, to, count) => {
            let from = place(*from, bytes);
            let part = bytes[from..(from + count).min(bytes.len())].to_vec();
            let to = place(*to, bytes);
            bytes.splice(to..to, part);
        }
        Change::Inflate(at, length) => {
            let at = place(*at, bytes);
            let length = LENGTHS[*length];
            let end = (at + length.len()).min(bytes.len());
            bytes.splice(at..end, length.iter().copied());
        }
    }
}

/// A target, and bytes for it: noise, or real ones with changes behind the
/// first `kept`, which say how they are read.
fn hostile(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let real: Vec<Vec<u8>> = real_bytes(target)
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..300),
        8 => (prop::sample::select(real), prop::collection::vec(change(), 0..6)).prop_map(
            |(mut bytes, changes)| {
                for change in &changes {
                    apply(&mut bytes, change);
                }
                bytes
            }
        ),
    ]
}

fn survive(target: &'static str, cases: u32) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).unwrap().1;
    let mut runner = TestRunner::new(Config {
        source_file: Some(file!()),
        ..Config::with_cases(cases)
    });
    runner
        .run(&hostile(target), |bytes| {
            run(&bytes);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn hostile_answers_end_in_a_typed_error() {
    survive("answers", 20_000);
}

#[test]
fn hostile_assignments_end_in_a_typed_error() {
    survive("assignments", 5_000);
}

#[cfg(feature = "ssl")]
#[test]
fn hostile_conversations_end_in_a_typed_error() {
    survive("conversations", 500);
}

#[test]
fn hostile_frames_end_in_a_typed_error() {
    survive("frames", 3_000);
}

#[test]
fn hostile_record_sets_end_in_a_typed_error() {
    survive("record_set", 3_000);
}

/// Alone in its process, since the allocator is everybody's: `scripts/test` runs
/// it so.
#[test]
#[ignore = "counts the allocations of its whole process"]
fn reading_allocates_no_more_than_the_bytes_justify() {
    for (target, run) in [("answers", answers as Target), ("assignments", assignments)] {
        let mut runner = TestRunner::new(Config {
            source_file: Some(file!()),
            ..Config::with_cases(50_000)
        });
        let bytes = prop_oneof![
            4 => hostile(target),
            // Long ones of the same byte: empty texts, empty arrays.
            1 => (any::<u8>(), any::<u8>(), 0..3_u8, 0..200_000_usize).prop_map(
                |(api, version, byte, length)| {
                    let mut bytes = vec![byte; length + 2];
                    (bytes[0], bytes[1]) = (api, version);
                    bytes
                }
            ),
            // The same behind a count that claims them all.
            1 => (any::<u8>(), any::<u8>(), 0..16_usize, 1..3_u8, 1_000..100_000_u32).prop_map(
                |(api, version, before, byte, count)| {
                    let mut bytes = vec![0; before + 2];
                    (bytes[0], bytes[1]) = (api, version);
                    let mut left = count / u32::from(byte) + 1;
                    while left >= 0x80 {
                        bytes.push(0x80 | u8::try_from(left & 0x7f).unwrap());
                        left >>= 7;
                    }
                    bytes.push(u8::try_from(left).unwrap());
                    bytes.resize(bytes.len() + count as usize, byte);
                    bytes
                }
            ),
        ];
        runner
            .run(&bytes, |bytes| {
                let region = stats_alloc::Region::new(crate::ALLOCATOR);
                run(&bytes);
                let allocated = region.change().bytes_allocated;
                let limit = most_allocated(bytes.len());
                prop_assert!(
                    allocated <= limit,
                    "{allocated} bytes allocated for {} where {limit} are justified",
                    bytes.len()
                );
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
    }
}
