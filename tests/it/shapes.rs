//! Changes of shape: the target follows in place where nothing is in doubt, and else the table is copied anew, alone.

mod anew;
mod crossing;
mod defaults;
mod interrupted;
mod names;
mod nulls;
mod partitions;
mod within;

use std::time::Duration;

use crate::support::{Daemon, Past, TestDb, assert_equal, assert_settled_equal, eventually, settled};

const STOP: Duration = Duration::from_secs(20);

/// A table of three rows, replicated, and another one beside it.
async fn replicated(label: &str) -> (TestDb, Daemon) {
    let db = TestDb::new(label).await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t SELECT i, 'copied', i FROM generate_series(1, 3) i; INSERT INTO other VALUES (1)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "t").await;
    (db, daemon)
}

/// How often a table was copied anew.
async fn copies(daemon: &Daemon) -> f64 {
    daemon.metric("walhouse_shape_changes_total", "copied").await
}

/// Waits until the columns of the target are these, without walhouse's own.
async fn wait_for_columns(db: &TestDb, table: &str, columns: &str) {
    let sql = format!(
        "SELECT arrayStringConcat(groupArray(name || ' ' || type), ', ') FROM (SELECT name, type FROM system.columns
         WHERE database = currentDatabase() AND table = '{table}' AND name NOT IN ('_version', '_is_deleted') ORDER BY position)"
    );
    eventually(Duration::from_secs(30), async || match db.ch.try_query(&sql).await? {
        found if found == columns => Ok(()),
        found => Err(format!("its columns are {found}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_added_reads_the_same_in_older_rows() {
    let (db, daemon) = replicated("shape_add").await;
    let target = db.ch.query("SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = 't'").await;
    db.pg
        .execute(
            "ALTER TABLE t ADD COLUMN plain text;
             ALTER TABLE t ADD COLUMN five int DEFAULT 5, ADD COLUMN word text NOT NULL DEFAULT 'it''s';
             ALTER TABLE t ADD COLUMN at timestamptz DEFAULT '2024-02-29 12:00:00.5+00', ADD COLUMN price numeric(10, 2) DEFAULT 1.50;
             ALTER TABLE t ADD COLUMN day date DEFAULT '2024-02-29', ADD COLUMN yes bool DEFAULT true, ADD COLUMN raw bytea DEFAULT '\\x00ff';
             ALTER TABLE t ADD COLUMN later int; ALTER TABLE t ALTER later SET DEFAULT 7;
             UPDATE t SET plain = 'changed', five = NULL WHERE id = 2;
             INSERT INTO t (id, n) VALUES (4, 4)",
        )
        .await;
    assert_settled_equal(&db, &["t", "other"]).await;
    assert_eq!(
        db.ch.query("SELECT five, word, price, later FROM t_current WHERE id = 1").await,
        "5\tit\\'s\t1.50\t\\N"
    );
    // Nobody writes it, and it is there all the same.
    db.pg.execute("ALTER TABLE other ADD COLUMN quiet int DEFAULT 3").await;
    wait_for_columns(&db, "other", "id Int32, quiet Nullable(Int32)").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    let after = db.ch.query("SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = 't'").await;
    assert_eq!(after, target, "it was copied anew");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_renamed_keeps_its_values() {
    let (db, daemon) = replicated("shape_rename").await;
    db.pg.execute("ALTER TABLE t RENAME v TO \"new name\"; UPDATE t SET \"new name\" = 'changed' WHERE id = 1").await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("ALTER TABLE t RENAME \"new name\" TO quiet").await;
    wait_for_columns(&db, "t", "id Int32, quiet Nullable(String), n Int32").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(db.ch.query("SELECT quiet FROM t_current WHERE id = 2").await, "copied");
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_keeps_what_it_had() {
    let (db, daemon) = replicated("shape_drop").await;
    db.pg.execute("ALTER TABLE t DROP COLUMN n; INSERT INTO t VALUES (4, 'after')").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(db.ch.query("SELECT groupArray(n) FROM (SELECT n FROM t FINAL ORDER BY id)").await, "[1,2,3]");
    assert_eq!(db.ch.query("SELECT n IS NULL FROM t FINAL WHERE id = 4").await, "1");
    assert!(db.ch.try_query("SELECT n FROM t_current").await.is_err(), "the view has the source's columns");
    db.pg.execute("ALTER TABLE t DROP COLUMN v; UPDATE t SET id = 5 WHERE id = 1").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_goes_where_that_is_wished() {
    let db = TestDb::new("shape_gone").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text, a int[]); INSERT INTO t VALUES (1, 'a', '{1}')").await;
    let mut daemon = Daemon::spawn(&db, "[tables.\"public.t\"]\non_drop_column = \"drop\"");
    daemon.wait_ready().await;
    db.pg.execute("ALTER TABLE t DROP COLUMN a, DROP COLUMN v").await;
    wait_for_columns(&db, "t", "id Int32").await;
    db.pg
        .execute(
            "ALTER TABLE t ADD COLUMN v text DEFAULT 'again', ADD COLUMN a int[]; INSERT INTO t VALUES (2, 'b', '{2}')",
        )
        .await;
    assert_settled_equal(&db, &["t"]).await;
    wait_for_columns(&db, "t", "id Int32, v Nullable(String), a Array(Nullable(Int32)), a__is_null Bool").await;
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_takes_null_as_soon_as_the_source_does() {
    let (db, daemon) = replicated("shape_null").await;
    db.pg
        .execute(
            "BEGIN; INSERT INTO t VALUES (4, 'a', 4); ALTER TABLE t ALTER n DROP NOT NULL; INSERT INTO t VALUES (5, 'b', NULL);
             UPDATE t SET n = NULL WHERE id = 1; COMMIT",
        )
        .await;
    assert_settled_equal(&db, &["t"]).await;
    wait_for_columns(&db, "t", "id Int32, v Nullable(String), n Nullable(Int32)").await;
    db.pg
        .execute(
            "UPDATE t SET n = 0 WHERE n IS NULL; ALTER TABLE t ALTER n SET NOT NULL; INSERT INTO t VALUES (6, 'c', 6)",
        )
        .await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_may_change_between_the_rows_of_a_transaction() {
    let (db, mut daemon) = replicated("shape_inside").await;
    let past = Past::begin(&db).await;
    db.pg
        .execute(
            "BEGIN; INSERT INTO t VALUES (10, 'before', 1); UPDATE t SET v = 'before' WHERE id = 1;
             ALTER TABLE t ADD COLUMN w int DEFAULT 9; INSERT INTO t VALUES (11, 'between', 1, 2); DELETE FROM t WHERE id = 2;
             ALTER TABLE t RENAME v TO x; ALTER TABLE t DROP COLUMN n; INSERT INTO t VALUES (12, 'after', 3); UPDATE t SET w = 1 WHERE id = 10; COMMIT",
        )
        .await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("INSERT INTO t VALUES (13, 'next', 4)").await;
    assert_settled_equal(&db, &["t"]).await;
    // What a replay brings in the older shapes has landed already.
    let copied = copies(&daemon).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    past.restore(&db, None).await;
    daemon.start();
    assert_settled_equal(&db, &["t"]).await;
    daemon.wait_ready().await;
    assert_eq!(copies(&daemon).await, 0.0, "after {copied} before");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_may_change_while_walhouse_is_down() {
    let (db, mut daemon) = replicated("shape_down").await;
    db.pg.execute("INSERT INTO t VALUES (4, 'running', 4)").await;
    settled(&db).await;
    daemon.kill9();
    db.pg
        .execute(
            "INSERT INTO t VALUES (5, 'old shape', 5); ALTER TABLE t ADD COLUMN w int DEFAULT 9;
             INSERT INTO t VALUES (6, 'new shape', 6, NULL); ALTER TABLE t RENAME n TO m; UPDATE t SET m = 7 WHERE id = 5;
             ALTER TABLE other ADD COLUMN quiet text DEFAULT 'x'",
        )
        .await;
    daemon.start();
    assert_settled_equal(&db, &["t"]).await;
    wait_for_columns(&db, "other", "id Int32, quiet Nullable(String)").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_change_under_load_and_kills() {
    let (db, mut daemon) = replicated("shape_load").await;
    let pg = db.pg.clone();
    let load = tokio::spawn(async move {
        for i in 0..400 {
            let id = 100 + i % 50;
            pg.execute(&format!(
                "INSERT INTO t (id, n) VALUES ({id}, {i}) ON CONFLICT (id) DO UPDATE SET n = excluded.n; DELETE FROM t WHERE id = {}",
                100 + (i * 7) % 50
            ))
            .await;
        }
    });
    for round in 0..4 {
        db.pg
            .execute(&format!(
                "ALTER TABLE t ADD COLUMN c{round} int DEFAULT {round}; UPDATE t SET c{round} = id WHERE id % 2 = 0"
            ))
            .await;
        if round % 2 == 1 {
            db.pg.execute(&format!("ALTER TABLE t RENAME c{} TO d{round}", round - 1)).await;
            daemon.kill9();
            daemon.start();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    load.await.expect("the load ends");
    eventually(Duration::from_secs(60), async || {
        let status = db.ch.try_query("SELECT status, fresh = '' FROM _tables FINAL WHERE table_name = 't'").await?;
        if status == "streaming\t1" { Ok(()) } else { Err(status) }
    })
    .await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}
