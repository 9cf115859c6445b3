//! Deletes what was handled, many messages at once.

use super::super::{client::Sqs, pending::Destination, pending::MAX_ENTRIES};
use crate::retry::Backoff;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

/// How long the first of a batch waits for others.
const COMPANY: Duration = Duration::from_millis(20);
/// Requests that are on their way at once.
const MAX_RUNNING: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Then the messages come again, and are known again by their events.
const TRIES: u32 = 6;

/// Runs until nobody can send it a receipt any more and all of them are dealt with.
pub(super) async fn run(sqs: Arc<Sqs>, from: Destination, mut receipts: mpsc::UnboundedReceiver<String>) {
    let mut running = JoinSet::new();
    while let Some(first) = receipts.recv().await {
        let (mut batch, deadline) = (vec![first], Instant::now() + COMPANY);
        while batch.len() < MAX_ENTRIES
            && let Ok(Some(receipt)) = timeout_at(deadline, receipts.recv()).await
        {
            batch.push(receipt);
        }
        if running.len() >= MAX_RUNNING {
            running.join_next().await;
        }
        running.spawn(delete(Arc::clone(&sqs), from, batch));
    }
    running.join_all().await;
}

async fn delete(sqs: Arc<Sqs>, from: Destination, mut receipts: Vec<String>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut why = String::new();
    while backoff.failures() < TRIES {
        match sqs.delete(from, &receipts).await {
            Ok(gone) => {
                let mut gone = gone.into_iter();
                receipts.retain(|_| match gone.next() {
                    Some(Err(refusal)) if !refusal.of_the_message => {
                        why = refusal.code;
                        true
                    }
                    // A receipt that is not taken any more is that of a message that came again.
                    _ => false,
                });
            }
            Err(error) => why = error.message,
        }
        if receipts.is_empty() {
            return;
        }
        sleep(backoff.next_delay()).await;
    }
    let queue = sqs.name(from);
    tracing::warn!(queue, messages = receipts.len(), why, "messages were handled and are not deleted; they come again");
}
