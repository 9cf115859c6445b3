//! The ClickHouse lane: groups in, durable positions out.
//!
//! One task owns the tables and their open batches; inserts run beside it, several at a time and
//! in any order, because versions commute. What has to be in order is in order per table: a batch
//! with rows that wait for a lookup, a truncate and a stop begin when everything before them has
//! ended, and nothing after them begins before they have.
//!
//! A batch is sent when it is large enough, when it is old enough, or, once it has rested for a
//! moment, when nothing else of its table is on its way: so batches are small and quick when it is
//! calm, and grow by themselves when ClickHouse is busy.
//!
//! When too many bytes are held, nothing more is received; the room of the lane does the rest.

use super::{
    batch::{At, Batch, CellError, Outcome, RowChange},
    job::{Done, Failure, Job, Shared},
    ledger::Ledger,
    table::{ANEW, Feed, Plan, Table, shape_changed},
};
use crate::{
    event::{Change, Epoch, Event, Lsn, Op, Relation, Transaction, Tuple, Version},
    lane::{Delivery, LaneReceiver},
    telemetry::names,
};
use metrics::Counter;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// Inserts and other jobs that run at once.
const MAX_RUNNING: usize = 4;
/// The share of the longest delay for which a batch rests before it is sent for no other reason
/// than that nothing else of its table is: a tenth of a second by default.
const REST: u32 = 10;

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
    /// Feed this table from now on, and say from which position on its feed is complete.
    Adopt(Arc<Table>, oneshot::Sender<Lsn>),
    /// Stop this table, for this reason.
    Stop(u32, String),
}

/// A table as the lane keeps it.
struct Entry {
    table: Arc<Table>,
    feed: Feed,
    plan: Option<Plan>,
    batch: Option<Batch>,
    /// What the batch held when it was last looked at.
    bytes: usize,
    queue: VecDeque<Job>,
    running: usize,
    exclusive: bool,
    keyed: bool,
    stopped: bool,
    received: Counter,
}

impl Entry {
    fn new(table: Arc<Table>, feed: Feed, stopped: bool) -> Self {
        let received = metrics::counter!(names::ROWS_RECEIVED, "table" => table.spec.full_name());
        Self {
            table,
            feed,
            plan: None,
            batch: None,
            bytes: 0,
            queue: VecDeque::new(),
            running: 0,
            exclusive: false,
            keyed: false,
            stopped,
            received,
        }
    }
}

