//! The statements: the same row, rendered by each server in its own words, to one text.
//!
//! A row's canonical text is the sequence of its columns, each `N` for NULL or its length in
//! bytes of UTF-8, a colon, and its text; so no two rows share one. A hash is the first eight
//! bytes of the MD5 of such a text, as a signed number, which both servers compute, sum and
//! order alike. Nothing of it goes through a parser of ours.
//!
//! PostgreSQL's columns are rendered in a subquery that `OFFSET 0` keeps apart: it has no common
//! subexpressions, and would fetch a large value from TOAST once for its length and once more.

use super::table::{ColumnPair, Rendering, TablePair};
use crate::quote;

/// PostgreSQL functions take 100 arguments at most; each column needs three.
const COLUMNS_PER_CONCAT: usize = 30;

/// Which rows a statement is about.
pub(super) enum Rows<'a> {
    /// All of those whose key falls into one of these buckets.
    Buckets { of: u32, wanted: &'a [i64] },
    /// Those with these keys, as text: an index finds them.
    Keys(&'a [&'a [String]]),
    /// Those whose keys have these hashes: right for every type, but the whole table is read.
    KeyHashes(&'a [i64]),
}

/// What is to be known of the source before its statements can be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceTraits {
    /// Whether a text's length in bytes is its length in UTF-8.
    pub(super) utf8: bool,
    /// Whether it has partitions, which hold its rows. The children of a table that is only
    /// inherited from are tables of their own.
    pub(super) partitioned: bool,
}

/// Writes the statements of one table for PostgreSQL.
pub(super) struct PostgresSql<'a> {
    table: &'a TablePair,
    key: &'a [&'a ColumnPair],
    source: SourceTraits,
}

impl<'a> PostgresSql<'a> {
    pub(super) fn new(table: &'a TablePair, key: &'a [&'a ColumnPair], source: SourceTraits) -> Self {
        Self { table, key, source }
    }

    /// `bucket int8, rows int8, sum text`
    pub(super) fn sums(&self, buckets: u32) -> String {
        format!(
            "SELECT key_hash & {mask} AS bucket, count(*) AS rows, sum(row_hash)::text AS sum FROM ({hashes}) AS hashes GROUP BY 1",
            mask = buckets - 1,
            hashes = self.hashes(false, None),
        )
    }

    /// `key_hash int8, row_hash int8, key text[]`, in this order.
    pub(super) fn rows(&self, rows: &Rows<'_>) -> String {
        let (inner, outer) = match rows {
            Rows::Keys(keys) => (Some(self.key_in(keys)), String::new()),
            Rows::Buckets { of, wanted } => (None, format!(" WHERE key_hash & {} IN ({})", of - 1, join(wanted, ", "))),
            Rows::KeyHashes(hashes) => (None, format!(" WHERE key_hash IN ({})", join(hashes, ", "))),
        };
        format!(
            "SELECT key_hash, row_hash, key_text FROM ({}) AS hashes{outer} ORDER BY 1, 2",
            self.hashes(true, inner.as_deref())
        )
    }

    fn hashes(&self, with_key: bool, condition: Option<&str>) -> String {
        let mut rendered = Vec::new();
        let (mut row, mut key) = (Vec::new(), Vec::new());
        for (i, column) in self.table.columns.iter().enumerate() {
            rendered.push(format!("{} AS c{i}", postgres_text(column, self.table.is_key(column))));
            row.push(self.field(&format!("c{i}")));
        }
        for column in self.key {
            let i = self.table.columns.iter().position(|other| other.name == column.name).unwrap_or_default();
            key.push(self.field(&format!("c{i}")));
        }
        if with_key {
            let shown: Vec<_> = self.key.iter().map(|column| postgres_shown(column)).collect();
            rendered.push(format!("ARRAY[{}] AS key_text", shown.join(", ")));
        }
        let conditions: Vec<_> =
            [self.table.filter.as_deref(), condition].into_iter().flatten().map(|c| format!("({c})")).collect();
        format!(
            "SELECT {key} AS key_hash, {row} AS row_hash{key_text} FROM (SELECT {rendered} FROM {only}{schema}.{name} AS walhouse_row{filter} OFFSET 0) AS rendered OFFSET 0",
            key = postgres_hash(&key),
            row = postgres_hash(&row),
            key_text = if with_key { ", key_text" } else { "" },
            rendered = rendered.join(", "),
            only = if self.source.partitioned { "" } else { "ONLY " },
            schema = quote::postgres(&self.table.schema),
            name = quote::postgres(&self.table.name),
            filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) },
        )
    }

    fn field(&self, text: &str) -> String {
        let length = if self.source.utf8 {
            format!("octet_length({text})")
        } else {
            format!("octet_length(convert_to({text}, 'UTF8'))")
        };
        format!("coalesce({length} || ':' || {text}, 'N')")
    }

    /// The literals have no type, so each takes its column's and the key's index serves.
    fn key_in(&self, keys: &[&[String]]) -> String {
        let names: Vec<_> = self.key.iter().map(|column| postgres_column(column)).collect();
        let tuples: Vec<_> = keys
            .iter()
            .map(|key| {
                format!("({})", key.iter().map(|part| quote::postgres_string(part)).collect::<Vec<_>>().join(", "))
            })
            .collect();
        format!("({}) IN ({})", names.join(", "), tuples.join(", "))
    }
}

