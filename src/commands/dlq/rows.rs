//! Dead letters in ClickHouse: rows that their tables can not hold.
//!
//! They are not sent again from here: with `[queue]` they are in the queue of data-sync's dead letters too, from where they can
//! be. Without it nobody is there who would find out what its key has become since, and the value that did not fit will
//! not fit now: what brings a row home is its next change at the source, or a new copy of its table.

use super::{
    Answer, Error, say_yes,
    table::{or_dash, table},
};
use crate::{
    cli::{DlqArgs, DlqCommand, FilterArgs, exit},
    clickhouse::{
        client::{client, code},
        dead_letters::TABLE,
    },
    config::Config,
    event::{
        Lsn,
        envelope::{EventType, Queue},
    },
    quote::clickhouse_string as text,
};
use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use std::fmt::Write;

/// A letter's name: the same for every copy of it.
const ID: &str = "lower(hex(sipHash64(oid, key_values, version)))";
/// The reason, with its column.
const REASON: &str = "if(column_name = '', reason, concat('column ', column_name, ': ', reason))";

/// A letter, without anything of its row.
#[derive(Clone, Debug, Row, Serialize, Deserialize)]
struct Letter {
    id: String,
    table: String,
    operation: String,
    reason: String,
    #[serde(serialize_with = "lsn")]
    commit_lsn: u64,
    committed_at: Option<String>,
    time: String,
}

/// How many letters a table has.
#[derive(Clone, Debug, Row, Serialize, Deserialize)]
struct Count {
    table: String,
    count: u64,
}

fn lsn<S: Serializer>(lsn: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Lsn(*lsn))
}

struct Rows<'a> {
    client: Client,
    slot: &'a str,
    /// Whether they are in the queue of dead letters too.
    queued: bool,
}

pub(super) async fn run(config: &Config, args: &DlqArgs) -> Result<Answer, Error> {
    if let Some(queue) = args.queue.filter(|queue| *queue != Queue::DataSync) {
        let label = queue.label();
        return Err(Error::Usage(format!("there is no [queue] in the configuration, so {label} has no dead letters")));
    }
    let client = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let rows = Rows { client, slot: &config.source.slot, queued: config.queue.is_some() };
    match &args.command {
        DlqCommand::List(list) => rows.list(&list.filter, list.limit).await,
        DlqCommand::Show(show) => rows.show(&show.id).await,
        DlqCommand::Redrive(redrive) => Err(rows.instead(&redrive.filter).await?),
        DlqCommand::Purge(purge) => {
            if purge.limit.is_some() {
                return Err(Error::Usage(
                    "--limit is for queues: choose rows by --table, --event-id or --reason".into(),
                ));
            }
            rows.purge(&purge.filter, purge.dry_run, purge.yes).await
        }
    }
}

