//! `walhouse provision`: makes what walhouse needs, and puts right what differs.
//!
//! The queues first, for which nothing else has to be there; then what the daemon makes at its first start, in the same order
//! and by the same code: nothing is made before the source was found fit, and the slot's position is stored before anything
//! else. One thing that fails does not hide the others, as far as they do not stand on it.

use crate::{
    cli::exit,
    clickhouse::{
        client::{client, describe},
        ddl,
        state::{Checkpoint, State},
    },
    config::Config,
    postgres::{
        connection::ReplicationConnection,
        lock::SlotLock,
        publication,
        slot::Server,
        sql::{self, SqlError},
    },
    queue::{
        client::Sqs,
        provision::{self, Change},
    },
    setup::{self, SetupError},
};
use clickhouse::Client;
use serde::Serialize;
use std::{fmt, time::Duration};

/// How long another walhouse may hold the slot's lock.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// ClickHouse's statements, which are tried again and again, and each side as a whole.
const LIMIT: Duration = Duration::from_secs(60);
const QUEUE: &str = "queue";
const POSTGRES: &str = "PostgreSQL";
const CLICKHOUSE: &str = "ClickHouse";

/// What was done about a thing, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is there, as it should be.
    Present,
    /// It was not there.
    Created,
    /// It was another way.
    Changed,
    /// It could not be looked at, or made.
    Failed,
    /// It is not configured.
    Absent,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// `queue`, `PostgreSQL` or `ClickHouse`.
    pub area: &'static str,
    /// What it is about.
    pub name: String,
    /// What was done.
    pub action: Action,
    /// Attributes that differed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// More about it; of a failure, what happened and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    dry_run: bool,
    steps: Vec<Step>,
}

/// Makes what is missing; with `dry_run`, only says so.
pub async fn run(config: &Config, dry_run: bool) -> Report {
    let mut report = Report { dry_run, steps: Vec::new() };
    report.queues(config).await;
    let ends = Box::pin(report.ends(config));
    let outcome = tokio::time::timeout(LIMIT, ends).await;
    let why = match outcome {
        Ok(Ok(())) => return report,
        Ok(Err(why)) => why,
        Err(_) => (POSTGRES, "position", format!("it was not done within {} s: see walhouse check", LIMIT.as_secs())),
    };
    let (area, name, why) = why;
    report.push(area, name, Action::Failed, Some(why));
    report
}

/// What failed: area, thing and why.
type Failed = (&'static str, &'static str, String);

impl Report {
    /// 0 if all is there, or could be.
    pub fn exit_code(&self) -> u8 {
        let failed = self.steps.iter().any(|step| step.action == Action::Failed);
        if failed { exit::FOUND } else { exit::FINE }
    }

