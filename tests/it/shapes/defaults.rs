//! Columns that are added with a default: older rows read it as PostgreSQL has it, whatever its text looks like.

use std::collections::BTreeMap;

use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal};

/// Types and constants that the target's column has as its own default.
const ADDED: [(&str, &str); 37] = [
    ("text", r#"E'it''s\\ "q" \t\r\n {id: String} {{ ? ?? $1 %s ; -- /* ` é 😀 \u2028'"#),
    ("text", "''"),
    ("text", "'NULL'"),
    ("text", r"'\N'"),
    ("text NOT NULL", r"'\'"),
    ("varchar(9)", r"'\\''\\'"),
    ("char(5)", "'a'''"),
    ("name", "'\"n\"'"),
    ("\"char\"", "''''"),
    ("bytea", r"'\x'"),
    ("bytea", r"'\x005c2722ff7b7d0a'"),
    ("box", "'((1,2),(3.5,-4))'"),
    ("polygon", "'((0,0),(1,1),(2,0))'"),
    ("json", r#"'{"a" :  "it''s \" \\ \u00e9",  "a": [1, null]}'"#),
    ("jsonb", r#"'{"b": "it''s \" \\ \u00e9 \n", "a": [1, null, {"x": 1e3}]}'"#),
    ("interval", "'-1 year 2 mons -3 days 04:05:06.000007'"),
    ("timestamptz", "'2024-02-29 12:00:00.123456+05:30'"),
    ("timestamptz", "'1950-01-01 00:00:00-11'"),
    ("timestamp", "'1969-12-31 23:59:59.999999'"),
    ("date", "'2299-12-31'"),
    ("numeric", "'NaN'"),
    ("numeric", "'-123456789012345678901234567890.000'"),
    ("numeric(10, 3)", "-0.5"),
    ("real", "'-Infinity'"),
    ("float8", "'-0'"),
    ("float8", "'1e-300'"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    ("inet", "'10.1.2.3/8'"),
    ("money", "'-1234.50'"),
    ("tsvector", "'''it''''s'':1A \"q\":2'"),
    ("int4range", "'(1,9]'"),
    ("bit varying(9)", "B'0101'"),
    ("bigint", "'-9223372036854775808'"),
    ("feeling", "'it''s \"ok\"'"),
    ("short", "'a b'''"),
    ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'"),
    ("pair", "ROW('a,\"b''', NULL)"),
];

/// Those for which the table is copied anew.
const COPIED: [(&str, &str); 7] = [
    ("text[]", r#"ARRAY['a"b', 'c''d', E'e\\f\n', NULL, 'NULL', '', '{x}', 'a,b']"#),
    ("text[] NOT NULL", "'{}'"),
    ("int[]", "'{1,NULL}'"),
    ("time", "'12:34:56.789'"),
    ("short", "random()::text"),
    ("timestamptz[]", "ARRAY['2024-02-29 12:00:00+05:30'::timestamptz]"),
    ("bytea[]", r"ARRAY['\x5c27'::bytea]"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_default_reads_the_same_in_older_rows_whatever_its_text() {
    let db = TestDb::new("shape_defaults").await;
    let all: Vec<_> =
        ADDED.iter().map(|case| (case, "altered")).chain(COPIED.iter().map(|case| (case, "copied"))).collect();
    db.pg.execute(r#"CREATE TYPE feeling AS ENUM ('bad', 'it''s "ok"'); CREATE DOMAIN short AS text; CREATE TYPE pair AS (a text, b int)"#).await;
    let tables: BTreeMap<String, _> = (0..).map(|i| format!("t{i:02}")).zip(all).collect();
    for table in tables.keys() {
        db.pg
            .execute(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1), (2, 2), (3, 3)"
            ))
            .await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for (table, ((ty, default), _)) in &tables {
        // An older row that nobody touches, one that is changed as it is, one that takes another value.
        db.pg.execute(&format!("ALTER TABLE {table} ADD COLUMN c {ty} DEFAULT {default}")).await;
        let null = if ty.ends_with("NOT NULL") { "DEFAULT" } else { "NULL" };
        db.pg.execute(&format!("UPDATE {table} SET n = 20 WHERE id = 2; UPDATE {table} SET c = {null} WHERE id = 3; INSERT INTO {table} (id) VALUES (4)")).await;
    }
    for (table, (case, _)) in &tables {
        println!("{table}: {case:?}");
        assert_equal(&db, table).await;
    }
    assert_settled_equal(&db, &["t00"]).await;
    let metrics = daemon.metrics().await;
    let mut wrong = Vec::new();
    for (table, (case, outcome)) in &tables {
        let series = format!("walhouse_shape_changes_total{{table=\"public.{table}\",outcome=\"{outcome}\"}} 1");
        if !metrics.contains(&series) {
            wrong.push(format!("{table} {case:?} was not {outcome}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong:#?}\n{:#?}",
        metrics.lines().filter(|line| line.contains("shape_changes")).collect::<Vec<_>>()
    );
    drop(daemon);
    db.cleanup().await;
}
