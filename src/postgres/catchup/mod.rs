//! The catch-up reader: windows of WAL through the SQL functions of logical decoding, far from its head.
//!
//! The walsender decodes on one core and writes to its socket after every row. A COPY of
//! `pg_logical_slot_get_binary_changes` gives the same messages in half the time, and several
//! sessions can decode at once: each has a temporary copy of the slot and takes a window in turn. So
//! windows are decoded ahead, and consumed strictly in order. What is decoded and not consumed lies
//! on the server: of a window whose turn has not come, no more is read than its first bytes.
//!
//! What is known of it by experiment:
//! - Decoding begins at the slot's `restart_lsn`, which moves at running-xacts records only and never
//!   past an open transaction. Windows grow with that distance, and out of proportion it is streamed.
//! - A window does not bound what one transaction makes the server keep, before the first byte comes:
//!   that may take so long and so much disk, and whatever is too much is streamed.
//! - A COPY that is not read keeps its snapshot, and vacuum waits everywhere: one that lasts too long
//!   after its first bytes ends the catching up.
//! - Copies of a failover slot do not wait for the standbys that it waits for, so it is streamed.
//!
//! After any error all sessions end, and their slots with them. Nothing is lost by that: what commits
//! were handed over is known to the [`Outlet`], and the stream goes on from there.

mod keeper;
mod plan;
mod session;
mod window;

pub(crate) use plan::Gate;

use super::{
    acknowledged::Acknowledged,
    assembler::StreamError,
    connection::ConnectionError,
    lock::SlotLock,
    outlet::Outlet,
    sql::{self, SqlError},
};
use crate::{
    config::SourceConfig,
    event::{Group, Lsn},
    telemetry::names,
};
use keeper::Keeper;
use plan::Plan;
use session::{Fetched, Session};
use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use window::Window;

/// A window may take this long from its first bytes to its last.
const LONGEST_COPY: Duration = Duration::from_secs(30);

/// Why the rest, or all of it, is left to the stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GivenUp {
    #[error("copies of a failover slot would not wait for its standbys")]
    Failover,
    #[error("no replication slot is free for a copy: raise max_replication_slots")]
    NoSlot,
    #[error("decoding has to begin {bytes} bytes earlier: a transaction is open since then, or none was noted down")]
    OpenTransaction { bytes: u64 },
    #[error("what was decoded could not be taken within {} s", LONGEST_COPY.as_secs())]
    Stalled,
    #[error("a window is too much for one statement ({why}); it is streamed, up to {past}")]
    TooMuch { past: Lsn, why: String },
    #[error("{0}")]
    Failed(String),
}

impl GivenUp {
    /// What became of a window that ends at `past`.
    fn of_window(error: ConnectionError, past: Lsn) -> Self {
        let why = error.to_string();
        let is_much = match error {
            ConnectionError::TimedOut { .. } => true,
            // Cancelled, as by a timeout; a temporary file that may not grow; a full disk.
            _ => error.code().is_some_and(|code| ["57014", "53400", "53100"].contains(&code)),
        };
        if is_much { Self::TooMuch { past, why } } else { Self::Failed(why) }
    }

