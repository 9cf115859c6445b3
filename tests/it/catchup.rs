//! The reader for far behind: it gives what the stream gives, comes and goes with the distance, and leaves nothing
//! behind, whatever happens to it.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, FrozenStream, Postgres, PostgresOptions, TestDb, assert_settled_equal,
    eventually, settled,
};

mod events;
mod faults;
mod keeper;
mod readers;

/// Small windows, so that little WAL is many of them; and no catching up at the least of distances.
const NEAR: &str = "[source]\ncatch_up_sessions = 2\ncatch_up_window = \"512kB\"\ncatch_up_lag = \"1MB\"\n";

/// On a PostgreSQL of its own: elsewhere a transaction of another test can be where decoding has to begin.
async fn alone(label: &str) -> TestDb {
    TestDb::on(Postgres::private(PostgresOptions::default()), ClickHouse::shared(), label).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_read_in_windows_and_then_streamed() {
    let db = alone("catch_up").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    let mut daemon = Daemon::spawn(&db, NEAR);
    daemon.wait_ready().await;
    assert_eq!(daemon.metric("walhouse_reader", "streaming").await, 1.0);
    daemon.kill9();
    for part in 0..50 {
        let from = part * 2000;
        let sql = format!("INSERT INTO item SELECT i, 'v' || i FROM generate_series({from}, {from} + 1999) i");
        db.pg.execute(&sql).await;
    }
    daemon.start();
    daemon.wait_log("INFO catching up slot=", 1).await;
    daemon.wait_streams(1).await;
    assert_settled_equal(&db, &["item"]).await;
    let windows = daemon.metric("walhouse_catch_up_windows_total", "").await;
    assert!(windows >= 3.0, "{windows} windows");
    assert_eq!(daemon.metric("walhouse_reader", "streaming").await, 1.0);
    assert_eq!(daemon.metric("walhouse_reader", "catch_up").await, 0.0);
    assert!(is_alone(&db).await);
    assert_eq!(daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));
    drop(daemon);
    db.cleanup().await;
}

/// Whether there is one slot, and no copy of it.
async fn is_alone(db: &TestDb) -> bool {
    let sql = format!("SELECT slot_name FROM pg_replication_slots WHERE database = '{}'", db.name);
    db.pg.query(&sql).await == [[Some(db.name.clone())]]
}

/// Rows of about two hundred bytes, in transactions of a thousand.
async fn write(db: &TestDb, thousands: std::ops::Range<u32>) {
    for part in thousands {
        let (from, upto) = (part * 1000, part * 1000 + 999);
        let sql = format!("INSERT INTO item SELECT i, repeat('v', 100) FROM generate_series({from}, {upto}) i");
        db.pg.execute(&sql).await;
        if part % 4 == 0 {
            // Notes down what runs: decoding can begin here.
            db.pg.execute("CHECKPOINT").await;
        }
    }
}

async fn with_item(postgres: Arc<Postgres>, label: &str) -> TestDb {
    let db = TestDb::on(postgres, ClickHouse::shared(), label).await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    db
}

/// A daemon that is far behind, and has just begun to read.
async fn behind(db: &TestDb, extra: &str) -> Daemon {
    let mut daemon = Daemon::spawn(db, &format!("{NEAR}{extra}"));
    daemon.wait_ready().await;
    daemon.kill9();
    write(db, 0..30).await;
    daemon.start();
    daemon
}

