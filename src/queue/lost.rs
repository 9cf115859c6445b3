//! Dead letters that are no events of an application: rows that their table does not take.

use super::{
    claim::Claims,
    client::{QueueError, Refusal, Sqs},
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
pub async fn send_all(sqs: &Sqs, claims: &Claims, letters: Vec<Outgoing>) -> Result<(), QueueError> {
    let to = Destination { queue: Queue::DataSync, dead: true };
    let mut waiting: Vec<Outgoing> = letters.into_iter().rev().collect();
    let mut most = MAX_ENTRIES;
    while !waiting.is_empty() {
        let batch = next(claims, &mut waiting, most).await?;
        let sent = match sqs.send(to, &batch).await {
            // The queue takes less than SQS does. Together: nothing is known of any, and each goes by itself from now on. Alone:
            // by its reference.
            Err(error) if error.is_too_much && (batch.len() > 1 || !batch[0].event.refers()) => {
                let refused = Refusal { of_the_message: true, code: error.message };
                let sent = if batch.len() == 1 { vec![Err(refused)] } else { Vec::new() };
                most = 1;
                sent
            }
            sent => sent?,
        };
        let mut sent = sent.into_iter();
        for item in batch.into_iter().rev() {
            match sent.next_back() {
                Some(Ok(())) => {}
                Some(Err(refusal)) if !refusal.of_the_message || item.event.refers() => {
                    let message = format!("SQS did not take a message for {}: {}", sqs.name(to), refusal.code);
                    return Err(QueueError::new(Kind::Transient, message));
                }
                refused => {
                    let mut event = item.event;
                    if refused.is_some() {
                        refer(claims, &mut event).await?;
                    }
                    waiting.push(event);
                }
            }
        }
    }
    Ok(())
}

/// The next letters that go together, of which what is too large is in the store by then.
async fn next(claims: &Claims, waiting: &mut Vec<Outgoing>, most: usize) -> Result<Vec<Item>, QueueError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(mut event) = waiting.pop() {
        if pending::size(&event) > MAX_BYTES {
            refer(claims, &mut event).await?;
        }
        let size = pending::size(&event);
        if batch.len() == most || !batch.is_empty() && bytes + size > MAX_BYTES {
            waiting.push(event);
            break;
        }
        bytes += size;
        batch.push(Item { row: 0, event, bytes: size, committed: None });
    }
    Ok(batch)
}

/// Has its payload put into the store.
async fn refer(claims: &Claims, event: &mut Outgoing) -> Result<(), QueueError> {
    let claim = claims.put(&event.body).await;
    event.refer(claim.map_err(|error| QueueError::new(Kind::Transient, error.to_string()))?);
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
