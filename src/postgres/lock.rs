//! The lock of a slot: which of several walhouses may write.
//!
//! The slot itself lets one reader in at a time, but a process can write to ClickHouse after it has
//! lost its connection, and before it has noticed. So each holds an advisory lock in a session of its
//! own, and asks before each checkpoint whether it still does.

use super::sql::SqlError;
use std::time::Duration;
use tokio_postgres::Client;

/// The advisory lock of a slot. Whoever holds it may write; the lock goes with its session.
pub struct SlotLock {
    client: Client,
}

impl SlotLock {
    /// Takes the lock, and waits for it if it must, saying who has it.
    pub async fn take(client: Client, slot: &str) -> Result<Self, SqlError> {
        let mut said = None;
        loop {
            let row = client
                .query_one("SELECT pg_try_advisory_lock(hashtextextended('walhouse ' || $1, 0))", &[&slot])
                .await?;
            if row.try_get(0)? {
                return Ok(Self { client });
            }
            let holder = holder(&client, slot).await?;
            if said != holder {
                let who = holder.clone().unwrap_or_else(|| "a session that is about to end".to_owned());
                tracing::warn!(slot, who, "another walhouse holds this slot; waiting for it to end");
                said = holder;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether the session that holds the lock still answers.
    pub async fn is_held(&self) -> bool {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.client.simple_query("SELECT 1")).await;
        matches!(answer, Ok(Ok(_)))
    }
}

/// Who holds the lock of a slot, for people; `None` if nobody does.
///
/// # Errors
/// What the server says.
pub async fn holder(client: &Client, slot: &str) -> Result<Option<String>, SqlError> {
    let row = client
        .query_opt(
            "SELECT format('process %s (%s) of role %s from %s, since %s', a.pid, a.application_name, a.usename, \
                    coalesce(host(a.client_addr), 'a local socket'), to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS')) \
             FROM pg_locks l JOIN pg_stat_activity a USING (pid), \
                  (SELECT hashtextextended('walhouse ' || $1, 0) AS key) k \
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
               AND l.classid::bigint = (k.key >> 32) & 4294967295 AND l.objid::bigint = k.key & 4294967295",
            &[&slot],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}
