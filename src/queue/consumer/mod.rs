//! Takes messages from a queue and has each handled.
//!
//! A message is taken for half a minute only, and kept for as long as its handler runs by asking for more time, again and again.
//! So one whose process died comes back soon, and one whose handler takes long is not handled twice at once; a handler
//! whose message could not be kept is ended before somebody else may have it.
//!
//! What a handler says decides:
//! - it is done: the message is deleted;
//! - it failed, perhaps not for ever: the message comes again after the delay of the queue's schedule, and is a dead letter after the
//!   last try;
//! - it failed for good, or is no event of this queue: it is a dead letter at once;
//! - what it depends on is away: it stays in hand until that is back ([`circuit`]), unless others are handled meanwhile: then
//!   it failed by itself, perhaps not for ever.
//!
//! An event that comes again while it is in hand waits there too, and is done with the first one, or handled after it.
//!
//! A dead letter says why, of whom, when and after how many tries. It is sent before the message is deleted. That SQS itself
//! moves a message after its last try is what is left for crashes.

mod circuit;
mod deleter;
mod known;

use super::{
    client::{QueueError, Sqs},
    letters,
    messages::Message,
    pending::Destination,
};
use crate::{
    event::{
        envelope::{Envelope, EventType, Queue, Schedule},
        schema,
    },
    retry::{Backoff, Kind, Reminder},
    telemetry::names,
};
use circuit::Circuit;
use futures_util::future::BoxFuture;
use known::{Known, Meeting};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

/// How long a message is taken for, and how often that is made longer.
const LEASE: Duration = Duration::from_secs(30);
const RENEW: Duration = Duration::from_secs(10);
/// A handler whose message could not be kept ends so long before others may have it.
const MARGIN: Duration = Duration::from_secs(2);
/// The longest that SQS waits for a message.
const LONG_POLL: Duration = Duration::from_secs(20);
/// How long what a handler depends on may take to say that it is there.
const PROBE: Duration = Duration::from_secs(2);
/// SQS hands out so many at once.
const AT_ONCE: usize = 10;
/// Requests for messages at once, at most.
const MAX_TAKERS: usize = 8;
/// How long handlers may go on after a stop.
const GRACE: Duration = Duration::from_secs(12);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// For so long SQS hides a message, counted from when it was taken; and what a request may take of that.
const LONGEST_HIDDEN: Duration = Duration::from_secs(12 * 3600);
const ON_ITS_WAY: Duration = Duration::from_secs(60);
/// An event that failed so often while others were handled fails by itself.
const BY_ITSELF: u32 = 3;

/// Acts on the events of a queue.
pub trait Handler: Send + Sync + 'static {
    /// What logs and metrics call it.
    fn name(&self) -> &'static str;

    /// Whether what it depends on is there; if not, what is missing.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Acts on an event. May be dropped at any moment, and called again with the same event afterwards.
    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandleError>>;
}

/// An event that was taken from a queue and has the shape of its type.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its type.
    pub of: EventType,
    /// The event.
    pub envelope: Envelope,
    /// Attributes of its message that lead on, such as `traceparent`.
    pub traceparent: Option<String>,
    /// Whether it is not tried again after this time.
    pub is_last: bool,
}

/// Why an event was not acted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// It never will be.
    #[error("{0}")]
    Definite(String),
    /// Another try may do it.
    #[error("{0}")]
    Transient(String),
    /// What the handler depends on is away, whatever the event.
    #[error("{0}")]
    Unavailable(String),
}

/// How messages are handled.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// So many at once.
    pub concurrency: usize,
    /// How long the handling of one may take.
    pub timeout: Duration,
    /// How long is waited before the next try.
    pub schedule: Schedule,
    /// How often it is tried again.
    pub retries: u32,
}

/// The reader of one queue.
pub struct Consumer {
    sqs: Arc<Sqs>,
    queue: Queue,
    handler: Arc<dyn Handler>,
    settings: Settings,
    circuit: Circuit,
    known: Mutex<Known>,
    handled: mpsc::UnboundedSender<String>,
    /// Ends handlers that are still at work after a stop.
    end: CancellationToken,
    deleter: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
    reminder: Mutex<Reminder>,
}

