//! The contract between the source and a destination.
//!
//! A lane is handed the whole stream, in order: every group, with every commit, also those that
//! touch nothing it cares for. What it gives back is one number on a `watch`: the position up to
//! which everything it was handed is durable at its destination. The source's position may be
//! acknowledged up to the minimum over all lanes, so a lane that is slow or down holds the slot
//! back, and loses nothing.
//!
//! What is on its way is bounded in bytes, not in groups: a [`Room`] has as many bytes as the
//! configuration grants, a group takes its share when it is sent and gives it back when the last
//! lane has dropped it. A group larger than the whole room is let through alone.

pub mod ledger;

use crate::event::{Group, Lsn, SourceTable};
use futures_util::future::BoxFuture;
use std::{ops::Deref, sync::Arc};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::DropGuard;

/// Room is counted in units of this many bytes, because a semaphore counts to 2^32 only.
const UNIT: usize = 1024;

/// A bound on the bytes that are on their way.
#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    units: u32,
}

/// A share of a [`Room`], given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    _permit: OwnedSemaphorePermit,
}

impl Room {
    /// A room of `bytes`.
    pub fn new(bytes: usize) -> Self {
        let units = u32::try_from((bytes / UNIT).max(1)).unwrap_or(u32::MAX).min(u32::MAX / 8);
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits for `bytes` of room; for all of it, if `bytes` is more than there is. Cancel-safe.
    pub async fn take(&self, bytes: usize) -> Share {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        let permit = Arc::clone(&self.free).acquire_many_owned(units).await;
        Share { _permit: permit.expect("a room's semaphore is never closed") }
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.units as usize * UNIT
    }

    /// How many bytes are taken.
    pub fn taken(&self) -> usize {
        (self.units as usize).saturating_sub(self.free.available_permits()) * UNIT
    }
}

/// A group on its way, with the room that it takes.
#[derive(Debug)]
pub struct Delivery {
    group: Group,
    _share: Share,
}

impl Delivery {
    /// Puts a group on its way.
    pub fn new(group: Group, share: Share) -> Arc<Self> {
        Arc::new(Self { group, _share: share })
    }
}

impl Deref for Delivery {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

/// The source's end of a lane.
#[derive(Clone, Debug)]
pub struct LaneSender {
    deliveries: mpsc::UnboundedSender<Arc<Delivery>>,
}

/// The destination's end of a lane.
#[derive(Debug)]
pub struct LaneReceiver {
    /// Groups in stream order; the end of the channel means: finish what you have, then stop.
    pub deliveries: mpsc::UnboundedReceiver<Arc<Delivery>>,
    /// Where to say what is durable. Never goes back.
    pub durable: watch::Sender<Lsn>,
}

/// The lane has ended, so nothing can be delivered to it.
#[derive(Debug, thiserror::Error)]
#[error("a lane ended")]
pub struct LaneEnded;

impl LaneSender {
    /// Hands over a group. It never waits: the group's room was taken before.
    ///
    /// # Errors
    /// If the lane has ended; its own result says why.
    pub fn send(&self, delivery: &Arc<Delivery>) -> Result<(), LaneEnded> {
        self.deliveries.send(Arc::clone(delivery)).map_err(|_| LaneEnded)
    }
}

/// A new lane, durable up to `start`.
pub fn lane(start: Lsn) -> (LaneSender, LaneReceiver, watch::Receiver<Lsn>) {
    let (sender, deliveries) = mpsc::unbounded_channel();
    let (durable, watched) = watch::channel(start);
    (LaneSender { deliveries: sender }, LaneReceiver { deliveries, durable }, watched)
}

/// Rows of one table of the source, to be read as they are now.
#[derive(Clone, Debug)]
pub struct RowsRequest {
    /// `pg_class.oid` of the table or partition root.
    pub table: u32,
    /// The names of the key's columns.
    pub key: Vec<String>,
    /// The condition on what is published. A row that does not meet it any more counts as gone: the
    /// change that took it out is on the way as its delete.
    pub filter: Option<String>,
    /// The rows, one at least.
    pub rows: Vec<RowRequest>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct RowRequest {
    /// The text forms of its key, in the order of the key's columns.
    pub key: Vec<Vec<u8>>,
    /// The names of the columns that are wanted.
    pub columns: Vec<String>,
    /// The transaction that must be visible to the reader.
    pub xid: u32,
}

/// The text forms of the columns of a row that were wanted; `None` is NULL.
pub type RowValues = Vec<Option<Vec<u8>>>;

/// What the source says of rows.
#[derive(Clone, Debug)]
pub struct RowsAnswer {
    /// Of each row, `None` if there is none with this key any more. As far as it was read, but one row at least: the rest
    /// is to be asked for again.
    pub rows: Vec<Option<RowValues>>,
    /// The WAL position after the read: what was read is from no later time.
    pub position: Lsn,
}

/// The source could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the source could not be asked for a row: {message}")]
pub struct RowError {
    /// Whether another try can help.
    pub kind: crate::retry::Kind,
    /// Whether it is this row or its table that can not be read, and not the source as a whole.
    pub of_the_row: bool,
    /// What happened.
    pub message: String,
}

/// Reads the source as it is now: the last resort of a lane that needs what the stream does not
/// carry.
pub trait RowSource: Send + Sync + 'static {
    /// Reads rows through one snapshot in which the transactions of all of them are visible. An error is one of the first
    /// row, if it is one of a row.
    fn current(&self, request: RowsRequest) -> BoxFuture<'_, Result<RowsAnswer, RowError>>;

