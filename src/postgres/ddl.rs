//! What the event triggers of `migrations/postgres` tell of a change of shape: the catalog as it
//! was at that point of the stream.
//!
//! Anybody who may connect to the database can write a logical message with any prefix, at any
//! time. So a message counts only if it is authenticated with the key that the triggers have and
//! names the transaction in which it stands: then PostgreSQL's own catalog is what it was made
//! from. Everything else (no key, another one, another transaction, a form that is not known) is
//! passed over, and the catalog is read as if there were no triggers.
//!
//! The form, in UTF-8: HMAC-SHA-256 of the body in hexadecimal, a space, the body. The body is JSON;
//! `v` is the version of its form, and a column in it is a [`SourceColumn`] as it is stored too.

use super::{
    catalog::{Index, Keys, Partition, Relation, identity},
    publication::Membership,
    sql::{self, SqlError},
};
use crate::{
    config::SourceConfig,
    event::{Heap, SourceColumn, SourceTable, TableKind},
    lane::Told,
    quote,
    retry::Kind,
    telemetry::names,
};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// The form that is understood.
const FORM: u32 = 1;
/// How long the body's authentication is, in hexadecimal.
const MAC_LENGTH: usize = 64;
/// A key that does not fit may have been replaced: how often it is read again, at most.
const KEY_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is said that messages are passed over.
const SAY_INTERVAL: Duration = Duration::from_secs(60);

/// Reads DDL messages.
#[derive(Default)]
pub(super) struct DdlReader {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    key: Option<Vec<u8>>,
    /// Why there is no key, if it was asked for.
    why: String,
    asked: Option<Instant>,
    said: Option<Instant>,
}

impl DdlReader {
    /// What a message in transaction `xid` tells; `None` if it is not the triggers'.
    ///
    /// # Errors
    /// If PostgreSQL can not be asked for the key.
    pub(super) async fn read(&self, source: &SourceConfig, content: &[u8], xid: u32) -> Result<Option<Told>, SqlError> {
        let mut state = self.state.lock().await;
        let mut body = state.body(content);
        let may_ask = state.asked.is_none_or(|asked| asked.elapsed() > KEY_INTERVAL);
        if body.is_err() && may_ask {
            state.ask(source).await?;
            body = state.body(content);
        }
        let told = body.and_then(|body| told(body, xid, &source.publication));
        let outcome = if told.is_ok() { "understood" } else { "refused" };
        metrics::counter!(names::DDL_MESSAGES, "outcome" => outcome).increment(1);
        match told {
            Ok(told) => Ok(told),
            Err(reason) => {
                if state.said.is_none_or(|said| said.elapsed() > SAY_INTERVAL) {
                    state.said = Some(Instant::now());
                    tracing::warn!(reason, "a DDL message is passed over; the catalog is read instead");
                }
                Ok(None)
            }
        }
    }
}

impl State {
    async fn ask(&mut self, source: &SourceConfig) -> Result<(), SqlError> {
        self.asked = Some(Instant::now());
        let client = sql::connect(source, "walhouse lookup").await?;
        let found = match client.query_opt("SELECT key FROM walhouse.ddl_key", &[]).await {
            Ok(row) => row.map(|row| row.try_get(0)).transpose().map_err(SqlError::from),
            Err(error) => Err(error.into()),
        };
        match found {
            Ok(key) => (self.key, self.why) = (key, "there is no key in walhouse.ddl_key".to_owned()),
            Err(error) if error.kind() == Kind::Transient => return Err(error),
            Err(error) => (self.key, self.why) = (None, format!("walhouse.ddl_key can not be read: {error}")),
        }
        Ok(())
    }

    /// The body of a message that the key authenticates.
    fn body<'c>(&self, content: &'c [u8]) -> Result<&'c [u8], String> {
        let key = self.key.as_deref().ok_or_else(|| self.why.clone())?;
        authentic(key, content).ok_or_else(|| "it is not authentic, so the triggers did not write it".to_owned())
    }
}

fn authentic<'c>(key: &[u8], content: &'c [u8]) -> Option<&'c [u8]> {
    let (mac, rest) = content.split_at_checked(MAC_LENGTH)?;
    let (space, body) = rest.split_first()?;
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let mac = mac.chunks(2).map(digits).collect::<Option<Vec<u8>>>()?;
    let expected = Hmac::<Sha256>::new_from_slice(key).ok()?.chain_update(body);
    (*space == b' ' && expected.verify_slice(&mac).is_ok()).then_some(body)
}

#[derive(Deserialize)]
struct Body {
    v: u32,
    /// The whole transaction's id, with its epoch.
    xid: String,
    table: Option<Box<Description>>,
    dropped: Option<Vec<u32>>,
}