/// Writes the statements of one table for ClickHouse.
pub(super) struct ClickHouseSql<'a> {
    table: &'a TablePair,
    key: &'a [&'a ColumnPair],
}

impl<'a> ClickHouseSql<'a> {
    pub(super) fn new(table: &'a TablePair, key: &'a [&'a ColumnPair]) -> Self {
        Self { table, key }
    }

    /// `bucket Int64, rows UInt64, sum Int128`
    pub(super) fn sums(&self, buckets: u32) -> String {
        format!(
            "SELECT bitAnd(key_hash, toInt64({mask})) AS bucket, count() AS rows, sum(toInt128(row_hash)) AS sum FROM ({hashes}) GROUP BY bucket",
            mask = buckets - 1,
            hashes = self.hashes(false, None),
        )
    }

    /// `key_hash Int64, row_hash Int64, key_text Array(String)`, in this order.
    pub(super) fn rows(&self, rows: &Rows<'_>) -> String {
        let (inner, outer) = match rows {
            Rows::Keys(keys) => (Some(self.key_in(keys)), String::new()),
            Rows::Buckets { of, wanted } => {
                (None, format!(" WHERE bitAnd(key_hash, toInt64({})) IN ({})", of - 1, join(wanted, ", ")))
            }
            Rows::KeyHashes(hashes) => (None, format!(" WHERE key_hash IN ({})", join(hashes, ", "))),
        };
        format!(
            "SELECT key_hash, row_hash, key_text FROM ({}){outer} ORDER BY key_hash, row_hash",
            self.hashes(true, inner.as_deref())
        )
    }

    fn hashes(&self, with_key: bool, condition: Option<&str>) -> String {
        let fields = |columns: &mut dyn Iterator<Item = &ColumnPair>| {
            clickhouse_hash(
                &columns.map(|c| clickhouse_field(&clickhouse_text(c, self.table.is_key(c)))).collect::<Vec<_>>(),
            )
        };
        let shown: Vec<_> = self.key.iter().map(|column| clickhouse_shown(column)).collect();
        format!(
            "SELECT {key} AS key_hash, {row} AS row_hash{key_text} FROM {target} AS walhouse_row FINAL WHERE walhouse_row._is_deleted = 0{condition}",
            key = fields(&mut self.key.iter().copied()),
            row = fields(&mut self.table.columns.iter()),
            key_text = if with_key { format!(", [{}] AS key_text", shown.join(", ")) } else { String::new() },
            target = quote::clickhouse(&self.table.target),
            condition = condition.map(|c| format!(" AND {c}")).unwrap_or_default(),
        )
    }

    fn key_in(&self, keys: &[&[String]]) -> String {
        let names: Vec<_> = self.key.iter().map(|column| clickhouse_column(column)).collect();
        let tuple = |key: &[String]| {
            let parts: Vec<_> =
                self.key.iter().zip(key).map(|(column, part)| clickhouse_literal(column, part)).collect();
            format!("({})", parts.join(", "))
        };
        let tuples: Vec<_> = keys.iter().map(|key| tuple(key)).collect();
        format!("({}) IN ({})", names.join(", "), tuples.join(", "))
    }
}

fn postgres_column(column: &ColumnPair) -> String {
    format!("walhouse_row.{}", quote::postgres(&column.name))
}

/// `concat` takes every type's own output function. A cast to text would not: it strips the
/// padding of char(n) and adds a mask to inet.
fn postgres_text(column: &ColumnPair, key: bool) -> String {
    let name = postgres_column(column);
    let text = match column.kind {
        Rendering::Text | Rendering::Integer | Rendering::Uuid | Rendering::Date | Rendering::Timestamp => {
            format!("concat({name})")
        }
        Rendering::Bool => format!("CASE WHEN {name} THEN '1' ELSE '0' END"),
        Rendering::Float4 => postgres_float(&name, "float4", key),
        Rendering::Float8 => postgres_float(&name, "float8", key),
        Rendering::Decimal { .. } => format!("concat(trim_scale({name}))"),
        Rendering::Bytes => format!("md5({name})"),
        Rendering::TimestampTz => format!("concat({name} AT TIME ZONE 'UTC')"),
    };
    format!("CASE WHEN {name} IS NOT NULL THEN {text} END")
}

/// In a key, -0 is 0: both servers take them for one key, so which of them it is tells nothing.
fn postgres_float(name: &str, kind: &str, key: bool) -> String {
    let value = if key { format!("CASE WHEN {name} = 0 THEN 0 ELSE {name} END") } else { name.to_owned() };
    format!("CASE WHEN {name} = 'NaN' THEN 'NaN' ELSE encode({kind}send(({value})::{kind}), 'hex') END")
}

/// A key column for people, and for [`Rows::Keys`].
fn postgres_shown(column: &ColumnPair) -> String {
    let name = postgres_column(column);
    match column.kind {
        Rendering::Bytes => format!("'\\x' || encode({name}, 'hex')"),
        kind if kind.is_float() => format!("concat({name})"),
        _ => postgres_text(column, true),
    }
}

fn postgres_hash(fields: &[String]) -> String {
    let groups: Vec<_> =
        fields.chunks(COLUMNS_PER_CONCAT).map(|group| format!("concat({})", group.join(", "))).collect();
    let text = if groups.len() == 1 { groups.concat() } else { format!("concat({})", groups.join(", ")) };
    format!("('x' || substr(md5(convert_to({text}, 'UTF8')), 1, 16))::bit(64)::bigint")
}

/// Qualified, since ClickHouse would else take an alias of the same name for the column.
fn clickhouse_column(column: &ColumnPair) -> String {
    format!("walhouse_row.{}", quote::clickhouse(&column.name))
}

/// NULL stays NULL.
fn clickhouse_text(column: &ColumnPair, key: bool) -> String {
    let name = clickhouse_column(column);
    match column.kind {
        Rendering::Text | Rendering::Integer | Rendering::Uuid | Rendering::Date | Rendering::Decimal { .. } => {
            format!("toString({name})")
        }
        Rendering::Bool => format!("toString(toUInt8({name}))"),
        Rendering::Float4 => clickhouse_float(&name, 32, key),
        Rendering::Float8 => clickhouse_float(&name, 64, key),
        Rendering::Bytes => format!("lower(hex(MD5({name})))"),
        Rendering::Timestamp | Rendering::TimestampTz => {
            format!("trim(TRAILING '.' FROM trim(TRAILING '0' FROM toString({name})))")
        }
    }
}

fn clickhouse_float(name: &str, bits: u8, key: bool) -> String {
    let value = if key { format!("if({name} = 0, toFloat{bits}(0), {name})") } else { name.to_owned() };
    let digits = bits / 4;
    format!("if(isNaN({name}), 'NaN', lower(leftPad(hex(reinterpretAsUInt{bits}({value})), {digits}, '0')))")
}

/// Bytes that are no UTF-8 can not be shown; the replacement tells that this key needs its hash.
fn clickhouse_shown(column: &ColumnPair) -> String {
    let name = clickhouse_column(column);
    match column.kind {
        Rendering::Bytes => format!("concat('\\\\x', lower(hex({name})))"),
        Rendering::Text => format!("toValidUTF8(toString({name}))"),
        kind if kind.is_float() => format!("toString({name})"),
        _ => clickhouse_text(column, true),
    }
}

fn clickhouse_literal(column: &ColumnPair, text: &str) -> String {
    match column.kind {
        Rendering::Bytes => format!("unhex({})", quote::clickhouse_string(text.trim_start_matches("\\x"))),
        // Only a number is ever printed for these; anything else is quoted and can not match.
        Rendering::Integer | Rendering::Bool if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
            text.to_owned()
        }
        _ => quote::clickhouse_string(text),
    }
}

fn clickhouse_field(text: &str) -> String {
    format!("ifNull(concat(toString(length({text})), ':', {text}), 'N')")
}

fn clickhouse_hash(fields: &[String]) -> String {
    format!("reinterpretAsInt64(reverse(substring(MD5(concat('', {})), 1, 8)))", fields.join(", "))
}

fn join(numbers: &[i64], separator: &str) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(separator)
}
