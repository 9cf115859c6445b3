//! ClickHouse's formats: blocks as they come in, and answers as they go out.

use crate::world::Landed;
use bytes::{Buf, BufMut};
use std::collections::HashMap;

/// The rows of a block of the Native format: a key, a value, and what every target has.
pub(crate) fn rows(mut data: &[u8]) -> Vec<(i64, Landed)> {
    let mut all: Vec<(i64, Landed)> = Vec::new();
    while data.has_remaining() {
        let (columns, count) = (varint(&mut data), varint(&mut data));
        let mut rows = vec![(0, Landed { version: 0, deleted: false, value: String::new() }); count];
        for _ in 0..columns {
            let (name, _) = (text(&mut data), text(&mut data));
            for (key, row) in &mut rows {
                match name.as_str() {
                    "id" => *key = data.get_i64_le(),
                    "value" => row.value = text(&mut data),
                    "_version" => row.version = data.get_u128_le(),
                    _ => row.deleted = data.get_u8() == 1,
                }
            }
        }
        all.extend(rows);
    }
    all
}

fn varint(data: &mut &[u8]) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = data.get_u8();
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

fn text(data: &mut &[u8]) -> String {
    let length = varint(data);
    String::from_utf8_lossy(&data.copy_to_bytes(length)).into_owned()
}

/// The type of a column in an answer.
#[derive(Clone, Copy)]
enum Type {
    String,
    UInt8,
    UInt32,
    UInt64,
    UInt128,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::String => "String",
            Self::UInt8 => "UInt8",
            Self::UInt32 => "UInt32",
            Self::UInt64 => "UInt64",
            Self::UInt128 => "UInt128",
        }
    }

    fn put(self, out: &mut Vec<u8>, value: &str) {
        match self {
            Self::String => put_text(out, value),
            Self::UInt8 => out.put_u8(value.parse().unwrap_or_default()),
            Self::UInt32 => out.put_u32_le(value.parse().unwrap_or_default()),
            Self::UInt64 => out.put_u64_le(value.parse().unwrap_or_default()),
            Self::UInt128 => out.put_u128_le(value.parse().unwrap_or_default()),
        }
    }
}

const CHECKPOINT: [(&str, Type); 9] = [
    ("epoch", Type::UInt8),
    ("lsn", Type::UInt64),
    ("queue_lsn", Type::UInt64),
    ("ceiling", Type::UInt64),
    ("system_identifier", Type::UInt64),
    ("timeline", Type::UInt32),
    ("publication", Type::String),
    ("outbox", Type::String),
    ("revision", Type::UInt64),
];

const TABLES: [(&str, Type); 17] = [
    ("oid", Type::UInt32),
    ("schema_name", Type::String),
    ("table_name", Type::String),
    ("target", Type::String),
    ("uuid", Type::String),
    ("status", Type::String),
    ("reason", Type::String),
    ("fed_from", Type::UInt64),
    ("read_until", Type::UInt64),
    ("floor", Type::UInt128),
    ("membership", Type::String),
    ("shape", Type::String),
    ("shaped_from", Type::UInt128),
    ("heaps", Type::String),
    ("altering", Type::String),
    ("fresh", Type::String),
    ("revision", Type::UInt64),
];

/// The stored checkpoint, if there is one.
pub(crate) fn checkpoint(row: Option<&HashMap<String, String>>) -> Vec<u8> {
    answer(&CHECKPOINT, row.into_iter())
}

/// What is stored of the tables.
pub(crate) fn tables<'a>(rows: impl Iterator<Item = &'a HashMap<String, String>>) -> Vec<u8> {
    answer(&TABLES, rows)
}

/// A count.
pub(crate) fn count(count: u64) -> Vec<u8> {
    let row = HashMap::from([("count()".to_owned(), count.to_string())]);
    answer(&[("count()", Type::UInt64)], [&row].into_iter())
}

/// RowBinaryWithNamesAndTypes.
fn answer<'a>(columns: &[(&str, Type)], rows: impl Iterator<Item = &'a HashMap<String, String>>) -> Vec<u8> {
    let mut out = vec![columns.len() as u8];
    columns.iter().for_each(|(name, _)| put_text(&mut out, name));
    columns.iter().for_each(|(_, ty)| put_text(&mut out, ty.name()));
    for row in rows {
        for (name, ty) in columns {
            ty.put(&mut out, row.get(*name).map_or("", String::as_str));
        }
    }
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    while length >= 0x80 {
        out.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.put_slice(text.as_bytes());
}
