//! Goes through a queue of dead letters once.
//!
//! SQS has no way to look into a queue: a message is seen by taking it, and others do not see it for a while. So what is
//! passed over is kept until the end of the walk, for else it would be seen again and again, and is given back then. If the
//! process dies before, SQS gives it back by itself, after [`LEASE`] or [`RENEWED`].
//!
//! A walk is over when nothing comes any more. What came into the queue after it began does not belong to it: a letter that is
//! sent home, fails once more and comes back would else be sent home for ever.

use super::{
    client::{QueueError, Sqs},
    letters::Letter,
    messages::Message,
    pending::{Destination, MAX_ENTRIES},
};
use crate::retry::{Backoff, Kind};
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant, SystemTime},
};
use tokio::time::sleep;

/// How long a letter is taken for, and for how long from then on if it is kept.
const LEASE: Duration = Duration::from_secs(30);
const RENEWED: Duration = Duration::from_secs(120);
/// How long a request for letters waits for one: a request that does not wait asks a part of SQS's servers only.
const PATIENCE: Duration = Duration::from_secs(1);
/// The queue is empty when it was found so this often in a row.
const EMPTY: u32 = 2;
/// And it is gone through when this often in a row nothing came but what is newer than the walk.
const FRUITLESS: u32 = 20;
/// How far SQS's clock and this one may be apart.
const SKEW: Duration = Duration::from_secs(60);
/// SQS lets nobody have more of a queue in hand (120,000).
const MOST_KEPT: usize = 100_000;
/// Before an error counts.
pub(super) const TRIES: u32 = 5;
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A dead letter in hand, with its message.
pub(super) type Found = (Letter, Message);

/// A message that is kept, and until when.
struct Kept {
    message: Message,
    until: Instant,
}

/// A walk through a queue.
pub(super) struct Walk<'a> {
    sqs: &'a Sqs,
    from: Destination,
    began: SystemTime,
    kept: Vec<Kept>,
    /// Bodies of letters that were sent home, as hashes: what comes back is known by its own.
    gone: HashSet<u64>,
    /// Letters that came back, or came first, during the walk.
    later: usize,
    empty: u32,
    fruitless: u32,
}

impl<'a> Walk<'a> {
    pub(super) fn new(sqs: &'a Sqs, from: Destination) -> Self {
        let (kept, gone) = (Vec::new(), HashSet::new());
        Self { sqs, from, began: SystemTime::now(), kept, gone, later: 0, empty: 0, fruitless: 0 }
    }

    /// The next letters; none if that was all.
    pub(super) async fn next(&mut self) -> Result<Vec<Found>, QueueError> {
        while self.empty < EMPTY && self.fruitless < FRUITLESS {
            self.renew().await?;
            if self.kept.len() > MOST_KEPT {
                let queue = self.sqs.name(self.from);
                let message = format!(
                    "more than {MOST_KEPT} letters of {queue} would have to be passed over at once: do with a wider filter \
                     first"
                );
                return Err(QueueError::new(Kind::Definite, message));
            }
            let taken = again(async || self.sqs.take(self.from, MAX_ENTRIES, LEASE, PATIENCE).await).await?;
            self.empty = if taken.is_empty() { self.empty + 1 } else { 0 };
            let mut found = Vec::new();
            for message in taken {
                if self.is_later(&message) {
                    self.later += 1;
                    self.keep(message);
                } else {
                    found.push((Letter::of(&message), message));
                }
            }
            if !found.is_empty() {
                self.fruitless = 0;
                return Ok(found);
            }
            self.fruitless += 1;
        }
        Ok(Vec::new())
    }

    /// Keeps a letter in hand until the end.
    pub(super) fn keep(&mut self, message: Message) {
        self.kept.push(Kept { message, until: Instant::now() + LEASE });
    }

    /// Removes letters from the queue for good, and says how many could not be.
    pub(super) async fn remove(&mut self, messages: Vec<Message>) -> usize {
        let mut left = messages;
        self.gone.extend(left.iter().map(|message| hash(&message.body)));
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while !left.is_empty() && backoff.failures() < TRIES {
            let receipts: Vec<_> = left.iter().map(|message| message.receipt.clone()).collect();
            if let Ok(gone) = self.sqs.delete(self.from, &receipts).await {
                let mut gone = gone.into_iter();
                left.retain(|_| gone.next().is_none_or(|gone| gone.is_err()));
            }
            if !left.is_empty() {
                sleep(backoff.next_delay()).await;
            }
        }
        left.len()
    }

    /// Letters that came during the walk and were left alone.
    pub(super) fn later(&self) -> usize {
        self.later
    }

    /// Gives back what is kept, the last first: so those of a FIFO queue keep their order.
    pub(super) async fn end(self) {
        for kept in self.kept.iter().rev() {
            let back = again(async || self.sqs.hide(self.from, &kept.message, Duration::ZERO).await);
            if let Err(error) = back.await {
                let queue = self.sqs.name(self.from);
                tracing::warn!(queue, %error, "letters come back by themselves, within two minutes");
                return;
            }
        }
    }

    fn is_later(&self, message: &Message) -> bool {
        let Some(sent) = message.sent else { return false };
        // A letter that is there twice, from before, is none that came back.
        sent > self.began + SKEW || (sent + SKEW > self.began && self.gone.contains(&hash(&message.body)))
    }

    /// Keeps what would soon be seen by others.
    async fn renew(&mut self) -> Result<(), QueueError> {
        let soon = Instant::now() + LEASE / 2;
        for kept in self.kept.iter_mut().filter(|kept| kept.until < soon) {
            again(async || self.sqs.hide(self.from, &kept.message, RENEWED).await).await?;
            kept.until = Instant::now() + RENEWED;
        }
        Ok(())
    }
}

/// Waits out what time may mend, for a while.
pub(super) async fn again<T>(mut request: impl AsyncFnMut() -> Result<T, QueueError>) -> Result<T, QueueError> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match request().await {
            Err(error) if error.kind == Kind::Transient && backoff.failures() + 1 < TRIES => {
                sleep(backoff.next_delay()).await;
            }
            outcome => return outcome,
        }
    }
}

fn hash(body: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}
