//! `walhouse pause` and `walhouse resume`: of the pipeline, of workers, of single tables.
//!
//! The pipeline and workers are paused by what lies in ClickHouse, which every process of theirs looks at; what is asked for
//! of tables is a request to the daemon, as a resync is.

use super::{
    Say,
    request::{Answer, Error, INTERVAL},
    resync::{self, TableAnswer},
    verify,
};
use crate::{
    cli::{PauseArgs, ResumeArgs, Worker},
    clickhouse::{
        client::client,
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
use serde_json::json;
use std::time::{Duration, Instant, SystemTime};

/// Processes that run workers look this often: the others have this long when one of them has answered.
const OTHERS: Duration = Duration::from_secs(5);
/// Where nobody holds the slot's lock for so long, nobody runs.
const ALONE: Duration = Duration::from_secs(3);

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

/// What became of the pipeline or a worker.
#[derive(Clone, Debug, Serialize)]
pub struct SubjectAnswer {
    /// Which.
    subject: Subject,
    /// Whether it is paused now; in a dry run, whether it would be.
    paused: bool,
    /// Whether that was so before.
    before: bool,
    /// Since when, in UTC. Without it, and what follows, it was never paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The processes that have said that they have taken it up. It holds for others too, from their start on.
    taken_up_by: Vec<String>,
}

impl SubjectAnswer {
    fn new(subject: Subject, paused: bool, before: bool, pause: Option<&Pause>) -> Self {
        Self {
            subject,
            paused,
            before,
            since: pause.map(|pause| pause.since.clone()),
            asked_by: pause.map(|pause| pause.asked_by.clone()),
            reason: pause.map(|pause| pause.reason.clone()),
            taken_up_by: Vec::new(),
        }
    }
}

/// `walhouse pause`. `say` takes a line about how it goes on.
///
/// # Errors
/// If it is not in force.
pub async fn pause(config: &Config, args: &PauseArgs, say: Say<'_>) -> Result<Answer, Error> {
    let by = asked_by();
    let reason = args.reason.trim();
    let patience = (!args.wait.no_wait).then_some(args.wait.timeout.0);
    let (mut held, mut kept) = (Vec::new(), None);
    for subject in subjects(&args.tables, &args.workers) {
        held.push(match args.dry_run {
            true => would_hold(config, subject, true, say).await?,
            false => hold_and_wait(config, subject, Some((reason, &by)), patience, say).await?,
        });
        if subject == Subject::Pipeline {
            match slot(config).await {
                Ok((now, _)) => kept = now,
                Err(error) => say(&format!("what the slot keeps meanwhile can not be told: {error}")),
            }
            if let Some(kept) = &kept {
                say(&format!("{kept}. walhouse resume goes on"));
            }
        }
    }
    let mut tables = Vec::new();
    if !args.tables.is_empty() {
        let tense = if args.dry_run { "would be" } else { "are" };
        say(&format!(
            "the changes of these tables {tense} passed over from now on, and gone for them: walhouse resume copies each anew"
        ));
        let order = Tables { tables: &args.tables, pause: Some((reason, &by)), dry_run: args.dry_run, patience };
        tables = of_tables(config, &order, say).await?;
    }
    let ok = resync::is_fine(&tables);
    Ok(Answer::new(ok, args.dry_run, json!({ "held": held, "tables": tables, "slot": kept })))
}

/// `walhouse resume`. `say` takes a line about how it goes on.
///
/// # Errors
/// If it is not in force, or a table is not copied anew.
pub async fn resume(config: &Config, args: &ResumeArgs, say: Say<'_>) -> Result<Answer, Error> {
    let patience = (!args.wait.no_wait).then_some(args.wait.timeout.0);
    let mut held = Vec::new();
    for subject in subjects(&args.tables, &args.workers) {
        held.push(match args.dry_run {
            true => would_hold(config, subject, false, say).await?,
            false => hold_and_wait(config, subject, None, patience, say).await?,
        });
    }
    let mut tables = Vec::new();
    if !args.tables.is_empty() {
        let order = Tables { tables: &args.tables, pause: None, dry_run: args.dry_run, patience };
        tables = of_tables(config, &order, say).await?;
    }
    let ok = resync::is_fine(&tables);
    Ok(Answer::new(ok, args.dry_run, json!({ "held": held, "tables": tables })))
}

/// Pauses a subject, with the reason and by whom, or ends its pause, and waits until that is in force.
async fn hold_and_wait(
    config: &Config,
    subject: Subject,
    pause: Option<(&str, &str)>,
    patience: Option<Duration>,
    say: Say<'_>,
) -> Result<SubjectAnswer, Error> {
    let by = asked_by();
    let (reason, by) = pause.unwrap_or(("", &by));
    let Some(held) = hold(config, subject, pause.is_some(), reason, by).await? else {
        say(&format!("{subject}: is not paused"));
        return Ok(SubjectAnswer::new(subject, false, true, None));
    };
    let verb = match (held.paused, held.before) {
        (true, false) => "paused",
        (true, true) => "paused already",
        (false, false) => "resumed",
        (false, true) => "is not paused,",
    };
    say(&format!("{subject}: {verb} {}", held.pause));
    let taken_up_by = in_force(config, subject, &held.pause, patience, say).await?;
    Ok(SubjectAnswer { taken_up_by, ..SubjectAnswer::new(subject, held.paused, held.before, Some(&held.pause)) })
}

/// What [`hold`] would do.
async fn would_hold(config: &Config, subject: Subject, paused: bool, say: Say<'_>) -> Result<SubjectAnswer, Error> {
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    verify::stored(config, &target).await?;
    let last = Pauses::new(target, &config.source.slot).of(subject).await?;
    let is_paused = last.as_ref().is_some_and(|last| last.is_paused);
    let would = match (paused, is_paused, &last) {
        (true, true, Some(last)) => format!("is paused already, {last}"),
        (true, ..) => "would be paused".to_owned(),
        (false, true, Some(last)) => format!("would be resumed; it is paused {last}"),
        (false, ..) => "is not paused".to_owned(),
    };
    say(&format!("{subject}: {would}"));
    let last = last.filter(|_| is_paused);
    Ok(SubjectAnswer::new(subject, paused, is_paused == paused, last.as_ref()))
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
        let order = Tables { tables, pause: why.map(|why| (why, by)), dry_run: false, patience: None };
        asked.tables = of_tables(config, &order, &|_| {}).await?.into_iter().map(|answer| answer.table).collect();
    }
    for subject in subjects(tables, workers) {
        asked.held.extend(hold(config, subject, why.is_some(), why.unwrap_or_default(), by).await?);
    }
    Ok(asked)
}

/// What is asked for of tables.
struct Tables<'a> {
    tables: &'a [Glob],
    /// The reason, and by whom; `None` to resume those that are paused.
    pause: Option<(&'a str, &'a str)>,
    dry_run: bool,
    patience: Option<Duration>,
}

