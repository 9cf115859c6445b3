//! The queue lane: groups in, durable positions out, events to SQS in between.
//!
//! Batches go out several at a time; the order is that of each key, which [`Pending`] keeps. What SQS does not confirm is
//! sent again, with the same ids. While SQS is away the lane waits, and with it the slot; nothing is lost. Nobody else has to
//! wait for it, though: what is too much to be held is let go, and read again later ([`Intake`]).
//!
//! What is too large for a queue goes into the object store first, one event at a time ([`Claims`]). While the store is away that
//! event waits, those of its key behind it, and so does the slot; others are sent as long as there is room for them.

use super::{
    claim::{Claim, Claims},
    client::{QueueError, Refusal, Sent, Sqs},
    intake::Intake,
    outbox::Origin,
    outgoing::Outgoing,
    patience::{Attempt, Patience, Setback},
    pending::{Destination, Item},
    provision::{Action, provision},
};
use crate::{
    event::Lsn,
    lane::{LaneReceiver, Reread, Reserve},
    retry::Kind,
    store::StoreError,
    telemetry::names,
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// Batches that are on their way at once.
const MAX_RUNNING: usize = 16;
/// How often it is looked at whether the stream still has to wait.
const LOOK: Duration = Duration::from_millis(250);
/// What a queue refuses that is as small as this, it does not refuse for its size.
const SMALL: usize = 4 << 10;

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
    claims: Arc<Claims>,
    ahead: Arc<dyn Reserve>,
    intake: Intake,
    running: JoinSet<Flight>,
    /// What waits for the store.
    large: VecDeque<(Destination, Item)>,
    /// One of them is on its way there.
    is_storing: bool,
    queues: Patience,
    store: Patience,
}

/// What came back.
enum Flight {
    /// A batch, from SQS.
    Batch { attempt: Attempt, destination: Destination, items: Vec<Item>, sent: Result<Sent, QueueError> },
    /// An event, from the store.
    Stored { attempt: Attempt, destination: Destination, item: Box<Item>, stored: Result<Claim, StoreError> },
}

impl Publisher {
    /// A lane into queues and, for what is too large for them, the store. It has sent everything before `start`, what commits
    /// before `repeated` is delivered once more, and it holds about `budget` bytes of events. Nothing is sent that was not
    /// reserved `ahead`.
    pub fn new(
        receiver: LaneReceiver,
        (sqs, claims): (Arc<Sqs>, Arc<Claims>),
        ahead: Arc<dyn Reserve>,
        origin: Origin,
        (start, repeated): (Lsn, Lsn),
        budget: usize,
        source: Arc<dyn Reread>,
    ) -> Self {
        Self {
            receiver,
            sqs,
            claims,
            ahead,
            intake: Intake::new(origin, (start, repeated), budget, source),
            running: JoinSet::new(),
            large: VecDeque::new(),
            is_storing: false,
            queues: Patience::new(),
            store: Patience::new(),
        }
    }

