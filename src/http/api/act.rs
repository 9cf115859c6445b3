//! What operators ask for: it is told to the audit log, asked for as the commands do it, and taken up within seconds.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Api, Visitor,
    answer::{Json, Refusal, body},
    audit::Deed,
};
use crate::{
    cli::Worker,
    commands::{pause, resync},
    config::Glob,
};

/// So long a deed may take. With what the audit log takes it is less than a connection lives.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Of a reason, characters.
const LONGEST_REASON: usize = 1000;

/// What is to be paused. Without tables and workers, the pipeline.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pause {
    tables: Vec<Glob>,
    workers: Vec<Worker>,
    reason: String,
}

/// What is to go on. Without tables and workers, the pipeline.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Resume {
    tables: Vec<Glob>,
    workers: Vec<Worker>,
}

/// What is to be copied anew.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resync {
    tables: Vec<Glob>,
}

pub(super) async fn pause(
    State(api): State<Arc<Api>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let Pause { tables, workers, reason } = body(&headers, bytes)?;
    let reason = reason.trim().to_owned();
    if reason.chars().count() > LONGEST_REASON || reason.contains(char::is_control) {
        return Err(Refusal::bad(format!("reason: give one line of at most {LONGEST_REASON} characters")));
    }
    let deed = Deed {
        name: "walhouse.pause".to_owned(),
        target: target(&tables, &workers),
        details: json!({ "tables": tables, "workers": workers, "reason": reason }),
    };
    hold(api, visitor, deed, tables, workers, Some(reason)).await
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let Resume { tables, workers } = body(&headers, bytes)?;
    let deed = Deed {
        name: "walhouse.resume".to_owned(),
        target: target(&tables, &workers),
        details: json!({ "tables": tables, "workers": workers }),
    };
    hold(api, visitor, deed, tables, workers, None).await
}

/// Pauses with a reason, resumes without.
async fn hold(
    api: Arc<Api>,
    visitor: Visitor,
    deed: Deed,
    tables: Vec<Glob>,
    workers: Vec<Worker>,
    reason: Option<String>,
) -> Result<Response, Refusal> {
    let (config, by) = (Arc::clone(&api.config), visitor.actor.clone());
    let work = async move {
        let asked = pause::only_ask(&config, &tables, &workers, reason.as_deref(), &by).await?;
        Ok(json!({ "held": asked.held, "tables": asked.tables }))
    };
    act(api, visitor, deed, StatusCode::ACCEPTED, work).await
}

pub(super) async fn resync(
    State(api): State<Arc<Api>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let Resync { tables } = body(&headers, bytes)?;
    if tables.is_empty() {
        let why = "tables: name at least one pattern over schema.table, such as {\"tables\": [\"public.sales_order\"]}";
        return Err(Refusal::bad(why));
    }
    let details = json!({ "tables": tables });
    let deed = Deed { name: "walhouse.resync".to_owned(), target: target(&tables, &[]), details };
    let config = Arc::clone(&api.config);
    let work = async move { Ok(json!({ "tables": resync::only_ask(&config, &tables).await? })) };
    act(api, visitor, deed, StatusCode::ACCEPTED, work).await
}

/// Does something that the audit log has heard of, and answers with what came of it. Once it has begun it is not cut off by
/// a client that leaves.
pub(super) async fn act(
    api: Arc<Api>,
    visitor: Visitor,
    deed: Deed,
    status: StatusCode,
    work: impl Future<Output = Result<Value, Refusal>> + Send + 'static,
) -> Result<Response, Refusal> {
    let done = tokio::spawn(async move {
        let heard = api.audit.allowed(&visitor, &deed).await.map_err(|why| {
            Refusal::unavailable(format!("nothing was done, since the audit log can not be told of it: {why}"))
        })?;
        let late = || {
            Err(Refusal::late(format!(
                "it was not done within {} s, and it is not known whether it will be; see /api/v1/status",
                PATIENCE.as_secs()
            )))
        };
        match tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| late()) {
            Ok(mut answer) => {
                api.looks.changed();
                answer["asked_by"] = json!(visitor.actor);
                answer["audit_event_id"] = json!(heard.event_id);
                Ok((status, Json(answer)).into_response())
            }
            Err(refusal) => {
                api.audit.failed(&visitor, &deed, &heard, refusal.message()).await;
                Err(refusal)
            }
        }
    });
    done.await.unwrap_or_else(|_| Err(Refusal::broken()))
}

/// In a word, for the audit log.
fn target(tables: &[Glob], workers: &[Worker]) -> String {
    if tables.is_empty() && workers.is_empty() {
        return "pipeline".to_owned();
    }
    let tables = tables.iter().map(ToString::to_string);
    tables.chain(workers.iter().map(|worker| format!("worker {worker}"))).collect::<Vec<_>>().join(", ")
}
