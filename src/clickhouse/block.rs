//! The rows of one table that go to ClickHouse in one insert.
//!
//! A row is built column by column and then committed with its version, or rolled back as a whole,
//! so a value that can not be held never leaves half a row behind. What is written is one block
//! of the Native format: the table's columns, then `_version` and `_is_deleted`, which decide in
//! `ReplacingMergeTree` which row of a key is the latest and whether it is there at all; or, in a
//! changelog, `_version` and `_ordinal`, which are the key of an entry, and `_op`.

use super::{
    changelog::{LogOp, OP_COLUMN, ORDINAL_COLUMN},
    column::{Column, push_varint},
    table::Table,
    text::DateTimeRange,
    types::ColumnType,
};
use crate::{
    config::Unrepresentable,
    mask::Mask,
    telemetry::{names, tables},
};
use std::{
    borrow::Cow,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

/// The column with the rows' versions.
pub const VERSION_COLUMN: &str = "_version";
/// The column that marks tombstones.
pub const DELETED_COLUMN: &str = "_is_deleted";

/// What a block has to know of a table's column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Its name in ClickHouse.
    pub name: String,
    /// Its type, leaving NULL aside.
    pub ty: ColumnType,
    /// Whether it takes NULL.
    pub nullable: bool,
    /// What takes the place of its values.
    pub mask: Option<Mask>,
    /// What becomes of a value that its type can not hold. A replacement changes the source's value,
    /// so it is none for a column of the key.
    pub policy: Unrepresentable,
}

/// What follows a column's name in the name of the Bool column beside it.
pub const NULL_MARK_SUFFIX: &str = "__is_null";

impl ColumnSpec {
    /// A column that is neither masked nor changed in any other way.
    pub fn new(name: impl Into<String>, ty: ColumnType, nullable: bool) -> Self {
        Self { name: name.into(), ty, nullable, mask: None, policy: Unrepresentable::default() }
    }

    /// The Bool column beside an array that takes NULL, which says whether it is one.
    pub fn null_mark(&self) -> Option<String> {
        (self.nullable && !self.ty.takes_nullable()).then(|| format!("{}{NULL_MARK_SUFFIX}", self.name))
    }

    /// The columns that hold it in ClickHouse, in their order: names and types.
    pub fn native(&self) -> impl Iterator<Item = (String, String)> + use<> {
        let own = (self.name.clone(), self.ty.name(self.nullable));
        std::iter::once(own).chain(self.null_mark().map(|name| (name, ColumnType::Bool.to_string())))
    }

    fn column(&self) -> Column {
        Column::new(self.ty.clone(), self.nullable).with_mask(self.mask.clone()).with_policy(self.policy)
    }

    /// A value in PostgreSQL's text form as it may be seen outside of PostgreSQL; `None` is NULL.
    pub fn shown<'a>(&self, text: Option<&'a [u8]>) -> Option<Cow<'a, [u8]>> {
        match (&self.mask, text) {
            (Some(mask), Some(text)) => mask.over(text).map(|masked| Cow::Owned(masked.into_owned())),
            (_, text) => text.map(Cow::Borrowed),
        }
    }
}

/// Bytes of a version.
const VERSION_BYTES: usize = size_of::<u128>();
/// Buffers of so many bytes are kept for other rows: fewer are not worth it, and more were made by a few large rows.
const KEPT_BYTES: RangeInclusive<usize> = 256 * 1024..=32 << 20;
/// A column of so many bytes is large.
const LARGE_COLUMN: usize = 256 * 1024;

/// Rows of one table, column by column.
#[derive(Clone, Debug)]
pub struct Block {
    specs: Arc<[ColumnSpec]>,
    columns: Vec<Column>,
    /// The rows' versions as they are sent, 16 bytes each.
    versions: Vec<u8>,
    /// Whether each row is a tombstone; in a changelog its [`LogOp`].
    marks: Vec<u8>,
    /// Only in a changelog: the rows' numbers within their versions.
    ordinals: Option<Vec<u64>>,
}

impl Block {
    /// A block without rows. Its timestamps are limited to what any server can hold.
    pub fn new(specs: Arc<[ColumnSpec]>) -> Self {
        let columns = specs.iter().map(ColumnSpec::column).collect();
        Block { specs, columns, versions: Vec::new(), marks: Vec::new(), ordinals: None }
    }

    /// A block for rows of `table`, or for its changelog's entries.
    pub fn of_table(table: &Table) -> Self {
        let ordinals = table.spec.changelog.then(Vec::new);
        Self { ordinals, ..Self::new(Arc::clone(&table.spec.columns)).with_datetime_range(table.range) }
    }

