//! The connection that the slot is read over: startup, authentication, the few commands of
//! replication mode, and the raw frames of a copy.
//!
//! It is ours because tokio-postgres as published has no CopyBoth mode. The library alternative
//! (`pgwire-replication`) hands out one event per row and owns the acknowledgement; both are what
//! walhouse exists for. Everything that can be shared is: messages towards the server and SCRAM
//! are `postgres-protocol`'s, SQL and COPY go through tokio-postgres, and all of them over the same
//! [`transport`](super::transport), with TLS where it is to be.
//!
//! The session pins every setting that shapes text, because pgoutput writes values with the output
//! functions of this very session, and a role or a database may have other defaults.

mod error;
mod login;

pub use error::{ConnectionError, stream_error};

use super::{
    transport::{self, Transport},
    wire,
};
use crate::{config::SourceUrl, event::Lsn};
use bytes::{Buf, BytesMut};
use error::server_error;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{backend::Message, frontend};
use std::{io, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long authenticating may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How much is read at once, at most. Larger rows make the buffer grow to their size.
const GULP: usize = 512 * 1024;
/// How long a command of replication mode may take. Creating a slot is not one of them.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// An authenticated session in replication mode.
pub struct ReplicationConnection {
    stream: Box<Transport>,
    endpoint: String,
    buffer: BytesMut,
}

/// A row of a replication command's answer; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// A field of the first row; empty if it is NULL, or not there.
pub fn field(rows: &[Row], index: usize) -> &str {
    rows.first().and_then(|row| row.get(index)).and_then(Option::as_deref).unwrap_or_default()
}

impl ReplicationConnection {
    /// Connects and authenticates as `url` says, with `replication=database`.
    ///
    /// # Errors
    /// Transient when the network, a starting server or its certificate is in the way, definite for credentials,
    /// unknown databases and hosts.
    pub async fn connect(url: &SourceUrl, application: &str) -> Result<Self, ConnectionError> {
        Self::over(transport::open(url).await?, url, application).await
    }

    /// As [`connect`](Self::connect), over what leads to the server already.
    pub async fn over(stream: Transport, url: &SourceUrl, application: &str) -> Result<Self, ConnectionError> {
        Self::session(stream, url, application, true).await
    }

    /// As [`connect`](Self::connect), but an ordinary session: it reads the slot with a COPY.
    pub async fn connect_for_copy(url: &SourceUrl, application: &str) -> Result<Self, ConnectionError> {
        Self::session(transport::open(url).await?, url, application, false).await
    }

    async fn session(
        stream: Transport,
        url: &SourceUrl,
        application: &str,
        replication: bool,
    ) -> Result<Self, ConnectionError> {
        let stream = Box::new(stream);
        let endpoint = stream.endpoint().to_string();
        let mut connection = Self { stream, endpoint, buffer: BytesMut::with_capacity(8 * 1024) };
        let endpoint = connection.endpoint.clone();
        let login = connection.log_in(url.connection(), application, replication);
        within("authenticating", &endpoint, LOGIN_TIMEOUT, login).await?;
        connection.command("to set up the session", super::sql::ADAPT).await?;
        Ok(connection)
    }

    /// Runs a command that answers with rows, such as IDENTIFY_SYSTEM.
    pub async fn command(&mut self, doing: &'static str, command: &str) -> Result<Vec<Row>, ConnectionError> {
        self.long_command(doing, command, COMMAND_TIMEOUT).await
    }

    /// As [`command`](Self::command), with a time limit of its own.
    pub async fn long_command(
        &mut self,
        doing: &'static str,
        command: &str,
        limit: Duration,
    ) -> Result<Vec<Row>, ConnectionError> {
        let endpoint = self.endpoint.clone();
        within(doing, &endpoint, limit, self.rows(doing, command)).await
    }

    /// Makes a temporary slot, and returns its consistent point and the name of the snapshot that it
    /// exports: what commits before that point is visible in it, and nothing else. Both the slot and the
    /// name are there until the next command. It waits for all transactions that are open, without
    /// bound.
    pub async fn export_snapshot(&mut self, slot: &str) -> Result<(Lsn, String), ConnectionError> {
        // The one spelling that all supported versions know.
        let command = format!(
            "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT",
            crate::quote::postgres(slot)
        );
        let rows = self.rows("to export a snapshot", &command).await?;
        let mut fields = rows.into_iter().next().unwrap_or_default().into_iter().skip(1);
        let position = fields.next().flatten().and_then(|position| position.parse().ok());
        let exported = position.zip(fields.next().flatten());
        exported.ok_or(ConnectionError::Protocol("an answer to CREATE_REPLICATION_SLOT that is not one"))
    }

    /// After an error of the server the session can go on.
    async fn rows(&mut self, doing: &'static str, command: &str) -> Result<Vec<Row>, ConnectionError> {
        match self.answer(doing, command).await {
            Err(error @ ConnectionError::Server { .. }) => {
                // If the session ended with it, whoever uses it next is told.
                while !matches!(self.message(doing).await, Ok(Message::ReadyForQuery(_)) | Err(_)) {}
                Err(error)
            }
            answer => answer,
        }
    }

    async fn answer(&mut self, doing: &'static str, command: &str) -> Result<Vec<Row>, ConnectionError> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out).map_err(|source| self.io(source))?;
        self.write(&mut out).await?;
        let mut rows = Vec::new();
        loop {
            match self.message(doing).await? {
                Message::DataRow(body) => {
                    let field = |range: Option<std::ops::Range<usize>>| {
                        range
                            .and_then(|range| body.buffer().get(range))
                            .map(|b| String::from_utf8_lossy(b).into_owned())
                    };
                    rows.push(body.ranges().map(|range| Ok(field(range))).collect().map_err(|source| self.io(source))?);
                }
                Message::ReadyForQuery(_) => return Ok(rows),
                Message::RowDescription(_) | Message::CommandComplete(_) | Message::ParameterStatus(_) => {}
                _ => return Err(ConnectionError::Protocol("an unexpected message in a command's answer")),
            }
        }
    }

    /// Sends START_REPLICATION and waits until the server streams. From here on only
    /// [`read`](Self::read), [`buffer`](Self::buffer) and [`write`](Self::write) make sense.
    pub async fn start_replication(&mut self, command: &str) -> Result<(), ConnectionError> {
        self.begin_copy("to stream from the slot", command, COMMAND_TIMEOUT, b'W').await
    }

    /// Sends a COPY to standard output and waits for its first bytes, which come when the server has something to say.
    /// From here on only [`read`](Self::read) and [`buffer`](Self::buffer) make sense, up to ReadyForQuery.
    pub async fn copy_out(
        &mut self,
        doing: &'static str,
        command: &str,
        limit: Duration,
    ) -> Result<(), ConnectionError> {
        self.begin_copy(doing, command, limit, b'H').await
    }

    async fn begin_copy(
        &mut self,
        doing: &'static str,
        command: &str,
        limit: Duration,
        answer: u8,
    ) -> Result<(), ConnectionError> {
        let endpoint = self.endpoint.clone();
        within(doing, &endpoint, limit, async {
            let mut out = BytesMut::new();
            frontend::query(command, &mut out).map_err(|source| self.io(source))?;
            self.write(&mut out).await?;
            loop {
                // Frame by frame: the client library has no word for the copy in both directions, and must not see it.
                let Some((tag, length)) = wire::next_frame(&self.buffer)?.map(|frame| (frame.tag, frame.len)) else {
                    self.read().await?;
                    continue;
                };
                match tag {
                    _ if tag == answer => {
                        self.buffer.advance(length);
                        return Ok(());
                    }
                    b'S' | b'N' => self.buffer.advance(length),
                    b'E' => self.message(doing).await.map(|_| ())?,
                    _ => return Err(ConnectionError::Protocol("no copy mode after the command that begins it")),
                }
            }
        })
        .await
    }

    /// Makes room for the next read: for the whole of a message that has begun, or for a gulp.
    pub fn make_room(&mut self, delivered: usize) -> Result<(), ConnectionError> {
        self.give_room_back(delivered);
        let buffer = &mut self.buffer;
        let whole = wire::frame_len(buffer)?.unwrap_or(0);
        let missing = whole.saturating_sub(buffer.len()).max(GULP / 4);
        if buffer.capacity() - buffer.len() < missing {
            buffer.reserve(missing.max(GULP));
        }
        Ok(())
    }

    /// Gives memory back that a row of `delivered` bytes has needed, and those behind it do not.
    pub fn give_room_back(&mut self, delivered: usize) {
        if delivered > 2 * GULP && self.buffer.len() <= GULP {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
    }

    /// The next whole message; errors of the server become errors here, notices are skipped.
    async fn message(&mut self, doing: &'static str) -> Result<Message, ConnectionError> {
        loop {
            match Message::parse(&mut self.buffer).map_err(|source| self.io(source))? {
                Some(Message::ErrorResponse(body)) => return Err(server_error(doing, body.fields())),
                Some(Message::NoticeResponse(_)) => {}
                Some(message) => return Ok(message),
                None => {
                    self.read().await?;
                }
            }
        }
    }

    /// Reads what the server has sent into the buffer, and returns how much it was. Safe to cancel.
    ///
    /// # Errors
    /// Transient when the connection is gone or was closed.
    pub async fn read(&mut self) -> Result<usize, ConnectionError> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(self.io(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"))),
            Ok(count) => Ok(count),
            Err(source) => Err(self.io(source)),
        }
    }

    /// Lets what the server sends gather in the socket, without waking anybody, until the next read or write.
    ///
    /// # Errors
    /// If the system does not let go of it, and then it is of no more use.
    pub fn rest(&mut self) -> Result<(), ConnectionError> {
        self.stream.rest().map_err(|source| self.io(source))
    }

    /// What was read and not yet taken.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Sends `out` and leaves it empty.
    pub async fn write(&mut self, out: &mut BytesMut) -> Result<(), ConnectionError> {
        let result = self.stream.write_all(out).await;
        out.clear();
        match result {
            Ok(()) => self.stream.flush().await.map_err(|source| self.io(source)),
            Err(source) => Err(self.io(source)),
        }
    }

    /// Ends the copy and the session in order, so that the server frees the slot at once.
    pub async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        let ended = async {
            self.write(&mut out).await?;
            loop {
                self.buffer.clear();
                self.read().await?;
            }
        };
        // Whatever comes until the server hangs up is of no interest any more.
        let _: Result<Result<(), ConnectionError>, _> = tokio::time::timeout(Duration::from_secs(2), ended).await;
    }

    fn io(&self, source: io::Error) -> ConnectionError {
        ConnectionError::of_io(self.stream.endpoint(), source)
    }
}

async fn within<T>(
    doing: &'static str,
    endpoint: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, ConnectionError>>,
) -> Result<T, ConnectionError> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(ConnectionError::TimedOut { endpoint: endpoint.to_owned(), doing, limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_room_of_a_large_row_is_given_back_and_what_is_behind_it_is_kept() {
        let (near, _far) = tokio::net::UnixStream::pair().unwrap();
        let endpoint = crate::config::Endpoint::Unix(std::path::PathBuf::new());
        let stream = Box::new(Transport::over(near, &endpoint));
        let mut connection = ReplicationConnection { stream, endpoint: String::new(), buffer: BytesMut::new() };
        connection.buffer.reserve(8 * GULP);
        connection.buffer.extend_from_slice(b"the beginning of the next");
        connection.give_room_back(2 * GULP);
        assert!(connection.buffer.capacity() >= 8 * GULP, "for ordinary rows it is kept");
        connection.give_room_back(2 * GULP + 1);
        assert!(connection.buffer.capacity() < GULP);
        assert_eq!(connection.buffer, b"the beginning of the next"[..]);
    }
}
