//! Whether an event has the shape of its type: what `config/events/` says, as the applications that write events read it.

use super::{envelope::EventType, outline};
use jsonschema::Validator;
use serde_json::Value;
use std::sync::LazyLock;

const ENVELOPE: &str = include_str!("../../config/events/1.0/envelope.json");
const REFERENCE: &str = include_str!("../../config/events/1.0/envelope.reference.json");
const DATABASE_CHANGE: &str = include_str!("../../config/events/1.0/DatabaseChangeCaptured.json");
const OPERATION: &str = include_str!("../../config/events/1.0/AsynchronousOperationRequested.json");
const SECURITY: &str = include_str!("../../config/events/1.0/SecurityEventOccurred.json");

static VALIDATORS: LazyLock<Validators> = LazyLock::new(|| Validators {
    envelope: validator(ENVELOPE),
    reference: validator(REFERENCE),
    database_change: validator(DATABASE_CHANGE),
    operation: validator(OPERATION),
    security: validator(SECURITY),
});

struct Validators {
    envelope: Validator,
    reference: Validator,
    database_change: Validator,
    operation: Validator,
    security: Validator,
}

/// Why an event is not one that its readers understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Json(String),
    /// It is of a version whose meaning is not known.
    #[error("its version is {0}, and only 1.x is understood")]
    Version(String),
    /// It has another shape. The place in it, and what is expected there; never a value.
    #[error("{place}: {expected}")]
    Shape {
        /// A JSON pointer; `/` for the whole.
        place: String,
        /// What is wrong there.
        expected: String,
    },
}

/// What has the shape of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A whole event of this type.
    Whole(EventType),
    /// An event of this type whose payload is elsewhere: that is still to be checked.
    Reference(EventType),
}

/// Checks a payload, as text, against the schema of its type.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_payload(of: EventType, payload: &str) -> Result<(), Misfit> {
    let payload = outline::payload(payload).map_err(|error| Misfit::Json(error.to_string()))?;
    check_value(of, &payload)
}

fn check_value(of: EventType, payload: &Value) -> Result<(), Misfit> {
    let validators = &*VALIDATORS;
    let validator = match of {
        EventType::DatabaseChangeCaptured => &validators.database_change,
        EventType::AsynchronousOperationRequested => &validators.operation,
        EventType::SecurityEventOccurred => &validators.security,
    };
    check(validator, payload, "/payload")
}

/// Checks a whole event, and says of which type it is.
///
/// # Errors
/// The first thing that is wrong with it; of another major version, that.
pub fn check_event(text: &str) -> Result<EventType, Misfit> {
    let event = outline::event(text).map_err(|error| Misfit::Json(error.to_string()))?;
    let of = check_envelope(&event, &VALIDATORS.envelope)?;
    check_value(of, event.get("payload").unwrap_or(&Value::Null))?;
    Ok(of)
}

/// Checks what a queue holds: a whole event, or one that refers to its payload.
///
/// # Errors
/// As of [`check_event`].
pub fn check_message(text: &str) -> Result<Shape, Misfit> {
    let event = outline::event(text).map_err(|error| Misfit::Json(error.to_string()))?;
    if event.get("payload").is_none() && event.get("payloadReference").is_some() {
        return check_envelope(&event, &VALIDATORS.reference).map(Shape::Reference);
    }
    let of = check_envelope(&event, &VALIDATORS.envelope)?;
    check_value(of, event.get("payload").unwrap_or(&Value::Null))?;
    Ok(Shape::Whole(of))
}

fn check_envelope(event: &Value, validator: &Validator) -> Result<EventType, Misfit> {
    let version = event.pointer("/metadata/eventVersion").and_then(Value::as_str);
    // Before anything else: what comes next may look quite different.
    if let Some(version) = version.filter(|version| is_version(version) && !version.starts_with("1.")) {
        return Err(Misfit::Version(version.to_owned()));
    }
    check(validator, event, "")?;
    let name = event.pointer("/metadata/eventType").and_then(Value::as_str).unwrap_or_default();
    name.parse().map_err(|error: super::envelope::UnknownEventType| Misfit::Shape {
        place: "/metadata/eventType".to_owned(),
        expected: error.to_string(),
    })
}

/// Whether a text is a version at all: two numbers.
pub fn is_version(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor))
}

fn check(validator: &Validator, value: &Value, inside: &str) -> Result<(), Misfit> {
    let Err(error) = validator.validate(value) else { return Ok(()) };
    // Not the error's own text, which quotes the value.
    let expected = error.masked_with("it").to_string();
    let place = format!("{inside}{}", error.instance_path());
    Err(Misfit::Shape { place: if place.is_empty() { "/".to_owned() } else { place }, expected })
}

