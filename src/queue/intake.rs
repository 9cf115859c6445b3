//! What the lane holds, and how it gets back what it could not.
//!
//! While events come faster than they are sent, they are held, up to a budget. Beyond it the lane lets go of what comes, and
//! notes only how far the stream went: the slot keeps the WAL, because the lane's position stays where it is. When half of the
//! budget is free again, the stream is read once more from where that was, at the pace at which events are sent. When that comes
//! near to where the stream is by now, what the stream brings is kept aside; it follows once all before it has come.

use super::{
    feed::{Feed, Start, Step},
    outbox::Origin,
    outgoing::Outgoing,
    pending::{Destination, Item, Pending},
};
use crate::{
    event::{Group, Lsn},
    lane::{Replay, Reread, Room, RowError, ledger::Ledger},
    retry::{Backoff, Kind},
    telemetry::names,
};
use futures_util::future::BoxFuture;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// So near, what the stream brings meanwhile is kept.
const NEAR: u64 = 16 << 20;
/// What may be on its way from the second reading.
const ROOM: usize = 1 << 20;
/// The first and the longest pause before it is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the lane holds.
pub(super) struct Intake {
    origin: Origin,
    source: Arc<dyn Reread>,
    budget: usize,
    held: Held,
    /// The stream as it goes on.
    live: Feed,
    missing: Option<Missing>,
    backoff: Backoff,
}

/// What is to be sent.
struct Held {
    pending: Pending,
    ledger: Ledger,
}

/// A part of the stream that was let go of.
struct Missing {
    /// What comes of it once more.
    feed: Feed,
    reading: Reading,
    aside: Aside,
}

/// What comes from the stream meanwhile.
enum Aside {
    /// It is dropped.
    Dropped,
    /// It is kept from the end of the transaction on that is open.
    FromNextOn,
    /// It is kept from this position on.
    Kept { from: Lsn, steps: VecDeque<Step>, bytes: usize },
}

enum Reading {
    /// Not before this time, if there is one.
    Paused(Option<Instant>),
    Opening(BoxFuture<'static, Result<Replay, RowError>>),
    Open(Replay),
}

impl Held {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Send(event) => {
                metrics::counter!(names::EVENTS, "queue" => event.queue.label()).increment(1);
                let row = self.ledger.row();
                self.ledger.open(row);
                self.pending.push(row, event);
            }
            Step::Commit(end, time) => self.ledger.commit(end, time),
            Step::Idle(position) => self.ledger.idle(position),
        }
    }
}

