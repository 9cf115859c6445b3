//! Which tables are replicated: those that are known already, those that match anew, those that
//! have to stop, those that are copied anew.
//!
//! The catalog is looked at every few seconds, so a table that newly matches is adopted without a
//! restart, and what the stream does not tell is noticed: a rewrite, a partition that was attached
//! with rows in it, another name, a membership in the publication that ended.

mod adopt;
mod known;
mod outbox;
mod requests;
mod resync;

use super::SessionError;
use crate::{
    clickhouse::{
        evolve::{Change, Evolution},
        job::{Failure, Shared},
        sink::{Command, Member},
        state::{TableRecord, TableStatus},
        table::{ANEW, Table, TableSpec},
    },
    config::SourceConfig,
    copy::{Copier, CopyError},
    event::{Lsn, SourceTable},
    postgres::{
        catalog::{self, Listing},
        publication::{self, Membership, Publication},
        slot,
    },
    retry::Kind,
    status::Status,
    telemetry::{self, names},
};
pub(super) use known::known;
use known::{gone, missed};
use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_postgres::{Client, error::SqlState};

/// How often the catalog is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// And when there is something to do at once.
const SOON: Duration = Duration::from_millis(100);

/// Looks after the tables while a session streams.
pub(super) struct Tables {
    source: SourceConfig,
    publication: Publication,
    shared: Arc<Shared>,
    copier: Arc<Copier>,
    commands: mpsc::Sender<Command>,
    status: Arc<Status>,
    copies: JoinSet<(Arc<Table>, Result<(), CopyError>)>,
    /// The targets that are fed, by UUID.
    targets: HashMap<String, Arc<Table>>,
    /// The UUIDs of those whose copy runs, or needs not be taken up again.
    copying: HashSet<String>,
    /// The UUIDs of fresh targets that were sent to take the place of the live one.
    swapping: HashSet<String>,
    /// Tables whose adoption could not be completed yet.
    pending: Mutex<HashSet<u32>>,
    /// Names in ClickHouse of the tables that are being adopted now, and theirs.
    claimed: Mutex<HashMap<String, String>>,
    /// Held by whoever has a transaction open in the shared session.
    transacting: tokio::sync::Mutex<()>,
    /// What the catalog showed of a table when that was last sent to the lane.
    looked: HashMap<u32, u64>,
    /// What the catalog showed of a stopped table that was copied anew for it.
    tried: HashMap<u32, u64>,
    /// Whether there is something to do that need not wait for the next look.
    soon: bool,
    /// What was said of tables that are left out.
    said: HashSet<(u32, String)>,
    /// The identity of the outbox table's membership.
    outbox: Option<String>,
}

impl Tables {
    pub(super) fn new(
        source: SourceConfig,
        publication: Publication,
        shared: Arc<Shared>,
        copier: Arc<Copier>,
        commands: mpsc::Sender<Command>,
        status: Arc<Status>,
        known: &[Member],
    ) -> Self {
        let targets = known.iter().map(|member| (member.table.uuid.clone(), Arc::clone(&member.table)));
        Self {
            source,
            publication,
            shared,
            copier,
            commands,
            status,
            copies: JoinSet::new(),
            targets: targets.collect(),
            copying: HashSet::new(),
            swapping: HashSet::new(),
            pending: Mutex::default(),
            claimed: Mutex::default(),
            transacting: tokio::sync::Mutex::default(),
            looked: HashMap::new(),
            tried: HashMap::new(),
            soon: false,
            said: HashSet::new(),
            outbox: None,
        }
    }

