//! What becomes of a message once its handler has said how it went.

use super::{Consumer, DEAD, GRACE, HandleError, LONG_POLL, MARGIN, Outcome};
use crate::{
    event::envelope::Schedule,
    queue::{
        claim::ATTRIBUTE,
        letters,
        messages::Message,
        pending::{Destination, MAX_BYTES},
    },
};
use std::time::Duration;
use tokio::time::Instant;

/// For so long SQS hides a message, counted from when it was taken; and what a request may take of that.
const LONGEST_HIDDEN: Duration = Duration::from_secs(12 * 3600);
const ON_ITS_WAY: Duration = Duration::from_secs(60);

impl Consumer {
    /// Does what an outcome asks for, and says in a word what that was.
    pub(super) async fn settle(&self, message: &Message, begun: Instant, outcome: Outcome) -> &'static str {
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
            Outcome::Buried => {
                tracing::info!("an event with this id is a dead letter already; this one is left out");
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
        let to = Destination { queue: self.queue, dead: true };
        match self.pass_on(to, message, why).await {
            Ok(()) => {
                tracing::error!(why, tries = message.taken, queue = self.sqs.name(to), "an event is a dead letter");
                let _ = self.handled.send(message.receipt.clone());
                DEAD
            }
            Err(error) => {
                // It comes again, and SQS itself moves it once it has come too often.
                tracing::warn!(why, error, "an event should be a dead letter and can not be made one");
                "again"
            }
        }
    }

    async fn pass_on(&self, to: Destination, message: &Message, why: &str) -> Result<(), String> {
        let mut with = letters::marks(why, self.handler.name(), message.taken).to_vec();
        // Another one each time: what comes back a second time within five minutes is not to vanish.
        let once = format!("{}-{}", message.id, message.taken);
        if message.size(&with) <= MAX_BYTES {
            return self.sqs.pass_on(to, message, &with, once).await.map_err(|error| error.to_string());
        }
        // There is room for the message, and none for its marks.
        let claim = self.payloads.claims().put(&message.body).await.map_err(|error| error.to_string())?;
        with.push((ATTRIBUTE, claim.bytes));
        let message = Message { body: claim.body, ..message.clone() };
        self.sqs.pass_on(to, &message, &with, once).await.map_err(|error| error.to_string())
    }
}

/// How long a message stays hidden after so many tries: the schedule's delay and up to a quarter of it, as far as SQS can.
fn delay(schedule: Schedule, tries: u32, jitter: f64, in_hand: Duration) -> Duration {
    let longest = LONGEST_HIDDEN.saturating_sub(in_hand + ON_ITS_WAY);
    let delay = schedule.delay(tries).min(LONGEST_HIDDEN);
    delay.mul_f64(1.0 + jitter / 4.0).min(longest)
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
