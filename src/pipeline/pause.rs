//! The pipeline stands still because an operator wants it so.
//!
//! A session that runs ends as it does at a stop: what is in memory is made durable, the checkpoint stored, the server told.
//! The next one gets as far as the slot's lock and holds it, so that nobody else goes on in its place. The slot keeps WAL
//! meanwhile, and is used from time to time, since PostgreSQL 18 may take it for idle. What is paused is stored: a restart
//! ends up here too.

use super::SessionError;
use crate::{
    clickhouse::{
        client,
        job::Failure,
        pauses::{Pause, Pauses, Subject},
        requests::{Action, Requests},
    },
    config::Config,
    postgres::{catchup, lock::SlotLock, retention::retention, sql},
    status::{Status, Step},
    telemetry::names,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether somebody wants the pipeline to stand still, or to go on.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the log says that it still stands still, with what the slot keeps.
const REMIND: Duration = Duration::from_secs(300);
/// How often it is measured how far behind it is.
const MEASURE: Duration = Duration::from_secs(10);

/// Ends the session, by way of `stop`, once somebody wants the pipeline paused, or something delivered again.
pub(super) async fn watch(config: Arc<Config>, stop: CancellationToken) {
    let target = client::client(&config.clickhouse).with_database(&config.clickhouse.database);
    let pauses = Pauses::new(target.clone(), &config.source.slot);
    let requests = Requests::new(target, &config.source.slot);
    loop {
        tokio::time::sleep(INTERVAL).await;
        // While ClickHouse is away nothing goes on anyway.
        if let Ok(Some(pause)) = pauses.of(Subject::Pipeline).await
            && pause.is_paused
        {
            tracing::warn!("the pipeline is paused {pause}; sending what is in memory");
            return stop.cancel();
        }
        let asked = tokio::time::timeout(INTERVAL * 10, requests.look()).await;
        if let Ok(Ok(open)) = asked
            && open.iter().any(|request| request.action == Action::Replay && !request.begun)
        {
            tracing::info!("a replay is asked for; sending what is in memory first");
            return stop.cancel();
        }
    }
}

/// Returns at once, or when the pipeline is not paused any more.
pub(super) async fn hold(
    config: &Config,
    status: &Status,
    target: &clickhouse::Client,
    lock: &Arc<SlotLock>,
) -> Result<(), SessionError> {
    let pauses = Pauses::new(target.clone(), &config.source.slot);
    let gauge = metrics::gauge!(names::PAUSED, "what" => Subject::Pipeline.label());
    let mut last = pauses.of(Subject::Pipeline).await?;
    if last.as_ref().is_none_or(|pause| !pause.is_paused) {
        gauge.set(0.0);
        return taken_up(&pauses, last.as_ref()).await;
    }
    gauge.set(1.0);
    // Nothing is received, so nothing that was is late, though the drain may have been cut short.
    metrics::gauge!(names::LAG_SECONDS).set(0.0);
    status.update(|account| account.lag_seconds = 0.0);
    // Without it the slot may become idle on a server that minds, and the log has said what becomes of it then.
    let kept = catchup::keep(&config.source, Arc::clone(lock)).await.ok();
    let (mut told, mut measured) = (None::<Instant>, None::<Instant>);
    while let Some(pause) = last.as_ref().filter(|pause| pause.is_paused) {
        status.update(|account| {
            account.phase = format!("paused {pause}; walhouse resume goes on");
            account.step = Step::Paused;
        });
        if measured.is_none_or(|at| at.elapsed() > MEASURE) {
            measured = Some(Instant::now());
            let kept = measure(config, status).await;
            if told.is_none_or(|at| at.elapsed() > REMIND) {
                taken_up(&pauses, Some(pause)).await?;
                told = measured;
                tracing::warn!("the pipeline is paused {pause}. {kept}");
            }
        }
        tokio::time::sleep(INTERVAL).await;
        if !lock.is_held().await {
            return Err(Failure::LockLost.into());
        }
        match pauses.of(Subject::Pipeline).await {
            Ok(now) => last = now,
            Err(error) => {
                tracing::debug!(error = client::describe(&error), "whether it is still paused can not be told")
            }
        }
    }
    if let Some(kept) = kept {
        kept.finish().await;
    }
    gauge.set(0.0);
    status.update(|account| account.step = Step::Begins);
    tracing::info!("the pipeline is resumed");
    taken_up(&pauses, last.as_ref()).await
}

async fn taken_up(pauses: &Pauses, pause: Option<&Pause>) -> Result<(), SessionError> {
    if let Some(pause) = pause
        && pauses.taken_up(&pause.id).await?.is_empty()
    {
        pauses.take_up(&pause.id).await?;
    }
    Ok(())
}

/// Tells how far behind it is by now, and what the slot keeps, for people.
async fn measure(config: &Config, status: &Status) -> String {
    let look = async {
        let client = sql::connect(&config.source, "walhouse pause").await?;
        retention(&client, &config.source.slot).await
    };
    match look.await {
        Ok(Some(kept)) => {
            metrics::gauge!(names::LAG_BYTES).set(kept.lag_bytes as f64);
            status.update(|account| account.lag_bytes = kept.lag_bytes);
            kept.to_string()
        }
        Ok(None) => "There is no slot yet".to_owned(),
        Err(error) => format!("What the slot keeps can not be told: {error}"),
    }
}
