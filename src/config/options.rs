//! `[tables."schema.name"]`: what is different for one table, and `[masking]`.
//!
//! A section is named after exactly one table, in PostgreSQL's spelling and without a pattern: who
//! hides a column wants to see in the file whose it is. What needs the catalog to be judged, such
//! as whether a column exists, is judged when the table is laid out; a table whose section does not
//! fit it is not replicated, since a misspelt `mask` would otherwise publish what it was to hide.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

use super::value::{Unrepresentable, as_text, secret, words};

/// `[masking]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskingConfig {
    /// The key of hashed masks: HMAC-SHA-256 with it. Without one, who guesses a value can tell that it is the one.
    ///
    /// Set it before the first copy wherever a mask is `"hash"`; with another one hashes do not match any more, so copy
    /// anew.
    #[serde(with = "secret", skip_serializing_if = "Option::is_none")]
    pub salt: Option<SecretString>,
    /// A file whose content is the salt.
    ///
    /// Prefer it to `salt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt_file: Option<PathBuf>,
}

/// `[tables."schema.name"]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableConfig {
    /// The table's name in ClickHouse. Without it the source's, with `<schema>_` in front unless the schema is
    /// `public`.
    ///
    /// Set it where the name is taken. A change stops the table until `walhouse resync`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Columns that are not replicated; not of the key.
    ///
    /// Name what must not leave PostgreSQL, or is large and queried by nobody. A change stops the table until `walhouse
    /// resync`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_columns: Vec<String>,
    /// The ClickHouse type of a column, where it is to be another than the usual one, by column.
    ///
    /// Set it where [types.md](types.md) offers a better one. A change stops the table until `walhouse resync`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub column_types: BTreeMap<String, String>,
    /// What takes the place of a column's values on their way, by column: `"hash"` (in hexadecimal; a column of the key
    /// stays a key), `"null"`, or `{ fixed = "…" }`. A NULL stays one.
    ///
    /// Mask what analysts may count or join by and not read. A change stops the table until `walhouse resync`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mask: BTreeMap<String, Masking>,
    /// The sorting key: all columns of the key, in another order.
    ///
    /// Put first what most queries filter by. A change stops the table until `walhouse resync`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub order_by: Vec<String>,
    /// An expression of ClickHouse over columns of the key, since a row must not move; over any column for a table
    /// without a key.
    ///
    /// Only for very large tables of which old parts are dropped or seldom read. A change stops the table until
    /// `walhouse resync`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_by: Option<String>,
    /// Settings of the MergeTree, over walhouse's own, for a target that is created from now on.
    ///
    /// Hardly ever. Settings that remove tombstones are refused: after a replay, deleted rows would be there again.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, SettingValue>,
    /// What becomes of a value that its column can not hold; else what `[batch]` says.
    ///
    /// Set it where one table needs another answer than the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrepresentable: Option<Unrepresentable>,
    /// What becomes of a column in ClickHouse that was dropped in PostgreSQL: `"keep"` it with its history, or `"drop"`
    /// it.
    ///
    /// Set `"drop"` where what was removed at the source must be gone.
    pub on_drop_column: OnDropColumn,
    /// Whether changes also go to the data-sync-queue; the copy and TRUNCATE are none. It needs `[queue]`.
    ///
    /// Set it for consumers of your own, and switch the worker `data_sync` off then: it would land again what has
    /// landed already.
    pub publish: bool,
    /// What is different for single columns.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, ColumnConfig>,
}

/// `[tables."schema.name".columns.name]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnConfig {
    /// What becomes of a value that the column can not hold; else what the table says.
    ///
    /// Set it where one column needs another answer than its table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrepresentable: Option<Unrepresentable>,
}

/// What becomes of a column that was dropped in PostgreSQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDropColumn {
    /// It stays, with its history.
    #[default]
    Keep,
    /// It is dropped in ClickHouse too.
    Drop,
}

words!(OnDropColumn: "keep" => Keep, "drop" => Drop);
as_text!(OnDropColumn);

/// What takes the place of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masking {
    /// The SHA-256 of its text, keyed with the salt if there is one.
    Hash,
    /// NULL, whatever it was.
    Null,
    /// This value, in PostgreSQL's text form. A NULL stays one.
    Fixed(String),
}

