//! Changes of rows that are events themselves: of the tables with `publish = true`.
//!
//! Such an event tells what the stream tells of a change, in PostgreSQL's text form: no lookup, no second look at the row. A
//! column that the change left alone, and that the WAL does not have for that reason, is not in it. What may not reach
//! ClickHouse may not reach a queue: columns that are left out are left out here, and masked ones are masked.
//!
//! Events of one row keep their order, by its key. Under REPLICA IDENTITY FULL the stream does not say what the key is; then
//! their position in the WAL is what tells the later from the earlier.

use crate::{
    config::Config,
    event::{Op, Relation, ReplicaIdentity, Tuple, Value},
    mask::Mask,
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

/// The tables whose changes are published, by `schema.name`.
#[derive(Clone, Debug, Default)]
pub struct Published {
    tables: HashMap<String, Hidden>,
}

/// What of a table is not to be seen.
#[derive(Clone, Debug)]
struct Hidden {
    excluded: Vec<String>,
    masks: BTreeMap<String, Mask>,
}

/// A table whose changes are published, as the stream has announced it.
#[derive(Clone, Debug)]
pub struct Table {
    /// What events call it.
    pub name: String,
    /// In the order of tuples; `None` for what is left out.
    columns: Vec<Option<Column>>,
    /// Whether the stream does not say what the key is.
    full: bool,
}

#[derive(Clone, Debug)]
struct Column {
    /// Its name, as a JSON string with its colon.
    label: String,
    key: bool,
    mask: Option<Mask>,
}

/// What an event says of a change.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Events of one key keep their order.
    pub key: Option<String>,
    /// The payload, as JSON.
    pub payload: String,
}

impl Published {
    /// Those of a configuration.
    pub fn new(config: &Config) -> Self {
        let salt = config.masking.salt.as_ref();
        let published = config.tables.iter().filter(|(_, table)| table.publish);
        let hidden = published.map(|(name, table)| {
            let masks = table.mask.iter().map(|(column, masking)| (column.clone(), Mask::new(masking, salt)));
            (name.clone(), Hidden { excluded: table.exclude_columns.clone(), masks: masks.collect() })
        });
        Self { tables: hidden.collect() }
    }

    /// The table as it was announced, if its changes are published.
    pub fn table(&self, relation: &Relation) -> Option<Table> {
        if self.tables.is_empty() {
            return None;
        }
        let hidden = self.tables.get(&format!("{}.{}", relation.schema, relation.name))?;
        let columns = relation.columns.iter().map(|column| {
            (!hidden.excluded.contains(&column.name)).then(|| Column {
                label: format!("{}:", json(&column.name)),
                key: column.key,
                mask: hidden.masks.get(&column.name).cloned(),
            })
        });
        Some(Table {
            name: name(&relation.schema, &relation.name),
            columns: columns.collect(),
            full: relation.identity == ReplicaIdentity::Full,
        })
    }
}

/// What events call a table: its name, with its schema if that is another than `public`.
pub fn name(schema: &str, table: &str) -> String {
    if schema == "public" { table.to_owned() } else { format!("{schema}.{table}") }
}

impl Table {
    /// What an event says of a change; `data` is the group's. `None` if a tuple is none, which the assembler has checked.
    pub fn tell(&self, data: &[u8], op: &Op) -> Option<Told> {
        let parse = |bytes| Tuple::parsed(bytes).ok();
        let (operation, before, after) = match op {
            Op::Insert { new } => ("insert", None, Some(parse(new.bytes(data))?)),
            Op::Update { old, new, .. } => {
                let old = old.map(|old| parse(old.bytes(data)).ok_or(())).transpose().ok()?;
                ("update", old, Some(parse(new.bytes(data))?))
            }
            Op::Delete { old, .. } => ("delete", Some(parse(old.bytes(data))?), None),
        };
        let mut payload = format!("{{\"tableName\":{},\"operation\":\"{operation}\"", json(&self.name));
        let old_is_key = matches!(op, Op::Update { old_is_key: true, .. } | Op::Delete { old_is_key: true, .. });
        if let Some(before) = before {
            payload.push_str(",\"before\":");
            self.object(&mut payload, before, None, old_is_key);
        } else if operation == "update" && !self.full {
            // Its key is what it was.
            payload.push_str(",\"before\":");
            self.object(&mut payload, after?, None, true);
        }
        payload.push_str(",\"after\":");
        match after {
            Some(after) => self.object(&mut payload, after, before.filter(|_| !old_is_key), false),
            None => payload.push_str("null"),
        }
        payload.push('}');
        Some(Told { key: self.key(after.or(before)?, before), payload })
    }

