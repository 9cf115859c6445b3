//! The claim check: what is too large for a queue is put into the object store, and its message refers to it.
//!
//! The object is there, whole, before the message is sent. Its key follows from the event's id and from what is in it, so a replay
//! writes the same object once more, and two payloads that share an id do not meet. Nobody removes objects here: a message may be
//! there twice, and a dead letter may be sent home weeks later. The store's own rule for old objects does (docs/events.md).
//!
//! A reference is what a message says, and anybody who may send messages can say anything. So it is followed within the
//! configured store alone, to payloads alone, and what is there counts only if it has the length and the hash that it says.

mod form;

use crate::{
    config::ObjectsConfig,
    store::{ReadError, Store, StoreError},
    telemetry::names,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

pub use form::{FOLDER, Reference, Referred};
use form::{Split, hex, is_key};

/// The attribute that says that a message refers to its payload: how many bytes that has.
pub const ATTRIBUTE: &str = "payloadBytes";
/// What is hashed or handed over at once; others have their turn in between.
const PIECE: usize = 1 << 20;
const JSON: &str = "application/json";

/// Why a payload can not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It never will be.
    #[error("{0}")]
    Definite(String),
    /// It is not there.
    #[error("{0}")]
    Missing(String),
    /// The store is away, whatever the payload.
    #[error("{0}")]
    Away(String),
}

/// What refers to a message that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is sent in place of the message.
    pub body: String,
    /// The value of [`ATTRIBUTE`].
    pub bytes: String,
}

/// The store, as a place for payloads.
pub struct Claims {
    config: ObjectsConfig,
    /// Opened with the first payload: where none is ever too large, nobody misses it.
    store: OnceCell<Store>,
}

impl Claims {
    /// The configured store; nothing is opened yet.
    pub fn new(config: &ObjectsConfig) -> Self {
        Self { config: config.clone(), store: OnceCell::new() }
    }

    /// Whether the store can be used.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub async fn ready(&self) -> Result<(), String> {
        self.store().await.map_err(|error| error.to_string())?.ready().await
    }

    async fn store(&self) -> Result<&Store, StoreError> {
        self.store.get_or_try_init(async || Store::new(&self.config)).await
    }

    /// Puts what is too large of a message into the store, and returns what is to be sent in its place once it is there.
    ///
    /// # Errors
    /// If it is not known to be there.
    pub async fn put(&self, body: &str) -> Result<Claim, StoreError> {
        let put = self.put_once(body).await;
        if put.is_err() {
            metrics::counter!(names::PAYLOAD_ERRORS, "request" => "write").increment(1);
        }
        put
    }

    async fn put_once(&self, body: &str) -> Result<Claim, StoreError> {
        let store = self.store().await?;
        let split = Split::new(body);
        let digest = hex(&digest(split.object).await);
        let key = split.key(&digest);
        let mut object = store.write(&key, JSON).await?;
        for piece in split.object.as_bytes().chunks(PIECE) {
            object.put(Bytes::copy_from_slice(piece)).await?;
        }
        object.finish().await?;
        metrics::counter!(names::PAYLOADS_STORED).increment(1);
        let bytes = split.object.len() as u64;
        let reference = Reference { location: store.location(&key), bytes, sha256: digest };
        tracing::debug!(
            bytes,
            location = reference.location,
            "a payload is too large for a queue, and is in the store"
        );
        Ok(Claim { body: split.message(&reference), bytes: bytes.to_string() })
    }

    /// What a reference refers to, if it has up to `most` bytes.
    ///
    /// # Errors
    /// If it is not there, is not what the reference says, or is not to be read because a message says so.
    pub async fn fetch(&self, reference: &Reference, most: u64) -> Result<String, FetchError> {
        let fetched = self.fetch_once(reference, most).await;
        if matches!(fetched, Err(FetchError::Missing(_) | FetchError::Away(_))) {
            metrics::counter!(names::PAYLOAD_ERRORS, "request" => "read").increment(1);
        }
        fetched
    }

    async fn fetch_once(&self, reference: &Reference, most: u64) -> Result<String, FetchError> {
        let Reference { location, bytes, sha256 } = reference;
        let store = self.store().await.map_err(|error| FetchError::Away(error.to_string()))?;
        let outside = || {
            FetchError::Definite(format!(
                "its payloadReference names {}, which is no payload in the configured objects.url: nothing else is read \
                 because a message says so",
                shown(location)
            ))
        };
        let key = store.key_of(location).filter(|key| is_key(key)).ok_or_else(outside)?;
        if *bytes > most {
            return Err(FetchError::Definite(format!(
                "its payload of {bytes} bytes at {location} is larger than workers.max_payload, {most} bytes: raise that, \
                 and send it home"
            )));
        }
        let failed = |error: ReadError| match error {
            ReadError::Missing => FetchError::Missing(format!("its payload is not there: {location}")),
            ReadError::Away(why) => FetchError::Away(why),
        };
        let size = store.size(key).await.map_err(failed)?;
        if size != *bytes {
            return Err(FetchError::Definite(format!(
                "its payload was tampered with: {location} has {size} bytes, and not {bytes}"
            )));
        }
        let (mut payload, mut hash) = (Vec::with_capacity(usize::try_from(size).unwrap_or_default()), Sha256::new());
        while (payload.len() as u64) < size {
            let part = store.part(key, payload.len() as u64, size).await.map_err(failed)?;
            if part.is_empty() {
                return Err(FetchError::Away(format!("{location} ended before its end")));
            }
            hash.update(&part);
            payload.extend_from_slice(&part);
        }
        if hex(&hash.finalize()) != *sha256 {
            return Err(FetchError::Definite(format!(
                "its payload was tampered with: {location} has not the SHA-256 that its message says"
            )));
        }
        String::from_utf8(payload)
            .map_err(|_| FetchError::Definite(format!("its payload is no text in UTF-8: {location}")))
    }
}

/// What a message says of a place, as far as a reason can take it.
fn shown(location: &str) -> String {
    location.chars().take(256).collect()
}

async fn digest(text: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    for piece in text.as_bytes().chunks(PIECE) {
        hash.update(piece);
        tokio::task::yield_now().await;
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests;
