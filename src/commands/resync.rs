//! `walhouse resync`, and what else is asked for of single tables: that one is paused or resumed. Tells how it goes on.

use super::{
    Say,
    request::{Answer, Error, INTERVAL, REPORT_INTERVAL},
    verify,
};
use crate::{
    cli::ResyncArgs,
    clickhouse::{
        client::client,
        requests::{self, Action, Requests},
        state::{State, TableRecord},
    },
    config::{Config, Glob},
};
use clickhouse::Client;
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// What is asked for of tables.
pub(super) struct Order<'a> {
    pub(super) action: Action,
    pub(super) tables: &'a [Glob],
    /// What goes with it.
    pub(super) message: &'a str,
    /// Whether nothing is asked for, and it is only said of which tables it would be.
    pub(super) dry_run: bool,
    /// How long it is waited until the daemon takes it up; `None` if nobody waits.
    pub(super) patience: Option<Duration>,
}

/// How far a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// It would be asked for.
    Meant,
    /// It was, and nobody has waited for more.
    AskedFor,
    /// It is done.
    Done,
    /// It can not be done.
    Refused,
}

/// What became of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableAnswer {
    /// `schema.name`.
    pub table: String,
    /// How far it is.
    pub state: Progress,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl TableAnswer {
    fn new(table: &TableRecord, state: Progress) -> Self {
        Self { table: table.full_name(), state, reason: None }
    }
}

/// A table of which something was asked.
struct Asked {
    table: TableRecord,
    id: String,
    begun: bool,
}

/// Asks for what the command line names, and waits for it unless told otherwise. `say` takes a line
/// about how it goes on. One table that is refused does not keep the others from being done.
///
/// # Errors
/// If nothing was asked for, or nobody has taken it up.
pub async fn run(config: &Config, args: &ResyncArgs, say: Say<'_>) -> Result<Answer, Error> {
    let patience = (!args.wait.no_wait).then_some(args.wait.timeout.0);
    let dry_run = args.dry_run;
    let order = Order { action: Action::Resync, tables: &args.tables, message: "", dry_run, patience };
    let tables = ask(config, &order, |_| true, say).await?;
    Ok(Answer::new(is_fine(&tables), dry_run, json!({ "tables": tables })))
}

/// Whether none was refused.
pub(super) fn is_fine(tables: &[TableAnswer]) -> bool {
    tables.iter().all(|table| table.state != Progress::Refused)
}

/// Asks for what [`run`] does, and waits for nothing. Returns the tables, as `schema.name`.
///
/// # Errors
/// If a pattern matches no table, and then nothing was asked for; or ClickHouse fails.
pub async fn only_ask(config: &Config, tables: &[Glob]) -> Result<Vec<String>, Error> {
    let order = Order { action: Action::Resync, tables, message: "", dry_run: false, patience: None };
    let tables = ask(config, &order, |_| true, &|_| {}).await?;
    Ok(tables.into_iter().map(|answer| answer.table).collect())
}

/// Asks for it of every table that matches and is `meant`, and waits for that if it is waited for.
pub(super) async fn ask(
    config: &Config,
    order: &Order<'_>,
    meant: impl Fn(&TableRecord) -> bool,
    say: Say<'_>,
) -> Result<Vec<TableAnswer>, Error> {
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let records = verify::stored(config, &target).await?.tables().await;
    let mut wanted = Vec::new();
    for glob in order.tables {
        let mut matching = records.iter().filter(|record| glob.matches(&record.schema, &record.name)).peekable();
        if matching.peek().is_none() {
            return Err(Error::NoTable(glob.to_string()));
        }
        wanted.extend(matching.filter(|record| meant(record)).cloned());
    }
    wanted.sort_by_key(TableRecord::full_name);
    wanted.dedup_by_key(|record| record.oid);
    let verb = order.action.label();
    if wanted.is_empty() {
        say(&format!("there is no table to {verb} among those"));
    }
    if order.dry_run {
        let would = |table: &TableRecord| {
            say(&format!("{}: its {verb} would be asked for", table.full_name()));
            TableAnswer::new(table, Progress::Meant)
        };
        return Ok(wanted.iter().map(would).collect());
    }
    let requests = Requests::new(target.clone(), &config.source.slot);
    let mut asked = Vec::new();
    for table in wanted {
        let id = requests.ask(order.action, &table.schema, &table.name, order.message).await?;
        say(&format!("{}: {verb} is asked for", table.full_name()));
        asked.push(Asked { table, id, begun: false });
    }
    match order.patience {
        Some(patience) => wait(config, &target, &requests, asked, (verb, patience), say).await,
        None => Ok(asked.iter().map(|one| TableAnswer::new(&one.table, Progress::AskedFor)).collect()),
    }
}

async fn wait(
    config: &Config,
    target: &Client,
    requests: &Requests,
    mut asked: Vec<Asked>,
    (verb, patience): (&'static str, Duration),
    say: Say<'_>,
) -> Result<Vec<TableAnswer>, Error> {
    let (mut taken_up, mut said) = (Instant::now(), Instant::now());
    let mut answers = Vec::new();
    while !asked.is_empty() {
        tokio::time::sleep(INTERVAL).await;
        let mut open = Vec::new();
        for mut one in asked {
            let name = one.table.full_name();
            match requests.outcome(&one.id).await? {
                Some(requests::Answer::Done) => {
                    say(&format!("{name}: done"));
                    answers.push(TableAnswer::new(&one.table, Progress::Done));
                }
                Some(requests::Answer::Refused(reason)) => {
                    say(&format!("{name}: refused: {reason}"));
                    let refused = TableAnswer::new(&one.table, Progress::Refused);
                    answers.push(TableAnswer { reason: Some(reason), ..refused });
                }
                Some(requests::Answer::Begun(_)) => {
                    if !std::mem::replace(&mut one.begun, true) {
                        say(&format!("{name}: begun"));
                    }
                    taken_up = Instant::now();
                    open.push(one);
                }
                None => open.push(one),
            }
        }
        asked = open;
        if taken_up.elapsed() > patience
            && let Some(one) = asked.iter().find(|one| !one.begun)
        {
            let what = format!("{verb} of {}", one.table.full_name());
            return Err(Error::Nobody { what, who: "walhouse run", patience });
        }
        if said.elapsed() > REPORT_INTERVAL {
            said = Instant::now();
            progress(config, target, &asked, say).await?;
        }
    }
    answers.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(answers)
}

async fn progress(config: &Config, target: &Client, asked: &[Asked], say: Say<'_>) -> Result<(), Error> {
    let state = State::load(target.clone(), &config.source.slot).await?;
    for one in asked {
        let record = state.table(one.table.oid).await;
        if let Some(fresh) = record.and_then(|record| record.fresh) {
            let rows: u64 = state.chunks(&fresh.uuid).await?.iter().map(|chunk| chunk.row_count).sum();
            say(&format!("{}: {rows} rows copied", one.table.full_name()));
        }
    }
    Ok(())
}
