//! What walhouse asks its neighbours, so that its metrics tell of them too: PostgreSQL of the slot, ClickHouse of its parts and of
//! dead letters, SQS of what its queues hold.
//!
//! It runs beside everything else, for as long as the process does, and by connections of its own: what it has to tell matters most
//! while replication can not begin, or waits for another process that holds the slot. It decides nothing, and nothing waits for
//! it. A neighbour that does not answer is a metric too, [`names::DEPENDENCY_UP`]; what was known of it before stays as it was.

mod clickhouse;
mod queues;
mod slot;

use crate::{config::Config, telemetry::names};
use std::{fmt::Display, sync::Arc, time::Duration};

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for as long as it is let.
pub async fn run(config: Arc<Config>) {
    tokio::join!(slot::run(&config.source), clickhouse::run(&config), queues::run(&config));
}

/// Whether a neighbour answers.
struct Neighbour {
    name: &'static str,
    answers: bool,
}

impl Neighbour {
    fn new(name: &'static str) -> Self {
        Self { name, answers: true }
    }

    fn answered<T, E: Display>(&mut self, answer: Result<T, E>) -> Option<T> {
        let answers = answer.is_ok();
        metrics::gauge!(names::DEPENDENCY_UP, "dependency" => self.name).set(if answers { 1.0 } else { 0.0 });
        let changed = std::mem::replace(&mut self.answers, answers) != answers;
        match answer {
            Ok(answer) => return Some(answer),
            // Who needs it tells of it in words; this is only the probe.
            Err(error) if changed => tracing::debug!(neighbour = self.name, %error, "a neighbour does not answer"),
            Err(_) => {}
        }
        None
    }
}

/// What did not answer in time.
const SILENCE: &str = "no answer";
