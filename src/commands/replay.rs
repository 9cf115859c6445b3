//! `walhouse replay`: asks the daemon to deliver what has committed since an earlier position once more.

use super::verify;
use crate::{
    cli::ReplayArgs,
    clickhouse::{
        client::{client, describe},
        replay::{ReplayOrder, ReplayRange},
        requests::{Action, Answer, Requests},
        state::{State, TableRecord},
    },
    config::Config,
    event::Lsn,
    postgres::{
        retention::retention,
        sql::{self, SqlError},
    },
};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How often the daemon's answer is looked for.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often progress is told.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Why nothing is delivered again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is stored can not be read.
    #[error(transparent)]
    Stored(#[from] verify::Error),
    /// ClickHouse fails.
    #[error("{}", describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// PostgreSQL can not be asked.
    #[error(transparent)]
    Postgres(#[from] SqlError),
    /// It can not be done.
    #[error("{0}")]
    Refused(String),
    /// The daemon is away.
    #[error(
        "nobody has taken up the request within {0:?}: is walhouse run going, with this slot, and not paused? The request \
         stays, and is taken up when it is"
    )]
    Nobody(Duration),
}

/// What a replay would do.
#[derive(Clone, Debug, Serialize)]
pub struct Prospect {
    /// Between which positions it can begin.
    pub range: ReplayRange,
    /// Why it can not begin at that position, if it can not.
    pub refused: Option<String>,
    /// Tables of which less is delivered again.
    pub less: Vec<Less>,
}

/// A table of which only later changes are delivered again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Less {
    /// `schema.name`.
    pub table: String,
    /// What came before is left out.
    pub from: Lsn,
    /// Why.
    pub reason: &'static str,
}

/// Looks what a replay from `from` on would do.
///
/// # Errors
/// If nothing is stored of the slot, or a side can not be reached.
pub async fn prospect(config: &Config, from: Lsn) -> Result<Prospect, Error> {
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let state: State = verify::stored(config, &target).await?;
    let source = sql::connect(&config.source, "walhouse replay").await?;
    let slot = &config.source.slot;
    let kept = retention(&source, slot).await?;
    let kept = kept.ok_or_else(|| Error::Refused(format!("the replication slot {slot} does not exist")))?;
    let checkpoint = state.checkpoint().await.map(|checkpoint| checkpoint.lsn).unwrap_or_default();
    let range = ReplayRange { first: kept.confirmed, checkpoint, end: kept.position };
    let tables = state.tables().await;
    let mut less: Vec<Less> = tables.iter().filter_map(less).filter(|less| less.from > from).collect();
    less.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(Prospect { refused: range.refuses(from), range, less })
}

fn less(record: &TableRecord) -> Option<Less> {
    let less = |from, reason| Less { table: record.full_name(), from, reason };
    if record.status.is_frozen() {
        return Some(less(Lsn(u64::MAX), "it is stopped or paused, and is copied anew to come back"));
    }
    let reasons = [
        less(record.fed_from, "it was copied there"),
        less(record.floor.commit(), "it was truncated there"),
        less(record.shaped_from.commit(), "its shape changed there"),
    ];
    reasons.into_iter().max_by_key(|less| less.from)
}

/// Asks for it, and waits for its end unless told otherwise. `say` takes a line about how it goes on.
///
/// # Errors
/// If it can not be done, or nobody does it.
pub async fn run(config: &Config, args: &ReplayArgs, say: &(dyn Fn(&str) + Send + Sync)) -> Result<(), Error> {
    let Prospect { range, refused, less } = prospect(config, args.from_lsn).await?;
    if let Some(why) = refused {
        return Err(Error::Refused(why));
    }
    for Less { table, from, reason } in less {
        let since =
            if from.0 == u64::MAX { "nothing".to_owned() } else { format!("only what has committed since {from}") };
        say(&format!("{table}: {since}: {reason}"));
    }
    let order = ReplayOrder { from: args.from_lsn, events: args.events, upto: Lsn::ZERO, at: Lsn::ZERO };
    if args.dry_run {
        say(&format!("what has committed from {} to {} would be delivered again", order.from, range.checkpoint));
        return Ok(());
    }
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let requests = Requests::new(target, &config.source.slot);
    let id = requests.ask(Action::Replay, "", "", &order.note()).await?;
    say(&format!("delivery {order}: asked for"));
    if args.wait.no_wait { Ok(()) } else { wait(&requests, &id, args.wait.timeout.0, say).await }
}

async fn wait(
    requests: &Requests,
    id: &str,
    patience: Duration,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), Error> {
    let (begun, mut said) = (Instant::now(), None::<Instant>);
    loop {
        tokio::time::sleep(INTERVAL).await;
        match requests.outcome(id).await? {
            Some(Answer::Done) => {
                say("delivered again, and durable");
                return Ok(());
            }
            Some(Answer::Refused(why)) => return Err(Error::Refused(why)),
            Some(Answer::Begun(note)) if said.is_none_or(|said| said.elapsed() > REPORT_INTERVAL) => {
                said = Some(Instant::now());
                let order = ReplayOrder::noted(&note).map_or(note, |order| order.to_string());
                say(&format!("delivering again {order}"));
            }
            Some(Answer::Begun(_)) => {}
            None if begun.elapsed() > patience => return Err(Error::Nobody(patience)),
            None => {}
        }
    }
}
