//! A replay of rows whose large values the stream does not carry: they come from PostgreSQL, many at a time.

use std::time::{Duration, Instant};

use super::{WINDOW, assert_done, mutate, passed, position, replay};
use crate::support::{Daemon, TestDb, assert_equal, difference, eventually};

/// Rows of ten kilobytes that no update touches, and keys that change.
async fn large(db: &TestDb, rows: usize) {
    db.pg
        .execute(&format!(
            "CREATE TABLE t (id int8 PRIMARY KEY, name text, big text);
            ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
            INSERT INTO t SELECT i, 'name ' || i, repeat(md5(i::text), 320) FROM generate_series(1, {rows}) i"
        ))
        .await;
}

async fn transactions(db: &TestDb) -> i64 {
    let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    db.pg.value(sql).await.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_updates_left_alone_are_read_many_at_a_time() {
    let rows: usize = std::env::var("WALHOUSE_ROWS").map_or(2000, |rows| rows.parse().expect("a number"));
    let db = TestDb::new("replay_toast").await;
    large(&db, rows).await;
    let mut daemon = Daemon::spawn(&db, WINDOW);
    daemon.wait_ready().await;
    let from = position(&db).await;
    db.pg.execute("UPDATE t SET name = name || ' again'").await;
    db.pg.execute("UPDATE t SET id = id + 1000000 WHERE id % 100 = 0; DELETE FROM t WHERE id % 70 = 0").await;
    eventually(Duration::from_secs(120), async || difference(&db, "t").await.map_or(Ok(()), Err)).await;
    passed(&db).await;
    mutate(&db, "t", "UPDATE big = 'damaged' WHERE id % 3 = 0").await;
    mutate(&db, "t", "DELETE WHERE id % 11 = 1").await;
    let (before, begun) = (transactions(&db).await, Instant::now());
    assert_done(&replay(&daemon, &from, &["--timeout", "10m"]).await);
    println!("{rows} rows in {:?}: {:.0} a second", begun.elapsed(), rows as f64 / begun.elapsed().as_secs_f64());
    assert_equal(&db, "t").await;
    let read = daemon.metric("walhouse_toast_lookups_total", "place=\"postgres\"").await;
    assert!(read >= rows as f64 * 0.9, "{read} values were read from PostgreSQL");
    // One for each row would be as many as there are rows.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = transactions(&db).await - before;
    println!("{used} transactions");
    assert!(used < i64::try_from(rows / 10).unwrap(), "{used} transactions for {rows} rows");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_right_is_what_later_updates_find() {
    let db = TestDb::new("replay_later").await;
    large(&db, 40).await;
    let mut daemon = Daemon::spawn(&db, WINDOW);
    daemon.wait_ready().await;
    let from = position(&db).await;
    db.pg.execute("UPDATE t SET name = name || ' again'").await;
    assert_equal(&db, "t").await;
    passed(&db).await;
    mutate(&db, "t", "UPDATE big = 'damaged' WHERE 1").await;
    // The damaged row and the one that puts it right have one version, and stand side by side from here on.
    db.ch.query("SYSTEM STOP MERGES t").await;
    assert_done(&replay(&daemon, &from, &[]).await);
    assert_equal(&db, "t").await;
    assert!(db.ch.query("SELECT count() FROM t WHERE big = 'damaged'").await != "0", "they were merged");
    // Its values are looked up in ClickHouse again: under the same key, and under one that it has left.
    db.pg.execute("UPDATE t SET name = 'later' WHERE id % 2 = 0; UPDATE t SET id = id + 100 WHERE id % 3 = 0").await;
    passed(&db).await;
    assert_equal(&db, "t").await;
    drop(daemon);
    db.cleanup().await;
}