async fn of_tables(config: &Config, of: &Tables<'_>, say: Say<'_>) -> Result<Vec<TableAnswer>, Error> {
    let &Tables { tables, pause, dry_run, patience } = of;
    let Some((reason, by)) = pause else {
        let order = resync::Order { action: Action::Resume, tables, message: "", dry_run, patience };
        let paused = |record: &TableRecord| matches!(record.status, TableStatus::Paused(_));
        return resync::ask(config, &order, paused, say).await;
    };
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace('T', " ").replace('Z', " UTC");
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let message = format!("since {now} by {by}{why}");
    let order = resync::Order { action: Action::Pause, tables, message: &message, dry_run, patience };
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

/// Waits until somebody has taken it up, and says who; nobody, if nobody is waited for, or is there.
async fn in_force(
    config: &Config,
    subject: Subject,
    pause: &Pause,
    patience: Option<Duration>,
    say: Say<'_>,
) -> Result<Vec<String>, Error> {
    let Some(patience) = patience else { return Ok(Vec::new()) };
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let pauses = Pauses::new(target, &config.source.slot);
    let (begun, mut first, mut alone) = (Instant::now(), None::<Instant>, None::<Instant>);
    loop {
        let by = pauses.taken_up(&pause.id).await?;
        let since = if by.is_empty() { None } else { Some(*first.get_or_insert_with(Instant::now)) };
        // One process has the pipeline, and any number workers.
        if since.is_some_and(|since| subject == Subject::Pipeline || since.elapsed() > OTHERS) {
            say(&format!("{subject}: taken up by {}", by.join(", ")));
            return Ok(by);
        }
        if subject == Subject::Pipeline && by.is_empty() {
            // One that has lost a connection is without the lock for a moment.
            let free = matches!(slot(config).await, Ok((_, None)));
            alone = alone.filter(|_| free).or_else(|| free.then(Instant::now));
            if alone.is_some_and(|since| since.elapsed() > ALONE) {
                say("no walhouse run is going with this slot: it holds from its next start on");
                return Ok(by);
            }
        }
        if by.is_empty() && begun.elapsed() > patience {
            let verb = if pause.is_paused { "pause" } else { "resume" };
            let who = match subject {
                Subject::Pipeline => "walhouse run",
                _ => "a process with this worker",
            };
            return Err(Error::Nobody { what: format!("{verb} of {subject}"), who, patience });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// User and host.
pub fn asked_by() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    format!("{}@{}", user.filter(|user| !user.is_empty()).unwrap_or_else(|| "somebody".to_owned()), host())
}
