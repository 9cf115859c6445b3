//! `walhouse resync`: asks the daemon to copy tables anew, and tells how it goes on.
//!
//! The request lies in ClickHouse, where the daemon looks every few seconds: so it needs no way to
//! the daemon, and one that is away takes it up when it is back.

use super::verify;
use crate::{
    cli::ResyncArgs,
    clickhouse::{
        client::{client, describe},
        requests::{Answer, Requests},
        state::{State, TableRecord},
    },
    config::Config,
};
use clickhouse::Client;
use std::time::{Duration, Instant};

/// How often the daemon's answer is looked for.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often progress is told.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Why tables were not copied anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is stored can not be read.
    #[error(transparent)]
    Stored(#[from] verify::Error),
    /// ClickHouse fails.
    #[error("{}", describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// A pattern is of no use.
    #[error("walhouse does not replicate a table {0}: see walhouse verify for those that it does")]
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

/// A table that is to be copied anew.
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
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let records = verify::stored(config, &target).await?.tables().await;
    let mut wanted = Vec::new();
    for glob in &args.tables {
        let matching = records.iter().filter(|record| glob.matches(&record.schema, &record.name));
        let before = wanted.len();
        wanted.extend(matching.cloned());
        if wanted.len() == before {
            return Err(Error::NoTable(glob.to_string()));
        }
    }
    wanted.sort_by_key(TableRecord::full_name);
    wanted.dedup_by_key(|record| record.oid);
    let requests = Requests::new(target.clone(), &config.source.slot);
    let mut asked = Vec::new();
    for table in wanted {
        let id = requests.resync(&table.schema, &table.name).await?;
        say(&format!("{}: asked for", table.full_name()));
        asked.push(Asked { table, id, begun: false });
    }
    if args.no_wait {
        return Ok(());
    }
    wait(config, &target, &requests, asked, args.timeout.0, say).await
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
