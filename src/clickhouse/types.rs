//! The ClickHouse types that walhouse writes, and by what names.
//!
//! Which of them holds which type of PostgreSQL is said in [`mapping`]. Whether a *value* fits is
//! another question, which [`super::text`] answers.

pub mod mapping;
mod name;

use std::fmt;

/// The most digits that a ClickHouse Decimal has.
pub const MAX_DECIMAL_PRECISION: u8 = 76;
/// The digits of a second that PostgreSQL has.
pub const MICROSECONDS: u8 = 6;

/// A ClickHouse type, together with the text form that its values are read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// One byte, 0 or 1.
    Bool,
    /// 16 bits, signed.
    Int16,
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
    /// 32 bits, unsigned.
    UInt32,
    /// 64 bits, unsigned.
    UInt64,
    /// IEEE 754, 32 bits.
    Float32,
    /// IEEE 754, 64 bits.
    Float64,
    /// An exact number.
    Decimal {
        /// Digits in all: 1 to 76.
        precision: u8,
        /// Digits after the point: at most `precision`.
        scale: u8,
    },
    /// PostgreSQL's text as it is.
    String,
    /// A String that holds the raw bytes of a bytea.
    Bytes,
    /// 128 bits.
    Uuid,
    /// Days; see [`super::text::date`] for its range.
    Date32,
    /// A moment in UTC; see [`super::text::DateTimeRange`] for its range.
    DateTime64 {
        /// Digits of a second: 0 to 6.
        precision: u8,
    },
    /// Microseconds since midnight.
    Time64,
    /// A String of few distinct values: the label of an enum.
    LowCardinality,
    /// 32 bits, from an inet.
    Ipv4,
    /// 128 bits, from an inet.
    Ipv6,
    /// Paths and values of a JSON object. ClickHouse reads the text, and prints another one.
    Json,
    /// From PostgreSQL's text form of an array.
    Array {
        /// What it holds.
        element: Box<ColumnType>,
        /// Whether an element may be NULL.
        nullable: bool,
    },
    /// An `Array(Float32)`, from pgvector's text form of a vector.
    Vector,
}

impl ColumnType {
    /// Its name, exactly as ClickHouse itself prints it. An array is the same in both cases: see
    /// [`takes_nullable`](Self::takes_nullable).
    pub fn name(&self, nullable: bool) -> String {
        match self {
            // LowCardinality is the one type that takes Nullable inside.
            ColumnType::LowCardinality if nullable => "LowCardinality(Nullable(String))".to_owned(),
            ty if nullable && ty.takes_nullable() => format!("Nullable({ty})"),
            ty => ty.to_string(),
        }
    }

    /// Whether a NULL is a value of the column itself. For an array it needs a column beside it.
    pub fn takes_nullable(&self) -> bool {
        !matches!(self, ColumnType::Array { .. } | ColumnType::Vector)
    }

    /// Whether it can be part of a sorting key.
    pub fn is_sortable(&self) -> bool {
        self.takes_nullable() && *self != ColumnType::Json
    }

    /// Whether the modifier of the source's type decides which values it holds.
    pub fn depends_on_modifier(&self) -> bool {
        match self {
            ColumnType::Decimal { .. } => true,
            ColumnType::Array { element, .. } => element.depends_on_modifier(),
            _ => false,
        }
    }

    /// Bytes that a value takes in the Native format, where that is the same for each.
    pub(crate) fn width(&self) -> Option<usize> {
        Some(match self {
            ColumnType::Bool => 1,
            ColumnType::Int16 => 2,
            ColumnType::Int32
            | ColumnType::UInt32
            | ColumnType::Float32
            | ColumnType::Date32
            | ColumnType::Ipv4
            | ColumnType::Decimal { precision: ..=9, .. } => 4,
            ColumnType::Int64
            | ColumnType::UInt64
            | ColumnType::Float64
            | ColumnType::DateTime64 { .. }
            | ColumnType::Time64
            | ColumnType::Decimal { precision: ..=18, .. } => 8,
            ColumnType::Uuid | ColumnType::Ipv6 | ColumnType::Decimal { precision: ..=38, .. } => 16,
            ColumnType::Decimal { .. } => 32,
            ColumnType::String
            | ColumnType::Bytes
            | ColumnType::LowCardinality
            | ColumnType::Json
            | ColumnType::Array { .. }
            | ColumnType::Vector => return None,
        })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnType::Decimal { precision, scale } => return write!(f, "Decimal({precision}, {scale})"),
            ColumnType::DateTime64 { precision } => return write!(f, "DateTime64({precision}, 'UTC')"),
            ColumnType::Array { element, nullable } => return write!(f, "Array({})", element.name(*nullable)),
            ColumnType::Vector => "Array(Float32)",
            ColumnType::Bool => "Bool",
            ColumnType::Int16 => "Int16",
            ColumnType::Int32 => "Int32",
            ColumnType::Int64 => "Int64",
            ColumnType::UInt32 => "UInt32",
            ColumnType::UInt64 => "UInt64",
            ColumnType::Float32 => "Float32",
            ColumnType::Float64 => "Float64",
            ColumnType::String | ColumnType::Bytes => "String",
            ColumnType::Uuid => "UUID",
            ColumnType::Date32 => "Date32",
            ColumnType::Time64 => "Time64(6)",
            ColumnType::LowCardinality => "LowCardinality(String)",
            ColumnType::Ipv4 => "IPv4",
            ColumnType::Ipv6 => "IPv6",
            ColumnType::Json => "JSON",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_clickhouse_prints() {
        let decimal = ColumnType::Decimal { precision: 12, scale: 2 };
        assert_eq!(decimal.name(false), "Decimal(12, 2)");
        assert_eq!(decimal.name(true), "Nullable(Decimal(12, 2))");
        assert_eq!(ColumnType::DateTime64 { precision: 6 }.name(true), "Nullable(DateTime64(6, 'UTC'))");
        assert_eq!(ColumnType::Uuid.name(false), "UUID");
        assert_eq!(ColumnType::Bytes.name(true), "Nullable(String)");
        assert_eq!(ColumnType::LowCardinality.name(false), "LowCardinality(String)");
        assert_eq!(ColumnType::LowCardinality.name(true), "LowCardinality(Nullable(String))");
    }

    #[test]
    fn an_array_has_one_name_whether_its_column_takes_null_or_not() {
        let array = |element, nullable| ColumnType::Array { element: Box::new(element), nullable };
        for nullable in [false, true] {
            assert_eq!(array(ColumnType::Int32, true).name(nullable), "Array(Nullable(Int32))");
            assert_eq!(array(ColumnType::Int32, false).name(nullable), "Array(Int32)");
            assert_eq!(array(array(ColumnType::Bytes, true), false).name(nullable), "Array(Array(Nullable(String)))");
            assert_eq!(
                array(ColumnType::LowCardinality, true).name(nullable),
                "Array(LowCardinality(Nullable(String)))"
            );
            assert_eq!(ColumnType::Vector.name(nullable), "Array(Float32)");
        }
    }
}
