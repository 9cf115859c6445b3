//! Why a table could not be compared, in words for the operator who asked.

use std::time::Duration;

use crate::event::Lsn;

/// Whatever the caller's checkpoint could not be read for.
pub type CheckpointError = Box<dyn std::error::Error + Send + Sync>;

/// Why a table could not be compared. No message holds a value of a row.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL refused, or was lost.
    #[error("{table}: PostgreSQL: {message}")]
    Postgres {
        /// The source's table.
        table: String,
        /// What it said.
        message: String,
    },
    /// ClickHouse refused, or was lost.
    #[error("{table}: ClickHouse, reading {target}")]
    ClickHouse {
        /// The source's table.
        table: String,
        /// The table in ClickHouse.
        target: String,
        /// What it said.
        source: clickhouse::error::Error,
    },
    /// The table was dropped or renamed.
    #[error("{table}: PostgreSQL has no such table")]
    NoSuchTable {
        /// The source's table.
        table: String,
    },
    /// Rows without a key can not be told apart.
    #[error("{table}: no key, or a key with columns that are not replicated: rows can not be told apart")]
    NoKey {
        /// The source's table.
        table: String,
    },
    /// The position could not be read.
    #[error("the checkpoint could not be read")]
    Checkpoint(#[source] CheckpointError),
    /// The position did not arrive at the fence in time.
    #[error(
        "ClickHouse is at {at} of the WAL, and to compare it needs {needs}; it was waited for {} s. Is walhouse run going, and \
         not paused? walhouse status says how far behind it is, and --timeout waits longer", waited.as_secs()
    )]
    Behind {
        /// Where it is.
        at: Lsn,
        /// The fence.
        needs: Lsn,
        /// For how long it was waited.
        waited: Duration,
    },
}
