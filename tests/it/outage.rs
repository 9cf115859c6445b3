//! ClickHouse is away for a while, or PostgreSQL falls silent: memory stays flat, the slot holds, the connection lives.

use std::time::{Duration, Instant};

use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, LOAD_TABLES, Load, Postgres, PostgresOptions, TestDb, Watch,
    assert_equal_within, confirmed, seeded_rng, signal, stored,
};

/// How long ClickHouse is away.
const OUTAGE: Duration = Duration::from_secs(15);
const BUDGET_MIB: u64 = 24;
/// What more than twice its budget can not explain: the allocator's slack and what a session needs are well below.
const GROWTH: u64 = (2 * BUDGET_MIB) << 20;

#[derive(Clone, Copy, PartialEq)]
enum Absence {
    /// Connections are refused.
    Killed,
    /// Connections are taken, and nothing is answered.
    Frozen,
}

/// The process that streams the slot.
async fn walsender(db: &TestDb) -> Option<String> {
    let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    db.pg.query(&sql).await.into_iter().next().and_then(|row| row.into_iter().next().flatten())
}

async fn outlives_an_outage(absence: Absence) {
    let mut rng = seeded_rng();
    // Silence of more than 5 s would end the connection.
    let settings = vec![("wal_sender_timeout", "5s".to_owned())];
    let postgres = Postgres::private(PostgresOptions { settings, ..Default::default() });
    let clickhouse = ClickHouse::private(ClickHouseOptions { memory: Some(2 << 30), ..Default::default() });
    let db = TestDb::on(postgres, clickhouse, "outage").await;
    Load::prepare(&db, &mut rng).await;
    db.pg.execute("CREATE TABLE burst (id int8 PRIMARY KEY, payload text NOT NULL)").await;
    let mut daemon = Daemon::spawn(&db, &format!("[memory]\nbudget = \"{BUDGET_MIB}MiB\"\n"));
    daemon.wait_ready().await;
    let watch = Watch::start(&db);
    let load = Load::start(&db, &mut rng, 3);
    load.wait_commits(100).await;
    // What it needs at full work, before the outage.
    burst(&db, 0).await;
    assert_equal_within(&db, "burst", Duration::from_secs(60)).await;

    let (sender, before) = (walsender(&db).await, daemon.rss_bytes());
    assert!(sender.is_some(), "nobody streams the slot");
    match absence {
        Absence::Killed => db.clickhouse.kill9(),
        Absence::Frozen => db.clickhouse.freeze(),
    }
    let until = Instant::now() + OUTAGE;
    let mut acknowledged = None;
    let (mut most, mut bursts) = (before, 0);
    while Instant::now() < until {
        if bursts < 4 {
            bursts += 1;
            burst(&db, bursts).await;
        }
        // What was stored just before the outage may still be told just after its beginning.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let position = confirmed(&db.pg, &db.name).await.expect("PostgreSQL answers");
        assert_eq!(*acknowledged.get_or_insert(position), position, "the slot moved without ClickHouse");
        assert_eq!(walsender(&db).await, sender, "the connection did not live");
        most = most.max(daemon.rss_bytes());
    }
    println!("{} MiB before, at most {} MiB in the outage", before >> 20, most >> 20);
    assert!(most < before + GROWTH, "grew from {before} to {most} bytes");
    match absence {
        Absence::Killed => db.clickhouse.start(),
        Absence::Frozen => db.clickhouse.resume(),
    }
    load.stop().await;
    for table in LOAD_TABLES.into_iter().chain(["burst"]) {
        assert_equal_within(&db, table, Duration::from_secs(60)).await;
    }
    assert_eq!(walsender(&db).await, sender, "it reconnected");
    assert_eq!(daemon.metric("walhouse_reconnects_total", "").await, 0.0);
    let stored = stored(&db.ch, &db.name).await.expect("ClickHouse answers");
    assert!(stored > acknowledged.flatten(), "the checkpoint did not go on: {stored:?}");
    watch.finish().await;
    drop(daemon);
    db.cleanup().await;
}

/// 25 MiB in one transaction, more than the budget.
async fn burst(db: &TestDb, number: u32) {
    let from = number * 10_000;
    db.pg
        .execute(&format!(
            "INSERT INTO burst SELECT {from} + i, repeat(md5(i::text || {number}), 80)
            FROM generate_series(1, 10000) i"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifteen_seconds_without_clickhouse_cost_no_memory_and_no_connection() {
    outlives_an_outage(Absence::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifteen_seconds_of_a_clickhouse_that_hangs_cost_no_memory_and_no_connection() {
    outlives_an_outage(Absence::Frozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_fallen_silent_is_given_up_and_made_anew() {
    let postgres = Postgres::private(PostgresOptions::default());
    let db = TestDb::on(postgres, ClickHouse::shared(), "silent").await;
    db.pg.execute("CREATE TABLE t (id int8 PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal_within(&db, "t", Duration::from_secs(30)).await;
    let (sender, streams) = (walsender(&db).await.expect("somebody streams the slot"), daemon.streams());
    let sender: u32 = sender.parse().expect("a pid is a number");
    // Its socket stays open, and not a byte comes out of it.
    signal("STOP", &[sender]);
    let began = Instant::now();
    db.pg.execute("INSERT INTO t VALUES (2)").await;
    daemon.wait_log("the server has gone silent", 1).await;
    let silence = began.elapsed();
    // The slot is its process's for as long as that lives: that is waited for, not died of.
    daemon.wait_log("is active for PID", 1).await;
    signal("CONT", &[sender]);
    daemon.wait_streams(streams).await;
    println!("given up after {silence:?}, streaming again after {:?}", began.elapsed());
    assert!(silence < Duration::from_secs(45), "given up after {silence:?} only");
    assert_equal_within(&db, "t", Duration::from_secs(30)).await;
    drop(daemon);
    db.cleanup().await;
}