    /// What the catalog shows of a table through a snapshot in which transaction `xid` is visible,
    /// with a WAL position that the snapshot is not older than; `None` if it was dropped.
    fn table(&self, oid: u32, xid: u32) -> BoxFuture<'_, Result<Option<(SourceTable, Lsn)>, RowError>>;

    /// What a message with the prefix [`DDL_PREFIX`] that stands in transaction `xid` tells; `None` if
    /// it is not to be trusted, or of no concern.
    fn told<'a>(&'a self, content: &'a [u8], xid: u32) -> BoxFuture<'a, Result<Option<Told>, RowError>>;
}

/// Remembers how far what is out of hand has come, durably and beforehand: a failover to a server that has not got as far would
/// otherwise give the same positions to other transactions, and nobody would see it.
pub trait Reserve: Send + Sync + 'static {
    /// Returns once what commits up to `commit` hold may be sent; the error says what stands in the way.
    fn reserve(&self, commit: Lsn) -> BoxFuture<'_, Result<(), String>>;
}

/// Reads the stream once more from an earlier position on, for a lane that has let go of it.
pub trait Reread: Send + Sync + 'static {
    /// Begins at `from`, a position that the stream has given and that this lane holds back; at most `room` is on its way.
    /// Relations are announced anew.
    fn reread(&self, from: Lsn, room: Room) -> BoxFuture<'static, Result<Replay, RowError>>;
}

/// The stream once more. It ends when this is dropped.
#[derive(Debug)]
pub struct Replay {
    /// Its groups. The end of the channel means that it broke off.
    pub deliveries: mpsc::UnboundedReceiver<Arc<Delivery>>,
    /// Why it did.
    pub ended: JoinHandle<Result<(), RowError>>,
    /// Ends it.
    pub stop: DropGuard,
}

/// The prefix of the messages that name what correlates the changes of their transaction.
pub const CORRELATION_PREFIX: &[u8] = b"walhouse.correlation";

/// The prefix of the messages in which the source tells of changes of shape.
pub const DDL_PREFIX: &[u8] = b"walhouse.ddl";

/// What the source tells of a change of shape, at its place in the stream.
#[derive(Clone, Debug)]
pub enum Told {
    /// The table, with what of it is published, as the catalog showed it there.
    Table(Box<SourceTable>),
    /// The oids of tables and partitions that were dropped.
    Dropped(Vec<u32>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    #[tokio::test]
    async fn a_group_larger_than_the_room_is_let_through_alone() {
        let room = Room::new(10 * UNIT);
        let small = room.take(1).await;
        let large = room.take(100 * UNIT);
        tokio::pin!(large);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut large).await.is_err());
        drop(small);
        let large = large.await;
        assert_eq!((room.bytes(), room.taken()), (10 * UNIT, 10 * UNIT));
        assert!(tokio::time::timeout(Duration::from_millis(20), room.take(1)).await.is_err());
        drop(large);
        assert_eq!(room.taken(), 0);
    }

    #[tokio::test]
    async fn room_comes_back_when_the_last_lane_has_dropped_the_group() {
        let room = Room::new(10 * UNIT);
        let (first, mut first_end, _) = lane(Lsn::ZERO);
        let (second, mut second_end, _) = lane(Lsn::ZERO);
        let group = Group { data: Bytes::new(), events: Vec::new() };
        let delivery = Delivery::new(group, room.take(4 * UNIT).await);
        first.send(&delivery).unwrap();
        second.send(&delivery).unwrap();
        drop(delivery);
        drop(first_end.deliveries.recv().await);
        assert_eq!(room.taken(), 4 * UNIT);
        drop(second_end.deliveries.recv().await);
        assert_eq!(room.taken(), 0);
    }
}
