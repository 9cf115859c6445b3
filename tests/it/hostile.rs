//! Roles and databases with hostile defaults change no value: in the copy, in the stream, in what is looked up for
//! values that the stream leaves out, and in `verify`.
//!
//! The oracle has a session of its own, as another role, and pins what it relies on.

use std::sync::Arc;

use crate::support::{
    ClickHouse, Daemon, Pg, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal, settled, stopped,
    walhouse,
};

/// Set for the role in the test's database, which wins over all else.
const OF_ROLE_IN_DATABASE: &[&str] = &[
    "datestyle = 'German'",
    "intervalstyle = 'sql_standard'",
    "bytea_output = 'escape'",
    "timezone = 'Asia/Kolkata'",
    "extra_float_digits = -15",
    "client_encoding = 'LATIN1'",
    "search_path = shadow, pg_catalog, public",
];

/// Set for the role: how transactions are, and what cuts a session short.
const OF_ROLE: &[&str] = &[
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "statement_timeout = '1ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "idle_session_timeout = '300ms'",
    "client_min_messages = 'debug1'",
];

/// Set for the database: how statements are read, and what is printed in other ways.
const OF_DATABASE: &[&str] = &[
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "transform_null_equals = on",
    "row_security = off",
    "lc_monetary = 'C.UTF-8'",
    "lc_numeric = 'C.UTF-8'",
    "xmlbinary = 'hex'",
    "enable_seqscan = off",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'America/New_York'",
];

