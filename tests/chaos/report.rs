//! What came of the runs: a file with a line for each, so that a later start goes on where this one ends.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cost::Cost;
use crate::state::state;

/// One run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Of all that decides how it ends; it counts for that alone.
    pub(crate) state: String,
    /// What was checked out then.
    pub(crate) commit: String,
    pub(crate) machine: String,
    /// In seconds of Unix time.
    pub(crate) began: u64,
    pub(crate) row: u32,
    pub(crate) scenario: String,
    pub(crate) seed: u64,
    pub(crate) short: bool,
    pub(crate) faults: u32,
    /// Rows that were compared: at the end, in all their versions, and under a checkpoint.
    pub(crate) rows: u64,
    pub(crate) events: u64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    pub(crate) seconds: f64,
    pub(crate) cost: Cost,
    /// Nothing when all was as it should be.
    pub(crate) error: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, scenario, seed, faults, rows, events, lost, wrong, seconds, cost, error, .. } = self;
        let state = if error.is_some() { "FAILED" } else { "ok" };
        write!(
            to,
            "row {row:>2} {scenario:<40} seed {seed:<6} {faults:>2} faults {rows:>7} rows {events:>4} events \
             {lost:>2} lost {wrong:>2} wrong {seconds:>6.1} s, {:.1} s CPU  {state}",
            cost.sum()
        )
    }
}

/// Where results, journals and logs are kept.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("chaos")
}

fn file() -> PathBuf {
    directory().join("results.jsonl")
}

/// Notes a run.
pub(crate) fn record(outcome: &Outcome) {
    fs::create_dir_all(directory()).expect("the directory of the results can be made");
    let line = serde_json::to_string(outcome).expect("an outcome is JSON") + "\n";
    let file = OpenOptions::new().create(true).append(true).open(file());
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the results can be written");
}

/// The runs at length of this state that are noted.
pub(crate) fn recorded() -> Vec<Outcome> {
    let text = fs::read_to_string(file()).unwrap_or_default();
    let all = text.lines().filter_map(|line| serde_json::from_str::<Outcome>(line).ok());
    all.filter(|outcome| outcome.state == state() && !outcome.short).collect()
}

/// Whether there is no need to run this once more: it went well.
pub(crate) fn is_done(recorded: &[Outcome], scenario: &str, seed: u64) -> bool {
    let is_it = |outcome: &Outcome| outcome.scenario == scenario && outcome.seed == seed;
    recorded.iter().any(|outcome| is_it(outcome) && outcome.error.is_none())
}
