//! pgoutput, protocol version 1: the bytes of one logical decoding message become one [`Message`].
//!
//! Pure: no I/O, no state, no clock. For any input whatever, [`decode`] returns a message or an
//! error; it never panics, and never allocates more than a small multiple of the input's length,
//! because a count is held against the bytes that are left before it sizes anything. Row values
//! are checked but neither copied nor shown: rows borrow from the input, no type here that holds
//! one has a `Debug`, and an error names a message and a field, never what was in it.
//!
//! What is strict and why: bytes after the end of a message, a kind of message or tuple that the
//! protocol does not have, and a name that is not UTF-8 are errors, since reading on would mean
//! guessing at rows. Names and text arrive in the session's client encoding, so the session must
//! ask for UTF8. Undefined *bits* of a flags field are ignored, as PostgreSQL's own subscriber
//! does, except in Commit, where the documentation says "must be 0".
//!
//! Source: PostgreSQL's documentation, "Logical Replication Message Formats".

use super::wire::time_from_micros;
use crate::event::{Lsn, Relation, RelationColumn, ReplicaIdentity, Transaction, Tuple, TupleError};
use std::{ffi::CStr, time::SystemTime};

#[cfg(test)]
mod tests;

/// One message of the stream. It borrows from the bytes that it was decoded from.
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin(Transaction),
    /// The current transaction is complete.
    Commit {
        /// The LSN of the commit record; the one that Begin announced.
        commit: Lsn,
        /// The position after the commit record: the one that may be acknowledged.
        end: Lsn,
        /// When it committed, by the source's clock.
        time: SystemTime,
    },
    /// The current transaction was replicated into the source from elsewhere.
    Origin {
        /// The LSN of the commit on the origin server.
        commit: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// The shape of every later row of a relation, until it is announced anew.
    Relation(Relation),
    /// The name of a type that is not built in.
    Type {
        /// `pg_type.oid`.
        oid: u32,
        /// The schema's name, never empty. For a domain, that of its base type.
        schema: &'a str,
        /// The type's name. For a domain, that of its base type.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The relation's oid.
        relation: u32,
        /// The row.
        new: Row<'a>,
    },
    /// A row changed.
    Update {
        /// The relation's oid.
        relation: u32,
        /// The old key, or the whole old row under FULL; absent when the key did not change.
        old: Option<Row<'a>>,
        /// Whether `old` is a key tuple, in which every column outside the key is null.
        old_is_key: bool,
        /// The row as it is now.
        new: Row<'a>,
    },
    /// A row is gone.
    Delete {
        /// The relation's oid.
        relation: u32,
        /// Its key, or the whole row under FULL.
        old: Row<'a>,
        /// Whether `old` is a key tuple, in which every column outside the key is null.
        old_is_key: bool,
    },
    /// Tables were truncated.
    Truncate {
        /// Their oids.
        relations: Vec<u32>,
        /// `TRUNCATE … CASCADE`.
        cascade: bool,
        /// `TRUNCATE … RESTART IDENTITY`.
        restart_identity: bool,
    },
    /// What somebody wrote into the WAL with `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the current transaction; else it stands between transactions.
        transactional: bool,
        /// Its own position.
        lsn: Lsn,
        /// Who it is for. Anybody can write one, in a database without an encoding with any bytes: that
        /// must not end the stream.
        prefix: &'a [u8],
        /// Anything at all.
        content: &'a [u8],
    },
    /// A message of this kind, well formed, that says nothing to a reader of protocol 1.
    Ignored(u8),
}

/// TupleData: its columns, and the bytes that it was read from.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// The columns.
    pub tuple: Tuple<'a>,
    /// The whole TupleData with its count of columns, as [`Span::of`](crate::event::Span::of)
    /// wants it.
    pub data: &'a [u8],
}

/// Bytes that are no message of protocol 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There was not even a kind.
    #[error("an empty pgoutput message")]
    Empty,
    /// A kind that protocol version 1 does not have.
    #[error("a pgoutput message of kind {0:#04x}, which protocol version 1 does not have")]
    Unknown(u8),
    /// The message ends before the field does.
    #[error("the pgoutput message {message} ends before the end of its {field}")]
    Truncated {
        /// The message's name.
        message: &'static str,
        /// What was being read.
        field: &'static str,
    },
    /// The field holds what the protocol does not allow there.
    #[error("the pgoutput message {message} has an invalid {field}")]
    Invalid {
        /// The message's name.
        message: &'static str,
        /// What was being read.
        field: &'static str,
    },
    /// Bytes follow the message's last field.
    #[error("the pgoutput message {message} goes on after its {field}, which is its last field")]
    Trailing {
        /// The message's name.
        message: &'static str,
        /// The field that should have been its last.
        field: &'static str,
    },
}

