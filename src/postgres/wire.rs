//! The framing around pgoutput: backend frames, and inside CopyData the messages of the streaming
//! replication protocol.
//!
//! Pure: bytes in, borrowed parts out, nothing kept and nothing allocated. A length is checked
//! before it is believed, so a server that talks nonsense is an error at the fifth byte, not a
//! buffer of two gigabytes. As in [`pgoutput`](super::pgoutput), what holds a payload has no
//! `Debug`, and errors name fields, never contents.
//!
//! Clocks cross this boundary as [`SystemTime`]; on the wire they are microseconds since
//! 2000-01-01 UTC.
//!
//! Source: PostgreSQL's documentation, "Message Formats" and "Streaming Replication Protocol".

use crate::event::Lsn;
use bytes::{BufMut, BytesMut};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A tag, and a length that counts itself but not the tag.
const HEADER: usize = 1 + 4;

/// The most that a frame's length field may say. PostgreSQL assembles a message in one buffer,
/// which it never lets grow past 1 GiB; the rest is room for what goes around it.
const MAX_LENGTH: usize = (1 << 30) + 1024;

/// From 1970-01-01 to 2000-01-01.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Bytes that do not follow the protocol. The connection they came from is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame's length does not even cover itself, or is beyond what the server can send.
    #[error("a backend message of kind {tag:#04x} claims a length of {length} bytes, which no server sends")]
    Length {
        /// The frame's tag.
        tag: u8,
        /// What its length field says.
        length: i32,
    },
    /// CopyData without a byte in it.
    #[error("an empty CopyData message in the replication stream")]
    Empty,
    /// CopyData that holds neither XLogData nor a keepalive.
    #[error("a message of unknown kind {0:#04x} in the replication stream")]
    Unknown(u8),
    /// The message ends before the field does.
    #[error("the replication message {message} ends before the end of its {field}")]
    Truncated {
        /// The message's name.
        message: &'static str,
        /// What was being read.
        field: &'static str,
    },
    /// The field holds what the protocol does not allow there.
    #[error("the replication message {message} has an invalid {field}")]
    Invalid {
        /// The message's name.
        message: &'static str,
        /// What was being read.
        field: &'static str,
    },
    /// Bytes follow the message's last field.
    #[error("the replication message {message} goes on after its {field}, which is its last field")]
    Trailing {
        /// The message's name.
        message: &'static str,
        /// The field that should have been its last.
        field: &'static str,
    },
}

/// One message of the backend.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// Its kind: `d` is CopyData.
    pub tag: u8,
    /// What it holds.
    pub body: &'a [u8],
    /// How many bytes it takes up, its header included.
    pub len: usize,
}

/// How many bytes the frame at the front of `buf` takes up, its header included, whether they
/// are all there or not. `None` while its header, 5 bytes, is incomplete.
pub fn frame_len(buf: &[u8]) -> Result<Option<usize>, WireError> {
    let Some((&[tag, length @ ..], _)) = buf.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = i32::from_be_bytes(length);
    match usize::try_from(length) {
        Ok(valid @ 4..=MAX_LENGTH) => Ok(Some(1 + valid)),
        _ => Err(WireError::Length { tag, length }),
    }
}

/// The frame at the front of `buf`; `None` while it is incomplete.
pub fn next_frame(buf: &[u8]) -> Result<Option<Frame<'_>>, WireError> {
    let Some(len) = frame_len(buf)? else { return Ok(None) };
    let Some((&[tag, ..], body)) = buf.get(..len).and_then(|whole| whole.split_first_chunk::<HEADER>()) else {
        return Ok(None);
    };
    Ok(Some(Frame { tag, body, len }))
}

/// What the server says inside CopyData while it streams.
#[derive(Clone, Copy)]
pub enum ReplicationMessage<'a> {
    /// XLogData: for a logical slot, one message of the output plugin.
    XLogData {
        /// Where the WAL record begins that the payload is about; zero for what is about none,
        /// such as pgoutput's Relation.
        start: Lsn,
        /// The server's idea of its WAL's end. Logical decoding repeats `start` here.
        end: Lsn,
        /// The server's clock when it sent this.
        clock: SystemTime,
        /// The plugin's message.
        payload: &'a [u8],
    },
    /// A primary keepalive.
    Keepalive {
        /// How far the server has read the WAL for this slot.
        end: Lsn,
        /// The server's clock when it sent this.
        clock: SystemTime,
        /// Whether the server wants a status update at once, or it will soon hang up.
        reply_requested: bool,
    },
}

