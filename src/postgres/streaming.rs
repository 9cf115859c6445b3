//! The streaming reader: START_REPLICATION, near the head of the WAL.
//!
//! One task owns the connection. It waits for four things at once: bytes, room for the group that
//! it holds, a checkpoint to report, and the clock. So keepalives are answered and status updates
//! go out while a lane is slow, down or hung; what stops then is only the reading, and PostgreSQL
//! keeps the WAL.
//!
//! The position reported as flushed is the stored checkpoint, never anything that was merely
//! received. The written position is the same: a keepalive with a newer position is what the
//! server sends while the reported ones lag behind, and it is what moves an idle slot forward.

use super::{
    assembler::{Assembler, StreamError},
    connection::{ConnectionError, ReplicationConnection},
    wire::{self, StatusUpdate},
};
use crate::{
    event::{Group, Lsn},
    lane::{Delivery, LaneSender, Room},
    telemetry::names,
};
use bytes::BytesMut;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How much is read at once, at most. Larger rows make the buffer grow to their size.
const GULP: usize = 512 * 1024;
/// A status update goes out at least this often. While a lane is full nothing is read, so neither is the server's
/// question whether somebody is there: what it gets unasked must do, also for a `wal_sender_timeout` of few seconds.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// After this much silence the server is asked to say something.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// After this much silence the connection counts as gone, though nobody said so.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// A status update is 39 bytes: if the socket does not take them for this long, it is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A reader of one slot, connected and streaming.
pub struct Streaming {
    connection: ReplicationConnection,
    assembler: Assembler,
    lanes: Vec<LaneSender>,
    room: Room,
    stored: watch::Receiver<Lsn>,
    heard: Instant,
}

impl Streaming {
    /// Starts streaming from `start`, the stored checkpoint.
    ///
    /// # Errors
    /// What the server says: a slot in use is transient, a slot that is gone is not.
    pub async fn start(
        mut connection: ReplicationConnection,
        slot: &str,
        publication: &str,
        start: Lsn,
        lanes: Vec<LaneSender>,
        room: Room,
        stored: watch::Receiver<Lsn>,
    ) -> Result<Self, ConnectionError> {
        // Inside the option's value a quote is doubled; the publication's name is quoted as an
        // identifier because the server parses a list of them there.
        let publication = crate::quote::postgres(publication).replace('\'', "''");
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names '{publication}', messages 'true')",
            crate::quote::postgres(slot),
        );
        connection.start_replication(&command).await?;
        Ok(Self { connection, assembler: Assembler::new(start), lanes, room, stored, heard: Instant::now() })
    }

    /// Reads until `stop` is cancelled, then hands the connection's other half of the work to
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// When the stream breaks, or a lane has ended.
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<(), StreamError> {
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        let mut held: Option<Group> = None;
        loop {
            if held.is_none() {
                held = self.take().await?;
            }
            let wanted = held.as_ref().map_or(0, |group| group.data.len());
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                changed = self.stored.changed() => {
                    changed.map_err(|_| StreamError::Ended)?;
                    self.report(false).await?;
                }
                _ = status.tick() => self.tick(held.is_some()).await?,
                share = self.room.take(wanted), if held.is_some() => {
                    if let Some(group) = held.take() {
                        let delivery = Delivery::new(group, share);
                        for lane in &self.lanes {
                            lane.send(&delivery).map_err(|_| StreamError::Ended)?;
                        }
                        self.heard = Instant::now();
                    }
                }
                read = self.connection.read(), if held.is_none() => {
                    metrics::counter!(names::SOURCE_BYTES).increment(read? as u64);
                    self.heard = Instant::now();
                }
            }
        }
    }

    /// Takes what is whole in the buffer, and makes room for what is not.
    async fn take(&mut self) -> Result<Option<Group>, StreamError> {
        let taken = self.assembler.take(self.connection.buffer())?;
        if let Some(position) = taken.heard {
            metrics::gauge!(names::SOURCE_POSITION).set(position.0 as f64);
        }
        if taken.reply_requested {
            self.report(false).await?;
        }
        let buffer = self.connection.buffer();
        let whole = wire::frame_len(buffer).map_err(ConnectionError::from)?.unwrap_or(0);
        // What was handed over lives as long as its group. This end would keep a large row's memory beyond that.
        if buffer.is_empty() && taken.group.as_ref().is_some_and(|group| group.data.len() > 2 * GULP) {
            *buffer = BytesMut::new();
        }
        let missing = whole.saturating_sub(buffer.len()).max(GULP / 4);
        if buffer.capacity() - buffer.len() < missing {
            buffer.reserve(missing.max(GULP));
        }
        Ok(taken.group)
    }

    async fn tick(&mut self, holding: bool) -> Result<(), StreamError> {
        let silent = self.heard.elapsed();
        // While a group waits for room nothing is read, so silence says nothing.
        if !holding && silent > GONE_AFTER {
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "the server has gone silent");
            return Err(ConnectionError::Io { endpoint: "the slot's stream".into(), source }.into());
        }
        self.report(!holding && silent > ASK_AFTER).await
    }

    /// Tells the server what is durable.
    async fn report(&mut self, reply_requested: bool) -> Result<(), StreamError> {
        let stored = *self.stored.borrow_and_update();
        let mut out = BytesMut::new();
        let update =
            StatusUpdate { write: stored, flush: stored, apply: stored, clock: SystemTime::now(), reply_requested };
        update.encode(&mut out);
        let written = tokio::time::timeout(WRITE_TIMEOUT, self.connection.write(&mut out)).await;
        written.map_err(|_| {
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "it takes no status update");
            ConnectionError::Io { endpoint: "the slot's stream".into(), source }
        })??;
        Ok(())
    }

    /// Lets the lanes end: nothing more will come.
    pub fn release_lanes(&mut self) {
        self.lanes.clear();
    }

    /// Reports the last checkpoint and closes the connection in order, so that the slot is free.
    pub async fn finish(mut self) {
        if let Err(error) = self.report(false).await {
            tracing::debug!(%error, "the last status update did not go out");
        }
        self.connection.close().await;
    }
}
