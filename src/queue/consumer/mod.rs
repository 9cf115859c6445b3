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
//! An event that comes again while it is in hand waits there too, and is done with the first one, or handled after it; a copy
//! of one that has become a dead letter is left out ([`known`]).
//!
//! A dead letter says why, of whom, when and after how many tries. It is sent before the message is deleted. That SQS itself
//! moves a message after its last try is what is left for crashes.

mod circuit;
mod deleter;
mod hands;
mod known;
mod payload;
mod reading;
mod settling;
mod traced;

use super::{
    claim::Claims,
    client::{QueueError, Sqs},
    messages::Message,
    pending::Destination,
};
use crate::{
    event::envelope::{Envelope, EventType, Queue, Schedule},
    retry::{Backoff, Kind, Reminder},
    telemetry::names,
};
use circuit::Circuit;
use futures_util::future::BoxFuture;
use hands::Hands;
use known::{Known, Meeting};
pub use payload::more_time;
use payload::{Fetched, Payloads};
use reading::{Read, read};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout, timeout_at},
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
/// And how long SQS may take then to hear what became of their messages.
const LAST_WORDS: Duration = Duration::from_secs(4);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Where walhouse makes the queues, it does so while a worker asks for messages fewer times than this: in about ten seconds.
const MADE_WITHIN: u32 = 6;
/// What became of a message that is a dead letter now.
const DEAD: &str = "dead";
/// An event that failed so often while others were handled fails by itself.
const BY_ITSELF: u32 = 3;

/// Acts on the events of a queue.
pub trait Handler: Send + Sync + 'static {
    /// What logs and metrics call it.
    fn name(&self) -> &'static str;

    /// Whether what it depends on is there; if not, what is missing.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Whether the log has been told that what it depends on is away.
    fn is_told(&self) -> bool {
        false
    }

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
    /// The largest payload that is taken from the store, in bytes.
    pub max_payload: u64,
}

/// The reader of one queue.
pub struct Consumer {
    sqs: Arc<Sqs>,
    queue: Queue,
    handler: Arc<dyn Handler>,
    settings: Settings,
    /// Whether messages may be taken.
    open: watch::Receiver<bool>,
    circuit: Circuit,
    payloads: Payloads,
    hands: Hands,
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
    /// It was refused for good before, and is a dead letter.
    Buried,
    Failed(HandleError),
    /// It is somebody else's again.
    Lost,
    /// The process stops.
    Released,
}

impl Consumer {
    /// A reader; nothing is taken yet.
    pub fn new(
        sqs: Arc<Sqs>,
        claims: Arc<Claims>,
        queue: Queue,
        handler: Arc<dyn Handler>,
        settings: Settings,
    ) -> Self {
        let (handled, receipts) = mpsc::unbounded_channel();
        Self {
            sqs,
            queue,
            circuit: Circuit::new(handler.name()),
            payloads: Payloads::new(claims, settings.max_payload),
            hands: Hands::new(handler.name(), settings.timeout),
            handler,
            settings,
            open: watch::channel(true).1,
            known: Mutex::default(),
            handled,
            end: CancellationToken::new(),
            deleter: Mutex::new(Some(receipts)),
            reminder: Mutex::default(),
        }
    }

    /// Messages are taken only while this says so.
    pub fn while_open(self, open: watch::Receiver<bool>) -> Self {
        Self { open, ..self }
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
        let deadline = Instant::now() + GRACE + LAST_WORDS;
        if timeout(GRACE, handlers.wait()).await.is_err() {
            consumer.end.cancel();
        }
        watching.abort();
        let _ = watching.await;
        let worker = consumer.handler.name();
        let last_words = async {
            handlers.wait().await;
            // The last one that could send it anything.
            drop(consumer);
            let _ = (&mut deleting).await;
        };
        if timeout_at(deadline, last_words).await.is_err() {
            tracing::warn!(worker, "SQS does not answer; messages that were handled come again, which changes nothing");
            deleting.abort();
        }
    }

    fn source(&self) -> Destination {
        Destination { queue: self.queue, dead: false }
    }

