//! What a slot keeps on the server, and for how long it still may.

use super::sql::SqlError;
use crate::event::Lsn;
use serde::{Serialize, Serializer};
use std::fmt;
use tokio_postgres::Client;

/// A slot as the server shows it. Sizes are bytes of WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retention {
    /// Whether somebody reads it now.
    pub active: bool,
    /// The server's process that does.
    pub active_pid: Option<i32>,
    /// The acknowledged position.
    #[serde(serialize_with = "text")]
    pub confirmed: Lsn,
    /// From here on the server keeps WAL for it.
    #[serde(serialize_with = "text")]
    pub restart: Lsn,
    /// The end of the server's WAL.
    #[serde(serialize_with = "text")]
    pub position: Lsn,
    /// What was not acknowledged.
    pub lag_bytes: u64,
    /// What the server keeps for it.
    pub retained_bytes: u64,
    /// How much may be written until the server gives the slot up; `None` without a limit.
    pub safe_bytes: Option<u64>,
    /// `max_slot_wal_keep_size`; `None` without a limit.
    pub limit_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Why the server has given it up, where it tells that.
    pub invalidation: Option<String>,
}

fn text<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

impl Retention {
    /// Whether the server has given it up.
    pub fn is_lost(&self) -> bool {
        self.wal_status == "lost" || self.invalidation.is_some()
    }
}

/// How much is kept, and until when.
impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of WAL are kept for the slot", size(self.retained_bytes))?;
        match (self.safe_bytes, self.limit_bytes) {
            (Some(safe), Some(limit)) => write!(
                f,
                "; after {} more the server gives it up, and everything has to be copied anew (max_slot_wal_keep_size = {})",
                size(safe),
                size(limit)
            ),
            _ => f.write_str("; nothing but the disk limits that (max_slot_wal_keep_size = -1)"),
        }
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Looks at a slot; `None` if there is none of this name.
///
/// # Errors
/// What the server says.
pub async fn retention(client: &Client, slot: &str) -> Result<Option<Retention>, SqlError> {
    let row = client
        .query_opt(
            "SELECT active_pid, coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(restart_lsn, '0/0')::text, flushed::text, \
                    coalesce(wal_status, ''), safe_wal_size, (SELECT setting::int8 FROM pg_settings \
                    WHERE name = 'max_slot_wal_keep_size'), to_jsonb(s) ->> 'invalidation_reason', \
                    confirmed_flush_lsn IS NOT NULL, restart_lsn IS NOT NULL \
             FROM pg_replication_slots s, LATERAL (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                  ELSE pg_current_wal_flush_lsn() END AS flushed) w WHERE slot_name = $1",
            &[&slot],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let lsn =
        |index: usize| -> Result<Lsn, SqlError> { Ok(row.try_get::<_, &str>(index)?.parse().unwrap_or_default()) };
    let (confirmed, restart, position) = (lsn(1)?, lsn(2)?, lsn(3)?);
    let bytes = |value: Option<i64>| value.map(|value| u64::try_from(value).unwrap_or(0));
    let megabytes: Option<i64> = row.try_get(6)?;
    let active_pid: Option<i32> = row.try_get(0)?;
    Ok(Some(Retention {
        active: active_pid.is_some(),
        active_pid,
        confirmed,
        restart,
        position,
        // One that is lost has no position any more.
        lag_bytes: if row.try_get(8)? { position.since(confirmed) } else { 0 },
        retained_bytes: if row.try_get(9)? { position.since(restart) } else { 0 },
        safe_bytes: bytes(row.try_get(5)?),
        limit_bytes: megabytes.and_then(|megabytes| u64::try_from(megabytes).ok()).map(|megabytes| megabytes << 20),
        wal_status: row.try_get(4)?,
        invalidation: row.try_get(7)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_said_with_its_limit() {
        let kept = Retention { retained_bytes: 3 << 20, ..Retention::default() };
        assert_eq!(
            kept.to_string(),
            "3.0 MiB of WAL are kept for the slot; nothing but the disk limits that (max_slot_wal_keep_size = -1)"
        );
        let limited = Retention { safe_bytes: Some(512), limit_bytes: Some(1 << 30), ..kept };
        let text = limited.to_string();
        assert!(text.contains("after 512 B more the server gives it up"), "{text}");
        assert!(text.ends_with("(max_slot_wal_keep_size = 1.0 GiB)"), "{text}");
        assert!(Retention { wal_status: "lost".into(), ..Retention::default() }.is_lost());
    }
}
