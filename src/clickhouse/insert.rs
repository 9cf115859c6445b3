//! Sending a block, until ClickHouse has it.
//!
//! An insert is atomic for each block and partition, and may be repeated: a row's version is the
//! same each time. So an insert without an answer is simply sent again, under a new query id. The
//! attempt without an answer may still land, though, even after its retry: whoever needs to know
//! that nothing more arrives (a barrier) calls [`Inserter::settle`], which kills every attempt of
//! this process that is not waited for any more, and waits until they are gone.

mod open;

pub use open::{OpenError, OpenInsert};

use super::{block::Block, client, dead_letters, presence::presence, retrying};
use crate::{
    event::Lsn,
    quote,
    retry::{Backoff, Kind},
    telemetry::names,
    trace::{self, Parent},
};
use bytes::Bytes;
use clickhouse::{Client, error::Error, insert_formatted::InsertFormatted};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

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
/// CPU and saves nothing here: the merge does the same later. Dates are not looked for in what JSON
/// has as a string: `2024-01-01T00:00:00Z` would read back as another text. How many partitions a
/// batch touches is for its rows to say: the default refuses more than a hundred, for ever.
const SETTINGS: &[(&str, &str)] = &[
    ("async_insert", "0"),
    ("input_format_null_as_default", "0"),
    ("input_format_native_allow_types_conversion", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("optimize_on_insert", "0"),
    ("input_format_try_infer_dates", "0"),
    ("input_format_try_infer_datetimes", "0"),
    ("max_partitions_per_insert_block", "0"),
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
    /// The attempts that are waited for.
    running: Mutex<HashSet<String>>,
    /// Whether an attempt was ever given up without an answer.
    unanswered: AtomicBool,
}

/// The query ids of one process on one slot.
#[derive(Debug)]
pub struct QueryIds {
    prefix: String,
    next: AtomicU64,
}

impl QueryIds {
    /// Ids that name the slot and what they are for, and this process by a random number.
    pub fn new(slot: &str, purpose: impl std::fmt::Display) -> Self {
        let process = rand::random::<u32>();
        Self { prefix: format!("{}{purpose}-{process:08x}-", Self::of_slot(slot)), next: AtomicU64::new(0) }
    }

    /// What the ids of every process on `slot` begin with.
    pub fn of_slot(slot: &str) -> String {
        // No slot has a hyphen in its name, so no slot's prefix is the beginning of another's.
        format!("walhouse-{slot}-")
    }

    /// One that was not used yet.
    pub fn next(&self) -> String {
        format!("{}{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Inserter {
    /// `allowed` says whether this process still holds the slot's lock.
    pub fn new(client: Client, state: Arc<super::state::State>, ids: QueryIds, allowed: Arc<AtomicBool>) -> Self {
        Self { client, state, ids, allowed, running: Mutex::default(), unanswered: AtomicBool::new(false) }
    }

    /// Inserts a block into `target`, and returns once ClickHouse has confirmed it. `commit` is the
    /// highest commit among its rows.
    ///
    /// # Errors
    /// Transient trouble is waited out; what comes back is definite.
    pub async fn insert(&self, target: &str, block: &Block, commit: Lsn) -> Result<(), InsertError> {
        self.deliver(target, &insert_into(target), block.rows(), &Body::Native(block), commit).await
    }

    /// As [`insert`](Self::insert), for dead letters and their statement.
    pub async fn insert_letters(&self, sql: &str, rows: usize, data: Bytes, commit: Lsn) -> Result<(), InsertError> {
        self.deliver(dead_letters::TABLE, sql, rows, &Body::Encoded(data), commit).await
    }

    async fn deliver(
        &self,
        target: &str,
        sql: &str,
        rows: usize,
        body: &Body<'_>,
        commit: Lsn,
    ) -> Result<(), InsertError> {
        self.state.reserve(commit).await?;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            if !self.allowed.load(Ordering::SeqCst) {
                return Err(InsertError::LockLost);
            }
            let id = self.ids.next();
            let begun = Instant::now();
            let mut attempt = Attempt::new(self, id);
            let result = self.send(sql, &attempt.id, body).await;
            let is_away = presence().note(begun, "insert", &result);
            trace_attempt(begun, target, &attempt.id, rows, result.as_ref().err());
            metrics::histogram!(names::INSERT_SECONDS).record(begun.elapsed().as_secs_f64());
            let Err(error) = result else {
                attempt.answered = true;
                metrics::histogram!(names::INSERT_ROWS).record(rows as f64);
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
                    if !is_away {
                        let error = client::describe(&error);
                        tracing::warn!(
                            table = target,
                            rows,
                            ?pause,
                            error,
                            "an insert did not go in; sending it again"
                        );
                    }
                    tokio::time::sleep(pause).await;
                }
                Class::Refused => {
                    return Err(InsertError::Refused { target: target.to_owned(), source: error });
                }
                Class::Halt => return Err(InsertError::Halt(error)),
            }
        }
    }

    fn begin(&self, sql: &str, id: &str) -> InsertFormatted {
        begin(&self.client, sql).with_setting("query_id", id)
    }

    async fn send(&self, sql: &str, id: &str, body: &Body<'_>) -> Result<(), Error> {
        let mut insert = self.begin(sql, id);
        match body {
            Body::Native(block) => write_block(&mut insert, block).await?,
            Body::Encoded(data) => send_pieces(&mut insert, data.clone()).await?,
        }
        insert.end().await
    }

    /// Returns once no attempt without an answer can land any more.
    ///
    /// Attempts that are still waited for are left alone.
    pub async fn settle(&self) -> Result<(), Error> {
        if !self.unanswered.load(Ordering::SeqCst) {
            return Ok(());
        }
        let others = || {
            // An empty list is no SQL; an empty id is nobody's.
            let mut running = vec!["''".to_owned()];
            running.extend(lock(&self.running).iter().map(|id| format!("'{id}'")));
            format!("startsWith(query_id, '{}') AND query_id NOT IN ({})", self.ids.prefix, running.join(", "))
        };
        kill(&self.client, others).await
    }
}

/// An attempt has ended.
fn trace_attempt(begun: Instant, target: &str, query: &str, rows: usize, error: Option<&Error>) {
    let Some(parent) = Parent::alone() else { return };
    let attributes = vec![
        ("db.system.name", "clickhouse".into()),
        ("db.operation.name", "INSERT".into()),
        ("db.collection.name", target.to_owned().into()),
        // As in system.query_log.
        ("walhouse.query_id", query.to_owned().into()),
        ("walhouse.rows", i64::try_from(rows).unwrap_or(i64::MAX).into()),
    ];
    let span = parent.span(SystemTime::now() - begun.elapsed(), None);
    let failed = error.map(|error| Class::of(error).label().to_owned());
    span.end(format!("INSERT {target}"), trace::Kind::Client, attributes, failed);
}

fn insert_into(target: &str) -> String {
    format!("INSERT INTO {} FORMAT Native", quote::clickhouse(target))
}

fn begin(client: &Client, sql: &str) -> InsertFormatted {
    let mut insert = client.insert_formatted_with(sql.to_owned());
    for (name, value) in SETTINGS {
        insert = insert.with_setting(*name, *value);
    }
    insert
        .with_setting("max_execution_time", SERVER_TIMEOUT.as_secs().to_string())
        .with_timeouts(Some(CLIENT_TIMEOUT), Some(CLIENT_TIMEOUT))
}

/// Inserts a block in one attempt, for somebody who does not hold a slot's lock.
///
/// # Errors
/// What ClickHouse says; without an answer the rows may land all the same.
pub async fn insert_once(client: &Client, target: &str, block: &Block) -> Result<(), Error> {
    let mut insert = begin(client, &insert_into(target));
    write_block(&mut insert, block).await?;
    insert.end().await
}

/// Whether ClickHouse will never take the rows, rather than not now.
pub fn is_refusal(error: &Error) -> bool {
    matches!(Class::of(error), Class::Refused)
}

/// What an insert sends.
enum Body<'a> {
    Native(&'a Block),
    Encoded(Bytes),
}

/// Sends a block column by column, so that what is on its way is not in memory twice.
async fn write_block(insert: &mut InsertFormatted, block: &Block) -> Result<(), Error> {
    let mut buffer = Vec::new();
    for part in 0..block.native_parts() {
        let large = block.write_native_part(part, &mut buffer);
        if buffer.len() >= PIECE || large.is_some() {
            send_pieces(insert, std::mem::take(&mut buffer).into()).await?;
        }
        for piece in large.unwrap_or_default().chunks(PIECE) {
            insert.send(Bytes::copy_from_slice(piece)).await?;
        }
    }
    send_pieces(insert, buffer.into()).await
}

async fn send_pieces(insert: &mut InsertFormatted, mut data: Bytes) -> Result<(), Error> {
    while !data.is_empty() {
        insert.send(data.split_to(data.len().min(PIECE))).await?;
    }
    Ok(())
}

/// One attempt. It is running until it is dropped, and unanswered if it was given up before.
struct Attempt<'a> {
    inserter: &'a Inserter,
    id: String,
    answered: bool,
}

