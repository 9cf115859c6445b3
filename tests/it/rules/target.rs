//! A target that somebody has altered by hand: nothing is changed silently, and the others go on.

use super::stop_reason;
use crate::support::{Daemon, TestDb, assert_equal, settled};

/// Alters the target by hand, writes to its source and to another table, and returns why the table stopped.
async fn altered(label: &str, alter: &str, write: &str) -> String {
    let db = TestDb::new(label).await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY, v int)").await;
    db.pg.execute("INSERT INTO t VALUES (1, 1); INSERT INTO other VALUES (1, 1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.ch.query(&format!("{alter} SETTINGS alter_sync = 2, mutations_sync = 2")).await;
    db.pg.execute(write).await;
    let reason = stop_reason(&db, "t").await;
    db.pg.execute("INSERT INTO other VALUES (2, 2); INSERT INTO t VALUES (9, 9)").await;
    settled(&db).await;
    assert_equal(&db, "other").await;
    assert_eq!(db.ch.query("SELECT groupArray(id) FROM t FINAL").await, "[1]", "a row went into a table that stopped");
    drop(daemon);
    db.cleanup().await;
    reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_null_is_refused_where_the_target_takes_none() {
    let reason =
        altered("no_null", "ALTER TABLE t MODIFY COLUMN v Int32 DEFAULT 0", "INSERT INTO t VALUES (2, NULL), (3, 3)")
            .await;
    assert!(reason.contains("ClickHouse refuses its rows"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_target_has_lost_is_not_dropped_silently() {
    let reason = altered("no_column", "ALTER TABLE t DROP COLUMN v", "INSERT INTO t VALUES (2, 2)").await;
    assert!(reason.contains("ClickHouse refuses its rows"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_refused_where_the_target_is_narrower() {
    let reason =
        altered("narrow", "ALTER TABLE t MODIFY COLUMN v Nullable(Int8)", "INSERT INTO t VALUES (2, 300)").await;
    assert!(reason.contains("ClickHouse refuses its rows"), "{reason}");
}
