//! data-sync-queue: changes of rows find their way into ClickHouse once more, each with the version that it had.
//!
//! It is how a dead letter gets home. Of tables with `publish = true` every change comes this way too, unless somebody else
//! reads the queue; the pipeline has landed it then or is about to, and the version says that it is the same.

use super::together::{self, Together};
use crate::{
    clickhouse::{
        apply::{Applied, Applier, ApplyError, Resent, Row},
        client::describe,
        presence::presence,
    },
    config::Config,
    event::Epoch,
    queue::consumer::{Event, HandleError, Handler},
};
use clickhouse::Client;
use futures_util::{FutureExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Lands changes in their tables.
pub struct DataSync {
    client: Client,
    changes: Together<Resent>,
}

/// The payload.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    table_name: String,
    #[serde(default)]
    before: Option<BTreeMap<String, Box<RawValue>>>,
    #[serde(default)]
    after: Option<BTreeMap<String, Box<RawValue>>>,
}

impl DataSync {
    /// A handler that writes with `client`, whose database is chosen, and has `timeout` for each event.
    pub fn new(client: Client, config: Arc<Config>, timeout: Duration) -> Self {
        let applier = Arc::new(Applier::new(client.clone(), config));
        let changes = Together::new(together::limit(timeout), move |changes: Vec<Resent>| {
            let applier = Arc::clone(&applier);
            async move {
                let outcomes = applier.apply(&changes).await;
                outcomes.into_iter().map(|outcome| outcome.map(told).map_err(HandleError::from)).collect()
            }
        });
        Self { client, changes }
    }
}

fn told(applied: Applied) {
    if let Applied::Superseded(why) = applied {
        tracing::debug!(why, "a change is not landed once more");
    }
}

impl From<ApplyError> for HandleError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Definite(why) => Self::Definite(why),
            ApplyError::Transient(why) => Self::Transient(why),
            ApplyError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl Handler for DataSync {
    fn name(&self) -> &'static str {
        "data_sync"
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            // The pipeline's first start makes it, in this process or another one.
            match self.client.query("EXISTS TABLE _tables").fetch_one::<u8>().await {
                Ok(1) => Ok(()),
                Ok(_) => Err("ClickHouse has no table _tables yet".to_owned()),
                Err(error) => Err(describe(&error)),
            }
        }
        .boxed()
    }

    fn is_told(&self) -> bool {
        presence().is_away()
    }

    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandleError>> {
        async { self.changes.write(resent(event)?).await }.boxed()
    }
}

/// The change that an event tells of.
///
/// # Errors
/// Definite, if it does not say what the row was, or where it stands in the WAL.
pub fn resent(event: &Event) -> Result<Resent, HandleError> {
    let no_event = |error: serde_json::Error| HandleError::Definite(format!("its payload can not be read: {error}"));
    let payload: Payload = serde_json::from_str(event.envelope.payload.get()).map_err(no_event)?;
    let position = event.envelope.metadata.position.ok_or_else(|| {
        HandleError::Definite("it does not say where the change stands in the WAL (metadata.position)".to_owned())
    })?;
    let row = |values: Option<BTreeMap<String, Box<RawValue>>>| {
        let read = |(name, value): (String, Box<RawValue>)| Ok((name, text(value.get())?));
        values.map(|values| values.into_iter().map(read).collect::<Result<Row, _>>()).transpose().map_err(no_event)
    };
    Ok(Resent {
        table: payload.table_name,
        epoch: Epoch(position.epoch),
        commit: position.commit_lsn,
        record: position.record_lsn,
        before: row(payload.before)?,
        after: row(payload.after)?,
    })
}

/// A value in PostgreSQL's text form. walhouse writes strings; what somebody else wrote as a number is not passed through one.
/// A string that is no text, since there is half of a surrogate pair in it, is no value.
fn text(value: &str) -> serde_json::Result<Option<String>> {
    Ok(match value {
        "null" => None,
        "true" => Some("t".to_owned()),
        "false" => Some("f".to_owned()),
        _ if value.starts_with('"') => Some(serde_json::from_str(value)?),
        _ => Some(value.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{
        Lsn,
        envelope::{Envelope, EventType},
    };
    use serde_json::{Value, json};

    fn event(position: &Value, payload: &Value) -> Event {
        let mut envelope = json!({
            "metadata": {
                "eventId": "018f3b5e-7c1a-8000-8000-0123456789ab", "eventTimestamp": "2026-01-01T00:00:00.000001Z",
                "eventType": "DatabaseChangeCaptured", "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
            },
            "payload": payload
        });
        if !position.is_null() {
            envelope["metadata"]["position"] = position.clone();
        }
        let envelope: Envelope = serde_json::from_value(envelope).unwrap();
        Event { of: EventType::DatabaseChangeCaptured, envelope, traceparent: None, is_last: false }
    }

    #[test]
    fn values_come_as_they_are_written() {
        let position = json!({"epoch": 1, "commitLsn": "0/200", "recordLsn": "0/1F0"});
        let after = r#"{"a": "x\n", "b": null, "c": 12345678901234567890.10, "d": true, "e": {"k": [1]}}"#;
        let payload = json!({"tableName": "t", "operation": "update", "before": {"a": "w"}});
        let mut payload = payload.to_string();
        payload.insert_str(payload.len() - 1, &format!(",\"after\":{after}"));
        let mut event = event(&position, &json!({}));
        event.envelope.payload = RawValue::from_string(payload).unwrap();
        let change = resent(&event).unwrap();
        assert_eq!((change.epoch, change.commit, change.record), (Epoch(1), Lsn(0x200), Lsn(0x1F0)));
        let text = |text: &str| Some(text.to_owned());
        let after: Vec<_> = change.after.unwrap().into_values().collect();
        assert_eq!(after, [text("x\n"), None, text("12345678901234567890.10"), text("t"), text("{\"k\": [1]}")]);
        assert_eq!(change.before.unwrap()["a"], text("w"));
    }

    #[test]
    fn a_string_that_is_no_text_is_refused_and_not_landed_as_it_is_written() {
        let position = json!({"epoch": 0, "commitLsn": "0/200", "recordLsn": "0/1F0"});
        for written in [r#""\ud800""#, r#""a\udc00b""#] {
            let mut event = event(&position, &json!({}));
            let payload = format!(r#"{{"tableName": "t", "operation": "insert", "after": {{"a": {written}}}}}"#);
            event.envelope.payload = RawValue::from_string(payload).unwrap();
            assert!(matches!(resent(&event), Err(HandleError::Definite(_))), "{written}");
        }
    }

    #[test]
    fn a_change_without_a_position_is_never_landed() {
        let payload = json!({"tableName": "t", "operation": "delete", "before": {"a": "1"}, "after": null});
        let refused = resent(&event(&Value::Null, &payload));
        assert!(matches!(refused, Err(HandleError::Definite(why)) if why.contains("metadata.position")));
    }
}
