//! What walhouse must remember, kept in ClickHouse beside the data: the checkpoint of the slot,
//! what is known of each table, and the chunks of its copy that are done.
//!
//! Everything here is written before the thing that relies on it: a ceiling before a row beyond
//! the old one is sent, `fed_from` before the first chunk, `read_until` before rows that were read
//! from PostgreSQL land, a stop before any checkpoint passes the first change that it drops.
//!
//! Rows are never updated; each write has a higher revision. Only the process that holds the
//! slot's lock writes, so a revision is one more than the last. Writes wait out whatever is
//! transient: nothing may overtake them.
//!
//! With thousands of tables many change at once, and each insert is synced to disk. So one insert
//! carries every change of a table that was made while the one before it was on its way.

use super::{insert::QueryIds, retrying};
use crate::event::{Epoch, Lsn, Version};
use clickhouse::{Client, Row};
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashMap},
    sync::PoisonError,
};
use tokio::sync::Mutex;

/// Inserts run ahead of the checkpoint by at most this much WAL before a new ceiling is stored.
const CEILING_STEP: u64 = 1 << 30;

/// Where a slot stands, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The history that its positions belong to.
    pub epoch: Epoch,
    /// Everything up to here is durable.
    pub lsn: Lsn,
    /// No row of a commit beyond this was ever sent.
    pub ceiling: Lsn,
    /// The cluster that the slot was made in.
    pub system_identifier: u64,
    /// The timeline that it was last read on.
    pub timeline: u32,
    /// The publication's identity.
    pub publication: String,
}

/// What a table is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableStatus {
    /// Its initial copy is not complete.
    Copying,
    /// Its initial copy is complete.
    Streaming,
    /// Its changes are dropped, for this reason, until an operator copies it again.
    Stopped(String),
}

/// What is known of a replicated table.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The WAL position after the last read of rows from PostgreSQL itself.
    pub read_until: Lsn,
    /// The version of the last TRUNCATE.
    pub floor: Version,
    /// The identity of its membership in the publication.
    pub membership: String,
    /// The source's columns when the target was created, as JSON.
    pub shape: String,
}

/// A piece of a heap whose copy is done.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct ChunkRecord {
    /// `pg_class.oid` of the heap.
    pub leaf: u32,
    /// Its filenode when it was read.
    pub filenode: u32,
    /// The first block.
    pub first_block: u32,
    /// The block after the last.
    pub last_block: u32,
    /// How many rows it had.
    pub row_count: u64,
}

/// The store of one slot.
pub struct State {
    client: Client,
    slot: String,
    /// Of this process's writes, so that a later process can end those without an answer.
    ids: QueryIds,
    inner: Mutex<Inner>,
    staged: std::sync::Mutex<Staged>,
}

#[derive(Default)]
struct Inner {
    checkpoint: Option<Checkpoint>,
    checkpoint_revision: u64,
    /// The highest commit of which a row may have been sent.
    sent: Lsn,
    /// The tables as they are stored.
    tables: HashMap<u32, TableRecord>,
    /// Every change of a table up to this one is stored.
    written: u64,
}

/// The tables with the changes that are on their way to being stored.
#[derive(Default)]
struct Staged {
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

#[derive(Row, Deserialize)]
struct CheckpointRow {
    epoch: u8,
    lsn: u64,
    ceiling: u64,
    system_identifier: u64,
    timeline: u32,
    publication: String,
    revision: u64,
}

#[derive(Row, Deserialize)]
struct TableRow {
    oid: u32,
    schema_name: String,
    table_name: String,
    target: String,
    uuid: String,
    status: String,
    reason: String,
    fed_from: u64,
    read_until: u64,
    floor: u128,
    membership: String,
    shape: String,
    revision: u64,
}

impl State {
    /// Reads what is stored for `slot`; the migrations must have run.
    ///
    /// # Errors
    /// What ClickHouse says, transient or not.
    pub async fn load(client: Client, slot: &str) -> Result<Self, clickhouse::error::Error> {
        let mut inner = Inner::default();
        let row = client
            .query(
                "SELECT epoch, lsn, ceiling, system_identifier, timeline, publication, revision FROM _checkpoint \
                 WHERE slot = ? ORDER BY revision DESC, lsn DESC LIMIT 1",
            )
            .bind(slot)
            .fetch_optional::<CheckpointRow>()
            .await?;
        if let Some(row) = row {
            inner.checkpoint_revision = row.revision;
            inner.checkpoint = Some(Checkpoint {
                epoch: Epoch(row.epoch),
                lsn: Lsn(row.lsn),
                ceiling: Lsn(row.ceiling),
                system_identifier: row.system_identifier,
                timeline: row.timeline,
                publication: row.publication,
            });
        }
        let rows = client
            .query(
                "SELECT oid, schema_name, table_name, target, uuid, toString(status) AS status, reason, fed_from, \
                 read_until, floor, membership, shape, revision \
                 FROM _tables WHERE slot = ? ORDER BY revision DESC LIMIT 1 BY oid",
            )
            .bind(slot)
            .fetch_all::<TableRow>()
            .await?;
        let mut staged = Staged::default();
        for row in rows {
            let revision = row.revision;
            let record = TableRecord::from(row);
            staged.tables.insert(record.oid, StagedTable { record: record.clone(), revision, change: 0 });
            inner.tables.insert(record.oid, record);
        }
        let (ids, staged) = (QueryIds::new(slot, "state"), std::sync::Mutex::new(staged));
        Ok(Self { client, slot: slot.to_owned(), ids, inner: Mutex::new(inner), staged })
    }

