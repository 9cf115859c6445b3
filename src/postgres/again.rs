//! A part of the slot's stream once more, for a lane that has let go of it.
//!
//! It comes over a connection of its own, from a temporary copy of the slot: the slot itself goes on for the others. It is
//! streamed, at whatever pace it is taken, for hours if need be: unlike a statement, that holds no snapshot and needs no room
//! on the server's disk. The copy acknowledges nothing; what the lane has made durable, the slot itself is told.

use super::{
    connection::{ConnectionError, ReplicationConnection},
    outlet::Outlet,
    streaming::Streaming,
};
use crate::{
    config::SourceConfig,
    event::Lsn,
    lane::{Replay, Reread, Room, RowError, lane},
    quote::postgres_string as literal,
};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What its session is called, in `pg_stat_activity` and `pg_stat_replication`.
const APPLICATION: &str = "walhouse events";

/// Reads one slot's stream once more.
pub struct Again {
    source: SourceConfig,
}

impl Again {
    /// What it needs to connect.
    pub fn new(source: SourceConfig) -> Self {
        Self { source }
    }
}

impl Reread for Again {
    fn reread(&self, from: Lsn, room: Room) -> BoxFuture<'static, Result<Replay, RowError>> {
        let source = self.source.clone();
        Box::pin(async move { open(&source, from, room).await.map_err(|error| row_error(&error)) })
    }
}

async fn open(source: &SourceConfig, from: Lsn, room: Room) -> Result<Replay, ConnectionError> {
    let connection = ReplicationConnection::connect(&source.url, APPLICATION).await?;
    over(connection, source, from, room).await
}

/// Begins to read the stream of `source` once more, at `from`, over a connection of its own.
///
/// # Errors
/// What the server says; none of it is for ever.
pub async fn over(
    mut connection: ReplicationConnection,
    source: &SourceConfig,
    from: Lsn,
    room: Room,
) -> Result<Replay, ConnectionError> {
    const DOING: &str = "to read events once more";
    let rows = connection.command(DOING, "SELECT pg_backend_pid()").await?;
    let pid = rows.into_iter().flatten().next().flatten().unwrap_or_default();
    // Slots share one name space, of all databases.
    let slot = format!("{}_events_{pid}", source.slot.get(..40).unwrap_or(&source.slot));
    let copy = format!("SELECT pg_copy_logical_replication_slot({}, {}, true)", literal(&source.slot), literal(&slot));
    connection.command(DOING, &copy).await?;
    let mut streaming = Streaming::start(connection, &slot, &source.publication, from).await?.unmeasured();
    let (sender, receiver, _) = lane(from);
    let (stored, acknowledged) = watch::channel(from);
    let mut outlet = Outlet::new(from, vec![sender], room, acknowledged.into());
    let (stop, never) = (CancellationToken::new(), CancellationToken::new());
    let stopped = stop.clone();
    let ended = tokio::spawn(async move {
        let ended = streaming.run(&mut outlet, &stopped, &never).await;
        streaming.finish(&mut outlet).await;
        drop(stored);
        ended.map_err(|error| row_error(&error))
    });
    Ok(Replay { deliveries: receiver.deliveries, ended, stop: stop.drop_guard() })
}

/// Nothing of it is for ever: the next try copies the slot anew.
fn row_error(error: &dyn std::error::Error) -> RowError {
    RowError { kind: crate::retry::Kind::Transient, of_the_row: false, message: error.to_string() }
}