/// The lane's task.
pub struct Sink {
    shared: Arc<Shared>,
    limits: Limits,
    epoch: Epoch,
    receiver: LaneReceiver,
    commands: mpsc::Receiver<Command>,
    tables: HashMap<u32, Entry>,
    announced: HashMap<u32, Arc<Relation>>,
    /// Tables with an open batch.
    open: BTreeSet<u32>,
    open_bytes: usize,
    /// Tables with jobs that have not begun.
    queued: BTreeSet<u32>,
    running: JoinSet<(u32, Done)>,
    ledger: Ledger,
    transaction: Option<Transaction>,
    /// What is to be done when the open transaction has ended.
    waiting: Vec<Command>,
    /// The end of the last commit, or the last idle mark.
    position: Lsn,
    sealed_bytes: usize,
    draining: bool,
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
        known: Vec<(Arc<Table>, Feed, bool)>,
    ) -> Self {
        let entry =
            |(table, feed, stopped): (Arc<Table>, Feed, bool)| (table.spec.oid, Entry::new(table, feed, stopped));
        Self {
            shared,
            limits,
            epoch,
            receiver,
            commands,
            tables: known.into_iter().map(entry).collect(),
            announced: HashMap::new(),
            open: BTreeSet::new(),
            open_bytes: 0,
            queued: BTreeSet::new(),
            running: JoinSet::new(),
            ledger: Ledger::new(start),
            transaction: None,
            waiting: Vec::new(),
            position: start,
            sealed_bytes: 0,
            draining: false,
        }
    }

    /// Runs until the source has gone and everything it gave is durable.
    ///
    /// # Errors
    /// What an operator must mend, or what calls for a new beginning from the checkpoint.
    pub async fn run(mut self) -> Result<(), Failure> {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            self.start_jobs();
            let room = self.open_bytes + self.sealed_bytes < self.limits.budget;
            if !room {
                self.seal_where(|_, _| true);
                self.start_jobs();
            }
            let due = self.next_due();
            tokio::select! {
                biased;
                Some(joined) = self.running.join_next(), if !self.running.is_empty() => {
                    let (oid, done) = joined.map_err(|error| Failure::Bug(format!("a job ended in a panic: {error}")))?;
                    self.ended(oid, done)?;
                }
                Some(command) = self.commands.recv() => match self.transaction {
                    None => self.obey(command),
                    Some(_) => self.waiting.push(command),
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    let (now, limits) = (Instant::now(), self.limits);
                    self.seal_where(|entry, batch| is_due(&limits, entry, batch, now));
                }
                _ = tick.tick() => self.measure(),
                delivery = self.receiver.deliveries.recv(), if room && !self.draining => match delivery {
                    Some(delivery) => self.process(&delivery)?,
                    None => {
                        self.draining = true;
                        self.seal_where(|_, _| true);
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

    fn process(&mut self, delivery: &Delivery) -> Result<(), Failure> {
        let mut touched = BTreeSet::new();
        for event in &delivery.events {
            match event {
                Event::Relation(relation) => self.relation(relation),
                Event::Begin(transaction) => self.transaction = Some(*transaction),
                Event::Change(change) => {
                    touched.insert(change.relation);
                    self.change(&delivery.data, change)?;
                }
                Event::Truncate { record, relations } => self.truncate(*record, relations)?,
                Event::Commit { end } => {
                    let transaction = self.transaction.take().ok_or_else(|| outside("a commit"))?;
                    self.position = self.position.max(*end);
                    self.ledger.commit(*end, transaction.time);
                    for command in std::mem::take(&mut self.waiting) {
                        self.obey(command);
                    }
                }
                Event::Idle(position) => {
                    self.position = self.position.max(*position);
                    self.ledger.idle(*position);
                }
            }
        }
        for oid in touched {
            let Some(entry) = self.tables.get_mut(&oid) else { continue };
            let Some(batch) = &entry.batch else { continue };
            self.open.insert(oid);
            let bytes = batch.bytes();
            self.open_bytes = self.open_bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            if batch.rows() >= self.limits.max_rows || bytes >= self.limits.max_bytes {
                self.seal(oid);
            }
        }
        Ok(())
    }

    fn relation(&mut self, relation: &Arc<Relation>) {
        // Kept for tables that are adopted later: a relation is announced once in a session.
        self.announced.insert(relation.oid, Arc::clone(relation));
        let Some(entry) = self.tables.get_mut(&relation.oid) else { return };
        if entry.stopped {
            return;
        }
        match Plan::new(&entry.table.spec, relation) {
            Ok(plan) => entry.plan = Some(plan),
            Err(difference) => {
                let reason = shape_changed(&difference);
                self.seal(relation.oid);
                let row = self.ledger.row();
                self.ledger.open(row);
                self.stop(relation.oid, reason, vec![row]);
            }
        }
    }

    fn change(&mut self, data: &[u8], change: &Change) -> Result<(), Failure> {
        let transaction = self.transaction.ok_or_else(|| outside("a row"))?;
        let Some(entry) = self.tables.get_mut(&change.relation).filter(|entry| !entry.stopped) else { return Ok(()) };
        let version = Version::new(self.epoch, transaction.commit, change.record);
        if !entry.feed.takes(version) {
            return Ok(());
        }
        entry.received.increment(1);
        let row = self.ledger.row();
        let at = At { version, xid: transaction.xid, time: transaction.time };
        match Self::add(&self.shared, entry, &mut self.ledger, data, change, at, row) {
            Ok(Outcome::Added) => Ok(()),
            Ok(Outcome::NeedsKeys) => {
                // What is in the batch must be in ClickHouse before a lookup can find it there.
                entry.keyed = true;
                self.seal(change.relation);
                let Some(entry) = self.tables.get_mut(&change.relation) else { return Ok(()) };
                match Self::add(&self.shared, entry, &mut self.ledger, data, change, at, row) {
                    Ok(_) => Ok(()),
                    Err(error) => self.refuse(change.relation, &error),
                }
            }
            Err(error) => self.refuse(change.relation, &error),
        }
    }

    /// Adds a change to its table's open batch, and opens one if there is none.
    fn add(
        shared: &Shared,
        entry: &mut Entry,
        ledger: &mut Ledger,
        data: &[u8],
        change: &Change,
        at: At,
        row: u64,
    ) -> Result<Outcome, CellError> {
        let Some(plan) = &entry.plan else { return Err(CellError::protocol()) };
        let spec = &entry.table.spec;
        let batch = entry.batch.get_or_insert_with(|| {
            ledger.open(row);
            Batch::new(&entry.table, entry.keyed, row, at.time)
        });
        // The assembler has checked every tuple of the group.
        let tuple = |span: crate::event::Span| Tuple::parse(span.bytes(data)).map(|(tuple, _)| tuple);
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
            Err(error) if shared.policy.takes(spec, &error) => batch.lose(spec, plan, row, at, &error),
            outcome => outcome,
        };
        if batch.rows() == 0 {
            // Opened for a change that it did not take.
            ledger.close(batch.first_row);
            entry.batch = None;
        }
        outcome
    }

    /// A row is not taken: the table stops, and this change is the first that it drops.
    fn refuse(&mut self, oid: u32, error: &CellError) -> Result<(), Failure> {
        self.seal(oid);
        // A number of its own: the change's may be that of the batch which was opened for it.
        let row = self.ledger.row();
        self.ledger.open(row);
        let reason = match error {
            CellError::Value { .. } => format!(
                "a row has a value that ClickHouse can not hold without changing it: {error}. Exclude the table, or correct \
                 the value at the source. {ANEW}"
            ),
            CellError::Protocol(_) => format!("{error}, which is a bug in walhouse. {ANEW}"),
        };
        self.stop(oid, reason, vec![row]);
        Ok(())
    }

    fn truncate(&mut self, record: Lsn, relations: &[u32]) -> Result<(), Failure> {
        let transaction = self.transaction.ok_or_else(|| outside("a truncate"))?;
        let version = Version::new(self.epoch, transaction.commit, record);
        for &oid in relations {
            self.seal(oid);
            let Some(entry) = self.tables.get_mut(&oid).filter(|entry| !entry.stopped) else { continue };
            if !entry.feed.takes(version) {
                continue;
            }
            entry.feed.floor = version;
            let row = self.ledger.row();
            self.ledger.open(row);
            entry.queue.push_back(Job::Truncate { version, row });
            self.queued.insert(oid);
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Adopt(table, from) => self.adopt(table, from),
            Command::Stop(oid, reason) => {
                self.seal(oid);
                let row = self.ledger.row();
                self.ledger.open(row);
                self.stop(oid, reason, vec![row]);
            }
        }
    }

    fn adopt(&mut self, table: Arc<Table>, from: oneshot::Sender<Lsn>) {
        let oid = table.spec.oid;
        let feed = Feed { from: self.position, floor: Version::COPY };
        let mut entry = Entry::new(table, feed, false);
        // What was announced may be older than the table's shape: then it is announced anew before
        // the next row.
        entry.plan = self.announced.get(&oid).and_then(|relation| Plan::new(&entry.table.spec, relation).ok());
        let before = self.tables.insert(oid, entry);
        debug_assert!(before.is_none(), "a table is adopted once in a session");
        // If nobody waits for the answer any more, the adoption is repeated from its beginning.
        let _ = from.send(self.position);
    }

    /// Stops a table: its open entries close when the stop is stored, and no earlier.
    fn stop(&mut self, oid: u32, reason: String, mut rows: Vec<u64>) {
        let Some(entry) = self.tables.get_mut(&oid) else {
            rows.into_iter().for_each(|row| self.ledger.close(row));
            return;
        };
        if !entry.stopped {
            tracing::error!(table = entry.table.spec.full_name(), reason, "a table stops; the others go on");
        }
        entry.stopped = true;
        if let Some(batch) = entry.batch.take() {
            rows.push(batch.first_row);
            self.open.remove(&oid);
            self.open_bytes -= std::mem::take(&mut entry.bytes);
        }
        // What is queued ahead of the stop may still go its way, unless it is the stop's cause.
        entry.queue.push_back(Job::Stop { reason, rows });
        self.queued.insert(oid);
    }

    fn seal(&mut self, oid: u32) {
        let Some(entry) = self.tables.get_mut(&oid) else { return };
        if let Some(batch) = entry.batch.take() {
            self.open.remove(&oid);
            self.open_bytes -= std::mem::take(&mut entry.bytes);
            let bytes = batch.bytes_when_sent();
            self.sealed_bytes += bytes;
            entry.queue.push_back(Job::Insert { batch: Box::new(batch), bytes });
            self.queued.insert(oid);
        }
    }

    fn seal_where(&mut self, which: impl Fn(&Entry, &Batch) -> bool) {
        let chosen = |oid: &&u32| {
            let entry = self.tables.get(oid);
            entry.is_some_and(|entry| entry.batch.as_ref().is_some_and(|batch| which(entry, batch)))
        };
        let chosen: Vec<u32> = self.open.iter().filter(chosen).copied().collect();
        chosen.into_iter().for_each(|oid| self.seal(oid));
    }

    /// Starts what may start.
    fn start_jobs(&mut self) {
        for oid in self.queued.clone() {
            let Some(entry) = self.tables.get_mut(&oid) else { continue };
            while self.running.len() < MAX_RUNNING
                && !entry.exclusive
                && entry.queue.front().is_some_and(|job| entry.running == 0 || !job.is_exclusive())
            {
                let Some(job) = entry.queue.pop_front() else { break };
                entry.running += 1;
                entry.exclusive = job.is_exclusive();
                let (shared, table) = (Arc::clone(&self.shared), Arc::clone(&entry.table));
                self.running.spawn(async move { (oid, job.run(&shared, &table).await) });
            }
            if entry.queue.is_empty() {
                self.queued.remove(&oid);
            }
        }
    }

    fn ended(&mut self, oid: u32, done: Done) -> Result<(), Failure> {
        self.sealed_bytes = self.sealed_bytes.saturating_sub(done.bytes);
        if let Some(entry) = self.tables.get_mut(&oid) {
            entry.running -= 1;
            entry.exclusive = false;
        }
        match done.result {
            Ok(()) => done.rows.into_iter().for_each(|row| self.ledger.close(row)),
            Err(Failure::Table(reason)) => {
                // Nothing that is queued behind a refused batch goes in.
                let mut rows = done.rows;
                if let Some(entry) = self.tables.get_mut(&oid) {
                    for job in entry.queue.drain(..) {
                        self.sealed_bytes = self.sealed_bytes.saturating_sub(job.bytes());
                        rows.extend(job.rows());
                    }
                }
                self.stop(oid, reason, rows);
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    fn publish(&mut self) {
        let (durable, times) = self.ledger.settle();
        self.receiver.durable.send_if_modified(|position| {
            let rises = durable > *position;
            *position = durable.max(*position);
            rises
        });
        for time in times {
            // A clock that runs behind the source's gives no negative latency.
            metrics::histogram!(names::LATENCY).record(time.elapsed().unwrap_or_default().as_secs_f64());
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let entries = self.open.iter().filter_map(|oid| self.tables.get(oid));
        entries.filter_map(|entry| due(&self.limits, entry, entry.batch.as_ref()?)).min()
    }

    fn measure(&self) {
        metrics::gauge!(names::MEMORY).set((self.open_bytes + self.sealed_bytes) as f64);
        let age = self.ledger.oldest().and_then(|time| time.elapsed().ok()).unwrap_or_default();
        metrics::gauge!(names::LAG_SECONDS).set(age.as_secs_f64());
        self.shared.status.update(|account| account.lag_seconds = age.as_secs_f64());
    }
}

/// When a batch is to be sent because of its age.
fn due(limits: &Limits, entry: &Entry, batch: &Batch) -> Option<Instant> {
    let busy = entry.running > 0 || !entry.queue.is_empty();
    let rest = if busy { limits.max_delay } else { limits.max_delay / REST };
    Some(batch.opened + rest)
}

fn is_due(limits: &Limits, entry: &Entry, batch: &Batch, now: Instant) -> bool {
    due(limits, entry, batch).is_some_and(|due| due <= now)
}

fn outside(what: &str) -> Failure {
    Failure::Bug(format!("the source sent {what} outside a transaction"))
}
