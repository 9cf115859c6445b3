//! Which ClickHouse type holds a PostgreSQL type without loss.
//!
//! A type that is not listed here is a String with PostgreSQL's exact text: nothing is ever
//! approximated. Whether a *value* fits is another question, which [`super::text`] answers.

use std::fmt;
use tokio_postgres::types::Type;

/// The most digits that a ClickHouse Decimal has.
pub const MAX_DECIMAL_PRECISION: u8 = 76;

/// A ClickHouse type that walhouse writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Microseconds in UTC; see [`super::text::DateTimeRange`] for its range.
    DateTime64,
    /// A String of few distinct values: the label of an enum.
    LowCardinality,
}

impl ColumnType {
    /// The type for a column of PostgreSQL. Domains are resolved to their base type by the caller,
    /// who also knows from the catalog whether the type is an enum.
    pub fn of_postgres(type_oid: u32, type_modifier: i32, is_enum: bool) -> ColumnType {
        if is_enum {
            return ColumnType::LowCardinality;
        }
        match Type::from_oid(type_oid) {
            Some(Type::BOOL) => ColumnType::Bool,
            Some(Type::INT2) => ColumnType::Int16,
            Some(Type::INT4) => ColumnType::Int32,
            Some(Type::INT8) => ColumnType::Int64,
            Some(Type::OID | Type::XID) => ColumnType::UInt32,
            Some(Type::XID8) => ColumnType::UInt64,
            Some(Type::FLOAT4) => ColumnType::Float32,
            Some(Type::FLOAT8) => ColumnType::Float64,
            Some(Type::NUMERIC) => decimal(type_modifier).unwrap_or(ColumnType::String),
            Some(Type::BYTEA) => ColumnType::Bytes,
            Some(Type::UUID) => ColumnType::Uuid,
            Some(Type::DATE) => ColumnType::Date32,
            Some(Type::TIMESTAMP | Type::TIMESTAMPTZ) => ColumnType::DateTime64,
            _ => ColumnType::String,
        }
    }

    /// Its name, exactly as ClickHouse itself prints it.
    pub fn name(self, nullable: bool) -> String {
        match (self, nullable) {
            (_, false) => self.to_string(),
            // LowCardinality is the one type that takes Nullable inside.
            (ColumnType::LowCardinality, true) => "LowCardinality(Nullable(String))".to_owned(),
            (_, true) => format!("Nullable({self})"),
        }
    }

    /// Bytes that a value takes in the Native format, where that is the same for each.
    pub(crate) fn width(self) -> Option<usize> {
        Some(match self {
            ColumnType::Bool => 1,
            ColumnType::Int16 => 2,
            ColumnType::Int32 | ColumnType::UInt32 | ColumnType::Float32 | ColumnType::Date32 => 4,
            ColumnType::Int64 | ColumnType::UInt64 | ColumnType::Float64 | ColumnType::DateTime64 => 8,
            ColumnType::Uuid => 16,
            ColumnType::Decimal { precision: ..=9, .. } => 4,
            ColumnType::Decimal { precision: ..=18, .. } => 8,
            ColumnType::Decimal { precision: ..=38, .. } => 16,
            ColumnType::Decimal { .. } => 32,
            ColumnType::String | ColumnType::Bytes | ColumnType::LowCardinality => return None,
        })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnType::Decimal { precision, scale } => return write!(f, "Decimal({precision}, {scale})"),
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
            ColumnType::DateTime64 => "DateTime64(6, 'UTC')",
            ColumnType::LowCardinality => "LowCardinality(String)",
        })
    }
}

