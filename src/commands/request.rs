//! What the commands that steer have in common: `resync`, `pause`, `resume`, `replay`.
//!
//! Each asks the daemon for something by way of ClickHouse, where the daemon looks every few seconds. So it needs no way to
//! the daemon, and one that is away takes it up when it is back. Each can be refused, each can wait in vain, and each says at
//! its end what came of it.

use super::{exit_code, verify};
use crate::{
    cli::exit,
    clickhouse::client::{describe, kind},
    postgres::sql::SqlError,
};
use serde_json::Value;
use std::time::Duration;

/// How often the daemon's answer is looked for.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);
/// How often progress is told.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Why what was asked for did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is stored can not be read.
    #[error(transparent)]
    Stored(#[from] verify::Error),
    /// ClickHouse fails.
    #[error("{}", describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// PostgreSQL can not be asked.
    #[error(transparent)]
    Postgres(#[from] SqlError),
    /// A pattern is of no use.
    #[error(
        "this slot does not replicate a table {0}, so nothing was asked for: walhouse status --json lists those that it does"
    )]
    NoTable(String),
    /// It can not be done.
    #[error("{0}")]
    Refused(String),
    /// Nobody has taken it up.
    #[error(
        "{what}: nobody has taken that up within {patience:?}: is {who} going, with this slot? It is stored, and is taken up \
         as soon as there is one; walhouse status says who is up"
    )]
    Nobody {
        /// What was asked for.
        what: String,
        /// Who should have.
        who: &'static str,
        /// How long it was waited.
        patience: Duration,
    },
}

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Stored(error) => error.exit_code(),
            Self::ClickHouse(error) => exit_code(kind(error)),
            Self::Postgres(error) => exit_code(error.kind()),
            Self::NoTable(_) => exit::USAGE,
            Self::Refused(_) | Self::Nobody { .. } => exit::FOUND,
        }
    }
}

/// What came of it. For people it was told on the way.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For machines.
    pub json: Value,
    /// What the process ends with.
    pub exit_code: u8,
}

impl Answer {
    /// With `"ok"` and `"dry_run"` in front.
    pub(super) fn new(ok: bool, dry_run: bool, rest: Value) -> Self {
        let mut json = serde_json::json!({ "ok": ok, "dry_run": dry_run });
        if let (Some(json), Value::Object(rest)) = (json.as_object_mut(), rest) {
            json.extend(rest);
        }
        Self { json, exit_code: if ok { exit::FINE } else { exit::FOUND } }
    }
}
