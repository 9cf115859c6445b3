//! What the workers need: their tables, the star schema, and reports that ClickHouse can run.
//!
//! A report is explained with the values that it has by itself, and others of the right types for the rest. So what ClickHouse
//! says of its names and types counts, and what it says of such a value does not.

use std::{future::Future, time::Duration};

use clickhouse::{Client, error::Error};

use super::{Found, Report, failed, fine, plural, warning};
use crate::{
    clickhouse::{
        client::{client, code, describe},
        ddl,
        warehouse::{self, Applied},
    },
    config::{Config, MERCHANT, ReportConfig, reports},
};

const AREA: &str = "workers";
const REPORTS: &str = "reports";
const TIMEOUT: Duration = Duration::from_secs(10);
/// UNKNOWN_TABLE, UNKNOWN_DATABASE.
const MISSING: [u32; 2] = [60, 81];
/// What a statement itself has wrong: ILLEGAL_COLUMN, NUMBER_OF_ARGUMENTS_DOESNT_MATCH, ILLEGAL_TYPE_OF_ARGUMENT,
/// UNKNOWN_FUNCTION, UNKNOWN_IDENTIFIER, UNKNOWN_TYPE, SYNTAX_ERROR, NOT_AN_AGGREGATE, INCORRECT_QUERY, READONLY, NO_COMMON_TYPE, AMBIGUOUS_COLUMN_NAME and
/// ACCESS_DENIED. The whole message is about the statement then, and has no row in it.
const OF_THE_STATEMENT: [u32; 13] = [44, 42, 43, 46, 47, 50, 62, 215, 80, 164, 386, 352, 497];
const LONGEST: usize = 300;

/// Nothing without `[queue]` and workers that are on.
pub(super) async fn check(config: &Config) -> Report {
    let mut report = Report::default();
    if config.queue.is_none() || !config.workers.enabled {
        return report;
    }
    let server = client(&config.clickhouse);
    // If ClickHouse does not answer, its own half of the check has said so, and what follows would try for a long time.
    if bounded(server.query("SELECT 1").fetch_one::<u8>()).await.is_ok()
        && let Ok((exists, own)) = bounded(ddl::migrated(&server, &config.clickhouse.database)).await
    {
        let missing = own.iter().filter(|(_, there)| !there).count();
        report.push(
            AREA,
            "tables",
            match missing {
                0 => fine("all are there"),
                missing => fine(format!("{} will be created", plural(missing, "table or column"))),
            },
        );
        let client = server.with_database(&config.clickhouse.database);
        let star = match config.warehouse.enabled {
            true => Some(look_at_star(&client, exists, &mut report).await),
            false => None,
        };
        if config.workers.operation.enabled {
            look_at_reports(&client, config, exists, star, &mut report).await;
        }
    }
    report
}

/// The crate itself waits for ever.
async fn bounded<T>(query: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, query).await.unwrap_or(Err(Error::TimedOut))
}

/// Whether the star schema is there.
async fn look_at_star(client: &Client, exists: bool, report: &mut Report) -> bool {
    let applied = match exists {
        true => bounded(warehouse::look(client)).await,
        false => Ok(Applied::Missing(Vec::new())),
    };
    let found = match &applied {
        Ok(Applied::Yes) => fine("is there"),
        Ok(Applied::Missing(missing)) if missing.is_empty() => fine("will be created"),
        Ok(Applied::Missing(missing)) => fine(format!("waits for {}", missing.join(", "))),
        Ok(Applied::Taken(name)) => failed(
            format!("there is a table {name}, which is not a view"),
            "rename it, or set warehouse.enabled = false",
        ),
        Err(error) => warning(describe(error), "the first run will tell"),
    };
    report.push(AREA, "star schema", found);
    matches!(applied, Ok(Applied::Yes))
}

/// `star`: whether the star schema is there; `None` if it is not wanted.
async fn look_at_reports(client: &Client, config: &Config, exists: bool, star: Option<bool>, report: &mut Report) {
    for (name, of) in reports(&config.reports) {
        let built_in = !config.reports.contains_key(&name);
        let found = match star {
            None if built_in => continue,
            Some(false) if built_in => fine("waits for the star schema"),
            _ if !exists => fine("not known before the database is there"),
            _ => explained(&name, explain(client, &of).await),
        };
        report.push(REPORTS, name, found);
    }
    if star.is_none() {
        let what = "need [warehouse] enabled = true, and are not looked at";
        report.push(REPORTS, "the built-in ones", fine(what));
    }
}

/// Has ClickHouse plan a report, which reads nothing of its tables, but for subqueries that are constants.
async fn explain(client: &Client, report: &ReportConfig) -> Result<(), Error> {
    let sql = format!("EXPLAIN PLAN {}", report.sql);
    let mut query = client.query_raw(&sql).with_setting("readonly", "1").with_setting("max_execution_time", "8");
    query = query.param(MERCHANT, "1");
    for (name, parameter) in &report.parameters {
        let own = parameter.default.as_ref().and_then(|default| parameter.of.text(&default.json()).ok());
        query = query.param(name, own.unwrap_or_else(|| parameter.of.sample().to_owned()));
    }
    bounded(async {
        let mut plan = query.fetch_bytes("TSV")?;
        while plan.next().await?.is_some() {}
        Ok(())
    })
    .await
}

fn explained(name: &str, explained: Result<(), Error>) -> Found {
    let Err(error) = explained else { return fine("can be run") };
    match code(&error) {
        Some(code) if MISSING.contains(&code) => warning(
            said(&error),
            format!("it can be run once that is there; if the name is wrong, correct reports.{name}.sql"),
        ),
        Some(code) if OF_THE_STATEMENT.contains(&code) => failed(said(&error), format!("correct reports.{name}.sql")),
        Some(_) => warning(
            format!("not known without its values: {}", describe(&error)),
            format!("ask for it once; if it fails, correct reports.{name}.sql"),
        ),
        None => warning(describe(&error), "look again when ClickHouse answers"),
    }
}

/// What ClickHouse says of a statement, without what stands around it.
fn said(error: &Error) -> String {
    let Error::BadResponse(text) = error else { return describe(error) };
    let text = text.split_once("DB::Exception: ").map_or(text.as_str(), |(_, text)| text);
    let text = text.split(" (version ").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn what_a_statement_has_wrong_is_told_and_what_a_value_has_is_not() {
        let answer = |code: u32, text: &str, name: &str| {
            let text = format!("Code: {code}. DB::Exception: {text} ({name}) (version 26.7.2.1 (official build))");
            explained("r", Err(Error::BadResponse(text)))
        };
        let found = answer(47, "Unknown expression identifier `foo`\nin scope SELECT foo.", "UNKNOWN_IDENTIFIER");
        let what = "Unknown expression identifier `foo` in scope SELECT foo. (UNKNOWN_IDENTIFIER)";
        assert_eq!((found.outcome, found.what.as_str()), (Outcome::Failed, what));
        assert_eq!(found.remedy.as_deref(), Some("correct reports.r.sql"));
        assert_eq!(answer(60, "Table a.b does not exist.", "UNKNOWN_TABLE").outcome, Outcome::Warning);
        let value = answer(376, "Cannot parse uuid canary", "CANNOT_PARSE_UUID");
        assert!(value.outcome == Outcome::Warning && !value.what.contains("canary"), "{}", value.what);
        assert_eq!(explained("r", Ok(())).outcome, Outcome::Ok);
    }
}