impl Intake {
    pub(super) fn new(origin: Origin, start: Lsn, budget: usize, source: Arc<dyn Reread>) -> Self {
        Self {
            live: Feed::new(origin.clone(), Start { position: start, events: 0 }),
            origin,
            source,
            budget,
            held: Held { pending: Pending::default(), ledger: Ledger::new(start) },
            missing: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    /// Takes a group of the stream.
    pub(super) fn live(&mut self, group: &Group) {
        let Self { live, held, missing, .. } = self;
        match missing {
            None => live.take(group, |step| held.apply(step)),
            Some(missing) => live.take(group, |step| missing.aside.take(step)),
        }
        match &mut self.missing {
            None if self.held.pending.bytes() > self.budget => self.let_go(),
            None => {}
            Some(Missing { aside, .. }) => {
                if matches!(aside, Aside::Kept { bytes, .. } if *bytes > self.budget / 2) {
                    *aside = Aside::Dropped;
                }
            }
        }
        match self.live.outside() {
            0 => {}
            count => {
                metrics::counter!(names::EVENTS_OUTSIDE).increment(count);
                tracing::warn!(
                    count,
                    "messages with the prefix walhouse.outbox stand outside of transactions, and are not published: call \
                     pg_logical_emit_message with true as its first argument"
                );
            }
        }
    }

    /// From here on nothing more is held.
    fn let_go(&mut self) {
        let start = self.live.reached();
        tracing::info!(position = %start.position, "events come faster than they are sent; the WAL keeps them");
        metrics::gauge!(names::EVENTS_BEHIND).set(1.0);
        let feed = Feed::new(self.origin.clone(), start);
        self.missing = Some(Missing { feed, reading: Reading::Paused(None), aside: Aside::Dropped });
    }

    /// Gets back what is missing, a step at a time; never ends while there is nothing to do. Cancel-safe.
    pub(super) async fn go_on(&mut self) {
        let is_full = self.held.pending.bytes() > self.budget / 2;
        let Some(Missing { feed, reading, .. }) = &mut self.missing else { return std::future::pending().await };
        match reading {
            _ if is_full => std::future::pending().await,
            Reading::Paused(Some(until)) => {
                tokio::time::sleep_until((*until).into()).await;
                *reading = Reading::Paused(None);
            }
            Reading::Paused(None) => {
                *reading = Reading::Opening(self.source.reread(feed.reached().position, Room::new(ROOM)));
            }
            Reading::Opening(opening) => match opening.await {
                Ok(replay) => *reading = Reading::Open(replay),
                Err(error) => self.broke_off(&error),
            },
            Reading::Open(replay) => match replay.deliveries.recv().await {
                Some(delivery) => self.again_came(&delivery),
                None => {
                    let ended = (&mut replay.ended).await.unwrap_or_else(|error| {
                        Err(RowError { kind: Kind::Transient, of_the_row: false, message: error.to_string() })
                    });
                    let gone = RowError { kind: Kind::Transient, of_the_row: false, message: "it ended".to_owned() };
                    self.broke_off(&ended.err().unwrap_or(gone));
                }
            },
        }
    }

    /// Takes a group of what is read once more.
    fn again_came(&mut self, group: &Group) {
        let Self { live, held, missing, .. } = self;
        let Some(Missing { feed, aside, .. }) = missing else { return };
        feed.take(group, |step| held.apply(step));
        if matches!(aside, Aside::Dropped) && live.reached().position.since(feed.reached().position) <= NEAR {
            // The transaction that is open has been dropped in part.
            *aside = match live.is_between_transactions() {
                true => Aside::kept(live.reached().position),
                false => Aside::FromNextOn,
            };
        }
        self.join();
    }

    /// Ends the second reading where what is kept aside begins.
    fn join(&mut self) {
        let Some(Missing { feed, aside, .. }) = &mut self.missing else { return };
        let from = match aside {
            Aside::Kept { from, .. } => Some(*from),
            Aside::Dropped | Aside::FromNextOn => None,
        };
        feed.end_at(from);
        if !feed.is_over() {
            return;
        }
        if let Some(Missing { aside: Aside::Kept { steps, .. }, .. }) = self.missing.take() {
            steps.into_iter().for_each(|step| self.held.apply(step));
        }
        self.backoff.reset();
        metrics::gauge!(names::EVENTS_BEHIND).set(0.0);
        tracing::info!("events are sent as they come again");
    }

    fn broke_off(&mut self, error: &RowError) {
        let pause = self.backoff.next_delay();
        tracing::warn!(%error, ?pause, "events that wait in the WAL can not be read now; trying again");
        if let Some(missing) = &mut self.missing {
            missing.feed = Feed::new(self.origin.clone(), missing.feed.reached());
            missing.reading = Reading::Paused(Some(Instant::now() + pause));
            missing.aside = Aside::Dropped;
        }
    }

    /// The next events that go together.
    pub(super) fn batch(&mut self) -> Option<(Destination, Vec<Item>)> {
        self.held.pending.batch()
    }

    /// An event was confirmed.
    pub(super) fn sent(&mut self, destination: Destination, item: &Item) {
        self.held.pending.sent(destination, item);
        self.held.ledger.close(item.row);
    }

    /// An event has to be sent again, before anything else.
    pub(super) fn again(&mut self, destination: Destination, item: Item) {
        self.held.pending.again(destination, item);
    }

    /// An event that is never taken becomes a dead letter; a dead letter that is not leaves its id and the reason.
    pub(super) fn bury(&mut self, destination: Destination, item: Item, code: &str) {
        self.held.pending.sent(destination, &item);
        let event = if destination.dead { item.event.epitaph() } else { item.event };
        self.held.pending.push(item.row, Outgoing { dead: Some(format!("SQS refuses it: {code}")), ..event });
    }

    /// Whether everything that came is sent.
    pub(super) fn is_empty(&self) -> bool {
        // What is missing is left to the next start.
        self.held.pending.bytes() == 0
    }

    /// Bytes of events that wait or are on their way.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.held.pending.bytes()
    }

    /// The position before which everything is sent, and the times of the commits for which that is new.
    pub(super) fn settle(&mut self) -> (Lsn, Vec<SystemTime>) {
        self.held.ledger.settle()
    }
}

impl Aside {
    fn kept(from: Lsn) -> Self {
        Self::Kept { from, steps: VecDeque::new(), bytes: 0 }
    }

    fn take(&mut self, step: Step) {
        match (&mut *self, &step) {
            (Self::FromNextOn, Step::Commit(from, _) | Step::Idle(from)) => {
                *self = Self::kept(*from);
            }
            (Self::Kept { steps, bytes, .. }, _) => {
                *bytes += step.bytes();
                steps.push_back(step);
            }
            (Self::Dropped | Self::FromNextOn, _) => {}
        }
    }
}
