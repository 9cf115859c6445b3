//! The outbox table itself, and the queues themselves, as people treat them.

use std::time::Duration;

use super::{LOGIN, OUTBOX, insert, prefix, with_outbox};
use crate::support::{Daemon, Sqs, TestDb, eventually, settled};

const READY: &str = "events that are written into the outbox table are sent from now on";

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_without_a_key_is_not_published_since_nobody_could_clean_it_up_then() {
    let (db, sqs) = (TestDb::new("outbox_keyless").await, Sqs::shared());
    db.pg
        .execute("CREATE TABLE outbox_event (event_type text, payload jsonb); CREATE TABLE item (id int PRIMARY KEY, v text)")
        .await;
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("outbox_event has no usable replica identity. Give it a primary key", 1).await;
    let write = format!("INSERT INTO outbox_event VALUES ('SecurityEventOccurred', '{LOGIN}')");
    db.pg.execute(&format!("{write}; UPDATE outbox_event SET event_type = 'x'; DELETE FROM outbox_event")).await;
    db.pg.execute("ALTER TABLE outbox_event ADD COLUMN id uuid PRIMARY KEY DEFAULT gen_random_uuid()").await;
    daemon.wait_log(READY, 1).await;
    db.pg
        .execute(&format!("INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}')"))
        .await;
    sqs.take(&format!("{}audit-log-queue", prefix(&db)), 1).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_was_made_anew_while_nobody_looked_is_told_of() {
    let (db, sqs) = (with_outbox("outbox_anew").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    // Its identity is noted at the next look.
    eventually(Duration::from_secs(20), async || {
        match db.ch.query("SELECT argMax(outbox, revision) FROM _checkpoint").await.as_str() {
            "" => Err("not noted".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    daemon.sigterm(Duration::from_secs(20)).await;
    db.pg.execute(&format!("DROP TABLE outbox_event; {OUTBOX}; {}", insert("lost", 1))).await;
    daemon.start();
    daemon.wait_ready().await;
    daemon.wait_log("the outbox table is gone, or has left the publication", 1).await;
    daemon.wait_log(READY, 2).await;
    db.pg.execute(&insert("kept", 2)).await;
    let sent = sqs.take(&format!("{}audit-log-queue", prefix(&db)), 1).await;
    assert_eq!(sent[0].body["payload"]["actingUserId"], "kept");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_vanishes_is_made_again_where_walhouse_makes_them() {
    let (db, sqs) = (with_outbox("queue_vanishes").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    let queue = format!("{}audit-log-queue", prefix(&db));
    db.pg.execute(&insert("first", 1)).await;
    sqs.take(&queue, 1).await;
    let url = sqs.url(&queue).await;
    sqs.client().delete_queue().queue_url(url).send().await.expect("it can be deleted");
    db.pg.execute(&insert("second", 2)).await;
    let sent = sqs.take(&queue, 1).await;
    assert_eq!(sent[0].body["payload"]["actingUserId"], "second");
    settled(&db).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_the_queue_out_of_the_configuration_is_told_what_that_means() {
    let (db, sqs) = (with_outbox("queue_left_out").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    eventually(Duration::from_secs(20), async || {
        match db.ch.query("SELECT argMax(outbox, revision) FROM _checkpoint").await.as_str() {
            "" => Err("not noted".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    daemon.sigterm(Duration::from_secs(20)).await;
    let mut without = Daemon::spawn(&db, "");
    without.wait_ready().await;
    without.wait_log("are passed over and never sent", 1).await;
    drop((daemon, without));
    db.cleanup().await;
}
