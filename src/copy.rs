//! The initial copy: every row that the stream does not carry, chunk by chunk, while the stream
//! runs.
//!
//! Each table has a task; chunks of all tables share the configured number of workers. A chunk's
//! rows are durable before the chunk is stored as done, so a restart goes on with the next one,
//! and a chunk that is copied twice does no harm: its rows have version 0 and any streamed change
//! of their key wins.

mod log;
mod progress;
mod sending;
mod sessions;

use crate::{
    clickhouse::{
        batch::CellError,
        copied::CopiedRows,
        job::{Failure, Shared},
        presence::presence,
        state::{ChunkRecord, TableRecord, TableStatus},
        table::Table,
    },
    config::SourceConfig,
    event::{Epoch, SourceTable},
    postgres::{
        chunk::{Chunk, Opened},
        connection::ConnectionError,
        snapshot::{self, Leaf},
        sql::SqlError,
    },
    retry::{Backoff, Kind},
};
use futures_util::{StreamExt, stream};
use log::LogLeaf;
use progress::Progress;
use sending::Sending;
use sessions::Sessions;
use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;

/// Blocks of a heap that make the smallest chunk, 32 MiB, and how many of these make the largest. Larger ones make larger
/// parts in ClickHouse, which it has to merge less often; but a chunk is what is read again after a restart, and its
/// transaction holds back vacuum.
const CHUNK_BLOCKS: u32 = 4096;
const LARGEST_CHUNK: u32 = 4;
/// After this many bytes of rows, the block's memory is added up.
const WEIGH_AFTER: usize = 64 * 1024;
/// How long a chunk's transaction is kept open for a block that does not go in, at first.
const TRANSACTION_PATIENCE: Duration = Duration::from_secs(20);
/// The first and the longest bound of the wait before something is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A row of so many bytes is a large one.
const LARGE_ROW: usize = 4 << 20;

/// Copies tables.
pub struct Copier {
    shared: Arc<Shared>,
    config: SourceConfig,
    epoch: Epoch,
    budget: usize,
    workers: Semaphore,
    /// Tables that are looked at before their first chunk, or wait for writers: a few at once, since
    /// each takes a connection.
    preparing: Semaphore,
    sessions: Sessions,
}

/// Why the copy of a table did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// PostgreSQL.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// PostgreSQL, asked for rows or a snapshot.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The lane's side.
    #[error(transparent)]
    Lane(#[from] Failure),
    /// An insert that has to be filled anew.
    #[error("{0}")]
    Interrupted(String),
    /// A value that its column can not hold.
    #[error("a row has a value that ClickHouse can not hold without changing it: {0}")]
    Cell(#[from] CellError),
}

impl CopyError {
    /// Whether another try can help, if it was PostgreSQL.
    pub fn of_source(&self) -> Option<Kind> {
        match self {
            Self::Sql(error) => Some(error.kind()),
            Self::Connection(error) => Some(error.kind()),
            Self::Lane(_) | Self::Interrupted(_) | Self::Cell(_) => None,
        }
    }

    /// PostgreSQL's SQLSTATE, if it was PostgreSQL who refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Sql(error) => error.code().map(SqlState::code),
            Self::Connection(error) => error.code(),
            Self::Lane(_) | Self::Interrupted(_) | Self::Cell(_) => None,
        }
    }

    /// Whether the same chunk may come through the next time.
    fn is_of_the_chunk(&self) -> bool {
        self.of_source() == Some(Kind::Transient) || matches!(self, Self::Interrupted(_))
    }
}

impl From<tokio_postgres::Error> for CopyError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error.into())
    }
}

impl From<clickhouse::error::Error> for CopyError {
    fn from(error: clickhouse::error::Error) -> Self {
        Self::Lane(Failure::ClickHouse(error))
    }
}

/// What was read of a chunk.
struct Read {
    /// Rows that were sent already.
    count: u64,
    /// Bytes of the largest piece, which is one row or several small ones.
    largest: usize,
}

/// What a chunk is of.
#[derive(Clone, Copy)]
struct ChunkOf<'a> {
    table: &'a Arc<Table>,
    leaf: &'a Leaf,
    /// In a changelog.
    of_log: Option<LogLeaf<'a>>,
    /// The first, and the one after the last.
    blocks: (u32, u32),
}

/// What became of a chunk.
enum Copied {
    Done(u64),
    Rewritten,
    /// It was given up, and what was in its way is over.
    Again,
    /// A TRUNCATE has made the copy unnecessary.
    Over,
}

