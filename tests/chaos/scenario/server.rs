//! PostgreSQL or ClickHouse dies, or is busy with something that gets in the way.

use std::fs;
use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use super::process::fill;
use crate::stage::Stage;
use crate::support::{eventually, hold_copy};

const WAIT: Duration = Duration::from_secs(180);

/// Rows move to other places, and the stream does not tell: at first those of chunks that were not read into one that was.
pub(super) async fn rewritten_in_the_copy(stage: &mut Stage) {
    let chunks = stage.rng.random_range(1..4);
    let holder = hold_copy(&stage.db, "ballast", chunks).await;
    let denser = "ALTER TABLE ballast SET (fillfactor = 100); CLUSTER ballast USING ballast_pkey; COMMIT";
    holder.batch_execute(denser).await.expect("a table can be rewritten");
    stage.inject(format!("CLUSTER of ten times as dense a table, {chunks} of whose chunks were copied"));
    for round in 0..stage.rounds(3) {
        let table = ["ballast", "item", "bulk"][stage.rng.random_range(0..3)];
        let rewrite = ["VACUUM FULL".to_owned() + " " + table, format!("CLUSTER {table} USING {table}_pkey")];
        let rewrite = &rewrite[stage.rng.random_range(0..2)];
        let dense = format!("ALTER TABLE {table} SET (fillfactor = {})", stage.rng.random_range(10..=100));
        stage.inject(rewrite);
        // The load's sessions hold locks now and then, and what waits for them too long is given up.
        for sql in [&dense, rewrite] {
            let done = stage.db.pg.try_execute(sql).await;
            stage.note(format!("{done:?}"));
        }
        let from = stage.rng.random_range(1..29_000);
        let change = format!(
            "UPDATE ballast SET id = id + 100000 * {} WHERE id BETWEEN {from} AND {from} + 50;
            UPDATE ballast SET v = 'changed' WHERE id % 997 = {round}; DELETE FROM ballast WHERE id % 1009 = {round}",
            round + 1
        );
        stage.db.pg.execute(&change).await;
        stage.pass(0..600).await;
    }
}

/// The slot's position falls back to what was on disk.
pub(super) async fn postmaster_killed(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        let streams = stage.daemon().streams();
        stage.pass(200..1000).await;
        stage.inject("SIGKILL of the postmaster");
        stage.db.postgres.kill9();
        stage.db.postgres.start();
        stage.daemon().wait_streams(streams).await;
        stage.load().wait_commits(30).await;
    }
}

/// A transaction that is larger than any batch, while what reads it dies.
pub(super) async fn restarted_inside_a_giant_transaction(stage: &mut Stage) {
    for round in 0..stage.rounds(2) {
        let from = 1_000_000 * (round + 1);
        let giant = stage.db.pg.connect().await.expect("a session");
        let part = |at: u32| {
            let from = from + at * 10_000;
            format!("INSERT INTO bulk SELECT i, NULL, md5(i::text) FROM generate_series({from}, {from} + 9999) i")
        };
        giant.batch_execute(&format!("BEGIN; {}", part(0))).await.expect("a transaction");
        stage.pass(0..300).await;
        match stage.rng.random_range(0..3) {
            // The transaction dies with it.
            0 => {
                stage.inject("SIGKILL of the postmaster inside a giant transaction");
                stage.db.postgres.kill9();
                stage.db.postgres.start();
                continue;
            }
            1 => {
                stage.inject("RST inside a giant transaction");
                stage.postgres.reset();
            }
            _ => {
                stage.inject("SIGKILL of walhouse inside a giant transaction");
                stage.daemon().kill9();
                stage.daemon().start();
            }
        }
        giant.batch_execute(&format!("{}; COMMIT", part(1))).await.expect("it is committed");
        // And while it is being read.
        stage.pass(0..400).await;
        stage.inject("SIGKILL of walhouse after a giant transaction");
        stage.daemon().kill9();
        stage.daemon().start();
    }
}

/// No fault, but work: a transaction larger than any batch, and its end.
pub(super) async fn giant_transaction(stage: &mut Stage) {
    let rows = "SELECT i, NULL, repeat(md5(i::text), 10) FROM generate_series(1000001, 1100000) i";
    stage.inject("a transaction of 100,000 rows");
    stage.db.pg.execute(&format!("INSERT INTO bulk {rows}")).await;
    stage.db.pg.execute("DELETE FROM bulk WHERE id > 1000000").await;
}