/// Decodes one whole message: the payload of one XLogData, or one `data` of the SQL functions.
pub fn decode<'a>(bytes: &'a [u8]) -> Result<Message<'a>, DecodeError> {
    let (&kind, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    let (message, read): (_, fn(&mut Reader<'a>) -> _) = match kind {
        b'B' => ("Begin", begin),
        b'C' => ("Commit", commit),
        b'O' => ("Origin", origin),
        b'R' => ("Relation", relation),
        b'Y' => ("Type", type_),
        b'I' => ("Insert", insert),
        b'U' => ("Update", update),
        b'D' => ("Delete", delete),
        b'T' => ("Truncate", truncate),
        b'M' => ("Message", logical),
        b'A' => ("Stream Abort", stream_abort),
        unknown => return Err(DecodeError::Unknown(unknown)),
    };
    let mut reader = Reader { message, field: "kind", rest };
    let decoded = read(&mut reader)?;
    reader.finish()?;
    Ok(decoded)
}

type Decoded<'a> = Result<Message<'a>, DecodeError>;

fn begin<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    let commit = r.lsn("final LSN")?;
    // Versions are made of it: with an LSN that means "none", every row would lose to its copy.
    if commit == Lsn::ZERO {
        return Err(r.invalid());
    }
    Ok(Message::Begin(Transaction { commit, time: r.time("commit timestamp")?, xid: r.u32("xid")? }))
}

fn commit<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    if r.u8("flags")? != 0 {
        return Err(r.invalid());
    }
    Ok(Message::Commit { commit: r.lsn("commit LSN")?, end: r.lsn("end LSN")?, time: r.time("commit timestamp")? })
}

fn origin<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    Ok(Message::Origin { commit: r.lsn("origin commit LSN")?, name: r.str("origin name")? })
}

fn relation<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    // A column is at least flags, an empty name's NUL, a type and a modifier.
    const LEAST: usize = 1 + 1 + 4 + 4;

    let oid = r.u32("relation oid")?;
    let schema = r.schema()?.to_owned();
    let name = r.str("relation name")?.to_owned();
    let letter = r.u8("replica identity")?;
    let identity = ReplicaIdentity::from_letter(letter).ok_or_else(|| r.invalid())?;
    let count = usize::from(r.u16("number of columns")?);
    r.expect_items(count, LEAST, "columns")?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(RelationColumn {
            key: r.u8("column flags")? & 1 != 0,
            name: r.str("column name")?.to_owned(),
            type_oid: r.u32("column type")?,
            type_modifier: r.i32("column type modifier")?,
        });
    }
    Ok(Message::Relation(Relation { oid, schema, name, identity, columns }))
}

fn type_<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    Ok(Message::Type { oid: r.u32("type oid")?, schema: r.schema()?, name: r.str("type name")? })
}

fn insert<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    let relation = r.u32("relation oid")?;
    Ok(Message::Insert { relation, new: r.new_row()? })
}

fn update<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    let relation = r.u32("relation oid")?;
    if r.rest.first() == Some(&b'N') {
        return Ok(Message::Update { relation, old: None, old_is_key: false, new: r.new_row()? });
    }
    let (old, old_is_key) = r.old_row()?;
    Ok(Message::Update { relation, old: Some(old), old_is_key, new: r.new_row()? })
}

fn delete<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    let relation = r.u32("relation oid")?;
    let (old, old_is_key) = r.old_row()?;
    Ok(Message::Delete { relation, old, old_is_key })
}

fn truncate<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    let count = r.length("number of relations")?;
    let options = r.u8("options")?;
    r.expect_items(count, 4, "relation oids")?;
    let relations = (0..count).map(|_| r.u32("relation oids")).collect::<Result<_, _>>()?;
    Ok(Message::Truncate { relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
}

fn logical<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    let transactional = r.u8("flags")? & 1 != 0;
    let lsn = r.lsn("LSN")?;
    let prefix = r.until_nul("prefix")?;
    let length = r.length("content length")?;
    Ok(Message::Logical { transactional, lsn, prefix, content: r.bytes(length, "content")? })
}

