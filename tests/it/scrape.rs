//! A page of metrics with hundreds of tables: whole, in time beside a load, and no more expensive than there are tables.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Daemon, TestDb, eventually};

const FEW: usize = 50;
const MANY: usize = 300;
/// Of one measurement of processor time, which the kernel counts in hundredths of a second.
const SCRAPES: u32 = 40;
/// What every table has: rows received, rows written, rows copied, and how far its copy is.
const SERIES: [&str; 4] = [
    "walhouse_rows_received_total{",
    "walhouse_rows_written_total{",
    "walhouse_copy_rows_total{",
    "walhouse_copy_progress_ratio{",
];

/// Creates tables, each with a row to be copied.
async fn create(db: &TestDb, from: usize, to: usize) {
    let tables: String = (from..to)
        .map(|at| {
            format!("CREATE TABLE item_{at} (id int PRIMARY KEY, v text); INSERT INTO item_{at} VALUES (0, 'c');")
        })
        .collect();
    db.pg.execute(&tables).await;
}

/// A row more in each table.
async fn insert(db: &TestDb, tables: usize, id: u32) {
    let rows: String = (0..tables).map(|at| format!("INSERT INTO item_{at} VALUES ({id}, 'streamed');")).collect();
    db.pg.execute(&rows).await;
}

/// Waits until each table is copied, has had rows of the stream, and has all of its series.
async fn shown(db: &TestDb, daemon: &Daemon, tables: usize) {
    eventually(Duration::from_secs(240), async || match daemon.metric("walhouse_copy_progress_ratio", "").await {
        copied if copied == tables as f64 => Ok(()),
        copied => Err(format!("{copied} of {tables} tables are copied")),
    })
    .await;
    insert(db, tables, 1).await;
    eventually(Duration::from_secs(120), async || {
        let page = daemon.metrics().await;
        let counts = SERIES.map(|series| page.lines().filter(|line| line.starts_with(series)).count());
        if counts == [tables; 4] { Ok(()) } else { Err(format!("{counts:?} series")) }
    })
    .await;
}

/// Seconds of processor time that the process has used.
fn used(daemon: &Daemon) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("walhouse is running");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number of ticks");
    (ticks(11) + ticks(12)) / 100.0
}

/// What a scrape costs in processor time, without what walhouse uses anyway.
async fn cost(daemon: &Daemon) -> f64 {
    let (begun, before) = (Instant::now(), used(daemon));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = (used(daemon) - before) / begun.elapsed().as_secs_f64();
    let (begun, before) = (Instant::now(), used(daemon));
    for _ in 0..SCRAPES {
        daemon.metrics().await;
    }
    (used(daemon) - before - idle * begun.elapsed().as_secs_f64()).max(0.0) / f64::from(SCRAPES)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_metrics_costs_no_more_than_there_are_tables_and_comes_in_time_beside_a_load() {
    let db = TestDb::new("scrape").await;
    create(&db, 0, FEW).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    shown(&db, &daemon, FEW).await;
    let few = cost(&daemon).await;
    create(&db, FEW, MANY).await;
    db.pg.execute(&(0..FEW).map(|at| format!("DELETE FROM item_{at} WHERE id = 1;")).collect::<String>()).await;
    shown(&db, &daemon, MANY).await;
    let many = cost(&daemon).await;
    println!("a scrape: {:.1} ms of CPU with {FEW} tables, {:.1} ms with {MANY}", few * 1e3, many * 1e3);
    // Six times as many tables; what grew with their square would be 36 times. A debug build, on a machine that is busy.
    assert!(many < 15.0 * few.max(0.002), "{few} s with {FEW} tables, {many} s with {MANY}");
    assert!(many < 0.5, "{many} s");

    let load = async {
        for id in 2..12 {
            insert(&db, MANY, id).await;
        }
    };
    let scrapes = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let begun = Instant::now();
            let page = daemon.metrics().await;
            longest = longest.max(begun.elapsed());
            assert!(page.ends_with('\n') && page.lines().filter(|line| line.starts_with(SERIES[0])).count() == MANY);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        longest
    };
    let (longest, ()) = tokio::join!(scrapes, load);
    println!("beside a load: {longest:?} at most");
    assert!(longest < Duration::from_secs(15), "{longest:?}");
    eventually(Duration::from_secs(120), async || match daemon.metric("walhouse_rows_received_total", "").await {
        rows if rows >= (MANY * 11) as f64 => Ok(()),
        rows => Err(format!("{rows} rows")),
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}
