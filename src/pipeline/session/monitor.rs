//! How far behind a session is, by the source's own account.

use crate::{clickhouse::job::Failure, config::Config, event::Lsn, postgres::sql, status::Status, telemetry::names};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often it is measured.
const INTERVAL: Duration = Duration::from_secs(1);

/// Measures, until it is dropped. Without it there are no figures and the reader stays the same, so it never ends a session.
pub(super) async fn run(
    config: Arc<Config>,
    status: Arc<Status>,
    stored: watch::Receiver<Lsn>,
    flushed: watch::Sender<Lsn>,
) -> Result<(), Failure> {
    loop {
        if let Err(error) = measure(&config, &status, &stored, &flushed).await {
            tracing::debug!(%error, "the lag can not be measured");
        }
        tokio::time::sleep(INTERVAL * 5).await;
    }
}

async fn measure(
    config: &Config,
    status: &Status,
    stored: &watch::Receiver<Lsn>,
    flushed: &watch::Sender<Lsn>,
) -> Result<(), sql::SqlError> {
    let client = sql::connect(&config.source, "walhouse monitor").await?;
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
        let end: &str = row.try_get(0)?;
        let end: Lsn = end.parse().unwrap_or_default();
        let lag = end.since(*stored.borrow());
        flushed.send_replace(end);
        metrics::gauge!(names::LAG_BYTES).set(lag as f64);
        status.update(|account| account.lag_bytes = lag);
    }
}
