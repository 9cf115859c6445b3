//! The payload of an event whose message refers to it.
//!
//! - What is not what its message says, or is nowhere where payloads are, never will be: a definite failure.
//! - What is not there: an object is there before its message is sent, so somebody has removed it, or the store is not
//!   the one that it was written to, or shows it late. The queue's own tries are what that is given; then it is a dead letter, which
//!   can be sent home once the object is back.
//! - A store that is away is waited for, with the message in hand: that uses up no try. It does not open the circuit, since
//!   events that have their payload with them need no store. As for what a handler depends on, an event that fails while
//!   others are served fails by itself.
//!
//! A large payload is several times in memory while it is handled, so there is room for [`ROOM`] bytes of them at a time; a larger
//! one is let through alone.

use super::{BY_ITSELF, Consumer, FIRST_PAUSE, HandleError, LONGEST_PAUSE};
use crate::{
    event::{envelope::EventType, schema},
    lane::{Room, Share},
    queue::claim::{Claims, FetchError, Reference},
    retry::{Backoff, Reminder},
};
use serde_json::value::RawValue;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio::time::sleep;

/// Bytes of payloads from the store that are handled at a time.
const ROOM: usize = 16 << 20;
/// A handler has a second more for so many bytes.
const BYTES_A_SECOND: u64 = 4 << 20;

/// How much longer the handling of an event may take for a payload of so many bytes.
pub fn more_time(bytes: u64) -> Duration {
    Duration::from_secs(bytes / BYTES_A_SECOND)
}

/// Payloads from the store, for one consumer.
pub(super) struct Payloads {
    claims: Arc<Claims>,
    /// The largest that is handled, in bytes.
    most: u64,
    room: Room,
    /// How many came so far.
    served: AtomicU64,
    reminder: Mutex<Reminder>,
}

/// A payload, and the room that it takes while it is handled.
pub(super) struct Fetched {
    pub(super) payload: Box<RawValue>,
    pub(super) share: Share,
}

impl Payloads {
    pub(super) fn new(claims: Arc<Claims>, most: u64) -> Self {
        Self { claims, most, room: Room::new(ROOM), served: AtomicU64::new(0), reminder: Mutex::default() }
    }

    /// The store itself.
    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }

    async fn text(&self, worker: &str, reference: &Reference) -> Result<String, HandleError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let (mut others, mut by_itself) = (self.served.load(Ordering::Relaxed), 0);
        loop {
            let why = match self.claims.fetch(reference, self.most).await {
                Ok(text) => {
                    self.served.fetch_add(1, Ordering::Relaxed);
                    return Ok(text);
                }
                Err(FetchError::Definite(why)) => return Err(HandleError::Definite(why)),
                Err(FetchError::Missing(why)) => return Err(HandleError::Transient(why)),
                Err(FetchError::Away(why)) => why,
            };
            let before = std::mem::replace(&mut others, self.served.load(Ordering::Relaxed));
            by_itself += u32::from(others > before);
            if by_itself == BY_ITSELF {
                return Err(HandleError::Transient(why));
            }
            if self.reminder.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now()) {
                tracing::warn!(
                    worker,
                    why,
                    "events whose payload is in the object store wait; none of their tries is used up"
                );
            }
            sleep(backoff.next_delay().max(FIRST_PAUSE)).await;
        }
    }
}

impl Consumer {
    /// Gets the payload of an event, once there is room for it.
    pub(super) async fn fetch(&self, of: EventType, reference: &Reference) -> Result<Fetched, HandleError> {
        let payloads = &self.payloads;
        let bytes = usize::try_from(reference.bytes.min(payloads.most)).unwrap_or(usize::MAX);
        let share = payloads.room.take(bytes).await;
        let text = payloads.text(self.handler.name(), reference).await?;
        schema::check_payload(of, &text).map_err(|misfit| HandleError::Definite(misfit.to_string()))?;
        let payload = RawValue::from_string(text);
        let payload = payload.map_err(|error| HandleError::Definite(format!("its payload is no JSON: {error}")))?;
        Ok(Fetched { payload, share })
    }
}
