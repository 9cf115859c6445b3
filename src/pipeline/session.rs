//! One session: connect, check, stream, and at the end drain.

use super::{
    Guarded, SessionError, checkpoints_begin, letters, pause,
    queue::QueueLane,
    replay::{self, Replay},
    tables::{self, Tables},
};
use crate::{
    checkpoint,
    clickhouse::{
        client, ddl,
        insert::{Inserter, QueryIds, kill_leftovers},
        job::{Failure, Shared},
        requests::Requests,
        sink::{Limits, Sink},
        state::{Checkpoint, State},
        table::{Layout, TableSpec},
    },
    config::Config,
    copy::Copier,
    event::{Epoch, Lsn},
    lane::{Room, lane},
    postgres::{
        acknowledged::Acknowledged,
        connection::ReplicationConnection,
        lock::SlotLock,
        lookup::Lookup,
        outlet::Outlet,
        publication::{self, Publication},
        slot::{self, Server},
        source::{Reader, Settings, Source},
        sql,
    },
    queue::publisher::PublishError,
    setup,
    status::{Status, Step},
    telemetry::names,
};
use clickhouse::{Client, Compression};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// How long draining may take once a stop was asked for; what is not durable by then is replayed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long of it events may take. What comes after them, the last checkpoint, does not wait for a queue that is away.
const QUEUE_DRAIN: Duration = Duration::from_secs(5);
/// How often the lag is measured.
const MONITOR_INTERVAL: Duration = Duration::from_secs(1);

/// What a session has once everything is checked.
struct Ready {
    control: tokio_postgres::Client,
    lock: Arc<SlotLock>,
    replication: ReplicationConnection,
    publication: Publication,
    state: Arc<State>,
    clickhouse: Client,
    /// The stored checkpoint.
    checkpoint: Lsn,
    /// What is delivered again before that.
    replay: Option<Replay>,
    /// Every event of commits before was sent, or is not to be sent again.
    queue_start: Lsn,
    /// What the server has been told already.
    confirmed: Lsn,
    system_identifier: u64,
    /// The end of the source's WAL.
    flushed: Lsn,
    epoch: Epoch,
}

/// Runs a session until it breaks, `stop` is cancelled, or it is to stand still or begin elsewhere. `held` is the slot's
/// lock, from one session to the next.
pub(super) async fn run(
    config: &Arc<Config>,
    status: &Arc<Status>,
    stop: &CancellationToken,
    held: &mut Option<Arc<SlotLock>>,
) -> Result<(), SessionError> {
    let ready = tokio::select! {
        ready = prepare(config, status, held) => ready?,
        () = stop.cancelled() => return Ok(()),
    };
    stream(config, status, stop, ready).await
}

/// Connects to both sides and makes sure that they fit what is stored. Nothing is created on
/// either side before the source was found fit; publication and slot only if nothing is stored yet.
async fn prepare(config: &Config, status: &Status, held: &mut Option<Arc<SlotLock>>) -> Result<Ready, SessionError> {
    let source = &config.source;
    let phase = |phase: &str| status.update(|account| account.phase = phase.to_owned());
    phase("connecting to PostgreSQL");
    let control = sql::connect(source, "walhouse").await?;
    setup::fit(&control, config).await?;
    status.update(|account| account.step = Step::WaitsForLock);
    phase("waiting for the slot's lock");
    let lock = match held.take() {
        Some(lock) if lock.is_held().await => lock,
        _ => Arc::new(SlotLock::take(sql::connect(source, "walhouse lock").await?, &source.slot).await?),
    };
    *held = Some(Arc::clone(&lock));
    status.update(|account| account.step = Step::Begins);
    phase("connecting to ClickHouse");
    let server = client::client(&config.clickhouse).with_compression(compression(&config.clickhouse.url));
    let clickhouse = server.clone().with_database(&config.clickhouse.database);
    ddl::migrate(&server, &clickhouse, &config.clickhouse.database).await?;
    kill_leftovers(&clickhouse, &source.slot).await?;
    pause::hold(config, status, &clickhouse, &lock).await?;
    let state = Arc::new(State::load(clickhouse.clone(), &source.slot).await?);
    phase("checking the slot");
    let found = publication::publication(&control, &source.publication).await?;
    let mut replication = ReplicationConnection::connect(&source.url, "walhouse").await?;
    let server = Server::ask(&control, &mut replication, &source.slot, found.as_ref()).await?;
    let (checkpoint, publication) = match state.checkpoint().await {
        Some(stored) => {
            let checkpoint = compare(stored, &server, &source.slot, &state, &mut replication).await?;
            let gone = || SessionError::Definite("a publication that is gone was taken for one that is there".into());
            (checkpoint, found.ok_or_else(gone)?)
        }
        None => setup::begin(config, &control, &server, found, &state).await?,
    };
    if source.failover {
        slot::keep_on_standbys(&control, &mut replication, &source.slot).await?;
    }
    if config.queue.is_none() && !checkpoint.outbox.is_empty() {
        tracing::warn!(
            "there is no [queue], and an outbox table was published by this slot: the events that are in the WAL now, and those \
             that follow, are passed over and never sent"
        );
    }
    let requests = Requests::new(clickhouse.clone(), &source.slot);
    let replay = replay::take_up(&requests, &server, &checkpoint, status).await?;
    let queue_start = match &replay {
        Some(Replay { order, .. }) if order.events => order.start(),
        _ => checkpoint.lsn.max(checkpoint.queue_lsn),
    };
    Ok(Ready {
        control,
        lock,
        replication,
        publication,
        state,
        clickhouse,
        checkpoint: checkpoint.lsn,
        replay,
        queue_start,
        confirmed: server.slot.and_then(|slot| slot.confirmed).unwrap_or_default(),
        system_identifier: checkpoint.system_identifier,
        flushed: server.position,
        epoch: checkpoint.epoch,
    })
}

