//! One process of walhouse, from its start to its end: what `pipeline` does, between the made-up servers.
//!
//! The flow of a session is walhouse's own, and so is what it is made of. What is left out is what looks at PostgreSQL's
//! catalogs: the tables are known, and their copies are over.

use crate::{
    clickhouse::ClickHouse,
    postgres,
    wal::{START, TABLES},
    world::Shared as World,
};
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use walhouse::{
    clickhouse::{
        insert::{Inserter, QueryIds, kill_leftovers},
        job::Shared,
        requests::Requests,
        sink::{Limits, Member, Sink},
        state::{Checkpoint, State, TableRecord, TableStatus},
        table::{Feed, Table, TableSpec},
        text::DateTimeRange,
    },
    config::{Config, TableOptions},
    event::{Epoch, KeyKind, Lsn, ReplicaIdentity, SourceColumn, SourceTable, TableKind, Version},
    lane::{Replay, Reread, Room, RowError, RowSource, RowsAnswer, RowsRequest, Told, lane},
    pipeline::{
        SessionError,
        flow::{Flow, Lane, Parts},
        queue::QueueLane,
    },
    postgres::{
        acknowledged::Acknowledged, again, connection::ReplicationConnection, lock::SlotLock, source::Settings,
        transport::Transport,
    },
    queue::client::Sqs,
    retry::{Backoff, Kind},
    status::Status,
};

/// What the slot is called.
pub(crate) const SLOT: &str = "sim";
const SYSTEM: u64 = 7;

/// How a process is configured, and whom it speaks to.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) world: World,
    pub(crate) clickhouse: ClickHouse,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) config: Arc<Config>,
    pub(crate) limits: Limits,
    pub(crate) room: usize,
}

/// Runs session after session until `stop` is cancelled, as the daemon does.
pub(crate) async fn run(setup: &Setup, stop: &CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        let ended = session(setup, stop).await;
        setup
            .world
            .lock()
            .note(|| format!("walhouse  a session ended: {:?}", ended.as_ref().map_err(ToString::to_string)));
        match ended {
            _ if stop.is_cancelled() => return,
            Err(error) if error.kind() == Kind::Definite => {
                return setup.world.lock().fail(format!("walhouse has halted: {error}"));
            }
            Ok(()) => return setup.world.lock().fail("a session ended by itself"),
            Err(_) => tokio::time::sleep(backoff.next_delay().max(Duration::from_millis(100))).await,
        }
    }
}

async fn session(setup: &Setup, stop: &CancellationToken) -> Result<(), SessionError> {
    // What serves the connection of the lock ends with the session.
    let mut serving = None;
    let mut flow = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        flow = begin(setup, &mut serving) => flow?,
    };
    flow.until(stop).await?;
    setup.world.lock().note(|| "walhouse  drains".to_owned());
    flow.drain().await
}

