//! One of the sessions that decode ahead: a connection, and a temporary slot that goes with it.
//!
//! The slot is a copy of the main one. A call moves it even if its statement fails afterwards, so a
//! session is never used again after an error: it ends, the server drops its slot, and whoever comes
//! next copies the main slot anew.

use super::{
    GivenUp, LONGEST_COPY,
    window::{Bounds, DOING},
};
use crate::{
    config::SourceConfig,
    event::Lsn,
    postgres::{
        connection::{ConnectionError, ReplicationConnection, field},
        plugin,
    },
    quote::postgres_string as literal,
};
use std::time::{Duration, Instant};

/// What the sessions are called, in `pg_stat_activity` too.
pub(super) const APPLICATION: &str = "walhouse catch-up";
/// Beyond what this end waits for, the server gives up by itself, should this one be gone.
const GRACE: Duration = Duration::from_secs(10);
/// A temporary file may be so many times as large as a window: twice as large as the longest.
const DISK: u64 = 16;
/// A window may make the server decode so many times its own length again.
const REPEATED: u64 = 64;

/// A session, ready for a window.
pub(super) struct Session {
    pub(super) connection: ReplicationConnection,
    pub(super) pid: i32,
    slot: String,
    options: String,
    timeout: Duration,
    window: u64,
}

/// A session whose server has decoded a window and sends it.
pub(super) struct Fetched {
    pub(super) session: Session,
    pub(super) bounds: Bounds,
    /// How far back the decoding had to begin, in bytes.
    pub(super) repeated: u64,
    /// When the first bytes were there. The statement's snapshot holds back vacuum until the last are.
    pub(super) since: Instant,
}

impl Session {
    /// Connects and copies the slot.
    pub(super) async fn open(source: &SourceConfig) -> Result<Self, ConnectionError> {
        const DOING: &str = "to open a session that catches up";
        let mut connection = ReplicationConnection::connect_for_copy(&source.url, APPLICATION).await?;
        let rows = connection.command(DOING, "SELECT pg_backend_pid()").await?;
        let pid: i32 = field(&rows, 0).parse().map_err(|_| ConnectionError::Protocol("a process without a number"))?;
        // Slots share one name space, of all databases.
        let slot = format!("{}_catch_up_{pid}", source.slot.get(..40).unwrap_or(&source.slot));
        let timeout = source.catch_up_timeout.0;
        let window = source.catch_up_window.0;
        let limit = (timeout + LONGEST_COPY + GRACE).as_millis();
        connection.command(DOING, &format!("SET statement_timeout = {limit}")).await?;
        // When this process is gone while the server decodes, nobody else would tell it.
        wish(&mut connection, DOING, "SET client_connection_check_interval = 5000").await?;
        // Only for whom it was granted, or a superuser.
        wish(&mut connection, DOING, &format!("SET temp_file_limit = '{}kB'", (window * DISK) >> 10)).await?;
        let copy = format!("SELECT pg_copy_logical_replication_slot({}, '{slot}', true)", literal(&source.slot));
        connection.command("to copy the slot", &copy).await?;
        let options = plugin::function_options(&source.publication);
        Ok(Self { connection, pid, slot, options, timeout, window })
    }

    /// Has the server decode a window, up to the first bytes of its answer.
    pub(super) async fn fetch(mut self, bounds: Bounds) -> Result<Fetched, GivenUp> {
        let of_window = |error| GivenUp::of_window(error, bounds.upto);
        let (slot, Bounds { from, upto }) = (&self.slot, bounds);
        // It stands beyond the beginning if the record that ended the last call did.
        let advance = format!(
            "SELECT pg_replication_slot_advance(slot_name, '{from}') FROM pg_replication_slots \
             WHERE slot_name = '{slot}' AND confirmed_flush_lsn < '{from}'"
        );
        self.connection.long_command("to go to a window", &advance, self.timeout).await.map_err(of_window)?;
        let restart = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let rows = self.connection.command(DOING, &restart).await.map_err(of_window)?;
        let repeated = field(&rows, 0).parse().map_or(0, |restart: Lsn| from.since(restart));
        if repeated > out_of_proportion(self.window) {
            return Err(GivenUp::OpenTransaction { bytes: repeated });
        }
        let copy = format!(
            "COPY (SELECT lsn, data FROM pg_logical_slot_get_binary_changes('{slot}', '{upto}', NULL, {})) \
             TO STDOUT (FORMAT binary)",
            self.options
        );
        self.connection.copy_out(DOING, &copy, self.timeout).await.map_err(of_window)?;
        Ok(Fetched { session: self, bounds, repeated, since: Instant::now() })
    }
}

/// What not every server has, or not every role may.
async fn wish(connection: &mut ReplicationConnection, doing: &'static str, sql: &str) -> Result<(), ConnectionError> {
    match connection.command(doing, sql).await {
        Ok(_) | Err(ConnectionError::Server { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// How far back decoding may have to begin, for windows of this length.
pub(super) fn out_of_proportion(window: u64) -> u64 {
    window.saturating_mul(REPEATED)
}
