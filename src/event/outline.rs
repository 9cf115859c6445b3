//! An event as far as a schema looks into it.
//!
//! No schema of ours looks into what an application has put into `details`, `parameters` or a row, nor at more of a text than
//! its beginning. So these are passed over as they are read, and a payload of hundreds of megabytes is checked in a few
//! kilobytes.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Longer than any text may be that a schema bounds.
const LONGEST_TEXT: usize = 8192;

/// What is nested more deeply many readers do not take, those of serde_json among them.
const DEEPEST: u32 = 127;

/// How far it is looked into.
#[derive(Clone, Copy)]
enum Depth {
    /// A whole event: as far as each part of it needs.
    Event,
    /// So many objects and arrays, one inside the other. What is deeper is empty.
    Levels(u8),
}

/// An event: of its payload the fields, of all else what is in these too.
pub(super) fn event(text: &str) -> serde_json::Result<Value> {
    read(text, Depth::Event)
}

/// A payload: its fields.
pub(super) fn payload(text: &str) -> serde_json::Result<Value> {
    read(text, Depth::Levels(1))
}

fn read(text: &str, depth: Depth) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = depth.deserialize(&mut reader)?;
    reader.end()?;
    // What is passed over is not counted on the way.
    if levels(text) > DEEPEST {
        return Err(serde_json::Error::custom("recursion limit exceeded"));
    }
    Ok(value)
}

/// How many objects and arrays are one inside the other, in what is JSON.
fn levels(json: &str) -> u32 {
    let (mut open, mut most) = (0_u32, 0);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                open += 1;
                most = most.max(open);
            }
            b']' | b'}' => open = open.saturating_sub(1),
            b'"' => {
                while let Some(inside) = bytes.next()
                    && inside != b'"'
                {
                    if inside == b'\\' {
                        bytes.next();
                    }
                }
            }
            _ => {}
        }
    }
    most
}

impl Depth {
    /// How far it is looked into a part.
    fn of(self, name: &str) -> Self {
        match self {
            Self::Event if name == "payload" => Self::Levels(1),
            Self::Event => Self::Levels(2),
            Self::Levels(levels) => Self::Levels(levels.saturating_sub(1)),
        }
    }

    fn is_passed_over(self) -> bool {
        matches!(self, Self::Levels(0))
    }
}

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        let text = if text.len() > LONGEST_TEXT { text.chars().take(LONGEST_TEXT).collect() } else { text.to_owned() };
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut seen = Vec::new();
        if self.is_passed_over() {
            while items.next_element::<IgnoredAny>()?.is_some() {}
        } else {
            while let Some(item) = items.next_element_seed(self.of(""))? {
                seen.push(item);
            }
        }
        Ok(Value::Array(seen))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut seen = Map::new();
        if self.is_passed_over() {
            while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        } else {
            while let Some(name) = fields.next_key::<String>()? {
                let field = fields.next_value_seed(self.of(&name))?;
                seen.insert(name, field);
            }
        }
        Ok(Value::Object(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_no_schema_looks_at_is_passed_over() {
        let long = "x".repeat(10_000);
        let text = json!({
            "metadata": {"eventId": "e", "position": {"epoch": 1, "deeper": {"a": 1}}},
            "payload": {"outcome": "success", "n": -1.5, "details": {"a": [1, {"b": 2}], "c": long}, "rows": [[1], 2], "text": long}
        });
        let seen = event(&text.to_string()).unwrap();
        assert_eq!(seen["metadata"], json!({"eventId": "e", "position": {"epoch": 1, "deeper": {}}}));
        assert_eq!(seen["payload"]["details"], json!({}));
        assert_eq!(seen["payload"]["rows"], json!([]));
        assert_eq!((&seen["payload"]["outcome"], &seen["payload"]["n"]), (&json!("success"), &json!(-1.5)));
        assert_eq!(seen["payload"]["text"].as_str().map(str::len), Some(LONGEST_TEXT));
        assert_eq!(payload(&text["payload"].to_string()).unwrap(), seen["payload"]);
        for text in ["7", "null", "\"a\"", "[1, 2]", "{}"] {
            assert_eq!(event(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused_wherever_it_is() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"payload": {{"details": {{"a": "[[{{\\\"[", "b": {open}{close}, "c": []}}}}}}"#)
        };
        assert!(event(&nested(124)).is_ok());
        let refused = event(&nested(125)).unwrap_err().to_string();
        assert!(refused.contains("recursion limit exceeded"), "{refused}");
        // As it is by whoever reads all of it.
        assert!(serde_json::from_str::<Value>(&nested(124)).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(125)).is_err());
    }

    #[test]
    fn what_is_no_json_is_none_wherever_that_shows() {
        for text in [
            r#"{"payload": {"details": {"a": }}}"#,
            r#"{"payload": {"details": {a: 1}}}"#,
            r#"{"payload": {"details": {1: 1}}}"#,
            r#"{"payload": {"details": {"a": "\x"}}}"#,
            r#"{"payload": {"details": {"a": 01}}}"#,
            r#"{"payload": {"details": [1, 2}}}"#,
            r#"{"payload": {"details": {"a": 1,}}}"#,
            r#"{"payload": {}} x"#,
            "",
        ] {
            assert!(event(text).is_err(), "{text}");
        }
    }
}
