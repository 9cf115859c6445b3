//! Tables that are replicated anew.
//!
//! To adopt a table is, in this order: add it to the publication; create its target; store it;
//! have the lane feed it, which says from where on; store that; copy it. A crash in between leaves
//! a target without a feed, and the adoption begins anew.
//!
//! The catalog is read once more under a lock that keeps the table's shape, together with a WAL
//! position. What committed before that position is for the copy, whatever shape it had; what
//! commits after it has this shape, or the stream says otherwise. If the stream is past that
//! position when the feed begins, nobody has seen what it said in between: so the shape is read
//! once more, and where it is another one by then, the session ends and the adoption begins anew.

use super::{SessionError, Tables, lock};
use crate::{
    clickhouse::{
        ddl::{self, Present},
        job::Failure,
        reshape::fresh_name,
        sink::Command,
        state::{TableRecord, TableStatus},
        table::{ANEW, Table, TableSpec, VIEW_SUFFIX},
    },
    event::{Lsn, SourceTable, Version},
    postgres::{
        catalog,
        publication::{self, Membership},
    },
    quote,
    retry::Kind,
};
use futures_util::future::join_all;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::sync::oneshot;
use tokio_postgres::{Client, error::SqlState};

/// How many tables are adopted at once: what takes long is what ClickHouse does for each.
const ADOPTIONS: usize = 16;

/// A table that is fed now, and to be copied.
type Adopted = (SourceTable, Arc<Table>);

