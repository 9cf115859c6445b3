//! The database, walhouse's own tables, the targets and their views.

use super::{
    block::ColumnSpec,
    changelog::{self, LogOp, OP_COLUMN, ORDINAL_COLUMN},
    reshape::fresh_name,
    retrying,
    table::{IS_DELETED, TableSpec, VERSION},
    text::DateTimeRange,
};
use crate::{config::SettingValue, quote};
use clickhouse::{Client, error::Error};
use std::collections::{BTreeMap, HashMap};

/// walhouse's own tables; each may be run any number of times.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/clickhouse/0001_checkpoint.sql"),
    include_str!("../../migrations/clickhouse/0002_tables.sql"),
    include_str!("../../migrations/clickhouse/0003_chunks.sql"),
    include_str!("../../migrations/clickhouse/0004_dead_letters.sql"),
    include_str!("../../migrations/clickhouse/0005_shapes.sql"),
    include_str!("../../migrations/clickhouse/0006_requests.sql"),
    include_str!("../../migrations/clickhouse/0007_queue.sql"),
    include_str!("../../migrations/clickhouse/0008_audit_log.sql"),
    include_str!("../../migrations/clickhouse/0009_async_operations.sql"),
    include_str!("../../migrations/clickhouse/0010_dead_letters_sent.sql"),
    include_str!("../../migrations/clickhouse/0011_outbox.sql"),
    include_str!("../../migrations/clickhouse/0012_pauses.sql"),
    include_str!("../../migrations/clickhouse/0013_pauses_taken_up.sql"),
];

/// A confirmed insert, and a merge that took its place, outlive a power cut. And where a file system takes
/// what is written and looks for room later, as one behind a network may, a full disk fails the insert.
const DURABLE: &[(&str, &str)] = &[
    ("fsync_after_insert", "1"),
    ("fsync_part_directory", "1"),
    ("min_rows_to_fsync_after_merge", "1"),
    ("min_compressed_bytes_to_fsync_after_merge", "1"),
];
/// The bytes of a granule in tables whose values are looked up by key, since a lookup reads whole granules: so many at
/// least, and for each column so many. A lookup reads few of the columns, and of many columns each granule is a write and
/// a mark of its own: at 64 KiB, sixty columns cost ClickHouse half as much again as at 256 KiB.
const SMALL_GRANULE: usize = 64 << 10;
const GRANULE_OF_COLUMN: usize = 4 << 10;