    /// A row, or the key of one. What `tuple` lacks, `old` may have.
    fn object(&self, out: &mut String, tuple: Tuple<'_>, old: Option<Tuple<'_>>, key_only: bool) {
        out.push('{');
        let mut is_first = true;
        let mut old = old.map(|old| old.values());
        for (column, value) in self.columns.iter().zip(tuple.values()) {
            let before = old.as_mut().and_then(Iterator::next);
            let Some(column) = column.as_ref().filter(|column| column.key || !key_only) else { continue };
            let value = match value {
                Value::Unchanged => before.unwrap_or(Value::Unchanged),
                value => value,
            };
            let text = match value {
                Value::Text(text) => column.shown(text),
                Value::Null => None,
                Value::Unchanged | Value::Binary(_) => continue,
            };
            if !std::mem::take(&mut is_first) {
                out.push(',');
            }
            out.push_str(&column.label);
            match text {
                Some(text) => out.push_str(&json(&String::from_utf8_lossy(&text))),
                None => out.push_str("null"),
            }
        }
        out.push('}');
    }

    /// What a row's events have in common. A key that is unchanged and toasted is in the old tuple.
    fn key(&self, tuple: Tuple<'_>, old: Option<Tuple<'_>>) -> Option<String> {
        if self.full {
            return None;
        }
        let mut key = self.name.clone();
        let mut old = old.map(|old| old.values());
        for (column, value) in self.columns.iter().zip(tuple.values()) {
            let before = old.as_mut().and_then(Iterator::next);
            let Some(column) = column.as_ref().filter(|column| column.key) else { continue };
            let ((Value::Text(text), _) | (_, Some(Value::Text(text)))) = (value, before) else { continue };
            key.push('\u{1f}');
            key.push_str(
                &column
                    .shown(text)
                    .map_or(Cow::Borrowed(""), |text| String::from_utf8_lossy(&text).into_owned().into()),
            );
        }
        Some(key)
    }
}

impl Column {
    fn shown<'a>(&self, text: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match &self.mask {
            Some(mask) => mask.over(text).map(|masked| Cow::Owned(masked.into_owned())),
            None => Some(Cow::Borrowed(text)),
        }
    }
}

