//! The types of a report's parameters, and whether a value is of one.
//!
//! A value is bound by ClickHouse itself, to a placeholder with this very type: it never becomes a part of the statement. It is
//! looked at here before, so that whoever asked hears at once what is wrong, in words and without the value.

use super::{options::SettingValue, value::as_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, str::FromStr, time::SystemTime};

/// A parameter of a report: its type, and what it is where nobody says so.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct Parameter {
    /// What values it takes.
    pub of: ParameterType,
    /// Its value if none is given; without one it has to be given.
    pub default: Option<SettingValue>,
}

/// How a parameter is written: its type alone, or with a default.
#[derive(Clone, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a type, such as \"Date\", or { type = \"UInt32\", default = 100 }")]
enum Form {
    Type(String),
    Full(Full),
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Full {
    r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<SettingValue>,
}

impl TryFrom<Form> for Parameter {
    type Error = String;

    fn try_from(form: Form) -> Result<Self, String> {
        let (of, default) = match form {
            Form::Type(of) => (of, None),
            Form::Full(full) => (full.r#type, full.default),
        };
        Ok(Self { of: of.parse()?, default })
    }
}

impl From<Parameter> for Form {
    fn from(Parameter { of, default }: Parameter) -> Self {
        match default {
            None => Self::Type(of.to_string()),
            default => Self::Full(Full { r#type: of.to_string(), default }),
        }
    }
}

/// What values a parameter takes, by ClickHouse's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterType {
    /// Any text.
    String,
    /// Yes or no.
    Bool,
    /// A day, `2026-01-31`.
    Date,
    /// A moment, `2026-01-31T12:00:00Z`; whole seconds.
    DateTime,
    /// A UUID.
    Uuid,
    /// A number.
    Float64,
    /// A whole number of so many bits.
    Int(u32),
    /// One that is not negative.
    UInt(u32),
    /// A number with up to so many digits, of which so many follow the point.
    Decimal(u32, u32),
}

const TYPES: &str =
    "String, Bool, Date, DateTime('UTC'), UUID, Float64, Int8 to Int64, UInt8 to UInt64 or Decimal(P, S)";

impl FromStr for ParameterType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = |text: &str| text.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits));
        let decimal = |text: &str| {
            let (digits, scale) = text.strip_prefix("Decimal(")?.strip_suffix(')')?.split_once(',')?;
            let (digits, scale) = (digits.trim().parse().ok()?, scale.trim().parse().ok()?);
            ((1..=76).contains(&digits) && scale <= digits).then_some(Self::Decimal(digits, scale))
        };
        let known = match text {
            "String" => Some(Self::String),
            "Bool" => Some(Self::Bool),
            "Date" => Some(Self::Date),
            "DateTime('UTC')" => Some(Self::DateTime),
            "UUID" => Some(Self::Uuid),
            "Float64" => Some(Self::Float64),
            _ => None,
        };
        known
            .or_else(|| text.strip_prefix("Int").and_then(bits).map(Self::Int))
            .or_else(|| text.strip_prefix("UInt").and_then(bits).map(Self::UInt))
            .or_else(|| decimal(text))
            .ok_or_else(|| format!("{text:?} is no type of a parameter: it is {TYPES}"))
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("String"),
            Self::Bool => f.write_str("Bool"),
            Self::Date => f.write_str("Date"),
            Self::DateTime => f.write_str("DateTime('UTC')"),
            Self::Uuid => f.write_str("UUID"),
            Self::Float64 => f.write_str("Float64"),
            Self::Int(bits) => write!(f, "Int{bits}"),
            Self::UInt(bits) => write!(f, "UInt{bits}"),
            Self::Decimal(digits, scale) => write!(f, "Decimal({digits}, {scale})"),
        }
    }
}

as_text!(ParameterType);

impl ParameterType {
    /// A value as ClickHouse reads it.
    ///
    /// # Errors
    /// What is expected, without the value.
    pub fn text(self, value: &Value) -> Result<String, String> {
        let text = match (self, value) {
            (Self::String, Value::String(text)) => Some(text.clone()),
            (Self::Bool, Value::Bool(on)) => Some(on.to_string()),
            (Self::Date, Value::String(text)) => is_day(text).then(|| text.clone()),
            (Self::DateTime, Value::String(text)) => moment(text),
            (Self::Uuid, Value::String(text)) => uuid::Uuid::try_parse(text).ok().map(|id| id.to_string()),
            (Self::Float64, Value::Number(number)) => {
                number.as_f64().filter(|number| number.is_finite()).map(|number| number.to_string())
            }
            (Self::Int(bits), value) => {
                let most = i64::MAX >> (64 - bits);
                whole(value)
                    .and_then(|text| text.parse().ok())
                    .filter(|number| (-most - 1..=most).contains(number))
                    .map(|number| number.to_string())
            }
            (Self::UInt(bits), value) => {
                let most = u64::MAX >> (64 - bits);
                whole(value)
                    .and_then(|text| text.parse().ok())
                    .filter(|number| *number <= most)
                    .map(|number: u64| number.to_string())
            }
            (Self::Decimal(digits, scale), value) => whole(value).filter(|text| is_decimal(text, digits, scale)),
            _ => None,
        };
        text.ok_or_else(|| format!("it takes {}", self.expected()))
    }

