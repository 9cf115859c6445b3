//! What a message is made of, without anything that it says: enough to see what is wrong with a dead letter, and nothing of
//! anybody in it.
//!
//! Of an event the names of its fields are told, each with the type of its value, and of a change those of its columns too.
//! Whatever else lies in a payload (`details`, `parameters`) may have names that are somebody's data, and is only counted; so
//! is what is no event at all.

use serde_json::{Map, Value, json};

/// So many fields of an object are told by name.
const MOST: usize = 64;
/// What columns of a change are under.
const ROWS: [&str; 2] = ["before", "after"];

/// The shape of a body: of an event, an object with a type at each name; otherwise a few words.
pub(super) fn shape(body: &str) -> Value {
    let Ok(parsed) = serde_json::from_str::<Value>(body) else {
        return json!(format!("text of {} bytes, no JSON", body.len()));
    };
    let Some(event) = parsed.as_object().filter(|event| event.contains_key("metadata")) else {
        return json!(kind(&parsed));
    };
    fields(event, |name, value| match (name, value) {
        ("metadata", Value::Object(metadata)) => fields(metadata, |_, value| json!(kind(value))),
        ("payload", Value::Object(payload)) => fields(payload, |name, value| match value {
            Value::Object(row) if ROWS.contains(&name) => fields(row, |_, value| json!(kind(value))),
            value => json!(kind(value)),
        }),
        (_, value) => json!(kind(value)),
    })
}

fn fields(object: &Map<String, Value>, of: impl Fn(&str, &Value) -> Value) -> Value {
    let (named, others): (Vec<_>, Vec<_>) = object.iter().partition(|(name, _)| is_name(name));
    let unnamed = others.len() + named.len().saturating_sub(MOST);
    let mut told: Map<String, Value> =
        named.into_iter().take(MOST).map(|(name, value)| (name.clone(), of(name, value))).collect();
    if unnamed > 0 {
        told.insert("…".to_owned(), json!(format!("{unnamed} more")));
    }
    Value::Object(told)
}

/// Whether it is what somebody calls a field or a column, rather than anybody's data.
fn is_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(is_word) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn kind(value: &Value) -> String {
    let many = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(items) => format!("array of {}", many(items.len(), "item")),
        Value::Object(object) => format!("object of {}", many(object.len(), "field")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_by_its_names_and_types_alone() {
        let event = json!({
            "metadata": { "eventId": "canary", "eventVersion": "1.0" },
            "payload": {
                "actingUserId": "canary", "outcome": null, "details": { "canary": 1 }, "list": ["canary"],
                "after": { "id": 7, "name": "canary", "deep": { "canary": "canary" } }, "canary@example.org": true
            }
        });
        let told = shape(&event.to_string());
        let expected = json!({
            "metadata": { "eventId": "string", "eventVersion": "string" },
            "payload": {
                "actingUserId": "string", "outcome": "null", "details": "object of 1 field", "list": "array of 1 item",
                "after": { "id": "number", "name": "string", "deep": "object of 1 field" }, "…": "1 more"
            }
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn of_what_is_no_event_no_name_is_told_either() {
        assert_eq!(shape("canary, no JSON"), "text of 15 bytes, no JSON");
        assert_eq!(shape(r#"{"canary": "canary", "payload": {"canary": 1}}"#), "object of 2 fields");
        assert_eq!(shape(r#"["canary"]"#), "array of 1 item");
    }

    #[test]
    fn many_fields_are_counted() {
        let payload: Map<String, Value> = (0..100).map(|number| (format!("c{number}"), Value::Null)).collect();
        let told = shape(&json!({ "metadata": {}, "payload": payload }).to_string());
        assert_eq!((told["payload"].as_object().unwrap().len(), &told["payload"]["…"]), (MOST + 1, &json!("36 more")));
    }
}
