//! From a message to the event that it holds, and to a dead letter if that can not be handled.

use super::{Consumer, DEAD, Event};
use crate::{
    event::{
        envelope::{Envelope, Metadata, Queue},
        schema::{self, Shape},
    },
    queue::{
        claim::{ATTRIBUTE, Reference},
        letters,
        messages::Message,
        pending::{Destination, MAX_BYTES},
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// What a message holds.
pub(super) struct Read {
    pub(super) event: Event,
    /// Where its payload is, if it is not in the event.
    pub(super) reference: Option<Reference>,
}

/// An event that refers to its payload.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referring {
    metadata: Metadata,
    payload_reference: Reference,
}

/// The event that a message holds, if it is one of this queue.
pub(super) fn read(queue: Queue, message: &Message, retries: u32) -> Result<Read, String> {
    let shape = schema::check_message(&message.body).map_err(|misfit| misfit.to_string())?;
    let (Shape::Whole(of) | Shape::Reference(of)) = shape;
    if of.queue() != queue {
        return Err(format!("{of} does not belong into {}", queue.name()));
    }
    let no_event = |error: serde_json::Error| format!("it is no event: {error}");
    let (envelope, reference) = match shape {
        Shape::Whole(_) => (serde_json::from_str(&message.body).map_err(no_event)?, None),
        Shape::Reference(_) => {
            let Referring { metadata, payload_reference } = serde_json::from_str(&message.body).map_err(no_event)?;
            (Envelope { metadata, payload: RawValue::NULL.to_owned() }, Some(payload_reference))
        }
    };
    let traceparent = message.attributes.get("traceparent").cloned();
    Ok(Read { event: Event { of, envelope, traceparent, is_last: message.taken > retries }, reference })
}

impl Consumer {
    /// Makes a dead letter of a message.
    pub(super) async fn bury(&self, message: &Message, why: &str) -> &'static str {
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