    /// In one word, for the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::NoSlot => "no_slot",
            Self::OpenTransaction { .. } => "open_transaction",
            Self::Stalled => "stalled",
            Self::TooMuch { .. } => "too_much",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<SqlError> for GivenUp {
    fn from(error: SqlError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How catching up ended, other than by an error of the stream itself.
pub(crate) enum Ended {
    /// It was asked to stop.
    Stopped,
    /// What is left is less than a window.
    AtHead,
    /// The stream has to go on.
    GivenUp(GivenUp),
}

/// A window that is being decoded.
struct Turn {
    task: JoinHandle<Result<Fetched, GivenUp>>,
    /// When its first bytes were there.
    since: Arc<OnceLock<Instant>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The window that is being consumed.
struct Front {
    session: Session,
    window: Window,
    since: Instant,
}

/// Sessions that stand ready, and what they are at.
pub(crate) struct CatchUp {
    keeper: Keeper,
    pids: Vec<i32>,
    idle: Vec<Session>,
    turns: VecDeque<Turn>,
    front: Option<Front>,
    /// The distance from the main slot's `restart_lsn`, in bytes.
    repeated: u64,
    window: u64,
    grow: bool,
}

impl CatchUp {
    /// Copies the slot, which may be in use. `from` is about where it will begin; with `grow`, windows may be longer
    /// than configured.
    pub(crate) async fn open(
        source: &SourceConfig,
        from: Lsn,
        grow: bool,
        stored: Acknowledged,
        lock: Arc<SlotLock>,
    ) -> Result<Self, GivenUp> {
        let client = sql::connect(source, "walhouse slot").await?;
        let (free, repeated) = plan::look(&client, source, from).await?;
        let mut idle = Vec::new();
        for _ in 0..source.sessions().min(free) {
            match Session::open(source).await {
                Ok(session) => idle.push(session),
                // Fewer will do.
                Err(error) if !idle.is_empty() => tracing::debug!(%error, "one session less catches up"),
                Err(error) => return Err(GivenUp::Failed(error.to_string())),
            }
        }
        let pids = idle.iter().map(|session| session.pid).collect();
        let keeper = Keeper::new(client, source, stored, lock);
        let window = source.catch_up_window.0;
        Ok(Self { keeper, pids, idle, turns: VecDeque::new(), front: None, repeated, window, grow })
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.pids.len()
    }

    /// Reads windows until it comes near the head, which `flushed` tells, or can not go on. What it has not done by then,
    /// [`finish`](Self::finish) ends.
    ///
    /// # Errors
    /// If what comes is not understood, or a lane has ended.
    pub(crate) async fn run(
        &mut self,
        outlet: &mut Outlet,
        flushed: &watch::Receiver<Lsn>,
        stop: &CancellationToken,
    ) -> Result<Ended, StreamError> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let position = outlet.assembler.position();
        let mut plan = Plan::new(self.window, self.grow, self.sessions(), position, *flushed.borrow());
        plan.repeated(self.repeated);
        self.keeper.start();
        loop {
            self.give_turns(&mut plan, *flushed.borrow());
            if outlet.held.is_none() {
                match self.take(outlet) {
                    Err(StreamError::Connection(error)) => return Ok(Ended::GivenUp(self.broken(error))),
                    taken => taken?,
                }
            }
            if outlet.held.is_none() && self.front.is_none() && self.turns.is_empty() {
                return Ok(Ended::AtHead);
            }
            let wanted = outlet.held.as_ref().map_or(0, Group::bytes);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ended::Stopped),
                _ = tick.tick() => if self.is_stalled() {
                    return Ok(Ended::GivenUp(GivenUp::Stalled));
                },
                why = self.keeper.failed() => return Ok(Ended::GivenUp(why)),
                share = outlet.room.take(wanted), if outlet.held.is_some() => outlet.deliver(share)?,
                read = read(&mut self.front), if outlet.held.is_none() && self.front.is_some() => match read {
                    Ok(count) => metrics::counter!(names::SOURCE_BYTES).increment(count as u64),
                    Err(error) => return Ok(Ended::GivenUp(self.broken(error))),
                },
                fetched = next(&mut self.turns), if self.front.is_none() && !self.turns.is_empty() => {
                    self.turns.pop_front();
                    match fetched {
                        Ok(fetched) => {
                            plan.repeated(fetched.repeated);
                            let Fetched { session, bounds, since, .. } = fetched;
                            let window = Window::begin(bounds, &mut outlet.assembler);
                            self.front = Some(Front { session, window, since });
                        }
                        Err(why) => return Ok(Ended::GivenUp(why)),
                    }
                }
            }
        }
    }

    /// Gives windows to the sessions that have none.
    fn give_turns(&mut self, plan: &mut Plan, flushed: Lsn) {
        while !self.idle.is_empty()
            && let Some(bounds) = plan.next(flushed)
            && let Some(session) = self.idle.pop()
        {
            let since = Arc::new(OnceLock::new());
            let first = Arc::clone(&since);
            let task = tokio::spawn(async move {
                let fetched = session.fetch(bounds).await?;
                _ = first.set(fetched.since);
                Ok(fetched)
            });
            self.turns.push_back(Turn { task, since });
        }
    }

    /// Takes what is whole of the window whose turn it is.
    fn take(&mut self, outlet: &mut Outlet) -> Result<(), StreamError> {
        let Some(front) = self.front.as_mut() else { return Ok(()) };
        outlet.held = front.window.take(front.session.connection.buffer(), &mut outlet.assembler)?;
        let delivered = outlet.held.as_ref().map_or(0, |group| group.data.len());
        front.session.connection.make_room(delivered)?;
        metrics::gauge!(names::SOURCE_POSITION).set(outlet.assembler.position().0 as f64);
        if front.window.has_ended() {
            metrics::counter!(names::CATCH_UP_WINDOWS).increment(1);
            self.idle.extend(self.front.take().map(|front| front.session));
        }
        Ok(())
    }

    fn broken(&self, error: ConnectionError) -> GivenUp {
        match &self.front {
            Some(front) => GivenUp::of_window(error, front.window.bounds().upto),
            None => GivenUp::Failed(error.to_string()),
        }
    }

    /// Whether a window lasts too long, its turn or not.
    fn is_stalled(&self) -> bool {
        let front = self.front.iter().map(|front| front.since);
        let behind = self.turns.iter().filter_map(|turn| turn.since.get().copied());
        front.chain(behind).any(|since| since.elapsed() > LONGEST_COPY)
    }

    /// Hangs up on every session.
    pub(crate) fn hang_up(&mut self) {
        self.front = None;
        self.turns.clear();
        self.idle.clear();
    }

    /// Ends the sessions, so that their slots are gone, and moves the main one to the stored checkpoint.
    pub(crate) async fn finish(mut self) {
        self.hang_up();
        self.keeper.finish(&self.pids).await;
    }
}

/// Moves a slot that nobody reads to the stored checkpoint.
pub(crate) async fn acknowledge(
    source: &SourceConfig,
    stored: Acknowledged,
    lock: Arc<SlotLock>,
) -> Result<(), SqlError> {
    let client = sql::connect(source, "walhouse slot").await?;
    Keeper::new(client, source, stored, lock).finish(&[]).await;
    Ok(())
}

/// Uses a slot that nobody reads for a while, so that the server does not take it for idle; it stays where it is. Ends with
/// what is returned.
///
/// # Errors
/// If there is no session to be had for that.
pub async fn keep(source: &SourceConfig, lock: Arc<SlotLock>) -> Result<Kept, SqlError> {
    let client = sql::connect(source, "walhouse slot").await?;
    let nothing = watch::channel(Lsn::ZERO).1;
    let mut keeper = Keeper::new(client, source, nothing.into(), lock);
    keeper.start();
    Ok(Kept(keeper))
}

/// A slot that is kept from being idle.
pub struct Kept(Keeper);

impl Kept {
    /// Lets it go, so that it is free when this returns.
    pub async fn finish(self) {
        self.0.finish(&[]).await;
    }
}

async fn read(front: &mut Option<Front>) -> Result<usize, ConnectionError> {
    match front {
        Some(front) => front.session.connection.read().await,
        None => std::future::pending().await,
    }
}

/// The window whose turn is next. Cancel-safe: it is taken from the queue by whoever has the answer.
async fn next(turns: &mut VecDeque<Turn>) -> Result<Fetched, GivenUp> {
    match turns.front_mut() {
        Some(turn) => (&mut turn.task).await.unwrap_or_else(|error| Err(GivenUp::Failed(error.to_string()))),
        None => std::future::pending().await,
    }
}
