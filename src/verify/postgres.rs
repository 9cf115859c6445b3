//! PostgreSQL's side: a pinned snapshot, its fence, and what the servers' sums and hashes are.

use futures_util::{Stream, TryStreamExt};
use tokio_postgres::{Client, IsolationLevel, Row, Transaction, error::SqlState};

use super::{
    compare::{Bucket, Buckets, HashedRow, RowColumns},
    error::Error,
    sql::SourceTraits,
    table::TablePair,
};
use crate::event::Lsn;

/// Pins what the role or the database may have set: how values are printed, and what could cut a
/// long statement short. Row security is off, so that a policy is an error and not fewer rows.
///
/// Settings that a version does not have are skipped. The statement also takes the snapshot.
const PIN: &str = "SELECT count(pg_catalog.set_config(present.name, wanted.value, true)) FROM (VALUES \
    ('search_path', 'pg_catalog'), ('datestyle', 'ISO, YMD'), ('intervalstyle', 'postgres'), ('timezone', 'UTC'), \
    ('extra_float_digits', '1'), ('bytea_output', 'hex'), ('lc_monetary', 'C'), ('xmlbinary', 'base64'), \
    ('standard_conforming_strings', 'on'), ('transform_null_equals', 'off'), ('quote_all_identifiers', 'off'), \
    ('row_security', 'off'), ('jit', 'off'), \
    ('statement_timeout', '0'), ('lock_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), \
    ('transaction_timeout', '0')) AS wanted(name, value) \
    JOIN pg_catalog.pg_settings AS present ON pg_catalog.lower(present.name) = wanted.name";

const TRAITS: &str = "SELECT class.relkind = 'p', pg_encoding_to_char(base.encoding) IN ('UTF8', 'SQL_ASCII') \
    FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace, pg_database AS base \
    WHERE space.nspname = $1::text AND class.relname = $2::text AND base.datname = current_database()";

/// A read-only transaction that sees one state of the source.
pub(super) struct Snapshot<'a> {
    transaction: Transaction<'a>,
    table: &'a TablePair,
    /// Everything that the snapshot sees was logged before here.
    pub(super) fence: Lsn,
    pub(super) source: SourceTraits,
}

impl<'a> Snapshot<'a> {
    pub(super) async fn open(client: &'a mut Client, table: &'a TablePair) -> Result<Self, Error> {
        Self::begin(client, table)
            .await
            .map_err(|error| failed(table, &error))?
            .ok_or_else(|| Error::NoSuchTable { table: table.label() })
    }

    async fn begin(client: &'a mut Client, table: &'a TablePair) -> Result<Option<Self>, tokio_postgres::Error> {
        let transaction =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?;
        transaction.query_one(PIN, &[]).await?;
        let Some(traits) = transaction.query_opt(TRAITS, &[&table.schema, &table.name]).await? else {
            return Ok(None);
        };
        let source = SourceTraits { partitioned: traits.try_get(0)?, utf8: traits.try_get(1)? };
        // After the snapshot was taken: a commit that it sees is in the log below this position.
        let position = transaction.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        // The server's own rendering parses; a fence that nothing reaches is the safe mistake.
        let fence = position.try_get::<_, &str>(0)?.parse().unwrap_or(Lsn(u64::MAX));
        Ok(Some(Self { transaction, table, fence, source }))
    }

    pub(super) async fn sums(&self, sql: &str) -> Result<Buckets, Error> {
        let rows = self.stream(sql).await?;
        rows.try_fold(Buckets::new(), |mut buckets, row| async move {
            let (bucket, rows, sum): (i64, i64, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            // Neither is negative or out of range: a count, and a sum of at most 2^63 hashes.
            let bucket_sum = Bucket { rows: rows.unsigned_abs(), sum: sum.parse().unwrap_or(i128::MAX) };
            buckets.insert(bucket, bucket_sum);
            Ok(buckets)
        })
        .await
        .map_err(|error| failed(self.table, &error))
    }

    /// Rows as the server sends them; it waits while nobody takes them.
    pub(super) async fn rows(
        &self,
        sql: &str,
    ) -> Result<impl Stream<Item = Result<HashedRow, Error>> + use<'_, 'a>, Error> {
        let hashed = |row: Row| -> Result<HashedRow, tokio_postgres::Error> {
            let columns = RowColumns {
                hashes: row.try_get::<_, Option<_>>(4)?.unwrap_or_default(),
                values: row.try_get::<_, Option<_>>(5)?.unwrap_or_default(),
                source_key: row.try_get::<_, Option<_>>(6)?.unwrap_or_default(),
            };
            let (key_hash, row_hash, mark) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(HashedRow { key_hash, row_hash, mark, key: row.try_get(3)?, columns })
        };
        let table = self.table;
        let rows = self.stream(sql).await?;
        Ok(rows.and_then(move |row| std::future::ready(hashed(row))).map_err(move |error| failed(table, &error)))
    }

    async fn stream(&self, sql: &str) -> Result<tokio_postgres::RowStream, Error> {
        let none = std::iter::empty::<&str>();
        let rows = self.transaction.query_raw(sql, none).await;
        rows.map_err(|error| failed(self.table, &error))
    }

    /// Ends the transaction, so that vacuum does not wait for it.
    pub(super) async fn close(self) -> Result<(), Error> {
        let table = self.table;
        self.transaction.rollback().await.map_err(|error| failed(table, &error))
    }
}

/// The server's message, unless it is of the class that quotes values ("data exception").
fn failed(table: &TablePair, error: &tokio_postgres::Error) -> Error {
    let message = match error.as_db_error() {
        Some(db) if db.code().code().starts_with("22") => format!("data exception, SQLSTATE {}", db.code().code()),
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            format!("{}: verify reads the whole table, with SELECT and free of row security", db.message())
        }
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None => std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    };
    Error::Postgres { table: table.label(), message }
}
