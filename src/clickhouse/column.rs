//! One column of a block, built value by value from PostgreSQL's text.
//!
//! Values are kept as the Native format has them, one after another in a single buffer, so
//! pushing one allocates nothing of its own and writing the column is a copy. A push that fails
//! leaves the column as it was; rows at the end can be taken back.
//!
//! An array's elements are a column of their own, and `places` says where each row's end there. A
//! NULL is no array to ClickHouse: where the column takes NULL, its null marks are written as a Bool
//! column beside it, and the array is empty.
//!
//! Source of the encodings: ClickHouse's documentation, "Native format specification".

mod array;
mod dictionary;
mod places;
pub(super) mod render;
mod replace;

use super::{
    text::{self, DateTimeRange, ValueError},
    types::ColumnType,
};
use crate::{config::Unrepresentable, mask::Mask};

/// A column that grows.
#[derive(Clone, Debug)]
pub struct Column {
    ty: ColumnType,
    range: DateTimeRange,
    /// Bytes of each value; `None` where they differ.
    width: Option<usize>,
    rows: usize,
    data: Vec<u8>,
    /// Where values are, as far as their width does not say it.
    places: Vec<usize>,
    /// 1 for each NULL, 0 for each value; `None` where the column takes no NULL.
    nulls: Option<Vec<u8>>,
    /// The elements of an array's rows, one row after another.
    elements: Option<Box<Column>>,
    mask: Option<Mask>,
    /// What becomes of a value that the type can not hold.
    policy: Unrepresentable,
    /// The rows whose value is not the source's, by that policy.
    replaced: Vec<usize>,
}

const CUT: ValueError = ValueError::Malformed("a RowBinary value is cut short");
const NULL_MARK: ValueError = ValueError::Malformed("a RowBinary value has a null mark that is neither 0 nor 1");

/// The version of a JSON column's serialization that has the text.
const JSON_AS_TEXT: u64 = 1;

impl Column {
    /// An empty column.
    pub fn new(ty: ColumnType, nullable: bool) -> Self {
        Column {
            range: DateTimeRange::default(),
            width: ty.width(),
            rows: 0,
            data: Vec::new(),
            places: Vec::new(),
            nulls: nullable.then(Vec::new),
            elements: array::elements(&ty).map(Box::new),
            mask: None,
            policy: Unrepresentable::default(),
            replaced: Vec::new(),
            ty,
        }
    }

    /// Takes what the server's DateTime64 can hold; without it, what that of any server can.
    pub fn with_datetime_range(mut self, range: DateTimeRange) -> Self {
        self.range = range;
        self.elements = self.elements.map(|elements| Box::new(elements.with_datetime_range(range)));
        self
    }

    /// Says what becomes of a value that the type can not hold; without it, it is refused. The same
    /// holds for an array's elements.
    pub fn with_policy(mut self, policy: Unrepresentable) -> Self {
        self.policy = policy;
        self.elements = self.elements.map(|elements| Box::new(elements.with_policy(policy)));
        self
    }

    /// Lays a mask over every value in PostgreSQL's text form.
    pub fn with_mask(mut self, mask: Option<Mask>) -> Self {
        self.mask = mask;
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

    /// Bytes of its values and marks. What is reserved beyond them is not touched, and so is no memory.
    pub fn bytes(&self) -> usize {
        let nulls = self.nulls.as_ref().map_or(0, Vec::len);
        let words = self.places.len() + self.replaced.len();
        let elements = self.elements.as_ref().map_or(0, |elements| elements.bytes());
        self.data.len() + words * size_of::<usize>() + nulls + elements
    }

    /// Bytes that its buffers have, in use or not.
    pub(super) fn capacity(&self) -> usize {
        let nulls = self.nulls.as_ref().map_or(0, Vec::capacity);
        let words = self.places.capacity() + self.replaced.capacity();
        let elements = self.elements.as_ref().map_or(0, |elements| elements.capacity());
        self.data.capacity() + words * size_of::<usize>() + nulls + elements
    }

    /// Adds a value in PostgreSQL's text form, or what its mask makes of it. On error the column is
    /// unchanged.
    #[inline]
    pub fn push_text(&mut self, text: &[u8]) -> Result<(), ValueError> {
        let pushed = if self.mask.is_some() { self.push_masked(text) } else { self.push_value(text) };
        match pushed {
            Err(ValueError::Unrepresentable(why)) => self.replace(text, why),
            pushed => pushed,
        }
    }

    fn push_masked(&mut self, text: &[u8]) -> Result<(), ValueError> {
        let mask = self.mask.take();
        let pushed = match mask.as_ref().map(|mask| mask.over(text)) {
            Some(Some(masked)) => self.push_value(&masked),
            _ => self.push_null(),
        };
        self.mask = mask;
        pushed
    }

    #[inline]
    fn push_value(&mut self, text: &[u8]) -> Result<(), ValueError> {
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
            ColumnType::DateTime64 { precision } => {
                data.extend_from_slice(&text::timestamp(text, self.range, precision)?.to_le_bytes());
            }
            ColumnType::Time64 => data.extend_from_slice(&text::time_of_day(text)?.to_le_bytes()),
            ColumnType::Ipv4 => data.extend_from_slice(&text::ipv4(text)?.to_le_bytes()),
            ColumnType::Ipv6 => data.extend_from_slice(&text::ipv6(text)?),
            ColumnType::Json => {
                text::json(text)?;
                push_varint(data, text.len());
                data.extend_from_slice(text);
            }
            ColumnType::Array { .. } | ColumnType::Vector => self.push_array(text)?,
        }
        self.end_row(0);
        Ok(())
    }

