//! What the lane does beside its main task: inserts, truncates, stops.

use super::{
    batch::{Batch, CellError},
    block::Block,
    insert::{InsertError, Inserter},
    landing::land,
    requests::Requests,
    reshape, retrying_within,
    state::{Altering, State, TableStatus},
    table::{Layout, Table, TableSpec, VERSION},
    text::DateTimeRange,
    toast::{Resolver, ToastError},
};
use crate::{
    config::Config,
    event::{Lsn, Version},
    lane::RowSource,
    quote,
    retry::Kind,
    status::Status,
    telemetry::{names, tables},
};
use clickhouse::Client;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// How long a statement may take that has work to do in every part of a table.
pub(super) const MUTATION_PATIENCE: Duration = Duration::from_secs(1800);

/// What every job needs.
pub struct Shared {
    /// ClickHouse, with the database chosen.
    pub client: Client,
    /// What tables' options are taken from.
    pub config: Arc<Config>,
    /// The timestamps that the server can hold.
    pub range: DateTimeRange,
    /// What is stored.
    pub state: Arc<State>,
    /// Sends blocks.
    pub inserter: Arc<Inserter>,
    /// Reads single rows of the source.
    pub source: Arc<dyn RowSource>,
    /// What operators ask for.
    pub requests: Requests,
    /// Asks for a look at all tables that does not wait for its time.
    pub look: Notify,
    /// Tells of letters that were written.
    pub letters: Notify,
    /// Lays a table of the source onto a target.
    pub layout: Box<Layout>,
    /// Where the lane's lag is told.
    pub status: Arc<Status>,
    /// The end of the WAL that is durable at the source.
    pub head: watch::Receiver<Lsn>,
    /// Bytes of all batches of the lane, open and on their way.
    pub lane_bytes: AtomicUsize,
    /// Commits before this are delivered again to put right what ClickHouse has of them.
    pub repairing: Lsn,
}

/// Why the lane can not go on, or why a table can not.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Only this table stops.
    #[error("{0}")]
    Table(String),
    /// Only this table has to be copied anew.
    #[error("{0}")]
    Anew(String),
    /// ClickHouse says something that an operator must mend.
    #[error("{}", super::client::describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// The source could not be asked for a row.
    #[error(transparent)]
    Source(#[from] crate::lane::RowError),
    /// This process does not hold the slot's lock any more.
    #[error("the lock of the slot was lost")]
    LockLost,
    /// walhouse contradicts itself.
    #[error("this is a bug in walhouse: {0}")]
    Bug(String),
}

impl Failure {
    /// Whether a new beginning from the checkpoint can help.
    pub fn kind(&self) -> Kind {
        match self {
            Self::LockLost => Kind::Transient,
            Self::Source(error) => error.kind,
            Self::ClickHouse(error) => super::client::kind(error),
            Self::Table(_) | Self::Anew(_) | Self::Bug(_) => Kind::Definite,
        }
    }
}

/// Something to do for one table.
pub enum Job {
    /// Complete the rows that wait, then insert all.
    Insert {
        /// The rows.
        batch: Box<Batch>,
        /// What they hold in memory.
        bytes: usize,
    },
    /// Remove what is below a version.
    Truncate {
        /// The truncate's version.
        version: Version,
        /// Its number in the lane.
        row: u64,
    },
    /// Store that the target is frozen.
    Freeze {
        /// How, and why.
        status: TableStatus,
        /// The first rows of what is dropped.
        rows: Vec<u64>,
    },
    /// Store that the fresh target is given up.
    Abandon {
        /// What becomes of the live one if that is frozen.
        status: TableStatus,
        /// The first rows of what is dropped.
        rows: Vec<u64>,
    },
    /// Alter the target.
    Alter {
        /// What is altered.
        altering: Altering,
        /// The heaps of the source, with their filenodes.
        heaps: BTreeMap<u32, u64>,
        /// Its number in the lane.
        row: u64,
        /// Whether it would be wrong if rows were read from PostgreSQL after the change, by the names that
        /// columns had before it.
        by_name: bool,
    },
    /// Store what is known of the source.
    Note {
        /// Its columns.
        shape: String,
        /// Its heaps, with their filenodes.
        heaps: BTreeMap<u32, u64>,
        /// From which version on it is known. What came before has landed.
        known_from: Version,
        /// Its number in the lane.
        row: u64,
    },
    /// Put the fresh target in the place of the live one.
    Swap {
        /// The live one, if it is this source's.
        live: Option<Arc<Table>>,
        /// The layout under the live one's name.
        spec: Box<TableSpec>,
        /// Where the lane keeps the live one.
        replaced: Option<usize>,
    },
    /// Give the target another name.
    Rename {
        /// The layout under that name.
        spec: Box<TableSpec>,
    },
}

/// What became of a job.
pub struct Done {
    /// The numbers under which it stood in the lane's ledger.
    pub rows: Vec<u64>,
    /// The memory that it gives back.
    pub bytes: usize,
    /// The target that the lane keeps no more.
    pub replaced: Option<usize>,
    /// The block that was sent.
    pub sent: Option<Block>,
    /// Whether it succeeded.
    pub result: Result<(), Failure>,
}

impl Job {
    /// Whether it must be alone among its table's jobs.
    pub fn is_exclusive(&self) -> bool {
        match self {
            Self::Insert { batch, .. } => !batch.waiting.is_empty(),
            _ => true,
        }
    }

