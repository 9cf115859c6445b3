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
        table::{ANEW, Feed, Table, TableSpec, shape_changed},
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
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_postgres::{Client, error::SqlState};

/// How often the catalog is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

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
    for absent in shared.config.without_table(present.values().map(SourceTable::full_name)) {
        tracing::warn!(table = absent, "options are given for a table that is not there; is its name misspelt?");
    }
    let memberships = slot::memberships(control, publication).await?;
    let mut known = Vec::new();
    for record in shared.state.tables().await.into_iter().filter(is_adopted) {
        let TableRecord { oid, schema, name, target, shape, .. } = &record;
        let options = shared.config.table_options(schema, name);
        let spec = TableSpec::stored(*oid, schema, name, target, shape, &options).map_err(SessionError::Definite)?;
        let mut stopped = matches!(record.status, TableStatus::Stopped(_));
        let reason = match present.get(oid) {
            None => Some("it is gone, or does not match source.tables any more".to_owned()),
            Some(now) => missed(&record, memberships.get(oid))
                .or_else(|| spec.differs(now))
                .or_else(|| spec.differs_by_configuration(&options)),
        };
        if spec.has_other_settings(&options) {
            let settings =
                "a table's settings have changed in the configuration; its target keeps those that it was made with";
            tracing::warn!(table = record.full_name(), "{settings}");
        }
        for column in spec.without_place_for_null() {
            let what = "unrepresentable = \"null\" does nothing for a column that was created without NULL";
            tracing::warn!(table = record.full_name(), column, "{what}");
        }
        let replaced = ddl::uuid(&shared.client, target).await?.as_deref() != Some(record.uuid.as_str());
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
    pending: HashSet<u32>,
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
            pending: HashSet::new(),
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
        let memberships = slot::memberships(control, &self.publication).await?;
        for table in largest_first(control, tables).await? {
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
                None => {
                    if let Err(reason) = self.adopt(control, &table, memberships.get(&table.oid)).await? {
                        self.leave_out(&table, reason);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adopts a table; the inner error says why it is left out.
    async fn adopt(
        &mut self,
        control: &Client,
        source: &SourceTable,
        membership: Option<&Membership>,
    ) -> Result<Result<(), String>, SessionError> {
        let options = self.shared.config.table_options(&source.schema, &source.name);
        let published = match membership {
            Some(membership) => membership.published(source),
            None => Membership::whole(&self.publication).published(source),
        };
        let time64 = self.shared.time64;
        let laid_out = published.and_then(|published| Ok((TableSpec::new(&published, &options, time64)?, published)));
        let (spec, published) = match laid_out {
            Ok(laid_out) => laid_out,
            Err(reason) => return Ok(Err(reason)),
        };
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
        if membership.published(source).as_ref() != Ok(&published) {
            return Ok(Err("what is published of it was altered at this very moment; looking again".to_owned()));
        }
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
        self.tables.insert(source.oid, Arc::clone(&table));
        self.spawn_copy(source.clone(), table);
        Ok(Ok(()))
    }

    /// Adds a table to the publication; the inner error says why it is left out. What commits between
    /// this and the beginning of its feed is not fed, and is visible to the copy.
    async fn publish(
        &mut self,
        control: &Client,
        source: &SourceTable,
    ) -> Result<Result<Membership, String>, SessionError> {
        let table = quote::postgres_table(&source.schema, &source.name);
        match slot::add_to_publication(control, &self.source.publication, &table).await {
            Ok(true) => {}
            Ok(false) => {
                self.pending.insert(source.oid);
                let why = "a transaction that writes it keeps it from being added to the publication; trying again";
                return Ok(Err(why.to_owned()));
            }
            Err(error) if error.kind() == Kind::Transient => return Err(error.into()),
            Err(error) => return Ok(Err(error.to_string())),
        }
        self.pending.remove(&source.oid);
        let membership = slot::memberships(control, &self.publication).await?.remove(&source.oid);
        Ok(membership.ok_or_else(|| "it left the publication as soon as it was added".to_owned()))
    }

    /// Why the target's name can not be used.
    async fn clash(&self, spec: &TableSpec) -> Result<Option<String>, SessionError> {
        let names = [spec.target.clone(), spec.view()];
        for other in self.shared.state.tables().await {
            let taken = [other.target.clone(), format!("{}{}", other.target, crate::clickhouse::table::VIEW_SUFFIX)];
            if other.oid != spec.oid && names.iter().any(|name| taken.contains(name)) {
                return Ok(Some(format!(
                    "its name in ClickHouse, {}, is in use for {}",
                    spec.target,
                    other.full_name()
                )));
            }
        }
        match ddl::taken(&self.shared.client, &self.source.slot, spec).await? {
            None => Ok(ddl::refused(&self.shared.client, spec).await?),
            taken => Ok(taken),
        }
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
        let records = self.shared.state.tables().await;
        let copying = |record: &&TableRecord| is_adopted(record) && record.status == TableStatus::Copying;
        let copying = records.iter().filter(copying).count() + self.pending.len();
        let stopped = records.iter().filter(|record| matches!(record.status, TableStatus::Stopped(_))).count();
        metrics::gauge!(names::COPY_PENDING).set(copying as f64);
        metrics::gauge!(names::TABLES_STOPPED).set(stopped as f64);
        // Only with the numbers: whoever asks in between would be told that no copy is left.
        self.status.update(|account| {
            (account.copying, account.stopped) = (copying, stopped);
            account.reconciled = true;
        });
    }
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
