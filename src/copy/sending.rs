//! Blocks of a chunk on their way, one at a time, while the next is read.
//!
//! They go into one insert, and so into one part; each by itself would cost ClickHouse merges. What was sent of such an
//! insert is not kept, so if it fails the chunk is read again. If ClickHouse refuses what is in it, the table's blocks are
//! sent one by one from then on, because the rows that it refuses are looked for in the block.
//!
//! All of it runs inside its chunk and not as a task of its own, so that it has ended when the chunk has, or stands without an
//! answer: a TRUNCATE waits for the one and kills the other.

use super::CopyError;
use crate::{
    clickhouse::{
        block::Block,
        dead_letters::Letters,
        insert::{InsertError, OpenError, OpenInsert},
        job::{Failure, Shared},
        landing,
        table::Table,
    },
    event::Lsn,
    telemetry::{names, tables},
};
use futures_util::future::BoxFuture;

/// What is on its way of one chunk.
pub(super) struct Sending<'a> {
    shared: &'a Shared,
    table: &'a Table,
    commit: Lsn,
    /// The insert that the next block goes into, while none is on its way.
    open: Option<OpenInsert<'a>>,
    ahead: Option<BoxFuture<'a, Result<Sent<'a>, CopyError>>>,
}

/// What became of a block, if there was one.
struct Sent<'a> {
    block: Option<Block>,
    open: Option<OpenInsert<'a>>,
}

impl<'a> Sending<'a> {
    /// Nothing yet. `commit` is the highest commit among the rows.
    pub(super) fn new(shared: &'a Shared, table: &'a Table, commit: Lsn) -> Self {
        Self { shared, table, commit, open: None, ahead: None }
    }

    /// Begins to send a block and its letters. Nothing may be on its way.
    pub(super) fn send(&mut self, block: Block, letters: Letters) {
        let Self { shared, table, commit, .. } = *self;
        let open = self.open.take();
        self.ahead = Some(Box::pin(async move {
            if table.is_copied_apart() {
                // What is open was begun before an insert of this table was refused, which may have been another chunk's.
                if let Some(open) = open {
                    end(table, open).await?;
                }
                let rows = landing::land(shared, table, &block, letters, commit).await?;
                count(table, rows);
                return Ok(Sent { block: Some(block), open: None });
            }
            landing::account(table, &block, &letters)?;
            let mut open = match open {
                Some(open) => open,
                None => shared.inserter.open(&table.spec.target, commit).await.map_err(Failure::from)?,
            };
            if block.rows() > 0 {
                open.write(&block).await.map_err(|error| failed(table, error))?;
            }
            if letters.rows() > 0 {
                landing::store(shared, table, letters, commit).await?;
            }
            let open = if open.is_due() { end(table, open).await? } else { Some(open) };
            Ok(Sent { block: Some(block), open })
        }));
    }

    /// Waits until nothing is on its way, and returns the block that was. Cancel-safe.
    ///
    /// # Errors
    /// Transient ones too: then the chunk is to be read again.
    pub(super) async fn sent(&mut self) -> Result<Option<Block>, CopyError> {
        let Some(ahead) = &mut self.ahead else { return Ok(None) };
        let sent = ahead.await;
        self.ahead = None;
        let Sent { block, open } = sent?;
        self.open = open;
        Ok(block)
    }

    /// What goes on while rows are waited for: waits for the block that is on its way, or else for when the insert that is
    /// open has to end, and ends it. Never returns if there is neither. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Block>, CopyError> {
        if self.ahead.is_none() {
            let Some(open) = &self.open else { return std::future::pending().await };
            tokio::time::sleep_until(open.deadline()).await;
            self.close();
        }
        self.sent().await
    }

    /// Begins to end the insert that is open.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let table = self.table;
            self.ahead = Some(Box::pin(async move { Ok(Sent { block: None, open: end(table, open).await? }) }));
        }
    }

    /// Waits until everything that was sent is durable.
    pub(super) async fn finish(mut self) -> Result<(), CopyError> {
        self.sent().await?;
        self.close();
        self.sent().await?;
        Ok(())
    }
}

async fn end<'a>(table: &Table, open: OpenInsert<'a>) -> Result<Option<OpenInsert<'a>>, CopyError> {
    let rows = open.end().await.map_err(|error| failed(table, error))?;
    count(table, rows);
    Ok(None)
}

fn count(table: &Table, rows: usize) {
    metrics::counter!(names::COPY_ROWS, "table" => tables::counted(&table.spec.full_name())).increment(rows as u64);
}

fn failed(table: &Table, error: OpenError) -> CopyError {
    match error {
        OpenError::Insert(InsertError::Refused { source, .. }) => {
            table.copy_apart();
            CopyError::Interrupted(format!("ClickHouse refuses it: {}", crate::clickhouse::client::describe(&source)))
        }
        OpenError::Insert(error) => Failure::from(error).into(),
        OpenError::Transient(why) => CopyError::Interrupted(why),
    }
}
