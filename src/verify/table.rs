//! What is compared: a table, its key, and how each column's values are rendered.

use serde::Serialize;

use crate::event::SourceColumn;

/// A table of the source and the ClickHouse table that should equal it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePair {
    /// The source's schema.
    pub schema: String,
    /// The source's table, or partition root.
    pub name: String,
    /// The ClickHouse table, in the client's database.
    pub target: String,
    /// The columns that identify a row, each of which is in `columns` too.
    pub key: Vec<String>,
    /// For a table without a key, the query of its rows in ClickHouse: what is compared is how often
    /// each row is there.
    pub log: Option<String>,
    /// The columns that are replicated, in any order.
    pub columns: Vec<ColumnPair>,
    /// The publication's row filter, as PostgreSQL prints it.
    pub filter: Option<String>,
}

impl TablePair {
    /// The source's name for people: `schema.name`.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub(super) fn key_columns(&self) -> Option<Vec<&ColumnPair>> {
        if self.log.is_some() {
            return Some(self.columns.iter().collect());
        }
        let columns: Option<Vec<_>> =
            self.key.iter().map(|key| self.columns.iter().find(|column| column.name == *key)).collect();
        columns.filter(|columns| !columns.is_empty())
    }

    pub(super) fn presence_only(&self) -> Vec<String> {
        let columns = self.columns.iter().filter(|column| column.kind == Rendering::Presence);
        columns.map(|column| column.name.clone()).collect()
    }

    pub(super) fn is_key(&self, column: &ColumnPair) -> bool {
        self.key.contains(&column.name)
    }
}

/// A column, which has the same name on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnPair {
    /// The column's name.
    pub name: String,
    /// How its values, or those in its arrays, become comparable text.
    pub kind: Rendering,
    /// How values lie in arrays, if it holds any.
    pub array: Option<ArrayPair>,
    /// What PostgreSQL computes in its place, where ClickHouse has something else on purpose: an
    /// expression over `walhouse_row`.
    pub masked: Option<String>,
}

/// A column of arrays on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayPair {
    /// How deep they are nested in ClickHouse. In PostgreSQL each value has its own rank.
    pub rank: u8,
    /// ClickHouse's column that says whether the array is NULL.
    pub null_mark: Option<String>,
    /// Whether PostgreSQL has a vector of pgvector.
    pub is_vector: bool,
}

impl ColumnPair {
    /// A column of single values.
    pub fn new(name: impl Into<String>, kind: Rendering) -> Self {
        Self { name: name.into(), kind, array: None, masked: None }
    }

    /// From a column of the source and the type of its column in ClickHouse, as that server prints it.
    pub fn of(source: &SourceColumn, target: &str, null_mark: Option<String>) -> Self {
        let (mut element, mut rank) = (target, 0);
        while let Some(inner) = inside(element, "Array") {
            (element, rank) = (inner, rank + 1);
        }
        let type_oid = match &source.element {
            Some(inner) if rank > 0 => inner.type_oid,
            _ => source.type_oid,
        };
        let array = (rank > 0).then_some(ArrayPair { rank, null_mark, is_vector: source.is_vector });
        Self { name: source.name.clone(), kind: Rendering::of(type_oid, element), array, masked: None }
    }
}

/// How the values of a column become text that is the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Rendering {
    /// PostgreSQL's own text, which ClickHouse holds in a `String`.
    Text,
    /// `1` or `0`.
    Bool,
    /// Decimal digits.
    Integer,
    /// The bits; every NaN is one.
    Float4,
    /// The bits; every NaN is one.
    Float8,
    /// Digits without trailing zeros.
    Decimal,
    /// Hexadecimal digits, or a digest when they would be many.
    Bytes,
    /// Lower-case, with hyphens.
    Uuid,
    /// `2024-02-29`.
    Date,
    /// `24:00:00`, to the microsecond, without trailing zeros.
    Time,
    /// Without trailing zeros; ClickHouse holds it as if it were UTC.
    Timestamp {
        /// Digits of a second that ClickHouse has.
        digits: u8,
    },
    /// In UTC, without trailing zeros.
    TimestampTz {
        /// Digits of a second that ClickHouse has.
        digits: u8,
    },
    /// Hexadecimal digits of the address.
    Ipv4,
    /// Hexadecimal digits of the address.
    Ipv6,
    /// Only that there is a value: ClickHouse's `JSON` prints another text than it was given.
    Presence,
}