/// What became of a message.
enum Outcome {
    Done,
    /// It was done before.
    Known,
    Failed(HandleError),
    /// It is somebody else's again.
    Lost,
    /// The process stops.
    Released,
}

impl Consumer {
    /// A reader; nothing is taken yet.
    pub fn new(sqs: Arc<Sqs>, queue: Queue, handler: Arc<dyn Handler>, settings: Settings) -> Self {
        let (handled, receipts) = mpsc::unbounded_channel();
        Self {
            sqs,
            queue,
            circuit: Circuit::new(handler.name()),
            handler,
            settings,
            known: Mutex::default(),
            handled,
            end: CancellationToken::new(),
            deleter: Mutex::new(Some(receipts)),
            reminder: Mutex::default(),
        }
    }

    /// Runs until it is stopped and what is in hand is finished, or given back.
    ///
    /// # Panics
    /// If a part of it does that the rest can not do without.
    pub async fn run(self, stop: CancellationToken) {
        let Some(receipts) = self.deleter.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut deleting = tokio::spawn(deleter::run(Arc::clone(&self.sqs), self.source(), receipts));
        let consumer = Arc::new(self);
        let (handlers, permits) = (TaskTracker::new(), Arc::new(Semaphore::new(consumer.settings.concurrency)));
        let mut takers = JoinSet::new();
        for _ in 0..consumer.settings.concurrency.div_ceil(AT_ONCE).min(MAX_TAKERS) {
            let taker = Arc::clone(&consumer).take_all(Arc::clone(&permits), handlers.clone());
            takers.spawn(stop.clone().run_until_cancelled_owned(taker));
        }
        let mut watching = {
            let consumer = Arc::clone(&consumer);
            tokio::spawn(async move { consumer.circuit.watch(&*consumer.handler).await })
        };
        tokio::select! {
            _ = takers.join_all() => {}
            // They do not end by themselves while there is a consumer.
            Err(panic) = &mut watching => std::panic::resume_unwind(panic.into_panic()),
            Err(panic) = &mut deleting => std::panic::resume_unwind(panic.into_panic()),
        }
        handlers.close();
        if timeout(GRACE, handlers.wait()).await.is_err() {
            consumer.end.cancel();
            handlers.wait().await;
        }
        watching.abort();
        let _ = watching.await;
        // The last one that could send it anything.
        drop(consumer);
        let _ = deleting.await;
    }

    fn source(&self) -> Destination {
        Destination { queue: self.queue, dead: false }
    }

