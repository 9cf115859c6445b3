//! Events that stand in the windows of a backlog: all of them come, those of a key in their order, also around a kill.

use std::collections::BTreeMap;

use super::{NEAR, alone};
use crate::queue::{OUTBOX, prefix};
use crate::support::{Daemon, Sqs, TestDb, eventually, settled};
use std::time::Duration;

/// Each with a few rows before it, so that they are spread over all of the windows.
const EVENTS: usize = 600;
const KEYS: usize = 7;

async fn backlog(label: &str) -> TestDb {
    let db = alone(label).await;
    db.pg.execute(OUTBOX).await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    db
}

/// Events in turn as rows and as messages, one or several to a transaction, and much beside them.
async fn write(db: &TestDb) {
    for first in (0..EVENTS).step_by(4) {
        let mut all = String::from("BEGIN;");
        for number in first..first + 4 {
            let (key, from) = (format!("key {}", number % KEYS), number * 50);
            let payload = format!(
                r#"{{"eventType": "login", "actingUserId": "{key}", "outcome": "success", "details": {{"n": {number}}}}}"#
            );
            all += &format!("INSERT INTO item SELECT i, repeat('v', 100) FROM generate_series({from}, {from} + 49) i;");
            all += &match number % 2 {
                0 => format!(
                    "INSERT INTO outbox_event (aggregate_id, event_type, payload) VALUES ('{key}', 'SecurityEventOccurred', '{payload}');"
                ),
                _ => format!(
                    "SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{{\"eventType\": \"SecurityEventOccurred\", \
                     \"aggregateId\": \"{key}\", \"payload\": {payload}}}');"
                ),
            };
            if number % 4 == 1 {
                all += "COMMIT; BEGIN;";
            }
        }
        db.pg.execute(&format!("{all} COMMIT")).await;
        if first % 40 == 0 {
            // Notes down what runs: decoding can begin here.
            db.pg.execute("CHECKPOINT").await;
        }
    }
}

/// Falls behind, reads some windows, is killed, and reads the rest.
async fn read_in_windows_around_a_kill(db: &TestDb, queue: &str) -> Daemon {
    let mut daemon = Daemon::spawn(db, &format!("{NEAR}{queue}"));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    daemon.kill9();
    write(db).await;
    daemon.start();
    eventually(Duration::from_secs(60), async || {
        daemon.get("/metrics").await?;
        match daemon.metric("walhouse_catch_up_windows_total", "").await {
            windows if windows >= 2.0 => Ok(()),
            windows => Err(format!("{windows} windows")),
        }
    })
    .await;
    daemon.kill9();
    daemon.start();
    daemon.wait_log("INFO catching up slot=", 2).await;
    settled(db).await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_the_windows_of_a_backlog_are_sent_in_the_order_of_their_key_around_a_kill() {
    let (db, sqs) = (backlog("cu_order").await, Sqs::shared());
    // A FIFO queue shows the order, and takes once what is sent again around the kill.
    let queue = Sqs::config(sqs.port(), &prefix(&db)).replacen("[queue]\n", "[queue]\nfifo = true\n", 1);
    let daemon = read_in_windows_around_a_kill(&db, &queue).await;
    let mut by_key: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in sqs.take(&format!("{}audit-log-queue.fifo", prefix(&db)), EVENTS).await {
        let payload = &event.body["payload"];
        let key = payload["actingUserId"].as_str().expect("a user").to_owned();
        by_key.entry(key).or_default().push(payload["details"]["n"].as_u64().expect("a number"));
    }
    assert_eq!(by_key.len(), KEYS);
    for (key, numbers) in by_key {
        let first: u64 = key.trim_start_matches("key ").parse().expect("a number");
        assert_eq!(numbers, (first..EVENTS as u64).step_by(KEYS).collect::<Vec<_>>(), "{key}");
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_the_windows_of_a_backlog_all_reach_their_handler_around_a_kill() {
    let (db, sqs) = (backlog("cu_events").await, Sqs::shared());
    let daemon = read_in_windows_around_a_kill(&db, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    let numbers = "SELECT count(), uniqExact(n), min(n), max(n) FROM
        (SELECT JSONExtractUInt(details, 'n') AS n FROM audit_log FINAL)";
    let all = format!("{EVENTS}\t{EVENTS}\t0\t{}", EVENTS - 1);
    eventually(Duration::from_secs(120), async || match db.ch.try_query(numbers).await? {
        found if found == all => Ok(()),
        found => Err(found),
    })
    .await;
    let queue = format!("{}audit-log-queue", prefix(&db));
    eventually(Duration::from_secs(60), async || match sqs.count(&queue).await {
        0 => Ok(()),
        left => Err(format!("{left} messages are left")),
    })
    .await;
    // What came twice is still one event.
    assert_eq!(db.ch.query(numbers).await, all);
    drop(daemon);
    db.cleanup().await;
}
