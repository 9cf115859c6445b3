//! What a session has beside ClickHouse if there is a `[queue]`.

use crate::{
    clickhouse::{client::describe, state::State},
    config::Config,
    event::{Epoch, Lsn},
    lane::{LaneSender, Reserve, lane},
    postgres::again::Again,
    queue::{claim::Claims, client::Sqs, outbox::Origin, published::Published, publisher::Publisher},
};
use futures_util::{FutureExt, future::BoxFuture};
use std::sync::Arc;
use tokio::sync::watch;

/// The ceiling of the checkpoint, which is for rows and events alike.
struct Ceiling(Arc<State>);

impl Reserve for Ceiling {
    fn reserve(&self, commit: Lsn) -> BoxFuture<'_, Result<(), String>> {
        async move { self.0.reserve(commit).await.map_err(|error| describe(&error)) }.boxed()
    }
}

/// The queue lane, before it runs.
pub(super) struct QueueLane {
    pub(super) sender: LaneSender,
    pub(super) durable: watch::Receiver<Lsn>,
    pub(super) publisher: Publisher,
    pub(super) sqs: Arc<Sqs>,
    pub(super) claims: Arc<Claims>,
    pub(super) origin: Origin,
}

impl QueueLane {
    /// `None` without `[queue]`. Everything before `start` was sent, and what commits before `repeated` is delivered once more.
    pub(super) async fn new(
        config: &Config,
        state: &Arc<State>,
        system_identifier: u64,
        epoch: Epoch,
        (start, repeated): (Lsn, Lsn),
    ) -> Option<Self> {
        let queue = config.queue.as_ref()?;
        let sqs = Arc::new(Sqs::new(queue, &config.workers).await);
        let (sender, receiver, durable) = lane(start);
        let origin = origin(config, system_identifier, epoch);
        let (again, claims) = (Arc::new(Again::new(config.source.clone())), Arc::new(Claims::new(&config.objects)));
        let ahead = Arc::new(Ceiling(Arc::clone(state)));
        let (to, budget) = ((Arc::clone(&sqs), Arc::clone(&claims)), queue.budget.as_usize());
        let publisher = Publisher::new(receiver, to, ahead, origin.clone(), (start, repeated), budget, again);
        Some(Self { sender, durable, publisher, sqs, claims, origin })
    }
}

fn origin(config: &Config, system_identifier: u64, epoch: Epoch) -> Origin {
    let queue = config.queue.clone().unwrap_or_default();
    let database = config.source.url.connection().get_dbname().unwrap_or("postgres").to_owned();
    let (service, table) = (queue.source_service.clone().unwrap_or(database), queue.outbox());
    Origin { system_identifier, epoch, service, table, published: Arc::new(Published::new(config)) }
}