impl Copier {
    /// A copier with as many chunks at once as are configured, within `budget`, in bytes, of which the
    /// lane has the first half, as far as it needs it.
    pub fn new(shared: Arc<Shared>, config: SourceConfig, epoch: Epoch, budget: usize) -> Self {
        let workers = config.snapshot.workers;
        Self {
            shared,
            config,
            epoch,
            budget,
            workers: Semaphore::new(workers),
            preparing: Semaphore::new(workers),
            sessions: Sessions::default(),
        }
    }

    /// Copies what is missing of a table, and stores that it is complete.
    ///
    /// Before the first chunk, waits for transactions that were writing the table.
    ///
    /// # Errors
    /// What calls for a new session, or for an operator; what is about this table alone comes back
    /// as [`Failure::Table`].
    pub async fn copy(&self, source: &SourceTable, table: &Arc<Table>) -> Result<(), CopyError> {
        if table.spec.changelog {
            return self.copy_log(source, table).await;
        }
        let leaves = self.prepare(source).await?;
        let mut done = self.shared.state.chunks(&table.uuid).await?;
        let blocks = leaves.iter().map(|leaf| u64::from(leaf.blocks)).sum();
        let mut progress = Progress::new(source.full_name(), blocks);
        let mut leaves: Vec<Leaf> = leaves.into_iter().rev().collect();
        while let Some(leaf) = leaves.pop() {
            match self.leaf(table, &leaf, None, &mut done, &mut progress).await? {
                Copied::Done(_) | Copied::Again => {}
                Copied::Over => {
                    tracing::info!(table = progress.table, "the copy is over: the table was truncated");
                    return Ok(());
                }
                Copied::Rewritten => {
                    tracing::info!(
                        table = progress.table,
                        heap = leaf.quoted,
                        "the heap was rewritten; copying it again"
                    );
                    let fresh = self.prepare(source).await?;
                    progress.blocks = fresh.iter().map(|leaf| u64::from(leaf.blocks)).sum();
                    (progress.done, progress.done_before) = (0, 0);
                    leaves = fresh.into_iter().rev().collect();
                }
            }
        }
        let store = |record: &mut TableRecord| {
            if record.status == TableStatus::Copying {
                record.status = TableStatus::Streaming;
            }
        };
        self.shared.state.update_target(table.spec.oid, &table.uuid, store).await?;
        progress.end();
        Ok(())
    }

