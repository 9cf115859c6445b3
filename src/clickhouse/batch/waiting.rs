//! Rows that lack values which the stream left out.

use super::At;
use crate::{
    clickhouse::{
        dead_letters::Operation,
        table::{Plan, TableSpec},
    },
    event::{Tuple, Value},
};

/// What the last row of a key is, inside a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A row of the block.
    Row(usize),
    /// A row that lacks values.
    Waiting(usize),
    /// A tombstone.
    Gone,
    /// A dead letter.
    Lost,
}

/// A column's value in a row that waits.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// A range of the row's own bytes: the text form.
    Text(usize, usize),
    /// Not in the stream.
    Lacking,
}

/// A row that lacks toasted values.
#[derive(Debug)]
pub struct Waiting {
    /// Where its change stands.
    pub at: At,
    /// Its values by column of the target.
    pub cells: Vec<Cell>,
    pub(super) bytes: Vec<u8>,
    /// The row before it in this batch, under its old key.
    pub before: Option<Slot>,
    /// Whether the change altered the key.
    pub key_change: bool,
    /// Whether no row can be known before it: the change is an INSERT, or the old key is one that
    /// could never be held.
    pub alone: bool,
    /// What the change did.
    pub operation: Operation,
    /// The row of the batch's keys that holds its new key; the next one holds the old key.
    pub keys: usize,
    /// The text forms of the old key, if they differ from the new ones.
    pub(super) old_key: Vec<Box<[u8]>>,
}

impl Waiting {
    /// The text forms of its old key, in index order.
    pub fn old_key<'a>(&'a self, spec: &'a TableSpec) -> impl Iterator<Item = &'a [u8]> + 'a {
        let same = spec.key.iter().map(|&column| self.text(column).unwrap_or_default());
        let other = self.old_key.iter().map(|text| &**text);
        let (same, other) = if self.old_key.is_empty() { (Some(same), None) } else { (None, Some(other)) };
        same.into_iter().flatten().chain(other.into_iter().flatten())
    }

    /// The text form of a value that it has.
    pub fn text(&self, column: usize) -> Option<&[u8]> {
        match self.cells[column] {
            Cell::Text(start, end) => self.bytes.get(start..end),
            Cell::Null | Cell::Lacking => None,
        }
    }

    /// The columns that it lacks.
    pub fn lacking(&self) -> impl Iterator<Item = usize> + '_ {
        self.cells.iter().enumerate().filter(|(_, cell)| matches!(cell, Cell::Lacking)).map(|(index, _)| index)
    }

    /// Gives it the values of its tuple, and of the old one where that has them.
    pub(super) fn fill(&mut self, spec: &TableSpec, plan: &Plan, old: Option<(Tuple<'_>, bool)>, new: Tuple<'_>) {
        let old_values: Vec<_> = old.map(|(old, _)| old.values().collect()).unwrap_or_default();
        let old_is_key = old.is_some_and(|(_, is_key)| is_key);
        for (place, (&column, value)) in plan.columns.iter().zip(new.values()).enumerate() {
            let Some(column) = column else { continue };
            // A key tuple says nothing of the columns outside the key.
            let known =
                |value: &&Value<'_>| matches!(value, Value::Text(_)) && (!old_is_key || spec.key.contains(&column));
            let value = match value {
                Value::Unchanged => old_values.get(place).filter(known).copied().unwrap_or(Value::Unchanged),
                value => value,
            };
            self.cells[column] = match value {
                Value::Text(text) => {
                    let start = self.bytes.len();
                    self.bytes.extend_from_slice(text);
                    Cell::Text(start, self.bytes.len())
                }
                Value::Null => Cell::Null,
                Value::Unchanged | Value::Binary(_) => Cell::Lacking,
            };
        }
    }
}
