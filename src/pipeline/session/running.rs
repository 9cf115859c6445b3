//! A session that streams: its tasks, what becomes of it when one of them ends, and how it is drained.

use super::SessionError;
use crate::{
    clickhouse::{job::Failure, state::State},
    postgres::source::Source,
    queue::publisher::PublishError,
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long draining may take once a stop was asked for; what is not durable by then is replayed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long of it events may take. What comes after them, the last checkpoint, does not wait for a queue that is away.
const QUEUE_DRAIN: Duration = Duration::from_secs(5);

/// What is going. Dropping it ends all of it.
pub(super) struct Running {
    pub(super) sink: Task<Failure>,
    pub(super) checkpoints: Task<Failure>,
    pub(super) tables: Task<SessionError>,
    pub(super) monitor: Task<Failure>,
    /// With `[queue]`.
    pub(super) publisher: Option<Task<PublishError>>,
    pub(super) letters: Option<Task<SessionError>>,
    /// With a replay on its way.
    pub(super) replay: Option<Task<SessionError>>,
    pub(super) reader: Source,
    /// Tells the checkpoints that what the lanes have made durable by now is the last of it.
    pub(super) settled: CancellationToken,
    pub(super) state: Arc<State>,
}

impl Running {
    /// Runs until `stop` is cancelled.
    ///
    /// # Errors
    /// Whatever ends before that.
    pub(super) async fn until(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        let ended = tokio::select! {
            ended = self.reader.run(stop) => match ended {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // What ended a lane says more than that it has gone.
                    for task in [&mut self.sink, &mut self.checkpoints] {
                        if task.is_finished() {
                            task.join().await?;
                        }
                    }
                    return Err(error.into());
                }
            },
            ended = join(&mut self.letters) => (ended, "letters"),
            ended = join(&mut self.replay) => (ended, "replay"),
            ended = join(&mut self.publisher) => (ended, "queue"),
            ended = self.sink.join() => (ended, "sink"),
            ended = self.checkpoints.join() => (ended, "checkpoint"),
            ended = self.tables.join() => (ended, "tables"),
            ended = self.monitor.join() => (ended, "monitor"),
        };
        match ended {
            (Err(error), _) => Err(error),
            // None of them ends by itself.
            (Ok(()), name) => Err(SessionError::Panic(name)),
        }
    }

    /// A stop was asked for, or a pause. In this order: nothing more comes in, what is in is made durable, what is durable
    /// is stored, what is stored is reported.
    ///
    /// # Errors
    /// What keeps it from being made durable or stored.
    pub(super) async fn drain(self) -> Result<(), SessionError> {
        let Self {
            mut sink,
            mut checkpoints,
            tables,
            monitor,
            mut publisher,
            letters,
            replay,
            mut reader,
            settled,
            state,
        } = self;
        drop((tables, monitor, letters, replay));
        reader.release_lanes();
        let drain = async {
            sink.join().await?;
            if publisher.is_some() {
                match timeout(QUEUE_DRAIN, join(&mut publisher)).await {
                    Ok(ended) => ended?,
                    Err(_) => {
                        tracing::warn!("events that are not sent yet are left to the next start");
                        drop(publisher);
                    }
                }
            }
            settled.cancel();
            checkpoints.join().await?;
            state.settle().await?;
            Ok::<_, SessionError>(())
        };
        match timeout(DRAIN_TIMEOUT, drain).await {
            Ok(drained) => drained?,
            Err(_) => tracing::warn!("what is not durable yet is left to the next start, which replays it"),
        }
        reader.finish().await;
        Ok(())
    }
}

/// The end of a task, if there is one.
async fn join<E: Into<SessionError> + Send + 'static>(task: &mut Option<Task<E>>) -> Result<(), SessionError> {
    match task {
        Some(task) => task.join().await,
        None => std::future::pending().await,
    }
}

/// A task of the session; dropping it ends it.
pub(super) struct Task<E> {
    name: &'static str,
    handle: JoinHandle<Result<(), E>>,
}

impl From<PublishError> for SessionError {
    fn from(error: PublishError) -> Self {
        Self::Definite(error.to_string())
    }
}

impl<E: Into<SessionError> + Send + 'static> Task<E> {
    pub(super) fn spawn(name: &'static str, task: impl Future<Output = Result<(), E>> + Send + 'static) -> Self {
        Self { name, handle: tokio::spawn(task) }
    }

    fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    async fn join(&mut self) -> Result<(), SessionError> {
        let joined: Result<_, JoinError> = (&mut self.handle).await;
        joined.map_err(|_| SessionError::Panic(self.name))?.map_err(Into::into)
    }
}

impl<E> Drop for Task<E> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
