//! The copy of a table without a key, into its [changelog](crate::clickhouse::changelog).
//!
//! No streamed row wins over a copied one here, so the copy must be of one moment, and the stream
//! must begin at that very moment. PostgreSQL knows one such pair: the snapshot that a new logical
//! slot exports, and its consistent point. Every commit whose record begins before that point is
//! visible in the snapshot, and no other. So a temporary slot is made, and let go as soon as a
//! session has taken over its snapshot, which that session keeps for as long as the copy lasts.
//!
//! Such a copy can not be resumed, and it holds back vacuum. When the session is lost or a heap is
//! rewritten, it begins anew with another snapshot; what it had written is out of account then.

use super::{Copied, Copier, CopyError, FIRST_PAUSE, LONGEST_PAUSE, Progress};
use crate::{
    clickhouse::{
        block::Block,
        changelog::{self, LogOp},
        dead_letters::Letters,
        landing::land,
        state::{TableRecord, TableStatus},
        table::Table,
    },
    event::{Lsn, SourceTable, Version},
    postgres::{
        connection::{ConnectionError, ReplicationConnection},
        snapshot::{self, Leaf},
    },
    retry::{Backoff, Kind},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_postgres::Client;

/// After so long, the log says what a snapshot waits for.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(5);
/// An entry's number in the copy: its leaf, the number of its chunk in that, the number of its row in
/// that. A chunk has 20 bits, since a heap has 2^32 blocks at most; a row has 23, enough for the smallest
/// chunk of the smallest rows in the largest blocks. A larger chunk goes on in the numbers of the small ones that it holds.
const CHUNK_BITS: u32 = 20;
const ROW_BITS: u32 = 23;

/// What the copy of a changelog is of.
pub(super) struct AsOf {
    /// The name under which other sessions find the snapshot.
    pub(super) snapshot: String,
    /// What all entries of the copy have.
    pub(super) version: Version,
    /// Holds the snapshot.
    _keeper: Client,
}

/// A leaf of a copy as of a snapshot.
#[derive(Clone, Copy)]
pub(super) struct LogLeaf<'a> {
    pub(super) as_of: &'a AsOf,
    number: u64,
}

impl LogLeaf<'_> {
    /// The number of the first entry of the chunk that begins with this block. Number 0 is taken.
    pub(super) fn first_ordinal(self, first_block: u32) -> u64 {
        let chunk = u64::from(first_block / super::CHUNK_BLOCKS);
        (self.number << (CHUNK_BITS + ROW_BITS) | chunk << ROW_BITS) + 1
    }
}

impl Copier {
    /// Copies a whole table as of one moment, and stores that it is complete.
    pub(super) async fn copy_log(&self, source: &SourceTable, table: &Arc<Table>) -> Result<(), CopyError> {
        loop {
            let (as_of, leaves) = self.patient_snapshot(source).await?;
            match self.copy_as_of(source, table, &as_of, &leaves).await? {
                Copied::Done(_) | Copied::Again => return self.log_copied(table, as_of.version).await,
                Copied::Over => return Ok(()),
                Copied::Rewritten => {
                    let table = source.full_name();
                    tracing::info!(table, "the snapshot was lost, or a heap was rewritten; copying the table again");
                }
            }
        }
    }

    async fn copy_as_of(
        &self,
        source: &SourceTable,
        table: &Arc<Table>,
        as_of: &AsOf,
        leaves: &[Leaf],
    ) -> Result<Copied, CopyError> {
        let (version, position) = (as_of.version, as_of.version.commit());
        table.note_read(position);
        let from = |record: &mut TableRecord| {
            record.floor = record.floor.max(version);
            record.read_until = record.read_until.max(position);
        };
        self.shared.state.update_target(table.spec.oid, &table.uuid, from).await?;
        {
            let Some(_writing) = table.begin_copy() else { return Ok(Copied::Over) };
            let mut begin = Block::of_table(table);
            begin.push_mark(version.0, 0, LogOp::Snapshot);
            land(&self.shared, table, &begin, Letters::default(), position).await?;
        }
        let blocks = leaves.iter().map(|leaf| u64::from(leaf.blocks)).sum();
        let mut progress = Progress::new(source.full_name(), blocks);
        for (number, leaf) in (0..).zip(leaves) {
            let of_log = Some(LogLeaf { as_of, number });
            match self.leaf(table, leaf, of_log, &mut Vec::new(), &mut progress).await? {
                Copied::Done(_) | Copied::Again => {}
                other => return Ok(other),
            }
        }
        progress.end();
        Ok(Copied::Done(0))
    }