impl Tables {
    /// Adopts tables, several at a time. `present` are the tables that the catalog has.
    pub(super) async fn adopt_all(
        &mut self,
        control: &Client,
        mut unknown: Vec<SourceTable>,
        memberships: &HashMap<u32, Membership>,
        present: &HashSet<u32>,
    ) -> Result<(), SessionError> {
        while !unknown.is_empty() {
            let batch: Vec<_> = unknown.drain(..unknown.len().min(ADOPTIONS)).collect();
            lock(&self.claimed).clear();
            let specs: Vec<TableSpec> = batch.iter().filter_map(|table| (self.shared.layout)(table).ok()).collect();
            let specs: Vec<&TableSpec> = specs.iter().collect();
            let there = &ddl::present(&self.shared.client, &self.source.slot, &specs).await?;
            let adoptions =
                batch.iter().map(|table| self.adopt(control, table, memberships.get(&table.oid), present, there));
            let adopted = join_all(adoptions).await;
            for (source, adopted) in batch.into_iter().zip(adopted) {
                match adopted? {
                    Ok(Some((now, table))) => {
                        self.targets.insert(table.uuid.clone(), Arc::clone(&table));
                        self.spawn_copy(now, table);
                    }
                    Ok(None) => {}
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
        present: &HashSet<u32>,
        there: &Present,
    ) -> Result<Result<Option<Adopted>, String>, SessionError> {
        let spec = match (self.shared.layout)(source) {
            Ok(spec) => spec,
            Err(reason) => return Ok(Err(reason)),
        };
        let gone = match self.clash(&spec, present, there).await? {
            Ok(gone) => gone,
            Err(reason) => return Ok(Err(reason)),
        };
        let membership = match membership {
            Some(membership) => membership.clone(),
            None => match self.publish(control, source).await? {
                Ok(membership) => membership,
                Err(reason) => return Ok(Err(reason)),
            },
        };
        if let Some(gone) = gone {
            self.succeed(gone, &spec).await?;
            return Ok(Ok(None));
        }
        let (now, from) = match self.shape_of(control, source).await? {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        };
        let spec = match (self.shared.layout)(&now) {
            Ok(spec) => spec,
            Err(reason) => return Ok(Err(reason)),
        };
        let uuid = ddl::create(&self.shared.client, &spec).await?;
        ddl::view(&self.shared.client, &spec).await?;
        // Stored before it is fed, so that whatever happens to it then, a stop above all, finds it;
        // without a membership, so that a crash in between repeats the adoption.
        self.shared.state.put_table(record(&now, &spec, uuid.clone())).await?;
        let table = Table::new(spec, uuid, self.shared.range, Lsn::ZERO);
        self.feed(control, &table, &now, from, membership.identity, false).await?;
        tracing::info!(table = source.full_name(), target_table = table.spec.target, "table adopted");
        Ok(Ok(Some((now, table))))
    }

    /// Has the lane feed a target that is stored, and stores from where on.
    pub(super) async fn feed(
        &self,
        control: &Client,
        table: &Arc<Table>,
        now: &SourceTable,
        from: Lsn,
        membership: String,
        fresh: bool,
    ) -> Result<(), SessionError> {
        let (reply, fed_from) = oneshot::channel();
        let lane_gone = || SessionError::Lane(Failure::LockLost);
        let heaps = heaps(now);
        let adopt = Command::Adopt { table: Arc::clone(table), fresh, from, heaps, reply };
        self.commands.send(adopt).await.map_err(|_| lane_gone())?;
        let fed_from = fed_from.await.map_err(|_| lane_gone())?;
        if fed_from > from {
            self.is_still(control, now).await?;
        }
        let adopted = |record: &mut TableRecord| (record.fed_from, record.membership) = (fed_from, membership);
        Ok(self.shared.state.update_target(now.oid, &table.uuid, adopted).await?)
    }

    /// Fails if a table has another shape than `before`, or if that can not be told. Its copy would read the columns of
    /// before, and its feed begins after the change: what that gave to a new column would be in neither.
    async fn is_still(&self, control: &Client, before: &SourceTable) -> Result<(), SessionError> {
        let now = self.shape_of(control, before).await?;
        // Rows that moved meanwhile are read where they are; what else it means for them the next look tells.
        let same = |now: &SourceTable| *before == SourceTable { heaps: before.heaps.clone(), ..now.clone() };
        match now {
            Ok((now, _)) if same(&now) => Ok(()),
            _ => Err(SessionError::Reshaped(before.full_name())),
        }
    }

    /// The table as the catalog has it, and the position from which on it is written in this shape;
    /// the inner error says why that can not be told now.
    pub(super) async fn shape_of(
        &self,
        control: &Client,
        source: &SourceTable,
    ) -> Result<Result<(SourceTable, Lsn), String>, SessionError> {
        // One transaction at a time: they share the session.
        let _alone = self.transacting.lock().await;
        let found = match catalog::table_at(control, &self.source, source).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err("it has another name by now; looking again".to_owned()),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                Err("a session has locked it; trying again".to_owned())
            }
            Err(error) if error.kind() == Kind::Definite => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        match &found {
            Ok(_) => lock(&self.pending).remove(&source.oid),
            Err(_) => lock(&self.pending).insert(source.oid),
        };
        Ok(found)
    }

    /// Adds a table to the publication; the inner error says why it is left out. What commits between
    /// this and the beginning of its feed is not fed, and is visible to the copy.
    async fn publish(
        &self,
        control: &Client,
        source: &SourceTable,
    ) -> Result<Result<Membership, String>, SessionError> {
        let table = quote::postgres_table(&source.schema, &source.name);
        let _alone = self.transacting.lock().await;
        match publication::add_to_publication(control, &self.source.publication, &table).await {
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
        let membership =
            publication::memberships(control, &self.publication, Some(source.oid)).await?.remove(&source.oid);
        Ok(membership.ok_or_else(|| "it left the publication as soon as it was added".to_owned()))
    }

    /// Why the target's name can not be used, as the inner error. The target of a table that is not
    /// there any more goes to its successor, which is copied anew beside it: then that table.
    async fn clash(
        &self,
        spec: &TableSpec,
        present: &HashSet<u32>,
        there: &Present,
    ) -> Result<Result<Option<TableRecord>, String>, SessionError> {
        let in_use = |other: String| format!("its name in ClickHouse, {}, is in use for {other}", spec.target);
        if let Some(other) = self.shared.state.find(|other| clashes(other, spec)).await {
            if other.target == spec.target && other.is_adopted() && !present.contains(&other.oid) {
                // Not before the lane has let go of it.
                let free = other.status.is_frozen() && other.fresh.is_none();
                return Ok(if free {
                    Ok(Some(other))
                } else {
                    Err("the table that had its name is let go".to_owned())
                });
            }
            return Ok(Err(in_use(other.full_name())));
        }
        // Those that are adopted at this very moment are not stored yet: the first one has the name.
        for name in [spec.target.clone(), spec.view()] {
            let first = lock(&self.claimed).entry(name).or_insert_with(|| spec.full_name()).clone();
            if first != spec.full_name() {
                return Ok(Err(in_use(first)));
            }
        }
        let reason = match there.taken(spec) {
            None => ddl::refused(&self.shared.client, spec).await?,
            taken => taken,
        };
        Ok(reason.map_or(Ok(None), Err))
    }

    /// A table has the name of one that is gone: it takes over its target.
    async fn succeed(&self, gone: TableRecord, spec: &TableSpec) -> Result<(), SessionError> {
        let why = "the table of this name is another one now".to_owned();
        let successor = TableRecord {
            oid: spec.oid,
            schema: spec.schema.clone(),
            name: spec.name.clone(),
            status: TableStatus::Resync(why),
            fresh: None,
            altering: None,
            ..gone.clone()
        };
        tracing::info!(table = spec.full_name(), target_table = spec.target, "a table takes over a target");
        // In one: a target that is nobody's would be made anew.
        let gone = TableRecord { status: TableStatus::Gone, ..gone };
        Ok(self.shared.state.put_tables(vec![gone, successor]).await?)
    }

    /// The source's name is another: the target gets the one that goes with it, as soon as nothing is
    /// copied into it. Says whether that is on its way.
    pub(super) async fn rename(&mut self, record: &TableRecord, source: &SourceTable) -> Result<bool, SessionError> {
        let named = match (self.shared.layout)(source) {
            Ok(spec) => spec,
            Err(reason) => {
                self.freeze(source.oid, TableStatus::Stopped(format!("{reason}. {ANEW}"))).await;
                return Ok(true);
            }
        };
        if let Some(other) = self.shared.state.find(|other| clashes(other, &named)).await {
            let why = format!("its new name in ClickHouse, {}, is in use for {}", named.target, other.full_name());
            if self.said.insert((source.oid, why.clone())) {
                tracing::warn!(table = source.full_name(), why, "a target keeps its name for now");
            }
            return Ok(false);
        }
        let there = ddl::present(&self.shared.client, &self.source.slot, &[&named]).await?;
        if let Some(why) = there.taken(&named) {
            if self.said.insert((source.oid, why.clone())) {
                tracing::warn!(table = source.full_name(), why, "a target keeps its name for now");
            }
            return Ok(false);
        }
        // A copy writes under the name that it began with.
        let copying = record.fresh.is_some() || record.status == TableStatus::Copying;
        if !copying {
            tracing::info!(table = record.full_name(), now = source.full_name(), "a table has another name");
            self.command(Command::Rename(source.oid, named.schema, named.name, named.target)).await;
        }
        Ok(!copying)
    }
}

/// Whether the target or the view of a table that is known has a name that another one would get.
fn clashes(other: &TableRecord, spec: &TableSpec) -> bool {
    let view = other.target.len() + VIEW_SUFFIX.len();
    let is_view = |name: &str| name.len() == view && name.starts_with(&other.target) && name.ends_with(VIEW_SUFFIX);
    let taken = |name: &str| name == other.target || name == fresh_name(&other.target) || is_view(name);
    other.oid != spec.oid && (taken(&spec.target) || taken(&spec.view()))
}

/// What is stored of a table that is not fed yet.
pub(super) fn record(source: &SourceTable, spec: &TableSpec, uuid: String) -> TableRecord {
    TableRecord {
        oid: source.oid,
        schema: source.schema.clone(),
        name: source.name.clone(),
        target: spec.target.clone(),
        uuid,
        status: TableStatus::Copying,
        fed_from: Lsn::ZERO,
        shaped_from: Version::COPY,
        read_until: Lsn::ZERO,
        floor: Version::COPY,
        membership: String::new(),
        shape: spec.shape(),
        heaps: heaps(source),
        altering: None,
        fresh: None,
    }
}

fn heaps(source: &SourceTable) -> std::collections::BTreeMap<u32, u64> {
    source.heaps.iter().map(|heap| (heap.oid, heap.state())).collect()
}