    /// Runs until the session ends.
    pub(super) async fn run(mut self, control: Client) -> Result<(), SessionError> {
        let stored = self.shared.state.checkpoint().await.map(|checkpoint| checkpoint.outbox);
        self.outbox = stored.filter(|outbox| !outbox.is_empty());
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        // What is asked for again and again is done once, and soon.
        let mut hurried = false;
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                _ = poll.tick() => {
                    hurried = false;
                    self.look(&control).await?;
                }
                () = shared.look.notified(), if !hurried => {
                    hurried = true;
                    poll.reset_after(SOON);
                }
                Some(joined) = self.copies.join_next(), if !self.copies.is_empty() => {
                    let (table, outcome) = joined.map_err(|_| SessionError::Panic("copy"))?;
                    self.copy_ended(&table, outcome).await?;
                }
            }
            self.account().await;
            if std::mem::take(&mut self.soon) && !std::mem::replace(&mut hurried, true) {
                poll.reset_after(SOON);
            }
        }
    }

    async fn look(&mut self, control: &Client) -> Result<(), SessionError> {
        // What it left out for a moment is missing for good, and nothing in the stream tells of it.
        let publication = publication::publication(control, &self.source.publication).await?;
        let present = publication.as_ref().map(|publication| publication.identity.as_str());
        if let Some(gap) = slot::publication_gap(&self.publication.identity, present, &self.source.slot) {
            return Err(gap.into());
        }
        let Listing { tables, memberships, position } = catalog::tables(control, &self.source).await?;
        self.publish_outbox(control, &memberships).await?;
        let present: HashSet<u32> = tables.iter().map(|table| table.oid).collect();
        for record in self.shared.state.tables().await {
            if record.is_adopted() && !present.contains(&record.oid) {
                if !record.status.is_frozen() {
                    self.freeze(record.oid, gone()).await;
                }
                if let Some(fresh) = &record.fresh {
                    self.command(Command::Abandon(record.oid, fresh.uuid.clone(), gone())).await;
                }
            }
        }
        let mut unknown = Vec::new();
        for table in tables {
            let membership = memberships.get(&table.oid);
            match self.shared.state.table(table.oid).await.filter(TableRecord::is_adopted) {
                Some(record) => self.follow(control, record, &table, membership, position).await?,
                None => unknown.push(table),
            }
        }
        let unknown = largest_first(control, unknown).await?;
        self.adopt_all(control, unknown, &memberships, &present).await?;
        self.answer_requests(control).await
    }

    /// Looks after a table that is known.
    async fn follow(
        &mut self,
        control: &Client,
        record: TableRecord,
        table: &SourceTable,
        membership: Option<&Membership>,
        position: Lsn,
    ) -> Result<(), SessionError> {
        // Whatever it misses meanwhile, it is copied anew once it is resumed.
        if matches!(record.status, TableStatus::Paused(_)) {
            return Ok(());
        }
        let Some(membership) = membership.filter(|_| missed(&record, membership).is_none()) else {
            let status = missed(&record, membership);
            // One that left and is not back stays as it is.
            let known = |status: &TableStatus| {
                matches!((&record.status, status), (TableStatus::Resync(_), TableStatus::Resync(_)))
                    || record.status.is_frozen() && matches!(status, TableStatus::Stopped(_))
            };
            if let Some(fresh) = &record.fresh
                && let Some(status) = &status
            {
                self.command(Command::Abandon(table.oid, fresh.uuid.clone(), status.clone())).await;
            }
            match status.filter(|status| !known(status)) {
                Some(status) => self.freeze(table.oid, status).await,
                None if record.fresh.is_none() && membership.is_some() => {
                    return self.begin_resync(control, &record, table, membership).await;
                }
                None => {}
            }
            return Ok(());
        };
        let wanted = (self.shared.layout)(table).map(|spec| spec.target);
        if (&record.schema, &record.name) != (&table.schema, &table.name) || wanted.is_ok_and(|to| to != record.target)
        {
            // Whatever else there is to do is done under the new name.
            if self.rename(&record, table).await? {
                return Ok(());
            }
        }
        let seen = seen(table);
        match (&record.status, record.fresh.as_deref()) {
            (_, Some(fresh)) => self.follow_fresh(control, &record, fresh, table, membership).await?,
            (TableStatus::Resync(_), None) => {
                self.begin_resync(control, &record, table, Some(membership)).await?;
            }
            (TableStatus::Stopped(_), None) => {
                if self.tried.get(&table.oid) != Some(&seen) && self.differs(&record, table)? {
                    self.tried.insert(table.oid, seen);
                    let why = "it was stopped, and its shape has changed since".to_owned();
                    self.freeze(table.oid, TableStatus::Resync(why)).await;
                }
                return Ok(());
            }
            (TableStatus::Copying, None) => self.resume(&record.uuid, table),
            _ => {}
        }
        if self.looked.insert(table.oid, seen) != Some(seen) {
            self.command(Command::Look(Box::new(table.clone()), position)).await;
        }
        Ok(())
    }

    /// Whether a table has a shape that a copy could follow.
    fn differs(&self, record: &TableRecord, now: &SourceTable) -> Result<bool, SessionError> {
        let TableRecord { oid, schema, name, target, shape, heaps, .. } = record;
        let options = self.shared.config.table_options(schema, name);
        let old = TableSpec::stored(*oid, schema, name, target, shape, &options).map_err(SessionError::Definite)?;
        // Stopped for another configuration, it waits for the operator's word.
        if old.differs_by_configuration(&options).is_some() {
            return Ok(false);
        }
        let change = Change { old: &old, heaps, relation: None, xid: None, now };
        Ok(matches!(change.evolution(), Evolution::Anew(_) | Evolution::InPlace(..)))
    }

    /// Goes on with a copy that an earlier session began.
    fn resume(&mut self, uuid: &str, source: &SourceTable) {
        if let Some(table) = self.targets.get(uuid).filter(|_| !self.copying.contains(uuid)).cloned() {
            self.spawn_copy(source.clone(), table);
        }
    }

    fn spawn_copy(&mut self, source: SourceTable, table: Arc<Table>) {
        self.copying.insert(table.uuid.clone());
        let copier = Arc::clone(&self.copier);
        self.copies.spawn(async move {
            let outcome = copier.copy(&source, &table).await;
            (table, outcome)
        });
    }

    async fn copy_ended(&mut self, table: &Arc<Table>, outcome: Result<(), CopyError>) -> Result<(), SessionError> {
        let oid = table.spec.oid;
        let reason = match outcome {
            Ok(()) => {
                // A fresh target takes its place at the next look.
                self.soon = true;
                return Ok(());
            }
            Err(error) if error.code() == Some(SqlState::UNDEFINED_TABLE.code()) => {
                // The table, or only a partition of it: the next look at the catalog tells, and goes on.
                tracing::warn!(oid, "a table, or a partition of it, was dropped while it was copied");
                self.copying.remove(&table.uuid);
                return Ok(());
            }
            Err(error) if error.of_source() == Some(Kind::Definite) => error.to_string(),
            Err(CopyError::Lane(Failure::Table(reason))) => reason,
            Err(error @ CopyError::Cell(_)) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        let reason = format!("its copy failed: {reason}. {ANEW}");
        match self.shared.state.table(oid).await {
            Some(record) if record.uuid == table.uuid => self.freeze(oid, TableStatus::Stopped(reason)).await,
            _ => self.command(Command::Abandon(oid, table.uuid.clone(), TableStatus::Stopped(reason))).await,
        }
        Ok(())
    }

    async fn freeze(&mut self, oid: u32, status: TableStatus) {
        self.soon |= matches!(status, TableStatus::Resync(_));
        self.command(Command::Freeze(oid, status)).await;
    }

    async fn command(&self, command: Command) {
        // If the lane is gone, so is this session.
        let _ = self.commands.send(command).await;
    }

    fn leave_out(&mut self, table: &SourceTable, reason: String) {
        if self.said.insert((table.oid, reason.clone())) {
            tracing::warn!(table = table.full_name(), reason, "a table is not replicated");
        }
    }

    async fn account(&self) {
        let copying = |record: &TableRecord| {
            record.is_adopted() && matches!(record.status, TableStatus::Copying | TableStatus::Resync(_))
        };
        let beside = |record: &TableRecord| record.is_adopted() && record.fresh.is_some() && !copying(record);
        let beside = self.shared.state.count(beside).await;
        let copying = self.shared.state.count(copying).await + lock(&self.pending).len();
        let names = Mutex::new(Vec::new());
        let stopped = self.shared.state.count(|record| {
            let is_stopped = matches!(record.status, TableStatus::Stopped(_));
            if is_stopped {
                lock(&names).push(format!("{}.{}", record.schema, record.name));
            }
            is_stopped
        });
        let stopped = stopped.await;
        telemetry::tables::show_stopped(&lock(&names));
        metrics::gauge!(names::COPY_PENDING).set(copying as f64);
        metrics::gauge!(names::TABLES_STOPPED).set(stopped as f64);
        let paused = |record: &TableRecord| matches!(record.status, TableStatus::Paused(_));
        metrics::gauge!(names::PAUSED, "what" => "tables").set(self.shared.state.count(paused).await as f64);
        // Only with the numbers: whoever asks in between would be told that no copy is left.
        self.status.update(|account| {
            (account.copying, account.beside, account.stopped) = (copying, beside, stopped);
            account.reconciled = true;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the catalog shows of a table, as a number that another show differs in.
fn seen(table: &SourceTable) -> u64 {
    let mut hasher = DefaultHasher::new();
    table.hash(&mut hasher);
    hasher.finish()
}

/// Large tables take longest, so they begin first.
async fn largest_first(control: &Client, mut tables: Vec<SourceTable>) -> Result<Vec<SourceTable>, SessionError> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = control
        .query(
            "SELECT t.oid, pg_relation_size(t.oid) + coalesce((SELECT sum(pg_relation_size(p.relid)) \
             FROM pg_partition_tree(t.oid) p WHERE p.isleaf), 0)::bigint FROM unnest($1::oid[]) t(oid)",
            &[&oids],
        )
        .await?;
    let mut sizes: HashMap<u32, i64> = HashMap::new();
    for row in rows {
        sizes.insert(row.try_get(0)?, row.try_get::<_, Option<i64>>(1)?.unwrap_or(0));
    }
    tables.sort_by_key(|table| std::cmp::Reverse(sizes.get(&table.oid).copied().unwrap_or(0)));
    Ok(tables)
}
