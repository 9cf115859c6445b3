//! `walhouse resync`, and what else is asked for of single tables: that one is paused or resumed. Tells how it goes on.
//!
//! The request lies in ClickHouse, where the daemon looks every few seconds: so it needs no way to
//! the daemon, and one that is away takes it up when it is back.

use super::verify;
use crate::{
    cli::ResyncArgs,
    clickhouse::{
        client::{client, describe},
        requests::{Action, Answer, Requests},
        state::{State, TableRecord},
    },
    config::{Config, Glob},
};
use clickhouse::Client;
use std::time::{Duration, Instant};

/// How often the daemon's answer is looked for.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often progress is told.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Why what was asked for did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is stored can not be read.
    #[error(transparent)]
    Stored(#[from] verify::Error),
    /// ClickHouse fails.
    #[error("{}", describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// A pattern is of no use.
    #[error("walhouse does not replicate a table {0}: see walhouse status for those that it does")]
    NoTable(String),
    /// The daemon is away.
    #[error(
        "nobody has taken up the request within {0:?}: is walhouse run going, with this slot? The request stays, and is \
         taken up when it is"
    )]
    Nobody(Duration),
    /// The daemon has refused.
    #[error("{0}: {1}")]
    Refused(String, String),
}

/// What is asked for of tables.
pub(super) struct Order<'a> {
    pub(super) action: Action,
    pub(super) tables: &'a [Glob],
    /// What goes with it.
    pub(super) message: &'a str,
    /// How long it is waited until the daemon takes it up; `None` if nobody waits.
    pub(super) patience: Option<Duration>,
}

/// A table of which something was asked.
struct Asked {
    table: TableRecord,
    id: String,
    begun: bool,
}

/// Asks for what the command line names, and waits for it unless told otherwise. `say` takes a line
/// about how it goes on.
///
/// # Errors
/// The first table that is refused; the others go on.
pub async fn run(config: &Config, args: &ResyncArgs, say: &(dyn Fn(&str) + Send + Sync)) -> Result<(), Error> {
    let patience = (!args.no_wait).then_some(args.timeout.0);
    let order = Order { action: Action::Resync, tables: &args.tables, message: "", patience };
    ask(config, &order, |_| true, say).await.map(drop)
}

/// Asks for what [`run`] does, and waits for nothing. Returns the tables, as `schema.name`.
///
/// # Errors
/// If a pattern matches no table, and then nothing was asked for; or ClickHouse fails.
pub async fn only_ask(config: &Config, tables: &[Glob]) -> Result<Vec<String>, Error> {
    let order = Order { action: Action::Resync, tables, message: "", patience: None };
    ask(config, &order, |_| true, &|_| {}).await
}

/// Asks for it of every table that matches and is `meant`, and waits for that if it is waited for. Returns these tables, as
/// `schema.name`.
pub(super) async fn ask(
    config: &Config,
    order: &Order<'_>,
    meant: impl Fn(&TableRecord) -> bool,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Vec<String>, Error> {
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
    let requests = Requests::new(target.clone(), &config.source.slot);
    let mut asked = Vec::new();
    for table in wanted {
        let id = requests.ask(order.action, &table.schema, &table.name, order.message).await?;
        say(&format!("{}: asked for", table.full_name()));
        asked.push(Asked { table, id, begun: false });
    }
    let names = asked.iter().map(|one| one.table.full_name()).collect();
    if let Some(patience) = order.patience {
        wait(config, &target, &requests, asked, patience, say).await?;
    }
    Ok(names)
}

async fn wait(
    config: &Config,
    target: &Client,
    requests: &Requests,
    mut asked: Vec<Asked>,
    patience: Duration,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), Error> {
    let (mut taken_up, mut said) = (Instant::now(), Instant::now());
    let mut refused = None;
    while !asked.is_empty() {
        tokio::time::sleep(INTERVAL).await;
        let mut open = Vec::new();
        for mut one in asked {
            let name = one.table.full_name();
            match requests.outcome(&one.id).await? {
                Some(Answer::Done) => say(&format!("{name}: done")),
                Some(Answer::Refused(reason)) => refused = refused.or(Some(Error::Refused(name, reason))),
                Some(Answer::Begun(_)) => {
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
        if asked.iter().any(|one| !one.begun) && taken_up.elapsed() > patience {
            return Err(Error::Nobody(patience));
        }
        if said.elapsed() > REPORT_INTERVAL {
            said = Instant::now();
            progress(config, target, &asked, say).await?;
        }
    }
    refused.map_or(Ok(()), Err)
}

async fn progress(
    config: &Config,
    target: &Client,
    asked: &[Asked],
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), Error> {
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
