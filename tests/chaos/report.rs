//! What came of the runs: a file with a line for each, so that a later start goes on where this one ends, and a table.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// One run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Of the sources, with `-dirty` when they are not what was committed.
    pub(crate) commit: String,
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
    /// Nothing when all was as it should be.
    pub(crate) error: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, scenario, seed, faults, rows, events, lost, wrong, seconds, error, .. } = self;
        let state = if error.is_some() { "FAILED" } else { "ok" };
        write!(
            to,
            "row {row:>2} {scenario:<40} seed {seed:<6} {faults:>2} faults {rows:>7} rows {events:>4} events \
             {lost:>2} lost {wrong:>2} wrong {seconds:>6.1} s  {state}"
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

/// The version of the sources.
pub(crate) fn commit() -> String {
    static COMMIT: LazyLock<String> = LazyLock::new(|| {
        let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
        let output = Command::new("git").args(describe).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        text.map_or_else(|| "unknown-dirty".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
    });
    COMMIT.clone()
}

/// Notes a run.
pub(crate) fn record(outcome: &Outcome) {
    fs::create_dir_all(directory()).expect("the directory of the results can be made");
    let line = serde_json::to_string(outcome).expect("an outcome is JSON") + "\n";
    let file = OpenOptions::new().create(true).append(true).open(file());
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the results can be written");
}

/// The runs at length of this version that are noted.
pub(crate) fn recorded() -> Vec<Outcome> {
    let text = fs::read_to_string(file()).unwrap_or_default();
    let all = text.lines().filter_map(|line| serde_json::from_str::<Outcome>(line).ok());
    all.filter(|outcome| outcome.commit == commit() && !outcome.short).collect()
}

/// Whether there is no need to run this once more: it went well, and the sources are those that were committed.
pub(crate) fn is_done(recorded: &[Outcome], row: u32, seed: u64) -> bool {
    !commit().ends_with("-dirty")
        && recorded.iter().any(|outcome| (outcome.row, outcome.seed) == (row, seed) && outcome.error.is_none())
}

/// A table of the rows, and of all of them together.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut lines = vec![
        "| Row | Scenario | Runs | Faults | Rows checked | Events checked | Lost | Wrong | Failed runs | At most (95 %) | s/run |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let mut rows: BTreeMap<(u32, &str), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        rows.entry((outcome.row, &outcome.scenario)).or_default().push(outcome);
    }
    for ((row, scenario), of) in &rows {
        lines.push(line(&row.to_string(), &format!("`{scenario}`"), of));
    }
    lines.push(line("", "all", &outcomes.iter().collect::<Vec<_>>()));
    lines.join("\n")
}

fn line(row: &str, scenario: &str, of: &[&Outcome]) -> String {
    let sum = |what: fn(&Outcome) -> u64| of.iter().map(|outcome| what(outcome)).sum::<u64>();
    let failed = of.iter().filter(|outcome| outcome.error.is_some()).count();
    format!(
        "| {row} | {scenario} | {} | {} | {} | {} | {} | {} | {failed} | {:.1} % | {:.1} |",
        of.len(),
        sum(|outcome| outcome.faults.into()),
        sum(|outcome| outcome.rows),
        sum(|outcome| outcome.events),
        sum(|outcome| outcome.lost),
        sum(|outcome| outcome.wrong),
        100.0 * upper_bound(failed, of.len()),
        of.iter().map(|outcome| outcome.seconds).sum::<f64>() / of.len().max(1) as f64,
    )
}

/// The rate of failures that so many of so many runs leave possible at 95 %, one-sided, by Clopper and Pearson; without
/// a failure about three in the number of runs.
pub(crate) fn upper_bound(failed: usize, runs: usize) -> f64 {
    if failed >= runs {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if at_most(failed, runs, middle) > 0.05 { low = middle } else { high = middle }
    }
    high
}

/// The probability of no more than `failed` failures in `runs` runs, when each fails with probability `rate`.
fn at_most(failed: usize, runs: usize, rate: f64) -> f64 {
    let mut logarithm = runs as f64 * (1.0 - rate).ln();
    let mut sum = logarithm.exp();
    for next in 1..=failed {
        logarithm += ((runs - next + 1) as f64 / next as f64).ln() + (rate / (1.0 - rate)).ln();
        sum += logarithm.exp();
    }
    sum
}

#[test]
fn no_failure_in_n_runs_leaves_a_rate_of_three_in_n() {
    assert!((upper_bound(0, 100) - 0.029_51).abs() < 1e-4, "{}", upper_bound(0, 100));
    assert!((upper_bound(0, 1) - 0.95).abs() < 1e-9);
    assert!((upper_bound(1, 20) - 0.216_11).abs() < 1e-4, "{}", upper_bound(1, 20));
    assert!((upper_bound(3, 10) - 0.606_62).abs() < 1e-4, "{}", upper_bound(3, 10));
    assert!((upper_bound(2, 2) - 1.0).abs() < 1e-9);
}