    /// Takes messages for as long as there are hands for them.
    async fn take_all(self: Arc<Self>, permits: Arc<Semaphore>, handlers: TaskTracker) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut open = self.open.clone();
        loop {
            self.circuit.closed().await;
            wait(&mut open, true).await;
            let mut hands = vec![Arc::clone(&permits).acquire_owned().await.expect("nobody closes it")];
            while hands.len() < AT_ONCE
                && let Ok(hand) = Arc::clone(&permits).try_acquire_owned()
            {
                hands.push(hand);
            }
            let taken = tokio::select! {
                taken = self.sqs.take(self.source(), hands.len(), LEASE, LONG_POLL) => taken,
                // What SQS has handed out at this very moment comes again after its lease, as at a stop.
                () = wait(&mut open, false) => continue,
            };
            match taken {
                Ok(messages) => {
                    backoff.reset();
                    for (message, hand) in messages.into_iter().zip(hands) {
                        handlers.spawn(Arc::clone(&self).attend(message, hand));
                    }
                }
                Err(error) => {
                    drop(hands);
                    self.not_taken(&error, backoff.failures());
                    sleep(backoff.next_delay().max(FIRST_PAUSE)).await;
                }
            }
        }
    }

    /// It has failed so many times in a row before.
    fn not_taken(&self, error: &QueueError, before: u32) {
        let worker = self.handler.name();
        metrics::counter!(names::TAKE_ERRORS, "worker" => worker, "kind" => error.kind.label()).increment(1);
        // At a first start the queue lane is about to make the queues.
        let is_early = error.is_missing && self.sqs.creates() && before < MADE_WITHIN;
        if !is_early && self.reminder.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now()) {
            tracing::warn!(worker, %error, "no messages can be taken; trying again");
        }
    }

    /// Deals with a message, whatever it takes.
    async fn attend(self: Arc<Self>, mut message: Message, _hand: OwnedSemaphorePermit) {
        let traced = traced::begin(&mut message);
        let event = read(self.queue, &message, self.settings.retries);
        let span = span(self.handler.name(), &message, event.as_ref().ok().map(|read| &read.event));
        let begun = Instant::now();
        let _held = self.hands.take(self.queue, &message);
        async {
            // Whoever waits for the same event goes on when it is settled what became of this one.
            let mut holding = None;
            let outcome = tokio::select! {
                outcome = self.work(&message, event, &mut holding) => outcome,
                () = self.keep(&message) => Outcome::Lost,
                () = self.end.cancelled() => Outcome::Released,
            };
            let seconds = begun.elapsed().as_secs_f64();
            metrics::histogram!(names::HANDLER_SECONDS, "worker" => self.handler.name()).record(seconds);
            let for_good = matches!(outcome, Outcome::Failed(HandleError::Definite(_)));
            let label = self.settle(&message, begun, outcome).await;
            if let Some(Holding { id, .. }) = &holding
                && for_good
                && label == DEAD
            {
                self.known().bury(id, &message);
            }
            if let Some(traced) = traced {
                traced::end(traced, &self.sqs.name(self.source()), self.handler.name(), &message, label);
            }
            metrics::counter!(names::EVENTS_HANDLED, "worker" => self.handler.name(), "outcome" => label).increment(1);
        }
        .instrument(span)
        .await;
    }

    /// Has an event handled, once what the handler depends on is there.
    async fn work<'a>(
        &'a self,
        message: &Message,
        event: Result<Read, String>,
        holding: &mut Option<Holding<'a>>,
    ) -> Outcome {
        let Read { mut event, reference } = match event {
            Ok(read) => read,
            Err(why) => return Outcome::Failed(HandleError::Definite(why)),
        };
        let id = &event.envelope.metadata.event_id.clone();
        let ends = loop {
            let meeting = self.known().meet(id, message);
            match meeting {
                Meeting::First(ends) => break ends,
                Meeting::Handled => return Outcome::Known,
                Meeting::Buried => return Outcome::Buried,
                Meeting::InHand(mut end) => {
                    // Nothing is ever sent, so this is its end.
                    let _ = end.changed().await;
                }
            }
        };
        let holding = holding.insert(Holding { consumer: self, id: id.clone(), handled: false, _ends: ends });
        let (mut limit, mut _share) = (self.settings.timeout, None);
        if let Some(reference) = reference {
            match self.fetch(event.of, &reference).await {
                Ok(Fetched { payload, share }) => (event.envelope.payload, _share) = (payload, Some(share)),
                Err(error) => return Outcome::Failed(error),
            }
            limit += more_time(reference.bytes);
        }
        let (mut others, mut by_itself) = (self.circuit.handled(), 0);
        loop {
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
                    self.circuit.trip(&why, self.handler.is_told());
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

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until messages may be taken, or may not.
async fn wait(open: &mut watch::Receiver<bool>, wanted: bool) {
    // Nobody is left who could change it: then this process stops.
    if open.wait_for(|open| *open == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// An event in hand, which is let go however its handling ends.
struct Holding<'a> {
    consumer: &'a Consumer,
    id: String,
    handled: bool,
    /// Whoever waits for the end hears of it once it is known how it ended, since fields go after `drop`.
    _ends: watch::Sender<()>,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.consumer.known().part(&self.id, self.handled);
    }
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
