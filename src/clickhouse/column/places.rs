//! Where the values of a column are.
//!
//! Values of one width are where their numbers say. A value of any other has its length before it, so of those only every
//! sixteenth needs to be known: a word for each would be as much as a short text itself. An array's elements are counted,
//! and where each row's end is what ClickHouse wants to be told.

use super::{Column, take_varint};
use std::ops::Range;

/// Of so many values of different lengths the place of one is known.
const STRIDE: usize = 16;

impl Column {
    /// Ends a row whose value was added.
    #[inline]
    pub(super) fn end_row(&mut self, null: u8) {
        self.rows += 1;
        if let Some(elements) = &self.elements {
            self.places.push(elements.rows);
        } else if self.width.is_none() && self.rows.is_multiple_of(STRIDE) {
            self.places.push(self.data.len());
        }
        if let Some(nulls) = &mut self.nulls {
            nulls.push(null);
        }
    }

    /// Where a row's value is in `data`, with its length before it if it has one; or where its elements are. Panics if
    /// there is no such row.
    #[inline]
    pub(super) fn span(&self, row: usize) -> Range<usize> {
        match (&self.elements, self.width) {
            (Some(_), _) => self.start(row)..self.places[row],
            (None, Some(width)) => row * width..(row + 1) * width,
            (None, None) => {
                let start = self.start(row);
                start..start + take_value(&mut &self.data[start..]).len()
            }
        }
    }

    /// Where a row's value, or its elements, begin; for the row after the last, where that ends.
    pub(super) fn start(&self, row: usize) -> usize {
        let known = |place: usize| place.checked_sub(1).map_or(0, |before| self.places[before]);
        match (&self.elements, self.width) {
            (Some(_), _) => known(row),
            (None, Some(width)) => row * width,
            (None, None) => {
                let mut rest = &self.data[known(row / STRIDE)..];
                (0..row % STRIDE).for_each(|_| _ = take_value(&mut rest));
                self.data.len() - rest.len()
            }
        }
    }

    /// Forgets the places of all rows after the first `rows`.
    pub(super) fn truncate_places(&mut self, rows: usize) {
        self.places.truncate(if self.elements.is_some() { rows } else { rows / STRIDE });
    }
}

/// Takes a value with the length before it from the front of `rest`.
#[inline]
pub(super) fn take_value<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let mut after = *rest;
    let length = take_varint(&mut after).unwrap_or_default();
    let (value, rest_of_it) = rest.split_at(rest.len() - after.len() + length);
    *rest = rest_of_it;
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::types::ColumnType;
    use proptest::prelude::*;

    fn value(column: &Column, row: usize) -> &[u8] {
        let mut value = &column.data[column.span(row)];
        assert_eq!(take_varint(&mut value), Some(value.len()));
        value
    }

    proptest! {
        #[test]
        fn each_value_is_found_before_and_after_rows_were_taken_back(
            texts in proptest::collection::vec("[a-z]{0,200}", 1..100),
            more in proptest::collection::vec("[A-Z]{0,9}", 0..50),
            kept in 0..100usize,
        ) {
            let mut column = Column::new(ColumnType::String, false);
            for text in &texts {
                column.push_text(text.as_bytes()).unwrap();
            }
            column.truncate(kept);
            let mut expected: Vec<_> = texts.into_iter().take(kept).collect();
            for text in more {
                column.push_text(text.as_bytes()).unwrap();
                expected.push(text);
            }
            prop_assert_eq!(column.start(column.rows), column.data.len());
            for (row, text) in expected.iter().enumerate() {
                prop_assert_eq!(value(&column, row), text.as_bytes());
            }
        }
    }
}