/// Stream Abort belongs to protocol 2, yet PostgreSQL 18 sends it to a reader of protocol 1 that
/// asked for no streaming: seen on 18.4 when a transaction with a subtransaction outgrew
/// `logical_decoding_work_mem` and had already rolled back by the time it was decoded.
///
/// To skip it is right: it says "forget what you were streamed of this transaction", it carries
/// no row, and without streaming a transaction is only sent once it has committed, without its
/// aborted parts, so that there is nothing to forget. The same can not be said of any other
/// message of the later protocols: Stream Start, Stream Stop, Begin Prepare and Prepare enclose
/// rows that must not be applied yet, and Stream Commit, Stream Prepare, Commit Prepared and
/// Rollback Prepared decide over such rows. Whoever met one of those and went on would apply rows
/// too early or lose them, so they stay unknown.
///
/// Only the form without the abort's LSN and time is known here: the longer one is sent to
/// readers that asked for parallel streaming.
fn stream_abort<'a>(r: &mut Reader<'a>) -> Decoded<'a> {
    r.u32("xid")?;
    r.u32("subtransaction xid")?;
    Ok(Message::Ignored(b'A'))
}

/// A cursor that knows what it is reading, for the sake of errors.
struct Reader<'a> {
    message: &'static str,
    field: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn truncated(&self) -> DecodeError {
        DecodeError::Truncated { message: self.message, field: self.field }
    }

    /// The field that was read last can not be what it is.
    fn invalid(&self) -> DecodeError {
        DecodeError::Invalid { message: self.message, field: self.field }
    }

    fn finish(self) -> Result<(), DecodeError> {
        match self.rest {
            [] => Ok(()),
            _ => Err(DecodeError::Trailing { message: self.message, field: self.field }),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        self.field = field;
        let (value, rest) = self.rest.split_first_chunk().ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(*value)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(u64::from_be_bytes).map(Lsn)
    }

    fn time(&mut self, field: &'static str) -> Result<SystemTime, DecodeError> {
        let micros = self.array(field).map(i64::from_be_bytes)?;
        time_from_micros(micros).ok_or_else(|| self.invalid())
    }

    /// A signed 32-bit length or count, which must not be negative.
    fn length(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let length = self.i32(field)?;
        usize::try_from(length).map_err(|_| self.invalid())
    }

    /// Fails unless `count` items of `least` bytes or more can still follow.
    fn expect_items(&mut self, count: usize, least: usize, field: &'static str) -> Result<(), DecodeError> {
        self.field = field;
        if self.rest.len() / least < count { Err(self.truncated()) } else { Ok(()) }
    }

    fn bytes(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        self.field = field;
        let (value, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(value)
    }

    /// Bytes that end with a NUL, without it.
    fn until_nul(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        self.field = field;
        let value = CStr::from_bytes_until_nul(self.rest).map_err(|_| self.truncated())?;
        self.bytes(value.count_bytes() + 1, field)?;
        Ok(value.to_bytes())
    }

    /// A string that ends with a NUL.
    fn str(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.until_nul(field)?).map_err(|_| self.invalid())
    }

    /// The name of a schema, of which pgoutput shortens one to nothing.
    fn schema(&mut self) -> Result<&'a str, DecodeError> {
        let name = self.str("schema name")?;
        Ok(if name.is_empty() { "pg_catalog" } else { name })
    }

    fn new_row(&mut self) -> Result<Row<'a>, DecodeError> {
        match self.u8("kind of the new tuple")? {
            b'N' => self.row("new tuple"),
            _ => Err(self.invalid()),
        }
    }

    /// An old row, and whether it is a key tuple.
    fn old_row(&mut self) -> Result<(Row<'a>, bool), DecodeError> {
        match self.u8("kind of the old tuple")? {
            b'K' => Ok((self.row("old key")?, true)),
            b'O' => Ok((self.row("old tuple")?, false)),
            _ => Err(self.invalid()),
        }
    }

    fn row(&mut self, field: &'static str) -> Result<Row<'a>, DecodeError> {
        self.field = field;
        let (tuple, rest) = Tuple::parse(self.rest).map_err(|error| match error {
            TupleError::Truncated => self.truncated(),
            // Not told which: in a tuple that is out of step, the byte may belong to a value.
            TupleError::Kind(_) => self.invalid(),
        })?;
        let data = self.bytes(self.rest.len() - rest.len(), field)?;
        Ok(Row { tuple, data })
    }
}
