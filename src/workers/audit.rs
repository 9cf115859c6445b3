//! audit-log-queue: what happens to security becomes rows of `audit_log`.

use super::{
    apart::{self, Refused},
    together::{self, Together},
};
use crate::{
    clickhouse::{
        client::{code, describe, kind},
        presence::presence,
    },
    event::schema,
    queue::consumer::{Event, HandleError, Handler, more_time},
    retry::Kind,
};
use bytes::Bytes;
use clickhouse::{Client, error::Error};
use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

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

/// A row as large as this is written alone: the others would wait for it.
const LARGE: usize = 1 << 20;

/// Writes `audit_log`.
pub struct Audit {
    client: Client,
    rows: Together<Vec<u8>>,
    timeout: Duration,
}

/// The payload, as far as it is a column.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    event_type: String,
    acting_user_id: String,
    outcome: String,
    merchant_account_id: Option<String>,
    target_resource: Option<String>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
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
    /// A handler that writes with `client`, whose database is chosen, and has `timeout` for each event.
    pub fn new(client: Client, timeout: Duration) -> Self {
        let (writer, limit) = (client.clone(), together::limit(timeout));
        let rows = Together::new(limit, move |rows: Vec<Vec<u8>>| {
            let client = writer.clone();
            async move { apart::write(rows.len(), |range| insert(&client, rows[range].concat().into(), limit)).await }
        });
        Self { client, rows, timeout }
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

    fn is_told(&self) -> bool {
        presence().is_away()
    }

    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandleError>> {
        async {
            let row = row(event)?;
            if row.len() < LARGE {
                return self.rows.write(row).await;
            }
            let limit = together::limit(self.timeout + more_time(row.len() as u64));
            Ok(insert(&self.client, row.into(), limit).await?)
        }
        .boxed()
    }
}

/// The row of `audit_log` that an event is: one line of JSON, with its end.
///
/// # Errors
/// Definite, if the payload is not the one of such an event.
pub fn row(event: &Event) -> Result<Vec<u8>, HandleError> {
    let metadata = &event.envelope.metadata;
    // What a schema lets through has this shape.
    let no_event =
        |error: serde_json::Error| HandleError::Definite(schema::Misfit::Json(error.to_string()).to_string());
    let payload: Payload<'_> = serde_json::from_str(event.envelope.payload.get()).map_err(no_event)?;
    let details = payload.details.map_or("{}", RawValue::get);
    let row = Row {
        event_id: &metadata.event_id,
        correlation_id: &metadata.correlation_id,
        event_type: payload.event_type,
        acting_user_id: payload.acting_user_id,
        merchant_account_id: payload.merchant_account_id.unwrap_or_default(),
        target_resource: payload.target_resource,
        outcome: payload.outcome,
        details,
        event_timestamp: &metadata.event_timestamp,
        source_service: &metadata.source_service,
    };
    // A large one is not to grow by doubling: it is escaped, which makes it longer by a part.
    let mut line = Vec::with_capacity(details.len() + details.len() / 4 + 512);
    serde_json::to_writer(&mut line, &row).map_err(no_event)?;
    line.push(b'\n');
    Ok(line)
}

async fn insert(client: &Client, rows: Bytes, limit: Duration) -> Result<(), Refused> {
    let sent = async {
        let mut insert = client
            .insert_formatted_with(format!("INSERT INTO audit_log ({COLUMNS}) FORMAT JSONEachRow"))
            .with_setting("async_insert", "0")
            .with_setting("input_format_null_as_default", "0")
            .with_setting("input_format_skip_unknown_fields", "0")
            .with_setting("max_partitions_per_insert_block", "0")
            .with_setting("date_time_input_format", "best_effort")
            .with_timeouts(Some(limit), Some(limit));
        insert.send(rows).await?;
        insert.end().await
    };
    sent.await.map_err(|error: Error| {
        let why = describe(&error);
        presence().failed("write the audit log", &error);
        match (code(&error), kind(&error)) {
            (Some(code), _) if OF_THE_ROW.contains(&code) => Refused::Rows(why),
            (Some(_), Kind::Definite) => Refused::Perhaps(why),
            _ => Refused::Away(why),
        }
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
        Event { of: EventType::SecurityEventOccurred, envelope, traceparent: None, is_last: false }
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
