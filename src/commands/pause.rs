//! `walhouse pause` and `walhouse resume`: of the pipeline, of workers, of single tables.
//!
//! The pipeline and workers are paused by what lies in ClickHouse, which every process of theirs looks at; what is asked for
//! of tables is a request to the daemon, as a resync is.

use super::{resync, verify};
use crate::{
    cli::{PauseArgs, ResumeArgs, Worker},
    clickhouse::{
        client::{client, describe},
        ddl,
        pauses::{Pause, Pauses, Subject, host},
        requests::Action,
        state::{TableRecord, TableStatus},
    },
    config::{Config, Glob},
    postgres::{
        lock,
        retention::{Retention, retention},
        sql::{self, SqlError},
    },
};
use serde::Serialize;
use std::time::{Duration, Instant, SystemTime};

/// How often it is looked who has taken it up.
const INTERVAL: Duration = Duration::from_millis(500);
/// Processes that run workers look this often: the others have this long when one of them has answered.
const OTHERS: Duration = Duration::from_secs(5);

/// Why nothing, or not everything, was paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is stored can not be read.
    #[error(transparent)]
    Stored(#[from] verify::Error),
    /// ClickHouse fails.
    #[error("{}", describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// A table is not paused, or not resumed.
    #[error(transparent)]
    Table(#[from] resync::Error),
    /// No process says that it has.
    #[error(
        "{subject} was to be {verb} and nobody has taken that up within {patience:?}: is {who} going, with this slot? It is \
         stored, and holds as soon as there is one"
    )]
    Nobody {
        /// What it is about.
        subject: Subject,
        /// Paused or resumed.
        verb: &'static str,
        /// Who should have.
        who: &'static str,
        /// How long it was waited.
        patience: Duration,
    },
}

/// What holds for a subject now.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// Since when, by whom, why.
    #[serde(flatten)]
    pub pause: Pause,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether that was so before.
    pub before: bool,
}

/// Pauses a subject, or ends its pause; `None` where there was none to end. It holds from here on, whoever runs or not.
///
/// # Errors
/// If nothing of the slot is stored, or ClickHouse fails.
pub async fn hold(
    config: &Config,
    subject: Subject,
    paused: bool,
    reason: &str,
    asked_by: &str,
) -> Result<Option<Held>, Error> {
    let server = client(&config.clickhouse);
    let target = server.clone().with_database(&config.clickhouse.database);
    // Refused where walhouse has never run: the name of the slot or of the database may be wrong.
    verify::stored(config, &target).await?;
    ddl::migrate(&server, &target, &config.clickhouse.database).await?;
    let set = Pauses::new(target, &config.source.slot).set(subject, paused, reason, asked_by).await?;
    Ok(set.map(|(pause, before)| Held { paused: pause.is_paused, pause, before }))
}

/// What the slot keeps now, and who holds its lock.
///
/// # Errors
/// What PostgreSQL says.
pub async fn slot(config: &Config) -> Result<(Option<Retention>, Option<String>), SqlError> {
    let client = sql::connect(&config.source, "walhouse pause").await?;
    let kept = retention(&client, &config.source.slot).await?;
    Ok((kept, lock::holder(&client, &config.source.slot).await?))
}

/// `walhouse pause`. `say` takes a line about how it goes on.
///
/// # Errors
/// If it is not in force.
pub async fn pause(config: &Config, args: &PauseArgs, say: &(dyn Fn(&str) + Send + Sync)) -> Result<(), Error> {
    let by = asked_by();
    let reason = args.reason.trim();
    let patience = (!args.wait.no_wait).then_some(args.wait.timeout.0);
    for subject in subjects(&args.tables, &args.workers) {
        let Some(held) = hold(config, subject, true, reason, &by).await? else { continue };
        let before = if held.before { " already" } else { "" };
        say(&format!("{subject}: paused{before} {}", held.pause));
        in_force(config, subject, &held.pause, patience, say).await?;
        if subject == Subject::Pipeline {
            match slot(config).await {
                Ok((Some(kept), _)) => say(&format!("{kept}. walhouse resume goes on")),
                Ok((None, _)) => {}
                Err(error) => say(&format!("what the slot keeps meanwhile can not be told: {error}")),
            }
        }
    }
    if !args.tables.is_empty() {
        say(
            "the changes of these tables are passed over from now on, and gone for them: walhouse resume copies each anew",
        );
        of_tables(config, &args.tables, Some((reason, &by)), patience, say).await?;
    }
    Ok(())
}

