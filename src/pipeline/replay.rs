//! The stream delivered again from an earlier position on, because an operator wants it so.
//!
//! It begins with a session, and is an ordinary one but for its start: sources and lanes begin at that position, and what the
//! lanes make durable of it is below the checkpoint, which stays. The slot acknowledges nothing beyond the start until it is
//! done, so that a crash can go on with it. What it leaves out by itself is what every replay leaves out: commits from before
//! the copy of a table, its last TRUNCATE, its last change of shape.

use super::SessionError;
use crate::{
    clickhouse::{
        replay::{ReplayOrder, ReplayRange},
        requests::{Action, Answer, Request, Requests},
        state::Checkpoint,
    },
    event::Lsn,
    postgres::{acknowledged::Hold, slot::Server},
    status::Status,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often it is looked how far it is.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often that is stored, in such intervals.
const STORE: u32 = 5;

/// A replay that is on its way.
pub(super) struct Replay {
    request: Request,
    pub(super) order: ReplayOrder,
}

/// Takes up the replay that is on its way, or the first that is asked for, if it can be done.
pub(super) async fn take_up(
    requests: &Requests,
    server: &Server,
    checkpoint: &Checkpoint,
) -> Result<Option<Replay>, SessionError> {
    let mut open: Vec<Request> = requests.open().await?;
    open.retain(|request| request.action == Action::Replay);
    open.sort_by_key(|request| !request.begun);
    let first = server.slot.as_ref().and_then(|slot| slot.confirmed).unwrap_or(checkpoint.lsn);
    let range = ReplayRange { first, checkpoint: checkpoint.lsn, end: server.position };
    let mut taken: Option<Replay> = None;
    for request in open {
        let order = ReplayOrder::noted(&request.message);
        let refused = match (&taken, order) {
            (Some(_), _) => Some("another replay is on its way; ask again when that is done".to_owned()),
            (None, None) => Some("what is asked for is not understood".to_owned()),
            (None, Some(order)) => range.refuses(order.start()),
        };
        if let Some(why) = refused {
            tracing::error!(why, "a replay is refused");
            requests.answer(&request, &Answer::Refused(why)).await?;
            continue;
        }
        let Some(mut order) = order else { continue };
        if !request.begun {
            order.upto = checkpoint.lsn;
            requests.answer(&request, &Answer::Begun(order.note())).await?;
        }
        tracing::info!("delivering again {order}");
        taken = Some(Replay { request, order });
    }
    Ok(taken)
}

/// Follows a replay to its end, which lets go of the slot.
pub(super) async fn follow(
    replay: Replay,
    requests: Requests,
    lanes: Vec<watch::Receiver<Lsn>>,
    hold: Hold,
    status: Arc<Status>,
) -> Result<(), SessionError> {
    let Replay { request, mut order } = replay;
    for looks in 1.. {
        tokio::time::sleep(INTERVAL).await;
        let at = lanes.iter().map(|lane| *lane.borrow()).min().unwrap_or_default();
        if at >= order.upto {
            break;
        }
        if looks % STORE == 0 && at > order.at {
            order.at = at;
            answer(&requests, &request, &Answer::Begun(order.note())).await?;
        }
    }
    answer(&requests, &request, &Answer::Done).await?;
    hold.release();
    status.update(|account| account.replaying = false);
    tracing::info!("delivered again from {} to {}", order.from, order.upto);
    std::future::pending().await
}

/// Each answer needs the revision of the last one.
async fn answer(requests: &Requests, request: &Request, answer: &Answer) -> Result<(), SessionError> {
    let open = requests.open().await?;
    let now = open.iter().find(|open| open.id == request.id);
    Ok(requests.answer(now.unwrap_or(request), answer).await?)
}