/// The timestamps that the server can hold.
pub async fn datetime_range(client: &Client) -> Result<DateTimeRange, Error> {
    let version: String = retrying("ask for the version", || client.query_raw("SELECT version()").fetch_one()).await?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    Ok(DateTimeRange::of_server(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
}

/// Asks whether the server has the type Time64, and lets anybody make a column of it: one that still
/// asks for a setting may ask a reader for it too.
pub const HAS_TIME64: &str = "SELECT ifNull((SELECT count() FROM system.data_type_families WHERE name = 'Time64') > 0 \
    AND (SELECT count() FROM system.settings WHERE name = 'enable_time_time64_type' AND value = '0') = 0, 0)";

/// Whether the server has the type Time64.
pub async fn has_time64(client: &Client) -> Result<bool, Error> {
    let has = retrying("ask for the types", || client.query_raw(HAS_TIME64).fetch_one::<u8>()).await?;
    Ok(has == 1)
}

/// Whether the database is there, and which of walhouse's own tables, and columns of them, are: each by its name, such as
/// `_checkpoint` or `_checkpoint.queue_lsn`, in the order in which [`migrate`] makes them.
pub async fn migrated(server: &Client, database: &str) -> Result<(bool, Vec<(String, bool)>), Error> {
    let exists = "SELECT count() FROM system.databases WHERE name = {name: String}";
    let count: u64 =
        retrying("look for the database", || server.query_raw(exists).param("name", database).fetch_one()).await?;
    let columns = "SELECT table, name FROM system.columns WHERE database = {name: String}";
    let look = || server.query_raw(columns).param("name", database).fetch_all::<(String, String)>();
    let columns = retrying("look at walhouse's own tables", look).await?;
    let is_there = |(table, column): &(&str, Option<&str>)| {
        columns.iter().any(|(of, name)| of == table && column.is_none_or(|column| column == name))
    };
    let name = |(table, column): (&str, Option<&str>)| match column {
        Some(column) => format!("{table}.{column}"),
        None => table.to_owned(),
    };
    let made = MIGRATIONS.iter().filter_map(|migration| made(migration));
    Ok((count > 0, made.map(|thing| (name(thing), is_there(&thing))).collect()))
}

/// The table that a migration makes, or the table and the last column that it adds.
fn made(migration: &str) -> Option<(&str, Option<&str>)> {
    let word = |after: &str| {
        let rest = migration.rsplit_once(after)?.1.trim_start();
        rest.split(|one: char| !one.is_ascii_alphanumeric() && one != '_').next()
    };
    match word("CREATE TABLE IF NOT EXISTS ") {
        Some(table) => Some((table, None)),
        None => Some((word("ALTER TABLE ")?, Some(word("ADD COLUMN IF NOT EXISTS ")?))),
    }
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
    drop(client, &spec.target).await?;
    let create = create_table(spec);
    retrying("create a target", || client.query_raw(&create).execute()).await?;
    Ok(uuid(client, &spec.target).await?.unwrap_or_default())
}

/// Creates the view of a target's current rows, in place of one that is there already.
pub async fn view(client: &Client, spec: &TableSpec) -> Result<(), Error> {
    let view = create_view(spec);
    retrying("create a view", || client.query_raw(&view).execute()).await
}

/// Drops a view, if it is there.
pub async fn drop_view(client: &Client, view: &str) -> Result<(), Error> {
    let drop = format!("DROP VIEW IF EXISTS {} SYNC", quote::clickhouse(view));
    retrying("drop a view", || client.query_raw(&drop).execute()).await
}

/// Drops a target that is not in use any more, if it is there.
pub async fn drop(client: &Client, target: &str) -> Result<(), Error> {
    let drop = format!("DROP TABLE IF EXISTS {} SYNC", quote::clickhouse(target));
    retrying("drop a target that is not in use", || client.query_raw(&drop).execute()).await
}

/// The names of a target's columns.
pub async fn columns(client: &Client, target: &str) -> Result<Vec<String>, Error> {
    let sql = "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {name: String}";
    retrying("look at a target", || client.query_raw(sql).param("name", target).fetch_all::<String>()).await
}

/// Whether a table has the columns by which a target of walhouse's is told: without them it is somebody else's.
pub async fn is_target(client: &Client, table: &str) -> Result<bool, Error> {
    let columns = columns(client, table).await?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    Ok(has(VERSION) && (has(IS_DELETED) || has(ORDINAL_COLUMN)))
}

/// The name of the table with this UUID, if it exists.
pub async fn name(client: &Client, uuid: &str) -> Result<Option<String>, Error> {
    let sql =
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND uuid = toUUIDOrZero({uuid: String})";
    retrying("look for a target", || client.query_raw(sql).param("uuid", uuid).fetch_optional::<String>()).await
}

/// The longest name of a file, in bytes.
const LONGEST_FILE: usize = 255;
/// What ClickHouse calls the file of a table that was dropped, beside its name and its database's: dots, a UUID, `.sql`.
const FILE_BESIDE: usize = 48;

/// How long a name is as a part of a file's name: other than letters, digits and `_`, a byte takes three.
fn escaped(name: &str) -> usize {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() || byte == b'_' { 1 } else { 3 }).sum()
}

/// Tables in the database that have names which are wanted.
#[derive(Debug, Default)]
pub struct Present {
    /// The database itself.
    database: String,
    tables: HashMap<String, PresentTable>,
    /// Targets of other slots, with the slot.
    others: HashMap<String, String>,
}

#[derive(Clone, Copy, Debug)]
struct PresentTable {
    is_view: bool,
    /// Whether it has the columns of a target.
    is_target: bool,
}

impl Present {
    /// Why the names of a target and its view can not be used, if so: [`create`] would drop what is
    /// there.
    pub fn taken(&self, spec: &TableSpec) -> Option<String> {
        if let Some(excess) = self.excess(spec) {
            return Some(format!(
                "its name in ClickHouse, {}, is by {excess} bytes too long for the files there, in whose names each byte that is \
                 no letter, digit or _ takes three: give it a shorter target in [tables.\"{}\"]",
                spec.target,
                spec.full_name()
            ));
        }
        let (target, view) = (&spec.target, spec.view());
        let foreign_table = self.tables.get(target).is_some_and(|table| !table.is_target);
        let foreign_view = self.tables.get(&view).is_some_and(|table| !table.is_view);
        let foreign = [(foreign_table, target), (foreign_view, &view)].into_iter().find(|(is, _)| *is);
        if let Some((_, name)) = foreign {
            return Some(format!(
                "ClickHouse has a table {name} that is not walhouse's: rename that one, or choose another database"
            ));
        }
        let other = self.others.get(target)?;
        Some(format!("the table {target} in ClickHouse belongs to the slot {other}: choose another database"))
    }

    /// By how much the longest of the names that a table gets is too long for a file, if it is.
    fn excess(&self, spec: &TableSpec) -> Option<usize> {
        let own = escaped(&spec.view()).max(escaped(&fresh_name(&spec.target)));
        (own + escaped(&self.database) + FILE_BESIDE).checked_sub(LONGEST_FILE).filter(|excess| *excess > 0)
    }
}

/// What there is under the names of these targets and their views: one question for all of them.
pub async fn present(client: &Client, slot: &str, specs: &[&TableSpec]) -> Result<Present, Error> {
    let names: Vec<String> = specs.iter().flat_map(|spec| [spec.target.clone(), spec.view()]).collect();
    let tables = "SELECT t.name, t.engine = 'View', c.own >= 2 FROM system.tables t LEFT JOIN \
         (SELECT table, count() AS own FROM system.columns WHERE database = currentDatabase() AND table IN {names: Array(String)} \
          AND name IN ('_version', '_is_deleted', '_ordinal') GROUP BY table) c ON c.table = t.name \
         WHERE t.database = currentDatabase() AND t.name IN {names: Array(String)} SETTINGS join_use_nulls = 0";
    let tables = || client.query_raw(tables).param("names", &names).fetch_all::<(String, u8, u8)>();
    let others = "SELECT target, max(slot) FROM _tables WHERE target IN {names: Array(String)} AND slot != {slot: String} \
         GROUP BY target";
    let others = || client.query_raw(others).param("names", &names).param("slot", slot).fetch_all::<(String, String)>();
    let tables = retrying("look at targets", tables).await?.into_iter();
    let table = |(name, is_view, is_target)| (name, PresentTable { is_view: is_view != 0, is_target: is_target != 0 });
    let others = retrying("look at targets", others).await?.into_iter().collect();
    let database = || client.query_raw("SELECT currentDatabase()").fetch_one::<String>();
    let database = retrying("look at the database", database).await?;
    Ok(Present { database, tables: tables.map(table).collect(), others })
}

/// The UUID of a target, if it exists.
pub async fn uuid(client: &Client, target: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT toString(uuid) FROM system.tables WHERE database = currentDatabase() AND name = {name: String}";
    retrying("look for a target", || client.query_raw(sql).param("name", target).fetch_optional::<String>()).await
}

/// Why ClickHouse does not take what the configuration wishes for a target, if so. The name must be
/// free: the target is created to see, and stays only if nothing is wrong with it.
pub async fn refused(client: &Client, spec: &TableSpec) -> Result<Option<String>, Error> {
    if spec.choices.partition_by.is_none() && spec.choices.settings.is_empty() {
        return Ok(None);
    }
    let section = format!("[tables.\"{}\"]", spec.full_name());
    match create(client, spec).await {
        Ok(_) => {}
        // Its words are about the statement, and there is no row that they could quote.
        Err(Error::BadResponse(said)) if said.starts_with("Code: ") && !said.contains("(ACCESS_DENIED)") => {
            let said = said.lines().next().unwrap_or_default();
            return Ok(Some(format!("ClickHouse refuses what {section} wishes for its table: {said}")));
        }
        Err(error) => return Err(error),
    }
    // An entry of a log never changes its values.
    if spec.changelog {
        return Ok(None);
    }
    let sql = "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {name: String} \
               AND is_in_partition_key AND NOT is_in_sorting_key";
    let foreign = || client.query_raw(sql).param("name", &spec.target).fetch_all::<String>();
    let foreign = retrying("look at the partition key", foreign).await?;
    if foreign.is_empty() {
        return Ok(None);
    }
    drop(client, &spec.target).await?;
    Ok(Some(format!(
        "partition_by in {section} uses {}, which its key has not: a row whose value changes would be in two partitions, \
         which are never merged",
        foreign.join(", ")
    )))
}

/// The UUIDs of all tables, by name.
pub async fn uuids(client: &Client) -> Result<HashMap<String, String>, Error> {
    let sql = "SELECT name, toString(uuid) FROM system.tables WHERE database = currentDatabase()";
    let all = || client.query_raw(sql).fetch_all::<(String, String)>();
    Ok(retrying("look for the targets", all).await?.into_iter().collect())
}

fn create_table(spec: &TableSpec) -> String {
    let columns = spec.columns.iter().flat_map(ColumnSpec::native);
    let columns: Vec<String> = columns.map(|(name, ty)| format!("{} {ty}", quote::clickhouse(&name))).collect();
    let key: Vec<String> = spec.key.iter().map(|&index| quote::clickhouse(&spec.columns[index].name)).collect();
    let partition = spec.choices.partition_by.as_ref().map(|by| format!("PARTITION BY {by} ")).unwrap_or_default();
    let (own, engine, key) = if spec.changelog {
        let own = format!("{VERSION} UInt128, {ORDINAL_COLUMN} UInt64, {OP_COLUMN} {}", LogOp::column_type());
        (own, "ReplacingMergeTree".to_owned(), format!("{VERSION}, {ORDINAL_COLUMN}"))
    } else {
        let engine = format!("ReplacingMergeTree({VERSION}, {IS_DELETED})");
        (format!("{VERSION} UInt128, {IS_DELETED} UInt8"), engine, key.join(", "))
    };
    // An attempt whose answer was lost may have created it.
    format!(
        "CREATE TABLE IF NOT EXISTS {} ({}, {own}) ENGINE = {engine} {partition}ORDER BY ({key}) SETTINGS {}",
        quote::clickhouse(&spec.target),
        columns.join(", "),
        settings(spec),
    )
}

/// walhouse's own settings, and over them the configured ones.
fn settings(spec: &TableSpec) -> String {
    let granule = SMALL_GRANULE.max(spec.columns.len() * GRANULE_OF_COLUMN);
    let granules = spec.toastable().then(|| ("index_granularity_bytes", granule.to_string()));
    let own = DURABLE.iter().map(|(name, value)| (*name, (*value).to_owned())).chain(granules);
    let configured = spec.choices.settings.iter().map(|(name, value)| {
        let value = match value {
            SettingValue::Bool(on) => u8::from(*on).to_string(),
            SettingValue::Integer(number) => number.to_string(),
            SettingValue::Float(number) => number.to_string(),
            SettingValue::Text(text) => quote::clickhouse_string(text),
        };
        (name.as_str(), value)
    });
    let all: BTreeMap<_, _> = own.chain(configured).collect();
    all.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

/// The statement for the view of a target's current rows.
pub fn create_view(spec: &TableSpec) -> String {
    let create = format!("CREATE OR REPLACE VIEW {}", quote::clickhouse(&spec.view()));
    if spec.changelog {
        return format!("{create} AS {}", changelog::current(spec));
    }
    let columns = spec.columns.iter().flat_map(ColumnSpec::native);
    let columns: Vec<String> = columns.map(|(name, _)| quote::clickhouse(&name)).collect();
    format!(
        "{create} AS SELECT {} FROM {} FINAL WHERE {IS_DELETED} = 0",
        columns.join(", "),
        quote::clickhouse(&spec.target),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_as_long_as_its_file() {
        for (name, length) in
            [("sales_order2", 12), ("sales order", 13), ("a.b", 5), ("ü", 6), ("注文", 18), ("\"`\\", 9)]
        {
            assert_eq!(escaped(name), length, "{name}");
        }
    }

    #[test]
    fn each_migration_says_what_it_makes() {
        let all: Vec<_> = MIGRATIONS.iter().map(|migration| made(migration)).collect();
        assert_eq!(all[0], Some(("_checkpoint", None)));
        assert!(all.contains(&Some(("_checkpoint", Some("queue_lsn")))), "{all:?}");
        assert!(all.iter().all(Option::is_some), "{all:?}");
    }
}
