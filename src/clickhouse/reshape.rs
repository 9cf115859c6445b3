//! What is done to a whole target: alter it, freeze it, give it another name, put a fresh one in
//! its place.
//!
//! Each may be cut short at any point. So what is meant is stored first, each statement may be run
//! again, and what has been reached is told by the targets' UUIDs, which go with a table when its
//! name is exchanged: a second EXCHANGE would swap back. [`complete`] ends at the start of a
//! session what an earlier one began.

use super::{
    client::{describe, kind as error_kind},
    ddl,
    job::{Failure, MUTATION_PATIENCE, Shared},
    retrying_within,
    state::{Altering, State, TableRecord, TableStatus},
    table::{ANEW, Table, TableSpec},
};
use crate::{config::TableOptions, event::Version, quote, retry::Kind};
use clickhouse::{Client, error::Error};
use std::collections::BTreeMap;

/// What follows a target's name in that of the fresh one beside it.
const FRESH_SUFFIX: &str = "__resync";

/// The name of the fresh target beside one.
pub fn fresh_name(target: &str) -> String {
    format!("{target}{FRESH_SUFFIX}")
}

/// The name of the live target beside a fresh one.
pub(super) fn live_name(fresh: &str) -> &str {
    fresh.strip_suffix(FRESH_SUFFIX).unwrap_or(fresh)
}

pub(super) async fn freeze(shared: &Shared, table: &Table, status: TableStatus) -> Result<(), Failure> {
    table.end_copy().await;
    let freeze = |record: &mut TableRecord| {
        // Its target may have gone to another source by now.
        if record.status != TableStatus::Gone {
            record.status = status;
        }
    };
    shared.state.update_target(table.spec.oid, &table.uuid, freeze).await?;
    // A copy that is called for begins with the next look.
    shared.look.notify_one();
    Ok(())
}

/// Gives up a fresh target. What is frozen without it stays so, for the newer reason.
pub(super) async fn abandon(shared: &Shared, table: &Table, status: TableStatus) -> Result<(), Failure> {
    table.end_copy().await;
    let forget = |record: &mut TableRecord| {
        if record.fresh.take_if(|fresh| fresh.uuid == table.uuid).is_some() && record.status.is_frozen() {
            record.status = status;
        }
    };
    shared.state.update_table(table.spec.oid, forget).await?;
    Ok(drop_fresh(&shared.client, &table.spec.target, &table.uuid).await?)
}

/// Gives up a fresh target that nobody feeds yet, and returns what is known of the table then.
pub async fn discard(client: &Client, state: &State, record: TableRecord) -> Result<TableRecord, Error> {
    let Some(fresh) = record.fresh.as_deref() else { return Ok(record) };
    // Dropped while it is known: nobody would look for it after that.
    drop_fresh(client, &fresh.target, &fresh.uuid).await?;
    state.update_table(record.oid, |record| record.fresh = None).await?;
    Ok(state.table(record.oid).await.unwrap_or(record))
}

/// Drops what is under this name if it is the table with this UUID: another one may have the name by
/// now.
async fn drop_fresh(client: &Client, name: &str, uuid: &str) -> Result<(), Error> {
    if ddl::uuid(client, name).await?.as_deref() == Some(uuid) { ddl::drop(client, name).await } else { Ok(()) }
}

pub(super) async fn alter(
    shared: &Shared,
    table: &Table,
    altering: Altering,
    heaps: BTreeMap<u32, u64>,
) -> Result<(), Failure> {
    // An attempt without an answer could land in the new shape.
    shared.inserter.settle().await?;
    let (oid, uuid) = (table.spec.oid, table.uuid.as_str());
    let begun = altering.clone();
    shared
        .state
        .update_target(oid, uuid, |record| {
            record.altering = Some(begun);
            record.heaps = heaps;
        })
        .await?;
    match complete_altering(&shared.client, &shared.state, oid, uuid, altering).await {
        Err(error) if error_kind(&error) == Kind::Definite => {
            // Only this table stops.
            shared.state.update_target(oid, uuid, |record| record.altering = None).await?;
            Err(Failure::Table(format!("its target can not be altered: {}", describe(&error))))
        }
        done => Ok(done?),
    }
}

async fn complete_altering(
    client: &Client,
    state: &State,
    oid: u32,
    uuid: &str,
    altering: Altering,
) -> Result<(), Error> {
    for statement in &altering.statements {
        let run = || client.query_raw(statement).execute();
        retrying_within(MUTATION_PATIENCE, "alter a target", run).await?;
    }
    let done = |record: &mut TableRecord| {
        record.shape = altering.shape;
        record.shaped_from = record.shaped_from.max(altering.shaped_from);
        record.altering = None;
    };
    state.update_target(oid, uuid, done).await
}

pub(super) async fn note(
    shared: &Shared,
    table: &Table,
    shape: String,
    heaps: BTreeMap<u32, u64>,
    known_from: Version,
) -> Result<(), Failure> {
    let noted = |record: &mut TableRecord| {
        (record.shape, record.heaps) = (shape, heaps);
        record.shaped_from = record.shaped_from.max(known_from);
    };
    Ok(shared.state.update_target(table.spec.oid, &table.uuid, noted).await?)
}

