//! What a text of PostgreSQL means in ClickHouse, slowly: digit by digit and year by year, as docs/types.md has it.

mod array;
mod calendar;
mod document;
mod number;

use super::{native::Cell, text::Kind};
use walhouse::{clickhouse::types::ColumnType, config::Unrepresentable};

/// What a column has of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    pub value: Cell,
    /// Whether it is another value, as the policy has it.
    pub replaced: bool,
}

/// Why it has nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// The text is none of the type's.
    Malformed,
    /// The type has no place for the value.
    Unheld,
}

/// A value, before the policy is asked.
enum Meaning {
    Value(Vec<u8>),
    Malformed,
    /// With the nearer end of the type's range, if it has one.
    Unheld(Option<Vec<u8>>),
}

use Meaning::{Malformed, Unheld, Value};

/// What the column has of a text; `None` if nothing is promised about it.
pub fn read(kind: &Kind, text: &[u8]) -> Option<Result<Read, Refusal>> {
    let meaning = match &kind.ty {
        ColumnType::Array { .. } | ColumnType::Vector => return array::read(kind, text),
        ColumnType::Json => document::meaning(text)?,
        _ => scalar(kind, text),
    };
    Some(decide(kind, meaning))
}

fn decide(kind: &Kind, meaning: Meaning) -> Result<Read, Refusal> {
    match (meaning, kind.policy) {
        (Value(value), _) => Ok(Read { value: Cell::Value(value), replaced: false }),
        (Malformed, _) => Err(Refusal::Malformed),
        (Unheld(_), Unrepresentable::Null) if kind.nullable => Ok(Read { value: Cell::Null, replaced: true }),
        (Unheld(Some(end)), Unrepresentable::Clamp) => Ok(Read { value: Cell::Value(end), replaced: true }),
        (Unheld(_), _) => Err(Refusal::Unheld),
    }
}

fn scalar(kind: &Kind, text: &[u8]) -> Meaning {
    match kind.ty {
        ColumnType::Bool => match text {
            b"t" => Value(vec![1]),
            b"f" => Value(vec![0]),
            _ => Malformed,
        },
        ColumnType::Int16 => number::integer(text, i16::MIN.into(), i16::MAX.into(), 2),
        ColumnType::Int32 => number::integer(text, i32::MIN.into(), i32::MAX.into(), 4),
        ColumnType::Int64 => number::integer(text, i64::MIN.into(), i64::MAX.into(), 8),
        ColumnType::UInt32 => number::integer(text, 0, u32::MAX.into(), 4),
        ColumnType::UInt64 => number::integer(text, 0, u64::MAX.into(), 8),
        ColumnType::Float32 => number::float(text, true),
        ColumnType::Float64 => number::float(text, false),
        ColumnType::Decimal { precision, scale } => number::decimal(text, precision.into(), scale.into()),
        ColumnType::String | ColumnType::LowCardinality => Value(text.to_vec()),
        ColumnType::Bytes => bytea(text).map_or(Malformed, Value),
        ColumnType::Uuid => uuid(text).map_or(Malformed, Value),
        ColumnType::Date32 => calendar::date(text),
        ColumnType::DateTime64 { precision } => calendar::timestamp(text, kind.range, precision),
        ColumnType::Time64 => calendar::time_of_day(text),
        ColumnType::Ipv4 | ColumnType::Ipv6 => address(text, kind.ty == ColumnType::Ipv4),
        ColumnType::Json | ColumnType::Array { .. } | ColumnType::Vector => unreachable!("they are read elsewhere"),
    }
}

fn hex(pair: &[u8]) -> Option<u8> {
    let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u8::from_str_radix(pair, 16).ok()
}

fn bytea(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(br"\x").filter(|digits| digits.len() % 2 == 0)?;
    digits.chunks(2).map(hex).collect()
}

fn uuid(text: &[u8]) -> Option<Vec<u8>> {
    let groups: Vec<_> = text.split(|&byte| byte == b'-').collect();
    if !groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) {
        return None;
    }
    let bytes: Vec<u8> = groups.concat().chunks(2).map(hex).collect::<Option<_>>()?;
    // Two numbers of 64 bits, each with its lowest byte first.
    Some(bytes.chunks(8).flat_map(|half| half.iter().rev().copied()).collect())
}

fn address(text: &[u8], of_four: bool) -> Meaning {
    let mut parts = text.splitn(2, |&byte| byte == b'/');
    let (address, length) = (parts.next().unwrap_or_default(), parts.next());
    let (four, six) = (four(address), six(address));
    let length = length.map(|length| std::str::from_utf8(length).ok().and_then(|length| length.parse::<u8>().ok()));
    match (length, four, six, of_four) {
        (_, None, None, _) | (Some(None), ..) => Malformed,
        (None, Some(four), _, true) => Value(four.into_iter().rev().collect()),
        (None, _, Some(six), false) => Value(six),
        _ => Unheld(None),
    }
}

fn four(text: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<_> = text.split(|&byte| byte == b'.').collect();
    let number = |part: &&[u8]| {
        let plain = part.len() == 1 || part.first() != Some(&b'0');
        let digits = (1..=3).contains(&part.len()) && part.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(part).ok().filter(|_| plain && digits)?.parse().ok()
    };
    if parts.len() != 4 { None } else { parts.iter().map(number).collect() }
}

fn six(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let Some((head, tail)) = text.split_once("::") else {
        return groups(text, true).filter(|bytes| bytes.len() == 16);
    };
    let (head, tail) = (groups(head, false)?, groups(tail, true)?);
    let zeros = 16_usize.checked_sub(head.len() + tail.len()).filter(|&zeros| zeros >= 2)?;
    Some([head, vec![0; zeros], tail].concat())
}

/// Groups of four hexadecimal digits, of which the last may be an address of the other kind.
fn groups(text: &str, may_end_with_four: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if text.is_empty() {
        return Some(bytes);
    }
    let groups: Vec<&str> = text.split(':').collect();
    for (at, group) in groups.iter().enumerate() {
        if may_end_with_four && at + 1 == groups.len() && group.contains('.') {
            bytes.extend(four(group.as_bytes())?);
            continue;
        }
        if !(1..=4).contains(&group.len()) || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        bytes.extend(u16::from_str_radix(group, 16).ok()?.to_be_bytes());
    }
    Some(bytes)
}
