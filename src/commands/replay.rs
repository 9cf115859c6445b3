//! `walhouse replay`: asks the daemon to deliver what has committed since an earlier position once more.

use super::{
    Say,
    request::{Answer, Error, INTERVAL, REPORT_INTERVAL},
    verify,
};
use crate::{
    cli::ReplayArgs,
    clickhouse::{
        client::client,
        replay::{ReplayOrder, ReplayRange},
        requests::{self, Action, Requests},
        state::{State, TableRecord},
    },
    config::Config,
    event::Lsn,
    postgres::{retention::retention, sql},
};
use serde::{Serialize, Serializer};
use serde_json::json;
use std::time::{Duration, Instant};

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
    /// What came before is left out; all of it, at the end of all positions.
    #[serde(serialize_with = "text")]
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

fn text<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

/// Asks for it, and waits for its end unless told otherwise. `say` takes a line about how it goes on.
///
/// # Errors
/// If it can not be done, or nobody does it.
pub async fn run(config: &Config, args: &ReplayArgs, say: Say<'_>) -> Result<Answer, Error> {
    let Prospect { range, refused, less } = prospect(config, args.from_lsn).await?;
    let answer = |state: &str, refused: Option<&str>| {
        let (first, checkpoint, end) = (range.first.to_string(), range.checkpoint.to_string(), range.end.to_string());
        let range = json!({ "first": first, "checkpoint": checkpoint, "end": end });
        let from = args.from_lsn.to_string();
        let json = json!({
            "state": state, "from": from, "events": args.events, "range": range, "refused": refused, "less": less
        });
        Answer::new(refused.is_none(), args.dry_run, json)
    };
    if let Some(why) = refused {
        say(&format!("refused: {why}"));
        return Ok(answer("refused", Some(&why)));
    }
    for Less { table, from, reason } in &less {
        let since =
            if from.0 == u64::MAX { "nothing".to_owned() } else { format!("only what has committed since {from}") };
        say(&format!("{table}: {since}: {reason}"));
    }
    let order = ReplayOrder { from: args.from_lsn, events: args.events, upto: Lsn::ZERO, at: Lsn::ZERO };
    if args.dry_run {
        say(&format!("what has committed from {} to {} would be delivered again", order.from, range.checkpoint));
        return Ok(answer("meant", None));
    }
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let requests = Requests::new(target, &config.source.slot);
    let id = requests.ask(Action::Replay, "", "", &order.note()).await?;
    say(&format!("replay {order}: asked for; walhouse run takes it up within seconds"));
    if args.wait.no_wait {
        return Ok(answer("asked_for", None));
    }
    match wait(&requests, &id, args.wait.timeout.0, say).await? {
        Some(why) => Ok(answer("refused", Some(&why))),
        None => Ok(answer("done", None)),
    }
}

/// Waits for its end; the reason, if the daemon refuses it.
async fn wait(requests: &Requests, id: &str, patience: Duration, say: Say<'_>) -> Result<Option<String>, Error> {
    let (begun, mut said) = (Instant::now(), None::<Instant>);
    loop {
        tokio::time::sleep(INTERVAL).await;
        match requests.outcome(id).await? {
            Some(requests::Answer::Done) => {
                say("delivered again, and durable");
                return Ok(None);
            }
            Some(requests::Answer::Refused(why)) => {
                say(&format!("refused: {why}"));
                return Ok(Some(why));
            }
            Some(requests::Answer::Begun(note)) if said.is_none_or(|said| said.elapsed() > REPORT_INTERVAL) => {
                said = Some(Instant::now());
                let order = ReplayOrder::noted(&note).map_or(note, |order| order.to_string());
                say(&format!("delivering again {order}"));
            }
            Some(requests::Answer::Begun(_)) => {}
            None if begun.elapsed() > patience => {
                let who = "walhouse run, not paused,";
                return Err(Error::Nobody { what: "replay".to_owned(), who, patience });
            }
            None => {}
        }
    }
}
