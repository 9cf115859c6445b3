//! ClickHouse's side: sums and hashes of the live rows.

use clickhouse::{Client, Row, query::RowCursor};
use serde::Deserialize;

use super::{
    compare::{Bucket, Buckets, HashedRow, RowColumns},
    error::Error,
    table::TablePair,
};

/// Wide tables and a thousand keys make statements beyond the default limits.
const LIMITS: [(&str, &str); 3] =
    [("max_query_size", "67108864"), ("max_ast_elements", "1000000"), ("max_expanded_ast_elements", "1000000")];

/// Reads the live rows of one table.
pub(super) struct Target<'a> {
    client: Client,
    table: &'a TablePair,
}

#[derive(Row, Deserialize)]
struct SumRow {
    bucket: i64,
    rows: u64,
    sum: i128,
}

#[derive(Row, Deserialize)]
struct KeyRow {
    key_hash: i64,
    row_hash: i64,
    mark: i64,
    key_text: Vec<String>,
    column_hashes: Vec<i64>,
    column_values: Vec<Option<String>>,
}

impl<'a> Target<'a> {
    pub(super) fn new(client: &Client, table: &'a TablePair) -> Self {
        let client = LIMITS.iter().fold(client.clone(), |client, (name, value)| client.with_setting(*name, *value));
        Self { client, table }
    }

    pub(super) async fn sums(&self, sql: &str) -> Result<Buckets, Error> {
        let rows = self.client.query_raw(sql).fetch_all::<SumRow>().await.map_err(|error| self.failed(error))?;
        Ok(rows.into_iter().map(|row| (row.bucket, Bucket { rows: row.rows, sum: row.sum })).collect())
    }

    /// Rows as the server sends them; it waits while nobody takes them.
    pub(super) fn rows(&self, sql: &str) -> Result<TargetRows<'_>, Error> {
        let cursor = self.client.query_raw(sql).fetch::<KeyRow>().map_err(|error| self.failed(error))?;
        Ok(TargetRows { cursor, target: self })
    }

    fn failed(&self, source: clickhouse::error::Error) -> Error {
        Error::ClickHouse { table: self.table.label(), target: self.table.target.clone(), source }
    }
}

/// The rest of an answer.
pub(super) struct TargetRows<'a> {
    cursor: RowCursor<KeyRow>,
    target: &'a Target<'a>,
}

impl TargetRows<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<HashedRow>, Error> {
        let row = self.cursor.next().await.map_err(|error| self.target.failed(error))?;
        Ok(row.map(|row| {
            let KeyRow { key_hash, row_hash, mark, key_text, column_hashes, column_values } = row;
            let columns = RowColumns { hashes: column_hashes, values: column_values, source_key: Vec::new() };
            HashedRow { key_hash, row_hash, mark, key: key_text, columns }
        }))
    }
}