    /// Some value, as ClickHouse reads it.
    pub fn sample(self) -> &'static str {
        match self {
            Self::Bool => "true",
            Self::Date => "2026-01-31",
            Self::DateTime => "2026-01-31 12:00:00",
            Self::Uuid => "00000000-0000-0000-0000-000000000001",
            Self::Decimal(digits, scale) if digits == scale => "0",
            Self::String | Self::Float64 | Self::Int(_) | Self::UInt(_) | Self::Decimal(..) => "1",
        }
    }

    fn expected(self) -> String {
        match self {
            Self::String => "a string".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Date => "a day such as \"2026-01-31\", from 1970 to 2148".to_owned(),
            Self::DateTime => "a moment such as \"2026-01-31T12:00:00Z\", from 1970 to 2105".to_owned(),
            Self::Uuid => "a UUID".to_owned(),
            Self::Float64 => "a number".to_owned(),
            Self::Int(_) | Self::UInt(_) => format!("a whole number ({self})"),
            Self::Decimal(..) => format!("a number with its digits ({self}), as a string where they matter"),
        }
    }
}

/// A number, or the text of one.
fn whole(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_decimal(text: &str, all: u32, scale: u32) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (before, after) = text.split_once('.').unwrap_or((text, "0"));
    let fits = |part: &str, most: u32| !part.is_empty() && digits(part) && part.len() <= most as usize;
    fits(before, (all - scale).max(1)) && fits(after, scale.max(1))
}

/// Whether it is a day of the calendar that ClickHouse's Date holds in whole years.
fn is_day(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    if [year.len(), month.len(), day.len()] != [4, 2, 2] || !parts.iter().all(|part| digits(part)) {
        return false;
    }
    let number = |part: &str| part.parse::<u32>().unwrap_or(0);
    let (year, month, day) = (number(year), number(month), number(day));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1970..=2148).contains(&year) && (1..=days).contains(&day)
}

/// A moment in ClickHouse's form, in UTC.
fn moment(text: &str) -> Option<String> {
    let time = humantime::parse_rfc3339(text).ok()?;
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let plain = humantime::format_rfc3339_seconds(time).to_string();
    (seconds <= u64::from(u32::MAX)).then(|| plain.replace('T', " ").trim_end_matches('Z').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_is_of_its_type_or_refused_without_being_quoted() {
        for (of, value, text) in [
            ("String", json!("a' OR 1=1 --\n"), "a' OR 1=1 --\n"),
            ("Bool", json!(true), "true"),
            ("Date", json!("2024-02-29"), "2024-02-29"),
            ("DateTime('UTC')", json!("2026-01-31T12:00:00.9Z"), "2026-01-31 12:00:00"),
            ("UUID", json!("018F3B5E-7c1a-8000-8000-0123456789ab"), "018f3b5e-7c1a-8000-8000-0123456789ab"),
            ("Float64", json!(1.5), "1.5"),
            ("Int8", json!(-128), "-128"),
            ("UInt64", json!(u64::MAX), "18446744073709551615"),
            ("UInt16", json!("7"), "7"),
            ("Int64", json!(i64::MIN), "-9223372036854775808"),
            ("Decimal(5, 2)", json!("-123.45"), "-123.45"),
            ("Decimal(5, 2)", json!(1.5), "1.5"),
        ] {
            assert_eq!(of.parse::<ParameterType>().unwrap().text(&value), Ok(text.to_owned()), "{of} {value}");
        }
        for (of, value) in [
            ("String", json!(7)),
            ("String", json!(["canary"])),
            ("Bool", json!("canary")),
            ("Date", json!("2023-02-29")),
            ("Date", json!("2023-2-9")),
            ("Date", json!("+023-02-09")),
            ("Date", json!("1969-12-31")),
            ("Date", json!("today() canary")),
            ("DateTime('UTC')", json!("2026-01-31")),
            ("UUID", json!("canary")),
            ("Float64", json!("1.5")),
            ("Int8", json!(128)),
            ("UInt8", json!(-1)),
            ("UInt32", json!(4_294_967_296_u64)),
            ("UInt32", json!("1 OR 1")),
            ("UInt32", json!(1.0)),
            ("UInt32", json!(null)),
            ("UInt32", json!({"canary": 1})),
            ("Decimal(5, 2)", json!("1234.5")),
            ("Decimal(5, 2)", json!("1.234")),
            ("Decimal(5, 2)", json!("1e2")),
        ] {
            let why = of.parse::<ParameterType>().unwrap().text(&value).expect_err(&format!("{of} {value}"));
            assert!(why.starts_with("it takes ") && !why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn types_are_those_of_clickhouse_and_print_as_they_are_read() {
        for of in ["String", "Bool", "Date", "DateTime('UTC')", "UUID", "Float64", "Int8", "UInt64", "Decimal(12, 2)"] {
            assert_eq!(of.parse::<ParameterType>().unwrap().to_string(), of);
        }
        for of in [
            "",
            "string",
            "Identifier",
            "DateTime",
            "Int7",
            "UInt128",
            "Decimal(77, 1)",
            "Decimal(2, 3)",
            "Nullable(String)",
        ] {
            assert!(of.parse::<ParameterType>().unwrap_err().contains("DateTime('UTC')"), "{of}");
        }
    }
}
