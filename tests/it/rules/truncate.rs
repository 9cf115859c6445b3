//! TRUNCATE removes what is below its version, and nothing else, however often it comes.

use std::time::Duration;

use super::{publish_all, run, session, wait_for_status};
use crate::support::{Daemon, Past, Proxy, TestDb, assert_settled_equal, eventually, settled};

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_takes_the_rows_before_it_and_leaves_those_after_it() {
    let db = TestDb::new("truncate").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)").await;
    db.pg.execute("INSERT INTO t SELECT g, 'copied' FROM generate_series(1, 5) g").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // No merges; `SYSTEM STOP MERGES` would stop the removal too.
    let no_merges = "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1";
    db.ch.query(&format!("ALTER TABLE t MODIFY SETTING {no_merges}")).await;
    // Several versions of one key and a tombstone, each in a part of its own.
    for sql in ["UPDATE t SET v = 'once'", "UPDATE t SET v = 'twice' WHERE id < 4", "DELETE FROM t WHERE id = 1"] {
        db.pg.execute(sql).await;
        settled(&db).await;
    }
    db.pg
        .execute("BEGIN; INSERT INTO t VALUES (7, 'before'); TRUNCATE t, u; INSERT INTO t VALUES (8, 'after'); COMMIT")
        .await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute("INSERT INTO t VALUES (1, 'again'), (2, 'again'); INSERT INTO u VALUES (1, 'u')").await;
    db.pg.execute("TRUNCATE t").await;
    settled(&db).await;
    db.pg.execute("INSERT INTO t VALUES (1, 'last')").await;
    assert_settled_equal(&db, &["t", "u"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_truncate_leaves_newer_rows_in_place() {
    let db = TestDb::new("truncate_replay").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    db.pg.execute("INSERT INTO t VALUES (1, 'old'), (2, 'old')").await;
    db.pg.execute("UPDATE t SET v = 'older' WHERE id = 1").await;
    db.pg.execute("TRUNCATE t").await;
    // What keeps the replay busy between the TRUNCATE and the newer row.
    db.pg.execute("INSERT INTO u SELECT generate_series(1, 60000)").await;
    db.pg.execute("INSERT INTO t VALUES (2, 'new'), (3, 'new')").await;
    assert_settled_equal(&db, &["t"]).await;
    for _ in 0..2 {
        daemon.sigterm(Duration::from_secs(20)).await;
        past.restore(&db, None).await;
        daemon.start();
        let replayed = settled(&db);
        tokio::pin!(replayed);
        loop {
            tokio::select! {
                () = &mut replayed => break,
                ids = db.ch.query("SELECT groupArray(id) FROM (SELECT id FROM t FINAL WHERE _is_deleted = 0 ORDER BY id)") => {
                    assert!(ids.ends_with("2,3]"), "the replay took newer rows away: {ids}");
                }
            }
        }
        assert_settled_equal(&db, &["t", "u"]).await;
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_the_copy_that_is_on_its_way_does_not_land_after_a_truncate() {
    let db = TestDb::new("truncate_late").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    db.pg.execute("INSERT INTO t SELECT g, 'copied' FROM generate_series(1, 5) g").await;
    publish_all(&db).await;
    // Holds up the copy, not the stream.
    let writer = session(&db).await;
    run(&writer, "BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE").await;
    let mut daemon = Daemon::spawn(&db, "");
    wait_for_status(&db, "t", "copying").await;
    db.pg.execute("INSERT INTO t VALUES (9, 'streamed')").await;
    settled(&db).await;
    // One part is there, and that is too many: inserts are tried again and again, while rows can be removed.
    db.ch.query("ALTER TABLE t MODIFY SETTING parts_to_throw_insert = 1").await;
    run(&writer, "COMMIT").await;
    eventually(Duration::from_secs(20), async || {
        let errors = daemon.metric("walhouse_insert_errors_total", "transient").await;
        if errors > 0.0 { Ok(()) } else { Err("the copy has not tried to insert".to_owned()) }
    })
    .await;
    db.pg.execute("TRUNCATE t").await;
    settled(&db).await;
    assert_eq!(db.ch.query("SELECT count() FROM t").await, "0");
    db.ch.query("ALTER TABLE t RESET SETTING parts_to_throw_insert").await;
    for id in 10..18 {
        db.pg.execute(&format!("INSERT INTO t VALUES ({id}, 'after')")).await;
        assert_settled_equal(&db, &["t"]).await;
    }
    daemon.wait_ready().await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_whose_answer_was_lost_does_not_land_after_a_truncate() {
    let db = TestDb::new("truncate_lost").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let proxy = Proxy::to(db.clickhouse.port()).await;
    let url = format!("[clickhouse]\nurl = \"http://127.0.0.1:{}\"", proxy.port());
    let mut daemon = Daemon::spawn(&db, &url);
    daemon.wait_ready().await;
    proxy.hold_next_insert("t");
    // The server begins to work on an insert when it has so much of it.
    db.pg.execute("INSERT INTO t SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 30000) g").await;
    proxy.holds().await;
    // It was sent again, and that is in.
    settled(&db).await;
    assert_eq!(db.ch.query("SELECT count() FROM t").await, "1");
    let running = format!("SELECT count() FROM system.processes WHERE query_id LIKE 'walhouse-{}-%'", db.name);
    assert_eq!(db.ch.query(&running).await, "1", "the first attempt is with the server");
    db.pg.execute("TRUNCATE t").await;
    settled(&db).await;
    let answer = proxy.release().await;
    assert_eq!(db.ch.query(&running).await, "0", "the first attempt has ended; {answer}");
    assert_eq!(db.ch.query("SELECT count() FROM t").await, "0", "a row came after its TRUNCATE; {answer}");
    drop(daemon);
    db.cleanup().await;
}
