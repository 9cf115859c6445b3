//! `walhouse provision`: it makes what is missing, puts right what differs, and does nothing a second time.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde_json::Value;

use crate::queue::{insert, prefix, with_outbox};
use crate::support::{Daemon, Exit, Sqs, TestDb, free_port, walhouse, write_config};

/// The actions of the report's steps, by name.
fn actions(exit: &Exit) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"));
    let steps = report["steps"].as_array().expect("steps").iter();
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    steps.map(|step| (text(&step["name"]), text(&step["action"]))).collect()
}

fn all(exit: &Exit, action: &str) -> bool {
    actions(exit).iter().all(|(_, own)| own == action)
}

async fn slots(db: &TestDb) -> String {
    db.pg.value(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", db.name)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn provision_makes_all_that_is_missing_and_nothing_the_second_time() {
    let (db, sqs) = (with_outbox("provision").await, Sqs::shared());
    let config = write_config(&db, &Sqs::config(sqs.port(), &prefix(&db)), free_port(), "walhouse.toml");

    let dry = walhouse(&config, &["provision", "--dry-run", "--json"]).await;
    assert!(dry.code == Some(0) && all(&dry, "created"), "{dry:?}");
    let people = walhouse(&config, &["provision", "--dry-run"]).await;
    assert!(people.stdout.contains("+ queue ") && people.stdout.contains("would be created"), "{people:?}");
    assert!(people.stdout.ends_with("to do; nothing was changed.\n"), "{people:?}");
    assert_eq!(sqs.queues(&prefix(&db)).await, Vec::<String>::new());
    assert_eq!((db.pg.value("SELECT count(*) FROM pg_publication").await, slots(&db).await), ("0".into(), "0".into()));
    assert!(db.ch.try_query("SELECT 1").await.is_err(), "there is no database yet");

    let made = walhouse(&config, &["provision", "--json"]).await;
    assert!(made.code == Some(0) && actions(&made) == actions(&dry), "{made:?} {dry:?}");
    assert_eq!(sqs.queues(&prefix(&db)).await.len(), 6);
    let queue = format!("{}async-operations-queue", prefix(&db));
    let policy = sqs.attribute(&queue, Name::RedrivePolicy).await.expect("it has one");
    assert!(policy.contains("async-operations-dlq") && policy.contains("\"maxReceiveCount\":\"3\""), "{policy}");
    assert_eq!(sqs.attribute(&queue, Name::VisibilityTimeout).await.as_deref(), Some("330"));
    let stored = db.ch.query("SELECT position FROM _checkpoint FINAL").await;
    let slot = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    assert_eq!(stored, db.pg.value(&slot).await);

    let again = walhouse(&config, &["provision", "--json"]).await;
    assert!(again.code == Some(0) && all(&again, "present"), "{again:?}");
    assert_eq!(db.ch.query("SELECT count() FROM _checkpoint").await, "1");

    // What is committed from then on is streamed.
    db.pg.execute("INSERT INTO item VALUES (1, 'before the first run')").await;
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    assert!(!daemon.log().contains("slot created"), "{}", daemon.log());
    // And beside a daemon it is as harmless as before.
    let beside = walhouse(daemon.config(), &["provision", "--json"]).await;
    assert!(beside.code == Some(0) && all(&beside, "present"), "{beside:?}");
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    db.pg.execute(&insert("m", 1)).await;
    sqs.take(&format!("{}audit-log-queue", prefix(&db)), 1).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attribute_that_somebody_changed_is_put_right_and_named() {
    let (db, sqs) = (TestDb::new("provision_drift").await, Sqs::shared());
    let config = write_config(&db, &Sqs::config(sqs.port(), &prefix(&db)), free_port(), "walhouse.toml");
    assert_eq!(walhouse(&config, &["provision"]).await.code, Some(0));
    let (queue, dead) = (format!("{}audit-log-queue", prefix(&db)), format!("{}audit-log-dlq", prefix(&db)));
    sqs.set(&queue, Name::VisibilityTimeout, "7").await;
    sqs.set(&dead, Name::MessageRetentionPeriod, "345600").await;
    let policy = sqs.attribute(&queue, Name::RedrivePolicy).await.expect("it has one");
    sqs.set(&queue, Name::RedrivePolicy, &policy.replace("\"4\"", "\"1000\"")).await;

    let expected = "changed: VisibilityTimeout from 7 to 35, RedrivePolicy from";
    let dry = walhouse(&config, &["provision", "--dry-run"]).await;
    assert!(dry.code == Some(0) && dry.stdout.contains(&format!("would be {expected}")), "{dry:?}");
    assert!(dry.stdout.contains("would be changed: MessageRetentionPeriod from 345600 to 1209600"), "{dry:?}");
    assert_eq!(sqs.attribute(&queue, Name::VisibilityTimeout).await.as_deref(), Some("7"));

    let right = walhouse(&config, &["provision"]).await;
    assert!(right.code == Some(0) && right.stdout.contains(expected), "{right:?}");
    assert!(right.stdout.ends_with("2 done.\n"), "{right:?}");
    assert_eq!(sqs.attribute(&queue, Name::VisibilityTimeout).await.as_deref(), Some("35"));
    assert_eq!(sqs.attribute(&dead, Name::MessageRetentionPeriod).await.as_deref(), Some("1209600"));
    assert_eq!(sqs.attribute(&queue, Name::RedrivePolicy).await, Some(policy));
    let again = walhouse(&config, &["provision", "--json"]).await;
    assert!(all(&again, "present"), "{again:?}");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_queues_the_rest_is_made_and_what_is_away_does_not_hide_it() {
    let db = TestDb::new("provision_rest").await;
    let away = free_port();
    let config = write_config(&db, &Sqs::config(away, "x-"), free_port(), "away.toml");
    let exit = walhouse(&config, &["provision"]).await;
    assert!(exit.code == Some(1) && exit.stdout.contains("✗ queue "), "{exit:?}");
    assert!(
        exit.stdout.contains("can not be reached") && exit.stdout.contains("+ ClickHouse  _checkpoint"),
        "{exit:?}"
    );
    assert_eq!(slots(&db).await, "1");

    let config = write_config(&db, "", free_port(), "none.toml");
    let exit = walhouse(&config, &["provision"]).await;
    assert!(exit.code == Some(0) && exit.stdout.contains("there is no [queue] in the configuration"), "{exit:?}");
    assert!(exit.stdout.ends_with("All is there.\n"), "{exit:?}");

    // What was missed since is told as the daemon tells it.
    db.pg.execute(&format!("SELECT pg_drop_replication_slot('{}')", db.name)).await;
    let exit = walhouse(&config, &["provision"]).await;
    assert!(exit.code == Some(1) && exit.stdout.contains("is gone, though everything up to"), "{exit:?}");
    assert_eq!(slots(&db).await, "0");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifo_queues_are_provisioned_as_such() {
    let (db, sqs) = (TestDb::new("provision_fifo").await, Sqs::shared());
    let extra = Sqs::config(sqs.port(), &prefix(&db)).replacen("[queue]\n", "[queue]\nfifo = true\n", 1);
    let config = write_config(&db, &extra, free_port(), "walhouse.toml");
    let made = walhouse(&config, &["provision"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let queues = sqs.queues(&prefix(&db)).await;
    assert!(queues.len() == 6 && queues.iter().all(|queue| queue.ends_with(".fifo")), "{queues:?}");
    let again = tokio::time::timeout(Duration::from_secs(30), walhouse(&config, &["provision", "--json"])).await;
    assert!(all(&again.expect("in time"), "present"));
    db.cleanup().await;
}
