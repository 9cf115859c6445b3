use super::{Lsn, Relation};
use bytes::Bytes;
use std::{sync::Arc, time::SystemTime};

/// Events that arrived together, and the bytes that they point into.
///
/// A group is what lanes are handed: one for each gulp from the server, never one for each row.
#[derive(Debug)]
pub struct Group {
    /// The bytes that the spans of `events` refer to.
    pub data: Bytes,
    /// In stream order.
    pub events: Vec<Event>,
}

impl Group {
    /// Bytes of memory that it takes. A narrow row's event is about as large as the row.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.events.capacity() * size_of::<Event>()
    }
}

/// One thing that the stream says, in the order in which it says it.
#[derive(Clone, Debug)]
pub enum Event {
    /// The shape of every later change of this relation, until it is announced anew.
    Relation(Arc<Relation>),
    /// A committed transaction begins; its changes follow.
    Begin(Transaction),
    /// A row, or the rows of a table, changed.
    Change(Change),
    /// Tables were truncated, in the current transaction, by the record at `record`.
    Truncate {
        /// The record's LSN.
        record: Lsn,
        /// The tables' oids.
        relations: Vec<u32>,
    },
    /// Somebody wrote a logical message into the WAL, for whoever knows its prefix. Anybody who may
    /// connect to the source can: what is in one is to be distrusted.
    Message {
        /// The record's LSN.
        record: Lsn,
        /// Whether it belongs to the current transaction; else it stands between transactions.
        transactional: bool,
        /// Who it is for, in the session's encoding.
        prefix: Span,
        /// Anything at all.
        content: Span,
    },
    /// The current transaction is complete. `end` is the position after its commit record: the
    /// one that may be acknowledged.
    Commit {
        /// The position after the commit record.
        end: Lsn,
    },
    /// Nothing that concerns us lies before this position. Only ever sent between transactions.
    Idle(Lsn),
}

/// What is known of a transaction when its changes begin to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The LSN of its commit record.
    pub commit: Lsn,
    /// When it committed, by the source's clock.
    pub time: SystemTime,
    /// Its 32-bit transaction id.
    pub xid: u32,
}

/// A row was inserted, updated or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The oid of a relation that an earlier event announced.
    pub relation: u32,
    /// The LSN of the change's own WAL record.
    pub record: Lsn,
    /// What happened.
    pub op: Op,
}

/// What happened to a row. Spans hold TupleData, as in pgoutput: see [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new row.
    Insert {
        /// The row.
        new: Span,
    },
    /// A row changed and, if its key is among `old`, perhaps its key.
    Update {
        /// The old key, or the whole old row under FULL; absent when the key did not change.
        old: Option<Span>,
        /// Whether `old` is a key tuple, in which every column outside the key is null.
        old_is_key: bool,
        /// The row as it is now.
        new: Span,
    },
    /// A row is gone.
    Delete {
        /// Its key, or the whole row under FULL.
        old: Span,
        /// Whether `old` is a key tuple, in which every column outside the key is null.
        old_is_key: bool,
    },
}

/// A range of a group's bytes. There are a million of them for a million rows, so they are small: a
/// group is a gulp, or one message, of which PostgreSQL makes none of 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub start: u32,
    /// How long it is, in bytes.
    pub len: u32,
}

impl Span {
    /// The range of `part` inside `whole`, of which it must be a slice; `None` beyond 4 GiB.
    pub fn of(whole: &[u8], part: &[u8]) -> Option<Span> {
        let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
        let inside = start.checked_add(part.len())? <= whole.len();
        inside.then_some(Span { start: start.try_into().ok()?, len: part.len().try_into().ok()? })
    }

    /// The bytes of this range; empty if the group is not the one it was made for.
    pub fn bytes(self, data: &[u8]) -> &[u8] {
        let (start, len) = (self.start as usize, self.len as usize);
        start.checked_add(len).and_then(|end| data.get(start..end)).unwrap_or_default()
    }
}

/// A row as pgoutput writes it (TupleData): a 16-bit count of columns, then for each a kind
/// byte, and for text and binary a 32-bit length and the bytes.
///
/// Source: PostgreSQL's documentation, "Logical Replication Message Formats".
#[derive(Clone, Copy, Debug)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

