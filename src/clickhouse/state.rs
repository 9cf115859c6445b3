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

mod checkpoint;
mod record;
mod staged;

pub use checkpoint::Checkpoint;
pub use record::{Altering, TableRecord, TableStatus};

use super::{insert::QueryIds, retrying};
use crate::event::{Lsn, Version};
use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use staged::Staged;
use std::{
    collections::HashMap,
    sync::{PoisonError, atomic::AtomicU64},
};
use tokio::sync::Mutex;

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
    /// The stored ceiling, or a lower one that is being stored.
    ceiling: AtomicU64,
    /// The highest commit of which a row or an event may have been sent, also by an earlier session.
    sent: AtomicU64,
}

#[derive(Default)]
struct Inner {
    checkpoint: Option<Checkpoint>,
    checkpoint_revision: u64,
    /// The tables as they are stored.
    tables: HashMap<u32, TableRecord>,
    /// Every change of a table up to this one is stored.
    written: u64,
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
    shaped_from: u128,
    heaps: String,
    altering: String,
    fresh: String,
    revision: u64,
}

impl State {
    /// Reads what is stored for `slot`; the migrations must have run.
    ///
    /// # Errors
    /// What ClickHouse says, transient or not.
    pub async fn load(client: Client, slot: &str) -> Result<Self, clickhouse::error::Error> {
        let mut inner = Inner::default();
        if let Some(row) = checkpoint::read(&client, slot).await? {
            inner.checkpoint_revision = row.revision;
            inner.checkpoint = Some(row.into());
        }
        let sql = format!("{TABLES} WHERE slot = ? ORDER BY revision DESC LIMIT 1 BY oid");
        let rows = client.query(&sql).bind(slot).fetch_all::<TableRow>().await?;
        let mut staged = Staged::default();
        for row in rows {
            let revision = row.revision;
            let record = TableRecord::try_from(row)?;
            staged.load(record.clone(), revision);
            inner.tables.insert(record.oid, record);
        }
        let (ids, staged) = (QueryIds::new(slot, "state"), std::sync::Mutex::new(staged));
        let ceiling = inner.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.ceiling.0).into();
        Ok(Self { client, slot: slot.to_owned(), ids, inner: Mutex::new(inner), staged, ceiling, sent: 0.into() })
    }

    /// The slot whose state it is.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// Every table that is known.
    pub async fn tables(&self) -> Vec<TableRecord> {
        self.inner.lock().await.known().cloned().collect()
    }

    /// One table, if it is known.
    pub async fn table(&self, oid: u32) -> Option<TableRecord> {
        let inner = self.inner.lock().await;
        inner.tables.get(&oid).filter(|record| record.status != TableStatus::Gone).cloned()
    }

    /// How many tables are such.
    pub async fn count(&self, which: impl Fn(&TableRecord) -> bool) -> usize {
        self.inner.lock().await.known().filter(|record| which(record)).count()
    }

    /// A table that is such, if there is one.
    pub async fn find(&self, which: impl Fn(&TableRecord) -> bool) -> Option<TableRecord> {
        self.inner.lock().await.known().find(|record| which(record)).cloned()
    }

    /// One target, if it is known: the live one of a table, or the fresh one beside it.
    pub async fn target(&self, oid: u32, uuid: &str) -> Option<TableRecord> {
        self.table(oid).await.and_then(|mut record| record.of_target(uuid).cloned())
    }

    /// Stores a table that was not known, or is made anew.
    pub async fn put_table(&self, record: TableRecord) -> Result<(), clickhouse::error::Error> {
        let change = self.staged().put(record);
        self.write_up_to(change).await
    }

    /// Stores tables that are known in another way from now on, all of them or none.
    pub async fn put_tables(&self, records: Vec<TableRecord>) -> Result<(), clickhouse::error::Error> {
        let last = {
            let mut staged = self.staged();
            records.into_iter().map(|record| staged.put(record)).max()
        };
        match last {
            Some(last) => self.write_up_to(last).await,
            None => Ok(()),
        }
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

    /// Changes what is stored of a target, which may be the fresh one beside the live one; nothing
    /// happens if it is neither any more.
    pub async fn update_target(
        &self,
        oid: u32,
        uuid: &str,
        change: impl FnOnce(&mut TableRecord) + Send,
    ) -> Result<(), clickhouse::error::Error> {
        let of_target = |record: &mut TableRecord| record.of_target(uuid).map(change).unwrap_or_default();
        self.update_table(oid, of_target).await
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
        self.staged().stored(last);
        inner.tables.extend(rows.into_iter().map(|(record, _)| (record.oid, record)));
        inner.written = last;
        Ok(())
    }

    fn staged(&self) -> std::sync::MutexGuard<'_, Staged> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_tables(&self, rows: &[(TableRecord, u64)]) -> Result<(), clickhouse::error::Error> {
        // Versions are numbers of 128 bits, which a parameter can not be.
        let values = rows.iter().map(|(record, _)| {
            let (floor, shaped_from) = (record.floor.0, record.shaped_from.0);
            format!("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {floor}, {shaped_from}, ?, ?, ?, ?, ?, ?)")
        });
        let insert = format!(
            "INSERT INTO _tables (slot, oid, schema_name, table_name, target, uuid, status, reason, fed_from, \
                     read_until, floor, shaped_from, membership, shape, heaps, altering, fresh, revision) \
                     SETTINGS async_insert = 0 VALUES {}",
            values.collect::<Vec<_>>().join(", ")
        );
        retrying("store the tables' state", || {
            let mut query = self.client.query(&insert);
            for (record, revision) in rows {
                let (status, reason) = record.status.parts();
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
                    .bind(json(&record.heaps))
                    .bind(json(&record.altering))
                    .bind(json(&record.fresh))
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

const TABLES: &str = "SELECT oid, schema_name, table_name, target, uuid, toString(status) AS status, reason, fed_from, \
    read_until, floor, membership, shape, shaped_from, heaps, altering, fresh, revision FROM _tables";

/// What is stored at this moment of a slot and of its tables of these names, which have their schema if that is another than
/// `public`. For those who do not hold the slot's lock.
///
/// # Errors
/// What ClickHouse says, transient or not.
pub async fn look(
    client: &Client,
    slot: &str,
    names: &[&str],
) -> Result<(Option<Checkpoint>, Vec<TableRecord>), clickhouse::error::Error> {
    let sql = format!(
        "SELECT * FROM ({TABLES} WHERE slot = ? ORDER BY revision DESC LIMIT 1 BY oid) \
         WHERE if(schema_name = 'public', table_name, concat(schema_name, '.', table_name)) IN ?"
    );
    let rows = client.query(&sql).bind(slot).bind(names).fetch_all::<TableRow>().await?;
    let records = rows.into_iter().map(TableRecord::try_from).collect::<Result<Vec<_>, _>>()?;
    let present = records.into_iter().filter(|record| record.status != TableStatus::Gone && record.is_adopted());
    Ok((checkpoint::read(client, slot).await?.map(Checkpoint::from), present.collect()))
}

impl Inner {
    fn known(&self) -> impl Iterator<Item = &TableRecord> {
        self.tables.values().filter(|record| record.status != TableStatus::Gone)
    }
}

/// What is stored as JSON is empty where there is nothing.
fn json<T: Serialize + Default + PartialEq>(value: &T) -> String {
    if *value == T::default() { String::new() } else { serde_json::to_string(value).unwrap_or_default() }
}

fn of_json<T: DeserializeOwned + Default>(text: &str) -> Result<T, clickhouse::error::Error> {
    if text.is_empty() {
        return Ok(T::default());
    }
    let unreadable = |error| clickhouse::error::Error::Custom(format!("_tables holds what is not readable: {error}"));
    serde_json::from_str(text).map_err(unreadable)
}

impl TryFrom<TableRow> for TableRecord {
    type Error = clickhouse::error::Error;

    fn try_from(row: TableRow) -> Result<Self, Self::Error> {
        Ok(Self {
            oid: row.oid,
            schema: row.schema_name,
            name: row.table_name,
            target: row.target,
            uuid: row.uuid,
            status: TableStatus::of_parts(&row.status, row.reason),
            fed_from: Lsn(row.fed_from),
            shaped_from: Version(row.shaped_from),
            read_until: Lsn(row.read_until),
            floor: Version(row.floor),
            membership: row.membership,
            shape: row.shape,
            heaps: of_json(&row.heaps)?,
            altering: of_json(&row.altering)?,
            fresh: of_json(&row.fresh)?,
        })
    }
}
