//! The warehouse: how changes become rows of `ReplacingMergeTree` tables, and what is remembered
//! beside them.
//!
//! In the order of the data: [`table`] lays a source's table onto a target, [`batch`] turns changes
//! into rows of a [`block`], whose [`column`]s parse PostgreSQL's [`text`] forms and lay a [`mask`]
//! over what is not to be seen; [`toast`] completes rows that lack values; [`insert`] sends blocks;
//! [`landing`] finds the rows that ClickHouse does not take, and [`dead_letters`] keeps them;
//! a table without a key is a [`changelog`];
//! [`sink`] is the lane that drives all of this and keeps the [`ledger`] of what is durable.
//! [`evolve`] decides what a change of a table's shape means, and [`reshape`] does that to its
//! target. [`presence`] tells the log and the status page when the server is away. [`warehouse`] lays a star schema over them, if asked to. [`state`] is what survives, and [`requests`] is what operators ask for.

pub mod apply;
pub mod batch;
pub mod block;
pub mod changelog;
pub mod client;
pub mod column;
pub mod copied;
pub mod ddl;
pub mod dead_letters;
pub mod evolve;
pub mod insert;
pub mod job;
pub mod landing;
pub mod letters;
pub mod pauses;
pub mod presence;
pub mod replay;
pub mod requests;
pub mod reshape;
pub mod sink;
pub mod state;
pub mod table;
pub mod text;
pub mod toast;
pub mod types;
pub mod warehouse;

use crate::retry::{Backoff, Kind};
use clickhouse::error::Error;
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// How long a statement may go without an answer before it is given up and sent again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a statement that may be repeated until ClickHouse has answered it, waiting out whatever
/// is transient for as long as it takes.
///
/// # Errors
/// What is definite.
pub async fn retrying<T, F: Future<Output = Result<T, Error>>>(
    doing: &'static str,
    statement: impl FnMut() -> F,
) -> Result<T, Error> {
    retrying_within(PATIENCE, doing, statement).await
}

/// As [`retrying`], for a statement that may take up to `limit`.
pub async fn retrying_within<T, F: Future<Output = Result<T, Error>>>(
    limit: Duration,
    doing: &'static str,
    mut statement: impl FnMut() -> F,
) -> Result<T, Error> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let begun = Instant::now();
        let answer = tokio::time::timeout(limit, statement()).await.unwrap_or(Err(Error::TimedOut));
        let is_away = presence::presence().note(begun, doing, &answer);
        match answer {
            Err(error) if client::kind(&error) == Kind::Transient => {
                let pause = backoff.next_delay();
                if !is_away {
                    let error = client::describe(&error);
                    tracing::warn!(doing, ?pause, error, "ClickHouse is not ready; trying again");
                }
                tokio::time::sleep(pause).await;
            }
            result => return result,
        }
    }
}
