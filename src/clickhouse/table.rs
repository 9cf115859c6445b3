//! A replicated table, as the ClickHouse side sees it: which columns its target has, which of
//! them are the key, and how a row of the stream is laid out onto them.

mod spec;

pub use spec::{Choices, TableSpec};

use super::{dead_letters::Losses, text::DateTimeRange};
use crate::event::{Lsn, Relation, ReplicaIdentity, SourceTable, Version};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The row's version: every target has this column.
pub const VERSION: &str = "_version";
/// Whether the row is a tombstone: every target has this column.
pub const IS_DELETED: &str = "_is_deleted";
/// Names in the database that are walhouse's own.
const RESERVED: &[&str] = &[
    "_checkpoint",
    "_tables",
    "_chunks",
    "_dead_letters",
    "_requests",
    "_pauses",
    "_pauses_taken_up",
    "audit_log",
    "async_operations",
];
/// What follows a target's name in the name of its view of current rows.
pub const VIEW_SUFFIX: &str = "_current";

/// Lays a table of the source onto a target, or says why it can not be replicated.
pub type Layout = dyn Fn(&SourceTable) -> Result<TableSpec, String> + Send + Sync;

/// What a value that is looked up is taken to be before one was seen. On the large side, because a
/// batch is sized by it: the first one is then rather small than beyond the budget.
const FIRST_LOOKUP_BYTES: usize = 8 * 1024;

/// A replicated table while the daemon runs, in one shape of its target.
#[derive(Debug)]
pub struct Table {
    /// Its layout.
    pub spec: TableSpec,
    /// The UUID of its target.
    pub uuid: String,
    /// The timestamps that its server can hold.
    pub range: DateTimeRange,
    /// The rows of its that were lost.
    pub losses: Arc<Losses>,
    account: Arc<Account>,
}

/// What stays when the shape changes.
#[derive(Debug)]
struct Account {
    read_until: AtomicU64,
    lookup_bytes: AtomicUsize,
    copy_apart: AtomicBool,
    copy_over: CancellationToken,
    copy_writers: watch::Sender<usize>,
}

impl Table {
    /// A table whose rows were last read from PostgreSQL itself at `read_until`.
    pub fn new(spec: TableSpec, uuid: String, range: DateTimeRange, read_until: Lsn) -> Arc<Self> {
        let account = Account {
            read_until: AtomicU64::new(read_until.0),
            lookup_bytes: AtomicUsize::new(FIRST_LOOKUP_BYTES),
            copy_apart: AtomicBool::new(false),
            copy_over: CancellationToken::new(),
            copy_writers: watch::Sender::new(0),
        };
        Arc::new(Self { spec, uuid, range, losses: Arc::default(), account: Arc::new(account) })
    }

    /// The same table in another shape, or under another name.
    pub fn reshaped(&self, spec: TableSpec) -> Arc<Self> {
        Arc::new(Self {
            spec,
            uuid: self.uuid.clone(),
            range: self.range,
            losses: Arc::clone(&self.losses),
            account: Arc::clone(&self.account),
        })
    }

    /// The WAL position after the last read of rows from PostgreSQL itself. Such rows may be from
    /// a later time than the change that they complete.
    pub fn read_until(&self) -> Lsn {
        Lsn(self.account.read_until.load(Ordering::SeqCst))
    }

    /// Notes that rows were read from PostgreSQL at `position`; to be stored before they land.
    pub fn note_read(&self, position: Lsn) {
        self.account.read_until.fetch_max(position.0, Ordering::SeqCst);
    }

    /// What the values that a waiting row lacks take, in bytes, as far as lookups have shown.
    pub fn lookup_bytes(&self) -> usize {
        self.account.lookup_bytes.load(Ordering::Relaxed)
    }

    /// Notes what such values took on average. A rise counts at once, a fall by and by.
    pub fn note_lookup(&self, bytes: usize) {
        let before = self.lookup_bytes();
        self.account.lookup_bytes.store(bytes.max((before + bytes) / 2), Ordering::Relaxed);
    }

    /// Has the copy's blocks sent one by one from now on.
    pub fn copy_apart(&self) {
        self.account.copy_apart.store(true, Ordering::Relaxed);
    }

    /// Whether the copy's blocks are sent one by one.
    pub fn is_copied_apart(&self) -> bool {
        self.account.copy_apart.load(Ordering::Relaxed)
    }

    /// Called by the copy before it writes: `None` if it must not, because something has made it
    /// unnecessary. While the guard lives, a barrier waits.
    pub fn begin_copy(&self) -> Option<CopyGuard> {
        let guard = CopyGuard { account: Arc::clone(&self.account) };
        self.account.copy_writers.send_modify(|count| *count += 1);
        // Counted first, asked then: whoever ends the copy either sees the count or is seen here.
        (!self.account.copy_over.is_cancelled()).then_some(guard)
    }

    /// Ends the copy for good, and returns once it writes no more.
    pub async fn end_copy(&self) {
        self.account.copy_over.cancel();
        // The sender lives as long as the table, so waiting can not fail.
        let _ = self.account.copy_writers.subscribe().wait_for(|&count| count == 0).await;
    }

    /// Resolves when the copy has become unnecessary.
    pub async fn copy_ended(&self) {
        self.account.copy_over.cancelled().await;
    }
}

/// The copy of a table is writing.
#[derive(Debug)]
pub struct CopyGuard {
    account: Arc<Account>,
}

impl Drop for CopyGuard {
    fn drop(&mut self) {
        self.account.copy_writers.send_modify(|count| *count -= 1);
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
    /// How the two differ: the table has another shape at this point of the stream than its target.
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
        // Both are in the order of attribute numbers: names that were exchanged show in their order.
        if !columns.iter().flatten().is_sorted() {
            return Err("its columns have exchanged their names".to_owned());
        }
        // Under FULL every column counts as one of the identity; then the catalog is looked at.
        if spec.changelog && relation.identity != ReplicaIdentity::Full {
            return Err("its replica identity is not FULL any more".to_owned());
        }
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

/// What brings a stopped table back.
pub const ANEW: &str = "To replicate it from the beginning, run walhouse resync";

/// What a table's stream begins with: changes below are not in its feed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Feed {
    /// Commits that end at or before this position are left out.
    pub from: Lsn,
    /// Rows below this version were truncated, or have landed already in an older shape.
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
