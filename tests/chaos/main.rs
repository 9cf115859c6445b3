//! Faults, again and again, with a seed: `make chaos`, and a short selection of them in `make test`.
//!
//! Each run has databases of its own, the daemon between them, and a load: sessions that say what follows from the seed
//! ([`script`]). A [`scenario`] injects one kind of fault, a row of the matrix in `docs/faults.md`, at moments that follow from
//! the seed too; what else happens on the machine decides what it meets there. A [`witness`] looks at the order of positions
//! all the time, and once the load has ended and all is quiet the [`oracle`] compares everything.
//!
//! The servers and the comparison are those of the integration tests. Nothing in here uses walhouse's own code.

// A run that can not go on has failed.
#![allow(clippy::unwrap_used)]

mod cost;
mod events;
mod load;
mod oracle;
mod report;
mod run;
mod scenario;
mod script;
mod sieve;
mod soak;
mod stage;
mod state;
mod table;
mod wire;
mod witness;

#[path = "../it/support/mod.rs"]
mod support;

use std::fmt::Debug;
use std::str::FromStr;

use run::{Plan, scenarios};

/// What `make test` runs of it: quick ones, each of which breaks something else.
const SELECTION: [u32; 8] = [1, 2, 3, 4, 8, 10, 14, 15];

#[test]
fn a_short_seeded_selection_of_faults_loses_and_changes_nothing() {
    let seed = variable("WALHOUSE_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    println!("repeat with WALHOUSE_SEED={seed}");
    let plan = Plan { short: true, ..Plan::new(&scenarios(&SELECTION), seed, 1) };
    let outcomes = plan.carry_out(false);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.error.is_some()).collect();
    assert!(failed.is_empty(), "{} runs have failed: {failed:#?}", failed.len());
}

#[test]
#[ignore = "as long as one wants: make chaos"]
fn at_length() {
    let numbers: Vec<u32> = list("CHAOS_ROWS");
    let (runs, seed) = (variable("CHAOS_RUNS").unwrap_or(3), variable("CHAOS_SEED").unwrap_or(1));
    let mut plan = Plan::new(&scenarios(&numbers), seed, runs);
    plan.jobs = variable("CHAOS_JOBS").unwrap_or(4);
    let (all, recorded) = (plan.runs.len(), report::recorded());
    plan.runs.retain(|(scenario, seed)| !report::is_done(&recorded, scenario.name, *seed));
    println!(
        "{all} runs of state {}, {} of them done before, {} at once; results: {}",
        state::state(),
        all - plan.runs.len(),
        plan.jobs,
        report::directory().display()
    );
    let failed = plan.carry_out(true).iter().filter(|outcome| outcome.error.is_some()).count();
    println!("\nAll runs of this state so far:\n\n{}\n", table::table(&report::recorded()));
    assert_eq!(failed, 0, "runs have failed; above, each has its seed");
}

#[test]
#[ignore = "as long as one wants: make soak"]
fn soak() {
    let (minutes, seed) = (variable("SOAK_MINUTES").unwrap_or(60), variable("CHAOS_SEED").unwrap_or(1));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let found = runtime.block_on(soak::run(minutes, seed));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
#[ignore = "writes into the documentation: make chaos-publish"]
fn publish() {
    table::publish(&report::recorded());
}

/// A number of the environment; an empty one is none.
fn variable<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error:?}")))
}

/// Numbers with commas between them.
fn list<T: FromStr<Err: Debug>>(name: &str) -> Vec<T> {
    let text = std::env::var(name).unwrap_or_default();
    let numbers = text.split(',').map(str::trim).filter(|number| !number.is_empty());
    numbers.map(|number| number.parse().unwrap_or_else(|error| panic!("{name}={text}: {error:?}"))).collect()
}
