//! What the dead letters say of rows that differ. They explain a difference, and no more: if they can not be read, there
//! are none.

use std::collections::HashMap;

use clickhouse::Client;

use super::bounded;
use crate::{clickhouse::dead_letters::TABLE, quote, verify::KeyDifference};

/// Keys in one question.
const KEYS: usize = 100;

/// The dead letters of one slot.
pub(super) struct Letters<'a> {
    target: &'a Client,
    slot: &'a str,
}

impl<'a> Letters<'a> {
    pub(super) fn new(target: &'a Client, slot: &'a str) -> Self {
        Self { target, slot }
    }

    /// How many rows of each table have letters, by oid.
    pub(super) async fn by_table(&self) -> HashMap<u32, u64> {
        let count = format!("SELECT oid, uniqExact(key_values) FROM {TABLE} WHERE slot = ? GROUP BY oid");
        let count = self.target.query(&count).bind(self.slot).fetch_all::<(u32, u64)>();
        bounded(count).await.unwrap_or_default().into_iter().collect()
    }

    /// Gives each key that PostgreSQL has what its newest letter says: a reason never has a value in it.
    pub(super) async fn name(&self, oid: u32, found: &mut [KeyDifference]) {
        for found in found.chunks_mut(KEYS) {
            let newest = self.newest(oid, found.iter().map(|key| &key.source_key)).await;
            for key in found {
                key.dead_letter = newest.get(&key.source_key).cloned();
            }
        }
    }

    async fn newest(&self, oid: u32, keys: impl Iterator<Item = &Vec<String>>) -> HashMap<Vec<String>, String> {
        let array = |key: &Vec<String>| {
            let parts: Vec<_> = key.iter().map(|part| quote::clickhouse_string(part)).collect();
            format!("[{}]", parts.join(", "))
        };
        let keys: Vec<_> = keys.filter(|key| !key.is_empty()).map(array).collect();
        if keys.is_empty() {
            return HashMap::new();
        }
        let sql = format!(
            "SELECT key_values, argMax(if(column_name = '', reason, concat('column ', column_name, ': ', reason)), version) \
             FROM {TABLE} \
             WHERE slot = {} AND oid = {oid} AND key_values IN ({}) GROUP BY key_values",
            quote::clickhouse_string(self.slot),
            keys.join(", "),
        );
        // A key may be long.
        let target = self.target.clone().with_setting("max_query_size", "67108864");
        let letters = target.query_raw(&sql).fetch_all::<(Vec<String>, String)>();
        bounded(letters).await.unwrap_or_default().into_iter().collect()
    }
}
