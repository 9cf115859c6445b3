//! The rows of one table that are waiting to be sent, and how a change becomes rows.
//!
//! A change becomes a row, a tombstone, or both: an update that changes the key removes the old
//! row at the same version at which it writes the new one. Values go from the stream's bytes
//! straight into the block's columns.
//!
//! A row that lacks a toasted value can not be built yet. It waits beside the block with what it
//! has, and knows the row before it in the same batch, if there is one: that is what the keys are
//! kept for, from the first such row of a table on.
//!
//! In a [changelog](super::changelog) a change becomes entries instead: it lacks nothing, and no key.
//!
//! A change with a value that its column can not hold is not taken, and leaves the batch as it was.
//! Whoever adds it decides whether the table stops or [`Batch::lose`] turns it into a dead letter.

mod log;
mod lost;
mod waiting;

pub use waiting::{Cell, Slot, Waiting};

use super::{
    block::{Block, ColumnSpec},
    dead_letters::{Letters, Operation},
    table::{Plan, Table, TableSpec},
    text::ValueError,
};
use crate::event::{Lsn, Tuple, Value, Version};
use std::{collections::HashMap, sync::Arc, time::SystemTime};
use tokio::time::Instant;

/// Where a change stands in the stream.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The version of the rows that it makes.
    pub version: Version,
    /// The number of its first entry among those of its record; 0 but in a changelog.
    pub ordinal: u64,
    /// Its transaction's id.
    pub xid: u32,
    /// When that committed, by the source's clock.
    pub time: SystemTime,
}

