//! How a message looks whose payload is in the store, and what of it goes there.
//!
//! An event's payload goes there by itself, as the very text that it is in the message, and the metadata stays where every
//! reader looks for it. What is no event, or has so much beside its payload that no queue takes that either, goes there whole:
//! it can only be a dead letter, and nothing of it is lost.

use super::super::outgoing::legal;
use serde::{Deserialize, Serialize};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Below it all payloads are, each in a folder of its event's day. What is there expires, so nothing else belongs there.
pub const FOLDER: &str = "payloads";
/// What of a payload's hash is in its key: two payloads of one event's id do not meet.
const HASH_DIGITS: usize = 16;
/// So many bytes may stand beside a payload in a message.
const LONGEST_REST: usize = 64 << 10;
/// So many characters of each field are told of what went into the store whole.
const LONGEST_FIELD: usize = 256;
const METADATA: &str = "metadata";
const PAYLOAD: &str = "payload";
const PAYLOAD_REFERENCE: &str = "payloadReference";
const EVENT_REFERENCE: &str = "eventReference";
const TOLD: [&str; 6] = ["eventId", "eventTimestamp", "eventType", "eventVersion", "correlationId", "sourceService"];

/// Where the payload of an event is, and how it is known to be that one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// `s3://…` or `file://…`.
    pub location: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// What a message refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Referred {
    /// An event's payload.
    Payload(Reference),
    /// All that would be in the message.
    Event(Reference),
}

impl Referred {
    /// What the body of a message refers to, if it does.
    pub fn of(body: &Value) -> Option<Self> {
        let read = |name: &str| body.get(name).and_then(|found| Reference::deserialize(found).ok());
        if body.get(PAYLOAD).is_some() {
            return None;
        }
        read(PAYLOAD_REFERENCE).map(Self::Payload).or_else(|| read(EVENT_REFERENCE).map(Self::Event))
    }

    /// Where it is.
    pub fn reference(&self) -> &Reference {
        let (Self::Payload(reference) | Self::Event(reference)) = self;
        reference
    }
}

/// A message in two: what goes into the store, and what refers to it.
pub(super) struct Split<'a> {
    /// What goes into the store.
    pub(super) object: &'a str,
    field: &'static str,
    rest: BTreeMap<String, Box<RawValue>>,
}

/// Of an event's metadata, what names its object.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    event_id: String,
    event_timestamp: String,
}

impl<'a> Split<'a> {
    pub(super) fn new(body: &'a str) -> Self {
        let fields: BTreeMap<String, &'a RawValue> = serde_json::from_str(body).unwrap_or_default();
        let rest: usize = fields.iter().filter(|(name, _)| *name != PAYLOAD).map(|(_, field)| field.get().len()).sum();
        match fields.get(PAYLOAD) {
            Some(payload) if rest <= LONGEST_REST => {
                let rest = fields.iter().filter(|(name, _)| *name != PAYLOAD && *name != PAYLOAD_REFERENCE);
                let rest = rest.map(|(name, field)| (name.clone(), (*field).to_owned())).collect();
                Self { object: payload.get(), field: PAYLOAD_REFERENCE, rest }
            }
            _ => {
                let metadata: BTreeMap<String, Value> =
                    fields.get(METADATA).and_then(|field| serde_json::from_str(field.get()).ok()).unwrap_or_default();
                let told = TOLD.iter().filter_map(|name| {
                    let text: String = metadata.get(*name)?.as_str()?.chars().take(LONGEST_FIELD).collect();
                    Some((*name, text))
                });
                let told: BTreeMap<_, _> = told.collect();
                let rest = BTreeMap::from([(METADATA.to_owned(), raw(&told))]);
                Self { object: body, field: EVENT_REFERENCE, rest }
            }
        }
    }

    /// Where its object is, the same each time; `digest` is that of the object.
    pub(super) fn key(&self, digest: &str) -> String {
        let metadata = self.rest.get(METADATA);
        let named: Named = metadata.and_then(|field| serde_json::from_str(field.get()).ok()).unwrap_or_default();
        let (day, id) = (day(&named.event_timestamp), name(&named.event_id));
        format!("{FOLDER}/{day}/{id}-{}.json", &digest[..HASH_DIGITS])
    }

    /// What is sent in its place.
    pub(super) fn message(mut self, reference: &Reference) -> String {
        self.rest.insert(self.field.to_owned(), raw(reference));
        legal(serde_json::to_string(&self.rest).expect("a map of JSON is JSON"))
    }
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("texts and numbers are JSON")
}

