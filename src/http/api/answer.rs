//! Answers: what was asked for, or why not and what to do.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::rejection::BytesRejection,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{super::auth::Denied, LONGEST_BODY};
use crate::{
    clickhouse::client::kind,
    commands::{dlq, request, verify},
    queue::client::QueueError,
    retry::Kind,
};

/// An answer.
pub(super) struct Json(pub(super) Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}

/// Why there is no answer, as the `error` of a JSON object.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn denied(why: Denied) -> Self {
        Self::new(why.status(), why.to_string())
    }

    pub(super) fn too_many(wait: Duration, what: &str) -> Self {
        let message = format!("{what}; ask again later");
        Self { retry_after: Some(wait), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    pub(super) fn absent(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn no_path(root: &str) -> Self {
        Self::absent(format!("there is no such path; {root}/openapi.json has those that there are"))
    }

    pub(super) fn method(known: &Method) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("this path takes {known}"))
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after: Some(Duration::from_secs(5)), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    pub(super) fn late(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, message)
    }

    /// Something of ours has panicked; the log has it.
    pub(super) fn broken() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "a mistake in walhouse; its log says more")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.message }))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"walhouse\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if let Some(wait) = self.retry_after {
            // Whole seconds, at least one.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

impl From<clickhouse::error::Error> for Refusal {
    fn from(error: clickhouse::error::Error) -> Self {
        Self::clickhouse(&error, crate::clickhouse::client::describe(&error))
    }
}

impl Refusal {
    fn clickhouse(error: &clickhouse::error::Error, message: String) -> Self {
        match kind(error) {
            Kind::Transient => Self::unavailable(message),
            Kind::Definite => Self::new(StatusCode::BAD_GATEWAY, message),
        }
    }
}

impl From<verify::Error> for Refusal {
    fn from(error: verify::Error) -> Self {
        match &error {
            verify::Error::ClickHouse { source, .. } => Self::clickhouse(source, error.to_string()),
            verify::Error::NotRunYet { .. } => Self::unavailable(error.to_string()),
            _ => Self::new(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }
}

impl From<request::Error> for Refusal {
    fn from(error: request::Error) -> Self {
        match error {
            request::Error::NoTable(_) => Self::absent(error.to_string()),
            request::Error::Stored(error) => error.into(),
            request::Error::ClickHouse(error) => error.into(),
            request::Error::Postgres(_) => Self::unavailable(error.to_string()),
            request::Error::Nobody { .. } | request::Error::Refused(_) => Self::conflict(error.to_string()),
        }
    }
}

impl From<dlq::Error> for Refusal {
    fn from(error: dlq::Error) -> Self {
        match error {
            dlq::Error::Usage(message) => Self::bad(message),
            dlq::Error::Unfinished(message) => Self::absent(message),
            dlq::Error::ClickHouse { source, .. } => source.into(),
            dlq::Error::Queue(QueueError { kind: Kind::Transient, message, .. }) => Self::unavailable(message),
            dlq::Error::Queue(error) => Self::new(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }
}

/// A body that is JSON and says so, which no form of a web page can.
pub(super) fn body<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Refusal> {
    let says = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = says.and_then(|says| says.split(';').next()).map(str::trim);
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        let why = "send JSON, with the header Content-Type: application/json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {LONGEST_BODY} bytes"))
        }
        _ => Refusal::bad("the body could not be read"),
    })?;
    let body = if body.trim_ascii().is_empty() { &b"{}"[..] } else { &body };
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad(format!("the body is not what is expected here: {error}")))
}
