//! The source as PostgreSQL would have it: transactions with their positions, and what they leave behind.
//!
//! Everything is made up before a schedule begins. What a transaction does follows from the state that the commits before it
//! left; where its records lie does not: those of neighbours are shuffled into each other, as those of sessions are, so a later
//! commit may well have the lower records.

use crate::dice::Dice;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// The first position of the WAL that the slot sees.
pub(crate) const START: u64 = 0x1000;
/// Keys are few, so that they meet.
const KEYS: i64 = 6;
/// What the outbox table's oid is.
pub(crate) const OUTBOX: u32 = 200;

/// The replicated tables: oid, name, and whether REPLICA IDENTITY is FULL.
pub(crate) const TABLES: [(u32, &str, bool); 3] = [(100, "orders", false), (101, "items", true), (102, "users", false)];

/// What a record says.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Insert {
        table: usize,
        key: i64,
        value: String,
    },
    Update {
        table: usize,
        old: (i64, String),
        new: (i64, String),
    },
    Delete {
        table: usize,
        key: i64,
        value: String,
    },
    Truncate {
        tables: Vec<usize>,
    },
    /// A row of the outbox table.
    Row(Note),
    /// A logical message.
    Message(Note),
}

/// An event of an application.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// What it is known by in the oracle; part of its payload.
    pub(crate) token: String,
    /// What its order is kept for.
    pub(crate) key: Option<String>,
    /// Whether the application has given it an id.
    pub(crate) id: Option<String>,
    /// Whether it fits the schema of its type.
    pub(crate) fits: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) lsn: u64,
    pub(crate) op: Op,
    /// It stands in the same WAL record as the one before it.
    joined: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    /// Where its commit record begins.
    pub(crate) commit: u64,
    /// Where that ends.
    pub(crate) end: u64,
    /// When it commits, counted from the beginning.
    pub(crate) at: Duration,
    pub(crate) records: Vec<Record>,
}

/// The row of a key at a version.
pub(crate) type RowKey = (usize, i64, u128);

/// What has to be of a row: whether it is a tombstone, and its value.
pub(crate) type RowState = (bool, String);

pub(crate) struct Wal {
    pub(crate) transactions: Vec<Transaction>,
    /// Each row that may ever land.
    pub(crate) rows: HashMap<RowKey, RowState>,
    /// What the tables hold in the end.
    pub(crate) state: Vec<BTreeMap<i64, String>>,
    /// Each event, in the order of the stream, with its key.
    pub(crate) events: HashMap<String, (usize, Option<String>)>,
    /// Where it ends.
    pub(crate) tail: u64,
    /// Positions that the stream has given, and the first.
    pub(crate) positions: BTreeSet<u64>,
}

impl Transaction {
    /// The version of its record.
    pub(crate) fn version(&self, record: &Record) -> u128 {
        u128::from(self.commit) << 64 | u128::from(record.lsn)
    }

    /// The rows that it makes.
    pub(crate) fn rows(&self) -> Vec<(RowKey, RowState)> {
        let mut rows = Vec::new();
        for record in &self.records {
            let version = self.version(record);
            match &record.op {
                Op::Insert { table, key, value } => rows.push(((*table, *key, version), (false, value.clone()))),
                Op::Update { table, old, new } => {
                    rows.push(((*table, new.0, version), (false, new.1.clone())));
                    if old.0 != new.0 {
                        rows.push(((*table, old.0, version), (true, String::new())));
                    }
                }
                Op::Delete { table, key, .. } => rows.push(((*table, *key, version), (true, String::new()))),
                Op::Truncate { .. } | Op::Row(_) | Op::Message(_) => {}
            }
        }
        rows
    }

    /// The tables that it truncates, with the versions.
    pub(crate) fn truncates(&self) -> Vec<(usize, u128)> {
        let of = |record: &Record| match &record.op {
            Op::Truncate { tables } => tables.iter().map(|table| (*table, self.version(record))).collect(),
            _ => Vec::new(),
        };
        self.records.iter().flat_map(of).collect()
    }

    /// Its events.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &Note> {
        self.records.iter().filter_map(|record| match &record.op {
            Op::Row(note) | Op::Message(note) => Some(note),
            _ => None,
        })
    }
}

/// What is made up so far.
struct Maker<'a> {
    dice: &'a mut Dice,
    state: Vec<BTreeMap<i64, String>>,
    tables: usize,
    events: bool,
    count: usize,
}

