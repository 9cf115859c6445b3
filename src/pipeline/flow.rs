//! The heart of a session: the lanes, the reader that feeds them, and what stores how far they are.
//!
//! Here positions go their way back: a lane's durable position, the stored checkpoint, what the server is told; each of them
//! only after the one before. What ends one of these tasks ends the session, and a stop goes through all of them in the order
//! of the data. What else a session does, such as looking after tables, is beside it and decides nothing of that.
//!
//! It is given its connections and knows nothing of how they were made. So a simulation runs this very code between made-up
//! servers (docs/faults.md).

use super::SessionError;
use crate::{
    checkpoint::{self, CheckpointStore},
    clickhouse::{job::Failure, sink::Sink, state::State},
    event::Lsn,
    lane::{LaneSender, Room},
    postgres::{
        acknowledged::Acknowledged,
        connection::ReplicationConnection,
        lock::SlotLock,
        outlet::Outlet,
        source::{Settings, Source},
    },
    queue::publisher::{PublishError, Publisher},
    telemetry::{self, names},
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long draining may take once a stop was asked for; what is not durable by then is replayed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long of it events may take. What comes after them, the last checkpoint, does not wait for a queue that is away.
const QUEUE_DRAIN: Duration = Duration::from_secs(5);

/// A lane before it runs, with the source's end of it.
pub struct Lane<T> {
    /// The destination.
    pub destination: T,
    /// Where groups go in.
    pub sender: LaneSender,
    /// Where it says what is durable.
    pub durable: watch::Receiver<Lsn>,
}

/// What a flow is made of.
pub struct Parts {
    /// The lane into ClickHouse.
    pub sink: Lane<Sink>,
    /// The lane into SQS, with `[queue]`.
    pub queue: Option<Lane<Publisher>>,
    /// Where the stream begins: the stored checkpoint, or an earlier position that is delivered again.
    pub start: Lsn,
    /// What may be on its way to the lanes.
    pub room: Room,
    /// For the stream, if that is what reading begins with.
    pub replication: ReplicationConnection,
    /// How the slot is read.
    pub reading: Settings,
    /// Where the checkpoint is stored.
    pub state: Arc<State>,
    /// Whether this process may write.
    pub allowed: Arc<AtomicBool>,
    /// Says what is stored, once it is.
    pub stored: watch::Sender<Lsn>,
    /// What the server may be told of that.
    pub acknowledged: Acknowledged,
}

/// What is going. Dropping it ends all of it.
pub struct Flow {
    sink: Task<Failure>,
    checkpoints: Task<Failure>,
    publisher: Option<Task<PublishError>>,
    reader: Source,
    /// Tells the checkpoints that what the lanes have made durable by now is the last of it.
    settled: CancellationToken,
    state: Arc<State>,
}

impl Flow {
    /// Sets it going: the lanes first, then what feeds them, then what stores how far they are.
    ///
    /// # Errors
    /// If the slot can not be read.
    pub async fn begin(parts: Parts) -> Result<Self, SessionError> {
        let Parts { sink, queue, start, room, replication, reading, state, allowed, stored, acknowledged } = parts;
        let (mut senders, mut positions) = (vec![sink.sender], vec![sink.durable]);
        let mut guarded = Guarded { state: Arc::clone(&state), lock: Arc::clone(&reading.lock), allowed, queue: None };
        let sink = Task::spawn("sink", sink.destination.run());
        let publisher = queue.map(|Lane { destination, sender, durable }| {
            senders.push(sender);
            guarded.queue = Some(durable.clone());
            positions.push(durable);
            Task::spawn("queue", destination.run())
        });
        let outlet = Outlet::new(start, senders, room, acknowledged);
        let reader = Source::start(replication, outlet, reading).await?;
        let settled = CancellationToken::new();
        let checkpoints = Task::spawn("checkpoint", checkpoint::run(guarded, positions, stored, settled.clone()));
        Ok(Self { sink, checkpoints, publisher, reader, settled, state })
    }

    /// Runs until `stop` is cancelled.
    ///
    /// # Errors
    /// Whatever ends before that.
    pub async fn until(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        let ended = tokio::select! {
            biased;
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
            ended = join(&mut self.publisher) => (ended, "queue"),
            ended = self.sink.join() => (ended, "sink"),
            ended = self.checkpoints.join() => (ended, "checkpoint"),
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
    pub async fn drain(self) -> Result<(), SessionError> {
        let Self { mut sink, mut checkpoints, mut publisher, mut reader, settled, state } = self;
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

/// The store of checkpoints, behind the slot's lock: a process that lost the lock stores nothing.
struct Guarded {
    state: Arc<State>,
    lock: Arc<SlotLock>,
    allowed: Arc<AtomicBool>,
    /// The queue lane's own position, if there is one.
    queue: Option<watch::Receiver<Lsn>>,
}

impl CheckpointStore for Guarded {
    type Error = Failure;

    async fn save(&mut self, lsn: Lsn) -> Result<(), Failure> {
        if !self.lock.is_held().await {
            self.allowed.store(false, Ordering::SeqCst);
            return Err(Failure::LockLost);
        }
        let queue = self.queue.as_ref().map_or(Lsn::ZERO, |queue| *queue.borrow());
        self.state.advance(lsn, queue).await?;
        metrics::gauge!(names::CHECKPOINT).set(lsn.0 as f64);
        metrics::gauge!(names::CHECKPOINT_TIME).set(telemetry::seconds(SystemTime::now()));
        Ok(())
    }
}

/// The end of a task, if there is one.
pub(super) async fn join<E: Into<SessionError> + Send + 'static>(
    task: &mut Option<Task<E>>,
) -> Result<(), SessionError> {
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

    /// Waits for its end.
    pub(super) async fn join(&mut self) -> Result<(), SessionError> {
        let joined: Result<_, JoinError> = (&mut self.handle).await;
        joined.map_err(|_| SessionError::Panic(self.name))?.map_err(Into::into)
    }
}

impl<E> Drop for Task<E> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