impl Rendering {
    /// From a base type of PostgreSQL (a domain's own is no base type) and the type in ClickHouse,
    /// as that server prints it.
    pub fn of(type_oid: u32, target: &str) -> Self {
        const BYTEA: u32 = 17;
        const TIMESTAMPTZ: u32 = 1184;
        let target = inside(target, "LowCardinality").unwrap_or(target);
        let target = inside(target, "Nullable").unwrap_or(target);
        let (name, arguments) = target.split_once('(').unwrap_or((target, ""));
        match name {
            "Bool" => Self::Bool,
            "Int16" | "Int32" | "Int64" | "UInt32" | "UInt64" => Self::Integer,
            "Float32" => Self::Float4,
            "Float64" => Self::Float8,
            "Decimal" => Self::Decimal,
            "UUID" => Self::Uuid,
            "Date32" => Self::Date,
            "Time64" => Self::Time,
            "DateTime64" => {
                let digits = arguments.bytes().next().map_or(0, |digit| digit.wrapping_sub(b'0'));
                if type_oid == TIMESTAMPTZ { Self::TimestampTz { digits } } else { Self::Timestamp { digits } }
            }
            "IPv4" => Self::Ipv4,
            "IPv6" => Self::Ipv6,
            "JSON" => Self::Presence,
            _ if type_oid == BYTEA => Self::Bytes,
            _ => Self::Text,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::Float4 | Self::Float8)
    }
}

/// What is in the parentheses of such a type.
fn inside<'a>(ty: &'a str, name: &str) -> Option<&'a str> {
    ty.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ElementType;

    #[test]
    fn the_type_in_clickhouse_decides_and_that_of_the_source_where_it_must() {
        for (oid, target, kind) in [
            (16, "Nullable(Bool)", Rendering::Bool),
            (16, "String", Rendering::Text),
            (23, "Int64", Rendering::Integer),
            (5069, "UInt64", Rendering::Integer),
            (23, "Decimal(12, 2)", Rendering::Decimal),
            (1700, "Nullable(Decimal(76, 76))", Rendering::Decimal),
            (1700, "Nullable(String)", Rendering::Text),
            (17, "Nullable(String)", Rendering::Bytes),
            (25, "LowCardinality(Nullable(String))", Rendering::Text),
            (1083, "Time64(6)", Rendering::Time),
            (1083, "String", Rendering::Text),
            (1114, "Nullable(DateTime64(6, 'UTC'))", Rendering::Timestamp { digits: 6 }),
            (1184, "DateTime64(0, 'UTC')", Rendering::TimestampTz { digits: 0 }),
            (869, "Nullable(IPv6)", Rendering::Ipv6),
            (3802, "Nullable(JSON)", Rendering::Presence),
            (3802, "String", Rendering::Text),
            (999_999, "String", Rendering::Text),
        ] {
            assert_eq!(Rendering::of(oid, target), kind, "{oid} {target}");
        }
    }

    #[test]
    fn an_array_is_rendered_by_its_elements() {
        let element = ElementType { type_oid: 17, type_modifier: -1, is_enum: false };
        let source =
            SourceColumn { name: "a".into(), type_oid: 1001, element: Some(element), ..SourceColumn::default() };
        let pair = ColumnPair::of(&source, "Array(Array(Nullable(String)))", Some("mark".into()));
        let array = ArrayPair { rank: 2, null_mark: Some("mark".into()), is_vector: false };
        assert_eq!((pair.kind, pair.array), (Rendering::Bytes, Some(array)));
        // The text of an array of bytea is no bytea.
        let pair = ColumnPair::of(&source, "Nullable(String)", None);
        assert_eq!((pair.kind, pair.array), (Rendering::Text, None));
    }

    #[test]
    fn a_key_that_is_not_replicated_is_no_key() {
        let id = ColumnPair::new("id", Rendering::Integer);
        let table = |key: &[&str]| TablePair {
            schema: "public".into(),
            name: "t".into(),
            target: "t".into(),
            key: key.iter().map(|name| name.to_string()).collect(),
            log: None,
            columns: vec![id.clone()],
            filter: None,
        };
        assert_eq!(table(&["id"]).key_columns(), Some(vec![&id]));
        assert_eq!(table(&["id", "gone"]).key_columns(), None);
        assert_eq!(table(&[]).key_columns(), None);
    }
}
