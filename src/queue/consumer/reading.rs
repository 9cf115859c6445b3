//! From a message to the event that it holds.

use super::Event;
use crate::{
    event::{
        envelope::{Envelope, Metadata, Queue},
        schema::{self, Shape},
    },
    queue::{claim::Reference, messages::Message},
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
