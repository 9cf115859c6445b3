//! The comparison behind `walhouse verify`, against both servers. Each side is filled by SQL of its own.

mod arrays;
mod columns;
mod command;
mod named;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::future::BoxFuture;
use walhouse::{
    event::Lsn,
    quote,
    verify::{CheckpointError, ColumnPair, Difference, Error, Options, Rendering, TablePair, TableReport, Verifier},
};

use crate::support::{Pg, TestDb};
use columns::COLUMNS;

/// A database of its own on both servers.
struct Sides {
    db: TestDb,
    postgres: tokio_postgres::Client,
    clickhouse: clickhouse::Client,
}

impl Sides {
    async fn new(encoding: &str) -> Self {
        let db = TestDb::new("verify").await;
        let (admin, name) = (Pg::new(db.postgres.clone(), "postgres"), &db.name);
        admin.execute(&format!("DROP DATABASE {name}")).await;
        admin.execute(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")).await;
        // What a role or a database may have set must not matter.
        for setting in ["datestyle = 'SQL, DMY'", "timezone = 'Asia/Kolkata'", "extra_float_digits = -5"] {
            admin.execute(&format!("ALTER DATABASE {name} SET {setting}")).await;
        }
        db.ch.create_database().await;
        let postgres = db.pg.connect().await.expect("a fresh database takes sessions");
        let url = format!("http://127.0.0.1:{}", db.clickhouse.port());
        let clickhouse = clickhouse::Client::default().with_url(url).with_database(name);
        Self { db, postgres, clickhouse }
    }

    async fn source(&self, sql: &str) {
        self.postgres.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn target(&self, sql: &str) {
        self.db.ch.query(sql).await;
    }

    async fn verify(&mut self, table: &TablePair) -> TableReport {
        self.try_verify(table, options(), &arrived).await.expect("the table is compared")
    }

    async fn try_verify<F, Fut>(&mut self, table: &TablePair, options: Options, at: &F) -> Result<TableReport, Error>
    where
        F: Fn() -> Fut + Sync,
        Fut: Future<Output = Result<Lsn, CheckpointError>> + Send,
    {
        let (postgres, clickhouse) = (&mut self.postgres, &self.clickhouse);
        let progress = |line: &str| println!("{line}");
        let mut verifier = Verifier { postgres, clickhouse, checkpoint: at, options, progress: &progress };
        // Boxed as what can move between threads.
        let verify: BoxFuture<'_, _> = Box::pin(verifier.verify(table));
        verify.await
    }

    async fn cleanup(self) {
        self.db.cleanup().await;
    }
}

fn options() -> Options {
    Options { pause: Duration::from_millis(20), ..Options::default() }
}

async fn arrived() -> Result<Lsn, CheckpointError> {
    Ok(Lsn(u64::MAX))
}

fn pair(name: &str, key: &[&str], columns: &[(&str, Rendering)]) -> TablePair {
    TablePair {
        schema: "public".into(),
        name: name.into(),
        target: name.into(),
        key: key.iter().map(|key| key.to_string()).collect(),
        log: None,
        columns: columns.iter().map(|(name, kind)| ColumnPair::new(*name, *kind)).collect(),
        filter: None,
    }
}

const TAIL: &str = "_version UInt128, _is_deleted UInt8) ENGINE = ReplacingMergeTree(_version, _is_deleted) ORDER BY";

/// The names and kinds of what was found, sorted.
fn found(report: &TableReport) -> Vec<(String, Difference)> {
    let mut found: Vec<_> = report.differing.iter().map(|d| (d.key.clone(), d.difference)).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

const EVERY: i64 = 40;

/// Fills a table of every type; every fifth row or so has a NULL somewhere.
async fn every_type(sides: &Sides) -> TablePair {
    sides.source("CREATE TYPE mood AS ENUM ('sad', 'ok', 'so ''so'''); CREATE DOMAIN short AS varchar(9)").await;
    let (mut source, mut target) = (String::from("id int4 PRIMARY KEY"), String::from("id Int32"));
    for column in COLUMNS {
        source += &format!(", {} {}", quote::postgres(column.name), column.source);
        let kind = match column.target {
            "LowCardinality(String)" => "LowCardinality(Nullable(String))".to_owned(),
            plain => format!("Nullable({plain})"),
        };
        target += &format!(", {} {kind}", quote::clickhouse(column.name));
    }
    sides.source(&format!("CREATE TABLE every ({source})")).await;
    sides.target(&format!("CREATE TABLE every ({target}, {TAIL} id")).await;
    let (mut source, mut target) = (Vec::new(), Vec::new());
    for id in 0..EVERY {
        let (mut theirs, mut ours) = (id.to_string(), id.to_string());
        for (i, column) in COLUMNS.iter().enumerate() {
            let (a, b) = match (id as usize + i) % (column.values.len() + 1) {
                n if n == column.values.len() => ("NULL", "NULL"),
                n => column.values[n],
            };
            theirs += &format!(", {a}");
            ours += &format!(", {b}");
        }
        source.push(format!("({theirs})"));
        target.push(format!("({ours}, 7, 0)"));
    }
    sides.source(&format!("INSERT INTO every VALUES {}", source.join(", "))).await;
    sides.target(&format!("INSERT INTO every VALUES {}", target.join(", "))).await;
    let mut columns = vec![("id", Rendering::Integer)];
    columns.extend(COLUMNS.iter().map(|column| (column.name, column.kind)));
    pair("every", &["id"], &columns)
}

/// The first row in which the column has a value.
fn row_with(index: usize) -> i64 {
    let values = COLUMNS[index].values.len();
    (0..EVERY).find(|id| (*id as usize + index).is_multiple_of(values + 1)).expect("every value is in some row")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_equal_and_a_change_of_any_is_named() {
    let mut sides = Sides::new("UTF8").await;
    let table = every_type(&sides).await;
    let report = sides.verify(&table).await;
    assert!(report.checksum_equal && report.is_equal(), "{report:?}");
    assert_eq!((report.rows_postgres, report.rows_clickhouse, report.rounds), (40, 40, 1));

    for (version, (i, column)) in COLUMNS.iter().enumerate().enumerate() {
        for value in [column.other, "NULL"] {
            let (id, name) = (row_with(i), quote::clickhouse(column.name));
            sides.target("CREATE TABLE before AS every ENGINE = Memory").await;
            sides.target(&format!("INSERT INTO before SELECT * FROM every FINAL WHERE id = {id}")).await;
            let base = 10 + version * 10 + if value == "NULL" { 5 } else { 0 };
            sides
                .target(&format!(
                    "INSERT INTO every SELECT * REPLACE (CAST({value}, toTypeName({name})) AS {name}, toUInt128({base}) AS _version) FROM before"
                ))
                .await;
            let with_values = Options { show_values: true, ..options() };
            let report = sides.try_verify(&table, with_values, &arrived).await.expect("the table is compared");
            assert_eq!(found(&report), [(format!("id={id}"), Difference::Different)], "{} {value}", column.name);
            let named = &report.differing[0];
            assert_eq!(named.columns, [column.name], "{value}");
            let [shown] = &named.values[..] else { panic!("{named:?}") };
            assert!(shown.column == column.name && shown.postgres.is_some(), "{shown:?}");
            assert!(shown.clickhouse != shown.postgres && shown.clickhouse.is_none() == (value == "NULL"), "{shown:?}");
            assert!(!report.checksum_equal && report.differing_total == 1 && report.rounds == 3);
            sides
                .target(&format!(
                    "INSERT INTO every SELECT * REPLACE (toUInt128({}) AS _version) FROM before",
                    base + 1
                ))
                .await;
            sides.target("DROP TABLE before SYNC").await;
        }
    }
    assert!(sides.verify(&table).await.is_equal());
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_json_only_null_is_compared_and_the_report_says_so() {
    let mut sides = Sides::new("UTF8").await;
    sides
        .source("CREATE TABLE j (id int PRIMARY KEY, j jsonb); INSERT INTO j VALUES (1, '{\"a\":1}'), (2, NULL)")
        .await;
    sides.target(&format!("CREATE TABLE j (id Int32, j Nullable(JSON), {TAIL} id")).await;
    sides.target("INSERT INTO j VALUES (1, '{\"b\":2}', 1, 0), (2, NULL, 1, 0)").await;
    let table = pair("j", &["id"], &[("id", Rendering::Integer), ("j", Rendering::Presence)]);
    let report = sides.verify(&table).await;
    assert!(report.checksum_equal && report.presence_only == ["j"], "{report:?}");
    assert!(walhouse::verify::render(&[report]).contains("since JSON keeps no text: j"));
    sides.target("INSERT INTO j VALUES (1, NULL, 2, 0)").await;
    assert_eq!(found(&sides.verify(&table).await), [("id=1".to_owned(), Difference::Different)]);
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_extra_and_deleted_rows_are_told_apart_and_a_few_are_named() {
    let mut sides = Sides::new("UTF8").await;
    sides.source("CREATE TABLE t (a int8, b text, v text, PRIMARY KEY (a, b))").await;
    sides.target(&format!("CREATE TABLE t (a Int64, b String, v Nullable(String), {TAIL} (b, a)")).await;
    sides.source("INSERT INTO t SELECT i, i || ' it''s \\ ? 😀', md5(i::text) FROM generate_series(1, 3000) i").await;
    sides.target("INSERT INTO t SELECT number, concat(toString(number), ' it\\'s \\\\ ? 😀'), lower(hex(MD5(toString(number)))), 1, 0 FROM numbers(1, 3000)").await;
    let table = pair("t", &["a", "b"], &[("v", Rendering::Text), ("b", Rendering::Text), ("a", Rendering::Integer)]);
    assert!(sides.verify(&table).await.checksum_equal);

    sides
        .target("INSERT INTO t SELECT * REPLACE (toUInt128(2) AS _version, 1 AS _is_deleted) FROM t WHERE a = 7")
        .await;
    sides.target("INSERT INTO t VALUES (7, 'extra', NULL, 1, 0)").await;
    sides.source("UPDATE t SET v = NULL WHERE a = 9").await;
    let report = sides.verify(&table).await;
    assert_eq!(
        found(&report),
        [
            ("a=7, b=7 it's \\ ? 😀".to_owned(), Difference::Missing),
            ("a=7, b=extra".to_owned(), Difference::Extra),
            ("a=9, b=9 it's \\ ? 😀".to_owned(), Difference::Different),
        ]
    );
    assert_eq!((report.rows_postgres, report.rows_clickhouse), (3000, 3000));

    sides.target("TRUNCATE TABLE t").await;
    let report = sides.verify(&table).await;
    assert_eq!((report.differing.len(), report.differing_total, report.rows_clickhouse), (100, 3000, 0));
    let few = Options { max_candidates: 1000, ..options() };
    let report = sides.try_verify(&table, few, &arrived).await.unwrap();
    assert_eq!((report.differing_total, report.unexamined), (1000, 2000));
    assert!(!report.is_equal());
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_find_their_rows_again() {
    use Rendering::*;
    let mut sides = Sides::new("UTF8").await;
    sides.source("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE EXTENSION citext; CREATE EXTENSION ltree").await;
    for (name, source, target, kind, rows, shown) in [
        ("k_bool", "bool", "Bool", Bool, [("true", "true"), ("false", "false")], "1"),
        ("k_int", "int4", "Int32", Integer, [("-5", "-5"), ("7", "7")], "-5"),
        ("k_f8", "float8", "Float64", Float8, [("'-0'", "0."), ("'NaN'", "nan")], "-0"),
        ("k_f4", "float4", "Float32", Float4, [("0.1", "0.1"), ("1e30", "1e30")], "0.1"),
        ("k_dec", "numeric(9,3)", "Decimal(9, 3)", Decimal, [("1.50", "1.5"), ("-2", "-2")], "1.5"),
        ("k_time", "time", "Time64(6)", Time, [("'24:00:00'", "'24:00:00'"), ("'00:00:01'", "'00:00:01'")], "24:00:00"),
        ("k_ip", "inet", "IPv4", Ipv4, [("'10.0.0.1'", "'10.0.0.1'"), ("'1.2.3.4'", "'1.2.3.4'")], "0a000001"),
        ("k_text", "text", "String", Text, [("E'a''\\\\'", "'a\\'\\\\'"), ("''", "''")], "a'\\"),
        ("k_char", "char(4)", "String", Text, [("'a'", "'a   '"), ("'b'", "'b   '")], "a   "),
        ("k_bytea", "bytea", "String", Bytes, [("'\\x00ff'", "unhex('00ff')"), ("'\\x'", "''")], "\\x00ff"),
        (
            "k_uuid",
            "uuid",
            "UUID",
            Uuid,
            [
                ("'6A0B0F9A-0000-4000-8000-00000000000F'", "'6a0b0f9a-0000-4000-8000-00000000000f'"),
                ("'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000000'"),
            ],
            "6a0b0f9a-0000-4000-8000-00000000000f",
        ),
        (
            "k_date",
            "date",
            "Date32",
            Date,
            [("'1950-01-02'", "'1950-01-02'"), ("'2024-01-01'", "'2024-01-01'")],
            "1950-01-02",
        ),
        (
            "k_ts",
            "timestamp",
            "DateTime64(6, 'UTC')",
            Timestamp { digits: 6 },
            [("'1950-01-02 03:04:05.06'", "'1950-01-02 03:04:05.06'"), ("'2024-01-01'", "'2024-01-01 00:00:00'")],
            "1950-01-02 03:04:05.06",
        ),
        (
            "k_tz",
            "timestamptz",
            "DateTime64(6, 'UTC')",
            TimestampTz { digits: 6 },
            [("'1950-01-02 03:04:05.06+01'", "'1950-01-02 02:04:05.06'"), ("'2024-01-01Z'", "'2024-01-01 00:00:00'")],
            "1950-01-02 02:04:05.06",
        ),
        // Their operators are not in the search path.
        ("k_citext", "citext", "String", Text, [("'Ab'", "'Ab'"), ("'c'", "'c'")], "Ab"),
        ("k_ltree", "ltree", "String", Text, [("'a.b'", "'a.b'"), ("'c'", "'c'")], "a.b"),
        // PostgreSQL can not even read a label that it does not know: its hash finds it.
        ("k_enum", "mood", "LowCardinality(String)", Text, [("'sad'", "'sad'"), ("'ok'", "'ok'")], "sad"),
    ] {
        sides
            .source(&format!(
                "CREATE TABLE {name} (k {source} PRIMARY KEY, v int4); INSERT INTO {name} VALUES ({}, 1), ({}, 2)",
                rows[0].0, rows[1].0
            ))
            .await;
        sides.target(&format!("CREATE TABLE {name} (k {target}, v Nullable(Int32), {TAIL} k SETTINGS allow_suspicious_low_cardinality_types = 1")).await;
        sides.target(&format!("INSERT INTO {name} VALUES ({}, 1, 1, 0), ({}, 2, 1, 0)", rows[0].1, rows[1].1)).await;
        let table = pair(name, &["k"], &[("k", kind), ("v", Integer)]);
        assert!(sides.verify(&table).await.checksum_equal, "{name}");
        sides.source(&format!("UPDATE {name} SET v = 9 WHERE v = 1")).await;
        let mut expected = vec![(format!("k={shown}"), Difference::Different)];
        if name == "k_enum" {
            sides.target("INSERT INTO k_enum VALUES ('gone', 1, 1, 0)").await;
            expected.insert(0, ("k=gone".to_owned(), Difference::Extra));
        }
        if name == "k_text" {
            sides.target("INSERT INTO k_text VALUES (unhex('ff'), 1, 1, 0)").await;
            expected.push(("k=\u{fffd}".to_owned(), Difference::Extra));
        }
        assert_eq!(found(&sides.verify(&table).await), expected, "{name}");
    }
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_comes_late_is_no_difference_and_one_in_motion_is_said_to_change() {
    let mut sides = Sides::new("UTF8").await;
    sides.source("CREATE TABLE t (id int8 PRIMARY KEY, v int8); INSERT INTO t VALUES (1, 1), (2, 1)").await;
    sides.target(&format!("CREATE TABLE t (id Int64, v Nullable(Int64), {TAIL} id")).await;
    sides.target("INSERT INTO t VALUES (1, 1, 1, 0)").await;
    let table = pair("t", &["id"], &[("id", Rendering::Integer), ("v", Rendering::Integer)]);
    let looks = AtomicU32::new(0);
    let clickhouse = sides.clickhouse.clone();
    let late = || {
        let (look, clickhouse) = (looks.fetch_add(1, Ordering::Relaxed), clickhouse.clone());
        async move {
            if look == 3 {
                clickhouse.query_raw("INSERT INTO t VALUES (2, 1, 1, 0)").execute().await?;
            }
            Ok(Lsn(u64::MAX))
        }
    };
    let report = sides.try_verify(&table, options(), &late).await.unwrap();
    assert!(report.is_equal() && !report.checksum_equal, "{report:?}");
    assert_eq!(report.rounds, 3);

    let writer = sides.db.pg.connect().await.unwrap();
    sides.source("UPDATE t SET v = 2 WHERE id = 1").await;
    let writing = || {
        let writing = writer.batch_execute("UPDATE t SET v = v + 1 WHERE id = 1");
        async move {
            writing.await?;
            Ok(Lsn(u64::MAX))
        }
    };
    let report = sides.try_verify(&table, options(), &writing).await.unwrap();
    assert_eq!((report.still_changing, report.differing_total, report.rounds), (1, 0, 10));
    assert!(!report.is_equal());
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_is_not_reached_is_said_with_both_positions() {
    let mut sides = Sides::new("UTF8").await;
    sides.source("CREATE TABLE t (id int8 PRIMARY KEY)").await;
    let table = pair("t", &["id"], &[("id", Rendering::Integer)]);
    let short = Options { fence_timeout: Duration::from_millis(150), ..options() };
    let error = sides.try_verify(&table, short, &|| async { Ok(Lsn(0x10)) }).await.unwrap_err();
    let Error::Behind { at, needs, .. } = &error else { panic!("{error:?}") };
    assert!(*at == Lsn(0x10) && *needs > Lsn(0x10));
    assert!(
        error.to_string().starts_with(&format!("ClickHouse is at 0/10 of the WAL, and to compare it needs {needs};"))
    );
    // The connection is free again; a table that is absent on a side is named.
    let error = sides.try_verify(&table, options(), &arrived).await.unwrap_err();
    assert!(matches!(error, Error::ClickHouse { .. }), "{error:?}");
    let error = sides.try_verify(&pair("nope", &["id"], &[("id", Rendering::Integer)]), options(), &arrived).await;
    assert_eq!(error.unwrap_err().to_string(), "public.nope: PostgreSQL has no such table");
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_children_and_row_filters_are_read_as_they_are_published() {
    let mut sides = Sides::new("UTF8").await;
    sides
        .source(
            "CREATE TABLE root (id int8 PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10); INSERT INTO root VALUES (1), (2);
        CREATE TABLE parent (id int8 PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
        INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2)",
        )
        .await;
    for (name, rows) in [("root", "(1, 1, 0), (2, 1, 0)"), ("parent", "(1, 1, 0)")] {
        sides.target(&format!("CREATE TABLE {name} (id Int64, {TAIL} id")).await;
        sides.target(&format!("INSERT INTO {name} VALUES {rows}")).await;
        assert!(sides.verify(&pair(name, &["id"], &[("id", Rendering::Integer)])).await.checksum_equal, "{name}");
    }
    let filtered =
        TablePair { filter: Some("(id > 1)".into()), ..pair("root", &["id"], &[("id", Rendering::Integer)]) };
    assert_eq!(found(&sides.verify(&filtered).await), [("id=1".to_owned(), Difference::Extra)]);
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_another_encoding_is_compared_as_utf8() {
    let mut sides = Sides::new("LATIN1").await;
    sides
        .source("CREATE TABLE \"té\" (k text PRIMARY KEY, v text); INSERT INTO \"té\" VALUES ('é', 'ßü'), ('a', 'b')")
        .await;
    sides.target(&format!("CREATE TABLE `té` (k String, v Nullable(String), {TAIL} k")).await;
    sides.target("INSERT INTO `té` VALUES ('é', 'ßü', 1, 0), ('a', 'b', 1, 0)").await;
    let table = pair("té", &["k"], &[("k", Rendering::Text), ("v", Rendering::Text)]);
    assert!(sides.verify(&table).await.checksum_equal);
    sides.target("INSERT INTO `té` VALUES ('é', 'x', 2, 0)").await;
    assert_eq!(found(&sides.verify(&table).await), [("k=é".to_owned(), Difference::Different)]);
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wide_table_is_compared_whole() {
    let mut sides = Sides::new("UTF8").await;
    let columns: Vec<_> = (0..600).map(|i| format!("c{i}")).collect();
    let typed = |kind: &str| columns.iter().map(|c| format!("{c} {kind}")).collect::<Vec<_>>().join(", ");
    sides
        .source(&format!(
            "CREATE TABLE wide ({}, PRIMARY KEY (c599)); INSERT INTO wide SELECT {} FROM generate_series(1, 10) i",
            typed("int4"),
            vec!["i"; 600].join(", ")
        ))
        .await;
    sides.target(&format!("CREATE TABLE wide ({}, {TAIL} c599", typed("Int32"))).await;
    sides
        .target(&format!("INSERT INTO wide SELECT {}, 1, 0 FROM numbers(1, 10)", vec!["number"; 600].join(", ")))
        .await;
    let table = pair("wide", &["c599"], &columns.iter().map(|c| (c.as_str(), Rendering::Integer)).collect::<Vec<_>>());
    let report = sides.verify(&table).await;
    assert!(report.checksum_equal, "{report:?}");
    sides.target("INSERT INTO wide SELECT * REPLACE (-1 AS c234, 2 AS _version) FROM wide WHERE c599 = 3").await;
    let asked = Options { show_values: true, ..options() };
    let report = sides.try_verify(&table, asked, &arrived).await.unwrap();
    assert_eq!(found(&report), [("c599=3".to_owned(), Difference::Different)]);
    assert_eq!(report.differing[0].columns, ["c234"]);
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_of_a_hundred_thousand_random_rows_are_equal() {
    let mut sides = Sides::new("UTF8").await;
    let rows: u64 = std::env::var("WALHOUSE_TEST_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    sides.source(&format!("CREATE TABLE big (id int8 PRIMARY KEY, t text, f float8, n numeric(12,2), at timestamptz, u uuid, b bytea, o bool);
        INSERT INTO big SELECT i, md5(i::text) || repeat('é', (i % 50)::int), (i * 7919 % 1000003) / 7.0::float8, ((i * 31) % 1000000007) / 100.0,
        '2000-01-01Z'::timestamptz + i * '1234567 us'::interval, md5(i::text)::uuid, decode(md5(i::text), 'hex'), i % 3 = 0 FROM generate_series(1::int8, {rows}) i")).await;
    sides.target(&format!("CREATE TABLE big (id Int64, t Nullable(String), f Nullable(Float64), n Nullable(Decimal(12, 2)), at Nullable(DateTime64(6, 'UTC')), u Nullable(UUID), b Nullable(String), o Nullable(Bool), {TAIL} id")).await;
    sides.target(&format!("INSERT INTO big SELECT number AS i, concat(lower(hex(MD5(toString(i)))), repeat('é', i % 50)), (i * 7919 % 1000003) / 7, toDecimal64(concat(toString(intDiv(i * 31 % 1000000007, 100)), '.', leftPad(toString(i * 31 % 1000000007 % 100), 2, '0')), 2),
        fromUnixTimestamp64Micro(toInt64(946684800000000 + i * 1234567), 'UTC'), toUUID(lower(hex(MD5(toString(i))))), unhex(hex(MD5(toString(i)))), i % 3 = 0, 1, 0 FROM numbers(1, {rows})")).await;
    let table = pair(
        "big",
        &["id"],
        &[
            ("id", Rendering::Integer),
            ("t", Rendering::Text),
            ("f", Rendering::Float8),
            ("n", Rendering::Decimal),
            ("at", Rendering::TimestampTz { digits: 6 }),
            ("u", Rendering::Uuid),
            ("b", Rendering::Bytes),
            ("o", Rendering::Bool),
        ],
    );
    let report = sides.verify(&table).await;
    assert!(report.checksum_equal && report.rows_clickhouse == rows, "{report:?}");
    println!("{rows} rows in {:.2} s", report.seconds);
    sides
        .target("INSERT INTO big SELECT * REPLACE (toUInt128(2) AS _version, 'x' AS t) FROM big WHERE id % 10000 = 7")
        .await;
    let report = sides.verify(&table).await;
    assert_eq!(report.differing_total, rows / 10_000);
    println!("{} differing of {rows} rows in {:.2} s", report.differing_total, report.seconds);
    sides.cleanup().await;
}
