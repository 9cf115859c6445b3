//! The bytes of one window: binary COPY rows of `(lsn, data)`, each a message of the output plugin.
//!
//! A window holds the commits whose record begins in it. The server's call ends at the first record
//! that ends at or past the window's bound, so one that begins right behind it can be in the answer
//! too, and it is in the next window's as well if that is read through another slot. Whether a commit
//! was seen is told by its position alone.
//!
//! Source: PostgreSQL's documentation of COPY, "Binary Format".

use crate::{
    event::{Event, Group, Lsn},
    postgres::{
        assembler::{Assembler, StreamError},
        connection::{ConnectionError, stream_error},
        pgoutput::{self, Message},
        wire,
    },
};
use bytes::BytesMut;

/// What a window is read for, in errors.
pub(super) const DOING: &str = "to read a window of the slot's WAL";

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// A part of the WAL: from a position, included, up to another, excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) from: Lsn,
    pub(super) upto: Lsn,
}

/// How far a window's answer was taken.
#[derive(Debug)]
pub(super) struct Window {
    bounds: Bounds,
    begun: bool,
    /// Inside a transaction, and whether it was seen before.
    open: Option<bool>,
    ended: bool,
}

impl Window {
    /// A window of its own call, which goes on where the assembler is.
    pub(super) fn begin(bounds: Bounds, assembler: &mut Assembler) -> Self {
        // Announcements, and what is left out of a commit that was seen, are of a call.
        assembler.begin_anew();
        Self { bounds, begun: false, open: None, ended: false }
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether the server has said all of it, and is ready for the next.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes every whole message from the front of `buffer`; the last group ends with the window's bound.
    ///
    /// # Errors
    /// What the server says, and the first message that is not understood.
    pub(super) fn take(
        &mut self,
        buffer: &mut BytesMut,
        assembler: &mut Assembler,
    ) -> Result<Option<Group>, StreamError> {
        let mut events = Vec::new();
        let mut length = 0;
        while !self.ended {
            match self.frame(buffer, length, assembler, &mut events) {
                Ok(0) => break,
                Ok(taken) => length += taken,
                // The stream goes on behind what was taken, so that is handed over first; the error comes again.
                Err(StreamError::Connection(_)) if !events.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let data = buffer.split_to(length).freeze();
        Ok((!events.is_empty()).then_some(Group { data, events }))
    }

    /// Takes the frame that begins at `start`, and says how long it is; 0 if it is not whole.
    fn frame(
        &mut self,
        buffer: &[u8],
        start: usize,
        assembler: &mut Assembler,
        events: &mut Vec<Event>,
    ) -> Result<usize, StreamError> {
        let Some(frame) = wire::next_frame(&buffer[start..]).map_err(ConnectionError::from)? else { return Ok(0) };
        match frame.tag {
            b'd' => {
                if let Some((at, message)) = self.row(frame.body)?
                    && self.is_new(at, message, assembler)?
                {
                    assembler.message(at, message, buffer, events)?;
                }
            }
            b'E' => return Err(stream_error(DOING, &buffer[start..start + frame.len]).into()),
            b'Z' => self.end(assembler, events)?,
            b'c' | b'C' | b'N' | b'S' => {}
            _ => return Err(ConnectionError::Protocol("an unexpected message in a window").into()),
        }
        Ok(frame.len)
    }

    fn end(&mut self, assembler: &mut Assembler, events: &mut Vec<Event>) -> Result<(), ConnectionError> {
        if self.open.is_some() {
            return Err(ConnectionError::Protocol("a window that ends inside a transaction"));
        }
        self.ended = true;
        if assembler.is_between_transactions() {
            assembler.idle(self.bounds.upto, events);
        }
        Ok(())
    }

    /// The row in one CopyData: the server sends no row in parts, and the header with the first one.
    fn row<'a>(&mut self, mut body: &'a [u8]) -> Result<Option<(Lsn, &'a [u8])>, ConnectionError> {
        let odd = ConnectionError::Protocol("a row of a window that is none");
        if !self.begun {
            self.begun = true;
            body = header(body).ok_or(odd)?;
            if body.is_empty() {
                return Ok(None);
            }
        }
        fields(body).ok_or(ConnectionError::Protocol("a row of a window that is none"))
    }

    /// Whether a message is to be handed over, or belongs to what was before.
    fn is_new(&mut self, at: Lsn, message: &[u8], assembler: &Assembler) -> Result<bool, StreamError> {
        match (message.first(), self.open) {
            // Announced once in a call, perhaps with what is left out.
            (Some(b'R'), _) => Ok(true),
            (Some(b'B'), None) => {
                let begin = pgoutput::decode(message).map_err(|error| StreamError::Decode { at, error })?;
                let Message::Begin(transaction) = begin else { return Ok(true) };
                let new = transaction.commit >= assembler.position();
                self.open = Some(new);
                Ok(new)
            }
            (Some(b'C'), Some(new)) => {
                self.open = None;
                Ok(new)
            }
            (_, Some(new)) => Ok(new),
            // What stands between transactions counts by its own position.
            (_, None) => Ok(at >= assembler.position()),
        }
    }
}

/// What follows the header of the binary format.
fn header(body: &[u8]) -> Option<&[u8]> {
    let (flags, rest) = body.strip_prefix(SIGNATURE)?.split_first_chunk()?;
    let (extension, rest) = rest.split_first_chunk()?;
    // A format that is changed in a way that matters sets one of these bits.
    let critical = u32::from_be_bytes(*flags) >> 16;
    if critical != 0 {
        return None;
    }
    rest.get(usize::try_from(u32::from_be_bytes(*extension)).ok()?..)
}

/// A row's two fields, nothing for the trailer; `None` if it is neither.
fn fields(body: &[u8]) -> Option<Option<(Lsn, &[u8])>> {
    let (count, rest) = body.split_first_chunk()?;
    match i16::from_be_bytes(*count) {
        -1 => rest.is_empty().then_some(None),
        2 => {
            let (length, rest) = rest.split_first_chunk()?;
            let (at, rest) = rest.split_first_chunk()?;
            let (size, data) = rest.split_first_chunk()?;
            let size = usize::try_from(i32::from_be_bytes(*size)).ok()?;
            let whole = i32::from_be_bytes(*length) == 8 && size == data.len();
            whole.then_some(Some((Lsn(u64::from_be_bytes(*at)), data)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_data(rows: &[&[u8]]) -> Vec<u8> {
        let body = rows.concat();
        [&b"d"[..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), &body].concat()
    }

    fn row(at: u64, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0, 2, 0, 0, 0, 8][..], &at.to_be_bytes(), &length, message].concat()
    }

    fn begin(commit: u64) -> Vec<u8> {
        [&b"B"[..], &commit.to_be_bytes(), &[0; 12]].concat()
    }

    fn commit(commit: u64) -> Vec<u8> {
        [&b"C\0"[..], &commit.to_be_bytes(), &(commit + 8).to_be_bytes(), &[0; 8]].concat()
    }

    const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    const RELATION: &[u8] = b"R\0\0\0\x07s\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff";
    const INSERT: &[u8] = b"I\0\0\0\x07N\0\x01t\0\0\0\x011";
    const END: &[u8] = b"d\0\0\0\x06\xff\xffc\0\0\0\x04C\0\0\0\x0bCOPY 9\0Z\0\0\0\x05I";

    /// Two transactions, of which the first carries the announcement that both need.
    fn answer() -> Vec<u8> {
        let mut bytes = copy_data(&[HEADER, &row(90, &begin(100))]);
        for (at, message) in [(90, RELATION), (90, INSERT), (108, &commit(100)), (110, &begin(150))] {
            bytes.extend(copy_data(&[&row(at, message)]));
        }
        for (at, message) in [(110, INSERT), (158, &commit(150))] {
            bytes.extend(copy_data(&[&row(at, message)]));
        }
        bytes.extend(END);
        bytes
    }

    fn read(from: u64, chunk: usize) -> (Vec<Event>, bool) {
        let mut assembler = Assembler::new(Lsn(from));
        let mut window = Window::begin(Bounds { from: Lsn(from), upto: Lsn(200) }, &mut assembler);
        let (mut buffer, mut events) = (BytesMut::new(), Vec::new());
        for part in answer().chunks(chunk) {
            buffer.extend_from_slice(part);
            if let Some(group) = window.take(&mut buffer, &mut assembler).unwrap() {
                events.extend(group.events);
            }
        }
        (events, window.has_ended())
    }

    fn commits(events: &[Event]) -> Vec<u64> {
        events.iter().filter_map(|event| if let Event::Commit { end } = event { Some(end.0) } else { None }).collect()
    }

    #[test]
    fn a_window_is_the_same_wherever_its_bytes_are_cut_and_ends_with_its_bound() {
        let (events, ended) = read(100, usize::MAX);
        assert!(ended && matches!(events.last(), Some(Event::Idle(Lsn(200)))), "{events:?}");
        assert_eq!((commits(&events), events.len()), (vec![108, 158], 8));
        for chunk in 1..40 {
            let (cut, ended) = read(100, chunk);
            assert_eq!((format!("{:?}", strip(&cut)), ended), (format!("{:?}", strip(&events)), true), "every {chunk}");
        }
    }

    /// Without what depends on how bytes came together.
    fn strip(events: &[Event]) -> Vec<String> {
        events.iter().map(|event| format!("{event:?}").split(" op:").next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_commit_that_was_seen_is_left_out_and_what_it_announced_is_not() {
        let (events, _) = read(108, usize::MAX);
        assert_eq!(commits(&events), [158]);
        assert!(matches!(events[..3], [Event::Relation(_), Event::Begin(_), Event::Change(_)]), "{events:?}");
    }

    #[test]
    fn what_was_announced_in_one_window_does_not_hold_for_the_next() {
        let mut assembler = Assembler::new(Lsn(100));
        let mut window = Window::begin(Bounds { from: Lsn(100), upto: Lsn(160) }, &mut assembler);
        window.take(&mut BytesMut::from(&answer()[..]), &mut assembler).unwrap();
        let mut window = Window::begin(Bounds { from: Lsn(160), upto: Lsn(200) }, &mut assembler);
        let mut next = BytesMut::from(&copy_data(&[HEADER, &row(160, &begin(170))])[..]);
        next.extend(copy_data(&[&row(160, INSERT)]));
        let refused = window.take(&mut next, &mut assembler);
        assert!(matches!(refused, Err(StreamError::Order { .. })), "{refused:?}");
    }

    #[test]
    fn what_came_before_an_error_is_handed_over_before_it() {
        let whole = answer();
        let (mut assembler, mut buffer) = (Assembler::new(Lsn(100)), BytesMut::new());
        let mut window = Window::begin(Bounds { from: Lsn(100), upto: Lsn(200) }, &mut assembler);
        buffer.extend_from_slice(&whole[..whole.len() - END.len()]);
        buffer.extend_from_slice(b"E\0\0\0\x16SFATAL\0C57P01\0Mm\0\0");
        let group = window.take(&mut buffer, &mut assembler).unwrap().expect("two transactions");
        assert_eq!(commits(&group.events), [108, 158]);
        let Err(StreamError::Connection(error)) = window.take(&mut buffer, &mut assembler) else { panic!("no error") };
        assert_eq!(error.code(), Some("57P01"));
    }

    #[test]
    fn what_is_no_row_is_refused() {
        for body in [&b""[..], b"PGCOPY", &[HEADER, &[0, 3]].concat(), &[HEADER, &row(1, b"x")[..18]].concat()] {
            let mut window = Window::begin(Bounds { from: Lsn(1), upto: Lsn(2) }, &mut Assembler::default());
            assert!(window.row(body).is_err(), "{body:?}");
        }
        let critical = [SIGNATURE, &[0, 1, 0, 0], &[0; 4]].concat();
        assert!(header(&critical).is_none());
    }
}
