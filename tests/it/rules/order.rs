//! Which of two changes of a key is the later one.

use std::time::Duration;

use super::run;
use crate::support::{Daemon, TestDb, assert_settled_equal, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_waited_for_a_delete_of_its_key_is_the_later_change() {
    let db = TestDb::new("waited").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let (first, second) = (db.pg.connect().await.unwrap(), db.pg.connect().await.unwrap());
    run(&first, "BEGIN; INSERT INTO t VALUES (1, 'first')").await;
    let pid: i32 = second.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    // Its row is logged here, before the DELETE's, and only then it waits.
    let waiting = tokio::spawn(async move { second.batch_execute("INSERT INTO t VALUES (1, 'second')").await });
    eventually(Duration::from_secs(10), async || match db.pg.value(&format!("SELECT pg_blocking_pids({pid})")).await {
        none if none == "{}" => Err("the second INSERT does not wait".to_owned()),
        _ => Ok(()),
    })
    .await;
    run(&first, "DELETE FROM t WHERE id = 1; COMMIT").await;
    waiting.await.unwrap().unwrap();
    assert_eq!(db.pg.value("SELECT v FROM t").await, "second");
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_clickhouse_holds_equal_are_no_key_change() {
    let db = TestDb::new("equal_keys").await;
    db.pg.execute("CREATE TABLE t (f float8 PRIMARY KEY, v int)").await;
    let long = "md5(random()::text)";
    db.pg
        .execute("CREATE TABLE wide (k text, sub int, n int, PRIMARY KEY (k, sub)); ALTER TABLE wide ALTER k SET STORAGE EXTERNAL")
        .await;
    db.pg.execute(&format!("INSERT INTO wide SELECT string_agg({long}, ''), 1, 0 FROM generate_series(1, 72)")).await;
    db.pg.execute("INSERT INTO t VALUES (0, 1), (1, 1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE t SET f = '-0', v = 2 WHERE f = 0").await;
    // The key column is toasted and left alone: a marker in the new row, a value in the old key.
    db.pg.execute("UPDATE wide SET n = 1").await;
    db.pg.execute("UPDATE wide SET sub = 2; UPDATE wide SET n = 2; UPDATE wide SET sub = 3, n = 3").await;
    assert_settled_equal(&db, &["t", "wide"]).await;
    assert_eq!(db.ch.query("SELECT count() FROM t WHERE _is_deleted").await, "0", "a tombstone of the row's own key");
    drop(daemon);
    db.cleanup().await;
}
