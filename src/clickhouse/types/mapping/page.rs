//! The table of docs/types.md, made of the mapping itself.

use super::*;
use crate::event::ElementType;
use std::{fs, path::Path};

const BEGIN: &str =
    "<!-- Made by the test the_page_of_types_is_what_the_code_does: run it with WALHOUSE_WRITE_DOCS=1. -->\n";
const END: &str = "<!-- The end of what it makes. -->\n";

/// What may be asked for.
const WISHES: &[&str] = &[
    "Int32",
    "Int64",
    "UInt64",
    "Decimal(38, 10)",
    "DateTime64(3, 'UTC')",
    "Time64(6)",
    "IPv4",
    "IPv6",
    "JSON",
    "LowCardinality(String)",
    "Array(Array(Nullable(Int32)))",
    "String",
];

fn simple(name: &str, ty: &Type) -> SourceColumn {
    SourceColumn { type_oid: ty.oid(), type_modifier: -1, type_name: name.to_owned(), ..SourceColumn::default() }
}

fn with_modifier(name: &str, ty: &Type, type_modifier: i32) -> SourceColumn {
    SourceColumn { type_modifier, ..simple(name, ty) }
}

fn array(name: &str, element: &Type, dimensions: u16) -> SourceColumn {
    let element = ElementType { type_oid: element.oid(), type_modifier: -1, is_enum: false };
    SourceColumn { element: Some(element), dimensions, ..simple(name, &Type::ANYARRAY) }
}

fn columns() -> Vec<SourceColumn> {
    const OF_AN_EXTENSION: Type = Type::UNKNOWN;
    let numeric =
        |name, precision: i32, scale: i32| with_modifier(name, &Type::NUMERIC, ((precision << 16) | scale) + 4);
    let strings = [
        ("text", Type::TEXT),
        ("varchar", Type::VARCHAR),
        ("char(n)", Type::BPCHAR),
        ("name", Type::NAME),
        ("citext", OF_AN_EXTENSION),
        ("xml", Type::XML),
        ("\"char\"", Type::CHAR),
    ];
    let texts = [
        ("timetz", Type::TIMETZ),
        ("interval", Type::INTERVAL),
        ("cidr", Type::CIDR),
        ("macaddr", Type::MACADDR),
        ("bit", Type::BIT),
        ("varbit", Type::VARBIT),
        ("money", Type::MONEY),
        ("point, so all up to polygon", Type::POINT),
        ("tsvector", Type::TS_VECTOR),
        ("tsquery", Type::TSQUERY),
        ("int4range, so each range", Type::INT4_RANGE),
        ("int4multirange, so each multirange", Type::INT4MULTI_RANGE),
        ("pg_lsn", Type::PG_LSN),
        ("ltree", OF_AN_EXTENSION),
        ("hstore", OF_AN_EXTENSION),
        ("geometry", OF_AN_EXTENSION),
        ("a composite", OF_AN_EXTENSION),
    ];
    let all = |types: &[(&str, Type)]| types.iter().map(|(name, ty)| simple(name, ty)).collect::<Vec<_>>();
    let mut columns = all(&[
        ("boolean", Type::BOOL),
        ("smallint", Type::INT2),
        ("integer", Type::INT4),
        ("bigint", Type::INT8),
        ("oid", Type::OID),
        ("xid", Type::XID),
        ("xid8", Type::XID8),
        ("real", Type::FLOAT4),
        ("double precision", Type::FLOAT8),
    ]);
    columns.push(numeric("numeric(12, 2), so each with p up to 76, 0 ≤ s ≤ p", 12, 2));
    columns.push(numeric("any other numeric", 77, 0));
    columns.extend(all(&strings));
    columns.push(simple("bytea", &Type::BYTEA));
    columns.push(simple("uuid", &Type::UUID));
    columns.push(simple("date", &Type::DATE));
    columns.push(simple("timestamp", &Type::TIMESTAMP));
    columns.push(simple("timestamptz", &Type::TIMESTAMPTZ));
    columns.push(simple("time", &Type::TIME));
    columns.push(SourceColumn { is_enum: true, ..simple("an enum", &Type::UNKNOWN) });
    columns.extend(all(&[("json", Type::JSON), ("jsonb", Type::JSONB), ("inet", Type::INET)]));
    columns.push(array("integer[], so each T[]", &Type::INT4, 1));
    columns.push(array("date[]", &Type::DATE, 1));
    columns.push(array("integer[][], so each of more", &Type::INT4, 2));
    columns.push(simple("box[]", &Type::BOX_ARRAY));
    columns.push(SourceColumn { is_vector: true, ..simple("vector", &Type::UNKNOWN) });
    columns.extend(all(&texts));
    columns
}

/// The table, types of one and the same fate in one row.
fn table() -> String {
    let mut rows: Vec<(Vec<String>, [String; 3])> = Vec::new();
    for column in columns() {
        let ty = ColumnType::of_column(&column, true);
        let older = ColumnType::of_column(&column, false);
        let mut target = format!("`{ty}`");
        if older != ty {
            target += &format!("; `{older}` where the server lacks it");
        }
        match (&column.key_position, ty.takes_nullable()) {
            (None, false) => target += ", with a `Bool` beside it",
            _ if ty == ColumnType::Bytes => target += ", the raw bytes",
            _ => {}
        }
        let wishes =
            WISHES.iter().filter(|wish| ColumnType::for_column(&column, wish).is_ok_and(|wished| wished != ty));
        let wishes = wishes.map(|wish| format!("`{wish}`")).collect::<Vec<_>>().join(", ");
        let fate = [target, ty.unheld(&column), wishes];
        let name = match column.type_name.split_once(", so ") {
            Some((name, others)) => format!("`{name}`, so {others}"),
            None if column.type_name.starts_with("a") && column.type_name.contains(' ') => column.type_name.clone(),
            None => format!("`{}`", column.type_name),
        };
        match rows.last_mut() {
            Some((names, last)) if *last == fate => names.push(name),
            _ => rows.push((vec![name], fate)),
        }
    }
    let mut table = "| PostgreSQL | ClickHouse | Does not fit | May be asked for |\n|---|---|---|---|\n".to_owned();
    for (names, [target, unheld, wishes]) in rows {
        table += &format!("| {} | {target} | {unheld} | {wishes} |\n", names.join(", "));
    }
    table
}

#[test]
fn the_page_of_types_is_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/types.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/types.md has the mark where the table begins");
    let (_, after) = rest.split_once(END).expect("docs/types.md has the mark where the table ends");
    let made = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("WALHOUSE_WRITE_DOCS").is_some() {
        fs::write(&path, &made).unwrap();
    } else {
        assert_eq!(page, made, "docs/types.md is not what the code does; run this test with WALHOUSE_WRITE_DOCS=1");
    }
}
