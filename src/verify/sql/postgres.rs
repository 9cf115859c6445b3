//! PostgreSQL's statements.
//!
//! Its columns are rendered in a subquery that `OFFSET 0` keeps apart: it has no common
//! subexpressions, and would fetch a large value from TOAST once for its length and once more.

use super::{
    super::table::{ArrayPair, ColumnPair, Rendering, TablePair},
    BYTES_AS_HEX, Detail, Rows, SHOWN_CHARS, join,
};
use crate::quote;

/// PostgreSQL functions take 100 arguments at most.
const FIELDS_PER_CONCAT: usize = 90;

/// What is to be known of the source before its statements can be written.
#[derive(Clone, Copy, Debug)]
pub(in crate::verify) struct SourceTraits {
    /// Whether a text's bytes are those that walhouse is given: UTF-8, or no encoding at all.
    pub(in crate::verify) utf8: bool,
    /// Whether it has partitions, which hold its rows. The children of a table that is only
    /// inherited from are tables of their own.
    pub(in crate::verify) partitioned: bool,
}

/// Writes the statements of one table for PostgreSQL.
pub(in crate::verify) struct PostgresSql<'a> {
    table: &'a TablePair,
    key: &'a [&'a ColumnPair],
    source: SourceTraits,
}

impl<'a> PostgresSql<'a> {
    pub(in crate::verify) fn new(table: &'a TablePair, key: &'a [&'a ColumnPair], source: SourceTraits) -> Self {
        Self { table, key, source }
    }

    /// `bucket int8, rows int8, sum text`
    pub(in crate::verify) fn sums(&self, buckets: u32) -> String {
        format!(
            "SELECT key_hash & {mask} AS bucket, count(*) AS rows, sum({hash})::text AS sum FROM ({hashes}) AS hashes GROUP BY 1",
            mask = buckets - 1,
            hash = if self.table.log.is_some() { "key_hash" } else { "row_hash" },
            hashes = self.hashes(None, None),
        )
    }

    /// `key_hash int8, row_hash int8, mark int8, key_text text[]`, in this order; and with their detail, else
    /// NULL, `column_hashes int8[], column_values text[], source_key text[]`.
    ///
    /// The mark is the transaction that wrote the row: it tells of a change that brought a value back.
    pub(in crate::verify) fn rows(&self, rows: &Rows<'_>, detail: Detail) -> String {
        let (inner, outer) = match rows {
            Rows::Keys(keys) => (Some(self.key_in(keys)), String::new()),
            Rows::Buckets { of, wanted } => (None, format!(" WHERE key_hash & {} IN ({})", of - 1, join(wanted, ", "))),
            Rows::KeyHashes(hashes) => (None, format!(" WHERE key_hash IN ({})", join(hashes, ", "))),
        };
        if self.table.log.is_some() {
            return self.counts(detail, &outer);
        }
        format!(
            "SELECT key_hash, row_hash, mark, key_text, column_hashes, column_values, source_key FROM ({}) AS hashes{outer} ORDER BY 1, 2",
            self.hashes(Some(detail), inner.as_deref())
        )
    }

    /// Of a table without a key, what [`rows`](Self::rows) has of others: the hash of a row stands for
    /// its key, and how often it is there for its own hash.
    fn counts(&self, detail: Detail, outer: &str) -> String {
        let inner = if detail == Detail::Values { Detail::Values } else { Detail::Row };
        let columns = if detail == Detail::Row { "NULL::bigint[]" } else { "ARRAY[key_hash]" };
        format!(
            "SELECT key_hash, count(*) AS row_hash, sum(mark)::bigint AS mark, ARRAY[lpad(to_hex(key_hash), 16, '0')] AS key_text, \
             {columns} AS column_hashes, min(column_values) AS column_values, NULL::text[] AS source_key \
             FROM ({hashes}) AS hashes{outer} GROUP BY key_hash ORDER BY 1, 2",
            hashes = self.hashes(Some(inner), None),
        )
    }

    /// The hashes of each row, and with `rows` what else there is to know of it.
    fn hashes(&self, rows: Option<Detail>, condition: Option<&str>) -> String {
        let columns = &self.table.columns;
        let mut rendered: Vec<_> =
            columns.iter().enumerate().map(|(i, column)| format!("{} AS c{i}", self.text(column))).collect();
        let fields: Vec<_> = (0..columns.len()).map(|i| self.field(&format!("c{i}"))).collect();
        let place = |key: &&ColumnPair| columns.iter().position(|column| column.name == key.name);
        let key: Vec<_> = self.key.iter().filter_map(place).map(|i| fields[i].clone()).collect();
        let extra = rows.map_or_else(String::new, |detail| {
            rendered.extend(self.extra(detail));
            let column_hashes = match detail {
                Detail::Row => "NULL::bigint[]".to_owned(),
                _ => {
                    let hashes: Vec<_> = fields.iter().map(|field| self.hash(std::slice::from_ref(field))).collect();
                    format!("ARRAY[{}]", hashes.join(", "))
                }
            };
            format!(", mark, key_text, {column_hashes} AS column_hashes, column_values, source_key")
        });
        let conditions: Vec<_> =
            [self.table.filter.as_deref(), condition].into_iter().flatten().map(|c| format!("({c})")).collect();
        format!(
            "SELECT {key} AS key_hash, {row} AS row_hash{extra} FROM (SELECT {rendered} FROM {only}{schema}.{name} AS walhouse_row{filter} OFFSET 0) AS rendered OFFSET 0",
            key = self.hash(&key),
            // The key is the row.
            row = if self.table.log.is_some() { "0".to_owned() } else { self.hash(&fields) },
            rendered = rendered.join(", "),
            only = if self.source.partitioned { "" } else { "ONLY " },
            schema = quote::postgres(&self.table.schema),
            name = quote::postgres(&self.table.name),
            filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) },
        )
    }

    /// Few columns, since 1,664 is the most that a statement has: what is asked of each is an array.
    fn extra(&self, detail: Detail) -> [String; 4] {
        let array = |wanted: bool, texts: &mut dyn Iterator<Item = String>| match wanted {
            true => format!("ARRAY[{}]", texts.collect::<Vec<_>>().join(", ")),
            false => "NULL::text[]".to_owned(),
        };
        let key_text = array(true, &mut self.key.iter().map(|column| postgres_shown(column)));
        let shown = |column: &ColumnPair| format!("left({}, {})", self.value_shown(column), SHOWN_CHARS + 1);
        let values = array(detail == Detail::Values, &mut self.table.columns.iter().map(shown));
        let source_key = array(detail != Detail::Row, &mut self.key.iter().map(|column| printed(column)));
        [
            "walhouse_row.xmin::text::bigint AS mark".to_owned(),
            format!("{key_text} AS key_text"),
            format!("{values} AS column_values"),
            format!("{source_key} AS source_key"),
        ]
    }

    /// A column's value for people: its canonical text, where that is not made for machines alone.
    fn value_shown(&self, column: &ColumnPair) -> String {
        if column.array.is_none() && !column.kind.is_float() {
            return self.text(column);
        }
        format!("CASE WHEN {} IS DISTINCT FROM NULL THEN {} END", postgres_column(column), printed(column))
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

/// As PostgreSQL prints it, and sends it to walhouse.
fn printed(column: &ColumnPair) -> String {
    format!("concat({})", postgres_column(column))
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
        kind if kind.is_float() => printed(column),
        kind => postgres_value(&name, kind, true),
    }
}
