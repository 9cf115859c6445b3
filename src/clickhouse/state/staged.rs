//! Changes of tables that are on their way to being stored.

use super::TableRecord;
use std::collections::{BTreeSet, HashMap};

/// The tables with the changes that are on their way to being stored.
#[derive(Default)]
pub(super) struct Staged {
    tables: HashMap<u32, StagedTable>,
    /// Tables with changes that are not stored.
    dirty: BTreeSet<u32>,
    /// The number of the last change.
    changes: u64,
}

struct StagedTable {
    record: TableRecord,
    /// Of the last attempt to store it: none is used twice, whatever became of that attempt.
    revision: u64,
    /// The number of its last change.
    change: u64,
}

impl Staged {
    /// Takes over what is stored.
    pub(super) fn load(&mut self, record: TableRecord, revision: u64) {
        self.tables.insert(record.oid, StagedTable { record, revision, change: 0 });
    }

    /// Takes a table that is new, or made anew, and returns the number of the change.
    pub(super) fn put(&mut self, record: TableRecord) -> u64 {
        self.changes += 1;
        let change = self.changes;
        self.dirty.insert(record.oid);
        let revision = self.tables.get(&record.oid).map_or(0, |before| before.revision);
        self.tables.insert(record.oid, StagedTable { record, revision, change });
        change
    }

    /// Applies a change, and returns the number of the table's last one; `None` if there is no such
    /// table.
    pub(super) fn change(&mut self, oid: u32, change: impl FnOnce(&mut TableRecord)) -> Option<u64> {
        let table = self.tables.get_mut(&oid)?;
        let before = table.record.clone();
        change(&mut table.record);
        if table.record != before {
            self.changes += 1;
            table.change = self.changes;
            self.dirty.insert(oid);
        }
        Some(table.change)
    }

    /// What is to be written, with revisions, and the number of the last change in it.
    pub(super) fn take(&mut self) -> (Vec<(TableRecord, u64)>, u64) {
        let mut rows = Vec::new();
        for oid in &self.dirty {
            if let Some(table) = self.tables.get_mut(oid) {
                table.revision += 1;
                rows.push((table.record.clone(), table.revision));
            }
        }
        (rows, self.changes)
    }

    /// Every change up to this one is stored.
    pub(super) fn stored(&mut self, last: u64) {
        let Self { dirty, tables, .. } = self;
        dirty.retain(|oid| tables.get(oid).is_some_and(|table| table.change > last));
    }
}
