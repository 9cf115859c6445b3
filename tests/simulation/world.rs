//! What is true in a schedule, and the oracle that looks at every step of it.
//!
//! The made-up servers tell it what has become durable in them and what they were told; it knows from the source what that
//! may be. What it holds against the promises of walhouse:
//!
//! - what PostgreSQL is told ≤ the stored checkpoint ≤ what both destinations hold, and none of them falls;
//! - the checkpoint is the end of a commit or an idle mark, the stored ceiling is above whatever was sent;
//! - every row that lands is one that the source made, with its payload, at its version, which begins with its commit;
//! - every event is one that was committed, under one id, and the first deliveries of a key are in the order of the commits.

use crate::{
    dice::Dice,
    wal::{RowKey, RowState, START, TABLES, Wal},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How much goes wrong, in percent of what can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub(crate) postgres: u32,
    pub(crate) clickhouse: u32,
    pub(crate) sqs: u32,
}

impl Trouble {
    pub(crate) const NONE: Self = Self { postgres: 0, clickhouse: 0, sqs: 0 };
}

/// The stored checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) revision: u64,
    pub(crate) lsn: u64,
    pub(crate) queue_lsn: u64,
    pub(crate) ceiling: u64,
}

/// A row as ClickHouse holds it, in the order of the inserts.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    pub(crate) version: u128,
    pub(crate) deleted: bool,
    pub(crate) value: String,
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) trouble: Trouble,
    pub(crate) wal: Wal,
    /// Whether there is a queue lane.
    pub(crate) events: bool,
    /// What the slot has been told, which it sends no more.
    pub(crate) confirmed: u64,
    pub(crate) stored: Stored,
    /// What each target holds, by key.
    pub(crate) targets: Vec<BTreeMap<i64, Vec<Landed>>>,
    /// What has ever landed, since a TRUNCATE may take it away again.
    landed: HashSet<RowKey>,
    truncated: HashSet<(usize, u128)>,
    /// The events in a queue, with their ids.
    sent: HashMap<String, String>,
    /// Messages that no queue but that of dead letters takes.
    pub(crate) refused: HashSet<String>,
    /// Of each key the number of the event that came last.
    order: HashMap<String, usize>,
    /// The highest commit of which anything has left a process.
    out: u64,
    /// So many transactions are known to be durable in ClickHouse, and in SQS.
    covered: (usize, usize),
    /// Is cancelled when a promise is broken.
    pub(crate) broken: CancellationToken,
    pub(crate) violation: Option<String>,
    history: Option<Vec<String>>,
    began: Instant,
}

