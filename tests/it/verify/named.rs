//! What is said of a key that differs: which columns, and values for those who ask.

use std::sync::atomic::{AtomicU32, Ordering};

use walhouse::{
    event::Lsn,
    verify::{Difference, Options, Rendering, TablePair, TableReport, render},
};

use super::{Sides, TAIL, arrived, options, pair};

/// Ten rows of canaries, the same on both sides.
async fn canaries(sides: &Sides) -> TablePair {
    sides
        .source(
            "CREATE TABLE t (id int8 PRIMARY KEY, a text, b text, n int4, f float8);
             INSERT INTO t SELECT i, 'canary-a', '', i, 0.5 FROM generate_series(1, 10) i",
        )
        .await;
    sides
        .target(&format!(
            "CREATE TABLE t (id Int64, a Nullable(String), b Nullable(String), n Nullable(Int32), f Nullable(Float64), {TAIL} id"
        ))
        .await;
    sides.target("INSERT INTO t SELECT number, 'canary-a', '', number, 0.5, 1, 0 FROM numbers(1, 10)").await;
    let columns = ["a", "b"].map(|name| (name, Rendering::Text));
    let numbers = [("n", Rendering::Integer), ("f", Rendering::Float8), ("id", Rendering::Integer)];
    pair("t", &["id"], &[columns.as_slice(), &numbers].concat())
}

