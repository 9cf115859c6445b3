//! What a queue does not take, and what the lane can not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};

use super::{insert, prefix, with_outbox};
use crate::support::{Daemon, Proxy, Sqs, TestDb, eventually, settled};

const READY: &str = "events that are written into the outbox table are sent from now on";

fn number(event: &Value) -> usize {
    let number = event["payload"]["details"]["n"].as_u64().expect("a number");
    usize::try_from(number).expect("a small one")
}

/// An event with a payload of so many bytes, more or less.
fn large(number: usize, bytes: usize) -> String {
    format!(
        "INSERT INTO outbox_event (event_type, payload) SELECT 'SecurityEventOccurred', jsonb_build_object('eventType', 'login',
        'actingUserId', 'u', 'outcome', 'success', 'details', jsonb_build_object('n', {number}, 'x', repeat('x', {bytes})));"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_a_queue_goes_by_reference_and_what_is_too_large_together_goes_apart() {
    let (db, sqs) = (with_outbox("queue_large").await, Sqs::shared());
    let queue = format!("{}audit-log-queue", prefix(&db));
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    // Less than SQS allows, as it was usual for long.
    let url = sqs.url(&queue).await;
    let limit = sqs.client().set_queue_attributes().queue_url(url);
    limit.attributes(QueueAttributeName::MaximumMessageSize, "262144").send().await.expect("a limit");
    let mut all: String = (0..12).map(|number| large(number, 60_000)).collect();
    all.push_str(&large(12, 300_000));
    all.push_str(&large(13, 2_000_000));
    all.push_str(&insert("last", 14));
    db.pg.execute(&format!("BEGIN; {all} COMMIT")).await;
    let sent = sqs.take(&queue, 15).await;
    let (referring, whole): (Vec<_>, Vec<_>) =
        sent.iter().map(|event| &event.body).partition(|body| body.get("payloadReference").is_some());
    let mut numbers: Vec<_> = whole.into_iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..12).chain([14]).collect::<Vec<_>>());
    let referred = |body: &Value| {
        let location = body["payloadReference"]["location"].as_str().expect("a location");
        let payload = fs::read_to_string(location.strip_prefix("file://").expect("a file")).expect("an object");
        number(&json!({"payload": serde_json::from_str::<Value>(&payload).expect("JSON")}))
    };
    let mut numbers: Vec<_> = referring.into_iter().map(referred).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [12, 13]);
    assert_eq!(sqs.count(&format!("{}audit-log-dlq", prefix(&db))).await, 0);
    settled(&db).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifo_queues_have_the_events_of_a_key_in_their_order_whatever_the_key_is() {
    let (db, sqs) = (with_outbox("queue_fifo").await, Sqs::shared());
    let config = Sqs::config(sqs.port(), &prefix(&db)).replacen("[queue]\n", "[queue]\nfifo = true\n", 1);
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    let keys = ["user 1", "größe", "plain", "-", &"x".repeat(200)];
    let all: String = (0..100).map(|number| insert(keys[number % keys.len()], number)).collect();
    let misfit = "INSERT INTO outbox_event (aggregate_id, event_type, payload) VALUES ('user 1', 'OrderPlaced', '{}');";
    db.pg.execute(&format!("{all} {misfit}")).await;
    let sent = sqs.take(&format!("{}audit-log-queue.fifo", prefix(&db)), 100).await;
    let mut by_key: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for event in &sent {
        let user = event.body["payload"]["actingUserId"].as_str().expect("a user");
        by_key.entry(user.to_owned()).or_default().push(number(&event.body));
    }
    for (key, numbers) in &by_key {
        assert_eq!(numbers.len(), 20, "{key}");
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    sqs.take(&format!("{}audit-log-dlq.fifo", prefix(&db)), 1).await;
    drop(daemon);
    db.cleanup().await;
}

async fn received(db: &TestDb, sqs: &Sqs, rows: usize) -> BTreeSet<usize> {
    let queue = format!("{}audit-log-queue", prefix(db));
    let (mut seen, deadline) = (BTreeSet::new(), Instant::now() + Duration::from_secs(120));
    // What was sent and not confirmed comes twice.
    while seen.len() < rows && Instant::now() < deadline {
        let left = rows - seen.len();
        seen.extend(sqs.drain(&queue, left, Duration::from_secs(10)).await.iter().map(|event| number(&event.body)));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn more_events_than_the_lane_can_hold_wait_in_the_wal_and_all_of_them_come() {
    const EVENTS: usize = 4_000;
    let (db, sqs) = (with_outbox("queue_behind").await, Sqs::shared());
    let proxy = Proxy::to(sqs.port()).await;
    let config = Sqs::config(proxy.port(), &prefix(&db)).replacen("[queue]\n", "[queue]\nbudget = \"2MiB\"\n", 1);
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    proxy.cut_after("AmazonSQS.SendMessageBatch");
    let some = |first: usize, count: usize| {
        format!(
            "INSERT INTO outbox_event (aggregate_id, event_type, payload) SELECT 'user ' || n % 50, 'SecurityEventOccurred',
            jsonb_build_object('eventType', 'login', 'actingUserId', 'u', 'outcome', 'success', 'details', jsonb_build_object('n', n, 'x', repeat('x', 1000)))
            FROM generate_series({first}, {}) n; INSERT INTO item SELECT n, 'x' FROM generate_series({first}, {}) n",
            first + count - 1,
            first + count - 1
        )
    };
    for batch in 0..EVENTS / 2 / 100 {
        db.pg.execute(&some(batch * 100, 100)).await;
    }
    daemon.wait_log("events come faster than they are sent; the WAL keeps them", 1).await;
    // The other lane has no part in it.
    eventually(Duration::from_secs(20), async || {
        match db.ch.query("SELECT count() FROM item").await.parse::<usize>() {
            Ok(count) if count == EVENTS / 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(daemon.rss_bytes() < 120 << 20, "{} bytes", daemon.rss_bytes());
    proxy.mend();
    // Others come while these are read once more.
    for batch in EVENTS / 2 / 100..EVENTS / 100 {
        db.pg.execute(&some(batch * 100, 100)).await;
    }
    let seen = received(&db, &sqs, EVENTS).await;
    let missing: Vec<_> = (0..EVENTS).filter(|number| !seen.contains(number)).collect();
    assert!(missing.is_empty(), "{} are missing, such as {:?}", missing.len(), missing.first());
    daemon.wait_log("events are sent as they come again", 1).await;
    settled(&db).await;
    drop(daemon);
    db.cleanup().await;
}

/// The stream waits for the second reading once that is near, so that the two can be joined; but whoever else is handed the
/// stream waits along.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_second_reading_has_fallen_silent_near_the_stream_rows_keep_landing() {
    const ROWS: usize = 20_000;
    let (db, sqs) = (with_outbox("queue_near").await, Sqs::shared());
    let (queues, source) = (Proxy::to(sqs.port()).await, Proxy::to(db.postgres.port()).await);
    let url = db.pg.url().replace(&format!(":{}/", db.postgres.port()), &format!(":{}/", source.port()));
    let config = Sqs::config(queues.port(), &prefix(&db)).replacen("[queue]\n", "[queue]\nbudget = \"2MiB\"\n", 1);
    // Little may be on its way, so that a lane that takes nothing soon holds up the others.
    let little = "[memory]\nbudget = \"2MiB\"\n[batch]\nmax_bytes = \"256KiB\"\n";
    let mut daemon = Daemon::spawn(&db, &format!("[source]\nurl = \"{url}\"\n{little}{config}"));
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    queues.cut_after("AmazonSQS.SendMessageBatch");
    for number in 0..50 {
        db.pg.execute(&large(number, 60_000)).await;
    }
    daemon.wait_log("events come faster than they are sent; the WAL keeps them", 1).await;
    // The stream is past it when nothing that says so gets through any more.
    db.pg.execute(&format!("{} INSERT INTO item VALUES (0, 'x')", insert("the mark", 50))).await;
    let landed = async |rows: usize, limit: Duration| {
        eventually(limit, async || match db.ch.try_query("SELECT count() FROM item FINAL").await?.parse::<usize>() {
            Ok(count) if count >= rows => Ok(()),
            other => Err(format!("{other:?} of {rows} rows")),
        })
        .await;
    };
    landed(1, Duration::from_secs(30)).await;
    source.keep_said(&["the mark"]);
    queues.mend();
    source.has_kept(1).await;
    // It is open, has nothing more to say, and is not given up for a while.
    for round in 0..4 {
        let first = 1 + round * ROWS / 4;
        let upto = first + ROWS / 4 - 1;
        db.pg
            .execute(&format!("INSERT INTO item SELECT i, repeat('x', 500) FROM generate_series({first}, {upto}) i"))
            .await;
        landed(upto + 1, Duration::from_secs(20)).await;
    }
    assert_eq!(daemon.metric("walhouse_events_behind", "").await, 1.0, "it has not come to the mark");
    source.mend();
    // It is given up for its silence, and made anew.
    eventually(Duration::from_secs(120), async || match daemon.metric("walhouse_events_behind", "").await {
        0.0 => Ok(()),
        behind => Err(format!("{behind}")),
    })
    .await;
    let seen = received(&db, &sqs, 51).await;
    assert_eq!(seen, (0..51).collect());
    drop(daemon);
    db.cleanup().await;
}
