//! Events of walhouse's own, which do not come out of the WAL: each is sent by whoever makes it, who waits for it.

use super::{
    client::Sqs,
    outgoing::Outgoing,
    pending::{Destination, Item},
};
use crate::retry::Backoff;
use std::time::Duration;

const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Sqs {
    /// Sends an event to its queue.
    ///
    /// # Errors
    /// Why SQS does not take it, after some tries. It may be there all the same, if only the answers were lost.
    pub async fn tell(&self, event: Outgoing) -> Result<(), String> {
        let to = Destination { queue: event.queue, dead: false };
        let items = [Item { row: 0, bytes: event.body.len(), event, committed: None }];
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let why = match self.send(to, &items).await.map(|sent| sent.into_iter().next()) {
                Ok(Some(Ok(()))) => return Ok(()),
                Ok(Some(Err(refusal))) => refusal.code,
                Ok(None) => "no answer".to_owned(),
                Err(error) => error.message,
            };
            if backoff.failures() + 1 >= TRIES {
                return Err(why);
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}
