//! What the daemon says of itself while it runs: one place that the pipeline writes and `/readyz`
//! reads.

use serde::{Serialize, Serializer};
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where replication stands, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// On its way to one of the others.
    #[default]
    Starting,
    /// PostgreSQL does not answer, or refuses for now.
    WaitingForPostgreSql,
    /// Another process holds the slot.
    WaitingForSlot,
    /// ClickHouse does not answer.
    WaitingForClickHouse,
    /// An operator wants it so.
    Paused,
    /// It delivers again from an earlier position.
    Replaying,
    /// It streams, and tables are copied beside that.
    Copying,
    /// It reads windows of WAL, since it is far behind.
    CatchingUp,
    /// It streams.
    Streaming,
    /// It was told to stop.
    Stopping,
    /// No process is up.
    Down,
}

/// As people read it, and machines too.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::WaitingForPostgreSql => "waiting for PostgreSQL",
            Self::WaitingForSlot => "waiting for the slot",
            Self::WaitingForClickHouse => "waiting for ClickHouse",
            Self::Paused => "paused",
            Self::Replaying => "replaying",
            Self::Copying => "copying",
            Self::CatchingUp => "catching up",
            Self::Streaming => "streaming",
            Self::Stopping => "stopping",
            Self::Down => "down",
        })
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How far the daemon has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// It connects, checks, compares.
    #[default]
    Begins,
    /// A connection to PostgreSQL has failed or ended, and is made again.
    WaitsForPostgreSql,
    /// Somebody else may hold the slot's lock.
    WaitsForLock,
    /// It stands still because an operator wants it so.
    Paused,
    /// It reads the slot by streaming.
    Streams,
    /// It reads the slot by windows of WAL.
    CatchesUp,
    /// It drains.
    Stops,
}

/// The daemon's own account of where it is.
#[derive(Debug, Default)]
pub struct Status {
    inner: Mutex<Account>,
}

/// A copy of the account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// What it is doing, for people: "starting", "waiting for …", "streaming", "stopping".
    pub phase: String,
    /// How far it has come.
    pub step: Step,
    /// Whether it reads the slot.
    pub streaming: bool,
    /// Tables whose initial copy is not complete.
    pub copying: usize,
    /// Tables that are copied anew beside the one that is there, which goes on meanwhile.
    pub beside: usize,
    /// Tables that are stopped.
    pub stopped: usize,
    /// Whether the first look at the tables has ended, so that `copying` means something.
    pub reconciled: bool,
    /// The age of the oldest commit that is received and not durable, in seconds.
    pub lag_seconds: f64,
    /// WAL of the source that is not durable yet, in bytes.
    pub lag_bytes: u64,
    /// WAL that a replay has still to deliver again, in bytes, before what is new; `None` without one.
    pub replaying: Option<u64>,
}

impl Account {
    /// All of it in a word. What keeps everything else waiting comes first.
    pub fn state(&self, is_clickhouse_away: bool) -> State {
        match self.step {
            Step::Stops => State::Stopping,
            Step::Paused => State::Paused,
            Step::WaitsForPostgreSql => State::WaitingForPostgreSql,
            Step::WaitsForLock => State::WaitingForSlot,
            _ if is_clickhouse_away => State::WaitingForClickHouse,
            Step::Begins => State::Starting,
            _ if self.replaying.is_some() => State::Replaying,
            _ if self.copying + self.beside > 0 => State::Copying,
            Step::CatchesUp => State::CatchingUp,
            Step::Streams => State::Streaming,
        }
    }
}

impl Status {
    /// Changes the account.
    pub fn update(&self, change: impl FnOnce(&mut Account)) {
        change(&mut self.lock());
    }

    /// The account as it is now.
    pub fn account(&self) -> Account {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_everything_else_waiting_is_said_first() {
        let account = |step, replaying: bool, copying| Account {
            step,
            replaying: replaying.then_some(0),
            copying,
            ..Account::default()
        };
        let beside = Account { step: Step::Streams, beside: 1, ..Account::default() };
        assert_eq!(beside.state(false), State::Copying);
        for (step, replaying, copying, away, expected) in [
            (Step::Begins, false, 0, false, "starting"),
            (Step::Begins, false, 0, true, "waiting for ClickHouse"),
            (Step::Streams, false, 0, false, "streaming"),
            (Step::Streams, false, 2, false, "copying"),
            (Step::Streams, true, 2, false, "replaying"),
            (Step::CatchesUp, false, 0, false, "catching up"),
            (Step::CatchesUp, true, 1, true, "waiting for ClickHouse"),
            (Step::WaitsForPostgreSql, false, 1, true, "waiting for PostgreSQL"),
            (Step::WaitsForLock, false, 0, true, "waiting for the slot"),
            (Step::Paused, true, 1, true, "paused"),
            (Step::Stops, true, 1, true, "stopping"),
        ] {
            assert_eq!(account(step, replaying, copying).state(away).to_string(), expected, "{step:?}");
        }
    }
}
