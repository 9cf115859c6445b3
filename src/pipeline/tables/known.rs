//! What is stored of the tables, when a session begins.

use super::SessionError;
use crate::{
    clickhouse::{
        ddl,
        job::Shared,
        reshape,
        sink::Member,
        state::{TableRecord, TableStatus},
        table::{ANEW, Feed, Table, TableSpec},
    },
    config::SourceConfig,
    event::SourceTable,
    postgres::{
        catalog::{self, Listing},
        publication::Membership,
    },
};
use std::{collections::HashMap, sync::Arc};
use tokio_postgres::Client;

/// Targets that are stored and can be fed from the stream's beginning. What an earlier session
/// began with them is completed, and one that has missed something is frozen here, before anything
/// is streamed.
pub(in crate::pipeline) async fn known(
    control: &Client,
    source: &SourceConfig,
    shared: &Arc<Shared>,
) -> Result<Vec<Member>, SessionError> {
    let Listing { tables, memberships, .. } = catalog::tables(control, source).await?;
    let present: HashMap<u32, _> = tables.into_iter().map(|table| (table.oid, table)).collect();
    for absent in shared.config.without_table(present.values().map(SourceTable::full_name)) {
        tracing::warn!(table = absent, "options are given for a table that is not there; is its name misspelt?");
    }
    let mut uuids = ddl::uuids(&shared.client).await?;
    let mut known = Vec::new();
    for record in shared.state.tables().await.into_iter().filter(TableRecord::is_adopted) {
        let is_there = |record: &TableRecord| uuids.get(&record.target) == Some(&record.uuid);
        let record = if is_there(&record) && !record.is_undergoing() {
            record
        } else {
            let record = reshape::complete(&shared.client, &shared.state, record).await?;
            uuids = ddl::uuids(&shared.client).await?;
            record
        };
        let replaced = uuids.get(&record.target) != Some(&record.uuid);
        let freeze = if !present.contains_key(&record.oid) {
            Some(gone())
        } else if replaced {
            let target = &record.target;
            Some(TableStatus::Stopped(format!("the table {target} in ClickHouse was dropped or replaced. {ANEW}")))
        } else {
            missed(&record, memberships.get(&record.oid))
        };
        let (record, freeze) = match freeze {
            None => configured(shared, record).await?,
            freeze => (record, freeze),
        };
        // The reason is that of the fresh target too, if there is one.
        let given_up = |fresh: &TableRecord| freeze.is_some() || fresh.status.is_frozen() || !fresh.is_adopted();
        let record = if record.fresh.as_deref().is_some_and(given_up) {
            reshape::discard(&shared.client, &shared.state, record).await?
        } else {
            record
        };
        let mut frozen = record.status.is_frozen();
        if let Some(status) = freeze.filter(|_| !frozen) {
            tracing::error!(table = record.full_name(), ?status, "a table has missed changes; the others go on");
            shared.state.update_table(record.oid, |record| record.status = status).await?;
            frozen = true;
        }
        known.push(member(shared, &record, frozen, false)?);
        if let Some(fresh) = record.fresh.as_deref() {
            known.push(member(shared, fresh, false, true)?);
        }
    }
    Ok(known)
}

fn member(shared: &Shared, record: &TableRecord, frozen: bool, fresh: bool) -> Result<Member, SessionError> {
    let TableRecord { oid, schema, name, target, shape, .. } = record;
    let options = shared.config.table_options(schema, name);
    let spec = TableSpec::stored(*oid, schema, name, target, shape, &options).map_err(SessionError::Definite)?;
    let table = Table::new(spec, record.uuid.clone(), shared.range, record.read_until);
    let feed = Feed { from: record.fed_from, floor: record.floor.max(record.shaped_from) };
    Ok(Member { table, feed, frozen, fresh, heaps: record.heaps.clone() })
}

/// What becomes of a table whose target was made by another configuration. A fresh target of which
/// that is true is given up.
async fn configured(shared: &Shared, record: TableRecord) -> Result<(TableRecord, Option<TableStatus>), SessionError> {
    let TableRecord { oid, schema, name, target, .. } = &record;
    let options = shared.config.table_options(schema, name);
    // What is filled beside it is judged instead of it, once it is fed.
    let fed = record.fresh.as_deref().filter(|fresh| fresh.is_adopted()).unwrap_or(&record);
    let spec = TableSpec::stored(*oid, schema, name, target, &fed.shape, &options).map_err(SessionError::Definite)?;
    if spec.has_other_settings(&options) {
        let table = spec.full_name();
        tracing::warn!(
            table,
            "settings have changed in the configuration; the target keeps those that it was made with"
        );
    }
    for column in spec.without_place_for_null() {
        let what = "unrepresentable = \"null\" does nothing for a column that was created without NULL";
        tracing::warn!(table = spec.full_name(), column, "{what}");
    }
    let Some(difference) = spec.differs_by_configuration(&options) else { return Ok((record, None)) };
    let record = reshape::discard(&shared.client, &shared.state, record).await?;
    Ok((record, Some(TableStatus::Stopped(format!("{difference}. {ANEW}")))))
}

/// What becomes of a table that is not there any more.
pub(super) fn gone() -> TableStatus {
    let why = "it was dropped, or does not match source.tables any more; what ClickHouse has of it stays";
    TableStatus::Stopped(format!("{why}. {ANEW}"))
}

/// What becomes of a table that may have missed changes, if it may.
pub(super) fn missed(record: &TableRecord, membership: Option<&Membership>) -> Option<TableStatus> {
    // What is filled beside it is judged instead of it, once it is fed.
    let fed = record.fresh.as_deref().filter(|fresh| fresh.is_adopted()).unwrap_or(record);
    match membership {
        None => Some(TableStatus::Stopped(
            "it is not in the publication any more; once it is again, it is copied anew".to_owned(),
        )),
        Some(membership) if membership.identity != fed.membership => Some(TableStatus::Resync(
            "it left the publication and came back, or what is published of it was altered".to_owned(),
        )),
        Some(_) => None,
    }
}
