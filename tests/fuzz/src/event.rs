//! Events as they come from an outbox or a queue: anybody may have written them.
//!
//! What has the shape of an event can be read by all who read events, and means to them what it says; what it is checked with
//! takes no more memory than some times its length; and nothing of a value is in the error of one that is refused.

use super::alloc::peak;
use serde_json::{Map, Value, value::RawValue};
use std::sync::Once;
use walhouse::{
    event::{
        envelope::{Envelope, EventType},
        schema::{self, Misfit, Shape},
    },
    queue::{
        claim::Referred,
        consumer::{Event, HandleError},
    },
    workers::{audit, data_sync},
};

/// A value of one letter in a list is as large as any other: some 32 bytes, and twice that while the list grows. Then its
/// place is told, or it is counted among others.
const TIMES: usize = 200;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    static SCHEMAS: Once = Once::new();
    SCHEMAS.call_once(|| drop(schema::check_message("{}")));
    let (checked, bytes) = peak(|| schema::check_message(text));
    assert!(bytes <= TIMES * text.len() + (64 << 10), "{bytes} bytes for {}", text.len());
    let whole = schema::check_event(text);
    match checked {
        Ok(Shape::Whole(of)) => {
            assert_eq!(whole, Ok(of), "what a queue may hold, an outbox may");
            taken(of, text);
        }
        Ok(Shape::Reference(of)) => {
            assert!(whole.is_err(), "what refers to its payload is no event yet");
            let body: Value = serde_json::from_str(text).unwrap();
            assert_eq!(body["metadata"]["eventType"], of.name());
            assert!(matches!(Referred::of(&body), Some(Referred::Payload(_))), "a reference that was checked is one");
        }
        Err(misfit) => refused(&misfit, text),
    }
}

/// The longest text of the input that is not in every error anyway is not in this one.
fn refused(misfit: &Misfit, text: &str) {
    let (Ok(body), Misfit::Shape { .. }) = (serde_json::from_str::<Value>(text), misfit) else { return };
    let told = misfit.to_string();
    let hidden = |value: &Value| value.as_str().is_some_and(|value| value.contains("canary") && told.contains(value));
    let keys = text.contains("canary\":") || text.contains("canary\" :");
    assert!(keys || !any(&body, &hidden), "a value is in an error: {told}");
}

fn any(value: &Value, of: &impl Fn(&Value) -> bool) -> bool {
    of(value)
        || match value {
            Value::Array(items) => items.iter().any(|item| any(item, of)),
            Value::Object(fields) => fields.values().any(|field| any(field, of)),
            _ => false,
        }
}

fn taken(of: EventType, text: &str) {
    let envelope = match serde_json::from_str::<Envelope>(text) {
        Ok(envelope) => envelope,
        // Of a field that is there twice a schema sees the last one, and a reader refuses both.
        Err(error) => return assert!(repeats(text), "{error}"),
    };
    let metadata = &envelope.metadata;
    assert_eq!(metadata.event_type.parse(), Ok(of));
    assert!(metadata.event_version.starts_with("1.") && schema::is_version(&metadata.event_version));
    assert_eq!(metadata.event_id.len(), 36);
    let payload = envelope.payload.get();
    assert_eq!(schema::check_payload(of, payload), Ok(()));
    let again = serde_json::to_string(&envelope).unwrap();
    assert!(again.contains(payload), "a payload travels as the text that it is");
    assert_eq!(schema::check_message(&again), Ok(Shape::Whole(of)), "what is sent on has the shape of what came");
    let back: Envelope = serde_json::from_str(&again).unwrap();
    assert!(back.metadata == envelope.metadata && back.payload.get() == payload);
    let fields = fields(payload);
    let event = Event { of, envelope, traceparent: None, is_last: false };
    match of {
        EventType::SecurityEventOccurred => audited(&event, &fields),
        EventType::DatabaseChangeCaptured => resent(&event, &fields),
        EventType::AsynchronousOperationRequested => {}
    }
}

