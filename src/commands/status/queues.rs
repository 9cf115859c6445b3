//! SQS: how much lies in the queues, and in those of their dead letters.

use super::Part;
use crate::{
    config::{Config, WorkerConfig},
    event::envelope::Queue,
    queue::{client::Sqs, pending::Destination},
};
use futures_util::future::{join, join_all};
use serde::Serialize;

/// A queue. SQS calls its numbers approximate.
#[derive(Clone, Debug, Serialize)]
pub struct Depth {
    /// What commands call it.
    pub queue: &'static str,
    /// Its whole name.
    pub name: String,
    /// Messages in it, those in hand among them.
    pub messages: Part<u64>,
    /// Its dead letters.
    pub dead_letters: Part<u64>,
}

/// Who handles events, as this configuration has it; other processes may have another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workers {
    /// Whether there are any in this process.
    pub enabled: bool,
    /// Each of them.
    pub workers: Vec<WorkerSetting>,
}

/// What is configured for one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerSetting {
    /// Its word on the command line.
    pub worker: &'static str,
    /// Whether it runs.
    pub enabled: bool,
    /// Events at once.
    pub concurrency: usize,
}

impl Workers {
    pub(super) fn of(config: &Config) -> Self {
        let workers = &config.workers;
        let setting = |worker, of: &WorkerConfig| WorkerSetting {
            worker,
            enabled: workers.enabled && of.enabled,
            concurrency: of.concurrency,
        };
        let all = vec![
            setting("audit", &workers.audit),
            setting("operation", &workers.operation),
            setting("data-sync", &workers.data_sync),
        ];
        Self { enabled: workers.enabled, workers: all }
    }
}

pub(super) async fn look(config: &Config) -> Vec<Depth> {
    let Some(queue) = &config.queue else { return Vec::new() };
    let sqs = &Sqs::new(queue, &config.workers).await;
    let count =
        |queue, dead| async move { sqs.count(Destination { queue, dead }).await.map_err(|error| error.to_string()) };
    join_all(Queue::ALL.map(|queue| async move {
        let looks = join(Part::of(count(queue, false)), Part::of(count(queue, true)));
        let (messages, dead_letters) = Box::pin(looks).await;
        Depth { queue: queue.label(), name: sqs.name(Destination { queue, dead: false }), messages, dead_letters }
    }))
    .await
}
