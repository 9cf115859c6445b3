//! `docs/runbooks.md`: in the state that an alert tells of, each command of its section finds what the page says, and mends it.
//!
//! `alerts` has the sections whose alerts tell of something that is broken; here are those that tell of something that is slow,
//! near its end, or hidden.

mod clickhouse;
mod held;
mod process;
mod queues;
mod replication;
mod slot;
mod tables;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::support::{Daemon, NOT_TESTED, Prometheus, TestDb, eventually, fenced, sections, walhouse};

/// The commands that no test can run, each with what it needs.
const EXCEPTIONS: [&str; 3] = [
    "WalhouseNotScraped: systemd: systemctl reload prometheus",
    "WalhouseRestarts: systemd: journalctl -u walhouse --since -15min | grep -B 3 'Main process exited'",
    "WalhouseNoCheckpoint: systemd: systemctl restart walhouse",
];

/// A Prometheus that scrapes the daemon, by rules with other thresholds, and in which the alert rests.
async fn watched(db: &TestDb, daemon: &Daemon, alert: &str, thresholds: &[(&str, &str)]) -> Prometheus {
    let prometheus = Prometheus::scraping_by(daemon.port(), &db.directory, thresholds);
    prometheus.scraped().await;
    prometheus.rests(alert).await;
    prometheus
}

/// From now on each insert into `item` takes three seconds, while all else that ClickHouse is asked is answered at once.
async fn slow_down(db: &TestDb) {
    let view = "SELECT id, sleep(3) AS waited FROM item";
    db.ch.query(&format!("CREATE MATERIALIZED VIEW item_by_hour ENGINE = Null AS {view}")).await;
}

async fn speed_up(db: &TestDb) {
    db.ch.query("DROP VIEW item_by_hour").await;
}

/// Waits until both sides are equal.
async fn equal(daemon: &Daemon) {
    eventually(Duration::from_secs(60), async || {
        let exit = walhouse(daemon.config(), &["verify"]).await;
        if exit.code == Some(0) { Ok(()) } else { Err(format!("{exit:?}")) }
    })
    .await;
}

/// The sources of all tests but the support, as one text.
fn sources(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).expect("the tests can be read").flatten().map(|entry| entry.path());
    let text = |path: std::path::PathBuf| match path.is_dir() {
        true if path.ends_with("support") => String::new(),
        true => sources(&path),
        false => std::fs::read_to_string(&path).expect("a test can be read"),
    };
    entries.map(text).collect()
}

#[test]
fn every_command_of_the_page_is_run_by_a_test_or_is_one_of_the_exceptions() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it"));
    let mut exceptions = BTreeSet::new();
    for (alert, section) in sections() {
        let (not_tested, tested): (Vec<_>, Vec<_>) =
            fenced(section).into_iter().map(|(_, code)| code.trim()).partition(|code| code.starts_with(NOT_TESTED));
        // What takes its steps apart has a name for each of them, and the compiler tells of one that is not used.
        let taken = sources.contains(&format!("steps(\"{alert}\", "));
        assert!(taken && !tested.is_empty(), "no test runs the commands of {alert}, or it has none");
        exceptions.extend(not_tested.into_iter().map(|code| {
            let (needs, line) = code[NOT_TESTED.len()..].split_once('\n').expect("a command follows");
            format!("{alert}: {needs}: {line}")
        }));
    }
    assert_eq!(exceptions, BTreeSet::from(EXCEPTIONS.map(str::to_owned)));
}
