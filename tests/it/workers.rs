//! Workers: each event has its effect, once, whatever happens meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::queue::{LOGIN, insert, prefix, with_outbox};
use crate::support::{ClickHouse, ClickHouseOptions, Daemon, Postgres, Proxy, Sqs, TestDb, eventually};

/// An event as it is in a queue.
fn event(version: &str, payload: &Value, more: &Value) -> String {
    let mut metadata = json!({
        "eventId": uuid::Uuid::from_u128(rand::random()).to_string(), "eventTimestamp": "2026-01-01T00:00:00.000001Z",
        "eventType": "SecurityEventOccurred", "eventVersion": version, "correlationId": "c", "sourceService": "shop"
    });
    for (name, value) in more.as_object().expect("an object") {
        metadata[name] = value.clone();
    }
    json!({"metadata": metadata, "payload": payload}).to_string()
}

async fn audited(db: &TestDb, rows: usize) {
    eventually(Duration::from_secs(60), async || {
        match db.ch.try_query("SELECT uniqExact(event_id) FROM audit_log").await?.parse::<usize>() {
            Ok(count) if count >= rows => Ok(()),
            other => Err(format!("{other:?} of {rows}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_writes_is_in_the_audit_log() {
    let (db, sqs) = (with_outbox("audit").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    db.pg
        .execute(
            "BEGIN; SELECT pg_logical_emit_message(true, 'walhouse.correlation', 'request 7');
            INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{\"eventType\": \"role_changed\", \"actingUserId\": \"u''1\\n\", \"outcome\": \"failure\", \"merchantAccountId\": \"m\", \"details\": {\"to\": [1.50, \"admin\"]}}');
            COMMIT",
        )
        .await;
    audited(&db, 1).await;
    let row = db
        .ch
        .query(
            "SELECT event_id, correlation_id, event_type, acting_user_id, merchant_account_id, target_resource, outcome, details, \
            source_service FROM audit_log FORMAT JSONEachRow",
        )
        .await;
    let row: Value = serde_json::from_str(&row).expect("a row");
    let id = db.pg.value("SELECT id FROM outbox_event").await;
    assert_eq!(
        row,
        json!({
            "event_id": id, "correlation_id": "request 7", "event_type": "role_changed", "acting_user_id": "u'1\n",
            "merchant_account_id": "m", "target_resource": null, "outcome": "failure", "details": "{\"to\": [1.50, \"admin\"]}",
            "source_service": db.name
        })
    );
    let queue = format!("{}audit-log-queue", prefix(&db));
    eventually(Duration::from_secs(10), async || match sqs.count(&queue).await {
        0 => Ok(()),
        left => Err(format!("{left} messages are left")),
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_worker_understands_is_a_dead_letter_at_once_and_later_minor_versions_are_taken() {
    let (db, sqs) = (with_outbox("poison").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    let (queue, dead) = (format!("{}audit-log-queue", prefix(&db)), format!("{}audit-log-dlq", prefix(&db)));
    let login: Value = serde_json::from_str(LOGIN).expect("JSON");
    let mut added = login.clone();
    added["device"] = json!({"kind": "phone"});
    sqs.send(&queue, &event("1.1", &added, &json!({"tenant": 3}))).await;
    sqs.send(&queue, "no JSON at all, canary").await;
    sqs.send(&queue, &event("2.0", &login, &json!({}))).await;
    sqs.send(&queue, &event("1.0", &json!({"eventType": "login"}), &json!({}))).await;
    let other = json!({"operationType": "dataExport", "userId": "u", "merchantAccountId": "m", "parameters": {}});
    sqs.send(&queue, &event("1.0", &other, &json!({"eventType": "AsynchronousOperationRequested"}))).await;
    let dead = sqs.take(&dead, 4).await;
    for part in ["it is no JSON", "its version is 2.0", "/payload: ", "does not belong into audit-log-queue"] {
        assert!(dead.iter().any(|letter| letter.attributes["deadLetterReason"].contains(part)), "{part}: {dead:?}");
    }
    for letter in &dead {
        assert_eq!(
            (letter.attributes["deadLetterHandler"].as_str(), letter.attributes["deadLetterTries"].as_str()),
            ("audit", "1")
        );
    }
    audited(&db, 1).await;
    assert_eq!(sqs.count(&queue).await, 0);
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_clickhouse_is_away_events_wait_and_none_of_their_tries_is_used_up() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), "audit_away").await;
    let sqs = Sqs::shared();
    let (queues, told) = (Sqs::handled(sqs.port(), &prefix(&db)), "[log]\nlevel = \"info,walhouse::queue=debug\"\n");
    let mut daemon = Daemon::spawn(&db, &format!("{queues}[workers.audit]\ntimeout = \"1s\"\n{told}"));
    daemon.wait_ready().await;
    let (queue, dead) = (format!("{}audit-log-queue", prefix(&db)), format!("{}audit-log-dlq", prefix(&db)));
    let login: Value = serde_json::from_str(LOGIN).expect("JSON");
    sqs.send(&queue, &event("1.0", &login, &json!({}))).await;
    audited(&db, 1).await;
    clickhouse.freeze();
    for _ in 0..20 {
        sqs.send(&queue, &event("1.0", &login, &json!({}))).await;
    }
    daemon.wait_log("events wait until this is over", 1).await;
    // More often than an event is tried.
    daemon.wait_log("still waiting", 5).await;
    clickhouse.resume();
    audited(&db, 21).await;
    assert_eq!(sqs.count(&dead).await, 0);
    assert_eq!(daemon.metric("walhouse_events_handled_total", "outcome=\"again\"").await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_silent_costs_no_event_a_try() {
    let (db, sqs) = (with_outbox("audit_silent").await, Sqs::shared());
    let proxy = Proxy::to(db.clickhouse.port()).await;
    let queues = Sqs::handled(sqs.port(), &prefix(&db));
    let daemon = Daemon::spawn(&db, &format!("[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n{queues}", proxy.port()));
    let (queue, dead) = (format!("{}audit-log-queue", prefix(&db)), format!("{}audit-log-dlq", prefix(&db)));
    let login: Value = serde_json::from_str(LOGIN).expect("JSON");
    sqs.send(&queue, &event("1.0", &login, &json!({}))).await;
    audited(&db, 1).await;
    proxy.mute("INSERT+INTO+audit_log");
    for _ in 0..20 {
        sqs.send(&queue, &event("1.0", &login, &json!({}))).await;
    }
    audited(&db, 21).await;
    assert_eq!(sqs.count(&dead).await, 0);
    assert_eq!(daemon.metric("walhouse_events_handled_total", "outcome=\"again\"").await, 0.0);
    daemon.wait_log("ClickHouse has not answered", 1).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_clickhouse_refuses_for_a_reason_of_its_own_holds_up_no_other() {
    let (db, sqs) = (with_outbox("audit_bad").await, Sqs::shared());
    let workers = "[workers.audit]\nretry_delay = \"100ms\"\n";
    let mut daemon = Daemon::spawn(&db, &(Sqs::handled(sqs.port(), &prefix(&db)) + workers));
    daemon.wait_ready().await;
    let (queue, dead) = (format!("{}audit-log-queue", prefix(&db)), format!("{}audit-log-dlq", prefix(&db)));
    db.ch.query("ALTER TABLE audit_log ADD CONSTRAINT nobody CHECK throwIf(acting_user_id = 'canary') = 0").await;
    let of = |user: &str| json!({"eventType": "login", "actingUserId": user, "outcome": "success"});
    sqs.send(&queue, &event("1.0", &of("canary"), &json!({}))).await;
    let mut good = 0;
    eventually(Duration::from_secs(120), async || {
        for _ in 0..3 {
            sqs.send(&queue, &event("1.0", &of("u"), &json!({}))).await;
            good += 1;
        }
        if sqs.count(&dead).await == 1 { Ok(()) } else { Err("it is no dead letter yet".to_owned()) }
    })
    .await;
    let letter = sqs.take(&dead, 1).await.remove(0);
    assert_eq!(letter.body["payload"]["actingUserId"], "canary");
    let reason = &letter.attributes["deadLetterReason"];
    assert!(reason.starts_with("given up after 4 tries: ClickHouse: FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"), "{reason}");
    audited(&db, good).await;
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_clickhouse_is_there_and_refuses_every_insert_events_wait() {
    let (db, sqs) = (with_outbox("audit_refuses").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    let (queue, dead) = (format!("{}audit-log-queue", prefix(&db)), format!("{}audit-log-dlq", prefix(&db)));
    db.ch.query("ALTER TABLE audit_log DROP COLUMN details").await;
    let login: Value = serde_json::from_str(LOGIN).expect("JSON");
    for _ in 0..20 {
        sqs.send(&queue, &event("1.0", &login, &json!({}))).await;
    }
    let begun = Instant::now();
    daemon.wait_log("events wait until this is over", 1).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let told = daemon.log().matches("events wait until this is over").count();
    assert!(told as u64 <= 1 + begun.elapsed().as_secs() / 30, "it is told every half a minute: {told}");
    db.ch.query("ALTER TABLE audit_log ADD COLUMN details String").await;
    audited(&db, 20).await;
    assert_eq!(sqs.count(&dead).await, 0);
    assert_eq!(daemon.metric("walhouse_events_handled_total", "outcome=\"again\"").await, 0.0);
    eventually(Duration::from_secs(10), async || {
        match daemon.metric("walhouse_worker_waits", "worker=\"audit\"").await {
            0.0 => Ok(()),
            waits => Err(format!("it waits: {waits}")),
        }
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_an_id_that_was_done_is_counted_apart_and_requests_that_fail_are_seen() {
    let (db, sqs) = (with_outbox("audit_known").await, Sqs::shared());
    let proxy = Proxy::to(sqs.port()).await;
    let daemon = Daemon::spawn(&db, &Sqs::handled(proxy.port(), &prefix(&db)));
    let queue = format!("{}audit-log-queue", prefix(&db));
    let login: Value = serde_json::from_str(LOGIN).expect("JSON");
    let id = json!({"eventId": uuid::Uuid::from_u128(rand::random()).to_string()});
    for _ in 0..2 {
        sqs.send(&queue, &event("1.0", &login, &id)).await;
    }
    let counted = async |name: &str, labels: &str| {
        eventually(Duration::from_secs(60), async || match daemon.metric(name, labels).await {
            0.0 => Err(format!("no {name} of {labels}")),
            count => Ok(count),
        })
        .await
    };
    assert_eq!(counted("walhouse_events_handled_total", "outcome=\"known\"").await, 1.0);
    assert_eq!(counted("walhouse_events_handled_total", "outcome=\"done\"").await, 1.0);
    proxy.cut_after("ReceiveMessage");
    counted("walhouse_worker_take_errors_total", "worker=\"audit\"").await;
    daemon.wait_log("no messages can be taken", 1).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_leave_each_event_once() {
    const EVENTS: usize = 600;
    let (db, sqs) = (with_outbox("audit_kills").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let log = daemon.log();
    assert!(!log.contains("has no queue"), "who makes the queues does not complain that there are none: {log}");
    for number in 0..EVENTS {
        db.pg.execute(&insert(&format!("user {}", number % 7), number)).await;
        if number % 150 == 149 {
            daemon.kill9();
            daemon.start();
        }
    }
    audited(&db, EVENTS).await;
    let missing = db.pg.value("SELECT count(*) FROM outbox_event").await;
    assert_eq!(
        db.ch.query("SELECT count(), uniqExact(event_id) FROM audit_log FINAL").await,
        format!("{missing}\t{missing}")
    );
    let written =
        db.pg.value("SELECT md5(string_agg(id::text, ',' ORDER BY id::text COLLATE \"C\")) FROM outbox_event").await;
    let there = db.ch.query("SELECT lower(hex(MD5(arrayStringConcat(arraySort(groupArray(toString(event_id))), ',')))) FROM audit_log FINAL").await;
    assert_eq!(there, written);
    drop(daemon);
    db.cleanup().await;
}
