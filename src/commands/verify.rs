//! `walhouse verify`: which tables are to be compared, the comparison of each, and one verdict.
//!
//! What [`crate::verify`] compares is told apart here from what can not be equal yet or any more: a
//! table whose copy is not complete, one that stopped. Both count as differences. A table without a
//! usable key is never replicated; it is named, and counts as none.

mod letters;
mod masked;
mod pair;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    time::{Duration, Instant},
};

use clickhouse::Client;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::{
    cli::{VerifyArgs, exit},
    clickhouse::{
        client::{client, code, describe, kind},
        state::{State, TableRecord},
    },
    config::Config,
    event::{Lsn, SourceTable},
    postgres::{
        catalog,
        sql::{self, SqlError},
    },
    verify::{self, CheckpointError, Options, TableReport, Verifier},
};
use letters::Letters;

/// For the small statements; the crate itself would wait for ever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why nothing, or not everything, was compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The patterns match nothing.
    #[error("no table of the source matches {0}; correct it, or see the tables with: walhouse check")]
    NoTable(&'static str),
    /// There is nothing to compare with.
    #[error(
        "ClickHouse's database {database:?} has no checkpoint of the slot {slot:?}: walhouse has not run yet with this \
         configuration; start it with: walhouse run"
    )]
    NotRunYet {
        /// The configured database.
        database: String,
        /// The configured slot.
        slot: String,
    },
    /// ClickHouse refused, or was lost.
    #[error("{}; it is asked at clickhouse.url = {url} as clickhouse.user = {user}", describe(source))]
    ClickHouse {
        /// The configured server.
        url: String,
        /// The configured user.
        user: String,
        /// What it said.
        source: clickhouse::error::Error,
    },
    /// PostgreSQL refused, or was lost.
    #[error(transparent)]
    Postgres(#[from] SqlError),
    /// It will not go better with the next table.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoTable(_) => exit::USAGE,
            Self::ClickHouse { source, .. } => super::exit_code(kind(source)),
            Self::Postgres(error) => super::exit_code(error.kind()),
            Self::NotRunYet { .. } | Self::Ended(_) => exit::FOUND,
        }
    }
}

/// Why a table was not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Absence {
    /// Its changes are dropped until somebody acts.
    Stopped,
    /// Its changes are dropped until an operator has it resumed.
    Paused,
    /// Its initial copy is not complete.
    Copying,
    /// It could not be read on one side.
    Failed,
    /// It has no usable key, which is no difference.
    NotReplicated,
}

/// A table that was not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    /// `schema.name`.
    pub table: String,
    /// In which way.
    pub state: Absence,
    /// Why, and what to do about it.
    pub reason: String,
}

/// What ClickHouse keeps of a table's rows beside it, because its columns can not hold them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetters {
    /// `schema.name`.
    pub table: String,
    /// How many rows; some may be home by now, through a later change.
    pub rows: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// By schema and name.
    pub compared: Vec<TableReport>,
    /// By schema and name.
    pub not_compared: Vec<NotCompared>,
    /// Of tables that are not equal.
    pub dead_letters: Vec<DeadLetters>,
}

impl Report {
    /// Whether every table that is to be equal is equal.
    pub fn is_equal(&self) -> bool {
        self.differing() == 0
    }

    /// 0 when all is equal, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.is_equal())
    }

    /// For machines: `{"equal": …, "compared": […], "not_compared": […], "dead_letters": […]}`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "equal": self.is_equal(),
            "compared": self.compared,
            "not_compared": self.not_compared,
            "dead_letters": self.dead_letters,
        })
    }

    fn differing(&self) -> usize {
        self.compared.iter().filter(|report| !report.is_equal()).count()
            + self.not_compared.iter().filter(|table| table.state != Absence::NotReplicated).count()
    }

    fn add(&mut self, table: String, state: Absence, reason: impl Into<String>) {
        self.not_compared.push(NotCompared { table, state, reason: reason.into() });
    }
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.compared.is_empty() {
            f.write_str(&verify::render(&self.compared))?;
        }
        for NotCompared { table, state, reason } in &self.not_compared {
            let (mark, state) = match state {
                Absence::Stopped => ('✗', "stopped"),
                Absence::Paused => ('✗', "paused"),
                Absence::Copying => ('✗', "still copying"),
                Absence::Failed => ('✗', "not compared"),
                Absence::NotReplicated => ('-', "not replicated"),
            };
            writeln!(f, "{mark}  {table}  {state}: {reason}")?;
        }
        for DeadLetters { table, rows } in &self.dead_letters {
            writeln!(f, "   {table}: {rows} dead letters; SELECT * FROM _dead_letters FINAL in ClickHouse says why")?;
        }
        let all = self.not_compared.iter().filter(|table| table.state != Absence::NotReplicated).count();
        match (self.compared.len() + all, self.differing()) {
            (0, _) => f.write_str("There is nothing to compare."),
            (1, 0) => f.write_str("The table is equal."),
            (all, 0) => write!(f, "All {all} tables are equal."),
            (all, differing) => write!(f, "NOT equal: {differing} of {all} tables."),
        }
    }
}

