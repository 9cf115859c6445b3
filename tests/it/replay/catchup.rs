//! A replay that begins far behind: it is read in windows, as any backlog is.

use std::fs;
use std::time::Duration;

use super::{assert_done, assert_settled_by, history, mutate, passed, position, replay, tables};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, PostgresOptions, TestDb, assert_equal, difference, eventually,
    stored,
};

/// Small windows, so that little WAL is many of them.
const NEAR: &str =
    "[source]\nreplay_window = \"4GiB\"\ncatch_up_sessions = 2\ncatch_up_window = \"512kB\"\ncatch_up_lag = \"1MB\"\n";
const CATCHING_UP: &str = "INFO catching up slot=";
const STOP: Duration = Duration::from_secs(20);

/// On a PostgreSQL of its own: elsewhere a transaction of another test can be where decoding has to begin.
async fn alone(label: &str) -> TestDb {
    TestDb::on(Postgres::private(PostgresOptions::default()), ClickHouse::private(ClickHouseOptions::default()), label)
        .await
}

/// Some megabytes of WAL, in transactions of some hundred rows.
async fn long_history(db: &TestDb) -> String {
    let from = position(db).await;
    for round in 0..4 {
        history(db, 1500).await;
        if round < 3 {
            db.pg.execute("DELETE FROM t; DELETE FROM log; CHECKPOINT").await;
        }
    }
    assert_equal(db, "t").await;
    assert_equal(db, "log").await;
    passed(db).await;
    from
}

async fn damage(db: &TestDb) {
    mutate(db, "t", "DELETE WHERE id % 3 = 0").await;
    mutate(db, "t", "DELETE WHERE _is_deleted = 1").await;
    mutate(db, "t", "UPDATE name = 'damaged', big = 'damaged' WHERE id % 11 = 1").await;
    mutate(db, "log", "DELETE WHERE id % 2 = 0").await;
    assert!(difference(db, "t").await.is_some() && difference(db, "log").await.is_some(), "nothing was damaged");
}

/// No copy of the slot is left.
async fn is_alone(db: &TestDb) {
    let sql = format!("SELECT slot_name FROM pg_replication_slots WHERE database = '{}'", db.name);
    eventually(Duration::from_secs(30), async || match db.pg.query(&sql).await {
        slots if slots == [[Some(db.name.clone())]] => Ok(()),
        slots => Err(format!("{slots:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_from_far_behind_is_read_in_windows() {
    let db = alone("replay_windows").await;
    tables(&db).await;
    let mut daemon = Daemon::spawn(&db, NEAR);
    daemon.wait_ready().await;
    let from = long_history(&db).await;
    damage(&db).await;
    let (before, windows) =
        (daemon.log().matches(CATCHING_UP).count(), daemon.metric("walhouse_catch_up_windows_total", "").await);
    let checkpoint = stored(&db.ch, &db.name).await.expect("a checkpoint");
    assert_done(&replay(&daemon, &from, &["--timeout", "5m"]).await);
    assert!(daemon.log().matches(CATCHING_UP).count() > before, "it was streamed");
    assert!(daemon.metric("walhouse_catch_up_windows_total", "").await >= windows + 3.0);
    assert!(stored(&db.ch, &db.name).await.expect("a checkpoint") >= checkpoint);
    assert_settled_by(&db).await;
    // The stream goes on behind it.
    db.pg.execute("INSERT INTO t VALUES (5000000, 'later', 'x'); DELETE FROM t WHERE id = 1").await;
    assert_settled_by(&db).await;
    is_alone(&db).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_in_windows_goes_on_after_kills() {
    let db = alone("replay_windows_kill").await;
    tables(&db).await;
    let mut daemon = Daemon::spawn(&db, NEAR);
    daemon.wait_ready().await;
    let from = long_history(&db).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    // Nothing is kept but what is delivered again.
    let config = fs::read_to_string(daemon.config()).expect("the configuration can be read");
    fs::write(daemon.config(), config.replace("4GiB", "0")).expect("the configuration can be written");
    damage(&db).await;
    let exit = replay(&daemon, &from, &["--no-wait"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    let kept =
        format!("SELECT confirmed_flush_lsn <= '{from}' FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    for life in 1..=3 {
        let before = daemon.log().matches(CATCHING_UP).count();
        daemon.start();
        daemon.wait_log(CATCHING_UP, before + 1).await;
        // It can not be done while nothing can be inserted; what keeps the slot has moved it as far as it may by then.
        db.clickhouse.freeze();
        tokio::time::sleep(Duration::from_secs(2)).await;
        match life {
            2 => {
                db.postgres.kill9();
                daemon.kill9();
                db.postgres.start();
            }
            _ => daemon.kill9(),
        }
        db.clickhouse.resume();
        assert_eq!(db.pg.value(&kept).await, "t", "life {life}: the slot was moved before the replay was done");
    }
    // Nobody stands in the way of the last life.
    db.pg.execute("UPDATE t SET name = 'meanwhile' WHERE id % 13 = 0; DELETE FROM log WHERE id % 5 = 0").await;
    daemon.start();
    daemon.wait_log("delivered again from", 1).await;
    assert_settled_by(&db).await;
    eventually(Duration::from_secs(60), async || match db.pg.value(&kept).await.as_str() {
        "f" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    is_alone(&db).await;
    let exit = crate::support::walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    drop(daemon);
    db.cleanup().await;
}
