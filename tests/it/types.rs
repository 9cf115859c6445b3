//! Values: every ordinary type through the copy and the stream, whatever defaults a role has, and what can not be held.

mod asked;
mod columns;

use std::time::Duration;

use crate::support::{Daemon, Pg, TestDb, assert_equal, eventually, walhouse};
use columns::COLUMNS;

/// Rows are numbered from 0; each column has each of its values, and then NULL, in turn.
fn rows() -> usize {
    COLUMNS.iter().map(|column| column.values.len() + 1).max().unwrap_or(0) + 1
}

/// A column's value in a row, as PostgreSQL takes it and as ClickHouse prints it; `None` is NULL.
fn value(column: usize, row: usize) -> Option<(&'static str, &'static str)> {
    let values = COLUMNS[column].values;
    values.get((row + column) % (values.len() + 1)).copied()
}

fn definition(table: &str) -> String {
    let columns: String = COLUMNS.iter().map(|column| format!(", {} {}", column.name, column.source)).collect();
    format!("CREATE TABLE {table} (id int PRIMARY KEY{columns});")
}

fn insert(table: &str, row: usize) -> String {
    let values: String = (0..COLUMNS.len())
        .map(|column| match value(column, row) {
            Some((literal, _)) => format!(", {literal}"),
            None => ", NULL".to_owned(),
        })
        .collect();
    format!("INSERT INTO {table} VALUES ({row}{values});")
}

async fn prepare(db: &TestDb) {
    db.pg
        .execute(
            "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'ok', 'so ''so'', \\ \"😀\"');
            CREATE DOMAIN short AS varchar(9); CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 8);
            CREATE DOMAIN price AS numeric(9, 3); CREATE DOMAIN feeling AS mood;
            CREATE TYPE pair AS (a int, b text); CREATE DOMAIN numbers AS int2[]",
        )
        .await;
    vector(db).await;
    let all: String = (0..rows()).map(|row| insert("copied", row)).collect();
    db.pg
        .execute(&format!("SET search_path = public; {} {} {all}", definition("copied"), definition("streamed")))
        .await;
}

/// pgvector's type where the extension is there, and else one with its name and its text.
async fn vector(db: &TestDb) {
    if db.pg.try_execute("CREATE EXTENSION vector").await.is_ok() {
        return;
    }
    db.pg
        .execute(
            "CREATE TYPE vector;
            CREATE FUNCTION vector_in(cstring) RETURNS vector LANGUAGE internal IMMUTABLE STRICT AS 'textin';
            CREATE FUNCTION vector_out(vector) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
            CREATE TYPE vector (INPUT = vector_in, OUTPUT = vector_out, LIKE = text);
            CREATE FUNCTION vector_floats(vector) RETURNS real[] LANGUAGE sql IMMUTABLE STRICT
                AS 'SELECT pg_catalog.string_to_array(trim(both ''[]'' from $1::pg_catalog.text), '','')::real[]';
            CREATE CAST (vector AS real[]) WITH FUNCTION vector_floats(vector)",
        )
        .await;
}

/// Reads every value from ClickHouse; row `id` must have what the row `id + shift` began with.
async fn assert_exact(db: &TestDb, table: &str, shift: usize) {
    for (at, column) in COLUMNS.iter().enumerate() {
        let read = match column.target {
            "bytes" => format!("lower(hex({}))", column.name),
            array if array.starts_with("Array(") => format!("if({0}__is_null, NULL, toString({0}))", column.name),
            _ => column.name.to_owned(),
        };
        let sql = format!("SELECT id, {read} FROM {table} FINAL WHERE _is_deleted = 0 ORDER BY id FORMAT TSVRaw");
        let found = db.ch.query(&sql).await;
        let expected: Vec<_> = (0..rows())
            .map(|row| format!("{row}\t{}", value(at, (row + shift) % rows()).map_or("\\N", |(_, text)| text)))
            .collect();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{table}.{}", column.name);
    }
}

