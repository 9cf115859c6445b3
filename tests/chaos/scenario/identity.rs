//! The slot is not the one that walhouse left, or the server is not: it halts, says why, and writes nothing more, however often it is
//! started. Then the documented way out brings everything home.

use std::time::Duration;

use rand::RngExt;

use crate::script::{SCHEMA, TABLES};
use crate::stage::Stage;
use crate::support::{Pg, eventually};

const WAIT: Duration = Duration::from_secs(180);
const STOP: Duration = Duration::from_secs(30);
/// The exit code of a halt that needs a person.
const HALT: i32 = 3;

pub(super) async fn another_slot_or_cluster(stage: &mut Stage) {
    stage.pass(0..500).await;
    let slot = stage.db.name.clone();
    let (kind, alive) = (stage.rng.random_range(0..4), stage.rng.random_bool(0.5));
    if !alive {
        let status = stage.daemon().sigterm(STOP).await;
        assert_eq!(status.code(), Some(0));
        stage.work(5..30).await;
    }
    if kind != 3 {
        // What is stored, and the slot, are about to be thrown away.
        stage.look_away().await;
    }
    let says = match kind {
        0 => {
            let says = format!("the replication slot {slot} is gone");
            free(stage, &format!("SELECT pg_drop_replication_slot('{slot}')")).await;
            stage.inject("the slot is dropped");
            says
        }
        1 => {
            let anew = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            free(stage, &format!("SELECT pg_drop_replication_slot('{slot}')")).await;
            // A daemon that is there may see it gone before.
            stage.db.pg.query(&anew).await;
            stage.inject("the slot is dropped and made anew");
            "slot".to_owned()
        }
        2 => {
            // Beyond what may just have been acknowledged.
            stage.db.pg.query("SELECT pg_logical_emit_message(true, 'nobody', 'reads this')").await;
            free(stage, &format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")).await;
            stage.inject("the slot is advanced by hand");
            "somebody else has advanced it".to_owned()
        }
        _ => {
            another_cluster(stage).await;
            stage.inject("another cluster is at the same address");
            "this is another PostgreSQL cluster".to_owned()
        }
    };
    halts(stage, alive, &says).await;
    mend(stage, kind).await;
}

/// Runs this on the slot, which nobody may use at that moment.
async fn free(stage: &Stage, sql: &str) {
    let end = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}' AND active",
        stage.db.name
    );
    eventually(WAIT, async || {
        stage.db.pg.try_query(&end).await?;
        stage.db.pg.try_query(sql).await
    })
    .await;
}

/// With tables of the same names, and other rows.
async fn another_cluster(stage: &mut Stage) {
    let other = stage.servers.other();
    Pg::new(other.clone(), "postgres").execute(&format!("CREATE DATABASE {}", stage.db.name)).await;
    let pg = Pg::new(other.clone(), &stage.db.name);
    pg.execute(SCHEMA).await;
    pg.execute("INSERT INTO account SELECT i, NULL, -1 FROM generate_series(0, 39) i").await;
    stage.postgres.lead_to(other.port());
}

/// It ends with the reason, twice, and what it has stored stays as it is.
async fn halts(stage: &mut Stage, alive: bool, says: &str) {
    if !alive {
        stage.daemon().start();
    }
    let (code, log) = stage.daemon().wait_exit(WAIT).await;
    assert_eq!(code, HALT, "{log}");
    let last = log.lines().rfind(|line| line.starts_with("walhouse: ")).expect("the reason is said");
    for text in [says, "nothing more is written", "To copy everything anew"] {
        assert!(last.contains(text), "no {text:?} in: {last}");
    }
    stage.note(last);
    let before = everything(stage).await;
    stage.work(5..30).await;
    stage.daemon().start();
    let (code, log) = stage.daemon().wait_exit(WAIT).await;
    assert_eq!(code, HALT, "{log}");
    assert_eq!(everything(stage).await, before, "something was written");
}

/// A hash over each table, as a reader sees it.
async fn everything(stage: &Stage) -> String {
    let mut all = String::new();
    for table in TABLES.iter().chain(&["tick", "tock", "_checkpoint", "_tables"]) {
        let sql = format!("SELECT '{table}', count(), sum(cityHash64(*)) FROM {table} FINAL");
        all += &(stage.db.ch.query(&sql).await + "\n");
    }
    all
}

/// The way out that the halt names.
async fn mend(stage: &mut Stage, kind: u32) {
    let streams = stage.daemon().streams();
    if kind == 3 {
        stage.postgres.lead_to(stage.db.postgres.port());
    } else {
        stage.rest().await;
        stage.db.ch.drop_database().await.expect("the database can be dropped");
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name =";
        stage.db.pg.query(&format!("{drop} '{}'", stage.db.name)).await;
        stage.write();
    }
    stage.daemon().start();
    stage.daemon().wait_streams(streams).await;
}