    /// Takes messages for as long as there are hands for them.
    async fn take_all(self: Arc<Self>, permits: Arc<Semaphore>, handlers: TaskTracker) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            self.circuit.closed().await;
            let mut hands = vec![Arc::clone(&permits).acquire_owned().await.expect("nobody closes it")];
            while hands.len() < AT_ONCE
                && let Ok(hand) = Arc::clone(&permits).try_acquire_owned()
            {
                hands.push(hand);
            }
            match self.sqs.take(self.source(), hands.len(), LEASE, LONG_POLL).await {
                Ok(messages) => {
                    backoff.reset();
                    for (message, hand) in messages.into_iter().zip(hands) {
                        handlers.spawn(Arc::clone(&self).attend(message, hand));
                    }
                }
                Err(error) => {
                    drop(hands);
                    self.not_taken(&error);
                    sleep(backoff.next_delay().max(FIRST_PAUSE)).await;
                }
            }
        }
    }

    fn not_taken(&self, error: &QueueError) {
        let worker = self.handler.name();
        metrics::counter!(names::TAKE_ERRORS, "worker" => worker, "kind" => error.kind.label()).increment(1);
        if self.reminder.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now()) {
            tracing::warn!(worker, %error, "no messages can be taken; trying again");
        }
    }

    /// Deals with a message, whatever it takes.
    async fn attend(self: Arc<Self>, message: Message, _hand: OwnedSemaphorePermit) {
        let event = read(self.queue, &message, self.settings.retries);
        let span = span(self.handler.name(), &message, event.as_ref().ok());
        let begun = Instant::now();
        async {
            let outcome = tokio::select! {
                outcome = self.work(event) => outcome,
                () = self.keep(&message) => Outcome::Lost,
                () = self.end.cancelled() => Outcome::Released,
            };
            let seconds = begun.elapsed().as_secs_f64();
            metrics::histogram!(names::HANDLER_SECONDS, "worker" => self.handler.name()).record(seconds);
            let label = self.settle(&message, begun, outcome).await;
            metrics::counter!(names::EVENTS_HANDLED, "worker" => self.handler.name(), "outcome" => label).increment(1);
        }
        .instrument(span)
        .await;
    }

    /// Has an event handled, once what the handler depends on is there.
    async fn work(&self, event: Result<Event, String>) -> Outcome {
        let event = match event {
            Ok(event) => event,
            Err(why) => return Outcome::Failed(HandleError::Definite(why)),
        };
        let id = &event.envelope.metadata.event_id;
        let ends = loop {
            let meeting = self.known().meet(id);
            match meeting {
                Meeting::First(ends) => break ends,
                Meeting::Handled => return Outcome::Known,
                Meeting::InHand(mut end) => {
                    // Nothing is ever sent, so this is its end.
                    let _ = end.changed().await;
                }
            }
        };
        let mut holding = Holding { consumer: self, id, handled: false, _ends: ends };
        let (mut others, mut by_itself) = (self.circuit.handled(), 0);
        loop {
            let limit = self.settings.timeout;
            let handled = match timeout(limit, self.handler.handle(&event)).await {
                Ok(handled) => handled,
                Err(_) => Err(self.timed_out(limit).await),
            };
            match handled {
                Ok(()) => {
                    self.circuit.succeed();
                    holding.handled = true;
                    return Outcome::Done;
                }
                Err(HandleError::Unavailable(why)) => {
                    let before = std::mem::replace(&mut others, self.circuit.handled());
                    by_itself += u32::from(others > before);
                    if by_itself == BY_ITSELF {
                        return Outcome::Failed(HandleError::Transient(why));
                    }
                    self.circuit.trip(&why);
                    self.circuit.closed().await;
                }
                Err(error) => return Outcome::Failed(error),
            }
        }
    }

    /// A handler took too long: because of its event, or because what it depends on does not answer.
    async fn timed_out(&self, limit: Duration) -> HandleError {
        match timeout(PROBE, self.handler.ready()).await {
            Ok(Ok(())) => HandleError::Transient(format!("it was not done within {} s", limit.as_secs_f64())),
            Ok(Err(why)) => HandleError::Unavailable(why),
            Err(_) => HandleError::Unavailable("what it depends on does not answer".to_owned()),
        }
    }

    /// Keeps a message for as long as it is let; then it is not ours any more.
    async fn keep(&self, message: &Message) {
        let mut until = Instant::now() + LEASE;
        loop {
            sleep(RENEW).await;
            match timeout(RENEW, self.sqs.hide(self.source(), message, LEASE)).await {
                Ok(Ok(())) => until = Instant::now() + LEASE - RENEW,
                Ok(Err(error)) if error.kind == Kind::Definite => return,
                Ok(Err(_)) | Err(_) => {}
            }
            if Instant::now() + RENEW + MARGIN > until {
                return;
            }
        }
    }

    /// Does what an outcome asks for, and says in a word what that was.
    async fn settle(&self, message: &Message, begun: Instant, outcome: Outcome) -> &'static str {
        match outcome {
            Outcome::Done => {
                // Its reader lives as long as this consumer.
                let _ = self.handled.send(message.receipt.clone());
                "done"
            }
            Outcome::Known => {
                tracing::info!("an event with this id was handled before; this one is left out");
                let _ = self.handled.send(message.receipt.clone());
                "known"
            }
            Outcome::Failed(HandleError::Definite(why)) => self.bury(message, &why).await,
            Outcome::Failed(error) if message.taken > self.settings.retries => {
                self.bury(message, &format!("given up after {} tries: {error}", message.taken)).await
            }
            Outcome::Failed(error) => {
                let delay = delay(self.settings.schedule, message.taken, rand::random(), begun.elapsed());
                tracing::warn!(%error, tries = message.taken, ?delay, "an event could not be handled; trying again");
                self.give_back(message, delay).await;
                "again"
            }
            Outcome::Lost => {
                tracing::warn!("the message could not be kept; its handler has ended");
                "lost"
            }
            Outcome::Released => {
                tracing::info!("an event is given back, since walhouse stops");
                // Not to one of our own requests, which nobody waits for any more and SQS may still answer: the last of them began
                // just before the stop.
                self.give_back(message, LONG_POLL.saturating_sub(GRACE) + MARGIN).await;
                "released"
            }
        }
    }

    async fn give_back(&self, message: &Message, after: Duration) {
        if let Err(error) = self.sqs.hide(self.source(), message, after).await {
            tracing::debug!(%error, "a message comes again later than it was meant to");
        }
    }

    /// Makes a dead letter of a message.
    async fn bury(&self, message: &Message, why: &str) -> &'static str {
        let with = letters::marks(why, self.handler.name(), message.taken);
        let to = Destination { queue: self.queue, dead: true };
        // Another one each time: what comes back a second time within five minutes is not to vanish.
        let once = format!("{}-{}", message.id, message.taken);
        match self.sqs.pass_on(to, message, &with, once).await {
            Ok(()) => {
                tracing::error!(why, tries = message.taken, queue = self.sqs.name(to), "an event is a dead letter");
                let _ = self.handled.send(message.receipt.clone());
                "dead"
            }
            Err(error) => {
                // It comes again, and SQS itself moves it once it has come too often.
                tracing::warn!(why, %error, "an event should be a dead letter and can not be made one");
                "again"
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event in hand, which is let go however its handling ends.
struct Holding<'a> {
    consumer: &'a Consumer,
    id: &'a str,
    handled: bool,
    /// Whoever waits for the end hears of it once it is known how it ended, since fields go after `drop`.
    _ends: watch::Sender<()>,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.consumer.known().part(self.id, self.handled);
    }
}

