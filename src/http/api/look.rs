//! What is only looked at: the standing of everything, and parts of it.
//!
//! A look asks three servers. It is made once for all who want to see it, and shown for [`FRESH`]; it goes on if whoever
//! caused it has left, so that a server that is slow to fail is said to be away to those who ask next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{extract::State, http::header, response::IntoResponse};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::{
    Api,
    answer::{Json, Refusal},
};
use crate::{
    commands::status::{self, Report},
    config::Config,
};

/// The document that describes the API.
pub(super) const OPENAPI: &str = include_str!("openapi.json");
/// A look is shown so long.
const FRESH: Duration = Duration::from_secs(3);
/// Whoever asks waits so long for a new one.
const PATIENCE: Duration = Duration::from_secs(8);

type Looked = (Instant, Arc<Report>);

/// The latest look.
pub(super) struct Looks {
    config: Arc<Config>,
    latest: watch::Sender<Option<Looked>>,
    /// Held while a look is made.
    going: Arc<Mutex<()>>,
}

impl Looks {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self { config, latest: watch::Sender::new(None), going: Arc::default() }
    }

    async fn latest(self: &Arc<Self>) -> Result<Arc<Report>, Refusal> {
        let mut latest = self.latest.subscribe();
        let is_fresh = |looked: &Option<Looked>| looked.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
        if !is_fresh(&latest.borrow_and_update())
            && let Ok(going) = Arc::clone(&self.going).try_lock_owned()
        {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                let report = Arc::new(Box::pin(status::look(&this.config)).await);
                this.latest.send_replace(Some((Instant::now(), report)));
                drop(going);
            });
        }
        let looked = tokio::time::timeout(PATIENCE, latest.wait_for(is_fresh)).await;
        let looked = looked.ok().and_then(|looked| Some(Arc::clone(&looked.ok()?.as_ref()?.1)));
        let late =
            || Refusal::unavailable("PostgreSQL, ClickHouse or SQS is slow to answer; ask again in some seconds");
        looked.ok_or_else(late)
    }
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

pub(super) async fn status(State(api): State<Arc<Api>>) -> Result<Json, Refusal> {
    Ok(Json(api.looks.latest().await?.json()))
}

pub(super) async fn tables(State(api): State<Arc<Api>>) -> Result<Json, Refusal> {
    let report = api.looks.latest().await?;
    match report.stored.known() {
        Some(stored) => Ok(Json(json!({
            "tables": stored.tables, "left_out": report.source.known().map(|source| &source.left_out),
        }))),
        None => {
            let why = report.stored.unreachable().unwrap_or_default();
            Err(Refusal::unavailable(format!("ClickHouse can not be reached: {why}")))
        }
    }
}

pub(super) async fn queues(State(api): State<Arc<Api>>) -> Result<Json, Refusal> {
    let report = api.looks.latest().await?;
    Ok(Json(json!({ "queues": report.queues, "workers": report.workers })))
}
