//! What the lane holds, and how it gets back what it could not.
//!
//! While events come faster than they are sent, they are held, up to a budget. Beyond it the lane lets go of what comes, and
//! notes only how far the stream went: the slot keeps the WAL, because the lane's position stays where it is. When half of the
//! budget is free again, the stream is read once more from where that was, at the pace at which events are sent. As soon as that
//! has come to where the stream is by then, the stream goes on from there, without what has come already. Both move, so the
//! stream has to wait for a moment when the other one is near: a moment, because whoever else is handed the stream waits too.

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
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// So near, the stream waits for the second reading.
const NEAR: u64 = 1 << 20;
/// So long at most, and not again for so long.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const BETWEEN_WAITS: Duration = Duration::from_secs(5);
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
    /// What committed before was delivered once already, and how long it takes says nothing.
    repeated: Lsn,
}

/// A part of the stream that was let go of.
struct Missing {
    /// What comes of it once more.
    feed: Feed,
    reading: Reading,
    /// When the stream last began to wait for it.
    waits: Option<Instant>,
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
            Step::Send { event, commit, time } => {
                metrics::counter!(names::EVENTS, "queue" => event.queue.label()).increment(1);
                let row = self.ledger.row();
                self.ledger.open(row);
                self.pending.push(row, *event, (commit >= self.repeated).then_some(time));
            }
            Step::Passed(position) => self.ledger.idle(position),
        }
    }
}

