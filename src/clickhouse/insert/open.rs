//! One insert of many blocks, for who can read their rows again.
//!
//! ClickHouse puts the blocks of an insert together before it writes them: one part, where each block by itself would be
//! one, and merges to follow. What was sent is not kept, so nothing is sent twice. If the insert fails, or is given up,
//! what it had may have landed or not, and whoever has the rows' source begins again.

use super::{
    Attempt, CLIENT_TIMEOUT, Class, InsertError, Inserter, SERVER_TIMEOUT, client, presence, trace_attempt, write_block,
};
use crate::{clickhouse::block::Block, event::Lsn, quote, telemetry::names};
use clickhouse::insert_formatted::InsertFormatted;
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

/// An insert of so many bytes is worth its part; ClickHouse holds as much in memory.
const LARGE: usize = 128 << 20;
/// The server gives up on an insert that takes too long, or that brings nothing for half a minute.
const LONGEST: Duration = Duration::from_secs(20);

/// An insert that blocks are added to.
pub struct OpenInsert<'a> {
    insert: InsertFormatted,
    attempt: Attempt<'a>,
    target: String,
    begun: Instant,
    bytes: usize,
    rows: usize,
}

/// Why an insert that was open did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something that passes: the rows are to be read again.
    #[error("{0}")]
    Transient(String),
    /// What comes back from any insert.
    #[error(transparent)]
    Insert(#[from] InsertError),
}

impl Inserter {
    /// Begins an insert into `target`. `commit` is the highest commit among its rows.
    ///
    /// # Errors
    /// If this process may not write.
    pub async fn open(&self, target: &str, commit: Lsn) -> Result<OpenInsert<'_>, InsertError> {
        self.state.reserve(commit).await?;
        if !self.allowed.load(Ordering::SeqCst) {
            return Err(InsertError::LockLost);
        }
        let attempt = Attempt::new(self, self.ids.next());
        let sql = format!("INSERT INTO {} FORMAT Native", quote::clickhouse(target));
        let insert = self.begin(&sql, &attempt.id).with_setting("min_insert_block_size_bytes", LARGE.to_string());
        Ok(OpenInsert { insert, attempt, target: target.to_owned(), begun: Instant::now(), bytes: 0, rows: 0 })
    }
}

impl OpenInsert<'_> {
    /// Sends a block. It is not durable before [`end`](Self::end).
    pub async fn write(&mut self, block: &Block) -> Result<(), OpenError> {
        self.bytes += block.data_bytes();
        self.rows += block.rows();
        let sent = write_block(&mut self.insert, block).await;
        if sent.is_err() {
            // What was taken is no answer yet.
            presence().note(self.begun, "insert", &sent);
        }
        sent.map_err(|error| failed(&mut self.attempt, &self.target, error))
    }

    /// When it should end, however little it has.
    pub fn deadline(&self) -> Instant {
        self.begun + LONGEST
    }

    /// Whether it is large or old enough to end.
    pub fn is_due(&self) -> bool {
        self.bytes >= LARGE || Instant::now() >= self.deadline()
    }

    /// Returns once ClickHouse has confirmed all of it, with the number of rows.
    pub async fn end(self) -> Result<usize, OpenError> {
        let Self { insert, mut attempt, target, begun, rows, .. } = self;
        let ended = insert.end().await;
        presence().note(begun, "insert", &ended);
        metrics::histogram!(names::INSERT_SECONDS).record(begun.elapsed().as_secs_f64());
        trace_attempt(begun, &target, &attempt.id, rows, ended.as_ref().err());
        ended.map_err(|error| failed(&mut attempt, &target, error))?;
        attempt.answered = true;
        metrics::histogram!(names::INSERT_ROWS).record(rows as f64);
        Ok(rows)
    }
}

fn failed(attempt: &mut Attempt<'_>, target: &str, error: clickhouse::error::Error) -> OpenError {
    // An error of the server is an answer; silence is not.
    attempt.answered = client::code(&error).is_some();
    let class = Class::of(&error);
    metrics::counter!(names::INSERT_ERRORS, "kind" => class.label()).increment(1);
    match class {
        Class::Transient => OpenError::Transient(client::describe(&error)),
        Class::Refused => InsertError::Refused { target: target.to_owned(), source: error }.into(),
        Class::Halt => InsertError::Halt(error).into(),
    }
}

const _: () =
    assert!(LONGEST.as_secs() < SERVER_TIMEOUT.as_secs() && SERVER_TIMEOUT.as_secs() < CLIENT_TIMEOUT.as_secs());
