//! A value of a column in PostgreSQL's text form: what [`Column::push_text`] reads back as the same
//! value. Only for a row that ClickHouse refused, whose own text is gone by then.

use super::{Column, ColumnType, take_varint};
use std::{
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
};

/// The text form of a row's value; `None` is NULL. Panics if there is no such row.
pub(in crate::clickhouse) fn text(column: &Column, row: usize) -> Option<Vec<u8>> {
    if column.null(row) == 1 && column.nulls.is_some() {
        return None;
    }
    if let Some(elements) = &column.elements {
        return Some(array(column, elements, row));
    }
    let mut value = &column.data[column.span(row)];
    if column.width.is_none() {
        take_varint(&mut value);
    }
    let text = match column.ty {
        ColumnType::Bool => if value == [1] { "t" } else { "f" }.to_owned(),
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => (low(value) as i64).to_string(),
        ColumnType::UInt32 | ColumnType::UInt64 => unsigned(value).to_string(),
        ColumnType::Float32 => float(f64::from(f32::from_bits(unsigned(value) as u32)), || {
            f32::from_bits(unsigned(value) as u32).to_string()
        }),
        ColumnType::Float64 => {
            let value = f64::from_bits(unsigned(value));
            float(value, || value.to_string())
        }
        ColumnType::Decimal { scale, .. } => decimal(value, usize::from(scale)),
        ColumnType::String | ColumnType::LowCardinality | ColumnType::Json => return Some(value.to_vec()),
        ColumnType::Bytes => value.iter().fold(r"\x".to_owned(), |mut text, byte| {
            // Writing to a String can not fail.
            let _ = write!(text, "{byte:02x}");
            text
        }),
        ColumnType::Uuid => uuid(value),
        ColumnType::Date32 => date(low(value) as i64),
        ColumnType::DateTime64 { precision } => {
            let per_second = 10_i64.pow(u32::from(precision));
            let units = low(value) as i64;
            let (seconds, rest) = (units.div_euclid(per_second), units.rem_euclid(per_second));
            let micros = rest * (1_000_000 / per_second);
            let (days, seconds) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
            format!("{} {}", date(days), time(seconds, micros))
        }
        ColumnType::Time64 => {
            let micros = low(value) as i64;
            time(micros / 1_000_000, micros % 1_000_000)
        }
        ColumnType::Ipv4 => Ipv4Addr::from(unsigned(value) as u32).to_string(),
        ColumnType::Ipv6 => Ipv6Addr::from(<[u8; 16]>::try_from(value).unwrap_or_default()).to_string(),
        // They have elements.
        ColumnType::Array { .. } | ColumnType::Vector => String::new(),
    };
    Some(text.into_bytes())
}

/// The text form of an array, its elements quoted, or of a vector.
fn array(column: &Column, elements: &Column, row: usize) -> Vec<u8> {
    let (open, close) = if column.ty == ColumnType::Vector { (b'[', b']') } else { (b'{', b'}') };
    let plain = column.ty == ColumnType::Vector || elements.elements.is_some();
    let mut out = vec![open];
    for (place, element) in column.span(row).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        match text(elements, element) {
            None => out.extend_from_slice(b"NULL"),
            Some(text) if plain => out.extend_from_slice(&text),
            Some(text) => {
                out.push(b'"');
                for byte in text {
                    if matches!(byte, b'"' | b'\\') {
                        out.push(b'\\');
                    }
                    out.push(byte);
                }
                out.push(b'"');
            }
        }
    }
    out.push(close);
    out
}

fn time(seconds: i64, micros: i64) -> String {
    format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The lowest 64 bits of a little-endian number, with its sign.
fn low(value: &[u8]) -> u64 {
    let negative = value.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut bytes = [if negative { 0xff } else { 0 }; 8];
    bytes.iter_mut().zip(value).for_each(|(byte, &of)| *byte = of);
    u64::from_le_bytes(bytes)
}

fn unsigned(value: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(value).for_each(|(byte, &of)| *byte = of);
    u64::from_le_bytes(bytes)
}

fn float(value: f64, finite: impl Fn() -> String) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => finite(),
    }
}