/// The world, as the servers share it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(mut dice: Dice, events: bool, recorded: bool) -> Self {
        let wal = Wal::new(&mut dice, events);
        Self(Arc::new(Mutex::new(World {
            dice,
            trouble: Trouble::NONE,
            wal,
            events,
            confirmed: START,
            stored: Stored::default(),
            targets: vec![BTreeMap::new(); TABLES.len()],
            landed: HashSet::new(),
            truncated: HashSet::new(),
            sent: HashMap::new(),
            refused: HashSet::new(),
            order: HashMap::new(),
            out: 0,
            covered: (0, 0),
            broken: CancellationToken::new(),
            violation: None,
            history: recorded.then(Vec::new),
            began: Instant::now(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// How long it has lasted.
    pub(crate) fn now(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    /// Notes what happens, if somebody wants to read it.
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let at = self.began.elapsed();
        if let Some(history) = &mut self.history {
            history.push(format!("{:>9.3} {}", at.as_secs_f64(), what()));
        }
    }

    pub(crate) fn take_history(&mut self) -> Vec<String> {
        self.history.take().unwrap_or_default()
    }

    /// A promise is broken.
    pub(crate) fn fail(&mut self, what: impl Display) {
        if self.violation.is_none() {
            let what = what.to_string();
            self.note(|| format!("BROKEN: {what}"));
            self.violation = Some(what);
            self.broken.cancel();
        }
    }

    /// PostgreSQL is told that it may forget what is before `position`.
    pub(crate) fn acknowledged(&mut self, position: u64) {
        if position > self.stored.lsn {
            self.fail(format!("PostgreSQL was told {position:x}, and {:x} is stored", self.stored.lsn));
        }
        if position < self.confirmed {
            self.fail(format!("PostgreSQL was told {position:x} after {:x}", self.confirmed));
        }
        if position > self.confirmed {
            self.note(|| format!("slot      confirmed {position:x}"));
        }
        self.confirmed = self.confirmed.max(position);
    }

    /// A row of the checkpoint is durable.
    pub(crate) fn checkpoint(&mut self, row: Stored) {
        self.note(|| format!("stored    {row:x?}"));
        let before = self.stored;
        // As the row is read back: by its revision, and then by its position.
        if (row.revision, row.lsn) < (before.revision, before.lsn) {
            return;
        }
        self.stored = row;
        if row.lsn < before.lsn || row.queue_lsn < before.queue_lsn {
            self.fail(format!("the checkpoint falls: {before:x?}, {row:x?}"));
        }
        if row.ceiling < row.lsn.max(row.queue_lsn).max(self.out) {
            let out = self.out;
            self.fail(format!("the ceiling is below what is stored, or below {out:x}, which was sent: {row:x?}"));
        }
        for position in [row.lsn, row.queue_lsn] {
            if position != 0 && !self.wal.positions.contains(&position) {
                self.fail(format!("{position:x} is no position that the stream gave"));
            }
        }
        self.cover(row);
    }

    /// Whatever the next start leaves out is durable.
    fn cover(&mut self, row: Stored) {
        let position = row.lsn.max(if self.events { row.queue_lsn } else { 0 });
        let mut missing = None;
        let (rows, events) = &mut self.covered;
        while let Some(one) = self.wal.transactions.get(*rows).filter(|one| one.commit < row.lsn) {
            let row = one.rows().into_iter().find(|(row, _)| !self.landed.contains(row));
            let truncate = one.truncates().into_iter().find(|one| !self.truncated.contains(one));
            missing = missing
                .or(row.map(|(row, _)| format!("the row {row:x?} has not landed")))
                .or(truncate.map(|one| format!("the TRUNCATE {one:x?} has not happened")));
            *rows += 1;
        }
        while let Some(one) = self.wal.transactions.get(*events).filter(|one| self.events && one.commit < position) {
            let event = one.notes().find(|note| !self.sent.contains_key(&note.token));
            missing = missing.or(event.map(|note| format!("the event {} was not sent", note.token)));
            *events += 1;
        }
        if let Some(what) = missing {
            self.fail(format!("the checkpoint {row:x?} covers more than is durable: {what}"));
        }
    }

    /// Something of this commit has left the process.
    fn out_of_hand(&mut self, commit: u64) {
        self.out = self.out.max(commit);
        if commit > self.stored.ceiling {
            self.fail(format!(
                "something of the commit {commit:x} was sent beyond the ceiling {:x}",
                self.stored.ceiling
            ));
        }
    }

    /// A row has landed.
    pub(crate) fn land(&mut self, table: usize, key: i64, row: Landed) {
        self.out_of_hand((row.version >> 64) as u64);
        let is: RowState = (row.deleted, row.value.clone());
        match self.wal.rows.get(&(table, key, row.version)) {
            Some(of) if *of == is => {}
            Some(of) => {
                let of = of.clone();
                self.fail(format!("{table} {key} {:x} landed as {is:?}, and is {of:?}", row.version));
            }
            None => self.fail(format!("{table} {key} {:x} landed as {is:?}, and was never made", row.version)),
        }
        self.landed.insert((table, key, row.version));
        self.targets[table].entry(key).or_default().push(row);
    }

    /// What is below a version is removed.
    pub(crate) fn truncate(&mut self, table: usize, version: u128) {
        self.truncated.insert((table, version));
        self.targets[table].values_mut().for_each(|rows| rows.retain(|row| row.version >= version));
    }

    /// An event is in a queue.
    pub(crate) fn arrive(&mut self, token: &str, id: &str, is_dead: bool) {
        let Some((number, key)) = self.wal.events.get(token).cloned() else {
            return self.fail(format!("the event {token} was sent, and nobody has committed it"));
        };
        let of = |one: &&crate::wal::Transaction| one.notes().any(|note| note.token == token);
        let commit = self.wal.transactions.iter().find(of).map_or(0, |one| one.commit);
        self.out_of_hand(commit);
        let before = self.sent.insert(token.to_owned(), id.to_owned());
        match before {
            Some(before) if before != id => {
                self.fail(format!("the event {token} was sent as {before} and as {id}"));
            }
            Some(_) => {}
            None => {
                // Dead letters go a way of their own.
                if let Some(key) = key.filter(|_| !is_dead)
                    && let Some(last) = self.order.insert(key.clone(), number)
                    && last > number
                {
                    self.fail(format!("the event {token} of {key} came after one that is later"));
                }
            }
        }
    }

    /// Where the source's WAL ends by now.
    pub(crate) fn written(&self) -> u64 {
        let now = self.now();
        let last = self.wal.transactions.iter().take_while(|one| one.at <= now).last();
        last.map_or(START, |one| one.end)
    }

    /// Whether the slot was told everything that the stream has given.
    pub(crate) fn is_quiet(&self) -> bool {
        self.confirmed >= self.wal.tail
    }

    /// What has to be once everything is quiet.
    pub(crate) fn finish(&mut self) {
        for (table, held) in self.targets.clone().iter().enumerate() {
            let mut current = BTreeMap::new();
            for (key, rows) in held {
                // The highest version, and of equals the one that was inserted last.
                if let Some(newest) = rows.iter().max_by_key(|row| row.version).filter(|row| !row.deleted) {
                    current.insert(*key, newest.value.clone());
                }
            }
            if current != self.wal.state[table] {
                let name = TABLES[table].1;
                self.fail(format!("{name} holds {current:?}, and the source {:?}", self.wal.state[table]));
            }
        }
        let missing = self.wal.events.keys().filter(|token| !self.sent.contains_key(*token)).min().cloned();
        if let Some(token) = missing.filter(|_| self.events) {
            self.fail(format!("the event {token} was never sent"));
        }
    }
}
