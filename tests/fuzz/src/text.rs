//! PostgreSQL's text of every type, read into a column.
//!
//! The first two bytes say which column; the rest is the text. What ClickHouse would find in the column is what the oracle
//! makes of the text; what the oracle does not take is refused, and the other way round; and what is refused leaves the
//! column as it was.

use super::{
    alloc::peak,
    native::{Cell, cells},
    oracle::{Read, Refusal, read},
};
use walhouse::{
    clickhouse::{
        column::Column,
        text::{DateTimeRange, ValueError},
        types::ColumnType,
    },
    config::Unrepresentable,
};

/// What a column's type may be, in the order of the input's first byte.
pub fn types() -> Vec<ColumnType> {
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let array = |element, nullable| ColumnType::Array { element: Box::new(element), nullable };
    vec![
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Int64,
        ColumnType::UInt32,
        ColumnType::UInt64,
        ColumnType::Float32,
        ColumnType::Float64,
        decimal(9, 2),
        decimal(18, 18),
        decimal(38, 10),
        decimal(76, 30),
        ColumnType::String,
        ColumnType::Bytes,
        ColumnType::Uuid,
        ColumnType::Date32,
        ColumnType::DateTime64 { precision: 6 },
        ColumnType::DateTime64 { precision: 3 },
        ColumnType::DateTime64 { precision: 0 },
        ColumnType::Time64,
        ColumnType::LowCardinality,
        ColumnType::Ipv4,
        ColumnType::Ipv6,
        ColumnType::Json,
        ColumnType::Vector,
        array(ColumnType::Int32, true),
        array(ColumnType::String, true),
        array(decimal(12, 2), false),
        array(ColumnType::LowCardinality, true),
        array(array(ColumnType::Bytes, true), false),
        array(array(array(ColumnType::DateTime64 { precision: 6 }, true), false), false),
    ]
}

/// A column, as the input asks for it.
#[derive(Clone, Debug)]
pub struct Kind {
    pub ty: ColumnType,
    pub nullable: bool,
    pub range: DateTimeRange,
    pub policy: Unrepresentable,
}

impl Kind {
    fn of(which: u8, flags: u8) -> Self {
        let types = types();
        Self {
            ty: types[usize::from(which) % types.len()].clone(),
            nullable: flags & 1 == 0,
            range: if flags & 2 == 0 { DateTimeRange::Wide } else { DateTimeRange::Narrow },
            policy: match flags >> 2 & 3 {
                0 | 1 => Unrepresentable::Fail,
                2 => Unrepresentable::Null,
                _ => Unrepresentable::Clamp,
            },
        }
    }

    fn column(&self) -> Column {
        Column::new(self.ty.clone(), self.nullable).with_datetime_range(self.range).with_policy(self.policy)
    }
}

/// Bytes of a column and of what reading takes beside it, for a byte of the text: an array's element of one letter is a
/// number of 32 bytes with its marks, and a document's smallest path an entry of a set.
const TIMES: usize = 160;

pub fn run(data: &[u8]) {
    let [which, flags, text @ ..] = data else { return };
    let kind = Kind::of(*which, *flags);
    let mut column = kind.column();
    column.push_default();
    let native = |column: &Column| {
        let mut out = Vec::new();
        column.write_native(&mut out);
        column.write_null_marks(&mut out);
        (column.len(), column.replaced(), column.bytes(), out)
    };
    let before = native(&column);
    let (pushed, bytes) = peak(|| column.push_text(text));
    assert!(bytes <= TIMES * text.len() + 8192, "{bytes} bytes for a text of {}", text.len());
    let Some(expected) = read(&kind, text) else { return };
    match pushed {
        Err(error) => {
            assert!(native(&column) == before, "a refused value leaves the column as it was");
            refused(&kind, error, expected);
        }
        Ok(()) => {
            assert_eq!(column.len(), 2);
            let found = one(&kind, &column);
            assert_eq!(Ok(found.clone()), expected, "of a {kind:?}");
            taken(&kind, column, found, &before);
        }
    }
}

/// The value of the column's last row.
fn one(kind: &Kind, column: &Column) -> Read {
    let mut data = Vec::new();
    column.write_native(&mut data);
    let mut cells = cells(&kind.ty, kind.nullable, column.len(), &data);
    let mut marks = Vec::new();
    column.write_null_marks(&mut marks);
    let value = if marks.last() == Some(&1) { Cell::Null } else { cells.pop().unwrap() };
    Read { value, replaced: column.replaced() > 0 }
}

fn refused(kind: &Kind, error: ValueError, expected: Result<Read, Refusal>) {
    let same = match (error, &expected) {
        (_, Ok(_)) => false,
        // Of several things that are wrong with a list, either may be told.
        _ if matches!(kind.ty, ColumnType::Array { .. } | ColumnType::Vector | ColumnType::Json) => true,
        (ValueError::Malformed(_), Err(refusal)) => *refusal == Refusal::Malformed,
        (ValueError::Unrepresentable(_), Err(refusal)) => *refusal == Refusal::Unheld,
        (ValueError::Null, _) => false,
    };
    assert!(same, "{error:?} of a {kind:?}, and the oracle has {expected:?}");
}

/// A row is what it is wherever it is moved to.
fn taken(kind: &Kind, mut column: Column, found: Read, before: &(usize, usize, usize, Vec<u8>)) {
    let mut other = kind.column();
    other.push_from(&column, 1);
    assert_eq!(one(kind, &other).value, found.value);
    column.push_copy(1);
    assert_eq!(one(kind, &column).value, found.value);
    let (mut key, mut copied) = (Vec::new(), Vec::new());
    column.key_bytes(1, &mut key);
    column.key_bytes(2, &mut copied);
    assert!(key == copied, "a value and its copy are one key");
    column.truncate(1);
    let mut out = Vec::new();
    column.write_native(&mut out);
    column.write_null_marks(&mut out);
    assert!((column.len(), column.replaced(), column.bytes(), &out) == (before.0, before.1, before.2, &before.3));
}
