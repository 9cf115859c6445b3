//! The envelope of an event, the three kinds of it, and what every reader of one has to know.
//!
//! An event is written once, in the transaction of what it tells of, and then sent, received and handled any number of
//! times. So its id is where it stands in the WAL: a replay finds the same one, and every effect is idempotent by it.
//!
//! Versions: later ones 1.x only add, so a reader takes every 1.x and ignores what it does not know. Of another major
//! version it can not know what it means.

use super::{Epoch, Lsn};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr, time::Duration};
use uuid::Uuid;

/// The version in which walhouse writes events.
pub const VERSION: &str = "1.0";

/// An event, as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// What every event has.
    pub metadata: Metadata,
    /// What it tells, in the shape of its type; the very text that was written.
    pub payload: Box<RawValue>,
}

/// What every event has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The same however often the event is sent.
    pub event_id: String,
    /// The time of the commit, RFC 3339 in UTC.
    pub event_timestamp: String,
    /// The name of an [`EventType`].
    pub event_type: String,
    /// Major and minor, such as `1.0`.
    pub event_version: String,
    /// What belongs together, such as all that one request of a user has caused.
    pub correlation_id: String,
    /// Who wrote it.
    pub source_service: String,
    /// Where the change stands that the event tells of; of a DatabaseChangeCaptured alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub position: Option<Position>,
}

/// Where a change stands: what its row's version is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// The history that the positions belong to.
    pub epoch: u8,
    /// The LSN of the transaction's commit record.
    #[serde(with = "lsn_text")]
    pub commit_lsn: Lsn,
    /// The LSN of the change's own record.
    #[serde(with = "lsn_text")]
    pub record_lsn: Lsn,
}

mod lsn_text {
    use super::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventType {
    /// EVT-CDC-001: a row changed.
    DatabaseChangeCaptured,
    /// EVT-CMD-001: a user wants a report or an export.
    AsynchronousOperationRequested,
    /// EVT-DOM-001: something that an auditor will ask about.
    SecurityEventOccurred,
}

impl EventType {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::DatabaseChangeCaptured, Self::AsynchronousOperationRequested, Self::SecurityEventOccurred];

    /// Its name in metadata and attributes.
    pub fn name(self) -> &'static str {
        match self {
            Self::DatabaseChangeCaptured => "DatabaseChangeCaptured",
            Self::AsynchronousOperationRequested => "AsynchronousOperationRequested",
            Self::SecurityEventOccurred => "SecurityEventOccurred",
        }
    }

    /// The queue that it goes to.
    pub fn queue(self) -> Queue {
        match self {
            Self::DatabaseChangeCaptured => Queue::DataSync,
            Self::AsynchronousOperationRequested => Queue::AsyncOperations,
            Self::SecurityEventOccurred => Queue::AuditLog,
        }
    }

    /// Its routing key; that of a change has its table in it.
    pub fn routing_key(self, table: Option<&str>) -> String {
        match self {
            Self::DatabaseChangeCaptured => format!("cdc.{}", table.unwrap_or_default()),
            Self::AsynchronousOperationRequested => "async.operation".to_owned(),
            Self::SecurityEventOccurred => "audit.security".to_owned(),
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EventType {
    type Err = UnknownEventType;

    fn from_str(name: &str) -> Result<Self, UnknownEventType> {
        Self::ALL.into_iter().find(|of| of.name() == name).ok_or(UnknownEventType)
    }
}

/// A name that no event has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no event of that type: it is DatabaseChangeCaptured, AsynchronousOperationRequested or SecurityEventOccurred"
)]
pub struct UnknownEventType;

/// A queue with its dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// Changes of rows, for whoever wants them.
    DataSync,
    /// Reports and exports.
    AsyncOperations,
    /// What auditors will ask about.
    AuditLog,
}

/// How a message is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Twice as long each time, from so long on.
    Exponential(Duration),
    /// As long each time.
    Fixed(Duration),
}

impl Queue {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DataSync, Self::AsyncOperations, Self::AuditLog];

    /// What commands and metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::DataSync => "data-sync",
            Self::AsyncOperations => "async-operations",
            Self::AuditLog => "audit-log",
        }
    }

    /// Its name, without what a configuration puts in front.
    pub fn name(self) -> String {
        format!("{}-queue", self.label())
    }

    /// The name of the queue of its dead letters.
    pub fn dead_letters(self) -> String {
        format!("{}-dlq", self.label())
    }

    /// How often a message is tried again before it is a dead letter.
    pub fn retries(self) -> u32 {
        match self {
            Self::AsyncOperations => 2,
            Self::DataSync | Self::AuditLog => 3,
        }
    }

    /// How long a handler may take.
    pub fn timeout(self) -> Duration {
        Duration::from_secs(match self {
            Self::DataSync => 30,
            Self::AsyncOperations => 300,
            Self::AuditLog => 5,
        })
    }

    /// How long is waited before a message is tried again.
    pub fn schedule(self) -> Schedule {
        match self {
            Self::AsyncOperations => Schedule::Fixed(Duration::from_secs(10)),
            Self::DataSync | Self::AuditLog => Schedule::Exponential(Duration::from_secs(2)),
        }
    }
}

impl Schedule {
    /// How long is waited after this many tries, of which there was one at least.
    pub fn delay(self, tries: u32) -> Duration {
        match self {
            Self::Fixed(delay) => delay,
            Self::Exponential(first) => first.saturating_mul(1 << tries.saturating_sub(1).min(16)),
        }
    }
}

/// What an event was written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A row of the outbox table.
    Row,
    /// A logical message.
    Message,
    /// The change of a row that is published itself.
    Change,
}

