//! Transactions that are read by one reader after another, each of which may be interrupted anywhere.
//!
//! The input says which transactions there are, in which pieces they arrive and where a reader is given up. Whatever it says,
//! each change is handed over once and in its place, and the position lies behind whole transactions alone. A transaction that
//! comes back as another one is noticed.

use super::{input::Input, wire::tell};
use bytes::{BufMut, BytesMut};
use std::collections::BTreeSet;
use walhouse::{
    event::{Event, Lsn},
    postgres::assembler::{Assembler, StreamError},
};

/// Bytes of WAL of a transaction.
const STEP: u64 = 1000;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut source = Source::new(&mut input);
    let mut reader = Reader { assembler: Assembler::new(Lsn(1)), told: Vec::new(), handed: 0 };
    let tampers = input.below(8) == 7;
    let mut tampered = false;
    for _ in 0..input.below(5) {
        let stream = source.stream(reader.assembler.position());
        let end = usize::from(input.byte()) * usize::from(input.below(16) + 1);
        let read = reader.read(&stream[..end.min(stream.len())], input.byte(), input.below(4) == 3);
        if let Err(error) = read {
            return assert!(tampered, "{error}");
        }
        reader.assembler.begin_anew();
        if tampers && !tampered {
            tampered = source.forget_the_first(reader.assembler.position(), reader.handed);
        }
    }
    let stream = source.stream(reader.assembler.position());
    match reader.read(&stream, input.byte(), false) {
        Err(StreamError::Again { .. }) if tampered => return,
        read => read.unwrap(),
    }
    assert!(!tampered, "a transaction came back as another one");
    assert_eq!(reader.told, source.expected());
    assert!(reader.assembler.is_between_transactions());
    // What says that the server is idle does not come once more after an interruption.
    let last = source.transactions.last().unwrap();
    assert!((last.end()..=last.idle()).contains(&reader.assembler.position().0));
}

/// What is in the WAL.
struct Source {
    transactions: Vec<Transaction>,
}

struct Transaction {
    base: u64,
    changes: Vec<Change>,
    /// Whether the server says that it is idle after it.
    is_idle_after: bool,
}

struct Change {
    record: u64,
    relation: u32,
    body: Vec<u8>,
    expected: String,
}

impl Source {
    fn new(input: &mut Input<'_>) -> Self {
        let transactions = (0..u64::from(input.below(6)) + 1).map(|at| {
            let base = (at + 1) * STEP;
            let changes = (0..u64::from(input.below(12))).map(|change| Change::new(input, base + 10 * (change + 1)));
            Transaction { base, changes: changes.collect(), is_idle_after: input.below(3) == 1 }
        });
        Self { transactions: transactions.collect() }
    }

    /// What a server sends that was asked for what comes after `position`.
    fn stream(&self, position: Lsn) -> BytesMut {
        let (mut out, mut announced) = (BytesMut::new(), BTreeSet::new());
        for transaction in self.transactions.iter().filter(|transaction| transaction.end() > position.0) {
            let Transaction { base, changes, .. } = transaction;
            let mut begin = b"B".to_vec();
            begin.extend(transaction.commit().to_be_bytes());
            begin.extend([0; 8]);
            begin.extend((*base as u32).to_be_bytes());
            send(&mut out, *base, &begin);
            for change in changes {
                if change.relation != 0 && announced.insert(change.relation) {
                    let mut relation = b"R".to_vec();
                    relation.extend(change.relation.to_be_bytes());
                    relation.extend(b"public\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff");
                    send(&mut out, 0, &relation);
                }
                send(&mut out, change.record, &change.body);
                if change.record % 30 == 0 {
                    alive(&mut out, change.record + 5);
                }
            }
            let mut commit = b"C\0".to_vec();
            commit.extend(transaction.commit().to_be_bytes());
            commit.extend(transaction.end().to_be_bytes());
            commit.extend([0; 8]);
            send(&mut out, transaction.commit(), &commit);
            if transaction.is_idle_after {
                alive(&mut out, transaction.idle());
            }
        }
        out
    }

    /// Leaves the first change out of the transaction that comes next, if there is one that was handed over already.
    fn forget_the_first(&mut self, position: Lsn, handed: usize) -> bool {
        let next = self.transactions.iter_mut().find(|transaction| transaction.end() > position.0);
        let next = next.filter(|next| handed > 0 && !next.changes.is_empty());
        next.map(|next| next.changes.remove(0)).is_some()
    }

