//! Keys of every type that a key can have, and every way in which a key is chosen.

use crate::rules::publish_all;
use crate::support::{
    ClickHouse, Daemon, FrozenStream, Past, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal,
    eventually, settled, walhouse,
};
use std::time::Duration;

/// A type; values of it that are keys of their own; and pairs that PostgreSQL holds for one key although their texts or
/// bytes differ. Of a pair, the first is in the table, and is made the second in several ways.
type KeyType = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const TYPES: &[KeyType] = &[
    ("bool", &["true", "false"], &[]),
    ("int2", &["-32768", "0", "32767"], &[]),
    ("int8", &["-9223372036854775808", "0", "9223372036854775807"], &[]),
    ("oid", &["0", "4294967295"], &[]),
    ("float4", &["'NaN'", "'-Infinity'", "'0.1'", "'1e-40'"], &[("0", "'-0'")]),
    ("float8", &["'NaN'", "'Infinity'", "0.1", "-1e308"], &[("'-0'", "0")]),
    ("numeric", &["'NaN'", "1e100", "-0.5", "'Infinity'"], &[("1.0", "1.00"), ("0", "0.000"), ("100", "100.0")]),
    ("numeric(12, 2)", &["-0.5", "9999999999.99"], &[("1.0", "1.00")]),
    ("text", &["''", "'A'", "'a'", "'ä'", "E'tab\\t nl\\n'", "'it''s \\ `'", "'NULL'", "'\\N'"], &[]),
    ("text COLLATE \"C\"", &["'A'", "'a'", "'ä'"], &[]),
    ("text COLLATE anycase", &["''", "'b'", "'ä'"], &[("'straße'", "'STRASSE'"), ("'One'", "'oNE'")]),
    ("varchar(10)", &["'A'", "'a '", "''"], &[]),
    ("char(4)", &["'A'", "''", "'ab'"], &[("'x'", "'x  '")]),
    ("name", &["'A'", "''"], &[]),
    ("\"char\"", &["'A'", "''"], &[]),
    ("citext", &["'b'", "''"], &[("'One'", "'oNE'")]),
    (
        "uuid",
        &["'00000000-0000-0000-0000-000000000000'"],
        &[("'6f1b6d0e-1111-4222-8333-944455566677'", "'6F1B6D0E-1111-4222-8333-944455566677'")],
    ),
    ("bytea", &["''", "'\\x00'", "'\\x0000'", "'\\xff5c27'"], &[]),
    ("date", &["'1900-01-01'", "'2299-12-31'"], &[]),
    ("timestamp", &["'1970-01-01'", "'2024-02-29 23:59:59.999999'"], &[]),
    (
        "timestamptz",
        &["'1970-01-01+00'", "'2024-02-29 23:59:59.999999+05'"],
        &[("'2024-01-01 12:00+00'", "'2024-01-01 13:00+01'")],
    ),
    ("time", &["'00:00'", "'24:00'"], &[]),
    ("timetz", &["'12:00+00'", "'13:00+01'"], &[]),
    ("interval", &["'1 month'", "'-1 second'"], &[("'1 day'", "'24 hours'")]),
    ("state", &["'new'", "'it''s \\ done'"], &[]),
    ("positive", &["1", "2"], &[]),
    ("label", &["'a'", "'it''s'"], &[]),
    ("inet", &["'10.0.0.1'", "'10.0.0.1/24'", "'::1'"], &[]),
    ("macaddr", &["'08:00:2b:01:02:03'"], &[]),
    ("bit(3)", &["B'101'", "B'000'"], &[]),
    ("jsonb", &["'null'", "'{}'", "'{\"b\": 1, \"a\": [2]}'"], &[("'1.0'", "'1.00'")]),
    ("int4[]", &["'{}'", "'{1,NULL}'", "'[2:3]={1,2}'"], &[]),
    ("numeric[]", &["'{NaN}'"], &[("'{1.0}'", "'{1.00}'")]),
    ("int4range", &["'empty'", "'[1,3)'"], &[]),
    ("numrange", &["'(,1)'"], &[("'[1.0,2]'", "'[1.00,2]'")]),
    ("pair", &["'(1,a)'::pair", "'(,)'::pair", "'(2,\"it''s\")'::pair"], &[]),
    ("pg_lsn", &["'0/0'", "'FFFFFFFF/FFFFFFFF'"], &[]),
    ("money", &["'-1.50'", "'0'"], &[]),
    ("tsvector", &["'a b'", "''"], &[]),
];

