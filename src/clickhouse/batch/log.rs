//! Changes of a table without a key, as entries of its [changelog](super::super::changelog).
//!
//! An update is two entries, the row that went and the row that came, and each stands for itself: if
//! one can not be held and becomes a dead letter, the other goes in all the same. A row that can not
//! be held never landed, so the entry that would remove it is missed by nobody.

use super::{At, Batch, CellError, Outcome, RowChange};
use crate::{
    clickhouse::{
        changelog::LogOp,
        dead_letters::{self, Envelope, Letter, Operation, Reason},
        table::{Plan, TableSpec},
    },
    event::{Tuple, Value},
};

impl Batch {
    /// Adds the entries of a change.
    ///
    /// # Errors
    /// A value that its column can not hold and that is none for a dead letter; then the batch is as
    /// it was.
    pub(super) fn log(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        change: RowChange<'_>,
        at: At,
    ) -> Result<Outcome, CellError> {
        match change {
            RowChange::Insert(new) => self.entry(spec, plan, (new, None), at, LogOp::Insert)?,
            RowChange::Delete(old) => self.entry(spec, plan, (old, None), at, LogOp::Delete)?,
            RowChange::Update(Some((old, false)), new) => {
                let rows = self.block.rows();
                self.entry(spec, plan, (old, None), at, LogOp::UpdateBefore)?;
                let after = At { ordinal: at.ordinal + 1, ..at };
                if let Err(error) = self.entry(spec, plan, (new, Some(old)), after, LogOp::UpdateAfter) {
                    // No half of a change. A letter for the other half may come twice, and is one then.
                    if self.block.rows() > rows {
                        self.block.pop_row();
                    }
                    return Err(error);
                }
            }
            RowChange::Update(..) => {
                return Err(CellError::Protocol("an update without its old row, which REPLICA IDENTITY FULL promises"));
            }
        }
        self.commit = self.commit.max(at.version.commit());
        Ok(Outcome::Added)
    }

    /// Adds the entry that says that all rows before it are gone.
    pub fn log_truncate(&mut self, at: At) {
        self.block.push_mark(at.version.0, at.ordinal, LogOp::Truncate);
        self.commit = self.commit.max(at.version.commit());
    }

    /// Adds an entry with the values of a row, some of which may be in its old row only; or a letter
    /// in its place.
    fn entry(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        row: (Tuple<'_>, Option<Tuple<'_>>),
        at: At,
        op: LogOp,
    ) -> Result<(), CellError> {
        match self.push_values(spec, plan, row) {
            Ok(()) => self.block.commit_entry(at.version.0, at.ordinal, op),
            Err(error) if dead_letters::takes(spec, &error) => self.lose_entry(spec, plan, row, at, op, &error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn push_values(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        row: (Tuple<'_>, Option<Tuple<'_>>),
    ) -> Result<(), CellError> {
        let whole = row.0.len() == plan.columns.len() && row.1.is_none_or(|old| old.len() == row.0.len());
        if !whole {
            return Err(CellError::protocol());
        }
        for (&column, value) in plan.columns.iter().zip(values(row)) {
            let Some(column) = column else { continue };
            let into = self.block.column_mut(column);
            let pushed = match value {
                Value::Text(text) => into.push_text(text),
                Value::Null => into.push_null(),
                Value::Unchanged | Value::Binary(_) => {
                    self.block.rollback_row();
                    return Err(CellError::Protocol("a row without all of its values"));
                }
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                return Err(CellError::Value { column: spec.columns[column].name.clone(), error });
            }
        }
        Ok(())
    }

    fn lose_entry(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        row: (Tuple<'_>, Option<Tuple<'_>>),
        at: At,
        op: LogOp,
        error: &CellError,
    ) {
        let mut envelope = Envelope::default();
        for (column, value) in plan.columns.iter().zip(values(row)) {
            let Some(of) = column.map(|column| &spec.columns[column]) else { continue };
            let text = match value {
                Value::Text(text) => of.shown(Some(text)),
                Value::Null | Value::Unchanged | Value::Binary(_) => None,
            };
            if op.removes() {
                envelope.old_value(&of.name, text.as_deref());
            } else {
                envelope.new_value(&of.name, text.as_deref());
            }
        }
        let letter = Letter {
            version: at.version,
            transaction: Some((at.xid, at.time)),
            operation: Operation::of(op),
            key: vec![at.ordinal.to_string().into_bytes()],
            reason: Reason::from(error),
            envelope,
        };
        self.letters.add(spec, letter);
    }
}

/// The values of a row; those that did not change may be in the old one only.
fn values<'a>((row, old): (Tuple<'a>, Option<Tuple<'a>>)) -> impl Iterator<Item = Value<'a>> {
    let mut before = old.map(|old| old.values());
    row.values().map(move |value| {
        let before = before.as_mut().and_then(Iterator::next);
        if value == Value::Unchanged { before.unwrap_or(value) } else { value }
    })
}
