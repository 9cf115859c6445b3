//! Workers that are paused take nothing; what they have in hand they finish.

use crate::{
    clickhouse::{
        client,
        pauses::{Pauses, Subject},
    },
    config::Config,
    telemetry::names,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often it is looked what is paused.
const INTERVAL: Duration = Duration::from_secs(2);

/// A worker, and whether it may take events.
pub(super) struct Valve {
    pub(super) subject: Subject,
    /// Closed until it is known that it is not paused.
    pub(super) open: watch::Sender<bool>,
}

/// Opens and closes them as operators want it. What is not known stays as it is.
pub(super) async fn follow(config: Arc<Config>, valves: Vec<Valve>) {
    let target = client::client(&config.clickhouse).with_database(&config.clickhouse.database);
    let pauses = Pauses::new(target, &config.source.slot);
    let mut taken_up: Vec<String> = Vec::new();
    loop {
        match pauses.all().await {
            Ok(all) => {
                for Valve { subject, open } in &valves {
                    let pause = all.iter().find(|pause| pause.subject == *subject);
                    let paused = pause.filter(|pause| pause.is_paused);
                    metrics::gauge!(names::PAUSED, "what" => subject.label())
                        .set(f64::from(u8::from(paused.is_some())));
                    let changed = open.send_if_modified(|open| std::mem::replace(open, paused.is_none()) != *open);
                    match paused {
                        Some(pause) if changed || !taken_up.contains(&pause.id) => {
                            tracing::warn!(worker = subject.label(), "a worker is paused {pause}");
                        }
                        None if changed => tracing::info!(worker = subject.label(), "a worker takes events"),
                        _ => {}
                    }
                    if let Some(pause) = pause.filter(|pause| !taken_up.contains(&pause.id)) {
                        match pauses.take_up(&pause.id).await {
                            Ok(()) => taken_up.push(pause.id.clone()),
                            Err(error) => tracing::debug!(error = client::describe(&error), "to be said once more"),
                        }
                    }
                }
            }
            Err(error) => tracing::debug!(error = client::describe(&error), "what is paused can not be told"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
