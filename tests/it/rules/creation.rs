//! A slot that was created while a table changed its shape decodes with the old one.

use std::time::Duration;

use tokio_postgres::Client;

use super::{publish_all, run, session};
use crate::support::{ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, assert_settled_equal, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_while_the_slot_is_created_is_in_its_stream() {
    let (db, daemon) = created_beside("column", "ALTER TABLE t ADD late text").await;
    db.pg.execute("UPDATE t SET late = 'late ' || id; INSERT INTO t VALUES (100, 'v', 'late')").await;
    assert_settled_equal(&db, &["t"]).await;
    // Who looks at shapes closely notices the old one, and reads the whole table once more.
    assert!(!daemon.log().contains("copied anew"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_while_the_slot_is_created_does_not_end_the_stream() {
    let (db, daemon) = created_beside("truncated", "TRUNCATE t").await;
    db.pg.execute("INSERT INTO t VALUES (100, 'v')").await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

/// A daemon whose slot begins to be created while one transaction is open; `change` is committed while the slot waits for
/// that one, and another one writes while it waits for those that were open then.
async fn created_beside(label: &str, change: &str) -> (TestDb, Daemon) {
    let db = TestDb::on(Postgres::private(PostgresOptions::default()), ClickHouse::shared(), label).await;
    db.pg.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v'), (2, 'v')").await;
    publish_all(&db).await;
    let (first, second, writer) = (session(&db).await, session(&db).await, session(&db).await);
    let first_xid = open(&first).await;
    let mut daemon = Daemon::spawn(&db, "");
    waited_for(&db, &first_xid).await;
    let second_xid = open(&second).await;
    db.pg.execute(change).await;
    run(&first, "COMMIT").await;
    waited_for(&db, &second_xid).await;
    run(&writer, "BEGIN; INSERT INTO t (id, v) VALUES (50, 'v')").await;
    run(&second, "COMMIT").await;
    // If the slot is good enough for walhouse, it streams; otherwise it is made once more, and that waits for the writer.
    eventually(Duration::from_secs(60), async || {
        let log = daemon.log();
        let settled = log.contains("made once more") || log.contains("slot created");
        if settled { Ok(()) } else { Err("the slot is still being created".to_owned()) }
    })
    .await;
    run(&writer, "COMMIT").await;
    daemon.wait_ready().await;
    (db, daemon)
}

/// Opens a transaction that has an id.
async fn open(session: &Client) -> String {
    run(session, "BEGIN").await;
    let row = session.query_one("SELECT pg_current_xact_id()::xid::text", &[]).await.expect("an id");
    row.get(0)
}

async fn waited_for(db: &TestDb, xid: &str) {
    let waiting = format!("SELECT count(*) FROM pg_locks WHERE transactionid = '{xid}' AND NOT granted");
    eventually(Duration::from_secs(30), async || {
        if db.pg.value(&waiting).await == "0" { Err(format!("nobody waits for {xid}")) } else { Ok(()) }
    })
    .await;
}
