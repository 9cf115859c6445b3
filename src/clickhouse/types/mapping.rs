//! Which ClickHouse type holds a PostgreSQL type without loss.
//!
//! A type that is not listed here is a String with PostgreSQL's exact text: nothing is ever
//! approximated. Another type may be asked for where every value that it takes comes back as it was;
//! a value that it does not take is refused one by one.
//!
//! PostgreSQL does not enforce how many dimensions an array column was declared with. So a column
//! that was declared with one takes arrays of one; where more were declared, no rank of the values
//! can be relied on, and the text is kept.

use super::{ColumnType, MAX_DECIMAL_PRECISION, MICROSECONDS};
use crate::event::SourceColumn;
use tokio_postgres::types::Type;

impl ColumnType {
    /// The type for a single value of PostgreSQL. Domains are resolved to their base type by the
    /// caller, who also knows from the catalog whether the type is an enum. `time64` says whether
    /// the server has that type.
    pub fn of_postgres(type_oid: u32, type_modifier: i32, is_enum: bool, time64: bool) -> ColumnType {
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
            Some(Type::TIMESTAMP | Type::TIMESTAMPTZ) => ColumnType::DateTime64 { precision: MICROSECONDS },
            Some(Type::TIME) if time64 => ColumnType::Time64,
            _ => ColumnType::String,
        }
    }

    /// The type for a column, where nothing else is asked for.
    pub fn of_column(column: &SourceColumn, time64: bool) -> ColumnType {
        // A sorting key takes no Nullable elements.
        let is_key = column.key_position.is_some();
        if column.is_vector && !is_key {
            return ColumnType::Vector;
        }
        match &column.element {
            Some(element) if !is_key && column.dimensions <= 1 => {
                let ty = ColumnType::of_postgres(element.type_oid, element.type_modifier, element.is_enum, time64);
                ColumnType::Array { element: Box::new(ty), nullable: true }
            }
            _ => ColumnType::of_postgres(column.type_oid, column.type_modifier, column.is_enum, time64),
        }
    }

    /// The type for a column for which `wanted` is asked for.
    ///
    /// # Errors
    /// If it could not hold the column's values as they are.
    pub fn for_column(column: &SourceColumn, wanted: &str) -> Result<ColumnType, String> {
        let wanted: ColumnType = wanted.parse()?;
        let usual = Self::of_column(column, true);
        let fits = match (&wanted, &column.element) {
            (ColumnType::Array { .. }, _) if column.is_vector => {
                let floats = ColumnType::Array { element: Box::new(ColumnType::Float32), nullable: false };
                (wanted == floats).then_some(ColumnType::Vector)
            }
            (ColumnType::Array { .. }, Some(element)) => {
                let (oid, modifier) = (element.type_oid, element.type_modifier);
                let usual = Self::of_postgres(oid, modifier, element.is_enum, true);
                wanted.map_element(&|inner| fit(oid, &usual, inner))
            }
            (ColumnType::Array { .. }, None) => None,
            _ => fit(column.type_oid, &usual, &wanted),
        };
        let fits = fits.ok_or_else(|| {
            format!("{wanted} can not hold what {} holds without changing it; String can", column.type_name)
        })?;
        if column.key_position.is_some() && !fits.is_sortable() {
            return Err(format!("{wanted} can not be part of the sorting key, and this column is"));
        }
        Ok(fits)
    }

    /// The same array of what `map` makes of its innermost elements.
    fn map_element(&self, map: &dyn Fn(&ColumnType) -> Option<ColumnType>) -> Option<ColumnType> {
        match self {
            ColumnType::Array { element, nullable } => {
                Some(ColumnType::Array { element: Box::new(element.map_element(map)?), nullable: *nullable })
            }
            innermost => map(innermost),
        }
    }

    /// Which values of the column the type does not hold, for people; empty where it holds all.
    pub fn unheld(&self, column: &SourceColumn) -> String {
        let (oid, modifier) = match &column.element {
            Some(element) => (element.type_oid, element.type_modifier),
            None => (column.type_oid, column.type_modifier),
        };
        self.unheld_of(oid, modifier)
    }

    fn unheld_of(&self, type_oid: u32, type_modifier: i32) -> String {
        let source = Type::from_oid(type_oid);
        match self {
            ColumnType::Decimal { .. } if source == Some(Type::NUMERIC) => {
                if decimal(type_modifier).as_ref() == Some(self) {
                    "`NaN`".to_owned()
                } else {
                    "more digits, `NaN`, `Infinity`".to_owned()
                }
            }
            ColumnType::Date32 => "before 1900-01-01, after 2299-12-31, `infinity`".to_owned(),
            ColumnType::DateTime64 { precision } => {
                let mut unheld = "outside of the server's range, at least 1900 to 2299; `infinity`".to_owned();
                if *precision < MICROSECONDS {
                    unheld += &format!("; a fraction of more than {precision} digits");
                }
                unheld
            }
            ColumnType::Ipv4 => "IPv6, a network".to_owned(),
            ColumnType::Ipv6 => "IPv4, a network".to_owned(),
            ColumnType::Json => "what is no object, a path twice, a number that 64 bits would round".to_owned(),
            ColumnType::Array { element, nullable } => {
                let mut unheld = "another rank, a lower bound other than 1".to_owned();
                if !nullable && element.takes_nullable() {
                    unheld += ", NULL in it";
                }
                let mut innermost = element;
                while let ColumnType::Array { element, .. } = &**innermost {
                    innermost = element;
                }
                let of_elements = innermost.unheld_of(type_oid, type_modifier);
                if of_elements.is_empty() { unheld } else { format!("{unheld}; in it {of_elements}") }
            }
            _ => String::new(),
        }
    }
}

/// `wanted`, if it takes the values of a type of which `usual` is the usual one, and changes none.
fn fit(type_oid: u32, usual: &ColumnType, wanted: &ColumnType) -> Option<ColumnType> {
    let source = Type::from_oid(type_oid);
    let is = |types: &[Type]| source.as_ref().is_some_and(|source| types.contains(source));
    let fits = match (usual, wanted) {
        // The text of an array or of a vector too; of a bytea, its bytes.
        (ColumnType::Bytes, ColumnType::String) => return Some(ColumnType::Bytes),
        (_, ColumnType::String) => true,
        (ColumnType::String, ColumnType::LowCardinality) => true,
        (ColumnType::Int16, ColumnType::Int32 | ColumnType::Int64) => true,
        (ColumnType::Int32, ColumnType::Int64) => true,
        (ColumnType::UInt32, ColumnType::UInt64 | ColumnType::Int64) => true,
        (_, ColumnType::Decimal { .. }) if is(&[Type::NUMERIC]) => true,
        (_, ColumnType::Decimal { precision, scale }) => {
            integer_digits(usual).is_some_and(|digits| precision - scale >= digits)
        }
        (ColumnType::DateTime64 { .. }, ColumnType::DateTime64 { .. }) => true,
        (_, ColumnType::Ipv4 | ColumnType::Ipv6) => is(&[Type::INET]),
        (_, ColumnType::Json) => is(&[Type::JSON, Type::JSONB]),
        (usual, wanted) => usual == wanted,
    };
    fits.then(|| wanted.clone())
}

/// The most digits of an integer type.
fn integer_digits(ty: &ColumnType) -> Option<u8> {
    Some(match ty {
        ColumnType::Int16 => 5,
        ColumnType::Int32 | ColumnType::UInt32 => 10,
        ColumnType::Int64 => 19,
        ColumnType::UInt64 => 20,
        _ => return None,
    })
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
mod page;
#[cfg(test)]
mod tests;
