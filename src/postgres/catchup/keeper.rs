//! What becomes of the main slot while its copies are read.
//!
//! Nobody holds it then. It is moved to the stored checkpoint, seldom, because that decodes from its
//! `restart_lsn`; and it is touched all the while, also when the checkpoint stands still, because from
//! PostgreSQL 18 on `idle_replication_slot_timeout` counts from its last use. Who has lost the slot's
//! lock does neither: where the slot stands is another's business then.

use super::GivenUp;
use crate::{
    config::SourceConfig,
    event::Lsn,
    postgres::{
        acknowledged::Acknowledged,
        lock::SlotLock,
        sql::{self, SqlError},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// The longest time between two uses of the slot.
const INTERVAL: Duration = Duration::from_secs(30);
/// So many times it is used before the server may take it for idle.
const USES: u32 = 3;
/// Before the next attempt, if the slot was still in use at first.
const FIRST: Duration = Duration::from_secs(1);
/// How long its end may take, and that of the sessions.
const END: Duration = Duration::from_secs(4);
/// Between two looks at what is to end.
const PAUSE: Duration = Duration::from_millis(20);

/// A session of its own that moves the main slot.
pub(super) struct Keeper {
    client: Arc<Client>,
    source: SourceConfig,
    acknowledged: Acknowledged,
    lock: Arc<SlotLock>,
    task: Option<JoinHandle<SqlError>>,
}

impl Keeper {
    pub(super) fn new(client: Client, source: &SourceConfig, acknowledged: Acknowledged, lock: Arc<SlotLock>) -> Self {
        Self { client: Arc::new(client), source: source.clone(), acknowledged, lock, task: None }
    }

    /// Begins to move the slot, at once and then at intervals.
    pub(super) fn start(&mut self) {
        let (client, slot, acknowledged, lock) =
            (Arc::clone(&self.client), self.source.slot.clone(), self.acknowledged.clone(), Arc::clone(&self.lock));
        self.task = Some(tokio::spawn(async move {
            let mut pause = FIRST;
            loop {
                // Who lost the lock moves nothing; the next checkpoint tells of it.
                if lock.is_held().await {
                    let to = acknowledged.position();
                    match advance(&client, &slot, to).await {
                        Ok(next) => pause = next,
                        Err(error) if is_passing(&error) => {}
                        Err(error) => return error,
                    }
                }
                tokio::time::sleep(pause).await;
            }
        }));
    }

    /// Resolves when the slot can not be moved any more. Cancel-safe.
    pub(super) async fn failed(&mut self) -> GivenUp {
        let ended = match self.task.as_mut() {
            Some(task) => task.await,
            None => std::future::pending().await,
        };
        self.task = None;
        GivenUp::Failed(ended.map_or_else(|error| error.to_string(), |error| error.to_string()))
    }

    /// Ends what the slot is moved by, and what `sessions` still do, so that the slot is free and its copies are gone;
    /// then moves it to the stored checkpoint.
    pub(super) async fn finish(mut self, sessions: &[i32]) {
        let finish = async {
            if let Some(task) = self.task.take() {
                task.abort();
                // It fails when nothing runs, which is as good.
                let _ = sql::cancel(&self.source.url, &self.client).await;
            }
            loop {
                match self.end_and_move(sessions).await {
                    // The cancellation reaches a later statement if the one it was meant for has ended.
                    Err(error) if is_passing(&error) => tokio::time::sleep(PAUSE).await,
                    ended => return ended,
                }
            }
        };
        match tokio::time::timeout(END, finish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the slot was not moved after catching up"),
            Err(_) => _ = sql::cancel(&self.source.url, &self.client).await,
        }
    }

    async fn end_and_move(&self, sessions: &[i32]) -> Result<(), SqlError> {
        end(&self.client, sessions).await?;
        if self.lock.is_held().await {
            let to = self.acknowledged.position();
            advance(&self.client, &self.source.slot, to).await?;
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Moves the slot to `to`, or uses it where it is, and says for how long that will do.
async fn advance(client: &Client, slot: &str, to: Lsn) -> Result<Duration, SqlError> {
    let moved = client
        .query_opt(
            "SELECT pg_replication_slot_advance(slot_name, greatest(confirmed_flush_lsn, $2::text::pg_lsn))::text, \
                    (SELECT setting::int8 FROM pg_settings WHERE name = 'idle_replication_slot_timeout') \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot, &to.to_string()],
        )
        .await?;
    let Some(row) = moved else {
        return Err(SqlError::definite(format!("the replication slot {slot} is gone")));
    };
    // In seconds; 0 is never, and before PostgreSQL 18 there is none.
    let idle = row.try_get::<_, Option<i64>>(1)?.and_then(|seconds| u64::try_from(seconds).ok());
    let idle = idle.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    Ok(idle.map_or(INTERVAL, |idle| INTERVAL.min(idle / USES)))
}

/// The slot is in use by what ends just now, or the statement was cancelled: the next time will do.
fn is_passing(error: &SqlError) -> bool {
    error.code().is_some_and(|code| ["55006", "57014"].contains(&code.code()))
}

/// Ends the sessions' processes and waits until they, and with them their slots, are gone. A process that sends to a
/// client which does not read takes no cancellation, so it is terminated.
async fn end(client: &Client, sessions: &[i32]) -> Result<(), SqlError> {
    loop {
        let row = client
            .query_one(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = ANY($1) AND application_name = $2",
                &[&sessions, &super::session::APPLICATION],
            )
            .await?;
        if row.try_get::<_, i64>(0)? == 0 {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
