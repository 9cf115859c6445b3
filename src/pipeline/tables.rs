//! Which tables are replicated: those that are known already, those that match anew, those that
//! have to stop.
//!
//! The catalog is looked at every few seconds, so a table that newly matches is adopted without a
//! restart. To adopt a table is, in this order: add it to the publication; create its target; store
//! it; have the lane feed it, which says from where on; store that; copy it. A crash in between
//! leaves a target without a feed, and the adoption begins anew.

use super::SessionError;
use crate::{
    clickhouse::{
        ddl,
        job::{Failure, Shared},
        sink::Command,
        state::{TableRecord, TableStatus},
        table::{ANEW, Feed, Table, TableSpec, VIEW_SUFFIX, shape_changed},
    },
    config::SourceConfig,
    copy::{Copier, CopyError},
    event::{Lsn, SourceTable, Version},
    postgres::{
        catalog,
        slot::{self, Membership, Publication},
    },
    quote,
    retry::Kind,
    status::Status,
    telemetry::names,
};
use futures_util::future::join_all;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_postgres::{Client, error::SqlState};

/// How often the catalog is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// Tables that are adopted at once.
const ADOPTIONS: usize = 16;

/// Tables that are stored and can be fed from the stream's beginning, with their feeds and whether
/// they are stopped. One that has missed something is stopped here, before anything is streamed.
pub(super) async fn known(
    control: &Client,
    source: &SourceConfig,
    publication: &Publication,
    shared: &Arc<Shared>,
) -> Result<Vec<(Arc<Table>, Feed, bool)>, SessionError> {
    let present: HashMap<u32, SourceTable> =
        catalog::tables(control, &source.table_filter()).await?.into_iter().map(|table| (table.oid, table)).collect();
    let memberships = slot::memberships(control, publication, None).await?;
    let uuids = ddl::uuids(&shared.client).await?;
    let mut known = Vec::new();
    for record in shared.state.tables().await.into_iter().filter(is_adopted) {
        let TableRecord { oid, schema, name, target, shape, .. } = &record;
        let spec = TableSpec::stored(*oid, schema, name, target, shape).map_err(SessionError::Definite)?;
        let mut stopped = matches!(record.status, TableStatus::Stopped(_));
        let reason = match present.get(oid) {
            None => Some("it is gone, or does not match source.tables any more".to_owned()),
            Some(now) => missed(&record, memberships.get(oid)).or_else(|| spec.differs(now)),
        };
        let replaced = uuids.get(target) != Some(&record.uuid);
        let reason =
            reason.or_else(|| replaced.then(|| format!("the table {target} in ClickHouse was dropped or replaced")));
        if let Some(reason) = reason.filter(|_| !stopped) {
            let reason = format!("{reason}. {ANEW}");
            tracing::error!(table = record.full_name(), reason, "a table stops; the others go on");
            shared.state.update_table(*oid, |record| record.status = TableStatus::Stopped(reason)).await?;
            stopped = true;
        }
        let table = Table::new(spec, record.uuid.clone(), shared.range, record.read_until);
        known.push((table, Feed { from: record.fed_from, floor: record.floor }, stopped));
    }
    Ok(known)
}

/// An adoption that did not get as far as the publication is repeated.
fn is_adopted(record: &TableRecord) -> bool {
    !record.membership.is_empty()
}

/// Why a table may have missed changes, if it may.
fn missed(record: &TableRecord, membership: Option<&Membership>) -> Option<String> {
    match membership {
        None => Some("it is not in the publication any more".to_owned()),
        Some(membership) if membership.identity != record.membership => {
            Some("it left the publication and came back, or what is published of it was altered".to_owned())
        }
        Some(_) => None,
    }
}

/// Looks after the tables while a session streams.
pub(super) struct Tables {
    source: SourceConfig,
    publication: Publication,
    shared: Arc<Shared>,
    copier: Arc<Copier>,
    commands: mpsc::Sender<Command>,
    status: Arc<Status>,
    copies: JoinSet<(u32, Result<(), CopyError>)>,
    /// The tables that are fed.
    tables: HashMap<u32, Arc<Table>>,
    /// Those whose copy runs, or needs not be taken up again.
    copying: HashSet<u32>,
    /// Tables whose adoption could not be completed yet.
    pending: Mutex<HashSet<u32>>,
    /// Names in ClickHouse of the tables that are being adopted now.
    claimed: Mutex<HashMap<String, u32>>,
    /// Held by whoever adds a table to the publication.
    publishing: tokio::sync::Mutex<()>,
    /// What was said of tables that are left out.
    said: HashSet<(u32, String)>,
}

impl Tables {
    pub(super) fn new(
        source: SourceConfig,
        publication: Publication,
        shared: Arc<Shared>,
        copier: Arc<Copier>,
        commands: mpsc::Sender<Command>,
        status: Arc<Status>,
        known: &[(Arc<Table>, Feed, bool)],
    ) -> Self {
        Self {
            source,
            publication,
            shared,
            copier,
            commands,
            status,
            copies: JoinSet::new(),
            tables: known.iter().map(|(table, ..)| (table.spec.oid, Arc::clone(table))).collect(),
            copying: HashSet::new(),
            pending: Mutex::default(),
            claimed: Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
            said: HashSet::new(),
        }
    }