impl Rows<'_> {
    /// The condition of the letters that are meant.
    fn meant(&self, filter: &FilterArgs) -> String {
        let mut meant = format!("slot = {}", text(self.slot));
        if let Some(id) = &filter.event_id {
            let _ = write!(meant, " AND {ID} = {}", text(id));
        }
        if filter.event_type.as_ref().is_some_and(|of| of != EventType::DatabaseChangeCaptured.name()) {
            meant.push_str(" AND 0");
        }
        if let Some(reason) = &filter.reason {
            let _ = write!(meant, " AND position({REASON}, {}) > 0", text(reason));
        }
        if let Some(table) = &filter.table {
            let _ = write!(meant, " AND concat(schema_name, '.', table_name) = {}", text(table));
        }
        meant
    }

    async fn counts(&self, filter: &FilterArgs) -> Result<Vec<Count>, Error> {
        let sql = format!(
            "SELECT concat(schema_name, '.', table_name) AS table, count() AS count FROM {TABLE} FINAL WHERE {} \
             GROUP BY schema_name, table_name ORDER BY schema_name, table_name",
            self.meant(filter)
        );
        match self.client.query_raw(&sql).fetch_all().await {
            // Neither the table nor the database is there before the first run.
            Err(error) if matches!(code(&error), Some(60 | 81)) => Ok(Vec::new()),
            counts => Ok(counts?),
        }
    }

    async fn list(&self, filter: &FilterArgs, limit: usize) -> Result<Answer, Error> {
        let counts = self.counts(filter).await?;
        let sql = format!(
            "SELECT {ID} AS id, concat(schema_name, '.', table_name) AS table, toString(operation) AS operation, \
             {REASON} AS reason, commit_lsn, toString(committed_at) AS committed_at, toString(created_at) AS time \
             FROM {TABLE} FINAL WHERE {} ORDER BY schema_name, table_name, version DESC LIMIT {limit}",
            self.meant(filter)
        );
        let letters = if counts.is_empty() { Vec::new() } else { self.client.query_raw(&sql).fetch_all().await? };
        Ok(listed(&counts, &letters))
    }

    async fn show(&self, id: &str) -> Result<Answer, Error> {
        let filter = FilterArgs { event_id: Some(id.to_owned()), ..FilterArgs::default() };
        let absent = || Error::Unfinished(format!("there is no dead letter {id}: see walhouse dlq list"));
        if self.counts(&filter).await?.is_empty() {
            return Err(absent());
        }
        let sql = format!(
            "SELECT toJSONString(map('table', concat(schema_name, '.', table_name), 'target', target, 'operation', \
             toString(operation), 'key', key, 'column', column_name, 'reason', reason, 'envelope', envelope, 'version', \
             toString(version), 'xid', ifNull(toString(xid), ''), 'committed_at', ifNull(toString(committed_at), ''), \
             'time', toString(created_at))) FROM {TABLE} FINAL WHERE {}",
            self.meant(&filter)
        );
        let found: String = self.client.query_raw(&sql).fetch_optional().await?.ok_or_else(absent)?;
        let mut letter: Value = serde_json::from_str(&found).unwrap_or_default();
        for inside in ["key", "envelope"] {
            let parsed = letter[inside].as_str().and_then(|text| serde_json::from_str(text).ok());
            letter[inside] = parsed.unwrap_or_default();
        }
        Ok(Answer::new(format!("{letter:#}"), letter, exit::FINE))
    }

    /// What to do, since nothing is sent again.
    async fn instead(&self, filter: &FilterArgs) -> Result<Error, Error> {
        let tables: Vec<_> = self.counts(filter).await?.into_iter().map(|count| count.table).collect();
        if tables.is_empty() {
            return Ok(Error::Unfinished("there are no dead letters".to_owned()));
        }
        if self.queued {
            return Ok(Error::Unfinished(
                "rows are sent again from the queue, where they are too: walhouse dlq redrive --queue data-sync"
                    .to_owned(),
            ));
        }
        Ok(Error::Unfinished(format!(
            "rows are not sent again from here: they may have changed since, and what did not fit will not fit now. Correct \
             them at the source with an UPDATE, which brings them home; or, if the table in ClickHouse was wrong, copy it \
             anew: walhouse resync {}",
            tables.join(" ")
        )))
    }

    async fn purge(&self, filter: &FilterArgs, dry_run: bool, yes: bool) -> Result<Answer, Error> {
        let letters: u64 = self.counts(filter).await?.iter().map(|count| count.count).sum();
        if !dry_run && !yes {
            return Err(say_yes(
                letters,
                "the values of these rows, and what tells walhouse that they are not in ClickHouse",
            ));
        }
        if !dry_run && letters > 0 {
            let sql = format!("DELETE FROM {TABLE} WHERE {} SETTINGS lightweight_deletes_sync = 2", self.meant(filter));
            self.client.query_raw(&sql).execute().await?;
        }
        let verb = if dry_run { "would be removed for good" } else { "removed for good" };
        let json = json!({ "queue": TABLE, "dry_run": dry_run, "letters": letters });
        Ok(Answer::new(format!("{TABLE}: {letters} {verb}"), json, exit::FINE))
    }
}

fn listed(counts: &[Count], letters: &[Letter]) -> Answer {
    let all: u64 = counts.iter().map(|count| count.count).sum();
    let mut out = format!("{TABLE}: {all} {}\n", if all == 1 { "letter" } else { "letters" });
    for Count { table, count } in counts {
        let _ = writeln!(out, "  {table}: {count}");
    }
    if !letters.is_empty() {
        let row = |letter: &Letter| {
            let Letter { id, table, operation, reason, committed_at, time, .. } = letter.clone();
            [id, table, operation, or_dash(committed_at), time, reason]
        };
        out.push_str(&table(["ID", "TABLE", "CHANGE", "COMMITTED", "TIME", "REASON"], letters.iter().map(row)));
    }
    if usize::try_from(all).is_ok_and(|all| all > letters.len()) && !letters.is_empty() {
        let _ = writeln!(out, "{} of them are listed: see --limit and the filters", letters.len());
    }
    let json = json!({ "queues": [{ "queue": TABLE, "count": all, "tables": counts, "letters": letters }] });
    Answer::new(out, json, exit::FINE)
}