async fn prepare(db: &TestDb) {
    db.pg
        .execute(
            "CREATE EXTENSION citext; CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
            CREATE TYPE state AS ENUM ('new', 'it''s \\ done'); CREATE DOMAIN positive AS numeric(5, 1) CHECK (VALUE > 0);
            CREATE DOMAIN label AS text; CREATE TYPE pair AS (n int, t text)",
        )
        .await;
}

/// What happens to a table: all values as copied rows and as streamed ones, and each pair both ways.
fn history(table: &str, values: &[&str], pairs: &[(&str, &str)]) -> Vec<String> {
    let mut steps = Vec::new();
    let sized = |value: &str| format!("({value}, 1, repeat('b', 3000))");
    for (at, value) in values.iter().enumerate() {
        // The toasted column is unchanged, so the row is looked up by its key.
        steps.push(format!("UPDATE {table} SET v = v + 1 WHERE k = {value}"));
        if at % 2 == 1 {
            steps.push(format!("DELETE FROM {table} WHERE k = {value}"));
            steps.push(format!("INSERT INTO {table} VALUES {}", sized(value)));
        }
    }
    for (first, second) in pairs {
        steps.push(format!("UPDATE {table} SET k = {second} WHERE k = {first}"));
        steps.push(format!("UPDATE {table} SET v = v + 1 WHERE k = {first}"));
        steps.push(format!("DELETE FROM {table} WHERE k = {first}"));
        steps.push(format!("INSERT INTO {table} VALUES {}", sized(first)));
        steps.push(format!("DELETE FROM {table} WHERE k = {second}; INSERT INTO {table} VALUES {}", sized(second)));
        steps.push(format!(
            "INSERT INTO {table} VALUES {} ON CONFLICT (k) DO UPDATE SET k = EXCLUDED.k, v = 7",
            sized(first)
        ));
        steps.push(format!("UPDATE {table} SET v = v + 1"));
    }
    // To another key that is free, and back.
    steps.push(format!("DELETE FROM {table} WHERE k = {}", values[0]));
    if let [first, second, ..] = values {
        steps.push(format!("UPDATE {table} SET k = {first} WHERE k = {second}"));
    }
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_any_type_is_one_key_on_both_sides() {
    let db = TestDb::new("keys_types").await;
    prepare(&db).await;
    db.pg.execute("CREATE TABLE first (id int PRIMARY KEY)").await;
    publish_all(&db).await;
    let past = Past::begin(&db).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // The copy is from after all that the stream has, so a change of a key has to ask PostgreSQL for what it lacks.
    let frozen = FrozenStream::of(&db).await;
    let tables: Vec<String> = (0..TYPES.len()).flat_map(|at| [format!("t{at}"), format!("f{at}")]).collect();
    for (at, (ty, values, pairs)) in TYPES.iter().enumerate() {
        let mut steps = Vec::new();
        for table in [format!("t{at}"), format!("f{at}")] {
            steps.push(format!("CREATE TABLE {table} (k {ty} PRIMARY KEY, v int, big text); ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL"));
            if table.starts_with('f') {
                steps.push(format!("ALTER TABLE {table} REPLICA IDENTITY FULL"));
            }
            let all = values.iter().chain(pairs.iter().map(|(first, _)| first));
            steps.extend(all.map(|value| format!("INSERT INTO {table} VALUES ({value}, 0, repeat('a', 3000))")));
            steps.extend(history(&table, values, pairs));
        }
        for step in steps {
            db.pg.try_execute(&step).await.unwrap_or_else(|error| panic!("{ty}: {step}: {error}"));
        }
    }
    eventually(Duration::from_secs(120), async || {
        let copied = db.ch.try_query("SELECT count() FROM _tables FINAL WHERE status = 'streaming'").await?;
        if copied == (tables.len() + 1).to_string() { Ok(()) } else { Err(format!("{copied} tables are copied")) }
    })
    .await;
    drop(frozen);
    settled(&db).await;
    let all: Vec<&str> = tables.iter().map(String::as_str).collect();
    assert_settled_equal(&db, &all).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    assert!(daemon.metric("walhouse_toast_lookups_total", "postgres").await > 0.0, "PostgreSQL was not asked by key");
    // Everything once more.
    daemon.sigterm(Duration::from_secs(20)).await;
    past.restore(&db, None).await;
    daemon.start();
    daemon.wait_ready().await;
    assert_settled_equal(&db, &all).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_key_of_any_type_is_one_key_on_both_sides() {
    let db = TestDb::new("keys_masked").await;
    prepare(&db).await;
    let mut extra = String::new();
    for (at, (ty, values, pairs)) in TYPES.iter().enumerate() {
        db.pg.execute(&format!("CREATE TABLE t{at} (k {ty} PRIMARY KEY, v int, big text); ALTER TABLE t{at} ALTER big SET STORAGE EXTERNAL")).await;
        for value in values.iter().chain(pairs.iter().map(|(first, _)| first)) {
            db.pg.execute(&format!("INSERT INTO t{at} VALUES ({value}, 0, repeat('a', 3000))")).await;
        }
        extra += &format!("[tables.\"public.t{at}\"]\nmask = {{ k = \"hash\" }}\n");
    }
    let mut daemon = Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    for (at, (_, values, pairs)) in TYPES.iter().enumerate() {
        for step in history(&format!("t{at}"), values, pairs) {
            db.pg.execute(&step).await;
        }
    }
    settled(&db).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_what_the_replica_identity_says() {
    let db = TestDb::new("keys_identity").await;
    db.pg
        .execute(
            "CREATE TABLE composite (a int, b text, c int, d text, PRIMARY KEY (c, b, a));
            CREATE TABLE including (id int, more text, v int, CONSTRAINT including_pkey PRIMARY KEY (id) INCLUDE (more));
            CREATE TABLE using_index (id int PRIMARY KEY, other int NOT NULL, kind text NOT NULL, v int);
            CREATE UNIQUE INDEX using_index_other ON using_index (kind, other) INCLUDE (v); ALTER TABLE using_index REPLICA IDENTITY USING INDEX using_index_other;
            CREATE TABLE whole (a int, b text, v int, w text, PRIMARY KEY (b, a)); ALTER TABLE whole REPLICA IDENTITY FULL;
            CREATE TABLE swap (id int PRIMARY KEY, slot int NOT NULL, v text);
            CREATE UNIQUE INDEX swap_slot ON swap (slot); ALTER TABLE swap REPLICA IDENTITY USING INDEX swap_slot;
            INSERT INTO composite SELECT i, i || 'b', -i, 'd' FROM generate_series(1, 20) i;
            INSERT INTO including SELECT i, 'more', i FROM generate_series(1, 20) i;
            INSERT INTO using_index SELECT i, -i, 'k', i FROM generate_series(1, 20) i;
            INSERT INTO whole SELECT i, i || 'b', i, 'w' FROM generate_series(1, 20) i;
            INSERT INTO swap SELECT i, i * 10, 'v' || i FROM generate_series(1, 20) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for (table, key) in [
        ("composite", "c, b, a"),
        ("including", "id"),
        ("using_index", "kind, other"),
        ("whole", "b, a"),
        ("swap", "slot"),
    ] {
        let sql =
            format!("SELECT sorting_key FROM system.tables WHERE database = currentDatabase() AND name = '{table}'");
        assert_eq!(db.ch.query(&sql).await.trim_matches(['(', ')']), key);
    }
    db.pg
        .execute(
            "UPDATE composite SET c = c - 100 WHERE a % 2 = 0; UPDATE composite SET d = 'e' WHERE a % 3 = 0; DELETE FROM composite WHERE a = 7;
            UPDATE including SET more = 'less' WHERE id % 2 = 0; UPDATE including SET id = -id WHERE id % 3 = 0; DELETE FROM including WHERE id = 7;
            UPDATE using_index SET id = id + 100; UPDATE using_index SET other = other - 100 WHERE other > -10; UPDATE using_index SET v = 0 WHERE id = 115; DELETE FROM using_index WHERE id = 116;
            UPDATE whole SET b = 'x' || b, w = NULL WHERE a % 2 = 0; UPDATE whole SET v = NULL WHERE a % 3 = 0; DELETE FROM whole WHERE a = 7",
        )
        .await;
    // Keys change hands: in one statement where the order of its rows allows it, over a third one else, and in a chain.
    db.pg
        .execute(
            "UPDATE swap SET slot = slot + 10 WHERE slot >= 200; UPDATE swap SET slot = slot - 10 WHERE slot >= 210",
        )
        .await;
    db.pg.execute("BEGIN; UPDATE swap SET slot = -1 WHERE id = 1; UPDATE swap SET slot = 10 WHERE id = 2; UPDATE swap SET slot = 20 WHERE id = 1; COMMIT").await;
    db.pg.execute("BEGIN; DELETE FROM swap WHERE id = 3; UPDATE swap SET slot = 30 WHERE id = 4; INSERT INTO swap VALUES (3, 40, 'again'); COMMIT").await;
    db.pg.execute("UPDATE swap SET slot = -slot; UPDATE swap SET slot = 210 + slot").await;
    assert_settled_equal(&db, &["composite", "including", "using_index", "whole", "swap"]).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_postgresql_does_not_take_as_an_identity_is_no_key() {
    let db = TestDb::new("keys_indexes").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int NOT NULL, v text NOT NULL, n text); CREATE UNIQUE INDEX partial ON t (id) WHERE v = 'a';
            CREATE UNIQUE INDEX expression ON t (lower(v)); CREATE UNIQUE INDEX nullable ON t (n);
            ALTER TABLE t ADD CONSTRAINT late UNIQUE (id) DEFERRABLE; CREATE UNIQUE INDEX fine ON t (id, v)",
        )
        .await;
    for index in ["partial", "expression", "nullable", "late"] {
        db.pg.try_execute(&format!("ALTER TABLE t REPLICA IDENTITY USING INDEX {index}")).await.expect_err(index);
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_log("a table is not replicated table=\"public.t\"", 1).await;
    // A key that comes later makes it replicated; the index goes, and with it the key.
    db.pg.execute("INSERT INTO t VALUES (1, 'a', NULL); ALTER TABLE t REPLICA IDENTITY USING INDEX fine").await;
    assert_equal(&db, "t").await;
    daemon.wait_ready().await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_postgresql_18_are_keys_too() {
    let postgres = Postgres::private(PostgresOptions { version: "18", ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "keys_18").await;
    db.pg
        .execute(
            "CREATE EXTENSION btree_gist; CREATE TABLE booking (room int, during daterange, v text, PRIMARY KEY (room, during WITHOUT OVERLAPS));
            INSERT INTO booking VALUES (1, '[2024-01-01,2024-02-01)', 'a'), (1, '[2024-02-01,2024-03-01)', 'b');
            CREATE TABLE made (id int, double int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY, v text); INSERT INTO made VALUES (1)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE booking SET v = 'c' WHERE v = 'b'; UPDATE booking SET during = '[2023-01-01,2023-02-01)' WHERE v = 'a'; DELETE FROM booking WHERE v = 'c'").await;
    assert_settled_equal(&db, &["booking"]).await;
    daemon.wait_log("a table is not replicated table=\"public.made\"", 1).await;
    db.pg.execute("UPDATE made SET v = 'b'").await;
    db.cleanup().await;
}