    /// Runs until the session ends.
    pub(super) async fn run(mut self, control: Client) -> Result<(), SessionError> {
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        loop {
            tokio::select! {
                _ = poll.tick() => self.look(&control).await?,
                Some(joined) = self.copies.join_next(), if !self.copies.is_empty() => {
                    let (oid, outcome) = joined.map_err(|_| SessionError::Panic("copy"))?;
                    self.copy_ended(oid, outcome).await?;
                }
            }
            self.account().await;
        }
    }

    async fn look(&mut self, control: &Client) -> Result<(), SessionError> {
        // What it left out for a moment is missing for good, and nothing in the stream tells of it.
        let publication = slot::publication(control, &self.source.publication).await?;
        let present = publication.as_ref().map(|publication| publication.identity.as_str());
        if let Some(gap) = slot::publication_gap(&self.publication.identity, present, &self.source.slot) {
            return Err(gap.into());
        }
        let tables = catalog::tables(control, &self.source.table_filter()).await?;
        let memberships = slot::memberships(control, &self.publication, None).await?;
        let mut fresh = Vec::new();
        for table in tables {
            let record = self.shared.state.table(table.oid).await.filter(is_adopted);
            match record {
                Some(record) if matches!(record.status, TableStatus::Stopped(_)) => {}
                Some(record) => {
                    let differs = self.tables.get(&table.oid).and_then(|known| known.spec.differs(&table));
                    if let Some(reason) = missed(&record, memberships.get(&table.oid)) {
                        self.stop(table.oid, format!("{reason}. {ANEW}")).await;
                    } else if let Some(difference) = differs {
                        self.stop(table.oid, shape_changed(&difference)).await;
                    } else if record.status == TableStatus::Copying {
                        self.resume(&table);
                    }
                }
                None => fresh.push(table),
            }
        }
        self.adopt_all(control, largest_first(control, fresh).await?, &memberships).await
    }

    /// Adopts tables, several at a time: what takes long is what ClickHouse does for each.
    async fn adopt_all(
        &mut self,
        control: &Client,
        mut fresh: Vec<SourceTable>,
        memberships: &HashMap<u32, Membership>,
    ) -> Result<(), SessionError> {
        while !fresh.is_empty() {
            let batch: Vec<_> = fresh.drain(..fresh.len().min(ADOPTIONS)).collect();
            lock(&self.claimed).clear();
            let adoptions = batch.iter().map(|table| self.adopt(control, table, memberships.get(&table.oid)));
            let adopted = join_all(adoptions).await;
            for (source, adopted) in batch.into_iter().zip(adopted) {
                match adopted? {
                    Ok(table) => {
                        self.tables.insert(source.oid, Arc::clone(&table));
                        self.spawn_copy(source, table);
                    }
                    Err(reason) => self.leave_out(&source, reason),
                }
            }
        }
        Ok(())
    }