/// Compares what is stored with what the server has.
async fn compare(
    mut stored: Checkpoint,
    server: &Server,
    slot_name: &str,
    state: &State,
    replication: &mut ReplicationConnection,
) -> Result<Checkpoint, SessionError> {
    setup::goes_on(&stored, server, slot_name, replication).await?;
    if server.timeline != stored.timeline {
        tracing::info!(from = stored.timeline, to = server.timeline, "the cluster was promoted; nothing was missed");
        stored.timeline = server.timeline;
        state.set_checkpoint(stored.clone()).await?;
    }
    Ok(stored)
}

/// Streams until something ends it.
async fn stream(
    config: &Arc<Config>,
    status: &Arc<Status>,
    stop: &CancellationToken,
    ready: Ready,
) -> Result<(), SessionError> {
    let Ready { control, lock, replication, publication, state, clickhouse, replay, flushed, epoch, .. } = ready;
    let start = replay.as_ref().map_or(ready.checkpoint, |replay| replay.order.start());
    let source = &config.source;
    let budget = config.memory.budget.as_usize();
    let allowed = Arc::new(AtomicBool::new(true));
    let ids = QueryIds::new(&source.slot, epoch.0);
    let inserter = Inserter::new(clickhouse.clone(), Arc::clone(&state), ids, Arc::clone(&allowed));
    let (flushed, head) = watch::channel(flushed);
    let shared = Arc::new(Shared {
        config: Arc::clone(config),
        range: ddl::datetime_range(&clickhouse).await?,
        requests: Requests::new(clickhouse.clone(), &source.slot),
        look: Notify::new(),
        letters: Notify::new(),
        layout: layout(config, ddl::has_time64(&clickhouse).await?),
        client: clickhouse,
        state: Arc::clone(&state),
        inserter: Arc::new(inserter),
        source: Arc::new(Lookup::new(source.clone())),
        status: Arc::clone(status),
        head: head.clone(),
        lane_bytes: AtomicUsize::new(0),
        repairing: replay.as_ref().map_or(Lsn::ZERO, |replay| replay.order.upto),
    });
    let known = tables::known(&control, source, &shared).await?;

    let (sender, receiver, durable) = lane(start);
    let (commands, command_receiver) = mpsc::channel(16);
    // A quarter of the budget for what is on its way, half for batches, a quarter for the copy, which
    // takes what the batches leave.
    let limits = Limits {
        max_delay: config.batch.max_delay.0,
        max_rows: config.batch.max_rows,
        max_bytes: config.batch.max_bytes.as_usize(),
        budget: budget / 2,
    };
    let copier = Copier::new(Arc::clone(&shared), source.clone(), epoch, budget);
    let tables = Tables::new(
        source.clone(),
        publication,
        Arc::clone(&shared),
        Arc::new(copier),
        commands,
        Arc::clone(status),
        &known,
    );
    let sink = Sink::new(Arc::clone(&shared), limits, epoch, start, receiver, command_receiver, known);
    let (mut senders, mut positions) = (vec![sender], vec![durable]);
    let (mut publisher, mut letters) = (None, None);
    let queue_start = (ready.queue_start, shared.repairing);
    if let Some(lane) = QueueLane::new(config, &state, ready.system_identifier, epoch, queue_start).await {
        senders.push(lane.sender);
        positions.push(lane.durable);
        publisher = Some(Task::spawn("queue", lane.publisher.run()));
        letters = Some(Task::spawn("letters", letters::run(Arc::clone(&shared), lane.sqs, lane.claims, lane.origin)));
    }
    let queue_position = positions.get(1).cloned();
    let (stored, watched) = watch::channel(ready.checkpoint);
    let acknowledged = Acknowledged::new(watched.clone(), source.replay_window.0, ready.confirmed);
    let mut replay = replay.map(|replay| {
        let hold = acknowledged.hold(replay.order.start());
        let follow = replay::follow(replay, shared.requests.clone(), positions.clone(), hold, Arc::clone(status));
        Task::spawn("replay", follow)
    });
    let outlet = Outlet::new(start, senders, Room::new(budget / 8), acknowledged);
    let settings = Settings {
        source: source.clone(),
        lock: Arc::clone(&lock),
        flushed: head,
        began: Box::new(reading(Arc::clone(status))),
    };
    let mut reader = Source::start(replication, outlet, settings).await?;

    let settled = CancellationToken::new();
    checkpoints_begin();
    let guarded = Guarded { state: Arc::clone(&state), lock, allowed, queue: queue_position };
    let mut sink = Task::spawn("sink", sink.run());
    let mut checkpoints = Task::spawn("checkpoint", checkpoint::run(guarded, positions, stored, settled.clone()));
    let mut tables = Task::spawn("tables", tables.run(control));
    let mut monitor = Task::spawn("monitor", monitor(Arc::clone(config), Arc::clone(status), watched, flushed));

    // Ends the session as a stop does.
    let stop = &stop.child_token();
    let _watching = AbortOnDropHandle::new(tokio::spawn(pause::watch(Arc::clone(config), stop.clone())));

    tokio::select! {
        ended = reader.run(stop) => {
            if let Err(error) = ended {
                // What ended a lane says more than that it has gone.
                for task in [&mut sink, &mut checkpoints] {
                    if task.is_finished() {
                        task.join().await?;
                    }
                }
                return Err(error.into());
            }
        }
        ended = join(&mut letters) => return Err(ended.err().unwrap_or(SessionError::Panic("letters"))),
        ended = join(&mut replay) => return Err(ended.err().unwrap_or(SessionError::Panic("replay"))),
        ended = join(&mut publisher) => return Err(ended.err().unwrap_or(SessionError::Panic("queue"))),
        ended = sink.join() => return Err(ended.err().unwrap_or(SessionError::Panic("sink"))),
        ended = checkpoints.join() => return Err(ended.err().unwrap_or(SessionError::Panic("checkpoint"))),
        ended = tables.join() => return Err(ended.err().unwrap_or(SessionError::Panic("tables"))),
        ended = monitor.join() => return Err(ended.err().unwrap_or(SessionError::Panic("monitor"))),
    }

    // A stop was asked for, or a pause. In this order: nothing more comes in, what is in is made durable, what
    // is durable is stored, what is stored is reported.
    status.update(|account| (account.phase, account.step) = ("stopping".to_owned(), Step::Stops));
    tracing::info!("stopping: sending what is in memory");
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

/// The end of a task, if there is one.
async fn join<E: Into<SessionError> + Send + 'static>(task: &mut Option<Task<E>>) -> Result<(), SessionError> {
    match task {
        Some(task) => task.join().await,
        None => std::future::pending().await,
    }
}

