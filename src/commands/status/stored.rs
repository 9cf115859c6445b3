//! ClickHouse: the checkpoint, the tables, what is paused, what was asked for, and the rows that no table takes.

use crate::{
    clickhouse::{
        client::{client, code, describe},
        pauses::{Pause, Pauses},
        requests::{Request, Requests},
        state::{State, TableRecord, TableStatus},
    },
    config::Config,
    event::Lsn,
};
use clickhouse::{Client, error::Error};
use serde::{Serialize, Serializer};
use std::collections::HashMap;

/// What is stored.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stored {
    /// `None` if nothing is: walhouse has not run yet.
    pub checkpoint: Option<Standing>,
    /// What is paused, besides tables.
    pub paused: Vec<Pause>,
    /// By name.
    pub tables: Vec<TableReport>,
    /// Rows that their tables can not hold, by table.
    pub dead_letters: Vec<Letters>,
    /// Requests of operators that are not answered yet.
    pub requests: Vec<Request>,
}

/// Where the slot stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Standing {
    /// The history that the positions belong to.
    pub epoch: u8,
    /// Up to here everything is durable in ClickHouse, and in the queues.
    #[serde(serialize_with = "text")]
    pub position: Lsn,
    /// Up to here every event was sent. 0/0 if there never was a queue.
    #[serde(serialize_with = "text")]
    pub queue_position: Lsn,
    /// How long ago it was stored, in seconds. It stands still while the source writes nothing.
    pub age_seconds: f64,
    /// The cluster.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
}

fn text<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

/// A table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TableReport {
    /// `schema.name`.
    pub table: String,
    /// Its table in ClickHouse.
    pub target: String,
    /// `copying`, `streaming`, `stopped`, `paused` or `resync`.
    pub state: &'static str,
    /// Why it is in that state, and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The copy that is being made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copying: Option<Copying>,
    #[serde(skip)]
    pub(super) oid: u32,
}

/// A copy on its way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Copying {
    /// Whether it is made beside the live table.
    pub beside: bool,
    /// Rows that are done.
    pub rows: u64,
    /// The share of the source's blocks that is done, 0 to 1; `None` if their number is not known.
    pub done: Option<f64>,
    #[serde(skip)]
    pub(super) blocks: u64,
}

impl Copying {
    pub(super) fn share(&self, all: u64) -> f64 {
        if all == 0 { 1.0 } else { (self.blocks as f64 / all as f64).min(1.0) }
    }
}

/// Rows of one table that it can not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Letters {
    /// `schema.name`.
    pub table: String,
    /// How many.
    pub letters: u64,
}

pub(super) async fn look(config: &Config) -> Result<Stored, String> {
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    match read(config, &target).await {
        Ok(stored) => Ok(stored),
        // UNKNOWN_TABLE, UNKNOWN_DATABASE.
        Err(error) if matches!(code(&error), Some(60 | 81)) => Ok(Stored::default()),
        Err(error) => {
            let (url, user) = (&config.clickhouse.url, &config.clickhouse.user);
            Err(format!("{}; it is asked at {url} as {user}", describe(&error)))
        }
    }
}

async fn read(config: &Config, target: &Client) -> Result<Stored, Error> {
    let slot = &config.source.slot;
    let state = State::load(target.clone(), slot).await?;
    let Some(checkpoint) = state.checkpoint().await else { return Ok(Stored::default()) };
    let age = "SELECT toFloat64(dateDiff('millisecond', max(updated_at), now64(3))) / 1000 FROM _checkpoint \
               WHERE slot = {slot: String}";
    let age_seconds: f64 = target.query_raw(age).param("slot", slot).fetch_one().await?;
    let chunks =
        "SELECT uuid, sum(row_count), toUInt64(sum(last_block - first_block)) FROM _chunks FINAL GROUP BY uuid";
    let chunks: Vec<(String, u64, u64)> = target.query_raw(chunks).fetch_all().await?;
    let chunks: HashMap<String, (u64, u64)> =
        chunks.into_iter().map(|(uuid, rows, blocks)| (uuid, (rows, blocks))).collect();
    let letters = "SELECT concat(schema_name, '.', table_name), count() FROM _dead_letters FINAL \
                   WHERE slot = {slot: String} GROUP BY schema_name, table_name ORDER BY schema_name, table_name";
    let letters: Vec<(String, u64)> = target.query_raw(letters).param("slot", slot).fetch_all().await?;
    let mut tables: Vec<TableReport> = state.tables().await.into_iter().map(|record| table(&record, &chunks)).collect();
    tables.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(Stored {
        checkpoint: Some(Standing {
            epoch: checkpoint.epoch.0,
            position: checkpoint.lsn,
            queue_position: checkpoint.queue_lsn,
            age_seconds,
            system_identifier: checkpoint.system_identifier.to_string(),
            timeline: checkpoint.timeline,
        }),
        paused: Pauses::new(target.clone(), slot).all().await?.into_iter().filter(|pause| pause.is_paused).collect(),
        tables,
        dead_letters: letters.into_iter().map(|(table, letters)| Letters { table, letters }).collect(),
        requests: Requests::new(target.clone(), slot).look().await?,
    })
}

fn table(record: &TableRecord, chunks: &HashMap<String, (u64, u64)>) -> TableReport {
    let (state, reason) = record.status.parts();
    let copied = |uuid: &str, beside: bool| {
        let (rows, blocks) = chunks.get(uuid).copied().unwrap_or_default();
        Copying { beside, rows, done: None, blocks }
    };
    let copying = match (&record.fresh, &record.status) {
        (Some(fresh), _) => Some(copied(&fresh.uuid, true)),
        (None, TableStatus::Copying) => Some(copied(&record.uuid, false)),
        _ => None,
    };
    TableReport {
        table: record.full_name(),
        target: record.target.clone(),
        state,
        reason: reason.to_owned(),
        copying,
        oid: record.oid,
    }
}
