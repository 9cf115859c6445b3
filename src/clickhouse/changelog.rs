//! Tables without a usable key: what ClickHouse has of them is a log of their changes.
//!
//! No row of such a table can be named, and it may hold the same row twice. Under REPLICA IDENTITY
//! FULL the stream has old rows whole, so every change is an entry or two: the row that went, the
//! row that came. Entries are never changed. An entry is identified by its version and its ordinal,
//! and both are the same in every replay, so what is sent twice is one entry: the target is a
//! ReplacingMergeTree ordered by the two.
//!
//! The ordinal is needed because a record of the WAL can hold several rows, as COPY writes them; it
//! counts the entries of one record. A record is never torn: a transaction is decoded as a whole.
//!
//! The rows of the initial copy are of one snapshot, and that is of one WAL position: commits before
//! it are in the copy, the others in the stream. They have that position's version, and so has the
//! entry [`LogOp::Snapshot`] ahead of them, which says that nothing before it counts. What the stream
//! brought from before the snapshot, and what an earlier copy left that was cut short, is out of
//! account by that.
//!
//! The view of current rows folds the log: it groups by all columns, and shows each row as many times
//! as more of it came than went.

use super::{
    block::ColumnSpec,
    job::MUTATION_PATIENCE,
    retrying_within,
    table::{TableSpec, VERSION},
};
use crate::{event::Version, quote};
use clickhouse::{Client, error::Error};

/// The column that numbers the entries of a changelog within a version.
pub const ORDINAL_COLUMN: &str = "_ordinal";
/// The column that says what an entry of a changelog is.
pub const OP_COLUMN: &str = "_op";

/// What an entry of a changelog is. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOp {
    /// A row that was inserted.
    Insert = 0,
    /// A row that was deleted.
    Delete = 1,
    /// A row as it was before an update.
    UpdateBefore = 2,
    /// A row as it was after an update.
    UpdateAfter = 3,
    /// A row that the initial copy has read.
    Copy = 4,
    /// All rows before it are gone. Its own values mean nothing.
    Truncate = 5,
    /// The initial copy begins: the table's rows are those that follow. Its own values mean nothing.
    Snapshot = 6,
}

impl LogOp {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Insert, "insert"),
        (Self::Delete, "delete"),
        (Self::UpdateBefore, "update_before"),
        (Self::UpdateAfter, "update_after"),
        (Self::Copy, "copy"),
        (Self::Truncate, "truncate"),
        (Self::Snapshot, "snapshot"),
    ];

    /// What is stored as `number`. Panics for a number that is none.
    pub fn of(number: u8) -> Self {
        Self::ALL[usize::from(number)].0
    }

    /// The type of its column.
    pub fn column_type() -> String {
        let names = Self::ALL.map(|(op, name)| format!("'{name}' = {}", op as u8));
        format!("Enum8({})", names.join(", "))
    }

    /// Whether its row is gone with it.
    pub fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::UpdateBefore)
    }
}

/// The query of a table's current rows, each as many times as the table has it.
pub fn current(spec: &TableSpec) -> String {
    let names = spec.columns.iter().flat_map(ColumnSpec::native).map(|(name, _)| quote::clickhouse(&name));
    let names: Vec<String> = names.collect();
    // By the log's own columns: a column of the source can have any other name, that of a function's
    // argument above all.
    let of_log: Vec<String> = names.iter().map(|name| format!("walhouse_log.{name}")).collect();
    let named: Vec<String> = names.iter().zip(&of_log).map(|(name, column)| format!("{column} AS {name}")).collect();
    let came = format!("toInt64(countIf(walhouse_log.{OP_COLUMN} IN ('insert', 'update_after', 'copy')))");
    let went = format!("toInt64(countIf(walhouse_log.{OP_COLUMN} IN ('delete', 'update_before')))");
    let target = quote::clickhouse(&spec.target);
    // The number of rows has the one name that no column of the source has.
    format!(
        "SELECT {names} FROM (SELECT {named}, arrayJoin(range(toUInt64(greatest(0, {came} - {went})))) AS {ORDINAL_COLUMN} \
         FROM {target} AS walhouse_log FINAL WHERE walhouse_log.{VERSION} >= \
         (SELECT max({VERSION}) FROM {target} WHERE {OP_COLUMN} IN ('truncate', 'snapshot')) GROUP BY {of_log})",
        names = names.join(", "),
        named = named.join(", "),
        of_log = of_log.join(", "),
    )
}

/// Deletes the entries that do not count any more, since a copy of this version is complete. Entries
/// that come again, or late, count as little as before.
pub async fn forget_before(client: &Client, spec: &TableSpec, version: Version) -> Result<(), Error> {
    let sql = format!(
        "DELETE FROM {} WHERE {VERSION} < toUInt128('{}') SETTINGS lightweight_deletes_sync = 2",
        quote::clickhouse(&spec.target),
        version.0
    );
    let delete = || client.query_raw(&sql).execute();
    retrying_within(MUTATION_PATIENCE, "delete what is older than a copy", delete).await
}
