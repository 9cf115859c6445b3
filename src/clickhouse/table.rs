//! A replicated table, as the ClickHouse side sees it: which columns its target has, which of
//! them are the key, and how a row of the stream is laid out onto them.

mod spec;

pub use spec::{Choices, TableSpec};

use super::text::DateTimeRange;
use crate::event::{Lsn, Relation, ReplicaIdentity, SourceTable, Version};
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The row's version: every target has this column.
pub const VERSION: &str = "_version";
/// Whether the row is a tombstone: every target has this column.
pub const IS_DELETED: &str = "_is_deleted";
/// Names in the database that are walhouse's own.
const RESERVED: &[&str] = &["_checkpoint", "_tables", "_chunks", "_dead_letters", "audit_log", "async_operations"];
/// What follows a target's name in the name of its view of current rows.
pub const VIEW_SUFFIX: &str = "_current";

impl TableSpec {
    /// How the catalog's present shape differs from this one, in what the stream can not tell: a
    /// column that was dropped and added again under its name, or another key under FULL.
    pub fn differs(&self, table: &SourceTable) -> Option<String> {
        for source in &self.sources {
            let Some(now) = table.columns.iter().find(|column| column.name == source.name) else {
                return Some(format!("column {} is gone", source.name));
            };
            if now.attnum != source.attnum {
                return Some(format!("column {} was dropped and added again", source.name));
            }
            if now.key_position != source.key_position {
                return Some("its key is another".to_owned());
            }
        }
        None
    }
}

/// What a value that is looked up is taken to be before one was seen. On the large side, because a
/// batch is sized by it: the first one is then rather small than beyond the budget.
const FIRST_LOOKUP_BYTES: usize = 8 * 1024;

/// A replicated table while the daemon runs.
#[derive(Debug)]
pub struct Table {
    /// Its layout.
    pub spec: TableSpec,
    /// The UUID of its target.
    pub uuid: String,
    /// The timestamps that its server can hold.
    pub range: DateTimeRange,
    read_until: AtomicU64,
    lookup_bytes: AtomicUsize,
    copy_over: CancellationToken,
    copy_writers: watch::Sender<usize>,
}

impl Table {
    /// A table whose rows were last read from PostgreSQL itself at `read_until`.
    pub fn new(spec: TableSpec, uuid: String, range: DateTimeRange, read_until: Lsn) -> Arc<Self> {
        Arc::new(Self {
            spec,
            uuid,
            range,
            read_until: AtomicU64::new(read_until.0),
            lookup_bytes: AtomicUsize::new(FIRST_LOOKUP_BYTES),
            copy_over: CancellationToken::new(),
            copy_writers: watch::Sender::new(0),
        })
    }

    /// The WAL position after the last read of rows from PostgreSQL itself. Such rows may be from
    /// a later time than the change that they complete.
    pub fn read_until(&self) -> Lsn {
        Lsn(self.read_until.load(Ordering::SeqCst))
    }

    /// Notes that rows were read from PostgreSQL at `position`; to be stored before they land.
    pub fn note_read(&self, position: Lsn) {
        self.read_until.fetch_max(position.0, Ordering::SeqCst);
    }

    /// What the values that a waiting row lacks take, in bytes, as far as lookups have shown.
    pub fn lookup_bytes(&self) -> usize {
        self.lookup_bytes.load(Ordering::Relaxed)
    }

    /// Notes what such values took on average. A rise counts at once, a fall by and by.
    pub fn note_lookup(&self, bytes: usize) {
        let before = self.lookup_bytes();
        self.lookup_bytes.store(bytes.max((before + bytes) / 2), Ordering::Relaxed);
    }

    /// Called by the copy before it writes: `None` if it must not, because a TRUNCATE has made it
    /// unnecessary. While the guard lives, a TRUNCATE waits.
    pub fn begin_copy(self: &Arc<Self>) -> Option<CopyGuard> {
        let guard = CopyGuard { table: Arc::clone(self) };
        self.copy_writers.send_modify(|count| *count += 1);
        // Counted first, asked then: whoever ends the copy either sees the count or is seen here.
        (!self.copy_over.is_cancelled()).then_some(guard)
    }

