//! The composition root: it builds a session, watches over it, drains it, and begins a new one when
//! something transient has ended it.
//!
//! A session is everything between connecting and losing a connection. Whatever is in memory is
//! dropped with it, and the next one begins at the stored checkpoint: a reconnect is the same as a
//! restart, so there is one way to resume, and it is the one that every kill tests. Only
//! ClickHouse may be away without ending a session: the lane waits for it, and the slot holds.

pub mod flow;
mod letters;
mod pause;
pub mod queue;
mod replay;
mod session;
mod tables;

use crate::{
    clickhouse::job::Failure,
    config::Config,
    copy::CopyError,
    postgres::{
        assembler::StreamError,
        connection::ConnectionError,
        slot::{AskError, Gap},
        source,
        sql::SqlError,
    },
    retry::{Backoff, Kind},
    setup::SetupError,
    status::{Status, Step},
    telemetry::{self, names},
};
use std::{
    sync::{Arc, Once},
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// The first and the longest bound of the wait before a new session.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A session that lasted this long was a good one: the next failure is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(20);

/// Why the daemon ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Halt {
    /// What happened and what an operator does about it.
    pub message: String,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A statement at the source.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The connection that the slot is read over.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// What came over it.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A destination.
    #[error(transparent)]
    Lane(#[from] Failure),
    /// The slot does not go on where the checkpoint is.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// A table got another shape after it was read for a target and before that was fed, or was locked so that nobody can tell.
    #[error("{0} changed its shape, or was locked, while its replication began; it begins anew")]
    Reshaped(String),
    /// What only an operator can mend.
    #[error("{0}")]
    Definite(String),
    /// A bug.
    #[error("the task {0} ended in a panic; this is a bug in walhouse")]
    Panic(&'static str),
}

impl SessionError {
    /// Whether a new session may go on.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Sql(error) => error.kind(),
            Self::Connection(error) | Self::Stream(StreamError::Connection(error)) => error.kind(),
            Self::Stream(StreamError::Ended | StreamError::Again { .. }) => Kind::Transient,
            Self::Stream(StreamError::Decode { .. } | StreamError::Order { .. }) => Kind::Definite,
            Self::Lane(failure) => failure.kind(),
            Self::Reshaped(_) => Kind::Transient,
            Self::Gap(_) | Self::Definite(_) | Self::Panic(_) => Kind::Definite,
        }
    }
}

impl SessionError {
    fn is_of_source(&self) -> bool {
        matches!(self, Self::Sql(_) | Self::Connection(_) | Self::Stream(_))
    }
}

impl From<AskError> for SessionError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Sql(error) => Self::Sql(error),
            AskError::Connection(error) => Self::Connection(error),
        }
    }
}

impl From<SetupError> for SessionError {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Sql(error) => Self::Sql(error),
            SetupError::Connection(error) => Self::Connection(error),
            SetupError::ClickHouse(error) => error.into(),
            SetupError::Gap(gap) => Self::Gap(gap),
            SetupError::Definite(what) => Self::Definite(what),
        }
    }
}

impl From<CopyError> for SessionError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Sql(error) => Self::Sql(error),
            CopyError::Connection(error) => Self::Connection(error),
            CopyError::Lane(failure) => Self::Lane(failure),
            // Its chunk is copied again.
            CopyError::Interrupted(why) => Self::Lane(Failure::Bug(format!("an insert was given up: {why}"))),
            CopyError::Cell(error) => Self::Definite(error.to_string()),
        }
    }
}

impl From<clickhouse::error::Error> for SessionError {
    fn from(error: clickhouse::error::Error) -> Self {
        Self::Lane(Failure::ClickHouse(error))
    }
}

impl From<tokio_postgres::Error> for SessionError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error.into())
    }
}

/// Runs until `stop` is cancelled, then drains.
///
/// # Errors
/// When only an operator can help.
pub async fn run(config: Arc<Config>, status: Arc<Status>, stop: CancellationToken) -> Result<(), Halt> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut held = None;
    loop {
        let begun = Instant::now();
        let ended = session::run(&config, &status, &stop, &mut held).await;
        status.update(|account| account.streaming = false);
        source::at_work(None);
        metrics::gauge!(names::BACK_PRESSURE).set(0.0);
        let error = match ended {
            Ok(()) if stop.is_cancelled() => return Ok(()),
            // Paused, or something is to be delivered again: the next session sees to it.
            Ok(()) => continue,
            Err(error) if stop.is_cancelled() => {
                tracing::warn!(%error, "stopped before all was sent; the next start replays the rest");
                return Ok(());
            }
            Err(error) => error,
        };
        if error.kind() == Kind::Definite {
            return Err(Halt { message: error.to_string() });
        }
        held = None;
        if begun.elapsed() > GOOD_SESSION {
            backoff.reset();
        }
        let pause = backoff.next_delay().max(FIRST_PAUSE / 2);
        metrics::counter!(names::RECONNECTS).increment(1);
        status.update(|account| {
            account.phase = format!("waiting to connect again: {error}");
            account.step = if error.is_of_source() { Step::WaitsForPostgreSql } else { Step::Begins };
        });
        tracing::warn!(%error, ?pause, "the session ended; going on from the checkpoint");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// From here on a checkpoint is waited for: without one, its age is counted from the first time.
fn checkpoints_begin() {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| metrics::gauge!(names::CHECKPOINT_TIME).set(telemetry::seconds(SystemTime::now())));
}
