//! Reading a table for its initial copy, chunk by chunk, while the stream runs.
//!
//! The copy and the stream commute, because a streamed row always wins over a copied one. So no
//! long snapshot is needed: each chunk is a range of heap blocks, read in a short transaction of
//! its own, and vacuum is not held back. What must hold is that every commit that the stream does
//! not carry is visible to the first chunk: [`wait_for_writers`] sees to that.
//!
//! A row that moves to another block meanwhile was updated, so it is in the stream. A rewrite
//! (VACUUM FULL, CLUSTER, a rewriting ALTER) moves rows without telling the stream, and is noticed
//! by the heap's filenode, which is compared under a lock that keeps rewrites out.

use super::sql::SqlError;
use crate::{
    event::{SourceTable, TableKind},
    quote,
};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// A heap to be read: a table, or one partition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name, as a statement writes it.
    pub quoted: String,
    /// `pg_relation_filenode`.
    pub filenode: u32,
    /// How many blocks it has. Rows in later ones came after the stream began.
    pub blocks: u32,
}

/// The heaps of a table, largest first.
pub async fn leaves(client: &Client, table: &SourceTable) -> Result<Vec<Leaf>, SqlError> {
    let root = match table.kind {
        TableKind::Table => "SELECT $1::oid AS oid",
        TableKind::PartitionRoot => "SELECT relid AS oid FROM pg_partition_tree($1::oid) WHERE isleaf AND level > 0",
    };
    let statement = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, coalesce(pg_relation_filenode(c.oid), 0), \
                (pg_relation_size(c.oid) / current_setting('block_size')::bigint)::bigint AS blocks, c.relkind = 'r' \
         FROM ({root}) l JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY blocks DESC"
    );
    let mut leaves = Vec::new();
    for row in client.query(&statement, &[&table.oid]).await? {
        let (schema, name, heap): (&str, &str, bool) = (row.try_get(1)?, row.try_get(2)?, row.try_get(5)?);
        let quoted = format!("{}.{}", quote::postgres(schema), quote::postgres(name));
        if !heap {
            return Err(SqlError::definite(format!(
                "its partition {quoted} is a foreign table, whose changes are not in the WAL: detach it, or exclude the table"
            )));
        }
        let blocks: i64 = row.try_get(4)?;
        leaves.push(Leaf {
            oid: row.try_get(0)?,
            quoted,
            filenode: row.try_get(3)?,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
        });
    }
    Ok(leaves)
}

/// Waits until every transaction that holds a write lock on these heaps now has ended.
///
/// A commit that the slot, or the publication, does not carry any more may still be on its way to
/// being visible: it can wait for a synchronous standby after its record was written. Its locks
/// are released only after it is visible. Whoever takes a lock later commits later, and is streamed.
pub async fn wait_for_writers(client: &Client, table: &str, heaps: &[u32]) -> Result<(), SqlError> {
    const WRITERS: &str = "SELECT DISTINCT virtualtransaction FROM pg_locks \
         WHERE locktype = 'relation' AND relation = ANY($1) AND granted AND pid IS DISTINCT FROM pg_backend_pid() \
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
           AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";
    let rows = client.query(WRITERS, &[&heaps]).await?;
    let mut writers: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let mut said = Instant::now();
    while !writers.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let left = format!("{WRITERS} AND virtualtransaction = ANY($2)");
        let rows = client.query(&left, &[&heaps, &writers]).await?;
        writers = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if !writers.is_empty() && said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            let who = holders(client, &writers).await?;
            tracing::warn!(table, who, "the copy waits for transactions that were writing the table before it");
        }
    }
    Ok(())
}

async fn holders(client: &Client, writers: &[String]) -> Result<String, SqlError> {
    let row = client
        .query_one(
            "SELECT coalesce(string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN 'a prepared transaction' ELSE \
                    format('session %s, transaction open for %s s', l.pid, round(extract(epoch FROM now() - a.xact_start))) \
                    END, ', '), '') FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) \
             WHERE l.virtualtransaction = ANY($1) AND l.locktype = 'relation'",
            &[&writers],
        )
        .await?;
    Ok(row.try_get(0)?)
}

/// The statements that begin a transaction with a snapshot that another session has exported.
pub fn begin_as_of(exported: &str) -> String {
    // A transaction's snapshot comes before anything else in it.
    format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", quote::postgres_string(exported))
}

/// The statement that begins a transaction that reads.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Whether one of these heaps was rewritten since the session's snapshot was taken: then the new one has
/// none of the rows that are visible in it.
pub async fn rewritten_since(client: &Client, leaves: &[Leaf]) -> Result<bool, SqlError> {
    let oids: Vec<u32> = leaves.iter().map(|leaf| leaf.oid).collect();
    // The catalog as of the snapshot, and the function as of now.
    let sql = "SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY($1) \
               AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid))";
    Ok(client.query_one(sql, &[&oids]).await?.try_get(0)?)
}
