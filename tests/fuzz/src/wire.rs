//! The bytes of a replication connection: frames, what is in them, and the groups that become of them.
//!
//! Whatever the bytes, it makes no difference in which pieces they arrive, no position moves back, and every frame is as long
//! as its header says.

use super::alloc::peak;
use bytes::{Bytes, BytesMut};
use std::time::{Duration, UNIX_EPOCH};
use walhouse::{
    event::{Event, Lsn, Op, Span},
    postgres::{
        assembler::Assembler,
        wire::{ReplicationMessage, StatusUpdate, frame_len, next_frame},
    },
};

/// An event takes 48 bytes, and the shortest message that makes one 30; the vector of events may be twice as long as it
/// is full, and is copied as it grows. What a server says in an error is copied too.
const TIMES: usize = 16;

pub fn run(data: &[u8]) {
    frames(data);
    status(data);
    let whole = assembled(data, &[data.len()]);
    let first = usize::from(data.first().copied().unwrap_or(1)).max(1);
    for pieces in [vec![1], vec![first], vec![7, first, 64, 3]] {
        if data.len() > 4096 && pieces[0] < 7 {
            continue;
        }
        assert!(assembled(data, &pieces) == whole, "in pieces of {pieces:?} it is another stream");
    }
}

fn frames(mut data: &[u8]) {
    loop {
        let length = frame_len(data);
        assert_eq!(length.is_ok_and(|length| length.is_some()), data.len() >= 5 && length.is_ok());
        let Ok(Some(frame)) = next_frame(data) else {
            return assert!(
                length.is_err() || length.is_ok_and(|length| length.is_none_or(|length| length > data.len()))
            );
        };
        assert_eq!((Ok(Some(frame.len)), frame.tag), (length, data[0]));
        let said = u32::from_be_bytes([data[1], data[2], data[3], data[4]]) as usize;
        assert_eq!((frame.len, frame.body), (said + 1, &data[5..said + 1]));
        message(frame.body);
        data = &data[frame.len..];
    }
}

fn message(body: &[u8]) {
    let word = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
    match ReplicationMessage::parse(body) {
        Ok(ReplicationMessage::XLogData { start, end, payload, .. }) => {
            assert_eq!((body[0], start.0, end.0, payload), (b'w', word(1), word(9), &body[25..]));
        }
        Ok(ReplicationMessage::Keepalive { end, reply_requested, .. }) => {
            assert_eq!((body.len(), body[0], end.0, reply_requested), (18, b'k', word(1), body[17] != 0));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A status of what the input says is read by PostgreSQL as it was meant.
fn status(data: &[u8]) {
    let Some((words, rest)) = data.split_first_chunk::<32>() else { return };
    let word = |at: usize| u64::from_be_bytes(words[at * 8..at * 8 + 8].try_into().unwrap());
    let since = Duration::from_micros(word(3) >> 14);
    let reply_requested = rest.first().is_some_and(|byte| byte & 1 == 1);
    let clock = UNIX_EPOCH + Duration::from_secs(946_684_800) + since;
    let (write, flush, apply) = (Lsn(word(0)), Lsn(word(1)), Lsn(word(2)));
    let mut out = BytesMut::new();
    StatusUpdate { write, flush, apply, clock, reply_requested }.encode(&mut out);
    let frame = next_frame(&out).unwrap().unwrap();
    let mut expected = b"r".to_vec();
    expected.extend_from_slice(&words[..24]);
    expected.extend_from_slice(&(since.as_micros() as u64).to_be_bytes());
    expected.push(reply_requested.into());
    assert_eq!((frame.tag, frame.len, frame.body), (b'd', out.len(), expected.as_slice()));
}

/// All that a reader learns of a stream that arrives in pieces of these lengths, again and again.
fn assembled(data: &[u8], pieces: &[usize]) -> (Vec<String>, Lsn, Option<String>) {
    let mut assembler = Assembler::new(Lsn(1));
    let (mut buffer, mut told) = (BytesMut::new(), Vec::new());
    let (mut position, mut rest) = (assembler.position(), data);
    for &piece in pieces.iter().cycle() {
        let (piece, after) = rest.split_at(piece.min(rest.len()));
        buffer.extend_from_slice(piece);
        rest = after;
        let length = buffer.len();
        let (taken, bytes) = peak(|| assembler.take(&mut buffer, false));
        assert!(bytes <= TIMES * length + 4096, "{bytes} bytes for {length}");
        let error = match taken {
            Ok(taken) => {
                let group = taken.group.map(|group| (group.events, group.data));
                if let Some((events, data)) = group {
                    assert!(!events.is_empty());
                    told.extend(events.iter().map(|event| tell(event, &data)));
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        assert!(assembler.position() >= position, "a position moved back");
        position = assembler.position();
        if error.is_some() {
            // What came before the error in one piece is not handed over with it.
            return (Vec::new(), Lsn::ZERO, error);
        }
        if rest.is_empty() {
            break;
        }
    }
    // Only the last of several idle marks in a row is told, if they come together.
    let mut kept: Vec<String> = Vec::new();
    for one in told {
        if one.starts_with("Idle") && kept.last().is_some_and(|last| last.starts_with("Idle")) {
            kept.pop();
        }
        kept.push(one);
    }
    (kept, position, None)
}

/// An event with the bytes that it points at instead of their places.
pub fn tell(event: &Event, data: &Bytes) -> String {
    let span = |span: Span| {
        let bytes = span.bytes(data);
        assert_eq!(bytes.len(), span.len as usize, "an event points outside of its group");
        format!("{bytes:02x?}")
    };
    match event {
        Event::Change(change) => {
            let op = match change.op {
                Op::Insert { new } => format!("insert {}", span(new)),
                Op::Update { old, old_is_key, new } => {
                    format!("update {:?} {old_is_key} {}", old.map(span), span(new))
                }
                Op::Delete { old, old_is_key } => format!("delete {} {old_is_key}", span(old)),
            };
            format!("{} at {}: {op}", change.relation, change.record)
        }
        Event::Message { record, transactional, prefix, content } => {
            format!("message at {record} {transactional} {} {}", span(*prefix), span(*content))
        }
        other => format!("{other:?}"),
    }
}
