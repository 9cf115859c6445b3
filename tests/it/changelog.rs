//! Tables without a usable key under REPLICA IDENTITY FULL: a log of changes, and a view that folds it.

use crate::support::{
    ClickHouse, Daemon, Past, Postgres, PostgresOptions, TestDb, assert_equal, assert_equal_within,
    assert_settled_equal, eventually, seeded_rng, settled, stopped, walhouse,
};
use rand::RngExt;
use std::time::Duration;

mod shape;

/// The log in its order: what each entry is, and one column.
async fn log(db: &TestDb, table: &str, column: &str) -> String {
    let sql = format!(
        "SELECT arrayStringConcat(groupArray(concat(_op, ' ', ifNull(toString({column}), 'NULL'))), ', ')
         FROM (SELECT * FROM {table} FINAL ORDER BY _version, _ordinal)"
    );
    db.ch.query(&sql).await
}

async fn keyless(db: &TestDb, table: &str, columns: &str) {
    db.pg.execute(&format!("CREATE TABLE {table} ({columns}); ALTER TABLE {table} REPLICA IDENTITY FULL")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_alike_are_kept_apart_and_counted() {
    let db = TestDb::new("log_alike").await;
    keyless(&db, "t", "id int, v text, f float8, n int4[], big text").await;
    db.pg
        .execute(
            "ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
            INSERT INTO t VALUES (1, 'a', 'NaN', '{1,NULL}', NULL), (1, 'a', 'NaN', '{1,NULL}', NULL), (2, NULL, '-0', NULL, repeat('x', 5000)),
                (NULL, NULL, NULL, '{}', NULL), (NULL, NULL, NULL, '{}', NULL), (NULL, NULL, NULL, NULL, NULL)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    // One of two, with the only means that there is: its place.
    db.pg.execute("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE id = 1)").await;
    assert_settled_equal(&db, &["t"]).await;
    db.pg
        .execute(
            "UPDATE t SET id = 3 WHERE id = 2; UPDATE t SET f = 0 WHERE id = 3; UPDATE t SET v = '' WHERE v IS NULL",
        )
        .await;
    db.pg.execute("INSERT INTO t SELECT * FROM t; INSERT INTO t SELECT * FROM t; DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 5)").await;
    assert_settled_equal(&db, &["t"]).await;
    // Many rows in one record of the WAL, and all alike.
    db.pg.execute("COPY t (id) FROM PROGRAM 'yes 7 | head -n 1000'").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(db.ch.query("SELECT count() FROM t_current WHERE id = 7").await, "1000");
    db.pg.execute("BEGIN; DELETE FROM t WHERE id = 7; INSERT INTO t (id) VALUES (8), (8); UPDATE t SET id = 9 WHERE id = 8; COMMIT").await;
    assert_settled_equal(&db, &["t"]).await;
    let check = walhouse(daemon.config(), &["check"]).await;
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.stdout.contains("has no key: ClickHouse gets a log of its changes"), "{check:?}");
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_counts_rows_and_shows_no_value_unless_asked() {
    let db = TestDb::new("log_verify").await;
    keyless(&db, "t", "id int, v text, big bytea").await;
    db.pg
        .execute("INSERT INTO t SELECT i % 5, 'canary', decode(repeat('ab', 3000), 'hex') FROM generate_series(1, 1000) i; INSERT INTO t VALUES (7, 'alone', NULL)")
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    // One row once more, one that is missing, one that PostgreSQL never had.
    let version = "toUInt128('340282366920938463463374607431768211455')";
    db.ch
        .query(&format!("INSERT INTO t SELECT id, v, big, {version}, 1, 'insert' FROM t_current WHERE id = 3 LIMIT 1;"))
        .await;
    db.ch.query(&format!("INSERT INTO t VALUES (7, 'alone', NULL, {version}, 2, 'delete'), (8, 'canary', NULL, {version}, 3, 'insert')")).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    for part in [
        "3 keys differ",
        "rows: \"200\" in PostgreSQL, \"201\" in ClickHouse",
        ": missing in ClickHouse",
        ": extra in ClickHouse",
    ] {
        assert!(verify.stdout.contains(part), "{part}: {verify:?}");
    }
    assert!(!verify.stdout.contains("canary") && !verify.stdout.contains("alone"), "{verify:?}");
    let shown = walhouse(daemon.config(), &["verify", "--show-values"]).await;
    assert!(shown.stdout.contains("(id=7, v=alone, big=NULL): missing in ClickHouse"), "{shown:?}");
    assert!(shown.stdout.contains("(id=3, v=canary, big="), "{shown:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_an_entry_and_a_truncate_is_one_too() {
    let db = TestDb::new("log_entries").await;
    keyless(&db, "t", "id int").await;
    db.pg.execute("INSERT INTO t VALUES (1), (2)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "t").await;
    db.pg.execute("INSERT INTO t VALUES (3), (4)").await;
    db.pg.execute("UPDATE t SET id = 5 WHERE id = 3").await;
    db.pg.execute("DELETE FROM t WHERE id = 1").await;
    db.pg.execute("BEGIN; INSERT INTO t VALUES (6); TRUNCATE t; INSERT INTO t VALUES (7), (7); COMMIT").await;
    assert_settled_equal(&db, &["t"]).await;
    let entries = "snapshot 0, copy 1, copy 2, insert 3, insert 4, update_before 3, update_after 5, delete 1, insert 6, \
                   truncate 0, insert 7, insert 7";
    assert_eq!(log(&db, "t", "id").await.replace("NULL", "0"), entries);
    daemon.kill9();
    db.pg.execute("INSERT INTO t VALUES (8)").await;
    daemon.start();
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(log(&db, "t", "id").await.replace("NULL", "0"), format!("{entries}, insert 8"));
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_writes_the_same_entries() {
    let db = TestDb::new("log_replay").await;
    keyless(&db, "t", "id int, v text").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    db.pg.execute("COPY t (id) FROM PROGRAM 'yes 7 | head -n 3000'").await;
    db.pg
        .execute("UPDATE t SET v = 'a'; DELETE FROM t WHERE ctid < '(3,0)'; TRUNCATE t; INSERT INTO t VALUES (1), (1)")
        .await;
    db.pg.execute("UPDATE t SET v = 'b'").await;
    assert_settled_equal(&db, &["t"]).await;
    let entries =
        async || db.ch.query("SELECT count(), uniqExact(_version, _ordinal), sum(cityHash64(*)) FROM t FINAL").await;
    let before = entries().await;
    for _ in 0..2 {
        daemon.sigterm(Duration::from_secs(20)).await;
        past.restore(&db, None).await;
        daemon.start();
        assert_settled_equal(&db, &["t"]).await;
        assert_eq!(entries().await, before);
    }
    drop(daemon);
    db.cleanup().await;
}

/// Commits before, during and after the copy, by sessions that were open when it began, of rows that are alike.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_and_the_stream_meet_at_one_moment() {
    let db = TestDb::new("log_moment").await;
    keyless(&db, "t", "id int, v text").await;
    several_chunks(&db, "t", "v").await;
    let open = db.pg.connect().await.unwrap();
    open.batch_execute("BEGIN; INSERT INTO t VALUES (1, 'open before'), (1, 'open before')").await.unwrap();
    let mut daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    // The publication waits for it, and the snapshot after it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    open.batch_execute("UPDATE t SET v = 'moved' WHERE id = 2; COMMIT").await.unwrap();
    let (mut id, mut status) = (0, String::new());
    while !status.contains("streaming") {
        // In blocks that are copied last, and in new ones.
        open.batch_execute(&format!(
            "BEGIN; DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE id = {id} ORDER BY ctid DESC LIMIT 5);
             UPDATE t SET v = 'new' WHERE ctid IN (SELECT ctid FROM t WHERE id = {id} ORDER BY ctid DESC LIMIT 2);
             INSERT INTO t VALUES ({id}, 'new'), ({id}, 'new'); COMMIT"
        ))
        .await
        .unwrap();
        id = (id + 1) % 9;
        status = db.ch.try_query("SELECT status FROM _tables FINAL").await.unwrap_or_default();
    }
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

/// Rows of a block each, so that there are several chunks with little data.
async fn several_chunks(db: &TestDb, table: &str, column: &str) {
    let storage = format!("ALTER TABLE {table} ALTER {column} SET STORAGE PLAIN");
    let rows = "SELECT i % 9, repeat('p', 7000) FROM generate_series(1, 13000) i";
    db.pg.execute(&format!("{storage}; INSERT INTO {table} {rows}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_short_begins_anew_and_counts_once() {
    let db = TestDb::new("log_cut").await;
    keyless(&db, "t", "id int, pad text").await;
    several_chunks(&db, "t", "pad").await;
    let mut daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    for _ in 0..2 {
        eventually(Duration::from_secs(60), async || {
            let rows: u64 = db.ch.try_query("SELECT count() FROM t").await?.parse().unwrap_or(0);
            if rows > 1 { Ok(()) } else { Err(format!("{rows} rows")) }
        })
        .await;
        daemon.kill9();
        db.pg
            .execute(
                "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE id = 3 LIMIT 2); INSERT INTO t VALUES (3, 'x')",
            )
            .await;
        daemon.start();
    }
    daemon.wait_ready().await;
    settled(&db).await;
    assert_equal_within(&db, "t", Duration::from_secs(60)).await;
    assert_eq!(db.ch.query("SELECT countIf(_op = 'snapshot') FROM t FINAL").await, "1", "what was cut short is gone");
    let slots = db.pg.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'walhouse_copy%'").await;
    assert_eq!(slots, "0");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_and_double_nothing() {
    let db = TestDb::new("log_kills").await;
    let mut rng = seeded_rng();
    keyless(&db, "t", "id int, v text, big text").await;
    db.pg.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL; INSERT INTO t SELECT i % 20, 'copied', repeat('b', 3000) FROM generate_series(1, 2000) i").await;
    let mut daemon = Daemon::spawn(&db, "");
    for round in 0..6 {
        let writer = db.pg.connect().await.unwrap();
        let statements: Vec<String> = (0..40)
            .map(|_| {
                let (id, other) = (rng.random_range(0..20), rng.random_range(0..20));
                match rng.random_range(0..6) {
                    0 => {
                        format!("UPDATE t SET id = {other} WHERE ctid IN (SELECT ctid FROM t WHERE id = {id} LIMIT 3)")
                    }
                    1 => format!(
                        "UPDATE t SET v = 'round {round}' WHERE ctid IN (SELECT ctid FROM t WHERE id = {id} LIMIT 7)"
                    ),
                    2 => format!("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE id = {id} LIMIT 4)"),
                    3 if rng.random_range(0..20) == 0 => "TRUNCATE t".to_owned(),
                    _ => format!("INSERT INTO t SELECT {id}, 'new', repeat('n', 3000) FROM generate_series(1, 3)"),
                }
            })
            .collect();
        for statement in statements {
            writer.batch_execute(&statement).await.unwrap();
        }
        daemon.kill9();
        daemon.start();
    }
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_held_is_a_letter_for_each_half_and_the_rest_goes_in() {
    let db = TestDb::new("log_letters").await;
    keyless(&db, "t", "id int, d date").await;
    db.pg.execute("INSERT INTO t VALUES (1, '2024-01-01'), (2, 'infinity'), (2, 'infinity')").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE t SET d = '0044-03-15 BC' WHERE id = 1").await;
    db.pg.execute("UPDATE t SET d = '2024-02-02' WHERE ctid = (SELECT min(ctid) FROM t WHERE id = 2)").await;
    db.pg.execute("INSERT INTO t VALUES (3, '2024-03-03'), (4, '-infinity')").await;
    settled(&db).await;
    let rows = db.ch.query("SELECT groupArray((id, toString(d))) FROM (SELECT * FROM t_current ORDER BY ALL)").await;
    assert_eq!(rows, "[(2,'2024-02-02'),(3,'2024-03-03')]");
    let letters = db
        .ch
        .query(
            "SELECT operation, count(), uniqExact(key) FROM _dead_letters FINAL GROUP BY ALL ORDER BY ALL FORMAT CSV",
        )
        .await;
    assert_eq!(letters, "\"copy\",2,2\n\"delete\",1,1\n\"insert\",1,1\n\"update\",1,1");
    // Both are gone for good, and so is the letter's row once it can be held.
    db.pg.execute("DELETE FROM t WHERE d = '0044-03-15 BC'; UPDATE t SET d = '2024-04-04' WHERE id = 4").await;
    settled(&db).await;
    let rows = db.ch.query("SELECT groupArray((id, toString(d))) FROM (SELECT * FROM t_current ORDER BY ALL)").await;
    assert_eq!(rows, "[(2,'2024-02-02'),(3,'2024-03-03'),(4,'2024-04-04')]");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn masks_filters_and_options_hold_for_a_log() {
    let db = TestDb::new("log_options").await;
    keyless(&db, "t", "id int, secret text, gone text, day date").await;
    db.pg
        .execute(
            "INSERT INTO t VALUES (1, 'canary', 'canary', '2024-01-01'), (-1, 'canary', 'canary', '2024-01-01'), (1, 'canary', 'other', '2024-01-01');
            CREATE PUBLICATION walhouse FOR TABLE t WHERE (id > 0) WITH (publish_via_partition_root = true)",
        )
        .await;
    let extra = "[masking]\nsalt = \"pepper pepper pepper\"\n[tables.\"public.t\"]\nmask = { secret = \"hash\" }\n\
                 exclude_columns = [\"gone\"]\npartition_by = \"toYYYYMM(ifNull(day, toDate32(0)))\"";
    let mut daemon = Daemon::spawn(&db, extra);
    daemon.wait_ready().await;
    db.pg.execute("UPDATE t SET id = -id; UPDATE t SET day = '2024-02-02' WHERE id = 1; INSERT INTO t VALUES (5, 'canary', '', NULL)").await;
    db.pg.execute("UPDATE t SET id = 6 WHERE id = -1").await;
    settled(&db).await;
    assert_eq!(stopped(&db).await.as_deref(), Ok(""));
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    let rows = "SELECT groupArray((id, ifNull(toString(day), 'NULL'))) FROM (SELECT * FROM t_current ORDER BY ALL)";
    assert_eq!(db.ch.query(rows).await, "[(1,'2024-02-02'),(5,'NULL'),(6,'2024-01-01'),(6,'2024-01-01')]");
    let found = "SELECT count() FROM t WHERE positionUTF8(toString(tuple(*)), 'canary') > 0";
    assert_eq!(db.ch.query(found).await, "0");
    drop(daemon);
    db.cleanup().await;
}

async fn on_release(version: &'static str) {
    let postgres = Postgres::private(PostgresOptions { version, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), &format!("log_{version}")).await;
    keyless(&db, "t", "id int, v text").await;
    db.pg.execute("INSERT INTO t SELECT i % 3, 'copied' FROM generate_series(1, 300) i").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "UPDATE t SET v = 'b' WHERE ctid < '(0,50)'; DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 20)",
        )
        .await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_release_exports_its_snapshot() {
    on_release("14").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_release_exports_its_snapshot() {
    on_release("18").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_snapshot_is_lost_begins_anew() {
    let db = TestDb::new("log_lost").await;
    keyless(&db, "t", "id int, pad text").await;
    several_chunks(&db, "t", "pad").await;
    let mut daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    let keeper = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'walhouse copy' AND state = 'idle in transaction'
             AND query LIKE '%pg_export_snapshot%'";
    eventually(Duration::from_secs(60), async || {
        let rows: u64 = db.ch.try_query("SELECT count() FROM t").await?.parse().unwrap_or(0);
        if rows > 1 && db.pg.value(keeper).await == "1" { Ok(()) } else { Err(format!("{rows} rows")) }
    })
    .await;
    db.pg.execute("DELETE FROM t WHERE id = 4").await;
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t"]).await;
    assert!(daemon.log().contains("the snapshot was lost, or a heap was rewritten; copying the table again"));
    drop(daemon);
    db.cleanup().await;
}
