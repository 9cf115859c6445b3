//! The slot is created, and looked at before it is used.
//!
//! While a slot is being created, PostgreSQL decodes nothing before it has seen two sets of open transactions end, and of
//! what commits before the first of them has ended it keeps no note. If that changes a table's shape, and a transaction
//! that writes begins before the second set has ended, the slot decodes with the catalogs as they were before the change,
//! until the next change of any table's shape: a new column is left out of every row, without a word, and a table that was
//! rewritten or truncated ends the stream with *could not map filenode*, at each try. PostgreSQL 14 to 18 do so
//! (`reorderbuffer.c` takes the snapshot of the catalogs that `snapbuild.c` made for the first change it saw).
//!
//! So the slot is made as a temporary one, the catalogs are asked whether anything has changed since before it was begun,
//! and if so it is made once more. Only one that is good is copied to the permanent one: neither a crash nor a server that
//! goes on creating for a client that has gone leaves another one behind.

use std::time::Duration;

use tokio_postgres::{Client, types::ToSql};

use super::sql::SqlError;
use crate::event::Lsn;

/// Between two looks at who holds up the creation.
const PATIENCE: Duration = Duration::from_secs(3);
/// So often it is made before it is said to be in vain, for now.
const TRIES: u32 = 10;
/// For whoever changes one table after the other to get on.
const PAUSE: Duration = Duration::from_millis(200);

/// What was committed since a transaction id, of all that decoding asks the catalogs for: the relations with their files
/// and columns, also those of TOAST, the indexes that are identities, types that are not a relation's own, enumerations, and
/// what is published. A temporary table is not decoded.
const CHANGED: &str = "WITH since AS (SELECT age($1::text::xid) AS age),
    lasting AS (SELECT oid, xmin FROM pg_class WHERE relpersistence <> 't'),
    changed AS (
        SELECT oid::regclass::text AS what FROM lasting, since WHERE age(xmin) <= since.age
        UNION ALL SELECT attrelid::regclass::text FROM pg_attribute a JOIN lasting ON oid = attrelid, since
            WHERE age(a.xmin) <= since.age
        UNION ALL SELECT indrelid::regclass::text FROM pg_index i JOIN lasting ON oid = indexrelid, since
            WHERE age(i.xmin) <= since.age
        UNION ALL SELECT enumtypid::regtype::text FROM pg_enum, since WHERE age(xmin) <= since.age
        UNION ALL SELECT oid::regtype::text FROM pg_type, since WHERE typtype IN ('d', 'e', 'm', 'r') AND age(xmin) <= since.age
        UNION ALL SELECT 'publication ' || pubname FROM pg_publication, since WHERE age(xmin) <= since.age
        UNION ALL SELECT prrelid::regclass::text FROM pg_publication_rel, since WHERE age(xmin) <= since.age)
    SELECT what FROM changed LIMIT 1";

/// Creates the slot and returns its consistent point. It waits for every transaction that is running anywhere in the
/// cluster; `watcher` tells meanwhile for whom. For a moment there are two slots.
///
/// # Errors
/// If a side fails, or tables are changed all the time.
pub async fn create_slot(client: &Client, watcher: &Client, name: &str) -> Result<Lsn, SqlError> {
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
    // Slots share one name space, of all databases.
    let temporary = format!("{}_new_{pid}", name.get(..40).unwrap_or(name));
    let mut tries = 0;
    let lsn = loop {
        tries += 1;
        let begun: String =
            client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.try_get(0)?;
        let lsn = create_temporary(client, watcher, &temporary, name).await?;
        let Some(what) = changed_since(client, &begun).await? else { break lsn };
        drop_slot(client, &temporary).await?;
        if tries == TRIES {
            return Err(SqlError::transient(format!(
                "the slot {name} was created {TRIES} times, and each time a table changed its shape meanwhile (the last was \
                 {what}): PostgreSQL could decode with the old one. Try again while nothing runs ALTER TABLE, TRUNCATE or \
                 the like"
            )));
        }
        tracing::warn!(
            slot = name,
            what,
            "made once more, since this changed its shape while the slot was being created"
        );
        tokio::time::sleep(PAUSE).await;
    };
    client.execute("SELECT pg_copy_logical_replication_slot($1, $2, false)", &[&temporary, &name]).await?;
    drop_slot(client, &temporary).await?;
    Ok(lsn)
}

async fn create_temporary(client: &Client, watcher: &Client, temporary: &str, name: &str) -> Result<Lsn, SqlError> {
    let parameters: [&(dyn ToSql + Sync); 1] = [&temporary];
    let create = "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput', true)";
    let created = client.query_one(create, &parameters);
    tokio::pin!(created);
    loop {
        tokio::select! {
            row = &mut created => {
                let lsn: String = row?.try_get(0)?;
                return Ok(lsn.parse().unwrap_or_default());
            }
            () = tokio::time::sleep(PATIENCE) => {
                for who in blockers(watcher).await? {
                    tracing::warn!(slot = name, who, "creating the slot waits for a transaction to end");
                }
            }
        }
    }
}

async fn drop_slot(client: &Client, name: &str) -> Result<(), SqlError> {
    client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await?;
    Ok(())
}

/// What has changed since a transaction id of 64 bits was the next one; rows are marked with its lower half.
async fn changed_since(client: &Client, xid: &str) -> Result<Option<String>, SqlError> {
    let xid: u64 = xid.parse().unwrap_or_default();
    let row = client.query_opt(CHANGED, &[&(xid & 0xffff_ffff).to_string()]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// Who holds a transaction open, oldest first.
async fn blockers(client: &Client) -> Result<Vec<String>, SqlError> {
    let rows = client
        .query(
            "SELECT format('session %s in database %s, transaction open for %s s', pid, datname, \
                    round(extract(epoch FROM now() - xact_start))) AS who, xact_start AS since \
             FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
             UNION ALL SELECT format('prepared transaction %s in database %s, for %s s', gid, database, \
                    round(extract(epoch FROM now() - prepared))), prepared FROM pg_prepared_xacts \
             ORDER BY since LIMIT 5",
            &[],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
