//! PostgreSQL: the slot, who holds it, the tables that are left out.

use crate::{
    clickhouse::table::TableSpec,
    config::Config,
    postgres::{
        catalog, lock,
        retention::{Retention, retention},
        sql::{self, SqlError},
    },
};
use serde::Serialize;
use std::collections::HashMap;
use tokio_postgres::{Client, error::SqlState};

/// What PostgreSQL shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Source {
    /// The slot; `None` if there is none.
    pub slot: Option<Retention>,
    /// The walhouse that holds the slot's lock; `None` if none is up.
    pub held_by: Option<String>,
    /// Tables that match and are not replicated.
    pub left_out: Vec<LeftOut>,
    /// The blocks of each table, by oid.
    #[serde(skip)]
    pub(super) blocks: HashMap<u32, u64>,
}

/// A table that is not replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// `schema.name`.
    pub table: String,
    /// Why, and what to do.
    pub reason: String,
    #[serde(skip)]
    pub(super) oid: u32,
}

pub(super) async fn look(config: &Config) -> Result<Source, String> {
    read(config).await.map_err(|error| error.to_string())
}

async fn read(config: &Config) -> Result<Source, SqlError> {
    let client = sql::connect(&config.source, "walhouse status").await?;
    let slot = retention(&client, &config.source.slot).await?;
    let held_by = lock::holder(&client, &config.source.slot).await?;
    let tables = catalog::tables(&client, &config.source).await?.tables;
    let mut left_out = Vec::new();
    for table in &tables {
        // That a server has no Time64 keeps no table out.
        if let Err(reason) = TableSpec::new(table, &config.table_options(&table.schema, &table.name), false) {
            left_out.push(LeftOut { table: table.full_name(), reason, oid: table.oid });
        }
    }
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let blocks = match blocks(&client, &oids).await {
        // A table that somebody has locked is no reason to show nothing.
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => HashMap::new(),
        blocks => blocks?,
    };
    Ok(Source { slot, held_by, left_out, blocks })
}

/// The blocks of tables, with those of their partitions.
async fn blocks(client: &Client, oids: &[u32]) -> Result<HashMap<u32, u64>, SqlError> {
    client.batch_execute("SET lock_timeout = '1s'").await?;
    let rows = client
        .query(
            "SELECT t.oid, ((pg_relation_size(t.oid) + coalesce((SELECT sum(pg_relation_size(p.relid)) \
             FROM pg_partition_tree(t.oid) p WHERE p.isleaf AND p.relid <> t.oid), 0)) \
             / current_setting('block_size')::int8)::int8 FROM unnest($1::oid[]) t(oid)",
            &[&oids],
        )
        .await?;
    let mut blocks = HashMap::new();
    for row in rows {
        let size: Option<i64> = row.try_get(1)?;
        blocks.insert(row.try_get(0)?, size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0));
    }
    Ok(blocks)
}