    /// The numbers under which it stands in the lane's ledger.
    pub fn rows(&self) -> Vec<u64> {
        match self {
            Self::Insert { batch, .. } => vec![batch.first_row],
            Self::Truncate { row, .. } | Self::Alter { row, .. } | Self::Note { row, .. } => vec![*row],
            Self::Freeze { rows, .. } | Self::Abandon { rows, .. } => rows.clone(),
            Self::Swap { .. } | Self::Rename { .. } => Vec::new(),
        }
    }

    /// The statements that may give names to columns of this target; empty if it runs none.
    pub fn naming(&self, table: &Table) -> String {
        let Self::Alter { altering, .. } = self else { return String::new() };
        let drop = format!("ALTER TABLE {} DROP COLUMN ", quote::clickhouse(&table.spec.target));
        let naming = altering.statements.iter().filter(|statement| !statement.starts_with(&drop));
        naming.map(String::as_str).collect()
    }

    /// What it holds in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Insert { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    /// Does it.
    pub async fn run(self, shared: &Shared, table: &Table) -> Done {
        let (rows, bytes) = (self.rows(), self.bytes());
        let (mut replaced, mut sent) = (None, None);
        let result = match self {
            Self::Insert { batch, .. } => insert(shared, table, *batch).await.map(|block| sent = Some(block)),
            Self::Truncate { version, .. } => truncate(shared, table, version).await,
            Self::Freeze { status, .. } => reshape::freeze(shared, table, status).await,
            Self::Abandon { status, .. } => reshape::abandon(shared, table, status).await,
            Self::Alter { altering, by_name, .. } if by_name && table.read_until() > altering.shaped_from.commit() => {
                Err(Failure::Anew("its columns changed before rows of it were read from PostgreSQL".to_owned()))
            }
            Self::Alter { altering, heaps, .. } => reshape::alter(shared, table, altering, heaps).await,
            Self::Note { shape, heaps, known_from, .. } => reshape::note(shared, table, shape, heaps, known_from).await,
            Self::Swap { live, spec, replaced: index } => {
                replaced = index;
                reshape::swap(shared, table, live.as_deref(), &spec).await
            }
            Self::Rename { spec } => reshape::rename(shared, table, &spec).await,
        };
        Done { rows, bytes, replaced, sent, result }
    }
}

async fn insert(shared: &Shared, table: &Table, mut batch: Batch) -> Result<Block, Failure> {
    if !batch.waiting.is_empty() {
        let Shared { client, state, source, repairing, .. } = shared;
        Resolver { table, client, source: &**source, state, repairing: *repairing }.resolve(&mut batch).await?;
    }
    let Batch { block, letters, commit, .. } = batch;
    let rows = land(shared, table, &block, letters, commit).await?;
    metrics::counter!(names::ROWS_WRITTEN, "table" => tables::counted(&table.spec.full_name())).increment(rows as u64);
    Ok(block)
}

/// Removes every row below `version`, and nothing else.
///
/// A physical TRUNCATE would, when it is replayed, take newer rows with it; and deleting only the
/// newest row of a key, or only tombstones, would bring an older row back. The initial copy ends:
/// every row that is in the source after a TRUNCATE came after it, and so is in the stream.
async fn truncate(shared: &Shared, table: &Table, version: Version) -> Result<(), Failure> {
    table.end_copy().await;
    // An attempt without an answer could land after the delete.
    shared.inserter.settle().await?;
    shared
        .state
        .update_target(table.spec.oid, &table.uuid, |record| {
            record.floor = record.floor.max(version);
            if record.status == TableStatus::Copying {
                record.status = TableStatus::Streaming;
            }
        })
        .await?;
    let sql = format!(
        "DELETE FROM {} WHERE {VERSION} < toUInt128('{}') SETTINGS lightweight_deletes_sync = 2",
        quote::clickhouse(&table.spec.target),
        version.0
    );
    let delete = || shared.client.query_raw(&sql).execute();
    retrying_within(MUTATION_PATIENCE, "delete what a TRUNCATE removed", delete).await?;
    tracing::info!(table = table.spec.full_name(), "truncated");
    Ok(())
}

impl From<InsertError> for Failure {
    fn from(error: InsertError) -> Self {
        match error {
            InsertError::Refused { source, .. } => Self::Table(format!(
                "ClickHouse refuses its rows: {}. Was its table altered or dropped there? Restore it",
                super::client::describe(&source)
            )),
            InsertError::Halt(error) => Self::ClickHouse(error),
            InsertError::LockLost => Self::LockLost,
        }
    }
}

impl From<ToastError> for Failure {
    fn from(error: ToastError) -> Self {
        match error {
            ToastError::ClickHouse(error) => Self::ClickHouse(error),
            // The same row would be asked for again after every restart.
            ToastError::Source(error) if error.of_the_row => Self::Table(format!(
                "a value that the stream leaves out could not be read from PostgreSQL: {}",
                error.message
            )),
            ToastError::Source(error) => Self::Source(error),
            ToastError::Cell(error) => Self::cell(&error),
            ToastError::Answer(error) => Self::Bug(error.to_string()),
        }
    }
}

impl Failure {
    fn cell(error: &CellError) -> Self {
        Self::Table(format!("a row has a value that ClickHouse can not hold without changing it: {error}"))
    }
}