impl Intake {
    /// It begins at `start`, and up to `repeated` everything comes again.
    pub(super) fn new(origin: Origin, (start, repeated): (Lsn, Lsn), budget: usize, source: Arc<dyn Reread>) -> Self {
        // Whatever an earlier session has left it at.
        metrics::gauge!(names::EVENTS_BEHIND).set(0.0);
        Self {
            live: Feed::new(origin.clone(), Start { position: start, events: 0 }),
            origin,
            source,
            budget,
            held: Held { pending: Pending::default(), ledger: Ledger::new(start), repeated },
            missing: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    /// Takes a group of the stream.
    pub(super) fn live(&mut self, group: &Group) {
        let Self { live, held, missing, .. } = self;
        live.take(group, |step| {
            if missing.is_none() {
                held.apply(step);
            }
        });
        if self.missing.is_none() && self.held.pending.bytes() > self.budget {
            self.let_go();
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
        self.missing = Some(Missing { feed, reading: Reading::Paused(None), waits: None });
    }

    /// Gets back what is missing, a step at a time; never ends while there is nothing to do. Cancel-safe.
    pub(super) async fn go_on(&mut self) {
        let is_full = self.is_full();
        if !is_full && self.join() {
            return;
        }
        let Some(Missing { feed, reading, .. }) = &mut self.missing else { return std::future::pending().await };
        match reading {
            _ if is_full => std::future::pending().await,
            Reading::Paused(Some(until)) => {
                tokio::time::sleep_until(*until).await;
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
        let Self { held, missing, .. } = self;
        let Some(Missing { feed, .. }) = missing else { return };
        feed.take(group, |step| held.apply(step));
    }

    /// Lets the stream go on once everything that it has passed has come once more.
    fn join(&mut self) -> bool {
        let Some(Missing { feed, .. }) = &self.missing else { return false };
        let reached = feed.reached();
        if reached < self.live.reached() {
            return false;
        }
        self.live.go_on_from(reached);
        self.missing = None;
        self.backoff.reset();
        metrics::gauge!(names::EVENTS_BEHIND).set(0.0);
        tracing::info!("events are sent as they come again");
        true
    }

    /// Whether the stream is to wait, so that the second reading can come to where it is.
    pub(super) fn waits(&mut self) -> bool {
        let is_full = self.is_full();
        let Some(Missing { feed, reading: Reading::Open(_), waits }) = &mut self.missing else { return false };
        if is_full || self.live.reached().position.since(feed.reached().position) > NEAR {
            return false;
        }
        match waits {
            Some(began) if began.elapsed() < LONGEST_WAIT => true,
            Some(began) if began.elapsed() < BETWEEN_WAITS => false,
            _ => {
                *waits = Some(Instant::now());
                true
            }
        }
    }

    fn is_full(&self) -> bool {
        self.held.pending.bytes() > self.budget / 2
    }

    fn broke_off(&mut self, error: &RowError) {
        let pause = self.backoff.next_delay();
        tracing::warn!(%error, ?pause, "events that wait in the WAL can not be read now; trying again");
        if let Some(missing) = &mut self.missing {
            missing.feed = Feed::new(self.origin.clone(), missing.feed.reached());
            missing.reading = Reading::Paused(Some(Instant::now() + pause));
        }
    }

    /// The next events that go together.
    pub(super) fn batch(&mut self) -> Option<(Destination, Vec<Item>)> {
        self.held.pending.batch()
    }

    /// No event that is held is of a later commit. What is read once more the stream has passed.
    pub(super) fn newest(&self) -> Lsn {
        self.live.newest()
    }

    /// An event was confirmed.
    pub(super) fn sent(&mut self, destination: Destination, item: &Item) {
        metrics::counter!(names::EVENTS_SENT, "queue" => destination.queue.label()).increment(1);
        if let Some(committed) = item.committed {
            // A clock that runs behind the source's gives no negative latency.
            metrics::histogram!(names::QUEUE_LATENCY).record(committed.elapsed().unwrap_or_default().as_secs_f64());
        }
        self.held.pending.sent(destination, item);
        self.held.ledger.close(item.row);
    }

    /// An event has to be sent again, before anything else.
    pub(super) fn again(&mut self, destination: Destination, item: Item) {
        self.held.pending.again(destination, item);
    }

    /// An event refers to the store from now on, and is next to be sent.
    pub(super) fn referred(&mut self, destination: Destination, item: Item) {
        self.held.pending.referred(destination, item);
    }

    /// An event that is never taken becomes a dead letter.
    pub(super) fn bury(&mut self, destination: Destination, item: Item, code: &str) {
        self.held.pending.sent(destination, &item);
        let dead = Outgoing { dead: Some(format!("SQS refuses it: {code}")), ..item.event };
        self.held.pending.push(item.row, dead, item.committed);
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

    /// The position before which everything is sent.
    pub(super) fn settle(&mut self) -> Lsn {
        self.held.ledger.settle().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Epoch, Event, Span, Transaction},
        lane::Delivery,
        queue::outbox::OUTBOX_PREFIX,
    };
    use proptest::prelude::*;
    use std::{collections::BTreeMap, sync::Mutex, time::UNIX_EPOCH};
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    const BUDGET: usize = 1500;

    /// A stream: the number of each transaction's events. Events are numbered throughout.
    #[derive(Clone, Debug)]
    struct Stream {
        transactions: Vec<usize>,
        /// How its groups are cut: after so many events each.
        cuts: Vec<usize>,
    }

    /// A transaction of this index commits here, and ends right where the next one may commit.
    fn commit(index: usize) -> u64 {
        1000 * (index as u64 + 1)
    }

    impl Stream {
        /// The groups from a position on.
        fn groups(&self, from: Lsn) -> Vec<Group> {
            let (mut groups, mut number) = (Vec::new(), 0);
            let mut cuts = self.cuts.iter().cycle();
            let mut group = (Vec::new(), Vec::new());
            for (index, &events) in self.transactions.iter().enumerate() {
                let first = number;
                number += events;
                if commit(index) < from.0 {
                    continue;
                }
                let time = UNIX_EPOCH;
                let mut all = vec![Event::Begin(Transaction { commit: Lsn(commit(index)), time, xid: 1 })];
                all.extend((first..number).map(|event| message(&mut group.0, index, event)));
                all.push(Event::Commit { end: Lsn(commit(index) + 1000) });
                for event in all {
                    group.1.push(event);
                    if group.1.len() >= *cuts.next().unwrap_or(&1) {
                        // Spans stay right, since each group has all bytes so far.
                        groups.push(Group { data: group.0.clone().into(), events: std::mem::take(&mut group.1) });
                    }
                }
            }
            groups.push(Group { data: group.0.into(), events: group.1 });
            groups
        }

        fn events(&self) -> usize {
            self.transactions.iter().sum()
        }
    }

    fn message(data: &mut Vec<u8>, transaction: usize, number: usize) -> Event {
        let mut span = |bytes: &[u8]| {
            data.extend_from_slice(bytes);
            Span { start: (data.len() - bytes.len()) as u32, len: bytes.len() as u32 }
        };
        let content = serde_json::json!({
            "eventType": "SecurityEventOccurred", "aggregateId": format!("key {}", number % 3),
            "payload": {"eventType": "login", "actingUserId": number.to_string(), "outcome": "success"}
        });
        let (prefix, content) = (span(OUTBOX_PREFIX), span(content.to_string().as_bytes()));
        let record = Lsn(commit(transaction) - 500 + number as u64 % 400);
        Event::Message { record, transactional: true, prefix, content }
    }

    /// Reads the stream once more; as much of it as it is let.
    struct Source {
        stream: Stream,
        room: Room,
        open: Mutex<Vec<mpsc::UnboundedSender<Arc<Delivery>>>>,
    }

    impl Reread for Source {
        fn reread(&self, from: Lsn, _: Room) -> BoxFuture<'static, Result<Replay, RowError>> {
            let (sender, deliveries) = mpsc::unbounded_channel();
            let (groups, room) = (self.stream.groups(from), self.room.clone());
            self.open.lock().unwrap().push(sender.clone());
            Box::pin(async move {
                for group in groups {
                    let share = room.take(1).await;
                    sender.send(Delivery::new(group, share)).unwrap();
                }
                let stop = CancellationToken::new();
                Ok(Replay { deliveries, ended: tokio::spawn(async { Ok(()) }), stop: stop.drop_guard() })
            })
        }
    }

    /// What was sent, in its order, and the lane.
    struct Lane {
        intake: Intake,
        sent: Vec<usize>,
        stream: Stream,
    }

    impl Lane {
        fn new(stream: &Stream) -> Self {
            let origin = Origin {
                system_identifier: 1,
                epoch: Epoch(0),
                service: "shop".to_owned(),
                table: ("public".to_owned(), "outbox_event".to_owned()),
                published: Arc::default(),
            };
            let (stream, room) = (stream.clone(), Room::new(1 << 30));
            let source = Source { stream: stream.clone(), room, open: Mutex::default() };
            Self {
                intake: Intake::new(origin, (Lsn(1), Lsn::ZERO), BUDGET, Arc::new(source)),
                sent: Vec::new(),
                stream,
            }
        }

        /// Has a batch sent, of which the first may fail.
        fn send(&mut self, fails: bool) -> bool {
            let Some((to, items)) = self.intake.batch() else { return false };
            for (place, item) in items.into_iter().enumerate().rev() {
                if fails && place == 0 {
                    self.intake.again(to, item);
                    continue;
                }
                let body: serde_json::Value = serde_json::from_str(&item.event.body).unwrap();
                self.sent.push(body["payload"]["actingUserId"].as_str().unwrap().parse().unwrap());
                self.intake.sent(to, &item);
            }
            true
        }

        /// Whatever counts as durable was sent, and no more is held than there is room for.
        fn check(&mut self) {
            // A group is taken as a whole.
            assert!(self.intake.waiting_bytes() < BUDGET + 7 * 700, "{} bytes", self.intake.waiting_bytes());
            let durable = self.intake.settle();
            let whole = self.stream.transactions.iter().enumerate().take_while(|(index, _)| commit(*index) < durable.0);
            let before: usize = whole.map(|(_, events)| events).sum();
            for number in 0..before {
                assert!(self.sent.contains(&number), "event {number} is passed by {durable} and was not sent");
            }
        }

        async fn go_on(&mut self) -> bool {
            tokio::select! {
                biased;
                () = self.intake.go_on() => true,
                () = std::future::ready(()) => false,
            }
        }
    }

    async fn run(stream: &Stream, fates: &[u8]) -> Lane {
        let mut lane = Lane::new(stream);
        let mut live = stream.groups(Lsn(1)).into_iter();
        // One that takes from the stream is among them, or this would have no end.
        for fate in fates.iter().chain(&[0]).cycle() {
            match fate % 8 {
                0 | 1 => match live.next() {
                    Some(group) => lane.intake.live(&group),
                    None => break,
                },
                2..=4 => _ = lane.go_on().await,
                other => _ = lane.send(other == 5),
            }
            lane.check();
        }
        live.for_each(|group| lane.intake.live(&group));
        while lane.send(false) || lane.go_on().await {
            lane.check();
        }
        lane
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever is let go of and whichever of the two readings is ahead: each event is sent once, and in the order of
        /// its key.
        #[test]
        fn every_event_is_sent_once_and_in_order(
            transactions in proptest::collection::vec(0_usize..7, 1..25),
            cuts in proptest::collection::vec(1_usize..6, 1..6),
            fates in proptest::collection::vec(any::<u8>(), 20..200),
        ) {
            let stream = Stream { transactions, cuts };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut lane = runtime.block_on(run(&stream, &fates));
            let mut sorted = lane.sent.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..stream.events()).collect::<Vec<_>>());
            let mut last = BTreeMap::new();
            for number in &lane.sent {
                let before = last.insert(number % 3, *number);
                prop_assert!(before.is_none_or(|before| before < *number), "{:?}", lane.sent);
            }
            prop_assert!(lane.intake.missing.is_none());
            prop_assert_eq!(lane.intake.settle(), Lsn(commit(stream.transactions.len() - 1) + 1000));
        }
    }
}
