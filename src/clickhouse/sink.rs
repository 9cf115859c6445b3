//! The ClickHouse lane: groups in, durable positions out.
//!
//! One task owns the tables and their open batches; inserts run beside it, several at a time and
//! in any order, because versions commute. What has to be in order is in order per table: a batch
//! with rows that wait for a lookup, a truncate and a stop begin when everything before them has
//! ended, and nothing after them begins before they have.
//!
//! A batch is closed when it is large enough, when it is old enough, or, once it has rested for a
//! moment, when nothing else of its table is on its way; for its age never before its turn to be sent
//! comes. So batches are small and quick when it is calm, and grow by themselves when ClickHouse is
//! busy, or walhouse far behind: an insert costs it about the same whether it has one row or a
//! thousand, and with hundreds of tables that cost is all there is.
//!
//! When too many bytes are held, nothing more is received; the room of the lane does the rest.

mod entry;
mod queue;
mod shape;
mod spare;
mod told;
mod traced;

pub use entry::Member;

use super::{
    batch::{At, Batch, CellError, Outcome, RowChange},
    dead_letters,
    job::{Failure, Job, Shared},
    reshape,
    state::TableStatus,
    table::{ANEW, Feed, Plan, Table, TableSpec},
    text::ValueError,
};
use crate::{
    event::{Change, Epoch, Event, Lsn, Op, Relation, SourceTable, Transaction, Tuple, Version},
    lane::{DDL_PREFIX, Delivery, LaneReceiver, ledger::Ledger},
};
use entry::{Entry, Route};
use spare::Spares;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};

/// Inserts and other jobs that run at once.
const MAX_RUNNING: usize = 4;

/// When a batch is full, and how much may be held.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A change waits at most this long for its batch.
    pub max_delay: Duration,
    /// Rows of a batch.
    pub max_rows: usize,
    /// Bytes of a batch.
    pub max_bytes: usize,
    /// Bytes of all batches, open and on their way.
    pub budget: usize,
}

/// What the lane is asked to do between two transactions.
#[derive(Debug)]
pub enum Command {
    /// Feed a target with what commits after `from`, and say from which position on its feed is
    /// complete.
    Adopt {
        /// The target. If it is not fresh, the lane has none of this source yet.
        table: Arc<Table>,
        /// Whether it is filled beside the live one.
        fresh: bool,
        /// What committed before is of no use to it.
        from: Lsn,
        /// The heaps of the source, with their filenodes.
        heaps: BTreeMap<u32, u64>,
        /// Where to say it.
        reply: oneshot::Sender<Lsn>,
    },
    /// Freeze the live target of this table.
    Freeze(u32, TableStatus),
    /// Give up the fresh target of this table with this UUID; the live one, if that is frozen, stays
    /// so for this reason.
    Abandon(u32, String, TableStatus),
    /// Once the stream is past this position, compare the table with what the catalog showed there.
    Look(Box<SourceTable>, Lsn),
    /// Once the stream is past this position, the fresh target takes the place of the live one.
    Swap(u32, Lsn),
    /// The source has another schema or name: so shall the target, the last of the three.
    Rename(u32, String, String, String),
}

/// The lane's task.
pub struct Sink {
    shared: Arc<Shared>,
    limits: Limits,
    epoch: Epoch,
    receiver: LaneReceiver,
    commands: mpsc::Receiver<Command>,
    /// The targets of each source table, as indexes of `entries`.
    routes: HashMap<u32, Route>,
    entries: Vec<Option<Entry>>,
    announced: HashMap<u32, Arc<Relation>>,
    /// Targets with an open batch.
    open: BTreeSet<usize>,
    open_bytes: usize,
    /// Targets with jobs that have not begun.
    queued: BTreeSet<usize>,
    /// The target whose job began last.
    last_begun: usize,
    running: JoinSet<(usize, super::job::Done)>,
    ledger: Ledger,
    transaction: Option<Transaction>,
    /// What is to be done when the open transaction has ended.
    waiting: Vec<Command>,
    /// What is to be done when the stream has passed a position.
    ahead: Vec<(Lsn, Command)>,
    /// The end of the last commit, or the last idle mark.
    position: Lsn,
    sealed_bytes: usize,
    spares: Spares,
    traced: traced::Traced,
    draining: bool,
    /// Targets that would have to stop as the source tells of them now, with the reason.
    doubts: BTreeMap<usize, String>,
}

