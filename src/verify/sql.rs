//! The statements: the same row, rendered by each server in its own words, to one text.
//!
//! A row's canonical text is the sequence of its columns, each `N` for NULL or its length in
//! bytes of UTF-8, a colon, and its text; so no two rows share one. A hash is the first eight
//! bytes of the MD5 of such a text, as a signed number, which both servers compute, sum and
//! order alike. Nothing of it goes through a parser of ours.
//!
//! PostgreSQL's columns are rendered in a subquery that `OFFSET 0` keeps apart: it has no common
//! subexpressions, and would fetch a large value from TOAST once for its length and once more.

use super::table::{ArrayPair, ColumnPair, Rendering, TablePair};
use crate::quote;

/// PostgreSQL functions take 100 arguments at most.
const FIELDS_PER_CONCAT: usize = 90;
/// Longer bytes are rendered as their digest: PostgreSQL has no text above 1 GB.
const BYTES_AS_HEX: usize = 1024;

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
    /// Whether a text's bytes are those that walhouse is given: UTF-8, or no encoding at all.
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
            rendered.push(format!("{} AS c{i}", self.text(column)));
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
            key = self.hash(&key),
            row = self.hash(&row),
            key_text = if with_key { ", key_text" } else { "" },
            rendered = rendered.join(", "),
            only = if self.source.partitioned { "" } else { "ONLY " },
            schema = quote::postgres(&self.table.schema),
            name = quote::postgres(&self.table.name),
            filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) },
        )
    }

    /// A column's value as text; NULL stays NULL.
    fn text(&self, column: &ColumnPair) -> String {
        let name = postgres_column(column);
        let text = match &column.array {
            Some(array) => self.array(&name, column.kind, array),
            None => postgres_value(&name, column.kind, self.table.is_key(column)),
        };
        // IS NOT NULL would be false for a composite with a NULL inside.
        format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN {text} END")
    }

    /// An array's bounds, then each of its values like a column of a row. The elements are taken by
    /// a function in the select list: in FROM it would take a composite apart.
    fn array(&self, name: &str, kind: Rendering, array: &ArrayPair) -> String {
        let array = if array.is_vector { format!("{name}::real[]") } else { name.to_owned() };
        format!(
            "concat(array_dims({array}), (SELECT string_agg({field}, '' ORDER BY place) FROM \
             (SELECT place, CASE WHEN value IS DISTINCT FROM NULL THEN {value} END AS element FROM \
             (SELECT unnest({array}) AS value, generate_series(1, cardinality({array})) AS place OFFSET 0) AS taken \
             OFFSET 0) AS elements))",
            field = self.field("element"),
            value = postgres_value("value", kind, false),
        )
    }

    fn field(&self, text: &str) -> String {
        format!("CASE WHEN {text} IS NULL THEN 'N' ELSE concat(octet_length({}), ':', {text}) END", self.utf8(text))
    }

    fn hash(&self, fields: &[String]) -> String {
        let groups: Vec<_> =
            fields.chunks(FIELDS_PER_CONCAT).map(|group| format!("concat({})", group.join(", "))).collect();
        let text = if groups.len() == 1 { groups.concat() } else { format!("concat({})", groups.join(", ")) };
        format!("('x' || substr(md5({}), 1, 16))::bit(64)::bigint", self.utf8(&text))
    }

    /// The bytes of a text in UTF-8, whatever the database's encoding is.
    fn utf8(&self, text: &str) -> String {
        if self.source.utf8 { text.to_owned() } else { format!("convert_to({text}, 'UTF8')") }
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
    column.masked.clone().unwrap_or_else(|| format!("walhouse_row.{}", quote::postgres(&column.name)))
}

