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
//! goes on creating for a client that has gone leaves another one behind. Where only one slot is free it is permanent from
//! the beginning, and a crash right then leaves one that nobody has looked at.

use std::time::Duration;

use tokio_postgres::{Client, error::SqlState, types::ToSql};

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

/// From PostgreSQL 15 on.
const CHANGED_SCHEMAS: &str = "SELECT 'publication of schema ' || pnnspid::regnamespace FROM pg_publication_namespace
    WHERE age(xmin) <= age($1::text::xid) LIMIT 1";

/// Creates the slot and returns its consistent point. It waits for every transaction that is running anywhere in the
/// cluster; `watcher` tells meanwhile for whom. For a moment there are two slots, where the server has room for two.
///
/// # Errors
/// If a side fails, or tables are changed all the time.
pub async fn create_slot(client: &Client, watcher: &Client, name: &str) -> Result<Lsn, SqlError> {
    let creation = Creation { client, watcher, name };
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
    // Slots share one name space, of all databases.
    let temporary = format!("{}_new_{pid}", name.get(..40).unwrap_or(name));
    let lsn = creation.good(&temporary, true).await?;
    let copied = client.execute("SELECT pg_copy_logical_replication_slot($1, $2, false)", &[&temporary, &name]).await;
    match copied {
        Ok(_) => creation.drop(&temporary).await.map(|()| lsn),
        // The temporary one was the last that was free. With the error the session has lost it.
        Err(error) if error.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => creation.good(name, false).await,
        Err(error) => Err(error.into()),
    }
}

/// Of the slot of this name.
struct Creation<'a> {
    client: &'a Client,
    /// A session of its own, for questions while the other one waits.
    watcher: &'a Client,
    name: &'a str,
}

impl Creation<'_> {
    /// Makes a slot again and again, until nothing has changed its shape meanwhile.
    async fn good(&self, slot: &str, temporary: bool) -> Result<Lsn, SqlError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
            let begun: String = self.client.query_one(next, &[]).await?.try_get(0)?;
            let lsn = self.make(slot, temporary).await?;
            let Some(what) = changed_since(self.client, &begun).await? else { return Ok(lsn) };
            self.drop(slot).await?;
            if tries == TRIES {
                return Err(SqlError::transient(format!(
                    "the slot {} was created {TRIES} times, and each time a table changed its shape meanwhile (the last was \
                     {what}): PostgreSQL could decode with the old one. Try again while nothing runs ALTER TABLE, TRUNCATE \
                     or the like",
                    self.name
                )));
            }
            let why = "made once more, since this changed its shape while the slot was being created";
            tracing::warn!(slot = self.name, what, "{why}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn make(&self, slot: &str, temporary: bool) -> Result<Lsn, SqlError> {
        let make = "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput', $2)";
        let parameters: [&(dyn ToSql + Sync); 2] = [&slot, &temporary];
        let made = self.client.query_one(make, &parameters);
        tokio::pin!(made);
        loop {
            tokio::select! {
                row = &mut made => {
                    let lsn: String = row?.try_get(0)?;
                    return Ok(lsn.parse().unwrap_or_default());
                }
                () = tokio::time::sleep(PATIENCE) => {
                    for who in blockers(self.watcher).await? {
                        tracing::warn!(slot = self.name, who, "creating the slot waits for a transaction to end");
                    }
                }
            }
        }
    }

    async fn drop(&self, slot: &str) -> Result<(), SqlError> {
        self.client.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await?;
        Ok(())
    }
}

/// What has changed since a transaction id of 64 bits was the next one; rows are marked with its lower half.
async fn changed_since(client: &Client, xid: &str) -> Result<Option<String>, SqlError> {
    let xid: u64 = xid.parse().unwrap_or_default();
    let xid = (xid & 0xffff_ffff).to_string();
    let mut row = client.query_opt(CHANGED, &[&xid]).await?;
    let has_schemas = "SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL";
    if row.is_none() && client.query_one(has_schemas, &[]).await?.try_get(0)? {
        row = client.query_opt(CHANGED_SCHEMAS, &[&xid]).await?;
    }
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