/// One column of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// A toasted value that the update left alone: it is not in the stream.
    Unchanged,
    /// The type's text form.
    Text(&'a [u8]),
    /// The type's binary form.
    Binary(&'a [u8]),
}

/// TupleData that does not hold what it says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TupleError {
    /// It ends before its columns do.
    #[error("the tuple ends in the middle of a column")]
    Truncated,
    /// A kind byte that the protocol does not have.
    #[error("unknown kind of column in a tuple: byte {0:#04x}")]
    Kind(u8),
}

impl<'a> Tuple<'a> {
    /// Checks the whole tuple at the front of `input`, and returns it with what follows it.
    pub fn parse(input: &'a [u8]) -> Result<(Tuple<'a>, &'a [u8]), TupleError> {
        let (count, body) = input.split_first_chunk::<2>().ok_or(TupleError::Truncated)?;
        let columns = u16::from_be_bytes(*count);
        let mut rest = body;
        for _ in 0..columns {
            rest = next(rest)?.1;
        }
        Ok((Tuple { columns, bytes: &body[..body.len() - rest.len()] }, rest))
    }

    /// The tuple of bytes that [`parse`](Self::parse) has taken, which are not looked at once more: of
    /// any others its values end where they are malformed.
    pub fn parsed(bytes: &'a [u8]) -> Result<Tuple<'a>, TupleError> {
        let (count, bytes) = bytes.split_first_chunk::<2>().ok_or(TupleError::Truncated)?;
        Ok(Tuple { columns: u16::from_be_bytes(*count), bytes })
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether it has no column at all.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Its columns, in order.
    pub fn values(&self) -> Values<'a> {
        Values { left: self.columns, bytes: self.bytes }
    }
}

/// The columns of a [`Tuple`], in order.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Checked when the tuple was parsed, so an error here can not be.
        let (value, rest) = next(self.bytes).ok()?;
        self.bytes = rest;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}

#[inline]
fn next(bytes: &[u8]) -> Result<(Value<'_>, &[u8]), TupleError> {
    let (&kind, rest) = bytes.split_first().ok_or(TupleError::Truncated)?;
    match kind {
        b'n' => return Ok((Value::Null, rest)),
        b'u' => return Ok((Value::Unchanged, rest)),
        b't' | b'b' => {}
        other => return Err(TupleError::Kind(other)),
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(TupleError::Truncated)?;
    let length = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| TupleError::Truncated)?;
    let (value, rest) = rest.split_at_checked(length).ok_or(TupleError::Truncated)?;
    Ok((if kind == b't' { Value::Text(value) } else { Value::Binary(value) }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_gives_its_columns_and_what_follows() {
        let bytes = b"\x00\x04nut\x00\x00\x00\x02hib\x00\x00\x00\x01\xffrest";
        let (tuple, rest) = Tuple::parse(bytes).unwrap();
        assert_eq!(rest, b"rest");
        let expected = [Value::Null, Value::Unchanged, Value::Text(b"hi"), Value::Binary(b"\xff")];
        assert_eq!(tuple.values().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_tuple_cut_anywhere_is_an_error() {
        let bytes = b"\x00\x03nt\x00\x00\x00\x02hiu";
        for end in 0..bytes.len() {
            assert_eq!(Tuple::parse(&bytes[..end]).map(|_| ()), Err(TupleError::Truncated), "cut at {end}");
        }
        let negative = b"\x00\x01t\xff\xff\xff\xff";
        assert_eq!(Tuple::parse(negative).map(|_| ()), Err(TupleError::Truncated));
        assert_eq!(Tuple::parse(b"\x00\x01x").map(|_| ()), Err(TupleError::Kind(b'x')));
    }

    #[test]
    fn a_span_is_a_part_of_its_group() {
        let data = b"0123456789";
        let span = Span::of(data, &data[3..5]).unwrap();
        assert_eq!(span.bytes(data), b"34");
        assert_eq!(Span { start: 8, len: 5 }.bytes(data), b"");
        assert_eq!(Span::of(&data[5..], &data[..2]), None);
    }

    #[test]
    fn an_event_is_small() {
        assert!(size_of::<Event>() <= 48, "{} bytes", size_of::<Event>());
    }
}
