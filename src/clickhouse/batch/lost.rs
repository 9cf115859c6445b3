//! Changes with a value that can not be held: what of them goes in, and what becomes a dead letter.
//!
//! The rules are in [`dead_letters`](super::super::dead_letters).

use super::{At, Batch, CellError, Outcome, RowChange, Slot, Waiting, key_texts, key_texts_differ};
use crate::{
    clickhouse::{
        dead_letters::{Envelope, Letter, Operation, Reason},
        table::{Plan, TableSpec},
    },
    event::{Tuple, Value},
};

impl Batch {
    /// Adds what can be held of a change that [`add`](Self::add) did not take because of `error`, and
    /// a dead letter for the rest.
    ///
    /// # Errors
    /// What the source never sends.
    pub fn lose(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        change: RowChange<'_>,
        at: At,
        error: &CellError,
    ) -> Result<Outcome, CellError> {
        self.commit = self.commit.max(at.version.commit());
        match change {
            RowChange::Insert(new) => {
                let key = self.key_of(spec, plan, new, None);
                self.lose_row(spec, plan, change, at, error)?;
                self.mark_lost(key);
            }
            RowChange::Update(old, new) => return self.lose_update(spec, plan, old, new, at),
            RowChange::Delete(old) => self.lose_key(spec, plan, old, None, at, error)?,
        }
        Ok(Outcome::Added)
    }

    /// The row and the tombstone of an update, each by itself.
    fn lose_update(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        old: Option<(Tuple<'_>, bool)>,
        new: Tuple<'_>,
        at: At,
    ) -> Result<Outcome, CellError> {
        let moved = old.map(|(old, _)| old).filter(|old| key_texts_differ(plan, *old, new));
        let new_key = self.key_of(spec, plan, new, old.map(|(old, _)| old));
        let old_key = moved.map(|old| self.key_of(spec, plan, old, Some(new)));
        let row = match self.push_row(spec, plan, new) {
            Ok(true) => {
                self.end_row(spec, at.version, false);
                Ok(())
            }
            // What it was before can not be in ClickHouse, since its old key can not be held.
            Ok(false) => match self.wait(spec, plan, old, new, at, Operation::Upsert) {
                Ok(Outcome::NeedsKeys) => return Ok(Outcome::NeedsKeys),
                outcome => outcome.map(|_| ()),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = row {
            self.lose_row(spec, plan, RowChange::Update(old, new), at, &error)?;
            if let Ok(key) = &new_key {
                self.mark_lost(Ok(key.clone()));
            }
        }
        match (moved, old_key) {
            (Some(old), Some(Err(error))) => self.lose_key(spec, plan, old, Some(new), at, &error)?,
            // Different texts can be one key to ClickHouse: then the row there stays as it was.
            (Some(_), Some(Ok(old_key))) if new_key.is_ok_and(|new_key| new_key == old_key) => {}
            (Some(old), _) => {
                self.push_tombstone(spec, plan, old)?;
                self.end_row(spec, at.version, true);
            }
            (None, _) => {}
        }
        Ok(Outcome::Added)
    }

    /// Adds a letter for a row as it is after its change.
    fn lose_row(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        change: RowChange<'_>,
        at: At,
        error: &CellError,
    ) -> Result<(), CellError> {
        let (operation, old, new) = match change {
            RowChange::Insert(new) => (Operation::Insert, None, new),
            RowChange::Update(old, new) => (Operation::Update, old, new),
            RowChange::Delete(_) => return Ok(()),
        };
        let mut envelope = Envelope::default();
        for (column, value) in plan.columns.iter().zip(new.values()) {
            let Some(of) = column.map(|column| &spec.columns[column]) else { continue };
            match value {
                Value::Text(text) => envelope.new_value(&of.name, of.shown(Some(text)).as_deref()),
                Value::Null => envelope.new_value(&of.name, None),
                Value::Unchanged | Value::Binary(_) => envelope.unchanged(&of.name),
            }
        }
        if let Some((old, old_is_key)) = old {
            old_values(&mut envelope, spec, plan, old, old_is_key);
        }
        let key = key_texts(plan, new, old.map(|(old, _)| old));
        self.letter(spec, key, operation, at, error, envelope)
    }

    /// Adds a letter for a tombstone.
    fn lose_key(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        old: Tuple<'_>,
        new: Option<Tuple<'_>>,
        at: At,
        error: &CellError,
    ) -> Result<(), CellError> {
        let mut envelope = Envelope::default();
        old_values(&mut envelope, spec, plan, old, true);
        self.letter(spec, key_texts(plan, old, new), Operation::Delete, at, error, envelope)
    }

    fn letter(
        &mut self,
        spec: &TableSpec,
        key: Vec<Option<&[u8]>>,
        operation: Operation,
        at: At,
        error: &CellError,
        envelope: Envelope,
    ) -> Result<(), CellError> {
        let shown = |(text, &column): (Option<&[u8]>, &usize)| Some(spec.columns[column].shown(text)?.into_owned());
        let key = key.into_iter().zip(&spec.key).map(shown).collect::<Option<_>>();
        let key = key.ok_or(CellError::Protocol("a key without its value"))?;
        let (version, reason) = (at.version, Reason::from(error));
        let letter = Letter { version, transaction: Some((at.xid, at.time)), operation, key, reason, envelope };
        self.letters.add(spec, letter);
        Ok(())
    }

    /// Adds a letter for a row that has waited, and whose values it turned out can not be held.
    pub fn lose_waiting(&mut self, spec: &TableSpec, row: &Waiting, error: &CellError) -> Result<(), CellError> {
        let mut envelope = Envelope::default();
        for (column, of) in spec.columns.iter().enumerate() {
            match row.cells[column] {
                super::Cell::Lacking => envelope.unchanged(&of.name),
                super::Cell::Null | super::Cell::Text(..) => {
                    envelope.new_value(&of.name, of.shown(row.text(column)).as_deref());
                }
            }
        }
        let key = spec.key.iter().map(|&column| row.text(column)).collect();
        self.letter(spec, key, row.operation, row.at, error, envelope)
    }

    /// The canonical bytes of a key.
    fn key_of(
        &mut self,
        spec: &TableSpec,
        plan: &Plan,
        tuple: Tuple<'_>,
        other: Option<Tuple<'_>>,
    ) -> Result<Vec<u8>, CellError> {
        let key = self.push_key(spec, key_texts(plan, tuple, other).into_iter())?;
        self.keys.pop_row();
        Ok(key)
    }

    /// Whoever comes after it under its key finds no row in this batch. A key that can not be held is
    /// never looked for.
    fn mark_lost(&mut self, key: Result<Vec<u8>, CellError>) {
        if let (Some(latest), Ok(key)) = (&mut self.latest, key) {
            latest.insert(key.into(), Slot::Lost);
        }
    }
}

fn old_values(envelope: &mut Envelope, spec: &TableSpec, plan: &Plan, old: Tuple<'_>, old_is_key: bool) {
    for (column, value) in plan.columns.iter().zip(old.values()) {
        // A key tuple says nothing of the columns outside the key.
        let Some(column) = column.filter(|column| !old_is_key || spec.key.contains(column)) else { continue };
        let of = &spec.columns[column];
        match value {
            Value::Text(text) => envelope.old_value(&of.name, of.shown(Some(text)).as_deref()),
            Value::Null => envelope.old_value(&of.name, None),
            Value::Unchanged | Value::Binary(_) => {}
        }
    }
}
