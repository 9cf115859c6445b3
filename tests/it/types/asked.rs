//! What a configuration may ask for: other types, and replacements for what can not be held.

use std::time::Duration;

use crate::support::{Daemon, TestDb, assert_equal, eventually, walhouse};

/// A column's type, the one that is asked for, a value in PostgreSQL and in ClickHouse, and one that does not fit.
type Asked = (&'static str, &'static str, &'static str, &'static str, &'static str, Option<&'static str>);

#[rustfmt::skip] // A table.
const ASKED: &[Asked] = &[
    ("exact", "numeric", "Decimal(38, 10)", "'12345678901234567890.0123456789'", "12345678901234567890.0123456789", Some("0.00000000001")),
    ("wide", "int4", "Int64", "-2147483648", "-2147483648", None),
    ("money_like", "int4", "Decimal(12, 2)", "2147483647", "2147483647.00", None),
    ("plain", "numeric(9,2)", "String", "1.5", "1.50", None),
    ("v4", "inet", "IPv4", "'10.0.0.1'", "10.0.0.1", Some("'10.0.0.0/8'")),
    ("v6", "inet", "IPv6", "'2001:db8::1'", "2001:db8::1", Some("'10.0.0.1'")),
    ("millis", "timestamptz", "DateTime64(3, 'UTC')", "'2024-01-02 03:04:05.678Z'", "2024-01-02 03:04:05.678", Some("'2024-01-02 03:04:05.6789Z'")),
    ("few", "text", "LowCardinality(String)", "'a'", "a", None),
    ("clock", "time", "String", "'24:00:00'", "24:00:00", None),
    ("matrix", "int4[][]", "Array(Array(Nullable(Int32)))", "'{{1,2},{3,NULL}}'", "[[1,2],[3,NULL]]", Some("'{1}'")),
    ("addresses", "inet[]", "Array(Nullable(IPv6))", "'{::1,NULL}'", "['::1',NULL]", Some("'{10.0.0.1}'")),
    ("strict", "int2[]", "Array(Int64)", "'{1,-2}'", "[1,-2]", Some("'{NULL}'")),
    ("document", "jsonb", "JSON", r#"'{"b":{"c":[1,"x"]},"a":9007199254740993,"at":"2024-01-01T00:00:00Z"}'"#,
        r#"{"a":9007199254740993,"at":"2024-01-01T00:00:00Z","b":{"c":[1,"x"]}}"#, Some("'[1]'")),
];

fn configuration() -> String {
    let types: Vec<_> = ASKED.iter().map(|(name, _, wanted, ..)| format!("{name} = \"{wanted}\"")).collect();
    format!("[tables.\"public.asked\"]\ncolumn_types = {{ {} }}\n", types.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_has_the_type_that_is_asked_for_and_its_values_are_exact() {
    let db = TestDb::new("types_asked").await;
    let columns: String = ASKED.iter().map(|(name, source, ..)| format!(", {name} {source}")).collect();
    let values: String = ASKED.iter().map(|(_, _, _, value, ..)| format!(", {value}")).collect();
    db.pg
        .execute(&format!(
            "CREATE TABLE asked (id int PRIMARY KEY{columns}, big text);
            ALTER TABLE asked ALTER document SET STORAGE EXTERNAL, ALTER matrix SET STORAGE EXTERNAL;
            INSERT INTO asked VALUES (1{values}); INSERT INTO asked VALUES (2)"
        ))
        .await;
    let mut daemon = Daemon::spawn(&db, &configuration());
    daemon.wait_ready().await;
    db.pg.execute(&format!("INSERT INTO asked VALUES (3{values}); INSERT INTO asked VALUES (4); UPDATE asked SET big = 'x' WHERE id < 4")).await;
    eventually(Duration::from_secs(30), async || {
        let count = db.ch.query("SELECT count() FROM asked_current WHERE big = 'x' OR id = 4").await;
        if count == "4" { Ok(()) } else { Err(count) }
    })
    .await;
    for (name, _, wanted, _, expected, _) in ASKED {
        let sql = format!(
            "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 'asked' AND name = '{name}' FORMAT TSVRaw"
        );
        let nullable = match *wanted {
            array if array.starts_with("Array") => array.to_owned(),
            "LowCardinality(String)" => "LowCardinality(Nullable(String))".to_owned(),
            plain => format!("Nullable({plain})"),
        };
        assert_eq!(db.ch.query(&sql).await, nullable, "{name}");
        let read = if wanted.starts_with("Array") {
            format!("if({name}__is_null, NULL, toString({name}))")
        } else {
            name.to_string()
        };
        let found = db.ch.query(&format!("SELECT {read} FROM asked_current ORDER BY id FORMAT TSVRaw")).await;
        assert_eq!(found.lines().collect::<Vec<_>>(), [*expected, "\\N", *expected, "\\N"], "{name}");
    }
    // Through a lookup as well.
    let big = "jsonb_build_object('a', 18446744073709551615, 'at', '2024-01-01 00:00:00', 'long', repeat('x', 9000))";
    db.pg.execute(&format!("INSERT INTO asked (id, document) VALUES (5, {big})")).await;
    let found = async |sql: &str| {
        eventually(Duration::from_secs(30), async || match db.ch.query(sql).await {
            found if found == "1" => Ok(()),
            found => Err(found),
        })
        .await;
    };
    let same = "document.a = 18446744073709551615 AND document.at = '2024-01-01 00:00:00' AND length(document.long::String) = 9000";
    found(&format!("SELECT count() FROM asked_current WHERE id = 5 AND {same}")).await;
    db.pg.execute("UPDATE asked SET big = 'y' WHERE id = 5").await;
    found(&format!("SELECT count() FROM asked_current WHERE id = 5 AND big = 'y' AND {same}")).await;
    assert!(daemon.metric("walhouse_toast_lookups_total", "place=\"clickhouse\"").await > 0.0);
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    assert!(verify.stdout.contains("since JSON keeps no text: document"), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_asked_type_can_not_hold_is_noticed() {
    let db = TestDb::new("types_refused").await;
    let mut tables = "[batch]\nunrepresentable = \"fail\"\n".to_owned();
    let unfit: Vec<_> = ASKED
        .iter()
        .filter_map(|(name, source, wanted, _, _, unfit)| Some((name, source, wanted, (*unfit)?)))
        .collect();
    for (name, source, wanted, _) in &unfit {
        db.pg.execute(&format!("CREATE TABLE t_{name} (id int PRIMARY KEY, v {source})")).await;
        tables += &format!("[tables.\"public.t_{name}\"]\ncolumn_types = {{ v = \"{wanted}\" }}\n");
    }
    let mut daemon = Daemon::spawn(&db, &tables);
    daemon.wait_ready().await;
    for (name, _, _, value) in &unfit {
        db.pg.execute(&format!("INSERT INTO t_{name} VALUES (1, {value})")).await;
    }
    eventually(Duration::from_secs(30), async || {
        let stopped = db
            .ch
            .query("SELECT count() FROM _tables FINAL WHERE status = 'stopped' AND position(reason, 'column v') > 0")
            .await;
        if stopped == unfit.len().to_string() { Ok(()) } else { Err(stopped) }
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_can_not_be_met_leave_their_table_out_with_the_reason() {
    let db = TestDb::new("types_wishes").await;
    db.pg
        .execute(
            "CREATE TABLE narrow (id int PRIMARY KEY, v int8);
            CREATE TABLE unknown (id int PRIMARY KEY, v int8);
            CREATE TABLE keyed (id timestamp PRIMARY KEY, v int8);
            CREATE TABLE marked (id int PRIMARY KEY, v int[], v__is_null bool)",
        )
        .await;
    let extra = "
        [tables.\"public.narrow\"]
        column_types = { v = \"Int32\" }
        [tables.\"public.unknown\"]
        column_types = { v = \"Integer\" }
        [tables.\"public.keyed\"]
        columns.id.unrepresentable = \"clamp\"";
    let mut daemon = Daemon::spawn(&db, extra);
    daemon.wait_ready().await;
    let check = walhouse(daemon.config(), &["check"]).await;
    for text in [&check.stdout, &daemon.log()] {
        for words in [
            "column_types of v: Int32 can not hold what bigint holds without changing it; String can",
            "is no type that walhouse writes",
            "would change a column of the key",
            "its column v__is_null has the name of the column that tells in ClickHouse whether an array is NULL",
        ] {
            assert!(
                text.replace("; String can", "").contains(words.trim_end_matches("; String can")),
                "{words}: {text}"
            );
        }
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_replaced_as_configured_and_counted() {
    let db = TestDb::new("types_replaced").await;
    let definition = "id int PRIMARY KEY, day date NOT NULL, at timestamptz NOT NULL, amount numeric, days date[] NOT NULL, \
                      title text NOT NULL";
    db.pg.execute(&format!("CREATE TABLE nulled ({definition}); CREATE TABLE clamped ({definition})")).await;
    let row = |id: i32| {
        format!(
            "({id}, 'infinity', '-infinity', 1e9, '{{infinity,2024-01-01}}', 'a'), ({}, '2024-01-01', '2024-01-01Z', 0.5, '{{}}', 'b')",
            id + 1
        )
    };
    for table in ["nulled", "clamped"] {
        db.pg.execute(&format!("INSERT INTO {table} VALUES {}", row(1))).await;
    }
    let extra = "
        [batch]
        unrepresentable = \"null\"
        [tables.\"public.nulled\"]
        column_types = { amount = \"Decimal(4, 2)\" }
        [tables.\"public.clamped\"]
        column_types = { amount = \"Decimal(4, 2)\" }
        unrepresentable = \"clamp\"";
    let mut daemon = Daemon::spawn(&db, extra);
    daemon.wait_ready().await;
    for table in ["nulled", "clamped"] {
        db.pg.execute(&format!("INSERT INTO {table} VALUES {}", row(3))).await;
    }
    let good = "2024-01-01\t2024-01-01 00:00:00.000000\t0.50\t[]\tb";
    for (table, replaced) in [
        ("nulled", "\\N\t\\N\t\\N\t[NULL,'2024-01-01']\ta"),
        ("clamped", "2299-12-31\t0001-01-01 00:00:00.000000\t99.99\t['2299-12-31','2024-01-01']\ta"),
    ] {
        let expected = [replaced, good, replaced, good].join("\n");
        eventually(Duration::from_secs(30), async || {
            let found =
                db.ch.query(&format!("SELECT day, at, amount, days, title FROM {table}_current ORDER BY id")).await;
            if found == expected { Ok(()) } else { Err(found) }
        })
        .await;
        let policy = if table == "nulled" { "null" } else { "clamp" };
        let labels = format!("table=\"public.{table}\",policy=\"{policy}\"");
        assert_eq!(daemon.metric("walhouse_values_replaced_total", &labels).await, 8.0, "{}", daemon.metrics().await);
        // A column of which every value fits is as its source is.
        let types = db.ch.query(&format!("SELECT groupArray(type) FROM (SELECT type FROM system.columns WHERE database = currentDatabase() AND table = '{table}' AND name IN ('day', 'title') ORDER BY name)")).await;
        let day = if table == "nulled" { "Nullable(Date32)" } else { "Date32" };
        assert_eq!(types, format!("['{day}','String']"));
    }

    // A key is never replaced, and an array without a place for NULL is not either.
    db.pg.execute("CREATE TABLE keyed (id date PRIMARY KEY); INSERT INTO keyed VALUES ('infinity')").await;
    eventually(Duration::from_secs(30), async || {
        let lost = db.ch.query("SELECT DISTINCT table_name FROM _dead_letters").await;
        if lost == "keyed" { Ok(()) } else { Err(lost) }
    })
    .await;
    let check = walhouse(daemon.config(), &["check"]).await;
    for line in [
        "public.nulled.day",
        "date → Nullable(Date32); does not fit: before 1900-01-01, after 2299-12-31, infinity, which becomes NULL",
        "date → Date32; does not fit: before 1900-01-01, after 2299-12-31, infinity, which becomes the nearer end",
        "date[] → Array(Nullable(Date32)), and days__is_null Bool; does not fit",
    ] {
        assert!(check.stdout.contains(line), "{line}: {}", check.stdout);
    }

    // Asked for too late: the column was made without NULL.
    daemon.sigterm(Duration::from_secs(10)).await;
    let late = crate::support::write_config(&db, &extra.replace("\"clamp\"", "\"null\""), daemon.port(), "late.toml");
    std::fs::copy(late, daemon.config()).expect("a configuration can be replaced");
    daemon.start();
    daemon.wait_ready().await;
    daemon.wait_log("does nothing for a column that was created without NULL", 3).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_that_an_update_leaves_alone_keep_their_elements_and_their_nulls() {
    let db = TestDb::new("types_toast").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v int, texts text[], bytes bytea[], nulls text[]);
            ALTER TABLE t ALTER texts SET STORAGE EXTERNAL, ALTER bytes SET STORAGE EXTERNAL;
            INSERT INTO t SELECT i, 0, ARRAY[repeat('a,\"\\', 3000), NULL, ''], ARRAY[decode(repeat('00ff', 3000), 'hex')], \
                CASE i % 2 WHEN 0 THEN ARRAY[repeat('x', 9000)] END FROM generate_series(1, 20) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE t SET v = 1").await;
    assert_equal(&db, "t").await;
    db.pg.execute("UPDATE t SET v = 2, id = id + 100; UPDATE t SET v = 3; UPDATE t SET texts = NULL WHERE id > 110; UPDATE t SET v = 4").await;
    assert_equal(&db, "t").await;
    assert!(daemon.metric("walhouse_toast_lookups_total", "place=\"clickhouse\"").await > 0.0);
    assert!(daemon.metric("walhouse_toast_lookups_total", "place=\"batch\"").await > 0.0);
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}