/// The backlog is streamed, for this reason.
async fn is_streamed(db: TestDb, daemon: Daemon, reason: &str, why: &str) {
    assert_settled_equal(&db, &["item"]).await;
    assert!(daemon.log().contains(why), "no word of {why:?}");
    assert!(daemon.metric("walhouse_catch_up_given_up_total", &format!("reason=\"{reason}\"")).await >= 1.0);
    assert!(is_alone(&db).await);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_slot_it_streams() {
    let settings = vec![("max_replication_slots", "1".to_owned())];
    let db = with_item(Postgres::private(PostgresOptions { settings, ..Default::default() }), "cu_noslot").await;
    let daemon = behind(&db, "").await;
    assert_eq!(daemon.log().matches("INFO catching up").count(), 0);
    is_streamed(db, daemon, "no_slot", "raise max_replication_slots").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_fewer_free_slots_than_sessions_it_catches_up_with_fewer() {
    let settings = vec![("max_replication_slots", "2".to_owned())];
    let db = with_item(Postgres::private(PostgresOptions { settings, ..Default::default() }), "cu_fewer").await;
    let daemon = behind(&db, "").await;
    daemon.wait_log("sessions=1", 1).await;
    assert_settled_equal(&db, &["item"]).await;
    let log = std::fs::read_to_string(db.postgres.directory().with_extension("log")).expect("the server has a log");
    assert!(!log.contains("all replication slots are in use"), "a slot was asked for that was not free");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_slot_is_streamed() {
    let db = with_item(Postgres::private(PostgresOptions { version: "18", ..Default::default() }), "cu_failover").await;
    db.pg.execute("CREATE PUBLICATION walhouse FOR TABLE item WITH (publish_via_partition_root = true)").await;
    let sql = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput', false, false, true)", db.name);
    db.pg.query(&sql).await;
    let daemon = behind(&db, "").await;
    is_streamed(db, daemon, "failover", "failover slot").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_old_transaction_it_streams() {
    let db = with_item(Postgres::private(PostgresOptions::default()), "cu_old").await;
    let mut daemon = Daemon::spawn(&db, NEAR);
    daemon.wait_ready().await;
    let old = db.pg.connect().await.expect("PostgreSQL takes connections");
    old.batch_execute("BEGIN; INSERT INTO item VALUES (-1, 'old')").await.expect("a row can be inserted");
    // Acknowledged, but to be decoded again because of the one that is open.
    write(&db, 0..180).await;
    settled(&db).await;
    daemon.kill9();
    write(&db, 180..195).await;
    let tried = daemon.log().matches("INFO catching up").count();
    daemon.start();
    settled(&db).await;
    assert_eq!(daemon.log().matches("INFO catching up").count(), tried, "the slot was copied in vain");
    old.batch_execute("COMMIT").await.expect("it can be committed");
    is_streamed(db, daemon, "open_transaction", "a transaction is open since then").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_too_much_for_a_window_is_streamed() {
    let slow = "[source]\ncatch_up_sessions = 2\ncatch_up_window = \"16MiB\"\ncatch_up_lag = \"16MiB\"\ncatch_up_timeout = \"100ms\"\n";
    let large = "[source]\ncatch_up_sessions = 2\ncatch_up_window = \"1MiB\"\ncatch_up_lag = \"1MiB\"\n";
    for (config, rows, why) in
        [(large, 180_000, "(SQLSTATE 53400)"), (slow, 250_000, "did not answer within 100ms while to read a window")]
    {
        let db = with_item(Postgres::private(PostgresOptions::default()), "cu_giant").await;
        let mut daemon = Daemon::spawn(&db, config);
        daemon.wait_ready().await;
        daemon.kill9();
        write(&db, 0..10).await;
        let giant = format!("INSERT INTO item SELECT 1000000 + i, repeat('g', 100) FROM generate_series(1, {rows}) i");
        db.pg.execute(&giant).await;
        write(&db, 10..30).await;
        daemon.start();
        daemon.wait_log(why, 1).await;
        assert!(daemon.metric("walhouse_catch_up_given_up_total", "reason=\"too_much\"").await >= 1.0);
        assert_settled_equal(&db, &["item"]).await;
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_sink_holds_back_vacuum_no_longer_than_it_must() {
    let clickhouse = ClickHouse::private(ClickHouseOptions { memory: Some(2 << 30), ..Default::default() });
    let db = TestDb::on(Postgres::private(PostgresOptions::default()), clickhouse, "cu_stall").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    // More than the sockets hold.
    let large = "[source]\ncatch_up_sessions = 2\ncatch_up_window = \"16MiB\"\ncatch_up_lag = \"16MiB\"
        [batch]\nmax_bytes = \"64KiB\"\n[memory]\nbudget = \"512KiB\"\n";
    let mut daemon = Daemon::spawn(&db, large);
    daemon.wait_ready().await;
    daemon.kill9();
    write(&db, 0..250).await;
    daemon.start();
    daemon.wait_log("INFO catching up slot=", 1).await;
    db.clickhouse.freeze();
    let snapshots = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'walhouse catch-up' AND backend_xmin IS NOT NULL AND datname = current_database()";
    eventually(Duration::from_secs(20), async || match db.pg.value(snapshots).await.as_str() {
        "0" => Err("no window waits".to_owned()),
        _ => Ok(()),
    })
    .await;
    let second = Daemon::spawn(&db, NEAR);
    second.wait_log("another walhouse holds this slot", 1).await;
    eventually(Duration::from_secs(40), async || match db.pg.value(snapshots).await.as_str() {
        "0" => Ok(()),
        held => Err(format!("{held} sessions hold a snapshot")),
    })
    .await;
    eventually(Duration::from_secs(10), async || {
        if is_alone(&db).await { Ok(()) } else { Err("there are copies of the slot".to_owned()) }
    })
    .await;
    daemon.wait_log("could not be taken within 30 s", 1).await;
    drop(second);
    db.clickhouse.resume();
    assert_settled_equal(&db, &["item"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_changes_is_read_by_one_and_the_other_in_turn() {
    let db = with_item(Postgres::private(PostgresOptions::default()), "cu_turns").await;
    let mut daemon = Daemon::spawn(&db, NEAR);
    daemon.wait_ready().await;
    for round in 1..4 {
        // The stream stands still until much lies ahead of it.
        let frozen = FrozenStream::of(&db).await;
        write(&db, round * 100..round * 100 + 30).await;
        daemon.wait_log("INFO catching up slot=", round as usize).await;
        drop(frozen);
        daemon.wait_streams(round as usize).await;
        // What comes now is near.
        write(&db, round * 100 + 30..round * 100 + 32).await;
        assert_settled_equal(&db, &["item"]).await;
        assert_eq!(daemon.log().matches("INFO catching up slot=").count(), round as usize);
    }
    assert_eq!(daemon.metric("walhouse_reader", "streaming").await, 1.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_change_within_the_windows() {
    let db = with_item(Postgres::private(PostgresOptions::default()), "cu_shapes").await;
    let mut daemon = Daemon::spawn(&db, NEAR);
    daemon.wait_ready().await;
    daemon.kill9();
    for (round, change) in [
        "ADD COLUMN n int DEFAULT 5",
        "RENAME COLUMN v TO w",
        "ADD COLUMN late text",
        "DROP COLUMN n",
        "ALTER w SET NOT NULL",
    ]
    .into_iter()
    .enumerate()
    {
        let (from, upto) = (round * 10_000, round * 10_000 + 7_999);
        let insert = format!("INSERT INTO item SELECT i, repeat('s', 100) FROM generate_series({from}, {upto}) i");
        db.pg
            .execute(&format!(
                "{insert}; BEGIN; UPDATE item SET id = id WHERE id % 9 = 0; ALTER TABLE item {change};
            UPDATE item SET id = id WHERE id % 7 = 0; COMMIT"
            ))
            .await;
    }
    daemon.start();
    daemon.wait_log("INFO catching up slot=", 1).await;
    assert_settled_equal(&db, &["item"]).await;
    drop(daemon);
    db.cleanup().await;
}
