//! What is only looked at: the standing of everything, and parts of it.
//!
//! A look asks three servers. It is made once for all who want to see it, and shown for [`FRESH`]; it goes on if whoever
//! caused it has left, so that a server that is slow to fail is said to be away to those who ask next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Extension, extract::State, http::header, response::IntoResponse};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::{
    super::auth::Role,
    Api, Visitor,
    answer::{Json, Refusal},
};
use crate::{
    commands::status::{self, Report},
    config::Config,
};

/// The document that describes the API.
pub(super) const OPENAPI: &str = include_str!("openapi.json");
/// A look is shown so long, or as long as it took.
const FRESH: Duration = Duration::from_secs(3);
/// Whoever asks waits so long for a new one.
const PATIENCE: Duration = Duration::from_secs(8);
/// So often it is looked whether the one that is made will do.
const AGAIN: Duration = Duration::from_millis(250);

/// A look, and when it began and ended.
#[derive(Clone)]
struct Looked {
    report: Arc<Report>,
    begun: Instant,
    ended: Instant,
}

/// The latest look.
pub(super) struct Looks {
    config: Arc<Config>,
    latest: watch::Sender<Option<Looked>>,
    /// When an operator last changed something: what was looked at before does not show it.
    changed: watch::Sender<Instant>,
    /// Held while a look is made.
    going: Arc<Mutex<()>>,
}

impl Looks {
    pub(super) fn new(config: Arc<Config>) -> Self {
        let changed = watch::Sender::new(Instant::now());
        Self { config, latest: watch::Sender::new(None), changed, going: Arc::default() }
    }

    /// Whoever asks from now on is shown what comes of a change.
    pub(super) fn changed(&self) {
        self.changed.send_replace(Instant::now());
    }

    fn is_fresh(&self, looked: &Looked) -> bool {
        // One that took longer than whoever asks waits would otherwise be shown to nobody.
        let lasts = FRESH.max(looked.ended - looked.begun);
        looked.ended.elapsed() < lasts && looked.begun >= *self.changed.borrow()
    }

    async fn latest(self: &Arc<Self>) -> Result<Arc<Report>, Refusal> {
        let late =
            || Refusal::unavailable("PostgreSQL, ClickHouse or SQS is slow to answer; ask again in some seconds");
        tokio::time::timeout(PATIENCE, self.fresh()).await.map_err(|_| late())
    }

    async fn fresh(self: &Arc<Self>) -> Arc<Report> {
        let mut latest = self.latest.subscribe();
        loop {
            if let Some(looked) = latest.borrow_and_update().as_ref().filter(|looked| self.is_fresh(looked)) {
                return Arc::clone(&looked.report);
            }
            if let Ok(going) = Arc::clone(&self.going).try_lock_owned() {
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    let begun = Instant::now();
                    let report = Arc::new(Box::pin(status::look(&this.config)).await);
                    this.latest.send_replace(Some(Looked { report, begun, ended: Instant::now() }));
                    drop(going);
                });
            }
            // One that was begun before a change is of no use, and another one begins after it.
            let _ = tokio::time::timeout(AGAIN, latest.changed()).await;
        }
    }
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

/// What whoever asks may do, so that a page shows no button that would be refused.
pub(super) async fn role(State(api): State<Arc<Api>>, Extension(visitor): Extension<Visitor>) -> Json {
    let denied = api.access.allow(visitor.role, Role::Operator).err().map(|denied| denied.to_string());
    Json(json!({ "role": visitor.role.label(), "may_act": denied.is_none(), "why_not": denied }))
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