/// How long a message stays hidden after so many tries: the schedule's delay and up to a quarter of it, as far as SQS can.
fn delay(schedule: Schedule, tries: u32, jitter: f64, in_hand: Duration) -> Duration {
    let longest = LONGEST_HIDDEN.saturating_sub(in_hand + ON_ITS_WAY);
    let delay = schedule.delay(tries).min(LONGEST_HIDDEN);
    delay.mul_f64(1.0 + jitter / 4.0).min(longest)
}

/// What all log lines about a message bear: what the event says of itself, else what the message's attributes do.
fn span(worker: &str, message: &Message, event: Option<&Event>) -> Span {
    let metadata = event.map(|event| &event.envelope.metadata);
    let named = |name: &str| message.attributes.get(name).map(String::as_str);
    tracing::info_span!(
        "event",
        worker,
        correlation_id = metadata.map(|metadata| metadata.correlation_id.as_str()).or_else(|| named("correlationId")),
        event_id = metadata.map(|metadata| metadata.event_id.as_str()),
        event_type = metadata.map(|metadata| metadata.event_type.as_str()).or_else(|| named("eventType")),
        traceparent = named("traceparent"),
        message_id = message.id
    )
}

/// The event that a message holds, if it is one of this queue.
fn read(queue: Queue, message: &Message, retries: u32) -> Result<Event, String> {
    let of = schema::check_event(&message.body).map_err(|misfit| misfit.to_string())?;
    if of.queue() != queue {
        return Err(format!("{of} does not belong into {}", queue.name()));
    }
    let envelope = serde_json::from_str(&message.body).map_err(|error| format!("it is no event: {error}"))?;
    let traceparent = message.attributes.get("traceparent").cloned();
    Ok(Event { of, envelope, traceparent, is_last: message.taken > retries })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_never_longer_than_sqs_hides_a_message() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        assert_eq!(delay(Schedule::Exponential(2 * second), 3, 0.5, second), 9 * second);
        // What is configured may be twelve hours.
        for (schedule, tries) in [(Schedule::Fixed(12 * hour), 1), (Schedule::Exponential(12 * hour), 4)] {
            for in_hand in [Duration::ZERO, 6 * hour, 13 * hour] {
                let delay = delay(schedule, tries, 1.0, in_hand);
                assert!(delay.is_zero() || delay + in_hand < 12 * hour, "{delay:?} after {in_hand:?}");
                assert!(delay > 5 * hour || in_hand > 7 * hour, "{delay:?} after {in_hand:?}");
            }
        }
    }
}
