//! pgoutput's messages written, from PostgreSQL's documentation: the inverse of the decoder, and of nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use walhouse::{
    event::{ReplicaIdentity, Tuple, Value},
    postgres::pgoutput::{Message, Row},
};

/// Seconds from 1970 to 2000.
const EPOCH: u64 = 946_684_800;

/// Bytes of a message, and the bits of them that mean nothing to a reader.
#[derive(Default)]
pub struct Encoder {
    pub out: Vec<u8>,
    /// For some of the bytes, the bits that count.
    pub masks: Vec<(usize, u8)>,
}

impl Encoder {
    fn u16(&mut self, value: usize) {
        self.out.extend(u16::try_from(value).unwrap().to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.out.extend(value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.out.extend(value.to_be_bytes());
    }

    fn flags(&mut self, value: u8, counted: u8) {
        self.masks.push((self.out.len(), counted));
        self.out.push(value);
    }

    fn text(&mut self, text: &[u8]) {
        self.out.extend(text);
        self.out.push(0);
    }

    fn time(&mut self, time: SystemTime) {
        let epoch = UNIX_EPOCH + Duration::from_secs(EPOCH);
        let micros = match time.duration_since(epoch) {
            Ok(after) => after.as_micros() as i128,
            Err(before) => -(before.duration().as_micros() as i128),
        };
        self.out.extend(i64::try_from(micros).unwrap().to_be_bytes());
    }

    /// A schema's name, which pgoutput leaves empty for one of them; `of` is the message that it was read from.
    fn schema(&mut self, name: &str, of: &[u8]) {
        let shortened = name == "pg_catalog" && of.get(self.out.len()) == Some(&0);
        self.text(if shortened { b"" } else { name.as_bytes() });
    }

    fn row(&mut self, letter: u8, row: &Row<'_>) {
        self.out.push(letter);
        let start = self.out.len();
        self.tuple(row.tuple);
        assert!(self.out[start..] == *row.data, "a row's bytes are those that it was read from");
        let again = Tuple::parsed(row.data).unwrap();
        assert!(again.values().eq(row.tuple.values()), "a row is read again as it was");
    }

    fn tuple(&mut self, tuple: Tuple<'_>) {
        self.u16(tuple.len());
        assert_eq!(tuple.values().count(), tuple.len(), "a checked tuple gives all of its columns");
        for value in tuple.values() {
            let (kind, bytes) = match value {
                Value::Null => (b'n', None),
                Value::Unchanged => (b'u', None),
                Value::Text(bytes) => (b't', Some(bytes)),
                Value::Binary(bytes) => (b'b', Some(bytes)),
            };
            self.out.push(kind);
            if let Some(bytes) = bytes {
                self.u32(u32::try_from(bytes.len()).unwrap());
                self.out.extend(bytes);
            }
        }
    }

    fn old(&mut self, old_is_key: bool, row: &Row<'_>) {
        self.row(if old_is_key { b'K' } else { b'O' }, row);
    }

    /// Writes a message that was read from `of`. `false` for a kind of which the message does not say enough.
    pub fn message(&mut self, message: &Message<'_>, of: &[u8]) -> bool {
        match message {
            Message::Begin(transaction) => {
                self.out.push(b'B');
                self.u64(transaction.commit.0);
                self.time(transaction.time);
                self.u32(transaction.xid);
            }
            Message::Commit { commit, end, time } => {
                self.out.extend(b"C\0");
                self.u64(commit.0);
                self.u64(end.0);
                self.time(*time);
            }
            Message::Origin { commit, name } => {
                self.out.push(b'O');
                self.u64(commit.0);
                self.text(name.as_bytes());
            }
            Message::Relation(relation) => self.relation(relation, of),
            Message::Type { oid, schema, name } => {
                self.out.push(b'Y');
                self.u32(*oid);
                self.schema(schema, of);
                self.text(name.as_bytes());
            }
            Message::Insert { relation, new } => {
                self.out.push(b'I');
                self.u32(*relation);
                self.row(b'N', new);
            }
            Message::Update { relation, old, old_is_key, new } => {
                self.out.push(b'U');
                self.u32(*relation);
                old.iter().for_each(|old| self.old(*old_is_key, old));
                self.row(b'N', new);
            }
            Message::Delete { relation, old, old_is_key } => {
                self.out.push(b'D');
                self.u32(*relation);
                self.old(*old_is_key, old);
            }
            Message::Truncate { relations, cascade, restart_identity } => {
                self.out.push(b'T');
                self.u32(u32::try_from(relations.len()).unwrap());
                self.flags(u8::from(*cascade) | u8::from(*restart_identity) << 1, 3);
                relations.iter().for_each(|&relation| self.u32(relation));
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                self.out.push(b'M');
                self.flags((*transactional).into(), 1);
                self.u64(lsn.0);
                self.text(prefix);
                self.u32(u32::try_from(content.len()).unwrap());
                self.out.extend(*content);
            }
            Message::Ignored(kind) => {
                assert_eq!((*kind, of.len()), (b'A', 9), "a Stream Abort is two transaction ids");
                return false;
            }
        }
        true
    }

    fn relation(&mut self, relation: &walhouse::event::Relation, of: &[u8]) {
        self.out.push(b'R');
        self.u32(relation.oid);
        self.schema(&relation.schema, of);
        self.text(relation.name.as_bytes());
        self.out.push(match relation.identity {
            ReplicaIdentity::Default => b'd',
            ReplicaIdentity::Nothing => b'n',
            ReplicaIdentity::Full => b'f',
            ReplicaIdentity::Index => b'i',
        });
        self.u16(relation.columns.len());
        for column in &relation.columns {
            self.flags(column.key.into(), 1);
            self.text(column.name.as_bytes());
            self.u32(column.type_oid);
            self.out.extend(column.type_modifier.to_be_bytes());
        }
    }
}
