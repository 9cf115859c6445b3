//! Reading one chunk of the initial copy: a range of a heap's blocks, in a short transaction.
//!
//! The session is ours, because its rows are handed over in the buffer that they were read into, many at a time. A client
//! library gives each row a buffer and a message of its own, which costs more than parsing the row.

use super::{
    connection::{ConnectionError, ReplicationConnection, Row, field, stream_error},
    snapshot::{self, Leaf},
    wire,
};
use crate::{config::SourceConfig, event::Lsn, quote};
use bytes::Buf;
use futures_util::FutureExt;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

const APPLICATION: &str = "walhouse copy";
const DOING: &str = "to copy a chunk";
/// A lock may be waited for as long as its holder likes; whether the server is there at all is for the network to notice.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// A server that sends so little at once is left alone for a moment: it wakes this end for every few rows.
const LITTLE: usize = 64 * 1024;
const REST: Duration = Duration::from_millis(1);

/// A session that reads chunks, one at a time.
pub struct ChunkReader {
    connection: ReplicationConnection,
}

/// What a chunk turned out to be.
pub enum Opened {
    /// Its rows are coming.
    Chunk(Chunk),
    /// The heap was rewritten, or the snapshot is gone: its chunks are void.
    Rewritten,
}

/// A chunk that is being read.
pub struct Chunk {
    reader: ChunkReader,
    position: Lsn,
    /// When to look at the socket again.
    rest: Option<Instant>,
}

/// What was taken of a chunk at once.
#[derive(Debug, Default)]
pub struct Taken {
    /// Bytes of the rows.
    pub bytes: usize,
    /// Bytes of the largest row.
    pub largest: usize,
    /// Whether these were the last ones.
    pub ended: bool,
}

impl ChunkReader {
    /// Opens a session.
    ///
    /// # Errors
    /// Transient when the network or a starting server is in the way.
    pub async fn connect(source: &SourceConfig) -> Result<Self, ConnectionError> {
        let connection = ReplicationConnection::connect_for_copy(&source.url, APPLICATION).await?;
        Ok(Self { connection })
    }

    /// Whether the server still holds a session that was idle.
    pub fn stands(&mut self) -> bool {
        // An idle server says nothing: whatever there is to read is the end.
        self.connection.read().now_or_never().is_none()
    }

    /// Begins to read the blocks `first..last` of a heap: of its rows, those that `filter` lets through, and those that
    /// are visible in the snapshot `as_of`, if there is one. The transaction is open until [`Chunk::end`] is called, or
    /// the chunk dropped.
    ///
    /// # Errors
    /// Those of the server, and of the way to it.
    pub async fn open(
        mut self,
        leaf: &Leaf,
        columns: &[String],
        filter: Option<&str>,
        (first, last): (u32, u32),
        as_of: Option<&str>,
    ) -> Result<Opened, ConnectionError> {
        // In this order: the lock keeps rewrites out, then the first query takes the snapshot, then the
        // position is read. So whatever the snapshot shows was written before that position.
        let begin = as_of.map_or_else(|| snapshot::BEGIN.to_owned(), snapshot::begin_as_of);
        match self.run(&begin).await {
            // Whoever held the snapshot is gone.
            Err(ConnectionError::Server { .. }) if as_of.is_some() => return Ok(Opened::Rewritten),
            begun => begun?,
        };
        // In one order whenever they are read.
        self.run("SET LOCAL row_security = off; SET LOCAL synchronize_seqscans = off").await?;
        self.run(&format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", leaf.quoted)).await?;
        let look = format!(
            "SELECT coalesce(pg_relation_filenode({oid}::oid), 0), pg_current_wal_insert_lsn(), \
                    coalesce(to_regclass({name})::oid = {oid}::oid, false)",
            oid = leaf.oid,
            name = quote::postgres_string(&leaf.quoted)
        );
        let rows = self.run(&look).await?;
        // The lock went to whatever has the name now: after a rename that may be another table.
        if field(&rows, 0) != leaf.filenode.to_string() || field(&rows, 2) != "t" {
            return Ok(Opened::Rewritten);
        }
        let position = field(&rows, 1).parse().map_err(|_| ConnectionError::Protocol("a WAL position that is none"))?;
        let columns: Vec<String> = columns.iter().map(|column| quote::postgres(column)).collect();
        let filter = filter.map(|filter| format!(" AND ({filter})")).unwrap_or_default();
        let copy = format!(
            "COPY (SELECT {} FROM ONLY {} WHERE ctid >= '({first},0)' AND ctid < '({last},0)'{filter}) TO STDOUT",
            columns.join(", "),
            leaf.quoted
        );
        self.connection.copy_out(DOING, &copy, PATIENCE).await?;
        Ok(Opened::Chunk(Chunk { reader: self, position, rest: None }))
    }

    async fn run(&mut self, sql: &str) -> Result<Vec<Row>, ConnectionError> {
        self.connection.long_command(DOING, sql, PATIENCE).await
    }
}

impl Chunk {
    /// The WAL position at which it was read: its rows are from no later time.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Waits for more rows. Cancel-safe.
    ///
    /// # Errors
    /// Transient when the connection is gone.
    pub async fn wait(&mut self) -> Result<(), ConnectionError> {
        if let Some(rest) = self.rest {
            sleep_until(rest).await;
            self.rest = None;
        }
        let connection = &mut self.reader.connection;
        connection.make_room(0)?;
        if connection.read().await? < LITTLE {
            connection.rest()?;
            self.rest = Some(Instant::now() + REST);
        }
        Ok(())
    }

    /// Hands over rows that are there, each in COPY's text format with its newline, until they are `enough` bytes.
    ///
    /// # Errors
    /// What `row` says, and what the server does.
    pub fn take<E: From<ConnectionError>>(
        &mut self,
        enough: usize,
        mut row: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Taken, E> {
        let buffer = self.reader.connection.buffer();
        let (mut taken, mut at) = (Taken::default(), 0);
        let mut outcome = Ok(());
        while outcome.is_ok() && taken.bytes < enough && !taken.ended {
            let frame = match wire::next_frame(&buffer[at..]) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return Err(ConnectionError::from(error).into()),
            };
            match frame.tag {
                b'd' => {
                    outcome = row(frame.body);
                    taken.bytes += frame.body.len();
                    taken.largest = taken.largest.max(frame.body.len());
                }
                // The end of the rows, of the statement, and what concerns nobody.
                b'c' | b'C' | b'S' | b'N' => {}
                b'Z' => taken.ended = true,
                b'E' => outcome = Err(stream_error(DOING, &buffer[at..at + frame.len]).into()),
                _ => outcome = Err(ConnectionError::Protocol("an unexpected message among the rows of a copy").into()),
            }
            at += frame.len;
        }
        buffer.advance(at);
        // What a large row has needed is not kept while that is sent.
        self.reader.connection.give_room_back(taken.largest);
        outcome.map(|()| taken)
    }

    /// Ends the transaction, once all rows were taken. Returns the session, and `false` if the heap was rewritten after
    /// all.
    ///
    /// # Errors
    /// Those of the server, and of the way to it.
    pub async fn end(self, leaf: &Leaf) -> Result<(ChunkReader, bool), ConnectionError> {
        let mut reader = self.reader;
        let look = format!("SELECT coalesce(pg_relation_filenode({}::oid), 0)", leaf.oid);
        let rows = reader.run(&look).await?;
        reader.run("COMMIT").await?;
        Ok((reader, field(&rows, 0) == leaf.filenode.to_string()))
    }
}