/// `walhouse resume`. `say` takes a line about how it goes on.
///
/// # Errors
/// If it is not in force, or a table is not copied anew.
pub async fn resume(config: &Config, args: &ResumeArgs, say: &(dyn Fn(&str) + Send + Sync)) -> Result<(), Error> {
    let patience = (!args.wait.no_wait).then_some(args.wait.timeout.0);
    for subject in subjects(&args.tables, &args.workers) {
        match hold(config, subject, false, "", &asked_by()).await? {
            None => say(&format!("{subject}: is not paused")),
            Some(held) => {
                say(&format!("{subject}: {} {}", if held.before { "is not paused," } else { "resumed" }, held.pause));
                in_force(config, subject, &held.pause, patience, say).await?;
            }
        }
    }
    if !args.tables.is_empty() {
        of_tables(config, &args.tables, None, patience, say).await?;
    }
    Ok(())
}

/// What was asked for. Whether it is in force yet is not known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Asked {
    /// The pipeline and workers. One that never was paused and is to be resumed is not there.
    pub held: Vec<Held>,
    /// Tables, as `schema.name`.
    pub tables: Vec<String>,
}

/// Pauses what is named, or with `why` of `None` resumes it, and waits for nothing: what [`pause`] and [`resume`] do with
/// `--no-wait`. `why` is the reason, and `by` who asks.
///
/// # Errors
/// If a pattern matches no table, and then nothing was done; or ClickHouse fails.
pub async fn only_ask(
    config: &Config,
    tables: &[Glob],
    workers: &[Worker],
    why: Option<&str>,
    by: &str,
) -> Result<Asked, Error> {
    let mut asked = Asked::default();
    if !tables.is_empty() {
        asked.tables = of_tables(config, tables, why.map(|why| (why, by)), None, &|_| {}).await?;
    }
    for subject in subjects(tables, workers) {
        asked.held.extend(hold(config, subject, why.is_some(), why.unwrap_or_default(), by).await?);
    }
    Ok(asked)
}

/// Asks that tables are paused, with the reason and by whom, or that those which are paused are resumed.
async fn of_tables(
    config: &Config,
    tables: &[Glob],
    pause: Option<(&str, &str)>,
    patience: Option<Duration>,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Vec<String>, resync::Error> {
    let Some((reason, by)) = pause else {
        let order = resync::Order { action: Action::Resume, tables, message: "", patience };
        let paused = |record: &TableRecord| matches!(record.status, TableStatus::Paused(_));
        return resync::ask(config, &order, paused, say).await;
    };
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace('T', " ").replace('Z', " UTC");
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let message = format!("since {now} by {by}{why}");
    let order = resync::Order { action: Action::Pause, tables, message: &message, patience };
    resync::ask(config, &order, |_| true, say).await
}

/// Without a word of tables and workers the pipeline is meant.
fn subjects(tables: &[Glob], workers: &[Worker]) -> Vec<Subject> {
    if tables.is_empty() && workers.is_empty() {
        return vec![Subject::Pipeline];
    }
    let subject = |worker: &Worker| match worker {
        Worker::Audit => Subject::Audit,
        Worker::Operation => Subject::Operation,
        Worker::DataSync => Subject::DataSync,
    };
    workers.iter().map(subject).collect()
}

/// Waits until somebody has taken it up.
async fn in_force(
    config: &Config,
    subject: Subject,
    pause: &Pause,
    patience: Option<Duration>,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), Error> {
    let Some(patience) = patience else { return Ok(()) };
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let pauses = Pauses::new(target, &config.source.slot);
    let (begun, mut first) = (Instant::now(), None::<Instant>);
    loop {
        let by = pauses.taken_up(&pause.id).await?;
        let since = if by.is_empty() { None } else { Some(*first.get_or_insert_with(Instant::now)) };
        // One process has the pipeline, and any number workers.
        if since.is_some_and(|since| subject == Subject::Pipeline || since.elapsed() > OTHERS) {
            say(&format!("{subject}: taken up by {}", by.join(", ")));
            return Ok(());
        }
        if subject == Subject::Pipeline && by.is_empty() && matches!(slot(config).await, Ok((_, None))) {
            say("no walhouse run is going with this slot: it holds from its next start on");
            return Ok(());
        }
        if by.is_empty() && begun.elapsed() > patience {
            let verb = if pause.is_paused { "paused" } else { "resumed" };
            let who = match subject {
                Subject::Pipeline => "walhouse run",
                _ => "a process with this worker",
            };
            return Err(Error::Nobody { subject, verb, who, patience });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// User and host.
pub fn asked_by() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    format!("{}@{}", user.filter(|user| !user.is_empty()).unwrap_or_else(|| "somebody".to_owned()), host())
}
