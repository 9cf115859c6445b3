//! A store that is away, while events are sent and while they are handled.

use std::fs;
use std::time::Duration;

use super::{audited, files, goes_on, large, objects, started};
use crate::queue::{insert, prefix, with_outbox};
use crate::support::{Sqs, eventually, settled, steps, take};

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_a_large_event_waits_and_all_others_go_on() {
    let (db, sqs) = (with_outbox("claim_away").await, Sqs::shared());
    // A file where the directory should be.
    fs::write(objects(&db), "").expect("it can be written");
    let daemon = started(&db, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    daemon.wait_log("the object store can not be used: an event that is too large for a queue", 1).await;
    daemon.wait_log("objects.url", 1).await;
    let taken = steps("WalhousePayloadsFail", &db);
    let [check] = &taken[..] else { panic!("{taken:?}") };
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("objects can not be written"), "{found}");
    let before = db.pg.value("SELECT pg_current_wal_lsn()").await;
    db.pg.execute(&format!("{} {}", large("one", 1, 3_000_000), insert("one", 2))).await;
    db.pg
        .execute(&format!("{} INSERT INTO item SELECT i, 'b' FROM generate_series(1, 1000) i", insert("other", 3)))
        .await;
    daemon.wait_log("can not be put into the object store; it waits, and so does the slot", 1).await;
    eventually(Duration::from_secs(60), async || {
        let there = "SELECT (SELECT count() FROM item), (SELECT arrayStringConcat(groupArray(acting_user_id)) FROM audit_log FINAL)";
        match db.ch.try_query(there).await?.as_str() {
            "1000\tother" => Ok(()),
            there => Err(there.to_owned()),
        }
    })
    .await;
    let held = format!(
        "SELECT confirmed_flush_lsn <= '{before}'::pg_lsn + 1000 FROM pg_replication_slots WHERE slot_name = '{}'",
        db.name
    );
    assert_eq!(db.pg.value(&held).await, "t");
    assert!(daemon.metric("walhouse_payload_errors_total", "request=\"write\"").await > 0.0);
    fs::remove_file(objects(&db)).expect("it can be removed");
    let found = take(check, &db, &daemon).await;
    assert!(!found.contains("objects can not be written"), "{found}");
    audited(&db).await;
    settled(&db).await;
    assert_eq!(daemon.metric("walhouse_payloads_stored_total", "").await, 1.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_large_events_wait_in_hand_and_none_of_their_tries_is_used_up() {
    let (db, sqs) = (with_outbox("claim_read_away").await, Sqs::shared());
    let retries = "[workers.audit]\nretry_delay = \"100ms\"\n";
    let daemon = started(&db, &Sqs::config(sqs.port(), &prefix(&db))).await;
    db.pg.execute(&format!("{} {}", large("one", 1, 3_000_000), large("two", 2, 1_200_000))).await;
    settled(&db).await;
    assert_eq!(files(&objects(&db)).len(), 2);
    let aside = db.directory.join("aside");
    fs::rename(objects(&db), &aside).expect("it can be moved");
    fs::write(objects(&db), "").expect("it can be written");
    let daemon = goes_on(&db, daemon, &(Sqs::handled(sqs.port(), &prefix(&db)) + retries)).await;
    daemon.wait_log("events whose payload is in the object store wait; none of their tries is used up", 1).await;
    // Others are handled meanwhile, more than it takes for an event to fail by itself.
    for number in 0..20 {
        db.pg.execute(&insert("small", 10 + number)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eventually(Duration::from_secs(60), async || {
        match db.ch.query("SELECT count() FROM audit_log FINAL").await.as_str() {
            "20" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    fs::remove_file(objects(&db)).expect("it can be removed");
    fs::rename(&aside, objects(&db)).expect("it can be moved");
    audited(&db).await;
    assert_eq!(sqs.count(&format!("{}audit-log-dlq", prefix(&db))).await, 0);
    assert_eq!(daemon.metric("walhouse_events_handled_total", "outcome=\"again\"").await, 0.0);
    drop(daemon);
    db.cleanup().await;
}