    /// The stored checkpoint, if there is one.
    pub async fn checkpoint(&self) -> Option<Checkpoint> {
        self.inner.lock().await.checkpoint.clone()
    }

    /// Stores the first checkpoint of a slot, or one whose source has changed.
    pub async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// Moves the checkpoint forward to `lsn`; a lower one is ignored.
    pub async fn advance(&self, lsn: Lsn) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        let Some(mut checkpoint) = inner.checkpoint.clone() else { return Ok(()) };
        if lsn <= checkpoint.lsn {
            return Ok(());
        }
        checkpoint.lsn = lsn;
        checkpoint.ceiling = checkpoint.ceiling.max(lsn);
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// Returns once rows of commits up to `commit` may be sent.
    pub async fn reserve(&self, commit: Lsn) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        inner.sent = inner.sent.max(commit);
        let Some(mut checkpoint) = inner.checkpoint.clone() else { return Ok(()) };
        if commit <= checkpoint.ceiling {
            return Ok(());
        }
        checkpoint.ceiling = Lsn(commit.0.saturating_add(CEILING_STEP));
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// When nothing more will be sent: the ceiling comes down to what was, so that a planned failover
    /// after a graceful stop is no gap.
    pub async fn settle(&self) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        let Some(mut checkpoint) = inner.checkpoint.clone() else { return Ok(()) };
        // Rows of a transaction that the stop cut short were sent, though it does not count.
        let ceiling = checkpoint.lsn.max(inner.sent);
        if checkpoint.ceiling <= ceiling {
            return Ok(());
        }
        checkpoint.ceiling = ceiling;
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    async fn write_checkpoint(&self, inner: &mut Inner, row: Checkpoint) -> Result<(), clickhouse::error::Error> {
        if let Some(before) = &inner.checkpoint {
            assert!(row.lsn >= before.lsn || row.epoch > before.epoch, "the checkpoint never falls");
        }
        let revision = inner.checkpoint_revision + 1;
        retrying("store the checkpoint", || {
            self.client
                .query(
                    "INSERT INTO _checkpoint (slot, epoch, lsn, ceiling, system_identifier, timeline, publication, \
                     revision) SETTINGS async_insert = 0 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(&self.slot)
                .bind(row.epoch.0)
                .bind(row.lsn.0)
                .bind(row.ceiling.0)
                .bind(row.system_identifier)
                .bind(row.timeline)
                .bind(&row.publication)
                .bind(revision)
                .with_setting("query_id", self.ids.next())
                .execute()
        })
        .await?;
        inner.checkpoint_revision = revision;
        inner.checkpoint = Some(row);
        Ok(())
    }

    /// Every table that is known.
    pub async fn tables(&self) -> Vec<TableRecord> {
        self.inner.lock().await.tables.values().cloned().collect()
    }

    /// One table, if it is known.
    pub async fn table(&self, oid: u32) -> Option<TableRecord> {
        self.inner.lock().await.tables.get(&oid).cloned()
    }

    /// How many tables are such.
    pub async fn count(&self, which: impl Fn(&TableRecord) -> bool) -> usize {
        self.inner.lock().await.tables.values().filter(|record| which(record)).count()
    }

    /// A table that is such, if there is one.
    pub async fn find(&self, which: impl Fn(&TableRecord) -> bool) -> Option<TableRecord> {
        self.inner.lock().await.tables.values().find(|record| which(record)).cloned()
    }

    /// Stores a table that was not known, or is made anew.
    pub async fn put_table(&self, record: TableRecord) -> Result<(), clickhouse::error::Error> {
        let change = {
            let mut staged = self.staged();
            staged.changes += 1;
            let change = staged.changes;
            staged.dirty.insert(record.oid);
            let revision = staged.tables.get(&record.oid).map_or(0, |before| before.revision);
            staged.tables.insert(record.oid, StagedTable { record, revision, change });
            change
        };
        self.write_up_to(change).await
    }

    /// Changes what is stored of a table; nothing is written if nothing changed.
    pub async fn update_table(
        &self,
        oid: u32,
        change: impl FnOnce(&mut TableRecord) + Send,
    ) -> Result<(), clickhouse::error::Error> {
        let number = self.staged().change(oid, change);
        // Whatever is done to a table was preceded by storing it.
        let number = number
            .ok_or_else(|| clickhouse::error::Error::Custom(format!("the table with oid {oid} is not stored")))?;
        // Also if nothing changed: what it was changed to before may not be stored yet.
        self.write_up_to(number).await
    }

    /// Returns once this change, and with it every one before it, is stored.
    async fn write_up_to(&self, change: u64) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        // Whoever held the lock before may have taken it along.
        if inner.written >= change {
            return Ok(());
        }
        let (rows, last) = self.staged().take();
        self.write_tables(&rows).await?;
        {
            let mut staged = self.staged();
            let Staged { dirty, tables, .. } = &mut *staged;
            dirty.retain(|oid| tables.get(oid).is_some_and(|table| table.change > last));
        }
        inner.tables.extend(rows.into_iter().map(|(record, _)| (record.oid, record)));
        inner.written = last;
        Ok(())
    }

