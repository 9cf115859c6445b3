//! The row of `async_operations` that tells how a request is getting on.
//!
//! Each step is written as a row of its own with a higher version; the next attempt, of whatever process, goes on from the highest.

use super::request::Request;
use crate::{
    clickhouse::{client::describe, presence::presence},
    queue::consumer::{Event, HandleError},
};
use bytes::Bytes;
use clickhouse::{Client, error::Error};
use serde::Serialize;
use std::time::SystemTime;

/// A row, as JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    event_id: String,
    correlation_id: String,
    operation_type: String,
    report: String,
    format: String,
    merchant_account_id: String,
    user_id: String,
    status: &'static str,
    rows: u64,
    bytes: u64,
    location: String,
    error: String,
    attempt: u32,
    requested_at: String,
    started_at: String,
    finished_at: Option<String>,
    version: u64,
}

/// What becomes of a request.
pub(super) enum Step<'a> {
    Running {
        rows: u64,
        bytes: u64,
    },
    /// It is asked for again, since this attempt did not do it.
    Again {
        error: &'a str,
    },
    Failed {
        error: &'a str,
    },
    Succeeded {
        rows: u64,
        bytes: u64,
        location: &'a str,
    },
}

impl Record {
    /// The record of an attempt that begins now; nothing if an earlier one has succeeded.
    pub(super) async fn begin(client: &Client, request: &Request, event: &Event) -> Result<Option<Self>, HandleError> {
        let last = client
            .query_raw(
                "SELECT toString(status), attempt, version FROM async_operations FINAL WHERE event_id = {id: UUID}",
            )
            .param("id", request.id.to_string())
            .fetch_optional::<(String, u32, u64)>()
            .await
            .map_err(away)?;
        let (status, attempt, version) = last.unwrap_or_default();
        if status == "succeeded" {
            return Ok(None);
        }
        let metadata = &event.envelope.metadata;
        let record = Self {
            event_id: request.id.to_string(),
            correlation_id: metadata.correlation_id.clone(),
            operation_type: request.operation_type.clone(),
            report: request.report.clone(),
            format: request.format.clone(),
            merchant_account_id: request.merchant.clone(),
            user_id: request.user_id.clone(),
            status: "requested",
            rows: 0,
            bytes: 0,
            location: String::new(),
            error: String::new(),
            attempt: attempt + 1,
            requested_at: metadata.event_timestamp.clone(),
            started_at: now(),
            finished_at: None,
            version: version + 1,
        };
        record.write(client).await?;
        Ok(Some(record))
    }

    /// Notes a step.
    pub(super) async fn note(&mut self, client: &Client, step: Step<'_>) -> Result<(), HandleError> {
        self.version += 1;
        self.error.clear();
        match step {
            Step::Running { rows, bytes } => (self.status, self.rows, self.bytes) = ("running", rows, bytes),
            Step::Again { error } => (self.status, self.error) = ("requested", error.to_owned()),
            Step::Failed { error } => {
                (self.status, self.error) = ("failed", error.to_owned());
                self.finished_at = Some(now());
            }
            Step::Succeeded { rows, bytes, location } => {
                (self.status, self.rows, self.bytes, self.location) = ("succeeded", rows, bytes, location.to_owned());
                self.finished_at = Some(now());
            }
        }
        self.write(client).await
    }

    async fn write(&self, client: &Client) -> Result<(), HandleError> {
        let line = serde_json::to_vec(self).map_err(|error| HandleError::Definite(error.to_string()))?;
        let sent = async {
            let mut insert = client
                .insert_formatted_with("INSERT INTO async_operations FORMAT JSONEachRow")
                .with_setting("async_insert", "0")
                .with_setting("input_format_skip_unknown_fields", "0")
                .with_setting("date_time_input_format", "best_effort");
            insert.send(Bytes::from(line)).await?;
            insert.end().await
        };
        sent.await.map_err(away)
    }
}

fn away(error: Error) -> HandleError {
    presence().failed("note how a request is getting on", &error);
    HandleError::Unavailable(describe(&error))
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