pub(super) async fn walsender_terminated(stage: &mut Stage) {
    let sql = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}' AND active",
        stage.db.name
    );
    for _ in 0..stage.rounds(4) {
        stage.pass(0..300).await;
        let db = &stage.db;
        eventually(WAIT, async || match db.pg.try_query(&sql).await?.is_empty() {
            true => Err("nobody reads the slot".to_owned()),
            false => Ok(()),
        })
        .await;
        stage.inject("the walsender is terminated");
    }
}

/// In the middle of its inserts; it is away for a while.
pub(super) async fn clickhouse_killed(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        stage.pass(200..1000).await;
        stage.inject("SIGKILL of ClickHouse");
        stage.db.clickhouse.kill9();
        stage.work(10..60).await;
        stage.db.clickhouse.start();
        stage.load().wait_commits(30).await;
    }
}

/// ClickHouse refuses inserts until it has merged what it has.
pub(super) async fn too_many_parts(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        stage.work(10..40).await;
        let before = stage.daemon().log().matches("TOO_MANY_PARTS").count();
        let ch = &stage.db.ch;
        ch.query("ALTER TABLE item MODIFY SETTING parts_to_throw_insert = 2, parts_to_delay_insert = 1").await;
        ch.query("SYSTEM STOP MERGES item").await;
        stage.inject("no merges, and few parts are too many");
        stage.daemon().wait_log("TOO_MANY_PARTS", before + 1).await;
        sleep(Duration::from_secs(1)).await;
        let ch = &stage.db.ch;
        ch.query("SYSTEM START MERGES item").await;
        ch.query("ALTER TABLE item RESET SETTING parts_to_throw_insert, parts_to_delay_insert").await;
    }
}

/// Nothing can be written until there is room again.
pub(super) async fn disk_full(stage: &mut Stage) {
    for round in 0..stage.rounds(2) {
        stage.work(10..40).await;
        let ballast = stage.db.clickhouse.directory().join("ballast");
        let full = fill(&ballast).expect_err("a disk has an end");
        stage.inject(format!("ClickHouse's disk is full: {full}"));
        stage.daemon().wait_log("NOT_ENOUGH_SPACE", round as usize + 1).await;
        stage.pass(0..1000).await;
        fs::remove_file(&ballast).expect("a file can be removed");
        stage.load().wait_commits(20).await;
    }
}

/// Large inserts find no memory until whoever took it gives it back.
pub(super) async fn memory_full(stage: &mut Stage) {
    for round in 0..stage.rounds(2) {
        stage.work(10..40).await;
        let ch = &stage.db.ch;
        ch.query("CREATE TABLE hog (s String) ENGINE = Memory").await;
        let full = loop {
            // One that waits for others to end would wait for nothing.
            let take = "INSERT INTO hog SETTINGS memory_usage_overcommit_max_wait_microseconds = 0
                SELECT repeat('x', 1000000) FROM numbers(8)";
            if let Err(error) = ch.try_query(take).await {
                break error;
            }
        };
        assert!(full.contains("MEMORY_LIMIT_EXCEEDED"), "{full}");
        stage.inject("no memory is left");
        let from = 10_000 * (round + 1);
        let large = format!(
            "INSERT INTO bulk SELECT i, NULL, repeat(md5(i::text), 30) FROM generate_series({from}, {from} + 8999) i"
        );
        stage.db.pg.execute(&large).await;
        stage.daemon().wait_log("MEMORY_LIMIT_EXCEEDED", round as usize + 1).await;
        stage.pass(0..1000).await;
        // There may be none for this either.
        eventually(WAIT, async || stage.db.ch.try_query("DROP TABLE IF EXISTS hog SYNC").await).await;
        stage.load().wait_commits(20).await;
    }
}

/// Of the parts of an insert those before this partition's go in, and the others do not, again and again for a while.
pub(super) async fn one_partition_fails(stage: &mut Stage) {
    for round in 0..stage.rounds(2) {
        stage.work(10..40).await;
        let partition = stage.rng.random_range(0..5);
        // An index is computed for each part by itself, and this one fails as a connection that broke would.
        let trap = format!("ADD INDEX trap toInt32(if(head % 5 = {partition}, '', '1')) TYPE minmax");
        stage.db.ch.query(&format!("ALTER TABLE line {trap}")).await;
        stage.inject(format!("nothing goes into partition {partition} of a table"));
        stage.daemon().wait_log("ATTEMPT_TO_READ_AFTER_EOF", round as usize + 1).await;
        stage.pass(0..1000).await;
        stage.db.ch.query("ALTER TABLE line DROP INDEX trap").await;
        stage.load().wait_commits(20).await;
    }
}
