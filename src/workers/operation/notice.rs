//! What the audit log hears of an export: a SecurityEventOccurred, through its own queue.
//!
//! Its id is derived from the request's and from how that ended, and its time is the request's: however often a request is
//! handled, it is one row.

use super::request::Request;
use crate::{
    event::envelope::{EventType, Metadata, VERSION, consequence_id},
    queue::{
        client::Sqs,
        consumer::{Event, HandleError},
        outgoing::Outgoing,
    },
};
use serde_json::json;

/// How an export ended.
#[derive(Clone, Copy)]
pub(super) enum Outcome<'a> {
    Success { location: &'a str, rows: u64, bytes: u64 },
    Failure { why: &'a str },
}

/// Sends it.
///
/// # Errors
/// Transient, if SQS does not take it for a while.
pub(super) async fn send(sqs: &Sqs, event: &Event, request: &Request, outcome: Outcome<'_>) -> Result<(), HandleError> {
    let told = sqs.tell(notice(event, request, outcome)?).await;
    told.map_err(|why| HandleError::Transient(format!("the audit log could not be told of an export: {why}")))
}

fn notice(event: &Event, request: &Request, outcome: Outcome<'_>) -> Result<Outgoing, HandleError> {
    let mut details =
        json!({ "operationId": request.id.to_string(), "report": request.report, "format": request.format });
    let (label, location) = match outcome {
        Outcome::Success { location, rows, bytes } => {
            (details["rows"], details["bytes"]) = (json!(rows), json!(bytes));
            ("success", Some(location))
        }
        Outcome::Failure { why } => {
            details["error"] = json!(why);
            ("failure", None)
        }
    };
    let payload = json!({
        "eventType": "data_export", "actingUserId": request.user_id, "merchantAccountId": request.merchant,
        "targetResource": location, "outcome": label, "details": details
    });
    let of = EventType::SecurityEventOccurred;
    let metadata = Metadata {
        event_id: consequence_id(&request.id, label).to_string(),
        event_timestamp: event.envelope.metadata.event_timestamp.clone(),
        event_type: of.name().to_owned(),
        event_version: VERSION.to_owned(),
        correlation_id: event.envelope.metadata.correlation_id.clone(),
        source_service: "walhouse".to_owned(),
        position: None,
    };
    Outgoing::own(of, metadata, &payload, event.traceparent.as_deref())
        .map_err(|misfit| HandleError::Definite(misfit.to_string()))
}
