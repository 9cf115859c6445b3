//! What is known of one replicated table.

use crate::event::{Lsn, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a table is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "status", content = "reason")]
pub enum TableStatus {
    /// Its copy is not complete.
    Copying,
    /// Its copy is complete.
    Streaming,
    /// Its changes are dropped, for this reason, until an operator has it copied again.
    Stopped(String),
    /// Its changes are dropped because an operator wants it so, until one has it resumed; since when, by whom and why.
    Paused(String),
    /// Its changes are dropped, for this reason, until the copy that is made by itself takes its
    /// place.
    Resync(String),
    /// Of a fresh table only: it takes the place of the live one.
    Swapping,
    /// Another source table has its target now.
    Gone,
}

impl TableStatus {
    /// Its word and its reason, as they are stored; the reason is empty where there is none.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Copying => ("copying", ""),
            Self::Streaming => ("streaming", ""),
            Self::Stopped(reason) => ("stopped", reason),
            Self::Paused(reason) => ("paused", reason),
            Self::Resync(reason) => ("resync", reason),
            Self::Swapping => ("swapping", ""),
            Self::Gone => ("gone", ""),
        }
    }

    pub(super) fn of_parts(status: &str, reason: String) -> Self {
        match status {
            "copying" => Self::Copying,
            "streaming" => Self::Streaming,
            "paused" => Self::Paused(reason),
            "resync" => Self::Resync(reason),
            "swapping" => Self::Swapping,
            "gone" => Self::Gone,
            _ => Self::Stopped(reason),
        }
    }

    /// Whether changes of the table are dropped.
    pub fn is_frozen(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Paused(_) | Self::Resync(_) | Self::Gone)
    }
}

/// What is known of a replicated table, and of its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The source's schema.
    pub schema: String,
    /// The source's name.
    pub name: String,
    /// The table in ClickHouse.
    pub target: String,
    /// That table's UUID.
    pub uuid: String,
    /// What it is doing.
    pub status: TableStatus,
    /// Commits that end at or before this position are not in its feed.
    pub fed_from: Lsn,
    /// Changes below this version have landed already, in an older shape of the target.
    pub shaped_from: Version,
    /// The WAL position after the last read of rows from PostgreSQL itself.
    pub read_until: Lsn,
    /// The version of the last TRUNCATE.
    pub floor: Version,
    /// The identity of its membership in the publication; empty until it is adopted.
    pub membership: String,
    /// The source's columns as the target has them, as JSON.
    pub shape: String,
    /// The heaps of the source when they were last looked at, with their filenodes.
    pub heaps: BTreeMap<u32, u64>,
    /// The change of shape that the target is undergoing.
    pub altering: Option<Altering>,
    /// The table beside it that is being filled, to take its place.
    pub fresh: Option<Box<TableRecord>>,
}

/// A change of the target's shape that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Altering {
    /// What `shape` will be.
    pub shape: String,
    /// What `shaped_from` will be.
    pub shaped_from: Version,
    /// What is to be run; each statement may be run any number of times.
    pub statements: Vec<String>,
}

impl TableRecord {
    /// `schema.name`, for people.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether its adoption got as far as the publication; otherwise it is repeated.
    pub fn is_adopted(&self) -> bool {
        !self.membership.is_empty()
    }

    /// Whether something was begun with its target, or the fresh one, that may not be complete.
    pub fn is_undergoing(&self) -> bool {
        let fresh = self.fresh.as_deref();
        self.altering.is_some()
            || fresh.is_some_and(|fresh| fresh.altering.is_some() || fresh.status == TableStatus::Swapping)
    }

    /// What is known of the target with this UUID: this one, or the fresh one beside it.
    pub(super) fn of_target(&mut self, uuid: &str) -> Option<&mut TableRecord> {
        if self.uuid == uuid {
            return Some(self);
        }
        self.fresh.as_deref_mut().filter(|fresh| fresh.uuid == uuid)
    }

    /// The fresh table has taken the place of this one.
    pub fn swap(&mut self) {
        if let Some(fresh) = self.fresh.take() {
            let target = std::mem::take(&mut self.target);
            *self = TableRecord { target, status: TableStatus::Streaming, ..*fresh };
        }
    }
}