fn json(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Masking,
        event::{RelationColumn, Span},
    };
    use serde_json::{Value as Json, json};

    /// Tuples, one after the other.
    #[derive(Default)]
    struct Data(Vec<u8>);

    impl Data {
        /// `None` is NULL, and `"(unchanged)"` is that.
        fn tuple(&mut self, values: &[Option<&str>]) -> Span {
            let start = self.0.len();
            self.0.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
            for value in values {
                match value {
                    None => self.0.push(b'n'),
                    Some("(unchanged)") => self.0.push(b'u'),
                    Some(text) => {
                        self.0.push(b't');
                        self.0.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                        self.0.extend_from_slice(text.as_bytes());
                    }
                }
            }
            Span { start: u32::try_from(start).unwrap(), len: u32::try_from(self.0.len() - start).unwrap() }
        }
    }

    fn table(schema: &str, identity: ReplicaIdentity) -> Table {
        let mut config = Config::new("postgres://walhouse@localhost/shop".parse().unwrap());
        let options = config.tables.entry(format!("{schema}.contact")).or_default();
        options.publish = true;
        options.exclude_columns = vec!["secret".to_owned()];
        options.mask.insert("email".to_owned(), Masking::Fixed("(masked)".to_owned()));
        let column = |name: &str| RelationColumn {
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            key: name == "id" || identity == ReplicaIdentity::Full,
        };
        let columns = ["id", "na\"me", "email", "secret", "notes"].map(column).to_vec();
        let relation = Relation { oid: 7, schema: schema.to_owned(), name: "contact".to_owned(), identity, columns };
        Published::new(&config).table(&relation).unwrap()
    }

    fn tell(table: &Table, data: &Data, op: Op) -> (Json, Option<String>) {
        let told = table.tell(&data.0, &op).unwrap();
        (serde_json::from_str(&told.payload).unwrap(), told.key)
    }

    #[test]
    fn a_change_is_told_in_text_without_what_is_hidden() {
        let (table, mut data) = (table("public", ReplicaIdentity::Default), Data::default());
        let new = data.tuple(&[Some("1"), Some("a\n\"b\""), Some("a@b"), Some("canary"), None]);
        let (told, key) = tell(&table, &data, Op::Insert { new });
        let row = json!({"id": "1", "na\"me": "a\n\"b\"", "email": "(masked)", "notes": null});
        assert_eq!(told, json!({"tableName": "contact", "operation": "insert", "after": row}));
        assert_eq!(key.as_deref(), Some("contact\u{1f}1"));
        let old = data.tuple(&[Some("1"), None, None, None, None]);
        let (told, key) = tell(&table, &data, Op::Delete { old, old_is_key: true });
        assert_eq!(told, json!({"tableName": "contact", "operation": "delete", "before": {"id": "1"}, "after": null}));
        assert_eq!(key.as_deref(), Some("contact\u{1f}1"));
    }

    #[test]
    fn an_update_has_its_key_as_it_was_and_not_what_it_left_alone() {
        let (table, mut data) = (table("crm", ReplicaIdentity::Default), Data::default());
        let new = data.tuple(&[Some("1"), Some("x"), None, None, Some("(unchanged)")]);
        let (told, key) = tell(&table, &data, Op::Update { old: None, old_is_key: false, new });
        assert_eq!(
            told,
            json!({"tableName": "crm.contact", "operation": "update", "before": {"id": "1"}, "after": {"id": "1", "na\"me": "x", "email": null}})
        );
        assert_eq!(key.as_deref(), Some("crm.contact\u{1f}1"));
        let old = data.tuple(&[Some("1"), None, None, None, None]);
        let moved = data.tuple(&[Some("2"), Some("x"), None, None, Some("y")]);
        let (told, key) = tell(&table, &data, Op::Update { old: Some(old), old_is_key: true, new: moved });
        assert_eq!((&told["before"], &told["after"]["id"]), (&json!({"id": "1"}), &json!("2")));
        assert_eq!(key.as_deref(), Some("crm.contact\u{1f}2"));
    }

    #[test]
    fn a_full_old_row_fills_what_the_new_one_lacks_and_says_nothing_of_the_key() {
        let (table, mut data) = (table("public", ReplicaIdentity::Full), Data::default());
        let old = data.tuple(&[Some("1"), Some("x"), Some("a@b"), Some("canary"), Some("long")]);
        let new = data.tuple(&[Some("1"), Some("y"), Some("a@b"), Some("canary"), Some("(unchanged)")]);
        let (told, key) = tell(&table, &data, Op::Update { old: Some(old), old_is_key: false, new });
        let row = |name: &str| json!({"id": "1", "na\"me": name, "email": "(masked)", "notes": "long"});
        assert_eq!((&told["before"], &told["after"], key), (&row("x"), &row("y"), None));
    }
}
