//! From a type's name to the type, for what a configuration asks for and for what was stored.

use super::{ColumnType, MAX_DECIMAL_PRECISION, MICROSECONDS};
use std::str::FromStr;

/// More levels than PostgreSQL's arrays have.
const MAX_RANK: usize = 6;

impl FromStr for ColumnType {
    type Err = String;

    /// Reads a name as ClickHouse takes it. Whether a column takes NULL is not part of its type here.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("Nullable(") || text == "LowCardinality(Nullable(String))" {
            return Err("leave Nullable out: whether a column takes NULL follows from its source".to_owned());
        }
        read(text, 0).ok_or_else(|| {
            format!("{text:?} is no type that walhouse writes, such as \"String\", \"Decimal(38, 10)\" or \"Array(Array(Nullable(Int32)))\"")
        })
    }
}

fn read(text: &str, depth: usize) -> Option<ColumnType> {
    let text = text.trim();
    let (name, arguments) = match text.split_once('(') {
        Some((name, rest)) => (name.trim_end(), Some(rest.strip_suffix(')')?.trim())),
        None => (text, None),
    };
    Some(match (name, arguments) {
        ("Bool", None) => ColumnType::Bool,
        ("Int16", None) => ColumnType::Int16,
        ("Int32", None) => ColumnType::Int32,
        ("Int64", None) => ColumnType::Int64,
        ("UInt32", None) => ColumnType::UInt32,
        ("UInt64", None) => ColumnType::UInt64,
        ("Float32", None) => ColumnType::Float32,
        ("Float64", None) => ColumnType::Float64,
        ("String", None) => ColumnType::String,
        ("UUID", None) => ColumnType::Uuid,
        ("Date32", None) => ColumnType::Date32,
        ("IPv4", None) => ColumnType::Ipv4,
        ("IPv6", None) => ColumnType::Ipv6,
        ("JSON", None) => ColumnType::Json,
        ("Time64", Some("6")) => ColumnType::Time64,
        ("LowCardinality", Some("String")) => ColumnType::LowCardinality,
        ("Decimal", Some(arguments)) => decimal(arguments)?,
        ("DateTime64", Some(arguments)) => datetime(arguments)?,
        ("Array", Some(element)) if depth < MAX_RANK => array(element, depth + 1)?,
        _ => return None,
    })
}

fn decimal(arguments: &str) -> Option<ColumnType> {
    let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
    let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    let fits = (1..=MAX_DECIMAL_PRECISION).contains(&precision) && scale <= precision;
    fits.then_some(ColumnType::Decimal { precision, scale })
}

/// Digits beyond PostgreSQL's would only narrow the range.
fn datetime(arguments: &str) -> Option<ColumnType> {
    let (precision, zone) = arguments.split_once(',').unwrap_or((arguments, "'UTC'"));
    let precision = precision.trim().parse().ok().filter(|&precision| precision <= MICROSECONDS)?;
    (zone.trim() == "'UTC'").then_some(ColumnType::DateTime64 { precision })
}

fn array(element: &str, depth: usize) -> Option<ColumnType> {
    let (element, nullable) = match element.strip_prefix("Nullable(").and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => (read(inner, depth)?, true),
        None if element == "LowCardinality(Nullable(String))" => (ColumnType::LowCardinality, true),
        None => (read(element, depth)?, false),
    };
    let known = element != ColumnType::Json && (!nullable || element.takes_nullable());
    known.then(|| ColumnType::Array { element: Box::new(element), nullable })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_printed() {
        for name in [
            "Bool",
            "Int16",
            "Int32",
            "Int64",
            "UInt32",
            "UInt64",
            "Float32",
            "Float64",
            "String",
            "UUID",
            "Date32",
            "DateTime64(0, 'UTC')",
            "DateTime64(6, 'UTC')",
            "Time64(6)",
            "IPv4",
            "IPv6",
            "JSON",
            "LowCardinality(String)",
            "Decimal(76, 76)",
            "Array(Nullable(Decimal(12, 2)))",
            "Array(Float32)",
            "Array(Array(Array(Nullable(DateTime64(6, 'UTC')))))",
            "Array(LowCardinality(Nullable(String)))",
            "Array(LowCardinality(String))",
        ] {
            assert_eq!(name.parse::<ColumnType>().map(|ty| ty.to_string()), Ok(name.to_owned()));
        }
        assert_eq!("Decimal( 12 ,2)".parse(), Ok(ColumnType::Decimal { precision: 12, scale: 2 }));
        assert_eq!("Decimal(9)".parse(), Ok(ColumnType::Decimal { precision: 9, scale: 0 }));
        assert_eq!("DateTime64(3)".parse(), Ok(ColumnType::DateTime64 { precision: 3 }));
    }

    #[test]
    fn what_is_no_type_of_ours_is_refused() {
        for name in [
            "",
            "int32",
            "Int128",
            "Decimal",
            "Decimal(77, 0)",
            "Decimal(5, 6)",
            "Decimal(0, 0)",
            "Decimal(-1)",
            "DateTime64(7)",
            "DateTime64(3, 'Europe/Berlin')",
            "DateTime",
            "Time64(3)",
            "Array(Int32",
            "Array()",
            "Array(JSON)",
            "Array(Nullable(Array(Int32)))",
            "Array(Nullable(LowCardinality(String)))x",
            "LowCardinality(Int32)",
            "Array(Array(Array(Array(Array(Array(Array(Int32)))))))",
            "String)",
            "FixedString(3)",
        ] {
            assert!(name.parse::<ColumnType>().is_err(), "{name}");
        }
        for name in ["Nullable(Int32)", "LowCardinality(Nullable(String))"] {
            assert!(name.parse::<ColumnType>().expect_err(name).contains("leave Nullable out"));
        }
    }
}