/// They are part of the program, and a test compiles each.
fn validator(schema: &str) -> Validator {
    let schema: Value = serde_json::from_str(schema).expect("a schema of ours is JSON");
    jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema of ours is one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(of: EventType, payload: &Value) -> Value {
        json!({
            "metadata": {
                "eventId": "018f3b5e-7c1a-8000-8000-0123456789ab", "eventTimestamp": "2026-01-01T00:00:00.5Z",
                "eventType": of.name(), "eventVersion": "1.0", "correlationId": "request 7", "sourceService": "shop"
            },
            "payload": payload
        })
    }

    fn login() -> Value {
        json!({"eventType": "login", "actingUserId": "u1", "outcome": "success"})
    }

    #[test]
    fn an_event_with_more_than_is_known_is_taken() {
        let mut login = login();
        login["device"] = json!({"os": "plan 9"});
        let mut event = event(EventType::SecurityEventOccurred, &login);
        event["metadata"]["eventVersion"] = json!("1.17");
        event["metadata"]["tenant"] = json!(3);
        assert_eq!(check_event(&event.to_string()), Ok(EventType::SecurityEventOccurred));
    }

    #[test]
    fn another_major_version_is_told_from_a_malformed_one() {
        let mut event = event(EventType::SecurityEventOccurred, &login());
        for (version, expected) in
            [("2.0", true), ("0.9", true), ("10.0", true), ("1", false), ("one", false), ("1.x", false)]
        {
            event["metadata"]["eventVersion"] = json!(version);
            let misfit = check_event(&event.to_string()).unwrap_err();
            assert_eq!(matches!(misfit, Misfit::Version(_)), expected, "{version}: {misfit}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place_and_without_its_value() {
        let wrong =
            |of: EventType, payload: Value| check_event(&event(of, &payload).to_string()).unwrap_err().to_string();
        let mut canary = login();
        canary["outcome"] = json!("canary");
        let said = wrong(EventType::SecurityEventOccurred, canary);
        assert!(said.starts_with("/payload/outcome: ") && !said.contains("canary"), "{said}");
        let said = wrong(EventType::SecurityEventOccurred, json!({"eventType": "login", "outcome": "success"}));
        assert!(said.starts_with("/payload: ") && said.contains("actingUserId"), "{said}");
        let said = wrong(
            EventType::AsynchronousOperationRequested,
            json!({
                "operationType": "dataExport", "userId": "u", "merchantAccountId": "", "parameters": {}
            }),
        );
        assert!(said.starts_with("/payload/merchantAccountId: "), "{said}");
        let deleted = json!({"tableName": "t", "operation": "delete", "after": {"id": "canary"}});
        let said = wrong(EventType::DatabaseChangeCaptured, deleted);
        assert!(said.starts_with("/payload/after: ") && !said.contains("canary"), "{said}");
        assert!(matches!(check_event("{\"metadata\": "), Err(Misfit::Json(_))));
    }

    #[test]
    fn a_message_that_refers_to_its_payload_has_the_shape_of_that() {
        let mut event = event(EventType::SecurityEventOccurred, &login());
        let whole = Ok(Shape::Whole(EventType::SecurityEventOccurred));
        assert_eq!(check_message(&event.to_string()), whole);
        let reference = json!({"location": "s3://bucket/a", "bytes": 7, "sha256": "0".repeat(64)});
        event["payloadReference"] = reference.clone();
        assert_eq!(check_message(&event.to_string()), whole, "what is there counts");
        event.as_object_mut().unwrap().remove("payload");
        assert_eq!(check_message(&event.to_string()), Ok(Shape::Reference(EventType::SecurityEventOccurred)));
        assert!(check_event(&event.to_string()).is_err(), "what is written into an outbox is no reference");
        for (name, value) in [
            ("location", json!("http://canary")),
            ("location", json!(7)),
            ("bytes", json!(0)),
            ("bytes", json!(1.5)),
            ("sha256", json!("canary")),
            ("sha256", json!("0".repeat(63))),
        ] {
            event["payloadReference"] = reference.clone();
            event["payloadReference"][name] = value;
            let said = check_message(&event.to_string()).unwrap_err().to_string();
            assert!(said.starts_with(&format!("/payloadReference/{name}: ")) && !said.contains("canary"), "{said}");
        }
        event["payloadReference"] = reference;
        event["metadata"]["eventVersion"] = json!("2.0");
        assert_eq!(check_message(&event.to_string()), Err(Misfit::Version("2.0".to_owned())));
    }

    #[test]
    fn each_payload_of_its_type_is_taken() {
        let request = json!({
            "operationType": "reportGeneration", "userId": "u", "merchantAccountId": "m", "parameters": {"report": "r"}
        });
        let change =
            json!({"tableName": "t", "operation": "update", "before": null, "after": {"id": "1", "note": null}});
        let gone = json!({"tableName": "t", "operation": "delete", "before": {"id": "1"}, "after": null});
        for (of, payload) in [
            (EventType::SecurityEventOccurred, login()),
            (EventType::AsynchronousOperationRequested, request),
            (EventType::DatabaseChangeCaptured, change),
            (EventType::DatabaseChangeCaptured, gone),
        ] {
            assert_eq!(check_event(&event(of, &payload).to_string()), Ok(of));
        }
    }
}