    fn expected(&self) -> Vec<String> {
        let mut expected = Vec::new();
        for transaction in &self.transactions {
            expected.push(format!("begin {}", transaction.base));
            expected.extend(transaction.changes.iter().map(|change| change.expected.clone()));
            expected.push(format!("commit {}", Lsn(transaction.end())));
        }
        expected
    }
}

impl Transaction {
    fn commit(&self) -> u64 {
        self.base + 900
    }

    fn end(&self) -> u64 {
        self.base + 948
    }

    fn idle(&self) -> u64 {
        self.base + 960
    }
}

impl Change {
    fn new(input: &mut Input<'_>, record: u64) -> Self {
        let relation = 16_384 + u32::from(input.below(3));
        let length = usize::from(input.below(20));
        let (new, old) = (tuple(input.bytes(length)), tuple(&record.to_be_bytes()));
        let id = relation.to_be_bytes();
        let at = Lsn(record);
        let part = |letter: &[u8], tuple: &[u8]| [letter, tuple].concat();
        let change = |letter: &[u8], parts: &[Vec<u8>], op: String| Self {
            record,
            relation,
            body: [letter, &id, &parts.concat()].concat(),
            expected: format!("{relation} at {at}: {op}"),
        };
        match input.below(7) {
            0 => change(b"I", &[part(b"N", &new)], format!("insert {new:02x?}")),
            1 => change(b"U", &[part(b"N", &new)], format!("update None false {new:02x?}")),
            2 => change(b"U", &[part(b"K", &old), part(b"N", &new)], {
                format!("update {:?} true {new:02x?}", Some(format!("{old:02x?}")))
            }),
            3 => change(b"U", &[part(b"O", &old), part(b"N", &new)], {
                format!("update {:?} false {new:02x?}", Some(format!("{old:02x?}")))
            }),
            4 => change(b"D", &[part(b"K", &old)], format!("delete {old:02x?} true")),
            5 => {
                let body = [b"T\0\0\0\x01\0".as_slice(), &id].concat();
                let expected = format!("truncate at {at} [{relation}]");
                Self { record, relation: 0, body, expected }
            }
            _ => {
                let mut body = b"M\x01".to_vec();
                body.extend(record.to_be_bytes());
                body.extend(b"audit\0");
                body.extend((new.len() as u32).to_be_bytes());
                body.extend(&new);
                let expected = format!("message at {at} true {:02x?} {new:02x?}", b"audit");
                Self { record, relation: 0, body, expected }
            }
        }
    }
}

/// One column of text.
fn tuple(text: &[u8]) -> Vec<u8> {
    [b"\0\x01t\0\0\0".as_slice(), &[text.len() as u8], text].concat()
}

fn send(out: &mut BytesMut, at: u64, body: &[u8]) {
    out.put_u8(b'd');
    out.put_u32(4 + 25 + body.len() as u32);
    out.put_u8(b'w');
    out.put_u64(at);
    out.put_u64(at);
    out.put_u64(0);
    out.put_slice(body);
}

/// What a server says now and then, inside of transactions too.
fn alive(out: &mut BytesMut, end: u64) {
    out.put_slice(b"d\0\0\0\x16k");
    out.put_u64(end);
    out.put_slice(&[0; 9]);
}

struct Reader {
    assembler: Assembler,
    told: Vec<String>,
    /// Changes of the transaction that is not at its end.
    handed: usize,
}

impl Reader {
    fn read(&mut self, stream: &[u8], piece: u8, to_commit: bool) -> Result<(), StreamError> {
        let mut buffer = BytesMut::new();
        for piece in stream.chunks(usize::from(piece) + 1) {
            let position = self.assembler.position();
            buffer.extend_from_slice(piece);
            let taken = self.assembler.take(&mut buffer, to_commit)?;
            let now = self.assembler.position();
            assert!(now >= position, "a position moved back");
            assert!(now.0 == 1 || [948, 960].contains(&(now.0 % STEP)), "a position inside of a transaction");
            let Some(group) = taken.group else { continue };
            for event in &group.events {
                self.note(match event {
                    Event::Relation(_) | Event::Idle(_) => continue,
                    Event::Begin(begun) => format!("begin {}", begun.xid),
                    Event::Commit { end } => {
                        assert!(*end <= self.assembler.position());
                        format!("commit {end}")
                    }
                    Event::Truncate { record, relations } => format!("truncate at {record} {relations:?}"),
                    other => tell(other, &group.data),
                });
            }
        }
        Ok(())
    }

    fn note(&mut self, told: String) {
        self.handed = if told.starts_with("begin") || told.starts_with("commit") { 0 } else { self.handed + 1 };
        self.told.push(told);
    }
}
