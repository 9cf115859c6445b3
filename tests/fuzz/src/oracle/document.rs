use super::Meaning::{self, Unheld, Value};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The oracle compares all paths with each other, and expands all numbers.
const LONGEST: usize = 4096;
const LARGEST_EXPONENT: i64 = 2000;

/// What ClickHouse's JSON type makes of a document; `None` for what PostgreSQL would not have taken, and for what is too
/// much for this.
pub fn meaning(text: &[u8]) -> Option<Meaning> {
    if text.len() > LONGEST {
        return None;
    }
    let document: &RawValue = serde_json::from_slice(text).ok()?;
    let mut paths = Vec::new();
    let held = document.get().starts_with('{') && object(document, "", &mut paths)?;
    paths.sort();
    let twice = paths.windows(2).any(|two| two[0] == two[1]);
    Some(if held && !twice { Value(text.to_vec()) } else { Unheld(None) })
}

/// The fields of an object, in their order; `None` if a key is no text.
fn fields(object: &RawValue) -> Option<Vec<(String, Box<RawValue>)>> {
    struct Fields(Vec<(String, Box<RawValue>)>);
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Fields;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(Fields(fields))
        }
    }
    impl<'de> serde::Deserialize<'de> for Fields {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Visitor)
        }
    }
    serde_json::from_str(object.get()).ok().map(|Fields(fields)| fields)
}

fn object(document: &RawValue, path: &str, paths: &mut Vec<String>) -> Option<bool> {
    let Some(fields) = fields(document) else { return Some(false) };
    let mut keys = BTreeMap::new();
    for (key, value) in &fields {
        if keys.insert(key, ()).is_some() {
            return Some(false);
        }
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if !self::value(value, &path, paths)? {
            return Some(false);
        }
    }
    Some(true)
}

fn value(value: &RawValue, path: &str, paths: &mut Vec<String>) -> Option<bool> {
    let text = value.get();
    if text.starts_with('{') {
        return object(value, path, paths);
    }
    paths.push(path.to_owned());
    Some(match text.as_bytes()[0] {
        b'[' => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
            let mut held = true;
            for item in items {
                let mut inside = Vec::new();
                held &= self::value(&item, "", &mut inside)?;
                inside.sort();
                held &= inside.windows(2).all(|two| two[0] != two[1]);
            }
            held
        }
        b'"' => serde_json::from_str::<String>(text).is_ok(),
        b't' | b'f' | b'n' => true,
        _ => number(text)?,
    })
}

fn number(text: &str) -> Option<bool> {
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return Some(text.parse::<i128>().is_ok_and(|value| (i64::MIN.into()..=u64::MAX.into()).contains(&value)));
    }
    let value: f64 = text.parse().ok()?;
    if !value.is_finite() {
        return Some(false);
    }
    Some(positional(text)? == positional(&format!("{value:?}"))?)
}

/// A number without exponent, and without zeros that say nothing.
fn positional(text: &str) -> Option<(String, String)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok().filter(|exponent: &i64| exponent.abs() < LARGEST_EXPONENT)?;
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (mut whole, mut fraction) = (whole.to_owned(), fraction.to_owned());
    for _ in 0..exponent.max(0) {
        whole.push(if fraction.is_empty() { '0' } else { fraction.remove(0) });
    }
    for _ in 0..(-exponent).max(0) {
        fraction.insert(0, whole.pop().unwrap_or('0'));
    }
    Some((whole.trim_start_matches('0').to_owned(), fraction.trim_end_matches('0').to_owned()))
}