/// What a session with the role's search_path would find before the catalog's own.
const SHADOW: &str = "CREATE SCHEMA shadow;
    CREATE TABLE shadow.pg_class (oid oid, relname name); CREATE TABLE shadow.pg_publication (oid oid, pubname name);
    CREATE TABLE shadow.pg_attribute (attrelid oid); CREATE TABLE shadow.pg_locks (pid int);
    CREATE TABLE shadow.pg_settings (name text, setting text); CREATE DOMAIN shadow.int4 AS pg_catalog.int8;
    CREATE TYPE shadow.text AS ENUM ('no text');
    CREATE FUNCTION shadow.current_setting(varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'shadow'::pg_catalog.text $$;
    CREATE FUNCTION shadow.set_config(varchar, varchar, boolean) RETURNS pg_catalog.text LANGUAGE sql
        AS $$ SELECT 'shadow'::pg_catalog.text $$;
    CREATE FUNCTION shadow.md5(varchar) RETURNS pg_catalog.text LANGUAGE sql AS $$ SELECT 'shadow'::pg_catalog.text $$;
    CREATE FUNCTION shadow.concat(pg_catalog.text) RETURNS pg_catalog.text LANGUAGE sql AS $$ SELECT 'shadow'::pg_catalog.text $$;
    CREATE FUNCTION shadow.octet_length(pg_catalog.text) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
    CREATE FUNCTION shadow.pg_relation_filenode(oid) RETURNS oid LANGUAGE sql AS $$ SELECT 1::oid $$;
    CREATE FUNCTION shadow.pg_current_wal_insert_lsn() RETURNS pg_lsn LANGUAGE sql AS $$ SELECT '0/1'::pg_lsn $$;
    CREATE FUNCTION shadow.never(pg_catalog.text, pg_catalog.text) RETURNS bool LANGUAGE sql AS $$ SELECT false $$;
    CREATE FUNCTION shadow.never(pg_catalog.int4, pg_catalog.int4) RETURNS bool LANGUAGE sql AS $$ SELECT false $$;
    CREATE OPERATOR shadow.= (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = shadow.never);
    CREATE OPERATOR shadow.= (LEFTARG = pg_catalog.int4, RIGHTARG = pg_catalog.int4, FUNCTION = shadow.never);";

/// Every type whose text depends on a setting, or could.
const TABLE: &str = "CREATE TABLE public.shop (id int PRIMARY KEY);
    CREATE TYPE public.entry AS (at timestamptz, small float4, bytes bytea);
    CREATE TABLE public.item (code pg_catalog.text, at timestamptz, id int, n int NOT NULL DEFAULT 0, plain timestamp, day date,
        span interval, price money, small float4, large float8, raw bytea, doc xml, during tstzrange, spot point, kind regclass,
        total numeric, ok bool, entry public.entry, name pg_catalog.text, big_name pg_catalog.text, big_raw bytea,
        big_log public.entry, PRIMARY KEY (code, at, id));
    ALTER TABLE public.item ALTER big_name SET STORAGE EXTERNAL, ALTER big_raw SET STORAGE EXTERNAL,
        ALTER big_log SET STORAGE EXTERNAL;";

fn insert(id: u32) -> String {
    format!(
        r"INSERT INTO public.item (code, at, id, plain, day, span, price, small, large, raw, doc, during, spot, kind, total, ok,
                entry, name, big_name, big_raw, big_log)
        SELECT E'it''s \\{id}', '2024-02-03 04:05:06.789012+00'::timestamptz + {id} * interval '1 hour', {id},
            '1999-12-31 23:59:59.999999', '2024-03-04', '1 mon -2 days 03:04:05.678', 12345.67::numeric::money, 0.1::float4 * {id},
            1::float8 / (2 + {id}), '\x00ff5c27', '<a b=''1''>&lt;</a>', tstzrange('2024-01-02 03:04:05+00', NULL),
            point(0.1, 1.0 / 3), 'public.shop', 1.0 / 3, true, ROW('2024-05-06 07:08:09+00', 0.1, '\x5c00')::public.entry,
            E'äß\\n\'{id}\'', repeat('é\', 3000), decode(repeat('5c00ff27', 2000), 'hex'),
            ROW('2024-07-08 09:10:11+00', 0.3, decode(repeat('5c00', 3000), 'hex'))::public.entry;"
    )
}

/// A server of its own, since roles and their settings belong to all databases; `encoding` is the database's.
async fn database(label: &str, version: &'static str, encoding: &str) -> TestDb {
    let postgres = Postgres::private(PostgresOptions { version, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), label).await;
    let admin = Pg::new(Arc::clone(&db.postgres), "postgres");
    admin.execute(&format!("DROP DATABASE {}", db.name)).await;
    admin.execute(&format!("CREATE DATABASE {} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'", db.name)).await;
    db
}

/// Starts walhouse as a role that all of the defaults hold for.
async fn daemon(db: &TestDb) -> Daemon {
    let name = &db.name;
    db.pg.execute("CREATE ROLE hostile SUPERUSER REPLICATION LOGIN").await;
    for (of, settings) in [
        (format!("ROLE hostile IN DATABASE {name}"), OF_ROLE_IN_DATABASE),
        ("ROLE hostile".to_owned(), OF_ROLE),
        (format!("DATABASE {name}"), OF_DATABASE),
    ] {
        let all: Vec<_> = settings.iter().map(|setting| format!("ALTER {of} SET {setting}")).collect();
        db.pg.execute(&all.join("; ")).await;
    }
    Daemon::spawn(db, &format!("[source]\nurl = \"{}\"\n", db.pg.url_as("hostile")))
}

async fn verified(daemon: &Daemon) {
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
}

async fn change_no_value(db: TestDb) {
    let all: String = (1..50).map(insert).collect();
    db.pg.execute(&format!("{SHADOW} {TABLE} {all}")).await;
    // A regclass is a name as this session would have to write it: the whole name, as walhouse takes it.
    db.pg.execute("SET search_path = pg_catalog").await;
    let mut daemon = daemon(&db).await;
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["item"]).await;
    // What differs from what was copied by the session's settings would differ in the stream too.
    let all: String = (50..100).map(insert).collect();
    db.pg.execute(&format!("{all} UPDATE public.item SET raw = raw || raw, big_name = NULL WHERE id % 7 = 0")).await;
    assert_settled_equal(&db, &["item"]).await;
    // Values that the stream leaves out: from ClickHouse, and where that has none, from PostgreSQL.
    db.ch.query("DELETE FROM item WHERE id % 3 = 0").await;
    db.pg
        .execute(
            "UPDATE public.item SET n = 1; UPDATE public.item SET code = code || '!', at = at + interval '1 s' WHERE id % 2 = 0;
            DELETE FROM public.item WHERE id % 5 = 0",
        )
        .await;
    assert_settled_equal(&db, &["item"]).await;
    assert!(daemon.metric("walhouse_toast_lookups_total", "postgres").await > 0.0, "PostgreSQL was not asked");
    verified(&daemon).await;
    // A table that comes later is added to the publication by the same sessions. Its transaction takes its time.
    db.pg
        .execute(
            "CREATE TABLE public.later (id int PRIMARY KEY, v text);
            INSERT INTO public.later SELECT i, 'row ' || i FROM generate_series(1, 1000) i",
        )
        .await;
    assert_equal(&db, "later").await;
    db.pg
        .execute("INSERT INTO public.later SELECT i, repeat('row ' || i, 30) FROM generate_series(1001, 30000) i")
        .await;
    assert_settled_equal(&db, &["later"]).await;
    assert_eq!(daemon.streams(), 1, "the session was cut short:\n{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_defaults_change_no_value() {
    change_no_value(database("hostile", "15", "UTF8").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_defaults_change_no_value_in_a_database_in_latin_1() {
    let db = database("hostile_latin1", "17", "LATIN1").await;
    // In force from 17 on, also while a transaction is decoded.
    db.pg.execute(&format!("ALTER DATABASE {} SET transaction_timeout = '50ms'", db.name)).await;
    change_no_value(db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_differs_whatever_the_defaults() {
    let db = database("hostile_verify", "15", "LATIN1").await;
    let all: String = (1..20).map(insert).collect();
    db.pg.execute(&format!("{SHADOW} {TABLE} {all}")).await;
    let mut daemon = daemon(&db).await;
    daemon.wait_ready().await;
    db.ch.query("INSERT INTO item SELECT * REPLACE (_version + 1 AS _version, concat(name, '?') AS name) FROM item FINAL WHERE id = 7").await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    assert!(verify.stdout.contains("item"), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}

/// The oracle's own sessions can not read what is no UTF-8, so bytes are compared in hex.
async fn bytes_of_both(db: &TestDb) -> (String, String) {
    let ours = "SELECT string_agg(id || ':' || encode(convert_to(v, 'SQL_ASCII'), 'hex') || ':' || \
                md5(convert_to(big, 'SQL_ASCII')), ',' ORDER BY id) FROM item";
    let theirs =
        "SELECT arrayStringConcat(groupArray(concat(toString(id), ':', lower(hex(v)), ':', lower(hex(MD5(big))))), ',')
                  FROM (SELECT * FROM item FINAL WHERE _is_deleted = 0 ORDER BY id)";
    (db.pg.value(ours).await, db.ch.query(theirs).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_an_encoding_is_copied_byte_by_byte() {
    let db = database("hostile_ascii", "15", "SQL_ASCII").await;
    let row =
        |id: u32, bytes: &str| format!("INSERT INTO item VALUES ({id}, 0, E'{bytes}', repeat(E'{bytes}', 3000));");
    // One in Latin-1, one in UTF-8, one that is neither.
    let rows = |from: u32| {
        [r"caf\xe9", "café", r"\xff\xfe\x80\\\n\t"]
            .iter()
            .zip(from..)
            .map(|(bytes, id)| row(id, bytes))
            .collect::<String>()
    };
    db.pg
        .execute(&format!(
            "CREATE TABLE item (id int PRIMARY KEY, n int, v text, big text);
            ALTER TABLE item ALTER big SET STORAGE EXTERNAL; {}",
            rows(1)
        ))
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute(&rows(11)).await;
    db.pg.execute("UPDATE item SET n = 1; UPDATE item SET id = -id WHERE id > 10").await;
    settled(&db).await;
    let (ours, theirs) = bytes_of_both(&db).await;
    assert_eq!(ours, theirs);
    verified(&daemon).await;
    // What is no UTF-8 can not be asked for: the table stops, by name, and nothing is changed or left out.
    db.pg.execute("CREATE TABLE fine (id int PRIMARY KEY)").await;
    db.ch.query("DELETE FROM item WHERE id = 1").await;
    db.pg.execute("UPDATE item SET n = 2 WHERE id = 1; INSERT INTO fine VALUES (1)").await;
    settled(&db).await;
    let reason = stopped(&db).await.expect("ClickHouse answers");
    assert!(reason.starts_with("item\ta value") && reason.contains("no UTF-8"), "{reason}");
    assert_equal(&db, "fine").await;
    drop(daemon);
    db.cleanup().await;
}
