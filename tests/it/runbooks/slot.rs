//! The slot: what PostgreSQL keeps for it, and how much more it may.

use std::sync::Arc;
use std::time::Duration;

use super::{equal, watched};
use crate::support::{
    ClickHouse, Daemon, Postgres, PostgresOptions, Prometheus, TestDb, eventually, steps, take, walhouse,
};

async fn on_postgres_of_its_own(label: &str, settings: Vec<(&'static str, String)>) -> (TestDb, Daemon) {
    let postgres: Arc<Postgres> = Postgres::private(PostgresOptions { settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), label).await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    (db, daemon)
}

/// So many files of WAL, of 16 MiB each, nearly all of them empty.
async fn write_wal(db: &TestDb, files: usize) {
    for _ in 0..files {
        db.pg.execute("SELECT pg_logical_emit_message(false, 'x', 'x'); SELECT pg_switch_wal()").await;
    }
}

async fn pause(daemon: &Daemon) {
    let exit = walhouse(daemon.config(), &["pause"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
}

/// Waits until the WAL is given back, which PostgreSQL does with its checkpoints.
async fn given_back(db: &TestDb, prometheus: &Prometheus, alert: &str) {
    eventually(Duration::from_secs(90), async || {
        db.pg.try_execute("CHECKPOINT").await?;
        let alerts = prometheus.firing(alert).await?;
        if alerts.is_empty() { Ok(()) } else { Err(format!("it fires: {alerts:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_kept_for_a_pause_or_a_forgotten_transaction_is_given_back() {
    let (db, daemon) = on_postgres_of_its_own("book_retained", Vec::new()).await;
    let alert = "WalhouseWalRetained";
    let prometheus = watched(&db, &daemon, alert, &[("10 * 1024 ^ 3", "40 * 1024 ^ 2")]).await;
    let taken = steps("WalhouseWalRetained", &db);
    let [status, slot, transactions, resume, terminate] = &taken[..] else { panic!("{taken:?}") };

    pause(&daemon).await;
    write_wal(&db, 4).await;
    prometheus.fires(alert).await;
    assert!(daemon.metric("walhouse_slot_retained_bytes", "").await > f64::from(40 << 20));
    let found = take(status, &db, &daemon).await;
    assert!(found.contains("✗ pipeline: paused since") && found.contains("→ walhouse resume"), "{found}");
    let found = take(slot, &db, &daemon).await;
    let [_, "f", _, kept, unconfirmed] = found.split('\t').collect::<Vec<_>>()[..] else { panic!("{found}") };
    assert!(kept == unconfirmed || kept.ends_with(" MB") && unconfirmed.ends_with(" MB"), "{found}");
    assert_eq!(take(transactions, &db, &daemon).await, "");
    take(resume, &db, &daemon).await;
    given_back(&db, &prometheus, alert).await;

    let forgotten = db.pg.connect().await.unwrap();
    forgotten.batch_execute("SET application_name = 'shop'; BEGIN; INSERT INTO item VALUES (1)").await.unwrap();
    write_wal(&db, 4).await;
    db.pg.execute("INSERT INTO item VALUES (2)").await;
    prometheus.fires(alert).await;
    let found = take(status, &db, &daemon).await;
    assert!(!found.contains("paused"), "{found}");
    // It is confirmed up to the end, and kept all the same.
    eventually(Duration::from_secs(20), async || {
        let found = take(slot, &db, &daemon).await;
        let cells: Vec<&str> = found.split('\t').collect();
        let as_the_page_says = cells[3].ends_with(" MB") && !cells[4].ends_with(" MB");
        if as_the_page_says { Ok(()) } else { Err(found) }
    })
    .await;
    let found = take(transactions, &db, &daemon).await;
    let [pid, "postgres", "shop", "idle in transaction", _] = found.split('\t').collect::<Vec<_>>()[..] else {
        panic!("{found}")
    };
    take(&terminate.with("4711", pid), &db, &daemon).await;
    given_back(&db, &prometheus, alert).await;
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_about_to_be_lost_gains_time_without_a_restart() {
    let settings = vec![("max_slot_wal_keep_size", "96MB".to_owned())];
    let (db, daemon) = on_postgres_of_its_own("book_safe", settings).await;
    let prometheus = watched(&db, &daemon, "WalhouseSafeWalLow", &[]).await;
    pause(&daemon).await;
    let left = format!("SELECT safe_wal_size < 24 << 20 FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    while db.pg.value(&left).await == "f" {
        write_wal(&db, 1).await;
    }
    let alert = prometheus.fires("WalhouseSafeWalLow").await;
    assert_eq!(alert["labels"]["severity"], "critical");

    let taken = steps("WalhouseSafeWalLow", &db);
    let [status, raise, reload] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert!(found.contains("✗ slot: ") && found.contains("raise max_slot_wal_keep_size"), "{found}");
    let before = daemon.metric("walhouse_slot_safe_wal_bytes", "").await;
    take(raise, &db, &daemon).await;
    take(reload, &db, &daemon).await;
    prometheus.rests("WalhouseSafeWalLow").await;
    let after = daemon.metric("walhouse_slot_safe_wal_bytes", "").await;
    assert!(after > before + 90e9, "{before} {after}");
    let found = take(status, &db, &daemon).await;
    assert!(!found.contains("✗ slot: "), "{found}");
    assert_eq!(walhouse(daemon.config(), &["resume"]).await.code, Some(0));
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
