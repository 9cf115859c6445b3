//! Arrays, as both servers have them.

use walhouse::{
    event::{ElementType, SourceColumn},
    verify::{ColumnPair, Difference, Rendering},
};

use super::{Sides, TAIL, found, pair};

/// Arrays as both servers write them: the source's type and the target's, values, and others in
/// ClickHouse that are not the first of them.
type Arrays = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

#[rustfmt::skip] // A table.
const ARRAYS: &[Arrays] = &[
    ("int4[]", "Array(Nullable(Int32))", &[("'{1,NULL,3}'", "[1,NULL,3]"), ("'{}'", "[]"), ("'{7}'", "[7]")],
        &["[]", "[1,NULL]", "[1,3,NULL]", "[1,0,3]", "[1,NULL,3,NULL]"]),
    ("text[]", "Array(Nullable(String))", &[("ARRAY['a,b', 'NULL', NULL, '\"', '\\', '', '1:N', 'é']", "['a,b','NULL',NULL,'\"','\\\\','','1:N','é']"),
        ("ARRAY['']", "['']")], &["['a,b,NULL',NULL,'\"','\\\\','','1:N','é']", "[NULL]"]),
    ("bytea[]", "Array(Nullable(String))", &[("ARRAY['\\x00ff'::bytea, NULL]", "[unhex('00ff'),NULL]")], &["['00ff',NULL]"]),
    ("char(3)[]", "Array(Nullable(String))", &[("ARRAY['a']", "['a  ']")], &["['a']"]),
    ("mood[]", "Array(LowCardinality(Nullable(String)))", &[("'{ok,NULL,ok}'", "['ok',NULL,'ok']")], &["['ok','sad','ok']"]),
    ("timestamptz[]", "Array(Nullable(DateTime64(6, 'UTC')))", &[("'{2024-07-01 02:00:00.5+02}'", "['2024-07-01 00:00:00.5']")], &["['2024-07-01 02:00:00.5']"]),
    ("float8[]", "Array(Nullable(Float64))", &[("'{-0,NaN,0.1,Infinity}'", "[-0.,nan,0.1,inf]")], &["[0.,nan,0.1,inf]"]),
    ("numeric(9,2)[]", "Array(Nullable(Decimal(9, 2)))", &[("'{1.50,-0.01}'", "['1.5','-0.01']")], &["['1.5','0.01']"]),
    ("bool[]", "Array(Nullable(Bool))", &[("'{t,f,NULL}'", "[true,false,NULL]")], &["[true,false,false]"]),
    ("inet[]", "Array(Nullable(String))", &[("'{10.0.0.1,::1/64}'", "['10.0.0.1','::1/64']")], &["['10.0.0.1/32','::1/64']"]),
    ("two[]", "Array(Nullable(String))", &[("ARRAY[ROW(1, 'a')::two, ROW(NULL, NULL)::two, NULL]", "['(1,a)','(,)',NULL]")], &["['(1,a)',NULL,NULL]"]),
    ("int4[][]", "Array(Array(Nullable(Int32)))", &[("'{{1,2},{3,NULL}}'", "[[1,2],[3,NULL]]"), ("'{}'", "[]")],
        &["[[1,2,3,NULL]]", "[[1],[2],[3],[NULL]]", "[[1,2],[3,4]]"]),
    ("numbers", "Array(Nullable(Int16))", &[("'{1}'", "[1]")], &["[]"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn arrays_are_compared_element_by_element_and_null_is_no_empty_array() {
    let mut sides = Sides::new("UTF8").await;
    sides.source("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE two AS (a int, b text); CREATE DOMAIN numbers AS int2[]").await;
    for (i, (source, target, values, others)) in ARRAYS.iter().enumerate() {
        let name = format!("a{i}");
        sides.source(&format!("CREATE TABLE {name} (id int PRIMARY KEY, a {source})")).await;
        sides.target(&format!("CREATE TABLE {name} (id Int32, a {target}, a__is_null Bool, {TAIL} id")).await;
        let (null, empty) = (values.len(), values.len() + 1);
        for (id, (theirs, ours)) in values.iter().chain(&[("NULL", "[]"), ("'{}'", "[]")]).enumerate() {
            sides.source(&format!("INSERT INTO {name} VALUES ({id}, {theirs})")).await;
            sides.target(&format!("INSERT INTO {name} VALUES ({id}, {ours}, {}, 1, 0)", id == null)).await;
        }
        let source_oid = sides
            .postgres
            .query_one(
                "SELECT t.typelem FROM pg_attribute a JOIN pg_type d ON d.oid = a.atttypid \
             JOIN pg_type t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END \
             WHERE a.attrelid = $1::text::regclass AND a.attname = 'a'",
                &[&name],
            )
            .await
            .unwrap()
            .get(0);
        let element = ElementType { type_oid: source_oid, type_modifier: -1, is_enum: false };
        let column = SourceColumn { name: "a".into(), element: Some(element), ..SourceColumn::default() };
        let mut table = pair(&name, &["id"], &[("id", Rendering::Integer)]);
        table.columns.push(ColumnPair::of(&column, target, Some("a__is_null".into())));
        assert!(sides.verify(&table).await.checksum_equal, "{source}");

        let mut version = 1;
        let (first, no_null, no_empty) = ((0, false), (null, false), (empty, true));
        let wrong = others.iter().map(|other| (first, *other)).chain([(no_null, "[]"), (no_empty, "[]")]);
        for ((id, is_null), value) in wrong {
            version += 2;
            sides.target(&format!("INSERT INTO {name} VALUES ({id}, {value}, {is_null}, {version}, 0)")).await;
            let report = sides.verify(&table).await;
            assert_eq!(found(&report), [(format!("id={id}"), Difference::Different)], "{source} {value}");
            assert_eq!(report.differing[0].columns, ["a"], "{source} {value}");
            let before = values.get(id).map_or("[]", |(_, ours)| ours);
            let restore = format!("INSERT INTO {name} VALUES ({id}, {before}, {}, {}, 0)", id == null, version + 1);
            sides.target(&restore).await;
        }
        assert!(sides.verify(&table).await.checksum_equal, "{source}");
    }
    sides.cleanup().await;
}
