//! The sessions of the copy, kept for the next chunk, or the next table.

use crate::{
    config::SourceConfig,
    postgres::{chunk::ChunkReader, connection::ConnectionError, sql, sql::SqlError},
};
use std::sync::{Mutex, PoisonError};
use tokio_postgres::Client;

/// How many are kept of each kind.
const IDLE: usize = 4;

/// Idle sessions: those that look at tables, and those that read chunks of them.
#[derive(Default)]
pub(super) struct Sessions {
    clients: Mutex<Vec<Client>>,
    readers: Mutex<Vec<ChunkReader>>,
}

impl Sessions {
    /// A session that looks at tables.
    pub(super) async fn client(&self, config: &SourceConfig) -> Result<Client, SqlError> {
        match take(&self.clients).filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => sql::connect(config, "walhouse copy").await,
        }
    }

    /// A session that reads chunks.
    pub(super) async fn reader(&self, config: &SourceConfig) -> Result<ChunkReader, ConnectionError> {
        while let Some(mut reader) = take(&self.readers) {
            if reader.stands() {
                return Ok(reader);
            }
        }
        ChunkReader::connect(config).await
    }

    /// Only sessions without an open transaction come back; the others end when they are dropped.
    pub(super) fn keep_client(&self, client: Client) {
        keep(&self.clients, client);
    }

    /// As [`keep_client`](Self::keep_client).
    pub(super) fn keep_reader(&self, reader: ChunkReader) {
        keep(&self.readers, reader);
    }
}

fn take<T>(idle: &Mutex<Vec<T>>) -> Option<T> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn keep<T>(idle: &Mutex<Vec<T>>, session: T) {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    if idle.len() < IDLE {
        idle.push(session);
    }
}