    /// Runs until the source has gone and everything it gave is sent.
    ///
    /// # Errors
    /// Whatever SQS does is waited out, so only what can not be.
    pub async fn run(mut self) -> Result<(), PublishError> {
        let mut draining = false;
        // Beside the lane: whoever is away keeps nobody waiting, and the first event tries again.
        let looks = look(Arc::clone(&self.sqs), Arc::clone(&self.claims));
        let _looks = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(looks));
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
                        // Somebody is away: what is not sent is left to the next start.
                        return Ok(());
                    }
                }
                () = Patience::passes(self.queues.until()) => self.queues.go_on(),
                () = Patience::passes(self.store.until()) => self.store.go_on(),
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
        while self.queues.until().is_none()
            && self.running.len() < MAX_RUNNING
            && let Some((destination, items)) = self.intake.batch()
        {
            // What is too large for any is alone.
            match items.first().is_some_and(Item::is_too_large) {
                true => self.large.extend(items.into_iter().map(|item| (destination, item))),
                false => self.fly(destination, items),
            }
        }
        if !self.is_storing
            && self.store.until().is_none()
            && let Some((destination, item)) = self.large.pop_front()
        {
            self.is_storing = true;
            let (claims, attempt) = (Arc::clone(&self.claims), self.store.attempt());
            self.running.spawn(async move {
                let stored = claims.put(&item.event.body).await;
                Flight::Stored { attempt, destination, item: Box::new(item), stored }
            });
        }
    }

    fn fly(&mut self, destination: Destination, items: Vec<Item>) {
        let (sqs, ahead, newest) = (Arc::clone(&self.sqs), Arc::clone(&self.ahead), self.intake.newest());
        let attempt = self.queues.attempt();
        self.running.spawn(async move {
            let sent = match ahead.reserve(newest).await {
                Ok(()) => sqs.send(destination, &items).await,
                Err(why) => Err(QueueError::new(Kind::Transient, why)),
            };
            let sent = match sent {
                Err(error) if error.is_missing && sqs.creates() => create(&sqs).await.and(Err(error)),
                sent => sent,
            };
            Flight::Batch { attempt, destination, items, sent }
        });
    }

    /// Takes back what was on its way; `true` if there was trouble.
    fn landed(&mut self, flight: Flight) -> bool {
        match flight {
            Flight::Batch { attempt, destination, items, sent } => self.sent(attempt, destination, items, sent),
            Flight::Stored { attempt, destination, item, stored } => self.stored(attempt, destination, *item, stored),
        }
    }

    fn stored(
        &mut self,
        attempt: Attempt,
        destination: Destination,
        mut item: Item,
        stored: Result<Claim, StoreError>,
    ) -> bool {
        self.is_storing = false;
        match stored {
            Ok(claim) => {
                self.store.succeeds();
                item.event.refer(claim);
                self.intake.referred(destination, item);
                false
            }
            Err(error) => {
                if let Some(Setback { pause, is_told: true }) = self.store.fails(attempt) {
                    let (id, waiting) = (&item.event.id, self.intake.waiting_bytes());
                    tracing::warn!(
                        %error,
                        event_id = id,
                        ?pause,
                        waiting,
                        "an event that is too large for a queue can not be put into the object store; it waits, and so does \
                         the slot"
                    );
                }
                self.large.push_front((destination, item));
                true
            }
        }
    }

    /// Takes back a batch.
    fn sent(
        &mut self,
        attempt: Attempt,
        destination: Destination,
        items: Vec<Item>,
        sent: Result<Sent, QueueError>,
    ) -> bool {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if error.is_too_much => {
                self.too_much(attempt, destination, items, &error);
                return false;
            }
            Err(error) => {
                self.trouble(attempt, &error);
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
                Err(refusal) if refusal.of_the_message && self.can_change(destination, &item) => {
                    self.change(destination, item, &refusal.code);
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
                self.queues.succeeds();
                false
            }
            Some(Refusal { code, .. }) => {
                let queue = self.sqs.name(destination);
                let message = format!("SQS did not take every message of a batch for {queue}: {code}");
                self.trouble(attempt, &QueueError::new(Kind::Transient, message));
                true
            }
        }
    }

    /// SQS does not take these messages together: it may take each half of them. A queue may allow less than SQS does.
    fn too_much(&mut self, attempt: Attempt, destination: Destination, mut items: Vec<Item>, error: &QueueError) {
        if items.len() > 1 {
            let second = items.split_off(items.len() / 2);
            self.fly(destination, items);
            self.fly(destination, second);
            return;
        }
        for item in items {
            if self.can_change(destination, &item) {
                self.change(destination, item, &error.message);
            } else {
                self.trouble(attempt, error);
                self.intake.again(destination, item);
            }
        }
    }

    fn tell_sent(&self, destination: Destination, event: &Outgoing) {
        event.was_sent(|| self.sqs.name(destination));
        let (queue, event_id, correlation_id) = (self.sqs.name(destination), &event.id, event.correlation_id());
        match &event.dead {
            None => tracing::debug!(queue, event_id, correlation_id, "an event is sent"),
            Some(why) => tracing::warn!(queue, event_id, correlation_id, why, "an event is a dead letter"),
        }
    }

    /// Whether a message that SQS will never take as it is can be made one that it does.
    fn can_change(&self, destination: Destination, item: &Item) -> bool {
        !destination.dead || is_for_the_store(item)
    }

    /// SQS will never take this message as it is: perhaps by a reference to it, and else as a dead letter.
    fn change(&mut self, destination: Destination, item: Item, why: &str) {
        let queue = self.sqs.name(destination);
        let (event_id, correlation_id) = (&item.event.id, item.event.correlation_id());
        if is_for_the_store(&item) {
            tracing::info!(
                queue,
                event_id,
                correlation_id,
                why,
                "SQS refuses an event; its payload goes into the object store"
            );
            self.large.push_back((destination, item));
        } else {
            tracing::error!(queue, event_id, correlation_id, why, "SQS refuses an event; it becomes a dead letter");
            self.intake.bury(destination, item, why);
        }
    }

    fn trouble(&mut self, attempt: Attempt, error: &QueueError) {
        metrics::counter!(names::QUEUE_ERRORS, "kind" => error.kind.label()).increment(1);
        if let Some(Setback { pause, is_told: true }) = self.queues.fails(attempt) {
            let waiting = self.intake.waiting_bytes();
            tracing::warn!(%error, ?pause, waiting, "events are not sent; they wait, and so does the slot");
        }
    }

    fn publish(&mut self) {
        let durable = self.intake.settle();
        self.receiver.durable.send_if_modified(|position| {
            let rises = durable > *position;
            *position = durable.max(*position);
            rises
        });
    }
}

/// Whether what a queue refuses may be refused for its size.
fn is_for_the_store(item: &Item) -> bool {
    !item.event.refers() && item.event.body.len() > SMALL
}

/// What should be there before the first event comes: the queues, and the store.
async fn look(sqs: Arc<Sqs>, claims: Arc<Claims>) {
    if sqs.creates()
        && let Err(error) = create(&sqs).await
    {
        tracing::warn!(%error, "the queues can not be created yet");
    }
    if let Err(why) = claims.ready().await {
        tracing::warn!(
            why,
            "the object store can not be used: an event that is too large for a queue (1 MiB) will wait for it, and so will \
             the slot; see [objects]"
        );
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