/// Where an event stands in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cluster.
    pub system_identifier: u64,
    /// Its history.
    pub epoch: Epoch,
    /// The commit record of its transaction.
    pub commit: Lsn,
    /// Its own record. That of a message is the record's end, which is where the next row begins.
    pub record: Lsn,
    /// As what it was written.
    pub written: Written,
    /// Its number among those of one record and kind: a COPY puts many rows into one.
    pub ordinal: u32,
}

impl Place {
    /// The id of the event that stands here, the same in every replay.
    ///
    /// A UUID of version 8: a hash, of which nobody else's way to make ids gives the same.
    pub fn event_id(&self) -> Uuid {
        let kind = match self.written {
            Written::Row => 1,
            Written::Message => 2,
            Written::Change => 3,
        };
        let mut hash = self.transaction();
        hash.update(self.record.0.to_be_bytes());
        hash.update([kind]);
        hash.update(self.ordinal.to_be_bytes());
        uuid_of(hash)
    }

    /// What correlates the events of its transaction where nobody said what does.
    pub fn correlation_id(&self) -> Uuid {
        let mut hash = self.transaction();
        hash.update(b"correlation");
        uuid_of(hash)
    }

    fn transaction(&self) -> Sha256 {
        let mut hash = Sha256::new();
        hash.update(b"walhouse");
        hash.update(self.system_identifier.to_be_bytes());
        hash.update([self.epoch.0]);
        hash.update(self.commit.0.to_be_bytes());
        hash
    }
}

/// The id of an event that another one has as its consequence: the same however often the other is handled.
pub fn consequence_id(of: &Uuid, what: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"walhouse consequence");
    hash.update(of.as_bytes());
    hash.update(what);
    uuid_of(hash)
}

fn uuid_of(hash: Sha256) -> Uuid {
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        system_identifier: 7_300_000_000_000_000_001,
        epoch: Epoch(0),
        commit: Lsn(0x1_0000),
        record: Lsn(0x0_F000),
        written: Written::Row,
        ordinal: 0,
    };

    #[test]
    fn an_id_is_where_its_event_stands_and_nothing_else() {
        // As every version of walhouse has made it: a message that was sent by an older one is known again.
        assert_eq!(PLACE.event_id().to_string(), "a6eb083e-1eaf-8f92-98e2-90512285297f");
        let others = [
            Place { system_identifier: 1, ..PLACE },
            Place { epoch: Epoch(1), ..PLACE },
            Place { commit: Lsn(0x1_0001), ..PLACE },
            Place { record: Lsn(0x0_F001), ..PLACE },
            Place { written: Written::Message, ..PLACE },
            Place { written: Written::Change, ..PLACE },
            Place { ordinal: 1, ..PLACE },
        ];
        let mut ids: Vec<_> = others.iter().chain([&PLACE]).map(Place::event_id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), others.len() + 1);
    }

    #[test]
    fn a_consequence_has_one_id_of_its_own() {
        let (event, other) = (PLACE.event_id(), Place { ordinal: 1, ..PLACE }.event_id());
        assert_eq!(consequence_id(&event, "a").to_string(), "62559947-50ae-8a28-a7b7-329508bf8abc");
        let ids = [event, consequence_id(&event, "a"), consequence_id(&event, "b"), consequence_id(&other, "a")];
        assert!((0..4).all(|one| (0..one).all(|another| ids[one] != ids[another])), "{ids:?}");
    }

    #[test]
    fn the_events_of_a_transaction_share_their_correlation() {
        let other = Place { record: Lsn(0x0_F100), written: Written::Message, ordinal: 4, ..PLACE };
        assert_eq!(PLACE.correlation_id(), other.correlation_id());
        assert_ne!(PLACE.correlation_id(), Place { commit: Lsn(0x1_0001), ..PLACE }.correlation_id());
        assert_ne!(PLACE.correlation_id(), PLACE.event_id());
    }

    #[test]
    fn a_payload_travels_as_it_was_written() {
        let payload = r#"{"amount": 123456789012345678901234567890.10, "z": 1, "a": 2}"#;
        let metadata = Metadata {
            event_id: PLACE.event_id().to_string(),
            event_timestamp: "2026-01-01T00:00:00.000001Z".to_owned(),
            event_type: EventType::SecurityEventOccurred.name().to_owned(),
            event_version: VERSION.to_owned(),
            correlation_id: "c".to_owned(),
            source_service: "shop".to_owned(),
            position: None,
        };
        let envelope = Envelope { metadata, payload: RawValue::from_string(payload.to_owned()).unwrap() };
        let text = serde_json::to_string(&envelope).unwrap();
        assert!(text.contains(payload) && !text.contains("position"), "{text}");
        let back: Envelope = serde_json::from_str(&text).unwrap();
        assert_eq!((back.metadata, back.payload.get()), (envelope.metadata, payload));
    }

    #[test]
    fn retries_are_those_of_the_catalogue() {
        let delays = |queue: Queue| {
            (1..=queue.retries()).map(|tries| queue.schedule().delay(tries).as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(delays(Queue::DataSync), [2, 4, 8]);
        assert_eq!(delays(Queue::AuditLog), [2, 4, 8]);
        assert_eq!(delays(Queue::AsyncOperations), [10, 10]);
        assert_eq!(Queue::ALL.map(|queue| queue.timeout().as_secs()), [30, 300, 5]);
        for of in EventType::ALL {
            assert_eq!(of.name().parse(), Ok(of));
        }
        assert_eq!(Queue::AuditLog.name(), "audit-log-queue");
        assert_eq!(Queue::AuditLog.dead_letters(), "audit-log-dlq");
        assert_eq!(EventType::DatabaseChangeCaptured.routing_key(Some("sales_order")), "cdc.sales_order");
    }
}