impl<'a> ReplicationMessage<'a> {
    /// Reads the body of one CopyData.
    pub fn parse(body: &'a [u8]) -> Result<Self, WireError> {
        let (&kind, rest) = body.split_first().ok_or(WireError::Empty)?;
        match kind {
            b'w' => {
                let message = "XLogData";
                let (start, rest) = lsn(rest, message, "start LSN")?;
                let (end, rest) = lsn(rest, message, "end LSN")?;
                let (clock, payload) = time(rest, message, "clock")?;
                Ok(Self::XLogData { start, end, clock, payload })
            }
            b'k' => {
                let (message, field) = ("keepalive", "reply request");
                let (end, rest) = lsn(rest, message, "end LSN")?;
                let (clock, rest) = time(rest, message, "clock")?;
                match rest {
                    // Anything but 0 counts as a request: to answer unasked costs nothing.
                    &[reply] => Ok(Self::Keepalive { end, clock, reply_requested: reply != 0 }),
                    [] => Err(WireError::Truncated { message, field }),
                    _ => Err(WireError::Trailing { message, field }),
                }
            }
            unknown => Err(WireError::Unknown(unknown)),
        }
    }
}

/// A standby status update: how far the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Everything before this position has been received.
    pub write: Lsn,
    /// Everything before this position is durable here: the server may forget it.
    pub flush: Lsn,
    /// Everything before this position can be queried here.
    pub apply: Lsn,
    /// This machine's clock.
    pub clock: SystemTime,
    /// Whether the server is to answer at once with a keepalive.
    pub reply_requested: bool,
}

impl StatusUpdate {
    /// Its length inside CopyData: a kind, three positions, a clock, a flag.
    const BODY: i32 = 1 + 3 * 8 + 8 + 1;

    /// Appends it to `out` as one whole CopyData frame.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_i32(4 + Self::BODY);
        out.put_u8(b'r');
        for position in [self.write, self.flush, self.apply] {
            out.put_u64(position.0);
        }
        out.put_i64(micros_from_time(self.clock));
        out.put_u8(u8::from(self.reply_requested));
    }
}

/// The time `micros` microseconds after 2000-01-01 UTC; `None` if this system can not express it.
pub(super) fn time_from_micros(micros: i64) -> Option<SystemTime> {
    let epoch = UNIX_EPOCH.checked_add(POSTGRES_EPOCH)?;
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) }
}

/// Microseconds from 2000-01-01 UTC to `time`, or the nearest number that fits.
fn micros_from_time(time: SystemTime) -> i64 {
    let since_unix = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    };
    since_unix.saturating_sub(946_684_800_000_000)
}

type Read<'a, T> = Result<(T, &'a [u8]), WireError>;

fn lsn<'a>(bytes: &'a [u8], message: &'static str, field: &'static str) -> Read<'a, Lsn> {
    let (value, rest) = bytes.split_first_chunk().ok_or(WireError::Truncated { message, field })?;
    Ok((Lsn(u64::from_be_bytes(*value)), rest))
}