    /// Adds a NULL, if the column takes one.
    pub fn push_null(&mut self) -> Result<(), ValueError> {
        if self.nulls.is_none() {
            return Err(ValueError::Null);
        }
        self.push_default();
        Ok(())
    }

    /// Adds what a tombstone has outside of its key: NULL, or else zero, the empty string, array or
    /// document.
    pub fn push_default(&mut self) {
        if self.elements.is_some() {
            return self.end_row(1);
        }
        match self.ty {
            // An empty text is no document.
            ColumnType::Json => self.data.extend_from_slice(b"\x02{}"),
            // An empty string is one byte too: the length 0.
            _ => self.data.resize(self.data.len() + self.width.unwrap_or(1), 0),
        }
        self.end_row(1);
    }

    /// Adds the value at the front of `input`, which is in ClickHouse's RowBinary form of this
    /// very type. On error the column and `input` are unchanged.
    pub fn push_row_binary(&mut self, input: &mut &[u8]) -> Result<(), ValueError> {
        if self.elements.is_some() {
            return self.push_array_row_binary(input);
        }
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
                _ => return Err(NULL_MARK),
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
        let (null, span) = (self.null(row), self.span(row));
        match &mut self.elements {
            Some(elements) => span.for_each(|element| elements.push_copy(element)),
            None => self.data.extend_from_within(span),
        }
        self.end_row(null);
    }

    /// Adds the value of a row of another column of the same type, which takes NULL only if this
    /// one does. Panics otherwise, or if there is no such row.
    pub fn push_from(&mut self, other: &Column, row: usize) {
        assert!(self.ty == other.ty, "values move between columns of one type only");
        assert!(self.nulls.is_some() || other.nulls.is_none(), "a NULL would become a value");
        let span = other.span(row);
        match (&mut self.elements, &other.elements) {
            (Some(elements), Some(others)) => span.for_each(|element| elements.push_from(others, element)),
            _ => self.data.extend_from_slice(&other.data[span]),
        }
        self.end_row(other.null(row));
    }

    /// Takes back all rows after the first `rows`.
    pub fn truncate(&mut self, rows: usize) {
        if rows >= self.rows {
            return;
        }
        let start = self.start(rows);
        match &mut self.elements {
            Some(elements) => elements.truncate(start),
            None => self.data.truncate(start),
        }
        self.truncate_places(rows);
        if let Some(nulls) = &mut self.nulls {
            nulls.truncate(rows);
        }
        self.replaced.truncate(self.replaced.partition_point(|&replaced| replaced < rows));
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
        let span = self.span(row);
        if let Some(elements) = &self.elements {
            push_varint(out, span.len());
            return span.for_each(|element| elements.key_bytes(element, out));
        }
        let value = &self.data[span];
        match (&self.ty, value) {
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

    /// Appends the column's data in the Native format, without its name and type. An array's null
    /// marks are not in it: see [`write_null_marks`](Self::write_null_marks).
    pub fn write_native(&self, out: &mut Vec<u8>) {
        // A column without rows has no data at all, not even what comes before a dictionary.
        if self.rows == 0 {
            return;
        }
        self.write_prefix(out);
        self.write_rows(out);
    }

    /// Appends the data of the Bool column beside an array that takes NULL; nothing for any other.
    pub fn write_null_marks(&self, out: &mut Vec<u8>) {
        if self.elements.is_some() {
            out.extend_from_slice(self.nulls.as_deref().unwrap_or_default());
        }
    }

    /// What comes once before all the rest, also where there is no element in any row.
    fn write_prefix(&self, out: &mut Vec<u8>) {
        match (&self.elements, &self.ty) {
            (Some(elements), _) => elements.write_prefix(out),
            (None, ColumnType::LowCardinality) => dictionary::write_prefix(out),
            (None, ColumnType::Json) => out.extend_from_slice(&JSON_AS_TEXT.to_le_bytes()),
            (None, _) => {}
        }
    }

    fn write_rows(&self, out: &mut Vec<u8>) {
        if let Some(elements) = &self.elements {
            self.places.iter().for_each(|&end| out.extend_from_slice(&(end as u64).to_le_bytes()));
            return elements.write_rows(out);
        }
        if self.ty == ColumnType::LowCardinality {
            return dictionary::write(self, out);
        }
        out.extend_from_slice(self.nulls.as_deref().unwrap_or_default());
        out.extend_from_slice(&self.data);
    }

    /// Whether its data can be sent from where it is.
    pub(super) fn is_sent_in_place(&self) -> bool {
        self.rows > 0 && self.elements.is_none() && self.ty != ColumnType::LowCardinality
    }

    /// As [`write_native`](Self::write_native), but for the column's last and largest part, which is
    /// returned as it is; `None`, and nothing appended, for a column of which that can not be said.
    pub(super) fn write_native_before_data(&self, out: &mut Vec<u8>) -> Option<&[u8]> {
        if !self.is_sent_in_place() {
            return None;
        }
        self.write_prefix(out);
        out.extend_from_slice(self.nulls.as_deref().unwrap_or_default());
        Some(&self.data)
    }

    /// About how many bytes [`write_native`](Self::write_native) appends.
    pub(super) fn native_len(&self) -> usize {
        let elements =
            self.elements.as_ref().map_or(0, |elements| elements.native_len() + self.rows * size_of::<u64>());
        self.data.len() + self.nulls.as_ref().map_or(0, Vec::len) + elements
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
