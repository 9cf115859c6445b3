//! The table of all runs of one state, and its place in the documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::report::Outcome;
use crate::state::state;

/// The table stands between these lines.
const BEGIN: &str = "<!-- results: make chaos-publish -->";
const END: &str = "<!-- end of results -->";

/// What was run of which version, when and where, and a table of the rows and of all of them together.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut lines = vec![
        heading(outcomes),
        String::new(),
        "| Row | Scenario | Runs | Faults | Rows checked | Events checked | Lost | Wrong | Failed runs | At most (95 %) | s/run \
         | CPU s/run |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
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

fn heading(outcomes: &[Outcome]) -> String {
    let day = |second: u64| {
        let text = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).to_string();
        text.split('T').next().unwrap_or_default().to_owned()
    };
    let several = |text: fn(&Outcome) -> &str| {
        let all: BTreeSet<&str> = outcomes.iter().map(text).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let days: BTreeSet<String> = outcomes.iter().map(|outcome| day(outcome.began)).collect();
    let hours = outcomes.iter().map(|outcome| outcome.seconds).sum::<f64>() / 3600.0;
    format!(
        "State {} (commit {}), {}, on {}: {} runs, {hours:.1} hours of them if they had come one after the other.",
        state(),
        several(|outcome| &outcome.commit),
        days.into_iter().collect::<Vec<_>>().join(", "),
        several(|outcome| &outcome.machine),
        outcomes.len(),
    )
}

fn line(row: &str, scenario: &str, of: &[&Outcome]) -> String {
    let sum = |what: fn(&Outcome) -> u64| of.iter().map(|outcome| what(outcome)).sum::<u64>();
    let mean = |what: fn(&Outcome) -> f64| of.iter().map(|outcome| what(outcome)).sum::<f64>() / of.len().max(1) as f64;
    let failed = of.iter().filter(|outcome| outcome.error.is_some()).count();
    format!(
        "| {row} | {scenario} | {} | {} | {} | {} | {} | {} | {failed} | {:.1} % | {:.1} | {:.1} |",
        of.len(),
        sum(|outcome| outcome.faults.into()),
        sum(|outcome| outcome.rows),
        sum(|outcome| outcome.events),
        sum(|outcome| outcome.lost),
        sum(|outcome| outcome.wrong),
        100.0 * upper_bound(failed, of.len()),
        mean(|outcome| outcome.seconds),
        mean(|outcome| outcome.cost.sum()),
    )
}

/// Puts the table into the documentation, in the place of the one that is there.
pub(crate) fn publish(outcomes: &[Outcome]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
    let text = fs::read_to_string(&page).expect("the page can be read");
    let (before, rest) = text.split_once(BEGIN).expect("the page has a place for the results");
    let (_, after) = rest.split_once(END).expect("that place has an end");
    let text = format!("{before}{BEGIN}\n{}\n{END}{after}", table(outcomes));
    fs::write(&page, text).expect("the page can be written");
}

/// The rate of failures that so many of so many runs leave possible at 95 %, one-sided, by Clopper and Pearson; without
/// a failure about three in the number of runs.
fn upper_bound(failed: usize, runs: usize) -> f64 {
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
