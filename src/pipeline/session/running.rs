//! A session that streams: its flow, what goes on beside that, and what becomes of it when one of them ends.

use super::SessionError;
use crate::{
    clickhouse::job::Failure,
    pipeline::flow::{Flow, Task, join},
};
use tokio_util::sync::CancellationToken;

/// What is going. Dropping it ends all of it.
pub(super) struct Running {
    pub(super) flow: Flow,
    pub(super) tables: Task<SessionError>,
    pub(super) monitor: Task<Failure>,
    /// With `[queue]`.
    pub(super) letters: Option<Task<SessionError>>,
    /// With a replay on its way.
    pub(super) replay: Option<Task<SessionError>>,
}

impl Running {
    /// Runs until `stop` is cancelled.
    ///
    /// # Errors
    /// Whatever ends before that.
    pub(super) async fn until(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        let ended = tokio::select! {
            ended = self.flow.until(stop) => return ended,
            ended = join(&mut self.letters) => (ended, "letters"),
            ended = join(&mut self.replay) => (ended, "replay"),
            ended = self.tables.join() => (ended, "tables"),
            ended = self.monitor.join() => (ended, "monitor"),
        };
        match ended {
            (Err(error), _) => Err(error),
            // None of them ends by itself.
            (Ok(()), name) => Err(SessionError::Panic(name)),
        }
    }

    /// A stop was asked for, or a pause: what is in memory is made durable, stored and reported.
    ///
    /// # Errors
    /// What keeps it from that.
    pub(super) async fn drain(self) -> Result<(), SessionError> {
        let Self { flow, tables, monitor, letters, replay } = self;
        drop((tables, monitor, letters, replay));
        Box::pin(flow.drain()).await
    }
}
