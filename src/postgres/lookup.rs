//! Reads rows of the source as they are now, for a lane that needs values which the stream does not
//! carry.
//!
//! The transaction whose change asks must be visible to the reader. It is committed and its WAL is
//! flushed, or it would not have been streamed; but it may still wait for a synchronous standby,
//! and until then no snapshot shows it. So the snapshot is asked, and taken anew until it does.

use super::{
    catalog,
    ddl::DdlReader,
    sql::{self, SqlError},
};
use crate::{
    config::SourceConfig,
    event::{Lsn, SourceTable},
    lane::{RowError, RowRequest, RowSource, RowValues, RowsAnswer, RowsRequest, Told},
    quote,
    retry::Kind,
};
use futures_util::{TryStreamExt, future::BoxFuture};
use std::{collections::BTreeSet, pin::pin, time::Duration};
use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// How long to wait before a new snapshot is taken.
const PAUSE: Duration = Duration::from_millis(5);

/// A row of so many bytes is a large one, and so much is enough for an answer.
const LARGE: usize = 4 << 20;

/// A reader with one session, opened when it is first needed.
pub struct Lookup {
    config: SourceConfig,
    session: Mutex<Option<Client>>,
    ddl: DdlReader,
}

impl Lookup {
    /// A reader of the configured source.
    pub fn new(config: SourceConfig) -> Self {
        Self { config, session: Mutex::new(None), ddl: DdlReader::default() }
    }

    async fn open(&self) -> Result<Client, SqlError> {
        let client = sql::connect(&self.config, "walhouse lookup").await?;
        // Rows that a policy hides would look deleted; with this it is an error.
        client.batch_execute("SET row_security = off").await?;
        Ok(client)
    }

    async fn read(&self, request: &RowsRequest) -> Result<RowsAnswer, RowError> {
        let failed = |of_the_row| {
            move |error: SqlError| RowError {
                kind: error.kind(),
                of_the_row: of_the_row && error.kind() == Kind::Definite,
                message: error.to_string(),
            }
        };
        let mut session = self.session.lock().await;
        let client = match session.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.open().await.map_err(failed(false))?,
        };
        let read = answer(&client, request).await.map_err(failed(true))?;
        // Only a session without an open transaction is kept, and none that keeps the memory of a large row.
        if read.has_ended && read.largest < LARGE {
            *session = Some(client);
        }
        Ok(read.answer)
    }

    async fn look(&self, oid: u32, xid: u32) -> Result<Option<(SourceTable, Lsn)>, SqlError> {
        let client = sql::connect(&self.config, "walhouse lookup").await?;
        while !is_visible(&client, xid).await? {
            tokio::time::sleep(PAUSE).await;
        }
        catalog::table(&client, &self.config, oid).await
    }
}

async fn is_visible(client: &Client, xid: u32) -> Result<bool, SqlError> {
    let row = client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?;
    let xmax: &str = row.try_get(0)?;
    let xid = full_xid(xid, xmax.parse().unwrap_or_default());
    let asked = format!("SELECT pg_visible_in_snapshot('{xid}', pg_current_snapshot())");
    Ok(client.query_one(&asked, &[]).await?.try_get(0)?)
}

/// An answer, and what it has left behind.
struct Read {
    answer: RowsAnswer,
    /// Whether its transaction has ended.
    has_ended: bool,
    /// The bytes of its largest row.
    largest: usize,
}

