//! A planned change to a standby that has kept the slot, as docs/postgresql.md says it: PostgreSQL 17 and later.

use std::fs;
use std::time::Duration;

use crate::recovery::blocks;
use crate::support::{
    ClickHouse, Daemon, Pg, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal, eventually, walhouse,
};

const STOP: Duration = Duration::from_secs(20);
const PAGE: &str = include_str!("../../docs/postgresql.md");

/// The page's statements in SQL that have this in them; there is one.
fn statement(part: &str, slot: &str) -> String {
    let mut found = blocks(PAGE, "sql").into_iter().filter(|block| block.contains(part));
    let statement = found.next().unwrap_or_else(|| panic!("the page has no {part}"));
    assert!(found.next().is_none(), "{part} is there twice");
    statement.replace("'walhouse'", &format!("'{slot}'"))
}

/// The page's settings, as `name = 'value'`, of the block that has this in it.
fn settings(part: &str, conninfo: &str) -> Vec<(&'static str, String)> {
    let block = blocks(PAGE, "ini").into_iter().find(|block| block.contains(part)).expect("the page has it");
    let lines = block.lines().map(|line| line.split_once(" = ").expect("a setting"));
    let value = |name: &str, value: &str| match name {
        "primary_conninfo" => conninfo.to_owned(),
        _ => value.trim_matches('\'').to_owned(),
    };
    lines.map(|(name, given)| (name, value(name, given))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_planned_switchover_to_a_standby_that_kept_the_slot_walhouse_goes_on() {
    let options = PostgresOptions { version: "17", ..Default::default() };
    let mut db = TestDb::on(Postgres::private(options), ClickHouse::shared(), "switchover").await;
    let (primary, slot) = (db.postgres.clone(), db.name.clone());
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (0, 'copied')").await;
    let setting = blocks(PAGE, "toml")[0];
    assert_eq!(setting, "[source]\nfailover = true");
    // One that exists becomes one that is kept on standbys.
    db.pg.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let mut daemon = Daemon::spawn(&db, setting);
    daemon.wait_ready().await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    let failover = format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(db.pg.value(&failover).await, "t");

    db.pg.query("SELECT pg_create_physical_replication_slot('standby_1', true)").await;
    let base = primary.base_backup();
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={}", primary.port(), db.name);
    let standby = settings("sync_replication_slots", &conninfo);
    let standby = Postgres::standby(&base, PostgresOptions { version: "17", settings: standby, ..Default::default() });
    for (name, value) in settings("synchronized_standby_slots", "") {
        db.pg.execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await;
    }
    db.pg.query("SELECT pg_reload_conf()").await;
    daemon.start();
    daemon.wait_ready().await;

    let there = Pg::new(standby.clone(), &db.name);
    let ready = statement("AS ready", &slot);
    let mut id = 0;
    eventually(Duration::from_secs(120), async || {
        // The slot has to move for its copy to reach it.
        id += 1;
        db.pg
            .try_execute(&format!("INSERT INTO item VALUES ({id}, 'streamed'); SELECT pg_log_standby_snapshot()"))
            .await?;
        let row = there.try_query(&ready).await?;
        match row.first().and_then(|row| row[1].as_deref()) {
            Some("t") => Ok(()),
            other => Err(format!("the slot on the standby: {other:?}")),
        }
    })
    .await;
    assert_settled_equal(&db, &["item"]).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    // What nobody has streamed yet.
    db.pg.execute("UPDATE item SET v = 'between' WHERE id = 0; DELETE FROM item WHERE id = 1").await;
    let end = db.pg.value("SELECT pg_current_wal_lsn()").await;
    eventually(Duration::from_secs(60), async || {
        let has = there.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn")).await;
        if has == "t" { Ok(()) } else { Err("the standby is behind".to_owned()) }
    })
    .await;
    primary.kill9();
    there.query("SELECT pg_promote()").await;

    let config = fs::read_to_string(daemon.config()).expect("the configuration");
    let (from, to) = (format!(":{}/", primary.port()), format!(":{}/", standby.port()));
    assert!(config.contains(&from), "{config}");
    fs::write(daemon.config(), config.replace(&from, &to)).expect("the configuration can be written");
    daemon.start();
    daemon.wait_log("the cluster was promoted; nothing was missed", 1).await;
    (db.pg, db.postgres) = (there, standby);
    db.pg.execute("INSERT INTO item VALUES (-1, 'after')").await;
    assert_equal(&db, "item").await;
    assert_eq!(db.ch.query("SELECT v FROM item_current WHERE id = 0").await, "between");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_standbys_can_keep_no_slot_is_told_so() {
    let db = TestDb::new("switchover_old").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "[source]\nfailover = true\n");
    let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
    assert!(code == 3 && log.contains("source.failover needs PostgreSQL 17 or later, and this is 15"), "{code}: {log}");
    let exit = walhouse(daemon.config(), &["check"]).await;
    assert!(exit.code == Some(1) && exit.stdout.contains("remove source.failover"), "{exit:?}");
    assert_eq!(db.pg.value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").await, "0");
    db.cleanup().await;
}