    fn staged(&self) -> std::sync::MutexGuard<'_, Staged> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_tables(&self, rows: &[(TableRecord, u64)]) -> Result<(), clickhouse::error::Error> {
        // The floor is a number of 128 bits, which a parameter can not be.
        let values: Vec<_> = rows
            .iter()
            .map(|(record, _)| format!("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {}, ?, ?, ?)", record.floor.0))
            .collect();
        let insert = format!(
            "INSERT INTO _tables (slot, oid, schema_name, table_name, target, uuid, status, reason, fed_from, \
                     read_until, floor, membership, shape, revision) SETTINGS async_insert = 0 VALUES {}",
            values.join(", ")
        );
        retrying("store the tables' state", || {
            let mut query = self.client.query(&insert);
            for (record, revision) in rows {
                let (status, reason) = match &record.status {
                    TableStatus::Copying => ("copying", ""),
                    TableStatus::Streaming => ("streaming", ""),
                    TableStatus::Stopped(reason) => ("stopped", reason.as_str()),
                };
                query = query
                    .bind(&self.slot)
                    .bind(record.oid)
                    .bind(&record.schema)
                    .bind(&record.name)
                    .bind(&record.target)
                    .bind(&record.uuid)
                    .bind(status)
                    .bind(reason)
                    .bind(record.fed_from.0)
                    .bind(record.read_until.0)
                    .bind(&record.membership)
                    .bind(&record.shape)
                    .bind(*revision);
            }
            query.with_setting("query_id", self.ids.next()).execute()
        })
        .await
    }

    /// The chunks of `uuid`'s copy that are done.
    pub async fn chunks(&self, uuid: &str) -> Result<Vec<ChunkRecord>, clickhouse::error::Error> {
        retrying("read the chunks of a copy", || {
            self.client
                .query("SELECT leaf, filenode, first_block, last_block, row_count FROM _chunks FINAL WHERE uuid = ?")
                .bind(uuid)
                .fetch_all::<ChunkRecord>()
        })
        .await
    }

    /// Stores that a chunk of `uuid`'s copy is done: its rows must be durable.
    pub async fn put_chunk(&self, uuid: &str, chunk: &ChunkRecord) -> Result<(), clickhouse::error::Error> {
        retrying("store a chunk", || {
            self.client
                .query(
                    "INSERT INTO _chunks (uuid, leaf, filenode, first_block, last_block, row_count) \
                     SETTINGS async_insert = 0 VALUES (?, ?, ?, ?, ?, ?)",
                )
                .bind(uuid)
                .bind(chunk.leaf)
                .bind(chunk.filenode)
                .bind(chunk.first_block)
                .bind(chunk.last_block)
                .bind(chunk.row_count)
                .with_setting("query_id", self.ids.next())
                .execute()
        })
        .await
    }
}

impl Staged {
    /// Applies a change, and returns the number of the table's last one; `None` if there is no such table.
    fn change(&mut self, oid: u32, change: impl FnOnce(&mut TableRecord)) -> Option<u64> {
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
    fn take(&mut self) -> (Vec<(TableRecord, u64)>, u64) {
        let mut rows = Vec::new();
        for oid in &self.dirty {
            if let Some(table) = self.tables.get_mut(oid) {
                table.revision += 1;
                rows.push((table.record.clone(), table.revision));
            }
        }
        (rows, self.changes)
    }
}

impl From<TableRow> for TableRecord {
    fn from(row: TableRow) -> Self {
        let status = match row.status.as_str() {
            "copying" => TableStatus::Copying,
            "streaming" => TableStatus::Streaming,
            _ => TableStatus::Stopped(row.reason),
        };
        Self {
            oid: row.oid,
            schema: row.schema_name,
            name: row.table_name,
            target: row.target,
            uuid: row.uuid,
            status,
            fed_from: Lsn(row.fed_from),
            read_until: Lsn(row.read_until),
            floor: Version(row.floor),
            membership: row.membership,
            shape: row.shape,
        }
    }
}

impl TableRecord {
    /// `schema.name`, for people.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}
