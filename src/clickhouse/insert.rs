//! Sending a block, until ClickHouse has it.
//!
//! An insert is atomic for each block and partition, and may be repeated: a row's version is the
//! same each time. So an insert without an answer is simply sent again, under a new query id. The
//! attempt without an answer is remembered, though, because it may still land, even after its
//! retry: whoever needs to know that nothing more arrives (a barrier) calls
//! [`Inserter::settle`], which kills such attempts and waits until they are gone.

use super::{client, retrying};
use crate::{
    event::Lsn,
    quote,
    retry::{Backoff, Kind},
    telemetry::names,
};
use bytes::Bytes;
use clickhouse::{Client, error::Error};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the server may work on an insert. The client waits longer, so that the server's word
/// comes first.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(75);
/// The first and the longest pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A block is handed to the socket in pieces of this size.
const PIECE: usize = 256 * 1024;

/// Settings that an insert of ours does not leave to the server's defaults.
///
/// Async inserts acknowledge for a batch that other settings rule; the other defaults turned NULL
/// into 0, wrapped Int64 into Int32 and dropped an unknown column, without a word.
/// `optimize_on_insert` would merge a block's rows before writing them, which costs ClickHouse
/// CPU and saves nothing here: the merge does the same later.
const SETTINGS: &[(&str, &str)] = &[
    ("async_insert", "0"),
    ("input_format_null_as_default", "0"),
    ("input_format_native_allow_types_conversion", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("optimize_on_insert", "0"),
];

/// Why rows did not land.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// ClickHouse will never take these rows into this table as it is.
    #[error("ClickHouse refuses rows for {target}: {}", client::describe(.source))]
    Refused {
        /// The table.
        target: String,
        /// What ClickHouse said.
        source: Error,
    },
    /// Something that an operator must mend before anything can go on.
    #[error("{}", client::describe(.0))]
    Halt(#[from] Error),
    /// This process no longer holds the slot's lock, so it must not write.
    #[error("the lock of the slot was lost")]
    LockLost,
}

/// Sends blocks for one slot.
pub struct Inserter {
    client: Client,
    state: Arc<super::state::State>,
    ids: QueryIds,
    allowed: Arc<AtomicBool>,
    unanswered: Mutex<HashSet<String>>,
}

/// The query ids of one process on one slot.
#[derive(Debug)]
pub struct QueryIds {
    prefix: String,
    next: AtomicU64,
}

impl QueryIds {
    /// Ids that name slot and epoch, and this process by a random number.
    pub fn new(slot: &str, epoch: u8) -> Self {
        let process = rand::random::<u32>();
        Self { prefix: format!("{}{epoch}-{process:08x}-", Self::of_slot(slot)), next: AtomicU64::new(0) }
    }

    /// What the ids of every process on `slot` begin with.
    pub fn of_slot(slot: &str) -> String {
        // No slot has a hyphen in its name, so no slot's prefix is the beginning of another's.
        format!("walhouse-{slot}-")
    }

    fn next(&self) -> String {
        format!("{}{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Inserter {
    /// `allowed` says whether this process still holds the slot's lock.
    pub fn new(client: Client, state: Arc<super::state::State>, ids: QueryIds, allowed: Arc<AtomicBool>) -> Self {
        Self { client, state, ids, allowed, unanswered: Mutex::default() }
    }

    /// Inserts a block of `rows` in the Native format into `target`, and returns once ClickHouse has
    /// confirmed it. `commit` is the highest commit among its rows.
    ///
    /// # Errors
    /// Transient trouble is waited out; what comes back is definite.
    pub async fn insert(&self, target: &str, rows: usize, data: Bytes, commit: Lsn) -> Result<(), InsertError> {
        self.state.reserve(commit).await?;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            if !self.allowed.load(Ordering::SeqCst) {
                return Err(InsertError::LockLost);
            }
            let id = self.ids.next();
            let begun = Instant::now();
            let mut attempt = Attempt { unanswered: &self.unanswered, id, answered: false };
            let result = self.send(target, &attempt.id, data.clone()).await;
            metrics::histogram!(names::INSERT_SECONDS).record(begun.elapsed().as_secs_f64());
            let Err(error) = result else {
                attempt.answered = true;
                return Ok(());
            };
            // An error of the server is an answer; silence is not.
            attempt.answered = client::code(&error).is_some();
            drop(attempt);
            let class = Class::of(&error);
            metrics::counter!(names::INSERT_ERRORS, "kind" => class.label()).increment(1);
            match class {
                Class::Transient => {
                    let pause = backoff.next_delay();
                    let error = client::describe(&error);
                    tracing::warn!(table = target, rows, ?pause, error, "an insert did not go in; sending it again");
                    tokio::time::sleep(pause).await;
                }
                Class::Refused => {
                    return Err(InsertError::Refused { target: target.to_owned(), source: error });
                }
                Class::Halt => return Err(InsertError::Halt(error)),
            }
        }
    }

    async fn send(&self, target: &str, id: &str, data: Bytes) -> Result<(), Error> {
        let sql = format!("INSERT INTO {} FORMAT Native", quote::clickhouse(target));
        let mut insert = self.client.insert_formatted_with(sql).with_setting("query_id", id);
        for (name, value) in SETTINGS {
            insert = insert.with_setting(*name, *value);
        }
        let mut insert = insert
            .with_setting("max_execution_time", SERVER_TIMEOUT.as_secs().to_string())
            .with_timeouts(Some(CLIENT_TIMEOUT), Some(CLIENT_TIMEOUT));
        let mut rest = data;
        while !rest.is_empty() {
            insert.send(rest.split_to(rest.len().min(PIECE))).await?;
        }
        insert.end().await
    }

    /// Returns once no attempt without an answer can land any more.
    ///
    /// Attempts that are still waited for are left alone.
    pub async fn settle(&self) -> Result<(), Error> {
        let ids: Vec<String> = lock(&self.unanswered).iter().cloned().collect();
        if ids.is_empty() {
            return Ok(());
        }
        kill(&self.client, &format!("query_id IN ({})", list(&ids))).await?;
        lock(&self.unanswered).retain(|id| !ids.contains(id));
        Ok(())
    }
}

/// One attempt; it counts as unanswered if it is given up, or dropped, without an answer.
struct Attempt<'a> {
    unanswered: &'a Mutex<HashSet<String>>,
    id: String,
    answered: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            lock(self.unanswered).insert(std::mem::take(&mut self.id));
        }
    }
}

