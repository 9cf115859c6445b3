//! What must be true once all is quiet.
//!
//! - Both sides have the same rows, by key and by value.
//! - However often a version of a key was delivered, it is one row. What lies out of line is left aside: what an update leaves
//!   alone is completed from wherever it is found.
//! - The versions of a key are in the order in which its rows were committed, as the sessions noted it in `seq`.
//! - Each event that was committed had its effect, and that once; nothing else had one: [`crate::events`].
//!
//! A reader with FINAL sees the newest version alone. So a view beside each table notes every row that is inserted into it,
//! also those that a merge removes: that is where versions are looked at.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::script::{TABLES, WATCHED};
use crate::support::{TestDb, compared, stopped};
use crate::witness::Seen;

/// How long both sides may take to become equal, on a machine that has other work too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What was compared, and what was found.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) rows: u64,
    pub(crate) events: u64,
    /// Rows and events that are not there.
    pub(crate) lost: u64,
    /// Rows and events that differ, or should not be there.
    pub(crate) wrong: u64,
    /// In words.
    pub(crate) found: Vec<String>,
}

/// Notes from now on what is inserted into the tables that are watched; in memory, which costs a fraction, unless ClickHouse is
/// frail.
pub(crate) async fn watch_versions(db: &TestDb, frail: bool) {
    let engine = if frail { "MergeTree ORDER BY (tab, key, version)" } else { "Memory" };
    db.ch
        .query(&format!(
            "CREATE TABLE seen (tab LowCardinality(String), key String, seq Nullable(Int64), version UInt128,
                deleted UInt8, row UInt64) ENGINE = {engine}"
        ))
        .await;
    for (table, key, values) in WATCHED {
        db.ch
            .query(&format!(
                "CREATE MATERIALIZED VIEW seen_{table} TO seen AS SELECT '{table}' AS tab, {key} AS key, seq,
                    _version AS version, _is_deleted AS deleted, cityHash64(toString(tuple({values}))) AS row FROM {table}"
            ))
            .await;
    }
}

/// Compares all rows. The writers have ended, and what they wrote is acknowledged.
pub(crate) async fn judge(db: &TestDb, more: &[&str]) -> Verdict {
    let (mut verdict, deadline) = (Verdict::default(), Instant::now() + PATIENCE);
    for table in TABLES.iter().chain(&["tick", "tock"]).chain(more) {
        rows(db, table, deadline, &mut verdict).await;
    }
    versions(db, &mut verdict).await;
    match stopped(db).await.as_deref() {
        Ok("") => {}
        other => verdict.wrong(1, format!("stopped tables: {other:?}")),
    }
    match db.ch.try_query("SELECT count() FROM _dead_letters").await.as_deref() {
        Ok("0") => {}
        other => verdict.wrong(1, format!("dead letters: {other:?}")),
    }
    verdict
}

impl Verdict {
    /// What was seen on the way counts as well.
    pub(crate) fn add(&mut self, seen: &Seen) {
        self.rows += seen.covered;
        for what in &seen.wrong {
            self.wrong(1, what.clone());
        }
    }

    pub(crate) fn wrong(&mut self, count: u64, what: String) {
        self.wrong += count;
        self.found.push(what);
    }
}

async fn rows(db: &TestDb, table: &str, deadline: Instant, verdict: &mut Verdict) {
    let last = loop {
        let compared = compared(db, table).await;
        if compared.difference.is_none() || Instant::now() > deadline {
            break compared;
        }
        sleep(Duration::from_millis(200)).await;
    };
    verdict.rows += last.rows;
    if let Some(difference) = last.difference {
        verdict.lost += last.lost;
        verdict.wrong += last.wrong;
        verdict.found.push(format!("{table}: {difference}"));
    }
}

async fn versions(db: &TestDb, verdict: &mut Verdict) {
    if db.ch.query("EXISTS TABLE seen").await == "0" {
        return;
    }
    // Rows of the copy have version 0, and may be read at any moment.
    verdict.rows += number(db, "SELECT count() FROM seen WHERE version > 0").await;
    let two_payloads = "SELECT tab, key, toString(version) FROM seen WHERE version > 0 GROUP BY tab, key, version
        HAVING uniqExact(tuple(deleted, seq, row)) > 1";
    // Of one key: what was committed later has the higher version.
    let disorder = "SELECT tab, key, arrayFilter((_, i) -> i > 1 AND order[i] < order[i - 1], order, arrayEnumerate(order))
        FROM (SELECT tab, key, arrayMap(pair -> pair.2, arraySort(groupUniqArray((version, assumeNotNull(seq))))) AS order
            FROM seen WHERE version > 0 AND deleted = 0 AND seq IS NOT NULL GROUP BY tab, key)
        WHERE order != arraySort(order)";
    for (what, sql) in [("two rows of one version", two_payloads), ("versions that are not in commit order", disorder)]
    {
        let found = db.ch.query(&format!("{sql} ORDER BY ALL LIMIT 100")).await;
        if !found.is_empty() {
            let first: Vec<_> = found.lines().take(5).collect();
            verdict.wrong(found.lines().count() as u64, format!("{what}:\n{}", first.join("\n")));
        }
    }
}

pub(crate) async fn number(db: &TestDb, sql: &str) -> u64 {
    db.ch.query(sql).await.parse().expect("ClickHouse counts")
}
