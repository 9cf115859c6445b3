//! What is compared: a table, its key, and how each column's values are rendered.

use serde::Serialize;

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
        let columns: Option<Vec<_>> =
            self.key.iter().map(|key| self.columns.iter().find(|column| column.name == *key)).collect();
        columns.filter(|columns| !columns.is_empty())
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
    /// How its values become comparable text.
    pub kind: Rendering,
    /// What PostgreSQL computes in its place, where ClickHouse has something else on purpose: an
    /// expression over `walhouse_row`.
    pub masked: Option<String>,
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
    Decimal {
        /// Digits after the point.
        scale: u8,
    },
    /// Hexadecimal digits, or a digest when they would be many.
    Bytes,
    /// Lower-case, with hyphens.
    Uuid,
    /// `2024-02-29`.
    Date,
    /// To the microsecond, without trailing zeros; ClickHouse holds it as if it were UTC.
    Timestamp,
    /// To the microsecond, in UTC.
    TimestampTz,
}

impl Rendering {
    /// From a column's base type (a domain's own is no base type), its modifier, and whether it is an enum.
    pub fn of(type_oid: u32, type_modifier: i32, is_enum: bool) -> Self {
        if is_enum {
            return Self::Text;
        }
        match type_oid {
            16 => Self::Bool,
            // int2, int4, int8, oid, xid, xid8
            21 | 23 | 20 | 26 | 28 | 5069 => Self::Integer,
            700 => Self::Float4,
            701 => Self::Float8,
            1700 => Self::numeric(type_modifier),
            17 => Self::Bytes,
            2950 => Self::Uuid,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            _ => Self::Text,
        }
    }

    /// numeric(p, s) is a Decimal as far as ClickHouse has one.
    fn numeric(type_modifier: i32) -> Self {
        let Some(packed) = type_modifier.checked_sub(4).filter(|packed| *packed >= 0) else { return Self::Text };
        let precision = packed >> 16 & 0xffff;
        // Eleven bits, signed: PostgreSQL 15 and later take scales from -1000 to 1000.
        let scale = ((packed & 0x7ff) ^ 1024) - 1024;
        match u8::try_from(scale) {
            Ok(scale) if (1..=76).contains(&precision) && i32::from(scale) <= precision => Self::Decimal { scale },
            _ => Self::Text,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::Float4 | Self::Float8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modifier(precision: i32, scale: i32) -> i32 {
        (precision << 16 | (scale & 0x7ff)) + 4
    }

    #[test]
    fn numeric_is_a_decimal_as_far_as_clickhouse_has_one() {
        let numeric = |precision, scale| Rendering::of(1700, modifier(precision, scale), false);
        assert_eq!(numeric(12, 2), Rendering::Decimal { scale: 2 });
        assert_eq!(numeric(76, 76), Rendering::Decimal { scale: 76 });
        assert_eq!(numeric(5, 0), Rendering::Decimal { scale: 0 });
        assert_eq!(numeric(77, 2), Rendering::Text);
        assert_eq!(numeric(5, 6), Rendering::Text);
        assert_eq!(numeric(5, -2), Rendering::Text);
        assert_eq!(Rendering::of(1700, -1, false), Rendering::Text);
    }

    #[test]
    fn what_has_no_rendering_of_its_own_is_text() {
        for oid in [25, 1043, 1042, 18, 114, 3802, 869, 1186, 999_999] {
            assert_eq!(Rendering::of(oid, -1, false), Rendering::Text);
        }
        assert_eq!(Rendering::of(16, -1, true), Rendering::Text, "an enum is its label");
        assert_eq!(Rendering::of(5069, -1, false), Rendering::Integer);
    }

    #[test]
    fn a_key_that_is_not_replicated_is_no_key() {
        let id = ColumnPair { name: "id".into(), kind: Rendering::Integer, masked: None };
        let table = |key: &[&str]| TablePair {
            schema: "public".into(),
            name: "t".into(),
            target: "t".into(),
            key: key.iter().map(|name| name.to_string()).collect(),
            columns: vec![id.clone()],
            filter: None,
        };
        assert_eq!(table(&["id"]).key_columns(), Some(vec![&id]));
        assert_eq!(table(&["id", "gone"]).key_columns(), None);
        assert_eq!(table(&[]).key_columns(), None);
    }
}
