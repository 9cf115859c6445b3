//! `walhouse status`: where it stands, from the two servers and SQS alone.
//!
//! No daemon is asked, so it tells of one that is down as well. Each part is looked at by itself: one that can not be reached
//! is said to be so, with its reason, and hides no other. What needs a person is a finding, with what to do.

mod findings;
mod queues;
mod source;
mod stored;
mod text;

pub use findings::Finding;
pub use queues::{Depth, Workers};
pub use source::{LeftOut, Source};
pub use stored::{Copying, Letters, Standing, Stored, TableReport};

use crate::{
    cli::exit,
    clickhouse::{
        pauses::Subject,
        requests::{Action, Request},
    },
    config::Config,
    status::State,
};
use serde::Serialize;
use std::time::Duration;

/// How long each part may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many bytes of WAL are more than what happens to be on its way.
const MUCH: u64 = 16 << 20;

/// What a look gave, or why it gave nothing.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Part<T> {
    /// It was reached.
    Known(T),
    /// It was not.
    Unknown {
        /// Why.
        unreachable: String,
    },
}

impl<T> Part<T> {
    /// What is known of it.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(what) => Some(what),
            Self::Unknown { .. } => None,
        }
    }

    /// Why nothing is.
    pub fn unreachable(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown { unreachable } => Some(unreachable),
        }
    }

    async fn of(look: impl Future<Output = Result<T, String>>) -> Self {
        let looked = tokio::time::timeout(PATIENCE, look).await;
        let silent = || Err(format!("it did not answer within {} s", PATIENCE.as_secs()));
        match looked.unwrap_or_else(|_| silent()) {
            Ok(what) => Self::Known(what),
            Err(unreachable) => Self::Unknown { unreachable },
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The slot's name.
    pub slot: String,
    /// Where replication stands, as far as the two servers show it.
    pub state: State,
    /// What needs a person.
    pub findings: Vec<Finding>,
    /// PostgreSQL.
    pub source: Part<Source>,
    /// What is stored in ClickHouse.
    pub stored: Part<Stored>,
    /// SQS, without `[queue]` nothing.
    pub queues: Vec<Depth>,
    /// Who handles events, as this configuration has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
}

/// Looks at everything.
pub async fn look(config: &Config) -> Report {
    // The slot before the checkpoint: a daemon moves it only once that is stored, so it is never seen beyond.
    let servers = async { (Part::of(source::look(config)).await, Part::of(stored::look(config)).await) };
    let ((source, stored), queues) =
        futures_util::future::join(Box::pin(servers), Box::pin(queues::look(config))).await;
    let workers = config.queue.as_ref().map(|_| Workers::of(config));
    let slot = config.source.slot.clone();
    let state = State::default();
    let mut report = Report { slot, state, findings: Vec::new(), source, stored, queues, workers };
    report.join();
    report.state = report.state();
    report.findings = findings::of(&report);
    report
}

impl Report {
    /// In a word. What keeps everything else waiting comes first.
    fn state(&self) -> State {
        let Part::Known(source) = &self.source else { return State::WaitingForPostgreSql };
        if source.held_by.is_none() {
            return State::Down;
        }
        let Part::Known(stored) = &self.stored else { return State::WaitingForClickHouse };
        let is_replay = |request: &Request| request.begun && request.action == Action::Replay;
        if stored.paused.iter().any(|pause| pause.subject == Subject::Pipeline) {
            State::Paused
        } else if stored.requests.iter().any(is_replay) {
            State::Replaying
        } else if stored.tables.iter().any(|table| table.copying.is_some()) {
            State::Copying
        } else {
            match &source.slot {
                Some(slot) if slot.active => State::Streaming,
                // The slot itself is not active while copies of it are read.
                Some(slot) if slot.lag_bytes > MUCH => State::CatchingUp,
                _ => State::Starting,
            }
        }
    }

    /// What one part knows of the other's.
    fn join(&mut self) {
        let (Part::Known(source), Part::Known(stored)) = (&mut self.source, &mut self.stored) else { return };
        source.left_out.retain(|left_out| stored.tables.iter().all(|table| table.oid != left_out.oid));
        for table in &mut stored.tables {
            if let Some(copying) = &mut table.copying {
                copying.done = source.blocks.get(&table.oid).map(|blocks| copying.share(*blocks));
            }
        }
    }

    /// 0 when nobody has to do anything, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        if self.findings.is_empty() { exit::FINE } else { exit::FOUND }
    }

    /// For machines: the report, with `"healthy": …` in front.
    pub fn json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({ "healthy": self.findings.is_empty() });
        if let (Some(json), Ok(serde_json::Value::Object(report))) = (json.as_object_mut(), serde_json::to_value(self))
        {
            json.extend(report);
        }
        json
    }
}

#[cfg(test)]
mod tests;
