//! The rows of one table that go to ClickHouse in one insert.
//!
//! A row is built column by column and then committed with its version, or rolled back as a whole,
//! so a value that can not be held never leaves half a row behind. What is written is one block
//! of the Native format: the table's columns, then `_version` and `_is_deleted`, which decide in
//! `ReplacingMergeTree` which row of a key is the latest and whether it is there at all.

use super::{
    column::{Column, push_varint},
    text::DateTimeRange,
    types::ColumnType,
};
use bytes::Bytes;
use std::sync::Arc;

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
}

/// A column that takes so many bytes is sent from where it is.
const OWN_PIECE: usize = 256 * 1024;

/// Rows of one table, column by column.
#[derive(Clone, Debug)]
pub struct Block {
    specs: Arc<[ColumnSpec]>,
    columns: Vec<Column>,
    versions: Vec<u128>,
    deleted: Vec<u8>,
}

impl Block {
    /// A block without rows. Its timestamps are limited to what any server can hold.
    pub fn new(specs: Arc<[ColumnSpec]>) -> Self {
        let columns = specs.iter().map(|spec| Column::new(spec.ty, spec.nullable)).collect();
        Block { specs, columns, versions: Vec::new(), deleted: Vec::new() }
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
        self.versions.len()
    }

    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(Column::bytes).sum();
        columns + self.versions.capacity() * size_of::<u128>() + self.deleted.capacity()
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
        (self.versions[row], self.deleted[row] == 1)
    }

    /// Ends a row: each column has got its value.
    pub fn commit_row(&mut self, version: u128, deleted: bool) {
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows() + 1), "a row has all its values");
        self.versions.push(version);
        self.deleted.push(deleted.into());
    }

    /// Forgets the values that were added since the last row was committed.
    pub fn rollback_row(&mut self) {
        let rows = self.rows();
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
    }

    /// Forgets the last row that was committed.
    pub fn pop_row(&mut self) {
        self.versions.pop();
        self.deleted.pop();
        self.rollback_row();
    }

    /// Appends bytes that two rows share if and only if their keys are equal to ClickHouse.
    pub fn key(&self, key_columns: &[usize], row: usize, out: &mut Vec<u8>) {
        key_columns.iter().for_each(|&index| self.columns[index].key_bytes(row, out));
    }

    /// The block in the Native format. A row that is not committed must have been rolled back.
    pub fn write_native(&self) -> Vec<u8> {
        let mut out = self.start(|_| true);
        for (spec, column) in self.specs.iter().zip(&self.columns) {
            write_header(&mut out, &spec.name, &spec.ty.name(spec.nullable));
            column.write_native(&mut out);
        }
        write_versions(&mut out, &self.versions, &self.deleted);
        out
    }

    /// As [`write_native`](Self::write_native), in pieces: a large column is one of them as it is, so a value that is
    /// most of the block is not held twice.
    pub fn into_native(self) -> Vec<Bytes> {
        let mut out = self.start(|column| column.native_len() < OWN_PIECE);
        let mut pieces = Vec::new();
        for (spec, column) in self.specs.iter().zip(self.columns) {
            write_header(&mut out, &spec.name, &spec.ty.name(spec.nullable));
            if column.native_len() < OWN_PIECE {
                column.write_native(&mut out);
                continue;
            }
            if let Some(data) = column.into_native(&mut out) {
                pieces.extend([Bytes::from(std::mem::take(&mut out)), Bytes::from(data)]);
            }
        }
        write_versions(&mut out, &self.versions, &self.deleted);
        pieces.push(Bytes::from(out));
        pieces
    }

    /// The block's beginning, with room for the rest of what goes into the same buffer.
    fn start(&self, in_it: impl Fn(&Column) -> bool) -> Vec<u8> {
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows()), "a row is not committed");
        let headers: usize = self.specs.iter().map(|spec| spec.name.len() + 64).sum();
        let data: usize = self.columns.iter().filter(|column| in_it(column)).map(Column::native_len).sum();
        let mut out = Vec::with_capacity(headers + data + self.rows() * (size_of::<u128>() + 1) + 64);
        push_varint(&mut out, self.columns.len() + 2);
        push_varint(&mut out, self.rows());
        out
    }
}

fn write_header(out: &mut Vec<u8>, name: &str, ty: &str) {
    for text in [name, ty] {
        push_varint(out, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

fn write_versions(out: &mut Vec<u8>, versions: &[u128], deleted: &[u8]) {
    write_header(out, VERSION_COLUMN, "UInt128");
    versions.iter().for_each(|version| out.extend_from_slice(&version.to_le_bytes()));
    write_header(out, DELETED_COLUMN, "UInt8");
    out.extend_from_slice(deleted);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Block {
        let spec = |name: &str, ty, nullable| ColumnSpec { name: name.to_owned(), ty, nullable };
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
        assert!(block.bytes() >= expected.len() - 64);
        assert_eq!(block.into_native().concat(), expected);
    }

    #[test]
    fn a_large_column_is_sent_from_where_it_is() {
        let mut block = block();
        add(&mut block, "1", Some(&"x".repeat(OWN_PIECE)));
        block.commit_row(7, false);
        add(&mut block, "2", None);
        block.commit_row(8, false);
        let (expected, place) = (block.write_native(), block.column(1).data_ptr());
        let pieces = block.into_native();
        assert_eq!(pieces.concat(), expected);
        assert_eq!((pieces.len(), pieces[1].as_ptr()), (3, place));
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
        let spec = ColumnSpec { name: "at".to_owned(), ty: ColumnType::DateTime64, nullable: false };
        let mut block = Block::new([spec].into());
        assert!(block.column_mut(0).push_text(b"9999-12-31 00:00:00").is_err());
        let mut block = block.with_datetime_range(DateTimeRange::Wide);
        assert_eq!(block.column_mut(0).push_text(b"9999-12-31 00:00:00"), Ok(()));
    }
}
