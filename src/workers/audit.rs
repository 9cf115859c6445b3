//! audit-log-queue: what happens to security becomes rows of `audit_log`.

use super::together::Together;
use crate::{
    clickhouse::client::{code, describe},
    event::schema,
    queue::consumer::{Event, HandleError, Handler},
};
use bytes::Bytes;
use clickhouse::{Client, error::Error};
use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// ClickHouse's codes for what is wrong with a row and not with the server.
const OF_THE_ROW: [u32; 8] = [
    6,   // CANNOT_PARSE_TEXT
    26,  // CANNOT_PARSE_QUOTED_STRING
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    38,  // CANNOT_PARSE_DATE
    41,  // CANNOT_PARSE_DATETIME
    117, // INCORRECT_DATA
    131, // TOO_LARGE_STRING_SIZE
    376, // CANNOT_PARSE_UUID
];
const COLUMNS: &str = "event_id, correlation_id, event_type, acting_user_id, merchant_account_id, target_resource, outcome, \
    details, event_timestamp, source_service";

/// Writes `audit_log`.
pub struct Audit {
    client: Client,
    rows: Together<Vec<u8>>,
}

/// The payload, as far as it is a column.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    event_type: String,
    acting_user_id: String,
    outcome: String,
    merchant_account_id: Option<String>,
    target_resource: Option<String>,
    details: Option<Box<RawValue>>,
}

/// A row, as JSON.
#[derive(Serialize)]
struct Row<'a> {
    event_id: &'a str,
    correlation_id: &'a str,
    event_type: String,
    acting_user_id: String,
    merchant_account_id: String,
    target_resource: Option<String>,
    outcome: String,
    details: &'a str,
    event_timestamp: &'a str,
    source_service: &'a str,
}

impl Audit {
    /// A handler that writes with `client`, whose database is chosen.
    pub fn new(client: Client) -> Self {
        let writer = client.clone();
        let rows = Together::new(move |rows: Vec<Vec<u8>>| {
            let client = writer.clone();
            async move { write(&client, &rows).await }
        });
        Self { client, rows }
    }
}

impl Handler for Audit {
    fn name(&self) -> &'static str {
        "audit"
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            // The pipeline's first start makes it, in this process or another one.
            let there = self.client.query("EXISTS TABLE audit_log").fetch_one::<u8>().await;
            match there {
                Ok(1) => Ok(()),
                Ok(_) => Err("ClickHouse has no table audit_log yet".to_owned()),
                Err(error) => Err(describe(&error)),
            }
        }
        .boxed()
    }

    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandleError>> {
        async { self.rows.write(row(event)?).await }.boxed()
    }
}

fn row(event: &Event) -> Result<Vec<u8>, HandleError> {
    let metadata = &event.envelope.metadata;
    // What a schema lets through has this shape.
    let no_event =
        |error: serde_json::Error| HandleError::Definite(schema::Misfit::Json(error.to_string()).to_string());
    let payload: Payload = serde_json::from_str(event.envelope.payload.get()).map_err(no_event)?;
    let row = Row {
        event_id: &metadata.event_id,
        correlation_id: &metadata.correlation_id,
        event_type: payload.event_type,
        acting_user_id: payload.acting_user_id,
        merchant_account_id: payload.merchant_account_id.unwrap_or_default(),
        target_resource: payload.target_resource,
        outcome: payload.outcome,
        details: payload.details.as_ref().map_or("{}", |details| details.get()),
        event_timestamp: &metadata.event_timestamp,
        source_service: &metadata.source_service,
    };
    let mut line = serde_json::to_vec(&row).map_err(no_event)?;
    line.push(b'\n');
    Ok(line)
}

/// Writes rows together, or one by one if one of them is refused.
async fn write(client: &Client, rows: &[Vec<u8>]) -> Vec<Result<(), HandleError>> {
    match insert(client, rows.iter().map(Vec::as_slice)).await {
        Err(HandleError::Definite(_)) if rows.len() > 1 => {
            let mut outcomes = Vec::with_capacity(rows.len());
            for row in rows {
                outcomes.push(insert(client, std::iter::once(row.as_slice())).await);
            }
            outcomes
        }
        outcome => vec![outcome; rows.len()],
    }
}

async fn insert<'a>(client: &Client, rows: impl Iterator<Item = &'a [u8]>) -> Result<(), HandleError> {
    let body = Bytes::from(rows.collect::<Vec<_>>().concat());
    if body.is_empty() {
        return Ok(());
    }
    let sent = async {
        let mut insert = client
            .insert_formatted_with(format!("INSERT INTO audit_log ({COLUMNS}) FORMAT JSONEachRow"))
            .with_setting("async_insert", "0")
            .with_setting("input_format_null_as_default", "0")
            .with_setting("input_format_skip_unknown_fields", "0")
            .with_setting("max_partitions_per_insert_block", "0")
            .with_setting("date_time_input_format", "best_effort");
        insert.send(body).await?;
        insert.end().await
    };
    sent.await.map_err(|error: Error| match code(&error) {
        Some(code) if OF_THE_ROW.contains(&code) => HandleError::Definite(describe(&error)),
        _ => HandleError::Unavailable(describe(&error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::envelope::{Envelope, EventType};
    use serde_json::{Value, json};

    fn event(payload: Value) -> Event {
        let envelope = json!({
            "metadata": {
                "eventId": "018f3b5e-7c1a-8000-8000-0123456789ab", "eventTimestamp": "2026-01-01T00:00:00.000001Z",
                "eventType": "SecurityEventOccurred", "eventVersion": "1.1", "correlationId": "c", "sourceService": "shop"
            },
            "payload": payload
        });
        let envelope: Envelope = serde_json::from_value(envelope).unwrap();
        Event { of: EventType::SecurityEventOccurred, envelope, traceparent: None }
    }

    #[test]
    fn an_event_is_one_row() {
        let payload = json!({
            "eventType": "role_changed", "actingUserId": "u", "outcome": "failure", "merchantAccountId": "m",
            "targetResource": "user/7", "details": {"to": "admin"}, "later": true
        });
        let row: Value = serde_json::from_slice(&super::row(&event(payload)).unwrap()).unwrap();
        assert_eq!(
            row,
            json!({
                "event_id": "018f3b5e-7c1a-8000-8000-0123456789ab", "correlation_id": "c", "event_type": "role_changed",
                "acting_user_id": "u", "merchant_account_id": "m", "target_resource": "user/7", "outcome": "failure",
                "details": "{\"to\":\"admin\"}", "event_timestamp": "2026-01-01T00:00:00.000001Z",
                "source_service": "shop"
            })
        );
    }

    #[test]
    fn what_an_event_does_not_say_is_empty() {
        let payload =
            json!({"eventType": "login", "actingUserId": "u", "outcome": "success", "merchantAccountId": null});
        let row: Value = serde_json::from_slice(&super::row(&event(payload)).unwrap()).unwrap();
        assert_eq!(
            (&row["merchant_account_id"], &row["target_resource"], &row["details"]),
            (&json!(""), &Value::Null, &json!("{}"))
        );
    }
}