/// Puts the fresh target in the place of the live one. Neither is written any more.
pub(super) async fn swap(
    shared: &Shared,
    fresh: &Table,
    live: Option<&Table>,
    spec: &TableSpec,
) -> Result<(), Failure> {
    if let Some(live) = live {
        live.end_copy().await;
    }
    shared.inserter.settle().await?;
    Ok(complete_swap(&shared.client, &shared.state, spec, &fresh.spec.target, &fresh.uuid).await?)
}

async fn complete_swap(client: &Client, state: &State, spec: &TableSpec, fresh: &str, uuid: &str) -> Result<(), Error> {
    match ddl::uuid(client, &spec.target).await? {
        Some(present) if present == uuid => {}
        Some(_) => {
            let (live, fresh) = (quote::clickhouse(&spec.target), quote::clickhouse(fresh));
            exchange(client, &format!("EXCHANGE TABLES {live} AND {fresh}"), &spec.target, uuid).await?;
        }
        None => {
            let (live, fresh) = (quote::clickhouse(&spec.target), quote::clickhouse(fresh));
            exchange(client, &format!("RENAME TABLE {fresh} TO {live}"), &spec.target, uuid).await?;
        }
    }
    ddl::view(client, spec).await?;
    let replaced = state.table(spec.oid).await.map(|record| record.uuid).unwrap_or_default();
    state.update_table(spec.oid, TableRecord::swap).await?;
    drop_fresh(client, fresh, &replaced).await?;
    tracing::info!(table = spec.full_name(), target_table = spec.target, "the fresh copy is the live one now");
    Ok(())
}

/// Runs a statement that must not run twice, until the table of this name has this UUID.
async fn exchange(client: &Client, statement: &str, target: &str, uuid: &str) -> Result<(), Error> {
    loop {
        let outcome = client.query_raw(statement).execute().await;
        if ddl::uuid(client, target).await?.as_deref() == Some(uuid) {
            return Ok(());
        }
        match outcome {
            Err(error) if super::client::kind(&error) == crate::retry::Kind::Definite => return Err(error),
            _ => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
        }
    }
}

/// Gives a target another name.
pub(super) async fn rename(shared: &Shared, table: &Table, spec: &TableSpec) -> Result<(), Failure> {
    // An attempt without an answer could land in another table that takes the name.
    shared.inserter.settle().await?;
    let client = &shared.client;
    if ddl::uuid(client, &spec.target).await?.as_deref() != Some(&*table.uuid) {
        let (from, to) = (quote::clickhouse(&table.spec.target), quote::clickhouse(&spec.target));
        exchange(client, &format!("RENAME TABLE {from} TO {to}"), &spec.target, &table.uuid).await?;
    }
    ddl::drop_view(client, &table.spec.view()).await?;
    ddl::view(client, spec).await?;
    let renamed = |record: &mut TableRecord| {
        record.target.clone_from(&spec.target);
        record.schema.clone_from(&spec.schema);
        record.name.clone_from(&spec.name);
    };
    Ok(shared.state.update_target(spec.oid, &table.uuid, renamed).await?)
}

/// Ends what an earlier session began: a swap, an alteration, a new name. Returns what is known
/// of the table then.
///
/// # Errors
/// What ClickHouse says, or a layout that was stored and is none.
pub async fn complete(client: &Client, state: &State, record: TableRecord) -> Result<TableRecord, Failure> {
    let oid = record.oid;
    for target in [Some(&record), record.fresh.as_deref()].into_iter().flatten() {
        let Some(altering) = target.altering.clone() else { continue };
        match complete_altering(client, state, oid, &target.uuid, altering).await {
            Err(error) if error_kind(&error) == Kind::Definite => {
                let reason = format!("its target can not be altered: {}. {ANEW}", describe(&error));
                let stop = |record: &mut TableRecord| {
                    (record.altering, record.status) = (None, TableStatus::Stopped(reason));
                };
                state.update_target(oid, &target.uuid, stop).await?;
            }
            done => done?,
        }
    }
    let record = state.table(oid).await.unwrap_or(record);
    if let Some(fresh) = record.fresh.as_deref().filter(|fresh| fresh.status == TableStatus::Swapping) {
        let spec = TableSpec::stored(
            oid,
            &record.schema,
            &record.name,
            &record.target,
            &fresh.shape,
            &TableOptions::default(),
        );
        complete_swap(client, state, &spec.map_err(Failure::Bug)?, &fresh.target, &fresh.uuid).await?;
    }
    let record = state.table(oid).await.unwrap_or(record);
    // The name goes with the UUID: a new one may have been given and not stored.
    if let Some(name) = ddl::name(client, &record.uuid).await?.filter(|name| *name != record.target) {
        state.update_table(oid, |record| record.target = name).await?;
        if let Some(record) = state.table(oid).await {
            let spec = TableSpec::stored(
                oid,
                &record.schema,
                &record.name,
                &record.target,
                &record.shape,
                &TableOptions::default(),
            );
            ddl::view(client, &spec.map_err(Failure::Bug)?).await?;
        }
    }
    Ok(state.table(oid).await.unwrap_or(record))
}
