//! A simulation of the acknowledgement: walhouse's own flow, between servers that are made up, with a clock that is.
//!
//! docs/faults.md says what is real here, what is not, and how a schedule is repeated.
//!
//! - `make simulate RUNS=… SEED=…` runs many schedules.
//! - `cargo test --test simulation` runs some, for some seconds, from a seed that it prints.

mod clickhouse;
mod dice;
mod native;
mod postgres;
mod process;
mod schedule;
mod sql;
mod sqs;
mod wal;
mod wire;
mod world;

use std::{
    env,
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long the test goes on that runs with all others, and how many schedules it wants to have run by then.
const SHORT: Duration = Duration::from_secs(15);

/// Numbers out of the environment, as `make simulate` gives them; empty is absent.
fn given<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs schedules on all cores, until there were so many or the time is over, or one fails; says how many there were.
fn explore(first: u64, runs: u64, limit: Option<Duration>) -> u64 {
    let (next, began, failed) = (AtomicU64::new(0), Instant::now(), Mutex::new(None::<u64>));
    let (done, commits, processes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let work = || {
        while !over.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= runs || limit.is_some_and(|limit| began.elapsed() > limit) {
                return;
            }
            let seed = first.wrapping_add(number);
            let outcome = schedule::run(seed, false);
            if outcome.violation.is_some() {
                over.store(true, Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(seed);
            }
            commits.fetch_add(outcome.commits as u64, Ordering::Relaxed);
            processes.fetch_add(outcome.processes as u64, Ordering::Relaxed);
            let done = 1 + done.fetch_add(1, Ordering::Relaxed);
            if done.is_multiple_of(10_000) {
                println!("{done} schedules, {:.0} a second", done as f64 / began.elapsed().as_secs_f64());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..given("SIMULATE_JOBS").unwrap_or(thread::available_parallelism().map_or(1, usize::from)) {
            scope.spawn(work);
        }
    });
    let (done, seconds) = (done.into_inner(), began.elapsed().as_secs_f64());
    println!(
        "{done} schedules from seed {first} on in {seconds:.1} s, {:.0} a second: {} processes, {} commits",
        done as f64 / seconds,
        processes.into_inner(),
        commits.into_inner()
    );
    if let Some(seed) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        tell(seed);
    }
    done
}

/// Runs a schedule once more, and prints all that happens in it.
fn tell(seed: u64) {
    let outcome = schedule::run(seed, true);
    outcome.history.iter().for_each(|line| println!("{line}"));
    match outcome.violation {
        Some(what) => panic!("seed {seed}: {what}\nto repeat it: make simulate RUNS=1 SEED={seed}"),
        None => panic!("seed {seed} failed, and did not when it was repeated: the simulation is not deterministic"),
    }
}

#[test]
fn every_promise_holds_in_schedules_of_a_random_seed() {
    let first = given("SIMULATE_SEED").unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let done = explore(first, u64::MAX, Some(SHORT));
    assert!(done > 0);
}

#[test]
fn a_seed_gives_the_same_schedule_each_time() {
    for seed in 0..20 {
        let (first, second) = (schedule::run(seed, true), schedule::run(seed, true));
        for (index, (one, other)) in first.history.iter().zip(&second.history).enumerate() {
            assert_eq!(one, other, "seed {seed}, step {index}");
        }
        assert_eq!(first.history.len(), second.history.len(), "seed {seed}");
    }
}

#[test]
#[ignore = "as long as it is told to: make simulate"]
fn at_length() {
    let first = given("SIMULATE_SEED").unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let runs = given("SIMULATE_RUNS").unwrap_or(100_000);
    if given::<u8>("SIMULATE_TELL").is_some() {
        return tell(first);
    }
    explore(first, runs, None);
}