async fn begin(setup: &Setup, serving: &mut Option<AbortOnDropHandle<()>>) -> Result<Flow, SessionError> {
    let Setup { world, config, .. } = setup;
    let lock = Arc::new(lock(setup, serving).await?);
    let client = setup.clickhouse.client();
    kill_leftovers(&client, SLOT).await?;
    let state = Arc::new(State::load(client.clone(), SLOT).await?);
    let replication = replication(world, config).await?;
    let checkpoint = match state.checkpoint().await {
        Some(checkpoint) => checkpoint,
        None => first(&state).await?,
    };
    let (confirmed, end) = {
        let world = world.lock();
        (Lsn(world.confirmed), Lsn(world.written()))
    };
    state.inherit(end);
    let (allowed, (_, head)) = (Arc::new(AtomicBool::new(true)), watch::channel(confirmed));
    let shared = share(setup, &client, &state, &allowed, &head);
    let known = known(&shared).await?;
    let (epoch, start) = (checkpoint.epoch, checkpoint.lsn);
    let (sender, receiver, durable) = lane(start);
    // Nobody asks for anything, and the head of the WAL is never far.
    let (_, command_receiver) = mpsc::channel(1);
    let sink = Sink::new(shared, setup.limits, epoch, start, receiver, command_receiver, known);
    let queue = config.queue.as_ref().map(|queue| {
        let sqs = Sqs::over(setup.sqs.clone(), queue, &config.workers);
        let again = Arc::new(Again { world: world.clone(), config: Arc::clone(config) });
        let positions = (start.max(checkpoint.queue_lsn), Lsn::ZERO);
        QueueLane::over(config, (sqs, again), &state, (SYSTEM, epoch), positions).lane
    });
    let (stored, watched) = watch::channel(start);
    let parts = Parts {
        sink: Lane { destination: sink, sender, durable },
        queue,
        start,
        room: Room::new(setup.room),
        replication,
        reading: Settings { source: config.source.clone(), lock, flushed: head, began: Box::new(|_| {}) },
        state,
        allowed,
        stored,
        acknowledged: Acknowledged::new(watched, config.source.replay_window.0, confirmed),
    };
    Flow::begin(parts).await
}

/// The slot's lock, over a session of its own.
async fn lock(setup: &Setup, serving: &mut Option<AbortOnDropHandle<()>>) -> Result<SlotLock, SessionError> {
    let stream = postgres::connect(&setup.world);
    let connecting = setup.config.source.url.connection().connect_raw(stream, tokio_postgres::NoTls);
    let (client, connection) = connecting.await?;
    *serving = Some(AbortOnDropHandle::new(tokio::spawn(async move {
        // Whoever asks over it finds out.
        let _ = connection.await;
    })));
    Ok(SlotLock::take(client, SLOT).await?)
}

async fn replication(world: &World, config: &Config) -> Result<ReplicationConnection, SessionError> {
    let url = &config.source.url;
    let transport = Transport::over(postgres::connect(world), &url.endpoint());
    Ok(ReplicationConnection::over(transport, url, "walhouse").await?)
}

/// What is stored when a slot has been made.
async fn first(state: &State) -> Result<Checkpoint, SessionError> {
    let checkpoint = Checkpoint {
        epoch: Epoch(0),
        lsn: Lsn(START),
        queue_lsn: Lsn(START),
        ceiling: Lsn(START),
        system_identifier: SYSTEM,
        timeline: 1,
        publication: "sim".to_owned(),
        outbox: String::new(),
    };
    // Before anything else, as a table that is known has been taken up.
    state.put_tables(TABLES.iter().map(record).collect()).await?;
    state.set_checkpoint(checkpoint.clone()).await?;
    Ok(checkpoint)
}

fn record((oid, name, full): &(u32, &str, bool)) -> TableRecord {
    let column = |attnum: i16, name: &str, ty: tokio_postgres::types::Type| SourceColumn {
        attnum,
        name: name.to_owned(),
        declared_oid: ty.oid(),
        declared_modifier: -1,
        type_oid: ty.oid(),
        type_modifier: -1,
        not_null: true,
        key_position: (attnum == 1).then_some(0),
        ..SourceColumn::default()
    };
    let source = SourceTable {
        oid: *oid,
        schema: "public".to_owned(),
        name: (*name).to_owned(),
        kind: TableKind::Table,
        replica_identity: if *full { ReplicaIdentity::Full } else { ReplicaIdentity::Default },
        columns: vec![
            column(1, "id", tokio_postgres::types::Type::INT8),
            column(2, "value", tokio_postgres::types::Type::TEXT),
        ],
        key: Ok(if *full { KeyKind::FullWithPrimaryKey } else { KeyKind::PrimaryKey }),
        filter: None,
        heaps: Vec::new(),
    };
    let spec = TableSpec::new(&source, &TableOptions::default(), true).expect("a table that can be replicated");
    TableRecord {
        oid: *oid,
        schema: source.schema,
        name: source.name,
        target: spec.target.clone(),
        uuid: format!("uuid of {name}"),
        status: TableStatus::Streaming,
        fed_from: Lsn(START),
        shaped_from: Version::COPY,
        read_until: Lsn::ZERO,
        floor: Version::COPY,
        membership: "1".to_owned(),
        shape: spec.shape(),
        heaps: BTreeMap::new(),
        altering: None,
        fresh: None,
    }
}