    /// Adopts a table; the inner error says why it is left out.
    async fn adopt(
        &self,
        control: &Client,
        source: &SourceTable,
        membership: Option<&Membership>,
    ) -> Result<Result<Arc<Table>, String>, SessionError> {
        let spec = match TableSpec::new(source) {
            Ok(spec) => spec,
            Err(reason) => return Ok(Err(reason)),
        };
        if membership.is_some_and(|membership| membership.partial) {
            return Ok(Err(
                "the publication carries only some of its rows or columns, which this version can not copy".into(),
            ));
        }
        if let Some(reason) = self.clash(&spec).await? {
            return Ok(Err(reason));
        }
        let membership = match membership {
            Some(membership) => membership.clone(),
            None => match self.publish(control, source).await? {
                Ok(membership) => membership,
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let uuid = ddl::create(&self.shared.client, &spec).await?;
        let table = Table::new(spec, uuid.clone(), self.shared.range, Lsn::ZERO);
        // Stored before it is fed, so that whatever happens to it then, a stop above all, finds it;
        // without a membership, so that a crash in between repeats the adoption.
        let record = TableRecord {
            oid: source.oid,
            schema: source.schema.clone(),
            name: source.name.clone(),
            target: table.spec.target.clone(),
            uuid,
            status: TableStatus::Copying,
            fed_from: Lsn::ZERO,
            read_until: Lsn::ZERO,
            floor: Version::COPY,
            membership: String::new(),
            shape: table.spec.shape(),
        };
        self.shared.state.put_table(record).await?;
        let (from, fed_from) = oneshot::channel();
        let lane_gone = || SessionError::Lane(Failure::LockLost);
        self.commands.send(Command::Adopt(Arc::clone(&table), from)).await.map_err(|_| lane_gone())?;
        let fed_from = fed_from.await.map_err(|_| lane_gone())?;
        let adopted = |record: &mut TableRecord| {
            record.fed_from = fed_from;
            record.membership = membership.identity;
        };
        self.shared.state.update_table(source.oid, adopted).await?;
        tracing::info!(table = source.full_name(), target_table = table.spec.target, "table adopted");
        Ok(Ok(table))
    }

    /// Adds a table to the publication; the inner error says why it is left out. What commits between
    /// this and the beginning of its feed is not fed, and is visible to the copy.
    async fn publish(
        &self,
        control: &Client,
        source: &SourceTable,
    ) -> Result<Result<Membership, String>, SessionError> {
        let table = quote::postgres_table(&source.schema, &source.name);
        // One transaction at a time: they share the session.
        let _alone = self.publishing.lock().await;
        match slot::add_to_publication(control, &self.source.publication, &table).await {
            Ok(true) => {}
            Ok(false) => {
                lock(&self.pending).insert(source.oid);
                let why = "a transaction that writes it keeps it from being added to the publication; trying again";
                return Ok(Err(why.to_owned()));
            }
            Err(error) if error.kind() == Kind::Transient => return Err(error.into()),
            Err(error) => return Ok(Err(error.to_string())),
        }
        lock(&self.pending).remove(&source.oid);
        let membership = slot::memberships(control, &self.publication, Some(source.oid)).await?.remove(&source.oid);
        Ok(membership.ok_or_else(|| "it left the publication as soon as it was added".to_owned()))
    }

    /// Why the target's name can not be used.
    async fn clash(&self, spec: &TableSpec) -> Result<Option<String>, SessionError> {
        let names = [spec.target.clone(), spec.view()];
        let clashes = |other: &TableRecord| {
            let view = other.target.len() + VIEW_SUFFIX.len();
            let is_view =
                |name: &String| name.len() == view && name.starts_with(&other.target) && name.ends_with(VIEW_SUFFIX);
            other.oid != spec.oid && names.iter().any(|name| *name == other.target || is_view(name))
        };
        if let Some(other) = self.shared.state.find(clashes).await {
            let other = other.full_name();
            return Ok(Some(format!("its name in ClickHouse, {}, is in use for {other}", spec.target)));
        }
        // Those that are adopted at this very moment are not stored yet: the first one has the name.
        let mine = |claimed: &mut HashMap<String, u32>, name| *claimed.entry(name).or_insert(spec.oid) == spec.oid;
        if !names.into_iter().all(|name| mine(&mut lock(&self.claimed), name)) {
            return Ok(Some(format!("its name in ClickHouse, {}, is in use for another table", spec.target)));
        }
        Ok(ddl::taken(&self.shared.client, &self.source.slot, spec).await?)
    }

    /// Goes on with a copy that an earlier session began.
    fn resume(&mut self, source: &SourceTable) {
        if !self.copying.contains(&source.oid)
            && let Some(table) = self.tables.get(&source.oid).cloned()
        {
            self.spawn_copy(source.clone(), table);
        }
    }

    fn spawn_copy(&mut self, source: SourceTable, table: Arc<Table>) {
        self.copying.insert(source.oid);
        let copier = Arc::clone(&self.copier);
        self.copies.spawn(async move { (source.oid, copier.copy(&source, &table).await) });
    }

    async fn copy_ended(&mut self, oid: u32, outcome: Result<(), CopyError>) -> Result<(), SessionError> {
        let reason = match outcome {
            Ok(()) => return Ok(()),
            Err(CopyError::Sql(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                // The table, or only a partition of it: the next look at the catalog tells, and goes on.
                tracing::warn!(oid, "a table, or a partition of it, was dropped while it was copied");
                self.copying.remove(&oid);
                return Ok(());
            }
            Err(CopyError::Sql(error)) if error.kind() == Kind::Definite => error.to_string(),
            Err(CopyError::Lane(Failure::Table(reason))) => reason,
            Err(error @ CopyError::Cell(_)) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        self.stop(oid, format!("its copy failed: {reason}. {ANEW}")).await;
        Ok(())
    }

    async fn stop(&self, oid: u32, reason: String) {
        // If the lane is gone, so is this session.
        let _ = self.commands.send(Command::Stop(oid, reason)).await;
    }

    fn leave_out(&mut self, table: &SourceTable, reason: String) {
        if self.said.insert((table.oid, reason.clone())) {
            tracing::warn!(table = table.full_name(), reason, "a table is not replicated");
        }
    }

    async fn account(&self) {
        let state = &self.shared.state;
        let copying = state.count(|record| is_adopted(record) && record.status == TableStatus::Copying).await;
        let copying = copying + lock(&self.pending).len();
        let stopped = state.count(|record| matches!(record.status, TableStatus::Stopped(_))).await;
        metrics::gauge!(names::COPY_PENDING).set(copying as f64);
        metrics::gauge!(names::TABLES_STOPPED).set(stopped as f64);
        // Only with the numbers: whoever asks in between would be told that no copy is left.
        self.status.update(|account| {
            (account.copying, account.stopped) = (copying, stopped);
            account.reconciled = true;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
