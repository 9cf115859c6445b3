//! PostgreSQL 14 to 18: the same scenario on each, and what only one of them does. The other tests run on 15.

use std::time::Duration;

use crate::support::{
    ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal, eventually, settled,
    stopped, walhouse,
};

const TABLES: &[&str] = &["item", "event", "whole"];

async fn database(label: &str, version: &'static str, settings: Vec<(&'static str, String)>) -> TestDb {
    let postgres = Postgres::private(PostgresOptions { version, settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), label).await;
    let served = db.pg.value("SHOW server_version").await;
    assert!(served.starts_with(version), "{served}");
    db
}

async fn succeeds(daemon: &Daemon, command: &str) {
    let exit = walhouse(daemon.config(), &[command]).await;
    assert_eq!(exit.code, Some(0), "{command}: {exit:?}");
}

/// The copy, the stream, key changes, values that are left out, a truncate, a kill, and what `check` and `verify` say.
async fn ordinary_day(version: &'static str) {
    let db = database(&format!("release_{version}"), version, Vec::new()).await;
    db.pg
        .execute(
            "CREATE TYPE mood AS ENUM ('calm', 'wild'); CREATE DOMAIN price AS numeric(12, 2);
            CREATE TABLE item (id int PRIMARY KEY, n int DEFAULT 0, price price, at timestamptz, raw bytea, mood mood, big text,
                doubled int GENERATED ALWAYS AS (n * 2) STORED);
            ALTER TABLE item ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE event (day date, id int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
            CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
            CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
            CREATE TABLE whole (id int PRIMARY KEY, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
            INSERT INTO item (id, price, at, raw, mood, big) SELECT i, i / 7.0, '2024-01-01', '\\x00ff', 'calm', repeat(md5(i::text), 100)
                FROM generate_series(1, 500) i;
            INSERT INTO event SELECT date '2024-01-01' + i % 50, i, 'copied' FROM generate_series(1, 500) i;
            INSERT INTO whole SELECT i, 'copied' FROM generate_series(1, 500) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    succeeds(&daemon, "check").await;
    assert_settled_equal(&db, TABLES).await;
    db.pg
        .execute(
            "UPDATE item SET n = 1 WHERE id % 2 = 0; UPDATE item SET id = -id WHERE id % 5 = 0; DELETE FROM item WHERE id % 7 = 0;
            UPDATE event SET day = day + 20 WHERE day < '2024-02-01' AND id % 2 = 0; DELETE FROM event WHERE id % 9 = 0;
            BEGIN; TRUNCATE whole; INSERT INTO whole VALUES (1, 'after'); SAVEPOINT s; DELETE FROM whole; ROLLBACK TO s; COMMIT",
        )
        .await;
    assert_settled_equal(&db, TABLES).await;
    daemon.kill9();
    db.pg
        .execute(
            "UPDATE item SET n = 2 WHERE id % 3 = 0; UPDATE item SET mood = 'wild', big = NULL WHERE id % 11 = 0;
            INSERT INTO event VALUES ('2024-02-28', 1000, 'while it was away'); UPDATE whole SET id = 2",
        )
        .await;
    daemon.start();
    daemon.wait_ready().await;
    assert_settled_equal(&db, TABLES).await;
    // A table that comes later, and a crash of the server in between.
    db.pg.execute("CREATE TABLE later AS SELECT i AS id FROM generate_series(1, 100) i; ALTER TABLE later ADD PRIMARY KEY (id)").await;
    assert_equal(&db, "later").await;
    db.postgres.kill9();
    db.postgres.start();
    db.pg.execute("UPDATE item SET n = 3; INSERT INTO later VALUES (101)").await;
    assert_settled_equal(&db, TABLES).await;
    assert_settled_equal(&db, &["later"]).await;
    succeeds(&daemon, "verify").await;
    assert_eq!(daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_day_on_postgres_14() {
    ordinary_day("14").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_day_on_postgres_16() {
    ordinary_day("16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_day_on_postgres_17() {
    ordinary_day("17").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_day_on_postgres_18() {
    ordinary_day("18").await;
}

/// Its catalog has neither filters nor lists of columns, nor schemas in a publication.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_for_all_tables_is_taken_on_postgres_14() {
    let db = database("release_all", "14", Vec::new()).await;
    db.pg
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1);
            CREATE PUBLICATION walhouse FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "[source]\ntables = [\"public.a\"]\n");
    daemon.wait_ready().await;
    succeeds(&daemon, "check").await;
    db.pg.execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (1, 'not asked for')").await;
    assert_settled_equal(&db, &["a"]).await;
    assert_eq!(db.ch.query("EXISTS TABLE b").await, "0");
    succeeds(&daemon, "verify").await;
    drop(daemon);
    db.cleanup().await;
}

/// From 17 on a slot may be kept on standbys too. It is the operator who makes such a slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_slot_that_was_provisioned_stays_one() {
    let db = database("release_failover", "17", Vec::new()).await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)").await;
    let slot = &db.name;
    db.pg.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, false, true)")).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item VALUES (2)").await;
    assert_settled_equal(&db, &["item"]).await;
    succeeds(&daemon, "check").await;
    let failover = format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(db.pg.value(&failover).await, "t");
    drop(daemon);
    db.cleanup().await;
}

/// From 18 on a slot that nobody reads may be given up. What it missed is a gap, and a gap is a halt.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_idle_for_too_long_is_a_gap() {
    let db = database("release_idle", "18", vec![("idle_replication_slot_timeout", "1s".to_owned())]).await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    settled(&db).await;
    // While it is read it is not idle, however little happens.
    tokio::time::sleep(Duration::from_secs(2)).await;
    db.pg.execute("CHECKPOINT; INSERT INTO item VALUES (2)").await;
    assert_settled_equal(&db, &["item"]).await;
    daemon.sigterm(Duration::from_secs(20)).await;
    let reason =
        format!("SELECT coalesce(invalidation_reason, '') FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    eventually(Duration::from_secs(30), async || {
        db.pg.try_execute("CHECKPOINT").await?;
        let reason = db.pg.value(&reason).await;
        if reason == "idle_timeout" { Ok(()) } else { Err(format!("the slot's invalidation_reason is {reason:?}")) }
    })
    .await;
    daemon.start();
    let (code, log) = daemon.wait_exit(Duration::from_secs(20)).await;
    assert_eq!(code, 3, "{log}");
    assert!(log.contains("the server has removed WAL") && log.contains("idle_replication_slot_timeout"), "{log}");
    drop(daemon);
    db.cleanup().await;
}

/// From 18 on a generated column may be virtual, which is the default there, and be published: walhouse's own
/// publication carries none of either kind.
#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_of_either_kind_stay_at_the_source() {
    let db = database("release_generated", "18", Vec::new()).await;
    db.pg
        .execute(
            "CREATE TABLE item (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL,
                thrice int GENERATED ALWAYS AS (n * 3) STORED, v text); INSERT INTO item (id, n, v) VALUES (1, 1, 'copied')",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item (id, n, v) VALUES (2, 2, 'streamed'); UPDATE item SET n = 3 WHERE id = 1").await;
    settled(&db).await;
    assert_eq!(stopped(&db).await.as_deref(), Ok(""));
    let rows = "SELECT id, n, v FROM item_current ORDER BY id";
    assert_eq!(db.ch.query(rows).await, "1\t3\tcopied\n2\t2\tstreamed");
    assert_settled_equal(&db, &["item"]).await;
    succeeds(&daemon, "verify").await;
    drop(daemon);
    db.cleanup().await;
}