fn share(
    setup: &Setup,
    client: &clickhouse::Client,
    state: &Arc<State>,
    allowed: &Arc<AtomicBool>,
    head: &watch::Receiver<Lsn>,
) -> Arc<Shared> {
    let ids = QueryIds::new(SLOT, 0);
    let inserter = Inserter::new(client.clone(), Arc::clone(state), ids, Arc::clone(allowed));
    Arc::new(Shared {
        config: Arc::clone(&setup.config),
        range: DateTimeRange::Wide,
        requests: Requests::new(client.clone(), SLOT),
        look: Notify::new(),
        letters: Notify::new(),
        layout: Box::new(|table| TableSpec::new(table, &TableOptions::default(), true)),
        client: client.clone(),
        state: Arc::clone(state),
        inserter: Arc::new(inserter),
        source: Arc::new(Nothing),
        status: Arc::new(Status::default()),
        head: head.clone(),
        lane_bytes: AtomicUsize::new(0),
        repairing: Lsn::ZERO,
    })
}

/// The tables, as they are stored.
async fn known(shared: &Shared) -> Result<Vec<Member>, SessionError> {
    let mut known = Vec::new();
    for record in shared.state.tables().await {
        let TableRecord { oid, schema, name, target, shape, .. } = &record;
        let spec = TableSpec::stored(*oid, schema, name, target, shape, &TableOptions::default());
        let table = Table::new(spec.map_err(SessionError::Definite)?, record.uuid, shared.range, record.read_until);
        let feed = Feed { from: record.fed_from, floor: record.floor.max(record.shaped_from) };
        let frozen = record.status.is_frozen();
        known.push(Member { table, feed, frozen, fresh: false, heaps: record.heaps });
    }
    // The order in which they are stored is nobody's choice.
    known.sort_by_key(|member| member.table.spec.oid);
    Ok(known)
}

/// The stream once more, for the queue lane.
struct Again {
    world: World,
    config: Arc<Config>,
}

impl Reread for Again {
    fn reread(&self, from: Lsn, room: Room) -> BoxFuture<'static, Result<Replay, RowError>> {
        let (world, config) = (self.world.clone(), Arc::clone(&self.config));
        let failed = |error: String| RowError { kind: Kind::Transient, of_the_row: false, message: error };
        Box::pin(async move {
            world.lock().note(|| format!("walhouse  reads events once more from {from}"));
            let connection = replication(&world, &config).await.map_err(|error| failed(error.to_string()))?;
            again::over(connection, &config.source, from, room).await.map_err(|error| failed(error.to_string()))
        })
    }
}

/// A source of which nothing is asked: no value is left out of its stream.
struct Nothing;

impl RowSource for Nothing {
    fn current(&self, _: RowsRequest) -> BoxFuture<'_, Result<RowsAnswer, RowError>> {
        Box::pin(async { Err(unexpected()) })
    }

    fn table(&self, _: u32, _: u32) -> BoxFuture<'_, Result<Option<(SourceTable, Lsn)>, RowError>> {
        Box::pin(async { Err(unexpected()) })
    }

    fn told<'a>(&'a self, _: &'a [u8], _: u32) -> BoxFuture<'a, Result<Option<Told>, RowError>> {
        Box::pin(async { Err(unexpected()) })
    }
}

fn unexpected() -> RowError {
    RowError { kind: Kind::Definite, of_the_row: false, message: "nobody has to be asked".to_owned() }
}
