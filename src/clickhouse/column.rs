//! One column of a block, built value by value from PostgreSQL's text.
//!
//! Values are kept as the Native format has them, one after another in a single buffer, so
//! pushing one allocates nothing of its own and writing the column is a copy. A push that fails
//! leaves the column as it was; rows at the end can be taken back.
//!
//! Source of the encodings: ClickHouse's documentation, "Native format specification".

mod dictionary;

use super::{
    text::{self, DateTimeRange, ValueError},
    types::ColumnType,
};
use std::ops::Range;

/// A column that grows.
#[derive(Clone, Debug)]
pub struct Column {
    ty: ColumnType,
    range: DateTimeRange,
    /// Bytes of each value; `None` where they differ, and then `ends` has where each one ends.
    width: Option<usize>,
    rows: usize,
    data: Vec<u8>,
    ends: Vec<usize>,
    /// 1 for each NULL, 0 for each value; `None` where the column takes no NULL.
    nulls: Option<Vec<u8>>,
}

impl Column {
    /// An empty column.
    pub fn new(ty: ColumnType, nullable: bool) -> Self {
        Column {
            ty,
            range: DateTimeRange::default(),
            width: ty.width(),
            rows: 0,
            data: Vec::new(),
            ends: Vec::new(),
            nulls: nullable.then(Vec::new),
        }
    }

    /// Takes what the server's DateTime64 can hold; without it, what that of any server can.
    pub fn with_datetime_range(mut self, range: DateTimeRange) -> Self {
        self.range = range;
        self
    }

