//! A failover to a standby that has not got as far as events that were sent: their positions will be those of other transactions.

use std::time::Duration;

use super::{Edge, wait_sent};
use crate::queue::OUTBOX;
use crate::support::{ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, settled};

const STOP: Duration = Duration::from_secs(30);

async fn alone(label: &str) -> Edge {
    let db = TestDb::on(Postgres::private(PostgresOptions::default()), ClickHouse::shared(), label).await;
    db.pg.execute(&format!("{OUTBOX}; CREATE TABLE item (id int PRIMARY KEY, v text)")).await;
    Edge::of(db).await
}

async fn streams(sender: &mut Daemon) {
    let before = sender.streams();
    sender.start();
    sender.wait_streams(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lacks_an_event_that_may_have_been_sent_is_a_halt() {
    let edge = alone("edge_failover").await;
    let mut sender = edge.sender().await;
    // Nothing is reserved for rows.
    assert_eq!(sender.sigterm(STOP).await.code(), Some(0));
    let base = edge.db.postgres.base_backup();
    streams(&mut sender).await;
    settled(&edge.db).await;
    edge.queues.keep_answers(&["AmazonSQS.SendMessageBatch"]);
    let position = edge.db.pg.value("SELECT pg_current_wal_insert_lsn()").await;
    edge.write().await;
    // SQS has it, and walhouse does not know.
    edge.queues.has_kept(1).await;
    edge.has("audit-log-queue", 1).await;
    sender.kill9();
    edge.mend();
    edge.db.postgres.fail_over(&base, &position);
    assert_eq!(edge.db.pg.value("SELECT count(*) FROM outbox_event").await, "0", "the standby does not have it");
    sender.start();
    let (code, log) = sender.wait_exit(Duration::from_secs(60)).await;
    assert_eq!(code, 3, "{log}");
    let last = log.lines().rfind(|line| line.starts_with("walhouse: ")).expect("the reason is said");
    assert!(last.contains("the cluster is on timeline 2 now and left timeline 1 at"), "{last}");
    assert!(last.contains("may have been taken from the old one"), "{last}");
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_has_every_event_that_was_sent_goes_on_after_a_stop() {
    let edge = alone("edge_switchover").await;
    let mut sender = edge.sender().await;
    assert_eq!(sender.sigterm(STOP).await.code(), Some(0));
    let base = edge.db.postgres.base_backup();
    streams(&mut sender).await;
    edge.write().await;
    edge.db.pg.execute("INSERT INTO item VALUES (1, 'a')").await;
    wait_sent(&sender, 1).await;
    settled(&edge.db).await;
    assert_eq!(sender.sigterm(STOP).await.code(), Some(0));
    let position = edge.db.pg.value("SELECT pg_current_wal_insert_lsn()").await;
    edge.db.pg.execute("CREATE TABLE later (id int PRIMARY KEY)").await;
    edge.db.postgres.fail_over(&base, &position);
    sender.start();
    sender.wait_log("the cluster was promoted; nothing was missed", 1).await;
    edge.write().await;
    wait_sent(&sender, 1).await;
    edge.has("audit-log-queue", 2).await;
    drop(sender);
    edge.db.cleanup().await;
}
