//! What is done with dead letters, on request: they are looked at, sent home, or removed for good.
//!
//! A letter is sent home before it is removed from where it was, and removed only if it is known to be there. So nothing is
//! lost wherever this is cut short; the letters of the batch that was in hand, ten at most, may come a second time, and their
//! effect is idempotent by the event's id. In a FIFO queue SQS itself drops the second one, for five minutes.
//!
//! In a FIFO queue letters stand behind those of their group that are in hand: what a filter passes over hides those behind
//! it, which could not be sent home before it anyway.

use super::{
    client::{QueueError, Sqs},
    home::{self, Arrival, Homeward},
    letters::{Filter, Letter},
    messages::Message,
    pending::{Destination, MAX_ENTRIES},
    walk::{Found, Walk, again},
};
use crate::event::envelope::Queue;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What is to be done with the letters that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// They go back to the queue that they were in.
    Redrive,
    /// They are removed for good.
    Purge,
}

/// How it is done.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which letters.
    pub filter: Filter,
    /// So many of them at most.
    pub limit: Option<usize>,
    /// So many in a second at most; they go in batches of a tenth of that.
    pub rate: Option<u32>,
    /// They are only counted.
    pub dry_run: bool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// The whole name of the queue of dead letters.
    pub queue: String,
    /// Whether nothing was done but counting.
    pub dry_run: bool,
    /// Letters that were meant and dealt with; those that would have been, in a dry run.
    pub letters: usize,
    /// Of those, letters that were sent home and could not be removed: they are there twice.
    pub twice: usize,
    /// Letters that their queue does not take, and that stay where they are.
    pub refused: usize,
    /// Why; what it says of the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Letters of a FIFO queue that stay too, since they stand behind one of these in their group.
    pub behind: usize,
    /// Letters that the filter passed over.
    pub passed_over: usize,
    /// Letters that came while this went on and were left alone: those that failed once more among them.
    pub later: usize,
    /// Whether it was stopped before it was through.
    pub stopped: bool,
}

/// What a queue of dead letters has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The whole name of the queue of dead letters.
    pub queue: String,
    /// How many letters there are, those in somebody's hand among them; SQS calls it approximate.
    pub count: u64,
    /// Those that are meant, as many as were asked for.
    pub letters: Vec<Letter>,
}

impl Sqs {
    /// About how many messages are in a queue, in hand and delayed ones among them.
    ///
    /// # Errors
    /// What SQS says.
    pub async fn count(&self, of: Destination) -> Result<u64, QueueError> {
        const NAMES: [Name; 3] = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let url = self.url(of).await?;
        let request = self.client().get_queue_attributes().queue_url(url).set_attribute_names(Some(NAMES.to_vec()));
        let answer = request.send().await.map_err(|error| self.error(&error, of))?;
        let all = answer.attributes.unwrap_or_default();
        Ok(NAMES.iter().filter_map(|name| all.get(name)?.parse::<u64>().ok()).sum())
    }
}

/// Lists letters, and leaves them where they are.
///
/// # Errors
/// What SQS says.
pub async fn list(sqs: &Sqs, queue: Queue, filter: &Filter, limit: usize) -> Result<Listed, QueueError> {
    let from = Destination { queue, dead: true };
    let count = again(async || sqs.count(from).await).await?;
    let mut listed = Listed { queue: sqs.name(from), count, letters: Vec::new() };
    if limit == 0 {
        return Ok(listed);
    }
    let mut walk = Walk::new(sqs, from);
    let looked = async {
        while listed.letters.len() < limit {
            let found = walk.next().await?;
            if found.is_empty() {
                break;
            }
            for (letter, message) in found {
                if filter.takes(&letter) && listed.letters.len() < limit {
                    listed.letters.push(letter.looked_into(&message));
                }
                walk.keep(message);
            }
        }
        Ok(())
    }
    .await;
    walk.end().await;
    looked.map(|()| listed)
}

/// One letter, with its message.
///
/// # Errors
/// What SQS says.
pub async fn find(sqs: &Sqs, queue: Queue, id: &str) -> Result<Option<(Letter, Message)>, QueueError> {
    let filter = Filter { id: Some(id.to_owned()), ..Filter::default() };
    let mut walk = Walk::new(sqs, Destination { queue, dead: true });
    let found = async {
        loop {
            let found = walk.next().await?;
            if found.is_empty() {
                return Ok(None);
            }
            let mut wanted = None;
            for (letter, message) in found {
                walk.keep(message.clone());
                if filter.takes(&letter) {
                    wanted = wanted.or(Some((letter, message)));
                }
            }
            if wanted.is_some() {
                return Ok(wanted);
            }
        }
    }
    .await;
    walk.end().await;
    found
}

