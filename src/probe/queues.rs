//! The queues: what is in them.
//!
//! SQS has the age of the oldest message in CloudWatch alone. What can be had here is a bound of it, from both ends: a worker sees
//! when the messages that it takes were sent, and what comes after them was sent later, nearly; and a queue that is empty has
//! no message that is older than that. [`names::QUEUE_FRONT`] is the later of the two.

use super::{Neighbour, PATIENCE, SILENCE};
use crate::{
    config::Config,
    event::envelope::Queue,
    queue::{client::Sqs, messages::Depth, pending::Destination},
    retry::Kind,
    telemetry::{self, names},
};
use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};
use tokio::time::{sleep, timeout};

/// How often: six requests each time, half a million in a month.
const INTERVAL: Duration = Duration::from_secs(30);
/// While SQS does not answer, or a queue is missing.
const SOON: Duration = Duration::from_secs(5);

/// Asks for ever; without `[queue]` there is nothing to ask.
pub(super) async fn run(config: &Config) {
    let Some(queue) = &config.queue else { return };
    let sqs = Sqs::new(queue, &config.workers).await;
    let (mut neighbour, mut looked_at, mut uncounted) = (Neighbour::new("sqs"), HashSet::new(), Uncounted::default());
    loop {
        let (mut is_complete, mut answered, mut refused) = (true, Ok(()), None);
        for (queue, dead) in Queue::ALL.into_iter().flat_map(|queue| [(queue, false), (queue, true)]) {
            match timeout(PATIENCE, sqs.depth(Destination { queue, dead })).await {
                Ok(Ok(depth)) if dead => show_dead(queue, depth.all() as f64),
                Ok(Ok(depth)) => show(queue, &depth, looked_at.insert(queue.label())),
                // A missing queue is an answer of SQS, and so is a refusal; but an alert on what can not be counted would be
                // silent for ever, and one on what was counted last.
                Ok(Err(error)) if error.is_missing || error.kind == Kind::Definite => {
                    if dead {
                        show_dead(queue, f64::NAN);
                    }
                    is_complete &= !error.is_missing;
                    refused.get_or_insert(error.message);
                }
                Ok(Err(error)) => (is_complete, answered) = (false, Err(error.message)),
                Err(_) => {
                    // What does not answer this does not answer the others either.
                    (is_complete, answered) = (false, Err(SILENCE.to_owned()));
                    break;
                }
            }
        }
        neighbour.answered(answered);
        uncounted.tell(refused);
        sleep(if is_complete { INTERVAL } else { SOON }).await;
    }
}

/// How many times in a row a queue could not be counted.
#[derive(Default)]
struct Uncounted(u32);

impl Uncounted {
    /// Tells of it once. Not the first time: at a start, queues that are missing are just being made.
    fn tell(&mut self, refused: Option<String>) {
        self.0 = if refused.is_some() { self.0.saturating_add(1) } else { 0 };
        if let Some(error) = refused.filter(|_| self.0 == 2) {
            tracing::warn!(
                error,
                "the messages of a queue can not be counted, and no alert tells of dead letters in it; what is missing \
                 walhouse provision makes, and counting needs the right sqs:GetQueueAttributes"
            );
        }
    }
}

fn show(queue: Queue, depth: &Depth, is_first: bool) {
    let states = [("visible", depth.visible), ("in_flight", depth.in_flight), ("delayed", depth.delayed)];
    for (state, count) in states {
        metrics::gauge!(names::QUEUE_MESSAGES, "queue" => queue.label(), "state" => state).set(count as f64);
    }
    if depth.all() == 0 || is_first {
        metrics::gauge!(names::QUEUE_FRONT, "queue" => queue.label()).set(telemetry::seconds(SystemTime::now()));
    }
}

fn show_dead(queue: Queue, messages: f64) {
    metrics::gauge!(names::DLQ_MESSAGES, "queue" => queue.label()).set(messages);
}
