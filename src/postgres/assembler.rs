//! From the bytes of the stream to groups of events: no I/O, no waiting.
//!
//! The assembler is where the shape of the stream is enforced. Every row lies inside a
//! transaction, belongs to a relation that was announced, and every transaction ends with the
//! commit that it began with; whatever else arrives is an error, because a stream that is not
//! understood must not be acknowledged.
//!
//! One assembler serves all readers of a session, one after the other, and gives their events as
//! one stream. A reader may be given up in the middle of a transaction; the next one brings it again
//! from its beginning, and what was handed over before is left out.

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
    /// What comes after a change of readers does not continue what came before it.
    #[error(
        "at {at}: the transaction that was interrupted came back as another one; reading again from the checkpoint"
    )]
    Again {
        /// The position of the message.
        at: Lsn,
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

/// A transaction that has begun, and how much of it came so far.
#[derive(Clone, Copy, Debug)]
struct Open {
    commit: Lsn,
    changes: u64,
    last: Lsn,
}

/// Turns the stream's bytes into groups.
#[derive(Debug, Default)]
pub struct Assembler {
    announced: HashSet<u32>,
    open: Option<Open>,
    /// What was handed over of a transaction that was interrupted, until it has come once more.
    again: Option<Open>,
    position: Lsn,
}

impl Assembler {
    /// An assembler for a stream that begins at `start`.
    pub fn new(start: Lsn) -> Self {
        Self { position: start, ..Self::default() }
    }

    /// The position from which another reader goes on: what committed before was handed over.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Whether no transaction is open, so that nothing comes twice if another reader goes on.
    pub fn is_between_transactions(&self) -> bool {
        self.open.is_none() && self.again.is_none()
    }

    /// What comes next is from another connection, or another call on the server, and begins at
    /// [`position`](Self::position). What was announced before does not hold for it.
    pub fn begin_anew(&mut self) {
        self.announced.clear();
        // An interruption of what is being repeated leaves that to be repeated.
        let open = self.open.take();
        self.again = self.again.or(open);
    }

    /// Takes every whole message from the front of `buffer`; with `to_commit`, none after the end of the open
    /// transaction.
    ///
    /// # Errors
    /// On the first message that is not understood; nothing after it may be used.
    pub fn take(&mut self, buffer: &mut BytesMut, to_commit: bool) -> Result<Taken, StreamError> {
        let mut taken = Taken::default();
        let mut events = Vec::new();
        let mut length = 0;
        while let Some(frame) = wire::next_frame(&buffer[length..]).map_err(ConnectionError::from)? {
            if to_commit && self.is_between_transactions() {
                break;
            }
            match frame.tag {
                b'd' => match ReplicationMessage::parse(frame.body).map_err(ConnectionError::from)? {
                    ReplicationMessage::XLogData { start, payload, .. } => {
                        self.message(start, payload, buffer, &mut events)?;
                    }
                    ReplicationMessage::Keepalive { end, reply_requested, .. } => {
                        taken.reply_requested |= reply_requested;
                        taken.heard = Some(end);
                        if self.is_between_transactions() {
                            self.idle(end, &mut events);
                        }
                    }
                },
                b'E' => return Err(stream_error("to go on streaming", &buffer[length..length + frame.len]).into()),
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

    /// Everything before `end` was handed over. Only between transactions.
    pub(super) fn idle(&mut self, end: Lsn, events: &mut Vec<Event>) {
        // Early keepalives can be lower than what was already seen.
        if end > self.position {
            self.position = end;
            // Only the last of several in a row says anything.
            if let Some(Event::Idle(last)) = events.last_mut() {
                *last = end;
            } else {
                events.push(Event::Idle(end));
            }
        }
    }

    /// Takes one message of the output plugin. `payload` must be a slice of `all`, which becomes the group's data.
    pub(super) fn message(
        &mut self,
        at: Lsn,
        payload: &[u8],
        all: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), StreamError> {
        let order = |what| StreamError::Order { at, what };
        let span = |row: Row<'_>| Span::of(all, row.data).ok_or(order("a row outside the buffer"));
        match pgoutput::decode(payload).map_err(|error| StreamError::Decode { at, error })? {
            Message::Begin(transaction) => {
                let open = Open { commit: transaction.commit, changes: 0, last: Lsn::ZERO };
                if self.open.replace(open).is_some() {
                    return Err(order("a transaction begins inside another"));
                }
                match self.again {
                    None => events.push(Event::Begin(transaction)),
                    Some(again) if again.commit != transaction.commit => return Err(StreamError::Again { at }),
                    Some(again) if again.changes == 0 => self.again = None,
                    Some(_) => {}
                }
            }
            Message::Commit { commit, end, .. } => {
                if self.open.take().map(|open| open.commit) != Some(commit) {
                    return Err(order("a commit that does not belong to the open transaction"));
                }
                if self.again.is_some() {
                    return Err(StreamError::Again { at });
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
                events.extend(self.change(at, relation, op)?);
            }
            Message::Update { relation, old, old_is_key, new } => {
                let op = Op::Update { old: old.map(span).transpose()?, old_is_key, new: span(new)? };
                events.extend(self.change(at, relation, op)?);
            }
            Message::Delete { relation, old, old_is_key } => {
                let op = Op::Delete { old: span(old)?, old_is_key };
                events.extend(self.change(at, relation, op)?);
            }
            Message::Truncate { relations, .. } => {
                if self.is_new(at, "a truncate outside a transaction")? {
                    events.push(Event::Truncate { record: at, relations });
                }
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                if transactional && !self.is_new(at, "a message of a transaction outside of one")? {
                    return Ok(());
                }
                let part = |part| Span::of(all, part).ok_or(order("a message outside the buffer"));
                let (prefix, content) = (part(prefix)?, part(content)?);
                events.push(Event::Message { record: lsn, transactional, prefix, content });
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Ignored(_) => {}
        }
        Ok(())
    }

    /// Counts a change of the open transaction, and says whether it was not handed over before.
    fn is_new(&mut self, at: Lsn, outside: &'static str) -> Result<bool, StreamError> {
        let open = self.open.as_mut().ok_or(StreamError::Order { at, what: outside })?;
        open.changes += 1;
        open.last = at;
        let Some(again) = self.again else { return Ok(true) };
        // The rows of one record share its position, so it is their number that counts.
        if open.changes == again.changes {
            self.again = None;
            if at != again.last {
                return Err(StreamError::Again { at });
            }
        }
        Ok(false)
    }

    fn change(&mut self, record: Lsn, relation: u32, op: Op) -> Result<Option<Event>, StreamError> {
        let new = self.is_new(record, "a row outside a transaction")?;
        if !self.announced.contains(&relation) {
            return Err(StreamError::Order { at: record, what: "a row of a relation that was not announced" });
        }
        Ok(new.then_some(Event::Change(Change { relation, record, op })))
    }
}

#[cfg(test)]
mod tests;