/// Whether an object outside of what no schema looks into has two fields of one name.
fn repeats(text: &str) -> bool {
    struct Names(Vec<(String, Box<RawValue>)>);
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Names;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
            let mut names = Vec::new();
            while let Some(field) = map.next_entry()? {
                names.push(field);
            }
            Ok(Names(names))
        }
    }
    impl<'de> serde::Deserialize<'de> for Names {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Visitor)
        }
    }
    let Ok(Names(fields)) = serde_json::from_str(text) else { return false };
    let names: std::collections::BTreeSet<_> = fields.iter().map(|(name, _)| name).collect();
    names.len() < fields.len() || fields.iter().any(|(_, field)| repeats(field.get()))
}

/// The payload's fields, each as its text; of two with one name the later one.
fn fields(payload: &str) -> Map<String, Value> {
    let fields: std::collections::BTreeMap<String, Box<RawValue>> = serde_json::from_str(payload).unwrap();
    fields.into_iter().map(|(name, field)| (name, Value::String(field.get().to_owned()))).collect()
}

/// A text of the payload, if it has one of that name.
fn text_of(fields: &Map<String, Value>, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.as_str()?).ok()
}

fn audited(event: &Event, fields: &Map<String, Value>) {
    let row = match audit::row(event) {
        Ok(row) => row,
        Err(error) => return definite(&error),
    };
    assert_eq!(row.iter().filter(|&&byte| byte == b'\n').count(), 1, "a row is one line");
    let row: Map<String, Value> = serde_json::from_slice(&row).unwrap();
    let metadata = &event.envelope.metadata;
    for (column, expected) in [
        ("event_id", Some(metadata.event_id.clone())),
        ("correlation_id", Some(metadata.correlation_id.clone())),
        ("event_timestamp", Some(metadata.event_timestamp.clone())),
        ("source_service", Some(metadata.source_service.clone())),
        ("event_type", text_of(fields, "eventType")),
        ("acting_user_id", text_of(fields, "actingUserId")),
        ("outcome", text_of(fields, "outcome")),
        ("merchant_account_id", Some(text_of(fields, "merchantAccountId").unwrap_or_default())),
        ("target_resource", text_of(fields, "targetResource")),
    ] {
        assert_eq!(row[column].as_str(), expected.as_deref(), "{column}");
    }
    let details = fields.get("details").and_then(Value::as_str).filter(|details| *details != "null");
    assert_eq!(row["details"].as_str(), Some(details.unwrap_or("{}")));
    assert_eq!(row.len(), 10);
}

fn resent(event: &Event, fields: &Map<String, Value>) {
    let resent = match data_sync::resent(event) {
        Ok(resent) => resent,
        Err(error) => return definite(&error),
    };
    let position = event.envelope.metadata.position.unwrap();
    assert_eq!((resent.commit, resent.record), (position.commit_lsn, position.record_lsn));
    assert_eq!(Some(resent.table), text_of(fields, "tableName"));
    for (name, row) in [("before", resent.before), ("after", resent.after)] {
        let text = fields.get(name).and_then(Value::as_str).unwrap_or("null");
        let expected: Option<std::collections::BTreeMap<String, Box<RawValue>>> = serde_json::from_str(text).unwrap();
        let value = |value: Box<RawValue>| match value.get() {
            "null" => None,
            "true" => Some("t".to_owned()),
            "false" => Some("f".to_owned()),
            text if text.starts_with('"') => Some(serde_json::from_str(text).expect("a text that is none is refused")),
            text => Some(text.to_owned()),
        };
        let expected = expected.map(|row| row.into_iter().map(|(name, text)| (name, value(text))).collect::<Vec<_>>());
        assert_eq!(row.map(|row| row.into_iter().collect::<Vec<_>>()), expected);
    }
}

/// What can not be read now never can.
fn definite(error: &HandleError) {
    assert!(matches!(error, HandleError::Definite(_)), "{error}");
}