const MASKINGS: &str = "\"hash\", \"null\" or { fixed = \"…\" }";

impl<'de> Deserialize<'de> for Masking {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;

        impl<'de> Visitor<'de> for Word {
            type Value = Masking;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(MASKINGS)
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Masking, E> {
                match word {
                    "hash" => Ok(Masking::Hash),
                    "null" => Ok(Masking::Null),
                    _ => Err(E::custom(format!("{word:?} is none of {MASKINGS}"))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Masking, A::Error> {
                let refused = || serde::de::Error::custom(format!("it is none of {MASKINGS}"));
                let value = match map.next_entry::<String, String>()? {
                    Some((key, value)) if key == "fixed" => value,
                    _ => return Err(refused()),
                };
                match map.next_key::<String>()? {
                    None => Ok(Masking::Fixed(value)),
                    Some(_) => Err(refused()),
                }
            }
        }

        deserializer.deserialize_any(Word)
    }
}

impl Serialize for Masking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Hash => serializer.serialize_str("hash"),
            Self::Null => serializer.serialize_str("null"),
            Self::Fixed(value) => serializer.collect_map([("fixed", value)]),
        }
    }
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum SettingValue {
    /// On or off.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
}

impl SettingValue {
    /// The same in JSON.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Bool(on) => (*on).into(),
            Self::Integer(number) => (*number).into(),
            Self::Float(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

impl TableConfig {
    /// The first key whose value can be told to be wrong without the catalog, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let at = |key: &str| {
            let key = key.to_owned();
            move |message| (key, message)
        };
        if let Some(target) = &self.target {
            target_name(target).map_err(at("target"))?;
        }
        for (key, list) in [("exclude_columns", &self.exclude_columns), ("order_by", &self.order_by)] {
            if let Some(twice) = list.iter().enumerate().find(|(at, name)| list[..*at].contains(name)) {
                return Err((key.to_owned(), format!("{:?} is in it twice", twice.1)));
            }
        }
        let shaped = self.mask.keys().map(|name| ("mask", name));
        let shaped = shaped.chain(self.column_types.keys().map(|name| ("column_types", name)));
        let mut shaped = shaped.chain(self.columns.keys().map(|name| ("columns", name)));
        if let Some((key, name)) = shaped.find(|(_, name)| self.exclude_columns.contains(name)) {
            return Err((format!("{key}.{name}"), "the column is in exclude_columns too; remove one".to_owned()));
        }
        if let Some(name) = self.column_types.keys().find(|name| self.mask.get(*name) == Some(&Masking::Hash)) {
            let why = "the column's mask is \"hash\", which is a String; remove one";
            return Err((format!("column_types.{name}"), why.to_owned()));
        }
        if self.partition_by.as_ref().is_some_and(|expression| expression.trim().is_empty()) {
            return Err(at("partition_by")("it is empty; remove it, or give an expression".to_owned()));
        }
        for name in self.settings.keys() {
            setting_name(name).map_err(at(&format!("settings.{name}")))?;
        }
        Ok(())
    }
}

fn target_name(name: &str) -> Result<(), String> {
    if (1..=200).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name; use 1 to 200 bytes without control characters"))
}

fn setting_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
        return Err("it is not the name of a MergeTree setting".to_owned());
    }
    if name.contains("cleanup") {
        return Err("tombstones must stay: after a replay, older rows would be there again; remove it".to_owned());
    }
    Ok(())
}

/// What the configuration says of one table.
#[derive(Clone, Debug, Default)]
pub struct TableOptions {
    /// Its section, or the defaults.
    pub table: TableConfig,
    /// What `[batch]` says of values that a column can not hold.
    pub unrepresentable: Unrepresentable,
    /// The key of the hashes.
    pub salt: Option<SecretString>,
}

impl TableOptions {
    /// What becomes of a value that this column can not hold.
    pub fn unrepresentable(&self, column: &str) -> Unrepresentable {
        let own = self.table.columns.get(column).and_then(|column| column.unrepresentable);
        own.or(self.table.unrepresentable).unwrap_or(self.unrepresentable)
    }
}