impl Sink {
    /// A lane that begins at `start`, with the tables that are known already.
    pub fn new(
        shared: Arc<Shared>,
        limits: Limits,
        epoch: Epoch,
        start: Lsn,
        receiver: LaneReceiver,
        commands: mpsc::Receiver<Command>,
        known: Vec<Member>,
    ) -> Self {
        let mut sink = Self {
            shared,
            limits,
            epoch,
            receiver,
            commands,
            routes: HashMap::new(),
            entries: Vec::new(),
            announced: HashMap::new(),
            open: BTreeSet::new(),
            open_bytes: 0,
            queued: BTreeSet::new(),
            last_begun: 0,
            running: JoinSet::new(),
            ledger: Ledger::new(start),
            transaction: None,
            waiting: Vec::new(),
            ahead: Vec::new(),
            position: start,
            sealed_bytes: 0,
            spares: Spares::default(),
            traced: traced::Traced::default(),
            draining: false,
            doubts: BTreeMap::new(),
        };
        known.into_iter().for_each(|member| sink.join(member));
        sink
    }

    /// Begins to feed a target.
    fn join(&mut self, member: Member) {
        let (oid, fresh, index) = (member.table.spec.oid, member.fresh, self.entries.len());
        let mut entry = Entry::new(member);
        // What was announced may be older than the target's shape: then it is announced anew before
        // the next row that it takes.
        entry.plan = self.announced.get(&oid).and_then(|relation| Plan::new(&entry.table.spec, relation).ok());
        self.entries.push(Some(entry));
        let route = self.routes.entry(oid).or_default();
        *(if fresh { &mut route.fresh } else { &mut route.live }) = Some(index);
    }

