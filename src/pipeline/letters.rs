//! From the table of dead letters to their queue.

use super::SessionError;
use crate::{
    clickhouse::{
        client::describe,
        job::Shared,
        letters::{StoredLetter, note_sent, unsent},
    },
    queue::{
        claim::Claims,
        client::Sqs,
        lost::{LostRow, send_all},
        outbox::Origin,
        published,
    },
    retry::Backoff,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Letters that are read at once; and no more of them once they have so many bytes: each may be a large row.
const AT_ONCE: usize = 50;
const BYTES_AT_ONCE: usize = 8 << 20;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Sends letters as they are written, and those that were written before. Ends with the session.
pub(super) async fn run(
    shared: Arc<Shared>,
    sqs: Arc<Sqs>,
    claims: Arc<Claims>,
    origin: Origin,
) -> Result<(), SessionError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match some(&shared, &sqs, &claims, &origin).await {
            Ok(0) => {
                backoff.reset();
                shared.letters.notified().await;
            }
            Ok(sent) => tracing::warn!(sent, "rows that their tables do not take are in the queue of dead letters"),
            Err(why) => {
                let pause = backoff.next_delay();
                tracing::warn!(why, ?pause, "dead letters are not in their queue yet; trying again");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn some(shared: &Shared, sqs: &Sqs, claims: &Claims, origin: &Origin) -> Result<usize, String> {
    let slot = shared.state.slot();
    let letters = unsent(&shared.client, slot, AT_ONCE, BYTES_AT_ONCE).await.map_err(|error| describe(&error))?;
    let rows: Vec<LostRow> = letters.iter().map(|letter| lost(slot, origin, letter)).collect();
    let sent: Vec<(StoredLetter, String)> =
        letters.into_iter().zip(rows.iter().map(|row| row.id.to_string())).collect();
    let events = rows.into_iter().map(|row| row.letter(origin)).collect();
    send_all(sqs, claims, events).await.map_err(|error| error.to_string())?;
    note_sent(&shared.client, slot, &sent).await.map_err(|error| describe(&error))?;
    Ok(sent.len())
}

fn lost(slot: &str, origin: &Origin, letter: &StoredLetter) -> LostRow {
    let table = published::name(&letter.schema_name, &letter.table_name);
    let reason = match letter.column_name.as_str() {
        "" => letter.reason.clone(),
        column => format!("column {column}: {}", letter.reason),
    };
    let time = Duration::from_micros(u64::try_from(letter.time).unwrap_or_default());
    LostRow {
        id: id(slot, origin, letter),
        version: letter.version(),
        time: SystemTime::UNIX_EPOCH + time,
        payload: payload(&table, letter),
        table,
        reason,
    }
}

/// Many rows of a copy share a version, so the key is part of it.
fn id(slot: &str, origin: &Origin, letter: &StoredLetter) -> uuid::Uuid {
    let mut hash = Sha256::new();
    hash.update(b"walhouse dead letter");
    hash.update(origin.system_identifier.to_be_bytes());
    hash.update(letter.oid.to_be_bytes());
    hash.update(letter.version().0.to_be_bytes());
    for part in std::iter::once(slot).chain(letter.key_values.iter().map(String::as_str)) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn payload(table: &str, letter: &StoredLetter) -> String {
    let envelope: Value = serde_json::from_str(&letter.envelope).unwrap_or_default();
    let key = || serde_json::from_str(&letter.key).ok();
    let before = envelope.get("old").cloned().or_else(key).unwrap_or(Value::Null);
    let (operation, after) = match letter.operation.as_str() {
        "delete" => ("delete", Value::Null),
        operation => (
            if matches!(operation, "insert" | "copy") { "insert" } else { "update" },
            envelope.get("new").cloned().unwrap_or_else(|| json!({})),
        ),
    };
    json!({ "tableName": table, "operation": operation, "before": before, "after": after }).to_string()
}