impl Wal {
    /// A source that the dice decide on.
    pub(crate) fn new(dice: &mut Dice, events: bool) -> Self {
        let tables = 1 + dice.below(TABLES.len());
        let count = if dice.chance(10) { 20 + dice.below(20) } else { 2 + dice.below(12) };
        let mut maker = Maker { dice, state: vec![BTreeMap::new(); TABLES.len()], tables, events, count: 0 };
        let (mut cursor, mut at) = (START, Duration::ZERO);
        let mut transactions: Vec<Transaction> = Vec::new();
        while transactions.len() < count {
            let together = 1 + maker.dice.below(3);
            let mut group: Vec<Vec<Record>> = (0..together).map(|_| maker.transaction()).collect();
            shuffle(maker.dice, &mut group, &mut cursor);
            for records in group {
                let commit = cursor;
                cursor += 8 * (3 + maker.dice.below(6) as u64);
                at += maker.dice.pause();
                transactions.push(Transaction { commit, end: cursor, at, records });
                if maker.dice.chance(30) {
                    cursor += 8 * maker.dice.below(50) as u64;
                }
            }
        }
        let state = maker.state;
        let rows: HashMap<_, _> = transactions.iter().flat_map(Transaction::rows).collect();
        let notes = transactions.iter().flat_map(Transaction::notes).enumerate();
        let events = notes.map(|(index, note)| (note.token.clone(), (index, note.key.clone()))).collect();
        let positions = [START].into_iter().chain(transactions.iter().map(|one| one.end)).collect();
        Self { transactions, rows, state, events, tail: cursor + 64, positions }
    }
}

/// Gives records their positions: those of one transaction rise, those of several are in each other.
fn shuffle(dice: &mut Dice, group: &mut [Vec<Record>], cursor: &mut u64) {
    let mut next = vec![0; group.len()];
    loop {
        let open: Vec<usize> = (0..group.len()).filter(|&one| next[one] < group[one].len()).collect();
        let Some(&one) = dice.one_of(&open) else { return };
        let lsn = *cursor;
        loop {
            let record = &mut group[one][next[one]];
            // A message bears the end of its record, where the next one begins.
            record.lsn = lsn + if matches!(record.op, Op::Message(_)) { 16 } else { 0 };
            next[one] += 1;
            if !group[one].get(next[one]).is_some_and(|record| record.joined) {
                break;
            }
        }
        *cursor += 16 + 8 * dice.below(10) as u64;
    }
}

impl Maker<'_> {
    fn transaction(&mut self) -> Vec<Record> {
        let size = match self.dice.below(20) {
            0..3 => 0,
            19 => 30 + self.dice.below(50),
            _ => 1 + self.dice.below(5),
        };
        let mut records = Vec::new();
        while records.len() < size {
            if self.events && self.dice.chance(25) {
                let note = self.note();
                let op = if self.dice.chance(50) { Op::Row(note) } else { Op::Message(note) };
                records.push(record(op));
            } else if self.dice.chance(4) {
                records.push(record(self.truncate()));
            } else if self.dice.chance(5) {
                self.several(&mut records);
            } else {
                records.push(record(self.row()));
            }
        }
        records
    }

    fn note(&mut self) -> Note {
        self.count += 1;
        let token = format!("e{}.", self.count);
        let key = self.dice.chance(70).then(|| format!("k{}", self.dice.below(3)));
        let id = self.dice.chance(40).then(|| format!("018f3b5e-7c1a-8000-8000-{:012x}", self.count));
        Note { token, key, id, fits: !self.dice.chance(8) }
    }

    fn truncate(&mut self) -> Op {
        let chosen: Vec<usize> = (0..self.tables).filter(|_| self.dice.chance(50)).collect();
        let tables = if chosen.is_empty() { vec![self.dice.below(self.tables)] } else { chosen };
        tables.iter().for_each(|&table| self.state[table].clear());
        Op::Truncate { tables }
    }

    fn value(&mut self) -> String {
        self.count += 1;
        let padding = if self.dice.chance(10) { self.dice.below(400) } else { 0 };
        format!("v{}{}", self.count, "x".repeat(padding))
    }

    /// Rows that COPY or one INSERT has put into one record.
    fn several(&mut self, records: &mut Vec<Record>) {
        let table = self.dice.below(self.tables);
        let free: Vec<i64> = (0..KEYS).filter(|key| !self.state[table].contains_key(key)).collect();
        for (index, key) in free.into_iter().enumerate() {
            let value = self.value();
            self.state[table].insert(key, value.clone());
            records.push(Record { joined: index > 0, ..record(Op::Insert { table, key, value }) });
        }
    }

    fn row(&mut self) -> Op {
        let table = self.dice.below(self.tables);
        let key = self.dice.below(KEYS as usize) as i64;
        let value = self.value();
        let Some(before) = self.state[table].get(&key).cloned() else {
            self.state[table].insert(key, value.clone());
            return Op::Insert { table, key, value };
        };
        let free: Vec<i64> = (0..KEYS).filter(|key| !self.state[table].contains_key(key)).collect();
        match (self.dice.below(10), self.dice.one_of(&free).copied()) {
            (0..3, _) => {
                self.state[table].remove(&key);
                Op::Delete { table, key, value: before }
            }
            (3..6, Some(other)) => {
                self.state[table].remove(&key);
                self.state[table].insert(other, value.clone());
                Op::Update { table, old: (key, before), new: (other, value) }
            }
            _ => {
                self.state[table].insert(key, value.clone());
                Op::Update { table, old: (key, before), new: (key, value) }
            }
        }
    }
}

fn record(op: Op) -> Record {
    Record { lsn: 0, op, joined: false }
}