/// What a change says of a row.
#[derive(Clone, Copy, Debug)]
pub enum RowChange<'a> {
    /// It is new.
    Insert(Tuple<'a>),
    /// It was the first and is the second now. The first is there if the key may have changed, with
    /// whether it is a key tuple.
    Update(Option<(Tuple<'a>, bool)>, Tuple<'a>),
    /// It is gone, and had this key.
    Delete(Tuple<'a>),
}

/// A row that a batch does not take.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// A value that a column can not hold.
    #[error("column {column}: {error}")]
    Value {
        /// The column's name.
        column: String,
        /// What is wrong with the value.
        error: ValueError,
    },
    /// Something that the source never sends.
    #[error("the source sent {0}")]
    Protocol(&'static str),
}

impl CellError {
    /// A tuple that is none.
    pub fn protocol() -> Self {
        Self::Protocol("a row that is not one")
    }
}

/// Rows of one table on their way into one insert.
#[derive(Debug)]
pub struct Batch {
    /// The rows that are complete.
    pub block: Block,
    /// The rows that lack values, in stream order.
    pub waiting: Vec<Waiting>,
    /// New and old keys of the rows that wait, two rows each.
    pub keys: Block,
    /// The last row of each key; only kept once the table has had a row that waits.
    latest: Option<HashMap<Box<[u8]>, Slot>>,
    /// The rows that can not be held.
    pub letters: Letters,
    waiting_bytes: usize,
    /// What a value that is looked up is expected to take, in bytes.
    expected: usize,
    /// The ordinal of its first row in the lane.
    pub first_row: u64,
    /// The highest commit among its rows.
    pub commit: Lsn,
    /// When its oldest commit happened, by the source's clock.
    pub oldest: SystemTime,
    /// When its first row came.
    pub opened: Instant,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the batch.
    Added,
    /// It lacks values, and the batch does not keep its keys: it was not taken. Put it into a
    /// batch that does.
    NeedsKeys,
}

impl Batch {
    /// An empty batch, in an empty block of the table if one is `spare`; `keyed` batches can hold rows that wait.
    pub fn new(table: &Table, spare: Option<Block>, keyed: bool, first_row: u64, oldest: SystemTime) -> Self {
        let spec = &table.spec;
        let keys: Arc<[ColumnSpec]> = spec.key.iter().map(|&index| spec.columns[index].clone()).collect();
        Self {
            block: spare.unwrap_or_else(|| Block::of_table(table)),
            waiting: Vec::new(),
            keys: Block::new(keys).with_datetime_range(table.range),
            latest: keyed.then(HashMap::new),
            letters: Letters::default(),
            waiting_bytes: 0,
            expected: table.lookup_bytes(),
            first_row,
            commit: Lsn::ZERO,
            oldest,
            opened: Instant::now(),
        }
    }

    /// How many rows it will have.
    pub fn rows(&self) -> usize {
        self.block.rows() + self.waiting.len() + self.letters.rows()
    }

    /// Bytes of memory that it holds, or will when the rows that wait are complete.
    pub fn bytes(&self) -> usize {
        let keys = self.latest.as_ref().map_or(0, |keys| keys.capacity() * 48);
        let rows = self.block.bytes() + self.letters.bytes() + self.waiting_bytes;
        rows + self.waiting.len() * self.expected + self.keys.bytes() + keys
    }

    /// Bytes of memory that it takes while it is sent: a part at a time is written beside it.
    pub fn bytes_when_sent(&self) -> usize {
        self.bytes() + self.block.native_buffer()
    }

    /// Adds what becomes of a row.
    ///
    /// # Errors
    /// A value that its column can not hold; then the batch is as it was.
    pub fn add(&mut self, spec: &TableSpec, plan: &Plan, change: RowChange<'_>, at: At) -> Result<Outcome, CellError> {
        if spec.changelog {
            return self.log(spec, plan, change, at);
        }
        match change {
            RowChange::Insert(new) => self.insert(spec, plan, new, at),
            RowChange::Update(old, new) => self.update(spec, plan, old, new, at),
            RowChange::Delete(old) => self.delete(spec, plan, old, at),
        }
    }

    fn insert(&mut self, spec: &TableSpec, plan: &Plan, new: Tuple<'_>, at: At) -> Result<Outcome, CellError> {
        if !self.push_row(spec, plan, new)? {
            return self.wait(spec, plan, None, new, at, Operation::Insert);
        }
        self.end_row(spec, at.version, false);
        Ok(Outcome::Added)
    }

    /// Adds the new state of a row, and a tombstone for the old key if that was another one.
    fn update(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        old: Option<(Tuple<'_>, bool)>,
        new: Tuple<'_>,
        at: At,
    ) -> Result<Outcome, CellError> {
        if !self.push_row(spec, plan, new)? {
            return self.wait(spec, plan, old, new, at, Operation::Update);
        }
        self.end_row(spec, at.version, false);
        self.push_old_key(spec, plan, old.map(|(old, _)| old), new, at)?;
        Ok(Outcome::Added)
    }

    /// Adds a tombstone for the old key of the row that was just added, if it is another one.
    fn push_old_key(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        old: Option<Tuple<'_>>,
        new: Tuple<'_>,
        at: At,
    ) -> Result<(), CellError> {
        let Some(old) = old.filter(|old| key_texts_differ(plan, *old, new)) else { return Ok(()) };
        // Different texts can be one key to ClickHouse: 0 and -0.
        let row = self.block.rows();
        if let Err(error) = self.push_tombstone(spec, plan, old) {
            // No half of a change.
            self.block.pop_row();
            return Err(error);
        }
        let (mut new_key, mut old_key) = (Vec::new(), Vec::new());
        self.block.key(&spec.key, row - 1, &mut new_key);
        self.block.key(&spec.key, row, &mut old_key);
        if new_key == old_key {
            self.block.rollback_row();
        } else {
            self.end_row(spec, at.version, true);
        }
        Ok(())
    }

    /// Adds a row whose missing values the old tuple had.
    fn push_filled(&mut self, spec: &TableSpec, row: &Waiting) -> Result<(), CellError> {
        for column in 0..spec.columns.len() {
            let into = self.block.column_mut(column);
            let pushed = match row.text(column) {
                Some(text) => into.push_text(text),
                None => into.push_null(),
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                return Err(CellError::Value { column: spec.columns[column].name.clone(), error });
            }
        }
        self.end_row(spec, row.at.version, false);
        Ok(())
    }

    fn delete(&mut self, spec: &TableSpec, plan: &Plan, old: Tuple<'_>, at: At) -> Result<Outcome, CellError> {
        self.push_tombstone(spec, plan, old)?;
        self.end_row(spec, at.version, true);
        Ok(Outcome::Added)
    }

    /// Pushes a row's values; `false`, and nothing, if one is not in the stream.
    fn push_row(&mut self, spec: &TableSpec, plan: &Plan, tuple: Tuple<'_>) -> Result<bool, CellError> {
        if tuple.len() != plan.columns.len() {
            return Err(CellError::protocol());
        }
        let mut values = tuple.values();
        for &column in &plan.columns {
            let Some(value) = values.next() else {
                self.block.rollback_row();
                return Err(CellError::protocol());
            };
            let Some(column) = column else { continue };
            let into = self.block.column_mut(column);
            let pushed = match value {
                Value::Text(text) => into.push_text(text),
                Value::Null => into.push_null(),
                Value::Unchanged => {
                    self.block.rollback_row();
                    return Ok(false);
                }
                Value::Binary(_) => {
                    self.block.rollback_row();
                    return Err(CellError::Protocol("a binary value, which was not asked for"));
                }
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                return Err(CellError::Value { column: spec.columns[column].name.clone(), error });
            }
        }
        Ok(true)
    }

    fn push_tombstone(&mut self, spec: &TableSpec, plan: &Plan, old: Tuple<'_>) -> Result<(), CellError> {
        if old.len() != plan.columns.len() {
            return Err(CellError::protocol());
        }
        let mut values = old.values();
        for &column in &plan.columns {
            let Some(value) = values.next() else {
                self.block.rollback_row();
                return Err(CellError::protocol());
            };
            let Some(column) = column else { continue };
            let into = self.block.column_mut(column);
            let pushed = match value {
                Value::Text(text) if spec.key.contains(&column) => into.push_text(text),
                _ if spec.key.contains(&column) => {
                    self.block.rollback_row();
                    return Err(CellError::Protocol("an old key without its value"));
                }
                _ => {
                    into.push_default();
                    Ok(())
                }
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                return Err(CellError::Value { column: spec.columns[column].name.clone(), error });
            }
        }
        Ok(())
    }

    fn end_row(&mut self, spec: &TableSpec, version: Version, deleted: bool) {
        let row = self.block.rows();
        self.block.commit_row(version.0, deleted);
        self.commit = self.commit.max(version.commit());
        if let Some(latest) = &mut self.latest {
            let mut key = Vec::new();
            self.block.key(&spec.key, row, &mut key);
            latest.insert(key.into(), if deleted { Slot::Gone } else { Slot::Row(row) });
        }
    }

    /// Adds a row that lacks values, and the tombstone of its old key. Any other operation than an
    /// update has no old key.
    fn wait(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        old: Option<(Tuple<'_>, bool)>,
        new: Tuple<'_>,
        at: At,
        operation: Operation,
    ) -> Result<Outcome, CellError> {
        let alone = operation != Operation::Update;
        let mut row = Waiting {
            at,
            cells: vec![Cell::Null; spec.columns.len()],
            bytes: Vec::new(),
            before: None,
            key_change: false,
            alone,
            operation: if old.is_some() { Operation::Update } else { operation },
            keys: self.keys.rows(),
            old_key: Vec::new(),
        };
        row.fill(spec, plan, old, new);
        let old = old.map(|(old, _)| old).filter(|_| !alone);
        if row.lacking().next().is_none() {
            self.push_filled(spec, &row)?;
            self.push_old_key(spec, plan, old, new, at)?;
            return Ok(Outcome::Added);
        }
        if self.latest.is_none() {
            return Ok(Outcome::NeedsKeys);
        }
        let old_texts = old.filter(|old| key_texts_differ(plan, *old, new));
        if let Some(old) = old_texts {
            let old = key_texts(plan, old, Some(new));
            row.old_key = old.into_iter().map(|text| text.unwrap_or_default().into()).collect();
        }
        let keys = self.keys.rows();
        let new_key = self.push_key(spec, spec.key.iter().map(|&column| row.text(column)))?;
        let old_key = match self.push_key(spec, row.old_key(spec).map(Some)) {
            Ok(old_key) => old_key,
            Err(error) => {
                self.keys.pop_row();
                return Err(error);
            }
        };
        debug_assert!(self.keys.rows() == keys + 2, "two rows of keys for each row that waits");
        row.key_change = new_key != old_key;
        if row.key_change
            && let Some(old) = old_texts
        {
            self.push_tombstone(spec, plan, old)?;
            let row_index = self.block.rows();
            self.block.commit_row(at.version.0, true);
            debug_assert!(self.block.rows() == row_index + 1);
        }
        self.commit = self.commit.max(at.version.commit());
        let old_key_bytes: usize = row.old_key.iter().map(|text| text.len() + size_of::<Box<[u8]>>()).sum();
        self.waiting_bytes += row.bytes.len() + old_key_bytes;
        self.waiting_bytes += row.cells.len() * size_of::<Cell>() + size_of::<Waiting>();
        let slot = Slot::Waiting(self.waiting.len());
        if let Some(latest) = &mut self.latest {
            row.before = latest.get(old_key.as_slice()).copied();
            if row.key_change {
                latest.insert(old_key.into(), Slot::Gone);
            }
            latest.insert(new_key.into(), slot);
        }
        self.waiting.push(row);
        Ok(Outcome::Added)
    }

    /// Adds a row to `keys`, and returns its canonical bytes.
    fn push_key<'a>(
        &mut self,
        spec: &TableSpec,
        texts: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<Vec<u8>, CellError> {
        for ((place, &column), text) in spec.key.iter().enumerate().zip(texts) {
            let Some(text) = text else {
                self.keys.rollback_row();
                return Err(CellError::Protocol("a key without its value"));
            };
            if let Err(error) = self.keys.column_mut(place).push_text(text) {
                self.keys.rollback_row();
                return Err(CellError::Value { column: spec.columns[column].name.clone(), error });
            }
        }
        let row = self.keys.rows();
        self.keys.commit_row(0, false);
        let all: Vec<_> = (0..spec.key.len()).collect();
        let mut key = Vec::new();
        self.keys.key(&all, row, &mut key);
        Ok(key)
    }
}

/// Whether the texts of the keys differ. A key column that is unchanged TOAST does not.
fn key_texts_differ(plan: &Plan, old: Tuple<'_>, new: Tuple<'_>) -> bool {
    let mut values = old.values().zip(new.values()).enumerate();
    values.any(|(place, pair)| match pair {
        (Value::Text(old), Value::Text(new)) => old != new && plan.key.contains(&place),
        _ => false,
    })
}

/// The text forms of a key, in index order. A toasted key column that did not change is in the
/// other tuple.
fn key_texts<'a>(plan: &Plan, tuple: Tuple<'a>, other: Option<Tuple<'a>>) -> Vec<Option<&'a [u8]>> {
    let text = |tuple: Tuple<'a>, place: usize| match tuple.values().nth(place) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    };
    let places = plan.key.iter();
    places.map(|&place| text(tuple, place).or_else(|| text(other?, place))).collect()
}
