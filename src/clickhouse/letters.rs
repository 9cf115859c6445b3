//! Letters of `_dead_letters` on their way to the queue of dead letters.
//!
//! The table comes first, because a row counts as dealt with once its letter is there, and a queue may be away. What was sent
//! is noted after it was sent, so a letter may be sent twice, as the same event.

use super::dead_letters::TABLE;
use crate::{event::Version, quote};
use clickhouse::{Client, Row, error::Error};
use serde::Deserialize;

/// A letter as it is stored.
#[derive(Clone, Debug, Row, Deserialize)]
pub struct StoredLetter {
    /// `pg_class.oid` of its table.
    pub oid: u32,
    /// Its table's schema.
    pub schema_name: String,
    /// Its table's name.
    pub table_name: String,
    version: u128,
    /// What was done to the row: `insert`, `update`, `delete`, `copy` or `upsert`.
    pub operation: String,
    /// The columns of the key, as a JSON object.
    pub key: String,
    /// The same without the names.
    pub key_values: Vec<String>,
    /// The column that can not hold its value, if one is known.
    pub column_name: String,
    /// Why, without any value.
    pub reason: String,
    /// JSON: `new`, `old`, `unchanged`.
    pub envelope: String,
    /// When its transaction committed, or else when the letter was written, in microseconds.
    pub time: i64,
}

impl StoredLetter {
    /// The version that the row would have.
    pub fn version(&self) -> Version {
        Version(self.version)
    }
}

/// Letters of `slot` that were not sent yet, the oldest first, `most` at most; and no more of them once they have so many `bytes`.
///
/// # Errors
/// What ClickHouse says.
pub async fn unsent(client: &Client, slot: &str, most: usize, bytes: usize) -> Result<Vec<StoredLetter>, Error> {
    let sql = format!(
        "SELECT oid, schema_name, table_name, version, toString(operation) AS operation, key, key_values, column_name, reason, \
         envelope, toUnixTimestamp64Micro(ifNull(committed_at, toDateTime64(created_at, 6, 'UTC'))) AS time \
         FROM {TABLE} FINAL WHERE slot = ? AND (oid, key_values, version) NOT IN \
         (SELECT oid, key_values, version FROM _dead_letters_sent WHERE slot = ?) ORDER BY version, oid, key_values LIMIT {most}"
    );
    let mut found = client.query(&sql).bind(slot).bind(slot).fetch::<StoredLetter>()?;
    let (mut letters, mut held) = (Vec::new(), 0);
    while held < bytes
        && let Some(letter) = found.next().await?
    {
        held += letter.envelope.len();
        letters.push(letter);
    }
    Ok(letters)
}

/// Notes that letters were sent, each as the event with its id.
///
/// # Errors
/// What ClickHouse says.
pub async fn note_sent(client: &Client, slot: &str, sent: &[(StoredLetter, String)]) -> Result<(), Error> {
    if sent.is_empty() {
        return Ok(());
    }
    let text = quote::clickhouse_string;
    let row = |(letter, id): &(StoredLetter, String)| {
        let key: Vec<String> = letter.key_values.iter().map(|value| text(value)).collect();
        format!("({}, {}, [{}], toUInt128('{}'), {})", text(slot), letter.oid, key.join(", "), letter.version, text(id))
    };
    let rows: Vec<String> = sent.iter().map(row).collect();
    let sql = format!(
        "INSERT INTO _dead_letters_sent (slot, oid, key_values, version, event_id) SETTINGS async_insert = 0 VALUES {}",
        rows.join(", ")
    );
    client.query_raw(&sql).execute().await
}