async fn assert_column_types(db: &TestDb) {
    for column in COLUMNS {
        let sql = format!(
            "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 'copied' AND name = '{}'",
            column.name
        );
        let expected = match column.target {
            "bytes" => "Nullable(String)".to_owned(),
            "LowCardinality(String)" => "LowCardinality(Nullable(String))".to_owned(),
            array if array.starts_with("Array(") => array.to_owned(),
            plain => format!("Nullable({plain})"),
        };
        assert_eq!(db.ch.query(&sql).await, expected.replace('\'', "\\'"), "{}", column.name);
    }
}

/// Copies, inserts and updates every value, and reads all of them.
async fn every_value(db: &TestDb, daemon: &mut Daemon) {
    daemon.wait_ready().await;
    assert_column_types(db).await;
    assert_exact(db, "copied", 0).await;
    assert_equal(db, "copied").await;
    let all: String = (0..rows()).map(|row| insert("streamed", row)).collect();
    db.pg.execute(&all).await;
    assert_equal(db, "streamed").await;
    assert_exact(db, "streamed", 0).await;
    let columns: Vec<_> = COLUMNS.iter().map(|column| format!("{0} = c.{0}", column.name)).collect();
    for table in ["streamed", "copied"] {
        db.pg
            .execute(&format!(
                "CREATE TEMPORARY TABLE c AS TABLE streamed;
                UPDATE {table} s SET {} FROM c WHERE c.id = (s.id + 1) % {};
                DROP TABLE c",
                columns.join(", "),
                rows()
            ))
            .await;
        if table == "streamed" {
            // What `copied` takes its values from next is shifted already.
            assert_equal(db, table).await;
            assert_exact(db, table, 1).await;
        }
    }
    assert_equal(db, "copied").await;
    assert_exact(db, "copied", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_exactly_through_the_copy_and_the_stream() {
    let db = TestDb::new("types").await;
    prepare(&db).await;
    let mut daemon = Daemon::spawn(&db, "");
    every_value(&db, &mut daemon).await;
    // A value of an enum that there was not when the table was copied.
    db.pg.execute("ALTER TYPE mood ADD VALUE 'new 🎉' BEFORE 'ok'").await;
    db.pg.execute("UPDATE streamed SET an_enum = 'new 🎉', enum_domain = 'new 🎉'; INSERT INTO copied (id, an_enum) VALUES (-1, 'new 🎉')").await;
    assert_equal(&db, "streamed").await;
    assert_equal(&db, "copied").await;
    assert_eq!(db.ch.query("SELECT an_enum FROM copied FINAL WHERE id = -1").await, "new 🎉");
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_of_the_role_and_the_database_change_no_value() {
    let db = TestDb::new("types_hostile").await;
    prepare(&db).await;
    let role = &db.name;
    db.pg.execute(&format!("CREATE ROLE {role} SUPERUSER REPLICATION LOGIN")).await;
    for setting in [
        "datestyle = 'German'",
        "intervalstyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "timezone = 'Asia/Kolkata'",
        "extra_float_digits = -15",
        "client_encoding = 'LATIN1'",
        "search_path = 'nowhere'",
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "standard_conforming_strings = off",
        "xmlbinary = 'hex'",
        "quote_all_identifiers = on",
        "default_transaction_isolation = 'serializable'",
    ] {
        db.pg.execute(&format!("ALTER ROLE {role} SET {setting}")).await;
    }
    for setting in ["datestyle = 'SQL, DMY'", "extra_float_digits = -3", "timezone = 'America/New_York'"] {
        db.pg.execute(&format!("ALTER DATABASE {role} SET {setting}")).await;
    }
    let mut daemon = Daemon::spawn(&db, &format!("[source]\nurl = \"{}\"\n", db.pg.url_as(role)));
    every_value(&db, &mut daemon).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    drop(daemon);
    let (postgres, role) = (db.postgres.clone(), role.clone());
    db.cleanup().await;
    Pg::new(postgres, "postgres").execute(&format!("DROP ROLE {role}")).await;
}

/// Where a value that its column can not hold is, and what it is.
const UNHELD: [(&str, &str, &str); 5] = [
    ("nan", "numeric(10, 2)", "'NaN'"),
    ("endless", "timestamptz", "'infinity'"),
    ("ancient", "date", "'0044-03-15 BC'"),
    ("past", "timestamp", "'0753-04-21 08:07:06 BC'"),
    ("future", "date", "'2300-01-01'"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_can_not_be_held_stops_its_table_alone_where_that_is_wanted() {
    let db = TestDb::new("types_unheld").await;
    db.pg.execute("CREATE TABLE good (id int PRIMARY KEY, v text); INSERT INTO good VALUES (1, 'a')").await;
    for (name, kind, literal) in UNHELD {
        db.pg
            .execute(&format!(
                "CREATE TABLE {name}_copied (id int PRIMARY KEY, fine {kind}, odd {kind});
                CREATE TABLE {name}_streamed (id int PRIMARY KEY, fine {kind}, odd {kind});
                INSERT INTO {name}_streamed VALUES (1, NULL, NULL);
                INSERT INTO {name}_copied VALUES (1, NULL, NULL), (2, NULL, {literal})",
            ))
            .await;
    }
    let mut daemon = Daemon::spawn(&db, "[batch]\nunrepresentable = \"fail\"\n");
    daemon.wait_ready().await;
    for (name, _, literal) in UNHELD {
        db.pg
            .execute(&format!(
                "INSERT INTO {name}_streamed VALUES (2, NULL, {literal});
                INSERT INTO {name}_streamed VALUES (3, NULL, NULL); UPDATE good SET v = '{name}'"
            ))
            .await;
    }
    assert_equal(&db, "good").await;
    let stopped = 10.0;
    eventually(Duration::from_secs(20), async || match daemon.metric("walhouse_tables_stopped", "").await {
        found if found == stopped => Ok(()),
        found => Err(format!(
            "{found} tables are stopped; {}",
            db.ch.query("SELECT table_name, status FROM _tables FINAL").await
        )),
    })
    .await;
    assert_stopped(&db, &daemon.log()).await;
    daemon.wait_ready().await;
    let ready = daemon.get("/readyz").await.expect("an answer");
    assert!(ready.body.contains("10 tables stopped; walhouse verify says why"), "{}", ready.body);

    // It stays so, also over a restart, and the others go on.
    daemon.kill9();
    daemon.start();
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO good VALUES (2, 'b'); INSERT INTO nan_streamed VALUES (4)").await;
    assert_equal(&db, "good").await;
    assert_eq!(daemon.metric("walhouse_tables_stopped", "").await, stopped);
    assert_stopped(&db, "").await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    for (name, ..) in UNHELD {
        for way in ["copied", "streamed"] {
            let line = verify.stdout.lines().find(|line| line.contains(&format!("public.{name}_{way} ")));
            assert!(line.is_some_and(|line| line.contains("stopped")), "{name}_{way}: {verify:?}");
        }
    }
    drop(daemon);
    db.cleanup().await;
}

/// Each is named with its column, in `_tables` and, if there is one, in the log; the value is in neither.
async fn assert_stopped(db: &TestDb, log: &str) {
    for (name, _, literal) in UNHELD {
        for way in ["copied", "streamed"] {
            let table = format!("{name}_{way}");
            let reason = db
                .ch
                .query(&format!("SELECT reason FROM _tables FINAL WHERE table_name = '{table}' AND status = 'stopped'"))
                .await;
            assert!(reason.contains("odd") && reason.contains("can not hold"), "{table}: {reason:?}");
            let lines: Vec<_> = log
                .lines()
                .filter(|line| line.contains(&format!("public.{table}\"")) && line.contains("ERROR"))
                .collect();
            assert!(log.is_empty() || lines.len() == 1 && lines[0].contains("odd"), "{table}: {lines:?}");
            let canary = literal.trim_matches('\'').split(' ').next().unwrap_or_default();
            for text in lines.iter().copied().chain([reason.as_str()]) {
                // That it is NaN or infinity is no value of a row, but what is wrong with it.
                assert!(["nan", "endless"].contains(&name) || !text.contains(canary), "{table}: {text}");
            }
        }
    }
}
