//! From an event's commit to its queue: what is measured, and what is not.

use std::time::Duration;

use super::{insert, prefix, with_outbox};
use crate::support::{Daemon, Sqs, TestDb, eventually, stored, walhouse};

async fn measured(daemon: &Daemon) -> f64 {
    daemon.metric("walhouse_queue_latency_seconds_count", "").await
}

async fn sent(daemon: &Daemon, count: f64) {
    eventually(Duration::from_secs(60), async || match daemon.metric("walhouse_events_sent_total", "").await {
        sent if sent == count => Ok(()),
        sent => Err(format!("{sent} are sent")),
    })
    .await;
}

/// The checkpoint is past what was committed before this call; the slot stays behind it, by its window.
async fn passed(db: &TestDb) {
    let position: u64 = db.pg.value("SELECT pg_current_wal_lsn() - '0/0'").await.parse().expect("a number");
    eventually(Duration::from_secs(60), async || match stored(&db.ch, &db.name).await? {
        Some(stored) if stored >= position => Ok(()),
        other => Err(format!("{other:?}, not {position}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_measured_once_and_neither_commits_without_events_nor_those_that_a_replay_sends() {
    let (db, sqs) = (with_outbox("queue_latency").await, Sqs::shared());
    let config = Sqs::config(sqs.port(), &prefix(&db)) + "[source]\nreplay_window = \"4GiB\"\n";
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let from = db.pg.value("SELECT pg_current_wal_lsn()").await;
    for id in 0..20 {
        db.pg.execute(&format!("INSERT INTO item VALUES ({id}, 'no event')")).await;
    }
    passed(&db).await;
    assert_eq!(measured(&daemon).await, 0.0);
    // Two of one transaction, one of another, and one that is no event: a queue of dead letters has confirmed that.
    db.pg.execute(&format!("BEGIN; {} {} COMMIT", insert("a", 1), insert("b", 2))).await;
    db.pg.execute(&insert("a", 3)).await;
    db.pg.execute("INSERT INTO outbox_event (event_type, payload) VALUES ('OrderPlaced', '{}')").await;
    sent(&daemon, 4.0).await;
    assert_eq!(measured(&daemon).await, 4.0);
    let took = daemon.metric("walhouse_queue_latency_seconds_sum", "").await;
    assert!(took > 0.0 && took < 4.0 * 60.0, "{took}");

    passed(&db).await;
    let exit = walhouse(daemon.config(), &["replay", "--from-lsn", &from, "--events"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    sent(&daemon, 8.0).await;
    assert_eq!(measured(&daemon).await, 4.0);
    db.pg.execute(&insert("a", 4)).await;
    sent(&daemon, 9.0).await;
    assert_eq!(measured(&daemon).await, 5.0);
    drop(daemon);
    db.cleanup().await;
}