async fn answer(client: &Client, request: &RowsRequest) -> Result<Read, SqlError> {
    let statements = statements(client, request).await?;
    loop {
        if let Some(read) = once(client, request, &statements).await? {
            return Ok(read);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl RowSource for Lookup {
    fn current(&self, request: RowsRequest) -> BoxFuture<'_, Result<RowsAnswer, RowError>> {
        Box::pin(async move { self.read(&request).await })
    }

    fn table(&self, oid: u32, xid: u32) -> BoxFuture<'_, Result<Option<(SourceTable, Lsn)>, RowError>> {
        Box::pin(async move { self.look(oid, xid).await.map_err(failed) })
    }

    fn told<'a>(&'a self, content: &'a [u8], xid: u32) -> BoxFuture<'a, Result<Option<Told>, RowError>> {
        Box::pin(async move { self.ddl.read(&self.config, content, xid).await.map_err(failed) })
    }
}

fn failed(error: SqlError) -> RowError {
    RowError { kind: error.kind(), of_the_row: false, message: error.to_string() }
}

/// A SELECT for each row, up to the first for which there can be none. Literals without a type take the
/// column's, but for those of composites, which PostgreSQL does not read without. The simple protocol gives
/// back text, as the stream does.
async fn statements(client: &Client, request: &RowsRequest) -> Result<Vec<String>, SqlError> {
    let row = client
        .query_opt(
            "SELECT n.nspname::text, c.relname::text, c.relkind = 'p', \
                    ARRAY(SELECT '::' || format_type(t.oid, -1) FROM unnest($2::text[]) WITH ORDINALITY AS k(name, place) \
                          LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = k.name AND NOT a.attisdropped \
                          LEFT JOIN pg_type t ON t.oid = a.atttypid AND t.typtype = 'c' ORDER BY k.place) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            &[&request.table, &request.key],
        )
        .await?;
    let row = row.ok_or_else(|| SqlError::definite("a table was dropped while its rows were looked up".to_owned()))?;
    let (schema, name, root): (&str, &str, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let casts: Vec<Option<&str>> = row.try_get(3)?;
    let only = if root { "" } else { "ONLY " };
    let table = format!("{only}{}.{}", quote::postgres(schema), quote::postgres(name));
    let mut statements = Vec::with_capacity(request.rows.len());
    for asked in &request.rows {
        match statement(request, &table, &casts, asked) {
            Err(error) if statements.is_empty() => return Err(error),
            Err(_) => break,
            Ok(statement) => statements.push(statement),
        }
    }
    Ok(statements)
}

fn statement(
    request: &RowsRequest,
    table: &str,
    casts: &[Option<&str>],
    asked: &RowRequest,
) -> Result<String, SqlError> {
    let mut condition = Vec::new();
    for ((column, value), cast) in request.key.iter().zip(&asked.key).zip(casts) {
        let text = std::str::from_utf8(value).map_err(|_| no_utf8())?;
        let (column, value) = (quote::postgres(column), quote::postgres_string(text));
        condition.push(format!("{column} = {value}{}", cast.unwrap_or_default()));
    }
    condition.extend(request.filter.iter().map(|filter| format!("({filter})")));
    let columns: Vec<String> = asked.columns.iter().map(|column| quote::postgres(column)).collect();
    Ok(format!("SELECT {} FROM {table} WHERE {}", columns.join(", "), condition.join(" AND ")))
}

/// One snapshot; `None` if a transaction is not visible in it.
async fn once(client: &Client, request: &RowsRequest, statements: &[String]) -> Result<Option<Read>, SqlError> {
    let rows = client
        .simple_query(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
             SELECT pg_snapshot_xmax(pg_current_snapshot()), pg_current_snapshot(), pg_current_wal_insert_lsn()",
        )
        .await?;
    let head = first(&rows);
    let xmax: u64 = field(head, 0).parse().unwrap_or_default();
    let snapshot = quote::postgres_string(field(head, 1));
    let position: Lsn = field(head, 2).parse().unwrap_or_default();
    let asked = &request.rows[..statements.len().min(request.rows.len())];
    let xids: BTreeSet<u64> = asked.iter().map(|row| full_xid(row.xid, xmax)).collect();
    let xids = xids.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let visible =
        format!("SELECT bool_and(pg_visible_in_snapshot(xid, {snapshot})) FROM unnest('{{{xids}}}'::xid8[]) AS xid");
    if field(first(&client.simple_query(&visible).await?), 0) != "t" {
        client.batch_execute("COMMIT").await?;
        return Ok(None);
    }
    take(client, asked, statements, position).await.map(Some)
}

/// Takes what the statements give, until that is enough, or one of them fails that is not the first.
async fn take(client: &Client, asked: &[RowRequest], statements: &[String], position: Lsn) -> Result<Read, SqlError> {
    let all = format!("{}; COMMIT", statements.join("; "));
    let mut messages = pin!(client.simple_query_raw(&all).await?);
    let (mut rows, mut row) = (Vec::<Option<RowValues>>::new(), None);
    let (mut bytes, mut largest) = (0, 0);
    while rows.len() < asked.len() && bytes < LARGE {
        let taken = match messages.try_next().await {
            Ok(Some(SimpleQueryMessage::Row(found))) => values(&found, asked[rows.len()].columns.len()).map(Some),
            Ok(Some(SimpleQueryMessage::CommandComplete(_))) => {
                rows.push(row.take());
                continue;
            }
            Ok(Some(_)) => continue,
            Ok(None) => Ok(None),
            Err(error) => Err(error.into()),
        };
        match taken {
            Ok(Some(values)) => {
                let size = values.iter().flatten().map(Vec::len).sum();
                (bytes, largest) = (bytes + size, largest.max(size));
                row = Some(values);
            }
            Err(error) if rows.is_empty() => return Err(error),
            _ => break,
        }
    }
    let has_ended = rows.len() == asked.len();
    if has_ended {
        while messages.try_next().await?.is_some() {}
    } else if row.is_some() {
        // What was enough.
        rows.push(row);
    }
    Ok(Read { answer: RowsAnswer { rows, position }, has_ended, largest })
}

fn values(row: &SimpleQueryRow, columns: usize) -> Result<RowValues, SqlError> {
    let value = |index| row.try_get(index).map(|text| text.map(|text| text.as_bytes().to_vec()));
    (0..columns).map(value).collect::<Result<_, _>>().map_err(|_| no_utf8())
}

/// A database without an encoding has bytes that neither a statement nor the simple protocol can carry.
fn no_utf8() -> SqlError {
    SqlError::definite(
        "its database has no encoding, and the row has bytes that are no UTF-8; with REPLICA IDENTITY FULL no value has \
         to be looked up",
    )
}

fn first(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn field(row: Option<&SimpleQueryRow>, index: usize) -> &str {
    row.and_then(|row| row.get(index)).unwrap_or_default()
}

/// The 64-bit transaction id that a 32-bit one of the recent past stands for.
fn full_xid(xid: u32, xmax: u64) -> u64 {
    let near = (xmax & !u64::from(u32::MAX)) | u64::from(xid);
    // At most half of the id space lies between two ids that are alive.
    if near > xmax + (1 << 31) { near.saturating_sub(1 << 32) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_transaction_id_is_completed_across_a_wrap() {
        assert_eq!(full_xid(700, 750), 700);
        assert_eq!(full_xid(760, 750), 760);
        assert_eq!(full_xid(u32::MAX - 1, (3 << 32) + 5), (3 << 32) - 2);
        assert_eq!(full_xid(3, (3 << 32) + 5), (3 << 32) + 3);
    }
}
