//! A log whose table changes.

use super::{keyless, log, several_chunks};
use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal, eventually, settled, stopped, walhouse};
use std::time::Duration;

/// What no row tells is noticed when the stream has passed the look at the catalog; an idle server leaves the last of its
/// WAL unflushed for a quarter of a minute.
const STOPS: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn columns_come_and_go_and_rows_still_cancel_each_other() {
    let db = TestDb::new("log_columns").await;
    keyless(&db, "t", "id int, a text, b text NOT NULL").await;
    db.pg.execute("INSERT INTO t SELECT i % 3, 'a', 'b' FROM generate_series(1, 9) i").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("ALTER TABLE t ADD c int DEFAULT 7; DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)").await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("ALTER TABLE t DROP a; DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t); INSERT INTO t VALUES (9, 'x', 8)").await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("ALTER TABLE t RENAME b TO renamed; UPDATE t SET renamed = 'new' WHERE id = 1").await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("ALTER TABLE t ALTER renamed DROP NOT NULL; UPDATE t SET renamed = NULL WHERE id = 2; DELETE FROM t WHERE id = 1").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(db.ch.query("SELECT countIf(_op = 'snapshot') FROM t").await, "1", "all of that was followed in place");
    // What rewrites the rows is copied anew.
    db.pg.execute("ALTER TABLE t ALTER id TYPE text USING 'no ' || id").await;
    assert_equal(&db, "t").await;
    db.pg.execute("DELETE FROM t WHERE id = 'no 0'; INSERT INTO t VALUES ('yes')").await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrites_while_it_is_copied_are_noticed() {
    let db = TestDb::new("log_rewrites").await;
    keyless(&db, "t", "id int, pad text").await;
    several_chunks(&db, "t", "pad").await;
    // Rows move to other blocks where others were before them.
    db.pg.execute("ALTER TABLE t SET (autovacuum_enabled = off); DELETE FROM t WHERE id < 3").await;
    let mut daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    eventually(Duration::from_secs(60), async || {
        let rows: u64 = db.ch.try_query("SELECT count() FROM t").await?.parse().unwrap_or(0);
        if rows > 1 { Ok(()) } else { Err(format!("{rows} rows")) }
    })
    .await;
    db.pg.execute("VACUUM FULL t").await;
    db.pg.execute("DELETE FROM t WHERE id = 4; UPDATE t SET id = 1 WHERE id = 8").await;
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_when_the_table_gets_a_key_and_stops_without_full_rows() {
    let db = TestDb::new("log_keys").await;
    keyless(&db, "t", "id int NOT NULL, v text").await;
    db.pg.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("ALTER TABLE t ADD PRIMARY KEY (id); UPDATE t SET v = 'c' WHERE id = 1").await;
    assert_settled_equal(&db, &["t"]).await;
    daemon.sigterm(Duration::from_secs(20)).await;
    daemon.start();
    db.pg.execute("DELETE FROM t WHERE id = 2").await;
    assert_settled_equal(&db, &["t"]).await;
    assert!(log(&db, "t", "id").await.ends_with("update_before 1, update_after 1, delete 2"));
    db.pg.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = 'd'").await;
    eventually(STOPS, async || match stopped(&db).await?.as_str() {
        "" => Err("it goes on".to_owned()),
        why if why.contains("walhouse resync") => Ok(()),
        why => panic!("{why}"),
    })
    .await;
    let resync = walhouse(daemon.config(), &["resync", "public.t"]).await;
    assert_eq!(resync.code, Some(0), "{resync:?}");
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(
        db.ch
            .query(
                "SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = 't' AND name = '_op'"
            )
            .await,
        "0"
    );
    // And back: a table that lost its key.
    db.pg.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'd'), (1, 'd')").await;
    eventually(STOPS, async || match stopped(&db).await?.as_str() {
        "" => Err("it goes on".to_owned()),
        _ => Ok(()),
    })
    .await;
    let resync = walhouse(daemon.config(), &["resync", "public.t"]).await;
    assert_eq!(resync.code, Some(0), "{resync:?}");
    db.pg.execute("INSERT INTO t VALUES (1, 'd')").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(db.ch.query("SELECT count() FROM t_current").await, "4");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_without_a_key_is_one_log() {
    let db = TestDb::new("log_partitions").await;
    db.pg
        .execute(
            "CREATE TABLE t (at int, v text) PARTITION BY RANGE (at);
            CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10);
            CREATE TABLE t_2 (v text, gone int, at int); ALTER TABLE t_2 DROP gone; ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM (10) TO (20);
            ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t_1 REPLICA IDENTITY FULL; ALTER TABLE t_2 REPLICA IDENTITY FULL;
            INSERT INTO t SELECT i % 20, 'copied' FROM generate_series(1, 200) i;
            CREATE TABLE u (at int) PARTITION BY RANGE (at); CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (10);
            ALTER TABLE u REPLICA IDENTITY FULL",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE t SET at = 19 - at WHERE at IN (2, 15); DELETE FROM t WHERE at = 3; INSERT INTO t VALUES (4, 'a'), (14, 'a')").await;
    assert_settled_equal(&db, &["t"]).await;
    assert!(
        daemon.log().contains("its partition \\\"public\\\".\\\"u_1\\\" identifies rows in another way"),
        "{}",
        daemon.log()
    );
    // Rows that came without being streamed.
    db.pg.execute("CREATE TABLE t_3 (at int, v text); ALTER TABLE t_3 REPLICA IDENTITY FULL; INSERT INTO t_3 VALUES (25, 'came'), (25, 'came');
        ALTER TABLE t ATTACH PARTITION t_3 FOR VALUES FROM (20) TO (30)").await;
    assert_equal(&db, "t").await;
    db.pg.execute("TRUNCATE t; INSERT INTO t VALUES (1, 'b'), (11, 'b'), (21, 'b')").await;
    settled(&db).await;
    assert_equal(&db, "t").await;
    drop(daemon);
    db.cleanup().await;
}
