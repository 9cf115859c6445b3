//! What takes the place of a value that the column's type can not hold, where that was asked for.

use super::{Column, push_decimal};
use crate::{
    clickhouse::{
        text::{self, ValueError},
        types::ColumnType,
    },
    config::Unrepresentable,
};

impl Column {
    /// Adds what the policy puts in the place of the value, or says once more why there is none.
    #[cold]
    #[inline(never)]
    pub(super) fn replace(&mut self, text: &[u8], why: &'static str) -> Result<(), ValueError> {
        match self.policy {
            Unrepresentable::Null if self.nulls.is_some() => self.push_default(),
            // A mask's text is none of the source's, and has no nearer end.
            Unrepresentable::Clamp if self.mask.is_none() => {
                self.push_clamped(text).map_err(|_| ValueError::Unrepresentable(why))?;
            }
            _ => return Err(ValueError::Unrepresentable(why)),
        }
        self.replaced.push(self.rows - 1);
        Ok(())
    }

    /// Adds the nearer end of the type's range, for a value outside of it.
    fn push_clamped(&mut self, text: &[u8]) -> Result<(), ValueError> {
        let data = &mut self.data;
        match self.ty {
            ColumnType::Date32 => data.extend_from_slice(&text::clamped_date(text)?.to_le_bytes()),
            ColumnType::DateTime64 { precision } => {
                data.extend_from_slice(&text::clamped_timestamp(text, self.range, precision)?.to_le_bytes());
            }
            ColumnType::Decimal { precision, scale } => {
                push_decimal(data, text::clamped_decimal(text, precision, scale)?, self.width);
            }
            _ => return Err(ValueError::Unrepresentable("a value without a nearer end")),
        }
        self.end_row(0);
        Ok(())
    }

    /// How many of its values are not the source's.
    pub fn replaced(&self) -> usize {
        self.replaced.len() + self.elements.as_ref().map_or(0, |elements| elements.replaced())
    }

    /// By which policy they are not.
    pub fn policy(&self) -> Unrepresentable {
        self.policy
    }
}
