//! The servers and the oracle themselves: what every other test takes for granted.

use std::time::Duration;

use crate::support::{
    ClickHouse, ClickHouseOptions, Postgres, PostgresOptions, TestDb, assert_equal, difference, eventually, user,
};

/// What walhouse would create for `SOURCE`, filled by hand.
const TARGET: &str =
    "CREATE TABLE item (id Int64, name Nullable(String), ok Bool, price Decimal(12, 2), at DateTime64(6, 'UTC'),
    day Date32, small Float32, big Float64, raw String, uid UUID, state LowCardinality(String), code String,
    _version UInt128, _is_deleted UInt8) ENGINE = ReplacingMergeTree(_version, _is_deleted) ORDER BY id";

const SOURCE: &str = "CREATE TYPE mood AS ENUM ('calm', 'wild');
    CREATE TABLE item (name text, id bigint PRIMARY KEY, ok bool, price numeric(12, 2), at timestamptz, day date,
        small real, big double precision, raw bytea, uid uuid, state mood, code char(4));
    INSERT INTO item VALUES
        (E'tab\\there, line\\nand \\\\ ''quote''', 1, true, 10.50, '2024-05-06 07:08:09.123456+02', '1970-01-01',
            0.1, 1e300, '\\x00ff0a', '6f1b6d0e-1111-4222-8333-944455566677', 'wild', 'ab'),
        (NULL, 2, false, -0.05, '1969-12-31 23:59:59.000001+00', '2299-12-31',
            'NaN', '-Infinity', '', '00000000-0000-0000-0000-000000000000', 'calm', ''),
        ('', 3, true, 0, '2000-01-01 00:00:00+00', '2000-02-29', '-0', 0.1, '\\x41', gen_random_uuid(), 'calm', 'four')";

