//! The queue lane: groups in, durable positions out, events to SQS in between.
//!
//! Batches go out several at a time; the order is that of each key, which [`Pending`] keeps. What SQS does not confirm is
//! sent again, with the same ids. While SQS is away the lane waits, and with it the slot; nothing is lost. Nobody else has to
//! wait for it, though: what is too much to be held is let go, and read again later ([`Intake`]).

use super::{
    client::{QueueError, Refusal, Sent, Sqs},
    intake::Intake,
    outbox::Origin,
    outgoing::Outgoing,
    pending::{Destination, Item},
    provision::{Action, provision},
};
use crate::{
    event::Lsn,
    lane::{LaneReceiver, Reread},
    retry::{Backoff, Kind},
    telemetry::names,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Batches that are on their way at once.
const MAX_RUNNING: usize = 16;
/// The first and the longest pause before SQS is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often it is looked at whether the stream still has to wait.
const LOOK: Duration = Duration::from_millis(250);
/// How often the same trouble is told again.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Why the lane can not go on.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// walhouse contradicts itself.
    #[error("this is a bug in walhouse: {0}")]
    Bug(String),
}

/// The lane's task.
pub struct Publisher {
    receiver: LaneReceiver,
    sqs: Arc<Sqs>,
    intake: Intake,
    running: JoinSet<Flight>,
    backoff: Backoff,
    /// SQS is left alone until then.
    pause: Option<Instant>,
    told: Option<Instant>,
}

/// A batch that came back.
struct Flight {
    destination: Destination,
    items: Vec<Item>,
    sent: Result<Sent, QueueError>,
}