/// A table in the catalog.
#[derive(Deserialize)]
struct Description {
    oid: u32,
    schema: String,
    name: String,
    root: bool,
    unlogged: bool,
    identity: String,
    columns: Vec<SourceColumn>,
    keys: Vec<Key>,
    publications: Vec<Published>,
    /// Those that identify their rows in another way than the root.
    partitions: Vec<Leaf>,
    /// oid, filenode, attachment, whether it was created as a partition.
    heaps: Vec<(u32, u32, u32, bool)>,
}

/// An index that may identify rows.
#[derive(Deserialize)]
struct Key {
    #[serde(default)]
    primary: bool,
    #[serde(default)]
    replica: bool,
    #[serde(default)]
    immediate: bool,
    columns: Vec<String>,
}

/// What a publication carries of the table.
#[derive(Deserialize)]
struct Published {
    name: String,
    columns: Option<Vec<i16>>,
    filter: Option<String>,
    #[serde(default)]
    generated: bool,
}

#[derive(Deserialize)]
struct Leaf {
    oid: u32,
    schema: String,
    name: String,
    identity: String,
    keys: Vec<Key>,
}

/// What an authentic body tells; `None` if it is of no concern to this publication.
fn told(body: &[u8], xid: u32, publication: &str) -> Result<Option<Told>, String> {
    // serde's errors may quote what they met, which may be a default: only where they met it is said.
    let body: Body = serde_json::from_slice(body)
        .map_err(|error| format!("it is malformed at line {} column {}", error.line(), error.column()))?;
    if body.v != FORM {
        return Err(format!(
            "its form is {}, and this walhouse knows {FORM}: install its own migrations/postgres",
            body.v
        ));
    }
    let own: u64 = body.xid.parse().map_err(|_| "it names no transaction".to_owned())?;
    // A message repeated from another transaction.
    if own as u32 != xid {
        return Err("it was written by another transaction".to_owned());
    }
    match (body.table, body.dropped) {
        (Some(table), None) => Ok(table.into_source(publication)?.map(|table| Told::Table(Box::new(table)))),
        (None, Some(dropped)) => Ok(Some(Told::Dropped(dropped))),
        _ => Err("it tells of no table".to_owned()),
    }
}

impl Description {
    /// The table as the catalog reader has it; `None` if the publication does not carry it.
    fn into_source(self, publication: &str) -> Result<Option<SourceTable>, String> {
        self.sane()?;
        let Some(published) = self.publications.into_iter().find(|published| published.name == publication) else {
            return Ok(None);
        };
        let mut keys = HashMap::from([(self.oid, into_keys(self.keys))]);
        let mut partitions = Vec::new();
        for Leaf { oid, schema, name, identity: letter, keys: own } in self.partitions {
            keys.insert(oid, into_keys(own));
            partitions.push(Partition {
                oid,
                quoted: quote::postgres_table(&schema, &name),
                identity: identity(&letter),
            });
        }
        let relation = Relation {
            oid: self.oid,
            schema: self.schema,
            name: self.name,
            kind: if self.root { TableKind::PartitionRoot } else { TableKind::Table },
            unlogged: self.unlogged,
            identity: identity(&self.identity),
        };
        let heap = |(oid, filenode, attachment, born_partition)| Heap { oid, filenode, attachment, born_partition };
        let heaps = self.heaps.into_iter().map(heap).collect();
        let table = SourceTable { heaps, ..relation.into_table(self.columns, &keys, &partitions) };
        Ok(Some(Membership::told(published.columns, published.filter, published.generated).narrowed(table)))
    }

    /// Whether it can be a table at all.
    fn sane(&self) -> Result<(), String> {
        let numbers = self.columns.windows(2).all(|pair| pair[0].attnum < pair[1].attnum);
        let mut names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        names.sort_unstable();
        let twice = names.windows(2).any(|pair| pair[0] == pair[1]);
        let hollow = |column: &SourceColumn| {
            let SourceColumn { attnum, name, declared_oid, type_oid, key_position, .. } = column;
            *attnum < 1 || name.is_empty() || *declared_oid == 0 || *type_oid == 0 || key_position.is_some()
        };
        if self.oid == 0 || self.name.is_empty() || !numbers || twice || self.columns.iter().any(hollow) {
            return Err("what it describes is no table".to_owned());
        }
        Ok(())
    }
}

fn into_keys(indexes: Vec<Key>) -> Keys {
    let mut keys = Keys::default();
    for Key { primary, replica, immediate, columns } in indexes {
        let index = Index { immediate, columns };
        if primary {
            keys.primary = Some(index.clone());
        }
        if replica {
            keys.replica = Some(index);
        }
    }
    keys
}

#[cfg(test)]
mod tests;
