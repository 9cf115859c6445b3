//! Who acts on events: one worker for each queue.
//!
//! They run beside the pipeline and know nothing of it: in a process whose pipeline waits for its slot, or in one that is
//! there for them alone. Every effect is idempotent by the event's id, since a queue delivers at least once, and a process may
//! die between an effect and the deletion of its message.

mod apart;
pub mod audit;
pub mod data_sync;
pub mod operation;
mod pause;
mod together;
mod warehouse;

use crate::{
    clickhouse::{self, pauses::Subject},
    config::{Config, WorkerConfig, WorkersConfig},
    event::envelope::{Queue, Schedule},
    queue::{
        claim::Claims,
        client::Sqs,
        consumer::{Consumer, Handler, Settings},
    },
};
use pause::Valve;
use std::{future::Future, sync::Arc};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Runs the workers that are configured, until they are stopped and have finished or given back what they had in hand.
pub async fn run(config: Arc<Config>, stop: CancellationToken) {
    let warehouse = tokio::spawn(warehouse::run(Arc::clone(&config), stop.clone()));
    handle(config, stop).await;
    let _ = warehouse.await;
}

async fn handle(config: Arc<Config>, stop: CancellationToken) {
    let Some(queue) = config.queue.as_ref().filter(|_| config.workers.enabled) else { return };
    let sqs = Arc::new(Sqs::new(queue, &config.workers).await);
    let claims = Arc::new(Claims::new(&config.objects));
    let client = clickhouse::client::client(&config.clickhouse).with_database(&config.clickhouse.database);
    let (mut consumers, mut valves) = (JoinSet::new(), Vec::new());
    let mut start = |queue: Queue, worker: &WorkerConfig, handler: Arc<dyn Handler>| {
        if worker.enabled {
            let (open, opened) = watch::channel(false);
            let settings = settings(queue, worker, &config.workers);
            let consumer = Consumer::new(Arc::clone(&sqs), Arc::clone(&claims), queue, handler, settings);
            valves.push(Valve { subject: subject(queue), open });
            consumers.spawn(consumer.while_open(opened).run(stop.clone()));
        }
    };
    let timeout = settings(Queue::DataSync, &config.workers.data_sync, &config.workers).timeout;
    let data_sync = data_sync::DataSync::new(client.clone(), Arc::clone(&config), timeout);
    start(Queue::DataSync, &config.workers.data_sync, Arc::new(data_sync));
    let timeout = settings(Queue::AsyncOperations, &config.workers.operation, &config.workers).timeout;
    let operation = operation::Operation::new(client.clone(), Arc::clone(&sqs), Arc::clone(&config), timeout);
    start(Queue::AsyncOperations, &config.workers.operation, Arc::new(operation));
    let timeout = settings(Queue::AuditLog, &config.workers.audit, &config.workers).timeout;
    start(Queue::AuditLog, &config.workers.audit, Arc::new(audit::Audit::new(client, timeout)));
    let _following = AbortOnDropHandle::new(tokio::spawn(pause::follow(Arc::clone(&config), valves)));
    consumers.join_all().await;
}

/// What pauses the worker of a queue.
fn subject(queue: Queue) -> Subject {
    match queue {
        Queue::DataSync => Subject::DataSync,
        Queue::AsyncOperations => Subject::Operation,
        Queue::AuditLog => Subject::Audit,
    }
}

/// Runs beside what `stop` stops, and stops that should this end in a panic: a process that only seems to work is worse than one
/// that ends.
///
/// # Errors
/// If it panicked.
pub async fn or_stop(
    work: impl Future<Output = ()> + Send + 'static,
    stop: CancellationToken,
) -> Result<(), JoinError> {
    let ended = tokio::spawn(work).await;
    if ended.is_err() {
        tracing::error!("a worker has panicked, which is a mistake in walhouse; it stops");
        stop.cancel();
    }
    ended
}

/// What the queue's own table of retries says, unless it is configured.
fn settings(queue: Queue, worker: &WorkerConfig, workers: &WorkersConfig) -> Settings {
    let schedule = match (queue.schedule(), worker.retry_delay) {
        (Schedule::Fixed(_), Some(delay)) => Schedule::Fixed(delay.0),
        (Schedule::Exponential(_), Some(delay)) => Schedule::Exponential(delay.0),
        (schedule, None) => schedule,
    };
    Settings {
        concurrency: worker.concurrency,
        timeout: worker.timeout.map_or_else(|| queue.timeout(), |timeout| timeout.0),
        schedule,
        retries: queue.retries(),
        max_payload: workers.max_payload.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn workers_that_panic_stop_what_runs_beside_them() {
        let stop = CancellationToken::new();
        assert!(or_stop(async {}, stop.clone()).await.is_ok());
        assert!(!stop.is_cancelled(), "there may be none to run");
        assert!(or_stop(async { panic!("on purpose") }, stop.clone()).await.is_err());
        assert!(stop.is_cancelled());
    }
}