    /// Takes the timestamps that the server's DateTime64 can hold.
    pub fn with_datetime_range(mut self, range: DateTimeRange) -> Self {
        self.columns = self.columns.into_iter().map(|column| column.with_datetime_range(range)).collect();
        self
    }

    /// What it knows of its columns.
    pub fn specs(&self) -> &Arc<[ColumnSpec]> {
        &self.specs
    }

    /// How many rows were committed.
    pub fn rows(&self) -> usize {
        self.marks.len()
    }

    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(Column::bytes).sum();
        columns
            + self.versions.len()
            + self.marks.len()
            + self.ordinals.as_ref().map_or(0, |ordinals| ordinals.len() * size_of::<u64>())
    }

    /// Bytes that its buffers have, in use or not.
    pub fn capacity(&self) -> usize {
        let columns: usize = self.columns.iter().map(Column::capacity).sum();
        let ordinals = self.ordinals.as_ref().map_or(0, Vec::capacity);
        columns + self.versions.capacity() + self.marks.capacity() + ordinals * size_of::<u64>()
    }

    /// The same without its rows, and with their buffers, if those are worth keeping.
    pub fn emptied(mut self) -> Option<Self> {
        self.versions.clear();
        self.marks.clear();
        self.ordinals.iter_mut().for_each(Vec::clear);
        self.rollback_row();
        KEPT_BYTES.contains(&self.capacity()).then_some(self)
    }

    /// Bytes of its values, without what is held in reserve.
    pub fn data_bytes(&self) -> usize {
        self.columns.iter().map(Column::native_len).sum()
    }

    /// A column, in the order of the specs. Panics if there is no such column.
    pub fn column(&self, index: usize) -> &Column {
        &self.columns[index]
    }

    /// A column to add the next row's value to. Panics if there is no such column.
    pub fn column_mut(&mut self, index: usize) -> &mut Column {
        &mut self.columns[index]
    }

    /// The version of a row, and whether it is a tombstone. Panics if there is no such row.
    pub fn version(&self, row: usize) -> (u128, bool) {
        let version = self.versions[row * VERSION_BYTES..].first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes));
        (version, self.marks[row] == 1)
    }

    /// An entry's number and kind, in a changelog. Panics if there is no such entry.
    pub fn entry(&self, row: usize) -> Option<(u64, LogOp)> {
        self.ordinals.as_ref().map(|ordinals| (ordinals[row], LogOp::of(self.marks[row])))
    }

    /// Ends a row: each column has got its value.
    pub fn commit_row(&mut self, version: u128, deleted: bool) {
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows() + 1), "a row has all its values");
        debug_assert!(self.ordinals.is_none(), "a changelog has entries");
        self.versions.extend_from_slice(&version.to_le_bytes());
        self.marks.push(deleted.into());
    }

    /// Ends an entry of a changelog: each column has got its value.
    pub fn commit_entry(&mut self, version: u128, ordinal: u64, op: LogOp) {
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows() + 1), "an entry has all its values");
        self.versions.extend_from_slice(&version.to_le_bytes());
        self.marks.push(op as u8);
        if let Some(ordinals) = &mut self.ordinals {
            ordinals.push(ordinal);
        }
    }

    /// Adds an entry that has no values of its own.
    pub fn push_mark(&mut self, version: u128, ordinal: u64, op: LogOp) {
        self.columns.iter_mut().for_each(Column::push_default);
        self.commit_entry(version, ordinal, op);
    }

    /// Forgets the values that were added since the last row was committed.
    pub fn rollback_row(&mut self) {
        let rows = self.rows();
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
    }

    /// Forgets the last row that was committed.
    pub fn pop_row(&mut self) {
        self.marks.pop();
        self.versions.truncate(self.rows() * VERSION_BYTES);
        self.ordinals.as_mut().and_then(Vec::pop);
        self.rollback_row();
    }

    /// Appends bytes that two rows share if and only if their keys are equal to ClickHouse.
    pub fn key(&self, key_columns: &[usize], row: usize, out: &mut Vec<u8>) {
        key_columns.iter().for_each(|&index| self.columns[index].key_bytes(row, out));
    }

    /// Some of its rows, as a block of their own. Panics if there are no such rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let mut slice = Block::new(Arc::clone(&self.specs));
        slice.ordinals = self.ordinals.as_ref().map(|ordinals| ordinals[rows.clone()].to_vec());
        slice.versions.extend_from_slice(&self.versions[rows.start * VERSION_BYTES..rows.end * VERSION_BYTES]);
        slice.marks.extend_from_slice(&self.marks[rows.clone()]);
        for row in rows {
            slice.columns.iter_mut().zip(&self.columns).for_each(|(column, of)| column.push_from(of, row));
        }
        slice
    }

    /// Counts its values that are not the source's, since their columns could not hold those.
    pub fn count_replaced(&self, table: &str) {
        for column in &self.columns {
            let replaced = column.replaced();
            if replaced > 0 {
                let policy = column.policy().to_string();
                metrics::counter!(names::VALUES_REPLACED, "table" => tables::counted(table), "policy" => policy)
                    .increment(replaced as u64);
            }
        }
    }

    /// The block in the Native format. A row that is not committed must have been rolled back.
    pub fn write_native(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in 0..self.native_parts() {
            if let Some(data) = self.write_native_part(part, &mut out) {
                out.extend_from_slice(data);
            }
        }
        out
    }

    /// Of how many parts the Native format is made: a part is not larger than a column.
    pub fn native_parts(&self) -> usize {
        self.columns.len() + 3
    }

    /// Appends one part of the Native format; they belong together in their order. What is large comes
    /// back as it is, to be sent after what was appended: so it is not in memory twice.
    pub fn write_native_part(&self, part: usize, out: &mut Vec<u8>) -> Option<&[u8]> {
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows()), "a row is not committed");
        let Some(index) = part.checked_sub(1) else {
            let marks = self.specs.iter().filter(|spec| spec.null_mark().is_some()).count();
            push_varint(out, self.columns.len() + marks + 2 + usize::from(self.ordinals.is_some()));
            push_varint(out, self.rows());
            return None;
        };
        let Some((spec, column)) = self.specs.get(index).zip(self.columns.get(index)) else {
            return if index == self.columns.len() { self.write_versions(out) } else { self.write_marks(out) };
        };
        write_header(out, &spec.name, &spec.ty.name(spec.nullable));
        if column.native_len() >= LARGE_COLUMN
            && let Some(data) = column.write_native_before_data(out)
        {
            return Some(data);
        }
        out.reserve(column.native_len() + spec.name.len() + 64);
        column.write_native(out);
        if let Some(mark) = spec.null_mark() {
            write_header(out, &mark, &ColumnType::Bool.to_string());
            column.write_null_marks(out);
        }
        None
    }

    /// About how many bytes are in memory beside the block while it is sent.
    pub fn native_buffer(&self) -> usize {
        let columns = self.columns.iter().filter(|column| !column.is_sent_in_place()).map(Column::native_len);
        let own = 1 + self.ordinals.as_ref().map_or(0, |_| size_of::<u64>());
        columns.max().unwrap_or(0).max(self.rows() * own).max(LARGE_COLUMN)
    }

    fn write_versions(&self, out: &mut Vec<u8>) -> Option<&[u8]> {
        write_header(out, VERSION_COLUMN, "UInt128");
        if self.versions.len() >= LARGE_COLUMN {
            return Some(&self.versions);
        }
        out.extend_from_slice(&self.versions);
        None
    }

    fn write_marks(&self, out: &mut Vec<u8>) -> Option<&[u8]> {
        match &self.ordinals {
            None => write_header(out, DELETED_COLUMN, "UInt8"),
            Some(ordinals) => {
                write_header(out, ORDINAL_COLUMN, "UInt64");
                ordinals.iter().for_each(|ordinal| out.extend_from_slice(&ordinal.to_le_bytes()));
                write_header(out, OP_COLUMN, &LogOp::column_type());
            }
        }
        out.extend_from_slice(&self.marks);
        None
    }
}

