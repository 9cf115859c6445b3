//! What a session has beside ClickHouse if there is a `[queue]`.

use crate::{
    clickhouse::{client::describe, state::State},
    config::Config,
    event::{Epoch, Lsn},
    lane::{Reread, Reserve, lane},
    pipeline::flow::Lane,
    postgres::again::Again,
    queue::{claim::Claims, client::Sqs, outbox::Origin, published::Published, publisher::Publisher},
};
use futures_util::{FutureExt, future::BoxFuture};
use std::sync::Arc;

/// The ceiling of the checkpoint, which is for rows and events alike.
struct Ceiling(Arc<State>);

impl Reserve for Ceiling {
    fn reserve(&self, commit: Lsn) -> BoxFuture<'_, Result<(), String>> {
        async move { self.0.reserve(commit).await.map_err(|error| describe(&error)) }.boxed()
    }
}

/// The queue lane, before it runs, and what else sends events.
pub struct QueueLane {
    /// The lane.
    pub lane: Lane<Publisher>,
    /// SQS.
    pub sqs: Arc<Sqs>,
    /// Where goes what is too large for it.
    pub claims: Arc<Claims>,
    /// What events are from.
    pub origin: Origin,
}

impl QueueLane {
    /// `None` without `[queue]`. Everything before `start` was sent, and what commits before `repeated` is delivered once more.
    pub(super) async fn new(
        config: &Config,
        state: &Arc<State>,
        system_identifier: u64,
        epoch: Epoch,
        positions: (Lsn, Lsn),
    ) -> Option<Self> {
        let queue = config.queue.as_ref()?;
        let sqs = Sqs::new(queue, &config.workers).await;
        let again = Arc::new(Again::new(config.source.clone()));
        Some(Self::over(config, (sqs, again), state, (system_identifier, epoch), positions))
    }

    /// Into this SQS, with `again` for what is to be read once more.
    pub fn over(
        config: &Config,
        (sqs, again): (Sqs, Arc<dyn Reread>),
        state: &Arc<State>,
        (system_identifier, epoch): (u64, Epoch),
        (start, repeated): (Lsn, Lsn),
    ) -> Self {
        let (sender, receiver, durable) = lane(start);
        let origin = origin(config, system_identifier, epoch);
        let (sqs, claims) = (Arc::new(sqs), Arc::new(Claims::new(&config.objects)));
        let ahead = Arc::new(Ceiling(Arc::clone(state)));
        let budget = config.queue.as_ref().map_or(0, |queue| queue.budget.as_usize());
        let to = (Arc::clone(&sqs), Arc::clone(&claims));
        let destination = Publisher::new(receiver, to, ahead, origin.clone(), (start, repeated), budget, again);
        Self { lane: Lane { destination, sender, durable }, sqs, claims, origin }
    }
}

fn origin(config: &Config, system_identifier: u64, epoch: Epoch) -> Origin {
    let queue = config.queue.clone().unwrap_or_default();
    let database = config.source.url.connection().get_dbname().unwrap_or("postgres").to_owned();
    let (service, table) = (queue.source_service.clone().unwrap_or(database), queue.outbox());
    Origin { system_identifier, epoch, service, table, published: Arc::new(Published::new(config)) }
}