    /// Finds the heaps of a table once every transaction that was writing them has ended.
    async fn prepare(&self, source: &SourceTable) -> Result<Vec<Leaf>, CopyError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let _turn = self.preparing.acquire().await;
        loop {
            match self.find(source).await {
                Err(error) if error.of_source() == Some(Kind::Transient) => {
                    let pause = backoff.next_delay();
                    tracing::warn!(table = source.full_name(), ?pause, %error, "a copy can not begin yet; trying again");
                    tokio::time::sleep(pause).await;
                }
                found => return found,
            }
        }
    }

    async fn find(&self, source: &SourceTable) -> Result<Vec<Leaf>, CopyError> {
        let client = self.sessions.client(&self.config).await?;
        let leaves = snapshot::leaves(&client, source).await?;
        let heaps: Vec<u32> = leaves.iter().map(|leaf| leaf.oid).chain([source.oid]).collect();
        snapshot::wait_for_writers(&client, &source.full_name(), &heaps).await?;
        // What a writer added meanwhile, before the stream began to carry it, lies in these blocks.
        let leaves = snapshot::leaves(&client, source).await?;
        self.sessions.keep_client(client);
        Ok(leaves)
    }

    /// Copies the chunks of one heap that are missing; those of a changelog are not stored as done.
    async fn leaf(
        &self,
        table: &Arc<Table>,
        leaf: &Leaf,
        of_log: Option<LogLeaf<'_>>,
        done: &mut Vec<ChunkRecord>,
        progress: &mut Progress,
    ) -> Result<Copied, CopyError> {
        let stored = |chunk: &&ChunkRecord| chunk.leaf == leaf.oid && chunk.filenode == leaf.filenode;
        let finished: Vec<(u32, u32)> =
            done.iter().filter(stored).map(|chunk| (chunk.first_block, chunk.last_block)).collect();
        // As many as there are workers: they share them with the chunks of other tables.
        let chunks = stream::iter(missing(leaf.blocks, &finished, self.config.snapshot.workers));
        let chunks = chunks.map(|(first, last)| async move {
            let chunk = ChunkOf { table, leaf, of_log, blocks: (first, last) };
            (first, last, self.patiently(chunk).await)
        });
        let mut chunks = pin!(chunks.buffer_unordered(self.config.snapshot.workers));
        while let Some((first, last, copied)) = chunks.next().await {
            match copied? {
                Copied::Done(rows) => {
                    if of_log.is_none() {
                        let chunk = ChunkRecord {
                            leaf: leaf.oid,
                            filenode: leaf.filenode,
                            first_block: first,
                            last_block: last,
                            row_count: rows,
                        };
                        self.shared.state.put_chunk(&table.uuid, &chunk).await?;
                        done.push(chunk);
                    }
                    progress.add(u64::from(last - first), rows);
                }
                other => return Ok(other),
            }
        }
        let before: u64 = finished.iter().map(|(first, last)| u64::from(last - first)).sum();
        progress.done_before += before;
        progress.done += before;
        Ok(Copied::Done(0))
    }

    /// Copies a chunk, and tries again for as long as what is in the way is transient.
    async fn patiently(&self, chunk: ChunkOf<'_>) -> Result<Copied, CopyError> {
        let table = chunk.table;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut patience = TRANSACTION_PATIENCE;
        let _worker = self.workers.acquire().await;
        loop {
            let Some(_writing) = table.begin_copy() else { return Ok(Copied::Over) };
            let outcome = tokio::select! {
                outcome = self.chunk(chunk, patience) => outcome,
                () = table.copy_ended() => return Ok(Copied::Over),
            };
            match outcome {
                Err(error) if error.is_of_the_chunk() => {
                    let pause = backoff.next_delay();
                    let name = table.spec.full_name();
                    if presence().is_away() {
                        // Of that the log has been warned.
                        tracing::info!(table = name, ?pause, %error, "a chunk was cut short; copying it again");
                    } else {
                        tracing::warn!(table = name, ?pause, %error, "a chunk was cut short; copying it again");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = table.copy_ended() => return Ok(Copied::Over),
                    }
                }
                Ok(Copied::Again) => {
                    // What takes long may do so each time, such as finding rows that are refused.
                    patience *= 2;
                    tracing::info!(table = table.spec.full_name(), "ClickHouse was slow; copying a chunk again");
                }
                outcome => return outcome,
            }
        }
    }

    /// Copies one chunk. Its transaction keeps vacuum and rewrites of the table waiting, so it does
    /// not wait for ClickHouse itself: it ends before the last block is sent, and is given up when an
    /// earlier one takes too long.
    async fn chunk(&self, of: ChunkOf<'_>, patience: Duration) -> Result<Copied, CopyError> {
        let ChunkOf { table, leaf, of_log, blocks } = of;
        let reader = self.sessions.reader(&self.config).await?;
        let columns: Vec<String> = table.spec.sources.iter().map(|column| column.name.clone()).collect();
        let filter = table.spec.filter.as_deref();
        let as_of = of_log.map(|of_log| of_log.as_of.snapshot.as_str());
        let mut chunk = match reader.open(leaf, &columns, filter, blocks, as_of).await? {
            Opened::Chunk(chunk) => chunk,
            Opened::Rewritten => return Ok(Copied::Rewritten),
        };
        // What is read here may be newer than changes that are still on their way, so a lookup for a
        // key change must not rely on it: stored before any of it lands.
        table.note_read(chunk.position());
        let position = table.read_until();
        let read = |record: &mut TableRecord| record.read_until = record.read_until.max(position);
        self.shared.state.update_target(table.spec.oid, &table.uuid, read).await?;

        let mut copied = match of_log {
            None => CopiedRows::new(table),
            Some(of_log) => CopiedRows::of_log(table, of_log.as_of.version, of_log.first_ordinal(blocks.0)),
        };
        let mut sending = Sending::new(&self.shared, table, copied.version().commit());
        let read = self.read(&mut chunk, &mut copied, &mut sending, patience).await?;
        let Some(Read { mut count, largest }) = read else {
            drop(chunk);
            sending.sent().await?;
            return Ok(Copied::Again);
        };
        let (reader, same) = chunk.end(leaf).await?;
        // The server's end of a session keeps the memory of the largest row that it has sent.
        if largest < LARGE_ROW {
            self.sessions.keep_reader(reader);
        }
        sending.sent().await?;
        count += copied.rows() as u64;
        if copied.rows() > 0 {
            let (block, letters) = copied.take();
            sending.send(block, letters);
        }
        sending.finish().await?;
        Ok(if same { Copied::Done(count) } else { Copied::Rewritten })
    }

    /// When a block is full. Large blocks are what a copy is fast by: each costs ClickHouse some files to
    /// sync, and a part that is merged. Every worker holds one that it builds and one that is on its way.
    fn block_bytes(&self) -> usize {
        let held = self.shared.lane_bytes.load(Ordering::Relaxed);
        let free = (self.budget / 4 * 3).saturating_sub(held).max(self.budget / 4);
        (free / 2 / self.config.snapshot.workers).min(self.shared.config.batch.max_bytes.as_usize())
    }

    /// Reads a chunk to its end, sending each block that is full while it goes on reading; what is
    /// left is in `copied`. `None` if ClickHouse is too slow to go on.
    async fn read(
        &self,
        chunk: &mut Chunk,
        copied: &mut CopiedRows<'_>,
        sending: &mut Sending<'_>,
        patience: Duration,
    ) -> Result<Option<Read>, CopyError> {
        let (mut count, mut unweighed, mut largest) = (0, 0, 0);
        loop {
            // Weighed now and then: adding up the columns costs more than adding a row.
            let taken = chunk.take(WEIGH_AFTER, |row| Ok::<_, CopyError>(copied.push(row)?))?;
            largest = largest.max(taken.largest);
            unweighed += taken.bytes;
            if unweighed >= WEIGH_AFTER {
                unweighed = 0;
                if copied.bytes() >= self.block_bytes() {
                    match tokio::time::timeout(patience, sending.sent()).await {
                        Ok(sent) => sent?.into_iter().for_each(|block| copied.give_back(block)),
                        Err(_) => return Ok(None),
                    }
                    count += copied.rows() as u64;
                    let (block, letters) = copied.take();
                    sending.send(block, letters);
                }
            }
            if taken.ended {
                return Ok(Some(Read { count, largest }));
            }
            let more = async { if taken.bytes < WEIGH_AFTER { chunk.wait().await } else { Ok(()) } };
            tokio::select! {
                biased;
                sent = sending.next() => sent?.into_iter().for_each(|block| copied.give_back(block)),
                more = more => more?,
            }
        }
    }
}

