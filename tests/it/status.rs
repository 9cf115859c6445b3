//! `walhouse status`: what it shows and what it finds, whoever is up.

mod watch;

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::queue::{prefix, with_outbox};
use crate::support::{Daemon, Exit, Sqs, TestDb, assert_equal, eventually, free_port, hold_copy, walhouse};

const STOP: Duration = Duration::from_secs(20);

async fn status(daemon: &Daemon) -> Exit {
    walhouse(daemon.config(), &["status"]).await
}

async fn json(daemon: &Daemon) -> Value {
    let exit = walhouse(daemon.config(), &["status", "--json"]).await;
    serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"))
}

/// Waits until it is healthy.
async fn well(daemon: &Daemon) -> Exit {
    eventually(Duration::from_secs(30), async || {
        let exit = status(daemon).await;
        if exit.code == Some(0) { Ok(exit) } else { Err(format!("{exit:?}")) }
    })
    .await
}

fn assert_says(exit: &Exit, code: i32, parts: &[&str]) {
    assert_eq!(exit.code, Some(code), "{exit:?}");
    for part in parts {
        assert!(exit.stdout.contains(part), "no {part:?} in:\n{}{}", exit.stdout, exit.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_of_a_daemon_that_is_up_and_of_one_that_is_down() {
    let db = TestDb::new("status").await;
    db.pg
        .execute("CREATE TABLE a (id int8 PRIMARY KEY); CREATE TABLE keyless (id int8); INSERT INTO a VALUES (1)")
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    let exit = walhouse(daemon.config(), &["status"]).await;
    assert!(exit.code == Some(0) || exit.code == Some(1), "at any moment: {exit:?}");
    daemon.wait_ready().await;
    assert_equal(&db, "a").await;
    let exit = well(&daemon).await;
    let slot = format!("slot         {}, active (pid ", db.name);
    let parts = ["walhouse     up: process ", &slot, "epoch 0", "tables       1 known, 1 streaming", "All is well."];
    assert_says(&exit, 0, &parts);
    assert!(exit.stdout.contains("Not replicated\n  public.keyless: "), "{}", exit.stdout);
    let report = json(&daemon).await;
    assert_eq!((&report["healthy"], &report["source"]["slot"]["active"]), (&true.into(), &true.into()), "{report}");
    assert_eq!(report["stored"]["tables"][0]["state"], "streaming");
    assert_eq!(report["source"]["left_out"][0]["table"], "public.keyless");

    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    // PostgreSQL ends the sessions of who has gone, in its own time.
    let exit = eventually(Duration::from_secs(30), async || {
        let exit = status(&daemon).await;
        if exit.code == Some(0) { Err(format!("{exit:?}")) } else { Ok(exit) }
    })
    .await;
    assert_says(&exit, 1, &["walhouse     down", "not active", "checkpoint   ", "✗ walhouse run: none is up"]);
    assert_eq!(json(&daemon).await["source"]["held_by"], Value::Null);

    db.pg.query(&format!("SELECT pg_drop_replication_slot('{}')", db.name)).await;
    assert_says(
        &status(&daemon).await,
        1,
        &["does not exist", "is gone, and with it the changes since the checkpoint"],
    );
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_not_be_reached_is_named_and_the_other_is_shown() {
    let db = TestDb::new("status_away").await;
    db.pg.execute("CREATE TABLE a (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let config = fs::read_to_string(daemon.config()).expect("the configuration can be read");
    let away = free_port();
    for (port, gone, there) in [
        (db.clickhouse.port(), "ClickHouse   can not be reached: ", "up: process"),
        (db.postgres.port(), "PostgreSQL   can not be reached: ", "tables       1 known, 1 streaming"),
    ] {
        let other = db.directory.join(format!("away-{port}.toml"));
        fs::write(&other, config.replace(&format!(":{port}"), &format!(":{away}"))).expect("it can be written");
        let exit = walhouse(&other, &["status"]).await;
        assert_says(&exit, 1, &[gone, there, "it can not be reached: "]);
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_of_copies_stopped_tables_and_rows_that_do_not_fit() {
    let db = TestDb::new("status_tables").await;
    db.pg
        .execute(
            "CREATE TABLE item (id int8 PRIMARY KEY, sku int8 NOT NULL, at date); INSERT INTO item VALUES (1, 10);
            CREATE TABLE bulk (id int8 PRIMARY KEY, filler text);
            INSERT INTO bulk SELECT i, repeat('x', 900) FROM generate_series(1, 60000) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    let holder = hold_copy(&db, "bulk", 1).await;
    eventually(Duration::from_secs(30), async || {
        let report = json(&daemon).await;
        let bulk =
            report["stored"]["tables"].as_array().and_then(|all| all.iter().find(|one| one["table"] == "public.bulk"));
        let copying = bulk.map(|bulk| bulk["copying"].clone()).unwrap_or_default();
        // How large a table is can not be asked while somebody has locked it; all else can.
        let counted = copying["rows"].as_u64().is_some_and(|rows| rows > 0) && copying["done"].is_null();
        if counted && report["healthy"] == true { Ok(()) } else { Err(report.to_string()) }
    })
    .await;
    holder.batch_execute("COMMIT").await.expect("the lock is given back");
    daemon.wait_ready().await;
    well(&daemon).await;

    db.pg.execute("INSERT INTO item VALUES (2, 20, 'infinity')").await;
    eventually(Duration::from_secs(30), async || {
        let exit = status(&daemon).await;
        let found = exit.stdout.contains("✗ public.item: 1 row that it can not hold") && exit.code == Some(1);
        if found { Ok(()) } else { Err(format!("{exit:?}")) }
    })
    .await;
    db.pg
        .execute("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (sku); INSERT INTO item VALUES (1, 30)")
        .await;
    eventually(Duration::from_secs(30), async || {
        let exit = status(&daemon).await;
        let parts = ["public.item: stopped: ", "→ walhouse resync public.item"];
        if parts.iter().all(|part| exit.stdout.contains(part)) { Ok(()) } else { Err(format!("{exit:?}")) }
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_counts_what_lies_in_the_queues_and_their_dead_letters() {
    let (db, sqs) = (with_outbox("status_queues").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let exit = well(&daemon).await;
    assert_says(&exit, 0, &["audit-log-queue: 0 messages, 0 dead letters", "workers      audit (off)"]);
    sqs.send(&format!("{}audit-log-queue", prefix(&db)), "{}").await;
    sqs.send(&format!("{}audit-log-dlq", prefix(&db)), "{}").await;
    let exit = status(&daemon).await;
    let remedy = "1 dead letter: an event that was not handled\n  → walhouse dlq list --queue audit-log";
    assert_says(&exit, 1, &["audit-log-queue: 1 messages, 1 dead letters", remedy]);
    drop(daemon);
    db.cleanup().await;
}