async fn filled(label: &str) -> TestDb {
    let db = TestDb::new(label).await;
    db.pg.execute(SOURCE).await;
    db.ch.create_database().await;
    db.ch.query(TARGET).await;
    let rows = db.pg.query("SELECT id, uid FROM item ORDER BY id").await;
    let third = rows[2][1].clone().unwrap_or_default();
    db.ch
        .query(&format!(
            "INSERT INTO item VALUES
            (1, 'tab\\there, line\\nand \\\\ \\'quote\\'', true, 10.5, '2024-05-06 05:08:09.123456', '1970-01-01',
                0.1, 1e300, unhex('00ff0a'), '6f1b6d0e-1111-4222-8333-944455566677', 'wild', 'ab  ', 1, 0),
            (2, NULL, false, -0.05, '1969-12-31 23:59:59.000001', '2299-12-31',
                nan, -inf, '', '00000000-0000-0000-0000-000000000000', 'calm', '    ', 1, 0),
            (3, '', true, 0, '2000-01-01 00:00:00', '2000-02-29', -0., 0.1, 'A', '{third}', 'calm', 'four', 1, 0)"
        ))
        .await;
    db
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_finds_equal_sides_equal() {
    let db = filled("equal").await;
    // An older version and a deleted row are not there for it.
    db.ch.query("INSERT INTO item (id, name, _version, _is_deleted) VALUES (3, 'old', 0, 0), (4, 'gone', 5, 1)").await;
    assert_equal(&db, "item").await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_names_what_differs() {
    let db = filled("different").await;
    assert_eq!(difference(&db, "item").await, None);
    for (change, message) in [
        ("UPDATE item SET name = '' WHERE id = 2", "key '2': name is '' in PostgreSQL, NULL in ClickHouse"),
        ("UPDATE item SET name = NULL, big = 0.0 WHERE id = 3", "name is NULL in PostgreSQL, '' in ClickHouse; big is"),
        ("UPDATE item SET at = at + '1 microsecond' WHERE id = 1", "at is '2024-05-06 05:08:09.123457'"),
        ("DELETE FROM item WHERE id = 1", "PostgreSQL has 2 rows, ClickHouse 3"),
        ("UPDATE item SET id = 9 WHERE id = 3", "key '3': 0 times in PostgreSQL, 1 times in ClickHouse"),
    ] {
        db.pg.execute(change).await;
        let found = difference(&db, "item").await.expect("the sides differ");
        assert!(found.contains(message), "{change}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_comes_back_from_a_crash_with_its_data() {
    let postgres = Postgres::private(PostgresOptions::default());
    let db = TestDb::on(postgres.clone(), ClickHouse::shared(), "crash").await;
    db.pg.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id").await;
    db.pg.query("SELECT pg_create_logical_replication_slot('held', 'pgoutput')").await;

    let before = postgres.pid();
    postgres.kill9();
    db.pg.try_query("SELECT 1").await.expect_err("a killed server does not answer");
    postgres.start();
    assert_ne!(postgres.pid(), before);
    assert_eq!(db.pg.value("SELECT count(*) FROM t").await, "1000");
    assert_eq!(db.pg.value("SELECT slot_name FROM pg_replication_slots").await, "held");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_comes_back_from_a_crash_with_its_data() {
    let clickhouse = ClickHouse::private(ClickHouseOptions { memory: Some(2 << 30), ..Default::default() });
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), "crash").await;
    db.ch.create_database().await;
    db.ch.query("CREATE TABLE t (id UInt64) ENGINE = MergeTree ORDER BY id").await;
    db.ch.query("INSERT INTO t SELECT number FROM numbers(1000)").await;

    clickhouse.kill9();
    db.ch.try_query("SELECT 1").await.expect_err("a killed server does not answer");
    clickhouse.start();
    assert_eq!(db.ch.query("SELECT count() FROM t").await, "1000");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_user_needs_the_password_and_the_right() {
    let options = ClickHouseOptions { users: user("reader", "s3cret", &["GRANT SELECT ON *.*"]), ..Default::default() };
    let db = TestDb::on(Postgres::shared(), ClickHouse::private(options), "users").await;
    db.ch.create_database().await;
    assert_eq!(db.ch.try_query_as("reader", "s3cret", "SELECT currentUser()").await.as_deref(), Ok("reader"));
    let refused = db.ch.try_query_as("reader", "wrong", "SELECT 1").await.expect_err("the password is wrong");
    assert!(refused.contains("AUTHENTICATION_FAILED"), "{refused}");
    let refused = db.ch.try_query_as("reader", "s3cret", "CREATE DATABASE x").await.expect_err("the right is missing");
    assert!(refused.contains("ACCESS_DENIED"), "{refused}");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_role_needs_the_password() {
    let hba = vec!["host all alice 127.0.0.1/32 scram-sha-256".to_owned()];
    let settings = vec![("wal_level", "replica".to_owned())];
    let db = TestDb::on(
        Postgres::private(PostgresOptions { hba, settings, ..Default::default() }),
        ClickHouse::shared(),
        "hba",
    )
    .await;
    db.pg.execute("CREATE ROLE alice LOGIN PASSWORD 's3cret'").await;
    assert_eq!(db.pg.value("SHOW wal_level").await, "replica");
    let refused = db.pg.connect_as("alice:wrong").await.expect_err("the password is wrong");
    assert!(refused.starts_with("28P01"), "{refused}");
    db.pg.connect_as("alice:s3cret").await.expect("the password is right");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_answers_once_it_may_go_on() {
    let postgres = Postgres::private(PostgresOptions::default());
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(postgres.clone(), clickhouse.clone(), "frozen").await;
    db.pg.execute("SELECT 1").await;
    postgres.freeze();
    clickhouse.freeze();
    let short = Duration::from_millis(300);
    tokio::time::timeout(short, db.pg.try_query("SELECT 1")).await.expect_err("a frozen server is silent");
    tokio::time::timeout(short, db.ch.try_query("SELECT 1")).await.expect_err("a frozen server is silent");
    postgres.resume();
    clickhouse.resume();
    eventually(Duration::from_secs(10), async || db.pg.try_query("SELECT 1").await).await;
    db.ch.create_database().await;
    eventually(Duration::from_secs(10), async || db.ch.try_query("SELECT 1").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_left_behind_goes_with_its_database() {
    let name = {
        let db = TestDb::new("slot").await;
        db.pg.query("SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput')").await;
        db.name.clone()
    };
    let other = TestDb::new("other").await;
    let slots = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{name}'");
    assert!(other.pg.query(&slots).await.is_empty());
    assert!(other.pg.query(&format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).await.is_empty());
}