    /// For machines: `{"ok": …, "dry_run": …, "changed": …, "steps": […]}`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "ok": self.exit_code() == exit::FINE,
            "dry_run": self.dry_run,
            "changed": self.changed(),
            "steps": self.steps,
        })
    }

    /// How many things were made or put right.
    fn changed(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.action, Action::Created | Action::Changed)).count()
    }

    fn push(&mut self, area: &'static str, name: impl Into<String>, action: Action, what: Option<String>) {
        self.steps.push(Step { area, name: name.into(), action, changes: Vec::new(), what });
    }

    async fn queues(&mut self, config: &Config) {
        let Some(queue) = &config.queue else {
            let why = "there is no [queue] in the configuration: events are not sent, and nothing is done about SQS";
            return self.push(QUEUE, "queues", Action::Absent, Some(why.to_owned()));
        };
        let sqs = Sqs::new(queue, &config.workers).await;
        let steps = match provision::provision(&sqs, self.dry_run).await {
            Ok(steps) => steps,
            Err(error) => return self.push(QUEUE, "queues", Action::Failed, Some(error.to_string())),
        };
        for provision::Step { queue, action } in steps {
            let (action, changes) = match action {
                provision::Action::Fits => (Action::Present, Vec::new()),
                provision::Action::Create => (Action::Created, Vec::new()),
                provision::Action::Set(changes) => (Action::Changed, changes),
            };
            self.steps.push(Step { area: QUEUE, name: queue, action, changes, what: None });
        }
    }

    /// Both ends of the stream.
    async fn ends(&mut self, config: &Config) -> Result<(), Failed> {
        let source = &config.source;
        let postgres = |error: SqlError| (POSTGRES, "connection", error.to_string());
        let control = sql::connect(source, "walhouse provision").await.map_err(postgres)?;
        setup::fit(&control, config).await.map_err(|error| (POSTGRES, "server", error.to_string()))?;
        let (server, target) = self.clickhouse(config).await?;
        let found = publication::publication(&control, &source.publication).await;
        let found = found.map_err(|error| (POSTGRES, "publication", error.to_string()))?;
        let connected = ReplicationConnection::connect(&source.url, "walhouse provision").await;
        let mut replication = connected.map_err(|error| (POSTGRES, "replication", error.to_string()))?;
        let asked = Server::ask(&control, &mut replication, &source.slot, found.as_ref()).await;
        let asked = asked.map_err(|error| (POSTGRES, "slot", SetupError::from(error).to_string()))?;
        // Behind the slot, which a daemon moves only once its checkpoint is stored.
        let stored = match self.dry_run && !self.has_state(&server, config).await? {
            true => None,
            false => Some(load(&target, &source.slot).await?),
        };
        let checkpoint = match &stored {
            Some(state) => state.checkpoint().await,
            None => None,
        };
        let had = (found.is_some(), asked.slot.is_some());
        let position = match (checkpoint, stored) {
            (Some(stored), _) => {
                let fits = setup::goes_on(&stored, &asked, &source.slot, &mut replication).await;
                fits.map_err(|error| (POSTGRES, "slot", error.to_string()))?;
                (Action::Present, Some(stored))
            }
            (None, Some(state)) if !self.dry_run => {
                drop(state);
                let begun = begin(config, &control, &asked, found, &target).await;
                (Action::Created, Some(begun.map_err(|error| (POSTGRES, "slot", error))?))
            }
            (None, _) => {
                let misfit = asked.slot.as_ref().and_then(|slot| slot.misfit(&source.slot));
                misfit.map_or(Ok(()), |misfit| Err((POSTGRES, "slot", misfit)))?;
                (Action::Created, None)
            }
        };
        self.source(config, had, position);
        Ok(())
    }

    fn source(&mut self, config: &Config, had: (bool, bool), position: (Action, Option<Checkpoint>)) {
        let action = |had: bool| if had { Action::Present } else { Action::Created };
        self.push(POSTGRES, format!("publication {}", config.source.publication), action(had.0), None);
        self.push(POSTGRES, format!("slot {}", config.source.slot), action(had.1), None);
        let (action, checkpoint) = position;
        self.push(CLICKHOUSE, "position", action, checkpoint.map(|checkpoint| checkpoint.lsn.to_string()));
    }

    /// The database and walhouse's own tables: a client without a database, and one with it.
    async fn clickhouse(&mut self, config: &Config) -> Result<(Client, Client), Failed> {
        let database = &config.clickhouse.database;
        let server = client(&config.clickhouse);
        let target = server.clone().with_database(database);
        let failed = |error: clickhouse::error::Error| {
            let (url, user) = (&config.clickhouse.url, &config.clickhouse.user);
            (CLICKHOUSE, "database", format!("{}; it is asked at {url} as {user}", describe(&error)))
        };
        // The statements behind this one are tried again for as long as it takes.
        let asked = tokio::time::timeout(PATIENCE, server.query_raw("SELECT 1").fetch_one::<u8>()).await;
        asked.unwrap_or(Err(clickhouse::error::Error::TimedOut)).map_err(failed)?;
        let (exists, things) = ddl::migrated(&server, database).await.map_err(failed)?;
        if !self.dry_run && (!exists || things.iter().any(|(_, there)| !there)) {
            ddl::migrate(&server, &target, database).await.map_err(failed)?;
        }
        let action = |there: bool| if there { Action::Present } else { Action::Created };
        self.push(CLICKHOUSE, format!("database {database}"), action(exists), None);
        for (name, there) in things {
            self.push(CLICKHOUSE, name, action(there), None);
        }
        Ok((server, target))
    }

    /// Whether there is anything in which a position could be stored.
    async fn has_state(&self, server: &Client, config: &Config) -> Result<bool, Failed> {
        let there = ddl::migrated(server, &config.clickhouse.database).await;
        let (_, things) = there.map_err(|error| (CLICKHOUSE, "position", describe(&error)))?;
        Ok(things.iter().all(|(_, there)| *there))
    }
}