/// Whether a key is one that [`Split::key`] may give: nothing else in the store is read because a message says so.
pub(super) fn is_key(key: &str) -> bool {
    let parts: Vec<_> = key.split('/').collect();
    matches!(parts[..], [FOLDER, _, file] if file.ends_with(".json"))
}

fn day(timestamp: &str) -> &str {
    let day = timestamp.get(..10).filter(|day| {
        let digit =
            |(place, byte): (usize, u8)| if matches!(place, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() };
        day.bytes().enumerate().all(digit)
    });
    day.unwrap_or("undated")
}

/// An id as a part of a key; what has other characters than a UUID's, or too many, is its hash.
fn name(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=64).contains(&id.len()) && id.bytes().all(plain) {
        return id.to_owned();
    }
    hex(&Sha256::digest(id))[..32].to_owned()
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reference() -> Reference {
        Reference { location: "file:///objects/x".to_owned(), bytes: 7, sha256: "0".repeat(64) }
    }

    fn split(body: &str) -> (String, String, Value) {
        let split = Split::new(body);
        let (object, key) = (split.object.to_owned(), split.key(&"ab".repeat(32)));
        (object, key, serde_json::from_str(&split.message(&reference())).unwrap())
    }

    #[test]
    fn a_payload_goes_as_its_own_text_and_the_rest_stays() {
        let payload = r#"{"z": 1.50, "a": "\u0041\ud83d\ude00"}"#;
        let body = format!(
            r#"{{"metadata": {{"eventId":"018f3b5e-7c1a","eventTimestamp":"2026-03-14T15:09:26Z","tenant":12345678901234567890.10}}, "payload": {payload}, "extra": [1.0]}}"#
        );
        let (object, key, message) = split(&body);
        assert_eq!(
            (object.as_str(), key.as_str()),
            (payload, "payloads/2026-03-14/018f3b5e-7c1a-abababababababab.json")
        );
        assert_eq!(message["metadata"]["eventId"], "018f3b5e-7c1a");
        assert_eq!((&message["extra"], message.get("payload")), (&json!([1.0]), None));
        assert_eq!(Referred::of(&message), Some(Referred::Payload(reference())));
        let text = Split::new(&body).message(&reference());
        assert!(text.contains("12345678901234567890.10"), "{text}");
    }

    #[test]
    fn what_is_too_large_beside_its_payload_and_what_is_no_event_goes_whole() {
        let long = json!({"metadata": {"eventId": "e1", "correlationId": "x".repeat(100_000)}, "payload": {"a": 1}})
            .to_string();
        for (body, id) in
            [(long.as_str(), Some("e1")), ("no JSON at all", None), ("[1, 2]", None), (r#"{"a": 1}"#, None)]
        {
            let (object, key, message) = split(body);
            assert_eq!((object.as_str(), message["metadata"]["eventId"].as_str()), (body, id));
            assert!(message.to_string().len() < 2_000 && is_key(&key), "{key}: {message}");
            assert_eq!(Referred::of(&message), Some(Referred::Event(reference())));
        }
    }

    #[test]
    fn a_key_has_nothing_of_an_id_that_leads_elsewhere() {
        for id in ["../../../etc/passwd", "a/b", "..", "", "größe", &"x".repeat(65)] {
            let body = json!({"metadata": {"eventId": id, "eventTimestamp": "../../etc/x"}, "payload": {}}).to_string();
            let (_, key, _) = split(&body);
            assert!(
                key.starts_with("payloads/undated/") && key.matches('/').count() == 2 && !key.contains(".."),
                "{key}"
            );
            assert!(is_key(&key));
        }
        for key in [
            "payloads/2026-01-01/a.csv",
            "merchant/a.json",
            "payloads/a.json",
            "payloads/a/b/c.json",
            "x/payloads/a/b.json",
        ] {
            assert!(!is_key(key), "{key}");
        }
    }

    #[test]
    fn a_message_that_has_its_payload_refers_to_nothing() {
        let both = json!({"payload": {}, "payloadReference": reference()});
        assert_eq!(Referred::of(&both), None);
        assert_eq!(Referred::of(&json!({"payloadReference": {"location": 7}})), None);
        assert_eq!(Referred::of(&json!("payloadReference")), None);
    }
}