/// Compares what `source.tables` and the command line's patterns both match. `progress` takes a
/// line about what is being done.
///
/// # Errors
/// When there is nothing to compare, or a side is lost.
pub async fn run(config: &Config, args: &VerifyArgs, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<Report, Error> {
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let records = stored(config, &target).await?.tables().await;
    let records: HashMap<u32, TableRecord> = records.into_iter().map(|record| (record.oid, record)).collect();
    let salted = masked::settings(config.masking.salt.as_ref());
    let mut source = sql::connect_with(&config.source, "walhouse verify", salted.as_ref()).await?;
    let tables = wanted(&source, config, args).await?;
    let mut report = Report::default();
    let checkpoint = Stored::new(&target, config).await?;
    let (max_named, show_values) = (usize::from(args.max_keys), args.show_values);
    let options = Options { fence_timeout: args.timeout.0, max_named, show_values, ..Options::default() };
    let letters = Letters::new(&target, &config.source.slot);
    let oids: HashMap<String, u32> = tables.iter().map(|table| (table.full_name(), table.oid)).collect();
    for table in tables {
        let pair = match pair::of(config, &table, records.get(&table.oid)) {
            Ok(pair) => pair,
            Err((state, reason)) => {
                report.add(table.full_name(), state, reason);
                continue;
            }
        };
        let (options, checkpoint) = (options.clone(), &checkpoint);
        let mut verifier = Verifier { postgres: &mut source, clickhouse: &target, checkpoint, options, progress };
        match Box::pin(verifier.verify(&pair)).await {
            Ok(mut compared) => {
                letters.name(table.oid, &mut compared.differing).await;
                report.compared.push(compared);
            }
            Err(error) if goes_on(&error) && !source.is_closed() => {
                report.add(table.full_name(), Absence::Failed, told(&error));
            }
            Err(error) => return Err(Error::Ended(told(&error))),
        }
    }
    if !report.is_equal() {
        let letters = letters.by_table().await;
        let differing = report.compared.iter().filter(|compared| !compared.is_equal()).map(|compared| &compared.table);
        let differing = differing.chain(report.not_compared.iter().map(|table| &table.table));
        let of = |table: &String| Some(DeadLetters { table: table.clone(), rows: *letters.get(oids.get(table)?)? });
        report.dead_letters = differing.filter_map(of).collect();
    }
    Ok(report)
}

/// What ClickHouse knows of the slot.
pub(super) async fn stored(config: &Config, target: &Client) -> Result<State, Error> {
    let slot = &config.source.slot;
    let not_run = || Error::NotRunYet { database: config.clickhouse.database.clone(), slot: slot.clone() };
    let state = match bounded(State::load(target.clone(), slot)).await {
        Ok(state) => state,
        // Neither the database nor walhouse's own tables are there: UNKNOWN_DATABASE, UNKNOWN_TABLE.
        Err(error) if matches!(code(&error), Some(81 | 60)) => return Err(not_run()),
        Err(source) => {
            let (url, user) = (config.clickhouse.url.clone(), config.clickhouse.user.clone());
            return Err(Error::ClickHouse { url, user, source });
        }
    };
    if state.checkpoint().await.is_none() { Err(not_run()) } else { Ok(state) }
}

async fn wanted(
    source: &tokio_postgres::Client,
    config: &Config,
    args: &VerifyArgs,
) -> Result<Vec<SourceTable>, Error> {
    let mut tables = catalog::tables(source, &config.source).await?.tables;
    if tables.is_empty() {
        return Err(Error::NoTable("source.tables"));
    }
    if !args.tables.is_empty() {
        tables.retain(|table| args.tables.iter().any(|glob| glob.matches(&table.schema, &table.name)));
    }
    if tables.is_empty() { Err(Error::NoTable("--table within source.tables")) } else { Ok(tables) }
}

/// The stored checkpoint, which moves on an idle server too.
///
/// PostgreSQL streams what it has flushed, and an idle server leaves the last records of its WAL
/// unflushed for a quarter of a minute. So while the checkpoint stands still, an empty logical
/// message is committed, which flushes what was written before it.
struct Stored<'a> {
    target: &'a Client,
    config: &'a Config,
    source: tokio_postgres::Client,
    last: Mutex<(Lsn, Instant)>,
}

