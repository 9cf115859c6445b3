//! ClickHouse's Native format read, from its documentation: what the server would find in a column.

use walhouse::clickhouse::types::ColumnType;

/// A value as ClickHouse has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    /// The bytes of a value of fixed width, or of a String.
    Value(Vec<u8>),
    Array(Vec<Cell>),
}

/// The bytes of a value; `None` for a String.
fn width(ty: &ColumnType) -> Option<usize> {
    Some(match ty.name(false).as_str() {
        "Bool" => 1,
        "Int16" => 2,
        "Int32" | "UInt32" | "Float32" | "Date32" | "IPv4" => 4,
        "Int64" | "UInt64" | "Float64" | "Time64(6)" => 8,
        "UUID" | "IPv6" => 16,
        name if name.starts_with("DateTime64") => 8,
        _ => match ty {
            ColumnType::Decimal { precision: 0..=9, .. } => 4,
            ColumnType::Decimal { precision: 10..=18, .. } => 8,
            ColumnType::Decimal { precision: 19..=38, .. } => 16,
            ColumnType::Decimal { .. } => 32,
            _ => return None,
        },
    })
}

/// The `rows` values of a column's data, all of which is read.
pub fn cells(ty: &ColumnType, nullable: bool, rows: usize, data: &[u8]) -> Vec<Cell> {
    if rows == 0 {
        assert!(data.is_empty(), "a column without rows has no data");
        return Vec::new();
    }
    let mut reader = Reader { rest: data };
    reader.prefix(ty);
    let cells = reader.rows(ty, nullable, rows);
    assert!(reader.rest.is_empty(), "{} bytes follow the column", reader.rest.len());
    cells
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> &'a [u8] {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = self.take(1)[0];
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return self.take(length);
            }
        }
    }

    fn prefix(&mut self, ty: &ColumnType) {
        match ty {
            ColumnType::Array { element, .. } => self.prefix(element),
            ColumnType::LowCardinality | ColumnType::Json => assert_eq!(self.word(), 1),
            _ => {}
        }
    }

    fn rows(&mut self, ty: &ColumnType, nullable: bool, rows: usize) -> Vec<Cell> {
        let element = match ty {
            ColumnType::Array { element, nullable } => Some(((**element).clone(), *nullable)),
            ColumnType::Vector => Some((ColumnType::Float32, false)),
            _ => None,
        };
        if let Some((element, nullable)) = element {
            let ends: Vec<usize> = (0..rows).map(|_| self.word() as usize).collect();
            let mut cells = self.rows(&element, nullable, ends.last().copied().unwrap_or_default()).into_iter();
            let mut start = 0;
            let arrays = ends.iter().map(|&end| {
                let length = end.checked_sub(start).expect("an array ends after it began");
                start = end;
                Cell::Array(cells.by_ref().take(length).collect())
            });
            return arrays.collect();
        }
        if *ty == ColumnType::LowCardinality {
            return self.dictionary(nullable, rows);
        }
        let nulls = if nullable { self.take(rows) } else { &[] };
        let values: Vec<_> = (0..rows)
            .map(|_| match width(ty) {
                Some(width) => self.take(width),
                None => self.string(),
            })
            .collect();
        let cell = |(row, value): (usize, &&[u8])| match nulls.get(row) {
            Some(1) => Cell::Null,
            Some(0) | None => Cell::Value(value.to_vec()),
            Some(other) => panic!("a null mark of {other}"),
        };
        values.iter().enumerate().map(cell).collect()
    }

    fn dictionary(&mut self, nullable: bool, rows: usize) -> Vec<Cell> {
        if rows == 0 {
            return Vec::new();
        }
        let flags = self.word();
        let width = 1 << (flags & 0xff);
        assert_eq!(flags >> 8, 2, "it brings keys of its own");
        let keys = self.word();
        let keys: Vec<_> = (0..keys).map(|_| self.string()).collect();
        assert_eq!(self.word(), rows as u64);
        let index = |bytes: &[u8]| bytes.iter().rev().fold(0, |index, &byte| index << 8 | usize::from(byte));
        let cells = (0..rows).map(|_| match index(self.take(width)) {
            0 if nullable => Cell::Null,
            key => Cell::Value(keys[key].to_vec()),
        });
        cells.collect()
    }
}
