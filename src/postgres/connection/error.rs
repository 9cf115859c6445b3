//! What can go wrong with a connection, and whether another try can help.

use std::{io, time::Duration};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Message};
use tokio_postgres::error::SqlState;

use crate::{
    config::Endpoint,
    postgres::{
        sql,
        transport::{Cleartext, OpenError},
        wire::WireError,
    },
    retry::Kind,
    tls,
};

/// The replication connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The network did, or the server closed the connection.
    #[error("connection to PostgreSQL at {endpoint}: {source}")]
    Io {
        /// Host and port, or the socket's path.
        endpoint: String,
        /// What the system said.
        source: io::Error,
    },
    /// None came about, or TLS has ended it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server wants the password itself, and anybody could read it.
    #[error("PostgreSQL at {0}: {Cleartext}")]
    Cleartext(Endpoint),
    /// The server answered with an error.
    #[error("PostgreSQL refused {doing}: {message} (SQLSTATE {code})")]
    Server {
        /// What walhouse asked for.
        doing: &'static str,
        /// SQLSTATE.
        code: String,
        /// The server's primary message.
        message: String,
    },
    /// Bytes that are no frame.
    #[error("the replication stream is not understood: {0}")]
    Wire(#[from] WireError),
    /// A message at a moment at which the protocol has none.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// An authentication method that walhouse does not have.
    #[error(
        "the server asks for {0}, which walhouse does not speak: use scram-sha-256, md5, password or trust in pg_hba.conf"
    )]
    Authentication(&'static str),
    /// No password where one is needed.
    #[error("the server asks for a password: set it in source.url, source.password or source.password_file")]
    NoPassword,
    /// The server does not bind SCRAM to its certificate, and it is to.
    #[error(
        "the server does not bind the password to its certificate, and channel_binding=require asks for it; use \
         scram-sha-256 in pg_hba.conf over TLS, or channel_binding=prefer"
    )]
    Unbound,
    /// The server did not answer.
    #[error("PostgreSQL at {endpoint} did not answer within {limit:?} while {doing}")]
    TimedOut {
        /// Host and port, or the socket's path.
        endpoint: String,
        /// What walhouse asked for.
        doing: &'static str,
        /// The deadline.
        limit: Duration,
    },
}

impl ConnectionError {
    /// An error of reading or writing, which may be TLS's.
    pub(super) fn of_io(endpoint: &Endpoint, source: io::Error) -> Self {
        if Cleartext::is_in(&source) {
            return Self::Cleartext(endpoint.clone());
        }
        match tls::refusal(&source, "source") {
            Some(why) => Self::Open(OpenError::Refused { endpoint: endpoint.clone(), why }),
            None => Self::Io { endpoint: endpoint.to_string(), source },
        }
    }

    /// Whether another try can help.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Io { .. } | Self::TimedOut { .. } => Kind::Transient,
            // The slot or the publication is gone: the next session finds out which, and halts with
            // the way out.
            Self::Server { code, .. } if code == "42704" => Kind::Transient,
            Self::Server { code, .. } => sql::kind_of(&SqlState::from_code(code)),
            _ => Kind::Definite,
        }
    }

    /// SQLSTATE, where the server gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// What [`creation`](crate::postgres::creation) prevents, of a slot that somebody else created. It comes at each try.
const OLD_CATALOGS: &str = "the slot decodes with catalogs from before a change of a table, as one does that was created while \
    the table was changed: stop walhouse, drop the slot, and run walhouse provision --new-epoch --dry-run";

/// Reads an ErrorResponse's fields.
pub(super) fn server_error(doing: &'static str, mut fields: ErrorFields<'_>) -> ConnectionError {
    let (mut code, mut message) = (String::new(), String::new());
    while let Ok(Some(field)) = fields.next() {
        match field.type_() {
            b'C' => code = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            b'M' => message = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            _ => {}
        }
    }
    // What is wrong with a value may quote it.
    let message = match code.as_str() {
        code if sql::NO_UTF8.contains(&code) => sql::NO_UTF8_SAID.to_owned(),
        code if code.starts_with("22") => "an error in a value".to_owned(),
        _ if message.starts_with("could not map filen") => format!("{message}; {OLD_CATALOGS}"),
        _ => message,
    };
    ConnectionError::Server { doing, code, message }
}

/// Reads an ErrorResponse that arrived in the middle of a copy.
pub fn stream_error(doing: &'static str, frame: &[u8]) -> ConnectionError {
    match Message::parse(&mut BytesMut::from(frame)) {
        Ok(Some(Message::ErrorResponse(body))) => server_error(doing, body.fields()),
        _ => ConnectionError::Protocol("an error that is none"),
    }
}