/// How long the checkpoint stands still before the WAL is flushed.
const STANDSTILL: Duration = Duration::from_millis(500);

impl<'a> Stored<'a> {
    async fn new(target: &'a Client, config: &'a Config) -> Result<Self, Error> {
        let source = sql::connect(&config.source, "walhouse verify").await?;
        Ok(Self { target, config, source, last: Mutex::new((Lsn::ZERO, Instant::now())) })
    }

    async fn read(&self) -> Result<Lsn, CheckpointError> {
        let newest = self
            .target
            .query("SELECT lsn FROM _checkpoint WHERE slot = ? ORDER BY revision DESC LIMIT 1")
            .bind(&self.config.source.slot)
            .fetch_one::<u64>();
        bounded(newest).await.map(Lsn).map_err(|error| describe(&error).into())
    }
}

impl verify::Checkpoint for Stored<'_> {
    async fn position(&self) -> Result<Lsn, CheckpointError> {
        let now = self.read().await?;
        let mut last = self.last.lock().await;
        if now != last.0 {
            *last = (now, Instant::now());
        } else if last.1.elapsed() > STANDSTILL {
            last.1 = Instant::now();
            // Without the right to do so it only takes longer.
            let flush = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'walhouse.flush', '')";
            if let Err(error) = self.source.batch_execute(flush).await {
                tracing::debug!(error = %sql::SqlError::from(error), "the source's WAL could not be flushed");
            }
        }
        Ok(now)
    }
}

/// Whether another table may still be compared.
fn goes_on(error: &verify::Error) -> bool {
    !matches!(error, verify::Error::Checkpoint(_) | verify::Error::Behind { .. })
}

/// The error with its cause; ClickHouse's own text may quote a row.
fn told(error: &verify::Error) -> String {
    match error {
        verify::Error::ClickHouse { source, .. } => format!("{error}: {}", describe(source)),
        verify::Error::Checkpoint(cause) => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}

async fn bounded<T>(
    statement: impl Future<Output = Result<T, clickhouse::error::Error>>,
) -> Result<T, clickhouse::error::Error> {
    tokio::time::timeout(TIMEOUT, statement).await.unwrap_or(Err(clickhouse::error::Error::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_a_key_is_no_difference_and_a_stopped_one_is() {
        let mut report = Report::default();
        report.add("public.note".to_owned(), Absence::NotReplicated, "it has no primary key");
        assert_eq!(report.exit_code(), 0);
        assert_eq!(
            report.to_string(),
            "-  public.note  not replicated: it has no primary key\nThere is nothing to compare."
        );
        report.add("public.t".to_owned(), Absence::Stopped, "column a is new");
        assert_eq!(report.exit_code(), 1);
        assert!(report.to_string().ends_with("✗  public.t  stopped: column a is new\nNOT equal: 1 of 1 tables."));
        assert_eq!(report.json()["equal"], false);
        assert_eq!(report.json()["not_compared"][1]["state"], "stopped");
    }

    #[test]
    fn no_server_error_is_told_with_its_own_text() {
        let source = clickhouse::error::Error::BadResponse("Code: 27. 'canary' (CANNOT_PARSE_TEXT)".to_owned());
        let error = verify::Error::ClickHouse { table: "public.t".into(), target: "t".into(), source };
        assert_eq!(told(&error), "public.t: ClickHouse, reading t: ClickHouse: CANNOT_PARSE_TEXT (code 27)");
    }
}