/// The chunks of a heap of `blocks` that `done` does not cover: large ones first, and small ones towards the end, so that
/// the workers come to it together.
fn missing(blocks: u32, done: &[(u32, u32)], workers: usize) -> Vec<(u32, u32)> {
    let mut done = done.to_vec();
    done.sort_unstable();
    let mut chunks = Vec::new();
    let mut first = 0;
    let share = u32::try_from(workers).unwrap_or(u32::MAX).saturating_add(1).saturating_mul(CHUNK_BLOCKS);
    for (start, end) in done.into_iter().chain([(blocks, blocks)]) {
        while first < start.min(blocks) {
            let size = ((blocks - first) / share).clamp(1, LARGEST_CHUNK) * CHUNK_BLOCKS;
            let last = first.saturating_add(size).min(start.min(blocks));
            chunks.push((first, last));
            first = last;
        }
        first = first.max(end);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_done_is_copied() {
        let c = CHUNK_BLOCKS;
        let missing = |blocks, done: &[(u32, u32)]| missing(blocks, done, 2);
        assert_eq!(missing(0, &[]), []);
        assert_eq!(missing(5, &[]), [(0, 5)]);
        assert_eq!(missing(2 * c + 1, &[]), [(0, c), (c, 2 * c), (2 * c, 2 * c + 1)]);
        assert_eq!(missing(2 * c, &[(c, 2 * c)]), [(0, c)]);
        assert_eq!(missing(3 * c, &[(0, c), (2 * c, 3 * c)]), [(c, 2 * c)]);
        assert_eq!(missing(c + 9, &[(0, c), (c, c + 5)]), [(c + 5, c + 9)], "a heap that has grown");
        assert_eq!(missing(c, &[(0, 2 * c)]), [], "a heap that has shrunk");
        assert_eq!(
            missing(9 * c, &[(c, 3 * c)]),
            [(0, c), (3 * c, 5 * c), (5 * c, 6 * c), (6 * c, 7 * c), (7 * c, 8 * c), (8 * c, 9 * c)]
        );
    }

    #[test]
    fn chunks_are_large_at_first_and_small_at_the_end() {
        let sizes = |blocks, workers| {
            let chunks = missing(blocks, &[], workers);
            chunks.iter().map(|(first, last)| (last - first).div_ceil(CHUNK_BLOCKS)).collect::<Vec<_>>()
        };
        assert_eq!(sizes(20 * CHUNK_BLOCKS, 2), [4, 4, 4, 2, 2, 1, 1, 1, 1]);
        assert_eq!(sizes(5 * CHUNK_BLOCKS - 1, 1), [2, 1, 1, 1]);
        assert!(missing(u32::MAX, &[], 1).windows(2).all(|two| two[0].1 == two[1].0));
    }
}
