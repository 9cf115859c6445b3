//! Reads single rows of the source as they are now, for a lane that needs a value which the stream
//! does not carry.
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
    lane::{RowAnswer, RowError, RowRequest, RowSource, Told},
    quote,
    retry::Kind,
};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// How long to wait before a new snapshot is taken.
const PAUSE: Duration = Duration::from_millis(5);

/// An answer of so many bytes is a large one.
const LARGE_ROW: usize = 4 << 20;

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

    async fn read(&self, request: &RowRequest) -> Result<RowAnswer, RowError> {
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
        let answer = answer(&client, request).await.map_err(failed(true))?;
        // Only a session without an open transaction is kept, and none that keeps the memory of a large row.
        if answer.bytes() < LARGE_ROW {
            *session = Some(client);
        }
        Ok(answer)
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

async fn answer(client: &Client, request: &RowRequest) -> Result<RowAnswer, SqlError> {
    let select = statement(client, request).await?;
    loop {
        if let Some(answer) = once(client, request, &select).await? {
            return Ok(answer);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
impl RowSource for Lookup {
    fn current(&self, request: RowRequest) -> BoxFuture<'_, Result<RowAnswer, RowError>> {
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

/// The SELECT for the row. Literals without a type take the column's, but for those of composites,
/// which PostgreSQL does not read without. The simple protocol gives back text, as the stream does.
async fn statement(client: &Client, request: &RowRequest) -> Result<String, SqlError> {
    let key: Vec<&str> = request.key.iter().map(|(column, _)| column.as_str()).collect();
    let row = client
        .query_opt(
            "SELECT n.nspname::text, c.relname::text, c.relkind = 'p', \
                    ARRAY(SELECT '::' || format_type(t.oid, -1) FROM unnest($2::text[]) WITH ORDINALITY AS k(name, place) \
                          LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = k.name AND NOT a.attisdropped \
                          LEFT JOIN pg_type t ON t.oid = a.atttypid AND t.typtype = 'c' ORDER BY k.place) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            &[&request.table, &key],
        )
        .await?;
    let row =
        row.ok_or_else(|| SqlError::definite("a table was dropped while one of its rows was looked up".to_owned()))?;
    let (schema, name, root): (&str, &str, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let casts: Vec<Option<&str>> = row.try_get(3)?;
    let mut condition = Vec::new();
    for ((column, value), cast) in request.key.iter().zip(casts) {
        let text = std::str::from_utf8(value).map_err(|_| no_utf8())?;
        let (column, value) = (quote::postgres(column), quote::postgres_string(text));
        condition.push(format!("{column} = {value}{}", cast.unwrap_or_default()));
    }
    condition.extend(request.filter.iter().map(|filter| format!("({filter})")));
    let columns: Vec<String> = request.columns.iter().map(|column| quote::postgres(column)).collect();
    Ok(format!(
        "SELECT {} FROM {}{}.{} WHERE {}",
        columns.join(", "),
        if root { "" } else { "ONLY " },
        quote::postgres(schema),
        quote::postgres(name),
        condition.join(" AND ")
    ))
}

/// One snapshot; `None` if the transaction is not visible in it.
async fn once(client: &Client, request: &RowRequest, select: &str) -> Result<Option<RowAnswer>, SqlError> {
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
    let xid = full_xid(request.xid, xmax);
    let visible = client.simple_query(&format!("SELECT pg_visible_in_snapshot('{xid}', {snapshot})")).await?;
    if field(first(&visible), 0) != "t" {
        client.batch_execute("COMMIT").await?;
        return Ok(None);
    }
    let rows = client.simple_query(select).await?;
    client.batch_execute("COMMIT").await?;
    let value = |row: &SimpleQueryRow, index| match row.try_get(index) {
        Ok(text) => Ok(text.map(|text| text.as_bytes().to_vec())),
        Err(_) => Err(no_utf8()),
    };
    let values = |row| (0..request.columns.len()).map(|index| value(row, index)).collect::<Result<_, _>>();
    Ok(Some(RowAnswer { values: first(&rows).map(values).transpose()?, position }))
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