/// Deals with all letters that are meant, once each, until `stop` is cancelled. `say` takes a line about how far it is.
///
/// # Errors
/// What SQS says, with what was done before.
pub async fn deal(
    sqs: &Sqs,
    queue: Queue,
    deed: Deed,
    options: &Options,
    stop: &CancellationToken,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Done, (QueueError, Done)> {
    let from = Destination { queue, dead: true };
    let done = Done { queue: sqs.name(from), dry_run: options.dry_run, ..Done::default() };
    let mut dealing = Dealing {
        sqs,
        home: Destination { queue, dead: false },
        deed,
        options,
        stop,
        walk: Walk::new(sqs, from),
        done,
        next: Instant::now(),
        told: Instant::now(),
        say,
    };
    let outcome = dealing.all().await;
    let Dealing { walk, mut done, .. } = dealing;
    done.later = walk.later();
    walk.end().await;
    match outcome {
        Ok(()) => Ok(done),
        Err(error) => Err((error, done)),
    }
}

struct Dealing<'a> {
    sqs: &'a Sqs,
    home: Destination,
    deed: Deed,
    options: &'a Options,
    stop: &'a CancellationToken,
    walk: Walk<'a>,
    done: Done,
    /// The next letter's turn.
    next: Instant,
    told: Instant,
    say: &'a (dyn Fn(&str) + Send + Sync),
}

impl Dealing<'_> {
    async fn all(&mut self) -> Result<(), QueueError> {
        while !self.is_over() {
            let found = self.walk.next().await?;
            if found.is_empty() {
                return Ok(());
            }
            self.some(found).await?;
            if self.told.elapsed() > TELL_EVERY {
                self.told = Instant::now();
                let Done { queue, letters, passed_over, .. } = &self.done;
                (self.say)(&format!("{queue}: {letters} so far, {passed_over} passed over"));
            }
        }
        self.done.stopped = self.stop.is_cancelled();
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || !self.has_room(0)
    }

    /// Whether the limit allows one more than those that are done, and so many that are about to be.
    fn has_room(&self, about: usize) -> bool {
        self.options.limit.is_none_or(|limit| self.done.letters + about < limit)
    }

    /// Deals with letters that were taken together. Whatever happens, each of them is removed or kept.
    async fn some(&mut self, found: Vec<Found>) -> Result<(), QueueError> {
        let mut meant = Vec::new();
        for (letter, message) in found {
            if !self.options.filter.takes(&letter) {
                self.done.passed_over += 1;
                self.walk.keep(message);
            } else if self.stop.is_cancelled() || !self.has_room(meant.len()) {
                self.walk.keep(message);
            } else if self.options.dry_run {
                self.done.letters += 1;
                self.walk.keep(message);
            } else {
                meant.push(message);
            }
        }
        match self.deed {
            Deed::Redrive => self.send_home(meant).await,
            Deed::Purge => {
                self.done.letters += meant.len();
                self.done.letters -= self.walk.remove(meant).await;
                Ok(())
            }
        }
    }

    async fn send_home(&mut self, meant: Vec<Message>) -> Result<(), QueueError> {
        let most = self.options.rate.map_or(MAX_ENTRIES, |rate| usize::try_from(rate / 10).unwrap_or(MAX_ENTRIES));
        let (mut homeward, mut failed) = (Homeward::new(meant, self.sqs.is_fifo()), None);
        while let Some(batch) = homeward.batch(most) {
            if failed.is_some() || !self.turn(batch.len()).await {
                batch.into_iter().for_each(|message| self.walk.keep(message));
                continue;
            }
            let Arrival { arrived, refused, left, error } = home::send(self.sqs, self.home, batch).await;
            self.done.letters += arrived.len();
            // At once: what was sent is not to wait for the others with its removal.
            self.done.twice += self.walk.remove(arrived).await;
            for (message, code) in refused {
                let behind = homeward.behind(&message);
                self.done.refused += 1;
                self.done.behind += behind.len();
                self.done.refusal.get_or_insert(code);
                std::iter::once(message).chain(behind).for_each(|message| self.walk.keep(message));
            }
            left.into_iter().for_each(|message| self.walk.keep(message));
            failed = error;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Waits until it is the turn of so many letters; `false` if it was stopped before or meanwhile.
    async fn turn(&mut self, letters: usize) -> bool {
        if let Some(rate) = self.options.rate {
            self.stop.run_until_cancelled(sleep_until(self.next.into())).await;
            let letters = u32::try_from(letters).unwrap_or(u32::MAX);
            self.next = self.next.max(Instant::now()) + Duration::from_secs(1) * letters / rate.max(1);
        }
        !self.stop.is_cancelled()
    }
}