/// Tables are laid out as they are configured, with the types that the server has.
fn layout(config: &Arc<Config>, time64: bool) -> Box<Layout> {
    let config = Arc::clone(config);
    Box::new(move |table| TableSpec::new(table, &config.table_options(&table.schema, &table.name), time64))
}

/// LZ4 costs more than it saves where no network is crossed.
fn compression(url: &str) -> Compression {
    let host = url.split("://").nth(1).unwrap_or(url);
    let local = ["localhost", "127.", "[::1]"].iter().any(|start| host.starts_with(start));
    if local { Compression::None } else { Compression::Lz4 }
}

/// What is told of a reader that begins.
fn reading(status: Arc<Status>) -> impl Fn(Reader) {
    move |reader| {
        let (phase, step) = match reader {
            Reader::Streaming => ("streaming", Step::Streams),
            Reader::CatchUp => ("catching up", Step::CatchesUp),
        };
        status.update(|account| {
            (account.phase, account.step) = (phase.to_owned(), step);
            account.streaming = true;
        });
    }
}

/// Measures the lag. Without it there are no figures and the reader stays the same, so it never ends a session.
async fn monitor(
    config: Arc<Config>,
    status: Arc<Status>,
    stored: watch::Receiver<Lsn>,
    flushed: watch::Sender<Lsn>,
) -> Result<(), Failure> {
    loop {
        if let Err(error) = measure(&config, &status, &stored, &flushed).await {
            tracing::debug!(%error, "the lag can not be measured");
        }
        tokio::time::sleep(MONITOR_INTERVAL * 5).await;
    }
}

async fn measure(
    config: &Config,
    status: &Status,
    stored: &watch::Receiver<Lsn>,
    flushed: &watch::Sender<Lsn>,
) -> Result<(), sql::SqlError> {
    let client = sql::connect(&config.source, "walhouse monitor").await?;
    let mut tick = tokio::time::interval(MONITOR_INTERVAL);
    loop {
        tick.tick().await;
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
        let end: &str = row.try_get(0)?;
        let end: Lsn = end.parse().unwrap_or_default();
        let lag = end.since(*stored.borrow());
        flushed.send_replace(end);
        metrics::gauge!(names::LAG_BYTES).set(lag as f64);
        status.update(|account| account.lag_bytes = lag);
    }
}

/// A task of the session; dropping it ends it.
struct Task<E> {
    name: &'static str,
    handle: JoinHandle<Result<(), E>>,
}

impl From<PublishError> for SessionError {
    fn from(error: PublishError) -> Self {
        Self::Definite(error.to_string())
    }
}

impl<E: Into<SessionError> + Send + 'static> Task<E> {
    fn spawn(name: &'static str, task: impl Future<Output = Result<(), E>> + Send + 'static) -> Self {
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