/// A number in two's complement of any width, with its point `scale` digits from the end.
fn decimal(value: &[u8], scale: usize) -> String {
    let negative = value.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut bytes = value.to_vec();
    if negative {
        let mut carry = true;
        for byte in &mut bytes {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    // Digits by long division, the lowest first.
    let mut digits = Vec::new();
    while bytes.iter().any(|&byte| byte != 0) || digits.len() <= scale {
        let mut rest = 0;
        for byte in bytes.iter_mut().rev() {
            let part = rest << 8 | u16::from(*byte);
            *byte = (part / 10) as u8;
            rest = part % 10;
        }
        digits.push(char::from(b'0' + rest as u8));
    }
    let (fraction, whole) = digits.split_at(scale);
    let sign = negative.then_some('-');
    let point = (scale > 0).then_some('.');
    sign.into_iter().chain(whole.iter().rev().copied()).chain(point).chain(fraction.iter().rev().copied()).collect()
}

fn uuid(value: &[u8]) -> String {
    let bytes: [u8; 16] = value.try_into().unwrap_or_default();
    uuid::Uuid::from_u128(u128::from_le_bytes(bytes).rotate_left(64)).to_string()
}

/// A day of the proleptic Gregorian calendar, counted from 1970-01-01.
fn date(days: i64) -> String {
    let leaps = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let first_day = |year: i64| (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let mut year = 1970 + days.div_euclid(366);
    while first_day(year) > days {
        year -= 1;
    }
    while first_day(year + 1) <= days {
        year += 1;
    }
    let mut day = days - first_day(year);
    let leap = first_day(year + 1) - first_day(year) == 366;
    let mut month = 1;
    for length in [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        (day, month) = (day - length, month + 1);
    }
    format!("{year:04}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::text::DateTimeRange;
    use proptest::prelude::*;

    const MOMENT: ColumnType = ColumnType::DateTime64 { precision: 6 };

    /// What is rendered is read back as the same value.
    fn comes_back(ty: ColumnType, input: &str) -> String {
        let mut column = Column::new(ty.clone(), true).with_datetime_range(DateTimeRange::Wide);
        column.push_text(b"").ok();
        let row = column.len();
        column.push_text(input.as_bytes()).unwrap();
        let rendered = text(&column, row).unwrap();
        let mut again = Column::new(ty.clone(), true).with_datetime_range(DateTimeRange::Wide);
        again.push_text(&rendered).unwrap();
        let mut first = Column::new(ty, true).with_datetime_range(DateTimeRange::Wide);
        first.push_text(input.as_bytes()).unwrap();
        assert_eq!(again.data, first.data, "{input:?}");
        let data = |column: Column| column.elements.map(|elements| elements.data);
        assert_eq!(data(again), data(first), "{input:?}");
        String::from_utf8(rendered).unwrap()
    }

    #[test]
    fn each_type_is_rendered_as_postgresql_would() {
        let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
        let array = |element| ColumnType::Array { element: Box::new(element), nullable: true };
        for (ty, input) in [
            (ColumnType::Bool, "t"),
            (ColumnType::Bool, "f"),
            (ColumnType::Int16, "-32768"),
            (ColumnType::Int32, "2147483647"),
            (ColumnType::Int64, "-9223372036854775808"),
            (ColumnType::UInt32, "4294967295"),
            (ColumnType::UInt64, "18446744073709551615"),
            (ColumnType::Float32, "0.1"),
            (ColumnType::Float64, "-0"),
            (ColumnType::Float64, "NaN"),
            (ColumnType::Float64, "-Infinity"),
            (ColumnType::String, "ä\t\n"),
            (ColumnType::String, ""),
            (ColumnType::LowCardinality, "so 'so'"),
            (ColumnType::Bytes, r"\x00ff"),
            (ColumnType::Uuid, "00112233-4455-6677-8899-aabbccddeeff"),
            (ColumnType::Date32, "1900-01-01"),
            (ColumnType::Date32, "2000-02-29"),
            (ColumnType::Date32, "2299-12-31"),
            (MOMENT, "0001-01-01 00:00:00.000000"),
            (MOMENT, "1969-12-31 23:59:59.999999"),
            (MOMENT, "9999-12-31 23:59:59.999999"),
            (ColumnType::DateTime64 { precision: 3 }, "1969-12-31 23:59:59.999000"),
            (ColumnType::Time64, "24:00:00.000000"),
            (ColumnType::Ipv4, "10.0.0.1"),
            (ColumnType::Ipv6, "2001:db8::1"),
            (ColumnType::Json, r#"{"a": 1}"#),
            (ColumnType::Vector, "[1,-2.5]"),
            (array(ColumnType::Int32), "{\"1\",NULL,\"-3\"}"),
            (array(ColumnType::String), r#"{"a \"b\" \\","NULL",NULL,""}"#),
            (decimal(4, 2), "-0.01"),
            (decimal(4, 2), "12.34"),
            (decimal(9, 0), "0"),
            (decimal(76, 76), "-0.9999999999999999999999999999999999999999999999999999999999999999999999999999"),
            (decimal(76, 0), "9999999999999999999999999999999999999999999999999999999999999999999999999999"),
        ] {
            assert_eq!(comes_back(ty, input), input);
        }
        let mut column = Column::new(ColumnType::Int32, true);
        column.push_null().unwrap();
        assert_eq!(text(&column, 0), None);
    }

    proptest! {
        #[test]
        fn any_number_and_any_moment_comes_back(
            number: i64,
            float in proptest::num::f64::ANY,
            days in -25_567i64..120_530,
            second in 0u32..86_400,
        ) {
            comes_back(ColumnType::Int64, &number.to_string());
            comes_back(ColumnType::Decimal { precision: 38, scale: 7 }, &number.to_string());
            if float.is_finite() {
                comes_back(ColumnType::Float64, &format!("{float:e}"));
            }
            comes_back(ColumnType::Date32, &date(days));
            let time = format!("{} {:02}:{:02}:{:02}", date(days), second / 3600, second / 60 % 60, second % 60);
            comes_back(MOMENT, &time);
        }
    }
}