    /// How many rows it has.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let nulls = self.nulls.as_ref().map_or(0, Vec::capacity);
        self.data.capacity() + self.ends.capacity() * size_of::<usize>() + nulls
    }

    /// Adds a value in PostgreSQL's text form. On error the column is unchanged.
    #[inline]
    pub fn push_text(&mut self, text: &[u8]) -> Result<(), ValueError> {
        let data = &mut self.data;
        match self.ty {
            ColumnType::Bool => data.push(text::boolean(text)?.into()),
            ColumnType::Int16 => data.extend_from_slice(&text::integer::<i16>(text)?.to_le_bytes()),
            ColumnType::Int32 => data.extend_from_slice(&text::integer::<i32>(text)?.to_le_bytes()),
            ColumnType::Int64 => data.extend_from_slice(&text::integer::<i64>(text)?.to_le_bytes()),
            ColumnType::UInt32 => data.extend_from_slice(&text::integer::<u32>(text)?.to_le_bytes()),
            ColumnType::UInt64 => data.extend_from_slice(&text::integer::<u64>(text)?.to_le_bytes()),
            ColumnType::Float32 => data.extend_from_slice(&text::float32(text)?.to_le_bytes()),
            ColumnType::Float64 => data.extend_from_slice(&text::float64(text)?.to_le_bytes()),
            ColumnType::Decimal { precision, scale } => {
                push_decimal(data, text::decimal(text, precision, scale)?, self.width);
            }
            ColumnType::String | ColumnType::LowCardinality => {
                push_varint(data, text.len());
                data.extend_from_slice(text);
            }
            ColumnType::Bytes => {
                let before = data.len();
                push_varint(data, text::bytea_len(text)?);
                text::bytea(text, data).inspect_err(|_| data.truncate(before))?;
            }
            ColumnType::Uuid => data.extend_from_slice(&text::uuid(text)?),
            ColumnType::Date32 => data.extend_from_slice(&text::date(text)?.to_le_bytes()),
            ColumnType::DateTime64 => data.extend_from_slice(&text::timestamp(text, self.range)?.to_le_bytes()),
        }
        self.end_row(0);
        Ok(())
    }

    /// Adds a NULL, if the column takes one.
    pub fn push_null(&mut self) -> Result<(), ValueError> {
        if self.nulls.is_none() {
            return Err(ValueError::Unrepresentable("NULL, and the column is not nullable"));
        }
        self.push_default();
        Ok(())
    }

    /// Adds what a tombstone has outside of its key: NULL, or else zero or the empty string.
    pub fn push_default(&mut self) {
        // An empty string is one byte too: the length 0.
        self.data.resize(self.data.len() + self.width.unwrap_or(1), 0);
        self.end_row(1);
    }

    /// Adds the value at the front of `input`, which is in ClickHouse's RowBinary form of this
    /// very type. On error the column and `input` are unchanged.
    pub fn push_row_binary(&mut self, input: &mut &[u8]) -> Result<(), ValueError> {
        const CUT: ValueError = ValueError::Malformed("a RowBinary value is cut short");
        let mut rest = *input;
        if self.nulls.is_some() {
            let (&null, after) = rest.split_first().ok_or(CUT)?;
            rest = after;
            match null {
                0 => {}
                1 => {
                    *input = rest;
                    return self.push_null();
                }
                _ => return Err(ValueError::Malformed("a RowBinary value has a null mark that is neither 0 nor 1")),
            }
        }
        let length = match self.width {
            Some(width) => width,
            None => take_varint(&mut rest).ok_or(CUT)?,
        };
        let (value, rest) = rest.split_at_checked(length).ok_or(CUT)?;
        if self.width.is_none() {
            push_varint(&mut self.data, length);
        }
        self.data.extend_from_slice(value);
        self.end_row(0);
        *input = rest;
        Ok(())
    }

    /// Adds the value of an earlier row once more. Panics if there is no such row.
    pub fn push_copy(&mut self, row: usize) {
        let null = self.null(row);
        self.data.extend_from_within(self.span(row));
        self.end_row(null);
    }

    /// Adds the value of a row of another column of the same type, which takes NULL only if this
    /// one does. Panics otherwise, or if there is no such row.
    pub fn push_from(&mut self, other: &Column, row: usize) {
        assert!(self.ty == other.ty, "values move between columns of one type only");
        assert!(self.nulls.is_some() || other.nulls.is_none(), "a NULL would become a value");
        self.data.extend_from_slice(&other.data[other.span(row)]);
        self.end_row(other.null(row));
    }

    /// Takes back all rows after the first `rows`.
    pub fn truncate(&mut self, rows: usize) {
        if rows >= self.rows {
            return;
        }
        self.data.truncate(self.span(rows).start);
        self.ends.truncate(rows);
        if let Some(nulls) = &mut self.nulls {
            nulls.truncate(rows);
        }
        self.rows = rows;
    }

    /// Appends bytes of a row's value that are equal to another row's if and only if a sorting
    /// key calls the two values equal. No value's bytes begin with another's of the same column,
    /// so those of several columns, one after another, make the bytes of a compound key.
    ///
    /// Panics if there is no such row.
    pub fn key_bytes(&self, row: usize, out: &mut Vec<u8>) {
        if self.nulls.is_some() {
            out.push(self.null(row));
        }
        let value = &self.data[self.span(row)];
        match (self.ty, value) {
            (ColumnType::Float32, &[a, b, c, d]) => {
                let value = f32::from_le_bytes([a, b, c, d]);
                // All NaNs are equal in a sorting key, and so are both zeros.
                let value = if value.is_nan() { f32::NAN } else { value + 0.0 };
                out.extend_from_slice(&value.to_le_bytes());
            }
            (ColumnType::Float64, &[a, b, c, d, e, f, g, h]) => {
                let value = f64::from_le_bytes([a, b, c, d, e, f, g, h]);
                let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
                out.extend_from_slice(&value.to_le_bytes());
            }
            _ => out.extend_from_slice(value),
        }
    }

    /// Appends the column's data in the Native format, without its name and type.
    pub fn write_native(&self, out: &mut Vec<u8>) {
        // A column without rows has no data at all, not even what comes before a dictionary.
        if self.rows == 0 {
            return;
        }
        if self.ty == ColumnType::LowCardinality {
            return dictionary::write(self, out);
        }
        out.extend_from_slice(self.nulls.as_deref().unwrap_or_default());
        out.extend_from_slice(&self.data);
    }

    /// As [`write_native`](Self::write_native), but for the column's last and largest part, which is returned as it is;
    /// `None` if everything was appended.
    pub(super) fn into_native(self, out: &mut Vec<u8>) -> Option<Vec<u8>> {
        if self.rows == 0 || self.ty == ColumnType::LowCardinality {
            self.write_native(out);
            return None;
        }
        out.extend_from_slice(self.nulls.as_deref().unwrap_or_default());
        Some(self.data)
    }

    /// Where its values are.
    #[cfg(test)]
    pub(super) fn data_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// About how many bytes [`write_native`](Self::write_native) appends.
    pub(super) fn native_len(&self) -> usize {
        self.data.len() + self.nulls.as_ref().map_or(0, Vec::len)
    }

    #[inline]
    fn end_row(&mut self, null: u8) {
        if self.width.is_none() {
            self.ends.push(self.data.len());
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.push(null);
        }
        self.rows += 1;
    }

    /// Where a row's value is in `data`, with its length before it if it has one.
    #[inline]
    fn span(&self, row: usize) -> Range<usize> {
        match self.width {
            Some(width) => row * width..(row + 1) * width,
            None => row.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[row],
        }
    }

    #[inline]
    fn null(&self, row: usize) -> u8 {
        self.nulls.as_ref().map_or(0, |nulls| nulls[row])
    }
}

#[inline]
fn push_decimal(data: &mut Vec<u8>, limbs: [u64; 4], width: Option<usize>) {
    match width {
        Some(4) => data.extend_from_slice(&(limbs[0] as u32).to_le_bytes()),
        Some(8) => data.extend_from_slice(&limbs[0].to_le_bytes()),
        Some(16) => limbs[..2].iter().for_each(|limb| data.extend_from_slice(&limb.to_le_bytes())),
        _ => limbs.iter().for_each(|limb| data.extend_from_slice(&limb.to_le_bytes())),
    }
}

/// Appends an unsigned LEB128 number: seven bits in each byte, the lowest first, and the eighth
/// bit set in all but the last.
#[inline]
pub(super) fn push_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an unsigned LEB128 number from the front of `input`.
fn take_varint(input: &mut &[u8]) -> Option<usize> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests;