impl<'a> Attempt<'a> {
    fn new(inserter: &'a Inserter, id: String) -> Self {
        lock(&inserter.running).insert(id.clone());
        Self { inserter, id, answered: false }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.inserter.unanswered.store(true, Ordering::SeqCst);
        }
        lock(&self.inserter.running).remove(&self.id);
    }
}

fn lock(set: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the inserts that an earlier process left running on `slot`, and waits until they are
/// gone: they could land after something that must come later.
pub async fn kill_leftovers(client: &Client, slot: &str) -> Result<(), Error> {
    kill(client, || format!("startsWith(query_id, '{}')", QueryIds::of_slot(slot))).await
}

async fn kill(client: &Client, condition: impl Fn() -> String) -> Result<(), Error> {
    loop {
        // What began meanwhile and is waited for is no one's to kill.
        let condition = condition();
        let kill = format!("KILL QUERY WHERE user = currentUser() AND {condition} ASYNC");
        let count = format!("SELECT count() FROM system.processes WHERE user = currentUser() AND {condition}");
        let left: u64 = retrying("look for running inserts", || client.query_raw(&count).fetch_one::<u64>()).await?;
        if left == 0 {
            return Ok(());
        }
        tracing::info!(left, "ending inserts without an answer");
        retrying("kill running inserts", || client.query_raw(&kill).execute()).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Codes that say that these rows do not go into this table, by the names that ClickHouse gives
/// them. What reads the rows may be somebody's own: a constraint, a materialized column, a view.
const REFUSED: &[u32] = &[
    6,   // CANNOT_PARSE_TEXT
    7,   // NUMBER_OF_COLUMNS_DOESNT_MATCH
    8,   // THERE_IS_NO_COLUMN
    9,   // SIZES_OF_COLUMNS_DOESNT_MATCH
    10,  // NOT_FOUND_COLUMN_IN_BLOCK
    16,  // NO_SUCH_COLUMN_IN_TABLE
    20,  // NUMBER_OF_COLUMNS_DOESNT_MATCH
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    36,  // BAD_ARGUMENTS
    38,  // CANNOT_PARSE_DATE
    41,  // CANNOT_PARSE_DATETIME
    43,  // ILLEGAL_TYPE_OF_ARGUMENT
    44,  // ILLEGAL_COLUMN
    47,  // UNKNOWN_IDENTIFIER
    48,  // NOT_IMPLEMENTED: an insert into a view
    50,  // UNKNOWN_TYPE
    53,  // TYPE_MISMATCH
    60,  // UNKNOWN_TABLE
    69,  // ARGUMENT_OUT_OF_BOUND
    70,  // CANNOT_CONVERT_TYPE
    72,  // CANNOT_PARSE_NUMBER
    117, // INCORRECT_DATA
    131, // TOO_LARGE_STRING_SIZE
    153, // ILLEGAL_DIVISION
    218, // TABLE_IS_DROPPED
    321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
    349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    395, // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
    407, // DECIMAL_OVERFLOW
    469, // VIOLATED_CONSTRAINT
];

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
            // Only what speaks of this table or of these rows stops the table; the rest is the
            // server's state, and would stop one table after the other.
            (Kind::Definite, Some(code)) if REFUSED.contains(&code) => Self::Refused,
            (Kind::Definite, _) => Self::Halt,
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