    /// Stores that the copy is complete, and deletes what is out of account by it.
    async fn log_copied(&self, table: &Table, version: Version) -> Result<(), CopyError> {
        if let Some(_writing) = table.begin_copy() {
            changelog::forget_before(&self.shared.client, &table.spec, version).await?;
        }
        let copied = |record: &mut TableRecord| {
            if record.status == TableStatus::Copying {
                record.status = TableStatus::Streaming;
            }
        };
        Ok(self.shared.state.update_target(table.spec.oid, &table.uuid, copied).await?)
    }

    /// Takes a snapshot, and waits out whatever is transient.
    async fn patient_snapshot(&self, source: &SourceTable) -> Result<(AsOf, Vec<Leaf>), CopyError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let _turn = self.preparing.acquire().await;
        loop {
            let error = match self.snapshot(source).await {
                Ok(Some(taken)) => return Ok(taken),
                Ok(None) => "a heap was rewritten just now".to_owned(),
                Err(error) if error.of_source() == Some(Kind::Transient) => error.to_string(),
                Err(error) => return Err(error),
            };
            let pause = backoff.next_delay();
            tracing::warn!(
                table = source.full_name(),
                ?pause,
                error,
                "a snapshot can not be taken yet, for which a replication slot must be free; trying again"
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes a snapshot, and finds the heaps as they are in it; `None` if one was rewritten since.
    async fn snapshot(&self, source: &SourceTable) -> Result<Option<(AsOf, Vec<Leaf>)>, CopyError> {
        let mut replication = ReplicationConnection::connect(&self.config.url, "walhouse copy snapshot").await?;
        let (position, exported) = exported(&mut replication, source).await?;
        let keeper = self.sessions.client(&self.config).await?;
        keeper.batch_execute(&snapshot::begin_as_of(&exported)).await?;
        let leaves = snapshot::leaves(&keeper, source).await?;
        let rewritten = snapshot::rewritten_since(&keeper, &leaves).await?;
        let row = keeper.query_one("SELECT pg_export_snapshot()", &[]).await?;
        replication.close().await;
        let version = Version::new(self.epoch, position, Lsn::ZERO);
        let as_of = AsOf { snapshot: row.try_get(0)?, version, _keeper: keeper };
        Ok((!rewritten).then_some((as_of, leaves)))
    }
}

/// A snapshot and its position; it is there for as long as the connection does nothing else.
async fn exported(
    replication: &mut ReplicationConnection,
    source: &SourceTable,
) -> Result<(Lsn, String), ConnectionError> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let slot = format!("walhouse_copy_{}_{:x}", source.oid, now.as_nanos());
    let begun = tokio::time::Instant::now();
    let exporting = replication.export_snapshot(&slot);
    tokio::pin!(exporting);
    loop {
        tokio::select! {
            exported = &mut exporting => return exported,
            () = tokio::time::sleep(SNAPSHOT_PATIENCE) => tracing::warn!(
                table = source.full_name(),
                seconds = begun.elapsed().as_secs(),
                "the copy of a table without a key waits for all transactions that were open before it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_rows_in_the_largest_blocks_fit_into_a_chunk() {
        // A row takes a line pointer of 4 bytes and a header of 24, aligned.
        let rows = u64::from(super::super::CHUNK_BLOCKS) * (32 * 1024 / 28);
        assert!(rows < 1 << ROW_BITS);
        assert!(u64::from(u32::MAX / super::super::CHUNK_BLOCKS) < 1 << CHUNK_BITS);
    }
}
