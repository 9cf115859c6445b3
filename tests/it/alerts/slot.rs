//! The slot: dropped, lost, and read by nobody.

use std::time::Duration;

use super::page::OnCall;
use super::{assert_finds, equal, watched};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, PostgresOptions, Running, Step, TestDb, command, eventually,
    steps, take,
};

async fn slot_is(daemon: &Daemon, state: &str) {
    eventually(Duration::from_secs(30), async || match daemon.metric("walhouse_slot_state", state).await {
        1.0 => Ok(()),
        _ => Err(daemon.metrics().await),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_is_told_and_everything_is_copied_anew() {
    let db = TestDb::new("alert_slot").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 100)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseDown").await;
    let on_call = OnCall::opens(&daemon).await;
    on_call.rests().await;
    slot_is(&daemon, "\"active\"").await;

    let slot = format!("FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    eventually(Duration::from_secs(30), async || {
        db.pg.try_query(&format!("SELECT pg_terminate_backend(active_pid) {slot} AND active")).await?;
        let dropped = db.pg.try_query(&format!("SELECT pg_drop_replication_slot(slot_name) {slot}")).await?;
        if dropped.len() == 1 { Ok(()) } else { Err("there is no slot yet".to_owned()) }
    })
    .await;
    let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
    assert!(code == 3 && log.contains("is gone"), "{code}: {log}");
    let alert = prometheus.fires("WalhouseDown").await;
    assert_eq!(alert["labels"]["severity"], "critical");
    // It has ended: what is to be done, the page has to know by itself.
    let told = ["walhouse does not answer since", "exit code 3", "walhouse status", "docs/runbooks.md, WalhouseDown"];
    on_call.shows_in("#alarm", &told).await;
    on_call.shows_in("#state", &["does not answer"]).await;
    on_call.is_marked_as_old().await;
    on_call.kept_as("slot-dropped").await;

    let taken = steps("WalhouseDown", &db);
    let [status, check, Step::Shell(run)] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert_finds(&found, &["walhouse     down", "does not exist", "✗ slot: ", "docs/runbooks.md, WalhouseSlotLost"]);
    assert_finds(&take(check, &db, &daemon).await, &["✓ PostgreSQL", "✓ ClickHouse", &db.name]);
    let taken = steps("WalhouseSlotLost", &db);
    // Nothing was too small here, so there is nothing to raise.
    let [status, slots, _, _, dry_run, do_it, _, verify] = &taken[..] else { panic!("{taken:?}") };
    assert_finds(&take(status, &db, &daemon).await, &["is gone, and with it the changes since the checkpoint"]);
    assert!(!take(slots, &db, &daemon).await.contains(&db.name), "it is gone");
    let would = take(dry_run, &db, &daemon).await;
    assert_finds(&would, &["The slot would be created", "public.item: copied anew", "Nothing was changed"]);
    assert_finds(&take(do_it, &db, &daemon).await, &["Epoch 1 has begun", "The slot was created"]);
    assert_eq!(db.ch.query("SELECT count() FROM item FINAL").await.trim(), "100", "readable all the while");
    let running = Running::start(command(run, &daemon));
    prometheus.rests("WalhouseDown").await;
    equal(&daemon).await;
    assert_finds(&take(verify, &db, &daemon).await, &["The table is equal.\n"]);
    on_call.rests().await;
    drop((on_call, running, prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_lost_is_told_while_walhouse_waits_and_everything_is_copied_anew() {
    let settings = vec![("max_slot_wal_keep_size", "32MB".to_owned()), ("min_wal_size", "32MB".to_owned())];
    let postgres = Postgres::private(PostgresOptions { version: "18", settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::private(ClickHouseOptions::default()), "alert_lost").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseSlotLost").await;
    eventually(Duration::from_secs(30), async || {
        let safe = daemon.metric("walhouse_slot_safe_wal_bytes", "").await;
        if (1.0..=64e6).contains(&safe) { Ok(()) } else { Err(format!("{safe} bytes are left")) }
    })
    .await;

    // Nobody reads the slot while the WAL grows; then walhouse comes back, and can not begin.
    db.clickhouse.kill9();
    daemon.kill9();
    db.pg.execute("INSERT INTO item SELECT generate_series(1, 100)").await;
    for _ in 0..6 {
        db.pg.execute("SELECT pg_logical_emit_message(false, 'x', 'x'); SELECT pg_switch_wal()").await;
    }
    db.pg.execute("CHECKPOINT").await;
    daemon.start();
    let alert = prometheus.fires("WalhouseSlotLost").await;
    assert_eq!(alert["labels"]["state"], "lost");
    assert_eq!(daemon.metric("walhouse_slot_invalidated", "reason=\"wal_removed\"").await, 1.0);
    assert_eq!(daemon.metric("walhouse_slot_safe_wal_bytes", "").await, 0.0);
    let on_call = OnCall::opens(&daemon).await;
    let words = ["it is lost: wal_removed", "walhouse provision --new-epoch --dry-run"];
    on_call.finds("slot", &words, "WalhouseSlotLost").await;
    on_call.finds("ClickHouse", &["it can not be reached"], "WalhouseDependencyAway").await;
    assert!(!on_call.text().await.contains("nothing is lost"), "that would not be true now");
    on_call.kept_as("slot-lost").await;

    let taken = steps("WalhouseSlotLost", &db);
    let [status, slots, raise, reload, dry_run, do_it, Step::Shell(run), verify] = &taken[..] else {
        panic!("{taken:?}")
    };
    assert_finds(&take(status, &db, &daemon).await, &["✗ slot: it is lost: wal_removed", "WalhouseSlotLost"]);
    assert_finds(&take(slots, &db, &daemon).await, &[&format!("{}\tlogical\t", db.name), "\tlost"]);
    db.clickhouse.start();
    let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
    assert!(code == 3 && log.contains("the server has removed WAL that the slot"), "{code}: {log}");
    take(raise, &db, &daemon).await;
    take(reload, &db, &daemon).await;
    eventually(Duration::from_secs(30), async || {
        let limit = db.pg.try_query("SHOW max_slot_wal_keep_size").await?;
        if format!("{limit:?}").contains("100GB") { Ok(()) } else { Err(format!("{limit:?}")) }
    })
    .await;
    assert_finds(&take(dry_run, &db, &daemon).await, &["The slot has lost WAL, and would be made anew"]);
    assert_finds(&take(do_it, &db, &daemon).await, &["had lost WAL, and was made anew", "public.item: copied anew"]);
    let running = Running::start(command(run, &daemon));
    prometheus.rests("WalhouseSlotLost").await;
    equal(&daemon).await;
    assert_finds(&take(verify, &db, &daemon).await, &["The table is equal.\n"]);
    on_call.rests().await;
    drop((on_call, running, prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_nobody_reads_is_told_until_what_walhouse_waits_for_is_there() {
    let db = TestDb::on(Postgres::shared(), ClickHouse::private(ClickHouseOptions::default()), "alert_idle").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseSlotInactive").await;
    db.clickhouse.kill9();
    daemon.kill9();
    daemon.start();
    prometheus.fires("WalhouseSlotInactive").await;

    let taken = steps("WalhouseSlotInactive", &db);
    let [status, check, resume] = &taken[..] else { panic!("{taken:?}") };
    assert_finds(&take(status, &db, &daemon).await, &["not active", "ClickHouse   can not be reached"]);
    assert_finds(&take(check, &db, &daemon).await, &["✓ PostgreSQL", "✗ ClickHouse"]);
    db.clickhouse.start();
    prometheus.rests("WalhouseSlotInactive").await;
    slot_is(&daemon, "\"active\"").await;

    // The other way that it comes about.
    take(&Step::Shell("walhouse pause --reason 'a move' --config /etc/walhouse.toml".to_owned()), &db, &daemon).await;
    slot_is(&daemon, "\"inactive\"").await;
    assert_finds(&take(status, &db, &daemon).await, &["a move", "→ walhouse resume"]);
    take(resume, &db, &daemon).await;
    slot_is(&daemon, "\"active\"").await;
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