impl Publisher {
    /// A lane that has sent everything before `start`, and holds about `budget` bytes of events.
    pub fn new(
        receiver: LaneReceiver,
        sqs: Arc<Sqs>,
        origin: Origin,
        start: Lsn,
        budget: usize,
        source: Arc<dyn Reread>,
    ) -> Self {
        Self {
            receiver,
            sqs,
            intake: Intake::new(origin, start, budget, source),
            running: JoinSet::new(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            pause: None,
            told: None,
        }
    }

    /// Runs until the source has gone and everything it gave is sent.
    ///
    /// # Errors
    /// Whatever SQS does is waited out, so only what can not be.
    pub async fn run(mut self) -> Result<(), PublishError> {
        let mut draining = false;
        // Beside the lane: whoever is away keeps nobody waiting, and the first event tries again.
        let sqs = Arc::clone(&self.sqs);
        let _created = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            if sqs.creates()
                && let Err(error) = create(&sqs).await
            {
                tracing::warn!(%error, "the queues can not be created yet");
            }
        }));
        loop {
            self.start();
            self.publish();
            if draining && self.running.is_empty() && self.intake.is_empty() {
                return Ok(());
            }
            let waits = !draining && self.intake.waits();
            tokio::select! {
                biased;
                Some(joined) = self.running.join_next(), if !self.running.is_empty() => {
                    let flight = joined.map_err(|error| PublishError::Bug(format!("a send ended in a panic: {error}")))?;
                    if self.landed(flight) && draining {
                        // SQS is away: what is not sent is left to the next start.
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(self.pause.unwrap_or_else(Instant::now).into()), if self.pause.is_some() => {
                    self.pause = None;
                }
                delivery = self.receiver.deliveries.recv(), if !draining && !waits => match delivery {
                    Some(delivery) => self.intake.live(&delivery),
                    None => draining = true,
                },
                () = self.intake.go_on(), if !draining => {}
                // The stream waits no longer than that for the second reading.
                () = tokio::time::sleep(LOOK), if waits => {}
            }
        }
    }

    /// Sends what may be sent.
    fn start(&mut self) {
        while self.pause.is_none()
            && self.running.len() < MAX_RUNNING
            && let Some((destination, items)) = self.intake.batch()
        {
            self.fly(destination, items);
        }
    }

    fn fly(&mut self, destination: Destination, items: Vec<Item>) {
        let sqs = Arc::clone(&self.sqs);
        self.running.spawn(async move {
            let sent = match sqs.send(destination, &items).await {
                Err(error) if error.is_missing && sqs.creates() => create(&sqs).await.and(Err(error)),
                sent => sent,
            };
            Flight { destination, items, sent }
        });
    }

    /// Takes back a batch; `true` if there was trouble.
    fn landed(&mut self, Flight { destination, items, sent }: Flight) -> bool {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if error.is_too_much => {
                self.too_much(destination, items, &error);
                return false;
            }
            Err(error) => {
                self.trouble(&error);
                // In front of the others, in their order.
                items.into_iter().rev().for_each(|item| self.intake.again(destination, item));
                return true;
            }
        };
        let mut refused = None;
        for (item, sent) in items.into_iter().zip(sent).rev() {
            match sent {
                Ok(()) => {
                    self.tell_sent(destination, &item.event);
                    self.intake.sent(destination, &item);
                }
                Err(refusal) if refusal.of_the_message && !item.event.is_epitaph() => {
                    self.bury(destination, item, &refusal.code);
                }
                Err(refusal) => {
                    let (event_id, correlation_id) = (&item.event.id, item.event.correlation_id());
                    tracing::debug!(event_id, correlation_id, code = refusal.code, "an event is not taken now");
                    refused = Some(refusal);
                    self.intake.again(destination, item);
                }
            }
        }
        match refused {
            None => {
                self.backoff.reset();
                self.told = None;
                false
            }
            Some(Refusal { code, .. }) => {
                let queue = self.sqs.name(destination);
                let message = format!("SQS did not take every message of a batch for {queue}: {code}");
                self.trouble(&QueueError::new(Kind::Transient, message));
                true
            }
        }
    }

    /// SQS does not take these messages together: it may take each half of them. A queue may allow less than SQS does.
    fn too_much(&mut self, destination: Destination, mut items: Vec<Item>, error: &QueueError) {
        if items.len() > 1 {
            let second = items.split_off(items.len() / 2);
            self.fly(destination, items);
            self.fly(destination, second);
            return;
        }
        for item in items {
            if item.event.is_epitaph() {
                self.trouble(error);
                self.intake.again(destination, item);
            } else {
                self.bury(destination, item, &error.message);
            }
        }
    }

    fn tell_sent(&self, destination: Destination, event: &Outgoing) {
        let (queue, event_id, correlation_id) = (self.sqs.name(destination), &event.id, event.correlation_id());
        match &event.dead {
            None => tracing::debug!(queue, event_id, correlation_id, "an event is sent"),
            Some(why) => tracing::warn!(queue, event_id, correlation_id, why, "an event is a dead letter"),
        }
    }

    /// SQS will never take this message.
    fn bury(&mut self, destination: Destination, item: Item, why: &str) {
        let queue = self.sqs.name(destination);
        let (event_id, correlation_id) = (&item.event.id, item.event.correlation_id());
        tracing::error!(queue, event_id, correlation_id, why, "SQS refuses an event; it becomes a dead letter");
        self.intake.bury(destination, item, why);
    }

    fn trouble(&mut self, error: &QueueError) {
        metrics::counter!(names::QUEUE_ERRORS, "kind" => error.kind.label()).increment(1);
        let pause = self.backoff.next_delay();
        self.pause = Some(Instant::now() + pause);
        if self.told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
            self.told = Some(Instant::now());
            let waiting = self.intake.waiting_bytes();
            tracing::warn!(%error, ?pause, waiting, "events are not sent; they wait, and so does the slot");
        }
    }

    fn publish(&mut self) {
        let (durable, times) = self.intake.settle();
        self.receiver.durable.send_if_modified(|position| {
            let rises = durable > *position;
            *position = durable.max(*position);
            rises
        });
        for time in times {
            metrics::histogram!(names::QUEUE_LATENCY).record(time.elapsed().unwrap_or_default().as_secs_f64());
        }
    }
}

/// Creates the queues, for which the events then need not wait for anybody.
async fn create(sqs: &Sqs) -> Result<(), QueueError> {
    let _alone = sqs.creating.lock().await;
    for step in provision(sqs, false).await? {
        if step.action != Action::Fits {
            tracing::info!(queue = step.queue, "queue created, or corrected");
        }
    }
    Ok(())
}
