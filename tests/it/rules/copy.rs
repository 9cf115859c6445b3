//! The copy joins the stream without a gap, whatever goes on meanwhile.

use std::time::Duration;

use super::{publish_all, run, session, stop_reason, wait_for_queue, wait_for_status};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Past, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal,
    eventually, hold_copy, settled,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_waits_for_a_commit_that_the_slot_has_passed_and_nobody_sees_yet() {
    let settings = vec![("synchronous_commit", "local".to_owned())];
    let postgres = Postgres::private(PostgresOptions { settings, ..PostgresOptions::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "invisible").await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'seen')").await;
    publish_all(&db).await;
    db.pg.query(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", db.name)).await;
    db.pg.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    db.pg.query("SELECT pg_reload_conf()").await;
    let session = db.pg.connect().await.unwrap();
    run(&session, "SET synchronous_commit = on").await;
    let commit =
        tokio::spawn(async move { session.batch_execute("INSERT INTO t VALUES (2, 'written, not seen')").await });
    eventually(Duration::from_secs(10), async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        if db.pg.value(waiting).await == "1" { Ok(()) } else { Err("the commit does not wait".to_owned()) }
    })
    .await;
    // The slot is past the commit: it will never stream it.
    db.pg.query(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", db.name)).await;
    assert_eq!(db.pg.value("SELECT count(*) FROM t").await, "1");
    let mut daemon = Daemon::spawn(&db, "");
    // Either it waits, or the copy is done without the row.
    eventually(Duration::from_secs(30), async || {
        let asks =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walhouse%' AND query LIKE '%pg_locks%'";
        let waits = db.pg.value(asks).await != "0";
        let done = db.ch.try_query("SELECT status FROM _tables FINAL").await? == "streaming";
        if waits || done { Ok(()) } else { Err("the copy has not begun".to_owned()) }
    })
    .await;
    db.pg.execute("ALTER SYSTEM SET synchronous_standby_names = ''").await;
    db.pg.query("SELECT pg_reload_conf()").await;
    commit.await.unwrap().unwrap();
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

/// A table of four chunks whose first third is dead rows; `statement` waits for the chunk that is being read, and so
/// comes between two of them.
async fn between_chunks(label: &str, statement: &'static str) {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), label).await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
             ALTER TABLE t ALTER v SET STORAGE PLAIN;
             INSERT INTO t SELECT g, repeat('x', 7900) FROM generate_series(1, 14000) g;
             DELETE FROM t WHERE id <= 5000",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    // The second chunk begins, and can not go on.
    let holder = hold_copy(&db, "t", 1).await;
    // Not before what it asks of ClickHouse for the first one is answered.
    wait_for_queue(&db, "t").await;
    clickhouse.freeze();
    assert_eq!(clickhouse.port(), db.clickhouse.port());
    run(&holder, "COMMIT").await;
    let reads = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND granted AND mode = 'AccessShareLock'";
    eventually(Duration::from_secs(30), async || match db.pg.value(reads).await.as_str() {
        "0" => Err("no chunk is read".to_owned()),
        _ => Ok(()),
    })
    .await;
    let session = session(&db).await;
    let between = tokio::spawn(async move { session.batch_execute(statement).await });
    wait_for_queue(&db, "t").await;
    clickhouse.resume();
    between.await.expect("the statement does not panic").expect("the statement succeeds");
    db.pg.execute("INSERT INTO t VALUES (1, 'after'); UPDATE t SET v = 'updated' WHERE id = 9000").await;
    wait_for_status(&db, "t", "streaming").await;
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_between_two_chunks_loses_no_row() {
    between_chunks("rewrite", "VACUUM FULL t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_between_two_chunks_leaves_no_copied_row() {
    between_chunks("truncate_copy", "TRUNCATE t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_hides_rows_stops_the_table_and_is_named() {
    let db = TestDb::new("policy").await;
    let role = format!("reader_{}", db.name);
    db.pg
        .execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t VALUES (1), (2), (3); INSERT INTO other VALUES (1);
             ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY first_two ON t USING (id < 3);
             CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t, other TO {role}"
        ))
        .await;
    publish_all(&db).await;
    let daemon = Daemon::spawn(&db, &format!("[source]\nurl = \"{}\"", db.pg.url_as(&role)));
    let reason = stop_reason(&db, "t").await;
    assert!(reason.contains("row-level security") && reason.contains("\"t\""), "{reason}");
    db.pg.execute("INSERT INTO other VALUES (2)").await;
    settled(&db).await;
    assert_equal(&db, "other").await;
    assert_eq!(db.ch.query("SELECT count() FROM t FINAL").await, "0", "fewer rows than there are");
    drop(daemon);
    db.pg.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    db.cleanup().await;
}

/// Replays `history`, which comes before the adoption of its table, once that is copied and `later` has been done.
async fn replay_from_before_the_adoption(label: &str, history: &[&str], later: &str) {
    let db = TestDb::new(label).await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)").await;
    publish_all(&db).await;
    let mut daemon = Daemon::spawn(&db, "[source]\nexclude = [\"public.t\"]");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    for statement in history {
        db.pg.execute(statement).await;
    }
    settled(&db).await;
    daemon.sigterm(Duration::from_secs(20)).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg.execute(later).await;
    assert_settled_equal(&db, &["t"]).await;
    daemon.sigterm(Duration::from_secs(20)).await;
    past.restore(&db, None).await;
    daemon.start();
    db.pg.execute("INSERT INTO other VALUES (1)").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_from_before_a_table_was_adopted_leaves_its_copied_rows_alone() {
    // A rewrite streams nothing: the stream carries values that the table does not have any more.
    let history =
        ["INSERT INTO t VALUES (1, 'streamed'), (2, 'streamed')", "ALTER TABLE t ALTER v TYPE text USING upper(v)"];
    replay_from_before_the_adoption("before_feed", &history, "UPDATE t SET v = 'later' WHERE id = 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_from_before_a_table_was_adopted_takes_nothing_of_it() {
    let history = ["TRUNCATE t", "INSERT INTO t VALUES (1, 'copied')"];
    replay_from_before_the_adoption("before_feed_truncate", &history, "INSERT INTO t VALUES (2, 'later')").await;
}
