//! Dead letters that are no events of an application: rows that their table does not take.

use super::{
    client::{QueueError, Sqs},
    letters,
    outbox::Origin,
    outgoing::{Draft, Outgoing},
    pending::{self, Destination, Item, MAX_BYTES, MAX_ENTRIES},
};
use crate::{
    event::{
        Version,
        envelope::{EventType, Place, Queue, Written},
    },
    retry::Kind,
};
use std::time::SystemTime;

/// Who has tried to write it.
const CLICKHOUSE: &str = "clickhouse";

/// A row that its table does not take.
#[derive(Clone, Debug)]
pub struct LostRow {
    /// What tells it from all others: the same each time it is sent.
    pub id: uuid::Uuid,
    /// What events call its table.
    pub table: String,
    /// The version that it would have.
    pub version: Version,
    /// When its transaction committed.
    pub time: SystemTime,
    /// The payload of its event.
    pub payload: String,
    /// Why it is not there, without any value.
    pub reason: String,
}

impl LostRow {
    /// The event that tells of it.
    pub fn letter(self, origin: &Origin) -> Outgoing {
        let draft = Draft {
            place: Place {
                system_identifier: origin.system_identifier,
                epoch: self.version.epoch(),
                commit: self.version.commit(),
                record: self.version.record(),
                written: Written::Change,
                ordinal: 0,
            },
            time: self.time,
            event_type: EventType::DatabaseChangeCaptured.name().to_owned(),
            version: None,
            id: Some(self.id.to_string()),
            key: None,
            correlation: None,
            service: origin.service.clone(),
            traceparent: None,
            table: Some(self.table),
            payload: self.payload,
        };
        let mut letter = draft.finish(None);
        letter.dead = Some(self.reason);
        letter.attributes.extend(letters::who(CLICKHOUSE, 1));
        letter
    }
}

/// Sends dead letters, and returns once each of them is in its queue.
///
/// # Errors
/// If it is not known of all of them; those that are there are sent again then.
pub async fn send_all(sqs: &Sqs, letters: Vec<Outgoing>) -> Result<(), QueueError> {
    let to = Destination { queue: Queue::DataSync, dead: true };
    let mut waiting: Vec<Outgoing> = letters.into_iter().rev().collect();
    while !waiting.is_empty() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(event) = waiting.pop() {
            let size = pending::size(&event);
            if batch.len() == MAX_ENTRIES || !batch.is_empty() && bytes + size > MAX_BYTES {
                waiting.push(event);
                break;
            }
            bytes += size;
            batch.push(Item { row: 0, event, bytes: size });
        }
        for (item, sent) in batch.iter().zip(sqs.send(to, &batch).await?) {
            match sent {
                Ok(()) => {}
                // What is left of it is who it was; the row itself is in the table of letters.
                Err(refusal) if refusal.of_the_message && !item.event.is_epitaph() => {
                    waiting.push(item.event.epitaph());
                }
                Err(refusal) => {
                    let message = format!("SQS did not take a message for {}: {}", sqs.name(to), refusal.code);
                    return Err(QueueError::new(Kind::Transient, message));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Epoch, Lsn};
    use std::{sync::Arc, time::UNIX_EPOCH};

    #[test]
    fn a_lost_row_is_a_change_with_its_own_version() {
        let origin = Origin {
            system_identifier: 1,
            epoch: Epoch(0),
            service: "shop".to_owned(),
            table: ("public".to_owned(), "outbox_event".to_owned()),
            published: Arc::default(),
        };
        let lost = LostRow {
            id: uuid::Uuid::from_u128(7),
            table: "sales_order".to_owned(),
            version: Version::new(Epoch(2), Lsn(0x200), Lsn(0x1F0)),
            time: UNIX_EPOCH,
            payload: r#"{"tableName":"sales_order","operation":"insert","after":{"id":"1"}}"#.to_owned(),
            reason: "column total: too large".to_owned(),
        };
        let letter = lost.letter(&origin);
        let body: serde_json::Value = serde_json::from_str(&letter.body).unwrap();
        assert_eq!(
            body["metadata"]["position"],
            serde_json::json!({"epoch": 2, "commitLsn": "0/200", "recordLsn": "0/1F0"})
        );
        assert_eq!((letter.queue, letter.dead.as_deref()), (Queue::DataSync, Some("column total: too large")));
        assert!(letter.attributes.contains(&("routingKey", "cdc.sales_order".to_owned())));
    }
}
