//! The database, walhouse's own tables, the targets and their views.

use super::{
    retrying,
    table::{IS_DELETED, TableSpec, VERSION},
    text::DateTimeRange,
};
use crate::quote;
use clickhouse::{Client, error::Error};
use std::collections::HashMap;

/// walhouse's own tables; each may be run any number of times.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/clickhouse/0001_checkpoint.sql"),
    include_str!("../../migrations/clickhouse/0002_tables.sql"),
    include_str!("../../migrations/clickhouse/0003_chunks.sql"),
];

/// A confirmed insert, and a merge that took its place, outlive a power cut.
const DURABLE: &str = "fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, \
                       min_compressed_bytes_to_fsync_after_merge = 1";
/// Granules of tables whose values are looked up by key: a lookup reads whole granules, and these
/// rows are wide.
const SMALL_GRANULES: &str = "index_granularity_bytes = 65536";

/// The timestamps that the server can hold.
pub async fn datetime_range(client: &Client) -> Result<DateTimeRange, Error> {
    let version: String = retrying("ask for the version", || client.query_raw("SELECT version()").fetch_one()).await?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    Ok(DateTimeRange::of_server(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
}

/// Creates the database and walhouse's own tables where they are missing. `server` has no
/// database chosen, `client` has.
pub async fn migrate(server: &Client, client: &Client, database: &str) -> Result<(), Error> {
    let create = format!("CREATE DATABASE IF NOT EXISTS {}", quote::clickhouse(database));
    let exists = "SELECT count() FROM system.databases WHERE name = {name: String}";
    // Asked first, so that a database made by somebody else needs no right to make one.
    let count: u64 =
        retrying("look for the database", || server.query_raw(exists).param("name", database).fetch_one()).await?;
    if count == 0 {
        retrying("create the database", || server.query_raw(&create).execute()).await?;
        tracing::info!(database, "database created");
    }
    for migration in MIGRATIONS {
        retrying("create walhouse's own tables", || client.query_raw(migration).execute()).await?;
    }
    Ok(())
}

/// Creates a target, empty: one of that name that is there already is not in use, and is dropped.
/// Returns its UUID.
pub async fn create(client: &Client, spec: &TableSpec) -> Result<String, Error> {
    let drop = format!("DROP TABLE IF EXISTS {} SYNC", quote::clickhouse(&spec.target));
    retrying("drop a target that is not in use", || client.query_raw(&drop).execute()).await?;
    let create = create_table(spec);
    retrying("create a target", || client.query_raw(&create).execute()).await?;
    let view = create_view(spec);
    retrying("create a view", || client.query_raw(&view).execute()).await?;
    Ok(uuid(client, &spec.target).await?.unwrap_or_default())
}

/// Why the names of a target and its view can not be used, if so: [`create`] would drop what is there.
pub async fn taken(client: &Client, slot: &str, spec: &TableSpec) -> Result<Option<String>, Error> {
    // Numbers and a String, none of them Nullable: that is what the client is told to expect.
    let sql = "WITH (SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = {name: String}) AS tables, \
               (SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = {name: String} \
                AND name IN ('_version', '_is_deleted')) AS own \
               SELECT ifNull(tables > 0 AND own < 2, 0) AS foreign, \
               ifNull((SELECT count() > 0 FROM system.tables WHERE database = currentDatabase() AND name = {view: String} \
                AND engine != 'View'), 0) AS foreign_view, \
               ifNull((SELECT max(slot) FROM _tables WHERE target = {name: String} AND slot != {slot: String}), '') AS other";
    let (target, view) = (&spec.target, spec.view());
    let look = || {
        let query = client.query_raw(sql).param("name", target).param("view", &view).param("slot", slot);
        query.fetch_one::<(u8, u8, String)>()
    };
    let (foreign, foreign_view, other) = retrying("look at a target", look).await?;
    let foreign = [(foreign, target), (foreign_view, &view)].into_iter().find(|(is, _)| *is != 0).map(|(_, name)| name);
    Ok(if let Some(name) = foreign {
        Some(format!(
            "ClickHouse has a table {name} that is not walhouse's: rename that one, or choose another database"
        ))
    } else if !other.is_empty() {
        Some(format!("the table {target} in ClickHouse belongs to the slot {other}: choose another database"))
    } else {
        None
    })
}

/// The UUID of a target, if it exists.
pub async fn uuid(client: &Client, target: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT toString(uuid) FROM system.tables WHERE database = currentDatabase() AND name = {name: String}";
    retrying("look for a target", || client.query_raw(sql).param("name", target).fetch_optional::<String>()).await
}

/// The UUIDs of all tables, by name.
pub async fn uuids(client: &Client) -> Result<HashMap<String, String>, Error> {
    let sql = "SELECT name, toString(uuid) FROM system.tables WHERE database = currentDatabase()";
    let all = || client.query_raw(sql).fetch_all::<(String, String)>();
    Ok(retrying("look for the targets", all).await?.into_iter().collect())
}

fn create_table(spec: &TableSpec) -> String {
    let columns = spec
        .columns
        .iter()
        .map(|column| format!("{} {}", quote::clickhouse(&column.name), column.ty.name(column.nullable)));
    let columns: Vec<String> = columns.collect();
    let key: Vec<String> = spec.key.iter().map(|&index| quote::clickhouse(&spec.columns[index].name)).collect();
    let granules = if spec.toastable() { format!(", {SMALL_GRANULES}") } else { String::new() };
    format!(
        "CREATE TABLE {} ({}, {VERSION} UInt128, {IS_DELETED} UInt8) \
         ENGINE = ReplacingMergeTree({VERSION}, {IS_DELETED}) ORDER BY ({}) SETTINGS {DURABLE}{granules}",
        quote::clickhouse(&spec.target),
        columns.join(", "),
        key.join(", "),
    )
}

fn create_view(spec: &TableSpec) -> String {
    let columns: Vec<String> = spec.columns.iter().map(|column| quote::clickhouse(&column.name)).collect();
    format!(
        "CREATE OR REPLACE VIEW {} AS SELECT {} FROM {} FINAL WHERE {IS_DELETED} = 0",
        quote::clickhouse(&spec.view()),
        columns.join(", "),
        quote::clickhouse(&spec.target),
    )
}
