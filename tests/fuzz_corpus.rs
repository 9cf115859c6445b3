//! The fuzz targets as ordinary tests: the committed corpus, whatever has found something, and mutations of both.
//!
//! `make fuzz` looks for more; this holds what is known, on the compiler that everybody has.

// A test that can not go on has failed.
#![allow(clippy::unwrap_used)]

#[path = "fuzz/src/lib.rs"]
#[allow(dead_code)]
mod fuzz;

use fuzz::TARGETS;
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Mutations of each target's inputs.
const MUTATIONS: u32 = 4_000;

/// The files of a folder, in their order.
fn inputs(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(folder).join(target);
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

fn known(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let corpus = inputs("corpus", target);
    assert!(corpus.len() >= 5, "the corpus of {target} is there");
    [corpus, inputs("found", target)].concat()
}

#[test]
fn every_input_that_is_known_keeps_its_promises() {
    let mut broken = Vec::new();
    for (name, run) in TARGETS {
        for (file, input) in known(name) {
            if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "promises are broken: {broken:#?}");
}

/// What a mutation does to bytes.
fn mutate(input: &mut Vec<u8>, others: &[(PathBuf, Vec<u8>)], random: &mut SmallRng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=input.len());
        let end = random.random_range(at..=input.len());
        match random.random_range(0..6) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = *b"\0\x01\x7f\xff0\"{}\\,\t\n-.:' BCtN".choose(random).unwrap(),
            2 => drop(input.drain(at..end.min(at + 16))),
            3 => drop(input.splice(at..at, input[at..end.min(at + 64)].to_vec())),
            4 => input.truncate(at),
            _ => {
                let (_, other) = others.choose(random).unwrap();
                let from = random.random_range(0..=other.len());
                drop(input.splice(at..end, other[from..].iter().take(64).copied()));
            }
        }
    }
}

#[test]
fn mutations_of_what_is_known_keep_them_too() {
    let seed = std::env::var("WALHOUSE_FUZZ_SEED").map_or(1, |seed| seed.parse().expect("a seed is a number"));
    let mut broken = Vec::new();
    for (name, run) in TARGETS {
        let inputs = known(name);
        let mut random = SmallRng::seed_from_u64(seed);
        for mutation in 0..MUTATIONS {
            let mut input = inputs.choose(&mut random).unwrap().1.clone();
            input.truncate(4096);
            mutate(&mut input, &inputs, &mut random);
            if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
                let file = std::env::temp_dir().join(format!("walhouse-fuzz-{name}"));
                fs::write(&file, &input).unwrap();
                broken.push(format!("{name}: mutation {mutation} of seed {seed}, which is in {}", file.display()));
                break;
            }
        }
    }
    assert!(broken.is_empty(), "promises are broken: {broken:#?}");
}