/// `concat` takes every type's own output function. A cast to text would not: it strips the
/// padding of char(n) and adds a mask to inet.
fn postgres_value(name: &str, kind: Rendering, key: bool) -> String {
    match kind {
        Rendering::Text
        | Rendering::Integer
        | Rendering::Uuid
        | Rendering::Date
        | Rendering::Time
        | Rendering::Timestamp { .. } => format!("concat({name})"),
        Rendering::Bool => format!("CASE WHEN {name} THEN '1' ELSE '0' END"),
        Rendering::Float4 => postgres_float(name, "float4", key),
        Rendering::Float8 => postgres_float(name, "float8", key),
        Rendering::Decimal => format!("concat(trim_scale({name}::numeric))"),
        Rendering::Bytes => {
            format!("CASE WHEN octet_length({name}) <= {BYTES_AS_HEX} THEN encode({name}, 'hex') ELSE md5({name}) END")
        }
        Rendering::TimestampTz { .. } => format!("concat({name} AT TIME ZONE 'UTC')"),
        // After the family, the length of the network, whether it is one, and the length in bytes.
        Rendering::Ipv4 | Rendering::Ipv6 => format!("encode(substring(inet_send({name}) FROM 5), 'hex')"),
        Rendering::Presence => "'present'".to_owned(),
    }
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
        kind => postgres_value(&name, kind, true),
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

fn join(numbers: &[i64], separator: &str) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TablePair {
        let column = |name: &str, kind| ColumnPair::new(name, kind);
        TablePair {
            schema: "my \"shop\"".into(),
            name: "order".into(),
            target: "my_order".into(),
            key: vec!["id".into(), "at`".into()],
            columns: vec![
                column("note", Rendering::Text),
                column("at`", Rendering::Float8),
                column("id", Rendering::Integer),
                column("rate", Rendering::Float8),
            ],
            filter: Some("paid".into()),
        }
    }

    const UTF8: SourceTraits = SourceTraits { utf8: true, partitioned: false };

    fn postgres(source: SourceTraits, rows: Option<&Rows<'_>>) -> String {
        let table = table();
        let key = table.key_columns().unwrap();
        let sql = PostgresSql::new(&table, &key, source);
        rows.map_or_else(|| sql.sums(16), |rows| sql.rows(rows))
    }

    fn clickhouse(rows: Option<&Rows<'_>>) -> String {
        let table = table();
        let key = table.key_columns().unwrap();
        let sql = ClickHouseSql::new(&table, &key);
        rows.map_or_else(|| sql.sums(16), |rows| sql.rows(rows))
    }

    fn assert_has(sql: &str, parts: &[&str]) {
        for part in parts {
            assert!(sql.contains(part), "{part}\nis not in\n{sql}");
        }
    }

    #[test]
    fn postgres_sums_by_bucket_of_the_key() {
        let sql = postgres(UTF8, None);
        assert_has(
            &sql,
            &[
                "SELECT key_hash & 15 AS bucket, count(*) AS rows, sum(row_hash)::text AS sum FROM (",
                r#"FROM ONLY "my ""shop"""."order" AS walhouse_row WHERE (paid) OFFSET 0"#,
                r#"CASE WHEN walhouse_row."note" IS DISTINCT FROM NULL THEN concat(walhouse_row."note") END AS c0"#,
                // The key in its own order, the row in the columns'.
                "md5(concat(CASE WHEN c2 IS NULL THEN 'N' ELSE concat(octet_length(c2), ':', c2) END, CASE WHEN c1 IS",
                "md5(concat(CASE WHEN c0 IS NULL",
            ],
        );
        assert!(!sql.contains("key_text"), "the keys stay in the server");
    }

    #[test]
    fn zeros_are_one_in_a_key_and_two_elsewhere() {
        assert_has(
            &postgres(UTF8, None),
            &[
                r#"float8send((CASE WHEN walhouse_row."at`" = 0 THEN 0 ELSE walhouse_row."at`" END)::float8)"#,
                r#"float8send((walhouse_row."rate")::float8)"#,
            ],
        );
        assert_has(
            &clickhouse(None),
            &[
                r"reinterpretAsUInt64(if(walhouse_row.`at\`` = 0, toFloat64(0), walhouse_row.`at\``))",
                "reinterpretAsUInt64(walhouse_row.`rate`)",
            ],
        );
    }

    #[test]
    fn another_encoding_is_measured_in_utf8_and_a_root_is_read_with_its_partitions() {
        let sql = postgres(SourceTraits { utf8: false, partitioned: true }, None);
        assert_has(&sql, &["octet_length(convert_to(c0, 'UTF8'))", "md5(convert_to(concat(", r#"FROM "my ""shop"""."#]);
    }

    #[test]
    fn clickhouse_sums_live_rows_by_bucket_of_the_key() {
        let sql = clickhouse(None);
        assert_has(
            &sql,
            &[
                "SELECT bitAnd(key_hash, toInt64(15)) AS bucket, count() AS rows, sum(toInt128(row_hash)) AS sum FROM (",
                "FROM `my_order` AS walhouse_row FINAL WHERE walhouse_row._is_deleted = 0)",
                "ifNull(concat(toString(length(toString(walhouse_row.`note`))), ':', toString(walhouse_row.`note`)), 'N')",
            ],
        );
        assert!(!sql.contains("paid"), "the source's filter has done its work");
    }

    #[test]
    fn rows_are_found_by_bucket_by_key_and_by_hash() {
        let buckets = Rows::Buckets { of: 16, wanted: &[3, 4] };
        assert_has(&postgres(UTF8, Some(&buckets)), &["WHERE key_hash & 15 IN (3, 4) ORDER BY 1, 2", "AS key_text"]);
        assert_has(&clickhouse(Some(&buckets)), &["WHERE bitAnd(key_hash, toInt64(15)) IN (3, 4) ORDER BY"]);

        let hashes = Rows::KeyHashes(&[-5, 7]);
        assert_has(&postgres(UTF8, Some(&hashes)), &["WHERE key_hash IN (-5, 7) ORDER BY"]);
        assert_has(&clickhouse(Some(&hashes)), &["WHERE key_hash IN (-5, 7) ORDER BY"]);

        let key = ["7".to_owned(), r"it's \".to_owned()];
        let keys = [key.as_slice()];
        let keys = Rows::Keys(&keys);
        assert_has(
            &postgres(UTF8, Some(&keys)),
            &[r#"WHERE (paid) AND ((walhouse_row."id", walhouse_row."at`") IN (('7', 'it''s \')))"#],
        );
        assert_has(
            &clickhouse(Some(&keys)),
            &[r"_is_deleted = 0 AND (walhouse_row.`id`, walhouse_row.`at\``) IN ((7, 'it\'s \\'))"],
        );
    }

    #[test]
    fn a_wide_row_stays_within_the_arguments_that_a_function_takes() {
        let columns: Vec<_> = (0..200).map(|i| ColumnPair::new(format!("n{i}"), Rendering::Integer)).collect();
        let table = TablePair { key: vec!["n0".into()], columns, ..table() };
        let key = table.key_columns().unwrap();
        let sql = PostgresSql::new(&table, &key, UTF8).sums(16);
        assert_has(
            &sql,
            &["md5(concat(concat(CASE WHEN c0 IS", ", concat(CASE WHEN c90 IS", ", concat(CASE WHEN c180 IS"],
        );
    }
}