/// The Decimal of a numeric's type modifier: the precision in the upper half and the scale, an
/// 11-bit signed number, in the lower, both moved up by the four bytes of a varlena header.
fn decimal(type_modifier: i32) -> Option<ColumnType> {
    let packed = type_modifier.checked_sub(4).filter(|&packed| packed >= 0)?;
    // A negative scale has its sign bit set, so it comes out larger than any precision we take.
    let scale = u8::try_from(packed & 0x7ff).ok()?;
    let precision = u8::try_from(packed >> 16).ok()?;
    let fits = (1..=MAX_DECIMAL_PRECISION).contains(&precision) && scale <= precision;
    fits.then_some(ColumnType::Decimal { precision, scale })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ty: Type) -> ColumnType {
        ColumnType::of_postgres(ty.oid(), -1, false)
    }

    fn numeric(precision: i32, scale: i32) -> ColumnType {
        ColumnType::of_postgres(1700, ((precision << 16) | (scale & 0x7ff)) + 4, false)
    }

    #[test]
    fn every_ordinary_type_has_its_own() {
        assert_eq!(of(Type::BOOL), ColumnType::Bool);
        assert_eq!(of(Type::INT2), ColumnType::Int16);
        assert_eq!(of(Type::INT4), ColumnType::Int32);
        assert_eq!(of(Type::INT8), ColumnType::Int64);
        assert_eq!(of(Type::OID), ColumnType::UInt32);
        assert_eq!(of(Type::XID), ColumnType::UInt32);
        assert_eq!(of(Type::XID8), ColumnType::UInt64);
        assert_eq!(of(Type::FLOAT4), ColumnType::Float32);
        assert_eq!(of(Type::FLOAT8), ColumnType::Float64);
        assert_eq!(of(Type::BYTEA), ColumnType::Bytes);
        assert_eq!(of(Type::UUID), ColumnType::Uuid);
        assert_eq!(of(Type::DATE), ColumnType::Date32);
        assert_eq!(of(Type::TIMESTAMP), ColumnType::DateTime64);
        assert_eq!(of(Type::TIMESTAMPTZ), ColumnType::DateTime64);
    }

    #[test]
    fn what_has_no_type_of_its_own_is_a_string() {
        for ty in [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::CHAR, Type::JSON, Type::JSONB] {
            assert_eq!(of(ty), ColumnType::String);
        }
        for ty in [Type::TIME, Type::INTERVAL, Type::INET, Type::INT4_ARRAY, Type::MONEY, Type::PG_LSN, Type::XML] {
            assert_eq!(of(ty), ColumnType::String);
        }
        assert_eq!(ColumnType::of_postgres(16_384, -1, false), ColumnType::String);
        assert_eq!(ColumnType::of_postgres(16_384, -1, true), ColumnType::LowCardinality);
    }

    #[test]
    fn a_numeric_is_a_decimal_where_one_can_hold_it() {
        assert_eq!(numeric(12, 2), ColumnType::Decimal { precision: 12, scale: 2 });
        assert_eq!(numeric(1, 0), ColumnType::Decimal { precision: 1, scale: 0 });
        assert_eq!(numeric(76, 76), ColumnType::Decimal { precision: 76, scale: 76 });
        for (precision, scale) in [(77, 0), (1000, 10), (5, 6), (5, -2), (3, -1000), (5, 1000)] {
            assert_eq!(numeric(precision, scale), ColumnType::String, "numeric({precision}, {scale})");
        }
        for modifier in [-1, 0, 3, 4, i32::MIN] {
            assert_eq!(ColumnType::of_postgres(1700, modifier, false), ColumnType::String, "modifier {modifier}");
        }
    }

    #[test]
    fn names_are_those_that_clickhouse_prints() {
        let decimal = ColumnType::Decimal { precision: 12, scale: 2 };
        assert_eq!(decimal.name(false), "Decimal(12, 2)");
        assert_eq!(decimal.name(true), "Nullable(Decimal(12, 2))");
        assert_eq!(ColumnType::DateTime64.name(true), "Nullable(DateTime64(6, 'UTC'))");
        assert_eq!(ColumnType::Uuid.name(false), "UUID");
        assert_eq!(ColumnType::Bytes.name(true), "Nullable(String)");
        assert_eq!(ColumnType::LowCardinality.name(false), "LowCardinality(String)");
        assert_eq!(ColumnType::LowCardinality.name(true), "LowCardinality(Nullable(String))");
    }
}
