//! What the audit log hears of an export: a SecurityEventOccurred, through its own queue.
//!
//! Its id is derived from the request's and from how that ended, and its time is the request's: however often a request is
//! handled, it is one row.

use super::request::Request;
use crate::{
    event::envelope::{EventType, Metadata, Queue, VERSION, consequence_id},
    queue::{
        client::Sqs,
        consumer::{Event, HandleError},
        outgoing::Outgoing,
        pending::{Destination, Item},
    },
    retry::Backoff,
};
use serde_json::json;
use std::time::Duration;

const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
    let event = notice(event, request, outcome)?;
    let items = [Item { row: 0, bytes: event.body.len(), event }];
    let to = Destination { queue: Queue::AuditLog, dead: false };
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let why = match sqs.send(to, &items).await.map(|sent| sent.into_iter().next()) {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(refusal))) => refusal.code,
            Ok(None) => "no answer".to_owned(),
            Err(error) => error.message,
        };
        if backoff.failures() + 1 >= TRIES {
            return Err(HandleError::Transient(format!("the audit log could not be told of an export: {why}")));
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
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
