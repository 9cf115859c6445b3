//! Dead letters: listed, shown, sent home.
//!
//! Whoever looks at a letter hides it from others. So one request at a time has them in hand, and what has begun is gone
//! through with, until every letter is back in sight: also if nobody waits for the answer any more.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::{
    Api, Visitor,
    act::{PATIENCE, act},
    answer::{Json, Refusal, body},
    audit::Deed,
};
use crate::{
    cli::{DlqArgs, DlqCommand, FilterArgs, ListArgs, RedriveArgs, ShowArgs},
    commands::dlq,
    config::Config,
    event::envelope::Queue,
};

const DEFAULT_LIMIT: usize = 100;
const LARGEST_LIMIT: usize = 1000;
const LARGEST_RATE: u32 = 1000;
/// Somebody else's look is waited for so long.
const TURN: Duration = Duration::from_secs(2);
/// A dry run goes through as many letters as it can in this time.
const DRY_RUN: Duration = Duration::from_secs(3);

/// What is to be sent home.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Redrive {
    filter: Filter,
    limit: Option<usize>,
    rate: Option<u32>,
    dry_run: bool,
}

/// Which letters.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Filter {
    event_id: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    reason: Option<String>,
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Path(queue): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json, Refusal> {
    let queue = known(&queue)?;
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let turn = turn(&api).await?;
    let command = DlqCommand::List(ListArgs { filter: FilterArgs::default(), limit });
    let (config, stop) = (Arc::clone(&api.config), api.stop.clone());
    let look = apart(config, queue, command, stop, turn);
    let late = || Refusal::late("there are too many letters to list in time; give a smaller ?limit=");
    let looked = tokio::time::timeout(PATIENCE, look).await.map_err(|_| late())?;
    looked.map(Json)
}

pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Extension(visitor): Extension<Visitor>,
    Path((queue, id)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let queue = known(&queue)?;
    let deed = Deed {
        name: "walhouse.dlq.show".to_owned(),
        target: queue.dead_letters(),
        details: json!({ "id": id.chars().take(256).collect::<String>() }),
    };
    let turn = turn(&api).await?;
    let (config, stop) = (Arc::clone(&api.config), api.stop.clone());
    let look = apart(config, queue, DlqCommand::Show(ShowArgs { id, payload: false }), stop, turn);
    act(api, visitor, deed, StatusCode::OK, look).await
}

pub(super) async fn redrive(
    State(api): State<Arc<Api>>,
    Extension(visitor): Extension<Visitor>,
    Path(queue): Path<String>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let queue = known(&queue)?;
    let Redrive { filter: Filter { event_id, event_type, reason }, limit, rate, dry_run } = body(&headers, bytes)?;
    if rate.is_some_and(|rate| !(1..=LARGEST_RATE).contains(&rate)) {
        return Err(Refusal::bad(format!("rate: give 1 to {LARGEST_RATE} letters in a second, or leave it out")));
    }
    if api.config.queue.is_none() {
        let why = "there is no [queue] in the configuration; dead letters that are rows come home with the next change of \
                   their row, or with a resync of their table";
        return Err(Refusal::bad(why));
    }
    let details = json!({
        "eventId": event_id, "type": event_type, "reason": reason, "limit": limit, "rate": rate, "dryRun": dry_run
    });
    let deed = Deed { name: "walhouse.redrive".to_owned(), target: queue.dead_letters(), details: details.clone() };
    let filter = FilterArgs { event_id, event_type, reason, table: None };
    let command = DlqCommand::Redrive(RedriveArgs { filter, limit, rate, dry_run });
    let turn = turn(&api).await?;
    let (config, stop) = (Arc::clone(&api.config), api.stop.child_token());
    if dry_run {
        let count = async move {
            let late = stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(DRY_RUN).await;
                late.cancel();
            });
            apart(config, queue, command, stop, turn).await
        };
        return act(api, visitor, deed, StatusCode::OK, count).await;
    }
    let work = async move {
        tokio::spawn(in_background(config, queue, command, stop, turn));
        Ok(json!({ "queue": queue.label(), "redrive": details }))
    };
    act(api, visitor, deed, StatusCode::ACCEPTED, work).await
}

/// However many letters there are; what becomes of it is in the log.
async fn in_background(
    config: Arc<Config>,
    queue: Queue,
    command: DlqCommand,
    stop: CancellationToken,
    turn: OwnedMutexGuard<()>,
) {
    let queue_name = queue.label();
    tracing::info!(queue = queue_name, "a redrive begins");
    match apart(config, queue, command, stop, turn).await {
        Ok(done) => tracing::info!(queue = queue_name, %done, "the redrive has ended"),
        Err(refusal) => tracing::warn!(queue = queue_name, error = refusal.message(), "the redrive has ended early"),
    }
}

/// Does what the command does, on a thread of its own: it ends by itself, whoever waits for it, and gives its turn back then.
async fn apart(
    config: Arc<Config>,
    queue: Queue,
    command: DlqCommand,
    stop: CancellationToken,
    turn: OwnedMutexGuard<()>,
) -> Result<Value, Refusal> {
    let runtime = Handle::current();
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let args = DlqArgs { command, queue: Some(queue), rows: false, json: true };
        let say = |line: &str| tracing::info!("{line}");
        runtime.block_on(dlq::run(&config, &args, &stop, &say))
    });
    match done.await {
        Ok(answer) => Ok(answer?.json),
        Err(_) => Err(Refusal::broken()),
    }
}

fn known(label: &str) -> Result<Queue, Refusal> {
    let labels = || Queue::ALL.map(Queue::label).join(", ");
    let known = Queue::ALL.into_iter().find(|queue| queue.label() == label);
    known.ok_or_else(|| Refusal::absent(format!("there is no such queue; name one of {}", labels())))
}

fn limit(query: &str) -> Result<usize, Refusal> {
    let mut limit = DEFAULT_LIMIT;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let known =
            pair.strip_prefix("limit=").and_then(|text| text.parse().ok()).filter(|limit| *limit <= LARGEST_LIMIT);
        limit = known
            .ok_or_else(|| Refusal::bad(format!("the query takes limit alone, 0 to {LARGEST_LIMIT}: ?limit=20")))?;
    }
    Ok(limit)
}

async fn turn(api: &Api) -> Result<OwnedMutexGuard<()>, Refusal> {
    let turn = tokio::time::timeout(TURN, Arc::clone(&api.letters).lock_owned()).await;
    turn.map_err(|_| {
        Refusal::conflict("another request has dead letters in hand, such as a redrive that goes on; ask later")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_has_a_limit_within_bounds() {
        assert_eq!(limit("").unwrap(), 100);
        assert_eq!(limit("limit=0").unwrap(), 0);
        assert_eq!(limit("limit=1000").unwrap(), 1000);
        for wrong in ["limit=1001", "limit=-1", "limit=x", "limit", "offset=1", "limit=1&x=2"] {
            assert!(limit(wrong).unwrap_err().message().contains("?limit=20"), "{wrong}");
        }
    }
}
