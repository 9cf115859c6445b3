//! Rows of an array's column: their elements go into a column of their own.

use super::{CUT, Column, NULL_MARK, take_varint};
use crate::clickhouse::{
    text::{self, Element, ValueError},
    types::ColumnType,
};

const NO_NULL: ValueError = ValueError::Unrepresentable("a NULL element, and the column's elements take none");
const OTHER_RANK: ValueError = ValueError::Unrepresentable("an array of another rank than the column's");

/// The column for the elements of such a type.
pub(super) fn elements(ty: &ColumnType) -> Option<Column> {
    match ty {
        ColumnType::Array { element, nullable } => Some(Column::new((**element).clone(), *nullable)),
        ColumnType::Vector => Some(Column::new(ColumnType::Float32, false)),
        _ => None,
    }
}

impl Column {
    /// Adds the elements of a row, but does not end it. On error the column is unchanged.
    #[cold]
    #[inline(never)]
    pub(super) fn push_array(&mut self, text: &[u8]) -> Result<(), ValueError> {
        let Some(elements) = self.elements.as_deref_mut() else { return Err(OTHER_RANK) };
        let (before, nested) = (elements.rows, elements.elements.is_some());
        let pushed = match self.ty {
            ColumnType::Vector => text::vector(text, |number| elements.push_text(number)),
            _ => text::array(text, |element| match element {
                Element::Null => elements.push_null().map_err(|_| NO_NULL),
                Element::Text(text) if !nested => elements.push_text(text),
                Element::Array(text) if nested => elements.push_text(text),
                Element::Text(_) | Element::Array(_) => Err(OTHER_RANK),
            }),
        };
        pushed.inspect_err(|_| elements.truncate(before))
    }

    /// Adds a row as a lookup reads it: the array, and then the Bool beside it if there is one. On
    /// error the column and `input` are unchanged.
    pub(super) fn push_array_row_binary(&mut self, input: &mut &[u8]) -> Result<(), ValueError> {
        let before = self.elements.as_ref().map_or(0, |elements| elements.rows);
        let mut rest = *input;
        match self.take_array(&mut rest) {
            Ok(null) => {
                *input = rest;
                self.end_row(null);
                Ok(())
            }
            Err(error) => {
                if let Some(elements) = &mut self.elements {
                    elements.truncate(before);
                }
                Err(error)
            }
        }
    }

    fn take_array(&mut self, rest: &mut &[u8]) -> Result<u8, ValueError> {
        let length = take_varint(rest).ok_or(CUT)?;
        let elements = self.elements.as_deref_mut().ok_or(CUT)?;
        for _ in 0..length {
            elements.push_row_binary(rest)?;
        }
        if self.nulls.is_none() {
            return Ok(0);
        }
        let (&null, after) = rest.split_first().ok_or(CUT)?;
        *rest = after;
        if null > 1 { Err(NULL_MARK) } else { Ok(null) }
    }
}
