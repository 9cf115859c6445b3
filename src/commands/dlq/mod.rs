//! `walhouse dlq`: dead letters are looked at, sent home, or removed.
//!
//! With `[queue]` they are messages in SQS ([`queues`]); without it, or when asked for, they are rows that their tables in
//! ClickHouse can not hold ([`rows`]).

mod queues;
mod rows;
mod table;

use super::{Say, exit_code};
use crate::{
    cli::{DlqArgs, exit},
    clickhouse::client::{describe, kind},
    config::Config,
    queue::client::QueueError,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line does not go with the configuration.
    #[error("{0}")]
    Usage(String),
    /// SQS refuses, or is away.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Not all was done.
    #[error("{0}")]
    Unfinished(String),
    /// ClickHouse refuses, or is away.
    #[error("{}{place}", describe(source))]
    ClickHouse {
        /// Where it was asked, and as whom.
        place: String,
        /// What it said.
        source: clickhouse::error::Error,
    },
}

impl From<clickhouse::error::Error> for Error {
    fn from(source: clickhouse::error::Error) -> Self {
        Self::ClickHouse { place: String::new(), source }
    }
}

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Queue(error) => exit_code(error.kind),
            Self::ClickHouse { source, .. } => exit_code(kind(source)),
            Self::Unfinished(_) => exit::FOUND,
        }
    }
}

/// What there is to say.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For people.
    pub text: String,
    /// For machines.
    pub json: Value,
    /// What the process ends with.
    pub exit_code: u8,
}

impl Answer {
    fn new(text: String, json: Value, exit_code: u8) -> Self {
        Self { text, json, exit_code }
    }
}

/// Does what the command line asks for, until it is done or `stop` is cancelled. `say` takes a line about how it goes on.
///
/// # Errors
/// What could not be done, and what to do instead.
pub async fn run(config: &Config, args: &DlqArgs, stop: &CancellationToken, say: Say<'_>) -> Result<Answer, Error> {
    match &config.queue {
        Some(queue) if !args.rows => queues::run(config, queue, args, stop, say).await,
        _ => rows::run(config, args).await.map_err(|error| match error {
            Error::ClickHouse { source, .. } => {
                let (url, user) = (&config.clickhouse.url, &config.clickhouse.user);
                let place = format!("; it is asked at clickhouse.url = {url} as clickhouse.user = {user}");
                Error::ClickHouse { place, source }
            }
            error => error,
        }),
    }
}

/// Why nothing is removed yet.
fn say_yes(letters: u64, what: &str) -> Error {
    Error::Usage(format!("this would remove {what} for good, {letters} at the moment; to do it, say --yes"))
}
