//! From the bytes of the stream to groups of events: no I/O, no waiting.
//!
//! The assembler is where the shape of the stream is enforced. Every row lies inside a
//! transaction, belongs to a relation that was announced, and every transaction ends with the
//! commit that it began with; whatever else arrives is an error, because a stream that is not
//! understood must not be acknowledged.

use super::{
    connection::{ConnectionError, stream_error},
    pgoutput::{self, DecodeError, Message, Row},
    wire::{self, ReplicationMessage},
};
use crate::event::{Change, Event, Group, Lsn, Op, Span};
use bytes::BytesMut;
use std::{collections::HashSet, sync::Arc};

/// The stream is not what it should be, or the server ended it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection's side of it.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A message that is not understood.
    #[error("at {at}: {error}")]
    Decode {
        /// The position of the message.
        at: Lsn,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// A message that has no place where it stands.
    #[error("at {at}: {what}")]
    Order {
        /// The position of the message.
        at: Lsn,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The server ended the stream in order: it shuts down.
    #[error("the server ended the stream")]
    Ended,
}

/// What a look at the buffer gave.
#[derive(Debug, Default)]
pub struct Taken {
    /// The events of every whole message; `None` when there was none.
    pub group: Option<Group>,
    /// Whether the server wants a status update now.
    pub reply_requested: bool,
    /// The last position that the server named.
    pub heard: Option<Lsn>,
}

/// Turns the stream's bytes into groups.
#[derive(Debug, Default)]
pub struct Assembler {
    announced: HashSet<u32>,
    open: Option<Lsn>,
    position: Lsn,
}

impl Assembler {
    /// An assembler for a stream that begins at `start`. A new one for each connection, because
    /// what was announced on the last one does not hold on the next.
    pub fn new(start: Lsn) -> Self {
        Self { position: start, ..Self::default() }
    }

    /// Takes every whole message from the front of `buffer`.
    ///
    /// # Errors
    /// On the first message that is not understood; nothing after it may be used.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<Taken, StreamError> {
        let mut taken = Taken::default();
        let mut events = Vec::new();
        let mut length = 0;
        while let Some(frame) = wire::next_frame(&buffer[length..]).map_err(ConnectionError::from)? {
            match frame.tag {
                b'd' => match ReplicationMessage::parse(frame.body).map_err(ConnectionError::from)? {
                    ReplicationMessage::XLogData { start, payload, .. } => {
                        self.message(start, payload, buffer, &mut events)?;
                    }
                    ReplicationMessage::Keepalive { end, reply_requested, .. } => {
                        taken.reply_requested |= reply_requested;
                        taken.heard = Some(end);
                        // Early keepalives can be lower than what was already seen.
                        if self.open.is_none() && end > self.position {
                            self.position = end;
                            // Only the last of several in a row says anything.
                            if let Some(Event::Idle(last)) = events.last_mut() {
                                *last = end;
                            } else {
                                events.push(Event::Idle(end));
                            }
                        }
                    }
                },
                b'E' => return Err(stream_error(&buffer[length..length + frame.len]).into()),
                b'c' | b'C' => return Err(StreamError::Ended),
                b'N' | b'S' => {}
                _ => return Err(ConnectionError::Protocol("an unexpected message in the stream").into()),
            }
            length += frame.len;
        }
        if length > 0 {
            let data = buffer.split_to(length).freeze();
            if !events.is_empty() {
                taken.group = Some(Group { data, events });
            }
        }
        Ok(taken)
    }

    fn message(&mut self, at: Lsn, payload: &[u8], all: &[u8], events: &mut Vec<Event>) -> Result<(), StreamError> {
        let order = |what| StreamError::Order { at, what };
        let span = |row: Row<'_>| Span::of(all, row.data).ok_or(order("a row outside the buffer"));
        match pgoutput::decode(payload).map_err(|error| StreamError::Decode { at, error })? {
            Message::Begin(transaction) => {
                if self.open.replace(transaction.commit).is_some() {
                    return Err(order("a transaction begins inside another"));
                }
                events.push(Event::Begin(transaction));
            }
            Message::Commit { commit, end, .. } => {
                if self.open.take() != Some(commit) {
                    return Err(order("a commit that does not belong to the open transaction"));
                }
                if end <= commit {
                    return Err(order("a commit that ends before it begins"));
                }
                self.position = self.position.max(end);
                events.push(Event::Commit { end });
            }
            Message::Relation(relation) => {
                self.announced.insert(relation.oid);
                events.push(Event::Relation(Arc::new(relation)));
            }
            Message::Insert { relation, new } => {
                let op = Op::Insert { new: span(new)? };
                events.push(self.change(at, relation, op)?);
            }
            Message::Update { relation, old, old_is_key, new } => {
                let op = Op::Update { old: old.map(span).transpose()?, old_is_key, new: span(new)? };
                events.push(self.change(at, relation, op)?);
            }
            Message::Delete { relation, old, old_is_key } => {
                let op = Op::Delete { old: span(old)?, old_is_key };
                events.push(self.change(at, relation, op)?);
            }
            Message::Truncate { relations, .. } => {
                self.open.ok_or(order("a truncate outside a transaction"))?;
                events.push(Event::Truncate { record: at, relations });
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                if transactional && self.open.is_none() {
                    return Err(order("a message of a transaction outside of one"));
                }
                let part = |part| Span::of(all, part).ok_or(order("a message outside the buffer"));
                let (prefix, content) = (part(prefix)?, part(content)?);
                events.push(Event::Message { record: lsn, transactional, prefix, content });
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Ignored(_) => {}
        }
        Ok(())
    }

    fn change(&self, record: Lsn, relation: u32, op: Op) -> Result<Event, StreamError> {
        if self.open.is_none() {
            return Err(StreamError::Order { at: record, what: "a row outside a transaction" });
        }
        if !self.announced.contains(&relation) {
            return Err(StreamError::Order { at: record, what: "a row of a relation that was not announced" });
        }
        Ok(Event::Change(Change { relation, record, op }))
    }
}
