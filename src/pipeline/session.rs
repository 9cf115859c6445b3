//! One session: connect, check, stream, and at the end drain.

mod monitor;
mod running;

use super::{
    SessionError, checkpoints_begin,
    flow::{Flow, Lane, Parts, Task},
    letters, pause,
    queue::QueueLane,
    replay::{self, Replay},
    tables::{self, Tables},
};
use crate::{
    clickhouse::{
        client, ddl,
        insert::{Inserter, QueryIds, kill_leftovers},
        job::Shared,
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
        publication::{self, Publication},
        slot::{self, Server},
        source::{Reader, Settings},
        sql,
    },
    setup,
    status::{Status, Step},
};
use clickhouse::{Client, Compression};
use running::Running;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize},
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

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
    state.inherit(server.position);
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

/// Streams until something ends it, or stops and drains.
async fn stream(
    config: &Arc<Config>,
    status: &Arc<Status>,
    stop: &CancellationToken,
    ready: Ready,
) -> Result<(), SessionError> {
    let mut running = begin(config, status, ready).await?;
    // A pause ends the session as a stop does.
    let stop = stop.child_token();
    let _watching = AbortOnDropHandle::new(tokio::spawn(pause::watch(Arc::clone(config), stop.clone())));
    running.until(&stop).await?;
    status.update(|account| (account.phase, account.step) = ("stopping".to_owned(), Step::Stops));
    tracing::info!("stopping: sending what is in memory");
    running.drain().await
}

/// Puts the parts together and sets them going: the lanes first, then what feeds them, then what stores how far they are.
async fn begin(config: &Arc<Config>, status: &Arc<Status>, mut ready: Ready) -> Result<Running, SessionError> {
    let source = &config.source;
    let start = ready.replay.as_ref().map_or(ready.checkpoint, |replay| replay.order.start());
    let allowed = Arc::new(AtomicBool::new(true));
    let (flushed, head) = watch::channel(ready.flushed);
    let shared = share(config, status, &ready, &allowed, &head).await?;
    let known = tables::known(&ready.control, source, &shared).await?;

    let (sender, receiver, durable) = lane(start);
    let (commands, command_receiver) = mpsc::channel(16);
    let copier =
        Arc::new(Copier::new(Arc::clone(&shared), source.clone(), ready.epoch, config.memory.budget.as_usize()));
    let (publication, telling) = (ready.publication, Arc::clone(status));
    let tables = Tables::new(source.clone(), publication, Arc::clone(&shared), copier, commands, telling, &known);
    let sink = Sink::new(Arc::clone(&shared), limits(config), ready.epoch, start, receiver, command_receiver, known);
    let sink = Lane { destination: sink, sender, durable };
    let (identifier, epoch) = (ready.system_identifier, ready.epoch);
    let queue = QueueLane::new(config, &ready.state, identifier, epoch, (ready.queue_start, shared.repairing)).await;
    let (mut positions, mut letters) = (vec![sink.durable.clone()], None);
    let queue = queue.map(|QueueLane { lane, sqs, claims, origin }| {
        positions.push(lane.durable.clone());
        letters = Some(Task::spawn("letters", letters::run(Arc::clone(&shared), sqs, claims, origin)));
        lane
    });

    let (stored, watched) = watch::channel(ready.checkpoint);
    let acknowledged = Acknowledged::new(watched.clone(), source.replay_window.0, ready.confirmed);
    let replay = ready.replay.take().map(|replay| {
        let hold = acknowledged.hold(replay.order.start());
        Task::spawn("replay", replay::follow(replay, shared.requests.clone(), positions, hold, Arc::clone(status)))
    });
    // A quarter of the budget for what is on its way.
    let room = Room::new(config.memory.budget.as_usize() / 8);
    let began = Box::new(reading(Arc::clone(status)));
    let reading = Settings { source: source.clone(), lock: ready.lock, flushed: head, began };
    let (replication, state) = (ready.replication, ready.state);
    let parts = Parts { sink, queue, start, room, replication, reading, state, allowed, stored, acknowledged };
    checkpoints_begin();
    Ok(Running {
        flow: Box::pin(Flow::begin(parts)).await?,
        tables: Task::spawn("tables", tables.run(ready.control)),
        monitor: Task::spawn("monitor", monitor::run(Arc::clone(config), Arc::clone(status), watched, flushed)),
        letters,
        replay,
    })
}

/// What every job of the session needs.
async fn share(
    config: &Arc<Config>,
    status: &Arc<Status>,
    ready: &Ready,
    allowed: &Arc<AtomicBool>,
    head: &watch::Receiver<Lsn>,
) -> Result<Arc<Shared>, SessionError> {
    let (clickhouse, slot) = (&ready.clickhouse, &config.source.slot);
    let ids = QueryIds::new(slot, ready.epoch.0);
    let inserter = Inserter::new(clickhouse.clone(), Arc::clone(&ready.state), ids, Arc::clone(allowed));
    Ok(Arc::new(Shared {
        config: Arc::clone(config),
        range: ddl::datetime_range(clickhouse).await?,
        requests: Requests::new(clickhouse.clone(), slot),
        look: Notify::new(),
        letters: Notify::new(),
        layout: layout(config, ddl::has_time64(clickhouse).await?),
        client: clickhouse.clone(),
        state: Arc::clone(&ready.state),
        inserter: Arc::new(inserter),
        source: Arc::new(Lookup::new(config.source.clone())),
        status: Arc::clone(status),
        head: head.clone(),
        lane_bytes: AtomicUsize::new(0),
        repairing: ready.replay.as_ref().map_or(Lsn::ZERO, |replay| replay.order.upto),
    }))
}

/// Half of the budget for batches, a quarter for the copy, which takes what the batches leave.
fn limits(config: &Config) -> Limits {
    Limits {
        max_delay: config.batch.max_delay.0,
        max_rows: config.batch.max_rows,
        max_bytes: config.batch.max_bytes.as_usize(),
        budget: config.memory.budget.as_usize() / 2,
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