    /// Ends the copy for good, and returns once it writes no more.
    pub async fn end_copy(&self) {
        self.copy_over.cancel();
        // The sender lives as long as the table, so waiting can not fail.
        let _ = self.copy_writers.subscribe().wait_for(|&count| count == 0).await;
    }

    /// Resolves when the copy has become unnecessary.
    pub async fn copy_ended(&self) {
        self.copy_over.cancelled().await;
    }
}

/// The copy of a table is writing.
#[derive(Debug)]
pub struct CopyGuard {
    table: Arc<Table>,
}

impl Drop for CopyGuard {
    fn drop(&mut self) {
        self.table.copy_writers.send_modify(|count| *count -= 1);
    }
}

/// How a tuple of the stream lies on a table's columns.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For each column of the tuple, the target's column; `None` for one that is left out.
    pub columns: Vec<Option<usize>>,
    /// For each column of the key, in index order, its place in the tuple.
    pub key: Vec<usize>,
}

impl Plan {
    /// Lays `relation` onto `spec`.
    ///
    /// # Errors
    /// How the two differ: the table's shape has changed since its target was created.
    pub fn new(spec: &TableSpec, relation: &Relation) -> Result<Self, String> {
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            if spec.excluded.iter().any(|excluded| excluded.name == column.name) {
                columns.push(None);
                continue;
            }
            let Some(index) = spec.sources.iter().position(|source| source.name == column.name) else {
                return Err(format!("column {} is new", column.name));
            };
            let source = &spec.sources[index];
            let modifier_counts = spec.columns[index].ty.depends_on_modifier();
            if source.declared_oid != column.type_oid
                || modifier_counts && source.declared_modifier != column.type_modifier
            {
                return Err(format!("the type of column {} is another", column.name));
            }
            columns.push(Some(index));
        }
        if let Some(missing) = (0..spec.sources.len()).find(|&index| !columns.contains(&Some(index))) {
            return Err(format!("column {} is gone", spec.sources[missing].name));
        }
        // Under FULL every column counts as one of the identity; then the catalog is looked at.
        if relation.identity != ReplicaIdentity::Full {
            let identity =
                relation.columns.iter().zip(&columns).filter(|(column, _)| column.key).map(|(_, &index)| index);
            let mut identity: Vec<Option<usize>> = identity.collect();
            let mut key: Vec<_> = spec.key.iter().copied().map(Some).collect();
            identity.sort_unstable();
            key.sort_unstable();
            if identity != key {
                return Err("its replica identity is another".to_owned());
            }
        }
        let place = |index: &usize| columns.iter().position(|column| *column == Some(*index));
        let key = spec.key.iter().map(place).collect::<Option<_>>().ok_or("a column of the key is gone")?;
        Ok(Self { columns, key })
    }
}

/// Why a table stops whose shape is another now.
pub fn shape_changed(difference: &str) -> String {
    format!(
        "its shape has changed since walhouse began to replicate it: {difference}. This version does not follow such a \
         change. {ANEW}"
    )
}

/// What brings a stopped table back in this version.
pub const ANEW: &str = "To replicate it from the beginning, stop walhouse, delete its row from _tables in ClickHouse, \
                        and start walhouse";

/// What a table's stream begins with: changes below are not in its feed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Feed {
    /// Commits that end at or before this position are left out.
    pub from: Lsn,
    /// Rows below this version were truncated.
    pub floor: Version,
}

impl Feed {
    /// Whether a change of this version is in the feed.
    ///
    /// A commit record that *begins* where the feed does is the first one inside it: adjacent
    /// transactions share that position.
    pub fn takes(&self, version: Version) -> bool {
        version.commit() >= self.from && version >= self.floor
    }
}