/// Each key with what is said of it, by key.
fn said(report: &TableReport) -> Vec<String> {
    let of =
        |key: &walhouse::verify::KeyDifference| format!("{} {:?} {}", key.key, key.difference, key.columns.join(","));
    let mut said: Vec<_> = report.differing.iter().map(of).collect();
    said.sort();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_differs_is_named_with_its_columns_and_without_values() {
    let mut sides = Sides::new("UTF8").await;
    let table = canaries(&sides).await;
    sides
        .target(
            "INSERT INTO t VALUES (1, 'canary-x', '', 1, 0.5, 2, 0), (2, 'canary-a', NULL, 2, 0.5, 2, 0),
             (3, 'canary-x', 'canary-y', 3, 0.75, 2, 0), (4, 'canary-a', '', 4, 0.5, 2, 1), (77, 'canary', '', 4, 0.5, 1, 0)",
        )
        .await;
    let report = sides.verify(&table).await;
    let expected = ["id=1 Different a", "id=2 Different b", "id=3 Different a,b,f", "id=4 Missing ", "id=77 Extra "];
    assert_eq!(said(&report), expected);
    let json = serde_json::to_string(&report).unwrap();
    let text = render(std::slice::from_ref(&report));
    for told in [&json, &text] {
        assert!(!told.contains("canary") && !told.contains("0.75"), "{told}");
    }
    for line in ["     id=1: different: a\n", "     id=3: different: a, b, f\n", "     id=4: missing in ClickHouse\n"] {
        assert!(text.contains(line), "{text}");
    }

    // A key beyond the bound is counted, and nothing is asked of its columns.
    let few = Options { max_named: 2, ..options() };
    let report = sides.try_verify(&table, few, &arrived).await.unwrap();
    assert_eq!((report.differing.len(), report.differing_total), (2, 5));
    let none = Options { max_named: 0, ..options() };
    let report = sides.try_verify(&table, none, &arrived).await.unwrap();
    assert_eq!((report.differing.len(), report.differing_total), (0, 5));
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_shown_to_those_who_ask_and_only_those_that_differ() {
    let mut sides = Sides::new("UTF8").await;
    let table = canaries(&sides).await;
    sides.source("UPDATE t SET b = repeat('é', 5000) || 'x' WHERE id = 3").await;
    sides
        .target(
            "INSERT INTO t VALUES (1, unhex('ff'), '', 1, 0.5, 2, 0), (2, 'canary-a', NULL, 2, 0.25, 2, 0),
             (3, 'canary-a', concat(repeat('é', 5000), 'y'), 3, 0.5, 2, 0)",
        )
        .await;
    let asked = Options { show_values: true, ..options() };
    let report = sides.try_verify(&table, asked, &arrived).await.unwrap();
    let text = render(&[report]);
    let long = "é".repeat(200);
    for line in [
        "         a: \"canary-a\" in PostgreSQL, \"\u{fffd}\" in ClickHouse\n".to_owned(),
        "         b: \"\" in PostgreSQL, NULL in ClickHouse\n".to_owned(),
        "         f: \"0.5\" in PostgreSQL, \"0.25\" in ClickHouse\n".to_owned(),
        format!("         b: \"{long}…\" in PostgreSQL, \"{long}…\" in ClickHouse; they differ further on\n"),
    ] {
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    assert_eq!(text.matches("in PostgreSQL").count(), 4, "{text}");
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_of_five_megabytes_is_found_and_only_hashes_travel() {
    let mut sides = Sides::new("UTF8").await;
    const BYTES: usize = 5_000_000;
    sides
        .source(&format!(
            "CREATE TABLE big (id int8 PRIMARY KEY, raw bytea, body text);
             ALTER TABLE big ALTER raw SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;
             INSERT INTO big SELECT i, convert_to(repeat('0123456789', {BYTES} / 10), 'UTF8'), repeat('abcdefghij', {BYTES} / 10)
             FROM generate_series(1, 4) i"
        ))
        .await;
    sides.target(&format!("CREATE TABLE big (id Int64, raw Nullable(String), body Nullable(String), {TAIL} id")).await;
    let row = "repeat('0123456789', 500000) AS r, repeat('abcdefghij', 500000) AS b";
    sides
        .target(&format!("INSERT INTO big SELECT number, r, b, 1, 0 FROM (SELECT number, {row} FROM numbers(1, 4))"))
        .await;
    let table =
        pair("big", &["id"], &[("id", Rendering::Integer), ("raw", Rendering::Bytes), ("body", Rendering::Text)]);
    assert!(sides.verify(&table).await.checksum_equal);
    let changed = |id: u8, column: &str, at: usize| {
        format!(
            "INSERT INTO big SELECT * REPLACE (concat(substring({column}, 1, {at}), '!', substring({column}, {at} + 2)) AS {column},
             toUInt128(2) AS _version) FROM big WHERE id = {id}"
        )
    };
    sides.target(&changed(2, "raw", BYTES - 1)).await;
    sides.target(&changed(3, "body", 2_500_000)).await;
    let asked = Options { show_values: true, ..options() };
    let report = sides.try_verify(&table, asked, &arrived).await.unwrap();
    assert_eq!(said(&report), ["id=2 Different raw", "id=3 Different body"]);
    let told = serde_json::to_string(&report).unwrap().len();
    assert!(told < 2_000, "{told} bytes");
    sides.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_goes_back_and_forth_under_the_looks_is_no_difference() {
    let mut sides = Sides::new("UTF8").await;
    sides.source("CREATE TABLE t (id int8 PRIMARY KEY, v int8); INSERT INTO t VALUES (1, 1)").await;
    sides.target(&format!("CREATE TABLE t (id Int64, v Nullable(Int64), {TAIL} id")).await;
    sides.target("INSERT INTO t VALUES (1, 1, 1, 0)").await;
    let table = pair("t", &["id"], &[("id", Rendering::Integer), ("v", Rendering::Integer)]);
    let (version, clickhouse) = (AtomicU32::new(2), sides.clickhouse.clone());
    let writer = sides.db.pg.connect().await.unwrap();
    // Each look sees PostgreSQL at 1 and ClickHouse, which has followed, at 2; then it is 1 again.
    let swaying = || {
        let (version, clickhouse) = (version.fetch_add(2, Ordering::Relaxed), clickhouse.clone());
        let writing = writer.batch_execute("UPDATE t SET v = 2; UPDATE t SET v = 1");
        async move {
            let rows = format!("INSERT INTO t VALUES (1, 1, {version}, 0), (1, 2, {}, 0)", version + 1);
            clickhouse.query_raw(&rows).execute().await?;
            writing.await?;
            Ok(Lsn(u64::MAX))
        }
    };
    let report = sides.try_verify(&table, options(), &swaying).await.unwrap();
    assert_eq!((report.differing_total, report.still_changing), (0, 1), "{report:?}");

    // The same rows, left alone, differ.
    let report = sides.verify(&table).await;
    assert_eq!(said(&report), ["id=1 Different v"]);
    assert_eq!(report.differing[0].difference, Difference::Different);
    sides.cleanup().await;
}