async fn load(target: &Client, slot: &str) -> Result<State, Failed> {
    State::load(target.clone(), slot).await.map_err(|error| (CLICKHOUSE, "position", describe(&error)))
}

/// The first session's beginning, without a session.
async fn begin(
    config: &Config,
    control: &tokio_postgres::Client,
    server: &Server,
    found: Option<publication::Publication>,
    target: &Client,
) -> Result<Checkpoint, String> {
    let source = &config.source;
    let session = sql::connect(source, "walhouse lock").await.map_err(|error| error.to_string())?;
    let lock = tokio::time::timeout(PATIENCE, SlotLock::take(session, &source.slot)).await;
    let lock = lock.map_err(|_| {
        "another walhouse holds the slot's lock, and so it makes what is missing by itself; see what it says".to_owned()
    })?;
    let _lock = lock.map_err(|error| error.to_string())?;
    // A daemon may have begun, and ended, since it was looked at.
    let state = load(target, &source.slot).await.map_err(|(_, _, why)| why)?;
    if let Some(stored) = state.checkpoint().await {
        return Ok(stored);
    }
    let begun = setup::begin(config, control, server, found, &state).await;
    let (checkpoint, _) = begun.map_err(|error| error.to_string())?;
    state.settle().await.map_err(|error| describe(&error))?;
    Ok(checkpoint)
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let areas = self.steps.iter().map(|step| step.area.len()).max().unwrap_or(0);
        let names = self.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
        for Step { area, name, action, changes, what } in &self.steps {
            let (mark, said) = match (action, self.dry_run) {
                (Action::Present, _) => ('✓', "is there"),
                (Action::Created, false) => ('+', "created"),
                (Action::Created, true) => ('+', "would be created"),
                (Action::Changed, false) => ('~', "changed"),
                (Action::Changed, true) => ('~', "would be changed"),
                (Action::Failed, _) => ('✗', "failed"),
                (Action::Absent, _) => ('-', "not configured"),
            };
            write!(f, "{mark} {area:areas$}  {name:names$}  {said}")?;
            let changes = changes.iter().map(|Change { attribute, from, to }| {
                format!("{attribute} from {} to {to}", from.as_deref().unwrap_or("nothing"))
            });
            let more: Vec<_> = changes.chain(what.clone()).collect();
            writeln!(f, "{}{}", if more.is_empty() { "" } else { ": " }, more.join(", "))?;
        }
        let failed = self.steps.iter().filter(|step| step.action == Action::Failed).count();
        match (failed, self.changed(), self.dry_run) {
            (0, 0, _) => f.write_str("All is there."),
            (0, changed, true) => write!(f, "{changed} to do; nothing was changed."),
            (0, changed, false) => write!(f, "{changed} done."),
            (failed, ..) => write!(f, "Not all is there: {failed} failed."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_was_done_and_what_would_be() {
        let mut report = Report::default();
        report.push(QUEUE, "audit-log-dlq", Action::Present, None);
        assert_eq!(report.to_string(), "✓ queue  audit-log-dlq  is there\nAll is there.");
        let change = Change { attribute: "VisibilityTimeout".into(), from: Some("30".into()), to: "35".into() };
        let mut step = report.steps[0].clone();
        (step.action, step.changes) = (Action::Changed, vec![change]);
        report.steps.push(step);
        let text = report.to_string();
        assert!(text.ends_with("~ queue  audit-log-dlq  changed: VisibilityTimeout from 30 to 35\n1 done."), "{text}");
        report.dry_run = true;
        assert!(report.to_string().ends_with("35\n1 to do; nothing was changed."));
        assert_eq!((report.exit_code(), report.json()["changed"].as_u64()), (0, Some(1)));
        report.push(CLICKHOUSE, "database", Action::Failed, Some("it is away".to_owned()));
        assert_eq!((report.exit_code(), report.json()["ok"].as_bool()), (1, Some(false)));
        assert!(report.to_string().ends_with("failed: it is away\nNot all is there: 1 failed."));
    }
}
