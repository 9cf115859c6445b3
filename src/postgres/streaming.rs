//! The streaming reader: START_REPLICATION, near the head of the WAL.
//!
//! One task owns the connection. It waits for four things at once: bytes, room for the group that
//! it holds, a checkpoint to report, and the clock. So keepalives are answered and status updates
//! go out while a lane is slow, down or hung; what stops then is only the reading, and PostgreSQL
//! keeps the WAL.
//!
//! The position reported as flushed is the stored checkpoint (or what is behind it by the replay window), never anything that
//! was merely received. The written position is the same: a keepalive with a newer position is what the
//! server sends while the reported ones lag behind, and it is what moves an idle slot forward.

use super::{
    assembler::StreamError,
    connection::{ConnectionError, ReplicationConnection},
    outlet::Outlet,
    plugin,
    wire::StatusUpdate,
};
use crate::{
    event::{Group, Lsn},
    telemetry::names,
};
use bytes::BytesMut;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A status update goes out at least this often. While a lane is full nothing is read, so neither is the server's
/// question whether somebody is there: what it gets unasked must do, also for a `wal_sender_timeout` of few seconds.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// After this much silence the server is asked to say something.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// After this much silence the connection counts as gone, though nobody said so.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// The server sends row by row, and to take them one by one costs more than to read what is in them. So a read that brought
/// little is followed by a rest, in which the next ones come together.
const LITTLE: usize = 128 * 1024;
const REST: Duration = Duration::from_millis(1);
/// A status update is 39 bytes: if the socket does not take them for this long, it is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A reader of one slot, connected and streaming.
pub struct Streaming {
    connection: ReplicationConnection,
    heard: Instant,
    is_measured: bool,
}

impl Streaming {
    /// Starts streaming from `start`: the stored checkpoint, or what was handed over beyond it.
    ///
    /// # Errors
    /// What the server says: a slot in use is transient, a slot that is gone is not.
    pub async fn start(
        mut connection: ReplicationConnection,
        slot: &str,
        publication: &str,
        start: Lsn,
    ) -> Result<Self, ConnectionError> {
        let options = plugin::replication_options(publication);
        let slot = crate::quote::postgres(slot);
        let command = format!("START_REPLICATION SLOT {slot} LOGICAL {start} ({options})");
        connection.start_replication(&command).await?;
        Ok(Self { connection, heard: Instant::now(), is_measured: true })
    }

    /// It is not the one whose position and bytes are told.
    pub fn unmeasured(self) -> Self {
        Self { is_measured: false, ..self }
    }

    /// Reads until `stop` is cancelled, or until `leave` is and no transaction is open. Then the connection's other half of
    /// the work is left to [`finish`](Self::finish).
    ///
    /// # Errors
    /// When the stream breaks, or a lane has ended.
    pub async fn run(
        &mut self,
        outlet: &mut Outlet,
        stop: &CancellationToken,
        leave: &CancellationToken,
    ) -> Result<(), StreamError> {
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        let mut rest = None;
        loop {
            let leaving = leave.is_cancelled();
            if outlet.held.is_none() {
                if leaving && outlet.assembler.is_between_transactions() {
                    return Ok(());
                }
                outlet.held = self.take(outlet, leaving).await?;
            }
            let wanted = outlet.held.as_ref().map_or(0, Group::bytes);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = leave.cancelled(), if !leaving => {}
                changed = outlet.acknowledged.changed() => {
                    changed.map_err(|_| StreamError::Ended)?;
                    self.report(outlet, false).await?;
                }
                _ = status.tick() => self.tick(outlet).await?,
                share = outlet.room.take(wanted), if outlet.held.is_some() => {
                    outlet.deliver(share)?;
                    self.heard = Instant::now();
                }
                () = sleep_until(rest), if rest.is_some() => rest = None,
                read = self.connection.read(), if outlet.held.is_none() && rest.is_none() => {
                    let count = read?;
                    if self.is_measured {
                        metrics::counter!(names::SOURCE_BYTES).increment(count as u64);
                    }
                    self.heard = Instant::now();
                    if count < LITTLE {
                        self.connection.rest()?;
                        rest = Some(self.heard + REST);
                    }
                }
            }
        }
    }

    /// Takes what is whole in the buffer, and makes room for what is not.
    async fn take(&mut self, outlet: &mut Outlet, leaving: bool) -> Result<Option<Group>, StreamError> {
        let taken = outlet.assembler.take(self.connection.buffer(), leaving)?;
        if let Some(position) = taken.heard.filter(|_| self.is_measured) {
            metrics::gauge!(names::SOURCE_POSITION).set(position.0 as f64);
        }
        if taken.reply_requested {
            self.report(outlet, false).await?;
        }
        self.connection.make_room(taken.group.as_ref().map_or(0, |group| group.data.len()))?;
        Ok(taken.group)
    }

    async fn tick(&mut self, outlet: &mut Outlet) -> Result<(), StreamError> {
        let (silent, holding) = (self.heard.elapsed(), outlet.held.is_some());
        // While a group waits for room nothing is read, so silence says nothing.
        if !holding && silent > GONE_AFTER {
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "the server has gone silent");
            return Err(ConnectionError::Io { endpoint: "the slot's stream".into(), source }.into());
        }
        self.report(outlet, !holding && silent > ASK_AFTER).await
    }

    /// Tells the server what is durable.
    async fn report(&mut self, outlet: &mut Outlet, reply_requested: bool) -> Result<(), StreamError> {
        let done = outlet.acknowledged.position();
        let mut out = BytesMut::new();
        let update = StatusUpdate { write: done, flush: done, apply: done, clock: SystemTime::now(), reply_requested };
        update.encode(&mut out);
        let written = tokio::time::timeout(WRITE_TIMEOUT, self.connection.write(&mut out)).await;
        written.map_err(|_| {
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "it takes no status update");
            ConnectionError::Io { endpoint: "the slot's stream".into(), source }
        })??;
        Ok(())
    }

    /// Reports the last checkpoint and closes the connection in order, so that the slot is free.
    pub async fn finish(mut self, outlet: &mut Outlet) {
        if let Err(error) = self.report(outlet, false).await {
            tracing::debug!(%error, "the last status update did not go out");
        }
        self.connection.close().await;
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
