//! ClickHouse's statements.

use super::{
    super::table::{ArrayPair, ColumnPair, Rendering, TablePair},
    BYTES_AS_HEX, Detail, Rows, SHOWN_CHARS, join,
};
use crate::quote;

/// Writes the statements of one table for ClickHouse.
pub(in crate::verify) struct ClickHouseSql<'a> {
    table: &'a TablePair,
    key: &'a [&'a ColumnPair],
}

impl<'a> ClickHouseSql<'a> {
    pub(in crate::verify) fn new(table: &'a TablePair, key: &'a [&'a ColumnPair]) -> Self {
        Self { table, key }
    }

    /// `bucket Int64, rows UInt64, sum Int128`
    pub(in crate::verify) fn sums(&self, buckets: u32) -> String {
        format!(
            "SELECT bitAnd(key_hash, toInt64({mask})) AS bucket, count() AS rows, sum(toInt128({hash})) AS sum FROM ({hashes}) GROUP BY bucket",
            mask = buckets - 1,
            hash = if self.table.log.is_some() { "key_hash" } else { "row_hash" },
            hashes = self.hashes(None, None),
        )
    }

    /// `key_hash Int64, row_hash Int64, mark Int64, key_text Array(String)`, in this order; and with their detail,
    /// else empty, `column_hashes Array(Int64), column_values Array(Nullable(String))`.
    ///
    /// The mark is the row's version: it tells of a change that brought a value back.
    pub(in crate::verify) fn rows(&self, rows: &Rows<'_>, detail: Detail) -> String {
        let (inner, outer) = match rows {
            Rows::Keys(keys) => (Some(self.key_in(keys)), String::new()),
            Rows::Buckets { of, wanted } => {
                (None, format!(" WHERE bitAnd(key_hash, toInt64({})) IN ({})", of - 1, join(wanted, ", ")))
            }
            Rows::KeyHashes(hashes) => (None, format!(" WHERE key_hash IN ({})", join(hashes, ", "))),
        };
        if self.table.log.is_some() {
            return self.counts(detail, &outer);
        }
        format!(
            "SELECT key_hash, row_hash, mark, key_text, column_hashes, column_values FROM ({}){outer} ORDER BY key_hash, row_hash",
            self.hashes(Some(detail), inner.as_deref())
        )
    }

    /// Of a table without a key, what [`rows`](Self::rows) has of others: the hash of a row stands for
    /// its key, and how often it is there for its own hash. No version is left in the folded rows.
    fn counts(&self, detail: Detail, outer: &str) -> String {
        let inner = if detail == Detail::Values { Detail::Values } else { Detail::Row };
        let columns = if detail == Detail::Row { "CAST([] AS Array(Int64))" } else { "[key_hash]" };
        format!(
            "SELECT key_hash, toInt64(count()) AS row_hash, toInt64(0) AS mark, [lower(leftPad(hex(key_hash), 16, '0'))] AS key_text, \
             {columns} AS column_hashes, any(column_values) AS column_values FROM ({hashes}){outer} \
             GROUP BY key_hash ORDER BY key_hash",
            hashes = self.hashes(Some(inner), None),
        )
    }

    /// The hashes of each row, and with `rows` what else there is to know of it.
    fn hashes(&self, rows: Option<Detail>, condition: Option<&str>) -> String {
        let field = |column: &ColumnPair| clickhouse_field(&clickhouse_text(column, self.table.is_key(column)));
        let key: Vec<_> = self.key.iter().map(|column| field(column)).collect();
        let row: Vec<_> = self.table.columns.iter().map(field).collect();
        let extra = rows.map_or_else(String::new, |detail| self.extra(detail, &row));
        if let Some(log) = &self.table.log {
            // The key is the row.
            return format!("SELECT {} AS key_hash{extra} FROM ({log}) AS walhouse_row", clickhouse_hash(&row));
        }
        format!(
            "SELECT {key_hash} AS key_hash, {row_hash} AS row_hash{extra} FROM {target} AS walhouse_row FINAL WHERE walhouse_row._is_deleted = 0{condition}",
            key_hash = clickhouse_hash(&key),
            row_hash = clickhouse_hash(&row),
            target = quote::clickhouse(&self.table.target),
            condition = condition.map(|c| format!(" AND {c}")).unwrap_or_default(),
        )
    }

    fn extra(&self, detail: Detail, fields: &[String]) -> String {
        let array = |wanted: bool, ty: &str, items: &mut dyn Iterator<Item = String>| {
            let items = if wanted { items.collect::<Vec<_>>().join(", ") } else { String::new() };
            format!("CAST([{items}] AS Array({ty}))")
        };
        let hashes = &mut fields.iter().map(|field| clickhouse_hash(std::slice::from_ref(field)));
        let values = &mut self.table.columns.iter().map(clickhouse_value_shown);
        let mark = match self.table.log {
            None => "reinterpretAsInt64(sipHash64(walhouse_row._version))",
            Some(_) => "toInt64(0)",
        };
        format!(
            ", {mark} AS mark, {} AS key_text, {} AS column_hashes, {} AS column_values",
            array(true, "String", &mut self.key.iter().map(|column| clickhouse_shown(column))),
            array(detail != Detail::Row, "Int64", hashes),
            array(detail == Detail::Values, "Nullable(String)", values),
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

/// Qualified, since ClickHouse would else take an alias of the same name for the column.
fn clickhouse_column(column: &ColumnPair) -> String {
    format!("walhouse_row.{}", quote::clickhouse(&column.name))
}

/// NULL stays NULL.
fn clickhouse_text(column: &ColumnPair, key: bool) -> String {
    let name = clickhouse_column(column);
    let Some(array) = &column.array else { return clickhouse_value(&name, column.kind, key) };
    let text = clickhouse_array(&name, column.kind, array.rank);
    match &array.null_mark {
        Some(mark) => format!("if(walhouse_row.{}, NULL, {text})", quote::clickhouse(mark)),
        None => text,
    }
}

/// As PostgreSQL's statement has it: bounds where there is any element, then the elements.
fn clickhouse_array(name: &str, kind: Rendering, rank: u8) -> String {
    let level = |depth: u8| format!("{name}{}", "[1]".repeat(depth.into()));
    let bounds: Vec<_> = (0..rank).map(|depth| format!("'[1:', toString(length({})), ']'", level(depth))).collect();
    let elements = if rank > 1 { format!("arrayFlatten({name})") } else { name.to_owned() };
    let field = clickhouse_field(&clickhouse_value("walhouse_element", kind, false));
    format!(
        "concat(if(empty({name}), '', concat({})), arrayStringConcat(arrayMap(walhouse_element -> {field}, {elements})))",
        bounds.join(", ")
    )
}

fn clickhouse_value(name: &str, kind: Rendering, key: bool) -> String {
    let without_zeros = |text: String| format!("trim(TRAILING '.' FROM trim(TRAILING '0' FROM {text}))");
    match kind {
        Rendering::Text | Rendering::Integer | Rendering::Uuid | Rendering::Date | Rendering::Decimal => {
            format!("toString({name})")
        }
        Rendering::Bool => format!("toString(toUInt8({name}))"),
        Rendering::Float4 => clickhouse_float(name, 32, key),
        Rendering::Float8 => clickhouse_float(name, 64, key),
        Rendering::Bytes => {
            format!("lower(if(length({name}) <= {BYTES_AS_HEX}, hex({name}), hex(MD5({name}))))")
        }
        // There is no point then, and the zeros count.
        Rendering::Timestamp { digits: 0 } | Rendering::TimestampTz { digits: 0 } => format!("toString({name})"),
        Rendering::Timestamp { .. } | Rendering::TimestampTz { .. } | Rendering::Time => {
            without_zeros(format!("toString({name})"))
        }
        Rendering::Ipv4 => format!("lower(leftPad(hex(toUInt32({name})), 8, '0'))"),
        Rendering::Ipv6 => format!("lower(hex({name}))"),
        Rendering::Presence => format!("if(isNull({name}), NULL, 'present')"),
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

/// The beginning of a column's value for people: its canonical text, where that is not made for machines alone.
fn clickhouse_value_shown(column: &ColumnPair) -> String {
    let name = clickhouse_column(column);
    let text = match &column.array {
        Some(ArrayPair { null_mark: Some(mark), .. }) => {
            format!("if(walhouse_row.{}, NULL, toString({name}))", quote::clickhouse(mark))
        }
        Some(_) => format!("toString({name})"),
        None if column.kind.is_float() => format!("toString({name})"),
        None => clickhouse_text(column, false),
    };
    format!("substringUTF8(toValidUTF8({text}), 1, {})", SHOWN_CHARS + 1)
}