fn lock(set: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn list(ids: &[String]) -> String {
    ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ")
}

/// Kills the inserts that an earlier process left running on `slot`, and waits until they are
/// gone: they could land after something that must come later.
pub async fn kill_leftovers(client: &Client, slot: &str) -> Result<(), Error> {
    kill(client, &format!("startsWith(query_id, '{}')", QueryIds::of_slot(slot))).await
}

async fn kill(client: &Client, condition: &str) -> Result<(), Error> {
    let kill = format!("KILL QUERY WHERE user = currentUser() AND {condition} ASYNC");
    let count = format!("SELECT count() FROM system.processes WHERE user = currentUser() AND {condition}");
    loop {
        let left: u64 = retrying("look for running inserts", || client.query_raw(&count).fetch_one::<u64>()).await?;
        if left == 0 {
            return Ok(());
        }
        tracing::info!(left, "ending inserts without an answer");
        retrying("kill running inserts", || client.query_raw(&kill).execute()).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What an insert's error means for the rows.
#[derive(Clone, Copy)]
enum Class {
    Transient,
    Refused,
    Halt,
}

impl Class {
    fn of(error: &Error) -> Self {
        match (client::kind(error), client::code(error)) {
            (Kind::Transient, _) => Self::Transient,
            // Whose fault is not the table's: no such user or password, no such database, no right
            // to write.
            (Kind::Definite, Some(81 | 192 | 193 | 194 | 497 | 516) | None) => Self::Halt,
            (Kind::Definite, Some(_)) => Self::Refused,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Refused => "refused",
            Self::Halt => "halt",
        }
    }
}
