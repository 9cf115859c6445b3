//! Who acts on events: one worker for each queue.
//!
//! They run beside the pipeline and know nothing of it: in a process whose pipeline waits for its slot, or in one that is
//! there for them alone. Every effect is idempotent by the event's id, since a queue delivers at least once, and a process may
//! die between an effect and the deletion of its message.

pub mod audit;
pub mod data_sync;
mod together;

use crate::{
    clickhouse,
    config::{Config, WorkerConfig},
    event::envelope::{Queue, Schedule},
    queue::{
        client::Sqs,
        consumer::{Consumer, Handler, Settings},
    },
};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Runs the workers that are configured, until they are stopped and have finished or given back what they had in hand.
pub async fn run(config: Arc<Config>, stop: CancellationToken) {
    let Some(queue) = config.queue.as_ref().filter(|_| config.workers.enabled) else { return };
    let sqs = Arc::new(Sqs::new(queue, &config.workers).await);
    let client = clickhouse::client::client(&config.clickhouse).with_database(&config.clickhouse.database);
    let mut consumers = JoinSet::new();
    let mut start = |queue: Queue, worker: &WorkerConfig, handler: Arc<dyn Handler>| {
        if worker.enabled {
            let consumer = Consumer::new(Arc::clone(&sqs), queue, handler, settings(queue, worker));
            consumers.spawn(consumer.run(stop.clone()));
        }
    };
    let data_sync = data_sync::DataSync::new(client.clone(), Arc::clone(&config));
    start(Queue::DataSync, &config.workers.data_sync, Arc::new(data_sync));
    start(Queue::AuditLog, &config.workers.audit, Arc::new(audit::Audit::new(client)));
    consumers.join_all().await;
}

/// What the queue's own table of retries says, unless it is configured.
fn settings(queue: Queue, worker: &WorkerConfig) -> Settings {
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
    }
}
