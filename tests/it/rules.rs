//! Rules that were found by experiment: each test fails when its rule is taken away.

mod copy;
mod creation;
mod history;
mod order;
mod target;
mod toast;
mod truncate;

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::{TestDb, eventually};

/// A session of its own.
async fn session(db: &TestDb) -> Client {
    db.pg.connect().await.expect("PostgreSQL takes one more session")
}

/// Runs statements.
async fn run(session: &Client, sql: &str) {
    session.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Waits until a table has stopped, and returns why.
pub(crate) async fn stop_reason(db: &TestDb, table: &str) -> String {
    let sql = format!("SELECT reason FROM _tables FINAL WHERE table_name = '{table}' AND status = 'stopped'");
    eventually(Duration::from_secs(30), async || match db.ch.try_query(&sql).await? {
        reason if reason.is_empty() => Err(format!("{table} has not stopped")),
        reason => Ok(reason),
    })
    .await
}

/// Waits until `_tables` says so.
async fn wait_for_status(db: &TestDb, table: &str, status: &str) {
    let sql = format!("SELECT status FROM _tables FINAL WHERE table_name = '{table}'");
    eventually(Duration::from_secs(30), async || match db.ch.try_query(&sql).await? {
        found if found == status => Ok(()),
        found => Err(format!("{table} is '{found}', not '{status}'")),
    })
    .await;
}

/// Creates the publication that walhouse would create, with everything in it.
pub(crate) async fn publish_all(db: &TestDb) {
    db.pg.execute("CREATE PUBLICATION walhouse FOR ALL TABLES WITH (publish_via_partition_root = true)").await;
}

/// Waits until somebody waits for a lock on `table`.
async fn wait_for_queue(db: &TestDb, table: &str) {
    let sql = format!("SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted");
    eventually(Duration::from_secs(30), async || match db.pg.try_query(&sql).await?.pop() {
        Some(row) if row[0].as_deref() != Some("0") => Ok(()),
        _ => Err(format!("nobody waits for {table}")),
    })
    .await;
}