fn time<'a>(bytes: &'a [u8], message: &'static str, field: &'static str) -> Read<'a, SystemTime> {
    let (value, rest) = bytes.split_first_chunk().ok_or(WireError::Truncated { message, field })?;
    let time = time_from_micros(i64::from_be_bytes(*value)).ok_or(WireError::Invalid { message, field })?;
    Ok((time, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const XLOG_DATA: &[u8] = b"w\
        \x00\x00\x00\x16\xb3\x74\xd8\x48\
        \x00\x00\x00\x16\xb3\x74\xd8\x78\
        \x00\x00\x00\x00\x00\x0f\x42\x40\
        payload";
    const KEEPALIVE: &[u8] = b"k\
        \x00\x00\x00\x16\xb3\x74\xd8\x48\
        \xff\xff\xff\xff\xff\xff\xff\xff\
        \x01";

    fn year_2000() -> SystemTime {
        UNIX_EPOCH + POSTGRES_EPOCH
    }

    fn error(body: &[u8]) -> WireError {
        ReplicationMessage::parse(body).err().expect("no message")
    }

    #[test]
    fn a_frame_is_split_from_what_follows_it() {
        let buf = b"d\x00\x00\x00\x07abcZ\x00\x00\x00\x05I";
        let frame = next_frame(buf).unwrap().unwrap();
        assert_eq!((frame.tag, frame.body, frame.len), (b'd', &b"abc"[..], 8));
        let frame = next_frame(&buf[frame.len..]).unwrap().unwrap();
        assert_eq!((frame.tag, frame.body, frame.len), (b'Z', &b"I"[..], 6));
    }

    #[test]
    fn a_frame_without_a_body_is_complete_with_its_header() {
        let frame = next_frame(b"c\x00\x00\x00\x04").unwrap().unwrap();
        assert_eq!((frame.tag, frame.body, frame.len), (b'c', &b""[..], 5));
    }

    #[test]
    fn an_incomplete_frame_says_how_long_it_will_be_once_its_header_is_there() {
        let whole = b"d\x00\x00\x00\x07abc";
        for end in 0..whole.len() {
            let buf = &whole[..end];
            assert!(next_frame(buf).unwrap().is_none(), "cut at {end}");
            assert_eq!(frame_len(buf), Ok((end >= 5).then_some(8)), "cut at {end}");
        }
    }

    #[test]
    fn a_length_that_no_server_sends_is_an_error_at_once() {
        for length in [i32::MIN, -1, 0, 3, (1 << 30) + 1025, i32::MAX] {
            let buf = [&b"d"[..], &length.to_be_bytes()].concat();
            let expected = WireError::Length { tag: b'd', length };
            assert_eq!(frame_len(&buf), Err(expected));
            assert_eq!(next_frame(&buf).err(), Some(expected));
        }
        let largest = [&b"d"[..], &(1i32 << 30).to_be_bytes()].concat();
        assert_eq!(frame_len(&largest), Ok(Some((1 << 30) + 1)));
    }

    #[test]
    fn xlog_data_carries_a_payload_and_its_position() {
        let Ok(ReplicationMessage::XLogData { start, end, clock, payload }) = ReplicationMessage::parse(XLOG_DATA)
        else {
            panic!("no XLogData")
        };
        assert_eq!((start, end), (Lsn(0x16_b374_d848), Lsn(0x16_b374_d878)));
        assert_eq!((clock, payload), (year_2000() + Duration::from_secs(1), &b"payload"[..]));
    }

    #[test]
    fn xlog_data_may_be_empty() {
        let parsed = ReplicationMessage::parse(&XLOG_DATA[..25]);
        assert!(matches!(parsed, Ok(ReplicationMessage::XLogData { payload: b"", .. })));
    }

    #[test]
    fn a_keepalive_may_ask_for_a_reply() {
        for (flag, expected) in [(0, false), (1, true)] {
            let body = [&KEEPALIVE[..17], &[flag]].concat();
            let Ok(ReplicationMessage::Keepalive { end, clock, reply_requested }) = ReplicationMessage::parse(&body)
            else {
                panic!("no keepalive")
            };
            assert_eq!((end, reply_requested), (Lsn(0x16_b374_d848), expected));
            assert_eq!(clock, year_2000() - Duration::from_micros(1));
        }
    }

    #[test]
    fn a_replication_message_cut_anywhere_or_too_long_is_an_error_that_names_it() {
        assert_eq!(error(b""), WireError::Empty);
        assert_eq!(error(b"s\x00"), WireError::Unknown(b's'));
        for (name, bytes) in [("XLogData", &XLOG_DATA[..25]), ("keepalive", KEEPALIVE)] {
            for end in 1..bytes.len() {
                let error = error(&bytes[..end]);
                assert!(matches!(error, WireError::Truncated { message, .. } if message == name), "cut at {end}");
            }
        }
        let trailing = WireError::Trailing { message: "keepalive", field: "reply request" };
        assert_eq!(error(&[KEEPALIVE, b"\0"].concat()), trailing);
    }

    #[test]
    fn a_status_update_is_one_copy_data_frame() {
        let mut out = BytesMut::from(&b"before"[..]);
        let clock = year_2000() + Duration::from_micros(0x0102_0304);
        let update = StatusUpdate { write: Lsn(3), flush: Lsn(2), apply: Lsn(1), clock, reply_requested: true };
        update.encode(&mut out);
        let expected = b"before\
            d\x00\x00\x00\x26\
            r\
            \x00\x00\x00\x00\x00\x00\x00\x03\
            \x00\x00\x00\x00\x00\x00\x00\x02\
            \x00\x00\x00\x00\x00\x00\x00\x01\
            \x00\x00\x00\x00\x01\x02\x03\x04\
            \x01";
        assert_eq!(&out[..], expected);
        let frame = next_frame(&out[6..]).unwrap().unwrap();
        assert_eq!((frame.tag, frame.len), (b'd', out.len() - 6));
    }

    #[test]
    fn a_clock_out_of_range_is_sent_as_the_nearest_in_range() {
        let far = Duration::from_secs(1 << 61);
        for (time, expected) in [(UNIX_EPOCH.checked_add(far), i64::MAX), (UNIX_EPOCH.checked_sub(far), i64::MIN)] {
            // Near the end of the range the distance between the epochs is lost.
            let micros = time.map_or(expected, micros_from_time);
            assert!(micros.abs_diff(expected) <= 946_684_800_000_000);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ReplicationMessage::parse(&bytes);
            if let Ok(Some(frame)) = next_frame(&bytes) {
                prop_assert!(frame.len <= bytes.len());
                prop_assert_eq!(frame.len, frame.body.len() + HEADER);
            }
        }

        #[test]
        fn a_short_frame_is_found_wherever_the_buffer_ends(body in proptest::collection::vec(any::<u8>(), 0..40), extra in 0usize..9) {
            let length = i32::try_from(body.len() + 4).unwrap();
            let buf = [&b"d"[..], &length.to_be_bytes(), &body, &vec![0; extra]].concat();
            prop_assert_eq!(next_frame(&buf).unwrap().map(|frame| frame.body.to_vec()), Some(body));
        }

        #[test]
        fn any_clock_of_the_server_comes_back(micros in any::<i64>()) {
            if let Some(time) = time_from_micros(micros) {
                let in_range = micros.checked_add(946_684_800_000_000).is_some();
                prop_assert!(!in_range || micros_from_time(time) == micros);
            }
        }
    }
}
