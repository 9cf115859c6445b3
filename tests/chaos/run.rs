//! One run of a scenario, and many of them, several at once.

use std::any::Any;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};

use crate::oracle::Verdict;
use crate::report::{Outcome, directory, record};
use crate::scenario::{ALL, Scenario};
use crate::stage::{Servers, Stage};
use crate::state::{commit, machine, state};

/// No run takes so long, whatever else the machine does.
const LIMIT: Duration = Duration::from_secs(600);

/// What is to be run.
pub(crate) struct Plan {
    pub(crate) runs: Vec<(&'static Scenario, u64)>,
    pub(crate) jobs: usize,
    /// A part of the faults of each run.
    pub(crate) short: bool,
}

impl Plan {
    /// Each of these with `runs` seeds, and with a tenth of them those that take long; one after the other, seed by seed.
    pub(crate) fn new(scenarios: &[&'static Scenario], first_seed: u64, runs: u64) -> Self {
        let seeds = |scenario: &Scenario| if scenario.slow { runs.div_ceil(10) } else { runs };
        let of = |number| scenarios.iter().filter(move |scenario| number < seeds(scenario));
        let runs = (0..runs).flat_map(|number| of(number).map(move |&scenario| (scenario, first_seed + number)));
        Self { runs: runs.collect(), jobs: 2, short: false }
    }

    /// Runs all of it and returns what came of each; `keep` notes every one in the results.
    pub(crate) fn carry_out(self, keep: bool) -> Vec<Outcome> {
        let (all, short) = (self.runs.len(), self.short);
        let left = Mutex::new(self.runs.into_iter().enumerate());
        // A run is no future that could move to another thread.
        let job = async || {
            let (mut servers, mut outcomes) = (None, Vec::new());
            while let Some((at, (scenario, seed))) = next(&left) {
                let outcome = run(&mut servers, scenario, seed, short).await;
                println!("{:>4}/{all}  {outcome}", at + 1);
                if keep {
                    record(&outcome);
                }
                outcomes.push(outcome);
            }
            outcomes
        };
        // The threads of a job have its name, by which what they cost is found.
        let in_a_runtime = |name: &str| runtime(name).block_on(job());
        std::thread::scope(|scope| {
            let start = |number| {
                let name = format!("job-{number}");
                let thread = std::thread::Builder::new().name(name.clone());
                thread.spawn_scoped(scope, move || in_a_runtime(&name)).expect("a thread can be started")
            };
            let jobs: Vec<_> = (0..self.jobs.max(1)).map(start).collect();
            jobs.into_iter().flat_map(|job| job.join().expect("a job does not panic")).collect()
        })
    }
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("a runtime")
}

fn next<T>(left: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    left.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// The scenarios of these rows, or all of them.
pub(crate) fn scenarios(numbers: &[u32]) -> Vec<&'static Scenario> {
    for number in numbers {
        assert!(ALL.iter().any(|scenario| scenario.row == *number), "there is no scenario for row {number}");
    }
    let wanted = ALL.iter().filter(|scenario| numbers.is_empty() || numbers.contains(&scenario.row));
    let possible = wanted.filter(|scenario| match (scenario.lacks)() {
        Some(what) => {
            println!("row {}, {}, is left out: {what}", scenario.row, scenario.name);
            false
        }
        None => true,
    });
    possible.collect()
}

/// One run, on servers that the next one uses too, unless this one fails.
async fn run(servers: &mut Option<Servers>, scenario: &'static Scenario, seed: u64, short: bool) -> Outcome {
    let began = Instant::now();
    let on = tokio::task::block_in_place(|| servers.get_or_insert_with(Servers::start).of(scenario.opening));
    let mut stage = Stage::new(&on, scenario.row, seed, scenario.opening, short).await;
    let played = AssertUnwindSafe(play(&mut stage, scenario)).catch_unwind();
    let (verdict, error) = match tokio::time::timeout(LIMIT, played).await {
        Ok(Ok(verdict)) => (verdict, None),
        Ok(Err(panic)) => (Verdict::default(), Some(words(panic))),
        Err(_elapsed) => (Verdict::default(), Some(format!("it has not ended within {LIMIT:?}"))),
    };
    let error = error.or_else(|| (!verdict.found.is_empty()).then(|| verdict.found.join("\n")));
    let outcome = Outcome {
        state: state().to_owned(),
        commit: commit().to_owned(),
        machine: machine().to_owned(),
        began: UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() - began.elapsed().as_secs()),
        row: scenario.row,
        scenario: scenario.name.to_owned(),
        seed,
        short,
        faults: stage.faults(),
        rows: verdict.rows,
        events: verdict.events,
        lost: verdict.lost,
        wrong: verdict.wrong,
        seconds: began.elapsed().as_secs_f64(),
        cost: stage.cost(),
        error,
    };
    stage.note(outcome.to_string());
    write_journal(&stage, &outcome);
    if outcome.error.is_some() {
        fail(&stage, &outcome);
        // A server may be dead, or frozen.
        drop(stage);
        *servers = None;
    }
    outcome
}

async fn play(stage: &mut Stage, scenario: &Scenario) -> Verdict {
    stage.open().await;
    (scenario.play)(stage).await;
    stage.close().await
}

fn write_journal(stage: &Stage, outcome: &Outcome) {
    let directory = directory().join("journals");
    fs::create_dir_all(&directory).expect("the directory of the journals can be made");
    let error = outcome.error.as_deref().unwrap_or_default();
    let text = format!("{}\n{error}\n", stage.journal.join("\n"));
    let file = directory.join(format!("{}.txt", name(outcome)));
    fs::write(file, text).expect("a journal can be written");
}

/// Of what is kept of a run.
fn name(outcome: &Outcome) -> String {
    format!("row-{}-{}-seed-{}", outcome.row, outcome.scenario, outcome.seed)
}

/// Says how to see it again, and keeps what a person would look at.
fn fail(stage: &Stage, outcome: &Outcome) {
    let kept = directory().join("failures").join(name(outcome));
    let written = stage.keep(&kept);
    println!(
        "FAILED: row {}, {}, seed {}: {}\n  replay: make chaos ROWS={} SEED={} RUNS=1\n  logs: {} {}",
        outcome.row,
        outcome.scenario,
        outcome.seed,
        outcome.error.as_deref().unwrap_or_default(),
        outcome.row,
        outcome.seed,
        kept.display(),
        written.err().map(|error| format!("(not all of them: {error})")).unwrap_or_default(),
    );
}

fn words(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast_ref::<&str>().map_or_else(|| "a panic".to_owned(), |text| (*text).to_owned()),
    }
}
