//! Events: from what applications write in their transactions to SQS.

mod latency;
mod limits;
mod outbox;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::support::{Daemon, Proxy, Received, Sqs, TestDb, assert_equal, eventually, settled};

pub(crate) const OUTBOX: &str = include_str!("../../migrations/postgres/0002_outbox_event.sql");
pub(crate) const LOGIN: &str = r#"{"eventType": "login", "actingUserId": "u1", "outcome": "success"}"#;

/// A prefix of the test's own.
pub(crate) fn prefix(db: &TestDb) -> String {
    format!("{}-", db.name)
}

/// The body's metadata.
fn metadata<'a>(event: &'a Received, name: &str) -> &'a str {
    event.body["metadata"][name].as_str().unwrap_or_default()
}

pub(crate) async fn with_outbox(label: &str) -> TestDb {
    let db = TestDb::new(label).await;
    db.pg.execute(OUTBOX).await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text)").await;
    db
}

pub(crate) fn insert(key: &str, number: usize) -> String {
    let payload = format!(
        r#"{{"eventType": "login", "actingUserId": "{key}", "outcome": "success", "details": {{"n": {number}}}}}"#
    );
    format!(
        "INSERT INTO outbox_event (aggregate_id, event_type, payload) VALUES ('{key}', 'SecurityEventOccurred', '{payload}');"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commits_is_sent_and_nothing_else() {
    let (db, sqs) = (with_outbox("queue_commits").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    db.pg
        .execute(&format!(
            "BEGIN;
            SELECT pg_logical_emit_message(true, 'walhouse.correlation', 'request 7');
            INSERT INTO item VALUES (1, 'a');
            {}
            SAVEPOINT s; {} ROLLBACK TO s;
            SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{{\"eventType\": \"SecurityEventOccurred\", \"payload\": {LOGIN}, \"aggregateId\": \"m\"}}');
            DELETE FROM outbox_event;
            COMMIT;
            BEGIN; {} ROLLBACK;
            SELECT pg_logical_emit_message(false, 'walhouse.outbox', '{{\"eventType\": \"SecurityEventOccurred\", \"payload\": {LOGIN}}}');",
            insert("kept", 1),
            insert("rolled back", 2),
            insert("rolled back", 3),
        ))
        .await;
    let events = sqs.take(&format!("{}audit-log-queue", prefix(&db)), 2).await;
    let users: BTreeSet<_> = events.iter().map(|event| event.body["payload"]["actingUserId"].as_str()).collect();
    assert_eq!(users, BTreeSet::from([Some("kept"), Some("u1")]));
    for event in &events {
        assert_eq!(metadata(event, "correlationId"), "request 7");
        assert_eq!(metadata(event, "eventVersion"), "1.0");
        assert_eq!(metadata(event, "sourceService"), db.name);
        assert_eq!(event.attributes["routingKey"], "audit.security");
        assert_eq!(event.attributes["correlationId"], "request 7");
        assert_eq!(event.attributes["eventType"], "SecurityEventOccurred");
    }
    daemon.wait_log("stand outside of transactions", 1).await;
    // The outbox is no table of the warehouse.
    settled(&db).await;
    assert_eq!(db.ch.query("EXISTS TABLE outbox_event").await, "0");
    assert_equal(&db, "item").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_goes_to_the_dead_letters_of_its_queue_with_the_reason() {
    let (db, sqs) = (with_outbox("queue_misfits").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    db.pg
        .execute(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('AsynchronousOperationRequested', '{{\"userId\": \"canary\"}}');
            INSERT INTO outbox_event (event_type, payload) VALUES ('OrderPlaced', '{{}}');
            INSERT INTO outbox_event (event_type, event_version, payload) VALUES ('SecurityEventOccurred', '2.0', '{LOGIN}');
            SELECT pg_logical_emit_message(true, 'walhouse.outbox', 'no JSON at all');
            {}",
            insert("good", 1)
        ))
        .await;
    let dead = sqs.take(&format!("{}async-operations-dlq", prefix(&db)), 1).await;
    assert_eq!(dead[0].body["payload"], json!({"userId": "canary"}));
    let reason = &dead[0].attributes["deadLetterReason"];
    assert!(reason.starts_with("/payload: ") && reason.contains("operationType"), "{reason}");
    let dead = sqs.take(&format!("{}audit-log-dlq", prefix(&db)), 3).await;
    let reasons: Vec<_> = dead.iter().map(|event| event.attributes["deadLetterReason"].as_str()).collect();
    for part in ["there is no event of that type", "its version is 2.0", "no event of that type"] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:?}");
    }
    let sent = sqs.take(&format!("{}audit-log-queue", prefix(&db)), 1).await;
    assert_eq!(sent[0].body["payload"]["actingUserId"], "good");
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_sqs_is_away_the_warehouse_goes_on_and_the_slot_waits() {
    let (db, sqs) = (with_outbox("queue_away").await, Sqs::shared());
    let proxy = Proxy::to(sqs.port()).await;
    let mut daemon = Daemon::spawn(&db, &Sqs::config(proxy.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    proxy.cut_after("AmazonSQS.SendMessageBatch");
    let before = db.pg.value("SELECT pg_current_wal_lsn()").await;
    db.pg.execute(&format!("{} INSERT INTO item VALUES (1, 'a')", insert("waits", 1))).await;
    db.pg.execute("INSERT INTO item SELECT i, 'b' FROM generate_series(2, 1000) i").await;
    eventually(Duration::from_secs(20), async || match db.ch.query("SELECT count() FROM item").await.as_str() {
        "1000" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    daemon.wait_log("events are not sent; they wait, and so does the slot", 1).await;
    let held = db
        .pg
        .value(&format!(
            "SELECT confirmed_flush_lsn <= '{before}'::pg_lsn + 1000 FROM pg_replication_slots WHERE slot_name = '{}'",
            db.name
        ))
        .await;
    assert_eq!(held, "t");
    // A restart does not forget it, and what it sends is the same event.
    daemon.kill9();
    daemon.start();
    proxy.mend();
    // Perhaps more than once, if the answer to the first was lost.
    let sent = sqs.drain(&format!("{}audit-log-queue", prefix(&db)), 2, Duration::from_secs(5)).await;
    let id = db.pg.value("SELECT id FROM outbox_event").await;
    assert!(!sent.is_empty() && sent.iter().all(|event| metadata(event, "eventId") == id), "{sent:?}");
    settled(&db).await;
    drop(daemon);
    db.cleanup().await;
}