    /// Runs until the source has gone and everything it gave is durable.
    ///
    /// # Errors
    /// What an operator must mend, or what calls for a new beginning from the checkpoint.
    pub async fn run(mut self) -> Result<(), Failure> {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            self.start_jobs();
            let room = self.has_room();
            if !room {
                self.seal_largest();
                self.start_jobs();
            }
            let next = self.next_due();
            tokio::select! {
                biased;
                Some(joined) = self.running.join_next(), if !self.running.is_empty() => {
                    let (index, done) = joined.map_err(|error| Failure::Bug(format!("a job ended in a panic: {error}")))?;
                    self.ended(index, done)?;
                }
                Some(command) = self.commands.recv() => match self.transaction {
                    None => self.obey(command).await?,
                    Some(_) => self.waiting.push(command),
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.seal_due();
                }
                _ = tick.tick() => {
                    self.spares.rest();
                    self.measure();
                }
                delivery = self.receiver.deliveries.recv(), if room && !self.draining => match delivery {
                    Some(delivery) => self.process(&delivery).await?,
                    None => {
                        self.draining = true;
                        self.seal_all();
                    }
                },
            }
            self.publish();
            if self.draining && self.running.is_empty() && self.queued.is_empty() {
                self.measure();
                return Ok(());
            }
        }
    }

    async fn process(&mut self, delivery: &Delivery) -> Result<(), Failure> {
        let mut touched = BTreeSet::new();
        for event in &delivery.events {
            self.traced.see(event, &delivery.data);
            match event {
                Event::Relation(relation) => self.relation(relation),
                Event::Begin(transaction) => self.transaction = Some(*transaction),
                Event::Change(change) => self.change(&delivery.data, change, &mut touched).await?,
                Event::Truncate { record, relations } => self.truncate(*record, relations)?,
                Event::Message { record, transactional: true, prefix, content }
                    if prefix.bytes(&delivery.data) == DDL_PREFIX =>
                {
                    self.told(content.bytes(&delivery.data), *record).await?;
                }
                Event::Message { .. } => {}
                Event::Commit { end } => {
                    let transaction = self.transaction.take().ok_or_else(|| outside("a commit"))?;
                    self.position = self.position.max(*end);
                    self.settle_doubts(None);
                    // What was durable before a replay is not late for being delivered again.
                    let is_new = *end > self.shared.repairing;
                    if is_new {
                        self.ledger.commit(*end, transaction.time)
                    } else {
                        self.ledger.idle(*end)
                    }
                    for command in std::mem::take(&mut self.waiting) {
                        self.obey(command).await?;
                    }
                    self.pass().await?;
                }
                Event::Idle(position) => {
                    self.position = self.position.max(*position);
                    self.ledger.idle(*position);
                    self.pass().await?;
                }
            }
        }
        for index in touched {
            let Some(entry) = self.entries[index].as_mut() else { continue };
            let Some(batch) = &entry.batch else { continue };
            self.open.insert(index);
            let bytes = batch.bytes();
            self.open_bytes = self.open_bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            if batch.rows() >= self.limits.max_rows || bytes >= self.limits.max_bytes {
                self.seal(index);
            }
        }
        Ok(())
    }

    fn relation(&mut self, relation: &Arc<Relation>) {
        // Kept for targets that are adopted later: a relation is announced once in a session.
        self.announced.insert(relation.oid, Arc::clone(relation));
        let Some(route) = self.routes.get(&relation.oid) else { return };
        for index in route.members() {
            if let Some(entry) = self.entries[index].as_mut() {
                entry.plan = Plan::new(&entry.table.spec, relation).ok();
            }
        }
    }

    async fn change(&mut self, data: &[u8], change: &Change, touched: &mut BTreeSet<usize>) -> Result<(), Failure> {
        let transaction = self.transaction.ok_or_else(|| outside("a row"))?;
        let Some(route) = self.routes.get(&change.relation).copied() else { return Ok(()) };
        let version = Version::new(self.epoch, transaction.commit, change.record);
        for index in route.members() {
            if !self.doubts.is_empty() {
                self.settle_doubts(Some(index));
            }
            let Some(entry) = self.entries[index].as_ref() else { continue };
            if entry.frozen || !entry.feed.takes(version) {
                continue;
            }
            if entry.plan.is_none() && !self.lay(index, version, transaction.xid).await? {
                continue;
            }
            touched.insert(index);
            let ordinal = self.entries[index].as_mut().map_or(0, |entry| entry.ordinal(version));
            let at = At { version, ordinal, xid: transaction.xid, time: transaction.time };
            let taken = match self.take(index, data, change, at) {
                Err(CellError::Value { column, error: ValueError::Null }) => {
                    self.loosen(index, &column, version).await?;
                    let frozen = self.entries[index].as_ref().is_none_or(|entry| entry.frozen);
                    if frozen { Ok(()) } else { self.take(index, data, change, at) }
                }
                taken => taken,
            };
            if let Err(error) = taken {
                self.refuse(index, &error);
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize, data: &[u8], change: &Change, at: At) -> Result<(), CellError> {
        let Some(entry) = self.entries[index].as_mut() else { return Ok(()) };
        entry.received.increment(1);
        if entry.batch.is_none() {
            entry.spare = self.spares.take(&entry.table.spec.columns);
        }
        let row = self.ledger.row();
        if Self::add(entry, &mut self.ledger, data, change, at, row)? == Outcome::NeedsKeys {
            // What is in the batch must be in ClickHouse before a lookup can find it there.
            entry.keyed = true;
            self.seal(index);
            let Some(entry) = self.entries[index].as_mut() else { return Ok(()) };
            Self::add(entry, &mut self.ledger, data, change, at, row)?;
        }
        Ok(())
    }

    /// Adds a change to its table's open batch, and opens one if there is none.
    fn add(
        entry: &mut Entry,
        ledger: &mut Ledger,
        data: &[u8],
        change: &Change,
        at: At,
        row: u64,
    ) -> Result<Outcome, CellError> {
        let Entry { plan: Some(plan), table, batch: open, keyed, spare, .. } = entry else {
            return Err(CellError::protocol());
        };
        let spec = &table.spec;
        let batch = open.get_or_insert_with(|| {
            ledger.open(row);
            Batch::new(table, spare.take(), *keyed, row, at.time)
        });
        // The assembler has checked every tuple of the group.
        let tuple = |span: crate::event::Span| Tuple::parsed(span.bytes(data));
        let empty = |_| CellError::protocol();
        let row = match change.op {
            Op::Insert { new } => RowChange::Insert(tuple(new).map_err(empty)?),
            Op::Update { old, old_is_key, new } => {
                let old = old.map(tuple).transpose().map_err(empty)?.map(|old| (old, old_is_key));
                RowChange::Update(old, tuple(new).map_err(empty)?)
            }
            Op::Delete { old, .. } => RowChange::Delete(tuple(old).map_err(empty)?),
        };
        let outcome = match batch.add(spec, plan, row, at) {
            Err(error) if dead_letters::takes(spec, &error) => batch.lose(spec, plan, row, at, &error),
            outcome => outcome,
        };
        if batch.rows() == 0 {
            // Opened for a change that it did not take.
            ledger.close(batch.first_row);
            *open = None;
        }
        outcome
    }

    /// A row is not taken: the table stops, and this change is the first that it drops.
    fn refuse(&mut self, index: usize, error: &CellError) {
        let reason = match error {
            CellError::Value { .. } => format!(
                "a row has a value that ClickHouse can not hold without changing it: {error}. Exclude the table, or correct \
                 the value at the source. {ANEW}"
            ),
            CellError::Protocol(_) => format!("{error}, which is a bug in walhouse. {ANEW}"),
        };
        self.stop(index, reason);
    }

    fn truncate(&mut self, record: Lsn, relations: &[u32]) -> Result<(), Failure> {
        let transaction = self.transaction.ok_or_else(|| outside("a truncate"))?;
        let version = Version::new(self.epoch, transaction.commit, record);
        let routes: Vec<Route> = relations.iter().filter_map(|oid| self.routes.get(oid).copied()).collect();
        for index in routes.into_iter().flat_map(Route::members) {
            let Some(entry) = self.entries[index].as_mut().filter(|entry| !entry.frozen) else { continue };
            if !entry.feed.takes(version) {
                continue;
            }
            if entry.table.spec.changelog {
                let at = At { version, ordinal: entry.ordinal(version), xid: transaction.xid, time: transaction.time };
                let (row, ledger) = (self.ledger.row(), &mut self.ledger);
                let batch = entry.batch.get_or_insert_with(|| {
                    ledger.open(row);
                    Batch::new(&entry.table, None, false, row, at.time)
                });
                batch.log_truncate(at);
                self.open.insert(index);
                continue;
            }
            self.seal(index);
            let Some(entry) = self.entries[index].as_mut() else { continue };
            entry.feed.floor = version;
            let row = self.ledger.row();
            self.ledger.open(row);
            entry.push(Job::Truncate { version, row });
            self.queued.insert(index);
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Adopt { table, fresh, from, heaps, reply } => {
                let feed = Feed { from: self.position.max(from), floor: Version::COPY };
                self.join(Member { table, feed, frozen: false, fresh, heaps });
                // If nobody waits for the answer any more, the adoption is repeated from its beginning.
                let _ = reply.send(feed.from);
            }
            Command::Freeze(oid, status) => {
                match (self.routes.get(&oid).and_then(|route| route.live), status) {
                    (Some(live), TableStatus::Resync(reason)) => self.anew(live, reason),
                    (Some(live), status) => self.end(live, status),
                    // The live target is not fed by this source.
                    (None, status) => self.shared.state.update_table(oid, |record| record.status = status).await?,
                }
            }
            Command::Abandon(oid, uuid, status) => {
                if let Some(index) = self.routes.get(&oid).and_then(|route| route.fresh)
                    && self.entries[index].as_ref().is_some_and(|entry| !entry.frozen && entry.table.uuid == uuid)
                {
                    self.end(index, status);
                }
            }
            Command::Look(_, at) | Command::Swap(_, at) if at > self.position => self.ahead.push((at, command)),
            Command::Look(now, at) => self.look(&now, at).await?,
            Command::Swap(oid, _) => self.swap(oid),
            Command::Rename(oid, schema, name, target) => self.rename(oid, schema, name, target),
        }
        Ok(())
    }

    /// Does what waited for the stream to pass a position.
    async fn pass(&mut self) -> Result<(), Failure> {
        if self.ahead.iter().all(|(at, _)| *at > self.position) {
            return Ok(());
        }
        let (due, ahead) = std::mem::take(&mut self.ahead).into_iter().partition(|(at, _)| *at <= self.position);
        self.ahead = ahead;
        let due: Vec<(Lsn, Command)> = due;
        for (_, command) in due {
            self.obey(command).await?;
        }
        Ok(())
    }

    /// The fresh target becomes the live one. From now on it alone is fed; the swap itself is its
    /// next job, and begins when nothing of the other is on its way any more.
    fn swap(&mut self, oid: u32) {
        let Some(route) = self.routes.get(&oid).copied() else { return };
        let Some(fresh) = route.fresh.filter(|&index| self.entries[index].as_ref().is_some_and(|e| !e.frozen)) else {
            return;
        };
        let live = route.live.and_then(|live| self.entries[live].as_ref()).map(|entry| Arc::clone(&entry.table));
        if let Some(live) = route.live {
            self.seal(live);
        }
        self.seal(fresh);
        let Some(entry) = self.entries[fresh].as_mut() else { return };
        let live_name = || reshape::live_name(&entry.table.spec.target).to_owned();
        let target = live.as_ref().map_or_else(live_name, |live| live.spec.target.clone());
        let spec = TableSpec { target, ..entry.table.spec.clone() };
        entry.push(Job::Swap { live, spec: Box::new(spec.clone()), replaced: route.live });
        entry.table = entry.table.reshaped(spec);
        entry.fresh = false;
        entry.received = entry::received(&entry.table);
        self.queued.insert(fresh);
        self.routes.insert(oid, Route { live: Some(fresh), fresh: None });
    }
}

fn outside(what: &str) -> Failure {
    Failure::Bug(format!("the source sent {what} outside a transaction"))
}
