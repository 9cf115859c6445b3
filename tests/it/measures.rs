//! The measures that no other test looks at: each is seen to move, with real servers, by what it is about.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::queue::{LOGIN, insert, prefix, with_outbox};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, Proxy, Sqs, TestDb, assert_equal, eventually, settled,
};

/// Waits until a measure is as it should be, and returns it.
async fn becomes(daemon: &Daemon, name: &str, labels: &str, is: impl Fn(f64) -> bool) -> f64 {
    eventually(Duration::from_secs(120), async || {
        let found = daemon.metric(name, labels).await;
        if is(found) { Ok(found) } else { Err(format!("{name}{{{labels}}} is {found}")) }
    })
    .await
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_slot_keeps_and_what_is_in_flight_rises_while_clickhouse_hangs_and_falls_again() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), "measures").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (0, 'copied')").await;
    let mut daemon = Daemon::spawn(&db, "[memory]\nbudget = \"64MiB\"\n");
    daemon.wait_ready().await;
    assert_eq!(daemon.metric("walhouse_memory_budget_bytes", "").await, f64::from(64 << 20));
    let read = daemon.metric("walhouse_source_position_bytes", "").await;
    db.pg.execute("INSERT INTO item SELECT i, 'a' FROM generate_series(1, 300) i").await;
    assert_equal(&db, "item").await;
    settled(&db).await;
    // One batch or more, of 300 rows together, beside the one that was copied.
    assert_eq!(daemon.metric("walhouse_insert_rows_sum", "").await, 301.0);
    assert!(daemon.metric("walhouse_insert_rows_count", "").await >= 2.0);
    becomes(&daemon, "walhouse_source_position_bytes", "", |position| position > read).await;
    let stored = daemon.metric("walhouse_checkpoint_timestamp_seconds", "").await;
    assert!(stored <= now() && stored > now() - 300.0, "{stored}");
    becomes(&daemon, "walhouse_clickhouse_partition_parts_max", "", |parts| parts >= 1.0).await;
    let most = daemon.metric("walhouse_clickhouse_partition_parts_max", "").await;
    assert!(daemon.metric("walhouse_clickhouse_parts", "").await >= most);
    becomes(&daemon, "walhouse_dependency_up", "clickhouse", |up| up == 1.0).await;
    becomes(&daemon, "walhouse_slot_unconfirmed_bytes", "", |bytes| bytes < f64::from(1 << 20)).await;
    let retained = daemon.metric("walhouse_slot_retained_bytes", "").await;

    clickhouse.freeze();
    // 4 MiB of WAL, which nobody confirms.
    db.pg.execute("INSERT INTO item SELECT i, repeat(md5(i::text), 60) FROM generate_series(1001, 3000) i").await;
    let written = 3.0 * f64::from(1 << 20);
    becomes(&daemon, "walhouse_slot_unconfirmed_bytes", "", |bytes| bytes > written).await;
    becomes(&daemon, "walhouse_slot_retained_bytes", "", |bytes| bytes > retained + written / 2.0).await;
    becomes(&daemon, "walhouse_source_lag_bytes", "", |bytes| bytes > written).await;
    becomes(&daemon, "walhouse_memory_in_flight_bytes", "", |bytes| bytes > f64::from(1 << 20)).await;
    becomes(&daemon, "walhouse_lag_seconds", "", |seconds| seconds > 1.0).await;
    becomes(&daemon, "walhouse_dependency_up", "clickhouse", |up| up == 0.0).await;
    assert_eq!(daemon.metric("walhouse_dependency_up", "postgresql").await, 1.0);
    let held = daemon.metric("walhouse_checkpoint_timestamp_seconds", "").await;
    clickhouse.resume();

    assert_equal(&db, "item").await;
    becomes(&daemon, "walhouse_dependency_up", "clickhouse", |up| up == 1.0).await;
    becomes(&daemon, "walhouse_lag_seconds", "", |seconds| seconds == 0.0).await;
    becomes(&daemon, "walhouse_source_lag_bytes", "", |bytes| bytes < written).await;
    becomes(&daemon, "walhouse_slot_unconfirmed_bytes", "", |bytes| bytes < written).await;
    becomes(&daemon, "walhouse_checkpoint_timestamp_seconds", "", |time| time > held).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_measured_from_the_event_to_the_handler_and_to_the_dead_letters() {
    let (db, sqs) = (with_outbox("measures_queue").await, Sqs::shared());
    let (queues, warehouse) = (Proxy::to(sqs.port()).await, Proxy::to(db.clickhouse.port()).await);
    let config = Sqs::config(queues.port(), &prefix(&db))
        + &format!("[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n", warehouse.port());
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let audit = "queue=\"audit-log\"";

    // What an application writes, and what it should not.
    let outside = format!(
        "SELECT pg_logical_emit_message(false, 'walhouse.outbox', '{{\"eventType\": \"SecurityEventOccurred\", \"payload\": {LOGIN}}}')"
    );
    db.pg.execute(&outside).await;
    db.pg.execute(&format!("{} {} {}", insert("a", 1), insert("b", 2), insert("c", 3))).await;
    db.pg.execute("INSERT INTO outbox_event (event_type, payload) VALUES ('OrderPlaced', '{}')").await;
    becomes(&daemon, "walhouse_events_sent_total", audit, |sent| sent == 4.0).await;
    assert_eq!(daemon.metric("walhouse_events_total", audit).await, 4.0);
    becomes(&daemon, "walhouse_events_outside_transactions_total", "", |count| count == 1.0).await;
    // SQS is asked every half a minute.
    becomes(&daemon, "walhouse_queue_messages", "queue=\"audit-log\",state=\"visible\"", |count| count == 3.0).await;
    becomes(&daemon, "walhouse_dlq_messages", audit, |count| count == 1.0).await;
    let front = daemon.metric("walhouse_queue_front_timestamp_seconds", audit).await;
    assert!(front > now() - 600.0 && front <= now(), "{front}");

    // SQS is away.
    let failed = daemon.metric("walhouse_queue_errors_total", "").await;
    queues.cut_after("AmazonSQS.SendMessageBatch");
    db.pg.execute(&insert("d", 4)).await;
    becomes(&daemon, "walhouse_queue_errors_total", "kind=\"transient\"", |count| count > failed).await;
    queues.mend();
    becomes(&daemon, "walhouse_events_sent_total", audit, |sent| sent == 5.0).await;

    // And handled, by a worker that has to wait.
    assert_eq!(daemon.sigterm(Duration::from_secs(30)).await.code(), Some(0));
    let config = std::fs::read_to_string(daemon.config()).expect("the configuration can be read");
    std::fs::write(daemon.config(), config.replace("enabled = false", "enabled = true")).expect("it can be written");
    warehouse.mute("INSERT+INTO+audit_log");
    daemon.start();
    eventually(Duration::from_secs(60), async || daemon.get("/healthz").await).await;
    let worker = "worker=\"audit\"";
    becomes(&daemon, "walhouse_worker_in_hand", worker, |count| count >= 1.0).await;
    let oldest = daemon.metric("walhouse_worker_oldest_in_hand_timestamp_seconds", worker).await;
    assert!(oldest == 0.0 || oldest > now() - 300.0, "{oldest}");
    assert_eq!(daemon.metric("walhouse_worker_timeout_seconds", worker).await, 5.0);
    warehouse.mend();
    becomes(&daemon, "walhouse_events_handled_total", "worker=\"audit\",outcome=\"done\"", |count| count == 4.0).await;
    becomes(&daemon, "walhouse_worker_in_hand", worker, |count| count == 0.0).await;
    assert_eq!(daemon.metric("walhouse_worker_oldest_in_hand_timestamp_seconds", worker).await, 0.0);
    assert!(daemon.metric("walhouse_handler_seconds_count", worker).await >= 4.0);
    // Of messages that are taken for the first time; the one whose answer was lost is there twice.
    becomes(&daemon, "walhouse_queue_wait_seconds_count", audit, |count| count >= 4.0).await;
    assert!(daemon.metric("walhouse_queue_front_timestamp_seconds", audit).await >= front);
    becomes(&daemon, "walhouse_queue_messages", "queue=\"audit-log\",state=\"visible\"", |count| count == 0.0).await;
    drop(daemon);
    db.cleanup().await;
}