fn write_header(out: &mut Vec<u8>, name: &str, ty: &str) {
    for text in [name, ty] {
        push_varint(out, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Block {
        let spec = |name: &str, ty, nullable| ColumnSpec::new(name, ty, nullable);
        Block::new([spec("id", ColumnType::Int16, false), spec("note", ColumnType::String, true)].into())
    }

    fn add(block: &mut Block, id: &str, note: Option<&str>) {
        block.column_mut(0).push_text(id.as_bytes()).unwrap();
        match note {
            Some(note) => block.column_mut(1).push_text(note.as_bytes()).unwrap(),
            None => block.column_mut(1).push_null().unwrap(),
        }
    }

    #[test]
    fn a_block_is_written_column_by_column() {
        let mut block = block();
        add(&mut block, "1", Some("hi"));
        block.commit_row(7, false);
        add(&mut block, "2", None);
        block.commit_row(1 << 64, true);
        let expected = [
            b"\x04\x02".as_slice(),
            b"\x02id\x05Int16\x01\0\x02\0",
            b"\x04note\x10Nullable(String)\0\x01\x02hi\0",
            b"\x08_version\x07UInt128",
            &7u128.to_le_bytes(),
            &(1u128 << 64).to_le_bytes(),
            b"\x0b_is_deleted\x05UInt8\0\x01",
        ]
        .concat();
        assert_eq!(block.write_native(), expected);
        assert_eq!(block.version(1), (1 << 64, true));
        // Two numbers, two texts with their lengths, their null marks, and two versions with their marks.
        assert_eq!(block.bytes(), 4 + 4 + 2 + 34);
        let mut second = self::block();
        add(&mut second, "2", None);
        second.commit_row(1 << 64, true);
        assert_eq!(block.slice(1..2).write_native(), second.write_native());
    }

    #[test]
    fn neither_a_small_block_nor_what_a_large_row_took_is_kept() {
        for (bytes, kept) in [(1, false), (1 << 20, true), (40 << 20, false)] {
            let mut block = block();
            add(&mut block, "1", Some(&"x".repeat(bytes)));
            block.commit_row(7, false);
            let emptied = block.emptied();
            assert_eq!(emptied.is_some(), kept, "{bytes} bytes");
            assert!(emptied.is_none_or(|block| (block.rows(), block.bytes()) == (0, 0)));
        }
    }

    #[test]
    fn a_large_column_is_sent_from_where_it_is() {
        let mut block = block();
        add(&mut block, "1", Some(&"x".repeat(LARGE_COLUMN)));
        block.commit_row(7, false);
        let mut out = Vec::new();
        let large: Vec<bool> =
            (0..block.native_parts()).map(|part| block.write_native_part(part, &mut out).is_some()).collect();
        assert_eq!(large, [false, false, true, false, false]);
        assert!(out.len() < 200 && block.native_buffer() == LARGE_COLUMN);
        assert_eq!(block.write_native().len(), out.len() + LARGE_COLUMN + 3);
    }

    #[test]
    fn an_array_that_takes_null_is_two_columns() {
        let array = ColumnType::Array { element: Box::new(ColumnType::Int16), nullable: true };
        let mut block = Block::new([ColumnSpec::new("a", array, true)].into());
        for text in [Some("{1,NULL}"), None, Some("{}")] {
            match text {
                Some(text) => block.column_mut(0).push_text(text.as_bytes()).unwrap(),
                None => block.column_mut(0).push_null().unwrap(),
            }
            block.commit_row(0, false);
        }
        let offset = |words: [u64; 3]| words.map(u64::to_le_bytes).concat();
        let expected = [
            b"\x04\x03".as_slice(),
            b"\x01a\x16Array(Nullable(Int16))",
            &offset([2, 2, 2]),
            b"\0\x01\x01\0\0\0",
            b"\x0aa__is_null\x04Bool\0\x01\0",
        ]
        .concat();
        assert_eq!(block.write_native()[..expected.len()], expected);
    }

    #[test]
    fn a_row_that_is_rolled_back_leaves_no_trace() {
        let mut block = block();
        add(&mut block, "1", None);
        block.commit_row(1, false);
        let before = block.write_native();
        block.column_mut(0).push_text(b"2").unwrap();
        block.rollback_row();
        assert_eq!(block.write_native(), before);
        add(&mut block, "3", Some("x"));
        block.rollback_row();
        assert_eq!((block.rows(), block.column(1).len()), (1, 1));
        assert_eq!(block.write_native(), before);
    }

    #[test]
    fn rows_of_one_key_share_its_bytes() {
        let mut block = block();
        for (id, note) in [("1", Some("a")), ("1", Some("b")), ("1", Some("a")), ("2", Some("a"))] {
            add(&mut block, id, note);
            block.commit_row(1, false);
        }
        let key = |columns: &[usize], row| {
            let mut out = Vec::new();
            block.key(columns, row, &mut out);
            out
        };
        assert_eq!(key(&[0, 1], 0), key(&[0, 1], 2));
        assert_eq!(key(&[0], 0), key(&[0], 1));
        assert_ne!(key(&[1, 0], 0), key(&[1, 0], 1));
        assert_ne!(key(&[0], 0), key(&[0], 3));
    }

    #[test]
    fn a_wider_range_of_timestamps_is_asked_for() {
        let spec = ColumnSpec::new("at", ColumnType::DateTime64 { precision: 6 }, false);
        let mut block = Block::new([spec].into());
        assert!(block.column_mut(0).push_text(b"9999-12-31 00:00:00").is_err());
        let mut block = block.with_datetime_range(DateTimeRange::Wide);
        assert_eq!(block.column_mut(0).push_text(b"9999-12-31 00:00:00"), Ok(()));
    }
}
