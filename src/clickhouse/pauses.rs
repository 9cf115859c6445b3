//! What operators have paused, by way of ClickHouse: it holds until somebody ends it, over restarts, and in every process
//! that has the slot's configuration.
//!
//! A pause is a state and not a request: the process that it concerns may be away, or there may be several. Each of them says
//! that it has taken it up, so that whoever asked knows that it is in force.

use super::{client::code, presence::presence};
use clickhouse::{Client, Row, error::Error};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};
use tokio::time::Instant;

/// For one look; ClickHouse may be away.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be paused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Reading the slot.
    Pipeline,
    /// Taking events from audit-log-queue.
    Audit,
    /// Taking events from async-operations-queue.
    Operation,
    /// Taking events from data-sync-queue.
    DataSync,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pipeline, Self::Audit, Self::Operation, Self::DataSync];

    /// Its word on the command line, in metrics, and as it is stored.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Audit => "audit",
            Self::Operation => "operation",
            Self::DataSync => "data-sync",
        }
    }
}

/// In a sentence.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipeline => f.write_str("the pipeline"),
            worker => write!(f, "the worker {}", worker.label()),
        }
    }
}

/// What was last said of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// What it is about.
    pub subject: Subject,
    /// Its id, a UUID: of a pause, or of its end.
    #[serde(skip)]
    pub id: String,
    /// Whether it is paused.
    #[serde(skip)]
    pub is_paused: bool,
    /// What the operator said about it.
    pub reason: String,
    /// Who it was.
    pub asked_by: String,
    /// Since when, in UTC.
    pub since: String,
    #[serde(skip)]
    revision: u64,
}

/// Since when, by whom and why.
impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "since {} UTC by {}", self.since, self.asked_by)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

/// The pauses of one slot.
#[derive(Clone)]
pub struct Pauses {
    client: Client,
    slot: String,
}

#[derive(Row, Deserialize)]
struct PauseRow {
    subject: String,
    id: String,
    paused: u8,
    reason: String,
    asked_by: String,
    since: String,
    revision: u64,
}

impl Pauses {
    /// Those of `slot`; the database of `client` is chosen.
    pub fn new(client: Client, slot: &str) -> Self {
        Self { client, slot: slot.to_owned() }
    }

    /// What was last said of each subject of which anything ever was.
    ///
    /// # Errors
    /// What ClickHouse says, or that it does not answer. One that has never seen a pause has none.
    pub async fn all(&self) -> Result<Vec<Pause>, Error> {
        let sql = "SELECT toString(subject) AS subject, toString(id) AS id, paused, reason, asked_by, \
                   formatDateTime(updated_at, '%F %T') AS since, revision \
                   FROM _pauses WHERE slot = {slot: String} ORDER BY revision DESC LIMIT 1 BY subject";
        let look = self.client.query_raw(sql).param("slot", &self.slot).fetch_all::<PauseRow>();
        match bounded(look).await {
            // Neither the database nor the table is there before the first run of this version.
            Err(error) if matches!(code(&error), Some(60 | 81)) => Ok(Vec::new()),
            rows => Ok(rows?.into_iter().filter_map(pause).collect()),
        }
    }

    /// What was last said of a subject.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub async fn of(&self, subject: Subject) -> Result<Option<Pause>, Error> {
        Ok(self.all().await?.into_iter().find(|pause| pause.subject == subject))
    }

    /// Pauses a subject, or ends its pause, unless that is what it is already. Returns what holds then, and whether that
    /// was so before; `None` where there was nothing to end.
    ///
    /// # Errors
    /// What ClickHouse says.
    pub async fn set(
        &self,
        subject: Subject,
        paused: bool,
        reason: &str,
        asked_by: &str,
    ) -> Result<Option<(Pause, bool)>, Error> {
        let last = self.of(subject).await?;
        match last {
            Some(last) if last.is_paused == paused => return Ok(Some((last, true))),
            None if !paused => return Ok(None),
            _ => {}
        }
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
        let insert = "INSERT INTO _pauses (slot, subject, id, paused, reason, asked_by, revision) SETTINGS async_insert = 0 \
                      VALUES (?, ?, ?, ?, ?, ?, ?)";
        let write = self
            .client
            .query(insert)
            .bind(&self.slot)
            .bind(subject.label())
            .bind(&id)
            .bind(u8::from(paused))
            .bind(reason)
            .bind(asked_by)
            .bind(last.map_or(0, |last| last.revision) + 1);
        bounded(write.execute()).await?;
        Ok(self.of(subject).await?.map(|pause| (pause, false)))
    }

    /// Says that this process has taken up what this id stands for.
    ///
    /// # Errors
    /// What ClickHouse says.
    pub async fn take_up(&self, id: &str) -> Result<(), Error> {
        let insert = "INSERT INTO _pauses_taken_up (slot, id, process) SETTINGS async_insert = 0 VALUES (?, ?, ?)";
        bounded(self.client.query(insert).bind(&self.slot).bind(id).bind(process()).execute()).await
    }

    /// The processes that have taken it up.
    ///
    /// # Errors
    /// What ClickHouse says.
    pub async fn taken_up(&self, id: &str) -> Result<Vec<String>, Error> {
        let sql = "SELECT process FROM _pauses_taken_up FINAL WHERE slot = {slot: String} AND id = toUUID({id: String}) \
                   ORDER BY process";
        bounded(self.client.query_raw(sql).param("slot", &self.slot).param("id", id).fetch_all()).await
    }
}

fn pause(row: PauseRow) -> Option<Pause> {
    // What a later version pauses is none of this one's business.
    let subject = Subject::ALL.into_iter().find(|subject| subject.label() == row.subject)?;
    let PauseRow { id, paused, reason, asked_by, since, revision, .. } = row;
    Some(Pause { subject, id, is_paused: paused != 0, reason, asked_by, since, revision })
}

async fn bounded<T>(statement: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let begun = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, statement).await.unwrap_or(Err(Error::TimedOut));
    presence().note(begun, "look what is paused", &answer);
    answer
}

/// What this process is called where several may answer.
pub fn process() -> String {
    format!("process {} on {}", std::process::id(), host())
}

/// This machine's name.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "this host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_says_since_when_by_whom_and_why() {
        let pause = Pause {
            subject: Subject::DataSync,
            id: String::new(),
            is_paused: true,
            reason: "a column is wrong".to_owned(),
            asked_by: "ops@bastion".to_owned(),
            since: "2026-01-01 10:00:00".to_owned(),
            revision: 1,
        };
        assert_eq!(pause.to_string(), "since 2026-01-01 10:00:00 UTC by ops@bastion: a column is wrong");
        assert_eq!(
            Pause { reason: String::new(), ..pause }.to_string(),
            "since 2026-01-01 10:00:00 UTC by ops@bastion"
        );
        assert_eq!(Subject::DataSync.to_string(), "the worker data-sync");
    }
}
